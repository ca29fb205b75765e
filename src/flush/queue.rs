//! What waits for a COPY, shared by those who feed it and the flushers who take from it.
//!
//! The journal thread pushes into lock-free lanes; flushers move the lanes into one [`Merge`] under a lock
//! that only flushers take. How flushers sleep and are woken is in [`crate::flush::sleepers`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::encode::block::Block;
use crate::flush::admission::Admission;
use crate::flush::cut::CutSettings;
use crate::flush::held::{self, Held};
use crate::flush::merge::{Item, Merge, Moment, Next, Role};
use crate::flush::postponed::{Cause, Postponed};
use crate::flush::sleepers::{Seat, Sleepers};
use crate::flush::waiting::Trials;
use crate::journal::Location;
use crate::limits::{
    MEMORY_SHED_SHARE, PATIENT_RETRY_EVERY, POSTPONED_REPORTED_AT, QUEUED_BATCH_BYTES, STUCK_TOLD_EVERY,
    TRIES_BETWEEN_LONG_TURNS,
};
use crate::metrics::Metrics;
use crate::pg::locks::Blocked;
use crate::pg::month::Month;
use crate::pg::sqlstate::FaultKind;
use crate::ring::budget::Budget;
use crate::ring::lanes::Lanes;
use crate::sharding::{IngestShard, NodeGroup, ShardMap, Sharding};
use crate::state_log::StateLog;
use crate::status::model::Batch;
use crate::sys::paced::Paced;
use crate::types::Priority;

/// A durable batch on its way to PostgreSQL.
#[derive(Debug)]
pub struct Queued {
    /// Its status.
    pub batch: Arc<Batch>,
    /// Its bytes; `None` when they are in the journal only.
    pub block: Option<Block>,
    /// Where the journal has it; `None` when the journal failed under an `ack=memory` batch.
    pub location: Option<Location>,
    /// Bytes that this batch holds of [`QueueBudgets::memory_bytes`].
    pub memory_bytes: u64,
    /// When the request was read.
    pub accepted_at: Instant,
    /// Told after the commit (`ack=commit`).
    pub on_commit: Option<oneshot::Sender<()>>,
    /// What it has met on its way to PostgreSQL.
    pub trouble: Trouble,
}

impl Trouble {
    /// True when it waits for something that the watch may find, and others had their turn.
    pub(super) fn may_wait_for_long(&self) -> bool {
        self.waits_for_a_row && self.postponed_times >= TRIES_BETWEEN_LONG_TURNS * self.long_turns
    }
}

/// What a batch has met on its way to PostgreSQL.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// How often it was put aside because it could not land.
    pub postponed_times: u32,
    /// When that was first.
    pub stuck_since: Option<Instant>,
    /// When the cut was taken of which it was first refused by itself while nothing landed.
    pub suspected_since: Option<Instant>,
    /// How often a session broke that held nothing but this batch.
    pub sessions_lost: u32,
    /// Its rows took longer than a batch may take while others wait.
    pub is_slow: bool,
    /// It waits for somebody's row, or for a table that nobody is known to lock.
    pub waits_for_a_row: bool,
    /// How often that was waited for until [`crate::pg::watch`] could find out whose it is.
    pub long_turns: u32,
    /// PostgreSQL refuses rows of it.
    pub has_refused_rows: bool,
    /// How often its rows were tried one by one, whatever PostgreSQL said of them.
    pub row_by_row: u32,
    /// How often the journal gave back other bytes than were written.
    pub unreadable_times: u32,
    /// An operator has given it up.
    pub is_given_up: bool,
    /// It is stuck, and a flusher tries it by itself: [`Trials`] has it.
    pub(super) is_on_trial: bool,
    /// It counts no longer as waiting ([`Admission`]): what cannot land says nothing about how long others wait.
    left_admission: bool,
}

/// A queued batch as lanes and flushers pass it on; boxed, so that a long lane that grows moves pointers.
pub(super) type Waiting = Box<Item<Queued>>;

