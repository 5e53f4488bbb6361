//! Hostile provers: everything that one can send, or commit to, instead of the truth. Each case must be refused, and most
//! name the check that refuses it.
#![allow(clippy::unwrap_used)]

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor, Window};
use p3_field::{Field as _, PrimeCharacteristicRing as _};

use crate::circuit::{Circuit, Sizes};
use crate::field::{E, F, int};
use crate::key::{WeightsCommitment, WeightsOpening};
use crate::products::ProductsProof;
use crate::products::prover::Values;
use crate::prove::{Witness, finish};
use crate::{Error, Key, Proof, prove, prove_with_key, verify, verify_with_key};

/// A perceptron 3-4-4-2 whose layers have equal shapes, shifts and tables, so that swapping them is not caught by sizes.
fn graph() -> Graph {
    let linear = |input: u32, rows: u32, columns: u32, seed: i32| Node::Linear {
        input: Tensor(input),
        rows,
        weights: (0..(rows * columns) as i32).map(|i| (i * seed) % 23 - 11).collect(),
        bias: (0..rows as i32).map(|i| i * seed % 17 - 8).collect(),
    };
    let relu = |input: u32| Node::Lookup { input: Tensor(input), shift: 3, table: 0 };
    let nodes = vec![linear(0, 4, 3, 7), relu(1), linear(2, 4, 4, 5), relu(3), linear(4, 2, 4, 3)];
    let tables = vec![Table::clamp(-200, 200, 0, 31)];
    Graph::new(vec![Range { low: -31, high: 31 }; 3], tables, nodes, Tensor(5), Interface::plain(2)).unwrap()
}

const INPUTS: [i32; 12] = [5, -9, 31, 0, 1, 2, -31, 30, 7, 11, 12, -13];

/// Proves whatever the change makes of an honest witness and its outputs, following the protocol in everything else.
fn forge(
    graph: &Graph,
    inputs: &[i32],
    change: impl FnOnce(&mut Witness, &mut [i32], &Circuit<'_>, Sizes),
) -> Proof {
    let circuit = Circuit::new(graph);
    let sizes = circuit.sizes(inputs.len() / graph.inputs().len()).unwrap();
    let trace = graph.run(inputs).unwrap();
    let mut witness = Witness::new(&circuit, sizes, &trace);
    let mut outputs = trace.output().to_vec();
    change(&mut witness, &mut outputs, &circuit, sizes);
    finish(&circuit, sizes, inputs, &outputs, witness, None, &mut |_| ()).unwrap()
}

fn refused(graph: &Graph, proof: &Proof) {
    let error = verify(graph, proof).unwrap_err();
    assert!(matches!(error, Error::Rejected(_)), "{error}");
}

/// Where a slot of an example lies.
fn slot(sizes: Sizes, slot: usize, example: usize) -> usize {
    (slot << sizes.log_batch) + example
}

#[test]
fn forging_nothing_is_accepted() {
    let graph = graph();
    verify(&graph, &forge(&graph, &INPUTS, |_, _, _, _| ())).unwrap();
}

#[test]
fn another_output_is_refused() {
    let graph = graph();
    for at in 0..8 {
        refused(&graph, &forge(&graph, &INPUTS, |_, outputs, _, _| outputs[at] += 1));
    }
    // Equal in the field, but not in the integers: outputs are held to the range that the graph can reach.
    let modulus = 2_130_706_433i64;
    refused(
        &graph,
        &forge(&graph, &INPUTS, |_, outputs, _, _| {
            outputs[0] = i32::try_from(i64::from(outputs[0]) - modulus).unwrap();
        }),
    );
}

#[test]
fn another_result_of_a_look_up_is_refused() {
    let graph = graph();
    // A value that is in the table, but not of this key; with and without telling the multiplicities.
    for node in 0..2 {
        refused(
            &graph,
            &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
                witness.committed[slot(sizes, circuit.lookups[node].results.0, 1)] += F::ONE;
            }),
        );
    }
    // The entry with the false value's key, as a prover would have to claim it.
    refused(
        &graph,
        &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
            let lookup = &circuit.lookups[0];
            let (row, first) = (lookup.results.1 << sizes.log_batch, circuit.slots << sizes.log_batch);
            let (old, new) = (witness.hits[row] as usize, lookup.entries.0 + 205);
            witness.hits[row] = new as u32;
            witness.committed[first + old] -= F::ONE;
            witness.committed[first + new] += F::ONE;
            witness.committed[slot(sizes, lookup.results.0, 0)] = int(circuit.entries[new].value);
        }),
    );
}

