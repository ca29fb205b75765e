//! Appending past the page cache (`O_DIRECT`).
//!
//! The page cache is of little use to the journal: what it writes is read again only after a crash or when memory is
//! short. Under load the copy into fresh pages of it was half of the server's CPU (`perf record`), and those pages
//! push PostgreSQL's out. The device wants whole blocks at multiples of a block, frames are neither; so bytes are
//! gathered in an aligned buffer, and the block that the last append left half full is written again, as it was and
//! longer, by the next one:
//!
//! ```text
//!   on disk   │ block │ block │ ab··│           ab: the end of the last append
//!   buffer    │ abcd │ efgh │ ij··│  ─▶ written over the half-full block and on; `ij` stays for the next append
//! ```
//!
//! The bytes that were there are written again unchanged, so a torn write cannot take from an earlier append. Bytes
//! behind the end of an append are zeros up to the block's end.
//!
//! Absent on purpose: alignments above [`BLOCK_BYTES`]. A device that wants more refuses the first write, and the file
//! is then written through the page cache.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use super::aligned::Aligned;
use crate::limits::DIRECT_BLOCK_BYTES as BLOCK_BYTES;

/// Writes one file, whole blocks at a time.
pub(super) struct Appender {
    /// Opened with `O_DIRECT`; `None` once the device has refused that.
    direct: Option<Arc<File>>,
    buffer: Aligned,
    /// The block that the buffer begins with, and how many bytes of it are there.
    tail_at: u64,
    tail_bytes: usize,
}

impl Appender {
    /// An appender over `direct`, which was opened with `O_DIRECT` for writing.
    pub fn new(direct: Arc<File>) -> Self {
        Self { direct: Some(direct), buffer: Aligned::default(), tail_at: 0, tail_bytes: 0 }
    }

    /// Writes some of `slices` at `offset`; returns how many bytes, like `pwritev(2)`. `cached` is the same file,
    /// opened without `O_DIRECT`. Quick when `offset` is where the last call ended.
    pub fn write(&mut self, cached: &File, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        if offset != self.tail_at + self.tail_bytes as u64 {
            self.move_to(cached, offset)?;
        }
        let gathered = self.gather(slices);
        let end = self.tail_bytes + gathered;
        let padded = end.next_multiple_of(BLOCK_BYTES);
        let bytes = self.buffer.bytes();
        bytes[end..padded].fill(0);
        self.write_blocks(cached, padded)?;
        let tail_from = end / BLOCK_BYTES * BLOCK_BYTES;
        self.buffer.bytes().copy_within(tail_from..end, 0);
        self.tail_at += tail_from as u64;
        self.tail_bytes = end - tail_from;
        Ok(gathered)
    }

    /// Begins a run of appends at `offset`, within a block that the file may hold bytes of already.
    fn move_to(&mut self, cached: &File, offset: u64) -> io::Result<()> {
        let within = (offset % BLOCK_BYTES as u64) as usize;
        (self.tail_at, self.tail_bytes) = (offset - within as u64, within);
        if within > 0 {
            cached.read_exact_at(&mut self.buffer.bytes()[..within], self.tail_at)?;
        }
        Ok(())
    }

    /// Copies from `slices` behind the tail, as much as one write takes; returns how many bytes.
    fn gather(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let mut room = &mut self.buffer.bytes()[self.tail_bytes..];
        let before = room.len();
        for slice in slices {
            let count = slice.len().min(room.len());
            let (filled, rest) = std::mem::take(&mut room).split_at_mut(count);
            filled.copy_from_slice(&slice[..count]);
            room = rest;
            if room.is_empty() {
                break;
            }
        }
        before - room.len()
    }

