//! `docs/vectors/arithmetic.json`: inputs and outputs of every operation, for whoever implements the specification.
//!
//! Every kernel must reproduce the file. To write it anew after a deliberate change of the arithmetic (and of
//! `VERSION`), run this test with `ASSAY_WRITE_VECTORS=1`.

#![allow(clippy::unwrap_used)]

use assay_arithmetic::tables::{EXP2, LOG2, NORMAL, RECIPROCAL, exp2_neg, log2, normal, sigmoid};
use assay_arithmetic::*;
use serde_json::{Value, json};
use sha3::{Digest, Keccak256};

/// The generator of the inputs; they are written out in the file, so nobody else needs it.
struct Stream(u64);

impl Stream {
    fn below(&mut self, bound: i64) -> i64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 16) as i64 % bound
    }
    fn within(&mut self, magnitude: i64) -> i64 {
        self.below(2 * magnitude + 1) - magnitude
    }
    fn words(&mut self, n: usize, magnitude: i64) -> Vec<i32> {
        (0..n).map(|_| self.within(magnitude) as i32).collect()
    }
    fn row(&mut self, n: usize) -> Vec<i16> {
        (0..n).map(|_| self.within(8191) as i16).collect()
    }
    fn values(&mut self, n: usize) -> Vec<i16> {
        (0..n).map(|_| self.within(2047) as i16).collect()
    }
    fn scales(&mut self, n: usize) -> Vec<Scale> {
        let mut one = || Scale {
            mantissa: (1 << 30) + self.below(1 << 30) as u32,
            exponent: -40 + self.below(4) as i32,
        };
        (0..n).map(|_| one()).collect()
    }
}

fn pairs(scales: &[Scale]) -> Value {
    scales.iter().map(|s| json!([s.mantissa, s.exponent])).collect()
}