#[test]
fn a_value_of_another_table_is_refused() {
    let graph = graph();
    // A remainder of 7 is in the range 0..8; as the result of a look-up with key 7 it would be in the other table.
    refused(
        &graph,
        &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
            let lookup = &circuit.lookups[0];
            let (row, first) = (lookup.results.1 << sizes.log_batch, circuit.slots << sizes.log_batch);
            let (old, new) = (witness.hits[row] as usize, lookup.range_entries);
            witness.hits[row] = new as u32;
            witness.committed[first + old] -= F::ONE;
            witness.committed[first + new] += F::ONE;
        }),
    );
}

/// A remainder outside its range makes the key another, which the look-up of the result would follow.
#[test]
fn a_remainder_out_of_range_is_refused() {
    let graph = graph();
    for by in [8, -8, 1] {
        refused(
            &graph,
            &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
                let lookup = &circuit.lookups[0];
                let (results, remainders) = (lookup.results, lookup.remainders.unwrap());
                let first = circuit.slots << sizes.log_batch;
                // x + half = 8 key + r = 8 (key - 1) + (r + 8): tell the look-up of the result what it wants to hear.
                witness.committed[slot(sizes, remainders.0, 0)] += int(by);
                let row = results.1 << sizes.log_batch;
                let old = witness.hits[row] as usize;
                let new = (old as i32 - by.signum()) as usize;
                witness.hits[row] = new as u32;
                witness.committed[first + old] -= F::ONE;
                witness.committed[first + new] += F::ONE;
                witness.committed[slot(sizes, results.0, 0)] = int(circuit.entries[new].value);
            }),
        );
    }
}

/// x + half = 8 key + r holds in the field for a key that is the inverse of 8 off; no table has such a key.
#[test]
fn values_that_wrap_in_the_field_are_refused() {
    let graph = graph();
    refused(
        &graph,
        &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
            let remainders = circuit.lookups[0].remainders.unwrap();
            let at = slot(sizes, remainders.0, 0);
            // One more or less: still a remainder in range, so that the key becomes a fraction.
            let more = if witness.committed[at] == F::ZERO { F::ONE } else { -F::ONE };
            let first = circuit.slots << sizes.log_batch;
            let row = remainders.1 << sizes.log_batch;
            let old = witness.hits[row] as usize;
            let new = if more == F::ONE { old + 1 } else { old - 1 };
            witness.committed[at] += more;
            witness.hits[row] = new as u32;
            witness.committed[first + old] -= F::ONE;
            witness.committed[first + new] += F::ONE;
        }),
    );
}

#[test]
fn every_wrong_multiplicity_is_refused() {
    let graph = graph();
    let circuit = Circuit::new(&graph);
    for entry in (0..circuit.entries.len()).step_by(7).chain([circuit.entries.len() - 1]) {
        for by in [F::ONE, -F::ONE] {
            refused(
                &graph,
                &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
                    witness.committed[(circuit.slots << sizes.log_batch) + entry] += by;
                }),
            );
        }
    }
}

#[test]
fn layers_and_examples_swapped_are_refused() {
    let graph = graph();
    refused(
        &graph,
        &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
            let (a, b) = (circuit.lookups[0].results.0, circuit.lookups[1].results.0);
            for i in 0..circuit.lookups[0].width << sizes.log_batch {
                witness.committed.swap(slot(sizes, a, i), slot(sizes, b, i));
            }
        }),
    );
    // The whole of two examples: rows and tables still agree, only inputs and outputs tell.
    refused(
        &graph,
        &forge(&graph, &INPUTS, |witness, _, circuit, sizes| {
            for i in 0..circuit.slots {
                witness.committed.swap(slot(sizes, i, 0), slot(sizes, i, 1));
            }
            for row in 0..circuit.rows {
                witness.hits.swap(row << sizes.log_batch, (row << sizes.log_batch) + 1);
            }
        }),
    );
    // With the outputs swapped too, the inputs tell.
    refused(
        &graph,
        &forge(&graph, &INPUTS, |witness, outputs, circuit, sizes| {
            for i in 0..circuit.slots {
                witness.committed.swap(slot(sizes, i, 0), slot(sizes, i, 1));
            }
            for row in 0..circuit.rows {
                witness.hits.swap(row << sizes.log_batch, (row << sizes.log_batch) + 1);
            }
            outputs.swap(0, 2);
            outputs.swap(1, 3);
        }),
    );
}

#[test]
fn what_fills_up_the_vector_does_not_matter_but_is_bound() {
    // Nothing reads the zeros behind the multiplicities, so a prover may put anything there: it is still a true proof.
    let graph = graph();
    let proof = forge(&graph, &INPUTS, |witness, _, _, _| *witness.committed.last_mut().unwrap() = F::TWO);
    verify(&graph, &proof).unwrap();
}

