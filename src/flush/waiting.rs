//! What waits, for operators: a list of it, and what they may do with a batch that is stuck.
//!
//! ```text
//!  postponed ── taken ─▶ on trial ── landed ─▶ gone
//!      ▲                    │
//!      └── not landed ──────┘   a wish that came meanwhile is fulfilled here
//! ```
//!
//! A stuck batch is in [`crate::flush::postponed`], or a flusher tries it by itself, which may take as long as a lock is
//! held. So a wish never has to be repeated: it is noted with the batch, or with its trial.
//!
//! Absent on purpose: anything about batches that are not stuck. They need no help, and giving one up would be a loss.

use std::sync::Arc;
use std::time::Instant;

use crate::flush::merge::{Item, Role};
use crate::flush::postponed::{Cause, Entry};
use crate::flush::queue::{FlushQueue, Queued, Waiting};
use crate::status::model::Batch;

/// What an operator wants done with a stuck batch. The later ones outdo the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Try it now.
    Retry,
    /// Give it up now: its rows become dead letters.
    Bury,
}

/// Whether there is such a stuck batch.
#[derive(Debug)]
pub enum Asked {
    /// The wish is noted; a flusher fulfils it as soon as PostgreSQL can be reached.
    Noted(Arc<Batch>),
    /// Batches of these keys are meant; nothing was done.
    Several(Vec<Arc<str>>),
    /// No stuck batch is called so.
    Nobody,
}

/// A batch that waits.
#[derive(Clone, Debug)]
pub struct WaitingBatch {
    /// It.
    pub batch: Arc<Batch>,
    /// When it was queued.
    pub queued_at: Instant,
    /// Set when it cannot land at present.
    pub stuck: Option<Stuck>,
}

/// Why a batch cannot land.
#[derive(Clone, Debug)]
pub struct Stuck {
    /// Since when; `None`: its shard takes no batches.
    pub since: Option<Instant>,
    /// How often it was tried by itself or was the reason why others did not land.
    pub attempts: u32,
    /// When it is tried again at the earliest; `None`: a flusher tries it, or its shard is awaited.
    pub due: Option<Instant>,
    /// PostgreSQL's code, or one that [`crate::pg::sqlstate`] gives; `None`: its shard takes no batches.
    pub sqlstate: Option<String>,
    /// One line.
    pub reason: Arc<str>,
    /// An operator has given it up.
    pub is_given_up: bool,
}

/// Batches that wait.
#[derive(Debug, Default)]
pub struct WaitingList {
    /// All of them, not in a COPY.
    pub total: usize,
    /// Those that cannot land at present.
    pub stuck: usize,
    /// The first ones: stuck ones, then the others, the oldest first each.
    pub batches: Vec<WaitingBatch>,
}

/// Stuck batches that flushers are trying; never more than there are flushers.
#[derive(Debug, Default)]
pub struct Trials(Vec<Trial>);

#[derive(Debug)]
struct Trial {
    waiting: WaitingBatch,
    wish: Option<Wish>,
}

impl FlushQueue {
    /// What waits: only what is stuck, or all; at most `limit` batches. Looks at every waiting batch, so not for a thread that
    /// others wait for.
    pub fn waiting(&self, only_stuck: bool, limit: usize) -> WaitingList {
        let held_because = self.held_because.lock().clone();
        let merge = self.gathered();
        let mut waiting: Vec<WaitingBatch> = Vec::new();
        // Too many to copy each of them; those behind the first `limit` are not wanted.
        let mut fine: Vec<(Instant, &Arc<Batch>)> = Vec::new();
        for (item, is_held) in merge.waiting() {
            if is_held {
                waiting.push(held(item, &held_because));
            } else if !only_stuck {
                fine.push((item.queued_at, &item.value.batch));
            }
        }
        let mut turn_awaited = Vec::new();
        {
            let postponed = self.postponed.lock();
            for entry in postponed.entries() {
                let is_stuck = entry.cause.is_stuck;
                let list = if is_stuck { &mut waiting } else { &mut turn_awaited };
                list.push(postponed_one(entry));
            }
            waiting.extend(self.trials.lock().0.iter().map(|trial| trial.waiting.clone()));
        }
        let stuck = waiting.len();
        let total = stuck + if only_stuck { 0 } else { fine.len() + turn_awaited.len() };
        waiting.sort_by_key(|waiting| waiting.queued_at);
        waiting.truncate(limit);
        let room = limit - waiting.len();
        if !only_stuck && room > 0 {
            if fine.len() > room {
                fine.select_nth_unstable_by_key(room - 1, |(queued_at, _)| *queued_at);
                fine.truncate(room);
            }
            let copied = |(queued_at, batch): (Instant, &Arc<Batch>)| WaitingBatch {
                batch: Arc::clone(batch),
                queued_at,
                stuck: None,
            };
            turn_awaited.extend(fine.into_iter().map(copied));
            turn_awaited.sort_by_key(|waiting| waiting.queued_at);
            turn_awaited.truncate(room);
            waiting.extend(turn_awaited);
        }
        WaitingList { total, stuck, batches: waiting }
    }

