//! Who may join the queue: nobody who would wait for longer than `BATCH_TIMEOUT_SECONDS` while PostgreSQL works.
//!
//! ```text
//!                   rows waiting at this priority and above
//!   expected wait = ───────────────────────────────────────     above half of the timeout: wait, or come back later
//!                   rows a second that full COPYs land
//! ```
//!
//! Half, because the other half is what ageing needs ([`crate::flush::merge`]). And nobody below priority 8 joins who would
//! make all that waits last for more than three quarters: each priority has its own half, and together they would not be
//! committed in time. A batch waits from the moment it was
//! admitted, on its way through the journal too: else all who are held back would be let in at once whenever there is
//! room for one. Without this an overload fills the journal to its cap, and by then every
//! batch waits for the length of it; so overload is held back early, and what is accepted is committed in time.
//!
//! That much waiting is for bursts. An overload that goes on would keep the queue filled to its limit, and everybody
//! would wait that long for no gain; so from its first refusal on the limit of a priority sinks, half as fast as time
//! passes (half of what PostgreSQL lands is accepted meanwhile), down to [`STANDING_WAIT_MAX`]. When nobody had to be
//! refused for [`OVERLOAD_OVER_AFTER`], it is back.
//!
//! An outage is no overload: what piled up while PostgreSQL was away does not count until it is drained, so a fault
//! refuses nobody while the journal has room. Small COPYs say nothing about what PostgreSQL can do, nor does a single one
//! that stalled: of two full ones in a row the faster counts, and until two have landed everybody is admitted.
//!
//! All atomics here are figures that publish no other data: `Relaxed` is enough.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::limits::{OVERLOAD_OVER_AFTER, STANDING_WAIT_MAX};
use crate::types::{PRIORITY_COUNT, PRIORITY_RESERVED_MIN, Priority};

/// How much a new measurement weighs: the last handful of COPYs decide.
const WEIGHT: f64 = 0.25;

/// An overload of one priority, in milliseconds since the server's start.
#[derive(Default)]
struct Overload {
    begun: AtomicU64,
    /// When somebody was last in its way; 0: never.
    last: AtomicU64,
}

/// What a flusher has landed, in rows a second; 0 before it is known.
#[derive(Default)]
struct Rate {
    /// Of its last full COPY.
    last: AtomicU64,
    smoothed: AtomicU64,
}

/// What the decision rests on; shared by flushers, who measure, and workers, who ask.
pub struct Admission {
    started: Instant,
    wait_max: Duration,
    /// Of each flusher's last full COPYs.
    rates: Box<[Rate]>,
    /// Rows admitted and not yet committed, by priority. Signed: who counts them in may be overtaken by who counts them
    /// out.
    waiting_rows: [AtomicI64; PRIORITY_COUNT],
    /// Rows of the backlog that an outage left.
    excused_rows: AtomicU64,
    overloads: [Overload; PRIORITY_COUNT],
}

impl Admission {
    /// For `flushers` flushers and `BATCH_TIMEOUT_SECONDS`.
    pub fn new(flushers: usize, timeout: Duration) -> Self {
        let rates = (0..flushers).map(|_| Rate::default()).collect();
        Self {
            started: Instant::now(),
            wait_max: timeout / 2,
            rates,
            waiting_rows: Default::default(),
            excused_rows: AtomicU64::new(0),
            overloads: Default::default(),
        }
    }

    /// Flusher `number` has landed `rows` in a full COPY that took `took`, from taking the rows to the commit.
    pub fn landed_full(&self, number: usize, rows: u32, took: Duration) {
        let Rate { last, smoothed } = &self.rates[number];
        let measured = ((f64::from(rows) / took.as_secs_f64().max(1e-6)) as u64).max(1);
        let previous = last.swap(measured, Relaxed);
        if previous == 0 {
            return;
        }
        let (before, faster) = (smoothed.load(Relaxed), measured.max(previous) as f64);
        let rate = if before == 0 { faster } else { before as f64 + (faster - before as f64) * WEIGHT };
        smoothed.store((rate as u64).max(1), Relaxed);
    }

    /// PostgreSQL is back (or the server has just started): what waits is no sign of overload.
    pub fn excuse_all(&self) {
        self.excused_rows.store(self.waiting_rows_from(Priority::default()), Relaxed);
    }

    /// `rows` were admitted.
    pub fn joined(&self, priority: Priority, rows: u32) {
        self.waiting_rows[priority.lane()].fetch_add(i64::from(rows), Relaxed);
    }

