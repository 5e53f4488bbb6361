//! Proofs that hide their inputs are accepted, survive their file, and cannot be changed.
#![allow(clippy::unwrap_used)]

mod common;

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor, Window};
use assay_proof::{Error, HidingProof, Key, Model, Proof, prove_hiding};
use common::{attention, convolution, inputs, numbers, perceptron};
use proptest::prelude::*;

fn hidden(graph: &Graph, key: Option<&Key>, inputs: &[i32], seed: u8) -> HidingProof {
    prove_hiding(graph, key, inputs, [seed; 32], &mut |_| ()).unwrap()
}

/// A key whose commitment is larger than the smallest, to a map that places share and to one behind it.
#[test]
fn inputs_are_hidden_beside_many_committed_weights() {
    let mut next = numbers(3);
    let map = Node::Conv {
        input: Tensor::INPUT,
        window: Window::pointwise(6, 40, [1, 3]),
        weights: (0..240).map(|_| next(-9, 9)).collect(),
        bias: vec![5; 40],
    };
    let round = Node::Lookup { input: Tensor(1), shift: 3, table: 0 };
    let last = Node::Linear {
        input: Tensor(2),
        rows: 4,
        weights: (0..480).map(|_| next(-5, 5)).collect(),
        bias: vec![1; 4],
    };
    let tables = vec![Table::clamp(-200, 200, 0, 31)];
    let ranges = vec![Range { low: -15, high: 15 }; 18];
    let graph = Graph::new(ranges, tables, vec![map, round, last], Tensor(3), Interface::plain(4)).unwrap();
    let key = Key::commit(&graph).unwrap();
    let inputs = inputs(&graph, 2, 1);
    let proof = hidden(&graph, Some(&key), &inputs, 4);
    assert_eq!(proof.outputs, graph.run(&inputs).unwrap().output());
    let model = Model::Key(key);
    model.verify_hiding(&proof).unwrap();
    let mut other = proof.clone();
    other.outputs[7] += 1;
    assert!(matches!(model.verify_hiding(&other), Err(Error::Rejected(_))));
}

#[test]
fn every_kind_of_model_is_proved() {
    let double = Node::Linear { input: Tensor::INPUT, rows: 2, weights: vec![2, 0, 1, 2], bias: vec![1, -3] };
    let ranges = vec![Range { low: -100, high: 100 }, Range { low: 0, high: 3 }];
    let linear = Graph::new(ranges, vec![], vec![double], Tensor(1), Interface::plain(2)).unwrap();
    for (graph, batch) in
        [(perceptron(), 1), (perceptron(), 5), (convolution(), 3), (attention(), 2), (linear, 3)]
    {
        let inputs = inputs(&graph, batch, 1);
        let proof = hidden(&graph, None, &inputs, 3);
        assert_eq!(proof.outputs, graph.run(&inputs).unwrap().output());
        let bytes = proof.to_bytes().unwrap();
        let again = HidingProof::from_bytes(&bytes).unwrap();
        assert_eq!(again.to_bytes().unwrap(), bytes);
        let model = Model::Graph(graph.clone());
        model.verify_hiding(&again).unwrap();
        assert!((100.0..128.0).contains(&model.hiding_security_bits(batch).unwrap()));
        let Ok(key) = Key::commit(&graph) else { continue };
        let proof = hidden(&graph, Some(&key), &inputs, 4);
        assert!(proof.has_committed_weights());
        assert!(matches!(model.verify_hiding(&proof), Err(Error::Model { .. })));
        let mut other = proof.clone();
        other.model = graph.id();
        assert!(matches!(model.verify_hiding(&other), Err(Error::Rejected(_))));
        let model = Model::Key(key);
        model.verify_hiding(&HidingProof::from_bytes(&proof.to_bytes().unwrap()).unwrap()).unwrap();
        assert!((100.0..128.0).contains(&model.hiding_security_bits(batch).unwrap()));
        let mut other = proof.clone();
        other.outputs[0] += 1;
        assert!(matches!(model.verify_hiding(&other), Err(Error::Rejected(_))));
    }
}

#[test]
fn what_cannot_be_hidden_is_refused() {
    let copy = Node::Gather { inputs: vec![Tensor::INPUT], index: vec![0] };
    let ranges = vec![Range { low: -(1 << 25), high: 1 << 25 }];
    let graph = Graph::new(ranges, vec![], vec![copy], Tensor(1), Interface::plain(1)).unwrap();
    assert!(matches!(prove_hiding(&graph, None, &[1], [0; 32], &mut |_| ()), Err(Error::Size(_))));
    assert!(matches!(Model::Graph(graph).hiding_security_bits(1), Err(Error::Size(_))));
    let graph = perceptron();
    assert!(matches!(prove_hiding(&graph, None, &[16; 6], [0; 32], &mut |_| ()), Err(Error::Graph(_))));
    assert!(matches!(prove_hiding(&graph, None, &[], [0; 32], &mut |_| ()), Err(Error::Graph(_))));
    let other = Key::commit(&convolution()).unwrap();
    assert!(matches!(prove_hiding(&graph, Some(&other), &[1; 6], [0; 32], &mut |_| ()), Err(Error::Key(_))));
}

fn accepted(model: &Model, bytes: &[u8]) -> bool {
    HidingProof::from_bytes(bytes).is_ok_and(|proof| model.verify_hiding(&proof).is_ok())
}

/// A bit of bytes everywhere in the file; cuts; more bytes.
#[test]
fn bytes_count() {
    let graph = perceptron();
    let bytes = hidden(&graph, None, &inputs(&graph, 3, 5), 6).to_bytes().unwrap();
    let model = Model::Graph(graph);
    assert!(accepted(&model, &bytes) && Proof::from_bytes(&bytes).is_err());
    let mut next = numbers(11);
    for at in (0..160).chain((160..bytes.len()).step_by(701)) {
        let mut other = bytes.clone();
        other[at] ^= 1 << next(0, 7);
        assert!(!accepted(&model, &other), "byte {at} of {}", bytes.len());
    }
    for cut in (0..bytes.len()).step_by(1013) {
        assert!(!accepted(&model, &bytes[..cut]), "cut at {cut}");
    }
    assert!(!accepted(&model, &[&bytes[..], &[0]].concat()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let model = Model::Graph(perceptron());
        prop_assert!(!accepted(&model, &noise));
        prop_assert!(!accepted(&model, &[&b"ASSAYZK2"[..], &model.id(), &noise].concat()));
    }
}
