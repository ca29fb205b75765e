//! Promise: an operator who will not wait sees which batches are stuck and why, has one tried again at once, or gives it up
//! (docs/waiting-batches.md).

mod support;

use std::fs;
use std::time::{Duration, Instant};

use ingestd::limits::POSTPONE_MAX;
use serde_json::{Value, json};

use support::contract::{assert_problem, batch, batch_at, ingest_url, rows_of, status_of, wait_until_completed};
use support::postgres::{TestDatabase, connect, shared};
use support::server::{Finished, Ingestd, Reply, get, get_with, post, post_json};
use support::{WAIT_MAX, wait_until};

/// What is in the way of March 2024, and what a batch of that month is refused with.
const IN_THE_WAY: &str = "CREATE TABLE events_2024_03 (elsewhere int)";
const REASON: &str = "is not a partition of events";
/// So often a batch has failed that its next pause is longer than [`LONG`].
const ATTEMPTS: u64 = 10;
/// What has ended by then has not waited until it was due.
const LONG: Duration = Duration::from_secs(POSTPONE_MAX.as_secs() / 2);

struct Site {
    database: TestDatabase,
    server: Ingestd,
}

impl Site {
    fn start() -> Self {
        let database = shared().create_database();
        let server = Ingestd::builder().database(&database).start();
        let site = Self { database, server };
        assert_eq!(post_json(&ingest_url(&site.server, "ack=commit"), &batch("first", 1)).status, 200);
        site
    }

