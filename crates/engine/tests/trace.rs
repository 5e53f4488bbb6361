//! Execution traces: the engine's own tokens and logits, the layout of docs/disputes.md, and the same bytes as the second
//! implementation in JavaScript.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use assay_engine::trace::{ARRAYS, Entry, Found, Lie, Trace, TraceError, part, reads};
use assay_model::testing::tiny_writer;
use assay_model::{Architecture, Artifact, import_gguf, merkle};
use assay_receipt::Sampling;
use common::{engine, generation, greedy, model, run, sampled};
use proptest::prelude::*;

const DENSE: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

fn trace(model: &Arc<Artifact>, prompt: &[u32], output: &[u32], sampling: &Sampling) -> Trace {
    Trace::new(Arc::clone(model), prompt, output, sampling, &mut |_, _| {}).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn its_tokens_and_logits_are_the_engines(
        seed in 0u64..1000,
        which in 0usize..3,
        length in 1usize..40,
        count in 1u32..12,
        temperature in prop::sample::select(vec![0u32, 1, 700, 1000, 3000]),
        min_p in prop::sample::select(vec![0u32, 20_000, 1_000_000]),
        top_k in prop::sample::select(vec![0u32, 1, 2, 5, 40, 1000]),
        top_p in prop::sample::select(vec![1_000_000u32, 999_999, 900_000, 300_000, 1]),
        penalties in any::<bool>(),
        logit_bias in prop::collection::vec((0u32..300, prop_oneof![-100_000i32..100_000, -3_000..3_000]), 0..6),
    ) {
        let model = model(DENSE[which], seed);
        let mut sampling = Sampling {
            temperature_milli: temperature, min_p_ppm: min_p, top_k, top_p_ppm: top_p, seed, logit_bias, ..Sampling::default()
        };
        if penalties {
            sampling.repetition_penalty_milli = 1300;
            sampling.frequency_penalty_milli = -120;
            sampling.presence_penalty_milli = 250;
        }
        let generation = generation(length, seed as u32, sampling.clone(), count);
        let prompt = generation.prompt.clone();
        let answer = run(&mut engine(&model), generation).tokens;
        let trace = trace(&model, &prompt, &answer, &sampling);
        prop_assert_eq!(trace.tokens(), &answer[..]);
        let text: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
        let mut checked = 0;
        engine(&model).logits(&text[..text.len() - 1], &mut |position, logits| {
            let Some(a) = (position + 1).checked_sub(prompt.len()) else { return };
            for (b, logit) in logits.iter().enumerate() {
                let entry = Entry { array: 52, layer: 0, a, b, c: 0 };
                assert_eq!(trace.entry(entry).unwrap(), logit.to_le_bytes());
            }
            checked += 1;
        }).unwrap();
        prop_assert_eq!(checked, answer.len());
    }
}

