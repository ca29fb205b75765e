//! Which blocks PostgreSQL has not committed yet: a bit each, in words of 64 sequences that hold one at least. Few old ones
//! cost few words, however much was committed behind them. Pure; owned by the writer.

use std::collections::BTreeMap;

use crate::types::Sequence;

const WORD_BITS: u64 = 64;

/// The blocks that are written and not committed.
#[derive(Debug)]
pub struct Outstanding {
    /// By sequence / [`WORD_BITS`]: a bit a sequence, set while outstanding; no word is zero.
    words: BTreeMap<u64, u64>,
    next: u64,
    count: u64,
}

impl Outstanding {
    /// None outstanding; `next` is the sequence of the next block.
    pub fn new(next: Sequence) -> Self {
        Self { words: BTreeMap::new(), next: next.0, count: 0 }
    }

    /// Adds `sequence`, which is at or above every one added before; those skipped count as committed.
    pub fn push(&mut self, sequence: Sequence) {
        assert!(sequence.0 >= self.next, "sequences rise");
        *self.words.entry(sequence.0 / WORD_BITS).or_default() |= 1 << (sequence.0 % WORD_BITS);
        self.next = sequence.0 + 1;
        self.count += 1;
    }

    /// Sets the sequence of the next block, which only grows.
    pub fn skip_to(&mut self, next: Sequence) {
        self.next = self.next.max(next.0);
    }

    /// Takes `sequence` out; false when it was not outstanding.
    pub fn release(&mut self, sequence: Sequence) -> bool {
        let (index, bit) = (sequence.0 / WORD_BITS, 1 << (sequence.0 % WORD_BITS));
        match self.words.get_mut(&index) {
            Some(word) if *word == bit => drop(self.words.remove(&index)),
            Some(word) if *word & bit != 0 => *word &= !bit,
            _ => return false,
        }
        self.count -= 1;
        true
    }

    /// The low-water mark: the oldest outstanding sequence, or the next one when there is none.
    pub fn low(&self) -> Sequence {
        match self.words.first_key_value() {
            Some((&index, word)) => Sequence(index * WORD_BITS + u64::from(word.trailing_zeros())),
            None => Sequence(self.next),
        }
    }

    /// Sequence of the next block.
    pub fn next(&self) -> Sequence {
        Sequence(self.next)
    }

    /// How many are outstanding.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_set(start in 1u64..300, steps in prop::collection::vec((0u64..90, any::<bool>(), any::<u16>()), 0..200)) {
            let mut outstanding = Outstanding::new(Sequence(start));
            let (mut model, mut next) = (BTreeSet::new(), start);
            for (skip, push, pick) in steps {
                if push {
                    next += skip / 30 * 40; // mostly no gap
                    outstanding.push(Sequence(next));
                    model.insert(next);
                    next += 1;
                } else {
                    let sequence = next.saturating_sub(u64::from(pick) % 150);
                    prop_assert_eq!(outstanding.release(Sequence(sequence)), model.remove(&sequence));
                }
                let low = model.first().copied().unwrap_or(next);
                prop_assert_eq!((outstanding.low().0, outstanding.next().0), (low, next));
                prop_assert_eq!(outstanding.count(), model.len() as u64);
            }
        }
    }

    #[test]
    fn an_old_block_costs_no_memory_for_what_is_committed_behind_it() {
        let mut outstanding = Outstanding::new(Sequence(1));
        outstanding.push(Sequence(1));
        for sequence in 2..100_000 {
            outstanding.push(Sequence(sequence));
            assert!(outstanding.release(Sequence(sequence)));
            assert!(outstanding.words.len() <= 2);
        }
        assert_eq!(outstanding.low(), Sequence(1));
    }
}
