//! Promise: a server that was started with the usual soft limit of 1024 open files serves as many connections as the
//! hard limit allows, less what the journal, PostgreSQL and the workers need: clients cannot take that from them.

mod support;

use std::net::TcpStream;

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};
use support::load::body;
use support::measure::open_files;
use support::server::{Ingestd, get, post};
use support::{WAIT_MAX, wait_until};

/// More than the server may have open files at its start.
const CONNECTIONS: usize = 200;
const SOFT_LIMIT: u64 = 100;
/// Held by tests that change the limit of this process, or need many files of it.
static LIMIT: Mutex<()> = Mutex::new(());

#[test]
fn more_connections_than_the_soft_limit_of_open_files_are_served() {
    let _alone = LIMIT.lock();
    let database = support::postgres::shared().create_database();
    let limit = getrlimit(Resource::Nofile);
    let set_soft_limit = |current| {
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current, maximum: limit.maximum })
            .expect("lower, or as it was");
    };
    set_soft_limit(Some(SOFT_LIMIT));
    let server = Ingestd::builder().database(&database).start();
    set_soft_limit(limit.maximum);
    let connections: Vec<TcpStream> =
        (0..CONNECTIONS).map(|_| TcpStream::connect(server.address()).expect("a listener")).collect();
    let reply = post(&server.url("/v1/ingest/batch?ack=commit"), &[], body("one-more", None, 0, 1).as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    // The kernel connects; that the server has accepted shows in its own figure, and may take a while.
    wait_until(&format!("all {} connections are the server's", connections.len()), WAIT_MAX, || {
        open_files(&server) > CONNECTIONS as u64
    });
}

/// Settings of a small server.
const SMALL: [(&str, &str); 4] =
    [("WORKERS", "2"), ("DB_POOL_MIN_SIZE", "2"), ("DB_POOL_MAX_SIZE", "4"), ("JOURNAL_MAX_MB", "16")];
/// Open files that are enough for it and a hundred connections or so.
const FEW: u64 = 300;

#[test]
fn clients_that_open_all_connections_do_not_take_the_journals_files() {
    let _alone = LIMIT.lock();
    let database = support::postgres::shared().create_database();
    let small = |builder, (name, value)| support::server::Builder::env(builder, name, value);
    let server = SMALL.into_iter().fold(Ingestd::builder().database(&database).open_files(FEW), small).start();
    let told = "connections instead of MAX_CONNECTIONS=20000: the limit is 300 open files";
    assert!(server.log().contains(told), "{}", server.log());
    // This thread's client keeps its connection.
    let send = |number: u32| {
        let tag = format!("beside-{number}");
        post(&server.url("/v1/ingest/batch"), &[], body(&tag, None, 0, 500).as_bytes()).status
    };
    assert_eq!(send(0), 202);
    let crowd: Vec<TcpStream> =
        (0..2 * FEW).map(|_| TcpStream::connect(server.address()).expect("a listener")).collect();
    server.wait_for_log("connection refused: MAX_CONNECTIONS", WAIT_MAX);
    // Several segments of 1 MiB, each a new file.
    for number in 1..100 {
        assert_eq!(send(number), 202, "{}", server.log());
    }
    assert_eq!(get(&server.url("/readyz")).status, 200);
    assert!(open_files(&server) < FEW, "some are left for the journal");
    drop(crowd);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn check_config_says_how_many_connections_the_limit_allows_and_too_low_a_limit_stops_the_start() {
    let check = |limit| Ingestd::run_to_exit_with_open_files(limit, &["check-config"], &SMALL);
    let few = check(FEW);
    assert_eq!(few.code, Some(0), "{}", few.stderr);
    assert!(few.stdout.contains("instead of MAX_CONNECTIONS=20000: the limit is 300 open files"), "{}", few.stdout);
    for command in ["check-config", "serve"] {
        let none = Ingestd::run_to_exit_with_open_files(150, &[command], &SMALL);
        assert_eq!(none.code, Some(2), "{command}: {}{}", none.stdout, none.stderr);
        let told = "ingestd: the limit of 150 open files is too low";
        assert!(none.stderr.contains(told) && none.stderr.contains("ulimit -n"), "{command}: {}", none.stderr);
    }
}
