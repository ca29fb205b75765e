//! Room in the journal: admission without locks, and the figures that metrics and health show.
//!
//! A worker reserves room for a block before it puts it on its ring, so that the journal thread never meets a
//! block that does not fit. The cap is on the bytes of files, and files are made a segment at a time, so a
//! reservation is a little larger than its frame; when its segment is sealed, the file's true length replaces it.
//!
//! ```text
//!  reserved ─▶ written to the active segment ─▶ sealed: charged as the file's length ─▶ removed: free
//!  └──────── charged as charge(payload) ──────┘
//! ```
//!
//! Why files never exceed the cap, with S for the segment size:
//!
//! * A sealed segment that would waste more than S/8 is cut to its end, unless it leaves at once; any other has at
//!   least 7/8 S of frames and marks. The third that `charge` adds covers that waste; a frame larger than S/8, which alone can cause a cut,
//!   pays for the header and the rounding of both segments as well; every frame pays for the marks beside it.
//! * The unfilled rest of the active segment is at most S, and the small files (`absent`, `lock`) are below
//!   [`small_files_bytes`]; both are held back from admission.
//! * Spares use only what is left, and go first.
//!
//! Not everybody may use all of the room, [`Claim`] says who may use how much:
//!
//! ```text
//!  0                                        normal        urgent  all
//!  ├──── batches below priority 8 ────────────┤             │     │
//!  ├──── batches of priority 8 and above ───────────────────┤     │
//!  ├──── relocation, which makes room ────────────────────────────┤
//! ```
//!
//! The writer checks the same cap again where it makes a file, so a wrong sum here would be an error, not a full disk.
//!
//! All atomics here are counters and gauges: they publish no other data, so `Relaxed` is enough on both sides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::frame::{FRAME_HEADER_BYTES, framed_bytes};
use super::segment::SEGMENT_HEADER_BYTES;
use crate::limits::{JOURNAL_RELOCATION_SHARE, JOURNAL_URGENT_SHARE};
use crate::types::{PRIORITY_RESERVED_MIN, Priority, Sequence};

/// Smallest segment: below it headers and rounding weigh more than the sums above allow.
pub const SEGMENT_BYTES_FLOOR: u64 = 64 * 1024;

/// Bytes held back for the files that are no segments.
pub const fn small_files_bytes(segment_bytes: u64) -> u64 {
    let share = segment_bytes / 16;
    if share < SEGMENT_BYTES_FLOOR { SEGMENT_BYTES_FLOOR } else { share }
}

/// The smallest cap for segments of `segment_bytes`: one being filled, one being emptied, and room to admit.
pub const fn bytes_max_floor(segment_bytes: u64) -> u64 {
    3 * segment_bytes + small_files_bytes(segment_bytes)
}

/// What room is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A batch below priority 8.
    Normal,
    /// A batch of priority 8 or above: it also gets what others must leave.
    Urgent,
    /// A block that is written again so that its segment can leave: it also gets a last rest, which nobody else does, so
    /// that a full journal can still make room.
    Relocation,
}

impl Claim {
    /// That of a batch of `priority`.
    pub fn of(priority: Priority) -> Self {
        if priority >= PRIORITY_RESERVED_MIN { Self::Urgent } else { Self::Normal }
    }
}

/// Where admission ends, in charged bytes.
#[derive(Clone, Copy, Debug)]
struct Marks {
    normal: u64,
    urgent: u64,
    all: u64,
}

impl Marks {
    /// For a journal with room for `all`.
    fn of(all: u64, segment_bytes: u64) -> Self {
        let urgent = all - segment_bytes.min(all / JOURNAL_RELOCATION_SHARE);
        // A sixteenth is less than a segment in a small journal; a segment is too much of a very small one.
        let reserve = (all / JOURNAL_URGENT_SHARE).max(segment_bytes.min(all / JOURNAL_URGENT_SHARE * 2));
        Self { normal: urgent - reserve, urgent, all }
    }

    /// Where admission ends for a block that is charged `charge`. One that takes more than half of all room could hardly
    /// ever be taken below a lower mark.
    fn end_for(&self, claim: Claim, charge: u64) -> u64 {
        match claim {
            _ if charge > self.all / 2 => self.all,
            Claim::Normal => self.normal,
            Claim::Urgent => self.urgent,
            Claim::Relocation => self.all,
        }
    }
}

/// Why a reservation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// Full for now: blocks have to be committed first.
    #[error("the journal is full")]
    Full,
    /// Larger than the whole journal may be: it will never fit.
    #[error("the block is larger than the whole journal may be")]
    NeverFits,
}

