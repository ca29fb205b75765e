//! Which batches go into the next COPY: highest priority first, the oldest first within one, and nobody
//! starved.
//!
//! Ageing: once a batch below priority 8 has waited a quarter of `BATCH_TIMEOUT_SECONDS` it is overdue. While
//! anything is overdue every second COPY of the general flushers takes the oldest batches whatever their
//! priority; the other half still goes by priority. From half of it on a batch is late: then all COPYs below priority 8
//! take the oldest batches, or those who wait for half of the timeout when they join ([`crate::flush::admission`]) would
//! not be committed within all of it. Urgent batches keep every second COPY and the reserved flusher, so a long backlog
//! does not hold up a payment. Waiting counts from when PostgreSQL, or the shard, last came back: an outage makes nobody
//! overdue.
//!
//! With `SHARDING=citus` a COPY holds batches of one shard. Each shard waits for its own rows, and of those whose COPY may
//! start the most urgent one does.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use crate::flush::cut::{CutSettings, start_at};
use crate::flush::group::{Group, Taken};
use crate::sharding::{IngestShard, NodeGroup, ShardMap};
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
    /// Where its rows go; all the same unless tables are sharded.
    pub shard: IngestShard,
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
    /// The node that its rows go to.
    pub node: NodeGroup,
    /// It is one batch that was postponed, tried again.
    pub is_retry: bool,
}

/// All waiting batches of the node, by shard and priority.
pub struct Merge<T> {
    /// One for each shard of `shards`.
    groups: Vec<Group<T>>,
    shards: ShardMap,
    /// COPYs under way by node.
    under_way: HashMap<NodeGroup, usize>,
    settings: CutSettings,
    /// Flushers that share what waits.
    flushers: u64,
    /// The last General cut went by priority although something was overdue.
    overdue_turn: bool,
}

impl<T> Merge<T> {
    /// Empty, for `flushers` flushers of [`Role::General`]; a COPY may hold anything.
    pub fn new(settings: CutSettings, flushers: usize) -> Self {
        let shards = ShardMap::default();
        Self {
            groups: groups(&shards),
            shards,
            under_way: HashMap::new(),
            settings,
            flushers: flushers.max(1) as u64,
            overdue_turn: false,
        }
    }

    /// From now on a COPY holds batches of a single one of `shards`.
    pub fn set_shards(&mut self, shards: ShardMap) {
        if shards == self.shards {
            return;
        }
        let waiting = std::mem::replace(&mut self.groups, groups(&shards));
        self.shards = shards;
        let mut items: Vec<_> = waiting.into_iter().flat_map(Group::into_items).collect();
        items.sort_by_key(|item| item.queued_at);
        items.into_iter().for_each(|item| self.push(item));
    }

    /// Takes nothing of the shard of `value` for a while, as it takes no batches; true when it did so far.
    pub fn hold(&mut self, value: IngestShard, now: Instant) -> bool {
        self.groups[self.shards.shard_of(value)].hold(now)
    }

    /// The shard of `value` takes batches; true when it did not so far.
    pub fn release(&mut self, value: IngestShard, now: Instant) -> bool {
        self.groups[self.shards.shard_of(value)].release(now)
    }

    /// True while the shard of `value` takes no batches.
    pub fn is_held(&self, value: IngestShard) -> bool {
        self.groups[self.shards.shard_of(value)].held_until().is_some()
    }

    /// What waits for the shard of `value`.
    pub fn items_of_mut(&mut self, value: IngestShard) -> impl Iterator<Item = &mut Box<Item<T>>> {
        self.groups[self.shards.shard_of(value)].items_mut()
    }

    /// Shards that take no batches at present.
    pub fn held(&self) -> Held {
        let held = self.groups.iter().filter(|group| group.held_until().is_some());
        held.fold(Held::default(), |sum, group| Held { shards: sum.shards + 1, batches: sum.batches + group.len() })
    }

