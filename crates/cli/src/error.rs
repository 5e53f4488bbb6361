//! The one error type of the command line: a sentence that says what happened and what to do next.

use std::path::Path;

/// What a command failed with; its `Display` is the whole message shown to the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or folder could not be used.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried, as a verb: "read", "write", ...
        action: &'static str,
        /// The file or folder.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Anything else, already put in one sentence with the next step.
    #[error("{0}")]
    Said(String),
    /// A check ran to its end and the answer is no (exit status 1, nothing is wrong with the program).
    #[error("{0}")]
    Rejected(String),
}

impl Error {
    pub(crate) fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }

    /// Wraps an I/O error with the path and the action it interrupted.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { action, path, source }
    }

    /// The exit status: 1 for a check that says no, 2 for a command that could not do its work.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Rejected(_) => 1,
            Self::File { .. } | Self::Said(_) => 2,
        }
    }
}

/// The result of every command.
pub(crate) type Result<T> = std::result::Result<T, Error>;
