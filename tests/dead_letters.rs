//! Dead letters are replayed exactly once, digit for digit, and stay where PostgreSQL refuses them again.

mod support;

use std::process::{Command, Output};
use std::sync::Barrier;

use ingestd::config::DatabaseUrl;
use ingestd::pg::connect::Connector;
use ingestd::pg::dead_letter::{self, DeadLetterError, ReplayReport, export, list};
use ingestd::pg::migrate::migrate;
use ingestd::pg::partitions::{Month, ensure};
use postgres::Client;
use support::postgres::{TestDatabase, shared};

fn connect(database: &TestDatabase) -> Client {
    let url = DatabaseUrl::parse(&database.url).expect("a valid URL");
    Connector::new(&url).expect("a connector").connect().expect("a connection")
}

fn migrated() -> (TestDatabase, Client) {
    let database = shared().create_database();
    let mut client = connect(&database);
    migrate(&mut client).expect("migrated");
    ensure(&mut client, &[Month::parse("2026-11").expect("a month")]).expect("made");
    (database, client)
}

/// A dead letter as a flusher writes it; returns its number.
fn bury(client: &mut Client, event_id: &str, timestamp: &str, event: &str) -> i64 {
    let insert = r#"INSERT INTO dead_letter_events
        (owner, batch_id, priority, event_id, "timestamp", event, sqlstate, message, received_at, node)
        VALUES ('', 'batch-1', 7, $1, $2::text::timestamptz, $3, '22P02', 'refused', now(), 'test') RETURNING id"#;
    client.query_one(insert, &[&event_id, &timestamp, &event]).expect("buried").get(0)
}

fn event(id: &str, payload: &str) -> String {
    format!(
        r#"{{"event_id": "{id}", "service_name": "s", "event_type": "t", "payload": {payload}, "metadata": {{"m": 1.0}}}}"#
    )
}

fn count(client: &mut Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).expect("counted").get(0)
}

fn ingestd(database: &TestDatabase, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
    command.env_clear().args(arguments).env("DATABASE_URL", &database.url).output().expect("started")
}

fn replay(client: &mut Client, id: Option<i64>) -> Result<ReplayReport, DeadLetterError> {
    dead_letter::replay(client, id, &mut |_| {})
}

#[test]
fn a_replayed_payload_equals_postgresqls_own_cast_of_the_text() {
    let (_database, mut client) = migrated();
    let payload =
        r#"{"n": 0.1000000000000000055511151231257827, "big": 1e400, "i": 1234567890123456789012345, "s": "\u00e4\n"}"#;
    bury(&mut client, "e", "2026-11-01T00:00:00Z", &event("e", payload));
    assert_eq!(replay(&mut client, None).expect("replayed").inserted, 1);
    let query = "SELECT payload = $1::text::jsonb AND payload::text = $1::text::jsonb::text
                        AND metadata::text = '{\"m\": 1.0}' AND batch_id = 'batch-1' AND priority = 7
                 FROM events";
    assert!(client.query_one(query, &[&payload]).expect("one row").get::<_, bool>(0));
    assert_eq!(replay(&mut client, None).expect("nothing left"), ReplayReport::default());
}

#[test]
fn replays_at_once_insert_every_event_once() {
    let (database, mut client) = migrated();
    for number in 0..60 {
        let id = format!("e{number}");
        bury(&mut client, &id, "2026-11-01T00:00:00Z", &event(&id, "{}"));
    }
    let barrier = Barrier::new(4);
    let (mut inserted, mut duplicates) = (0, 0);
    std::thread::scope(|scope| {
        let one = || {
            let mut client = connect(&database);
            barrier.wait();
            replay(&mut client, None).expect("replayed")
        };
        for node in (0..4).map(|_| scope.spawn(one)).collect::<Vec<_>>() {
            let report = node.join().expect("no panic");
            inserted += report.inserted;
            duplicates += report.duplicates;
        }
    });
    assert_eq!((inserted, duplicates), (60, 0));
    assert_eq!(count(&mut client, "events"), 60);
    assert_eq!(count(&mut client, "dead_letter_events WHERE replayed_at IS NULL"), 0);
}

#[test]
fn an_event_that_is_there_already_is_a_duplicate() {
    let (_database, mut client) = migrated();
    for _ in 0..2 {
        bury(&mut client, "same", "2026-11-01T00:00:00Z", &event("same", "{}"));
    }
    let report = replay(&mut client, None).expect("replayed");
    assert_eq!((report.inserted, report.duplicates), (1, 1));
}

