//! One event: where its members lie, or the first thing wrong with it.
//!
//! [`EventScanner::event`] takes any JSON value at any position, so every body format can share it. Wrong events
//! are walked to their end like good ones: a syntax error after a bad member still refuses the body.

use crate::encode::timestamp::parse_rfc3339;
use crate::types::UnixMicros;

use super::reject::Shape;
use super::scan::walk::{StringEnd, SyntaxFault, SyntaxKind, Walker};
use super::{Dialect, Member, Reason, Reject, ScanLimits, Span, TextSpan};

/// A good event: its members' places in the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSpans {
    /// 1–[`crate::limits::EVENT_ID_BYTES_MAX`] bytes.
    pub event_id: TextSpan,
    /// 1–[`crate::limits::NAME_BYTES_MAX`] bytes.
    pub service_name: TextSpan,
    /// 1–[`crate::limits::NAME_BYTES_MAX`] bytes.
    pub event_type: TextSpan,
    /// A JSON object that PostgreSQL accepts as jsonb, braces included.
    pub payload: Span,
    /// The same; `None` when absent or `null`.
    pub metadata: Option<Span>,
    /// Parsed and within the accepted range; `None` when absent or `null`: the receive time counts.
    pub timestamp: Option<UnixMicros>,
}

/// Walks events of one body and keeps what it finds.
pub(crate) struct EventScanner<'a> {
    pub walker: Walker<'a>,
    pub limits: &'a ScanLimits,
    pub shape: Shape,
    pub events: &'a mut Vec<EventSpans>,
    pub rejects: &'a mut Vec<Reject>,
    /// Room to unescape a string in.
    pub decoded: &'a mut Vec<u8>,
    /// Room for JSON that the body does not have as one piece.
    pub made: &'a mut Vec<u8>,
}

/// An event of which some members have been seen.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) spans: EventSpans,
    /// A bit per [`Member`] seen, `null`s included.
    seen: u16,
    /// The event's id has been read and is valid.
    identified: bool,
    /// The first thing wrong, and where.
    wrong: Option<(Reason, usize)>,
}

impl Draft {
    /// True when nothing is wrong and all of `required` were seen.
    #[inline(always)]
    pub(super) fn is_good(&self, required: &[Member; 4]) -> bool {
        let bits = required.iter().fold(0, |bits, &member| bits | 1 << member as u16);
        self.wrong.is_none() && self.seen & bits == bits
    }

    /// Notes that `member` was seen; false when it has been seen before.
    #[inline(always)]
    pub(super) fn see(&mut self, member: Member) -> bool {
        let bit = 1 << member as u16;
        let is_new = self.seen & bit == 0;
        self.seen |= bit;
        is_new
    }

    #[cold]
    pub(super) fn refuse(&mut self, reason: Reason, at: usize) {
        self.wrong.get_or_insert((reason, at));
    }
}

