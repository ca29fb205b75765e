//! Promise: the metrics of docs/monitoring.md are there under their names and types, in every form, and they tell what
//! happened.

mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use support::contract::{accept, assert_problem, batch, event, send, wait_until_completed};
use support::postgres::TestDatabase;
use support::server::{Ingestd, get, get_with};
use support::{WAIT_MAX, wait_until};

/// Every family of docs/monitoring.md#metrics: name, type, the labels of its samples besides `le`.
const FAMILIES: [(&str, &str, &[&str]); 44] = [
    ("ingestd_events_accepted_total", "counter", &[]),
    ("ingestd_events_rejected_total", "counter", &["code"]),
    ("ingestd_events_committed_total", "counter", &[]),
    ("ingestd_events_duplicate_total", "counter", &[]),
    ("ingestd_events_dead_lettered_total", "counter", &[]),
    ("ingestd_batches_total", "counter", &["status"]),
    ("ingestd_requests_total", "counter", &["route", "code"]),
    ("ingestd_queue_batches", "gauge", &["priority"]),
    ("ingestd_queue_events", "gauge", &["priority"]),
    ("ingestd_queue_bytes", "gauge", &[]),
    ("ingestd_journal_bytes", "gauge", &[]),
    ("ingestd_journal_damaged", "gauge", &[]),
    ("ingestd_journal_relocated_batches_total", "counter", &[]),
    ("ingestd_journal_relocated_bytes_total", "counter", &[]),
    ("ingestd_ready", "gauge", &[]),
    ("ingestd_build_info", "gauge", &["version"]),
    ("ingestd_database_up", "gauge", &[]),
    ("ingestd_db_pool_connections_limit", "gauge", &[]),
    ("ingestd_stuck_batches", "gauge", &[]),
    ("ingestd_citus_workers", "gauge", &["state"]),
    ("ingestd_citus_undecided_transactions", "gauge", &[]),
    ("ingestd_journal_fsync_seconds", "histogram", &[]),
    ("ingestd_journal_fsync_quantile_seconds", "gauge", &["quantile"]),
    ("ingestd_ack_latency_seconds", "histogram", &[]),
    ("ingestd_ack_latency_quantile_seconds", "gauge", &["quantile"]),
    ("ingestd_batch_latency_seconds", "histogram", &[]),
    ("ingestd_batch_latency_quantile_seconds", "gauge", &["quantile"]),
    ("ingestd_copy_latency_seconds", "histogram", &[]),
    ("ingestd_copy_latency_quantile_seconds", "gauge", &["quantile"]),
    ("ingestd_copy_rows", "histogram", &[]),
    ("ingestd_db_pool_connections", "gauge", &["state"]),
    ("ingestd_db_query_seconds", "histogram", &["statement"]),
    ("ingestd_db_query_quantile_seconds", "gauge", &["statement", "quantile"]),
    ("ingestd_auth_failures_total", "counter", &["reason"]),
    ("ingestd_db_errors_total", "counter", &["sqlstate_class"]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_virtual_memory_bytes", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_start_time_seconds", "gauge", &[]),
    ("process_threads", "gauge", &[]),
    ("process_io_read_bytes_total", "counter", &[]),
    ("process_io_written_bytes_total", "counter", &[]),
];

/// A scrape: types by family, samples by name with labels.
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn of(server: &Ingestd) -> Self {
        let reply = get(&server.url("/v1/metrics"));
        assert_eq!((reply.status, reply.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
        Self::parse(&reply.text())
    }

    fn parse(text: &str) -> Self {
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').expect("a name and a type");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two TYPE lines");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                let value = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
                assert!(samples.insert(name.to_owned(), value).is_none(), "{name} twice");
            }
        }
        Self { types, samples }
    }

    fn value(&self, name: &str) -> f64 {
        *self.samples.get(name).unwrap_or_else(|| panic!("no sample {name}"))
    }

    /// Labels' names of one sample of `family`, `le` left out.
    fn labels_of(&self, family: &str) -> Option<Vec<String>> {
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let is_ours = |name: &str| suffixes.iter().any(|suffix| name.strip_suffix(suffix) == Some(family));
        self.samples.keys().find_map(|sample| {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            let pairs = labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once('='));
            is_ours(name).then(|| pairs.map(|(label, _)| label.to_owned()).filter(|label| label != "le").collect())
        })
    }
}

