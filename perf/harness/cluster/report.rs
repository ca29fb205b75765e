//! What was measured of nodes, as JSON for `perf/scale_model` and as tables for people.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::report::median;
use crate::{Failure, load};

/// Name of the file that the model reads.
pub const FILE: &str = "cluster.json";

/// Everything of one run of `perf/cluster.sh`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Cores, processor, kernel, PostgreSQL.
    pub machine: String,
    /// Cores that all of it shared.
    pub cores: usize,
    /// The closed loop.
    pub load: load::Options,
    /// The open loop, events a second.
    pub ack_rate: u64,
    /// In the order in which they were made.
    pub runs: Vec<Run>,
    /// What came of breaking them.
    pub faults: Option<Faults>,
}

/// Some nodes under load. What is named micros is CPU microseconds for an event, what is named bytes is for an event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// How many.
    pub nodes: usize,
    /// Cores of PostgreSQL and of all others, where they did not share all of them.
    pub apart: Option<[usize; 2]>,
    /// Committed, from the first request until the last commit.
    pub events_per_second: f64,
    /// P50 and P99 of acknowledgements from the journal, in the open loop.
    pub ack_ms: [f64; 2],
    /// P50 and P99 of answers that waited for the commit, in the closed loop.
    pub commit_ms: [f64; 2],
    /// All nodes together.
    pub node_micros: f64,
    /// All of PostgreSQL.
    pub database_micros: f64,
    /// nginx with its workers.
    pub balancer_micros: f64,
    /// Redis.
    pub redis_micros: f64,
    /// wrk.
    pub load_micros: f64,
    /// Of all cores.
    pub busy_share: f64,
    /// What other programs, the kernel's own threads and other tenants of the machine had: of PostgreSQL's cores, and of
    /// those of all others that were measured. The same where they share all cores.
    pub others_shares: [f64; 2],
    /// Written to the WAL.
    pub wal_bytes: f64,
    /// Written to the nodes' disks.
    pub journal_bytes: f64,
    /// Tables with indexes.
    pub stored_bytes: f64,
    /// From the client, with heads.
    pub request_bytes: f64,
    /// Of each journal.
    pub fsyncs_per_second: f64,
    /// Rows of a COPY.
    pub copy_rows: f64,
    /// Commands to Redis for a batch of the closed loop.
    pub redis_commands_per_batch: f64,
    /// Memory of Redis for a batch.
    pub redis_bytes_per_batch: f64,
}

/// What clients saw of a change.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    /// Since the load began.
    pub at_seconds: f64,
    /// The change.
    pub what: String,
    /// Acknowledged while it lasted.
    pub events_per_second: f64,
    /// Batches that were sent again.
    pub retries: u64,
    /// Until the slowest batch was acknowledged, its retries included.
    pub longest_ms: f64,
}

/// All changes, and the count at the end. Everything but `acked`, `rows` and `retries` must be 0.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Changes.
    pub steps: Vec<Step>,
    /// Events of acknowledged batches.
    pub acked: u64,
    /// Rows in the table.
    pub rows: u64,
    /// Batches that were sent again.
    pub retries: u64,
    /// Acknowledged events that are not there.
    pub lost: u64,
    /// Rows too many, and rows that only the primary key kept out.
    pub doubled: u64,
    /// Batches that are there although nobody was told so.
    pub unasked: u64,
    /// Events that PostgreSQL refused.
    pub dead_letters: u64,
    /// Batches in the journals of nodes that were taken away.
    pub left_in_journals: u64,
    /// Answers about batches that were not `completed` with all events, over all nodes.
    pub statuses_wrong: u64,
}

