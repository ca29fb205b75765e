//! Promise: `ingestd journal drain` lands what the journal of a dead node holds, from elsewhere, exactly once, however
//! often it runs and whatever interrupts it; and says what it did.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ingestd::limits::{OUTAGE_AFTER, POOL_WAIT_MAX, RETRY_WAIT_MAX};
use ingestd::sys::child;
use postgres::Client;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use support::contract::status_of;
use support::disk::SmallDisk;
use support::load::body;
use support::postgres::{TestDatabase, TestPostgres, shared};
use support::proxy::Proxy;
use support::redis::TestRedis;
use support::server::{Builder, Finished, Ingestd, post};
use support::{WAIT_MAX, wait_until};
use tempfile::TempDir;

/// Nobody listens there: what is acknowledged stays in the journal.
const AWAY: &str = "postgresql://nobody@127.0.0.1:1/none";
/// Enough batches to be interrupted in the middle, where a row takes five milliseconds: all of them take several seconds.
const BATCHES: u64 = 60;
const EVENTS: u64 = 50;
/// A row takes five milliseconds or more.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()";

fn send(server: &Ingestd, body: &str) {
    let reply = post(&server.url("/v1/ingest/batch"), &[("Content-Type", "application/json")], body.as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
}

/// A node that took `bodies` while PostgreSQL was away, and died.
fn dead_node(builder: Builder, bodies: impl IntoIterator<Item = String>) -> Ingestd {
    let mut server = builder.env("DATABASE_URL", AWAY).env("NODE_ID", "node-3").start();
    for body in bodies {
        send(&server, &body);
    }
    server.kill9();
    server
}

fn dead_node_with_many() -> Ingestd {
    let bodies =
        (0..BATCHES).map(|number| body(&format!("b{number}"), Some(&format!("b{number}")), number % 11, EVENTS));
    dead_node(Ingestd::builder(), bodies)
}

fn journal_of(server: &Ingestd) -> PathBuf {
    server.folder().join("journal")
}

/// As an operator copies it: files, without what only the running process had.
fn copy_of(journal: &Path) -> TempDir {
    let folder = support::folder();
    for entry in fs::read_dir(journal).expect("the journal").flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    folder
}

fn drain_with(journal: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
    let journal = journal.to_str().expect("a plain path");
    let arguments = [&["journal", "drain", "--dir", journal], arguments].concat();
    Ingestd::run_to_exit(&arguments, settings)
}

fn drain(journal: &Path, database: &TestDatabase) -> Finished {
    drain_with(journal, &[], &[("DATABASE_URL", &database.url), ("NODE_ID", "rescue")])
}

/// A drain under way, with COPYs that are small enough to be interrupted between.
fn begin_drain(journal: &Path, url: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
    command.current_dir(journal).env_clear().args(["journal", "drain", "--dir", "."]).args(arguments);
    command.env("DATABASE_URL", url).env("BATCH_SIZE", "100").env("DB_POOL_MIN_SIZE", "1").env("DB_POOL_MAX_SIZE", "2");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    support::spawn(command).expect("the binary runs")
}

fn finish(mut child: Child) -> Finished {
    let status = child::wait_at_most(&mut child, WAIT_MAX).expect("it is our child");
    if status.is_none() {
        child.kill().expect("it is our child");
    }
    let output = child.wait_with_output().expect("its output");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let finished = Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(status.is_some(), "the drain did not end: {finished:?}");
    finished
}

fn migrated() -> (TestDatabase, Client) {
    let database = shared().create_database();
    let done = Ingestd::run_to_exit(&["migrate"], &[("DATABASE_URL", &database.url)]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let client = database.connect();
    (database, client)
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT ({query})::bigint"), &[]).expect("a number").get(0)
}

fn rows(client: &mut Client) -> u64 {
    number(client, "SELECT count(*) FROM events").unsigned_abs()
}

/// Everything that the tables say, to be compared.
fn contents(client: &mut Client) -> String {
    let query = "SELECT concat((SELECT string_agg(e::text, ' ' ORDER BY event_id, batch_id) FROM events e), '|',
                               (SELECT string_agg(b::text, ' ' ORDER BY batch_id) FROM ingest_batches b), '|',
                               (SELECT string_agg(d::text, ' ' ORDER BY id) FROM dead_letter_events d))";
    client.query_one(query, &[]).expect("contents").get(0)
}

fn assert_all_once(client: &mut Client) {
    let all = (BATCHES * EVENTS).cast_signed();
    assert_eq!(number(client, "SELECT count(*) FROM events"), all);
    assert_eq!(number(client, "SELECT count(DISTINCT event_id) FROM events"), all);
    assert_eq!(number(client, "SELECT sum(inserted) FROM ingest_batches"), all);
}

/// The number that follows `before` in `text`.
fn told(text: &str, before: &str) -> u64 {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{before:?} in {text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("a number after {before:?} in {text}"))
}

fn event(id: &str, at: &str, amount: i64) -> Value {
    json!({"event_id": id, "service_name": "s", "event_type": "t", "payload": {"amount": amount}, "timestamp": at})
}

#[test]
fn a_drain_lands_everything_once_and_says_what_became_of_it() {
    let (database, mut client) = migrated();
    client
        .batch_execute("ALTER TABLE events ADD CONSTRAINT no_debts CHECK ((payload ->> 'amount')::int >= 0)")
        .expect("a constraint");
    let mut at = |months: i32| -> String {
        let query =
            "SELECT to_char(now() AT TIME ZONE 'UTC' - make_interval(months => $1), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
        client.query_one(query, &[&months]).expect("a time").get(0)
    };
    let (now, old) = (at(0), at(6));
    let batches = [
        json!({"batch_id": "plain", "events": [event("a", &now, 1), event("b", &now, 2)]}),
        json!({"batch_id": "twice", "events": [event("a", &now, 1), event("c", &now, 3)]}),
        json!({"batch_id": "no partition", "events": [event("d", &old, 4)]}),
        json!({"batch_id": "refused", "events": [event("e", &now, -5), event("f", &now, 6)]}),
    ]
    .map(|batch| batch.to_string().replace("no partition", "no-partition"));
    let node = dead_node(Ingestd::builder(), batches);
    let copy = copy_of(&journal_of(&node));

    let first = drain(copy.path(), &database);
    assert_eq!(first.code, Some(0), "{first:?}");
    for line in [
        "journal of node-3\n",
        "found 4 batches, 7 events that may not be committed\n",
        "committed 4 batches: 5 rows, 1 duplicates, 1 dead letters\n",
        "already committed and skipped: 0 batches, 0 events\n",
        "left in the journal: 0 batches\ndamage: none\n",
    ] {
        assert!(first.stdout.contains(line), "{line:?} in {first:?}");
    }
    assert_eq!(rows(&mut client), 5);
    assert_eq!(number(&mut client, "SELECT count(*) FROM dead_letter_events"), 1);
    assert_eq!(number(&mut client, "SELECT count(*) FROM ingest_batches WHERE node = 'rescue'"), 4);

    let before = contents(&mut client);
    let second = drain(copy.path(), &database);
    assert_eq!(second.code, Some(0), "{second:?}");
    assert!(second.stdout.contains("found nothing uncommitted; the database is unchanged"), "{second:?}");
    assert_eq!(contents(&mut client), before);

    // The volume itself, after its copy: the ledger knows.
    let original = drain(&journal_of(&node), &database);
    assert_eq!(original.code, Some(0), "{original:?}");
    assert!(original.stdout.contains("committed 0 batches: 0 rows, 0 duplicates, 0 dead letters\n"), "{original:?}");
    assert!(original.stdout.contains("already committed and skipped: 4 batches, 7 events\n"), "{original:?}");
    assert_eq!(contents(&mut client), before);
}

#[test]
fn a_node_that_comes_back_after_its_journal_was_drained_elsewhere_doubles_nothing() {
    let (database, mut client) = migrated();
    let mut node = dead_node_with_many();
    let copy = copy_of(&journal_of(&node));
    assert_eq!(drain(copy.path(), &database).code, Some(0));
    node.set_env("DATABASE_URL", &database.url);
    node.restart();
    wait_until("the node is through with its journal", WAIT_MAX, || {
        status_of(&node, &format!("b{}", BATCHES - 1))["status"] == "completed"
    });
    support::load::wait_until_committed(&node, WAIT_MAX);
    assert_all_once(&mut client);
}

#[test]
fn a_journal_in_use_or_missing_and_settings_that_do_not_fit_are_refused() {
    let (database, mut client) = migrated();
    let mut server = Ingestd::builder().env("DATABASE_URL", AWAY).start();
    send(&server, &body("held", Some("held"), 0, 3));
    let journal = journal_of(&server);
    let refused = drain(&journal, &database);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("in use (held by PID"), "{refused:?}");
    server.kill9();

    let missing = drain(&journal.join("missing"), &database);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("no journal in") && missing.stderr.contains("--dir"), "{missing:?}");
    assert!(!journal.join("missing").exists(), "a wrong path must not become an empty journal");

    let unset = drain_with(&journal, &[], &[]);
    assert_eq!(unset.code, Some(2), "{unset:?}");
    assert!(unset.stderr.contains("set DATABASE_URL"), "{unset:?}");
    let wrong = database.url.replace(&database.name, "no_such_database");
    let wrong = drain_with(&journal, &[], &[("DATABASE_URL", &wrong)]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.stderr.contains("no_such_database"), "{wrong:?}");
    let option = drain_with(&journal, &["--give-up-after", "soon"], &[("DATABASE_URL", &database.url)]);
    assert_eq!(option.code, Some(2), "{option:?}");

    // Nothing of that touched the batch.
    assert_eq!(rows(&mut client), 0);
    let done = drain(&journal, &database);
    assert_eq!((done.code, rows(&mut client)), (Some(0), 3), "{done:?}");
}

