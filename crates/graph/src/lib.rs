//! Integer graphs: what ONNX models are imported into, what runs, and what proofs are about.
//!
//! A [`Graph`] is a pure function from a vector of integers to a vector of integers, made of six operations: linear
//! maps with constant weights ([`Node::Linear`], [`Node::Conv`]), wiring ([`Node::Gather`]), sums with small
//! coefficients ([`Node::Sum`]), products of two computed operands ([`Node::Product`]) and look-ups in tables
//! ([`Node::Lookup`]), which carry every rounding, clamping and non-linear function. Everything between look-ups and
//! products is linear, and that is what makes a graph cheap to prove.
//!
//! *Invariant:* a graph that exists was checked. For every input inside its declared ranges, every intermediate value
//! and every partial sum is at most [`VALUE_MAX`] in absolute value, and every look-up finds its key in its table. So
//! nothing overflows, nothing wraps around in the field of a proof, and every input has an answer.
//!
//! What is here: the graph, its checks, its exact evaluation ([`Graph::run`], which also yields the trace that a proof
//! is made from), its canonical bytes and id, and its edges to real numbers ([`Interface`]). What is not here: the
//! import of models (`assay-model`) and proofs (`assay-proof`).
//!
//! ```
//! use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
//! // y = clamp(round((2 x0 - x1 + 3) / 4), 0, 7)
//! let linear = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![2, -1], bias: vec![3] };
//! let relu = Table::clamp(-3, 10, 0, 7);
//! let round = Node::Lookup { input: Tensor(1), shift: 2, table: 0 };
//! let inputs = vec![Range { low: 0, high: 15 }; 2];
//! let graph = Graph::new(inputs, vec![relu], vec![linear, round], Tensor(2), Interface::plain(1))?;
//! assert_eq!(graph.run(&[5, 1])?.output(), [3]); // (10 - 1 + 3 + 2) >> 2
//! assert_eq!(Graph::decode(&graph.encode())?.id(), graph.id());
//! # Ok::<(), assay_graph::Error>(())
//! ```

mod builder;
mod check;
mod codec;
mod error;
mod interface;
mod node;
mod run;

use sha3::{Digest as _, Keccak256};

pub use builder::Builder;
pub use codec::Work;
pub use error::Error;
pub use interface::{Encoding, Interface, Task};
pub use node::{Node, Range, Table, Tensor, Window, ZERO};
pub use run::Trace;

/// The largest absolute value of any intermediate value and partial sum: 2^29. Twice of it is less than the field of a
/// proof (2^31 - 2^24 + 1), so an equation between two such values that holds in the field holds in the integers.
pub const VALUE_MAX: i64 = 1 << 29;

/// The largest shift of a look-up: a remainder is proved with a table of 2^shift entries.
pub const SHIFT_MAX: u32 = 16;

/// Limits on what a graph may hold, so that a hostile one costs bounded memory and time.
pub mod limits {
    /// Values in one tensor, of one example.
    pub const WIDTH: usize = 1 << 22;
    /// Nodes.
    pub const NODES: usize = 1 << 14;
    /// Entries in all tables together.
    pub const TABLE_ENTRIES: usize = 1 << 20;
    /// Weights and indices in all nodes together, and as many values of rows that inputs are.
    pub const WEIGHTS: usize = 1 << 28;
    /// Values in all tensors together, of one example.
    pub const VALUES: usize = 1 << 26;
    /// Multiply-adds of one evaluation.
    pub const OPERATIONS: u64 = 1 << 36;
    /// Bytes of an encoded graph.
    pub const BYTES: usize = 1 << 30;
}

/// An integer graph that was checked; see the [crate's documentation](crate).
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    inputs: Vec<Range>,
    tables: Vec<Table>,
    nodes: Vec<Node>,
    output: Tensor,
    interface: Interface,
    /// Of each tensor: how many values, and the range that holds them all.
    shapes: Vec<(usize, Range)>,
    id: [u8; 32],
}

impl Graph {
    /// Checks and makes a graph.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a limit is exceeded, an index is out of range, or some input inside the ranges would
    /// lead to a value beyond [`VALUE_MAX`] or to a key outside its table.
    pub fn new(
        inputs: Vec<Range>,
        tables: Vec<Table>,
        nodes: Vec<Node>,
        output: Tensor,
        interface: Interface,
    ) -> Result<Graph, Error> {
        let shapes = check::shapes(&inputs, &tables, &nodes)?;
        if output.index() >= shapes.len() {
            return Err(Error::invalid("the output is no tensor of the graph"));
        }
        interface.check(&inputs, shapes[output.index()].0)?;
        let mut graph = Graph { inputs, tables, nodes, output, interface, shapes, id: [0; 32] };
        let mut hash = Keccak256::new();
        graph.write(&mut hash);
        graph.id = hash.finalize().into();
        Ok(graph)
    }

    /// The range of each input value.
    pub fn inputs(&self) -> &[Range] {
        &self.inputs
    }

    /// The tables that look-ups use.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The nodes in the order of evaluation; node `i` makes the tensor `i + 1`.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The tensor that is the result.
    pub fn output(&self) -> Tensor {
        self.output
    }

    /// How inputs are made from real numbers and what outputs mean.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The number of values of a tensor, in one example.
    ///
    /// # Panics
    /// When the tensor is not of this graph.
    pub fn width(&self, tensor: Tensor) -> usize {
        self.shapes[tensor.index()].0
    }

    /// The range that holds every value of a tensor, for every allowed input.
    ///
    /// # Panics
    /// When the tensor is not of this graph.
    pub fn range(&self, tensor: Tensor) -> Range {
        self.shapes[tensor.index()].1
    }

    /// The same graph without the weights of its linear maps and convolutions: what a verifier keeps beside a commitment to
    /// them. Their biases stay.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the graph already lacks weights.
    pub fn without_weights(&self) -> Result<Graph, Error> {
        // Mostly the graph is valid if every map has one range. With the range of every single value it always is.
        self.without(|_, number| {
            let (width, range) = self.shapes[number];
            vec![(width as u32, range)]
        })
        .or_else(|_| self.without(check::Checker::runs))
    }

    fn without(&self, ranges: impl Fn(&check::Checker, usize) -> Vec<(u32, Range)>) -> Result<Graph, Error> {
        let mut checker = check::Checker::new(&self.inputs)?;
        let nodes = self.nodes.iter().enumerate().map(|(number, node)| {
            checker.push(node, &self.tables)?;
            let mut map = node.clone();
            match &mut map {
                Node::Linear { weights, bias, .. } | Node::Conv { weights, bias, .. } => {
                    (*weights, *bias) = (Vec::new(), Vec::new());
                }
                Node::Committed { .. } => return Err(Error::invalid("its weights are not here")),
                _ => return Ok(map),
            }
            Ok(Node::Committed { map: Box::new(map), ranges: ranges(&checker, number + 1) })
        });
        let (inputs, tables) = (self.inputs.clone(), self.tables.clone());
        Graph::new(inputs, tables, nodes.collect::<Result<_, _>>()?, self.output, self.interface.clone())
    }

    /// Multiplications of one evaluation.
    pub fn operations(&self) -> u64 {
        self.nodes.iter().map(Node::operations).sum()
    }

    /// The keccak-256 of the canonical bytes, see [`encode`](Self::encode): what a proof names.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }
}
