//! The inner loops, one file an instruction set. [`scalar`] is the reference; a twin of a function there has its name.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod blocked;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::{Activation, Kernel, MatrixView, Output, QuantisedView, RopeStyle, Scale};

/// Defines functions that call the twin in the module for the kernel, if the machine has the instructions, or else the
/// reference. The list gives the module for each instruction set that has a twin.
macro_rules! dispatch {
    ($(
        [x86: $avx2:ident, $avx512:ident; arm: $neon:ident]
        $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;
    )*) => {$(
        pub(crate) fn $name(kernel: Kernel, $($argument: $type),*) $(-> $result)? {
            match kernel {
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512Vnni if kernel.is_available() => {
                    // SAFETY: the machine has the instructions; the public functions have checked the shapes.
                    unsafe { $avx512::$name($($argument),*) }
                }
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 | Kernel::Avx512Vnni if Kernel::Avx2.is_available() => {
                    // SAFETY: as above.
                    unsafe { $avx2::$name($($argument),*) }
                }
                #[cfg(target_arch = "aarch64")]
                Kernel::Neon if kernel.is_available() => {
                    // SAFETY: as above. (The reference is safe and needs no such promise.)
                    #[allow(unused_unsafe)]
                    unsafe { $neon::$name($($argument),*) }
                }
                _ => scalar::$name($($argument),*),
            }
        }
    )*};
}

dispatch! {
    [x86: avx2, avx512; arm: neon]
    linear(w: &MatrixView<'_>, x: QuantisedView<'_>, bias: Option<&[i32]>, out: &mut Output<'_>);

    [x86: avx2, avx2; arm: scalar]
    rescale_sums(sums: &[i64], cols: usize, x: Scale, w: &[Scale], bias: Option<&[i32]>, out: &mut [i32]);

    [x86: avx2, avx2; arm: neon]
    scores(query: &[i16], common: Scale, keys: &[i16], scales: &[Scale], out: &mut [i32]) -> i32;

    [x86: avx2, avx2; arm: scalar]
    weigh(scores: &[i32], max: i32, scales: &[Scale], exponent: i32, out: &mut [u32]) -> u64;

    [x86: avx2, avx2; arm: neon]
    weighted_sum(weights: &[&[u32]], values: &[i16], sums: &mut [i64]);

    [x86: avx2, avx2; arm: scalar]
    activate(activation: Activation, gate: &mut [i32], up: Option<&[i32]>);

    [x86: avx2, avx2; arm: scalar]
    max_abs(x: &[i32]) -> u32;

    [x86: avx2, avx2; arm: scalar]
    scale_row(x: &[i32], reciprocal: i32, shift: u32, values: &mut [i16]);

    [x86: avx2, avx2; arm: scalar]
    norm_sums(x: &[i32], weight: &[i32]) -> (u128, u64);

    [x86: avx2, avx2; arm: scalar]
    norm_products(x: &[i32], weight: &[i32], shift: u32, products: &mut [i32]);

    [x86: avx2, avx2; arm: scalar]
    rope(style: RopeStyle, head: &mut [i32], cos: &[i32], sin: &[i32]);

    [x86: avx2, avx512; arm: neon]
    multiply_adds(rounds: u64) -> u64;
}
