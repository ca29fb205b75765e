//! Promise: nobody bends HTTP. What no proper client sends is answered or closed within bounds, never taken for something
//! else, and the next client does not notice.

mod support;

use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use support::contract::{assert_problem, event, rows_of};
use support::flood::allow_connections;
use support::measure::{open_files, resident_bytes};
use support::postgres::TestDatabase;
use support::raw::Raw;
use support::server::{Builder, Ingestd, get, post};
use support::{WAIT_MAX, wait_until};

const JSON: &str = "Content-Type: application/json";
const CHUNKED: &str = "Transfer-Encoding: chunked";
const MIB: u64 = 1024 * 1024;
/// For settings: longer than anything that a test waits for.
const NEVER_SECONDS: u64 = 3600;

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

fn pid_of(server: &Ingestd) -> Pid {
    Pid::from_raw(server.pid().cast_signed()).expect("a process number")
}

fn batch(id: &str) -> String {
    json!({"batch_id": id, "events": [event(id)]}).to_string()
}

fn chunked(body: &str, pieces: usize) -> String {
    let size = body.len().div_ceil(pieces);
    let pieces = body.as_bytes().chunks(size).map(|piece| str::from_utf8(piece).expect("ASCII"));
    pieces.map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect::<String>() + "0\r\n\r\n"
}

fn path(query: &str) -> String {
    format!("/v1/ingest/batch?{query}")
}

/// The statuses of the answers in `text`.
fn statuses(text: &str) -> Vec<&str> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer.split(' ').next().unwrap_or_default()).collect()
}

/// Sends `request` on a connection of its own and nothing after it; the statuses that come back.
fn answers_to(request: &[u8]) -> String {
    let mut raw = Raw::connect(&service().server);
    // It may be refused before all of it is sent.
    let _ = raw.try_send(request);
    let _ = raw.try_finish_sending();
    raw.rest()
}

#[test]
fn a_length_and_chunks_together_smuggle_nothing() {
    // Whoever believes the length sees a second request inside of the first one's body, and the other way round.
    let inner = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for headers in [
        format!("Content-Length: {}\r\n{CHUNKED}", 5 + inner.len()),
        format!("{CHUNKED}\r\nContent-Length: 5"),
        format!("{CHUNKED}\r\nContent-Length: 0"),
        format!("Transfer-Encoding: identity, chunked\r\nContent-Length: {}", 5 + inner.len()),
    ] {
        let request =
            format!("POST {} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n{headers}\r\n\r\n0\r\n\r\n{inner}", path(""));
        assert_eq!(statuses(&answers_to(request.as_bytes())), ["400"], "{headers}");
    }
}

#[test]
fn transfer_encodings_other_than_chunked_at_the_end_are_refused() {
    for encoding in ["gzip", "chunked, gzip", "xchunked", "chunked\u{b}", "\tchunked x"] {
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\nTransfer-Encoding: {encoding}\r\n\r\n0\r\n\r\n",
            path("")
        );
        let answers = answers_to(request.as_bytes());
        assert!(matches!(statuses(&answers)[..], ["400" | "501"]), "{encoding:?}: {answers}");
    }
}

#[test]
fn lengths_that_are_no_single_number_are_refused() {
    for length in ["5\r\nContent-Length: 6", "5, 6", "+5", "-5", "0x5", "5 5", "5e0", "", "99999999999999999999999"] {
        let request =
            format!("POST {} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\nContent-Length: {length}\r\n\r\n[   ]", path(""));
        assert_eq!(statuses(&answers_to(request.as_bytes())), ["400"], "{length:?}");
    }
}

#[test]
fn chunks_of_every_good_shape_are_read() {
    let id = |shape: usize| format!("chunks-{shape}");
    let shapes: [fn(&str) -> String; 5] = [
        |body| chunked(body, 1),
        |body| chunked(body, body.len()),
        |body| format!("{:X};name=value;other=\"a b\"\r\n{body}\r\n0\r\n\r\n", body.len()),
        |body| format!("000000{:x}\r\n{body}\r\n0000\r\n\r\n", body.len()),
        |body| format!("{:x}\r\n{body}\r\n0\r\nX-Trailer: ignored\r\n\r\n", body.len()),
    ];
    for (shape, write) in shapes.iter().enumerate() {
        let mut raw = Raw::connect(&service().server);
        raw.post_head(&path("ack=commit"), &[JSON, CHUNKED]);
        raw.send(write(&batch(&id(shape))).as_bytes());
        let reply = raw.answer();
        assert_eq!((reply.status, &reply.json()["inserted"]), (200, &1.into()), "{shape}: {}", reply.text());
        raw.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(raw.answer().status, 200, "the connection goes on behind the last chunk");
    }
}

