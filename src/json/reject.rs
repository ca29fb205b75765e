//! Verdicts on events that are JSON but not acceptable: a closed set of reasons with stable codes.
//!
//! A [`Reject`] is a few words; pointer, detail and event id are put together only for the verdicts that a
//! response lists. Nothing of the client's is echoed except its event id and member names, both bounded.

use std::borrow::Cow;
use std::fmt;

use crate::limits::{EVENT_ID_BYTES_MAX, JSON_DEPTH_MAX, NAME_BYTES_MAX, NUMBER_DIGITS_MAX, NUMBER_EXPONENT_MAX};

use super::scan::walk::{FlawKind, SyntaxKind};
use super::{TextSpan, pointer};

/// A member of an event that has a meaning here; all others are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// `event_id`
    EventId,
    /// `service_name`
    ServiceName,
    /// `event_type`
    EventType,
    /// `payload`
    Payload,
    /// `timestamp`
    Timestamp,
    /// `metadata`
    Metadata,
    /// `id` of a CloudEvent: the event id.
    CloudId,
    /// `source` of a CloudEvent: the service name.
    CloudSource,
    /// `type` of a CloudEvent: the event type.
    CloudType,
    /// `data` of a CloudEvent: the payload.
    CloudData,
    /// `time` of a CloudEvent: the timestamp.
    CloudTime,
    /// `specversion` of a CloudEvent.
    SpecVersion,
}

impl Member {
    /// The members without which an event is refused, in the order in which they are missed.
    pub const REQUIRED: [Self; 4] = [Self::EventId, Self::ServiceName, Self::EventType, Self::Payload];

    /// The members without which a CloudEvent is refused (CloudEvents 1.0.2, "Required Attributes").
    pub const REQUIRED_OF_CLOUD_EVENTS: [Self; 4] =
        [Self::CloudId, Self::CloudSource, Self::CloudType, Self::SpecVersion];

    /// The member of a CloudEvent called `name` that has a meaning here; all others are kept as metadata.
    pub fn named_in_cloud_event(name: &[u8]) -> Option<Self> {
        match name {
            b"id" => Some(Self::CloudId),
            b"source" => Some(Self::CloudSource),
            b"type" => Some(Self::CloudType),
            b"data" => Some(Self::CloudData),
            b"time" => Some(Self::CloudTime),
            b"specversion" => Some(Self::SpecVersion),
            _ => None,
        }
    }

    /// The member called `name`.
    #[inline(always)]
    pub fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"event_id" => Some(Self::EventId),
            b"service_name" => Some(Self::ServiceName),
            b"event_type" => Some(Self::EventType),
            b"payload" => Some(Self::Payload),
            b"timestamp" => Some(Self::Timestamp),
            b"metadata" => Some(Self::Metadata),
            _ => None,
        }
    }

    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventId => "event_id",
            Self::ServiceName => "service_name",
            Self::EventType => "event_type",
            Self::Payload => "payload",
            Self::Timestamp => "timestamp",
            Self::Metadata => "metadata",
            Self::CloudId => "id",
            Self::CloudSource => "source",
            Self::CloudType => "type",
            Self::CloudData => "data",
            Self::CloudTime => "time",
            Self::SpecVersion => "specversion",
        }
    }

    /// Longest text of this member in bytes; 0 for those that are not bounded texts.
    pub const fn text_bytes_max(self) -> usize {
        match self {
            Self::EventId | Self::CloudId => EVENT_ID_BYTES_MAX,
            Self::ServiceName | Self::EventType | Self::CloudSource | Self::CloudType => NAME_BYTES_MAX,
            Self::Payload
            | Self::Timestamp
            | Self::Metadata
            | Self::CloudData
            | Self::CloudTime
            | Self::SpecVersion => 0,
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::EventId
            | Self::ServiceName
            | Self::EventType
            | Self::CloudId
            | Self::CloudSource
            | Self::CloudType => "a string",
            Self::Timestamp | Self::CloudTime => "an RFC 3339 string",
            Self::Payload | Self::Metadata | Self::CloudData => "an object",
            Self::SpecVersion => "the string 1.0",
        }
    }
}

