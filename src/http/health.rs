//! `GET /v1/health` and `GET /readyz`

use hyper::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::gate::Caller;
use crate::auth::scope::Scope;
use crate::http::app::{App, JournalRoom};
use crate::http::problem::Problem;
use crate::http::route::{Reply, json as json_reply, plain};
use crate::http::worker::Worker;
use crate::limits::{MAINTENANCE_RETRY_INTERVAL, PARTITION_UPKEEP_INTERVAL, RETRY_AFTER_JOURNAL_SECONDS};
use crate::pg::citus::cluster::{Cluster, Worker as CitusWorker};
use crate::pg::health::Doubt;

/// Ingestion is not possible.
pub(super) const UNHEALTHY: &str = "unhealthy";

/// Health in one word, for callers without the scope `metrics`.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthWord {
    /// `unhealthy`: ingestion is not possible; `degraded`: it is, and something needs attention.
    #[schema(pattern = "^(healthy|degraded|unhealthy)$")]
    status: &'static str,
}

/// Health with details.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `unhealthy`: ingestion is not possible; `degraded`: it is, and something needs attention.
    #[schema(pattern = "^(healthy|degraded|unhealthy)$")]
    pub(super) status: &'static str,
    /// The individual checks.
    pub(super) checks: Checks,
    /// `NODE_ID`.
    pub(super) node: String,
    /// The server's version.
    pub(super) version: &'static str,
    /// Seconds since the server started.
    pub(super) uptime_seconds: u64,
}

/// The individual checks.
#[derive(Serialize, ToSchema)]
#[schema(as = HealthChecks)]
pub(super) struct Checks {
    /// PostgreSQL.
    pub(super) database: DatabaseCheck,
    /// Redis.
    pub(super) redis: RedisCheck,
    /// The journal.
    pub(super) journal: JournalCheck,
    /// Rows held in memory.
    pub(super) memory: MemoryCheck,
    /// HTTP workers.
    pub(super) workers: WorkersCheck,
    /// Chores in PostgreSQL: partitions ahead, retention.
    pub(super) maintenance: MaintenanceCheck,
}

/// PostgreSQL.
#[derive(Serialize, ToSchema)]
pub(super) struct DatabaseCheck {
    /// `failing` when some or all batches cannot be committed.
    #[schema(pattern = "^(ok|failing)$")]
    pub(super) status: &'static str,
    /// Seconds since PostgreSQL became available or unavailable.
    pub(super) since_seconds: u64,
    /// Connections of the pool.
    pub(super) connections: ConnectionFigures,
    /// `pooled` behind a transaction pooler such as PgBouncer, else `direct`.
    #[schema(pattern = "^(direct|pooled)$")]
    pub(super) sessions: &'static str,
    /// Batches waiting for their COPY.
    pub(super) queued_batches: u64,
    /// How many of those cannot be committed while others can.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) stuck_batches: Option<usize>,
    /// The Citus cluster, with `SHARDING=citus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) cluster: Option<ClusterFigures>,
    /// Why the status is `failing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) reason: Option<String>,
}

/// A Citus cluster, as its coordinator sees it.
#[derive(Serialize, ToSchema)]
pub(super) struct ClusterFigures {
    /// The workers of the cluster.
    workers: Vec<ClusterWorker>,
    /// Transactions prepared on a worker and undecided for a long time: they hold locks.
    undecided_transactions: u64,
}

/// A worker of a Citus cluster.
#[derive(Serialize, ToSchema)]
pub(super) struct ClusterWorker {
    /// `host:port`.
    address: String,
    /// `failing` while the coordinator cannot connect to it.
    #[schema(pattern = "^(ok|failing)$")]
    status: &'static str,
}

/// Connections of the pool.
#[derive(Serialize, ToSchema)]
pub(super) struct ConnectionFigures {
    /// Idle connections.
    pub(super) idle: u32,
    /// Connections in use.
    pub(super) busy: u32,
}

