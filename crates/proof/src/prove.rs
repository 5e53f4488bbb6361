//! The prover.

use assay_graph::{Graph, Node, Tensor, Trace};
use p3_field::PrimeCharacteristicRing as _;
use rayon::prelude::*;

use crate::circuit::{Circuit, Sizes};
use crate::commitment::{self, Root, prover::commit};
use crate::field::{Challenger, E, F, draw, int, observe};
use crate::file::WeightsProof;
use crate::key::{
    Key,
    prover::{Committed, OneTime},
};
use crate::verify::{Claim, Matrices, statement};
use crate::{Error, Proof, fractions, products, sumcheck};

/// What the prover is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Running the model.
    Run,
    /// Committing to what lies between inputs and outputs.
    Commit,
    /// Proving the look-ups.
    Lookups,
    /// Proving the linear relations.
    Linear,
    /// Opening the commitment.
    Open,
}

impl Stage {
    /// All stages in their order.
    pub const ALL: [Stage; 5] = [Stage::Run, Stage::Commit, Stage::Lookups, Stage::Linear, Stage::Open];
}

/// Runs the graph on a batch of inputs and proves its outputs. The same inputs give the same messages; of the nonces that do the
/// proof of work in an opening, threads take any that they find.
///
/// # Errors
/// [`Error::Graph`] when the inputs do not fit, [`Error::Size`] when they are too many for one proof.
pub fn prove(graph: &Graph, inputs: &[i32]) -> Result<Proof, Error> {
    prove_reporting(graph, inputs, &mut |_| ())
}

/// As [`prove`]; `report` is called as each stage begins.
///
/// # Errors
/// As [`prove`].
pub fn prove_reporting(graph: &Graph, inputs: &[i32], report: &mut dyn FnMut(Stage)) -> Result<Proof, Error> {
    let circuit = Circuit::new(graph);
    let sizes = circuit.sizes(graph.check_inputs(inputs)?)?;
    report(Stage::Run);
    let trace = graph.run(inputs)?;
    let witness = Witness::new(&circuit, sizes, &trace);
    finish(&circuit, sizes, inputs, trace.output(), witness, None, report)
}

/// As [`prove_reporting`], for a verifier that has only the key of the graph. The commitment to the weights is computed again.
///
/// # Errors
/// As [`prove`], and [`Error::Key`] when the key is of another model.
pub fn prove_with_key(
    graph: &Graph,
    key: &Key,
    inputs: &[i32],
    report: &mut dyn FnMut(Stage),
) -> Result<Proof, Error> {
    let circuit = Circuit::new(graph);
    let sizes = circuit.sizes(graph.check_inputs(inputs)?)?;
    report(Stage::Commit);
    let weights = Weights::commit(key, graph, None)?;
    report(Stage::Run);
    let trace = graph.run(inputs)?;
    let witness = Witness::new(&circuit, sizes, &trace);
    finish(&circuit, sizes, inputs, trace.output(), witness, Some(weights), report)
}

/// What the prover commits to, and where each row finds its entry.
pub(crate) struct Witness {
    /// Slots, then multiplicities, then zeros.
    pub(crate) committed: Vec<F>,
    /// The number of the entry that each row meets.
    pub(crate) hits: Vec<u32>,
    /// Results and operands of each product.
    pub(crate) products: Vec<products::prover::Values>,
}

impl Witness {
    pub(crate) fn new(circuit: &Circuit<'_>, sizes: Sizes, trace: &Trace) -> Witness {
        let padded = 1 << sizes.log_batch;
        let mut committed = vec![F::ZERO; 1 << sizes.log_committed];
        let mut hits = vec![0u32; circuit.rows * padded];
        let nodes = circuit.graph.nodes();
        for (i, range) in circuit.inputs.iter().enumerate() {
            let (range, first) = circuit.ranges[*range];
            let x = trace.tensor(Tensor::INPUT);
            for b in 0..padded {
                let value = x[b.min(trace.batch() - 1) * circuit.inputs.len() + i];
                committed[i * padded + b] = int(value);
                hits[i * padded + b] = first as u32 + (value - range.low) as u32;
            }
        }
        for lookup in &circuit.lookups {
            let Node::Lookup { input, shift, table } = &nodes[lookup.node] else { continue };
            let table = &circuit.graph.tables()[*table as usize];
            let x = trace.tensor(*input);
            let half = if *shift == 0 { 0 } else { 1 << (shift - 1) };
            let mask = (1 << shift) - 1;
            for i in 0..lookup.width {
                for b in 0..padded {
                    let example = b.min(trace.batch() - 1);
                    let sum = x[example * lookup.width + i] + half;
                    let entry = ((sum >> shift) - lookup.entries.1) as usize;
                    let (slot, row) = lookup.results;
                    committed[(slot + i) * padded + b] = int(table.values[entry]);
                    hits[(row + i) * padded + b] = (lookup.entries.0 + entry) as u32;
                    if let Some((slot, row)) = lookup.remainders {
                        let remainder = sum & mask;
                        committed[(slot + i) * padded + b] = int(remainder);
                        hits[(row + i) * padded + b] = (lookup.range_entries + remainder as usize) as u32;
                    }
                }
            }
        }
        let first = circuit.slots * padded;
        let mut counts = vec![0u32; circuit.entries.len()];
        hits.iter().for_each(|entry| counts[*entry as usize] += 1);
        committed[first..].iter_mut().zip(counts).for_each(|(out, count)| *out = F::from_u32(count));
        Witness {
            committed,
            hits,
            products: products::prover::values(&circuit.products, circuit.graph, trace),
        }
    }
}

