use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bytes::decimal;
use crate::request::tokens;
use crate::{
    Address, Bytes32, Domain, Error, Failure, Output, Receipt, Request, Signed, SignedChunk, Voucher, limits,
};

pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    limit: usize,
) -> Result<T, Error> {
    if bytes.len() > limit {
        return Err(Error::TooLarge { what, bytes: bytes.len(), limit });
    }
    serde_json::from_slice(bytes).map_err(|error| Error::Json { what, reason: error.to_string() })
}

/// What a gateway sends to a worker: the body of `POST /v1/generate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateCall {
    /// Domain that the worker is to sign in; it refuses any other than its own.
    pub domain: Domain,
    /// Fresh random nonce; a worker answers it once.
    pub nonce: Bytes32,
    /// Fresh random salt of both commitments.
    pub salt: Bytes32,
    /// Who pays.
    pub payer: Address,
    /// Most that the payer agrees to, in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub cap: u128,
    /// What is asked.
    pub request: Request,
    /// Tokens that another worker already showed to the caller. The worker replays them, fails with
    /// [`FailureCode::ResumeMismatch`](crate::FailureCode::ResumeMismatch) when it would have sampled others, and goes
    /// on after them; its chunk 0 holds them.
    pub resume: Vec<u32>,
    /// Who asks, for a worker that shares work between requests that begin alike: it does so only between requests with
    /// the same value, and for none without one. How long a prompt takes tells whether the same value has sent its
    /// beginning before, so it is a secret: a gateway makes one for each of its callers that nobody else can guess.
    /// Neither signed nor part of any commitment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Bytes32>,
    /// The payer's word that the answer may be charged, for a worker that settles on a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voucher: Option<Signed<Voucher>>,
}

impl GenerateCall {
    /// Decodes a call and checks all lengths and ranges.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Json`] or [`Error::Range`].
    pub fn from_json(bytes: &[u8]) -> Result<GenerateCall, Error> {
        let call: GenerateCall = decode("call", bytes, limits::CALL_BYTES)?;
        call.request.validate()?;
        tokens(&call.resume, "resume")?;
        Ok(call)
    }
}

/// One line of a worker's streamed response (`application/x-ndjson`): any number of chunks, then a receipt or a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "frames are handled one at a time and never stored in numbers")]
pub enum Frame {
    /// A piece of the answer.
    Chunk(SignedChunk),
    /// The end of a complete answer.
    Receipt {
        /// The worker's word.
        receipt: Signed<Receipt>,
        /// What the receipt commits to.
        output: Output,
    },
    /// The end of a broken answer.
    Failure(Signed<Failure>),
}

impl Frame {
    /// Decodes one line and checks all lengths and ranges.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Json`] or [`Error::Range`].
    pub fn from_json(bytes: &[u8]) -> Result<Frame, Error> {
        let frame: Frame = decode("frame", bytes, limits::FRAME_BYTES)?;
        match &frame {
            Frame::Chunk(signed) => signed.chunk.validate()?,
            Frame::Receipt { output, .. } => output.validate()?,
            Frame::Failure(signed) => signed.statement.validate()?,
        }
        Ok(frame)
    }
}
