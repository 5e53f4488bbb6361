//! Attention of query heads of one token over quantised keys and values.

use crate::scale::{Rescale, round_shift, saturate32};
use crate::tables::{LOG2_E_Q30, sigmoid};
use crate::{HEAD_DIM_MAX, Kernel, LENGTH_MAX, QuantisedView, Scale, kernels};

/// Quantised keys and values of consecutive tokens for one key-value head.
///
/// A cache may hold a sequence in one such block or in several (pages): the result is the same.
#[derive(Clone, Copy, Debug)]
pub struct KeyValues<'a> {
    /// `[tokens][head_dim]`, in ±2047, rotated.
    pub keys: &'a [i16],
    /// One scale a token.
    pub key_scales: &'a [Scale],
    /// `[tokens][head_dim]`, in ±2047.
    pub values: &'a [i16],
    /// One scale a token.
    pub value_scales: &'a [Scale],
}

/// Buffers that [`attention`] reuses from call to call.
#[derive(Clone, Debug, Default)]
pub struct AttentionScratch {
    scores: Vec<i32>,
    /// `[queries][tokens]`.
    weights: Vec<u32>,
    totals: Vec<u64>,
    /// `[queries][head_dim]`.
    sums: Vec<i64>,
}

/// Queries whose values are added up together: what a kernel keeps in registers.
pub(crate) const TOGETHER: usize = 3;

/// How dot products become the exponents of a softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// What a dot product is multiplied by: `1 / sqrt(divisor)`, times `log2(e)` unless scores are capped.
    pub factor: Scale,
    /// The cap of the scores.
    pub cap: Option<SoftCap>,
}

impl Scoring {
    /// Dot products are divided by the root of `divisor`, normally the length of a head, and then capped.
    pub fn new(divisor: u64, cap: Option<SoftCap>) -> Scoring {
        let root = Scale::inverse_sqrt(divisor);
        Scoring { factor: if cap.is_some() { root } else { root.mul(Scale::LOG2_E) }, cap }
    }
}

/// A bound that numbers approach smoothly: `cap · tanh(x / cap)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftCap {
    /// Q16.
    cap: i64,
    /// `round(2^47 / cap)`, at most `2^31`.
    reciprocal: i64,
}

impl SoftCap {
    /// The caps that can be used, in Q16: 1 to 1,024.
    pub const RANGE: std::ops::RangeInclusive<u32> = 1 << 16..=1 << 26;

    /// A cap in Q16.
    ///
    /// # Panics
    /// If it is not in [`SoftCap::RANGE`].
    pub fn new(cap: u32) -> SoftCap {
        assert!(Self::RANGE.contains(&cap), "the cap {cap} is out of range");
        let cap = i64::from(cap);
        SoftCap { cap, reciprocal: ((1 << 47) + cap / 2) / cap }
    }

    /// `cap · (2 · sigmoid(2x / cap) - 1)`, Q16 to Q16.
    pub fn apply(self, x: i32) -> i32 {
        let twice = saturate32(round_shift(i64::from(x) * self.reciprocal, 30));
        let tanh = 2 * i64::from(sigmoid(twice)) - (1 << 30);
        round_shift(self.cap * tanh, 30) as i32 // at most the cap
    }
}

/// Caps scores and turns them from powers of e into powers of two. Returns the largest.
fn capped(cap: SoftCap, scores: &mut [i32]) -> i32 {
    let mut max = i32::MIN;
    for score in scores {
        // The cap is at most 2^26, so the result fits.
        *score = round_shift(i64::from(cap.apply(*score)) * i64::from(LOG2_E_Q30), 30) as i32;
        max = max.max(*score);
    }
    max
}

