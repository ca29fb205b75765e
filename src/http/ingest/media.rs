//! Which format a body has: `Content-Type`, and the headers of CloudEvents in binary mode.

use std::borrow::Cow;

use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use mediatype::{MediaType, Name, ReadParams as _};
use percent_encoding::percent_decode_str;

use crate::http::problem::Problem;

/// What is accepted, for people and for `Accept` of a 415.
const ACCEPTED: &str = "application/json, application/x-ndjson, application/cloudevents-batch+json, \
                        application/cloudevents+json";
/// What a header that is an attribute of a CloudEvent begins with (HTTP Protocol Binding 1.0.2, 3.1.3).
const ATTRIBUTE_PREFIX: &str = "ce-";

/// The attributes of the extension Distributed Tracing 1.0: each attempt to send an event may have others.
const TRACING: [&str; 2] = ["traceparent", "tracestate"];

/// The format of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// An object with `events`, or an array of events.
    Batch,
    /// An event a line.
    Lines,
    /// An array of CloudEvents.
    CloudEvents,
    /// One CloudEvent.
    CloudEvent,
    /// The data of one CloudEvent whose attributes were headers.
    CloudEventData(Attributes),
}

/// The attributes of a CloudEvent in binary mode as members of a JSON object, without its closing brace, by name: intermediaries
/// may send headers in any order (RFC 9110, 5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    /// All of them.
    pub members: Vec<u8>,
    /// Those by which a repeat is known: not [`TRACING`].
    pub identity: Vec<u8>,
}

impl Format {
    /// The format that `headers` tell; without a `Content-Type` that of a batch: the scanner tells if it is not.
    ///
    /// # Errors
    /// 415 for a media type or charset that is not accepted, 400 for attributes that cannot be read.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let is_binary = headers.contains_key("ce-specversion");
        let mut types = headers.get_all(CONTENT_TYPE).iter();
        let (Some(value), None) = (types.next(), types.next()) else {
            return match (headers.get(CONTENT_TYPE), is_binary) {
                (Some(_), _) => Err(unsupported("the request has several Content-Type headers; send one".to_owned())),
                (None, true) => Ok(Self::CloudEventData(attributes(headers, None)?)),
                (None, false) => Ok(Self::Batch),
            };
        };
        let text = value.to_str().unwrap_or("");
        let media_type = MediaType::parse(text.trim()).map_err(|_| not_accepted(value))?;
        check_charset(&media_type)?;
        match media_type.essence().to_string().to_ascii_lowercase().as_str() {
            "application/cloudevents+json" => Ok(Self::CloudEvent),
            "application/cloudevents-batch+json" => Ok(Self::CloudEvents),
            essence if is_binary => match essence == "application/json" || essence.ends_with("+json") {
                true => Ok(Self::CloudEventData(attributes(headers, Some(text))?)),
                false => Err(unsupported(format!("the data of a CloudEvent must be JSON, not {text:?}"))),
            },
            "application/json" => Ok(Self::Batch),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Self::Lines),
            _ => Err(not_accepted(value)),
        }
    }
}

fn not_accepted(content_type: &HeaderValue) -> Problem {
    unsupported(format!("Content-Type {content_type:?} is not supported; send one of {ACCEPTED}"))
}

fn unsupported(detail: String) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
        .with_header(ACCEPT, HeaderValue::from_static(ACCEPTED))
}

/// JSON is UTF-8 (RFC 8259, 8.1), of which US-ASCII is a part.
fn check_charset(media_type: &MediaType<'_>) -> Result<(), Problem> {
    let charset = media_type.get_param(Name::new_unchecked("charset"));
    let Some(charset) = charset.map(|charset| charset.unquoted_str().to_ascii_lowercase()) else { return Ok(()) };
    if matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii") {
        return Ok(());
    }
    Err(unsupported(format!("charset {charset:?} is not supported; send JSON as utf-8")))
}

fn attributes(headers: &HeaderMap, content_type: Option<&str>) -> Result<Attributes, Problem> {
    let mut given = Vec::new();
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix(ATTRIBUTE_PREFIX) else { continue };
        // The data's place is the body.
        if attribute == "data" {
            return Err(bad_attribute(name.as_str(), "is not a CloudEvents attribute; send the data as the body"));
        }
        let text =
            value.to_str().map_err(|_| bad_attribute(name.as_str(), "must be printable ASCII, percent-encoded"))?;
        let unquoted = unquote(text.trim());
        let text = percent_decode_str(&unquoted).decode_utf8();
        let text = text.map_err(|_| bad_attribute(name.as_str(), "is not UTF-8 after percent-decoding"))?;
        given.push((attribute, text.into_owned()));
    }
    // Stable: what is there twice stays in its order, and is refused later.
    given.sort_by_key(|(attribute, _)| *attribute);
    given.extend(content_type.map(|content_type| ("datacontenttype", content_type.to_owned())));
    let (mut members, mut identity) = (b"{".to_vec(), b"{".to_vec());
    for (attribute, text) in &given {
        append_member(&mut members, attribute, text);
        if !TRACING.contains(attribute) {
            append_member(&mut identity, attribute, text);
        }
    }
    Ok(Attributes { members, identity })
}

