//! The JSON form of the metrics (`docs/monitoring.md#json`): for the dashboard, scripts and people with `curl`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::histogram::{Histogram, Merged};
use super::labels::{BatchOutcome, PoolState, Statement};
use super::process::ProcessStats;
use super::registry::Metrics;
use super::throughput::Rates;
use crate::types::{PRIORITY_MAX, Priority};

const MICROS_PER_MILLI: f64 = 1e3;

/// All metrics at one point in time. Counts are since start.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Metrics)]
pub struct Report {
    /// The `NODE_ID`.
    pub node: String,
    /// The server's version.
    pub version: &'static str,
    /// Seconds since the server started.
    pub uptime_seconds: f64,
    /// Events by outcome.
    pub events: Events,
    /// Batches by outcome.
    pub batches: Batches,
    /// Events per second.
    pub throughput: Throughput,
    /// Latencies since start, in milliseconds.
    pub latency_ms: Latencies,
    /// What is waiting for its COPY.
    pub queue: Queue,
    /// The journal on disk.
    pub journal: Journal,
    /// Rows held in memory.
    pub memory: Usage,
    /// Connections to PostgreSQL.
    pub pool: Pool,
    /// Errors by kind.
    pub errors: Errors,
    /// This process; values that the system does not report are `null`.
    pub process: Process,
}

/// Events by outcome.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsEvents)]
pub struct Events {
    /// Accepted.
    pub accepted: u64,
    /// Rejected by validation.
    pub rejected: u64,
    /// Committed to PostgreSQL.
    pub committed: u64,
    /// Already in PostgreSQL.
    pub duplicate: u64,
    /// Rejected by PostgreSQL.
    pub dead_lettered: u64,
}

/// Batches by outcome.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsBatches)]
pub struct Batches {
    /// Accepted.
    pub queued: u64,
    /// Committed completely.
    pub completed: u64,
    /// Committed, with some events dead-lettered.
    pub partial: u64,
    /// All events dead-lettered.
    pub failed: u64,
}

/// Events per second, accepted and committed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsThroughput)]
pub struct Throughput {
    /// Events accepted per second.
    pub accepted_events_per_second: Windows,
    /// Events committed per second.
    pub committed_events_per_second: Windows,
}

/// A rate over the last seconds, or since the start of a younger server.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsWindows)]
pub struct Windows {
    /// Over the last second.
    #[serde(rename = "1s")]
    pub second: f64,
    /// Over the last ten seconds.
    #[serde(rename = "10s")]
    pub ten_seconds: f64,
    /// Over the last minute.
    #[serde(rename = "60s")]
    pub minute: f64,
}

/// Latencies of the steps from request to commit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsLatencies)]
pub struct Latencies {
    /// Request received to answer sent.
    pub ack: Quantiles,
    /// Batch accepted to start of its COPY.
    pub queue: Quantiles,
    /// `COPY`.
    pub copy: Quantiles,
    /// `COMMIT`.
    pub commit: Quantiles,
    /// Request received to commit.
    pub batch: Quantiles,
    /// One fsync of the journal.
    pub journal_fsync: Quantiles,
}

/// Quantiles of one latency in milliseconds, with a resolution of one microsecond; all 0 when `count` is 0.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = MetricsQuantiles)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The maximum.
    pub max: f64,
    /// Number of recorded values.
    pub count: u64,
}

/// What is waiting for its COPY.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsQueue)]
pub struct Queue {
    /// Batches of all priorities.
    pub batches: u64,
    /// Events of all priorities.
    pub events: u64,
    /// Bytes of all priorities.
    pub bytes: u64,
    /// The queue by priority, highest first.
    pub by_priority: Vec<QueueOfPriority>,
}

/// What is waiting of one priority.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsQueueOfPriority)]
pub struct QueueOfPriority {
    /// 0–10.
    #[schema(maximum = 10)]
    pub priority: u8,
    /// Waiting batches.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of those batches.
    pub bytes: u64,
}

