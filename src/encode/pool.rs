//! Buffers of blocks, from the thread that is done with one to the worker that needs the next.
//!
//! A block of a thousand events is hundreds of kilobytes: allocated anew each time, most of a worker's CPU goes
//! into the kernel clearing pages (a third of all samples, measured with `perf record` under load). So buffers
//! travel back, by size class, through lock-free queues. Small blocks are left to the allocator.

use crossbeam::queue::ArrayQueue;

use crate::limits::{BLOCK_BUFFER_BYTES_MAX, BLOCK_BUFFER_BYTES_MIN, BLOCK_BUFFERS_KEPT_BYTES_MAX};
use crate::ring::budget::Budget;

const CLASSES: usize = (BLOCK_BUFFER_BYTES_MAX / BLOCK_BUFFER_BYTES_MIN).ilog2() as usize + 1;

const _: () = assert!(BLOCK_BUFFER_BYTES_MIN.is_power_of_two() && BLOCK_BUFFER_BYTES_MAX.is_power_of_two());

/// Empty buffers by capacity: powers of two from [`BLOCK_BUFFER_BYTES_MIN`] to [`BLOCK_BUFFER_BYTES_MAX`].
pub struct BlockPool {
    classes: [ArrayQueue<Vec<u8>>; CLASSES],
    kept_bytes: Budget,
}

impl Default for BlockPool {
    fn default() -> Self {
        let kept_max = |class: usize| BLOCK_BUFFERS_KEPT_BYTES_MAX / (BLOCK_BUFFER_BYTES_MIN << class);
        Self {
            classes: std::array::from_fn(|class| ArrayQueue::new(kept_max(class))),
            kept_bytes: Budget::new(BLOCK_BUFFERS_KEPT_BYTES_MAX as u64),
        }
    }
}

impl BlockPool {
    /// An empty buffer with room for `bytes`.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        if !(BLOCK_BUFFER_BYTES_MIN / 2..=BLOCK_BUFFER_BYTES_MAX).contains(&bytes) {
            return Vec::with_capacity(bytes);
        }
        let capacity = bytes.next_power_of_two().max(BLOCK_BUFFER_BYTES_MIN);
        let class = (capacity / BLOCK_BUFFER_BYTES_MIN).ilog2() as usize;
        let Some(kept) = self.classes[class].pop() else { return Vec::with_capacity(capacity) };
        self.kept_bytes.give_back(capacity as u64);
        kept
    }

    /// Keeps `buffer` for the next block, or frees it when it is no pool size or enough are kept.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let is_ours =
            capacity.is_power_of_two() && (BLOCK_BUFFER_BYTES_MIN..=BLOCK_BUFFER_BYTES_MAX).contains(&capacity);
        if !is_ours || !self.kept_bytes.try_take(capacity as u64) {
            return;
        }
        let class = (capacity / BLOCK_BUFFER_BYTES_MIN).ilog2() as usize;
        buffer.clear();
        if self.classes[class].push(buffer).is_err() {
            self.kept_bytes.give_back(capacity as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_given_back_is_taken_again() {
        let pool = BlockPool::default();
        for bytes in [BLOCK_BUFFER_BYTES_MIN, 430_000, BLOCK_BUFFER_BYTES_MAX] {
            let mut buffer = pool.take(bytes);
            assert!(buffer.capacity() >= bytes);
            buffer.push(1);
            let address = buffer.as_ptr();
            pool.give_back(buffer);
            let again = pool.take(bytes);
            assert!(again.is_empty());
            assert_eq!(again.as_ptr(), address);
        }
    }

    #[test]
    fn small_and_huge_buffers_are_left_to_the_allocator() {
        let pool = BlockPool::default();
        for bytes in [10, BLOCK_BUFFER_BYTES_MAX + 1] {
            pool.give_back(pool.take(bytes));
            assert!(pool.classes.iter().all(ArrayQueue::is_empty));
        }
    }
}
