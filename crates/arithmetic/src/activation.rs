//! Operations on Q16 words, one by one.

use crate::scale::Rescale;
use crate::{Kernel, Scale, kernels};

/// What a feed-forward layer does between its linear layers, `x · weight(x)` with a weight from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)` with [`sigmoid`](crate::tables::sigmoid).
    #[default]
    Silu,
    /// GELU in the form with tanh: `x · sigmoid(2 √(2/π) (x + 0.044715 x³))` (Hendrycks and Gimpel, arXiv 1606.08415).
    GeluTanh,
    /// GELU itself: `x · Φ(x)` with [`normal`](crate::tables::normal).
    GeluErf,
}

/// The step between the linear layers of a feed-forward layer, in place, in Q16, saturating.
///
/// With `y = round(x · weight / 2^30)` for `x` in `gate`: `y` itself, or `y · up` rounded by 16 bits if the layer is gated
/// (SwiGLU, GeGLU).
///
/// # Panics
/// If the lengths differ.
pub fn activate(kernel: Kernel, activation: Activation, gate: &mut [i32], up: Option<&[i32]>) {
    assert!(up.is_none_or(|up| up.len() == gate.len()), "gate and up must have the same length");
    kernels::activate(kernel, activation, gate, up)
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

/// A row of weights as Q16 words, `round(w · scale)`, half up, saturating: the embedding of a token.
///
/// # Panics
/// If the lengths differ.
pub fn dequantise_row(row: &[i16], scale: Scale, out: &mut [i32]) {
    assert_eq!(row.len(), out.len(), "row and output must have the same length");
    let rescale = Rescale::one(scale, 0);
    for (out, &w) in out.iter_mut().zip(row) {
        *out = rescale.apply(i32::from(w));
    }
}
