//! The verifier, and what it shares with the prover: the statement and the final linear claim.

use assay_graph::{Graph, Range};
use p3_field::PrimeCharacteristicRing as _;

use crate::adjoint::{self, inner};
use crate::circuit::{Circuit, Sizes};
use crate::field::{Challenger, E, F, draw, draw_point, eq, eq_table, int};
use crate::fractions::Leaves;
use crate::{Error, Proof, VERSION, commitment, file, fractions, product};

/// Checks that the proof's inputs give its outputs in this graph.
///
/// Time and memory are bounded by the graph and the batch, whatever the proof holds.
///
/// # Errors
/// [`Error::Model`] when the proof is about another graph, [`Error::Graph`] and [`Error::Size`] when its inputs do not fit,
/// and [`Error::Rejected`] when it proves nothing.
pub fn verify(graph: &Graph, proof: &Proof) -> Result<(), Error> {
    let id = graph.id();
    if proof.model != id {
        return Err(Error::Model { expected: file::hex(&id), found: file::hex(&proof.model) });
    }
    let batch = graph.check_inputs(&proof.inputs)?;
    let circuit = Circuit::new(graph);
    let sizes = circuit.sizes(batch)?;
    let outputs = graph.width(graph.output());
    // Within the range that the graph can reach, an integer is determined by its value in the field.
    let Range { low, high } = graph.range(graph.output());
    if proof.outputs.len() != outputs * batch || proof.outputs.iter().any(|y| !(low..=high).contains(y)) {
        return Err(Error::Rejected("the outputs are not of this model"));
    }
    if proof.levels.len() != sizes.log_rows || proof.rounds.len() != sizes.log_committed {
        return Err(Error::Rejected("it is of another size"));
    }
    let mut challenger = statement(&id, batch, &proof.inputs, &proof.outputs);
    commitment::observe(&proof.root, sizes.log_committed, &mut challenger)?;
    let (alpha, beta) = (draw(&mut challenger), draw(&mut challenger));
    let leaves = fractions::verify(&proof.levels, &mut challenger)?;
    let claim =
        Claim::new(&circuit, sizes, alpha, beta, &leaves, &proof.inputs, &proof.outputs, &mut challenger);
    let mut value = claim.value;
    let point = product::verify(&proof.rounds, &mut value, &mut challenger);
    let opened = commitment::verify(&proof.root, &proof.opening, &point, &mut challenger)?;
    if claim.weight_at(&circuit, &point) * opened != value {
        return Err(Error::Rejected("the committed values do not fit the model, its inputs and outputs"));
    }
    Ok(())
}

/// The transcript of a statement: protocol, model, inputs and outputs.
pub(crate) fn statement(model: &[u8; 32], batch: usize, inputs: &[i32], outputs: &[i32]) -> Challenger {
    let hash = |values: &[i32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        *blake3::hash(&bytes).as_bytes()
    };
    let mut bytes = b"assay proof".to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(model);
    bytes.extend_from_slice(&(batch as u32).to_le_bytes());
    bytes.extend_from_slice(&hash(inputs));
    bytes.extend_from_slice(&hash(outputs));
    crate::field::transcript(bytes)
}

/// The one claim that is left after the look-ups: a linear function of the committed vector has a value.
pub(crate) struct Claim {
    sizes: Sizes,
    /// The value of the function.
    pub(crate) value: E,
    /// The weight of each slot.
    slots: Vec<E>,
    /// The point of the batch; an example's share of a slot's weight is `eq` of it.
    batch: Vec<E>,
    /// The weight of each multiplicity.
    pub(crate) entries: Vec<E>,
}

impl Claim {
    /// Draws the challenges that combine the claims about denominators, outputs and numerators, in this order.
    #[expect(clippy::too_many_arguments, reason = "everything that the protocol has sent so far")]
    pub(crate) fn new(
        circuit: &Circuit<'_>,
        sizes: Sizes,
        alpha: E,
        beta: E,
        leaves: &Leaves,
        inputs: &[i32],
        outputs: &[i32],
        challenger: &mut Challenger,
    ) -> Claim {
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
        let multiplicities = rows_sum - leaves.numerator;
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
        let keys_and_values = known - leaves.denominator;

        let output_table = eq_table(&output_point);
        let output_weights: Vec<E> = output_table[..width].iter().map(|weight| *weight * lambda).collect();
        let linear = adjoint::pull_back(circuit, rows, beta, &output_weights);
        let example = |values: &[i32], weights: &[E]| batched(values, weights, &batch_table);
        let value = keys_and_values + example(outputs, &output_weights) + lambda * lambda * multiplicities
            - linear.constant
            - example(inputs, &linear.inputs);
        let lambda_2 = lambda * lambda;
        let entries = entry_weights.into_iter().map(|weight| weight * lambda_2).collect();
        Claim { sizes, value, slots: linear.slots, batch: batch_point.to_vec(), entries }
    }

    /// The multilinear extension of the function's weights at a point.
    pub(crate) fn weight_at(&self, circuit: &Circuit<'_>, point: &[E]) -> E {
        let (high, low) = point.split_at(self.sizes.log_committed - self.sizes.log_batch);
        let (high, low_table) = (eq_table(high), eq_table(low));
        let slots: E = self.slots.iter().zip(&high).map(|(weight, eq)| *weight * *eq).sum();
        let first = circuit.slots << self.sizes.log_batch;
        let mask = low_table.len() - 1;
        let entries: E = (first..)
            .zip(&self.entries)
            .map(|(at, weight)| *weight * high[at >> self.sizes.log_batch] * low_table[at & mask])
            .sum();
        slots * eq(&self.batch, low) + entries
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
        out[first..first + self.entries.len()].copy_from_slice(&self.entries);
        out
    }
}

/// `Σ_b eq_b Σ_i weights_i · values[b][i]`, where the last example stands for all that fill up the batch.
fn batched(values: &[i32], weights: &[E], batch: &[E]) -> E {
    let mut rest = E::ONE;
    let count = values.len() / weights.len();
    let mut total = E::ZERO;
    for (number, example) in values.chunks_exact(weights.len()).enumerate() {
        let share = if number + 1 == count { rest } else { batch[number] };
        rest -= share;
        total += share * inner(example, weights);
    }
    total
}
