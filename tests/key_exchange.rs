//! Promise: `ingestd migrate` gives a large table the key of this version while nodes run. Whatever interrupts it, nothing is lost or
//! doubled, and the next run completes it.

mod support;

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ingestd::pg::migrate::SCHEMA_VERSION;
use ingestd::pg::partitions::{Month, ensure};
use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use postgres::Client;
use serde_json::json;
use support::contract::wait_until_completed;
use support::load::{Load, LoadOptions, seed, wait_until_committed};
use support::older_key::{MANY, fill, key_of, make_tables, older_database};
use support::pgbouncer::PgBouncer;
use support::postgres::{TestDatabase, shared};
use support::server::{Finished, Ingestd, post_json};
use support::{WAIT_MAX, wait_until};

const KEY: &str = "service_name,event_type,timestamp,event_id";
const OLDER_KEY: &str = "timestamp,event_id";

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT ({query})::bigint"), &[]).expect("a number").get(0)
}

fn migrate(database: &TestDatabase) -> Finished {
    Ingestd::run_to_exit(&["migrate"], &[("DATABASE_URL", &database.url)])
}

/// `ingestd migrate` under way, to be killed.
fn begin_migrate(database: &TestDatabase) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
    command.arg("migrate").env_clear().env("DATABASE_URL", &database.url);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    support::spawn(command).expect("the binary runs")
}

fn kill9(mut child: Child) {
    child.kill().and_then(|()| child.wait()).expect("it is our child");
}

/// Every partition has the key, and nothing of the exchange is left.
fn assert_exchanged(client: &mut Client) {
    assert_eq!(key_of(client, "events"), KEY);
    let tables = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass";
    let partitions: Vec<String> = client.query(tables, &[]).expect("read").iter().map(|row| row.get(0)).collect();
    for partition in &partitions {
        assert_eq!(key_of(client, partition), KEY, "{partition}");
    }
    let attached = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events_pkey'::regclass";
    assert_eq!(number(client, attached), partitions.len() as i64);
    let left = "SELECT count(*) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
                WHERE NOT i.indisvalid OR c.relname LIKE '%event_key' OR c.relname LIKE '%service_name_event_type_timestamp_idx'";
    assert_eq!(number(client, left), 0);
    assert_eq!(number(client, &format!("SELECT count(*) FROM ingestd_migrations WHERE version = {SCHEMA_VERSION}")), 1);
}

/// A transaction that a build of an index waits for, and no COPY.
fn old_snapshot(client: &mut Client) -> postgres::Transaction<'_> {
    let mut transaction = client.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start();
    let taken = transaction.as_mut().map(|transaction| transaction.query_one("SELECT 1", &[]).map(drop));
    taken.expect("begun").expect("a snapshot");
    transaction.expect("begun")
}

const BUILDING: &str = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()";
/// Waits while others vacuum or read, or stands before COPYs.
const EXCHANGING: &str = "SELECT count(*) FROM pg_locks WHERE relation = 'events'::regclass AND NOT granted AND mode = 'AccessExclusiveLock'";

