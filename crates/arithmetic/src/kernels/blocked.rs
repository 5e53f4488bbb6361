//! The loops of a linear layer around a block of four rows, for the x86 kernels: each expands them with its own
//! instructions switched on, so that they inline into one another.

use std::ops::Range;

use crate::{CHUNK, Encoding, MatrixView, QuantisedView};

/// Columns whose products a lane of 32 bits can hold. At least eight lanes share them: `1024 / 8 · 8191 · 2047 < 2^31`.
pub(super) const LANE_COLUMNS: usize = 1024;

/// The same for products without their offsets, which are within ±`FACTOR_MAX`: `896 / 8 · 9200 · 2047 < 2^31`.
pub(super) const DIRECT_COLUMNS: usize = 896;

/// The last columns of some tokens, filled up with zeros to a chunk. Empty if the columns are whole chunks.
pub(super) fn tails<const T: usize>(x: QuantisedView<'_>, token: usize) -> [[i16; CHUNK]; T] {
    let whole = x.cols / CHUNK * CHUNK;
    std::array::from_fn(|t| {
        let mut tail = [0; CHUNK];
        let rest = &x.values[(token + t) * x.cols..][whole..x.cols];
        tail[..rest.len()].copy_from_slice(rest);
        tail
    })
}

/// For the two runs of 32 activations in a chunk, the sum of each as four 16-bit factors for the parameters `k, m, k, m`
/// of a row: `0, s mod 256, 0, s' mod 256` and `0, s >> 8, 0, s' >> 8`.
pub(super) type Totals = [i64; 2];

/// The totals of all tokens, `[tokens][chunks]`.
pub(super) fn totals(x: QuantisedView<'_>) -> Vec<Totals> {
    let mut out = Vec::with_capacity(x.scales.len() * x.cols.div_ceil(CHUNK));
    for row in x.values.chunks_exact(x.cols.max(1)) {
        for chunk in row.chunks(CHUNK) {
            let (first, second) = chunk.split_at(chunk.len().min(CHUNK / 2));
            let sum = |run: &[i16]| i64::from(run.iter().map(|&x| i32::from(x)).sum::<i32>());
            let (a, b) = (sum(first), sum(second));
            out.push([(a & 255) << 16 | (b & 255) << 48, (a >> 8 & 0xffff) << 16 | (b >> 8 & 0xffff) << 48]);
        }
    }
    out
}

// The compiler does not inline closures of a function that may use more instructions into general code such as
// `array::from_fn`: arrays are filled by loops there, or by functions like these.

/// Some columns of `T` tokens from `token` on.
#[inline(always)]
pub(super) fn columns<'a, const T: usize>(
    x: QuantisedView<'a>,
    token: usize,
    columns: Range<usize>,
) -> [&'a [i16]; T] {
    std::array::from_fn(|t| &x.values[(token + t) * x.cols..][columns.clone()])
}

/// Some columns of four rows of words.
#[inline(always)]
pub(super) fn row_columns(words: [&[i16]; 4], columns: Range<usize>) -> [&[i16]; 4] {
    words.map(|row| &row[columns.clone()])
}

/// Four rows of words that lie one behind the other.
#[inline(always)]
pub(super) fn four_rows(words: &[i16], stride: usize, cols: usize) -> [&[i16]; 4] {
    std::array::from_fn(|r| &words[r * stride..][..cols])
}

/// Chunk `c` of the first `T` tokens: 64 values each, of `tails` if the tokens do not have as many.
#[inline(always)]
pub(super) fn chunk_values<'a, const T: usize>(
    x: QuantisedView<'a>,
    tails: &'a [[i16; CHUNK]; T],
    c: usize,
) -> [&'a [i16]; T] {
    let whole = (c + 1) * CHUNK <= x.cols;
    std::array::from_fn(|t| if whole { &x.values[t * x.cols + c * CHUNK..][..CHUNK] } else { &tails[t][..] })
}

/// The group of rows from `row` on, a multiple of four.
pub(super) fn group<'a>(w: &MatrixView<'a>, row: usize) -> &'a [u8] {
    let bytes = w.encoding.group_bytes(w.cols);
    &w.weights[row / 4 * bytes..][..bytes]
}

