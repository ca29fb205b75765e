//! Promise: a batch that waits costs the journal its own bytes. Neither batches that cannot land, nor bulk behind urgent
//! traffic, fill it at the rate of what goes by, or have a restart send that again; and bulk leaves room for payments.

mod support;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ingestd::journal::{Claim, DiskStorage, FrameToWrite, Journal, JournalOptions};
use serde_json::{Value, json};

use support::contract::{accept, assert_problem, batch, batch_at, ingest_url, rows_of, send, wait_until_completed};
use support::load::{Load, LoadOptions, Random, body, seed, wait_until_committed};
use support::postgres::{TestDatabase, TestPostgres, shared};
use support::server::{Builder, Ingestd, get, post};
use support::{WAIT_MAX, announce, wait_until};

/// Segments of 1 MiB, and room for about ten.
const JOURNAL_MAX_MB: u64 = 12;
/// Events of a batch that goes by: about 0.4 MB.
const EVENTS: u64 = 2500;
/// Such batches between two that wait.
const BETWEEN: u64 = 8;
/// Batches that wait: each would hold a segment.
const WAITING: u64 = 15;
/// Where nobody listens.
const AWAY: &str = "postgresql://nobody@127.0.0.1:1/none";

fn server_on(database: &TestDatabase) -> Builder {
    Ingestd::builder().database(database).env("JOURNAL_MAX_MB", JOURNAL_MAX_MB).env("WORKERS", 1)
}

fn of_month(id: &str, priority: u64, month: &str) -> Value {
    let mut batch = batch_at(id, 2, &format!("{month}-03T03:03:03Z"));
    batch["priority"] = json!(priority);
    batch
}

fn health(server: &Ingestd) -> Value {
    get(&server.url("/v1/health")).json()
}

fn uncommitted(server: &Ingestd) -> u64 {
    health(server)["checks"]["journal"]["uncommitted_batches"].as_u64().expect("a figure")
}

/// Batches that the last start found in the journal.
fn recovered(server: &Ingestd) -> u64 {
    let log = server.log();
    let line = log.lines().find(|line| line.contains("recovered batches from the journal")).unwrap_or("batches=0");
    let number = line.split("batches=").nth(1).expect("a figure").split_whitespace().next().expect("a figure");
    number.parse().unwrap_or_else(|_| panic!("{line}"))
}

/// Has several times the journal's cap land at `priority`, beside batches that `wait_too` sends. Gives how many landed.
fn go_by(server: &Ingestd, priority: u64, wait_too: impl Fn(u64)) -> u64 {
    let begun = Instant::now();
    for number in 0..WAITING {
        wait_too(number);
        for round in 0..BETWEEN {
            let tag = format!("good-{number}-{round}");
            let body = body(&tag, Some(&tag), priority, EVENTS);
            let reply = post(&ingest_url(server, "ack=commit"), &[], body.as_bytes());
            let journal = &health(server)["checks"]["journal"];
            assert_eq!(reply.status, 200, "{tag}: {}; {journal}", reply.text());
        }
        assert_eq!(get(&server.url("/readyz")).status, 200, "{}", health(server));
        assert_ne!(health(server)["status"], "unhealthy");
    }
    let bytes = WAITING * BETWEEN * EVENTS * 150;
    assert!(bytes > 3 * (JOURNAL_MAX_MB << 20), "{bytes} bytes went by");
    announce(&format!("{} batches, {bytes} bytes, went by in {:?}", WAITING * BETWEEN, begun.elapsed()));
    WAITING * BETWEEN
}

fn relocated(server: &Ingestd) -> f64 {
    let text = get(&server.url("/v1/metrics")).text();
    let line = text.lines().find(|line| line.starts_with("ingestd_journal_relocated_batches_total"));
    line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse().ok()).expect("a metric")
}

