//! Twelve-bit activations and the RMS norm that folds into them.

use crate::scale::{Rescale, saturate32};
use crate::{ACTIVATION_MAX, Kernel, LENGTH_MAX, Scale, kernels};

/// `1/2047`: `round(2^41 / 2047) · 2^-41`.
const INVERSE_MAX: Scale = Scale { mantissa: (((1u64 << 41) + 1023) / 2047) as u32, exponent: -41 };

/// A buffer of quantised rows, one a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantised {
    /// The length of a row.
    pub cols: usize,
    /// `tokens · cols` values in ±2047, token-major.
    pub values: Vec<i16>,
    /// One scale a token: a value `v` stands for `v · scale`.
    pub scales: Vec<Scale>,
}

impl Quantised {
    /// Makes room for `tokens` rows of `cols`. What was there before is unspecified afterwards.
    pub fn resize(&mut self, tokens: usize, cols: usize) {
        self.cols = cols;
        self.values.resize(tokens * cols, 0);
        self.scales.resize(tokens, Scale::ZERO);
    }

    /// All rows.
    pub fn view(&self) -> QuantisedView<'_> {
        QuantisedView { cols: self.cols, values: &self.values, scales: &self.scales }
    }
}

/// Quantised rows: a borrowed [`Quantised`], or some of its rows.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedView<'a> {
    /// The length of a row.
    pub cols: usize,
    /// `tokens · cols` values in ±2047, token-major.
    pub values: &'a [i16],
    /// One scale a token.
    pub scales: &'a [Scale],
}

impl<'a> QuantisedView<'a> {
    /// The rows of some tokens.
    ///
    /// # Panics
    /// If the range is not within the view.
    pub fn tokens(self, range: std::ops::Range<usize>) -> QuantisedView<'a> {
        QuantisedView {
            cols: self.cols,
            values: &self.values[range.start * self.cols..range.end * self.cols],
            scales: &self.scales[range],
        }
    }
}

/// Rounds rows of Q16 words to twelve bits each, with one scale a row.
///
/// With `max` the largest magnitude of a row, `b` its bit length and `t = b + 19`: the reciprocal is
/// `r = floor(2047 · 2^t / max)` (below `2^31`), a value is `floor((x · r + 2^(t-1)) / 2^t)`, the scale is
/// `max / 2047` times `2^-16`. A row of zeros has scale zero.
///
/// # Panics
/// If `x`, `values` and `scales` do not have the same number of rows of `cols`, or `cols` exceeds [`LENGTH_MAX`].
pub fn quantise(kernel: Kernel, x: &[i32], cols: usize, values: &mut [i16], scales: &mut [Scale]) {
    check(x.len(), cols, values.len(), scales.len());
    for ((x, values), scale) in rows(x, cols).zip(rows_mut(values, cols)).zip(scales) {
        *scale = quantise_row(kernel, x, values).shifted(-16);
    }
}

/// RMS norm and quantisation in one: the rows become `x · weight / sqrt(mean(x²) + eps)`, rounded to twelve bits.
///
/// `x` and `weight` are Q16, `eps` has 32 fractional bits. The values depend only on `x · weight`; the root mean
/// square enters the scale.
///
/// # Panics
/// If `x`, `values` and `scales` do not have the same number of rows of `weight.len()`, or that exceeds
/// [`LENGTH_MAX`].
pub fn rms_norm_quantise(
    kernel: Kernel,
    x: &[i32],
    weight: &[i32],
    eps: u64,
    values: &mut [i16],
    scales: &mut [Scale],
) {
    let cols = weight.len();
    check(x.len(), cols, values.len(), scales.len());
    let mut products = vec![0; cols];
    for ((x, values), scale) in rows(x, cols).zip(rows_mut(values, cols)).zip(scales) {
        let (inverse, shift) = norm_row(kernel, x, weight, eps, &mut products);
        *scale = quantise_row(kernel, &products, values).shifted(shift as i32 - 32).mul(inverse);
    }
}

