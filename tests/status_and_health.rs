//! Promise: a batch's life can be followed, and the server says truly how it is; PostgreSQL away is no reason to
//! refuse a batch.

mod support;

use jiff::Timestamp;
use serde_json::{Value, json};

use support::contract::{accept, assert_problem, batch, event, send, status_of, wait_until_completed};
use support::postgres::TestPostgres;
use support::server::{Ingestd, Reply, get};
use support::{WAIT_MAX, wait_until};

fn health(server: &Ingestd) -> (u16, Value) {
    let reply = get(&server.url("/v1/health"));
    assert_eq!(reply.header("content-type"), "application/json");
    (reply.status, reply.json())
}

fn instant(document: &Value, member: &str) -> Timestamp {
    let text = document[member].as_str().unwrap_or_else(|| panic!("{member} is a text in {document}"));
    assert!(text.ends_with('Z'), "{member} is in UTC: {text}");
    text.parse().unwrap_or_else(|error| panic!("{member}={text}: {error}"))
}

#[test]
fn a_batch_is_queued_then_processing_then_completed_with_all_fields_at_each_stage() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).env("NODE_ID", "node-7").start();
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE").expect("nobody writes events now");
    let before = Timestamp::now();
    let mut body = batch("life", 3);
    body["priority"] = json!(4);
    accept(&server, "", &body);

    wait_until("the batch is in a COPY", WAIT_MAX, || status_of(&server, "life")["status"] == "processing");
    let status = status_of(&server, "life");
    let expected = json!({
        "batch_id": "life", "status": "processing", "priority": 4, "events": 3, "inserted": 0, "duplicates": 0,
        "dead_lettered": 0, "received_at": status["received_at"], "completed_at": null, "node": "node-7",
    });
    assert_eq!(status, expected, "these members and no others");

    blocking.commit().expect("the lock goes");
    let status = wait_until_completed(&server, "life");
    let (received_at, completed_at) = (instant(&status, "received_at"), instant(&status, "completed_at"));
    let expected = json!({
        "batch_id": "life", "status": "completed", "priority": 4, "events": 3, "inserted": 3, "duplicates": 0,
        "dead_lettered": 0, "received_at": status["received_at"], "completed_at": status["completed_at"], "node": "node-7",
    });
    assert_eq!(status, expected);
    let micro = jiff::SignedDuration::from_micros(1);
    assert!(before - micro <= received_at && received_at <= completed_at && completed_at <= Timestamp::now());
}

#[test]
fn after_a_restart_the_ledger_answers_for_committed_batches() {
    let database = support::postgres::shared().create_database();
    let mut server = Ingestd::builder().database(&database).env("NODE_ID", "node-8").start();
    let mut body = batch("remembered", 2);
    body["priority"] = json!(9);
    let sent = Timestamp::now();
    assert_eq!(send(&server, "ack=commit", body.to_string().as_bytes()).status, 200);
    let answered = Timestamp::now();
    let before = status_of(&server, "remembered");
    assert_eq!(server.terminate().code(), Some(0));
    server.restart();
    let after = status_of(&server, "remembered");
    for member in
        ["batch_id", "status", "priority", "events", "inserted", "duplicates", "dead_lettered", "received_at", "node"]
    {
        assert_eq!(after[member], before[member], "{member}");
    }
    for (whose, status) in [("the server", &before), ("the ledger", &after)] {
        let at = instant(status, "completed_at");
        assert!(sent <= at && at <= answered, "{whose} tells the commit: {sent} {at} {answered}");
    }
    assert_problem(&get(&server.url("/v1/batch/forgotten/status")), 404, "batch_unknown");
}

#[test]
fn a_batch_that_postgresql_refuses_ends_as_partial_or_failed() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let refuse = "ALTER TABLE events ADD CONSTRAINT no_bad_types CHECK (event_type <> 'refused')";
    database.connect().batch_execute(refuse).expect("a constraint");
    let mut body = batch("some", 3);
    body["events"][1]["event_type"] = json!("refused");
    let answer = send(&server, "ack=commit", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let counts = |document: &Value| ["inserted", "duplicates", "dead_lettered"].map(|member| document[member].as_u64());
    assert_eq!((&answer["status"], counts(&answer)), (&json!("partial"), [Some(2), Some(0), Some(1)]));
    assert_eq!(status_of(&server, "some")["status"], "partial");

    let mut body = batch("none", 1);
    body["events"][0]["event_type"] = json!("refused");
    let answer = send(&server, "ack=commit", body.to_string().as_bytes()).json();
    assert_eq!((&answer["status"], counts(&answer)), (&json!("failed"), [Some(0), Some(0), Some(1)]));
}

