//! One segment after the other: a new one is begun, those that are done with are let go, few blocks that hold one are
//! found, and the last is closed.

use std::time::Instant;

use super::super::fault::WriteError;
use super::super::frame::framed_bytes;
use super::super::relocation::{Candidate, Occasion, Pinned, Pressure, choose};
use super::super::segment::SEGMENT_HEADER_BYTES;
use super::super::segments::{Beginning, SMALL_SEGMENT_BYTES, Segment};
use super::{Journal, Reclaimed, Recorded};

impl Journal {
    /// Seals the active segment and begins one of `bytes`. The old one is synced first, so that only the last segment
    /// ever holds blocks that no fsync covered, and stays as it is until there is a new one.
    pub(super) fn roll(&mut self, bytes: u64) -> Result<(), WriteError> {
        self.sync()?;
        let (first_sequence, committed_below) = (self.outstanding.next(), self.outstanding.low());
        let made = self.segments.make(bytes, Beginning { first_sequence, committed_below });
        self.wants_segment = made.is_err();
        let made = self.noted(made)?;
        let mut old = std::mem::replace(&mut self.active, made);
        self.recorded = Recorded { committed_below, synced_below: first_sequence };
        self.committed_durable = committed_below;
        // One that leaves now is worth more whole: it becomes a spare.
        let is_wasteful = old.bytes - old.end > self.segments.segment_bytes / 8;
        if is_wasteful && old.outstanding > 0 {
            let end = old.end.next_multiple_of(SEGMENT_HEADER_BYTES as u64).min(old.bytes);
            let cut = self.segments.cut(&mut old, end);
            if let Err(error) = self.noted(cut) {
                tracing::warn!(%error, "a journal segment keeps more room than it needs until its batches are committed");
            }
        }
        self.segments.seal(old);
        Ok(())
    }

    /// True after the last attempt to make a segment was refused.
    pub fn wants_segment(&self) -> bool {
        self.wants_segment
    }

    /// Tries again what a group was refused for, if that is needed still: makes the next segment. For the time in which
    /// no group comes.
    ///
    /// # Errors
    /// As of [`Self::append_group`].
    pub fn retry(&mut self) -> Result<(), WriteError> {
        self.check()?;
        if self.wants_segment {
            self.roll(self.wanted_bytes)?;
            self.publish();
        }
        Ok(())
    }

    /// Takes note of released blocks, and lets segments go that hold no outstanding block: sealed ones, and the
    /// active one when it is more than half full. What keeps them is no error, see [`Self::hindrance`].
    ///
    /// # Errors
    /// The journal has failed.
    pub fn reclaim(&mut self) -> Result<Reclaimed, WriteError> {
        let frames = self.take_releases();
        self.check()?;
        let is_used_up =
            self.active.outstanding == 0 && self.active.last.is_some() && self.active.end > self.active.bytes / 2;
        // While segments cannot leave, one more would only take room.
        if is_used_up && self.hindrance.is_none() {
            match self.roll(self.segments.bytes_with_room()) {
                // Not needed now; when it is, the append says so.
                Ok(()) | Err(WriteError::Refused(_)) => {}
                Err(failed) => return Err(failed),
            }
        }
        let (segments, retired) = self.segments.retire_drained(self.committed_durable);
        self.hindrance = self.noted(retired).err();
        self.publish();
        match &self.hindrance {
            Some(error) if !error.is_passing() => Err(error.clone()),
            _ => Ok(Reclaimed { frames, segments }),
        }
    }

    /// What kept segments from being let go at the last [`Self::reclaim`], if anything: their room comes back later.
    pub fn hindrance(&self) -> Option<&WriteError> {
        self.hindrance.as_ref()
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

    /// Closes the journal: all that was appended survives, and a last synced mark says what is committed. When all
    /// is, only one small segment without blocks stays on disk.
    ///
    /// # Errors
    /// The journal has failed.
    pub fn close(mut self) -> Result<(), WriteError> {
        self.reclaim()?;
        let is_empty = self.active.outstanding == 0 && self.active.last.is_some();
        let ended = match is_empty.then(|| self.roll(SMALL_SEGMENT_BYTES)) {
            Some(Ok(())) => self.reclaim().map(drop),
            Some(Err(error)) if !error.is_passing() => Err(error),
            _ => self.mark(true).map(drop),
        };
        match ended.and_then(|()| self.shrink()) {
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "the journal keeps more room than it needs until the next start");
                Ok(())
            }
            done => done,
        }
    }

    /// Gives room back that nothing is in.
    fn shrink(&mut self) -> Result<(), WriteError> {
        let end = self.active.end;
        let cut = self.segments.cut(&mut self.active, end);
        self.noted(cut)?;
        loop {
            let removed = self.segments.remove_spare();
            if !self.noted(removed)? {
                break;
            }
        }
        self.publish();
        Ok(())
    }
}
