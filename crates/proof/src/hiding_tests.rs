//! Hostile provers of hidden inputs, and what a proof that hides them does not show.
#![allow(clippy::unwrap_used)]

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
use p3_field::{BasedVectorSpace as _, Field as _, PrimeCharacteristicRing as _, PrimeField32 as _};
use p3_multilinear_util::point::Point;
use p3_multilinear_util::poly::Poly;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::circuit::Circuit;
use crate::field::{DEGREE, E, F, draw_point, eq_table, int};
use crate::hiding::prover::{Block, finish};
use crate::hiding::{FILLER, Plan, balances, blinds, settle, statement};
use crate::key::prover::{own, secret, shared};
use crate::key::{WeightsCommitment, WeightsOpening, common_point, hiding_points};
use crate::prove::Witness;
use crate::value::Hidden;
use crate::verify::Commitments;
use crate::{Error, Hide, HidingProof, Key, Model, OneTime, hiding_commitment, prove_hiding};

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
    prove_hiding(&graph(), None, inputs, Hide::Inputs, seed(number), &mut |_| ()).unwrap()
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
    finish(&circuit, &plan, 2, [&INPUTS, &outputs], witness, None, block, &mut rng, &mut |_| ()).unwrap()
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

/// Holds coordinates of elements to the uniform distribution.
fn is_spread(elements: &[E]) {
    let mut counts = [0f64; 16];
    for coordinate in elements.iter().flat_map(|element| element.as_basis_coefficients_slice()) {
        let coordinate: &F = coordinate;
        counts[(u64::from(coordinate.as_canonical_u32()) * 16 / u64::from(F::ORDER_U32)) as usize] += 1.0;
    }
    let expected = counts.iter().sum::<f64>() / 16.0;
    let chi_square: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
    // 15 degrees of freedom: above 50 once in 80,000 times.
    assert!(expected > 1000.0 && chi_square < 50.0, "{counts:?}");
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
        is_spread(&(0..8).flat_map(|number| shown(&hidden(&inputs, number))).collect::<Vec<_>>());
    }
}

/// 4-4-4-2. Weights and biases of the first layer are in this order, and public is the same of all orders.
fn private(weights: usize, biases: usize) -> Graph {
    let linear = |input: u32, rows: u32, weights: usize, biases: usize| Node::Linear {
        input: Tensor(input),
        rows,
        weights: (0..rows as usize * 4).map(|i| [7, -3, 5, -11][(i + i / 4 * weights) % 4]).collect(),
        bias: (0..rows as usize).map(|i| [3, -8, 6, 1][(i + biases) % 4]).collect(),
    };
    let relu = |input: u32| Node::Lookup { input: Tensor(input), shift: 3, table: 0 };
    let nodes = vec![linear(0, 4, weights, biases), relu(1), linear(2, 4, 1, 0), relu(3), linear(4, 2, 1, 2)];
    let tables = vec![Table::clamp(-200, 200, 0, 31)];
    Graph::new(vec![Range { low: -31, high: 31 }; 4], tables, nodes, Tensor(5), Interface::plain(2)).unwrap()
}

fn private_key(graph: &Graph, number: u8) -> Key {
    Key::commit_hiding(graph, 8, &seed(number), &|| ()).unwrap()
}

fn hidden_weights(graph: &Graph, key: &Key, inputs: &[i32], number: u8, once: u32) -> HidingProof {
    let hide = Hide::Weights(OneTime::new(seed(number), once));
    prove_hiding(graph, Some(key), inputs, hide, seed(0x80 | number << 4 | once as u8), &mut |_| ()).unwrap()
}

/// The opening of its weights.
fn opened(proof: &mut HidingProof) -> &mut hiding_commitment::Opening {
    match proof.weights.as_mut().unwrap() {
        WeightsOpening::Hiding(_, opening) => opening,
        WeightsOpening::Open(_) => unreachable!(),
    }
}

/// The format of proofs that hide is for those that do.
#[test]
fn a_proof_that_hides_nothing_is_refused() {
    let graph = graph();
    let circuit = Circuit::new(&graph);
    let plan = Plan::new(&circuit, 2, None).unwrap();
    let trace = graph.run(&INPUTS).unwrap();
    let witness = Witness::new(&circuit, plan.sizes, &trace);
    let mut rng = StdRng::from_seed(seed(1));
    let block = Block::new(plan.log_pads, &mut rng);
    let shown = [&INPUTS[..], trace.output()];
    let proof = finish(&circuit, &plan, 2, shown, witness, None, block, &mut rng, &mut |_| ()).unwrap();
    let error = Model::Graph(graph).verify_hiding(&proof).unwrap_err().to_string();
    assert!(error.contains("hides nothing"), "{error}");
}

