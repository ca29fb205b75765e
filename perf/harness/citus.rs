//! `perf/citus.sh`: what it costs to have the tables spread over a Citus cluster (`SHARDING=citus`).
//!
//! A round: for each size of request ingestd (`ack=journal`) writes to plain tables in a database of the coordinator, then to
//! distributed ones on the workers. Each is fed by wrk for `SECONDS_EACH` and measured until everything is committed, with the
//! tables emptied and a checkpoint on every node before. A first round does not count: whoever is new pays for WAL files that
//! others recycle. Ratios are to the plain tables of the same round and size.
//!
//! `INGESTD_TEST_CITUS_URL` names the coordinator, by a superuser. All nodes run on this machine, since their CPU is read
//! here; so this shows what a row costs, not how a cluster scales.

use std::path::Path;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use serde_json::Value;

use crate::cluster_database::{URL_VARIABLE, create, nodes, of_database};
use crate::compare::SAMPLE_INTERVAL;
use crate::database::Tables;
use crate::report::median;
use crate::subject::{Ingestd, Running, Subject};
use crate::{Failure, Plan, load, process};

/// Events of a request: the usual ones, and the most that a server takes unless told otherwise.
const EVENTS: [u64; 2] = [1000, 10_000];

/// Measures all of it and writes it down.
pub fn run(plan: &Plan, work: &Path) -> Result<(), Failure> {
    let coordinator = std::env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty()).ok_or_else(|| {
        format!(
            "{URL_VARIABLE} is not set: it names the coordinator of a Citus cluster on this machine, by a superuser, as in \
             postgresql://postgres@127.0.0.1:5432/postgres"
        )
    })?;
    let mut cluster = Cluster::of(nodes(&coordinator))?;
    let machine = cluster.machine()?;
    let mut subjects = subjects(&cluster);
    for round in 0..=plan.rounds {
        for subject in &mut subjects {
            let cost = measure(subject, &mut cluster, plan, work)?;
            eprintln!("round {round}: | {} {}", subject.name(), cost.cells());
            if round > 0 {
                subject.runs.push(cost);
            }
        }
    }
    let text = table(&machine, plan, &subjects);
    std::fs::write(plan.folder.join("citus.md"), &text)?;
    println!("{text}");
    Ok(())
}

/// The nodes of the cluster, and two databases in it that go with the value.
struct Cluster {
    /// URLs, the coordinator's first.
    nodes: Vec<String>,
    /// Of each node.
    postmasters: Vec<u32>,
    plain: String,
    distributed: String,
}

impl Cluster {
    fn of(nodes: Vec<String>) -> Result<Self, Failure> {
        let postmasters = nodes.iter().map(|node| postmaster(node)).collect::<Result<_, _>>()?;
        let name = |kind: &str| format!("perf_{kind}_{}", std::process::id());
        let distributed = create(&nodes, &name("distributed"));
        let plain = of_database(&nodes[0], &name("plain"));
        Client::connect(&nodes[0], NoTls)?.batch_execute(&format!("CREATE DATABASE {}", name("plain")))?;
        Ok(Self { nodes, postmasters, plain, distributed })
    }

    fn machine(&self) -> Result<String, Failure> {
        let query = "SELECT current_setting('server_version') || ', Citus ' || extversion FROM pg_extension
                     WHERE extname = 'citus'";
        let version = Client::connect(&self.distributed, NoTls)?.query_one(query, &[])?.get(0);
        Ok(process::machine(version))
    }

    /// A connection to the database at `url`, with its tables empty and nothing of it left to any node's checkpoint.
    fn emptied(&mut self, url: &str) -> Result<Tables, Failure> {
        let mut tables = Tables::at(url.to_owned())?;
        tables.empty()?;
        self.nodes.iter().try_for_each(|node| Tables::at(node.clone())?.checkpoint())?;
        Ok(tables)
    }

