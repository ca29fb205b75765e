//! Promise: what is urgent is committed first, and what is not is committed all the same.

mod support;

use std::time::Duration;

use postgres::Client;
use support::load::body;
use support::postgres::TestDatabase;
use support::server::{Builder, Ingestd, get, post};
use support::{WAIT_MAX, wait_until};

/// Batches of bulk in the lanes.
const BULK_BATCHES: usize = 100;

/// A server with two general flushers, whose COPYs take one of the batches below each, as long as they are slow or few.
fn server_on(database: &TestDatabase) -> Builder {
    Ingestd::builder().database(database).env("BATCH_SIZE", 100).env("WORKERS", 1)
}

/// Sends 100 events; the batch's id, which the server chooses: nobody has to ask a locked ledger for it. `None` when the
/// server has more than it can commit in time.
fn offer(server: &Ingestd, tag: &str, priority: u64) -> Option<String> {
    let reply = post(&server.url("/v1/ingest/batch"), &[], body(tag, None, priority, 100).as_bytes());
    let answer = reply.json();
    if (reply.status, &answer["code"]) == (503, &"overloaded".into()) {
        return None;
    }
    assert_eq!(reply.status, 202, "{answer}");
    Some(answer["batch_id"].as_str().expect("an id").to_owned())
}

/// As [`offer`], to a server that has room.
fn send(server: &Ingestd, tag: &str, priority: u64) -> String {
    offer(server, tag, priority).expect("there is room")
}

/// A session that holds up every COPY at its first statement, until it unlocks. A lock of the table would hold up
/// the preparation of statements already, before a flusher has taken any batch.
fn hold_up_copies(database: &TestDatabase) -> Client {
    let mut holder = database.connect();
    let gate = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;
                CREATE TRIGGER gate BEFORE INSERT ON ingest_batches FOR EACH STATEMENT EXECUTE FUNCTION gate();
                SELECT pg_advisory_lock(7)";
    holder.batch_execute(gate).expect("a gate");
    holder
}

fn let_go(mut holder: Client) {
    holder.batch_execute("SELECT pg_advisory_unlock(7)").expect("it was locked");
}

/// Waits until `copies` transactions of the server wait for the lock.
fn wait_for_copies(client: &mut Client, copies: i64) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                   AND query LIKE '%INSERT INTO ingest_batches%'";
    wait_until("all flushers wait for the lock", WAIT_MAX, || {
        client.query_one(waiting, &[]).expect("a query").get::<_, i64>(0) == copies
    });
}

fn wait_for_batches(client: &mut Client, batches: usize) {
    wait_until("all batches committed", WAIT_MAX, || {
        let count = client.query_one("SELECT count(*) FROM ingest_batches", &[]).expect("a query");
        count.get::<_, i64>(0) == batches as i64
    });
}

