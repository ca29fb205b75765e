//! What is on disk, read and judged; nothing is changed. Recovery and `inspect` both begin here.
//!
//! Blocks are numbered without gaps, so loss is a question of sequences, not of bytes: a block is *accounted for*
//! when it is found, or when something that was written after it and fsynced says that it left on purpose. The walk
//! goes over all segments in order, collects the gaps, and judges each sequence of a gap by the first row that fits:
//!
//! | the missing sequence is | evidence | verdict |
//! |---|---|---|
//! | below the greatest `committed_below` | any frame or segment header | committed: no loss |
//! | in the `absent` file | written before its segment left, or by the recovery that found it torn | no loss |
//! | in the last segment, at or above the greatest `synced_below` | no fsync ever covered it | **torn tail**, unacked |
//! | anything else | | **lost**: damage, with segment and offset |
//!
//! and the bytes of a segment:
//!
//! | bytes | verdict |
//! |---|---|
//! | no frame of this segment from here to the end, nor the trace of one | the segment's end |
//! | broken, last in the last segment | torn tail |
//! | broken, anywhere else | damage; `frames_lost_max` counts the gap there, 0 when all were committed: harmless |
//! | a segment's header | damage; its frames are read all the same, they carry the segment's id |
//! | a header and all frames, and no later segment is sound | damage, number of blocks lost unknown |
//! | no header and no frame, in the last file | never finished: removed |
//! | a header that names another segment | refused: a person renamed or copied files |
//! | a format newer than this code | refused |
//!
//! Whether a later group follows broken bytes does not decide: groups may be written without an fsync between them
//! (`ack=memory`), and power loss then keeps the later and tears the earlier. What an fsync covered decides, and
//! every later frame carries it. Only the last segment can hold blocks that no fsync covered: a segment is synced
//! before the next one gets its name.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::absent::Absent;
use super::damage::{Damage, DamageKind, TornTail};
use super::frame::{Found, FrameFault, FrameKind, FrameScan};
use super::recovery::OpenError;
use super::segment::{FileKind, HeaderFault, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader, segment_name};
use super::storage::{Access, DirEntry, Storage, StorageFile, read_full_at};
use super::{Location, OnRead};
use crate::types::Sequence;

/// One segment file.
pub(super) struct SurveyedSegment {
    pub id: u64,
    pub file: Arc<dyn StorageFile>,
    pub bytes: u64,
    /// End of the last sound frame.
    pub end: u64,
    pub header: Result<SegmentHeader, HeaderFault>,
    pub blocks: u64,
    pub marks: u64,
    pub first: Option<Sequence>,
    pub last: Option<Sequence>,
    pub committed_below: Sequence,
    /// A file that never became a segment.
    pub is_blank: bool,
}

/// What is on disk.
pub(super) struct Survey {
    /// Rising ids.
    pub segments: Vec<SurveyedSegment>,
    pub spares: Vec<DirEntry>,
    pub unfinished: Vec<DirEntry>,
    pub quarantined: Vec<DirEntry>,
    pub absent: Absent,
    /// Sound blocks that may be uncommitted, rising sequences.
    pub uncommitted: Vec<Location>,
    pub committed_below: Sequence,
    pub next_sequence: Sequence,
    /// Sequences that are torn, for the `absent` file.
    pub torn: Vec<Range<u64>>,
    pub torn_tail: Option<TornTail>,
    pub damage: Vec<Damage>,
    /// Greatest id of any file, spares and quarantined ones included.
    pub segment_id_max: u64,
    /// Bytes of all segments.
    pub bytes_read: u64,
}

