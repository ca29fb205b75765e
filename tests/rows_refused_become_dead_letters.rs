//! Promise: events that PostgreSQL refuses end in `dead_letter_events`, and only they.

mod support;

use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use postgres::Client;
use serde_json::{Value, json};
use support::WAIT_MAX;
use support::load::{body, wait_until_committed};
use support::postgres::TestDatabase;
use support::server::{Ingestd, get, post, post_json};

fn event(id: usize, payload: Value) -> Value {
    json!({"event_id": format!("e{id}"), "service_name": "s", "event_type": "t", "payload": payload})
}

/// `events` events of which those in `bad` have a payload that [`refuse_negative`] and its like object to.
fn batch(id: &str, events: usize, bad: &[usize]) -> Value {
    let all = (0..events).map(|number| {
        let amount = if bad.contains(&number) { -1 } else { 1 };
        event(number, json!({"batch": id, "amount": amount}))
    });
    json!({"batch_id": id, "events": all.collect::<Vec<_>>()})
}

/// The same with a time, so that the events of another batch can be the same ones.
fn with_timestamps(mut batch: Value, at: UnixMicros) -> Value {
    for event in batch["events"].as_array_mut().expect("events") {
        event["timestamp"] = rfc3339(at).into();
    }
    batch
}

/// A server that has made its tables.
fn server_on(database: &TestDatabase) -> Ingestd {
    Ingestd::builder().database(database).start()
}

fn commit(server: &Ingestd, batch: &Value) -> Value {
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), batch);
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn counts(answer: &Value) -> [u64; 3] {
    ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

fn count(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {query}"), &[]).expect("a count").get(0)
}

const CHECK: &str = "ALTER TABLE events ADD CONSTRAINT no_debts CHECK ((payload ->> 'amount')::int >= 0)";
const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.payload ->> 'amount' = '-1' THEN RAISE EXCEPTION 'debts are not\nwelcome'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()";

#[test]
fn a_check_constraint_refuses_its_rows_and_no_others() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(CHECK).expect("a constraint");
    let answer = commit(&server, &batch("mixed", 1000, &[0, 499, 500, 999]));
    assert_eq!(answer["status"], "partial", "{answer}");
    assert_eq!(counts(&answer), [996, 0, 4]);
    let status = get(&server.url("/v1/batch/mixed/status")).json();
    assert_eq!((&status["status"], counts(&status)), (&"partial".into(), [996, 0, 4]));
    assert_eq!(count(&mut client, "events"), 996);
    let rows =
        client.query("SELECT event_id, event, sqlstate, message, batch_id FROM dead_letter_events ORDER BY id", &[]);
    let rows = rows.expect("dead letters");
    let ids: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, ["e0", "e499", "e500", "e999"]);
    for row in &rows {
        let event: Value = serde_json::from_str(row.get(1)).expect("the event is JSON");
        assert_eq!(event["payload"], json!({"batch": "mixed", "amount": -1}));
        assert_eq!((row.get(2), row.get(4)), ("23514", "mixed"));
        assert!(row.get::<_, &str>(3).contains("no_debts"), "{}", row.get::<_, &str>(3));
    }
    let ledger =
        client.query_one("SELECT inserted, duplicates, dead_lettered FROM ingest_batches", &[]).expect("a row");
    assert_eq!([0, 1, 2].map(|column| ledger.get::<_, i32>(column)), [996, 0, 4]);
}

#[test]
fn a_batch_of_which_nothing_is_left_has_failed() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(CHECK).expect("a constraint");
    let answer = commit(&server, &batch("all-bad", 3, &[0, 1, 2]));
    assert_eq!((&answer["status"], counts(&answer)), (&"failed".into(), [0, 0, 3]));
    assert_eq!(count(&mut client, "events"), 0);
}

#[test]
fn what_a_trigger_raises_is_kept_with_its_message() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(TRIGGER).expect("a trigger");
    assert_eq!(counts(&commit(&server, &batch("raised", 100, &[7]))), [99, 0, 1]);
    let row = client.query_one("SELECT event_id, sqlstate, message FROM dead_letter_events", &[]).expect("one");
    assert_eq!((row.get(0), row.get(1)), ("e7", "P0001"));
    assert!(row.get::<_, &str>(2).contains("debts are not welcome"), "{}", row.get::<_, &str>(2));
}

