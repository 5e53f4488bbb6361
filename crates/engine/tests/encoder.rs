//! Encoders: against floating point, over kernels, and what a replay finds.
#![allow(clippy::unwrap_used, clippy::float_arithmetic)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use assay_arithmetic::Kernel;
use assay_engine::encoder::{Encoder, EncoderError};
use assay_engine::request::OutputVerdict;
use assay_engine::{Config, Engine, Error};
use assay_model::testing::{tiny_encoder, tiny_gguf};
use assay_model::{Architecture, Artifact, import_gguf, import_safetensors};
use assay_receipt::{FinishReason, Message, Output, Prompt, Request, TokenLogprob};

type Files = Vec<(String, Vec<u8>)>;

fn import(files: &Files) -> Arc<Artifact> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let bytes = import_safetensors(&files, &mut |_, _| {}).unwrap();
    let artifact = Artifact::parse(Arc::new(bytes)).unwrap();
    artifact.verify(&mut |_, _| {}).unwrap();
    Arc::new(artifact)
}

fn encoder(files: &Files) -> Encoder {
    Encoder::new(import(files), Kernel::best()).unwrap()
}

/// BERT with mean pooling in binary64, from the folder's own tensors (Devlin et al., arXiv 1810.04805; Reimers and
/// Gurevych, arXiv 1908.10084).
struct Float {
    tensors: HashMap<String, Vec<f64>>,
    layers: usize,
    heads: usize,
    dim: usize,
}

impl Float {
    fn new(files: &Files) -> Float {
        let file = |name: &str| &files.iter().find(|(other, _)| other == name).unwrap().1;
        let config: serde_json::Value = serde_json::from_slice(file("config.json")).unwrap();
        let bytes = file("model.safetensors");
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header: serde_json::Value = serde_json::from_slice(header).unwrap();
        let tensors = header.as_object().unwrap().iter().filter(|(_, entry)| entry["dtype"] == "F32");
        let tensors = tensors.map(|(name, entry)| {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let words = data[at(0)..at(1)].as_chunks::<4>().0;
            (name.clone(), words.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect())
        });
        let count = |field: &str| config[field].as_u64().unwrap() as usize;
        Float {
            tensors: tensors.collect(),
            layers: count("num_hidden_layers"),
            heads: count("num_attention_heads"),
            dim: count("hidden_size"),
        }
    }

    fn linear(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (w, b) = (&self.tensors[&format!("{name}.weight")], &self.tensors[&format!("{name}.bias")]);
        let row = |x: &Vec<f64>| {
            let rows = w.chunks_exact(x.len()).zip(b);
            rows.map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
        };
        x.iter().map(row).collect()
    }

    fn norm(&self, name: &str, x: &mut [Vec<f64>]) {
        let (w, b) = (&self.tensors[&format!("{name}.weight")], &self.tensors[&format!("{name}.bias")]);
        for x in x {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            for ((x, w), b) in x.iter_mut().zip(w).zip(b) {
                *x = (*x - mean) / (variance + 1e-12).sqrt() * w + b;
            }
        }
    }

    fn embed(&self, tokens: &[u32]) -> Vec<f64> {
        let row = |name: &str, at: usize| {
            self.tensors[&format!("embeddings.{name}.weight")][at * self.dim..][..self.dim].to_vec()
        };
        let mut x: Vec<Vec<f64>> = tokens
            .iter()
            .enumerate()
            .map(|(position, &token)| {
                let (word, place, kind) = (
                    row("word_embeddings", token as usize),
                    row("position_embeddings", position),
                    row("token_type_embeddings", 0),
                );
                (0..self.dim).map(|i| word[i] + place[i] + kind[i]).collect()
            })
            .collect();
        self.norm("embeddings.LayerNorm", &mut x);
        let size = self.dim / self.heads;
        for layer in 0..self.layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let [q, k, v] = ["query", "key", "value"]
                .map(|part| self.linear(&name(&format!("attention.self.{part}")), &x));
            let mut mixed = vec![vec![0.0; self.dim]; x.len()];
            for head in 0..self.heads {
                let part = head * size..(head + 1) * size;
                for (q, out) in q.iter().zip(&mut mixed) {
                    let dot = |k: &Vec<f64>| {
                        q[part.clone()].iter().zip(&k[part.clone()]).map(|(q, k)| q * k).sum::<f64>()
                    };
                    let scores: Vec<f64> = k.iter().map(|k| (dot(k) / (size as f64).sqrt()).exp()).collect();
                    let total: f64 = scores.iter().sum();
                    for (score, v) in scores.iter().zip(&v) {
                        part.clone().for_each(|i| out[i] += score / total * v[i]);
                    }
                }
            }
            let sum = |x: &mut [Vec<f64>], y: Vec<Vec<f64>>| {
                x.iter_mut().zip(y).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
            };
            sum(&mut x, self.linear(&name("attention.output.dense"), &mixed));
            self.norm(&name("attention.output.LayerNorm"), &mut x);
            let mut up = self.linear(&name("intermediate.dense"), &x);
            up.iter_mut().flatten().for_each(|x| *x *= phi(*x));
            sum(&mut x, self.linear(&name("output.dense"), &up));
            self.norm(&name("output.LayerNorm"), &mut x);
        }
        let mean: Vec<f64> = (0..self.dim).map(|i| x.iter().map(|x| x[i]).sum()).collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        mean.into_iter().map(|x| x / length).collect()
    }
}

