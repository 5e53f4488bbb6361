//! Answers that are proofs: what holds reaches the level `proved`, and every lie about it is found, also a signed one.

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
use assay_proof::{Key as ModelKey, Model, prove, prove_with_key};
use assay_receipt::*;
use assay_verify::*;

use crate::common::{bundle, expected, key};

/// `y = min(relu(2a - b + bias), 7)`.
fn graph(bias: i32) -> Graph {
    let linear = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![2, -1], bias: vec![bias] };
    let relu = Node::Lookup { input: Tensor(1), shift: 2, table: 0 };
    let inputs = vec![Range { low: 0, high: 15 }; 2];
    let table = Table::clamp(-5, 10, 0, 7);
    Graph::new(inputs, vec![table], vec![linear, relu], Tensor(2), Interface::plain(1)).unwrap()
}

const INPUTS: [i32; 4] = [5, 1, 4, 0];

/// What a worker signs about this request and output, chunk and receipt, with everything recomputed that depends on them.
fn signed(request: Request, output: Output, change: impl FnOnce(&mut Receipt)) -> (Bundle, Expected) {
    let (mut bundle, mut expected, worker) = (bundle(), expected(), key("worker"));
    bundle.audits.clear();
    let mut receipt = bundle.receipt.statement.clone();
    receipt.model = request.model;
    receipt.arithmetic = GRAPH_ARITHMETIC;
    receipt.level = Level::Proved;
    receipt.request = request_commitment(&request, &bundle.salt);
    receipt.output = output_commitment(&output, &bundle.salt);
    (receipt.prompt_tokens, receipt.completion_tokens) = (output.prompt_tokens, 0);
    let mut chain = Chain::start(&receipt.request, &receipt.nonce);
    let chunk = Chunk { index: 0, text: output.text.clone(), tokens: vec![], logprobs: vec![] };
    bundle.chunks = vec![chain.sign(&worker, &bundle.domain, chunk).unwrap()];
    (receipt.chunks, receipt.chain) = (1, chain.link());
    expected.model = Some(request.model);
    for member in expected.workers.iter_mut().filter(|member| member.worker == receipt.worker) {
        let offer = Offer {
            model: request.model,
            name: "graph".into(),
            prompt_price: 7,
            completion_price: 0,
            arithmetic: GRAPH_ARITHMETIC,
            context: 64,
        };
        receipt.price = offer.price(output.prompt_tokens, 0).unwrap();
        member.models = vec![offer];
    }
    change(&mut receipt);
    bundle.receipt = Signed::sign(&worker, &bundle.domain, receipt);
    (bundle.request, bundle.output) = (request, output);
    (bundle, expected)
}

/// An honest request and answer.
fn honest() -> (Request, Output, Model) {
    let graph = graph(3);
    let proof = prove(&graph, &INPUTS).unwrap().to_bytes().unwrap();
    (Request::inference(Bytes32(graph.id()), &INPUTS), Output::proof(&proof, 2), Model::Graph(graph))
}

/// A receipt over this answer is rejected because of the proof alone, and before the proof is looked at nothing is claimed for it.
fn is_caught(request: Request, output: Output, model: &Model, why: &str) {
    let (bundle, expected) = signed(request, output, |_| ());
    let report = check(&bundle, &expected);
    let failed: Vec<_> = report.failed().collect();
    assert_eq!((report.state, report.level), (State::Signed, Some(Level::Signed)), "{why}: {failed:?}");
    let report = check_proved(&bundle, &expected, model).unwrap();
    assert_eq!((report.state, report.level), (State::Rejected, None), "{why}");
    let failed: Vec<_> = report.failed().map(|check| (check.name, check.detail.as_str())).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].0 == CheckKind::Proof && failed[0].1.contains(why), "{failed:?}");
}

/// A receipt says by its arithmetic which proofs its output may be.
#[test]
fn the_arithmetic_names_the_version_of_proofs() {
    assert_eq!(GRAPH_ARITHMETIC, (1 << 31) + assay_proof::VERSION);
}

#[test]
fn a_proof_in_a_receipt_raises_it_to_proved() {
    let (request, output, model) = honest();
    let (bundle, expected) = signed(request, output, |_| ());
    let read = Bundle::from_json(&serde_json::to_vec(&bundle).unwrap()).unwrap();
    assert_eq!(read, bundle);
    let without = check(&bundle, &expected);
    assert_eq!((without.state, without.level), (State::Signed, Some(Level::Signed)));
    assert!(without.trusted.iter().any(|line| line.contains("proof in the answer is not checked")));
    let report = check_proved(&bundle, &expected, &model).unwrap();
    assert_eq!((report.state, report.level), (State::Proved, Some(Level::Proved)));
    assert!(!report.trusted.iter().any(|line| line.contains("worker 0x")), "{:?}", report.trusted);
    assert_eq!(report.checks.iter().filter(|check| check.name == CheckKind::Proof).count(), 1);
}

#[test]
fn weights_may_stay_with_the_worker() {
    let graph = graph(3);
    let key = ModelKey::commit(&graph).unwrap();
    let proof = prove_with_key(&graph, &key, &INPUTS, &mut |_| ()).unwrap().to_bytes().unwrap();
    let request = Request::inference(Bytes32(key.id()), &INPUTS);
    let (bundle, expected) = signed(request, Output::proof(&proof, 2), |_| ());
    let report = check_proved(&bundle, &expected, &Model::Key(key)).unwrap();
    assert_eq!(report.state, State::Proved);
    assert!(report.trusted.iter().any(|line| line.contains("key")));
    // The graph is another name for a model.
    let error = check_proved(&bundle, &expected, &Model::Graph(graph)).unwrap_err();
    assert!(matches!(error, ProofError::Model { .. }));
}

