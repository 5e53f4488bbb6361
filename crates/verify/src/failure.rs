use assay_receipt::{Bytes32, Chain, Failure, Level, Request, Signed, SignedChunk, request_commitment};
use serde::{Deserialize, Serialize};

use crate::check::{chain_of, chunk_signatures, known, place, rejected_words, signed_by, times};
use crate::report::{Checks, ensure};
use crate::{CheckKind, Expected, Report, State};

/// What the caller of a failed request still holds, to check the failure's commitments with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailureEvidence {
    /// Salt of the request commitment.
    pub salt: Bytes32,
    /// What was asked.
    pub request: Request,
    /// What was streamed before it broke off.
    pub chunks: Vec<SignedChunk>,
}

/// Checks a signed failure against what the caller expects and, when given, against what the caller sent and received.
/// The state is [`State::Signed`] or [`State::Rejected`]: that a worker failed is its own word, which nobody can replay.
pub fn check_failure(
    failure: &Signed<Failure>,
    evidence: Option<&FailureEvidence>,
    expected: &Expected,
) -> Report {
    let mut checks = Checks::default();
    let (statement, domain) = (&failure.statement, &expected.domain);
    checks.add(
        CheckKind::Form,
        statement.validate().map(|()| "within all limits").map_err(|error| error.to_string()),
    );
    checks.add(CheckKind::WorkerKnown, known(expected, &statement.worker, statement.key_epoch));
    checks.add(CheckKind::Signature, signed_by(failure, domain, &statement.worker));
    match evidence {
        Some(FailureEvidence { salt, request, chunks }) => {
            let commitment = request_commitment(request, salt);
            checks.add(
                CheckKind::Request,
                ensure(statement.request == commitment, "the request commitment matches", || {
                    format!("the request commitment is {} where {commitment} was expected", statement.request)
                }),
            );
            let chain = Chain::start(&commitment, &statement.nonce);
            checks.add(CheckKind::Chain, chain_of(chain, chunks, statement.chunks, &statement.chain));
            let signatures = chunk_signatures(chunks, domain, &statement.nonce, &statement.worker);
            checks.add(CheckKind::ChunkSignatures, signatures);
            let same = statement.model == request.model;
            checks.add(
                CheckKind::Model,
                ensure(same, "the model is the one of the request", || {
                    "the model is not the one of the request".into()
                }),
            );
        }
        None => {
            for name in [CheckKind::Request, CheckKind::Chain, CheckKind::ChunkSignatures, CheckKind::Model] {
                checks.skip(name, "neither the request nor the chunks are at hand");
            }
        }
    }
    match &expected.nonce {
        Some(nonce) => {
            let same = statement.nonce == *nonce;
            checks.add(
                CheckKind::Nonce,
                ensure(same, "the nonce matches", || "the nonce is not the caller's".into()),
            );
        }
        None => checks.skip(CheckKind::Nonce, "no nonce to compare with: this may be an old failure"),
    }
    match &expected.payer {
        Some(payer) => {
            let same = statement.payer == *payer;
            checks.add(
                CheckKind::Payer,
                ensure(same, "the payer matches", || "the payer is not the caller's".into()),
            );
        }
        None => checks.skip(CheckKind::Payer, "no payer to compare with"),
    }
    checks.add(CheckKind::Times, times(&[statement.received_at_ms, statement.finished_at_ms]));
    checks.add(CheckKind::Sequence, place(statement.sequence, &statement.previous));

    let operator =
        expected.worker(&statement.worker, statement.key_epoch).map(|member| member.operator.clone());
    let holds = checks.all_hold();
    let (proves, trusted) = if holds {
        let who = operator.as_deref().unwrap_or("unknown");
        let proves = format!(
            "The worker {} of {who} signed that it failed this request ({:?}) after {} chunks, and can be held to it.",
            statement.worker, statement.code, statement.chunks
        );
        (vec![proves], vec!["The worker, for the reason and the times.".into()])
    } else {
        rejected_words(&checks)
    };
    Report {
        state: if holds { State::Signed } else { State::Rejected },
        level: holds.then_some(Level::Signed),
        hash: failure.hash(domain),
        worker: statement.worker,
        operator,
        checks: checks.0,
        counted: Vec::new(),
        proves,
        trusted,
    }
}
