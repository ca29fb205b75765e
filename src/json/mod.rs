//! From the bytes of a request body to spans of events: validated once, copied never.
//!
//! Place in the path: the HTTP worker hands over a whole decoded body; [`scan_body`] leaves in [`Scratch`]
//! where each good event's members lie and a verdict on each bad one; [`crate::encode::tuple`] turns spans
//! into rows.
//!
//! ```text
//!  body ─▶ scan::index   one bit a byte: quote, backslash or control (AVX2, SSE2, NEON or SWAR); UTF-8
//!       ─▶ envelope      object with `events`, or a bare array
//!       ─▶ event         one event: its members, or the first thing wrong with it
//!            └ scan::walk  strict RFC 8259 grammar, no recursion, what PostgreSQL would refuse
//! ```
//!
//! Invariants:
//! - A body with a syntax error anywhere, ignored members included, gives [`BodyError::Syntax`] and nothing else.
//! - What is accepted as `payload` or `metadata` is accepted by `'…'::jsonb` of PostgreSQL 15–18 in a UTF8
//!   database, and within the limits the other way round; the text itself is forwarded verbatim.
//! - Nothing recurses: nesting costs one bit a level. After warm-up nothing is allocated per event.
//! - [`scan::oracle`] implements the same rules (`docs/api.md#send-a-batch`) a second time, slowly and obviously; both
//!   must agree on every input.
//!
//! Beside the path is [`peek`]: a hint for a server under overload.
//!
//! Absent on purpose: values. Numbers stay text, strings are unescaped only where they become text columns.

pub mod cloud_events;
pub mod envelope;
pub mod event;
pub mod lines;
pub mod peek;
mod pointer;
pub mod reject;
pub mod scan;
pub mod text;

pub use cloud_events::{scan_cloud_event, scan_cloud_events};
pub use envelope::{BodyError, EnvelopeReason, scan_body};
pub use event::EventSpans;
pub use lines::scan_line;
pub use reject::{Member, Reason, Reject};
pub use text::{Span, TextSpan};

use crate::types::{Priority, UnixMicros};
use std::borrow::Cow;

use reject::Shape;
use scan::index::Stops;

/// Every code that a refused body or event is counted under: the closed set of the metric's label.
pub const REJECTION_CODES: [&str; 26] = {
    let mut codes = [""; 26];
    let mut at = 0;
    while at < Reason::CODES.len() {
        codes[at] = Reason::CODES[at];
        at += 1;
    }
    let rest = [
        "too_many_events",
        "body_not_object_or_array",
        "body_not_array",
        "events_missing",
        "events_not_array",
        "events_empty",
        "batch_id_not_string",
        "batch_id_malformed",
        "priority_invalid",
    ];
    let mut index = 0;
    while index < rest.len() {
        codes[at + index] = rest[index];
        index += 1;
    }
    codes
};

/// Whose names an event's members have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Ours.
    #[default]
    Native,
    /// Those of CloudEvents 1.0.
    CloudEvents,
}

impl Dialect {
    fn service(self) -> Member {
        match self {
            Self::Native => Member::ServiceName,
            Self::CloudEvents => Member::CloudSource,
        }
    }
}

/// What a deployment allows; the fixed limits are in [`crate::limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Most events of one body (`MAX_EVENTS_PER_BATCH`).
    pub events_max: usize,
    /// Oldest accepted `timestamp`: receive time minus `EVENT_MAX_AGE_DAYS`.
    pub timestamp_min: UnixMicros,
    /// Latest accepted `timestamp`: receive time plus `EVENT_MAX_FUTURE_HOURS`.
    pub timestamp_max: UnixMicros,
}

/// What a scan found, and the buffers it needs. One per worker, reused for every body.
#[derive(Debug, Default)]
pub struct Scratch {
    stops: Stops,
    /// Container kinds below the innermost 64 levels.
    spill: Vec<u64>,
    /// A string with escapes, unescaped.
    decoded: Vec<u8>,
    events: Vec<EventSpans>,
    rejects: Vec<Reject>,
    batch_id: String,
    priority: Option<Priority>,
    shape: Shape,
    dialect: Dialect,
    /// JSON that no body has as one piece; spans beyond the body's end lie here.
    made: Vec<u8>,
    /// Index of the first event.
    first: u32,
}

impl Scratch {
    /// Empty buffers; they grow to the largest body seen and stay.
    pub fn new() -> Self {
        Self::default()
    }

    /// The good events, in the body's order.
    pub fn events(&self) -> &[EventSpans] {
        &self.events
    }

    /// One verdict for each bad event, in the body's order.
    pub fn rejects(&self) -> &[Reject] {
        &self.rejects
    }

    /// What the events' spans are places in: the scanned `body`, and behind it what was made of its pieces.
    pub fn source<'a>(&self, body: &'a [u8]) -> Cow<'a, [u8]> {
        if self.made.is_empty() { Cow::Borrowed(body) } else { Cow::Owned([body, &self.made].concat()) }
    }

    /// Refuses the good events of services that `allowed` does not allow; `body` is what was scanned.
    pub fn refuse_services(&mut self, body: &[u8], allowed: impl Fn(&str) -> bool) {
        let mut events = std::mem::take(&mut self.events);
        let before = std::mem::take(&mut self.rejects);
        let mut before = before.into_iter().peekable();
        let mut index = self.first;
        events.retain(|event| {
            // The indices that are missing among the good ones are those of the bad ones, in the same order.
            while let Some(reject) = before.next_if(|reject| reject.index == index) {
                self.rejects.push(reject);
                index += 1;
            }
            let allowed = allowed(&event.service_name.decode(body));
            if !allowed {
                self.rejects.push(Reject {
                    index,
                    reason: Reason::ServiceNotAllowed,
                    event_id: Some(event.event_id),
                    shape: self.shape,
                    service: self.dialect.service(),
                    event_at: 0,
                    at: 0,
                });
            }
            index += 1;
            allowed
        });
        self.rejects.extend(before);
        self.events = events;
    }

    /// Number of events in the body, good and bad.
    pub fn events_total(&self) -> usize {
        self.events.len() + self.rejects.len()
    }

    /// The envelope's `batch_id`: valid, or absent.
    pub fn batch_id(&self) -> Option<&str> {
        (!self.batch_id.is_empty()).then_some(&*self.batch_id)
    }

    /// The envelope's `priority`.
    pub fn priority(&self) -> Option<Priority> {
        self.priority
    }

    /// Forgets the last body, keeps the buffers.
    fn clear(&mut self) {
        self.decoded.clear();
        self.events.clear();
        self.rejects.clear();
        self.batch_id.clear();
        self.priority = None;
        self.shape = Shape::default();
        self.dialect = Dialect::default();
        self.made.clear();
        self.first = 0;
    }
}
