//! Some nodes under load: what they commit, and what an event costs everybody.
//!
//! Two loads, one after the other. wrk with `ack=commit` is a closed loop: no more is sent than PostgreSQL commits, nothing is
//! refused, so what it takes is what the machine can do and all that it costs. `ingestd load` with `ack=journal` is an open
//! loop at a rate that leaves room: what it sees is how long an acknowledgement takes.
//!
//! On one machine everybody shares the cores, so more nodes cannot be faster. One more run keeps PostgreSQL apart from all
//! others, as a deployment does: then what one of the two can do is what comes out.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::apart::Apart;
use super::nodes::{Nginx, Node, Redis, Setting};
use super::report::{Run, ack_rate};
use crate::database::{Database, Tables};
use crate::process::CoreSeconds;
use crate::{Failure, Plan, load, process};

/// Runs `count` nodes through both loads; `apart` with PostgreSQL on cores of its own. `None` where the machine has no two.
pub fn run(
    plan: &Plan,
    work: &Path,
    database: &mut Database,
    redis: &Redis,
    count: usize,
    apart: bool,
) -> Result<Option<Run>, Failure> {
    let mut tables = database.tables_of("ingestd")?;
    tables.empty()?;
    redis.empty()?;
    let confined = if apart { Apart::set(database.pid())? } else { None };
    if apart && confined.is_none() {
        return Ok(None);
    }
    let (database_url, redis_url) = (tables.url().to_owned(), redis.url());
    let setting = Setting { ingestd: &plan.ingestd, work, database_url, redis_url };
    let mut nodes = (0..count).map(|number| Node::start(&setting, number)).collect::<Result<Vec<_>, _>>()?;
    nodes.iter_mut().try_for_each(Node::wait_until_ready)?;
    let nginx = Nginx::start(work, &nodes)?;
    let pids = Pids {
        nodes: nodes.iter().map(Node::pid).collect(),
        database: database.pid(),
        nginx: nginx.pid(),
        redis: redis.pid(),
    };
    let mut run = closed_loop(plan, &mut tables, redis, &nodes, &nginx, &pids, confined.as_ref())?;
    run.ack_ms = ack_latency(plan, work, &nginx)?;
    nodes.iter().try_for_each(Node::wait_until_committed)?;
    nodes.iter_mut().try_for_each(Node::stop)?;
    nginx.stop()?;
    Ok(Some(run))
}

/// All but what the open loop sees.
fn closed_loop(
    plan: &Plan,
    tables: &mut Tables,
    redis: &Redis,
    nodes: &[Node],
    nginx: &Nginx,
    pids: &Pids,
    apart: Option<&Apart>,
) -> Result<Run, Failure> {
    let (begun, before, wal_before) = (Instant::now(), pids.used(), tables.wal_bytes()?);
    let (commands_before, bytes_before) = redis.commands_and_bytes()?;
    let answers = load::start(&nginx.url(), "ack=commit", "0", &plan.load)?.finish()?;
    let seconds = begun.elapsed().as_secs_f64();
    // At once: what is done beside the load is not the load's.
    let after = pids.used();
    nodes.iter().try_for_each(Node::wait_until_committed)?;
    let (commands, bytes) = redis.commands_and_bytes()?;
    let wal_bytes = tables.wal_bytes()? - wal_before;
    let (fsyncs, copies) = journal_syncs_and_copies(nodes)?;
    let (rows, stored) = (tables.rows()?, tables.stored_bytes()?);
    // wrk leaves what is under way when its time is over: more may be there than it saw acknowledged, never less.
    if rows < answers.events || answers.refused > 0 {
        return Err(format!("{} acknowledged, {} refused, {rows} rows", answers.events, answers.refused).into());
    }
    let events = rows as f64;
    let batches = events / plan.load.events as f64;
    let micros = |used: fn(&Used) -> f64| (used(&after) - used(&before)) * 1e6 / events;
    let [commit_p50, _, commit_p99] = answers.quantiles_ms();
    Ok(Run {
        nodes: nodes.len(),
        apart: apart.map(|apart| [apart.database_cores.len(), apart.other_cores.len()]),
        events_per_second: events / seconds,
        ack_ms: [f64::NAN; 2],
        commit_ms: [commit_p50, commit_p99],
        node_micros: micros(|used| used.nodes),
        database_micros: micros(|used| used.database),
        balancer_micros: micros(|used| used.nginx),
        redis_micros: micros(|used| used.redis),
        load_micros: micros(|used| used.load),
        busy_share: after.busy_share_since(&before, |_| true),
        others_shares: others_shares(&before, &after, apart),
        wal_bytes: wal_bytes as f64 / events,
        journal_bytes: micros(|used| used.journal_megabytes),
        stored_bytes: stored as f64 / events,
        request_bytes: nginx.request_bytes() as f64 / events,
        fsyncs_per_second: fsyncs as f64 / seconds / nodes.len() as f64,
        copy_rows: events / copies as f64,
        redis_commands_per_batch: (commands - commands_before) as f64 / batches,
        redis_bytes_per_batch: bytes.saturating_sub(bytes_before) as f64 / batches,
    })
}

