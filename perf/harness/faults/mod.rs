//! `perf/faults.sh`: one fault stays alone, and nobody else waits.
//!
//! ```text
//!  catalogue   the faults, as data ─▶ means  how each begins and ends
//!  scene       a database and servers for one fault, all defaults but JOURNAL_MAX_MB
//!  streams     healthy, urgent, and the batches that hit the fault ─▶ verdict  figures, limits, the table
//!  count       what is in the tables in the end, against what was acknowledged
//! ```
//!
//! For each fault: its database, then a control run of `FAULT_SECONDS` with the healthy and the urgent stream; then, with
//! the server started anew, the same with the fault and the batches that hit it; then the fault is taken away, everything
//! acknowledged must be settled within [`SETTLE_WAIT_MAX`], and is counted. The queue and the journal are read while it
//! lasts, less what the fault's own batches hold. Latencies are those of clients, from when a batch was due.

mod catalogue;
mod count;
mod means;
mod scene;
mod streams;
mod verdict;

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use self::catalogue::{Batches, Fault};
use self::count::Lands;
use self::scene::Scene;
use self::streams::{Ended, Sent, Spec, Stream};
use self::verdict::{Faulty, Figures, Latency, Row};
use crate::database::Database;
use crate::subject::Running;
use crate::{Failure, Plan, process};

/// What comes before a run and does not count: connections are made, COPYs find their size.
const SETTLE: Duration = Duration::from_secs(2);
/// How often queue and journal are read.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// How long everything acknowledged may take to be settled once the fault is gone.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const FAULTY: &str = "faulty";

/// Runs the faults that `FAULTS` names, or all, and prints the table.
pub fn run(plan: &Plan, work: &Path) -> Result<(), Failure> {
    let seconds = match std::env::var("FAULT_SECONDS") {
        Ok(text) if !text.is_empty() => text.parse().map_err(|error| format!("FAULT_SECONDS: {error}"))?,
        _ => 60,
    };
    let faults = chosen(&std::env::var("FAULTS").unwrap_or_default())?;
    let mut database = Database::start(work)?;
    let (machine, mut rows, mut skipped) = (process::machine(database.version()), Vec::new(), Vec::new());
    for fault in &faults {
        eprintln!("{}: {}", fault.name, fault.what);
        let mut scene = match Scene::new(&plan.ingestd, work, &mut database, fault) {
            Ok(scene) => scene,
            Err(reason) => {
                eprintln!("  not run: {reason}");
                skipped.push((fault.name, reason.to_string()));
                continue;
            }
        };
        let row = bench(&mut scene, fault, Duration::from_secs(seconds)).unwrap_or_else(|error| broken(fault, &error));
        scene.end(&database)?;
        match row.misses() {
            misses if misses.is_empty() => eprintln!("  passes"),
            misses => {
                eprintln!("  {}", misses.join("; "));
                std::fs::copy(work.join("node-0/ingestd.log"), plan.folder.join(format!("faults-{}.log", fault.name)))?;
            }
        }
        rows.push(row);
        // After each: a run of an hour that is interrupted has what it has measured.
        std::fs::write(plan.folder.join("faults.json"), serde_json::to_string_pretty(&rows)? + "\n")?;
        std::fs::write(plan.folder.join("faults.md"), verdict::table(&machine, seconds, &rows, &skipped))?;
    }
    print!("{}", verdict::table(&machine, seconds, &rows, &skipped));
    Ok(())
}

/// The faults that `names` has, separated by commas; all when it is empty.
fn chosen(names: &str) -> Result<Vec<Fault>, Failure> {
    let mut all = catalogue::all();
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|fault| fault.name != **name)) {
        let known: Vec<&str> = all.iter().map(|fault| fault.name).collect();
        return Err(format!("FAULTS: there is no {unknown}; there are {}", known.join(", ")).into());
    }
    all.retain(|fault| names.is_empty() || names.contains(&fault.name));
    Ok(all)
}

/// The row of a bench that came to no end: a server that has gone, for example.
fn broken(fault: &Fault, error: &Failure) -> Row {
    let (fault, what, is_judged, faults) = (fault.name, fault.what, fault.is_judged, vec![error.to_string()]);
    let (control, with, faulty, health) = (Figures::default(), Figures::default(), Faulty::default(), String::new());
    Row { fault, what, is_judged, control, with, faulty, health, faults }
}

