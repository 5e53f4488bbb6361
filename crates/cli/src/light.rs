//! Answers checked without the model: `assay model key` and `assay trace` for light checks, `assay model commit` and `assay prove` for
//! proofs, and the parts of `assay verify` that check them.

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use assay_engine::Config;
use assay_engine::light::{Commitment, KEY_BYTES_MAX, Key, RecordError, prove, record};
use assay_engine::request::Processor;
use assay_model::Artifact;
use assay_receipt::{Bundle, Bytes32};
use assay_verify::{Expected, Report};
use clap::Args;
use serde_json::json;

use crate::error::{Error, Result};
use crate::home::Draft;
use crate::{home, keys, models, traces, ui, verify};

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// A receipt or an incident file
    receipt: PathBuf,
    /// Where to write the trace; about 2.8 bytes for each row of each matrix and token
    #[arg(long, short)]
    out: PathBuf,
    /// Name, id or path of the receipt's model; the imported one that it names when left out
    #[arg(long)]
    model: Option<String>,
    /// Ask the worker that gave the answer for its trace, which needs no model here
    #[arg(long, conflicts_with = "model")]
    from_worker: bool,
    #[command(flatten)]
    list: verify::ListArgs,
}

fn said(error: &dyn std::fmt::Display) -> Error {
    Error::said(error.to_string())
}

/// Makes a key from an artifact, after checking that the artifact is what its id names.
pub(crate) fn make_key(model: &str, out: Option<PathBuf>, as_json: bool) -> Result<()> {
    let (path, artifact) = models::open(model)?;
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.light", models::name_of(&path))));
    let started = Instant::now();
    models::hash(&path, &artifact)?;
    let id = artifact.id().to_string();
    let hashed = started.elapsed();

    let secret = keys::random()?;
    let key = ui::with_bar("reading weights", false, |progress| Key::make(&artifact, secret, progress));
    let bytes = key.map_err(|error| said(&error))?.to_bytes();
    // Who has the key can make false traces.
    home::write_atomically(&out, &bytes, 0o600)?;
    let seconds = started.elapsed();
    if as_json {
        ui::print_json(&json!({
            "model": id, "path": out, "bytes": bytes.len(), "seconds": seconds.as_secs_f64(),
            "hashing_seconds": hashed.as_secs_f64(),
        }));
    } else {
        ui::say!("{} {} is the key for {id}", ui::green("✓"), out.display());
        let size = bytes.len() as f64 / 1e6;
        ui::say!("{}", ui::dim(&format!("{size:.1} MB in {:.1} s; keep it secret", seconds.as_secs_f64())));
    }
    Ok(())
}

/// Writes the public commitment to a model that writes text.
pub(crate) fn commit(path: &Path, artifact: &Artifact, out: Option<PathBuf>, as_json: bool) -> Result<()> {
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.key", models::name_of(path))));
    let started = Instant::now();
    models::hash(path, artifact)?;
    let hashed = started.elapsed();
    let commitment = make_commitment(artifact, "encoding weights")?;
    let bytes = commitment.to_bytes();
    home::write_atomically(&out, &bytes, 0o644)?;
    let (seconds, id, model) = (started.elapsed().as_secs_f64(), commitment.id(), artifact.id());
    if as_json {
        ui::print_json(&json!({
            "key": id.to_string(), "model": model.to_string(), "bytes": bytes.len(), "path": out, "seconds": seconds,
            "hashing_seconds": hashed.as_secs_f64(),
        }));
    } else {
        ui::say!("key {id}\nof the model {model}");
        let size = bytes.len() as f64 / 1e6;
        ui::say!("{}", ui::dim(&format!("{} has {size:.1} MB, made in {seconds:.1} s", out.display())));
        ui::say!("{}", ui::dim("It is no secret: whoever has the model makes the same one."));
    }
    Ok(())
}

/// Makes the public commitment to a model unless the file has it.
pub(crate) fn ensure_commitment(model: &Path, out: &Path) -> Result<()> {
    let (_, artifact) = models::open(&model.display().to_string())?;
    if out.is_file() && read_commitment(out).is_ok_and(|known| known.model() == artifact.id()) {
        return Ok(());
    }
    let commitment = make_commitment(&artifact, "making the key for proofs")?;
    home::write_atomically(out, &commitment.to_bytes(), 0o644)
}

fn make_commitment(artifact: &Artifact, what: &str) -> Result<Commitment> {
    ui::with_bar(what, false, |progress| Commitment::make(artifact, progress)).map_err(|error| said(&error))
}

fn read_commitment(path: &Path) -> Result<Commitment> {
    let bytes = home::read_bounded(path, KEY_BYTES_MAX)?;
    Commitment::from_bytes(&bytes).map_err(|error| Error::said(format!("{}: {error}", path.display())))
}

/// Writes the trace of an answer, which is replayed here or by its worker.
pub(crate) async fn trace(args: &TraceArgs, as_json: bool) -> Result<()> {
    if args.from_worker {
        return traces::fetch(&args.receipt, &args.out, &args.list, None, as_json).await;
    }
    write(&args.receipt, args.model.as_deref(), None, &args.out, as_json)
}

