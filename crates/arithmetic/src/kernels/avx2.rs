//! AVX2: `vpmaddwd` multiplies sixteen pairs of 16-bit values and adds neighbours to eight 32-bit sums.
//!
//! Numbers for a core that runs two `vpmaddwd` and four vector operations a cycle: a block of 4 rows and 2 tokens does
//! 128 products in 8 + 8 operations and 6 loads, 32 a cycle at best. (With 3 tokens the sums, the operands and a product
//! need one register more than there are, and each step waits for a sum that went through memory.) One token alone takes
//! 24 operations for 64 weights of 4 bits, close to what memory delivers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::blocked::{
    DIRECT_COLUMNS, LANE_COLUMNS, Totals, WORDS, blocked_linear, chunk_bytes, chunk_values, four_rows, group,
    tails, totals,
};
use crate::linear::sum_shift;
use crate::scale::Rescale;
use crate::tables::{EXP2, GELU_CUBIC_Q28, GELU_LINEAR_Q28, GELU_MAX, LOG2_E_Q30, NORMAL, RECIPROCAL};
use crate::{Activation, CHUNK, Encoding, GROUP, MatrixView, Output, QuantisedView, RopeStyle, Scale};

/// Tokens of a block of unpacked weights.
const TOKENS: usize = 2;
/// Up to so many tokens, weights are multiplied as they are read.
pub(super) const DIRECT: usize = 2;
/// Bytes of activations that are kept in the second-level cache while the weights pass by.
pub(super) const CACHE: usize = 256 << 10;

/// How many bytes ahead of its use a weight is fetched.
pub(super) const AHEAD: usize = 2048;

blocked_linear!("avx2");

/// The products `round(q · k / 2^(bits-1))` of row `row` (0 to 3) of a chunk, sixteen columns a register: the weights
/// but for their offsets.
///
/// # Safety
/// AVX2, and a whole chunk of a group at `chunk`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn scaled_row<const BITS: u32>(chunk: *const u8, row: usize) -> [__m256i; 4] {
    // SAFETY: four rows of four parameters, then four rows of 8 · BITS bytes.
    let (p, quants) = unsafe {
        let p = chunk.add(8 * row).cast::<i64>().read_unaligned();
        (_mm256_set1_epi64x(p), chunk.add(8 * GROUP + 8 * BITS as usize * row))
    };
    let parameter = |i: i16| _mm256_shuffle_epi8(p, _mm256_set1_epi16(0x0100 + 0x0202 * i));
    // SAFETY: as above.
    let load = |at: usize| unsafe { _mm256_loadu_si256(quants.add(at).cast()) };
    // Each `q` comes to the top of its word, so that `vpmulhrsw`, `(a · b + 2^14) >> 15`, is the product wanted.
    match BITS {
        4 => {
            let (v, mask) = (load(0), _mm256_set1_epi16(0xf000u16 as i16));
            let (first, second) = (parameter(0), parameter(2));
            [
                _mm256_mulhrs_epi16(_mm256_slli_epi16::<12>(v), first),
                _mm256_mulhrs_epi16(_mm256_and_si256(_mm256_slli_epi16::<8>(v), mask), first),
                _mm256_mulhrs_epi16(_mm256_and_si256(_mm256_slli_epi16::<4>(v), mask), second),
                _mm256_mulhrs_epi16(_mm256_and_si256(v, mask), second),
            ]
        }
        6 => {
            // SAFETY: as above.
            let high = unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(quants.add(32).cast())) };
            let (v, four, two) = (load(0), _mm256_set1_epi16(0x3c00), _mm256_set1_epi16(0xc000u16 as i16));
            let q = |low: __m256i, high: __m256i| {
                _mm256_or_si256(_mm256_and_si256(low, four), _mm256_and_si256(high, two))
            };
            [
                _mm256_mulhrs_epi16(
                    q(_mm256_slli_epi16::<10>(v), _mm256_slli_epi16::<14>(high)),
                    parameter(0),
                ),
                _mm256_mulhrs_epi16(
                    q(_mm256_slli_epi16::<6>(v), _mm256_slli_epi16::<12>(high)),
                    parameter(1),
                ),
                _mm256_mulhrs_epi16(
                    q(_mm256_slli_epi16::<2>(v), _mm256_slli_epi16::<10>(high)),
                    parameter(2),
                ),
                _mm256_mulhrs_epi16(q(_mm256_srli_epi16::<2>(v), _mm256_slli_epi16::<8>(high)), parameter(3)),
            ]
        }
        _ => {
            let (a, b, mask) = (load(0), load(32), _mm256_set1_epi16(0xff00u16 as i16));
            let (first, second) = (parameter(0), parameter(2));
            [
                _mm256_mulhrs_epi16(_mm256_slli_epi16::<8>(a), first),
                _mm256_mulhrs_epi16(_mm256_and_si256(a, mask), first),
                _mm256_mulhrs_epi16(_mm256_slli_epi16::<8>(b), second),
                _mm256_mulhrs_epi16(_mm256_and_si256(b, mask), second),
            ]
        }
    }
}

