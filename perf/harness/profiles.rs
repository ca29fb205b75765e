//! `perf/postgres.sh`: what settings of PostgreSQL do for rows a second.
//!
//! A round: for each set of settings PostgreSQL is started anew on the same data, and ingestd (`ack=journal`) is fed for
//! `SECONDS_EACH` and measured until everything is committed. Ratios are to the small profile of the same round. The
//! machine's caches are warm for all of them; a disk that is slower than memory makes larger differences than these.

use std::path::Path;

use crate::compare::measure;
use crate::database::Database;
use crate::report::{Figures, median};
use crate::subject::Ingestd;
use crate::{Failure, Plan, process};

type Settings = Vec<(String, String)>;

/// A set of settings and what came of it, a run a round.
struct Profile {
    name: String,
    settings: Settings,
    runs: Vec<Figures>,
}

/// What is tried beside the small profile, each by itself. What is shipped is in both profiles' files.
const SINGLE: &[(&str, &str)] = &[
    ("shared_buffers", "128MB"),
    ("shared_buffers", "2GB"),
    ("wal_buffers", "64MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_completion_target", "0.5"),
    ("wal_compression", "pglz"),
];

/// Measures all of it and writes it down.
pub fn run(plan: &Plan, work: &Path) -> Result<(), Failure> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = |name: &str| read(&checkout.join("deploy/postgresql").join(name));
    let small = shipped("small.conf")?;
    let mut profiles = vec![profile("small", small.clone()), profile("large", shipped("large.conf")?)];
    profiles.push(profile("PostgreSQL's defaults", defaults()));
    for (name, value) in SINGLE {
        let mut settings = small.clone();
        settings.push(((*name).to_owned(), (*value).to_owned()));
        profiles.push(profile(&format!("small, {name} = {value}"), settings));
    }
    let warm = Database::start_warm(plan, work)?;
    let machine = process::machine(warm.version());
    warm.stop()?;
    for round in 1..=plan.rounds {
        for profile in &mut profiles {
            let mut database = Database::start_with(work, &profile.settings)?;
            let run = measure(&Ingestd::new(&plan.ingestd, work, "journal"), &mut database, plan)?;
            database.stop()?;
            eprintln!("round {round}: {}: {run}", profile.name);
            profile.runs.push(run.figures);
        }
    }
    let text = table(&machine, plan, &profiles);
    std::fs::write(plan.folder.join("profiles.md"), &text)?;
    println!("{text}");
    Ok(())
}

fn profile(name: &str, settings: Settings) -> Profile {
    Profile { name: name.to_owned(), settings, runs: Vec::new() }
}

/// The settings in a PostgreSQL configuration file.
fn read(file: &Path) -> Result<Settings, Failure> {
    let text = std::fs::read_to_string(file)?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let shipped = lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (trimmed(name), trimmed(value)));
    // What neither file says is as PostgreSQL has it, not as the built-in one does; the last one wins.
    Ok(defaults().into_iter().chain(shipped).collect())
}

fn trimmed(text: &str) -> String {
    text.trim().to_owned()
}

/// Those of PostgreSQL 18 where the built-in one has others.
fn defaults() -> Settings {
    let settings = [
        ("shared_buffers", "128MB"),
        ("effective_cache_size", "4GB"),
        ("maintenance_work_mem", "64MB"),
        ("work_mem", "4MB"),
        ("wal_buffers", "-1"),
        ("random_page_cost", "4"),
        ("effective_io_concurrency", "16"),
        ("max_wal_size", "1GB"),
    ];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

fn table(machine: &str, plan: &Plan, profiles: &[Profile]) -> String {
    let of = |profile: &Profile, figure: fn(&Figures) -> Option<f64>| {
        median(profile.runs.iter().filter_map(figure).collect()).unwrap_or(0.0)
    };
    let base = &profiles[0];
    let mut text = format!(
        "{machine}\n{} connections, {} events of about 400 bytes a request, {} s, medians of {}\n\n\
         | settings | rows/s | of small | CPU, PostgreSQL | WAL a row | batch P99 |\n|---|---|---|---|---|---|\n",
        plan.load.connections, plan.load.events, plan.load.seconds, plan.rounds
    );
    for profile in profiles {
        // Round by round, since the machine's speed drifts.
        let pairs = profile.runs.iter().zip(&base.runs);
        let ratios = pairs.filter_map(|(run, base)| Some(run.rows_per_second? / base.rows_per_second?));
        text += &format!(
            "| {} | {:.0} | {:.2} | {:.1} us | {:.0} B | {:.0} ms |\n",
            profile.name,
            of(profile, |figures| figures.rows_per_second),
            median(ratios.collect()).unwrap_or(0.0),
            of(profile, |figures| figures.postgres_cpu_micros),
            of(profile, |figures| figures.wal_bytes_per_row),
            of(profile, |figures| figures.batch_ms.map(|[_, _, p99]| p99)),
        );
    }
    text
}
