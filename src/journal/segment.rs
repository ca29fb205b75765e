//! A segment file: its name, its header, and how it is filled. Pure: bytes in, bytes out, no I/O.
//!
//! ```text
//!  offset size
//!       0    8  magic            F5 "ingestJ"
//!       8    4  format version   1; a newer one is refused before anything is touched
//!      12    2  node_id_len
//!      14    2  zero
//!      16    8  segment          id, the same as in the file's name
//!      24    8  created_at       microseconds since 1970-01-01T00:00:00Z
//!      32    8  first_sequence   of the first block written to it; every earlier block was fsynced before
//!      40    8  committed_below  every block with a smaller sequence was committed when this was written
//!      48   16  zero
//!      64    …  node_id, then zeros
//!    4092    4  CRC32C of bytes 0..4092
//!    4096    …  frames, see `frame`; then whatever the file held before
//! ```
//!
//! Versions, so that nodes of two versions can follow each other on one journal:
//!
//! * A newer ingestd reads every older version. An older one refuses a newer version as a whole, before anything is
//!   touched; it never takes it for damage.
//! * So magic, version and checksum stay where they are, in this header and in a frame's. Whatever else changes, in
//!   frames, blocks or the `absent` file, raises this version too: every start begins a segment, and its header tells.
//!
//! | name | is |
//! |---|---|
//! | `00000000000000000001.journal` | segment 1; the header under this name is complete and synced |
//! | `00000000000000000001.spare` | a file to recycle, of no meaning to recovery |
//! | `00000000000000000001.quarantined` | segment 1, damaged; kept for a person to look at, never deleted here |
//! | `*.new` | a file in the making; removed at the next start |
//! | `absent` | see `absent`; `lock` is held while a server runs |

use crate::types::{Sequence, UnixMicros};

/// Bytes of a segment's header: one block, so that frames start on one.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
/// The format version this code writes, and the newest that it reads.
pub const SEGMENT_VERSION: u32 = 1;
/// Longest node id that a header holds; a longer one is cut.
pub const NODE_ID_BYTES_MAX: usize = 255;
const MAGIC: [u8; 8] = *b"\xF5ingestJ";
const NODE_ID_AT: usize = 64;
const CHECKSUM_AT: usize = SEGMENT_HEADER_BYTES - 4;

/// What a file in the journal's directory is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// The segment with this id.
    Segment(u64),
    /// A file to recycle; it was the segment with this id.
    Spare(u64),
    /// A damaged segment that was put aside.
    Quarantined(u64),
    /// A file in the making when the last process ended.
    Unfinished,
    /// Anything else.
    Other,
}

impl FileKind {
    /// The kind of the file called `name`.
    pub fn of(name: &str) -> Self {
        let Some((stem, extension)) = name.rsplit_once('.') else { return Self::Other };
        if extension == "new" {
            return Self::Unfinished;
        }
        let digits = stem.len() == 20 && stem.bytes().all(|b| b.is_ascii_digit());
        match (stem.parse(), extension) {
            (Ok(id), "journal") if digits => Self::Segment(id),
            (Ok(id), "spare") if digits => Self::Spare(id),
            (Ok(id), "quarantined") if digits => Self::Quarantined(id),
            _ => Self::Other,
        }
    }
}

/// The file name of segment `id`.
pub fn segment_name(id: u64) -> String {
    format!("{id:020}.journal")
}

/// The name under which segment `id` waits to be recycled.
pub fn spare_name(id: u64) -> String {
    format!("{id:020}.spare")
}

/// The name under which damaged segment `id` is kept.
pub fn quarantined_name(id: u64) -> String {
    format!("{id:020}.quarantined")
}

/// The name of segment `id` while it is being made.
pub fn unfinished_name(id: u64) -> String {
    format!("{id:020}.new")
}

/// `node_id` as a header holds it: cut to [`NODE_ID_BYTES_MAX`].
pub fn node_id_cut(node_id: &str) -> &str {
    &node_id[..node_id.floor_char_boundary(NODE_ID_BYTES_MAX)]
}

