//! CloudEvents 1.0 in JSON: a batch, or a single event in structured mode.
//!
//! `id`, `source`, `type`, `time` and `data` are our event id, service name, event type, timestamp and payload. All
//! else is metadata: made here of the members as they were sent, digit for digit, in their order. An event without
//! `data` has the payload `{}`; one with `data_base64` has it among its metadata.
//!
//! Source: CloudEvents specification 1.0.2, "JSON Event Format", 3 and 4.

use super::envelope::{BodyError, EnvelopeReason, scan_in};
use super::event::{Draft, EventScanner, text};
use super::reject::Shape;
use super::scan::walk::{SyntaxFault, SyntaxKind};
use super::{Dialect, Member, Reason, ScanLimits, Scratch, Span};

const VERSION: &[u8] = b"1.0";
const NO_DATA: &[u8] = b"{}";

/// Scans an array of CloudEvents (`application/cloudevents-batch+json`). As [`super::scan_body`], but that spans may lie
/// in [`Scratch::source`] only.
///
/// # Errors
/// As [`super::scan_body`].
pub fn scan_cloud_events(body: &[u8], limits: &ScanLimits, scratch: &mut Scratch) -> Result<(), BodyError> {
    scan_in(Dialect::CloudEvents, body, limits, scratch, |scanner, at| match scanner.scanner.walker.source.byte(at) {
        b'[' => scanner.bare_events(at),
        _ => scanner.other(at, EnvelopeReason::NotAnArray),
    })
}

/// Scans one CloudEvent (`application/cloudevents+json`): a batch of one.
///
/// # Errors
/// [`BodyError::Syntax`].
pub fn scan_cloud_event(body: &[u8], limits: &ScanLimits, scratch: &mut Scratch) -> Result<(), BodyError> {
    scan_in(Dialect::CloudEvents, body, limits, scratch, |scanner, at| {
        scanner.scanner.shape = Shape::Alone;
        scanner.scanner.cloud_event(at, 0)
    })
}

impl EventScanner<'_> {
    /// Walks the value at `at` as CloudEvent number `index`, as [`EventScanner::event`] does with ours.
    pub(super) fn cloud_event(&mut self, at: usize, index: usize) -> Result<usize, SyntaxFault> {
        let made_before = self.made.len();
        let mut draft = Draft::default();
        let end = if self.walker.source.byte(at) == b'{' {
            self.made.push(b'{');
            let end = self.attributes(at, made_before, &mut draft)?;
            self.made.push(b'}');
            end
        } else {
            draft.refuse(Reason::NotAnObject, at);
            self.walker.value(at)?
        };
        if draft.is_good(&Member::REQUIRED_OF_CLOUD_EVENTS) {
            draft.spans.metadata = Some(self.made_since(made_before));
            if draft.spans.payload == Span::default() {
                let before = self.made.len();
                self.made.extend_from_slice(NO_DATA);
                draft.spans.payload = self.made_since(before);
            }
            self.events.push(draft.spans);
        } else {
            self.made.truncate(made_before);
            self.reject(&draft, Dialect::CloudEvents, at, index);
        }
        Ok(end)
    }

    fn made_since(&self, before: usize) -> Span {
        let body = self.walker.source.body.len();
        Span { start: (body + before) as u32, end: (body + self.made.len()) as u32 }
    }

    /// Walks the members of the object at `open`; what is metadata goes to `made`, which began at `made_before`.
    fn attributes(&mut self, open: usize, made_before: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        let mut pos = self.walker.source.blank(open + 1);
        if self.walker.source.byte(pos) == b'}' {
            return Ok(pos + 1);
        }
        loop {
            self.walker.flaw = None;
            let (name, value_at) = self.walker.member(pos)?;
            self.decoded.clear();
            text(pos, name).append_to(self.decoded, self.walker.source.body);
            let known = Member::named_in_cloud_event(self.decoded);
            let end = match known {
                Some(member) => self.attribute(member, pos, value_at, draft)?,
                None => self.extension(value_at, draft)?,
            };
            if matches!(known, None | Some(Member::SpecVersion)) {
                self.keep(made_before, Span::new(pos, name.close + 1), Span::new(value_at, end));
            }
            let mark = self.walker.source.mark(end);
            match mark.byte {
                b',' => pos = mark.next,
                b'}' => return Ok(mark.at + 1),
                _ => return Err(self.walker.source.unexpected(mark.at, SyntaxKind::CommaOrBrace)),
            }
        }
    }

    fn attribute(&mut self, member: Member, key_at: usize, at: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        if !draft.see(member) {
            draft.refuse(Reason::Duplicate(member), key_at);
            return self.walker.value(at);
        }
        match (member, self.walker.source.byte(at)) {
            (Member::CloudId | Member::CloudSource | Member::CloudType, b'"') => self.text_member(member, at, draft),
            (Member::CloudData, b'{') => self.object_member(member, at, draft),
            (Member::CloudTime, b'"') => self.timestamp_member(at, draft),
            (Member::CloudTime | Member::CloudData, b'n') => self.walker.value(at),
            (Member::SpecVersion, b'"') => self.version(at, draft),
            _ => {
                draft.refuse(Reason::WrongType(member), at);
                self.walker.value(at)
            }
        }
    }

    fn version(&mut self, at: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        let end = self.walker.string(at)?;
        self.decoded.clear();
        text(at, end).append_to(self.decoded, self.walker.source.body);
        if self.decoded != VERSION {
            draft.refuse(Reason::SpecVersion, at);
        }
        Ok(end.close + 1)
    }

    /// The value of a member that is kept as it is; its name has been walked since the flaw was cleared.
    fn extension(&mut self, at: usize, draft: &mut Draft) -> Result<usize, SyntaxFault> {
        // The metadata that is made of it is an object around it.
        let end = self.walker.value_inside::<1>(at)?;
        if let Some(flaw) = self.walker.flaw {
            draft.refuse(Reason::Flaw(flaw.kind), flaw.at as usize);
        }
        Ok(end)
    }

    /// Adds the member `name`, quotes included, to the metadata that begins at `made_before`.
    fn keep(&mut self, made_before: usize, name: Span, value: Span) {
        if self.made.len() > made_before + 1 {
            self.made.push(b',');
        }
        self.made.extend_from_slice(name.of(self.walker.source.body));
        self.made.push(b':');
        self.made.extend_from_slice(value.of(self.walker.source.body));
    }
}
