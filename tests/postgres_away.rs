//! Promise: whatever becomes of PostgreSQL, ingestion goes on, and nothing is lost or doubled when it is back.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use postgres::Client;
use serde_json::json;
use support::load::{Load, LoadOptions, body, seed, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::proxy::{Mode, Proxy};
use support::server::{Builder, Ingestd, get, post, post_json};
use support::{WAIT_MAX, wait_until};

/// `transaction.commit()` of the driver, as the bytes of a simple query.
const COMMIT: &[u8] = b"COMMIT\0";

fn options(events: u64, seed: u64) -> LoadOptions {
    LoadOptions { clients: 3, events, seed, priority_max: 10, pause: Duration::from_millis(2) }
}

fn is_working(server: &Ingestd) -> bool {
    get(&server.url("/v1/health")).json()["checks"]["database"]["status"] == "ok"
}

fn count(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {query}"), &[]).expect("a count").get(0)
}

fn commit(server: &Ingestd, tag: &str, events: u64) -> serde_json::Value {
    let reply = post(&server.url("/v1/ingest/batch?ack=commit"), &[], body(tag, Some(tag), 0, events).as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn postgresql_killed_and_restarted_under_load_costs_nothing() {
    let seed = seed("postgresql_killed_and_restarted");
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let load = Load::start(&server, options(40_000, seed));
    load.wait_for_acked(5_000, WAIT_MAX);
    postgres.kill9();
    let acked = load.acked_events();
    load.wait_for_acked(acked + 5_000, WAIT_MAX);
    // A COPY that was answered just before may be heard of just after.
    wait_until("health is degraded and says why", WAIT_MAX, || {
        let health = get(&server.url("/v1/health")).json();
        let reason = &health["checks"]["database"]["reason"];
        health["status"] == "degraded" && reason.as_str().is_some_and(|reason| !reason.is_empty())
    });
    assert_eq!(get(&server.url("/readyz")).status, 200, "PostgreSQL away alone is no reason to send traffic elsewhere");
    let metrics = get(&server.url("/v1/metrics")).text();
    assert!(metrics.contains("\ningestd_database_up 0\n") && metrics.contains("\ningestd_ready 1\n"), "{metrics}");
    postgres.start();
    load.wait_for_acked(25_000, WAIT_MAX);
    postgres.stop();
    postgres.start();
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    let tally = outcome.assert_exactly_once(&mut connect(&database.url));
    assert_eq!((tally.refused, tally.unknown), (0, 0), "no client noticed: {tally}");
    wait_until("all is well", WAIT_MAX, || is_working(&server));
}

#[test]
fn terminated_sessions_are_replaced() {
    let seed = seed("terminated_sessions");
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    let load = Load::start(&server, options(40_000, seed));
    for round in 1..=8 {
        load.wait_for_acked(round * 4_000, WAIT_MAX);
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";
        client.execute(terminate, &[]).expect("our own sessions");
    }
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut client);
}

#[test]
fn a_partition_that_nobody_made_is_made_on_demand() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    let half_a_year_ago: String = client
        .query_one(
            "SELECT to_char(now() AT TIME ZONE 'UTC' - interval '6 months', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')",
            &[],
        )
        .expect("a time")
        .get(0);
    let partitions = "pg_inherits WHERE inhparent = 'events'::regclass";
    let before = count(&mut client, partitions);
    let event = |id: &str, at: &str| json!({"event_id": id, "service_name": "s", "event_type": "t", "payload": {}, "timestamp": at});
    let batch = json!({"events": [event("old", &half_a_year_ago), {"event_id": "new", "service_name": "s", "event_type": "t", "payload": {}}]});
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &batch);
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &2.into()), "{}", reply.text());
    assert_eq!(count(&mut client, partitions), before + 1);
    assert_eq!(count(&mut client, "events"), 2);
}

#[test]
fn a_dropped_partition_is_made_again() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    commit(&server, "before", 10);
    let table: String =
        client.query_one("SELECT tableoid::regclass::text FROM events LIMIT 1", &[]).expect("a row").get(0);
    client.batch_execute(&format!("DROP TABLE {table}")).expect("it is there");
    assert_eq!(commit(&server, "after", 10)["inserted"], 10);
    assert_eq!(count(&mut client, &table), 10);
}

