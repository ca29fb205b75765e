//! Well-formed but invalid: 422 with a verdict on each bad event, or the good ones taken with `invalid=skip`.

use serde_json::{Value, json};

use super::service;
use super::support::contract::{assert_problem, batch, event, rows_of, send, status_of, wait_until_completed};
use super::support::server::{get, post};

/// A good event with `member` set to `value`.
fn with(member: &str, value: Value) -> Value {
    let mut event = event("bad");
    event[member] = value;
    event
}

/// A good event without `member`.
fn without(member: &str) -> Value {
    let mut event = event("bad");
    event.as_object_mut().expect("an event is an object").remove(member);
    event
}

/// An event as text, with `payload` verbatim.
fn with_payload(payload: &str) -> String {
    format!(r#"{{"event_id":"bad","service_name":"s","event_type":"t","payload":{payload}}}"#)
}

/// `(event, pointer within it, code, words that the detail must have, whether its id can be read)`: each fault.
fn faults() -> Vec<(String, &'static str, &'static str, &'static str, bool)> {
    let mut faults = vec![
        ("17".into(), "", "event_not_object", "object", false),
        ("null".into(), "", "event_not_object", "object", false),
        ("[]".into(), "", "event_not_object", "object", false),
        ("{}".into(), "/event_id", "member_missing", "event_id is required", false),
        (without("event_id").to_string(), "/event_id", "member_missing", "event_id is required", false),
        (without("service_name").to_string(), "/service_name", "member_missing", "service_name is required", true),
        (without("event_type").to_string(), "/event_type", "member_missing", "event_type is required", true),
        (without("payload").to_string(), "/payload", "member_missing", "payload is required", true),
        (with("event_id", json!("")).to_string(), "/event_id", "text_empty", "1 to 256 bytes", false),
        (with("event_id", json!("x".repeat(257))).to_string(), "/event_id", "text_too_long", "256 bytes", false),
        (with("event_id", json!("é".repeat(129))).to_string(), "/event_id", "text_too_long", "256 bytes", false),
        (with("service_name", json!("")).to_string(), "/service_name", "text_empty", "1 to 128 bytes", true),
        (with("service_name", json!("x".repeat(129))).to_string(), "/service_name", "text_too_long", "128 bytes", true),
        (with("event_type", json!("x".repeat(129))).to_string(), "/event_type", "text_too_long", "128 bytes", true),
        (with("timestamp", json!("yesterday")).to_string(), "/timestamp", "timestamp_invalid", "RFC 3339", true),
        (
            with("timestamp", json!("2026-02-30T00:00:00Z")).to_string(),
            "/timestamp",
            "timestamp_invalid",
            "RFC 3339",
            true,
        ),
        (
            with("timestamp", json!("2026-11-01T00:00:00")).to_string(),
            "/timestamp",
            "timestamp_invalid",
            "RFC 3339",
            true,
        ),
        (with("timestamp", json!("1999-01-01T00:00:00Z")).to_string(), "/timestamp", "timestamp_too_old", "past", true),
        (
            with("timestamp", json!("2999-01-01T00:00:00Z")).to_string(),
            "/timestamp",
            "timestamp_too_far_ahead",
            "future",
            true,
        ),
        (
            with("metadata", json!({"a": [{"b\u{0}": 1}]})).to_string(),
            "/metadata/a/0/b\u{0}",
            "nul_character",
            "u0000",
            true,
        ),
        (with_payload(r#"{"a":["\ud800"]}"#), "/payload/a/0", "lone_surrogate", "surrogate", true),
        (with_payload(r#"{"a/b":{"~":1e401}}"#), "/payload/a~1b/~0", "number_exponent_too_large", "400", true),
        (with_payload(&format!("{{\"n\":{}}}", "1".repeat(401))), "/payload/n", "number_too_many_digits", "400", true),
        (with_payload(r#"{},"payload":{}"#), "/payload", "member_duplicate", "once", true),
        (with_payload(r#"{},"event_\u0069d":"again""#), "/event_id", "member_duplicate", "once", true),
        (with_payload(r#"{},"timestamp":null,"timestamp":null"#), "/timestamp", "member_duplicate", "once", true),
    ];
    for (member, wrong) in [
        ("event_id", "7"),
        ("service_name", "null"),
        ("event_type", "{}"),
        ("timestamp", "1793491200"),
        ("payload", "[]"),
        ("payload", "null"),
        ("payload", "\"{}\""),
        ("metadata", "[]"),
        ("metadata", "false"),
    ] {
        let wrong = serde_json::from_str(wrong).expect("JSON");
        let pointer = ["/event_id", "/service_name", "/event_type", "/timestamp", "/payload", "/metadata"];
        let pointer = pointer.into_iter().find(|pointer| pointer[1..] == *member).expect("a member");
        faults.push((with(member, wrong).to_string(), pointer, "member_wrong_type", "must be", member != "event_id"));
    }
    faults
}

#[test]
fn every_kind_of_fault_has_its_index_id_pointer_code_and_detail() {
    let server = &service().server;
    let faults = faults();
    // A good event before each bad one, so that an index is a place in the batch and not in the list of faults.
    let events: Vec<String> = faults.iter().flat_map(|fault| [event("good").to_string(), fault.0.clone()]).collect();
    for (body, prefix) in
        [(format!("[{}]", events.join(",")), ""), (format!("{{\"events\":[{}]}}", events.join(",")), "/events")]
    {
        let problem = assert_problem(&send(server, "", body.as_bytes()), 422, "invalid_events");
        let errors = problem["errors"].as_array().expect("a list");
        assert_eq!((errors.len(), &problem["errors_total"]), (faults.len(), &json!(faults.len())));
        for (number, ((text, pointer, code, words, identified), error)) in faults.iter().zip(errors).enumerate() {
            let index = 2 * number + 1;
            assert_eq!(error["index"], index, "{text}");
            assert_eq!(error["pointer"], format!("{prefix}/{index}{pointer}"), "{text}");
            assert_eq!(error["code"], *code, "{text}");
            assert!(error["detail"].as_str().is_some_and(|detail| detail.contains(words)), "{text}: {error}");
            assert_eq!(error["event_id"], if *identified { json!("bad") } else { Value::Null }, "{text}");
        }
    }
}

#[test]
fn nesting_too_deep_is_named_by_its_place() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(128), "]".repeat(128));
    let body = format!("[{}]", with_payload(&deep));
    let problem = assert_problem(&send(&service().server, "", body.as_bytes()), 422, "invalid_events");
    assert_eq!(problem["errors"][0]["code"], "nesting_too_deep");
    let pointer = problem["errors"][0]["pointer"].as_str().expect("a pointer");
    assert!(pointer.starts_with("/0/payload/a/0/0/0"), "{pointer}");
}

#[test]
fn one_bad_event_refuses_the_whole_batch() {
    let service = service();
    let mut body = batch("all-or-nothing", 3);
    body["events"][1] = json!({});
    let problem = assert_problem(&send(&service.server, "", body.to_string().as_bytes()), 422, "invalid_events");
    assert_eq!((&problem["errors_total"], &problem["errors"][0]["index"]), (&json!(1), &json!(1)));
    let status = get(&service.server.url("/v1/batch/all-or-nothing/status"));
    assert_problem(&status, 404, "batch_unknown");
    // Whatever was sent before is in the table once this one is.
    assert_eq!(send(&service.server, "ack=commit", batch("after-it", 1).to_string().as_bytes()).status, 200);
    assert_eq!(rows_of(&service.database, "all-or-nothing"), 0);
}

#[test]
fn at_most_a_hundred_errors_are_listed_and_all_are_counted() {
    let body = json!(vec![json!({}); 250]);
    let problem = assert_problem(&send(&service().server, "", body.to_string().as_bytes()), 422, "invalid_events");
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(100));
    assert_eq!((&problem["errors_total"], &problem["errors"][99]["index"]), (&json!(250), &json!(99)));
}

#[test]
fn with_invalid_skip_the_good_events_are_taken_and_every_bad_one_is_listed() {
    let service = service();
    let is_bad = |number: usize| number % 3 == 1 || number >= 200;
    let events: Vec<Value> = (0..450)
        .map(|number| if is_bad(number) { with("payload", json!(number)) } else { event(&format!("s{number}")) })
        .collect();
    let body = json!({ "batch_id": "skipped", "events": events }).to_string();
    let reply = send(&service.server, "invalid=skip", body.as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
    let answer = reply.json();
    let bad: Vec<Value> = (0..450).filter(|&number| is_bad(number)).map(Value::from).collect();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(450 - bad.len()), &json!(bad.len())));
    let listed: Vec<Value> =
        answer["errors"].as_array().expect("a list").iter().map(|error| error["index"].clone()).collect();
    assert_eq!(listed, bad, "more than a hundred, all of them");
    assert_eq!(answer["errors"][0]["pointer"], "/events/1/payload");
    wait_until_completed(&service.server, "skipped");
    assert_eq!(status_of(&service.server, "skipped")["events"], 450 - bad.len());
    assert_eq!(rows_of(&service.database, "skipped"), (450 - bad.len()) as i64);
}

#[test]
fn with_invalid_skip_a_batch_without_a_good_event_is_refused() {
    let body = json!({ "batch_id": "none-good", "events": [{}, 1] }).to_string();
    let problem = assert_problem(&send(&service().server, "invalid=skip", body.as_bytes()), 422, "invalid_events");
    assert_eq!(problem["errors_total"], 2);
}

#[test]
fn an_envelope_that_is_no_batch_is_refused_with_its_place() {
    let good = event("e");
    let events = format!("\"events\":[{good}]");
    let cases = [
        ("{}".to_owned(), "events_missing", "/events"),
        ("{\"events\":{}}".to_owned(), "events_not_array", "/events"),
        ("{\"events\":null}".to_owned(), "events_not_array", "/events"),
        ("{\"events\":[]}".to_owned(), "events_empty", "/events"),
        ("[]".to_owned(), "events_empty", ""),
        ("\"events\"".to_owned(), "body_not_object_or_array", ""),
        ("17".to_owned(), "body_not_object_or_array", ""),
        (format!("{{{events},\"events\":[]}}"), "member_duplicate", "/events"),
        (format!("{{\"batch_id\":\"a\",{events},\"batch_id\":\"a\"}}"), "member_duplicate", "/batch_id"),
        (format!("{{\"priority\":1,{events},\"prior\\u0069ty\":1}}"), "member_duplicate", "/priority"),
        (format!("{{\"batch_id\":7,{events}}}"), "batch_id_not_string", "/batch_id"),
        (format!("{{\"batch_id\":\"\",{events}}}"), "batch_id_malformed", "/batch_id"),
        (format!("{{\"batch_id\":\"a b\",{events}}}"), "batch_id_malformed", "/batch_id"),
        (format!("{{\"batch_id\":\"a/b\",{events}}}"), "batch_id_malformed", "/batch_id"),
        (format!("{{\"batch_id\":\"é\",{events}}}"), "batch_id_malformed", "/batch_id"),
        (format!("{{\"batch_id\":\"{}\",{events}}}", "x".repeat(129)), "batch_id_malformed", "/batch_id"),
        (format!("{{\"priority\":11,{events}}}"), "priority_invalid", "/priority"),
        (format!("{{\"priority\":-1,{events}}}"), "priority_invalid", "/priority"),
        (format!("{{\"priority\":1.5,{events}}}"), "priority_invalid", "/priority"),
        (format!("{{\"priority\":\"5\",{events}}}"), "priority_invalid", "/priority"),
    ];
    for (body, code, pointer) in cases {
        let problem = assert_problem(&send(&service().server, "", body.as_bytes()), 422, "invalid_batch");
        let error = &problem["errors"][0];
        assert_eq!((&error["code"], &error["pointer"]), (&json!(code), &json!(pointer)), "{body}");
        assert_eq!((&error["index"], &problem["errors_total"]), (&Value::Null, &json!(1)), "{body}");
    }
}

#[test]
fn parameters_and_header_are_validated_by_name() {
    let server = &service().server;
    let body = json!([event("e")]).to_string();
    for (query, name) in [
        ("ack=now", "ack"),
        ("ack=", "ack"),
        ("ack=JOURNAL", "ack"),
        ("invalid=maybe", "invalid"),
        ("priority=11", "priority"),
        ("priority=-1", "priority"),
        ("priority=high", "priority"),
        ("priority=", "priority"),
        ("batch_id=", "batch_id"),
        ("batch_id=a%20b", "batch_id"),
        ("batch_id=a%2Fb", "batch_id"),
        ("batch_id=%ff", "batch_id"),
        (&*format!("batch_id={}", "x".repeat(129)), "batch_id"),
    ] {
        let problem = assert_problem(&send(server, query, body.as_bytes()), 422, "invalid_parameter");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains(&format!("parameter {name} ")), "{query}: {detail}");
    }
    for key in ["a b", "\"\"", "\"open", "a/b", &"x".repeat(129)] {
        let url = super::support::contract::ingest_url(server, "");
        assert_problem(&post(&url, &[("Idempotency-Key", key)], body.as_bytes()), 422, "invalid_batch_id");
    }
    for priority in 0..=10 {
        assert_eq!(send(server, &format!("priority={priority}"), body.as_bytes()).status, 202, "{priority}");
    }
}
