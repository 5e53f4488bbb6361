//! Linear functions of the committed slots, pulled back through a graph.
//!
//! Given a weight for every row (what a random combination of look-ups asks for) and for some tensors, [`pull_back`] finds
//! the weight of every slot, of every input and the constant such that the weighted sum of keys, values and those tensors equals
//! the weighted sum of slots and inputs plus the constant, in every example. It is reverse-mode differentiation: nodes are
//! visited from the last to the first, and everything but look-ups and products is linear; a look-up ends at its slots, a product
//! (also of weights that several places share) at its results, whose weights [`products`](crate::products) go on with. Where other weights are
//! committed, the walk ends too: what is left there is a bilinear form of the weights and of what the map reads, which
//! [`forward`] finds.

use assay_graph::{Node, Tensor, ZERO};
use p3_field::{Field as _, PrimeCharacteristicRing as _};
#[cfg(feature = "prover")]
use rayon::prelude::*;

use crate::circuit::Circuit;
use crate::field::{DEGREE, E, F, LAZY_MAX, Lazy, int, limbs};

/// The weights that [`pull_back`] finds.
pub(crate) struct Linear {
    /// One a slot.
    pub(crate) slots: Vec<E>,
    /// One an input value.
    pub(crate) inputs: Vec<E>,
    /// The constant.
    pub(crate) constant: E,
    /// For each map with committed weights that is no product, in their order, the weights of its results.
    pub(crate) committed: Vec<Vec<E>>,
    /// For each product, in their order, the weights of its results.
    pub(crate) products: Vec<Vec<E>>,
}

/// Pulls back `Σ_row rows[row] · (key + beta · value) + Σ_(t, w) Σ_i w_i · t_i`, where `seeds` lists tensors `t` and weights `w`. `rows`
/// is empty or has one weight a row.
pub(crate) fn pull_back(
    circuit: &Circuit<'_>,
    rows: &[E],
    beta: E,
    seeds: impl IntoIterator<Item = (Tensor, Vec<E>)>,
) -> Linear {
    let graph = circuit.graph;
    let mut slots = vec![E::ZERO; circuit.slots];
    let mut constant = E::ZERO;
    let (mut committed, mut products) = (Vec::new(), Vec::new());
    // Of each tensor the weights of its values; empty while all are zero.
    let mut weights: Vec<Vec<E>> = vec![Vec::new(); graph.nodes().len() + 1];
    seeds.into_iter().for_each(|(tensor, seed)| add(&mut weights[tensor.index()], &seed));
    let mut lookups = circuit.lookups.iter().rev();
    for (number, node) in graph.nodes().iter().enumerate().rev() {
        let out = std::mem::take(&mut weights[number + 1]);
        match node {
            Node::Lookup { input, shift, .. } => {
                let Some(lookup) = lookups.next() else { continue };
                debug_assert_eq!(lookup.node, number);
                let (slot, row) = lookup.results;
                slots[slot..].iter_mut().zip(&out).for_each(|(slot, weight)| *slot += *weight);
                if rows.is_empty() {
                    continue;
                }
                let rows_here = &rows[row..row + lookup.width];
                slots[slot..].iter_mut().zip(rows_here).for_each(|(slot, weight)| *slot += beta * *weight);
                // key = (x + half - remainder) / 2^shift, exact in the integers and hence in the field.
                let scale = F::TWO.exp_u64(u64::from(*shift)).inverse();
                let keys: Vec<E> = rows_here.iter().map(|weight| *weight * scale).collect();
                add(&mut weights[input.index()], &keys);
                if let Some((slot, row)) = lookup.remainders {
                    constant += keys.iter().copied().sum::<E>() * int(1 << (shift - 1));
                    for (i, key) in keys.iter().enumerate() {
                        slots[slot + i] += rows[row + i] - *key;
                    }
                }
            }
            _ if circuit.products.chosen[number] || matches!(node, Node::Committed { .. }) => {
                let mut out = out;
                out.resize(graph.width(Tensor(number as u32 + 1)), E::ZERO);
                // Committed biases are with the weights.
                if let Node::Conv { bias, .. } = node {
                    constant += inner(bias, &planes(&out, bias.len()));
                }
                if circuit.products.chosen[number] { products.push(out) } else { committed.push(out) }
            }
            // Met already: every product is chosen.
            Node::Product { .. } | Node::Committed { .. } => {}
            _ if out.is_empty() => {}
            Node::Linear { input, weights: matrix, bias, .. } => {
                constant += inner(bias, &out);
                let x = &mut weights[input.index()];
                add(x, &transposed(matrix, &out, graph.width(*input)));
            }
            Node::Conv { input, window, weights: filters, bias } => {
                let plane = window.output[0] as usize * window.output[1] as usize;
                constant += inner(bias, &planes(&out, bias.len()));
                let width = graph.width(*input);
                let stride = window.stride[1] as usize;
                // An input meets each weight at most once.
                let x = if window.is_pointwise() && magnitude(filters) < LAZY_MAX {
                    shared(filters, &out, plane)
                } else if magnitude(filters) < LAZY_MAX {
                    let out: Vec<_> = out.iter().map(|weight| limbs(*weight)).collect();
                    let mut x = vec![Lazy::default(); width];
                    window.runs(|at, input, weight, count| {
                        for i in 0..count {
                            x[input + i * stride].add(filters[weight], &out[at + i]);
                        }
                    });
                    x.into_iter().map(Lazy::finish).collect()
                } else {
                    let mut x = vec![E::ZERO; width];
                    window.runs(|at, input, weight, count| {
                        for i in 0..count {
                            x[input + i * stride] += out[at + i] * int(filters[weight]);
                        }
                    });
                    x
                };
                add(&mut weights[input.index()], &x);
            }
            Node::Gather { inputs, index } => {
                let widths: Vec<usize> = inputs.iter().map(|tensor| graph.width(*tensor)).collect();
                let mut all = vec![E::ZERO; widths.iter().sum()];
                for (index, weight) in index.iter().zip(&out) {
                    if *index != ZERO {
                        all[*index as usize] += *weight;
                    }
                }
                let mut rest = all.as_slice();
                for (tensor, width) in inputs.iter().zip(widths) {
                    let (head, tail) = rest.split_at(width);
                    add(&mut weights[tensor.index()], head);
                    rest = tail;
                }
            }
            Node::Sum { terms, bias } => {
                constant += inner(bias, &out);
                for (tensor, coefficient) in terms {
                    let coefficient = int(*coefficient);
                    let scaled: Vec<E> = out.iter().map(|weight| *weight * coefficient).collect();
                    add(&mut weights[tensor.index()], &scaled);
                }
            }
        }
    }
    let mut inputs = std::mem::take(&mut weights[Tensor::INPUT.index()]);
    inputs.resize(graph.inputs().len(), E::ZERO);
    committed.reverse();
    products.reverse();
    Linear { slots, inputs, constant, committed, products }
}