/// The normal distribution's `Φ(x)` by its power series.
fn phi(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return f64::from(x > 0.0);
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

fn floats(embedding: &[i32]) -> Vec<f64> {
    embedding.iter().map(|&x| f64::from(x) / f64::from(1 << 30)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn embeddings_are_those_of_floating_point() {
    let files = tiny_encoder(5);
    let (integers, float) = (encoder(&files), Float::new(&files));
    for text in ["a", "the abc", "A the, xyz hid! beef", &"the ".repeat(40)] {
        let request = Request::embedding(integers.artifact().id(), Prompt::Text(text.into()));
        let tokens = integers.tokens(&request).unwrap();
        assert_eq!((tokens[0], *tokens.last().unwrap()), (2, 3), "{text}");
        let (found, exact) = (floats(&integers.embed(&tokens)), float.embed(&tokens));
        assert!((dot(&found, &found) - 1.0).abs() < 1e-6);
        let cosine = dot(&found, &exact);
        assert!(cosine > 0.9995, "{text}: {cosine}");
        // The comparison notices another text of the same length.
        let mut other = tokens.clone();
        other[1] = 30;
        assert!(dot(&found, &float.embed(&other)) < cosine, "{text}");
    }
}

#[test]
fn every_kernel_gives_the_same_bits() {
    let artifact = import(&tiny_encoder(6));
    let tokens: Vec<u32> = (0..48).map(|i| (i * 7 + 4) % 40).collect();
    let expected = Encoder::new(artifact.clone(), Kernel::Scalar).unwrap().embed(&tokens);
    for kernel in Kernel::available() {
        assert_eq!(Encoder::new(artifact.clone(), kernel).unwrap().embed(&tokens), expected, "{kernel}");
    }
}

fn text(encoder: &Encoder, text: &str) -> Request {
    Request::embedding(encoder.artifact().id(), Prompt::Text(text.into()))
}

#[test]
fn answers_are_repeated_and_lies_are_found() {
    let encoder = encoder(&tiny_encoder(7));
    let request = text(&encoder, "the abc");
    let output = encoder.answer(&request).unwrap();
    assert_eq!(output.components().unwrap().len(), 64);
    assert_eq!(Output { text: "[1, 2]".into(), ..output.clone() }.components(), None);
    assert_eq!((output.prompt_tokens, output.completion_tokens), (6, 0));
    assert_eq!(encoder.judge(&request, &output), OutputVerdict::Agrees);
    let tokens = Prompt::Tokens(encoder.tokens(&request).unwrap());
    let same = encoder.answer(&Request::embedding(request.model, tokens)).unwrap();
    assert_eq!(same, output);
    assert_ne!(encoder.answer(&text(&encoder, "the abd")).unwrap().text, output.text);

    type Lie = fn(&mut Output);
    let lies: [(&str, Lie); 8] = [
        ("prompt_tokens", |o| o.prompt_tokens += 1),
        ("completion_tokens", |o| o.completion_tokens = 1),
        ("tokens", |o| o.tokens.push(5)),
        ("logprobs", |o| o.logprobs.push(TokenLogprob { token: 1, logprob_q16: -1, top: Vec::new() })),
        ("text", |o| o.text = o.text.replacen(',', ",1", 1)),
        ("text", |o| o.text.push(' ')),
        ("tool_calls", |o| o.tool_calls = Some("[]".into())),
        ("finish_reason", |o| o.finish_reason = FinishReason::Length),
    ];
    for (name, lie) in lies {
        let mut claimed = output.clone();
        lie(&mut claimed);
        let verdict = encoder.judge(&request, &claimed);
        assert!(
            matches!(verdict, OutputVerdict::Differs { field, .. } if field == name),
            "{name}: {verdict:?}"
        );
    }
}

#[test]
fn what_is_no_embedding_is_refused() {
    let encoder = encoder(&tiny_encoder(8));
    let good = text(&encoder, "the");
    assert!(encoder.tokens(&Request { now_unix_s: 5, ..good.clone() }).is_ok());
    let chat = Prompt::Chat {
        messages: vec![Message { role: "user".into(), content: "the".into(), ..Message::default() }],
        tools: None,
        tool_choice: "auto".into(),
        parallel_tool_calls: true,
    };
    for bad in [
        Request { prompt: chat, ..good.clone() },
        Request { max_tokens: 2, ..good.clone() },
        Request { stop: vec!["x".into()], ..good.clone() },
        Request { logprobs: Some(0), ..good.clone() },
        Request { constraint: assay_receipt::Constraint::Json, ..good.clone() },
    ] {
        let error = encoder.tokens(&bad).unwrap_err();
        assert!(matches!(error, EncoderError::NotAnEmbedding), "{error}");
        let verdict = encoder.judge(&bad, &encoder.answer(&good).unwrap());
        assert!(matches!(verdict, OutputVerdict::Differs { field: "request", .. }));
    }
    let tokens = |tokens: Vec<u32>| encoder.tokens(&Request::embedding(good.model, Prompt::Tokens(tokens)));
    assert!(matches!(tokens(vec![]), Err(EncoderError::Length { found: 0, max: 48 })));
    assert!(matches!(tokens(vec![4; 49]), Err(EncoderError::Length { found: 49, .. })));
    assert!(matches!(tokens(vec![40]), Err(EncoderError::UnknownToken { token: 40, vocabulary: 40 })));
    assert!(tokens(vec![39; 48]).is_ok());
}

#[test]
fn encoders_and_decoders_are_not_mixed_up() {
    let artifact = import(&tiny_encoder(9));
    assert_eq!(Engine::new(artifact, Config::default()).err(), Some(Error::Encoder));
    let gguf = import_gguf(&tiny_gguf(Architecture::Llama, 1), &mut |_, _| {}).unwrap();
    let decoder = Arc::new(Artifact::parse(Arc::new(gguf)).unwrap());
    assert!(matches!(Encoder::new(decoder, Kernel::Scalar), Err(EncoderError::Decoder)));
}

/// The folder of all-MiniLM-L6-v2: against binary64 on the same weights, and against the similarities that its publisher's
/// documentation prints.
#[test]
#[ignore = "needs the folder of all-MiniLM-L6-v2 named by ASSAY_TEST_MINILM; .ci/parts/26-embeddings runs it"]
fn minilm() {
    let folder = std::env::var_os("ASSAY_TEST_MINILM").unwrap();
    let names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "1_Pooling/config.json",
    ];
    let files: Files = names
        .iter()
        .map(|name| (name.to_string(), std::fs::read(Path::new(&folder).join(name)).unwrap()))
        .collect();
    let (integers, float) = (encoder(&files), Float::new(&files));
    let texts = [
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
        "Ünïcode: naïve café, 東京 and 😀; numbers 3.14159 and 1,000,000.",
        "fn main() { println!(\"{}\", 1 << 20); }",
    ];
    let mut found = Vec::new();
    for text in texts {
        let request = Request::embedding(integers.artifact().id(), Prompt::Text(text.into()));
        let tokens = integers.tokens(&request).unwrap();
        let (integer, exact) = (floats(&integers.embed(&tokens)), float.embed(&tokens));
        let cosine = dot(&integer, &exact);
        println!("{cosine:.6} {text}");
        assert!(cosine > 0.999, "{text}: {cosine}");
        found.push(integer);
    }
    for (i, published) in [(1, 0.695), (2, 0.943), (3, 0.257)] {
        let similarity = dot(&found[0], &found[i]);
        println!("{similarity:.4} {published}");
        assert!((similarity - published).abs() < 0.01, "{}: {similarity}", texts[i]);
    }
}
