//! Promise: a connection that is dead although TCP says otherwise is given up within seconds, and slow work is not.

mod support;

use std::time::Duration;

use postgres::Client;
use serde_json::json;

use support::contract::{accept, batch, event, rows_of, send, status_of, wait_until_completed};
use support::load::{Load, LoadOptions, seed, wait_until_committed};
use support::postgres::TestDatabase;
use support::proxy::{Mode, Proxy};
use support::server::{Builder, Ingestd, get};
use support::{WAIT_MAX, wait_until};

/// Longer than the watch looks on.
const SLOW: Duration = Duration::from_secs(14);
/// What the watch says.
const CLOSING: &str = "closing a dead connection";
const TERMINATING: &str = "terminating a PostgreSQL session";

fn behind(proxy: &Proxy, database: &TestDatabase) -> Builder {
    Ingestd::builder().database(database).env("DATABASE_URL", database.url_through(proxy.port()))
}

#[test]
fn connections_whose_other_ends_are_lost_are_given_up_with_what_they_hold_in_postgresql() {
    let seed = seed("connections_whose_other_ends_are_lost");
    let postgres = support::postgres::shared();
    let (database, proxy) = (postgres.create_database(), Proxy::start(postgres.port()));
    let server = behind(&proxy, &database).start();
    let options = LoadOptions { clients: 3, events: 60_000, seed, priority_max: 10, pause: Duration::from_millis(2) };
    let load = Load::start(&server, options);
    load.wait_for_acked(20_000, WAIT_MAX);
    proxy.freeze();
    let outcome = load.finish();
    wait_until_committed(&server, WAIT_MAX);
    outcome.assert_exactly_once(&mut database.connect());
    assert!(server.log().contains(CLOSING), "{}", server.log());
    wait_until("all is well", WAIT_MAX, || {
        get(&server.url("/v1/health")).json()["checks"]["database"]["status"] == "ok"
    });
}

#[test]
fn connections_that_were_accepted_and_never_answered_do_not_exhaust_the_pool() {
    const POOL: u64 = 2;
    let postgres = support::postgres::shared();
    let (database, proxy) = (postgres.create_database(), Proxy::start(postgres.port()));
    let builder = behind(&proxy, &database);
    let server = builder.env("DB_POOL_MIN_SIZE", POOL).env("DB_POOL_MAX_SIZE", POOL).start();
    assert_eq!(send(&server, "ack=commit", batch("before", 1).to_string().as_bytes()).status, 200);
    proxy.set_mode(Mode::Stall);
    let before = proxy.connections();
    proxy.cut();
    accept(&server, "", &batch("meanwhile", 1));
    // The whole pool connects again, and waits for greetings that never come, even when all is well for others.
    wait_until("the pool connects again", WAIT_MAX, || proxy.connections() >= before + POOL);
    proxy.freeze();
    proxy.set_mode(Mode::Forward);
    wait_until("the batch lands", WAIT_MAX, || rows_of(&database, "meanwhile") == 1);
}

#[test]
fn a_copy_that_takes_long_is_waited_for() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let slow = format!(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({}); RETURN NULL; END $$;
         CREATE TRIGGER slow AFTER INSERT ON ingest_batches FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        SLOW.as_secs()
    );
    database.connect().batch_execute(&slow).expect("a trigger");
    accept(&server, "", &batch("slow", 3));
    assert_eq!(wait_until_completed(&server, "slow")["inserted"], 3);
    assert!(!server.log().contains(CLOSING) && !server.log().contains(TERMINATING), "{}", server.log());
}

/// A transaction that holds the ledger row of `batch_id`, and then does nothing.
fn hold_row(database: &TestDatabase, application: &str, batch_id: &str) -> Client {
    let mut holder = database.connect();
    let insert = "INSERT INTO ingest_batches (owner, batch_id, body_digest, priority, events, inserted, duplicates,
                                              dead_lettered, received_at, node)
                  VALUES ('', '{batch_id}', '', 0, 1, 1, 0, 0, now(), 'gone')";
    let insert = insert.replace("{batch_id}", batch_id);
    holder.batch_execute(&format!("SET application_name = '{application}'; BEGIN; {insert}")).expect("a row");
    holder
}

#[test]
fn what_a_node_that_lost_its_power_left_in_the_way_is_terminated() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut dead_node = hold_row(&database, "ingestd", "shared");
    accept(&server, "", &json!({ "batch_id": "shared", "events": [event("e")] }));
    assert_eq!(wait_until_completed(&server, "shared")["inserted"], 1);
    assert!(dead_node.batch_execute("COMMIT").is_err(), "its session is gone");
    assert!(server.log().contains(TERMINATING), "{}", server.log());
}

#[test]
fn a_locked_table_is_told_with_who_locks_it_and_waited_for() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut admin = database.connect();
    admin.batch_execute("SET application_name = 'psql'; BEGIN; LOCK TABLE events").expect("a lock");
    accept(&server, "", &batch("locked", 2));
    let check = || get(&server.url("/v1/health")).json()["checks"]["database"].clone();
    wait_until("health tells who", WAIT_MAX, || {
        check()["reason"].as_str().is_some_and(|reason| reason.contains("lock") && reason.contains("psql"))
    });
    assert_eq!(get(&server.url("/v1/health")).json()["status"], "degraded");
    assert_eq!(get(&server.url("/readyz")).status, 200);
    admin.batch_execute("COMMIT").expect("nobody has terminated it");
    assert_eq!(wait_until_completed(&server, "locked")["inserted"], 2);
    wait_until("all is well", WAIT_MAX, || check()["status"] == "ok");
}

#[test]
fn a_session_of_somebody_else_in_the_way_is_waited_for() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut somebody = hold_row(&database, "psql", "shared");
    accept(&server, "", &json!({ "batch_id": "shared", "events": [event("e")] }));
    wait_until("it is in the way", WAIT_MAX, || status_of(&server, "shared")["reason"].is_string());
    // What a dead node left later is terminated meanwhile: the watch has looked for long enough at both.
    let _dead_node = hold_row(&database, "ingestd", "other");
    accept(&server, "", &json!({ "batch_id": "other", "priority": 10, "events": [event("f")] }));
    assert_eq!(wait_until_completed(&server, "other")["inserted"], 1);
    assert!(server.log().contains(TERMINATING), "{}", server.log());
    assert_ne!(status_of(&server, "shared")["status"], "completed");
    somebody.batch_execute("ROLLBACK").expect("nobody has terminated it");
    assert_eq!(wait_until_completed(&server, "shared")["inserted"], 1);
}