/// See [`blocked_linear`].
///
/// # Safety
/// AVX2; the rows from `row` on are a whole group, and `words` has room for its chunks.
#[target_feature(enable = "avx2")]
unsafe fn unpack_encoded<const BITS: u32>(w: &MatrixView<'_>, row: usize, words: &mut [i16]) {
    let padded = words.len() / GROUP;
    for (c, chunk) in group(w, row).chunks_exact(chunk_bytes(BITS)).enumerate() {
        for r in 0..GROUP {
            let out = words[r * padded + c * CHUNK..][..CHUNK].as_mut_ptr();
            // SAFETY: a whole chunk; four registers of sixteen words.
            unsafe {
                let weights = scaled_row::<BITS>(chunk.as_ptr(), r);
                for (i, &v) in weights.iter().enumerate() {
                    let offset = chunk.as_ptr().add(8 * r + i / 2 * 4 + 2).cast::<i16>().read_unaligned();
                    let offset = if BITS == 6 { 0 } else { offset };
                    let v = _mm256_add_epi16(v, _mm256_set1_epi16(offset));
                    _mm256_storeu_si256(out.add(16 * i).cast(), v);
                }
            }
        }
    }
}

/// See [`blocked_linear`].
///
/// The offsets are multiplied by the sums of 32 activations, apart from the rest.
///
/// # Safety
/// AVX2; the rows from `row` on are a whole group, and there are `T` tokens.
#[target_feature(enable = "avx2")]
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
        let mut acc = [[_mm256_setzero_si256(); GROUP]; T];
        // Of offsets (16 bits) and the halves of sums (9 bits): eight chunks stay below 2^31.
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
                    // The parameters of all four rows: k, m, k, m of each.
                    let p = _mm256_loadu_si256(chunk.as_ptr().cast());
                    for t in 0..T {
                        let totals = totals[t * chunks + c];
                        for half in 0..2 {
                            let totals = _mm256_set1_epi64x(totals[half]);
                            offsets[t][half] =
                                _mm256_add_epi32(offsets[t][half], _mm256_madd_epi16(p, totals));
                        }
                    }
                }
                for r in 0..GROUP {
                    let weights = scaled_row::<BITS>(chunk.as_ptr(), r);
                    for t in 0..T {
                        for (i, &weights) in weights.iter().enumerate() {
                            let x = _mm256_loadu_si256(values[t].as_ptr().add(16 * i).cast());
                            acc[t][r] = _mm256_add_epi32(acc[t][r], _mm256_madd_epi16(weights, x));
                        }
                    }
                }
            }
        }
        for t in 0..T {
            sums[t] = _mm256_add_epi64(sums[t], sum_lanes(acc[t]));
            if BITS != 6 {
                sums[t] = _mm256_add_epi64(sums[t], sum_offsets(offsets[t]));
            }
        }
    }
    sums
}

/// The products of the offsets of each row: two lanes a row, of the low and of the high halves of the sums.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sum_offsets([low, high]: [__m256i; 2]) -> __m256i {
    let order = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    let low = _mm256_add_epi32(low, _mm256_srli_epi64::<32>(low));
    let high = _mm256_add_epi32(high, _mm256_srli_epi64::<32>(high));
    let low = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(low, order));
    let high = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(high, order));
    _mm256_add_epi64(_mm256_cvtepi32_epi64(low), _mm256_slli_epi64::<8>(_mm256_cvtepi32_epi64(high)))
}

/// See [`blocked_linear`].
///
/// # Safety
/// AVX2; the weights have the length of a row of activations, and there are `T` tokens from `token` on.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn sums<const T: usize>(w: [&[i16]; GROUP], x: QuantisedView<'_>, token: usize) -> [__m256i; T] {
    let mut sums = [_mm256_setzero_si256(); T];
    for start in (0..x.cols).step_by(LANE_COLUMNS) {
        let count = (x.cols - start).min(LANE_COLUMNS);
        let mut values = [std::ptr::null(); T];
        for (t, values) in values.iter_mut().enumerate() {
            *values = x.values[(token + t) * x.cols + start..].as_ptr();
        }
        // SAFETY: every row has `count` columns from `start` on.
        let (acc, rest) = unsafe {
            let weights = [
                w[0].as_ptr().add(start),
                w[1].as_ptr().add(start),
                w[2].as_ptr().add(start),
                w[3].as_ptr().add(start),
            ];
            products::<T>(weights, values, count)
        };
        for t in 0..T {
            sums[t] = _mm256_add_epi64(sums[t], sum_lanes(acc[t]));
            if count & 15 != 0 {
                sums[t] = _mm256_add_epi64(sums[t], _mm256_cvtepi32_epi64(rest[t]));
            }
        }
    }
    sums
}

