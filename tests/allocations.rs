//! Promise: an event costs no allocation, from the socket to PostgreSQL; a batch costs a few.
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::process::{Signal, getpid, kill_process};

use support::load::body;
use support::{WAIT_MAX, wait_until};

/// Batches that are measured with each size.
const BATCHES: u64 = 200;
const FEW_EVENTS: u64 = 100;
const MANY_EVENTS: u64 = 1000;
/// What a batch may cost, the transaction included; measured 94.
const PER_BATCH_MAX: f64 = 150.0;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator as it is; counting touches no memory but an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Sends batches of `events` events one after the other, each committed before the next; allocations of the whole
/// process meanwhile. The client itself allocates nothing.
fn send(stream: &mut TcpStream, events: u64) -> u64 {
    let body = body("allocations", None, 5, events);
    let head = format!(
        "POST /v1/ingest/batch?ack=commit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body.as_bytes()].concat();
    let mut answer = [0; 4096];
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..BATCHES {
        stream.write_all(&request).expect("the server reads");
        let mut bytes = 0;
        // The answer's body is one JSON object, and it comes with the answer's head or right behind it.
        while !answer[..bytes].ends_with(b"}") {
            bytes += stream.read(&mut answer[bytes..]).expect("an answer");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..bytes]));
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn an_event_costs_no_allocation_and_a_batch_a_few() {
    let database = support::postgres::shared().create_database();
    let folder = support::folder();
    let address = format!("127.0.0.1:{}", support::free_port());
    let journal = folder.path().join("journal");
    let arguments = ["ingestd", "serve", "--listen-addr", &address, "--database-url", &database.url, "--journal-dir"];
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).chain([journal.into()]).collect();
    let server = thread::spawn(move || ingestd::cli::run(arguments));
    wait_until("the server listens", WAIT_MAX, || TcpStream::connect(&address).is_ok());
    let mut stream = TcpStream::connect(&address).expect("it listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a bound on reading");

    for events in [MANY_EVENTS, FEW_EVENTS] {
        send(&mut stream, events);
    }
    let (many, few) = (send(&mut stream, MANY_EVENTS), send(&mut stream, FEW_EVENTS));
    let per_batch = few as f64 / BATCHES as f64;
    let per_event = many.saturating_sub(few) as f64 / (BATCHES * (MANY_EVENTS - FEW_EVENTS)) as f64;
    support::announce(&format!(
        "allocations: {per_batch:.1} a batch of {FEW_EVENTS} events, {per_event:.5} more an event"
    ));

    drop(stream);
    kill_process(getpid(), Signal::TERM).expect("this process");
    server.join().expect("the server ends");
    assert!(per_event < 0.005, "{per_event} allocations an event");
    assert!(per_batch < PER_BATCH_MAX, "{per_batch} allocations a batch");
}