#[test]
fn a_table_that_has_a_partitions_name_holds_up_only_the_batches_that_need_it() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    let month = "SELECT 'events_' || to_char(now() AT TIME ZONE 'UTC' - interval '6 months', 'YYYY_MM'),
                        to_char(now() AT TIME ZONE 'UTC' - interval '6 months', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    let row = client.query_one(month, &[]).expect("a month");
    let (table, at): (String, String) = (row.get(0), row.get(1));
    client.batch_execute(&format!("CREATE TABLE {table} (n int)")).expect("a table of somebody else");
    let event = json!({"event_id": "old", "service_name": "s", "event_type": "t", "payload": {}, "timestamp": at});
    let reply = post_json(&server.url("/v1/ingest/batch"), &json!({"events": [event], "batch_id": "old"}));
    assert_eq!(reply.status, 202, "{}", reply.text());
    let database_check = || get(&server.url("/v1/health")).json()["checks"]["database"].clone();
    wait_until("health tells what is stuck and why", WAIT_MAX, || {
        let check = database_check();
        check["stuck_batches"] == 1 && check["reason"].as_str().is_some_and(|reason| reason.contains(&table))
    });
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "degraded");
    for round in 0..3 {
        assert_eq!(commit(&server, &format!("new-{round}"), 10)["inserted"], 10);
    }
    let status = || get(&server.url("/v1/batch/old/status")).json();
    wait_until("its status says why it waits, between two attempts", WAIT_MAX, || {
        let status = status();
        status["status"] == "queued" && status["reason"].as_str().is_some_and(|reason| reason.contains(&table))
    });
    client.batch_execute(&format!("DROP TABLE {table}")).expect("it was in the way");
    wait_until_committed(&server, WAIT_MAX);
    assert_eq!(count(&mut client, "events"), 31);
    assert_eq!((&status()["status"], &status()["reason"]), (&"completed".into(), &serde_json::Value::Null));
    wait_until("nothing is stuck any more", WAIT_MAX, || database_check()["stuck_batches"].is_null());
}

#[test]
fn a_table_that_has_the_name_of_a_partition_ahead_is_told_and_nothing_else_happens() {
    let database = support::postgres::shared().create_database();
    let mut client = database.connect();
    let name = "SELECT 'events_' || to_char(now() AT TIME ZONE 'UTC' + interval '2 months', 'YYYY_MM')";
    let table: String = client.query_one(name, &[]).expect("a name").get(0);
    client.batch_execute(&format!("CREATE TABLE {table} (n int)")).expect("a table of somebody else");
    let server = Ingestd::builder().database(&database).start();
    assert!(server.log().contains(&format!("table {table} exists but is not a partition")), "{}", server.log());
    assert_eq!(commit(&server, "now", 10)["inserted"], 10);
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "healthy");
    let partitions = "pg_inherits WHERE inhparent = 'events'::regclass";
    assert_eq!(count(&mut client, partitions), 4, "the months around it are there");
}

#[test]
fn tables_that_are_gone_for_a_while_are_waited_for() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    commit(&server, "before", 10);
    for table in ["events", "ingest_batches"] {
        client.batch_execute(&format!("ALTER TABLE {table} RENAME TO put_away")).expect("it is there");
        let reply = post(&server.url("/v1/ingest/batch"), &[], body(table, None, 0, 10).as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
        wait_for_reason(&server, table);
        client.batch_execute(&format!("ALTER TABLE put_away RENAME TO {table}")).expect("it is there");
        wait_until_committed(&server, WAIT_MAX);
    }
    assert_eq!(count(&mut client, "events"), 30);
    wait_until("all is well", WAIT_MAX, || is_working(&server));
}

/// Waits until health gives a reason that contains `part`; the node takes traffic all the same.
fn wait_for_reason(server: &Ingestd, part: &str) {
    wait_until(&format!("health says {part:?}"), WAIT_MAX, || {
        let check = get(&server.url("/v1/health")).json()["checks"]["database"].clone();
        check["reason"].as_str().is_some_and(|reason| reason.contains(part))
    });
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "degraded");
    assert_eq!(get(&server.url("/readyz")).status, 200);
}

