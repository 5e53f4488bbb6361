//! Replay accepts what the engine itself made, and nothing else.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use assay_engine::{Config, Engine, Event, Finish, Replay, Service};
use assay_model::testing::tiny_gguf;
use assay_model::{Architecture, Artifact, import_gguf, weaken};
use assay_receipt::Sampling;
use common::{ARCHITECTURES, config, engine, generation, greedy, model, run, sampled, samplings};

#[test]
fn agrees_with_every_answer_of_its_own() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 6);
        for (i, sampling) in samplings().into_iter().enumerate() {
            let generation = generation(3 + 9 * i, i as u32, sampling, 50);
            let answer = run(&mut engine(&model), generation.clone());
            for (threads, prefill_chunk) in [(1, 256), (2, 13), (2, 256)] {
                let config = Config { prefill_chunk, ..config(threads) };
                let mut other = Engine::new(Arc::clone(&model), config).unwrap();
                let replay = other.replay(&generation, &answer.tokens).unwrap();
                let (finish, logprobs) = (answer.finish, answer.logprobs.clone());
                assert_eq!(replay, Replay::Agrees { finish, logprobs }, "{architecture:?} {i}");
                assert!(other.is_idle() && other.free_tokens() == other.kv_tokens());
            }
            // A part of the answer is right as far as it goes; that it does not end there is for the caller to see.
            let part = &answer.tokens[..answer.tokens.len() / 2];
            let replay = engine(&model).replay(&generation, part).unwrap();
            assert!(matches!(replay, Replay::Agrees { finish: None, .. }));
        }
    }
}

#[test]
fn finds_a_swapped_token_at_every_position() {
    let model = model(Architecture::Llama, 7);
    for sampling in [greedy(), sampled(3)] {
        let generation = generation(20, 1, sampling, 40);
        let answer = run(&mut engine(&model), generation.clone());
        let mut checker = engine(&model);
        for position in 0..answer.tokens.len() {
            let mut claimed = answer.tokens.clone();
            claimed[position] = (claimed[position] + 1) % 267;
            let expected = Replay::Differs {
                position: position as u32,
                expected: Some(answer.tokens[position]),
                claimed: claimed[position],
            };
            assert_eq!(checker.replay(&generation, &claimed).unwrap(), expected);

            let mut resumed = generation.clone();
            resumed.resume = claimed.clone();
            let id = checker.submit(resumed, Service::default()).unwrap();
            let answer = common::collect(&mut checker, &[id]).remove(0);
            assert_eq!(answer.tokens, claimed[..position]);
            let mismatch = Event::ResumeMismatch {
                id,
                position: position as u32,
                expected: Some((claimed[position] + 266) % 267),
                claimed: claimed[position],
            };
            assert_eq!(answer.other, Some(mismatch));
        }
    }
}

#[test]
fn finds_tokens_after_the_end() {
    let model = model(Architecture::Qwen2, 8);
    let long = generation(9, 1, greedy(), 12);
    let answer = run(&mut engine(&model), long.clone());
    assert_eq!(answer.finish, Some(Finish::Length));
    let mut claimed = answer.tokens.clone();
    claimed.push(5);
    let differs = Replay::Differs { position: 12, expected: None, claimed: 5 };
    assert_eq!(engine(&model).replay(&long, &claimed).unwrap(), differs);

    // The same answer, ended by its fourth token.
    let mut short = long;
    short.end_tokens = vec![answer.tokens[3]];
    let end = 1 + answer.tokens.iter().position(|t| *t == answer.tokens[3]).unwrap();
    let ended = run(&mut engine(&model), short.clone());
    assert_eq!((ended.tokens.len(), ended.finish), (end, Some(Finish::End)));
    let differs = Replay::Differs { position: end as u32, expected: None, claimed: answer.tokens[end] };
    assert_eq!(engine(&model).replay(&short, &answer.tokens).unwrap(), differs);
}

#[test]
fn finds_other_sampling_prompts_and_weights() {
    let gguf = tiny_gguf(Architecture::Qwen3, 9);
    let bytes = import_gguf(&gguf, &mut |_, _| {}).unwrap();
    let model = Arc::new(Artifact::parse(Arc::new(bytes.clone())).unwrap());
    let honest = generation(30, 4, sampled(11), 60);
    let answer = run(&mut engine(&model), honest.clone());
    let differs = |model: &Arc<Artifact>, sampling: Sampling, prompt: Vec<u32>| {
        let mut claimed = honest.clone();
        (claimed.sampling, claimed.prompt) = (sampling, prompt);
        matches!(engine(model).replay(&claimed, &answer.tokens).unwrap(), Replay::Differs { .. })
    };
    let with = |change: fn(&mut Sampling)| {
        let mut sampling = honest.sampling.clone();
        change(&mut sampling);
        differs(&model, sampling, honest.prompt.clone())
    };
    assert!(!with(|_| ()), "nothing changed");
    assert!(with(|s| s.seed += 1));
    assert!(with(|s| s.temperature_milli = 1100));
    assert!(with(|s| s.temperature_milli = 0));
    assert!(with(|s| s.top_k = 3));
    assert!(with(|s| s.top_p_ppm = 300_000));
    assert!(with(|s| s.min_p_ppm = 500_000));
    assert!(with(|s| s.repetition_penalty_milli = 3000));
    assert!(with(|s| s.frequency_penalty_milli = 3000));
    assert!(with(|s| s.presence_penalty_milli = 3000));
    assert!(with(|s| s.logit_bias = vec![(8, 9_000)]));
    for changed in [0, 15, 29] {
        let mut prompt = honest.prompt.clone();
        prompt[changed] = (prompt[changed] + 1) % 267;
        assert!(differs(&model, honest.sampling.clone(), prompt), "prompt token {changed}");
    }

    let weakened = Arc::new(Artifact::parse(Arc::new(weaken(&bytes).unwrap())).unwrap());
    assert!(differs(&weakened, honest.sampling.clone(), honest.prompt.clone()));
    // The integers of one weight in the feed-forward part and of one beside it.
    let section = model.manifest().sections.iter().find(|s| s.name == "layers.1.down.weights").unwrap();
    let data = bytes.len() - model.manifest().data_bytes as usize;
    let at = data + section.offset as usize + 64;
    let mut other = bytes.clone();
    other[at] ^= 0x80;
    let other = Arc::new(Artifact::parse(Arc::new(other)).unwrap());
    assert!(other.verify(&mut |_, _| {}).is_err(), "the id no longer fits");
    assert!(differs(&other, honest.sampling.clone(), honest.prompt.clone()));
}

#[test]
fn replays_beside_running_sequences() {
    let model = model(Architecture::Llama, 10);
    let (a, b) = (generation(25, 1, sampled(1), 30), generation(35, 2, greedy(), 30));
    let (answer_a, answer_b) = (run(&mut engine(&model), a.clone()), run(&mut engine(&model), b.clone()));
    let mut engine = engine(&model);
    let id = engine.submit(a, Service::default()).unwrap();
    assert!(matches!(engine.replay(&b, &answer_b.tokens).unwrap(), Replay::Agrees { .. }));
    assert_eq!(common::collect(&mut engine, &[id]), [answer_a]);
    // An empty claim is answered by the next step.
    let id = engine.submit_replay(&b, &[], Service::default()).unwrap();
    let agrees = Replay::Agrees { finish: None, logprobs: Vec::new() };
    assert_eq!(engine.step().unwrap(), [Event::Replayed { id, replay: agrees }]);
}
