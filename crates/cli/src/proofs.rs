//! `assay prove`, and the part of `assay verify` that checks proofs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use assay_proof::{HidingProof, Key, Model, Proof, Stage};
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
    /// What the proof is not to tell: it is then zero-knowledge, and larger
    #[arg(long, value_enum, requires = "input")]
    hide: Option<Hide>,
    /// Have the worker that gave the receipt's answer prove it, which needs no model here
    #[arg(long, requires = "key", conflicts_with = "input")]
    from_worker: bool,
    #[command(flatten)]
    list: verify::ListArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Hide {
    /// The inputs, and what lies between them and the outputs
    Inputs,
}

/// What the files of proofs begin with, in any version.
const MAGICS: [&[u8; 7]; 2] = [b"ASSAYPF", b"ASSAYZK"];

/// Says what a proof leaves to know.
const NOT_HIDING: &str =
    "The proof is succinct, not hiding: it contains the inputs and reveals parts of the computation.";
const HIDING: &str = "The proof is zero-knowledge: about the inputs it tells nothing but the outputs.";

/// A proof of either kind.
enum AnyProof {
    Open(Proof),
    Hiding(HidingProof),
}

impl AnyProof {
    fn from_bytes(bytes: &[u8]) -> std::result::Result<AnyProof, assay_proof::Error> {
        if HidingProof::is_hiding(bytes) {
            return HidingProof::from_bytes(bytes).map(AnyProof::Hiding);
        }
        Proof::from_bytes(bytes).map(AnyProof::Open)
    }

    fn to_bytes(&self) -> std::result::Result<Vec<u8>, assay_proof::Error> {
        match self {
            AnyProof::Open(proof) => proof.to_bytes(),
            AnyProof::Hiding(proof) => proof.to_bytes(),
        }
    }

    fn model(&self) -> [u8; 32] {
        match self {
            AnyProof::Open(proof) => proof.model,
            AnyProof::Hiding(proof) => proof.model,
        }
    }

    fn outputs(&self) -> &[i32] {
        match self {
            AnyProof::Open(proof) => &proof.outputs,
            AnyProof::Hiding(proof) => &proof.outputs,
        }
    }

    fn has_committed_weights(&self) -> bool {
        match self {
            AnyProof::Open(proof) => proof.has_committed_weights(),
            AnyProof::Hiding(proof) => proof.has_committed_weights(),
        }
    }

    fn is_hiding(&self) -> bool {
        matches!(self, AnyProof::Hiding(_))
    }

    /// Checks it; returns how many examples it is about, and its bits of soundness.
    fn verify(&self, model: &Model) -> std::result::Result<(usize, f64), assay_proof::Error> {
        match self {
            AnyProof::Open(proof) => {
                model.verify(proof)?;
                let examples = model.examples(&proof.inputs);
                Ok((examples, model.security_bits(examples)?))
            }
            AnyProof::Hiding(proof) => {
                model.verify_hiding(proof)?;
                Ok((proof.examples, model.hiding_security_bits(proof.examples)?))
            }
        }
    }
}

