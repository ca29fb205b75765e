//! Promise: a failure belongs to the narrowest thing that explains it, and nobody else waits (docs/operations.md,
//! "Whose fault it is").

mod support;

use std::time::{Duration, Instant};

use ingestd::limits::COPY_TIME_ALONE_MAX;
use postgres::Client;
use serde_json::{Value, json};

use support::contract::{batch, batch_at, ingest_url, rows_of, status_of, wait_until_completed};
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

    /// Sends a batch of which not all may land, and waits for its commit.
    fn commit_any(&self, id: &str, events: usize) -> Value {
        let reply = post_json(&ingest_url(&self.server, "ack=commit"), &batch(id, events));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// Sends a batch without waiting for its commit.
    fn queue(&self, id: &str, timestamp: Option<&str>) {
        let body = timestamp.map_or_else(|| batch(id, 3), |timestamp| batch_at(id, 3, timestamp));
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

/// The sample of that name and those labels; 0 while there is none.
fn metric(server: &Ingestd, name: &str) -> f64 {
    let text = get(&server.url("/v1/metrics")).text();
    let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    sample.map_or(0.0, |value| value.parse().expect("a number"))
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
fn a_batch_that_was_refused_while_nothing_landed_is_the_culprit_once_another_one_lands() {
    let site = Site::start();
    let mut client = site.client();
    execute(&mut client, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$BEGIN IF NEW.timestamp < '2025-01-01' THEN RAISE EXCEPTION 'not today' USING ERRCODE = '42501'; END IF; RETURN NEW; END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()");
    site.queue("late", Some("2024-02-03T04:05:06Z"));
    // So often that each flusher rests for a second after it, and is not trying it when the other one lands.
    wait_until("it was refused often", WAIT_MAX, || {
        metric(&site.server, "ingestd_db_errors_total{sqlstate_class=\"42\"}") >= 10.0
    });
    // Urgent, so that it is in no COPY with the other one.
    let mut good = batch("good", 10);
    good["priority"] = json!(9);
    let reply = post_json(&ingest_url(&site.server, "ack=commit"), &good);
    assert_eq!(reply.status, 200, "{}", reply.text());
    wait_until("health tells of it", WAIT_MAX, || site.database_check()["stuck_batches"] == 1);
    execute(&mut client, "DROP TRIGGER refuse ON events");
    wait_until_completed(&site.server, "late");
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
    let copies = || metric(&site.server, "ingestd_copy_latency_seconds_count");
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
        let check = get(&site.server.url("/v1/health")).json()["checks"]["maintenance"].clone();
        check["status"] == "failing" && check["reason"].as_str().is_some_and(|told| told.contains("depend on it"))
    });
    for round in 0..3 {
        site.commit(&format!("good-{round}"));
    }
    let log = site.server.log();
    assert!(!log.contains("is not accepting batches"), "{log}");
}

/// A transaction that holds `lock` until it is dropped.
fn hold<'a>(client: &'a mut Client, lock: &str) -> postgres::Transaction<'a> {
    let mut transaction = client.transaction().expect("begun");
    transaction.batch_execute(lock).unwrap_or_else(|error| panic!("{lock}: {error}"));
    transaction
}

#[test]
fn a_locked_partition_holds_up_only_batches_with_rows_of_it() {
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let site = Site::start();
        site.queue("makes-the-month", Some("2024-06-15T00:00:00Z"));
        wait_until_completed(&site.server, "makes-the-month");
        let mut client = site.client();
        let lock = hold(&mut client, &format!("LOCK TABLE events_2024_06 IN {mode} MODE"));
        site.queue("late", Some("2024-06-15T00:00:00Z"));
        site.assert_only_waits("late", "events_2024_06 is locked");
        let reason = site.database_check()["reason"].as_str().expect("a reason").to_owned();
        assert!(reason.contains("PID ") && reason.contains("Lock)"), "who, and how: {reason}");
        let status = status_of(&site.server, "late");
        assert!(status["reason"].as_str().is_some_and(|told| told.contains("events_2024_06")), "{status}");
        // A month that has to be made while another one is locked.
        site.queue("another-month", Some("2024-08-15T00:00:00Z"));
        wait_until_completed(&site.server, "another-month");
        lock.rollback().expect("released");
        wait_until_completed(&site.server, "late");
        assert_eq!(rows_of(&site.database, "late"), 3);
        assert_eq!(status_of(&site.server, "late")["reason"], Value::Null);
    }
}

