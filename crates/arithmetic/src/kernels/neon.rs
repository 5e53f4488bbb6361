//! NEON: `smlal` multiplies four pairs of 16-bit values and adds them to four 32-bit sums. Linear layers, scores and
//! weighted sums have twins; the compiler vectorises the rest by itself, since every AArch64 machine has NEON.

use std::arch::aarch64::*;

use crate::linear::finish;
use crate::scale::Rescale;
use crate::{CHUNK, Encoding, GROUP, MatrixView, Output, QuantisedView, Scale};

/// Columns whose products a lane of 32 bits can hold; eight lanes share them: `1024 / 8 · 8191 · 2047 < 2^31`.
const LANE_COLUMNS: usize = 1024;

/// A linear layer.
///
/// # Safety
/// The machine has NEON; the shapes were checked by [`crate::linear`].
#[target_feature(enable = "neon")]
pub(crate) unsafe fn linear(
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    out: &mut Output<'_>,
) {
    let rows = out.rows();
    // Groups that are not wholly asked for are left to the reference.
    let start = rows.start.next_multiple_of(GROUP).min(rows.end);
    let end = start + (rows.end - start) / GROUP * GROUP;
    super::scalar::linear_range(w, x, bias, out, rows.start..start);
    super::scalar::linear_range(w, x, bias, out, end..rows.end);
    let padded = w.cols.next_multiple_of(CHUNK);
    let mut words = vec![0i16; GROUP * padded];
    let bytes = w.encoding.group_bytes(w.cols);
    for row in (start..end).step_by(GROUP) {
        let group = &w.weights[row / GROUP * bytes..][..bytes];
        for (c, chunk) in group.chunks_exact(w.encoding.chunk_bytes()).enumerate() {
            for r in 0..GROUP {
                let out = &mut words[r * padded + c * CHUNK..][..CHUNK];
                // SAFETY: NEON; a whole chunk.
                unsafe {
                    match w.encoding {
                        Encoding::Q4 => chunk_row::<4>(chunk, r, out),
                        Encoding::Q6 => chunk_row::<6>(chunk, r, out),
                        Encoding::Q8 => chunk_row::<8>(chunk, r, out),
                    }
                }
            }
        }
        for token in 0..out.tokens() {
            let values = &x.values[token * x.cols..][..x.cols];
            let mut sums = [0i64; GROUP];
            for start in (0..w.cols).step_by(LANE_COLUMNS) {
                let range = start..(start + LANE_COLUMNS).min(w.cols);
                let weights = std::array::from_fn(|r| &words[r * padded..][range.clone()]);
                // SAFETY: NEON; all slices have the same length, at most `LANE_COLUMNS`.
                let part = unsafe { products(weights, &values[range.clone()]) };
                for (sum, part) in sums.iter_mut().zip(part) {
                    *sum += part;
                }
            }
            out.keep(token, row, sums);
            for (r, sum) in sums.into_iter().enumerate() {
                let bias = bias.map(|b| b[row + r]);
                out.set(token, row + r, finish(sum, w.cols, x.scales[token], w.scales[row + r], bias));
            }
        }
    }
}

/// Writes the 64 weights of row `row` (0 to 3) of a chunk.
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn chunk_row<const BITS: u32>(chunk: &[u8], row: usize, out: &mut [i16]) {
    let (front, quants) = chunk.split_at(8 * GROUP);
    let p: [i16; 4] =
        std::array::from_fn(|i| i16::from_le_bytes([front[8 * row + 2 * i], front[8 * row + 2 * i + 1]]));
    let quants = &quants[row * 8 * BITS as usize..][..8 * BITS as usize];
    // SAFETY: eight words, wherever they are.
    let load = |at: usize| unsafe { vreinterpretq_s16_u8(vld1q_u8(quants[at..at + 16].as_ptr())) };
    // Each `q` comes to the top of its word, so that `sqrdmulh`, `(2 · a · b + 2^15) >> 16`, is
    // `round(q · k / 2^(bits-1))`.
    for i in 0..4 {
        for half in 0..2 {
            let q = match BITS {
                4 => {
                    let v = vshlq_s16(load(16 * half), vdupq_n_s16(12 - 4 * i as i16));
                    vandq_s16(v, vdupq_n_s16(0xf000u16 as i16))
                }
                6 => {
                    // A shift by a negative number goes right; what it brings in is masked away.
                    let low = vshlq_s16(load(16 * half), vdupq_n_s16(10 - 4 * i as i16));
                    // SAFETY: eight bytes.
                    let high = unsafe { vld1_u8(quants[32 + 8 * half..40 + 8 * half].as_ptr()) };
                    let high = vreinterpretq_s16_u16(vmovl_u8(high));
                    let high = vshlq_s16(high, vdupq_n_s16(14 - 2 * i as i16));
                    vorrq_s16(
                        vandq_s16(low, vdupq_n_s16(0x3c00)),
                        vandq_s16(high, vdupq_n_s16(0xc000u16 as i16)),
                    )
                }
                _ => {
                    let v = vshlq_s16(load(i / 2 * 32 + 16 * half), vdupq_n_s16(8 - 8 * (i as i16 % 2)));
                    vandq_s16(v, vdupq_n_s16(0xff00u16 as i16))
                }
            };
            let (k, m) = if BITS == 6 { (p[i], 0) } else { (p[i / 2 * 2], p[i / 2 * 2 + 1]) };
            let weights = vaddq_s16(vqrdmulhq_s16(q, vdupq_n_s16(k)), vdupq_n_s16(m));
            // SAFETY: eight words.
            unsafe { vst1q_s16(out[16 * i + 8 * half..][..8].as_mut_ptr(), weights) };
        }
    }
}

