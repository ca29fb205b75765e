//! A buffer as `O_DIRECT` wants it.

use crate::limits::{DIRECT_BLOCK_BYTES as BLOCK_BYTES, DIRECT_IO_BYTES_MAX};

/// [`DIRECT_IO_BYTES_MAX`] bytes at an address that is a multiple of [`BLOCK_BYTES`]; allocated on first use.
#[derive(Default)]
pub(super) struct Aligned {
    memory: Vec<u8>,
    pub(super) from: usize,
}

impl Aligned {
    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        if self.memory.is_empty() {
            self.memory = vec![0; DIRECT_IO_BYTES_MAX + BLOCK_BYTES];
            self.from = self.memory.as_ptr().align_offset(BLOCK_BYTES);
        }
        &mut self.memory[self.from..self.from + DIRECT_IO_BYTES_MAX]
    }
}

/// True when `bytes` at `offset` of a file may be read or written past the page cache.
pub(super) fn is_aligned(bytes: &[u8], offset: u64) -> bool {
    bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES)
        && bytes.len().is_multiple_of(BLOCK_BYTES)
        && offset.is_multiple_of(BLOCK_BYTES as u64)
}
