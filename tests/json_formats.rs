//! NDJSON and CloudEvents against the scanner of our own batches, which is held to its oracle elsewhere.

#[path = "support/awkward.rs"]
mod awkward;
#[path = "support/json_text.rs"]
mod json_text;
#[path = "support/scanners.rs"]
mod scanners;

use ingestd::encode::tuple::{RowContext, append_tuple, tuples};
use ingestd::json::{BodyError, Scratch, scan_body, scan_cloud_event, scan_cloud_events, scan_line};
use ingestd::types::Priority;
use json_text::{object, value};
use proptest::prelude::*;
use scanners::LIMITS;

/// What a row says of its event: id, service, type, payload, timestamp, metadata.
type Row = (String, String, String, String, i64, Option<String>);

/// The rows of what `scratch` found in `body`, by way of their encoding.
fn rows(body: &[u8], scratch: &Scratch) -> Vec<Row> {
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

fn verdicts(body: &[u8], scratch: &Scratch) -> Vec<(u32, &'static str, String)> {
    scratch.rejects().iter().map(|reject| (reject.index, reject.code(), reject.pointer(body))).collect()
}

/// One line as the array of it alone is judged: the oracle of lines.
fn check_line(line: &[u8]) {
    let (mut scratch, mut whole) = (Scratch::new(), Scratch::new());
    scan_line(line, 7, &LIMITS, &mut scratch);
    let array = [b"[", line, b"]"].concat();
    // What an array takes, one line does not: several values, or none.
    let is_one_value =
        serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(&array).is_ok_and(|values| values.len() == 1);
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
            .map(|(_, code, pointer)| (7, code, pointer.trim_start_matches("/0").to_owned()))
            .collect();
        assert_eq!(verdicts(line, &scratch), expected);
    }
}

#[test]
fn awkward_lines_are_judged_as_in_an_array() {
    for (_, payload, _) in awkward::documents() {
        // A line feed ends a line.
        let payload: Vec<u8> = payload.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }).collect();
        check_line(&payload);
        let before: &[u8] = br#"{"event_id":"e1","service_name":"s","event_type":"t","payload":"#;
        let line = [before, &payload, b"}"].concat();
        check_line(&line);
        for cut in 0..line.len().min(200) {
            check_line(&line[..cut]);
        }
        check_line(&[&line[..], b" \r"].concat());
        check_line(&[&line[..], b","].concat());
    }
    check_line("\u{feff}{}".as_bytes());
}

/// A CloudEvent and the event of ours that it is; texts and values are JSON.
fn pair(id: &str, data: Option<&str>, extensions: &[(String, String)]) -> (String, String) {
    let mut cloud = vec![("id", id), ("source", "\"/shop\""), ("type", "\"order\""), ("specversion", "\"1.0\"")];
    cloud.extend(data.map(|data| ("data", data)));
    cloud.push(("time", "\"2026-01-01T00:00:00.5Z\""));
    let cloud = cloud.iter().map(|(name, value)| format!("\"{name}\" : {value}"));
    let extras = extensions.iter().map(|(name, value)| format!("{name}: {value}"));
    let cloud = cloud.chain(extras).collect::<Vec<_>>().join(" , ");
    let mut metadata = vec!["\"specversion\":\"1.0\"".to_owned()];
    metadata.extend(extensions.iter().map(|(name, value)| format!("{name}:{value}")));
    let native = format!(
        r#"{{"event_id":{id},"service_name":"/shop","event_type":"order","payload":{},"timestamp":"2026-01-01T00:00:00.5Z","metadata":{{{}}}}}"#,
        data.unwrap_or("{}"),
        metadata.join(",")
    );
    (format!("{{ {cloud} }}"), native)
}

fn check_pairs(pairs: &[(String, String)]) {
    for pairs in pairs.chunks(LIMITS.events_max) {
        check_batch(pairs);
    }
    let (mut scratch, mut expected) = (Scratch::new(), Scratch::new());
    for (cloud, native) in pairs {
        let native = format!("[{native}]");
        scan_cloud_event(cloud.as_bytes(), &LIMITS, &mut scratch).expect("JSON");
        scan_body(native.as_bytes(), &LIMITS, &mut expected).expect("JSON");
        assert_eq!(rows(cloud.as_bytes(), &scratch), rows(native.as_bytes(), &expected));
    }
}

