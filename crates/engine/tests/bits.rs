//! The bits do not depend on threads, batch, chunks of the prompt, kernel or restart.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use assay_arithmetic::Kernel;
use assay_engine::{Config, Engine, Service};
use assay_model::{Architecture, Artifact};
use common::{ARCHITECTURES, Answer, collect, config, engine, generation, model, prompt, run, samplings};

/// keccak256 of all logits of some texts.
fn hash(model: &Arc<Artifact>, config: Config) -> String {
    use sha3::{Digest, Keccak256};
    let mut engine = Engine::new(Arc::clone(model), config).unwrap();
    let mut hasher = Keccak256::new();
    for length in [1, 2, 15, 33, 150] {
        let mut next = 0;
        engine
            .logits(&prompt(length, 7), &mut |position, logits| {
                assert_eq!(position, next);
                next += 1;
                assert_eq!(logits.len(), 267);
                logits.iter().for_each(|l| hasher.update(l.to_le_bytes()));
            })
            .unwrap();
        assert_eq!(next, length);
    }
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether every setting is tried: the architectures differ in the steps of a layer, not in how these are shared out.
fn thorough(architecture: Architecture) -> bool {
    matches!(architecture, Architecture::Llama | Architecture::Qwen3Moe)
}

#[test]
fn logits_have_one_hash() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 1);
        let expected = hash(&model, config(1));
        for kernel in Kernel::available() {
            let (threads, chunks) = if thorough(architecture) {
                (&[1, 2, 3, 4][..], &[1, 7, 31, 32, 256][..])
            } else {
                (&[1, 3][..], &[1, 7, 256][..])
            };
            for &threads in threads {
                for &prefill_chunk in chunks {
                    let found = hash(&model, Config { threads, kernel, prefill_chunk, ..config(1) });
                    assert_eq!(found, expected, "{architecture:?} {kernel} {threads} {prefill_chunk}");
                }
            }
        }
    }
}

#[test]
fn models_differ() {
    let hashes = ARCHITECTURES.map(|a| hash(&model(a, 1), config(1)));
    let distinct: std::collections::HashSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());
    assert_ne!(hash(&model(ARCHITECTURES[0], 2), config(1)), hashes[0]);
}

/// Tokens and logprobs of sampled answers are the same over batches of 1 to 8, threads, chunks of the prompt, kernels,
/// and a restart with the artifact read again.
#[test]
fn answers_depend_on_nothing_but_the_request() {
    for architecture in ARCHITECTURES {
        let original = model(architecture, 3);
        let generations: Vec<_> = samplings()
            .into_iter()
            .enumerate()
            .map(|(i, sampling)| generation(5 + 23 * i, i as u32, sampling, 20 + 3 * i as u32))
            .collect();
        // Each alone, in an engine of its own: a restart in between.
        let alone: Vec<Answer> = generations.iter().map(|g| run(&mut engine(&original), g.clone())).collect();
        assert!(alone.iter().all(|a| !a.tokens.is_empty() && a.other.is_none()));
        drop(original);
        let again = model(architecture, 3);
        for batch in (1..=8).filter(|batch| thorough(architecture) || [1, 5].contains(batch)) {
            let prefill_chunk = [5, 7, 16, 64][batch % 4];
            let settings = Kernel::available().into_iter().flat_map(|kernel| [(kernel, 1), (kernel, 2)]);
            for (kernel, threads) in settings {
                let config = Config { kernel, prefill_chunk, ..config(threads) };
                let mut engine = Engine::new(Arc::clone(&again), config).unwrap();
                for (generations, alone) in generations.chunks(batch).zip(alone.chunks(batch)) {
                    // The later ones come while the first are decoding.
                    let (first, later) = generations.split_at(generations.len().div_ceil(2));
                    let mut ids: Vec<_> =
                        first.iter().map(|g| engine.submit(g.clone(), Service::default()).unwrap()).collect();
                    let early = engine.step().unwrap();
                    ids.extend(later.iter().map(|g| engine.submit(g.clone(), Service::default()).unwrap()));
                    let mut answers = vec![Answer::default(); ids.len()];
                    for event in early {
                        if let assay_engine::Event::Token { id, token, logprob, .. } = event {
                            let answer = &mut answers[ids.iter().position(|&i| i == id).unwrap()];
                            answer.tokens.push(token);
                            answer.logprobs.extend(logprob);
                        }
                    }
                    while !engine.is_idle() {
                        for event in engine.step().unwrap() {
                            let answer = &mut answers[ids.iter().position(|&i| i == event.id()).unwrap()];
                            match event {
                                assay_engine::Event::Token { token, logprob, .. } => {
                                    answer.tokens.push(token);
                                    answer.logprobs.extend(logprob);
                                }
                                assay_engine::Event::Finished { finish, .. } => answer.finish = Some(finish),
                                other => answer.other = Some(other),
                            }
                        }
                    }
                    assert_eq!(answers, alone, "{architecture:?} batch {batch} {config:?}");
                }
            }
        }
    }
}

#[test]
fn resumed_answers_are_the_uninterrupted_ones() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 4);
        for (i, sampling) in samplings().into_iter().enumerate() {
            let fresh = generation(11 + i, i as u32, sampling, 24);
            let whole = run(&mut engine(&model), fresh.clone());
            for cut in 0..=whole.tokens.len() {
                let mut resumed = fresh.clone();
                resumed.resume = whole.tokens[..cut].to_vec();
                assert_eq!(run(&mut engine(&model), resumed), whole, "{architecture:?} {i} cut at {cut}");
            }
        }
    }
}

#[test]
fn cancelling_one_leaves_the_others_as_they_are() {
    let model = model(ARCHITECTURES[0], 5);
    let keep = generation(40, 1, common::sampled(9), 30);
    let expected = run(&mut engine(&model), keep.clone());
    // The first step ends in the middle of both prompts.
    let mut engine = Engine::new(model, Config { prefill_chunk: 16, ..config(1) }).unwrap();
    let first = engine.submit(generation(70, 2, common::greedy(), 50), Service::default()).unwrap();
    let kept = engine.submit(keep, Service::default()).unwrap();
    let _ = engine.step().unwrap();
    let free = engine.free_tokens();
    engine.cancel(first);
    engine.cancel(first);
    assert!(engine.free_tokens() > free);
    assert_eq!(collect(&mut engine, &[kept, first]).remove(0), expected);
}
