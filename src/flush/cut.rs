//! When a COPY starts and how large it is.

use std::time::{Duration, Instant};

use crate::flush::merge::Role;
use crate::limits::{
    COPY_DURATION_TARGET, COPY_LOCK_WAIT_BRIEF, COPY_LOCK_WAIT_LONG, COPY_LOCK_WAIT_MAX, COPY_LOCK_WAIT_PATIENT,
    COPY_LOCK_WAIT_SHORT, COPY_ROWS_MAX, COPY_TIME_ALONE_MAX, COPY_TIME_MAX, COPY_TIME_PART_MIN, HASTY_COPY_TIME_MIN,
    LINGER_ADAPTIVE_MAX, SHARDED_COPY_DURATION_TARGET, SLOW_COPY_FACTOR, SLOW_COPY_MIN,
};
use crate::pg::time_limits::TimeLimits;
use crate::sharding::Sharding;

/// How long a free flusher waits for more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linger {
    /// Not at all while no other COPY runs, else up to [`LINGER_ADAPTIVE_MAX`] for `BATCH_SIZE` rows, or for half of
    /// what other COPYs have under way if that is more: clients that wait for their commits send their next batches
    /// within moments of each other, and whoever took the first of them alone would pay for a COPY of its own and leave
    /// the others to a large one.
    Adaptive,
    /// `BATCH_LINGER_MS`.
    Fixed(Duration),
}

/// The settings that shape a COPY.
#[derive(Clone, Copy, Debug)]
pub struct CutSettings {
    /// `BATCH_SIZE`: rows worth starting a COPY for.
    pub rows_min: u32,
    /// `MAX_BATCH_MEMORY_MB`, in bytes.
    pub bytes_max: u64,
    /// `BATCH_TIMEOUT_SECONDS`.
    pub timeout: Duration,
    /// `BATCH_LINGER_MS`.
    pub linger: Linger,
}

impl CutSettings {
    /// Rows that are worth starting a COPY for while others have `others_rows` under way.
    pub fn rows_enough(&self, others_rows: u64) -> u64 {
        let like_the_others = if self.linger == Linger::Adaptive { others_rows / 2 } else { 0 };
        u64::from(self.rows_min).max(like_the_others)
    }
}

/// What waits, as far as the decision to start needs it.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// When the oldest waiting batch was queued.
    pub oldest_queued_at: Instant,
    /// Rows of the batches that this COPY could take.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Priority 8 or above is among them.
    pub urgent: bool,
}

/// The moment at which a COPY of what waits should start, beside other COPYs of `others_rows`; in the past means now.
pub fn start_at(settings: &CutSettings, waiting: &Waiting, others_rows: u64) -> Instant {
    let enough = waiting.rows >= settings.rows_enough(others_rows) || waiting.bytes >= settings.bytes_max;
    let linger = match settings.linger {
        _ if enough => Duration::ZERO,
        Linger::Fixed(linger) => linger,
        Linger::Adaptive if waiting.urgent || others_rows == 0 => Duration::ZERO,
        Linger::Adaptive => LINGER_ADAPTIVE_MAX,
    };
    waiting.oldest_queued_at + linger.min(settings.timeout)
}

/// A part of a cut.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Its batches.
    pub batches: usize,
    /// Their rows.
    pub rows: u64,
    /// Batches of the cut.
    pub of_batches: usize,
    /// Its rows.
    pub of_rows: u64,
}

/// What a COPY may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Others wait behind it, and it should not take much longer than its rows let expect.
    Hasty {
        /// How long they do.
        expected: Duration,
    },
    /// Others wait behind it.
    Usual,
    /// It is a batch that is tried by itself, and may take as long as it needs once it has its locks.
    OwnTurn,
    /// The same, and it waits for whoever has the lock.
    OwnLongTurn,
    /// Every COPY has to wait for the lock: there is nothing better to do.
    Locked,
}

/// How long PostgreSQL may take for `share`, on behalf of a flusher of `role`; `rows_are_locked` where others were found to hold
/// rows lately.
pub fn limits(share: Share, role: Role, patience: Patience, rows_are_locked: bool) -> TimeLimits {
    let is_part = share.batches < share.of_batches;
    let lock = match (patience, role) {
        (Patience::Locked, _) => COPY_LOCK_WAIT_LONG,
        (Patience::OwnLongTurn, _) => COPY_LOCK_WAIT_PATIENT,
        (Patience::Hasty { .. } | Patience::Usual, _) if rows_are_locked => COPY_LOCK_WAIT_BRIEF,
        (Patience::Hasty { .. } | Patience::Usual, Role::General) if !is_part => COPY_LOCK_WAIT_MAX,
        (Patience::Hasty { .. } | Patience::Usual | Patience::OwnTurn, _) => COPY_LOCK_WAIT_SHORT,
    };
    let statement = match patience {
        Patience::Locked | Patience::OwnTurn | Patience::OwnLongTurn => None,
        Patience::Hasty { expected } if share.batches > 1 && !is_part => {
            Some((expected * SLOW_COPY_FACTOR).clamp(HASTY_COPY_TIME_MIN, COPY_TIME_MAX))
        }
        Patience::Hasty { .. } | Patience::Usual if is_part => {
            let part = COPY_TIME_MAX.mul_f64(share.rows as f64 / share.of_rows.max(1) as f64);
            Some(part.max(COPY_TIME_PART_MIN))
        }
        Patience::Hasty { .. } | Patience::Usual if share.batches > 1 => Some(COPY_TIME_MAX),
        Patience::Hasty { .. } | Patience::Usual => Some(COPY_TIME_ALONE_MAX),
    };
    TimeLimits { lock: Some(lock), statement: statement.map(|limit| limit.max(lock)) }
}