#[test]
fn what_is_refused_again_stays_with_the_new_reason_and_holds_up_nobody() {
    let (_database, mut client) = migrated();
    let bad = bury(&mut client, "bad", "2026-11-01T00:00:00Z", &event("bad", r#"{"z": "\u0000"}"#));
    let nameless = bury(&mut client, "nameless", "2026-11-01T00:00:00Z", r#"{"payload": {}}"#);
    bury(&mut client, "good", "2026-11-01T00:00:00Z", &event("good", "{}"));
    let report = replay(&mut client, None).expect("replayed");
    assert_eq!(report.inserted, 1);
    assert_eq!(report.refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [bad, nameless]);
    let left = list(&mut client, false, 10).expect("listed");
    let reasons: Vec<_> = left.iter().map(|letter| (letter.id, letter.sqlstate.as_str())).collect();
    assert_eq!(reasons, [(bad, "22P05"), (nameless, "23502")]);
    assert!(left[0].message.contains("unsupported Unicode escape"), "{}", left[0].message);
    assert_eq!(list(&mut client, true, 10).expect("listed").len(), 3);
}

#[test]
fn a_missing_partition_is_made() {
    let (_database, mut client) = migrated();
    bury(&mut client, "e", "2031-02-03T04:05:06Z", &event("e", "{}"));
    assert_eq!(replay(&mut client, None).expect("replayed").inserted, 1);
    assert_eq!(count(&mut client, "events_2031_02"), 1);
}

#[test]
fn one_dead_letter_is_replayed_by_its_number() {
    let (_database, mut client) = migrated();
    bury(&mut client, "one", "2026-11-01T00:00:00Z", &event("one", "{}"));
    let two = bury(&mut client, "two", "2026-11-01T00:00:00Z", &event("two", "{}"));
    assert_eq!(replay(&mut client, Some(two)).expect("replayed").inserted, 1);
    assert_eq!(count(&mut client, "events WHERE event_id = 'two'"), 1);
    assert_eq!(count(&mut client, "events"), 1);
    for id in [two, 999] {
        let error = replay(&mut client, Some(id)).expect_err("must be refused");
        assert!(matches!(error, DeadLetterError::NotWaiting { id: named } if named == id), "{error}");
    }
}

#[test]
fn an_export_is_json_a_line_with_the_event_verbatim() {
    let (_database, mut client) = migrated();
    client.batch_execute("SET TimeZone = 'Asia/Tokyo'").expect("set");
    let payload = "{\n  \"n\": 1.000000000000000000000000000001\r\n}";
    bury(&mut client, "e\"1", "2026-11-01T00:00:00.5Z", &event("e", payload));
    bury(&mut client, "e2", "2026-11-01T00:00:00Z", &event("e2", "{}"));
    let mut out = Vec::new();
    let mut written = Vec::new();
    export(&mut client, false, &mut out, &mut |count| written.push(count)).expect("exported");
    assert_eq!((written, dead_letter::count(&mut client, false).expect("counted")), (vec![1, 2], 2));
    let text = String::from_utf8(out).expect("UTF-8");
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains("1.000000000000000000000000000001"), "{text}");
    let first: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["event_id"], "e\"1");
    assert_eq!(first["timestamp"], "2026-11-01T00:00:00.500000Z");
    assert_eq!(first["event"]["service_name"], "s");
    assert_eq!(first["replayed_at"], serde_json::Value::Null);
}

#[test]
fn the_commands_list_export_and_replay() {
    let (database, mut client) = migrated();
    let good = bury(&mut client, "good", "2026-11-01T00:00:00Z", &event("good", "{}"));
    let bad = bury(&mut client, "bad\n1", "2026-11-01T00:00:00Z", &event("bad", r#""\u0000""#));
    let out = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let listed = ingestd(&database, &["dead-letter", "list", "--limit", "1"]);
    assert!(out(&listed).contains("batch batch-1  event good  22P02 refused"), "{}", out(&listed));
    assert!(String::from_utf8_lossy(&listed.stderr).contains("only the first 1"));
    assert_eq!(out(&ingestd(&database, &["dead-letter", "list"])).lines().count(), 2);
    assert_eq!(out(&ingestd(&database, &["dead-letter", "export"])).lines().count(), 2);
    let replayed = ingestd(&database, &["dead-letter", "replay"]);
    assert_eq!(out(&replayed), "replayed 1; 0 were already present\n");
    assert_eq!(replayed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&replayed.stderr).into_owned();
    assert!(said.starts_with(&format!("ingestd: dead letter {bad} was rejected again: ")), "{said}");
    let again = ingestd(&database, &["dead-letter", "replay", "--id", &good.to_string()]);
    assert_eq!(again.status.code(), Some(1));
}
