//! Promise: nodes of two versions work side by side while they are replaced one by one. What an older one cannot know it
//! refuses at its start, in words, and touches nothing of it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ingestd::journal::frame::{FRAME_HEADER_BYTES, MAGIC};
use ingestd::journal::segment::SEGMENT_HEADER_BYTES;
use ingestd::pg::migrate::SCHEMA_VERSION;
use redis::Commands;
use serde_json::{Value, json};
use support::contract::{accept, batch, rows_of, send, status_of};
use support::load::{body, wait_until_committed};
use support::postgres::{TestDatabase, shared};
use support::redis::TestRedis;
use support::server::{Finished, Ingestd, get, post, post_json};
use support::{WAIT_MAX, wait_until};

/// A migration as the policy in `src/pg/migrate.rs` allows it.
const ADDITIVE: &str = "
    ALTER TABLE events ADD COLUMN region text, ADD COLUMN rank integer NOT NULL DEFAULT 7;
    ALTER TABLE ingest_batches ADD COLUMN region text NOT NULL DEFAULT 'eu';
    ALTER TABLE dead_letter_events ADD COLUMN region text;
    CREATE INDEX events_by_rank ON events (rank);
    CREATE TABLE regions (name text PRIMARY KEY)";

fn event(id: &str, at: &str, amount: i64) -> Value {
    json!({"event_id": id, "service_name": "s", "event_type": "t", "payload": {"amount": amount}, "timestamp": at})
}

/// Commits `events` as batch `id`; the answer.
fn commit(server: &Ingestd, id: &str, events: &[Value]) -> Value {
    let reply = post_json(&server.url("/v1/ingest/batch?ack=commit"), &json!({"batch_id": id, "events": events}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn counts(answer: &Value) -> [i64; 3] {
    ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_i64().expect("a count"))
}

#[test]
fn a_running_node_goes_on_when_a_newer_one_migrates_and_an_older_one_does_not_start_any_more() {
    let database = shared().create_database();
    let mut client = database.connect();
    let running = Ingestd::builder().database(&database).start();
    client
        .batch_execute("ALTER TABLE events ADD CONSTRAINT no_debts CHECK ((payload ->> 'amount')::int >= 0)")
        .expect("a constraint");
    let mut month = |ago: i32| -> String {
        let query =
            "SELECT to_char(now() AT TIME ZONE 'UTC' - make_interval(months => $1), 'YYYY-MM-\"10T00:00:00Z\"')";
        client.query_one(query, &[&ago]).expect("a time").get(0)
    };
    let (now, old, older) = (month(1), month(5), month(6));
    // Every way has its statements prepared before the schema changes.
    assert_eq!(counts(&commit(&running, "1", &[event("a", &now, 1)])), [1, 0, 0]);
    assert_eq!(counts(&commit(&running, "2", &[event("a", &now, 1), event("b", &now, 1)])), [1, 1, 0]);
    assert_eq!(counts(&commit(&running, "3", &[event("c", &now, -1), event("d", &now, 1)])), [1, 0, 1]);

    client.batch_execute(ADDITIVE).expect("a migration");
    let newer = SCHEMA_VERSION + 1;
    client.execute("INSERT INTO ingestd_migrations (version, name) VALUES ($1, 'later')", &[&newer]).expect("a row");
    assert_eq!(counts(&commit(&running, "4", &[event("e", &now, 1)])), [1, 0, 0]);
    assert_eq!(counts(&commit(&running, "5", &[event("e", &now, 1), event("f", &now, 1)])), [1, 1, 0]);
    assert_eq!(counts(&commit(&running, "6", &[event("g", &now, -1), event("h", &now, 1)])), [1, 0, 1]);
    assert_eq!(counts(&commit(&running, "7", &[event("i", &old, 1), event("j", &older, 1)])), [2, 0, 0], "partitions");
    wait_until("health tells of the newer schema", WAIT_MAX, || {
        let check = &get(&running.url("/v1/health")).json()["checks"]["database"];
        check["reason"].as_str().is_some_and(|reason| reason.contains(&format!("version {newer}")))
    });
    assert_eq!(get(&running.url("/readyz")).status, 200, "it takes traffic until it is replaced");
    assert_eq!(status_of(&running, "7")["status"], "completed");
    let rows: i64 = client.query_one("SELECT count(*) FROM events WHERE rank = 7", &[]).expect("counted").get(0);
    assert_eq!(rows, 8);

    let folder = support::folder();
    let journal = folder.path().join("journal");
    let settings = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("JOURNAL_DIR", journal.to_str().expect("a plain path")),
        ("DATABASE_URL", &database.url),
    ];
    let refused = Ingestd::run_to_exit(&["serve"], &settings);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let said = format!("schema has version {newer}, but this ingestd supports versions up to {SCHEMA_VERSION}");
    assert!(refused.stderr.contains(&said) && refused.stderr.contains("install the newer ingestd"), "{refused:?}");
}

/// The files of a journal.
fn files(journal: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(journal).expect("the journal").flatten();
    let files = entries.filter(|entry| entry.file_name() != "lock");
    files
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("ours")))
        .collect()
}

fn segment_of(journal: &Path) -> String {
    let mut names = files(journal).into_keys().filter(|name| name.ends_with(".journal"));
    names.next().expect("a segment")
}

