//! AVX-512 VNNI: `vpdpwssd` multiplies thirty-two pairs of 16-bit values and adds them, two at a time, to sixteen 32-bit
//! sums, in one instruction. Only linear layers have a twin here; the rest runs on the AVX2 kernel.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{AHEAD, CACHE, ROWS, TOKENS, add_saturating, lanes, rescale_lanes, words};
use super::blocked::blocked_linear;
use crate::linear::finish;
use crate::{MatrixView, Output, QuantisedView, SEGMENT};

blocked_linear!("avx2,avx512f,avx512bw,avx512vl,avx512vnni");

/// The sums of four rows, in the lanes of one register for each token.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI; all slices have the same length, at most [`SEGMENT`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn segment<const T: usize>(w: [&[i8]; ROWS], x: [&[i16]; T]) -> [__m128i; T] {
    let cols = x[0].len();
    let mut acc = [[_mm512_setzero_si512(); ROWS]; T];
    let mut k = 0;
    while k < cols {
        let mask = if cols - k >= 32 { u32::MAX } else { (1 << (cols - k)) - 1 };
        // SAFETY: the mask names the elements from k on that every slice has.
        unsafe {
            let mut values = [_mm512_setzero_si512(); T];
            for t in 0..T {
                values[t] = _mm512_maskz_loadu_epi16(mask, x[t].as_ptr().add(k));
            }
            // Four times thirty-two bytes: two lines of those that follow. They need not exist.
            let ahead = w[0].as_ptr().wrapping_add(ROWS * k + AHEAD);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
            for r in 0..ROWS {
                let weights = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, w[r].as_ptr().add(k)));
                for t in 0..T {
                    acc[t][r] = _mm512_dpwssd_epi32(acc[t][r], weights, values[t]);
                }
            }
        }
        k += 32;
    }
    let mut sums = [_mm_setzero_si128(); T];
    for t in 0..T {
        let halves: [__m256i; ROWS] = std::array::from_fn(|r| {
            _mm256_add_epi32(_mm512_castsi512_si256(acc[t][r]), _mm512_extracti64x4_epi64::<1>(acc[t][r]))
        });
        let [a, b, c, d] = halves;
        let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        sums[t] = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
    }
    sums
}