    /// `rows` wait no more, the oldest first as far as this is concerned.
    pub fn left(&self, priority: Priority, rows: u32) {
        self.waiting_rows[priority.lane()].fetch_sub(i64::from(rows), Relaxed);
        // Fails only at zero, where there is nothing to do.
        let _ = self
            .excused_rows
            .try_update(Relaxed, Relaxed, |excused| (excused > 0).then(|| excused.saturating_sub(u64::from(rows))));
    }

    /// True while a backlog drains that an outage or an earlier process left.
    pub fn is_excusing(&self) -> bool {
        self.excused_rows.load(Relaxed) > 0
    }

    /// For how long a batch of `priority` should stay away, behind what waits at it and above; `None`: it may join.
    pub fn refusal(&self, priority: Priority, now: Instant) -> Option<Duration> {
        if self.is_excusing() {
            return None;
        }
        let rate: u64 = self.rates.iter().map(|rate| rate.smoothed.load(Relaxed)).sum();
        if rate == 0 {
            return None;
        }
        let wait = |from| Duration::from_secs_f64(self.waiting_rows_from(from) as f64 / rate as f64);
        let over_own = wait(priority).saturating_sub(self.wait_limit(priority, now));
        let over_all = match priority {
            urgent if urgent >= PRIORITY_RESERVED_MIN => Duration::ZERO,
            _ => wait(Priority::default()).saturating_sub(self.wait_max * 3 / 2),
        };
        Some(over_own.max(over_all)).filter(|over| !over.is_zero())
    }

    /// A batch of `priority` came that may not join.
    pub fn turned_away(&self, priority: Priority, now: Instant) {
        let (overload, now) = (&self.overloads[priority.lane()], self.milliseconds(now));
        if !Self::goes_on(overload.last.swap(now, Relaxed), now) {
            overload.begun.store(now, Relaxed);
        }
    }

    /// How long a batch of `priority` may have to wait.
    fn wait_limit(&self, priority: Priority, now: Instant) -> Duration {
        let (overload, now) = (&self.overloads[priority.lane()], self.milliseconds(now));
        if !Self::goes_on(overload.last.load(Relaxed), now) {
            return self.wait_max;
        }
        let lasted = Duration::from_millis(now.saturating_sub(overload.begun.load(Relaxed)));
        self.wait_max.saturating_sub(lasted / 2).max(STANDING_WAIT_MAX.min(self.wait_max))
    }

    /// True when somebody was turned away at `last`, and that was not long ago.
    fn goes_on(last: u64, now: u64) -> bool {
        last > 0 && now.saturating_sub(last) < OVERLOAD_OVER_AFTER.as_millis() as u64
    }

