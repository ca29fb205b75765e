//! The same rules a second time, slow and obvious: what the fast scanner is compared with in tests and fuzzing.
//!
//! Two passes: the body becomes a flat list of tokens, a byte at a time, or a syntax fault; then the tokens are held to
//! the rules of `docs/api.md#send-a-batch`. It shares with the fast path the result types and the timestamp parser
//! (held to `jiff` in its own tests), and no code that looks at JSON. Allocates freely. Not part of the product.

use std::ops::Range;

use crate::encode::timestamp::parse_rfc3339;
use crate::json::envelope::{BodyError, EnvelopeMember, EnvelopeReason};
use crate::json::reject::Shape;
use crate::json::{EventSpans, Member, Reason, Reject, ScanLimits, Span, TextSpan};
use crate::limits::{JSON_DEPTH_MAX, NUMBER_DIGITS_MAX, NUMBER_EXPONENT_MAX};
use crate::types::{Priority, batch_id_is_valid};

use super::walk::{FlawKind, SyntaxFault, SyntaxKind};

/// What a scan finds: the public face of [`crate::json::Scratch`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The good events.
    pub events: Vec<EventSpans>,
    /// The verdicts.
    pub rejects: Vec<Reject>,
    /// The envelope's batch id.
    pub batch_id: Option<String>,
    /// The envelope's priority.
    pub priority: Option<Priority>,
}

/// [`crate::json::scan_body`], the slow way.
///
/// # Errors
/// The same as there.
pub fn scan_body(body: &[u8], limits: &ScanLimits) -> Result<Outcome, BodyError> {
    let tokens = Tokenizer::new(body)?.run()?;
    let mut reader = Reader { body, tokens, limits, shape: Shape::Envelope, outcome: Outcome::default(), wrong: None };
    reader.envelope();
    reader.wrong.map_or(Ok(reader.outcome), Err)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    Key,
    Text,
    Number,
    Literal,
}

/// One token. `depth` counts the containers around it; a container's own open and close have the same.
#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
    depth: usize,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Value,
    FirstElementOrClose,
    FirstKeyOrClose,
    Key,
    CommaOrClose,
}

struct Tokenizer<'a> {
    body: &'a [u8],
    pos: usize,
    /// The opening brackets around `pos`.
    open: Vec<u8>,
    tokens: Vec<Token>,
}

impl<'a> Tokenizer<'a> {
    fn new(body: &'a [u8]) -> Result<Self, SyntaxFault> {
        if let Err(error) = std::str::from_utf8(body) {
            return Err(SyntaxFault::new(error.valid_up_to(), SyntaxKind::Utf8));
        }
        if body.iter().all(|byte| b" \t\r\n".contains(byte)) {
            return Err(SyntaxFault::new(body.len(), SyntaxKind::Empty));
        }
        if body.starts_with(b"\xef\xbb\xbf") {
            return Err(SyntaxFault::new(0, SyntaxKind::ByteOrderMark));
        }
        Ok(Self { body, pos: 0, open: Vec::new(), tokens: Vec::new() })
    }

    fn run(mut self) -> Result<Vec<Token>, SyntaxFault> {
        let mut next = Next::Value;
        loop {
            self.skip_whitespace();
            if next == Next::CommaOrClose && self.open.is_empty() {
                return if self.pos == self.body.len() { Ok(self.tokens) } else { self.fault(SyntaxKind::Trailing) };
            }
            next = match (next, self.peek()) {
                (Next::FirstElementOrClose, Some(b']')) => self.close(),
                (Next::Value | Next::FirstElementOrClose, _) => self.begin_value()?,
                (Next::FirstKeyOrClose, Some(b'}')) => self.close(),
                (Next::FirstKeyOrClose | Next::Key, Some(b'"')) => self.key()?,
                (Next::FirstKeyOrClose | Next::Key, _) => return self.fault(SyntaxKind::Key),
                (Next::CommaOrClose, found) => {
                    let in_object = self.open.last() == Some(&b'{');
                    match found {
                        Some(b',') => {
                            self.pos += 1;
                            if in_object { Next::Key } else { Next::Value }
                        }
                        Some(b'}') if in_object => self.close(),
                        Some(b']') if !in_object => self.close(),
                        _ if in_object => return self.fault(SyntaxKind::CommaOrBrace),
                        _ => return self.fault(SyntaxKind::CommaOrBracket),
                    }
                }
            };
        }
    }