/// The journal on disk.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsJournal)]
pub struct Journal {
    /// Bytes and their limit.
    #[serde(flatten)]
    pub usage: Usage,
    /// Fsyncs since start.
    pub fsyncs: u64,
}

/// Bytes in use and their limit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsUsage)]
pub struct Usage {
    /// In use.
    pub bytes: u64,
    /// Allowed.
    pub limit_bytes: u64,
}

/// Connections to PostgreSQL.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsPool)]
pub struct Pool {
    /// Idle connections.
    pub idle: u64,
    /// Connections in use.
    pub busy: u64,
}

/// Errors by kind; kinds that have not occurred are left out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsErrors)]
pub struct Errors {
    /// Rejected events by code.
    pub rejected_events: BTreeMap<&'static str, u64>,
    /// Requests answered with 4xx and 5xx, by status code.
    pub requests: BTreeMap<&'static str, u64>,
    /// Requests rejected by authentication or rate limits, by reason.
    pub auth: BTreeMap<&'static str, u64>,
    /// Errors from PostgreSQL by SQLSTATE class; `connection` counts those without an SQLSTATE.
    pub database: BTreeMap<&'static str, u64>,
}

/// This process.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricsProcess)]
pub struct Process {
    /// User and system CPU time since start.
    #[schema(required)]
    pub cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    #[schema(required)]
    pub resident_memory_bytes: Option<u64>,
    /// Virtual memory in bytes.
    #[schema(required)]
    pub virtual_memory_bytes: Option<u64>,
    /// Threads.
    #[schema(required)]
    pub threads: Option<u64>,
    /// Open file descriptors.
    #[schema(required)]
    pub open_fds: Option<u64>,
    /// Limit on open file descriptors.
    #[schema(required)]
    pub max_fds: Option<u64>,
    /// Bytes read from storage.
    #[schema(required)]
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to storage.
    #[schema(required)]
    pub disk_written_bytes: Option<u64>,
}

impl Report {
    /// `metrics` as they are now.
    pub fn of(metrics: &Arc<Metrics>) -> Self {
        let fsync = metrics.journal_fsync.merge();
        let [second, ten_seconds, minute] = metrics.rates();
        let windows = |rate: fn(&Rates) -> f64| {
            let [second, ten_seconds, minute] =
                [second, ten_seconds, minute].map(|rates| round_to_tenths(rate(&rates)));
            Windows { second, ten_seconds, minute }
        };
        Self {
            node: metrics.node().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: metrics.uptime().as_millis() as f64 / 1e3,
            events: Events::of(metrics),
            batches: Batches::of(metrics),
            throughput: Throughput {
                accepted_events_per_second: windows(|rates| rates.accepted),
                committed_events_per_second: windows(|rates| rates.committed),
            },
            latency_ms: Latencies::of(metrics, &fsync),
            queue: Queue::of(metrics),
            journal: Journal {
                usage: Usage { bytes: metrics.journal_bytes.get(), limit_bytes: metrics.journal_limit_bytes.get() },
                fsyncs: fsync.count(),
            },
            memory: Usage { bytes: metrics.memory_bytes.get(), limit_bytes: metrics.memory_limit_bytes.get() },
            pool: Pool {
                idle: metrics.db_pool_connections.of(PoolState::Idle).get(),
                busy: metrics.db_pool_connections.of(PoolState::Busy).get(),
            },
            errors: Errors::of(metrics),
            process: Process::from(ProcessStats::read()),
        }
    }

    /// The report as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report holds only numbers, texts and maps with text keys")
    }
}

impl Events {
    fn of(metrics: &Metrics) -> Self {
        Self {
            accepted: metrics.events_accepted.get(),
            rejected: metrics.events_rejected.sum(),
            committed: metrics.events_committed.get(),
            duplicate: metrics.events_duplicate.get(),
            dead_lettered: metrics.events_dead_lettered.get(),
        }
    }
}