/// A segment's header; see the module for the meaning of each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's id.
    pub segment: u64,
    /// Who wrote it.
    pub node_id: String,
    /// When.
    pub created_at: UnixMicros,
    /// Sequence of the first block in it.
    pub first_sequence: Sequence,
    /// Every block below was committed.
    pub committed_below: Sequence,
}

/// Why bytes are not a segment header that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Too short, or all zero: nothing was ever written.
    Blank,
    /// The checksum or the magic is wrong.
    Damaged,
    /// Written by a newer ingestd.
    Newer(u32),
}

impl SegmentHeader {
    /// The header as it stands in the file.
    pub fn encode(&self) -> Box<[u8; SEGMENT_HEADER_BYTES]> {
        assert!(self.committed_below <= self.first_sequence);
        let mut bytes = Box::new([0; SEGMENT_HEADER_BYTES]);
        let node_id = node_id_cut(&self.node_id).as_bytes();
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[12..14].copy_from_slice(&(node_id.len() as u16).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.created_at.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_sequence.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.committed_below.0.to_le_bytes());
        bytes[NODE_ID_AT..NODE_ID_AT + node_id.len()].copy_from_slice(node_id);
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `file`.
    pub fn decode(file: &[u8]) -> Result<Self, HeaderFault> {
        let bytes: &[u8; SEGMENT_HEADER_BYTES] = file.first_chunk().ok_or(HeaderFault::Blank)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(HeaderFault::Blank);
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[0..8] != MAGIC || u32_at(CHECKSUM_AT) != crc32c::crc32c(&bytes[..CHECKSUM_AT]) {
            return Err(HeaderFault::Damaged);
        }
        if u32_at(8) > SEGMENT_VERSION {
            return Err(HeaderFault::Newer(u32_at(8)));
        }
        let node_id_len = usize::from(u16::from_le_bytes([bytes[12], bytes[13]]));
        let node_id = bytes[NODE_ID_AT..CHECKSUM_AT].get(..node_id_len).ok_or(HeaderFault::Damaged)?;
        let header = Self {
            segment: u64_at(16),
            node_id: String::from_utf8_lossy(node_id).into_owned(),
            created_at: UnixMicros(u64_at(24) as i64),
            first_sequence: Sequence(u64_at(32)),
            committed_below: Sequence(u64_at(40)),
        };
        if header.committed_below > header.first_sequence {
            return Err(HeaderFault::Damaged);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            segment: 12,
            node_id: "node-ä".to_owned(),
            created_at: UnixMicros(-5),
            first_sequence: Sequence(100),
            committed_below: Sequence(40),
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        assert_eq!(SegmentHeader::decode(&header().encode()[..]), Ok(header()));
        let long = SegmentHeader { node_id: "ä".repeat(200), ..header() };
        let read = SegmentHeader::decode(&long.encode()[..]).expect("decodes");
        assert_eq!(read.node_id, node_id_cut(&long.node_id));
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let whole = header().encode();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(SegmentHeader::decode(&bytes[..]), Err(HeaderFault::Damaged), "byte {at}");
        }
        assert_eq!(SegmentHeader::decode(&whole[..4095]), Err(HeaderFault::Blank));
        assert_eq!(SegmentHeader::decode(&[0; 8192]), Err(HeaderFault::Blank));
    }

    #[test]
    fn file_names_tell_their_kind() {
        assert_eq!(segment_name(1), "00000000000000000001.journal");
        assert_eq!(FileKind::of(&segment_name(u64::MAX)), FileKind::Segment(u64::MAX));
        assert_eq!(FileKind::of(&spare_name(3)), FileKind::Spare(3));
        assert_eq!(FileKind::of(&quarantined_name(3)), FileKind::Quarantined(3));
        assert_eq!(FileKind::of(&unfinished_name(3)), FileKind::Unfinished);
        for other in ["lock", "absent", "1.journal", "00000000000000000001.journal.bak", "+0000000000000000001.journal"]
        {
            assert_eq!(FileKind::of(other), FileKind::Other, "{other}");
        }
    }
}