#[test]
fn every_byte_is_an_entry_or_padding_and_every_tile_opens() {
    let sampling = Sampling { presence_penalty_milli: 100, top_k: 40, top_p_ppm: 900_000, ..sampled(4) };
    let model = model(Architecture::Qwen3, 1);
    let trace = trace(&model, &[5, 60, 5], &[7, 8, 9], &sampling);
    let bytes = trace.read(0, u64::MAX);
    assert_eq!(bytes.len() as u64, trace.size());
    let mut seen = [0u64; ARRAYS];
    let mut place = 0;
    while place < trace.size() {
        match trace.layout().find(place).unwrap() {
            Found::Entry(entry) => {
                let (first, width) = trace.layout().place(entry).unwrap();
                assert_eq!(first, place, "{entry:?}");
                assert_eq!(trace.layout().find(place + width - 1), Some(Found::Entry(entry)));
                seen[entry.array] += 1;
                if entry.array > 0 && place % 7 == 0 {
                    let value = |entry| trace.entry(entry);
                    let reads = reads(trace.layout(), model.manifest(), entry, &value).unwrap();
                    assert!(reads.trace.iter().all(|(place, length)| place + length <= trace.size()));
                    assert!(
                        reads
                            .model
                            .iter()
                            .all(|range| range.place + range.length <= model.manifest().data_bytes)
                    );
                    // Everything that is read comes before the entry itself.
                    assert!(reads.trace[1..].iter().all(|(at, length)| at + length <= place), "{entry:?}");
                }
                place += width;
            }
            Found::Padding { array, .. } => {
                assert_eq!(bytes[place as usize], 0, "after array {array}");
                place += 1;
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    assert_eq!(trace.layout().find(place), None);
    assert_eq!(part(1), assay_engine::trace::Part::Begin);
    let tiles = merkle::tiles(trace.size());
    for index in 0..tiles {
        let tile = trace.tile(index);
        assert_eq!(tile, bytes[index as usize * merkle::TILE..].chunks(merkle::TILE).next().unwrap());
        let proof = trace.tree().proof(index).unwrap();
        assert!(merkle::verify_tile(&trace.root(), trace.size(), index, &tile, &proof));
    }
    assert!(trace.tile(tiles).is_empty());
    for (a, b, c) in [(6, 0, 0), (0, 64, 0), (0, 0, 1)] {
        assert_eq!(trace.entry(Entry { array: 6, layer: 0, a, b, c }), None);
    }
    assert_eq!(trace.entry(Entry { array: 6, layer: 2, a: 0, b: 0, c: 0 }), None);
    assert_eq!(
        trace.entry(Entry { array: 21, layer: 0, a: 0, b: 1, c: 2 }),
        None,
        "tokens see no later ones"
    );
}

#[test]
fn a_lie_is_where_the_first_byte_differs() {
    let model = model(Architecture::Qwen2, 3);
    let sampling = Sampling { presence_penalty_milli: 100, top_k: 40, top_p_ppm: 900_000, ..sampled(4) };
    let honest = trace(&model, &[9, 33, 2], &[1, 2], &sampling);
    let bytes = honest.read(0, u64::MAX);
    for array in (0..ARRAYS).filter(|array| ![11, 12].contains(array)) {
        let layer = usize::from(part(array) == assay_engine::trace::Part::Layer);
        let entry = Entry { array, layer, a: 1, b: 0, c: 0 };
        let lie =
            Trace::lying(Arc::clone(&model), &[9, 33, 2], &[1, 2], &sampling, Lie { entry, bit: 0 }).unwrap();
        let other = lie.read(0, u64::MAX);
        let first = bytes.iter().zip(&other).position(|(x, y)| x != y).unwrap();
        assert_eq!(honest.layout().find(first as u64), Some(Found::Entry(entry)));
        assert_ne!(lie.root(), honest.root());
    }
}

#[test]
fn what_has_no_trace_is_refused() {
    for architecture in
        [Architecture::Gemma3, Architecture::Mixtral, Architecture::Phi3, Architecture::Smollm3]
    {
        let refused = Trace::new(model(architecture, 1), &[1], &[2], &greedy(), &mut |_, _| {});
        assert_eq!(refused.unwrap_err(), TraceError::Model, "{architecture:?}");
    }
    let model = model(Architecture::Llama, 1);
    for (prompt, output) in [(0, 1), (1, 0), (512, 2)] {
        let refused =
            Trace::new(Arc::clone(&model), &vec![1; prompt], &vec![1; output], &greedy(), &mut |_, _| {});
        assert!(matches!(refused, Err(TraceError::Tokens { .. })), "{prompt} {output}");
    }
    // A token that is not in the vocabulary can be claimed, and is embedded as zeros.
    let strange = trace(&model, &[1], &[u32::MAX, 1], &greedy());
    assert_eq!(strange.entry(Entry { array: 1, layer: 0, a: 1, b: 3, c: 0 }).unwrap(), [0; 4]);
}

/// Answers of two tiny models with the roots of their traces, which contracts/test/trace.test.mjs computes again from the same files.
/// `ASSAY_WRITE_VECTORS=1` writes them anew.
#[test]
fn the_second_implementation_has_the_same_roots() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors");
    let path = folder.join("trace.json");
    let drawn = Sampling {
        min_p_ppm: 20_000,
        repetition_penalty_milli: 1300,
        frequency_penalty_milli: -120,
        presence_penalty_milli: 250,
        temperature_milli: 800,
        ..sampled(7)
    };
    let mut cases = Vec::new();
    let logit_bias = vec![(7, 2_500), (300, 9_000), (7, -100), (40, i32::MIN)];
    let ranked = Sampling { top_k: 40, top_p_ppm: 700_000, logit_bias, ..drawn.clone() };
    for (architecture, name, sampling) in [
        (Architecture::Llama, "llama", greedy()),
        (Architecture::Qwen3, "qwen3", drawn),
        (Architecture::Llama, "llama", ranked),
    ] {
        let file = folder.join(format!("trace-{name}.assay"));
        if std::env::var_os("ASSAY_WRITE_VECTORS").is_some() {
            let mut writer = tiny_writer(architecture, 5);
            let key = format!("{name}.context_length");
            writer.remove_key(&key).u32(&key, 16);
            std::fs::write(&file, import_gguf(&writer.finish(), &mut |_, _| {}).unwrap()).unwrap();
        }
        let model = Arc::new(Artifact::parse(Arc::new(std::fs::read(&file).unwrap())).unwrap());
        let asked = assay_engine::Generation { end_tokens: vec![], ..generation(4, 2, sampling.clone(), 3) };
        let prompt = asked.prompt.clone();
        let output = run(&mut engine(&model), asked).tokens;
        let trace = trace(&model, &prompt, &output, &sampling);
        cases.push(serde_json::json!({
            "model": format!("trace-{name}.assay"), "prompt": prompt, "output": output, "size": trace.size(), "root": trace.root(),
            "sampling": {
                "temperatureMilli": sampling.temperature_milli, "topK": sampling.top_k, "topPPpm": sampling.top_p_ppm,
                "minPPpm": sampling.min_p_ppm, "repetitionPenaltyMilli": sampling.repetition_penalty_milli,
                "frequencyPenaltyMilli": sampling.frequency_penalty_milli,
                "presencePenaltyMilli": sampling.presence_penalty_milli, "seed": sampling.seed, "biases": sampling.logit_bias,
            },
        }));
    }
    let made = serde_json::to_string_pretty(&cases).unwrap() + "\n";
    if std::env::var_os("ASSAY_WRITE_VECTORS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), made);
}