#[test]
fn a_row_of_somebody_elses_transaction_holds_up_only_its_batch() {
    let site = Site::start();
    site.queue("makes-the-month", Some("2024-07-15T00:00:00Z"));
    wait_until_completed(&site.server, "makes-the-month");
    let mut client = site.client();
    let lock = hold(
        &mut client,
        r#"INSERT INTO events (event_id, service_name, event_type, payload, "timestamp", batch_id, priority)
           VALUES ('same-0', 'user-service', 'user_login', '{}', '2024-07-01T00:00:00Z', 'by-hand', 0)"#,
    );
    site.queue("same", Some("2024-07-01T00:00:00Z"));
    site.assert_only_waits("same", "lock timeout");
    lock.rollback().expect("released");
    wait_until_completed(&site.server, "same");
}

#[test]
fn a_broken_trigger_of_one_partition_holds_up_only_its_batches() {
    let site = Site::start();
    site.queue("makes-the-month", Some("2024-06-15T00:00:00Z"));
    wait_until_completed(&site.server, "makes-the-month");
    let mut client = site.client();
    execute(
        &mut client,
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN INSERT INTO no_such_table VALUES (1); RETURN NEW; END$$;
         CREATE TRIGGER broken BEFORE INSERT ON events_2024_06 FOR EACH ROW EXECUTE FUNCTION broken()",
    );
    site.queue("late", Some("2024-06-15T00:00:00Z"));
    site.assert_only_waits("late", "no_such_table");
    execute(&mut client, "DROP TRIGGER broken ON events_2024_06");
    wait_until_completed(&site.server, "late");
}

#[test]
fn a_trigger_that_raises_a_check_violation_without_a_name_refuses_the_row() {
    let site = Site::start();
    site.commit("first");
    execute(
        &mut site.client(),
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN
                 IF NEW.event_id = 'mixed-1' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation'; END IF;
                 RETURN NEW;
             END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let answer = site.commit_any("mixed", 10);
    assert_eq!(
        (&answer["status"], &answer["inserted"], &answer["dead_lettered"]),
        (&json!("partial"), &json!(9), &json!(1))
    );
}

#[test]
fn a_table_in_the_place_of_a_partition_is_told_from_a_partition_with_other_bounds() {
    let site = Site::start();
    site.commit("first");
    let mut client = site.client();
    execute(&mut client, "CREATE TABLE events_2024_03 (elsewhere int)");
    site.queue("taken", Some("2024-03-03T03:03:03Z"));
    site.assert_only_waits("taken", "is not a partition of events: attach it with ALTER TABLE");
    assert!(!site.database_check()["reason"].as_str().expect("a reason").contains("drop"));
    execute(
        &mut client,
        "DROP TABLE events_2024_03;
         CREATE TABLE events_2024_03 PARTITION OF events FOR VALUES FROM ('2024-03-01+00') TO ('2024-03-10+00')",
    );
    wait_until_completed(&site.server, "taken");
    site.queue("outside", Some("2024-03-20T03:03:03Z"));
    site.assert_only_waits("outside", "partition events_2024_03 of events exists FOR VALUES FROM");
    assert!(!site.database_check()["reason"].as_str().expect("a reason").contains("drop"));
}

#[test]
fn a_batch_that_is_stuck_for_long_ends_row_by_row() {
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).env("STUCK_BATCH_MINUTES", 0).start();
    let site = Site { database, server };
    site.commit("first");
    execute(&mut site.client(), "CREATE TABLE events_2024_03 (elsewhere int)");
    let mut body = batch("stuck", 4);
    body["events"][1]["timestamp"] = json!("2024-03-03T03:03:03Z");
    body["events"][3]["timestamp"] = json!("2024-03-03T03:03:03Z");
    assert_eq!(post_json(&ingest_url(&site.server, ""), &body).status, 202);
    // Others have to land for it to be the batch's own fault.
    let mut round = 0;
    wait_until("the batch ends", WAIT_MAX, || {
        round += 1;
        site.commit(&format!("good-{round}"));
        status_of(&site.server, "stuck")["status"] == "partial"
    });
    let status = status_of(&site.server, "stuck");
    assert_eq!((&status["inserted"], &status["dead_lettered"]), (&json!(2), &json!(2)), "{status}");
    let letters = site
        .client()
        .query("SELECT event_id, sqlstate, message FROM dead_letter_events WHERE batch_id = 'stuck' ORDER BY 1", &[])
        .expect("dead letters");
    assert_eq!(letters.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["stuck-1", "stuck-3"]);
    assert!(letters[0].get::<_, String>(2).contains("is not a partition of events"));
    assert_eq!(rows_of(&site.database, "stuck"), 2);
}

