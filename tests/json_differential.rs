//! The fast scanner against the oracle, serde_json and simd-json: they agree wherever docs/api.md lets them.

#[path = "support/awkward.rs"]
mod awkward;
#[path = "support/json_text.rs"]
mod json_text;
#[path = "support/scanners.rs"]
mod scanners;

use ingestd::encode::tuple::{RowContext, append_tuple, decode_tuple};
use ingestd::json::{BodyError, Scratch, scan_body};
use ingestd::types::Priority;
use json_text::{object, string, value};
use proptest::prelude::*;
use scanners::{LIMITS, compare};

/// A body of one event with this payload.
fn body_with(payload: &[u8]) -> Vec<u8> {
    let before: &[u8] = br#"{"events":[{"event_id":"e1","service_name":"s","event_type":"t","payload":"#;
    [before, payload, br#","timestamp":"2026-01-01T00:00:00Z"}],"priority":5}"#].concat()
}

/// A body with everything in it that the grammar and docs/api.md#send-a-batch know.
fn rich_body() -> Vec<u8> {
    "{\"batch_id\": \"b-1\", \"x\": [null, true, false], \"events\": [{\"event_id\":\"e\\u0031\",\"service_name\":\"s\",\
     \"event_type\":\"t\",\"payload\":{\"a\":[1,-2.5e+3,\"\\ud83d\\ude00é\",{}],\"b\":{\"c\":[]}},\
     \"timestamp\":\"2026-01-01T00:00:00.123+01:00\",\"metadata\":{\"ip\":\"192.0.2.1\"}}, {\"event_id\":\"\"}, 7,\
     {\"payload\":{\"k\":\"\\u0000\"},\"event_id\":\"e4\"}], \"priority\": 5.0}\n"
        .as_bytes()
        .to_vec()
}

#[test]
fn awkward_documents_are_judged_as_they_say() {
    let mut scratch = Scratch::new();
    for (name, payload, accepted) in awkward::documents() {
        let body = body_with(&payload);
        let scanned = compare(&mut scratch, &body);
        assert_eq!(scanned.is_ok() && scratch.rejects().is_empty(), accepted, "{name}");
        if accepted {
            assert_eq!(scratch.events()[0].payload.of(&body), payload, "{name}");
        }
        let _ = compare(&mut scratch, &payload);
        let _ = compare(&mut scratch, &[b"[", &payload[..], b"]"].concat());
        let ignored = [br#"[{"y":"#, &payload[..], br#","event_id":"e"}]"#].concat();
        let _ = compare(&mut scratch, &ignored);
    }
}

#[test]
fn a_body_cut_anywhere_is_judged_alike() {
    let (body, mut scratch) = (rich_body(), Scratch::new());
    compare(&mut scratch, &body).expect("accepted");
    assert_eq!((scratch.events().len(), scratch.rejects().len()), (1, 3));
    for cut in 0..body.len() - 1 {
        compare(&mut scratch, &body[..cut]).expect_err("truncated");
    }
}

#[test]
fn a_body_with_any_one_byte_changed_is_judged_alike() {
    let (body, mut scratch) = (rich_body(), Scratch::new());
    let replacements = b"\0\x1f \"\\/{}[]:,-+.0159eEtfnu\x7f\x80\xc3\xed\xff";
    for at in 0..body.len() {
        for &byte in replacements {
            let mut changed = body.clone();
            changed[at] = byte;
            let _ = compare(&mut scratch, &changed);
        }
        let without = [&body[..at], &body[at + 1..]].concat();
        let _ = compare(&mut scratch, &without);
        let doubled = [&body[..=at], &body[at..]].concat();
        let _ = compare(&mut scratch, &doubled);
    }
}

#[test]
fn every_alignment_of_a_string_end_is_found() {
    let mut scratch = Scratch::new();
    for length in 0..200 {
        for tail in ["", "\\n", "\\\\", "\\\"", "\\u0041", "\\ud83d\\ude00", "\\ud800", "é", "\t", "\\"] {
            let payload = format!("{{\"{}{tail}\":1}}", "x".repeat(length));
            let _ = compare(&mut scratch, &body_with(payload.as_bytes()));
        }
    }
}

/// Members of an event, mostly right.
fn event() -> impl Strategy<Value = String> {
    let text = || prop_oneof![6 => "\"[a-z]{1,9}\"", 1 => string(), 1 => value(), 1 => "\"(xyz){80,90}\""];
    let object = || prop_oneof![6 => object(), 1 => value()];
    let timestamp = prop_oneof![
        4 => "\"2026-0[1-9]-[0-2][1-9][T ]0[0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,9})?(Z|[+-]0[0-9]:[0-5][0-9])\"",
        1 => "\"20[0-9]{2}-01-01T00:00:00Z\"",
        1 => value(),
    ];
    let members = (
        prop::option::weighted(0.95, text()),
        prop::option::weighted(0.95, text()),
        prop::option::weighted(0.95, text()),
        prop::option::weighted(0.95, object()),
        prop::option::of(timestamp),
        prop::option::of(object()),
        prop::option::weighted(0.1, ("event_id|payload|pay\\\\u006coad|x", value())),
    );
    members.prop_perturb(|(id, service, kind, payload, timestamp, metadata, extra), mut random| {
        let names = ["event_id", "service_name", "event_type", "payload", "timestamp", "metadata"];
        let values = [id, service, kind, payload, timestamp, metadata];
        let named = names.iter().zip(values).filter_map(|(name, value)| Some((name.to_string(), value?)));
        let mut members: Vec<_> = named.chain(extra).map(|(name, value)| format!("\"{name}\":{value}")).collect();
        for last in (1..members.len()).rev() {
            members.swap(last, random.random_range(0..=last));
        }
        format!("{{{}}}", members.join(","))
    })
}

fn body() -> impl Strategy<Value = String> {
    let event = || prop_oneof![12 => event(), 1 => value()];
    let events = || prop::collection::vec(event(), 0..7).prop_map(|events| format!("[{}]", events.join(", ")));
    let envelope = (
        prop_oneof![9 => events(), 1 => value()],
        prop::option::of(prop_oneof![3 => "\"[a-zA-Z0-9._:-]{1,20}\"", 1 => value()]),
        prop::option::of(prop_oneof![3 => "[0-9]|10|[1-9][0-9]?\\.0|[1-9][0-9]{0,3}e-?[0-3]", 1 => value()]),
        prop::option::weighted(0.1, ("events|x|priorit\\\\u0079", value())),
    );
    let envelope = envelope.prop_map(|(events, batch_id, priority, extra)| {
        let named = [("batch_id", batch_id), ("events", Some(events)), ("priority", priority)];
        let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let members: Vec<_> = named.chain(extra).map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    });
    prop_oneof![3 => envelope, 1 => events()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_bodies_are_judged_alike_whole_and_damaged(
        body in body(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut scratch = Scratch::new();
        let mut bytes = body.into_bytes();
        let whole = compare(&mut scratch, &bytes);
        prop_assert!(!matches!(whole, Err(BodyError::Syntax { .. })), "{:?}", whole);
        let _ = compare(&mut scratch, &bytes[..cut.index(bytes.len())]);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = compare(&mut scratch, &bytes);
    }

    #[test]
    fn bytes_from_json_alphabet_are_judged_alike(bytes in "[\\[\\]{}:,\"\\\\ 01.eE+\\-tfnulrase\u{0}\t]{0,24}") {
        let mut scratch = Scratch::new();
        let _ = compare(&mut scratch, bytes.as_bytes());
        let _ = compare(&mut scratch, &body_with(bytes.as_bytes()));
    }

    #[test]
    fn accepted_events_come_back_from_their_tuples(events in prop::collection::vec(event(), 1..5)) {
        let body = format!("[{}]", events.join(","));
        let body = body.as_bytes();
        let mut scratch = Scratch::new();
        scan_body(body, &LIMITS, &mut scratch).expect("well-formed and not too many");
        let received_at = LIMITS.timestamp_max;
        let row = RowContext::new("batch", Priority::default(), received_at);
        let mut out = Vec::new();
        for spans in scratch.events() {
            let start = out.len();
            append_tuple(&mut out, body, spans, &row);
            let (view, bytes) = decode_tuple(&out[start..]).expect("decodes");
            prop_assert_eq!(bytes, out.len() - start);
            prop_assert_eq!(view.event_id, spans.event_id.decode(body));
            prop_assert_eq!(view.payload.as_bytes(), spans.payload.of(body));
            prop_assert_eq!(view.timestamp, spans.timestamp.unwrap_or(received_at));

            // The tuple's JSON is an event again, with the very same tuple.
            let mut json = String::from("[");
            view.to_json(&mut json);
            json.push(']');
            let mut again = Scratch::new();
            scan_body(json.as_bytes(), &LIMITS, &mut again).expect("well-formed");
            prop_assert_eq!(again.events().len(), 1, "{}", json);
            let mut replayed = Vec::new();
            append_tuple(&mut replayed, json.as_bytes(), &again.events()[0], &row);
            prop_assert_eq!(&replayed, &out[start..]);
        }
        prop_assert!(out.len() <= row.tuple_bytes_max(body.len(), scratch.events().len()));
    }
}
