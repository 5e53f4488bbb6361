//! Tiny models and generations for the tests of the engine.
#![allow(dead_code, unreachable_pub, unused_imports, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use assay_arithmetic::Kernel;
use assay_engine::{Config, Engine, Event, Finish, Generation, SequenceId, Service};
use assay_model::testing::tiny_gguf;
use assay_model::{Architecture, Artifact, import_gguf};
use assay_receipt::{Sampling, TokenLogprob};

pub use assay_model::testing::ARCHITECTURES;

pub fn model(architecture: Architecture, seed: u64) -> Arc<Artifact> {
    let bytes = import_gguf(&tiny_gguf(architecture, seed), &mut |_, _| {}).unwrap();
    Arc::new(Artifact::parse(Arc::new(bytes)).unwrap())
}

pub fn config(threads: usize) -> Config {
    Config {
        threads,
        kv_bytes: 4 << 20,
        page_tokens: 8,
        max_batch: 16,
        max_waiting: 64,
        prefill_chunk: 64,
        max_guess: 4,
        kernel: Kernel::best(),
    }
}

pub fn engine(model: &Arc<Artifact>) -> Engine {
    Engine::new(Arc::clone(model), config(2)).unwrap()
}

pub fn greedy() -> Sampling {
    Sampling { temperature_milli: 0, ..Sampling::default() }
}

pub fn sampled(seed: u64) -> Sampling {
    Sampling { temperature_milli: 900, seed, ..greedy() }
}

/// One of each way to choose, and all at once.
pub fn samplings() -> Vec<Sampling> {
    vec![
        greedy(),
        sampled(1),
        Sampling { temperature_milli: 1500, top_k: 20, ..sampled(2) },
        Sampling { top_p_ppm: 800_000, ..sampled(3) },
        Sampling { min_p_ppm: 50_000, ..sampled(4) },
        Sampling { repetition_penalty_milli: 1300, ..greedy() },
        Sampling { frequency_penalty_milli: 700, presence_penalty_milli: 300, ..greedy() },
        Sampling { logit_bias: vec![(17, 3_000), (99, -2_000), (200, 5_000)], ..sampled(5) },
        Sampling {
            temperature_milli: 1200,
            top_k: 100,
            top_p_ppm: 950_000,
            min_p_ppm: 1_000,
            repetition_penalty_milli: 1100,
            frequency_penalty_milli: 200,
            presence_penalty_milli: -100,
            logit_bias: vec![(3, -100_000), (42, 1_500)],
            seed: u64::MAX,
        },
    ]
}

/// A prompt of `length` tokens that differs by `seed`.
pub fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503) ^ (i >> 3)) % 267)
        .collect()
}

pub fn generation(length: usize, seed: u32, sampling: Sampling, max_tokens: u32) -> Generation {
    Generation {
        prompt: prompt(length, seed),
        resume: Vec::new(),
        sampling,
        max_tokens,
        end_tokens: vec![2],
        constraint: None,
        logprobs: Some(3),
    }
}

/// What one sequence brought.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenLogprob>,
    pub finish: Option<Finish>,
    pub other: Option<Event>,
}

/// Runs until the engine is idle and collects the answers of the given sequences.
pub fn collect(engine: &mut Engine, ids: &[SequenceId]) -> Vec<Answer> {
    let mut answers = vec![Answer::default(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let answer = &mut answers[ids.iter().position(|&id| id == event.id()).unwrap()];
            match event {
                Event::Token { token, index, logprob, .. } => {
                    assert_eq!(index as usize, answer.tokens.len());
                    answer.tokens.push(token);
                    answer.logprobs.extend(logprob);
                }
                Event::Finished { finish, .. } => answer.finish = Some(finish),
                other => answer.other = Some(other),
            }
        }
    }
    assert_eq!(engine.free_tokens(), engine.kv_tokens(), "all memory is free again");
    answers
}

pub fn run(engine: &mut Engine, generation: Generation) -> Answer {
    let id = engine.submit(generation, Service::default()).unwrap();
    collect(engine, &[id]).remove(0)
}
