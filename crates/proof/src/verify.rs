//! The verifier, and what it shares with the prover: the statement and the final linear claim.

use assay_graph::{Graph, Range};
use p3_field::PrimeCharacteristicRing as _;

use crate::adjoint;
use crate::circuit::{Circuit, Sizes};
use crate::commitment::Root;
use crate::field::{Challenger, E, F, draw, draw_point, eq, eq_table, int};
use crate::file::WeightsProof;
use crate::fractions::{Leaves, Level};
use crate::key::Key;
use crate::products::{Operands, ProductsProof};
use crate::value::{Residuals, Value};
use crate::weights::Layout;
use crate::{Error, Proof, VERSION, commitment, file, fractions, sumcheck};

/// Checks that the proof's inputs give its outputs in this graph.
///
/// Time and memory are bounded by the graph and the batch, whatever the proof holds.
///
/// # Errors
/// [`Error::Model`] when the proof is about another graph, [`Error::Graph`] and [`Error::Size`] when its inputs do not fit,
/// and [`Error::Rejected`] when it proves nothing.
pub fn verify(graph: &Graph, proof: &Proof) -> Result<(), Error> {
    if proof.weights.is_some() {
        return Err(Error::Rejected("it is about committed weights, and needs their key"));
    }
    check(graph, graph.id(), None, proof)
}

/// Checks that the proof's inputs give its outputs in the model whose weights this key commits to. It needs no weights, and its
/// time does not grow with their number but with the widths of the layers.
///
/// # Errors
/// As [`verify`].
pub fn verify_with_key(key: &Key, proof: &Proof) -> Result<(), Error> {
    check(key.graph(), key.id(), Some(key), proof)
}

fn check(graph: &Graph, id: [u8; 32], key: Option<&Key>, proof: &Proof) -> Result<(), Error> {
    if proof.model != id {
        return Err(Error::Model { expected: file::hex(&id), found: file::hex(&proof.model) });
    }
    let batch = graph.check_inputs(&proof.inputs)?;
    let circuit = Circuit::new(graph);
    let sizes = circuit.sizes(batch)?;
    check_outputs(graph, batch, &proof.outputs)?;
    let mut challenger = statement(&id, batch, &proof.inputs, &proof.outputs);
    let messages = Messages {
        levels: &proof.levels,
        products: proof.products.as_ref(),
        rounds: &proof.rounds,
        weights: proof.weights.as_ref(),
    };
    let commitments = Commitments { key, root: &proof.root };
    let (inputs, outputs) = (&proof.inputs, &proof.outputs);
    let end =
        follow(&circuit, sizes, &commitments, &messages, inputs, outputs, &mut challenger, &mut Vec::new())?;
    if end.root == E::ZERO {
        return Err(Error::Rejected(fractions::NOT_IN_TABLE));
    }
    let opened = commitment::verify(&proof.root, &proof.opening, &end.point, &mut challenger)?;
    if end.weight * opened != end.value {
        return Err(WRONG_VALUES);
    }
    Ok(())
}

/// What the last check says when it fails.
pub(crate) const WRONG_VALUES: Error =
    Error::Rejected("the committed values do not fit the model, its inputs and outputs");

/// Checks that outputs are as many as the model has, and in the range that it can reach: within that, an integer is determined by its value in
/// the field.
///
/// # Errors
/// [`Error::Rejected`].
pub(crate) fn check_outputs(graph: &Graph, batch: usize, outputs: &[i32]) -> Result<(), Error> {
    let Range { low, high } = graph.range(graph.output());
    // In 64 bits, also where addresses have 32.
    let count = graph.width(graph.output()) as u64 * batch as u64;
    if outputs.len() as u64 != count || outputs.iter().any(|y| !(low..=high).contains(y)) {
        return Err(Error::Rejected("the outputs are not of this model"));
    }
    Ok(())
}

/// What a prover says after its commitment and before the opening.
pub(crate) struct Messages<'a, V> {
    pub(crate) levels: &'a [Level<V>],
    pub(crate) products: Option<&'a ProductsProof<V>>,
    pub(crate) rounds: &'a [[V; 2]],
    pub(crate) weights: Option<&'a WeightsProof<V>>,
}

/// What a proof is about besides its statement.
pub(crate) struct Commitments<'a> {
    pub(crate) key: Option<&'a Key>,
    pub(crate) root: &'a Root,
}

