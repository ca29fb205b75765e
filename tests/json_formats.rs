//! NDJSON and CloudEvents against the scanner of our own batches, which is held to its oracle elsewhere.

#[path = "support/awkward.rs"]
mod awkward;
#[path = "support/formats.rs"]
mod formats;
#[path = "support/json_text.rs"]
mod json_text;
#[path = "support/scanners.rs"]
mod scanners;

use formats::{check_cloud_events, check_line, rows, verdicts};
use ingestd::json::{BodyError, Scratch, scan_body, scan_cloud_event, scan_cloud_events};
use json_text::{object, value};
use proptest::prelude::*;
use scanners::LIMITS;

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
fn what_is_kept_as_metadata_is_as_deep_there_as_our_own_may_be() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for levels in [1, 126, 127, 128, 129, 300] {
        for (name, value) in [("extension", nested(levels)), ("data", format!("{{\"a\":{}}}", nested(levels)))] {
            let event = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","{name}":{value}}}"#);
            check_cloud_events(format!("[{event}]").as_bytes());
            let mut scratch = Scratch::new();
            scan_cloud_event(event.as_bytes(), &LIMITS, &mut scratch).expect("JSON");
            assert_eq!(scratch.events().len(), usize::from(levels < 128), "{levels} levels in {name}");
        }
    }
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
        check_cloud_events(body.as_bytes());
        check_cloud_events(format!("[{body},{good}]").as_bytes());
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
        let event = pair("\"e\"", Some(&data), &extensions);
        check_cloud_events(event.0.as_bytes());
        check_pairs(&[event]);
    }
}
