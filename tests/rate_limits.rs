//! Rate limits: by key or by address, of events and of requests, with nothing partly taken.

mod support;

use std::time::Instant;

use rustix::process::Signal;
use serde_json::json;

use support::contract::{batch, ingest_url, send};
use support::postgres;
use support::server::{Ingestd, Reply, get, post};
use support::{WAIT_MAX, wait_until};

/// `"events";r=90;t=1` → 90, of the item called `unit`.
fn left(reply: &Reply, unit: &str) -> Option<u64> {
    let item = reply.header("ratelimit").split(", ").find(|item| item.starts_with(&format!("\"{unit}\"")))?.to_owned();
    item.split(';').find_map(|part| part.strip_prefix("r="))?.parse().ok()
}

fn refusal(reply: &Reply) {
    assert_eq!((reply.status, &reply.json()["code"]), (429, &json!("rate_limited")), "{}", reply.text());
    assert!(
        !reply.header("ratelimit-policy").is_empty() && reply.header("ratelimit").contains(";r="),
        "{:?}",
        reply.headers
    );
    assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{:?}", reply.headers);
}

/// Asks at once again and again until that is too often; the refusal.
fn until_refused(ask: impl Fn() -> Reply) -> Reply {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let reply = ask();
        if reply.status == 429 {
            return reply;
        }
        assert!(Instant::now() < deadline, "nothing is refused");
    }
}

#[test]
fn events_beyond_the_rate_are_refused_whole() {
    let database = postgres::shared().create_database();
    let limits = [("RATE_LIMIT_EVENTS_PER_SECOND", 1), ("RATE_LIMIT_BURST", 100)];
    let server =
        limits.iter().fold(Ingestd::builder().database(&database), |builder, (name, value)| builder.env(name, value));
    let server = server.start();
    let first = send(&server, "ack=commit", batch("first", 60).to_string().as_bytes());
    assert_eq!(first.status, 200);
    assert_eq!(first.header("ratelimit-policy"), "\"events\";q=100;w=100");
    assert_eq!(left(&first, "events"), Some(40));
    let second = send(&server, "ack=commit", batch("second", 60).to_string().as_bytes());
    refusal(&second);
    assert!(left(&second, "events").is_some_and(|left| (40..60).contains(&left)), "what is left: {:?}", second.headers);
    // What was refused took nothing: neither rows nor quota, nor the batch's id.
    assert_eq!(get(&server.url("/v1/batch/second/status")).status, 404);
    assert_eq!(send(&server, "ack=commit", batch("second", 30).to_string().as_bytes()).status, 200);
    let again = send(&server, "ack=commit", batch("first", 60).to_string().as_bytes());
    assert_eq!(
        (again.status, &again.json()["duplicate"]),
        (200, &json!(true)),
        "a retry of what is known costs nothing"
    );
    let never = send(&server, "", batch("never", 101).to_string().as_bytes());
    assert_eq!((never.status, &never.json()["code"]), (413, &json!("batch_over_rate_limit")), "{}", never.text());
    assert!(left(&never, "events").is_some_and(|left| (10..100).contains(&left)), "{:?}", never.headers);
    assert!(never.json()["detail"].as_str().expect("text").contains("at most 100 events"));
    let metrics = get(&server.url("/v1/metrics")).text();
    assert!(metrics.contains("ingestd_auth_failures_total{reason=\"rate_limited\"} 2\n"), "both refusals are counted");
    let rows: i64 = database.connect().query_one("SELECT count(*) FROM events", &[]).expect("a count").get(0);
    assert_eq!(rows, 90);
}

#[test]
fn requests_beyond_the_rate_are_refused_and_come_back() {
    let database = postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).env("RATE_LIMIT_REQUESTS_PER_SECOND", 2).start();
    let url = server.url("/v1/batch/x/status");
    let (first, refused) = (get(&url), until_refused(|| get(&url)));
    assert_eq!((first.status, left(&first, "requests")), (404, Some(1)));
    refusal(&refused);
    for path in ["/livez", "/readyz", "/v1/health"] {
        assert_eq!(get(&server.url(path)).status, 200, "probes are not held back");
    }
    wait_until("requests are let in again", WAIT_MAX, || get(&url).status == 404);
    // A refused batch keeps its connection when its body is small.
    let body = batch("b", 1).to_string();
    let refused = until_refused(|| post(&ingest_url(&server, ""), &[], body.as_bytes()));
    assert_eq!(refused.header("connection"), "");
}

#[test]
fn each_key_has_its_own_rate() {
    let (database, folder) = (postgres::shared().create_database(), support::folder());
    let file = folder.path().join("keys.toml");
    let file = file.to_str().expect("UTF-8");
    let make = |more: &[&str]| {
        let arguments = [&["keys", "new", "--name", "k", "--scope", "ingest", "--api-keys-file", file], more].concat();
        Ingestd::run_to_exit(&arguments, &[]).stdout.trim().to_owned()
    };
    let (common, other) = (make(&[]), make(&[]));
    let own = make(&["--events-per-second", "1", "--events-burst", "500"]);
    let server = Ingestd::builder()
        .database(&database)
        .env("API_KEYS_FILE", file)
        .env("RATE_LIMIT_EVENTS_PER_SECOND", 1)
        .env("RATE_LIMIT_BURST", 1000)
        .start();
    let send = |key: &str, events| {
        let body = json!(batch("x", events)["events"]).to_string();
        post(&ingest_url(&server, ""), &[("X-API-Key", key)], body.as_bytes())
    };
    // At one a second what is used up stays so for minutes.
    assert_eq!(send(&common, 800).status, 202);
    refusal(&send(&common, 800));
    assert_eq!(send(&other, 800).status, 202, "another key's events do not count");
    assert_eq!(send(&own, 500).header("ratelimit-policy"), "\"events\";q=500;w=500");
    refusal(&send(&own, 400));
    // Reading the keys again gives nobody a new burst.
    server.signal(Signal::HUP);
    server.wait_for_log("reloaded API keys and rate limits", WAIT_MAX);
    refusal(&send(&own, 500));
}

#[test]
fn sighup_reads_rate_limits_again() {
    let (database, folder) = (postgres::shared().create_database(), support::folder());
    let file = folder.path().join("ingestd.toml");
    std::fs::write(&file, "rate_limit_events_per_second = 5\n").expect("written");
    let server = Ingestd::builder().database(&database).arg("--config").arg(file.to_str().expect("UTF-8")).start();
    assert_eq!(
        send(&server, "", batch("p", 1).to_string().as_bytes()).header("ratelimit-policy"),
        "\"events\";q=5;w=1"
    );
    std::fs::write(&file, "rate_limit_events_per_second = 7\n").expect("written");
    server.signal(Signal::HUP);
    wait_until("the new limit holds", WAIT_MAX, || {
        let fresh = format!("q-{}", ingestd::sys::clock::wall_now().0);
        send(&server, "", batch(&fresh, 1).to_string().as_bytes()).header("ratelimit-policy") == "\"events\";q=7;w=1"
    });
    std::fs::write(&file, "rate_limit_events_per_second = 'x'\n").expect("written");
    server.signal(Signal::HUP);
    server.wait_for_log("the previous settings stay in force", WAIT_MAX);
}