/// Writes the proof of an answer, which is replayed here, or by its worker if a list of workers is given.
pub(crate) async fn prove_receipt(
    receipt: &Path,
    key: &Path,
    out: &Path,
    worker: Option<&verify::ListArgs>,
    as_json: bool,
) -> Result<()> {
    let commitment = read_commitment(key)?;
    match worker {
        Some(list) => traces::fetch(receipt, out, list, Some(commitment.id()), as_json).await,
        None => write(receipt, None, Some(&commitment), out, as_json),
    }
}

/// The trace of an answer, behind what proves it if there is a commitment.
fn write(
    receipt: &Path,
    model: Option<&str>,
    commitment: Option<&Commitment>,
    out: &Path,
    as_json: bool,
) -> Result<()> {
    let (bundle, _) = verify::read(receipt)?;
    let receipt = &bundle.receipt.statement;
    let id = Bytes32::to_string(&receipt.model);
    let (_, artifact) = models::open(model.unwrap_or(&id))?;
    if artifact.id() != receipt.model {
        return Err(Error::said(format!("the receipt is for model {id}, and this is {}", artifact.id())));
    }
    let key = commitment.map(Commitment::id);
    if let Some(commitment) = commitment.filter(|commitment| commitment.model() != artifact.id()) {
        return Err(Error::said(format!(
            "the receipt is for model {id}, and the key for {}: make one with `assay model commit {id}`",
            commitment.model()
        )));
    }
    let artifact = Arc::new(artifact);
    let processor = Processor::from_artifact(&artifact).map_err(|error| said(&error))?;
    let prepared = processor.examine(&bundle.request, &bundle.output).map_err(|_| differs())?;
    let tokens = &bundle.output.tokens;

    let started = Instant::now();
    let bar = ui::bar(1, "recording", false);
    let write = || -> std::result::Result<u64, RecordError> {
        let mut file = BufWriter::with_capacity(1 << 20, Draft::create(out, 0o600)?);
        let (generation, config) = (&prepared.generation, Config::default());
        let mut last = 0;
        let mut progress = |done: usize, all: usize| {
            if done < last {
                bar.set_message("proving");
            }
            last = done;
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        };
        match key {
            None => record(&artifact, config, generation, tokens, &mut file, &mut progress)?,
            Some(key) => prove(&artifact, config, key, generation, tokens, &mut file, &mut progress)?,
        };
        let file = file.into_inner().map_err(|error| error.into_error())?;
        Ok(file.keep()?)
    };
    let written = write();
    bar.finish_and_clear();
    let bytes = written.map_err(|error| match error {
        RecordError::Differs(_) => differs(),
        error => said(&error),
    })?;
    let positions = prepared.generation.prompt.len() + tokens.len() - 1;
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        ui::print_json(&json!({
            "model": id, "path": out, "bytes": bytes, "positions": positions, "seconds": seconds,
            "key": key.map(|key| key.to_string()),
        }));
        return Ok(());
    }
    let what = if key.is_some() { "proves" } else { "is the trace of" };
    ui::say!("{} {} {what} {positions} positions", ui::green("✓"), out.display());
    let (size, each) = (bytes as f64 / 1e6, bytes as f64 / positions as f64 / 1e3);
    ui::say!("{}", ui::dim(&format!("{size:.1} MB, {each:.0} kB a position, in {seconds:.1} s")));
    if key.is_some() {
        ui::say!("{}", ui::dim("It hides nothing: the text and all that the model computed are in it."));
    }
    Ok(())
}

fn differs() -> Error {
    Error::Rejected(
        "the answer is not this model's, so nothing can show that it is; `assay verify --replay` says where it differs".into(),
    )
}

/// Checks a receipt with a trace and a key.
pub(crate) fn check(bundle: &Bundle, expected: &Expected, trace: &Path, key: &Path) -> Result<Report> {
    let bytes = home::read_bounded(key, KEY_BYTES_MAX)?;
    let key = Key::from_bytes(&bytes).map_err(|error| Error::said(format!("{}: {error}", key.display())))?;
    drop(bytes);
    let trace = assay_worker::files::map(trace).map_err(|error| said(&error))?;
    let processor = Processor::from_artifact(key.artifact()).map_err(|error| said(&error))?;
    let spinner = ui::spinner("checking the products of the trace");
    let report =
        assay_verify::check_light(bundle, expected, &Arc::new(key), &processor, trace, Config::default());
    spinner.finish_and_clear();
    report.map_err(|error| Error::said(format!("nothing was decided: {error}")))
}

/// Checks a receipt with a proof and the public commitment to its model.
pub(crate) fn check_proof(bundle: &Bundle, expected: &Expected, proof: &Path, key: &Path) -> Result<Report> {
    let commitment = Arc::new(read_commitment(key)?);
    let proof = assay_worker::files::map(proof).map_err(|error| said(&error))?;
    let processor = Processor::from_artifact(commitment.artifact()).map_err(|error| said(&error))?;
    let spinner = ui::spinner("checking the proof");
    let report =
        assay_verify::check_trace_proof(bundle, expected, &commitment, &processor, proof, Config::default());
    spinner.finish_and_clear();
    report.map_err(|error| Error::said(format!("nothing was decided: {error}")))
}