#[test]
fn killed_in_the_middle_and_run_again_it_lands_the_rest() {
    let (database, mut client) = migrated();
    client.batch_execute(SLOW).expect("a trigger");
    let node = dead_node_with_many();
    let mut killed = begin_drain(&journal_of(&node), &database.url, &[]);
    wait_until("some has landed", WAIT_MAX, || rows(&mut client) > 0);
    killed.kill().and_then(|()| killed.wait()).expect("it is our child");
    let landed = rows(&mut client);
    assert!(landed < BATCHES * EVENTS, "it was killed too late to show anything");
    client.batch_execute("DROP TRIGGER slow ON events").expect("it is there");
    let again = drain(&journal_of(&node), &database);
    assert_eq!(again.code, Some(0), "{again:?}");
    let before = told(&again.stdout, "skipped: ");
    assert!(before > 0, "what was committed before the kill is told: {again:?}");
    assert_eq!(told(&again.stdout, "\ncommitted ") + before, BATCHES, "{again:?}");
    assert_all_once(&mut client);
}

#[test]
fn sigterm_ends_it_in_order_and_says_what_is_left() {
    let (database, mut client) = migrated();
    client.batch_execute(SLOW).expect("a trigger");
    let node = dead_node_with_many();
    let child = begin_drain(&journal_of(&node), &database.url, &[]);
    wait_until("some has landed", WAIT_MAX, || rows(&mut client) > 0);
    kill_process(child::pid_of(&child), Signal::TERM).expect("it is our child");
    let ended = finish(child);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("interrupted") && ended.stderr.contains("run this again"), "{ended:?}");
    let left = told(&ended.stdout, "left in the journal: ");
    assert_eq!(left + told(&ended.stdout, "\ncommitted "), BATCHES, "{ended:?}");
    assert_eq!(rows(&mut client), (BATCHES - left) * EVENTS, "what it told is what is there");
    client.batch_execute("DROP TRIGGER slow ON events").expect("it is there");
    let again = drain(&journal_of(&node), &database);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(told(&again.stdout, "\ncommitted "), left, "{again:?}");
    assert_eq!(told(&again.stdout, "found "), left + told(&again.stdout, "skipped: "), "{again:?}");
    assert_all_once(&mut client);
}

