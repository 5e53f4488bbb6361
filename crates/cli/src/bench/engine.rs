//! `assay bench engine`: the speed of the engine beside llama.cpp, on the same weights, tokens and threads.
//!
//! Both run in turn, round by round, so that a machine that is busy with other things slows both. Of every measured
//! piece (the prompt as a whole, each token of the answer) the best round counts.

use std::sync::Arc;
use std::time::Instant;

use assay_arithmetic::Kernel;
use assay_engine::{Config, Engine, Event, Generation, Service};
use assay_receipt::Sampling;
use serde_json::json;

use super::python;
use crate::error::{Error, Result};
use crate::{models, ui};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Threads that compute, on either side
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=1536))]
    prompt: u16,
    /// Tokens of the answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=384))]
    answer: u16,
    /// Rounds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Other processes that want a processor each meanwhile; the mean of the rounds counts then, not the best
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    competitors: u16,
}

/// The best times so far, or their sums, in seconds.
#[derive(Clone)]
struct Best {
    /// How many times were added up; 0 if the best counts.
    sum_of: u32,
    prompt: f64,
    /// One a token of the answer.
    answer: Vec<f64>,
}

impl Best {
    fn new(tokens: usize) -> Best {
        Best { sum_of: 0, prompt: f64::INFINITY, answer: vec![f64::INFINITY; tokens] }
    }

    /// For the mean.
    fn mean(tokens: usize) -> Best {
        Best { sum_of: 1, prompt: 0.0, answer: vec![0.0; tokens] }
    }

    fn add(&mut self, prompt: f64, answer: impl IntoIterator<Item = f64>) {
        if self.sum_of > 0 {
            self.sum_of += 1;
            self.prompt += prompt;
            self.answer.iter_mut().zip(answer).for_each(|(sum, now)| *sum += now);
            return;
        }
        self.prompt = self.prompt.min(prompt);
        self.answer.iter_mut().zip(answer).for_each(|(best, now)| *best = best.min(now));
    }

    /// Tokens a second: of the prompt, and of the answer.
    fn speeds(&self, prompt: usize) -> [f64; 2] {
        let rounds = f64::from(self.sum_of.saturating_sub(1).max(1));
        let answer = self.answer.iter().sum::<f64>();
        [rounds * prompt as f64 / self.prompt, rounds * self.answer.len() as f64 / answer]
    }
}

/// The peer's files: the one that the integer model was imported from, and the same weights in eight bits.
const FILES: [&str; 2] = ["Q4_1", "Q8_0"];

pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let said = |error: assay_engine::Error| Error::said(format!("the measurement cannot run: {error}"));
    let artifact = Arc::new(models::open(&models::pull(models::DEFAULT)?.display().to_string())?.1);
    let folder = python::folder(&python::LANGUAGE)?;
    let source = models::gguf(models::DEFAULT)?;
    let requantised = python::requantised(&folder)?;
    let threads = usize::from(args.threads);
    let (prompt_tokens, answer_tokens) = (usize::from(args.prompt), usize::from(args.answer));

    // Nothing is guessed: the peer is told each token as well.
    let config = Config { threads, max_batch: 1, max_guess: 0, ..Config::default() };
    let mut engine = Engine::new(Arc::clone(&artifact), config).map_err(said)?;
    let generation = Generation {
        prompt: tokens(prompt_tokens, artifact.config().vocab),
        resume: Vec::new(),
        sampling: Sampling { temperature_milli: 0, ..Sampling::default() },
        max_tokens: u32::from(args.answer) + 1,
        end_tokens: Vec::new(),
        constraint: None,
        logprobs: None,
    };

    let spinner = ui::spinner("loading the models");
    let mut peer = python::Script::start(&folder, "llama_cpp.py", threads)?;
    let mut features = String::new();
    for (name, path) in FILES.iter().zip([&source, &requantised]) {
        let total = prompt_tokens + answer_tokens;
        let answer = peer.ask(&json!({ "load": path, "name": name, "threads": threads, "tokens": total }))?;
        features = answer["features"].as_str().unwrap_or_default().to_owned();
    }
    spinner.finish_and_clear();

    let times = if args.competitors > 0 { Best::mean } else { Best::new };
    let mut ours = times(answer_tokens);
    let mut theirs = FILES.map(|_| times(answer_tokens));
    let competitors = python::Busy::start(&folder, args.competitors)?;
    let bar = ui::bar(u64::from(args.rounds), "measuring", false);
    for _ in 0..args.rounds {
        let (answer, prompt, steps) = round(&mut engine, &generation).map_err(said)?;
        ours.add(prompt, steps);
        for (name, best) in FILES.iter().zip(&mut theirs) {
            let request =
                json!({ "run": name, "prompt": generation.prompt, "answer": answer[..answer_tokens] });
            let found = peer.ask(&request)?;
            let numbers =
                |name: &str| -> Vec<f64> { serde_json::from_value(found[name].clone()).unwrap_or_default() };
            let (prompt, steps) = (numbers("prompt_seconds"), numbers("answer_seconds"));
            if prompt.len() != 1 || steps.len() != answer_tokens {
                return Err(Error::said("llama.cpp reported no times; run the benchmark again"));
            }
            best.add(prompt[0], steps);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(competitors);
    print(args, json, &ours, &theirs, &features);
    Ok(())
}

/// Token ids that any two runs agree on. What they mean does not matter to the speed.
fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % u32::try_from(vocabulary).unwrap_or(u32::MAX)
        })
        .collect()
}