    fn begin_value(&mut self) -> Result<Next, SyntaxFault> {
        let start = self.pos;
        match self.peek() {
            Some(bracket @ (b'{' | b'[')) => {
                self.pos += 1;
                self.push(Kind::Open, start);
                self.open.push(bracket);
                return Ok(if bracket == b'{' { Next::FirstKeyOrClose } else { Next::FirstElementOrClose });
            }
            Some(b'"') => {
                self.string()?;
                self.push(Kind::Text, start);
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                self.push(Kind::Number, start);
            }
            Some(first @ (b't' | b'f' | b'n')) => {
                let word: &[u8] = match first {
                    b't' => b"true",
                    b'f' => b"false",
                    _ => b"null",
                };
                for &letter in word {
                    self.expect(|byte| byte == letter, SyntaxKind::Literal)?;
                }
                self.push(Kind::Literal, start);
            }
            _ => return self.fault(SyntaxKind::Value),
        }
        Ok(Next::CommaOrClose)
    }

    fn key(&mut self) -> Result<Next, SyntaxFault> {
        let start = self.pos;
        self.string()?;
        self.push(Kind::Key, start);
        self.skip_whitespace();
        self.expect(|byte| byte == b':', SyntaxKind::Colon)?;
        Ok(Next::Value)
    }

    fn string(&mut self) -> Result<(), SyntaxFault> {
        self.pos += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.pos += 1;
                    let escape = self.peek();
                    self.expect(|byte| b"\"\\/bfnrtu".contains(&byte), SyntaxKind::Escape)?;
                    if escape == Some(b'u') {
                        for _ in 0..4 {
                            self.expect(|byte| byte.is_ascii_hexdigit(), SyntaxKind::Hex)?;
                        }
                    }
                }
                _ => self.expect(|byte| byte >= 0x20, SyntaxKind::Control)?,
            }
        }
    }

    fn number(&mut self) -> Result<(), SyntaxFault> {
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        if self.peek() == Some(b'0') {
            self.pos += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                return self.fault(SyntaxKind::LeadingZero);
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxFault> {
        self.expect(|byte| byte.is_ascii_digit(), SyntaxKind::Digit)?;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.pos += 1;
        }
        Ok(())
    }

    fn close(&mut self) -> Next {
        self.open.pop();
        self.pos += 1;
        self.push(Kind::Close, self.pos - 1);
        Next::CommaOrClose
    }

    fn push(&mut self, kind: Kind, start: usize) {
        self.tokens.push(Token { kind, start, end: self.pos, depth: self.open.len() });
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.pos).copied()
    }

    fn skip_whitespace(&mut self) {
        while self.peek().is_some_and(|byte| b" \t\r\n".contains(&byte)) {
            self.pos += 1;
        }
    }

    fn expect(&mut self, allowed: impl Fn(u8) -> bool, kind: SyntaxKind) -> Result<(), SyntaxFault> {
        match self.peek() {
            Some(byte) if allowed(byte) => {
                self.pos += 1;
                Ok(())
            }
            _ => self.fault(kind),
        }
    }

    fn fault<T>(&self, kind: SyntaxKind) -> Result<T, SyntaxFault> {
        let kind = if self.pos == self.body.len() { SyntaxKind::End } else { kind };
        Err(SyntaxFault::new(self.pos, kind))
    }
}

/// Looks at the tokens of a well-formed body. Values are named by the number of their first token.
struct Reader<'a> {
    body: &'a [u8],
    tokens: Vec<Token>,
    limits: &'a ScanLimits,
    shape: Shape,
    outcome: Outcome,
    wrong: Option<BodyError>,
}

