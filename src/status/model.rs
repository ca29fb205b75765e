//! A batch's life as data.
//!
//! ```text
//!             journal refused
//!   Admitting ───────────────▶ Refused
//!       │ durable (or queued, with ack=memory)
//!       ▼
//!   Queued ◀──────▶ Processing        back to Queued when PostgreSQL was lost on the way
//!                       │ committed
//!        ┌──────────────┼──────────────┐
//!        ▼              ▼              ▼
//!   Completed        Partial        Failed     none / some / all events in dead_letter_events
//! ```

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::Value;
use tracing::field::display;
use utoipa::ToSchema;

use crate::encode::block::BlockHeader;
use crate::encode::timestamp::append_rfc3339;
use crate::status::origin::Origin;
use crate::status::waiters::Waiters;
use crate::types::{BatchKey, BodyDigest, Priority, Sequence, UnixMicros};

/// Where a batch is in its life; the drawing is in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Offered to the journal; nobody has been promised anything yet.
    Admitting = 0,
    /// Accepted, waits for a COPY.
    Queued = 1,
    /// In a COPY.
    Processing = 2,
    /// Committed, nothing dead-lettered.
    Completed = 3,
    /// Committed, some events dead-lettered.
    Partial = 4,
    /// Every event dead-lettered.
    Failed = 5,
    /// The journal could not take it: nothing of it is kept, the id is free again.
    Refused = 6,
}

impl Phase {
    const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Admitting,
            1 => Self::Queued,
            2 => Self::Processing,
            3 => Self::Completed,
            4 => Self::Partial,
            5 => Self::Failed,
            _ => Self::Refused,
        }
    }

    /// The word that clients see (`docs/api.md#batch-status`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitting | Self::Queued | Self::Refused => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }

    /// True when the batch's transaction has committed.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Partial | Self::Failed)
    }
}

/// Outcome of a batch's events; the three counts add up to the number of events in the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    /// Rows inserted into `events` by this batch.
    pub inserted: u32,
    /// Events that `events` already had (same `timestamp` and `event_id`).
    pub duplicates: u32,
    /// Events in `dead_letter_events`.
    pub dead_lettered: u32,
}

impl Counts {
    /// The phase that a committed batch of `events` events ends in.
    pub const fn phase(self, events: u32) -> Phase {
        if self.dead_lettered == 0 {
            Phase::Completed
        } else if self.dead_lettered >= events {
            Phase::Failed
        } else {
            Phase::Partial
        }
    }
}

/// One batch of this process; shared between the worker, the journal thread and the flusher.
#[derive(Debug)]
pub struct Batch {
    /// Owner and id.
    pub key: BatchKey,
    /// Digest of the body that was accepted under this id.
    pub digest: BodyDigest,
    /// Priority.
    pub priority: Priority,
    /// Events accepted.
    pub events: u32,
    /// When the request arrived.
    pub received_at: UnixMicros,
    /// Which request it came with; `None` when it was recovered.
    pub origin: Option<Origin>,
    phase: AtomicU8,
    /// Its number in the journal; 0: it is not there.
    sequence: AtomicU64,
    inserted: AtomicU32,
    duplicates: AtomicU32,
    dead_lettered: AtomicU32,
    completed_at: AtomicI64,
    lost_its_id: AtomicBool,
    waiters: Waiters,
    /// A thin pointer, as hardly any batch has it, and each queued one pays for the room.
    delay: Mutex<Option<Box<Delay>>>,
}

/// Why a batch was put aside.
#[derive(Debug)]
struct Delay {
    /// PostgreSQL's code, or one that stands for it; `None` where PostgreSQL had no part in it.
    sqlstate: Option<String>,
    reason: String,
}

impl Batch {
    /// A batch about to be offered to the journal.
    pub fn new(key: BatchKey, digest: BodyDigest, priority: Priority, events: u32, received_at: UnixMicros) -> Self {
        Self {
            key,
            digest,
            priority,
            events,
            received_at,
            origin: None,
            phase: AtomicU8::new(Phase::Admitting as u8),
            sequence: AtomicU64::new(0),
            inserted: AtomicU32::new(0),
            duplicates: AtomicU32::new(0),
            dead_lettered: AtomicU32::new(0),
            completed_at: AtomicI64::new(0),
            lost_its_id: AtomicBool::new(false),
            waiters: Waiters::default(),
            delay: Mutex::default(),
        }
    }

    /// The batch of a block.
    pub fn of_block(header: BlockHeader) -> Self {
        let BlockHeader { key, digest, priority, events, received_at } = header;
        Self::new(key, digest, priority, events, received_at)
    }

    /// The same batch, come with `origin`.
    #[must_use]
    pub fn come_with(self, origin: Origin) -> Self {
        Self { origin: Some(origin), ..self }
    }