#[test]
fn a_wrong_schema_is_told_and_batches_land_once_it_is_right() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    commit(&server, "before", 10);

    client.batch_execute("ALTER TABLE events RENAME COLUMN metadata TO another").expect("it is there");
    let reply = post(&server.url("/v1/ingest/batch"), &[], body("without-a-column", None, 0, 10).as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
    wait_for_reason(&server, "metadata");
    client.batch_execute("ALTER TABLE events RENAME COLUMN another TO metadata").expect("it is there");
    wait_until_committed(&server, WAIT_MAX);

    // A newer ingestd has been here.
    client.batch_execute("INSERT INTO ingestd_migrations (version, name) VALUES (99, 'later')").expect("a row");
    wait_for_reason(&server, "version 99");
    commit(&server, "newer", 10);
    client.batch_execute("DELETE FROM ingestd_migrations WHERE version = 99").expect("a row");

    // Another database altogether, an empty one.
    client.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").expect("it is ours");
    let reply = post(&server.url("/v1/ingest/batch"), &[], body("after", None, 0, 10).as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
    wait_until_committed(&server, WAIT_MAX);
    assert_eq!(count(&mut client, "events"), 10, "the schema was made again");
    wait_until("all is well", WAIT_MAX, || get(&server.url("/v1/health")).json()["status"] == "healthy");
}

#[test]
fn too_few_connections_slow_down_and_lose_nothing() {
    let seed = seed("too_few_connections");
    // Three are for the superuser, which ingestd is here; the test itself needs some, too.
    let postgres = TestPostgres::start_private(&[("max_connections", "8"), ("superuser_reserved_connections", "0")]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    // Take what the pool's five have left.
    let mut taken: Vec<Client> = Vec::new();
    while let Ok(client) = Client::connect(&database.url, postgres::NoTls) {
        taken.push(client);
    }
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'ingestd'";
    let mut first = taken.pop().expect("one connection at least");
    first.execute(terminate, &[]).expect("the server's sessions");
    // Whatever comes free is taken at once: the server has no connection, or few.
    while let Ok(client) = Client::connect(&database.url, postgres::NoTls) {
        taken.push(client);
    }
    let outcome = Load::start(&server, options(10_000, seed)).finish();
    assert_eq!((outcome.refused, outcome.retries), (0, 0), "no client noticed");
    drop(taken);
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut first);
}

/// The lines of `log` that an operator sees, without their times.
fn visible(log: &str) -> Vec<&str> {
    let lines = log.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.trim_start()));
    lines.filter(|line| ["INFO", "WARN", "ERROR"].iter().any(|level| line.starts_with(level))).collect()
}

fn assert_begins_and_ends_once(log: &str) {
    let [begins, ends] = visible(log)[..] else { panic!("two lines were expected:\n{log}") };
    assert!(begins.starts_with("WARN") && begins.contains("PostgreSQL is not accepting batches"), "{log}");
    assert!(ends.starts_with("INFO") && ends.contains("PostgreSQL is accepting batches again"), "{log}");
}

#[test]
fn an_outage_is_two_lines_of_the_log_whatever_is_met_in_it() {
    let seed = seed("an_outage_is_two_lines");
    let mut postgres = TestPostgres::start_private(&[]);
    let (database, proxy) = (postgres.create_database(), Proxy::start(postgres.port()));
    let server = behind(&proxy, &database).start();
    let load = Load::start(&server, options(60_000, seed));
    load.wait_for_acked(5_000, WAIT_MAX);
    let before = server.log().len();

    let reason = || get(&server.url("/v1/health")).json()["checks"]["database"]["reason"].as_str().map(str::to_owned);
    let mut met = BTreeSet::new();
    let mut wait_for_another = |what: &str| {
        wait_until(&format!("{what}: another reason"), WAIT_MAX, || reason().is_some_and(|reason| met.insert(reason)));
    };
    postgres.kill9();
    wait_for_another("killed");
    proxy.set_mode(Mode::Refuse);
    proxy.cut();
    wait_for_another("connections are closed at once");
    proxy.set_mode(Mode::Stall);
    let tried = proxy.connections();
    wait_until("somebody tries while nothing is answered", WAIT_MAX, || proxy.connections() > tried);
    proxy.cut();
    proxy.set_mode(Mode::Forward);
    postgres.start();
    let acked = load.acked_events();
    load.wait_for_acked(acked + 5_000, WAIT_MAX);
    wait_until("all is well", WAIT_MAX, || is_working(&server));
    // One session's fault is no outage.
    let mut client = connect(&database.url);
    for _ in 0..4 {
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name = 'ingestd'";
        client.execute(terminate, &[]).expect("the server's sessions");
        let acked = load.acked_events();
        load.wait_for_acked(acked + 2_000, WAIT_MAX);
    }
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut client);
    assert_begins_and_ends_once(&server.log()[before..]);
}

#[test]
fn an_outage_without_traffic_is_two_lines_of_the_log() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    commit(&server, "before", 10);
    let before = server.log().len();
    postgres.kill9();
    wait_until("the server notices", WAIT_MAX, || !is_working(&server));
    server.wait_for_log("PostgreSQL is not accepting batches", WAIT_MAX);
    postgres.start();
    wait_until("all is well", WAIT_MAX, || is_working(&server));
    // Over what is left of the pool's sessions from before.
    commit(&server, "after", 10);
    assert_begins_and_ends_once(&server.log()[before..]);
}

