//! Promise: a segment that keeps the journal from opening can be set aside, and nothing that was acknowledged is lost.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use postgres::Client;
use support::WAIT_MAX;
use support::load::{killed_with_backlog, wait_until_committed};
use support::postgres::{TestDatabase, TestPostgres, connect};
use support::server::{Finished, Ingestd, get, post};

const BATCHES: usize = 5;
const EVENTS: u64 = 20;

/// A server that was killed with a backlog which only its journal has, and PostgreSQL.
fn killed() -> (TestPostgres, TestDatabase, Ingestd) {
    let (mut postgres, database, server) = killed_with_backlog(BATCHES, EVENTS);
    postgres.start();
    (postgres, database, server)
}

fn segments(journal: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(journal).expect("the journal").flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "journal")).collect();
    found.sort();
    found
}

fn number_of(segment: &Path) -> u64 {
    segment.file_stem().and_then(|stem| stem.to_str()).expect("a name").parse().expect("a number")
}

fn set_aside(journal: &Path, segment: u64) -> Finished {
    let journal = journal.to_str().expect("a plain path");
    Ingestd::run_to_exit(&["journal", "set-aside", "--dir", journal, "--segment", &segment.to_string()], &[])
}

/// What a start says that does not come about.
fn refused_start(journal: &Path, database: &TestDatabase) -> String {
    let journal = journal.to_str().expect("a plain path");
    let settings = [("JOURNAL_DIR", journal), ("DATABASE_URL", &*database.url), ("LISTEN_ADDR", "127.0.0.1:0")];
    let finished = Ingestd::run_to_exit(&["serve"], &settings);
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    finished.stderr
}

fn assert_all_there_once(client: &mut Client) {
    let counts = "SELECT count(*), count(DISTINCT event_id), count(DISTINCT batch_id) FROM events";
    let row = client.query_one(counts, &[]).expect("counts");
    let all = (BATCHES as u64 * EVENTS).cast_signed();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (all, all, BATCHES as i64));
}

#[test]
fn batches_of_a_segment_that_this_version_cannot_open_are_saved_and_can_be_sent_again() {
    let (_postgres, database, mut server) = killed();
    let journal = server.folder().join("journal");
    let segment = segments(&journal).remove(0);
    // A newer version's header: the checksum is right.
    let mut bytes = fs::read(&segment).expect("ours");
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&segment, bytes).expect("ours");
    let said = refused_start(&journal, &database);
    assert!(said.contains("format version 2") && said.contains(segment.to_str().expect("a plain path")), "{said}");

    let done = set_aside(&journal, number_of(&segment));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("saved 5 batches, 100 events"), "{}", done.stdout);
    assert!(!segment.exists());
    server.restart();
    assert_eq!(
        get(&server.url("/v1/health")).json()["checks"]["journal"]["status"],
        "ok",
        "its absence is accounted for"
    );
    let aside = journal.join("set-aside");
    let saved = fs::read_dir(&aside).expect("the folder").flatten().map(|entry| entry.path());
    let saved = saved.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "ndjson")).expect("saved");
    for round in 0..2 {
        for line in fs::read_to_string(&saved).expect("text").lines() {
            let reply = post(&server.url("/v1/ingest/batch"), &[("Content-Type", "application/json")], line.as_bytes());
            assert_eq!(reply.status, if round == 0 { 202 } else { 200 }, "{}", reply.text());
        }
        wait_until_committed(&server, WAIT_MAX);
    }
    assert_all_there_once(&mut connect(&database.url));
}

#[test]
fn a_copied_segment_is_set_aside_without_a_loss() {
    let (_postgres, database, mut server) = killed();
    let journal = server.folder().join("journal");
    let segment = segments(&journal).remove(0);
    let copy = number_of(&segment) + 7;
    fs::copy(&segment, journal.join(format!("{copy:020}.journal"))).expect("ours");
    let said = refused_start(&journal, &database);
    assert!(said.contains("it was renamed or copied"), "{said}");
    let done = set_aside(&journal, copy);
    assert!(done.stdout.contains("nothing to save"), "{}{}", done.stdout, done.stderr);
    server.restart();
    wait_until_committed(&server, WAIT_MAX);
    assert_all_there_once(&mut connect(&database.url));
}

#[test]
fn a_segment_that_is_not_there_and_a_journal_in_use_are_told() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let journal = server.folder().join("journal");
    let done = set_aside(&journal, 1);
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("in use (held by PID"), "{}", done.stderr);
    drop(server);
    let folder = support::folder();
    let done = set_aside(folder.path(), 1);
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("00000000000000000001.journal"), "{}", done.stderr);
}
