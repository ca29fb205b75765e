//! Monthly partitions are made and dropped whole, by however many nodes at once, while COPYs run.

mod support;

use std::io::Write;
use std::process::{Command, Output};
use std::sync::Barrier;

use ingestd::config::DatabaseUrl;
use ingestd::limits::PARTITIONS_PER_TRANSACTION_MAX;
use ingestd::pg::connect::Connector;
use ingestd::pg::migrate::migrate;
use ingestd::pg::partitions::{Month, PartitionError, cleanup, ensure, ensure_ahead, list};
use ingestd::types::UnixMicros;
use postgres::Client;
use support::postgres::{TestDatabase, shared};
use support::{WAIT_MAX, wait_until};

fn connect(database: &TestDatabase) -> Client {
    let url = DatabaseUrl::parse(&database.url).expect("a valid URL");
    Connector::new(&url).expect("a connector").connect().expect("a connection")
}

fn migrated() -> (TestDatabase, Client) {
    let database = shared().create_database();
    let mut client = connect(&database);
    migrate(&mut client).expect("migrated");
    (database, client)
}

fn month(text: &str) -> Month {
    Month::parse(text).expect("a month")
}

/// Noon of the 15th.
fn within(text: &str) -> UnixMicros {
    UnixMicros(month(text).start().0 + (14 * 24 + 12) * 3_600_000_000)
}

fn names(client: &mut Client) -> Vec<String> {
    list(client).expect("listed").into_iter().map(|partition| partition.name).collect()
}

fn insert(client: &mut Client, id: &str, timestamp: &str) -> Result<u64, postgres::Error> {
    let insert = r#"INSERT INTO events (event_id, service_name, event_type, payload, "timestamp", batch_id)
                    VALUES ($1, 's', 't', '{}', $2::text::timestamptz, 'b')"#;
    client.execute(insert, &[&id, &timestamp])
}

fn ingestd(database: &TestDatabase, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
    command.env_clear().args(arguments).env("DATABASE_URL", &database.url).output().expect("started")
}

#[test]
fn partitions_are_made_from_the_month_before_to_the_months_ahead() {
    let (_database, mut client) = migrated();
    let made = ensure_ahead(&mut client, within("2026-11"), 3).expect("made");
    let expected = ["2026_10", "2026_11", "2026_12", "2027_01", "2027_02"].map(|name| format!("events_{name}"));
    assert_eq!(made, expected);
    assert!(ensure_ahead(&mut client, within("2026-11"), 3).expect("there").is_empty());
    assert_eq!(names(&mut client), expected);
}

#[test]
fn partitions_of_many_years_are_made_a_bounded_number_at_a_time() {
    let (_database, mut client) = migrated();
    let first = month("2016-01");
    let months: Vec<_> = (0..131).map(|offset| first.plus(offset)).collect();
    assert_eq!(ensure(&mut client, &months).expect("made").len(), months.len());
    assert_eq!(names(&mut client).len(), months.len());
    // Attaching is the last change of a partition's row in the catalogue, so xmin is the transaction that made it.
    let counted = client
        .query("SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r' GROUP BY xmin::text", &[])
        .expect("counted");
    let counts: Vec<i64> = counted.iter().map(|row| row.get(0)).collect();
    assert!(counts.iter().all(|&count| count <= PARTITIONS_PER_TRANSACTION_MAX as i64), "{counts:?}");
    assert_eq!(counts.iter().sum::<i64>(), months.len() as i64);
    assert_eq!(ensure(&mut client, &months).expect("nothing to do"), Vec::<String>::new());
}

