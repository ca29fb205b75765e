//! The formats of a batch besides our own: NDJSON and CloudEvents, down to the rows; what is no format gets 415.

mod support;

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use support::contract::ingest_url;
use support::postgres::{self, TestDatabase};
use support::raw::Raw;
use support::server::{Ingestd, Reply, post};

struct Service {
    server: Ingestd,
    database: TestDatabase,
}

fn start() -> Service {
    let database = postgres::shared().create_database();
    Service { server: Ingestd::builder().database(&database).env("MAX_EVENTS_PER_BATCH", 10).start(), database }
}

impl Service {
    fn send(&self, query: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        post(&ingest_url(&self.server, query), headers, body)
    }

    fn send_as(&self, media_type: &str, query: &str, body: &str) -> Reply {
        self.send(query, &[("Content-Type", media_type)], body.as_bytes())
    }

    /// The rows as JSON, by event id.
    fn rows(&self) -> Vec<Value> {
        let query = "SELECT jsonb_build_array(event_id, service_name, event_type, payload, metadata, priority)::text \
                     FROM events ORDER BY event_id";
        let rows = self.database.connect().query(query, &[]).expect("rows");
        rows.iter().map(|row| serde_json::from_str(row.get(0)).expect("JSON")).collect()
    }
}

fn line(id: &str) -> String {
    format!(r#"{{"event_id":"{id}","service_name":"s","event_type":"t","payload":{{"id":"{id}"}}}}"#)
}

#[test]
fn ndjson_is_judged_line_by_line() {
    let service = start();
    let body = format!("{}\r\n\n  {}\n{{broken\n7\n{}", line("a"), line("b"), line("c").replace("payload", "pay"));
    let refused = service.send_as("application/x-ndjson", "", &body);
    assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("invalid_events")), "{}", refused.text());
    let taken = service.send_as("application/x-ndjson", "invalid=skip&ack=commit&batch_id=lines&priority=7", &body);
    assert_eq!((taken.status, &taken.json()["accepted"]), (200, &json!(2)), "{}", taken.text());
    let answer = taken.json();
    let errors = answer["errors"].as_array().expect("verdicts");
    let verdicts: Vec<_> = errors.iter().map(|e| json!([e["index"], e["code"], e["pointer"], e["event_id"]])).collect();
    // Events are counted from 0, blank lines are none.
    let expected = [
        json!([2, "not_json", "", null]),
        json!([3, "event_not_object", "", null]),
        json!([4, "member_missing", "/payload", "c"]),
    ];
    assert_eq!(verdicts, expected);
    assert!(errors[0]["detail"].as_str().expect("text").contains("at byte 1"), "{}", errors[0]);
    let rows = service.rows();
    assert_eq!(rows, ["a", "b"].map(|id| json!([id, "s", "t", {"id": id}, null, 7])));
    let again = service.send_as("application/x-ndjson", "invalid=skip&batch_id=lines&priority=7", &body);
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "a retry is known by its digest");
}

#[test]
fn ndjson_without_a_line_that_is_json_is_400_and_without_an_event_422() {
    let service = start();
    for query in ["", "invalid=skip"] {
        let garbage = service.send_as("application/x-ndjson", query, "\nnot json\nneither\n");
        let problem = garbage.json();
        assert_eq!((garbage.status, &problem["code"], &problem["byte_offset"]), (400, &json!("not_json"), &json!(2)));
        assert_eq!(problem["errors"][1]["index"], 1);
        let empty = service.send_as("application/ndjson", query, " \n\n");
        assert_eq!((empty.status, &empty.json()["errors"][0]["code"]), (422, &json!("events_empty")));
    }
}

