//! Promise: with `SHARDING=citus` everything that holds for one PostgreSQL holds for a cluster of them.
//!
//! These tests need a Citus cluster: `INGESTD_TEST_CITUS_URL` names its coordinator when they are built. Where it is unset
//! they are reported as ignored, with the reason. What needs no cluster is in `sharding.rs`.

mod support;

#[path = "support/awkward.rs"]
mod awkward;

use ingestd::pg::citus::layout::{LayoutError, arrange};
use ingestd::pg::migrate::migrate;
use ingestd::pg::partitions::{Month, cleanup, ensure, list};
use ingestd::sharding::{IngestShard, Sharding};
use ingestd::sys::clock::wall_now;
use ingestd::types::UnixMicros;
use postgres::Client;
use serde_json::{Value, json};
use support::citus;
use support::contract::{accept, batch, event, rows_of, send, status_of, wait_until_completed};
use support::postgres::{TestDatabase, connect};
use support::server::{Ingestd, get};
use support::{WAIT_MAX, wait_until};

fn server_on(database: &TestDatabase) -> Ingestd {
    Ingestd::builder().database(database).env("SHARDING", "citus").start()
}

fn spread(database: &TestDatabase) -> Client {
    let mut client = database.connect();
    migrate(&mut client).expect("migrated");
    assert!(arrange(&mut client, Sharding::Citus).expect("spread"));
    client
}

fn count(client: &mut Client, query: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {query}"), &[]).expect("a count").get(0)
}