    /// The request's id, for the log.
    pub fn request_id(&self) -> Option<impl Value> {
        self.origin.as_ref().map(|origin| display(&origin.request_id))
    }

    /// The trace's id, for the log.
    pub fn trace_id(&self) -> Option<impl Value> {
        self.origin.as_ref().and_then(Origin::trace_id).map(display)
    }

    /// Where the batch is. Counts read after a final phase are the final ones.
    pub fn phase(&self) -> Phase {
        // Acquire: partner of the Release in `set_phase`, so that counts stored before are seen.
        Phase::from_u8(self.phase.load(Ordering::Acquire))
    }

    /// Notes where in the journal the batch is, before a phase tells that it is accepted.
    pub fn journaled_at(&self, sequence: Sequence) {
        // Published by the Release in `set_phase`.
        self.sequence.store(sequence.0, Ordering::Relaxed);
    }

    /// Where in the journal the batch was first written; `None`: it was taken without.
    pub fn sequence(&self) -> Option<Sequence> {
        Some(Sequence(self.sequence.load(Ordering::Relaxed))).filter(|sequence| sequence.0 > 0)
    }

    /// Moves the batch on; only the station that holds the batch calls this. Whoever waits for it hears of a promise and of
    /// an end, not of each attempt in between.
    pub fn set_phase(&self, phase: Phase) {
        // Release: partner of the Acquire in `phase`.
        let before = Phase::from_u8(self.phase.swap(phase as u8, Ordering::Release));
        if before == Phase::Admitting || phase == Phase::Refused || phase.is_final() {
            self.waiters.ring();
        }
    }

    /// Waits while `waits` holds for the batch's phase; gives the first one for which it does not. It must hold, or not,
    /// for [`Phase::Queued`] and [`Phase::Processing`] alike.
    pub async fn once_past(&self, waits: impl Fn(Phase) -> bool) -> Phase {
        self.waiters.until(|| Some(self.phase()).filter(|phase| !waits(*phase))).await
    }

    /// Records the commit: counts first, then the phase that publishes them.
    pub fn finish(&self, counts: Counts, completed_at: UnixMicros) {
        self.inserted.store(counts.inserted, Ordering::Relaxed);
        self.duplicates.store(counts.duplicates, Ordering::Relaxed);
        self.dead_lettered.store(counts.dead_lettered, Ordering::Relaxed);
        self.completed_at.store(completed_at.0, Ordering::Relaxed);
        self.set_phase(counts.phase(self.events));
    }

    /// Notes why the batch could not be committed while others could.
    pub fn delayed_because(&self, reason: &str) {
        *self.delay.lock() = Some(Box::new(Delay { sqlstate: None, reason: reason.to_owned() }));
    }

    /// Notes that the batch was refused by itself while others could be committed.
    pub fn refused_because(&self, sqlstate: &str, reason: &str) {
        *self.delay.lock() = Some(Box::new(Delay { sqlstate: Some(sqlstate.to_owned()), reason: reason.to_owned() }));
    }

    /// SQLSTATE and reason of the last refusal, if there was one.
    pub fn last_refusal(&self) -> Option<(String, String)> {
        let delay = self.delay.lock();
        let Delay { sqlstate, reason } = &**delay.as_ref()?;
        Some((sqlstate.clone()?, reason.clone()))
    }

    /// Records a commit that found the id taken by a different body: every event is dead-lettered, and the id's status
    /// is that of the batch which has it.
    pub fn finish_without_id(&self, completed_at: UnixMicros) {
        self.lost_its_id.store(true, Ordering::Relaxed);
        self.finish(Counts { dead_lettered: self.events, ..Counts::default() }, completed_at);
    }

    /// True when another batch has this one's id; known once the batch is finished.
    pub fn lost_its_id(&self) -> bool {
        self.phase().is_final() && self.lost_its_id.load(Ordering::Relaxed)
    }

    /// The counts so far; zero until the batch is finished.
    pub fn counts(&self) -> Counts {
        Counts {
            inserted: self.inserted.load(Ordering::Relaxed),
            duplicates: self.duplicates.load(Ordering::Relaxed),
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
        }
    }

    /// When the batch was committed; `None` before.
    pub fn completed_at(&self) -> Option<UnixMicros> {
        self.phase().is_final().then(|| UnixMicros(self.completed_at.load(Ordering::Relaxed)))
    }

    /// The batch as clients see it.
    pub fn document(&self, node: &str) -> StatusDocument {
        let phase = self.phase();
        StatusDocument {
            batch_id: self.key.id.to_string(),
            status: phase.name().to_owned(),
            priority: self.priority.get(),
            events: self.events,
            counts: self.counts(),
            received_at: rfc3339(self.received_at),
            completed_at: self.completed_at().map(rfc3339),
            node: node.to_owned(),
            reason: if phase.is_final() { None } else { self.delay.lock().as_ref().map(|delay| delay.reason.clone()) },
        }
    }
}

