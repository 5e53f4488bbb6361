//! Rotary positions.

use crate::Kernel;
use crate::scale::{round_shift, saturate32};

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Neighbours: 0 with 1, 2 with 3 (Llama as GGUF files hold it).
    Interleaved,
    /// Halves: `i` with `i + head_dim/2` (Qwen, GPT-NeoX).
    Half,
}

/// Turns one head of Q16 words in place: each pair `(a, b)` becomes `(a·cos - b·sin, a·sin + b·cos)`, each rounded once
/// (half up) and saturated.
///
/// `cos` and `sin` hold the row of the model's table for the token's position: Q30, at most `2^30` in absolute value.
/// If they are shorter than half a head, the values that have no entry stay as they are (partial rotation): the rotated
/// part is the first `2 · cos.len()` values.
///
/// # Panics
/// If `cos` and `sin` differ in length or have more than half as many entries as the head has values.
pub fn rope(_kernel: Kernel, style: RopeStyle, head: &mut [i32], cos: &[i32], sin: &[i32]) {
    let half = cos.len();
    assert!(sin.len() == half && half * 2 <= head.len(), "the tables do not fit the head");
    let head = &mut head[..2 * half];
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
    // Each product is at most 2^61 for entries within 2^30, so the sums do not wrap.
    let x = (a * c).wrapping_sub(b * s);
    let y = (a * s).wrapping_add(b * c);
    (saturate32(round_shift(x, 30)), saturate32(round_shift(y, 30)))
}
