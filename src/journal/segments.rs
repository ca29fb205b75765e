//! The segment files of a running journal: made, sealed, recycled, removed, put aside. The writer decides when.
//!
//! ```text
//!                make                    seal                  retire
//!  (new file or spare) ─▶ active segment ─────▶ sealed segment ───────┬─▶ spare, for the next make
//!                                                                     ├─▶ removed
//!                                                                     └─▶ quarantined, when it was damaged
//! ```
//!
//! Invariants:
//! * A file has its final name only when its header is complete and synced.
//! * A segment leaves only when its absence is accounted for on disk: by a `committed_below` that survived, or by the
//!   `absent` file.
//! * A spare's new header is written only when its old name is gone for good.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use super::Location;
use super::absent::Absent;
use super::frame::{FRAME_HEADER_BYTES, framed_bytes};
use super::reader::OpenFiles;
use super::segment::{
    SEGMENT_HEADER_BYTES, SegmentHeader, quarantined_name, segment_name, spare_name, unfinished_name,
};
use super::space::{JournalSpace, SEGMENT_BYTES_FLOOR, small_files_bytes};
use super::storage::{Access, DirEntry, Storage, StorageFile, is_no_space, write_all_vectored_at};
use super::writer::{Failure, WriteError};
use crate::limits::JOURNAL_SPARES_MAX;
use crate::sys::clock::wall_now;
use crate::types::Sequence;

/// Room at a segment's end that only marks may use.
pub(super) const MARKS_RESERVED_BYTES: u64 = 2 * FRAME_HEADER_BYTES as u64;
/// Length of a segment that is made where there is no room for a whole one: at open and at close. It comes out of the
/// reserve for small files, so it is made even at the cap.
pub(super) const SMALL_SEGMENT_BYTES: u64 = 16 * 1024;
const _: () = assert!(SMALL_SEGMENT_BYTES < SEGMENT_BYTES_FLOOR);
const _: () = assert!(SMALL_SEGMENT_BYTES > SEGMENT_HEADER_BYTES as u64 + MARKS_RESERVED_BYTES);

/// A segment file, active or sealed.
pub(super) struct Segment {
    pub id: u64,
    pub file: Arc<dyn StorageFile>,
    /// Length of the file.
    pub bytes: u64,
    /// Where the next frame goes.
    pub end: u64,
    pub first: Option<Sequence>,
    pub last: Option<Sequence>,
    /// Blocks in it that are not committed.
    pub outstanding: u64,
    /// Bytes of their frames.
    pub live_bytes: u64,
    /// When a block of it was last released, or it began or was sealed.
    pub changed_at: Instant,
    /// Admission charge: of its frames while active, the file's length when sealed.
    pub charged_bytes: u64,
    /// Uncommitted blocks were lost from it: it is kept when it is done with.
    pub is_damaged: bool,
}

impl Segment {
    /// Blocks in it.
    pub fn blocks(&self) -> u64 {
        self.first.zip(self.last).map_or(0, |(first, last)| last.0 - first.0 + 1)
    }

    /// The block at `location` is no longer outstanding.
    pub fn release(&mut self, location: &Location, now: Instant) {
        self.outstanding -= 1;
        self.live_bytes -= framed_bytes(location.payload_bytes as usize);
        self.changed_at = now;
    }

    /// Cuts the file to `bytes`.
    pub fn cut(&mut self, bytes: u64) -> Result<(), WriteError> {
        self.file.set_bytes(bytes).map_err(|error| failure("cutting", &segment_name(self.id), error))?;
        self.bytes = bytes;
        Ok(())
    }
}

/// What a new segment's header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginning {
    pub first_sequence: Sequence,
    pub committed_below: Sequence,
}

/// All files but the active segment.
pub(super) struct Segments {
    pub storage: Arc<dyn Storage>,
    pub space: Arc<JournalSpace>,
    pub files: Arc<OpenFiles>,
    pub node_id: String,
    pub segment_bytes: u64,
    pub bytes_max: u64,
    pub sealed: BTreeMap<u64, Segment>,
    /// Sealed segments without outstanding blocks.
    pub drained: Vec<u64>,
    pub spares: Vec<DirEntry>,
    pub absent: Absent,
    /// Bytes of all segments (the active one included), spares and quarantined files.
    pub files_bytes: u64,
    pub next_id: u64,
}

