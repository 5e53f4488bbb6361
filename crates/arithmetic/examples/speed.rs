//! Prints what each kernel reaches on one core: `cargo run --release -p assay-arithmetic --example speed`.
//!
//! A linear layer is given as columns × rows at a number of tokens. GMAC/s counts multiplications with their addition,
//! GB/s the weights that are read. Each number is the best of several runs.

use std::hint::black_box;
use std::time::Instant;

use assay_arithmetic::*;

/// The shortest of several runs, in seconds, each about a millisecond long.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    run();
    let count = (0.0007 / start.elapsed().as_secs_f64().max(1e-9)).ceil() as usize;
    (0..60)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..count {
                run();
            }
            start.elapsed().as_secs_f64() / count as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn noise(n: usize) -> impl Iterator<Item = i32> {
    let mut state = 1u64;
    (0..n).map(move |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as i32
    })
}

fn main() {
    let scale = Scale { mantissa: 1 << 30, exponent: -40 };
    // Name a kernel as the first argument to see only that one.
    let only = std::env::args().nth(1);
    for kernel in Kernel::available().into_iter().filter(|k| only.as_deref().is_none_or(|o| o == k.name())) {
        println!("{kernel}");
        for (cols, rows) in [(576usize, 576usize), (576, 1536), (1536, 576), (576, 49152), (4864, 896)] {
            // As in the default model: 4 bits in the layers, 8 in the output matrix.
            let encoding = if rows > 10_000 { Encoding::Q8 } else { Encoding::Q4 };
            let q: Vec<i8> = noise(cols.next_multiple_of(CHUNK)).map(|v| (v % 8) as i8).collect();
            let parameters = vec![[700, 30, 650, -20]; cols.div_ceil(CHUNK)];
            let mut weights = vec![0; encoding.matrix_bytes(rows, cols).unwrap_or(0)];
            for group in weights.chunks_exact_mut(encoding.group_bytes(cols)) {
                (0..GROUP).for_each(|row| encoding.pack(row, &parameters, &q, group));
            }
            let scales = vec![scale; rows];
            let w = MatrixView { rows, cols, encoding, weights: &weights, scales: &scales };
            for tokens in [1, 2, 4, 16, 128] {
                let values: Vec<i16> = noise(tokens * cols).map(|v| (v % 2048) as i16).collect();
                let token_scales = vec![scale; tokens];
                let x = QuantisedView { cols, values: &values, scales: &token_scales };
                let mut out = vec![0; tokens * rows];
                if kernel == Kernel::Scalar && rows * tokens > 1_000_000 {
                    continue;
                }
                let seconds = best(|| {
                    linear(kernel, &w, x, None, &mut Output::new(&mut out, tokens, 0..rows));
                    black_box(&out);
                });
                let (macs, bytes) = ((rows * cols * tokens) as f64, weights.len() as f64);
                println!(
                    "  linear {cols:>5} x {rows:<5} {tokens:>4} tokens  {:>7.1} GMAC/s  {:>6.1} GB/s",
                    macs / seconds / 1e9,
                    bytes / seconds / 1e9
                );
            }
        }
        for (dim, tokens) in [(64, 128), (64, 1024), (64, 8192), (128, 1024)] {
            let keys: Vec<i16> = noise(tokens * dim).map(|v| (v % 2048) as i16).collect();
            let scales = vec![scale; tokens];
            let block = KeyValues { keys: &keys, key_scales: &scales, values: &keys, value_scales: &scales };
            // Scores of a few units, as in a model: most tokens keep some weight.
            let query_scale = Scale { mantissa: 1 << 30, exponent: -44 };
            let mut scratch = AttentionScratch::default();
            let mut out = vec![0; dim];
            let seconds = best(|| {
                let scoring = Scoring::new(dim as u64, None);
                let scales = [query_scale];
                let query = QuantisedView { cols: dim, values: &keys[..dim], scales: &scales };
                attention(kernel, query, scoring, &[block], &mut scratch, &mut out);
                black_box(&out);
            });
            println!(
                "  attention, head of {dim:>3}, {tokens:>4} tokens  {:>7.1} GMAC/s  {:>6.2} ns/token",
                (2 * dim * tokens) as f64 / seconds / 1e9,
                seconds * 1e9 / tokens as f64
            );
        }
        let n = 1536;
        let x: Vec<i32> = noise(n).map(|v| (v % (8 << 16)) - (4 << 16)).collect();
        let (mut values, mut scales) = (vec![0; n], vec![Scale::ZERO]);
        let report = |name: &str, run: &mut dyn FnMut()| {
            println!("  {name:<20} {:>6.2} ns/element", best(run) * 1e9 / n as f64);
        };
        report("quantise", &mut || quantise(kernel, &x, n, &mut values, &mut scales));
        report("rms_norm_quantise", &mut || rms_norm_quantise(kernel, &x, &x, 43, &mut values, &mut scales));
        let mut y = x.clone();
        report("rms_norm", &mut || {
            y.copy_from_slice(&x);
            rms_norm(kernel, &mut y, &x, 43)
        });
        report("silu_mul", &mut || {
            y.copy_from_slice(&x);
            activate(kernel, Activation::Silu, &mut y, Some(&x))
        });
        for style in [RopeStyle::Interleaved, RopeStyle::Half] {
            report(&format!("rope {style:?}"), &mut || {
                y.copy_from_slice(&x);
                for head in y.chunks_exact_mut(64) {
                    rope(kernel, style, head, &x[..32], &x[32..64]);
                }
            });
        }
        report("add", &mut || add(&mut y, &x));
    }
    let logits: Vec<i32> = noise(151_936).map(|v| (v % (12 << 16)) - (v % (5 << 16))).collect();
    let mut sampler = Sampler::default();
    for (name, params) in [
        ("greedy", SamplerParams::default()),
        ("temperature 1", SamplerParams { temperature_milli: 1000, ..SamplerParams::default() }),
        (
            "top-p 0.9",
            SamplerParams { temperature_milli: 700, top_p_ppm: 900_000, ..SamplerParams::default() },
        ),
        ("top-k 40", SamplerParams { temperature_milli: 800, top_k: 40, ..SamplerParams::default() }),
    ] {
        let seconds = best(|| {
            black_box(sampler.pick(&logits, &params, 1, 2));
        });
        println!("sampling {name} of {}: {:.0} µs", logits.len(), seconds * 1e6);
    }
    let seconds = best(|| {
        black_box(LogSoftmax::new(&logits).logprob(3));
    });
    println!("logprob of {}: {:.0} µs", logits.len(), seconds * 1e6);
}
