//! Promise: with `SHARDING=citus` batches land exactly once while workers and coordinator of the cluster are killed.
//!
//! A test program of its own: a killed node ends the sessions of every test. See `citus.rs` for when it runs.

mod support;

use std::time::Duration;

use support::citus;
use support::load::{Load, LoadOptions, Random, seed};
use support::server::{Ingestd, get};
use support::{WAIT_MAX, wait_until};

/// Nodes killed, one after the other.
const CRASHES: usize = 9;

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn batches_land_once_while_workers_and_coordinator_are_killed() {
    let seed = seed("citus");
    let database = citus::create_database();
    let server = Ingestd::builder().database(&database).env("SHARDING", "citus").start();
    let workers = citus::worker_urls(&database);
    let nodes: Vec<&str> = workers.iter().map(String::as_str).chain([database.url.as_str()]).collect();
    let options =
        LoadOptions { clients: 2, events: u64::MAX, seed, priority_max: 10, pause: Duration::from_millis(100) };
    let load = Load::start(&server, options);
    let mut random = Random::new(seed);
    for round in 0..CRASHES {
        std::thread::sleep(random.duration(Duration::from_secs(1)));
        citus::crash(nodes[round % nodes.len()]);
    }
    let outcome = load.stop();
    let mut client = database.connect();
    wait_until("nothing waits", WAIT_MAX, || {
        get(&server.url("/v1/health")).json()["checks"]["database"]["queued_batches"] == 0
    });
    // What a killed worker had prepared is not seen before Citus has settled it.
    wait_until("all that was acknowledged is seen", WAIT_MAX, || outcome.tally(&mut client).lost == 0);
    let tally = outcome.tally(&mut client);
    support::announce(&format!("citus: {tally}"));
    assert!(tally.acked > 0);
    assert_eq!((tally.lost, tally.doubled, tally.half_taken), (0, 0, 0), "{tally}");
    let health = get(&server.url("/v1/health")).json();
    let cluster = &health["checks"]["database"]["cluster"];
    assert_eq!(cluster["workers"].as_array().map(Vec::len), Some(workers.len()), "{health}");
    let all_reachable = format!("ingestd_citus_workers{{state=\"reachable\"}} {}\n", workers.len());
    wait_until("all workers are seen again", WAIT_MAX, || {
        get(&server.url("/v1/metrics")).text().contains(&all_reachable)
    });
}
