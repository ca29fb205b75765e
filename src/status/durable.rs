//! How far the journal survives power loss, and who waits for it to.
//!
//! A batch that came with `ack=memory` is written and not synced, until something else is. A request that sends it again with
//! `ack=journal` asks for a sync here and waits for one that covers the batch:
//!
//! ```text
//!  request:         ask ▸ wake the journal thread ▸ wait until `below` is above the batch's sequence
//!  journal thread:  take what was asked ▸ sync ▸ store `below` ▸ ring
//! ```
//!
//! A batch is in the journal before anybody can find it as accepted, so a sync that begins after it was asked for covers it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::status::waiters::Waiters;
use crate::types::Sequence;

/// The journal takes nothing more: what is not synced may be there after a restart, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot be synced")]
pub struct NotSynced;

/// What is synced; shared by the journal thread, which syncs, and workers, who ask.
#[derive(Debug, Default)]
pub struct Durable {
    /// Blocks of lower sequences survive power loss.
    below: AtomicU64,
    is_asked: AtomicBool,
    has_failed: AtomicBool,
    waiters: Waiters,
}

impl Durable {
    /// Waits until the block at `sequence` survives power loss. `wake` wakes the journal thread.
    ///
    /// # Errors
    /// The journal failed before it was synced.
    pub async fn once_covers(&self, sequence: Sequence, wake: impl Fn()) -> Result<(), NotSynced> {
        if let Some(known) = self.outcome(sequence) {
            return known;
        }
        // Release: partner of the Acquire in `take_request`. The wake-up comes after it.
        self.is_asked.store(true, Ordering::Release);
        wake();
        self.waiters.until(|| self.outcome(sequence)).await
    }

    /// True when the block at `sequence` survives power loss.
    pub fn covers(&self, sequence: Sequence) -> bool {
        // Acquire: partner of the Release in `reached`.
        sequence.0 < self.below.load(Ordering::Acquire)
    }

    /// True when somebody asked for a sync since the last call.
    pub fn take_request(&self) -> bool {
        self.is_asked.swap(false, Ordering::Acquire)
    }

    /// A sync has covered all blocks below `below`.
    pub fn reached(&self, below: Sequence) {
        // Release: partner of the Acquire in `covers`.
        if self.below.swap(below.0, Ordering::Release) != below.0 {
            self.waiters.ring();
        }
    }

    /// No sync will come any more.
    pub fn failed(&self) {
        self.has_failed.store(true, Ordering::Release);
        self.waiters.ring();
    }

    fn outcome(&self, sequence: Sequence) -> Option<Result<(), NotSynced>> {
        if self.covers(sequence) {
            return Some(Ok(()));
        }
        self.has_failed.load(Ordering::Acquire).then_some(Err(NotSynced))
    }
}

#[cfg(all(test, not(ingestd_loom)))]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn who_asks_waits_for_a_sync_that_covers_its_block_and_wakes_the_journal_once() {
        let (durable, woken) = (Durable::default(), Cell::new(0));
        let mut context = Context::from_waker(Waker::noop());
        let wake = || woken.set(woken.get() + 1);
        let mut asks = pin!(durable.once_covers(Sequence(7), wake));
        assert_eq!(asks.as_mut().poll(&mut context), Poll::Pending);
        assert!(durable.take_request() && !durable.take_request());
        durable.reached(Sequence(7));
        assert_eq!(asks.as_mut().poll(&mut context), Poll::Pending, "it covers 1 to 6");
        durable.reached(Sequence(8));
        assert_eq!(asks.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!(woken.get(), 1);
        let mut later = pin!(durable.once_covers(Sequence(7), wake));
        assert_eq!(later.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        assert!(woken.get() == 1 && !durable.take_request(), "nothing is asked for what is covered");
    }

    #[test]
    fn a_journal_that_fails_leaves_nobody_waiting() {
        let durable = Durable::default();
        durable.reached(Sequence(5));
        let mut context = Context::from_waker(Waker::noop());
        let mut asks = pin!(durable.once_covers(Sequence(5), || ()));
        assert_eq!(asks.as_mut().poll(&mut context), Poll::Pending);
        durable.failed();
        assert_eq!(asks.as_mut().poll(&mut context), Poll::Ready(Err(NotSynced)));
        let mut covered = pin!(durable.once_covers(Sequence(4), || ()));
        assert_eq!(covered.as_mut().poll(&mut context), Poll::Ready(Ok(())), "what was synced stays so");
    }
}