/// What the journal looks like right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Bytes of all files in the directory.
    pub files_bytes: u64,
    /// The cap on `files_bytes`.
    pub bytes_max: u64,
    /// Bytes admitted and not yet free again; what admission compares with the next two.
    pub charged_bytes: u64,
    /// Where admission ends for batches below priority 8.
    pub normal_bytes_max: u64,
    /// Where admission ends for batches of priority 8 and above.
    pub urgent_bytes_max: u64,
    /// Segment files, the active one included.
    pub segments: u64,
    /// Blocks written and not committed.
    pub live_frames: u64,
    /// Bytes of their frames.
    pub live_bytes: u64,
    /// The oldest of them.
    pub oldest_uncommitted: Option<Sequence>,
    /// A write or fsync failed: nothing is acked any more.
    pub failed: bool,
}

/// Admission counter and gauges, shared by all threads.
#[derive(Debug)]
pub struct JournalSpace {
    bytes_max: u64,
    marks: Marks,
    segment_bytes: u64,
    charged_bytes: AtomicU64,
    files_bytes: AtomicU64,
    segments: AtomicU64,
    live_frames: AtomicU64,
    live_bytes: AtomicU64,
    /// 0: none.
    oldest_uncommitted: AtomicU64,
    failed: AtomicBool,
}

impl JournalSpace {
    pub(super) fn new(bytes_max: u64, segment_bytes: u64) -> Self {
        assert!(segment_bytes >= SEGMENT_BYTES_FLOOR && bytes_max >= bytes_max_floor(segment_bytes));
        let room_bytes = bytes_max - segment_bytes - small_files_bytes(segment_bytes);
        Self {
            bytes_max,
            marks: Marks::of(room_bytes, segment_bytes),
            segment_bytes,
            charged_bytes: AtomicU64::new(0),
            files_bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            live_frames: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            oldest_uncommitted: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// What a block of `payload_bytes` is charged until its segment is sealed.
    pub(super) fn charge(&self, payload_bytes: usize) -> u64 {
        let framed = framed_bytes(payload_bytes);
        let marks = 3 * FRAME_HEADER_BYTES as u64;
        let cut = if framed > self.segment_bytes / 8 { 2 * SEGMENT_HEADER_BYTES as u64 } else { 0 };
        framed + framed / 3 + marks + cut
    }

    /// What blocks of `framed_bytes` together are charged at most, `frames` of them, until their segment is sealed.
    pub(super) fn charge_of_all(&self, framed_bytes: u64, frames: u64) -> u64 {
        let marks = 3 * FRAME_HEADER_BYTES as u64 * frames;
        let cuts = frames.min(framed_bytes / (self.segment_bytes / 8)) * 2 * SEGMENT_HEADER_BYTES as u64;
        framed_bytes.saturating_add(framed_bytes / 3).saturating_add(marks + cuts)
    }

    /// Room that relocation may still use, and all of it.
    pub(super) fn room(&self) -> (u64, u64) {
        (self.marks.all.saturating_sub(self.charged_bytes.load(Relaxed)), self.marks.all)
    }

    /// Reserves room for a block of `payload_bytes`. From any thread; one atomic addition. The reservation ends with
    /// the block's segment, or by [`Self::release_reservation`] when the block does not get written.
    ///
    /// Near the cap a refusal may also be due to a larger reservation that is itself being refused at that moment.
    pub fn try_reserve(&self, payload_bytes: usize, claim: Claim) -> Result<(), SpaceError> {
        let charge = self.charge(payload_bytes);
        if charge > self.marks.all || u32::try_from(payload_bytes).is_err() {
            return Err(SpaceError::NeverFits);
        }
        let before = self.charged_bytes.fetch_add(charge, Relaxed);
        if before + charge > self.marks.end_for(claim, charge) {
            self.charged_bytes.fetch_sub(charge, Relaxed);
            return Err(SpaceError::Full);
        }
        Ok(())
    }

    /// Gives back a reservation of `payload_bytes` whose block was not written.
    pub fn release_reservation(&self, payload_bytes: usize) {
        self.uncharge(self.charge(payload_bytes));
    }

    /// The figures, each of this moment (not all of the same one).
    pub fn stats(&self) -> JournalStats {
        let oldest = self.oldest_uncommitted.load(Relaxed);
        JournalStats {
            files_bytes: self.files_bytes.load(Relaxed),
            bytes_max: self.bytes_max,
            charged_bytes: self.charged_bytes.load(Relaxed),
            normal_bytes_max: self.marks.normal,
            urgent_bytes_max: self.marks.urgent,
            segments: self.segments.load(Relaxed),
            live_frames: self.live_frames.load(Relaxed),
            live_bytes: self.live_bytes.load(Relaxed),
            oldest_uncommitted: (oldest != 0).then_some(Sequence(oldest)),
            failed: self.failed.load(Relaxed),
        }
    }

    /// Adds the length of a file that holds no reservations.
    pub(super) fn charge_file(&self, file_bytes: u64) {
        self.charged_bytes.fetch_add(file_bytes, Relaxed);
    }

    /// Frees `bytes` that were charged.
    pub(super) fn uncharge(&self, bytes: u64) {
        let before = self.charged_bytes.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "freed {bytes} of {before} charged bytes: a block was written unreserved");
    }

    /// Publishes the writer's figures.
    pub(super) fn publish(&self, figures: &Figures) {
        self.files_bytes.store(figures.files_bytes, Relaxed);
        self.segments.store(figures.segments, Relaxed);
        self.live_frames.store(figures.live_frames, Relaxed);
        self.live_bytes.store(figures.live_bytes, Relaxed);
        self.oldest_uncommitted.store(figures.oldest_uncommitted.map_or(0, |sequence| sequence.0), Relaxed);
    }

    pub(super) fn set_failed(&self) {
        self.failed.store(true, Relaxed);
    }
}

/// The writer's part of [`JournalStats`].
#[derive(Debug)]
pub(super) struct Figures {
    pub files_bytes: u64,
    pub segments: u64,
    pub live_frames: u64,
    pub live_bytes: u64,
    pub oldest_uncommitted: Option<Sequence>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn full_and_never_fitting_are_told_apart() {
        let space = JournalSpace::new(1 << 20, 64 * KIB);
        assert_eq!(space.try_reserve(1 << 20, Claim::Urgent), Err(SpaceError::NeverFits));
        assert_eq!(space.try_reserve(u32::MAX as usize + 1, Claim::Urgent), Err(SpaceError::NeverFits));
        space.try_reserve(400_000, Claim::Normal).expect("fits");
        assert_eq!(space.try_reserve(400_000, Claim::Normal), Err(SpaceError::Full));
        space.release_reservation(400_000);
        space.try_reserve(400_000, Claim::Normal).expect("fits again");
    }

