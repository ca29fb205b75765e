//! Which batches go into the next COPY: highest priority first, the oldest first within one, and nobody
//! starved.
//!
//! Ageing: once a batch below priority 8 has waited half of `BATCH_TIMEOUT_SECONDS` it is overdue. While
//! anything is overdue every second COPY of the general flushers takes the oldest batches whatever their
//! priority; the other half still goes by priority, so a long backlog does not hold up a payment. Waiting
//! counts from when PostgreSQL last came back: an outage makes nobody overdue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::flush::cut::{CutSettings, Waiting, start_at};
use crate::types::{PRIORITY_COUNT, PRIORITY_RESERVED_MIN, Priority};

/// A batch as the merge sees it.
#[derive(Debug)]
pub struct Item<T> {
    /// Its lane.
    pub priority: Priority,
    /// Its events.
    pub rows: u32,
    /// Bytes of its tuples.
    pub bytes: u64,
    /// When it became durable and was queued.
    pub queued_at: Instant,
    /// What travels.
    pub value: T,
}

/// Which batches a flusher may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Anything.
    General,
    /// Priority 8 and above only, so that one connection is always free for them.
    Reserved,
}

/// The world at the moment of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Now.
    pub now: Instant,
    /// Rows that other flushers have under way; 0 when no COPY runs.
    pub others_rows: u64,
    /// Since when PostgreSQL works without interruption.
    pub working_since: Instant,
    /// Do not wait for more rows: memory is pressed, or the server drains.
    pub hurry: bool,
    /// Rows a COPY may take ([`crate::flush::cut::RowsTarget`]).
    pub rows_target: u32,
}

/// What a flusher should do.
#[derive(Debug)]
pub enum Next<T> {
    /// Copy this.
    Copy(Cut<T>),
    /// Ask again at this moment, or when something new is queued.
    WaitUntil(Instant),
    /// Nothing waits for this role.
    Idle,
}

