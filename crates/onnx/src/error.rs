//! The errors of an import.

/// Why a model cannot be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no well-formed ONNX file.
    #[error("the ONNX file is not valid: {0}; export the model again")]
    File(&'static str),
    /// A node contradicts itself or what feeds it.
    #[error("the node {node} ({operator}) is not valid: {reason}; export the model again")]
    Node {
        /// The first output's name.
        node: String,
        /// The operator.
        operator: String,
        /// What is wrong.
        reason: String,
    },
    /// The model uses something that the integer arithmetic does not have.
    #[error(
        "the model uses {0}, which is not supported; choose another model or leave that part out of the export"
    )]
    Unsupported(String),
    /// The sample data do not fit or are missing.
    #[error("the sample data do not fit: {0}; give rows of real inputs with --calibrate")]
    Samples(String),
    /// The model cannot be rounded to integers within the bounds of a graph.
    #[error("the model cannot be rounded to integers: {0}")]
    Quantise(String),
    /// The graph that came out breaks a limit.
    #[error(transparent)]
    Graph(#[from] assay_graph::Error),
}
