//! What is wrong with a journal, in words and numbers; `survey` finds it.

use std::fmt;

use super::frame::FrameFault;
use crate::types::Sequence;

/// A place in the journal that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment; 0 for the `absent` file.
    pub segment: u64,
    /// Byte offset in the segment's file.
    pub offset: u64,
    /// What is wrong there.
    pub kind: DamageKind,
    /// Uncommitted blocks lost there at most; 0: harmless; `None`: nothing says how many.
    pub frames_lost_max: Option<u64>,
}

/// What is wrong at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The segment's header is unreadable.
    Header,
    /// Bytes that were a frame.
    Frame(FrameFault),
    /// A sound frame, but its sequence was there before.
    SequenceRepeated(Sequence),
    /// Sound frames, but some are missing between them.
    SequenceGap,
    /// The frames end before they should.
    EndsEarly,
    /// The file does not exist; with the last id that is missing in a row.
    MissingThrough(u64),
    /// The `absent` file is unreadable: blocks that it would account for are reported as lost.
    AbsentList,
}

impl Damage {
    /// True when uncommitted blocks are, or may be, lost.
    pub fn is_harmful(&self) -> bool {
        self.frames_lost_max != Some(0)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DamageKind::AbsentList => return f.write_str("file 'absent': unreadable"),
            DamageKind::MissingThrough(last) if last == self.segment => write!(f, "segment {last}: file missing")?,
            DamageKind::MissingThrough(last) => write!(f, "segments {} to {last}: files missing", self.segment)?,
            _ => write!(f, "segment {}, offset {}: ", self.segment, self.offset)?,
        }
        match self.kind {
            DamageKind::Header => f.write_str("segment header unreadable")?,
            DamageKind::Frame(fault) => fault.fmt(f)?,
            DamageKind::SequenceRepeated(sequence) => write!(f, "sequence {} occurs twice", sequence.0)?,
            DamageKind::SequenceGap => f.write_str("frames missing")?,
            DamageKind::EndsEarly => f.write_str("frames end early")?,
            DamageKind::MissingThrough(_) | DamageKind::AbsentList => {}
        }
        match self.frames_lost_max {
            Some(0) => f.write_str(" (no uncommitted block lost)"),
            Some(count) => write!(f, " (at most {count} uncommitted blocks lost)"),
            None => f.write_str(" (number of blocks lost unknown)"),
        }
    }
}

/// The end of the last segment, torn by a crash. No block lost here was ever acked as journalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The last segment.
    pub segment: u64,
    /// Where the first torn bytes are.
    pub offset: u64,
    /// Bytes that were recognisably part of torn frames.
    pub torn_bytes: u64,
    /// Blocks known to be torn.
    pub frames_torn: u64,
    /// Blocks behind the first torn bytes that are sound, and kept.
    pub frames_salvaged: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_with_segment_and_offset() {
        let damage = Damage {
            segment: 3,
            offset: 4096,
            kind: DamageKind::Frame(FrameFault::PayloadChecksum),
            frames_lost_max: Some(2),
        };
        let text = damage.to_string();
        assert_eq!(text, "segment 3, offset 4096: payload checksum mismatch (at most 2 uncommitted blocks lost)");
        let missing = Damage { kind: DamageKind::MissingThrough(5), ..damage };
        assert_eq!(missing.to_string(), "segments 3 to 5: files missing (at most 2 uncommitted blocks lost)");
    }
}
