//! The integer functions against floating point, the bounds that the specification states, and sampling.
#![allow(clippy::unwrap_used)]
#![allow(clippy::float_arithmetic)]

use assay_arithmetic::tables::{EXP2, LOG2, NORMAL, RECIPROCAL, exp2_neg, log2, normal, sigmoid};
use assay_arithmetic::*;

const Q30: f64 = (1u64 << 30) as f64;

#[test]
fn tables_are_correctly_rounded() {
    for i in 0..=1024usize {
        let x = i as f64 / 1024.0;
        assert!((f64::from(EXP2[i]) - Q30 * (-x).exp2()).abs() <= 0.5001, "exp2 {i}");
        assert!((f64::from(RECIPROCAL[i]) - Q30 / (1.0 + x)).abs() <= 0.5001, "reciprocal {i}");
        assert!((f64::from(LOG2[i]) - Q30 * (1.0 + x).log2()).abs() <= 0.7501, "log2 {i}");
    }
}

#[test]
fn exp2_is_monotonic_and_close() {
    let mut before = 1 << 30;
    assert_eq!(exp2_neg(0), before);
    for t in 0..32 << 16 {
        let now = exp2_neg(t);
        assert!(now <= before, "{t}");
        before = now;
        let exact = Q30 * (-f64::from(t) / 65536.0).exp2();
        assert!((f64::from(now) - exact).abs() <= 0.6 + exact * 1e-7, "{t}: {now} {exact}");
    }
    assert_eq!(exp2_neg(31 << 16), 0);
    assert_eq!(exp2_neg(u32::MAX), 0);
}

#[test]
fn sigmoid_is_close_and_nearly_monotonic() {
    let mut before = 0;
    for x in (-25 << 16..25 << 16).step_by(37) {
        let now = sigmoid(x);
        // Two interpolations: never down by more than their error.
        assert!(i64::from(now) >= i64::from(before) - 700, "{x}");
        before = now;
        let exact = Q30 / (1.0 + (-f64::from(x) / 65536.0).exp());
        assert!((f64::from(now) - exact).abs() <= 2500.0, "{x}: {now} {exact}");
        assert!(now <= 1 << 30);
    }
    assert_eq!(sigmoid(0), 1 << 29);
    assert_eq!(sigmoid(i32::MAX), 1 << 30);
    assert_eq!(sigmoid(i32::MIN), 0);
}

/// `Φ(x)` by its power series, good to 1e-13 within ±8.
fn phi(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[test]
fn the_normal_distribution_is_close() {
    for (i, entry) in NORMAL.iter().enumerate() {
        assert!((f64::from(*entry) - Q30 * phi(i as f64 / 128.0)).abs() <= 0.5001, "{i}");
    }
    let mut before = 0;
    for x in (-9 << 16..9 << 16).step_by(37) {
        let now = normal(x);
        assert!(now >= before, "{x}");
        before = now;
        let exact = Q30 * phi(f64::from(x) / 65536.0);
        assert!((f64::from(now) - exact).abs() <= 2000.0, "{x}: {now} {exact}");
    }
    assert_eq!((normal(0), normal(i32::MAX), normal(i32::MIN)), (1 << 29, 1 << 30, 0));
}

#[test]
fn gelu_is_close() {
    for x in (-40 << 16..40 << 16).step_by(97) {
        let (exact, run) = (f64::from(x) / 65536.0, |activation| {
            let mut word = [x];
            activate(Kernel::Scalar, activation, &mut word, None);
            f64::from(word[0]) / 65536.0
        });
        let tanh = 0.5
            * exact
            * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (exact + 0.044715 * exact.powi(3))).tanh());
        assert!((run(Activation::GeluTanh) - tanh).abs() < 3e-5, "{exact}");
        assert!((run(Activation::GeluErf) - exact * phi(exact.clamp(-9.0, 9.0))).abs() < 3e-5, "{exact}");
    }
}

