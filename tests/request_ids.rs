//! Promise: a request can be followed through the log, from its answer to the commit of its batch, under its own id and
//! the trace that its client is part of.

mod support;

use serde_json::{Value, json};

use support::contract::{assert_problem, batch, event};
use support::postgres::{TestDatabase, shared};
use support::server::{Ingestd, Reply, get, get_with, post};
use support::{WAIT_MAX, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn server(database: &TestDatabase, level: &str) -> Ingestd {
    Ingestd::builder().database(database).env("LOG_FORMAT", "json").env("LOG_LEVEL", level).start()
}

fn send(server: &Ingestd, body: &Value, headers: &[(&str, &str)]) -> Reply {
    let headers = [headers, &[("Content-Type", "application/json")]].concat();
    post(&server.url("/v1/ingest/batch?ack=commit"), &headers, body.to_string().as_bytes())
}

/// The line of the log with `message` that tells of the request `id`, once it is there.
fn line_of(server: &Ingestd, message: &str, id: &str) -> Value {
    let mut found = None;
    wait_until(&format!("{message} is told of {id}"), WAIT_MAX, || {
        let log = server.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_said = |line: &Value| line["message"].as_str().is_some_and(|said| said.starts_with(message));
        found = lines.find(|line| is_said(line) && line["request_id"] == id);
        found.is_some()
    });
    found.expect("it was waited for")
}

#[test]
fn a_batch_is_followed_to_its_commit_under_the_clients_ids() {
    let database = shared().create_database();
    let server = server(&database, "debug");
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let reply = send(&server, &batch("traced", 3), &[("X-Request-Id", "checkout-7"), ("traceparent", &parent)]);
    assert_eq!((reply.status, reply.header("x-request-id")), (200, "checkout-7"), "{}", reply.text());
    for message in ["accepted", "committed", "answered"] {
        let line = line_of(&server, message, "checkout-7");
        assert_eq!(line["trace_id"], TRACE, "{line}");
        assert!(message == "answered" || line["batch"] == "traced", "{line}");
    }
}

#[test]
fn a_request_without_an_id_gets_one_and_what_is_no_id_is_not_taken() {
    let database = shared().create_database();
    let server = server(&database, "info");
    let ids: Vec<_> = (0..2).map(|_| get(&server.url("/livez")).header("x-request-id").to_owned()).collect();
    assert!(ids[0].len() == 36 && ids[0] != ids[1], "{ids:?}");
    for bad in ["two words", &"x".repeat(129), "\u{fc}"] {
        let reply = get_with(&server.url("/livez"), &[("X-Request-Id", bad)]);
        assert!(reply.status == 200 && reply.header("x-request-id").len() == 36, "{bad}");
    }
    let refused =
        send(&server, &json!({ "events": [] }), &[("X-Request-Id", "refused-1"), ("traceparent", "nonsense")]);
    assert_problem(&refused, 422, "invalid_batch");
    assert_eq!(refused.header("x-request-id"), "refused-1");
}

#[test]
fn refused_events_are_told_with_the_request_that_brought_them() {
    let database = shared().create_database();
    let server = server(&database, "info");
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.event_id = 'bad') EXECUTE FUNCTION refuse()";
    database.connect().batch_execute(refuse).expect("a trigger");
    let mixed = json!({ "batch_id": "mixed", "events": [event("bad"), event("good")] });
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-00");
    let reply = send(&server, &mixed, &[("X-Request-Id", "mixed-1"), ("traceparent", &parent)]);
    assert_eq!(reply.json()["dead_lettered"], 1, "{}", reply.text());
    let told = line_of(&server, "PostgreSQL rejected events", "mixed-1");
    let seen = |name: &str| told[name].clone();
    assert_eq!((seen("batch"), seen("request_id"), seen("trace_id")), (json!("mixed"), json!("mixed-1"), json!(TRACE)));
    assert_eq!((seen("level"), seen("dead_lettered"), seen("events")), (json!("WARN"), json!(1), json!(2)));
}
