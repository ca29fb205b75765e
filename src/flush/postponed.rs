//! Batches that cannot land while others can: kept apart, and tried again by themselves, one at a time, at growing intervals.
//!
//! ```text
//!  put ─▶ waiting ── due, and nobody is trying one ─▶ tried ─ landed ─▶ gone, and those of the same SQLSTATE are due now
//!           ▲                                           │
//!           └──── later each time, after a rest ────────┘
//! ```
//!
//! Whoever tries one holds the only turn, so that one flusher at most waits for what keeps them; the same turn is for those that
//! have refused rows, which take long to find. After a failure the turn rests, so that batches that do not land take a bounded
//! share of one flusher, however many there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits::{POSTPONE_MAX, RETRY_REST_FACTOR, RETRY_REST_MAX, RETRY_WAIT_MIN};

/// Why something was put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// PostgreSQL's code, or one that [`crate::pg::sqlstate`] gives.
    pub sqlstate: String,
    /// One line.
    pub reason: Arc<str>,
    /// It cannot land at present; false: it only waits for its turn.
    pub is_stuck: bool,
}

/// Something put aside.
#[derive(Debug)]
pub struct Entry<T> {
    /// When it is tried again.
    pub due: Instant,
    /// How often it was put aside before.
    pub times: u32,
    /// Why.
    pub cause: Cause,
    /// It.
    pub thing: T,
}

/// Things put aside, each with its time.
pub struct Postponed<T> {
    waiting: Vec<Entry<T>>,
    /// The earliest of theirs.
    next_due: Option<Instant>,
    /// One is being tried: since when, and why it was put aside; `None` where it comes straight from a COPY.
    turn: Option<(Instant, Option<Cause>)>,
    rests_until: Option<Instant>,
    /// What was not postponed comes next.
    others_turn: bool,
    /// The next turn is for the one that was tried least often, not for the one that has been due for longest.
    newest_turn: bool,
}

impl<T> Default for Postponed<T> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            next_due: None,
            turn: None,
            rests_until: None,
            others_turn: false,
            newest_turn: false,
        }
    }
}

impl<T> Postponed<T> {
    /// Puts `thing` aside for the `times`-th time (from 0): for longer each time, up to a bound.
    pub fn put(&mut self, thing: T, times: u32, cause: Cause, now: Instant) {
        let due = if cause.is_stuck { now + pause(times) } else { now };
        self.put_back(Entry { due, times, cause, thing });
    }

    /// Puts back what [`Self::take_if`] gave, as it was.
    pub fn put_back(&mut self, entry: Entry<T>) {
        self.next_due = Some(self.next_due.map_or(entry.due, |due| due.min(entry.due)));
        self.waiting.push(entry);
    }

