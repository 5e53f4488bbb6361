//! NEON: `smlal` multiplies four pairs of 16-bit values and adds them to four 32-bit sums. Linear layers, scores and
//! weighted sums have twins; the compiler vectorises the rest by itself, since every AArch64 machine has NEON.

use std::arch::aarch64::*;

use crate::linear::finish;
use crate::scale::Rescale;
use crate::{MatrixView, Output, QuantisedView, SEGMENT, Scale};

/// Rows of a block: with four, the loads of activations are shared and the sums have no wait for one another.
const ROWS: usize = 4;

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
    let mut row = out.rows().start;
    while row + ROWS <= out.rows().end {
        for token in 0..out.tokens() {
            let values = &x.values[token * x.cols..][..x.cols];
            let mut sums = [0i64; ROWS];
            for start in (0..w.cols).step_by(SEGMENT) {
                let range = start..(start + SEGMENT).min(w.cols);
                let weights = std::array::from_fn(|r| &w.row(row + r)[range.clone()]);
                // SAFETY: all slices have the same length, at most a segment.
                let part = unsafe { segment(weights, &values[range.clone()]) };
                for (sum, part) in sums.iter_mut().zip(part) {
                    *sum += i64::from(part);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let bias = bias.map(|b| b[row + r]);
                out.set(token, row + r, finish(sum, x.scales[token], w.scales[row + r], bias));
            }
        }
        row += ROWS;
    }
    let rest = row..out.rows().end;
    let tokens = 0..out.tokens();
    super::scalar::linear_range(w, x, bias, out, rest, tokens);
}

/// # Safety
/// NEON; all slices have the same length, at most [`SEGMENT`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn segment(w: [&[i8]; ROWS], x: &[i16]) -> [i32; ROWS] {
    let mut acc = [[vdupq_n_s32(0); 2]; ROWS];
    let whole = x.len() & !15;
    for k in (0..whole).step_by(16) {
        // SAFETY: k + 16 <= whole, which is within every slice.
        unsafe {
            let (a, b) = (vld1q_s16(x.as_ptr().add(k)), vld1q_s16(x.as_ptr().add(k + 8)));
            for r in 0..ROWS {
                let weights = vld1q_s8(w[r].as_ptr().add(k));
                let (c, d) = (vmovl_s8(vget_low_s8(weights)), vmovl_high_s8(weights));
                acc[r][0] = vmlal_s16(acc[r][0], vget_low_s16(c), vget_low_s16(a));
                acc[r][1] = vmlal_high_s16(acc[r][1], c, a);
                acc[r][0] = vmlal_s16(acc[r][0], vget_low_s16(d), vget_low_s16(b));
                acc[r][1] = vmlal_high_s16(acc[r][1], d, b);
            }
        }
    }
    std::array::from_fn(|r| {
        let rest = w[r][whole..].iter().zip(&x[whole..]).map(|(&w, &x)| i32::from(w) * i32::from(x));
        vaddvq_s32(vaddq_s32(acc[r][0], acc[r][1])) + rest.sum::<i32>()
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
pub(crate) unsafe fn weighted_sum(weights: &[u32], values: &[i16], sums: &mut [i64]) {
    let dim = sums.len();
    let whole = dim & !3;
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
