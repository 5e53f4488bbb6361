//! Keys: a model without its weights, and a commitment to them, or many that hide them.

use assay_graph::Graph;

use crate::circuit::LOG_MAX;
use crate::commitment::{self, Root};
use crate::error::Error;
use crate::field::{Challenger, E, at_end, draw_point, transcript, without_end};
use crate::file::{self, Reader};
use crate::hiding::FILLER;
use crate::hiding_commitment;
use crate::weights::Layout;

/// The first bytes of a key: "assay key" and the version of the protocol.
const MAGIC: &[u8; 8] = b"ASSAYKY5";

/// The most proofs for which one key hides its weights.
pub const HIDING_PROOFS_MAX: u32 = 1 << 16;

/// Base-two logarithm of the random elements at the end of a commitment that hides weights: as many as make two evaluations uniform.
const LOG_OWN: usize = FILLER.trailing_zeros() as usize;

/// What a verifier keeps instead of a model: the graph without the weights and biases of its linear maps and convolutions, and a commitment
/// to them. A proof that is checked with a key is about *the weights that were committed to*, whatever they are; that they are those of
/// some model is known to whoever made the key from it, see [`Key::commit`].
///
/// ```
/// use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
/// use assay_proof::{Key, prove_with_key, verify_with_key};
/// let linear = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![2, -1], bias: vec![3] };
/// let round = Node::Lookup { input: Tensor(1), shift: 2, table: 0 };
/// let relu = Table::clamp(-3, 10, 0, 7);
/// let inputs = vec![Range { low: 0, high: 15 }; 2];
/// let graph = Graph::new(inputs, vec![relu], vec![linear, round], Tensor(2), Interface::plain(1))?;
///
/// let key = Key::commit(&graph)?;
/// let proof = prove_with_key(&graph, &key, &[5, 1], &mut |_| ())?;
/// // Who checks it has the key only.
/// let key = Key::from_bytes(&key.to_bytes())?;
/// verify_with_key(&key, &proof)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Key {
    graph: Graph,
    /// Where the weights lie in what is committed to.
    pub(crate) layout: Layout,
    pub(crate) weights: WeightsCommitment,
    pub(crate) id: [u8; 32],
}

/// What stands for the weights of a key.
#[derive(Clone, Debug)]
pub(crate) enum WeightsCommitment {
    /// A commitment that is opened in every proof, and tells a little each time.
    Open(Root),
    /// Commitments that tell nothing, each for one proof.
    Hiding {
        roots: Vec<Root>,
        /// What all are at `point` without the random elements at their ends.
        value: E,
        /// A point that nobody knew before all roots: vectors that agree there are the same.
        point: Vec<E>,
    },
}

/// The opening of committed weights.
#[derive(Clone)]
pub(crate) enum WeightsOpening {
    Open(Box<commitment::Opening>),
    /// Of the key's commitment with this number.
    Hiding(u32, Box<hiding_commitment::Opening>),
}

const HIDES_ONE: Error =
    Error::Rejected("it hides the weights and its key does not, or the other way around");

/// Where weights lie in a commitment that hides them: behind them are [`FILLER`] random elements that all commitments of a key share, and at the
/// end as many that each has for itself.
fn hiding_layout(graph: &Graph) -> Result<Layout, Error> {
    let mut layout = Layout::new(graph)?;
    let len = shared_filler(&layout) + 2 * FILLER;
    layout.log = (len.next_power_of_two().trailing_zeros() as usize).max(hiding_commitment::LOG_MIN);
    if layout.log > LOG_MAX {
        return Err(Error::Key("there are too many weights for one commitment"));
    }
    Ok(layout)
}

/// The first of the random elements that all commitments share.
fn shared_filler(layout: &Layout) -> usize {
    // A multiple of their number, so that they are one face of the cube.
    layout.used.next_multiple_of(FILLER)
}

/// The point at which commitments that hide weights are the same.
///
/// # Errors
/// [`Error::Key`] when one is there twice.
pub(crate) fn common_point(roots: &[Root], graph: &Graph, layout: &Layout) -> Result<Vec<E>, Error> {
    let mut known = std::collections::HashSet::new();
    if !roots.iter().all(|root| known.insert(*root)) {
        return Err(Error::Key("it has the same commitment twice"));
    }
    let len = (roots.len() as u32).to_le_bytes();
    let statement = [&b"assay hidden weights"[..], MAGIC, &len, &roots.concat(), &graph.encode()].concat();
    Ok(draw_point(&mut transcript(statement), layout.log))
}