#[test]
fn a_healthy_server_says_so_with_figures() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).env("WORKERS", 2).start();
    assert_eq!(send(&server, "ack=commit", batch("one", 1).to_string().as_bytes()).status, 200);
    let (code, document) = health(&server);
    assert_eq!((code, &document["status"]), (200, &json!("healthy")), "{document}");
    assert!(document["version"].as_str().is_some_and(|version| version.contains('.')), "{document}");
    assert!(document["uptime_seconds"].is_number(), "{document}");
    let checks = document["checks"].as_object().expect("checks");
    let mut names: Vec<&str> = checks.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["database", "journal", "maintenance", "memory", "redis", "workers"]);
    for (name, check) in checks {
        let expected = if name == "redis" { "off" } else { "ok" };
        assert_eq!(check["status"], expected, "{name}");
        assert!(check.get("reason").is_none(), "{check}");
        assert!(
            name == "redis" || check.as_object().is_some_and(|check| check.values().any(has_figure)),
            "{name}: {check}"
        );
    }
    assert_eq!(checks["workers"]["count"], 2);
    let live = get(&server.url("/livez"));
    assert_eq!((live.status, live.text().as_str()), (200, "alive\n"));
    let ready = get(&server.url("/readyz"));
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
}

fn has_figure(value: &Value) -> bool {
    value.is_number() || value.as_object().is_some_and(|members| members.values().any(has_figure))
}

#[test]
fn while_postgresql_is_down_batches_are_taken_and_land_when_it_is_back() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    let server = Ingestd::builder().database(&database).start();
    let pid = server.pid();
    assert_eq!(send(&server, "ack=commit", batch("before", 1).to_string().as_bytes()).status, 200);

    postgres.stop();
    for number in 0..50 {
        accept(&server, "", &batch(&format!("during-{number}"), 2));
    }
    wait_until("health says that PostgreSQL is away", WAIT_MAX, || health(&server).1["status"] == "degraded");
    let (code, document) = health(&server);
    assert_eq!(code, 200, "degraded is no reason to restart: {document}");
    let check = &document["checks"]["database"];
    assert_eq!(check["status"], "failing");
    assert!(check["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "it says why: {check}");
    assert_eq!(get(&server.url("/readyz")).status, 200, "the journal takes traffic");
    assert_eq!(get(&server.url("/livez")).status, 200);
    // Still: new batches, retries, conflicts, status of what this process knows.
    let body = batch("during-outage", 1);
    accept(&server, "", &body);
    assert_eq!(send(&server, "", body.to_string().as_bytes()).json()["duplicate"], true);
    let other = json!({ "batch_id": "during-outage", "events": [event("other")] });
    assert_problem(&send(&server, "", other.to_string().as_bytes()), 409, "batch_id_conflict");
    assert_eq!(status_of(&server, "during-outage")["status"], "queued");
    assert_eq!(status_of(&server, "before")["status"], "completed");
    let unknown = get(&server.url("/v1/batch/never-sent/status"));
    assert_problem(&unknown, 503, "status_unavailable");
    assert!(!unknown.header("retry-after").is_empty(), "nobody can know now: not a 404");

    postgres.start();
    for number in 0..50 {
        wait_until_completed(&server, &format!("during-{number}"));
    }
    wait_until_completed(&server, "during-outage");
    wait_until("health is well again", WAIT_MAX, || health(&server).1["status"] == "healthy");
    let row =
        database.connect().query_one("SELECT count(*), count(DISTINCT event_id) FROM events", &[]).expect("counts");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (102, 102), "everything once");
    assert_eq!(server.pid(), pid, "no restart");
}

#[test]
fn a_server_that_starts_while_postgresql_is_down_takes_batches_and_lands_them_later() {
    let mut postgres = TestPostgres::start_private(&[]);
    let database = postgres.create_database();
    postgres.stop();
    let server = Ingestd::builder().database(&database).start();
    assert_eq!(health(&server).1["status"], "degraded");
    accept(&server, "", &batch("early", 3));
    postgres.start();
    assert_eq!(wait_until_completed(&server, "early")["inserted"], 3, "schema and partitions were made meanwhile");
}

#[test]
fn no_answer_is_kept_by_a_cache_or_guessed_at_by_a_browser() {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let assert_protected = |what: &str, reply: &Reply| {
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{what}: {:?}", reply.headers);
        assert_eq!(reply.header("cache-control"), "no-store", "{what}: {:?}", reply.headers);
    };
    assert_protected("accepted", &send(&server, "ack=commit", batch("known", 1).to_string().as_bytes()));
    assert_protected("refused", &send(&server, "", b"no JSON"));
    for path in ["/v1/batch/known/status", "/v1/batch/unknown/status", "/v1/health", "/livez", "/readyz", "/nowhere"] {
        assert_protected(path, &get(&server.url(path)));
    }
    for format in ["prometheus", "openmetrics", "json"] {
        assert_protected(format, &get(&server.url(&format!("/v1/metrics?format={format}"))));
    }
}
