//! Light checks and proofs of receipts: the verdicts of a replay, without the model.

use std::sync::Arc;

use assay_engine::light::{Commitment, Key, prove, record};
use assay_engine::request::Processor;
use assay_engine::{Config, Engine};
use assay_receipt::*;
use assay_verify::*;

use crate::replay::{engine, serve};

fn key(engine: &Engine) -> Arc<Key> {
    Arc::new(Key::make(engine.artifact(), [9; 32], &mut |_, _| {}).unwrap())
}

/// What the honest worker of model 1 shows of its answer.
fn trace() -> Vec<u8> {
    let mut engine = engine(1);
    let (bundle, _) = serve(&mut engine, |_| {});
    let processor = Processor::from_artifact(engine.artifact()).unwrap();
    let prepared = processor.prepare(&bundle.request).unwrap();
    let mut out = Vec::new();
    let tokens = &bundle.output.tokens;
    record(engine.artifact(), Config::default(), &prepared.generation, tokens, &mut out, &mut |_, _| {})
        .unwrap();
    out
}

fn light(
    key: &Arc<Key>,
    trace: Vec<u8>,
    bundle: &Bundle,
    expected: &Expected,
) -> Result<Report, ReplayError> {
    let processor = Processor::from_artifact(key.artifact()).unwrap();
    check_light(
        bundle,
        expected,
        key,
        &processor,
        Arc::new(trace),
        Config { threads: 2, ..Config::default() },
    )
}

#[test]
fn an_honest_answer_is_repeated_without_the_model() {
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    let key = key(&engine(1));
    let report = light(&key, trace(), &bundle, &expected).unwrap();
    assert_eq!(
        (report.state, report.level),
        (State::Replayed, Some(Level::Replayed)),
        "{:#?}",
        report.checks
    );
    for kind in [CheckKind::Products, CheckKind::Replay] {
        let found: Vec<_> = report.checks.iter().filter(|check| check.name == kind).collect();
        assert!(matches!(found[..], [Check { outcome: Outcome::Passed, .. }]), "{kind:?}");
    }
    assert!(report.proves.iter().any(|line| line.contains("2^-61")));
    assert!(report.trusted.iter().any(|line| line.contains("key")));
}

#[test]
fn lies_are_found_as_by_a_replay() {
    let key = key(&engine(1));
    // Whether products were needed to find it.
    type Lie = (bool, fn(&mut Output));
    let lies: &[Lie] = &[
        (false, |output| output.text.push('!')),
        (false, |output| output.tokens[3] ^= 1),
        (true, |output| output.logprobs[2].logprob_q16 -= 1),
    ];
    for (tested, lie) in lies {
        let (bundle, expected) = serve(&mut engine(1), lie);
        let report = light(&key, trace(), &bundle, &expected).unwrap();
        assert_eq!((report.state, report.level), (State::Mismatch, Some(Level::Signed)));
        assert!(report.has_failed(CheckKind::Replay) && !report.has_failed(CheckKind::Products));
        assert_eq!(report.checks.iter().any(|check| check.name == CheckKind::Products), *tested);
    }
}

#[test]
fn a_trace_that_shows_nothing_leaves_a_receipt_as_it_was() {
    let key = key(&engine(1));
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    let honest = trace();
    let mut changed = honest.clone();
    let last = changed.len() - 1;
    changed[last - 40] ^= 1;
    for trace in [changed, honest[..last].to_vec(), b"no trace".to_vec()] {
        let report = light(&key, trace, &bundle, &expected).unwrap();
        assert_eq!((report.state, report.level), (State::Signed, Some(Level::Signed)));
        assert!(report.has_failed(CheckKind::Products) && !report.has_failed(CheckKind::Replay));
    }
}

#[test]
fn what_another_key_is_for_is_an_error_and_a_rejected_bundle_is_not_checked() {
    let (mut bundle, expected) = serve(&mut engine(1), |_| {});
    let other = light(&key(&engine(2)), trace(), &bundle, &expected);
    assert!(matches!(other, Err(ReplayError::Model { .. })));
    bundle.receipt.statement.price += 1;
    let report = light(&key(&engine(1)), trace(), &bundle, &expected).unwrap();
    assert_eq!(report.state, State::Rejected);
    assert!(report.checks.iter().all(|check| check.name != CheckKind::Products));
}

