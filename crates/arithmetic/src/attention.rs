//! Attention of one query head of one token over quantised keys and values.

use crate::scale::Rescale;
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

/// The factor of the scores: `log2(e) / sqrt(head_dim)`.
pub fn attention_factor(head_dim: usize) -> Scale {
    Scale::inverse_sqrt(head_dim as u64).mul(Scale::LOG2_E)
}

/// `out = softmax(query · keys · factor) · values` in Q16, saturating.
///
/// The blocks together hold the tokens that the query may see, the query's own last. `factor` contains the logarithm
/// of e, see [`attention_factor`]. The result depends on nothing else: not on the split into blocks, nor on other
/// queries. Without any token, the output is zero.
///
/// # Panics
/// If the lengths of the slices of a block disagree, `query` and `out` differ in length, are empty or exceed
/// [`HEAD_DIM_MAX`], or there are more than [`LENGTH_MAX`] tokens.
pub fn attention(
    kernel: Kernel,
    query: &[i16],
    query_scale: Scale,
    factor: Scale,
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
    let query_scale = query_scale.mul(factor);
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
        max = max.max(kernels::scores(kernel, query, query_scale, block.keys, block.key_scales, scores));
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
