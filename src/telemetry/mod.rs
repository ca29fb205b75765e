//! Traces: what became of a sampled request, as spans that a collector gets by OTLP (`OTLP_ENDPOINT`).
//!
//! ```text
//!  the client's span
//!  └─ POST /v1/ingest/batch    received to answered                     told by `http`
//!     └─ flush                 queued to committed                      told by `flush`
//!        └─ COPY               its transaction: BEGIN to COMMIT         told by `flush`
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `span` | the spans, with the names of OpenTelemetry's semantic conventions |
//! | `export` | the way to the collector |
//!
//! # Invariants
//! - A span is recorded only where the client's `traceparent` says that the client records the trace. All other requests
//!   cost a branch.
//! - Nobody waits for the collector: spans go into a bounded queue, and are dropped where that is full. Its own thread
//!   sends them; what it meets is a line in the log, now and then, and changes nothing else.
//! - No span holds anything of an event: ids, counts and times only.
//!
//! # Absent on purpose
//! Sampling of our own (the client decides, or the collector, by tail sampling), spans of other resources than ingestion,
//! of attempts that PostgreSQL did not commit and of batches recovered after a crash (the journal keeps no trace),
//! metrics and logs by OTLP (`/v1/metrics` and stderr are there), `tracestate`.

mod export;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, SpanData, SpanProcessor as _,
};

use crate::limits::{TRACES_EXPORT_INTERVAL, TRACES_EXPORT_SPANS_MAX, TRACES_QUEUE_SPANS_MAX, TRACES_STOP_WAIT_MAX};
use crate::status::model::Batch;
use crate::status::origin::{Origin, Recorded};

/// Where spans go.
#[derive(Debug)]
pub struct Traces {
    processor: BatchSpanProcessor,
    spans: span::Spans,
    ended: AtomicU64,
    delivered: Arc<AtomicU64>,
}

/// A transaction that landed batches.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// When it began.
    pub begun_at: Instant,
    /// When its COMMIT was answered.
    pub committed_at: Instant,
    /// Rows that it inserted.
    pub rows: u64,
    /// Batches that it landed.
    pub batches: usize,
}

impl Traces {
    /// Sends spans to the collector at `endpoint`, as those of `node`, which serves `scheme`. Connects to nothing yet.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn start(endpoint: &str, node: &str, scheme: &'static str) -> Result<Self, String> {
        let exporter = export::Exporter::new(endpoint)?;
        let delivered = exporter.delivered();
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(TRACES_QUEUE_SPANS_MAX)
            .with_max_export_batch_size(TRACES_EXPORT_SPANS_MAX)
            .with_scheduled_delay(TRACES_EXPORT_INTERVAL)
            .build();
        let mut processor = BatchSpanProcessor::new(exporter, config);
        processor.set_resource(&span::resource(node));
        Ok(Self { processor, spans: span::Spans::new(scheme), ended: AtomicU64::new(0), delivered })
    }

    /// Has the request of `origin` recorded, if its client records the trace.
    pub fn begin(&self, origin: &mut Origin, begun_at: Instant) {
        let Some(trace) = origin.trace.as_mut().filter(|trace| trace.parent.is_sampled()) else { return };
        let new_id = || u64::from_be_bytes(RandomIdGenerator::default().new_span_id().to_bytes());
        trace.recorded = Some(Recorded {
            request_span_id: new_id(),
            flush_span_id: new_id(),
            begun_at,
            begun_at_wall: SystemTime::now(),
            batch: Default::default(),
        });
    }

    /// The transaction that landed `batch` has committed.
    pub fn copied(&self, batch: &Batch, copied: &Copied) {
        if let Some((parent, recorded)) = batch.origin.as_ref().and_then(Origin::recorded) {
            self.end(self.spans.copy(parent, recorded, RandomIdGenerator::default().new_span_id(), copied));
        }
    }

    /// `batch`, which was queued at `queued_at`, is committed and on PostgreSQL's disk.
    pub fn flushed(&self, batch: &Batch, queued_at: Instant, now: Instant) {
        if let Some((parent, recorded)) = batch.origin.as_ref().and_then(Origin::recorded) {
            self.end(self.spans.flush(parent, recorded, batch, (queued_at, now)));
        }
    }

    /// Sends what waits, within a bound.
    pub fn stop(&self) {
        // Whether all of it arrived is counted; why not has been told.
        let _ = self.processor.shutdown_with_timeout(TRACES_STOP_WAIT_MAX);
        let ended = self.ended.load(Ordering::Relaxed);
        let lost = ended.saturating_sub(self.delivered.load(Ordering::Relaxed));
        if lost > 0 {
            tracing::warn!(lost, of = ended, "some spans did not reach the trace collector (OTLP_ENDPOINT)");
        }
    }

    fn end(&self, span: SpanData) {
        // Relaxed: for a report at the end only.
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.processor.on_end(span);
    }
}

/// The span of a request, ended when dropped: a request that its client takes back (HTTP/2) leaves one, too, as its batch
/// may be flushed all the same.
pub struct RequestSpan<'a> {
    recording: Option<(&'a Traces, &'a Origin)>,
    status: Option<u16>,
}

impl<'a> RequestSpan<'a> {
    /// The span of the request of `origin`; of nothing, where that is not recorded.
    pub fn new(traces: Option<&'a Traces>, origin: &'a Origin) -> Self {
        Self { recording: traces.zip(origin.recorded().is_some().then_some(origin)), status: None }
    }

    /// The request is answered with `status`.
    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for RequestSpan<'_> {
    fn drop(&mut self) {
        let Some((traces, origin)) = self.recording else { return };
        if let Some((parent, recorded)) = origin.recorded() {
            traces.end(traces.spans.request(parent, recorded, &origin.request_id, self.status));
        }
    }
}

/// `id` as the library has it.
fn span_id(id: u64) -> SpanId {
    SpanId::from(id)
}
