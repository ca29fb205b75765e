//! RFC 6901 pointers, found by walking a value a second time. Cold: only for verdicts that a response lists.

use std::fmt::Write;

use super::text;
use crate::limits::POINTER_BYTES_MAX;

/// A step from a container to what is walked inside it.
enum Step<'a> {
    /// The raw name of the member at hand; `None` before the first.
    Member(Option<&'a [u8]>),
    /// The element at hand.
    Element(usize),
}

/// Appends the path from the value at `root` to the token at `target`; a name's path is its member's.
///
/// The value must be well-formed. Steps that would make `pointer` longer than [`POINTER_BYTES_MAX`] are left
/// out, so that what remains points at an ancestor.
pub(super) fn append_path(pointer: &mut String, body: &[u8], root: usize, target: usize) {
    for step in path(body, root, target) {
        let before = pointer.len();
        match step {
            Step::Member(Some(name)) => append_name(pointer, name),
            Step::Member(None) => break,
            Step::Element(index) => write!(pointer, "/{index}").expect("a String takes any text"),
        }
        if pointer.len() > POINTER_BYTES_MAX {
            pointer.truncate(before);
            break;
        }
    }
}

/// The steps from the value at `root` to the token at `target`.
fn path(body: &[u8], root: usize, target: usize) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut pos = root;
    let mut name_is_next = false;
    while pos < target && pos < body.len() {
        match body[pos] {
            b'{' => {
                steps.push(Step::Member(None));
                name_is_next = true;
            }
            b'[' => {
                steps.push(Step::Element(0));
                name_is_next = false;
            }
            b'}' | b']' => {
                steps.pop();
            }
            b',' => match steps.last_mut() {
                Some(Step::Element(index)) => {
                    *index += 1;
                    name_is_next = false;
                }
                _ => name_is_next = true,
            },
            b'"' => {
                let close = string_end(body, pos);
                if name_is_next {
                    name_step(&mut steps, &body[pos + 1..close]);
                    name_is_next = false;
                }
                pos = close;
            }
            _ => {}
        }
        pos += 1;
    }
    if name_is_next && body.get(target) == Some(&b'"') {
        name_step(&mut steps, &body[target + 1..string_end(body, target)]);
    }
    steps
}

fn name_step<'a>(steps: &mut [Step<'a>], name: &'a [u8]) {
    if let Some(Step::Member(at_hand)) = steps.last_mut() {
        *at_hand = Some(name);
    }
}

/// The closing quote of the string whose opening quote is at `open`.
fn string_end(body: &[u8], open: usize) -> usize {
    let mut pos = open + 1;
    while pos < body.len() && body[pos] != b'"' {
        pos += 1 + usize::from(body[pos] == b'\\');
    }
    pos
}

fn append_name(pointer: &mut String, raw: &[u8]) {
    pointer.push('/');
    // No unescaping makes a name six times shorter than it was sent: do not unescape what cannot fit.
    let raw = &raw[..raw.len().min(12 * POINTER_BYTES_MAX)];
    let mut name = Vec::with_capacity(raw.len());
    text::unescape(raw, |piece| name.extend_from_slice(piece));
    for character in String::from_utf8_lossy(&name).chars() {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(json: &str, token: &str) -> String {
        let mut pointer = String::new();
        append_path(&mut pointer, json.as_bytes(), 0, json.find(token).expect("the token is there"));
        pointer
    }

    #[test]
    fn pointers_name_members_and_elements() {
        let json = r#"{"a": [0, {"b": 1}, [[], "two", {"c": "x", "d\u0065": 3}]], "e/f~": {"": 4}}"#;
        assert_eq!(to(json, "{"), "");
        assert_eq!(to(json, "0"), "/a/0");
        assert_eq!(to(json, "1"), "/a/1/b");
        assert_eq!(to(json, "\"two\""), "/a/2/1");
        assert_eq!(to(json, "\"x\""), "/a/2/2/c");
        assert_eq!(to(json, "3"), "/a/2/2/de");
        assert_eq!(to(json, "4"), "/e~1f~0/");
    }

    #[test]
    fn a_token_that_is_a_name_is_pointed_at_as_its_member() {
        assert_eq!(to(r#"{"a": 1, "b": {"c": 2}}"#, "\"b\""), "/b");
        assert_eq!(to(r#"{"a": 1, "b": {"c": 2}}"#, "\"c\""), "/b/c");
    }

    #[test]
    fn long_pointers_end_at_an_ancestor() {
        let long = "k".repeat(POINTER_BYTES_MAX);
        assert_eq!(to(&format!(r#"{{"a": {{"{long}": {{"b": 7}}}}}}"#), "7"), "/a");
        let deep = format!("{}7", r#"{"abc":"#.repeat(1000));
        let pointer = to(&deep, "7");
        assert_eq!(pointer, "/abc".repeat(POINTER_BYTES_MAX / 4));
    }
}
