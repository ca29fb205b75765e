//! A frame: one payload in a segment, or a mark without one. Pure: bytes in, bytes out, no I/O.
//!
//! ```text
//!  offset size
//!       0    4  magic            F5 'i' 'J' FF
//!       4    1  version          1
//!       5    1  kind             1 block, 2 mark
//!       6    2  zero
//!       8    4  payload_bytes
//!      12    4  payload_crc32c   CRC32C of the payload, 0 for a mark
//!      16    8  segment          id of the segment: what an earlier life of a recycled file left never validates
//!      24    8  sequence         block: its own; mark: the one that the next block will get
//!      32    8  group_first      sequence of the first frame written in the same group
//!      40    8  committed_below  every block with a smaller sequence is committed in PostgreSQL
//!      48    8  synced_below     every block with a smaller sequence was on disk, fsynced, when this was written
//!      56    4  zero
//!      60    4  header_crc32c    CRC32C of bytes 0..60
//!      64    …  payload, then up to 7 bytes of padding that nobody reads
//! ```
//!
//! Integers are little-endian, a frame starts at a multiple of 8. The header has a checksum of its own, so that
//! its length can be trusted when its payload cannot: a broken payload is stepped over, not searched.
//!
//! Where a header is broken, the next frame is searched through bytes that clients chose. They cannot plant one
//! there: `F5` and `FF` occur in no UTF-8 text, and the text is all that a client chooses.
//!
//! A mark takes no sequence: losing one loses nothing but what it says.

use crate::types::Sequence;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Frames start at multiples of this.
pub const FRAME_ALIGN: usize = 8;
/// The version this code writes, and the newest that it reads.
pub const FRAME_VERSION: u8 = 1;
/// What a frame begins with.
pub const MAGIC: [u8; 4] = [0xF5, b'i', b'J', 0xFF];

/// Bytes that a frame with `payload_bytes` of payload takes in a segment.
pub const fn framed_bytes(payload_bytes: usize) -> u64 {
    (FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(FRAME_ALIGN) as u64
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A payload: a batch, encoded.
    Block,
    /// No payload; written for `committed_below` and `synced_below` when nothing else is.
    Mark,
}

/// A frame's header; see the module for the meaning of each field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Block or mark.
    pub kind: FrameKind,
    /// Length of the payload, without padding.
    pub payload_bytes: u32,
    /// CRC32C of the payload, given by whoever made it.
    pub payload_crc32c: u32,
    /// The segment that the frame was written to.
    pub segment: u64,
    /// The block's number; for a mark that of the next block.
    pub sequence: Sequence,
    /// Sequence of the first frame written in the same group.
    pub group_first: Sequence,
    /// Every block below was committed when this was written.
    pub committed_below: Sequence,
    /// Every block below was fsynced when this was written.
    pub synced_below: Sequence,
}

/// Why bytes are not a frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// No frame begins here.
    #[error("no frame header")]
    NotAFrame,
    /// The bytes end inside the frame.
    #[error("cut short")]
    CutShort,
    /// The header's checksum does not match.
    #[error("header checksum mismatch")]
    HeaderChecksum,
    /// A sound frame of another segment: the file's earlier life.
    #[error("frame of segment {0}")]
    OtherSegment(u64),
    /// The payload's checksum does not match.
    #[error("payload checksum mismatch")]
    PayloadChecksum,
    /// The checksum is right and the content is not: written by something else than this code.
    #[error("malformed header: {0}")]
    Malformed(&'static str),
    /// Written by a newer ingestd.
    #[error("frame format version {0} is newer than {FRAME_VERSION}, the newest this ingestd reads")]
    Newer(u8),
}