/// Why an event is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The event is not a JSON object.
    NotAnObject,
    /// A required member is absent.
    Missing(Member),
    /// A known member occurs twice.
    Duplicate(Member),
    /// A member has the wrong JSON type.
    WrongType(Member),
    /// A text is empty.
    Empty(Member),
    /// A text is over its limit.
    TooLong(Member),
    /// `timestamp` is not RFC 3339.
    TimestampInvalid,
    /// `timestamp` is before the accepted range.
    TimestampTooOld,
    /// `timestamp` is after the accepted range.
    TimestampTooFarAhead,
    /// The caller may not send events of this service.
    ServiceNotAllowed,
    /// The line is not JSON.
    Syntax(SyntaxKind),
    /// A CloudEvent of another version than 1.0.
    SpecVersion,
    /// PostgreSQL, or a limit, refuses something inside a value.
    Flaw(FlawKind),
}

impl Reason {
    /// The codes of verdicts that depend on when an event comes, or on the key that it comes with.
    pub const PASSING: [&'static str; 3] = ["timestamp_too_old", "timestamp_too_far_ahead", "service_not_allowed"];

    /// Every code there is: the closed set behind the `code` label of metrics.
    pub const CODES: [&'static str; 17] = [
        "event_not_object",
        "member_missing",
        "member_duplicate",
        "member_wrong_type",
        "text_empty",
        "text_too_long",
        "timestamp_invalid",
        "timestamp_too_old",
        "timestamp_too_far_ahead",
        "nesting_too_deep",
        "number_too_many_digits",
        "number_exponent_too_large",
        "nul_character",
        "lone_surrogate",
        "service_not_allowed",
        "not_json",
        "specversion_unsupported",
    ];

    /// Index of [`Self::code`] in [`Self::CODES`], for counters.
    pub const fn code_index(self) -> usize {
        match self {
            Self::NotAnObject => 0,
            Self::Missing(_) => 1,
            Self::Duplicate(_) => 2,
            Self::WrongType(_) => 3,
            Self::Empty(_) => 4,
            Self::TooLong(_) => 5,
            Self::TimestampInvalid => 6,
            Self::TimestampTooOld => 7,
            Self::TimestampTooFarAhead => 8,
            Self::Flaw(FlawKind::Depth) => 9,
            Self::Flaw(FlawKind::Digits) => 10,
            Self::Flaw(FlawKind::Exponent) => 11,
            Self::Flaw(FlawKind::Nul) => 12,
            Self::Flaw(FlawKind::Surrogate) => 13,
            Self::ServiceNotAllowed => 14,
            Self::Syntax(_) => 15,
            Self::SpecVersion => 16,
        }
    }

    /// The stable name of the reason; the pointer tells which member it is about.
    pub const fn code(self) -> &'static str {
        Self::CODES[self.code_index()]
    }
}

impl fmt::Display for Reason {
    /// The detail: what is wrong and what is expected.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAnObject => f.write_str("an event must be a JSON object"),
            Self::Missing(member) => write!(f, "{} is required and must be {}", member.name(), member.expected()),
            Self::Duplicate(member) => write!(f, "{} occurs more than once", member.name()),
            Self::WrongType(member) => write!(f, "{} must be {}", member.name(), member.expected()),
            Self::Empty(member) => {
                write!(f, "{} is empty; 1 to {} bytes are required", member.name(), member.text_bytes_max())
            }
            Self::TooLong(member) => {
                write!(f, "{} is too long; at most {} bytes are allowed", member.name(), member.text_bytes_max())
            }
            Self::TimestampInvalid => {
                f.write_str("timestamp is not an RFC 3339 date and time such as 2026-11-01T00:00:00Z")
            }
            Self::TimestampTooOld => {
                f.write_str("timestamp is further in the past than EVENT_MAX_AGE_DAYS before this server's clock")
            }
            Self::TimestampTooFarAhead => {
                f.write_str("timestamp is further in the future than EVENT_MAX_FUTURE_HOURS after this server's clock")
            }
            Self::ServiceNotAllowed => f.write_str("the API key is not allowed to send events of this service"),
            Self::Syntax(kind) => write!(f, "the line is not JSON: {}", kind.message().replace("the body", "it")),
            Self::SpecVersion => f.write_str("specversion must be 1.0"),
            Self::Flaw(FlawKind::Depth) => {
                write!(
                    f,
                    "nested too deeply; at most {JSON_DEPTH_MAX} levels are allowed, including the outermost \
                    object"
                )
            }
            Self::Flaw(FlawKind::Digits) => {
                write!(f, "the number has too many digits; at most {NUMBER_DIGITS_MAX} are allowed")
            }
            Self::Flaw(FlawKind::Exponent) => {
                write!(f, "the number's exponent is outside ±{NUMBER_EXPONENT_MAX}")
            }
            Self::Flaw(FlawKind::Nul) => f.write_str("\\u0000 cannot be stored in PostgreSQL; remove it"),
            Self::Flaw(FlawKind::Surrogate) => {
                f.write_str("a UTF-16 surrogate escape must be part of a pair: high, then low")
            }
        }
    }
}