impl Measured {
    /// Nothing yet, on `machine`.
    pub fn new(machine: String, load: load::Options) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { machine, cores, load, ack_rate: ack_rate(), runs: Vec::new(), faults: None }
    }

    /// Reads what [`Self::write`] has written into `folder`.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}; perf/cluster.sh makes it", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Writes figures and tables into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        std::fs::write(folder.join(FILE), serde_json::to_string_pretty(self)? + "\n")?;
        Ok(std::fs::write(folder.join("cluster.md"), self.table())?)
    }

    /// What was measured, in the order of the table.
    pub fn kinds(&self) -> Vec<(usize, Option<[usize; 2]>)> {
        let mut kinds = Vec::new();
        for run in &self.runs {
            if !kinds.contains(&(run.nodes, run.apart)) {
                kinds.push((run.nodes, run.apart));
            }
        }
        kinds
    }

    /// Medians of one node where everybody shares all cores.
    pub fn one_node(&self) -> Result<Run, Failure> {
        let missing = "no run with one node: what an event costs is taken from there";
        self.medians(1, None).ok_or_else(|| missing.into())
    }

    /// Medians of the runs with `nodes` nodes; `None` without one.
    pub fn medians(&self, nodes: usize, apart: Option<[usize; 2]>) -> Option<Run> {
        let runs: Vec<&Run> = self.runs.iter().filter(|run| run.nodes == nodes && run.apart == apart).collect();
        let of = |get: fn(&Run) -> f64| median(runs.iter().map(|run| get(run)).collect());
        Some(Run {
            nodes,
            apart,
            events_per_second: of(|run| run.events_per_second)?,
            ack_ms: [of(|run| run.ack_ms[0])?, of(|run| run.ack_ms[1])?],
            commit_ms: [of(|run| run.commit_ms[0])?, of(|run| run.commit_ms[1])?],
            node_micros: of(|run| run.node_micros)?,
            database_micros: of(|run| run.database_micros)?,
            balancer_micros: of(|run| run.balancer_micros)?,
            redis_micros: of(|run| run.redis_micros)?,
            load_micros: of(|run| run.load_micros)?,
            busy_share: of(|run| run.busy_share)?,
            others_shares: [of(|run| run.others_shares[0])?, of(|run| run.others_shares[1])?],
            wal_bytes: of(|run| run.wal_bytes)?,
            journal_bytes: of(|run| run.journal_bytes)?,
            stored_bytes: of(|run| run.stored_bytes)?,
            request_bytes: of(|run| run.request_bytes)?,
            fsyncs_per_second: of(|run| run.fsyncs_per_second)?,
            copy_rows: of(|run| run.copy_rows)?,
            redis_commands_per_batch: of(|run| run.redis_commands_per_batch)?,
            redis_bytes_per_batch: of(|run| run.redis_bytes_per_batch)?,
        })
    }

    /// Medians and faults, in Markdown.
    pub fn table(&self) -> String {
        let load::Options { seconds, connections, events } = self.load;
        let rounds = self.runs.iter().filter(|run| run.nodes == 1 && run.apart.is_none()).count();
        let mut text = format!(
            "{}\n{connections} connections, {events} events of about 400 bytes a request, {seconds} s, medians of {rounds}; \
             acks at {} events/s\n\n\
             | nodes | events/s | ack P50 / P99 | commit P50 / P99 | CPU, nodes | PostgreSQL | nginx | Redis | load | \
             cores busy | with others | rows a COPY | WAL a row | journal a row |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            self.machine, self.ack_rate
        );
        for run in self.kinds().into_iter().filter_map(|(nodes, apart)| self.medians(nodes, apart)) {
            text += &(row(&run) + "\n");
        }
        if let Some(faults) = &self.faults {
            text += &faults_table(faults);
        }
        text
    }
}

/// Of the open loop: small enough for two cores that everybody shares to have room.
pub fn ack_rate() -> u64 {
    std::env::var("ACK_RATE").ok().and_then(|rate| rate.parse().ok()).unwrap_or(30_000)
}

/// How tables call it.
pub fn name(nodes: usize, apart: Option<[usize; 2]>) -> String {
    match apart {
        None => nodes.to_string(),
        Some([database, others]) => format!("{nodes}, PostgreSQL apart ({database} core, all others {others})"),
    }
}

/// A run, as a row of the table.
pub fn row(run: &Run) -> String {
    format!(
        "| {} | {:.0} | {:.1} / {:.1} ms | {:.0} / {:.0} ms | {:.2} µs | {:.2} µs | {:.2} µs | {:.3} µs | {:.2} µs | \
         {:.0} % | {} | {:.0} | {:.0} B | {:.0} B |",
        name(run.nodes, run.apart),
        run.events_per_second,
        run.ack_ms[0],
        run.ack_ms[1],
        run.commit_ms[0],
        run.commit_ms[1],
        run.node_micros,
        run.database_micros,
        run.balancer_micros,
        run.redis_micros,
        run.load_micros,
        run.busy_share * 100.0,
        others(run),
        run.copy_rows,
        run.wal_bytes,
        run.journal_bytes,
    )
}

fn others(run: &Run) -> String {
    let [database, beside] = run.others_shares.map(|share| share * 100.0);
    if run.apart.is_none() { format!("{database:.0} %") } else { format!("{database:.0} %, {beside:.0} %") }
}

fn faults_table(faults: &Faults) -> String {
    let mut text =
        "\n| at | change | acknowledged meanwhile | sent again | slowest |\n|---|---|---|---|---|\n".to_owned();
    for Step { at_seconds, what, events_per_second, retries, longest_ms } in &faults.steps {
        text +=
            &format!("| {at_seconds:.1} s | {what} | {events_per_second:.0}/s | {retries} | {longest_ms:.0} ms |\n");
    }
    let Faults { acked, rows, retries, lost, doubled, unasked, dead_letters, left_in_journals, statuses_wrong, .. } =
        faults;
    text + &format!(
        "\nacked={acked} rows={rows} retries={retries} lost={lost} doubled={doubled} unasked={unasked} \
         dead_letters={dead_letters} left_in_journals={left_in_journals} statuses_wrong={statuses_wrong}\n"
    )
}

impl Faults {
    /// Every promise was kept.
    pub fn kept(&self) -> bool {
        let wrong =
            [self.lost, self.doubled, self.unasked, self.dead_letters, self.left_in_journals, self.statuses_wrong];
        self.acked > 0 && self.rows == self.acked && wrong == [0; 6]
    }
}
