//! Promise: an outage of PostgreSQL or an overload fills disk up to a cap, not memory, and refuses in good order.

mod support;

use std::fs;
use std::time::Duration;

use support::load::{Load, LoadOptions, body, seed, wait_until_committed};
use support::measure::resident_bytes;
use support::postgres::{TestPostgres, connect};
use support::server::{Ingestd, get, post};
use support::{WAIT_MAX, wait_until};

const MIB: u64 = 1024 * 1024;
/// A COPY takes a fifth of a second or more.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON ingest_batches FOR EACH STATEMENT EXECUTE FUNCTION slow()";
/// The same, in milliseconds.
const SLOW_MS: f64 = 200.0;

fn folder_bytes(server: &Ingestd) -> u64 {
    let entries = fs::read_dir(server.folder().join("journal")).expect("the journal");
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

/// Sends until the server says 503; how many batches were taken before. Every batch is 500 events, ~70 kB.
fn fill(server: &Ingestd) -> u64 {
    for number in 0..10_000 {
        let body = body(&format!("fill-{number}"), None, 0, 500);
        let reply = post(&server.url("/v1/ingest/batch"), &[], body.as_bytes());
        if reply.status == 503 {
            let problem = reply.json();
            assert!(
                ["journal_full", "journal_unavailable"].contains(&problem["code"].as_str().expect("a code")),
                "{problem}"
            );
            let seconds: u64 = reply.header("retry-after").parse().expect("Retry-After in seconds");
            assert!((1..=60).contains(&seconds), "{seconds}");
            return number;
        }
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    panic!("the journal has no end");
}

#[test]
fn a_full_journal_refuses_and_takes_again_when_postgresql_is_back() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).env("JOURNAL_MAX_MB", 8).start();
    for round in 0..2 {
        postgres.kill9();
        let taken = fill(&server);
        assert!(taken > 10, "{taken} batches fit");
        assert!(folder_bytes(&server) <= 8 * MIB, "the cap holds: {} bytes", folder_bytes(&server));
        wait_until("readiness goes off", WAIT_MAX, || {
            // What is small or urgent may still fit: a client that goes on meets the end.
            let _ = post(&server.url("/v1/ingest/batch"), &[], body("more", None, 9, 100).as_bytes());
            get(&server.url("/readyz")).status == 503
        });
        assert_eq!(get(&server.url("/v1/health")).status, 503);
        assert_eq!(get(&server.url("/livez")).status, 200);
        postgres.start();
        wait_until("readiness comes back by itself", WAIT_MAX, || get(&server.url("/readyz")).status == 200);
        wait_until_committed(&server, WAIT_MAX);
        let mut client = connect(&database.url);
        let partial = "SELECT count(*) FROM (SELECT 1 FROM events WHERE event_id LIKE 'fill-%'
                       GROUP BY split_part(event_id, '/', 1) HAVING count(*) % 500 <> 0) AS torn";
        assert_eq!(client.query_one(partial, &[]).expect("a count").get::<_, i64>(0), 0, "nothing half-taken");
        let filled: i64 =
            client.query_one("SELECT count(*) FROM events WHERE event_id LIKE 'fill-%'", &[]).expect("a count").get(0);
        assert_eq!(filled.unsigned_abs(), taken * 500, "what was taken is there, and nothing else (round {round})");
        client.batch_execute("TRUNCATE events").expect("ours");
    }
}

#[test]
fn clients_that_come_again_get_everything_in_through_a_journal_that_is_too_small() {
    let seed = seed("a_journal_that_is_too_small");
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).env("JOURNAL_MAX_MB", 8).start();
    postgres.kill9();
    let load =
        Load::start(&server, LoadOptions { clients: 4, events: 80_000, seed, priority_max: 10, pause: Duration::ZERO });
    wait_until("clients are turned away", WAIT_MAX, || load.refused() > 20);
    postgres.start();
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    let tally = outcome.assert_exactly_once(&mut connect(&database.url));
    assert_eq!(tally.unknown, 0, "a refusal is not an unknown outcome: {tally}");
}

#[test]
fn an_outage_fills_the_disk_and_not_the_memory() {
    let seed = seed("an_outage_fills_the_disk");
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).env("MEMORY_LIMIT_MB", 8).start();
    // What the server needs to take requests at all, before anything is kept.
    let warm_up = Load::start(
        &server,
        LoadOptions { clients: 4, events: 20_000, seed: seed + 1, priority_max: 10, pause: Duration::ZERO },
    )
    .finish();
    wait_until_committed(&server, WAIT_MAX);
    postgres.kill9();
    let before = resident_bytes(&server);
    let outcome = Load::start(
        &server,
        LoadOptions { clients: 4, events: 400_000, seed, priority_max: 10, pause: Duration::ZERO },
    )
    .finish();
    let grown = resident_bytes(&server).saturating_sub(before);
    let health = get(&server.url("/v1/health")).json();
    let waiting = health["checks"]["journal"]["uncommitted_bytes"].as_u64().expect("a figure");
    let held = health["checks"]["memory"]["queued_bytes"].as_u64().expect("a figure");
    assert!(waiting > 40 * MIB, "enough waits to tell: {waiting}");
    assert!(held <= 8 * MIB, "MEMORY_LIMIT_MB holds: {held}");
    assert!(grown < waiting / 2, "{waiting} bytes wait, memory grew by {grown}");
    postgres.start();
    wait_until_committed(&server, WAIT_MAX);
    outcome.with(warm_up).assert_exactly_once(&mut connect(&database.url));
}

