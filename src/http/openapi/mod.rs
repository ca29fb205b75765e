//! `GET /openapi.json`: this interface as an OpenAPI 3.1 document.
//!
//! It is made once, of the types that are answered ([`schemas`]: their schemas come from the same derive lines as their
//! JSON), of the limits that requests are held to, and of the table of errors ([`answers`] reads [`crate::http::codes`]).
//! [`operations`] says which request gets which answer, with [`waiting`] for those about batches that wait. What no type says is held by a test, which sends a server what
//! the document allows, and what it does not, and compares the answers.
//!
//! Absent on purpose: HEAD, which every GET answers, and the dashboard, which is for people.

mod answers;
mod operations;
mod schemas;
mod waiting;

use std::sync::LazyLock;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::http::route::with_type;
use crate::http::worker::Worker;

/// Whether the server that is described asks for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Required,
    Off,
}

/// The document of this server.
pub fn get(worker: &Worker) -> Response<Full<Bytes>> {
    static WITH_KEYS: LazyLock<Bytes> = LazyLock::new(|| bytes(Keys::Required));
    static WITHOUT_KEYS: LazyLock<Bytes> = LazyLock::new(|| bytes(Keys::Off));
    let document = if worker.app.gate.asks_for_keys() { &WITH_KEYS } else { &WITHOUT_KEYS };
    with_type(StatusCode::OK, "application/json", Bytes::clone(document))
}

fn bytes(keys: Keys) -> Bytes {
    Bytes::from(document(keys).to_string())
}

fn document(keys: Keys) -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ingestd",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Accepts batches of JSON events and stores each event exactly once in PostgreSQL.",
            "description": "Every resource with GET also answers HEAD, without the body. Errors are \
                application/problem+json (RFC 9457) with a stable `code`. Unknown query parameters and unknown members \
                of batches and events are ignored.",
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "batches", "description": "Send events and query their status." },
            { "name": "waiting", "description": "For operators: batches that wait, and those that are stuck." },
            { "name": "operation", "description": "For operators of the server." },
        ],
        "paths": operations::all(keys),
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "An API key (`ingestd keys new`)." },
                "api_key": { "type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key." },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` in `value`.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_schema_is_there_and_used() {
        let document = document(Keys::Required);
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in &found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().expect("schemas").keys() {
            assert!(found.contains(&format!("#/components/schemas/{name}")), "{name} is not used");
        }
    }

    #[test]
    fn keys_are_asked_for_where_the_server_has_them() {
        let security = |keys| document(keys)["paths"]["/v1/ingest/batch"]["post"]["security"].clone();
        assert_eq!(security(Keys::Required), json!([{ "bearer": [] }, { "api_key": [] }]));
        assert_eq!(security(Keys::Off), json!([{}, { "bearer": [] }, { "api_key": [] }]));
        assert_eq!(document(Keys::Required)["paths"]["/livez"]["get"]["security"], json!([]));
    }
}
