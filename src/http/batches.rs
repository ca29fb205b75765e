//! `GET /v1/batches`, `POST /v1/batch/{batch_id}/retry` and `POST /v1/batch/{batch_id}/bury`: what waits on this node, and
//! what an operator does about a stuck batch. For callers with the scope `admin`.
//!
//! A wish is noted with the batch and needs no PostgreSQL: a flusher fulfils it as soon as it can. So there is nothing to
//! wait for, and asking twice does no harm.
//!
//! Absent on purpose: batches of other nodes, which wait where they were accepted.

use std::sync::Arc;
use std::time::Instant;

use hyper::StatusCode;
use hyper::header::{HeaderMap, ORIGIN};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::gate::Caller;
use crate::flush::waiting::{Asked, Stuck, WaitingBatch, Wish};
use crate::http::problem::Problem;
use crate::http::query::{bad, parameter};
use crate::http::route::{Reply, json};
use crate::http::status::{ambiguous, every_owner, unknown};
use crate::http::worker::Worker;
use crate::limits::{WAITING_LISTED_DEFAULT, WAITING_LISTED_MAX};
use crate::status::model::{Batch, rfc3339};
use crate::sys::clock::wall_now;
use crate::types::{BatchKey, UnixMicros, batch_id_is_valid};

/// Batches that wait on a node.
#[derive(Serialize, ToSchema)]
pub(super) struct WaitingBatches {
    /// Batches that wait; with `stuck=true`, those that are stuck.
    total: usize,
    /// Batches that cannot be committed at present, although others can.
    stuck: usize,
    /// The first `limit` of them: stuck ones, then the others, the oldest first.
    batches: Vec<Waits>,
}

/// A batch that waits.
#[derive(Serialize, ToSchema)]
#[schema(as = WaitingBatch)]
struct Waits {
    /// The batch's id.
    #[schema(min_length = 1, max_length = 128, pattern = "^(\\.{0,2}[A-Za-z0-9_:-]|\\.{3})[A-Za-z0-9._:-]*$")]
    batch_id: String,
    /// The id of the key that sent it; empty without keys.
    owner: String,
    /// `queued`, or `processing` while it is tried.
    #[schema(pattern = "^(queued|processing)$")]
    status: &'static str,
    /// 0–10.
    #[schema(maximum = 10)]
    priority: u8,
    /// Events in it.
    events: u32,
    /// RFC 3339, UTC.
    #[schema(format = DateTime)]
    received_at: String,
    /// Why it cannot be committed; absent if it only waits for its turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stuck: Option<StuckBecause>,
}

/// Why a batch cannot be committed.
#[derive(Serialize, ToSchema)]
#[schema(as = StuckBatch)]
struct StuckBecause {
    /// RFC 3339, UTC: the first failure since the server started; null if it waits for its shard.
    #[schema(required, format = DateTime)]
    since: Option<String>,
    /// How often it failed.
    attempts: u32,
    /// RFC 3339, UTC: not before; null while it is tried, and if it waits for its shard.
    #[schema(required, format = DateTime)]
    next_attempt_at: Option<String>,
    /// PostgreSQL's code of the last failure; null if it waits for its shard.
    #[schema(required)]
    sqlstate: Option<String>,
    /// The last failure.
    reason: String,
    /// An operator has given it up: the next attempt turns its events into dead letters.
    given_up: bool,
}

/// What waits here.
pub async fn list(worker: &Worker, query: Option<&str>) -> Reply {
    let only_stuck = match parameter(query, "stuck")?.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(bad("stuck", "must be true or false")),
    };
    let limit = match parameter(query, "limit")? {
        None => WAITING_LISTED_DEFAULT,
        Some(text) => {
            let limit = text.parse().ok().filter(|limit| (1..=WAITING_LISTED_MAX).contains(limit));
            limit.ok_or_else(|| bad("limit", &format!("must be a whole number from 1 to {WAITING_LISTED_MAX}")))?
        }
    };
    let app = Arc::clone(&worker.app);
    // It may look at a hundred thousand batches, and flushers may hold the lock: the worker serves others meanwhile.
    let looked = tokio::task::spawn_blocking(move || app.queue.waiting(only_stuck, limit)).await;
    let list = looked.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
    let clock = Clock { now: Instant::now(), wall: wall_now() };
    let batches = list.batches.iter().map(|waiting| clock.describe(waiting)).collect();
    Ok(json(StatusCode::OK, &WaitingBatches { total: list.total, stuck: list.stuck, batches }))
}