    #[test]
    fn many_threads_never_reserve_more_than_there_is() {
        let space = Arc::new(JournalSpace::new(1 << 20, 64 * KIB));
        let reserved: u64 = std::thread::scope(|scope| {
            let reserve = || (0..2000).filter(|_| space.try_reserve(1000, Claim::Urgent).is_ok()).count() as u64;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(reserve)).collect();
            threads.into_iter().map(|thread| thread.join().expect("does not panic")).sum()
        });
        let stats = space.stats();
        assert_eq!(stats.charged_bytes, reserved * space.charge(1000));
        assert!(stats.charged_bytes <= stats.urgent_bytes_max);
        assert!(stats.charged_bytes + space.charge(1000) > stats.urgent_bytes_max);
    }

    #[test]
    fn what_others_fill_leaves_room_for_urgent_batches_and_those_leave_some_for_relocation() {
        let space = JournalSpace::new(1 << 20, 64 * KIB);
        let fill = |claim| (0..).take_while(|_| space.try_reserve(1000, claim).is_ok()).count();
        let taken = [Claim::Normal, Claim::Urgent, Claim::Relocation].map(fill);
        assert!(taken[0] > 10 * taken[1] && taken[1] > 40 && taken[2] > 15, "{taken:?}");
        assert_eq!([Claim::Relocation, Claim::Urgent, Claim::Normal].map(fill), [0; 3]);
    }

    #[test]
    fn the_marks_rise_and_the_reserve_is_a_segment_or_a_sixteenth() {
        for megabytes in [4, 8, 64, 4096, 1 << 24] {
            let (all, segment) = (megabytes * KIB * KIB, crate::limits::segment_bytes(megabytes * KIB * KIB));
            let room = all - segment - small_files_bytes(segment);
            let marks = Marks::of(room, segment);
            assert!(marks.normal < marks.urgent && marks.urgent < marks.all, "{marks:?}");
            assert!(marks.normal >= room * 3 / 4, "{megabytes} MB: most of it is for everybody: {marks:?}");
            let reserve = marks.urgent - marks.normal;
            assert!(reserve >= room / 16 && (reserve >= segment || reserve >= room / 8), "{megabytes} MB: {marks:?}");
        }
    }

    #[test]
    fn a_block_that_takes_half_of_the_room_is_held_to_no_mark() {
        let space = JournalSpace::new(1 << 20, 64 * KIB);
        let (_, all) = space.room();
        let payload = (all as usize - 10_000) * 3 / 4;
        assert!(space.charge(payload) > space.stats().normal_bytes_max);
        space.try_reserve(payload, Claim::Normal).expect("fits into an empty journal");
    }
}
