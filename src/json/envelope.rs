//! The body around the events: an object with `events`, `batch_id` and `priority`, or a bare array of events.

use std::fmt;

use crate::limits::BODY_BYTES_MAX;
use crate::types::{BATCH_ID_RULE, PRIORITY_MAX, Priority, batch_id_is_valid};

use super::event::{EventScanner, text};
use super::reject::Shape;
use super::scan::source::Source;
use super::scan::walk::{StringEnd, SyntaxFault, SyntaxKind, Walker};
use super::{Dialect, ScanLimits, Scratch};

/// Why a body is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON: 400.
    #[error("not JSON at byte {offset}: {message}")]
    Syntax {
        /// The first byte that no well-formed body could have there; the body's length when it ends too early.
        offset: usize,
        /// The rule that is broken.
        message: &'static str,
    },
    /// Over `MAX_EVENTS_PER_BATCH`: 413.
    #[error("more than {events_max} events in one body")]
    TooManyEvents {
        /// The limit.
        events_max: usize,
    },
    /// JSON, but not a batch: 422.
    #[error("{0}")]
    Envelope(EnvelopeReason),
}

impl From<SyntaxFault> for BodyError {
    fn from(fault: SyntaxFault) -> Self {
        Self::Syntax { offset: fault.offset as usize, message: fault.kind.message() }
    }
}

/// A member of the envelope that has a meaning here; all others are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeMember {
    /// `events`
    Events,
    /// `batch_id`
    BatchId,
    /// `priority`
    Priority,
}

impl EnvelopeMember {
    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"events" => Some(Self::Events),
            b"batch_id" => Some(Self::BatchId),
            b"priority" => Some(Self::Priority),
            _ => None,
        }
    }

    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::BatchId => "batch_id",
            Self::Priority => "priority",
        }
    }
}

/// Why a well-formed body is not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeReason {
    /// The body is neither an object nor an array.
    NotABatch,
    /// A batch of CloudEvents that is no array.
    NotAnArray,
    /// The object has no `events`.
    EventsMissing,
    /// `events` is not an array.
    EventsNotArray,
    /// There is no event in the array; true for a bare array.
    EventsEmpty {
        /// The body itself is the array.
        bare: bool,
    },
    /// `batch_id` is not a string.
    BatchIdNotString,
    /// `batch_id` is not 1–128 of the allowed characters.
    BatchIdMalformed,
    /// `priority` is not an integer of 0–10.
    PriorityInvalid,
    /// A known member occurs twice.
    Duplicate(EnvelopeMember),
}

impl EnvelopeReason {
    /// The stable name of the reason.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotABatch => "body_not_object_or_array",
            Self::NotAnArray => "body_not_array",
            Self::EventsMissing => "events_missing",
            Self::EventsNotArray => "events_not_array",
            Self::EventsEmpty { .. } => "events_empty",
            Self::BatchIdNotString => "batch_id_not_string",
            Self::BatchIdMalformed => "batch_id_malformed",
            Self::PriorityInvalid => "priority_invalid",
            Self::Duplicate(_) => "member_duplicate",
        }
    }

    /// RFC 6901 pointer to the place; for what is missing, to where it should be.
    pub const fn pointer(self) -> &'static str {
        match self {
            Self::NotABatch | Self::NotAnArray | Self::EventsEmpty { bare: true } => "",
            Self::EventsMissing | Self::EventsNotArray | Self::EventsEmpty { bare: false } => "/events",
            Self::BatchIdNotString | Self::BatchIdMalformed => "/batch_id",
            Self::PriorityInvalid => "/priority",
            Self::Duplicate(EnvelopeMember::Events) => "/events",
            Self::Duplicate(EnvelopeMember::BatchId) => "/batch_id",
            Self::Duplicate(EnvelopeMember::Priority) => "/priority",
        }
    }
}

