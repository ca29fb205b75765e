//! Promise: a batch whose bytes do not come back from the journal as they were written is asked for again a bounded number
//! of times, and only then left to the next start; the others land meanwhile, and status and health say what is wrong.

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use serde_json::Value;
use support::load::{killed_with_backlog, wait_until_committed};
use support::postgres::{TestDatabase, TestPostgres, connect};
use support::server::{Ingestd, get};
use support::{WAIT_MAX, wait_until};

const BATCHES: usize = 5;
const EVENTS: u64 = 20;
/// The batch whose bytes are changed.
const VICTIM: &str = "b2";

/// A bit of the journal that is not as it was written.
struct Flipped {
    file: File,
    offset: u64,
}

impl Flipped {
    fn flip(&self) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, self.offset).expect("it is there");
        byte[0] ^= 1;
        self.file.write_all_at(&byte, self.offset).expect("the file is ours");
    }

    /// In the rows of [`VICTIM`], in the journal of `server`.
    fn begin(server: &Ingestd) -> Self {
        let part = format!("{VICTIM}/7").into_bytes();
        let folder = server.folder().join("journal");
        let segments = fs::read_dir(&folder).expect("the journal").map(|entry| entry.expect("a file").path());
        let found = segments.filter(|path| path.extension().is_some_and(|kind| kind == "journal")).find_map(|path| {
            let bytes = fs::read(&path).expect("a segment");
            Some((path, bytes.windows(part.len()).position(|window| window == part)?))
        });
        let (path, offset) = found.expect("the batch is in the journal");
        let file = OpenOptions::new().read(true).write(true).open(path).expect("the file is ours");
        let flipped = Self { file, offset: offset as u64 };
        flipped.flip();
        flipped
    }
}

/// A server with a backlog that only its journal has: nothing of it is in memory. PostgreSQL is away.
fn with_backlog() -> (TestPostgres, TestDatabase, Ingestd) {
    let (postgres, database, mut server) = killed_with_backlog(BATCHES, EVENTS);
    server.restart();
    (postgres, database, server)
}

fn status(server: &Ingestd, id: &str) -> Value {
    get(&server.url(&format!("/v1/batch/{id}/status"))).json()
}

fn wait_for_the_others(server: &Ingestd) {
    for id in (0..BATCHES).map(|number| format!("b{number}")).filter(|id| id != VICTIM) {
        wait_until(&format!("{id} has landed"), WAIT_MAX, || status(server, &id)["status"] == "completed");
    }
}

fn assert_all_there_once(database: &TestDatabase) {
    let counts = "SELECT count(*), count(DISTINCT event_id) FROM events";
    let row = connect(&database.url).query_one(counts, &[]).expect("counts");
    let expected = BATCHES as i64 * EVENTS as i64;
    assert_eq!((row.get(0), row.get(1)), (expected, expected));
}

#[test]
fn a_mismatch_that_passes_costs_a_retry_and_nothing_else() {
    let (mut postgres, database, server) = with_backlog();
    let flipped = Flipped::begin(&server);
    postgres.start();
    wait_for_the_others(&server);
    wait_until("status says why the batch waits", WAIT_MAX, || {
        status(&server, VICTIM)["reason"].as_str().is_some_and(|reason| reason.contains("is damaged"))
    });
    assert_eq!(status(&server, VICTIM)["status"], "queued");
    let check = get(&server.url("/v1/health")).json();
    assert_eq!(check["checks"]["journal"]["status"], "ok", "nothing is given up yet: {check}");
    assert_eq!(check["checks"]["database"]["stuck_batches"], 1, "{check}");
    flipped.flip();
    wait_until_committed(&server, WAIT_MAX);
    let landed = status(&server, VICTIM);
    assert_eq!((&landed["status"], &landed["reason"]), (&"completed".into(), &Value::Null), "{landed}");
    assert!(!server.log().contains("cannot read an accepted batch back"), "{}", server.log());
    assert_all_there_once(&database);
}

#[test]
fn a_mismatch_that_stays_is_told_and_left_to_the_next_start() {
    let (mut postgres, database, mut server) = with_backlog();
    let flipped = Flipped::begin(&server);
    postgres.start();
    wait_for_the_others(&server);
    let journal = |server: &Ingestd| get(&server.url("/v1/health")).json()["checks"]["journal"].clone();
    wait_until("health tells the damage", WAIT_MAX, || journal(&server)["status"] == "failing");
    let check = journal(&server);
    assert!(check["reason"].as_str().is_some_and(|reason| reason.contains(VICTIM)), "{check}");
    server.wait_for_log("cannot read an accepted batch back from the journal", WAIT_MAX);
    let told = status(&server, VICTIM);
    assert_eq!(told["status"], "queued");
    assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("could not be read back")), "{told}");

    // The device gives the right bytes again.
    server.kill9();
    flipped.flip();
    server.restart();
    wait_until_committed(&server, WAIT_MAX);
    assert_all_there_once(&database);
}
