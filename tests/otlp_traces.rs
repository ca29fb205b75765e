//! Promise: a request whose client records its trace leaves spans at the collector, from its answer to the commit of its
//! batch; all others leave none; and a collector that is away or slow costs nothing.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Value, json};

use support::collector::{Collector, Manner, attributes, hex};
use support::contract::{assert_problem, batch, event, ingest_url};
use support::postgres::{TestDatabase, shared};
use support::server::{Builder, Ingestd, Reply, post, try_get};
use support::tls::{Certificates, Greeting};
use support::{ClosedPort, WAIT_MAX};
use ureq::http::Request;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00f067aa0ba902b7";

fn builder(database: &TestDatabase, endpoint: &str) -> Builder {
    Ingestd::builder().database(database).env("OTLP_ENDPOINT", endpoint).env("NODE_ID", "node-7")
}

fn sampled(trace_id: &str) -> String {
    format!("00-{trace_id}-{PARENT}-01")
}

fn send(server: &Ingestd, ack: &str, body: &Value, headers: &[(&str, &str)]) -> Reply {
    let headers = [headers, &[("Content-Type", "application/json")]].concat();
    post(&ingest_url(server, &format!("ack={ack}")), &headers, body.to_string().as_bytes())
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

/// Every event whose id is `bad` is refused by PostgreSQL.
fn refuse_bad_events(database: &TestDatabase) {
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.event_id = 'bad') EXECUTE FUNCTION refuse()";
    database.connect().batch_execute(refuse).expect("a trigger");
}

#[test]
fn a_sampled_request_is_a_span_of_the_clients_with_its_flush_and_copy_in_it() {
    let (database, collector) = (shared().create_database(), Collector::start(Manner::Takes));
    let server = builder(&database, &collector.endpoint()).start();
    let reply = send(
        &server,
        "commit",
        &batch("traced", 3),
        &[("X-Request-Id", "checkout-7"), ("traceparent", &sampled(TRACE))],
    );
    assert_eq!(reply.status, 200, "{}", reply.text());
    let spans = collector.wait_for_spans(TRACE, 3, WAIT_MAX);
    let (request, flush, copy) = (&spans["POST /v1/ingest/batch"], &spans["flush"], &spans["COPY"]);

    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!((&flush.parent_span_id, &copy.parent_span_id), (&request.span_id, &flush.span_id));
    let ids = [&request.span_id, &flush.span_id, &copy.span_id];
    assert!(ids.iter().all(|id| id.len() == 8 && ***id != [0; 8]), "{ids:?}");
    assert_eq!((request.kind(), flush.kind(), copy.kind()), (SpanKind::Server, SpanKind::Internal, SpanKind::Client));
    for span in spans.values() {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano && !is_error(span), "{span:?}");
    }
    // With ack=commit each lies in its parent.
    for (outer, inner) in [(request, flush), (flush, copy)] {
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano, "{spans:?}");
        assert!(inner.end_time_unix_nano <= outer.end_time_unix_nano, "{spans:?}");
    }
    let since = Duration::from_nanos(request.start_time_unix_nano);
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    assert!(now.saturating_sub(since) < WAIT_MAX && since < now, "by the wall clock: {since:?} {now:?}");

    assert_eq!(
        attributes(&request.attributes),
        json!({
            "http.request.method": "POST", "http.route": "/v1/ingest/batch", "url.path": "/v1/ingest/batch",
            "url.scheme": "http", "http.response.status_code": 200, "ingestd.request_id": "checkout-7",
            "ingestd.batch_id": "traced", "ingestd.events": 3, "ingestd.ack": "commit",
        })
    );
    assert_eq!(
        attributes(&flush.attributes),
        json!({
            "ingestd.batch_id": "traced", "ingestd.status": "completed", "ingestd.inserted": 3,
            "ingestd.duplicates": 0, "ingestd.dead_lettered": 0,
        })
    );
    assert_eq!(
        attributes(&copy.attributes),
        json!({
            "db.system.name": "postgresql", "db.operation.name": "COPY", "db.collection.name": "events",
            "ingestd.copy.rows": 3, "ingestd.copy.batches": 1,
        })
    );
    let export = &collector.exports()[0];
    assert_eq!(export.target, "POST /v1/traces");
    assert_eq!(export.headers["content-type"], "application/x-protobuf");
    let resource = attributes(&export.message.resource_spans[0].resource.as_ref().expect("a resource").attributes);
    assert_eq!(
        (&resource["service.name"], &resource["service.instance.id"], &resource["service.version"]),
        (&json!("ingestd"), &json!("node-7"), &json!(env!("CARGO_PKG_VERSION"))),
        "{resource}"
    );
}