/// What the biases of a map are multiplied with, from the weights of its results: their sums over as many planes of one size.
pub(crate) fn planes(out: &[E], count: usize) -> Vec<E> {
    out.chunks_exact(out.len() / count).map(|plane| plane.iter().copied().sum()).collect()
}

/// What each map with committed weights that is no product reads, in their order, when the slots and inputs have these values and every constant
/// of the graph counts `one` times. No such map reads what depends on another one or on a product except through a look-up, as the
/// layout of the weights has found.
pub(crate) fn forward(circuit: &Circuit<'_>, slots: &[E], inputs: &[E], one: E) -> Vec<Vec<E>> {
    let graph = circuit.graph;
    // Empty where something depends on committed weights or on a product.
    let mut tensors: Vec<Vec<E>> = vec![inputs.to_vec()];
    let mut lookups = circuit.lookups.iter();
    let mut out = Vec::new();
    for (number, node) in graph.nodes().iter().enumerate() {
        let unknown = node.operands().iter().any(|operand| tensors[operand.index()].is_empty());
        let value = match node {
            Node::Lookup { .. } => {
                lookups.next().map_or(Vec::new(), |lookup| slots[lookup.results.0..][..lookup.width].to_vec())
            }
            _ if circuit.products.chosen[number] => Vec::new(),
            Node::Committed { map, .. } => {
                if let Some(operand) = map.operands().first() {
                    out.push(tensors[operand.index()].clone());
                }
                Vec::new()
            }
            Node::Product { .. } => Vec::new(),
            _ if unknown => Vec::new(),
            Node::Linear { input, weights, bias, .. } => {
                let x = &tensors[input.index()];
                weights
                    .chunks_exact(x.len())
                    .zip(bias)
                    .map(|(row, bias)| inner(row, x) + one * int(*bias))
                    .collect()
            }
            Node::Conv { input, window, weights, bias } => {
                let x = &tensors[input.index()];
                let plane = window.output[0] as usize * window.output[1] as usize;
                let start = |bias: &i32| std::iter::repeat_n(one * int(*bias), plane);
                let mut sums: Vec<E> = bias.iter().flat_map(start).collect();
                let stride = window.stride[1] as usize;
                window.runs(|at, input, weight, count| {
                    for i in 0..count {
                        sums[at + i] += x[input + i * stride] * int(weights[weight]);
                    }
                });
                sums
            }
            Node::Gather { inputs, index } => {
                let all: Vec<E> =
                    inputs.iter().flat_map(|tensor| &tensors[tensor.index()]).copied().collect();
                index.iter().map(|i| if *i == ZERO { E::ZERO } else { all[*i as usize] }).collect()
            }
            Node::Sum { terms, bias } => {
                let mut sums: Vec<E> = bias.iter().map(|bias| one * int(*bias)).collect();
                for (tensor, coefficient) in terms {
                    let coefficient: F = int(*coefficient);
                    sums.iter_mut()
                        .zip(&tensors[tensor.index()])
                        .for_each(|(sum, x)| *sum += *x * coefficient);
                }
                sums
            }
        };
        tensors.push(value);
    }
    out
}

