//! Holding requests back while PostgreSQL has more to commit than it can in time.

use std::time::Instant;

use crate::http::problem::Problem;
use crate::http::query::IngestQuery;
use crate::http::worker::Worker;
use crate::json::peek::PeekedPriority;
use crate::limits::{OVERLOAD_POLL, OVERLOAD_WAIT_MAX, RETRY_AFTER_OVERLOAD_SECONDS_MAX};
use crate::types::Priority;

/// Holds a request back while PostgreSQL has more to commit than it can in time: clients that wait for their answers
/// then send as fast as it commits, and neither they nor the server spend anything on refusals. Others are refused
/// after a while.
pub(super) async fn wait_for_room(worker: &Worker, priority: Priority) -> Result<(), Problem> {
    let arrived = Instant::now();
    while let Some(over) = worker.app.overload(priority) {
        let now = Instant::now();
        worker.app.queue.admission.turned_away(priority, now);
        if now - arrived >= OVERLOAD_WAIT_MAX || worker.app.is_draining() {
            let detail = "the server is overloaded: PostgreSQL cannot commit the backlog in time; nothing in this \
                request was accepted";
            let seconds = over.as_secs().clamp(1, RETRY_AFTER_OVERLOAD_SECONDS_MAX);
            return Err(Problem::unavailable("overloaded", detail, seconds as u32));
        }
        tokio::time::sleep(OVERLOAD_POLL).await;
    }
    Ok(())
}

/// The same before the body is scanned, or received at all, when an overload makes it worth a look whose turn it is.
pub(super) async fn wait_for_room_if_known(
    worker: &Worker,
    peek: impl Fn() -> PeekedPriority,
    query: &IngestQuery,
) -> Result<(), Problem> {
    if worker.app.overload(Priority::default()).is_none() {
        return Ok(());
    }
    match peek() {
        PeekedPriority::Given(priority) => wait_for_room(worker, priority).await,
        PeekedPriority::Absent => wait_for_room(worker, query.priority.unwrap_or_default()).await,
        PeekedPriority::Unknown => Ok(()),
    }
}