#[test]
fn soft_caps_are_close() {
    for cap in [1.0f64, 30.0, 50.0, 1024.0] {
        let soft = SoftCap::new((cap * 65536.0) as u32);
        for x in (-200 << 16..200 << 16).step_by(1009) {
            let exact = cap * (f64::from(x) / 65536.0 / cap).tanh();
            let found = f64::from(soft.apply(x)) / 65536.0;
            assert!((found - exact).abs() < cap * 1e-5 + 1e-4, "{cap} {x}: {found} {exact}");
        }
        for extreme in [i32::MIN, i32::MAX] {
            assert!(f64::from(soft.apply(extreme)).abs() <= cap * 65536.0);
        }
    }
}

#[test]
fn layer_norms_are_close() {
    let x: Vec<i32> = (0..384).map(|i| (i * i * 7919 % 400_000) - 100_000).collect();
    let (weight, bias): (Vec<i32>, Vec<i32>) = (0..384).map(|i| (60_000 + 50 * i, 90 * i - 9_000)).unzip();
    let float = |v: &[i32]| v.iter().map(|&v| f64::from(v) / 65536.0).collect::<Vec<_>>();
    let (xs, ws, bs) = (float(&x), float(&weight), float(&bias));
    let mean = xs.iter().sum::<f64>() / 384.0;
    let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 384.0;
    let mut out = x.clone();
    layer_norm(Kernel::Scalar, &mut out, &weight, &bias, 4295);
    for i in 0..384 {
        let exact = (xs[i] - mean) / (variance + 1e-6).sqrt() * ws[i] + bs[i];
        assert!((float(&out)[i] - exact).abs() < 5e-5, "{i}");
    }
}

#[test]
fn unit_vectors_have_length_one() {
    for shift in [0, 7, 30, 50] {
        let sums: Vec<i64> = (0..384i64).map(|i| (i * i * 7919 % 4001 - 2000) << shift).collect();
        let length = sums.iter().map(|&s| (s as f64).powi(2)).sum::<f64>().sqrt();
        let mut out = vec![0; 384];
        unit_vector(&sums, &mut out);
        for (out, sum) in out.iter().zip(&sums) {
            assert!((f64::from(*out) / Q30 - *sum as f64 / length).abs() < 1e-7);
        }
    }
    for (sums, expected) in
        [([0, 0], [0, 0]), ([-5, 0], [-1 << 30, 0]), ([1 << 62, -1 << 62], [759_250_125, -759_250_125])]
    {
        let mut out = [7; 2];
        unit_vector(&sums, &mut out);
        assert!(out.iter().zip(expected).all(|(a, b): (&i32, i32)| (a - b).abs() <= 1), "{out:?}");
    }
}

#[test]
fn log2_is_close() {
    let mut n = 1u64;
    while n < 1 << 62 {
        let exact = (n as f64).log2();
        assert!((log2(n) as f64 / Q30 - exact).abs() < 2e-7, "{n}");
        n += n / 7 + 1;
    }
    assert_eq!(log2(1 << 63), 63 << 30);
    assert_eq!(log2(0), 0);
}

fn value(scale: Scale) -> f64 {
    f64::from(scale.mantissa) * f64::from(scale.exponent).exp2()
}

