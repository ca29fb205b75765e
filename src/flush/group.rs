//! The waiting batches that may share a COPY, by priority: all of them, or those of one shard (`SHARDING=citus`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::flush::cut::Waiting;
use crate::flush::merge::{Cut, Item};
use crate::limits::{RETRY_WAIT_MAX, RETRY_WAIT_MIN};
use crate::sharding::NodeGroup;
use crate::types::{PRIORITY_COUNT, PRIORITY_RESERVED_MIN};

/// The waiting batches of one priority, oldest first.
struct Lane<T> {
    /// Boxed: a long lane that grows moves pointers.
    items: VecDeque<Box<Item<T>>>,
    rows: u64,
    bytes: u64,
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self { items: VecDeque::new(), rows: 0, bytes: 0 }
    }

    fn count_in(&mut self, item: &Item<T>) {
        self.rows += u64::from(item.rows);
        self.bytes += item.bytes;
    }

    fn front(&self) -> Option<&Item<T>> {
        self.items.front().map(|item| &**item)
    }

    fn pop_front(&mut self) -> Option<Box<Item<T>>> {
        let item = self.items.pop_front()?;
        self.rows -= u64::from(item.rows);
        self.bytes -= item.bytes;
        Some(item)
    }
}

/// Waiting batches by priority.
pub(super) struct Group<T> {
    lanes: [Lane<T>; PRIORITY_COUNT],
    hold: Option<Hold>,
    /// When it was last released.
    works_since: Option<Instant>,
}

/// Why nothing is taken from a group for a while.
struct Hold {
    until: Instant,
    /// How long it lasts; the next one after it lasts longer.
    wait: Duration,
}

impl<T> Group<T> {
    pub fn new() -> Self {
        Self { lanes: std::array::from_fn(|_| Lane::new()), hold: None, works_since: None }
    }

    /// Takes nothing for a while: what was taken last could not land. Each time longer, until [`Self::release`]. True when
    /// it was not held before.
    pub fn hold(&mut self, now: Instant) -> bool {
        let is_new = self.hold.is_none();
        let wait = match &self.hold {
            // Another flusher's failure of the same moment.
            Some(hold) if now < hold.until => return false,
            Some(hold) => (hold.wait * 2).min(RETRY_WAIT_MAX),
            None => RETRY_WAIT_MIN,
        };
        self.hold = Some(Hold { until: now + wait, wait });
        is_new
    }

    /// What was taken has landed; true when it was held before.
    pub fn release(&mut self, now: Instant) -> bool {
        let was_held = self.hold.take().is_some();
        if was_held {
            self.works_since = Some(now);
        }
        was_held
    }

    /// Until when nothing is to be taken; in the past, or `None`, when something may.
    pub fn held_until(&self) -> Option<Instant> {
        self.hold.as_ref().map(|hold| hold.until)
    }

    /// Adds a batch behind the others of its priority.
    pub fn push_back(&mut self, item: Box<Item<T>>) {
        let lane = &mut self.lanes[item.priority.lane()];
        lane.count_in(&item);
        lane.items.push_back(item);
    }

    /// Adds a batch in front of the others of its priority.
    pub fn push_front(&mut self, item: Box<Item<T>>) {
        let lane = &mut self.lanes[item.priority.lane()];
        lane.count_in(&item);
        lane.items.push_front(item);
    }

    /// What waits, lowest priority first and oldest first within one.
    pub fn items_mut(&mut self) -> impl Iterator<Item = &mut Box<Item<T>>> {
        self.lanes.iter_mut().flat_map(|lane| &mut lane.items)
    }

    /// The same, to look at.
    pub fn items(&self) -> impl Iterator<Item = &Item<T>> {
        self.lanes.iter().flat_map(|lane| &lane.items).map(|item| &**item)
    }

    /// Everything, in no order.
    pub fn into_items(self) -> impl Iterator<Item = Box<Item<T>>> {
        self.lanes.into_iter().flat_map(|lane| lane.items)
    }

