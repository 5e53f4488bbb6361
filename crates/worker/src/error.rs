//! What can stop a worker from starting or serving.

use std::path::PathBuf;

/// A fault of the worker itself. Faults of a single request are answered with a signed
/// [`Failure`](assay_receipt::Failure) instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration contradicts itself.
    #[error("The configuration cannot be used: {fault}.")]
    Config {
        /// What is wrong and what to do.
        fault: String,
    },
    /// A file or folder could not be used.
    #[error(
        "Could not {what} at {path}: {source}. Check that the path exists and that this user may use it."
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The port could not be opened.
    #[error("Could not listen on {address}: {source}. Choose another address with the key `listen`.")]
    Listen {
        /// The address asked for.
        address: std::net::SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A secret key is readable by others.
    #[error(
        "The secret key {path} has mode {mode:o}, so others can read it: run `chmod 600` on it, or replace it."
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The secret of a key that hides its weights is unusable.
    #[error("The secret {path} cannot be used: {fault}. No proof was made.")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// A key that hides its weights has no commitments left.
    #[error(
        "The key's {proofs} proofs are all made, as {path} counts: commit to the model anew with `assay model commit`."
    )]
    SecretUsedUp {
        /// The file.
        path: PathBuf,
        /// For how many proofs the key was made.
        proofs: u32,
    },
    /// A key or certificate is unusable.
    #[error(
        "The identity file {path} cannot be used: {fault}. Restore it from a backup, or remove it to start as a new worker."
    )]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// The statement log could not be opened, read or written.
    #[error(
        "The statement log cannot be used: {fault}. Check free space, and that no other worker uses this data folder."
    )]
    Log {
        /// What happened.
        fault: String,
    },
    /// An artifact was refused.
    #[error("The model {path} cannot be served: {fault}. Import it again with `assay model import`.")]
    Model {
        /// The artifact.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// The API key for a forwarded model is missing.
    #[error(
        "The environment variable {name} is not set, which should hold the upstream's API key: set it, or remove api_key_env."
    )]
    ApiKey {
        /// The variable.
        name: String,
    },
    /// The chain could not be asked, or refused.
    #[error("{0}")]
    Chain(#[from] assay_wallet::client::ClientError),
    /// An HTTP client or thread could not be made.
    #[error("The worker could not start: {fault}. Try again, and report it if it stays.")]
    Start {
        /// What happened.
        fault: String,
    },
}

impl Error {
    /// The HTTP status that describes this fault to a caller: 503 where another worker may help, else 500.
    pub fn http_status(&self) -> u16 {
        match self {
            Error::Log { .. } | Error::Io { .. } => 503,
            _ => 500,
        }
    }
}