/// Writes the key of a model.
pub(crate) fn commit(model: &str, out: Option<PathBuf>, as_json: bool) -> Result<()> {
    let named = |path: &std::path::PathBuf| models::name_of(path) == model || path == Path::new(model);
    let graph = match graphs::open(model) {
        Ok(graph) => graph,
        // It is there, and cannot be used.
        Err(error) if graphs::paths()?.iter().any(named) => return Err(error),
        Err(_) => {
            let (path, artifact) = models::open(model)?;
            return light::commit(&path, &artifact, out, as_json);
        }
    };
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.key", models::name_of(Path::new(model)))));
    let spinner = ui::spinner("committing to the weights");
    let key = Key::commit(&graph);
    spinner.finish_and_clear();
    let key = key.map_err(|error| Error::said(error.to_string()))?;
    let bytes = key.to_bytes();
    home::write_atomically(&out, &bytes, 0o644)?;
    let (id, model) = (hex(&key.id()), hex(&graph.id()));
    if as_json {
        ui::print_json(&json!({ "key": id, "model": model, "bytes": bytes.len(), "path": out }));
    } else {
        ui::say!("key {id}\nof the model {model}");
        ui::say!("{}", ui::dim(&format!("{} has {:.1} kB", out.display(), bytes.len() as f64 / 1e3)));
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
    let proof = match (args.hide, &key) {
        (Some(Hide::Inputs), key) => {
            let seed = keys::random()?;
            assay_proof::prove_hiding(&graph, key.as_ref(), &inputs, seed, &mut report).map(AnyProof::Hiding)
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
    home::write_atomically(&args.out, &bytes, 0o644)?;
    let examples = inputs.len() / graph.inputs().len();
    if as_json {
        // Without inputs and outputs.
        let proof_bytes = match &proof {
            AnyProof::Open(proof) => proof.proof_len(),
            AnyProof::Hiding(proof) => proof.proof_len(),
        };
        let said = json!({
            "model": hex(&graph.id()), "examples": examples, "seconds": seconds, "bytes": bytes.len(),
            "proof_bytes": proof_bytes.map_err(said)?, "path": args.out, "hiding": proof.is_hiding(),
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
    ui::say!("{}", ui::dim(if proof.is_hiding() { HIDING } else { NOT_HIDING }));
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
    let (name, hiding) = (hex(&proof.model()), proof.is_hiding());
    let model = self::model(&name, model, key)?.ok_or_else(|| {
        Error::said(match proof.has_committed_weights() {
            true => format!("the proof is about the weights behind the key {name}; give that key with --key"),
            false => format!(
                "the proof is about the model {name}, which is not here; import it, or name the model with --model"
            ),
        })
    })?;
    let started = Instant::now();
    let (examples, bits) = proof.verify(&model).map_err(|error| rejected(&error))?;
    let (graph, seconds) = (model.graph(), started.elapsed().as_secs_f64());
    let is_key = matches!(model, Model::Key(_));
    let inputs = match &proof {
        AnyProof::Open(_) => None,
        AnyProof::Hiding(proof) => Some(hex(&proof.commitment())),
    };
    // The words that the inputs are, where the model takes words: `None` when it does not or they are none.
    let takes_rows = matches!(graph.interface().encoding, assay_graph::Encoding::Rows { .. });
    let words = match &proof {
        AnyProof::Open(proof) => graph.row_numbers(&proof.inputs),
        AnyProof::Hiding(_) => None,
    };
    if as_json {
        let mut said = json!({
            "valid": true, "model": name, "examples": examples, "seconds": seconds,
            "security_bits": bits, "committed_weights": is_key, "hiding": hiding, "commitment": inputs,
        });
        if takes_rows && !hiding {
            said["words"] = json!(words.map(|words| {
                words.chunks_exact(graph.numbers()).map(<[u32]>::to_vec).collect::<Vec<_>>()
            }));
        }
        graphs::print_outputs(graph, proof.outputs(), Some(said));
        return Ok(());
    }
    graphs::print_outputs(graph, proof.outputs(), None);
    let kind = if hiding { "zero-knowledge" } else { "succinct, not hiding" };
    ui::say!("\n{} ({kind}), checked in {:.1} ms", ui::green("PROVED"), seconds * 1e3);
    ui::say!("\n{}", ui::bold("What this proves"));
    let subject = if is_key { "The model behind the key" } else { "The model" };
    match &inputs {
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
    if hiding && takes_rows {
        ui::say!("  That the inputs, which nobody sees, are rows of the model's table of words.");
    }
    if hiding {
        ui::say!("  That the model is the one that you mean. Any inputs that give these outputs would do.");
    } else {
        ui::say!("  That the inputs in the file are the ones that you mean, and the model is.");
    }
    if is_key {
        ui::say!("  Whoever made the key: it was made from the model that you mean, and keeps its bounds.");
    }
    ui::say!("{}", ui::dim(if hiding { HIDING } else { NOT_HIDING }));
    if hiding && is_key {
        ui::say!(
            "{}",
            ui::dim("About the weights behind the key it does reveal parts, as every proof with a key.")
        );
    }
    Ok(())
}