/// The batches of one COPY.
#[derive(Debug)]
pub struct Cut<T> {
    /// In the order in which they are copied; never empty.
    pub items: Vec<Box<Item<T>>>,
    /// It ended because the next batch would have passed the target, not because nothing was left.
    pub is_full: bool,
}

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

    fn push_back(&mut self, item: Box<Item<T>>) {
        self.count_in(&item);
        self.items.push_back(item);
    }

    fn push_front(&mut self, item: Box<Item<T>>) {
        self.count_in(&item);
        self.items.push_front(item);
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

/// All waiting batches of the node, by priority.
pub struct Merge<T> {
    lanes: [Lane<T>; PRIORITY_COUNT],
    settings: CutSettings,
    /// Flushers that share what waits.
    flushers: u64,
    /// The last General cut went by priority although something was overdue.
    overdue_turn: bool,
}

impl<T> Merge<T> {
    /// Empty, for `flushers` flushers of [`Role::General`].
    pub fn new(settings: CutSettings, flushers: usize) -> Self {
        let lanes = std::array::from_fn(|_| Lane::new());
        Self { lanes, settings, flushers: flushers.max(1) as u64, overdue_turn: false }
    }

    /// Adds a batch behind the others of its priority.
    pub fn push(&mut self, item: Box<Item<T>>) {
        self.lanes[item.priority.lane()].push_back(item);
    }

    /// Puts batches back in front, in the order in which [`Self::next`] gave them.
    pub fn put_back(&mut self, items: Vec<Box<Item<T>>>) {
        for item in items.into_iter().rev() {
            self.lanes[item.priority.lane()].push_front(item);
        }
    }

    /// What waits, lowest priority first and oldest first within one.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.lanes.iter_mut().flat_map(|lane| &mut lane.items).map(|item| &mut item.value)
    }

    /// Batches waiting.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.items.len()).sum()
    }

    /// True when no batch waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.items.is_empty())
    }

    /// True when something waits that `role` may take.
    pub fn has_work(&self, role: Role) -> bool {
        let from = match role {
            Role::General => 0,
            Role::Reserved => PRIORITY_RESERVED_MIN.lane(),
        };
        self.lanes[from..].iter().any(|lane| !lane.items.is_empty())
    }

    /// Decides for a free flusher.
    pub fn next(&mut self, role: Role, moment: &Moment) -> Next<T> {
        let urgent_from = PRIORITY_RESERVED_MIN.lane();
        let urgent = self.waiting(urgent_from, PRIORITY_COUNT);
        if let Some(waiting) = urgent
            && !(role == Role::General && self.overdue(moment) && self.overdue_turn)
        {
            let at = start_at(&self.settings, &waiting, moment.others_rows);
            if moment.hurry || at <= moment.now {
                self.overdue_turn = true;
                return Next::Copy(self.take_by_priority(urgent_from, PRIORITY_COUNT, moment.rows_target));
            }
            if role == Role::Reserved {
                return Next::WaitUntil(at);
            }
        }
        if role == Role::Reserved {
            return Next::Idle;
        }
        let Some(waiting) = self.waiting(0, urgent_from) else {
            return urgent
                .map_or(Next::Idle, |waiting| Next::WaitUntil(start_at(&self.settings, &waiting, moment.others_rows)));
        };
        let at = start_at(&self.settings, &waiting, moment.others_rows);
        if !moment.hurry && at > moment.now {
            return Next::WaitUntil(at);
        }
        if self.overdue(moment) {
            self.overdue_turn = !self.overdue_turn;
            if !self.overdue_turn {
                return Next::Copy(self.take_by_age(urgent_from, moment.rows_target));
            }
        } else {
            self.overdue_turn = false;
        }
        Next::Copy(self.take_by_priority(0, urgent_from, moment.rows_target))
    }

    /// Rows, bytes and age of what waits in `lanes[from..to]`; `None` when nothing does.
    fn waiting(&self, from: usize, to: usize) -> Option<Waiting> {
        let lanes = &self.lanes[from..to];
        let oldest_queued_at = lanes.iter().filter_map(Lane::front).map(|item| item.queued_at).min()?;
        let (rows, bytes) = lanes.iter().fold((0, 0), |sums, lane| (sums.0 + lane.rows, sums.1 + lane.bytes));
        Some(Waiting { oldest_queued_at, rows, bytes, urgent: from >= PRIORITY_RESERVED_MIN.lane() })
    }

    /// Room for what one COPY may take of `lanes[from..to]`: a fair share, so that a batch does not wait for a large
    /// COPY that it is not in, or is in without need; and no more than the target.
    fn room(&self, from: usize, to: usize, rows_target: u32) -> Taken<T> {
        let rows = self.lanes[from..to].iter().map(|lane| lane.rows).sum::<u64>();
        let share = rows.div_ceil(self.flushers).max(u64::from(self.settings.rows_min));
        Taken::new(share, u64::from(rows_target), self.settings.bytes_max)
    }

    /// True when a batch below priority 8 has waited half of the timeout while PostgreSQL worked.
    fn overdue(&self, moment: &Moment) -> bool {
        let below = &self.lanes[..PRIORITY_RESERVED_MIN.lane()];
        let after = self.settings.timeout / 2;
        let waited = |item: &Item<T>| waited(item, moment);
        below.iter().filter_map(|lane| lane.front()).any(|item| waited(item) >= after)
    }

    fn take_by_priority(&mut self, from: usize, to: usize, rows_target: u32) -> Cut<T> {
        let mut taken = self.room(from, to, rows_target);
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

    fn take_by_age(&mut self, below: usize, rows_target: u32) -> Cut<T> {
        let mut taken = self.room(0, below, rows_target);
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
}

fn waited<T>(item: &Item<T>, moment: &Moment) -> Duration {
    moment.now.saturating_duration_since(item.queued_at.max(moment.working_since))
}

/// A COPY being filled: at least one batch, then as many as fit.
struct Taken<T> {
    items: Vec<Box<Item<T>>>,
    rows: u64,
    bytes: u64,
    rows_share: u64,
    rows_target: u64,
    bytes_max: u64,
    is_full: bool,
}

impl<T> Taken<T> {
    fn new(rows_share: u64, rows_target: u64, bytes_max: u64) -> Self {
        Self { items: Vec::new(), rows: 0, bytes: 0, rows_share, rows_target, bytes_max, is_full: false }
    }

    fn into_cut(self) -> Cut<T> {
        Cut { items: self.items, is_full: self.is_full }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flush::cut::Linger;

    const SETTINGS: CutSettings =
        CutSettings { rows_min: 10, bytes_max: 10_000, timeout: Duration::from_secs(30), linger: Linger::Adaptive };

    struct World {
        merge: Merge<&'static str>,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { merge: Merge::new(SETTINGS, 1), start: Instant::now() }
        }

        fn push(&mut self, priority: u8, at_seconds: u64, value: &'static str) {
            let priority = Priority::new(priority).expect("valid");
            let queued_at = self.start + Duration::from_secs(at_seconds);
            self.merge.push(Box::new(Item { priority, rows: 10, bytes: 100, queued_at, value }));
        }

        fn moment(&self, at_seconds: u64, rows_target: u32) -> Moment {
            let now = self.start + Duration::from_secs(at_seconds);
            Moment { now, others_rows: 0, working_since: self.start, hurry: false, rows_target }
        }

        fn next(&mut self, role: Role, at_seconds: u64, rows_target: u32) -> Vec<&'static str> {
            let moment = self.moment(at_seconds, rows_target);
            match self.merge.next(role, &moment) {
                Next::Copy(cut) => cut.items.into_iter().map(|item| item.value).collect(),
                Next::WaitUntil(_) | Next::Idle => Vec::new(),
            }
        }
    }

    #[test]
    fn the_highest_priority_goes_first_and_the_oldest_within_it() {
        let mut world = World::new();
        for (priority, value) in [(0, "a"), (5, "b"), (7, "c"), (5, "d")] {
            world.push(priority, 0, value);
        }
        assert_eq!(world.next(Role::General, 0, 100), ["c", "b", "d", "a"]);
        assert!(world.merge.is_empty());
    }

    #[test]
    fn urgent_batches_never_share_a_copy_with_bulk() {
        let mut world = World::new();
        for (priority, value) in [(0, "bulk"), (10, "payment"), (8, "order")] {
            world.push(priority, 0, value);
        }
        assert_eq!(world.next(Role::General, 0, 100), ["payment", "order"]);
        assert_eq!(world.next(Role::Reserved, 0, 100), [] as [&str; 0]);
        assert_eq!(world.next(Role::General, 0, 100), ["bulk"]);
    }

    #[test]
    fn a_copy_is_bounded_by_rows_and_bytes_but_takes_at_least_one_batch() {
        let mut world = World::new();
        for value in ["a", "b", "c"] {
            world.push(1, 0, value);
        }
        assert_eq!(world.next(Role::General, 0, 20), ["a", "b"]);
        assert_eq!(world.next(Role::General, 0, 1), ["c"]);
    }

    #[test]
    fn priority_zero_is_not_starved_by_a_flood_of_urgent_batches() {
        let mut world = World::new();
        world.push(0, 0, "old");
        let mut copies_until_old = 0;
        for _ in 0..10 {
            world.push(10, 15, "flood");
            copies_until_old += 1;
            if world.next(Role::General, 15, 10) == ["old"] {
                assert!(copies_until_old <= 2);
                return;
            }
        }
        panic!("starved");
    }

    #[test]
    fn overdue_batches_get_every_second_copy_and_priority_the_other() {
        let mut world = World::new();
        for value in ["old 1", "old 2"] {
            world.push(0, 0, value);
        }
        for value in ["new 1", "new 2"] {
            world.push(7, 14, value);
        }
        let order: Vec<_> = (0..4).flat_map(|_| world.next(Role::General, 15, 10)).collect();
        assert_eq!(order, ["new 1", "old 1", "new 2", "old 2"]);
    }

    #[test]
    fn an_outage_makes_nobody_overdue() {
        let mut world = World::new();
        world.push(0, 0, "bulk");
        world.push(7, 600, "late");
        let mut moment = world.moment(600, 10);
        moment.working_since = moment.now;
        assert!(!world.merge.overdue(&moment));
        let Next::Copy(cut) = world.merge.next(Role::General, &moment) else { panic!("work waits") };
        assert_eq!(cut.items[0].value, "late");
    }

    #[test]
    fn what_is_put_back_comes_out_in_the_same_order() {
        let mut world = World::new();
        for (priority, value) in [(3, "c"), (5, "a"), (5, "b")] {
            world.push(priority, 0, value);
        }
        let moment = world.moment(0, 100);
        let Next::Copy(cut) = world.merge.next(Role::General, &moment) else { panic!("work waits") };
        world.push(5, 0, "z");
        world.merge.put_back(cut.items);
        assert_eq!(world.next(Role::General, 0, 100), ["a", "b", "z", "c"]);
    }

    #[test]
    fn few_rows_wait_while_another_copy_runs() {
        let mut world = World::new();
        let priority = Priority::default();
        world.merge.push(Box::new(Item { priority, rows: 1, bytes: 1, queued_at: world.start, value: "a" }));
        let moment = Moment { others_rows: 1, ..world.moment(0, 100) };
        assert!(matches!(world.merge.next(Role::General, &moment), Next::WaitUntil(at) if at > world.start));
        assert!(matches!(world.merge.next(Role::General, &Moment { hurry: true, ..moment }), Next::Copy(_)));
    }

    #[test]
    fn a_copy_takes_its_share_of_a_short_queue_and_the_target_of_a_long_one() {
        let mut world = World { merge: Merge::new(SETTINGS, 2), start: Instant::now() };
        let values = ["1", "2", "3", "4", "5", "6", "7", "8"];
        values.iter().for_each(|value| world.push(0, 0, value));
        let cut = |world: &mut World, rows_target| match world.merge.next(Role::General, &world.moment(0, rows_target))
        {
            Next::Copy(cut) => (cut.items.len(), cut.is_full),
            Next::WaitUntil(_) | Next::Idle => panic!("work waits"),
        };
        assert_eq!(cut(&mut world, 1000), (4, false), "half of eight for each");
        assert_eq!(cut(&mut world, 1000), (2, false));
        values.iter().for_each(|value| world.push(0, 0, value));
        assert_eq!(cut(&mut world, 30), (3, true), "no more than the target");
        assert_eq!([(); 4].map(|()| cut(&mut world, 1000).0), [3, 2, 1, 1], "at least BATCH_SIZE rows");
        assert!(world.merge.is_empty());
        assert!(world.merge.lanes.iter().all(|lane| (lane.rows, lane.bytes) == (0, 0)));
    }
}