/// Another statement under an honest proof.
#[test]
fn every_part_of_the_statement_is_bound() {
    let graph = graph();
    let proof = prove(&graph, &INPUTS).unwrap();
    verify(&graph, &proof).unwrap();
    for at in 0..INPUTS.len() {
        let mut other = proof.clone();
        other.inputs[at] = -other.inputs[at] + i32::from(other.inputs[at] == 0);
        refused(&graph, &other);
    }
    for at in 0..proof.outputs.len() {
        let mut other = proof.clone();
        other.outputs[at] -= 1;
        refused(&graph, &other);
    }
    let swap = |list: &mut Vec<i32>, width: usize| (0..width).for_each(|i| list.swap(i, width + i));
    let mut other = proof.clone();
    swap(&mut other.inputs, 3);
    swap(&mut other.outputs, 2);
    refused(&graph, &other);
    // Fewer and more examples.
    let mut other = proof.clone();
    other.inputs.truncate(9);
    other.outputs.truncate(6);
    refused(&graph, &other);
    let mut other = proof.clone();
    other.inputs.extend([0; 3]);
    other.outputs.extend([0; 2]);
    refused(&graph, &other);
    // An input outside its range.
    let mut other = proof.clone();
    other.inputs[0] = 32;
    assert!(matches!(verify(&graph, &other), Err(Error::Graph(_))));
    // Another model, named or not.
    let mut nodes = graph.nodes().to_vec();
    if let Node::Linear { weights, .. } = &mut nodes[4] {
        weights[3] += 1;
    }
    let inputs = graph.inputs().to_vec();
    let other_graph =
        Graph::new(inputs, graph.tables().to_vec(), nodes, Tensor(5), Interface::plain(2)).unwrap();
    assert!(matches!(verify(&other_graph, &proof), Err(Error::Model { .. })));
    let mut other = proof.clone();
    other.model = other_graph.id();
    assert!(matches!(verify(&graph, &other), Err(Error::Model { .. })));
    refused(&other_graph, &other);
}

/// Every number of every message of the sum-checks, and every byte of the commitment.
#[test]
fn every_message_is_bound() {
    let graph = graph();
    let proof = prove(&graph, &INPUTS).unwrap();
    for level in 0..proof.levels.len() {
        for end in 0..4 {
            let mut other = proof.clone();
            other.levels[level].ends[end] += E::ONE;
            refused(&graph, &other);
        }
        for round in 0..proof.levels[level].rounds.len() {
            for part in 0..2 {
                let mut other = proof.clone();
                other.levels[level].rounds[round][part] += E::ONE;
                refused(&graph, &other);
            }
        }
    }
    for round in 0..proof.rounds.len() {
        for part in 0..2 {
            let mut other = proof.clone();
            other.rounds[round][part] += E::ONE;
            refused(&graph, &other);
        }
    }
    for byte in 0..32 {
        let mut other = proof.clone();
        other.root[byte] ^= 0x10;
        refused(&graph, &other);
    }
}

/// Two tokens of two values and their attention: scores, a look-up, weighted sums, a look-up, squares.
fn attention() -> Graph {
    let product = |a: u32, b: u32, groups: u32, [rows, columns, inner]: [u32; 3]| Node::Product {
        inputs: [Tensor(a), Tensor(b)],
        groups,
        rows,
        columns,
        inner,
    };
    let lookup = |input: u32, shift: u32| Node::Lookup { input: Tensor(input), shift, table: 0 };
    let nodes = vec![
        lookup(0, 0),
        product(1, 0, 1, [2, 2, 2]),
        lookup(2, 3),
        Node::Gather { inputs: vec![Tensor(1)], index: vec![0, 2, 1, 3] },
        product(3, 4, 1, [2, 2, 2]),
        lookup(5, 2),
        product(6, 6, 4, [1, 1, 1]),
    ];
    let tables = vec![Table::clamp(-200, 200, -7, 25)];
    Graph::new(vec![Range { low: -9, high: 9 }; 4], tables, nodes, Tensor(7), Interface::plain(4)).unwrap()
}

const TOKENS: [i32; 8] = [5, -9, 3, 0, 1, 2, -3, 8];

/// Puts another key into a look-up, and its value and remainder where they belong; returns the change of the value.
fn move_key(witness: &mut Witness, circuit: &Circuit<'_>, sizes: Sizes, number: usize, by: i32) -> F {
    let lookup = &circuit.lookups[number];
    let (row, first) = (lookup.results.1 << sizes.log_batch, circuit.slots << sizes.log_batch);
    let old = witness.hits[row] as usize;
    let new = (old as i32 + by) as usize;
    witness.hits[row] = new as u32;
    witness.committed[first + old] -= F::ONE;
    witness.committed[first + new] += F::ONE;
    let at = slot(sizes, lookup.results.0, 0);
    let before = std::mem::replace(&mut witness.committed[at], int(circuit.entries[new].value));
    witness.committed[at] - before
}

