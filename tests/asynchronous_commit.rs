//! Promise: an ack survives a PostgreSQL that forgets commits. Where `synchronous_commit` is off a crash takes back what
//! was committed but not flushed; the journal keeps a batch until PostgreSQL has flushed its commit, whoever turned it
//! off. So it does where somebody cancels the wait of a COMMIT for a synchronous standby.

mod support;

use std::time::Duration;

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use support::contract::wait_for_quick_lookups;
use support::load::{Load, LoadOptions, body, seed, wait_until_committed};
use support::postgres::{TestDatabase, TestPostgres};
use support::server::{Builder, Ingestd, get, post};
use support::{OnDrop, WAIT_MAX, wait_until};

/// A PostgreSQL that writes no WAL of its own accord: what no COMMIT has asked for stays in its memory.
struct LazyPostgres {
    // Dropped first, and PostgreSQL last: neither a database nor PostgreSQL goes while one of its processes is frozen.
    wal_writer: Frozen,
    database: TestDatabase,
    postgres: TestPostgres,
}

struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        // PostgreSQL may have killed it.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

impl LazyPostgres {
    fn start(settings: &[(&str, &str)]) -> Self {
        let lazy = [("checkpoint_timeout", "1h"), ("wal_buffers", "64MB")];
        let postgres = TestPostgres::start_private(&[&lazy, settings].concat());
        let database = postgres.create_database();
        Self { wal_writer: freeze_wal_writer(&database), database, postgres }
    }

    fn kill_all(&mut self) {
        // Frozen, it would outlive the others, and keep the next PostgreSQL from starting.
        self.kill_wal_writer();
        self.postgres.kill9();
        self.postgres.start();
        self.wal_writer = freeze_wal_writer(&self.database);
    }

    /// PostgreSQL ends all sessions then, and recovers without ending itself.
    fn kill_one_process(&mut self) {
        let mut client = self.database.connect();
        self.kill_wal_writer();
        wait_until("PostgreSQL notices", WAIT_MAX, || client.batch_execute("").is_err());
        wait_until("PostgreSQL has recovered", WAIT_MAX, || Client::connect(&self.database.url, NoTls).is_ok());
        self.wal_writer = freeze_wal_writer(&self.database);
    }

    fn kill_wal_writer(&self) {
        kill_process(self.wal_writer.0, Signal::KILL).expect("it is frozen");
    }
}

fn freeze_wal_writer(database: &TestDatabase) -> Frozen {
    let query = "SELECT pid, wait_event FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let mut client = database.connect();
    let mut look = move || -> Option<(i32, Option<String>)> {
        let rows = client.query(query, &[]).expect("processes");
        rows.first().map(|row| (row.get(0), row.get(1)))
    };
    let mut frozen = None;
    wait_until("PostgreSQL has a WAL writer that does nothing", WAIT_MAX, || {
        let Some(pid) = look().and_then(|(pid, _)| Pid::from_raw(pid)) else { return false };
        frozen = kill_process(pid, Signal::STOP).is_ok().then_some(Frozen(pid));
        // At work it holds locks that every COMMIT needs: then it goes on, and is frozen another time.
        if look().is_none_or(|(_, waits_for)| waits_for.as_deref() != Some("WalWriterMain")) {
            frozen = None;
        }
        frozen.is_some()
    });
    frozen.expect("just seen")
}

/// Crashes PostgreSQL several times under a load of small batches, none of them urgent: those flush their
/// commits, and all others with them.
fn crashes_lose_nothing(test: &str, settings: &[(&str, &str)], builder: Builder, crash: fn(&mut LazyPostgres)) {
    let seed = seed(test);
    let mut postgres = LazyPostgres::start(settings);
    // One flusher for all of them: there is always more to do.
    let builder = builder.database(&postgres.database).env("DB_POOL_MIN_SIZE", 1).env("DB_POOL_MAX_SIZE", 2);
    let server = builder.start();
    let load =
        Load::start(&server, LoadOptions { clients: 8, events: 120_000, seed, priority_max: 7, pause: Duration::ZERO });
    for number in 1..=5 {
        load.wait_for_acked(number * 20_000, WAIT_MAX);
        crash(&mut postgres);
    }
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    let tally = outcome.assert_exactly_once(&mut postgres.database.connect());
    assert_eq!((tally.refused, tally.unknown), (0, 0), "no client noticed: {tally}");
}

#[test]
fn a_database_that_commits_asynchronously_loses_nothing() {
    let settings = [("synchronous_commit", "off")];
    crashes_lose_nothing(
        "a_database_that_commits_asynchronously",
        &settings,
        Ingestd::builder(),
        LazyPostgres::kill_all,
    );
}

#[test]
fn synchronous_commit_off_loses_nothing_when_postgresql_is_killed() {
    let builder = Ingestd::builder().env("SYNCHRONOUS_COMMIT", "off");
    crashes_lose_nothing("synchronous_commit_off", &[], builder, LazyPostgres::kill_all);
}

#[test]
fn synchronous_commit_off_loses_nothing_when_a_process_of_postgresql_crashes() {
    let builder = Ingestd::builder().env("SYNCHRONOUS_COMMIT", "off");
    crashes_lose_nothing("synchronous_commit_off_process", &[], builder, LazyPostgres::kill_one_process);
}

#[test]
fn what_was_answered_as_committed_is_on_postgresqls_disk() {
    let mut postgres = LazyPostgres::start(&[]);
    let server = Ingestd::builder().env("SYNCHRONOUS_COMMIT", "off").database(&postgres.database).start();
    for round in 0..3 {
        let id = format!("batch-{round}");
        let reply = post(&server.url("/v1/ingest/batch?ack=commit"), &[], body(&id, Some(&id), 0, 10).as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.text());
        postgres.kill_all();
        let rows = "SELECT count(*) FROM events WHERE batch_id = $1";
        let rows: i64 = postgres.database.connect().query_one(rows, &[&id]).expect("a count").get(0);
        assert_eq!(rows, 10);
    }
}

