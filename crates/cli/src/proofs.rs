//! `assay prove`, and the part of `assay verify` that checks proofs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use assay_proof::{AnyProof, Hide, Key, Model, Stage};
use assay_worker::Secret;
use clap::Args;
use serde_json::json;

use crate::error::{Error, Result};
use crate::graphs::{self, hex};
use crate::{home, keys, light, models, ui, verify};

#[derive(Args)]
pub(crate) struct ProveArgs {
    /// A model that was imported from ONNX (name, id or path), with --input; or a receipt or an incident file, whose answer is then
    /// proved to be its model's
    #[arg(value_name = "MODEL|RECEIPT")]
    subject: String,
    /// A JSON file with {"inputs": [[…], …]}, or with the rows alone; all rows go into one proof
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where to write the proof
    #[arg(long, short)]
    out: PathBuf,
    /// The model's key, made by `assay model commit`: the proof is then checked with the key, without the model; the proof of a
    /// receipt always is
    #[arg(long)]
    key: Option<PathBuf>,
    /// What the proof is not to tell: it is then zero-knowledge about that, and larger
    #[arg(long, value_enum, value_delimiter = ',', requires = "input")]
    hide: Vec<Hidden>,
    /// Have the worker that gave the receipt's answer prove it, which needs no model here
    #[arg(long, requires = "key", conflicts_with = "input")]
    from_worker: bool,
    #[command(flatten)]
    list: verify::ListArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Hidden {
    /// The inputs, and what lies between them and the outputs
    Inputs,
    /// The weights behind a key that `assay model commit --hide` made; each proof uses one of those that it was made for
    Weights,
}

/// What the files of proofs begin with, in any version.
const MAGICS: [&[u8; 7]; 2] = [b"ASSAYPF", b"ASSAYZK"];

/// Says what a proof leaves to know.
fn tells(proof: &AnyProof) -> &'static str {
    match (proof, proof.hides_weights()) {
        (AnyProof::Open(_), _) => {
            "The proof is succinct, not hiding: it contains the inputs and reveals parts of the computation."
        }
        (AnyProof::Hiding(proof), true) if proof.inputs.is_some() => {
            "The proof is zero-knowledge: about the weights and biases it tells nothing but the outputs. It contains the inputs."
        }
        (_, true) => {
            "The proof is zero-knowledge: about inputs, weights and biases it tells nothing but the outputs."
        }
        (_, false) if proof.has_committed_weights() => {
            "The proof is zero-knowledge about the inputs. Of the weights behind the key it reveals parts, as every proof with a key that \
             does not hide them."
        }
        (_, false) => "The proof is zero-knowledge: about the inputs it tells nothing but the outputs.",
    }
}

