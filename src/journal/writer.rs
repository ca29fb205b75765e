//! The writer: appends groups of blocks, syncs them, and lets segments go whose blocks are all committed.
//!
//! One thread owns a [`Journal`]; it does nothing by itself and waits for nothing but the disk. Others hold what it
//! hands out: [`JournalSpace`] to reserve room, [`Releaser`] to report commits, [`JournalReader`] to read back.
//!
//! ```text
//!           append, mark, sync, reclaim                     any write or fsync error
//!  open ─▶ working ───────────────────────────────────────▶ failed: every later call returns the first error
//!             └─ close ─▶ closed                            (NoSpace and CapReached, before anything of the
//!                                                            group is written, do not fail the journal)
//! ```
//!
//! After a failed fsync nobody knows what is on disk, and trying again would lie (the kernel drops the dirty pages);
//! so nothing is acked from there on, and the next start finds out.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::SegQueue;

use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, FrameKind, framed_bytes};
use super::outstanding::Outstanding;
use super::reader::{JournalReader, OpenFiles};
use super::relocation::{Candidate, Occasion, Pinned, Pressure, choose};
use super::segment::{SEGMENT_HEADER_BYTES, segment_name};
use super::segments::{Beginning, MARKS_RESERVED_BYTES, SMALL_SEGMENT_BYTES, Segment, Segments, failure};
use super::space::{Figures, JournalSpace, JournalStats};
use super::storage::{SLICES_PER_WRITE_MAX, Storage, is_no_space, write_all_vectored_at};
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

/// The operation that failed for good.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {file}: {source}")]
pub struct Failure {
    /// What was tried.
    pub operation: &'static str,
    /// On which file of the journal's directory.
    pub file: String,
    /// What the system said.
    pub source: Arc<std::io::Error>,
}

/// Why a group was not accepted. Nothing of it may be acked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The device is full; the group was not begun. Later groups may succeed.
    #[error("no space on the device for a journal segment of {segment_bytes} bytes in {}: {source}", dir.display())]
    NoSpace {
        /// Length of the file that did not fit.
        segment_bytes: u64,
        /// The journal's directory.
        dir: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The cap is reached; the group was not begun. Cannot happen to blocks that hold a reservation.
    #[error("the journal has reached its limit: {files_bytes} of {bytes_max} bytes are on disk")]
    CapReached {
        /// Bytes on disk.
        files_bytes: u64,
        /// The cap.
        bytes_max: u64,
    },
    /// The journal has failed, now or earlier: it takes nothing more until it is opened again.
    #[error("the journal has failed: {0}")]
    Failed(Failure),
}

impl WriteError {
    /// True when the device, or the journal's own limit, is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::CapReached { .. } => true,
            Self::Failed(failure) => is_no_space(&failure.source),
        }
    }
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