#[test]
fn bounds_are_months_in_utc_whatever_the_session_says() {
    let (_database, mut client) = migrated();
    client.batch_execute("SET TimeZone = 'Pacific/Auckland'; SET DateStyle = 'SQL, DMY'").expect("set");
    ensure(&mut client, &[month("2026-10"), month("2026-11")]).expect("made");
    let found = list(&mut client).expect("listed");
    assert_eq!((found[0].start, found[0].end), (Some(month("2026-10").start()), Some(month("2026-11").start())));
    insert(&mut client, "last", "2026-10-31T23:59:59.999999Z").expect("in October");
    insert(&mut client, "first", "2026-11-01T00:00:00Z").expect("in November");
    let query = "SELECT string_agg(event_id || ' ' || tableoid::regclass, ', ' ORDER BY \"timestamp\") FROM events";
    let placed: String = client.query_one(query, &[]).expect("read").get(0);
    assert_eq!(placed, "last events_2026_10, first events_2026_11");
    assert!(insert(&mut client, "none", "2026-12-01T00:00:00Z").is_err());
}

#[test]
fn ten_nodes_make_the_same_partitions_once() {
    let (database, mut client) = migrated();
    let barrier = Barrier::new(10);
    let made: usize = std::thread::scope(|scope| {
        let node = || {
            let mut client = connect(&database);
            barrier.wait();
            ensure_ahead(&mut client, within("2026-11"), 2).expect("made").len()
        };
        let nodes: Vec<_> = (0..10).map(|_| scope.spawn(node)).collect();
        nodes.into_iter().map(|node| node.join().expect("no panic")).sum()
    });
    assert_eq!(made, 4);
    assert_eq!(names(&mut client).len(), 4);
}

#[test]
fn a_partition_is_made_while_a_copy_is_under_way() {
    let (database, mut other) = migrated();
    ensure(&mut other, &[month("2026-11")]).expect("made");
    let mut copying = connect(&database);
    let mut transaction = copying.transaction().expect("begun");
    let copy = r#"COPY events (event_id, service_name, event_type, payload, "timestamp", batch_id) FROM STDIN"#;
    let mut writer = transaction.copy_in(copy).expect("copying");
    writer.write_all(b"e\ts\tt\t{}\t2026-11-01T00:00:00Z\tb\n").expect("written");
    writer.flush().expect("sent");
    assert_eq!(ensure(&mut other, &[month("2026-12")]).expect("not blocked"), ["events_2026_12"]);
    assert_eq!(writer.finish().expect("copied"), 1);
    transaction.commit().expect("committed");
}

#[test]
fn a_partition_made_by_hand_counts_for_the_months_that_it_covers() {
    let (_database, mut client) = migrated();
    let quarter = "CREATE TABLE quarter PARTITION OF events FOR VALUES FROM ('2026-10-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')";
    client.batch_execute(quarter).expect("made");
    let made = ensure_ahead(&mut client, within("2026-11"), 2).expect("made");
    assert_eq!(made, ["events_2027_01"]);
}

#[test]
fn a_table_that_someone_detached_is_neither_attached_nor_dropped() {
    let (_database, mut client) = migrated();
    ensure(&mut client, &[month("2025-01")]).expect("made");
    insert(&mut client, "kept", "2025-01-01T00:00:00Z").expect("inserted");
    client.batch_execute("ALTER TABLE events DETACH PARTITION events_2025_01").expect("detached");
    let error = ensure(&mut client, &[month("2025-01")]).expect_err("must be refused");
    assert!(matches!(error.error, PartitionError::NameTaken { .. }), "{error}");
    assert!(cleanup(&mut client, within("2026-11"), 3, false).expect("nothing to do").is_empty());
    let kept: i64 = client.query_one("SELECT count(*) FROM events_2025_01", &[]).expect("there").get(0);
    assert_eq!(kept, 1);
}

#[test]
fn cleanup_drops_whole_months_that_are_older_and_only_those() {
    let (_database, mut client) = migrated();
    let months: Vec<_> = (0..6).map(|offset| month("2026-06").plus(offset)).collect();
    ensure(&mut client, &months).expect("made");
    insert(&mut client, "old", "2026-06-01T00:00:00Z").expect("inserted");
    client.batch_execute("ANALYZE").expect("analysed");
    let would = cleanup(&mut client, within("2026-11"), 3, true).expect("dry run");
    assert_eq!(names(&mut client).len(), 6);
    let dropped = cleanup(&mut client, within("2026-11"), 3, false).expect("dropped");
    assert_eq!(dropped, would);
    let shown: Vec<_> = dropped.iter().map(|partition| (partition.name.as_str(), partition.rows_estimate)).collect();
    assert_eq!(shown, [("events_2026_06", 1), ("events_2026_07", 0)]);
    assert_eq!(names(&mut client), ["events_2026_08", "events_2026_09", "events_2026_10", "events_2026_11"]);
    assert!(cleanup(&mut client, within("2026-11"), 3, false).expect("nothing left").is_empty());
    let gone: bool = client.query_one("SELECT to_regclass('events_2026_06') IS NULL", &[]).expect("asked").get(0);
    assert!(gone);
}

