use assay_engine::Engine;
use assay_engine::encoder::Encoder;
use assay_engine::request::{OutputVerdict, Processor, replay_output};
use assay_receipt::{Bundle, Bytes32, Level};

use crate::check::{difference, signed_words};
use crate::report::Checks;
use crate::{CheckKind, Expected, Report, State, check};

/// Why an answer could not be repeated here. None of these says anything about the worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The answer came from a forwarder.
    #[error("a forwarder's answer cannot be replayed: ask for a model that a worker runs itself")]
    Forwarder,
    /// The engine runs another model.
    #[error(
        "the receipt is for model {wanted}, and {given} was given: fetch the model that the receipt names"
    )]
    Model {
        /// Model of the receipt.
        wanted: Bytes32,
        /// Model of the engine.
        given: Bytes32,
    },
    /// The receipt was made with another version of the arithmetic.
    #[error(
        "the receipt uses arithmetic version {wanted}, this software has {given}: use a release that has it"
    )]
    Arithmetic {
        /// Version of the receipt.
        wanted: u32,
        /// Version of this software.
        given: u32,
    },
    /// The engine cannot run it.
    #[error("the answer cannot be repeated: {0}")]
    Engine(#[from] assay_engine::Error),
}

/// [`check`], and then repeats the answer on this machine. A bundle that fails its checks is not replayed.
///
/// A replay that agrees raises the report to [`State::Replayed`] with nobody left to trust but this machine; one that
/// differs makes it [`State::Mismatch`], whatever auditors said.
///
/// # Errors
/// [`ReplayError`] when it cannot be replayed here; [`check`] alone then still says what the signatures prove.
pub fn check_replayed(
    bundle: &Bundle,
    expected: &Expected,
    engine: &mut Engine,
    processor: &Processor,
) -> Result<Report, ReplayError> {
    let report = check(bundle, expected);
    if report.state == State::Rejected {
        return Ok(report);
    }
    let artifact = engine.artifact();
    replayable(bundle, artifact.id(), artifact.manifest().arithmetic)?;
    let verdict = replay_output(engine, processor, &bundle.request, &bundle.output)?;
    Ok(with_replay(report, &verdict))
}

/// [`check_replayed`] for an embedding.
///
/// # Errors
/// [`ReplayError`], as there.
pub fn check_embedded(
    bundle: &Bundle,
    expected: &Expected,
    encoder: &Encoder,
) -> Result<Report, ReplayError> {
    let report = check(bundle, expected);
    if report.state == State::Rejected {
        return Ok(report);
    }
    let artifact = encoder.artifact();
    replayable(bundle, artifact.id(), artifact.manifest().arithmetic)?;
    Ok(with_replay(report, &encoder.judge(&bundle.request, &bundle.output)))
}

/// Whether the model of this id and arithmetic is the one to repeat the answer with.
pub(crate) fn replayable(bundle: &Bundle, given: Bytes32, version: u32) -> Result<(), ReplayError> {
    let receipt = &bundle.receipt.statement;
    if receipt.arithmetic == 0 {
        return Err(ReplayError::Forwarder);
    }
    if receipt.model != given {
        return Err(ReplayError::Model { wanted: receipt.model, given });
    }
    if receipt.arithmetic != version {
        return Err(ReplayError::Arithmetic { wanted: receipt.arithmetic, given: version });
    }
    Ok(())
}

/// Adds the outcome of a replay on this machine to a report that was not rejected.
pub(crate) fn with_replay(mut report: Report, verdict: &OutputVerdict) -> Report {
    let mut checks = Checks(std::mem::take(&mut report.checks));
    let who = format!("worker {} of {}", report.worker, report.operator.as_deref().unwrap_or("unknown"));
    let (mut proves, mut trusted) = signed_words(&who);
    match *verdict {
        OutputVerdict::Agrees => {
            checks.add(CheckKind::Replay, Ok("this machine repeated the answer to the last bit"));
            proves.push("The answer is this model's, bit for bit: this machine repeated it.".into());
            trusted.push("This machine and the software on it, for the answer; nobody else.".into());
            (report.state, report.level) = (State::Replayed, Some(Level::Replayed));
        }
        OutputVerdict::Differs { field, position, expected, claimed } => {
            let what = difference(field, position, expected, claimed);
            checks.add(
                CheckKind::Replay,
                Err::<String, _>(format!("this machine gives something else: {what}")),
            );
            proves.push(format!("The answer is not this model's: {what}. The {who} signed a falsehood."));
            trusted.push("This machine and the software on it, for that.".into());
            (report.state, report.level) = (State::Mismatch, Some(Level::Signed));
        }
    }
    Report { checks: checks.0, proves, trusted, ..report }
}