/// The value that `text` quotes, if it is a quoted string from its first byte to its last (RFC 9110, 5.6.4), which is to be
/// undone before percent-encoding (HTTP Protocol Binding 1.0.2, 3.1.3.2); else `text`.
fn unquote(text: &str) -> Cow<'_, str> {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Cow::Borrowed(text);
    };
    let mut unquoted = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        let meant = match character {
            // It ends here, so `text` is something else.
            '"' => None,
            '\\' => characters.next(),
            other => Some(other),
        };
        match meant {
            Some(character) => unquoted.push(character),
            None => return Cow::Borrowed(text),
        }
    }
    Cow::Owned(unquoted)
}

fn bad_attribute(name: &str, why: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_attribute", format!("the header {name} {why}"))
}

fn append_member(members: &mut Vec<u8>, name: &str, value: &str) {
    if members.len() > 1 {
        members.push(b',');
    }
    // Strings are always JSON, and a Vec takes any of it.
    let _ = serde_json::to_writer(&mut *members, name);
    members.push(b':');
    let _ = serde_json::to_writer(&mut *members, value);
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    fn of(given: &[(&'static str, &str)]) -> Result<Format, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"));
        }
        Format::of(&headers).map_err(|problem| problem.code())
    }

    #[test]
    fn media_types_are_told_by_their_essence_whatever_their_parameters() {
        for (text, format) in [
            ("application/json", Format::Batch),
            ("Application/JSON; charset=UTF-8", Format::Batch),
            ("application/json;charset=\"utf-8\";version=1", Format::Batch),
            ("application/json; profile=\"a;b\"", Format::Batch),
            ("application/x-ndjson", Format::Lines),
            ("application/ndjson;charset=us-ascii", Format::Lines),
            ("application/jsonl", Format::Lines),
            ("application/cloudevents+json; charset=utf-8", Format::CloudEvent),
            ("application/cloudevents-batch+json", Format::CloudEvents),
        ] {
            assert_eq!(of(&[("content-type", text)]), Ok(format), "{text}");
        }
        assert_eq!(of(&[]), Ok(Format::Batch));
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "text/plain",
            "application/xml",
            "application/json; charset=iso-8859-1",
            "application/json; charset=\"utf-16\"",
            "application/json5",
            "application/cloudevents+avro",
            "json",
            "",
            "application/json, text/plain",
            "*/*",
        ] {
            assert_eq!(of(&[("content-type", text)]), Err("unsupported_media_type"), "{text:?}");
        }
        let twice = [("content-type", "application/json"), ("content-type", "application/json")];
        assert_eq!(of(&twice), Err("unsupported_media_type"));
    }

    #[test]
    fn headers_of_a_cloud_event_become_its_members() {
        let given = [("ce-specversion", "1.0"), ("ce-id", "a%20b%22"), ("ce-subject", "caf%C3%A9")];
        let with = |content_type| of(&[&given[..], &[("content-type", content_type)]].concat());
        let members = r#"{"id":"a b\"","specversion":"1.0","subject":"café""#;
        let data =
            |members: &str| Format::CloudEventData(Attributes { members: members.into(), identity: members.into() });
        assert_eq!(of(&given), Ok(data(members)));
        let typed = format!("{members},\"datacontenttype\":\"application/json\"");
        assert_eq!(with("application/json"), Ok(data(&typed)));
        assert!(matches!(with("application/vnd.shop+json"), Ok(Format::CloudEventData(_))));
        assert_eq!(with("application/cloudevents+json"), Ok(Format::CloudEvent), "the media type says how it is sent");
        assert_eq!(with("text/plain"), Err("unsupported_media_type"));
        assert_eq!(of(&[("ce-specversion", "1.0"), ("ce-x", "%ff")]), Err("invalid_attribute"));
        assert_eq!(of(&[("ce-specversion", "1.0"), ("ce-data", "{}")]), Err("invalid_attribute"));
    }

    #[test]
    fn attributes_are_the_same_in_any_order_and_a_repeat_is_known_without_its_trace() {
        let given = [("ce-id", "1"), ("ce-traceparent", "00-a"), ("ce-specversion", "1.0"), ("ce-tracestate", "x=y")];
        let mut turned = given;
        turned.reverse();
        assert_eq!(of(&given), of(&turned));
        let identity = br#"{"id":"1","specversion":"1.0""#;
        let Ok(Format::CloudEventData(attributes)) = of(&given) else { panic!("attributes") };
        assert_eq!(attributes.identity, identity);
        let members = r#"{"id":"1","specversion":"1.0","traceparent":"00-a","tracestate":"x=y""#;
        assert_eq!(attributes.members, members.as_bytes());
    }

    #[test]
    fn a_quoted_string_is_what_it_quotes_and_other_quotes_are_text() {
        for (text, meant) in [
            (r#""evt-1""#, "evt-1"),
            (r#""a%20b""#, "a%20b"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#""""#, ""),
            ("evt-1", "evt-1"),
            (r#"""#, r#"""#),
            (r#""open"#, r#""open"#),
            (r#""a" and "b""#, r#""a" and "b""#),
            (r#""ends escaped\""#, r#""ends escaped\""#),
        ] {
            assert_eq!(unquote(text), meant, "{text}");
        }
    }
}
