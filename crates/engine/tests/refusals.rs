//! What the engine refuses, and that it says why.
#![allow(clippy::unwrap_used)]

mod common;

use assay_engine::{Config, Engine, Error};
use assay_model::Architecture;
use common::{config, engine, generation, greedy, model};

#[test]
fn settings_out_of_range() {
    let model = model(Architecture::Llama, 1);
    for bad in [
        Config { threads: 0, ..config(1) },
        Config { threads: 1025, ..config(1) },
        Config { kv_tokens: 0, ..config(1) },
        Config { max_batch: 0, ..config(1) },
        Config { prefill_chunk: 0, ..config(1) },
    ] {
        assert!(matches!(Engine::new(model.clone(), bad), Err(Error::Setting { .. })), "{bad:?}");
    }
}

#[test]
fn generations_that_cannot_run() {
    let mut engine = engine(&model(Architecture::Llama, 1));
    let good = generation(10, 1, greedy(), 10);
    let mut bad = good.clone();
    bad.prompt.clear();
    assert_eq!(engine.submit(bad.clone()), Err(Error::EmptyPrompt));
    assert_eq!(engine.replay(&bad, &[1]), Err(Error::EmptyPrompt));
    bad = good.clone();
    bad.max_tokens = 0;
    assert_eq!(engine.submit(bad.clone()), Err(Error::NothingToGenerate));
    assert_eq!(engine.submit_replay(&bad, &[1]), Err(Error::NothingToGenerate));
    bad = good.clone();
    bad.resume = vec![1; 11];
    assert_eq!(engine.submit(bad), Err(Error::ResumeTooLong { resumed: 11, max_tokens: 10 }));
    bad = good.clone();
    bad.prompt[4] = 267;
    assert_eq!(engine.submit(bad), Err(Error::UnknownToken { token: 267, vocabulary: 267 }));
    assert_eq!(
        engine.replay(&good, &[1, u32::MAX]),
        Err(Error::UnknownToken { token: u32::MAX, vocabulary: 267 })
    );
    bad = good.clone();
    bad.max_tokens = 503;
    assert_eq!(engine.submit(bad.clone()), Err(Error::ContextExceeded { needed: 513, context: 512 }));
    bad.max_tokens = u32::MAX;
    assert!(matches!(engine.submit(bad), Err(Error::ContextExceeded { .. })));
    assert!(engine.is_idle());
    assert_eq!(engine.free_tokens(), engine.config().kv_tokens);
}

#[test]
fn cache_and_batch_have_a_budget() {
    let model = model(Architecture::Qwen2, 1);
    let mut engine = Engine::new(model, Config { kv_tokens: 100, max_batch: 3, ..config(2) }).unwrap();
    let generation = |tokens| generation(10, 1, greedy(), tokens);
    assert_eq!(engine.submit(generation(91)), Err(Error::CacheTooSmall { needed: 101, total: 100 }));
    let first = engine.submit(generation(50)).unwrap();
    assert_eq!(engine.submit(generation(31)), Err(Error::CacheFull { needed: 41, available: 40 }));
    let second = engine.submit(generation(20)).unwrap();
    let third = engine.submit_replay(&generation(50), &[4]);
    assert_eq!(third, Err(Error::CacheFull { needed: 11, available: 10 }));
    engine.cancel(first);
    let third = engine.submit(generation(5)).unwrap();
    let fourth = engine.submit(generation(5)).unwrap();
    assert_eq!(engine.submit(generation(1)), Err(Error::BatchFull { running: 3 }));
    assert!(matches!(engine.logits(&[1], &mut |_, _| {}), Err(Error::BatchFull { running: 3 })));
    let answers = common::collect(&mut engine, &[second, third, fourth]);
    assert!(answers.iter().all(|a| a.finish.is_some()));
    assert_eq!(engine.free_tokens(), 100);
}