fn checksummed(bytes: &mut [u8], at: usize) {
    let checksum = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Where the second frame of a segment begins: a search as blunt as can be.
fn second_frame(bytes: &[u8]) -> usize {
    let after_first = SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES;
    let found = bytes[after_first..].windows(MAGIC.len()).position(|window| window == MAGIC);
    after_first + found.expect("a second frame")
}

/// The versions of a segment as a newer ingestd might write them: its header's, a frame's, a block's.
fn newer_segments(bytes: &[u8]) -> [(&'static str, Vec<u8>); 3] {
    let mut header = bytes.to_vec();
    header[8..12].copy_from_slice(&2u32.to_le_bytes());
    checksummed(&mut header, SEGMENT_HEADER_BYTES - 4);

    let at = second_frame(bytes);
    let mut frame = bytes.to_vec();
    frame[at + 4] = 2;
    checksummed(&mut frame[at..], FRAME_HEADER_BYTES - 4);

    let mut block = bytes.to_vec();
    let payload = at + FRAME_HEADER_BYTES;
    let length = u32::from_le_bytes(block[at + 8..at + 12].try_into().expect("four bytes")) as usize;
    block[payload + 2] = 2;
    let checksum = crc32c::crc32c(&block[payload..payload + length]);
    block[at + 12..at + 16].copy_from_slice(&checksum.to_le_bytes());
    checksummed(&mut block[at..], FRAME_HEADER_BYTES - 4);
    [("segment", header), ("frame", frame), ("block", block)]
}

fn starts(journal: &Path, database: &TestDatabase) -> [Finished; 2] {
    let journal = journal.to_str().expect("a plain path");
    let settings = [("LISTEN_ADDR", "127.0.0.1:0"), ("JOURNAL_DIR", journal), ("DATABASE_URL", &*database.url)];
    [&["serve"][..], &["journal", "drain"]].map(|command| Ingestd::run_to_exit(command, &settings))
}

#[test]
fn a_newer_journal_is_refused_whole_until_the_newer_version_reads_it() {
    let database = shared().create_database();
    let mut server = Ingestd::builder().env("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none").start();
    for id in ["one", "two", "three"] {
        let reply = post(&server.url("/v1/ingest/batch"), &[], body(id, Some(id), 0, 5).as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    server.kill9();
    let journal = server.folder().join("journal");
    let segment = journal.join(segment_of(&journal));
    let readable = fs::read(&segment).expect("ours");
    for (what, bytes) in newer_segments(&readable) {
        fs::write(&segment, &bytes).expect("ours");
        let before = files(&journal);
        for refused in starts(&journal, &database) {
            assert_eq!(refused.code, Some(1), "{what}: {refused:?}");
            let said = refused.stderr.to_lowercase();
            assert!(said.contains("version 2") && said.contains("start the newer ingestd"), "{what}: {refused:?}");
            assert_eq!(files(&journal), before, "{what}: nothing is dropped, renamed or cut");
        }
    }
    // Whoever can read it lands it all.
    fs::write(&segment, &readable).expect("ours");
    server.set_env("DATABASE_URL", &database.url);
    server.restart();
    wait_until_committed(&server, WAIT_MAX);
    let rows: i64 = database.connect().query_one("SELECT count(*) FROM events", &[]).expect("counted").get(0);
    assert_eq!(rows, 15);
}

#[test]
fn status_in_redis_is_read_whatever_another_version_has_added_to_it() {
    let (redis, database) = (TestRedis::start(), shared().create_database());
    let node = Ingestd::builder().database(&database).redis(&redis).start();
    let mut connection = redis.connect();
    accept(&node, "", &batch("example", 1));
    wait_until("the node has written", WAIT_MAX, || redis.key_of("example").is_some());
    let key = redis.key_of("example").expect("its key");
    wait_until("Redis is in use", WAIT_MAX, || {
        get(&node.url("/v1/health")).json()["checks"]["redis"]["status"] == "ok"
    });
    let mut store = |id: &str, change: &dyn Fn(&mut Value)| {
        let mut entry = json!({
            "batch_id": id, "status": "queued", "priority": 3, "events": 4, "inserted": 0, "duplicates": 0,
            "dead_lettered": 0, "received_at": "2026-11-01T00:00:00Z", "completed_at": null, "node": "newer",
            "digest": "00000000000000000000000000000001",
        });
        change(&mut entry);
        let () = connection.set(key.replace("example", id), entry.to_string()).expect("set");
    };
    store("more", &|entry| {
        entry["version"] = 2.into();
        entry["shard"] = json!({"of": [1, 2, 3]});
    });
    store("less", &|entry| drop(entry.as_object_mut().expect("an object").remove("node")));
    let status = status_of(&node, "more");
    assert_eq!((&status["status"], &status["node"]), (&json!("queued"), &json!("newer")), "{status}");
    assert_eq!(status.get("shard"), None, "what is not understood is not told");

    // What cannot be read is as good as not there: the ledger decides, and the batch is taken once.
    assert_eq!(get(&node.url("/v1/batch/less/status")).status, 404);
    for status in [200, 200] {
        let reply = send(&node, "ack=commit", batch("less", 4).to_string().as_bytes());
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    assert_eq!(status_of(&node, "less")["status"], "completed");
    assert_eq!(rows_of(&database, "less"), 4);
}
