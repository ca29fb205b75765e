//! What the scripts of `perf/` run: a PostgreSQL, servers, loads, and what comes of them.
//!
//! ```text
//!  load (wrk, ingestd load) ─▶ subject (ingestd, baseline) ─▶ database      meanwhile: process (CPU, memory)
//!  compare   subjects beside raw_copy and disk, interleaved ─▶ report, plot ─▶ perf/runs/<date>-<host>/
//!  profiles  settings of PostgreSQL beside each other
//!  targets   one figure each, beside what it is held against in the same run
//!  cluster   one, two and three nodes behind nginx, then the same while nodes come and go
//!  faults    one fault after the other beside healthy streams, each against a control run without it
//!  citus     tables spread over a Citus cluster that runs already, beside plain ones on its coordinator
//!  scale     no run of its own: what a rate takes, computed from what cluster has measured
//! ```
//!
//! Settings come from the environment; [`Plan`] has them.

mod citus;
mod cluster;
#[path = "../../tests/support/cluster_database.rs"]
mod cluster_database;
mod compare;
mod database;
#[path = "../../tests/support/deployed.rs"]
mod deployed;
mod disk;
mod faults;
mod load;
mod plot;
mod process;
mod profiles;
mod raw_copy;
mod report;
mod scale;
mod subject;
mod targets;

use std::path::PathBuf;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What to measure.
struct Plan {
    rounds: u64,
    load: load::Options,
    /// Connections and rows a COPY of the raw limit.
    raw_connections: usize,
    raw_rows: usize,
    /// Rows of a first COPY that does not count: a new PostgreSQL has no WAL files to recycle, and writes each one twice.
    warm_rows: usize,
    /// The program to measure.
    ingestd: PathBuf,
    /// Folder of the baseline.
    baseline: Option<PathBuf>,
    /// Where results go.
    folder: PathBuf,
}

impl Plan {
    fn from_environment() -> Result<Self, Failure> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str, fallback: u64| -> Result<u64, Failure> {
            text(name).map_or(Ok(fallback), |value| value.parse().map_err(|error| format!("{name}: {error}").into()))
        };
        Ok(Self {
            rounds: number("ROUNDS", 3)?,
            load: load::Options {
                seconds: number("SECONDS_EACH", 8)?,
                connections: number("CONNECTIONS", 16)?,
                events: number("EVENTS", 1000)?,
            },
            raw_connections: number("RAW_CONNECTIONS", 2)? as usize,
            raw_rows: number("RAW_ROWS", 20_000)? as usize,
            warm_rows: number("WARM_ROWS", 4_000_000)? as usize,
            ingestd: text("INGESTD").ok_or("INGESTD names the program to measure")?.into(),
            baseline: text("BASELINE").map(PathBuf::from),
            folder: text("RUN_FOLDER").ok_or("RUN_FOLDER names the folder for results")?.into(),
        })
    }
}

fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some("scale") {
        let folder = std::env::args().nth(2).ok_or("usage: harness scale FOLDER")?;
        return scale::run(std::path::Path::new(&folder));
    }
    let plan = Plan::from_environment()?;
    std::fs::create_dir_all(&plan.folder)?;
    let work = tempfile::Builder::new().prefix("ingestd-perf-").tempdir()?;
    // PostgreSQL runs as another user when this runs as root.
    std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    match std::env::args().nth(1).as_deref() {
        Some("compare") => compare::run(&plan, work.path()),
        Some("targets") => targets::run(&plan, work.path()),
        Some("profiles") => profiles::run(&plan, work.path()),
        Some("cluster") => cluster::run(&plan, work.path()),
        Some("faults") => faults::run(&plan, work.path()),
        Some("citus") => citus::run(&plan, work.path()),
        _ => Err("usage: harness compare|targets|profiles|cluster|faults|citus, or harness scale FOLDER".into()),
    }
}
