//! `assay bench verification`: what each level costs for the same requests, as a share of the inference it checks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_engine::generation::Generation;
use assay_engine::light;
use assay_engine::request::{Prepared, Processor};
use assay_engine::{Config, Engine, Event, Service};
use assay_model::Artifact;
use assay_receipt::{
    Bundle, Bytes32, Chain, Chunk, Domain, Key, Level, Member, Message, Offer, Output, Prompt, Receipt,
    Request, Sampling, Signed, SignedChunk, output_commitment, request_commitment,
};
use assay_verify::{Expected, State};

use crate::error::{Error, Result};
use crate::{models, ui};

/// What is asked: short and long prompts, as in a chat.
const QUESTIONS: [&str; 6] = [
    "What is the capital of France?",
    "Explain how a bill becomes a law, step by step.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "Summarise the following in one sentence: Water evaporates from the sea, rises, cools, condenses into clouds, \
     falls as rain or snow, runs into rivers and returns to the sea. The sun drives this cycle, and without it no \
     fresh water would reach the land. Plants add to it by breathing out water, and soils and aquifers store it for \
     weeks, years or millennia before it goes on its way again.",
    "Write a function in Python that returns the n-th Fibonacci number, and explain it.",
    "Give me a recipe for pancakes.",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a name, a path or an id
    #[arg(long, default_value = models::DEFAULT)]
    model: String,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: u32,
    /// Threads that compute
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
}

/// Sums over all requests.
#[derive(Default)]
struct Sums {
    /// Each request alone.
    generate: Duration,
    /// All requests in one batch.
    generate_together: Duration,
    sign: Duration,
    check: Duration,
    replay: Duration,
    /// Writing the trace of a light check, and the check.
    record: Duration,
    light: Duration,
    trace_bytes: usize,
    make_key: Duration,
    key_bytes: usize,
    prove: Duration,
    proved: Duration,
    proof_bytes: usize,
    commit: Duration,
    commitment_bytes: usize,
    prompt_tokens: u64,
    tokens: u64,
    bundle_bytes: usize,
    signed_bytes: usize,
}

pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let path = models::pull(&args.model)?;
    let (_, artifact) = models::open(&path.display().to_string())?;
    let artifact = Arc::new(artifact);
    let said = |error: &dyn std::fmt::Display| Error::said(format!("the measurement cannot run: {error}"));
    let processor = Processor::from_artifact(&artifact).map_err(|error| said(&error))?;
    let config = Config { threads: args.threads, ..Config::default() };
    let mut worker = Engine::new(Arc::clone(&artifact), config).map_err(|error| said(&error))?;
    let mut auditor = Engine::new(Arc::clone(&artifact), config).map_err(|error| said(&error))?;
    let key = Key::from_bytes([7; 32]).map_err(|error| said(&error))?;
    let expected = expected(&key, &artifact);

    let mut sums = Sums::default();
    let started = Instant::now();
    let secret = light::Key::make(&artifact, [7; 32], &mut |_, _| {}).map_err(|error| said(&error))?;
    sums.make_key = started.elapsed();
    sums.key_bytes = secret.to_bytes().len();
    let secret = Arc::new(secret);

    let started = Instant::now();
    let public = light::Commitment::make(&artifact, &mut |_, _| {}).map_err(|error| said(&error))?;
    sums.commit = started.elapsed();
    sums.commitment_bytes = public.to_bytes().len();
    let public = Arc::new(public);

    let bar = ui::bar(QUESTIONS.len() as u64, "asking and checking", false);
    let mut prepareds = Vec::new();
    for (number, question) in QUESTIONS.iter().enumerate() {
        let request = request(&artifact, question, args.tokens, number as u64);
        let prepared = processor.prepare(&request).map_err(|error| said(&error))?;

        prepareds.push(prepared.generation.clone());
        let started = Instant::now();
        let (output, deltas) = generate(&mut worker, &prepared).map_err(|error| said(&error))?;
        sums.generate += started.elapsed();

        let started = Instant::now();
        let bundle = sign(&key, request, output, deltas).map_err(|error| said(&error))?;
        sums.sign += started.elapsed();

        let started = Instant::now();
        let report = assay_verify::check(&bundle, &expected);
        sums.check += started.elapsed();
        if report.state != State::Signed {
            return Err(said(&format!("an honest receipt was not accepted: {:?}", report.failed().next())));
        }

        let started = Instant::now();
        let report = assay_verify::check_replayed(&bundle, &expected, &mut auditor, &processor)
            .map_err(|error| said(&error))?;
        sums.replay += started.elapsed();
        if report.state != State::Replayed {
            return Err(said(&format!("an honest answer was not repeated: {:?}", report.failed().next())));
        }

        let mut trace = Vec::new();
        let started = Instant::now();
        let tokens = &bundle.output.tokens;
        light::record(&artifact, config, &prepared.generation, tokens, &mut trace, &mut |_, _| {})
            .map_err(|error| said(&error))?;
        sums.record += started.elapsed();
        sums.trace_bytes += trace.len();

        let started = Instant::now();
        let trace = Arc::new(trace);
        let report = assay_verify::check_light(&bundle, &expected, &secret, &processor, trace, config)
            .map_err(|error| said(&error))?;
        sums.light += started.elapsed();
        if report.state != State::Replayed {
            return Err(said(&format!("an honest trace was not accepted: {:?}", report.failed().next())));
        }

        let mut proof = Vec::new();
        let started = Instant::now();
        let (generation, id) = (&prepared.generation, public.id());
        light::prove(&artifact, config, id, generation, tokens, &mut proof, &mut |_, _| {})
            .map_err(|error| said(&error))?;
        sums.prove += started.elapsed();
        sums.proof_bytes += proof.len();

        let started = Instant::now();
        let proof = Arc::new(proof);
        let report = assay_verify::check_trace_proof(&bundle, &expected, &public, &processor, proof, config)
            .map_err(|error| said(&error))?;
        sums.proved += started.elapsed();
        if report.state != State::Proved {
            return Err(said(&format!("an honest proof was not accepted: {:?}", report.failed().next())));
        }

        sums.prompt_tokens += u64::from(bundle.output.prompt_tokens);
        sums.tokens += u64::from(bundle.output.completion_tokens);
        sums.bundle_bytes += serde_json::to_vec(&bundle).map_err(|error| said(&error))?.len();
        sums.signed_bytes += serde_json::to_vec(&bundle.receipt).map_err(|error| said(&error))?.len();
        bar.inc(1);
    }
    bar.finish_and_clear();
    sums.generate_together = generate_together(&mut worker, &prepareds).map_err(|error| said(&error))?;
    print(&sums, args, json);
    Ok(())
}