pub(super) fn failure(operation: &'static str, file: &str, source: io::Error) -> WriteError {
    WriteError::Failed(Failure { operation, file: file.to_owned(), source: Arc::new(source) })
}

impl Segments {
    /// Makes a segment of `bytes`; it is the caller's to fill, and survives power loss when this returns.
    pub fn make(&mut self, bytes: u64, beginning: Beginning) -> Result<Segment, WriteError> {
        let id = self.next_id;
        let name = segment_name(id);
        let spare = if bytes == self.segment_bytes { self.spares.pop() } else { None };
        let (from, file) = match spare {
            Some(spare) => {
                let file = self.storage.open(&spare.name, Access::Write);
                let file = file.map_err(|error| failure("opening", &spare.name, error))?;
                (spare.name, file)
            }
            None => {
                self.find_room(bytes)?;
                let from = unfinished_name(id);
                let file = self.create(&from, bytes)?;
                self.files_bytes += bytes;
                (from, file)
            }
        };
        let header = SegmentHeader {
            segment: id,
            node_id: self.node_id.clone(),
            created_at: wall_now(),
            first_sequence: beginning.first_sequence,
            committed_below: beginning.committed_below,
        };
        write_all_vectored_at(&*file, &mut [IoSlice::new(&header.encode()[..])], 0)
            .and_then(|()| file.sync_data())
            .map_err(|error| failure("writing the header of", &name, error))?;
        self.storage
            .rename(&from, &name)
            .and_then(|()| self.storage.sync_dir())
            .map_err(|error| failure("naming", &name, error))?;
        self.next_id += 1;
        self.files.insert(id, Arc::clone(&file));
        Ok(Segment {
            id,
            file,
            bytes,
            end: SEGMENT_HEADER_BYTES as u64,
            first: None,
            last: None,
            outstanding: 0,
            live_bytes: 0,
            changed_at: Instant::now(),
            charged_bytes: 0,
            is_damaged: false,
        })
    }

    /// Makes sure that a file of `bytes` keeps the cap; spares go first.
    fn find_room(&mut self, bytes: u64) -> Result<(), WriteError> {
        let limit = self.bytes_max - small_files_bytes(self.segment_bytes);
        while self.files_bytes + bytes > limit {
            if !self.remove_spare()? {
                let (files_bytes, bytes_max) = (self.files_bytes, self.bytes_max);
                let is_small = bytes <= SMALL_SEGMENT_BYTES;
                return if is_small { Ok(()) } else { Err(WriteError::CapReached { files_bytes, bytes_max }) };
            }
        }
        Ok(())
    }

    /// The length that a segment made now may have: whole, or small when the cap leaves no room.
    pub fn bytes_with_room(&self) -> u64 {
        let spares_bytes: u64 = self.spares.iter().map(|spare| spare.bytes).sum();
        let limit = self.bytes_max - small_files_bytes(self.segment_bytes);
        if self.files_bytes - spares_bytes + self.segment_bytes <= limit {
            self.segment_bytes
        } else {
            SMALL_SEGMENT_BYTES
        }
    }

    fn create(&self, name: &str, bytes: u64) -> Result<Arc<dyn StorageFile>, WriteError> {
        self.storage.create(name, bytes).map_err(|source| {
            if !is_no_space(&source) {
                return failure("creating", name, source);
            }
            let _ = self.storage.remove(name); // what was reserved of it; the next start removes it otherwise
            WriteError::NoSpace { segment_bytes: bytes, dir: self.storage.dir().to_owned(), source: Arc::new(source) }
        })
    }

    /// Removes a spare; false when there is none.
    pub fn remove_spare(&mut self) -> Result<bool, WriteError> {
        let Some(spare) = self.spares.pop() else { return Ok(false) };
        self.storage.remove(&spare.name).map_err(|error| failure("removing", &spare.name, error))?;
        self.files_bytes -= spare.bytes;
        Ok(true)
    }