/// A false result of a product with everything behind it in agreement: the look-up of the result, and the output.
#[test]
fn a_false_product_is_refused() {
    let graph = attention();
    verify(&graph, &forge(&graph, &TOKENS, |_, _, _, _| ())).unwrap();
    for honest_about_the_sum in [false, true] {
        refused(
            &graph,
            &forge(&graph, &TOKENS, |witness, outputs, circuit, sizes| {
                // One key further is 4 more in what is looked up.
                let change = move_key(witness, circuit, sizes, 2, 1);
                assert_eq!(change, F::ONE);
                let (y, out) = (witness.products[2].operands[0][0] + 1, &mut outputs[0]);
                *out = y * y;
                for operand in &mut witness.products[2].operands {
                    operand[0] = y;
                }
                witness.products[2].results[0] = y * y;
                if !honest_about_the_sum {
                    witness.products[1].results[0] += 4;
                }
            }),
        );
    }
    // The product of other operands than those committed to, true as a product.
    for side in 0..2 {
        refused(
            &graph,
            &forge(&graph, &TOKENS, |witness, outputs, circuit, sizes| {
                let change = move_key(witness, circuit, sizes, 2, 1);
                assert_eq!(change, F::ONE);
                let squares = &mut witness.products[2];
                squares.operands[side][0] += 1;
                squares.results[0] = squares.operands[0][0] * squares.operands[1][0];
                outputs[0] = squares.results[0];
            }),
        );
    }
    // An output that is a product, false on its own, with and without the messages that say so.
    for known in [false, true] {
        refused(
            &graph,
            &forge(&graph, &TOKENS, |witness, outputs, _, _| {
                outputs[1] += 1;
                witness.products[2].results[1] += i32::from(known);
            }),
        );
    }
    // Two examples and two products swapped.
    refused(
        &graph,
        &forge(&graph, &TOKENS, |witness, _, _, _| {
            let Values { results, operands } = &mut witness.products[0];
            [results].into_iter().chain(operands).for_each(|list| list.rotate_left(4));
        }),
    );
    refused(&graph, &forge(&graph, &TOKENS, |witness, _, _, _| witness.products.swap(0, 1)));
}

#[test]
fn every_message_about_products_is_bound() {
    let graph = attention();
    let proof = prove(&graph, &TOKENS).unwrap();
    verify(&graph, &proof).unwrap();
    let honest = proof.products.clone().unwrap();
    let change = |change: &dyn Fn(&mut ProductsProof)| {
        let mut other = proof.clone();
        change(other.products.as_mut().unwrap());
        assert!(other.products != proof.products);
        refused(&graph, &other);
    };
    change(&|p| p.value += E::ONE);
    change(&|p| p.result += E::ONE);
    change(&|p| p.operands[0] += E::ONE);
    change(&|p| p.operands[1] += E::ONE);
    change(&|p| p.operands.swap(0, 1));
    // The same product of other factors.
    change(&|p| p.operands = [p.operands[0] * E::TWO, p.operands[1] * E::TWO.inverse()]);
    change(&|p| p.operands = [p.operands[0] * p.operands[1], E::ONE]);
    for round in 0..honest.rounds.len() {
        (0..2).for_each(|part| change(&|p| p.rounds[round][part] += E::ONE));
    }
    for round in 0..honest.operand_rounds.len() {
        (0..3).for_each(|part| change(&|p| p.operand_rounds[round][part] += E::ONE));
    }
    change(&|p| p.rounds.swap(0, 1));
    change(&|p| _ = p.rounds.pop());
    change(&|p| p.rounds.push([E::ZERO; 2]));
    change(&|p| p.operand_rounds.swap(0, 1));
    change(&|p| _ = p.operand_rounds.pop());
    change(&|p| p.operand_rounds.push([E::ZERO; 3]));
    change(&|p| p.clone_from(prove(&graph, &[1; 8]).unwrap().products.as_ref().unwrap()));
    let mut other = proof.clone();
    other.products = None;
    refused(&graph, &other);
    // Products where there are none.
    let without = self::graph();
    let mut other = prove(&without, &INPUTS).unwrap();
    other.products = Some(honest);
    refused(&without, &other);
}

/// Three tokens of two values, with maps that all share: two behind each other with a look-up between them, and one that is proved as a linear map
/// since it follows the second without one.
fn tokens() -> Graph {
    let map = |input: u32, channels: u32, filters: u32, seed: i32| Node::Conv {
        input: Tensor(input),
        window: Window::pointwise(channels, filters, [1, 3]),
        weights: (0..(channels * filters) as i32).map(|i| (i * seed) % 13 - 6).collect(),
        bias: (0..filters as i32).map(|i| 5 - 3 * i).collect(),
    };
    let round = |input: u32| Node::Lookup { input: Tensor(input), shift: 2, table: 0 };
    let nodes = vec![map(0, 2, 3, 5), round(1), map(2, 3, 4, 7), map(3, 4, 2, 3)];
    let tables = vec![Table::clamp(-40, 40, -9, 30)];
    Graph::new(vec![Range { low: -9, high: 9 }; 6], tables, nodes, Tensor(4), Interface::plain(6)).unwrap()
}