/// The body of `GET /v1/batch/{batch_id}/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BatchStatus)]
pub struct StatusDocument {
    /// The batch's id.
    #[schema(min_length = 1, max_length = 128, pattern = "^(\\.{0,2}[A-Za-z0-9_:-]|\\.{3})[A-Za-z0-9._:-]*$")]
    pub batch_id: String,
    /// `queued`, `processing`, `completed`, `partial` or `failed`.
    #[schema(pattern = "^(queued|processing|completed|partial|failed)$")]
    pub status: String,
    /// 0–10.
    #[schema(maximum = 10)]
    pub priority: u8,
    /// Events accepted.
    pub events: u32,
    /// `inserted`, `duplicates`, `dead_lettered`.
    #[serde(flatten)]
    pub counts: Counts,
    /// RFC 3339, UTC.
    #[schema(format = DateTime)]
    pub received_at: String,
    /// RFC 3339, UTC; null until committed.
    #[schema(required, format = DateTime)]
    pub completed_at: Option<String>,
    /// `NODE_ID` of the node that accepted the batch.
    pub node: String,
    /// Why the batch has not been committed although others have; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
}

impl StatusDocument {
    /// True once the batch's transaction has committed.
    pub fn is_committed(&self) -> bool {
        self.completed_at.is_some()
    }
}

/// `at` as RFC 3339 in UTC.
pub fn rfc3339(at: UnixMicros) -> String {
    let mut text = String::with_capacity(32);
    append_rfc3339(&mut text, at);
    text
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::status::woken::Woken;

    #[test]
    fn a_commit_ends_in_the_phase_that_its_counts_say() {
        let counts = |inserted, duplicates, dead_lettered| Counts { inserted, duplicates, dead_lettered };
        assert_eq!(counts(3, 0, 0).phase(3), Phase::Completed);
        assert_eq!(counts(0, 3, 0).phase(3), Phase::Completed);
        assert_eq!(counts(1, 1, 1).phase(3), Phase::Partial);
        assert_eq!(counts(0, 0, 3).phase(3), Phase::Failed);
    }

    #[test]
    fn who_waits_for_a_batch_hears_of_its_promise_and_its_end_and_of_nothing_else() {
        let key = BatchKey { owner: Arc::from(""), id: Box::from("b") };
        let batch = Batch::new(key, BodyDigest::of(b"b"), Priority::default(), 1, UnixMicros(0));
        let woken: [Arc<Woken>; 2] = Default::default();
        let wakers = woken.each_ref().map(|woken| Waker::from(Arc::clone(woken)));
        let mut contexts = wakers.each_ref().map(Context::from_waker);
        let mut promised = pin!(batch.once_past(|phase| phase == Phase::Admitting));
        let mut ended = pin!(batch.once_past(|phase| !phase.is_final()));
        assert_eq!(promised.as_mut().poll(&mut contexts[0]), Poll::Pending);
        assert_eq!(ended.as_mut().poll(&mut contexts[1]), Poll::Pending);
        let woken = || woken.each_ref().map(|woken| woken.times());

        batch.set_phase(Phase::Queued);
        assert_eq!(woken(), [1, 1]);
        assert_eq!(promised.as_mut().poll(&mut contexts[0]), Poll::Ready(Phase::Queued));
        assert_eq!(ended.as_mut().poll(&mut contexts[1]), Poll::Pending);
        for _ in 0..3 {
            batch.set_phase(Phase::Processing);
            batch.set_phase(Phase::Queued);
        }
        assert_eq!(woken(), [1, 1], "attempts are no news");
        batch.finish(Counts { inserted: 1, ..Counts::default() }, UnixMicros(1));
        assert_eq!(woken(), [1, 2]);
        assert_eq!(ended.as_mut().poll(&mut contexts[1]), Poll::Ready(Phase::Completed));
        assert_eq!(batch.counts().inserted, 1, "with its counts");
    }

    #[test]
    fn a_refusal_is_an_end() {
        let key = BatchKey { owner: Arc::from(""), id: Box::from("b") };
        let batch = Batch::new(key, BodyDigest::of(b"b"), Priority::default(), 1, UnixMicros(0));
        let mut ended = pin!(batch.once_past(|phase| !phase.is_final() && phase != Phase::Refused));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(ended.as_mut().poll(&mut context), Poll::Pending);
        batch.set_phase(Phase::Refused);
        assert_eq!(ended.as_mut().poll(&mut context), Poll::Ready(Phase::Refused));
    }
}