impl Key {
    /// Commits to the weights of a model. The same model gives the same key.
    ///
    /// # Errors
    /// [`Error::Key`] when it has no weights or they cannot be committed to, [`Error::Graph`] when it is no valid graph without
    /// them.
    #[cfg(feature = "prover")]
    pub fn commit(graph: &Graph) -> Result<Key, Error> {
        let public = graph.without_weights()?;
        let layout = Layout::new(&public)?;
        // The transcript of a proof absorbs the root later.
        let (root, _) = commitment::prover::commit(layout.vector(graph), &mut transcript(Vec::new()))?;
        Key::new(public, layout, WeightsCommitment::Open(root))
    }

    fn new(graph: Graph, layout: Layout, weights: WeightsCommitment) -> Result<Key, Error> {
        if layout.is_empty() {
            return Err(Error::Key("the model has no weights"));
        }
        let mut key = Key { graph, layout, weights, id: [0; 32] };
        key.id = *blake3::hash(&key.to_bytes()).as_bytes();
        Ok(key)
    }

    /// The model without its weights. It cannot run.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The BLAKE3 hash of the key's bytes: what a proof names as its model.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// For how many proofs it hides the weights; `None` when it does not.
    pub fn hiding_proofs(&self) -> Option<u32> {
        match &self.weights {
            WeightsCommitment::Open(_) => None,
            WeightsCommitment::Hiding { roots, .. } => Some(roots.len() as u32),
        }
    }

    /// Whether bytes begin as a key of this version does.
    pub fn is_key(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// The graph in the bytes of a key; `None` when they do not begin as one.
    pub(crate) fn graph_bytes(bytes: &[u8]) -> Option<&[u8]> {
        let mut reader = Reader { bytes: bytes.strip_prefix(MAGIC)? };
        read_commitments(&mut reader).ok()?;
        Some(reader.bytes)
    }

    /// The bytes of a key file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = MAGIC.to_vec();
        match &self.weights {
            WeightsCommitment::Open(root) => {
                w.extend_from_slice(&0u32.to_le_bytes());
                w.extend_from_slice(root);
            }
            WeightsCommitment::Hiding { roots, value, .. } => {
                w.extend_from_slice(&(roots.len() as u32).to_le_bytes());
                roots.iter().for_each(|root| w.extend_from_slice(root));
                file::put_element(&mut w, *value);
            }
        }
        w.extend_from_slice(&self.graph.encode());
        w
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`Error::File`] when it does not begin as one, [`Error::Graph`] and [`Error::Key`] when the model in it is not valid.
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, Error> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(Error::File("it does not begin as a key of this version does"))?;
        let mut reader = Reader { bytes: rest };
        let (roots, value) = read_commitments(&mut reader)?;
        let graph = Graph::decode(reader.bytes)?;
        let Some(value) = value else {
            let layout = Layout::new(&graph)?;
            return Key::new(graph, layout, WeightsCommitment::Open(roots[0]));
        };
        let layout = hiding_layout(&graph)?;
        let point = common_point(&roots, &graph, &layout)?;
        Key::new(graph, layout, WeightsCommitment::Hiding { roots, value, point })
    }

    /// As [`security_bits`](crate::security_bits), for a proof with this key: both commitments count.
    ///
    /// # Errors
    /// [`Error::Size`] when no proof covers the batch; [`Error::Key`] when it hides its weights, which such a proof does not.
    pub fn security_bits(&self, batch: usize) -> Result<f64, Error> {
        if self.hiding_proofs().is_some() {
            return Err(Error::Key("the key hides its weights: a proof with it has to hide them"));
        }
        crate::bits(&self.graph, batch, Some(self.layout.log))
    }

    /// The commitment that is opened.
    ///
    /// # Errors
    /// [`Error::Rejected`] when there is none.
    pub(crate) fn root(&self, opening: &WeightsOpening) -> Result<&Root, Error> {
        match (&self.weights, opening) {
            (WeightsCommitment::Open(root), WeightsOpening::Open(_)) => Ok(root),
            (WeightsCommitment::Hiding { roots, .. }, WeightsOpening::Hiding(number, _)) => roots
                .get(*number as usize)
                .ok_or(Error::Rejected("the key has no commitment with this number")),
            _ => Err(HIDES_ONE),
        }
    }

    /// The value of the committed weights at a point.
    ///
    /// # Errors
    /// [`Error::Rejected`].
    pub(crate) fn opened(
        &self,
        opening: &WeightsOpening,
        end: &[E],
        challenger: &mut Challenger,
    ) -> Result<E, Error> {
        let root = self.root(opening)?;
        match (&self.weights, opening) {
            (_, WeightsOpening::Open(opening)) => commitment::verify(root, opening, end, challenger),
            (WeightsCommitment::Hiding { value, point, .. }, WeightsOpening::Hiding(_, opening)) => {
                hiding_commitment::verify(root, opening, &hiding_points(end, point), challenger)?;
                let [opened, whole, own] = opening.evals[..] else {
                    return Err(Error::Rejected("it is of another size"));
                };
                if without_end(point, LOG_OWN, [whole, own]) != *value {
                    return Err(Error::Rejected("its weights are not those of the key's other commitments"));
                }
                Ok(opened)
            }
            _ => Err(HIDES_ONE),
        }
    }
}

