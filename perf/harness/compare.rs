//! `perf/compare.sh`: the server beside the limit that PostgreSQL sets, and beside a baseline, interleaved.
//!
//! A round: ingestd with `ack=memory`, `ack=journal` and `ack=commit`, each fed by wrk for `SECONDS_EACH` and measured
//! until everything is committed; raw binary COPY of as many pre-encoded rows; the baseline, if there is one. All use one
//! PostgreSQL, with the tables emptied and a checkpoint before each. Figures are medians of `ROUNDS`.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::database::Database;
use crate::report::{Figures, Run, Runs};
use crate::subject::{Baseline, Counts, Ingestd, Subject};
use crate::{Failure, Plan, disk, load, process, raw_copy};

/// How often commits are counted while a subject works: rarely, for on two cores whoever asks takes from PostgreSQL.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Measures all of it and writes it down.
pub fn run(plan: &Plan, work: &Path) -> Result<(), Failure> {
    let mut database = Database::start_warm(plan, work)?;

    let mut runs = Runs::new(process::machine(database.version()), plan.load);
    for round in 1..=plan.rounds {
        let mut add = |run: Run| {
            eprintln!("round {round}: {run}");
            runs.add(run);
        };
        add(disk::measure(work, &plan.load, Duration::ZERO)?);
        add(measure(&Ingestd::new(&plan.ingestd, work, "memory"), &mut database, plan)?);
        let journal = measure(&Ingestd::new(&plan.ingestd, work, "journal"), &mut database, plan)?;
        let rows = journal.figures.rows as usize;
        add(journal);
        add(measure_raw_copy(&mut database, plan, rows)?);
        add(measure(&Ingestd::new(&plan.ingestd, work, "commit"), &mut database, plan)?);
        if let Some(folder) = &plan.baseline {
            add(measure(&Baseline::new(folder, work), &mut database, plan)?);
        }
    }
    database.stop()?;
    runs.write(&plan.folder)?;
    println!("{}", runs.table());
    eprintln!("written: {}", plan.folder.display());
    Ok(())
}

/// Loads `subject` and waits until what it accepted is in the table.
pub fn measure(subject: &dyn Subject, database: &mut Database, plan: &Plan) -> Result<Run, Failure> {
    let mut tables = database.tables_of(subject.database())?;
    tables.empty()?;
    let running = subject.start(tables.url())?;
    let cpu = || (process::tree_cpu_seconds(running.pid()), process::tree_cpu_seconds(database.pid()));
    let (begun, (server_before, postgres_before), wal_before) = (Instant::now(), cpu(), tables.wal_bytes()?);
    let load = load::start(running.url(), &subject.query(), "mixed", &plan.load)?;
    let mut samples = vec![(0.0, 0)];
    let mut add_sample = |counts: Counts| samples.push((begun.elapsed().as_secs_f64(), counts.committed));
    let mut during = running.counts()?;
    while begun.elapsed() < Duration::from_secs(plan.load.seconds) {
        std::thread::sleep(SAMPLE_INTERVAL);
        during = running.counts()?;
        add_sample(during);
    }
    let loaded = begun.elapsed().as_secs_f64();
    let answers = load.finish()?;
    running.drain(add_sample)?;
    let (seconds, (server_after, postgres_after)) = (begun.elapsed().as_secs_f64(), cpu());
    // Before rows are counted: that sets hint bits, and with data checksums whole pages go to the WAL for them.
    let wal_bytes = tables.wal_bytes()? - wal_before;
    let rows = tables.rows()?;
    let (accepted, batch_ms) = (running.counts()?.accepted, running.batch_ms()?);
    if rows != accepted || rows < answers.events {
        return Err(format!(
            "{}: {accepted} accepted, {} acknowledged, {rows} in the table",
            subject.name(),
            answers.events
        )
        .into());
    }
    let resident_mib = process::resident_mib_peak(running.pid());
    running.stop()?;
    let per_row = |seconds: f64| seconds * 1e6 / rows as f64;
    Ok(Run {
        subject: subject.name(),
        figures: Figures {
            rows,
            rows_per_second: Some(rows as f64 / seconds),
            rows_per_second_during_load: Some(during.committed as f64 / loaded),
            server_cpu_micros: Some(per_row(server_after - server_before)),
            postgres_cpu_micros: Some(per_row(postgres_after - postgres_before)),
            ack_ms: Some(answers.quantiles_ms()),
            batch_ms,
            resident_mib: Some(resident_mib),
            wal_bytes_per_row: Some(wal_bytes as f64 / rows as f64),
            ..Figures::default()
        },
        samples,
        percentiles_ms: answers.percentiles_ms,
    })
}

fn measure_raw_copy(database: &mut Database, plan: &Plan, rows: usize) -> Result<Run, Failure> {
    let mut tables = database.tables_of("ingestd")?;
    tables.empty()?;
    let (postgres_before, wal_before) = (process::tree_cpu_seconds(database.pid()), tables.wal_bytes()?);
    let (copied, samples) = raw_copy::run(tables.url(), plan.raw_connections, rows, plan.raw_rows)?;
    let postgres_cpu = process::tree_cpu_seconds(database.pid()) - postgres_before;
    let wal_bytes = tables.wal_bytes()? - wal_before;
    Ok(Run {
        subject: "raw COPY".to_owned(),
        figures: Figures {
            rows: copied.rows,
            rows_per_second: Some(copied.rows as f64 / copied.seconds),
            postgres_cpu_micros: Some(postgres_cpu * 1e6 / copied.rows as f64),
            wal_bytes_per_row: Some(wal_bytes as f64 / copied.rows as f64),
            ..Figures::default()
        },
        samples,
        percentiles_ms: Vec::new(),
    })
}