#[test]
fn scales_round_to_31_bits() {
    for n in [1u64, 3, 1000, (1 << 31) - 1, (1 << 31) + 1, (1 << 40) - 1, u64::MAX] {
        let scale = Scale::from_integer(n);
        assert!(scale.is_valid());
        let near = |got: f64, exact: f64| {
            assert!((got / exact - 1.0).abs() < 2.0f64.powi(-29), "{n}: {got} {exact}")
        };
        near(value(scale), n as f64);
        near(value(scale.recip()), 1.0 / n as f64);
        near(value(scale.mul(scale)), (n as f64).powi(2));
        near(value(Scale::inverse_sqrt(n)), 1.0 / (n as f64).sqrt());
        assert_eq!(Scale::from_bytes(scale.to_bytes()), Some(scale));
    }
    for x in [1.0f32, 0.1, 3.5e-39, f32::MIN_POSITIVE, f32::MAX, 1.0e-45] {
        let scale = Scale::from_f32(x).unwrap();
        assert!(scale.is_valid());
        assert_eq!(value(scale), f64::from(x));
    }
    assert_eq!(Scale::from_f32(-0.0), Some(Scale::ZERO));
    for x in [-1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(Scale::from_f32(x), None);
    }
    assert_eq!(Scale::ONE.shifted(i32::MAX).exponent, 32767);
    assert_eq!(Scale::ONE.shifted(i32::MIN).exponent, -32767);
    assert_eq!(Scale::ZERO.recip(), Scale::ZERO);
    for bad in [
        Scale { mantissa: 1, exponent: 0 },
        Scale { mantissa: 1 << 31, exponent: 0 },
        Scale { mantissa: 0, exponent: 1 },
        Scale { mantissa: 1 << 30, exponent: 40_000 },
    ] {
        assert!(!bad.is_valid());
        assert_eq!(Scale::from_bytes(bad.to_bytes()), None);
    }
}

/// The bounds that keep every sum of a proof below 2^30.
#[test]
fn sums_stay_below_two_to_the_thirty() {
    assert!(SEGMENT as i64 * i64::from(WEIGHT_MAX) * 2047 < 1 << 30);
    assert!(HEAD_DIM_MAX as i64 * 2047 * 2047 < 1 << 30);
}

#[test]
fn norm_agrees_with_floats() {
    let x: Vec<i32> = (0..576).map(|i: i32| (i * 7919 % 200_003) - 100_000).collect();
    let w: Vec<i32> = (0..576).map(|i| 40_000 + i * 50).collect();
    let mean = x.iter().map(|&x| (f64::from(x) / 65536.0).powi(2)).sum::<f64>() / 576.0;
    let (mut values, mut scales) = (vec![0; 576], vec![Scale::ZERO]);
    rms_norm_quantise(Kernel::best(), &x, &w, 42_950, &mut values, &mut scales);
    let mut y = x.clone();
    rms_norm(Kernel::best(), &mut y, &w, 42_950);
    for i in 0..576 {
        let exact = f64::from(x[i]) / 65536.0 * f64::from(w[i]) / 65536.0 / (mean + 1e-5).sqrt();
        assert!((f64::from(y[i]) / 65536.0 - exact).abs() < 1e-5);
        assert!((f64::from(values[i]) * value(scales[0]) - exact).abs() <= value(scales[0]) * 0.51);
    }
}

#[test]
fn attention_agrees_with_floats() {
    let (dim, n) = (64, 300);
    let noise = |salt: i64, i: usize| ((i as i64 * 7919 + salt) * 104_729 % 4095 - 2047) as i16;
    let q: Vec<i16> = (0..dim).map(|i| noise(1, i)).collect();
    let k: Vec<i16> = (0..dim * n).map(|i| noise(2, i)).collect();
    let v: Vec<i16> = (0..dim * n).map(|i| noise(3, i)).collect();
    let scales: Vec<Scale> = (0..n).map(|i| Scale::from_integer(900 + i as u64).shifted(-20)).collect();
    let qs = scales[0];
    let block = KeyValues { keys: &k, key_scales: &scales, values: &v, value_scales: &scales };
    let mut out = vec![0; dim];
    attention(
        Kernel::best(),
        QuantisedView { cols: dim, values: &q, scales: &[qs] },
        Scoring::new(dim as u64, None),
        &[block],
        &mut AttentionScratch::default(),
        &mut out,
    );
    let p: Vec<f64> = (0..n)
        .map(|t| {
            let dot: f64 = (0..dim).map(|d| f64::from(q[d]) * f64::from(k[t * dim + d])).sum();
            (dot * value(qs) * value(scales[t]) / 8.0).exp()
        })
        .collect();
    let total: f64 = p.iter().sum();
    for d in 0..dim {
        let exact: f64 =
            (0..n).map(|t| p[t] * f64::from(v[t * dim + d]) * value(scales[t])).sum::<f64>() / total;
        assert!(
            (f64::from(out[d]) / 65536.0 - exact).abs() < 2e-4,
            "{d}: {} {exact}",
            f64::from(out[d]) / 65536.0
        );
    }
}

