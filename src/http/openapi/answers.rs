//! Responses: the errors of each resource, from the table of codes, and headers.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::schemas::reference;
use crate::http::codes::{CODES, Code, KEYED};
use crate::metrics::Route;

/// A JSON answer of `schema` with `examples`, a name and a document each.
pub fn json_answer(description: &str, schema: Value, examples: &[(&str, Value)]) -> Value {
    json!({
        "description": description,
        "content": { "application/json": { "schema": schema, "examples": named(examples) } },
    })
}

/// A short text.
pub fn text_answer(description: &str, text: &str) -> Value {
    let schema = json!({ "type": "string", "const": text });
    json!({ "description": description, "content": { "text/plain": { "schema": schema, "example": text } } })
}

/// `examples` as OpenAPI has them.
pub fn named(examples: &[(&str, Value)]) -> Value {
    examples.iter().map(|(name, value)| ((*name).to_owned(), json!({ "value": value }))).collect::<Map<_, _>>().into()
}

/// Adds every error of `route` to `responses`, which has its successes.
pub fn add_errors(responses: &mut Map<String, Value>, route: Route) {
    let mut by_status = BTreeMap::<u16, Vec<&Code>>::new();
    for code in CODES.iter().filter(|code| code.routes.contains(&route)) {
        by_status.entry(code.status).or_default().push(code);
    }
    for (status, codes) in by_status {
        let error = error(status, &codes, route);
        match responses.get_mut(&status.to_string()) {
            // Unhealthy is told by 503 too, in its own document.
            Some(known) => {
                known["content"]["application/problem+json"] = error["content"]["application/problem+json"].clone()
            }
            None => drop(responses.insert(status.to_string(), error)),
        }
    }
}

fn error(status: u16, codes: &[&Code], route: Route) -> Value {
    let names: Vec<_> = codes.iter().map(|code| code.name).collect();
    let meanings: Vec<_> = codes.iter().map(|code| format!("`{}`: {}", code.name, code.meaning)).collect();
    let examples: Vec<_> = codes.iter().map(|code| (code.name, example(code))).collect();
    let schema = json!({
        "allOf": [reference("Problem"), { "properties": { "status": { "const": status }, "code": { "enum": names } } }],
    });
    json!({
        "description": format!("{}. {}.", title(status), meanings.join(". ")),
        "headers": error_headers(status, route),
        "content": { "application/problem+json": { "schema": schema, "examples": named(&examples) } },
    })
}

fn title(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

fn example(code: &Code) -> Value {
    let mut problem = json!({
        "type": format!("urn:ingestd:problem:{}", code.name),
        "title": title(code.status),
        "status": code.status,
        "code": code.name,
        "detail": code.meaning,
    });
    match code.name {
        "not_json" => problem["byte_offset"] = json!(17),
        "outcome_unknown" => problem["batch_id"] = json!("my_batch_001"),
        "invalid_batch" => list(
            &mut problem,
            Value::Null,
            "/events",
            "events_missing",
            "events is required and must be an array of events",
        ),
        "invalid_events" => list(
            &mut problem,
            json!(0),
            "/events/0/payload",
            "member_missing",
            "payload is required and must be an object",
        ),
        "service_not_allowed" => list(
            &mut problem,
            json!(0),
            "/events/0/service_name",
            "service_not_allowed",
            "the API key is not allowed to send events of this service",
        ),
        _ => {}
    }
    problem
}

fn list(problem: &mut Value, index: Value, pointer: &str, code: &str, detail: &str) {
    let event_id = if index.is_null() { Value::Null } else { json!("evt_123") };
    let item = json!({ "index": index, "event_id": event_id, "pointer": pointer, "code": code, "detail": detail });
    problem["errors"] = json!([item]);
    problem["errors_total"] = json!(1);
}

fn error_headers(status: u16, route: Route) -> Value {
    let mut headers = rate_headers(route);
    match status {
        401 => add(&mut headers, "WWW-Authenticate", true, "^Bearer ", "How to authenticate (RFC 6750)."),
        403 => add(&mut headers, "WWW-Authenticate", false, "^Bearer ", "The scope that is missing (RFC 6750)."),
        405 => add(&mut headers, "Allow", true, "^(POST|GET, HEAD)$", "The methods that the resource supports."),
        415 => {
            add(&mut headers, "Accept", false, "^application/json, ", "The media types that are accepted.");
            add(&mut headers, "Accept-Encoding", false, "^gzip, zstd$", "The content codings that are accepted.");
        }
        429 | 503 => {
            add(&mut headers, "Retry-After", true, "^[1-9][0-9]*$", "Seconds to wait before the next attempt.");
            if (status, route) == (503, Route::IngestBatch) {
                let description = "The status of the batch, with outcome_unknown.";
                add(&mut headers, "Location", false, "^/v1/batch/[A-Za-z0-9._:-]+/status$", description);
            }
        }
        _ => {}
    }
    headers
}

/// What tells callers of `route` where they stand, if they are held to rates.
pub fn rate_headers(route: Route) -> Value {
    let mut headers = json!({});
    if KEYED.contains(&route) {
        let policy = "Limits in force: \"events\" or \"requests\"; q: allowed at once; w: seconds until an empty \
            allowance is full again.";
        add(&mut headers, "RateLimit-Policy", false, r#"^"(events|requests)";q="#, policy);
        let state = "What remains: r are left; the allowance is full again in t seconds.";
        add(&mut headers, "RateLimit", false, r#"^"(events|requests)";r="#, state);
    }
    headers
}

/// Adds a header whose value has `pattern`.
pub fn add(headers: &mut Value, name: &str, required: bool, pattern: &str, description: &str) {
    headers[name] = json!({
        "description": description,
        "required": required,
        "schema": { "type": "string", "pattern": pattern },
    });
}
