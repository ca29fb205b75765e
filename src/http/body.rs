//! Reading a request body within its limits, into buffers that the worker reuses.

use std::cell::RefCell;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};

use crate::http::problem::Problem;
use crate::limits::{
    BODY_BUFFER_KEPT_BYTES_MAX, BODY_BUFFERS_KEPT_MAX, BODY_RESERVE_STEP_BYTES, RETRY_AFTER_BUSY_SECONDS,
};
use crate::ring::budget::Budget;

/// Buffers of finished requests, for the next ones. One a worker; not shared between threads.
#[derive(Default)]
pub struct BufferPool {
    buffers: RefCell<Vec<Vec<u8>>>,
}

impl BufferPool {
    fn take(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if (1..=BODY_BUFFER_KEPT_BYTES_MAX).contains(&buffer.capacity()) && buffers.len() < BODY_BUFFERS_KEPT_MAX {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

/// A body in memory; its buffer goes back to the pool, its bytes to the budget, when it is dropped.
pub struct BodyBytes<'a> {
    bytes: Vec<u8>,
    reserved_bytes: u64,
    pool: &'a BufferPool,
    budget: Arc<Budget>,
}

impl BodyBytes<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives the buffer back early. `bytes` stay counted until this is dropped: what the request holds instead. They may
    /// pass the limit, as that work is done; then no other body is begun.
    pub fn exchange_for(&mut self, bytes: u64) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
        self.budget.take_over_limit(bytes);
        self.budget.give_back(std::mem::replace(&mut self.reserved_bytes, bytes));
    }
}

impl Drop for BodyBytes<'_> {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
        self.budget.give_back(self.reserved_bytes);
    }
}

/// Reads `incoming`, at most `bytes_max` bytes. A declared length over the limit is refused before anything
/// is read; memory is taken from `budget` as bytes arrive, not as they are promised.
pub async fn read<'a>(
    mut incoming: Incoming,
    bytes_max: usize,
    pool: &'a BufferPool,
    budget: &Arc<Budget>,
) -> Result<BodyBytes<'a>, Problem> {
    let declared = incoming.size_hint();
    if declared.lower() > bytes_max as u64 {
        return Err(too_large(bytes_max));
    }
    // What does not fit as it is promised is not begun: under overload most of what arrives would be read for nothing.
    if declared.lower() > budget.limit().saturating_sub(budget.used()) {
        return Err(busy());
    }
    let mut body = BodyBytes { bytes: pool.take(), reserved_bytes: 0, pool, budget: Arc::clone(budget) };
    let expected = declared.exact().and_then(|bytes| usize::try_from(bytes).ok());
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| {
            let detail = if error.is_incomplete_message() {
                "the request body ended early"
            } else {
                "the request body could not be read"
            };
            Problem::new(StatusCode::BAD_REQUEST, "body_incomplete", detail).and_close()
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = body.bytes.len() + data.len();
        if bytes > bytes_max {
            return Err(too_large(bytes_max));
        }
        while body.reserved_bytes < bytes as u64 {
            if !budget.try_take(BODY_RESERVE_STEP_BYTES) {
                return Err(busy());
            }
            body.reserved_bytes += BODY_RESERVE_STEP_BYTES;
        }
        if body.bytes.is_empty() {
            body.bytes.reserve(expected.unwrap_or(data.len()));
        }
        body.bytes.extend_from_slice(&data);
    }
    Ok(body)
}

fn busy() -> Problem {
    let detail = "too many request bytes are in flight; send again later";
    Problem::unavailable("busy", detail, RETRY_AFTER_BUSY_SECONDS).and_close()
}

fn too_large(bytes_max: usize) -> Problem {
    let detail = format!("the body is larger than {bytes_max} bytes (MAX_BODY_MB); send smaller batches");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).and_close()
}
