//! Whether the journal works, as recovery, the journal thread and the flushers last saw it.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What is wrong with the journal, if anything. Set by recovery and the journal thread.
#[derive(Default)]
pub struct JournalHealth {
    failed: AtomicBool,
    message: Mutex<String>,
    refuses: AtomicBool,
    refusal: Mutex<String>,
    hindrance: Mutex<String>,
    damaged: Mutex<String>,
}

impl JournalHealth {
    /// Latches a failed write or fsync: no acknowledgement from now on.
    pub fn fail(&self, message: String) {
        *self.message.lock() = message;
        // Release: partner of the Acquire in `has_failed`.
        self.failed.store(true, Ordering::Release);
    }

    /// True once a write or fsync has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Why it failed.
    pub fn message(&self) -> String {
        self.message.lock().clone()
    }

    /// Notes why the journal refuses batches until that passes; empty: it takes them.
    pub fn note_refusal(&self, why: String) {
        let refuses = !why.is_empty();
        *self.refusal.lock() = why;
        // Release: partner of the Acquire in `is_refusing`.
        self.refuses.store(refuses, Ordering::Release);
    }

    /// True while the last attempt to begin a segment has failed: batches that need one are refused.
    pub fn is_refusing(&self) -> bool {
        self.refuses.load(Ordering::Acquire)
    }

    /// Why; empty when it takes them.
    pub fn refusal(&self) -> String {
        self.refusal.lock().clone()
    }

    /// Notes what keeps segments from being let go; empty: nothing does.
    pub fn note_hindrance(&self, what: String) {
        *self.hindrance.lock() = what;
    }

    /// What keeps segments from being let go; empty when nothing does.
    pub fn hindrance(&self) -> String {
        self.hindrance.lock().clone()
    }

    /// Notes damage found by recovery: health is degraded until the operator has dealt with it.
    pub fn note_damage(&self, damage: String) {
        *self.damaged.lock() = damage;
    }

    /// Damage found by recovery; empty when there is none.
    pub fn damage(&self) -> String {
        self.damaged.lock().clone()
    }
}
