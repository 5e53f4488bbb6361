//! Succinct proofs that an integer graph computed these outputs from these inputs.
//!
//! [`prove`] runs a [`Graph`] on a batch of inputs and returns a [`Proof`]; [`verify`] checks it against the graph. The
//! work of the check hardly grows with the batch. `docs/proof.md` specifies the protocol and counts the bits of its
//! soundness; in one paragraph: everything in a graph between look-ups and products is linear, so the prover commits, with one
//! WHIR commitment, to the results of the look-ups, to the remainders of their rounding, and to how often each table
//! entry was used. One logarithmic-derivative look-up argument, evaluated by a GKR sum-check over fractions, shows that
//! every result and remainder is in its table; it ends in one claim about a linear function of the committed vector and of the results of products of computed values, which two sum-checks turn into another such
//! function. A last sum-check turns that claim, with the one about the outputs, into one evaluation, and WHIR opens it.
//!
//! The weights are public by default. With a [`Key`] the verifier needs only a commitment to them.
//!
//! What a proof says: *these inputs give these outputs in the graph with this id*. Values in the committed vector cannot
//! wrap around in the field, because a graph bounds them ([`assay_graph::VALUE_MAX`]). It is succinct, but **not hiding**:
//! inputs and outputs are in the open, and the openings of the commitment leak parts of what lies between. So it is no
//! zero-knowledge proof. [`prove_hiding`] makes those: a [`HidingProof`] is larger, and tells nothing about the inputs, or the
//! weights behind a key that was made for it, or both, but the outputs.
//!
//! This crate does no I/O and knows no clock. Without its `prover` feature it has no threads.
//!
//! ```
//! use assay_graph::{Graph, Interface, Node, Range, Table, Tensor};
//! let linear = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![2, -1], bias: vec![3] };
//! let round = Node::Lookup { input: Tensor(1), shift: 2, table: 0 };
//! let inputs = vec![Range { low: 0, high: 15 }; 2];
//! let relu = Table::clamp(-3, 10, 0, 7);
//! let graph = Graph::new(inputs, vec![relu], vec![linear, round], Tensor(2), Interface::plain(1))?;
//!
//! let proof = assay_proof::prove(&graph, &[5, 1, 4, 0])?; // a batch of two
//! assert_eq!(proof.outputs, [3, 3]);
//! assay_proof::verify(&graph, &proof)?;
//!
//! let mut other = proof.clone();
//! other.outputs[1] = 4;
//! assert!(assay_proof::verify(&graph, &other).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adjoint;
mod any;
mod circuit;
mod commitment;
mod error;
mod field;
mod file;
#[cfg(feature = "prover")]
mod floor;
mod fractions;
mod hash;
mod hiding;
mod hiding_commitment;
#[cfg(all(test, feature = "prover"))]
mod hiding_tests;
#[cfg(all(test, feature = "prover"))]
mod hostile;
mod key;
mod model;
#[cfg(feature = "prover")]
mod packed;
mod products;
#[cfg(feature = "prover")]
mod prove;
mod sumcheck;
mod value;
mod verify;
mod weights;

pub use any::AnyProof;
pub use assay_graph::Graph;
pub use error::Error;
pub use file::{FILE_BYTES_MAX, Proof};
#[cfg(feature = "prover")]
pub use floor::{Operations, operations};
pub use hiding::HidingProof;
#[cfg(feature = "prover")]
pub use hiding::prover::{Hide, prove_hiding};
#[cfg(feature = "prover")]
pub use key::prover::OneTime;
pub use key::{HIDING_PROOFS_MAX, Key};
pub use model::Model;
#[cfg(feature = "prover")]
pub use prove::{Stage, prove, prove_reporting, prove_with_key};
pub use verify::{verify, verify_with_key};

/// The version of the protocol. It is the first thing that a transcript absorbs.
pub const VERSION: u32 = 5;

/// The proven soundness of a proof about this graph and batch, in bits: a false statement is accepted with a probability of
/// at most 2^-bits a try, 14 bits of which are work that a try costs. It leaves out collisions of BLAKE3 (128 bits).
/// `docs/proof.md` has the sum.
///
/// # Errors
/// [`Error::Size`] when no proof covers the batch.
pub fn security_bits(graph: &Graph, batch: usize) -> Result<f64, Error> {
    bits(graph, batch, None)
}

fn bits(graph: &Graph, batch: usize, log_weights: Option<usize>) -> Result<f64, Error> {
    let sizes = circuit::Circuit::new(graph).sizes(batch)?;
    commitment::security_bits(sizes.log_rows, sizes.log_committed, log_weights)
        .ok_or_else(|| Error::Size("there is no commitment of this size".into()))
}

/// The most examples that one proof covers.
pub const BATCH_MAX: usize = 1 << 16;
