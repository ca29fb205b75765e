//! Promise: HTTP/2 is served by prior knowledge like HTTP/1, and what a client can do wrong or on purpose with its frames
//! ends its own requests or connection within bounds.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::WAIT_MAX;
use support::contract::{event, rows_of};
use support::flood::allow_connections;
use support::measure::resident_bytes;
use support::postgres::TestDatabase;
use support::server::{Builder, Ingestd, get, post};
use ureq::http::{Method, Request};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MIB: u64 = 1024 * 1024;
/// For settings: longer than anything that a test waits for.
const NEVER_SECONDS: u64 = 3600;

// Types, flags, settings and errors of RFC 9113, sections 6 and 7.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

struct Service {
    server: Ingestd,
    database: TestDatabase,
}

fn start(configure: fn(Builder) -> Builder) -> Service {
    let database = support::postgres::shared().create_database();
    let server = configure(Ingestd::builder().database(&database)).start();
    Service { server, database }
}

/// The server of all tests that need no settings of their own.
fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| start(|builder| builder.env("MAX_BODY_MB", 1)))
}

fn batch(id: &str) -> String {
    json!({"batch_id": id, "events": [event(id)]}).to_string()
}

fn serves_others(server: &Ingestd) {
    assert_eq!(get(&server.url("/livez")).status, 200);
}

// --- A proper client -----------------------------------------------------------------------------

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// Runs `exchange` with a connection to `server`, for a bounded time.
fn with_client<T>(server: &Ingestd, exchange: impl AsyncFnOnce(SendRequest<Bytes>) -> T) -> T {
    let address: SocketAddr = server.address().parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let exchanged = async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("the server listens");
        let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        exchange(client).await
    };
    runtime.block_on(async { tokio::time::timeout(WAIT_MAX, exchanged).await.expect("it answers in time") })
}

async fn begin(
    client: &SendRequest<Bytes>,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    has_body: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let mut request = Request::builder().method(method).uri(format!("http://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.clone().ready().await?.send_request(request.body(()).expect("a request"), !has_body)
}

async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut incoming) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        body.extend_from_slice(&data);
        incoming.flow_control().release_capacity(data.len())?;
    }
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}

async fn get_path(client: &SendRequest<Bytes>, path: &str) -> Answer {
    let (response, _) = begin(client, Method::GET, path, &[], false).await.expect("a stream");
    answer(response).await.expect("an answer")
}

async fn post_batch(client: &SendRequest<Bytes>, query: &str, body: String) -> Answer {
    let path = format!("/v1/ingest/batch?{query}");
    let headers = [("content-type", "application/json")];
    let (response, mut stream) = begin(client, Method::POST, &path, &headers, true).await.expect("a stream");
    stream.send_data(Bytes::from(body), true).expect("sent");
    answer(response).await.expect("an answer")
}

// --- Frames by hand ------------------------------------------------------------------------------

/// A frame that came.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The 32-bit number at `offset`: the error of a RST_STREAM (0) or GOAWAY (4).
    fn number(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.payload[offset..offset + 4].try_into().expect("four bytes"))
    }

    /// The value of a SETTINGS frame's `setting`.
    fn setting(&self, setting: u16) -> Option<u32> {
        let entry = self.payload.chunks(6).find(|entry| entry[..2] == setting.to_be_bytes())?;
        Some(u32::from_be_bytes(entry[2..].try_into().expect("four bytes")))
    }
}

/// The bytes of a frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of `method` (its place in HPACK's static table) and `path`; RFC 7541, appendix A.
fn block(method: u8, path: &str) -> Vec<u8> {
    let literal = |name: u8, value: &str| {
        assert!(value.len() < 127, "its length has one byte");
        [&[name, value.len() as u8], value.as_bytes()].concat()
    };
    [&[0x80 | method, 0x86][..], &literal(4, path), &literal(1, "localhost")].concat()
}

fn get_block() -> Vec<u8> {
    block(2, "/livez")
}

fn post_block() -> Vec<u8> {
    block(3, "/v1/ingest/batch")
}

/// One connection, written and read frame by frame.
struct Frames(TcpStream);

impl Frames {
    /// Connects and sends nothing.
    fn silent(server: &Ingestd) -> Self {
        let stream = TcpStream::connect(server.address()).expect("the server listens");
        stream.set_read_timeout(Some(WAIT_MAX)).expect("a bound on reading");
        stream.set_write_timeout(Some(WAIT_MAX)).expect("a bound on writing");
        Self(stream)
    }