impl Reader<'_> {
    fn envelope(&mut self) {
        match self.first_byte(0) {
            b'[' => {
                self.shape = Shape::Bare;
                self.events(0);
            }
            b'{' => {
                let mut seen = Vec::new();
                for (key, value) in self.members(0) {
                    let name = self.decode(key).0;
                    let Some(member) = EnvelopeMember::named(name.as_bytes()) else { continue };
                    if seen.contains(&member) {
                        self.refuse(EnvelopeReason::Duplicate(member));
                        continue;
                    }
                    seen.push(member);
                    self.envelope_member(member, value);
                }
                if !seen.contains(&EnvelopeMember::Events) {
                    self.refuse(EnvelopeReason::EventsMissing);
                }
            }
            _ => self.refuse(EnvelopeReason::NotABatch),
        }
    }

    fn envelope_member(&mut self, member: EnvelopeMember, value: usize) {
        match (member, self.first_byte(value)) {
            (EnvelopeMember::Events, b'[') => self.events(value),
            (EnvelopeMember::Events, _) => self.refuse(EnvelopeReason::EventsNotArray),
            (_, b'n') => {}
            (EnvelopeMember::BatchId, b'"') => match self.decode(value) {
                (id, None) if batch_id_is_valid(&id) => self.outcome.batch_id = Some(id),
                _ => self.refuse(EnvelopeReason::BatchIdMalformed),
            },
            (EnvelopeMember::BatchId, _) => self.refuse(EnvelopeReason::BatchIdNotString),
            (EnvelopeMember::Priority, _) => match integer_to_ten(self.text(value)) {
                Some(priority) => self.outcome.priority = Some(priority),
                None => self.refuse(EnvelopeReason::PriorityInvalid),
            },
        }
    }

    fn events(&mut self, array: usize) {
        let elements = self.elements(array);
        if elements.is_empty() {
            self.refuse(EnvelopeReason::EventsEmpty { bare: self.shape == Shape::Bare });
        }
        for (index, &element) in elements.iter().enumerate() {
            if index == self.limits.events_max {
                self.wrong.get_or_insert(BodyError::TooManyEvents { events_max: index });
                break;
            }
            self.event(element, index);
        }
    }

    fn event(&mut self, event: usize, index: usize) {
        let mut spans = EventSpans::default();
        let mut event_id = None;
        let mut seen: Vec<Member> = Vec::new();
        let mut problems: Vec<(Reason, usize)> = Vec::new();
        let event_at = self.tokens[event].start;
        if self.first_byte(event) != b'{' {
            problems.push((Reason::NotAnObject, event_at));
        } else {
            for (key, value) in self.members(event) {
                let Some(member) = Member::named(self.decode(key).0.as_bytes()) else { continue };
                if seen.contains(&member) {
                    problems.push((Reason::Duplicate(member), self.tokens[key].start));
                    continue;
                }
                seen.push(member);
                match self.event_member(member, value, &mut spans) {
                    Ok(()) if member == Member::EventId => event_id = Some(spans.event_id),
                    Ok(()) => {}
                    Err(problem) => problems.push(problem),
                }
            }
            let missing = Member::REQUIRED.into_iter().filter(|member| !seen.contains(member));
            problems.extend(missing.map(|member| (Reason::Missing(member), event_at)));
        }
        match problems.first() {
            None => self.outcome.events.push(spans),
            Some(&(reason, at)) => self.outcome.rejects.push(Reject {
                index: index as u32,
                reason,
                event_id,
                shape: self.shape,
                service: Member::ServiceName,
                event_at: event_at as u32,
                at: at as u32,
            }),
        }
    }

    fn event_member(&self, member: Member, value: usize, spans: &mut EventSpans) -> Result<(), (Reason, usize)> {
        let at = self.tokens[value].start;
        let first = self.first_byte(value);
        let end = self.value_end(value);
        match member {
            Member::Payload | Member::Metadata => {
                if first == b'n' && member == Member::Metadata {
                    return Ok(());
                }
                if first != b'{' {
                    return Err((Reason::WrongType(member), at));
                }
                if let Some((kind, at)) = self.first_flaw(value..end) {
                    return Err((Reason::Flaw(kind), at));
                }
                let span = Span::new(at, self.tokens[end - 1].end);
                match member {
                    Member::Payload => spans.payload = span,
                    _ => spans.metadata = Some(span),
                }
            }
            Member::Timestamp => {
                if first == b'n' {
                    return Ok(());
                }
                let text = self.plain_text(member, value)?;
                let instant = parse_rfc3339(text.as_bytes()).map_err(|_| (Reason::TimestampInvalid, at))?;
                if instant < self.limits.timestamp_min {
                    return Err((Reason::TimestampTooOld, at));
                }
                if instant > self.limits.timestamp_max {
                    return Err((Reason::TimestampTooFarAhead, at));
                }
                spans.timestamp = Some(instant);
            }
            Member::EventId | Member::ServiceName | Member::EventType => {
                let text = self.plain_text(member, value)?;
                if text.is_empty() {
                    return Err((Reason::Empty(member), at));
                }
                if text.len() > member.text_bytes_max() {
                    return Err((Reason::TooLong(member), at));
                }
                let span = Span::new(at + 1, self.tokens[value].end - 1);
                let text = TextSpan { span, escaped: span.of(self.body).contains(&b'\\') };
                match member {
                    Member::EventId => spans.event_id = text,
                    Member::ServiceName => spans.service_name = text,
                    _ => spans.event_type = text,
                }
            }
            _ => unreachable!("the oracle knows our own events"),
        }
        Ok(())
    }

    /// The text of a string without flaws.
    fn plain_text(&self, member: Member, value: usize) -> Result<String, (Reason, usize)> {
        let at = self.tokens[value].start;
        if self.tokens[value].kind != Kind::Text {
            return Err((Reason::WrongType(member), at));
        }
        match self.decode(value) {
            (text, None) => Ok(text),
            (_, Some(kind)) => Err((Reason::Flaw(kind), at)),
        }
    }

    /// The first thing in the tokens of one value that PostgreSQL or a limit refuses.
    fn first_flaw(&self, value: Range<usize>) -> Option<(FlawKind, usize)> {
        let outermost = self.tokens[value.start].depth;
        self.tokens[value.clone()].iter().zip(value).find_map(|(token, number)| {
            let flaw = match token.kind {
                Kind::Open => (token.depth - outermost + 1 > JSON_DEPTH_MAX).then_some(FlawKind::Depth),
                Kind::Key | Kind::Text => self.decode(number).1,
                Kind::Number => number_flaw(self.text(number)),
                Kind::Close | Kind::Literal => None,
            };
            flaw.map(|kind| (kind, token.start))
        })
    }

    /// A string token's text, U+FFFD for what cannot be decoded, and the first flaw in it.
    fn decode(&self, string: usize) -> (String, Option<FlawKind>) {
        let token = self.tokens[string];
        let contents = std::str::from_utf8(&self.body[token.start + 1..token.end - 1]).expect("checked as a whole");
        // Each unit with whether it is from an escape: raw text never holds a surrogate.
        let mut units: Vec<u16> = Vec::new();
        let mut characters = contents.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
                continue;
            }
            units.push(match characters.next() {
                Some('u') => {
                    let digits: String = characters.by_ref().take(4).collect();
                    u16::from_str_radix(&digits, 16).expect("four hex digits")
                }
                Some('b') => 8,
                Some('t') => 9,
                Some('n') => 10,
                Some('f') => 12,
                Some('r') => 13,
                other => other.expect("an escape") as u16,
            });
        }
        let mut flaw = None;
        let mut text = String::new();
        for decoded in char::decode_utf16(units) {
            match decoded {
                Ok('\0') => flaw = flaw.or(Some(FlawKind::Nul)),
                Ok(_) => {}
                Err(_) => flaw = flaw.or(Some(FlawKind::Surrogate)),
            }
            text.push(decoded.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        (text, flaw)
    }

    /// One past the last token of the value.
    fn value_end(&self, value: usize) -> usize {
        let token = self.tokens[value];
        if token.kind != Kind::Open {
            return value + 1;
        }
        let closes = |other: &Token| other.kind == Kind::Close && other.depth == token.depth;
        value + 1 + self.tokens[value..].iter().position(closes).expect("every container is closed")
    }

    /// The first tokens of an array's elements.
    fn elements(&self, array: usize) -> Vec<usize> {
        let (mut elements, mut at) = (Vec::new(), array + 1);
        while self.tokens[at].kind != Kind::Close {
            elements.push(at);
            at = self.value_end(at);
        }
        elements
    }

    /// An object's keys and the first tokens of their values.
    fn members(&self, object: usize) -> Vec<(usize, usize)> {
        let (mut members, mut at) = (Vec::new(), object + 1);
        while self.tokens[at].kind != Kind::Close {
            members.push((at, at + 1));
            at = self.value_end(at + 1);
        }
        members
    }

    fn text(&self, token: usize) -> &str {
        let token = self.tokens[token];
        std::str::from_utf8(&self.body[token.start..token.end]).expect("checked as a whole")
    }

    fn first_byte(&self, token: usize) -> u8 {
        self.body[self.tokens[token].start]
    }

    fn refuse(&mut self, reason: EnvelopeReason) {
        self.wrong.get_or_insert(BodyError::Envelope(reason));
    }
}

