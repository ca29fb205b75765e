//! Promise: with Redis any node answers for any batch, and Redis in trouble never troubles ingestion.

mod support;

use std::time::Instant;

use ingestd::limits::LOOKUP_INGEST_WAIT_MAX;
use redis::Commands;
use serde_json::{Value, json};

use support::contract::{accept, assert_problem, batch, event, rows_of, send, status_of, wait_until_completed};
use support::postgres::{TestDatabase, TestPostgres};
use support::proxy::{Mode, Proxy};
use support::redis::TestRedis;
use support::server::{Ingestd, get};
use support::tls::{Certificates, Greeting};
use support::{WAIT_MAX, wait_until};

fn node(name: &str, database: &TestDatabase, redis: &TestRedis) -> Ingestd {
    Ingestd::builder().database(database).redis(redis).env("NODE_ID", name).start()
}

/// Waits until `server` finds Redis as `status`; its whole health then.
fn wait_for_redis(server: &Ingestd, status: &str) -> Value {
    let health = || get(&server.url("/v1/health")).json();
    wait_until(&format!("Redis is {status}"), WAIT_MAX, || health()["checks"]["redis"]["status"] == status);
    health()
}

/// Waits until Redis itself has a batch with `status`.
fn wait_for_key(redis: &TestRedis, batch_id: &str, status: &str) -> Value {
    let read = || redis.entry(batch_id).map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"));
    wait_until(&format!("Redis has {batch_id} as {status}"), WAIT_MAX, || read()["status"] == status);
    read()
}

/// News of one node are written in order: once its last is there, all are.
fn wait_until_all_news_are_written(redis: &TestRedis, nodes: [&Ingestd; 2]) {
    for (node, last) in nodes.into_iter().zip(["last-of-a", "last-of-b"]) {
        accept(node, "", &batch(last, 1));
        wait_for_key(redis, last, "completed");
    }
}

