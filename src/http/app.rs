//! What all workers share.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::sync::Unparker;

use crate::auth::gate::Gate;
use crate::encode::pool::BlockPool;
use crate::flush::queue::FlushQueue;
use crate::http::body::BodyLimits;
use crate::http::connections::Connections;
use crate::http::site::Hosts;
use crate::http::stream::Patience;
use crate::http::submission::Submission;
use crate::http::tls::Tls;
use crate::journal::{JournalHealth, JournalSpace};
use crate::limits::JOURNAL_FULL_HEADROOM_SHARE;
use crate::metrics::{Metrics, PoolState, WorkerState};
use crate::pg::health::DatabaseHealth;
use crate::pg::pool::Pool;
use crate::ring::budget::Budget;
use crate::ring::ring::Ring;
use crate::status::durable::Durable;
use crate::status::lookup::Lookup;
use crate::status::memory::BatchMap;
use crate::status::recent::Recent;
use crate::status::shared::{DatabaseId, RedisHealth};
use crate::telemetry::Traces;
use crate::types::{AckLevel, Priority, UnixMicros};

/// Limits and defaults of ingestion, from the settings.
#[derive(Clone, Debug)]
pub struct IngestSettings {
    /// `ACK`.
    pub ack: AckLevel,
    /// `MAX_BODY_MB`, `BODY_MIN_KB_PER_SECOND`.
    pub body_limits: BodyLimits,
    /// `MAX_EVENTS_PER_BATCH`.
    pub events_max: usize,
    /// `EVENT_MAX_AGE_DAYS`.
    pub event_age_max: Duration,
    /// `EVENT_MAX_FUTURE_HOURS`.
    pub event_future_max: Duration,
}

impl IngestSettings {
    /// The accepted range of `timestamp` for a request received at `now`.
    pub fn timestamps(&self, now: UnixMicros) -> RangeInclusive<UnixMicros> {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        UnixMicros(now.0.saturating_sub(micros(self.event_age_max)))
            ..=UnixMicros(now.0.saturating_add(micros(self.event_future_max)))
    }
}

/// How large the head of a request may be.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Headers: 431 beyond.
    pub headers_max: usize,
    /// Bytes of the whole head: 431 beyond. It is also the read buffer of a connection of HTTP/1 at most: each keeps its
    /// own, which no budget counts, and larger ones bring no fewer system calls that would matter.
    pub bytes_max: usize,
    /// Bytes of path and query: 414 beyond.
    pub url_bytes_max: usize,
}

/// Everything that a worker reaches.
pub struct App {
    /// Limits and defaults.
    pub settings: IngestSettings,
    /// How long a connection may wait for its client.
    pub patience: Patience,
    /// How large heads may be.
    pub head_limits: HeadLimits,
    /// The hosts that requests may be for.
    pub hosts: Hosts,
    /// What HTTPS is served with; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// Who is connected.
    pub connections: Arc<Connections>,
    /// Who may do what.
    pub gate: Gate,
    /// A ring a worker.
    pub rings: Box<[Ring<Submission>]>,
    /// Wakes the journal thread.
    pub journal: Unparker,
    /// Room in the journal.
    pub space: Arc<JournalSpace>,
    /// Its state.
    pub journal_health: Arc<JournalHealth>,
    /// How far it survives power loss.
    pub durable: Durable,
    /// What waits for COPY.
    pub queue: Arc<FlushQueue>,
    /// Batches of this process.
    pub batches: Arc<BatchMap>,
    /// The latest of them.
    pub recent: Arc<Recent>,
    /// Batches of others.
    pub lookup: Lookup,
    /// Buffers for blocks.
    pub blocks: Arc<BlockPool>,
    /// Request bytes in memory.
    pub request_bytes: Arc<Budget>,
    /// PostgreSQL's state.
    pub database: Arc<DatabaseHealth>,
    /// Which database it is.
    pub database_id: Arc<DatabaseId>,
    /// Its connections, for their figures.
    pub pool: Pool,
    /// Redis's state; `None` when it is not set.
    pub redis: Option<Arc<RedisHealth>>,
    /// The registry.
    pub metrics: Arc<Metrics>,
    /// Where spans of sampled requests go; `None`: nowhere.
    pub traces: Option<Arc<Traces>>,
    /// `NODE_ID`.
    pub node: Arc<str>,
    /// When the process began to serve.
    pub started_at: Instant,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Set at SIGTERM: no new request is taken.
    pub draining: AtomicBool,
}

/// How much room the journal has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JournalRoom {
    /// Room for everybody.
    #[default]
    Free,
    /// Room for batches of priority 8 and above only.
    UrgentOnly,
    /// No room worth sending traffic for.
    Full,
}

impl App {
    /// True after SIGTERM.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// How much room the journal has.
    pub fn journal_room(&self) -> JournalRoom {
        let stats = self.space.stats();
        let is_below = |mark: u64| stats.charged_bytes + mark / JOURNAL_FULL_HEADROOM_SHARE <= mark;
        match (is_below(stats.normal_bytes_max), is_below(stats.urgent_bytes_max)) {
            (true, _) => JournalRoom::Free,
            (false, true) => JournalRoom::UrgentOnly,
            (false, false) => JournalRoom::Full,
        }
    }

    /// Brings those metrics up to date that others keep.
    pub fn read_gauges(&self) {
        let state = self.pool.state();
        let pool = &self.metrics.db_pool_connections;
        pool.of(PoolState::Idle).set(u64::from(state.idle_connections));
        pool.of(PoolState::Busy).set(u64::from(state.connections - state.idle_connections));
        self.metrics.memory_bytes.set(self.queue.budgets.memory_bytes.used());
        self.metrics.journal_bytes.set(self.space.stats().files_bytes);
        self.metrics.journal_damaged.set(u64::from(!self.journal_health.damage().is_empty()));
        self.metrics.ready.set(u64::from(self.unready_reason().is_none()));
        self.metrics.database_up.set(u64::from(self.database.is_working()));
        self.metrics.stuck_batches.set(self.queue.stuck().map_or(0, |(batches, _)| batches as u64));
        if let Some(cluster) = self.database.cluster() {
            let reachable = cluster.workers.iter().filter(|worker| worker.is_reachable).count();
            let workers = &self.metrics.citus_workers;
            workers.of(WorkerState::Reachable).set(reachable as u64);
            workers.of(WorkerState::Unreachable).set((cluster.workers.len() - reachable) as u64);
            self.metrics.citus_undecided_transactions.set(cluster.in_doubt);
        }
    }

    /// For how long a batch of `priority` should stay away, because it would wait for too long while PostgreSQL works.
    pub fn overload(&self, priority: Priority) -> Option<Duration> {
        if !self.database.is_working() {
            return None;
        }
        self.queue.admission.refusal(priority, Instant::now())
    }

    /// Why this node should get no traffic now; `None` when it is ready. PostgreSQL away alone is no reason.
    pub fn unready_reason(&self) -> Option<&'static str> {
        // Some batches are still taken then; other nodes take all.
        let refuses = self.journal_health.is_refusing();
        self.closed_reason().or_else(|| refuses.then_some("the journal cannot begin its next file"))
    }

    /// Why this node takes no batch at all; `None` when it takes some.
    pub fn closed_reason(&self) -> Option<&'static str> {
        if self.is_draining() {
            Some("draining: the server is shutting down")
        } else if self.journal_health.has_failed() {
            Some("the journal cannot be written; the server restarts")
        } else if self.journal_room() == JournalRoom::Full {
            Some("the journal is full")
        } else {
            None
        }
    }
}
