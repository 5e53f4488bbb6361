//! The reference: plain loops that say what the others must equal.

use crate::linear::finish;
use crate::{MatrixView, Output, QuantisedView, SEGMENT};

pub(crate) fn linear(w: &MatrixView<'_>, x: QuantisedView<'_>, bias: Option<&[i32]>, out: &mut Output<'_>) {
    for row in out.rows() {
        let weights = w.row(row);
        for token in 0..out.tokens() {
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

pub(crate) fn scores(query: &[i16], keys: &[i16], out: &mut [i32]) {
    for (out, key) in out.iter_mut().zip(keys.chunks_exact(query.len())) {
        *out =
            query.iter().zip(key).fold(0i32, |sum, (&q, &k)| sum.wrapping_add(i32::from(q) * i32::from(k)));
    }
}

pub(crate) fn weighted_sum(weights: &[u32], values: &[i16], sums: &mut [i64]) {
    for (&weight, values) in weights.iter().zip(values.chunks_exact(sums.len())) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = sum.wrapping_add(i64::from(weight) * i64::from(value));
        }
    }
}
