//! Promise: ten times the sustainable rate for a minute is refused in good order; memory stays bounded, what is
//! accepted is committed in time and once, what is urgent is not held up, PostgreSQL goes on at its rate, and the server
//! recovers by itself.

mod support;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use postgres::Client;
use support::announce;
use support::flood::{BATCH_EVENTS, Flood, FloodOptions, Flooded, Pace, allow_connections};
use support::load::{Sent, body, seed, wait_until_committed};
use support::measure::{cpu_seconds, metrics, quantiles_ms, resident_bytes_peak};
use support::postgres::{AS_EMBEDDED, TestPostgres, connect, empty_tables};
use support::server::{Ingestd, get, post};
use support::urgent::Urgent;
use support::wait_until;

const MIB: u64 = 1024 * 1024;
const WAIT_MAX: Duration = Duration::from_secs(90);
/// Rows after which a new PostgreSQL recycles its WAL files; until then it writes each one twice.
const WARM_UP_ROWS: u64 = 6_000_000;
/// Clients that wait for their commits: enough rows for full COPYs, and no backlog.
const CLIENTS: usize = 128;
/// Makes events of about 150 bytes.
const FILLER_BYTES: usize = 0;
/// Time for COPYs to find their size.
const SETTLE: Duration = Duration::from_secs(3);
const SUSTAINED: Duration = Duration::from_secs(30);
const OVERLOAD: Duration = Duration::from_secs(60);
const OVERLOAD_FACTOR: f64 = 10.0;
/// Share of the load that clients on a noisy machine must get sent.
const OFFERED_MIN: f64 = 0.8;
/// The defaults of `MEMORY_LIMIT_MB` and `BATCH_TIMEOUT_SECONDS`.
const MEMORY_LIMIT_MIB: u64 = 512;
const BATCH_TIMEOUT_MS: f64 = 30_000.0;
/// `MAX_REQUESTS_MB`'s default.
const MAX_REQUESTS_MIB: u64 = 256;
/// Rows in memory, the server itself with its connections' buffers, and what requests hold that are read or wait for room.
const RESIDENT_BYTES_MAX: u64 = (MEMORY_LIMIT_MIB + 150 + MAX_REQUESTS_MIB) * MIB;
/// How long an urgent batch may take to be committed.
const URGENT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Goodput that counts as a failure, of what the clients leave of the cores: 0.9 on a quiet machine, less its noise.
const GOODPUT_MIN: f64 = 0.8;

fn committed(server: &Ingestd) -> u64 {
    metrics(server)["events"]["committed"].as_u64().expect("a figure")
}

/// What is committed over some time, and the cores used for it.
#[derive(Clone, Copy, Debug)]
struct Commits {
    rows_per_second: f64,
    server_cores: f64,
    postgres_cores: f64,
    client_cores: f64,
}

impl Commits {
    fn measure(server: &Ingestd, postgres: &TestPostgres, duration: Duration) -> Self {
        let figures = || {
            let cpu = [cpu_seconds(server.pid()), postgres.cpu_seconds(), cpu_seconds(std::process::id())];
            (committed(server) as f64, cpu)
        };
        let (begun, (rows_before, cpu_before)) = (Instant::now(), figures());
        sleep(duration);
        let ((rows, cpu), seconds) = (figures(), begun.elapsed().as_secs_f64());
        let cores = |index: usize| (cpu[index] - cpu_before[index]) / seconds;
        let rows_per_second = (rows - rows_before) / seconds;
        Self { rows_per_second, server_cores: cores(0), postgres_cores: cores(1), client_cores: cores(2) }
    }
}

impl fmt::Display for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows_per_second, server_cores, postgres_cores, client_cores } = self;
        write!(f, "{rows_per_second:.0} rows/s (cores: {server_cores:.2}+{postgres_cores:.2}+{client_cores:.2})")
    }
}

fn waiting_clients(seed: u64, batches: u64) -> FloodOptions {
    let target = "/v1/ingest/batch?ack=commit";
    FloodOptions { pace: Pace::Closed { connections: CLIENTS }, batches, target, filler_bytes: FILLER_BYTES, seed }
}

/// Every accepted batch is there once, and of the others no row; then the tables are empty again.
fn check(flooded: &Flooded, server: &Ingestd, client: &mut Client) {
    wait_until_committed(server, WAIT_MAX);
    assert!(flooded.faults.is_empty(), "only 202, and 429 or 503 with Retry-After: {:?}", flooded.faults);
    flooded.outcome.assert_exactly_once(client);
    empty_tables(client);
}

fn commit_urgent_batches(server: &Ingestd, goes_on: &AtomicBool) -> Urgent {
    let mut urgent = Urgent::default();
    while goes_on.load(Relaxed) {
        urgent.commit_one(server);
    }
    urgent
}