/// Writes the key of a model.
pub(crate) fn commit(model: &str, out: Option<PathBuf>, hide: Option<u32>, as_json: bool) -> Result<()> {
    let named = |path: &std::path::PathBuf| models::name_of(path) == model || path == Path::new(model);
    let graph = match graphs::open(model) {
        Ok(graph) => graph,
        // It is there, and cannot be used.
        Err(error) if graphs::paths()?.iter().any(named) => return Err(error),
        Err(_) => {
            let (path, artifact) = models::open(model)?;
            if hide.is_some() {
                return Err(Error::said("only weights of models from ONNX can be hidden; leave --hide out"));
            }
            return light::commit(&path, &artifact, out, as_json);
        }
    };
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.key", models::name_of(Path::new(model)))));
    let secret = Secret::beside(&out);
    if secret == out {
        return Err(Error::said("a key is no secret; give --out another extension than .secret"));
    }
    // Neither a secret nor the key that it is of can be made again.
    if secret.exists() {
        return Err(Error::said(format!(
            "{} makes the proofs of a key of this name, which is not overwritten; choose another name with --out, or remove it",
            secret.display()
        )));
    }
    let mut draft = home::Draft::create(&out, 0o644).map_err(Error::file("write", &out))?;
    let said = |error: assay_proof::Error| Error::said(error.to_string());
    let (key, seed) = match hide {
        None => {
            let spinner = ui::spinner("committing to the weights");
            let key = Key::commit(&graph);
            spinner.finish_and_clear();
            (key.map_err(said)?, None)
        }
        Some(proofs) => {
            let (bar, seed) = (ui::bar(proofs.into(), "committing", false), keys::random()?);
            let key = Key::commit_hiding(&graph, proofs, &seed, &|| bar.inc(1));
            bar.finish_and_clear();
            (key.map_err(said)?, Some(seed))
        }
    };
    let bytes = key.to_bytes();
    draft.write_all(&bytes).map_err(Error::file("write", &out))?;
    if let Some(seed) = seed {
        Secret::create(&secret, &key, &seed).map_err(|error| Error::said(error.to_string()))?;
    }
    draft.keep().map_err(|source| {
        if seed.is_some() {
            // There is no such key.
            let _ = std::fs::remove_file(&secret);
        }
        Error::file("write", &out)(source)
    })?;
    let secret = seed.map(|_| secret);
    let (id, model) = (hex(&key.id()), hex(&graph.id()));
    if as_json {
        ui::print_json(&json!({
            "key": id, "model": model, "bytes": bytes.len(), "path": out, "hiding_proofs": hide, "secret": secret,
        }));
        return Ok(());
    }
    ui::say!("key {id}\nof the model {model}");
    ui::say!("{}", ui::dim(&format!("{} has {:.1} kB", out.display(), bytes.len() as f64 / 1e3)));
    if let (Some(path), Some(proofs)) = (secret, hide) {
        ui::say!("It hides the weights in {proofs} proofs, which {} makes and counts.", path.display());
        ui::say!(
            "{}",
            ui::dim(
                "Keep that file to yourself, and never restore an older copy of it: two proofs from one count may tell the weights."
            )
        );
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<Key> {
    let bytes = home::read_bounded(path, assay_graph::limits::BYTES as u64)?;
    Key::from_bytes(&bytes).map_err(|error| Error::said(format!("{} is no key: {error}", path.display())))
}

pub(crate) async fn prove(args: &ProveArgs, as_json: bool) -> Result<()> {
    let input = match (&args.input, &args.key) {
        (Some(input), _) => input,
        (None, Some(key)) => {
            let (receipt, worker) = (Path::new(&args.subject), args.from_worker.then_some(&args.list));
            return light::prove_receipt(receipt, key, &args.out, worker, as_json).await;
        }
        (None, None) => {
            return Err(Error::said(
                "name the inputs of a model from ONNX with --input, or for a receipt the key of its model, which `assay model \
                 commit` makes, with --key",
            ));
        }
    };
    let graph = graphs::open(&args.subject)?;
    let reals = graphs::read_rows(input)?;
    let inputs = graph.encode_inputs(&reals).map_err(|error| Error::said(error.to_string()))?;
    let key = args.key.as_deref().map(read_key).transpose()?;
    let examples = inputs.len() / graph.inputs().len();
    let mut draft = home::Draft::create(&args.out, 0o644).map_err(Error::file("write", &args.out))?;
    let mut left = None;
    let hides = |what| args.hide.contains(&what);
    let hide = match (&key, &args.key) {
        (Some(key), Some(path)) if hides(Hidden::Weights) => {
            if key.hiding_proofs().is_none() {
                return Err(Error::said(format!(
                    "{} does not hide its weights; make a key that does with `assay model commit --hide PROOFS`",
                    path.display()
                )));
            }
            let said = |error: assay_worker::Error| Error::said(error.to_string());
            let found = Secret::open(&Secret::beside(path), key).map_err(said)?;
            found.check(key, &graph).map_err(said)?;
            // Before anything is used up.
            let model = Model::Key(key.clone());
            model
                .hiding_security_bits(examples, hides(Hidden::Inputs))
                .map_err(|error| Error::said(error.to_string()))?;
            let (once, proofs) = found.take().map_err(said)?;
            left = Some(proofs);
            Some(if hides(Hidden::Inputs) { Hide::Both(once) } else { Hide::Weights(once) })
        }
        (None, _) if hides(Hidden::Weights) => {
            return Err(Error::said(
                "weights are hidden behind a key: make one with `assay model commit --hide PROOFS`, and name it with --key",
            ));
        }
        (Some(key), Some(path)) if key.hiding_proofs().is_some() => {
            return Err(Error::said(format!(
                "{} hides its weights, so a proof with it has to as well; add --hide weights",
                path.display()
            )));
        }
        _ => hides(Hidden::Inputs).then_some(Hide::Inputs),
    };
    let bar = ui::bar(Stage::ALL.len() as u64, "proving", false);
    let started = Instant::now();
    let mut report = |stage| {
        bar.set_message(match stage {
            Stage::Run => "running the model",
            Stage::Commit => "committing",
            Stage::Lookups => "proving look-ups",
            Stage::Linear => "proving linear maps",
            Stage::Open => "opening",
        });
        bar.set_position(Stage::ALL.iter().position(|known| *known == stage).unwrap_or(0) as u64);
    };
    let proof = match (hide, &key) {
        (Some(hide), key) => {
            let seed = keys::random()?;
            assay_proof::prove_hiding(&graph, key.as_ref(), &inputs, hide, seed, &mut report)
                .map(AnyProof::Hiding)
        }
        (None, Some(key)) => {
            assay_proof::prove_with_key(&graph, key, &inputs, &mut report).map(AnyProof::Open)
        }
        (None, None) => assay_proof::prove_reporting(&graph, &inputs, &mut report).map(AnyProof::Open),
    };
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let said = |error: assay_proof::Error| Error::said(error.to_string());
    let proof = proof.map_err(said)?;
    let bytes = proof.to_bytes().map_err(said)?;
    draft.write_all(&bytes).and_then(|()| draft.keep()).map_err(Error::file("write", &args.out))?;
    if as_json {
        let said = json!({
            "model": hex(&graph.id()), "examples": examples, "seconds": seconds, "bytes": bytes.len(),
            // Without inputs and outputs.
            "proof_bytes": proof.proof_len().map_err(said)?, "path": args.out,
            "hiding": matches!(proof, AnyProof::Hiding(_)), "hides_inputs": proof.inputs().is_none(),
            "hides_weights": proof.hides_weights(), "proofs_left": left,
        });
        graphs::print_outputs(&graph, proof.outputs(), Some(said));
        return Ok(());
    }
    graphs::print_outputs(&graph, proof.outputs(), None);
    ui::say!(
        "\n{} {examples} example{} proved in {:.0} ms; {} has {:.1} kB",
        ui::green("✓"),
        if examples == 1 { "" } else { "s" },
        seconds * 1e3,
        args.out.display(),
        bytes.len() as f64 / 1e3
    );
    ui::say!("{}", ui::dim(tells(&proof)));
    if let Some(left) = left {
        ui::say!("{}", ui::dim(&format!("The key can hide its weights in {left} more proofs.")));
    }
    Ok(())
}

/// Whether a file begins as a proof does.
pub(crate) fn is_proof(path: &Path) -> bool {
    use std::io::Read as _;
    let mut head = [0; 7];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
        && MAGICS.contains(&&head)
}

/// What to check a proof about the model with this id with: the key or the model named, or the imported model with the id; `None` when that
/// is not here.
pub(crate) fn model(id: &str, model: Option<&str>, key: Option<&Path>) -> Result<Option<Model>> {
    Ok(match (key, model) {
        (Some(key), _) => Some(Model::Key(read_key(key)?)),
        (None, Some(model)) => Some(Model::Graph(graphs::open(model)?)),
        (None, None) => graphs::open(id).ok().map(Model::Graph),
    })
}

/// Checks a proof against a key, the model named, or the imported one with the id in the proof.
pub(crate) fn verify(path: &Path, model: Option<&str>, key: Option<&Path>, as_json: bool) -> Result<()> {
    let bytes = home::read_bounded(path, assay_proof::FILE_BYTES_MAX as u64)?;
    let rejected = |error: &dyn std::fmt::Display| {
        if as_json {
            ui::print_json(&json!({ "valid": false, "reason": error.to_string() }));
        }
        Error::Rejected(error.to_string())
    };
    let proof = AnyProof::from_bytes(&bytes).map_err(|error| rejected(&error))?;
    let (name, shown) = (hex(&proof.model()), proof.inputs());
    let model = self::model(&name, model, key)?.ok_or_else(|| {
        Error::said(match proof.has_committed_weights() {
            true => format!("the proof is about the weights behind the key {name}; give that key with --key"),
            false => format!(
                "the proof is about the model {name}, which is not here; import it, or name the model with --model"
            ),
        })
    })?;
    let started = Instant::now();
    model.verify_any(&proof).map_err(|error| rejected(&error))?;
    let (graph, seconds) = (model.graph(), started.elapsed().as_secs_f64());
    let (examples, bits) = model.examples_and_bits(&proof).map_err(|error| rejected(&error))?;
    let is_key = matches!(model, Model::Key(_));
    let commitment = match &proof {
        AnyProof::Hiding(proof) if shown.is_none() => Some(hex(&proof.commitment())),
        _ => None,
    };
    // The words that the inputs are, where the model takes words: `None` when it does not or they are none.
    let takes_rows = matches!(graph.interface().encoding, assay_graph::Encoding::Rows { .. });
    let words = shown.and_then(|inputs| graph.row_numbers(inputs));
    if as_json {
        let mut said = json!({
            "valid": true, "model": name, "examples": examples, "seconds": seconds,
            "security_bits": bits, "committed_weights": is_key, "hiding": matches!(proof, AnyProof::Hiding(_)),
            "hides_inputs": shown.is_none(), "hides_weights": proof.hides_weights(), "commitment": commitment,
        });
        if takes_rows && shown.is_some() {
            said["words"] = json!(words.map(|words| {
                words.chunks_exact(graph.numbers()).map(<[u32]>::to_vec).collect::<Vec<_>>()
            }));
        }
        graphs::print_outputs(graph, proof.outputs(), Some(said));
        return Ok(());
    }
    graphs::print_outputs(graph, proof.outputs(), None);
    let kind = if matches!(proof, AnyProof::Hiding(_)) { "zero-knowledge" } else { "succinct, not hiding" };
    ui::say!("\n{} ({kind}), checked in {:.1} ms", ui::green("PROVED"), seconds * 1e3);
    ui::say!("\n{}", ui::bold("What this proves"));
    let subject = if is_key { "The model behind the key" } else { "The model" };
    match &commitment {
        None => {
            ui::say!("  {subject} {name} gives these outputs for the inputs in the file.");
            match words {
                Some(words) => words
                    .chunks_exact(graph.numbers())
                    .take(graphs::ROWS_SHOWN)
                    .enumerate()
                    .for_each(|(at, words)| ui::say!("  Example {at} has the words {words:?}.")),
                None if takes_rows => ui::say!("  Not all of them are rows of the model's table of words."),
                None => {}
            }
        }
        Some(commitment) => {
            ui::say!("  {subject} {name} gives these outputs for inputs that the prover knows,");
            ui::say!("  that are in the model's ranges, and that the commitment {commitment} holds.");
        }
    }
    ui::say!("\n{}", ui::bold("What you still trust"));
    ui::say!("  Mathematics: a false proof costs about 2^{bits:.0} attempts, or a collision of BLAKE3.");
    if shown.is_none() && takes_rows {
        ui::say!("  That the inputs, which nobody sees, are rows of the model's table of words.");
    }
    if shown.is_none() {
        ui::say!("  That the model is the one that you mean. Any inputs that give these outputs would do.");
    } else {
        ui::say!("  That the inputs in the file are the ones that you mean, and the model is.");
    }
    if is_key {
        ui::say!("  Whoever made the key: it was made from the model that you mean, and keeps its bounds.");
    }
    ui::say!("{}", ui::dim(tells(&proof)));
    Ok(())
}