/// What is left after all messages: the committed vector at `point` times `weight` is to be `value`, and `root` no zero.
pub(crate) struct End<V: Value> {
    pub(crate) point: Vec<E>,
    pub(crate) weight: V,
    pub(crate) value: V,
    pub(crate) root: V::Product,
}

/// Follows the messages from the commitment to its point, and checks all that can be checked before the opening.
///
/// # Errors
/// [`Error::Rejected`].
#[expect(clippy::too_many_arguments, reason = "the statement, what was sent, and what is known of it")]
pub(crate) fn follow<V: Value>(
    circuit: &Circuit<'_>,
    sizes: Sizes,
    commitments: &Commitments<'_>,
    messages: &Messages<'_, V>,
    inputs: &[i32],
    outputs: &[i32],
    challenger: &mut Challenger,
    residuals: &mut Residuals,
) -> Result<End<V>, Error> {
    // A graph with weights of its own has none that are committed.
    let own = if commitments.key.is_some() { None } else { Some(Layout::new(circuit.graph)?) };
    if messages.levels.len() != sizes.log_rows || messages.rounds.len() != sizes.log_committed {
        return Err(Error::Rejected("it is of another size"));
    }
    if let (Some(key), Some(weights)) = (commitments.key, messages.weights) {
        commitment::observe(key.root(&weights.opening)?, key.layout.log, challenger)?;
    }
    commitment::observe(commitments.root, sizes.log_committed, challenger)?;
    let (alpha, beta) = (draw(challenger), draw(challenger));
    let (leaves, root) = fractions::verify(messages.levels, challenger, residuals)?;
    let mut claim = Claim::new(circuit, sizes, alpha, beta, &leaves, inputs, outputs, challenger);
    if let Some(weights) = messages.weights {
        V::absorb(&[weights.known], challenger);
        claim.value = claim.value - weights.known;
    }
    match (circuit.products.is_empty(), messages.products) {
        (true, None) => {}
        (false, Some(products)) => {
            let weights = &claim.products;
            let operands = circuit.products.verify(weights, &claim.batch, products, challenger, residuals)?;
            claim.value = claim.value - products.value;
            let forms = circuit.products.forms(&operands);
            let value = match products.matrices {
                Some(matrices) if commitments.key.is_some() && !forms.is_empty() => {
                    V::absorb(&[matrices], challenger);
                    matrices
                }
                None if commitments.key.is_none() || forms.is_empty() => {
                    V::known(circuit.products.matrices(circuit.graph, &forms))
                }
                _ => {
                    return Err(Error::Rejected(
                        "it has matrices where the model has none, or the other way around",
                    ));
                }
            };
            claim.join(circuit, &operands, Matrices { value, forms }, inputs, challenger);
        }
        _ => {
            return Err(Error::Rejected("it has products where the model has none, or the other way around"));
        }
    }
    let mut value = claim.value;
    let point = sumcheck::verify(messages.rounds, &mut value, challenger);
    let mut weight = V::known(claim.weight_at(circuit, &point));
    match (commitments.key, messages.weights) {
        (None, None) if own.is_some_and(|layout| layout.is_empty()) => {}
        (Some(key), Some(weights)) => {
            key.layout.check(circuit, &claim, &point, key, weights, challenger, residuals)?;
            weight = weight + weights.at_point;
        }
        _ => return Err(Error::Rejected("it says nothing about the committed weights")),
    }
    Ok(End { point, weight, value, root })
}

/// The transcript of a statement: protocol, model, inputs and outputs.
pub(crate) fn statement(model: &[u8; 32], batch: usize, inputs: &[i32], outputs: &[i32]) -> Challenger {
    let mut bytes = b"assay proof".to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(model);
    bytes.extend_from_slice(&(batch as u32).to_le_bytes());
    bytes.extend_from_slice(&hash(inputs));
    bytes.extend_from_slice(&hash(outputs));
    crate::field::transcript(bytes)
}

/// The hash of numbers.
pub(crate) fn hash(values: &[i32]) -> [u8; 32] {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    *blake3::hash(&bytes).as_bytes()
}