fn sustained(seed: u64, server: &Ingestd, postgres: &TestPostgres, client: &mut Client) -> Commits {
    let flood = Flood::start(server, waiting_clients(seed, u64::MAX));
    sleep(SETTLE);
    let commits = Commits::measure(server, postgres, SUSTAINED);
    check(&flood.stop(), server, client);
    commits
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn ten_times_the_sustainable_rate_costs_neither_memory_nor_time_nor_goodput() {
    let seed = seed("soak_overload");
    allow_connections();
    let postgres = TestPostgres::start_private(&AS_EMBEDDED);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = connect(&database.url);
    let warm_up = Flood::start(&server, waiting_clients(seed, WARM_UP_ROWS / BATCH_EVENTS)).finish();
    check(&warm_up, &server, &mut client);

    let before = sustained(seed + 1, &server, &postgres, &mut client);
    let rate = OVERLOAD_FACTOR * before.rows_per_second / BATCH_EVENTS as f64;
    let options = FloodOptions {
        pace: Pace::Open { requests_per_second: rate },
        batches: (rate * OVERLOAD.as_secs_f64()) as u64,
        target: "/v1/ingest/batch",
        filler_bytes: FILLER_BYTES,
        seed: seed + 2,
    };
    let flood = Flood::start(&server, options);
    let is_flooded = AtomicBool::new(true);
    let (during, mut flooded, urgent) = thread::scope(|scope| {
        let urgent = scope.spawn(|| commit_urgent_batches(&server, &is_flooded));
        let during = Commits::measure(&server, &postgres, OVERLOAD);
        let flooded = flood.finish();
        is_flooded.store(false, Relaxed);
        (during, flooded, urgent.join().expect("every urgent batch is taken"))
    });
    flooded.outcome.batches.extend(urgent.batches);

    let ended = Instant::now();
    wait_until("the server is fine again by itself", WAIT_MAX, || {
        let tag = format!("probe-{}", flooded.outcome.batches.len());
        let reply = post(&server.url("/v1/ingest/batch"), &[], body(&tag, None, 0, 1).as_bytes());
        let acked = reply.status == 202;
        flooded.outcome.batches.extend(acked.then_some(Sent { tag, batch_id: None, events: 1, acked }));
        acked
            && get(&server.url("/readyz")).status == 200
            && get(&server.url("/v1/health")).json()["status"] == "healthy"
    });
    let recovered = ended.elapsed();
    wait_until_committed(&server, WAIT_MAX);
    let drained = ended.elapsed();
    check(&flooded, &server, &mut client);
    let (latency, peak) = (metrics(&server)["latency_ms"].clone(), resident_bytes_peak(&server));
    let after = sustained(seed + 3, &server, &postgres, &mut client);

    let offered = (flooded.sent * BATCH_EVENTS) as f64 / flooded.took.as_secs_f64();
    let goodput = during.rows_per_second / ((before.rows_per_second + after.rows_per_second) / 2.0);
    // What the clients take of the same cores is not the server's to give.
    let cores = thread::available_parallelism().expect("a number").get() as f64;
    let goodput_of_rest = goodput * cores / (cores - during.client_cores);
    announce(&format!(
        "soak_overload: (cores: server+PostgreSQL+clients) before={before} after={after} offered={offered:.0} rows/s \
         during={during} goodput={goodput:.2} goodput_of_rest={goodput_of_rest:.2} requests={} unsent={} {:?} \
         accepted_ack_ms={} urgent_commit_ms={} queue_max_ms={} batch_max_ms={} resident_peak={} MiB of {} recovered={} ms drained={} ms \
         lost=0 duplicated=0 seed={seed}",
        flooded.sent,
        flooded.unsent,
        flooded.answers,
        quantiles_ms(&flooded.latencies),
        quantiles_ms(&urgent.latencies),
        latency["queue"]["max"],
        latency["batch"]["max"],
        peak / MIB,
        RESIDENT_BYTES_MAX / MIB,
        recovered.as_millis(),
        drained.as_millis(),
    ));
    assert!(offered >= OFFERED_MIN * rate * BATCH_EVENTS as f64, "the clients keep up: {offered}");
    assert!(latency["batch"]["max"].as_f64().expect("a figure") < BATCH_TIMEOUT_MS, "accepted batches are in time");
    assert!(urgent.latencies.iter().all(|latency| *latency < URGENT_WAIT_MAX), "what is urgent is in time");
    assert!(peak <= RESIDENT_BYTES_MAX, "memory is bounded: {peak}");
    assert!(goodput_of_rest >= GOODPUT_MIN, "PostgreSQL goes on at its rate: {goodput_of_rest}");
}