    /// Does as an operator wishes with the stuck batch called `id`, of `owner` if that is given.
    pub fn ask(&self, id: &str, owner: Option<&str>, wish: Wish) -> Asked {
        let is_meant = |batch: &Batch| *batch.key.id == *id && owner.is_none_or(|owner| *batch.key.owner == *owner);
        let mut postponed = self.postponed.lock();
        let mut trials = self.trials.lock();
        let stuck = postponed.entries().iter().filter(|entry| entry.cause.is_stuck);
        let stuck = stuck.map(|entry| &entry.thing.value.batch);
        let on_trial = trials.0.iter().map(|trial| &trial.waiting.batch);
        let found: Vec<_> = stuck.chain(on_trial).filter(|batch| is_meant(batch)).cloned().collect();
        let batch = match &found[..] {
            [] => return Asked::Nobody,
            [batch] => Arc::clone(batch),
            several => return Asked::Several(several.iter().map(|batch| Arc::clone(&batch.key.owner)).collect()),
        };
        for trial in trials.0.iter_mut().filter(|trial| Arc::ptr_eq(&trial.waiting.batch, &batch)) {
            trial.wish = trial.wish.max(Some(wish));
        }
        let is_it = |item: &mut Waiting| {
            let is_it = Arc::ptr_eq(&item.value.batch, &batch);
            item.value.trouble.is_given_up |= is_it && wish == Wish::Bury;
            is_it
        };
        postponed.hasten(is_it, Instant::now());
        drop((trials, postponed));
        self.wake_one(Role::General);
        Asked::Noted(batch)
    }

    /// A postponed batch that is due, see [`crate::flush::postponed::Postponed::take_due`]. A stuck one is on trial until it
    /// lands or comes back.
    pub(super) fn take_due(&self, others_wait: bool, now: Instant) -> Option<Waiting> {
        let mut postponed = self.postponed.lock();
        let mut item = postponed.take_due(others_wait, now)?;
        if let Some(cause) = postponed.tried_because().filter(|cause| cause.is_stuck) {
            item.value.trouble.is_on_trial = true;
            let stuck = stuck(&item, cause, None);
            let waiting =
                WaitingBatch { batch: Arc::clone(&item.value.batch), queued_at: item.queued_at, stuck: Some(stuck) };
            self.trials.lock().0.push(Trial { waiting, wish: None });
        }
        Some(item)
    }

    /// `item` is on trial no longer: what was wished meanwhile.
    pub(super) fn end_trial(&self, item: &Item<Queued>) -> Option<Wish> {
        if !item.value.trouble.is_on_trial {
            return None;
        }
        let mut trials = self.trials.lock();
        let at = trials.0.iter().position(|trial| Arc::ptr_eq(&trial.waiting.batch, &item.value.batch))?;
        trials.0.swap_remove(at).wish
    }

    /// The same for one that waits again: notes with it what was wished.
    pub(super) fn fulfil(&self, item: &mut Waiting) -> Option<Wish> {
        let wish = self.end_trial(item);
        item.value.trouble.is_on_trial = false;
        item.value.trouble.is_given_up |= wish == Some(Wish::Bury);
        wish
    }
}

fn postponed_one(entry: &Entry<Waiting>) -> WaitingBatch {
    let item = &entry.thing;
    let stuck = entry.cause.is_stuck.then(|| stuck(item, &entry.cause, Some(entry.due)));
    WaitingBatch { batch: Arc::clone(&item.value.batch), queued_at: item.queued_at, stuck }
}