#[test]
fn chunks_of_bad_shapes_take_nothing() {
    let body = batch("bad-chunks");
    let good = format!("{:x}\r\n{body}\r\n", body.len());
    for (number, bad) in [
        format!("{:x}\r\n{body}X\r\n0\r\n\r\n", body.len()),
        format!("-{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        format!("{good}g\r\n\r\n0\r\n\r\n"),
        format!("{good}ffffffffffffffff1\r\n"),
        format!("{good}5\r\nab"),
        good.clone(),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!("POST {} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n{CHUNKED}\r\n\r\n{bad}", path(""));
        let answers = answers_to(request.as_bytes());
        assert!(matches!(statuses(&answers)[..], ["400"] | []), "{number}: {answers}");
    }
    assert_eq!(get(&service().server.url("/v1/batch/bad-chunks/status")).status, 404);
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let mut raw = Raw::connect(&service().server);
    let body = batch("asked");
    raw.post_head(&path("ack=commit"), &[JSON, "Expect: 100-continue", &format!("Content-Length: {}", body.len())]);
    assert_eq!(raw.head().status, 100);
    raw.send(body.as_bytes());
    assert_eq!(raw.answer().status, 200);
}

#[test]
fn requests_in_a_row_are_answered_in_their_order() {
    let mut raw = Raw::connect(&service().server);
    let body = batch("in-a-row");
    let post = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\nContent-Length: {}\r\n\r\n{body}",
        path("ack=commit"),
        body.len()
    );
    raw.send(
        format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n{post}GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!([(); 3].map(|()| raw.answer().status), [200, 200, 404]);
}

#[test]
fn a_client_that_has_closed_its_side_gets_its_answer() {
    let mut raw = Raw::connect(&service().server);
    let body = batch("half-closed");
    raw.post_head(&path("ack=commit"), &[JSON, &format!("Content-Length: {}", body.len())]);
    raw.send(body.as_bytes());
    raw.finish_sending();
    assert_eq!(raw.answer().status, 200);
    assert!(raw.is_closed());
}

#[test]
fn a_hundred_headers_are_fine_and_endless_ones_are_not() {
    let mut raw = Raw::connect(&service().server);
    let headers = (0..100).map(|number| format!("X-Header-{number}: value\r\n")).collect::<String>();
    raw.send(format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
    assert_eq!(raw.answer().status, 200);

    let more = headers.repeat(3);
    assert_eq!(
        statuses(&answers_to(format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").as_bytes())),
        ["431"]
    );
    let long = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(100_000));
    assert_eq!(statuses(&answers_to(long.as_bytes())), ["431"]);
    let mut endless = Raw::connect(&service().server);
    endless.send(b"GET /livez HTTP/1.1\r\n");
    let before = resident_bytes(&service().server);
    let deadline = Instant::now() + WAIT_MAX;
    while endless.try_send(b"X-Endless: yes\r\n").is_ok() {
        assert!(Instant::now() < deadline, "it is cut off");
    }
    assert!(resident_bytes(&service().server).saturating_sub(before) < 8 * MIB);
}

#[test]
fn how_large_a_head_may_be_is_a_setting() {
    let service = start(|builder| builder.env("MAX_HEADERS", 10).env("MAX_HEADER_KB", 8).env("MAX_URL_KB", 1));
    let ask = |url: &str, headers: &str| {
        let mut raw = Raw::connect(&service.server);
        raw.send(format!("GET {url} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
        raw.answer()
    };
    assert_eq!(ask("/livez", &"A: b\r\n".repeat(9)).status, 200);
    assert_eq!(ask("/livez", &"A: b\r\n".repeat(10)).status, 431);
    assert_eq!(ask("/livez", &format!("A: {}\r\n", "b".repeat(9000))).status, 431);
    assert_eq!(ask(&format!("/livez?{}", "x".repeat(1000)), "").status, 200);
    let long = ask(&format!("/livez?{}", "x".repeat(1100)), "");
    assert_eq!(long.status, 414);
    assert!(long.text().contains("MAX_URL_KB"), "{}", long.text());
}

#[test]
fn a_url_beyond_the_limit_is_answered_414() {
    let url = |bytes: usize| format!("GET /livez?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(bytes));
    assert_eq!(statuses(&answers_to(url(8000).as_bytes())), ["200"]);
    assert_eq!(statuses(&answers_to(url(9000).as_bytes())), ["414"]);
    assert!(matches!(statuses(&answers_to(url(200_000).as_bytes()))[..], ["414" | "431"]));
}

#[test]
fn what_is_not_http_is_refused_or_closed() {
    let hello = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], &[7; 100]].concat();
    let cases: [&[u8]; 10] = [
        b"\r\n\r\n\r\n\r\n",
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"G\xc3\x89T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        &hello,
    ];
    for case in cases {
        let answers = answers_to(case);
        let text = String::from_utf8_lossy(case);
        assert!(matches!(statuses(&answers)[..], [] | ["400" | "404" | "505"]), "{text:?}: {answers}");
    }
}

#[test]
fn what_is_not_http_is_answered_without_a_reset_however_much_follows_it() {
    let mut raw = Raw::connect(&service().server);
    raw.send(&[&b"\x1b[2J"[..], &vec![b'x'; 4_000_000]].concat());
    raw.finish_sending();
    let rest = raw.try_rest().expect("a reset could take the answer along");
    assert_eq!(statuses(&rest), ["400"], "{rest}");
}

#[test]
fn targets_in_every_form_name_what_they_name() {
    let target = |method: &str, target: &str| {
        let answers = answers_to(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        statuses(&answers).join(" ")
    };
    assert_eq!(target("GET", "http://127.0.0.1/livez"), "200");
    assert_eq!(target("GET", "http://127.0.0.1/nowhere"), "404");
    assert_eq!(target("GET", "http://other.example/livez"), "403", "without keys only this machine is answered");
    assert_eq!(target("OPTIONS", "*"), "404");
    assert_eq!(target("CONNECT", "other.example:443"), "404");
    assert_eq!(target("GET", "//livez"), "404");
    assert_eq!(target("GET", "/livez/../v1/health"), "404");
    assert_eq!(target("BREW", "/livez"), "405");
    assert_eq!(target("get", "/livez"), "405");

    let id = "in:every.form-1";
    let reply =
        post(&service().server.url(&path("ack=commit")), &[("Content-Type", "application/json")], batch(id).as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(target("GET", "/v1/batch/in%3Aevery%2eform%2D1/status"), "200");
    assert_eq!(target("GET", "/v1/batch/in%3Aevery%2eform%2D1%00/status"), "404");
}

#[test]
fn http_1_0_is_served_and_closed() {
    let mut raw = Raw::connect(&service().server);
    let body = batch("http-1-0");
    raw.send(
        format!("POST {} HTTP/1.0\r\n{JSON}\r\nContent-Length: {}\r\n\r\n{body}", path("ack=commit"), body.len())
            .as_bytes(),
    );
    let answer = raw.rest();
    assert!(answer.starts_with("HTTP/1.0 200 ") || answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_takes_its_batch_along() {
    let Service { server, database } = service();
    let body = batch("left");
    for bytes in [0, 1, body.len() / 2, body.len() - 1] {
        let mut raw = Raw::connect(server);
        raw.post_head(&path(""), &[JSON, &format!("Content-Length: {}", body.len())]);
        raw.send(&body.as_bytes()[..bytes]);
        drop(raw);
    }
    let reply = post(&server.url(&path("ack=commit")), &[("Content-Type", "application/json")], body.as_bytes());
    assert_eq!((reply.status, &reply.json()["duplicate"]), (200, &serde_json::Value::Null), "{}", reply.text());
    assert_eq!(rows_of(database, "left"), 1);
}

#[test]
fn slow_heads_and_idle_connections_are_closed_at_their_times() {
    // With the other time out of reach it shows that each is closed at its own.
    let hasty = start(|builder| builder.env("HEADER_TIMEOUT_SECONDS", 2).env("KEEP_ALIVE_SECONDS", NEVER_SECONDS));
    let patient = start(|builder| builder.env("HEADER_TIMEOUT_SECONDS", NEVER_SECONDS).env("KEEP_ALIVE_SECONDS", 4));
    let began = Instant::now();
    let mut idle = Raw::connect(&patient.server);
    idle.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(idle.answer().status, 200);
    let mut silent = Raw::connect(&hasty.server);
    let mut slow = Raw::connect(&hasty.server);
    slow.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ");
    let mut second = Raw::connect(&hasty.server);
    second.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(second.answer().status, 200);
    second.send(b"G");
    // Every byte of a head counts against the same time.
    wait_until("a head that trickles is cut off", WAIT_MAX, || {
        std::thread::sleep(Duration::from_millis(100));
        slow.try_send(b"x").is_err()
    });
    for raw in [&mut silent, &mut second] {
        assert!(raw.is_closed());
    }
    let heads = began.elapsed();
    assert!(heads >= Duration::from_millis(1900), "not before HEADER_TIMEOUT_SECONDS: {heads:?}");
    assert!(idle.is_closed());
    let kept = began.elapsed();
    assert!(kept >= Duration::from_millis(3900), "not before KEEP_ALIVE_SECONDS: {kept:?}");
}

#[test]
fn a_body_that_trickles_is_answered_408_and_a_large_one_that_comes_fast_enough_is_not() {
    const PACE: Duration = Duration::from_millis(100);
    let service = start(|builder| builder.env("BODY_MIN_KB_PER_SECOND", 64));
    let body = batch("trickle");
    let mut slow = Raw::connect(&service.server);
    slow.post_head(&path(""), &[JSON, &format!("Content-Length: {}", body.len())]);
    slow.send(&body.as_bytes()[..10]);
    // 12 s at 100 kB/s: beyond the grace, within the rate. A piece that is late does not delay those after it.
    let large = json!({"batch_id": "large", "events": [event("large")]}).to_string() + &" ".repeat(1_200_000);
    let mut steady = Raw::connect(&service.server);
    steady.post_head(&path(""), &[JSON, &format!("Content-Length: {}", large.len())]);
    let begun = Instant::now();
    for (piece, due) in large.as_bytes().chunks(10_000).zip((0..).map(|number| begun + number * PACE)) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        steady.send(piece);
    }
    assert_eq!(steady.answer().status, 202);
    let problem = slow.answer();
    assert_problem(&problem, 408, "body_timeout");
    assert_eq!(problem.header("connection"), "close");
}

#[test]
fn connections_beyond_the_limit_are_told_and_the_others_are_served() {
    let service = start(|builder| builder.env("MAX_CONNECTIONS", 50).env("MAX_CONNECTIONS_PER_ADDRESS", 10));
    let mut open = Vec::new();
    let (mut refused, problem) = loop {
        let mut raw = Raw::connect(&service.server);
        // Who is refused may be told before it has asked.
        let _ = raw.try_send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = raw.answer();
        if answer.status != 200 {
            break (raw, answer);
        }
        open.push(raw);
    };
    assert!((5..=10).contains(&open.len()), "ten, less what the start of the test left open: {}", open.len());
    let document = assert_problem(&problem, 503, "too_many_connections");
    assert!(document["detail"].as_str().is_some_and(|detail| detail.contains("MAX_CONNECTIONS_PER_ADDRESS")));
    assert!(!problem.header("retry-after").is_empty());
    assert_eq!((problem.header("x-content-type-options"), problem.header("cache-control")), ("nosniff", "no-store"));
    assert!(refused.is_closed());
    let mut last = open.pop().expect("some");
    last.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(last.answer().status, 200);
    drop(last);
    wait_until("there is room again", WAIT_MAX, || {
        support::server::try_get(&service.server.url("/livez")).is_some_and(|reply| reply.status == 200)
    });
}

#[test]
fn without_open_files_left_new_connections_are_closed_and_the_others_are_served() {
    let Service { server, database } =
        start(|builder| builder.env("WORKERS", 2).env("DB_POOL_MIN_SIZE", 2).env("DB_POOL_MAX_SIZE", 2));
    let allow_files = |files| {
        let limit = Rlimit { current: Some(files), maximum: Some(120) };
        prlimit(Some(pid_of(&server)), Resource::Nofile, limit).expect("it is our child");
    };
    allow_files(120);
    let mut first = Raw::connect(&server);
    first.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(first.answer().status, 200);
    let began = Instant::now();
    let mut crowd: Vec<Raw> = (0..200).map(|_| Raw::connect(&server)).collect();
    server.wait_for_log("raise the open-file limit", WAIT_MAX);
    assert!(crowd.iter_mut().rev().take(20).all(Raw::is_closed), "those that came too late are not left waiting");
    first.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(first.answer().status, 200);
    let told = server.log().matches("raise the open-file limit").count() as u64;
    let may = 2 * (began.elapsed().as_secs() + 1);
    assert!(told <= may, "once a second and worker, not once a connection: {told}, not {may}");
    // PostgreSQL goes and comes meanwhile: whoever tries to connect finds no file left either, also not those of the
    // connections that went.
    allow_files(3);
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.connect().execute(terminate, &[]).expect("our own sessions");
    let body = batch("meanwhile");
    first.post_head(&path(""), &[JSON, &format!("Content-Length: {}", body.len())]);
    first.send(body.as_bytes());
    assert_eq!(first.answer().status, 202);
    wait_until("flushers find no connection", WAIT_MAX, || {
        first.send(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        first.answer().json()["status"] == "degraded"
    });
    drop(crowd);
    allow_files(120);
    wait_until("there is room again", WAIT_MAX, || {
        support::server::try_get(&server.url("/livez")).is_some_and(|reply| reply.status == 200)
    });
    let headers = [("Content-Type", "application/json")];
    let reply = post(&server.url(&path("ack=commit")), &headers, batch("room-again").as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn ten_thousand_idle_connections_leave_the_others_alone() {
    const IDLE: usize = 10_000;
    allow_connections();
    let service = start(|builder| builder);
    let before = resident_bytes(&service.server);
    let idle: Vec<TcpStream> =
        (0..IDLE).map(|_| TcpStream::connect(service.server.address()).expect("a listener")).collect();
    // The kernel connects; only what the server has accepted costs it anything.
    wait_until("all of them are accepted", WAIT_MAX, || open_files(&service.server) > IDLE as u64);
    for number in 0..20 {
        let id = format!("beside-{number}");
        let headers = [("Content-Type", "application/json")];
        let reply = post(&service.server.url(&path("ack=commit")), &headers, batch(&id).as_bytes());
        assert_eq!((reply.status, &reply.json()["inserted"]), (200, &1.into()), "{}", reply.text());
    }
    let a_connection = resident_bytes(&service.server).saturating_sub(before) / idle.len() as u64;
    assert!(a_connection < 12 * 1024, "{a_connection} bytes a connection");
}

#[test]
fn a_web_page_of_another_site_sends_no_batches() {
    // What a browser sends for fetch(url, {method: "POST", mode: "no-cors", body: new Blob([text])}).
    let send = |id: &str, headers: &str| {
        let body = batch(id);
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}",
            path("ack=commit"),
            body.len()
        );
        let answers = answers_to(format!("{head}\r\n\r\n{body}").as_bytes());
        (statuses(&answers).join(" "), answers.contains("\"code\":\"cross_site\""))
    };
    let refused = ("403".to_owned(), true);
    assert_eq!(send("page-1", "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n"), refused);
    assert_eq!(send("page-2", "Origin: https://evil.example\r\n"), refused);
    assert_eq!(send("page-3", "Sec-Fetch-Site: same-site\r\nOrigin: http://localhost:3000\r\n"), refused);
    for id in ["page-1", "page-2", "page-3"] {
        assert_eq!(get(&service().server.url(&format!("/v1/batch/{id}/status"))).status, 404, "nothing was accepted");
    }
    assert_eq!(send("program", "").0, "200", "programs may leave out Content-Type");
}

#[test]
fn without_keys_only_hosts_of_this_machine_are_answered() {
    let ask = |hosts: &str| {
        let answers = answers_to(format!("GET /v1/health HTTP/1.1\r\n{hosts}\r\n").as_bytes());
        statuses(&answers).join(" ")
    };
    for host in ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]"] {
        assert_eq!(ask(&format!("Host: {host}\r\n")), "200", "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:8000"] {
        assert_eq!(ask(&format!("Host: {host}\r\n")), "403", "{host}");
    }
    for hosts in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: a b\r\n"] {
        assert_eq!(ask(hosts), "400", "{hosts:?}");
    }
    assert!(answers_to(b"GET /livez HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"), "it has no Host");
}