/// For each query `out = softmax(cap(query · keys · factor)) · values` in Q16, saturating. The queries are of one token: those of the heads
/// that share keys and values. `out` has the shape of the queries.
///
/// The blocks together hold the tokens that the queries may see, in any order. A result depends on nothing else: not on the split into blocks, nor on other
/// queries. Without any token, it is zero.
///
/// # Panics
/// If the lengths of the slices of a block disagree, `queries` and `out` differ in length, a query has no values or more than
/// [`HEAD_DIM_MAX`], or there are more than [`LENGTH_MAX`] tokens.
pub fn attention(
    kernel: Kernel,
    queries: QuantisedView<'_>,
    scoring: Scoring,
    blocks: &[KeyValues<'_>],
    scratch: &mut AttentionScratch,
    out: &mut [i32],
) {
    let (dim, count) = (queries.cols, queries.scales.len());
    assert!((1..=HEAD_DIM_MAX).contains(&dim), "a head has 1 to {HEAD_DIM_MAX} values");
    assert!(
        queries.values.len() == count * dim && out.len() == count * dim,
        "queries and results differ in shape"
    );
    let tokens = blocks.iter().map(|b| b.key_scales.len()).sum::<usize>();
    assert!(tokens <= LENGTH_MAX, "{tokens} tokens are more than {LENGTH_MAX}");
    // The largest exponent of the values' scales.
    let mut exponent = i32::MIN;
    for block in blocks {
        let n = block.key_scales.len();
        assert!(
            block.value_scales.len() == n && block.keys.len() == n * dim && block.values.len() == n * dim,
            "a block of keys and values does not fit its shape"
        );
        for scale in block.value_scales {
            exponent = exponent.max(if scale.mantissa == 0 { i32::MIN } else { scale.exponent });
        }
    }
    if exponent == i32::MIN {
        out.fill(0);
        return;
    }
    let AttentionScratch { scores, weights, totals, sums } = scratch;
    scores.resize(tokens, 0);
    weights.resize(count * tokens, 0);
    sums.clear();
    sums.resize(count * dim, 0);
    totals.clear();
    for (query, weights) in (0..count).zip(weights.chunks_exact_mut(tokens)) {
        let scale = queries.scales[query].mul(scoring.factor);
        let query = &queries.values[query * dim..][..dim];
        // Scores in Q16, base 2.
        let (mut max, mut rest) = (i32::MIN, &mut scores[..]);
        for block in blocks {
            let (scores, after) = rest.split_at_mut(block.key_scales.len());
            rest = after;
            let largest = kernels::scores(kernel, query, scale, block.keys, block.key_scales, scores);
            max = max.max(match scoring.cap {
                None => largest,
                Some(cap) => capped(cap, scores),
            });
        }
        // Weights in Q22. Each value's scale is folded into its weight, relative to 2^(31 + exponent).
        let (mut total, mut scores, mut weights) = (0, &scores[..], weights);
        for block in blocks {
            let (now, after) = scores.split_at(block.value_scales.len());
            scores = after;
            let (out, after) = weights.split_at_mut(now.len());
            weights = after;
            total += kernels::weigh(kernel, now, max, block.value_scales, exponent, out);
        }
        totals.push(total);
    }
    let mut first = 0;
    for block in blocks {
        let n = block.value_scales.len();
        for (weights, sums) in weights.chunks(TOGETHER * tokens).zip(sums.chunks_mut(TOGETHER * dim)) {
            let mut parts: [&[u32]; TOGETHER] = [&[]; TOGETHER];
            let count = weights.len() / tokens;
            for (part, weights) in parts.iter_mut().zip(weights.chunks_exact(tokens)) {
                *part = &weights[first..first + n];
            }
            kernels::weighted_sum(kernel, &parts[..count], block.values, sums);
        }
        first += n;
    }
    for ((out, sums), &total) in out.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(&*totals) {
        // The token of the largest score has weight 2^22, so the total is not zero.
        let rescale = Rescale::one(Scale::from_integer(total).recip(), 31 + exponent);
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = rescale.apply_wide(sum);
        }
    }
}