/// A server that reaches its database through a proxy.
fn behind(proxy: &Proxy, database: &support::postgres::TestDatabase) -> Builder {
    Ingestd::builder().database(database).env("DATABASE_URL", database.url_through(proxy.port()))
}

#[test]
fn a_commit_whose_answer_never_came_lands_once() {
    let postgres = support::postgres::shared();
    let database = postgres.create_database();
    let proxy = Proxy::start(postgres.port());
    let server = behind(&proxy, &database).start();
    let mut client = database.connect();
    for round in 0..5 {
        proxy.cut_after_reply_to(COMMIT);
        let tag = format!("answered-nobody-{round}");
        let answer = commit(&server, &tag, 100);
        assert_eq!(proxy.sprung(), round + 1, "the COMMIT was cut off");
        assert_eq!(
            (&answer["status"], &answer["inserted"], &answer["duplicates"]),
            (&"completed".into(), &100.into(), &0.into())
        );
        let status = get(&server.url(&format!("/v1/batch/{tag}/status"))).json();
        assert_eq!((&status["status"], &status["inserted"]), (&"completed".into(), &100.into()), "{status}");
        assert_eq!(count(&mut client, "events"), 100 * i64::from(round + 1));
    }
    assert_eq!(count(&mut client, "ingest_batches WHERE inserted = events AND duplicates = 0"), 5);
}

#[test]
fn a_commit_that_never_arrived_is_done_again() {
    let postgres = support::postgres::shared();
    let database = postgres.create_database();
    let proxy = Proxy::start(postgres.port());
    let server = behind(&proxy, &database).start();
    proxy.cut_before(COMMIT);
    assert_eq!(commit(&server, "again", 100)["inserted"], 100);
    assert_eq!(proxy.sprung(), 1);
    assert_eq!(count(&mut database.connect(), "events"), 100);
}

#[test]
fn cuts_stalls_and_refusals_under_load_lose_nothing() {
    let seed = seed("cuts_stalls_and_refusals");
    let postgres = support::postgres::shared();
    let database = postgres.create_database();
    let proxy = Proxy::start(postgres.port());
    let server = behind(&proxy, &database).start();
    let load = Load::start(&server, options(40_000, seed));
    for round in 1..=6 {
        load.wait_for_acked(round * 5_000, WAIT_MAX);
        match round % 3 {
            0 => {
                proxy.set_mode(Mode::Refuse);
                proxy.cut();
                wait_until("the server notices", WAIT_MAX, || !is_working(&server));
            }
            1 => proxy.set_mode(Mode::Stall),
            _ => proxy.cut_after_reply_to(COMMIT),
        }
        let acked = load.acked_events();
        load.wait_for_acked(acked + 1_500, WAIT_MAX);
        proxy.set_mode(Mode::Forward);
        proxy.cut();
    }
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    let tally = outcome.assert_exactly_once(&mut database.connect());
    assert_eq!((tally.refused, tally.unknown), (0, 0), "no client noticed: {tally}");
}

#[test]
fn a_database_that_moved_is_followed() {
    let seed = seed("a_database_that_moved");
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let proxy = Proxy::start(1);
    proxy.redirect(postgres.port());
    let server = behind(&proxy, &database).start();
    let load = Load::start(&server, options(20_000, seed));
    load.wait_for_acked(5_000, WAIT_MAX);
    // As seen by the server: the old address is dead, the new one is the same data.
    proxy.redirect(1);
    proxy.cut();
    wait_until("the server notices", WAIT_MAX, || !is_working(&server));
    postgres.kill9();
    postgres.start();
    proxy.redirect(postgres.port());
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut connect(&database.url));
}

#[test]
fn a_demoted_primary_is_waited_for() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    let name = &database.name;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.batch_execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).expect("a setting");
    client.execute(terminate, &[]).expect("the server's sessions");
    let reply = post(&server.url("/v1/ingest/batch"), &[], body("read-only", Some("read-only"), 0, 10).as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
    wait_for_reason(&server, "read-only");
    // Several probes long: a probe that is answered does not make it healthy.
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        assert!(!is_working(&server), "{}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let recoveries = server.log().matches("PostgreSQL is accepting batches again").count();
    client.batch_execute("SET default_transaction_read_only = off").expect("a setting");
    client.batch_execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).expect("a setting");
    wait_until_committed(&server, WAIT_MAX);
    assert_eq!(count(&mut client, "events"), 10);
    assert_eq!(recoveries, 0, "not at every probe that is answered:\n{}", server.log());
}
