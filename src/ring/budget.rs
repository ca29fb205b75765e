//! A number that many threads spend and give back, never above its limit.

#[cfg(ingestd_loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(ingestd_loom))]
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts units in use, up to a limit that is fixed when it is made.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    /// Nothing used of `limit`.
    pub fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    /// Takes `amount`; false, and nothing taken, when that would pass the limit.
    pub fn try_take(&self, amount: u64) -> bool {
        // Relaxed: the number guards no other memory; what it admits travels through queues of its own.
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            if amount > self.limit.saturating_sub(used) {
                return false;
            }
            match self.used.compare_exchange_weak(used, used + amount, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
    }

    /// Takes `amount` although it may pass the limit: for what has been promised already.
    pub fn take_over_limit(&self, amount: u64) {
        self.used.fetch_add(amount, Ordering::Relaxed);
    }

    /// Gives `amount` back.
    pub fn give_back(&self, amount: u64) {
        let before = self.used.fetch_sub(amount, Ordering::Relaxed);
        debug_assert!(before >= amount, "gave back {amount} of {before}");
    }

    /// Units in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(all(test, not(ingestd_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_budget_never_passes_its_limit() {
        let budget = Budget::new(10);
        assert!(budget.try_take(7));
        assert!(!budget.try_take(4));
        assert!(budget.try_take(3));
        budget.give_back(10);
        assert_eq!(budget.used(), 0);
        assert!(!budget.try_take(11));
    }
}

#[cfg(all(test, ingestd_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn two_takers_share_the_last_unit_in_every_interleaving() {
        loom::model(|| {
            let budget = Arc::new(Budget::new(1));
            let other = Arc::clone(&budget);
            let thread = loom::thread::spawn(move || other.try_take(1));
            let mine = budget.try_take(1);
            let theirs = thread.join().expect("thread ended");
            assert!(mine ^ theirs);
            assert_eq!(budget.used(), 1);
        });
    }
}
