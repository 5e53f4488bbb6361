//! `assay bench quality`: what it costs in quality to compute with integers, against float32 on the weights of the file
//! that the integer model was imported from.

use std::path::PathBuf;
use std::sync::Arc;

use assay_engine::{Config, Engine};
use assay_model::{Artifact, Tokenizer};
use serde_json::json;

use super::python;
use crate::error::{Error, Result};
use crate::{models, ui};

/// English text that every Debian system has.
const TEXTS: [&str; 5] = [
    "/usr/share/common-licenses/GPL-3",
    "/usr/share/common-licenses/GPL-2",
    "/usr/share/common-licenses/Apache-2.0",
    "/usr/share/common-licenses/GFDL-1.3",
    "/usr/share/common-licenses/MPL-2.0",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model, one that is known by name as a GGUF file
    #[arg(long, default_value = models::DEFAULT)]
    model: String,
    /// A text file to measure on; repeat it for several. The licences that ship with Debian when left out
    #[arg(long)]
    text: Vec<PathBuf>,
    /// Tokens of a window, which is evaluated by itself
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(2..=2048))]
    window: u16,
    /// Most windows to evaluate
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    windows: u16,
    /// Threads that compute
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
}

/// Sums over all predicted tokens.
#[derive(Default)]
struct Sums {
    /// Negative log-likelihoods of the text, in nats.
    floats: f64,
    integers: f64,
    /// Of the integers' distribution from the floats', in nats.
    divergence: f64,
    agreed: u64,
    count: u64,
}

impl Sums {
    /// Adds the prediction of the token `next`. Both arguments are logits.
    fn add(&mut self, floats: &[f64], integers: &[f64], next: usize) {
        let (float_norm, integer_norm) = (log_sum_exp(floats), log_sum_exp(integers));
        self.floats += float_norm - floats[next];
        self.integers += integer_norm - integers[next];
        self.divergence += floats
            .iter()
            .zip(integers)
            .map(|(p, q)| (p - float_norm).exp() * ((p - float_norm) - (q - integer_norm)))
            .sum::<f64>();
        self.agreed += u64::from(largest(floats) == largest(integers));
        self.count += 1;
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.count as f64
    }
}

fn log_sum_exp(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
}

