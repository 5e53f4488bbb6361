//! Hostile provers of hidden inputs, and what a proof that hides them does not show.
#![allow(clippy::unwrap_used)]

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
use p3_field::{BasedVectorSpace as _, PrimeCharacteristicRing as _, PrimeField32 as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::circuit::Circuit;
use crate::field::{DEGREE, E, F, draw_point, int};
use crate::hiding::prover::{Block, finish};
use crate::hiding::{Plan, balances, blinds, settle, statement};
use crate::prove::Witness;
use crate::value::Hidden;
use crate::verify::Commitments;
use crate::{Error, HidingProof, Model, prove_hiding};

/// 3-4-2, with a square in between; the ranges of its inputs differ.
fn graph() -> Graph {
    let linear = |input: u32, rows: u32, columns: u32, seed: i32| Node::Linear {
        input: Tensor(input),
        rows,
        weights: (0..(rows * columns) as i32).map(|i| (i * seed) % 23 - 11).collect(),
        bias: (0..rows as i32).map(|i| i * seed % 17 - 8).collect(),
    };
    let relu = |input: u32| Node::Lookup { input: Tensor(input), shift: 3, table: 0 };
    let square = Node::Product { inputs: [Tensor(2); 2], groups: 4, rows: 1, columns: 1, inner: 1 };
    let nodes = vec![linear(0, 4, 3, 7), relu(1), square, relu(3), linear(4, 2, 4, 3)];
    let tables = vec![Table::clamp(-200, 200, 0, 31)];
    let ranges = vec![Range { low: -31, high: 31 }, Range { low: 0, high: 40 }, Range { low: -31, high: 31 }];
    Graph::new(ranges, tables, nodes, Tensor(5), Interface::plain(2)).unwrap()
}

const INPUTS: [i32; 6] = [5, 9, 31, 0, 1, 2];

fn seed(number: u8) -> [u8; 32] {
    [number; 32]
}

fn hidden(inputs: &[i32], number: u8) -> HidingProof {
    prove_hiding(&graph(), None, inputs, seed(number), &mut |_| ()).unwrap()
}

fn refused(proof: &HidingProof) {
    let error = Model::Graph(graph()).verify_hiding(proof).unwrap_err();
    assert!(matches!(error, Error::Rejected(_)), "{error}");
}

/// Proves whatever the change makes of an honest witness, its outputs and its pads.
fn forge(change: impl FnOnce(&mut Witness, &mut [i32], &mut Block, &Circuit<'_>, &Plan)) -> HidingProof {
    let graph = graph();
    let circuit = Circuit::hiding(&graph).unwrap();
    let plan = Plan::new(&circuit, 2, None).unwrap();
    let trace = graph.run(&INPUTS).unwrap();
    let mut witness = Witness::new(&circuit, plan.sizes, &trace);
    let mut outputs = trace.output().to_vec();
    let mut rng = StdRng::from_seed(seed(1));
    let mut block = Block::new(plan.log_pads, &mut rng);
    change(&mut witness, &mut outputs, &mut block, &circuit, &plan);
    finish(&circuit, &plan, 2, &outputs, witness, None, block, &mut rng, &mut |_| ()).unwrap()
}

#[test]
fn a_prover_that_lies_is_refused() {
    Model::Graph(graph()).verify_hiding(&forge(|_, _, _, _, _| ())).unwrap();
    // Outputs.
    for at in 0..4 {
        refused(&forge(|_, outputs, _, _, _| outputs[at] += 1));
    }
    // An input, a result, a remainder and a multiplicity, as others.
    for slot in [0, 1, 3, 8, 11, 14] {
        refused(&forge(|witness, _, _, _, plan| witness.committed[slot << plan.sizes.log_batch] += F::ONE));
    }
    refused(&forge(|witness, _, _, circuit, plan| {
        witness.committed[circuit.slots << plan.sizes.log_batch] += F::ONE;
    }));
    // The row of an input that claims another entry of its range.
    refused(&forge(|witness, _, _, circuit, plan| {
        let first = circuit.slots << plan.sizes.log_batch;
        let (old, new) = (witness.hits[0] as usize, circuit.ranges[0].1);
        witness.hits[0] = new as u32;
        witness.committed[first + old] -= F::ONE;
        witness.committed[first + new] += F::ONE;
    }));
    // An input of another input's range, in a row that claims that: 40 is in the second range and not in the first.
    refused(&forge(|witness, _, _, circuit, plan| {
        let first = circuit.slots << plan.sizes.log_batch;
        let (old, new) = (witness.hits[0] as usize, circuit.ranges[1].1 + 40);
        witness.hits[0] = new as u32;
        witness.committed[0] = int(40);
        witness.committed[first + old] -= F::ONE;
        witness.committed[first + new] += F::ONE;
    }));
    // Pads and blinds that were not committed to.
    for at in [0, 7, 40] {
        refused(&forge(|_, _, block, _, _| block.pads[at] += E::ONE));
        refused(&forge(|_, _, block, _, _| block.blinds[at] += E::ONE));
    }
}

#[test]
fn every_message_is_bound() {
    let proof = hidden(&INPUTS, 1);
    Model::Graph(graph()).verify_hiding(&proof).unwrap();
    for at in 0..proof.sent.len() {
        let mut other = proof.clone();
        other.sent[at] += E::ONE;
        refused(&other);
    }
    for at in (0..proof.blinded.len()).step_by(5) {
        let mut other = proof.clone();
        other.blinded[at] += E::ONE;
        refused(&other);
    }
    for at in 0..2 {
        let mut other = proof.clone();
        other.sums[at] += E::ONE;
        refused(&other);
    }
    for at in 0..proof.opening.evals.len() {
        let mut other = proof.clone();
        other.opening.evals[at] += E::ONE;
        refused(&other);
    }
    for byte in 0..32 {
        let mut other = proof.clone();
        other.root[byte] ^= 0x10;
        refused(&other);
    }
    for at in 0..proof.outputs.len() {
        let mut other = proof.clone();
        other.outputs[at] -= 1;
        refused(&other);
    }
    let mut other = proof.clone();
    other.outputs.rotate_left(2);
    refused(&other);
    // More, fewer and no examples; shorter and longer lists.
    for examples in [0, 1, 3, 1 << 20] {
        let other = HidingProof { examples, ..proof.clone() };
        assert!(Model::Graph(graph()).verify_hiding(&other).is_err());
    }
    let mut other = proof.clone();
    other.sent.pop();
    refused(&other);
    let mut other = proof.clone();
    other.blinded.push(E::ZERO);
    refused(&other);
    for len in [0, 1, 2, 11, 13] {
        let mut other = proof.clone();
        other.opening.evals.resize(len, E::ZERO);
        refused(&other);
    }
    // The opening of another proof.
    let mut other = proof.clone();
    other.opening = hidden(&INPUTS, 2).opening;
    refused(&other);
    let other = HidingProof { model: [0; 32], ..proof };
    assert!(matches!(Model::Graph(graph()).verify_hiding(&other), Err(Error::Model { .. })));
}

/// All elements of the extension that a proof shows.
fn shown(proof: &HidingProof) -> Vec<E> {
    [&proof.sent[..], &proof.sums, &proof.blinded, &proof.opening.evals].concat()
}

/// Nothing that is shown is what it hides, or is shown twice.
#[test]
fn every_proof_shows_something_else() {
    let (a, b) = (hidden(&INPUTS, 1), hidden(&INPUTS, 2));
    assert!(shown(&a).iter().zip(shown(&b)).all(|(a, b)| *a != b));
    assert!(a.root.iter().zip(b.root).filter(|(a, b)| *a == b).count() < 8);
    // The messages, from pads that only the prover knows: none of them was sent.
    let graph = graph();
    let circuit = Circuit::hiding(&graph).unwrap();
    let plan = Plan::new(&circuit, 2, None).unwrap();
    let block = Block::new(plan.log_pads, &mut StdRng::from_seed(seed(1)));
    let open: Vec<E> = a.sent.iter().zip(&block.pads).map(|(sent, pad)| *sent - *pad).collect();
    assert_eq!(open[0] * open[3] + open[1] * open[2], E::ZERO, "these are messages");
    assert!(open.iter().all(|message| !shown(&a).contains(message)));
    // The committed vector at the point of the opening, without what was put in to hide it.
    let trace = graph.run(&INPUTS).unwrap();
    let witness = Witness::new(&circuit, plan.sizes, &trace);
    assert!(witness.committed[plan.filler..].iter().all(|value| *value == F::ZERO));
    assert!(witness.committed[plan.filler - 1 - 255..].len() > 1 << (plan.log_pads + 4));
}

/// Inputs that give the same outputs: what is shown of either is spread evenly over the field.
#[test]
fn what_is_shown_does_not_depend_on_the_inputs() {
    // Rows whose values after the first look-up are all zero.
    let (a, b) = ([-31, 0, -31], [-30, 1, -31]);
    let graph = graph();
    let outputs = |inputs: &[i32]| graph.run(inputs).unwrap().output().to_vec();
    assert_eq!(outputs(&a), outputs(&b));
    for inputs in [a, b] {
        let mut counts = [0f64; 16];
        for number in 0..8 {
            for element in shown(&hidden(&inputs, number)) {
                let coordinates: &[F] = element.as_basis_coefficients_slice();
                for coordinate in coordinates {
                    counts[(u64::from(coordinate.as_canonical_u32()) * 16 / u64::from(F::ORDER_U32))
                        as usize] += 1.0;
                }
            }
        }
        let expected = counts.iter().sum::<f64>() / 16.0;
        let chi_square: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
        // 15 degrees of freedom: above 50 once in 80,000 times.
        assert!(expected > 1000.0 && chi_square < 50.0, "{counts:?}");
    }
}

/// The simulator of docs/proof.md: without any inputs, a transcript that passes every check before the opening of the commitment, when
/// one challenge is known beforehand.
#[test]
fn a_transcript_is_made_without_inputs() {
    let graph = graph();
    let circuit = Circuit::hiding(&graph).unwrap();
    let plan = Plan::new(&circuit, 1, None).unwrap();
    let outputs = graph.run(&[1, 2, 3]).unwrap().output().to_vec();
    let mut rng = StdRng::from_seed(seed(9));
    let mut random = || -> E { rng.random() };
    let sent: Vec<E> = (0..plan.messages).map(|_| random()).collect();
    let blinded: Vec<E> = (0..1 << plan.log_pads).map(|_| random()).collect();
    let values = [random(), random()];
    let (gamma, high) = (random(), random());
    let messages: Vec<Hidden> =
        sent.iter().zip(&blinded).map(|(sent, v)| Hidden { sent: *sent, masked: [-*v, *sent] }).collect();
    let commitments = Commitments { key: None, root: &[7; 32] };
    let mut challenger = statement(&graph.id(), 1, &outputs);
    let settled =
        settle(&circuit, &plan, &commitments, None, &messages, &outputs, |_| values, &mut challenger)
            .unwrap();
    let pad = blinded[plan.messages];
    let [zero, one, two] = settled.sums;
    let low = zero + gamma * (one + gamma * two) + pad - gamma * high;
    assert!(balances(settled.sums, [low, high], pad, gamma));
    // Another challenge would not do.
    assert!(!balances(settled.sums, [low, high], pad, gamma + E::ONE));
    // The pads at a point are free, and give the blinds.
    let at = draw_point(&mut challenger, plan.log_pads);
    let pads = [(); DEGREE].map(|()| random());
    let found = blinds(&blinded, gamma, &pads, &at);
    let joined = |list: &[E; DEGREE]| -> E {
        list.iter()
            .enumerate()
            .map(|(i, x)| *x * E::from_basis_coefficients_fn(|j| F::from_bool(i == j)))
            .sum()
    };
    let expected: E = blinded.iter().zip(crate::field::eq_table(&at)).map(|(x, eq)| *x * eq).sum();
    assert_eq!(joined(&found) + gamma * joined(&pads), expected);
}
