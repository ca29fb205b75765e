//! Writes blocks again that wait for long, at the journal's head, so that each costs its own bytes and not its segment's:
//! batches that cannot land, those of a shard that is away, bulk behind urgent traffic. For the journal thread.
//!
//! ```text
//!  choose a segment ─▶ copy blocks of waiting batches ─▶ append, sync ─▶ point the batches there ─▶ release the old places
//!  (journal::relocation)  (flush::relocate)                  │
//!         ▲                                                  └─ a crash from here on: recovery finds both, and keeps one
//!         └──────────────────────── pause, and groups of new batches in between
//! ```
//!
//! Invariants: an old place is released only after an fsync covers the new one. A batch that a flusher has in hand keeps
//! its place. What cannot be read, or finds no room or no file, stays where it is, and no batch is refused for it:
//! relocation never fails a journal that is not broken.

use std::sync::Arc;
use std::time::Instant;

use crate::flush::queue::FlushQueue;
use crate::flush::relocate::{BlockCopy, Move, Wanted};
use crate::journal::{
    Claim, FrameToWrite, Journal, JournalReader, JournalSpace, Location, Occasion, Pinned, ReadError, Releaser,
    WriteError,
};
use crate::limits::{
    JOURNAL_ACTIVE_RELOCATION_INTERVAL, JOURNAL_ACTIVE_RELOCATION_WAITED, JOURNAL_RELOCATED_AT_STOP_BYTES_MAX,
    JOURNAL_RELOCATED_BLOCKS_MAX, JOURNAL_RELOCATED_BYTES_MAX, JOURNAL_RELOCATION_PAUSE,
    JOURNAL_RELOCATION_PAUSE_WITHOUT_GAIN, JOURNAL_RELOCATION_POLL, JOURNAL_STOP_WAIT_MAX,
};
use crate::metrics::Metrics;
use crate::types::Sequence;

/// The journal thread's relocation.
pub struct Relocator {
    queue: Arc<FlushQueue>,
    metrics: Arc<Metrics>,
    space: Arc<JournalSpace>,
    reader: JournalReader,
    releaser: Releaser,
    /// When the next step is due, or the next look for one.
    next_at: Instant,
    /// The last step moved something: there may be more.
    is_under_way: bool,
    /// When blocks of the active segment are relocated, too.
    interval_at: Instant,
    /// That is under way: of this segment, what was there when it began.
    active: Option<(Pinned, Sequence)>,
}

/// A block with its bytes and a reservation.
struct Ready {
    from: Location,
    payload: Vec<u8>,
    crc32c: u32,
}

impl Relocator {
    /// For what waits in `queue` and is in `journal`.
    pub fn new(queue: Arc<FlushQueue>, metrics: Arc<Metrics>, journal: &Journal) -> Self {
        let now = Instant::now();
        Self {
            queue,
            metrics,
            space: journal.space(),
            reader: journal.reader(),
            releaser: journal.releaser(),
            next_at: now,
            is_under_way: false,
            interval_at: now + JOURNAL_ACTIVE_RELOCATION_INTERVAL,
            active: None,
        }
    }

    /// When a step is due although no batch comes; `None` when nothing is under way.
    pub fn due(&self) -> Option<Instant> {
        self.is_under_way.then_some(self.next_at)
    }

    /// Relocates a few blocks, when that is due at `now` and worth it.
    ///
    /// # Errors
    /// The journal has failed.
    pub fn step(&mut self, journal: &mut Journal, now: Instant) -> Result<(), WriteError> {
        if now < self.next_at {
            return Ok(());
        }
        self.next_at = now + JOURNAL_RELOCATION_POLL;
        self.is_under_way = false;
        let Some(wanted) = self.next_wanted(journal, now) else { return Ok(()) };
        let begun = Instant::now();
        if self.relocate(journal, &wanted)? > 0 {
            self.is_under_way = true;
            self.next_at = now + begun.elapsed() * (1 + JOURNAL_RELOCATION_PAUSE);
            return Ok(());
        }
        // Flushers have its batches in hand, or there is no room: another segment's turn.
        self.active = None;
        journal.leave_for_now(wanted.segment);
        self.next_at = now + JOURNAL_RELOCATION_PAUSE_WITHOUT_GAIN;
        Ok(())
    }

    /// At the end of the process, `now`: has the next one replay little more than what waits.
    ///
    /// # Errors
    /// The journal has failed.
    pub fn finish(&mut self, journal: &mut Journal, now: Instant) -> Result<(), WriteError> {
        let (below, mut bytes_left) = (journal.next_sequence(), JOURNAL_RELOCATED_AT_STOP_BYTES_MAX);
        let deadline = Instant::now() + JOURNAL_STOP_WAIT_MAX;
        journal.reclaim()?;
        while let Some(pinned) = journal.segment_to_relocate(Occasion::Stop, now) {
            let moved_bytes = self.relocate(journal, &wanted(pinned, below, now))?;
            if moved_bytes == 0 || moved_bytes >= bytes_left || Instant::now() >= deadline {
                break;
            }
            bytes_left -= moved_bytes;
            journal.reclaim()?;
        }
        Ok(())
    }

