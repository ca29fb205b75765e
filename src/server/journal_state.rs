//! What others are told of the journal by its thread: health and log, and the main thread when the journal is at its end.
//!
//! | the journal | log | health, `/readyz` | ends |
//! |---|---|---|---|
//! | refuses groups, since no segment can be begun | ERROR: refused until … | degraded, not ready | by itself: it is tried again |
//! | cannot let segments go | WARN | degraded, ready | by itself: it is tried again |
//! | has failed: a write or fsync of blocks | ERROR: restarts | unhealthy, not ready | with the process |

use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Sender;

use crate::journal::{Failure, JournalHealth, WriteError};
use crate::limits::JOURNAL_RETRY_PAUSE;
use crate::state_log::StateLog;

/// The journal's state as it was told.
pub struct JournalState {
    health: Arc<JournalHealth>,
    /// Wakes the main thread, which ends the process.
    on_failure: Sender<()>,
    refusing: StateLog,
    hindered: StateLog,
    is_hindered: bool,
    /// When what failed and passes is tried again.
    retry_at: Option<Instant>,
}

impl JournalState {
    /// A journal that works.
    pub fn new(health: Arc<JournalHealth>, on_failure: Sender<()>) -> Self {
        Self {
            health,
            on_failure,
            refusing: StateLog::default(),
            hindered: StateLog::default(),
            is_hindered: false,
            retry_at: None,
        }
    }

    /// When something is to be tried again; `None` when nothing failed that passes.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// True when groups are refused.
    pub fn is_refusing(&self) -> bool {
        self.health.is_refusing()
    }

    /// A group met `error` at `now`.
    pub fn met(&mut self, error: &WriteError, now: Instant) {
        match error {
            WriteError::Refused(refusal) => self.refuses(refusal.to_string(), now),
            WriteError::Failed(failure) | WriteError::Latched(failure) => self.fails(failure),
        }
    }

    fn refuses(&mut self, reason: String, now: Instant) {
        self.pause(now);
        if let Some(begun) = self.refusing.holds(0, now) {
            tracing::error!(
                reason,
                unlogged = begun.unlogged,
                "the journal cannot begin its next file: a batch that needs one is refused until the cause is gone, and \
                 /readyz reports not ready; ingestd tries again by itself (acknowledged batches are safe)"
            );
        }
        self.health.note_refusal(reason);
    }

    /// A segment was begun at `now`: groups are taken.
    pub fn takes(&mut self, now: Instant) {
        if !self.health.is_refusing() {
            return;
        }
        self.health.note_refusal(String::new());
        self.retry_at = self.is_hindered.then_some(now + JOURNAL_RETRY_PAUSE);
        if let Some(lasted) = self.refusing.ends(now) {
            tracing::info!(lasted_ms = lasted.as_millis() as u64, "the journal takes batches again");
        }
    }

    /// What kept segments from being let go when that was last tried, at `now`.
    pub fn hindered(&mut self, hindrance: Option<&WriteError>, now: Instant) {
        let was_hindered = std::mem::replace(&mut self.is_hindered, hindrance.is_some());
        let Some(error) = hindrance else {
            if was_hindered {
                self.health.note_hindrance(String::new());
                self.retry_at = self.retry_at.filter(|_| self.health.is_refusing());
                if let Some(lasted) = self.hindered.ends(now) {
                    tracing::info!(
                        lasted_ms = lasted.as_millis() as u64,
                        "journal files are recycled and removed again"
                    );
                }
            }
            return;
        };
        self.pause(now);
        if let Some(begun) = self.hindered.holds(0, now) {
            tracing::warn!(
                reason = %error,
                unlogged = begun.unlogged,
                "journal files whose batches are committed cannot be recycled or removed; trying again (nothing is \
                 refused for that, but their room is missing)"
            );
        }
        self.health.note_hindrance(error.to_string());
    }

    /// Sets the next attempt, unless it is set: groups that are refused meanwhile do not put it off.
    fn pause(&mut self, now: Instant) {
        let is_set = self.retry_at.is_some_and(|retry_at| retry_at > now);
        if !is_set {
            self.retry_at = Some(now + JOURNAL_RETRY_PAUSE);
        }
    }

    fn fails(&self, failure: &Failure) {
        if self.health.has_failed() {
            return;
        }
        tracing::error!(
            reason = %failure,
            "the journal has failed: no further batch is acknowledged; ingestd commits what is queued and exits with code \
             1, so that its supervisor restarts it (acknowledged batches are safe and are replayed); check the disk \
             under JOURNAL_DIR"
        );
        self.health.fail(failure.to_string());
        // Full: it was told before.
        let _ = self.on_failure.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use crossbeam::channel::bounded;

    use super::*;
    use crate::journal::{Operation, Refusal};

    fn failure(operation: Operation) -> Failure {
        let source = Arc::new(io::Error::from(io::ErrorKind::StorageFull));
        Failure { operation, file: "7.journal".to_owned(), source }
    }

    #[test]
    fn what_passes_is_tried_again_until_both_have_passed() {
        let (health, (sender, failed), start) = (Arc::<JournalHealth>::default(), bounded(1), Instant::now());
        let mut state = JournalState::new(Arc::clone(&health), sender);
        let refused = WriteError::Refused(Refusal::Operation(failure(Operation::Create)));
        assert_eq!(state.retry_at(), None);
        state.met(&refused, start);
        state.hindered(Some(&refused), start + Duration::from_millis(1));
        assert!(state.is_refusing() && state.retry_at() > Some(start));
        assert!(health.refusal().contains("creating 7.journal") && !health.hindrance().is_empty());
        state.hindered(None, start + Duration::from_millis(2));
        assert!(state.retry_at().is_some() && health.hindrance().is_empty(), "groups are refused still");
        state.hindered(Some(&refused), start + Duration::from_millis(3));
        state.takes(start + Duration::from_millis(4));
        assert!(state.retry_at().is_some() && !state.is_refusing() && health.refusal().is_empty());
        state.hindered(None, start + Duration::from_millis(5));
        assert_eq!(state.retry_at(), None);
        assert!(failed.try_recv().is_err() && !health.has_failed());
    }

    #[test]
    fn groups_that_are_refused_do_not_put_the_next_attempt_off() {
        let (health, (sender, _failed), start) = (Arc::<JournalHealth>::default(), bounded(1), Instant::now());
        let mut state = JournalState::new(health, sender);
        let refused = WriteError::Refused(Refusal::Operation(failure(Operation::Create)));
        state.met(&refused, start);
        let retry_at = state.retry_at().expect("is set");
        state.met(&refused, retry_at - Duration::from_millis(1));
        assert_eq!(state.retry_at(), Some(retry_at));
        state.met(&refused, retry_at);
        assert_eq!(state.retry_at(), Some(retry_at + JOURNAL_RETRY_PAUSE));
    }

    #[test]
    fn the_first_failure_is_kept_and_told_to_the_main_thread_once() {
        let (health, (sender, failed)) = (Arc::<JournalHealth>::default(), bounded(1));
        let mut state = JournalState::new(Arc::clone(&health), sender);
        state.met(&WriteError::Failed(failure(Operation::SyncBlocks)), Instant::now());
        state.met(&WriteError::Latched(failure(Operation::WriteBlocks)), Instant::now());
        assert!(health.has_failed() && health.message().contains("syncing"));
        assert!(failed.try_recv().is_ok() && failed.try_recv().is_err());
    }
}
