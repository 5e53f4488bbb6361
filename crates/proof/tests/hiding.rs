//! Proofs that hide their inputs are accepted, survive their file, and cannot be changed.
#![allow(clippy::unwrap_used)]

mod common;

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor, Window};
use assay_proof::{
    Error, HIDING_PROOFS_MAX, Hide, HidingProof, Key, Model, OneTime, Proof, prove_hiding, prove_with_key,
};
use common::{attention, convolution, inputs, numbers, perceptron};
use proptest::prelude::*;

fn hidden(graph: &Graph, key: Option<&Key>, inputs: &[i32], seed: u8) -> HidingProof {
    prove_hiding(graph, key, inputs, Hide::Inputs, [seed; 32], &mut |_| ()).unwrap()
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
        assert!((100.0..128.0).contains(&model.hiding_security_bits(batch, true).unwrap()));
        let Ok(key) = Key::commit(&graph) else { continue };
        let proof = hidden(&graph, Some(&key), &inputs, 4);
        assert!(proof.has_committed_weights());
        assert!(matches!(model.verify_hiding(&proof), Err(Error::Model { .. })));
        let mut other = proof.clone();
        other.model = graph.id();
        assert!(matches!(model.verify_hiding(&other), Err(Error::Rejected(_))));
        let model = Model::Key(key);
        model.verify_hiding(&HidingProof::from_bytes(&proof.to_bytes().unwrap()).unwrap()).unwrap();
        assert!((100.0..128.0).contains(&model.hiding_security_bits(batch, true).unwrap()));
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
    assert!(matches!(
        prove_hiding(&graph, None, &[1], Hide::Inputs, [0; 32], &mut |_| ()),
        Err(Error::Size(_))
    ));
    assert!(matches!(Model::Graph(graph).hiding_security_bits(1, true), Err(Error::Size(_))));
    let graph = perceptron();
    assert!(matches!(
        prove_hiding(&graph, None, &[16; 6], Hide::Inputs, [0; 32], &mut |_| ()),
        Err(Error::Graph(_))
    ));
    assert!(matches!(
        prove_hiding(&graph, None, &[], Hide::Inputs, [0; 32], &mut |_| ()),
        Err(Error::Graph(_))
    ));
    let other = Key::commit(&convolution()).unwrap();
    assert!(matches!(
        prove_hiding(&graph, Some(&other), &[1; 6], Hide::Inputs, [0; 32], &mut |_| ()),
        Err(Error::Key(_))
    ));
}

const SECRET: [u8; 32] = [9; 32];

fn hiding_key(graph: &Graph, proofs: u32) -> Key {
    Key::commit_hiding(graph, proofs, &SECRET, &|| ()).unwrap()
}

#[test]
fn weights_are_hidden() {
    for (graph, batch) in [(perceptron(), 1), (perceptron(), 5), (convolution(), 3), (attention(), 2)] {
        let key = hiding_key(&graph, 3);
        assert_eq!(key.hiding_proofs(), Some(3));
        let bytes = key.to_bytes();
        let key = Key::from_bytes(&bytes).unwrap();
        assert_eq!((key.to_bytes(), key.id()), (bytes, hiding_key(&graph, 3).id()));
        let inputs = inputs(&graph, batch, 1);
        let outputs = graph.run(&inputs).unwrap().output().to_vec();
        let model = Model::Key(key.clone());
        for (number, both) in [(0, false), (2, true)] {
            let once = OneTime::new(SECRET, number);
            let hide = if both { Hide::Both(once) } else { Hide::Weights(once) };
            let proof = prove_hiding(&graph, Some(&key), &inputs, hide, [5; 32], &mut |_| ()).unwrap();
            assert_eq!((proof.inputs.is_none(), &proof.outputs), (both, &outputs));
            assert!(proof.hides_weights() && proof.has_committed_weights());
            let bytes = proof.to_bytes().unwrap();
            let again = HidingProof::from_bytes(&bytes).unwrap();
            assert_eq!(again.to_bytes().unwrap(), bytes);
            model.verify_hiding(&again).unwrap();
            assert!((100.0..128.0).contains(&model.hiding_security_bits(batch, both).unwrap()));
            // With another key, and about other outputs, other inputs, and none.
            let open = Model::Key(Key::commit(&graph).unwrap());
            assert!(matches!(open.verify_hiding(&proof), Err(Error::Model { .. })));
            let refused = |change: &dyn Fn(&mut HidingProof)| {
                let mut other = proof.clone();
                change(&mut other);
                assert!(matches!(model.verify_hiding(&other), Err(Error::Rejected(_))));
            };
            refused(&|proof| proof.outputs[0] += 1);
            if both {
                refused(&|proof| proof.inputs = Some(inputs.clone()));
            } else {
                refused(&|proof| proof.inputs.as_mut().unwrap()[0] ^= 1);
                refused(&|proof| proof.inputs = None);
                refused(&|proof| proof.examples += 1);
            }
        }
    }
}

