//! Reading a request body within its limits, into buffers that the worker reuses.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Incoming};
use tokio::time::{Instant, timeout_at};

use crate::http::problem::Problem;
use crate::limits::{
    BODY_BUFFER_KEPT_BYTES_MAX, BODY_BUFFERS_KEPT_MAX, BODY_DISCARDED_BYTES_MAX, BODY_GRACE, BODY_RESERVE_STEP_BYTES,
    LINGER_WAIT_MAX, RETRY_AFTER_BUSY_SECONDS,
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

impl<'a> BodyBytes<'a> {
    /// Nothing yet: no buffer, no memory of `budget`.
    pub fn empty(pool: &'a BufferPool, budget: &Arc<Budget>) -> Self {
        Self { bytes: Vec::new(), reserved_bytes: 0, pool, budget: Arc::clone(budget) }
    }

    /// Adds `data`, up to `bytes_max` in all.
    pub fn append(&mut self, data: &[u8], bytes_max: usize) -> Result<(), Problem> {
        let bytes = self.bytes.len() + data.len();
        self.reserve(bytes, bytes_max)?;
        if self.bytes.capacity() == 0 {
            self.bytes = self.pool.take();
        }
        // Address space only, until it is written to: a buffer that doubles would be there twice while it is copied.
        if bytes > self.bytes.capacity() && bytes > BODY_BUFFER_KEPT_BYTES_MAX {
            self.bytes.reserve_exact(bytes_max - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

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

    /// Takes memory for a body of `bytes` so far.
    fn reserve(&mut self, bytes: usize, bytes_max: usize) -> Result<(), Problem> {
        if bytes > bytes_max {
            return Err(too_large(bytes_max));
        }
        while self.reserved_bytes < bytes as u64 {
            if !self.budget.try_take(BODY_RESERVE_STEP_BYTES) {
                return Err(busy());
            }
            self.reserved_bytes += BODY_RESERVE_STEP_BYTES;
        }
        Ok(())
    }
}

impl Drop for BodyBytes<'_> {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
        self.budget.give_back(self.reserved_bytes);
    }
}

/// A body that arrives.
pub struct Reader<'a> {
    incoming: Incoming,
    limits: BodyLimits,
    begun: Instant,
    received: u64,
    /// What came first: kept as it is, so that a request which is refused after a look at it costs no buffer.
    head: Bytes,
    body: BodyBytes<'a>,
}

/// What a body may be.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Its length at most.
    pub bytes_max: usize,
    /// How fast it has to come, after [`BODY_GRACE`].
    pub bytes_per_second_min: u64,
}

impl<'a> Reader<'a> {
    fn new(incoming: Incoming, limits: BodyLimits, pool: &'a BufferPool, budget: &Arc<Budget>) -> Self {
        let body = BodyBytes::empty(pool, budget);
        Self { incoming, limits, begun: Instant::now(), received: 0, head: Bytes::new(), body }
    }

    /// Receives the first bytes of `incoming`, which may be as long as `limits` say. A declared length over that is
    /// refused before anything is read; memory is taken from `budget` as bytes arrive, not as they are promised.
    pub async fn begin(
        incoming: Incoming,
        limits: BodyLimits,
        pool: &'a BufferPool,
        budget: &Arc<Budget>,
    ) -> Result<Self, Problem> {
        let declared = incoming.size_hint().lower();
        if declared > limits.bytes_max as u64 {
            return Err(too_large(limits.bytes_max));
        }
        let mut reader = Self::new(incoming, limits, pool, budget);
        // What does not fit as it is promised is not begun: under overload most of what arrives would be read for nothing.
        if declared > budget.limit().saturating_sub(budget.used()) {
            return Err(reader.refuse(busy()).await);
        }
        if let Some(data) = reader.receive().await? {
            if let Err(problem) = reader.body.reserve(data.len(), limits.bytes_max) {
                return Err(reader.refuse(problem).await);
            }
            reader.head = data;
        }
        Ok(reader)
    }

