//! Promise: a server that was started with the usual soft limit of 1024 open files serves as many connections as the
//! hard limit allows.

mod support;

use std::net::TcpStream;

use rustix::process::{Resource, getrlimit, setrlimit};
use support::load::body;
use support::measure::open_files;
use support::server::{Ingestd, post};
use support::{WAIT_MAX, wait_until};

/// More than the server may have open files at its start.
const CONNECTIONS: usize = 200;
const SOFT_LIMIT: u64 = 100;

#[test]
fn more_connections_than_the_soft_limit_of_open_files_are_served() {
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
