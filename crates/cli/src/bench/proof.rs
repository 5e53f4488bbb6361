//! `assay bench proof`: what it costs to prove models and to check the proofs, beside EZKL on the same ONNX files.
//!
//! The models are made first: a perceptron that is trained on scikit-learn's digits enlarged to 28x28, LeNet-5 with random weights,
//! a forest on the digits, and transformers with random weights, of which one of GPT-2's size only when it is asked for. Of several rounds the best counts. EZKL proves one example, once, in a process of its own.

use std::path::Path;
use std::time::Instant;

use assay_graph::Graph;
use assay_proof::{AnyProof, Hide, Key, Model, OneTime};
use serde_json::json;

use super::python::{self, Script};
use crate::error::{Error, Result};
use crate::{graphs, home, ui};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of a single proof; a batch is proved twice
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Examples in one batch
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// The models; gpt2 takes a minute to make and import, and 4 GB
    #[arg(long, value_delimiter = ',', default_value = "mlp,lenet,forest,gpt", value_parser = ["mlp", "lenet", "forest", "gpt", "gpt2"])]
    models: Vec<String>,
    /// The models that EZKL proves as well: LeNet takes it minutes and 11 GB
    #[arg(long, value_delimiter = ',', default_value = "mlp", value_parser = ["none", "mlp", "lenet"])]
    ezkl: Vec<String>,
}

/// The models by file name, with what they are and the most examples in a batch: those of the last are large.
const MODELS: [(&str, &str, usize); 5] = [
    ("mlp", "MLP 784-128-64-10", 1024),
    ("lenet", "LeNet-5", 1024),
    ("forest", "100 trees of depth 6", 1024),
    ("gpt", "GPT, 0.26M parameters, 64 tokens", 4),
    (LARGE, "GPT-2's size, 124M parameters, 64 tokens", 1),
];

/// The model that is proved one example at a time and with public weights only.
const LARGE: &str = "gpt2";

/// The proofs for which a key hides its weights, where that is measured.
const HIDING_PROOFS: u32 = 100;

/// What a proof hides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    HidesInputs,
    HidesWeights,
}

/// What one system took for one model. Times in seconds; zero where there is no such thing.
struct Row {
    model: &'static str,
    system: String,
    examples: usize,
    setup: f64,
    infer: f64,
    prove: f64,
    /// What [`assay_proof::Operations::spend`] takes for one that has public weights and hides nothing.
    floor: f64,
    verify: f64,
    proof_bytes: u64,
    key_bytes: u64,
    peak_bytes: u64,
}