fn commit(server: &Ingestd, batch: &Value) -> Value {
    let reply = send(server, "ack=commit", batch.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn counts(answer: &Value) -> [u64; 3] {
    ["inserted", "duplicates", "dead_lettered"].map(|name| answer[name].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

fn last_month() -> (Month, UnixMicros) {
    let month = Month::of(wall_now()).plus(-2);
    (month, month.start())
}

/// Ignored tests are in no list but that of their own program.
#[test]
#[cfg(not(ingestd_citus))]
fn a_machine_without_a_cluster_is_told_of() {
    support::not_run(
        "citus, citus_crash, citus_roles and citus_worker_away (all tests)",
        "INGESTD_TEST_CITUS_URL names no Citus cluster",
    );
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn tables_are_spread_in_one_step_whoever_comes_first() {
    let database = citus::create_database();
    migrate(&mut database.connect()).expect("migrated");
    let spread = std::thread::scope(|scope| {
        let nodes: Vec<_> = (0..5)
            .map(|_| scope.spawn(|| arrange(&mut database.connect(), Sharding::Citus).expect("spread")))
            .collect();
        nodes.into_iter().map(|node| node.join().expect("no panic")).filter(|did| *did).count()
    });
    assert_eq!(spread, 1);
    let mut client = database.connect();
    let colocated = "(SELECT FROM pg_dist_partition GROUP BY colocationid HAVING count(*) = 3) AS one";
    assert_eq!(count(&mut client, colocated), 1);
    assert!(matches!(arrange(&mut client, Sharding::None), Err(LayoutError::Distributed)));
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn what_is_there_already_moves_along_and_a_retry_finds_it() {
    let database = citus::create_database();
    let mut plain = Ingestd::builder().database(&database).start();
    let body = batch("before", 20);
    assert_eq!(counts(&commit(&plain, &body)), [20, 0, 0]);
    let server = server_on(&database);
    // A node that does not know of it yet acknowledges, and lands nothing wrong.
    accept(&plain, "", &batch("meanwhile", 5));
    wait_until("it cannot land", WAIT_MAX, || get(&plain.url("/v1/health")).json()["status"] == "degraded");
    plain.set_env("SHARDING", "citus");
    plain.restart();
    assert_eq!(wait_until_completed(&plain, "meanwhile")["inserted"], 5);
    let again = send(&server, "", body.to_string().as_bytes());
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    assert_eq!((rows_of(&database, "before"), status_of(&server, "before")["inserted"].as_u64()), (20, Some(20)));
    let mut client = database.connect();
    assert_eq!(count(&mut client, "dead_letter_events"), 0);
    let strays = "events WHERE ingest_shard <> ingestd_ingest_shard(batch_id)";
    assert_eq!(count(&mut client, strays), 0);
    assert_eq!(count(&mut client, "pg_dist_shard WHERE logicalrelid = 'events'::regclass"), 32);
    drop((server, plain));
    let refused = Ingestd::run_to_exit(&["serve"], &[("DATABASE_URL", &database.url), ("LISTEN_ADDR", "127.0.0.1:0")]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("set SHARDING=citus on every node"), "{}", refused.stderr);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn a_batch_is_on_one_shard_with_its_ledger_row_and_payloads_are_stored_digit_for_digit() {
    let database = citus::create_database();
    let server = server_on(&database);
    let documents: Vec<Vec<u8>> = awkward::documents().into_iter().filter(|one| one.2).map(|one| one.1).collect();
    let mut client = database.connect();
    for (number, document) in documents.iter().enumerate() {
        let head = format!(
            r#"{{"batch_id":"d{number}","events":[{{"event_id":"tab\t\\ é","service_name":"s\n","event_type":"t","payload":"#
        );
        let body = [head.as_bytes(), document, br#","metadata":"#, document, b"}]}"].concat();
        let reply = send(&server, "", &body);
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
    wait_until("all are committed", WAIT_MAX, || count(&mut client, "ingest_batches") == documents.len() as i64);
    for (number, document) in documents.iter().enumerate() {
        let id = format!("d{number}");
        let row = client.query_one(
            "SELECT payload = convert_from($2, 'UTF8')::jsonb AND payload::text = convert_from($2, 'UTF8')::jsonb::text
                    AND metadata::text = payload::text AND event_id = E'tab\\t\\\\ é' AND service_name = E's\\n',
                    e.ingest_shard, l.ingest_shard
             FROM events e JOIN ingest_batches l USING (batch_id, ingest_shard) WHERE batch_id = $1",
            &[&id, document],
        );
        let row = row.expect("one row");
        assert!(row.get::<_, bool>(0), "{}", String::from_utf8_lossy(document));
        assert_eq!([row.get::<_, i32>(1), row.get(2)], [IngestShard::of(&id).0; 2]);
    }
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn duplicates_count_refused_rows_become_dead_letters_and_can_be_replayed() {
    let database = citus::create_database();
    let server = server_on(&database);
    let at = ingestd::status::model::rfc3339(wall_now());
    let one = |id: &str, amount: i64| json!({"event_id": id, "service_name": "s", "event_type": "t", "timestamp": at, "payload": {"amount": amount}});
    let twice = json!({"batch_id": "twice", "events": [one("a", 1), one("b", 1), one("a", 1)]});
    assert_eq!(counts(&commit(&server, &twice)), [2, 1, 0]);
    let mut client = database.connect();
    let check = "ALTER TABLE events ADD CONSTRAINT no_debts CHECK ((payload ->> 'amount')::int >= 0)";
    client.batch_execute(check).expect("a constraint");
    let mixed = json!({"batch_id": "mixed", "events": (0..50).map(|n| one(&format!("m{n}"), if n % 10 == 3 { -1 } else { 1 })).collect::<Vec<_>>()});
    let answer = commit(&server, &mixed);
    assert_eq!(counts(&answer), [45, 0, 5], "{answer}");
    assert_eq!(
        count(
            &mut client,
            "dead_letter_events WHERE sqlstate = '23514' AND ingest_shard = ingestd_ingest_shard('mixed')"
        ),
        5
    );

    let settings = [("DATABASE_URL", database.url.as_str())];
    let refused = Ingestd::run_to_exit(&["dead-letter", "replay"], &settings);
    assert!(refused.stderr.contains("violates check constraint"), "{} {}", refused.stdout, refused.stderr);
    client.batch_execute("ALTER TABLE events DROP CONSTRAINT no_debts").expect("dropped");
    let replayed = Ingestd::run_to_exit(&["dead-letter", "replay"], &settings);
    assert!(replayed.stdout.contains("replayed 5"), "{} {}", replayed.stdout, replayed.stderr);
    assert_eq!(rows_of(&database, "mixed"), 50);
    let exported = Ingestd::run_to_exit(&["dead-letter", "export", "--all"], &settings);
    assert_eq!(exported.stdout.lines().count(), 5, "{} {}", exported.stdout, exported.stderr);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn one_id_on_two_nodes_lands_once_and_another_body_becomes_dead_letters() {
    let database = citus::create_database();
    let (a, b) = (server_on(&database), server_on(&database));
    std::thread::scope(|scope| {
        for (server, who) in [(&a, "a"), (&b, "b")] {
            scope.spawn(move || {
                for number in 0..20 {
                    accept_or_duplicate(server, &batch(&format!("same-{number}"), 5));
                    let other = json!({"batch_id": format!("other-{number}"), "events": [event(who)]});
                    send(server, "", other.to_string().as_bytes());
                }
            });
        }
    });
    let mut client = database.connect();
    let accounted = "(SELECT batch_id FROM events WHERE batch_id LIKE 'other-%' \
                      UNION ALL SELECT batch_id FROM dead_letter_events WHERE batch_id LIKE 'other-%') AS found";
    wait_until("all are accounted for", WAIT_MAX, || {
        count(&mut client, "events WHERE batch_id LIKE 'same-%'") == 100 && count(&mut client, accounted) >= 20
    });
    for number in 0..20 {
        assert_eq!(rows_of(&database, &format!("same-{number}")), 5);
        assert_eq!(status_of(&b, &format!("same-{number}"))["status"], "completed");
        assert_eq!(rows_of(&database, &format!("other-{number}")), 1);
    }
}

fn accept_or_duplicate(server: &Ingestd, body: &Value) {
    let reply = send(server, "", body.to_string().as_bytes());
    assert!(matches!(reply.status, 200 | 202), "{}", reply.text());
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn partitions_are_made_on_demand_listed_with_their_sizes_and_dropped() {
    let database = citus::create_database();
    let server = server_on(&database);
    let (month, start) = last_month();
    let mut late = batch("late", 3);
    for event in late["events"].as_array_mut().expect("events") {
        event["timestamp"] = ingestd::status::model::rfc3339(start).into();
    }
    assert_eq!(counts(&commit(&server, &late)), [3, 0, 0]);
    let mut client = database.connect();
    client.batch_execute("ANALYZE").expect("statistics");
    let name = month.partition_name();
    let partitions = list(&mut client).expect("listed");
    let found = partitions.iter().find(|partition| partition.name == name).expect("it was made");
    assert_eq!(found.rows_estimate, 3);
    assert!(found.bytes > 0);
    let dropped = cleanup(&mut client, wall_now(), 1, false).expect("dropped");
    assert_eq!(dropped.iter().map(|partition| partition.name.as_str()).collect::<Vec<_>>(), [name]);
    assert_eq!(rows_of(&database, "late"), 0);
    assert_eq!(ensure(&mut client, &[month]).expect("made"), [month.partition_name()]);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn old_ledger_rows_are_forgotten_a_bounded_number_at_a_time() {
    let database = citus::create_database();
    let mut client = spread(&database);
    ensure(&mut client, &[Month::of(wall_now())]).expect("made");
    for number in 0..10 {
        let id = format!("b{number}");
        client
            .execute(
                "INSERT INTO ingest_batches (ingest_shard, owner, batch_id, body_digest, priority, events, inserted, duplicates,
                     dead_lettered, received_at, committed_at, node)
                 VALUES ($1, '', $2, '', 0, 1, 1, 0, 0, now(), '2020-01-01'::timestamptz + $3 * interval '1 day', 'n')",
                &[&IngestShard::of(&id).0, &id, &f64::from(number)],
            )
            .expect("a row");
    }
    let mut forget =
        |rows_max| ingestd::pg::ledger::forget(&mut client, Sharding::Citus, wall_now(), rows_max).expect("forgot");
    assert_eq!([forget(4), forget(4), forget(4), forget(4)], [4, 4, 2, 0]);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn a_dead_nodes_journal_is_drained_into_the_cluster() {
    let database = citus::create_database();
    let closed = support::ClosedPort::take();
    let nowhere = format!("postgresql://nobody@{}/none", closed.address());
    let mut node = Ingestd::builder().env("DATABASE_URL", nowhere).env("SHARDING", "citus").start();
    for number in 0..30 {
        accept(&node, "", &batch(&format!("b{number}"), 10));
    }
    node.kill9();
    let dir = node.folder().join("journal");
    let settings = [("DATABASE_URL", database.url.as_str()), ("SHARDING", "citus")];
    let arguments = ["journal", "drain", "--dir", dir.to_str().expect("UTF-8")];
    let drained = Ingestd::run_to_exit(&arguments, &settings);
    assert_eq!(drained.code, Some(0), "{} {}", drained.stdout, drained.stderr);
    assert_eq!(count(&mut database.connect(), "events WHERE ingest_shard = ingestd_ingest_shard(batch_id)"), 300);
    let again = Ingestd::run_to_exit(&arguments, &settings);
    assert_eq!(again.code, Some(0), "{} {}", again.stdout, again.stderr);
    assert_eq!(count(&mut database.connect(), "events"), 300);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn check_config_says_how_the_cluster_is() {
    let database = citus::create_database();
    let settings = [("DATABASE_URL", database.url.as_str()), ("SHARDING", "citus")];
    let fine = Ingestd::run_to_exit(&["check-config"], &settings);
    assert_eq!(fine.code, Some(0), "{}", fine.stderr);
    assert!(
        fine.stdout.contains("the Citus cluster is ready") && fine.stdout.contains("not distributed yet"),
        "{}",
        fine.stdout
    );
    let crowded = [("DATABASE_URL", database.url.as_str()), ("SHARDING", "citus"), ("DB_POOL_MAX_SIZE", "1000")];
    let lacking = Ingestd::run_to_exit(&["check-config"], &crowded);
    assert_eq!(lacking.code, Some(0), "a server warns, and starts: {}", lacking.stderr);
    assert!(lacking.stdout.contains("raise max_connections"), "{}", lacking.stdout);
    connect(&database.url)
        .batch_execute("SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node WHERE groupid <> 0")
        .expect("removed");
    let alone = Ingestd::run_to_exit(&["check-config"], &settings);
    assert_eq!(alone.code, Some(2), "{}", alone.stdout);
    assert!(alone.stderr.contains("no active worker"), "{}", alone.stderr);
}

#[test]
#[cfg_attr(not(ingestd_citus), ignore = "INGESTD_TEST_CITUS_URL names no Citus cluster")]
fn health_and_metrics_show_workers_and_what_they_have_not_decided() {
    let database = citus::create_database();
    let server = server_on(&database);
    let cluster = || get(&server.url("/v1/health")).json()["checks"]["database"]["cluster"].clone();
    let workers = citus::worker_urls(&database);
    wait_until("the workers are looked at", WAIT_MAX, || {
        cluster()["workers"].as_array().map(Vec::len) == Some(workers.len())
    });
    assert!(cluster()["workers"].as_array().expect("workers").iter().all(|worker| worker["status"] == "ok"));
    // What a coordinator leaves behind that crashes before it decides. Its number is none of its own: recovery leaves it.
    let mut worker = connect(&workers[0]);
    let transaction = format!("citus_999_{}_1_1", std::process::id());
    let prepare = format!("BEGIN; CREATE TABLE undecided (); PREPARE TRANSACTION '{transaction}'");
    worker.batch_execute(&prepare).expect("prepared");
    wait_until("health shows it", WAIT_MAX, || cluster()["undecided_transactions"] == 1);
    let health = get(&server.url("/v1/health")).json();
    assert_eq!(health["status"], "degraded");
    assert!(
        health["checks"]["database"]["reason"].as_str().expect("a reason").contains("recover_prepared_transactions"),
        "{health}"
    );
    let metrics = get(&server.url("/v1/metrics")).text();
    assert!(metrics.contains("ingestd_citus_undecided_transactions 1\n"), "{metrics}");
    assert!(
        metrics.contains(&format!("ingestd_citus_workers{{state=\"reachable\"}} {}\n", workers.len())),
        "{metrics}"
    );
    worker.batch_execute(&format!("ROLLBACK PREPARED '{transaction}'")).expect("decided");
    wait_until("health is well again", WAIT_MAX, || get(&server.url("/v1/health")).json()["status"] == "healthy");
}
