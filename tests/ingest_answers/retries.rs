//! The same batch again is answered, not taken; the same id with another body is a conflict.

use std::thread;

use serde_json::{Value, json};

use super::service;
use super::support;
use super::support::contract::{
    accept, assert_problem, batch, event, ingest_url, rows_of, send, wait_for_quick_lookups, wait_until_completed,
};
use super::support::server::{Ingestd, Reply, post};
use super::support::{WAIT_MAX, wait_until};

/// Sends `body` under the id that `headers` and `query` give.
fn send_as(server: &Ingestd, query: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    post(&ingest_url(server, query), headers, body.to_string().as_bytes())
}

#[test]
fn a_retry_is_answered_200_with_the_present_status_however_the_id_is_given() {
    let server = &service().server;
    let body = json!([event("retried")]);
    let bare = [("Idempotency-Key", "retried:1")];
    let quoted = [("Idempotency-Key", "\"retried:1\"")];
    let first = send_as(server, "", &bare, &body);
    assert_eq!((first.status, &first.json()["batch_id"]), (202, &json!("retried:1")));
    wait_until_completed(server, "retried:1");
    for (query, headers) in
        [("", &bare[..]), ("", &quoted[..]), ("batch_id=retried:1", &[]), ("batch_id=retried%3A1", &bare)]
    {
        let again = send_as(server, query, headers, &body);
        assert_eq!(again.status, 200, "{}", again.text());
        assert_eq!(again.header("location"), "/v1/batch/retried:1/status");
        let expected = json!({
            "batch_id": "retried:1", "status": "completed", "accepted": 1, "rejected": 0, "errors": [],
            "duplicate": true, "inserted": 1, "duplicates": 0, "dead_lettered": 0,
        });
        assert_eq!(again.json(), expected, "{query} {headers:?}");
    }
    assert_eq!(rows_of(&service().database, "retried:1"), 1);
}

#[test]
fn a_retry_while_the_batch_is_queued_is_told_so_and_not_taken_again() {
    let service = service();
    let mut blocker = service.database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE").expect("nobody writes events now");
    let body = batch("retried-early", 2);
    accept(&service.server, "", &body);
    for ack in ["memory", "journal"] {
        let again = send(&service.server, &format!("ack={ack}"), body.to_string().as_bytes());
        let answer = again.json();
        assert_eq!((again.status, &answer["duplicate"]), (200, &json!(true)), "{answer}");
        assert!(["queued", "processing"].contains(&answer["status"].as_str().unwrap_or("none")), "{answer}");
        assert!(answer.get("inserted").is_none(), "nothing is known yet: {answer}");
    }
    blocking.commit().expect("the lock goes");
    let again = send(&service.server, "ack=commit", body.to_string().as_bytes());
    assert_eq!(again.json()["inserted"], 2, "ack=commit waits for the commit on a retry too");
    assert_eq!(rows_of(&service.database, "retried-early"), 2);
}

#[test]
fn a_retry_with_invalid_events_lists_them_again() {
    let server = &service().server;
    let mut body = batch("retried-skip", 2);
    body["events"][0]["payload"] = json!(7);
    let text = body.to_string();
    let (first, again) = (send(server, "invalid=skip", text.as_bytes()), send(server, "invalid=skip", text.as_bytes()));
    assert_eq!((first.status, again.status), (202, 200));
    let (first, again) = (first.json(), again.json());
    assert_eq!((&first["accepted"], &first["rejected"]), (&again["accepted"], &again["rejected"]));
    assert_eq!(first["errors"], again["errors"]);
}

