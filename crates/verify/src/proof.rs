//! Answers that are proofs.

use assay_proof::{AnyProof, Model};
use assay_receipt::{Bundle, Bytes32, GRAPH_ARITHMETIC, Level, Output, Request};

use crate::check::{rejected_words, signed_words};
use crate::report::Checks;
use crate::{CheckKind, Expected, Report, State, check};

/// Why a proof in a receipt could not be checked here. None of these says anything about the worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The answer is none of an integer graph.
    #[error("the receipt has arithmetic version {0}, whose answers carry no proof: replay it instead")]
    Arithmetic(u32),
    /// The model at hand is another one.
    #[error(
        "the receipt is for model {wanted}, and {given} was given: fetch the model or key that the receipt names"
    )]
    Model {
        /// Model of the receipt.
        wanted: Bytes32,
        /// Id of the model or key that was given.
        given: Bytes32,
    },
}

/// [`check`], and then checks the proof that is the answer. A bundle that fails its checks, or whose proof does not show that the
/// model gives these outputs for the inputs of the request, is rejected; otherwise nobody but mathematics is trusted for them, whatever
/// auditors said.
///
/// # Errors
/// [`ProofError`] when it cannot be checked with this model; [`check`] alone then still says what the signatures prove.
pub fn check_proved(bundle: &Bundle, expected: &Expected, model: &Model) -> Result<Report, ProofError> {
    let mut report = check(bundle, expected);
    if report.state == State::Rejected {
        return Ok(report);
    }
    let receipt = &bundle.receipt.statement;
    if receipt.arithmetic != GRAPH_ARITHMETIC {
        return Err(ProofError::Arithmetic(receipt.arithmetic));
    }
    let given = Bytes32(model.id());
    if receipt.model != given {
        return Err(ProofError::Model { wanted: receipt.model, given });
    }
    report.checks.retain(|check| check.name != CheckKind::Proof);
    let mut checks = Checks(std::mem::take(&mut report.checks));
    let checked = proof_of(&bundle.request, &bundle.output, model);
    let examples = receipt.prompt_tokens;
    if checks.add(CheckKind::Proof, checked.map(|_| format!("the proof holds for all {examples} examples"))) {
        let who = format!("worker {} of {}", report.worker, report.operator.as_deref().unwrap_or("unknown"));
        (report.proves, report.trusted) = signed_words(&who);
        report.proves.push(
            "The outputs in the proof are what this model gives for the inputs of the request.".to_owned(),
        );
        report.trusted.push("Mathematics, for the outputs: nobody else.".to_owned());
        if let Model::Key(_) = model {
            report.trusted.push("Whoever made the key: it was made from the model that you mean.".to_owned());
        }
        (report.state, report.level) = (State::Proved, Some(Level::Proved));
    } else {
        (report.proves, report.trusted) = rejected_words(&checks);
        (report.state, report.level) = (State::Rejected, None);
    }
    Ok(Report { checks: checks.0, ..report })
}

/// The proof that an output is, if it shows what this model gives for the inputs of a request. It may hide the model's weights.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn proof_of(request: &Request, output: &Output, model: &Model) -> Result<AnyProof, String> {
    let inputs =
        request.inference_inputs().ok_or("the request is none for the outputs of an integer graph")?;
    let file = output.proof_file().ok_or("the answer carries no proof")?;
    let proof = AnyProof::from_bytes(&file).map_err(|error| error.to_string())?;
    // What comes first decides what is said, since each alone would do.
    if proof.model() != model.id() || request.model.0 != model.id() {
        return Err("the proof is about another model".to_owned());
    }
    if proof.inputs() != Some(&inputs) {
        return Err("the proof is about other inputs than those of the request".to_owned());
    }
    if model.examples(&inputs) != output.prompt_tokens as usize {
        let (found, claimed) = (model.examples(&inputs), output.prompt_tokens);
        return Err(format!("the request has {found} examples, where {claimed} are charged"));
    }
    model.verify_any(&proof).map_err(|error| error.to_string())?;
    Ok(proof)
}
