//! Proofs that hide the inputs, the weights of a key, or both: what a prover knows gives these outputs, and nothing else can be learnt from the
//! proof.
//!
//! The protocol is that of [`verify`](crate::verify()) with three differences (after Frigo and shelat, ePrint 2024/2010). Hidden inputs are committed
//! to with everything else, and held to their ranges like the results of look-ups; hidden weights are in commitments of their [`key`](crate::key). The prover sends no message as it is, but the
//! message plus a one-time pad, all of which it has committed to. And since the verifier cannot check hidden messages, the prover shows at the end
//! that the pads are such that all checks hold: pads `v` and blinds `b` are committed, a challenge `γ` comes, and
//! `v* = b + γ v` is sent, with which every check becomes one of polynomials in `γ` (see [`value`](crate::value)). What is left are evaluations of
//! the committed vector at a few points; random elements in it make each of them uniform, and the commitment hides the rest.

use assay_graph::Graph;
use p3_field::{BasedVectorSpace as _, PrimeCharacteristicRing as _};

use crate::circuit::{Circuit, LOG_MAX, Sizes};
use crate::commitment::{self, Root};
use crate::field::{Challenger, DEGREE, E, F, absorb, at_end, draw, draw_point, eq_table, without_end};
use crate::file::{self, Reader, WeightsProof, hex};
use crate::fractions::{Level, NOT_IN_TABLE};
use crate::hiding_commitment::{self, LOG_MIN, Opening};
use crate::key::{Key, WeightsOpening};
use crate::products::ProductsProof;
use crate::value::{Hidden, Value};
use crate::verify::{self, Commitments, Messages, WRONG_VALUES};
use crate::{Error, Model};

/// The first bytes of the file of a proof that hides its inputs, and the version of its protocol and format.
const MAGIC: &[u8; 8] = b"ASSAYZK3";

/// The largest opening that is read; real ones stay below 900 kB.
const OPENING_BYTES_MAX: usize = 1 << 21;

/// Random elements that make one evaluation uniform, in a block of consecutive places of that size: those of `eq` at a random point are
/// then, but for a probability of 2^-123, enough to make every element of the extension from elements of the base field.
pub(crate) const FILLER: usize = 1 << 8;

/// Vectors in the block of pads: the coordinates of pads and of blinds, and random elements. A power of two.
const LOG_VECTORS: usize = 4;

/// A proof that somebody knows inputs, or weights, or both, for which a model has these outputs.
///
/// It is zero-knowledge: it shows nothing about what it hides but what the outputs say. Inputs that it does not hide are in it. Weights that it
/// does not hide are public, or those behind a [`Key`], whose openings then tell parts of them.
///
/// ```
/// use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
/// use assay_proof::{Hide, HidingProof, Model, prove_hiding};
/// let linear = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![2, -1], bias: vec![3] };
/// let round = Node::Lookup { input: Tensor(1), shift: 2, table: 0 };
/// let relu = Table::clamp(-3, 10, 0, 7);
/// let inputs = vec![Range { low: 0, high: 15 }; 2];
/// let graph = Graph::new(inputs, vec![relu], vec![linear, round], Tensor(2), Interface::plain(1))?;
///
/// // 32 bytes from the operating system's generator, which nobody else may know.
/// let seed = [7; 32];
/// let proof = prove_hiding(&graph, None, &[5, 1], Hide::Inputs, seed, &mut |_| ())?;
/// let proof = HidingProof::from_bytes(&proof.to_bytes()?)?;
/// assert_eq!(proof.outputs, [3]);
/// Model::Graph(graph).verify_hiding(&proof)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct HidingProof {
    /// The id of the graph or key.
    pub model: [u8; 32],
    /// How many examples the inputs are.
    pub examples: usize,
    /// The inputs, example by example; `None` when they are hidden.
    pub inputs: Option<Vec<i32>>,
    /// The outputs, example by example.
    pub outputs: Vec<i32>,
    /// The commitment, to the inputs among others when they are hidden.
    pub(crate) root: Root,
    /// The messages plus their pads.
    pub(crate) sent: Vec<E>,
    /// What is left of all checks, as a polynomial of degree 1 in the last challenge; padded.
    pub(crate) sums: [E; 2],
    /// The blinds plus the pads times the last challenge.
    pub(crate) blinded: Vec<E>,
    /// The opening of committed weights.
    pub(crate) weights: Option<WeightsOpening>,
    pub(crate) opening: Opening,
}

