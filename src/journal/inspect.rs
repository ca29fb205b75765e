//! What is in a journal, for a person: read-only, without the lock, beside a running server or without one.

use std::fmt;
use std::path::Path;

use super::OnRead;
use super::damage::{Damage, TornTail};
use super::disk::DiskStorage;
use super::frame::FRAME_HEADER_BYTES;
use super::recovery::OpenError;
use super::segment::FileKind;
use super::storage::{DirEntry, Storage, read_full_at};
use super::survey::{Survey, survey};
use crate::encode::block::{BLOCK_HEADER_BYTES_MAX, BlockHeader};
use crate::types::{Sequence, UnixMicros};

/// How often a journal is read again because a running server changed its files meanwhile.
const ATTEMPTS_MAX: usize = 5;

/// What [`inspect`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The segments, rising ids.
    pub segments: Vec<SegmentReport>,
    /// Files that wait to be recycled.
    pub spares: Vec<DirEntry>,
    /// Damaged segments that were put aside.
    pub quarantined: Vec<DirEntry>,
    /// Every block below is committed.
    pub committed_below: Sequence,
    /// Sequence that the next block would get.
    pub next_sequence: Sequence,
    /// Blocks that may be uncommitted: what a start would replay.
    pub uncommitted: Uncommitted,
    /// The end of the last segment, torn by a crash; beside a running server it may be a write under way.
    pub torn_tail: Option<TornTail>,
    /// Everything that is not as it was written.
    pub damage: Vec<Damage>,
}

/// Blocks that are not known to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// How many.
    pub frames: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Events in them.
    pub events: u64,
    /// Blocks whose events could not be counted (written by another version).
    pub frames_of_unknown_events: u64,
}

/// One segment of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its id.
    pub id: u64,
    /// Length of its file.
    pub bytes: u64,
    /// Bytes of header and sound frames.
    pub used_bytes: u64,
    /// When it was begun; `None` when its header is unreadable.
    pub created_at: Option<UnixMicros>,
    /// Who wrote it; empty when its header is unreadable.
    pub node_id: String,
    /// Sound blocks.
    pub blocks: u64,
    /// Marks.
    pub marks: u64,
    /// First and last sequence, when there is a block.
    pub sequences: Option<(Sequence, Sequence)>,
    /// The greatest `committed_below` in it.
    pub committed_below: Sequence,
    /// Blocks in it that are not known to be committed.
    pub uncommitted_frames: u64,
}

/// Inspects the journal in `dir`.
pub fn inspect(dir: &Path) -> Result<Report, OpenError> {
    inspect_telling(dir, &mut |_, _| {})
}

/// As [`inspect`], and tells `on_read` how far it is.
pub fn inspect_telling(dir: &Path, on_read: &mut OnRead<'_>) -> Result<Report, OpenError> {
    let storage = DiskStorage::existing(dir).map_err(|source| OpenError::Io { file: dir.to_owned(), source })?;
    inspect_again(&storage, on_read)
}

/// Inspects the journal in `storage`. Reads again, a few times at most, when files came or went meanwhile: a running
/// server may have removed a segment between two looks.
pub fn inspect_storage(storage: &dyn Storage) -> Result<Report, OpenError> {
    inspect_again(storage, &mut |_, _| {})
}

fn inspect_again(storage: &dyn Storage, on_read: &mut OnRead<'_>) -> Result<Report, OpenError> {
    let mut attempt = 1;
    loop {
        let before = segment_names(storage)?;
        let result = survey(storage, on_read);
        if attempt >= ATTEMPTS_MAX || before == segment_names(storage)? {
            return report(result?);
        }
        attempt += 1;
    }
}

fn segment_names(storage: &dyn Storage) -> Result<Vec<String>, OpenError> {
    let entries = storage.list().map_err(|error| OpenError::io(storage, "", error))?;
    let names = entries.into_iter().map(|entry| entry.name);
    let mut names: Vec<_> = names.filter(|name| matches!(FileKind::of(name), FileKind::Segment(_))).collect();
    names.sort_unstable();
    Ok(names)
}

