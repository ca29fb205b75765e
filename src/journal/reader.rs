//! Reading blocks back: flushers do, for those whose bytes were dropped from memory.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Location;
use super::frame::{FRAME_HEADER_BYTES, FrameFault, FrameHeader, FrameKind};
use super::storage::{StorageFile, read_full_at};

/// Why a block could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The segment is gone: the block was released before.
    #[error("segment {} of block {} is gone", .0.segment, .0.sequence.0)]
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

/// Reads blocks back by their location, from any thread.
#[derive(Clone)]
pub struct JournalReader {
    files: Arc<OpenFiles>,
}

impl JournalReader {
    pub(super) fn new(files: Arc<OpenFiles>) -> Self {
        Self { files }
    }

    /// Reads the payload at `location` into `payload` (replaced; its capacity is kept), verifies it, and returns its
    /// CRC32C. The block must not have been released.
    pub fn read(&self, location: &Location, payload: &mut Vec<u8>) -> Result<u32, ReadError> {
        let location = *location;
        let file = self.files.get(location.segment).ok_or(ReadError::Gone(location))?;
        let damaged = |fault| ReadError::Damaged { location, fault };
        let io = |source| ReadError::Io { location, source };

        let mut header = [0; FRAME_HEADER_BYTES];
        if read_full_at(&*file, &mut header, location.offset).map_err(io)? < header.len() {
            return Err(damaged(FrameFault::CutShort));
        }
        let header = FrameHeader::decode(&header, location.segment).map_err(damaged)?;
        let same = header.kind == FrameKind::Block
            && header.sequence == location.sequence
            && header.payload_bytes == location.payload_bytes;
        if !same {
            return Err(damaged(FrameFault::Malformed("another frame is there")));
        }
        payload.clear();
        payload.resize(location.payload_bytes as usize, 0);
        let payload_at = location.offset + FRAME_HEADER_BYTES as u64;
        if read_full_at(&*file, payload, payload_at).map_err(io)? < payload.len() {
            return Err(damaged(FrameFault::CutShort));
        }
        if crc32c::crc32c(payload) != header.payload_crc32c {
            return Err(damaged(FrameFault::PayloadChecksum));
        }
        Ok(header.payload_crc32c)
    }
}
