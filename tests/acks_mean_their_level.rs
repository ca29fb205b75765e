//! Promise: an answer means the level that its own request asked for, also for a batch that was sent before, at another
//! level, to another node, or to a database that has been restored since. Only the ledger says that a batch is committed.

mod support;

use serde_json::{Value, json};
use support::contract::{accept, batch, rows_of, send, status_of, wait_for_quick_lookups, wait_until_completed};
use support::load::wait_until_committed;
use support::postgres::{TestDatabase, TestPostgres, shared};
use support::redis::TestRedis;
use support::server::{Builder, Ingestd, Reply, get};
use support::{WAIT_MAX, wait_until};

fn send_again(server: &Ingestd, level: &str, batch: &Value) -> Reply {
    send(server, &format!("ack={level}"), batch.to_string().as_bytes())
}

/// A node without PostgreSQL: whatever is kept, the journal keeps it.
fn without_postgres() -> Builder {
    Ingestd::builder().env("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
}

/// How often requests have waited for a sync of the journal.
fn syncs(server: &Ingestd) -> u64 {
    let text = get(&server.url("/v1/metrics")).text();
    let line = text.lines().find(|line| line.starts_with("ingestd_journal_fsync_seconds_count"));
    line.and_then(|line| line.rsplit_once(' ')).and_then(|(_, count)| count.parse().ok()).expect("a count")
}

fn assert_is_repeat(reply: &Reply, status: &str) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    assert_eq!((&answer["status"], &answer["duplicate"]), (&json!(status), &json!(true)), "{answer}");
}

#[test]
fn a_repeat_that_asks_for_the_journal_waits_for_a_sync_that_covers_the_batch() {
    let mut server = without_postgres().env("WORKERS", 1).start();
    let sent = batch("sent-with-memory", 3);
    accept(&server, "ack=memory", &sent);
    let before = syncs(&server);
    assert_is_repeat(&send_again(&server, "memory", &sent), "queued");
    assert_eq!(syncs(&server), before, "nobody has asked for a sync");
    assert_is_repeat(&send_again(&server, "journal", &sent), "queued");
    assert_eq!(syncs(&server), before + 1);
    assert_is_repeat(&send_again(&server, "journal", &sent), "queued");
    assert_eq!(syncs(&server), before + 1, "it is covered");
    // What a start recovers, it syncs.
    server.kill9();
    server.restart();
    let before = syncs(&server);
    assert_is_repeat(&send_again(&server, "journal", &sent), "queued");
    assert_eq!(syncs(&server), before);
}

#[test]
fn a_repeat_that_asks_for_the_commit_waits_for_it() {
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let paused = postgres.pause();
    let sent = batch("sent-with-memory", 3);
    accept(&server, "ack=memory", &sent);
    let reply = std::thread::scope(|scope| {
        let waits = scope.spawn(|| send_again(&server, "commit", &sent));
        // It is synced before it is waited for, so that an answer without a commit is still an ack.
        wait_until("it waits", WAIT_MAX, || syncs(&server) > 0);
        assert!(!waits.is_finished());
        drop(paused);
        waits.join().expect("no panic")
    });
    assert_is_repeat(&reply, "completed");
    assert_eq!((&reply.json()["inserted"], rows_of(&database, "sent-with-memory")), (&json!(3), 3));
}

#[test]
fn what_another_node_has_in_its_queue_is_taken_here_as_well() {
    let postgres = TestPostgres::start_private(&[]);
    let (database, redis) = (postgres.create_database(), TestRedis::start());
    let node = |name| Ingestd::builder().database(&database).redis(&redis).env("NODE_ID", name).start();
    let (mut lost, server) = (node("lost"), node("kept"));
    for node in [&lost, &server] {
        wait_until("Redis is in use", WAIT_MAX, || {
            get(&node.url("/v1/health")).json()["checks"]["redis"]["status"] == "ok"
        });
    }
    let paused = postgres.pause();
    for level in ["journal", "commit"] {
        accept(&lost, "ack=memory", &batch(level, 2));
        wait_until("Redis has it", WAIT_MAX, || redis.entry(level).is_some());
        assert_is_repeat(&send_again(&server, "memory", &batch(level, 2)), "queued");
    }
    // Its power fails, with a journal that was not synced.
    lost.kill9();
    std::fs::remove_dir_all(lost.folder().join("journal")).expect("it is there");
    let reply = send_again(&server, "journal", &batch("journal", 2));
    assert_eq!((reply.status, &reply.json()["status"]), (202, &json!("queued")), "{}", reply.text());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| send_again(&server, "commit", &batch("commit", 2)));
        wait_until("both are here", WAIT_MAX, || {
            let health = get(&server.url("/v1/health")).json();
            health["checks"]["journal"]["uncommitted_batches"].as_u64() >= Some(2)
        });
        drop(paused);
        assert_eq!(waits.join().expect("no panic").json()["inserted"], 2);
    });
    assert_eq!(wait_until_completed(&server, "journal")["inserted"], 2);
    assert_eq!((rows_of(&database, "journal"), rows_of(&database, "commit")), (2, 2));
}

