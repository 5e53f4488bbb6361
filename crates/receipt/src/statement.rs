use serde::{Deserialize, Serialize};

use crate::bytes::decimal;
use crate::eip712::{Fields, Statement, Typed, sealed};
use crate::request::{label, rule};
use crate::{Address, Bytes32, Domain, Error, Signature, Signed, limits};

/// Verification level of an answer. What each proves and whom it leaves to trust is in `docs/receipt.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Level {
    /// The worker signed it.
    Signed = 0,
    /// Trusted hardware vouches for the code that signed it.
    Attested = 1,
    /// An independent auditor repeated it bit for bit.
    Replayed = 2,
    /// A proof shows it.
    Proved = 3,
}

/// A worker's word on one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The worker that signs.
    pub worker: Address,
    /// Epoch of the worker's key in the list of members; a rotated key has a higher one.
    pub key_epoch: u64,
    /// Model that answered; the same as the request's.
    pub model: Bytes32,
    /// Version of the arithmetic; 0 for a forwarder, whose answers nobody can replay.
    pub arithmetic: u32,
    /// Level that the receipt carries evidence for by itself: [`Level::Proved`] with
    /// [`GRAPH_ARITHMETIC`](crate::GRAPH_ARITHMETIC), whose output is a proof, and else [`Level::Signed`], since replays are
    /// evidence by others and travel as audits.
    pub level: Level,
    /// [`request_commitment`](crate::request_commitment).
    pub request: Bytes32,
    /// [`output_commitment`](crate::output_commitment).
    pub output: Bytes32,
    /// Number of chunks that were streamed.
    pub chunks: u64,
    /// Last link of the chunk [`Chain`](crate::Chain).
    pub chain: Bytes32,
    /// Root of the execution trace; zero where there is none, which is always so in this version.
    pub trace: Bytes32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that were sampled.
    pub completion_tokens: u32,
    /// Price in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub price: u128,
    /// Who pays.
    pub payer: Address,
    /// Most that the payer agreed to, in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub cap: u128,
    /// The caller's nonce; makes an old receipt useless for a new request.
    pub nonce: Bytes32,
    /// Counts the worker's statements from 0 without gaps.
    #[serde(with = "decimal")]
    pub sequence: u64,
    /// Hash of the worker's statement before this one; zero for the first.
    pub previous: Bytes32,
    /// When the request arrived, in milliseconds since 1970 UTC by the worker's clock.
    pub received_at_ms: u64,
    /// When the first token was ready, by the same clock; `finished_at_ms` when there is no token.
    pub first_token_at_ms: u64,
    /// When the answer was complete, by the same clock.
    pub finished_at_ms: u64,
}

/// Why a request was refused or broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FailureCode {
    /// No room now; try again after `retry_after_ms`.
    Busy = 0,
    /// The worker is shutting down.
    Draining = 1,
    /// The worker does not serve this model.
    UnknownModel = 2,
    /// The request is malformed.
    BadRequest = 3,
    /// Prompt and answer do not fit into the model's context.
    ContextExceeded = 4,
    /// The price would exceed the cap.
    CapExceeded = 5,
    /// The caller went away.
    Cancelled = 6,
    /// The server behind a forwarder failed.
    Upstream = 7,
    /// The worker itself failed.
    Internal = 8,
    /// The nonce was used before.
    DuplicateNonce = 9,
    /// The tokens to resume from are not what this model would have sampled.
    ResumeMismatch = 10,
}

/// A worker's word that it refused or broke off a request. Signed like a receipt, so that failures count too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The worker that signs.
    pub worker: Address,
    /// Epoch of the worker's key.
    pub key_epoch: u64,
    /// Model that was asked for.
    pub model: Bytes32,
    /// [`request_commitment`](crate::request_commitment).
    pub request: Bytes32,
    /// The caller's nonce.
    pub nonce: Bytes32,
    /// Who would have paid.
    pub payer: Address,
    /// What went wrong.
    pub code: FailureCode,
    /// The same in a sentence, at most 4,096 bytes.
    pub message: String,
    /// Time to wait before trying this worker again, in milliseconds; 0 for no advice.
    pub retry_after_ms: u64,
    /// Number of chunks that had been streamed.
    pub chunks: u64,
    /// Last link of the chunk chain, its start when nothing was streamed.
    pub chain: Bytes32,
    /// Counts the worker's statements from 0 without gaps.
    #[serde(with = "decimal")]
    pub sequence: u64,
    /// Hash of the worker's statement before this one; zero for the first.
    pub previous: Bytes32,
    /// When the request arrived, in milliseconds since 1970 UTC by the worker's clock.
    pub received_at_ms: u64,
    /// When it was given up, by the same clock.
    pub finished_at_ms: u64,
}