/// A server after traffic of every kind: 7 batches with 30 events in, 5 duplicates, 1 dead letter, refusals.
fn after_traffic() -> (TestDatabase, Ingestd) {
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let refuse = "ALTER TABLE events ADD CONSTRAINT no_bad_types CHECK (event_type <> 'refused')";
    database.connect().batch_execute(refuse).expect("a constraint");
    for number in 0..5 {
        accept(&server, ["ack=memory", "ack=journal"][number % 2], &batch(&format!("b{number}"), 5));
        wait_until_completed(&server, &format!("b{number}"));
    }
    let at = ingestd::status::model::rfc3339(ingestd::sys::clock::wall_now());
    let mut twins = batch("twins", 10);
    for (number, event) in twins["events"].as_array_mut().expect("events").iter_mut().enumerate() {
        event["event_id"] = json!(format!("twin-{}", number % 5));
        event["timestamp"] = json!(at);
    }
    let mut partial = batch("partial", 1);
    partial["events"][0]["event_type"] = json!("refused");
    for body in [twins, partial] {
        assert_eq!(send(&server, "ack=commit", body.to_string().as_bytes()).status, 200);
    }
    let bad = json!([event("good"), {}, {"event_id": ""}, 7]).to_string();
    assert_eq!(send(&server, "", bad.as_bytes()).status, 422);
    assert_eq!(send(&server, "", b"{").status, 400);
    assert_eq!(get(&server.url("/nowhere")).status, 404);
    (database, server)
}

#[test]
fn every_metric_of_the_contract_is_there_with_its_type_and_labels() {
    let (_database, server) = after_traffic();
    let scrape = Scrape::of(&server);
    for (name, kind, labels) in FAMILIES {
        assert_eq!(scrape.types.get(name).map(String::as_str), Some(kind), "type of {name}");
        let found = scrape.labels_of(name).unwrap_or_else(|| panic!("{name} has no sample"));
        assert_eq!(found, labels, "labels of {name}");
    }
    for priority in 0..=10 {
        assert_eq!(scrape.value(&format!("ingestd_queue_batches{{priority=\"{priority}\"}}")), 0.0);
        assert_eq!(scrape.value(&format!("ingestd_queue_events{{priority=\"{priority}\"}}")), 0.0);
    }
    for quantile in ["0.5", "0.95", "0.99", "0.999"] {
        let value = scrape.value(&format!("ingestd_ack_latency_quantile_seconds{{quantile=\"{quantile}\"}}"));
        assert!(value > 0.0 && value < 60.0, "{quantile}: {value} s");
    }
}

#[test]
fn histograms_are_classic_with_rising_buckets_that_end_in_the_count() {
    let (_database, server) = after_traffic();
    let text = get(&server.url("/v1/metrics")).text();
    let scrape = Scrape::parse(&text);
    for name in [
        "ingestd_ack_latency_seconds",
        "ingestd_batch_latency_seconds",
        "ingestd_copy_latency_seconds",
        "ingestd_copy_rows",
        "ingestd_journal_fsync_seconds",
    ] {
        let bucket = format!("{name}_bucket{{le=\"");
        let buckets: Vec<(f64, f64)> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&*bucket)?.split_once("\"} "))
            .map(|(bound, count)| (bound.parse().expect("a bound"), count.parse().expect("a count")))
            .collect();
        assert!(buckets.len() > 5, "{name}");
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
        let (bound, count) = buckets[buckets.len() - 1];
        assert!(bound.is_infinite() && count > 0.0, "{name}: {buckets:?}");
        assert_eq!(count, scrape.value(&format!("{name}_count")), "{name}");
        assert!(scrape.value(&format!("{name}_sum")) > 0.0, "{name}");
    }
    assert_eq!(scrape.value("ingestd_copy_rows_sum"), 36.0, "all rows that went into a COPY");
}