#[test]
fn postgresql_may_go_away_in_the_middle_and_come_back() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let done = Ingestd::run_to_exit(&["migrate"], &[("DATABASE_URL", &database.url)]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let mut client = database.connect();
    client.batch_execute(SLOW).expect("a trigger");
    let node = dead_node_with_many();
    let child = begin_drain(&journal_of(&node), &database.url, &[]);
    wait_until("some has landed", WAIT_MAX, || rows(&mut client) > 0);
    assert!(rows(&mut client) < BATCHES * EVENTS, "too late to show anything");
    postgres.kill9();
    // A shorter absence is no outage, and not reported as one.
    std::thread::sleep(OUTAGE_AFTER + 2 * (POOL_WAIT_MAX + RETRY_WAIT_MAX));
    postgres.start();
    database.connect().batch_execute("DROP TRIGGER slow ON events").expect("it is there");
    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("PostgreSQL is accepting batches again"), "it noticed: {ended:?}");
    assert!(ended.stdout.contains("left in the journal: 0 batches"), "{ended:?}");
    assert_all_once(&mut database.connect());
}

#[test]
fn a_postgresql_that_stays_away_is_given_up_on_and_one_that_comes_is_used() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    postgres.stop();
    let node = dead_node_with_many();
    let settings = [("DATABASE_URL", &*database.url)];
    let ended = drain_with(&journal_of(&node), &["--give-up-after", "2s"], &settings);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains(&format!("{BATCHES} batches stay in the journal, and some of them may be committed already")),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("is it running"), "with the reason: {ended:?}");

    // The proxy tells when it was asked; with nobody behind it, it closes what comes.
    let proxy = Proxy::start(postgres.port());
    let waiting = begin_drain(&journal_of(&node), &database.url_through(proxy.port()), &[]);
    wait_until("it has met the closed door", WAIT_MAX, || proxy.connections() > 0);
    postgres.start();
    let ended = finish(waiting);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_all_once(&mut database.connect());
}