#[test]
fn batches_that_cannot_land_neither_fill_the_journal_nor_have_a_restart_send_everything_again() {
    let database = shared().create_database();
    let mut server = server_on(&database).start();
    let mut client = database.connect();
    // What DETACH PARTITION leaves, for one: the month's name is taken.
    client.batch_execute("CREATE TABLE events_2024_03 (elsewhere int)").expect("ours");
    let stuck = |number: u64| format!("stuck-{number}");
    let landed = go_by(&server, 0, |number| drop(accept(&server, "", &of_month(&stuck(number), 0, "2024-03"))));
    wait_until("nothing but the stuck ones waits", WAIT_MAX, || uncommitted(&server) == WAITING);
    assert_eq!(health(&server)["checks"]["database"]["stuck_batches"], WAITING);
    assert!(relocated(&server) > 0.0);

    // Killed under way: what is behind the oldest of them at that moment, and no more.
    server.restart();
    let again = recovered(&server);
    announce(&format!("{again} batches were sent again after a kill, of {}", landed + WAITING));
    assert!((WAITING..landed / 2).contains(&again), "{again} of {landed}");
    wait_until("all but the stuck ones have landed before", WAIT_MAX, || uncommitted(&server) == WAITING);

    // Stopped: only what waits.
    assert!(server.terminate().success());
    server.restart();
    assert_eq!(recovered(&server), WAITING, "{}", server.log());

    client.batch_execute("DROP TABLE events_2024_03").expect("ours");
    for number in 0..WAITING {
        wait_until_completed(&server, &stuck(number));
        assert_eq!(rows_of(&database, &stuck(number)), 2);
    }
    wait_until("nothing waits", WAIT_MAX, || uncommitted(&server) == 0);
    let rows: i64 = client.query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0);
    assert_eq!(rows.unsigned_abs(), landed * EVENTS + WAITING * 2);
}

#[test]
fn kills_while_batches_are_written_again_lose_nothing_and_double_nothing() {
    let seed = seed("kills_while_batches_are_written_again");
    let mut random = Random::new(seed);
    let database = shared().create_database();
    let mut server = server_on(&database).env("JOURNAL_MAX_MB", 8).start();
    let mut client = database.connect();
    client.batch_execute("CREATE TABLE events_2024_03 (elsewhere int)").expect("ours");
    let options = LoadOptions { clients: 3, events: u64::MAX, seed, priority_max: 10, pause: Duration::from_millis(5) };
    let load = Load::start(&server, options);
    let mut stuck = Vec::new();
    for kill in 0..4 {
        // Each life has more than the journal's cap go by beside batches that are stuck.
        wait_until("batches are written again", WAIT_MAX, || {
            let id = format!("stuck-{kill}-{}", stuck.len());
            let acked = load.acked_events();
            if send(&server, "", of_month(&id, 0, "2024-03").to_string().as_bytes()).status == 202 {
                stuck.push(id);
            }
            load.wait_for_acked(acked + 5000, WAIT_MAX);
            relocated(&server) > f64::from(kill)
        });
        thread::sleep(random.duration(Duration::from_millis(50)));
        server.kill9();
        server.restart();
        load.follow(&server);
    }
    let outcome = load.stop();
    wait_until("all others are committed", WAIT_MAX, || uncommitted(&server) == stuck.len() as u64);
    outcome.assert_exactly_once(&mut client);
    client.batch_execute("DROP TABLE events_2024_03").expect("ours");
    wait_until_committed(&server, WAIT_MAX);
    for id in &stuck {
        assert_eq!(rows_of(&database, id), 2, "{id}");
    }
    announce(&format!("{} batches were stuck, {} others landed", stuck.len(), outcome.batches.len()));
}

