//! A block: one accepted batch as bytes, from the worker that encodes it to the COPY that sends it.
//!
//! ```text
//!  offset size
//!       0    2  header_len      multiple of 8; the tuples begin here
//!       2    1  version         1
//!       3    1  priority        0–10
//!       4    4  events          number of tuples
//!       8    8  received_at     microseconds since 1970-01-01T00:00:00Z
//!      16   16  body digest     XXH3-128 of the decoded body
//!      32    1  owner_len
//!      33    1  batch_id_len
//!      34    6  zero
//!      40    …  owner, batch_id, zero padding up to header_len
//!       …    …  tuples          binary COPY tuples, back to back, no COPY header or trailer
//! ```
//!
//! Integers are little-endian (the tuples inside are PostgreSQL's, big-endian). The journal stores the
//! block as it is, so the layout is part of the journal's format: change it only with `version`.

use std::sync::Arc;

use crate::types::{BATCH_ID_BYTES_MAX, BatchKey, BodyDigest, OWNER_BYTES_MAX, Priority, UnixMicros};

/// The version this code writes and reads.
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 40;
/// Longest block header: fixed part, longest owner and batch id, padding.
pub const BLOCK_HEADER_BYTES_MAX: usize = (FIXED_BYTES + OWNER_BYTES_MAX + BATCH_ID_BYTES_MAX + 7) & !7;

const _: () = assert!(BATCH_ID_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(OWNER_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(BLOCK_HEADER_BYTES_MAX <= u16::MAX as usize);

/// What a block says about its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Who sent the batch and under which id.
    pub key: BatchKey,
    /// The client's priority.
    pub priority: Priority,
    /// Number of tuples.
    pub events: u32,
    /// When the request arrived.
    pub received_at: UnixMicros,
    /// Digest of the decoded body.
    pub digest: BodyDigest,
}

/// Why bytes are not a block that this version can read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Shorter than its own header says, or a field out of range.
    #[error("malformed block header: {0}")]
    Malformed(&'static str),
    /// Written by a newer ingestd.
    #[error(
        "block format version {0} is newer than this ingestd supports (version {VERSION}); start the newer \
        ingestd"
    )]
    Newer(u8),
}

/// A batch ready for the journal and for COPY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    bytes: Vec<u8>,
    crc32c: u32,
}

/// Writes a block: [`BlockBuilder::new`], then tuples appended to [`BlockBuilder::tuples`], then
/// [`BlockBuilder::finish`].
pub struct BlockBuilder {
    bytes: Vec<u8>,
}

impl BlockBuilder {
    /// Begins a block in `buffer` (cleared first; its capacity is kept). `header.events` is set by `finish`.
    ///
    /// # Panics
    /// When owner or batch id are longer than their limits: callers validate them first.
    pub fn new(mut buffer: Vec<u8>, header: &BlockHeader) -> Self {
        let (owner, id) = (header.key.owner.as_bytes(), header.key.id.as_bytes());
        assert!(owner.len() <= OWNER_BYTES_MAX && id.len() <= BATCH_ID_BYTES_MAX);
        let header_len = (FIXED_BYTES + owner.len() + id.len()).next_multiple_of(8);
        buffer.clear();
        buffer.extend_from_slice(&(header_len as u16).to_le_bytes());
        buffer.extend_from_slice(&[VERSION, header.priority.get()]);
        buffer.extend_from_slice(&0u32.to_le_bytes());
        buffer.extend_from_slice(&header.received_at.0.to_le_bytes());
        buffer.extend_from_slice(&header.digest.0);
        buffer.extend_from_slice(&[owner.len() as u8, id.len() as u8, 0, 0, 0, 0, 0, 0]);
        debug_assert_eq!(buffer.len(), FIXED_BYTES);
        buffer.extend_from_slice(owner);
        buffer.extend_from_slice(id);
        buffer.resize(header_len, 0);
        Self { bytes: buffer }
    }

    /// Corrects the body's digest, where the body was not there at first.
    pub fn set_digest(&mut self, digest: BodyDigest) {
        self.bytes[16..32].copy_from_slice(&digest.0);
    }

