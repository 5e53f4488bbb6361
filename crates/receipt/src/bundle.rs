use serde::{Deserialize, Serialize};

use crate::request::rule;
use crate::wire::decode;
use crate::{Audit, Bytes32, Chunk, Domain, Error, Output, Receipt, Request, Signed, SignedChunk, limits};

/// Version of the [`Bundle`] form.
pub const BUNDLE_VERSION: u32 = 1;

/// A receipt with everything that is needed to check it offline: the content of `receipt.json`. It holds the prompt and
/// the answer in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`BUNDLE_VERSION`].
    pub version: u32,
    /// Domain that all statements were signed in.
    pub domain: Domain,
    /// Salt of both commitments.
    pub salt: Bytes32,
    /// What was asked.
    pub request: Request,
    /// What was answered.
    pub output: Output,
    /// The answer as it was streamed.
    pub chunks: Vec<SignedChunk>,
    /// The worker's word.
    pub receipt: Signed<Receipt>,
    /// What auditors found, if any.
    pub audits: Vec<Signed<Audit>>,
}

impl Bundle {
    /// Decodes a bundle and checks all lengths and ranges. No signature or hash is checked: that is `assay-verify`'s work.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`limits::BUNDLE_BYTES`], [`Error::Json`] for unknown or missing fields and wrong types,
    /// [`Error::Range`] for a length, a range or a version that is not supported.
    pub fn from_json(bytes: &[u8]) -> Result<Bundle, Error> {
        let bundle: Bundle = decode("receipt bundle", bytes, limits::BUNDLE_BYTES)?;
        bundle.validate()?;
        Ok(bundle)
    }

    /// Checks the version and all lengths and ranges.
    ///
    /// # Errors
    /// [`Error::Range`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        rule(self.version == BUNDLE_VERSION, "version", "this software reads version 1")?;
        self.request.validate()?;
        self.output.validate()?;
        rule(self.chunks.len() <= limits::TOKENS, "chunks", "at most 1,048,576")?;
        self.chunks.iter().map(|signed| &signed.chunk).try_for_each(Chunk::validate)?;
        rule(self.audits.len() <= limits::AUDITS, "audits", "at most 64")?;
        self.audits.iter().map(|signed| &signed.statement).try_for_each(Audit::validate)
    }
}