#[test]
fn nodes_that_clean_up_at_once_do_not_stumble_over_each_other() {
    let (database, mut client) = migrated();
    let months: Vec<_> = (0..6).map(|offset| month("2026-01").plus(offset)).collect();
    ensure(&mut client, &months).expect("made");
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = connect(&database);
                barrier.wait();
                cleanup(&mut client, within("2026-11"), 3, false).expect("dropped");
            });
        }
    });
    assert_eq!(names(&mut client), Vec::<String>::new());
}

#[test]
fn a_cleanup_that_was_interrupted_is_completed() {
    let (_database, mut client) = migrated();
    ensure(&mut client, &[month("2025-01"), month("2025-02")]).expect("made");
    for name in ["events_2025_01", "events_2025_02"] {
        let marked = format!("COMMENT ON TABLE {name} IS 'ingestd: expired, being dropped'");
        client.batch_execute(&marked).expect("marked");
        client.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {name}")).expect("detached");
    }
    // Late events want the month again: the leftover makes room.
    assert_eq!(ensure(&mut client, &[month("2025-01")]).expect("made"), ["events_2025_01"]);
    insert(&mut client, "late", "2025-01-01T00:00:00Z").expect("inserted");
    // The next cleanup removes the other leftover, and the month that is too old in any case.
    let dropped = cleanup(&mut client, within("2026-11"), 3, false).expect("dropped");
    assert_eq!(dropped.len(), 1);
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'events_2025%'";
    assert_eq!(client.query_one(left, &[]).expect("counted").get::<_, i64>(0), 0);
}

/// Begins to detach partition `name` and is cancelled in the second half. That comes when a transaction that has read
/// events makes it wait; it goes on until what is returned is dropped.
fn interrupt_detach(database: &TestDatabase, client: &mut Client, name: &str) -> Client {
    let mut reader = connect(database);
    reader.batch_execute("BEGIN; SELECT 1 FROM events").expect("read");
    client.batch_execute("SET lock_timeout = '50ms'").expect("set");
    let cancelled = client.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {name} CONCURRENTLY"));
    assert!(cancelled.is_err());
    client.batch_execute("RESET lock_timeout").expect("reset");
    reader
}

#[test]
fn a_cleanup_completes_an_interrupted_one_before_it_detaches_anything_else() {
    let (database, mut client) = migrated();
    ensure(&mut client, &[month("2025-01"), month("2025-02"), month("2025-03")]).expect("made");
    client.batch_execute("COMMENT ON TABLE events_2025_02 IS 'ingestd: expired, being dropped'").expect("marked");
    drop(interrupt_detach(&database, &mut client, "events_2025_02"));
    assert_eq!(cleanup(&mut client, within("2026-11"), 3, false).expect("completed").len(), 3);
    assert_eq!(names(&mut client), Vec::<String>::new());
}

#[test]
fn a_cleanup_waits_while_another_partition_is_being_detached() {
    let (database, mut client) = migrated();
    ensure(&mut client, &[month("2025-01"), month("2026-10")]).expect("made");
    drop(interrupt_detach(&database, &mut client, "events_2026_10"));
    std::thread::scope(|scope| {
        let cleaning =
            scope.spawn(|| cleanup(&mut connect(&database), within("2026-11"), 3, false).map(|old| old.len()));
        // It has marked the partition, and is refused.
        let marked = |client: &mut Client| list(client).expect("listed").iter().any(|partition| partition.marked);
        wait_until("the partition is marked", WAIT_MAX, || marked(&mut client));
        // The two may wait for each other, which PostgreSQL ends by an error for one of them.
        let mut complete = || client.batch_execute("ALTER TABLE events DETACH PARTITION events_2026_10 FINALIZE");
        assert!((0..5).any(|_| complete().is_ok()));
        assert_eq!(cleaning.join().expect("no panic").expect("dropped"), 1);
    });
    assert_eq!(names(&mut client), Vec::<String>::new());
}

