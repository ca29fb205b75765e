//! The second step: strict RFC 8259 over a body whose index is built, one value at a time, without recursion.
//!
//! Positions go in and come out as byte offsets. A byte past the end reads as NUL, which no grammar rule takes,
//! so every rule meets the end of the body as one more unexpected byte. A fault's offset is that of the first
//! byte that no well-formed body could have there; the body's length when it merely ends too early.

use crate::limits::{JSON_DEPTH_MAX, NUMBER_DIGITS_MAX, NUMBER_EXPONENT_MAX};

use super::super::text;
use super::source::Source;

/// Why and where a body is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntaxFault {
    /// Byte offset into the body.
    pub offset: u32,
    /// The rule that is broken.
    pub kind: SyntaxKind,
}

impl SyntaxFault {
    pub(crate) fn new(offset: usize, kind: SyntaxKind) -> Self {
        Self { offset: offset as u32, kind }
    }
}

/// The rule of RFC 8259 that a body breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntaxKind {
    /// No byte, or only whitespace.
    Empty,
    /// The body ends inside a value.
    End,
    /// Not UTF-8.
    Utf8,
    /// Begins with a byte order mark.
    ByteOrderMark,
    /// A value was expected.
    Value,
    /// A member's name was expected.
    Key,
    /// A colon was expected.
    Colon,
    /// A comma or closing brace was expected.
    CommaOrBrace,
    /// A comma or closing bracket was expected.
    CommaOrBracket,
    /// Something follows the outermost value.
    Trailing,
    /// A control character in a string.
    Control,
    /// A backslash before a character that takes none.
    Escape,
    /// `\u` without four hex digits.
    Hex,
    /// A digit was expected.
    Digit,
    /// A number with a leading zero.
    LeadingZero,
    /// A misspelt `true`, `false` or `null`.
    Literal,
}

impl SyntaxKind {
    /// The rule as a sentence.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Empty => "the body is empty; a JSON object or array is expected",
            Self::End => "the body ends in the middle of a JSON value",
            Self::Utf8 => "the body is not valid UTF-8",
            Self::ByteOrderMark => "the body begins with a byte order mark, which JSON does not allow",
            Self::Value => "a JSON value is expected here",
            Self::Key => "a member name in double quotes is expected here",
            Self::Colon => "a colon is expected after a member name",
            Self::CommaOrBrace => "a comma or closing brace is expected after a member",
            Self::CommaOrBracket => "a comma or closing bracket is expected after an element",
            Self::Trailing => "nothing may follow the outermost JSON value",
            Self::Control => "control characters in strings must be escaped",
            Self::Escape => "this character may not follow a backslash in JSON",
            Self::Hex => "four hexadecimal digits are expected after \\u",
            Self::Digit => "a digit is expected in a number here",
            Self::LeadingZero => "numbers must not have leading zeros",
            Self::Literal => "true, false or null is misspelt",
        }
    }
}

/// Well-formed JSON that PostgreSQL's jsonb, or one of our limits, refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlawKind {
    /// Nested deeper than [`JSON_DEPTH_MAX`].
    Depth,
    /// A number with more than [`NUMBER_DIGITS_MAX`] digits.
    Digits,
    /// A number with an exponent beyond ±[`NUMBER_EXPONENT_MAX`].
    Exponent,
    /// `\u0000` in a string or member name.
    Nul,
    /// Half of a surrogate pair in a string or member name.
    Surrogate,
}

/// The first flaw of a value, at the byte where its string, number or container begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What is wrong.
    pub kind: FlawKind,
    /// Byte offset into the body.
    pub at: u32,
}

/// A string that has been walked: its closing quote, and whether it holds an escape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StringEnd {
    pub close: usize,
    pub escaped: bool,
}

/// Walks values of one body. `flaw` keeps the first flaw since its owner last cleared it.
pub(crate) struct Walker<'a> {
    pub source: Source<'a>,
    pub flaw: Option<Flaw>,
    spill: &'a mut Vec<u64>,
}

impl<'a> Walker<'a> {
    /// A walker over `source`; `spill` is room for deep nesting.
    pub fn new(source: Source<'a>, spill: &'a mut Vec<u64>) -> Self {
        Self { source, flaw: None, spill }
    }

    /// Walks one value that begins at `at`; returns the position after it.
    pub fn value(&mut self, at: usize) -> Result<usize, SyntaxFault> {
        self.value_inside::<0>(at)
    }

