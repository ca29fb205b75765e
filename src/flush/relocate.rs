//! The queue's side of relocation: which waiting batches have their blocks in a segment that they hold, and where those are
//! once they were written again.
//!
//! ```text
//!  journal thread: copies_in ─▶ append, sync ─▶ moved ─▶ release of what no batch needs: the old place, or the new one
//!  a flusher:                                ▲ may take such a batch, land it and release its place
//! ```
//!
//! Nothing leaves its place in the queue: order, age, postponement and all counts stay as they are. A batch that a flusher
//! has in hand is not touched; if it was taken meanwhile, its old place stays and the new one is what nobody needs.

use std::collections::HashMap;
use std::time::Instant;

use crate::flush::queue::{FlushQueue, Queued, Waiting};
use crate::journal::Location;
use crate::types::Sequence;

/// Which blocks to write again.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Those in this segment,
    pub segment: u64,
    /// which holds so many outstanding ones,
    pub blocks: u64,
    /// with sequences below this one,
    pub below: Sequence,
    /// of batches queued up to this moment,
    pub queued_until: Instant,
    /// so many at most,
    pub blocks_max: usize,
    /// of so many bytes together, or one.
    pub bytes_max: usize,
}

/// A block to be written again.
#[derive(Debug)]
pub struct BlockCopy {
    /// Where it is.
    pub from: Location,
    /// Its bytes and their CRC32C, where memory holds them.
    pub bytes: Option<(Vec<u8>, u32)>,
}

/// A block that is in two places.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Where it was.
    pub from: Location,
    /// Where it is as well.
    pub to: Location,
}

impl FlushQueue {
    /// Copies of the blocks that are `wanted`, of waiting batches. Looks at all that waits, and holds up flushers meanwhile.
    pub fn copies_in(&self, wanted: &Wanted) -> Vec<BlockCopy> {
        let (mut copies, mut bytes, mut seen) = (Vec::new(), 0, 0);
        self.for_each_waiting(|item| {
            let Some(from) = item.value.location.filter(|location| location.segment == wanted.segment) else {
                return seen < wanted.blocks;
            };
            seen += 1;
            if from.sequence >= wanted.below || item.queued_at > wanted.queued_until {
                return seen < wanted.blocks;
            }
            bytes += from.payload_bytes as usize;
            if !copies.is_empty() && bytes > wanted.bytes_max {
                return false;
            }
            let block = item.value.block.as_ref();
            let bytes = block.map(|block| (block.bytes().to_vec(), block.crc32c()));
            copies.push(BlockCopy { from, bytes });
            copies.len() < wanted.blocks_max && seen < wanted.blocks
        });
        copies
    }

    /// Has batches that still wait look for their blocks at the new places. Gives the place of each block that no batch
    /// needs any more: the old one, or the new one of a batch that is not waiting.
    pub fn moved(&self, moves: &[Move]) -> Vec<Location> {
        let mut open: HashMap<Sequence, Move> = moves.iter().map(|block| (block.from.sequence, *block)).collect();
        let mut free = Vec::with_capacity(moves.len());
        self.for_each_waiting(|item| {
            let Queued { location, .. } = &mut item.value;
            if let Some(Move { from, to }) = location.and_then(|location| open.remove(&location.sequence)) {
                *location = Some(to);
                free.push(from);
            }
            !open.is_empty()
        });
        free.extend(open.into_values().map(|Move { to, .. }| to));
        free
    }