#[test]
fn a_key_that_hides_is_the_same_on_any_number_of_threads() {
    let graph = perceptron();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| hiding_key(&graph, 4)).to_bytes(), hiding_key(&graph, 4).to_bytes());
    // With another secret, nothing is the same but the graph.
    let other = Key::commit_hiding(&graph, 4, &[8; 32], &|| ()).unwrap().to_bytes();
    let bytes = hiding_key(&graph, 4).to_bytes();
    let parts = |bytes: &[u8]| bytes[12..12 + 4 * 32 + 20].chunks(4).map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert!(parts(&bytes).iter().zip(parts(&other)).all(|(a, b)| *a != b));
    assert_eq!(bytes[160..], other[160..]);
}

#[test]
fn hidden_weights_need_their_key_and_its_secret() {
    let graph = perceptron();
    let (open, hiding) = (Key::commit(&graph).unwrap(), hiding_key(&graph, 2));
    let inputs = inputs(&graph, 1, 1);
    let refused = |key: Option<&Key>, hide| {
        matches!(prove_hiding(&graph, key, &inputs, hide, [1; 32], &mut |_| ()), Err(Error::Key(_)))
    };
    let once = || OneTime::new(SECRET, 0);
    assert!(refused(Some(&open), Hide::Weights(once())) && refused(Some(&open), Hide::Both(once())));
    assert!(refused(Some(&hiding), Hide::Inputs) && refused(None, Hide::Weights(once())));
    assert!(refused(Some(&hiding), Hide::Weights(OneTime::new(SECRET, 2))));
    assert!(refused(Some(&hiding), Hide::Weights(OneTime::new([8; 32], 0))));
    assert!(!refused(Some(&hiding), Hide::Weights(once())));
    assert!(matches!(prove_with_key(&graph, &hiding, &inputs, &mut |_| ()), Err(Error::Key(_))));
    // The proof of one kind under the name of the other key.
    let mut proof = hidden(&graph, Some(&open), &inputs, 3);
    proof.model = hiding.id();
    assert!(matches!(Model::Key(hiding.clone()).verify_hiding(&proof), Err(Error::Rejected(_))));
    let mut proof = prove_with_key(&graph, &open, &inputs, &mut |_| ()).unwrap();
    proof.model = hiding.id();
    assert!(matches!(Model::Key(hiding.clone()).verify(&proof), Err(Error::Rejected(_))));
    let mut proof =
        prove_hiding(&graph, Some(&hiding), &inputs, Hide::Weights(once()), [1; 32], &mut |_| ()).unwrap();
    proof.model = open.id();
    assert!(matches!(Model::Key(open).verify_hiding(&proof), Err(Error::Rejected(_))));
    for proofs in [0, HIDING_PROOFS_MAX + 1] {
        assert!(matches!(Key::commit_hiding(&graph, proofs, &SECRET, &|| ()), Err(Error::Size(_))));
    }
    // Files: cut anywhere, with one commitment twice, and with more of them than there are.
    let bytes = hiding.to_bytes();
    for cut in (0..bytes.len()).step_by(3) {
        assert!(Key::from_bytes(&bytes[..cut]).is_err());
    }
    let mut twice = bytes.clone();
    twice.copy_within(12..44, 44);
    assert!(matches!(Key::from_bytes(&twice), Err(Error::Key(_))));
    let mut many = bytes;
    many[8..12].copy_from_slice(&(HIDING_PROOFS_MAX + 1).to_le_bytes());
    assert!(matches!(Key::from_bytes(&many), Err(Error::File(_))));
}

fn accepted(model: &Model, bytes: &[u8]) -> bool {
    HidingProof::from_bytes(bytes).is_ok_and(|proof| model.verify_hiding(&proof).is_ok())
}

/// A bit of bytes everywhere in the file; cuts; more bytes.
#[test]
fn bytes_count() {
    let (graph, mut next) = (perceptron(), numbers(11));
    let (inputs, key) = (inputs(&graph, 3, 5), hiding_key(&graph, 2));
    let weights = Hide::Weights(OneTime::new(SECRET, 1));
    let weights = prove_hiding(&graph, Some(&key), &inputs, weights, [6; 32], &mut |_| ()).unwrap();
    for (proof, model) in
        [(hidden(&graph, None, &inputs, 6), Model::Graph(graph)), (weights, Model::Key(key))]
    {
        let bytes = proof.to_bytes().unwrap();
        assert!(accepted(&model, &bytes) && Proof::from_bytes(&bytes).is_err());
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
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let model = Model::Graph(perceptron());
        prop_assert!(!accepted(&model, &noise));
        prop_assert!(!accepted(&model, &[&b"ASSAYZK3"[..], &model.id(), &noise].concat()));
    }
}
