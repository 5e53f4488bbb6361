//! What a proof is checked with: a model, or its key.

use assay_graph::{Graph, Work};

use crate::{Error, Key, Proof};

/// What a proof is about and checked with: a graph with its weights, or the [`Key`] of one.
///
/// ```
/// use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
/// use assay_proof::Model;
/// let nodes = vec![Node::Lookup { input: Tensor::INPUT, shift: 0, table: 0 }];
/// let square = Table::of(0, 9, |x| x * x);
/// let range = Range { low: 0, high: 9 };
/// let graph = Graph::new(vec![range], vec![square], nodes, Tensor(1), Interface::plain(1))?;
/// let proof = assay_proof::prove(&graph, &[3, 4])?;
/// Model::from_bytes(&graph.encode())?.verify(&proof)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub enum Model {
    /// The model itself.
    Graph(Graph),
    /// Its wiring, and a commitment to its weights.
    Key(Key),
}

impl Model {
    /// Reads the file of a graph or of a key.
    ///
    /// # Errors
    /// As [`Graph::decode`] and [`Key::from_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Model, Error> {
        if Key::is_key(bytes) {
            return Key::from_bytes(bytes).map(Model::Key);
        }
        Ok(Model::Graph(Graph::decode(bytes)?))
    }

    /// What reading a file and checking a proof about it costs, see [`Graph::work`].
    ///
    /// # Errors
    /// As [`Graph::work`].
    pub fn work(bytes: &[u8]) -> Result<Work, Error> {
        let graph = Key::graph_bytes(bytes).unwrap_or(bytes);
        Ok(Graph::work(graph)?)
    }

    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Model::Graph(graph) => graph.encode(),
            Model::Key(key) => key.to_bytes(),
        }
    }

    /// What proofs about it name as their model.
    pub fn id(&self) -> [u8; 32] {
        match self {
            Model::Graph(graph) => graph.id(),
            Model::Key(key) => key.id(),
        }
    }

    /// The graph, which a key has without its weights.
    pub fn graph(&self) -> &Graph {
        match self {
            Model::Graph(graph) => graph,
            Model::Key(key) => key.graph(),
        }
    }

    /// The number of examples that inputs are.
    pub fn examples(&self, inputs: &[i32]) -> usize {
        inputs.len() / self.graph().inputs().len()
    }

    /// Checks a proof.
    ///
    /// # Errors
    /// As [`verify`](crate::verify).
    pub fn verify(&self, proof: &Proof) -> Result<(), Error> {
        match self {
            Model::Graph(graph) => crate::verify(graph, proof),
            Model::Key(key) => crate::verify_with_key(key, proof),
        }
    }

    /// The bits of soundness of a proof about so many examples, see [`security_bits`](crate::security_bits).
    ///
    /// # Errors
    /// [`Error::Size`] when no proof covers the batch.
    pub fn security_bits(&self, examples: usize) -> Result<f64, Error> {
        match self {
            Model::Graph(graph) => crate::security_bits(graph, examples),
            Model::Key(key) => key.security_bits(examples),
        }
    }
}
