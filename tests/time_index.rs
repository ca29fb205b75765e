//! Promise: queries by time alone have the index that `TIME_INDEX` says: from the first start on, after `ingestd migrate`, and in
//! partitions that come later. What the user made is never dropped.

mod support;

use ingestd::limits::TIME_INDEX_PAGES_PER_RANGE;
use ingestd::pg::partitions::{Month, ensure};
use ingestd::sys::clock::wall_now;
use postgres::Client;
use support::older_key::{make_tables, older_database};
use support::postgres::{TestDatabase, shared};
use support::server::{Finished, Ingestd};

fn run(database: &TestDatabase, arguments: &[&str], kind: &str) -> Finished {
    Ingestd::run_to_exit(arguments, &[("DATABASE_URL", &database.url), ("TIME_INDEX", kind)])
}

/// Methods of the indexes on `"timestamp"` alone of `table`, with their options.
fn indexes_of(client: &mut Client, table: &str) -> Vec<String> {
    let query = "SELECT m.amname || coalesce(' ' || array_to_string(c.reloptions, ','), '')
                 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
                 WHERE i.indrelid = $1::text::regclass AND i.indisvalid AND pg_get_indexdef(i.indexrelid) ~ '[(]\"timestamp\"[)]'
                 ORDER BY 1";
    client.query(query, &[&table]).expect("read").iter().map(|row| row.get(0)).collect()
}

fn brin() -> String {
    format!("brin pages_per_range={TIME_INDEX_PAGES_PER_RANGE}")
}

fn this_month() -> String {
    Month::of(wall_now()).partition_name()
}

#[test]
fn a_fresh_database_has_the_index_of_the_setting_from_the_first_start_on() {
    for (kind, expected) in [(None, vec![brin()]), (Some("btree"), vec!["btree".to_owned()]), (Some("none"), vec![])] {
        let database = shared().create_database();
        let builder = Ingestd::builder().database(&database);
        let server = kind.map_or(builder.clone(), |kind| builder.env("TIME_INDEX", kind)).start();
        let mut client = database.connect();
        assert_eq!(indexes_of(&mut client, "events"), expected, "{kind:?}: {}", server.log());
        assert_eq!(indexes_of(&mut client, &this_month()), expected, "{kind:?}");
        let later = Month::of(wall_now()).plus(30);
        ensure(&mut client, &[later]).expect("made");
        assert_eq!(indexes_of(&mut client, &later.partition_name()), expected, "{kind:?}: it comes from events");
    }
}

#[test]
fn migrate_builds_it_while_nodes_run_and_changes_it_with_the_setting() {
    let (database, mut client) = older_database();
    ingestd::pg::migrate::migrate(&mut client).expect("what a server does at its start");
    client
        .batch_execute(
            "CREATE TABLE early PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2001-01-01 00:00+00') PARTITION BY HASH (event_id);
             CREATE TABLE early_0 PARTITION OF early FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        )
        .expect("a partition of a partition");
    for (kind, expected) in
        [("brin", vec![brin()]), ("btree", vec!["btree".to_owned()]), ("none", vec![]), ("brin", vec![brin()])]
    {
        let checked = run(&database, &["check-config", "--connect"], kind);
        assert!(checked.stdout.contains(&format!("TIME_INDEX={kind}")), "{checked:?}");
        let done = run(&database, &["migrate"], kind);
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.stdout.ends_with(&format!("index of events on \"timestamp\": {kind}\n")), "{done:?}");
        for table in ["events", &this_month(), "early", "early_0"] {
            assert_eq!(indexes_of(&mut client, table), expected, "{kind}: {table}");
        }
        let again = run(&database, &["migrate"], kind);
        assert!(again.code == Some(0) && !again.stdout.contains("index"), "{again:?}");
        let checked = run(&database, &["check-config", "--connect"], kind);
        assert!(!checked.stdout.contains("TIME_INDEX="), "{checked:?}");
    }
    // A start changes nothing of it; the log says what to do.
    let server = Ingestd::builder().database(&database).env("TIME_INDEX", "btree").start();
    assert!(
        server.log().contains("TIME_INDEX=btree, but the index of events on \\\"timestamp\\\" is brin")
            || server.log().contains("TIME_INDEX=btree, but the index of events on \"timestamp\" is brin"),
        "{}",
        server.log()
    );
    assert_eq!(indexes_of(&mut client, "events"), [brin()]);
}

#[test]
fn the_users_own_index_serves_and_stays() {
    let database = shared().create_database();
    let mut client = database.connect();
    make_tables(&mut client);
    client.batch_execute(r#"CREATE INDEX mine ON events ("timestamp")"#).expect("an index of the user's own");
    for (kind, expected) in [
        ("btree", vec!["btree".to_owned()]),
        ("brin", vec![brin(), "btree".to_owned()]),
        ("none", vec!["btree".to_owned()]),
    ] {
        assert_eq!(run(&database, &["migrate"], kind).code, Some(0));
        assert_eq!(indexes_of(&mut client, "events"), expected, "{kind}");
    }
}

#[test]
fn the_latest_events_of_all_services_are_read_by_the_btree() {
    let (database, mut client) = older_database();
    assert_eq!(run(&database, &["migrate"], "btree").code, Some(0));
    client.batch_execute("VACUUM ANALYZE events").expect("ours");
    let query = r#"EXPLAIN SELECT payload FROM events ORDER BY "timestamp" DESC LIMIT 100"#;
    let plan: Vec<String> = client.query(query, &[]).expect("planned").iter().map(|row| row.get(0)).collect();
    assert!(plan.iter().any(|line| line.contains("timestamp_btree")), "{plan:#?}");
}