/// Rows that the next COPY may take, adapted so that a COPY lasts about [`COPY_DURATION_TARGET`], or
/// [`SHARDED_COPY_DURATION_TARGET`] on a Citus cluster.
#[derive(Clone, Copy, Debug)]
pub struct RowsTarget {
    rows: u32,
    rows_min: u32,
    rows_max: u32,
    duration: Duration,
}

impl RowsTarget {
    /// Starts at `BATCH_SIZE`, which is also the floor of what a slow COPY teaches.
    pub fn new(batch_size: u32, sharding: Sharding) -> Self {
        let duration = match sharding {
            Sharding::None => COPY_DURATION_TARGET,
            Sharding::Citus => SHARDED_COPY_DURATION_TARGET,
        };
        Self { rows: batch_size, rows_min: batch_size, rows_max: COPY_ROWS_MAX.max(batch_size), duration }
    }

    /// The present target.
    pub fn rows(self) -> u32 {
        self.rows
    }

    /// True when a COPY of `rows` that took `took` was far slower than the target lets expect: some of its rows are.
    pub fn is_slow(self, rows: u64, took: Duration) -> bool {
        took >= SLOW_COPY_MIN.max(self.expected(rows) * SLOW_COPY_FACTOR)
    }

    /// How long a COPY of `rows` should take.
    pub fn expected(self, rows: u64) -> Duration {
        self.duration.mul_f64(rows as f64 / f64::from(self.rows.max(1)))
    }

    /// Learns from a COPY that PostgreSQL gave up or cancelled: half as many rows may pass, down to a single batch.
    pub fn gave_up(&mut self) {
        self.rows = (self.rows / 2).max(1);
    }

