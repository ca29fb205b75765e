//! Batches that cannot land while others can: kept apart, and tried again at growing intervals for as long as it takes.
//!
//! Each is tried again by itself, one at a time, and not before the others had their turn: a flusher that waits for a lock on
//! behalf of one of them is the only one that does.
//!
//! Few and rare: a partition's name is taken by another table, a constraint refuses a batch at the COMMIT, a sector of
//! the journal cannot be read. Health says how many there are, and why.

use std::time::{Duration, Instant};

use crate::limits::{POSTPONE_MAX, RETRY_WAIT_MIN};

/// Things put aside, each with its time.
pub struct Postponed<T> {
    waiting: Vec<(Instant, T)>,
    /// Why the last one was put aside; empty when nothing waits.
    reason: String,
    /// One is being tried again.
    retrying: bool,
    /// What was not postponed comes next.
    others_turn: bool,
}

impl<T> Default for Postponed<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), reason: String::new(), retrying: false, others_turn: false }
    }
}

impl<T> Postponed<T> {
    /// Puts `thing` aside for the `times`-th time (from 0): for longer each time, up to a bound.
    pub fn put(&mut self, thing: T, times: u32, reason: &str, now: Instant) {
        self.waiting.push((now + pause(times), thing));
        reason.clone_into(&mut self.reason);
    }

    /// The one that has been due for longest at `now`, to be tried again; [`Self::retried`] ends that. None while another one
    /// is being tried, and none right after one while `others_wait`.
    pub fn take_due(&mut self, others_wait: bool, now: Instant) -> Option<T> {
        if self.retrying || (std::mem::take(&mut self.others_turn) && others_wait) {
            return None;
        }
        let first = self.waiting.iter().enumerate().min_by_key(|(_, (due, _))| *due)?;
        let (index, (due, _)) = first;
        if *due > now {
            return None;
        }
        self.retrying = true;
        Some(self.waiting.swap_remove(index).1)
    }

    /// What [`Self::take_due`] gave has landed, or was put aside again.
    pub fn retried(&mut self) {
        (self.retrying, self.others_turn) = (false, true);
    }

    /// When the next one is due; `None` also while one is being tried, as nobody else has to wake up for it then.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|(due, _)| *due).min().filter(|_| !self.retrying)
    }

    /// All that wait, in no order.
    pub fn things_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.iter_mut().map(|(_, thing)| thing)
    }

    /// How many wait, with one that is being tried, and why the last one does.
    pub fn state(&self) -> (usize, &str) {
        (self.waiting.len() + usize::from(self.retrying), &self.reason)
    }
}

fn pause(times: u32) -> Duration {
    RETRY_WAIT_MIN.saturating_mul(2u32.saturating_pow(times)).min(POSTPONE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_comes_back_when_it_is_due_and_later_each_time() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        postponed.put("first", 0, "taken", start);
        postponed.put("often", 12, "taken too", start);
        assert_eq!(postponed.state(), (2, "taken too"));
        assert_eq!(postponed.due(), Some(start + RETRY_WAIT_MIN));
        assert_eq!(postponed.take_due(false, start), None);
        assert_eq!(postponed.take_due(false, start + RETRY_WAIT_MIN), Some("first"));
        postponed.retried();
        assert_eq!(postponed.take_due(false, start + RETRY_WAIT_MIN), None);
        assert_eq!(postponed.due(), Some(start + POSTPONE_MAX));
        assert_eq!(postponed.take_due(false, start + POSTPONE_MAX), Some("often"));
        assert_eq!(postponed.state(), (1, "taken too"), "until it is known what became of it");
        postponed.retried();
        assert_eq!(postponed.state(), (0, "taken too"));
    }

    #[test]
    fn one_is_tried_at_a_time_and_the_others_have_their_turn_in_between() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        let due = start + POSTPONE_MAX;
        ["a", "b"].into_iter().for_each(|thing| postponed.put(thing, 0, "locked", start));
        assert!(postponed.take_due(true, due).is_some());
        assert_eq!((postponed.take_due(true, due), postponed.due()), (None, None), "one is under way");
        postponed.retried();
        assert_eq!(postponed.take_due(true, due), None, "first what can land");
        assert!(postponed.take_due(true, due).is_some());
        postponed.retried();
        assert_eq!(postponed.take_due(true, due), None);
    }
}
