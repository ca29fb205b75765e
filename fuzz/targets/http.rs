//! The server itself, over a socket: what a client sends is answered properly or not at all, and the next one does not
//! notice.
//!
//! It runs in this process, so that its code is seen by the fuzzer, and without PostgreSQL: batches are accepted into its
//! journal until that is full. The first byte decides whether the rest are all bytes of a connection, or a body behind a
//! proper head.
#![no_main]

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ingestd::config::Config;
use ingestd::config::raw::{Raw, Sources};
use libfuzzer_sys::{Corpus, fuzz_target};

/// How long the server may take to start, and to be done with a client that has sent everything.
const START_WAIT_MAX: Duration = Duration::from_secs(20);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// After how many inputs somebody else asks whether the server lives.
const INPUTS_PER_LOOK: u32 = 64;

fuzz_target!(|data: &[u8]| -> Corpus {
    static INPUTS: AtomicU32 = AtomicU32::new(0);
    let Some((&mode, rest)) = data.split_first() else { return Corpus::Reject };
    let sent = if mode == 0 { rest.to_vec() } else { post(mode, rest) };
    let Some(answer) = exchange(&sent) else {
        // It may have asked for an answer that waits for PostgreSQL's commit.
        assert!(sent.windows(6).any(|text| text == b"commit"), "no end of the answer");
        return Corpus::Reject;
    };
    check(&answer);
    if INPUTS.fetch_add(1, Ordering::Relaxed).is_multiple_of(INPUTS_PER_LOOK) {
        let alive = exchange(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it answers");
        assert!(alive.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&alive));
    }
    Corpus::Keep
});

/// A request with `body`, whose format, encoding and framing `mode` chooses.
fn post(mode: u8, body: &[u8]) -> Vec<u8> {
    const FORMATS: [&str; 6] = [
        "Content-Type: application/json",
        "Content-Type: application/x-ndjson",
        "Content-Type: application/cloudevents-batch+json",
        "Content-Type: application/cloudevents+json",
        "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: s\r\nce-type: t\r\nContent-Type: application/json",
        "Content-Type: application/x-ndjson; charset=utf-8\r\nExpect: 100-continue",
    ];
    const ENCODINGS: [&str; 3] = ["", "\r\nContent-Encoding: gzip", "\r\nContent-Encoding: zstd"];
    const CHUNK_BYTES: [Option<usize>; 4] = [None, Some(1), Some(7), Some(300)];
    let mode = usize::from(mode);
    let (format, mode) = (FORMATS[mode % FORMATS.len()], mode / FORMATS.len());
    let (encoding, mode) = (ENCODINGS[mode % ENCODINGS.len()], mode / ENCODINGS.len());
    let head = format!("POST /v1/ingest/batch HTTP/1.1\r\nHost: x\r\n{format}{encoding}\r\n");
    match CHUNK_BYTES[mode % CHUNK_BYTES.len()] {
        None => [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
        Some(bytes) => {
            let mut request = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for chunk in body.chunks(bytes) {
                request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                request.extend_from_slice(chunk);
                request.extend_from_slice(b"\r\n");
            }
            request.extend_from_slice(b"0\r\n\r\n");
            request
        }
    }
}

/// Sends `bytes` on a connection of their own and nothing after them; everything that comes back. `None` when it does not
/// end in time.
fn exchange(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server()).expect("the server listens");
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX)).expect("a bound");
    stream.set_write_timeout(Some(ANSWER_WAIT_MAX)).expect("a bound");
    // It may be refused before all of it is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        // A reset may come instead of the end.
        _ => Some(answer),
    }
}

/// Holds an answer to its protocol: a status line, or frames that begin with SETTINGS. A panic of a handler aborts the
/// process here; this looks for other ways to a 500.
fn check(answer: &[u8]) {
    let shown = || String::from_utf8_lossy(answer);
    if answer.starts_with(b"HTTP/1.") {
        let is_status = |status: &[u8]| status.iter().all(u8::is_ascii_digit) && (b'1'..=b'5').contains(&status[0]);
        assert!(answer.get(8) == Some(&b' ') && answer.get(9..12).is_some_and(is_status), "{}", shown());
        let failed: &[u8] = b" 500 Internal Server Error\r\n";
        assert!(!answer.windows(failed.len()).any(|text| text == failed), "{}", shown());
    } else if let Some((first, _)) = frame(answer) {
        assert_eq!(first.0, SETTINGS, "{}", shown());
        let mut rest = answer;
        while let Some((head, after)) = frame(rest) {
            assert!(head != (HEADERS, Some(STATUS_500)), "500 with HTTP/2");
            rest = after;
        }
    } else {
        assert!(answer.is_empty(), "{}", shown());
    }
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// `:status: 500` in HPACK's static table.
const STATUS_500: u8 = 0x8e;

/// Type and first byte of the frame that `bytes` begin with, and what follows it (RFC 9113, section 4.1).
fn frame(bytes: &[u8]) -> Option<((u8, Option<u8>), &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<9>()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let (payload, after) = rest.split_at_checked(length)?;
    Some(((head[3], payload.first().copied()), after))
}

/// The server's address; starts it the first time.
fn server() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let folder = std::env::temp_dir().join(format!("ingestd-fuzz-{}", std::process::id()));
        let config = config(address, &folder);
        std::thread::spawn(move || {
            let ended = ingestd::server::run(&config, &|| Ok(config.clone()), &mut |_, _| {});
            panic!("the server ended: {ended:?}");
        });
        let deadline = Instant::now() + START_WAIT_MAX;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        address
    })
}

fn config(address: SocketAddr, folder: &Path) -> Config {
    let journal = folder.join("journal");
    std::fs::create_dir_all(&journal).expect("a folder for temporary files");
    let settings: [(&str, OsString); 10] = [
        // Nobody listens there.
        ("DATABASE_URL", "postgresql://fuzz@127.0.0.1:1/fuzz?sslmode=disable".into()),
        ("LISTEN_ADDR", address.to_string().into()),
        ("JOURNAL_DIR", journal.into()),
        ("JOURNAL_MAX_MB", "256".into()),
        ("MEMORY_LIMIT_MB", "64".into()),
        ("MAX_BODY_MB", "1".into()),
        ("ACK", "memory".into()),
        ("WORKERS", "1".into()),
        ("HEADER_TIMEOUT_SECONDS", "1".into()),
        ("KEEP_ALIVE_SECONDS", "1".into()),
    ];
    let environment = |name: &str| settings.iter().find(|(named, _)| *named == name).map(|(_, value)| value.clone());
    let raw = Raw::gather(Sources { environment: Some(&environment), ..Sources::default() });
    Config::from_raw(&raw).unwrap_or_else(|problems| panic!("{problems}"))
}