fn add(total: &mut Vec<E>, more: &[E]) {
    if total.is_empty() {
        total.extend_from_slice(more);
    } else {
        total.iter_mut().zip(more).for_each(|(total, more)| *total += *more);
    }
}

/// The sum of magnitudes.
pub(crate) fn magnitude(weights: &[i32]) -> u64 {
    weights.iter().map(|weight| u64::from(weight.unsigned_abs())).sum()
}

/// `Σ_i a_i · b_i`.
pub(crate) fn inner(a: &[i32], b: &[E]) -> E {
    if magnitude(a) < LAZY_MAX {
        let mut sum = Lazy::default();
        a.iter().zip(b).filter(|(a, _)| **a != 0).for_each(|(a, b)| sum.add(*a, &limbs(*b)));
        sum.finish()
    } else {
        a.iter().zip(b).map(|(a, b)| *b * int(*a)).sum()
    }
}

/// `Mᵀ · out` for a matrix with one row for each `plane` values of `out`, plane by plane: what a linear map that many tokens share pulls back. The
/// magnitudes of the matrix sum to less than [`LAZY_MAX`].
fn shared(matrix: &[i32], out: &[E], plane: usize) -> Vec<E> {
    let rows = out.len() / plane;
    let columns = matrix.len() / rows;
    // Limb by limb, so that the inner loop runs over integers side by side.
    let mut parts = vec![0i32; DEGREE * out.len()];
    for (row, out) in out.chunks_exact(plane).enumerate() {
        for (at, element) in out.iter().enumerate() {
            for (limb, value) in limbs(*element).into_iter().enumerate() {
                // Below 2^31.
                parts[(row * DEGREE + limb) * plane + at] = value as i32;
            }
        }
    }
    let column = |column: usize| {
        let mut sums = vec![0i64; DEGREE * plane];
        for (row, parts) in parts.chunks_exact(DEGREE * plane).enumerate() {
            let weight = i64::from(matrix[row * columns + column]);
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += weight * i64::from(*part));
        }
        let element = |at: usize| Lazy(std::array::from_fn(|limb| sums[limb * plane + at])).finish();
        (0..plane).map(element).collect::<Vec<E>>()
    };
    #[cfg(feature = "prover")]
    let all: Vec<Vec<E>> = (0..columns).into_par_iter().map(column).collect();
    #[cfg(not(feature = "prover"))]
    let all: Vec<Vec<E>> = (0..columns).map(column).collect();
    all.concat()
}

/// `Mᵀ · out` for a matrix with `columns` columns.
pub(crate) fn transposed(matrix: &[i32], out: &[E], columns: usize) -> Vec<E> {
    let mut total = vec![E::ZERO; columns];
    // As many rows at once as lazy sums can take.
    let mut first = 0;
    while first < out.len() {
        let mut lazy = vec![Lazy::default(); columns];
        let (mut last, mut sum) = (first, 0);
        while last < out.len() {
            let row = &matrix[last * columns..(last + 1) * columns];
            // The largest weight of a row bounds what it adds to any column; below 2^31, so one row always fits.
            sum += row.iter().map(|weight| u64::from(weight.unsigned_abs())).max().unwrap_or(0);
            if sum >= LAZY_MAX && last > first {
                break;
            }
            let weight = limbs(out[last]);
            lazy.iter_mut().zip(row).for_each(|(sum, entry)| sum.add(*entry, &weight));
            last += 1;
        }
        total.iter_mut().zip(lazy).for_each(|(total, lazy)| *total += lazy.finish());
        first = last;
    }
    total
}
