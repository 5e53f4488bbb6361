//! `assay bench engine`: the speed of the engine beside llama.cpp and OpenVINO, on the same file, tokens and threads, and
//! beside what the processor and its memory could do at best.
//!
//! All run in turn, round by round, so that a machine that is busy with other things slows all. Of every measured
//! piece (the prompt as a whole, each token of the answer) the best round counts.

use std::hint::black_box;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use assay_arithmetic::{Kernel, multiply_adds};
use assay_engine::{Config, Engine, Event, Generation, Service, Spent};
use assay_model::Artifact;
use assay_receipt::Sampling;
use serde_json::{Value, json};

use super::python;
use crate::error::{Error, Result};
use crate::{models, ui};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model, by a name that `assay model pull` knows
    #[arg(long, default_value = models::DEFAULT)]
    model: String,
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

/// One that is measured beside Assay.
struct Peer {
    name: &'static str,
    script: python::Script,
    /// What its script calls it.
    id: &'static str,
    best: Best,
}

impl Peer {
    fn round(&mut self, prompt: &[u32], answer: &[u32]) -> Result<()> {
        let request = json!({ "run": self.id, "prompt": prompt, "answer": answer, "tokens": answer.len() });
        let found = self.script.ask(&request)?;
        let numbers =
            |name: &str| -> Vec<f64> { serde_json::from_value(found[name].clone()).unwrap_or_default() };
        let (prompt, steps) = (numbers("prompt_seconds"), numbers("answer_seconds"));
        if prompt.len() != 1 || steps.len() != answer.len() {
            return Err(Error::said(format!("{} reported no times; run the benchmark again", self.name)));
        }
        self.best.add(prompt[0], steps);
        Ok(())
    }
}

/// What is measured once.
struct Machine {
    /// Bytes a second that all threads read from memory.
    bandwidth: f64,
    /// Multiply-adds of 16 bits a second of all threads.
    multiply_adds: f64,
}

/// What a start and a run take.
struct Footprint {
    /// Seconds from opening the artifact until the engine takes requests.
    start: f64,
    artifact: u64,
    /// Bytes for keys and values of the longest sequence of the measurement.
    keys_and_values: usize,
    /// Bytes of memory that this process has taken for the engine, the artifact's pages apart.
    taken: u64,
}

pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let said = |error: assay_engine::Error| Error::said(format!("the measurement cannot run: {error}"));
    let path = models::pull(&args.model)?.display().to_string();
    let folder = python::folder(&python::LANGUAGE)?;
    let source = models::gguf(&args.model)?;
    let threads = usize::from(args.threads);
    let (prompt_tokens, answer_tokens) = (usize::from(args.prompt), usize::from(args.answer));
    let times = if args.competitors > 0 { Best::mean } else { Best::new };

    // Nothing is guessed: the peer is told each token as well.
    let config = Config { threads, max_batch: 1, max_guess: 0, ..Config::default() };
    let before = anonymous_bytes();
    let started = Instant::now();
    let artifact = Arc::new(models::open(&path)?.1);
    let config = config.with_kv_tokens(&artifact, prompt_tokens + answer_tokens + 1);
    let mut engine = Engine::new(Arc::clone(&artifact), config).map_err(said)?;
    let start = started.elapsed().as_secs_f64();
    engine.set_clock(nanoseconds);
    let mut generation = Generation {
        prompt: tokens(prompt_tokens, artifact.config().vocab),
        resume: Vec::new(),
        sampling: Sampling { temperature_milli: 0, ..Sampling::default() },
        max_tokens: u32::from(args.answer) + 1,
        end_tokens: Vec::new(),
        constraint: None,
        logprobs: None,
    };
    // Where the time goes, once for the prompt alone and once with the answer.
    let whole = generation.max_tokens;
    generation.max_tokens = 1;
    round(&mut engine, &generation).map_err(said)?;
    let prefill = engine.stats().spent;
    generation.max_tokens = whole;
    round(&mut engine, &generation).map_err(said)?;
    let decode = less(less(engine.stats().spent, prefill), prefill);
    let footprint = Footprint {
        start,
        artifact: artifact.manifest().data_bytes,
        keys_and_values: config.kv_bytes,
        taken: anonymous_bytes().saturating_sub(before),
    };

    let spinner = ui::spinner("measuring the machine");
    let machine = Machine::measure(threads);
    spinner.set_message("loading the models");
    let mut files = vec![("llama.cpp, the same file", "same", source.clone())];
    if args.model == models::DEFAULT {
        files.push(("llama.cpp, Q8_0", "Q8_0", python::requantised(&folder)?));
    }
    let mut features = String::new();
    let mut peers = Vec::new();
    for (name, id, path) in files {
        let mut script = python::Script::start(&folder, "llama_cpp.py", threads)?;
        let total = prompt_tokens + answer_tokens;
        let answer = script.ask(&json!({ "load": path, "name": id, "threads": threads, "tokens": total }))?;
        features = answer["features"].as_str().unwrap_or_default().to_owned();
        peers.push(Peer { name, script, id, best: times(answer_tokens) });
    }
    let mut script = python::Script::start(&folder, "open_vino.py", threads)?;
    script.ask(&json!({ "load": source, "threads": threads }))?;
    peers.push(Peer { name: "OpenVINO, the same file", script, id: "", best: times(answer_tokens) });
    spinner.finish_and_clear();

    let mut ours = times(answer_tokens);
    let competitors = python::Busy::start(&folder, args.competitors)?;
    let bar = ui::bar(u64::from(args.rounds), "measuring", false);
    for number in 0..args.rounds {
        // Another beginning each time, in case that somebody remembers the last.
        generation.prompt[0] = u32::from(number);
        let (answer, prompt, steps) = round(&mut engine, &generation).map_err(said)?;
        ours.add(prompt, steps);
        for peer in &mut peers {
            peer.round(&generation.prompt, &answer[..answer_tokens])?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(competitors);
    let limits = machine.limits(&artifact, prompt_tokens);
    print(args, json, &ours, &peers, &features, (&machine, limits), &footprint, [prefill, decode]);
    Ok(())
}

fn less(a: Spent, b: Spent) -> Spent {
    Spent {
        linear: a.linear.saturating_sub(b.linear),
        attention: a.attention.saturating_sub(b.attention),
        rows: a.rows.saturating_sub(b.rows),
        choice: a.choice.saturating_sub(b.choice),
        waiting: a.waiting.saturating_sub(b.waiting),
    }
}

/// The engine's clock.
fn nanoseconds() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Bytes of memory of this process that are in no file.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    kilobytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

impl Machine {
    /// The best of several short measurements, of all threads together.
    fn measure(threads: usize) -> Machine {
        // Larger than any cache.
        let memory = vec![1u64; 64 << 20];
        let together = |work: &(dyn Fn(usize) -> u64 + Sync)| {
            let started = Instant::now();
            let done: u64 = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
                running.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
            });
            done as f64 / started.elapsed().as_secs_f64()
        };
        let best = |work: &(dyn Fn(usize) -> u64 + Sync)| (0..5).map(|_| together(work)).fold(0.0, f64::max);
        let kernel = Kernel::best();
        Machine {
            bandwidth: best(&|thread| {
                let part = memory.chunks(memory.len().div_ceil(threads)).nth(thread).unwrap_or_default();
                black_box(part.iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
                size_of_val(part) as u64
            }),
            multiply_adds: best(&|_| multiply_adds(kernel, 2_000_000)),
        }
    }

    /// Tokens a second of prefill and of decode, if nothing limited them but multiply-adds and the reading of weights.
    fn limits(&self, artifact: &Artifact, prompt: usize) -> [f64; 2] {
        let config = artifact.config();
        let (used, count) = config.experts.map_or((1, 1), |experts| (experts.used, experts.count));
        let (mut work, mut bytes) = (0, 0);
        for index in 0..config.layers {
            let layer = artifact.layer(index);
            for w in [layer.q, layer.k, layer.v, layer.o] {
                work += w.rows * w.cols;
                bytes += w.weights.len();
            }
            for w in [layer.gate, layer.up, layer.down] {
                work += w.rows * w.cols * used / count;
                bytes += w.weights.len() * used / count;
            }
        }
        let output = artifact.output();
        // A token of the prompt looks at half of it, with products for scores and for sums.
        let attention = config.layers * config.heads * config.head_dim * prompt;
        let whole = prompt * (work + attention) + output.rows * output.cols;
        [
            self.multiply_adds * prompt as f64 / whole as f64,
            self.bandwidth / (bytes + output.weights.len()) as f64,
        ]
    }
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

/// Of the time of all threads, by name.
fn shares(spent: Spent) -> Value {
    let Spent { linear, attention, rows, choice, waiting } = spent;
    let whole = (linear + attention + rows + choice + waiting).max(1) as f64;
    json!({
        "linear layers": linear as f64 / whole, "attention": attention as f64 / whole, "work on rows": rows as f64 / whole,
        "choice of tokens": choice as f64 / whole, "waiting": waiting as f64 / whole,
    })
}

#[allow(clippy::too_many_arguments)] // all that there is to print
fn print(
    args: &Args,
    json: bool,
    ours: &Best,
    peers: &[Peer],
    features: &str,
    (machine, limits): (&Machine, [f64; 2]),
    footprint: &Footprint,
    spent: [Spent; 2],
) {
    let processor = super::machine();
    let prompt = usize::from(args.prompt);
    let ours = ours.speeds(prompt);
    let kernel = Kernel::best().name();
    if json {
        let peers: Vec<Value> = peers
            .iter()
            .map(|peer| {
                let [prefill, decode] = peer.best.speeds(prompt);
                json!({
                    "name": peer.name, "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
                    "prefill_ratio": ours[0] / prefill, "decode_ratio": ours[1] / decode,
                })
            })
            .collect();
        ui::print_json(&json!({
            "model": args.model, "machine": processor, "kernel": kernel, "threads": args.threads,
            "prompt_tokens": args.prompt, "answer_tokens": args.answer, "rounds": args.rounds,
            "competitors": args.competitors,
            "prefill_tokens_per_second": ours[0], "decode_tokens_per_second": ours[1],
            "memory_bytes_per_second": machine.bandwidth, "multiply_adds_per_second": machine.multiply_adds,
            "prefill_limit_tokens_per_second": limits[0], "decode_limit_tokens_per_second": limits[1],
            "start_seconds": footprint.start, "artifact_bytes": footprint.artifact,
            "kv_bytes": footprint.keys_and_values, "memory_bytes_besides_artifact": footprint.taken,
            "prefill_shares": shares(spent[0]), "decode_shares": shares(spent[1]),
            "llama_cpp_features": features, "peers": peers,
        }));
        return;
    }
    ui::say!(
        "{} on {processor}, {} threads: {} tokens of prompt, {} of answer, the {} of {} rounds in turn, {} other \
         processes that want a processor each.\n\
         Assay computes with its kernel {kernel}; llama.cpp with {features}\n",
        args.model,
        args.threads,
        args.prompt,
        args.answer,
        if args.competitors > 0 { "mean" } else { "best" },
        args.rounds,
        args.competitors,
    );
    let row = |name: &str, speeds: [f64; 2]| {
        let ratio = |index: usize| format!("{:.2}", ours[index] / speeds[index]);
        let share = |index: usize| format!("{:.0} %", 100.0 * speeds[index] / limits[index]);
        let speed = |index: usize| format!("{:.0}", speeds[index]);
        vec![name.to_owned(), speed(0), ratio(0), share(0), speed(1), ratio(1), share(1)]
    };
    let mut rows = vec![row("Assay, integers", ours)];
    rows.extend(peers.iter().map(|peer| row(peer.name, peer.best.speeds(prompt))));
    let header = [
        "engine",
        "prefill tokens/s",
        "Assay ÷ it",
        "of the limit",
        "decode tokens/s",
        "Assay ÷ it",
        "of the limit",
    ];
    ui::write_out(&ui::table(&header, &rows));
    let said = |spent: Spent| {
        let shares = shares(spent);
        let shares = shares.as_object().into_iter().flatten();
        let shares: Vec<_> = shares
            .map(|(name, share)| format!("{name} {:.0} %", 100.0 * share.as_f64().unwrap_or(0.0)))
            .collect();
        shares.join(", ")
    };
    ui::say!("\nAssay's time in prefill: {}.\nIn decode: {}.", said(spent[0]), said(spent[1]));
    let mega = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    ui::say!(
        "The limits are those of Assay's arithmetic and weights: {:.0} G multiply-adds of 16 bits a second, and {:.1} GB read \
         from memory, as measured here.\n\
         Ready {:.0} ms after opening the artifact of {}; keys and values {}, all else {}.",
        machine.multiply_adds / 1e9,
        machine.bandwidth / 1e9,
        1e3 * footprint.start,
        mega(footprint.artifact),
        mega(footprint.keys_and_values as u64),
        mega(footprint.taken.saturating_sub(footprint.keys_and_values as u64)),
    );
}