/// Reads all that is in `storage` and judges it. Tells `on_read` before each segment.
pub(super) fn survey(storage: &dyn Storage, on_read: &mut OnRead<'_>) -> Result<Survey, OpenError> {
    let io = |file: &str, source| OpenError::io(storage, file, source);
    let (mut ids, mut spares, mut unfinished, mut quarantined) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut segment_id_max, mut bytes_done, mut bytes_all) = (0, 0, 0);
    for entry in storage.list().map_err(|error| io("", error))? {
        match FileKind::of(&entry.name) {
            FileKind::Segment(id) => {
                ids.push(id);
                bytes_all += entry.bytes;
            }
            FileKind::Spare(_) => spares.push(entry.clone()),
            FileKind::Quarantined(_) => quarantined.push(entry.clone()),
            FileKind::Unfinished => unfinished.push(entry.clone()),
            FileKind::Other => {}
        }
        if let FileKind::Segment(id) | FileKind::Spare(id) | FileKind::Quarantined(id) = FileKind::of(&entry.name) {
            segment_id_max = segment_id_max.max(id);
        }
    }
    ids.sort_unstable();
    let absent = Absent::load(storage).map_err(|error| io(super::absent::ABSENT_NAME, error))?;

    let mut walk = Walk::new(absent.is_none());
    let mut segments = Vec::with_capacity(ids.len());
    let mut bytes = Vec::new();
    for (index, &id) in ids.iter().enumerate() {
        on_read(bytes_done, bytes_all);
        let name = segment_name(id);
        let file = storage.open(&name, Access::Read).map_err(|error| io(&name, error))?;
        read_whole(&*file, &mut bytes).map_err(|error| io(&name, error))?;
        bytes_done += bytes.len() as u64;
        let path = || storage.dir().join(&name);
        segments.push(walk.segment(id, file, &bytes, index + 1 == ids.len(), path)?);
    }
    let absent = absent.unwrap_or_default();
    let last_id = segments.iter().rev().find(|segment| !segment.is_blank).map(|segment| segment.id);
    let verdict = walk.judge(last_id, &absent);
    Ok(Survey {
        segments,
        spares,
        unfinished,
        quarantined,
        absent,
        uncommitted: verdict.uncommitted,
        committed_below: verdict.committed_below,
        next_sequence: verdict.next_sequence,
        torn: verdict.torn,
        torn_tail: verdict.torn_tail,
        damage: verdict.damage,
        segment_id_max,
        bytes_read: bytes_done,
    })
}

/// Reads all of `file` into `bytes`. Sectors that the device cannot read are damage, not an error; a file of which
/// nothing can be read is an error, because that may pass.
fn read_whole(file: &dyn StorageFile, bytes: &mut Vec<u8>) -> io::Result<()> {
    const PIECE_BYTES: usize = 4096;
    const UNREADABLE: u8 = 0xBD; // not zero: an unreadable file is not a blank one
    bytes.clear();
    bytes.resize(file.bytes()? as usize, 0);
    let error = match read_full_at(file, bytes, 0) {
        Ok(length) => {
            bytes.truncate(length);
            return Ok(());
        }
        Err(error) => error,
    };
    let mut is_any_readable = false;
    for (index, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
        match read_full_at(file, piece, (index * PIECE_BYTES) as u64) {
            Ok(_) => is_any_readable = true,
            Err(_) => piece.fill(UNREADABLE),
        }
    }
    if is_any_readable { Ok(()) } else { Err(error) }
}

/// A run of missing sequences, and the damage entry that it is blamed on.
struct Gap {
    sequences: Range<u64>,
    damage: usize,
}

/// The state of the walk over all segments.
struct Walk {
    /// Sequence that the next block should have.
    expected: u64,
    /// Above every sequence seen, sound or not.
    seen_below: u64,
    committed_below: u64,
    synced_below: u64,
    uncommitted: VecDeque<Location>,
    damage: Vec<Damage>,
    gaps: Vec<Gap>,
    /// Broken bytes that no sound frame has followed yet, by their damage entry.
    open: Option<usize>,
    /// Bytes of all broken places, by damage entry, for [`TornTail::torn_bytes`].
    broken_bytes: Vec<(usize, u64)>,
    /// The segment walked before this one, and its end.
    previous: (u64, u64),
    /// Set from a segment's begin to its first sound sequence: a gap then is the previous one's, or a missing one's.
    entering: bool,
}

struct Verdict {
    uncommitted: Vec<Location>,
    committed_below: Sequence,
    next_sequence: Sequence,
    torn: Vec<Range<u64>>,
    torn_tail: Option<TornTail>,
    damage: Vec<Damage>,
}

impl Walk {
    fn new(absent_is_damaged: bool) -> Self {
        let mut walk = Self {
            expected: 1,
            seen_below: 1,
            committed_below: 1,
            synced_below: 1,
            uncommitted: VecDeque::new(),
            damage: Vec::new(),
            gaps: Vec::new(),
            open: None,
            broken_bytes: Vec::new(),
            previous: (0, 0),
            entering: false,
        };
        if absent_is_damaged {
            walk.blame(0, 0, DamageKind::AbsentList);
        }
        walk
    }

    fn blame(&mut self, segment: u64, offset: u64, kind: DamageKind) -> usize {
        self.damage.push(Damage { segment, offset, kind, frames_lost_max: Some(0) });
        self.damage.len() - 1
    }