    /// Takes in a segment that gets no more frames. From here on it is charged by its true length.
    pub fn seal(&mut self, mut segment: Segment) {
        if segment.bytes > segment.charged_bytes {
            self.space.charge_file(segment.bytes - segment.charged_bytes);
        } else {
            self.space.uncharge(segment.charged_bytes - segment.bytes);
        }
        segment.charged_bytes = segment.bytes;
        segment.changed_at = Instant::now();
        if segment.outstanding == 0 {
            self.drained.push(segment.id);
        }
        self.sealed.insert(segment.id, segment);
    }

    /// Lets all drained segments go; returns how many: none for now where the disk is too full to say so first.
    /// `committed_durable`: the greatest `committed_below` that survives power loss.
    pub fn retire_drained(&mut self, committed_durable: Sequence) -> Result<usize, WriteError> {
        let drained = std::mem::take(&mut self.drained);
        let mut is_recorded = true;
        for segment in drained.iter().filter_map(|id| self.sealed.get(id)) {
            if let (Some(first), Some(last)) = (segment.first, segment.last)
                && last >= committed_durable
            {
                self.absent.insert(first, last);
                is_recorded = false;
            }
        }
        if !is_recorded && let Err(error) = self.save_absent(committed_durable) {
            self.drained = drained;
            if !error.is_no_space() {
                return Err(error);
            }
            self.cut_drained()?;
            return Ok(0);
        }
        for id in &drained {
            if let Some(segment) = self.sealed.remove(id) {
                self.let_go(&segment)?;
            }
        }
        if !drained.is_empty() {
            self.storage.sync_dir().map_err(|error| failure("syncing", "the directory", error))?;
        }
        Ok(drained.len())
    }

    /// True when more of the file of `segment` is unused than admission allows for a sealed one.
    pub fn wastes_room(&self, segment: &Segment) -> bool {
        segment.bytes - segment.end > self.segment_bytes / 8
    }

    /// Cuts drained segments that cannot leave yet to what they hold.
    fn cut_drained(&mut self) -> Result<(), WriteError> {
        let waste_max = self.segment_bytes / 8;
        for id in &self.drained {
            let Some(segment) = self.sealed.get_mut(id).filter(|segment| segment.bytes - segment.end > waste_max)
            else {
                continue;
            };
            let before = segment.bytes;
            segment.cut(segment.end.next_multiple_of(SEGMENT_HEADER_BYTES as u64).min(before))?;
            // A length that is not synced comes back, and would break the cap.
            segment.file.sync_data().map_err(|error| failure("syncing", &segment_name(*id), error))?;
            self.files_bytes -= before - segment.bytes;
            self.space.uncharge(before - segment.bytes);
            segment.charged_bytes = segment.bytes;
        }
        Ok(())
    }

    /// Replaces the `absent` file. What is below `committed_durable` needs no record any more.
    pub fn save_absent(&mut self, committed_durable: Sequence) -> Result<(), WriteError> {
        self.absent.forget_below(committed_durable);
        self.absent.save(&*self.storage).map_err(|error| failure("writing", super::absent::ABSENT_NAME, error))
    }

    fn let_go(&mut self, segment: &Segment) -> Result<(), WriteError> {
        let name = segment_name(segment.id);
        self.files.remove(segment.id);
        if segment.is_damaged {
            // Its bytes stay charged: they are on disk until a person has looked at them.
            let quarantined = quarantined_name(segment.id);
            tracing::warn!(segment = segment.id, file = quarantined, "damaged journal segment set aside, not deleted");
            return self.storage.rename(&name, &quarantined).map_err(|error| failure("setting aside", &name, error));
        }
        if segment.bytes == self.segment_bytes && self.spares.len() < JOURNAL_SPARES_MAX {
            let spare = DirEntry { name: spare_name(segment.id), bytes: segment.bytes };
            self.storage.rename(&name, &spare.name).map_err(|error| failure("recycling", &name, error))?;
            self.spares.push(spare);
        } else {
            self.storage.remove(&name).map_err(|error| failure("removing", &name, error))?;
            self.files_bytes -= segment.bytes;
        }
        self.space.uncharge(segment.charged_bytes);
        Ok(())
    }
}
