//! Promise: what a Citus worker that is away explains is its shards', no more.
//!
//! These tests need a Citus cluster, as those of `citus.rs`.
#![cfg_attr(not(ingestd_citus), allow(dead_code, unused_imports))]

mod support;

use std::time::Instant;

use ingestd::pg::citus::layout::shard_map;
use ingestd::pg::ledger_search::{Nodes, Wanted};
use ingestd::sharding::{IngestShard, ShardMap};
use ingestd::types::BatchKey;
use serde_json::Value;

use support::citus::{self, Away};
use support::contract::{batch, batch_at, rows_of, send, status_of, wait_until_completed};
use support::postgres::{TestDatabase, connect};
use support::server::{Builder, Ingestd, get};
use support::{WAIT_MAX, wait_until};

/// A cluster with a server, and which worker a batch goes to.
struct Site {
    database: TestDatabase,
    server: Ingestd,
    workers: Vec<String>,
    shards: ShardMap,
}

impl Site {
    fn start(settings: &[(&str, &str)]) -> Self {
        let database = citus::create_database();
        let server = Self::builder(&database, settings).start();
        let shards = shard_map(&mut database.connect()).expect("the shards");
        let workers = citus::worker_urls(&database);
        let site = Self { database, server, workers, shards };
        wait_until("the shards are known", WAIT_MAX, || site.database_check()["cluster"]["workers"].is_array());
        site
    }

    fn builder(database: &TestDatabase, settings: &[(&str, &str)]) -> Builder {
        let builder = Ingestd::builder().database(database).env("SHARDING", "citus");
        settings.iter().fold(builder, |builder, (name, value)| builder.env(name, value))
    }

    /// Ids of batches of one shard of worker number `worker`.
    fn ids<'a>(&'a self, prefix: &'a str, worker: usize) -> impl Iterator<Item = String> + 'a {
        // In the order of `workers`.
        let query = "SELECT groupid FROM pg_dist_node WHERE isactive AND groupid <> 0 ORDER BY nodeport, nodename";
        let node: i32 = self.database.connect().query(query, &[]).expect("the nodes")[worker].get(0);
        let shard_of = |id: &str| self.shards.shard_of(IngestShard::of(id));
        let shard =
            (0..).map(|number| shard_of(&format!("any-{number}"))).find(|&shard| self.shards.node_of(shard).0 == node);
        (0..).map(move |number| format!("{prefix}-{number}")).filter(move |id| Some(shard_of(id)) == shard)
    }

    fn id(&self, prefix: &str, worker: usize) -> String {
        self.ids(prefix, worker).next().expect("endless")
    }

    fn commit(&self, id: &str) -> Value {
        let reply = send(&self.server, "ack=commit", batch(id, 5).to_string().as_bytes());
        assert_eq!(reply.status, 200, "batch {id} waits for a worker that it does not need: {}", reply.text());
        reply.json()
    }

    fn queue(&self, body: &Value) {
        assert_eq!(send(&self.server, "", body.to_string().as_bytes()).status, 202);
    }