impl Batches {
    fn of(metrics: &Metrics) -> Self {
        let count = |outcome| metrics.batches.get(outcome);
        Self {
            queued: count(BatchOutcome::Queued),
            completed: count(BatchOutcome::Completed),
            partial: count(BatchOutcome::Partial),
            failed: count(BatchOutcome::Failed),
        }
    }
}

impl Latencies {
    fn of(metrics: &Metrics, fsync: &Merged) -> Self {
        let quantiles = |histogram: &Histogram| Quantiles::of(&histogram.merge());
        Self {
            ack: quantiles(&metrics.ack_latency),
            queue: quantiles(&metrics.queue_latency),
            copy: quantiles(&metrics.copy_latency),
            commit: Quantiles::of(&metrics.db_query.merge(Statement::Commit)),
            batch: quantiles(&metrics.batch_latency),
            journal_fsync: Quantiles::of(fsync),
        }
    }
}

impl Quantiles {
    fn of(merged: &Merged) -> Self {
        let millis = |micros: u64| micros as f64 / MICROS_PER_MILLI;
        let quantile = |quantile| millis(merged.value_at_quantile(quantile));
        Self {
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: millis(merged.max()),
            count: merged.count(),
        }
    }
}

impl Queue {
    fn of(metrics: &Metrics) -> Self {
        let by_priority: Vec<_> = (0..=PRIORITY_MAX)
            .rev()
            .filter_map(Priority::new)
            .map(|priority| QueueOfPriority {
                priority: priority.get(),
                batches: metrics.queue_batches.of(priority).get(),
                events: metrics.queue_events.of(priority).get(),
                bytes: metrics.queue_bytes.of(priority).get(),
            })
            .collect();
        let sum = |part: fn(&QueueOfPriority) -> u64| by_priority.iter().map(part).sum();
        Self {
            batches: sum(|queue| queue.batches),
            events: sum(|queue| queue.events),
            bytes: sum(|queue| queue.bytes),
            by_priority,
        }
    }
}

impl Errors {
    fn of(metrics: &Metrics) -> Self {
        let occurred = |(_, count): &(&str, u64)| *count > 0;
        let mut requests = BTreeMap::new();
        for (_, code, count) in metrics.requests.iter() {
            if count > 0 && code.starts_with(['4', '5']) {
                *requests.entry(code).or_default() += count;
            }
        }
        Self {
            rejected_events: metrics.events_rejected.iter().filter(occurred).collect(),
            requests,
            auth: metrics.auth_failures.iter().filter(occurred).collect(),
            database: metrics.db_errors.iter().filter(occurred).collect(),
        }
    }
}

impl From<ProcessStats> for Process {
    fn from(stats: ProcessStats) -> Self {
        Self {
            cpu_seconds: stats.cpu_seconds,
            resident_memory_bytes: stats.resident_bytes,
            virtual_memory_bytes: stats.virtual_bytes,
            threads: stats.threads,
            open_fds: stats.open_fds,
            max_fds: stats.max_fds,
            disk_read_bytes: stats.io_read_bytes,
            disk_written_bytes: stats.io_written_bytes,
        }
    }
}

