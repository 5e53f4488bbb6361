//! Proofs with committed weights: accepted when true, and refused with another key, another model or a changed byte.
#![allow(clippy::unwrap_used)]

mod common;

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor, Window};
use assay_proof::{Error, Key, Proof, prove, prove_with_key, verify, verify_with_key};
use common::{attention, convolution, inputs, numbers, perceptron};
use proptest::prelude::*;

/// Two groups, strides, dilations and padding, and values of two layers that meet in a sum.
fn grouped() -> Graph {
    let first = Window {
        channels: 4,
        size: [7, 6],
        filters: 6,
        groups: 2,
        kernel: [3, 2],
        stride: [2, 1],
        dilation: [1, 2],
        pad: [1, 1],
        output: [4, 6],
    };
    let depthwise = Window {
        channels: 6,
        size: [4, 6],
        groups: 6,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        ..first
    };
    let mut next = numbers(13);
    let mut conv = |input: u32, window: Window| Node::Conv {
        input: Tensor(input),
        window,
        weights: (0..window.weights_len()).map(|_| next(-9, 9)).collect(),
        bias: (0..window.filters as i32).map(|i| 3 * i - 7).collect(),
    };
    let nodes = vec![
        conv(0, first),
        Node::Lookup { input: Tensor(1), shift: 4, table: 0 },
        conv(2, depthwise),
        Node::Lookup { input: Tensor(3), shift: 4, table: 0 },
        Node::Sum { terms: vec![(Tensor(2), 2), (Tensor(4), -1)], bias: vec![1; 144] },
        Node::Gather { inputs: vec![Tensor(5), Tensor::INPUT], index: (0..300).step_by(7).collect() },
        Node::Linear {
            input: Tensor(6),
            rows: 3,
            weights: (0..129).map(|i| i % 17 - 8).collect(),
            bias: vec![1, 2, 3],
        },
    ];
    let inputs = vec![Range { low: 1, high: 15 }; 168];
    let tables = vec![Table::clamp(-300, 300, 1, 15)];
    Graph::new(inputs, tables, nodes, Tensor(7), Interface::plain(3)).unwrap()
}

/// The same with one weight of one layer changed.
fn with_another_weight(graph: &Graph, number: usize) -> Graph {
    let mut nodes = graph.nodes().to_vec();
    if let Node::Linear { weights, .. } | Node::Conv { weights, .. } = &mut nodes[number] {
        let last = weights.len() - 1;
        weights[last] -= weights[last].signum() + i32::from(weights[last] == 0);
    }
    let interface = graph.interface().clone();
    Graph::new(graph.inputs().to_vec(), graph.tables().to_vec(), nodes, graph.output(), interface).unwrap()
}

fn proved(graph: &Graph, key: &Key, batch: usize) -> Proof {
    prove_with_key(graph, key, &inputs(graph, batch, 8), &mut |_| ()).unwrap()
}

#[test]
fn proofs_are_checked_without_weights() {
    for graph in [perceptron(), convolution(), grouped(), attention()] {
        let key = Key::commit(&graph).unwrap();
        let bytes = key.to_bytes();
        let key = Key::from_bytes(&bytes).unwrap();
        assert_eq!((key.to_bytes(), key.id()), (bytes, Key::commit(&graph).unwrap().id()));
        assert!(key.graph().run(&inputs(&graph, 1, 1)).is_err());
        for batch in [1, 3, 16] {
            let proof = proved(&graph, &key, batch);
            assert_eq!(proof.outputs, graph.run(&proof.inputs).unwrap().output());
            verify_with_key(&key, &proof).unwrap();
            let bytes = proof.to_bytes().unwrap();
            verify_with_key(&key, &Proof::from_bytes(&bytes).unwrap()).unwrap();
            assert!(key.security_bits(batch).unwrap() > 100.0);
            for at in [0, proof.outputs.len() - 1] {
                let mut other = proof.clone();
                other.outputs[at] += 1;
                assert!(matches!(verify_with_key(&key, &other), Err(Error::Rejected(_))));
            }
            let mut other = proof.clone();
            other.inputs[0] = if other.inputs[0] == 1 { 2 } else { 1 };
            assert!(matches!(verify_with_key(&key, &other), Err(Error::Rejected(_))));
        }
    }
}