/// The products of four rows, added up in the eight lanes of a register for each row and token; those of the last up to
/// fifteen columns apart, one lane a row.
///
/// # Safety
/// AVX2; all pointers are to `cols` words, at most [`LANE_COLUMNS`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn products<const T: usize>(
    w: [*const i16; GROUP],
    x: [*const i16; T],
    cols: usize,
) -> ([[__m256i; GROUP]; T], [__m128i; T]) {
    let mut acc = [[_mm256_setzero_si256(); GROUP]; T];
    let whole = cols & !15;
    let mut k = 0;
    // Two steps at a time: the loop itself costs less then.
    while k + 32 <= whole {
        // SAFETY: k + 32 <= whole, which is within every row.
        unsafe {
            step(w, x, k, &mut acc);
            step(w, x, k + 16, &mut acc);
        }
        k += 32;
    }
    if k < whole {
        // SAFETY: k + 16 <= whole.
        unsafe { step(w, x, k, &mut acc) };
    }
    let mut rest = [_mm_setzero_si128(); T];
    if whole < cols {
        for t in 0..T {
            let mut sums = [0; GROUP];
            for (sum, w) in sums.iter_mut().zip(w) {
                // SAFETY: both rows have `cols` words.
                *sum = unsafe {
                    let rest = |row: *const i16| std::slice::from_raw_parts(row.add(whole), cols - whole);
                    tail(rest(w), rest(x[t]))
                };
            }
            rest[t] = lanes(sums);
        }
    }
    (acc, rest)
}

/// Adds the products of sixteen columns.
///
/// # Safety
/// AVX2; all pointers are to at least `k + 16` words.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn step<const T: usize>(
    w: [*const i16; GROUP],
    x: [*const i16; T],
    k: usize,
    acc: &mut [[__m256i; GROUP]; T],
) {
    // SAFETY: as for the whole function.
    unsafe {
        let mut values = [_mm256_setzero_si256(); T];
        for t in 0..T {
            values[t] = _mm256_loadu_si256(x[t].add(k).cast());
        }
        for r in 0..GROUP {
            let weights = _mm256_loadu_si256(w[r].add(k).cast());
            for t in 0..T {
                acc[t][r] = _mm256_add_epi32(acc[t][r], _mm256_madd_epi16(weights, values[t]));
            }
        }
    }
}

/// Up to fifteen products.
#[inline(never)]
fn tail(w: &[i16], x: &[i16]) -> i32 {
    w.iter().zip(x).fold(0i32, |sum, (&w, &x)| sum.wrapping_add(i32::from(w) * i32::from(x)))
}

/// Eight lanes added to four of 64 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn half_sums(v: __m256i) -> __m256i {
    let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    _mm256_add_epi64(_mm256_cvtepi32_epi64(low), _mm256_cvtepi32_epi64(high))
}

/// The exact sum of the lanes of each row, as four 64-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sum_lanes(acc: [__m256i; GROUP]) -> __m256i {
    let [a, b, c, d] = [half_sums(acc[0]), half_sums(acc[1]), half_sums(acc[2]), half_sums(acc[3])];
    let ab = _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let cd = _mm256_add_epi64(_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
    _mm256_add_epi64(_mm256_permute2x128_si256::<0x20>(ab, cd), _mm256_permute2x128_si256::<0x31>(ab, cd))
}

/// Four sums rounded to multiples of `2^shift` and divided by it, in the low halves of the lanes. The results fit 32
/// bits, and the low halves of what is shifted right are the same whether zeros or signs come in.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn round_lanes(sums: __m256i, shift: u32) -> __m256i {
    let half = _mm256_set1_epi64x((1i64 << shift) >> 1);
    _mm256_srl_epi64(_mm256_add_epi64(sums, half), _mm_cvtsi32_si128(shift as i32))
}

/// The low halves of four lanes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn low_halves(lanes: __m256i) -> __m128i {
    let order = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(lanes, order))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn words(lanes: __m128i) -> [i32; 4] {
    let mut words = [0; 4];
    // SAFETY: four words.
    unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), lanes) };
    words
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn lanes(words: [i32; 4]) -> __m128i {
    // SAFETY: four words.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

/// Saturating sums: where the wrapped sum has the sign of neither summand, the limit of the sign of the summands.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add_saturating(a: __m128i, b: __m128i) -> __m128i {
    let sum = _mm_add_epi32(a, b);
    let overflow = _mm_and_si128(_mm_xor_si128(a, sum), _mm_xor_si128(b, sum));
    let limit = _mm_xor_si128(_mm_srai_epi32::<31>(a), _mm_set1_epi32(i32::MAX));
    _mm_castps_si128(_mm_blendv_ps(
        _mm_castsi128_ps(sum),
        _mm_castsi128_ps(limit),
        _mm_castsi128_ps(overflow),
    ))
}