    /// CPU seconds of the coordinator and of all workers.
    fn cpu_seconds(&self) -> [f64; 2] {
        let workers = self.postmasters[1..].iter().map(|pid| process::tree_cpu_seconds(*pid)).sum();
        [process::tree_cpu_seconds(self.postmasters[0]), workers]
    }

    /// WAL of all nodes.
    fn wal_bytes(&self) -> Result<u64, Failure> {
        self.nodes.iter().map(|node| Tables::at(node.clone())?.wal_bytes()).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let names = [&self.plain, &self.distributed].map(|url| url.rsplit_once('/').map_or("", |(_, name)| name));
        for node in &self.nodes {
            let Ok(mut client) = Client::connect(node, NoTls) else { continue };
            for name in names {
                if let Err(error) = client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")) {
                    eprintln!("the database {name} is left on {node}: {error}");
                }
            }
        }
    }
}

/// The process of `node` that all of its others descend from.
fn postmaster(node: &str) -> Result<u32, Failure> {
    let query = r"SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int";
    let pid = Client::connect(node, NoTls)?.query_one(query, &[])?.get::<_, i32>(0).unsigned_abs();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() != "postgres" {
        return Err(format!("process {pid} of {node} is not on this machine: its CPU cannot be measured").into());
    }
    Ok(pid)
}

/// One of those that are measured.
struct Layout {
    tables: &'static str,
    sharding: &'static str,
    url: String,
    events: u64,
    runs: Vec<Cost>,
}

impl Layout {
    fn name(&self) -> String {
        format!("{}, {} events", self.tables, self.events)
    }
}

/// In the order of a round: plain tables right before what is held against them.
fn subjects(cluster: &Cluster) -> Vec<Layout> {
    let pair = |events: u64| {
        let layout =
            |tables, sharding, url: &str| Layout { tables, sharding, url: url.to_owned(), events, runs: Vec::new() };
        [layout("plain", "none", &cluster.plain), layout("distributed", "citus", &cluster.distributed)]
    };
    EVENTS.into_iter().flat_map(pair).collect()
}

/// What came of a run. CPU in µs a row.
struct Cost {
    rows_per_second: f64,
    server_micros: f64,
    coordinator_micros: f64,
    workers_micros: f64,
    /// Rows of a COPY on average.
    copy_rows: f64,
    /// P50 of a COPY's transaction, and of its COMMIT.
    copy_ms: f64,
    commit_ms: f64,
    /// P99 from accepted to committed.
    batch_ms: f64,
    wal_bytes: f64,
}

impl Cost {
    fn cells(&self) -> String {
        format!(
            "| {:.0} | {:.1} µs | {:.1} µs | {:.1} µs | {:.0} | {:.0} ms | {:.1} ms | {:.0} ms | {:.0} B |",
            self.rows_per_second,
            self.server_micros,
            self.coordinator_micros,
            self.workers_micros,
            self.copy_rows,
            self.copy_ms,
            self.commit_ms,
            self.batch_ms,
            self.wal_bytes
        )
    }

    fn medians(runs: &[Self]) -> Self {
        let of = |get: fn(&Self) -> f64| median(runs.iter().map(get).collect()).unwrap_or(f64::NAN);
        Self {
            rows_per_second: of(|cost| cost.rows_per_second),
            server_micros: of(|cost| cost.server_micros),
            coordinator_micros: of(|cost| cost.coordinator_micros),
            workers_micros: of(|cost| cost.workers_micros),
            copy_rows: of(|cost| cost.copy_rows),
            copy_ms: of(|cost| cost.copy_ms),
            commit_ms: of(|cost| cost.commit_ms),
            batch_ms: of(|cost| cost.batch_ms),
            wal_bytes: of(|cost| cost.wal_bytes),
        }
    }
}

