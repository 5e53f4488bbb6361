//! Linear layers: 14-bit weights times 12-bit activations.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use crate::scale::{Rescale, round_shift, saturate32};
use crate::{Kernel, LENGTH_MAX, MatrixView, QuantisedView, Scale, kernels};

/// The number of columns whose products a proof sums at once: `64 · 8191 · 2047 < 2^30`.
pub const SEGMENT: usize = 64;

/// How far the exact sum of a row is rounded before it is rescaled: `max(0, bits(cols) - 6)`, so that what is left is at
/// most `2^30` in absolute value.
pub(crate) fn sum_shift(cols: usize) -> u32 {
    (usize::BITS - cols.leading_zeros()).saturating_sub(6)
}

/// Where a linear layer writes: for each token, the outputs of a range of rows of its matrix, in a token-major buffer.
///
/// It can be split by rows, and the parts handed to threads: they never overlap, although they interleave in memory.
#[derive(Debug)]
pub struct Output<'a> {
    data: *mut i32,
    tokens: usize,
    /// From one token to the next.
    stride: usize,
    /// The row whose output stands first in the buffer.
    origin: usize,
    rows: Range<usize>,
    /// Where the exact sums go as well, laid out as `data`.
    sums: Option<*mut i64>,
    life: PhantomData<&'a mut [i32]>,
}

// SAFETY: an `Output` is an exclusive borrow of its own words (and sums), as `&mut [i32]` is, and no two hold the same one.
unsafe impl Send for Output<'_> {}

impl<'a> Output<'a> {
    /// The whole of a buffer `[tokens][rows.len()]`, for these rows of the matrix.
    ///
    /// # Panics
    /// If the buffer does not have `tokens · rows.len()` words.
    pub fn new(buffer: &'a mut [i32], tokens: usize, rows: Range<usize>) -> Output<'a> {
        let stride = rows.len();
        assert_eq!(Some(buffer.len()), tokens.checked_mul(stride), "the buffer must be [tokens][rows]");
        Output {
            data: buffer.as_mut_ptr(),
            tokens,
            stride,
            origin: rows.start,
            rows,
            sums: None,
            life: PhantomData,
        }
    }

    /// As [`Output::new`], and the exact sums of the products, before they are rounded, go to `sums`.
    ///
    /// # Panics
    /// If the buffers do not both have `tokens · rows.len()` elements.
    pub fn with_sums(
        buffer: &'a mut [i32],
        sums: &'a mut [i64],
        tokens: usize,
        rows: Range<usize>,
    ) -> Output<'a> {
        assert_eq!(buffer.len(), sums.len(), "the sums must be [tokens][rows]");
        Output { sums: Some(sums.as_mut_ptr()), ..Output::new(buffer, tokens, rows) }
    }

    /// The rows that this part covers.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Splits into at most `parts` ranges of rows of nearly equal size, each a multiple of 8 rows but for the last.
    pub fn split(self, parts: usize) -> Vec<Output<'a>> {
        let size = self.rows.len().div_ceil(parts.max(1)).next_multiple_of(8);
        self.rows
            .clone()
            .step_by(size.max(1))
            .map(|start| Output { rows: start..(start + size).min(self.rows.end), ..self })
            .collect()
    }

    /// Writes one word.
    #[inline(always)]
    pub(crate) fn set(&mut self, token: usize, row: usize, value: i32) {
        debug_assert!(token < self.tokens && self.rows.contains(&row));
        // SAFETY: `linear` calls this with `token < self.tokens` and `row` in `self.rows`, within `stride` of the origin,
        // so the word is within the buffer borrowed for 'a; parts made by `split` have disjoint rows.
        unsafe { *self.data.add(token * self.stride + row - self.origin) = value }
    }

    /// Keeps exact sums of `N` rows from `row` on, if anybody wants them.
    #[inline(always)]
    pub(crate) fn keep<const N: usize>(&mut self, token: usize, row: usize, exact: [i64; N]) {
        debug_assert!(token < self.tokens && self.rows.contains(&row) && row + N <= self.rows.end);
        if let Some(sums) = self.sums {
            // SAFETY: as for `set`, with all `N` rows in `self.rows`; a write of unaligned bytes.
            unsafe {
                sums.add(token * self.stride + row - self.origin).cast::<[i64; N]>().write_unaligned(exact)
            }
        }
    }

    /// Whether exact sums are wanted.
    #[inline(always)]
    #[allow(dead_code)] // only the vector kernels have them elsewhere
    pub(crate) fn keeps_sums(&self) -> bool {
        self.sums.is_some()
    }

    /// Writes the words of four rows from `row` on.
    #[inline(always)]
    #[allow(dead_code)] // only the vector kernels have four at once
    pub(crate) fn set4(&mut self, token: usize, row: usize, values: [i32; 4]) {
        debug_assert!(token < self.tokens && self.rows.contains(&row) && row + 4 <= self.rows.end);
        // SAFETY: as for `set`, with `row + 3` in `self.rows` too; a write of unaligned bytes.
        unsafe {
            self.data.add(token * self.stride + row - self.origin).cast::<[i32; 4]>().write_unaligned(values)
        }
    }
}

