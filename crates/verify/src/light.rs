use std::sync::Arc;

use assay_engine::light::{Commitment, Fault, Key, Proof, Trace};
use assay_engine::request::{Processor, judge, judge_error};
use assay_engine::{Config, Engine, Error, Generation, Replay};
use assay_receipt::{Bundle, Bytes32, Level};

use crate::replay::{replayable, with_replay};
use crate::report::Checks;
use crate::{CheckKind, Expected, ReplayError, Report, State, check};

/// [`check`], and then repeats the answer on this machine without the model: matrix products come from a trace, and each is
/// tested with a secret key, see [`assay_engine::light`]. `processor` is made from [`Key::artifact`]; of `config`, memory is
/// chosen by the trace's length. A bundle that fails its checks is not replayed.
///
/// What holds of [`crate::check_replayed`] holds here. A trace that is false fails [`CheckKind::Products`] and leaves the state as it
/// was: whoever made the trace may be another than the worker.
///
/// # Errors
/// [`ReplayError`], as there; the model is the key's.
pub fn check_light(
    bundle: &Bundle,
    expected: &Expected,
    key: &Arc<Key>,
    processor: &Processor,
    trace: Arc<dyn AsRef<[u8]> + Send + Sync>,
    config: Config,
) -> Result<Report, ReplayError> {
    let repeat = |generation: &Generation| {
        let trace = Trace::parse(trace, key.artifact())?;
        Engine::checking(key, trace, config)?.replay(generation, &bundle.output.tokens)
    };
    let passed = "the matrix products that this rests on passed their tests";
    let model = (key.model(), key.artifact().manifest().arithmetic);
    let (mut report, decided) = decide(bundle, expected, model, processor, passed, repeat)?;
    if decided && report.state == State::Replayed {
        report.proves = vec![
            "The answer is this model's, bit for bit: this machine repeated it, with matrix products from the trace that \
             passed a test which a false one passes with probability 2^-61."
                .into(),
        ];
    }
    if decided {
        report.trusted = vec![
            "This machine and the software on it; and that the key was made from the model and nobody else has it."
                .into(),
        ];
    }
    Ok(report)
}

/// [`check`], and then checks the answer with a proof that whoever has the model made (`assay prove`), and the model's public commitment, see
/// [`assay_engine::light::Proof`]. `processor` is made from [`Commitment::artifact`]. A proof that holds raises the report to
/// [`State::Proved`]: anybody else comes to the same end with the same files. One that does not hold fails [`CheckKind::Products`] and leaves the state as it was:
/// whoever made it may be another than the worker. An answer that is not the one that the proof's products lead to is a mismatch.
///
/// # Errors
/// [`ReplayError`], as for a replay; the model is the commitment's.
pub fn check_trace_proof(
    bundle: &Bundle,
    expected: &Expected,
    commitment: &Arc<Commitment>,
    processor: &Processor,
    proof: Arc<dyn AsRef<[u8]> + Send + Sync>,
    config: Config,
) -> Result<Report, ReplayError> {
    let tokens = &bundle.output.tokens;
    let repeat = |generation: &Generation| {
        let proof = Proof::parse(proof, commitment)?;
        Engine::verifying(commitment, proof, (&generation.prompt, tokens), config)?.replay(generation, tokens)
    };
    let passed = "the matrix products that this rests on are proved to be the committed model's";
    let model = (commitment.model(), commitment.artifact().manifest().arithmetic);
    let (mut report, decided) = decide(bundle, expected, model, processor, passed, repeat)?;
    if decided && report.state == State::Replayed {
        (report.state, report.level) = (State::Proved, Some(Level::Proved));
        report.proves = vec![
            "The answer is this model's, bit for bit: a proof shows the matrix products, and this machine computed all between \
             them."
                .into(),
        ];
    }
    if decided {
        report.trusted = vec![
            "Mathematics: a false proof costs about 2^100 attempts, or a collision of BLAKE3.".into(),
            format!(
                "That the commitment {} was made from the model: whoever has the model makes the same one.",
                commitment.id()
            ),
        ];
    }
    Ok(report)
}

/// The checks of a bundle, and a replay by `repeat`, which may find its evidence false; whether the replay decided anything.
fn decide(
    bundle: &Bundle,
    expected: &Expected,
    (model, arithmetic): (Bytes32, u32),
    processor: &Processor,
    passed: &str,
    repeat: impl FnOnce(&Generation) -> Result<Replay, Error>,
) -> Result<(Report, bool), ReplayError> {
    let mut report = check(bundle, expected);
    if report.state == State::Rejected {
        return Ok((report, false));
    }
    replayable(bundle, model, arithmetic)?;
    let judged = match processor.examine(&bundle.request, &bundle.output) {
        // It contradicts itself, and no product is needed to say so.
        Err(verdict) => return Ok((with_replay(report, &verdict), false)),
        Ok(prepared) => match repeat(&prepared.generation) {
            Ok(replay) => Ok(judge(&replay, &bundle.output)),
            Err(error) => judge_error(error, &bundle.output),
        },
    };
    let mut checks = Checks(std::mem::take(&mut report.checks));
    let verdict = match judged {
        Ok(verdict) => verdict,
        Err(Error::Light(fault)) => {
            if let Fault::Engine(error) = fault {
                return Err((*error).into());
            }
            checks.add(CheckKind::Products, Err::<String, _>(fault.to_string()));
            report.checks = checks.0;
            return Ok((report, false));
        }
        Err(error) => return Err(error.into()),
    };
    checks.add(CheckKind::Products, Ok(passed));
    report.checks = checks.0;
    Ok((with_replay(report, &verdict), true))
}