fn check_batch(pairs: &[(String, String)]) {
    let array = |texts: Vec<&str>| format!("[{}]", texts.join(","));
    let cloud = array(pairs.iter().map(|(cloud, _)| &**cloud).collect());
    let native = array(pairs.iter().map(|(_, native)| &**native).collect());
    let (mut scratch, mut expected) = (Scratch::new(), Scratch::new());
    scan_cloud_events(cloud.as_bytes(), &LIMITS, &mut scratch).expect("JSON");
    scan_body(native.as_bytes(), &LIMITS, &mut expected).expect("JSON");
    assert_eq!(rows(cloud.as_bytes(), &scratch), rows(native.as_bytes(), &expected));
    let codes =
        |scratch: &Scratch| scratch.rejects().iter().map(|reject| (reject.index, reject.code())).collect::<Vec<_>>();
    assert_eq!(codes(&scratch), codes(&expected));
}

#[test]
fn a_cloud_event_is_the_event_that_its_members_make() {
    let extension = |name: &str, value: &str| (format!("\"{name}\""), value.to_owned());
    check_pairs(
        &[
            pair("\"1\"", Some(r#"{"a": 0.10000000000000000001}"#), &[]),
            pair("\"\\u0031\"", None, &[extension("subject", "\"x\\ty\""), extension("data_base64", "\"AAAA\"")]),
            pair("\"2\"", Some("null"), &[extension("partitionkey", "null"), extension("n", "1e400")]),
            pair("\"3\"", Some("[1]"), &[]),
            pair("\"4\"", Some("\"text\""), &[extension("a", "{\"b\": [1, 2]}")]),
            pair("\"5\"", Some("{}"), &[extension("a", "\"\\u0000\"")]),
            pair("\"6\"", Some("{}"), &[extension("\\ud800", "1")]),
            pair("\"\"", Some("{}"), &[]),
        ]
        .map(|(cloud, native)| (cloud, native.replace("\"payload\":null", "\"payload\":{}"))),
    );
}

#[test]
fn what_is_no_cloud_event_gets_a_verdict_in_its_own_words() {
    let good = r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#;
    let bodies = [
        (r#"7"#, "event_not_object", ""),
        (r#"{"specversion":"1.0","id":"1","type":"t"}"#, "member_missing", "/source"),
        (r#"{"id":"1","source":"s","type":"t"}"#, "member_missing", "/specversion"),
        (r#"{"specversion":"0.3","id":"1","source":"s","type":"t"}"#, "specversion_unsupported", "/specversion"),
        (r#"{"specversion":1.0,"id":"1","source":"s","type":"t"}"#, "member_wrong_type", "/specversion"),
        (r#"{"specversion":"1.0","id":"1","id":"2","source":"s","type":"t"}"#, "member_duplicate", "/id"),
        (r#"{"specversion":"1.0","id":"1","source":"","type":"t"}"#, "text_empty", "/source"),
        (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":[]}"#, "member_wrong_type", "/data"),
        (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","time":"x"}"#, "timestamp_invalid", "/time"),
    ];
    let mut scratch = Scratch::new();
    for (body, code, pointer) in bodies {
        scan_cloud_event(body.as_bytes(), &LIMITS, &mut scratch).expect("JSON");
        assert_eq!(verdicts(body.as_bytes(), &scratch), [(0, code, pointer.to_owned())], "{body}");
        let batch = format!("[{good},{body},{good}]");
        scan_cloud_events(batch.as_bytes(), &LIMITS, &mut scratch).expect("JSON");
        assert_eq!(verdicts(batch.as_bytes(), &scratch), [(1, code, format!("/1{pointer}"))], "{body}");
        assert_eq!(rows(batch.as_bytes(), &scratch).len(), 2);
    }
    let envelope = scan_cloud_events(good.as_bytes(), &LIMITS, &mut scratch).expect_err("no array");
    assert!(matches!(envelope, BodyError::Envelope(reason) if reason.code() == "body_not_array"));
    scan_cloud_events(b"[]", &LIMITS, &mut scratch).expect_err("no event");
    assert!(matches!(scan_cloud_event(b"{} {}", &LIMITS, &mut scratch), Err(BodyError::Syntax { offset: 3, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_line_is_judged_as_in_an_array(payload in value(), garbage in proptest::collection::vec(any::<u8>(), 0..40)) {
        let line = format!(r#"{{"event_id":"e","service_name":"s","event_type":"t","payload":{payload}}}"#);
        check_line(line.replace('\n', " ").as_bytes());
        let garbage: Vec<u8> = garbage.into_iter().filter(|&byte| byte != b'\n').collect();
        check_line(&garbage);
    }

    #[test]
    fn any_cloud_event_is_the_event_that_its_members_make(data in object(), extensions in proptest::collection::vec(value(), 0..4)) {
        let extensions: Vec<_> =
            extensions.into_iter().enumerate().map(|(number, value)| (format!("\"ext{number}\""), value)).collect();
        check_pairs(&[pair("\"e\"", Some(&data), &extensions)]);
    }
}
