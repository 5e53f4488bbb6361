//! Every kernel of this machine returns the bits of the scalar one.

#![allow(clippy::unwrap_used)]

use assay_arithmetic::*;
use proptest::prelude::*;

fn scale() -> impl Strategy<Value = Scale> {
    prop_oneof![
        1 => Just(Scale::ZERO),
        8 => (1u32 << 30..1 << 31, -50i32..-30).prop_map(|(mantissa, exponent)| Scale { mantissa, exponent }),
        1 => (1u32 << 30..1 << 31, -130i32..60).prop_map(|(mantissa, exponent)| Scale { mantissa, exponent }),
        1 => (Just((1u32 << 31) - 1), -32767i32..=32767).prop_map(|(mantissa, exponent)| Scale { mantissa, exponent }),
    ]
}

fn word() -> impl Strategy<Value = i32> {
    prop_oneof![
        6 => -400_000i32..400_000,
        2 => any::<i32>(),
        1 => Just(0),
        1 => prop_oneof![Just(i32::MIN), Just(i32::MAX), Just(-1), Just(1)],
    ]
}

/// A matrix that owns its bytes.
#[derive(Clone, Debug)]
struct Matrix {
    rows: usize,
    cols: usize,
    encoding: Encoding,
    weights: Vec<u8>,
    scales: Vec<Scale>,
}

impl Matrix {
    /// From anything that yields 64-bit numbers; with `extreme`, every weight is the largest or smallest.
    fn new(
        (rows, cols, encoding): (usize, usize, Encoding),
        scales: Vec<Scale>,
        extreme: bool,
        mut next: impl FnMut() -> u64,
    ) -> Matrix {
        let chunks = cols.div_ceil(CHUNK);
        let mut weights = vec![0; encoding.matrix_bytes(rows, cols).unwrap()];
        let mut within = |limit: i64| (next() % (2 * limit as u64 + 1)) as i64 - limit;
        for row in 0..rows.next_multiple_of(GROUP) {
            let half = 1i64 << (encoding.bits() - 1);
            // The largest factor times the least `q`, brought back into range by the offset.
            let q: Vec<i8> = (0..chunks * CHUNK)
                .map(|_| if extreme { -half } else { within(half).min(half - 1) } as i8)
                .collect();
            let (factor, offset) = (FACTOR_MAX as i16, (FACTOR_MAX - WEIGHT_MAX) as i16);
            let parameters: Vec<[i16; 4]> = (0..chunks)
                .map(|_| match (encoding, extreme) {
                    (Encoding::Q6, true) => [WEIGHT_MAX as i16; 4],
                    (_, true) => [factor, offset, factor, offset],
                    (Encoding::Q6, false) => [(); 4].map(|()| within(8191) as i16),
                    (_, false) => [4096, 4095, 4096, 4095].map(|limit| within(limit) as i16),
                })
                .collect();
            let group =
                &mut weights[row / GROUP * encoding.group_bytes(cols)..][..encoding.group_bytes(cols)];
            encoding.pack(row % GROUP, &parameters, &q, group);
        }
        Matrix { rows, cols, encoding, weights, scales }
    }

    fn view(&self) -> MatrixView<'_> {
        let Matrix { rows, cols, encoding, ref weights, ref scales } = *self;
        MatrixView { rows, cols, encoding, weights, scales }
    }
}

fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Q4), Just(Encoding::Q6), Just(Encoding::Q8)]
}

fn value() -> impl Strategy<Value = i16> {
    prop_oneof![6 => -2047i16..=2047, 1 => Just(2047i16), 1 => Just(-2047i16)]
}

/// A small, fast generator for long rows, whose shrinking would teach nothing.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 20
    }
    fn values(&mut self, n: usize, extreme: bool) -> Vec<i16> {
        (0..n).map(|_| if extreme { -2047 } else { (self.next() % 4095) as i16 - 2047 }).collect()
    }
    fn scale(&mut self) -> Scale {
        Scale {
            mantissa: 1 << 30 | self.next() as u32 & 0x3fff_ffff,
            exponent: -42 + (self.next() % 6) as i32,
        }
    }
}