    /// What has been received so far: anything from nothing to the whole body.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Bytes that the client said it would send; 0 when it did not say.
    pub fn declared(&self) -> usize {
        usize::try_from(self.incoming.size_hint().lower()).unwrap_or(0) + self.head.len()
    }

    /// Hands the body to `feed` as it comes; what is given back holds memory for it, and none of its bytes.
    ///
    /// # Errors
    /// As [`Self::finish`], and what `feed` finds wrong.
    pub async fn each(mut self, mut feed: impl FnMut(&[u8]) -> Result<(), Problem>) -> Result<BodyBytes<'a>, Problem> {
        let mut data = std::mem::take(&mut self.head);
        loop {
            if let Err(problem) = feed(&data) {
                return Err(self.refuse(problem).await);
            }
            let Some(next) = self.receive().await? else { return Ok(self.body) };
            let received = usize::try_from(self.received).unwrap_or(usize::MAX);
            if let Err(problem) = self.body.reserve(received, self.limits.bytes_max) {
                return Err(self.refuse(problem).await);
            }
            data = next;
        }
    }

    /// Receives the rest.
    pub async fn finish(mut self) -> Result<BodyBytes<'a>, Problem> {
        let expected = self.incoming.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
        self.body.bytes = self.body.pool.take();
        self.body.bytes.reserve(self.head.len() + expected.unwrap_or(0));
        self.body.bytes.extend_from_slice(&std::mem::take(&mut self.head));
        while let Some(data) = self.receive().await? {
            if let Err(problem) = self.body.reserve(self.body.bytes.len() + data.len(), self.limits.bytes_max) {
                return Err(self.refuse(problem).await);
            }
            self.body.bytes.extend_from_slice(&data);
        }
        Ok(self.body)
    }

    /// Refuses the request because of `problem`. A body of usual size is received to its end and thrown away, so that
    /// the connection can be kept: that costs both sides less than a new connection for each refusal.
    pub async fn refuse(mut self, problem: Problem) -> Problem {
        if self.incoming.size_hint().upper().is_none_or(|bytes| bytes > BODY_DISCARDED_BYTES_MAX) {
            return problem.and_close();
        }
        let discarded = async { while let Ok(Some(_)) = self.receive().await {} };
        match tokio::time::timeout(LINGER_WAIT_MAX, discarded).await {
            Ok(()) if self.incoming.is_end_stream() => problem,
            _ => problem.and_close(),
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Problem> {
        let deadline = self.deadline();
        while let Some(frame) = timeout_at(deadline, self.incoming.frame()).await.map_err(|_| too_slow())? {
            let frame = frame.map_err(|error| {
                let detail = if error.is_incomplete_message() {
                    "the request body ended before it was complete"
                } else {
                    "the request body could not be read"
                };
                Problem::new(StatusCode::BAD_REQUEST, "body_incomplete", detail).and_close()
            })?;
            if let Ok(data) = frame.into_data() {
                self.received += data.len() as u64;
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// By when the next bytes have to come.
    fn deadline(&self) -> Instant {
        self.begun + BODY_GRACE + Duration::from_secs(self.received / self.limits.bytes_per_second_min)
    }
}

/// `problem` as the answer to a request of which nothing was read, as [`Reader::refuse`] would give it.
pub async fn discard(
    incoming: Incoming,
    limits: BodyLimits,
    pool: &BufferPool,
    budget: &Arc<Budget>,
    problem: Problem,
) -> Problem {
    Reader::new(incoming, limits, pool, budget).refuse(problem).await
}

fn too_slow() -> Problem {
    let detail = "the request body is arriving too slowly; send it faster, or send smaller batches";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail).and_close()
}

fn busy() -> Problem {
    let detail = "too many request bytes are in flight; retry later";
    Problem::unavailable("busy", detail, RETRY_AFTER_BUSY_SECONDS)
}

fn too_large(bytes_max: usize) -> Problem {
    let detail = format!("the body is larger than {bytes_max} bytes (MAX_BODY_MB); send smaller batches");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).and_close()
}