#[test]
fn under_load_an_interrupted_exchange_is_completed_and_every_event_is_there_once() {
    let database = shared().create_database();
    let (mut client, mut other) = (database.connect(), database.connect());
    make_tables(&mut client);
    fill(&mut client, MANY, 0.05);
    let server = Ingestd::builder().database(&database).start();
    // Its sessions have statements of all ways for the older key.
    let hour = rfc3339(UnixMicros(wall_now().0 / 3_600_000_000 * 3_600_000_000));
    let timed = |id: &str| {
        json!({"batch_id": id, "events": (0..50).map(|number| json!({
        "event_id": format!("timed-{number}"), "service_name": "s", "event_type": "t", "payload": {},
        "timestamp": hour})).collect::<Vec<_>>()})
    };
    let commit = |id: &str| {
        let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &timed(id));
        assert!(matches!(reply.status, 200 | 202), "{}", reply.text());
        // On a busy machine it may take longer than an answer waits.
        let answer = wait_until_completed(&server, id);
        ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_u64().expect("a count"))
    };
    assert_eq!([commit("timed-1"), commit("timed-2")], [[50, 0, 0], [0, 50, 0]]);
    let options = LoadOptions {
        clients: 3,
        events: u64::MAX,
        seed: seed("under_load_an_interrupted_exchange"),
        priority_max: 10,
        pause: Duration::from_millis(30),
    };
    let load = Load::start(&server, options);
    load.wait_for_acked(5_000, WAIT_MAX);

    // Killed while PostgreSQL builds: it goes on without its client, and the next run waits for its turn.
    let snapshot = old_snapshot(&mut other);
    let child = begin_migrate(&database);
    wait_until("an index is being built", WAIT_MAX, || number(&mut client, BUILDING) == 1);
    kill9(child);
    let child = begin_migrate(&database);
    let turn = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock%'";
    wait_until("the next one waits", WAIT_MAX, || number(&mut client, turn) > 0);
    assert_eq!(number(&mut client, BUILDING), 1, "one at a time");
    kill9(child);
    // Its session is ended as well: an index that is not whole is left.
    let end =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_progress_create_index WHERE datname = current_database()";
    assert_eq!(number(&mut client, end), 1);
    let unfinished = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    wait_until("an unfinished index is left", WAIT_MAX, || {
        number(&mut client, BUILDING) == 0 && number(&mut client, unfinished) == 1
    });
    assert_eq!(key_of(&mut client, "events"), OLDER_KEY);
    assert_eq!(commit("timed-3"), [0, 50, 0], "duplicates meet the key, and no half of an index");
    snapshot.rollback().expect("ended");

    // Killed before the exchange: whoever reads events for long keeps it out, and COPYs go on between its attempts.
    let mut reader = other.transaction().expect("begun");
    // Of events alone: whoever reads a partition holds up the builds as well.
    reader.batch_execute("LOCK TABLE ONLY events IN ACCESS SHARE MODE").expect("as a SELECT does");
    let child = begin_migrate(&database);
    wait_until("it tries to lock events", WAIT_MAX, || number(&mut client, EXCHANGING) > 0);
    assert_eq!(number(&mut client, unfinished), 0, "it was built again");
    let before = load.acked_events();
    load.wait_for_acked(before + 5_000, WAIT_MAX);
    assert_eq!(commit("timed-4"), [0, 50, 0]);
    kill9(child);
    reader.rollback().expect("ended");
    assert_eq!(key_of(&mut client, "events"), OLDER_KEY);

    let done = migrate(&database);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("events was locked for"), "{done:?}");
    assert_exchanged(&mut client);
    assert_eq!(commit("timed-5"), [0, 50, 0], "statements for the older key are made anew");
    let before = load.acked_events();
    load.wait_for_acked(before + 5_000, WAIT_MAX);

    let outcome = load.stop();
    wait_until_committed(&server, WAIT_MAX);
    let by_tag = "SELECT split_part(event_id, '/', 1), count(*) FROM events WHERE service_name = 'load' GROUP BY 1";
    let rows = client.query(by_tag, &[]).expect("counted");
    let mut there: HashMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for batch in &outcome.batches {
        let rows = there.remove(&batch.tag).unwrap_or_default().unsigned_abs();
        assert!(rows == batch.events || !batch.acked && rows == 0, "{rows} rows of {batch:?}: {}", server.log());
    }
    assert_eq!(there, HashMap::new(), "rows that nobody sent");
    assert_eq!(number(&mut client, "SELECT count(*) FROM events WHERE service_name = 's'"), 50);
    assert_eq!(number(&mut client, "SELECT count(*) FROM events WHERE batch_id = 'filler'"), MANY);
    let counted =
        "SELECT coalesce(sum(duplicates + dead_lettered), 0) FROM ingest_batches WHERE batch_id NOT LIKE 'timed-%'";
    assert_eq!(number(&mut client, counted), 0);
    assert_eq!(number(&mut client, "SELECT count(*) FROM dead_letter_events"), 0);
}

