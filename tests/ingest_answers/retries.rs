//! The same batch again is answered, not taken; the same id with another body is a conflict.

use std::thread;

use serde_json::{Value, json};

use super::service;
use super::support;
use super::support::contract::{
    accept, assert_problem, batch, batch_at, event, ingest_url, rows_of, send, wait_for_quick_lookups,
    wait_until_completed,
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
    let twice = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")];
    let turned = [twice[1], twice[0]];
    for (query, headers) in
        [("", &twice[..]), ("", &turned), ("batch_id=one&batch_id=two", &[]), ("batch_id=one", &twice)]
    {
        assert_problem(&send_as(server, query, headers, &json!([event("e")])), 422, "batch_id_mismatch");
    }
    let agreed = [("Idempotency-Key", "one"), ("Idempotency-Key", "\"one\"")];
    assert_eq!(send_as(server, "batch_id=one&batch_id=%6Fne", &agreed, &body).status, 202);
    assert_problem(&send_as(server, "ack=commit&ack=memory", &[], &json!([event("e")])), 422, "invalid_parameter");
}

#[test]
fn ids_that_a_path_would_lose_are_refused_wherever_they_are_given() {
    let server = &service().server;
    for id in [".", ".."] {
        let events = json!([event("dot")]);
        assert_problem(&send_as(server, &format!("batch_id={id}"), &[], &events), 422, "invalid_parameter");
        assert_problem(&send_as(server, "", &[("Idempotency-Key", id)], &events), 422, "invalid_batch_id");
        let body = json!({ "batch_id": id, "events": events });
        let reply = send(server, "", body.to_string().as_bytes());
        assert_problem(&reply, 422, "invalid_batch");
        assert_eq!(reply.json()["errors"][0]["code"], "batch_id_malformed");
    }
}

#[test]
fn the_location_of_every_accepted_id_works_with_curl() {
    let server = &service().server;
    for id in ["....", "..b", ".:.", "a:b", "::", "-:", "_:", "http:..x", "C:.._"] {
        let reply = send_as(server, "ack=commit", &[("Idempotency-Key", id)], &json!([event(id)]));
        assert_eq!(reply.status, 200, "{}", reply.text());
        let url = server.url(reply.header("location"));
        let done = std::process::Command::new("curl").args(["-sS", &url]).output().expect("curl runs");
        let status: Value = serde_json::from_slice(&done.stdout).expect("a status");
        assert_eq!((&status["batch_id"], &status["status"]), (&json!(id), &json!("completed")), "{url}");
    }
}

#[test]
fn a_malformed_owner_is_refused_and_spoils_no_other_look_up() {
    let server = &service().server;
    for owner in ["%00", "a%20b", "A", &"a".repeat(65)] {
        let reply = support::server::get(&server.url(&format!("/v1/batch/nobodys/status?owner={owner}")));
        assert_problem(&reply, 422, "invalid_parameter");
        assert_problem(&support::server::get(&server.url("/v1/batch/nobodys/status?owner=")), 404, "batch_unknown");
    }
}

#[test]
fn a_batch_whose_events_are_too_old_by_now_is_answered_as_the_repeat_that_it_is() {
    let database = support::postgres::shared().create_database();
    let start = |days| Ingestd::builder().database(&database).env("EVENT_MAX_AGE_DAYS", days).start();
    let old = super::acceptance::days_ago(5);
    let aged = batch_at("aged", 2, &old);
    let mut mixed = batch_at("mixed", 3, &old);
    mixed["events"][0]["payload"] = json!(7);
    mixed["events"][2]["timestamp"] = json!(null);
    let (aged, mixed) = (aged.to_string(), mixed.to_string());
    let before = start(3650);
    assert_eq!(send(&before, "ack=commit", aged.as_bytes()).status, 200);
    let first = send(&before, "ack=commit&invalid=skip", mixed.as_bytes());
    assert_eq!((first.status, &first.json()["accepted"]), (200, &json!(2)), "{}", first.text());
    let now = start(1);
    wait_for_quick_lookups(&now);
    for query in ["", "ack=memory", "ack=commit", "invalid=skip"] {
        let again = send(&now, query, aged.as_bytes());
        assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{query}: {}", again.text());
        assert_eq!(again.json()["inserted"], 2);
    }
    let again = send(&now, "invalid=skip", mixed.as_bytes()).json();
    for member in ["accepted", "rejected", "errors", "inserted"] {
        assert_eq!(again[member], first.json()[member], "{member}: {again}");
    }
    // What was never accepted is refused, and so is another body.
    assert_problem(&send(&now, "", batch_at("never", 2, &old).to_string().as_bytes()), 422, "invalid_events");
    let other = send(&now, "", batch_at("aged", 1, &old).to_string().as_bytes());
    assert_problem(&other, 422, "invalid_events");
    assert!(other.json()["detail"].as_str().expect("text").ends_with("nothing in this request was accepted"));
    // While nobody can be asked the answer claims nothing of earlier attempts.
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("nobody reads the ledger now");
    let unsure = send(&now, "", aged.as_bytes());
    assert_problem(&unsure, 422, "invalid_events");
    assert!(unsure.json()["detail"].as_str().expect("text").contains("cannot be looked up now"), "{}", unsure.text());
}

#[test]
fn a_batch_that_lost_its_id_leaves_it_to_the_batch_that_has_it() {
    let database = support::postgres::shared().create_database();
    let start = || Ingestd::builder().database(&database).start();
    let (one, other) = (start(), start());
    let rightful = batch("wanted", 1).to_string();
    let loser = json!({ "batch_id": "wanted", "events": [event("loser")] }).to_string();
    assert_eq!(send(&one, "ack=commit", rightful.as_bytes()).status, 200);
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("nobody reads the ledger now");
    let lost = thread::scope(|scope| {
        let lost = scope.spawn(|| send(&other, "ack=commit", loser.as_bytes()));
        let metrics = || support::server::get(&other.url("/v1/metrics")).text();
        wait_until("the batch is accepted", WAIT_MAX, || metrics().contains("ingestd_events_accepted_total 1\n"));
        blocking.commit().expect("the lock goes");
        lost.join().expect("it is answered")
    });
    let answer = lost.json();
    assert_eq!(
        (lost.status, &answer["status"], &answer["dead_lettered"]),
        (200, &json!("failed"), &json!(1)),
        "{answer}"
    );
    wait_for_quick_lookups(&other);
    assert_eq!(wait_until_completed(&other, "wanted")["inserted"], 1, "the id's status is that of who has it");
    let again = send(&other, "", rightful.as_bytes());
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    assert_problem(&send(&other, "", loser.as_bytes()), 409, "batch_id_conflict");
    // While the ledger cannot be read, nothing that this node remembers of the other batch speaks for the id.
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("nobody reads the ledger now");
    let status = support::server::get(&other.url("/v1/batch/wanted/status"));
    assert_problem(&status, 503, "status_unavailable");
    assert_eq!(send(&other, "", rightful.as_bytes()).status, 202, "it is accepted again, and stored once");
    blocking.commit().expect("the lock goes");
    wait_until_completed(&other, "wanted");
    assert_eq!(rows_of(&database, "wanted"), 1);
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
    // More than one where the ledger takes too long to say that it has the batch: then it is taken again.
    assert!(answers.iter().any(|(_, duplicate)| !duplicate), "one is first: {answers:?}");
    assert_eq!(wait_until_completed(&service.server, "stampede")["inserted"], 5);
    assert_eq!(rows_of(&service.database, "stampede"), 5);
}