    /// As [`Walker::value`], for a value that will be `LEVELS` deeper in what is kept of the body than it is here.
    #[inline(never)]
    pub fn value_inside<const LEVELS: usize>(&mut self, at: usize) -> Result<usize, SyntaxFault> {
        let source = self.source;
        let mut nesting = Nesting::new(self.spill);
        let mut pos = at;
        loop {
            pos = match source.byte(pos) {
                b'"' => self.string(pos)?.close + 1,
                open @ (b'{' | b'[') => {
                    nesting.push(self.spill, open == b'{');
                    if nesting.depth + LEVELS > JSON_DEPTH_MAX {
                        self.note(FlawKind::Depth, pos);
                    }
                    pos = source.blank(pos + 1);
                    // '{' + 2 is '}', '[' + 2 is ']'.
                    if source.byte(pos) != open + 2 {
                        if open == b'{' {
                            pos = self.member(pos)?.1;
                        }
                        continue;
                    }
                    nesting.pop(self.spill);
                    pos + 1
                }
                _ => self.scalar(pos)?,
            };
            // A value has ended: leave the containers that end with it, up to where the next value begins.
            loop {
                if nesting.depth == 0 {
                    return Ok(pos);
                }
                let mark = source.mark(pos);
                match (mark.byte, nesting.in_object()) {
                    (b',', true) => {
                        pos = self.member(mark.next)?.1;
                        break;
                    }
                    (b',', false) => {
                        pos = mark.next;
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        nesting.pop(self.spill);
                        pos = mark.at + 1;
                    }
                    (_, true) => return Err(source.unexpected(mark.at, SyntaxKind::CommaOrBrace)),
                    (_, false) => return Err(source.unexpected(mark.at, SyntaxKind::CommaOrBracket)),
                }
            }
        }
    }

    /// Walks a member's name at `pos` and its colon; returns the name's end and where the value begins.
    #[inline(always)]
    pub fn member(&mut self, pos: usize) -> Result<(StringEnd, usize), SyntaxFault> {
        let source = self.source;
        if source.byte(pos) != b'"' {
            return Err(source.unexpected(pos, SyntaxKind::Key));
        }
        let name = self.string(pos)?;
        let colon = source.mark(name.close + 1);
        if colon.byte != b':' {
            return Err(source.unexpected(colon.at, SyntaxKind::Colon));
        }
        Ok((name, colon.next))
    }

    /// Walks the string whose opening quote is at `open`.
    #[inline(always)]
    pub fn string(&mut self, open: usize) -> Result<StringEnd, SyntaxFault> {
        let stop = self.source.next_stop(open + 1);
        if self.source.byte(stop) == b'"' {
            return Ok(StringEnd { close: stop, escaped: false });
        }
        self.string_with_escapes(open, stop).map(|close| StringEnd { close, escaped: true })
    }

    /// The rest of a string from the first stop in it that is not a quote; returns its closing quote.
    #[inline(never)]
    fn string_with_escapes(&mut self, open: usize, mut stop: usize) -> Result<usize, SyntaxFault> {
        loop {
            match self.source.byte(stop) {
                b'"' => return Ok(stop),
                b'\\' => {
                    let after = match self.source.byte(stop + 1) {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => stop + 2,
                        b'u' => self.unicode_escape(open, stop)?,
                        _ => return Err(self.source.unexpected(stop + 1, SyntaxKind::Escape)),
                    };
                    stop = self.source.next_stop(after);
                }
                _ => return Err(self.source.unexpected(stop, SyntaxKind::Control)),
            }
        }
    }

    /// The `\u` escape at `at`, or the two that make a pair; returns the position after.
    fn unicode_escape(&mut self, open: usize, at: usize) -> Result<usize, SyntaxFault> {
        let unit = self.hex(at + 2)?;
        match unit {
            0 => self.note(FlawKind::Nul, open),
            0xD800..0xDC00 => {
                if let Some(0xDC00..0xE000) = self.source.body.get(at + 6..).and_then(text::escaped_unit) {
                    return Ok(at + 12);
                }
                self.note(FlawKind::Surrogate, open);
            }
            0xDC00..0xE000 => self.note(FlawKind::Surrogate, open),
            _ => {}
        }
        Ok(at + 6)
    }

    fn hex(&self, at: usize) -> Result<u32, SyntaxFault> {
        match self.source.body.get(at..).and_then(text::code_unit) {
            Some(unit) => Ok(unit),
            None => {
                let digits = (0..4).take_while(|&i| self.source.byte(at + i).is_ascii_hexdigit()).count();
                Err(self.source.unexpected(at + digits, SyntaxKind::Hex))
            }
        }
    }