/// Redis.
#[derive(Serialize, ToSchema)]
pub(super) struct RedisCheck {
    /// `off` when `REDIS_URL` is not set.
    #[schema(pattern = "^(ok|failing|off)$")]
    pub(super) status: &'static str,
    /// Status updates dropped because Redis was unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) dropped: Option<u64>,
    /// Why the status is `failing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) reason: Option<String>,
}

/// The journal.
#[derive(Serialize, ToSchema)]
pub(super) struct JournalCheck {
    /// `failing` when the journal cannot be written, is full, or is damaged, or its files cannot be made or removed.
    #[schema(pattern = "^(ok|failing)$")]
    pub(super) status: &'static str,
    /// Size of the journal files in bytes.
    pub(super) bytes: u64,
    /// `JOURNAL_MAX_MB`.
    pub(super) bytes_max: u64,
    /// Number of journal files.
    pub(super) segments: u64,
    /// Batches not yet committed to PostgreSQL.
    pub(super) uncommitted_batches: u64,
    /// Size of those batches in bytes.
    pub(super) uncommitted_bytes: u64,
    /// Why the status is `failing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) reason: Option<String>,
}

/// Rows held in memory.
#[derive(Serialize, ToSchema)]
pub(super) struct MemoryCheck {
    /// Always `ok`: above the limit, rows stay in the journal only.
    #[schema(pattern = "^ok$")]
    pub(super) status: &'static str,
    /// Bytes of rows waiting for their COPY.
    pub(super) queued_bytes: u64,
    /// `MEMORY_LIMIT_MB`.
    pub(super) bytes_max: u64,
}

/// HTTP workers.
#[derive(Serialize, ToSchema)]
pub(super) struct WorkersCheck {
    /// Always `ok`: when a worker ends, the server exits.
    #[schema(pattern = "^ok$")]
    pub(super) status: &'static str,
    /// Number of HTTP workers.
    pub(super) count: usize,
}

/// Chores in PostgreSQL: partitions ahead, retention; and what waits for `ingestd migrate`.
#[derive(Serialize, ToSchema)]
pub(super) struct MaintenanceCheck {
    /// `failing` while PostgreSQL rejects a chore, or the schema waits for `ingestd migrate`. Batches are not affected.
    #[schema(pattern = "^(ok|failing)$")]
    pub(super) status: &'static str,
    /// Seconds from one time to the next.
    pub(super) interval_seconds: u64,
    /// Why the status is `failing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) reason: Option<String>,
}

