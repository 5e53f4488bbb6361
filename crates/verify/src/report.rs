use assay_receipt::{Address, Bytes32, Level};
use serde::{Deserialize, Serialize};

/// What the evidence supports, all checks considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A check of the receipt itself failed; nothing is proven.
    Rejected,
    /// The worker signed it; nobody independent has repeated it.
    Signed,
    /// Repeated bit for bit, by an independent auditor or on this machine.
    Replayed,
    /// The answer is a proof, which was checked on this machine.
    Proved,
    /// The worker signed it, and a replay gave something else: one of the two signed a falsehood.
    Mismatch,
}

/// Which check. The names in JSON and on the page are these in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Lengths and ranges are within the limits of this version.
    Form,
    /// The statements were made for the chain and contract that the caller uses.
    Domain,
    /// The worker and its key epoch are on the caller's list.
    WorkerKnown,
    /// The worker's key signed the statement.
    Signature,
    /// The commitment opens to the request.
    Request,
    /// The commitment opens to the output.
    Output,
    /// The chunk chain, recomputed from the chunks, ends in the signed link with the signed length.
    Chain,
    /// The worker's key signed every chunk.
    ChunkSignatures,
    /// The chunks, joined, are the output.
    Stream,
    /// The model is the one that was asked for.
    Model,
    /// The arithmetic is the one that the worker offers, and the output has what it promises.
    Arithmetic,
    /// The receipt claims no level for which it carries no evidence.
    Level,
    /// The token counts of receipt and output agree with each other, the tokens and the request.
    Usage,
    /// The nonce is the caller's.
    Nonce,
    /// The payer is the caller's.
    Payer,
    /// The price follows from the token counts and the worker's offer.
    Price,
    /// The price is within the cap, and the cap is the caller's.
    Cap,
    /// The times are in order.
    Times,
    /// Sequence number and previous hash fit together.
    Sequence,
    /// The auditor and its key epoch are on the caller's list.
    AuditorKnown,
    /// The auditor's key signed the audit.
    AuditSignature,
    /// The auditor is another worker, of another operator.
    AuditIndependent,
    /// The audit is about this receipt, its model and its arithmetic.
    AuditSubject,
    /// The audit's verdict and details do not contradict each other.
    AuditVerdict,
    /// The answer, repeated on this machine, is the same to the last bit.
    Replay,
    /// The proof that is the answer shows what the model gives for the inputs of the request.
    Proof,
    /// The matrix products in the trace of a light check are the model's.
    Products,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// The caller gave nothing to compare with.
    Skipped,
    /// It is about an audit and does not hold: that audit counts for nothing, and the receipt stands without it.
    NotCounted,
}

/// One check and what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which check.
    pub name: CheckKind,
    /// How it came out.
    pub outcome: Outcome,
    /// What it saw, in a sentence for people.
    pub detail: String,
}

/// What checking found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The conclusion.
    pub state: State,
    /// The level that the evidence supports; `None` when rejected.
    pub level: Option<Level>,
    /// Hash of the checked statement in the expected domain.
    pub hash: Bytes32,
    /// The worker that the statement names.
    pub worker: Address,
    /// Who runs that worker, when it is on the caller's list.
    pub operator: Option<String>,
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Which of the bundle's audits hold, by their index; the others count for nothing.
    #[serde(default)]
    pub counted: Vec<usize>,
    /// What this proves, in plain sentences.
    pub proves: Vec<String>,
    /// Who or what is still trusted, in plain sentences.
    pub trusted: Vec<String>,
}

impl Report {
    /// What is wrong with audits that therefore count for nothing.
    pub fn not_counted(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::NotCounted)
    }

    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Failed)
    }

    /// Whether a check of this kind failed.
    pub fn has_failed(&self, name: CheckKind) -> bool {
        self.failed().any(|check| check.name == name)
    }
}

/// Collects checks.
#[derive(Default)]
pub(crate) struct Checks(pub(crate) Vec<Check>);

impl Checks {
    /// Adds a check: `holds`, or the reason why it does not.
    pub(crate) fn add(&mut self, name: CheckKind, result: Result<impl Into<String>, String>) -> bool {
        let (outcome, detail) = match result {
            Ok(detail) => (Outcome::Passed, detail.into()),
            Err(detail) => (Outcome::Failed, detail),
        };
        self.0.push(Check { name, outcome, detail });
        outcome == Outcome::Passed
    }

    /// Adds a check of an audit, which cannot reject the receipt.
    pub(crate) fn add_audit(&mut self, name: CheckKind, result: Result<String, String>) -> bool {
        let (outcome, detail) = match result {
            Ok(detail) => (Outcome::Passed, detail),
            Err(detail) => (Outcome::NotCounted, detail),
        };
        self.0.push(Check { name, outcome, detail });
        outcome == Outcome::Passed
    }

    pub(crate) fn skip(&mut self, name: CheckKind, detail: &str) {
        self.0.push(Check { name, outcome: Outcome::Skipped, detail: detail.into() });
    }

    pub(crate) fn all_hold(&self) -> bool {
        self.0.iter().all(|check| check.outcome != Outcome::Failed)
    }
}

/// `Ok(right)` when it holds, else `Err(wrong())`.
pub(crate) fn ensure(holds: bool, right: &str, wrong: impl FnOnce() -> String) -> Result<String, String> {
    if holds { Ok(right.into()) } else { Err(wrong()) }
}
