//! Operations about batches that wait ([`crate::http::batches`]).

use serde_json::{Value, json};

use super::answers::{json_answer, rate_headers};
use super::operations::parameter;
use super::schemas::{batch_id, owner, reference};
use crate::limits::{WAITING_LISTED_DEFAULT, WAITING_LISTED_MAX};
use crate::metrics::Route;

pub fn list() -> Value {
    let example = json!({
        "total": 3, "stuck": 1,
        "batches": [{
            "batch_id": "my_batch_001", "owner": "", "status": "queued", "priority": 5, "events": 1,
            "received_at": "2026-11-24T04:03:19.198980Z",
            "stuck": {
                "since": "2026-11-24T04:03:19.264012Z", "attempts": 7, "next_attempt_at": "2026-11-24T04:03:31.004117Z",
                "sqlstate": "55P03", "reason": "events_2026_11 is locked by PID 4711 (ShareLock)", "given_up": false,
            },
        }],
    });
    let mut found = json_answer("Batches that wait.", reference("WaitingBatches"), &[("one_stuck", example)]);
    found["headers"] = rate_headers(Route::Batches);
    let limit = json!({
        "type": "integer", "minimum": 1, "maximum": WAITING_LISTED_MAX, "default": WAITING_LISTED_DEFAULT,
    });
    json!({
        "operationId": "waiting_batches",
        "tags": ["waiting"],
        "summary": "List the batches that wait on this node",
        "description": "Requires the scope `admin`. Accepted, not committed, and not in a COPY.",
        "parameters": [
            parameter("stuck", "query", json!({ "type": "boolean", "default": false }),
                "Only those that cannot be committed although others can."),
            parameter("limit", "query", limit, "How many are listed at most."),
        ],
        "responses": { "200": found },
    })
}

pub fn retry() -> Value {
    wish(
        Route::BatchRetry,
        "retry_batch",
        "Retry a stuck batch now",
        "Requires the scope `admin`. Its next attempt is due at once.",
        "Noted; the batch's status before the attempt.",
    )
}

pub fn bury() -> Value {
    wish(
        Route::BatchBury,
        "bury_batch",
        "Give up a stuck batch now",
        "Requires the scope `admin`. All its events go to dead_letter_events, with the last failure as the reason; \
         `ingestd dead-letter replay` stores them once the cause is gone.",
        "Noted; the batch's status before its events are dead letters.",
    )
}

fn wish(route: Route, id: &str, summary: &str, description: &str, noted: &str) -> Value {
    let example = json!({
        "batch_id": "my_batch_001", "status": "queued", "priority": 5, "events": 1, "inserted": 0, "duplicates": 0,
        "dead_lettered": 0, "received_at": "2026-11-24T04:03:19.198980Z", "completed_at": null, "node": "node-1",
        "reason": "events_2026_11 is locked by PID 4711 (ShareLock)",
    });
    let mut answer = json_answer(noted, reference("BatchStatus"), &[("noted", example)]);
    answer["headers"] = rate_headers(route);
    json!({
        "operationId": id,
        "tags": ["waiting"],
        "summary": summary,
        "description": format!("{description} Only the node that accepted the batch knows that it is stuck. A request \
            with an `Origin` header is refused."),
        "parameters": [
            parameter("batch_id", "path", batch_id(), "The batch's id."),
            parameter("owner", "query", owner(), "The id of the key that sent the batch."),
        ],
        "responses": { "202": answer },
    })
}