    /// Calls `visit` for all that waits, until it says false.
    fn for_each_waiting(&self, mut visit: impl FnMut(&mut Waiting) -> bool) {
        let mut merge = self.gathered();
        let mut postponed = self.postponed.lock();
        let mut waiting = postponed.things_mut().chain(merge.items_mut());
        while waiting.next().is_some_and(&mut visit) {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::encode::block::{BlockBuilder, BlockHeader};
    use crate::flush::cut::{CutSettings, Linger};
    use crate::flush::merge::{Moment, Next, Role};
    use crate::flush::queue::QueueBudgets;
    use crate::flush::queue::Trouble;
    use crate::metrics::Metrics;
    use crate::ring::budget::Budget;
    use crate::sharding::{IngestShard, Sharding};
    use crate::status::model::Batch;
    use crate::types::{BatchKey, BodyDigest, Priority, UnixMicros};

    const PAYLOAD_BYTES: u32 = 100;

    fn at(segment: u64, sequence: u64) -> Location {
        Location { segment, offset: sequence * 1000, payload_bytes: PAYLOAD_BYTES, sequence: Sequence(sequence) }
    }

    /// A queue in which batch N is block N, `in_segment` for the first ones and another one for the rest.
    fn queue_of(blocks: u64, in_segment: u64) -> Arc<FlushQueue> {
        let settings =
            CutSettings { rows_min: 1, bytes_max: 1 << 20, timeout: Duration::from_secs(30), linger: Linger::Adaptive };
        let budgets = QueueBudgets { batches: Budget::new(1000), memory_bytes: Budget::new(1 << 20) };
        let (queue, _seats) = FlushQueue::new(1, Sharding::None, settings, budgets, 1, false);
        let metrics = Metrics::new("n", &[]);
        for number in 1..=blocks {
            let key = BatchKey { owner: Arc::from(""), id: format!("batch-{number}").into() };
            let (digest, priority) = (BodyDigest::of(b"body"), Priority::ALL[(number % 3) as usize]);
            let header = BlockHeader { key: key.clone(), priority, events: 1, received_at: UnixMicros(0), digest };
            let block = number.is_multiple_of(2).then(|| BlockBuilder::new(Vec::new(), &header).finish(1));
            let queued = Queued {
                batch: Arc::new(Batch::new(key, digest, priority, 1, UnixMicros(0))),
                block,
                location: Some(at(if number <= in_segment { 1 } else { 2 }, number)),
                memory_bytes: 0,
                accepted_at: Instant::now(),
                on_commit: None,
                trouble: Trouble::default(),
            };
            queue.push(&metrics, 0, queued, 48);
        }
        queue
    }

    fn wanted(blocks_max: usize) -> Wanted {
        Wanted {
            segment: 1,
            blocks: 6,
            below: Sequence(u64::MAX),
            queued_until: Instant::now(),
            blocks_max,
            bytes_max: 1 << 20,
        }
    }

    fn sequences(copies: &[BlockCopy]) -> Vec<u64> {
        let mut sequences: Vec<u64> = copies.iter().map(|copy| copy.from.sequence.0).collect();
        sequences.sort_unstable();
        sequences
    }

    fn take_one(queue: &FlushQueue) -> Waiting {
        let moment =
            Moment { now: Instant::now(), others_rows: 0, working_since: Instant::now(), hurry: true, rows_target: 1 };
        match queue.next(Role::General, &moment) {
            Next::Copy(mut cut) => cut.items.pop().expect("a batch"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blocks_of_one_segment_are_copied_wherever_their_batches_wait() {
        let queue = queue_of(20, 6);
        queue.postpone(take_one(&queue), "42501", "stuck");
        queue.hold(IngestShard::default(), "its worker is away");
        let copies = queue.copies_in(&wanted(100));
        assert_eq!(sequences(&copies), [1, 2, 3, 4, 5, 6]);
        assert!(copies.iter().all(|copy| copy.bytes.is_some() == copy.from.sequence.0.is_multiple_of(2)));
        assert_eq!(queue.copies_in(&wanted(2)).len(), 2);
        let few_bytes = Wanted { bytes_max: 3 * PAYLOAD_BYTES as usize, ..wanted(100) };
        assert_eq!(queue.copies_in(&few_bytes).len(), 3);
        assert_eq!(queue.copies_in(&Wanted { bytes_max: 1, ..few_bytes }).len(), 1, "one always");
        assert_eq!(sequences(&queue.copies_in(&Wanted { below: Sequence(4), ..wanted(100) })), [1, 2, 3]);
        let earlier = Instant::now() - Duration::from_secs(10);
        assert!(queue.copies_in(&Wanted { queued_until: earlier, ..wanted(100) }).is_empty());
    }

    #[test]
    fn a_batch_that_a_flusher_took_meanwhile_keeps_its_old_place() {
        let queue = queue_of(6, 6);
        let to = |from: Location| at(9, from.sequence.0 + 100);
        let moves: Vec<Move> =
            queue.copies_in(&wanted(100)).iter().map(|copy| Move { from: copy.from, to: to(copy.from) }).collect();
        let taken = take_one(&queue);
        let kept = taken.value.location.expect("in the journal");
        let mut free: Vec<u64> = queue.moved(&moves).iter().map(|location| location.sequence.0).collect();
        free.sort_unstable();
        let expected = (1..=6).filter(|&sequence| sequence != kept.sequence.0).chain([kept.sequence.0 + 100]);
        assert_eq!(free, expected.collect::<Vec<_>>());
        queue.put_back(vec![taken]);
        let mut places = Vec::new();
        queue.for_each_waiting(|item| {
            places.extend(item.value.location.map(|location| location.segment));
            true
        });
        places.sort_unstable();
        assert_eq!(places, [1, 9, 9, 9, 9, 9]);
    }
}