    /// Connects and says that it speaks HTTP/2.
    fn connect(server: &Ingestd) -> Self {
        let mut frames = Self::silent(server);
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        frames
    }

    fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server reads");
    }

    fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Sends `bytes` up to `times` times, until the server has ended the connection; how many times that was. A server
    /// that neither reads nor ends it is a failure.
    fn send_until_cut(&mut self, bytes: &[u8], times: usize) -> usize {
        for sent in 0..times {
            if let Err(error) = self.try_send(bytes) {
                let kind = error.kind();
                assert!(!matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "nobody ends it: {error}");
                return sent;
            }
        }
        times
    }

    /// The next frame; `None` at the end of the connection.
    fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.read(&mut payload)?;
        let stream = u32::from_be_bytes(head[5..].try_into().expect("four bytes"));
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    fn read(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.0.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) => {
                assert!(error.kind() != ErrorKind::WouldBlock, "neither a frame nor an end within {WAIT_MAX:?}");
                None
            }
        }
    }

    /// The next frame of `kind`; others before it are dropped, PINGs answered.
    fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let next = self.next()?;
            if next.kind == kind {
                return Some(next);
            }
            if next.kind == PING && next.flags & ACK == 0 {
                let _ = self.try_send(&frame(PING, ACK, 0, &next.payload));
            }
        }
    }

    /// Waits for the end of the connection; the error of the last GOAWAY before it.
    fn end(&mut self) -> Option<u32> {
        let mut error = None;
        while let Some(goaway) = self.next_of(GOAWAY) {
            error = Some(goaway.number(4));
        }
        error
    }

    /// Sends `GET /livez` as `stream` and waits for its answer.
    fn ask(&mut self, stream: u32) {
        self.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &get_block()));
        let answered = self.next_of(HEADERS).expect("an answer");
        // 0x88: the status 200 of the static table.
        assert_eq!((answered.stream, answered.payload[0]), (stream, 0x88));
    }
}

// --- What is served ------------------------------------------------------------------------------

#[test]
fn a_batch_by_prior_knowledge_is_taken_and_its_status_told() {
    with_client(&service().server, async |client| {
        let reply = post_batch(&client, "", batch("prior-knowledge")).await;
        assert_eq!(reply.status, 202, "{reply:?}");
        assert_eq!(reply.json()["accepted"], 1);
        let location = reply.headers["location"].to_str().expect("ASCII").to_owned();
        assert_eq!(get_path(&client, &location).await.status, 200);
        let reply = post_batch(&client, "ack=commit", batch("prior-knowledge")).await;
        assert_eq!((reply.status, &reply.json()["duplicate"]), (200, &true.into()), "{reply:?}");
    });
    assert_eq!(rows_of(&service().database, "prior-knowledge"), 1);
}

#[test]
fn refusals_are_those_of_http_1_without_headers_of_its_connection() {
    let long = "x".repeat(9000);
    with_client(&service().server, async |client| {
        assert_eq!(get_path(&client, "/nowhere").await.status, 404);
        assert_eq!(get_path(&client, &format!("/livez?{}", &long[..8000])).await.status, 200);
        let reply = get_path(&client, &format!("/livez?{long}")).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (414, Some("url_too_long")));
        assert!(!reply.headers.contains_key("connection"), "{reply:?}");
        let (response, _) = begin(&client, Method::PUT, "/v1/ingest/batch", &[], false).await.expect("a stream");
        let reply = answer(response).await.expect("an answer");
        assert_eq!((reply.status, reply.headers["allow"].to_str().ok()), (405, Some("POST")));
        let reply = post_batch(&client, "ack=perhaps", batch("refused")).await;
        assert_eq!(reply.status, 422, "{reply:?}");
        assert!(!reply.headers.contains_key("connection"), "{reply:?}");
        assert_eq!(get_path(&client, "/livez").await.status, 200, "the connection goes on");
    });
}