    fn execute(&self, statement: &str) {
        self.database.connect().batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// A batch of three events that is stuck.
    fn stuck(&self, id: &str) {
        let body = batch_at(id, 3, "2024-03-03T03:03:03Z");
        assert_eq!(post_json(&ingest_url(&self.server, ""), &body).status, 202);
        wait_until("it is known as stuck", WAIT_MAX, || self.listed(id).is_some());
    }

    /// What the list of stuck batches says of `id`.
    fn listed(&self, id: &str) -> Option<Value> {
        let list = get(&self.server.url("/v1/batches?stuck=true")).json();
        let mut batches = list["batches"].as_array().expect("batches").iter();
        batches.find(|batch| batch["batch_id"] == id).cloned()
    }

    /// Waits until `id` has failed so often that it is not tried for a long while; retries hurry that.
    fn wait_for_a_long_pause(&self, id: &str) {
        wait_until("it has failed often", WAIT_MAX, || {
            let Some(listed) = self.listed(id) else { return false };
            let attempts = listed["stuck"]["attempts"].as_u64().expect("a number");
            if attempts < ATTEMPTS {
                self.wish(id, "retry", &[]);
            }
            // A request that came during an attempt has another one follow, so the number alone says nothing.
            let next = listed["stuck"]["next_attempt_at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
            next.is_some_and(|next| next.duration_since(jiff::Timestamp::now()).unsigned_abs() > LONG)
        });
    }

    fn wish(&self, id: &str, word: &str, headers: &[(&str, &str)]) -> Reply {
        post(&self.server.url(&format!("/v1/batch/{id}/{word}")), headers, b"")
    }

    fn command(&self, arguments: &[&str]) -> Finished {
        Ingestd::run_to_exit(&[&["batches"], arguments, &["--listen-addr", self.server.address()]].concat(), &[])
    }
}

#[test]
fn a_stuck_batch_is_listed_with_its_reason() {
    let site = Site::start();
    for arguments in [&["list"][..], &["list", "--stuck"], &["list", "--json"]] {
        let none = site.command(arguments);
        assert_eq!((none.code, &*none.stderr), (Some(0), ""), "{arguments:?}");
        assert_eq!(none.stdout.contains("no batch is"), !arguments.contains(&"--json"), "{}", none.stdout);
    }
    site.execute(IN_THE_WAY);
    site.stuck("late");
    wait_until("it has failed twice", WAIT_MAX, || {
        site.listed("late").is_some_and(|listed| listed["stuck"]["attempts"].as_u64() >= Some(2))
    });
    let listed = site.listed("late").expect("it is stuck");
    assert_eq!((&listed["owner"], &listed["events"], &listed["priority"]), (&json!(""), &json!(3), &json!(0)));
    assert_eq!(listed["stuck"]["given_up"], false);
    assert!(listed["stuck"]["reason"].as_str().is_some_and(|reason| reason.contains(REASON)), "{listed}");
    assert!(listed["stuck"]["since"].as_str() >= listed["received_at"].as_str(), "{listed}");
    let shown = site.command(&["list", "--stuck"]);
    assert_eq!((shown.code, &*shown.stderr), (Some(0), ""));
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("ID") && lines[1].starts_with("late "), "{}", shown.stdout);
    assert!(lines[1].contains(REASON), "{}", shown.stdout);
    let as_json = site.command(&["list", "--json"]);
    let line: Value = serde_json::from_str(as_json.stdout.trim()).expect("one object");
    assert_eq!(line["batch_id"], "late");
    site.stuck("later");
    let short = site.command(&["list", "--limit", "1"]);
    assert!(short.stdout.contains("late ") && !short.stdout.contains("later"), "the oldest first: {}", short.stdout);
    assert!(short.stderr.contains("the first 1 of 2"), "{}", short.stderr);
}

#[test]
fn a_retry_lands_a_batch_long_before_it_is_due() {
    let site = Site::start();
    site.execute(IN_THE_WAY);
    site.stuck("late");
    site.wait_for_a_long_pause("late");
    let begun = Instant::now();
    site.execute("DROP TABLE events_2024_03");
    let retried = site.command(&["retry", "late"]);
    assert_eq!((retried.code, &*retried.stderr), (Some(0), ""), "{}", retried.stdout);
    assert!(
        retried.stdout.contains("late will be retried now") && retried.stdout.contains(REASON),
        "{}",
        retried.stdout
    );
    wait_until_completed(&site.server, "late");
    assert!(begun.elapsed() < LONG, "it would have landed by itself: {:?}", begun.elapsed());
    assert_eq!(rows_of(&site.database, "late"), 3);
    assert!(site.server.log().contains("an operator asked to retry the batch"));
}

#[test]
fn a_buried_batch_ends_with_its_reason_and_its_events_come_back_by_replay() {
    let site = Site::start();
    site.execute(IN_THE_WAY);
    site.stuck("late");
    site.wait_for_a_long_pause("late");
    let begun = Instant::now();
    let buried = site.command(&["bury", "late"]);
    assert_eq!(buried.code, Some(0), "{}", buried.stderr);
    assert!(buried.stdout.contains("its 3 events will become dead letters"), "{}", buried.stdout);
    assert!(buried.stderr.contains("ingestd dead-letter replay"), "{}", buried.stderr);
    wait_until("it has ended", WAIT_MAX, || status_of(&site.server, "late")["status"] == "failed");
    assert!(begun.elapsed() < LONG, "it would not have been tried by itself yet: {:?}", begun.elapsed());
    assert_eq!(status_of(&site.server, "late")["dead_lettered"], 3);
    assert!(site.listed("late").is_none(), "it waits no more");
    let mut client = site.database.connect();
    let letters = client
        .query("SELECT sqlstate, message FROM dead_letter_events WHERE batch_id = 'late'", &[])
        .expect("dead letters");
    assert_eq!(letters.len(), 3);
    for letter in &letters {
        let (sqlstate, message): (String, String) = (letter.get(0), letter.get(1));
        assert!(
            message.starts_with("given up by an operator; last refusal: ") && message.contains(REASON),
            "{message}"
        );
        assert_ne!(sqlstate, "02000", "that of the refusal: {message}");
    }
    site.execute("DROP TABLE events_2024_03");
    let replayed = Ingestd::run_to_exit(&["dead-letter", "replay"], &[("DATABASE_URL", &site.database.url)]);
    assert_eq!(replayed.code, Some(0), "{}{}", replayed.stdout, replayed.stderr);
    assert_eq!(rows_of(&site.database, "late"), 3);
    let again = site.command(&["bury", "late"]);
    assert!(again.code == Some(1) && again.stderr.contains("failed and not stuck"), "{}", again.stderr);
}

#[test]
fn a_batch_that_only_waits_is_listed_and_neither_retried_nor_buried() {
    let site = Site::start();
    let mut client = site.database.connect();
    let mut lock = client.transaction().expect("begun");
    lock.batch_execute("LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").expect("locked");
    // Those that a flusher has in hand are not listed; so many do not go into one COPY beside a lock.
    for number in 0..50 {
        let id = format!("good-{number}");
        assert_eq!(post_json(&ingest_url(&site.server, ""), &batch(&id, 1)).status, 202);
    }
    let last = "good-49";
    for word in ["retry", "bury"] {
        let refused = assert_problem(&site.wish(last, word, &[]), 409, "batch_not_stuck");
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("not stuck")), "{refused}");
    }
    let list = get(&site.server.url("/v1/batches?limit=5")).json();
    assert_eq!(list["stuck"], 0, "{list}");
    let told = site.command(&["bury", last]);
    assert!(told.code == Some(1) && told.stderr.contains("not stuck"), "{}", told.stderr);
    lock.rollback().expect("released");
    for number in 0..50 {
        wait_until_completed(&site.server, &format!("good-{number}"));
    }
    for word in ["retry", "bury"] {
        assert_problem(&site.wish("first", word, &[]), 409, "batch_not_stuck");
        assert_problem(&site.wish("nobody-has-this", word, &[]), 404, "batch_unknown");
        assert_problem(&site.wish("no%20id", word, &[]), 404, "batch_unknown");
        assert_eq!(get(&site.server.url(&format!("/v1/batch/first/{word}"))).header("allow"), "POST");
    }
    let count = site.database.connect().query_one("SELECT count(*) FROM dead_letter_events", &[]).expect("a count");
    assert_eq!(count.get::<_, i64>(0), 0);
}