/// Notes what `caller` wishes for the stuck batch called `id`.
pub fn ask(worker: &Worker, caller: &Caller, headers: &HeaderMap, id: &str, owner: Option<&str>, wish: Wish) -> Reply {
    if headers.contains_key(ORIGIN) {
        let detail =
            "the request comes from a web page (it has an Origin header); send it with 'ingestd batches' or curl";
        return Err(Problem::new(StatusCode::FORBIDDEN, "cross_site", detail));
    }
    if !batch_id_is_valid(id) {
        return Err(unknown());
    }
    match worker.app.queue.ask(id, owner, wish) {
        Asked::Noted(batch) => {
            tracing::warn!(batch = %batch.key, request_id = batch.request_id(), trace_id = batch.trace_id(),
                key = %caller.owner(), "{}", message(wish));
            Ok(json(StatusCode::ACCEPTED, &batch.document(&worker.app.node)))
        }
        Asked::Several(owners) => Err(ambiguous(owners.iter().map(|owner| &**owner).collect())),
        Asked::Nobody => Err(match known(worker, id, owner) {
            None => unknown(),
            Some(batch) => {
                let detail = format!(
                    "the batch is {} and not stuck: only a batch that cannot be committed although others can may be \
                     retried or buried",
                    batch.phase().name()
                );
                Problem::new(StatusCode::CONFLICT, "batch_not_stuck", detail)
            }
        }),
    }
}

fn message(wish: Wish) -> &'static str {
    match wish {
        Wish::Retry => "an operator asked to retry the batch; its next attempt is due now",
        Wish::Bury => "an operator has given up the batch; its next attempt turns its events into dead letters",
    }
}

/// The batch called `id` that this node knows, whosever it is unless `owner` says that.
fn known(worker: &Worker, id: &str, owner: Option<&str>) -> Option<Arc<Batch>> {
    let find = |owner: Arc<str>| worker.app.batches.get(&BatchKey { owner, id: Box::from(id) });
    match (owner, worker.app.gate.keyring()) {
        (Some(owner), _) => find(Arc::from(owner)),
        (None, Some(keyring)) => every_owner(worker, &keyring).find_map(find),
        (None, None) => find(Arc::clone(&worker.everybody)),
    }
}

/// The moment of the answer, on both clocks.
struct Clock {
    now: Instant,
    wall: UnixMicros,
}

impl Clock {
    fn describe(&self, waiting: &WaitingBatch) -> Waits {
        let batch = &waiting.batch;
        Waits {
            batch_id: batch.key.id.to_string(),
            owner: batch.key.owner.to_string(),
            // One that has landed since was still in the list.
            status: if batch.phase().is_final() { "processing" } else { batch.phase().name() },
            priority: batch.priority.get(),
            events: batch.events,
            received_at: rfc3339(batch.received_at),
            stuck: waiting.stuck.as_ref().map(|stuck| self.explain(stuck)),
        }
    }

    fn explain(&self, stuck: &Stuck) -> StuckBecause {
        StuckBecause {
            since: stuck.since.map(|since| self.text(since)),
            attempts: stuck.attempts,
            next_attempt_at: stuck.due.map(|due| self.text(due)),
            sqlstate: stuck.sqlstate.clone(),
            reason: stuck.reason.to_string(),
            given_up: stuck.is_given_up,
        }
    }

    fn text(&self, at: Instant) -> String {
        let micros = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let behind = micros(self.now.saturating_duration_since(at));
        let ahead = micros(at.saturating_duration_since(self.now));
        rfc3339(UnixMicros(self.wall.0.saturating_sub(behind).saturating_add(ahead)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_of_the_process_are_told_by_the_wall_clock() {
        let clock = Clock { now: Instant::now() + Duration::from_secs(60), wall: UnixMicros(1_000_000_000_000_000) };
        assert_eq!(clock.text(clock.now), "2001-09-09T01:46:40Z");
        assert_eq!(clock.text(clock.now - Duration::from_secs(40)), "2001-09-09T01:46:00Z");
        assert_eq!(clock.text(clock.now + Duration::from_secs(20)), "2001-09-09T01:47:00Z");
    }
}
