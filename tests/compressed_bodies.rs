//! Promise: a compressed body is the batch that it holds, whichever coding it came in; and what it holds is bounded
//! like a plain one, whatever it claims.

mod support;

use std::io::{self, Write};
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use support::contract::{assert_problem, batch, event, ingest_url, rows_of, send, wait_until_completed};
use support::measure::{cpu_seconds, resident_bytes, resident_bytes_peak};
use support::postgres::TestDatabase;
use support::raw::Raw;
use support::server::{Ingestd, Reply, post};

const PATH: &str = "/v1/ingest/batch";
const CODINGS: [&str; 2] = ["gzip", "zstd"];
const MIB: usize = 1024 * 1024;

struct Service {
    server: Ingestd,
    database: TestDatabase,
}

/// The server of the tests that need nothing special, with a limit that is soon passed.
fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let database = support::postgres::shared().create_database();
        let server = Ingestd::builder().database(&database).env("MAX_BODY_MB", 1).start();
        Service { server, database }
    })
}

/// What `write` writes, compressed.
fn compressed(coding: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Vec<u8> {
    let written = match coding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            write(&mut encoder).and_then(|()| encoder.finish())
        }
        "zstd" => zstd::Encoder::new(Vec::new(), 1).and_then(|mut encoder| {
            write(&mut encoder)?;
            encoder.finish()
        }),
        _ => panic!("no coding: {coding}"),
    };
    written.expect("memory takes everything")
}

fn compress(coding: &str, bytes: &[u8]) -> Vec<u8> {
    compressed(coding, |encoder| encoder.write_all(bytes))
}

/// Sends `body`, which is in `coding` already.
fn send_coded(server: &Ingestd, query: &str, coding: &str, body: &[u8]) -> Reply {
    post(&ingest_url(server, query), &[("Content-Type", "application/json"), ("Content-Encoding", coding)], body)
}

#[test]
fn both_codings_land_digit_for_digit() {
    let Service { server, database } = service();
    let payload =
        r#"{"amount": 0.10000000000000000001, "big": 1E+399, "text": "žluťoučký \u0001 \ud83d\ude00", "z": -0.0}"#;
    for coding in CODINGS {
        let body = format!(
            r#"{{"batch_id": "digits-{coding}", "events": [{{"event_id": "digits-{coding}", "service_name": "s",
                "event_type": "t", "payload": {payload}}}]}}"#
        );
        let reply = send_coded(server, "ack=commit", coding, &compress(coding, body.as_bytes()));
        assert_eq!((reply.status, &reply.json()["inserted"]), (200, &json!(1)), "{}", reply.text());
        let query = "SELECT payload::text, $2::text::jsonb::text FROM events WHERE event_id = $1";
        let row = database.connect().query_one(query, &[&format!("digits-{coding}"), &payload]).expect("the row");
        assert_eq!(row.get::<_, String>(0), row.get::<_, String>(1));
    }
}

#[test]
fn a_retry_in_another_coding_is_the_same_batch_and_another_body_is_not() {
    let Service { server, database } = service();
    for first in ["identity", "gzip", "zstd"] {
        let id = format!("retried-{first}");
        let body = batch(&id, 3).to_string();
        let coded = |coding: &str, text: &str| match coding {
            "identity" => send(server, "", text.as_bytes()),
            _ => send_coded(server, "", coding, &compress(coding, text.as_bytes())),
        };
        assert_eq!(coded(first, &body).status, 202);
        wait_until_completed(server, &id);
        for again in ["identity", "gzip", "zstd"] {
            let reply = coded(again, &body);
            assert_eq!((reply.status, &reply.json()["duplicate"]), (200, &json!(true)), "{first}, then {again}");
            assert_problem(&coded(again, &batch(&id, 2).to_string()), 409, "batch_id_conflict");
        }
        assert_eq!(rows_of(database, &id), 3);
    }
}

#[test]
fn members_in_a_row_are_one_body_also_when_it_comes_in_pieces() {
    let server = &service().server;
    for coding in CODINGS {
        let text = batch(&format!("pieces-{coding}"), 20).to_string();
        let (one, two) = text.as_bytes().split_at(text.len() / 2);
        let body = [compress(coding, one), compress(coding, two)].concat();
        let mut raw = Raw::connect(server);
        raw.post_head(
            PATH,
            &["Content-Type: application/json", &format!("content-encoding: {coding}"), "Transfer-Encoding: chunked"],
        );
        for piece in body.chunks(100) {
            raw.send(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
        raw.send(b"0\r\n\r\n");
        let reply = raw.answer();
        assert_eq!((reply.status, &reply.json()["accepted"]), (202, &json!(20)), "{}", reply.text());
    }
}

#[test]
fn a_body_may_become_as_long_as_a_plain_one_and_not_a_byte_longer() {
    let server = &service().server;
    for coding in CODINGS {
        let mut body = json!([event(&format!("filled-{coding}"))]).to_string().into_bytes();
        body.resize(MIB, b' ');
        let reply = send_coded(server, "", coding, &compress(coding, &body));
        assert_eq!(reply.status, 202, "{}", reply.text());
        body.push(b' ');
        let problem = assert_problem(&send_coded(server, "", coding, &compress(coding, &body)), 413, "body_too_large");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("MAX_BODY_MB")), "{problem}");
        assert_problem(&send_coded(server, "", coding, &vec![0; MIB + 1]), 413, "body_too_large");
    }
}