fn stuck(item: &Item<Queued>, cause: &Cause, due: Option<Instant>) -> Stuck {
    let trouble = &item.value.trouble;
    Stuck {
        since: Some(trouble.stuck_since.unwrap_or(item.queued_at)),
        attempts: trouble.postponed_times,
        due,
        sqlstate: Some(cause.sqlstate.clone()),
        reason: Arc::clone(&cause.reason),
        is_given_up: trouble.is_given_up,
    }
}

/// A batch of a shard that takes none.
fn held(item: &Item<Queued>, because: &str) -> WaitingBatch {
    let reason = format!("its shard is rejecting batches: {because}").into();
    let stuck = Stuck { since: None, attempts: 0, due: None, sqlstate: None, reason, is_given_up: false };
    WaitingBatch { batch: Arc::clone(&item.value.batch), queued_at: item.queued_at, stuck: Some(stuck) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::encode::block::{BlockBuilder, BlockHeader};
    use crate::flush::cut::{CutSettings, Linger};
    use crate::flush::merge::{Moment, Next};
    use crate::flush::queue::{QueueBudgets, Trouble};
    use crate::limits::RETRY_REST_MAX;
    use crate::metrics::Metrics;
    use crate::ring::budget::Budget;
    use crate::sharding::{IngestShard, Sharding};
    use crate::types::{BatchKey, BodyDigest, Priority, UnixMicros};

    /// A queue with a batch of each of `owners`, called by its number.
    fn queue_of(owners: &[&str]) -> Arc<FlushQueue> {
        let settings =
            CutSettings { rows_min: 1, bytes_max: 1 << 20, timeout: Duration::from_secs(30), linger: Linger::Adaptive };
        let budgets = QueueBudgets { batches: Budget::new(1000), memory_bytes: Budget::new(1 << 20) };
        let (queue, _seats) = FlushQueue::new(1, Sharding::None, settings, budgets, 1, false);
        let metrics = Metrics::new("n", &[]);
        for (number, owner) in owners.iter().enumerate() {
            let key = BatchKey { owner: Arc::from(*owner), id: format!("batch-{number}").into() };
            push(&queue, &metrics, key);
        }
        queue
    }

    fn push(queue: &FlushQueue, metrics: &Metrics, key: BatchKey) {
        let (digest, priority) = (BodyDigest::of(b"body"), Priority::default());
        let header = BlockHeader { key: key.clone(), priority, events: 1, received_at: UnixMicros(0), digest };
        let queued = Queued {
            batch: Arc::new(Batch::new(key, digest, priority, 1, UnixMicros(0))),
            block: Some(BlockBuilder::new(Vec::new(), &header).finish(1)),
            location: None,
            memory_bytes: 0,
            accepted_at: Instant::now(),
            on_commit: None,
            trouble: Trouble::default(),
        };
        queue.push(metrics, 0, queued, 48);
    }

    fn take(queue: &FlushQueue, now: Instant) -> Option<Waiting> {
        let moment = Moment { now, others_rows: 0, working_since: now, hurry: true, rows_target: 1 };
        match queue.next(Role::General, &moment) {
            Next::Copy(mut cut) => cut.items.pop(),
            _ => None,
        }
    }

    fn noted(asked: &Asked) -> bool {
        matches!(asked, Asked::Noted(_))
    }

    /// `batch` is put aside so often that it is not due for a while.
    fn postpone_often(queue: &FlushQueue, mut item: Waiting) {
        item.value.trouble.postponed_times = 12;
        queue.postpone(item, "42809", "in the way");
    }

    #[test]
    fn the_list_has_what_is_stuck_first_and_no_more_than_asked_for() {
        let queue = queue_of(&["", "", "", ""]);
        let now = Instant::now();
        let first = take(&queue, now).expect("a batch");
        let second = take(&queue, now).expect("a batch");
        queue.quarantine(first, "22P02", "refused rows");
        postpone_often(&queue, second);
        let ids = |list: &WaitingList| list.batches.iter().map(|w| w.batch.key.id.to_string()).collect::<Vec<_>>();
        let list = queue.waiting(false, 100);
        assert_eq!((list.total, list.stuck), (4, 1));
        assert_eq!(ids(&list), ["batch-1", "batch-0", "batch-2", "batch-3"]);
        let stuck = list.batches[0].stuck.as_ref().expect("it is stuck");
        assert_eq!((stuck.sqlstate.as_deref(), &*stuck.reason), (Some("42809"), "in the way"));
        assert_eq!(stuck.attempts, 13);
        assert!(stuck.due.is_some_and(|due| due > now + Duration::from_secs(20)));
        assert!(list.batches[1..].iter().all(|waiting| waiting.stuck.is_none()));
        let short = queue.waiting(false, 2);
        assert_eq!((short.total, ids(&short)), (4, vec!["batch-1".to_owned(), "batch-0".to_owned()]));
        let stuck = queue.waiting(true, 100);
        assert_eq!((stuck.total, ids(&stuck)), (1, vec!["batch-1".to_owned()]));
        queue.hold(IngestShard::default(), "its worker is away");
        let held = queue.waiting(true, 100);
        assert_eq!((held.total, held.stuck), (3, 3), "as health counts them");
        assert!(held.batches[1].stuck.as_ref().is_some_and(|stuck| stuck.reason.contains("worker is away")));
    }

    #[test]
    fn a_wish_is_for_a_stuck_batch_alone_and_makes_it_due() {
        let queue = queue_of(&[""]);
        assert!(matches!(queue.ask("batch-0", None, Wish::Bury), Asked::Nobody), "it only waits");
        postpone_often(&queue, take(&queue, Instant::now()).expect("a batch"));
        assert!(take(&queue, Instant::now()).is_none(), "not due");
        assert!(matches!(queue.ask("batch-0", Some("somebody"), Wish::Retry), Asked::Nobody));
        assert!(noted(&queue.ask("batch-0", None, Wish::Retry)));
        let again = take(&queue, Instant::now()).expect("due now");
        assert!(!again.value.trouble.is_given_up);
        queue.tried(false);
        postpone_often(&queue, again);
        assert!(noted(&queue.ask("batch-0", Some(""), Wish::Bury)));
        assert!(take(&queue, Instant::now()).expect("due now, without a rest").value.trouble.is_given_up);
    }

    #[test]
    fn a_wish_that_comes_while_the_batch_is_tried_is_fulfilled_when_it_comes_back() {
        let queue = queue_of(&[""]);
        postpone_often(&queue, take(&queue, Instant::now()).expect("a batch"));
        queue.ask("batch-0", None, Wish::Retry);
        let on_trial = take(&queue, Instant::now()).expect("due now");
        let list = queue.waiting(true, 100);
        assert_eq!(
            (list.stuck, list.batches[0].stuck.as_ref().expect("stuck").due),
            (1, None),
            "it is listed meanwhile"
        );
        assert!(noted(&queue.ask("batch-0", None, Wish::Bury)));
        assert!(noted(&queue.ask("batch-0", None, Wish::Retry)), "which takes nothing back");
        postpone_often(&queue, on_trial);
        queue.tried(false);
        let rested = Instant::now() + RETRY_REST_MAX;
        let again = take(&queue, rested).expect("due now");
        assert!(again.value.trouble.is_given_up);
        postpone_often(&queue, again);
        queue.tried(false);
        assert!(take(&queue, rested).is_none(), "a wish counts once");
        assert_eq!(queue.waiting(true, 100).stuck, 1, "and its trial is over");
    }

    #[test]
    fn one_id_of_two_keys_is_nobodys_until_one_is_chosen() {
        let queue = queue_of(&["a"]);
        let key = BatchKey { owner: Arc::from("b"), id: Box::from("batch-0") };
        push(&queue, &Metrics::new("n", &[]), key);
        for _ in 0..2 {
            postpone_often(&queue, take(&queue, Instant::now()).expect("a batch"));
        }
        match queue.ask("batch-0", None, Wish::Bury) {
            Asked::Several(owners) => assert_eq!(owners.len(), 2),
            other => panic!("{other:?}"),
        }
        assert!(take(&queue, Instant::now()).is_none(), "nothing was done");
        assert!(noted(&queue.ask("batch-0", Some("b"), Wish::Bury)));
        let taken = take(&queue, Instant::now()).expect("due now");
        assert_eq!((&*taken.value.batch.key.owner, taken.value.trouble.is_given_up), ("b", true));
    }
}
