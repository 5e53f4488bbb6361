use std::sync::Arc;

use assay_engine::light::{Fault, Key, Trace};
use assay_engine::request::{OutputVerdict, Processor, judge, judge_error};
use assay_engine::{Config, Engine, Error, Generation};
use assay_receipt::Bundle;

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
    let mut report = check(bundle, expected);
    if report.state == State::Rejected {
        return Ok(report);
    }
    replayable(bundle, key.model(), key.artifact().manifest().arithmetic)?;
    let judged = match processor.examine(&bundle.request, &bundle.output) {
        // It contradicts itself, and no product is needed to say so.
        Err(verdict) => return Ok(with_replay(report, &verdict)),
        Ok(prepared) => run(bundle, key, &prepared.generation, trace, config),
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
            return Ok(report);
        }
        Err(error) => return Err(error.into()),
    };
    checks.add(CheckKind::Products, Ok("the matrix products that this rests on passed their tests"));
    report.checks = checks.0;
    let mut report = with_replay(report, &verdict);
    if verdict == OutputVerdict::Agrees {
        report.proves = vec![
            "The answer is this model's, bit for bit: this machine repeated it, with matrix products from the trace that \
             passed a test which a false one passes with probability 2^-61."
                .into(),
        ];
    }
    report.trusted = vec![
        "This machine and the software on it; and that the key was made from the model and nobody else has it.".into(),
    ];
    Ok(report)
}

fn run(
    bundle: &Bundle,
    key: &Arc<Key>,
    generation: &Generation,
    trace: Arc<dyn AsRef<[u8]> + Send + Sync>,
    config: Config,
) -> Result<OutputVerdict, Error> {
    let trace = Trace::parse(trace, key)?;
    match Engine::checking(key, trace, config)?.replay(generation, &bundle.output.tokens) {
        Ok(replay) => Ok(judge(&replay, &bundle.output)),
        Err(error) => judge_error(error, &bundle.output),
    }
}