/// The one claim that is left after the look-ups: a linear function of the committed vector has a value.
pub(crate) struct Claim<V = E> {
    pub(crate) sizes: Sizes,
    /// The value of the function, what maps with committed weights make of inputs and constants included.
    pub(crate) value: V,
    /// The weight of each slot.
    slots: Vec<E>,
    /// The point of the batch; an example's share of a slot's weight is `eq` of it.
    pub(crate) batch: Vec<E>,
    /// The weight of each multiplicity.
    pub(crate) entries: Vec<E>,
    /// For each map with committed weights that is no product, the weights of its results.
    pub(crate) committed: Vec<Vec<E>>,
    /// The inputs, summed over examples with the weights of the point of the batch; zeros when they are hidden.
    pub(crate) inputs: Vec<E>,
    /// For each product, the weights of its results.
    pub(crate) products: Vec<Vec<E>>,
    /// What the operands of products add to the weight of each slot, and the point of the batch that goes with it.
    pub(crate) operands: Option<(Vec<E>, Vec<E>)>,
    pub(crate) matrices: Matrices<V>,
}

/// The share of weights in the left operands of products.
#[derive(Clone)]
pub(crate) struct Matrices<V> {
    pub(crate) value: V,
    /// For each map that is a product, what its weights are summed with, see [`Products::forms`](crate::products::Products::forms).
    pub(crate) forms: Vec<(Vec<E>, Vec<E>)>,
}

impl<V: Value> Claim<V> {
    /// Draws the challenges that combine the claims about denominators, outputs and numerators, in this order.
    #[expect(clippy::too_many_arguments, reason = "everything that the protocol has sent so far")]
    pub(crate) fn new(
        circuit: &Circuit<'_>,
        sizes: Sizes,
        alpha: E,
        beta: E,
        leaves: &Leaves<V>,
        inputs: &[i32],
        outputs: &[i32],
        challenger: &mut Challenger,
    ) -> Claim<V> {
        let (rows_point, batch_point) = leaves.point.split_at(sizes.log_rows - sizes.log_batch);
        let width = circuit.graph.width(circuit.graph.output());
        let output_point = draw_point(challenger, width.next_power_of_two().trailing_zeros() as usize);
        let lambda = draw(challenger);

        let row_table = eq_table(rows_point);
        let batch_table = eq_table(batch_point);
        let first = circuit.rows << sizes.log_batch;
        let mask = batch_table.len() - 1;
        let at = |row: usize| row_table[row >> sizes.log_batch] * batch_table[row & mask];
        let entry_weights: Vec<E> = (first..first + circuit.entries.len()).map(at).collect();

        // Numerators: 1 in a row, minus the multiplicity in an entry, 0 behind them.
        let rows = &row_table[..circuit.rows];
        let rows_sum: E = rows.iter().copied().sum();
        // Denominators: α - β² tag - key - β value in rows and entries, 1 behind them.
        let mut known = E::ONE - rows_sum;
        let beta_2 = beta * beta;
        for (entry, weight) in circuit.entries.iter().zip(&entry_weights) {
            let denominator =
                alpha - beta_2 * F::from_u32(entry.tag) - beta * int(entry.value) - int(entry.key);
            known += *weight * (denominator - E::ONE);
        }
        for lookup in &circuit.lookups {
            let mut add = |first: usize, tag: u32| {
                let sum: E = rows[first..first + lookup.width].iter().copied().sum();
                known += sum * (alpha - beta_2 * F::from_u32(tag));
            };
            add(lookup.results.1, lookup.tag);
            if let Some((_, row)) = lookup.remainders {
                add(row, circuit.range_tag(lookup.shift));
            }
        }
        for (first, count, tag) in circuit.input_tags() {
            let sum: E = rows[first..first + count].iter().copied().sum();
            known += sum * (alpha - beta_2 * F::from_u32(tag));
        }

        let output_table = eq_table(&output_point);
        let output_weights: Vec<E> = output_table[..width].iter().map(|weight| *weight * lambda).collect();
        let lambda_2 = lambda * lambda;
        let mut value =
            known + dot(&batched(outputs, width, &batch_table), &output_weights) + lambda_2 * rows_sum;
        let linear = adjoint::pull_back(circuit, rows, beta, vec![(circuit.graph.output(), output_weights)]);
        value -= linear.constant;
        let (mut slots, mut known_inputs) = (linear.slots, vec![E::ZERO; circuit.graph.inputs().len()]);
        if circuit.inputs.is_empty() {
            known_inputs = batched(inputs, known_inputs.len(), &batch_table);
            value -= dot(&known_inputs, &linear.inputs);
        } else {
            // Hidden inputs are slots, and the keys of rows.
            for (i, weight) in linear.inputs.iter().enumerate() {
                slots[i] += *weight + rows[i];
            }
        }
        let value = V::known(value) - leaves.denominator - leaves.numerator * lambda_2;
        let entries = entry_weights.into_iter().map(|weight| weight * lambda_2).collect();
        Claim {
            sizes,
            value,
            slots,
            batch: batch_point.to_vec(),
            entries,
            committed: linear.committed,
            inputs: known_inputs,
            products: linear.products,
            operands: None,
            matrices: Matrices { value: V::known(E::ZERO), forms: Vec::new() },
        }
    }