const THREE: [i32; 12] = [5, -9, 3, 0, 1, 2, -3, 8, 7, 7, 7, -1];

#[test]
fn a_map_is_a_product_where_its_operand_is_committed() {
    assert_eq!(Circuit::new(&tokens()).products.chosen, [true, false, true, false]);
    // What a product reads without a look-up is linear too, and a map of a single place.
    let mut nodes = vec![tokens().nodes()[0].clone()];
    let product = Node::Product { inputs: [Tensor(1); 2], groups: 9, rows: 1, columns: 1, inner: 1 };
    nodes.push(product);
    let inputs = vec![Range { low: -9, high: 9 }; 6];
    let graph = Graph::new(inputs, vec![], nodes, Tensor(2), Interface::plain(9)).unwrap();
    assert_eq!(Circuit::new(&graph).products.chosen, [false, true]);
    verify(&graph, &prove(&graph, &THREE).unwrap()).unwrap();
    assert_eq!(Circuit::new(&self::graph()).products.chosen, [false; 5]);
}

/// A false result of a map that tokens share, with everything behind it in agreement; and other weights, and other activations.
#[test]
fn a_false_map_is_refused() {
    let graph = tokens();
    verify(&graph, &forge(&graph, &THREE, |_, _, _, _| ())).unwrap();
    let forged = |change: &dyn Fn(&mut Witness, &mut [i32])| {
        refused(&graph, &forge(&graph, &THREE, |witness, outputs, _, _| change(witness, outputs)));
    };
    // A result that the last map reads, with and without its outputs.
    let weights = match &graph.nodes()[3] {
        Node::Conv { weights, .. } => weights.clone(),
        _ => unreachable!(),
    };
    for told in [false, true] {
        forged(&|witness, outputs| {
            witness.products[1].results[0] += 1;
            if told {
                outputs[0] += weights[0];
                outputs[3] += weights[4];
            }
        });
    }
    // True products of other operands.
    forged(&|witness, outputs| {
        let map = &mut witness.products[1];
        map.operands[0][0] += 1;
        for token in 0..3 {
            for example in 0..2 {
                let change = map.operands[1][example * 9 + token];
                map.results[example * 12 + token] += change;
                outputs[example * 6 + token] += weights[0] * change;
                outputs[example * 6 + 3 + token] += weights[4] * change;
            }
        }
    });
    forged(&|witness, _| witness.products[0].operands[1][0] += 1);
    forged(&|witness, _| witness.products[0].operands[1].swap(0, 1));
    // Two tokens that change places in one map.
    forged(&|witness, _| {
        (0..4).for_each(|filter| witness.products[1].results.swap(3 * filter, 3 * filter + 1));
        (0..3).for_each(|channel| witness.products[1].operands[1].swap(3 * channel, 3 * channel + 1));
    });
    forged(&|witness, _| witness.products.swap(0, 1));
}

#[test]
fn every_message_about_shared_weights_is_bound() {
    let graph = tokens();
    let (_, last) = graph.nodes().split_last().unwrap();
    let inputs = graph.inputs().to_vec();
    // Without the last map, which a key cannot have there.
    let graph =
        Graph::new(inputs, graph.tables().to_vec(), last.to_vec(), Tensor(3), Interface::plain(12)).unwrap();
    let key = Key::commit(&graph).unwrap();
    let proof = prove_with_key(&graph, &key, &THREE, &mut |_| ()).unwrap();
    verify_with_key(&key, &proof).unwrap();
    let change = |change: &dyn Fn(&mut Proof)| {
        let mut other = proof.clone();
        change(&mut other);
        refused_with(&key, &other);
    };
    let matrices =
        |proof: &mut Proof, by: E| *proof.products.as_mut().unwrap().matrices.as_mut().unwrap() += by;
    change(&|p| matrices(p, E::ONE));
    // What the weights add less, the left operand has more, and the other way around.
    for by in [E::ONE, -E::ONE] {
        change(&|p| {
            matrices(p, by);
            p.products.as_mut().unwrap().operands[0] += by;
        });
        change(&|p| {
            matrices(p, by);
            p.weights.as_mut().unwrap().known -= by;
        });
        change(&|p| {
            matrices(p, by);
            p.weights.as_mut().unwrap().at_point -= by;
        });
    }
    change(&|p| p.products.as_mut().unwrap().matrices = None);
    // Said to a verifier that computes it.
    let open = prove(&graph, &THREE).unwrap();
    let mut other = open.clone();
    other.products.as_mut().unwrap().matrices = proof.products.as_ref().unwrap().matrices;
    refused(&graph, &other);
    let mut other = proof.clone();
    other.weights = None;
    other.model = graph.id();
    refused(&graph, &other);
    // Other weights of the same range.
    let mut nodes = graph.nodes().to_vec();
    let Node::Conv { weights, .. } = &mut nodes[0] else { unreachable!() };
    weights.swap(0, 1);
    let inputs = graph.inputs().to_vec();
    let swapped =
        Graph::new(inputs, graph.tables().to_vec(), nodes, Tensor(3), Interface::plain(12)).unwrap();
    let mut forged = Key::commit(&swapped).unwrap();
    assert_eq!(forged.graph().id(), key.graph().id());
    forged.id = key.id();
    refused_with(&key, &prove_with_key(&swapped, &forged, &THREE, &mut |_| ()).unwrap());
}