impl std::fmt::Debug for HidingProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HidingProof({}, {} examples)", hex(&self.model), self.examples)
    }
}

/// The sizes of one proof.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) sizes: Sizes,
    /// How many messages are sent.
    pub(crate) messages: usize,
    /// Base-two logarithm of the number of pads: one a message, one for the sums, at least [`FILLER`] for nothing.
    pub(crate) log_pads: usize,
    /// Of the committed vector, where the random elements begin that nothing reads.
    #[cfg_attr(not(feature = "prover"), expect(dead_code, reason = "the prover fills them in"))]
    pub(crate) filler: usize,
}

impl Plan {
    /// Finds the sizes for a batch, beside a commitment to 2^`log_weights` weights.
    ///
    /// # Errors
    /// [`Error::Size`] when it is beyond what one proof covers.
    pub(crate) fn new(
        circuit: &Circuit<'_>,
        batch: usize,
        log_weights: Option<usize>,
    ) -> Result<Plan, Error> {
        let mut sizes = circuit.sizes(batch)?;
        let levels = sizes.log_rows * (sizes.log_rows - 1) + 4 * sizes.log_rows;
        let products = if circuit.products.is_empty() {
            0
        } else {
            let matrices = log_weights.is_some() && circuit.products.has_matrices();
            4 + usize::from(matrices)
                + 2 * circuit.products.log_results
                + 3 * (circuit.products.log_operands + sizes.log_batch)
        };
        let weights = log_weights.map_or(0, |log| 2 + 2 * log);
        // A multiple of the block's size, so that the block is one face of the cube.
        let used = ((circuit.slots << sizes.log_batch) + circuit.entries.len()).next_multiple_of(FILLER);
        for log in sizes.log_committed.max(LOG_MIN)..=LOG_MAX {
            // The last two are about the root of the fractions.
            let messages = levels + products + weights + 2 * log + 2;
            let log_pads = (messages + 1 + FILLER).next_power_of_two().trailing_zeros() as usize;
            if used + FILLER + (1 << (log_pads + LOG_VECTORS)) <= 1 << log {
                sizes.log_committed = log;
                return Ok(Plan { sizes, messages, log_pads, filler: used });
            }
        }
        Err(Error::Size(format!("{used} values beside their pads, where one proof covers 2^{LOG_MAX}")))
    }

    /// The vector in the block of pads with this number, at a point: a point of the committed vector, at whose end the block lies.
    fn pads_at(&self, number: usize, point: &[E]) -> Vec<E> {
        let bit = |at: usize| E::from_bool(number >> (LOG_VECTORS - 1 - at) & 1 == 1);
        let mut out = vec![E::ONE; self.sizes.log_committed - LOG_VECTORS - self.log_pads];
        out.extend((0..LOG_VECTORS).map(bit));
        out.extend_from_slice(point);
        out
    }

    /// The points at which the commitment is opened, when the argument ends at `end` and pads are compared at `pads`: the end, the block of pads
    /// at the same place, and each coordinate of pads and blinds.
    fn points(&self, end: &[E], pads: &[E]) -> Vec<Vec<E>> {
        let same = at_end(end, LOG_VECTORS + self.log_pads);
        let vectors = (0..2 * DEGREE).map(|number| self.pads_at(number, pads));
        [end.to_vec(), same].into_iter().chain(vectors).collect()
    }

    /// What the committed vector is at `end` when there are zeros in the place of the pads, from the first two values.
    fn without_pads(&self, end: &[E], values: [E; 2]) -> E {
        without_end(end, LOG_VECTORS + self.log_pads, values)
    }
}

/// Messages in the order in which they are sent.
struct Read<V> {
    levels: Vec<Level<V>>,
    products: Option<ProductsProof<V>>,
    rounds: Vec<[V; 2]>,
    weights: Option<WeightsProof<V>>,
    /// The denominator of the root of the fractions, and its inverse.
    root: [V; 2],
}