    /// Adds the claims about the operands of products, at their own point of the batch, with powers of a challenge.
    pub(crate) fn join(
        &mut self,
        circuit: &Circuit<'_>,
        operands: &Operands<V>,
        matrices: Matrices<V>,
        inputs: &[i32],
        challenger: &mut Challenger,
    ) {
        let mu = draw(challenger);
        let linear = adjoint::pull_back(circuit, &[], E::ZERO, circuit.products.seeds(operands, mu));
        let mut constant = linear.constant;
        let mut slots = linear.slots;
        if circuit.inputs.is_empty() {
            let inputs = batched(inputs, circuit.graph.inputs().len(), &eq_table(&operands.batch));
            constant += dot(&inputs, &linear.inputs);
        } else {
            slots.iter_mut().zip(&linear.inputs).for_each(|(slot, weight)| *slot += *weight);
        }
        let [left, right] = operands.values;
        self.value = self.value + (left - matrices.value + right * mu - V::known(constant)) * mu;
        self.matrices = matrices;
        slots.iter_mut().for_each(|weight| *weight *= mu);
        self.operands = Some((slots, operands.batch.clone()));
    }

    /// The multilinear extension of the function's weights at a point.
    pub(crate) fn weight_at(&self, circuit: &Circuit<'_>, point: &[E]) -> E {
        let (high, low) = point.split_at(self.sizes.log_committed - self.sizes.log_batch);
        let (high, low_table) = (eq_table(high), eq_table(low));
        let mut total = dot(&self.slots, &high) * eq(&self.batch, low);
        if let Some((slots, batch)) = &self.operands {
            total += dot(slots, &high) * eq(batch, low);
        }
        let first = circuit.slots << self.sizes.log_batch;
        let mask = low_table.len() - 1;
        let entries: E = (first..)
            .zip(&self.entries)
            .map(|(at, weight)| *weight * high[at >> self.sizes.log_batch] * low_table[at & mask])
            .sum();
        total + entries
    }

    /// All weights, in the order of the committed vector.
    #[cfg(feature = "prover")]
    pub(crate) fn weights(&self, circuit: &Circuit<'_>) -> Vec<E> {
        use rayon::prelude::*;
        let mut out = vec![E::ZERO; 1 << self.sizes.log_committed];
        let batch = eq_table(&self.batch);
        let first = circuit.slots << self.sizes.log_batch;
        out[..first].par_chunks_exact_mut(batch.len()).zip(&self.slots).for_each(|(out, slot)| {
            out.iter_mut().zip(&batch).for_each(|(out, batch)| *out = *slot * *batch);
        });
        if let Some((slots, batch)) = &self.operands {
            let batch = eq_table(batch);
            out[..first].par_chunks_exact_mut(batch.len()).zip(slots).for_each(|(out, slot)| {
                out.iter_mut().zip(&batch).for_each(|(out, batch)| *out += *slot * *batch);
            });
        }
        out[first..first + self.entries.len()].copy_from_slice(&self.entries);
        out
    }
}

fn dot(a: &[E], b: &[E]) -> E {
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}

/// `Σ_b eq_b · values[b][i]` for each `i`, where the last example stands for all that fill up the batch.
pub(crate) fn batched(values: &[i32], width: usize, batch: &[E]) -> Vec<E> {
    let count = values.len() / width;
    let mut shares = batch[..count].to_vec();
    if let Some(last) = shares.last_mut() {
        *last += batch[count..].iter().copied().sum::<E>();
    }
    // Integers times field elements, lazily reduced: as the rows of a matrix.
    adjoint::transposed(values, &shares, width)
}
