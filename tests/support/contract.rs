//! What the tests of the HTTP API (docs/api.md) share: small batches, and what every refusal must look like.

use std::time::Instant;

use ingestd::limits::LOOKUP_INGEST_WAIT_MAX;
use serde_json::{Value, json};

use super::postgres::TestDatabase;
use super::server::{Ingestd, Reply, get, post};
use super::{WAIT_MAX, wait_until};

/// Words that would tell a client about our inside: SQL, files of this machine, Rust.
const INTERNALS: [&str; 12] = [
    "SELECT ",
    "INSERT ",
    "COPY ",
    "SQLSTATE",
    "postgres",
    "ingest_batches",
    "/home",
    "/tmp",
    "/var",
    "src/",
    ".rs",
    "panic",
];

/// A good event.
pub fn event(id: &str) -> Value {
    json!({
        "event_id": id, "service_name": "user-service", "event_type": "user_login",
        "payload": {"user_id": "user_456"}, "metadata": {"ip": "192.0.2.1"},
    })
}

/// A batch of `count` good events called `{batch_id}-0`, `{batch_id}-1` …
pub fn batch(batch_id: &str, count: usize) -> Value {
    let events: Vec<Value> = (0..count).map(|number| event(&format!("{batch_id}-{number}"))).collect();
    json!({ "batch_id": batch_id, "events": events })
}

/// The same, of events that happened at `timestamp`.
pub fn batch_at(batch_id: &str, count: usize, timestamp: &str) -> Value {
    let mut batch = batch(batch_id, count);
    for event in batch["events"].as_array_mut().expect("events") {
        event["timestamp"] = json!(timestamp);
    }
    batch
}

/// The URL of ingestion with `query` (without `?`).
pub fn ingest_url(server: &Ingestd, query: &str) -> String {
    let mark = if query.is_empty() { "" } else { "?" };
    server.url(&format!("/v1/ingest/batch{mark}{query}"))
}

/// Sends `body` as JSON.
pub fn send(server: &Ingestd, query: &str, body: &[u8]) -> Reply {
    post(&ingest_url(server, query), &[("Content-Type", "application/json")], body)
}

/// Sends `body` as JSON, which must be accepted with 202 and status `queued`.
pub fn accept(server: &Ingestd, query: &str, body: &Value) -> Value {
    let reply = send(server, query, body.to_string().as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
    let answer = reply.json();
    assert_eq!(answer["status"], "queued");
    answer
}

/// The status document of a batch that is known. PostgreSQL on a busy machine may take longer to be asked than the server
/// waits for it: then it says to come again.
pub fn status_of(server: &Ingestd, batch_id: &str) -> Value {
    let ask = || get(&server.url(&format!("/v1/batch/{batch_id}/status")));
    let mut reply = ask();
    wait_until(&format!("the status of {batch_id} can be known"), WAIT_MAX, || {
        let is_known = reply.status != 503;
        if !is_known {
            reply = ask();
        }
        is_known
    });
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Waits until the server says that `batch_id` is in PostgreSQL; its status document.
pub fn wait_until_completed(server: &Ingestd, batch_id: &str) -> Value {
    wait_until(&format!("batch {batch_id} is completed"), WAIT_MAX, || {
        status_of(server, batch_id)["status"] == "completed"
    });
    status_of(server, batch_id)
}

/// Waits until the server's upkeep has come around with all that was due, as dropping partitions and forgetting batches.
/// What only upkeep sees tells: it finds a schema that is newer than it knows, and in a later round, in which nothing of
/// that was due any more, that the schema is not newer.
pub fn wait_for_upkeep(server: &Ingestd, database: &TestDatabase) {
    let is_noticed = || {
        let check = get(&server.url("/v1/health")).json()["checks"]["database"].clone();
        check["reason"].as_str().is_some_and(|reason| reason.contains("version 9999"))
    };
    let mut client = database.connect();
    client.batch_execute("INSERT INTO ingestd_migrations (version, name) VALUES (9999, 'later')").expect("a row");
    wait_until("upkeep finds a newer schema", WAIT_MAX, is_noticed);
    client.batch_execute("DELETE FROM ingestd_migrations WHERE version = 9999").expect("a row");
    wait_until("upkeep finds the schema as it was", WAIT_MAX, || !is_noticed());
}

/// Waits until the server learns from the ledger well within the quarter of a second that ingestion waits for it: beyond that
/// a batch is taken, and found out at its commit. Before a test asks whether a batch of an earlier process is known.
pub fn wait_for_quick_lookups(server: &Ingestd) {
    wait_until("look-ups are quick", WAIT_MAX, || {
        let begun = Instant::now();
        let answer = get(&server.url("/v1/batch/nobody-has-this/status"));
        answer.status == 404 && begun.elapsed() < LOOKUP_INGEST_WAIT_MAX / 4
    });
}

/// Rows of `events` that came with `batch_id`.
pub fn rows_of(database: &TestDatabase, batch_id: &str) -> i64 {
    let row = database.connect().query_one("SELECT count(*) FROM events WHERE batch_id = $1", &[&batch_id]);
    row.expect("events can be read").get(0)
}

/// A refusal as in docs/api.md#errors: RFC 9457, a stable code, nothing internal. Gives the document.
pub fn assert_problem(reply: &Reply, status: u16, code: &str) -> Value {
    let text = reply.text();
    assert_eq!(reply.status, status, "{text}");
    assert_eq!(reply.header("content-type"), "application/problem+json", "{text}");
    let document = reply.json();
    assert_eq!(document["code"], code, "{text}");
    assert_eq!(document["status"], status, "{text}");
    for member in ["type", "title", "detail"] {
        assert!(document[member].as_str().is_some_and(|text| !text.is_empty()), "{member} is missing in {text}");
    }
    for internal in INTERNALS {
        assert!(!text.contains(internal), "{internal:?} leaks into {text}");
    }
    document
}
