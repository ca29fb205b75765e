//! Who may join the queue: nobody who would wait for longer than `BATCH_TIMEOUT_SECONDS` while PostgreSQL works.
//!
//! ```text
//!                   rows waiting at this priority and above
//!   expected wait = ───────────────────────────────────────     above half of the timeout: wait, or come back later
//!                   rows a second that full COPYs land
//! ```
//!
//! Half, because the other half is what ageing needs ([`crate::flush::merge`]), and because batches that were admitted
//! are still on their way through the journal. Without this an overload fills the journal to its cap, and by then every
//! batch waits for the length of it; so overload is held back early, and what is accepted is committed in time.
//!
//! An outage is no overload: what piled up while PostgreSQL was away does not count until it is drained, so a fault
//! refuses nobody while the journal has room. Small COPYs say nothing about what PostgreSQL can do; until a full one
//! has landed everybody is admitted.
//!
//! All atomics here are figures that publish no other data: `Relaxed` is enough.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How much a new measurement weighs: the last handful of COPYs decide.
const WEIGHT: f64 = 0.25;

/// What the decision rests on; shared by flushers, who measure, and workers, who ask.
pub struct Admission {
    wait_max: Duration,
    /// Rows a second that each flusher landed with its last full COPYs; 0 before the first.
    rates: Box<[AtomicU64]>,
    /// Rows of the backlog that an outage left.
    excused_rows: AtomicU64,
}

impl Admission {
    /// For `flushers` flushers and `BATCH_TIMEOUT_SECONDS`.
    pub fn new(flushers: usize, timeout: Duration) -> Self {
        let rates = (0..flushers).map(|_| AtomicU64::new(0)).collect();
        Self { wait_max: timeout / 2, rates, excused_rows: AtomicU64::new(0) }
    }

    /// Flusher `number` has landed `rows` in a full COPY that took `took`, from taking the rows to the commit.
    pub fn landed_full(&self, number: usize, rows: u32, took: Duration) {
        let measured = f64::from(rows) / took.as_secs_f64().max(1e-6);
        let before = self.rates[number].load(Relaxed);
        let rate = if before == 0 { measured } else { before as f64 + (measured - before as f64) * WEIGHT };
        self.rates[number].store((rate as u64).max(1), Relaxed);
    }

    /// PostgreSQL is back (or the server has just started) with `rows` waiting: they are no sign of overload.
    pub fn excuse(&self, rows: u64) {
        self.excused_rows.store(rows, Relaxed);
    }

    /// `rows` have left the queue, the oldest first as far as this is concerned.
    pub fn left(&self, rows: u32) {
        // Fails only at zero, where there is nothing to do.
        let _ = self
            .excused_rows
            .fetch_update(Relaxed, Relaxed, |excused| (excused > 0).then(|| excused.saturating_sub(u64::from(rows))));
    }

    /// True while a backlog drains that an outage or an earlier process left.
    pub fn is_excusing(&self) -> bool {
        self.excused_rows.load(Relaxed) > 0
    }

    /// For how long a batch should stay away that would find `waiting_rows` before it; `None`: it may join.
    pub fn refusal(&self, waiting_rows: u64) -> Option<Duration> {
        if self.is_excusing() {
            return None;
        }
        let rate: u64 = self.rates.iter().map(|rate| rate.load(Relaxed)).sum();
        if rate == 0 {
            return None;
        }
        let wait = Duration::from_secs_f64(waiting_rows as f64 / rate as f64);
        wait.checked_sub(self.wait_max).filter(|over| !over.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Two flushers that land 1000 rows a second together; nobody may wait for more than 15 s.
    fn steady() -> Admission {
        let admission = Admission::new(3, Duration::from_secs(30));
        admission.landed_full(0, 500, SECOND);
        admission.landed_full(1, 500, SECOND);
        admission
    }

    #[test]
    fn who_would_wait_too_long_is_told_for_how_long_to_stay_away() {
        let admission = steady();
        assert_eq!(admission.refusal(15_000), None);
        assert_eq!(admission.refusal(17_000), Some(2 * SECOND));
    }

    #[test]
    fn nothing_is_refused_before_postgresql_has_shown_what_it_can() {
        assert_eq!(Admission::new(2, SECOND).refusal(u64::MAX), None);
    }

    #[test]
    fn a_backlog_from_an_outage_excuses_until_it_has_drained() {
        let admission = steady();
        admission.excuse(100_000);
        assert_eq!(admission.refusal(200_000), None);
        admission.left(99_999);
        assert_eq!(admission.refusal(200_000), None);
        admission.left(5_000);
        assert!(admission.refusal(200_000).is_some());
        admission.left(1);
        assert!(admission.refusal(200_000).is_some(), "it does not wrap around");
    }

    #[test]
    fn the_rate_follows_what_is_measured() {
        let admission = steady();
        for _ in 0..40 {
            admission.landed_full(0, 250, SECOND);
        }
        assert!(admission.refusal(11_200).is_none() && admission.refusal(11_400).is_some());
    }
}
