//! Every architecture against another implementation: the logits of llama.cpp, in float32, for the tiny models.
//! `make_families.py` says how the numbers were made.
#![allow(clippy::unwrap_used, clippy::float_arithmetic)]

mod common;

use std::sync::Arc;

use assay_engine::Engine;
use assay_model::testing::{tiny_gguf, tiny_safetensors, tiny_writer};
use assay_model::{Architecture, Artifact, import_gguf, import_safetensors};
use common::{ARCHITECTURES, config, model, prompt};
use serde_json::Value;

/// The seed of the models.
const SEED: u64 = 11;

/// The logits after each of `lengths` tokens of the prompt.
fn logits(model: &Arc<Artifact>, lengths: &[usize]) -> Vec<Vec<f64>> {
    let longest = *lengths.iter().max().unwrap();
    let mut found = vec![Vec::new(); lengths.len()];
    let mut engine = Engine::new(Arc::clone(model), config(1)).unwrap();
    engine
        .logits(&prompt(longest, 7), &mut |position, logits| {
            if let Some(at) = lengths.iter().position(|&length| length == position + 1) {
                found[at] = logits.iter().map(|&l| f64::from(l) / 65536.0).collect();
            }
        })
        .unwrap();
    found
}

/// The root of the mean square of the differences, as a share of that of the expected numbers around their mean.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mean = expected.iter().sum::<f64>() / expected.len() as f64;
    let spread: f64 = expected.iter().map(|e| (e - mean).powi(2)).sum();
    let error: f64 = found.iter().zip(expected).map(|(f, e)| (f - e).powi(2)).sum();
    (error / spread).sqrt()
}

fn reference(name: &str) -> Vec<(usize, Vec<f64>)> {
    let all: Value = serde_json::from_str(include_str!("data/families.json")).unwrap();
    let cases = all[name].as_object().unwrap();
    let numbers = |list: &Value| list.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
    cases.iter().map(|(length, list)| (length.parse().unwrap(), numbers(list))).collect()
}

fn compare(architecture: Architecture, model: &Arc<Artifact>) -> Vec<f64> {
    let reference = reference(&format!("{architecture:?}"));
    let lengths: Vec<usize> = reference.iter().map(|(length, _)| *length).collect();
    let found = logits(model, &lengths);
    found.iter().zip(&reference).map(|(found, (_, expected))| difference(found, expected)).collect()
}

#[test]
fn logits_are_those_of_llama_cpp() {
    for architecture in ARCHITECTURES {
        // The same weights, also under the names of the transformers library.
        let files = tiny_safetensors(architecture, SEED);
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
        let folder = import_safetensors(&files, &mut |_, _| {}).unwrap();
        let folder = Arc::new(Artifact::parse(Arc::new(folder)).unwrap());
        for model in [model(architecture, SEED), folder] {
            let found = compare(architecture, &model);
            let format = model.manifest().source.format;
            assert!(
                found.iter().all(|difference| *difference < 0.015),
                "{architecture:?} {format:?}: {found:?}"
            );
        }
    }
}

/// The comparison notices each part of an architecture: a file that says otherwise is far off.
#[test]
fn another_model_is_far_off() {
    let changes: [(Architecture, &str, u32, f32); 6] = [
        (Architecture::Gemma3, "gemma3.attention.sliding_window", 12, 0.0),
        (Architecture::Gemma3, "gemma3.rope.freq_base_swa", 0, 50_000.0),
        (Architecture::Gemma2, "gemma2.attn_logit_softcapping", 0, 50.0),
        (Architecture::Gemma2, "gemma2.final_logit_softcapping", 0, 30.0),
        (Architecture::Mixtral, "llama.expert_used_count", 1, 0.0),
        (Architecture::Qwen3Moe, "qwen3moe.expert_used_count", 3, 0.0),
    ];
    for (architecture, key, integer, float) in changes {
        let mut writer = tiny_writer(architecture, SEED);
        writer.remove_key(key);
        if integer > 0 {
            writer.u32(key, integer)
        } else {
            writer.f32(key, float)
        };
        let other = import_gguf(&writer.finish(), &mut |_, _| {}).unwrap();
        let found = compare(architecture, &Arc::new(Artifact::parse(Arc::new(other)).unwrap()));
        let right = compare(architecture, &model(architecture, SEED));
        let far = found.iter().zip(&right).any(|(found, right)| found > &(2.0 * right));
        assert!(far, "{key}: {found:?} {right:?}");
    }
}

