//! The first step: one bit for each byte at which a string may end, and the body's UTF-8.

use super::{simd, swar};
use crate::json::scan::walk::{SyntaxFault, SyntaxKind};

/// Bytes that [`next`] reads at once.
const WINDOW_BYTES: usize = size_of::<u64>();

/// The index of one body: bit `i % 8` of byte `i / 8` is set when byte `i` of the body is `"`, `\` or below 0x20.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stops {
    /// A word per block of 64, little-endian whatever the CPU, then a word for the tail and one of zeros.
    bits: Vec<u8>,
}

impl Stops {
    /// Indexes `body`, and checks on the way that it is UTF-8; a body of pure ASCII is known by then and costs
    /// nothing more.
    ///
    /// # Errors
    /// The offset of the first byte that is not UTF-8.
    pub fn build(&mut self, body: &[u8]) -> Result<(), SyntaxFault> {
        let (blocks, tail) = body.as_chunks::<64>();
        self.bits.resize((blocks.len() + 2) * WINDOW_BYTES, 0);
        let (words, _) = self.bits.as_chunks_mut::<WINDOW_BYTES>();
        let (words, last) = words.split_at_mut(blocks.len());
        let high = simd::index_blocks(blocks, words);
        // Spaces stop nothing: the tail is indexed as a block filled up with them.
        let mut padded = [b' '; 64];
        padded[..tail.len()].copy_from_slice(tail);
        last[0] = swar::stops(&padded).to_le_bytes();
        last[1] = [0; WINDOW_BYTES];
        if high || !tail.is_ascii() { validate_utf8(body) } else { Ok(()) }
    }

    /// The index as the walker reads it.
    pub fn bits(&self) -> &[u8] {
        &self.bits
    }
}

/// The first stop at or after `pos`, which is at most the body's length, if it is within 57 bytes.
///
/// The window that it looks into begins at `pos`, not at a word of the index: whether a string crosses words does not
/// matter, and so costs no mispredicted branch.
#[inline(always)]
pub(crate) fn next(bits: &[u8], pos: usize) -> Option<usize> {
    let window = u64::from_le_bytes(*bits[pos / 8..].first_chunk()?) >> (pos % 8);
    (window != 0).then(|| pos + window.trailing_zeros() as usize)
}

/// The first stop at or after `pos`, `body_bytes` when there is none: for when [`next`] finds none.
#[inline(never)]
pub(crate) fn next_far(bits: &[u8], pos: usize, body_bytes: usize) -> usize {
    let (words, _) = bits.as_chunks::<WINDOW_BYTES>();
    let mut mask = !0 << (pos % 64);
    for (index, &word) in words.iter().enumerate().skip(pos / 64) {
        let word = u64::from_le_bytes(word) & mask;
        if word != 0 {
            return index * 64 + word.trailing_zeros() as usize;
        }
        mask = !0;
    }
    body_bytes
}

fn validate_utf8(body: &[u8]) -> Result<(), SyntaxFault> {
    if simdutf8::basic::from_utf8(body).is_ok() {
        return Ok(());
    }
    // Cold: `basic` is the faster one, but only `compat` says where.
    match simdutf8::compat::from_utf8(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(SyntaxFault::new(error.valid_up_to(), SyntaxKind::Utf8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(stops: &Stops, pos: usize, body_bytes: usize) -> usize {
        let far = next_far(stops.bits(), pos, body_bytes);
        if let Some(near) = super::next(stops.bits(), pos) {
            assert_eq!(near, far);
        }
        far
    }

    #[test]
    fn the_next_stop_is_found_from_anywhere_at_any_length() {
        let mut stops = Stops::default();
        for bytes in 0..300 {
            // Runs without a stop that are longer than a window, and than a word.
            let body: Vec<u8> =
                (0..bytes).map(|i| if i % 150 < 20 { b"\"a\\ \n\x1f\x20{"[i % 8] } else { b'x' }).collect();
            stops.build(&body).expect("ASCII is UTF-8");
            for from in 0..=bytes {
                let is_stop = |&at: &usize| body[at] < 0x20 || body[at] == b'"' || body[at] == b'\\';
                assert_eq!(
                    next(&stops, from, bytes),
                    (from..bytes).find(is_stop).unwrap_or(bytes),
                    "from {from} of {bytes}"
                );
            }
        }
    }

    #[test]
    fn a_shorter_body_sees_nothing_of_a_longer_one_before_it() {
        let mut stops = Stops::default();
        stops.build(&[b'"'; 1000]).expect("ASCII is UTF-8");
        for bytes in (0..200).rev() {
            stops.build(&vec![b'x'; bytes]).expect("ASCII is UTF-8");
            assert_eq!(next(&stops, 0, bytes), bytes);
        }
    }

    #[test]
    fn the_first_byte_that_is_not_utf8_is_named() {
        for at in [0, 1, 63, 64, 65, 127, 128, 300] {
            for bad in [&b"\xff"[..], b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"] {
                let mut body = vec![b'x'; at];
                body.extend_from_slice(bad);
                body.extend_from_slice(&[b'x'; 70]);
                assert_eq!(Stops::default().build(&body), Err(SyntaxFault::new(at, SyntaxKind::Utf8)));
            }
        }
    }
}