#[test]
fn every_signed_lie_about_a_proof_is_found() {
    let (request, output, model) = honest();
    let graph_id = request.model;
    let file = output.proof_file().unwrap();
    // Of another model, under its own name and under this one's.
    let other = graph(4);
    let theirs = prove(&other, &INPUTS).unwrap();
    let theirs = |id: [u8; 32]| {
        let mut renamed = theirs.clone();
        renamed.model = id;
        Output::proof(&renamed.to_bytes().unwrap(), 2)
    };
    is_caught(request.clone(), theirs(other.id()), &model, "another model");
    is_caught(request.clone(), theirs(graph_id.0), &model, "not valid");
    // Of other inputs, and of fewer.
    let about = |inputs: &[i32]| {
        let proof = prove(&graph(3), inputs).unwrap().to_bytes().unwrap();
        Output::proof(&proof, inputs.len() as u32 / 2)
    };
    is_caught(request.clone(), about(&[5, 1, 4, 1]), &model, "other inputs");
    is_caught(request.clone(), about(&INPUTS[..2]), &model, "other inputs");
    is_caught(request.clone(), about(&[4, 0, 5, 1]), &model, "other inputs");
    // Other outputs.
    let mut changed = assay_proof::Proof::from_bytes(&file).unwrap();
    changed.outputs[1] -= 1;
    is_caught(request.clone(), Output::proof(&changed.to_bytes().unwrap(), 2), &model, "not valid");
    // A changed byte anywhere, a truncated file and bytes that are no proof.
    for at in (8..file.len()).step_by(101) {
        let mut bytes = file.clone();
        bytes[at] ^= 1;
        is_caught(request.clone(), Output::proof(&bytes, 2), &model, "");
    }
    is_caught(request.clone(), Output::proof(&file[..file.len() - 1], 2), &model, "not a proof");
    is_caught(request.clone(), Output::proof(b"no proof", 2), &model, "not a proof");
    // More examples charged than were proved.
    is_caught(request.clone(), Output::proof(&file, 3), &model, "3 are charged");
    // A request that is none for a graph.
    let chat = Request::from_text(graph_id, "hello", 1);
    is_caught(chat, Output::proof(&file, 2), &model, "none for the outputs");
}

#[test]
fn a_claim_without_a_proof_is_rejected_before_any_proof_is_looked_at() {
    let (request, output, model) = honest();
    let rejected = |output: Output, change: fn(&mut Receipt), kinds: &[CheckKind]| {
        let (bundle, expected) = signed(request.clone(), output, change);
        for report in [check(&bundle, &expected), check_proved(&bundle, &expected, &model).unwrap()] {
            let failed: Vec<_> = report.failed().map(|check| check.name).collect();
            assert_eq!((report.state, failed.as_slice()), (State::Rejected, kinds));
        }
    };
    rejected(Output::embedding(&[1], 2), |_| (), &[CheckKind::Arithmetic]);
    let mut with_calls = output.clone();
    with_calls.tool_calls = Some("[]".into());
    rejected(with_calls, |_| (), &[CheckKind::Arithmetic]);
    rejected(output.clone(), |receipt| receipt.level = Level::Signed, &[CheckKind::Level]);
    rejected(output.clone(), |receipt| receipt.level = Level::Replayed, &[CheckKind::Level]);
    rejected(output.clone(), |receipt| receipt.price += 1, &[CheckKind::Price]);
    // The level of a graph in the arithmetic of a model that writes text.
    rejected(output, |receipt| receipt.arithmetic = 1, &[CheckKind::Arithmetic, CheckKind::Level]);
}

/// An auditor's word does not count against mathematics, in either direction.
#[test]
fn a_proof_outweighs_auditors() {
    let (request, output, model) = honest();
    let (mut bundle, expected) = signed(request, output, |_| ());
    let mut audit = crate::common::bundle().audits[0].statement.clone();
    audit.receipt = bundle.receipt.hash(&bundle.domain);
    (audit.model, audit.arithmetic) = (bundle.request.model, GRAPH_ARITHMETIC);
    (audit.verdict, audit.field) = (Verdict::Differs, "proof".into());
    bundle.audits = vec![Signed::sign(&key("auditor"), &bundle.domain, audit)];
    assert_eq!(check(&bundle, &expected).state, State::Mismatch);
    assert_eq!(check_proved(&bundle, &expected, &model).unwrap().state, State::Proved);
}

#[test]
fn requests_and_answers_have_one_spelling() {
    let (request, output, _) = honest();
    assert_eq!(request.inference_inputs().unwrap(), INPUTS);
    for text in ["[5,1, 4,0]", "[05,1,4,0]", "[+5,1,4,0]", "[5,1,4,0", "[]", "5", "[2147483648]"] {
        let request = Request::from_text(request.model, text, 1);
        assert_eq!(request.inference_inputs(), None, "{text}");
    }
    let mut hot = request;
    hot.sampling.temperature_milli = 1;
    assert_eq!(hot.inference_inputs(), None);
    let spelled = |text: String| Output { text, ..output.clone() }.proof_file();
    assert_eq!(spelled(output.text.clone()), output.proof_file());
    for text in [String::new(), format!("{} ", output.text), format!("{}=", output.text), "QUJDRB==".into()] {
        assert_eq!(spelled(text), None);
    }
}
