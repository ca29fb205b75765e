//! NDJSON and CloudEvents before the scanner of our own batches, which is held to its oracle elsewhere: for tests and for
//! the fuzz target.
//!
//! A line is the array of it alone. A CloudEvent is the event of ours that its members make: the translation here is
//! serde_json's, by way of the members' text, and shares no code with the scanner.

use std::fmt;

use ingestd::encode::tuple::{RowContext, append_tuple, tuples};
use ingestd::json::{BodyError, EnvelopeReason, Scratch, scan_body, scan_cloud_event, scan_cloud_events, scan_line};
use ingestd::types::Priority;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::scanners::{self, LIMITS};

/// What a row says of its event: id, service, type, payload, timestamp, metadata.
pub type Row = (String, String, String, String, i64, Option<String>);

/// The rows of what `scratch` found in `body`, by way of their encoding.
pub fn rows(body: &[u8], scratch: &Scratch) -> Vec<Row> {
    let context = RowContext::new("b", Priority::default(), LIMITS.timestamp_max);
    let (source, mut encoded) = (scratch.source(body), Vec::new());
    for event in scratch.events() {
        append_tuple(&mut encoded, &source, event, &context);
    }
    let rows = tuples(&encoded).map(|tuple| {
        let (_, view) = tuple.expect("what was encoded can be decoded");
        let text = str::to_owned;
        let (payload, metadata) = (text(view.payload), view.metadata.map(text));
        (text(view.event_id), text(view.service_name), text(view.event_type), payload, view.timestamp.0, metadata)
    });
    rows.collect()
}

/// Index, code and pointer of each verdict.
pub fn verdicts(body: &[u8], scratch: &Scratch) -> Vec<(u32, &'static str, String)> {
    scratch.rejects().iter().map(|reject| (reject.index, reject.code(), reject.pointer(body))).collect()
}

/// One line as the array of it alone is judged: the oracle of lines.
pub fn check_line(line: &[u8]) {
    let (mut scratch, mut whole) = (Scratch::new(), Scratch::new());
    scan_line(line, 7, &LIMITS, &mut scratch);
    let array = [b"[", line, b"]"].concat();
    // What an array takes, one line does not: several values, or none.
    let is_one_value = serde_json::from_slice::<Vec<IgnoredAny>>(&array).is_ok_and(|values| values.len() == 1);
    let judged = scanners::compare(&mut whole, &array);
    if line.trim_ascii().is_empty() {
        assert!(scratch.events().is_empty() && scratch.rejects().is_empty());
    } else if judged.is_err() || !is_one_value {
        let [reject] = scratch.rejects() else { panic!("one verdict on {:?}", String::from_utf8_lossy(line)) };
        assert_eq!((reject.index, reject.code(), &*reject.pointer(line)), (7, "not_json", ""));
        assert!(scratch.events().is_empty());
    } else {
        assert_eq!(rows(line, &scratch), rows(&array, &whole));
        let expected: Vec<_> = verdicts(&array, &whole)
            .into_iter()
            .map(|(_, code, pointer)| (7, code, pointer.strip_prefix("/0").unwrap_or(&pointer).to_owned()))
            .collect();
        assert_eq!(verdicts(line, &scratch), expected);
    }
}

/// Any body as a batch of CloudEvents, and as one.
pub fn check_cloud_events(body: &[u8]) {
    let (mut scratch, mut native) = (Scratch::new(), Scratch::new());
    let ours = scan_body(body, &LIMITS, &mut native);
    let batch = scan_cloud_events(body, &LIMITS, &mut scratch);
    // serde_json does not look at the UTF-8 of what it ignores, so it is given a str.
    let text = std::str::from_utf8(body).ok().filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    let Some(text) = text else {
        assert_eq!(offset(batch), offset(ours), "{}", String::from_utf8_lossy(body));
        assert_eq!(offset(scan_cloud_event(body, &LIMITS, &mut scratch)), offset(ours));
        return;
    };
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(events) => {
            let events: Vec<_> = events.into_iter().map(|event| translated(event.get())).collect();
            check_translated(body, batch, &scratch, &events);
        }
        Err(_) => assert_eq!(batch, Err(BodyError::Envelope(EnvelopeReason::NotAnArray)), "{text}"),
    }
    let single = scan_cloud_event(body, &LIMITS, &mut scratch);
    check_translated(body, single, &scratch, &[translated(text.trim_ascii())]);
}

/// Where a syntax error is, which there must be.
fn offset(verdict: Result<(), BodyError>) -> usize {
    let Err(BodyError::Syntax { offset, .. }) = verdict else { panic!("{verdict:?} on what is not JSON") };
    offset
}

/// Holds the verdict on CloudEvents in `body`, and `found`, to what our own format says of the same `events`.
fn check_translated(body: &[u8], verdict: Result<(), BodyError>, found: &Scratch, events: &[String]) {
    let native = format!("[{}]", events.join(","));
    let shown = || format!("{} and {native}", String::from_utf8_lossy(body));
    let mut expected = Scratch::new();
    assert_eq!(verdict, scan_body(native.as_bytes(), &LIMITS, &mut expected), "{}", shown());
    let indices = |scratch: &Scratch| scratch.rejects().iter().map(|reject| reject.index).collect::<Vec<_>>();
    assert_eq!(indices(found), indices(&expected), "{}", shown());
    assert!(indices(found).is_sorted_by(|a, b| a < b));
    let rows = rows(body, found);
    assert_eq!(rows, self::rows(native.as_bytes(), &expected), "{}", shown());
    for (_, _, _, payload, _, metadata) in &rows {
        let metadata = metadata.as_deref().expect("every CloudEvent has some");
        for json in [payload, metadata] {
            assert!(serde_json::from_str::<IgnoredAny>(json).is_ok(), "{json}");
        }
    }
    for reject in found.rejects() {
        let (pointer, detail) = (reject.pointer(body), reject.detail());
        assert!((pointer.is_empty() || pointer.starts_with('/')) && !detail.is_empty(), "{pointer:?}: {detail}");
    }
}

/// The members of an object in their order: the name as it is spelled, and the value.
struct Members<'a>(Vec<(&'a str, &'a str)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    members.push((name.get(), value.get()));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The event of ours that the CloudEvent `event` is; something that is refused where it is none.
fn translated(event: &str) -> String {
    const REFUSED: &str = "7";
    let Ok(Members(members)) = serde_json::from_str(event) else { return REFUSED.to_owned() };
    let named = |name: &str| serde_json::from_str::<String>(name).unwrap_or_default();
    let of = |wanted: &str| members.iter().filter(|(name, _)| named(name) == wanted).collect::<Vec<_>>();
    if !matches!(of("specversion")[..], [(_, version)] if named(version) == "1.0") {
        return REFUSED.to_owned();
    }
    let mut native = Vec::new();
    let mut metadata = Vec::new();
    for (name, value) in &members {
        match named(name).as_str() {
            "id" => native.push(format!("\"event_id\":{value}")),
            "source" => native.push(format!("\"service_name\":{value}")),
            "type" => native.push(format!("\"event_type\":{value}")),
            "time" => native.push(format!("\"timestamp\":{value}")),
            "data" if *value == "null" => native.push("\"payload\":{}".to_owned()),
            "data" => native.push(format!("\"payload\":{value}")),
            _ => metadata.push(format!("{name}:{value}")),
        }
    }
    if of("data").is_empty() {
        native.push("\"payload\":{}".to_owned());
    }
    native.push(format!("\"metadata\":{{{}}}", metadata.join(",")));
    format!("{{{}}}", native.join(","))
}