#[test]
fn a_proof_and_a_key_of_different_models_do_not_fit() {
    let graph = grouped();
    let key = Key::commit(&graph).unwrap();
    let proof = proved(&graph, &key, 2);
    for number in [0, 2, 6] {
        let other_graph = with_another_weight(&graph, number);
        let other = Key::commit(&other_graph).unwrap();
        assert!(matches!(verify_with_key(&other, &proof), Err(Error::Model { .. })));
        // Named as if it were about that model.
        let mut renamed = proof.clone();
        renamed.model = other.id();
        assert!(matches!(verify_with_key(&other, &renamed), Err(Error::Rejected(_))));
        // An honest prover notices.
        let error = prove_with_key(&other_graph, &key, &proof.inputs, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Key(_)), "{error}");
        // A proof of the other model under this key's name.
        let mut renamed = proved(&other_graph, &other, 2);
        renamed.model = key.id();
        assert!(matches!(verify_with_key(&key, &renamed), Err(Error::Rejected(_))));
    }
    // With and without committed weights are different proofs.
    let mut open = prove(&graph, &proof.inputs).unwrap();
    assert!(matches!(verify(&graph, &proof), Err(Error::Rejected(_))));
    assert!(matches!(verify_with_key(&key, &open), Err(Error::Model { .. })));
    open.model = key.id();
    assert!(matches!(verify_with_key(&key, &open), Err(Error::Rejected(_))));
}

#[test]
fn what_cannot_be_committed_to_is_refused() {
    let sum = Node::Sum { terms: vec![(Tensor::INPUT, 1)], bias: vec![0; 2] };
    let inputs = vec![Range { low: 0, high: 9 }; 2];
    let none = Graph::new(inputs.clone(), vec![], vec![sum], Tensor(1), Interface::plain(2)).unwrap();
    assert!(matches!(Key::commit(&none), Err(Error::Key(_))));
    let linear = |input: u32| Node::Linear {
        input: Tensor(input),
        rows: 2,
        weights: vec![1, 2, 3, 4],
        bias: vec![0; 2],
    };
    let chain =
        Graph::new(inputs, vec![], vec![linear(0), linear(1)], Tensor(2), Interface::plain(2)).unwrap();
    // A product of what a linear map makes, and a linear map of what a product makes.
    let product =
        |input: u32| Node::Product { inputs: [Tensor(input); 2], groups: 2, rows: 1, columns: 1, inner: 1 };
    let inputs = vec![Range { low: 0, high: 9 }; 2];
    let build = |nodes| Graph::new(inputs.clone(), vec![], nodes, Tensor(2), Interface::plain(2)).unwrap();
    for graph in [chain, build(vec![linear(0), product(1)]), build(vec![product(0), linear(1)])] {
        let error = Key::commit(&graph).unwrap_err();
        assert!(error.to_string().contains("without a look-up between them"), "{error}");
    }
}

#[test]
fn every_byte_of_a_proof_and_of_a_key_counts() {
    let graph = perceptron();
    let key = Key::commit(&graph).unwrap();
    let proof = proved(&graph, &key, 20);
    let bytes = proof.to_bytes().unwrap();
    let accepted =
        |bytes: &[u8]| Proof::from_bytes(bytes).is_ok_and(|proof| verify_with_key(&key, &proof).is_ok());
    assert!(accepted(&bytes));
    for at in (0..bytes.len()).step_by(11) {
        let mut other = bytes.clone();
        other[at] ^= 1 << (at % 8);
        assert!(!accepted(&other), "byte {at} of {}", bytes.len());
    }
    for cut in (0..bytes.len()).step_by(371) {
        assert!(!accepted(&bytes[..cut]));
    }
    let key_bytes = key.to_bytes();
    for at in 0..key_bytes.len() {
        let mut other = key_bytes.clone();
        other[at] ^= 1 << (at % 8);
        if let Ok(key) = Key::from_bytes(&other) {
            assert!(verify_with_key(&key, &proof).is_err(), "byte {at}");
        }
        assert!(Key::from_bytes(&key_bytes[..at]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_hostile_key_gives_an_error(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        thread_local!(static HONEST: Vec<u8> = Key::commit(&grouped()).unwrap().to_bytes());
        let mut bytes = HONEST.with(Clone::clone);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Key::from_bytes(&bytes);
    }
}