/// What the queue may hold; taken by the worker or the journal thread, given back by the flusher.
pub struct QueueBudgets {
    /// Batches queued anywhere between worker and commit.
    pub batches: Budget,
    /// Bytes of memory that queued batches take, with their blocks where those are in memory (`MEMORY_LIMIT_MB`).
    pub memory_bytes: Budget,
}

impl Queued {
    /// Leaves the rows to the journal, which has them; gives the bytes of memory that are free then.
    fn leave_to_journal(&mut self) -> u64 {
        if self.location.is_none() || self.block.take().is_none() {
            return 0;
        }
        let freed = self.memory_bytes - QUEUED_BATCH_BYTES;
        self.memory_bytes = QUEUED_BATCH_BYTES;
        freed
    }
}

/// Everything that the flushers share with each other and with those who feed them.
pub struct FlushQueue {
    lanes: Lanes<Waiting>,
    merge: Mutex<Merge<Queued>>,
    pub(super) postponed: Mutex<Postponed<Waiting>>,
    /// Those of `postponed` that a flusher is trying; locked after it.
    pub(super) trials: Mutex<Trials>,
    held: Mutex<Held>,
    /// False while `held` is empty.
    holds_any: AtomicBool,
    sleepers: Sleepers,
    sharding: Sharding,
    /// Shards that take no batches, and why the last of them does not.
    held_shards: AtomicUsize,
    pub(super) held_because: Mutex<String>,
    stuck_told: Paced,
    patience: Paced,
    held_log: Mutex<StateLog>,
    rows_under_way: AtomicU64,
    /// No waiting batch has rows in memory that the journal has as well.
    nothing_to_shed: AtomicBool,
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Limits of what is queued.
    pub budgets: QueueBudgets,
    /// Who may join.
    pub admission: Admission,
}

impl FlushQueue {
    /// An empty queue fed by `cores` cores for tables laid out as `sharding` says, with seats for `general` flushers and,
    /// if asked, a reserved one.
    pub fn new(
        cores: usize,
        sharding: Sharding,
        settings: CutSettings,
        budgets: QueueBudgets,
        general: usize,
        reserved: bool,
    ) -> (Arc<Self>, Vec<Seat>) {
        let roles = std::iter::repeat_n(Role::General, general).chain(reserved.then_some(Role::Reserved));
        let (sleepers, seats) = Sleepers::new(roles);
        let admission = Admission::new(seats.len(), settings.timeout);
        let queue = Self {
            lanes: Lanes::new(cores),
            merge: Mutex::new(Merge::new(settings, general)),
            postponed: Mutex::default(),
            trials: Mutex::default(),
            held: Mutex::default(),
            holds_any: AtomicBool::new(false),
            sleepers,
            sharding,
            held_shards: AtomicUsize::new(0),
            held_because: Mutex::default(),
            stuck_told: Paced::new(STUCK_TOLD_EVERY),
            patience: Paced::new(PATIENT_RETRY_EVERY),
            held_log: Mutex::default(),
            rows_under_way: AtomicU64::new(0),
            nothing_to_shed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            budgets,
            admission,
        };
        (Arc::new(queue), seats)
    }

    /// How the tables are laid out.
    pub(super) fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// Queues a batch on the lane of its core and priority; wakes nobody.
    pub fn push(&self, metrics: &Metrics, core: usize, queued: Queued, tuple_bytes: u64) {
        let priority = queued.batch.priority;
        metrics.queue_batches.of(priority).add(1);
        metrics.queue_events.of(priority).add(u64::from(queued.batch.events));
        metrics.queue_bytes.of(priority).add(tuple_bytes);
        let shard = match self.sharding {
            Sharding::None => IngestShard::default(),
            Sharding::Citus => IngestShard::of(&queued.batch.key.id),
        };
        if queued.block.is_some() && queued.location.is_some() {
            self.nothing_to_shed.store(false, Ordering::Relaxed);
        }
        let (rows, queued_at) = (queued.batch.events, Instant::now());
        let item = Item { priority, rows, bytes: tuple_bytes, shard, queued_at, value: queued };
        self.lanes.push(core, priority, Box::new(item));
    }

