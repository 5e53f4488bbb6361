//! Light checks: `assay model key`, `assay trace`, and the part of `assay verify` that checks traces.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use assay_engine::Config;
use assay_engine::light::{KEY_BYTES_MAX, Key, RecordError, record};
use assay_engine::request::Processor;
use assay_receipt::{Bundle, Bytes32};
use assay_verify::{Expected, Report};
use clap::Args;
use serde_json::json;

use crate::error::{Error, Result};
use crate::{home, keys, models, ui, verify};

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// A receipt or an incident file
    pub(crate) receipt: PathBuf,
    /// Where to write the trace; about 2.8 bytes for each row of each matrix and token
    #[arg(long, short)]
    pub(crate) out: PathBuf,
    /// Name, id or path of the receipt's model; the imported one that it names when left out
    #[arg(long)]
    model: Option<String>,
    /// Ask the worker that gave the answer for its trace, which needs no model here
    #[arg(long, conflicts_with = "model")]
    pub(crate) from_worker: bool,
    #[command(flatten)]
    pub(crate) list: verify::ListArgs,
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

    let bar = ui::bar(1, "reading weights", false);
    let key = Key::make(&artifact, keys::random()?, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
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

/// Replays an answer and writes the trace.
pub(crate) fn trace(args: &TraceArgs, as_json: bool) -> Result<()> {
    let (bundle, _) = verify::read(&args.receipt)?;
    let receipt = &bundle.receipt.statement;
    let id = Bytes32::to_string(&receipt.model);
    let (_, artifact) = models::open(args.model.as_deref().unwrap_or(&id))?;
    if artifact.id() != receipt.model {
        return Err(Error::said(format!("the receipt is for model {id}, and this is {}", artifact.id())));
    }
    let artifact = Arc::new(artifact);
    let processor = Processor::from_artifact(&artifact).map_err(|error| said(&error))?;
    let prepared = processor.examine(&bundle.request, &bundle.output).map_err(|_| differs())?;

    // A reader sees all of it or nothing.
    let temporary = args.out.with_extension(format!("part-{}", std::process::id()));
    let started = Instant::now();
    let bar = ui::bar(1, "recording", false);
    let write = || -> std::result::Result<u64, RecordError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        record(
            &artifact,
            Config::default(),
            &prepared.generation,
            &bundle.output.tokens,
            &mut file,
            &mut |done, all| {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            },
        )?;
        file.flush()?;
        file.get_ref().sync_all()?;
        let bytes = file.get_ref().metadata()?.len();
        std::fs::rename(&temporary, &args.out)?;
        Ok(bytes)
    };
    let written = write();
    bar.finish_and_clear();
    let bytes = written.map_err(|error| {
        // It failed already; a leftover file is not worth a second error.
        let _ = std::fs::remove_file(&temporary);
        match error {
            RecordError::Differs(_) => differs(),
            error => said(&error),
        }
    })?;
    let positions = prepared.generation.prompt.len() + bundle.output.tokens.len() - 1;
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        ui::print_json(&json!({
            "model": id, "path": args.out, "bytes": bytes, "positions": positions, "seconds": seconds,
        }));
    } else {
        ui::say!("{} {} is the trace of {positions} positions", ui::green("✓"), args.out.display());
        let (size, each) = (bytes as f64 / 1e6, bytes as f64 / positions as f64 / 1e3);
        ui::say!("{}", ui::dim(&format!("{size:.1} MB, {each:.0} kB a position, in {seconds:.1} s")));
    }
    Ok(())
}

fn differs() -> Error {
    Error::Rejected(
        "the answer is not this model's, so no trace can show that it is; `assay verify --replay` says where it differs".into(),
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