impl fmt::Display for EnvelopeReason {
    /// The detail: what is wrong and what is expected.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotABatch => f.write_str("the body must be an object with events, or an array of events"),
            Self::NotAnArray => f.write_str("a batch of CloudEvents must be an array of CloudEvents"),
            Self::EventsMissing => f.write_str("events is required and must be an array of events"),
            Self::EventsNotArray => f.write_str("events must be an array of events"),
            Self::EventsEmpty { .. } => f.write_str("the batch contains no events; at least one is required"),
            Self::BatchIdNotString => f.write_str("batch_id must be a string"),
            Self::BatchIdMalformed => write!(f, "batch_id {BATCH_ID_RULE}"),
            Self::PriorityInvalid => write!(f, "priority must be an integer from 0 to {PRIORITY_MAX}"),
            Self::Duplicate(member) => write!(f, "{} occurs more than once", member.name()),
        }
    }
}

/// Scans a whole decoded body; what it found is in `scratch` afterwards, nothing is when it fails.
///
/// # Errors
/// [`BodyError::Syntax`] whenever the body is not JSON; else the first other thing wrong with the body as a
/// whole. A bad event is not an error but a [`super::Reject`].
///
/// # Panics
/// When the body is longer than [`BODY_BYTES_MAX`]: the HTTP layer bounds it far below.
pub fn scan_body(body: &[u8], limits: &ScanLimits, scratch: &mut Scratch) -> Result<(), BodyError> {
    scan_in(Dialect::Native, body, limits, scratch, |scanner, at| scanner.body(at))
}

