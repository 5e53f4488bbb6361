//! The choice of experts, and the mix of what they answer.

use crate::scale::{round_shift, saturate32};
use crate::tables::{LOG2_E_Q30, exp2_neg};

/// The experts of one token and their weights: the first `used` experts in the order *larger logit first, lower number
/// among equals*, with the softmax over these alone, in Q30. (Shazeer et al., arXiv 1701.06538; Mixtral, arXiv 2401.04088.)
///
/// `logits` has a Q16 word for each expert.
///
/// # Panics
/// If `used` is zero or exceeds the number of experts.
pub fn route(logits: &[i32], used: usize, out: &mut Vec<(usize, u32)>) {
    assert!((1..=logits.len()).contains(&used), "{used} of {} experts cannot be used", logits.len());
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by_key(|&expert| (std::cmp::Reverse(logits[expert]), expert));
    order.truncate(used);
    let top = i64::from(logits[order[0]]);
    let weigh = |expert: usize| {
        let below = (top - i64::from(logits[expert])) as u64; // below 2^32
        let t = (below * u64::from(LOG2_E_Q30) + (1 << 29)) >> 30;
        u64::from(u32::try_from(t).map_or(0, exp2_neg))
    };
    // The first weighs 2^30, so the sum is not zero.
    let sum: u64 = order.iter().map(|&expert| weigh(expert)).sum();
    out.clear();
    out.extend(order.into_iter().map(|expert| {
        let weight = ((weigh(expert) << 30) + sum / 2) / sum; // at most 2^30
        (expert, weight as u32)
    }));
}

/// `out[i] = round(sum over experts of weight · y[i] / 2^30)`, in Q16, saturating. `parts` has the weight (Q30) and the
/// output of each expert.
///
/// # Panics
/// If an output differs from `out` in length.
pub fn mix<'a>(parts: impl Iterator<Item = (u32, &'a [i32])> + Clone, out: &mut [i32]) {
    assert!(
        parts.clone().all(|(_, y)| y.len() == out.len()),
        "the experts' outputs must be as long as the result"
    );
    for (i, out) in out.iter_mut().enumerate() {
        // The weights add up to 2^30 and half a unit an expert: below 2^62.
        let sum: i64 = parts.clone().map(|(weight, y)| i64::from(weight) * i64::from(y[i])).sum();
        *out = saturate32(round_shift(sum, 30));
    }
}