fn report(survey: Survey) -> Result<Report, OpenError> {
    let mut uncommitted = Uncommitted::default();
    let mut header = [0; BLOCK_HEADER_BYTES_MAX];
    let mut segments: Vec<SegmentReport> = Vec::with_capacity(survey.segments.len());
    let mut locations = survey.uncommitted.iter().peekable();
    for segment in &survey.segments {
        let mut frames = 0;
        while let Some(location) = locations.next_if(|location| location.segment == segment.id) {
            frames += 1;
            uncommitted.bytes += u64::from(location.payload_bytes);
            let wanted = header.len().min(location.payload_bytes as usize);
            let at = location.offset + FRAME_HEADER_BYTES as u64;
            let read = read_full_at(&*segment.file, &mut header[..wanted], at).unwrap_or(0);
            match BlockHeader::parse(&header[..read]) {
                Ok((block, _)) => uncommitted.events += u64::from(block.events),
                Err(_) => uncommitted.frames_of_unknown_events += 1,
            }
        }
        uncommitted.frames += frames;
        let header = segment.header.as_ref().ok();
        let begun_below = header.map_or(Sequence(0), |header| header.committed_below);
        segments.push(SegmentReport {
            id: segment.id,
            bytes: segment.bytes,
            used_bytes: segment.end,
            created_at: header.map(|header| header.created_at),
            node_id: header.map_or_else(String::new, |header| header.node_id.clone()),
            blocks: segment.blocks,
            marks: segment.marks,
            sequences: segment.first.zip(segment.last),
            committed_below: segment.committed_below.max(begun_below),
            uncommitted_frames: frames,
        });
    }
    Ok(Report {
        segments,
        spares: survey.spares,
        quarantined: survey.quarantined,
        committed_below: survey.committed_below,
        next_sequence: survey.next_sequence,
        uncommitted,
        torn_tail: survey.torn_tail,
        damage: survey.damage,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>20} {:>12} {:>12} {:>8} {:>6} {:>12} {:>12} {:>15} {:>11}",
            "segment", "bytes", "used", "blocks", "marks", "first", "last", "committed below", "uncommitted"
        )?;
        for segment in &self.segments {
            let (first, last) = match segment.sequences {
                Some((first, last)) => (first.0.to_string(), last.0.to_string()),
                None => ("-".to_owned(), "-".to_owned()),
            };
            writeln!(
                f,
                "{:>20} {:>12} {:>12} {:>8} {:>6} {:>12} {:>12} {:>15} {:>11}",
                segment.id,
                segment.bytes,
                segment.used_bytes,
                segment.blocks,
                segment.marks,
                first,
                last,
                segment.committed_below.0,
                segment.uncommitted_frames
            )?;
        }
        let Uncommitted { frames, bytes, events, frames_of_unknown_events } = self.uncommitted;
        writeln!(f, "not yet committed: {frames} batches, {events} events, {bytes} bytes")?;
        if frames_of_unknown_events > 0 {
            writeln!(f, "  of these, {frames_of_unknown_events} batches hold an unknown number of events")?;
        }
        writeln!(f, "next sequence: {}", self.next_sequence.0)?;
        if !self.spares.is_empty() {
            writeln!(f, "recyclable: {} files", self.spares.len())?;
        }
        if let Some(torn) = &self.torn_tail {
            let TornTail { segment, offset, frames_torn, .. } = torn;
            let what = "are torn, or being written by a running server";
            writeln!(f, "end: segment {segment}, offset {offset}: at least {frames_torn} blocks {what}")?;
        }
        for entry in &self.quarantined {
            writeln!(f, "set aside: {} ({} bytes)", entry.name, entry.bytes)?;
        }
        for damage in &self.damage {
            writeln!(f, "damage: {damage}")?;
        }
        if self.damage.is_empty() { writeln!(f, "damage: none") } else { Ok(()) }
    }
}
