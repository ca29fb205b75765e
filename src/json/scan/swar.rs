//! The index computed 8 bytes at a time with plain integers: the fallback, and what the SIMD code is held to.

const ONES: u64 = 0x0101_0101_0101_0101;
const LOW_SEVEN: u64 = 0x7F * ONES;

/// One bit per byte of `block`: `"`, `\` or a control character below 0x20.
#[inline]
pub(crate) fn stops(block: &[u8; 64]) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    words.iter().rev().fold(0, |bits, &word| bits << 8 | stops_of_word(u64::from_le_bytes(word)))
}

fn stops_of_word(word: u64) -> u64 {
    let quote = zero_bytes(word ^ (u64::from(b'"') * ONES));
    let backslash = zero_bytes(word ^ (u64::from(b'\\') * ONES));
    let control = zero_bytes(word & (0xE0 * ONES));
    gather(quote | backslash | control)
}

/// 0x80 in each byte that is zero, 0 in every other (exact: no carry crosses a byte).
fn zero_bytes(word: u64) -> u64 {
    !(((word & LOW_SEVEN) + LOW_SEVEN) | word | LOW_SEVEN)
}

/// The top bits of the eight bytes as one byte: bit `i` from byte `i`.
fn gather(tops: u64) -> u64 {
    tops.wrapping_mul(0x0002_0408_1020_4081) >> 56
}

/// Fills one little-endian word per block; true when one of the bytes is not ASCII.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(crate) fn index_blocks(blocks: &[[u8; 64]], words: &mut [[u8; 8]]) -> bool {
    let mut high = 0;
    for (block, word) in blocks.iter().zip(words) {
        *word = stops(block).to_le_bytes();
        high |= block.iter().fold(0, |seen, &byte| seen | byte);
    }
    high >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_value_is_classified_at_every_place() {
        for place in 0..64 {
            for value in 0..=u8::MAX {
                for filler in [b'x', 0xFF, 0x20, 0x7F, 0x80] {
                    let mut block = [filler; 64];
                    block[place] = value;
                    let stop = value < 0x20 || value == b'"' || value == b'\\';
                    assert_eq!(stops(&block), u64::from(stop) << place, "{value:#x} at {place} among {filler:#x}");
                }
            }
        }
    }
}
