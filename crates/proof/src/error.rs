//! The errors of proving and of checking proofs.

/// Why there is no proof, or why one is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no proof file of this version.
    #[error(
        "this is not a proof that this program can read: {0}; get the file again or use a matching version"
    )]
    File(&'static str),
    /// The proof is about another model.
    #[error("the proof is about the model {found}, not about {expected}; name the model that it is about")]
    Model {
        /// The id of the model at hand, in hexadecimal.
        expected: String,
        /// The id in the proof, in hexadecimal.
        found: String,
    },
    /// The inputs do not fit the model.
    #[error(transparent)]
    Graph(#[from] assay_graph::Error),
    /// The statement is too large for one proof.
    #[error("{0}; prove fewer examples at once, or choose a smaller model")]
    Size(String),
    /// The weights and the commitment to them do not go together.
    #[error("the weights cannot be committed to or proved with this key: {0}")]
    Key(&'static str),
    /// A check failed: the proof proves nothing.
    #[error("the proof is not valid: {0}; nothing is proved by it")]
    Rejected(&'static str),
    /// The prover could not finish. Proving again with the same inputs gives the same.
    #[error("the proof could not be made: {0}; report this with the model")]
    Prover(String),
}