    /// At least 1.
    fn milliseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64 + 1
    }

    fn waiting_rows_from(&self, priority: Priority) -> u64 {
        let rows = self.waiting_rows[priority.lane()..].iter().map(|rows| rows.load(Relaxed)).sum::<i64>();
        rows.max(0).unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const LOW: Priority = Priority::ALL[PRIORITY_COUNT - 1];
    const HIGH: Priority = Priority::ALL[0];

    /// Two flushers that land 1000 rows a second together, with `rows` of low priority waiting; nobody may wait for more
    /// than 15 s.
    fn steady(rows: u32) -> Admission {
        let admission = Admission::new(3, Duration::from_secs(30));
        for flusher in [0, 1, 0, 1] {
            admission.landed_full(flusher, 500, SECOND);
        }
        admission.joined(LOW, rows);
        admission
    }

    #[test]
    fn who_would_wait_too_long_is_told_for_how_long_to_stay_away() {
        assert_eq!(steady(15_000).refusal(LOW, Instant::now()), None);
        assert_eq!(steady(17_000).refusal(LOW, Instant::now()), Some(2 * SECOND));
    }

    #[test]
    fn what_waits_below_a_priority_does_not_count() {
        let admission = steady(17_000);
        assert_eq!(admission.refusal(HIGH, Instant::now()), None);
        admission.joined(HIGH, 17_000);
        assert_eq!(admission.refusal(HIGH, Instant::now()), Some(2 * SECOND));
        admission.left(HIGH, 2_000);
        assert_eq!(admission.refusal(HIGH, Instant::now()), None);
    }

    #[test]
    fn all_priorities_together_wait_for_less_than_the_timeout() {
        let middle = Priority::new(5).expect("a priority");
        let admission = steady(15_000);
        admission.joined(middle, 7_000);
        assert_eq!(admission.refusal(middle, Instant::now()), None);
        admission.joined(middle, 2_000);
        assert_eq!(admission.refusal(middle, Instant::now()), Some(1500 * SECOND / 1000));
        assert_eq!(admission.refusal(HIGH, Instant::now()), None, "but not at the cost of what is urgent");
    }

    #[test]
    fn nothing_is_refused_before_postgresql_has_shown_what_it_can() {
        let admission = Admission::new(2, SECOND);
        admission.joined(LOW, u32::MAX);
        assert_eq!(admission.refusal(LOW, Instant::now()), None);
    }

    #[test]
    fn one_copy_that_stalled_is_no_measure() {
        let admission = Admission::new(1, 30 * SECOND);
        admission.landed_full(0, 1_000, 100 * SECOND);
        admission.joined(LOW, 14_000);
        assert_eq!(admission.refusal(LOW, Instant::now()), None, "the first");
        admission.landed_full(0, 1_000, SECOND);
        admission.landed_full(0, 1_000, 100 * SECOND);
        assert_eq!(admission.refusal(LOW, Instant::now()), None, "one of many");
        for _ in 0..40 {
            admission.landed_full(0, 1_000, 100 * SECOND);
        }
        assert!(admission.refusal(LOW, Instant::now()).is_some(), "all of them");
    }

    #[test]
    fn a_backlog_from_an_outage_excuses_until_it_has_drained() {
        let admission = steady(100_000);
        admission.excuse_all();
        admission.joined(LOW, 100_000);
        assert_eq!(admission.refusal(LOW, Instant::now()), None);
        admission.left(LOW, 99_999);
        assert_eq!(admission.refusal(LOW, Instant::now()), None);
        admission.left(LOW, 5_000);
        assert!(admission.refusal(LOW, Instant::now()).is_some());
        admission.left(LOW, 1);
        assert!(admission.refusal(LOW, Instant::now()).is_some(), "it does not wrap around");
    }

    #[test]
    fn who_leaves_before_he_was_counted_in_makes_no_overload() {
        let admission = steady(0);
        admission.left(LOW, 1_000);
        assert_eq!(admission.refusal(LOW, Instant::now()), None);
        admission.joined(LOW, 16_000);
        assert_eq!(admission.refusal(LOW, Instant::now()), None);
    }

    #[test]
    fn the_rate_follows_what_is_measured() {
        let admission = steady(11_200);
        for _ in 0..40 {
            admission.landed_full(0, 250, SECOND);
        }
        assert!(admission.refusal(LOW, Instant::now()).is_none());
        admission.joined(LOW, 200);
        assert!(admission.refusal(LOW, Instant::now()).is_some());
    }

    #[test]
    fn an_overload_that_goes_on_shortens_the_queue_until_it_is_over() {
        let admission = steady(16_000);
        let at = |seconds| admission.started + seconds * SECOND;
        assert_eq!(admission.wait_limit(LOW, at(0)), 15 * SECOND);
        for seconds in 0..60 {
            admission.turned_away(LOW, at(seconds));
        }
        assert_eq!(admission.wait_limit(LOW, at(59)), STANDING_WAIT_MAX);
        assert_eq!(admission.wait_limit(HIGH, at(59)), 15 * SECOND, "each priority has its own");
        assert_eq!(admission.refusal(LOW, at(59)), Some(16 * SECOND - STANDING_WAIT_MAX));
        assert_eq!(admission.wait_limit(LOW, at(59) + OVERLOAD_OVER_AFTER), 15 * SECOND, "it is over");
    }

    #[test]
    fn the_queue_is_shortened_half_as_fast_as_time_passes() {
        let admission = steady(0);
        let at = |seconds| admission.started + seconds * SECOND;
        for seconds in 10..=20 {
            admission.turned_away(LOW, at(seconds));
        }
        assert_eq!(admission.wait_limit(LOW, at(20)), 10 * SECOND);
        admission.turned_away(LOW, at(20) + OVERLOAD_OVER_AFTER);
        assert_eq!(
            admission.wait_limit(LOW, at(20) + OVERLOAD_OVER_AFTER),
            15 * SECOND,
            "another overload begins anew"
        );
    }

    #[test]
    fn a_short_timeout_leaves_a_short_queue() {
        let admission = Admission::new(1, 2 * SECOND);
        let now = admission.started;
        assert_eq!(admission.wait_limit(LOW, now), SECOND);
        admission.turned_away(LOW, now);
        assert_eq!(admission.wait_limit(LOW, now + SECOND), SECOND);
    }
}