/// Keys that nobody makes of a model: maps with their weights beside maps without. What the first reads or is would be lost.
#[test]
fn a_key_with_weights_is_refused() {
    let map = |input: u32, channels: u32, filters: u32| Node::Conv {
        input: Tensor(input),
        window: Window::pointwise(channels, filters, [1, 2]),
        weights: vec![1; (channels * filters) as usize],
        bias: vec![1; filters as usize],
    };
    let wide = |input: u32| Node::Conv {
        input: Tensor(input),
        window: Window { kernel: [1, 2], output: [1, 1], ..Window::pointwise(2, 2, [1, 2]) },
        weights: vec![1; 8],
        bias: vec![1; 2],
    };
    let linear =
        |input: u32| Node::Linear { input: Tensor(input), rows: 2, weights: vec![1; 8], bias: vec![1; 2] };
    let round = |input: u32| Node::Lookup { input: Tensor(input), shift: 2, table: 0 };
    for nodes in [
        vec![map(0, 2, 2), linear(1)],
        vec![map(0, 2, 2), wide(1)],
        vec![map(0, 2, 2), round(1), map(2, 2, 2)],
        vec![
            linear(0),
            round(1),
            Node::Linear { input: Tensor(2), rows: 2, weights: vec![1; 4], bias: vec![0; 2] },
        ],
    ] {
        let (inputs, tables) = (vec![Range { low: -9, high: 9 }; 4], vec![Table::clamp(-90, 90, -9, 9)]);
        let last = Tensor(nodes.len() as u32);
        let graph = |nodes, width| {
            Graph::new(inputs.clone(), tables.clone(), nodes, last, Interface::plain(width)).unwrap()
        };
        let width = if matches!(nodes.last(), Some(Node::Conv { window, .. }) if window.output[1] == 2) {
            4
        } else {
            2
        };
        let honest = graph(nodes.clone(), width);
        let mut half = nodes;
        *half.last_mut().unwrap() = honest.without_weights().unwrap().nodes().last().unwrap().clone();
        let half = graph(half, width);
        let inputs = [1, 2, 3, 4];
        // As the file of a key, and as what stands for one.
        let bytes = [&b"ASSAYKY5"[..], &[0; 4], &[7; 32], &half.encode()].concat();
        assert!(matches!(Key::from_bytes(&bytes), Err(Error::Key(_))), "{:?}", half.nodes());
        let proof = prove(&honest, &inputs).unwrap();
        assert!(verify(&half, &Proof { model: half.id(), ..proof }).is_err());
    }
}

/// A graph whose weights are not there is no model: nothing would hold what they add.
#[test]
fn a_model_without_weights_needs_its_key() {
    let graph = graph();
    let key = Key::commit(&graph).unwrap();
    let mut proof = prove_with_key(&graph, &key, &INPUTS, &mut |_| ()).unwrap();
    proof.weights = None;
    proof.model = key.graph().id();
    refused(key.graph(), &proof);
}