#[test]
fn counters_agree_with_the_tables() {
    let (database, server) = after_traffic();
    let mut client = database.connect();
    let mut count = |query: &str| client.query_one(query, &[]).expect("a count").get::<_, i64>(0) as f64;
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.value("ingestd_events_committed_total"), count("SELECT count(*) FROM events"));
    assert_eq!(scrape.value("ingestd_events_dead_lettered_total"), count("SELECT count(*) FROM dead_letter_events"));
    assert_eq!(scrape.value("ingestd_events_duplicate_total"), count("SELECT sum(duplicates) FROM ingest_batches"));
    assert_eq!(scrape.value("ingestd_events_accepted_total"), count("SELECT sum(events) FROM ingest_batches"));
    let batches = count("SELECT count(*) FROM ingest_batches");
    let of = |status: &str| scrape.value(&format!("ingestd_batches_total{{status=\"{status}\"}}"));
    assert_eq!([of("queued"), of("completed"), of("partial"), of("failed")], [batches, batches - 1.0, 0.0, 1.0]);
    let expected = [
        ("events_committed", 30.0),
        ("events_duplicate", 5.0),
        ("events_dead_lettered", 1.0),
        ("events_accepted", 36.0),
    ];
    for (name, value) in expected {
        assert_eq!(scrape.value(&format!("ingestd_{name}_total")), value, "{name}");
    }
    let rejected = |code: &str| scrape.value(&format!("ingestd_events_rejected_total{{code=\"{code}\"}}"));
    assert_eq!(["member_missing", "text_empty", "event_not_object", "not_json"].map(rejected), [1.0; 4]);
    let requests =
        |route: &str, code: u16| scrape.value(&format!("ingestd_requests_total{{route=\"{route}\",code=\"{code}\"}}"));
    assert_eq!([202, 200, 422, 400].map(|code| requests("/v1/ingest/batch", code)), [5.0, 2.0, 1.0, 1.0]);
    assert_eq!(requests("other", 404), 1.0);
    assert!(scrape.value("ingestd_db_errors_total{sqlstate_class=\"23\"}") >= 2.0, "a duplicate and a refused row");
}

#[test]
fn clients_that_hang_up_are_counted_as_their_batches_are() {
    const BATCHES: i64 = 20;
    let database = support::postgres::shared().create_database();
    let server = Ingestd::builder().database(&database).start();
    let mut blocker = database.connect();
    let mut blocking = blocker.transaction().expect("a transaction");
    blocking.batch_execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE").expect("nobody writes events now");
    for number in 0..BATCHES {
        let id = format!("gone-{number}");
        let body = batch(&id, 2).to_string();
        let mut raw = support::raw::Raw::connect(&server);
        let length = format!("Content-Length: {}", body.len());
        raw.post_head("/v1/ingest/batch?ack=commit", &["Content-Type: application/json", &length]);
        raw.send(body.as_bytes());
        wait_until("the server has taken it", WAIT_MAX, || {
            get(&server.url(&format!("/v1/batch/{id}/status"))).status == 200
        });
        // Dropped while its answer is still to come.
    }
    // Those that leave before their batch is whole count as nothing.
    for number in 0..BATCHES {
        let body = batch(&format!("half-{number}"), 2).to_string();
        let mut raw = support::raw::Raw::connect(&server);
        let length = format!("Content-Length: {}", body.len());
        raw.post_head("/v1/ingest/batch", &["Content-Type: application/json", &length]);
        raw.send(&body.as_bytes()[..body.len() / 2]);
    }
    blocking.commit().expect("the lock goes");
    let mut client = database.connect();
    let mut rows = || client.query_one("SELECT count(*) FROM events", &[]).expect("a count").get::<_, i64>(0);
    // Counted a moment after the commit.
    wait_until("what was accepted is committed", WAIT_MAX, || {
        let scrape = Scrape::of(&server);
        rows() == 2 * BATCHES
            && scrape.value("ingestd_events_committed_total") == 2.0 * BATCHES as f64
            && scrape.value("ingestd_batches_total{status=\"completed\"}") == BATCHES as f64
            && scrape.value("ingestd_queue_bytes") == 0.0
    });
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.value("ingestd_events_accepted_total"), 2.0 * BATCHES as f64);
    assert_eq!(scrape.value("ingestd_batches_total{status=\"queued\"}"), BATCHES as f64);
}

