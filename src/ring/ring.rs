//! One core's ring: its HTTP worker pushes, the journal thread pops.

use crossbeam::queue::ArrayQueue;

use crate::limits::{RING_BATCHES_MAX, RING_BYTES_MAX};
use crate::ring::budget::Budget;

/// Bounded in items ([`RING_BATCHES_MAX`]) and in bytes ([`RING_BYTES_MAX`]).
pub struct Ring<T> {
    queue: ArrayQueue<(u64, T)>,
    bytes: Budget,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { queue: ArrayQueue::new(RING_BATCHES_MAX), bytes: Budget::new(RING_BYTES_MAX as u64) }
    }
}

impl<T> Ring<T> {
    /// Queues `item` of `bytes` bytes, or gives it back when the ring is full. An item larger than the whole
    /// byte bound is taken when the ring holds nothing else: limits elsewhere decide whether it may exist.
    pub fn push(&self, bytes: u64, item: T) -> Result<(), T> {
        let bytes = bytes.min(self.bytes.limit());
        if !self.bytes.try_take(bytes) {
            return Err(item);
        }
        self.queue.push((bytes, item)).map_err(|(_, item)| {
            self.bytes.give_back(bytes);
            item
        })
    }

    /// The oldest item, if any.
    pub fn pop(&self) -> Option<T> {
        let (bytes, item) = self.queue.pop()?;
        self.bytes.give_back(bytes);
        Some(item)
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_bounded_in_items_and_in_bytes() {
        let ring = Ring::default();
        for item in 0..RING_BATCHES_MAX {
            ring.push(1, item).expect("room");
        }
        assert_eq!(ring.push(1, 7), Err(7));
        assert_eq!(ring.pop(), Some(0));
        assert_eq!(ring.push(RING_BYTES_MAX as u64, 8), Err(8));
        while ring.pop().is_some() {}
        assert_eq!(ring.push(u64::MAX, 9), Ok(()));
        assert_eq!(ring.push(1, 10), Err(10));
    }
}
