//! The lanes of all cores: per core one lock-free queue a priority, from the journal thread to the flushers.
//!
//! Bounded by the budget that admission took before the batch was offered to the journal
//! ([`crate::limits::queue_batches_max`]), so a push never fails: what was acknowledged must have room.

use crossbeam::queue::SegQueue;

use crate::types::{PRIORITY_COUNT, Priority};

/// Lanes by core and priority.
pub struct Lanes<T> {
    cores: Box<[[SegQueue<T>; PRIORITY_COUNT]]>,
}

impl<T> Lanes<T> {
    /// Empty lanes for `cores` cores.
    pub fn new(cores: usize) -> Self {
        Self { cores: (0..cores.max(1)).map(|_| std::array::from_fn(|_| SegQueue::new())).collect() }
    }

    /// Queues `item`; cores are counted from 0.
    pub fn push(&self, core: usize, priority: Priority, item: T) {
        self.cores[core % self.cores.len()][priority.lane()].push(item);
    }

    /// Hands every waiting item of `priority` to `take`, one of each core in turn so that no core is favoured.
    pub fn drain(&self, priority: Priority, mut take: impl FnMut(T)) {
        loop {
            let mut found = false;
            for lanes in &self.cores {
                if let Some(item) = lanes[priority.lane()].pop() {
                    found = true;
                    take(item);
                }
            }
            if !found {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_keep_order_within_a_core_and_interleave_cores() {
        let lanes = Lanes::new(2);
        let five = Priority::new(5).expect("valid");
        for item in [10, 11] {
            lanes.push(0, five, item);
        }
        lanes.push(1, five, 20);
        lanes.push(1, Priority::default(), 99);
        let mut seen = Vec::new();
        lanes.drain(five, |item| seen.push(item));
        assert_eq!(seen, [10, 20, 11]);
    }
}