fn run_linear(
    kernel: Kernel,
    w: &MatrixView<'_>,
    x: QuantisedView<'_>,
    bias: Option<&[i32]>,
    parts: usize,
) -> Vec<i32> {
    let tokens = x.scales.len();
    let mut out = vec![0x5555_5555; tokens * w.rows];
    for mut part in Output::new(&mut out, tokens, 0..w.rows).split(parts) {
        linear(kernel, w, x, bias, &mut part);
    }
    // With the exact sums, from which the same words follow.
    let (mut again, mut sums) = (vec![0; out.len()], vec![0x5555_5555; out.len()]);
    for mut part in Output::with_sums(&mut again, &mut sums, tokens, 0..w.rows).split(parts) {
        linear(kernel, w, x, bias, &mut part);
    }
    assert_eq!(again, out, "{kernel}");
    let mut weights = vec![0; w.cols];
    for row in 0..w.rows {
        w.row(row, &mut weights);
        for (token, values) in x.values.chunks_exact(w.cols.max(1)).enumerate() {
            let sum: i64 = weights.iter().zip(values).map(|(&w, &x)| i64::from(w) * i64::from(x)).sum();
            assert_eq!(sums[token * w.rows + row], sum, "{kernel} {token} {row}");
        }
    }
    if w.rows > 0 {
        let rows = sums.chunks_exact(w.rows).zip(again.chunks_exact_mut(w.rows));
        for ((sums, again), &scale) in rows.zip(x.scales) {
            again.fill(0);
            rescale_sums(kernel, sums, w.cols, scale, w.scales, bias, again);
        }
    }
    assert_eq!(again, out, "{kernel}");
    out
}