fn round_to_tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};

    use super::*;
    use crate::metrics::{AuthFailure, HttpStatus, Route, SqlstateClass};
    use crate::types::UnixMicros;

    fn report_of(metrics: &Arc<Metrics>) -> Value {
        serde_json::from_str(&Report::of(metrics).to_json()).expect("the report is JSON")
    }

    #[test]
    fn latencies_are_milliseconds_with_microseconds_behind_the_point() {
        let metrics = Metrics::new("node-1", &[]);
        metrics.ack_latency.recorder().record_elapsed(Duration::from_nanos(1_234_567));
        metrics.db_query.recorder().record_elapsed(Statement::Commit, Duration::from_micros(250));
        let report = report_of(&metrics);
        let only = |millis: f64| json!({"p50": millis, "p95": millis, "p99": millis, "p999": millis, "max": millis, "count": 1});
        assert_eq!(report["latency_ms"]["ack"], only(1.234));
        assert_eq!(report["latency_ms"]["commit"], only(0.25));
        let empty = json!({"p50": 0.0, "p95": 0.0, "p99": 0.0, "p999": 0.0, "max": 0.0, "count": 0});
        for station in ["queue", "copy", "batch", "journal_fsync"] {
            assert_eq!(report["latency_ms"][station], empty, "{station}");
        }
    }

    #[test]
    fn queues_are_listed_by_priority_and_in_sum() {
        let metrics = Metrics::new("node-1", &[]);
        for (priority, bytes) in [(10, 700), (0, 50)] {
            let priority = Priority::new(priority).expect("0 and 10 are priorities");
            metrics.queue_batches.of(priority).add(1);
            metrics.queue_events.of(priority).add(9);
            metrics.queue_bytes.of(priority).add(bytes);
        }
        let queue = &report_of(&metrics)["queue"];
        assert_eq!((&queue["batches"], &queue["events"], &queue["bytes"]), (&json!(2), &json!(18), &json!(750)));
        let highest = json!({"priority": 10, "batches": 1, "events": 9, "bytes": 700});
        assert_eq!(queue["by_priority"][0], highest);
        assert_eq!(queue["by_priority"].as_array().map(Vec::len), Some(11));
    }

    #[test]
    fn throughput_follows_the_ticks() {
        let (metrics, begin) = (Metrics::new("node-1", &[]), Instant::now());
        metrics.tick(begin, UnixMicros(0));
        metrics.events_accepted.add(3000);
        metrics.events_committed.add(1000);
        metrics.tick(begin + Duration::from_secs(2), UnixMicros(2_000_000));
        let throughput = &report_of(&metrics)["throughput"];
        assert_eq!(throughput["accepted_events_per_second"], json!({"1s": 1500.0, "10s": 1500.0, "60s": 1500.0}));
        assert_eq!(throughput["committed_events_per_second"]["10s"], json!(500.0));
    }

    #[test]
    fn errors_are_listed_by_kind_once_they_occur() {
        let metrics = Metrics::new("node-1", &["missing_field", "too_long"]);
        assert_eq!(
            report_of(&metrics)["errors"],
            json!({"rejected_events": {}, "requests": {}, "auth": {}, "database": {}})
        );
        metrics.events_rejected.add("too_long", 3);
        metrics.requests.count(Route::IngestBatch, HttpStatus(503));
        metrics.requests.count(Route::BatchStatus, HttpStatus(503));
        metrics.requests.count(Route::IngestBatch, HttpStatus(202));
        metrics.db_errors.add(SqlstateClass::of(Some("40001")), 1);
        metrics.auth_failures.add(AuthFailure::Wrong, 4);
        let expected = json!({
            "rejected_events": {"too_long": 3}, "requests": {"503": 2}, "auth": {"key_invalid": 4}, "database": {"40": 1},
        });
        assert_eq!(report_of(&metrics)["errors"], expected);
    }

    #[test]
    fn the_report_says_whose_it_is_and_what_the_process_takes() {
        let metrics = Metrics::new("node-1", &[]);
        metrics.journal_limit_bytes.set(4096);
        metrics.db_pool_connections.of(PoolState::Busy).set(3);
        let report = report_of(&metrics);
        assert_eq!(report["node"], "node-1");
        assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(report["journal"], json!({"bytes": 0, "limit_bytes": 4096, "fsyncs": 0}));
        assert_eq!(report["pool"], json!({"idle": 0, "busy": 3}));
        assert!(report["process"]["resident_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000));
        assert!(report["process"]["cpu_seconds"].is_f64());
    }
}