fn table_hash(table: &[u32]) -> String {
    let mut hash = Keccak256::new();
    table.iter().for_each(|v| hash.update(v.to_le_bytes()));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes and what they stand for, row by row.
fn matrix_case(stream: &mut Stream, encoding: Encoding, rows: usize, cols: usize) -> (Vec<u8>, Value) {
    let mut weights = vec![0; encoding.matrix_bytes(rows, cols).unwrap()];
    for row in 0..rows {
        let columns = cols.next_multiple_of(CHUNK);
        let q: Vec<i8> =
            (0..columns).map(|_| (stream.below(256) as u8 as i8) >> (8 - encoding.bits())).collect();
        let parameters: Vec<[i16; 4]> =
            (0..columns / CHUNK).map(|_| [(); 4].map(|()| stream.within(4095) as i16)).collect();
        let bytes = encoding.group_bytes(cols);
        encoding.pack(row % GROUP, &parameters, &q, &mut weights[row / GROUP * bytes..][..bytes]);
    }
    let scales = vec![Scale::ZERO; rows];
    let view = MatrixView { rows, cols, encoding, weights: &weights, scales: &scales };
    let mut row = vec![0; cols];
    let words: Vec<Vec<i16>> = (0..rows)
        .map(|r| {
            view.row(r, &mut row);
            row.clone()
        })
        .collect();
    let hex: String = weights.iter().map(|b| format!("{b:02x}")).collect();
    let case = json!({"bits": encoding.bits(), "rows": rows, "cols": cols, "bytes": hex, "weights": words});
    (weights, case)
}

fn linear_case(
    kernel: Kernel,
    stream: &mut Stream,
    encoding: Encoding,
    (rows, cols, tokens): (usize, usize, usize),
    biased: bool,
) -> Value {
    let (weights, matrix) = matrix_case(stream, encoding, rows, cols);
    let values = stream.values(tokens * cols);
    let (scales, token_scales) = (stream.scales(rows), stream.scales(tokens));
    let bias = biased.then(|| stream.words(rows, 1 << 20));
    let w = MatrixView { rows, cols, encoding, weights: &weights, scales: &scales };
    let x = QuantisedView { cols, values: &values, scales: &token_scales };
    let mut out = vec![0; tokens * rows];
    linear(kernel, &w, x, bias.as_deref(), &mut Output::new(&mut out, tokens, 0..rows));
    json!({"matrix": matrix, "tokens": tokens, "row_scales": pairs(&scales),
        "values": values, "token_scales": pairs(&token_scales), "bias_q16": bias, "out_q16": out})
}

fn quantise_case(kernel: Kernel, x: &[i32], cols: usize) -> Value {
    let (mut values, mut scales) = (vec![0; x.len()], vec![Scale::ZERO; x.len() / cols]);
    quantise(kernel, x, cols, &mut values, &mut scales);
    json!({"cols": cols, "x_q16": x, "values": values, "scales": pairs(&scales)})
}

fn norm_case(kernel: Kernel, x: &[i32], weight: &[i32], eps: u64) -> Value {
    let (mut values, mut scales) = (vec![0; x.len()], vec![Scale::ZERO; x.len() / weight.len()]);
    rms_norm_quantise(kernel, x, weight, eps, &mut values, &mut scales);
    let mut out = x.to_vec();
    rms_norm(kernel, &mut out, weight, eps);
    json!({"x_q16": x, "weight_q16": weight, "eps_q32": eps, "values": values, "scales": pairs(&scales),
        "rms_norm_q16": out})
}

fn attention_case(
    kernel: Kernel,
    stream: &mut Stream,
    dim: usize,
    tokens: usize,
    query_exponent: i32,
    cap: Option<u32>,
) -> Value {
    let (query, keys, values) =
        (stream.values(dim), stream.values(dim * tokens), stream.values(dim * tokens));
    let (key_scales, mut value_scales) = (stream.scales(tokens), stream.scales(tokens));
    if tokens > 3 {
        value_scales[2] = Scale::ZERO;
    }
    let query_scale = Scale { mantissa: 1_234_567_890, exponent: query_exponent };
    let block =
        KeyValues { keys: &keys, key_scales: &key_scales, values: &values, value_scales: &value_scales };
    let mut out = vec![0; dim];
    let scoring = Scoring::new(dim as u64, cap.map(SoftCap::new));
    let queries = QuantisedView { cols: dim, values: &query, scales: &[query_scale] };
    attention(kernel, queries, scoring, &[block], &mut AttentionScratch::default(), &mut out);
    let mut case = json!({"head_dim": dim, "query": query, "query_scale": pairs(&[query_scale])[0], "factor": pairs(&[scoring.factor])[0],
        "keys": keys, "key_scales": pairs(&key_scales), "values": values, "value_scales": pairs(&value_scales),
        "out_q16": out});
    if let Some(cap) = cap {
        case["cap_q16"] = json!(cap);
    }
    case
}

fn sampling_cases(stream: &mut Stream) -> Value {
    let mut logits = stream.words(60, 6 << 16);
    logits[7] = BANNED;
    logits[20] = logits[21]; // a tie
    let plain = SamplerParams::default();
    let cases = [
        plain,
        SamplerParams { temperature_milli: 1000, ..plain },
        SamplerParams { temperature_milli: 700, top_k: 5, ..plain },
        SamplerParams { temperature_milli: 1500, top_p_ppm: 800_000, ..plain },
        SamplerParams { temperature_milli: 1000, min_p_ppm: 100_000, ..plain },
        SamplerParams { temperature_milli: 2000, top_k: 30, top_p_ppm: 950_000, min_p_ppm: 20_000, ..plain },
    ];
    let mut sampler = Sampler::default();
    let picks: Vec<Value> = cases
        .iter()
        .map(|p| {
            let tokens: Vec<_> =
                (0..16).map(|i| sampler.pick(&logits, p, 0x0123_4567_89ab_cdef, i)).collect();
            json!({"temperature_milli": p.temperature_milli, "top_k": p.top_k, "top_p_ppm": p.top_p_ppm,
                "min_p_ppm": p.min_p_ppm, "seed": "81985529216486895", "tokens_at_positions_0_to_15": tokens})
        })
        .collect();
    let penalties = SamplerParams {
        repetition_penalty_milli: 1150,
        frequency_penalty_milli: 350,
        presence_penalty_milli: -700,
        ..plain
    };
    let seen = [(3, 0), (7, 4), (11, 1), (12, 9), (59, 2), (60, 1)];
    let list: Vec<Seen> = seen.iter().map(|&(token, generated)| Seen { token, generated }).collect();
    let bias = [(3, 1500), (30, -100_000), (99, 5)];
    let mut adjusted = logits.clone();
    adjust_logits(&mut adjusted, &penalties, &list, &bias);
    let soft = LogSoftmax::new(&logits);
    let logprobs: Vec<i32> = (0..61).map(|t| soft.logprob(t)).collect();
    json!({"logits_q16": logits, "picks": picks,
        "adjust": {"repetition_penalty_milli": 1150, "frequency_penalty_milli": 350, "presence_penalty_milli": -700,
            "seen_token_generated": seen, "bias_token_milli": bias, "logits_q16": adjusted},
        "logprobs_q16": logprobs, "top_5": soft.top(5),
        "uniform": (0..4).map(|i| json!({"seed": i * 7, "position": i, "value": uniform(i * 7, i).to_string()}))
            .collect::<Value>()})
}

fn vectors(kernel: Kernel) -> Value {
    let mut s = Stream(1);
    let points = [0u32, 1, 63, 64, 65, 65_535, 65_536, 100_000, 1_000_000, 2_031_615, 2_031_616, u32::MAX];
    let signed = [0, 1, -1, 65_536, -65_536, 300_000, -300_000, 1_400_000, -1_400_000, i32::MAX, i32::MIN];
    let integers = [1u64, 2, 3, 1000, 1 << 30, (1 << 31) - 1, (1 << 32) - 1, u64::MAX];
    let (a, b) = (s.scales(4), s.scales(4));
    let by = |f: &dyn Fn(usize) -> Scale| pairs(&(0..4).map(f).collect::<Vec<_>>());
    let (row, weight) = (s.words(40, 1 << 20), s.words(20, 1 << 17));
    let head = s.words(16, 1 << 19);
    let (cos, sin) = (s.words(8, 1 << 30), s.words(8, 1 << 30));
    let turned = |style| {
        let mut out = head.clone();
        rope(kernel, style, &mut out, &cos, &sin);
        out
    };
    let (mut gate, mut up) = (s.words(24, 8 << 16), s.words(24, 8 << 16));
    gate.extend([i32::MIN, i32::MAX, i32::MAX, 1 << 16, 0]);
    up.extend([i32::MIN, i32::MAX, i32::MIN, -1, 5]);
    let mut swiglu = gate.clone();
    activate(kernel, Activation::Silu, &mut swiglu, Some(&up));
    let (embedding, embedding_scale) = (s.row(12), s.scales(1));
    let mut embedded = vec![0; 12];
    dequantise_row(&embedding, embedding_scale[0], &mut embedded);
    let caps = [1u32 << 16, 30 << 16, 50 << 16, 1 << 26];
    json!({
        "version": VERSION,
        "about": "Test vectors for docs/arithmetic.md. A scale is [mantissa, exponent]; null means none.",
        "tables": {
            "keccak256_of_little_endian_u32": {
                "exp2": table_hash(&EXP2), "reciprocal": table_hash(&RECIPROCAL), "log2": table_hash(&LOG2)},
            "exp2_neg": points.map(|t| [t, exp2_neg(t)]),
            "sigmoid": signed.map(|x| json!([x, sigmoid(x)])),
            "log2": integers.map(|n| json!([n.to_string(), log2(n)])),
        },
        "scale": {
            "a": pairs(&a), "b": pairs(&b), "a_times_b": by(&|i| a[i].mul(b[i])), "recip_a": by(&|i| a[i].recip()),
            "integers": integers.map(|n| n.to_string()),
            "from_integer": pairs(&integers.map(Scale::from_integer)),
            "inverse_sqrt": pairs(&integers.map(Scale::inverse_sqrt)),
            "bytes_of_first_a": a[0].to_bytes(),
        },
        "quantise": [
            quantise_case(kernel, &row, 20),
            quantise_case(kernel, &[0, 0, 0, i32::MIN, i32::MAX, -1, 1, 0, -1], 3),
        ],
        "rms_norm_quantise": [
            norm_case(kernel, &row, &weight, 42_950),
            norm_case(kernel, &[0, 0, 3, -4, i32::MIN, i32::MAX], &[1 << 16, -1 << 15], 4295),
        ],
        "linear": [
            linear_case(kernel, &mut s, Encoding::Q4, (5, 70, 4), true),
            linear_case(kernel, &mut s, Encoding::Q6, (4, 64, 1), false),
            linear_case(kernel, &mut s, Encoding::Q8, (3, 19, 2), true),
            linear_case(kernel, &mut s, Encoding::Q8, (4, 1100, 1), false),
        ],
        "rope": {"head_q16": head, "cos_q30": cos, "sin_q30": sin,
            "interleaved_q16": turned(RopeStyle::Interleaved), "half_q16": turned(RopeStyle::Half)},
        "attention": [
            attention_case(kernel, &mut s, 8, 13, -42, None),
            attention_case(kernel, &mut s, 20, 34, -44, None),
            attention_case(kernel, &mut s, 8, 1, -41, None),
        ],
        "silu_mul": {"gate_q16": gate, "up_q16": up, "out_q16": swiglu},
        "dequantise_row": {"row": embedding, "scale": pairs(&embedding_scale)[0], "out_q16": embedded},
        "sampling": sampling_cases(&mut s),
        "tables_2": {
            "keccak256_of_little_endian_u32": {"normal": table_hash(&NORMAL)},
            "normal": signed.map(|x| json!([x, normal(x)])),
        },
        "gelu": gelu_cases(kernel, &mut s),
        "layer_norm": [
            layer_norm_case(kernel, &row, &weight, &up[..20], 42_950),
            layer_norm_case(kernel, &[0, 0, i32::MIN, i32::MAX], &[1 << 16, -1 << 15], &[5, -7], 4295),
        ],
        "soft_cap": caps.map(|cap| {
            let soft = SoftCap::new(cap);
            json!({"cap_q16": cap, "of_q16": signed.map(|x| [x, soft.apply(x)])})
        }),
        "attention_capped": [
            attention_case(kernel, &mut s, 8, 13, -38, Some(50 << 16)),
            attention_case(kernel, &mut s, 20, 9, -39, Some(3 << 16)),
        ],
        "experts": [
            experts_case(&mut s, &[65_536, -3, 65_536, 200_000, 199_999, 65_536], 4),
            experts_case(&mut s, &[i32::MIN, i32::MAX, 0], 2),
            experts_case(&mut s, &[7, 7, 7], 3),
        ],
        "unit_vector": [unit_case(&[3, -4, 0]), unit_case(&[0, 0]), unit_case(&[1 << 62, -1, 1 << 61, -(1 << 40)])],
    })
}

fn unit_case(sums: &[i64]) -> Value {
    let mut out = vec![0; sums.len()];
    unit_vector(sums, &mut out);
    json!({"sums": sums.iter().map(i64::to_string).collect::<Vec<_>>(), "out_q30": out})
}

fn gelu_cases(kernel: Kernel, s: &mut Stream) -> Value {
    let (mut gate, mut up) = (s.words(24, 8 << 16), s.words(24, 8 << 16));
    gate.extend([i32::MIN, i32::MAX, i32::MAX, 6 << 16, -6 << 16, 0]);
    up.extend([i32::MIN, i32::MAX, i32::MIN, -1, 1 << 16, 5]);
    let run = |activation, up: Option<&[i32]>| {
        let mut out = gate.clone();
        activate(kernel, activation, &mut out, up);
        out
    };
    json!({"gate_q16": gate, "up_q16": up,
        "tanh_gated_q16": run(Activation::GeluTanh, Some(&up)), "tanh_q16": run(Activation::GeluTanh, None),
        "erf_gated_q16": run(Activation::GeluErf, Some(&up)), "erf_q16": run(Activation::GeluErf, None)})
}

fn layer_norm_case(kernel: Kernel, x: &[i32], weight: &[i32], bias: &[i32], eps: u64) -> Value {
    let mut out = x.to_vec();
    layer_norm(kernel, &mut out, weight, bias, eps);
    json!({"x_q16": x, "weight_q16": weight, "bias_q16": bias, "eps_q32": eps, "out_q16": out})
}

fn experts_case(s: &mut Stream, logits: &[i32], used: usize) -> Value {
    let mut chosen = Vec::new();
    route(logits, used, &mut chosen);
    let answers: Vec<Vec<i32>> = (0..used).map(|_| s.words(3, 1 << 20)).collect();
    let mut out = vec![0; 3];
    mix(chosen.iter().zip(&answers).map(|(&(_, weight), y)| (weight, &y[..])), &mut out);
    json!({"logits_q16": logits, "used": used, "experts_and_weights_q30": chosen, "answers_q16": answers, "out_q16": out})
}

/// Every member of the top two levels on a line of its own: short enough to read, easy to compare.
fn text(value: &Value) -> String {
    let lines = |map: &serde_json::Map<String, Value>, indent: &str, f: &dyn Fn(&Value) -> String| {
        let members: Vec<String> =
            map.iter().map(|(k, v)| format!("{indent}{}: {}", json!(k), f(v))).collect();
        members.join(",\n")
    };
    let inner = |value: &Value| match value {
        Value::Object(map) => format!("{{\n{}\n  }}", lines(map, "    ", &|v| v.to_string())),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|v| format!("    {v}")).collect();
            format!("[\n{}\n  ]", items.join(",\n"))
        }
        other => other.to_string(),
    };
    match value {
        Value::Object(map) => format!("{{\n{}\n}}\n", lines(map, "  ", &inner)),
        other => other.to_string(),
    }
}

#[test]
fn vectors_hold_for_every_kernel() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/arithmetic.json");
    if std::env::var_os("ASSAY_WRITE_VECTORS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, text(&vectors(Kernel::Scalar))).unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap();
    let published: Value = serde_json::from_str(&file).unwrap();
    for kernel in Kernel::available() {
        let now = vectors(kernel);
        for (name, value) in now.as_object().unwrap() {
            assert_eq!(published.get(name), Some(value), "{kernel}: {name}");
        }
        assert_eq!(file, text(&now), "{kernel}: the file has members that nobody computes");
    }
}

/// The specification quotes the same hashes.
#[test]
fn specification_states_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/arithmetic.md");
    let specification = std::fs::read_to_string(path).unwrap();
    for table in [&EXP2[..], &RECIPROCAL, &LOG2, &NORMAL] {
        assert!(specification.contains(&table_hash(table)), "{}", table_hash(table));
    }
}
