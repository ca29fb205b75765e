//! The latest batches, and why events of some were refused: for people who look at the dashboard.
//!
//! Each worker notes into a list of its own: the lock is free but while somebody looks. Lists are short and drop their
//! oldest entry. Nothing depends on them.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use crate::limits::{RECENT_BATCHES_MAX, RECENT_TROUBLE_MAX};
use crate::pg::sqlstate::Fault;
use crate::status::model::Batch;
use crate::types::UnixMicros;

/// Why PostgreSQL refused events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Its code.
    pub sqlstate: String,
    /// Its message.
    pub message: String,
    /// How many events.
    pub events: u64,
}

impl Reason {
    /// `fault` as the reason for `events`.
    pub fn of(fault: &Fault, events: u64) -> Self {
        Self { sqlstate: fault.sqlstate.clone(), message: fault.message.clone(), events }
    }
}

/// A reason with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatedReason {
    /// The reason, its events added up.
    pub reason: Reason,
    /// When it last occurred.
    pub at: UnixMicros,
}

type Batches = VecDeque<Arc<Batch>>;

/// The lists.
#[derive(Debug)]
pub struct Recent {
    by_worker: Box<[CachePadded<Mutex<Batches>>]>,
    troubled: Mutex<Batches>,
    reasons: Mutex<VecDeque<DatedReason>>,
}

impl Recent {
    /// Empty lists, one for each of `workers`.
    pub fn new(workers: usize) -> Self {
        Self {
            by_worker: (0..workers).map(|_| CachePadded::default()).collect(),
            troubled: Mutex::default(),
            reasons: Mutex::default(),
        }
    }

    /// `worker` has accepted `batch`.
    pub fn accepted(&self, worker: usize, batch: &Arc<Batch>) {
        push(&mut self.by_worker[worker].lock(), batch, RECENT_BATCHES_MAX);
    }

    /// Events of `batch` were refused.
    pub fn troubled(&self, batch: &Arc<Batch>) {
        push(&mut self.troubled.lock(), batch, RECENT_TROUBLE_MAX);
    }

    /// Events were refused for `reason`.
    pub fn refused(&self, reason: Reason, at: UnixMicros) {
        let mut reasons = self.reasons.lock();
        let is_same =
            |known: &DatedReason| known.reason.sqlstate == reason.sqlstate && known.reason.message == reason.message;
        let known = reasons.iter().position(is_same).and_then(|place| reasons.remove(place));
        let before = known.map_or(0, |known| known.reason.events);
        if reasons.len() == RECENT_TROUBLE_MAX {
            reasons.pop_back();
        }
        reasons.push_front(DatedReason { reason: Reason { events: before + reason.events, ..reason }, at });
    }

    /// The latest batches of all workers that `is_shown`, newest first.
    pub fn batches(&self, is_shown: impl Fn(&Batch) -> bool) -> Vec<Arc<Batch>> {
        let lists = self.by_worker.iter().map(|list| list.lock().iter().cloned().collect::<Vec<_>>());
        let mut batches: Vec<_> = lists.flatten().filter(|batch| is_shown(batch)).collect();
        batches.sort_by_key(|batch| std::cmp::Reverse(batch.received_at.0));
        batches.truncate(RECENT_BATCHES_MAX);
        batches
    }

    /// The latest batches with refused events that `is_shown`, newest first.
    pub fn troubled_batches(&self, is_shown: impl Fn(&Batch) -> bool) -> Vec<Arc<Batch>> {
        self.troubled.lock().iter().rev().filter(|batch| is_shown(batch)).cloned().collect()
    }

    /// Why events were refused, the latest reason first; counts are since the reason was last forgotten.
    pub fn reasons(&self) -> Vec<DatedReason> {
        self.reasons.lock().iter().cloned().collect()
    }
}

/// Adds `batch`, and drops the oldest one beyond `max`.
fn push(list: &mut Batches, batch: &Arc<Batch>, max: usize) {
    if list.len() == max {
        list.pop_front();
    }
    list.push_back(Arc::clone(batch));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BatchKey, BodyDigest, Priority};

    fn batch(number: i64) -> Arc<Batch> {
        let key = BatchKey { owner: Arc::from(""), id: number.to_string().into() };
        Arc::new(Batch::new(key, BodyDigest::of(b""), Priority::default(), 1, UnixMicros(number)))
    }

    fn ids(batches: &[Arc<Batch>]) -> Vec<i64> {
        batches.iter().map(|batch| batch.received_at.0).collect()
    }

    #[test]
    fn the_latest_batches_of_all_workers_are_shown_newest_first() {
        let (recent, max) = (Recent::new(2), RECENT_BATCHES_MAX as i64);
        assert!(recent.batches(|_| true).is_empty());
        (0..3 * max).for_each(|number| recent.accepted(number as usize % 2, &batch(number)));
        assert_eq!(ids(&recent.batches(|_| true)), (2 * max..3 * max).rev().collect::<Vec<_>>());
        let even = recent.batches(|batch| batch.received_at.0 % 2 == 0);
        assert!(even.len() == RECENT_BATCHES_MAX && even.iter().all(|batch| batch.received_at.0 % 2 == 0));
    }

    #[test]
    fn trouble_is_kept_although_good_batches_follow() {
        let (recent, bad) = (Recent::new(1), batch(1));
        recent.troubled(&bad);
        (2..1000).for_each(|number| recent.accepted(0, &batch(number)));
        assert_eq!(ids(&recent.troubled_batches(|_| true)), [1]);
        (0..100).for_each(|number| recent.troubled(&batch(number)));
        assert_eq!(recent.troubled_batches(|_| true).len(), RECENT_TROUBLE_MAX);
    }

    #[test]
    fn reasons_are_counted_and_the_oldest_kind_goes() {
        let recent = Recent::new(1);
        let reason = |code: usize, events| Reason { sqlstate: code.to_string(), message: "no".to_owned(), events };
        recent.refused(reason(0, 2), UnixMicros(1));
        recent.refused(reason(1, 1), UnixMicros(2));
        recent.refused(reason(0, 3), UnixMicros(3));
        assert_eq!(recent.reasons()[0], DatedReason { reason: reason(0, 5), at: UnixMicros(3) });
        (2..RECENT_TROUBLE_MAX + 1).for_each(|code| recent.refused(reason(code, 1), UnixMicros(4)));
        let kept = recent.reasons();
        assert_eq!(kept.len(), RECENT_TROUBLE_MAX);
        assert!(!kept.iter().any(|kept| kept.reason.sqlstate == "1"), "the oldest kind is gone");
    }
}
