//! Promise: a long outage of PostgreSQL fills the disk up to its cap and not the memory, nothing of what was refused is
//! taken, and while the backlog drains what is urgent is committed in time.

mod support;

use std::time::{Duration, Instant};

use support::announce;
use support::flood::{BATCH_EVENTS, Flood, FloodOptions, Pace};
use support::load::{seed, wait_until_committed};
use support::measure::{quantiles_ms, resident_bytes_peak};
use support::postgres::{AS_EMBEDDED, TestPostgres, connect};
use support::server::{Ingestd, get};
use support::urgent::Urgent;
use support::wait_until;

const MIB: u64 = 1024 * 1024;
const WAIT_MAX: Duration = Duration::from_secs(90);
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(600);
/// 20,000 a second for ten minutes.
const EVENTS: u64 = 12_000_000;
/// The default of `MEMORY_LIMIT_MB`, and what the server needs besides.
const RESIDENT_BYTES_MAX: u64 = (512 + 150) * MIB;
/// Makes events of about 400 bytes.
const FILLER_BYTES: usize = 240;
const URGENT_WAIT_MAX: Duration = Duration::from_secs(5);
/// A journal that is soon full, and how often clients are turned away before PostgreSQL comes back.
const SMALL_JOURNAL_MB: u64 = 256;
const REFUSALS: u64 = 1000;

fn options(batches: u64, seed: u64) -> FloodOptions {
    let pace = Pace::Closed { connections: 16 };
    FloodOptions { pace, batches, target: "/v1/ingest/batch", filler_bytes: FILLER_BYTES, seed }
}

/// Commits urgent batches until nothing else waits.
fn commit_urgent_batches(server: &Ingestd) -> Urgent {
    let mut urgent = Urgent::default();
    wait_until("the backlog drains", DRAIN_WAIT_MAX, || {
        urgent.commit_one(server);
        get(&server.url("/v1/health")).json()["checks"]["database"]["queued_batches"] == 0
    });
    urgent
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn ten_minutes_without_postgresql_stay_out_of_memory_and_do_not_hold_up_what_is_urgent() {
    let seed = seed("soak_outage");
    let mut postgres = TestPostgres::start_private(&AS_EMBEDDED);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).env("JOURNAL_MAX_MB", 8192).start();
    postgres.stop();
    let mut flooded = Flood::start(&server, options(EVENTS / BATCH_EVENTS, seed)).finish();
    assert_eq!(flooded.answers, [("202".to_owned(), EVENTS / BATCH_EVENTS)].into(), "{:?}", flooded.faults);
    let peak = resident_bytes_peak(&server);
    let journal = get(&server.url("/v1/health")).json()["checks"]["journal"]["uncommitted_bytes"].clone();

    postgres.start();
    let begun = Instant::now();
    let Urgent { batches, latencies } = commit_urgent_batches(&server);
    let drained = begun.elapsed();
    let peak_after = resident_bytes_peak(&server);
    flooded.outcome.batches.extend(batches);
    flooded.outcome.assert_exactly_once(&mut connect(&database.url));
    announce(&format!(
        "soak_outage: events={EVENTS} acked={:.0}/s journal={} MiB resident_peak={} MiB, while draining {} MiB of {} \
         drained={:.0}/s in {:.1} s urgent={} urgent_commit_ms={} lost=0 duplicated=0 seed={seed}",
        EVENTS as f64 / flooded.took.as_secs_f64(),
        journal.as_u64().expect("a figure") / MIB,
        peak / MIB,
        peak_after / MIB,
        RESIDENT_BYTES_MAX / MIB,
        EVENTS as f64 / drained.as_secs_f64(),
        drained.as_secs_f64(),
        latencies.len(),
        quantiles_ms(&latencies),
    ));
    assert!(peak_after <= RESIDENT_BYTES_MAX, "memory is bounded: {peak} bytes, {peak_after} after the drain");
    assert!(latencies.iter().all(|latency| *latency < URGENT_WAIT_MAX), "what is urgent is in time");
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn a_full_journal_takes_nothing_by_halves_and_goes_on_by_itself() {
    let seed = seed("soak_outage_full");
    let mut postgres = TestPostgres::start_private(&AS_EMBEDDED);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).env("JOURNAL_MAX_MB", SMALL_JOURNAL_MB).start();
    let ready = || get(&server.url("/readyz")).status == 200;
    postgres.stop();
    let flood = Flood::start(&server, options(u64::MAX, seed));
    wait_until("clients are turned away", WAIT_MAX, || flood.refused() > REFUSALS);
    let (full_at, is_ready) = (flood.accepted(), ready());
    postgres.start();
    let begun = Instant::now();
    wait_until("readiness comes back by itself", WAIT_MAX, ready);
    let ready_again = begun.elapsed();
    wait_until("clients get in again", WAIT_MAX, || flood.accepted() > full_at + full_at / 2);
    let flooded = flood.stop();
    wait_until_committed(&server, WAIT_MAX);
    let tally = flooded.outcome.assert_exactly_once(&mut connect(&database.url));
    announce(&format!(
        "soak_outage: journal={SMALL_JOURNAL_MB} MB full_after={} events ready_again={} ms {:?} acked={} committed={} \
         lost=0 half_taken=0 duplicated=0 seed={seed}",
        full_at * BATCH_EVENTS,
        ready_again.as_millis(),
        flooded.answers,
        tally.acked,
        tally.committed,
    ));
    assert!(flooded.faults.is_empty(), "only 202, and 503 with Retry-After: {:?}", flooded.faults);
    assert!(!is_ready, "a full journal is no place to send traffic to");
}
