//! Spans of a body, and the unescaping of JSON strings that the walker has already found well-formed.

use std::borrow::Cow;

/// Byte offsets into the body, end exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// A span of a body that is at most [`crate::limits::BODY_BYTES_MAX`] long.
    #[inline]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= crate::limits::BODY_BYTES_MAX);
        Self { start: start as u32, end: end as u32 }
    }

    /// The bytes it covers.
    #[inline]
    pub fn of(self, body: &[u8]) -> &[u8] {
        &body[self.start as usize..self.end as usize]
    }

    /// Length in bytes.
    #[inline]
    pub fn bytes(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// The contents of a JSON string: the bytes between its quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSpan {
    /// The bytes between the quotes, as sent.
    pub span: Span,
    /// True when they hold at least one escape and so must be unescaped before use.
    pub escaped: bool,
}

impl TextSpan {
    /// The string that was meant.
    pub fn decode(self, body: &[u8]) -> Cow<'_, str> {
        let raw = self.span.of(body);
        if !self.escaped {
            return String::from_utf8_lossy(raw);
        }
        let mut bytes = Vec::with_capacity(raw.len());
        unescape(raw, |piece| bytes.extend_from_slice(piece));
        Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Length in bytes after unescaping, never more than the span's.
    #[inline]
    pub fn decoded_bytes(self, body: &[u8]) -> usize {
        if !self.escaped {
            return self.span.bytes();
        }
        let mut bytes = 0;
        unescape(self.span.of(body), |piece| bytes += piece.len());
        bytes
    }

    /// Appends the unescaped bytes.
    #[inline]
    pub fn append_to(self, out: &mut Vec<u8>, body: &[u8]) {
        if self.escaped {
            unescape(self.span.of(body), |piece| out.extend_from_slice(piece));
        } else {
            out.extend_from_slice(self.span.of(body));
        }
    }
}

/// The four hex digits at the start of `digits` as a UTF-16 code unit.
pub(crate) fn code_unit(digits: &[u8]) -> Option<u32> {
    digits.first_chunk::<4>()?.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

/// The code unit of a `\uXXXX` at the very start of `raw`.
pub(crate) fn escaped_unit(raw: &[u8]) -> Option<u32> {
    code_unit(raw.strip_prefix(b"\\u")?)
}

/// Hands the unescaped pieces of `raw`, the contents of a well-formed JSON string, to `emit`.
///
/// A lone surrogate becomes U+FFFD; the walker reports it as a flaw, so such text is only ever shown, not stored.
#[cold]
pub(crate) fn unescape(raw: &[u8], mut emit: impl FnMut(&[u8])) {
    let mut rest = raw;
    while let Some(plain) = rest.iter().position(|&byte| byte == b'\\') {
        emit(&rest[..plain]);
        let escape = &rest[plain..];
        let (character, used) = match escape.get(1) {
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(b'n') => ('\n', 2),
            Some(b'r') => ('\r', 2),
            Some(b't') => ('\t', 2),
            Some(b'u') => unicode_escape(escape),
            Some(&same) => (char::from(same), 2),
            None => (char::REPLACEMENT_CHARACTER, 1),
        };
        emit(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = escape.get(used..).unwrap_or_default();
    }
    emit(rest);
}

/// The character of the `\u` escape, or pair of escapes, at the start of `escape`, and the bytes it takes.
fn unicode_escape(escape: &[u8]) -> (char, usize) {
    let first = escaped_unit(escape).unwrap_or(0xFFFD);
    if let 0xD800..0xDC00 = first
        && let Some(second @ 0xDC00..0xE000) = escape.get(6..).and_then(escaped_unit)
    {
        let scalar = 0x1_0000 + ((first - 0xD800) << 10 | (second - 0xDC00));
        return (char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(raw: &str) -> String {
        let text = TextSpan { span: Span::new(0, raw.len()), escaped: raw.contains('\\') };
        let decoded = text.decode(raw.as_bytes()).into_owned();
        assert_eq!(text.decoded_bytes(raw.as_bytes()), decoded.len());
        let mut appended = Vec::new();
        text.append_to(&mut appended, raw.as_bytes());
        assert_eq!(appended, decoded.as_bytes());
        decoded
    }

    #[test]
    fn every_escape_means_what_rfc_8259_says() {
        assert_eq!(decoded(r#"\"\\\/\b\f\n\r\t"#), "\"\\/\u{8}\u{c}\n\r\t");
        assert_eq!(decoded(r"a\u0041\u00e9\u20AC\ud83d\uDE00z"), "aA\u{e9}\u{20ac}\u{1f600}z");
        assert_eq!(decoded("plain é"), "plain é");
        assert_eq!(decoded(""), "");
    }

    #[test]
    fn lone_surrogates_are_shown_as_replacement_characters() {
        assert_eq!(decoded(r"\ud800"), "\u{fffd}");
        assert_eq!(decoded(r"\ud800\ud83d\ude00"), "\u{fffd}\u{1f600}");
        assert_eq!(decoded(r"\udc00x"), "\u{fffd}x");
    }
}
