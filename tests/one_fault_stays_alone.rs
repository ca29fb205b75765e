//! Promise: a failure belongs to the narrowest thing that explains it, and nobody else waits (docs/faults.md,
//! "Whose fault it is").

mod support;

use std::time::{Duration, Instant};

use postgres::Client;
use serde_json::{Value, json};

use support::contract::{batch, ingest_url, rows_of, status_of, wait_until_completed};
use support::postgres::{TestDatabase, shared};
use support::server::{Ingestd, get, post_json};
use support::{WAIT_MAX, wait_until};

/// A server that makes no partition ahead of what the tests need, and its database.
struct Site {
    database: TestDatabase,
    server: Ingestd,
}

impl Site {
    fn start() -> Self {
        let database = shared().create_database();
        let server = Ingestd::builder().database(&database).start();
        Self { database, server }
    }

    fn client(&self) -> Client {
        self.database.connect()
    }

    /// Sends a batch of this month, and waits for its commit.
    fn commit(&self, id: &str) -> Value {
        let reply = post_json(&ingest_url(&self.server, "ack=commit"), &batch(id, 10));
        assert_eq!(reply.status, 200, "batch {id} waits for another one's fault: {}", reply.text());
        reply.json()
    }

    /// Sends a batch without waiting for its commit.
    fn queue(&self, id: &str, timestamp: Option<&str>) {
        let mut body = batch(id, 3);
        for event in body["events"].as_array_mut().expect("events") {
            if let Some(timestamp) = timestamp {
                event["timestamp"] = json!(timestamp);
            }
        }
        assert_eq!(post_json(&ingest_url(&self.server, ""), &body).status, 202);
    }

    fn database_check(&self) -> Value {
        get(&self.server.url("/v1/health")).json()["checks"]["database"].clone()
    }

    /// Good batches land while `stuck` does not, health names the reason, and nothing calls the database away.
    fn assert_only_waits(&self, stuck: &str, reason: &str) {
        for round in 0..3 {
            self.commit(&format!("good-beside-{stuck}-{round}"));
        }
        wait_until("health tells what is stuck and why", WAIT_MAX, || {
            let check = self.database_check();
            check["stuck_batches"] == 1 && check["reason"].as_str().is_some_and(|told| told.contains(reason))
        });
        self.commit(&format!("good-after-{stuck}"));
        assert_eq!(get(&self.server.url("/v1/health")).json()["status"], "degraded");
        let log = self.server.log();
        assert!(!log.contains("is not accepting batches"), "{log}");
        assert_ne!(status_of(&self.server, stuck)["status"], "completed");
    }
}

fn execute(client: &mut Client, statement: &str) {
    client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
}

#[test]
fn a_month_that_overlaps_a_partition_made_by_hand_holds_up_only_its_batches() {
    let site = Site::start();
    site.commit("first");
    let mut client = site.client();
    execute(
        &mut client,
        "CREATE TABLE events_by_hand PARTITION OF events
             FOR VALUES FROM ('2024-04-30 22:00:00+00') TO ('2024-05-31 22:00:00+00')",
    );
    site.queue("late", Some("2024-05-31T23:50:00Z"));
    site.assert_only_waits("late", "overlap");
    execute(&mut client, "ALTER TABLE events DETACH PARTITION events_by_hand");
    wait_until_completed(&site.server, "late");
    assert_eq!(rows_of(&site.database, "late"), 3);
}

#[test]
fn a_month_that_may_not_be_made_holds_up_only_its_batches() {
    let site = Site::start();
    site.commit("first");
    let mut client = site.client();
    execute(
        &mut client,
        "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'no DDL on weekdays' USING ERRCODE = 'insufficient_privilege'; END$$;
         CREATE EVENT TRIGGER forbid ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION forbid()",
    );
    site.queue("late", Some("2024-02-03T04:05:06Z"));
    site.assert_only_waits("late", "no DDL on weekdays");
    execute(&mut client, "DROP EVENT TRIGGER forbid");
    wait_until_completed(&site.server, "late");
    assert_eq!(rows_of(&site.database, "late"), 3);
}

#[test]
fn one_stuck_batch_among_many_costs_few_transactions() {
    let site = Site::start();
    site.commit("first");
    let mut client = site.client();
    execute(&mut client, "CREATE TABLE events_2024_03 (elsewhere int)");
    // Everything waits for the lock, so that it is cut together afterwards.
    let mut lock = client.transaction().expect("begun");
    lock.batch_execute("LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("locked");
    site.queue("stuck", Some("2024-03-03T03:03:03Z"));
    for number in 0..150 {
        site.queue(&format!("good-{number}"), None);
    }
    let copies = || {
        let text = get(&site.server.url("/v1/metrics")).text();
        let line = text.lines().find(|line| line.starts_with("ingestd_copy_latency_seconds_count")).expect("a metric");
        line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).expect("a number")
    };
    let before = copies();
    lock.rollback().expect("released");
    for number in 0..150 {
        wait_until_completed(&site.server, &format!("good-{number}"));
    }
    let took = copies() - before;
    assert!(took < 75.0, "{took} COPYs for 150 batches beside a stuck one");
    wait_until("the stuck one is known", WAIT_MAX, || site.database_check()["stuck_batches"] == 1);
}

#[test]
fn a_statement_timeout_of_the_role_does_not_decide_how_long_a_copy_takes() {
    let database = shared().create_database();
    let mut client = database.connect();
    let name = database.name.clone();
    for limit in ["statement_timeout = '300ms'", "lock_timeout = '100ms'", "idle_in_transaction_session_timeout = '1s'"]
    {
        execute(&mut client, &format!("ALTER DATABASE {name} SET {limit}"));
    }
    let server = Ingestd::builder().database(&database).start();
    let site = Site { database, server };
    site.commit("first");
    execute(
        &mut client,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END$$;
         CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let begun = Instant::now();
    let reply = post_json(&ingest_url(&site.server, "ack=commit"), &batch("slow", 20));
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &json!(20)), "{}", reply.text());
    assert!(begun.elapsed() > Duration::from_millis(300), "the limit was not passed, so nothing was shown");
}

#[test]
fn a_chore_that_fails_is_no_outage() {
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).env("PARTITION_RETENTION_MONTHS", 2).start();
    let site = Site { database, server };
    site.commit("first");
    let mut client = site.client();
    // What depends on an old partition keeps it from being dropped: 2BP01.
    execute(
        &mut client,
        "CREATE TABLE events_2024_01 PARTITION OF events FOR VALUES FROM ('2024-01-01+00') TO ('2024-02-01+00');
         CREATE VIEW last_january AS SELECT * FROM events_2024_01",
    );
    let mut site = site;
    site.server.restart();
    wait_until("health names the chore", WAIT_MAX, || {
        site.database_check()["reason"].as_str().is_some_and(|told| told.contains("maintenance failed"))
    });
    for round in 0..3 {
        site.commit(&format!("good-{round}"));
    }
    let log = site.server.log();
    assert!(!log.contains("is not accepting batches"), "{log}");
}