/// How a body holds its events: what a pointer to one of them begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    /// `{"events": [ … ]}`: `/events/3`.
    Envelope,
    /// `[ … ]`: `/3`.
    Bare,
    /// A document of its own, such as a line: the pointer begins in the event.
    Alone,
}

/// The verdict on one event: the first thing found wrong with it, in the body's order; what is missing comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The event's place in the body, from 0.
    pub index: u32,
    /// Why it is refused.
    pub reason: Reason,
    pub(crate) event_id: Option<TextSpan>,
    pub(crate) shape: Shape,
    /// The member that names the event's service.
    pub(crate) service: Member,
    /// Where the event begins.
    pub(crate) event_at: u32,
    /// Where the token begins that the verdict is about.
    pub(crate) at: u32,
}

impl Reject {
    /// The event's id when it has a valid one; `body` is what was scanned.
    pub fn event_id<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        self.event_id.map(|text| text.decode(body))
    }

    /// Where in what was scanned the token begins that the verdict is about.
    pub const fn offset(&self) -> usize {
        self.at as usize
    }

    /// The stable name of the reason.
    pub const fn code(&self) -> &'static str {
        self.reason.code()
    }

    /// What is wrong and what is expected, as a sentence.
    pub fn detail(&self) -> String {
        match self.reason {
            Reason::Syntax(_) => format!("{} at byte {}", self.reason, self.at),
            reason => reason.to_string(),
        }
    }

    /// RFC 6901 pointer to the place; for a missing member, to where it should be. Walks the event once more.
    ///
    /// At most [`crate::limits::POINTER_BYTES_MAX`] bytes: a longer one ends at an ancestor.
    pub fn pointer(&self, body: &[u8]) -> String {
        let mut pointer = match self.shape {
            Shape::Envelope => format!("/events/{}", self.index),
            Shape::Bare => format!("/{}", self.index),
            Shape::Alone => String::new(),
        };
        match self.reason {
            Reason::Missing(member) => {
                pointer.push('/');
                pointer.push_str(member.name());
            }
            Reason::ServiceNotAllowed => {
                pointer.push('/');
                pointer.push_str(self.service.name());
            }
            Reason::Syntax(_) => {}
            _ => pointer::append_path(&mut pointer, body, self.event_at as usize, self.at as usize),
        }
        pointer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_snake_case() {
        for (index, code) in Reason::CODES.iter().enumerate() {
            assert!(code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{code}");
            assert!(!Reason::CODES[..index].contains(code), "{code}");
        }
        assert_eq!(Reason::Flaw(FlawKind::Surrogate).code(), "lone_surrogate");
        assert_eq!(Reason::Missing(Member::Payload).code(), "member_missing");
    }

    #[test]
    fn details_say_what_is_expected() {
        let detail = Reason::TooLong(Member::ServiceName).to_string();
        assert_eq!(detail, "service_name is too long; at most 128 bytes are allowed");
        assert_eq!(Reason::Missing(Member::Payload).to_string(), "payload is required and must be an object");
    }
}