#[test]
fn bulk_that_waits_behind_urgent_traffic_does_not_fill_the_journal() {
    let database = shared().create_database();
    let server = server_on(&database).start();
    accept(&server, "", &of_month("first", 0, "2024-05"));
    wait_until_completed(&server, "first");
    let mut client = database.connect();
    // All general flushers wait for this lock, and what else is bulk waits for them; the reserved one goes on.
    let mut lock = client.transaction().expect("begun");
    lock.batch_execute("LOCK TABLE events_2024_05 IN ACCESS EXCLUSIVE MODE").expect("locked");
    let bulk = |number: u64, part: u64| format!("bulk-{number}-{part}");
    let landed = go_by(&server, 9, |number| {
        for part in 0..4 {
            accept(&server, "", &of_month(&bulk(number, part), 0, "2024-05"));
        }
    });
    wait_until("nothing but the bulk waits", WAIT_MAX, || uncommitted(&server) == WAITING * 4);
    assert!(relocated(&server) > 0.0);
    lock.rollback().expect("released");
    for number in 0..WAITING {
        for part in 0..4 {
            wait_until_completed(&server, &bulk(number, part));
            assert_eq!(rows_of(&database, &bulk(number, part)), 2);
        }
    }
    let rows: i64 = client.query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0);
    assert_eq!(rows.unsigned_abs(), landed * EVENTS + WAITING * 8 + 2);
}

#[test]
fn bulk_that_fills_the_journal_leaves_room_for_payments() {
    let server = Ingestd::builder().env("DATABASE_URL", AWAY).env("JOURNAL_MAX_MB", 8).start();
    let fill = |tag: &str, priority: u64, events: u64| {
        let taken = (0..20_000).take_while(|number| {
            let body = body(&format!("{tag}-{number}"), None, priority, events);
            let reply = post(&ingest_url(&server, ""), &[], body.as_bytes());
            if reply.status != 202 {
                let code = reply.json()["code"].as_str().unwrap_or_default().to_owned();
                assert!(["journal_full", "journal_unavailable"].contains(&&*code), "{code}");
                assert_problem(&reply, 503, &code);
            }
            reply.status == 202
        });
        taken.count()
    };
    assert!(fill("bulk", 7, 500) > 10);
    fill("small-bulk", 0, 20);
    let check = || health(&server)["checks"]["journal"].clone();
    assert!(check()["reason"].as_str().is_some_and(|reason| reason.contains("priority 8")), "{}", check());
    assert_eq!(health(&server)["status"], "degraded");
    assert_eq!(get(&server.url("/readyz")).status, 200, "payments are taken");

    let payments = fill("payment", 8, 20);
    assert!(payments > 100, "{payments} payments of 20 events were taken");
    assert_eq!(get(&server.url("/readyz")).status, 503);
    assert_eq!(health(&server)["status"], "unhealthy");
}

#[test]
fn a_batch_that_a_crash_left_in_two_places_lands_and_counts_once() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let mut server = server_on(&database).start();
    postgres.kill9();
    send(&server, "", batch("twice", 5).to_string().as_bytes());
    server.kill9();
    write_everything_again(&server);
    postgres.start();
    server.restart();
    assert_eq!(recovered(&server), 1);
    assert!(server.log().contains("repeated=1"), "{}", server.log());
    wait_until_completed(&server, "twice");
    wait_until("both places are free", WAIT_MAX, || uncommitted(&server) == 0);
    assert_eq!(rows_of(&database, "twice"), 5);
    let metrics = get(&server.url("/v1/metrics")).text();
    assert!(metrics.lines().any(|line| line.contains("ingestd_batches_total") && line.ends_with(r#""completed"} 1"#)));
}

/// What relocation does, killed before it releases the old places.
fn write_everything_again(server: &Ingestd) {
    let storage = DiskStorage::existing(server.folder().join("journal")).expect("the journal");
    let options = JournalOptions::new("node", JOURNAL_MAX_MB << 20);
    let mut payloads = Vec::new();
    let (mut journal, _) = Journal::open(Arc::new(storage), &options, &mut |_, payload| {
        payloads.push(payload.to_vec());
        Ok(())
    })
    .expect("opens");
    let space = journal.space();
    for payload in &payloads {
        space.try_reserve(payload.len(), Claim::Relocation).expect("has room");
        let frame = FrameToWrite { payload, crc32c: crc32c::crc32c(payload) };
        journal.append_group(&[frame], true, &mut Vec::new()).expect("is written");
    }
}