    /// Takes up one segment, of which `bytes` is the whole file.
    fn segment(
        &mut self,
        id: u64,
        file: Arc<dyn StorageFile>,
        bytes: &[u8],
        is_last: bool,
        path: impl Fn() -> PathBuf,
    ) -> Result<SurveyedSegment, OpenError> {
        let mut segment = SurveyedSegment {
            id,
            file,
            bytes: bytes.len() as u64,
            end: SEGMENT_HEADER_BYTES.min(bytes.len()) as u64,
            header: SegmentHeader::decode(bytes),
            blocks: 0,
            marks: 0,
            first: None,
            last: None,
            committed_below: Sequence(0),
            is_blank: false,
        };
        let mut scan = FrameScan::new(bytes, id, SEGMENT_HEADER_BYTES).peekable();
        segment.is_blank = is_last && segment.header == Err(HeaderFault::Blank) && scan.peek().is_none();
        if segment.is_blank {
            return Ok(segment);
        }
        self.entering = true;
        match &segment.header {
            Ok(header) if header.segment != id => {
                return Err(OpenError::Misnamed { file: path(), segment: header.segment });
            }
            Err(HeaderFault::Newer(version)) => {
                return Err(OpenError::Newer { file: path(), version: *version, version_max: SEGMENT_VERSION });
            }
            Ok(header) => self.header(header),
            Err(_) => drop(self.blame(id, 0, DamageKind::Header)),
        }
        let header_damage = self.damage.len().saturating_sub(1);
        for found in scan {
            self.found(&mut segment, found, &path)?;
        }
        if segment.header.is_err() && segment.blocks + segment.marks == 0 {
            // Nothing of it is sound: only a later segment can tell what was in it.
            self.open = Some(self.open.map_or(header_damage, |open| open.min(header_damage)));
        }
        self.previous = (id, segment.end);
        Ok(segment)
    }

    fn header(&mut self, header: &SegmentHeader) {
        self.note_committed(header.committed_below);
        self.synced_below = self.synced_below.max(header.first_sequence.0);
        self.reach(header.segment, 0, header.first_sequence.0);
    }

    fn found(
        &mut self,
        segment: &mut SurveyedSegment,
        found: Found<'_>,
        path: &impl Fn() -> PathBuf,
    ) -> Result<(), OpenError> {
        match found {
            Found::Frame { offset, header, .. } => {
                self.note_committed(header.committed_below);
                self.synced_below = self.synced_below.max(header.synced_below.0);
                segment.committed_below = segment.committed_below.max(header.committed_below);
                segment.end = offset + header.framed_bytes();
                let sequence = header.sequence;
                if sequence.0 < self.expected {
                    self.blame(segment.id, offset, DamageKind::SequenceRepeated(sequence));
                    return Ok(());
                }
                self.reach(segment.id, offset, sequence.0);
                match header.kind {
                    FrameKind::Mark => segment.marks += 1,
                    FrameKind::Block => {
                        self.expected = sequence.0 + 1;
                        self.seen_below = self.seen_below.max(self.expected);
                        segment.blocks += 1;
                        segment.first = segment.first.or(Some(sequence));
                        segment.last = Some(sequence);
                        if sequence.0 >= self.committed_below {
                            let payload_bytes = header.payload_bytes;
                            self.uncommitted.push_back(Location {
                                segment: segment.id,
                                offset,
                                payload_bytes,
                                sequence,
                            });
                        }
                    }
                }
            }
            Found::Broken { fault: FrameFault::Newer(version), .. } => {
                let version_max = u32::from(super::frame::FRAME_VERSION);
                return Err(OpenError::Newer { file: path(), version: version.into(), version_max });
            }
            Found::Broken { offset, bytes, fault, header } => {
                // Broken bytes in a row are one place.
                let damage = match self.open.filter(|&open| self.damage[open].segment == segment.id) {
                    Some(open) => open,
                    None => self.blame(segment.id, offset, DamageKind::Frame(fault)),
                };
                self.broken_bytes.push((damage, bytes));
                self.open = self.open.or(Some(damage));
                if let Some(header) = header.filter(|header| header.kind == FrameKind::Block) {
                    self.seen_below = self.seen_below.max(header.sequence.0 + 1);
                }
            }
        }
        Ok(())
    }

    /// Something sound says that the blocks below `sequence` were written; what is missing of them is a gap.
    fn reach(&mut self, segment: u64, offset: u64, sequence: u64) {
        let open = self.open.take();
        let entering = std::mem::take(&mut self.entering);
        if sequence <= self.expected {
            return;
        }
        let (previous, previous_end) = self.previous;
        let damage = match open {
            _ if entering && segment > previous + 1 => {
                self.blame(previous + 1, 0, DamageKind::MissingThrough(segment - 1))
            }
            Some(open) => open,
            None if entering && previous > 0 => self.blame(previous, previous_end, DamageKind::EndsEarly),
            None => self.blame(segment, offset, DamageKind::SequenceGap),
        };
        self.gaps.push(Gap { sequences: self.expected..sequence, damage });
        self.expected = sequence;
        self.seen_below = self.seen_below.max(sequence);
    }

    fn note_committed(&mut self, below: Sequence) {
        self.committed_below = self.committed_below.max(below.0);
        while self.uncommitted.front().is_some_and(|location| location.sequence.0 < self.committed_below) {
            self.uncommitted.pop_front();
        }
    }