#[test]
fn a_lock_that_nobody_lets_go_is_given_up_on() {
    let (database, mut client) = migrated();
    let mut other = database.connect();
    let mut holder = other.transaction().expect("begun");
    holder.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("locked");
    let node = dead_node_with_many();
    let ended = drain_with(&journal_of(&node), &["--give-up-after", "20s"], &[("DATABASE_URL", &database.url)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("holds a lock"), "with the reason: {ended:?}");
    holder.rollback().expect("ended");
    assert_eq!(drain(&journal_of(&node), &database).code, Some(0));
    assert_all_once(&mut client);
}

#[test]
fn a_batch_that_cannot_land_is_told_and_holds_up_no_other() {
    let (database, mut client) = migrated();
    let old: String = client
        .query_one("SELECT to_char(now() AT TIME ZONE 'UTC' - interval '8 months', 'YYYY-MM-\"15T00:00:00Z\"')", &[])
        .expect("a time")
        .get(0);
    let taken = format!("events_{}_{}", &old[..4], &old[5..7]);
    client.batch_execute(&format!("CREATE TABLE {taken} (mine int)")).expect("a table in the way");
    let stuck = json!({"batch_id": "stuck", "events": [event("old", &old, 1)]}).to_string();
    let node = dead_node(Ingestd::builder(), [stuck, body("free", Some("free"), 0, 5)]);
    let ended = drain(&journal_of(&node), &database);
    assert_eq!((ended.code, rows(&mut client)), (Some(1), 5), "{ended:?}");
    assert!(ended.stderr.contains("1 batches cannot be committed") && ended.stderr.contains(&taken), "{ended:?}");
    client.batch_execute(&format!("DROP TABLE {taken}")).expect("ours");
    let again = drain(&journal_of(&node), &database);
    assert_eq!((again.code, rows(&mut client)), (Some(0), 6), "{again:?}");
}

#[test]
fn damage_is_told_each_time_and_the_rest_lands() {
    let (database, mut client) = migrated();
    let node = dead_node_with_many();
    let journal = journal_of(&node);
    let files = fs::read_dir(&journal).expect("the journal").flatten().map(|entry| entry.path());
    let segment = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "journal"));
    let segment = fs::File::options().read(true).write(true).open(segment.expect("a segment")).expect("ours");
    // Within the first block: a header of 4096 bytes is before it, and the batch is longer than this.
    let mut byte = [0];
    segment.read_exact_at(&mut byte, 4096 + 1000).expect("it is there");
    segment.write_all_at(&[byte[0] ^ 1], 4096 + 1000).expect("ours");
    for _ in 0..2 {
        let ended = drain(&journal, &database);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains("damage: ") && !ended.stdout.contains("damage: none"), "{ended:?}");
        assert!(ended.stderr.contains("the journal is damaged"), "{ended:?}");
        assert_eq!(rows(&mut client), (BATCHES - 1) * EVENTS);
    }
}