impl EventScanner<'_> {
    /// Walks the value at `at` as event number `index`; adds it to the events or the rejects and returns the
    /// position after it.
    #[inline]
    pub fn event(&mut self, at: usize, index: usize) -> Result<usize, SyntaxFault> {
        let mut draft = Draft::default();
        let end = if self.walker.source.byte(at) == b'{' {
            self.members(at, &mut draft)?
        } else {
            draft.refuse(Reason::NotAnObject, at);
            self.walker.value(at)?
        };
        if draft.is_good(&Member::REQUIRED) {
            self.events.push(draft.spans);
        } else {
            self.reject(&draft, Dialect::Native, at, index);
        }
        Ok(end)
    }

    #[cold]
    pub(super) fn reject(&mut self, draft: &Draft, dialect: Dialect, event_at: usize, index: usize) {
        let required = match dialect {
            Dialect::Native => Member::REQUIRED,
            Dialect::CloudEvents => Member::REQUIRED_OF_CLOUD_EVENTS,
        };
        let missing = || {
            let missed = required.into_iter().find(|&member| draft.seen & (1 << member as u16) == 0);
            (Reason::Missing(missed.expect("nothing is wrong, so a member is missing")), event_at)
        };
        let (reason, at) = draft.wrong.unwrap_or_else(missing);
        self.rejects.push(Reject {
            index: index as u32,
            reason,
            event_id: draft.identified.then_some(draft.spans.event_id),
            shape: self.shape,
            service: dialect.service(),
            event_at: event_at as u32,
            at: at as u32,
        });
    }

    /// Walks the object at `open`.
    #[inline]
    fn members(&mut self, open: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        let mut pos = self.walker.source.blank(open + 1);
        if self.walker.source.byte(pos) == b'}' {
            return Ok(pos + 1);
        }
        loop {
            let (name, value_at) = self.walker.member(pos)?;
            pos = match self.member_named(pos, name) {
                Some(member) => self.known_member(member, pos, value_at, draft)?,
                None => self.walker.value(value_at)?,
            };
            let mark = self.walker.source.mark(pos);
            match mark.byte {
                b',' => pos = mark.next,
                b'}' => return Ok(mark.at + 1),
                _ => return Err(self.walker.source.unexpected(mark.at, SyntaxKind::CommaOrBrace)),
            }
        }
    }

    #[inline(always)]
    fn member_named(&mut self, open: usize, key: StringEnd) -> Option<Member> {
        if key.escaped {
            self.member_named_by_escapes(open, key)
        } else {
            Member::named(text(open, key).span.of(self.walker.source.body))
        }
    }

    #[cold]
    fn member_named_by_escapes(&mut self, open: usize, key: StringEnd) -> Option<Member> {
        self.decoded.clear();
        text(open, key).append_to(self.decoded, self.walker.source.body);
        Member::named(self.decoded)
    }

    #[inline(always)]
    fn known_member(
        &mut self,
        member: Member,
        key_at: usize,
        at: usize,
        draft: &mut Draft,
    ) -> Result<usize, SyntaxFault> {
        if !draft.see(member) {
            draft.refuse(Reason::Duplicate(member), key_at);
            return self.walker.value(at);
        }
        match (member, self.walker.source.byte(at)) {
            (Member::EventId | Member::ServiceName | Member::EventType, b'"') => self.text_member(member, at, draft),
            (Member::Payload | Member::Metadata, b'{') => self.object_member(member, at, draft),
            (Member::Timestamp, b'"') => self.timestamp_member(at, draft),
            (Member::Timestamp | Member::Metadata, b'n') => self.walker.value(at),
            _ => {
                draft.refuse(Reason::WrongType(member), at);
                self.walker.value(at)
            }
        }
    }

    #[inline(always)]
    pub(super) fn text_member(&mut self, member: Member, at: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        self.walker.flaw = None;
        let end = self.walker.string(at)?;
        let text = text(at, end);
        let bytes = text.decoded_bytes(self.walker.source.body);
        if let Some(flaw) = self.walker.flaw {
            draft.refuse(Reason::Flaw(flaw.kind), at);
        } else if bytes == 0 {
            draft.refuse(Reason::Empty(member), at);
        } else if bytes > member.text_bytes_max() {
            draft.refuse(Reason::TooLong(member), at);
        } else {
            match member {
                Member::ServiceName | Member::CloudSource => draft.spans.service_name = text,
                Member::EventType | Member::CloudType => draft.spans.event_type = text,
                _ => {
                    draft.spans.event_id = text;
                    draft.identified = true;
                }
            }
        }
        Ok(end.close + 1)
    }

    #[inline(always)]
    pub(super) fn object_member(&mut self, member: Member, at: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        self.walker.flaw = None;
        let end = self.walker.value(at)?;
        if let Some(flaw) = self.walker.flaw {
            draft.refuse(Reason::Flaw(flaw.kind), flaw.at as usize);
        }
        match member {
            Member::Payload | Member::CloudData => draft.spans.payload = Span::new(at, end),
            _ => draft.spans.metadata = Some(Span::new(at, end)),
        }
        Ok(end)
    }

    #[inline(always)]
    pub(super) fn timestamp_member(&mut self, at: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        self.walker.flaw = None;
        let end = self.walker.string(at)?;
        let body = self.walker.source.body;
        let parsed = if end.escaped {
            self.decoded.clear();
            text(at, end).append_to(self.decoded, body);
            parse_rfc3339(self.decoded)
        } else {
            parse_rfc3339(&body[at + 1..end.close])
        };
        match (self.walker.flaw, parsed) {
            (Some(flaw), _) => draft.refuse(Reason::Flaw(flaw.kind), at),
            (None, Err(_)) => draft.refuse(Reason::TimestampInvalid, at),
            (None, Ok(instant)) if instant < self.limits.timestamp_min => draft.refuse(Reason::TimestampTooOld, at),
            (None, Ok(instant)) if instant > self.limits.timestamp_max => {
                draft.refuse(Reason::TimestampTooFarAhead, at);
            }
            (None, Ok(instant)) => draft.spans.timestamp = Some(instant),
        }
        Ok(end.close + 1)
    }
}

/// The contents of the string whose opening quote is at `open`.
#[inline(always)]
pub(crate) fn text(open: usize, end: StringEnd) -> TextSpan {
    TextSpan { span: Span::new(open + 1, end.close), escaped: end.escaped }
}
