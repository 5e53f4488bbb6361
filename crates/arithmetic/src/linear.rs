//! Linear layers: 8-bit weights times 12-bit activations.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use crate::scale::{Rescale, saturate32};
use crate::{Kernel, LENGTH_MAX, QuantisedView, Scale, kernels};

/// The number of columns whose products are summed in 32 bits: `4096 · 127 · 2047 < 2^30`. The sums of the segments of
/// a longer row are added in 64 bits. (A weight of -128 is not valid; it would not overflow either.)
pub const SEGMENT: usize = 4096;

/// A matrix of weights, borrowed from a model.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    /// The number of outputs.
    pub rows: usize,
    /// The number of inputs, at most [`LENGTH_MAX`].
    pub cols: usize,
    /// `rows · cols` weights in ±127, row-major.
    pub weights: &'a [i8],
    /// One scale a row: a weight `w` stands for `w · scale`.
    pub scales: &'a [Scale],
}

impl<'a> MatrixView<'a> {
    /// The weights of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &'a [i8] {
        &self.weights[row * self.cols..(row + 1) * self.cols]
    }
}

/// Where a linear layer writes: for each token, a range of rows of a token-major buffer `[tokens][rows]`.
///
/// It can be split by rows, and the parts handed to threads: they never overlap, although they interleave in memory.
#[derive(Debug)]
pub struct Output<'a> {
    data: *mut i32,
    tokens: usize,
    /// From one token to the next.
    stride: usize,
    rows: Range<usize>,
    life: PhantomData<&'a mut [i32]>,
}

// SAFETY: an `Output` is an exclusive borrow of its own words, as `&mut [i32]` is, and no two hold the same word.
unsafe impl Send for Output<'_> {}

impl<'a> Output<'a> {
    /// The whole of a buffer `[tokens][rows]`.
    ///
    /// # Panics
    /// If the buffer does not have `tokens · rows` words.
    pub fn new(buffer: &'a mut [i32], tokens: usize, rows: usize) -> Output<'a> {
        assert_eq!(Some(buffer.len()), tokens.checked_mul(rows), "the buffer must be [tokens][rows]");
        Output { data: buffer.as_mut_ptr(), tokens, stride: rows, rows: 0..rows, life: PhantomData }
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
        // SAFETY: `linear` calls this with `token < self.tokens` and `row` in `self.rows`, which is within the stride,
        // so the word is within the buffer borrowed for 'a; parts made by `split` have disjoint rows.
        unsafe { *self.data.add(token * self.stride + row) = value }
    }

    /// Writes the words of four rows from `row` on.
    #[inline(always)]
    #[allow(dead_code)] // only the vector kernels have four at once
    pub(crate) fn set4(&mut self, token: usize, row: usize, values: [i32; 4]) {
        debug_assert!(token < self.tokens && self.rows.contains(&row) && row + 4 <= self.rows.end);
        // SAFETY: as for `set`, with `row + 3` in `self.rows` too; a write of unaligned bytes.
        unsafe { self.data.add(token * self.stride + row).cast::<[i32; 4]>().write_unaligned(values) }
    }
}

/// `out[t][r] = round(sum over c of w[r][c] · x[t][c] · scales) + bias[r]`, in Q16, saturating, for every token and for
/// the rows that `out` covers.
///
/// The sum is exact. It is multiplied by `(x.scale.m · w.scale.m + 2^30) >> 31`, shifted right with rounding half up
/// and saturated to 32 bits; then the bias (Q16, indexed by row of the matrix) is added, saturating.
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
        w.weights.len() == w.rows * w.cols && w.scales.len() == w.rows,
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

/// Rescales one exact sum and adds the bias.
#[inline(always)]
pub(crate) fn finish(sum: i64, x: Scale, w: Scale, bias: Option<i32>) -> i32 {
    let rescale = Rescale::of(x, w);
    let value = match i32::try_from(sum) {
        Ok(sum) => rescale.apply(sum),
        Err(_) => rescale.apply_wide(sum),
    };
    match bias {
        Some(bias) => saturate32(i64::from(value) + i64::from(bias)),
        None => value,
    }
}
