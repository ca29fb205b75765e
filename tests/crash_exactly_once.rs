//! Promise: whatever kills the server, every acknowledged event is in the table once, and no event twice.

mod support;

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use support::contract::wait_for_quick_lookups;
use support::load::{Load, LoadOptions, Outcome, Random, body, seed, wait_until_committed};
use support::postgres::{TestDatabase, TestPostgres, connect};
use support::server::{Builder, Ingestd, get, post};
use support::{WAIT_MAX, announce, wait_until};

/// Events of the load that is killed under way; `INGESTD_TEST_EVENTS` raises it.
const EVENTS: u64 = 100_000;
/// How often the server is killed meanwhile.
const KILLS: u64 = 5;

fn events() -> u64 {
    std::env::var("INGESTD_TEST_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(EVENTS)
}

fn server_on(database: &TestDatabase) -> Builder {
    Ingestd::builder().database(database)
}

fn options(events: u64, seed: u64) -> LoadOptions {
    LoadOptions { clients: 4, events, seed, priority_max: 10, pause: Duration::ZERO }
}

fn journal(server: &Ingestd) -> String {
    server.folder().join("journal").to_str().expect("a plain path").to_owned()
}

#[test]
fn kills_under_load_lose_nothing_and_double_nothing() {
    let seed = seed("kills_under_load");
    let mut random = Random::new(seed);
    let database = support::postgres::shared().create_database();
    let mut server = server_on(&database).start();
    let (events, per_kill) = (events(), events() / (KILLS + 1));
    let load = Load::start(&server, options(events, seed));
    for kill in 0..KILLS {
        load.wait_for_acked(kill * per_kill + random.within(per_kill / 10..=per_kill), WAIT_MAX);
        // The moment within a group, a COPY or a COMMIT is up to chance.
        std::thread::sleep(random.duration(Duration::from_millis(20)));
        server.kill9();
        server.restart();
        load.follow(&server);
    }
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    let tally = outcome.assert_exactly_once(&mut database.connect());
    announce(&format!("kills_under_load: kills={KILLS} batches={}", outcome.batches.len()));
    assert!(tally.retries > 0, "no kill met a request under way: {tally}");
}

#[test]
fn batches_sent_again_after_a_kill_are_known() {
    let database = support::postgres::shared().create_database();
    let mut server = server_on(&database).start();
    let body = body("again", Some("again"), 0, 500);
    let send = |server: &Ingestd| post(&server.url("/v1/ingest/batch?ack=commit"), &[], body.as_bytes());
    assert_eq!(send(&server).json()["inserted"], 500);
    server.restart();
    wait_for_quick_lookups(&server);
    let reply = send(&server);
    assert_eq!((reply.status, &reply.json()["duplicate"]), (200, &true.into()), "{}", reply.text());
    let other = support::load::body("other", Some("again"), 0, 1);
    assert_eq!(post(&server.url("/v1/ingest/batch"), &[], other.as_bytes()).status, 409);
    let rows: i64 = database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0);
    assert_eq!(rows, 500);
}

/// A server with a backlog that only its journal has, because PostgreSQL is down.
fn with_backlog(postgres: &mut TestPostgres, database: &TestDatabase, seed: u64) -> (Ingestd, Outcome) {
    let server = server_on(database).start();
    postgres.kill9();
    let outcome = Load::start(&server, options(20_000, seed)).finish();
    assert!(outcome.batches.iter().all(|batch| batch.acked), "PostgreSQL away refuses nobody");
    (server, outcome)
}

#[test]
fn a_kill_while_postgresql_is_down_keeps_the_backlog() {
    let seed = seed("a_kill_while_postgresql_is_down");
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let (mut server, outcome) = with_backlog(&mut postgres, &database, seed);
    server.kill9();
    server.restart();
    let health = get(&server.url("/v1/health"));
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("degraded")), "{}", health.text());
    assert_eq!(health.json()["checks"]["database"]["queued_batches"], outcome.batches.len());
    postgres.start();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut connect(&database.url));
}

#[test]
fn kills_during_recovery_lose_nothing() {
    let seed = seed("kills_during_recovery");
    let mut random = Random::new(seed);
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let (mut server, outcome) = with_backlog(&mut postgres, &database, seed);
    server.kill9();
    postgres.start();
    for _ in 0..8 {
        server.begin_restart();
        // Anywhere between the first instruction and the first COMMITs of what was recovered.
        std::thread::sleep(random.duration(Duration::from_millis(150)));
        server.kill9();
    }
    server.restart();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut connect(&database.url));
}

