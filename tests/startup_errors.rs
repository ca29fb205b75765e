//! Promise: a start that cannot work says in one line what to do, with exit code 2 (configuration) or 1 (anything
//! else); a PostgreSQL that is merely away is no such thing.

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::load::{body, wait_until_committed};
use support::postgres::{TestPostgres, connect};
use support::server::{Finished, Ingestd, get, post};
use support::{WAIT_MAX, wait_until};

fn serve(folder: &Path, settings: &[(&str, &str)]) -> Finished {
    let journal = folder.join("journal");
    let defaults = [("LISTEN_ADDR", "127.0.0.1:0"), ("JOURNAL_DIR", journal.to_str().expect("a plain path"))];
    let all: Vec<(&str, &str)> = defaults.into_iter().chain(settings.iter().copied()).collect();
    Ingestd::run_to_exit_in(folder, &["serve"], &all)
}

/// Checks the exit code and that stderr has one error, one line, with all of `parts`; log lines may precede it.
fn assert_says(finished: &Finished, code: i32, parts: &[&str]) {
    let Finished { stdout, stderr, .. } = finished;
    assert_eq!(finished.code, Some(code), "{stdout}{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("ingestd: ")).collect();
    assert_eq!(errors.len(), 1, "one line: {stderr}");
    assert_eq!(stderr.lines().last(), Some(errors[0]), "the error is the last word: {stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is missing in: {}", errors[0]);
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_port_in_use() {
    let (folder, taken) = (support::folder(), TcpListener::bind("127.0.0.1:0").expect("a port"));
    let address = taken.local_addr().expect("it is bound").to_string();
    let database = support::postgres::shared().create_database();
    let finished = serve(folder.path(), &[("LISTEN_ADDR", &address), ("DATABASE_URL", &database.url)]);
    assert_says(&finished, 1, &[&address, "in use", "LISTEN_ADDR"]);
}

#[test]
fn the_port_of_another_ingestd() {
    let (folder, database) = (support::folder(), support::postgres::shared().create_database());
    let server = Ingestd::builder().database(&database).start();
    let finished = serve(folder.path(), &[("LISTEN_ADDR", server.address()), ("DATABASE_URL", &database.url)]);
    assert_says(&finished, 1, &[server.address(), "in use"]);
}

#[test]
fn a_journal_folder_that_is_a_file() {
    let (folder, database) = (support::folder(), support::postgres::shared().create_database());
    fs::write(folder.path().join("journal"), "not a folder").expect("ours");
    let finished = serve(folder.path(), &[("DATABASE_URL", &database.url)]);
    assert_says(&finished, 1, &["journal", "JOURNAL_DIR"]);
}

#[test]
fn a_journal_folder_below_a_file() {
    let (folder, database) = (support::folder(), support::postgres::shared().create_database());
    fs::write(folder.path().join("file"), "not a folder").expect("ours");
    let below = folder.path().join("file/journal");
    let below = below.to_str().expect("a plain path");
    let finished = serve(folder.path(), &[("DATABASE_URL", &database.url), ("JOURNAL_DIR", below)]);
    assert_says(&finished, 1, &[below, "JOURNAL_DIR"]);
}

#[test]
fn a_journal_folder_that_may_not_be_written() {
    let (folder, database) = (support::folder(), support::postgres::shared().create_database());
    let journal = folder.path().join("journal");
    fs::create_dir(&journal).expect("ours");
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o555)).expect("ours");
    let path = journal.to_str().expect("a plain path");
    let settings = [("DATABASE_URL", &*database.url), ("JOURNAL_DIR", path), ("LISTEN_ADDR", "127.0.0.1:0")];
    let finished = Ingestd::run_to_exit_unprivileged(folder.path(), &["serve"], &settings);
    assert_says(&finished, 1, &["journal", "writable", "JOURNAL_DIR"]);
}

#[test]
fn a_wrong_password() {
    let (folder, database) = (support::folder(), support::postgres::shared().create_database());
    let url = database.url.replace(support::postgres::PASSWORD, "wrong-secret");
    let finished = serve(folder.path(), &[("DATABASE_URL", &url)]);
    assert_says(&finished, 2, &["password", "DATABASE_URL"]);
    assert!(!finished.stderr.contains("wrong-secret"), "a password is never shown: {}", finished.stderr);
}

#[test]
fn an_unknown_database() {
    let folder = support::folder();
    let finished = serve(folder.path(), &[("DATABASE_URL", &support::postgres::shared().url("nowhere"))]);
    assert_says(&finished, 2, &["nowhere", "DATABASE_URL"]);
}

#[test]
fn a_database_url_without_host() {
    let folder = support::folder();
    let finished = serve(folder.path(), &[("DATABASE_URL", "postgresql:///events")]);
    assert_says(&finished, 2, &["DATABASE_URL", "host"]);
}

#[test]
fn an_empty_database_url() {
    let folder = support::folder();
    assert_says(&serve(folder.path(), &[("DATABASE_URL", "")]), 2, &["DATABASE_URL", "empty"]);
}

#[test]
fn an_unknown_key_in_the_file() {
    let folder = support::folder();
    let file = folder.path().join("ingestd.toml");
    fs::write(&file, "batch_sise = 10\n").expect("ours");
    let finished = Ingestd::run_to_exit(&["serve", "--config", file.to_str().expect("a plain path")], &[]);
    assert_says(&finished, 2, &["batch_sise", "batch_size"]);
}

#[test]
fn a_value_out_of_range() {
    let folder = support::folder();
    assert_says(&serve(folder.path(), &[("JOURNAL_MAX_MB", "1")]), 2, &["JOURNAL_MAX_MB=1", "4"]);
    assert_says(&serve(folder.path(), &[("ACK", "maybe")]), 2, &["ACK=maybe", "journal"]);
}

#[test]
fn a_postgresql_that_is_away_at_the_start_is_waited_for() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    postgres.stop();
    let server = Ingestd::builder().database(&database).start();
    let health = get(&server.url("/v1/health"));
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("degraded")), "{}", health.text());
    for tag in ["one", "two"] {
        let reply = post(&server.url("/v1/ingest/batch"), &[], body(tag, Some(tag), 0, 100).as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    postgres.start();
    wait_until_committed(&server, WAIT_MAX);
    let mut client = connect(&database.url);
    assert_eq!(
        client.query_one("SELECT count(*) FROM events", &[]).expect("the schema was made").get::<_, i64>(0),
        200
    );
    wait_until("all is well", WAIT_MAX, || get(&server.url("/v1/health")).json()["status"] == "healthy");
}
