//! The `absent` file: sequences whose blocks will never be found again, and are no loss.
//!
//! Blocks are numbered without gaps, so a gap is loss unless something accounts for it. `committed_below` does, for
//! all that is older than every waiting block. This file does for the rest, and says so before it is so:
//!
//! * blocks of a segment that leaves, all committed, while older blocks elsewhere are still waiting;
//! * blocks that a crash tore, unacked, when recovery found sound ones behind them or goes on in a new segment.
//!
//! It is text, for the eyes of an operator, and is replaced as a whole (`absent.new`, synced, renamed):
//!
//! ```text
//! ingestd journal: sequences that are gone and no loss
//! 1200-5310
//! 8000-8999
//! crc32c 1a2b3c4d
//! ```
//!
//! Ranges are inclusive, rise and do not touch. What `committed_below` has come to cover is dropped at the next save,
//! so the file stays small.

use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::ops::Range;

use super::storage::{Access, Storage, read_full_at, write_all_vectored_at};
use crate::types::Sequence;

/// Name of the file.
pub const ABSENT_NAME: &str = "absent";
const UNFINISHED_NAME: &str = "absent.new";
const TITLE: &str = "ingestd journal: sequences that are gone and no loss";

/// Sequences that are gone and no loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Absent {
    /// Rising and not touching.
    ranges: Vec<Range<u64>>,
}

impl Absent {
    /// What the file in `storage` says; `Ok(None)` when it is damaged, nothing absent when it is missing.
    pub fn load(storage: &dyn Storage) -> io::Result<Option<Self>> {
        let file = match storage.open(ABSENT_NAME, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Self::default())),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; file.bytes()? as usize];
        let length = read_full_at(&*file, &mut bytes, 0)?;
        Ok(std::str::from_utf8(&bytes[..length]).ok().and_then(Self::parse))
    }

    /// Replaces the file in `storage`; when this returns, it has survived.
    pub fn save(&self, storage: &dyn Storage) -> io::Result<()> {
        let file = storage.create(UNFINISHED_NAME, 0)?;
        let text = self.to_text();
        write_all_vectored_at(&*file, &mut [IoSlice::new(text.as_bytes())], 0)?;
        file.sync_data()?;
        storage.rename(UNFINISHED_NAME, ABSENT_NAME)?;
        storage.sync_dir()
    }

    fn to_text(&self) -> String {
        let mut text = format!("{TITLE}\n");
        for range in &self.ranges {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{}-{}", range.start, range.end - 1);
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "crc32c {checksum:08x}");
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let body_bytes = text.len().checked_sub("crc32c 00000000\n".len())?;
        let (body, last) = text.split_at_checked(body_bytes)?;
        if last != format!("crc32c {:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return None;
        }
        let mut absent = Self::default();
        for line in body.strip_prefix(TITLE)?.trim().lines() {
            let (first, last) = line.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if first > last || last == u64::MAX {
                return None;
            }
            absent.insert(Sequence(first), Sequence(last));
        }
        Some(absent)
    }

    /// Adds `first..=last`.
    pub fn insert(&mut self, first: Sequence, last: Sequence) {
        assert!(first <= last);
        let (mut start, mut end) = (first.0, last.0 + 1);
        self.ranges.retain(|range| {
            let apart = range.end < start || end < range.start;
            if !apart {
                (start, end) = (start.min(range.start), end.max(range.end));
            }
            apart
        });
        let at = self.ranges.partition_point(|range| range.start < start);
        self.ranges.insert(at, start..end);
    }

    /// Forgets what is below `low`, which other records cover.
    pub fn forget_below(&mut self, low: Sequence) {
        self.ranges.retain(|range| range.end > low.0);
    }

    /// The ranges, rising, ends exclusive.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// True when `sequence` is in a range.
    pub fn contains(&self, sequence: Sequence) -> bool {
        let at = self.ranges.partition_point(|range| range.end <= sequence.0);
        self.ranges.get(at).is_some_and(|range| range.contains(&sequence.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Absent {
        let mut absent = Absent::default();
        for &(first, last) in ranges {
            absent.insert(Sequence(first), Sequence(last));
        }
        absent
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(of(&[(10, 19), (30, 39), (20, 29)]).ranges(), std::slice::from_ref(&(10..40)));
        assert_eq!(of(&[(30, 39), (10, 19)]).ranges(), &[10..20, 30..40]);
        let absent = of(&[(30, 39), (10, 19)]);
        assert!(absent.contains(Sequence(10)) && absent.contains(Sequence(39)));
        assert!(!absent.contains(Sequence(20)) && !absent.contains(Sequence(29)) && !absent.contains(Sequence(40)));
    }

    #[test]
    fn the_text_comes_back_and_no_byte_of_it_can_change() {
        for absent in [of(&[]), of(&[(10, 19), (30, 39)])] {
            let text = absent.to_text();
            assert_eq!(Absent::parse(&text), Some(absent));
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1;
                assert_eq!(std::str::from_utf8(&bytes).ok().and_then(Absent::parse), None, "byte {at}");
            }
        }
    }
}