    /// Takes all for which `wanted` says so.
    pub fn take_if(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Vec<Entry<T>> {
        let taken = self.waiting.extract_if(.., |entry| wanted(&entry.thing)).collect();
        self.note_due();
        taken
    }

    /// One that is due at `now`, to be tried by itself until [`Self::tried`]: in turns the one that has been due for longest, and
    /// the one that was tried least often. None while another one is being tried or after one that failed, and none right
    /// after one while `others_wait`.
    pub fn take_due(&mut self, others_wait: bool, now: Instant) -> Option<T> {
        if self.turn.is_some() || self.due().is_none_or(|due| due > now) {
            return None;
        }
        if std::mem::take(&mut self.others_turn) && others_wait {
            return None;
        }
        let is_due = self.waiting.iter().enumerate().filter(|(_, entry)| entry.due <= now);
        let chosen = if self.newest_turn {
            is_due.min_by_key(|(_, entry)| (entry.times, entry.due))
        } else {
            is_due.min_by_key(|(_, entry)| entry.due)
        };
        let (index, _) = chosen?;
        self.newest_turn = !self.newest_turn;
        let entry = self.waiting.swap_remove(index);
        self.note_due();
        self.turn = Some((now, Some(entry.cause)));
        Some(entry.thing)
    }

    /// Takes the turn for something that was not put aside; false while somebody else has it.
    pub fn take_turn(&mut self, now: Instant) -> bool {
        let is_free = self.turn.is_none();
        if is_free {
            self.turn = Some((now, None));
        }
        is_free
    }

    /// Who had the turn is done. If what was tried has landed, the others of the same SQLSTATE are due; else the turn rests.
    pub fn tried(&mut self, has_landed: bool, now: Instant) {
        let Some((since, cause)) = self.turn.take() else { return };
        self.others_turn = true;
        if !has_landed {
            self.rests_until = Some(now + ((now - since) * RETRY_REST_FACTOR).min(RETRY_REST_MAX));
        } else if let Some(cause) = cause.filter(|cause| cause.is_stuck) {
            self.rests_until = None;
            let same = self.waiting.iter_mut().filter(|entry| entry.cause.sqlstate == cause.sqlstate);
            same.for_each(|entry| entry.due = entry.due.min(now));
            self.note_due();
        }
    }

    /// All for which `wanted` says so are due now, and no rest is in their way; how many those are.
    pub fn hasten(&mut self, mut wanted: impl FnMut(&mut T) -> bool, now: Instant) -> usize {
        let chosen = self.waiting.iter_mut().filter_map(|entry| wanted(&mut entry.thing).then_some(&mut entry.due));
        let count = chosen.map(|due| *due = (*due).min(now)).count();
        if count > 0 {
            self.rests_until = None;
            self.note_due();
        }
        count
    }

    /// When the next one is due; `None` also while one is being tried, as nobody else has to wake up for it then.
    pub fn due(&self) -> Option<Instant> {
        let due = self.next_due.filter(|_| self.turn.is_none())?;
        Some(self.rests_until.map_or(due, |until| until.max(due)))
    }

    /// How many cannot land at present, with one that is being tried, and why the last of them cannot.
    pub fn stuck(&self) -> (usize, Option<Arc<str>>) {
        let tried = self.turn.iter().filter_map(|(_, cause)| cause.as_ref());
        let causes = tried.chain(self.waiting.iter().map(|entry| &entry.cause)).filter(|cause| cause.is_stuck);
        let (count, last) = causes.fold((0, None), |(count, _), cause| (count + 1, Some(cause)));
        (count, last.map(|cause| Arc::clone(&cause.reason)))
    }

    /// Why that was put aside which is being tried; `None` also where it comes straight from a COPY.
    pub fn tried_because(&self) -> Option<&Cause> {
        self.turn.as_ref().and_then(|(_, cause)| cause.as_ref())
    }

    /// All that wait, in no order.
    pub fn entries(&self) -> &[Entry<T>] {
        &self.waiting
    }

    /// The same, without why and when.
    pub fn things_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.iter_mut().map(|entry| &mut entry.thing)
    }

    fn note_due(&mut self) {
        self.next_due = self.waiting.iter().map(|entry| entry.due).min();
    }
}