#[test]
fn a_row_too_large_for_an_index_is_refused_alone() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute("CREATE INDEX ON events ((payload ->> 'text'))").expect("an index");
    // Random letters: a text that compresses well would fit.
    let mut random = support::load::Random::new(18);
    let large: String = (0..9000).map(|_| char::from(random.within(33..=90) as u8).to_ascii_lowercase()).collect();
    let large = large.replace(['"', '\\'], "x");
    let events: Vec<Value> = [json!({"text": "a"}), json!({"text": large}), json!({"text": "b"})]
        .into_iter()
        .enumerate()
        .map(|(number, payload)| event(number, payload))
        .collect();
    assert_eq!(counts(&commit(&server, &json!({"batch_id": "large", "events": events}))), [2, 0, 1]);
    let row = client.query_one("SELECT event_id, sqlstate, event FROM dead_letter_events", &[]).expect("one");
    assert_eq!((row.get(0), row.get(1)), ("e1", "54000"));
    assert!(row.get::<_, &str>(2).contains(&large), "the event is kept whole");
}

#[test]
fn a_value_too_long_for_its_column_is_refused_alone() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute("ALTER TABLE events ALTER COLUMN event_id TYPE varchar(5)").expect("a narrower column");
    let events = ["short", "longer", "e"]
        .map(|id| json!({"event_id": id, "service_name": "s", "event_type": "t", "payload": {}}));
    assert_eq!(counts(&commit(&server, &json!({ "batch_id": "narrow", "events": events }))), [2, 0, 1]);
    let row = client.query_one("SELECT event_id, sqlstate FROM dead_letter_events", &[]).expect("one");
    assert_eq!((row.get(0), row.get(1)), ("longer", "22001"));
}

#[test]
fn bad_rows_do_not_hold_up_the_rest_of_the_load() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(CHECK).expect("a constraint");
    // Without an amount the check is not violated: NULL >= 0 is unknown.
    for number in 0..60 {
        let url = server.url("/v1/ingest/batch");
        let reply = match number % 6 {
            0 => post_json(&url, &batch(&format!("bad-{number}"), 100, &[number])),
            _ => post(&url, &[], body(&format!("good-{number}"), None, 0, 100).as_bytes()),
        };
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    wait_until_committed(&server, WAIT_MAX);
    assert_eq!(count(&mut client, "events"), 5990);
    assert_eq!(count(&mut client, "dead_letter_events"), 10);
    assert_eq!(count(&mut client, "ingest_batches WHERE dead_lettered > 0"), 10);
}

#[test]
fn a_retry_of_a_partial_batch_adds_no_dead_letters() {
    let database = support::postgres::shared().create_database();
    let (mut server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(CHECK).expect("a constraint");
    let batch = batch("retried", 10, &[3]);
    commit(&server, &batch);
    server.restart();
    let answer = commit(&server, &batch);
    assert_eq!((&answer["duplicate"], counts(&answer)), (&true.into(), [9, 0, 1]));
    assert_eq!(count(&mut client, "dead_letter_events"), 1);
}

#[test]
fn dead_letters_are_replayed_once_when_the_cause_is_gone() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(CHECK).expect("a constraint");
    commit(&server, &batch("later", 100, &[1, 50, 99]));
    let replay = || Ingestd::run_to_exit(&["dead-letter", "replay"], &[("DATABASE_URL", &database.url)]);

    let refused_again = replay();
    assert_eq!(refused_again.code, Some(1), "{}{}", refused_again.stdout, refused_again.stderr);
    assert_eq!((count(&mut client, "events"), count(&mut client, "dead_letter_events")), (97, 3));

    client.batch_execute("ALTER TABLE events DROP CONSTRAINT no_debts").expect("it is there");
    for _ in 0..2 {
        let replayed = replay();
        assert_eq!(replayed.code, Some(0), "{}{}", replayed.stdout, replayed.stderr);
        assert_eq!(count(&mut client, "events"), 100);
        assert_eq!(count(&mut client, "dead_letter_events WHERE replayed_at IS NULL"), 0);
    }
    assert_eq!(count(&mut client, "events WHERE batch_id = 'later' AND payload ->> 'amount' = '-1'"), 3);
    assert_eq!(count(&mut client, "(SELECT DISTINCT event_id FROM events) AS ids"), 100);
}

#[test]
fn a_replay_goes_on_behind_a_row_that_a_trigger_still_refuses() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(TRIGGER).expect("a trigger");
    client
        .batch_execute("ALTER TABLE events ADD CONSTRAINT small CHECK ((payload ->> 'amount')::int < 2)")
        .expect("a check");
    let events = [event(0, json!({"amount": -1})), event(1, json!({"amount": 2}))];
    assert_eq!(counts(&commit(&server, &json!({"batch_id": "both", "events": events}))), [0, 0, 2]);
    client.batch_execute("ALTER TABLE events DROP CONSTRAINT small").expect("it is there");
    let replayed = Ingestd::run_to_exit(&["dead-letter", "replay"], &[("DATABASE_URL", &database.url)]);
    assert_eq!(replayed.code, Some(1), "one is refused again: {}{}", replayed.stdout, replayed.stderr);
    assert_eq!(count(&mut client, "events WHERE event_id = 'e1'"), 1, "{}{}", replayed.stdout, replayed.stderr);
    assert_eq!(count(&mut client, "dead_letter_events WHERE replayed_at IS NULL AND event_id = 'e0'"), 1);
}

