//! What the server says.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// A verdict on one event, or on the batch.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct EventError {
    /// Position in the batch, from 0; `None` where it is about the batch.
    pub index: Option<usize>,
    /// The event's id, where it could be read.
    pub event_id: Option<String>,
    /// RFC 6901 pointer into the body.
    pub pointer: String,
    /// Stable code.
    pub code: String,
    /// What is wrong, for people.
    pub detail: String,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits.
    Queued,
    /// Is being written to PostgreSQL.
    Processing,
    /// Every event is in the table.
    Completed,
    /// Some are dead letters.
    Partial,
    /// All are.
    Failed,
}

impl Phase {
    /// True when nothing more will change.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Partial | Self::Failed)
    }
}

/// The answer to a batch that was taken, now or before.
#[derive(Clone, Debug, Deserialize)]
pub struct BatchReply {
    /// Its id.
    pub batch_id: String,
    /// How far it is.
    pub status: Phase,
    /// The server had it already, from an earlier attempt or an earlier call.
    #[serde(default)]
    pub duplicate: bool,
    /// Events taken; `None` in the answer to a duplicate.
    pub accepted: Option<u64>,
    /// Events that were not, see `errors`.
    #[serde(default)]
    pub rejected: u64,
    /// Verdicts on them.
    #[serde(default)]
    pub errors: Vec<EventError>,
    /// Rows written; known once it is committed.
    pub inserted: Option<u64>,
    /// Events that were in the table before; known once it is committed.
    pub duplicates: Option<u64>,
    /// Events that PostgreSQL refused; known once it is committed.
    pub dead_lettered: Option<u64>,
}

/// The status of a batch.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct BatchStatus {
    /// Its id.
    pub batch_id: String,
    /// How far it is.
    pub status: Phase,
    /// 0–10.
    pub priority: u8,
    /// Events taken.
    pub events: u64,
    /// Rows written.
    pub inserted: u64,
    /// Events that were in the table before.
    pub duplicates: u64,
    /// Events that PostgreSQL refused.
    pub dead_lettered: u64,
    /// RFC 3339, UTC.
    pub received_at: String,
    /// RFC 3339, UTC; `None` until committed.
    pub completed_at: Option<String>,
    /// The node that took it.
    pub node: String,
}

/// A refusal: the server's problem document (RFC 9457).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable name of the problem; empty where it was no ingestd that answered, such as a balancer.
    #[serde(default)]
    pub code: String,
    /// What is wrong and what to do, for people.
    #[serde(default)]
    pub detail: String,
    /// Verdicts on events, at most 100.
    #[serde(default)]
    pub errors: Vec<EventError>,
    /// How many verdicts there are in all.
    #[serde(default)]
    pub errors_total: Option<u64>,
    /// Where in the body, from 0.
    #[serde(default)]
    pub byte_offset: Option<u64>,
    /// When to come back.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, code, detail, errors, .. } = self;
        write!(f, "{status}")?;
        if !code.is_empty() {
            write!(f, " {code}: {detail}")?;
        }
        match errors.first() {
            Some(first) => write!(f, " (first: {} {})", first.pointer, first.detail),
            None => Ok(()),
        }
    }
}
