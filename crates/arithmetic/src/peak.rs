//! What a processor could do at best, to compare with.

use crate::{Kernel, kernels};

/// Does as many multiply-adds of 16-bit integers as the instruction set can, `rounds` times over, on registers alone, and
/// returns how many they were. Divided by the time that it takes, it is the limit of [`crate::linear`] on one thread.
pub fn multiply_adds(kernel: Kernel, rounds: u64) -> u64 {
    kernels::multiply_adds(kernel, rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_counts_its_rounds() {
        for kernel in Kernel::available() {
            let one = multiply_adds(kernel, 1);
            assert!(one > 0 && multiply_adds(kernel, 1000) == 1000 * one, "{kernel:?}");
        }
    }
}