#[test]
fn another_body_under_a_known_id_is_a_conflict() {
    let service = service();
    accept(&service.server, "", &batch("claimed", 1));
    let other = json!({ "batch_id": "claimed", "events": [event("other")] });
    for query in ["", "ack=commit", "ack=memory"] {
        assert_problem(&send(&service.server, query, other.to_string().as_bytes()), 409, "batch_id_conflict");
    }
    wait_until_completed(&service.server, "claimed");
    assert_problem(&send(&service.server, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    assert_eq!(rows_of(&service.database, "claimed"), 1);
}

#[test]
fn a_refused_batch_leaves_its_id_free() {
    let server = &service().server;
    let bad = json!({ "batch_id": "second-try", "events": [{}] });
    assert_eq!(send(server, "", bad.to_string().as_bytes()).status, 422);
    accept(server, "", &batch("second-try", 1));
}

#[test]
fn header_query_and_body_must_name_the_same_batch() {
    let server = &service().server;
    let headers = [("Idempotency-Key", "one")];
    let body = batch("one", 1);
    assert_problem(&send_as(server, "batch_id=two", &headers, &json!([event("e")])), 422, "batch_id_mismatch");
    assert_problem(&send_as(server, "batch_id=two", &[], &body), 422, "batch_id_mismatch");
    assert_problem(&send_as(server, "", &[("Idempotency-Key", "two")], &body), 422, "batch_id_mismatch");
    assert_eq!(send_as(server, "batch_id=one", &headers, &body).status, 202);
}

#[test]
fn after_a_restart_the_ledger_and_the_journal_still_know_every_batch() {
    let database = support::postgres::shared().create_database();
    let mut server = Ingestd::builder().database(&database).start();
    let first = batch("before-restart", 2);
    let other = json!({ "batch_id": "before-restart", "events": [event("other")] });
    assert_eq!(send(&server, "ack=commit", first.to_string().as_bytes()).status, 200);
    // Many other batches must not push it out.
    thread::scope(|scope| {
        for sender in 0..4 {
            let server = &server;
            scope.spawn(move || {
                (0..250).for_each(|n| drop(accept(server, "ack=memory", &batch(&format!("n{sender}-{n}"), 1))))
            });
        }
    });
    let check = |server: &Ingestd, when: &str| {
        wait_for_quick_lookups(server);
        let again = send(server, "", first.to_string().as_bytes());
        let answer = again.json();
        assert_eq!(
            (again.status, &answer["duplicate"], &answer["status"]),
            (200, &json!(true), &json!("completed")),
            "{when}"
        );
        assert_eq!((&answer["inserted"], &answer["accepted"]), (&json!(2), &json!(2)), "{when}");
        assert_problem(&send(server, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    };
    check(&server, "after a thousand other batches");
    assert_eq!(server.terminate().code(), Some(0));
    server.restart();
    check(&server, "after SIGTERM and a restart");
    server.restart();
    check(&server, "after kill -9 and a restart");
    let rows = || database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count").get::<_, i64>(0);
    wait_until("all batches are in PostgreSQL", WAIT_MAX, || rows() == 1002);
}

#[test]
fn a_batch_that_only_the_journal_has_is_known_after_kill_9() {
    let database = support::postgres::shared().create_database();
    let mut server = Ingestd::builder().database(&database).start();
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE").expect("nobody writes events now");
    let body = batch("journal-only", 3);
    accept(&server, "", &body);
    server.restart();
    let again = send(&server, "", body.to_string().as_bytes());
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    let other = json!({ "batch_id": "journal-only", "events": [event("other")] });
    assert_problem(&send(&server, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    blocking.commit().expect("the lock goes");
    assert_eq!(wait_until_completed(&server, "journal-only")["inserted"], 3);
    assert_eq!(rows_of(&database, "journal-only"), 3);
}

#[test]
fn twenty_retries_at_once_land_once_and_all_are_answered() {
    const SENDERS: usize = 20;
    let service = service();
    let body = batch("stampede", 5).to_string();
    let start = std::sync::Barrier::new(SENDERS);
    let answers: Vec<(u16, bool)> = thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|number| {
                let (start, body) = (&start, &body);
                let ack = ["ack=journal", "ack=commit", "ack=memory"][number % 3];
                scope.spawn(move || {
                    start.wait();
                    let reply = send(&service.server, ack, body.as_bytes());
                    (reply.status, reply.json()["duplicate"] == true)
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().expect("a sender does not panic")).collect()
    });
    assert!(answers.iter().all(|(status, _)| [200, 202].contains(status)), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, duplicate)| !duplicate).count(), 1, "one is first: {answers:?}");
    assert_eq!(wait_until_completed(&service.server, "stampede")["inserted"], 5);
    assert_eq!(rows_of(&service.database, "stampede"), 5);
}
