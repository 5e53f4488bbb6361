//! Every kernel of this machine returns the bits of the scalar one.

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

fn weight() -> impl Strategy<Value = i8> {
    prop_oneof![6 => -127i8..=127, 1 => Just(127i8), 1 => Just(-127i8)]
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
    fn weights(&mut self, n: usize, extreme: bool) -> Vec<i8> {
        (0..n)
            .map(|_| if extreme { 127 } else { (self.next() % 255) as i32 as i8 })
            .map(|w: i8| w.max(-127))
            .collect()
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
    let mut out = vec![0x5555_5555; x.scales.len() * w.rows];
    for mut part in Output::new(&mut out, x.scales.len(), w.rows).split(parts) {
        linear(kernel, w, x, bias, &mut part);
    }
    out
}

proptest! {
    #[test]
    fn linear_small(
        (rows, cols, _tokens, weights, values, scales, token_scales, bias) in
            (0usize..11, 0usize..70, 0usize..14).prop_flat_map(|(rows, cols, tokens)| (
                Just(rows), Just(cols), Just(tokens),
                prop::collection::vec(weight(), rows * cols),
                prop::collection::vec(value(), tokens * cols),
                prop::collection::vec(scale(), rows),
                prop::collection::vec(scale(), tokens),
                prop::option::of(prop::collection::vec(word(), rows)),
            )),
        parts in 1usize..4,
    ) {
        let w = MatrixView { rows, cols, weights: &weights, scales: &scales };
        let x = QuantisedView { cols, values: &values, scales: &token_scales };
        let expected = run_linear(Kernel::Scalar, &w, x, bias.as_deref(), 1);
        for kernel in Kernel::available() {
            prop_assert_eq!(&run_linear(kernel, &w, x, bias.as_deref(), parts), &expected, "{}", kernel);
        }
    }

    #[test]
    fn attention_any(
        (dim, tokens, query, keys, values, key_scales, value_scales) in
            (prop_oneof![1usize..40, Just(64), Just(80), Just(128), Just(256)], 0usize..90).prop_flat_map(|(dim, tokens)| (
                Just(dim), Just(tokens),
                prop::collection::vec(value(), dim),
                prop::collection::vec(value(), tokens * dim),
                prop::collection::vec(value(), tokens * dim),
                prop::collection::vec(scale(), tokens),
                prop::collection::vec(scale(), tokens),
            )),
        query_scale in scale(),
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
        let mut expected = vec![0; dim];
        attention(Kernel::Scalar, &query, query_scale, scoring, &[block(0..tokens)], &mut scratch, &mut expected);
        for kernel in Kernel::available() {
            let mut out = vec![1; dim];
            let blocks = [block(0..cut), block(cut..tokens)];
            attention(kernel, &query, query_scale, scoring, &blocks, &mut scratch, &mut out);
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
        [(4096, 5, 4), (4097, 6, 5), (8192, 4, 3), (12_301, 9, 2), (576, 13, 40), (31, 7, 200), (9000, 5, 11)]
    {
        for extreme in [false, true] {
            let weights = stream.weights(rows * cols, extreme);
            let values = stream.values(tokens * cols, extreme);
            let scales: Vec<_> = (0..rows).map(|_| stream.scale()).collect();
            let token_scales: Vec<_> = (0..tokens).map(|_| stream.scale()).collect();
            let w = MatrixView { rows, cols, weights: &weights, scales: &scales };
            let x = QuantisedView { cols, values: &values, scales: &token_scales };
            let expected = run_linear(Kernel::Scalar, &w, x, None, 1);
            for kernel in Kernel::available() {
                assert_eq!(run_linear(kernel, &w, x, None, 2), expected, "{kernel} {cols} {rows} {tokens}");
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
            &keys[..dim],
            scales[0],
            Scoring::new(dim as u64, None),
            &[block],
            &mut AttentionScratch::default(),
            &mut out,
        );
        // 2047 · 2^-10, in Q16.
        assert!(out.iter().all(|&o| (o - (2047 << 6)).abs() <= 1), "{kernel}: {}", out[0]);
    }
}