#[test]
fn many_requests_of_one_connection_are_answered_together() {
    const BATCHES: usize = 400;
    with_client(&service().server, async |client| {
        // With the first answer the client knows how many streams it may open: it keeps the others back.
        assert_eq!(get_path(&client, "/livez").await.status, 200);
        let requests = (0..BATCHES).map(|number| {
            let client = client.clone();
            tokio::spawn(async move { post_batch(&client, "ack=commit", batch(&format!("together-{number}"))).await })
        });
        for request in requests.collect::<Vec<_>>() {
            let reply = request.await.expect("no panic");
            assert_eq!((reply.status, &reply.json()["inserted"]), (200, &1.into()), "{reply:?}");
        }
    });
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_others_go_on() {
    let Service { server, database } = service();
    let mut frames = Frames::connect(server);
    let limit =
        frames.next_of(SETTINGS).and_then(|settings| settings.setting(MAX_CONCURRENT_STREAMS)).expect("a limit");
    assert_eq!(limit, 100);
    for number in 0..=limit {
        frames.send(&frame(HEADERS, END_HEADERS, 2 * number + 1, &post_block()));
    }
    let refused = frames.next_of(RST_STREAM).expect("a refusal");
    assert_eq!((refused.stream, refused.number(0)), (2 * limit + 1, REFUSED_STREAM));
    frames.send(&frame(DATA, END_STREAM, 1, batch("beside-the-limit").as_bytes()));
    let answered = frames.next_of(HEADERS).expect("an answer");
    assert_eq!(answered.stream, 1);
    let reply = post(
        &server.url("/v1/ingest/batch?ack=commit"),
        &[("Content-Type", "application/json")],
        batch("beside-the-limit").as_bytes(),
    );
    assert_eq!((reply.status, &reply.json()["duplicate"]), (200, &true.into()));
    assert_eq!(rows_of(database, "beside-the-limit"), 1);
}

#[test]
fn a_body_beyond_the_limit_is_answered_413_and_not_read_to_its_end() {
    const LENGTH: usize = 64 * MIB as usize;
    with_client(&service().server, async |client| {
        let declared = [("content-length", "67108864")];
        for headers in [&declared[..], &[]] {
            let (response, mut stream) =
                begin(&client, Method::POST, "/v1/ingest/batch", headers, true).await.expect("a stream");
            let sent = tokio::spawn(async move {
                let mut sent = 0;
                while sent < LENGTH {
                    stream.reserve_capacity(64 * 1024);
                    let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
                    if stream.send_data(Bytes::from(vec![b' '; capacity]), false).is_err() {
                        break;
                    }
                    sent += capacity;
                }
                sent
            });
            let reply = answer(response).await.expect("an answer");
            assert_eq!((reply.status, reply.json()["code"].as_str()), (413, Some("body_too_large")));
            let sent = sent.await.expect("no panic");
            assert!(sent < 3 * MIB as usize, "it is told to stop: {sent} bytes");
        }
        assert_eq!(get_path(&client, "/livez").await.status, 200, "the connection goes on");
    });
}

#[test]
fn a_request_that_is_taken_back_in_its_body_takes_its_batch_along() {
    let Service { server, database } = service();
    let body = batch("taken-back");
    with_client(server, async |client| {
        for bytes in [0, 1, body.len() / 2, body.len() - 1] {
            let (response, mut stream) =
                begin(&client, Method::POST, "/v1/ingest/batch", &[], true).await.expect("a stream");
            if bytes > 0 {
                stream.send_data(Bytes::copy_from_slice(&body.as_bytes()[..bytes]), false).expect("sent");
            }
            // The next one's answer tells that this has arrived.
            assert_eq!(get_path(&client, "/livez").await.status, 200);
            stream.send_reset(Reason::CANCEL);
            drop(response);
        }
        let reply = post_batch(&client, "ack=commit", body.clone()).await;
        assert_eq!((reply.status, &reply.json()["duplicate"]), (200, &Value::Null), "{reply:?}");
    });
    assert_eq!(rows_of(database, "taken-back"), 1);
}

#[test]
fn a_request_that_is_taken_back_after_its_body_is_taken_whole_or_not_at_all() {
    let Service { server, database } = service();
    let mut frames = Frames::connect(server);
    for number in 0..200 {
        let stream = 2 * number + 1;
        let headers = frame(HEADERS, END_HEADERS, stream, &post_block());
        let body = frame(DATA, END_STREAM, stream, batch(&format!("too-late-{number}")).as_bytes());
        frames.send(&[headers, body].concat());
        // Some are reset before they are handled and some after: both at once, and with a pause.
        if number % 2 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
        frames.send(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    for number in 0..200 {
        let id = format!("too-late-{number}");
        let reply = post(
            &server.url("/v1/ingest/batch?ack=commit"),
            &[("Content-Type", "application/json")],
            batch(&id).as_bytes(),
        );
        assert_eq!(reply.status, 200, "no id is stuck: {}", reply.text());
        assert_eq!(rows_of(database, &id), 1);
    }
}

// --- What is bounded -----------------------------------------------------------------------------

#[test]
fn requests_taken_back_in_a_flood_end_the_connection() {
    let server = &service().server;
    serves_others(server);
    let before = resident_bytes(server);
    for _ in 0..20 {
        let mut frames = Frames::connect(server);
        let mut flood = Vec::new();
        for number in 0..5000 {
            flood.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &post_block()));
            flood.extend(frame(RST_STREAM, 0, 2 * number + 1, &CANCEL.to_be_bytes()));
        }
        // It may be cut off before all is sent.
        let _ = frames.try_send(&flood);
        assert_eq!(frames.end(), Some(ENHANCE_YOUR_CALM));
        serves_others(server);
    }
    let grown = resident_bytes(server).saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes");
}

#[test]
fn a_flood_of_questions_whose_answers_are_not_read_ends_the_connection() {
    let Service { server, .. } = start(|builder| builder.env("WRITE_TIMEOUT_SECONDS", 4));
    let before = resident_bytes(&server);
    let floods = [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])].map(|question| {
        let mut frames = Frames::connect(&server);
        frames.ask(1);
        let flood = question.repeat(10_000);
        thread::spawn(move || {
            let began = Instant::now();
            while frames.send_until_cut(&flood, 1) == 1 {
                assert!(began.elapsed() < WAIT_MAX, "nobody stops it");
            }
        })
    });
    // All the time until both are ended.
    let mut looked = 0;
    while !floods.iter().all(thread::JoinHandle::is_finished) {
        serves_others(&server);
        let grown = resident_bytes(&server).saturating_sub(before);
        assert!(grown < 8 * MIB, "{grown} bytes");
        looked += 1;
        thread::sleep(Duration::from_millis(20));
    }
    assert!(looked > 0, "others were served meanwhile");
    for flood in floods {
        flood.join().expect("it is stopped");
    }
    serves_others(&server);
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    // The time for a head is not what ends it.
    let Service { server, .. } = start(|builder| builder.env("HEADER_TIMEOUT_SECONDS", NEVER_SECONDS));
    serves_others(&server);
    let before = resident_bytes(&server);
    // Many large ones, and many that hold nothing.
    for (bytes, count) in [(16 * 1024, 4000), (0, 100_000)] {
        let mut frames = Frames::connect(&server);
        frames.send(&frame(HEADERS, 0, 1, &get_block()));
        let more = frame(CONTINUATION, 0, 1, &vec![0; bytes]);
        let sent = frames.send_until_cut(&more, count);
        let error = frames.end();
        // It is cut off before all was sent, or told why: what of that arrives depends on what is under way.
        assert!(
            sent < count || error == Some(ENHANCE_YOUR_CALM),
            "{sent} of {count} with {bytes} bytes each, then {error:?}"
        );
        assert!(error.is_none_or(|error| error == ENHANCE_YOUR_CALM), "not a friendly end: {error:?}");
        serves_others(&server);
    }
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < 8 * MIB, "{grown} bytes");
}