/// Reads messages; `None` when they are too few.
fn read<V: Value>(
    messages: &[V],
    circuit: &Circuit<'_>,
    sizes: Sizes,
    log_weights: Option<usize>,
    opening: Option<&WeightsOpening>,
) -> Option<Read<V>> {
    fn take<V: Copy, const N: usize>(rest: &mut &[V]) -> Option<[V; N]> {
        let (head, tail) = rest.split_first_chunk()?;
        *rest = tail;
        Some(*head)
    }
    fn rounds<V: Copy, const N: usize>(rest: &mut &[V], count: usize) -> Option<Vec<[V; N]>> {
        (0..count).map(|_| take(rest)).collect()
    }
    let rest = &mut &*messages;
    let level = |number| Some(Level { rounds: rounds(rest, number)?, ends: take(rest)? });
    let levels = (0..sizes.log_rows).map(level).collect::<Option<_>>()?;
    let known: Option<[V; 1]> = if log_weights.is_some() { Some(take(rest)?) } else { None };
    let products = if circuit.products.is_empty() {
        None
    } else {
        let [value] = take(rest)?;
        let results = rounds(rest, circuit.products.log_results)?;
        let [result] = take(rest)?;
        let operand_rounds = rounds(rest, circuit.products.log_operands + sizes.log_batch)?;
        let operands = take(rest)?;
        let matrices = if log_weights.is_some() && circuit.products.has_matrices() {
            let [matrices] = take(rest)?;
            Some(matrices)
        } else {
            None
        };
        Some(ProductsProof { value, rounds: results, result, operand_rounds, operands, matrices })
    };
    let main = rounds(rest, sizes.log_committed)?;
    let weights = match (known, log_weights) {
        (Some([known]), Some(log)) => {
            let [at_point] = take(rest)?;
            Some(WeightsProof { known, at_point, rounds: rounds(rest, log)?, opening: opening?.clone() })
        }
        _ => None,
    };
    Some(Read { levels, products, rounds: main, weights, root: take(rest)? })
}

/// What is left of all checks.
pub(crate) struct Settled {
    /// The point at which the commitment is opened.
    pub(crate) end: Vec<E>,
    /// The sum of all checks, as a polynomial in `γ`.
    pub(crate) sums: [E; 3],
}

/// Follows hidden messages; `values` has the values of the commitment at the point where they end, and at that point in the block of pads.
///
/// # Errors
/// [`Error::Rejected`].
#[expect(clippy::too_many_arguments, reason = "the statement, what was sent, and what is known of it")]
pub(crate) fn settle(
    circuit: &Circuit<'_>,
    plan: &Plan,
    commitments: &Commitments<'_>,
    weights: Option<&WeightsOpening>,
    messages: &[Hidden],
    [inputs, outputs]: [&[i32]; 2],
    values: impl FnOnce(&[E]) -> [E; 2],
    challenger: &mut Challenger,
) -> Result<Settled, Error> {
    let log_weights = log_weights(commitments.key);
    let read = read(messages, circuit, plan.sizes, log_weights, weights)
        .ok_or(Error::Rejected("it is of another size"))?;
    let messages = Messages {
        levels: &read.levels,
        products: read.products.as_ref(),
        rounds: &read.rounds,
        weights: read.weights.as_ref(),
    };
    let mut residuals = Vec::new();
    let (sizes, left) = (plan.sizes, &mut residuals);
    let end = verify::follow(circuit, sizes, commitments, &messages, inputs, outputs, challenger, left)?;
    // The root is no zero: it has an inverse.
    let ([root, inverse], one) = (read.root, Hidden::known(E::ONE));
    Hidden::absorb(&read.root, challenger);
    Hidden::equal(end.root, root, left, NOT_IN_TABLE)?;
    Hidden::equal(root.times(inverse), one, left, NOT_IN_TABLE)?;
    let values = values(&end.point);
    absorb(&mut challenger.sponge, &values);
    let opened = end.weight * plan.without_pads(&end.point, values);
    Hidden::equal(one.times(opened), end.value, left, "the committed values do not fit the model")?;
    // All at once: each with another power of a challenge.
    let delta = draw(challenger);
    let mut sums = [E::ZERO; 3];
    for residual in residuals {
        sums = std::array::from_fn(|i| sums[i] * delta + residual[i]);
    }
    Ok(Settled { end: end.point, sums })
}

/// What the coordinates of the blinds are at a point, given those of the pads and `blinded` there, which is the blinds plus `gamma` times the pads.
pub(crate) fn blinds(blinded: &[E], gamma: E, pads: &[E; DEGREE], at: &[E]) -> [E; DEGREE] {
    let mut out = [E::ZERO; DEGREE];
    for (blinded, eq) in blinded.iter().zip(eq_table(at)) {
        let coordinates: &[F] = blinded.as_basis_coefficients_slice();
        out.iter_mut().zip(coordinates).for_each(|(out, coordinate)| *out += eq * *coordinate);
    }
    for (number, pad) in pads.iter().enumerate() {
        let product = gamma * E::from_basis_coefficients_fn(|i| F::from_bool(i == number));
        let coordinates: &[F] = product.as_basis_coefficients_slice();
        out.iter_mut().zip(coordinates).for_each(|(out, coordinate)| *out -= *pad * *coordinate);
    }
    out
}