    /// Learns from a COPY: up by half when it was full and quick, down by a quarter when slow.
    pub fn observe(&mut self, is_full: bool, took: Duration) {
        if took > self.duration {
            let smaller = self.rows - self.rows / 4;
            self.rows = smaller.max(self.rows_min.min(self.rows));
        } else if is_full && took < self.duration / 2 {
            self.rows = (self.rows + self.rows / 2 + 1).min(self.rows_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: CutSettings =
        CutSettings { rows_min: 1000, bytes_max: 1 << 20, timeout: Duration::from_secs(30), linger: Linger::Adaptive };

    fn waiting(rows: u64) -> Waiting {
        Waiting { oldest_queued_at: Instant::now(), rows, bytes: rows, urgent: false }
    }

    #[test]
    fn an_idle_server_does_not_linger() {
        let few = waiting(1);
        assert_eq!(start_at(&SETTINGS, &few, 0), few.oldest_queued_at);
        assert_eq!(start_at(&SETTINGS, &few, 1), few.oldest_queued_at + LINGER_ADAPTIVE_MAX);
        let enough = waiting(1000);
        assert_eq!(start_at(&SETTINGS, &enough, 1), enough.oldest_queued_at);
        let urgent = Waiting { urgent: true, ..few };
        assert_eq!(start_at(&SETTINGS, &urgent, 1), few.oldest_queued_at);
    }

    #[test]
    fn beside_a_large_copy_a_few_rows_more_are_worth_a_moment() {
        let rows = waiting(3000);
        assert_eq!(start_at(&SETTINGS, &rows, 6000), rows.oldest_queued_at);
        assert_eq!(start_at(&SETTINGS, &rows, 6002), rows.oldest_queued_at + LINGER_ADAPTIVE_MAX);
        let urgent = Waiting { urgent: true, ..rows };
        assert_eq!(start_at(&SETTINGS, &urgent, 6002), rows.oldest_queued_at);
        let fixed = CutSettings { linger: Linger::Fixed(Duration::from_secs(1)), ..SETTINGS };
        assert_eq!(start_at(&fixed, &rows, 6002), rows.oldest_queued_at, "a number fixes it");
    }

    #[test]
    fn a_fixed_linger_ends_with_rows_bytes_or_the_timeout() {
        let fixed = CutSettings { linger: Linger::Fixed(Duration::from_secs(60)), ..SETTINGS };
        let few = waiting(1);
        assert_eq!(start_at(&fixed, &few, 0), few.oldest_queued_at + fixed.timeout);
        let large = Waiting { bytes: 1 << 20, ..few };
        assert_eq!(start_at(&fixed, &large, 0), few.oldest_queued_at);
    }

    #[test]
    fn the_target_grows_while_copies_are_quick_and_shrinks_when_slow() {
        let mut target = RowsTarget::new(1000, Sharding::None);
        for _ in 0..100 {
            target.observe(true, Duration::from_millis(10));
        }
        assert_eq!(target.rows(), COPY_ROWS_MAX);
        for _ in 0..100 {
            target.observe(true, Duration::from_secs(1));
        }
        assert_eq!(target.rows(), 1000);
        target.observe(false, Duration::from_millis(1));
        assert_eq!(target.rows(), 1000, "a COPY that was not full says nothing");
    }

    #[test]
    fn copies_that_postgresql_cancels_become_smaller_than_a_batch_size_and_grow_again() {
        let mut target = RowsTarget::new(1000, Sharding::None);
        for _ in 0..20 {
            target.gave_up();
        }
        assert_eq!(target.rows(), 1);
        target.observe(true, Duration::from_secs(1));
        assert_eq!(target.rows(), 1, "slow, but it landed");
        for _ in 0..40 {
            target.observe(true, Duration::from_millis(10));
        }
        assert_eq!(target.rows(), COPY_ROWS_MAX);
    }

    #[test]
    fn who_has_others_behind_it_may_wait_least() {
        let whole = Share { batches: 8, rows: 800, of_batches: 8, of_rows: 800 };
        let of = |share, role, patience| {
            let TimeLimits { lock, statement } = limits(share, role, patience, false);
            (lock.expect("always one"), statement)
        };
        let usual = |share, role| of(share, role, Patience::Usual);
        assert_eq!(usual(whole, Role::General), (COPY_LOCK_WAIT_MAX, Some(COPY_TIME_MAX)));
        assert_eq!(usual(whole, Role::Reserved), (COPY_LOCK_WAIT_SHORT, Some(COPY_TIME_MAX)));
        let hasty = |expected| of(whole, Role::General, Patience::Hasty { expected }).1;
        assert_eq!(hasty(Duration::from_millis(1)), Some(HASTY_COPY_TIME_MIN));
        assert_eq!(hasty(COPY_DURATION_TARGET), Some(COPY_DURATION_TARGET * SLOW_COPY_FACTOR));
        assert_eq!(hasty(COPY_TIME_MAX), Some(COPY_TIME_MAX));
        let half = Share { batches: 4, rows: 400, ..whole };
        assert_eq!(usual(half, Role::General), (COPY_LOCK_WAIT_SHORT, Some(COPY_TIME_MAX / 2)));
        let least = Share { batches: 1, rows: 1, ..whole };
        assert_eq!(usual(least, Role::General), (COPY_LOCK_WAIT_SHORT, Some(COPY_TIME_PART_MIN)));
        let alone = Share { batches: 1, rows: 800, of_batches: 1, of_rows: 800 };
        assert_eq!(usual(alone, Role::General), (COPY_LOCK_WAIT_MAX, Some(COPY_TIME_ALONE_MAX)));
        assert_eq!(of(alone, Role::General, Patience::OwnTurn), (COPY_LOCK_WAIT_SHORT, None));
        assert_eq!(of(alone, Role::General, Patience::OwnLongTurn), (COPY_LOCK_WAIT_PATIENT, None));
        assert_eq!(of(whole, Role::Reserved, Patience::Locked), (COPY_LOCK_WAIT_LONG, None));
    }

    #[test]
    fn where_rows_are_locked_nobody_waits_for_long_but_who_is_tried_by_itself() {
        let whole = Share { batches: 8, rows: 800, of_batches: 8, of_rows: 800 };
        let half = Share { batches: 4, rows: 400, ..whole };
        let lock = |share, patience| limits(share, Role::General, patience, true).lock;
        assert_eq!([whole, half].map(|share| lock(share, Patience::Usual)), [Some(COPY_LOCK_WAIT_BRIEF); 2]);
        assert_eq!(lock(whole, Patience::OwnTurn), Some(COPY_LOCK_WAIT_SHORT));
        assert_eq!(lock(whole, Patience::OwnLongTurn), Some(COPY_LOCK_WAIT_PATIENT));
    }

    #[test]
    fn a_copy_is_slow_by_what_its_rows_should_take() {
        let target = RowsTarget::new(1000, Sharding::None);
        let should_take = COPY_DURATION_TARGET / 2;
        assert!(!target.is_slow(500, should_take * SLOW_COPY_FACTOR - Duration::from_millis(1)));
        assert!(target.is_slow(500, should_take * SLOW_COPY_FACTOR));
        assert!(!target.is_slow(1, SLOW_COPY_MIN - Duration::from_millis(1)));
        assert!(target.is_slow(1, SLOW_COPY_MIN));
    }

    #[test]
    fn a_copy_that_ends_in_a_two_phase_commit_may_last_longer() {
        let after = |sharding, took| {
            let mut target = RowsTarget::new(1000, sharding);
            target.observe(true, took);
            target.rows()
        };
        let took = COPY_DURATION_TARGET;
        assert_eq!((after(Sharding::None, took), after(Sharding::Citus, took)), (1000, 1501));
        assert_eq!(after(Sharding::Citus, SHARDED_COPY_DURATION_TARGET), 1000);
    }
}