proptest! {
    #[test]
    fn linear_small(
        (matrix, values, token_scales, bias) in
            (0usize..11, 0usize..200, 0usize..9, encoding(), any::<u64>()).prop_flat_map(|(rows, cols, tokens, encoding, seed)| (
                prop::collection::vec(scale(), rows).prop_map(move |scales| {
                    let mut stream = Stream(seed);
                    Matrix::new((rows, cols, encoding), scales, false, || stream.next())
                }),
                prop::collection::vec(value(), tokens * cols),
                prop::collection::vec(scale(), tokens),
                prop::option::of(prop::collection::vec(word(), rows)),
            )),
        parts in 1usize..4,
        (from, to) in (0usize..11, 0usize..11),
    ) {
        let w = matrix.view();
        prop_assert!(w.is_valid());
        let x = QuantisedView { cols: w.cols, values: &values, scales: &token_scales };
        let expected = run_linear(Kernel::Scalar, &w, x, bias.as_deref(), 1);
        let (from, to) = (from.min(to).min(w.rows), from.max(to).min(w.rows));
        for kernel in Kernel::available() {
            prop_assert_eq!(&run_linear(kernel, &w, x, bias.as_deref(), parts), &expected, "{}", kernel);
            // Any range of rows, whole groups or not.
            let mut out = vec![1; token_scales.len() * (to - from)];
            let mut part = Output::new(&mut out, token_scales.len(), from..to);
            linear(kernel, &w, x, bias.as_deref(), &mut part);
            for (token, out) in out.chunks_exact((to - from).max(1)).enumerate() {
                prop_assert_eq!(out, &expected[token * w.rows..][from..to], "{}", kernel);
            }
        }
    }

    /// What is packed comes back: `m + round(q · k / 2^(bits-1))`.
    #[test]
    fn packed_weights_come_back(encoding in encoding(), seed in any::<u64>(), chunks in 1usize..4, row in 0usize..4) {
        let mut stream = Stream(seed);
        let bits = encoding.bits();
        let q: Vec<i8> = (0..chunks * CHUNK).map(|_| (stream.next() as i8) >> (8 - bits)).collect();
        let parameters: Vec<[i16; 4]> =
            (0..chunks).map(|_| [(); 4].map(|()| (stream.next() % 8191) as i16 - 4095)).collect();
        let mut weights = vec![0; encoding.group_bytes(chunks * CHUNK)];
        encoding.pack(row, &parameters, &q, &mut weights);
        let scales = [Scale::ONE; GROUP];
        let view = MatrixView { rows: GROUP, cols: chunks * CHUNK, encoding, weights: &weights, scales: &scales };
        let mut words = vec![0; chunks * CHUNK];
        for r in 0..GROUP {
            view.row(r, &mut words);
            for (c, &w) in words.iter().enumerate() {
                let p = parameters[c / CHUNK].map(f64::from);
                let (k, m) = match encoding {
                    Encoding::Q6 => (p[c % CHUNK / 16], 0.0),
                    _ => (p[c % CHUNK / 32 * 2], p[c % CHUNK / 32 * 2 + 1]),
                };
                let expected = m + (f64::from(q[c]) * k / f64::from(1 << (bits - 1)) + 0.5).floor();
                prop_assert_eq!(f64::from(w), if r == row { expected } else { 0.0 }, "row {} column {}", r, c);
            }
        }
    }

    #[test]
    fn attention_any(
        (dim, tokens, queries, query_scales, keys, values, key_scales, value_scales) in
            (prop_oneof![1usize..40, Just(64), Just(80), Just(128), Just(256)], 0usize..90, 1usize..6).prop_flat_map(|(dim, tokens, queries)| (
                Just(dim), Just(tokens),
                prop::collection::vec(value(), queries * dim),
                prop::collection::vec(scale(), queries),
                prop::collection::vec(value(), tokens * dim),
                prop::collection::vec(value(), tokens * dim),
                prop::collection::vec(scale(), tokens),
                prop::collection::vec(scale(), tokens),
            )),
        cut in 0usize..90,
        cap in prop::option::of(prop_oneof![Just(50u32 << 16), SoftCap::RANGE]),
    ) {
        let block = |range: std::ops::Range<usize>| KeyValues {
            keys: &keys[range.start * dim..range.end * dim],
            key_scales: &key_scales[range.clone()],
            values: &values[range.start * dim..range.end * dim],
            value_scales: &value_scales[range],
        };
        let cut = cut.min(tokens);
        let scoring = Scoring::new(dim as u64, cap.map(SoftCap::new));
        let mut scratch = AttentionScratch::default();
        let mut expected = vec![0; queries.len()];
        // One by one, in one block.
        for (i, out) in expected.chunks_exact_mut(dim).enumerate() {
            let query = QuantisedView { cols: dim, values: &queries[i * dim..][..dim], scales: &query_scales[i..=i] };
            attention(Kernel::Scalar, query, scoring, &[block(0..tokens)], &mut scratch, out);
        }
        let together = QuantisedView { cols: dim, values: &queries, scales: &query_scales };
        for kernel in Kernel::available() {
            let mut out = vec![1; queries.len()];
            let blocks = [block(0..cut), block(cut..tokens)];
            attention(kernel, together, scoring, &blocks, &mut scratch, &mut out);
            prop_assert_eq!(&out, &expected, "{}", kernel);
        }
    }

    #[test]
    fn rows_any(
        (cols, x, weight) in (1usize..80, 0usize..4).prop_flat_map(|(cols, rows)| (
            Just(cols),
            prop::collection::vec(word(), rows * cols),
            prop::collection::vec(word(), cols),
        )),
        eps in prop_oneof![Just(42950u64), Just(0), any::<u64>()],
    ) {
        let rows = x.len() / cols;
        let run = |kernel| {
            let (mut a, mut sa) = (vec![0; x.len()], vec![Scale::ZERO; rows]);
            quantise(kernel, &x, cols, &mut a, &mut sa);
            let (mut b, mut sb) = (vec![0; x.len()], vec![Scale::ZERO; rows]);
            rms_norm_quantise(kernel, &x, &weight, eps, &mut b, &mut sb);
            let mut c = x.clone();
            rms_norm(kernel, &mut c, &weight, eps);
            let mut d = x.clone();
            layer_norm(kernel, &mut d, &weight, &weight, eps);
            (a, sa, b, sb, c, d)
        };
        let expected = run(Kernel::Scalar);
        for values in [&expected.0, &expected.2] {
            prop_assert!(values.iter().all(|v| v.abs() <= 2047));
        }
        prop_assert!(expected.1.iter().chain(&expected.3).all(|s| s.is_valid()));
        for kernel in Kernel::available() {
            prop_assert_eq!(&run(kernel), &expected, "{}", kernel);
        }
    }

    #[test]
    fn words_any(pairs in prop::collection::vec((word(), word()), 0..70), gated in any::<bool>()) {
        let (gate, up): (Vec<i32>, Vec<i32>) = pairs.into_iter().unzip();
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
            let run = |kernel| {
                let mut out = gate.clone();
                activate(kernel, activation, &mut out, gated.then_some(&up));
                out
            };
            let expected = run(Kernel::Scalar);
            for kernel in Kernel::available() {
                prop_assert_eq!(&run(kernel), &expected, "{} {:?}", kernel, activation);
            }
        }
    }

    #[test]
    fn routes_any(
        logits in prop::collection::vec(prop_oneof![word(), -3i32..3], 1..40),
        used in 1usize..9,
        words in prop::collection::vec(word(), 8),
    ) {
        let used = used.min(logits.len());
        let mut chosen = Vec::new();
        route(&logits, used, &mut chosen);
        prop_assert_eq!(chosen.len(), used);
        for pair in chosen.windows(2) {
            let ((a, wa), (b, wb)) = (pair[0], pair[1]);
            prop_assert!(logits[a] > logits[b] || logits[a] == logits[b] && a < b && wa == wb);
            prop_assert!(wa >= wb);
        }
        // Nothing that was left out comes before the last that was chosen.
        let (last, _) = chosen[used - 1];
        for (expert, &logit) in logits.iter().enumerate() {
            let out = chosen.iter().all(|(other, _)| *other != expert);
            prop_assert!(!out || logit < logits[last] || logit == logits[last] && expert > last);
        }
        let sum: u64 = chosen.iter().map(|(_, w)| u64::from(*w)).sum();
        prop_assert!(sum.abs_diff(1 << 30) <= used as u64);
        // Experts that agree are not changed but for the rounding of the weights.
        let mut out = vec![0; 8];
        mix(chosen.iter().map(|&(_, weight)| (weight, &words[..])), &mut out);
        for (out, word) in out.iter().zip(&words) {
            prop_assert!((i64::from(*out) - i64::from(*word)).abs() <= 1 + ((i64::from(*word).abs() * 8) >> 29));
        }
    }

    #[test]
    fn rope_any(
        (head, table) in (0usize..70).prop_flat_map(|half| (
            prop::collection::vec(word(), 2 * half + half % 3),
            prop::collection::vec((-3i32 << 29..=3 << 29, -3i32 << 29..=3 << 29), half),
        )),
    ) {
        let (cos, sin): (Vec<i32>, Vec<i32>) = table.into_iter().unzip();
        for style in [RopeStyle::Interleaved, RopeStyle::Half] {
            let run = |kernel| {
                let mut out = head.clone();
                rope(kernel, style, &mut out, &cos, &sin);
                out
            };
            let expected = run(Kernel::Scalar);
            for kernel in Kernel::available() {
                prop_assert_eq!(&run(kernel), &expected, "{} {:?}", kernel, style);
            }
        }
    }
}