    /// Adds a batch behind the others of its priority.
    pub fn push(&mut self, item: Box<Item<T>>) {
        self.groups[self.shards.shard_of(item.shard)].push_back(item);
    }

    /// Puts batches back in front, in the order in which [`Self::next`] gave them.
    pub fn put_back(&mut self, items: Vec<Box<Item<T>>>) {
        for item in items.into_iter().rev() {
            self.groups[self.shards.shard_of(item.shard)].push_front(item);
        }
    }

    /// All that waits: within a shard the lowest priority first, and the oldest first within one.
    pub fn items_mut(&mut self) -> impl Iterator<Item = &mut Box<Item<T>>> {
        self.groups.iter_mut().flat_map(Group::items_mut)
    }

    /// All that waits, in no order, and whether its shard takes no batches at present.
    pub fn waiting(&self) -> impl Iterator<Item = (&Item<T>, bool)> {
        self.groups.iter().flat_map(|group| {
            let is_held = group.held_until().is_some();
            group.items().map(move |item| (item, is_held))
        })
    }

    /// Batches waiting.
    pub fn len(&self) -> usize {
        self.groups.iter().map(Group::len).sum()
    }

    /// True when no batch waits.
    pub fn is_empty(&self) -> bool {
        !self.has_work(Role::General)
    }

    /// True when something waits that `role` may take.
    pub fn has_work(&self, role: Role) -> bool {
        let from = match role {
            Role::General => 0,
            Role::Reserved => PRIORITY_RESERVED_MIN.lane(),
        };
        self.groups.iter().any(|group| group.has_any(from, PRIORITY_COUNT))
    }

    /// Decides for a free flusher. What it takes counts as under way until [`Self::done`].
    pub fn next(&mut self, role: Role, moment: &Moment) -> Next<T> {
        let next = self.decide(role, moment);
        if let Next::Copy(cut) = &next {
            *self.under_way.entry(cut.node).or_default() += 1;
        }
        next
    }

    /// `item` by itself, whatever else waits: it was postponed.
    pub fn alone(&mut self, item: Box<Item<T>>) -> Next<T> {
        let node = self.shards.node_of(self.shards.shard_of(item.shard));
        *self.under_way.entry(node).or_default() += 1;
        Next::Copy(Cut { items: vec![item], is_full: false, node, is_retry: true })
    }

    /// A COPY to `node` has ended.
    pub fn done(&mut self, node: NodeGroup) {
        if let Some(copies) = self.under_way.get_mut(&node) {
            *copies = copies.saturating_sub(1);
        }
    }

    fn decide(&mut self, role: Role, moment: &Moment) -> Next<T> {
        let urgent_from = PRIORITY_RESERVED_MIN.lane();
        let urgent = self.choose(role, urgent_from, PRIORITY_COUNT, moment);
        if let Some(Choice { group, at }) = urgent
            && !(role == Role::General && self.overdue(moment).is_some() && self.overdue_turn)
        {
            if at <= moment.now {
                self.overdue_turn = true;
                let room = self.room(urgent_from, PRIORITY_COUNT, moment.rows_target);
                return self.copy(group, |taken| taken.take_by_priority(urgent_from, PRIORITY_COUNT, room));
            }
            if role == Role::Reserved {
                return Next::WaitUntil(at);
            }
        }
        if role == Role::Reserved {
            return Next::Idle;
        }
        let Some(Choice { group, at }) = self.choose(role, 0, urgent_from, moment) else {
            return urgent.map_or(Next::Idle, |choice| Next::WaitUntil(choice.at));
        };
        if at > moment.now {
            return Next::WaitUntil(at);
        }
        let room = self.room(0, urgent_from, moment.rows_target);
        if let Some(overdue) = self.overdue(moment) {
            self.overdue_turn = !self.overdue_turn;
            if overdue.is_late || !self.overdue_turn {
                self.overdue_turn = false;
                return self.copy(overdue.group, |group| group.take_by_age(urgent_from, room));
            }
        } else {
            self.overdue_turn = false;
        }
        self.copy(group, |group| group.take_by_priority(0, urgent_from, room))
    }