fn number_flaw(number: &str) -> Option<FlawKind> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    if mantissa.chars().filter(char::is_ascii_digit).count() > NUMBER_DIGITS_MAX {
        return Some(FlawKind::Digits);
    }
    let exponent = exponent.trim_start_matches(['+', '-']).trim_start_matches('0');
    let too_large = exponent.len() > 9 || exponent.parse().unwrap_or(0) > NUMBER_EXPONENT_MAX;
    too_large.then_some(FlawKind::Exponent)
}

/// The priority that a token spells, by moving its decimal point in a plain decimal string.
fn integer_to_ten(token: &str) -> Option<Priority> {
    if !token.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        return None;
    }
    let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
    let (whole, fraction) =
        mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa.trim_start_matches('-'), ""));
    let digits = format!("{whole}{fraction}");
    if digits.bytes().all(|digit| digit == b'0') {
        return Priority::new(0);
    }
    let exponent_digits = exponent.trim_start_matches(['+', '-']).trim_start_matches('0');
    if token.starts_with('-') || exponent_digits.len() > 9 {
        return None;
    }
    let exponent: i64 = exponent.trim_start_matches('+').parse().unwrap_or(0);
    // DIGITS × 10^power, trailing zeros moved into the power: an integer when the power is not negative.
    let significant = digits.trim_end_matches('0');
    let power = exponent - fraction.len() as i64 + (digits.len() - significant.len()) as i64;
    let significant = significant.trim_start_matches('0');
    match (significant, power) {
        (digit, 0) if digit.len() == 1 => Priority::new(digit.parse().ok()?),
        ("1", 1) => Priority::new(10),
        _ => None,
    }
}