/// Where a commitment that hides weights is opened: the end of the argument about them, and where all of a key are the same.
pub(crate) fn hiding_points(end: &[E], point: &[E]) -> [Vec<E>; 3] {
    [end.to_vec(), point.to_vec(), at_end(point, LOG_OWN)]
}

/// The roots, at least one, and the common value of those that hide.
fn read_commitments(reader: &mut Reader<'_>) -> Result<(Vec<Root>, Option<E>), Error> {
    let count = u32::from_le_bytes(reader.array()?);
    if count > HIDING_PROOFS_MAX {
        return Err(Error::File("it has more commitments than any key"));
    }
    let roots = (0..count.max(1)).map(|_| reader.array()).collect::<Result<_, _>>()?;
    let value = if count == 0 { None } else { Some(reader.element()?) };
    Ok((roots, value))
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::field::F;
    use p3_multilinear_util::point::Point;
    use p3_multilinear_util::poly::Poly;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use rayon::prelude::*;

    /// What opens one commitment of a key that hides its weights. It is used for one proof, and never again: two proofs from one
    /// commitment may tell the weights.
    pub struct OneTime {
        seed: [u8; 32],
        number: u32,
    }

    impl OneTime {
        /// For the commitment with this number, from 0, of the key that [`Key::commit_hiding`] made with this seed.
        pub fn new(seed: [u8; 32], number: u32) -> OneTime {
            OneTime { seed, number }
        }

        /// The commitment's number.
        pub fn number(&self) -> u32 {
            self.number
        }
    }

    /// What all that is random in a key's commitments is derived from. One seed gives different keys, of another model or size, nothing in common.
    pub(crate) fn secret(graph: &Graph, proofs: usize, seed: &[u8; 32]) -> [u8; 32] {
        let key = [&seed[..], &graph.id(), &(proofs as u32).to_le_bytes()].concat();
        blake3::derive_key("assay 2026-11 hidden weights: one key", &key)
    }

    /// What all commitments of a key have: the weights, and random elements behind them.
    pub(crate) fn shared(layout: &Layout, graph: &Graph, secret: &[u8; 32]) -> Vec<F> {
        let seed = blake3::derive_key("assay 2026-11 hidden weights: all commitments", secret);
        let (mut vector, mut rng) = (layout.vector(graph), StdRng::from_seed(seed));
        let first = shared_filler(layout);
        vector[first..first + FILLER].fill_with(|| rng.random());
        vector
    }

    /// The vector of the commitment with this number, from what all have, and what is random in the commitment.
    pub(crate) fn own(mut shared: Vec<F>, secret: &[u8; 32], number: u32) -> (Vec<F>, StdRng) {
        let context = "assay 2026-11 hidden weights: one commitment";
        let seed = blake3::derive_key(context, &[&secret[..], &number.to_le_bytes()].concat());
        let (first, mut rng) = (shared.len() - FILLER, StdRng::from_seed(seed));
        shared[first..].fill_with(|| rng.random());
        (shared, rng)
    }

    impl Key {
        /// As [`commit`](Key::commit), with commitments that tell nothing about the weights: one for each of `proofs` proofs, which are made with
        /// [`prove_hiding`](crate::prove_hiding). Whoever knows the seed can read the weights in the proofs: it is 32 bytes from the
        /// operating system's generator, for one key only. `report` is called as each commitment is made, from several threads.
        ///
        /// # Errors
        /// As [`commit`](Key::commit); [`Error::Size`] when there are to be no proofs or more than [`HIDING_PROOFS_MAX`].
        pub fn commit_hiding(
            graph: &Graph,
            proofs: u32,
            seed: &[u8; 32],
            report: &(dyn Fn() + Sync),
        ) -> Result<Key, Error> {
            if !(1..=HIDING_PROOFS_MAX).contains(&proofs) {
                return Err(Error::Size(format!(
                    "a key hides its weights in 1 to {HIDING_PROOFS_MAX} proofs, not in {proofs}"
                )));
            }
            let public = graph.without_weights()?;
            let layout = hiding_layout(&public)?;
            let secret = secret(graph, proofs as usize, seed);
            let shared = shared(&layout, graph, &secret);
            let root = |number| {
                let (vector, mut rng) = own(shared.clone(), &secret, number);
                let root = hiding_commitment::prover::commit(vector, &mut rng)?.root()?;
                report();
                Ok(root)
            };
            let roots: Vec<Root> = (0..proofs).into_par_iter().map(root).collect::<Result<_, Error>>()?;
            let point = common_point(&roots, &public, &layout)?;
            let value = Poly::new(shared).eval_base(&Point::new(point.clone()));
            Key::new(public, layout, WeightsCommitment::Hiding { roots, value, point })
        }
    }

    impl Key {
        /// Checks that it was made from this model with this seed, by making its first commitment again.
        ///
        /// # Errors
        /// [`Error::Key`] when it was not, or does not hide its weights.
        pub fn check_seed(&self, graph: &Graph, seed: &[u8; 32]) -> Result<(), Error> {
            Committed::new(self, graph, Some(&OneTime::new(*seed, 0))).map(drop)
        }
    }

    const OTHER: Error = Error::Key(
        "the key is of another model, or was made with another secret; use that, or make a key from this model",
    );

    /// Committed weights that can be opened.
    pub(crate) enum Committed {
        Open(Box<commitment::prover::Committed>),
        /// With the commitment's number, and the point where all are the same.
        Hiding(u32, Box<hiding_commitment::prover::Committed>, Vec<E>),
    }

    impl Committed {
        /// Commits to the weights of a graph again; returns their vector and the commitment, too.
        ///
        /// # Errors
        /// [`Error::Key`] when the key is of another model, or hides weights and there is nothing to open it with, or the other way around.
        pub(crate) fn new(
            key: &Key,
            graph: &Graph,
            once: Option<&OneTime>,
        ) -> Result<(Vec<F>, Root, Committed), Error> {
            if graph.without_weights()?.id() != key.graph.id() {
                return Err(OTHER);
            }
            let layout = &key.layout;
            match (&key.weights, once) {
                (WeightsCommitment::Open(root), None) => {
                    let vector = layout.vector(graph);
                    let (found, committed) =
                        commitment::prover::commit(vector.clone(), &mut transcript(Vec::new()))?;
                    if found != *root {
                        return Err(OTHER);
                    }
                    Ok((vector, found, Committed::Open(Box::new(committed))))
                }
                (WeightsCommitment::Hiding { roots, point, .. }, Some(once)) => {
                    if once.number as usize >= roots.len() {
                        return Err(Error::Key("the key has no commitment with this number"));
                    }
                    let secret = secret(graph, roots.len(), &once.seed);
                    let (vector, mut rng) = own(shared(layout, graph, &secret), &secret, once.number);
                    let committed = hiding_commitment::prover::commit(vector.clone(), &mut rng)?;
                    let root = committed.root()?;
                    if roots.get(once.number as usize) != Some(&root) {
                        return Err(OTHER);
                    }
                    Ok((vector, root, Committed::Hiding(once.number, Box::new(committed), point.clone())))
                }
                (WeightsCommitment::Open(_), Some(_)) => Err(Error::Key("the key does not hide its weights")),
                (WeightsCommitment::Hiding { .. }, None) => {
                    Err(Error::Key("the key hides its weights: a proof with it has to hide them"))
                }
            }
        }

        /// Opens them at a point.
        ///
        /// # Errors
        /// [`Error::Prover`].
        pub(crate) fn open(self, end: &[E], challenger: &mut Challenger) -> Result<WeightsOpening, Error> {
            Ok(match self {
                Committed::Open(committed) => {
                    let opening = commitment::prover::open(*committed, end, challenger)?;
                    WeightsOpening::Open(Box::new(opening))
                }
                Committed::Hiding(number, committed, point) => {
                    let points = hiding_points(end, &point);
                    let opening = hiding_commitment::prover::open(*committed, &points, challenger)?;
                    WeightsOpening::Hiding(number, Box::new(opening))
                }
            })
        }
    }
}
