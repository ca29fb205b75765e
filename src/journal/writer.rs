//! The writer: appends groups of blocks, syncs them, and lets segments go whose blocks are all committed.
//!
//! One thread owns a [`Journal`]; it does nothing by itself and waits for nothing but the disk. Others hold what it
//! hands out: [`JournalSpace`] to reserve room, [`Releaser`] to report commits, [`JournalReader`] to read back.
//!
//! ```text
//!           append, mark, sync, reclaim               an error of writing or syncing blocks
//!  open ─▶ working ────────────────────────────────────────────────▶ failed: every later call returns the first error
//!           │  └─ close ─▶ closed
//!           └─ anything else that fails, before a byte of a group is written: the group is refused, and it goes on
//! ```
//!
//! [`super::fault`] has the table. How one segment follows another is in `turnover`.

mod turnover;

use std::io::IoSlice;
use std::sync::Arc;

use crossbeam::queue::SegQueue;

use super::fault::{self, Failure, Operation, WriteError};
use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, FrameKind, framed_bytes};
use super::outstanding::Outstanding;
use super::reader::{JournalReader, OpenFiles};
use super::segment::{SEGMENT_HEADER_BYTES, segment_name};
use super::segments::{Beginning, MARKS_RESERVED_BYTES, Segment, Segments};
use super::space::{Figures, JournalSpace, JournalStats};
use super::storage::{SLICES_PER_WRITE_MAX, Storage, write_all_vectored_at};
use super::{Location, recovery};
use crate::types::Sequence;

/// A frame's header in the scratch buffer, after room for the padding of the frame before it: so header and payload
/// are two slices a frame, whatever the payload's length.
const SLOT_BYTES: usize = FRAME_ALIGN + FRAME_HEADER_BYTES;
/// Frames of one vectored write.
const FRAMES_PER_WRITE_MAX: usize = SLICES_PER_WRITE_MAX / 2;

/// A block to append.
#[derive(Clone, Copy, Debug)]
pub struct FrameToWrite<'a> {
    /// Its bytes.
    pub payload: &'a [u8],
    /// Their CRC32C, computed by whoever made them.
    pub crc32c: u32,
}

/// Reports committed blocks, from any thread; the writer takes note at its next [`Journal::reclaim`].
#[derive(Clone, Debug)]
pub struct Releaser {
    queue: Arc<SegQueue<Location>>,
}

impl Releaser {
    /// The block at `location` is committed: the journal may forget it. Lock-free. A second time is ignored.
    pub fn release(&self, location: Location) {
        self.queue.push(location);
    }
}

/// What [`Journal::reclaim`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Blocks that are no longer outstanding.
    pub frames: u64,
    /// Segments that left.
    pub segments: usize,
}

/// What the newest frame or header on disk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recorded {
    committed_below: Sequence,
    synced_below: Sequence,
}

/// The journal of this node, open for writing.
pub struct Journal {
    segments: Segments,
    active: Segment,
    outstanding: Outstanding,
    live_bytes: u64,
    releases: Arc<SegQueue<Location>>,
    /// Written to the active segment since its last sync.
    is_dirty: bool,
    synced_below: Sequence,
    recorded: Recorded,
    /// The greatest `committed_below` that survives power loss.
    committed_durable: Sequence,
    /// The first error that was final.
    failed: Option<Failure>,
    /// What keeps segments from being let go at present.
    hindrance: Option<WriteError>,
    /// Length of the segment that was to be made last, for a block that found no room.
    wanted_bytes: u64,
    /// The last attempt to make a segment was refused.
    wants_segment: bool,
    /// Scratch: headers of the frames being written.
    slots: Vec<u8>,
    _lock: Box<dyn Send + Sync>,
}

/// What recovery leaves to the writer.
pub(super) struct Recovered {
    pub segments: Segments,
    pub outstanding: Outstanding,
    pub live_bytes: u64,
    pub lock: Box<dyn Send + Sync>,
}