#[test]
fn sigterm_under_load_loses_nothing_and_exits_with_zero() {
    let seed = seed("sigterm_under_load");
    let database = support::postgres::shared().create_database();
    let mut server = server_on(&database).start();
    let load = Load::start(&server, options(u64::MAX, seed));
    load.wait_for_acked(20_000, WAIT_MAX);
    let status = server.terminate();
    assert_eq!(status.code(), Some(0), "{}", server.log());
    server.restart();
    load.follow(&server);
    let outcome = load.stop();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut database.connect());
}

#[test]
fn sigterm_while_postgresql_hangs_ends_in_bounded_time_and_keeps_everything() {
    let seed = seed("sigterm_while_postgresql_hangs");
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let mut server = server_on(&database).start();
    let paused = postgres.pause();
    let outcome = Load::start(&server, options(20_000, seed)).finish();
    let status = server.terminate();
    assert_eq!(status.code(), Some(0), "what is queued is safe in the journal:\n{}", server.log());
    drop(paused);
    server.restart();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut connect(&database.url));
}

#[test]
fn sigterm_while_a_lock_holds_up_the_commits_ends_in_bounded_time() {
    let database = support::postgres::shared().create_database();
    let mut server = server_on(&database).start();
    let mut holder = database.connect();
    holder.batch_execute("BEGIN; LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("a lock");
    let reply = post(&server.url("/v1/ingest/batch"), &[], body("locked", None, 0, 10).as_bytes());
    assert_eq!(reply.status, 202);
    assert_eq!(server.terminate().code(), Some(0), "the batch is safe in the journal:\n{}", server.log());
    holder.batch_execute("ROLLBACK").expect("the lock is given back");
    server.restart();
    wait_until_committed(&server, WAIT_MAX);
    let rows: i64 = database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0);
    assert_eq!(rows, 10);
}

#[test]
fn a_second_signal_exits_at_once() {
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let mut server = server_on(&database).start();
    let _paused = postgres.pause();
    let reply = post(&server.url("/v1/ingest/batch"), &[], body("one", None, 0, 10).as_bytes());
    assert_eq!(reply.status, 202);
    server.signal(Signal::TERM);
    server.wait_for_log("shutting down", WAIT_MAX);
    server.signal(Signal::TERM);
    // An orderly end would exit with 0, and say that it has come to it.
    assert_eq!(server.wait_for_exit(WAIT_MAX).code(), Some(143));
    assert!(!server.log().contains("batches_in_journal"), "{}", server.log());
}

#[test]
fn a_second_server_on_one_journal_is_refused_in_one_line() {
    let database = support::postgres::shared().create_database();
    let server = server_on(&database).start();
    let journal = journal(&server);
    let settings = [("JOURNAL_DIR", &*journal), ("DATABASE_URL", &*database.url), ("LISTEN_ADDR", "127.0.0.1:0")];
    let second = Ingestd::run_to_exit(&["serve"], &settings);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    let said: Vec<&str> = second.stderr.lines().filter(|line| line.starts_with("ingestd: ")).collect();
    assert_eq!(said.len(), 1, "{}", second.stderr);
    assert!(said[0].contains(&journal) && said[0].contains("in use (held by PID"), "{}", said[0]);
    let reply = post(&server.url("/v1/ingest/batch?ack=commit"), &[], body("first", None, 0, 10).as_bytes());
    assert_eq!(reply.json()["inserted"], 10, "the first server goes on");
}

#[test]
fn a_kill_in_embedded_mode_keeps_the_data_and_leaves_no_postgresql_behind() {
    let seed = seed("a_kill_in_embedded_mode");
    let mut server = Ingestd::builder().start();
    let load = Load::start(&server, options(20_000, seed));
    load.wait_for_acked(5_000, WAIT_MAX);
    let postmaster = postmaster_of(&server);
    server.kill9();
    wait_until("the PostgreSQL of a killed server ends", WAIT_MAX, || !runs(&postmaster));
    server.restart();
    load.follow(&server);
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut embedded_client(&server));
    let postmaster = postmaster_of(&server);
    assert_eq!(server.terminate().code(), Some(0), "{}", server.log());
    assert!(!runs(&postmaster), "PostgreSQL ends with its server");
}

fn lock_file(server: &Ingestd) -> Vec<String> {
    let path = server.folder().join("data/postgres/postmaster.pid");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// The process number, which is the first line.
fn postmaster_of(server: &Ingestd) -> String {
    lock_file(server)[0].clone()
}

/// False for a zombie too, which is what an orphan becomes where process 1 does not reap.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Through the socket, whose port and folder are the fourth and fifth line.
fn embedded_client(server: &Ingestd) -> postgres::Client {
    let lines = lock_file(server);
    let mut config = postgres::Config::new();
    config.host_path(&lines[4]).port(lines[3].parse().expect("a port")).user("ingestd").dbname("ingestd");
    config.connect(postgres::NoTls).expect("the embedded PostgreSQL takes connections")
}