impl Model {
    /// Checks a proof that hides its inputs, the weights, or both.
    ///
    /// # Errors
    /// As [`verify`](crate::verify()).
    pub fn verify_hiding(&self, proof: &HidingProof) -> Result<(), Error> {
        let (graph, key) = match self {
            Model::Graph(graph) => (graph, None),
            Model::Key(key) => (key.graph(), Some(key)),
        };
        check(graph, self.id(), key, proof)
    }

    /// As [`security_bits`](Self::security_bits), for proofs that hide the inputs, or the weights alone.
    ///
    /// # Errors
    /// [`Error::Size`] when no such proof covers the batch.
    pub fn hiding_security_bits(&self, examples: usize, hides_inputs: bool) -> Result<f64, Error> {
        let circuit = Circuit::of(self.graph(), hides_inputs)?;
        let key = match self {
            Model::Graph(_) => None,
            Model::Key(key) => Some(key),
        };
        let log_weights = log_weights(key);
        let plan = Plan::new(&circuit, examples, log_weights)?;
        let size = || Error::Size("there is no commitment of this size".into());
        let opening = hiding_commitment::security_bits(plan.sizes.log_committed).ok_or_else(size)?;
        let mut error = 2f64.powf(-opening);
        let mut candidates = 0.0;
        match (log_weights, key.and_then(Key::hiding_proofs)) {
            (None, _) => {}
            (Some(log), None) => {
                let (weights, more) = commitment::opening_bits(log).ok_or_else(size)?;
                error += 2f64.powf(-weights);
                candidates = more;
            }
            (Some(log), Some(proofs)) => {
                error += 2f64.powf(-hiding_commitment::security_bits(log).ok_or_else(size)?);
                // Two of the key's commitments are to other weights, and agree at a random point.
                let pairs = f64::from(proofs) * f64::from(proofs) / 2.0;
                error += pairs * log as f64 * 2f64.powf(-commitment::FIELD_BITS);
            }
        }
        // One commitment stands for one vector. Beside the plain protocol's: the sum of all checks, `γ`, the point of the pads.
        let degrees =
            commitment::degrees(plan.sizes.log_rows, plan.sizes.log_committed, log_weights.is_some())
                + (plan.sizes.log_rows + 8) as f64
                + 2.0
                + plan.log_pads as f64;
        Ok(-(error + degrees * 2f64.powf(candidates - commitment::FIELD_BITS)).log2())
    }
}

fn check(graph: &Graph, id: [u8; 32], key: Option<&Key>, proof: &HidingProof) -> Result<(), Error> {
    if proof.model != id {
        return Err(Error::Model { expected: hex(&id), found: hex(&proof.model) });
    }
    let inputs = proof.inputs.as_deref();
    if let Some(inputs) = inputs {
        if !proof.hides_weights() {
            return Err(Error::Rejected("it hides nothing"));
        }
        if graph.check_inputs(inputs)? != proof.examples {
            return Err(Error::Rejected("it has other inputs than examples"));
        }
    }
    verify::check_outputs(graph, proof.examples, &proof.outputs)?;
    if proof.weights.is_some() != key.is_some() {
        return Err(Error::Rejected(
            "it says nothing about the committed weights, or of some that are not there",
        ));
    }
    let circuit = Circuit::of(graph, inputs.is_none())?;
    let plan = Plan::new(&circuit, proof.examples, log_weights(key))?;
    let evals = &proof.opening.evals;
    let (Some(values), Some(pads)) = (evals.first_chunk::<2>(), evals.get(2..).and_then(<[E]>::first_chunk))
    else {
        return Err(Error::Rejected("it is of another size"));
    };
    if proof.sent.len() != plan.messages
        || proof.blinded.len() != 1 << plan.log_pads
        || evals.len() != 2 + 2 * DEGREE
    {
        return Err(Error::Rejected("it is of another size"));
    }
    let messages: Vec<Hidden> = proof
        .sent
        .iter()
        .zip(&proof.blinded)
        .map(|(sent, blinded)| Hidden { sent: *sent, masked: [-*blinded, *sent] })
        .collect();
    let mut challenger = statement(&id, proof.examples, inputs, &proof.outputs);
    let commitments = Commitments { key, root: &proof.root };
    let weights = proof.weights.as_ref();
    let Settled { end, sums } = settle(
        &circuit,
        &plan,
        &commitments,
        weights,
        &messages,
        [inputs.unwrap_or(&[]), &proof.outputs],
        |_| *values,
        &mut challenger,
    )?;
    absorb(&mut challenger.sponge, &proof.sums);
    let gamma = draw(&mut challenger);
    if !balances(sums, proof.sums, proof.blinded[plan.messages], gamma) {
        return Err(WRONG_VALUES);
    }
    absorb(&mut challenger.sponge, &proof.blinded);
    let at = draw_point(&mut challenger, plan.log_pads);
    if blinds(&proof.blinded, gamma, pads, &at) != evals[2 + DEGREE..] {
        return Err(Error::Rejected("the pads are not those that it committed to"));
    }
    hiding_commitment::verify(&proof.root, &proof.opening, &plan.points(&end, &at), &mut challenger)
}

