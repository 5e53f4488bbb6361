//! Several models in one worker that has no memory for all of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use assay_engine::request::Processor;
use assay_engine::{Engine, Event, Service};
use assay_model::Artifact;
use assay_receipt::{Bytes32, FailureCode, Output, Request};
use assay_worker::Config;
use common::*;
use futures_util::StreamExt as _;

/// Two models, and memory for `count` of them with their keys and values.
fn two(config: &mut Config, count: u64) {
    config.kv_bytes = 1 << 20;
    for (seed, name) in [(7, "one"), (8, "two")] {
        let path = artifact(config, seed);
        let bytes = std::fs::metadata(&path).unwrap().len() + config.kv_bytes as u64;
        config.memory_bytes = (bytes + 1000) * count;
        config.models.push(assay_worker::Model { name: name.to_owned(), ..model(&path, 2, 3) });
    }
}

async fn loaded(worker: &Worker) -> [f64; 2] {
    let mut found = [f64::NAN; 2];
    for (found, name) in found.iter_mut().zip(["one", "two"]) {
        let line = format!("assay_worker_model_loaded{{model=\"{name}\"}}");
        *found = worker.metric(&line).await.unwrap();
    }
    found
}

/// The same answer from bytes in memory instead of a mapped file, by an engine that does nothing else.
fn alone(seed: u64, request: &Request) -> Output {
    let artifact = Arc::new(Artifact::parse(Arc::new(tiny(seed))).unwrap());
    let prepared = Processor::from_artifact(&artifact).unwrap().prepare(request).unwrap();
    let config = assay_engine::Config { threads: 1, max_guess: 0, ..assay_engine::Config::default() };
    let mut engine = Engine::new(artifact, config).unwrap();
    engine.submit(prepared.generation.clone(), Service::default()).unwrap();
    let mut assembler = prepared.assembler();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { token, logprob, .. } = event {
                assembler.push(token, logprob);
            }
        }
    }
    assembler.finish().output
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_loaded_when_asked_for_and_the_longest_unused_goes() {
    let worker = Worker::start(|config| two(config, 1)).await;
    assert_eq!(loaded(&worker).await, [1.0, 0.0]);
    let models: Vec<Bytes32> = worker.ready.member.models.iter().map(|offer| offer.model).collect();
    for (round, seed) in [7, 8, 8, 7, 8].into_iter().enumerate() {
        let index = seed as usize - 7;
        let mut request = endless(models[index], 20);
        request.sampling.seed = round as u64;
        request.logprobs = Some(2);
        let call = call(request.clone());
        assert_eq!(worker.generate(&call).await.unwrap().bundle(&call).output, alone(seed, &request));
        let mut expected = [0.0; 2];
        expected[index] = 1.0;
        assert_eq!(loaded(&worker).await, expected);
        assert_eq!(worker.get("/health").await.0, 200);
    }
    // What describes a model is there whether it is loaded or not.
    for model in models {
        assert_eq!(worker.get(&format!("/v1/models/{model}/manifest")).await.0, 200);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_in_use_stays_and_others_get_their_turn() {
    let worker = Worker::start(|config| two(config, 1)).await;
    let models: Vec<Bytes32> = worker.ready.member.models.iter().map(|offer| offer.model).collect();
    let long = call(endless(models[0], 2000));
    let response = client().post(worker.url("/v1/generate")).json(&long).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    assert_eq!(loaded(&worker).await, [1.0, 0.0]);
    // It waits, or is told to come back: never does it take the memory of what runs.
    let other = call(endless(models[1], 3));
    let answer = worker.generate(&other);
    let read = async { while stream.next().await.is_some() {} };
    let (answer, ()) = tokio::join!(answer, read);
    match answer {
        Ok(answer) => drop(answer.bundle(&other)),
        Err(refusal) => {
            assert_eq!(refusal.failure().statement.code, FailureCode::Busy);
            worker.generate(&other).await.unwrap().bundle(&other);
        }
    }
    assert_eq!(loaded(&worker).await, [0.0, 1.0]);
    let (_, stored) = worker.get(&format!("/v1/receipts/{}", long.nonce)).await;
    assert!(stored.get("receipt").is_some(), "the long answer was completed: {stored}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_changes_no_answer() {
    let worker = Worker::start(|config| {
        let path = artifact(config, 7);
        // The model guesses for itself, so that all guesses are right.
        config.models.push(assay_worker::Model { draft: Some(path.clone()), ..model(&path, 2, 3) });
    })
    .await;
    let mut request = endless(worker.model(), 60);
    request.logprobs = Some(2);
    let call = call(request.clone());
    assert_eq!(worker.generate(&call).await.unwrap().bundle(&call).output, alone(7, &request));
    let right = worker.metric("assay_worker_guessed_tokens_right_total{model=\"tiny\"}").await.unwrap();
    let guessed = worker.metric("assay_worker_guessed_tokens_total{model=\"tiny\"}").await.unwrap();
    assert!(right > 0.0 && guessed >= right, "{right} of {guessed}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_room_all_stay_and_with_none_the_worker_says_so() {
    let worker = Worker::start(|config| two(config, 2)).await;
    assert_eq!(loaded(&worker).await, [1.0, 1.0]);
    worker.stop().await;

    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path());
    two(&mut config, 1);
    config.memory_bytes = 1 << 20;
    let (ready, _is_ready) = tokio::sync::oneshot::channel();
    let error = Box::pin(assay_worker::run(config, ready, async {})).await.unwrap_err().to_string();
    assert!(error.contains("memory_bytes"), "{error}");
}