#[test]
fn other_nodes_know_of_what_was_drained() {
    let (database, mut client) = migrated();
    let redis = TestRedis::start();
    let other = Ingestd::builder().database(&database).redis(&redis).start();
    let mut node = Ingestd::builder().database(&database).redis(&redis).start();
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE").expect("nobody writes events now");
    send(&node, &body("far", Some("far"), 0, 5));
    wait_until("the status is shared", WAIT_MAX, || {
        let reply = support::server::get(&other.url("/v1/batch/far/status"));
        reply.status == 200 && reply.json()["status"] == "queued"
    });
    node.kill9();
    blocking.rollback().expect("the lock goes");
    let settings = [("DATABASE_URL", &*database.url), ("REDIS_URL", &*redis.url())];
    let ended = drain_with(&journal_of(&node), &[], &settings);
    assert_eq!((ended.code, rows(&mut client)), (Some(0), 5), "{ended:?}");
    let status = status_of(&other, "far");
    assert_eq!((&status["status"], &status["inserted"]), (&json!("completed"), &json!(5)), "{status}");
    // Not only from the ledger.
    let shared = redis.entry("far").expect("its entry");
    assert!(shared.contains(r#""status":"completed""#) && shared.contains(r#""inserted":5"#), "{shared}");
}

#[test]
fn a_full_disk_does_not_keep_a_journal_from_being_drained() {
    let (database, mut client) = migrated();
    let Some(disk) = SmallDisk::mount("24m") else {
        support::not_run(
            "journal_drain::a_full_disk_does_not_keep_a_journal_from_being_drained",
            "only root may mount a small disk",
        );
        return;
    };
    let journal = disk.path().join("journal");
    let settings = Ingestd::builder().env("JOURNAL_DIR", journal.display()).env("JOURNAL_MAX_MB", 16);
    let _node = dead_node(settings, [body("full", Some("full"), 0, 20)]);
    let filler = disk.path().join("filler");
    let filled = fs::write(&filler, vec![1; 24 << 20]);
    assert!(filled.is_err(), "the disk is full");
    // A server would want a segment of its usual size.
    let ended = drain(&journal, &database);
    assert_eq!((ended.code, rows(&mut client)), (Some(0), 20), "{ended:?}");
}