#[test]
fn partitions_made_by_hand_get_the_key_whatever_they_are_called() {
    let database = shared().create_database();
    let mut client = database.connect();
    make_tables(&mut client);
    let long = format!("old_{}", "x".repeat(59));
    client
        .batch_execute(&format!(
            r#"CREATE SCHEMA "Archive";
               CREATE TABLE "Archive"."Year ""2020""" PARTITION OF events FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2021-01-01 00:00+00')
                   PARTITION BY RANGE ("timestamp");
               CREATE TABLE "Archive".first_half PARTITION OF "Archive"."Year ""2020"""
                   FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-07-01 00:00+00');
               CREATE TABLE "Archive".second_half PARTITION OF "Archive"."Year ""2020"""
                   FOR VALUES FROM ('2020-07-01 00:00+00') TO ('2021-01-01 00:00+00') PARTITION BY HASH (event_id);
               CREATE TABLE "Archive".a PARTITION OF "Archive".second_half FOR VALUES WITH (MODULUS 2, REMAINDER 0);
               CREATE TABLE "Archive".b PARTITION OF "Archive".second_half FOR VALUES WITH (MODULUS 2, REMAINDER 1);
               CREATE TABLE {long} PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2020-01-01 00:00+00');
               CREATE TABLE rest PARTITION OF events DEFAULT;
               ALTER TABLE events_{month} RENAME CONSTRAINT events_{month}_pkey TO "its key""#,
            month = Month::of(wall_now()).to_string().replace('-', "_")
        ))
        .expect("partitions");
    fill(&mut client, MANY, 0.05);
    for days in [1.0, 2500.0, 2300.0, 2200.0, 4000.0] {
        fill(&mut client, 300, days);
    }
    let rows = number(&mut client, "SELECT count(*) FROM events");
    let done = migrate(&database);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(key_of(&mut client, "events"), KEY);
    for table in [
        &*long,
        "rest",
        r#""Archive"."Year ""2020""""#,
        r#""Archive".first_half"#,
        r#""Archive".second_half"#,
        r#""Archive".b"#,
    ] {
        assert_eq!(key_of(&mut client, table), KEY, "{table}");
    }
    assert_eq!(
        number(&mut client, "SELECT count(*) FROM pg_constraint WHERE conname = 'its key' AND contype = 'p'"),
        1
    );
    assert_eq!(number(&mut client, "SELECT count(*) FROM pg_index WHERE NOT indisvalid"), 0);
    assert_eq!(number(&mut client, "SELECT count(*) FROM events"), rows);
    // The key works in each of them.
    let again = r#"INSERT INTO events SELECT * FROM events ON CONFLICT (service_name, event_type, "timestamp", event_id) DO NOTHING"#;
    assert_eq!(client.execute(again, &[]).expect("all are there"), 0);
}

#[test]
fn what_depends_on_the_key_is_named_and_nothing_is_changed() {
    let (database, mut client) = older_database();
    client
        .batch_execute(
            r#"CREATE TABLE notes (at timestamptz, id text COLLATE "C", note text,
                   CONSTRAINT about_an_event FOREIGN KEY (at, id) REFERENCES events ("timestamp", event_id));
               CREATE VIEW per_event AS SELECT "timestamp", event_id, payload, count(*) FROM events GROUP BY "timestamp", event_id"#,
        )
        .expect("objects of the user");
    let indexes = "SELECT count(*) FROM pg_index WHERE indrelid::regclass::text LIKE 'events%'";
    let before = number(&mut client, indexes);
    let refused = migrate(&database);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let said = refused.stderr.lines().last().unwrap_or_default();
    assert!(said.contains("about_an_event on table notes") && said.contains("view per_event"), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!((key_of(&mut client, "events"), number(&mut client, indexes)), (OLDER_KEY.to_owned(), before));
    // A server starts, and serves.
    let server = Ingestd::builder().database(&database).start();
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &support::contract::batch("b", 3));
    assert_eq!(reply.json()["inserted"], 3, "{}", reply.text());
    client.batch_execute("DROP TABLE notes; DROP VIEW per_event").expect("dropped");
    assert_eq!(migrate(&database).code, Some(0));
    assert_exchanged(&mut client);
}

#[test]
fn many_migrates_at_once_do_it_once() {
    let (database, mut client) = older_database();
    let done: Vec<Finished> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| migrate(&database))).collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    assert!(done.iter().all(|run| run.code == Some(0)), "{done:#?}");
    assert_eq!(done.iter().filter(|run| run.stdout.contains("event_key (schema")).count(), 1, "{done:#?}");
    assert_exchanged(&mut client);
}

#[test]
fn a_partition_that_comes_meanwhile_gets_the_key_too() {
    let database = shared().create_database();
    let (mut client, mut other) = (database.connect(), database.connect());
    make_tables(&mut client);
    fill(&mut client, MANY, 0.05);
    let snapshot = old_snapshot(&mut other);
    let child = begin_migrate(&database);
    wait_until("an index is being built", WAIT_MAX, || number(&mut client, BUILDING) == 1);
    // One with rows, that is to be indexed as well, and an empty one.
    let old = Month::of(wall_now()).plus(-8);
    ensure(&mut client, &[old, old.plus(1)]).expect("made");
    let days = (wall_now().0 - old.start().0) as f64 / 86_400e6 - 1.0;
    fill(&mut client, MANY, days);
    snapshot.rollback().expect("ended");
    let mut child = child;
    let ended = ingestd::sys::child::wait_at_most(&mut child, WAIT_MAX).expect("ours");
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    assert_exchanged(&mut client);
    assert_eq!(number(&mut client, "SELECT count(*) FROM events"), 2 * MANY);
}