    /// Writes the first `count` bytes of the buffer at the tail's block. A short write is begun again: it may have
    /// ended within a block.
    fn write_blocks(&mut self, cached: &File, count: usize) -> io::Result<()> {
        let bytes = &self.buffer.bytes()[..count];
        let mut from = 0;
        while from < count {
            let at = self.tail_at + from as u64;
            let written = match &self.direct {
                Some(direct) => rustix::io::pwrite(direct, &bytes[from..], at),
                None => rustix::io::pwrite(cached, &bytes[from..], at),
            };
            match written {
                Ok(written) if from + written == count => break,
                Ok(written) if written >= BLOCK_BYTES => from += written / BLOCK_BYTES * BLOCK_BYTES,
                Err(Errno::INTR) => {}
                Ok(_) | Err(Errno::INVAL) if self.direct.is_some() => self.direct = None,
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::limits::DIRECT_IO_BYTES_MAX;

    /// A file opened twice, and what it should hold.
    struct Both {
        cached: File,
        appender: Appender,
        model: Vec<u8>,
    }

    impl Both {
        /// `stale` is what an earlier life left in the file.
        fn new(path: &Path, stale: &[u8], direct: bool) -> Self {
            std::fs::write(path, stale).expect("ours");
            let cached = OpenOptions::new().read(true).write(true).open(path).expect("it is there");
            let flags = if direct { rustix::fs::OFlags::DIRECT.bits().cast_signed() } else { 0 };
            let second = OpenOptions::new().write(true).custom_flags(flags).open(path).expect("it can be written");
            Self { cached, appender: Appender::new(Arc::new(second)), model: stale.to_vec() }
        }

        fn append(&mut self, offset: usize, payload: &[u8]) {
            let (mut at, mut rest) = (offset, payload);
            while !rest.is_empty() {
                let (first, second) = rest.split_at(rest.len() / 3);
                let slices = [IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)];
                let written = self.appender.write(&self.cached, &slices, at as u64).expect("it is written");
                assert!(written > 0);
                rest = &rest[written..];
                at += written;
            }
            // Zeros up to the end of the block, what was there from there on.
            self.model.resize(self.model.len().max(at.next_multiple_of(BLOCK_BYTES)), 0);
            self.model[offset..at].copy_from_slice(payload);
            self.model[at..at.next_multiple_of(BLOCK_BYTES)].fill(0);
        }

        fn assert_same(&self) {
            let mut found = vec![0; self.cached.metadata().expect("it is there").len() as usize];
            self.cached.read_exact_at(&mut found, 0).expect("it can be read");
            assert!(found == self.model, "the file is not what was written");
        }
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder on the file system of the checkout")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_appended_is_there_between_what_was_there(
            stale_bytes in 0usize..30_000,
            direct: bool,
            appends in prop::collection::vec((prop::bool::weighted(0.1), 0usize..20_000, 1usize..9_000), 1..12),
        ) {
            let folder = directory();
            let mut both = Both::new(&folder.path().join("file"), &vec![b's'; stale_bytes], direct);
            let mut end = 0;
            for (number, (moves, to, bytes)) in appends.into_iter().enumerate() {
                let offset = if moves { to.min(both.model.len()) } else { end };
                both.append(offset, &vec![b'a' + number as u8; bytes]);
                both.assert_same();
                end = offset + bytes;
            }
        }
    }

    #[test]
    fn more_than_one_write_takes_is_written_in_several() {
        let folder = directory();
        let mut both = Both::new(&folder.path().join("file"), b"", true);
        let payload: Vec<u8> = (0..3 * DIRECT_IO_BYTES_MAX + 777).map(|at| (at % 251) as u8).collect();
        both.append(0, b"before");
        both.append(6, &payload);
        both.append(6 + payload.len(), b"after");
        both.assert_same();
    }

    #[test]
    fn a_device_that_refuses_is_written_through_the_page_cache() {
        let folder = directory();
        let mut both = Both::new(&folder.path().join("file"), b"", true);
        // Nothing here refuses 4 KiB blocks; a buffer at an odd address is refused for the same reason.
        both.appender.buffer.bytes();
        both.appender.buffer.from ^= 1;
        both.append(0, &[b'x'; 10_000]);
        both.append(10_000, b"more");
        both.assert_same();
    }
}