/// What becomes of the room at the end of a segment that is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// The file is cut, if that gives back much.
    Cut,
    /// It stays: the segment leaves next, and a whole one is recycled.
    Kept,
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
    failed: Option<WriteError>,
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
            slots: Vec::new(),
            _lock: lock,
        };
        journal.reclaim()?;
        Ok(journal)
    }

    /// Appends `frames` as one group; with `sync`, returns after an fsync covered them. Pushes one location a frame
    /// to `out`, in order; on an error none. Every block must hold a reservation of [`JournalSpace`]: on success the
    /// journal takes it over, on an error it stays the caller's.
    ///
    /// One vectored write and at most one fsync, unless the group fills a segment: then what fits is written and
    /// synced, and the rest goes to the next segment.
    pub fn append_group(
        &mut self,
        frames: &[FrameToWrite<'_>],
        sync: bool,
        out: &mut Vec<Location>,
    ) -> Result<(), WriteError> {
        self.check()?;
        let before = out.len();
        let result = self.append(frames, sync, out);
        if let Err(error) = result {
            let is_begun = out.len() > before;
            out.truncate(before);
            // A group that is half on disk cannot be taken back: no later one may follow it.
            return Err(if is_begun { self.fail(error) } else { error });
        }
        self.publish();
        Ok(())
    }

    fn append(&mut self, frames: &[FrameToWrite<'_>], sync: bool, out: &mut Vec<Location>) -> Result<(), WriteError> {
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let count = self.count_that_fits(rest);
            if count == 0 {
                let alone = SEGMENT_HEADER_BYTES as u64 + framed_bytes(first.payload.len()) + MARKS_RESERVED_BYTES;
                // Whole blocks: a file that ends within one would grow when its last frame is written.
                let alone = alone.next_multiple_of(SEGMENT_HEADER_BYTES as u64);
                self.roll(self.segments.segment_bytes.max(alone), Rest::Cut)?;
                assert!(self.count_that_fits(rest) > 0, "a segment holds the frame that it was made for");
                continue;
            }
            let (now, later) = rest.split_at(count);
            self.write_blocks(now, out)?;
            rest = later;
        }
        if sync { self.sync() } else { Ok(()) }
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
        self.wrote(written, &header)?;

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
    fn wrote(&mut self, written: std::io::Result<()>, header: &FrameHeader) -> Result<(), WriteError> {
        if let Err(error) = written {
            let error = failure("writing", &segment_name(self.active.id), error);
            return Err(self.fail(error));
        }
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
        if let Err(error) = self.active.file.sync_data() {
            let error = failure("syncing", &segment_name(self.active.id), error);
            return Err(self.fail(error));
        }
        self.is_dirty = false;
        self.synced_below = self.outstanding.next();
        self.committed_durable = self.committed_durable.max(self.recorded.committed_below);
        Ok(())
    }

    /// Writes a mark when there is something new to say: for the writer's idle moments, so that a restart replays
    /// little and damage can be told from a torn tail. True when one was written. With `sync`, all that was appended
    /// and the mark survive power loss.
    ///
    /// A full segment gets no mark: the next segment's header says the same.
    pub fn mark(&mut self, sync: bool) -> Result<bool, WriteError> {
        self.check()?;
        if sync {
            self.sync()?; // before the mark, so that it can say so
        }
        let header = self.header(FrameKind::Mark);
        let news = Recorded { committed_below: header.committed_below, synced_below: header.synced_below };
        if news == self.recorded || self.active.end + FRAME_HEADER_BYTES as u64 > self.active.bytes {
            return Ok(false);
        }
        let bytes = header.encode();
        let written = write_all_vectored_at(&*self.active.file, &mut [IoSlice::new(&bytes)], self.active.end);
        self.wrote(written, &header)?;
        self.active.end += FRAME_HEADER_BYTES as u64;
        if sync {
            self.sync()?;
        }
        Ok(true)
    }

    /// Takes note of released blocks, and lets segments go that hold no outstanding block: sealed ones, and the
    /// active one when it is more than half full.
    pub fn reclaim(&mut self) -> Result<Reclaimed, WriteError> {
        let frames = self.take_releases();
        self.check()?;
        let is_used_up = self.active.end > self.active.bytes / 2;
        if self.active.outstanding == 0 && self.active.last.is_some() && is_used_up {
            match self.roll(self.segments.bytes_with_room(), Rest::Kept) {
                // Not needed now; when it is, the append says so.
                Ok(()) | Err(WriteError::NoSpace { .. } | WriteError::CapReached { .. }) => {}
                Err(failed) => return Err(failed),
            }
        }
        let retired = self.segments.retire_drained(self.committed_durable);
        let segments = retired.map_err(|error| self.fail(error))?;
        self.publish();
        Ok(Reclaimed { frames, segments })
    }

    fn take_releases(&mut self) -> u64 {
        let (mut frames, now) = (0, Instant::now());
        while let Some(location) = self.releases.pop() {
            if !self.outstanding.release(location.sequence) {
                continue;
            }
            frames += 1;
            self.live_bytes -= framed_bytes(location.payload_bytes as usize);
            if location.segment == self.active.id {
                self.active.release(&location, now);
                continue;
            }
            let segment = self.segments.sealed.get_mut(&location.segment);
            let segment = segment.expect("a segment stays while a block in it is outstanding");
            segment.release(&location, now);
            if segment.outstanding == 0 {
                self.segments.drained.push(location.segment);
            }
        }
        frames
    }

    /// True when a restart would replay blocks that are committed, as an older one is not.
    pub fn has_committed_behind(&self) -> bool {
        self.committed_behind() > 0
    }

    fn committed_behind(&self) -> u64 {
        self.outstanding.next().0 - self.outstanding.low().0 - self.outstanding.count()
    }

    /// Nothing can be relocated from `segment` at present: it counts as one from which blocks are being released.
    pub fn leave_for_now(&mut self, segment: u64) {
        if let Some(segment) = self.segments.sealed.get_mut(&segment) {
            segment.changed_at = Instant::now();
        }
    }

    /// The segment whose outstanding blocks are best written again at the journal's head, so that it can leave; `None` when
    /// none is worth it. `relocation` has the rules.
    pub fn segment_to_relocate(&self, occasion: Occasion, now: Instant) -> Option<Pinned> {
        if self.failed.is_some() {
            return None;
        }
        let space = &self.segments.space;
        let committed_behind = self.committed_behind();
        let candidate = |segment: &Segment, is_active| Candidate {
            id: segment.id,
            blocks: segment.outstanding,
            live_bytes: segment.live_bytes,
            committed: segment.blocks() - segment.outstanding,
            used_bytes: segment.end,
            charge: space.charge_of_all(segment.live_bytes, segment.outstanding),
            quiet_for: now.saturating_duration_since(segment.changed_at),
            is_active,
        };
        // Only those that would leave: a damaged one stays for a person.
        let sealed = self.segments.sealed.values().filter(|segment| !segment.is_damaged);
        let candidates = sealed.map(|segment| candidate(segment, false)).chain([candidate(&self.active, true)]);
        let (room_left, room) = space.room();
        choose(&Pressure { occasion, room_left, room, committed_behind }, candidates)
    }

    /// Seals the active segment and begins one of `bytes`. The old one is synced first, so that only the last segment
    /// ever holds blocks that no fsync covered.
    fn roll(&mut self, bytes: u64, rest: Rest) -> Result<(), WriteError> {
        if rest == Rest::Cut && self.segments.wastes_room(&self.active) {
            self.cut_active(self.active.end.next_multiple_of(SEGMENT_HEADER_BYTES as u64).min(self.active.bytes))?;
            self.is_dirty = true; // a length that is not synced comes back, and would break the cap
        }
        self.sync()?;
        let (first_sequence, committed_below) = (self.outstanding.next(), self.outstanding.low());
        let beginning = Beginning { first_sequence, committed_below };
        let segment = match self.segments.make(bytes, beginning) {
            Ok(segment) => segment,
            Err(error @ WriteError::Failed(_)) => return Err(self.fail(error)),
            Err(error) => return Err(error),
        };
        self.segments.seal(std::mem::replace(&mut self.active, segment));
        self.recorded = Recorded { committed_below, synced_below: first_sequence };
        self.committed_durable = committed_below;
        Ok(())
    }

    fn cut_active(&mut self, bytes: u64) -> Result<(), WriteError> {
        let before = self.active.bytes;
        self.active.cut(bytes).map_err(|error| self.fail(error))?;
        self.segments.files_bytes -= before - bytes;
        Ok(())
    }

    /// Closes the journal: all that was appended survives, and a last synced mark says what is committed. When all
    /// is, only one small segment without blocks stays on disk.
    pub fn close(mut self) -> Result<(), WriteError> {
        self.reclaim()?;
        if self.active.outstanding == 0 && self.active.last.is_some() {
            self.roll(SMALL_SEGMENT_BYTES, Rest::Cut)?;
            self.reclaim()?;
        } else {
            self.mark(true)?;
        }
        self.cut_active(self.active.end)?;
        while self.segments.remove_spare()? {}
        self.publish();
        Ok(())
    }

    /// The first write or fsync error, if one happened.
    pub fn failed(&self) -> Option<&WriteError> {
        self.failed.as_ref()
    }

    fn check(&self) -> Result<(), WriteError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Latches `error`, unless an earlier one is; returns the latched one. Whatever it was, it becomes
    /// [`WriteError::Failed`]. The journal thread logs it.
    fn fail(&mut self, error: WriteError) -> WriteError {
        if let Some(first) = &self.failed {
            return first.clone();
        }
        let error = match error {
            WriteError::Failed(_) => error,
            other => failure("filling", &segment_name(self.active.id), std::io::Error::other(other)),
        };
        self.segments.space.set_failed();
        self.failed = Some(error.clone());
        error
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
