//! The loops of a linear layer around a block of four rows, for the x86 kernels: each expands them with its own
//! instructions switched on, so that they inline into one another.

use crate::{CHUNK, Encoding, MatrixView, QuantisedView};

/// Columns whose products a lane of 32 bits can hold. At least eight lanes share them: `1024 / 8 · 8191 · 2047 < 2^31`.
pub(super) const LANE_COLUMNS: usize = 1024;

/// The same for products without their offsets, which are within ±`FACTOR_MAX`: `896 / 8 · 9200 · 2047 < 2^31`.
pub(super) const DIRECT_COLUMNS: usize = 896;

/// Bytes of unpacked weights that are kept in the first-level cache while the activations pass by.
pub(super) const WORDS: usize = 20 << 10;

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
            if w.cols == 0 {
                return super::scalar::linear(w, x, bias, out);
            }
            // Groups that are not wholly asked for are left to the reference.
            let start = rows.start.next_multiple_of(GROUP).min(rows.end);
            let end = start + (rows.end - start) / GROUP * GROUP;
            super::scalar::linear_range(w, x, bias, out, rows.start..start);
            super::scalar::linear_range(w, x, bias, out, end..rows.end);
            let padded = w.cols.next_multiple_of(CHUNK);
            if (1..=DIRECT).contains(&tokens) {
                let totals = totals(x);
                for row in (start..end).step_by(GROUP) {
                    // SAFETY: as for the whole function; the group is within the matrix and the output.
                    unsafe {
                        if tokens == 1 {
                            let sums = direct::<1>(w, x, &totals, row);
                            finish_group(w, x, bias, out, row, 0, sums);
                        } else {
                            let sums = direct::<2>(w, x, &totals, row);
                            finish_group(w, x, bias, out, row, 0, sums);
                        }
                    }
                }
                return;
            }
            // Of many tokens, as many at a time as stay in the second-level cache while the weights pass by, and of the
            // weights as many groups as stay in the first-level cache while the tokens pass by.
            let step = (CACHE / (2 * w.cols)).max(TOKENS) / TOKENS * TOKENS;
            let size = GROUP * padded;
            let groups = (WORDS / (2 * size)).max(1);
            // From the start of a cache line on, so that no load meets two of them.
            let mut words = vec![0i16; groups * size + 32];
            let skip = words.as_ptr().align_offset(64).min(32);
            let words = &mut words[skip..][..groups * size];
            for first in (0..tokens).step_by(step) {
                let last = (first + step).min(tokens);
                for row in (start..end).step_by(groups * GROUP) {
                    let rows = (row..end.min(row + groups * GROUP)).step_by(GROUP);
                    // SAFETY: as for the whole function; the groups are within the matrix and the output.
                    unsafe {
                        for (row, words) in rows.clone().zip(words.chunks_exact_mut(size)) {
                            unpack(w, row, words);
                        }
                        for token in (first..last).step_by(TOKENS) {
                            for (row, words) in rows.clone().zip(words.chunks_exact(size)) {
                                tile(w, x, bias, out, row, token..(token + TOKENS).min(last), words);
                            }
                        }
                    }
                }
            }
        }

        /// Four unpacked rows times up to [`TOKENS`] tokens, three at most.
        ///
        /// # Safety
        /// As for [`linear`]; `words` holds the four rows, padded to whole chunks.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn tile(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            bias: Option<&[i32]>,
            out: &mut Output<'_>,
            row: usize,
            tokens: Range<usize>,
            words: &[i16],
        ) {
            let weights = four_rows(words, words.len() / GROUP, w.cols);
            let token = tokens.start;
            // SAFETY: as for the whole function; the tokens are within the activations and the output.
            unsafe {
                if tokens.len() == TOKENS {
                    let sums = sums::<TOKENS>(weights, x, token);
                    finish_group(w, x, bias, out, row, token, sums);
                } else if tokens.len() == 2 {
                    let sums = sums::<2>(weights, x, token);
                    finish_group(w, x, bias, out, row, token, sums);
                } else {
                    let sums = sums::<1>(weights, x, token);
                    finish_group(w, x, bias, out, row, token, sums);
                }
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
                if out.keeps_sums() {
                    let mut exact = [0i64; GROUP];
                    // SAFETY: four lanes of 64 bits.
                    unsafe { _mm256_storeu_si256(exact.as_mut_ptr().cast(), sums[t]) };
                    out.keep(token + t, row, exact);
                }
                let x = x.scales[token + t].shifted(shift as i32);
                let sums = round_lanes(sums[t], shift);
                let (mut result, sane) = rescale_lanes(sums, scales, x);
                if !sane {
                    let mut sums = words(low_halves(sums));
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
