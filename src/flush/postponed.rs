//! Batches that cannot land while others can: kept apart, and tried again at growing intervals for as long as it takes.
//!
//! Few and rare: a partition's name is taken by another table, a constraint refuses a batch at the COMMIT, a sector of
//! the journal cannot be read. Health says how many there are, and why.

use std::time::{Duration, Instant};

use crate::limits::{POSTPONE_MAX, RETRY_WAIT_MAX};

/// Things put aside, each with its time.
pub struct Postponed<T> {
    waiting: Vec<(Instant, T)>,
    /// Why the last one was put aside; empty when nothing waits.
    reason: String,
}

impl<T> Default for Postponed<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), reason: String::new() }
    }
}

impl<T> Postponed<T> {
    /// Puts `thing` aside for the `times`-th time (from 0): for longer each time, up to a bound.
    pub fn put(&mut self, thing: T, times: u32, reason: &str, now: Instant) {
        self.waiting.push((now + pause(times), thing));
        reason.clone_into(&mut self.reason);
    }

    /// Hands what is due at `now` to `take`.
    pub fn take_due(&mut self, now: Instant, take: impl FnMut(T)) {
        self.waiting.extract_if(.., |(due, _)| *due <= now).map(|(_, thing)| thing).for_each(take);
    }

    /// When the first one is due.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|(due, _)| *due).min()
    }

    /// How many wait, and why the last one does.
    pub fn state(&self) -> (usize, &str) {
        (self.waiting.len(), &self.reason)
    }
}

fn pause(times: u32) -> Duration {
    (RETRY_WAIT_MAX * 2u32.saturating_pow(times)).min(POSTPONE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_comes_back_when_it_is_due_and_later_each_time() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        postponed.put("first", 0, "taken", start);
        postponed.put("often", 9, "taken too", start);
        assert_eq!(postponed.state(), (2, "taken too"));
        assert_eq!(postponed.due(), Some(start + RETRY_WAIT_MAX));
        let mut taken = Vec::new();
        postponed.take_due(start, |thing| taken.push(thing));
        assert!(taken.is_empty());
        postponed.take_due(start + RETRY_WAIT_MAX, |thing| taken.push(thing));
        assert_eq!(taken, ["first"]);
        assert_eq!(postponed.due(), Some(start + POSTPONE_MAX));
        postponed.take_due(start + POSTPONE_MAX, |thing| taken.push(thing));
        assert_eq!((taken, postponed.due()), (vec!["first", "often"], None));
    }
}