#[test]
fn limits_of_the_role_do_not_end_a_build_half_way() {
    let database = shared().create_database();
    let (mut client, mut other) = (database.connect(), database.connect());
    make_tables(&mut client);
    fill(&mut client, MANY, 0.05);
    let limits = format!(
        "ALTER DATABASE {0} SET statement_timeout = '200ms'; ALTER DATABASE {0} SET lock_timeout = '100ms';
         ALTER DATABASE {0} SET default_transaction_read_only = on; ALTER DATABASE {0} SET default_transaction_isolation = 'serializable'",
        database.name
    );
    client.batch_execute(&limits).expect("limits of the database");
    let snapshot = old_snapshot(&mut other);
    let mut child = begin_migrate(&database);
    wait_until("the build waits", WAIT_MAX, || number(&mut client, BUILDING) == 1);
    // Longer than the role may take for a statement.
    let waited = "SELECT count(*) FROM pg_stat_activity a JOIN pg_stat_progress_create_index USING (pid)
                  WHERE clock_timestamp() - a.query_start > interval '600 milliseconds'";
    wait_until("it has waited for long", WAIT_MAX, || number(&mut client, waited) == 1);
    snapshot.rollback().expect("ended");
    let ended = ingestd::sys::child::wait_at_most(&mut child, WAIT_MAX).expect("ours");
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    assert_exchanged(&mut client);
}

#[test]
fn behind_a_transaction_pooler_a_large_table_asks_for_a_direct_connection() {
    let database = shared().create_database();
    let Some(bouncer) = PgBouncer::start(shared(), &[]) else { return };
    let mut client = database.connect();
    make_tables(&mut client);
    fill(&mut client, MANY, 0.05);
    let refused = Ingestd::run_to_exit(&["migrate"], &[("DATABASE_URL", &bouncer.url(&database))]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("connect 'ingestd migrate' to PostgreSQL itself"), "{refused:?}");
    let settings = [("DATABASE_URL", &*bouncer.url(&database)), ("MIGRATE_DATABASE_URL", &database.url)];
    let done = Ingestd::run_to_exit(&["migrate"], &settings);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_exchanged(&mut client);
}

#[test]
fn an_older_ingestd_goes_on_after_the_exchange() {
    let (database, mut client) = older_database();
    // What it has prepared, and prepares: src/pg/stage.rs of that version.
    let stage = "CREATE TEMPORARY TABLE ingest_stage ON COMMIT DELETE ROWS AS
                 SELECT event_id, service_name, event_type, payload, \"timestamp\", metadata, batch_id, priority, ingested_at FROM events WITH NO DATA";
    let columns =
        r#"event_id, service_name, event_type, payload, "timestamp", metadata, batch_id, priority, ingested_at"#;
    client.batch_execute(stage).expect("its table");
    let insert = client
        .prepare(&format!(
            "WITH landed AS (INSERT INTO events ({columns}) SELECT {columns} FROM ingest_stage \
             ORDER BY \"timestamp\", event_id ON CONFLICT DO NOTHING RETURNING batch_id) \
             SELECT batch_id, count(*) FROM landed GROUP BY batch_id"
        ))
        .expect("prepared");
    let mut land = |count: i64| {
        let mut transaction = client.transaction().expect("begun");
        let staged =
            format!("INSERT INTO ingest_stage SELECT {columns} FROM events WHERE batch_id = 'filler' LIMIT {count}");
        transaction.batch_execute(&staged).expect("staged");
        let more = r#"INSERT INTO ingest_stage VALUES ('older', 's', 't', '{}', now(), NULL, 'older', 0, now())"#;
        transaction.batch_execute(more).expect("staged");
        let landed: Vec<i64> = transaction.query(&insert, &[]).expect("landed").iter().map(|row| row.get(1)).collect();
        transaction.commit().expect("committed");
        landed
    };
    assert_eq!(land(10), [1]);
    assert_eq!(migrate(&database).code, Some(0));
    assert_eq!(land(10), [1], "duplicates are left out, a new event is stored");
    assert_exchanged(&mut database.connect());
}