impl Journal {
    /// Opens the journal in `storage`: takes the lock, recovers, hands every block that may be uncommitted to
    /// `on_frame` in rising sequence, and begins a new segment. Nothing is changed on disk before `on_frame` has
    /// taken all. Blocks handed out are outstanding until they are released.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &super::JournalOptions,
        on_frame: &mut super::OnFrame<'_>,
    ) -> Result<(Self, recovery::Recovery), recovery::OpenError> {
        recovery::open(storage, options, on_frame, &mut |_, _| {})
    }

    /// As [`Self::open`], and tells `on_read` how far recovery is.
    pub fn open_telling(
        storage: Arc<dyn Storage>,
        options: &super::JournalOptions,
        on_frame: &mut super::OnFrame<'_>,
        on_read: &mut super::OnRead<'_>,
    ) -> Result<(Self, recovery::Recovery), recovery::OpenError> {
        recovery::open(storage, options, on_frame, on_read)
    }

    /// Begins the first segment after recovery.
    pub(super) fn begin(recovered: Recovered) -> Result<Self, WriteError> {
        let Recovered { mut segments, outstanding, live_bytes, lock } = recovered;
        let (committed_below, first_sequence) = (outstanding.low(), outstanding.next());
        let beginning = Beginning { first_sequence, committed_below };
        let bytes = segments.bytes_with_room();
        let active = segments.make(bytes, beginning)?;
        let wanted_bytes = segments.segment_bytes;
        let mut journal = Self {
            segments,
            active,
            outstanding,
            live_bytes,
            releases: Arc::new(SegQueue::new()),
            is_dirty: false,
            synced_below: first_sequence,
            recorded: Recorded { committed_below, synced_below: first_sequence },
            committed_durable: committed_below,
            failed: None,
            hindrance: None,
            wanted_bytes,
            wants_segment: false,
            slots: Vec::new(),
            _lock: lock,
        };
        journal.reclaim()?;
        Ok(journal)
    }

    /// Appends `frames` as one group; with `sync`, returns after an fsync covered them. Pushes one location a frame
    /// to `out`, in order. Every block must hold a reservation of [`JournalSpace`]: the journal takes over those of blocks
    /// that have a location, others stay the caller's.
    ///
    /// One vectored write and at most one fsync, unless the group fills a segment: then what fits is written and
    /// synced, and the rest goes to the next segment.
    ///
    /// # Errors
    /// [`WriteError::Refused`]: the blocks that have a location are appended as asked, of the others no byte is written.
    /// [`WriteError::Latched`]: no byte of any is. [`WriteError::Failed`]: of any block the next start may find all or
    /// nothing; none has a location.
    pub fn append_group(
        &mut self,
        frames: &[FrameToWrite<'_>],
        sync: bool,
        out: &mut Vec<Location>,
    ) -> Result<(), WriteError> {
        self.check()?;
        if self.segments.is_a_name_in_doubt {
            let tidied = self.segments.tidy();
            self.noted(tidied)?;
        }
        let (before, mut is_begun) = (out.len(), false);
        let mut appended = self.append(frames, out, &mut is_begun);
        let is_sound = appended.as_ref().err().is_none_or(WriteError::is_passing);
        if sync && is_sound && (is_begun || appended.is_ok()) {
            appended = self.sync().and(appended);
        }
        self.publish();
        match appended {
            Err(WriteError::Failed(failure)) => {
                out.truncate(before);
                Err(if is_begun { WriteError::Failed(failure) } else { WriteError::Latched(failure) })
            }
            other => other,
        }
    }

    /// `is_begun` becomes true before the first byte of `frames` is written.
    fn append(
        &mut self,
        frames: &[FrameToWrite<'_>],
        out: &mut Vec<Location>,
        is_begun: &mut bool,
    ) -> Result<(), WriteError> {
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let count = self.count_that_fits(rest);
            if count == 0 {
                let alone = SEGMENT_HEADER_BYTES as u64 + framed_bytes(first.payload.len()) + MARKS_RESERVED_BYTES;
                // Whole blocks: a file that ends within one would grow when its last frame is written.
                let alone = alone.next_multiple_of(SEGMENT_HEADER_BYTES as u64);
                self.wanted_bytes = self.segments.segment_bytes.max(alone);
                self.roll(self.wanted_bytes)?;
                assert!(self.count_that_fits(rest) > 0, "a segment holds the frame that it was made for");
                continue;
            }
            let (now, later) = rest.split_at(count);
            *is_begun = true;
            self.write_blocks(now, out)?;
            rest = later;
        }
        Ok(())
    }

    /// How many of `frames`, from the first, go into the active segment by one vectored write.
    pub fn count_that_fits(&self, frames: &[FrameToWrite<'_>]) -> usize {
        let mut end = self.active.end + MARKS_RESERVED_BYTES;
        let fits = |frame: &&FrameToWrite<'_>| {
            end += framed_bytes(frame.payload.len());
            end <= self.active.bytes
        };
        frames.iter().take(FRAMES_PER_WRITE_MAX).take_while(fits).count()
    }

    fn write_blocks(&mut self, frames: &[FrameToWrite<'_>], out: &mut Vec<Location>) -> Result<(), WriteError> {
        let first = self.outstanding.next();
        let mut header = self.header(FrameKind::Block);
        self.slots.clear();
        for frame in frames {
            header.payload_bytes = u32::try_from(frame.payload.len()).expect("reservations refuse longer blocks");
            header.payload_crc32c = frame.crc32c;
            self.slots.extend_from_slice(&[0; FRAME_ALIGN]);
            self.slots.extend_from_slice(&header.encode());
            header.sequence.0 += 1;
        }
        let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE_MAX];
        let mut padding_bytes = 0;
        for (index, (frame, slot)) in frames.iter().zip(self.slots.as_chunks::<SLOT_BYTES>().0).enumerate() {
            slices[2 * index] = IoSlice::new(&slot[FRAME_ALIGN - padding_bytes..]);
            slices[2 * index + 1] = IoSlice::new(frame.payload);
            padding_bytes = frame.payload.len().next_multiple_of(FRAME_ALIGN) - frame.payload.len();
        }
        let written = write_all_vectored_at(&*self.active.file, &mut slices[..2 * frames.len()], self.active.end);
        self.wrote(Operation::WriteBlocks, written, &header)?;

        for (frame, sequence) in frames.iter().zip(first.0..) {
            let sequence = Sequence(sequence);
            let (segment, offset) = (self.active.id, self.active.end);
            out.push(Location { segment, offset, payload_bytes: frame.payload.len() as u32, sequence });
            let framed = framed_bytes(frame.payload.len());
            self.active.end += framed;
            self.active.charged_bytes += self.segments.space.charge(frame.payload.len());
            self.active.outstanding += 1;
            self.active.live_bytes += framed;
            self.live_bytes += framed;
            self.outstanding.push(sequence);
        }
        self.active.first = self.active.first.or(Some(first));
        self.active.last = Some(Sequence(self.outstanding.next().0 - 1));
        Ok(())
    }

    /// A header of the next frame, without payload.
    fn header(&self, kind: FrameKind) -> FrameHeader {
        let next = self.outstanding.next();
        FrameHeader {
            kind,
            payload_bytes: 0,
            payload_crc32c: 0,
            segment: self.active.id,
            sequence: next,
            group_first: next,
            committed_below: self.outstanding.low(),
            synced_below: self.synced_below,
        }
    }

    /// Takes note of the outcome of writing frames that said what `header` says.
    fn wrote(
        &mut self,
        operation: Operation,
        written: std::io::Result<()>,
        header: &FrameHeader,
    ) -> Result<(), WriteError> {
        let name = segment_name(self.active.id);
        self.noted(written.map_err(|error| fault::of(operation, &name, error)))?;
        self.is_dirty = true;
        self.recorded = Recorded { committed_below: header.committed_below, synced_below: header.synced_below };
        Ok(())
    }

    /// Makes all that was appended survive power loss. Costs nothing when it already does.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        self.check()?;
        if !self.is_dirty {
            return Ok(());
        }
        let (name, synced) = (segment_name(self.active.id), self.active.file.sync_data());
        self.noted(synced.map_err(|error| fault::of(Operation::SyncBlocks, &name, error)))?;
        self.is_dirty = false;
        self.synced_below = self.outstanding.next();
        self.committed_durable = self.committed_durable.max(self.recorded.committed_below);
        Ok(())
    }

    /// Writes a mark when there is something new to say: for the writer's idle moments, so that a restart replays
    /// little and damage can be told from a torn tail. True when one was written. With `sync`, all that was appended
    /// and the mark survive power loss.
    ///
    /// A full segment gets no mark: the next segment's header says the same. Nor does one that may not be the last.
    pub fn mark(&mut self, sync: bool) -> Result<bool, WriteError> {
        self.check()?;
        if sync {
            self.sync()?; // before the mark, so that it can say so
        }
        let header = self.header(FrameKind::Mark);
        let news = Recorded { committed_below: header.committed_below, synced_below: header.synced_below };
        let is_full = self.active.end + FRAME_HEADER_BYTES as u64 > self.active.bytes;
        if news == self.recorded || is_full || self.segments.is_a_name_in_doubt {
            return Ok(false);
        }
        let bytes = header.encode();
        let written = write_all_vectored_at(&*self.active.file, &mut [IoSlice::new(&bytes)], self.active.end);
        self.wrote(Operation::WriteMark, written, &header)?;
        self.active.end += FRAME_HEADER_BYTES as u64;
        if sync {
            self.sync()?;
        }
        Ok(true)
    }

    /// The first error that was final, if one happened.
    pub fn failed(&self) -> Option<&Failure> {
        self.failed.as_ref()
    }

    fn check(&self) -> Result<(), WriteError> {
        self.failed.clone().map_or(Ok(()), |failure| Err(WriteError::Latched(failure)))
    }

    /// `done`, of which an error that is final is latched, unless an earlier one is.
    fn noted<T>(&mut self, done: Result<T, WriteError>) -> Result<T, WriteError> {
        if let Err(WriteError::Failed(failure)) = &done
            && self.failed.is_none()
        {
            self.segments.space.set_failed();
            self.failed = Some(failure.clone());
        }
        done
    }

    /// Room for blocks, and figures; shared by all threads.
    pub fn space(&self) -> Arc<JournalSpace> {
        Arc::clone(&self.segments.space)
    }

    /// Reads blocks back.
    pub fn reader(&self) -> JournalReader {
        JournalReader::new(self.files())
    }

    /// Reports committed blocks.
    pub fn releaser(&self) -> Releaser {
        Releaser { queue: Arc::clone(&self.releases) }
    }

    /// The figures of this moment.
    pub fn stats(&self) -> JournalStats {
        self.segments.space.stats()
    }

    /// Sequence that the next block will get.
    pub fn next_sequence(&self) -> Sequence {
        self.outstanding.next()
    }

    /// Blocks of lower sequences survive power loss.
    pub fn synced_below(&self) -> Sequence {
        self.synced_below
    }

    fn files(&self) -> Arc<OpenFiles> {
        Arc::clone(&self.segments.files)
    }

    fn publish(&self) {
        let count = self.outstanding.count();
        self.segments.space.publish(&Figures {
            files_bytes: self.segments.files_bytes,
            segments: self.segments.sealed.len() as u64 + 1,
            live_frames: count,
            live_bytes: self.live_bytes,
            oldest_uncommitted: (count > 0).then(|| self.outstanding.low()),
        });
    }
}
