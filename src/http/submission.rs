//! What a worker hands to the journal thread: one encoded batch and who waits for it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::encode::block::Block;
use crate::status::model::Batch;
use crate::types::AckLevel;

/// Why the journal did not take a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No byte of it was written.
    #[error("the journal could not take the batch")]
    NotTaken,
    /// The journal failed while it wrote the batch: the next start may find it.
    #[error("the journal failed while it wrote the batch")]
    Unknown,
}

/// An encoded batch on its way to the journal.
#[derive(Debug)]
pub struct Submission {
    /// The bytes.
    pub block: Block,
    /// Its status, already in the map.
    pub batch: Arc<Batch>,
    /// When the answer is due. `ack=memory` was answered before the push.
    pub level: AckLevel,
    /// When the request was read.
    pub accepted_at: Instant,
    /// Told once an fsync covers the batch, or that it was refused.
    pub on_durable: Option<oneshot::Sender<Result<(), Refused>>>,
    /// Told once PostgreSQL has committed the batch.
    pub on_commit: Option<oneshot::Sender<()>>,
}
