//! The errors of graphs.

/// Why a graph cannot be used or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph breaks one of its invariants, or its bytes are not canonical.
    #[error("the graph is not valid: {0}; import the model again")]
    Invalid(String),
    /// The inputs do not fit the graph.
    #[error("the input does not fit the model: {0}")]
    Input(String),
}

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}
