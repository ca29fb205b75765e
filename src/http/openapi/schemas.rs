//! Schemas: of answers from their types, of requests by hand, as no type has them (the scanner copies nothing).

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::http::batches::WaitingBatches;
use crate::http::health::{Health, HealthWord};
use crate::http::ingest::Accepted;
use crate::http::problem::Document;
use crate::json::REJECTION_CODES;
use crate::limits::{ERRORS_LISTED_MAX, EVENT_ID_BYTES_MAX, NAME_BYTES_MAX, WAITING_LISTED_MAX};
use crate::metrics::report::Report;
use crate::status::model::StatusDocument;
use crate::types::{BATCH_ID_BYTES_MAX, OWNER_BYTES_MAX, PRIORITY_MAX};

/// What a batch id may be.
/// Not `.` and `..`, said without a lookahead, which not every tool knows.
const BATCH_ID_PATTERN: &str = r"^(\.{0,2}[A-Za-z0-9_:-]|\.{3})[A-Za-z0-9._:-]*$";

/// A reference to the schema called `name`.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A text that is a batch id.
pub fn batch_id() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": BATCH_ID_BYTES_MAX, "pattern": BATCH_ID_PATTERN })
}

/// A text that is the id of a key, or empty.
pub fn owner() -> Value {
    json!({ "type": "string", "maxLength": OWNER_BYTES_MAX, "pattern": "^[a-z0-9-]*$" })
}

/// A priority.
pub fn priority() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": PRIORITY_MAX })
}

/// All of them by name.
pub fn all() -> Value {
    let mut schemas = answered();
    schemas["ErrorItem"]["properties"]["code"]["enum"] = json!(REJECTION_CODES);
    schemas["Problem"]["properties"]["errors"]["maxItems"] = json!(ERRORS_LISTED_MAX);
    schemas["WaitingBatches"]["properties"]["batches"]["maxItems"] = json!(WAITING_LISTED_MAX);
    for (name, schema) in [("Batch", batch()), ("Event", event()), ("CloudEvent", cloud_event())] {
        schemas[name] = schema;
    }
    schemas
}

/// The types that are answered, for utoipa to collect with all that they hold.
#[derive(OpenApi)]
#[openapi(components(schemas(Accepted, Document, StatusDocument, WaitingBatches, HealthWord, Health, Report)))]
struct Answered;

/// Those of answers. They are closed: a member that is not described is a mistake.
fn answered() -> Value {
    // What utoipa makes is always JSON.
    let open = serde_json::to_value(Answered::openapi().components).unwrap_or_default();
    let open = &open["schemas"];
    let schemas = open.as_object().into_iter().flatten();
    let mut closed: Map<_, _> = schemas.map(|(name, schema)| (name.clone(), closed(schema, open))).collect();
    // Only ever part of others.
    closed.remove("Counts");
    closed.into()
}

/// `schema` with its flattened parts, which are among `all`, in it, and no other members allowed.
fn closed(schema: &Value, all: &Value) -> Value {
    let mut closed = schema.clone();
    if let Some(parts) = closed.as_object_mut().and_then(|members| members.remove("allOf")) {
        closed["type"] = json!("object");
        for part in parts.as_array().into_iter().flatten() {
            add_part(&mut closed, part, all);
        }
    }
    if closed["additionalProperties"].is_null() {
        closed["additionalProperties"] = json!(false);
    }
    closed
}

/// Adds the members of `part` to `whole`. Those of a part that may be absent, `oneOf` it and null, are not required.
fn add_part(whole: &mut Value, part: &Value, all: &Value) {
    let optional = part.get("oneOf").is_some();
    let part = if optional { &part["oneOf"][0] } else { part };
    let name = part["$ref"].as_str().and_then(|path| path.rsplit('/').next());
    let part = name.map_or(part, |name| &all[name]);
    for (name, member) in part["properties"].as_object().into_iter().flatten() {
        whole["properties"][name] = member.clone();
    }
    let required = part["required"].as_array().filter(|_| !optional).into_iter().flatten();
    let mut names = whole["required"].as_array().cloned().unwrap_or_default();
    names.extend(required.cloned());
    whole["required"] = names.into();
}

/// A text of the API that is kept: its length counts in bytes of UTF-8, which JSON Schema cannot say.
fn text(bytes_max: usize) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": bytes_max,
        "description": format!("1 to {bytes_max} bytes of UTF-8."),
    })
}

fn timestamp() -> Value {
    json!({
        "anyOf": [{ "type": "string", "format": "date-time" }, { "type": "null" }],
        "description": "RFC 3339, at most EVENT_MAX_AGE_DAYS before and EVENT_MAX_FUTURE_HOURS after the server's \
            clock. Null or absent: the time the request arrived.",
    })
}

fn event() -> Value {
    json!({
        "type": "object",
        "description": "Unknown members are ignored.",
        "required": ["event_id", "service_name", "event_type", "payload"],
        "properties": {
            "event_id": text(EVENT_ID_BYTES_MAX),
            "service_name": text(NAME_BYTES_MAX),
            "event_type": text(NAME_BYTES_MAX),
            "payload": { "type": "object", "description": "Stored digit for digit; at most 128 levels of nesting." },
            "timestamp": timestamp(),
            "metadata": { "type": ["object", "null"], "description": "Like payload; null is the same as absent." },
        },
    })
}

/// An array of what `schema` says, as a batch may hold.
pub fn events(schema: &str) -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "items": reference(schema),
        "description": "At most MAX_EVENTS_PER_BATCH.",
    })
}

fn nullable(mut schema: Value) -> Value {
    schema["type"] = json!([schema["type"], "null"]);
    schema
}

fn batch() -> Value {
    json!({
        "type": "object",
        "description": "Unknown members are ignored. A known member that occurs more than once is an error.",
        "required": ["events"],
        "properties": {
            "events": events("Event"),
            "batch_id": nullable(batch_id()),
            "priority": nullable(priority()),
        },
    })
}

fn cloud_event() -> Value {
    json!({
        "type": "object",
        "description": "CloudEvents 1.0 in JSON. id, source, type, time and data become event_id, service_name, \
            event_type, timestamp and payload; everything else becomes metadata. Without data the payload is {}.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": { "const": "1.0" },
            "id": text(EVENT_ID_BYTES_MAX),
            "source": text(NAME_BYTES_MAX),
            "type": text(NAME_BYTES_MAX),
            "time": timestamp(),
            "data": { "type": ["object", "null"] },
        },
    })
}