fn pause(times: u32) -> Duration {
    RETRY_WAIT_MIN.saturating_mul(2u32.saturating_pow(times)).min(POSTPONE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(sqlstate: &str) -> Cause {
        Cause { sqlstate: sqlstate.to_owned(), reason: sqlstate.into(), is_stuck: true }
    }

    fn stuck<T>(postponed: &Postponed<T>) -> usize {
        postponed.stuck().0
    }

    #[test]
    fn what_is_put_aside_comes_back_when_it_is_due_and_later_each_time() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        postponed.put("first", 0, cause("42501"), start);
        postponed.put("often", 12, cause("55P03"), start);
        assert_eq!(postponed.stuck(), (2, Some("55P03".into())));
        assert_eq!(postponed.due(), Some(start + RETRY_WAIT_MIN));
        assert_eq!(postponed.take_due(false, start), None);
        assert_eq!(postponed.take_due(false, start + RETRY_WAIT_MIN), Some("first"));
        assert_eq!(stuck(&postponed), 2, "until it is known what became of it");
        postponed.tried(true, start + RETRY_WAIT_MIN);
        assert_eq!(postponed.take_due(false, start + RETRY_WAIT_MIN), None);
        assert_eq!(postponed.due(), Some(start + POSTPONE_MAX));
        assert_eq!(postponed.take_due(false, start + POSTPONE_MAX), Some("often"));
        postponed.tried(true, start + POSTPONE_MAX);
        assert_eq!(postponed.stuck(), (0, None));
    }

    #[test]
    fn one_is_tried_at_a_time_and_the_others_have_their_turn_in_between() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        let due = start + POSTPONE_MAX;
        ["a", "b"].into_iter().for_each(|thing| postponed.put(thing, 0, cause("55P03"), start));
        assert!(postponed.take_due(true, due).is_some());
        assert_eq!((postponed.take_due(true, due), postponed.due()), (None, None), "one is under way");
        assert!(!postponed.take_turn(due), "nor is there a turn for refused rows");
        postponed.tried(true, due);
        assert_eq!(postponed.take_due(true, due), None, "first what can land");
        assert!(postponed.take_due(true, due).is_some());
        postponed.tried(true, due);
        assert!(postponed.take_turn(due));
        postponed.tried(true, due);
    }

    #[test]
    fn what_does_not_land_takes_a_bounded_share_of_a_flusher_however_much_there_is() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        (0..1000).for_each(|number| postponed.put(number, 0, cause("55P03"), start));
        let (took, mut now, mut tries) = (Duration::from_millis(100), start + POSTPONE_MAX, 0);
        let end = now + Duration::from_secs(60);
        while now < end {
            if let Some(number) = postponed.take_due(false, now) {
                now += took;
                tries += 1;
                postponed.put(number, 1, cause("55P03"), now);
                postponed.tried(false, now);
            }
            now = postponed.due().expect("many wait").max(now);
        }
        assert_eq!(tries, 60, "a tenth of the time, at 100 ms each");
    }

    #[test]
    fn when_one_lands_those_of_its_kind_follow_at_once() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        postponed.put("tried", 0, cause("55P03"), start);
        postponed.put("same", 12, cause("55P03"), start);
        postponed.put("other", 12, cause("42501"), start);
        let now = start + RETRY_WAIT_MIN;
        assert_eq!(postponed.take_due(false, now), Some("tried"));
        postponed.tried(true, now);
        assert_eq!(postponed.take_due(false, now), Some("same"));
        postponed.tried(true, now);
        assert_eq!(postponed.take_due(false, now), None);
    }

    #[test]
    fn a_new_one_does_not_wait_behind_all_that_have_failed_often() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        (0..100).for_each(|number| postponed.put(number, 3, cause("55P03"), start));
        postponed.put(100, 0, cause("55P03"), start + Duration::from_secs(1));
        let now = start + POSTPONE_MAX;
        let mut taken = Vec::new();
        for _ in 0..2 {
            taken.extend(postponed.take_due(false, now));
            postponed.tried(true, now);
        }
        assert!(taken.contains(&100), "{taken:?}");
    }

    #[test]
    fn what_only_waits_for_its_turn_is_not_stuck_and_due_at_once() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        postponed.put("refused rows", 0, Cause { is_stuck: false, ..cause("22P02") }, start);
        assert_eq!((stuck(&postponed), postponed.due()), (0, Some(start)));
        assert_eq!(postponed.take_due(false, start), Some("refused rows"));
    }

    #[test]
    fn an_operator_can_have_one_tried_now() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        postponed.put("a", 12, cause("55P03"), start);
        postponed.put("b", 12, cause("55P03"), start);
        assert_eq!(postponed.hasten(|thing| *thing == "b", start), 1);
        assert_eq!(postponed.take_due(false, start), Some("b"));
        assert_eq!(postponed.take_if(|_| true).len(), 1);
        assert_eq!(postponed.hasten(|_| true, start), 0);
    }
}