struct Pids {
    nodes: Vec<u32>,
    database: u32,
    nginx: u32,
    redis: u32,
}

/// Seconds of CPU so far, of those that were measured and of the machine's cores.
struct Used {
    nodes: f64,
    database: f64,
    nginx: f64,
    redis: f64,
    /// Children that have ended, of which the load is the only one meanwhile.
    load: f64,
    cores: Vec<CoreSeconds>,
    /// Not CPU: what the nodes had written to disk, which is the journal.
    journal_megabytes: f64,
}

impl Used {
    /// Everything that was measured, but PostgreSQL.
    fn beside_database(&self) -> f64 {
        self.nodes + self.nginx + self.redis + self.load
    }

    /// Of the cores in `of`.
    fn busy_share_since(&self, before: &Self, of: impl Fn(usize) -> bool) -> f64 {
        let sum = |used: &Self, get: fn(&CoreSeconds) -> f64| {
            used.cores.iter().enumerate().filter(|(core, _)| of(*core)).map(|(_, seconds)| get(seconds)).sum::<f64>()
        };
        let since = |get: fn(&CoreSeconds) -> f64| sum(self, get) - sum(before, get);
        since(|core| core.busy) / since(|core| core.total)
    }
}

/// Of PostgreSQL's cores, and of all others', what was not used by what was measured; the same for both where they share.
fn others_shares(before: &Used, after: &Used, apart: Option<&Apart>) -> [f64; 2] {
    let total: f64 = after.cores.iter().zip(&before.cores).map(|(after, before)| after.total - before.total).sum();
    let core_seconds = total / after.cores.len() as f64;
    let database = after.database - before.database;
    let beside = after.beside_database() - before.beside_database();
    let share = |cores: &[usize], ours: f64| {
        let busy = after.busy_share_since(before, |core| cores.contains(&core));
        (busy - ours / core_seconds / cores.len() as f64).max(0.0)
    };
    match apart {
        None => [share(&(0..after.cores.len()).collect::<Vec<usize>>(), database + beside); 2],
        Some(apart) => [share(&apart.database_cores, database), share(&apart.other_cores, beside)],
    }
}

impl Pids {
    fn used(&self) -> Used {
        Used {
            nodes: self.nodes.iter().copied().map(process::tree_cpu_seconds).sum(),
            database: process::tree_cpu_seconds(self.database),
            nginx: process::tree_cpu_seconds(self.nginx),
            redis: process::tree_cpu_seconds(self.redis),
            load: process::ended_children_cpu_seconds(),
            cores: process::core_seconds(),
            journal_megabytes: self.nodes.iter().copied().map(process::written_bytes).sum::<u64>() as f64 / 1e6,
        }
    }
}

fn journal_syncs_and_copies(nodes: &[Node]) -> Result<(u64, u64), Failure> {
    let mut sums = (0, 0);
    for node in nodes {
        let metrics = node.metrics()?;
        let count = |value: &Value| value.as_u64().ok_or_else(|| format!("no count in {metrics}"));
        sums.0 += count(&metrics["journal"]["fsyncs"])?;
        sums.1 += count(&metrics["latency_ms"]["copy"]["count"])?;
    }
    Ok(sums)
}

/// P50 and P99 of acknowledgements from the journal.
fn ack_latency(plan: &Plan, work: &Path, nginx: &Nginx) -> Result<[f64; 2], Failure> {
    let report = work.join("load.json");
    let rate = ack_rate().to_string();
    let status = Command::new(&plan.ingestd)
        .args(["load", "--url", &nginx.url(), "--ack", "journal", "--rate", &rate, "--batch", "1000"])
        .args(["--event-bytes", "400", "--check", "none", "--duration", "6s", "--json"])
        .arg(&report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("ingestd load at {rate} events/s: {status}").into());
    }
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    Ok(["p50", "p99"].map(|name| report["latency_ms"]["all"][name].as_f64().unwrap_or(f64::NAN)))
}