#[test]
fn the_json_form_has_every_part_of_the_contract() {
    let (_database, server) = after_traffic();
    for reply in [
        get(&server.url("/v1/metrics?format=json")),
        get_with(&server.url("/v1/metrics"), &[("Accept", "application/json")]),
    ] {
        assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
        assert_report(&reply.json());
    }
}

fn assert_report(report: &Value) {
    for latency in ["ack", "queue", "copy", "commit", "batch"] {
        let figures = &report["latency_ms"][latency];
        let [p50, p95, p99, p999, max, count] = ["p50", "p95", "p99", "p999", "max", "count"]
            .map(|figure| figures[figure].as_f64().unwrap_or_else(|| panic!("{latency}.{figure} in {figures}")));
        assert!(count >= 1.0 && p50 > 0.0, "{latency}: {figures}");
        assert!(p50 <= p95 && p95 <= p99 && p99 <= p999 && p999 <= max && max < 60_000.0, "{latency}: {figures}");
    }
    let queue = report["queue"]["by_priority"].as_array().expect("queues by priority");
    let priorities: Vec<u64> = queue.iter().filter_map(|queue| queue["priority"].as_u64()).collect();
    assert_eq!(priorities, (0..=10).rev().collect::<Vec<u64>>());
    assert!(queue.iter().all(|queue| queue["batches"] == 0 && queue["events"] == 0 && queue["bytes"] == 0));
    for rate in ["accepted_events_per_second", "committed_events_per_second"] {
        assert!(["1s", "10s", "60s"].iter().all(|window| report["throughput"][rate][window].is_number()), "{report}");
    }
    assert_eq!(
        report["events"],
        json!({"accepted": 36, "rejected": 4, "committed": 30, "duplicate": 5, "dead_lettered": 1})
    );
    assert_eq!(report["batches"], json!({"queued": 7, "completed": 6, "partial": 0, "failed": 1}));
    assert!(report["journal"]["bytes"].as_u64() > Some(0) && report["journal"]["fsyncs"].as_u64() > Some(0));
    assert_eq!(report["journal"]["limit_bytes"], 4096_u64 << 20, "JOURNAL_MAX_MB");
    assert_eq!(report["memory"]["limit_bytes"], 512 << 20, "MEMORY_LIMIT_MB");
    assert!(report["pool"]["idle"].is_u64() && report["pool"]["busy"].is_u64());
    assert_eq!(report["errors"]["rejected_events"]["member_missing"], 1);
    assert_eq!(report["errors"]["requests"]["422"], 1);
    for figure in
        ["cpu_seconds", "resident_memory_bytes", "disk_read_bytes", "disk_written_bytes", "threads", "open_fds"]
    {
        assert!(report["process"][figure].is_number(), "{figure} in {}", report["process"]);
    }
}

#[test]
fn open_metrics_is_given_to_who_accepts_it_and_nothing_to_who_accepts_nothing() {
    let (_database, server) = after_traffic();
    let url = server.url("/v1/metrics");
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let reply = get_with(&url, &[("Accept", accept)]);
    assert_eq!(reply.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = reply.text();
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE ingestd_events_accepted counter\n"), "{text}");
    assert!(text.contains("ingestd_events_accepted_total 36\n"), "{text}");
    assert_problem(&get_with(&url, &[("Accept", "image/png")]), 406, "not_acceptable");
    assert_problem(&get(&server.url("/v1/metrics?format=xml")), 400, "unknown_format");
}