#[test]
fn refused_rows_are_looked_for_by_one_flusher_while_the_others_go_on() {
    let site = Site::start();
    site.commit("first");
    let mut client = site.client();
    // Far longer than a client waits for its commit, were all flushers to look for refused rows.
    execute(
        &mut client,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN
                 IF NEW.event_id LIKE 'bad-%' THEN PERFORM pg_sleep(0.2); RAISE EXCEPTION 'refused'; END IF;
                 RETURN NEW;
             END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    for number in 0..8 {
        for priority in [0, 9] {
            let mut body = batch(&format!("bad-{priority}-{number}"), 200);
            body["priority"] = json!(priority);
            assert_eq!(post_json(&ingest_url(&site.server, ""), &body).status, 202);
        }
    }
    for round in 0..10 {
        site.commit(&format!("good-{round}"));
        let mut urgent = batch(&format!("urgent-{round}"), 3);
        urgent["priority"] = json!(10);
        assert_eq!(post_json(&ingest_url(&site.server, "ack=commit"), &urgent).status, 200);
    }
    assert_ne!(status_of(&site.server, "bad-0-7")["status"], "failed", "they were done, so nothing was shown");
    assert_eq!(get(&site.server.url("/v1/health")).json()["status"], "healthy");
    execute(&mut client, "DROP TRIGGER refuse ON events");
    for number in 0..8 {
        for priority in [0, 9] {
            wait_until("refused or landed", WAIT_MAX, || {
                let status = status_of(&site.server, &format!("bad-{priority}-{number}"));
                status["status"] != "queued" && status["status"] != "processing"
            });
        }
    }
}

#[test]
fn a_batch_that_takes_longer_than_others_would_wait_lands_by_itself() {
    let site = Site::start();
    site.queue("makes-the-month", Some("2024-06-15T00:00:00Z"));
    wait_until_completed(&site.server, "makes-the-month");
    execute(
        &mut site.client(),
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(4); RETURN NEW; END$$;
         CREATE TRIGGER slow BEFORE INSERT ON events_2024_06 FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let begun = Instant::now();
    site.queue("slow", Some("2024-06-15T00:00:00Z"));
    let mut round = 0;
    wait_until("the slow one lands", WAIT_MAX, || {
        round += 1;
        site.commit(&format!("good-{round}"));
        status_of(&site.server, "slow")["status"] == "completed"
    });
    assert!(begun.elapsed() > COPY_TIME_ALONE_MAX, "it was not slow enough to show anything");
    assert_eq!(rows_of(&site.database, "slow"), 3);
}
