//! Promise: settings of the role or the database change nothing: formats of times and of text, language, search path, limits of time.
//! The same on every version of PostgreSQL that this machine has.

mod support;

use std::path::{Path, PathBuf};

use ingestd::pg::partitions::Month;
use ingestd::sys::clock::wall_now;
use postgres::Client;
use serde_json::json;
use support::contract::{batch, batch_at, send, status_of};
use support::postgres::{TestDatabase, TestPostgres, bin_dir};
use support::server::{Finished, Ingestd, get};

/// Settings of a role, by what they are about. Each of them has broken a program that reads what PostgreSQL writes.
const SETTINGS: [(&str, &[(&str, &str)]); 7] = [
    // IST is India's time here, and Israel's where it is read.
    ("a zone whose name is another one's", &[("TimeZone", "'Asia/Kolkata'"), ("DateStyle", "'SQL, DMY'")]),
    ("CST is China's time", &[("TimeZone", "'Asia/Shanghai'"), ("DateStyle", "'Postgres, MDY'")]),
    ("half an hour, and summer time", &[("TimeZone", "'Australia/Lord_Howe'"), ("DateStyle", "'German'")]),
    (
        "formats of values",
        &[
            ("IntervalStyle", "'iso_8601'"),
            ("bytea_output", "'escape'"),
            ("extra_float_digits", "-15"),
            ("quote_all_identifiers", "on"),
            ("lc_numeric", "'C'"),
        ],
    ),
    ("backslashes", &[("standard_conforming_strings", "off"), ("escape_string_warning", "on"), ("array_nulls", "off")]),
    ("a search path with more in it", &[("search_path", "nowhere, \"$user\", public, pg_catalog")]),
    (
        "limits",
        &[
            ("default_transaction_isolation", "'serializable'"),
            ("default_transaction_read_only", "off"),
            ("row_security", "on"),
            ("client_min_messages", "'debug1'"),
        ],
    ),
];

/// Programs of every version that is here, the one of all tests first.
fn versions() -> Vec<PathBuf> {
    let mut found = vec![bin_dir()];
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let bin = entry.path().join("bin");
        if bin.join("initdb").exists() && bin.join("postgres").exists() && !found.contains(&bin) {
            found.push(bin);
        }
    }
    found
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT ({query})::bigint"), &[]).expect("a number").get(0)
}

fn run(database: &TestDatabase, arguments: &[&str]) -> Finished {
    let done = Ingestd::run_to_exit(arguments, &[("DATABASE_URL", &database.url)]);
    assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
    done
}

/// A database whose sessions have `settings`.
fn database_with(postgres: &TestPostgres, settings: &[(&str, &str)]) -> TestDatabase {
    let database = postgres.create_database();
    let mut client = database.connect();
    for (name, value) in settings {
        client.batch_execute(&format!("ALTER DATABASE {} SET {name} = {value}", database.name)).expect("a setting");
    }
    // Messages in another language, where PostgreSQL has one.
    let _ = client.batch_execute(&format!("ALTER DATABASE {} SET lc_messages = 'de_DE.UTF-8'", database.name));
    database
}

/// What `partitions list` says of each month, first instant and end.
fn listed(database: &TestDatabase) -> Vec<(String, String)> {
    let lines = run(database, &["partitions", "list"]).stdout;
    let words = |line: &str| line.split_whitespace().skip(1).take(2).map(str::to_owned).collect::<Vec<_>>();
    lines.lines().skip(1).map(words).map(|words| (words[0].clone(), words[1].clone())).collect()
}

