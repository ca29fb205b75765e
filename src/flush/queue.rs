//! What waits for a COPY, shared by those who feed it and the flushers who take from it.
//!
//! The journal thread pushes into lock-free lanes; flushers move the lanes into one [`Merge`] under a lock
//! that only flushers take. How flushers sleep and are woken is in [`crate::flush::sleepers`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::encode::block::Block;
use crate::flush::admission::Admission;
use crate::flush::cut::CutSettings;
use crate::flush::merge::{Item, Merge, Moment, Next, Role};
use crate::flush::postponed::Postponed;
use crate::flush::sleepers::{Seat, Sleepers};
use crate::journal::Location;
use crate::metrics::Metrics;
use crate::ring::budget::Budget;
use crate::ring::lanes::Lanes;
use crate::status::model::Batch;
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
    /// Bytes that this batch holds of the resident budget; 0 when its bytes are in the journal only.
    pub resident_bytes: u64,
    /// When the request was read.
    pub accepted_at: Instant,
    /// Told after the commit (`ack=commit`).
    pub on_commit: Option<oneshot::Sender<()>>,
    /// How often it was put aside because it could not land.
    pub postponed_times: u32,
}

/// What the queue may hold; taken by the worker or the journal thread, given back by the flusher.
pub struct QueueBudgets {
    /// Batches queued anywhere between worker and commit.
    pub batches: Budget,
    /// Bytes of blocks in memory (`MEMORY_LIMIT_MB`).
    pub resident_bytes: Budget,
}

/// Everything that the flushers share with each other and with those who feed them.
pub struct FlushQueue {
    lanes: Lanes<Item<Queued>>,
    merge: Mutex<Merge<Queued>>,
    postponed: Mutex<Postponed<Item<Queued>>>,
    sleepers: Sleepers,
    busy: AtomicUsize,
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Limits of what is queued.
    pub budgets: QueueBudgets,
    /// Who may join.
    pub admission: Admission,
}

impl FlushQueue {
    /// An empty queue fed by `cores` cores, with seats for `general` flushers and, if asked, a reserved one.
    pub fn new(
        cores: usize,
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
            merge: Mutex::new(Merge::new(settings)),
            postponed: Mutex::default(),
            sleepers,
            busy: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            budgets,
            admission,
        };
        (Arc::new(queue), seats)
    }

    /// Queues a batch on the lane of its core and priority; wakes nobody.
    pub fn push(&self, metrics: &Metrics, core: usize, queued: Queued, tuple_bytes: u64) {
        let priority = queued.batch.priority;
        metrics.queue_batches.of(priority).add(1);
        metrics.queue_events.of(priority).add(u64::from(queued.batch.events));
        metrics.queue_bytes.of(priority).add(tuple_bytes);
        let item =
            Item { priority, rows: queued.batch.events, bytes: tuple_bytes, queued_at: Instant::now(), value: queued };
        self.lanes.push(core, priority, item);
    }

    /// Counts a batch out that [`Self::push`] counted in, and gives its budgets back.
    pub(super) fn leave(&self, metrics: &Metrics, item: &Item<Queued>) {
        metrics.queue_batches.of(item.priority).sub(1);
        metrics.queue_events.of(item.priority).sub(u64::from(item.rows));
        metrics.queue_bytes.of(item.priority).sub(item.bytes);
        self.budgets.resident_bytes.give_back(item.value.resident_bytes);
        self.budgets.batches.give_back(1);
        self.admission.left(item.rows);
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

    /// Counts COPYs under way.
    pub(super) fn busy(&self) -> &AtomicUsize {
        &self.busy
    }

    /// True when flushers should not wait for more rows.
    pub(super) fn in_hurry(&self) -> bool {
        let resident = &self.budgets.resident_bytes;
        resident.used() > resident.limit() / 2 || self.draining.load(Ordering::SeqCst)
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
        self.budgets.batches.used() <= self.postponed.lock().state().0 as u64
    }

    /// PostgreSQL is back after an outage: what waits now is no sign of overload.
    pub fn excuse_backlog(&self, metrics: &Metrics) {
        self.admission.excuse(metrics.queue_events.sum());
    }

    /// Puts a batch aside that cannot land while others can.
    pub(super) fn postpone(&self, mut item: Item<Queued>, reason: &str) {
        let times = item.value.postponed_times;
        item.value.postponed_times += 1;
        self.postponed.lock().put(item, times, reason, Instant::now());
    }

    /// When the first postponed batch is due.
    pub(super) fn postponed_until(&self) -> Option<Instant> {
        self.postponed.lock().due()
    }

    /// How many batches cannot land while others can, and why the last one cannot; `None` when there is none.
    pub fn stuck(&self) -> Option<(usize, String)> {
        let postponed = self.postponed.lock();
        let (count, reason) = postponed.state();
        (count > 0).then(|| (count, reason.to_owned()))
    }

    /// True after [`Self::stop`].
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// True when `role` has something to take, now or after a linger.
    pub(super) fn has_work(&self, role: Role) -> bool {
        let merge = self.gathered();
        merge.has_work(role)
    }

    /// Decides for a flusher of `role`; passes the wake-up on when there is more to take.
    pub(super) fn next(&self, role: Role, moment: &Moment) -> Next<Queued> {
        let mut merge = self.gathered();
        let next = merge.next(role, moment);
        let more = merge.has_work(Role::General);
        drop(merge);
        if more && matches!(next, Next::Copy(_)) {
            self.wake_one(Role::General);
        }
        next
    }

    /// The merge, with everything in it that the lanes held.
    fn gathered(&self) -> MutexGuard<'_, Merge<Queued>> {
        let mut merge = self.merge.lock();
        for priority in Priority::ALL {
            self.lanes.drain(priority, |item| merge.push(item));
        }
        self.postponed.lock().take_due(Instant::now(), |item| merge.put_back(vec![item]));
        merge
    }

    /// Returns what a flusher took but could not land.
    pub(super) fn put_back(&self, items: Vec<Item<Queued>>) {
        self.merge.lock().put_back(items);
    }
}