/// The ledger's row of a batch goes, and comes again by a session that does not flush its commits: as another node with
/// SYNCHRONOUS_COMMIT=off has it for a moment.
struct OtherNode {
    client: Client,
}

impl OtherNode {
    /// Has committed `batch`; beside it a server that knows nothing of that.
    fn that_has(batch: &str, postgres: &LazyPostgres) -> (Self, Ingestd) {
        let [first, second] = [(); 2].map(|()| Ingestd::builder().database(&postgres.database).start());
        assert_eq!(post(&first.url("/v1/ingest/batch?ack=commit"), &[], batch.as_bytes()).status, 200);
        let mut client = postgres.database.connect();
        for statement in [
            "CREATE TABLE copy AS SELECT * FROM ingest_batches",
            "TRUNCATE ingest_batches",
            "SET synchronous_commit = off",
        ] {
            client.batch_execute(statement).expect("the ledger's row goes");
        }
        (Self { client }, second)
    }

    fn run(&mut self, statement: &str) {
        self.client.batch_execute(statement).expect("a statement");
    }
}

fn ledger_rows(postgres: &LazyPostgres) -> i64 {
    postgres.database.connect().query_one("SELECT count(*) FROM ingest_batches", &[]).expect("a count").get(0)
}

#[test]
fn a_retry_of_what_another_node_committed_without_a_flush_is_answered_after_one() {
    let mut postgres = LazyPostgres::start(&[]);
    let text = body("other", Some("other"), 0, 1);
    let (mut other, second) = OtherNode::that_has(&text, &postgres);
    other.run("INSERT INTO ingest_batches SELECT * FROM copy");
    wait_for_quick_lookups(&second);
    let retry = post(&second.url("/v1/ingest/batch"), &[], text.as_bytes());
    assert_eq!((retry.status, &retry.json()["duplicate"]), (200, &true.into()), "{}", retry.text());
    postgres.kill_all();
    assert_eq!(ledger_rows(&postgres), 1);
}

#[test]
fn a_batch_that_lands_after_another_node_committed_it_without_a_flush_is_released_after_one() {
    let mut postgres = LazyPostgres::start(&[]);
    let text = body("other", Some("other"), 0, 1);
    let (mut other, second) = OtherNode::that_has(&text, &postgres);
    other.run("BEGIN");
    other.run("INSERT INTO ingest_batches SELECT * FROM copy");
    let url = second.url("/v1/ingest/batch?ack=commit");
    let sent = std::thread::spawn(move || post(&url, &[], text.as_bytes()));
    let mut observer = postgres.database.connect();
    let waits =
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO ingest_batches%'";
    wait_until("the second node waits for the first", WAIT_MAX, || {
        !observer.query(waits, &[]).expect("activity").is_empty()
    });
    other.run("COMMIT");
    let reply = sent.join().expect("a reply");
    assert_eq!(reply.status, 200, "{}", reply.text());
    postgres.kill_all();
    assert_eq!(ledger_rows(&postgres), 1);
}

/// Sessions of the server that wait for a standby.
fn waiting_for_standby(client: &mut Client) -> Vec<i32> {
    let query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'ingestd'";
    client.query(query, &[]).expect("sessions").iter().map(|row| row.get(0)).collect()
}

fn set_standby(client: &mut Client, name: &str) {
    client.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).expect("a superuser");
    client.batch_execute("SELECT pg_reload_conf()").expect("a superuser");
    let query = "SELECT setting = $1 FROM pg_settings WHERE name = 'synchronous_standby_names'";
    wait_until("PostgreSQL has read it", WAIT_MAX, || {
        client.query_one(query, &[&name]).expect("settings").get::<_, bool>(0)
    });
}

#[test]
fn a_commit_whose_wait_for_a_standby_was_cancelled_is_not_told_as_committed() {
    let postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut client = database.connect();
    client.batch_execute("SET synchronous_commit = local").expect("it is for every session to say");
    set_standby(&mut client, "far_away");
    // Else the database could not be dropped.
    let _standby = OnDrop(|| set_standby(&mut database.connect(), ""));

    let sent = body("kept", Some("kept"), 0, 2);
    let reply = post(&server.url("/v1/ingest/batch"), &[], sent.as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
    let status = || get(&server.url("/v1/batch/kept/status")).json()["status"].clone();
    let mut cancelled = 0;
    wait_until("several waits were cancelled", WAIT_MAX, || {
        for pid in waiting_for_standby(&mut client) {
            cancelled += 1;
            client.execute("SELECT pg_cancel_backend($1)", &[&pid]).expect("a superuser");
        }
        assert_ne!(status(), "completed", "after {cancelled} cancellations");
        cancelled >= 3
    });
    let rows: i64 = client.query_one("SELECT count(*) FROM events", &[]).expect("counted").get(0);
    assert_eq!(rows, 2, "here it is committed");
    let kept = get(&server.url("/v1/health")).json()["checks"]["journal"]["uncommitted_batches"].clone();
    assert_eq!(kept, 1, "and the journal keeps it");

    set_standby(&mut client, "");
    wait_until_committed(&server, WAIT_MAX);
    assert_eq!(status(), "completed");
    let rows: i64 = client.query_one("SELECT count(*) FROM events", &[]).expect("counted").get(0);
    assert_eq!(rows, 2);
}
