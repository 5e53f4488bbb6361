//! The inner loops, one file an instruction set.

mod scalar;

use crate::{Kernel, MatrixView, Output, QuantisedView};

pub(crate) fn linear(
    _kernel: Kernel,
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    out: &mut Output<'_>,
) {
    scalar::linear(w, x, bias, out)
}

/// The dot products of one query with rows of keys.
pub(crate) fn scores(_kernel: Kernel, query: &[i16], keys: &[i16], out: &mut [i32]) {
    scalar::scores(query, keys, out)
}

/// Adds `weights[t] · values[t][d]` to `sums[d]`.
pub(crate) fn weighted_sum(_kernel: Kernel, weights: &[u32], values: &[i16], sums: &mut [i64]) {
    scalar::weighted_sum(weights, values, sums)
}
