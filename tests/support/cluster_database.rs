//! A database on all nodes of a Citus cluster that runs already.
//!
//! The tests of `SHARDING=citus` and `perf/citus.sh` share this. URLs are of the form `postgresql://user@host:port/database`;
//! the role may create databases and extensions. A cluster that does not do what is asked is a panic.

use std::sync::{Mutex, PoisonError};

use postgres::{Client, NoTls};

/// The variable that names the coordinator. Whoever sets it before building has the tests run: see `build.rs`.
pub const URL_VARIABLE: &str = "INGESTD_TEST_CITUS_URL";

/// URLs of the coordinator and its workers, for the database that `coordinator` names.
pub fn nodes(coordinator: &str) -> Vec<String> {
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

/// Makes the database `name` on all of `nodes`, the coordinator first, and returns its URL there.
pub fn create(nodes: &[String], name: &str) -> String {
    /// To add a worker writes its roles anew, which are every database's: two at a time fail ("tuple concurrently updated").
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for node in nodes {
        let mut client = connect(node);
        client.batch_execute("SET client_min_messages = error").expect("a setting");
        client.batch_execute(&format!("CREATE DATABASE {name}")).expect("a database");
        connect(&of_database(node, name)).batch_execute("CREATE EXTENSION citus").expect("the extension");
    }
    let url = of_database(&nodes[0], name);
    let mut client = connect(&url);
    let (host, port) = host_and_port(&nodes[0]);
    client.execute("SELECT citus_set_coordinator_host($1, $2)", &[&host.as_str(), &port]).expect("the coordinator");
    for worker in &nodes[1..] {
        let (host, port) = host_and_port(worker);
        client.execute("SELECT citus_add_node($1, $2)", &[&host.as_str(), &port]).expect("a worker");
    }
    url
}

/// `url` with the database `name`.
pub fn of_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("the URL has a database");
    format!("{server}/{name}")
}

fn host_and_port(url: &str) -> (String, i32) {
    let (_, after) = url.rsplit_once('@').expect("the URL has a user");
    let (address, _) = after.split_once('/').expect("the URL has a database");
    let (host, port) = address.rsplit_once(':').expect("the URL has a port");
    (host.to_owned(), port.parse().expect("a port"))
}

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap_or_else(|error| panic!("no connection to {url}: {error}"))
}
