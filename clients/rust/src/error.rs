//! What can go wrong.

use std::time::Duration;

use crate::answer::{BatchStatus, EventError, Problem};

/// Why a call failed. Each variant is something else to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client was built with something unusable.
    #[error("{0}")]
    Configuration(String),
    /// A payload or metadata is nothing that JSON can express.
    #[error("not expressible as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The server refused: nothing of the batch was taken, unless its code is `outcome_unknown`, which is tried again.
    #[error("the server refused: {0}")]
    Refused(Box<Problem>),
    /// The server took the batch without these events ([`Invalid::Skip`](crate::Invalid::Skip), through a
    /// [`Sender`](crate::Sender)).
    #[error("the server did not take these events: {}", .0.first().map_or("", |error| &*error.detail))]
    EventsRefused(Vec<EventError>),
    /// There was no connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The server's certificate is none that this machine trusts for its name.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(String),
    /// The connection broke before the answer was complete: the batch may have been taken.
    #[error("no answer: {0}")]
    Broken(String),
    /// There was no answer in time: the batch may have been taken.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// An answer that is none of ingestd's.
    #[error("unexpected answer {status}: {why}")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
    /// Every attempt failed, or there was no time for another. The batch may have been taken: send the same events
    /// under the same id again, later.
    #[error("gave up on batch {batch_id} after {attempts} attempts; the last one: {last}")]
    GaveUp {
        /// Its id.
        batch_id: String,
        /// How many attempts there were.
        attempts: u32,
        /// Why the last one failed.
        last: Box<Error>,
    },
    /// The batch was not committed in time; it may be later.
    #[error("batch {} is not committed after {waited:?}", .status.batch_id)]
    NotCommitted {
        /// How far it is.
        status: Box<BatchStatus>,
        /// How long was waited.
        waited: Duration,
    },
    /// The [`Sender`](crate::Sender)'s task has ended, because its runtime has.
    #[error("the sender is closed")]
    Closed,
}

impl Error {
    /// The problem document, where the server sent one: also that of the last attempt.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::GaveUp { last, .. } => last.problem(),
            _ => None,
        }
    }

    /// True when the same bytes may fare better later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused(problem) => matches!(problem.status, 429 | 502 | 503 | 504),
            Self::Connect(_) | Self::Broken(_) | Self::Timeout(_) | Self::GaveUp { .. } => true,
            _ => false,
        }
    }

    /// What the server said about when to come back.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.problem().and_then(|problem| problem.retry_after)
    }
}