#[test]
fn a_trigger_with_a_code_of_its_own_holds_up_nothing() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.event_id = 'e1' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = 'ZX001'; END IF;
               RETURN NEW; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .expect("a trigger");
    assert_eq!(counts(&commit(&server, &batch("custom-code", 3, &[]))), [2, 0, 1]);
    let row = client.query_one("SELECT event_id, sqlstate FROM dead_letter_events", &[]).expect("one");
    assert_eq!((row.get(0), row.get(1)), ("e1", "ZX001"));
}

#[test]
fn a_constraint_that_is_checked_at_the_commit_refuses_its_rows_and_no_others() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    let deferred = "CREATE TABLE services (name text COLLATE \"C\" PRIMARY KEY); INSERT INTO services VALUES ('s');
                    ALTER TABLE events ADD FOREIGN KEY (service_name) REFERENCES services DEFERRABLE INITIALLY DEFERRED";
    client.batch_execute(deferred).expect("a constraint");
    let mut mixed = batch("mixed", 100, &[]);
    for unknown in [3, 77] {
        mixed["events"][unknown]["service_name"] = "unheard-of".into();
    }
    assert_eq!(counts(&commit(&server, &mixed)), [98, 0, 2]);
    let row =
        client.query_one("SELECT count(*), min(sqlstate), max(sqlstate) FROM dead_letter_events", &[]).expect("a row");
    assert_eq!((row.get::<_, i64>(0), row.get(1), row.get(2)), (2, "23503", "23503"));
}

#[test]
fn a_constraint_that_refuses_everything_is_told_and_does_not_hold_up_other_batches() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client.batch_execute(CHECK).expect("a constraint");
    let bad: Vec<usize> = (0..2000).collect();
    let reply = post_json(&server.url("/v1/ingest/batch"), &batch("all-bad", 2000, &bad));
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert_eq!(counts(&commit(&server, &batch("good", 10, &[]))), [10, 0, 0]);
    wait_until_committed(&server, WAIT_MAX);
    let status = get(&server.url("/v1/batch/all-bad/status")).json();
    assert_eq!((&status["status"], counts(&status)), (&"failed".into(), [0, 0, 2000]));
    assert_eq!(count(&mut client, "dead_letter_events"), 2000);
    assert_eq!(server.log().matches("PostgreSQL rejected events").count(), 1, "{}", server.log());
}

#[test]
fn a_row_that_a_trigger_leaves_out_is_a_dead_letter_and_no_duplicate() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    client
        .batch_execute(
            "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.payload ->> 'amount' = '-1' THEN RETURN NULL; END IF; RETURN NEW; END $$;
             CREATE TRIGGER leave_out BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION leave_out()",
        )
        .expect("a trigger");
    assert_eq!(counts(&commit(&server, &batch("first", 100, &[7, 99]))), [98, 0, 2]);
    let now = wall_now();
    assert_eq!(counts(&commit(&server, &with_timestamps(batch("timed", 100, &[8]), now))), [99, 0, 1]);
    let mixed = counts(&commit(&server, &with_timestamps(batch("duplicates", 101, &[8, 100]), now)));
    assert_eq!(mixed, [0, 99, 2], "duplicates are told from what is left out");
    let rows = client.query("SELECT DISTINCT sqlstate, message FROM dead_letter_events", &[]).expect("dead letters");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<_, &str>(0), "02000");
    assert!(rows[0].get::<_, &str>(1).contains("a trigger on events discarded the row"));

    let replay = || Ingestd::run_to_exit(&["dead-letter", "replay"], &[("DATABASE_URL", &database.url)]);
    let left_out_again = replay();
    assert_eq!(left_out_again.code, Some(1), "{}{}", left_out_again.stdout, left_out_again.stderr);
    assert_eq!(count(&mut client, "dead_letter_events WHERE replayed_at IS NULL"), 5);
    client.batch_execute("DROP TRIGGER leave_out ON events").expect("it is there");
    let replayed = replay();
    assert_eq!(replayed.code, Some(0), "{}{}", replayed.stdout, replayed.stderr);
    assert_eq!(count(&mut client, "events"), 98 + 2 + 99 + 1 + 1, "8 was left out twice and is one event");
}