/// Whether the sum of all checks at `gamma`, with its pad, is what the prover said before it knew `gamma`.
pub(crate) fn balances(sums: [E; 3], said: [E; 2], pad: E, gamma: E) -> bool {
    sums[0] + gamma * (sums[1] + gamma * sums[2]) + pad == said[0] + gamma * said[1]
}

fn log_weights(key: Option<&Key>) -> Option<usize> {
    key.map(|key| key.layout.log)
}

/// The transcript of a statement: protocol, model, outputs, and inputs that are not hidden.
pub(crate) fn statement(
    model: &[u8; 32],
    examples: usize,
    inputs: Option<&[i32]>,
    outputs: &[i32],
) -> Challenger {
    let mut bytes = b"assay hiding proof".to_vec();
    bytes.extend_from_slice(&3u32.to_le_bytes());
    bytes.extend_from_slice(model);
    bytes.extend_from_slice(&(examples as u32).to_le_bytes());
    bytes.extend_from_slice(&verify::hash(outputs));
    bytes.push(u8::from(inputs.is_some()));
    bytes.extend(inputs.map(verify::hash).into_iter().flatten());
    crate::field::transcript(bytes)
}

impl HidingProof {
    /// Whether bytes begin as the file of such a proof does.
    pub fn is_hiding(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Whether it is about committed weights, so that a [`Key`] is needed.
    pub fn has_committed_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// Whether it tells nothing about the weights behind its key.
    pub fn hides_weights(&self) -> bool {
        matches!(self.weights, Some(WeightsOpening::Hiding(..)))
    }

    /// The commitment to all that lies between inputs and outputs, and to the inputs when they are hidden.
    pub fn commitment(&self) -> [u8; 32] {
        self.root
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// [`Error::Prover`] when the opening cannot be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut w = MAGIC.to_vec();
        w.extend_from_slice(&self.model);
        w.extend_from_slice(&(self.examples as u32).to_le_bytes());
        match &self.inputs {
            None => w.push(0),
            Some(inputs) => {
                w.push(1);
                file::put_varints(&mut w, inputs);
            }
        }
        file::put_varints(&mut w, &self.outputs);
        w.extend_from_slice(&self.root);
        for list in [&self.sent[..], &self.sums, &self.blinded] {
            w.extend_from_slice(&(list.len() as u32).to_le_bytes());
            list.iter().for_each(|element| file::put_element(&mut w, *element));
        }
        match &self.weights {
            None => w.push(0),
            Some(WeightsOpening::Open(opening)) => {
                w.push(1);
                file::put_opening(&mut w, opening)?;
            }
            Some(WeightsOpening::Hiding(number, opening)) => {
                w.push(2);
                w.extend_from_slice(&number.to_le_bytes());
                file::put_opening(&mut w, opening)?;
            }
        }
        w.extend_from_slice(&file::encoded(&self.opening)?);
        Ok(w)
    }

    /// Bytes of the proof alone, without inputs and outputs.
    ///
    /// # Errors
    /// As [`to_bytes`](Self::to_bytes).
    pub fn proof_len(&self) -> Result<usize, Error> {
        Ok(HidingProof { inputs: None, outputs: Vec::new(), ..self.clone() }.to_bytes()?.len())
    }

    /// Reads a file. Every proof has one form only: any other bytes of the same meaning are refused.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn from_bytes(bytes: &[u8]) -> Result<HidingProof, Error> {
        if bytes.len() > file::FILE_BYTES_MAX {
            return Err(Error::File("it is larger than any proof"));
        }
        let mut r = Reader { bytes };
        if r.take(MAGIC.len())? != MAGIC {
            return Err(Error::File("it does not begin as one of this version does"));
        }
        let model = r.array()?;
        let examples = u32::from_le_bytes(r.array()?) as usize;
        let inputs = match r.array()? {
            [0] => None,
            [1] => Some(r.varints()?),
            _ => return Err(Error::File("it has an unknown part")),
        };
        let outputs = r.varints()?;
        let root = r.array()?;
        let sent = r.elements()?;
        let sums = r.elements()?;
        let blinded = r.elements()?;
        let weights = match r.array()? {
            [0] => None,
            [1] => Some(WeightsOpening::Open(Box::new(r.opening(file::OPENING_BYTES_MAX)?))),
            [2] => {
                let number = u32::from_le_bytes(r.array()?);
                Some(WeightsOpening::Hiding(number, Box::new(r.opening(OPENING_BYTES_MAX)?)))
            }
            _ => return Err(Error::File("it has an unknown part")),
        };
        let opening = file::opening(r.bytes, OPENING_BYTES_MAX)?;
        let sums = *sums.as_array().ok_or(Error::File("it has an unknown part"))?;
        Ok(HidingProof { model, examples, inputs, outputs, root, sent, sums, blinded, weights, opening })
    }
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::field::{Pads, observe};
    use crate::hiding_commitment::prover::{commit, open};
    use crate::key::prover::OneTime;
    use crate::prove::{Argued, Stage, Weights, Witness, argue};
    use p3_field::Field as _;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    /// What a proof is not to tell.
    pub enum Hide {
        /// The inputs. The weights are public, or behind a key that does not hide them.
        Inputs,
        /// The weights behind a key that hides them. The inputs are in the proof.
        Weights(OneTime),
        /// The inputs, and the weights behind a key that hides them.
        Both(OneTime),
    }