/// The answer, the seconds until its first token and those to each later one.
fn round(
    engine: &mut Engine,
    generation: &Generation,
) -> std::result::Result<(Vec<u32>, f64, Vec<f64>), assay_engine::Error> {
    let mut last = Instant::now();
    engine.submit(generation.clone(), Service::default())?;
    let (mut answer, mut times) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        for event in engine.step()? {
            if let Event::Token { token, .. } = event {
                answer.push(token);
                times.push(last.elapsed().as_secs_f64());
                last = Instant::now();
            }
        }
    }
    let prompt = times.remove(0);
    Ok((answer, prompt, times))
}

fn print(args: &Args, json: bool, ours: &Best, theirs: &[Best; 2], features: &str) {
    let machine = super::machine();
    let prompt = usize::from(args.prompt);
    let ours = ours.speeds(prompt);
    let kernel = Kernel::best().name();
    if json {
        let peers: Vec<_> = FILES
            .iter()
            .zip(theirs)
            .map(|(file, best)| {
                let [prefill, decode] = best.speeds(prompt);
                json!({
                    "file": file, "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
                    "prefill_ratio": ours[0] / prefill, "decode_ratio": ours[1] / decode,
                })
            })
            .collect();
        ui::print_json(&json!({
            "model": models::DEFAULT, "machine": machine, "kernel": kernel, "threads": args.threads,
            "prompt_tokens": args.prompt, "answer_tokens": args.answer, "rounds": args.rounds,
            "competitors": args.competitors,
            "prefill_tokens_per_second": ours[0], "decode_tokens_per_second": ours[1],
            "llama_cpp": { "features": features, "files": peers },
        }));
        return;
    }
    ui::say!(
        "{} on {machine}, {} threads: {} tokens of prompt, {} of answer, the {} of {} rounds in turn, {} other processes \
         that want a processor each.\n\
         Assay computes with its kernel {kernel}; llama.cpp with {features}\n",
        models::DEFAULT,
        args.threads,
        args.prompt,
        args.answer,
        if args.competitors > 0 { "mean" } else { "best" },
        args.rounds,
        args.competitors,
    );
    let row = |name: &str, speeds: [f64; 2]| {
        let ratio = |index: usize| format!("{:.2}", ours[index] / speeds[index]);
        let speed = |index: usize| format!("{:.0}", speeds[index]);
        vec![name.to_owned(), speed(0), ratio(0), speed(1), ratio(1)]
    };
    let mut rows = vec![row("Assay, integers", ours)];
    for (file, best) in FILES.iter().zip(theirs) {
        rows.push(row(&format!("llama.cpp, {file}"), best.speeds(prompt)));
    }
    let header = ["engine", "prefill tokens/s", "Assay ÷ it", "decode tokens/s", "Assay ÷ it"];
    ui::write_out(&ui::table(&header, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_each_piece_counts() {
        let mut best = Best::new(2);
        best.add(2.0, [1.0, 0.25]);
        best.add(4.0, [0.75, 0.5]);
        assert_eq!(best.speeds(8), [4.0, 2.0]);
    }

    #[test]
    fn the_mean_counts_when_others_compete() {
        let mut mean = Best::mean(2);
        mean.add(2.0, [1.0, 0.25]);
        mean.add(6.0, [0.5, 0.25]);
        assert_eq!(mean.speeds(8), [2.0, 2.0]);
    }

    #[test]
    fn token_ids_are_in_the_vocabulary() {
        let ids = tokens(1000, 267);
        assert_eq!(ids, tokens(1000, 267));
        assert!(ids.iter().all(|&id| id < 267));
    }
}