/// Id, priority and transaction of every batch, in the order of their commits.
fn committed(client: &mut Client) -> Vec<(String, i16, String)> {
    let order = "SELECT batch_id, priority, xmin::text FROM ingest_batches
                 ORDER BY min(committed_at) OVER (PARTITION BY xmin::text), batch_id";
    let rows = client.query(order, &[]).expect("a query");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Transactions of batches that were committed so far.
fn transactions(client: &mut Client) -> i64 {
    client.query_one("SELECT count(DISTINCT xmin::text) FROM ingest_batches", &[]).expect("a query").get(0)
}

fn is_processing(server: &Ingestd, id: &str) -> bool {
    get(&server.url(&format!("/v1/batch/{id}/status"))).json()["status"] == "processing"
}

/// Bulk that fills the lanes; two COPYs of it are under way, and the reserved flusher is free.
fn fill_with_bulk(server: &Ingestd, client: &mut Client) -> usize {
    let bulk: Vec<String> = (0..BULK_BATCHES).map(|number| send(server, &format!("bulk-{number}"), 0)).collect();
    wait_for_copies(client, 2);
    let under_way = bulk.iter().filter(|id| is_processing(server, id)).count();
    assert!((2..=4).contains(&under_way), "two COPYs of BATCH_SIZE rows, not {under_way}");
    under_way
}

/// How many batches were committed before `id`.
fn position(client: &mut Client, id: &str) -> usize {
    committed(client).iter().position(|(batch, ..)| batch == id).expect("it is committed")
}

#[test]
fn a_payment_does_not_wait_for_a_bulk_copy_to_end() {
    let database = support::postgres::shared().create_database();
    let server = server_on(&database).start();
    let mut client = database.connect();
    let holder = hold_up_copies(&database);
    let under_way = fill_with_bulk(&server, &mut client);
    let payment = send(&server, "payment", 10);
    wait_for_copies(&mut client, 3);
    let_go(holder);
    wait_for_batches(&mut client, BULK_BATCHES + 1);
    let before = position(&mut client, &payment);
    assert!(before <= under_way, "{before} batches came before the payment, {under_way} were under way");
}

#[test]
fn a_payment_sent_last_is_committed_before_all_that_was_not_under_way() {
    let database = support::postgres::shared().create_database();
    let server = server_on(&database).start();
    let mut client = database.connect();
    let holder = hold_up_copies(&database);
    let under_way = fill_with_bulk(&server, &mut client);
    send(&server, "earlier", 8);
    wait_for_copies(&mut client, 3);
    let payment = send(&server, "payment", 10);
    let_go(holder);
    wait_for_batches(&mut client, BULK_BATCHES + 2);
    let before = position(&mut client, &payment);
    // Whoever is free first takes it; the two others may begin a COPY of bulk in the same instant.
    assert!(
        before <= under_way + 1 + 2,
        "{before} batches came before the payment, {under_way} and one were under way"
    );
}

#[test]
fn priorities_are_committed_in_their_order() {
    let database = support::postgres::shared().create_database();
    // One connection, one flusher: a strict order is visible only where nothing runs side by side.
    let server = server_on(&database).env("DB_POOL_MIN_SIZE", 1).env("DB_POOL_MAX_SIZE", 1).start();
    let mut client = database.connect();
    let holder = hold_up_copies(&database);
    let under_way = send(&server, "first", 0);
    wait_for_copies(&mut client, 1);
    for priority in [0, 5, 8, 10] {
        for number in 0..15 {
            send(&server, &format!("p{priority:02}-{number}"), priority);
        }
    }
    let_go(holder);
    wait_for_batches(&mut client, 61);
    let order = committed(&mut client);
    assert_eq!(order[0].0, under_way, "it was under way");
    // Within one transaction there is no order.
    for pair in order[1..].windows(2) {
        let ((first, higher, one), (second, lower, other)) = (&pair[0], &pair[1]);
        assert!(higher >= lower || one == other, "{first} before {second}: {order:?}");
    }
    let transactions: std::collections::HashSet<_> = order.iter().map(|(_, _, transaction)| transaction).collect();
    assert!(transactions.len() >= 4, "the order is visible: {order:?}");
}

#[test]
fn a_bulk_batch_is_not_starved_by_a_flood_of_payments() {
    const FLUSHERS: u32 = 4;
    let (timeout, copy_takes) = (Duration::from_secs(2), Duration::from_millis(300));
    let database = support::postgres::shared().create_database();
    let server = server_on(&database)
        .env("BATCH_TIMEOUT_SECONDS", timeout.as_secs())
        .env("DB_POOL_MIN_SIZE", 2)
        .env("DB_POOL_MAX_SIZE", FLUSHERS)
        .start();
    let mut client = database.connect();
    // A COPY longer than its target of 250 ms keeps COPYs small and the flood ahead of them.
    let slow = format!(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({}); RETURN NULL; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON ingest_batches FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        copy_takes.as_secs_f64()
    );
    client.batch_execute(&slow).expect("a trigger");
    let mut sent = 0;
    let mut flood = |payments: usize| {
        for _ in 0..payments {
            // More than can be committed in time: that some are refused is no matter.
            offer(&server, &format!("payment-{sent}"), 10);
            sent += 1;
        }
    };
    flood(100);
    let mut bulk = None;
    wait_until("the bulk batch accepted", WAIT_MAX, || {
        bulk = offer(&server, "bulk", 0);
        bulk.is_some()
    });
    let bulk = bulk.expect("it is accepted");
    let before = transactions(&mut client);
    let queued_payments = || {
        let metrics = get(&server.url("/v1/metrics")).text();
        let line =
            metrics.lines().find(|line| line.starts_with("ingestd_queue_batches") && line.contains("priority=\"10\""));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|figure| figure.parse::<f64>().ok()).expect("the gauge")
    };
    wait_until("the bulk batch committed", WAIT_MAX, || {
        if queued_payments() < 60.0 {
            flood(20);
        }
        client.query_opt("SELECT FROM ingest_batches WHERE batch_id = $1", &[&bulk]).expect("a query").is_some()
    });
    assert!(queued_payments() > 0.0, "the flood went on all the time");
    // Its COPY begins within the timeout, and each COPY takes its time: so many fit before it. Counted in COPYs it does not
    // matter what else the machine does. Twice as many are for those that begin or end with it.
    let copies_before = transactions(&mut client) - before;
    let copies_max = 2 * FLUSHERS * timeout.div_duration_f64(copy_takes).ceil() as u32;
    assert!(copies_before <= copies_max.into(), "{copies_before} COPYs came before it, at most {copies_max} may");
}
