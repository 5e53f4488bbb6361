//! AVX-512 VNNI: `vpdpwssd` multiplies thirty-two pairs of 16-bit values and adds them, two at a time, to sixteen 32-bit
//! sums, in one instruction. Only linear layers have a twin here; the rest runs on the AVX2 kernel.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{
    AHEAD, CACHE, DIRECT, add_saturating, lanes, low_halves, rescale_lanes, round_lanes, sum_lanes,
    sum_offsets, words,
};
use super::blocked::{
    DIRECT_COLUMNS, LANE_COLUMNS, Totals, WORDS, blocked_linear, chunk_bytes, chunk_values, four_rows, group,
    tails, totals,
};
use crate::linear::sum_shift;
use crate::scale::Rescale;
use crate::{CHUNK, Encoding, GROUP, MatrixView, Output, QuantisedView};

/// Tokens of a block of unpacked weights.
const TOKENS: usize = 3;

blocked_linear!("avx2,avx512f,avx512bw,avx512vl,avx512vnni");

/// The products `round(q · k / 2^(bits-1))` of row `row` (0 to 3) of a chunk, thirty-two columns a register: the
/// weights but for their offsets.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI, and a whole chunk of a group at `chunk`.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn scaled_row<const BITS: u32>(chunk: *const u8, row: usize) -> [__m512i; 2] {
    // SAFETY: four rows of four parameters, then four rows of 8 · BITS bytes.
    let (p, quants) = unsafe {
        let p = chunk.add(8 * row);
        (p.cast::<[i16; 4]>().read_unaligned(), chunk.add(8 * GROUP + 8 * BITS as usize * row))
    };
    // The same sixteen words in both halves, of which each takes other bits.
    // SAFETY: as above.
    let twice = |at: usize| unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(quants.add(at).cast())) };
    let halves =
        |low: i16, high: i16| _mm512_inserti64x4::<1>(_mm512_set1_epi16(low), _mm256_set1_epi16(high));
    let scaled = |q: __m512i, i: usize| _mm512_mulhrs_epi16(q, _mm512_set1_epi16(p[2 * i]));
    // Each `q` comes to the top of its word, so that `vpmulhrsw`, `(a · b + 2^14) >> 15`, is the product wanted.
    match BITS {
        4 => {
            let (v, mask) = (twice(0), _mm512_set1_epi16(0xf000u16 as i16));
            let first = _mm512_and_si512(_mm512_sllv_epi16(v, halves(12, 8)), mask);
            let second = _mm512_and_si512(_mm512_sllv_epi16(v, halves(4, 0)), mask);
            [scaled(first, 0), scaled(second, 1)]
        }
        6 => {
            // SAFETY: as above.
            let high = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(quants.add(32).cast())) };
            let (v, high) = (twice(0), _mm512_cvtepu8_epi16(high));
            let (four, two) = (_mm512_set1_epi16(0x3c00), _mm512_set1_epi16(0xc000u16 as i16));
            let low = [
                _mm512_sllv_epi16(v, halves(10, 6)),
                _mm512_mask_blend_epi16(0xffff_0000, _mm512_slli_epi16::<2>(v), _mm512_srli_epi16::<2>(v)),
            ];
            let high = [_mm512_sllv_epi16(high, halves(14, 12)), _mm512_sllv_epi16(high, halves(10, 8))];
            let factors = [halves(p[0], p[1]), halves(p[2], p[3])];
            let mut weights = [_mm512_setzero_si512(); 2];
            for i in 0..2 {
                let q = _mm512_or_si512(_mm512_and_si512(low[i], four), _mm512_and_si512(high[i], two));
                weights[i] = _mm512_mulhrs_epi16(q, factors[i]);
            }
            weights
        }
        _ => {
            let (shifts, mask) = (halves(8, 0), _mm512_set1_epi16(0xff00u16 as i16));
            let (first, second) = (_mm512_sllv_epi16(twice(0), shifts), _mm512_sllv_epi16(twice(32), shifts));
            [scaled(_mm512_and_si512(first, mask), 0), scaled(_mm512_and_si512(second, mask), 1)]
        }
    }
}

/// See [`blocked_linear`].
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI; the rows from `row` on are a whole group, and `words` has room for its chunks.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack_encoded<const BITS: u32>(w: &MatrixView<'_>, row: usize, words: &mut [i16]) {
    let padded = words.len() / GROUP;
    for (c, chunk) in group(w, row).chunks_exact(chunk_bytes(BITS)).enumerate() {
        for r in 0..GROUP {
            let out = words[r * padded + c * CHUNK..][..CHUNK].as_mut_ptr();
            // SAFETY: a whole chunk; two registers of thirty-two words.
            unsafe {
                let weights = scaled_row::<BITS>(chunk.as_ptr(), r);
                for (i, &v) in weights.iter().enumerate() {
                    let offset = chunk.as_ptr().add(8 * r + 4 * i + 2).cast::<i16>().read_unaligned();
                    let v = _mm512_add_epi16(v, _mm512_set1_epi16(if BITS == 6 { 0 } else { offset }));
                    _mm512_storeu_si512(out.add(32 * i).cast(), v);
                }
            }
        }
    }
}