fn params() -> SamplerParams {
    SamplerParams { temperature_milli: 1000, ..SamplerParams::default() }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let mut sampler = Sampler::default();
    assert_eq!(argmax(&[1, 5, 5, 2]), Some(1));
    assert_eq!(sampler.pick(&[1, 5, 5, 2], &SamplerParams::default(), 9, 9), Some(1));
    assert_eq!(sampler.pick(&[1, 5, 5, 2], &SamplerParams { top_k: 1, ..params() }, 9, 9), Some(1));
    assert_eq!(argmax(&[]), None);
    for p in [SamplerParams::default(), params()] {
        assert_eq!(sampler.pick(&[BANNED, BANNED], &p, 9, 9), None);
        assert_eq!(sampler.pick(&[], &p, 9, 9), None);
        assert_eq!(sampler.pick(&[BANNED, BANNED + 1], &p, 9, 9), Some(1));
    }
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits: Vec<i32> = [0.0, 1.0, 2.0, -1.0].iter().map(|l| (l * 65536.0) as i32).collect();
    for milli in [500u32, 1000, 2000] {
        let p = SamplerParams { temperature_milli: milli, ..params() };
        let mut counts = [0f64; 4];
        let mut sampler = Sampler::default();
        for position in 0..40_000 {
            counts[sampler.pick(&logits, &p, 5, position).unwrap() as usize] += 1.0 / 40_000.0;
        }
        let weights: Vec<f64> =
            [0.0f64, 1.0, 2.0, -1.0].iter().map(|l| (l * 1000.0 / f64::from(milli)).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            assert!((count - weight / total).abs() < 0.01, "{milli}: {counts:?}");
        }
    }
}