#[test]
fn a_deadlock_with_someone_elses_detaching_is_tried_again() {
    let (_database, mut client) = migrated();
    ensure(&mut client, &[month("2025-01")]).expect("made");
    // What reads the bounds of partitions is refused as a deadlock's victim would be, the first two times.
    client
        .batch_execute(
            "CREATE SEQUENCE reads;
             CREATE FUNCTION public.pg_get_expr(bound pg_node_tree, relation oid) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN
                 IF nextval('reads') <= 2 THEN
                     RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected';
                 END IF;
                 RETURN pg_catalog.pg_get_expr(bound, relation);
             END $$;
             SET search_path = public, pg_catalog",
        )
        .expect("shadowed");
    assert_eq!(ensure(&mut client, &[month("2025-02")]).expect("made"), ["events_2025_02"]);
    client.batch_execute("ALTER SEQUENCE reads RESTART").expect("again");
    assert_eq!(list(&mut client).expect("listed").len(), 2);
    client.batch_execute("ALTER SEQUENCE reads RESTART").expect("again");
    assert_eq!(cleanup(&mut client, within("2026-11"), 3, false).expect("dropped").len(), 2);
    assert!(client.query_one("SELECT last_value FROM reads", &[]).expect("read").get::<_, i64>(0) > 2);
}

#[test]
fn a_detach_that_was_cancelled_is_completed_if_it_was_a_cleanups() {
    let (database, mut client) = migrated();
    for marked in [true, false] {
        ensure(&mut client, &[month("2026-10")]).expect("made");
        if marked {
            client
                .batch_execute("COMMENT ON TABLE events_2026_10 IS 'ingestd: expired, being dropped'")
                .expect("marked");
        }
        let reading = interrupt_detach(&database, &mut client, "events_2026_10");
        let error = ensure(&mut client, &[month("2026-10")]).expect_err("must be refused");
        assert!(matches!(error.error, PartitionError::Detaching { .. }), "{error}");
        drop(reading);
        // The month is not old: only the mark says that a cleanup wanted it gone.
        let done = cleanup(&mut client, within("2026-11"), 3, false).expect("completed");
        assert_eq!((done.len(), names(&mut client).len()), if marked { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn the_commands_create_list_and_clean_up() {
    let (database, _client) = migrated();
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let created = ingestd(&database, &["partitions", "create", "--month", "2020-02", "--month", "2999-12"]);
    assert_eq!(said(&created), "created events_2020_02\ncreated events_2999_12\n");
    let again = ingestd(&database, &["partitions", "create", "--month", "2020-02"]);
    assert_eq!(said(&again), "already present: events_2020_02\n");
    let listed = said(&ingestd(&database, &["partitions", "list"]));
    assert!(listed.contains("events_2020_02  2020-02-01T00:00:00Z  2020-03-01T00:00:00Z"), "{listed}");
    let dry = said(&ingestd(&database, &["partitions", "cleanup", "--older-than", "3months", "--dry-run"]));
    assert!(dry.starts_with("would drop events_2020_02 (about 0 rows"), "{dry}");
    let real = said(&ingestd(&database, &["partitions", "cleanup", "--older-than", "3months"]));
    assert!(real.starts_with("dropped events_2020_02") && real.lines().count() == 1, "{real}");
    let empty = said(&ingestd(&database, &["partitions", "cleanup", "--older-than", "3months"]));
    assert!(empty.starts_with("no partition ends before "), "{empty}");
}

#[test]
fn commands_on_an_empty_database_ask_for_the_migration() {
    let database = shared().create_database();
    let output = ingestd(&database, &["partitions", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run 'ingestd migrate'"));
}