#[test]
fn header_lists_beyond_the_limit_are_answered_431() {
    let value = "x".repeat(1000);
    let names: Vec<String> = (0..200).map(|number| format!("x-header-{number}")).collect();
    let long: Vec<_> = names[..40].iter().map(|name| (name.as_str(), value.as_str())).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "value")).collect();
    with_client(&service().server, async |client| {
        for headers in [&long[..], &many] {
            let (response, _) = begin(&client, Method::GET, "/livez", headers, false).await.expect("a stream");
            assert_eq!(answer(response).await.expect("an answer").status, 431);
        }
        let (response, _) = begin(&client, Method::GET, "/livez", &many[..100], false).await.expect("a stream");
        assert_eq!(answer(response).await.expect("an answer").status, 200);
    });
}

#[test]
fn those_who_are_slow_are_closed_at_their_times_whatever_frames_they_send() {
    // With the other time out of reach it shows that each is closed at its own.
    let hasty = start(|builder| builder.env("HEADER_TIMEOUT_SECONDS", 2).env("KEEP_ALIVE_SECONDS", NEVER_SECONDS));
    let patient = start(|builder| builder.env("HEADER_TIMEOUT_SECONDS", NEVER_SECONDS).env("KEEP_ALIVE_SECONDS", 4));
    let ping = frame(PING, 0, 0, &[1; 8]);
    // Sends `more` ten times a second until the connection has ended; when that was.
    let close_time = |mut frames: Frames, more: &[u8]| {
        let began = Instant::now();
        let mut writer = Frames(frames.0.try_clone().expect("a second handle"));
        thread::scope(|scope| {
            let ended = scope.spawn(move || (frames.end(), began.elapsed()));
            while !ended.is_finished() {
                assert!(began.elapsed() < WAIT_MAX, "nobody closes it");
                let _ = writer.try_send(more);
                thread::sleep(Duration::from_millis(100));
            }
            ended.join().expect("no panic")
        })
    };
    thread::scope(|scope| {
        let server = &hasty.server;
        let heads = [
            ("half a preface", Frames::silent(server), &PREFACE[..10], &b""[..]),
            ("a preface alone", Frames::silent(server), PREFACE, b""),
            ("no request", Frames::connect(server), b"", &ping),
            ("half a header block", Frames::connect(server), &frame(HEADERS, 0, 1, &get_block()), b""),
        ];
        let heads = heads.map(|(name, mut frames, first, more)| {
            frames.send(first);
            let more = more.to_vec();
            (name, scope.spawn(move || close_time(frames, &more)))
        });
        let server = &patient.server;
        let mut idle = Frames::connect(server);
        idle.ask(1);
        // Whose answer cannot be sent, because the client opens no window for it.
        let mut shut = Frames::silent(server);
        let no_window = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &[0; 4]].concat();
        shut.send(&[PREFACE, &frame(SETTINGS, 0, 0, &no_window)].concat());
        shut.ask(1);
        let idles = [("pings", idle), ("no window", shut)]
            .map(|(name, frames)| (name, scope.spawn(|| close_time(frames, &ping))));
        for (name, head) in heads {
            let (_, ended) = head.join().expect("no panic");
            assert!(ended >= Duration::from_millis(1500), "{name}: {ended:?}");
        }
        for (name, idle) in idles {
            let (error, ended) = idle.join().expect("no panic");
            assert!(ended >= Duration::from_millis(3500), "{name}: {ended:?}");
            assert_eq!(error, Some(0), "{name}: told to go before");
        }
    });
}