impl Failure {
    /// Checks the lengths that this type documents.
    ///
    /// # Errors
    /// [`Error::Range`] when the message is too long.
    pub fn validate(&self) -> Result<(), Error> {
        rule(self.message.len() <= limits::FAILURE_BYTES, "failure.message", "at most 4,096 bytes")
    }
}

/// What an auditor found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Verdict {
    /// The replay gave the same answer to the last bit.
    Agrees = 0,
    /// The replay gave another answer.
    Differs = 1,
    /// The auditor could not replay it, for example because it does not have the model. Proves nothing.
    Unable = 2,
}

/// An auditor's word after it replayed another worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The auditor that signs.
    pub auditor: Address,
    /// Epoch of the auditor's key.
    pub key_epoch: u64,
    /// Hash of the audited receipt.
    pub receipt: Bytes32,
    /// Model that was replayed.
    pub model: Bytes32,
    /// Version of the arithmetic of the replay.
    pub arithmetic: u32,
    /// What was found.
    pub verdict: Verdict,
    /// Where it differs first; the names are in `docs/receipt.md`. What stood in the way when the auditor was unable.
    /// Else empty.
    pub field: String,
    /// Index of the first token, byte or entry that differs; else 0.
    pub position: u64,
    /// What the replay gave there: a number, a token id or a byte, [`Audit::NOTHING`] past the end; else 0.
    #[serde(with = "decimal")]
    pub expected: u64,
    /// What the worker claimed there, in the same form; else 0.
    #[serde(with = "decimal")]
    pub claimed: u64,
    /// Counts the auditor's statements from 0 without gaps, receipts and failures included.
    #[serde(with = "decimal")]
    pub sequence: u64,
    /// Hash of the auditor's statement before this one; zero for the first.
    pub previous: Bytes32,
    /// When the audit was done, in milliseconds since 1970 UTC by the auditor's clock.
    pub audited_at_ms: u64,
    /// Time the replay took, in milliseconds.
    pub compute_ms: u64,
}

impl Audit {
    /// Stands in `expected` and `claimed` for the absence of a token, a byte or an entry.
    pub const NOTHING: u64 = u64::MAX;

    /// Checks the lengths that this type documents.
    ///
    /// # Errors
    /// [`Error::Range`] when the name of the field is too long.
    pub fn validate(&self) -> Result<(), Error> {
        label(&self.field, "audit.field")
    }
}

impl Receipt {
    /// Positions of the text, which a proof of the answer is charged by: all tokens but the last, which the model never reads. `None`
    /// when there are no tokens, or more than a `u32` counts.
    pub fn positions(&self) -> Option<u32> {
        self.prompt_tokens.checked_add(self.completion_tokens)?.checked_sub(1)
    }
}

impl sealed::Sealed for Receipt {}
impl Typed for Receipt {
    const TYPES: &'static [&'static str] = &[
        "Receipt(address worker,uint64 keyEpoch,bytes32 model,uint32 arithmetic,\
        uint8 level,bytes32 request,bytes32 output,uint64 chunks,bytes32 chain,bytes32 trace,uint32 promptTokens,\
        uint32 completionTokens,uint128 price,address payer,uint128 cap,bytes32 nonce,uint64 sequence,bytes32 previous,\
        uint64 receivedAtMs,uint64 firstTokenAtMs,uint64 finishedAtMs)",
    ];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.address("worker", &self.worker);
        v.uint("keyEpoch", 64, self.key_epoch.into());
        v.bytes32("model", &self.model);
        v.uint("arithmetic", 32, self.arithmetic.into());
        v.uint("level", 8, self.level as u128);
        v.bytes32("request", &self.request);
        v.bytes32("output", &self.output);
        v.uint("chunks", 64, self.chunks.into());
        v.bytes32("chain", &self.chain);
        v.bytes32("trace", &self.trace);
        v.uint("promptTokens", 32, self.prompt_tokens.into());
        v.uint("completionTokens", 32, self.completion_tokens.into());
        v.uint("price", 128, self.price);
        v.address("payer", &self.payer);
        v.uint("cap", 128, self.cap);
        v.bytes32("nonce", &self.nonce);
        v.uint("sequence", 64, self.sequence.into());
        v.bytes32("previous", &self.previous);
        v.uint("receivedAtMs", 64, self.received_at_ms.into());
        v.uint("firstTokenAtMs", 64, self.first_token_at_ms.into());
        v.uint("finishedAtMs", 64, self.finished_at_ms.into());
    }
}
impl Statement for Receipt {
    fn author(&self) -> Option<Address> {
        Some(self.worker)
    }
}