/// Proves these outputs from a witness, as the protocol says, whether or not it is true.
pub(crate) fn finish(
    circuit: &Circuit<'_>,
    sizes: Sizes,
    inputs: &[i32],
    outputs: &[i32],
    witness: Witness,
    weights: Option<Weights<'_>>,
    report: &mut dyn FnMut(Stage),
) -> Result<Proof, Error> {
    let model = weights.as_ref().map_or(circuit.graph.id(), |weights| weights.key.id());
    let batch = inputs.len() / circuit.graph.inputs().len();
    let mut challenger = statement(&model, batch, inputs, outputs);
    report(Stage::Commit);
    if let Some(weights) = &weights {
        weights.observe(&mut challenger)?;
    }
    let (root, commitment) = commit(witness.committed.clone(), &mut challenger)?;
    let Argued { levels, products, rounds, weights, point } =
        argue(circuit, sizes, inputs, outputs, witness, weights, &mut challenger, report)?;
    let opening = commitment::prover::open(commitment, &point, &mut challenger)?;
    let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
    Ok(Proof { model, inputs, outputs, root, levels, products, rounds, weights, opening })
}

/// Committed weights.
pub(crate) struct Weights<'a> {
    pub(crate) key: &'a Key,
    vector: Vec<F>,
    root: Root,
    committed: Committed,
}

impl<'a> Weights<'a> {
    /// Commits to the weights again.
    ///
    /// # Errors
    /// [`Error::Key`] when the key is of another model, or hides its weights and there is nothing to open it with, or the other way around.
    pub(crate) fn commit(key: &'a Key, graph: &Graph, once: Option<&OneTime>) -> Result<Weights<'a>, Error> {
        let (vector, root, committed) = Committed::new(key, graph, once)?;
        Ok(Weights { key, vector, root, committed })
    }

    /// Absorbs the commitment.
    pub(crate) fn observe(&self, challenger: &mut Challenger) -> Result<(), Error> {
        commitment::observe(&self.root, self.key.layout.log, challenger)
    }
}

/// What a prover says after its commitment, and the point at which that is to be opened.
pub(crate) struct Argued {
    pub(crate) levels: Vec<fractions::Level>,
    pub(crate) products: Option<products::ProductsProof>,
    pub(crate) rounds: Vec<[E; 2]>,
    pub(crate) weights: Option<WeightsProof>,
    pub(crate) point: Vec<E>,
}

/// Everything between the commitment and its opening.
#[expect(clippy::too_many_arguments, reason = "the statement, the witness, and what was sent so far")]
pub(crate) fn argue(
    circuit: &Circuit<'_>,
    sizes: Sizes,
    inputs: &[i32],
    outputs: &[i32],
    witness: Witness,
    weights: Option<Weights<'_>>,
    challenger: &mut Challenger,
    report: &mut dyn FnMut(Stage),
) -> Result<Argued, Error> {
    let Witness { committed, hits, products: values } = witness;
    report(Stage::Lookups);
    let (alpha, beta) = (draw(challenger), draw(challenger));
    let beta_2 = beta * beta;
    let tables: Vec<E> = circuit
        .entries
        .iter()
        .map(|entry| alpha - beta_2 * F::from_u32(entry.tag) - beta * int(entry.value) - int(entry.key))
        .collect();
    let first = circuit.slots << sizes.log_batch;
    let mut denominators = vec![E::ONE; 1 << sizes.log_rows];
    denominators.par_iter_mut().zip(&hits).for_each(|(out, entry)| *out = tables[*entry as usize]);
    denominators[hits.len()..hits.len() + tables.len()].copy_from_slice(&tables);
    let mut numerators = vec![E::ONE; hits.len()];
    numerators.extend(committed[first..first + tables.len()].iter().map(|count| -E::from(*count)));
    numerators.resize(1 << sizes.log_rows, E::ZERO);
    let (levels, leaves) = fractions::prover::prove(numerators, denominators, challenger)?;

    report(Stage::Linear);
    let before = challenger.clone();
    let mut claim = Claim::new(circuit, sizes, alpha, beta, &leaves, inputs, outputs, challenger);
    // With committed weights: the claim as the verifier has it, and what is missing in it.
    let mut public = None;
    if let Some(weights) = weights {
        let graph = weights.key.graph();
        let circuit = Circuit::of(graph, !circuit.inputs.is_empty())?;
        let as_known =
            Claim::new(&circuit, sizes, alpha, beta, &leaves, inputs, outputs, &mut before.clone());
        let known = as_known.value - claim.value;
        observe(challenger, &[known]);
        public = Some((circuit, weights, as_known, known));
    }
    let products = (!circuit.products.is_empty()).then(|| {
        let (mut products, operands) =
            circuit.products.prove(&claim.products, &claim.batch, &values, challenger);
        claim.value -= products.value;
        let forms = circuit.products.forms(&operands);
        let value = circuit.products.matrices(circuit.graph, &forms);
        if public.is_some() && !forms.is_empty() {
            observe(challenger, &[value]);
            products.matrices = Some(value);
        }
        claim.join(circuit, &operands, Matrices { value, forms }, inputs, challenger);
        products
    });
    let functional = claim.weights(circuit);
    let (rounds, point, _) = sumcheck::prover::prove(&committed, functional, claim.value, challenger);

    report(Stage::Open);
    let weights = match public {
        None => None,
        Some((public_circuit, weights, mut public, known)) => {
            // What products read does not depend on committed weights.
            public.operands.clone_from(&claim.operands);
            public.matrices = claim.matrices.clone();
            let at_point = claim.weight_at(circuit, &point) - public.weight_at(&public_circuit, &point);
            let Weights { key, vector, committed, .. } = weights;
            let circuit = &public_circuit;
            let said = [known, at_point];
            Some(key.layout.prove(circuit, &public, &point, &vector, committed, said, challenger)?)
        }
    };
    Ok(Argued { levels, products, rounds, weights, point })
}
