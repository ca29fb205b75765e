//! Promise: an event is (service, type, time, id). Only a row with the same four is a duplicate; what another unique index
//! refuses is a dead letter with its reason, whatever way it went.

mod support;

use ingestd::pg::event_key;
use ingestd::pg::sqlstate::Fault;
use ingestd::sharding::Sharding;
use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use postgres::Client;
use serde_json::{Value, json};
use support::older_key;
use support::postgres::{TestDatabase, shared};
use support::server::{Finished, Ingestd, get, post_json};
use support::{WAIT_MAX, wait_until};

/// A whole second of this month or the last one.
fn at() -> String {
    rfc3339(UnixMicros(wall_now().0 / 3_600_000_000 * 3_600_000_000))
}

fn event(service: &str, kind: &str, id: &str, payload: &Value) -> Value {
    json!({"event_id": id, "service_name": service, "event_type": kind, "payload": payload, "timestamp": at()})
}

/// Inserted, duplicates, dead-lettered.
fn commit(server: &Ingestd, id: &str, events: &[Value]) -> [u64; 3] {
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &json!({"batch_id": id, "events": events}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

fn count(client: &mut Client, what: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {what}"), &[]).expect("a count").get(0)
}

fn replay(database: &TestDatabase) -> Finished {
    Ingestd::run_to_exit(&["dead-letter", "replay"], &[("DATABASE_URL", &database.url)])
}

/// Three events that have nothing in common but their id and their second.
fn three() -> [Value; 3] {
    [("billing", "invoice"), ("shipping", "invoice"), ("billing", "payment")]
        .map(|(service, kind)| event(service, kind, "1", &json!({"of": service, "type": kind})))
}

/// The index refuses a second row with the same `k`. It belongs to a partition: one of `events` would need its time.
const OWN_INDEX: &str = "CREATE UNIQUE INDEX own_rule ON this_month ((payload ->> 'k'))";

/// Gives the partition of this moment another name, and the index to it.
fn add_own_index(client: &mut Client) {
    let query = "SELECT c.oid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                 WHERE i.inhparent = 'events'::regclass AND c.relname = 'events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')";
    let name: String = client.query_one(query, &[]).expect("the partition is there").get(0);
    client.batch_execute(&OWN_INDEX.replace("this_month", &name)).expect("an index of the user's own");
}

#[test]
fn three_events_with_one_id_and_one_time_are_three_rows() {
    let database = shared().create_database();
    let (server, mut client) = (Ingestd::builder().database(&database).start(), database.connect());
    assert_eq!(commit(&server, "plain", &three()), [3, 0, 0]);
    assert_eq!(count(&mut client, "events"), 3);
    // The same again, through the staging table, beside one that is new.
    let [a, b, c] = three();
    let new = event("billing", "refund", "1", &json!({}));
    assert_eq!(commit(&server, "staged", &[a, b, c, new]), [1, 3, 0]);
    // And with a row that a constraint refuses, by bisection.
    client
        .batch_execute("ALTER TABLE events ADD CONSTRAINT no CHECK (event_type <> 'forbidden')")
        .expect("a constraint");
    let more = ["forbidden", "refund", "reminder"].map(|kind| event("billing", kind, "1", &json!({})));
    assert_eq!(commit(&server, "quarantine", &more), [1, 1, 1]);
    // And from the dead letters.
    client.batch_execute("ALTER TABLE events DROP CONSTRAINT no").expect("dropped");
    assert_eq!(replay(&database).stdout, "replayed 1; 0 were already present\n");
    assert_eq!(count(&mut client, "events"), 6);
}

#[test]
fn a_trigger_that_leaves_a_row_out_is_told_from_a_duplicate_of_another_service() {
    let database = shared().create_database();
    let (server, mut client) = (Ingestd::builder().database(&database).start(), database.connect());
    let leave_out = "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                       IF NEW.service_name = 'shipping' THEN RETURN NULL; END IF; RETURN NEW; END $$;
                     CREATE TRIGGER leave_out BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION leave_out()";
    client.batch_execute(leave_out).expect("a trigger");
    assert_eq!(commit(&server, "first", &three()), [2, 0, 1]);
    assert_eq!(commit(&server, "again", &three()), [0, 2, 1]);
    assert_eq!(replay(&database).code, Some(1), "left out again, though another service has the id");
}

#[test]
fn a_unique_index_of_the_users_own_makes_dead_letters_with_its_name() {
    let database = shared().create_database();
    let (server, mut client) = (Ingestd::builder().database(&database).start(), database.connect());
    add_own_index(&mut client);
    let rule = |id: &str, k: u64| event("s", "t", id, &json!({"k": k}));
    assert_eq!(commit(&server, "first", &[rule("a", 1)]), [1, 0, 0]);
    // A COPY is refused, then the INSERT, then the row.
    assert_eq!(commit(&server, "plain", &[rule("b", 1), rule("c", 2)]), [1, 0, 1]);
    // Beside a real duplicate; two of the batch's own rows break the rule among themselves.
    assert_eq!(commit(&server, "staged", &[rule("a", 1), rule("d", 2), rule("e", 3), rule("f", 3)]), [1, 1, 2]);
    // A duplicate that would break the rule as well is a duplicate.
    assert_eq!(commit(&server, "both", &[rule("a", 2)]), [0, 1, 0]);
    let told = "dead_letter_events WHERE sqlstate = '23505' AND message LIKE '%own_rule%'";
    assert_eq!((count(&mut client, told), count(&mut client, "dead_letter_events")), (3, 3));
    let replayed = replay(&database);
    assert_eq!(replayed.code, Some(1), "{replayed:?}");
    assert_eq!((count(&mut client, "events"), count(&mut client, told)), (3, 3), "refused again, and still there");
    client.batch_execute("DROP INDEX own_rule").expect("dropped");
    assert_eq!(replay(&database).stdout, "replayed 3; 0 were already present\n");
    assert_eq!(count(&mut client, "events"), 6);
}

#[test]
fn a_table_with_the_older_key_and_many_rows_is_served_as_it_is_until_it_is_migrated() {
    let database = shared().create_database();
    let mut client = database.connect();
    older_key::make_tables(&mut client);
    older_key::fill(&mut client, older_key::MANY, 0.1);
    let server = Ingestd::builder().database(&database).start();
    assert_eq!(older_key::key_of(&mut client, "events"), "timestamp,event_id", "a start does not wait for an index");
    let health = || get(&server.url("/v1/health")).json();
    let maintenance = health()["checks"]["maintenance"].clone();
    assert_eq!((&health()["status"], &maintenance["status"]), (&"degraded".into(), &"failing".into()));
    let advice = "the primary key of events is still";
    let reason = maintenance["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(advice) && reason.contains("run 'ingestd migrate'"), "{maintenance}");
    assert_eq!(server.log().matches(advice).count(), 1, "{}", server.log());
    let settings = [("DATABASE_URL", &*database.url)];
    let checked = Ingestd::run_to_exit(&["check-config", "--connect"], &settings);
    assert!(checked.code == Some(0) && checked.stdout.contains(advice), "{checked:?}");

    // All ways work with the older key, under which the three are one.
    assert_eq!(commit(&server, "older", &three()), [1, 2, 0]);
    add_own_index(&mut client);
    let rule = |id: &str, k: u64| event("s", "t", id, &json!({"k": k}));
    assert_eq!(commit(&server, "rule", &[rule("a", 1), rule("b", 1)]), [1, 0, 1]);
    assert_eq!(replay(&database).code, Some(1));

    let migrated = Ingestd::run_to_exit(&["migrate"], &settings);
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    assert!(migrated.stdout.contains("applied") && migrated.stdout.contains("event_key"), "{migrated:?}");
    let key = "service_name,event_type,timestamp,event_id";
    assert_eq!(older_key::key_of(&mut client, "events"), key);
    // The server has statements for the older key, notices, and goes on.
    assert_eq!(commit(&server, "newer", &three()), [2, 1, 0]);
    assert_eq!(commit(&server, "rule-again", &[rule("c", 1), rule("a", 1)]), [0, 1, 1]);
    wait_until("nothing waits any more", WAIT_MAX, || health()["status"] == "healthy");
    let again = Ingestd::run_to_exit(&["migrate"], &settings);
    assert!(again.code == Some(0) && again.stdout.starts_with("schema is up to date"), "{again:?}");
    let checked = Ingestd::run_to_exit(&["check-config", "--connect"], &settings);
    assert!(checked.code == Some(0) && !checked.stdout.contains(advice), "{checked:?}");
}

#[test]
fn a_small_table_gets_the_key_at_the_start_of_a_server() {
    let database = shared().create_database();
    let mut client = database.connect();
    older_key::make_tables(&mut client);
    older_key::fill(&mut client, 1000, 0.1);
    let server = Ingestd::builder().database(&database).start();
    let key = "service_name,event_type,timestamp,event_id";
    assert_eq!(older_key::key_of(&mut client, "events"), key);
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "healthy", "{}", server.log());
    let superfluous = "pg_class WHERE relname = 'events_service_name_event_type_timestamp_idx'";
    assert_eq!((count(&mut client, superfluous), count(&mut client, "events")), (0, 1000));
    assert_eq!(commit(&server, "newer", &three()), [3, 0, 0]);
}

#[test]
fn a_table_without_a_key_takes_every_row() {
    let database = shared().create_database();
    let (mut server, mut client) = (Ingestd::builder().database(&database).start(), database.connect());
    client.batch_execute("ALTER TABLE events DROP CONSTRAINT events_pkey").expect("its owner may");
    assert_eq!(commit(&server, "first", &three()), [3, 0, 0]);
    assert_eq!(commit(&server, "second", &three()), [3, 0, 0], "events are told apart by their batch alone");
    server.restart();
    assert_eq!(commit(&server, "first", &three()), [3, 0, 0], "a repeat");
    assert_eq!(count(&mut client, "events"), 6);
    assert_eq!(older_key::key_of(&mut client, "events"), "", "and nobody gives it one");
}

#[test]
fn an_index_that_is_built_beside_the_key_is_told_from_one_of_the_users() {
    let database = shared().create_database();
    let mut client = database.connect();
    older_key::make_tables(&mut client);
    let insert = |client: &mut Client, service: &str, id: &str, k: &str| {
        let insert = r#"INSERT INTO events (event_id, service_name, event_type, payload, "timestamp", batch_id)
                        VALUES ($1, $2, 't', jsonb_build_object('k', $3::text), date_trunc('hour', now()), 'b')"#;
        client.execute(insert, &[&id, &service, &k]).map_err(Fault::from)
    };
    insert(&mut client, "s", "1", "1").expect("the first");
    let judge = |client: &mut Client, fault: &Fault| {
        assert_eq!(fault.sqlstate, "23505", "{fault}");
        event_key::is_violated(client, Sharding::None, fault).expect("asked")
    };
    let key = insert(&mut client, "s", "1", "2").expect_err("the key");
    assert!(judge(&mut client, &key), "{key}");
    add_own_index(&mut client);
    let own = insert(&mut client, "s", "2", "1").expect_err("the user's own index");
    assert!(!judge(&mut client, &own), "{own}");
    // As 'ingestd migrate' builds it; it is older than the key, so that it is the first to object.
    let partition: String =
        client.query_one("SELECT tableoid::regclass::text FROM events LIMIT 1", &[]).expect("a row is there").get(0);
    client
        .batch_execute(&format!(
            r#"CREATE UNIQUE INDEX beside ON {partition} (service_name, event_type, "timestamp", event_id);
               ALTER TABLE events DROP CONSTRAINT events_pkey, ADD PRIMARY KEY ("timestamp", event_id); DROP INDEX own_rule"#
        ))
        .expect("an index beside the key");
    let beside = insert(&mut client, "s", "1", "3").expect_err("the index beside the key");
    assert!(beside.message.contains("beside") && judge(&mut client, &beside), "{beside}");
    client.batch_execute("DROP INDEX beside").expect("dropped");
    assert!(judge(&mut client, &beside), "it was exchanged meanwhile: try again");
}