/// The tokens that can be picked at all, by trying many positions.
fn support(logits: &[i32], p: &SamplerParams) -> Vec<u32> {
    let mut sampler = Sampler::default();
    let mut seen: Vec<u32> = (0..4000).map(|i| sampler.pick(logits, p, 1, i).unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

#[test]
fn filters_keep_what_they_should() {
    let logits = [0, 0, 65536, 0, 65536];
    assert_eq!(support(&logits, &params()), [0, 1, 2, 3, 4]);
    assert_eq!(support(&logits, &SamplerParams { top_k: 2, ..params() }), [2, 4]);
    assert_eq!(support(&logits, &SamplerParams { top_k: 3, ..params() }), [0, 2, 4]); // the lowest id of equals
    assert_eq!(support(&logits, &SamplerParams { top_p_ppm: 0, ..params() }), [2]);
    // Two of weight e and three of 1: the two are 64.4 %.
    assert_eq!(support(&logits, &SamplerParams { top_p_ppm: 644_000, ..params() }), [2, 4]);
    assert_eq!(support(&logits, &SamplerParams { top_p_ppm: 645_000, ..params() }), [0, 2, 4]);
    assert_eq!(support(&logits, &SamplerParams { min_p_ppm: 367_000, ..params() }), [0, 1, 2, 3, 4]);
    assert_eq!(support(&logits, &SamplerParams { min_p_ppm: 368_000, ..params() }), [2, 4]);
    assert_eq!(support(&logits, &SamplerParams { min_p_ppm: u32::MAX, ..params() }), [2, 4]);
    // After top-k the share is of what is left: one of two equals.
    assert_eq!(support(&logits, &SamplerParams { top_k: 2, top_p_ppm: 500_000, ..params() }), [2]);
}

/// Top-p over a large vocabulary equals the plain definition: sort everything and cut.
#[test]
fn top_p_equals_its_definition() {
    let logits: Vec<i32> = (0..20_000i64).map(|i| (i * i * 7919 % 300_007) as i32).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by_key(|&i| (-logits[i], i));
    let max = i64::from(logits[order[0]]);
    let weight = |i: usize| {
        let distance = (max - i64::from(logits[i])) as u64;
        u128::from(exp2_neg(((distance * u64::from(tables::LOG2_E_Q30) + (1 << 29)) >> 30) as u32))
    };
    let total: u128 = (0..logits.len()).map(weight).sum();
    for ppm in [10_000u32, 500_000, 900_000, 999_999] {
        let mut sum = 0;
        let mut kept: Vec<usize> = order
            .iter()
            .copied()
            .take_while(|&i| {
                let before = sum;
                sum += weight(i) * 1_000_000;
                before < total * u128::from(ppm)
            })
            .collect();
        kept.sort_unstable();
        let share: u128 = kept.iter().map(|&i| weight(i)).sum();
        let mut sampler = Sampler::default();
        for position in 0..50 {
            let mut left = (u128::from(uniform(3, position)) * share) >> 64;
            let expected = kept
                .iter()
                .find(|&&i| match left.checked_sub(weight(i)) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                })
                .unwrap();
            let p = SamplerParams { top_p_ppm: ppm, ..params() };
            assert_eq!(sampler.pick(&logits, &p, 3, position), Some(*expected as u32), "{ppm} {position}");
        }
    }
}

#[test]
fn penalties_and_bias() {
    let one = 65536;
    let mut logits = [2 * one, -2 * one, one, BANNED, i32::MAX, 0];
    let p = SamplerParams {
        repetition_penalty_milli: 2000,
        frequency_penalty_milli: 500,
        presence_penalty_milli: 250,
        ..SamplerParams::default()
    };
    let seen = [
        Seen { token: 0, generated: 0 },
        Seen { token: 1, generated: 2 },
        Seen { token: 3, generated: 1 },
        Seen { token: 77, generated: 1 },
    ];
    adjust_logits(&mut logits, &p, &seen, &[(2, -500), (3, 100_000), (4, 1), (5, i32::MIN), (88, 1)]);
    assert_eq!(logits, [one, -4 * one - one - one / 4, one / 2, BANNED, i32::MAX, BANNED + 1]);
    // Nothing set, nothing changed.
    let before = logits;
    adjust_logits(&mut logits, &SamplerParams::default(), &seen, &[]);
    assert_eq!(logits, before);
}

#[test]
fn logprobs_agree_with_floats() {
    let logits: Vec<i32> = (0..5000i64).map(|i| (i * 7919 % 1_000_003) as i32 - 500_000).collect();
    let soft = LogSoftmax::new(&logits);
    let total: f64 = logits.iter().map(|&l| (f64::from(l) / 65536.0).exp()).sum();
    for token in [0u32, 17, 4999] {
        let exact = f64::from(logits[token as usize]) / 65536.0 - total.ln();
        assert!((f64::from(soft.logprob(token)) / 65536.0 - exact).abs() < 5e-5);
    }
    assert_eq!(soft.logprob(5000), i32::MIN);
    let top = soft.top(3);
    assert_eq!(top.len(), 3);
    assert_eq!(Some(top[0].0), argmax(&logits));
    assert!(top.windows(2).all(|w| w[0].1 >= w[1].1));
    assert_eq!(LogSoftmax::new(&[5, 5, BANNED]).top(9).iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(LogSoftmax::new(&[123]).logprob(0), 0);
}

#[test]
#[should_panic(expected = "the activations do not fit the matrix")]
fn linear_checks_shapes() {
    let weights = vec![0; Encoding::Q4.chunk_bytes()];
    let w = MatrixView { rows: 1, cols: 2, encoding: Encoding::Q4, weights: &weights, scales: &[Scale::ONE] };
    let x = QuantisedView { cols: 3, values: &[1, 2, 3], scales: &[Scale::ONE] };
    linear(Kernel::Scalar, &w, x, None, &mut Output::new(&mut [0], 1, 0..1));
}
