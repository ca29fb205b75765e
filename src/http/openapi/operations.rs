//! Operations: which request gets which answer.

use serde_json::{Map, Value, json};

use super::answers::{add, add_errors, json_answer, named, rate_headers, text_answer};
use super::schemas::{batch_id, events, owner, priority, reference};
use super::{Keys, waiting};
use crate::http::codes::KEYED;
use crate::metrics::{Label, Route};

/// All of them by path and method.
pub fn all(keys: Keys) -> Value {
    let get =
        |route: Route, operation: Value| (route.value().to_owned(), json!({ "get": complete(route, keys, operation) }));
    let post = |route: Route, operation: Value| {
        (route.value().to_owned(), json!({ "post": complete(route, keys, operation) }))
    };
    let paths = [
        post(Route::IngestBatch, ingest()),
        get(Route::BatchStatus, status()),
        get(Route::Batches, waiting::list()),
        post(Route::BatchRetry, waiting::retry()),
        post(Route::BatchBury, waiting::bury()),
        get(Route::Health, health()),
        get(Route::Live, live()),
        get(Route::Ready, ready()),
        get(Route::Metrics, metrics()),
        get(Route::OpenApi, openapi()),
    ];
    paths.into_iter().collect::<Map<_, _>>().into()
}

/// `operation` with the errors of `route` and who may ask for it.
fn complete(route: Route, keys: Keys, mut operation: Value) -> Value {
    if let Some(responses) = operation["responses"].as_object_mut() {
        add_errors(responses, route);
    }
    let (bearer, api_key) = (json!({ "bearer": [] }), json!({ "api_key": [] }));
    operation["security"] = match keys {
        Keys::Required if KEYED.contains(&route) => json!([bearer, api_key]),
        _ if KEYED.contains(&route) || route == Route::Health => json!([{}, bearer, api_key]),
        _ => json!([]),
    };
    operation
}

pub(super) fn parameter(name: &str, place: &str, schema: Value, description: &str) -> Value {
    json!({ "name": name, "in": place, "required": place == "path", "schema": schema, "description": description })
}

// --- POST /v1/ingest/batch ---

fn ingest() -> Value {
    json!({
        "operationId": "ingest_batch",
        "tags": ["batches"],
        "summary": "Send a batch of events",
        "description": "Requires the scope `ingest`. The same batch_id with the same body is the same batch, however \
            often it is sent; its events are stored once. When a batch is rejected, nothing in it is accepted; only \
            the answer `outcome_unknown` leaves that open. A \
            CloudEvent may also be sent in binary mode: its data as a JSON body, its attributes as ce- headers.",
        "parameters": [
            parameter("ack", "query", json!({ "type": "string", "enum": ["memory", "journal", "commit"] }),
                "When to answer: once the batch is queued (memory), is safe from power loss (journal), or is committed \
                 (commit). Default: the setting ACK."),
            parameter("invalid", "query", json!({ "type": "string", "enum": ["reject", "skip"], "default": "reject" }),
                "reject: one invalid event rejects the batch. skip: valid events are accepted and invalid ones are \
                 listed."),
            parameter("priority", "query", priority(),
                "Used when the body has none; 10 is the most urgent. Default: 0."),
            parameter("batch_id", "query", batch_id(), "Alternative to batch_id in the body."),
            parameter("Idempotency-Key", "header", idempotency_key(),
                "Alternative to batch_id in the body. If several are given, they must be equal."),
            parameter("Content-Encoding", "header", json!({ "type": "string", "enum": ["gzip", "zstd", "identity"] }),
                "How the body is compressed. Size limits apply to the decompressed body."),
        ],
        "requestBody": { "required": true, "content": bodies() },
        "responses": { "200": committed(), "202": queued() },
    })
}

/// Bare, or as a quoted string (the header's draft standard).
fn idempotency_key() -> Value {
    let pattern = r#"^([A-Za-z0-9._:-]{1,128}|"[A-Za-z0-9._:-]{1,128}")$"#;
    json!({ "type": "string", "pattern": pattern, "not": { "enum": [".", "..", "\".\"", "\"..\""] } })
}

fn bodies() -> Value {
    let lines = json!({
        "schema": {
            "type": "string",
            "format": "ndjson",
            "minLength": 1,
            "description": "One Event per line; blank lines are skipped.",
        },
        "examples": named(&[("two_events", json!(format!("{}\n{}\n", event("evt_1"), event("evt_2"))))]),
    });
    let array = json!([event("evt_123")]);
    let envelope = json!({ "events": [event("evt_123")], "batch_id": "my_batch_001", "priority": 5 });
    json!({
        "application/json": {
            "schema": { "oneOf": [reference("Batch"), events("Event")] },
            "examples": named(&[("batch", envelope), ("bare_array", array)]),
        },
        "application/x-ndjson": lines,
        "application/ndjson": lines,
        "application/jsonl": lines,
        "application/cloudevents-batch+json": {
            "schema": events("CloudEvent"),
            "examples": named(&[("two_events", json!([cloud_event("evt_1"), cloud_event("evt_2")]))]),
        },
        "application/cloudevents+json": {
            "schema": reference("CloudEvent"),
            "examples": named(&[("one_event", cloud_event("evt_123"))]),
        },
    })
}

fn event(id: &str) -> Value {
    json!({
        "event_id": id,
        "service_name": "user-service",
        "event_type": "user_login",
        "payload": { "user_id": "user_456" },
        "metadata": { "ip": "192.0.2.1" },
    })
}

fn cloud_event(id: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "user-service",
        "type": "user_login",
        "data": { "user_id": "user_456" },
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    })
}

fn accepted(status: &str) -> Value {
    json!({ "batch_id": "my_batch_001", "status": status, "accepted": 1, "rejected": 0, "errors": [] })
}