/// Scans a whole body whose one value `value` walks.
pub(super) fn scan_in(
    dialect: Dialect,
    body: &[u8],
    limits: &ScanLimits,
    scratch: &mut Scratch,
    value: impl FnOnce(&mut EnvelopeScanner<'_>, usize) -> Result<usize, SyntaxFault>,
) -> Result<(), BodyError> {
    assert!(body.len() <= BODY_BYTES_MAX);
    scratch.clear();
    scratch.dialect = dialect;
    let result = scan(body, limits, scratch, value);
    if result.is_err() {
        scratch.clear();
    }
    result
}

fn scan(
    body: &[u8],
    limits: &ScanLimits,
    scratch: &mut Scratch,
    value: impl FnOnce(&mut EnvelopeScanner<'_>, usize) -> Result<usize, SyntaxFault>,
) -> Result<(), BodyError> {
    scratch.stops.build(body)?;
    let mut envelope = EnvelopeScanner {
        scanner: EventScanner {
            walker: Walker::new(Source::new(body, scratch.stops.bits()), &mut scratch.spill),
            limits,
            shape: Shape::Envelope,
            events: &mut scratch.events,
            rejects: &mut scratch.rejects,
            decoded: &mut scratch.decoded,
            made: &mut scratch.made,
        },
        dialect: scratch.dialect,
        batch_id: &mut scratch.batch_id,
        priority: &mut scratch.priority,
        seen: 0,
        wrong: None,
    };
    envelope.only(value)?;
    scratch.shape = envelope.scanner.shape;
    envelope.wrong.map_or(Ok(()), Err)
}

/// Walks the one value that a body is.
pub(super) struct EnvelopeScanner<'a> {
    pub(super) scanner: EventScanner<'a>,
    dialect: Dialect,
    batch_id: &'a mut String,
    priority: &'a mut Option<Priority>,
    /// A bit per [`EnvelopeMember`] seen.
    seen: u8,
    /// The first thing wrong with the body as a whole.
    wrong: Option<BodyError>,
}

impl EnvelopeScanner<'_> {
    /// Walks the value that the body is with `value`; nothing may follow.
    fn only(&mut self, value: impl FnOnce(&mut Self, usize) -> Result<usize, SyntaxFault>) -> Result<(), SyntaxFault> {
        let at = self.scanner.walker.source.blank(0);
        let end = value(self, at)?;
        let end = self.scanner.walker.source.blank(end);
        if end < self.scanner.walker.source.body.len() {
            return Err(SyntaxFault::new(end, SyntaxKind::Trailing));
        }
        Ok(())
    }

    fn body(&mut self, at: usize) -> Result<usize, SyntaxFault> {
        match self.scanner.walker.source.byte(at) {
            b'{' => self.object(at),
            b'[' => self.bare_events(at),
            _ => self.other(at, EnvelopeReason::NotABatch),
        }
    }

    /// The array of events that the body is.
    pub(super) fn bare_events(&mut self, at: usize) -> Result<usize, SyntaxFault> {
        self.scanner.shape = Shape::Bare;
        self.events(at)
    }

    /// A body that is refused for `reason`, if it is JSON at all.
    #[cold]
    pub(super) fn other(&mut self, at: usize, reason: EnvelopeReason) -> Result<usize, SyntaxFault> {
        let body = self.scanner.walker.source.body;
        if at == body.len() {
            return Err(SyntaxFault::new(at, SyntaxKind::Empty));
        }
        if body.starts_with("\u{feff}".as_bytes()) {
            return Err(SyntaxFault::new(0, SyntaxKind::ByteOrderMark));
        }
        self.refuse(reason);
        self.scanner.walker.value(at)
    }

    fn object(&mut self, open: usize) -> Result<usize, SyntaxFault> {
        let mut pos = self.scanner.walker.source.blank(open + 1);
        if self.scanner.walker.source.byte(pos) == b'}' {
            self.refuse(EnvelopeReason::EventsMissing);
            return Ok(pos + 1);
        }
        loop {
            let (name, value_at) = self.scanner.walker.member(pos)?;
            pos = self.member(pos, name, value_at)?;
            pos = self.scanner.walker.source.blank(pos);
            match self.scanner.walker.source.byte(pos) {
                b',' => pos = self.scanner.walker.source.blank(pos + 1),
                b'}' => break,
                _ => return Err(self.scanner.walker.source.unexpected(pos, SyntaxKind::CommaOrBrace)),
            }
        }
        if self.seen & (1 << EnvelopeMember::Events as u8) == 0 {
            self.refuse(EnvelopeReason::EventsMissing);
        }
        Ok(pos + 1)
    }

    fn member(&mut self, key_at: usize, key: StringEnd, at: usize) -> Result<usize, SyntaxFault> {
        self.scanner.decoded.clear();
        text(key_at, key).append_to(self.scanner.decoded, self.scanner.walker.source.body);
        let Some(member) = EnvelopeMember::named(self.scanner.decoded) else {
            return self.scanner.walker.value(at);
        };
        if self.seen & (1 << member as u8) != 0 {
            self.refuse(EnvelopeReason::Duplicate(member));
            return self.scanner.walker.value(at);
        }
        self.seen |= 1 << member as u8;
        match (member, self.scanner.walker.source.byte(at)) {
            (EnvelopeMember::Events, b'[') => return self.events(at),
            (EnvelopeMember::Events, _) => self.refuse(EnvelopeReason::EventsNotArray),
            (EnvelopeMember::BatchId, b'"') => return self.batch_id(at),
            (EnvelopeMember::Priority, b'-' | b'0'..=b'9') => return self.priority(at),
            (EnvelopeMember::BatchId | EnvelopeMember::Priority, b'n') => {}
            (EnvelopeMember::BatchId, _) => self.refuse(EnvelopeReason::BatchIdNotString),
            (EnvelopeMember::Priority, _) => self.refuse(EnvelopeReason::PriorityInvalid),
        }
        self.scanner.walker.value(at)
    }

    /// The array of events at `open`. Events over the limit are walked, but not kept.
    fn events(&mut self, open: usize) -> Result<usize, SyntaxFault> {
        let mut pos = self.scanner.walker.source.blank(open + 1);
        if self.scanner.walker.source.byte(pos) == b']' {
            self.refuse(EnvelopeReason::EventsEmpty { bare: self.scanner.shape == Shape::Bare });
            return Ok(pos + 1);
        }
        let events_max = self.scanner.limits.events_max;
        for index in 0.. {
            if index < events_max {
                pos = match self.dialect {
                    Dialect::Native => self.scanner.event(pos, index)?,
                    Dialect::CloudEvents => self.scanner.cloud_event(pos, index)?,
                };
            } else {
                self.wrong.get_or_insert(BodyError::TooManyEvents { events_max });
                pos = self.scanner.walker.value(pos)?;
            }
            let mark = self.scanner.walker.source.mark(pos);
            match mark.byte {
                b',' => pos = mark.next,
                b']' => return Ok(mark.at + 1),
                _ => return Err(self.scanner.walker.source.unexpected(mark.at, SyntaxKind::CommaOrBracket)),
            }
        }
        unreachable!("a body ends before usize does")
    }

    fn batch_id(&mut self, open: usize) -> Result<usize, SyntaxFault> {
        let end = self.scanner.walker.string(open)?;
        self.scanner.decoded.clear();
        text(open, end).append_to(self.scanner.decoded, self.scanner.walker.source.body);
        match std::str::from_utf8(self.scanner.decoded) {
            Ok(id) if batch_id_is_valid(id) => self.batch_id.push_str(id),
            _ => self.refuse(EnvelopeReason::BatchIdMalformed),
        }
        Ok(end.close + 1)
    }

    fn priority(&mut self, at: usize) -> Result<usize, SyntaxFault> {
        let end = self.scanner.walker.value(at)?;
        match small_integer(&self.scanner.walker.source.body[at..end]).and_then(Priority::new) {
            Some(priority) => *self.priority = Some(priority),
            None => self.refuse(EnvelopeReason::PriorityInvalid),
        }
        Ok(end)
    }

    #[cold]
    fn refuse(&mut self, reason: EnvelopeReason) {
        self.wrong.get_or_insert(BodyError::Envelope(reason));
    }
}