    fn copy(&mut self, group: usize, take: impl FnOnce(&mut Group<T>) -> Cut<T>) -> Next<T> {
        let cut = take(&mut self.groups[group]);
        Next::Copy(Cut { node: self.shards.node_of(group), ..cut })
    }

    /// True when a general flusher may take something for the node of `group`: a node that does not answer must not have
    /// all of them wait for it.
    fn has_flusher_for(&self, group: usize) -> bool {
        let under_way = self.under_way.get(&self.shards.node_of(group)).copied().unwrap_or(0) as u64;
        !self.shards.has_several_nodes() || under_way < self.flushers.div_ceil(2)
    }

    /// Whose turn it is among the groups with something in `lanes[from..to]`: of those whose COPY may start, the one with
    /// the highest priority, then the oldest batch; else the one that may start first.
    fn choose(&self, role: Role, from: usize, to: usize, moment: &Moment) -> Option<Choice> {
        let candidates = self.groups.iter().enumerate().filter_map(|(index, group)| {
            let waiting = group.waiting(from, to)?;
            if role == Role::General && !self.has_flusher_for(index) {
                return None;
            }
            let begin = start_at(&self.settings, &waiting, moment.others_rows);
            let begin = if moment.hurry { begin.min(moment.now) } else { begin };
            let at = group.held_until().map_or(begin, |until| until.max(begin));
            let may_start = at <= moment.now;
            let rank = if may_start {
                (false, Reverse(group.highest(from, to)), waiting.oldest_queued_at)
            } else {
                (true, Reverse(None), at)
            };
            Some((rank, Choice { group: index, at }))
        });
        candidates.min_by_key(|(rank, _)| *rank).map(|(_, choice)| choice)
    }

    /// Room for what one COPY may take of `lanes[from..to]`: a fair share, so that a batch does not wait for a large
    /// COPY that it is not in, or is in without need; and no more than the target.
    fn room(&self, from: usize, to: usize, rows_target: u32) -> Taken<T> {
        let rows = self.groups.iter().map(|group| group.rows(from, to)).sum::<u64>();
        let share = rows.div_ceil(self.flushers).max(u64::from(self.settings.rows_min));
        Taken::new(share, u64::from(rows_target), self.settings.bytes_max)
    }

    /// The group of the oldest batch below priority 8, if that has waited a quarter of the timeout while PostgreSQL worked.
    fn overdue(&self, moment: &Moment) -> Option<Overdue> {
        let below = PRIORITY_RESERVED_MIN.lane();
        let is_held = |group: &Group<T>| group.held_until().is_some_and(|until| until > moment.now);
        let groups = self.groups.iter().enumerate();
        let groups = groups.filter(|(index, group)| !is_held(group) && self.has_flusher_for(*index));
        let oldest = groups.filter_map(|(index, group)| Some((group.waits_since(below)?, index)));
        let (waits_since, group) = oldest.min()?;
        let waited = moment.now.saturating_duration_since(waits_since.max(moment.working_since));
        (waited >= self.settings.timeout / 4).then_some(Overdue { group, is_late: waited >= self.settings.timeout / 2 })
    }
}

/// Shards that take no batches at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many.
    pub shards: usize,
    /// Batches that wait for them.
    pub batches: usize,
}

/// Whose batches have waited for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Overdue {
    group: usize,
    /// Half of the timeout is over.
    is_late: bool,
}

/// A group, and when its COPY should start.
#[derive(Clone, Copy)]
struct Choice {
    group: usize,
    at: Instant,
}

