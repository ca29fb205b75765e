//! An id is one id, wherever it is given, and names one batch, also after that batch could not be sent any more.

use std::process::Command;

use ingestd::status::model::rfc3339;
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use serde_json::{Value, json};

use super::service;
use super::support::contract::{
    accept, assert_problem, batch_at, event, ingest_url, rows_of, send, wait_until_completed,
};
use super::support::server::{Ingestd, Reply, get, post};
use super::support::{WAIT_MAX, postgres, wait_until};

const DAY_MICROS: i64 = 86_400_000_000;

#[test]
fn ids_that_differ_are_refused_wherever_they_are_given() {
    let server = &service().server;
    let send = |query: &str, keys: &[&str], body: &Value| -> Reply {
        let headers: Vec<_> = keys.iter().map(|key| ("Idempotency-Key", *key)).collect();
        post(&ingest_url(server, query), &headers, body.to_string().as_bytes())
    };
    let (bare, named) = (json!([event("differs")]), json!({"batch_id": "differs-1", "events": [event("differs")]}));
    for (query, keys, body) in [
        ("", &["differs-1", "differs-2"][..], &bare),
        ("", &["differs-2", "differs-1"], &bare),
        ("", &["differs-1", "\"differs-2\""], &bare),
        ("batch_id=differs-1&batch_id=differs-2", &[], &bare),
        ("batch_id=differs-2", &["differs-1"], &bare),
        ("", &["differs-2"], &named),
        ("batch_id=differs-2", &[], &named),
    ] {
        assert_problem(&send(query, keys, body), 422, "batch_id_mismatch");
    }
    let agreed = send("batch_id=differs-1&batch_id=differs-1", &["differs-1", "\"differs-1\""], &named);
    assert_eq!(agreed.status, 202, "{}", agreed.text());
    assert_eq!(wait_until_completed(server, "differs-1")["inserted"], 1);
}

#[test]
fn the_status_of_every_id_is_found_at_its_location() {
    let service = service();
    for id in ["a:b", "...", ".a", "a..b", "..a", "-", "_", "a.b-c_d:e"] {
        let body = json!([event(id)]);
        let reply =
            post(&ingest_url(&service.server, "ack=commit"), &[("Idempotency-Key", id)], body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.text());
        let url = service.server.url(reply.header("location"));
        assert_eq!(get(&url).json()["batch_id"], id, "{url}");
        let curl = Command::new("curl").args(["-sS", &url]).output().expect("curl");
        let found: Value = serde_json::from_slice(&curl.stdout).expect("JSON");
        assert_eq!(found["batch_id"], id, "curl {url}");
    }
    for id in [".", ".."] {
        let body = json!({"batch_id": id, "events": [event("dots")]});
        assert_problem(&send(&service.server, "", body.to_string().as_bytes()), 422, "invalid_batch");
        let header = post(&ingest_url(&service.server, ""), &[("Idempotency-Key", id)], b"[]");
        assert_problem(&header, 422, "invalid_batch_id");
    }
}

#[test]
fn an_owner_that_cannot_be_one_has_no_batches() {
    let server = &service().server;
    for owner in ["%00", "a%20b", "%C3%A9", &"a".repeat(65)] {
        assert_problem(&get(&server.url(&format!("/v1/batch/any/status?owner={owner}"))), 404, "batch_unknown");
    }
}

fn wait_until_too_old(server: &Ingestd, timestamp: &str) {
    // Without an id: it is another batch each time.
    let probe = batch_at("probe", 1, timestamp)["events"].to_string();
    wait_until("events of that time are too old", WAIT_MAX, || {
        send(server, "ack=memory", probe.as_bytes()).status == 422
    });
}

#[test]
fn a_batch_that_was_taken_is_answered_although_its_events_have_aged_out() {
    let database = postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).env("EVENT_MAX_AGE_DAYS", 1).start();
    let timestamp = rfc3339(UnixMicros(wall_now().0 - DAY_MICROS + 3_000_000));
    let (whole, lines) = (batch_at("whole", 2, &timestamp), event("line"));
    accept(&server, "", &whole);
    let mut line = lines;
    line["timestamp"] = json!(timestamp);
    let send_line = |id: &str| {
        let headers = [("Content-Type", "application/x-ndjson"), ("Idempotency-Key", id)];
        post(&ingest_url(&server, ""), &headers, format!("{line}\n").as_bytes())
    };
    assert_eq!(send_line("lines").status, 202);
    wait_until_completed(&server, "whole");
    wait_until_completed(&server, "lines");
    wait_until_too_old(&server, &timestamp);

    for (query, reply) in [
        ("", send(&server, "", whole.to_string().as_bytes())),
        ("invalid=skip", send(&server, "invalid=skip", whole.to_string().as_bytes())),
        ("lines", send_line("lines")),
    ] {
        let answer = reply.json();
        assert_eq!(
            (reply.status, &answer["duplicate"], &answer["rejected"]),
            (200, &json!(true), &json!(0)),
            "{query}: {answer}"
        );
        assert_eq!(answer["inserted"], answer["accepted"], "{query}: {answer}");
    }
    assert_problem(&send_line("new"), 422, "invalid_events");
    let other = batch_at("whole", 3, &timestamp);
    assert_problem(&send(&server, "", other.to_string().as_bytes()), 422, "invalid_events");
    assert_eq!(rows_of(&database, "whole"), 2);
}

#[test]
fn what_a_browser_sends_for_a_page_of_another_site_is_refused() {
    let server = &service().server;
    let host = server.address();
    let own = format!("http://{host}");
    let body = json!([event("forged")]).to_string();
    let send = |headers: &[(&str, &str)]| post(&ingest_url(server, "ack=commit"), headers, body.as_bytes());
    for headers in [
        &[("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")][..],
        &[("Origin", "https://evil.example")],
        &[("Origin", "null")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Sec-Fetch-Site", "cross-site"), ("Content-Type", "application/json")],
    ] {
        assert_problem(&send(headers), 403, "cross_site");
    }
    assert_eq!(rows_of(&service().database, "forged"), 0);
    for headers in [&[][..], &[("Origin", &*own)], &[("Sec-Fetch-Site", "none")], &[("Sec-Fetch-Mode", "cors")]] {
        assert_eq!(send(headers).status, 200, "{headers:?}");
    }
}
