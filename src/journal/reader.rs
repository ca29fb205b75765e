//! Reading blocks back: flushers do, for those whose bytes were dropped from memory.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Location;
use super::aligned::Aligned;
use super::frame::{FRAME_HEADER_BYTES, FrameFault, FrameHeader, FrameKind};
use super::storage::{StorageFile, read_full_at};
use crate::limits::{DIRECT_BLOCK_BYTES, DIRECT_IO_BYTES_MAX, READ_BACK_BYTES_MIN};

/// Why a block could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The segment is gone: the block was released before.
    #[error("segment {} of block {} no longer exists", .0.segment, .0.sequence.0)]
    Gone(Location),
    /// The device failed; trying again may help.
    #[error("reading block {} in segment {} at offset {}: {source}", location.sequence.0, location.segment, location.offset)]
    Io {
        /// Which block.
        location: Location,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not those that were written; trying again will not help.
    #[error("block {} in segment {} at offset {} is damaged: {fault}", location.sequence.0, location.segment, location.offset)]
    Damaged {
        /// Which block.
        location: Location,
        /// What is wrong.
        fault: FrameFault,
    },
}

/// The segments' open files, shared by the writer (which adds and removes) and the readers. The lock is held only to
/// look up or change the map, never over I/O.
#[derive(Default)]
pub(super) struct OpenFiles(RwLock<HashMap<u64, Arc<dyn StorageFile>>>);

impl OpenFiles {
    pub fn insert(&self, segment: u64, file: Arc<dyn StorageFile>) {
        self.0.write().insert(segment, file);
    }

    pub fn remove(&self, segment: u64) {
        self.0.write().remove(&segment);
    }

    fn get(&self, segment: u64) -> Option<Arc<dyn StorageFile>> {
        self.0.read().get(&segment).cloned()
    }
}

/// Reads blocks back by their location. Each thread has its own: what is read at once is more than one small block,
/// and stays here for the next ones.
pub struct JournalReader {
    files: Arc<OpenFiles>,
    window: Window,
}

impl Clone for JournalReader {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.files))
    }
}

impl JournalReader {
    pub(super) fn new(files: Arc<OpenFiles>) -> Self {
        Self { files, window: Window::default() }
    }

    /// Reads the payload at `location` into `payload` (replaced; its capacity is kept), verifies it, and returns its
    /// CRC32C. The block must not have been released.
    pub fn read(&mut self, location: &Location, payload: &mut Vec<u8>) -> Result<u32, ReadError> {
        let file = self.files.get(location.segment).ok_or(ReadError::Gone(*location))?;
        let was_there = self.window.covers(location.segment, location.offset);
        match self.read_from(&*file, *location, payload) {
            // What is in the window may be older than the block.
            Err(ReadError::Damaged { .. }) if was_there => {
                self.window = Window { buffer: std::mem::take(&mut self.window.buffer), ..Window::default() };
                self.read_from(&*file, *location, payload)
            }
            outcome => outcome,
        }
    }

    fn read_from(
        &mut self,
        file: &dyn StorageFile,
        location: Location,
        payload: &mut Vec<u8>,
    ) -> Result<u32, ReadError> {
        let damaged = |fault| ReadError::Damaged { location, fault };
        let io = |source| ReadError::Io { location, source };
        let Location { segment, offset, payload_bytes, sequence } = location;
        let payload_at = offset + FRAME_HEADER_BYTES as u64;
        let end = payload_at + u64::from(payload_bytes);

        payload.clear();
        while payload.len() < FRAME_HEADER_BYTES {
            let read = self.window.read(file, segment, offset + payload.len() as u64..end).map_err(io)?;
            if read.is_empty() {
                return Err(damaged(FrameFault::CutShort));
            }
            let wanted = FRAME_HEADER_BYTES - payload.len();
            payload.extend_from_slice(&read[..read.len().min(wanted)]);
        }
        let header = payload.first_chunk().ok_or_else(|| damaged(FrameFault::CutShort))?;
        let header = FrameHeader::decode(header, segment).map_err(damaged)?;
        let same =
            header.kind == FrameKind::Block && header.sequence == sequence && header.payload_bytes == payload_bytes;
        if !same {
            return Err(damaged(FrameFault::Malformed("a different frame was found there")));
        }
        payload.clear();
        payload.reserve(payload_bytes as usize);
        while payload.len() < payload_bytes as usize {
            let read = self.window.read(file, segment, payload_at + payload.len() as u64..end).map_err(io)?;
            if read.is_empty() {
                return Err(damaged(FrameFault::CutShort));
            }
            payload.extend_from_slice(read);
        }
        if crc32c::crc32c(payload) != header.payload_crc32c {
            return Err(damaged(FrameFault::PayloadChecksum));
        }
        Ok(header.payload_crc32c)
    }
}

/// A part of a segment in memory, whole blocks from a multiple of a block on, as [`StorageFile::read_at`] reads them
/// past the page cache.
#[derive(Default)]
struct Window {
    buffer: Aligned,
    /// 0: nothing is in the buffer.
    segment: u64,
    at: u64,
    bytes: usize,
}

impl Window {
    fn covers(&self, segment: u64, offset: u64) -> bool {
        segment == self.segment && (self.at..self.at + self.bytes as u64).contains(&offset)
    }

    /// Some of the bytes at `wanted`, from its start on; none at the end of the file.
    fn read(&mut self, file: &dyn StorageFile, segment: u64, wanted: Range<u64>) -> io::Result<&[u8]> {
        if !self.covers(segment, wanted.start) {
            self.fill(file, segment, &wanted)?;
        }
        let from = ((wanted.start - self.at) as usize).min(self.bytes);
        let to = ((wanted.end - self.at) as usize).min(self.bytes);
        Ok(&self.buffer.bytes()[from..to])
    }

    fn fill(&mut self, file: &dyn StorageFile, segment: u64, wanted: &Range<u64>) -> io::Result<()> {
        let block = DIRECT_BLOCK_BYTES as u64;
        self.segment = 0;
        self.at = wanted.start / block * block;
        let needed = (wanted.end.next_multiple_of(block) - self.at).min(DIRECT_IO_BYTES_MAX as u64) as usize;
        let more = needed.max(READ_BACK_BYTES_MIN);
        let mut read = |bytes: usize| read_full_at(file, &mut self.buffer.bytes()[..bytes], self.at);
        // A sector that cannot be read must not cost the blocks before it.
        self.bytes = read(more).or_else(|error| if more > needed { read(needed) } else { Err(error) })?;
        self.segment = segment;
        Ok(())
    }
}
