//! The reference: plain loops that say what the others must equal.

use std::ops::Range;

use crate::linear::finish;
use crate::scale::{Rescale, round_shift, saturate32};
use crate::tables::{exp2_neg, gelu_argument, normal, sigmoid};
use crate::{Activation, MatrixView, Output, QuantisedView, RopeStyle, Scale};

pub(crate) fn linear(w: &MatrixView<'_>, x: QuantisedView<'_>, bias: Option<&[i32]>, out: &mut Output<'_>) {
    let rows = out.rows();
    linear_range(w, x, bias, out, rows)
}

/// Some rows of a linear layer.
pub(crate) fn linear_range(
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    out: &mut Output<'_>,
    rows: Range<usize>,
) {
    let mut weights = vec![0; w.cols];
    for row in rows {
        w.row(row, &mut weights);
        for token in 0..out.tokens() {
            let values = &x.values[token * x.cols..][..x.cols];
            let products = weights.iter().zip(values).map(|(&w, &x)| i32::from(w).wrapping_mul(x.into()));
            let sum = products.map(i64::from).sum();
            out.keep(token, row, [sum]);
            out.set(token, row, finish(sum, w.cols, x.scales[token], w.scales[row], bias.map(|b| b[row])));
        }
    }
}

/// What a linear layer makes of the exact sums of one token.
pub(crate) fn rescale_sums(
    sums: &[i64],
    cols: usize,
    x: Scale,
    w: &[Scale],
    bias: Option<&[i32]>,
    out: &mut [i32],
) {
    for (row, ((out, &sum), &w)) in out.iter_mut().zip(sums).zip(w).enumerate() {
        *out = finish(sum, cols, x, w, bias.map(|b| b[row]));
    }
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

/// Adds `weights[q][t] · values[t][d]` to `sums[q][d]` for up to [`TOGETHER`](crate::attention::TOGETHER) queries.
pub(crate) fn weighted_sum(weights: &[&[u32]], values: &[i16], sums: &mut [i64]) {
    let dim = sums.len() / weights.len();
    for (weights, sums) in weights.iter().zip(sums.chunks_exact_mut(dim)) {
        for (&weight, values) in weights.iter().zip(values.chunks_exact(dim)) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = sum.wrapping_add(i64::from(weight) * i64::from(value));
            }
        }
    }
}

/// The largest magnitude.
#[inline(always)]
pub(crate) fn max_abs(x: &[i32]) -> u32 {
    x.iter().fold(0, |max, x| max.max(x.unsigned_abs()))
}

/// Writes `rshift(x · reciprocal, shift)`, within ±2047.
#[inline(always)]
pub(crate) fn scale_row(x: &[i32], reciprocal: i32, shift: u32, values: &mut [i16]) {
    let half = 1i64 << (shift - 1); // the shift is 20 to 51
    for (v, &x) in values.iter_mut().zip(x) {
        *v = ((i64::from(x) * i64::from(reciprocal) + half) >> shift) as i16;
    }
}

/// The sum of the squares of `x`, exactly, and the largest magnitude of `x · weight`.
#[inline(always)]
pub(crate) fn norm_sums(x: &[i32], weight: &[i32]) -> (u128, u64) {
    let (mut high, mut low, mut max) = (0u64, 0u64, 0u64);
    for (&x, &w) in x.iter().zip(weight) {
        // A square is at most 2^62. Its halves are summed apart: 2^20 of them stay below 2^52.
        let square = (i64::from(x) * i64::from(x)) as u64;
        high = high.wrapping_add(square >> 32);
        low = low.wrapping_add(square & 0xffff_ffff);
        max = max.max((i64::from(x) * i64::from(w)).unsigned_abs());
    }
    ((u128::from(high) << 32) + u128::from(low), max)
}

/// Writes `rshift(x · weight, shift)`, within 31 bits.
#[inline(always)]
pub(crate) fn norm_products(x: &[i32], weight: &[i32], shift: u32, products: &mut [i32]) {
    for ((p, &x), &w) in products.iter_mut().zip(x).zip(weight) {
        *p = round_shift(i64::from(x) * i64::from(w), shift) as i32;
    }
}

/// Turns the pairs of a head, which is twice as long as the tables.
#[inline(always)]
pub(crate) fn rope(style: RopeStyle, head: &mut [i32], cos: &[i32], sin: &[i32]) {
    let half = cos.len();
    match style {
        RopeStyle::Interleaved => {
            for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                (pair[0], pair[1]) = turn(pair[0], pair[1], c, s);
            }
        }
        RopeStyle::Half => {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*a, *b) = turn(*a, *b, c, s);
            }
        }
    }
}

#[inline(always)]
fn turn(a: i32, b: i32, c: i32, s: i32) -> (i32, i32) {
    let [a, b, c, s] = [a, b, c, s].map(i64::from);
    // Each product is at most 1.5 · 2^61 for entries within 1.5 · 2^30, so the sums do not wrap.
    let x = (a * c).wrapping_sub(b * s);
    let y = (a * s).wrapping_add(b * c);
    (saturate32(round_shift(x, 30)), saturate32(round_shift(y, 30)))
}

/// The step of a feed-forward layer; without `up`, as if that were one.
pub(crate) fn activate(activation: Activation, gate: &mut [i32], up: Option<&[i32]>) {
    match activation {
        Activation::Silu => weighted(gate, up, sigmoid),
        Activation::GeluTanh => weighted(gate, up, |x| sigmoid(gelu_argument(x))),
        Activation::GeluErf => weighted(gate, up, normal),
    }
}

#[inline(always)]
fn weighted(gate: &mut [i32], up: Option<&[i32]>, weight: impl Fn(i32) -> u32) {
    for (i, g) in gate.iter_mut().enumerate() {
        let y = round_shift(i64::from(*g) * i64::from(weight(*g)), 30);
        let up = up.map_or(1 << 16, |up| up[i]);
        *g = saturate32(round_shift(y * i64::from(up), 16));
    }
}

/// Sixteen chains of products, as the compiler lays them out.
pub(crate) fn multiply_adds(rounds: u64) -> u64 {
    const CHAINS: usize = 16;
    let by = std::hint::black_box(3i32);
    let mut chains: [i32; CHAINS] = std::array::from_fn(|i| i as i32);
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = chain.wrapping_mul(by).wrapping_add(by);
        }
    }
    std::hint::black_box(&chains);
    rounds * CHAINS as u64
}
