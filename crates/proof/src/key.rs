//! Keys: a model without its weights, and a commitment to them.

use assay_graph::Graph;

use crate::commitment::Root;
use crate::error::Error;
use crate::weights::Layout;

/// The first bytes of a key: "assay key" and the version of the protocol.
const MAGIC: &[u8; 8] = b"ASSAYKY4";

/// What a verifier keeps instead of a model: the graph without the weights of its linear maps and convolutions, and a commitment
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
    pub(crate) root: Root,
    pub(crate) id: [u8; 32],
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
        let vector = Layout::new(&public)?.vector(graph);
        // The transcript of a proof absorbs the root later.
        let (root, _) = crate::commitment::prover::commit(vector, &mut crate::field::transcript(Vec::new()))?;
        Key::new(public, root)
    }

    fn new(graph: Graph, root: Root) -> Result<Key, Error> {
        if Layout::new(&graph)?.is_empty() {
            return Err(Error::Key("the model has no weights"));
        }
        let mut key = Key { graph, root, id: [0; 32] };
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

    /// Whether bytes begin as a key of this version does.
    pub fn is_key(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// The graph in the bytes of a key; `None` when they do not begin as one.
    pub(crate) fn graph_bytes(bytes: &[u8]) -> Option<&[u8]> {
        let rest = bytes.strip_prefix(MAGIC)?;
        Some(rest.split_first_chunk::<32>()?.1)
    }

    /// The bytes of a key file.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&MAGIC[..], &self.root, &self.graph.encode()].concat()
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`Error::File`] when it does not begin as one, [`Error::Graph`] and [`Error::Key`] when the model in it is not valid.
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, Error> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(Error::File("it does not begin as a key of this version does"))?;
        let (root, graph) = rest.split_first_chunk().ok_or(Error::File("it ends too early"))?;
        Key::new(Graph::decode(graph)?, *root)
    }

    /// As [`security_bits`](crate::security_bits), for a proof with this key: both commitments count.
    ///
    /// # Errors
    /// [`Error::Size`] when no proof covers the batch.
    pub fn security_bits(&self, batch: usize) -> Result<f64, Error> {
        crate::bits(&self.graph, batch, Some(Layout::new(&self.graph)?.log))
    }
}
