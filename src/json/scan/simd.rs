//! The index computed with wide registers: on x86-64 AVX2 where the CPU has it, else SSE2, which every x86-64 has; on
//! 64-bit ARM NEON.
//!
//! The only unsafe code of the JSON station: unaligned loads from a `&[u8; 64]`, and calls of functions compiled
//! for features that the CPU is known to have. Other architectures, and big-endian ARM, use [`super::swar`].

#![allow(unsafe_code)]

/// Fills one word per block, as [`super::swar::index_blocks`] does, with the widest registers at hand.
pub(crate) fn index_blocks(blocks: &[[u8; 64]], words: &mut [[u8; 8]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has just been found to have AVX2, the only feature that the function is compiled for.
            return unsafe { x86::index_blocks_avx2(blocks, words) };
        }
        // SAFETY: SSE2 is part of every x86-64 CPU.
        unsafe { x86::index_blocks_sse2(blocks, words) }
    }
    // Nothing is asked at run time where the target promises NEON, as every aarch64 target with an OS does.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the CPU is known to have NEON, the only feature that the function is compiled for.
        return unsafe { aarch64::index_blocks_neon(blocks, words) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    super::swar::index_blocks(blocks, words)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn index_blocks_avx2(blocks: &[[u8; 64]], words: &mut [[u8; 8]]) -> bool {
        let mut seen = _mm256_setzero_si256();
        for (block, word) in blocks.iter().zip(words) {
            let (halves, _) = block.as_chunks::<32>();
            // SAFETY: `halves[0]` is 32 readable bytes and the load asks for no alignment.
            let low = unsafe { _mm256_loadu_si256(halves[0].as_ptr().cast()) };
            // SAFETY: as above, for `halves[1]`.
            let high = unsafe { _mm256_loadu_si256(halves[1].as_ptr().cast()) };
            seen = _mm256_or_si256(seen, _mm256_or_si256(low, high));
            *word = (u64::from(stops_avx2(low)) | u64::from(stops_avx2(high)) << 32).to_le_bytes();
        }
        _mm256_movemask_epi8(seen) != 0
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn stops_avx2(bytes: __m256i) -> u32 {
        let quote = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'"' as i8));
        let backslash = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\' as i8));
        // Unsigned `bytes <= 0x1F`, which AVX2 lacks: the minimum of both is the byte itself.
        let control = _mm256_cmpeq_epi8(_mm256_min_epu8(bytes, _mm256_set1_epi8(0x1F)), bytes);
        _mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(quote, backslash), control)) as u32
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn index_blocks_sse2(blocks: &[[u8; 64]], words: &mut [[u8; 8]]) -> bool {
        let mut seen = _mm_setzero_si128();
        for (block, word) in blocks.iter().zip(words) {
            let mut bits = 0;
            for (lane, quarter) in block.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: `quarter` is 16 readable bytes and the load asks for no alignment.
                let bytes = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
                seen = _mm_or_si128(seen, bytes);
                bits |= u64::from(stops_sse2(bytes)) << (16 * lane);
            }
            *word = bits.to_le_bytes();
        }
        _mm_movemask_epi8(seen) != 0
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn stops_sse2(bytes: __m128i) -> u16 {
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1F)), bytes);
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, backslash), control)) as u16
    }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64 {
    use std::arch::aarch64::*;

    /// A bit of its own for each of eight neighbours: adding neighbours three times makes one byte of them. It stands
    /// in for x86's movemask, as in simdjson.
    const PLACES: u64 = 0x8040_2010_0804_0201;

    #[target_feature(enable = "neon")]
    pub(super) fn index_blocks_neon(blocks: &[[u8; 64]], words: &mut [[u8; 8]]) -> bool {
        let places = vreinterpretq_u8_u64(vdupq_n_u64(PLACES));
        let mut seen = vdupq_n_u8(0);
        for (block, word) in blocks.iter().zip(words) {
            let mut stops = [vdupq_n_u8(0); 4];
            for (stops, quarter) in stops.iter_mut().zip(block.as_chunks::<16>().0) {
                // SAFETY: `quarter` is 16 readable bytes and the load asks for no alignment.
                let bytes = unsafe { vld1q_u8(quarter.as_ptr()) };
                seen = vorrq_u8(seen, bytes);
                *stops = vandq_u8(stops_neon(bytes), places);
            }
            let fours = vpaddq_u8(vpaddq_u8(stops[0], stops[1]), vpaddq_u8(stops[2], stops[3]));
            let eights = vpaddq_u8(fours, fours);
            *word = vgetq_lane_u64::<0>(vreinterpretq_u64_u8(eights)).to_le_bytes();
        }
        vmaxvq_u8(seen) >= 0x80
    }

    /// 0xFF in each byte that is a stop, 0 in every other.
    #[target_feature(enable = "neon")]
    #[inline]
    fn stops_neon(bytes: uint8x16_t) -> uint8x16_t {
        let quote = vceqq_u8(bytes, vdupq_n_u8(b'"'));
        let backslash = vceqq_u8(bytes, vdupq_n_u8(b'\\'));
        let control = vcltq_u8(bytes, vdupq_n_u8(0x20));
        vorrq_u8(vorrq_u8(quote, backslash), control)
    }
}

#[cfg(test)]
mod tests {
    use super::super::swar;
    use super::*;

    /// Every byte value at every place of a block, among fillers that sit at the edges of the classes.
    fn awkward_blocks() -> Vec<[u8; 64]> {
        let mut blocks = Vec::new();
        for place in 0..64 {
            for value in 0..=u8::MAX {
                for filler in [b'x', b'"', 0x1F, 0x20, 0x7F, 0x80] {
                    let mut block = [filler; 64];
                    block[place] = value;
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    #[test]
    fn simd_and_swar_agree_on_every_byte_at_every_place() {
        let blocks = awkward_blocks();
        for block in blocks.chunks(1).chain([&blocks[..]]) {
            let (mut expected, mut found) = (vec![[0; 8]; block.len()], vec![[!0; 8]; block.len()]);
            let expected_high = swar::index_blocks(block, &mut expected);
            assert_eq!(index_blocks(block, &mut found), expected_high);
            assert_eq!(found, expected);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn sse2_alone_agrees_with_swar() {
        let blocks = awkward_blocks();
        let (mut expected, mut found) = (vec![[0; 8]; blocks.len()], vec![[!0; 8]; blocks.len()]);
        let expected_high = swar::index_blocks(&blocks, &mut expected);
        // SAFETY: SSE2 is part of every x86-64 CPU.
        let found_high = unsafe { x86::index_blocks_sse2(&blocks, &mut found) };
        assert_eq!(found_high, expected_high);
        assert_eq!(found, expected);
    }
}