/// Defines `linear` for `$features` on top of functions of the calling module: `direct` multiplies a group of rows by
/// one or two tokens as it reads them, `unpack` writes the group's weights as words, `sums` multiplies those.
macro_rules! blocked_linear {
    ($features:literal) => {
        /// A linear layer.
        ///
        /// # Safety
        /// The machine has the features; the shapes were checked by [`crate::linear`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn linear(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            bias: Option<&[i32]>,
            out: &mut Output<'_>,
        ) {
            let (rows, tokens) = (out.rows(), out.tokens());
            // Groups that are not wholly asked for are left to the reference.
            let start = rows.start.next_multiple_of(GROUP).min(rows.end);
            let end = start + (rows.end - start) / GROUP * GROUP;
            super::scalar::linear_range(w, x, bias, out, rows.start..start);
            super::scalar::linear_range(w, x, bias, out, end..rows.end);
            let padded = w.cols.next_multiple_of(CHUNK);
            let totals = if tokens > DIRECT { Vec::new() } else { totals(x) };
            let mut words = vec![0; if tokens > DIRECT { GROUP * padded } else { 0 }];
            // Of many tokens, as many at a time as stay in the cache while the weights pass by.
            let step = (CACHE / (2 * w.cols.max(1))).max(TOKENS) / TOKENS * TOKENS;
            for first in (0..tokens).step_by(step) {
                let last = (first + step).min(tokens);
                for row in (start..end).step_by(GROUP) {
                    // SAFETY: as for the whole function; the group is within the matrix and the output.
                    unsafe {
                        match tokens {
                            1 => {
                                let sums = direct::<1>(w, x, &totals, row);
                                finish_group(w, x, bias, out, row, 0, sums);
                            }
                            2 => {
                                let sums = direct::<2>(w, x, &totals, row);
                                finish_group(w, x, bias, out, row, 0, sums);
                            }
                            _ => {
                                unpack(w, row, &mut words);
                                tiles(w, x, bias, out, row, first..last, &words);
                            }
                        }
                    }
                }
            }
        }

        /// Unpacked rows times a range of tokens.
        ///
        /// # Safety
        /// As for [`linear`]; `words` holds the four rows, `padded` columns each.
        #[target_feature(enable = $features)]
        unsafe fn tiles(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            bias: Option<&[i32]>,
            out: &mut Output<'_>,
            row: usize,
            tokens: Range<usize>,
            words: &[i16],
        ) {
            let padded = words.len() / GROUP;
            let weights = four_rows(words, padded, w.cols);
            let mut token = tokens.start;
            while token < tokens.end {
                let count = (tokens.end - token).min(TOKENS);
                // SAFETY: as for the whole function; the tokens are within the activations and the output.
                unsafe {
                    match count {
                        1 => {
                            let sums = sums::<1>(weights, x, token);
                            finish_group(w, x, bias, out, row, token, sums);
                        }
                        2 => {
                            let sums = sums::<2>(weights, x, token);
                            finish_group(w, x, bias, out, row, token, sums);
                        }
                        _ => {
                            let sums = sums::<3>(weights, x, token);
                            finish_group(w, x, bias, out, row, token, sums);
                        }
                    }
                }
                token += count;
            }
        }

        /// Rounds, rescales and writes the sums of four rows (the lanes) and `T` tokens.
        ///
        /// # Safety
        /// As for [`linear`]; rows and tokens are within the matrix, the activations and the output.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn finish_group<const T: usize>(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            bias: Option<&[i32]>,
            out: &mut Output<'_>,
            row: usize,
            token: usize,
            sums: [__m256i; T],
        ) {
            // SAFETY: four scales are 32 bytes, without padding; the bias has four words from `row` on.
            let (scales, bias) = unsafe {
                let bias = match bias {
                    Some(bias) => Some(_mm_loadu_si128(bias[row..row + GROUP].as_ptr().cast())),
                    None => None,
                };
                (_mm256_loadu_si256(w.scales[row..row + GROUP].as_ptr().cast()), bias)
            };
            let shift = sum_shift(w.cols);
            for t in 0..T {
                let x = x.scales[token + t].shifted(shift as i32);
                let sums = round_lanes(sums[t], shift);
                let (mut result, sane) = rescale_lanes(sums, scales, x);
                if !sane {
                    let mut sums = words(sums);
                    for (sum, &scale) in sums.iter_mut().zip(&w.scales[row..]) {
                        *sum = Rescale::of(x, scale).apply(*sum);
                    }
                    result = lanes(sums);
                }
                if let Some(bias) = bias {
                    result = add_saturating(result, bias);
                }
                out.set4(token + t, row, words(result));
            }
        }

        /// One or two tokens: the weights go from their bytes into the products, without a stop in memory.
        ///
        /// # Safety
        /// As for [`linear`]; the rows are a whole group, and there are `T` tokens.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn direct<const T: usize>(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            totals: &[Totals],
            row: usize,
        ) -> [__m256i; T] {
            // SAFETY: as for the whole function.
            unsafe {
                match w.encoding {
                    Encoding::Q4 => direct_encoded::<4, T>(w, x, totals, row),
                    Encoding::Q6 => direct_encoded::<6, T>(w, x, totals, row),
                    Encoding::Q8 => direct_encoded::<8, T>(w, x, totals, row),
                }
            }
        }

        /// Writes the weights of a group as words, each row filled up to whole chunks.
        ///
        /// # Safety
        /// As for [`linear`]; the rows are a whole group, and `words` has room for them.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn unpack(w: &MatrixView<'_>, row: usize, words: &mut [i16]) {
            // SAFETY: as for the whole function.
            unsafe {
                match w.encoding {
                    Encoding::Q4 => unpack_encoded::<4>(w, row, words),
                    Encoding::Q6 => unpack_encoded::<6>(w, row, words),
                    Encoding::Q8 => unpack_encoded::<8>(w, row, words),
                }
            }
        }
    };
}

pub(super) use blocked_linear;

/// Bytes of a chunk of a group, as [`Encoding::chunk_bytes`].
pub(super) const fn chunk_bytes(bits: u32) -> usize {
    match bits {
        4 => Encoding::Q4.chunk_bytes(),
        6 => Encoding::Q6.chunk_bytes(),
        _ => Encoding::Q8.chunk_bytes(),
    }
}