/// `out[t][r] = round(sum over c of w[r][c] · x[t][c] · scales) + bias[r]`, in Q16, saturating, for every token and for
/// the rows that `out` covers.
///
/// The sum is exact. It is rounded to a multiple of `2^h`, `h = max(0, bits(cols) - 6)`, multiplied by
/// `(x.scale.m · w.scale.m + 2^30) >> 31`, shifted right with rounding half up and saturated to 32 bits; then the bias
/// (Q16, indexed by row of the matrix) is added, saturating.
///
/// # Panics
/// If the shapes disagree: `x.cols` and `w.cols`, tokens of `x` and `out`, rows of `out` and `w`, or the length of a
/// slice and its shape; or if `cols` exceeds [`LENGTH_MAX`].
pub fn linear(
    kernel: Kernel,
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    out: &mut Output<'_>,
) {
    assert!(w.cols <= LENGTH_MAX, "a row has {} columns, more than {LENGTH_MAX}", w.cols);
    assert!(
        Some(w.weights.len()) == w.encoding.matrix_bytes(w.rows, w.cols) && w.scales.len() == w.rows,
        "the matrix does not fit its shape"
    );
    assert!(
        x.cols == w.cols && x.values.len() == x.scales.len() * x.cols,
        "the activations do not fit the matrix"
    );
    assert!(out.tokens == x.scales.len() && out.rows.end <= w.rows, "the output does not fit the operands");
    assert!(bias.is_none_or(|b| b.len() == w.rows), "the bias does not fit the matrix");
    kernels::linear(kernel, w, x, bias, out);
}

/// What [`linear`] makes of the exact sums of one token: `out[r]` from `sums[r]`, for a matrix of `cols` columns.
///
/// # Panics
/// If scales, bias (where there is one), sums and `out` are not equally long.
pub fn rescale_sums(
    kernel: Kernel,
    sums: &[i64],
    cols: usize,
    x: Scale,
    w: &[Scale],
    bias: Option<&[i32]>,
    out: &mut [i32],
) {
    let rows = out.len();
    assert!(
        sums.len() == rows && w.len() == rows && bias.is_none_or(|b| b.len() == rows),
        "sums, scales, bias and output must have the same rows"
    );
    kernels::rescale_sums(kernel, sums, cols, x, w, bias, out);
}

/// Rounds and rescales one exact sum of a row of `cols`, and adds the bias.
#[inline(always)]
pub(crate) fn finish(sum: i64, cols: usize, x: Scale, w: Scale, bias: Option<i32>) -> i32 {
    let shift = sum_shift(cols);
    // At most 2^30; of a model that was not verified, some number.
    let value = Rescale::of(x.shifted(shift as i32), w).apply(round_shift(sum, shift) as i32);
    match bias {
        Some(bias) => saturate32(i64::from(value) + i64::from(bias)),
        None => value,
    }
}