pub(crate) fn run(args: &Args, as_json: bool) -> Result<()> {
    let folder = python::folder(&python::PROOF)?;
    // Another name whenever the models change.
    let models = folder.join("models-2");
    home::create_private(&models)?;
    for (made, what) in [("gpt.json", "models"), ("gpt2.json", LARGE)] {
        let wanted = what != LARGE || args.models.iter().any(|name| name == LARGE);
        if !wanted || models.join(made).is_file() {
            continue;
        }
        let spinner = ui::spinner("training and exporting the models");
        let made =
            Script::start(&folder, "proof_models.py", 2)?.ask(&json!({ "do": what, "folder": models }));
        spinner.finish_and_clear();
        made?;
    }
    let mut rows = Vec::new();
    for (name, title, batch) in MODELS {
        if !args.models.iter().any(|wanted| wanted == name) {
            continue;
        }
        ours(usize::from(args.batch).min(batch), args.rounds, &models, name, title, &mut rows)?;
        if args.ezkl.iter().any(|wanted| wanted == name) {
            rows.push(theirs(&folder, &models, name, title)?);
        }
    }
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "model": row.model, "system": row.system, "examples": row.examples, "setup_s": row.setup,
                    "infer_s": row.infer, "prove_s": row.prove, "floor_s": row.floor, "verify_s": row.verify, "proof_bytes": row.proof_bytes,
                    "key_bytes": row.key_bytes, "peak_bytes": row.peak_bytes,
                })
            })
            .collect();
        ui::print_json(&json!({ "machine": super::machine(), "rows": rows }));
        return Ok(());
    }
    let cells = rows.iter().map(Row::cells).collect::<Vec<_>>();
    ui::say!("{}\n", super::machine());
    let header =
        ["model", "system", "set-up", "inference", "prove", "floor", "verify", "proof", "key", "peak memory"];
    ui::say!("{}", ui::table(&header, &cells));
    ui::say!(
        "\nOf a batch: inference and proving an example, verifying the whole. The floor is what this machine needs for the protocol's field operations \
         and hashes alone, of a proof with public weights. The key is what the verifier reads \
         beside the proof (EZKL's: what the prover reads): the model, or with committed weights what `assay model commit` writes; hidden ones are in a key for \
         {HIDING_PROOFS} proofs, which the set-up makes."
    );
    Ok(())
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let seconds = |seconds: f64| match seconds {
            0.0 => "–".to_owned(),
            s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
            s if s < 1.0 => format!("{:.1} ms", s * 1e3),
            s => format!("{s:.1} s"),
        };
        let bytes = |bytes: u64| match bytes as f64 {
            b if b < 1e6 => format!("{:.1} kB", b / 1e3),
            b if b < 1e9 => format!("{:.1} MB", b / 1e6),
            b => format!("{:.1} GB", b / 1e9),
        };
        let each = self.examples as f64;
        let system = if self.examples > 1 {
            format!("{}, {} at once", self.system, self.examples)
        } else {
            self.system.clone()
        };
        vec![
            self.model.to_owned(),
            system,
            seconds(self.setup),
            seconds(self.infer / each),
            seconds(self.prove / each),
            seconds(self.floor / each),
            seconds(self.verify),
            bytes(self.proof_bytes),
            bytes(self.key_bytes),
            bytes(self.peak_bytes),
        ]
    }
}