    /// Runs the graph on a batch of inputs, and proves its outputs without telling anything else about what is to be hidden; with a key for a
    /// verifier that has only that.
    ///
    /// `seed` is 32 bytes that nobody else knows and that are used once: from the operating system's generator. Whoever knows them can
    /// read in the proof what it hides.
    ///
    /// # Errors
    /// As [`prove_with_key`](crate::prove_with_key); [`Error::Size`] also when the ranges of hidden inputs are too large; [`Error::Key`] also when
    /// weights are to be hidden and the key does not hide them, or the other way around.
    pub fn prove_hiding(
        graph: &Graph,
        key: Option<&Key>,
        inputs: &[i32],
        hide: Hide,
        seed: [u8; 32],
        report: &mut dyn FnMut(Stage),
    ) -> Result<HidingProof, Error> {
        let (once, hides_inputs) = match hide {
            Hide::Inputs => (None, true),
            Hide::Weights(once) => (Some(once), false),
            Hide::Both(once) => (Some(once), true),
        };
        let circuit = Circuit::of(graph, hides_inputs)?;
        let batch = graph.check_inputs(inputs)?;
        let plan = Plan::new(&circuit, batch, log_weights(key))?;
        report(Stage::Commit);
        let weights = match (key, once) {
            (Some(key), once) => Some(Weights::commit(key, graph, once.as_ref())?),
            (None, Some(_)) => return Err(Error::Key("only weights behind a key can be hidden")),
            (None, None) => None,
        };
        report(Stage::Run);
        let trace = graph.run(inputs)?;
        let witness = Witness::new(&circuit, plan.sizes, &trace);
        let mut rng = StdRng::from_seed(seed);
        let block = Block::new(plan.log_pads, &mut rng);
        let shown = [inputs, trace.output()];
        finish(&circuit, &plan, batch, shown, witness, weights, block, &mut rng, report)
    }

    /// Pads, blinds and the block of the committed vector that holds them.
    pub(crate) struct Block {
        pub(crate) pads: Vec<E>,
        pub(crate) blinds: Vec<E>,
        pub(crate) block: Vec<F>,
    }