/// Four sums (the low halves of the lanes) times four scales (mantissa in the low, exponent in the high half of a lane)
/// times one scale. The result holds if the flag does: every shift is within 1 to 62, and nothing saturates.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn rescale_lanes(sums: __m256i, scales: __m256i, common: Scale) -> (__m128i, bool) {
    let mantissa = _mm256_mul_epu32(scales, _mm256_set1_epi64x(i64::from(common.mantissa)));
    let multiplier = _mm256_srli_epi64::<31>(_mm256_add_epi64(mantissa, _mm256_set1_epi64x(1 << 30)));
    // The shift in the low half of each lane, zero in the high half.
    let base = _mm256_set1_epi64x(i64::from((-47i32).wrapping_sub(common.exponent) as u32));
    let shift = _mm256_sub_epi32(base, _mm256_srli_epi64::<32>(scales));
    let minus1 = _mm256_sub_epi32(shift, _mm256_set1_epi64x(1));
    // Unsigned: shift - 1 > 61. (The high halves are zero.)
    let outside = _mm256_cmpeq_epi32(_mm256_max_epu32(minus1, _mm256_set1_epi32(62)), minus1);
    let product = _mm256_mul_epi32(sums, multiplier);
    // There is no arithmetic shift of 64 bits: lift the number above zero by 2^62, a multiple of 2^shift.
    let lift = _mm256_set1_epi64x(1 << 62);
    let rounded = _mm256_add_epi64(product, _mm256_sllv_epi64(_mm256_set1_epi64x(1), minus1));
    let shifted = _mm256_srlv_epi64(_mm256_add_epi64(rounded, lift), shift);
    let value = _mm256_sub_epi64(shifted, _mm256_srlv_epi64(lift, shift));
    // A number of 32 bits, 2^31 added, has no high half.
    let high = _mm256_srli_epi64::<32>(_mm256_add_epi64(value, _mm256_set1_epi64x(1 << 31)));
    let outside = _mm256_or_si256(outside, high);
    (low_halves(value), _mm256_testz_si256(outside, outside) == 1)
}

/// What a linear layer makes of the exact sums of one token.
///
/// # Safety
/// The machine has AVX2; all slices are as long as `out`.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn rescale_sums(
    sums: &[i64],
    cols: usize,
    x: Scale,
    w: &[Scale],
    bias: Option<&[i32]>,
    out: &mut [i32],
) {
    let shift = sum_shift(cols);
    let common = x.shifted(shift as i32);
    let whole = out.len() / GROUP * GROUP;
    for row in (0..whole).step_by(GROUP) {
        // SAFETY: four sums and four scales of eight bytes each.
        let (exact, scales) = unsafe {
            (
                _mm256_loadu_si256(sums[row..row + GROUP].as_ptr().cast()),
                _mm256_loadu_si256(w[row..row + GROUP].as_ptr().cast()),
            )
        };
        let rounded = round_lanes(exact, shift);
        let (mut result, sane) = rescale_lanes(rounded, scales, common);
        if !sane {
            let mut sums = words(low_halves(rounded));
            for (sum, &scale) in sums.iter_mut().zip(&w[row..]) {
                *sum = Rescale::of(common, scale).apply(*sum);
            }
            result = lanes(sums);
        }
        if let Some(bias) = bias {
            // SAFETY: four words.
            let bias = unsafe { _mm_loadu_si128(bias[row..row + GROUP].as_ptr().cast()) };
            result = add_saturating(result, bias);
        }
        out[row..row + GROUP].copy_from_slice(&words(result));
    }
    let bias = bias.map(|bias| &bias[whole..]);
    super::scalar::rescale_sums(&sums[whole..], cols, x, &w[whole..], bias, &mut out[whole..]);
}

/// The dot products of one query with each key, rescaled to Q16. Returns the largest.
///
/// # Safety
/// The machine has AVX2; `keys` holds a key and `out` a word for each of `scales`.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn scores(
    query: &[i16],
    common: Scale,
    keys: &[i16],
    scales: &[Scale],
    out: &mut [i32],
) -> i32 {
    let dim = query.len();
    let mut max = _mm_set1_epi32(i32::MIN);
    let mut token = 0;
    while token + 4 <= scales.len() {
        let keys = keys[token * dim..][..4 * dim].as_ptr();
        // SAFETY: AVX2; four keys of the length of the query; four scales of two words each.
        let (([acc], [rest]), four) = unsafe {
            let keys = [keys, keys.add(dim), keys.add(2 * dim), keys.add(3 * dim)];
            let four = _mm256_loadu_si256(scales[token..token + 4].as_ptr().cast());
            (products(keys, [query.as_ptr()], dim), four)
        };
        // A head has at most 256 values, whose products add up to less than 2^30.
        let [a, b, c, d] = acc;
        let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
        let sums = _mm_add_epi32(sums, rest);
        let (mut result, sane) = rescale_lanes(_mm256_cvtepi32_epi64(sums), four, common);
        if !sane {
            let mut sums = words(sums);
            for (sum, &scale) in sums.iter_mut().zip(&scales[token..]) {
                *sum = Rescale::of(common, scale).apply(*sum);
            }
            result = lanes(sums);
        }
        // SAFETY: four words.
        unsafe { _mm_storeu_si128(out[token..token + 4].as_mut_ptr().cast(), result) };
        max = _mm_max_epi32(max, result);
        token += 4;
    }
    let max = words(max).into_iter().fold(i32::MIN, i32::max);
    let rest =
        super::scalar::scores(query, common, &keys[token * dim..], &scales[token..], &mut out[token..]);
    max.max(rest)
}