impl sealed::Sealed for Failure {}
impl Typed for Failure {
    const TYPES: &'static [&'static str] = &[
        "Failure(address worker,uint64 keyEpoch,bytes32 model,bytes32 request,\
        bytes32 nonce,address payer,uint8 code,string message,uint64 retryAfterMs,uint64 chunks,bytes32 chain,\
        uint64 sequence,bytes32 previous,uint64 receivedAtMs,uint64 finishedAtMs)",
    ];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.address("worker", &self.worker);
        v.uint("keyEpoch", 64, self.key_epoch.into());
        v.bytes32("model", &self.model);
        v.bytes32("request", &self.request);
        v.bytes32("nonce", &self.nonce);
        v.address("payer", &self.payer);
        v.uint("code", 8, self.code as u128);
        v.string("message", &self.message);
        v.uint("retryAfterMs", 64, self.retry_after_ms.into());
        v.uint("chunks", 64, self.chunks.into());
        v.bytes32("chain", &self.chain);
        v.uint("sequence", 64, self.sequence.into());
        v.bytes32("previous", &self.previous);
        v.uint("receivedAtMs", 64, self.received_at_ms.into());
        v.uint("finishedAtMs", 64, self.finished_at_ms.into());
    }
}
impl Statement for Failure {
    fn author(&self) -> Option<Address> {
        Some(self.worker)
    }
}

impl sealed::Sealed for Audit {}
impl Typed for Audit {
    const TYPES: &'static [&'static str] = &[
        "Audit(address auditor,uint64 keyEpoch,bytes32 receipt,bytes32 model,\
        uint32 arithmetic,uint8 verdict,string field,uint64 position,uint64 expected,uint64 claimed,uint64 sequence,\
        bytes32 previous,uint64 auditedAtMs,uint64 computeMs)",
    ];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.address("auditor", &self.auditor);
        v.uint("keyEpoch", 64, self.key_epoch.into());
        v.bytes32("receipt", &self.receipt);
        v.bytes32("model", &self.model);
        v.uint("arithmetic", 32, self.arithmetic.into());
        v.uint("verdict", 8, self.verdict as u128);
        v.string("field", &self.field);
        v.uint("position", 64, self.position.into());
        v.uint("expected", 64, self.expected.into());
        v.uint("claimed", 64, self.claimed.into());
        v.uint("sequence", 64, self.sequence.into());
        v.bytes32("previous", &self.previous);
        v.uint("auditedAtMs", 64, self.audited_at_ms.into());
        v.uint("computeMs", 64, self.compute_ms.into());
    }
}
impl Statement for Audit {
    fn author(&self) -> Option<Address> {
        Some(self.auditor)
    }
}

/// Any statement that takes a place in a worker's sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnyStatement {
    /// An answer.
    Receipt(Signed<Receipt>),
    /// A refusal or a broken answer.
    Failure(Signed<Failure>),
    /// An audit of another worker's answer.
    Audit(Signed<Audit>),
}

impl AnyStatement {
    /// Hash of the statement in `domain`.
    pub fn hash(&self, domain: &Domain) -> Bytes32 {
        match self {
            AnyStatement::Receipt(signed) => signed.hash(domain),
            AnyStatement::Failure(signed) => signed.hash(domain),
            AnyStatement::Audit(signed) => signed.hash(domain),
        }
    }

    /// Whether the worker that it names signed it in `domain`.
    pub fn is_by_author(&self, domain: &Domain) -> bool {
        match self {
            AnyStatement::Receipt(signed) => signed.is_by_author(domain),
            AnyStatement::Failure(signed) => signed.is_by_author(domain),
            AnyStatement::Audit(signed) => signed.is_by_author(domain),
        }
    }

    /// The signature under it.
    pub fn signature(&self) -> Signature {
        match self {
            AnyStatement::Receipt(signed) => signed.signature,
            AnyStatement::Failure(signed) => signed.signature,
            AnyStatement::Audit(signed) => signed.signature,
        }
    }

    /// The worker that it names as its author.
    pub fn worker(&self) -> Address {
        match self {
            AnyStatement::Receipt(signed) => signed.statement.worker,
            AnyStatement::Failure(signed) => signed.statement.worker,
            AnyStatement::Audit(signed) => signed.statement.auditor,
        }
    }

    /// Its place in the worker's sequence.
    pub fn sequence(&self) -> u64 {
        match self {
            AnyStatement::Receipt(signed) => signed.statement.sequence,
            AnyStatement::Failure(signed) => signed.statement.sequence,
            AnyStatement::Audit(signed) => signed.statement.sequence,
        }
    }

    /// Hash of the statement before it.
    pub fn previous(&self) -> Bytes32 {
        match self {
            AnyStatement::Receipt(signed) => signed.statement.previous,
            AnyStatement::Failure(signed) => signed.statement.previous,
            AnyStatement::Audit(signed) => signed.statement.previous,
        }
    }
}