#[test]
fn a_wish_needs_no_postgresql() {
    let site = Site::start();
    site.execute(IN_THE_WAY);
    site.stuck("late");
    let name = &site.database.name;
    let mut admin = connect(&shared().url("postgres"));
    admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).expect("altered");
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    admin.execute(ended, &[name]).expect("ended");
    assert_eq!(site.wish("late", "retry", &[]).status, 202);
    assert_eq!(site.wish("late", "bury", &[]).status, 202);
    assert!(site.listed("late").is_some());
    admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).expect("altered");
    wait_until("it has ended", WAIT_MAX, || status_of(&site.server, "late")["status"] == "failed");
}

#[test]
fn a_web_page_can_neither_retry_nor_bury() {
    let site = Site::start();
    site.execute(IN_THE_WAY);
    site.stuck("late");
    for word in ["retry", "bury"] {
        for origin in ["https://elsewhere.example", "null"] {
            assert_problem(&site.wish("late", word, &[("Origin", origin)]), 403, "cross_site");
        }
    }
    assert_eq!(site.listed("late").expect("still stuck")["stuck"]["given_up"], false);
}

#[test]
fn with_keys_only_an_admin_lists_retries_and_buries() {
    let folder = support::folder();
    let file = folder.path().join("keys.toml");
    let key = |scope: &str| {
        let arguments = ["keys", "new", "--name", scope, "--scope", scope, "--api-keys-file"];
        let done = Ingestd::run_to_exit(&[&arguments[..], &[file.to_str().expect("UTF-8")]].concat(), &[]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stdout.trim().to_owned()
    };
    let [one, other, reader, admin] = ["ingest", "ingest", "ingest,read,metrics", "admin"].map(key);
    let database = shared().create_database();
    let server = Ingestd::builder().database(&database).env("API_KEYS_FILE", file.display()).start();
    let send = |key: &str, body: &Value, query: &str| {
        let headers = [("Content-Type", "application/json"), ("X-API-Key", key)];
        post(&ingest_url(&server, query), &headers, body.to_string().as_bytes())
    };
    assert_eq!(send(&one, &batch("first", 1), "ack=commit").status, 200);
    database.connect().batch_execute(IN_THE_WAY).expect("made");
    for (key, id) in [(&one, "same"), (&other, "same"), (&one, "alone")] {
        let mut body = batch(id, 1);
        body["events"][0]["timestamp"] = json!("2024-03-03T03:03:03Z");
        body["events"][0]["event_id"] = json!(format!("{id} of {key}"));
        assert_eq!(send(key, &body, "").status, 202);
    }
    let list = || get_with(&server.url("/v1/batches?stuck=true"), &[("X-API-Key", &admin)]).json();
    wait_until("all are stuck", WAIT_MAX, || list()["stuck"] == 3);
    let wish = |key: &str, path: &str| post(&server.url(path), &[("X-API-Key", key)], b"");
    assert_eq!(get(&server.url("/v1/batches")).status, 401);
    for key in [&one, &reader] {
        assert_problem(&get_with(&server.url("/v1/batches"), &[("X-API-Key", key)]), 403, "scope_missing");
        for word in ["retry", "bury"] {
            assert_problem(&wish(key, &format!("/v1/batch/alone/{word}")), 403, "scope_missing");
        }
    }
    assert_problem(&wish(&admin, "/v1/batch/same/bury"), 409, "batch_ambiguous");
    assert_eq!(list()["stuck"], 3, "nothing was done");
    // By the command, which is told what is missing.
    let (admin_file, reader_file) = (folder.path().join("admin"), folder.path().join("reader"));
    fs::write(&admin_file, &admin).expect("written");
    fs::write(&reader_file, &reader).expect("written");
    let url = server.url("");
    let command = |arguments: &[&str]| Ingestd::run_to_exit(&[&["batches"], arguments, &["--url", &url]].concat(), &[]);
    let (admin_file, reader_file) = (admin_file.display().to_string(), reader_file.display().to_string());
    for arguments in [&["list"][..], &["list", "--api-key-file", &reader_file]] {
        let refused = command(arguments);
        assert!(refused.code == Some(2) && refused.stderr.contains("scope admin"), "{}", refused.stderr);
    }
    let with_key = |arguments: &[&str]| command(&[arguments, &["--api-key-file", &admin_file]].concat());
    let several = with_key(&["bury", "same"]);
    assert!(several.code == Some(1) && several.stderr.contains("--owner"), "{}", several.stderr);
    let owner = other.split('_').nth(1).expect("a token has an id");
    let buried = with_key(&["bury", "same", "--owner", owner]);
    assert_eq!(buried.code, Some(0), "{}", buried.stderr);
    wait_until("that of the other key has ended", WAIT_MAX, || list()["stuck"] == 2);
    let row = database.connect().query_one("SELECT owner FROM dead_letter_events", &[]).expect("one");
    assert_eq!(row.get::<_, String>(0), owner);
    assert_eq!(with_key(&["bury", "same"]).code, Some(0), "only one is left");
}

#[test]
fn the_command_says_why_it_cannot_ask() {
    let nobody = Ingestd::run_to_exit(&["batches", "list", "--listen-addr", "127.0.0.1:1"], &[]);
    assert!(nobody.code == Some(1) && nobody.stderr.contains("is the server running?"), "{}", nobody.stderr);
    for arguments in [
        &["list", "--listen-addr", "127.0.0.1:0"][..],
        &["list", "--url", "localhost"],
        &["retry", "no id", "--listen-addr", "127.0.0.1:1"],
        &["list", "--limit", "0"],
    ] {
        let wrong = Ingestd::run_to_exit(&[&["batches"], arguments].concat(), &[]);
        assert_eq!(wrong.code, Some(2), "{arguments:?}: {}", wrong.stderr);
    }
}