fn u32_at(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl FrameHeader {
    /// The header as it stands in the segment.
    ///
    /// # Panics
    /// When the marks contradict the sequence: nothing may claim to be committed or synced before it is written.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        assert!(self.group_first <= self.sequence && self.synced_below <= self.group_first);
        assert!(self.committed_below <= self.group_first);
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = FRAME_VERSION;
        bytes[5] = match self.kind {
            FrameKind::Block => 1,
            FrameKind::Mark => 2,
        };
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_crc32c.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.group_first.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.committed_below.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.synced_below.0.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header that should belong to `segment`.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], segment: u64) -> Result<Self, FrameFault> {
        if bytes[0..4] != MAGIC {
            return Err(FrameFault::NotAFrame);
        }
        if u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(FrameFault::HeaderChecksum);
        }
        if u64_at(bytes, 16) != segment {
            return Err(FrameFault::OtherSegment(u64_at(bytes, 16)));
        }
        if bytes[4] > FRAME_VERSION {
            return Err(FrameFault::Newer(bytes[4]));
        }
        let kind = match bytes[5] {
            1 => FrameKind::Block,
            2 => FrameKind::Mark,
            _ => return Err(FrameFault::Malformed("kind")),
        };
        let header = Self {
            kind,
            payload_bytes: u32_at(bytes, 8),
            payload_crc32c: u32_at(bytes, 12),
            segment,
            sequence: Sequence(u64_at(bytes, 24)),
            group_first: Sequence(u64_at(bytes, 32)),
            committed_below: Sequence(u64_at(bytes, 40)),
            synced_below: Sequence(u64_at(bytes, 48)),
        };
        if header.group_first > header.sequence || header.synced_below.max(header.committed_below) > header.group_first
        {
            return Err(FrameFault::Malformed("marks above the sequence"));
        }
        if kind == FrameKind::Mark && header.payload_bytes != 0 {
            return Err(FrameFault::Malformed("a mark with a payload"));
        }
        Ok(header)
    }

    /// Bytes of the frame, header and padding included.
    pub const fn framed_bytes(&self) -> u64 {
        framed_bytes(self.payload_bytes as usize)
    }
}

/// What [`FrameScan`] meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A sound frame.
    Frame {
        /// Where its header begins.
        offset: u64,
        /// Its header.
        header: FrameHeader,
        /// Its payload, checksum verified.
        payload: &'a [u8],
    },
    /// Bytes where a frame was, or should be.
    Broken {
        /// Where they begin.
        offset: u64,
        /// Bytes from there to the next frame; where none follows, as many as are known to have been a frame's.
        bytes: u64,
        /// What is wrong with them.
        fault: FrameFault,
        /// The header, when only the payload is broken.
        header: Option<FrameHeader>,
    },
}

/// Walks the frames of one segment, over damage too. The walk ends where nothing is left that was a frame of this
/// segment: zeros of a preallocated file or frames of a recycled one's earlier life are no damage.
#[derive(Debug)]
pub struct FrameScan<'a> {
    bytes: &'a [u8],
    segment: u64,
    offset: usize,
}

impl<'a> FrameScan<'a> {
    /// A walk over `bytes`, a whole segment file, whose first frame is at `offset`.
    pub fn new(bytes: &'a [u8], segment: u64, offset: usize) -> Self {
        debug_assert!(offset.is_multiple_of(FRAME_ALIGN));
        Self { bytes, segment, offset }
    }

    fn header_at(&self, offset: usize) -> Result<FrameHeader, FrameFault> {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let header = rest.first_chunk().ok_or(FrameFault::CutShort)?;
        FrameHeader::decode(header, self.segment)
    }

    /// The next place, `from` or later, where a header of this segment is sound.
    fn next_header(&self, from: usize) -> Option<usize> {
        (from..self.bytes.len().saturating_sub(FRAME_HEADER_BYTES - 1))
            .step_by(FRAME_ALIGN)
            .filter(|&at| self.bytes[at..at + 4] == MAGIC)
            .find(|&at| matches!(self.header_at(at), Ok(_) | Err(FrameFault::Newer(_))))
    }

    /// True when the unreadable header at `offset` was one of this segment: its magic or its segment id is there.
    /// A sound header of another segment is not (the file's earlier life).
    fn was_a_frame(&self, offset: usize, fault: FrameFault) -> bool {
        let rest = &self.bytes[offset.min(self.bytes.len())..];
        let segment = self.segment.to_le_bytes();
        !matches!(fault, FrameFault::OtherSegment(_))
            && (rest.starts_with(&MAGIC) || rest.get(16..24).is_some_and(|id| id == segment))
    }

    fn broken_header(&mut self, fault: FrameFault) -> Option<Found<'a>> {
        let offset = self.offset;
        let next = self.next_header(offset + FRAME_ALIGN);
        self.offset = next.unwrap_or(self.bytes.len());
        let bytes = match next {
            Some(next) => next - offset,
            None if self.was_a_frame(offset, fault) => FRAME_HEADER_BYTES.min(self.bytes.len() - offset),
            None => return None,
        };
        Some(Found::Broken { offset: offset as u64, bytes: bytes as u64, fault, header: None })
    }
}