#[test]
fn a_gigabyte_in_a_megabyte_is_refused_for_little_memory_and_time() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let zeros = vec![0; MIB];
    for coding in CODINGS {
        let bomb = compressed(coding, |encoder| (0..1024).try_for_each(|_| encoder.write_all(&zeros)));
        assert!(bomb.len() < 2 * MIB, "the compressed bytes keep to the limit: {}", bomb.len());
        let (memory, cpu) = (resident_bytes(&server), cpu_seconds(server.pid()));
        for _ in 0..4 {
            assert_problem(&send_coded(&server, "", coding, &bomb), 413, "body_too_large");
        }
        let grown = resident_bytes_peak(&server).saturating_sub(memory);
        assert!(grown < 64 * MIB as u64, "{coding}: memory grew by {grown} bytes");
        // To decompress all four gigabytes takes several seconds.
        let spent = cpu_seconds(server.pid()) - cpu;
        assert!(spent < 1.0, "{coding}: {spent} s of CPU");
        println!("{coding}: {} bytes sent, memory grew by {grown}, {spent} s of CPU", bomb.len());
    }
    assert_eq!(send(&server, "", json!([event("after")]).to_string().as_bytes()).status, 202);
}

#[test]
fn what_cannot_be_decompressed_is_answered_400_and_the_next_body_is_taken() {
    let server = &service().server;
    let text = json!([event("damaged")]).to_string();
    for (coding, other) in [("gzip", "zstd"), ("zstd", "gzip")] {
        let whole = compress(coding, text.as_bytes());
        let cases = [
            ("cut", whole[..whole.len() - 1].to_vec()),
            ("cut in its header", whole[..3].to_vec()),
            ("damaged", [&whole[..4], &[0xff; 8], &whole[12..]].concat()),
            ("followed by garbage", [&whole[..], b"garbage"].concat()),
            ("followed by a zero", [&whole[..], b"\0"].concat()),
            ("not compressed", text.clone().into_bytes()),
            ("in the other coding", compress(other, text.as_bytes())),
        ];
        for (what, body) in cases {
            let reply = send_coded(server, "", coding, &body);
            assert_eq!(reply.status, 400, "{coding} {what}: {}", reply.text());
            let problem = assert_problem(&reply, 400, "encoding_invalid");
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(coding)), "{what}: {problem}");
            let next = send_coded(server, "", coding, &whole);
            assert_eq!(next.status, 202, "after {coding} {what}: {}", next.text());
        }
        assert_problem(&send_coded(server, "", coding, b""), 400, "not_json");
        assert_problem(&send_coded(server, "", coding, &compress(coding, b"")), 400, "not_json");
        let problem = assert_problem(&send_coded(server, "", coding, &compress(coding, b"[01]")), 400, "not_json");
        assert_eq!(problem["byte_offset"], 2, "counted in what is decompressed");
    }
}

#[test]
fn a_zstd_window_over_8_mib_is_refused() {
    let server = &service().server;
    let text = json!([event("window")]).to_string();
    let with_window = |window_log: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.window_log(window_log).expect("a window");
        encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).expect("memory takes everything")
    };
    assert_eq!(send_coded(server, "", "zstd", &with_window(23)).status, 202);
    let problem = assert_problem(&send_coded(server, "", "zstd", &with_window(24)), 400, "encoding_invalid");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("8 MiB")), "{problem}");
}

#[test]
fn codings_have_their_names_in_any_case() {
    let server = &service().server;
    let text = json!([event("named")]).to_string();
    for (name, coding) in [("GZIP", "gzip"), ("x-gzip", "gzip"), ("ZStd", "zstd"), ("identity, gzip", "gzip")] {
        assert_eq!(send_coded(server, "", name, &compress(coding, text.as_bytes())).status, 202, "{name}");
    }
    assert_eq!(send_coded(server, "", "Identity", text.as_bytes()).status, 202);
}

#[test]
fn other_codings_are_refused_before_the_body_is_sent() {
    let server = &service().server;
    let refused: [&[&str]; 6] = [
        &["Content-Encoding: br"],
        &["Content-Encoding: deflate"],
        &["Content-Encoding: gzip, gzip"],
        &["Content-Encoding: gzip, br"],
        &["Content-Encoding: gzip", "Content-Encoding: zstd"],
        &["Content-Encoding: gzip;level=9"],
    ];
    for codings in refused {
        let mut raw = Raw::connect(server);
        raw.post_head(PATH, &[&["Content-Type: application/json", "Content-Length: 1000"][..], codings].concat());
        let reply = raw.answer();
        let problem = assert_problem(&reply, 415, "unsupported_encoding");
        assert_eq!(reply.header("accept-encoding"), "gzip, zstd", "{codings:?}");
        assert_eq!(reply.header("connection"), "close", "the body that follows must not be read as a request");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("gzip or zstd")), "{problem}");
    }
    let reply = post(&ingest_url(server, ""), &[("Content-Type", "text/plain")], b"");
    assert_problem(&reply, 415, "unsupported_media_type");
    assert_eq!(reply.header("accept-encoding"), "", "it is not the coding that is wrong");
}

#[test]
fn verdicts_are_about_what_is_decompressed() {
    let server = &service().server;
    for coding in CODINGS {
        let mut events: Vec<Value> = vec![event("good"), event("bad")];
        events[1]["payload"] = json!(7);
        let reply = send_coded(server, "", coding, &compress(coding, json!(events).to_string().as_bytes()));
        let problem = assert_problem(&reply, 422, "invalid_events");
        assert_eq!((&problem["errors"][0]["index"], &problem["errors"][0]["event_id"]), (&json!(1), &json!("bad")));
    }
}
