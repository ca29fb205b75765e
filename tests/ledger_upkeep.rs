//! Promise: the ledger forgets what is older than `LEDGER_RETENTION_DAYS`, in small steps, and nothing else.

mod support;

use postgres::Client;
use serde_json::json;
use support::server::{Ingestd, post_json};
use support::{WAIT_MAX, wait_until};

fn count(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {query}"), &[]).expect("a count").get(0)
}

/// Rows of the ledger that are `days` old.
fn add_old(client: &mut Client, days: i32, rows: i32) {
    let insert = "INSERT INTO ingest_batches (owner, batch_id, body_digest, priority, events, inserted, duplicates,
                                              dead_lettered, received_at, committed_at, node)
                  SELECT '', 'old-' || $1::int || '-' || n, '\\x00', 0, 1, 1, 0, 0, at, at, 'n'
                  FROM generate_series(1, $2::int) n, (SELECT now() - make_interval(days => $1::int) AS at) t";
    client.execute(insert, &[&days, &rows]).expect("rows");
}

#[test]
fn old_batches_are_forgotten_and_young_ones_are_not() {
    let database = support::postgres::shared().create_database();
    drop(Ingestd::builder().database(&database).start());
    let mut client = database.connect();
    add_old(&mut client, 31, 45_000);
    add_old(&mut client, 29, 100);
    let server = Ingestd::builder().database(&database).env("LEDGER_RETENTION_DAYS", 30).start();
    let batch = json!({"batch_id": "young", "events": [{"event_id": "e", "service_name": "s", "event_type": "t", "payload": {}}]});
    let send = || post_json(&server.url("/v1/ingest/batch?ack=commit"), &batch);
    assert_eq!(send().status, 200);
    wait_until("old rows go", WAIT_MAX, || count(&mut client, "ingest_batches WHERE batch_id LIKE 'old-31-%'") == 0);
    assert_eq!(count(&mut client, "ingest_batches"), 101);
    assert!(server.log().matches("expired old ledger entries").count() >= 3, "in steps: {}", server.log());
    assert_eq!(send().json()["duplicate"], true);
}

#[test]
fn without_the_setting_the_ledger_forgets_nothing() {
    let database = support::postgres::shared().create_database();
    drop(Ingestd::builder().database(&database).start());
    let mut client = database.connect();
    add_old(&mut client, 4000, 10);
    let server = Ingestd::builder().database(&database).start();
    support::contract::wait_for_upkeep(&server, &database);
    assert_eq!(count(&mut client, "ingest_batches"), 10);
}

#[test]
fn a_block_that_is_replayed_after_its_ledger_row_was_forgotten_lands_once() {
    let mut postgres = support::postgres::TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let mut server = Ingestd::builder().database(&database).start();
    let mut client = support::postgres::connect(&database.url);
    let gate = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;
                CREATE TRIGGER gate BEFORE INSERT ON ingest_batches FOR EACH STATEMENT EXECUTE FUNCTION gate()";
    // The batch waits in the journal, as it does in that of a node that is down.
    client.batch_execute(gate).expect("a gate");
    client.batch_execute("SELECT pg_advisory_lock(7)").expect("locked");
    let body = support::load::body("kept", Some("kept"), 0, 50);
    assert_eq!(support::server::post(&server.url("/v1/ingest/batch"), &[], body.as_bytes()).status, 202);
    server.kill9();
    let journal = server.folder().join("journal");
    let copy = server.folder().join("copy");
    copy_folder(&journal, &copy);
    client.batch_execute("SELECT pg_advisory_unlock(7)").expect("it was locked");
    server.restart();
    support::load::wait_until_committed(&server, WAIT_MAX);
    server.kill9();
    client.batch_execute("DELETE FROM ingest_batches").expect("forgotten");
    std::fs::remove_dir_all(&journal).and_then(|()| std::fs::rename(&copy, &journal)).expect("ours");
    server.restart();
    support::load::wait_until_committed(&server, WAIT_MAX);
    assert_eq!(count(&mut client, "events"), 50, "each event once");
    assert_eq!(count(&mut client, "ingest_batches WHERE inserted = 0 AND duplicates = 50"), 1);
    postgres.stop();
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).expect("ours");
    for entry in std::fs::read_dir(from).expect("it is there").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("ours");
    }
}
