//! What a request body may be: every rule of docs/api.md#send-a-batch about events and their envelope.

use ingestd::json::reject::{Member, Reason};
use ingestd::json::scan::walk::FlawKind;
use ingestd::json::{BodyError, EnvelopeReason, ScanLimits, Scratch, scan_body};
use ingestd::types::UnixMicros;

const LIMITS: ScanLimits = ScanLimits {
    events_max: 100,
    timestamp_min: UnixMicros(1_761_955_200_000_000), // 2025-11-01
    timestamp_max: UnixMicros(1_793_577_600_000_000), // 2026-11-02
};

const GOOD: &str = r#""event_id":"e1","service_name":"s","event_type":"t","payload":{}"#;

fn scan(body: &str) -> Result<Scratch, BodyError> {
    let mut scratch = Scratch::new();
    scan_body(body.as_bytes(), &LIMITS, &mut scratch).map(|()| scratch)
}

/// The one verdict on a body whose only event is `{members}`, as (reason, pointer, event id).
fn verdict(event: &str) -> Option<(Reason, String, Option<String>)> {
    let body = format!(r#"{{"events":[{event}]}}"#);
    let scratch = scan(&body).unwrap_or_else(|error| panic!("{body}: {error}"));
    assert_eq!(scratch.events_total(), 1);
    let body = body.as_bytes();
    scratch.rejects().first().map(|reject| {
        let event_id = reject.event_id(body).map(|id| id.into_owned());
        (reject.reason, reject.pointer(body), event_id)
    })
}

fn assert_verdict(event: &str, reason: Reason, pointer: &str) {
    let found = verdict(event).map(|(reason, pointer, _)| (reason, pointer));
    assert_eq!(found, Some((reason, pointer.to_owned())), "{event}");
}

fn syntax_offset(body: &str) -> usize {
    match scan(body) {
        Err(BodyError::Syntax { offset, .. }) => offset,
        other => panic!("{body}: {other:?}"),
    }
}

fn envelope_reason(body: &str) -> EnvelopeReason {
    match scan(body) {
        Err(BodyError::Envelope(reason)) => reason,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn an_envelope_gives_events_batch_id_and_priority_in_any_order() {
    let event = format!("{{{GOOD}}}");
    for body in [
        format!(r#"{{"events":[{event}],"batch_id":"b:1","priority":7}}"#),
        format!(r#"{{"priority":7,"extra":{{"events":1}},"batch_id":"b:1","events":[{event}]}}"#),
        format!("\r\n\t {{ \"batch\\u005fid\" : \"b\\u003a1\" , \"priority\" : 7.0e0 , \"events\" : [ {event} ] }} \n"),
    ] {
        let scratch = scan(&body).expect("accepted");
        assert_eq!((scratch.events().len(), scratch.rejects().len()), (1, 0), "{body}");
        assert_eq!(scratch.batch_id(), Some("b:1"));
        assert_eq!(scratch.priority().map(|priority| priority.get()), Some(7));
    }
}

#[test]
fn a_bare_array_is_a_batch_too() {
    let scratch = scan(&format!("[{{{GOOD}}}, 7, {{{GOOD}}}]")).expect("accepted");
    assert_eq!((scratch.events().len(), scratch.batch_id(), scratch.priority()), (2, None, None));
    assert_eq!(scratch.rejects()[0].pointer(b""), "/1");
}

#[test]
fn spans_cover_the_text_that_was_sent() {
    let event = r#"{"payload": {"x" : 1.50}, "event_id":"a\n1", "service_name" : "s", "event_type":"t",
        "timestamp":"2026-01-01T00:00:00.25Z","metadata": { }, "other": [1e999, "\u0000\ud800"]}"#;
    let body = format!("[{event}]");
    let scratch = scan(&body).expect("accepted");
    let (spans, body) = (scratch.events()[0], body.as_bytes());
    assert_eq!(spans.event_id.decode(body), "a\n1");
    assert_eq!(spans.service_name.decode(body), "s");
    assert_eq!(spans.event_type.decode(body), "t");
    assert_eq!(spans.payload.of(body), br#"{"x" : 1.50}"#);
    assert_eq!(spans.metadata.map(|span| span.of(body)), Some(&b"{ }"[..]));
    assert_eq!(spans.timestamp, Some(UnixMicros(1_767_225_600_250_000)));
}

#[test]
fn null_timestamp_metadata_batch_id_and_priority_are_absent() {
    let body = format!(r#"{{"events":[{{{GOOD},"timestamp":null,"metadata":null}}],"batch_id":null,"priority":null}}"#);
    let scratch = scan(&body).expect("accepted");
    let spans = scratch.events()[0];
    assert_eq!((spans.timestamp, spans.metadata), (None, None));
    assert_eq!((scratch.batch_id(), scratch.priority()), (None, None));
}

#[test]
fn unknown_members_may_hold_anything_well_formed() {
    let anything = format!(
        r#"["\u0000", "\ud800", {{"\udc00":1e99999}}, {}, {}1{}]"#,
        "9".repeat(1000),
        "[".repeat(500),
        "]".repeat(500)
    );
    let body = format!(r#"{{"x":{anything},"events":[{{"y":{anything},{GOOD},"\u0000":{anything}}}],"\ud800":1}}"#);
    assert_eq!(scan(&body).expect("accepted").events().len(), 1);
    assert_eq!(syntax_offset(r#"{"x":[01]}"#), 7);
    assert_eq!(syntax_offset(&format!(r#"[{{"y":"{}",{GOOD}}}]"#, "\\q")), 8);
}

#[test]
fn a_body_that_is_not_json_is_refused_at_the_first_wrong_byte() {
    for (body, offset) in [
        ("", 0),
        (" \n", 2),
        ("\u{feff}[]", 0),
        ("{", 1),
        ("[", 1),
        ("]", 0),
        ("nul", 3),
        ("nulL", 3),
        ("[1] x", 4),
        ("[1]]", 3),
        ("{} {}", 3),
        ("[1,]", 3),
        ("[01]", 2),
        ("[1.]", 3),
        ("[+1]", 1),
        ("[1e+]", 4),
        ("[-]", 2),
        ("{\"a\"}", 4),
        ("{\"a\":1,}", 7),
        ("{a:1}", 1),
        ("[\"\t\"]", 2),
        ("[\"\\", 3),
        ("[\"\\x\"]", 3),
        ("[\"\\u12G4\"]", 6),
        ("[\"\\u12", 6),
        ("[\"abc", 5),
        ("[\"\u{e9}\" \u{e9}]", 6),
    ] {
        assert_eq!(syntax_offset(body), offset, "{body:?}");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_refused_wherever_they_are() {
    let mut scratch = Scratch::new();
    for body in [&b"[\"\xff\"]"[..], b"[\xff]", b"[1]\xff", b"\xff"] {
        let offset = body.iter().position(|&byte| byte == 0xFF).expect("it is there");
        let error = scan_body(body, &LIMITS, &mut scratch).expect_err("refused");
        assert_eq!(error, BodyError::Syntax { offset, message: "the body is not valid UTF-8" });
    }
}

#[test]
fn a_syntax_error_after_a_bad_event_or_envelope_still_refuses_the_body() {
    assert_eq!(syntax_offset("[1,2,x]"), 5);
    assert_eq!(syntax_offset(r#"{"priority":99,"events":7,"events":[}"#), 36);
    assert_eq!(syntax_offset(&format!("[{}x]", "1,".repeat(200))), 401);
}

#[test]
fn a_failed_scan_leaves_nothing_behind() {
    let mut scratch = Scratch::new();
    let body = format!(r#"{{"batch_id":"b","priority":3,"events":[{{{GOOD}}},1]}}"#);
    scan_body(body.as_bytes(), &LIMITS, &mut scratch).expect("accepted");
    assert_eq!(scratch.events_total(), 2);
    let broken = &body.as_bytes()[..body.len() - 1];
    scan_body(broken, &LIMITS, &mut scratch).expect_err("truncated");
    assert_eq!((scratch.events_total(), scratch.batch_id(), scratch.priority()), (0, None, None));
}

#[test]
fn a_body_is_refused_as_a_whole_when_its_envelope_is_wrong() {
    for (body, code, pointer) in [
        ("7", "body_not_object_or_array", ""),
        ("null", "body_not_object_or_array", ""),
        ("\"events\"", "body_not_object_or_array", ""),
        ("[]", "events_empty", ""),
        ("[ ]", "events_empty", ""),
        ("{}", "events_missing", "/events"),
        (r#"{"Events":[1]}"#, "events_missing", "/events"),
        (r#"{"events":{}}"#, "events_not_array", "/events"),
        (r#"{"events":null}"#, "events_not_array", "/events"),
        (r#"{"events":[]}"#, "events_empty", "/events"),
        (r#"{"events":[1],"events":[1]}"#, "member_duplicate", "/events"),
        (r#"{"events":[1],"batch_id":"a","batch\u005fid":"a"}"#, "member_duplicate", "/batch_id"),
        (r#"{"events":[1],"priority":null,"priority":1}"#, "member_duplicate", "/priority"),
        (r#"{"events":[1],"batch_id":7}"#, "batch_id_not_string", "/batch_id"),
        (r#"{"events":[1],"batch_id":["a"]}"#, "batch_id_not_string", "/batch_id"),
        (r#"{"events":[1],"batch_id":""}"#, "batch_id_malformed", "/batch_id"),
        (r#"{"events":[1],"batch_id":"a b"}"#, "batch_id_malformed", "/batch_id"),
        (r#"{"events":[1],"batch_id":"a\u0000"}"#, "batch_id_malformed", "/batch_id"),
        (r#"{"events":[1],"batch_id":"\ud800"}"#, "batch_id_malformed", "/batch_id"),
    ] {
        let reason = envelope_reason(body);
        assert_eq!((reason.code(), reason.pointer()), (code, pointer), "{body}");
        assert!(!reason.to_string().is_empty());
    }
    let long = format!(r#"{{"events":[1],"batch_id":"{}"}}"#, "b".repeat(129));
    assert_eq!(envelope_reason(&long), EnvelopeReason::BatchIdMalformed);
}

#[test]
fn priority_is_an_integer_from_0_to_10_however_it_is_written() {
    for (token, value) in [("0", 0), ("10", 10), ("5.0", 5), ("5e0", 5), ("1E1", 10), ("-0", 0), ("300e-2", 3)] {
        let scratch = scan(&format!(r#"{{"events":[1],"priority":{token}}}"#)).expect("accepted");
        assert_eq!(scratch.priority().map(|priority| priority.get()), Some(value), "{token}");
    }
    for token in ["11", "-1", "5.5", "\"5\"", "1e2", "1e400", "1e99999999999999999999", "true", "[5]", "{}"] {
        let body = format!(r#"{{"events":[1],"priority":{token}}}"#);
        assert_eq!(envelope_reason(&body), EnvelopeReason::PriorityInvalid, "{token}");
    }
}

#[test]
fn more_events_than_the_limit_are_a_reason_of_their_own() {
    let body = |events: usize| format!("[{}1]", "1,".repeat(events - 1));
    assert_eq!(scan(&body(100)).expect("accepted").rejects().len(), 100);
    assert_eq!(scan(&body(101)).expect_err("too many"), BodyError::TooManyEvents { events_max: 100 });
}

#[test]
fn events_that_are_not_objects_get_a_verdict() {
    for event in ["1", "null", "\"e\"", "[]", "[{}]", "true", "-1.5e3"] {
        assert_verdict(event, Reason::NotAnObject, "/events/0");
    }
}

#[test]
fn missing_members_get_a_verdict_in_a_fixed_order() {
    assert_verdict("{}", Reason::Missing(Member::EventId), "/events/0/event_id");
    assert_verdict(r#"{"event_id":"e"}"#, Reason::Missing(Member::ServiceName), "/events/0/service_name");
    let event = r#"{"payload":{},"event_type":"t","event_id":"e"}"#;
    assert_verdict(event, Reason::Missing(Member::ServiceName), "/events/0/service_name");
    let event = r#"{"event_id":"e","service_name":"s","event_type":"t","Payload":{}}"#;
    assert_verdict(event, Reason::Missing(Member::Payload), "/events/0/payload");
}

#[test]
fn wrong_types_get_a_verdict() {
    for (member, bad) in [
        (Member::EventId, "7"),
        (Member::ServiceName, "null"),
        (Member::EventType, "[\"t\"]"),
        (Member::Payload, "null"),
        (Member::Payload, "[]"),
        (Member::Payload, "\"{}\""),
        (Member::Timestamp, "1793491200"),
        (Member::Timestamp, "{}"),
        (Member::Metadata, "[]"),
        (Member::Metadata, "false"),
    ] {
        let name = member.name();
        let event = format!(r#"{{"{name}":{bad},{GOOD}}}"#);
        assert_verdict(&event, Reason::WrongType(member), &format!("/events/0/{name}"));
    }
}

#[test]
fn texts_are_bounded_in_bytes_after_unescaping() {
    for (member, bytes_max) in [(Member::EventId, 256), (Member::ServiceName, 128), (Member::EventType, 128)] {
        let name = member.name();
        let event = |text: &str| {
            let others = GOOD.split(',').filter(|part| !part.contains(name)).collect::<Vec<_>>().join(",");
            format!(r#"{{"{name}":"{text}",{others}}}"#)
        };
        for fits in ["x".repeat(bytes_max), "é".repeat(bytes_max / 2), "\\u0041".repeat(bytes_max), "\\n".into()] {
            assert_eq!(verdict(&event(&fits)), None, "{name}");
        }
        let pointer = format!("/events/0/{name}");
        for long in ["x".repeat(bytes_max + 1), "é".repeat(bytes_max / 2) + "x", "\\u00e9".repeat(bytes_max / 2 + 1)] {
            assert_verdict(&event(&long), Reason::TooLong(member), &pointer);
        }
        assert_verdict(&event(""), Reason::Empty(member), &pointer);
    }
}

#[test]
fn a_known_member_twice_gets_a_verdict_also_when_spelt_with_escapes() {
    assert_verdict(&format!(r#"{{{GOOD},"payload":{{}}}}"#), Reason::Duplicate(Member::Payload), "/events/0/payload");
    assert_verdict(
        &format!(r#"{{{GOOD},"event\u005Fid":"e2"}}"#),
        Reason::Duplicate(Member::EventId),
        "/events/0/event_id",
    );
    let event = format!(r#"{{"timestamp":null,{GOOD},"timestamp":null}}"#);
    assert_verdict(&event, Reason::Duplicate(Member::Timestamp), "/events/0/timestamp");
    assert_eq!(verdict(&format!(r#"{{"a":1,{GOOD},"a":2}}"#)), None);
}

#[test]
fn timestamps_are_rfc_3339_and_in_range() {
    let event = |timestamp: &str| format!(r#"{{{GOOD},"timestamp":{timestamp}}}"#);
    for good in [
        "\"2025-11-01T00:00:00Z\"",
        "\"2026-11-02T00:00:00.000000000Z\"",
        "\"2026-11-02T02:00:00+02:00\"",
        "\"2026-01-01\\u005400:00:00Z\"",
    ] {
        assert_eq!(verdict(&event(good)), None, "{good}");
    }
    for (bad, reason) in [
        ("\"\"", Reason::TimestampInvalid),
        ("\"yesterday\"", Reason::TimestampInvalid),
        ("\"2026-02-30T00:00:00Z\"", Reason::TimestampInvalid),
        ("\"2025-10-31T23:59:59.999999Z\"", Reason::TimestampTooOld),
        ("\"2026-11-02T00:00:00.000001Z\"", Reason::TimestampTooFarAhead),
        ("\"2026-01-01T00:00:00Z\\u0000\"", Reason::Flaw(FlawKind::Nul)),
        ("\"\\udc00\"", Reason::Flaw(FlawKind::Surrogate)),
    ] {
        assert_verdict(&event(bad), reason, "/events/0/timestamp");
    }
}

#[test]
fn what_postgresql_cannot_store_gets_a_verdict_that_points_at_it() {
    let event =
        |payload: &str| format!(r#"{{"event_id":"e","service_name":"s","event_type":"t","payload":{payload}}}"#);
    let nines = "9".repeat(401);
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(128), "]".repeat(128));
    for (payload, kind, pointer) in [
        (r#"{"a":["x\u0000"]}"#, FlawKind::Nul, "/events/0/payload/a/0"),
        (r#"{"a":1,"b\u0000":2}"#, FlawKind::Nul, "/events/0/payload/b\0"),
        (r#"{"a":{"b/c":[1,"\ud800"]}}"#, FlawKind::Surrogate, "/events/0/payload/a/b~1c/1"),
        (r#"{"\udc00":2}"#, FlawKind::Surrogate, "/events/0/payload/\u{fffd}"),
        (&format!(r#"{{"n":[{nines}]}}"#), FlawKind::Digits, "/events/0/payload/n/0"),
        (r#"{"n":-1E-401}"#, FlawKind::Exponent, "/events/0/payload/n"),
        (&deep, FlawKind::Depth, &format!("/events/0/payload/a{}", "/0".repeat(127))),
        (r#"{"a":1e401,"b":"\u0000"}"#, FlawKind::Exponent, "/events/0/payload/a"),
    ] {
        assert_verdict(&event(payload), Reason::Flaw(kind), pointer);
        let metadata = format!(r#"{{{GOOD},"metadata":{payload}}}"#);
        assert_verdict(&metadata, Reason::Flaw(kind), &pointer.replace("payload", "metadata"));
    }
    for name in ["event_id", "service_name", "event_type"] {
        let event = format!(r#"{{"{name}":"x\u0000",{GOOD}}}"#);
        assert_verdict(&event, Reason::Flaw(FlawKind::Nul), &format!("/events/0/{name}"));
    }
}

#[test]
fn each_bad_event_has_one_verdict_with_its_index_and_id_wherever_the_id_stands() {
    let body = format!(
        r#"[{{{GOOD}}}, {{"payload":7,"service_name":"","event_id":"late"}}, {{{GOOD}}}, {{"event_id":""}},
            {{"event_id":"first","payload":{{}},"event_id":"second"}}]"#
    );
    let scratch = scan(&body).expect("scanned");
    let body = body.as_bytes();
    assert_eq!(scratch.events().len(), 2);
    let found: Vec<_> = scratch
        .rejects()
        .iter()
        .map(|reject| (reject.index, reject.event_id(body).map(String::from), reject.code(), reject.pointer(body)))
        .collect();
    assert_eq!(
        found,
        [
            (1, Some("late".to_owned()), "member_wrong_type", "/1/payload".to_owned()),
            (3, None, "text_empty", "/3/event_id".to_owned()),
            (4, Some("first".to_owned()), "member_duplicate", "/4/event_id".to_owned()),
        ]
    );
}

#[test]
fn sixteen_megabytes_of_brackets_are_walked_and_refused() {
    let mut scratch = Scratch::new();
    let bytes = 16 << 20;
    for opening in ["[", "[{\"a\":"] {
        let mut body = opening.repeat(bytes / opening.len());
        let end = BodyError::Syntax { offset: body.len(), message: "the body ends in the middle of a JSON value" };
        assert_eq!(scan_body(body.as_bytes(), &LIMITS, &mut scratch), Err(end));
        if opening == "[" {
            body.push_str(&"]".repeat(bytes));
            scan_body(body.as_bytes(), &LIMITS, &mut scratch).expect("well-formed");
            assert_eq!(scratch.rejects().len(), 1);
        }
    }
}