#[test]
fn the_opening_of_hidden_weights_is_bound() {
    let graph = private(1, 0);
    let key = private_key(&graph, 1);
    let inputs = [5, -9, 31, 0];
    let proof = hidden_weights(&graph, &key, &inputs, 1, 4);
    let model = Model::Key(key.clone());
    model.verify_hiding(&proof).unwrap();
    let refused = |model: &Model, change: &dyn Fn(&mut HidingProof)| {
        let mut other = proof.clone();
        change(&mut other);
        let error = model.verify_hiding(&other).unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error}");
    };
    for at in 0..3 {
        refused(&model, &|proof| opened(proof).evals[at] += E::ONE);
    }
    for len in [0, 2, 4] {
        refused(&model, &|proof| opened(proof).evals.resize(len, E::ZERO));
    }
    for other in [0, 3, 5, 8, u32::MAX] {
        refused(&model, &|proof| {
            let WeightsOpening::Hiding(number, _) = proof.weights.as_mut().unwrap() else { unreachable!() };
            *number = other;
        });
    }
    let donor = hidden_weights(&graph, &key, &inputs, 1, 5).weights;
    refused(&model, &|proof| proof.weights.clone_from(&donor));
    for at in 0..proof.sent.len() {
        refused(&model, &|proof| proof.sent[at] += E::ONE);
    }
    // A key of the same name that says another value.
    let mut forged = key;
    let WeightsCommitment::Hiding { value, .. } = &mut forged.weights else { unreachable!() };
    *value += E::ONE;
    refused(&Model::Key(forged), &|_| ());
}

/// A key to several models, whose maker would choose between them when the inputs are known.
#[test]
fn all_commitments_of_a_key_are_to_the_same_weights() {
    let inputs = [5, -9, 31, 0];
    let graph = private(1, 0);
    // Weights in another order, and another bias.
    for other in [private(3, 0), private(1, 1)] {
        let (mut mixed, donor) = (private_key(&graph, 1), private_key(&other, 2));
        let roots = |key: &Key| match &key.weights {
            WeightsCommitment::Hiding { roots, .. } => roots.clone(),
            WeightsCommitment::Open(_) => unreachable!(),
        };
        let mut all = roots(&mixed);
        all[5] = roots(&donor)[5];
        let mut saying = |graph: &Graph, number: u8| {
            let point = common_point(&all, mixed.graph(), &mixed.layout).unwrap();
            let shared = shared(&mixed.layout, graph, &secret(graph, 8, &seed(number)));
            let value = Poly::new(shared).eval_base(&Point::new(point.clone()));
            mixed.weights = WeightsCommitment::Hiding { roots: all.clone(), value, point };
            mixed.clone()
        };
        let (key, false_key) = (saying(&graph, 1), saying(&other, 2));
        let model = Model::Key(key.clone());
        model.verify_hiding(&hidden_weights(&graph, &key, &inputs, 1, 4)).unwrap();
        // The prover believes in a key of the same name that says the value of the other weights.
        assert_eq!(key.id(), false_key.id());
        let proof = hidden_weights(&other, &false_key, &inputs, 2, 5);
        Model::Key(false_key).verify_hiding(&proof).unwrap();
        let error = model.verify_hiding(&proof).unwrap_err().to_string();
        assert!(error.contains("other commitments"), "{error}");
    }
}

/// The rank of a matrix over the base field, given as rows.
fn rank(mut rows: Vec<Vec<F>>) -> usize {
    let (mut rank, columns) = (0, rows[0].len());
    for column in 0..columns {
        let Some(pivot) = (rank..rows.len()).find(|row| rows[*row][column] != F::ZERO) else { continue };
        rows.swap(rank, pivot);
        let (head, tail) = rows.split_at_mut(rank + 1);
        let inverse = head[rank][column].inverse();
        for row in tail {
            let factor = row[column] * inverse;
            row.iter_mut().zip(&head[rank]).for_each(|(a, b)| *a -= factor * *b);
        }
        rank += 1;
    }
    rank
}