fn print(sums: &Sums, args: &Args, json: bool) {
    let count = QUESTIONS.len();
    let positions = (sums.prompt_tokens + sums.tokens) as usize - count;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3 / count as f64;
    let share = |duration: Duration| 100.0 * duration.as_secs_f64() / sums.generate.as_secs_f64();
    if json {
        ui::print_json(&serde_json::json!({
            "model": args.model, "threads": args.threads, "requests": count,
            "prompt_tokens": sums.prompt_tokens, "completion_tokens": sums.tokens,
            "generate_ms": ms(sums.generate), "sign_ms": ms(sums.sign), "check_ms": ms(sums.check),
            "replay_ms": ms(sums.replay), "generate_together_ms": ms(sums.generate_together), "sign_share_percent": share(sums.sign),
            "check_share_percent": share(sums.check), "replay_share_percent": share(sums.replay),
            "record_ms": ms(sums.record), "light_ms": ms(sums.light), "light_share_percent": share(sums.light),
            "trace_bytes": sums.trace_bytes / count, "trace_position_bytes": sums.trace_bytes / positions,
            "prove_ms": ms(sums.prove), "proved_ms": ms(sums.proved), "proved_share_percent": share(sums.proved),
            "proof_bytes": sums.proof_bytes / count, "commit_ms": sums.commit.as_secs_f64() * 1e3,
            "commitment_bytes": sums.commitment_bytes, "key_bytes": sums.key_bytes, "make_key_ms": sums.make_key.as_secs_f64() * 1e3,
            "receipt_bytes": sums.signed_bytes / count, "bundle_bytes": sums.bundle_bytes / count,
        }));
        return;
    }
    ui::say!(
        "{count} requests, {} prompt tokens and {} answer tokens in all, {} threads; generating took {:.0} ms a request.\n",
        sums.prompt_tokens,
        sums.tokens,
        args.threads,
        ms(sums.generate)
    );
    let row = |level: &str, overhead: f64, checker: Duration, bytes: usize, proves: &str, trusted: &str| {
        vec![
            level.to_owned(),
            format!("{overhead:.2} %"),
            format!("{:.1} ms", ms(checker)),
            format!("{:.1} %", share(checker)),
            format!("{:.1} %", 100.0 * checker.as_secs_f64() / sums.generate_together.as_secs_f64()),
            format!("{:.1} kB", bytes as f64 / count as f64 / 1e3),
            proves.to_owned(),
            trusted.to_owned(),
        ]
    };
    let rows = [
        row("signed", share(sums.sign), sums.check, sums.bundle_bytes, "who said it", "the worker"),
        row(
            "replayed",
            share(sums.sign),
            sums.replay,
            sums.bundle_bytes,
            "the answer is this model's",
            "one honest auditor, or nobody when replayed at home",
        ),
        row(
            "light check",
            share(sums.sign + sums.record),
            sums.light,
            sums.bundle_bytes + sums.trace_bytes,
            "the answer is this model's",
            "nobody",
        ),
        row(
            "proved",
            share(sums.sign + sums.prove),
            sums.proved,
            sums.bundle_bytes + sums.proof_bytes,
            "the same, to everybody",
            "mathematics",
        ),
    ];
    ui::say!(
        "{}",
        ui::table(
            &[
                "level",
                "worker overhead",
                "checker time",
                "of generating alone",
                "of generating in a batch",
                "evidence",
                "proves",
                "still trusted"
            ],
            &rows
        )
    );
    ui::say!(
        "\nThe worker's overhead is signing one chunk a token and the receipt; its log and TLS are not in it. A checker replays \
         one answer at a time.\nThe evidence is the whole bundle with request, answer and every signed chunk; the receipt \
         alone has {} bytes.\nThe light check's key has {:.2} MB and took {:.2} s to make; recording its trace took {:.0} ms a request, and \
         a position of it has {:.0} kB.\nThe public key of proofs has {:.2} MB and took {:.2} s to make; proving took {:.0} ms a request.",
        sums.signed_bytes / count,
        sums.key_bytes as f64 / 1e6,
        sums.make_key.as_secs_f64(),
        ms(sums.record),
        sums.trace_bytes as f64 / positions as f64 / 1e3,
        sums.commitment_bytes as f64 / 1e6,
        sums.commit.as_secs_f64(),
        ms(sums.prove)
    );
}

fn request(artifact: &Artifact, question: &str, tokens: u32, seed: u64) -> Request {
    let message = Message {
        role: "user".into(),
        content: question.into(),
        name: None,
        tool_calls: None,
        tool_call_id: None,
    };
    Request {
        prompt: Prompt::Chat {
            messages: vec![message],
            tools: None,
            tool_choice: "auto".into(),
            parallel_tool_calls: true,
        },
        sampling: Sampling { temperature_milli: 700, seed, ..Sampling::default() },
        ..Request::from_text(artifact.id(), "", tokens)
    }
}