impl<'a> Iterator for FrameScan<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        let offset = self.offset;
        if offset >= self.bytes.len() {
            return None;
        }
        let header = match self.header_at(offset) {
            Ok(header) => header,
            Err(fault) => return self.broken_header(fault),
        };
        let payload_at = offset + FRAME_HEADER_BYTES;
        let framed = header.framed_bytes() as usize;
        self.offset = offset.saturating_add(framed).min(self.bytes.len());
        let fault = match self.bytes.get(payload_at..payload_at + header.payload_bytes as usize) {
            Some(payload) if crc32c::crc32c(payload) == header.payload_crc32c => {
                return Some(Found::Frame { offset: offset as u64, header, payload });
            }
            Some(_) => FrameFault::PayloadChecksum,
            None => FrameFault::CutShort,
        };
        let bytes = (self.offset - offset) as u64;
        Some(Found::Broken { offset: offset as u64, bytes, fault, header: Some(header) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: u64 = 7;

    fn header(sequence: u64, payload: &[u8]) -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Block,
            payload_bytes: payload.len() as u32,
            payload_crc32c: crc32c::crc32c(payload),
            segment: SEGMENT,
            sequence: Sequence(sequence),
            group_first: Sequence(sequence),
            committed_below: Sequence(1),
            synced_below: Sequence(sequence),
        }
    }

    fn segment_of(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            bytes.extend_from_slice(&header(index as u64 + 1, payload).encode());
            bytes.extend_from_slice(payload);
            bytes.resize(bytes.len().next_multiple_of(FRAME_ALIGN), 0);
        }
        bytes
    }

    fn sound(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        FrameScan::new(bytes, SEGMENT, 0)
            .filter_map(|found| match found {
                Found::Frame { header, payload, .. } => Some((header.sequence.0, payload.to_vec())),
                Found::Broken { .. } => None,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_were_written(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
            unused in 0usize..200,
        ) {
            let mut bytes = segment_of(&payloads);
            bytes.resize(bytes.len() + unused, 0);
            let expected: Vec<_> = payloads.into_iter().enumerate().map(|(i, p)| (i as u64 + 1, p)).collect();
            prop_assert_eq!(sound(&bytes), expected);
        }

        #[test]
        fn a_header_comes_back_as_it_was_written(
            payload_bytes: u32, payload_crc32c: u32, segment: u64, sequence: u64, a: u64, b: u64, c: u64,
        ) {
            let group_first = a.min(sequence);
            let header = FrameHeader {
                kind: FrameKind::Block, payload_bytes, payload_crc32c, segment,
                sequence: Sequence(sequence),
                group_first: Sequence(group_first),
                committed_below: Sequence(b.min(group_first)),
                synced_below: Sequence(c.min(group_first)),
            };
            prop_assert_eq!(FrameHeader::decode(&header.encode(), segment), Ok(header));
        }
    }

    #[test]
    fn any_flipped_byte_breaks_one_frame_and_no_other() {
        let payloads = [vec![b'a'; 20], vec![b'b'; 33], vec![b'c'; 8]];
        let whole = segment_of(&payloads);
        let padding = |at: usize| (84..88).contains(&at) || (88 + 64 + 33..88 + 104).contains(&at);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let broken = FrameScan::new(&bytes, SEGMENT, 0).filter(|f| matches!(f, Found::Broken { .. })).count();
            let expected = usize::from(!padding(at));
            assert_eq!((broken, sound(&bytes).len()), (expected, 3 - expected), "byte {at}");
        }
    }

    #[test]
    fn cut_at_any_length_the_whole_frames_remain() {
        let payloads = [vec![b'a'; 20], vec![b'b'; 33]];
        let whole = segment_of(&payloads);
        for length in 0..whole.len() {
            let expected = usize::from(length >= 64 + 20) + usize::from(length >= 88 + 64 + 33);
            assert_eq!(sound(&whole[..length]).len(), expected, "length {length}");
        }
    }

    #[test]
    fn frames_of_another_segment_are_the_end_not_damage() {
        let mut bytes = segment_of(&[vec![1; 40]]);
        let mut stale = header(9, b"stale");
        stale.segment = 3;
        bytes.extend_from_slice(&stale.encode());
        bytes.extend_from_slice(b"stale garbage");
        assert_eq!(FrameScan::new(&bytes, SEGMENT, 0).count(), 1);
    }

    #[test]
    fn a_newer_frame_is_told_from_a_broken_one() {
        let mut bytes = header(1, b"").encode();
        bytes[4] = FRAME_VERSION + 1;
        assert_eq!(FrameHeader::decode(&bytes, SEGMENT), Err(FrameFault::HeaderChecksum));
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes, SEGMENT), Err(FrameFault::Newer(2)));
    }
}