    impl Block {
        pub(crate) fn new(log_pads: usize, rng: &mut StdRng) -> Block {
            let len = 1 << log_pads;
            let block: Vec<F> = (0..len << LOG_VECTORS).map(|_| rng.random()).collect();
            let element = |first: usize, at: usize| {
                E::from_basis_coefficients_fn(|coordinate| block[((first + coordinate) << log_pads) + at])
            };
            let pads = (0..len).map(|at| element(0, at)).collect();
            let blinds = (0..len).map(|at| element(DEGREE, at)).collect();
            Block { pads, blinds, block }
        }
    }

    /// Proves these outputs from a witness, as the protocol says, whether or not it is true.
    #[expect(clippy::too_many_arguments, reason = "the statement, the witness, and what hides it")]
    pub(crate) fn finish(
        circuit: &Circuit<'_>,
        plan: &Plan,
        batch: usize,
        [inputs, outputs]: [&[i32]; 2],
        mut witness: Witness,
        weights: Option<Weights<'_>>,
        Block { pads, blinds, block }: Block,
        rng: &mut StdRng,
        report: &mut dyn FnMut(Stage),
    ) -> Result<HidingProof, Error> {
        let key = weights.as_ref().map(|weights| weights.key);
        let model = key.map_or(circuit.graph.id(), Key::id);
        let inputs = circuit.inputs.is_empty().then_some(inputs);
        report(Stage::Commit);
        witness.committed[plan.filler..plan.filler + FILLER].fill_with(|| rng.random());
        let mut vector = witness.committed.clone();
        let first = vector.len() - block.len();
        vector[first..].copy_from_slice(&block);
        let mut challenger = statement(&model, batch, inputs, outputs);
        let mut replayed = challenger.clone();
        if let Some(weights) = &weights {
            weights.observe(&mut challenger)?;
        }
        let committed = commit(vector, rng)?;
        let root = committed.root()?;
        commitment::observe(&root, plan.sizes.log_committed, &mut challenger)?;

        challenger.pads = Some(Pads { pads: pads[..plan.messages].to_vec(), sent: Vec::new() });
        let seen = inputs.unwrap_or(&[]);
        let argued = argue(circuit, plan.sizes, seen, outputs, witness, weights, &mut challenger, report)?;
        let Argued { levels, weights, .. } = argued;
        let root_denominator = levels.first().map_or(E::ZERO, |level| level.ends[2] * level.ends[3]);
        let inverse = root_denominator.try_inverse().unwrap_or(E::ZERO);
        observe(&mut challenger, &[root_denominator, inverse]);
        let sent = challenger.pads.take().map_or(Vec::new(), |pads| pads.sent);
        if sent.len() != plan.messages {
            return Err(Error::Prover(format!("{} messages for {} pads", sent.len(), plan.messages)));
        }

        // What the verifier will see, with blinds and messages in the place of what is sent for them.
        let messages: Vec<Hidden> = (0..sent.len())
            .map(|at| Hidden { sent: sent[at], masked: [-blinds[at], sent[at] - pads[at]] })
            .collect();
        let commitments = Commitments { key, root: &root };
        let weights = weights.map(|weights| weights.opening);
        let values = |end: &[E]| {
            let points = plan.points(end, &[]);
            [committed.value(&points[0]), committed.value(&points[1])]
        };
        let opened = weights.as_ref();
        // With a key, the verifier's circuit has no weights.
        let public = key.map(|key| Circuit::of(key.graph(), inputs.is_none())).transpose()?;
        let public = public.as_ref().unwrap_or(circuit);
        let shown = [seen, outputs];
        let Settled { end, sums } =
            settle(public, plan, &commitments, opened, &messages, shown, values, &mut replayed)?;
        let sums = [sums[0] + blinds[plan.messages], sums[1] + pads[plan.messages]];
        absorb(&mut replayed.sponge, &sums);
        let gamma = draw(&mut replayed);
        let blinded: Vec<E> = blinds.iter().zip(&pads).map(|(blind, pad)| *blind + gamma * *pad).collect();
        absorb(&mut replayed.sponge, &blinded);
        let at = draw_point(&mut replayed, plan.log_pads);
        let opening = open(committed, &plan.points(&end, &at), &mut replayed)?;
        let (inputs, outputs) = (inputs.map(<[i32]>::to_vec), outputs.to_vec());
        Ok(HidingProof {
            model,
            examples: batch,
            inputs,
            outputs,
            root,
            sent,
            sums,
            blinded,
            weights,
            opening,
        })
    }
}
