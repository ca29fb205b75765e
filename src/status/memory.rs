//! Batches that this process knows: a lock-free concurrent map, bounded, with expiry.
//!
//! Workers insert and look up; flushers only touch the [`Batch`] that they hold. One housekeeping thread
//! expires. A finished batch that was evicted early is still answered by the ledger.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use papaya::{Equivalent, HashMap};
use parking_lot::Mutex;

use crate::limits::STATUS_BATCHES_MAX;
use crate::status::model::{Batch, Phase};
use crate::types::BatchKey;

/// What [`BatchMap::admit`] found.
#[derive(Debug)]
pub enum Admission {
    /// The id was free and is taken now by the batch given.
    New,
    /// The id belongs to this batch.
    Known(Arc<Batch>),
}

/// A batch that is found by its key, which it holds itself: no second copy of the id.
struct ByKey(Arc<Batch>);

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl Equivalent<ByKey> for BatchKey {
    fn equivalent(&self, batch: &ByKey) -> bool {
        *self == batch.0.key
    }
}

/// Batches by owner and id.
pub struct BatchMap {
    batches: HashMap<ByKey, ()>,
    /// Finished batches on their way to the expiry queue; when it is full they are dropped from the map at once.
    finished: ArrayQueue<(Instant, Arc<Batch>)>,
    /// Finished batches in order of their end. Only the housekeeping thread takes this lock.
    expiry: Mutex<VecDeque<(Instant, Arc<Batch>)>>,
    time_to_live: Duration,
}

impl BatchMap {
    /// An empty map that keeps finished batches for `time_to_live`.
    pub fn new(time_to_live: Duration) -> Self {
        Self {
            batches: HashMap::new(),
            finished: ArrayQueue::new(STATUS_BATCHES_MAX / 4),
            expiry: Mutex::new(VecDeque::new()),
            time_to_live,
        }
    }

    /// Takes the id for `batch` unless another batch has it. Atomic: of two requests at once one is `New`.
    pub fn admit(&self, batch: &Arc<Batch>) -> Admission {
        let batches = self.batches.pin();
        while batches.try_insert(ByKey(Arc::clone(batch)), ()).is_err() {
            // Gone already: its id is free.
            let Some((ByKey(current), ())) = batches.get_key_value(&batch.key) else { continue };
            if current.phase() != Phase::Refused {
                return Admission::Known(Arc::clone(current));
            }
            self.remove(current);
        }
        Admission::New
    }

    /// The batch of this id, if this process knows it.
    pub fn get(&self, key: &BatchKey) -> Option<Arc<Batch>> {
        let batches = self.batches.pin();
        let (ByKey(batch), ()) = batches.get_key_value(key)?;
        (batch.phase() != Phase::Refused).then(|| Arc::clone(batch))
    }

    /// Frees the id of a batch that was refused; does nothing when the id has another batch by now.
    pub fn remove(&self, batch: &Arc<Batch>) {
        // An error means that another batch has the id by now: it stays.
        let _ = self.batches.pin().remove_if(&batch.key, |ByKey(current), ()| Arc::ptr_eq(current, batch));
    }

    /// Starts the clock of a batch that has been finished.
    pub fn finished(&self, batch: Arc<Batch>, now: Instant) {
        if batch.lost_its_id() {
            return self.remove(&batch);
        }
        if let Err((_, batch)) = self.finished.push((now, batch)) {
            self.remove(&batch);
        }
    }

    /// Drops what is older than its time to live and what is over the bound, oldest first. Called now and
    /// then by one thread.
    pub fn expire(&self, now: Instant) {
        let mut expiry = self.expiry.lock();
        while let Some(entry) = self.finished.pop() {
            expiry.push_back(entry);
        }
        while let Some((since, batch)) = expiry.front() {
            let expired = now.saturating_duration_since(*since) >= self.time_to_live;
            if !expired && expiry.len() <= STATUS_BATCHES_MAX {
                break;
            }
            self.remove(batch);
            expiry.pop_front();
        }
    }

    /// Batches in the map.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// True when the map holds no batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::model::Counts;
    use crate::types::{BodyDigest, Priority, UnixMicros};

    fn batch(id: &str) -> Arc<Batch> {
        let key = BatchKey { owner: Arc::from(""), id: Box::from(id) };
        Arc::new(Batch::new(key, BodyDigest::of(id.as_bytes()), Priority::default(), 1, UnixMicros(0)))
    }

    #[test]
    fn an_id_belongs_to_the_first_batch_until_it_is_refused() {
        let map = BatchMap::new(Duration::from_secs(60));
        let (first, second) = (batch("a"), batch("a"));
        assert!(matches!(map.admit(&first), Admission::New));
        assert!(matches!(map.admit(&second), Admission::Known(known) if Arc::ptr_eq(&known, &first)));
        first.set_phase(Phase::Refused);
        assert!(map.get(&first.key).is_none());
        assert!(matches!(map.admit(&second), Admission::New));
        map.remove(&first);
        assert!(map.get(&second.key).is_some(), "a refused batch must not free its successor's id");
    }

    #[test]
    fn finished_batches_expire_and_queued_ones_stay() {
        let map = BatchMap::new(Duration::from_secs(60));
        let (done, queued) = (batch("done"), batch("queued"));
        map.admit(&done);
        map.admit(&queued);
        let start = Instant::now();
        done.finish(Counts::default(), UnixMicros(1));
        map.finished(Arc::clone(&done), start);
        map.expire(start + Duration::from_secs(59));
        assert_eq!(map.len(), 2);
        map.expire(start + Duration::from_secs(60));
        assert_eq!(map.len(), 1);
        assert!(map.get(&queued.key).is_some());
    }

    #[test]
    fn a_batch_that_lost_its_id_frees_it_when_it_is_finished() {
        let map = BatchMap::new(Duration::from_secs(60));
        let (lost, rightful) = (batch("a"), batch("a"));
        assert!(matches!(map.admit(&lost), Admission::New));
        lost.finish_without_id(UnixMicros(1));
        map.finished(Arc::clone(&lost), Instant::now());
        assert!(map.get(&lost.key).is_none());
        assert!(matches!(map.admit(&rightful), Admission::New));
    }
}