fn commitment(engine: &Engine) -> Arc<Commitment> {
    Arc::new(Commitment::make(engine.artifact(), &mut |_, _| {}).unwrap())
}

/// What the honest worker of model 1 proves of its answer.
fn proof() -> Vec<u8> {
    let mut engine = engine(1);
    let (bundle, _) = serve(&mut engine, |_| {});
    let processor = Processor::from_artifact(engine.artifact()).unwrap();
    let generation = processor.prepare(&bundle.request).unwrap().generation;
    let (key, tokens) = (commitment(&engine).id(), &bundle.output.tokens);
    let mut out = Vec::new();
    let config = Config::default();
    prove(engine.artifact(), config, key, &generation, tokens, &mut out, &mut |_, _| {}).unwrap();
    out
}

fn proved(
    commitment: &Arc<Commitment>,
    proof: Vec<u8>,
    bundle: &Bundle,
    expected: &Expected,
) -> Result<Report, ReplayError> {
    let processor = Processor::from_artifact(commitment.artifact()).unwrap();
    check_trace_proof(bundle, expected, commitment, &processor, Arc::new(proof), Config::default())
}

#[test]
fn an_honest_answer_is_proved() {
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    let commitment = commitment(&engine(1));
    let report = proved(&commitment, proof(), &bundle, &expected).unwrap();
    assert_eq!((report.state, report.level), (State::Proved, Some(Level::Proved)), "{:#?}", report.checks);
    for kind in [CheckKind::Products, CheckKind::Replay] {
        let found: Vec<_> = report.checks.iter().filter(|check| check.name == kind).collect();
        assert!(matches!(found[..], [Check { outcome: Outcome::Passed, .. }]), "{kind:?}");
    }
    assert!(report.proves.iter().any(|line| line.contains("a proof shows")));
    assert!(report.trusted.iter().any(|line| line.contains(&commitment.id().to_string())));
}

#[test]
fn a_proof_of_another_answer_proves_nothing_about_this_one() {
    let commitment = commitment(&engine(1));
    // The proof is about the true tokens: it shows that what else is claimed of them is a lie.
    let lies: &[fn(&mut Output)] =
        &[|output| output.logprobs[2].logprob_q16 -= 1, |output| output.text.push('!')];
    for lie in lies {
        let (bundle, expected) = serve(&mut engine(1), lie);
        let report = proved(&commitment, proof(), &bundle, &expected).unwrap();
        assert_eq!((report.state, report.level), (State::Mismatch, Some(Level::Signed)));
        assert!(report.has_failed(CheckKind::Replay) && !report.has_failed(CheckKind::Products));
    }
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    let honest = proof();
    let mut changed = honest.clone();
    let last = changed.len() - 1;
    changed[last - 40] ^= 1;
    for proof in [changed, honest[..last].to_vec(), b"no proof".to_vec(), trace()] {
        let report = proved(&commitment, proof, &bundle, &expected).unwrap();
        assert_eq!((report.state, report.level), (State::Signed, Some(Level::Signed)));
        assert!(report.has_failed(CheckKind::Products) && !report.has_failed(CheckKind::Replay));
        assert!(report.trusted.iter().all(|line| !line.contains("Mathematics")));
    }
    let other = proved(&self::commitment(&engine(2)), honest.clone(), &bundle, &expected);
    assert!(matches!(other, Err(ReplayError::Model { .. })));
    let (mut bundle, expected) = serve(&mut engine(1), |_| {});
    bundle.receipt.statement.price += 1;
    assert_eq!(proved(&commitment, honest, &bundle, &expected).unwrap().state, State::Rejected);
}

/// What `crates/verify_wasm/tests/answer.mjs` checks in a browser's engine. With `ASSAY_VECTORS=write` the files are made anew.
#[test]
fn the_vectors_are_what_this_code_makes() {
    let (bundle, expected) = serve(&mut engine(1), |_| {});
    let about = serde_json::json!({ "bundle": bundle, "expected": expected });
    for (name, bytes) in [
        ("answer.key", commitment(&engine(1)).to_bytes()),
        ("answer.proof", proof()),
        ("answer.json", about.to_string().into_bytes()),
    ] {
        let path = format!("{}/../../docs/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var("ASSAY_VECTORS").is_ok_and(|what| what == "write") {
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(path).unwrap() == bytes, "{name}");
    }
}
