//! A worker with a real, if tiny, engine; a verifier that repeats its answer; and lies that only a replay finds.

use std::sync::Arc;

use assay_engine::encoder::Encoder;
use assay_engine::request::Processor;
use assay_engine::{Config, Engine, Event};
use assay_model::testing::{tiny_encoder, tiny_gguf};
use assay_model::{Architecture, Artifact, import_gguf, import_safetensors};
use assay_receipt::*;
use assay_verify::*;

use crate::common::{expected, key};

pub(crate) fn engine(seed: u64) -> Engine {
    let bytes = import_gguf(&tiny_gguf(Architecture::Llama, seed), &mut |_, _| {}).unwrap();
    let artifact = Artifact::parse(Arc::new(bytes)).unwrap();
    Engine::new(Arc::new(artifact), Config { threads: 1, ..Config::default() }).unwrap()
}

/// Answers a request and signs it as the worker of the vectors, Alice's.
pub(crate) fn serve(engine: &mut Engine, lie: impl FnOnce(&mut Output)) -> (Bundle, Expected) {
    let processor = Processor::from_artifact(engine.artifact()).unwrap();
    let mut request = Request::from_text(engine.artifact().id(), "Once upon a time", 12);
    request.sampling = Sampling { temperature_milli: 900, seed: 5, ..Sampling::default() };
    request.logprobs = Some(2);
    let prepared = processor.prepare(&request).unwrap();
    engine.submit(prepared.generation.clone(), assay_engine::Service::default()).unwrap();
    let mut assembler = prepared.assembler();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { token, logprob, .. } = event {
                assembler.push(token, logprob);
            }
        }
    }
    let mut output = assembler.finish().output;
    lie(&mut output);
    sign(engine.artifact(), request, output)
}

/// What the worker signs who answered a request so.
fn sign(artifact: &Artifact, request: Request, output: Output) -> (Bundle, Expected) {
    let mut expected = expected();
    let arithmetic = artifact.manifest().arithmetic;
    for member in &mut expected.workers {
        member.models[0].model = request.model;
        member.models[0].arithmetic = arithmetic;
    }
    expected.model = Some(request.model);
    let (worker, domain, salt, nonce) =
        (key("worker"), expected.domain, Bytes32([1; 32]), expected.nonce.unwrap());
    let commitment = request_commitment(&request, &salt);
    let mut chain = Chain::start(&commitment, &nonce);
    let Output { text, tokens, logprobs, .. } = output.clone();
    let chunks = vec![chain.sign(&worker, &domain, Chunk { index: 0, text, tokens, logprobs }).unwrap()];
    let offer = &expected.workers[0].models[0];
    let receipt = Receipt {
        worker: worker.address(),
        key_epoch: 3,
        model: request.model,
        arithmetic,
        level: Level::Signed,
        request: commitment,
        output: output_commitment(&output, &salt),
        chunks: 1,
        chain: chain.link(),
        trace: Bytes32::ZERO,
        prompt_tokens: output.prompt_tokens,
        completion_tokens: output.completion_tokens,
        price: offer.price(output.prompt_tokens, output.completion_tokens).unwrap(),
        payer: expected.payer.unwrap(),
        cap: expected.cap.unwrap(),
        nonce,
        sequence: 0,
        previous: Bytes32::ZERO,
        received_at_ms: 1,
        first_token_at_ms: 2,
        finished_at_ms: 3,
    };
    let receipt = Signed::sign(&worker, &domain, receipt);
    let version = BUNDLE_VERSION;
    (Bundle { version, domain, salt, request, output, chunks, receipt, audits: vec![] }, expected)
}

fn replay(engine: &mut Engine, bundle: &Bundle, expected: &Expected) -> Result<Report, ReplayError> {
    let processor = Processor::from_artifact(engine.artifact()).unwrap();
    check_replayed(bundle, expected, engine, &processor)
}

#[test]
fn an_honest_answer_is_repeated_to_the_last_bit() {
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    assert_eq!(check(&bundle, &expected).state, State::Signed, "the signature alone proves less");
    let report = replay(&mut engine(1), &bundle, &expected).unwrap();
    assert_eq!(
        (report.state, report.level),
        (State::Replayed, Some(Level::Replayed)),
        "{:#?}",
        report.checks
    );
    assert!(report.trusted.iter().all(|who| !who.contains("nothing here shows")));
}

