//! Refused as a whole: not JSON, over a limit, of a type that is not served.

use serde_json::json;

use super::service;
use super::support::contract::{accept, assert_problem, batch, event, ingest_url, send};
use super::support::raw::Raw;
use super::support::server::{get, post};

const PATH: &str = "/v1/ingest/batch";
const JSON: &str = "Content-Type: application/json";
const MIB: usize = 1024 * 1024;

#[test]
fn what_is_not_json_is_answered_400_with_the_byte_where_it_stops_being_json() {
    let cases: [(&[u8], usize); 12] = [
        (b"", 0),
        (b"   ", 3),
        (b"\xef\xbb\xbf[]", 0),
        (b"events", 0),
        (b"{\"events\": [", 12),
        (b"{\"events\": [}", 12),
        (b"{\"events\": [{\"event_id\": \"a\" \"payload\": {}}]}", 29),
        (b"[{\"event_id\": \"a\xff\"}]", 16),
        (b"[{\"event_id\": \"a\nb\"}]", 16),
        (b"[01]", 2),
        (b"[] []", 3),
        (b"[{\"a\": tru}]", 10),
    ];
    for (body, offset) in cases {
        let reply = send(&service().server, "", body);
        let problem = assert_problem(&reply, 400, "not_json");
        assert_eq!(problem["byte_offset"], offset, "{:?}: {problem}", String::from_utf8_lossy(body));
    }
}

#[test]
fn a_syntax_error_after_invalid_events_is_still_a_syntax_error() {
    let body = b"{\"batch_id\": 7, \"events\": [{}, {\"event_id\": 1}, {]}";
    assert_problem(&send(&service().server, "invalid=skip", body), 400, "not_json");
}

#[test]
fn a_declared_length_over_the_limit_is_refused_before_the_body_is_sent() {
    let mut raw = Raw::connect(&service().server);
    raw.post_head(PATH, &[JSON, &format!("Content-Length: {}", MIB + 1)]);
    let reply = raw.answer();
    let problem = assert_problem(&reply, 413, "body_too_large");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("MAX_BODY_MB")), "{problem}");
    assert_eq!(reply.header("connection"), "close", "the body that follows must not be read as a request");
}

#[test]
fn a_client_that_asks_first_is_told_before_it_sends_its_body() {
    let mut raw = Raw::connect(&service().server);
    raw.post_head(PATH, &[JSON, "Expect: 100-continue", "Content-Length: 9999999"]);
    assert_problem(&raw.answer(), 413, "body_too_large");
}

#[test]
fn a_client_that_sends_a_large_body_without_looking_gets_the_answer_too() {
    let server = &service().server;
    let large = vec![b' '; 4 * MIB];
    // The client fails when it can not send its body: the server must read on, although it has answered.
    for _ in 0..10 {
        assert_problem(&send(server, "", &large), 413, "body_too_large");
        assert_problem(&send(server, "ack=now", &large), 422, "invalid_parameter");
        assert_problem(&post(&server.url("/nowhere"), &[], &large), 404, "not_found");
        assert_problem(&post(&server.url("/livez"), &[], &large), 405, "method_not_allowed");
    }
}

#[test]
fn a_chunked_body_is_refused_as_soon_as_it_passes_the_limit() {
    let mut raw = Raw::connect(&service().server);
    raw.post_head(PATH, &[JSON, "Transfer-Encoding: chunked"]);
    let chunk = [format!("{:x}\r\n", MIB / 4).into_bytes(), vec![b' '; MIB / 4], b"\r\n".to_vec()].concat();
    for _ in 0..4 {
        raw.send(&chunk);
    }
    // Exactly the limit so far: one more byte, and no end of the body.
    raw.send(b"1\r\n \r\n");
    assert_problem(&raw.answer(), 413, "body_too_large");
}

#[test]
fn a_body_of_exactly_the_limit_is_read() {
    let mut body = json!([event("filled")]).to_string().into_bytes();
    body.resize(MIB, b' ');
    assert_eq!(send(&service().server, "", &body).status, 202);
    body.push(b' ');
    assert_problem(&send(&service().server, "", &body), 413, "body_too_large");
}

#[test]
fn more_events_than_allowed_are_refused_and_as_many_as_allowed_are_taken() {
    let events = |count: usize| json!(vec![event("e"); count]).to_string();
    assert_eq!(send(&service().server, "", events(500).as_bytes()).status, 202);
    let problem = assert_problem(&send(&service().server, "", events(501).as_bytes()), 413, "too_many_events");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("500")), "{problem}");
    // Also when they are bad ones, and when bad ones may be left out.
    let bad = json!(vec![json!({}); 501]).to_string();
    assert_problem(&send(&service().server, "invalid=skip", bad.as_bytes()), 413, "too_many_events");
}

#[test]
fn other_media_types_and_encodings_are_refused() {
    let url = ingest_url(&service().server, "");
    let body = json!([event("e")]).to_string();
    for media_type in ["text/plain", "application/xml", "application/jsonp", "application/x-www-form-urlencoded", ""] {
        let reply = post(&url, &[("Content-Type", media_type)], body.as_bytes());
        assert_problem(&reply, 415, "unsupported_media_type");
    }
    for encoding in ["br", "deflate", "gzip, br", "x-unknown"] {
        let headers = [("Content-Type", "application/json"), ("Content-Encoding", encoding)];
        assert_problem(&post(&url, &headers, body.as_bytes()), 415, "unsupported_encoding");
    }
}

#[test]
fn a_body_that_ends_early_takes_nothing_and_leaves_the_server_well() {
    let server = &service().server;
    let mut raw = Raw::connect(server);
    raw.post_head(PATH, &[JSON, "Content-Length: 1000"]);
    raw.send(b"{\"batch_id\": \"cut\", \"events\": [");
    raw.finish_sending();
    // The server may answer or just close: when that has happened it is done with the request.
    raw.rest();
    assert_eq!(get(&server.url("/v1/batch/cut/status")).status, 404, "nothing was taken");
    let whole = accept(server, "", &batch("cut", 1));
    assert_eq!((&whole["accepted"], &whole["duplicate"]), (&json!(1), &serde_json::Value::Null), "its id is free");
}
