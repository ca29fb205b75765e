//! Promise: a wall clock that jumps changes the `received_at` of later batches, and nothing else.

mod support;

use std::time::Duration;

use redis::Commands;
use serde_json::{Value, json};

use support::WAIT_MAX;
use support::clock::WallClock;
use support::contract::{
    accept, assert_problem, batch, event, rows_of, send, status_of, wait_for_quick_lookups, wait_for_upkeep,
    wait_until_completed,
};
use support::load::wait_until_committed;
use support::postgres::{TestDatabase, TestPostgres};
use support::redis::TestRedis;
use support::server::{Ingestd, get};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Where the clock stands, in turn, in seconds from the truth: all of them accept an event of today.
const JUMPS: [i64; 8] = [0, 3 * DAY, -20 * HOUR, 40 * DAY, -HOUR, 1, -1, 0];

/// Longest time that a batch of this process waited for its COPY.
fn queue_latency_max(server: &Ingestd) -> Duration {
    let metrics = get(&server.url("/v1/metrics?format=json")).json();
    Duration::from_secs_f64(metrics["latency_ms"]["queue"]["max"].as_f64().expect("a number") / 1000.0)
}

/// RFC 3339, by PostgreSQL's clock, which never jumps here.
fn true_time(database: &TestDatabase) -> String {
    let query = r#"SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#;
    database.connect().query_one(query, &[]).expect("a time").get(0)
}

/// A batch of one event of `today`.
fn batch_of(today: &str, number: usize) -> Value {
    let mut event = event(&format!("e-{number:03}"));
    event["timestamp"] = json!(today);
    json!({ "events": [event] })
}

#[test]
fn a_clock_that_jumps_breaks_neither_order_nor_ids_nor_expiry() {
    let clock = WallClock::new();
    let postgres = TestPostgres::start_private(&[]);
    let (database, redis) = (postgres.create_database(), TestRedis::start());
    let builder = Ingestd::builder().database(&database).redis(&redis).env("WORKERS", 1).env("STATUS_TTL_SECONDS", 60);
    let mut server = clock.of(builder).start();
    let today = true_time(&database);
    assert_eq!(send(&server, "ack=commit", batch("finished", 1).to_string().as_bytes()).status, 200);

    let paused = postgres.pause();
    let ids: Vec<String> = (0..10 * JUMPS.len())
        .map(|number| {
            clock.set_offset(JUMPS[number % JUMPS.len()]);
            accept(&server, "", &batch_of(&today, number))["batch_id"].as_str().expect("an id").to_owned()
        })
        .collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "ids of one worker rise: {ids:?}");
    clock.set_offset(40 * DAY);
    // Expiry goes by time that passes: the status is in memory all the same, and PostgreSQL cannot be asked.
    assert_eq!(status_of(&server, "finished")["status"], "completed");
    let key = redis.key_of("finished").expect("its key");
    let expires: i64 = redis.connect().ttl(key).expect("Redis answers");
    assert!((1..=60).contains(&expires), "{expires}");
    drop(paused);
    for id in &ids {
        wait_until_completed(&server, id);
    }
    assert!(queue_latency_max(&server) < WAIT_MAX, "a jump is no latency: {:?}", queue_latency_max(&server));
    // One COPY writes its rows in the order of the queue; the first batches were in COPYs of their own already.
    let query = "SELECT event_id FROM events WHERE event_id LIKE 'e-%' AND xmin::text =
                 (SELECT xmin::text FROM events GROUP BY 1 ORDER BY count(*) DESC LIMIT 1) ORDER BY ctid";
    let rows = database.connect().query(query, &[]).expect("events can be read");
    let order: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert!(order.len() > JUMPS.len() && order.is_sorted(), "first come, first committed: {order:?}");

    let paused = postgres.pause();
    accept(&server, "", &batch("before-the-crash", 3));
    server.kill9();
    clock.set_offset(-20 * HOUR);
    server.begin_restart();
    drop(paused);
    server.wait_until_ready();
    assert_eq!(wait_until_completed(&server, "before-the-crash")["inserted"], 3);
    wait_for_quick_lookups(&server);
    let again = send(&server, "ack=commit", batch("before-the-crash", 3).to_string().as_bytes());
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    assert_eq!(rows_of(&database, "before-the-crash"), 3);
}

#[test]
fn a_clock_far_ahead_drops_no_partition_and_forgets_no_batch() {
    let clock = WallClock::new();
    let database = support::postgres::shared().create_database();
    let mut server = clock.of(Ingestd::builder().database(&database)).start();
    let body = batch("of-today", 2).to_string();
    assert_eq!(send(&server, "ack=commit", body.as_bytes()).status, 200);
    server.set_env("PARTITION_RETENTION_MONTHS", 1);
    server.set_env("LEDGER_RETENTION_DAYS", 1);
    clock.set_offset(400 * DAY);
    server.restart();
    // Not while what the restart found in the journal is still on its way.
    wait_until_committed(&server, WAIT_MAX);
    wait_for_upkeep(&server, &database);
    assert_eq!(rows_of(&database, "of-today"), 2, "its partition is there: {}", server.log());
    wait_for_quick_lookups(&server);
    let again = send(&server, "", body.as_bytes());
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    let late = send(&server, "ack=commit", batch("far-ahead", 2).to_string().as_bytes());
    assert_eq!(
        (late.status, &late.json()["inserted"]),
        (200, &json!(2)),
        "a month that nobody planned: {}",
        late.text()
    );
}

#[test]
fn events_that_a_wrong_clock_finds_too_new_are_refused_with_the_reason() {
    let clock = WallClock::new();
    let database = support::postgres::shared().create_database();
    let server = clock.of(Ingestd::builder().database(&database)).start();
    clock.set_offset(-400 * DAY);
    let mut new = event("new");
    new["timestamp"] = json!(true_time(&database));
    let body = json!({ "batch_id": "new", "events": [new] }).to_string();
    let problem = assert_problem(&send(&server, "", body.as_bytes()), 422, "invalid_events");
    let detail = problem["errors"][0]["detail"].as_str().expect("a reason");
    assert!(detail.contains("EVENT_MAX_FUTURE_HOURS") && detail.contains("clock"), "{detail}");
    clock.set_offset(0);
    assert_eq!(send(&server, "ack=commit", body.as_bytes()).status, 200, "nothing of it had been taken");
}