fn expected(key: &Key, artifact: &Artifact) -> Expected {
    let offer = Offer {
        model: artifact.id(),
        name: "bench".into(),
        prompt_price: 1,
        completion_price: 4,
        arithmetic: artifact.manifest().arithmetic,
        context: u32::try_from(artifact.config().context).unwrap_or(u32::MAX),
    };
    let member = Member {
        operator: "bench".into(),
        worker: key.address(),
        key_epoch: 0,
        url: "https://127.0.0.1:1".into(),
        tls_sha256: Bytes32::ZERO,
        models: vec![offer],
    };
    Expected {
        domain: Domain::default(),
        workers: vec![member],
        nonce: None,
        model: None,
        payer: None,
        cap: None,
    }
}

/// Generates an answer alone, as the tokens come; the deltas are what a worker would stream.
fn generate(
    engine: &mut Engine,
    prepared: &Prepared,
) -> std::result::Result<(Output, Vec<(u32, String)>), assay_engine::Error> {
    let id = engine.submit(prepared.generation.clone(), Service::default())?;
    let mut assembler = prepared.assembler();
    let mut deltas = Vec::new();
    while !engine.is_idle() {
        for event in engine.step()? {
            if let Event::Token { token, logprob, .. } = event {
                let step = assembler.push(token, logprob);
                deltas.push((token, step.delta));
                if step.stop {
                    engine.cancel(id);
                }
            }
        }
    }
    let finished = assembler.finish();
    if let Some(last) = deltas.last_mut() {
        last.1.push_str(&finished.delta);
    }
    Ok((finished.output, deltas))
}

/// Generates all answers in one batch, as a busy worker does, and says how long that takes.
fn generate_together(
    engine: &mut Engine,
    generations: &[Generation],
) -> std::result::Result<Duration, assay_engine::Error> {
    let started = Instant::now();
    for generation in generations {
        engine.submit(generation.clone(), Service::default())?;
    }
    while !engine.is_idle() {
        engine.step()?;
    }
    Ok(started.elapsed())
}

/// Signs an answer as a worker does: every chunk, then the receipt.
fn sign(
    key: &Key,
    request: Request,
    output: Output,
    deltas: Vec<(u32, String)>,
) -> std::result::Result<Bundle, assay_receipt::Error> {
    let (domain, salt, nonce) = (Domain::default(), Bytes32([1; 32]), Bytes32([2; 32]));
    let commitment = request_commitment(&request, &salt);
    let mut chain = Chain::start(&commitment, &nonce);
    let chunks = deltas
        .into_iter()
        .zip(0..)
        .map(|((token, text), index)| {
            chain.sign(key, &domain, Chunk { index, text, tokens: vec![token], logprobs: Vec::new() })
        })
        .collect::<std::result::Result<Vec<SignedChunk>, _>>()?;
    let price = u128::from(output.prompt_tokens) + 4 * u128::from(output.completion_tokens);
    let receipt = Receipt {
        worker: key.address(),
        key_epoch: 0,
        model: request.model,
        arithmetic: assay_arithmetic::VERSION,
        level: Level::Signed,
        request: commitment,
        output: output_commitment(&output, &salt),
        chunks: chain.len(),
        chain: chain.link(),
        trace: Bytes32::ZERO,
        prompt_tokens: output.prompt_tokens,
        completion_tokens: output.completion_tokens,
        price,
        payer: key.address(),
        cap: price,
        nonce,
        sequence: 0,
        previous: Bytes32::ZERO,
        received_at_ms: 1,
        first_token_at_ms: 2,
        finished_at_ms: 3,
    };
    let receipt = Signed::sign(key, &domain, receipt);
    let version = assay_receipt::BUNDLE_VERSION;
    Ok(Bundle { version, domain, salt, request, output, chunks, receipt, audits: Vec::new() })
}
