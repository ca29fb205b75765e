//! The priority that a body gives itself, told without scanning its events: by it an overload is sorted, and whoever
//! is turned away should cost next to nothing.
//!
//! A hint from bytes that nobody has validated. It agrees with what [`super::scan_body`] finds in every body that is a
//! batch, except where `priority` is spelled with escapes and behind `events`: that one is not seen.

use memchr::memmem::Finder;

use crate::types::Priority;

/// What a look at the envelope tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekedPriority {
    /// `priority` has this value.
    Given(Priority),
    /// There is no `priority`.
    Absent,
    /// It takes more bytes, or a scan, to tell.
    Unknown,
}

/// Looks at the first bytes of a body, as many as there are: tells where `priority` is in front of `events`, or where
/// there is no envelope.
pub fn peek_head(head: &[u8]) -> PeekedPriority {
    let mut rest = blank(head);
    match rest.split_first() {
        Some((b'[', _)) => return PeekedPriority::Absent,
        Some((b'{', members)) => rest = blank(members),
        _ => return PeekedPriority::Unknown,
    }
    while let Some((name, value)) = member(rest) {
        if name == b"events" {
            break;
        }
        let Some((value, behind)) = simple_value(value) else { break };
        if name == b"priority" && value != b"null" {
            return given(value).map_or(PeekedPriority::Unknown, PeekedPriority::Given);
        }
        match blank(behind).split_first() {
            Some((b',', next)) => rest = blank(next),
            Some((b'}', _)) => return PeekedPriority::Absent,
            _ => break,
        }
    }
    PeekedPriority::Unknown
}

/// Looks at a whole body: tells more, as long as its events have no `priority` of their own.
pub fn peek_body(body: &[u8]) -> PeekedPriority {
    match peek_head(body) {
        PeekedPriority::Unknown if Finder::new(r#""priority""#).find(body).is_none() => PeekedPriority::Absent,
        peeked => peeked,
    }
}

fn blank(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
    &bytes[blanks..]
}

/// The text of the string that `bytes` begin with, and what is behind it; `None` when it has escapes or no end.
fn plain_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = bytes.strip_prefix(b"\"")?;
    let end = memchr::memchr2(b'"', b'\\', text)?;
    (text[end] == b'"').then(|| (&text[..end], &text[end + 1..]))
}

/// The name of the member that `bytes` begin with, and its value and what is behind it.
fn member(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, behind) = plain_string(bytes)?;
    Some((name, blank(blank(behind).strip_prefix(b":")?)))
}

/// The string, number or literal that `bytes` begin with, as it is spelled, and what is behind it; `None` when its end is
/// not there.
fn simple_value(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.first()? == &b'"' {
        let (text, _) = plain_string(bytes)?;
        return Some(bytes.split_at(text.len() + 2));
    }
    let end =
        bytes.iter().position(|byte| !matches!(byte, b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z'))?;
    (end > 0).then(|| bytes.split_at(end))
}

/// The priority that `number` is, if it is one and written plainly.
fn given(number: &[u8]) -> Option<Priority> {
    let digits = str::from_utf8(number).ok().filter(|text| matches!(text.as_bytes(), [b'0'..=b'9'] | [b'1', b'0']))?;
    digits.parse().ok().and_then(Priority::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(priority: u8) -> PeekedPriority {
        PeekedPriority::Given(Priority::new(priority).expect("a priority"))
    }

    #[test]
    fn a_priority_in_front_of_the_events_is_told_by_the_head() {
        for (head, expected) in [
            (r#"{"priority":7,"events":["#, given(7)),
            (" {\n \"batch_id\" : \"a\" ,\t\"x\":-1.5e3,\"y\":null, \"priority\" : 10 }", given(10)),
            (r#"{"priority":null,"priority":3,"#, given(3)),
            (r#"{"batch_id":"b"}"#, PeekedPriority::Absent),
            ("  [", PeekedPriority::Absent),
        ] {
            assert_eq!(peek_head(head.as_bytes()), expected, "{head}");
        }
    }

    #[test]
    fn what_the_head_does_not_show_for_certain_is_unknown() {
        for head in [
            "",
            " ",
            "{",
            r#"{"prio"#,
            r#"{"priority""#,
            r#"{"priority":1"#,
            r#"{"priority":1.0,"#,
            r#"{"priority":07,"#,
            r#"{"priority":11,"#,
            r#"{"priority":"7","#,
            r#"{"events":[],"priority":7}"#,
            r#"{"prior\u0069ty":7,"#,
            r#"{"batch_id":"a\"b","priority":7,"#,
            r#"{"tags":[],"priority":7,"#,
            "true",
        ] {
            assert_eq!(peek_head(head.as_bytes()), PeekedPriority::Unknown, "{head}");
        }
    }

    #[test]
    fn a_whole_body_that_never_says_priority_has_none() {
        let behind = br#"{"events":[{"payload":{"a":1}}],"tags":[1],"priority":7}"#;
        assert_eq!(peek_body(behind), PeekedPriority::Unknown);
        let none = br#"{"events":[{"payload":{"a":1}}],"batch_id":"b"}"#;
        assert_eq!(peek_body(none), PeekedPriority::Absent);
        assert_eq!(peek_body(br#"{"tags":[],"priority":7,"events":[]}"#), PeekedPriority::Unknown);
        assert_eq!(peek_body(br#"{"priority":7,"events":[]}"#), given(7));
    }
}
