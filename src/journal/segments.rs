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
//! * What a failed attempt left goes before the next one; while the name of a file is in doubt, no block is appended:
//!   it might become the last segment, and hide that those before it were not synced.
//! * Whatever fails here, the segments stay as they are and it can be tried again ([`fault`]).

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use super::Location;
use super::absent::{ABSENT_NAME, Absent};
use super::fault::{self, Operation, Refusal, WriteError, is_no_space, is_shortage};
use super::frame::{FRAME_HEADER_BYTES, framed_bytes};
use super::reader::OpenFiles;
use super::segment::{
    SEGMENT_HEADER_BYTES, SegmentHeader, quarantined_name, segment_name, spare_name, unfinished_name,
};
use super::space::{JournalSpace, SEGMENT_BYTES_FLOOR, small_files_bytes};
use super::storage::{Access, DirEntry, Storage, StorageFile, write_all_vectored_at};
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
    /// Bytes of all segments (the active one included), spares, leftovers and quarantined files.
    pub files_bytes: u64,
    pub next_id: u64,
    /// What failed attempts to make a segment left.
    pub leftovers: Vec<Leftover>,
    /// Names were changed, and that was not synced.
    pub are_names_unsynced: bool,
    /// A file without blocks may have the name of a segment.
    pub is_a_name_in_doubt: bool,
}

/// A file that was to become a segment.
pub(super) struct Leftover {
    /// The names that it may have.
    names: Vec<String>,
    /// Its part of [`Segments::files_bytes`].
    bytes: u64,
}

