//! Databases for tests on a Citus cluster that runs already: `INGESTD_TEST_CITUS_URL` names its coordinator, by a role that
//! may create databases and extensions on all of its nodes.

use std::sync::atomic::{AtomicU32, Ordering};

use postgres::{Client, NoTls};

use super::cluster_database::{self, of_database};
use super::postgres::{TestDatabase, connect};

pub use super::cluster_database::URL_VARIABLE;

/// A fresh database on all nodes of the cluster, dropped with the value.
pub fn create_database() -> TestDatabase {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_citus_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let nodes = nodes();
    let url = cluster_database::create(&nodes, &name);
    TestDatabase::on_servers(name, url, nodes)
}

/// The database of `database` on each worker, as its owner would reach it.
pub fn worker_urls(database: &TestDatabase) -> Vec<String> {
    nodes()[1..].iter().map(|worker| of_database(worker, &database.name)).collect()
}

/// Kills a session's process on a node with SIGKILL, as that node's superuser: all of its sessions end, and it recovers
/// from its WAL.
pub fn crash(node: &str) {
    let (mut victim, mut killer) = (connect(node), connect(node));
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).expect("a process").get(0);
    killer.batch_execute("CREATE TEMPORARY TABLE said (line text)").expect("a table");
    // It is ended by what it does.
    let _ = killer.batch_execute(&format!("COPY said FROM PROGRAM 'kill -9 {pid}'"));
    super::wait_until("the node is down", super::WAIT_MAX, || victim.batch_execute("SELECT 1").is_err());
    super::wait_until("the node is back", super::WAIT_MAX, || {
        Client::connect(node, NoTls).is_ok_and(|mut client| client.batch_execute("SELECT 1").is_ok())
    });
}

fn nodes() -> Vec<String> {
    let coordinator = std::env::var(URL_VARIABLE).unwrap_or_else(|_| panic!("{URL_VARIABLE} is set"));
    cluster_database::nodes(&coordinator)
}
