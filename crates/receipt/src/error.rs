/// What can be wrong with a statement, a key or the JSON that carries them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The 32 bytes are zero or not below the order of secp256k1.
    #[error("not a secp256k1 secret key: generate 32 fresh random bytes")]
    Key,
    /// The signature has a `v` other than 27 or 28, an `s` in the upper half, or fits no public key.
    #[error("malformed signature ({0}): ask the signer for its canonical form (low s, v 27 or 28)")]
    Signature(&'static str),
    /// A value is not the hex string that its type needs.
    #[error("expected {expected} bytes as 0x and {} hex digits", expected * 2)]
    Hex {
        /// Bytes that the type has.
        expected: usize,
    },
    /// The JSON is larger than the limit for its kind.
    #[error("{what} of {bytes} bytes is over the limit of {limit}: shorten the request")]
    TooLarge {
        /// What was decoded.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The JSON does not have the expected form.
    #[error("not a valid {what}: {reason}")]
    Json {
        /// What was decoded.
        what: &'static str,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A field is outside the range that `docs/receipt.md` gives.
    #[error("{field} is out of range: {rule}")]
    Range {
        /// Path of the field.
        field: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A chunk does not carry the index that follows the one before.
    #[error("chunk {found} where chunk {expected} was due: chunks must be numbered from 0 without gaps")]
    ChunkIndex {
        /// Index that was due.
        expected: u64,
        /// Index that the chunk carries.
        found: u64,
    },
}
