//! Every metric of the server, as a field. The names and help texts stand in `export`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::cells::{Counter, Counters, Gauge, Gauges, NamedCounters, RequestCounters};
use super::histogram::{Histogram, Histograms};
use super::history::{self, History};
use super::labels::{AuthFailure, BatchOutcome, PoolState, SqlstateClass, Statement, WorkerState};
use super::throughput::{Rates, Sample, Samples};
use crate::limits::THROUGHPUT_WINDOWS;
use crate::types::{Priority, UnixMicros};

/// The closed set of metrics of one server.
///
/// Counters and gauges are touched through the fields by whoever owns the fact; a thread that times something takes
/// its recorders at start-up ([`Histogram::recorder`]).
#[derive(Debug)]
pub struct Metrics {
    /// Events of accepted batches, without rejected ones.
    pub events_accepted: Counter,
    /// Events refused by validation, by the code in the answer.
    pub events_rejected: NamedCounters,
    /// Events inserted into PostgreSQL, committed.
    pub events_committed: Counter,
    /// Events that PostgreSQL already had.
    pub events_duplicate: Counter,
    /// Events that PostgreSQL refused.
    pub events_dead_lettered: Counter,
    /// Batches by what became of them.
    pub batches: Counters<BatchOutcome>,
    /// Those of them that another transaction had committed before. `journal drain` tells it; not exported, as a server's
    /// replays say nothing of its health.
    pub batches_before: Counter,
    /// Events in them.
    pub events_before: Counter,
    /// Answered requests.
    pub requests: RequestCounters,
    /// Requests that were not let in.
    pub auth_failures: Counters<AuthFailure>,
    /// Errors from PostgreSQL.
    pub db_errors: Counters<SqlstateClass>,

    /// Batches accepted and not yet taken by a COPY.
    pub queue_batches: Gauges<Priority>,
    /// Events in them.
    pub queue_events: Gauges<Priority>,
    /// Bytes of them, in memory or only in the journal. Exported without the label, as the sum.
    pub queue_bytes: Gauges<Priority>,
    /// Bytes of rows held in memory, against `MEMORY_LIMIT_MB`.
    pub memory_bytes: Gauge,
    /// The limit on [`Metrics::memory_bytes`].
    pub memory_limit_bytes: Gauge,
    /// Bytes that the journal takes on disk, against `JOURNAL_MAX_MB`.
    pub journal_bytes: Gauge,
    /// The limit on [`Metrics::journal_bytes`].
    pub journal_limit_bytes: Gauge,
    /// Waiting batches that were written to the journal again, so that they do not hold a segment.
    pub journal_relocated_batches: Counter,
    /// Bytes of them.
    pub journal_relocated_bytes: Counter,
    /// 1 when the journal has damage that was set aside or could not be read.
    pub journal_damaged: Gauge,
    /// 1 while this node may take traffic, as `/readyz` says.
    pub ready: Gauge,
    /// 1 while PostgreSQL answers.
    pub database_up: Gauge,
    /// Connections to PostgreSQL.
    pub db_pool_connections: Gauges<PoolState>,
    /// The limit on their number.
    pub db_pool_connections_limit: Gauge,
    /// Batches that cannot land while others can.
    pub stuck_batches: Gauge,
    /// Workers of the Citus cluster, none where there is none (`SHARDING`).
    pub citus_workers: Gauges<WorkerState>,
    /// Transactions that Citus workers have prepared and nobody has decided for long.
    pub citus_undecided_transactions: Gauge,

    /// Request received to answer sent.
    pub ack_latency: Histogram,
    /// Batch accepted to its COPY's beginning.
    pub queue_latency: Histogram,
    /// `COPY events FROM STDIN`, first byte to last answer.
    pub copy_latency: Histogram,
    /// Request received to commit.
    pub batch_latency: Histogram,
    /// One fsync of the journal.
    pub journal_fsync: Histogram,
    /// Statements sent to PostgreSQL; [`Statement::Commit`] is the commit latency of the JSON form.
    pub db_query: Histograms<Statement>,
    /// Rows a COPY.
    pub copy_rows: Histogram,

    node: Box<str>,
    started_at: Instant,
    samples: Mutex<Samples>,
    history: Mutex<History>,
}

impl Metrics {
    /// All at zero. `node` is the `NODE_ID`; `rejection_codes` are the codes that [`Metrics::events_rejected`] takes.
    pub fn new(node: &str, rejection_codes: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            events_accepted: Counter::default(),
            events_rejected: NamedCounters::new(rejection_codes),
            events_committed: Counter::default(),
            events_duplicate: Counter::default(),
            events_dead_lettered: Counter::default(),
            batches: Counters::new(),
            batches_before: Counter::default(),
            events_before: Counter::default(),
            requests: RequestCounters::new(),
            auth_failures: Counters::new(),
            db_errors: Counters::new(),
            queue_batches: Gauges::new(),
            queue_events: Gauges::new(),
            queue_bytes: Gauges::new(),
            memory_bytes: Gauge::default(),
            memory_limit_bytes: Gauge::default(),
            journal_bytes: Gauge::default(),
            journal_limit_bytes: Gauge::default(),
            journal_relocated_batches: Counter::default(),
            journal_relocated_bytes: Counter::default(),
            journal_damaged: Gauge::default(),
            ready: Gauge::default(),
            database_up: Gauge::default(),
            db_pool_connections: Gauges::new(),
            db_pool_connections_limit: Gauge::default(),
            stuck_batches: Gauge::default(),
            citus_workers: Gauges::new(),
            citus_undecided_transactions: Gauge::default(),
            ack_latency: Histogram::of_latencies(),
            queue_latency: Histogram::of_latencies(),
            copy_latency: Histogram::of_latencies(),
            batch_latency: Histogram::of_latencies(),
            journal_fsync: Histogram::of_latencies(),
            db_query: Histograms::of_latencies(),
            copy_rows: Histogram::of_rows(),
            node: node.into(),
            started_at: Instant::now(),
            samples: Mutex::default(),
            history: Mutex::default(),
        })
    }

    /// Samples throughput and history; one thread calls it about once a second. `at` is the wall clock's `now`.
    pub fn tick(&self, now: Instant, at: UnixMicros) {
        self.samples.lock().push(Sample {
            at: now,
            events_accepted: self.events_accepted.get(),
            events_committed: self.events_committed.get(),
        });
        self.history.lock().push(self, at);
    }

    /// The samples from number `first` on, or what is left of them, and the number of the next one.
    pub fn history(&self, first: u64) -> (Vec<history::Sample>, u64) {
        self.history.lock().from(first)
    }

    /// The `NODE_ID`.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Time since the server started.
    pub fn uptime(&self) -> Duration {
        self.started_at.elapsed()
    }

    pub(super) fn rates(&self) -> [Rates; THROUGHPUT_WINDOWS.len()] {
        self.samples.lock().rates()
    }
}
