//! The spans themselves: names, parents, times and attributes.

use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use opentelemetry_semantic_conventions::SCHEMA_URL;
use opentelemetry_semantic_conventions::attribute::{
    DB_COLLECTION_NAME, DB_OPERATION_NAME, DB_SYSTEM_NAME, ERROR_TYPE, HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE, SERVICE_INSTANCE_ID, SERVICE_VERSION, URL_PATH, URL_SCHEME,
};

use super::{Copied, span_id};
use crate::status::model::{Batch, Phase};
use crate::status::origin::{Recorded, RequestId, TraceParent};

const NAME: &str = "ingestd";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const METHOD: &str = "POST";
const ROUTE: &str = "/v1/ingest/batch";

/// Who sends the spans: `NODE_ID` of ingestd, and what `OTEL_RESOURCE_ATTRIBUTES` adds.
pub(super) fn resource(node: &str) -> Resource {
    let attributes = [KeyValue::new(SERVICE_VERSION, VERSION), KeyValue::new(SERVICE_INSTANCE_ID, node.to_owned())];
    Resource::builder().with_service_name(NAME).with_schema_url(attributes, SCHEMA_URL).build()
}

/// Makes spans.
#[derive(Debug)]
pub(super) struct Spans {
    scope: InstrumentationScope,
    scheme: &'static str,
}

/// What sets one span apart from another.
struct Part {
    name: &'static str,
    kind: SpanKind,
    id: SpanId,
    parent: SpanId,
    from: Instant,
    to: Instant,
}

impl Spans {
    /// Spans of a server of `scheme`.
    pub fn new(scheme: &'static str) -> Self {
        let scope = InstrumentationScope::builder(NAME).with_version(VERSION).with_schema_url(SCHEMA_URL).build();
        Self { scope, scheme }
    }

    /// A request that ends now, answered with `status`; `None`: its client took it back.
    pub fn request(&self, parent: &TraceParent, recorded: &Recorded, id: &RequestId, status: Option<u16>) -> SpanData {
        let part = Part {
            name: "POST /v1/ingest/batch",
            kind: SpanKind::Server,
            id: span_id(recorded.request_span_id),
            parent: span_id(parent.parent_id),
            from: recorded.begun_at,
            to: Instant::now(),
        };
        let mut span = self.span(parent, recorded, part);
        let attributes = &mut span.attributes;
        attributes.extend([
            KeyValue::new(HTTP_REQUEST_METHOD, METHOD),
            KeyValue::new(HTTP_ROUTE, ROUTE),
            KeyValue::new(URL_PATH, ROUTE),
            KeyValue::new(URL_SCHEME, self.scheme),
            KeyValue::new("ingestd.request_id", id.to_string()),
        ]);
        if let Some(batch) = recorded.batch.get() {
            attributes.extend([
                KeyValue::new("ingestd.batch_id", batch.key.id.to_string()),
                KeyValue::new("ingestd.events", i64::from(batch.events)),
                KeyValue::new("ingestd.ack", batch.ack.name()),
            ]);
        }
        let error = match status {
            None => Some(("cancelled".to_owned(), "the client cancelled the request")),
            Some(500..) => status.map(|status| (status.to_string(), "")),
            // By the conventions the client's mistakes are no errors of the server's.
            Some(_) => None,
        };
        attributes.extend(status.map(|status| KeyValue::new(HTTP_RESPONSE_STATUS_CODE, i64::from(status))));
        if let Some((kind, description)) = error {
            attributes.push(KeyValue::new(ERROR_TYPE, kind));
            span.status = Status::error(description);
        }
        span
    }

    /// A batch that is committed, from the queue to PostgreSQL's disk.
    pub fn flush(
        &self,
        parent: &TraceParent,
        recorded: &Recorded,
        batch: &Batch,
        (from, to): (Instant, Instant),
    ) -> SpanData {
        let part = Part {
            name: "flush",
            kind: SpanKind::Internal,
            id: span_id(recorded.flush_span_id),
            parent: span_id(recorded.request_span_id),
            from,
            to,
        };
        let mut span = self.span(parent, recorded, part);
        let (phase, counts) = (batch.phase(), batch.counts());
        span.attributes.extend([
            KeyValue::new("ingestd.batch_id", batch.key.id.to_string()),
            KeyValue::new("ingestd.status", phase.name()),
            KeyValue::new("ingestd.inserted", i64::from(counts.inserted)),
            KeyValue::new("ingestd.duplicates", i64::from(counts.duplicates)),
            KeyValue::new("ingestd.dead_lettered", i64::from(counts.dead_lettered)),
        ]);
        if matches!(phase, Phase::Partial | Phase::Failed) {
            span.attributes.push(KeyValue::new(ERROR_TYPE, phase.name()));
            span.status = Status::error(format!("{} events are in dead_letter_events", counts.dead_lettered));
        }
        span
    }

    /// The transaction that landed the batch, and maybe others.
    pub fn copy(&self, parent: &TraceParent, recorded: &Recorded, id: SpanId, copied: &Copied) -> SpanData {
        let part = Part {
            name: "COPY",
            kind: SpanKind::Client,
            id,
            parent: span_id(recorded.flush_span_id),
            from: copied.begun_at,
            to: copied.committed_at,
        };
        let mut span = self.span(parent, recorded, part);
        span.attributes.extend([
            KeyValue::new(DB_SYSTEM_NAME, "postgresql"),
            KeyValue::new(DB_OPERATION_NAME, "COPY"),
            KeyValue::new(DB_COLLECTION_NAME, "events"),
            KeyValue::new("ingestd.copy.rows", i64::try_from(copied.rows).unwrap_or(i64::MAX)),
            KeyValue::new("ingestd.copy.batches", i64::try_from(copied.batches).unwrap_or(i64::MAX)),
        ]);
        span
    }

    fn span(&self, parent: &TraceParent, recorded: &Recorded, part: Part) -> SpanData {
        let trace_id = TraceId::from(parent.trace_id);
        SpanData {
            span_context: SpanContext::new(trace_id, part.id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: part.parent,
            parent_span_is_remote: part.kind == SpanKind::Server,
            span_kind: part.kind,
            name: part.name.into(),
            start_time: wall_time(recorded, part.from),
            end_time: wall_time(recorded, part.to),
            attributes: Vec::with_capacity(10),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// `at`, told from the time at which the request began.
fn wall_time(recorded: &Recorded, at: Instant) -> SystemTime {
    recorded.begun_at_wall + at.saturating_duration_since(recorded.begun_at)
}
