//! The inner loops, one file an instruction set.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use crate::{Kernel, MatrixView, Output, QuantisedView, Scale};

/// Calls the twin of a kernel if the machine has it, else the reference.
macro_rules! dispatch {
    ($kernel:expr, $function:ident ( $($argument:expr),* )) => {
        match $kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::Avx512Vnni if Kernel::Avx2.is_available() => {
                // SAFETY: the machine has AVX2; callers have checked the shapes, as the reference needs them too.
                unsafe { avx2::$function($($argument),*) }
            }
            _ => scalar::$function($($argument),*),
        }
    };
}

pub(crate) fn linear(
    kernel: Kernel,
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    out: &mut Output<'_>,
) {
    dispatch!(kernel, linear(w, x, bias, out))
}

pub(crate) fn scores(
    kernel: Kernel,
    query: &[i16],
    common: Scale,
    keys: &[i16],
    scales: &[Scale],
    out: &mut [i32],
) -> i32 {
    dispatch!(kernel, scores(query, common, keys, scales, out))
}

pub(crate) fn weigh(
    kernel: Kernel,
    scores: &[i32],
    max: i32,
    scales: &[Scale],
    exponent: i32,
    out: &mut [u32],
) -> u64 {
    dispatch!(kernel, weigh(scores, max, scales, exponent, out))
}

pub(crate) fn weighted_sum(kernel: Kernel, weights: &[u32], values: &[i16], sums: &mut [i64]) {
    dispatch!(kernel, weighted_sum(weights, values, sums))
}