/// Redis knows of a batch that `server` has committed.
fn commit_and_share(server: &Ingestd, redis: &TestRedis, sent: &Value) {
    assert_eq!(send_again(server, "commit", sent).json()["inserted"], 2);
    let id = sent["batch_id"].as_str().expect("an id");
    wait_until("Redis has it", WAIT_MAX, || redis.entry(id).is_some_and(|entry| entry.contains("completed")));
}

/// Takes what is committed out of `database`, as one that was restored from an earlier copy does not have it.
fn restore_earlier(database: &TestDatabase) {
    database.connect().batch_execute("TRUNCATE events, ingest_batches").expect("the tables are there");
}

#[test]
fn a_batch_that_a_restored_database_does_not_have_lands_when_it_is_sent_again() {
    let (database, redis) = (shared().create_database(), TestRedis::start());
    let mut server = Ingestd::builder().database(&database).redis(&redis).start();
    let sent = batch("orders", 2);
    commit_and_share(&server, &redis, &sent);
    for level in ["memory", "journal", "commit"] {
        restore_earlier(&database);
        wait_for_quick_lookups(&server);
        assert_eq!(get(&server.url("/v1/batch/orders/status")).status, 404, "it is nowhere");
        let reply = send_again(&server, level, &sent);
        assert!(reply.json().get("duplicate").is_none(), "{level}: {}", reply.text());
        wait_until_committed(&server, WAIT_MAX);
        assert_eq!((status_of(&server, "orders")["inserted"].as_u64(), rows_of(&database, "orders")), (Some(2), 2));
        assert_is_repeat(&send_again(&server, level, &sent), "completed");
    }
    // The same by a process that has only Redis to remember it.
    assert_eq!(server.terminate().code(), Some(0), "{}", server.log());
    restore_earlier(&database);
    server.restart();
    wait_for_quick_lookups(&server);
    assert_eq!(get(&server.url("/v1/batch/orders/status")).status, 404);
    assert_eq!(send_again(&server, "commit", &sent).json()["inserted"], 2);
}

#[test]
fn deployments_that_share_a_redis_do_not_meet_there() {
    let redis = TestRedis::start();
    let databases = [shared().create_database(), shared().create_database()];
    let servers = databases.each_ref().map(|database| Ingestd::builder().database(database).redis(&redis).start());
    let sent = batch("orders", 2);
    commit_and_share(&servers[0], &redis, &sent);
    assert_eq!(get(&servers[1].url("/v1/batch/orders/status")).status, 404);
    // A body of its own is no conflict there.
    let other = batch("orders", 3);
    assert_eq!(send_again(&servers[1], "commit", &other).json()["inserted"], 3, "it is another batch");
    assert_is_repeat(&send_again(&servers[0], "commit", &sent), "completed");
    assert_eq!((rows_of(&databases[0], "orders"), rows_of(&databases[1], "orders")), (2, 3));
}

#[test]
fn nobody_is_told_that_a_batch_is_committed_while_the_ledger_does_not_answer() {
    let postgres = TestPostgres::start_private(&[]);
    let (database, redis) = (postgres.create_database(), TestRedis::start());
    let server = Ingestd::builder().database(&database).redis(&redis).start();
    let sent = batch("orders", 2);
    commit_and_share(&server, &redis, &sent);
    let paused = postgres.pause();
    let reply = send_again(&server, "journal", &sent);
    assert_eq!((reply.status, &reply.json()["status"]), (202, &json!("queued")), "{}", reply.text());
    drop(paused);
    wait_until_committed(&server, WAIT_MAX);
    assert_eq!(rows_of(&database, "orders"), 2, "it landed before");
    assert_is_repeat(&send_again(&server, "commit", &sent), "completed");
}