#[test]
fn ndjson_is_read_as_it_comes() {
    let service = start();
    let mut raw = Raw::connect(&service.server);
    raw.post_head("/v1/ingest/batch", &["Content-Type: application/x-ndjson", "Content-Length: 1000000"]);
    // The limit is ten events: the answer does not wait for a body that has a megabyte to come.
    for number in 0..11 {
        raw.send(format!("{}\n", line(&number.to_string())).as_bytes());
    }
    let answer = raw.answer();
    assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("too_many_events")), "{}", answer.text());
    // Pieces that end anywhere make the same lines, and the same digest.
    let body = format!("{}\n{}\n", line("x"), line("y"));
    let mut raw = Raw::connect(&service.server);
    let head = ["Content-Type: application/x-ndjson", "Transfer-Encoding: chunked"];
    raw.post_head("/v1/ingest/batch?batch_id=pieces&ack=commit", &head);
    for piece in body.as_bytes().chunks(13) {
        raw.send(format!("{:x}\r\n", piece.len()).as_bytes());
        raw.send(piece);
        raw.send(b"\r\n");
    }
    raw.send(b"0\r\n\r\n");
    let answer = raw.answer();
    assert_eq!((answer.status, &answer.json()["inserted"]), (200, &json!(2)), "{}", answer.text());
    let again = service.send_as("application/x-ndjson", "batch_id=pieces", &body);
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)));
}

#[test]
fn a_compressed_body_may_have_any_format() {
    let service = start();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(format!("{}\n{}", line("a"), line("b")).as_bytes()).expect("a Vec takes all");
    let body = encoder.finish().expect("a Vec takes all");
    let headers = [("Content-Type", "application/jsonl"), ("Content-Encoding", "gzip")];
    let reply = service.send("ack=commit", &headers, &body);
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &json!(2)), "{}", reply.text());
}

#[test]
fn cloud_events_land_with_their_attributes_as_metadata() {
    let service = start();
    let one = r#"{"specversion": "1.0", "id": "a", "source": "/shop", "type": "order", "time": "2026-11-01T00:00:00Z",
                  "subject": "x", "n": 1.50, "data": {"amount": 0.10000000000000000001}}"#
        .replace("2026-11-01T00:00:00Z", &now());
    let two = r#"{"specversion":"1.0","id":"b","source":"s","type":"t","data_base64":"AAA="}"#;
    let batch =
        service.send_as("application/cloudevents-batch+json", "ack=commit&priority=3", &format!("[{one},{two}]"));
    assert_eq!((batch.status, &batch.json()["inserted"]), (200, &json!(2)), "{}", batch.text());
    let single = one.replace("\"a\"", "\"c\"");
    let single = service.send_as("application/cloudevents+json; charset=utf-8", "ack=commit", &single);
    assert_eq!(single.status, 200, "{}", single.text());
    let amount: String = service
        .database
        .connect()
        .query_one("SELECT payload->>'amount' FROM events WHERE event_id = 'a'", &[])
        .expect("row")
        .get(0);
    assert_eq!(amount, "0.10000000000000000001", "digit for digit");
    let shown: String = service
        .database
        .connect()
        .query_one("SELECT metadata->>'n' FROM events WHERE event_id = 'a'", &[])
        .expect("row")
        .get(0);
    assert_eq!(shown, "1.50");
    let rows = service.rows();
    assert_eq!(rows[1], json!(["b", "s", "t", {}, {"specversion": "1.0", "data_base64": "AAA="}, 3]));
    assert_eq!(rows[0][4], json!({"specversion": "1.0", "subject": "x", "n": 1.5}));
    assert_eq!((&rows[2][0], &rows[2][5]), (&json!("c"), &json!(0)));
    let bad =
        service.send_as("application/cloudevents-batch+json", "", r#"[{"specversion":"1.0","id":"x","type":"t"}]"#);
    let problem = bad.json();
    assert_eq!((bad.status, &problem["errors"][0]["pointer"]), (422, &json!("/0/source")), "{problem}");
    let envelope = service.send_as("application/cloudevents-batch+json", "", &one);
    assert_eq!((envelope.status, &envelope.json()["errors"][0]["code"]), (422, &json!("body_not_array")));
}

/// Now, as the timestamps of events are written.
fn now() -> String {
    let mut text = String::new();
    ingestd::encode::timestamp::append_rfc3339(&mut text, ingestd::sys::clock::wall_now());
    text
}

