//! Rotary positions.

use crate::{Kernel, kernels};

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
/// `cos` and `sin` hold the row of the model's table for the token's position: Q30, at most `1.5 · 2^30` in absolute value.
/// If they are shorter than half a head, the values that have no entry stay as they are (partial rotation): the rotated
/// part is the first `2 · cos.len()` values.
///
/// # Panics
/// If `cos` and `sin` differ in length or have more than half as many entries as the head has values.
pub fn rope(kernel: Kernel, style: RopeStyle, head: &mut [i32], cos: &[i32], sin: &[i32]) {
    let half = cos.len();
    assert!(sin.len() == half && half * 2 <= head.len(), "the tables do not fit the head");
    kernels::rope(kernel, style, &mut head[..2 * half], cos, sin)
}