#[test]
fn any_node_answers_for_a_batch_while_postgresql_hangs_and_after() {
    let postgres = TestPostgres::start_private(&[]);
    let (database, redis) = (postgres.create_database(), TestRedis::start());
    let (a, b) = (node("a", &database, &redis), node("b", &database, &redis));
    for server in [&a, &b] {
        assert_eq!(wait_for_redis(server, "ok")["status"], "healthy");
    }
    let paused = postgres.pause();
    let body = batch("shared", 2);
    accept(&a, "", &body);
    wait_for_key(&redis, "shared", "queued");
    let status = status_of(&b, "shared");
    assert_eq!((&status["status"], &status["node"], &status["events"]), (&json!("queued"), &json!("a"), &json!(2)));
    // Ten at once do not exhaust anything either.
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| assert_eq!(status_of(&b, "shared")["status"], "queued"));
        }
    });
    let other = json!({ "batch_id": "shared", "events": [event("other")] });
    assert_problem(&send(&b, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    let again = send(&b, "ack=memory", body.to_string().as_bytes());
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    accept(&b, "", &batch("of-b", 1));

    drop(paused);
    let status = wait_until_completed(&b, "shared");
    assert_eq!((&status["inserted"], &status["node"]), (&json!(2), &json!("a")));
    assert!(status["completed_at"].is_string());
    assert_eq!(wait_until_completed(&a, "of-b")["node"], "b");
    assert_problem(&send(&b, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    assert_eq!(rows_of(&database, "shared"), 2);
}

#[test]
fn a_status_expires_in_redis_and_the_ledger_goes_on_answering() {
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let builder = Ingestd::builder().database(&database).redis(&redis).env("STATUS_TTL_SECONDS", 60);
    let a = builder.env("NODE_ID", "a").start();
    let b = node("b", &database, &redis);
    assert_eq!(send(&a, "ack=commit", batch("kept", 1).to_string().as_bytes()).status, 200);
    wait_for_key(&redis, "kept", "completed");
    let mut connection = redis.connect();
    let key = redis.key_of("kept").expect("its key");
    let seconds: i64 = connection.ttl(&key).expect("Redis answers");
    assert!((1..=60).contains(&seconds), "{seconds}");
    let _: () = connection.del(&key).expect("Redis answers");
    let status = status_of(&b, "kept");
    assert_eq!(
        (&status["status"], &status["inserted"], &status["node"]),
        (&json!("completed"), &json!(1), &json!("a"))
    );
    assert_problem(&get(&b.url("/v1/batch/never-sent/status")), 404, "batch_unknown");
}

#[test]
fn a_server_starts_and_ingests_without_redis_and_writes_once_it_is_there() {
    let (database, mut redis) = (support::postgres::shared().create_database(), TestRedis::start());
    redis.stop();
    let server = node("a", &database, &redis);
    let health = wait_for_redis(&server, "failing");
    assert_eq!(health["status"], "degraded");
    assert!(health["checks"]["redis"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{health}");
    assert_eq!(get(&server.url("/readyz")).status, 200);
    accept(&server, "", &batch("without", 2));
    assert_eq!(wait_until_completed(&server, "without")["inserted"], 2);
    redis.restart();
    assert_eq!(wait_for_redis(&server, "ok")["status"], "healthy");
    assert_eq!(wait_for_key(&redis, "without", "completed")["inserted"], 2, "what waited is written");
}

#[test]
fn redis_dying_degrades_health_and_nothing_else_and_its_return_is_noticed() {
    let (database, mut redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let (a, b) = (node("a", &database, &redis), node("b", &database, &redis));
    assert_eq!(send(&a, "ack=commit", batch("first", 1).to_string().as_bytes()).status, 200);
    wait_for_key(&redis, "first", "completed");
    wait_for_redis(&b, "ok");
    redis.stop();
    // Nothing is written meanwhile: health notices all the same.
    assert_eq!(wait_for_redis(&b, "failing")["status"], "degraded");
    for number in 0..20 {
        accept(&a, "", &batch(&format!("meanwhile-{number}"), 1));
    }
    assert_eq!(wait_until_completed(&a, "meanwhile-19")["inserted"], 1);
    assert_eq!(status_of(&b, "first")["status"], "completed", "the ledger answers");
    let again = send(&b, "", batch("first", 1).to_string().as_bytes());
    assert_eq!(again.json()["duplicate"], true, "retries are known too");
    wait_for_redis(&a, "failing");

    redis.restart();
    assert_eq!(wait_for_redis(&a, "ok")["status"], "healthy");
    wait_for_redis(&b, "ok");
    accept(&a, "", &batch("last", 1));
    assert_eq!(wait_for_key(&redis, "last", "completed")["node"], "a");
    assert_eq!(status_of(&b, "last")["status"], "completed");
}

#[test]
fn one_id_sent_to_two_nodes_at_once_lands_once_and_the_other_body_is_refused_or_buried() {
    const ROUNDS: usize = 20;
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let nodes = [node("a", &database, &redis), node("b", &database, &redis)];
    let mut buried = 0;
    for round in 0..ROUNDS {
        let batch_id = format!("race-{round}");
        let start = std::sync::Barrier::new(2);
        let [first, second] = ["a", "b"]
            .map(|name| json!({ "batch_id": batch_id, "events": [event(&format!("{name}-{round}"))] }).to_string());
        let send_at_once = |node: &Ingestd, body: &str| {
            start.wait();
            send(node, "ack=commit", body.as_bytes()).status
        };
        let codes = std::thread::scope(|scope| {
            let first = scope.spawn(|| send_at_once(&nodes[0], &first));
            let second = send_at_once(&nodes[1], &second);
            [first.join().expect("no panic"), second]
        });
        assert!(codes.contains(&200) && codes.iter().all(|code| [200, 409].contains(code)), "{codes:?}");
        buried += i64::from(codes == [200, 200]);
        assert_eq!(rows_of(&database, &batch_id), 1, "one body landed");
    }
    wait_until_all_news_are_written(&redis, [&nodes[0], &nodes[1]]);
    for round in 0..ROUNDS {
        let told = wait_for_key(&redis, &format!("race-{round}"), "completed");
        assert_eq!(told["inserted"], 1, "Redis tells of the batch that landed: {told}");
    }
    let query = "SELECT count(*), count(*) FILTER (WHERE message LIKE '%different body%') FROM dead_letter_events";
    let row = database.connect().query_one(query, &[]).expect("counts");
    assert_eq!(
        (row.get::<_, i64>(0), row.get::<_, i64>(1)),
        (buried, buried),
        "each with its reason, none silently away"
    );
}

#[test]
fn what_two_nodes_could_not_know_of_each_other_the_ledger_finds_out() {
    let (database, mut redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let (a, b) = (node("a", &database, &redis), node("b", &database, &redis));
    redis.stop();
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE").expect("nobody writes events now");
    accept(&a, "", &batch("contested", 2));
    // Its ledger row is there by then, which the other one meets.
    let copying = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
                   AND query LIKE 'COPY events%'";
    wait_until("it is in a COPY", WAIT_MAX, || {
        database.connect().query_one(copying, &[]).expect("sessions").get::<_, i64>(0) == 1
    });
    assert_eq!(status_of(&a, "contested")["status"], "processing");
    accept(&b, "", &json!({ "batch_id": "contested", "events": [event("x"), event("y"), event("z")] }));
    blocking.commit().expect("the lock goes");

    assert_eq!(wait_until_completed(&a, "contested")["inserted"], 2);
    let buried = "SELECT count(*) FROM dead_letter_events WHERE batch_id = 'contested'";
    wait_until("the other one is decided too", WAIT_MAX, || {
        database.connect().query_one(buried, &[]).expect("counted").get::<_, i64>(0) == 3
    });
    assert_eq!(status_of(&b, "contested")["inserted"], 2, "the id is the other batch's");
    let rightful = send(&b, "", batch("contested", 2).to_string().as_bytes());
    assert_eq!((rightful.status, &rightful.json()["inserted"]), (200, &json!(2)), "{}", rightful.text());
    let loser = json!({ "batch_id": "contested", "events": [event("x"), event("y"), event("z")] });
    assert_problem(&send(&b, "", loser.to_string().as_bytes()), 409, "batch_id_conflict");
    let query = "SELECT event_id, sqlstate, message FROM dead_letter_events WHERE batch_id = 'contested' ORDER BY 1";
    let rows = database.connect().query(query, &[]).expect("dead letters");
    let buried: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(buried, ["x", "y", "z"]);
    assert!(rows.iter().all(|row| row.get::<_, &str>(2).contains("different body")));
    // What b had to tell of its batch before anything was decided is still waiting to be written.
    redis.restart();
    wait_until_all_news_are_written(&redis, [&a, &b]);
    assert_eq!(wait_for_key(&redis, "contested", "completed")["node"], "a", "the one that landed is what others see");
}

#[test]
fn rediss_encrypts_and_believes_only_a_certificate_that_it_can_verify() {
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let certificates = Certificates::signed("localhost");
    let port = certificates.serve(([127, 0, 0, 1], redis.port()).into(), Greeting::Nothing);
    let server = |authorities: &str| {
        Ingestd::builder()
            .database(&database)
            .env("REDIS_URL", format!("rediss://localhost:{port}/"))
            .env("SSL_CERT_FILE", certificates.path(authorities).display())
            .start()
    };
    let trusting = server("ca.pem");
    wait_for_redis(&trusting, "ok");
    accept(&trusting, "", &batch("encrypted", 2));
    wait_for_key(&redis, "encrypted", "completed");
    let doubting = server("other.pem");
    let health = wait_for_redis(&doubting, "failing");
    wait_until("the certificate is the reason", WAIT_MAX, || {
        let health = get(&doubting.url("/v1/health")).json();
        health["checks"]["redis"]["reason"].as_str().is_some_and(|reason| reason.contains("certificate"))
    });
    assert_eq!(health["status"], "degraded", "{health}");
    accept(&doubting, "", &batch("taken", 2));
}

#[test]
fn a_redis_that_does_tls_itself_is_believed_only_with_the_right_name_and_authority() {
    let certificates = Certificates::signed("localhost");
    let Some((redis, port)) = TestRedis::start_with_tls(&certificates) else {
        support::not_run(
            "redis_status::a_redis_that_does_tls_itself_is_believed_only_with_the_right_name_and_authority",
            "this redis-server was built without TLS",
        );
        return;
    };
    let database = support::postgres::shared().create_database();
    let server = |scheme: &str, host: &str, authorities: &str| {
        let builder = Ingestd::builder().database(&database).env("REDIS_URL", format!("{scheme}://{host}:{port}/"));
        builder.env("SSL_CERT_FILE", certificates.path(authorities).display()).start()
    };
    let trusting = server("rediss", "localhost", "ca.pem");
    assert_eq!(wait_for_redis(&trusting, "ok")["status"], "healthy");
    accept(&trusting, "", &batch("encrypted", 2));
    wait_for_key(&redis, "encrypted", "completed");
    assert_eq!(status_of(&trusting, "encrypted")["status"], "completed");
    for (number, (scheme, host, authorities)) in
        [("rediss", "localhost", "other.pem"), ("rediss", "127.0.0.1", "ca.pem"), ("redis", "localhost", "ca.pem")]
            .into_iter()
            .enumerate()
    {
        let doubting = server(scheme, host, authorities);
        assert_eq!(wait_for_redis(&doubting, "failing")["status"], "degraded", "{scheme} {host} {authorities}");
        let id = format!("taken-{number}");
        accept(&doubting, "", &batch(&id, 2));
        assert_eq!(wait_until_completed(&doubting, &id)["inserted"], 2, "ingestion goes on");
        assert_eq!(redis.entry(&id), None, "{scheme} {host} {authorities}: nothing was sent there");
    }
}

/// A node that reaches its Redis through a proxy.
fn node_behind(proxy: &Proxy, database: &TestDatabase) -> Ingestd {
    Ingestd::builder().database(database).env("REDIS_URL", format!("redis://127.0.0.1:{}/", proxy.port())).start()
}

#[test]
fn a_redis_that_hangs_does_not_change_how_long_an_answer_takes() {
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let proxy = Proxy::start(redis.port());
    let server = node_behind(&proxy, &database);
    wait_for_redis(&server, "ok");
    proxy.set_mode(Mode::Stall);
    // At first nobody knows that it hangs: a batch with an id of its own is asked about for a moment, no longer.
    accept(&server, "", &batch("unasked", 1));
    assert_eq!(wait_for_redis(&server, "failing")["status"], "degraded");
    let took = (0..50).map(|number| {
        let begun = Instant::now();
        accept(&server, "", &batch(&format!("hanging-{number}"), 1));
        begun.elapsed()
    });
    // Some answers of fifty are quick on any machine; an answer that waited for Redis never is.
    let quickest = took.min().expect("answers");
    assert!(quickest < LOOKUP_INGEST_WAIT_MAX, "the quickest of 50 answers took {quickest:?}");
    assert_eq!(wait_until_completed(&server, "hanging-49")["inserted"], 1);
    proxy.set_mode(Mode::Forward);
    assert_eq!(wait_for_redis(&server, "ok")["status"], "healthy");
    wait_for_key(&redis, "hanging-49", "completed");
}

#[test]
fn a_full_redis_is_told_and_written_again_once_it_has_room() {
    let (database, redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let server = node("a", &database, &redis);
    wait_for_redis(&server, "ok");
    let set = |bytes: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes).exec(&mut redis.connect()).expect("Redis answers");
    };
    set("1");
    accept(&server, "", &batch("no-room", 1));
    let health = wait_for_redis(&server, "failing");
    assert!(health["checks"]["redis"]["reason"].as_str().is_some_and(|reason| reason.contains("OOM")), "{health}");
    assert_eq!(wait_until_completed(&server, "no-room")["inserted"], 1);
    set("0");
    wait_for_redis(&server, "ok");
    wait_for_key(&redis, "no-room", "completed");
}

#[test]
fn a_redis_that_was_emptied_or_replaced_costs_no_status_of_what_is_committed() {
    let (database, mut redis) = (support::postgres::shared().create_database(), TestRedis::start());
    let (a, b) = (node("a", &database, &redis), node("b", &database, &redis));
    assert_eq!(send(&a, "ack=commit", batch("kept", 1).to_string().as_bytes()).status, 200);
    wait_for_key(&redis, "kept", "completed");
    redis::cmd("FLUSHALL").exec(&mut redis.connect()).expect("Redis answers");
    assert_eq!(status_of(&b, "kept")["status"], "completed");
    // Another Redis at the same address: it has nothing, and its clients' connections are gone.
    redis.restart();
    assert_eq!(status_of(&b, "kept")["node"], "a");
    let other = json!({ "batch_id": "kept", "events": [event("other")] });
    assert_problem(&send(&b, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    wait_for_redis(&a, "ok");
    accept(&a, "", &batch("after", 1));
    wait_for_key(&redis, "after", "completed");
}
