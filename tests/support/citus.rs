//! Databases for tests on a Citus cluster that runs already: `INGESTD_TEST_CITUS_URL` names its coordinator, by a role that
//! may create databases and extensions on all of its nodes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use postgres::{Client, NoTls};

use super::postgres::{TestDatabase, connect};

/// The variable that names the coordinator. Whoever sets it before building has these tests run: see `build.rs`.
pub const URL_VARIABLE: &str = "INGESTD_TEST_CITUS_URL";

/// How long a killed node may take to come back.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(60);

/// A fresh database on all nodes of the cluster, dropped with the value.
pub fn create_database() -> TestDatabase {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_citus_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let coordinator = std::env::var(URL_VARIABLE).unwrap_or_else(|_| panic!("{URL_VARIABLE} is set"));
    let nodes = nodes(&coordinator);
    for node in &nodes {
        let mut client = connect(node);
        client.batch_execute("SET client_min_messages = error").expect("a setting");
        client.batch_execute(&format!("CREATE DATABASE {name}")).expect("a database for a test");
        connect(&of_database(node, &name)).batch_execute("CREATE EXTENSION citus").expect("the extension");
    }
    let url = of_database(&coordinator, &name);
    let mut client = connect(&url);
    let (host, port) = host_and_port(&coordinator);
    client.execute("SELECT citus_set_coordinator_host($1, $2)", &[&host.as_str(), &port]).expect("the coordinator");
    for worker in &nodes[1..] {
        let (host, port) = host_and_port(worker);
        client.execute("SELECT citus_add_node($1, $2)", &[&host.as_str(), &port]).expect("a worker");
    }
    TestDatabase::on_servers(name, url, nodes)
}

/// The database of `database` on each worker, as its owner would reach it.
pub fn worker_urls(database: &TestDatabase) -> Vec<String> {
    let coordinator = std::env::var(URL_VARIABLE).unwrap_or_else(|_| panic!("{URL_VARIABLE} is set"));
    nodes(&coordinator)[1..].iter().map(|worker| of_database(worker, &database.name)).collect()
}

/// Kills a session's process on a node with SIGKILL, as that node's superuser: all of its sessions end, and it recovers
/// from its WAL.
pub fn crash(node: &str) {
    let (mut victim, mut killer) = (connect(node), connect(node));
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).expect("a process").get(0);
    killer.batch_execute("CREATE TEMPORARY TABLE said (line text)").expect("a table");
    // It is ended by what it does.
    let _ = killer.batch_execute(&format!("COPY said FROM PROGRAM 'kill -9 {pid}'"));
    super::wait_until("the node is down", RESTART_WAIT_MAX, || victim.batch_execute("SELECT 1").is_err());
    super::wait_until("the node is back", RESTART_WAIT_MAX, || {
        Client::connect(node, NoTls).is_ok_and(|mut client| client.batch_execute("SELECT 1").is_ok())
    });
}

/// URLs of the coordinator and its workers, for the database that `coordinator` names.
fn nodes(coordinator: &str) -> Vec<String> {
    let query = "SELECT nodename, nodeport FROM pg_dist_node WHERE isactive AND groupid <> 0 ORDER BY 2, 1";
    let rows = connect(coordinator).query(query, &[]).expect("the nodes of the cluster");
    assert!(!rows.is_empty(), "the cluster of {URL_VARIABLE} has no workers");
    let worker = |row: &postgres::Row| {
        let (before, after) = coordinator.rsplit_once('@').expect("the URL has a user");
        let path = after.split_once('/').map_or("", |(_, path)| path);
        format!("{before}@{}:{}/{path}", row.get::<_, &str>(0), row.get::<_, i32>(1))
    };
    std::iter::once(coordinator.to_owned()).chain(rows.iter().map(worker)).collect()
}

fn of_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("the URL has a database");
    format!("{server}/{name}")
}

fn host_and_port(url: &str) -> (String, i32) {
    let (_, after) = url.rsplit_once('@').expect("the URL has a user");
    let (address, _) = after.split_once('/').expect("the URL has a database");
    let (host, port) = address.rsplit_once(':').expect("the URL has a port");
    (host.to_owned(), port.parse().expect("a port"))
}