fn groups<T>(shards: &ShardMap) -> Vec<Group<T>> {
    (0..shards.count()).map(|_| Group::new()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            let shard = IngestShard::default();
            self.merge.push(Box::new(Item { priority, rows: 10, bytes: 100, shard, queued_at, value }));
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
            world.push(7, 7, value);
        }
        let order: Vec<_> = (0..4).flat_map(|_| world.next(Role::General, 8, 10)).collect();
        assert_eq!(order, ["new 1", "old 1", "new 2", "old 2"]);
    }

    #[test]
    fn late_batches_get_all_that_is_not_urgent() {
        let mut world = World::new();
        for (priority, value) in [(0, "old 1"), (0, "old 2"), (7, "new"), (9, "urgent 1"), (9, "urgent 2")] {
            world.push(priority, u64::from(priority), value);
        }
        let order: Vec<_> = (0..5).flat_map(|_| world.next(Role::General, 15, 10)).collect();
        assert_eq!(order, ["urgent 1", "old 1", "urgent 2", "old 2", "new"]);
    }

    #[test]
    fn an_outage_makes_nobody_overdue() {
        let mut world = World::new();
        world.push(0, 0, "bulk");
        world.push(7, 600, "late");
        let mut moment = world.moment(600, 10);
        moment.working_since = moment.now;
        assert_eq!(world.merge.overdue(&moment), None);
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
        let shard = IngestShard::default();
        world.merge.push(Box::new(Item { priority, rows: 1, bytes: 1, shard, queued_at: world.start, value: "a" }));
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
        assert!(world.merge.groups.iter().all(Group::counts_nothing));
    }

    /// Two shards on these nodes, and a value of each.
    fn two_shards_on(nodes: [NodeGroup; 2]) -> (ShardMap, [IngestShard; 2]) {
        let map = ShardMap::from_starts(vec![(i32::MIN, nodes[0]), (0, nodes[1])]);
        let value = |shard| (0..).map(IngestShard).find(|value| map.shard_of(*value) == shard).expect("there is one");
        let values = [value(0), value(1)];
        (map, values)
    }

    fn two_shards() -> (ShardMap, [IngestShard; 2]) {
        two_shards_on([NodeGroup(1); 2])
    }

    fn push_to(world: &mut World, shard: IngestShard, priority: u8, rows: u32, value: &'static str) {
        let priority = Priority::new(priority).expect("valid");
        world.merge.push(Box::new(Item { priority, rows, bytes: 1, shard, queued_at: world.start, value }));
    }

    #[test]
    fn a_copy_holds_batches_of_one_shard_and_the_most_urgent_shard_goes_first() {
        let (map, [a, b]) = two_shards();
        let mut world = World::new();
        world.merge.set_shards(map);
        for (shard, priority, value) in [(a, 0, "a0"), (b, 0, "b0"), (a, 5, "a5"), (b, 7, "b7"), (b, 9, "b9")] {
            push_to(&mut world, shard, priority, 10, value);
        }
        assert_eq!(world.next(Role::General, 0, 100), ["b9"]);
        assert_eq!(world.next(Role::General, 0, 100), ["b7", "b0"]);
        assert_eq!(world.next(Role::General, 0, 100), ["a5", "a0"]);
        assert!(world.merge.is_empty());
    }

    #[test]
    fn each_shard_waits_for_its_own_rows() {
        let (map, [a, b]) = two_shards();
        let mut world = World::new();
        world.merge.set_shards(map);
        push_to(&mut world, a, 7, 9, "few");
        push_to(&mut world, b, 0, 10, "enough");
        let moment = Moment { others_rows: 1, ..world.moment(0, 100) };
        let Next::Copy(cut) = world.merge.next(Role::General, &moment) else { panic!("enough rows of one shard wait") };
        assert_eq!(cut.items[0].value, "enough");
        assert!(matches!(world.merge.next(Role::General, &moment), Next::WaitUntil(_)));
    }

    #[test]
    fn the_shard_of_the_oldest_batch_gets_every_second_copy_once_that_is_overdue() {
        let (map, [a, b]) = two_shards();
        let mut world = World::new();
        world.merge.set_shards(map);
        push_to(&mut world, a, 0, 10, "old");
        for value in ["new 1", "new 2"] {
            push_to(&mut world, b, 7, 10, value);
        }
        let order: Vec<_> = (0..3).flat_map(|_| world.next(Role::General, 8, 10)).collect();
        assert_eq!(order, ["new 1", "old", "new 2"]);
    }

    #[test]
    fn a_shard_that_takes_no_batches_does_not_hold_up_the_others() {
        let (map, [a, b]) = two_shards();
        let mut world = World::new();
        world.merge.set_shards(map);
        for (shard, priority, value) in [(a, 7, "a"), (b, 0, "b")] {
            push_to(&mut world, shard, priority, 10, value);
        }
        assert!(world.merge.hold(a, world.start));
        assert_eq!(world.merge.held(), Held { shards: 1, batches: 1 });
        let hurry = Moment { hurry: true, ..world.moment(0, 100) };
        let Next::Copy(cut) = world.merge.next(Role::General, &hurry) else { panic!("the other one waits") };
        assert_eq!(cut.items[0].value, "b");
        let Next::WaitUntil(at) = world.merge.next(Role::General, &hurry) else { panic!("held") };
        assert!(at > hurry.now);
        // The same failure seen by a second flusher; then one after it.
        assert!(!world.merge.hold(a, world.start));
        assert!(matches!(world.merge.next(Role::General, &hurry), Next::WaitUntil(same) if same == at));
        world.merge.hold(a, at);
        assert!(
            matches!(world.merge.next(Role::General, &hurry), Next::WaitUntil(later) if later - at > at - hurry.now)
        );
        assert_eq!((world.merge.release(a, at), world.merge.held()), (true, Held::default()));
        assert_eq!(world.next(Role::General, 0, 100), ["a"]);
    }

    #[test]
    fn a_shard_that_is_back_makes_nobody_else_wait_for_what_it_was_away() {
        let (map, [a, b]) = two_shards();
        let mut world = World::new();
        world.merge.set_shards(map);
        world.merge.hold(a, world.start);
        ["old 1", "old 2"].into_iter().for_each(|value| push_to(&mut world, a, 0, 10, value));
        for value in ["new 1", "new 2"] {
            push_to(&mut world, b, 7, 10, value);
        }
        world.merge.release(a, world.start + Duration::from_secs(20));
        let order: Vec<_> = (0..3).flat_map(|_| world.next(Role::General, 21, 10)).collect();
        assert_eq!(order, ["new 1", "new 2", "old 1"]);
    }

    #[test]
    fn a_node_that_does_not_answer_leaves_half_of_the_flushers_to_the_others() {
        let (map, [a, b]) = two_shards_on([NodeGroup(1), NodeGroup(2)]);
        let mut world = World { merge: Merge::new(SETTINGS, 4), start: Instant::now() };
        world.merge.set_shards(map.clone());
        for _ in 0..5 {
            push_to(&mut world, a, 7, 10, "a");
        }
        push_to(&mut world, b, 0, 10, "b");
        push_to(&mut world, a, 9, 10, "urgent");
        assert_eq!(world.next(Role::Reserved, 0, 10), ["urgent"]);
        world.merge.done(map.node_of(0));
        let order: Vec<_> = (0..4).flat_map(|_| world.next(Role::General, 0, 10)).collect();
        assert_eq!(order, ["a", "a", "b"]);
        world.merge.done(map.node_of(0));
        assert_eq!(world.next(Role::General, 0, 10), ["a"]);
    }

    #[test]
    fn what_waits_is_sorted_anew_when_shards_become_known() {
        let (map, [a, b]) = two_shards();
        let mut world = World::new();
        for (shard, value) in [(a, "a1"), (b, "b1"), (a, "a2"), (b, "b2")] {
            push_to(&mut world, shard, 3, 10, value);
        }
        world.merge.set_shards(map);
        let mut copies = [world.next(Role::General, 0, 100), world.next(Role::General, 0, 100)];
        copies.sort();
        assert_eq!(copies, [["a1", "a2"], ["b1", "b2"]]);
    }
}
