//! The loops of a linear layer around the block of four rows, for the x86 kernels: each expands them with its own
//! instructions switched on, so that they inline into one another.

/// Defines `linear` for `$features` on top of a function `segment` of the calling module.
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
            let tokens = out.tokens();
            // A few tokens see each weight once. Of many, as many at a time as stay in the cache.
            let step = (CACHE / (2 * w.cols.max(1))).max(TOKENS) / TOKENS * TOKENS;
            for start in (0..tokens).step_by(step) {
                let range = start..(start + step).min(tokens);
                let mut row = out.rows().start;
                while row + ROWS <= out.rows().end {
                    // SAFETY: as for the whole function.
                    unsafe { four_rows(w, x, bias, out, row, range.clone()) };
                    row += ROWS;
                }
                let rest = row..out.rows().end;
                super::scalar::linear_range(w, x, bias, out, rest, range);
            }
        }

        /// Four rows from `row` on, for a range of tokens.
        ///
        /// # Safety
        /// As for [`linear`], and the four rows are within the matrix and the output.
        #[target_feature(enable = $features)]
        unsafe fn four_rows(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            bias: Option<&[i32]>,
            out: &mut Output<'_>,
            row: usize,
            tokens: Range<usize>,
        ) {
            let mut token = tokens.start;
            while token < tokens.end {
                let count = (tokens.end - token).min(TOKENS);
                // SAFETY: as for the whole function.
                unsafe {
                    match count {
                        1 => tile::<1>(w, x, bias, out, row, token),
                        2 => tile::<2>(w, x, bias, out, row, token),
                        _ => tile::<3>(w, x, bias, out, row, token),
                    }
                }
                token += count;
            }
        }

        /// Four rows and `T` tokens.
        ///
        /// # Safety
        /// As for [`four_rows`], and the tokens are within the activations and the output.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn tile<const T: usize>(
            w: &MatrixView<'_>,
            x: QuantisedView<'_>,
            bias: Option<&[i32]>,
            out: &mut Output<'_>,
            row: usize,
            token: usize,
        ) {
            let weights: [&[i8]; ROWS] = std::array::from_fn(|r| w.row(row + r));
            let values: [&[i16]; T] = std::array::from_fn(|t| &x.values[(token + t) * x.cols..][..x.cols]);
            if w.cols <= SEGMENT {
                // SAFETY: all slices have `cols` elements. Four scales are 32 bytes, without padding; the bias has
                // four words from `row` on.
                let (sums, scales, bias) = unsafe {
                    (
                        segment(weights, values),
                        _mm256_loadu_si256(w.scales[row..row + ROWS].as_ptr().cast()),
                        bias.map(|b| _mm_loadu_si128(b[row..row + ROWS].as_ptr().cast())),
                    )
                };
                for t in 0..T {
                    let x = x.scales[token + t];
                    let (mut result, sane) = rescale_lanes(sums[t], scales, x);
                    if !sane {
                        let sums = words(sums[t]);
                        result = lanes(std::array::from_fn(|r| {
                            finish(sums[r].into(), x, w.scales[row + r], None)
                        }));
                    }
                    if let Some(bias) = bias {
                        result = add_saturating(result, bias);
                    }
                    out.set4(token + t, row, words(result));
                }
                return;
            }
            let mut sums = [[0i64; ROWS]; T];
            for start in (0..w.cols).step_by(SEGMENT) {
                let range = start..(start + SEGMENT).min(w.cols);
                let weights = std::array::from_fn(|r| &weights[r][range.clone()]);
                let values = std::array::from_fn(|t| &values[t][range.clone()]);
                // SAFETY: all slices have the same length, at most a segment.
                let part: [__m128i; T] = unsafe { segment(weights, values) };
                for t in 0..T {
                    for (sum, part) in sums[t].iter_mut().zip(words(part[t])) {
                        *sum += i64::from(part);
                    }
                }
            }
            for t in 0..T {
                for r in 0..ROWS {
                    let bias = bias.map(|b| b[row + r]);
                    let value = finish(sums[t][r], x.scales[token + t], w.scales[row + r], bias);
                    out.set(token + t, row + r, value);
                }
            }
        }
    };
}

pub(crate) use blocked_linear;