/// Loads ingestd on the tables of `layout` and waits until what it accepted is in them.
fn measure(layout: &Layout, cluster: &mut Cluster, plan: &Plan, work: &Path) -> Result<Cost, Failure> {
    let mut tables = cluster.emptied(&layout.url)?;
    let ingestd = Ingestd::new(&plan.ingestd, work, "journal").with("SHARDING", layout.sharding);
    let running = ingestd.start(&layout.url)?;
    let options = load::Options { events: layout.events, ..plan.load };
    let cpu = || (process::tree_cpu_seconds(running.pid()), cluster.cpu_seconds());
    let (begun, wal_before, (server_before, [coordinator_before, workers_before])) =
        (Instant::now(), cluster.wal_bytes()?, cpu());
    let load = load::start(running.url(), &ingestd.query(), "mixed", &options)?;
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        // As often as compare.rs asks: being asked is part of the server's CPU.
        std::thread::sleep(SAMPLE_INTERVAL);
        running.counts()?;
    }
    let answers = load.finish()?;
    running.drain(|_| ())?;
    let (seconds, (server, [coordinator, workers])) = (begun.elapsed().as_secs_f64(), cpu());
    // Before rows are counted: that sets hint bits, and with data checksums whole pages go to the WAL for them.
    let wal_bytes = cluster.wal_bytes()? - wal_before;
    let (rows, accepted) = (tables.rows()?, running.counts()?.accepted);
    if rows != accepted || rows < answers.events {
        return Err(
            format!("{}: {accepted} accepted, {} acknowledged, {rows} rows", layout.name(), answers.events).into()
        );
    }
    let [copies, copy_ms, commit_ms, batch_ms] = latencies(&running)?;
    running.stop()?;
    let micros = |before: f64, after: f64| (after - before) * 1e6 / rows as f64;
    Ok(Cost {
        rows_per_second: rows as f64 / seconds,
        server_micros: micros(server_before, server),
        coordinator_micros: micros(coordinator_before, coordinator),
        workers_micros: micros(workers_before, workers),
        copy_rows: rows as f64 / copies,
        copy_ms,
        commit_ms,
        batch_ms,
        wal_bytes: wal_bytes as f64 / rows as f64,
    })
}

/// How many COPYs there were, their P50, that of COMMIT, and P99 of batches.
fn latencies(running: &Running) -> Result<[f64; 4], Failure> {
    let metrics = running.metrics()?;
    let latency = &metrics["latency_ms"];
    let number = |of: &Value| of.as_f64().ok_or_else(|| format!("no latencies in {metrics}"));
    let [copy, commit, batch] = ["copy", "commit", "batch"].map(|name| &latency[name]);
    Ok([number(&copy["count"])?, number(&copy["p50"])?, number(&commit["p50"])?, number(&batch["p99"])?])
}

fn table(machine: &str, plan: &Plan, subjects: &[Layout]) -> String {
    let mut text = format!(
        "{machine}\n{} connections, events of about 400 bytes, {} s, medians of {}\n\n\
         Coordinator, workers, server and load share these cores: this shows what a row costs, not how a cluster scales.\n\
         \"Of plain\" is beside plain tables of the coordinator in the same round. A COPY's time includes its ledger rows and its \
         COMMIT. WAL is that of all nodes.\n\n\
         | tables, a request | of plain | rows/s | CPU, server | CPU, coordinator | CPU, workers | rows a COPY | COPY P50 | \
         COMMIT P50 | batch P99 | WAL a row |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        plan.load.connections, plan.load.seconds, plan.rounds
    );
    for pair in subjects.chunks(2) {
        for layout in pair {
            // Round by round, since the machine's speed drifts.
            let ratios =
                layout.runs.iter().zip(&pair[0].runs).map(|(run, plain)| run.rows_per_second / plain.rows_per_second);
            let ratio = median(ratios.collect()).unwrap_or(f64::NAN);
            text += &format!("| {} | {ratio:.2} {}\n", layout.name(), Cost::medians(&layout.runs).cells());
        }
    }
    text
}
