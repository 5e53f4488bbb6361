//! The reference: plain loops that say what the others must equal.

use std::ops::Range;

use crate::linear::finish;
use crate::scale::Rescale;
use crate::tables::exp2_neg;
use crate::{MatrixView, Output, QuantisedView, SEGMENT, Scale};

pub(crate) fn linear(w: &MatrixView<'_>, x: QuantisedView<'_>, bias: Option<&[i32]>, out: &mut Output<'_>) {
    let (rows, tokens) = (out.rows(), 0..out.tokens());
    linear_range(w, x, bias, out, rows, tokens)
}

/// Some rows and tokens of a linear layer.
pub(crate) fn linear_range(
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    out: &mut Output<'_>,
    rows: Range<usize>,
    tokens: Range<usize>,
) {
    for row in rows {
        let weights = w.row(row);
        for token in tokens.clone() {
            let values = &x.values[token * x.cols..][..x.cols];
            let sum =
                weights.chunks(SEGMENT).zip(values.chunks(SEGMENT)).map(|(w, x)| i64::from(dot(w, x))).sum();
            out.set(token, row, finish(sum, x.scales[token], w.scales[row], bias.map(|b| b[row])));
        }
    }
}

/// At most [`SEGMENT`] products: the sum of weights in ±127 and activations in ±2047 is below `2^30`.
fn dot(w: &[i8], x: &[i16]) -> i32 {
    w.iter().zip(x).fold(0i32, |sum, (&w, &x)| sum.wrapping_add(i32::from(w) * i32::from(x)))
}

/// The dot products of one query with each key, rescaled to Q16. Returns the largest.
pub(crate) fn scores(query: &[i16], common: Scale, keys: &[i16], scales: &[Scale], out: &mut [i32]) -> i32 {
    let mut max = i32::MIN;
    for ((out, key), &scale) in out.iter_mut().zip(keys.chunks_exact(query.len())).zip(scales) {
        let sum =
            query.iter().zip(key).fold(0i32, |sum, (&q, &k)| sum.wrapping_add(i32::from(q) * i32::from(k)));
        *out = Rescale::of(common, scale).apply(sum);
        max = max.max(*out);
    }
    max
}

/// The weights of attention in Q22, with each value's scale folded in relative to `2^(31 + exponent)`. Returns the sum
/// of the weights without the scales.
pub(crate) fn weigh(scores: &[i32], max: i32, scales: &[Scale], exponent: i32, out: &mut [u32]) -> u64 {
    let mut total = 0;
    for ((out, &score), scale) in out.iter_mut().zip(scores).zip(scales) {
        let e = exp2_neg(max.wrapping_sub(score) as u32); // the difference of two i32 fits u32
        total += u64::from((e + (1 << 7)) >> 8);
        let relative = scale.mantissa >> exponent.wrapping_sub(scale.exponent).clamp(0, 31);
        *out = ((u64::from(e) * u64::from(relative) + (1 << 38)) >> 39) as u32;
    }
    total
}

/// Adds `weights[t] · values[t][d]` to `sums[d]`.
pub(crate) fn weighted_sum(weights: &[u32], values: &[i16], sums: &mut [i64]) {
    for (&weight, values) in weights.iter().zip(values.chunks_exact(sums.len())) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = sum.wrapping_add(i64::from(weight) * i64::from(value));
        }
    }
}