/// The entries of a table at eight indices, and those that follow them.
///
/// # Safety
/// The machine has AVX2 and the table an entry after each index.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn neighbours(table: *const i32, index: __m256i) -> (__m256i, __m256i) {
    // Two neighbours are one 64-bit word: half as many loads as two gathers of 32 bits.
    // SAFETY: as for the whole function.
    let (a, b) = unsafe {
        (
            _mm256_i32gather_epi64::<4>(table.cast(), _mm256_castsi256_si128(index)),
            _mm256_i32gather_epi64::<4>(table.cast(), _mm256_extracti128_si256::<1>(index)),
        )
    };
    let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    let first = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
    let second = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
    (_mm256_permute4x64_epi64::<0b11_01_10_00>(first), _mm256_permute4x64_epi64::<0b11_01_10_00>(second))
}

/// Eight of [`crate::tables::exp2_neg`].
#[target_feature(enable = "avx2")]
#[inline]
fn exp2_neg8(t: __m256i) -> __m256i {
    let index = _mm256_and_si256(_mm256_srli_epi32::<6>(t), _mm256_set1_epi32(1023));
    let base = EXP2.as_ptr().cast::<i32>();
    // SAFETY: the indices are at most 1023, and the table has 1025 entries.
    let (high, low) = unsafe { neighbours(base, index) };
    let step = _mm256_mullo_epi32(_mm256_sub_epi32(high, low), _mm256_and_si256(t, _mm256_set1_epi32(63)));
    let value = _mm256_sub_epi32(high, _mm256_srli_epi32::<6>(_mm256_add_epi32(step, _mm256_set1_epi32(32))));
    // Half a unit, 2^(n-1), is zero for n = 0 since a shift by 2^32 - 1 gives zero; from n = 31 on the value, at most
    // 2^30, plus half is below one unit, and from 32 on the shift itself gives zero.
    let n = _mm256_srli_epi32::<16>(t);
    let half = _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_sub_epi32(n, _mm256_set1_epi32(1)));
    let shifted = _mm256_srlv_epi32(_mm256_add_epi32(value, half), n);
    _mm256_and_si256(shifted, _mm256_cmpgt_epi32(_mm256_set1_epi32(31), n))
}

/// The weights of attention, see [`super::scalar::weigh`].
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn weigh(
    scores: &[i32],
    max: i32,
    scales: &[Scale],
    exponent: i32,
    out: &mut [u32],
) -> u64 {
    let whole = scores.len() & !7;
    let mut total = 0u64;
    let mut sum = _mm256_setzero_si256();
    let half = _mm256_set1_epi64x(1 << 38);
    for (i, out) in out[..whole].chunks_exact_mut(8).enumerate() {
        // SAFETY: eight scores and eight scales (two words each, without padding) from 8·i on; eight words of `out`.
        unsafe {
            let score = _mm256_loadu_si256(scores[8 * i..8 * i + 8].as_ptr().cast());
            let e = exp2_neg8(_mm256_sub_epi32(_mm256_set1_epi32(max), score));
            // Weights in Q22, at most 2^22: pairs of them are added as 64-bit numbers.
            let p = _mm256_srli_epi32::<8>(_mm256_add_epi32(e, _mm256_set1_epi32(1 << 7)));
            let low = _mm256_and_si256(p, _mm256_set1_epi64x(0xffff_ffff));
            sum = _mm256_add_epi64(sum, _mm256_add_epi64(low, _mm256_srli_epi64::<32>(p)));
            let at = scales[8 * i..8 * i + 8].as_ptr().cast::<__m256i>();
            let relative = |scales: __m256i| {
                let down = _mm256_sub_epi32(_mm256_set1_epi32(exponent), _mm256_srli_epi64::<32>(scales));
                let down = _mm256_max_epi32(down, _mm256_setzero_si256());
                let down =
                    _mm256_and_si256(_mm256_min_epi32(down, _mm256_set1_epi32(31)), _mm256_set1_epi64x(63));
                _mm256_srlv_epi64(_mm256_and_si256(scales, _mm256_set1_epi64x(0xffff_ffff)), down)
            };
            let (a, b) = (relative(_mm256_loadu_si256(at)), relative(_mm256_loadu_si256(at.add(1))));
            let e_a = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(e));
            let e_b = _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<1>(e));
            let a = _mm256_srli_epi64::<39>(_mm256_add_epi64(_mm256_mul_epu32(e_a, a), half));
            let b = _mm256_srli_epi64::<39>(_mm256_add_epi64(_mm256_mul_epu32(e_b, b), half));
            // Low halves of a, then of b: shuffle takes them lane by lane, permute puts them in order.
            let packed = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(
                _mm256_castsi256_ps(a),
                _mm256_castsi256_ps(b),
            ));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    let mut lanes = [0u64; 4];
    // SAFETY: four lanes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    total += lanes.into_iter().sum::<u64>();
    total + super::scalar::weigh(&scores[whole..], max, &scales[whole..], exponent, &mut out[whole..])
}