/// The first of the largest.
fn largest(logits: &[f64]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

fn tokenizer(artifact: &Artifact) -> Result<Tokenizer> {
    Tokenizer::from_bytes(artifact.tokenizer_json())
        .map_err(|error| Error::said(format!("the model's tokenizer cannot be read: {error}")))
}

/// The token with which the model's texts begin, if there is one.
fn bos(artifact: &Artifact) -> Result<Option<u32>> {
    let added = tokenizer(artifact)?.encode("", true).unwrap_or_default();
    Ok(artifact.manifest().tokens.bos.filter(|bos| added.first() == Some(bos)))
}

/// The tokens of the texts that are measured on by default.
pub(super) fn default_tokens(artifact: &Artifact) -> Result<Vec<u32>> {
    tokens(artifact, &TEXTS.map(PathBuf::from))
}

fn tokens(artifact: &Artifact, paths: &[PathBuf]) -> Result<Vec<u32>> {
    let mut text = String::new();
    for path in paths {
        let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    tokenizer(artifact)?
        .encode_plain(&text)
        .map_err(|error| Error::said(format!("the text cannot be turned into tokens: {error}")))
}

pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let artifact = Arc::new(models::open(&models::pull(&args.model)?.display().to_string())?.1);
    let folder = python::folder(&python::LANGUAGE)?;
    let source = models::gguf(&args.model)?;
    let paths = if args.text.is_empty() { TEXTS.map(PathBuf::from).to_vec() } else { args.text.clone() };
    let (bos, tokens) = (bos(&artifact)?, tokens(&artifact, &paths)?);
    let window = usize::from(args.window);
    // A model that begins every text with a token of its own was trained to see it.
    let windows: Vec<Vec<u32>> = tokens
        .chunks_exact(window - bos.iter().len())
        .take(usize::from(args.windows))
        .map(|tokens| bos.iter().chain(tokens).copied().collect())
        .collect();
    if windows.is_empty() {
        let found = tokens.len();
        return Err(Error::said(format!("the text has {found} tokens, too few for a window of {window}")));
    }

    let said = |error: assay_engine::Error| Error::said(format!("the measurement cannot run: {error}"));
    let config = Config { threads: args.threads, ..Config::default() };
    let mut engine = Engine::new(Arc::clone(&artifact), config).map_err(said)?;
    let vocabulary = artifact.config().vocab;
    let spinner = ui::spinner("loading the float reference");
    let mut reference = python::Script::start(&folder, "float_reference.py", args.threads)?;
    let loaded = reference.ask(&json!({ "load": source }))?;
    spinner.finish_and_clear();
    if loaded["vocabulary"] != vocabulary {
        return Err(Error::said("the float reference has another vocabulary than the integer model"));
    }

    let bar = ui::bar(windows.len() as u64, "windows", false);
    let mut sums = Sums::default();
    let mut row = vec![0f32; vocabulary];
    for tokens in &windows {
        bar.tick();
        reference.ask(&json!({ "tokens": tokens }))?;
        let mut read = Ok(());
        let mut each = |position: usize, logits: &[i32]| {
            // A window's logits are a gigabyte where the vocabulary is large: they come row by row.
            if read.is_ok() {
                read = reference.floats(&mut row);
            }
            if let (Ok(()), Some(&next)) = (&read, tokens.get(position + 1)) {
                let floats: Vec<f64> = row.iter().copied().map(f64::from).collect();
                let integers: Vec<f64> = logits.iter().map(|&l| f64::from(l) / 65536.0).collect();
                sums.add(&floats, &integers, next as usize);
            }
        };
        engine.logits(tokens, &mut each).map_err(said)?;
        read?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    print(args, json, &paths, &sums);
    Ok(())
}

fn print(args: &Args, json: bool, paths: &[PathBuf], sums: &Sums) {
    let (floats, integers) = (sums.mean(sums.floats).exp(), sums.mean(sums.integers).exp());
    let change = 100.0 * (integers / floats - 1.0);
    let divergence = sums.mean(sums.divergence);
    let agreement = 100.0 * sums.mean(sums.agreed as f64);
    if json {
        ui::print_json(&json!({
            "model": args.model, "texts": paths, "window": args.window, "predicted_tokens": sums.count,
            "float_perplexity": floats, "integer_perplexity": integers, "perplexity_change_percent": change,
            "kl_divergence_nats": divergence, "top_1_agreement_percent": agreement,
        }));
        return;
    }
    let names: Vec<_> = paths.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    ui::say!(
        "{}: {} predicted tokens of {}, in windows of {}.\n",
        args.model,
        sums.count,
        names.join(", "),
        args.window
    );
    let row = |name: &str, cells: [String; 4]| [vec![name.to_owned()], cells.to_vec()].concat();
    let rows = [
        row("float32, weights of the file", [format!("{floats:.3}"), "0".into(), "0".into(), "100 %".into()]),
        row(
            "Assay, integers",
            [
                format!("{integers:.3}"),
                format!("{change:+.2} %"),
                format!("{divergence:.4}"),
                format!("{agreement:.1} %"),
            ],
        ),
    ];
    let header = ["arithmetic", "perplexity", "change", "KL divergence, nats", "same most likely token"];
    ui::write_out(&ui::table(&header, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_diverge_by_nothing() {
        let mut sums = Sums::default();
        sums.add(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0], 2);
        assert!(sums.divergence.abs() < 1e-12 && (sums.floats - sums.integers).abs() < 1e-12);
        assert_eq!((sums.agreed, sums.count), (1, 1));
    }

    #[test]
    fn a_known_divergence() {
        let mut sums = Sums::default();
        // (3/4, 1/4) from (1/2, 1/2).
        sums.add(&[3f64.ln(), 0.0], &[0.0, 0.0], 1);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((sums.divergence - expected).abs() < 1e-12);
        assert!((sums.floats - 4f64.ln()).abs() < 1e-12 && (sums.integers - 2f64.ln()).abs() < 1e-12);
    }
}