/// Rows of one, exactly one and several segments, many tokens, every tile shape; ordinary and extreme values.
#[test]
fn linear_long() {
    let mut stream = Stream(7);
    for (cols, rows, tokens) in
        [(1024, 5, 4), (1025, 6, 5), (8192, 4, 3), (12_301, 9, 2), (576, 13, 40), (31, 7, 200), (9000, 5, 1)]
    {
        for (encoding, extreme) in
            [Encoding::Q4, Encoding::Q6, Encoding::Q8].into_iter().flat_map(|e| [(e, false), (e, true)])
        {
            let values = stream.values(tokens * cols, extreme);
            let scales: Vec<_> = (0..rows).map(|_| stream.scale()).collect();
            let token_scales: Vec<_> = (0..tokens).map(|_| stream.scale()).collect();
            let matrix = Matrix::new((rows, cols, encoding), scales, extreme, || stream.next());
            let w = matrix.view();
            assert!(w.is_valid());
            let x = QuantisedView { cols, values: &values, scales: &token_scales };
            let expected = run_linear(Kernel::Scalar, &w, x, None, 1);
            for kernel in Kernel::available() {
                assert_eq!(
                    run_linear(kernel, &w, x, None, 2),
                    expected,
                    "{kernel} {cols} {rows} {tokens} {encoding:?}"
                );
            }
        }
    }
}

/// A long context in which every token has the full weight and the largest value: nothing overflows.
#[test]
fn attention_extreme() {
    let (dim, tokens) = (256, 20_000);
    let keys = vec![2047i16; tokens * dim];
    let scales = vec![Scale { mantissa: (1 << 31) - 1, exponent: -41 }; tokens];
    let block = KeyValues { keys: &keys, key_scales: &scales, values: &keys, value_scales: &scales };
    for kernel in Kernel::available() {
        let mut out = vec![0; dim];
        attention(
            kernel,
            QuantisedView { cols: dim, values: &keys[..dim], scales: &scales[..1] },
            Scoring::new(dim as u64, None),
            &[block],
            &mut AttentionScratch::default(),
            &mut out,
        );
        // 2047 · 2^-10, in Q16.
        assert!(out.iter().all(|&o| (o - (2047 << 6)).abs() <= 1), "{kernel}: {}", out[0]);
    }
}

/// A weight or a factor beyond its limit is found, also where it only fills up the last group or chunk.
#[test]
fn invalid_weights_are_found() {
    for (rows, cols) in [(4, 64), (3, 63)] {
        for (encoding, parameters) in [
            (Encoding::Q4, [0, 8192, 0, 0]),
            (Encoding::Q4, [0, 0, 0, -8192]),
            (Encoding::Q4, [FACTOR_MAX as i16 + 1, 0, 0, 0]),
            (Encoding::Q6, [0, 0, 0, -8193]),
            (Encoding::Q8, [0, 0, 0, 8192]),
            (Encoding::Q8, [0, 0, i16::MIN, 0]),
        ] {
            let mut weights = vec![0; encoding.matrix_bytes(rows, cols).unwrap()];
            let scales = vec![Scale::ONE; rows];
            // The first column's `q` is 0 and the last one's the least there is.
            let mut q = [0i8; CHUNK];
            q[CHUNK - 1] = -1 << (encoding.bits() - 1);
            encoding.pack(3, &[[0; 4]], &q, &mut weights);
            assert!(MatrixView { rows, cols, encoding, weights: &weights, scales: &scales }.is_valid());
            weights.fill(0);
            encoding.pack(3, &[parameters], &q, &mut weights);
            let view = MatrixView { rows, cols, encoding, weights: &weights, scales: &scales };
            assert!(!view.is_valid(), "{encoding:?} {parameters:?}");
        }
    }
}
