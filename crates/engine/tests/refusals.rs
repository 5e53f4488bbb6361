//! What the engine refuses, and that it says why.
#![allow(clippy::unwrap_used)]

mod common;

use assay_engine::{Config, Engine, Error, Service};
use assay_model::Architecture;
use common::{config, engine, generation, greedy, model};

#[test]
fn settings_out_of_range() {
    let model = model(Architecture::Llama, 1);
    for bad in [
        Config { threads: 0, ..config(1) },
        Config { threads: 1025, ..config(1) },
        Config { kv_bytes: 0, ..config(1) },
        Config { page_tokens: 0, ..config(1) },
        Config { max_guess: 65, ..config(1) },
        Config { max_waiting: usize::MAX, ..config(1) },
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
    assert_eq!(engine.submit(bad.clone(), Service::default()), Err(Error::EmptyPrompt));
    assert_eq!(engine.replay(&bad, &[1]), Err(Error::EmptyPrompt));
    bad = good.clone();
    bad.max_tokens = 0;
    assert_eq!(engine.submit(bad.clone(), Service::default()), Err(Error::NothingToGenerate));
    assert_eq!(engine.submit_replay(&bad, &[1], Service::default()), Err(Error::NothingToGenerate));
    bad = good.clone();
    bad.resume = vec![1; 11];
    assert_eq!(
        engine.submit(bad, Service::default()),
        Err(Error::ResumeTooLong { resumed: 11, max_tokens: 10 })
    );
    bad = good.clone();
    bad.prompt[4] = 267;
    assert_eq!(
        engine.submit(bad, Service::default()),
        Err(Error::UnknownToken { token: 267, vocabulary: 267 })
    );
    assert_eq!(
        engine.replay(&good, &[1, u32::MAX]),
        Err(Error::UnknownToken { token: u32::MAX, vocabulary: 267 })
    );
    bad = good.clone();
    bad.max_tokens = 503;
    assert_eq!(
        engine.submit(bad.clone(), Service::default()),
        Err(Error::ContextExceeded { needed: 513, context: 512 })
    );
    bad.max_tokens = u32::MAX;
    assert!(matches!(engine.submit(bad, Service::default()), Err(Error::ContextExceeded { .. })));
    assert!(engine.is_idle());
    assert_eq!(engine.free_tokens(), engine.kv_tokens());
}

#[test]
fn memory_and_queue_have_a_budget() {
    let model = model(Architecture::Qwen2, 1);
    let config = Config { page_tokens: 10, max_batch: 2, max_waiting: 1, ..config(2) };
    let mut engine = Engine::new(model.clone(), config.with_kv_tokens(&model, 100)).unwrap();
    assert_eq!(engine.kv_tokens(), 100);
    let generation = |tokens| generation(10, 1, greedy(), tokens);
    let submit = |engine: &mut Engine, tokens| engine.submit(generation(tokens), Service::default());
    assert_eq!(submit(&mut engine, 91), Err(Error::CacheTooSmall { needed: 101, total: 100 }));
    let first = submit(&mut engine, 50).unwrap();
    let second = submit(&mut engine, 20).unwrap();
    let third = submit(&mut engine, 90).unwrap();
    assert_eq!(submit(&mut engine, 5), Err(Error::QueueFull { waiting: 3 }));
    let _ = engine.step().unwrap();
    assert_eq!((engine.stats().running, engine.stats().waiting), (2, 1));
    let replay = engine.submit_replay(&generation(50), &[4], Service::default());
    assert_eq!(replay, Err(Error::QueueFull { waiting: 1 }));
    assert!(matches!(engine.logits(&[1], &mut |_, _| {}), Err(Error::Busy { sequences: 3 })));
    engine.cancel(first);
    let mut left = vec![second, third, submit(&mut engine, 5).unwrap()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let assay_engine::Event::Finished { id, .. } = event {
                left.retain(|other| *other != id);
            }
        }
    }
    assert!(left.is_empty());
    assert_eq!(engine.free_tokens(), 100);
}