    /// Counts a batch out that [`Self::push`] counted in, and gives its budgets back.
    pub(super) fn leave(&self, metrics: &Metrics, item: &Item<Queued>) {
        metrics.queue_batches.of(item.priority).sub(1);
        metrics.queue_events.of(item.priority).sub(u64::from(item.rows));
        metrics.queue_bytes.of(item.priority).sub(item.bytes);
        self.budgets.memory_bytes.give_back(item.value.memory_bytes);
        self.budgets.batches.give_back(1);
        self.end_trial(item);
        if !item.value.trouble.left_admission {
            self.admission.left(item.priority, item.rows);
        }
    }

    /// Wakes a sleeping general flusher, and the reserved one if something urgent was pushed.
    pub fn wake(&self, urgent: bool) {
        self.wake_one(Role::General);
        if urgent {
            self.wake_one(Role::Reserved);
        }
    }

    /// Wakes one sleeping flusher of `role`, if there is one.
    pub(super) fn wake_one(&self, role: Role) {
        self.sleepers.wake_one(role);
    }

    /// Marks a flusher as sleeping (before it looks for work) or awake; returns what it was.
    pub(super) fn mark_sleeping(&self, seat: &Seat, sleeping: bool) -> bool {
        self.sleepers.mark(seat, sleeping)
    }

    /// Counts rows of COPYs under way.
    pub(super) fn rows_under_way(&self) -> &AtomicU64 {
        &self.rows_under_way
    }

    /// True when flushers should not wait for more rows.
    pub(super) fn in_hurry(&self) -> bool {
        let memory = &self.budgets.memory_bytes;
        memory.used() > memory.limit() / 2 || self.draining.load(Ordering::SeqCst)
    }