#[test]
fn a_payment_gets_through_while_a_backlog_drains() {
    let seed = seed("a_payment_gets_through");
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    // The backlog takes a minute to drain: it cannot be gone before the payment is sent, however busy the machine is.
    let server = Ingestd::builder()
        .database(&database)
        .env("MEMORY_LIMIT_MB", 8)
        .env("BATCH_SIZE", 200)
        .env("DB_POOL_MIN_SIZE", 2)
        .env("DB_POOL_MAX_SIZE", 2)
        .start();
    database.connect().batch_execute(&SLOW.replace("0.2", "0.5")).expect("a trigger");
    postgres.kill9();
    Load::start(&server, LoadOptions { clients: 4, events: 150_000, seed, priority_max: 10, pause: Duration::ZERO })
        .finish();
    postgres.start();
    let queued =
        || get(&server.url("/v1/health")).json()["checks"]["database"]["queued_batches"].as_u64().expect("a figure");
    let backlog = queued();
    wait_until("the backlog drains", WAIT_MAX, || queued() < backlog);
    let reply =
        post(&server.url("/v1/ingest/batch?ack=commit&priority=10"), &[], body("payment", None, 10, 1).as_bytes());
    let left = queued();
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &1.into()), "{}", reply.text());
    assert!(left > 0, "the payment overtook what was left of {backlog}");
    connect(&database.url).batch_execute("DROP TRIGGER slow ON ingest_batches").expect("it is there");
    wait_until_committed(&server, WAIT_MAX);
}

#[test]
fn an_overload_is_held_back_before_batches_wait_too_long_and_urgent_ones_are_not() {
    let seed = seed("an_overload_is_held_back");
    let database = support::postgres::shared().create_database();
    // A PostgreSQL that lands some hundred rows in a fifth of a second, however many are sent.
    let server = Ingestd::builder()
        .database(&database)
        .env("BATCH_SIZE", 200)
        .env("BATCH_TIMEOUT_SECONDS", 6)
        .env("DB_POOL_MIN_SIZE", 2)
        .env("DB_POOL_MAX_SIZE", 2)
        .start();
    let mut client = database.connect();
    client.batch_execute(SLOW).expect("a trigger");
    let load = Load::start(
        &server,
        LoadOptions { clients: 24, events: u64::MAX, seed, priority_max: 10, pause: Duration::ZERO },
    );
    wait_until("somebody is turned away", WAIT_MAX, || load.refused() > 0);
    let bulk = body("bulk", None, 0, 1);
    wait_until("bulk is turned away, and may stay connected", WAIT_MAX, || {
        let reply = post(&server.url("/v1/ingest/batch"), &[], bulk.as_bytes());
        let (code, connection) = (reply.json()["code"].clone(), reply.header("connection"));
        reply.status == 503 && code == "overloaded" && connection != "close" && !reply.header("retry-after").is_empty()
    });
    let payment = body("payment", Some("payment"), 10, 1);
    let reply = post(&server.url("/v1/ingest/batch?ack=commit"), &[], payment.as_bytes());
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &1.into()), "{}", reply.text());
    assert_eq!(get(&server.url("/readyz")).status, 200, "a node that is busy is not broken");
    client.batch_execute("DROP TRIGGER slow ON ingest_batches").expect("it is there");
    let outcome = load.stop();
    wait_until_committed(&server, WAIT_MAX);
    let latencies = get(&server.url("/v1/metrics?format=json")).json()["latency_ms"].clone();
    let [waited, copy] = ["queue", "copy"].map(|name| latencies[name]["max"].as_f64().expect("a figure"));
    // Who may join is reckoned by the last COPYs. One that takes longer, because the machine does something else, makes
    // those wait longer who have joined before.
    let may = 6_000.0 * (copy / SLOW_MS).max(1.0);
    assert!(waited < may, "nobody waited for longer than 6 s at that pace: {waited} ms, COPYs {copy} ms at most");
    let others = "DELETE FROM events WHERE event_id LIKE 'payment/%' OR event_id LIKE 'bulk/%';
                  DELETE FROM ingest_batches WHERE batch_id = 'payment'";
    client.batch_execute(others).expect("they are not the load's");
    outcome.assert_exactly_once(&mut client);
}