/// The health document; 503 only when ingestion is not possible. The details are for callers with the scope `metrics`.
pub fn get(worker: &Worker, caller: Option<&Caller>) -> Reply {
    let document = Health::of(&worker.app);
    let code = if document.status == UNHEALTHY { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    if !caller.is_some_and(|caller| caller.may(Scope::Metrics)) {
        return Ok(json_reply(code, &HealthWord { status: document.status }));
    }
    Ok(json_reply(code, &document))
}

impl Health {
    /// `app` as it is now.
    pub(super) fn of(app: &App) -> Self {
        let unhealthy = app.journal_health.has_failed() || app.journal_room() == JournalRoom::Full;
        let redis_fails = app.redis.as_ref().is_some_and(|redis| !redis.is_working());
        let doubtful = app.queue.stuck().is_some() || app.database.doubtful().is_some();
        let journal = journal(app);
        let maintenance = maintenance(app);
        let degraded = !app.database.is_working()
            || doubtful
            || maintenance.reason.is_some()
            || redis_fails
            || journal.reason.is_some();
        Self {
            status: match (unhealthy, degraded) {
                (true, _) => UNHEALTHY,
                (false, true) => "degraded",
                (false, false) => "healthy",
            },
            checks: Checks {
                database: database(app),
                redis: redis(app),
                journal,
                memory: memory(app),
                workers: WorkersCheck { status: "ok", count: app.rings.len() },
                maintenance,
            },
            node: app.node.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: app.started_at.elapsed().as_secs(),
        }
    }
}

fn database(app: &App) -> DatabaseCheck {
    let state = app.pool.state();
    let reason = app.database.reason();
    let mut check = DatabaseCheck {
        status: if app.database.is_working() { "ok" } else { "failing" },
        since_seconds: app.database.since().elapsed().as_secs(),
        connections: ConnectionFigures {
            idle: state.idle_connections,
            busy: state.connections - state.idle_connections,
        },
        sessions: if app.database.is_pooled() { "pooled" } else { "direct" },
        queued_batches: app.queue.budgets.batches.used(),
        stuck_batches: None,
        cluster: app.database.cluster().map(cluster_figures),
        reason: None,
    };
    if !reason.is_empty() {
        check.reason = Some(reason);
    } else if let Some((batches, reason)) = app.queue.stuck() {
        check.status = "failing";
        check.stuck_batches = Some(batches);
        check.reason = Some(format!("{batches} batches cannot be committed while others can: {reason}"));
    } else if let Some(reason) = app.database.doubtful() {
        check.status = "failing";
        check.reason = Some(reason);
    }
    check
}

fn cluster_figures(cluster: Cluster) -> ClusterFigures {
    let worker = |worker: CitusWorker| ClusterWorker {
        address: worker.address,
        status: if worker.is_reachable { "ok" } else { "failing" },
    };
    ClusterFigures {
        workers: cluster.workers.into_iter().map(worker).collect(),
        undecided_transactions: cluster.in_doubt,
    }
}

fn redis(app: &App) -> RedisCheck {
    match &app.redis {
        None => RedisCheck { status: "off", dropped: None, reason: None },
        Some(redis) if redis.is_working() => RedisCheck { status: "ok", dropped: Some(redis.dropped()), reason: None },
        Some(redis) => RedisCheck { status: "failing", dropped: Some(redis.dropped()), reason: Some(redis.reason()) },
    }
}

fn journal(app: &App) -> JournalCheck {
    let (health, stats) = (&app.journal_health, app.space.stats());
    let given = |reason: String| Some(reason).filter(|reason| !reason.is_empty());
    let reason = match app.journal_room() {
        _ if health.has_failed() => Some(health.message()),
        _ if health.is_refusing() => {
            Some(format!("batches that need a new journal file are refused until it can be made: {}", health.refusal()))
        }
        JournalRoom::Full => Some("the journal is full: let PostgreSQL catch up, or raise JOURNAL_MAX_MB".to_owned()),
        JournalRoom::UrgentOnly => Some(
            "the journal is full but for batches of priority 8 and above: let PostgreSQL catch up, or raise \
             JOURNAL_MAX_MB"
                .to_owned(),
        ),
        JournalRoom::Free => given(health.damage()).or_else(|| given(health.hindrance())),
    };
    JournalCheck {
        status: if reason.is_some() { "failing" } else { "ok" },
        bytes: stats.files_bytes,
        bytes_max: stats.bytes_max,
        segments: stats.segments,
        uncommitted_batches: stats.live_frames,
        uncommitted_bytes: stats.live_bytes,
        reason,
    }
}

fn memory(app: &App) -> MemoryCheck {
    let memory = &app.queue.budgets.memory_bytes;
    MemoryCheck { status: "ok", queued_bytes: memory.used(), bytes_max: memory.limit() }
}

fn maintenance(app: &App) -> MaintenanceCheck {
    let failed = app.database.reason_of(Doubt::Maintenance);
    let interval = if failed.is_some() { MAINTENANCE_RETRY_INTERVAL } else { PARTITION_UPKEEP_INTERVAL };
    let reason = failed.or_else(|| app.database.reason_of(Doubt::Migration));
    let status = if reason.is_some() { "failing" } else { "ok" };
    MaintenanceCheck { status, interval_seconds: interval.as_secs(), reason }
}

/// Whether this node may take traffic.
pub fn readyz(worker: &Worker) -> Reply {
    match worker.app.unready_reason() {
        None => Ok(plain(StatusCode::OK, "ready\n")),
        Some(reason) => Err(Problem::unavailable("not_ready", reason, RETRY_AFTER_JOURNAL_SECONDS)),
    }
}