/// Imports a model, proves one example and then a batch, and checks both proofs.
fn ours(
    batch: usize,
    rounds: u16,
    models: &Path,
    name: &str,
    title: &'static str,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let said = |error: &dyn std::fmt::Display| Error::said(format!("{title}: {error}"));
    let samples = graphs::read_rows(&models.join(name).with_extension("json"))?;
    let bytes =
        home::read_bounded(&models.join(name).with_extension("onnx"), assay_onnx::FILE_BYTES_MAX as u64)?;
    let spinner = ui::spinner(&format!("proving {title}"));
    let started = Instant::now();
    let graph: Graph = assay_onnx::import(bytes, &samples).map_err(|error| said(&error))?.graph;
    let setup = started.elapsed().as_secs_f64();
    let inputs = graph.encode_inputs(&samples).map_err(|error| said(&error))?;
    drop(samples);
    let width = graph.inputs().len();
    // As many as one proof covers.
    let mut batch = batch.min(inputs.len() / width);
    while batch > 1 && assay_proof::security_bits(&graph, batch).is_err() {
        batch /= 2;
    }
    let large = name == LARGE;
    let open = Model::Graph(graph);
    let graph = open.graph();
    // A model that is valid only by the range of each single value cannot do without its weights.
    let (key, committing) = timed(|| if large { None } else { Key::commit(graph).ok() });
    // What the bench hides may be known to all.
    let seed = [1; 32];
    let hide = || Key::commit_hiding(graph, HIDING_PROOFS.max(u32::from(rounds) + 2), &seed, &|| ()).ok();
    let (hiding_key, hiding) = timed(|| key.as_ref().and_then(|_| hide()));
    let (key, hiding_key) = (key.map(Model::Key), hiding_key.map(Model::Key));
    let mut kinds = vec![("Assay", Kind::Open, &open, 0.0)];
    kinds.extend(key.as_ref().map(|key| ("Assay, committed weights", Kind::Open, key, committing)));
    if !large {
        kinds.push(("Assay, hidden inputs", Kind::HidesInputs, &open, 0.0));
    }
    kinds.extend(hiding_key.as_ref().map(|key| ("Assay, hidden weights", Kind::HidesWeights, key, hiding)));
    let sizes = if large { vec![(1, rounds)] } else { vec![(1, rounds), (batch, 2)] };
    let mut once = (0..).map(|number| OneTime::new(seed, number));
    for (system, kind, model, committing) in kinds {
        for (examples, rounds) in &sizes {
            let (examples, rounds) = (*examples, *rounds);
            let hides_inputs = kind == Kind::HidesInputs;
            if kind != Kind::Open && model.hiding_security_bits(examples, hides_inputs).is_err() {
                continue;
            }
            let mut row = Row {
                model: title,
                system: system.to_owned(),
                examples,
                setup: setup + committing,
                infer: f64::INFINITY,
                prove: f64::INFINITY,
                floor: 0.0,
                verify: f64::INFINITY,
                proof_bytes: 0,
                key_bytes: model.to_bytes().len() as u64,
                peak_bytes: 0,
            };
            reset_peak();
            for round in 0..usize::from(rounds) {
                // Single proofs are of different examples.
                let first = if examples == 1 { round * width % inputs.len() } else { 0 };
                let inputs = &inputs[first..first + examples * width];
                let (trace, seconds) = timed(|| graph.run(inputs));
                trace.map_err(|error| said(&error))?;
                row.infer = row.infer.min(seconds);
                let (seed, key) =
                    ([round as u8; 32], if let Model::Key(key) = model { Some(key) } else { None });
                let hide = match kind {
                    Kind::Open => None,
                    Kind::HidesInputs => Some(Hide::Inputs),
                    Kind::HidesWeights => once.next().map(Hide::Weights),
                };
                let (proof, seconds) = timed(|| match (hide, key) {
                    (None, None) => assay_proof::prove(graph, inputs).map(AnyProof::Open),
                    (None, Some(key)) => {
                        assay_proof::prove_with_key(graph, key, inputs, &mut |_| ()).map(AnyProof::Open)
                    }
                    (Some(hide), key) => {
                        assay_proof::prove_hiding(graph, key, inputs, hide, seed, &mut |_| ())
                            .map(AnyProof::Hiding)
                    }
                });
                let proof = proof.map_err(|error| said(&error))?;
                row.prove = row.prove.min(seconds);
                let (checked, seconds) = timed(|| model.verify_any(&proof));
                checked.map_err(|error| said(&error))?;
                row.verify = row.verify.min(seconds);
                row.proof_bytes = proof.proof_len().map_err(|error| said(&error))? as u64;
            }
            row.peak_bytes = peak();
            if kind == Kind::Open && matches!(model, Model::Graph(_)) {
                row.floor = floor(graph, examples, rounds).map_err(|error| said(&error))?;
            }
            rows.push(row);
        }
    }
    spinner.finish_and_clear();
    Ok(())
}

/// The least time of several that this machine takes for the operations of a proof. Of large ones it does a share.
fn floor(graph: &Graph, examples: usize, rounds: u16) -> std::result::Result<f64, assay_proof::Error> {
    let operations = assay_proof::operations(graph, examples)?;
    let share = (1e8 / operations.extension).min(1.0);
    let times = (0..rounds).map(|_| timed(|| std::hint::black_box(operations.spend(share))).1);
    Ok(times.fold(f64::INFINITY, f64::min) / share)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed().as_secs_f64())
}

/// Lets the kernel measure this process's largest memory anew. Where it cannot, the figure is that of the whole run.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// This process's largest memory in bytes, 0 where the kernel does not say.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn theirs(folder: &Path, models: &Path, name: &str, title: &'static str) -> Result<Row> {
    let spinner = ui::spinner(&format!("EZKL proves {title}"));
    let answer = Script::start(folder, "proof_models.py", 2)?
        .ask(&json!({ "do": "peer", "folder": models, "name": name }));
    spinner.finish_and_clear();
    let answer = answer?;
    let number = |key: &str| answer[key].as_f64().unwrap_or(0.0);
    Ok(Row {
        model: title,
        system: format!("EZKL {}", answer["version"].as_str().unwrap_or("")),
        examples: 1,
        setup: number("setup"),
        infer: 0.0,
        prove: number("prove"),
        floor: 0.0,
        verify: number("verify"),
        proof_bytes: number("proof_bytes") as u64,
        key_bytes: number("key_bytes") as u64,
        peak_bytes: number("peak_bytes") as u64,
    })
}