#[test]
fn lies_that_every_signature_supports_are_found() {
    type Lie = (&'static str, fn(&mut Output));
    let lies: &[Lie] = &[
        ("tokens", |output| output.tokens[3] ^= 1),
        ("tokens", |output| output.tokens[3] = u32::MAX),
        ("text", |output| output.text.push('!')),
        ("tool_calls", |output| output.tool_calls = Some("[]".into())),
        ("finish_reason", |output| output.finish_reason = FinishReason::ToolCalls),
        ("prompt_tokens", |output| output.prompt_tokens -= 1),
        ("logprobs", |output| output.logprobs[2].logprob_q16 -= 1),
        ("logprobs", |output| output.logprobs[2].top[1].1 -= 1),
    ];
    for (field, lie) in lies {
        let (bundle, expected) = serve(&mut engine(1), lie);
        assert_eq!(check(&bundle, &expected).state, State::Signed, "{field}: every signature is right");
        let report = replay(&mut engine(1), &bundle, &expected).unwrap();
        assert_eq!((report.state, report.level), (State::Mismatch, Some(Level::Signed)), "{field}");
        assert!(report.has_failed(CheckKind::Replay), "{field}");
        assert!(
            report.proves.iter().any(|line| line.contains("is not this model's")),
            "{field}: {:?}",
            report.proves
        );
    }
}

#[test]
fn an_answer_of_other_weights_under_this_name_is_found() {
    let (mut bundle, _) = serve(&mut engine(2), |_| {});
    // The cheater runs model 2 and signs that it was model 1.
    let honest = serve(&mut engine(1), |_| {});
    let output = bundle.output.clone();
    bundle = serve(&mut engine(1), |claimed| *claimed = output).0;
    assert_ne!(bundle.output, honest.0.output, "the two models answer differently");
    let report = replay(&mut engine(1), &bundle, &honest.1).unwrap();
    assert_eq!(report.state, State::Mismatch);
}

#[test]
fn what_cannot_be_repeated_here_is_an_error_and_no_verdict() {
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    assert!(matches!(replay(&mut engine(2), &bundle, &expected), Err(ReplayError::Model { .. })));
}

#[test]
fn a_rejected_bundle_is_not_replayed() {
    let (mut bundle, expected) = serve(&mut engine(1), |_| {});
    bundle.receipt.statement.price += 1;
    let report = replay(&mut engine(1), &bundle, &expected).unwrap();
    assert_eq!(report.state, State::Rejected);
    assert!(report.checks.iter().all(|check| check.name != CheckKind::Replay));
}

fn encoder(seed: u64) -> Encoder {
    let files = tiny_encoder(seed);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let bytes = import_safetensors(&files, &mut |_, _| {}).unwrap();
    Encoder::new(Arc::new(Artifact::parse(Arc::new(bytes)).unwrap()), Config::default().kernel).unwrap()
}

/// Embeds a text and signs it.
fn embed(lie: impl FnOnce(&mut Output)) -> (Bundle, Expected) {
    let encoder = encoder(1);
    let request = Request::embedding(encoder.artifact().id(), Prompt::Text("the abc".into()));
    let mut output = encoder.answer(&request).unwrap();
    lie(&mut output);
    sign(encoder.artifact(), request, output)
}

#[test]
fn an_embedding_is_repeated_to_the_last_bit_and_lies_are_found() {
    let (bundle, expected) = embed(|_| {});
    assert_eq!(check(&bundle, &expected).state, State::Signed);
    let report = check_embedded(&bundle, &expected, &encoder(1)).unwrap();
    assert_eq!(
        (report.state, report.level),
        (State::Replayed, Some(Level::Replayed)),
        "{:#?}",
        report.checks
    );
    assert!(matches!(
        check_embedded(&bundle, &expected, &encoder(2)),
        Err(ReplayError::Model { wanted, .. }) if wanted == bundle.request.model
    ));

    // One of the numbers is another by one unit.
    let (lied, expected) = embed(|output| {
        let mut components = output.components().unwrap();
        components[5] += 1;
        output.text = serde_json::to_string(&components).unwrap();
    });
    assert_eq!(check(&lied, &expected).state, State::Signed, "every signature is right");
    let report = check_embedded(&lied, &expected, &encoder(1)).unwrap();
    assert_eq!((report.state, report.level), (State::Mismatch, Some(Level::Signed)));

    let mut changed = bundle;
    changed.output.text = lied.output.text;
    assert_eq!(check_embedded(&changed, &expected, &encoder(1)).unwrap().state, State::Rejected);
}