/// Tokens of a long prompt.
const LONG: usize = 8_200;

/// A model for long prompts: Llama with stretched positions, Gemma 3 with its windows.
fn long(architecture: Architecture) -> Vec<u8> {
    let mut writer = tiny_writer(architecture, SEED);
    let name = format!("{architecture:?}").to_lowercase();
    let context = format!("{name}.context_length");
    writer.remove_key(&context).u32(&context, 16_384);
    if architecture == Architecture::Llama {
        writer.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    }
    writer.finish()
}

/// At 8,200 tokens the logits are llama.cpp's, and the same bits whether the prompt came token by token or in large chunks.
#[test]
fn long_prompts_are_right_and_exact() {
    for architecture in [Architecture::Llama, Architecture::Gemma3] {
        let bytes = import_gguf(&long(architecture), &mut |_, _| {}).unwrap();
        let model = Arc::new(Artifact::parse(Arc::new(bytes)).unwrap());
        let last = |threads: usize, prefill_chunk: usize| {
            let config = assay_engine::Config { prefill_chunk, ..config(threads) };
            let mut engine = Engine::new(Arc::clone(&model), config).unwrap();
            let mut last = Vec::new();
            engine.logits(&prompt(LONG, 7), &mut |_, logits| last = logits.to_vec()).unwrap();
            last
        };
        let found = last(2, 512);
        assert_eq!(found, last(1, 1), "{architecture:?}: chunks of 1 and 512 tokens");
        let found: Vec<f64> = found.iter().map(|&l| f64::from(l) / 65536.0).collect();
        let (length, expected) = reference(&format!("{architecture:?}Long")).remove(0);
        assert_eq!(length, LONG);
        let difference = difference(&found, &expected);
        println!("{architecture:?} {difference}");
        assert!(difference < 0.015, "{architecture:?}: {difference}");
    }
}

/// The residual stream of the real Gemma 3 reaches 100,000. Where the outputs' norms are so large that the embedding does
/// not matter, twice as large ones change nothing: the last norm takes the factor out again.
#[test]
fn a_large_residual_stream_is_not_cut_off() {
    for architecture in [Architecture::Gemma2, Architecture::Gemma3] {
        let with = |factor: f32| {
            let mut writer = tiny_writer(architecture, SEED);
            for name in [
                "blk.0.post_attention_norm",
                "blk.0.post_ffw_norm",
                "blk.1.post_attention_norm",
                "blk.1.post_ffw_norm",
            ] {
                let weights = (0..64).flat_map(|i| (factor * (1.0 + (i % 7) as f32)).to_le_bytes()).collect();
                let name = format!("{name}.weight");
                writer.remove_tensor(&name).tensor(&name, &[64], 0, weights);
            }
            let model = import_gguf(&writer.finish(), &mut |_, _| {}).unwrap();
            logits(&Arc::new(Artifact::parse(Arc::new(model)).unwrap()), &[20]).remove(0)
        };
        let (found, expected) = (with(4_500.0), with(2_250.0));
        assert!(difference(&found, &expected) < 0.015, "{architecture:?}");
    }
}

#[test]
#[ignore = "writes models and prompt for make_families.py to the folder ASSAY_FAMILIES; .ci/parts/27-families runs it"]
fn write_models() {
    let folder = std::path::PathBuf::from(std::env::var_os("ASSAY_FAMILIES").unwrap());
    for architecture in ARCHITECTURES {
        std::fs::write(folder.join(format!("{architecture:?}.gguf")), tiny_gguf(architecture, SEED)).unwrap();
    }
    for architecture in [Architecture::Llama, Architecture::Gemma3] {
        std::fs::write(folder.join(format!("{architecture:?}Long.gguf")), long(architecture)).unwrap();
    }
    let prompt = serde_json::to_vec(&prompt(LONG, 7)).unwrap();
    std::fs::write(folder.join("prompt.json"), prompt).unwrap();
}