impl Segments {
    /// Makes a segment of `bytes`; it is the caller's to fill, and survives power loss when this returns.
    pub fn make(&mut self, bytes: u64, beginning: Beginning) -> Result<Segment, WriteError> {
        self.tidy()?;
        let id = self.next_id;
        let name = segment_name(id);
        let (from, file) = self.blank(id, bytes)?;
        let header = SegmentHeader {
            segment: id,
            node_id: self.node_id.clone(),
            created_at: wall_now(),
            first_sequence: beginning.first_sequence,
            committed_below: beginning.committed_below,
        };
        let written =
            write_all_vectored_at(&*file, &mut [IoSlice::new(&header.encode()[..])], 0).and_then(|()| file.sync_data());
        if let Err(error) = written {
            self.leave(vec![from], bytes);
            return Err(fault::of(Operation::WriteHeader, &name, error));
        }
        let named = self.storage.rename(&from, &name).and_then(|()| self.storage.sync_dir());
        self.next_id += 1;
        if let Err(error) = named {
            self.is_a_name_in_doubt = true;
            self.leave(vec![from, name.clone()], bytes);
            return Err(fault::of(Operation::Name, &name, error));
        }
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

    /// A file of `bytes` for the segment `id`, a spare or a new one, and its present name.
    fn blank(&mut self, id: u64, bytes: u64) -> Result<(String, Arc<dyn StorageFile>), WriteError> {
        let spare = if bytes == self.segment_bytes { self.spares.pop() } else { None };
        if let Some(spare) = spare {
            return match self.storage.open(&spare.name, Access::Write) {
                Ok(file) => Ok((spare.name, file)),
                Err(error) => {
                    let name = spare.name.clone();
                    if is_shortage(&error) {
                        self.spares.push(spare);
                    } else {
                        self.leave(vec![spare.name], bytes); // the next attempt makes a new one
                    }
                    Err(fault::of(Operation::OpenSpare, &name, error))
                }
            };
        }
        self.find_room(bytes)?;
        let name = unfinished_name(id);
        match self.storage.create(&name, bytes) {
            Ok(file) => {
                self.files_bytes += bytes;
                Ok((name, file))
            }
            Err(error) => {
                let error = match fault::of(Operation::Create, &name, error) {
                    WriteError::Refused(Refusal::Operation(failure)) if is_no_space(&failure.source) => {
                        WriteError::Refused(Refusal::NoSpace { segment_bytes: bytes, source: failure.source })
                    }
                    other => other,
                };
                self.leave(vec![name], 0);
                Err(error)
            }
        }
    }

    /// Takes note of a file that did not become a segment, and removes it if that can be done at once.
    fn leave(&mut self, names: Vec<String>, bytes: u64) {
        self.leftovers.push(Leftover { names, bytes });
        let _ = self.tidy(); // or before the next attempt
    }

    /// Removes what failed attempts left, and makes names survive that were not synced when they were changed.
    pub fn tidy(&mut self) -> Result<(), WriteError> {
        while let Some(leftover) = self.leftovers.pop() {
            for name in &leftover.names {
                if let Err(error) = self.remove(name) {
                    self.leftovers.push(leftover);
                    return Err(error);
                }
            }
            self.files_bytes -= leftover.bytes;
            self.are_names_unsynced = true;
        }
        self.sync_names()
    }

    fn sync_names(&mut self) -> Result<(), WriteError> {
        if self.are_names_unsynced {
            self.storage.sync_dir().map_err(|error| fault::of(Operation::SyncNames, "the directory", error))?;
            self.are_names_unsynced = false;
            self.is_a_name_in_doubt = false;
        }
        Ok(())
    }

    /// Makes sure that a file of `bytes` keeps the cap; spares go first.
    fn find_room(&mut self, bytes: u64) -> Result<(), WriteError> {
        let limit = self.bytes_max - small_files_bytes(self.segment_bytes);
        while self.files_bytes + bytes > limit {
            if !self.remove_spare()? {
                let (files_bytes, bytes_max) = (self.files_bytes, self.bytes_max);
                let is_small = bytes <= SMALL_SEGMENT_BYTES;
                let full = WriteError::Refused(Refusal::CapReached { files_bytes, bytes_max });
                return if is_small { Ok(()) } else { Err(full) };
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

    /// Removes the file `name`, unless it is gone already.
    fn remove(&self, name: &str) -> Result<(), WriteError> {
        match self.storage.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault::of(Operation::Remove, name, error)),
            _ => Ok(()),
        }
    }

    /// Renames `from` to `to`; false when it is gone already.
    fn rename(&self, operation: Operation, from: &str, to: &str) -> Result<bool, WriteError> {
        match self.storage.rename(from, to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(fault::of(operation, from, error)),
        }
    }

    /// Removes a spare; false when there is none.
    pub fn remove_spare(&mut self) -> Result<bool, WriteError> {
        let Some(spare) = self.spares.pop() else { return Ok(false) };
        if let Err(error) = self.remove(&spare.name) {
            self.spares.push(spare);
            return Err(error);
        }
        self.files_bytes -= spare.bytes;
        Ok(true)
    }

    /// Cuts `segment` to `bytes`, for the sake of the room.
    pub fn cut(&mut self, segment: &mut Segment, bytes: u64) -> Result<(), WriteError> {
        let name = segment_name(segment.id);
        let failed = |error| fault::of(Operation::Cut, &name, error);
        segment.file.set_bytes(bytes).map_err(failed)?;
        self.files_bytes -= segment.bytes - bytes;
        segment.bytes = bytes;
        // A length that is not synced comes back, and would break the cap.
        segment.file.sync_data().map_err(failed)
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

    /// Lets drained segments go, as many as it can; gives how many, and what kept the others.
    /// `committed_durable`: the greatest `committed_below` that survives power loss.
    pub fn retire_drained(&mut self, committed_durable: Sequence) -> (usize, Result<(), WriteError>) {
        let mut gone = 0;
        let done = self.tidy().and_then(|()| self.retire(committed_durable, &mut gone));
        (gone, done)
    }

    fn retire(&mut self, committed_durable: Sequence, gone: &mut usize) -> Result<(), WriteError> {
        if self.drained.is_empty() {
            return Ok(());
        }
        let mut is_recorded = true;
        for segment in self.drained.iter().filter_map(|id| self.sealed.get(id)) {
            if let (Some(first), Some(last)) = (segment.first, segment.last)
                && last >= committed_durable
            {
                self.absent.insert(first, last);
                is_recorded = false;
            }
        }
        if !is_recorded {
            self.save_absent(committed_durable)?;
        }
        let spares_before = self.spares.len();
        let mut drained = std::mem::take(&mut self.drained).into_iter();
        let mut let_go = Ok(());
        for id in drained.by_ref() {
            let Some(segment) = self.sealed.remove(&id) else { continue };
            let_go = self.let_go(&segment);
            if let_go.is_err() {
                self.sealed.insert(id, segment);
                self.drained.push(id);
                break;
            }
            *gone += 1;
        }
        self.drained.extend(drained);
        self.are_names_unsynced |= *gone > 0;
        if let Err(error) = self.sync_names() {
            // Their old names may come back: they must not hold another segment then.
            let in_doubt = self.spares.split_off(spares_before);
            let leftover = |spare: DirEntry| Leftover { names: vec![spare.name], bytes: spare.bytes };
            self.leftovers.extend(in_doubt.into_iter().map(leftover));
            return Err(error);
        }
        let_go
    }

    /// Replaces the `absent` file. What is below `committed_durable` needs no record any more.
    pub fn save_absent(&mut self, committed_durable: Sequence) -> Result<(), WriteError> {
        self.absent.forget_below(committed_durable);
        self.absent.save(&*self.storage).map_err(|error| fault::of(Operation::WriteAbsent, ABSENT_NAME, error))
    }

    fn let_go(&mut self, segment: &Segment) -> Result<(), WriteError> {
        let name = segment_name(segment.id);
        if segment.is_damaged {
            let quarantined = quarantined_name(segment.id);
            let is_there = self.rename(Operation::SetAside, &name, &quarantined)?;
            tracing::warn!(segment = segment.id, file = quarantined, "damaged journal segment set aside, not deleted");
            self.files.remove(segment.id);
            if is_there {
                return Ok(()); // its bytes stay charged: they are on disk until a person has looked at them
            }
            self.files_bytes -= segment.bytes;
        } else if segment.bytes == self.segment_bytes && self.spares.len() < JOURNAL_SPARES_MAX {
            let spare = DirEntry { name: spare_name(segment.id), bytes: segment.bytes };
            if self.rename(Operation::Recycle, &name, &spare.name)? {
                self.spares.push(spare);
            } else {
                self.files_bytes -= segment.bytes;
            }
        } else {
            self.remove(&name)?;
            self.files_bytes -= segment.bytes;
        }
        self.files.remove(segment.id);
        self.space.uncharge(segment.charged_bytes);
        Ok(())
    }
}
