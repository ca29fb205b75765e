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

const EVERY: &[Route] =
    &[Route::IngestBatch, Route::BatchStatus, Route::Health, Route::Live, Route::Ready, Route::Metrics, Route::OpenApi];
/// Those that need a key, where there are keys.
const KEYED: &[Route] = &[Route::IngestBatch, Route::BatchStatus, Route::Metrics];
/// Those that look at a key if there is one.
const IDENTIFYING: &[Route] = &[Route::IngestBatch, Route::BatchStatus, Route::Metrics, Route::Health];
const INGEST: &[Route] = &[Route::IngestBatch];
const STATUS: &[Route] = &[Route::BatchStatus];
const METRICS: &[Route] = &[Route::Metrics];
const READY: &[Route] = &[Route::Ready];

/// All codes, by status.
pub const CODES: &[Code] = &[
    code("not_json", 400, INGEST, "the body, or each of its lines, is not JSON; `byte_offset` says where"),
    code("encoding_invalid", 400, INGEST, "the body is not what Content-Encoding says"),
    code("invalid_attribute", 400, INGEST, "a ce- header is not readable as an attribute of a CloudEvent"),
    code("body_incomplete", 400, INGEST, "the body ended early"),
    code("unknown_format", 400, METRICS, "?format= names no form of metrics"),
    code("https_required", 400, EVERY, "this address serves HTTPS only"),
    code("key_missing", 401, KEYED, "there is no API key in the request"),
    code("key_invalid", 401, IDENTIFYING, "the API key is not one of this server's"),
    code("scope_missing", 403, KEYED, "the API key lacks the scope; WWW-Authenticate names it"),
    code(
        "service_not_allowed",
        403,
        INGEST,
        "events are of services that the API key does not have; nothing was taken",
    ),
    code("batch_unknown", 404, STATUS, "no batch of this id is known"),
    code("not_found", 404, STATUS, "there is no such resource"),
    code("method_not_allowed", 405, EVERY, "the resource does not have this method; Allow names those it has"),
    code("not_acceptable", 406, METRICS, "Accept admits none of the forms of metrics"),
    code("body_timeout", 408, INGEST, "the body comes too slowly; the connection is closed"),
    code("batch_id_conflict", 409, INGEST, "the batch_id was used before with a different body"),
    code("batch_ambiguous", 409, STATUS, "several keys have a batch of this id; ?owner= names one"),
    code("body_too_large", 413, INGEST, "the body is larger than MAX_BODY_MB, as sent or decompressed"),
    code("too_many_events", 413, INGEST, "the batch has more than MAX_EVENTS_PER_BATCH events"),
    code("batch_too_large", 413, INGEST, "the batch is larger than the journal may ever hold"),
    code("batch_over_rate_limit", 413, INGEST, "the batch has more events than the rate limit admits at once"),
    code("url_too_long", 414, EVERY, "path and query are longer than any resource needs"),
    code("unsupported_media_type", 415, INGEST, "Content-Type is none of those listed here"),
    code("unsupported_encoding", 415, INGEST, "Content-Encoding is none of those in Accept-Encoding"),
    code("invalid_parameter", 422, INGEST, "a query parameter has a value that it cannot have"),
    code("invalid_batch_id", 422, INGEST, "Idempotency-Key is not a batch id"),
    code("batch_id_mismatch", 422, INGEST, "batch_id, Idempotency-Key and ?batch_id= name different batches"),
    code("invalid_batch", 422, INGEST, "the body is JSON, but no batch; `errors` has the reason"),
    code("invalid_events", 422, INGEST, "events are invalid; nothing was taken, `errors` has a verdict on each"),
    code("owner_missing", 422, STATUS, "there are too many keys to look for a batch of each; ?owner= names one"),
    code("rate_limited", 429, KEYED, "too many requests or events in too short a time; nothing was taken"),
    code("too_many_headers", 431, EVERY, "the request has too many headers"),
    code(
        "internal_error",
        500,
        EVERY,
        "the server failed on this request; a batch may be sent again under its batch_id",
    ),
    code("draining", 503, INGEST, "the server is shutting down"),
    code("journal_unavailable", 503, INGEST, "the journal cannot be written or is full; nothing was taken"),
    code("journal_full", 503, INGEST, "the journal is full until PostgreSQL has caught up; nothing was taken"),
    code("queue_full", 503, INGEST, "too many batches wait; nothing was taken"),
    code("overloaded", 503, INGEST, "PostgreSQL has more to commit than it can in time; nothing was taken"),
    code("busy", 503, INGEST, "too many request bytes are in flight; nothing was taken"),
    code("status_unavailable", 503, STATUS, "this node does not know the batch, and PostgreSQL cannot be asked now"),
    code("not_ready", 503, READY, "this node should get no traffic now"),
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
