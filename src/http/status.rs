//! `GET /v1/batch/{batch_id}/status`

use std::sync::Arc;

use hyper::StatusCode;

use crate::http::problem::Problem;
use crate::http::route::{Reply, json};
use crate::http::worker::Worker;
use crate::limits::{LOOKUP_STATUS_WAIT_MAX, RETRY_AFTER_BUSY_SECONDS};
use crate::status::lookup::Answer;
use crate::types::{BatchKey, batch_id_is_valid};

/// This process first, then Redis and the ledger.
pub async fn get(worker: &Worker, id: String) -> Reply {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "batch_unknown", "no batch of this id is known");
    if !batch_id_is_valid(&id) {
        return Err(unknown());
    }
    let key = BatchKey { owner: Arc::from(""), id: id.into_boxed_str() };
    if let Some(batch) = worker.app.batches.get(&key) {
        return Ok(json(StatusCode::OK, &batch.document(&worker.app.node)));
    }
    match worker.app.lookup.find(&key, LOOKUP_STATUS_WAIT_MAX).await {
        Answer::Known(known) => Ok(json(StatusCode::OK, &known.document)),
        Answer::Unknown => Err(unknown()),
        Answer::Unavailable => {
            let detail = "this node does not know the batch, and PostgreSQL cannot be asked now";
            Err(Problem::unavailable("status_unavailable", detail, RETRY_AFTER_BUSY_SECONDS))
        }
    }
}