/// What one run saw.
struct Seen {
    figures: Figures,
    healthy: Vec<Sent>,
    urgent: Vec<Sent>,
    faulty: Vec<Sent>,
    /// Batches of the fault that were settled while it was there.
    landed_meanwhile: u64,
    strikes: Option<u64>,
    /// When its first one was sent.
    faulty_since: Instant,
    health: String,
    /// What no client should see.
    faults: Vec<String>,
}

fn bench(scene: &mut Scene, fault: &Fault, lasts: Duration) -> Result<Row, Failure> {
    let servers = scene.start()?;
    let control = stretch(scene, &servers, None, lasts)?;
    settle(&servers)?.map_or(Ok(()), |left| Err(format!("without the fault {left} batches are left")))?;
    servers.into_iter().try_for_each(Running::stop)?;
    scene.execute(&fault.before)?;
    scene.client().batch_execute("CHECKPOINT")?;
    let servers = scene.start()?;
    let with = stretch(scene, &servers, Some(fault), lasts)?;
    let mut faults = [control.faults, with.faults].concat();
    let left = settle(&servers)?;
    faults.extend(left.map(|left| format!("{left} batches are left {SETTLE_WAIT_MAX:?} after the fault has gone")));
    if with.strikes == Some(0) {
        faults.push("the fault never struck".to_owned());
    }
    let mut found = count::found(scene.client())?;
    for sent in [&control.healthy, &control.urgent, &with.healthy, &with.urgent] {
        faults.extend(count::faults(sent, Lands::All, &mut found));
    }
    if let Some(Batches { lands, .. }) = fault.batches {
        faults.extend(count::faults(&with.faulty, lands, &mut found));
    }
    // What a conflict leaves in the ledger is of the batch that was named above.
    found.retain(|id, _| !id.contains('#'));
    faults.extend(count::strangers(&found));
    let longest = "SELECT coalesce(max(extract(epoch FROM committed_at - received_at)), 0)::float8 * 1000
                   FROM ingest_batches WHERE owner = '' AND batch_id >= 'faulty-' AND batch_id < 'faulty.'";
    let mut longest_ms: f64 = scene.client().query_one(longest, &[])?.get(0);
    if landed(scene)? < with.faulty.len() as u64 {
        // Of those that still wait.
        longest_ms = longest_ms.max(with.faulty_since.elapsed().as_secs_f64() * 1e3);
    }
    servers.into_iter().try_for_each(Running::stop)?;
    let batches = with.faulty.len() as u64;
    let faulty = Faulty { batches, landed_meanwhile: with.landed_meanwhile, longest_ms, strikes: with.strikes };
    let (control, with, health) = (control.figures, with.figures, with.health);
    let (fault, what, is_judged) = (fault.name, fault.what, fault.is_judged);
    Ok(Row { fault, what, is_judged, control, with, faulty, health, faults })
}