    /// From now on nobody waits for more rows.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.sleepers.wake_all();
    }

    /// Ends the flushers after the COPY in hand; what is queued stays in the journal.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.sleepers.wake_all();
    }

    /// True when nothing is queued or in a COPY, but for what cannot land at present.
    pub fn is_drained(&self) -> bool {
        self.budgets.batches.used() <= self.postponed.lock().stuck().0 as u64
    }

    /// Puts a batch aside that cannot land while others can. True when that should be told: it goes on for a while, and nothing of
    /// the kind was told lately.
    pub(super) fn postpone(&self, mut item: Waiting, sqlstate: &str, reason: &str) -> bool {
        let now = Instant::now();
        let trouble = &mut item.value.trouble;
        let times = trouble.postponed_times;
        trouble.postponed_times += 1;
        trouble.stuck_since.get_or_insert(now);
        self.leave_admission(&mut item);
        let cause = Cause { sqlstate: sqlstate.to_owned(), reason: reason.into(), is_stuck: true };
        item.value.batch.refused_because(sqlstate, reason);
        let batch = Arc::clone(&item.value.batch);
        let mut postponed = self.postponed.lock();
        let wish = self.fulfil(&mut item);
        postponed.put(item, times, cause, now);
        if wish.is_some() {
            postponed.hasten(|item| Arc::ptr_eq(&item.value.batch, &batch), now);
        }
        drop(postponed);
        // Whoever puts it aside may be the reserved flusher, and the others asleep without knowing of it.
        self.wake_one(Role::General);
        times == POSTPONED_REPORTED_AT && self.stuck_told.is_due(now)
    }

    /// Puts a batch aside whose refused rows have to be found, until it is its turn.
    pub(super) fn quarantine(&self, mut item: Waiting, sqlstate: &str, reason: &str) {
        self.leave_admission(&mut item);
        self.fulfil(&mut item);
        let cause = Cause { sqlstate: sqlstate.to_owned(), reason: reason.into(), is_stuck: false };
        self.postponed.lock().put(item, 0, cause, Instant::now());
        self.wake_one(Role::General);
    }

    /// Puts a batch aside for a moment, so that others show whether it is the only one that cannot land.
    pub(super) fn suspect(&self, mut item: Waiting, sqlstate: &str, reason: &str) {
        self.fulfil(&mut item);
        let cause = Cause { sqlstate: sqlstate.to_owned(), reason: reason.into(), is_stuck: true };
        self.postponed.lock().put(item, 0, cause, Instant::now());
    }

    /// What is put aside, or waits for a shard that takes nothing, says nothing about how long others wait.
    fn leave_admission(&self, item: &mut Item<Queued>) {
        if !std::mem::replace(&mut item.value.trouble.left_admission, true) {
            self.admission.left(item.priority, item.rows);
        }
    }

    /// Lets its caller look for refused rows, if nobody else does so or tries a postponed batch; [`Self::tried`] ends that.
    pub(super) fn take_turn(&self) -> bool {
        self.postponed.lock().take_turn(Instant::now())
    }

    /// Whoever had the turn for postponed batches is done.
    pub(super) fn tried(&self, has_landed: bool) {
        self.postponed.lock().tried(has_landed, Instant::now());
    }

    /// When the first postponed batch is due.
    pub(super) fn postponed_until(&self) -> Option<Instant> {
        self.postponed.lock().due()
    }

    /// PostgreSQL takes no rows of `blocked` for the time being.
    pub(super) fn hold_rows(&self, blocked: Vec<Blocked>, sqlstate: &str) {
        let (mut held, now) = (self.held.lock(), Instant::now());
        blocked.into_iter().for_each(|blocked| held.hold(blocked, sqlstate, now));
        self.note_held(&held);
    }

    /// A batch of `month` alone was refused.
    pub(super) fn refused_of_month(&self, month: Month, sqlstate: &str, reason: &str) {
        let mut held = self.held.lock();
        held.refused(month, reason, sqlstate, Instant::now());
        self.note_held(&held);
    }

    /// True when [`Self::held`] may find something.
    pub(super) fn holds_rows(&self) -> bool {
        // Relaxed: a hint; whoever acts on it takes the lock.
        self.holds_any.load(Ordering::Relaxed)
    }

    /// Why a batch with these tuples is not tried together with others.
    pub(super) fn held(&self, batch_tuples: &[u8]) -> Option<held::Reason> {
        let mut held = self.held.lock();
        held.expire(Instant::now());
        self.note_held(&held);
        held.reason(batch_tuples)
    }

    /// True when it is time for a retry that waits for a lock until [`crate::pg::watch`] has found out who stands in the way.
    pub(super) fn may_be_patient(&self) -> bool {
        self.patience.is_due(Instant::now())
    }

    /// A batch with these tuples has landed, as quickly as others.
    pub(super) fn landed(&self, batch_tuples: &[u8]) {
        let mut held = self.held.lock();
        held.landed(batch_tuples);
        self.note_held(&held);
    }

    fn note_held(&self, held: &Held) {
        self.holds_any.store(!held.is_empty(), Ordering::Relaxed);
    }

    /// How many batches cannot land while others can, and why the last one cannot; `None` when there is none.
    pub fn stuck(&self) -> Option<(usize, String)> {
        let (count, reason) = self.postponed.lock().stuck();
        if !self.holds_shards() {
            return reason.map(|reason| (count, reason.to_string()));
        }
        let held = self.merge.lock().held();
        let why = self.held_because.lock();
        Some((count + held.batches, format!("{} shards are rejecting batches: {why}", held.shards)))
    }

    /// True while a shard takes no batches although the coordinator of its cluster answers.
    pub fn holds_shards(&self) -> bool {
        // Relaxed: a hint; nobody reads other memory because of it.
        self.held_shards.load(Ordering::Relaxed) > 0
    }

    /// From now on a COPY holds batches of one of `shards`.
    pub fn set_shards(&self, shards: ShardMap) {
        self.merge.lock().set_shards(shards);
    }

    /// Takes nothing of `shard` for a while because of `reason`.
    pub(super) fn hold(&self, shard: IngestShard, reason: &str) {
        let mut merge = self.merge.lock();
        merge.hold(shard, Instant::now());
        merge.items_of_mut(shard).for_each(|item| self.leave_admission(item));
        self.held_shards.store(merge.held().shards, Ordering::Relaxed);
        drop(merge);
        *self.held_because.lock() = reason.to_owned();
        let kind = FaultKind::quoted_in(reason).unwrap_or(FaultKind::Connection);
        if let Some(begun) = self.held_log.lock().holds(kind as u8, Instant::now()) {
            let unlogged = begun.unlogged;
            tracing::warn!(
                reason,
                unlogged,
                "a shard is rejecting batches; its batches are queued, other shards are unaffected"
            );
        }
    }

    /// A COPY to `node` has ended.
    pub(super) fn done(&self, node: NodeGroup) {
        if self.sharding == Sharding::None {
            return;
        }
        let mut merge = self.merge.lock();
        merge.done(node);
        let more = merge.has_work(Role::General);
        drop(merge);
        if more {
            self.wake_one(Role::General);
        }
    }

    /// `shard` takes batches.
    pub(super) fn release(&self, shard: IngestShard) {
        if !self.holds_shards() {
            return;
        }
        let mut merge = self.merge.lock();
        let was_held = merge.release(shard, Instant::now());
        let held = merge.held();
        self.held_shards.store(held.shards, Ordering::Relaxed);
        drop(merge);
        if was_held
            && held.shards == 0
            && let Some(lasted) = self.held_log.lock().ends(Instant::now())
        {
            let lasted_ms = lasted.as_millis() as u64;
            tracing::info!(lasted_ms, "all shards are accepting batches again");
        }
    }

    /// True after [`Self::stop`].
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// True when `role` has something to take, now or after a linger.
    pub(super) fn has_work(&self, role: Role) -> bool {
        let has_work = self.gathered().has_work(role);
        has_work || (role == Role::General && self.postponed_until().is_some_and(|due| due <= Instant::now()))
    }

    /// Decides for a flusher of `role`; passes the wake-up on when there is more to take.
    pub(super) fn next(&self, role: Role, moment: &Moment) -> Next<Queued> {
        let mut merge = self.gathered();
        let due = match role {
            Role::General => self.take_due(merge.has_work(role), moment.now),
            Role::Reserved => None,
        };
        let next = match due {
            Some(item) => merge.alone(item),
            None => merge.next(role, moment),
        };
        let more = merge.has_work(Role::General);
        drop(merge);
        if more && matches!(next, Next::Copy(_)) {
            self.wake_one(Role::General);
        }
        next
    }

    /// The merge, with everything in it that the lanes held.
    pub(super) fn gathered(&self) -> MutexGuard<'_, Merge<Queued>> {
        let mut merge = self.merge.lock();
        self.gather(&mut merge);
        merge
    }

    fn gather(&self, merge: &mut Merge<Queued>) {
        let holds_shards = self.holds_shards();
        for priority in Priority::ALL {
            self.lanes.drain(priority, |mut item| {
                if holds_shards && merge.is_held(item.shard) {
                    self.leave_admission(&mut item);
                }
                merge.push(item);
            });
        }
    }

    /// Leaves rows to the journal when queued batches take more memory than they may: in a long outage the batches
    /// themselves, wherever their rows are, need the room. For the journal thread: waits for nobody.
    pub fn relieve_memory(&self) {
        let memory = &self.budgets.memory_bytes;
        if memory.used() <= memory.limit() {
            return;
        }
        // Relaxed: a hint that saves a look at everything; at worst that look is taken once more, or after the next batch.
        if self.nothing_to_shed.load(Ordering::Relaxed) {
            return;
        }
        let Some(mut merge) = self.merge.try_lock() else { return };
        self.gather(&mut merge);
        let goal = memory.limit() - memory.limit() / MEMORY_SHED_SHARE;
        for item in merge.items_mut() {
            if memory.used() <= goal {
                return;
            }
            memory.give_back(item.value.leave_to_journal());
        }
        self.nothing_to_shed.store(true, Ordering::Relaxed);
    }

    /// Returns what a flusher took but could not land.
    pub(super) fn put_back(&self, mut items: Vec<Waiting>) {
        for item in &mut items {
            self.fulfil(item);
        }
        self.merge.lock().put_back(items);
        self.nothing_to_shed.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::encode::block::{BlockBuilder, BlockHeader};
    use crate::flush::cut::Linger;
    use crate::types::{BatchKey, BodyDigest, Sequence, UnixMicros};

    const BLOCK_BYTES: u64 = 1000;

    fn queued(number: u64, priority: Priority) -> Queued {
        let key = BatchKey { owner: Arc::from(""), id: format!("batch-{number}").into() };
        let digest = BodyDigest::of(b"body");
        let header = BlockHeader { key: key.clone(), priority, events: 1, received_at: UnixMicros(0), digest };
        Queued {
            batch: Arc::new(Batch::new(key, digest, priority, 1, UnixMicros(0))),
            block: Some(BlockBuilder::new(Vec::new(), &header).finish(1)),
            location: Some(Location { segment: 1, offset: 0, payload_bytes: 48, sequence: Sequence(number) }),
            memory_bytes: QUEUED_BATCH_BYTES + BLOCK_BYTES,
            accepted_at: Instant::now(),
            on_commit: None,
            trouble: Trouble::default(),
        }
    }

    #[test]
    fn rows_leave_memory_when_the_batches_themselves_need_the_room() {
        let metrics = Metrics::new("n", &[]);
        let settings =
            CutSettings { rows_min: 1, bytes_max: 1 << 20, timeout: Duration::from_secs(30), linger: Linger::Adaptive };
        let limit = 10 * (QUEUED_BATCH_BYTES + BLOCK_BYTES);
        let budgets = QueueBudgets { batches: Budget::new(100), memory_bytes: Budget::new(limit) };
        let (queue, _seats) = FlushQueue::new(1, Sharding::None, settings, budgets, 1, false);
        let memory = &queue.budgets.memory_bytes;
        for number in 0..10 {
            assert!(memory.try_take(QUEUED_BATCH_BYTES + BLOCK_BYTES));
            let priority = if number == 0 { Priority::ALL[0] } else { Priority::default() };
            queue.push(&metrics, 0, queued(number, priority), 48);
        }
        queue.relieve_memory();
        assert_eq!(memory.used(), limit, "nothing presses");
        memory.take_over_limit(QUEUED_BATCH_BYTES);
        queue.relieve_memory();
        assert!(memory.used() <= limit - limit / MEMORY_SHED_SHARE);
        let mut merge = queue.gathered();
        let resident: Vec<bool> = merge.items_mut().map(|item| item.value.block.is_some()).collect();
        assert_eq!(resident.iter().filter(|resident| !**resident).count(), 3, "no more than needed: {resident:?}");
        assert!(resident[9], "the urgent batch keeps its rows");
    }

    #[test]
    fn what_waits_for_a_held_shard_neither_refuses_others_nor_excuses_them() {
        let metrics = Metrics::new("n", &[]);
        let settings =
            CutSettings { rows_min: 1, bytes_max: 1 << 20, timeout: Duration::from_secs(20), linger: Linger::Adaptive };
        let budgets = QueueBudgets { batches: Budget::new(100), memory_bytes: Budget::new(1 << 20) };
        let (queue, _seats) = FlushQueue::new(1, Sharding::Citus, settings, budgets, 1, false);
        // One row a second, so that ten rows are half of the timeout.
        (0..2).for_each(|_| queue.admission.landed_full(0, 1, Duration::from_secs(1)));
        let push = |numbers: std::ops::Range<u64>| {
            for number in numbers {
                queue.admission.joined(Priority::default(), 1);
                queue.push(&metrics, 0, queued(number, Priority::default()), 48);
            }
        };
        let refuses = || queue.admission.refusal(Priority::default(), Instant::now()).is_some();
        push(0..20);
        drop(queue.gathered());
        assert!(refuses());
        queue.hold(IngestShard::default(), "its worker is away");
        assert!(!refuses());
        push(20..40);
        drop(queue.gathered());
        assert!(!refuses(), "nor does what comes while it is held");
        queue.admission.joined(Priority::default(), 20);
        assert!(refuses(), "others have their own limit, whatever is held");
        queue.release(IngestShard::default());
        assert!(refuses(), "and its end excuses nobody");
    }
}