    /// Batches waiting.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.items.len()).sum()
    }

    /// True when something waits in `lanes[from..to]`.
    pub fn has_any(&self, from: usize, to: usize) -> bool {
        self.lanes[from..to].iter().any(|lane| !lane.items.is_empty())
    }

    /// Rows in `lanes[from..to]`.
    pub fn rows(&self, from: usize, to: usize) -> u64 {
        self.lanes[from..to].iter().map(|lane| lane.rows).sum()
    }

    /// Rows, bytes and age of what waits in `lanes[from..to]`; `None` when nothing does.
    pub fn waiting(&self, from: usize, to: usize) -> Option<Waiting> {
        let lanes = &self.lanes[from..to];
        let oldest_queued_at = lanes.iter().filter_map(Lane::front).map(|item| item.queued_at).min()?;
        let (rows, bytes) = lanes.iter().fold((0, 0), |sums, lane| (sums.0 + lane.rows, sums.1 + lane.bytes));
        Some(Waiting { oldest_queued_at, rows, bytes, urgent: from >= PRIORITY_RESERVED_MIN.lane() })
    }

    /// The highest lane of `lanes[from..to]` in which something waits.
    pub fn highest(&self, from: usize, to: usize) -> Option<usize> {
        (from..to).rev().find(|&lane| !self.lanes[lane].items.is_empty())
    }

    /// Since when a batch of the lanes below `below` has waited while it could land.
    pub fn waits_since(&self, below: usize) -> Option<Instant> {
        let oldest = self.lanes[..below].iter().filter_map(Lane::front).map(|item| item.queued_at).min()?;
        Some(self.works_since.map_or(oldest, |since| since.max(oldest)))
    }

    /// Fills `taken` from `lanes[from..to]`, the highest first.
    pub fn take_by_priority(&mut self, from: usize, to: usize, mut taken: Taken<T>) -> Cut<T> {
        for lane in self.lanes[from..to].iter_mut().rev() {
            while let Some(item) = lane.front() {
                if !taken.has_room(item) {
                    return taken.into_cut();
                }
                taken.items.extend(lane.pop_front());
            }
        }
        taken.into_cut()
    }

    /// Fills `taken` from the lanes below `below`, the oldest first.
    pub fn take_by_age(&mut self, below: usize, mut taken: Taken<T>) -> Cut<T> {
        loop {
            let fronts =
                self.lanes[..below].iter().enumerate().filter_map(|(lane, items)| Some((items.front()?, lane)));
            let Some((item, lane)) = fronts.min_by_key(|(item, _)| item.queued_at) else {
                return taken.into_cut();
            };
            if !taken.has_room(item) {
                return taken.into_cut();
            }
            taken.items.extend(self.lanes[lane].pop_front());
        }
    }

    /// True when the sums are those of nothing.
    #[cfg(test)]
    pub fn counts_nothing(&self) -> bool {
        self.lanes.iter().all(|lane| (lane.rows, lane.bytes, lane.items.len()) == (0, 0, 0))
    }
}

/// A COPY being filled: at least one batch, then as many as fit.
pub(super) struct Taken<T> {
    items: Vec<Box<Item<T>>>,
    rows: u64,
    bytes: u64,
    rows_share: u64,
    rows_target: u64,
    bytes_max: u64,
    is_full: bool,
}

impl<T> Taken<T> {
    /// Nothing yet, and at most so much.
    pub fn new(rows_share: u64, rows_target: u64, bytes_max: u64) -> Self {
        Self { items: Vec::new(), rows: 0, bytes: 0, rows_share, rows_target, bytes_max, is_full: false }
    }

    fn into_cut(self) -> Cut<T> {
        Cut { items: self.items, is_full: self.is_full, node: NodeGroup::default(), is_retry: false }
    }

    /// Counts `item` in when it fits; the first always does.
    fn has_room(&mut self, item: &Item<T>) -> bool {
        let (rows, bytes) = (self.rows + u64::from(item.rows), self.bytes + item.bytes);
        let passes_target = rows > self.rows_target || bytes > self.bytes_max;
        if !self.items.is_empty() && (passes_target || rows > self.rows_share) {
            self.is_full = passes_target;
            return false;
        }
        (self.rows, self.bytes) = (rows, bytes);
        true
    }
}
