//! Promise: an event is (service, type, timestamp, id); however often it is sent, the table has it once and the counts say so.

mod support;

use postgres::Client;
use serde_json::{Value, json};
use support::WAIT_MAX;
use support::load::{Random, seed, wait_until_committed};
use support::postgres::TestDatabase;
use support::raw::Raw;
use support::server::{Ingestd, get, post, post_json};

/// A time of this month: the one before last may have no partition yet, which is another test's matter.
fn at(second: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let hour = (now.as_micros() / 3_600_000_000 * 3_600_000_000) as i64;
    ingestd::status::model::rfc3339(ingestd::types::UnixMicros(hour + second as i64 * 1_000_000))
}

fn event(id: &str, second: u64) -> Value {
    json!({"event_id": id, "service_name": "s", "event_type": "t", "payload": {"id": id}, "timestamp": at(second)})
}

fn batch(id: &str, events: &[Value]) -> Value {
    json!({"batch_id": id, "events": events})
}

/// Sends `events` and waits for the commit; what the answer counts.
fn commit(server: &Ingestd, id: &str, events: &[Value]) -> (u64, u64) {
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &batch(id, events));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    let count = |name: &str| answer[name].as_u64().unwrap_or_else(|| panic!("no {name} in {answer}"));
    assert_eq!(count("dead_lettered"), 0);
    (count("inserted"), count("duplicates"))
}

fn status(server: &Ingestd, id: &str) -> (u64, u64) {
    let status = get(&server.url(&format!("/v1/batch/{id}/status"))).json();
    assert_eq!(status["status"], "completed", "{status}");
    let count = |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"));
    (count("inserted"), count("duplicates"))
}

fn ledger(client: &mut Client, id: &str) -> (u64, u64) {
    let row = client.query_one("SELECT inserted, duplicates FROM ingest_batches WHERE batch_id = $1", &[&id]);
    let row = row.expect("the batch is in the ledger");
    (row.get::<_, i32>(0) as u64, row.get::<_, i32>(1) as u64)
}

fn rows(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0)
}

fn server_on(database: &TestDatabase) -> Ingestd {
    Ingestd::builder().database(database).start()
}

#[test]
fn the_same_event_twice_in_one_batch_lands_once() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    let events = [event("a", 1), event("b", 1), event("a", 1), event("a", 1)];
    assert_eq!(commit(&server, "twice", &events), (2, 2));
    assert_eq!(status(&server, "twice"), (2, 2));
    assert_eq!(ledger(&mut client, "twice"), (2, 2));
    assert_eq!(rows(&mut client), 2);
}

#[test]
fn the_same_event_in_a_later_batch_is_counted_there() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    assert_eq!(commit(&server, "first", &[event("a", 1), event("b", 1)]), (2, 0));
    assert_eq!(commit(&server, "second", &[event("a", 1), event("c", 1)]), (1, 1));
    assert_eq!(commit(&server, "third", &[event("a", 1), event("c", 1)]), (0, 2));
    for (id, counts) in [("first", (2, 0)), ("second", (1, 1)), ("third", (0, 2))] {
        assert_eq!(status(&server, id), counts, "{id}");
        assert_eq!(ledger(&mut client, id), counts, "{id}");
    }
    assert_eq!(rows(&mut client), 3);
}

#[test]
fn the_same_id_at_another_time_is_another_event() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    assert_eq!(commit(&server, "times", &[event("a", 1), event("a", 2)]), (2, 0));
    assert_eq!(rows(&mut client), 2);
}

#[test]
fn the_same_events_from_many_clients_at_once_land_once() {
    let database = support::postgres::shared().create_database();
    let (server, mut client) = (server_on(&database), database.connect());
    let seed = seed("the_same_events_from_many_clients");
    let (clients, batches, events, distinct) = (4, 12, 200, 500);
    std::thread::scope(|scope| {
        for number in 0..clients {
            let server = &server;
            scope.spawn(move || {
                let mut random = Random::new(seed + number);
                for batch_number in 0..batches {
                    let chosen: Vec<Value> =
                        (0..events).map(|_| event(&format!("e{}", random.within(1..=distinct)), 1)).collect();
                    let reply = post_json(
                        &server.url("/v1/ingest/batch"),
                        &batch(&format!("m-{number}-{batch_number}"), &chosen),
                    );
                    assert_eq!(reply.status, 202, "{}", reply.text());
                }
            });
        }
    });
    wait_until_committed(&server, WAIT_MAX);
    let sums =
        "SELECT count(*), sum(inserted)::bigint, sum(duplicates)::bigint, sum(events)::bigint FROM ingest_batches";
    let row = client.query_one(sums, &[]).expect("sums");
    let [ledger_batches, inserted, duplicates, sent] = [0, 1, 2, 3].map(|column| row.get::<_, i64>(column));
    assert_eq!((ledger_batches, sent), ((clients * batches) as i64, (clients * batches * events) as i64));
    assert_eq!(inserted, rows(&mut client), "what the ledger calls inserted is there");
    assert_eq!(inserted + duplicates, sent, "every event is one or the other");
    assert!(inserted <= distinct as i64);
    for id in ["m-0-0", "m-3-11"] {
        assert_eq!(status(&server, id), ledger(&mut client, id), "{id}");
    }
}