/// Tokens whose weighted values are added up in 32 bits.
const STRETCH: usize = 32;

/// The weights of a stretch's tokens, two to a word: the halves of which are factors for `vpmaddwd`. A weight is split into
/// its high 15 and low 8 bits, since there are no factors of 23.
struct Pairs {
    high: [i32; STRETCH / 2],
    low: [i32; STRETCH / 2],
}

/// Pairs of up to [`STRETCH`] weights, zeros behind them; and the high parts of all, or'd.
#[target_feature(enable = "avx2")]
#[inline]
fn pairs(weights: &[u32]) -> (Pairs, i32) {
    let mut whole = [0u32; STRETCH];
    whole[..weights.len()].copy_from_slice(weights);
    let mut pairs = Pairs { high: [0; STRETCH / 2], low: [0; STRETCH / 2] };
    let mut any = _mm_setzero_si128();
    for (i, eight) in whole.chunks_exact(8).enumerate() {
        // SAFETY: eight words are read, and twice four of sixteen are written.
        unsafe {
            let eight = _mm256_loadu_si256(eight.as_ptr().cast());
            let (high, low) =
                (_mm256_srli_epi32::<8>(eight), _mm256_and_si256(eight, _mm256_set1_epi32(255)));
            let high = low_halves(_mm256_or_si256(high, _mm256_srli_epi64::<16>(high)));
            let low = low_halves(_mm256_or_si256(low, _mm256_srli_epi64::<16>(low)));
            any = _mm_or_si128(any, high);
            _mm_storeu_si128(pairs.high[4 * i..4 * i + 4].as_mut_ptr().cast(), high);
            _mm_storeu_si128(pairs.low[4 * i..4 * i + 4].as_mut_ptr().cast(), low);
        }
    }
    (pairs, words(any).into_iter().fold(0, |any, word| any | word))
}

/// Adds `weights[q][t] · values[t][d]` to `sums[q][d]`; weights are at most `2^22`.
///
/// # Safety
/// The machine has AVX2; there are one to three lists of weights, equally long; `values` holds a row for each weight, and
/// `sums` one for each list.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn weighted_sum(weights: &[&[u32]], values: &[i16], sums: &mut [i64]) {
    // SAFETY: as for this function.
    unsafe {
        match *weights {
            [a, b, c] => weighted_sums([a, b, c], values, sums),
            [a, b] => weighted_sums([a, b], values, sums),
            [a] => weighted_sums([a], values, sums),
            _ => super::scalar::weighted_sum(weights, values, sums),
        }
    }
}

/// As [`weighted_sum`]. Values are loaded and paired once for all lists.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn weighted_sums<const Q: usize>(weights: [&[u32]; Q], values: &[i16], sums: &mut [i64]) {
    let dim = sums.len() / Q;
    let whole = dim & !15;
    for (first, values) in (0..weights[0].len()).step_by(STRETCH).zip(values.chunks(STRETCH * dim)) {
        let count = values.len() / dim;
        let weights = weights.map(|weights| &weights[first..first + count]);
        let pairs = weights.map(|weights| pairs(weights));
        let any_high = pairs.iter().fold(0, |any, (_, high)| any | high);
        let pairs = pairs.map(|(pairs, _)| pairs);
        for d in (0..whole).step_by(16) {
            // SAFETY: `count` rows, which have d + 16 values and more; as many rows of sums as lists.
            unsafe {
                let (values, sums) = (values.as_ptr().add(d), sums.as_mut_ptr().add(d));
                if any_high == 0 {
                    stretch_sums::<Q, false>(&pairs, values, count, dim, sums);
                } else {
                    stretch_sums::<Q, true>(&pairs, values, count, dim, sums);
                }
            }
        }
        for (weights, sums) in weights.iter().zip(sums.chunks_exact_mut(dim)) {
            for (weight, values) in weights.iter().zip(values.chunks_exact(dim)) {
                for d in whole..dim {
                    sums[d] += i64::from(*weight) * i64::from(values[d]);
                }
            }
        }
    }
}