/// The coordinates of what each place of a part of the vector adds at a point.
fn shares(point: &[E], part: std::ops::Range<usize>) -> Vec<Vec<F>> {
    let table = &eq_table(point)[part];
    let coordinate = |at: usize| table.iter().map(|eq| eq.as_basis_coefficients_slice()[at]).collect();
    (0..DEGREE).map(coordinate).collect()
}

/// What is random makes the values that a proof shows of the weights uniform: linear functions of it that take all values.
#[test]
fn the_random_elements_hide_the_values_that_are_shown() {
    let graph = private(1, 0);
    let key = private_key(&graph, 1);
    let layout = &key.layout;
    let len = 1 << layout.log;
    let first = layout.used.next_multiple_of(FILLER);
    let (all, own_part) = (first..first + FILLER, len - FILLER..len);
    assert!(all.end <= own_part.start);
    let WeightsCommitment::Hiding { point, .. } = &key.weights else { unreachable!() };
    let mut rng = StdRng::from_seed(seed(3));
    for _ in 0..4 {
        let end: Vec<E> = (0..layout.log).map(|_| rng.random()).collect();
        let [opened, whole, end_part] = hiding_points(&end, point);
        // The value of the weights and that of the commitment's own part, both at once.
        let both = [shares(&opened, own_part.clone()), shares(&end_part, own_part.clone())].concat();
        assert_eq!(rank(both.clone()), 2 * DEGREE);
        // Eight elements of it would not do.
        assert!(rank(both.into_iter().map(|row| row[..8].to_vec()).collect()) < 2 * DEGREE);
        // The value that all commitments share is one of the shared part, and of no other random elements.
        assert_eq!(rank(shares(&whole, all.clone())), DEGREE);
        assert!(eq_table(&end_part)[..own_part.start].iter().all(|eq| *eq == E::ZERO));
        let ends = eq_table(&end_part)[own_part.clone()].to_vec();
        let factor: E = point[..layout.log - 8].iter().copied().product();
        assert!(
            eq_table(&whole)[own_part.clone()].iter().zip(ends).all(|(whole, end)| *whole == factor * end)
        );
    }
    // They are random, and where they should be.
    let secrets = [secret(&graph, 8, &seed(1)), secret(&graph, 7, &seed(1)), secret(&graph, 8, &seed(2))];
    let [base, other_size, other_seed] = secrets.map(|secret| shared(layout, &graph, &secret));
    let [zero, one] = [0, 1].map(|number| own(base.clone(), &secrets[0], number).0);
    let differ = |a: &[F], b: &[F], part: std::ops::Range<usize>| {
        (0..len).all(|at| (a[at] != b[at]) == part.contains(&at))
    };
    assert!(differ(&base, &layout.vector(&graph), all.clone()));
    assert!(differ(&base, &other_size, all.clone()) && differ(&base, &other_seed, all));
    assert!(differ(&zero, &base, own_part.clone()) && differ(&zero, &one, own_part));
    let other = shared(layout, &private(3, 0), &secret(&private(3, 0), 8, &seed(1)));
    assert!(base[first..first + FILLER].iter().zip(&other[first..]).all(|(a, b)| a != b));
}

/// Two models that give the same outputs for inputs that the first layer does not see: what is shown of either is spread evenly over the field, and
/// nothing is shown twice. That the values of the weights are uniform, the test before shows.
#[test]
fn what_is_shown_does_not_depend_on_the_weights() {
    let inputs = [0; 4];
    let outputs = |graph: &Graph| graph.run(&inputs).unwrap().output().to_vec();
    assert_eq!(outputs(&private(1, 0)), outputs(&private(3, 0)));
    for order in [1, 3] {
        let graph = private(order, 0);
        let mut all = Vec::new();
        for number in 1..3 {
            let key = private_key(&graph, number);
            for once in 0..8 {
                let mut proof = hidden_weights(&graph, &key, &inputs, number, once);
                all.extend(shown(&proof));
                all.extend_from_slice(&opened(&mut proof).evals);
            }
        }
        is_spread(&all);
        let different: std::collections::HashSet<&[F]> =
            all.iter().map(|element| element.as_basis_coefficients_slice()).collect();
        assert_eq!(different.len(), all.len(), "an element is shown twice");
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
    let mut challenger = statement(&graph.id(), 1, None, &outputs);
    let settled =
        settle(&circuit, &plan, &commitments, None, &messages, [&[], &outputs], |_| values, &mut challenger)
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