    fn database_check(&self) -> Value {
        get(&self.server.url("/v1/health")).json()["checks"]["database"].clone()
    }
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn a_worker_that_is_away_keeps_only_batches_of_its_shards_waiting() {
    let site = Site::start(&[]);
    let away = Away::take(&site.database, &site.workers[0]);
    let waits = site.id("waits", 0);
    site.queue(&batch(&waits, 5));
    wait_until("the shard is held", WAIT_MAX, || site.database_check()["stuck_batches"] == 1);
    for id in site.ids("goes-on", 1).take(5) {
        site.commit(&id);
    }
    assert_eq!(get(&site.server.url("/v1/health")).json()["status"], "degraded");
    assert_ne!(status_of(&site.server, &waits)["status"], "completed");
    assert!(!site.server.log().contains("is not accepting batches"), "{}", site.server.log());
    drop(away);
    wait_until_completed(&site.server, &waits);
    assert_eq!(rows_of(&site.database, &waits), 5);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn a_month_that_needs_a_worker_that_is_away_is_its_batches_own() {
    let site = Site::start(&[]);
    let away = Away::take(&site.database, &site.workers[0]);
    // Of one shard of the other worker, all of them.
    let mut ids = site.ids("other", 1);
    let late: Vec<String> = ids.by_ref().take(3).collect();
    for id in &late {
        site.queue(&batch_at(id, 5, "2024-02-03T04:05:06Z"));
    }
    for id in ids.by_ref().take(5) {
        site.commit(&id);
    }
    wait_until("the late ones are told", WAIT_MAX, || site.database_check()["stuck_batches"] == 3);
    for id in ids.take(5) {
        site.commit(&id);
    }
    assert!(!site.server.log().contains("a shard is rejecting batches"), "{}", site.server.log());
    let status = status_of(&site.server, &late[0]);
    assert!(status["reason"].is_string(), "{status}");
    drop(away);
    for id in &late {
        wait_until_completed(&site.server, id);
        assert_eq!(rows_of(&site.database, id), 5);
    }
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn while_a_worker_is_away_a_server_starts_answers_look_ups_and_tells_what_fails() {
    let site = Site::start(&[]);
    let (there, gone) = (site.id("there", 1), site.id("gone", 0));
    [&there, &gone].into_iter().for_each(|id| drop(site.commit(id)));
    let away = Away::take(&site.database, &site.workers[0]);
    let settings = [("DATABASE_URL", site.database.url.as_str()), ("SHARDING", "citus")];
    let checked = Ingestd::run_to_exit(&["check-config"], &settings);
    assert_eq!(checked.code, Some(0), "serve starts, too: {}", checked.stderr);
    assert!(checked.stdout.contains("cannot connect to worker"), "{}", checked.stdout);
    let keys = [&there, &gone].map(|id| BatchKey { owner: "".into(), id: id.as_str().into() });
    let wanted = keys.each_ref().map(|key| Wanted { key, is_firm: true });
    let found =
        Nodes::default().find(&mut site.database.connect(), &wanted, Instant::now()).expect("the coordinator answers");
    assert_eq!(found.rows.iter().map(|row| &row.key).collect::<Vec<_>>(), [&keys[0]]);
    assert!(found.asked.contains(&keys[0]) && !found.asked.contains(&keys[1]));
    // One that has never heard of either batch.
    let other = Site::builder(&site.database, &[("LEDGER_RETENTION_DAYS", "1")]).start();
    let look_up = |id: &str| get(&other.url(&format!("/v1/batch/{id}/status")));
    wait_until("a batch of the other worker is found", WAIT_MAX, || look_up(&there).status == 200);
    assert_eq!(look_up(&there).json()["status"], "completed");
    assert_eq!(look_up(&gone).status, 503, "nobody knows");
    assert_eq!(look_up(&site.id("never", 1)).status, 404);
    wait_until("the chore is told", WAIT_MAX, || {
        get(&other.url("/v1/health")).json()["checks"]["maintenance"]["status"] == "failing"
    });
    let goes_on = send(&other, "ack=commit", batch(&site.id("goes-on", 1), 5).to_string().as_bytes());
    assert_eq!(goes_on.status, 200, "{}", goes_on.text());
    assert!(!other.log().contains("is not accepting batches"), "{}", other.log());
    drop(away);
    wait_until("the other one is found as well", WAIT_MAX, || look_up(&gone).status == 200);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn check_config_says_what_a_server_would_do_with_tables_that_are_distributed() {
    let site = Site::start(&[]);
    let settings = [("DATABASE_URL", site.database.url.as_str()), ("SHARDING", "none")];
    let checked = Ingestd::run_to_exit(&["check-config", "--connect"], &settings);
    let served = Ingestd::run_to_exit(&["serve"], &settings);
    for finished in [&checked, &served] {
        assert_eq!(finished.code, Some(2), "{}", finished.stdout);
        assert!(finished.stderr.contains("set SHARDING=citus on every node"), "{}", finished.stderr);
    }
    assert!(!checked.stdout.contains("configuration is valid"), "{}", checked.stdout);
}