/// Sixteen values of each of `count` tokens, up to [`STRETCH`], times their weights, added to sixteen of `sums`; without the high
/// parts of the weights if all are zero. High parts are at most `2^14` and values 2047, so 32 products add up to less than `2^30`.
///
/// # Safety
/// The machine has AVX2; `values` and `sums` point to sixteen numbers in each of `count` and `Q` rows of `dim`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn stretch_sums<const Q: usize, const HIGH: bool>(
    pairs: &[Pairs; Q],
    values: *const i16,
    count: usize,
    dim: usize,
    sums: *mut i64,
) {
    let mut high = [[_mm256_setzero_si256(); 2]; Q];
    let mut low = [[_mm256_setzero_si256(); 2]; Q];
    for pair in 0..count.div_ceil(2) {
        // SAFETY: tokens below `count`: the last of an odd number is paired with itself, the second with weight zero.
        let (a, b) = unsafe {
            let a = values.add(2 * pair * dim);
            let b = a.add(if 2 * pair + 1 < count { dim } else { 0 });
            (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()))
        };
        let values = [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
        for q in 0..Q {
            let weight = _mm256_set1_epi32(pairs[q].low[pair]);
            for (sum, values) in low[q].iter_mut().zip(values) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(values, weight));
            }
            if HIGH {
                let weight = _mm256_set1_epi32(pairs[q].high[pair]);
                for (sum, values) in high[q].iter_mut().zip(values) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(values, weight));
                }
            }
        }
    }
    for q in 0..Q {
        // Unpacking works in halves of a register: the first has values 0-3 and 8-11, the second 4-7 and 12-15.
        let parts = [
            (0, _mm256_castsi256_si128(high[q][0]), _mm256_castsi256_si128(low[q][0])),
            (4, _mm256_castsi256_si128(high[q][1]), _mm256_castsi256_si128(low[q][1])),
            (8, _mm256_extracti128_si256::<1>(high[q][0]), _mm256_extracti128_si256::<1>(low[q][0])),
            (12, _mm256_extracti128_si256::<1>(high[q][1]), _mm256_extracti128_si256::<1>(low[q][1])),
        ];
        for (offset, high, low) in parts {
            let low = _mm256_cvtepi32_epi64(low);
            let part = _mm256_add_epi64(_mm256_slli_epi64::<8>(_mm256_cvtepi32_epi64(high)), low);
            // SAFETY: sixteen sums of row `q`.
            unsafe {
                let at = sums.add(q * dim + offset).cast::<__m256i>();
                _mm256_storeu_si256(at, _mm256_add_epi64(_mm256_loadu_si256(at), part));
            }
        }
    }
}

/// `rshift(a · b, 30)` of unsigned words, if it fits 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn mul_q30(a: __m256i, b: __m256i) -> __m256i {
    let half = _mm256_set1_epi64x(1 << 29);
    let even = _mm256_srli_epi64::<30>(_mm256_add_epi64(_mm256_mul_epu32(a, b), half));
    let (a, b) = (_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
    // Shifted left by 2 instead of right by 30: the result lands in the high half.
    let odd = _mm256_slli_epi64::<2>(_mm256_add_epi64(_mm256_mul_epu32(a, b), half));
    _mm256_blend_epi32::<0b1010_1010>(even, odd)
}

/// Eight of [`crate::tables::sigmoid`].
#[target_feature(enable = "avx2")]
#[inline]
fn sigmoid8(x: __m256i) -> __m256i {
    let e = exp2_neg8(mul_q30(_mm256_abs_epi32(x), _mm256_set1_epi32(LOG2_E_Q30 as i32)));
    // SAFETY: e is at most 2^30, so the indices are at most 1024, and the table has 1026 entries.
    let (high, low) = unsafe { neighbours(RECIPROCAL.as_ptr().cast(), _mm256_srli_epi32::<20>(e)) };
    let step = _mm256_and_si256(_mm256_srli_epi32::<10>(e), _mm256_set1_epi32(1023));
    let step = _mm256_mullo_epi32(_mm256_sub_epi32(high, low), step);
    let q = _mm256_sub_epi32(high, _mm256_srli_epi32::<10>(_mm256_add_epi32(step, _mm256_set1_epi32(512))));
    let negative = _mm256_srai_epi32::<31>(x);
    _mm256_blendv_epi8(q, mul_q30(e, q), negative)
}

/// Eight of [`crate::tables::gelu_argument`].
#[target_feature(enable = "avx2")]
#[inline]
fn gelu_argument8(x: __m256i) -> __m256i {
    let most = _mm256_set1_epi32(GELU_MAX);
    let x = _mm256_max_epi32(_mm256_min_epi32(x, most), _mm256_sub_epi32(_mm256_setzero_si256(), most));
    // The low words of four lanes: the square and the factor are positive, and of the last product bits 28 to 59 count.
    let low = |x: __m256i| {
        let half = _mm256_set1_epi64x(1 << 15);
        let square = _mm256_srli_epi64::<16>(_mm256_add_epi64(_mm256_mul_epi32(x, x), half));
        let cubic = _mm256_mul_epi32(square, _mm256_set1_epi64x(GELU_CUBIC_Q28));
        let cubic = _mm256_srli_epi64::<16>(_mm256_add_epi64(cubic, half));
        let factor = _mm256_add_epi64(cubic, _mm256_set1_epi64x(GELU_LINEAR_Q28));
        let product = _mm256_add_epi64(_mm256_mul_epi32(x, factor), _mm256_set1_epi64x(1 << 27));
        _mm256_srli_epi64::<28>(product)
    };
    let (even, odd) = (low(x), low(_mm256_srli_epi64::<32>(x)));
    _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd))
}