#[test]
fn a_body_that_trickles_is_answered_408_and_the_connection_goes_on() {
    let server = &service().server;
    with_client(server, async |client| {
        let (response, mut stream) =
            begin(&client, Method::POST, "/v1/ingest/batch", &[], true).await.expect("a stream");
        stream.send_data(Bytes::from_static(b"{"), false).expect("sent");
        let reply = answer(response).await.expect("an answer");
        assert_eq!((reply.status, reply.json()["code"].as_str()), (408, Some("body_timeout")));
        assert_eq!(get_path(&client, "/livez").await.status, 200);
    });
}

#[test]
fn a_thousand_idle_connections_hold_little() {
    const IDLE: usize = 1000;
    allow_connections();
    let Service { server, .. } = start(|builder| builder);
    serves_others(&server);
    let before = resident_bytes(&server);
    let idle: Vec<_> = (0..IDLE)
        .map(|_| {
            let mut frames = Frames::connect(&server);
            frames.ask(1);
            frames
        })
        .collect();
    let a_connection = resident_bytes(&server).saturating_sub(before) / idle.len() as u64;
    eprintln!("{a_connection} bytes a connection");
    assert!(a_connection < 48 * 1024, "{a_connection} bytes a connection");
    serves_others(&server);
}

#[test]
fn a_draining_server_says_goodbye_and_answers_what_is_under_way() {
    let Service { mut server, database } = start(|builder| builder);
    let body = batch("under-way");
    let mut idle = Frames::connect(&server);
    idle.ask(1);
    with_client(&server, async |client| {
        let (response, mut stream) =
            begin(&client, Method::POST, "/v1/ingest/batch?ack=commit", &[], true).await.expect("a stream");
        stream.send_data(Bytes::copy_from_slice(&body.as_bytes()[..10]), false).expect("sent");
        assert_eq!(get_path(&client, "/livez").await.status, 200);
        server.signal(Signal::TERM);
        let refused = async {
            loop {
                match begin(&client, Method::GET, "/livez", &[], false).await {
                    Ok((response, _)) => drop(answer(response).await),
                    Err(error) => return error,
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let goodbye = refused.await;
        assert!(goodbye.is_go_away() && goodbye.reason() == Some(Reason::NO_ERROR), "{goodbye:?}");
        stream.send_data(Bytes::copy_from_slice(&body.as_bytes()[10..]), true).expect("sent");
        let reply = answer(response).await.expect("an answer");
        assert_eq!((reply.status, &reply.json()["inserted"]), (200, &1.into()), "{reply:?}");
    });
    assert_eq!(idle.end(), Some(0));
    drop(idle);
    assert!(server.wait_for_exit(WAIT_MAX).success());
    assert!(!server.log().contains("did not finish before the shutdown deadline"), "{}", server.log());
    assert_eq!(rows_of(&database, "under-way"), 1);
}
