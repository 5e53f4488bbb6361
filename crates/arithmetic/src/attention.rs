//! Attention of one query head of one token over quantised keys and values.

use crate::scale::{Rescale, round_shift, saturate32};
use crate::tables::{LOG2_E_Q30, sigmoid};
use crate::{HEAD_DIM_MAX, Kernel, LENGTH_MAX, Scale, kernels};

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
    weights: Vec<u32>,
    sums: Vec<i64>,
}

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

/// `out = softmax(cap(query · keys · factor)) · values` in Q16, saturating.
///
/// The blocks together hold the tokens that the query may see, in any order. The result depends on nothing else: not on the split into blocks, nor on other
/// queries. Without any token, the output is zero.
///
/// # Panics
/// If the lengths of the slices of a block disagree, `query` and `out` differ in length, are empty or exceed
/// [`HEAD_DIM_MAX`], or there are more than [`LENGTH_MAX`] tokens.
pub fn attention(
    kernel: Kernel,
    query: &[i16],
    query_scale: Scale,
    scoring: Scoring,
    blocks: &[KeyValues<'_>],
    scratch: &mut AttentionScratch,
    out: &mut [i32],
) {
    let dim = query.len();
    assert!(out.len() == dim && (1..=HEAD_DIM_MAX).contains(&dim), "a head has 1 to {HEAD_DIM_MAX} values");
    let tokens = blocks.iter().map(|b| b.key_scales.len()).sum::<usize>();
    assert!(tokens <= LENGTH_MAX, "{tokens} tokens are more than {LENGTH_MAX}");
    scratch.scores.resize(tokens, 0);
    scratch.weights.resize(tokens, 0);
    scratch.sums.clear();
    scratch.sums.resize(dim, 0);

    // Scores in Q16, base 2, and the largest exponent of the values' scales.
    let query_scale = query_scale.mul(scoring.factor);
    let mut rest = &mut scratch.scores[..];
    let (mut max, mut exponent) = (i32::MIN, None);
    for block in blocks {
        let n = block.key_scales.len();
        assert!(
            block.value_scales.len() == n && block.keys.len() == n * dim && block.values.len() == n * dim,
            "a block of keys and values does not fit its shape"
        );
        let (scores, after) = rest.split_at_mut(n);
        rest = after;
        let largest = kernels::scores(kernel, query, query_scale, block.keys, block.key_scales, scores);
        max = max.max(match scoring.cap {
            None => largest,
            Some(cap) => capped(cap, scores),
        });
        exponent =
            exponent.max(block.value_scales.iter().filter(|s| s.mantissa != 0).map(|s| s.exponent).max());
    }
    let Some(exponent) = exponent else {
        out.fill(0);
        return;
    };

    // Weights in Q22. Each value's scale is folded into its weight, relative to 2^(31 + exponent).
    let mut total = 0u64;
    let (mut scores, mut weights) = (&scratch.scores[..], &mut scratch.weights[..]);
    for block in blocks {
        let (now, after) = scores.split_at(block.value_scales.len());
        scores = after;
        let (out, after) = weights.split_at_mut(now.len());
        weights = after;
        total += kernels::weigh(kernel, now, max, block.value_scales, exponent, out);
        kernels::weighted_sum(kernel, out, block.values, &mut scratch.sums);
    }
    // The token of the largest score has weight 2^22, so the total is not zero.
    let rescale = Rescale::one(Scale::from_integer(total).recip(), 31 + exponent);
    for (out, &sum) in out.iter_mut().zip(&scratch.sums) {
        *out = rescale.apply_wide(sum);
    }
}