/// Eight of [`crate::tables::normal`].
#[target_feature(enable = "avx2")]
#[inline]
fn normal8(x: __m256i) -> __m256i {
    let magnitude = _mm256_min_epu32(_mm256_abs_epi32(x), _mm256_set1_epi32(8 << 16));
    // SAFETY: the indices are at most 1024, and the table has 1026 entries.
    let (low, high) = unsafe { neighbours(NORMAL.as_ptr().cast(), _mm256_srli_epi32::<9>(magnitude)) };
    let step = _mm256_and_si256(magnitude, _mm256_set1_epi32(511));
    let step = _mm256_mullo_epi32(_mm256_sub_epi32(high, low), step); // below 2^31
    let value = _mm256_add_epi32(low, _mm256_srli_epi32::<9>(_mm256_add_epi32(step, _mm256_set1_epi32(256))));
    let rest = _mm256_sub_epi32(_mm256_set1_epi32(1 << 30), value);
    _mm256_blendv_epi8(value, rest, _mm256_srai_epi32::<31>(x))
}

/// See [`super::scalar::activate`].
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn activate(activation: Activation, gate: &mut [i32], up: Option<&[i32]>) {
    let whole = gate.len() & !7;
    for (i, gate) in gate[..whole].chunks_exact_mut(8).enumerate() {
        // SAFETY: eight words each; `up` is as long as `gate`.
        let (g, u) = unsafe {
            let up = up.map(|up| _mm256_loadu_si256(up[8 * i..8 * i + 8].as_ptr().cast()));
            (_mm256_loadu_si256(gate.as_ptr().cast()), up.unwrap_or(_mm256_set1_epi32(1 << 16)))
        };
        let s = match activation {
            Activation::Silu => sigmoid8(g),
            Activation::GeluTanh => sigmoid8(gelu_argument8(g)),
            Activation::GeluErf => normal8(g),
        };
        // A result of 32 bits is in bits 30 to 61 of the product, whichever way the sign is shifted in.
        let half = _mm256_set1_epi64x(1 << 29);
        let (g_odd, s_odd) = (_mm256_srli_epi64::<32>(g), _mm256_srli_epi64::<32>(s));
        let even = _mm256_srli_epi64::<30>(_mm256_add_epi64(_mm256_mul_epi32(g, s), half));
        let odd = _mm256_srli_epi64::<30>(_mm256_add_epi64(_mm256_mul_epi32(g_odd, s_odd), half));
        let even = times_q16(even, u);
        let odd = times_q16(odd, _mm256_srli_epi64::<32>(u));
        let result = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        // SAFETY: eight words.
        unsafe { _mm256_storeu_si256(gate.as_mut_ptr().cast(), result) };
    }
    super::scalar::activate(activation, &mut gate[whole..], up.map(|up| &up[whole..]));
}

/// `sat(rshift(a · b, 16))` of the low words of four lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn times_q16(a: __m256i, b: __m256i) -> __m256i {
    // Lifted above zero by 2^62, a multiple of 2^16: the product is within ±2^62.
    let lift = _mm256_set1_epi64x((1 << 62) + (1 << 15));
    let value = _mm256_srli_epi64::<16>(_mm256_add_epi64(_mm256_mul_epi32(a, b), lift));
    let value = _mm256_sub_epi64(value, _mm256_set1_epi64x(1 << 46));
    let (most, least) = (_mm256_set1_epi64x(i64::from(i32::MAX)), _mm256_set1_epi64x(i64::from(i32::MIN)));
    let value = _mm256_blendv_epi8(value, most, _mm256_cmpgt_epi64(value, most));
    _mm256_blendv_epi8(value, least, _mm256_cmpgt_epi64(least, value))
}

/// Defines the twin of a loop of the reference that the compiler vectorises by itself once it may use AVX2.
macro_rules! vectorised {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        /// See the function of this name in [`super::scalar`].
        ///
        /// # Safety
        /// The machine has AVX2.
        #[target_feature(enable = "avx2")]
        pub(crate) unsafe fn $name($($argument: $type),*) $(-> $result)? {
            super::scalar::$name($($argument),*)
        }
    )*};
}

vectorised! {
    max_abs(x: &[i32]) -> u32;
    scale_row(x: &[i32], reciprocal: i32, shift: u32, values: &mut [i16]);
    norm_sums(x: &[i32], weight: &[i32]) -> (u128, u64);
    norm_products(x: &[i32], weight: &[i32], shift: u32, products: &mut [i32]);
    rope(style: RopeStyle, head: &mut [i32], cos: &[i32], sin: &[i32]);
}

/// As many `vpmaddwd` as keep the processor busy: twelve chains, since each waits for its last result.
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn multiply_adds(rounds: u64) -> u64 {
    const CHAINS: usize = 12;
    let by = _mm256_set1_epi32(std::hint::black_box(0x0001_0003));
    let mut chains = [by; CHAINS];
    for (i, chain) in (0..).zip(&mut chains) {
        *chain = _mm256_set1_epi32(i);
    }
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm256_add_epi32(_mm256_madd_epi16(*chain, by), by);
        }
    }
    std::hint::black_box(&chains);
    rounds * (16 * CHAINS) as u64
}