/// The value of a JSON number when it is exactly an integer of 0–99, however it is written: `5`, `5.0`, `50e-1`.
fn small_integer(number: &[u8]) -> Option<u8> {
    let (negative, number) = number.strip_prefix(b"-").map_or((false, number), |rest| (true, rest));
    let exponent_at = number.iter().position(|byte| byte | 0x20 == b'e');
    let (mantissa, exponent) = number.split_at(exponent_at.unwrap_or(number.len()));
    let point = mantissa.iter().position(|&byte| byte == b'.').unwrap_or(mantissa.len());
    // The value is 0.DIGITS × 10^scale once leading zeros are gone.
    let digits = || mantissa.iter().filter(|&&byte| byte != b'.').map(|byte| byte - b'0');
    let zeros = digits().take_while(|&digit| digit == 0).count();
    if zeros == digits().count() {
        return Some(0);
    }
    let scale = (point as i64 - zeros as i64).checked_add(exponent_value(exponent))?;
    if negative || !(1..=2).contains(&scale) {
        return None;
    }
    let mut significant = digits().skip(zeros);
    let value = (0..scale).fold(0, |value, _| value * 10 + significant.next().unwrap_or(0));
    significant.all(|digit| digit == 0).then_some(value)
}

/// The value of `e±DIGITS`, or 0 for no exponent; saturates far beyond any number of digits in a body.
fn exponent_value(exponent: &[u8]) -> i64 {
    let digits = exponent.iter().filter(|byte| byte.is_ascii_digit());
    let size = digits.fold(0i64, |sum, &digit| (sum * 10 + i64::from(digit - b'0')).min(i64::MAX / 100));
    if exponent.contains(&b'-') { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::small_integer;

    #[test]
    fn integers_are_integers_however_they_are_written() {
        for (text, value) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.0e7", Some(0)),
            ("0e999999999999999999999", Some(0)),
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("5e0", Some(5)),
            ("5E+0", Some(5)),
            ("50e-1", Some(5)),
            ("0.5e1", Some(5)),
            ("0.0005e4", Some(5)),
            ("0.01e3", Some(10)),
            ("10", Some(10)),
            ("1e1", Some(10)),
            ("1000e-00002", Some(10)),
            ("11", Some(11)),
            ("100", None),
            ("-1", None),
            ("5.5", None),
            ("0.5", None),
            ("1e-1", None),
            ("1e2", None),
            ("5.0000000000000000000000000000001", None),
            ("1e99999999999999999999999", None),
            ("1e-99999999999999999999999", None),
        ] {
            assert_eq!(small_integer(text.as_bytes()), value, "{text}");
        }
    }
}