    /// Where tuples are appended.
    pub fn tuples(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Seals the block: sets the number of tuples and the checksum.
    pub fn finish(mut self, events: u32) -> Block {
        self.bytes[4..8].copy_from_slice(&events.to_le_bytes());
        let crc32c = crc32c::crc32c(&self.bytes);
        Block { bytes: self.bytes, crc32c }
    }
}

impl Block {
    /// A block read back from the journal, whose frame has already verified `crc32c`.
    pub fn from_verified(bytes: Vec<u8>, crc32c: u32) -> Result<Self, BlockError> {
        BlockHeader::parse(&bytes)?;
        Ok(Self { bytes, crc32c })
    }

    /// The whole block, as the journal stores it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of memory that the block holds, which may be more than it uses.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// CRC32C of [`Self::bytes`].
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// The tuples, as COPY sends them.
    pub fn tuples(&self) -> &[u8] {
        let header_len = u16::from_le_bytes([self.bytes[0], self.bytes[1]]);
        &self.bytes[usize::from(header_len)..]
    }

    /// The buffer, for reuse.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl BlockHeader {
    /// Reads the header at the start of `block`; returns it with the offset of the first tuple.
    pub fn parse(block: &[u8]) -> Result<(Self, usize), BlockError> {
        let fixed: &[u8; FIXED_BYTES] =
            block.first_chunk().ok_or(BlockError::Malformed("shorter than its fixed part"))?;
        if fixed[2] != VERSION {
            return Err(if fixed[2] > VERSION {
                BlockError::Newer(fixed[2])
            } else {
                BlockError::Malformed("version 0")
            });
        }
        let header_len = usize::from(u16::from_le_bytes([fixed[0], fixed[1]]));
        let (owner_len, id_len) = (usize::from(fixed[32]), usize::from(fixed[33]));
        let used = FIXED_BYTES + owner_len + id_len;
        if used.next_multiple_of(8) != header_len || header_len > block.len() {
            return Err(BlockError::Malformed("header length"));
        }
        let text = |from: usize, to: usize| {
            std::str::from_utf8(&block[from..to]).map_err(|_| BlockError::Malformed("owner or batch id is not UTF-8"))
        };
        let owner = text(FIXED_BYTES, FIXED_BYTES + owner_len)?;
        let id = text(FIXED_BYTES + owner_len, used)?;
        let mut digest = [0; 16];
        digest.copy_from_slice(&fixed[16..32]);
        let header = Self {
            key: BatchKey { owner: Arc::from(owner), id: Box::from(id) },
            priority: Priority::new(fixed[3]).ok_or(BlockError::Malformed("priority above 10"))?,
            events: u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            received_at: UnixMicros(i64::from_le_bytes([
                fixed[8], fixed[9], fixed[10], fixed[11], fixed[12], fixed[13], fixed[14], fixed[15],
            ])),
            digest: BodyDigest(digest),
        };
        Ok((header, header_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(owner: &str, id: &str) -> BlockHeader {
        BlockHeader {
            key: BatchKey { owner: Arc::from(owner), id: Box::from(id) },
            priority: Priority::new(7).expect("valid"),
            events: 3,
            received_at: UnixMicros(1_790_000_000_000_001),
            digest: BodyDigest::of(b"body"),
        }
    }

    #[test]
    fn a_block_gives_back_its_header_and_tuples() {
        for (owner, id) in [("", "a"), ("key-1", "batch"), (&*"o".repeat(64), &*"b".repeat(128))] {
            let header = header(owner, id);
            let mut builder = BlockBuilder::new(Vec::new(), &header);
            builder.tuples().extend_from_slice(b"tuples");
            let block = builder.finish(3);
            assert_eq!(BlockHeader::parse(block.bytes()).expect("parses").0, header);
            assert_eq!(block.tuples(), b"tuples");
            assert_eq!(block.crc32c(), crc32c::crc32c(block.bytes()));
        }
    }

    #[test]
    fn damaged_headers_are_refused_not_misread() {
        let block = BlockBuilder::new(Vec::new(), &header("o", "id")).finish(0);
        for cut in 0..block.bytes().len() {
            assert!(BlockHeader::parse(&block.bytes()[..cut]).is_err());
        }
        let mut newer = block.bytes().to_vec();
        newer[2] = 2;
        assert_eq!(BlockHeader::parse(&newer), Err(BlockError::Newer(2)));
    }
}