    /// Walks a number or literal.
    #[inline(always)]
    fn scalar(&mut self, pos: usize) -> Result<usize, SyntaxFault> {
        match self.source.byte(pos) {
            b'-' | b'0'..=b'9' => self.number(pos),
            b't' => self.literal(pos, b"true"),
            b'f' => self.literal(pos, b"false"),
            b'n' => self.literal(pos, b"null"),
            _ => Err(self.source.unexpected(pos, SyntaxKind::Value)),
        }
    }

    #[inline(always)]
    fn literal(&self, at: usize, word: &[u8]) -> Result<usize, SyntaxFault> {
        if self.source.body[at..].starts_with(word) {
            return Ok(at + word.len());
        }
        let same = word.iter().zip(&self.source.body[at..]).take_while(|(expected, found)| expected == found).count();
        Err(self.source.unexpected(at + same, SyntaxKind::Literal))
    }

    /// Walks the number at `at`.
    #[inline(always)]
    fn number(&mut self, at: usize) -> Result<usize, SyntaxFault> {
        let mut pos = at + usize::from(self.source.byte(at) == b'-');
        if self.source.byte(pos) == b'0' {
            pos += 1;
            if self.source.byte(pos).is_ascii_digit() {
                return Err(self.source.unexpected(pos, SyntaxKind::LeadingZero));
            }
        } else {
            pos = self.digits(pos)?;
        }
        if self.source.byte(pos) == b'.' {
            pos = self.digits(pos + 1)?;
        }
        let mantissa_end = pos;
        if self.source.byte(pos) | 0x20 == b'e' {
            pos += 1;
            if let b'+' | b'-' = self.source.byte(pos) {
                pos += 1;
            }
            pos = self.digits(pos)?;
        }
        if mantissa_end - at > NUMBER_DIGITS_MAX || mantissa_end != pos {
            self.judge_number(at, mantissa_end, pos);
        }
        Ok(pos)
    }

    /// Walks one digit or more.
    #[inline(always)]
    fn digits(&self, at: usize) -> Result<usize, SyntaxFault> {
        if !self.source.byte(at).is_ascii_digit() {
            return Err(self.source.unexpected(at, SyntaxKind::Digit));
        }
        let mut pos = at + 1;
        while self.source.byte(pos).is_ascii_digit() {
            pos += 1;
        }
        Ok(pos)
    }

    /// Holds a number that is long or has an exponent to the limits.
    #[cold]
    fn judge_number(&mut self, at: usize, mantissa_end: usize, end: usize) {
        let digits = self.source.body[at..mantissa_end].iter().filter(|byte| byte.is_ascii_digit()).count();
        if digits > NUMBER_DIGITS_MAX {
            self.note(FlawKind::Digits, at);
        }
        let exponent = self.source.body[mantissa_end..end].iter().filter(|byte| byte.is_ascii_digit());
        let exponent =
            exponent.fold(0u32, |sum, &digit| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
        if exponent > NUMBER_EXPONENT_MAX {
            self.note(FlawKind::Exponent, at);
        }
    }

    #[cold]
    fn note(&mut self, kind: FlawKind, at: usize) {
        self.flaw.get_or_insert(Flaw { kind, at: at as u32 });
    }
}

/// The kinds of the containers around a position, a bit each: the innermost 64 in a register, the rest in `spill`.
struct Nesting {
    depth: usize,
    bits: u64,
}

impl Nesting {
    #[inline(always)]
    fn new(spill: &mut Vec<u64>) -> Self {
        spill.clear();
        Self { depth: 0, bits: 0 }
    }

    #[inline(always)]
    fn push(&mut self, spill: &mut Vec<u64>, object: bool) {
        if self.depth.is_multiple_of(64) && self.depth > 0 {
            spill.push(self.bits);
        }
        self.depth += 1;
        self.bits = self.bits << 1 | u64::from(object);
    }

    #[inline(always)]
    fn pop(&mut self, spill: &mut Vec<u64>) {
        self.depth -= 1;
        self.bits >>= 1;
        if self.depth.is_multiple_of(64) && self.depth > 0 {
            self.bits = spill.pop().expect("a word was spilled at this depth");
        }
    }

    #[inline(always)]
    fn in_object(&self) -> bool {
        self.bits & 1 == 1
    }
}
