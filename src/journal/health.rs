//! Whether the journal works, as recovery, the journal thread and the flushers last saw it.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What is wrong with the journal, if anything. Set by recovery and the journal thread.
#[derive(Default)]
pub struct JournalHealth {
    failed: AtomicBool,
    message: Mutex<String>,
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

    /// Notes damage found by recovery: health is degraded until the operator has dealt with it.
    pub fn note_damage(&self, damage: String) {
        *self.damaged.lock() = damage;
    }

    /// Damage found by recovery; empty when there is none.
    pub fn damage(&self) -> String {
        self.damaged.lock().clone()
    }
}
