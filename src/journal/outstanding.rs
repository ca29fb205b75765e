//! Which blocks PostgreSQL has not committed yet: a bit each, between the low-water mark and the next sequence.
//! Pure; owned by the writer.

use std::collections::VecDeque;

use crate::types::Sequence;

const WORD_BITS: u64 = 64;

/// The blocks that are written and not committed.
#[derive(Debug)]
pub struct Outstanding {
    /// Sequence of the first bit; a multiple of [`WORD_BITS`].
    base: u64,
    /// One bit a sequence from `base`, set while outstanding; the first word is not zero unless it holds `next`.
    words: VecDeque<u64>,
    next: u64,
    count: u64,
}

impl Outstanding {
    /// None outstanding; `next` is the sequence of the next block.
    pub fn new(next: Sequence) -> Self {
        Self { base: next.0 / WORD_BITS * WORD_BITS, words: VecDeque::new(), next: next.0, count: 0 }
    }

    /// Adds `sequence`, which is at or above every one added before; those skipped count as committed.
    pub fn push(&mut self, sequence: Sequence) {
        assert!(sequence.0 >= self.next, "sequences rise");
        if self.count == 0 {
            self.words.clear();
            self.base = sequence.0 / WORD_BITS * WORD_BITS;
        }
        let index = ((sequence.0 - self.base) / WORD_BITS) as usize;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        self.words[index] |= 1 << (sequence.0 % WORD_BITS);
        self.next = sequence.0 + 1;
        self.count += 1;
    }

    /// Sets the sequence of the next block, which only grows.
    pub fn skip_to(&mut self, next: Sequence) {
        self.next = self.next.max(next.0);
    }

    /// Takes `sequence` out; false when it was not outstanding.
    pub fn release(&mut self, sequence: Sequence) -> bool {
        let Some(index) = sequence.0.checked_sub(self.base).map(|bits| (bits / WORD_BITS) as usize) else {
            return false;
        };
        let bit = 1 << (sequence.0 % WORD_BITS);
        match self.words.get_mut(index) {
            Some(word) if *word & bit != 0 => *word &= !bit,
            _ => return false,
        }
        self.count -= 1;
        while self.words.front() == Some(&0) {
            self.words.pop_front();
            self.base += WORD_BITS;
        }
        true
    }

    /// The low-water mark: the oldest outstanding sequence, or the next one when there is none.
    pub fn low(&self) -> Sequence {
        match self.words.front() {
            Some(&word) if self.count > 0 => Sequence(self.base + u64::from(word.trailing_zeros())),
            _ => Sequence(self.next),
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
}