/// What both successes have: headers, and a link to the batch's status.
fn with_location(mut answer: Value) -> Value {
    let mut headers = rate_headers(Route::IngestBatch);
    add(
        &mut headers,
        "Location",
        true,
        r"^/v1/batch/(\.{0,2}[A-Za-z0-9_:-]|\.{3})[A-Za-z0-9._:-]*/status$",
        "The batch's status.",
    );
    answer["headers"] = headers;
    answer["links"] = json!({
        "status": {
            "operationId": "batch_status",
            "parameters": { "batch_id": "$response.body#/batch_id" },
            "description": "The batch's status.",
        },
    });
    answer
}

fn queued() -> Value {
    let schema = json!({ "allOf": [reference("Accepted"), { "properties": { "status": { "const": "queued" } } }] });
    let mut skipped = accepted("queued");
    skipped["rejected"] = json!(1);
    skipped["errors"] = json!([{
        "index": 1, "event_id": "evt_124", "pointer": "/events/1/payload", "code": "member_wrong_type",
        "detail": "payload must be an object",
    }]);
    let description = "Accepted, and as durable as `ack` asks for. With ack=commit: PostgreSQL did not answer in time; \
        the batch is safe in the journal.";
    with_location(json_answer(description, schema, &[("queued", accepted("queued")), ("with_skipped_events", skipped)]))
}

fn committed() -> Value {
    let with_counts = |status: &str| {
        let mut document = accepted(status);
        for (name, count) in [("inserted", 1), ("duplicates", 0), ("dead_lettered", 0)] {
            document[name] = json!(count);
        }
        document
    };
    let mut again = with_counts("completed");
    again["duplicate"] = json!(true);
    let description = "Committed (ack=commit), or already known (`duplicate`), then with its current status. `duplicates` counts events whose \
                       service, type, timestamp and id are stored already.";
    let examples = [("committed", with_counts("completed")), ("known_before", again)];
    with_location(json_answer(description, reference("Accepted"), &examples))
}

// --- The others ---

fn status() -> Value {
    let example = json!({
        "batch_id": "my_batch_001", "status": "completed", "priority": 5, "events": 1, "inserted": 1, "duplicates": 0,
        "dead_lettered": 0, "received_at": "2026-11-24T04:03:19.198980Z",
        "completed_at": "2026-11-24T04:03:19.210192Z", "node": "node-1",
    });
    let mut found = json_answer("The batch's status.", reference("BatchStatus"), &[("completed", example)]);
    found["headers"] = rate_headers(Route::BatchStatus);
    json!({
        "operationId": "batch_status",
        "tags": ["batches"],
        "summary": "Get the status of a batch",
        "description": "Requires the scope `read`, for batches of the same key; with `admin`, for batches of all keys.",
        "parameters": [
            parameter("batch_id", "path", batch_id(), "The batch's id."),
            parameter("owner", "query", owner(), "The id of the key that sent the batch."),
        ],
        "responses": { "200": found },
    })
}

fn health() -> Value {
    let with_status = |words: &[&str]| {
        let narrowed = |name| json!({ "allOf": [reference(name), { "properties": { "status": { "enum": words } } }] });
        json!({ "oneOf": [narrowed("Health"), narrowed("HealthWord")] })
    };
    let word = |word| [("word", json!({ "status": word }))];
    json!({
        "operationId": "health",
        "tags": ["operation"],
        "summary": "Health of the server",
        "description": "One word; with details for callers with the scope `metrics`.",
        "responses": {
            "200": json_answer("Batches are accepted.", with_status(&["healthy", "degraded"]), &word("healthy")),
            "503": json_answer("No batches can be accepted.", with_status(&["unhealthy"]), &word("unhealthy")),
        },
    })
}

fn live() -> Value {
    json!({
        "operationId": "live",
        "tags": ["operation"],
        "summary": "Whether the process responds",
        "responses": { "200": text_answer("The process responds.", "alive\n") },
    })
}

fn ready() -> Value {
    json!({
        "operationId": "ready",
        "tags": ["operation"],
        "summary": "Whether this node is ready for traffic",
        "description": "A node stays ready while PostgreSQL is unavailable.",
        "responses": { "200": text_answer("The node is ready.", "ready\n") },
    })
}

fn metrics() -> Value {
    let text = |example: &str| json!({ "schema": { "type": "string" }, "example": example });
    let sample = "# TYPE ingestd_events_accepted_total counter\ningestd_events_accepted_total 42\n";
    json!({
        "operationId": "metrics",
        "tags": ["operation"],
        "summary": "Metrics",
        "description": "Requires the scope `metrics`. Prometheus text, OpenMetrics or JSON, chosen by `Accept` or \
            `format`.",
        "parameters": [parameter("format", "query",
            json!({ "type": "string", "enum": ["prometheus", "text", "openmetrics", "json"] }),
            "Takes precedence over Accept.")],
        "responses": { "200": {
            "description": "All metrics at one point in time.",
            "headers": rate_headers(Route::Metrics),
            "content": {
                "text/plain": text(sample),
                "application/openmetrics-text": text(&format!("{sample}# EOF\n")),
                "application/json": { "schema": reference("Metrics") },
            },
        } },
    })
}

fn openapi() -> Value {
    let schema = json!({
        "type": "object",
        "required": ["openapi", "info", "paths", "components"],
        "properties": { "openapi": { "type": "string", "pattern": r"^3\.1\." } },
    });
    json!({
        "operationId": "openapi",
        "tags": ["operation"],
        "summary": "This document",
        "responses": { "200": json_answer("OpenAPI 3.1.", schema, &[]) },
    })
}
