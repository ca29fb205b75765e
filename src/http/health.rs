//! `GET /v1/health` and `GET /readyz`

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::auth::gate::Caller;
use crate::auth::scope::Scope;
use crate::http::app::App;
use crate::http::problem::Problem;
use crate::http::route::{Reply, json as json_reply, plain};
use crate::http::worker::Worker;
use crate::limits::RETRY_AFTER_JOURNAL_SECONDS;

/// The health document; 503 only when ingestion is not possible. The figures are for callers who may read metrics.
pub fn get(worker: &Worker, caller: Option<&Caller>) -> Reply {
    let app = &worker.app;
    let unhealthy = app.journal_health.has_failed() || app.journal_is_full();
    let redis_fails = app.redis.as_ref().is_some_and(|redis| !redis.is_working());
    let doubtful = app.queue.stuck().is_some() || app.database.doubtful().is_some();
    let degraded = !app.database.is_working() || doubtful || redis_fails || !app.journal_health.damage().is_empty();
    let (code, status) = match (unhealthy, degraded) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        (false, true) => (StatusCode::OK, "degraded"),
        (false, false) => (StatusCode::OK, "healthy"),
    };
    if !caller.is_some_and(|caller| caller.may(Scope::Metrics)) {
        return Ok(json_reply(code, &json!({ "status": status })));
    }
    let document = json!({
        "status": status,
        "checks": {
            "database": database(app),
            "redis": redis(app),
            "journal": journal(app),
            "memory": memory(app),
            "workers": { "status": "ok", "count": app.rings.len() },
        },
        "node": &*app.node,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started_at.elapsed().as_secs(),
    });
    Ok(json_reply(code, &document))
}

fn database(app: &App) -> Value {
    let state = app.pool.state();
    let busy = state.connections - state.idle_connections;
    let mut check = json!({
        "status": if app.database.is_working() { "ok" } else { "failing" },
        "since_seconds": app.database.since().elapsed().as_secs(),
        "connections": { "idle": state.idle_connections, "busy": busy },
        "queued_batches": app.queue.budgets.batches.used(),
    });
    let reason = app.database.reason();
    if !reason.is_empty() {
        check["reason"] = Value::String(reason);
    } else if let Some((batches, reason)) = app.queue.stuck() {
        check["status"] = Value::String("failing".to_owned());
        check["stuck_batches"] = Value::from(batches);
        check["reason"] = Value::String(format!("{batches} batches cannot land while others can: {reason}"));
    } else if let Some(reason) = app.database.doubtful() {
        check["status"] = Value::String("failing".to_owned());
        check["reason"] = Value::String(reason);
    }
    check
}

fn redis(app: &App) -> Value {
    match &app.redis {
        None => json!({ "status": "off" }),
        Some(redis) if redis.is_working() => json!({ "status": "ok", "dropped": redis.dropped() }),
        Some(redis) => json!({ "status": "failing", "reason": redis.reason(), "dropped": redis.dropped() }),
    }
}

fn journal(app: &App) -> Value {
    let (failed, full, damage) = (app.journal_health.has_failed(), app.journal_is_full(), app.journal_health.damage());
    let status = if failed || full || !damage.is_empty() { "failing" } else { "ok" };
    let stats = app.space.stats();
    let mut check = json!({
        "status": status,
        "bytes": stats.files_bytes,
        "bytes_max": stats.bytes_max,
        "segments": stats.segments,
        "uncommitted_batches": stats.live_frames,
        "uncommitted_bytes": stats.live_bytes,
    });
    if failed {
        check["reason"] = Value::String(app.journal_health.message());
    } else if full {
        check["reason"] = Value::String("full: PostgreSQL must catch up, or JOURNAL_MAX_MB be raised".to_owned());
    } else if !damage.is_empty() {
        check["reason"] = Value::String(damage);
    }
    check
}

fn memory(app: &App) -> Value {
    let memory = &app.queue.budgets.memory_bytes;
    json!({ "status": "ok", "queued_bytes": memory.used(), "bytes_max": memory.limit() })
}

/// Whether this node may take traffic.
pub fn readyz(worker: &Worker) -> Reply {
    match worker.app.unready_reason() {
        None => Ok(plain(StatusCode::OK, "ready\n")),
        Some(reason) => Err(Problem::unavailable("not_ready", reason, RETRY_AFTER_JOURNAL_SECONDS)),
    }
}
