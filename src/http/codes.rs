//! Every code that a problem may have: a closed table, which the OpenAPI document lists.
//!
//! Invariant: no problem has a code, or a status with it, that is not in here. Tests hold that, as do debug builds.

use crate::metrics::Route;

/// A code, and where it may occur.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Its stable name.
    pub name: &'static str,
    /// The status that it comes with.
    pub status: u16,
    /// The resources that answer it.
    pub routes: &'static [Route],
    /// When it occurs.
    pub meaning: &'static str,
}

const fn code(name: &'static str, status: u16, routes: &'static [Route], meaning: &'static str) -> Code {
    Code { name, status, routes, meaning }
}

const EVERY: &[Route] = &[
    Route::IngestBatch,
    Route::BatchStatus,
    Route::Batches,
    Route::BatchRetry,
    Route::BatchBury,
    Route::Health,
    Route::Live,
    Route::Ready,
    Route::Metrics,
    Route::OpenApi,
];
/// Those that need a key, where there are keys.
pub const KEYED: &[Route] =
    &[Route::IngestBatch, Route::BatchStatus, Route::Batches, Route::BatchRetry, Route::BatchBury, Route::Metrics];
/// Those that look at a key if there is one.
const IDENTIFYING: &[Route] = &[
    Route::IngestBatch,
    Route::BatchStatus,
    Route::Batches,
    Route::BatchRetry,
    Route::BatchBury,
    Route::Metrics,
    Route::Health,
];
const INGEST: &[Route] = &[Route::IngestBatch];
const STATUS: &[Route] = &[Route::BatchStatus];
/// Those with the id of a batch in their path.
const OF_BATCH: &[Route] = &[Route::BatchStatus, Route::BatchRetry, Route::BatchBury];
const POSTED: &[Route] = &[Route::IngestBatch, Route::BatchRetry, Route::BatchBury];
/// Those that do something about a stuck batch.
const STUCK: &[Route] = &[Route::BatchRetry, Route::BatchBury];
const PARAMETERS: &[Route] =
    &[Route::IngestBatch, Route::BatchStatus, Route::Batches, Route::BatchRetry, Route::BatchBury, Route::Metrics];
const METRICS: &[Route] = &[Route::Metrics];
const READY: &[Route] = &[Route::Ready];

/// All codes, by status.
pub const CODES: &[Code] = &[
    code("not_json", 400, INGEST, "the body, or every line of it, is not JSON; `byte_offset` gives the position"),
    code("encoding_invalid", 400, INGEST, "the body is not valid data of the Content-Encoding"),
    code("invalid_attribute", 400, INGEST, "a ce- header is not a valid CloudEvents attribute"),
    code("body_incomplete", 400, INGEST, "the body ended before it was complete"),
    code("unknown_format", 400, METRICS, "?format= is not a known metrics format"),
    code("host_invalid", 400, EVERY, "not one Host header, or not with a host"),
    code("https_required", 400, EVERY, "this address serves HTTPS only"),
    code("key_missing", 401, KEYED, "the request has no API key"),
    code("key_invalid", 401, IDENTIFYING, "the API key is unknown to this server"),
    code("scope_missing", 403, KEYED, "the API key lacks the required scope, which WWW-Authenticate names"),
    code(
        "service_not_allowed",
        403,
        INGEST,
        "the API key is not allowed to send events of these services; nothing was accepted",
    ),
    code("cross_site", 403, POSTED, "a web page of another site sent the request; of stuck batches: any web page"),
    code("host_not_allowed", 403, EVERY, "without keys, a Host that is not of this machine"),
    code("batch_unknown", 404, OF_BATCH, "no batch with this id is known"),
    code("not_found", 404, OF_BATCH, "there is no such resource"),
    code("method_not_allowed", 405, EVERY, "the resource does not support this method; Allow lists those it supports"),
    code("not_acceptable", 406, METRICS, "Accept allows none of the metrics formats"),
    code("body_timeout", 408, INGEST, "the body is arriving too slowly; the connection is closed"),
    code("batch_id_conflict", 409, INGEST, "the batch_id was already used with a different body"),
    code("batch_ambiguous", 409, OF_BATCH, "several keys have a batch with this id; choose one with ?owner="),
    code("batch_not_stuck", 409, STUCK, "the batch only waits for its turn, or is committed; nothing was done"),
    code("body_too_large", 413, INGEST, "the body is larger than MAX_BODY_MB, as sent or decompressed"),
    code("too_many_events", 413, INGEST, "the batch has more than MAX_EVENTS_PER_BATCH events"),
    code("batch_too_large", 413, INGEST, "the batch is larger than the whole journal may be"),
    code("batch_over_rate_limit", 413, INGEST, "the batch has more events than the rate limit allows at once"),
    code("url_too_long", 414, EVERY, "path and query are longer than any resource needs"),
    code("unsupported_media_type", 415, INGEST, "the Content-Type is not one of those listed here"),
    code("unsupported_encoding", 415, INGEST, "the Content-Encoding is not one of those in Accept-Encoding"),
    code("invalid_parameter", 422, PARAMETERS, "a query parameter has an invalid value, or several different ones"),
    code("invalid_batch_id", 422, INGEST, "Idempotency-Key is not a valid batch id"),
    code("batch_id_mismatch", 422, INGEST, "batch_id, Idempotency-Key and ?batch_id= name different batches"),
    code("invalid_batch", 422, INGEST, "the body is JSON but not a batch; `errors` gives the reason"),
    code("invalid_events", 422, INGEST, "events are invalid; nothing was accepted, `errors` has a verdict on each"),
    code(
        "owner_missing",
        422,
        STATUS,
        "there are too many keys to search the batches of each; choose one with ?owner=",
    ),
    code("rate_limited", 429, KEYED, "too many requests or events in too short a time; nothing was accepted"),
    code("too_many_headers", 431, EVERY, "the request has too many headers"),
    code(
        "internal_error",
        500,
        EVERY,
        "the server failed to process this request; it is safe to retry a batch with the same batch_id",
    ),
    code("draining", 503, INGEST, "the server is shutting down"),
    code("journal_unavailable", 503, INGEST, "the journal cannot be written or is full; nothing was accepted"),
    code(
        "outcome_unknown",
        503,
        INGEST,
        "the journal failed while it wrote the batch, which may have been taken or not; send the same body again with \
         the `batch_id` given here, and it is stored once",
    ),
    code("journal_full", 503, INGEST, "the journal is full until PostgreSQL has caught up; nothing was accepted"),
    code("queue_full", 503, INGEST, "too many batches are queued; nothing was accepted"),
    code("overloaded", 503, INGEST, "PostgreSQL cannot commit the backlog in time; nothing was accepted"),
    code("busy", 503, INGEST, "too many request bytes are in flight; nothing was accepted"),
    code(
        "status_unavailable",
        503,
        STATUS,
        "this node does not know the batch, and PostgreSQL cannot be queried right now",
    ),
    code("not_ready", 503, READY, "this node should not receive traffic right now"),
    code("too_many_connections", 503, EVERY, "too many connections are open; this one is closed"),
];

/// Whether `name` may come with `status`.
pub fn is_listed(name: &str, status: u16) -> bool {
    CODES.iter().any(|code| code.name == name && code.status == status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_there_once_and_has_one_status() {
        for (index, code) in CODES.iter().enumerate() {
            assert!(code.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", code.name);
            assert!(CODES[..index].iter().all(|other| other.name != code.name), "{}", code.name);
            assert!(CODES[..index].iter().all(|other| other.status <= code.status), "{}: by status", code.name);
        }
    }
}