fn check(postgres: &TestPostgres, what: &str, settings: &[(&str, &str)]) {
    let database = database_with(postgres, settings);
    let mut server = Ingestd::builder().database(&database).start();
    let this = Month::of(wall_now());
    let old = this.plus(-7);
    let commit = |server: &Ingestd, batch: &serde_json::Value| {
        let reply = send(server, "ack=commit", batch.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        let answer = reply.json();
        ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_u64().expect("a count"))
    };
    // A month that is made on demand, the last microsecond of it, and the first of the next one.
    let last = format!("{old}-28T23:59:59.999999Z");
    let timed = batch_at("timed", 3, &last);
    let mut again = timed.clone();
    again["batch_id"] = json!("again");
    assert_eq!([commit(&server, &timed), commit(&server, &again)], [[3, 0, 0], [0, 3, 0]], "{what}");
    let mut client = database.connect();
    client.batch_execute("ALTER TABLE events ADD CONSTRAINT no CHECK (event_id <> 'bad-1')").expect("a constraint");
    assert_eq!(commit(&server, &batch("bad", 3)), [2, 0, 1], "{what}");
    client.batch_execute("ALTER TABLE events DROP CONSTRAINT no").expect("dropped");
    assert_eq!(run(&database, &["dead-letter", "replay"]).stdout, "replayed 1; 0 were already present\n", "{what}");
    let exported = run(&database, &["dead-letter", "list"]).stdout;
    assert!(exported.lines().count() <= 2, "{what}: {exported}");

    let months: Vec<Month> = std::iter::once(old).chain((-1..=3).map(|ahead| this.plus(ahead))).collect();
    let expected: Vec<(String, String)> = months
        .iter()
        .map(|month| (format!("{month}-01T00:00:00Z"), format!("{}-01T00:00:00Z", month.plus(1))))
        .collect();
    assert_eq!(listed(&database), expected, "{what}");
    server.restart();
    for told in ["is not a partition of events", "which is not its whole month", "ERROR", "WARN"] {
        assert!(!server.log().contains(told), "{what}: {}", server.log());
    }
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "healthy", "{what}");
    assert_eq!(status_of(&server, "timed")["inserted"], 3, "{what}");
    run(&database, &["migrate"]);
    run(&database, &["check-config", "--connect"]);
    let cleanup = run(&database, &["partitions", "cleanup", "--older-than", "3months"]).stdout;
    assert!(cleanup.contains(&old.partition_name()), "{what}: {cleanup}");
    assert_eq!(number(&mut client, "SELECT count(*) FROM events"), 3, "{what}: the other months are there");
    assert_eq!(listed(&database), expected[1..], "{what}");
}

fn check_all(bin_dir: &Path) {
    let postgres = TestPostgres::start_private_of(bin_dir, &[]);
    for (what, settings) in SETTINGS {
        check(&postgres, what, settings);
    }
}

#[test]
fn whatever_a_role_sets_partitions_are_whole_months_and_batches_land() {
    let versions = versions();
    for bin_dir in &versions {
        support::announce(&format!("settings of roles: {}", bin_dir.display()));
        check_all(bin_dir);
    }
    if versions.len() == 1 {
        support::not_run(
            "role_settings: on a version before 18, which writes bounds as the role says",
            "there is one version of PostgreSQL here",
        );
    }
}

#[test]
fn a_role_that_does_not_own_the_tables_may_set_what_it_likes_too() {
    for bin_dir in versions() {
        let postgres = TestPostgres::start_private_of(&bin_dir, &[]);
        for (what, settings) in SETTINGS {
            let database = database_with(&postgres, settings);
            let mut owner = database.connect();
            ingestd::pg::migrate::migrate(&mut owner).expect("migrated");
            let old = Month::of(wall_now()).plus(-5);
            ingestd::pg::partitions::ensure(&mut owner, &[old]).expect("made");
            owner
                .batch_execute(&format!(
                    "SET search_path = public; CREATE ROLE few_{0}; GRANT EXECUTE ON FUNCTION ingestd_make_partition(integer, integer),
                         ingestd_drop_partition(regclass) TO few_{0}; SET ROLE few_{0}",
                    database.name
                ))
                .expect("a role");
            let next = Month::of(wall_now()).plus(9);
            let make = format!("SELECT public.ingestd_make_partition({}, {})", next.year(), next.month());
            owner.batch_execute(&make).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let drop = format!("SELECT public.ingestd_drop_partition('{}')", old.partition_name());
            owner.batch_execute(&drop).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            owner
                .batch_execute(&format!("RESET ROLE; DROP OWNED BY few_{0}; DROP ROLE few_{0}", database.name))
                .expect("gone");
            let there = ingestd::pg::partitions::list(&mut database.connect()).expect("listed");
            assert_eq!(there.len(), 1, "{what}");
            assert_eq!((there[0].start, there[0].end), (Some(next.start()), Some(next.end())), "{what}");
        }
    }
}