/// Messages removed, repeated and in another order.
#[test]
fn the_order_of_messages_is_bound() {
    let graph = graph();
    // Enough examples for a commitment with an inner round.
    let proof = prove(&graph, &INPUTS.repeat(16)).unwrap();
    assert!(!proof.opening.whir.rounds.is_empty() && proof.opening.whir.final_sumcheck.is_some());
    let change = |change: &dyn Fn(&mut Proof)| {
        let mut other = proof.clone();
        change(&mut other);
        refused(&graph, &other);
    };
    change(&|p| p.rounds.swap(0, 1));
    change(&|p| _ = p.rounds.pop());
    change(&|p| p.rounds.push(p.rounds[0]));
    change(&|p| _ = p.levels.pop());
    change(&|p| p.levels.push(p.levels[0].clone()));
    change(&|p| p.levels.swap(3, 4));
    change(&|p| p.levels[5].rounds.swap(0, 1));
    change(&|p| _ = p.levels[5].rounds.pop());
    change(&|p| p.levels[5].rounds.push([E::ONE; 2]));
    change(&|p| p.levels.iter_mut().for_each(|level| level.ends = [E::ZERO; 4]));
    change(&|p| p.levels[0].ends = [E::ONE, E::ZERO, E::ZERO, E::ZERO]);
    change(&|p| _ = p.opening.evals.pop());
    change(&|p| p.opening.evals.push(p.opening.evals[0].clone()));
    change(&|p| _ = p.opening.whir.rounds.pop());
    change(&|p| p.opening.whir.rounds.iter_mut().for_each(|round| round.commitment = None));
    change(&|p| p.opening.whir.final_poly = None);
    change(&|p| p.opening.whir.final_sumcheck = None);
    change(&|p| p.opening.whir.initial_ood_answers.clear());
}

/// The parts of two honest proofs do not mix.
#[test]
fn parts_of_another_proof_are_refused() {
    let graph = graph();
    let proof = prove(&graph, &INPUTS).unwrap();
    let mut inputs = INPUTS;
    inputs[0] += 1;
    let donor = prove(&graph, &inputs).unwrap();
    let change = |change: &dyn Fn(&mut Proof)| {
        let mut other = proof.clone();
        change(&mut other);
        refused(&graph, &other);
    };
    change(&|p| p.root = donor.root);
    change(&|p| p.levels.clone_from(&donor.levels));
    change(&|p| p.rounds.clone_from(&donor.rounds));
    change(&|p| p.opening = donor.opening.clone());
    change(&|p| *p = Proof { inputs: p.inputs.clone(), ..donor.clone() });
    change(&|p| *p = Proof { outputs: p.outputs.iter().map(|y| y + 1).collect(), ..donor.clone() });
}

/// A perceptron 4-4-4-4 whose layers differ in their weights only.
fn square(order: [i32; 3]) -> Graph {
    let linear = |input: u32, seed: i32| Node::Linear {
        input: Tensor(input),
        rows: 4,
        weights: (0..16).map(|i| (i * seed) % 23 - 11).collect(),
        bias: vec![3, 4, -2, 5],
    };
    let relu = |input: u32| Node::Lookup { input: Tensor(input), shift: 3, table: 0 };
    let nodes = vec![linear(0, order[0]), relu(1), linear(2, order[1]), relu(3), linear(4, order[2])];
    // A linear map of the same range on every order, so that the keys differ in the commitment only.
    let tables = vec![Table::clamp(-200, 200, 0, 31)];
    Graph::new(vec![Range { low: -31, high: 31 }; 4], tables, nodes, Tensor(5), Interface::plain(4)).unwrap()
}

fn refused_with(key: &Key, proof: &Proof) {
    let error = verify_with_key(key, proof).unwrap_err();
    assert!(matches!(error, Error::Rejected(_)), "{error}");
}

/// A prover that runs other weights, commits to them, and uses the name of the key that the verifier has.
#[test]
fn other_weights_under_the_name_of_a_key_are_refused() {
    let graph = square([7, 5, 3]);
    let key = Key::commit(&graph).unwrap();
    let inputs = [5, -9, 31, 0, 1, 2, -31, 30];
    verify_with_key(&key, &prove_with_key(&graph, &key, &inputs, &mut |_| ()).unwrap()).unwrap();
    for order in [[5, 7, 3], [7, 3, 5], [3, 5, 7], [7, 5, 4]] {
        let other = square(order);
        let mut forged = Key::commit(&other).unwrap();
        assert_ne!(forged.id(), key.id());
        forged.id = key.id();
        let proof = prove_with_key(&other, &forged, &inputs, &mut |_| ()).unwrap();
        refused_with(&key, &proof);
        // With the opening of the true weights in place of its own.
        let honest = prove_with_key(&graph, &key, &inputs, &mut |_| ()).unwrap();
        let mut mixed = proof.clone();
        mixed.weights.clone_from(&honest.weights);
        refused_with(&key, &mixed);
        let mut mixed = honest;
        mixed.weights = proof.weights;
        refused_with(&key, &mixed);
    }
}

/// The opening of its weights.
fn opened(proof: &Proof) -> crate::commitment::Opening {
    match &proof.weights.as_ref().unwrap().opening {
        WeightsOpening::Open(opening) => *opening.clone(),
        WeightsOpening::Hiding(..) => unreachable!(),
    }
}

/// The proof with another opening of its weights.
fn open(proof: &Proof, opening: crate::commitment::Opening) -> Proof {
    let mut other = proof.clone();
    other.weights.as_mut().unwrap().opening = WeightsOpening::Open(Box::new(opening));
    other
}