    /// The tables of the module, applied to what the walk collected.
    fn judge(mut self, last_id: Option<u64>, absent: &Absent) -> Verdict {
        let mut all_torn = Vec::new();
        let mut torn_blame = vec![false; self.damage.len()];
        for gap in &self.gaps {
            let mut missing = subtract_all(gap.sequences.clone(), absent.ranges());
            missing = subtract(missing, &(0..self.committed_below));
            let lost = if Some(self.damage[gap.damage].segment) == last_id {
                let torn = subtract(missing.clone(), &(0..self.synced_below));
                torn_blame[gap.damage] |= !torn.is_empty();
                all_torn.extend(torn);
                subtract(missing.clone(), &(self.synced_below..u64::MAX))
            } else {
                missing.clone()
            };
            if let Some(total) = &mut self.damage[gap.damage].frames_lost_max {
                *total += count(&lost);
            }
        }
        let is_tail = |damage: &Damage| Some(damage.segment) == last_id && damage.kind != DamageKind::Header;
        let tail = self.open.filter(|&open| is_tail(&self.damage[open]));
        if let Some(open) = tail {
            // Everything broken from `open` on belongs to the tail: nothing sound follows it.
            torn_blame[open..].fill(true);
            if self.seen_below > self.expected {
                all_torn.extend(subtract_all(self.expected..self.seen_below, absent.ranges()));
            }
        }
        if let (None, Some(open)) = (tail, self.open) {
            // Whole segments are broken at the end of the journal, and nothing sound says how many blocks they had.
            self.damage[open..].iter_mut().for_each(|damage| damage.frames_lost_max = None);
        }
        let torn_tail = self.torn_tail(&torn_blame, count(&all_torn), absent);
        let next_sequence = Sequence(self.seen_below.max(absent.ranges().last().map_or(1, |range| range.end)));
        let damage = self.reportable(&torn_blame, absent);
        Verdict {
            uncommitted: self.uncommitted.into_iter().filter(|l| !absent.contains(l.sequence)).collect(),
            committed_below: Sequence(self.committed_below),
            next_sequence,
            torn: all_torn,
            torn_tail,
            damage,
        }
    }

    fn torn_tail(&self, torn_blame: &[bool], frames_torn: u64, absent: &Absent) -> Option<TornTail> {
        let first = torn_blame.iter().position(|&torn| torn)?;
        let Damage { segment, offset, .. } = self.damage[first];
        let salvaged = |location: &&Location| {
            location.segment == segment && location.offset > offset && !absent.contains(location.sequence)
        };
        let torn_bytes =
            self.broken_bytes.iter().filter(|(damage, _)| torn_blame[*damage]).map(|(_, bytes)| bytes).sum();
        let frames_salvaged = self.uncommitted.iter().filter(salvaged).count() as u64;
        Some(TornTail { segment, offset, torn_bytes, frames_torn, frames_salvaged })
    }

    /// The damage entries worth telling: not the torn tail (told apart), not gaps that are accounted for, not the
    /// holes that an earlier recovery already told of.
    fn reportable(&self, torn_blame: &[bool], absent: &Absent) -> Vec<Damage> {
        let torn_earlier = |index: usize| {
            let mut gaps = self.gaps.iter().filter(|gap| gap.damage == index).peekable();
            gaps.peek().is_some() && gaps.all(|gap| subtract_all(gap.sequences.clone(), absent.ranges()).is_empty())
        };
        let told = |(index, damage): &(usize, &Damage)| {
            damage.is_harmful()
                || match damage.kind {
                    DamageKind::Frame(_) => !torn_blame[*index] && !torn_earlier(*index),
                    DamageKind::SequenceGap | DamageKind::EndsEarly | DamageKind::MissingThrough(_) => false,
                    DamageKind::Header | DamageKind::SequenceRepeated(_) | DamageKind::AbsentList => true,
                }
        };
        self.damage.iter().enumerate().filter(told).map(|(_, damage)| damage.clone()).collect()
    }
}

/// `ranges` without `hole`.
fn subtract(ranges: Vec<Range<u64>>, hole: &Range<u64>) -> Vec<Range<u64>> {
    ranges
        .into_iter()
        .flat_map(|range| [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end])
        .filter(|range| !range.is_empty())
        .collect()
}

fn subtract_all(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    holes.iter().fold(vec![range], subtract)
}

fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_subtracted_like_sets() {
        let ranges = vec![2..5, 7..9];
        for start in 0..11 {
            for end in start..11 {
                let set = |ranges: &[Range<u64>]| -> Vec<u64> { ranges.iter().cloned().flatten().collect() };
                let expected: Vec<u64> = set(&ranges).into_iter().filter(|n| !(start..end).contains(n)).collect();
                assert_eq!(set(&subtract(ranges.clone(), &(start..end))), expected, "{start}..{end}");
            }
        }
    }
}