/// See [`blocked_linear`].
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI; the rows from `row` on are a whole group, and there are `T` tokens.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[allow(clippy::needless_range_loop)] // rows and tokens index several things
unsafe fn direct_encoded<const BITS: u32, const T: usize>(
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    totals: &[Totals],
    row: usize,
) -> [__m256i; T] {
    let group = group(w, row);
    let chunks = w.cols.div_ceil(CHUNK);
    let tails: [[i16; CHUNK]; T] = tails(x, 0);
    let mut sums = [_mm256_setzero_si256(); T];
    for (part, bytes) in group.chunks(DIRECT_COLUMNS / CHUNK * chunk_bytes(BITS)).enumerate() {
        let mut acc = [[_mm512_setzero_si512(); GROUP]; T];
        let mut offsets = [[_mm256_setzero_si256(); 2]; T];
        for (i, chunk) in bytes.chunks_exact(chunk_bytes(BITS)).enumerate() {
            let c = part * (DIRECT_COLUMNS / CHUNK) + i;
            let values = chunk_values(x, &tails, c);
            // SAFETY: a whole chunk of weights, and 64 activations of each token. What is fetched need not exist.
            unsafe {
                for line in (0..chunk_bytes(BITS)).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().wrapping_add(AHEAD + line).cast());
                }
                if BITS != 6 {
                    // As in the AVX2 kernel.
                    let p = _mm256_loadu_si256(chunk.as_ptr().cast());
                    for t in 0..T {
                        let totals = totals[t * chunks + c];
                        for half in 0..2 {
                            let totals = _mm256_set1_epi64x(totals[half]);
                            offsets[t][half] = _mm256_dpwssd_epi32(offsets[t][half], p, totals);
                        }
                    }
                }
                for r in 0..GROUP {
                    let weights = scaled_row::<BITS>(chunk.as_ptr(), r);
                    for t in 0..T {
                        for (i, &weights) in weights.iter().enumerate() {
                            let x = _mm512_loadu_si512(values[t].as_ptr().add(32 * i).cast());
                            acc[t][r] = _mm512_dpwssd_epi32(acc[t][r], weights, x);
                        }
                    }
                }
            }
        }
        for t in 0..T {
            sums[t] = _mm256_add_epi64(sums[t], sum_halves(acc[t]));
            if BITS != 6 {
                sums[t] = _mm256_add_epi64(sums[t], sum_offsets(offsets[t]));
            }
        }
    }
    sums
}

/// See [`blocked_linear`].
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI; the weights have the length of a row of activations, and there are `T` tokens from
/// `token` on.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn sums<const T: usize>(w: [&[i16]; GROUP], x: QuantisedView<'_>, token: usize) -> [__m256i; T] {
    let mut sums = [_mm256_setzero_si256(); T];
    for start in (0..x.cols).step_by(LANE_COLUMNS) {
        let end = (start + LANE_COLUMNS).min(x.cols);
        let mut acc = [[_mm512_setzero_si512(); GROUP]; T];
        let mut k = start;
        while k < end {
            let mask = if end - k >= 32 { u32::MAX } else { (1 << (end - k)) - 1 };
            // SAFETY: the mask names the columns from k on that every row has.
            unsafe {
                let mut values = [_mm512_setzero_si512(); T];
                for (t, values) in values.iter_mut().enumerate() {
                    let row = x.values.as_ptr().add((token + t) * x.cols);
                    *values = _mm512_maskz_loadu_epi16(mask, row.add(k));
                }
                for r in 0..GROUP {
                    let weights = _mm512_maskz_loadu_epi16(mask, w[r].as_ptr().add(k));
                    for t in 0..T {
                        acc[t][r] = _mm512_dpwssd_epi32(acc[t][r], weights, values[t]);
                    }
                }
            }
            k += 32;
        }
        for t in 0..T {
            sums[t] = _mm256_add_epi64(sums[t], sum_halves(acc[t]));
        }
    }
    sums
}

/// The exact sum of the lanes of each row. Of [`LANE_COLUMNS`] columns each of sixteen lanes has a sixteenth, so that
/// two of them still fit 32 bits.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn sum_halves(acc: [__m512i; GROUP]) -> __m256i {
    let mut halves = [_mm256_setzero_si256(); GROUP];
    for r in 0..GROUP {
        let high = _mm512_extracti64x4_epi64::<1>(acc[r]);
        halves[r] = _mm256_add_epi32(_mm512_castsi512_si256(acc[r]), high);
    }
    sum_lanes(halves)
}

/// As many `vpdpwssd` as keep the processor busy: sixteen chains, since each waits for its last result.
///
/// # Safety
/// The machine has AVX-512 VNNI.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn multiply_adds(rounds: u64) -> u64 {
    const CHAINS: usize = 16;
    let by = _mm512_set1_epi32(std::hint::black_box(0x0001_0003));
    let mut chains = [by; CHAINS];
    for (i, chain) in (0..).zip(&mut chains) {
        *chain = _mm512_set1_epi32(i);
    }
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_dpwssd_epi32(*chain, *chain, by);
        }
    }
    std::hint::black_box(&chains);
    rounds * (32 * CHAINS) as u64
}