#[test]
fn a_cloud_event_in_binary_mode_has_its_attributes_in_headers() {
    let service = start();
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a%22b"),
        ("ce-source", "/shop"),
        ("ce-type", "order"),
        ("ce-tenant", "7"),
    ];
    let send = |more: &[(&str, &str)], body: &str| {
        service.send("ack=commit", &[&attributes[..], more].concat(), body.as_bytes())
    };
    let json_type = ("Content-Type", "application/json");
    let reply = send(&[json_type], "{\"amount\": 1.10}");
    assert_eq!((reply.status, &reply.json()["inserted"]), (200, &json!(1)), "{}", reply.text());
    let metadata = json!({"specversion": "1.0", "tenant": "7", "datacontenttype": "application/json"});
    assert_eq!(service.rows(), [json!(["a\"b", "/shop", "order", {"amount": 1.1}, metadata, 0])]);
    // Without data there is nothing to have a type.
    assert_eq!(send(&[], "").status, 200);
    // What follows the data cannot become an attribute.
    let smuggled = send(&[json_type], r#"{},"source":"other""#);
    assert_eq!((smuggled.status, &smuggled.json()["byte_offset"]), (400, &json!(2)), "{}", smuggled.text());
    let not_an_object = send(&[json_type], "[1]");
    assert_eq!((not_an_object.status, &not_an_object.json()["errors"][0]["pointer"]), (422, &json!("/data")));
    assert_eq!(send(&[("Content-Type", "text/plain")], "{}").status, 415);
    let headers = [("ce-specversion", "1.0"), json_type];
    let missing = service.send("", &headers, b"{}");
    assert_eq!((missing.status, &missing.json()["errors"][0]["pointer"]), (422, &json!("/id")), "{}", missing.text());
}

#[test]
fn other_media_types_and_charsets_are_answered_415_with_what_is_accepted() {
    let service = start();
    for text in ["text/plain", "application/json; charset=latin1", "application/cloudevents+avro", "application/yaml"] {
        let reply = service.send_as(text, "", "[]");
        assert_eq!((reply.status, &reply.json()["code"]), (415, &json!("unsupported_media_type")), "{text}");
        for accepted in ["application/json", "application/x-ndjson", "application/cloudevents-batch+json"] {
            assert!(reply.header("accept").contains(accepted), "{:?}", reply.headers);
        }
    }
}

#[test]
fn a_cloud_event_in_binary_mode_is_the_same_in_any_order_and_with_another_trace() {
    let service = start();
    let time = ("ce-time", "2026-11-01T00:00:00Z");
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/shop"),
        ("ce-type", "order"),
        time,
        ("ce-tenant", "a%20b"),
    ];
    let send = |attributes: &[(&str, &str)], more: &[(&str, &str)]| {
        let fixed = [("Idempotency-Key", "binary"), ("Content-Type", "application/json")];
        service.send("ack=commit", &[&fixed[..], attributes, more].concat(), b"{\"n\":1}")
    };
    let first = send(&attributes, &[("ce-traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]);
    assert_eq!((first.status, &first.json()["inserted"]), (200, &json!(1)), "{}", first.text());
    assert!(service.rows()[0][4].get("traceparent").is_some(), "what came first is stored");
    let turned: Vec<_> = attributes.into_iter().rev().collect();
    let other_trace =
        [("ce-traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-ffffffffffffffff-00"), ("ce-tracestate", "a=b")];
    let quoted = attributes.map(|(name, value)| (name, format!("\"{value}\"")));
    let quoted = quoted.each_ref().map(|(name, value)| (*name, value.as_str()));
    for (attributes, more) in [(&turned[..], &[][..]), (&attributes, &other_trace), (&quoted, &[])] {
        let again = send(attributes, more);
        assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    }
    let other = [("ce-tenant2", "x")];
    assert_eq!(send(&attributes, &other).status, 409, "another attribute is another body");
    assert_eq!(service.rows().len(), 1);
    assert_eq!(service.rows()[0][4]["tenant"], "a b");
}