/// RMS norm of rows in place, Q16 to Q16, saturating: for heads of queries and keys, which are rotated before they are
/// quantised.
///
/// `weight` is Q16 and its length is that of a row, `eps` has 32 fractional bits.
///
/// # Panics
/// If the length of `x` is not a multiple of that of `weight`, or a row exceeds [`LENGTH_MAX`].
pub fn rms_norm(kernel: Kernel, x: &mut [i32], weight: &[i32], eps: u64) {
    let cols = weight.len();
    check(x.len(), cols, x.len(), x.len().checked_div(cols).unwrap_or(0));
    let mut products = vec![0; cols];
    for x in rows_mut(x, cols) {
        let (inverse, shift) = norm_row(kernel, x, weight, eps, &mut products);
        let rescale = Rescale::one(inverse, shift as i32 - 32);
        for (x, &p) in x.iter_mut().zip(&products) {
            *x = rescale.apply(p);
        }
    }
}

/// Layer norm of rows in place, Q16 to Q16, saturating: `(x - mean(x)) · weight / sqrt(variance(x) + eps) + bias`.
///
/// The mean is rounded to Q16; after it is subtracted the row is treated as in [`rms_norm`]. `weight` and `bias` are
/// Q16 and as long as a row, `eps` has 32 fractional bits. (Ba, Kiros and Hinton, arXiv 1607.06450.)
///
/// # Panics
/// As [`rms_norm`], and if `weight` and `bias` differ in length.
pub fn layer_norm(kernel: Kernel, x: &mut [i32], weight: &[i32], bias: &[i32], eps: u64) {
    assert_eq!(weight.len(), bias.len(), "weight and bias must have the same length");
    let cols = weight.len() as i64; // checked against LENGTH_MAX below
    for x in rows_mut(x, weight.len()) {
        let sum: i64 = x.iter().map(|&x| i64::from(x)).sum(); // below 2^51
        let mean = (sum + cols / 2).div_euclid(cols);
        x.iter_mut().for_each(|x| *x = saturate32(i64::from(*x) - mean));
    }
    rms_norm(kernel, x, weight, eps);
    for x in rows_mut(x, weight.len()) {
        crate::add(x, bias);
    }
}

fn check(x: usize, cols: usize, values: usize, scales: usize) {
    assert!(cols <= LENGTH_MAX, "a row has {cols} columns, more than {LENGTH_MAX}");
    assert!(
        x == values && x == scales * cols,
        "rows disagree: {x} words, {values} values, {scales} scales of {cols} columns"
    );
}

fn rows<T>(x: &[T], cols: usize) -> std::slice::ChunksExact<'_, T> {
    x.chunks_exact(cols.max(1))
}

fn rows_mut<T>(x: &mut [T], cols: usize) -> std::slice::ChunksExactMut<'_, T> {
    x.chunks_exact_mut(cols.max(1))
}

/// Quantises integers; the scale is in units of those integers.
fn quantise_row(kernel: Kernel, x: &[i32], values: &mut [i16]) -> Scale {
    let max = kernels::max_abs(kernel, x);
    if max == 0 {
        values.fill(0);
        return Scale::ZERO;
    }
    let shift = 32 - max.leading_zeros() + 19;
    let reciprocal = ((ACTIVATION_MAX as u64) << shift) / u64::from(max);
    kernels::scale_row(kernel, x, reciprocal as i32, shift, values);
    Scale::from_integer(u64::from(max)).mul(INVERSE_MAX)
}

/// Writes `round(x · weight / 2^shift)`, at most `2^30` in absolute value, and returns one over the root mean square of
/// `x` and the shift.
fn norm_row(kernel: Kernel, x: &[i32], weight: &[i32], eps: u64, products: &mut [i32]) -> (Scale, u32) {
    let (squares, max) = kernels::norm_sums(kernel, x, weight);
    let n = x.len() as u128;
    // At most 2^62 for the mean; the sum with any sensible eps fits.
    let mean = ((squares + n / 2) / n) as u64;
    let inverse = Scale::inverse_sqrt(mean.saturating_add(eps)).shifted(16);
    let shift = (64 - max.leading_zeros()).saturating_sub(30);
    kernels::norm_products(kernel, x, weight, shift, products);
    (inverse, shift)
}
