//! Operations on Q16 words, one by one.

use crate::scale::Rescale;
use crate::{Kernel, Scale, kernels};

/// SwiGLU: `gate[i] = silu(gate[i]) · up[i]`, in Q16, saturating.
///
/// `silu(g) = round(g · sigmoid(g) / 2^30)` with [`sigmoid`](crate::tables::sigmoid) in Q30; the product with `up` is rounded by 16 bits.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(kernel: Kernel, gate: &mut [i32], up: &[i32]) {
    assert_eq!(gate.len(), up.len(), "gate and up must have the same length");
    kernels::silu_mul(kernel, gate, up)
}

/// `x[i] += y[i]`, saturating: the residual connection.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: &mut [i32], y: &[i32]) {
    assert_eq!(x.len(), y.len(), "the summands must have the same length");
    for (x, &y) in x.iter_mut().zip(y) {
        *x = x.saturating_add(y);
    }
}

/// A row of 8-bit weights as Q16 words, `round(w · scale)`, half up, saturating: the embedding of a token.
///
/// # Panics
/// If the lengths differ.
pub fn dequantise_row(row: &[i8], scale: Scale, out: &mut [i32]) {
    assert_eq!(row.len(), out.len(), "row and output must have the same length");
    let rescale = Rescale::one(scale, 0);
    for (out, &w) in out.iter_mut().zip(row) {
        *out = rescale.apply(i32::from(w));
    }
}
