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

/// A worker that takes no connections for one database, as if it were away; back when dropped.
pub struct Away {
    node: String,
    database: String,
}

impl Away {
    /// The worker at `worker`, one of [`worker_urls`].
    pub fn take(database: &TestDatabase, worker: &str) -> Self {
        let away = Self { node: of_database(worker, "postgres"), database: database.name.clone() };
        away.set_connections(false);
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        connect(&away.node).execute(terminate, &[&away.database]).expect("the sessions are ended");
        away
    }

    fn set_connections(&self, are_allowed: bool) {
        let statement = format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {are_allowed}", self.database);
        connect(&self.node).batch_execute(&statement).expect("altered");
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.set_connections(true);
    }
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