/// The streams for [`SETTLE`], then for `lasts` with `fault`, or without one.
fn stretch(scene: &mut Scene, servers: &[Running], fault: Option<&Fault>, lasts: Duration) -> Result<Seen, Failure> {
    let run = if fault.is_some() { "with" } else { "control" };
    let urls: Vec<String> = servers.iter().map(|server| server.url().to_owned()).collect();
    let spec = |name: &str, priority, events, every| Spec {
        name: format!("{name}-{run}"),
        priority,
        events,
        every: Duration::from_millis(every),
        batches_max: u64::MAX,
        ack: "commit",
        timestamp: None,
    };
    let healthy = Stream::start(&urls[..1], spec("healthy", 0, 100, 20));
    let urgent = Stream::start(&urls[..1], spec("urgent", 9, 10, 50));
    sleep(SETTLE);
    let active = fault.map(|fault| fault.means.begin(scene)).transpose()?;
    let faulty_since = Instant::now();
    let faulty = fault.and_then(|fault| fault.batches).map(|batches| {
        let timestamp = batches.is_old.then(|| scene.old_timestamp());
        let Batches { events, every, batches_max, .. } = batches;
        let spec = Spec { name: FAULTY.to_owned(), priority: 0, events, every, batches_max, ack: "journal", timestamp };
        Stream::start(&urls, spec)
    });
    let samples = sample(scene, &servers[0], faulty.as_ref(), lasts)?;
    let landed_meanwhile = landed(scene)?;
    let health = scene::health(&urls[0]);
    [Some(&healthy), Some(&urgent), faulty.as_ref()].into_iter().flatten().for_each(Stream::cease);
    let refused = healthy.refused() + urgent.refused();
    let refuses = fault.and_then(|fault| fault.batches).is_some_and(|batches| batches.lands.is_refused());
    let (now, later) = if refuses { (faulty, None) } else { (None, faulty) };
    let now = now.map(Stream::finish).transpose()?;
    if let Some(ended) = &now {
        // A batch that comes once the fault has gone is not refused.
        within_settle_wait(|| Ok(landed(scene)? >= ended.sent.len() as u64))?;
    }
    let strikes = active.map_or(Ok(None), |active| active.end(scene))?;
    let faulty = now.map_or_else(|| later.map_or(Ok(Ended::default()), Stream::finish), Ok)?;
    let (healthy, urgent, mut faults) = (healthy.finish()?, urgent.finish()?, Vec::new());
    let mut take = |ended: Ended| {
        faults.extend(ended.fault);
        ended.sent
    };
    let (healthy, urgent, faulty) = (take(healthy), take(urgent), take(faulty));
    let latency = |sent: &[Sent]| Latency::of(sent.iter().filter(|batch| batch.due >= SETTLE).map(|batch| batch.took));
    let figures = Figures {
        healthy: latency(&healthy),
        urgent: latency(&urgent),
        queue_batches: samples.queue_batches,
        journal_mib: samples.journal_bytes / f64::from(1 << 20),
        refused,
    };
    Ok(Seen { figures, healthy, urgent, faulty, landed_meanwhile, strikes, faulty_since, health, faults })
}

/// What the server holds for batches that are not the fault's.
struct Samples {
    queue_batches: f64,
    journal_bytes: f64,
}

/// Reads queue and journal for `lasts`, and takes off what the fault's own batches hold: as many as were acknowledged and
/// are not in the ledger.
fn sample(scene: &mut Scene, server: &Running, faulty: Option<&Stream>, lasts: Duration) -> Result<Samples, Failure> {
    let (begun, mut queue, mut journal_bytes) = (Instant::now(), Vec::new(), Vec::new());
    while begun.elapsed() < lasts {
        sleep(SAMPLE_EVERY.min(lasts.saturating_sub(begun.elapsed())));
        let acked = faulty.map_or(0, Stream::acked);
        let metrics = server.metrics()?;
        let waiting = acked.saturating_sub(landed(scene)?);
        let figure = |of: &serde_json::Value| of.as_u64().ok_or_else(|| format!("no figure in {metrics}"));
        queue.push(figure(&metrics["queue"]["batches"])?.saturating_sub(waiting) as f64);
        let held = waiting * faulty.map_or(0, Stream::batch_bytes);
        journal_bytes.push(figure(&metrics["journal"]["bytes"])?.saturating_sub(held) as f64);
    }
    let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len().max(1) as f64;
    Ok(Samples { queue_batches: mean(&queue), journal_bytes: mean(&journal_bytes) })
}

/// Batches of the fault that are settled.
fn landed(scene: &mut Scene) -> Result<u64, Failure> {
    let query = "SELECT count(*) FROM ingest_batches
                 WHERE owner = '' AND batch_id >= 'faulty-' AND batch_id < 'faulty.' AND strpos(batch_id, '#') = 0";
    Ok(scene.client().query_one(query, &[])?.get::<_, i64>(0).unsigned_abs())
}

/// Waits until no server has a batch in its queue; how many are left when that takes too long.
fn settle(servers: &[Running]) -> Result<Option<u64>, Failure> {
    let mut left = 0;
    let all_settled = within_settle_wait(|| {
        left = 0;
        for server in servers {
            left += server.metrics()?["queue"]["batches"].as_u64().ok_or("no queue in the metrics")?;
        }
        Ok(left == 0)
    })?;
    Ok((!all_settled).then_some(left))
}

/// Waits until `condition` holds; false when that takes too long.
fn within_settle_wait(mut condition: impl FnMut() -> Result<bool, Failure>) -> Result<bool, Failure> {
    let begun = Instant::now();
    while !condition()? {
        if begun.elapsed() > SETTLE_WAIT_MAX {
            return Ok(false);
        }
        sleep(POLL);
    }
    Ok(true)
}