#[test]
fn requests_that_nobody_records_leave_no_span() {
    let (database, collector) = (shared().create_database(), Collector::start(Manner::Takes));
    let mut server = builder(&database, &collector.endpoint()).start();
    let unsampled = format!("00-{OTHER_TRACE}-{PARENT}-00");
    assert_eq!(send(&server, "commit", &batch("unsampled", 1), &[("traceparent", &unsampled)]).status, 200);
    assert_eq!(send(&server, "commit", &batch("without", 1), &[]).status, 200);
    assert_eq!(send(&server, "commit", &batch("traced", 1), &[("traceparent", &sampled(TRACE))]).status, 200);
    assert!(server.terminate().success());
    let spans = collector.spans(None);
    assert!(spans.len() == 3 && spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
}

#[test]
fn what_waits_is_sent_before_the_server_ends() {
    let (database, collector) = (shared().create_database(), Collector::start(Manner::Takes));
    let mut server = builder(&database, &collector.endpoint()).env("BATCH_LINGER_MS", 60_000).start();
    let reply = send(&server, "journal", &batch("last", 2), &[("traceparent", &sampled(TRACE))]);
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert!(server.terminate().success());
    let spans = collector.wait_for_spans(TRACE, 3, Duration::ZERO);
    let (request, flush) = (&spans["POST /v1/ingest/batch"], &spans["flush"]);
    assert_eq!(attributes(&request.attributes)["http.response.status_code"], 202);
    assert!(flush.end_time_unix_nano >= request.end_time_unix_nano, "it was answered before: {spans:?}");
    assert!(!server.log().contains("WARN"), "{}", server.log());
}

#[test]
fn errors_of_the_server_and_refused_events_are_errors_and_the_clients_mistakes_are_not() {
    let (database, collector) = (shared().create_database(), Collector::start(Manner::Takes));
    let server = builder(&database, &collector.endpoint()).env("MAX_REQUESTS_MB", 1).start();
    refuse_bad_events(&database);
    let traces: Vec<String> = (1..=3).map(|number| format!("{number:032x}")).collect();

    let mixed = json!({ "batch_id": "mixed", "events": [event("bad"), event("good")] });
    assert_eq!(send(&server, "commit", &mixed, &[("traceparent", &sampled(&traces[0]))]).status, 200);
    let spans = collector.wait_for_spans(&traces[0], 3, WAIT_MAX);
    let flush = attributes(&spans["flush"].attributes);
    assert!(is_error(&spans["flush"]) && !is_error(&spans["POST /v1/ingest/batch"]), "{spans:?}");
    assert_eq!((&flush["ingestd.status"], &flush["error.type"]), (&json!("partial"), &json!("partial")));
    assert_eq!((&flush["ingestd.inserted"], &flush["ingestd.dead_lettered"]), (&json!(1), &json!(1)));
    assert_eq!(attributes(&spans["COPY"].attributes)["ingestd.copy.rows"], 1);

    let mistake = send(&server, "commit", &json!({ "events": [] }), &[("traceparent", &sampled(&traces[1]))]);
    assert_problem(&mistake, 422, "invalid_batch");
    let spans = collector.wait_for_spans(&traces[1], 1, WAIT_MAX);
    let request = &spans["POST /v1/ingest/batch"];
    assert!(!is_error(request) && spans.len() == 1, "{spans:?}");
    assert_eq!(attributes(&request.attributes)["http.response.status_code"], 422);

    let mut large = event("large");
    large["payload"]["filler"] = "x".repeat(3 << 20).into();
    let large = json!({ "batch_id": "large", "events": [large] });
    assert_eq!(send(&server, "commit", &large, &[("traceparent", &sampled(&traces[2]))]).status, 503);
    let spans = collector.wait_for_spans(&traces[2], 1, WAIT_MAX);
    let request = &spans["POST /v1/ingest/batch"];
    assert!(is_error(request) && attributes(&request.attributes)["error.type"] == "503", "{spans:?}");
}

/// Sends `batch_id` with ack=commit by HTTP/2, and takes the request back once the batch is in its COPY. (HTTP/1 has no
/// way to say that an answer is not wanted.)
async fn send_and_take_back(server: &Ingestd, batch_id: &str, trace_id: &str) {
    let stream = tokio::net::TcpStream::connect(server.address()).await.expect("the server listens");
    let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let request = Request::post("http://localhost/v1/ingest/batch?ack=commit")
        .header("content-type", "application/json")
        .header("traceparent", sampled(trace_id));
    let mut client = client.ready().await.expect("a stream is free");
    let (_answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
    body.send_data(Bytes::from(batch(batch_id, 2).to_string()), true).expect("sent");
    while try_get(&server.url(&format!("/v1/batch/{batch_id}/status")))
        .is_none_or(|reply| reply.status != 200 || reply.json()["status"] != "processing")
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    body.send_reset(h2::Reason::CANCEL);
    // The answer to what was sent behind it tells that it has arrived.
    let probe = Request::get("http://localhost/livez").body(()).expect("a request");
    let (answer, _) = client.ready().await.expect("a stream is free").send_request(probe, true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200);
}

#[test]
fn a_request_that_is_taken_back_leaves_the_span_that_its_flush_is_part_of() {
    let (database, collector) = (shared().create_database(), Collector::start(Manner::Takes));
    let server = builder(&database, &collector.endpoint()).start();
    let mut other = database.connect();
    let mut held = other.transaction().expect("a transaction");
    held.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("locked");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let taken_back = async { tokio::time::timeout(WAIT_MAX, send_and_take_back(&server, "left", TRACE)).await };
    runtime.block_on(taken_back).expect("it is in its COPY in time");
    let spans = collector.wait_for_spans(TRACE, 1, WAIT_MAX);
    let request = &spans["POST /v1/ingest/batch"];
    assert!(is_error(request) && attributes(&request.attributes)["error.type"] == "cancelled", "{spans:?}");
    held.rollback().expect("unlocked");
    let spans = collector.wait_for_spans(TRACE, 3, WAIT_MAX);
    assert_eq!(spans["flush"].parent_span_id, request.span_id);
}

#[test]
fn a_collector_that_is_away_or_hangs_or_refuses_costs_nothing() {
    /// More than its queue holds: three spans each.
    const BATCHES: usize = 1000;
    let (hanging, refusing) = (Collector::start(Manner::Hangs), Collector::start(Manner::Refuses(400)));
    let closed = ClosedPort::take();
    let away = format!("http://{}", closed.address());
    for endpoint in [away, hanging.endpoint(), refusing.endpoint()] {
        let database = shared().create_database();
        let mut server = builder(&database, &endpoint).start();
        let begun = Instant::now();
        for number in 0..BATCHES {
            let one = batch(&format!("b{number}"), 1);
            let reply = send(&server, "journal", &one, &[("traceparent", &sampled(TRACE))]);
            assert_eq!(reply.status, 202, "{}", reply.text());
            // Held up for one export alone, all of them would take more than an hour.
            assert!(begun.elapsed() < WAIT_MAX, "{endpoint}: held up at batch {number}");
        }
        let warning = "trace collector rejected the spans";
        server.wait_for_log(warning, WAIT_MAX);
        let exports = hanging.exports().len();
        assert!(server.terminate().success(), "{}", server.log());
        // One may begin before the stop, and one with it. A stop that waited for the collector would try all that is left.
        let more = hanging.exports().len() - exports;
        assert!(more <= 2, "{endpoint}: {more} exports were waited for");
        let rows = database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count").get::<_, i64>(0);
        assert_eq!(rows, BATCHES as i64, "{endpoint}");
        let log = server.log();
        let told = log.matches(warning).count() as u64;
        assert!((1..=1 + begun.elapsed().as_secs() / 60).contains(&told), "once a minute: {log}");
        assert_eq!(log.matches("WARN").count() as u64, told + 1, "and once at the end: {log}");
        assert!(log.contains(&format!("lost={} of={}", 3 * BATCHES, 3 * BATCHES)), "{log}");
    }
}

#[test]
fn https_needs_an_authority_that_is_trusted_and_headers_come_from_the_standards_variable() {
    /// What the token is made of: also a part of it, as in a dump of bytes by line, must not be seen.
    const PART: &str = "Zx9Zx9";
    let token = PART.repeat(10);
    let (database, collector) = (shared().create_database(), Collector::start(Manner::Takes));
    let certificates = Certificates::signed("localhost");
    let port = certificates.serve(collector.address(), Greeting::Nothing);
    let start = |authority: &str| {
        builder(&database, &format!("https://localhost:{port}"))
            .env("SSL_CERT_FILE", certificates.path(authority).display())
            .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{token}"))
            .env("LOG_LEVEL", "trace")
            .start()
    };
    let mut trusting = start("ca.pem");
    assert_eq!(send(&trusting, "commit", &batch("trusted", 1), &[("traceparent", &sampled(TRACE))]).status, 200);
    collector.wait_for_spans(TRACE, 3, WAIT_MAX);
    assert_eq!(collector.exports()[0].headers["authorization"], format!("Bearer {token}"));
    assert!(trusting.terminate().success());
    trusting.wait_for_log("stopped", WAIT_MAX);
    assert!(!trusting.log().contains(PART), "{}", trusting.log());

    let doubting = start("other.pem");
    assert_eq!(send(&doubting, "commit", &batch("doubted", 1), &[("traceparent", &sampled(OTHER_TRACE))]).status, 200);
    doubting.wait_for_log("trace collector rejected the spans", WAIT_MAX);
    assert!(doubting.log().contains("invalid peer certificate"), "{}", doubting.log());
    assert!(collector.spans(Some(OTHER_TRACE)).is_empty());
}
