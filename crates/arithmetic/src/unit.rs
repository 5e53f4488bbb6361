//! The direction of a vector: what a sentence embedding is.

use crate::Scale;
use crate::scale::Rescale;

/// A vector of length one with the direction of `sums`, in Q30. Zero stays zero.
///
/// With `h = bits(max |sum|) - 23`, the sums divided by `2^h` (rounded half up, or exact if `h` is negative) are
/// multiplied by one over the root of the sum of their squares.
///
/// # Panics
/// If the lengths differ or exceed 65,536, or a sum exceeds 2^62 in absolute value.
pub fn unit_vector(sums: &[i64], out: &mut [i32]) {
    assert!(
        sums.len() == out.len() && sums.len() <= 1 << 16,
        "the vectors must have one length, at most 65,536"
    );
    let max = sums.iter().fold(0, |max, sum| max.max(sum.unsigned_abs()));
    assert!(max <= 1 << 62, "a sum is too large");
    let shift = 41 - max.leading_zeros() as i32; // bit length minus 23
    let word = |sum: i64| match shift {
        ..0 => sum << -shift,
        0 => sum,
        1.. => (sum + (1 << (shift - 1))) >> shift,
    };
    // At most 2^46 each, and 2^16 of them.
    let squares: u64 = sums.iter().map(|&sum| word(sum).unsigned_abs().pow(2)).sum();
    let rescale = Rescale::one(Scale::inverse_sqrt(squares), 14);
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = rescale.apply(word(sum) as i32);
    }
}