/// # Safety
/// NEON; all slices have the same length, at most [`LANE_COLUMNS`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn products(w: [&[i16]; GROUP], x: &[i16]) -> [i64; GROUP] {
    let mut acc = [[vdupq_n_s32(0); 2]; GROUP];
    let whole = x.len() & !7;
    for k in (0..whole).step_by(8) {
        // SAFETY: k + 8 <= whole, which is within every slice.
        unsafe {
            let x = vld1q_s16(x.as_ptr().add(k));
            for r in 0..GROUP {
                let w = vld1q_s16(w[r].as_ptr().add(k));
                acc[r][0] = vmlal_s16(acc[r][0], vget_low_s16(w), vget_low_s16(x));
                acc[r][1] = vmlal_high_s16(acc[r][1], w, x);
            }
        }
    }
    std::array::from_fn(|r| {
        let rest = w[r][whole..].iter().zip(&x[whole..]).map(|(&w, &x)| i64::from(w) * i64::from(x));
        vaddlvq_s32(acc[r][0]) + vaddlvq_s32(acc[r][1]) + rest.sum::<i64>()
    })
}

/// The dot products of one query with each key, rescaled to Q16. Returns the largest.
///
/// # Safety
/// The machine has NEON; `keys` holds a key and `out` a word for each of `scales`.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn scores(
    query: &[i16],
    common: Scale,
    keys: &[i16],
    scales: &[Scale],
    out: &mut [i32],
) -> i32 {
    let whole = query.len() & !7;
    let mut max = i32::MIN;
    for ((out, key), &scale) in out.iter_mut().zip(keys.chunks_exact(query.len())).zip(scales) {
        let mut acc = [vdupq_n_s32(0); 2];
        for k in (0..whole).step_by(8) {
            // SAFETY: k + 8 <= whole, which is within both slices.
            unsafe {
                let (q, k) = (vld1q_s16(query.as_ptr().add(k)), vld1q_s16(key.as_ptr().add(k)));
                acc[0] = vmlal_s16(acc[0], vget_low_s16(q), vget_low_s16(k));
                acc[1] = vmlal_high_s16(acc[1], q, k);
            }
        }
        let rest = query[whole..].iter().zip(&key[whole..]).map(|(&q, &k)| i32::from(q) * i32::from(k));
        let sum = vaddvq_s32(vaddq_s32(acc[0], acc[1])) + rest.sum::<i32>();
        *out = Rescale::of(common, scale).apply(sum);
        max = max.max(*out);
    }
    max
}

/// Adds `weights[t] · values[t][d]` to `sums[d]`; weights are at most `2^22`.
///
/// A product is below `2^33`, so the values are widened to 32 bits and multiplied into 64-bit sums.
///
/// # Safety
/// The machine has NEON; `values` holds a row of `sums.len()` for each weight.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn weighted_sum(weights: &[&[u32]], values: &[i16], sums: &mut [i64]) {
    let dim = sums.len() / weights.len();
    let whole = dim & !3;
    for (weights, sums) in weights.iter().zip(sums.chunks_exact_mut(dim)) {
        for d in (0..whole).step_by(4) {
            // SAFETY: d + 4 <= dim, within the sums and every row.
            unsafe {
                let (mut a, mut b) = (vld1q_s64(sums.as_ptr().add(d)), vld1q_s64(sums.as_ptr().add(d + 2)));
                for (&weight, row) in weights.iter().zip(values.chunks_exact(dim)) {
                    let value = vmovl_s16(vld1_s16(row.as_ptr().add(d)));
                    let weight = vdupq_n_s32(weight as i32);
                    a = vmlal_s32(a, vget_low_s32(value), vget_low_s32(weight));
                    b = vmlal_high_s32(b, value, weight);
                }
                vst1q_s64(sums.as_mut_ptr().add(d), a);
                vst1q_s64(sums.as_mut_ptr().add(d + 2), b);
            }
        }
        for (&weight, row) in weights.iter().zip(values.chunks_exact(dim)) {
            for d in whole..dim {
                sums[d] += i64::from(weight) * i64::from(row[d]);
            }
        }
    }
}

/// As many `smlal` as keep the processor busy: sixteen chains, since each waits for its last result.
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn multiply_adds(rounds: u64) -> u64 {
    const CHAINS: usize = 16;
    let by = vdup_n_s16(std::hint::black_box(3));
    let mut chains = [vdupq_n_s32(0); CHAINS];
    for (i, chain) in (0..).zip(&mut chains) {
        *chain = vdupq_n_s32(i);
    }
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = vmlal_s16(*chain, vget_low_s16(vreinterpretq_s16_s32(*chain)), by);
        }
    }
    std::hint::black_box(&chains);
    rounds * (4 * CHAINS) as u64
}
