//! Proofs of what is true are accepted, and survive their file.
#![allow(clippy::unwrap_used)]

mod common;

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor, Window};
use assay_proof::{Error, Proof, prove, verify};
use common::{attention, convolution, inputs, perceptron, single_threaded};
use proptest::prelude::*;

#[test]
fn batches_of_every_size_are_proved() {
    let graph = perceptron();
    for batch in [1, 2, 3, 4, 7, 16, 33] {
        let inputs = inputs(&graph, batch, 1);
        let proof = prove(&graph, &inputs).unwrap();
        assert_eq!(proof.outputs, graph.run(&inputs).unwrap().output());
        verify(&graph, &proof).unwrap();
        let again = Proof::from_bytes(&proof.to_bytes().unwrap()).unwrap();
        verify(&graph, &again).unwrap();
    }
}

#[test]
fn every_kind_of_node_is_proved() {
    let graph = convolution();
    let proof = prove(&graph, &inputs(&graph, 3, 2)).unwrap();
    verify(&graph, &proof).unwrap();
}

#[test]
fn products_are_proved() {
    let graph = attention();
    for batch in [1, 2, 3, 8] {
        let proof = prove(&graph, &inputs(&graph, batch, 6)).unwrap();
        verify(&graph, &Proof::from_bytes(&proof.to_bytes().unwrap()).unwrap()).unwrap();
        let mut other = proof.clone();
        other.outputs[0] += 1;
        assert!(matches!(verify(&graph, &other), Err(Error::Rejected(_))));
    }
    // A product of inputs alone: nothing is committed that anybody reads.
    let product = Node::Product { inputs: [Tensor::INPUT; 2], groups: 2, rows: 3, columns: 3, inner: 2 };
    let inputs = vec![Range { low: -100, high: 100 }; 12];
    let graph = Graph::new(inputs, vec![], vec![product], Tensor(1), Interface::plain(18)).unwrap();
    let mut proof = prove(&graph, &common::inputs(&graph, 3, 3)).unwrap();
    verify(&graph, &proof).unwrap();
    proof.inputs[5] += 1;
    assert!(matches!(verify(&graph, &proof), Err(Error::Rejected(_))));
}

/// Enough tokens and channels that one example goes another way than several.
#[test]
fn a_map_that_many_tokens_share_is_proved() {
    let mut next = common::numbers(4);
    let mut map = |input: u32, channels: u32, filters: u32| Node::Conv {
        input: Tensor(input),
        window: Window::pointwise(channels, filters, [2, 5]),
        weights: (0..channels * filters).map(|_| next(-40, 40)).collect(),
        bias: (0..filters).map(|_| next(-500, 500)).collect(),
    };
    let round = Node::Lookup { input: Tensor(1), shift: 5, table: 0 };
    let nodes = vec![map(0, 7, 33), round, map(2, 33, 3)];
    let tables = vec![Table::clamp(-300, 300, 0, 63)];
    let inputs = vec![Range { low: -15, high: 15 }; 70];
    let graph = Graph::new(inputs, tables, nodes, Tensor(3), Interface::plain(30)).unwrap();
    for batch in [1, 2, 5] {
        let proof = prove(&graph, &common::inputs(&graph, batch, 9)).unwrap();
        assert_eq!(proof.outputs, graph.run(&proof.inputs).unwrap().output());
        verify(&graph, &proof).unwrap();
        for change in [|proof: &mut Proof| proof.outputs[29] -= 1, |proof: &mut Proof| proof.inputs[3] ^= 1] {
            let mut other = proof.clone();
            change(&mut other);
            assert!(matches!(verify(&graph, &other), Err(Error::Rejected(_))));
        }
    }
}

#[test]
fn a_graph_without_look_ups_is_proved() {
    let node =
        Node::Linear { input: Tensor::INPUT, rows: 3, weights: vec![1, -2, 3, 4, 5, 6], bias: vec![1, 2, 3] };
    let inputs = vec![Range { low: -100, high: 100 }; 2];
    let graph = Graph::new(inputs, vec![], vec![node], Tensor(1), Interface::plain(3)).unwrap();
    for batch in [1, 5, 600] {
        let proof = prove(&graph, &common::inputs(&graph, batch, 3)).unwrap();
        verify(&graph, &proof).unwrap();
        let mut other = proof.clone();
        other.outputs[0] += 1;
        assert!(matches!(verify(&graph, &other), Err(Error::Rejected(_))));
    }
}

#[test]
fn the_same_inputs_give_the_same_proof() {
    let graph = perceptron();
    let inputs = inputs(&graph, 5, 4);
    let bytes = || single_threaded(|| prove(&graph, &inputs).unwrap().to_bytes().unwrap());
    assert_eq!(bytes(), bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn random_networks_are_proved(weights in prop::collection::vec(-40i32..=40, 24), shift in 0u32..6, seed in any::<u64>(), batch in 1usize..6) {
        let nodes = vec![
            Node::Linear { input: Tensor::INPUT, rows: 4, weights: weights[..16].to_vec(), bias: vec![1, -5, 0, 9] },
            Node::Lookup { input: Tensor(1), shift, table: 0 },
            Node::Linear { input: Tensor(2), rows: 2, weights: weights[16..].to_vec(), bias: vec![0, 3] },
        ];
        let tables = vec![Table::clamp(-2500, 2500, -9, 30)];
        let graph = Graph::new(vec![Range { low: -15, high: 15 }; 4], tables, nodes, Tensor(3), Interface::plain(2)).unwrap();
        let proof = prove(&graph, &inputs(&graph, batch, seed)).unwrap();
        verify(&graph, &proof).unwrap();
    }
}