#[test]
fn all_who_wait_for_one_batch_are_answered_when_it_commits_and_may_leave_before() {
    const WAITING: u64 = 60;
    let database = support::postgres::shared().create_database();
    let server = server_on(&database);
    let mut admin = database.connect();
    admin.batch_execute("BEGIN; LOCK TABLE events").expect("a lock");
    let body = batch("awaited", &[event("a", 1), event("b", 1)]).to_string();
    let length = format!("Content-Length: {}", body.len());
    let send = || {
        let mut raw = Raw::connect(&server);
        raw.post_head("/v1/ingest/batch?ack=commit", &["Content-Type: application/json", &length]);
        raw.send(body.as_bytes());
        raw
    };
    let mut waiting: Vec<Raw> = (0..WAITING).map(|_| send()).collect();
    // Every second one leaves; who only wants the journal's promise has it at once.
    let mut nth = 0;
    waiting.retain(|_| {
        nth += 1;
        nth % 2 == 0
    });
    for level in ["memory", "journal"] {
        let reply = post(&server.url(&format!("/v1/ingest/batch?ack={level}")), &[], body.as_bytes());
        assert_eq!(reply.json()["duplicate"], true, "{}", reply.text());
    }
    admin.batch_execute("COMMIT").expect("nobody has terminated it");
    for mut raw in waiting {
        let answer = raw.answer();
        let told = answer.json();
        assert_eq!(
            (answer.status, &told["status"], &told["inserted"]),
            (200, &"completed".into(), &2.into()),
            "{told}"
        );
    }
    assert_eq!(rows(&mut admin), 2);
}

#[test]
fn one_batch_sent_to_two_servers_lands_once() {
    let database = support::postgres::shared().create_database();
    let mut client = database.connect();
    let (one, other) = (server_on(&database), server_on(&database));
    // Without timestamps: each server stamps its own, so only the ledger can see that they are the same.
    let bodies: Vec<(String, String)> = (0..40)
        .map(|number| {
            (
                format!("shared-{number}"),
                support::load::body(&format!("s{number}"), Some(&format!("shared-{number}")), 0, 50),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for server in [&one, &other] {
            let bodies = &bodies;
            scope.spawn(move || {
                for (_, body) in bodies {
                    let reply = support::server::post(&server.url("/v1/ingest/batch"), &[], body.as_bytes());
                    assert!(matches!(reply.status, 200 | 202), "{}", reply.text());
                }
            });
        }
    });
    wait_until_committed(&one, WAIT_MAX);
    wait_until_committed(&other, WAIT_MAX);
    assert_eq!(rows(&mut client), 40 * 50);
    for (id, _) in &bodies {
        assert_eq!(ledger(&mut client, id), (50, 0), "{id}");
        assert_eq!(status(&one, id), (50, 0), "{id}");
        assert_eq!(status(&other, id), (50, 0), "{id}");
    }
}

#[test]
fn one_id_with_two_bodies_on_two_servers_dead_letters_the_second() {
    let database = support::postgres::shared().create_database();
    let mut client = database.connect();
    let (one, other) = (server_on(&database), server_on(&database));
    // Both take the id before either has committed it.
    client.batch_execute("BEGIN; LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("a lock");
    for (server, tag) in [(&one, "mine"), (&other, "theirs")] {
        let body = support::load::body(tag, Some("contested"), 0, 5);
        let reply = support::server::post(&server.url("/v1/ingest/batch"), &[], body.as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    client.batch_execute("ROLLBACK").expect("the lock is given back");
    wait_until_committed(&one, WAIT_MAX);
    wait_until_committed(&other, WAIT_MAX);
    assert_eq!(rows(&mut client), 5);
    let dead = client.query_one(
        "SELECT count(*), count(DISTINCT event_id), min(message) FROM dead_letter_events WHERE batch_id = 'contested'",
        &[],
    );
    let dead = dead.expect("dead letters");
    assert_eq!((dead.get::<_, i64>(0), dead.get::<_, i64>(1)), (5, 5));
    assert!(dead.get::<_, &str>(2).contains("different body"), "{}", dead.get::<_, &str>(2));
}
