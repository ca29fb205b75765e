//! Which request a batch came with: its id, and the trace that it is a part of (W3C Trace Context, level 1).
//!
//! Both are told in the log from the answer to the flush, so that a batch can be followed over services. They are not
//! kept in the journal: a batch that is recovered after a crash has neither.

use std::fmt;
use std::str;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use uuid::Uuid;

use crate::limits::REQUEST_ID_BYTES_MAX;
use crate::types::{AckLevel, BatchKey};

/// A request's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// Made here.
    Ours(Uuid),
    /// The client's, from `X-Request-Id`.
    Theirs(Box<str>),
}

impl RequestId {
    /// The client's id, if it is one: up to [`REQUEST_ID_BYTES_MAX`] printable characters of ASCII without blanks. Others
    /// are no use in a log.
    pub fn of_client(text: &[u8]) -> Option<Self> {
        let is_plain = !text.is_empty() && text.len() <= REQUEST_ID_BYTES_MAX && text.iter().all(u8::is_ascii_graphic);
        Some(Self::Theirs(str::from_utf8(text).ok().filter(|_| is_plain)?.into()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(id) => id.fmt(f),
            Self::Theirs(id) => f.write_str(id),
        }
    }
}

/// The value of `traceparent`: which trace, and which span of it sent the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span that sent the request; never 0.
    pub parent_id: u64,
    /// Bit 0: the caller records the trace.
    pub flags: u8,
}

impl TraceParent {
    /// Reads a header: `00-` 32 digits `-` 16 digits `-` 2 digits, lower-case hexadecimal. Later versions may have more
    /// behind that; what does not fit is ignored, as the standard asks.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (fixed, more) = text.split_at_checked(55)?;
        let version = hex(&fixed[..2])? as u8;
        let is_well_formed = fixed[2] == b'-' && fixed[35] == b'-' && fixed[52] == b'-';
        let is_known = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more[0] == b'-',
        };
        let parent = Self {
            trace_id: hex(&fixed[3..35])?,
            parent_id: hex(&fixed[36..52])? as u64,
            flags: hex(&fixed[53..])? as u8,
        };
        (is_well_formed && is_known && parent.trace_id != 0 && parent.parent_id != 0).then_some(parent)
    }

    /// Whether the caller records the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// The number in `digits`, at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    let is_digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let text = str::from_utf8(digits).ok().filter(|_| digits.iter().all(is_digit))?;
    u128::from_str_radix(text, 16).ok()
}

/// The trace that a request is part of.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What the client said of it.
    pub parent: TraceParent,
    /// What its spans here share; `None` where none are recorded.
    pub recorded: Option<Recorded>,
}

/// What the spans of one request share, wherever they are recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The id of the request's own span. Drawn first, so that the flusher can name it as a parent.
    pub request_span_id: u64,
    /// The id of the flush, for the same reason.
    pub flush_span_id: u64,
    /// When the request began. Other times are told from here, so that spans lie in each other whatever the wall clock does.
    pub begun_at: Instant,
    /// The same by the wall clock.
    pub begun_at_wall: SystemTime,
    /// The batch that the request brought, once it is known.
    pub batch: OnceLock<Brought>,
}

/// The batch that a request brought.
#[derive(Clone, Debug)]
pub struct Brought {
    /// Owner and id.
    pub key: BatchKey,
    /// Its events.
    pub events: u32,
    /// When the answer is due.
    pub ack: AckLevel,
}

/// Where a batch came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The request.
    pub request_id: RequestId,
    /// Its trace, if the client is part of one.
    pub trace: Option<Box<Trace>>,
}

impl Origin {
    /// The trace's id as the standard writes it, for the log.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(|trace| TraceId(trace.parent.trace_id))
    }

    /// The trace, where spans of the request are recorded.
    pub fn recorded(&self) -> Option<(&TraceParent, &Recorded)> {
        let trace = self.trace.as_deref()?;
        Some((&trace.parent, trace.recorded.as_ref()?))
    }

    /// Says which batch the request brought.
    pub fn brings(&self, key: &BatchKey, events: u32, ack: AckLevel) {
        if let Some((_, recorded)) = self.recorded() {
            recorded.batch.get_or_init(|| Brought { key: key.clone(), events, ack });
        }
    }
}

/// A trace's id, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let parent = TraceParent::parse(EXAMPLE.as_bytes()).expect("the example is good");
        assert_eq!(TraceId(parent.trace_id).to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((parent.parent_id, parent.is_sampled()), (0x00f0_67aa_0ba9_02b7, true));
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-the-future-will-be-like";
        assert_eq!(TraceParent::parse(later.as_bytes()), Some(parent));
    }

    #[test]
    fn what_is_no_traceparent_is_ignored() {
        let upper = EXAMPLE.to_uppercase();
        let bad = [
            "",
            "00",
            &EXAMPLE[..54],
            &EXAMPLE.replace("01", "01-"),
            &EXAMPLE.replacen("00", "ff", 1),
            &EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &EXAMPLE.replacen('-', "_", 1),
            &EXAMPLE.replace('4', "ü"),
            &upper,
            &(EXAMPLE.replacen("00", "01", 1) + "x"),
        ];
        for text in bad {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_clients_id_is_taken_when_it_is_fit_for_a_log() {
        assert_eq!(RequestId::of_client(b"req-1/2:3").map(|id| id.to_string()).as_deref(), Some("req-1/2:3"));
        for bad in [&b""[..], b"two words", b"\x1b[2J", "ü".as_bytes(), &[b'x'; REQUEST_ID_BYTES_MAX + 1]] {
            assert_eq!(RequestId::of_client(bad), None);
        }
    }
}