    fn next_wanted(&mut self, journal: &Journal, now: Instant) -> Option<Wanted> {
        let waited = |now: Instant| now.checked_sub(JOURNAL_ACTIVE_RELOCATION_WAITED).unwrap_or(now);
        if let Some((pinned, below)) = self.active {
            return Some(wanted(pinned, below, waited(now)));
        }
        let is_time = now >= self.interval_at;
        let occasion = if is_time { Occasion::Interval } else { Occasion::Routine };
        let pinned = journal.segment_to_relocate(occasion, now);
        if is_time && pinned.is_none_or(|pinned| pinned.is_active) {
            self.interval_at = now + JOURNAL_ACTIVE_RELOCATION_INTERVAL;
        }
        let (pinned, below) = (pinned?, journal.next_sequence());
        if !pinned.is_active {
            return Some(wanted(pinned, below, now));
        }
        // What is written again is in that segment, too: once is enough.
        self.active = Some((pinned, below));
        Some(wanted(pinned, below, waited(now)))
    }

    /// Writes blocks again that are `wanted`; gives the bytes of those that were.
    fn relocate(&mut self, journal: &mut Journal, wanted: &Wanted) -> Result<u64, WriteError> {
        let ready = self.make_ready(self.queue.copies_in(wanted));
        let mut locations = Vec::with_capacity(ready.len());
        let written = append_and_sync(journal, &ready, &mut locations);
        for unwritten in &ready[locations.len()..] {
            self.space.release_reservation(unwritten.payload.len());
        }
        written?;
        let moves: Vec<Move> = ready.iter().zip(&locations).map(|(ready, &to)| Move { from: ready.from, to }).collect();
        for location in self.queue.moved(&moves) {
            self.releaser.release(location);
        }
        let bytes = ready[..locations.len()].iter().map(|ready| ready.payload.len() as u64).sum();
        self.metrics.journal_relocated_batches.add(moves.len() as u64);
        self.metrics.journal_relocated_bytes.add(bytes);
        if !moves.is_empty() {
            tracing::debug!(segment = wanted.segment, batches = moves.len(), bytes, "waiting batches written again");
        }
        Ok(bytes)
    }

    /// Gives `copies` a reservation each, as far as there is room, and those bytes that only the journal has. What cannot
    /// be read is left out: the flusher that takes its batch says so.
    fn make_ready(&mut self, copies: Vec<BlockCopy>) -> Vec<Ready> {
        let mut ready = Vec::with_capacity(copies.len());
        for BlockCopy { from, bytes } in copies {
            let (payload, crc32c) = match bytes.map_or_else(|| self.read(&from), Ok) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::debug!(%error, "a waiting batch cannot be written again");
                    continue;
                }
            };
            if self.space.try_reserve(payload.len(), Claim::Relocation).is_err() {
                break;
            }
            ready.push(Ready { from, payload, crc32c });
        }
        ready
    }

    fn read(&mut self, from: &Location) -> Result<(Vec<u8>, u32), ReadError> {
        let mut payload = Vec::new();
        let crc32c = self.reader.read(from, &mut payload)?;
        Ok((payload, crc32c))
    }
}

/// A step's worth of what `pinned` says.
fn wanted(pinned: Pinned, below: Sequence, queued_until: Instant) -> Wanted {
    Wanted {
        segment: pinned.segment,
        blocks: pinned.blocks,
        below,
        queued_until,
        blocks_max: JOURNAL_RELOCATED_BLOCKS_MAX,
        bytes_max: JOURNAL_RELOCATED_BYTES_MAX,
    }
}

/// Appends as much of `ready` as finds room on the disk, and syncs it.
fn append_and_sync(journal: &mut Journal, ready: &[Ready], locations: &mut Vec<Location>) -> Result<(), WriteError> {
    let frames: Vec<FrameToWrite<'_>> =
        ready.iter().map(|ready| FrameToWrite { payload: &ready.payload, crc32c: ready.crc32c }).collect();
    while locations.len() < frames.len() {
        let rest = &frames[locations.len()..];
        let count = journal.count_that_fits(rest).max(1);
        match journal.append_group(&rest[..count], false, locations) {
            Ok(()) => {}
            Err(WriteError::Refused(_)) => break,
            Err(failed) => return Err(failed),
        }
    }
    journal.sync()
}