/// Biases are committed to as weights are: of matrices, of convolutions, and of maps that places share, also behind another product.
#[test]
fn other_biases_under_the_name_of_a_key_are_refused() {
    let conv = |input: u32, window: Window| Node::Conv {
        input: Tensor(input),
        window,
        weights: (0..window.weights_len() as i32).map(|i| (i * 5) % 13 - 6).collect(),
        bias: (0..window.filters as i32).map(|i| 5 - 3 * i).collect(),
    };
    let round = |input: u32| Node::Lookup { input: Tensor(input), shift: 2, table: 0 };
    let squares = Node::Product { inputs: [Tensor::INPUT; 2], groups: 6, rows: 1, columns: 1, inner: 1 };
    let wide = Window { kernel: [1, 2], output: [1, 2], ..Window::pointwise(2, 3, [1, 3]) };
    let shared = Window::pointwise(2, 3, [1, 3]);
    let small = |nodes: Vec<Node>, width| {
        let (inputs, tables) = (vec![Range { low: -9, high: 9 }; 6], vec![Table::clamp(-40, 40, -9, 30)]);
        let last = Tensor(nodes.len() as u32);
        Graph::new(inputs, tables, nodes, last, Interface::plain(width)).unwrap()
    };
    let graphs = [
        square([7, 5, 3]),
        small(vec![conv(0, wide), round(1)], 6),
        small(vec![conv(0, shared), round(1), conv(2, Window::pointwise(3, 4, [1, 3]))], 12),
        small(vec![squares, round(1), conv(2, shared)], 9),
    ];
    for graph in graphs {
        let key = Key::commit(&graph).unwrap();
        let inputs: Vec<i32> = (0..graph.inputs().len() as i32).map(|i| i * 7 % 11 - 4).collect();
        verify_with_key(&key, &prove_with_key(&graph, &key, &inputs, &mut |_| ()).unwrap()).unwrap();
        let mut changed = 0;
        for node in 0..graph.nodes().len() {
            let mut nodes = graph.nodes().to_vec();
            let (Node::Linear { bias, .. } | Node::Conv { bias, .. }) = &mut nodes[node] else { continue };
            bias[1] -= 1;
            changed += 1;
            let (ranges, tables) = (graph.inputs().to_vec(), graph.tables().to_vec());
            let interface = graph.interface().clone();
            let other = Graph::new(ranges, tables, nodes, graph.output(), interface).unwrap();
            let mut forged = Key::commit(&other).unwrap();
            assert_ne!(forged.id(), key.id());
            forged.id = key.id();
            refused_with(&key, &prove_with_key(&other, &forged, &inputs, &mut |_| ()).unwrap());
        }
        assert!(changed > 0);
    }
}

#[test]
fn every_message_about_committed_weights_is_bound() {
    let graph = square([7, 5, 3]);
    let key = Key::commit(&graph).unwrap();
    let proof = prove_with_key(&graph, &key, &[5, -9, 31, 0], &mut |_| ()).unwrap();
    verify_with_key(&key, &proof).unwrap();
    let rounds = proof.weights.as_ref().unwrap().rounds.len();
    let change = |change: &dyn Fn(&mut crate::file::WeightsProof)| {
        let mut other = proof.clone();
        change(other.weights.as_mut().unwrap());
        refused_with(&key, &other);
    };
    change(&|w| w.known += E::ONE);
    change(&|w| w.at_point += E::ONE);
    // What one adds, the other takes away.
    change(&|w| {
        w.known += E::ONE;
        w.at_point -= E::ONE;
    });
    for round in 0..rounds {
        for part in 0..2 {
            change(&|w| w.rounds[round][part] += E::ONE);
        }
    }
    change(&|w| w.rounds.swap(0, 1));
    change(&|w| _ = w.rounds.pop());
    change(&|w| w.rounds.push([E::ONE; 2]));
    let open = |change: &dyn Fn(&mut crate::commitment::Opening)| {
        let mut opening = opened(&proof);
        change(&mut opening);
        self::open(&proof, opening)
    };
    refused_with(&key, &open(&|opening| *opening = proof.opening.clone()));
    refused_with(&key, &open(&|opening| opening.evals.clear()));
    refused_with(&key, &open(&|opening| opening.whir.initial_ood_answers.clear()));
    let mut other = proof.clone();
    other.weights = None;
    refused_with(&key, &other);
    let mut other = proof.clone();
    other.opening = opened(&proof);
    refused_with(&key, &other);
    let mut other = key.clone();
    let WeightsCommitment::Open(root) = &mut other.weights else { unreachable!() };
    root[3] ^= 1;
    refused_with(&other, &proof);
}
