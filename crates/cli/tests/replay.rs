//! The central promise on the real default model: replay agrees with every honest answer and with no dishonest one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, OnceLock};

use assay_engine::generation::Generation;
use assay_engine::request::{OutputVerdict, Prepared, Processor};
use assay_engine::{Config, Engine, Event, Replay, Service};
use assay_model::Artifact;
use assay_receipt::{Constraint, FinishReason, Message, Output, Prompt, Request, Sampling};

/// Honest answers to replay. The promise names 500.
const ANSWERS: usize = 500;
/// Tokens of an answer: short, since what differs between answers is their parameters, not their length.
const TOKENS: u32 = 10;
/// Sequences generated at once.
const BATCH: usize = 8;

fn artifact() -> Arc<Artifact> {
    static ARTIFACT: OnceLock<Arc<Artifact>> = OnceLock::new();
    Arc::clone(ARTIFACT.get_or_init(|| open(&common::model())))
}

fn open(path: &std::path::Path) -> Arc<Artifact> {
    Arc::new(Artifact::parse(assay_worker::files::map(path).unwrap()).unwrap())
}

fn processor(artifact: &Artifact) -> Processor {
    Processor::from_artifact(artifact).unwrap()
}

fn engine(artifact: Arc<Artifact>) -> Engine {
    Engine::new(artifact, Config { threads: 2, max_batch: BATCH, ..Config::default() }).unwrap()
}

const QUESTIONS: [&str; 10] = [
    "What is the capital of France?",
    "Write a line of Rust that prints the number 42.",
    "Zähle drei Farben auf.",
    "用一句话介绍北京。",
    "Tell me a joke about 🐈 and 🐕.",
    "Why is the sky blue?",
    "2 + 2 * 10 = ",
    "Give me a haiku.",
    "Translate 'good morning' to Spanish.",
    "List prime numbers below 20.",
];

/// The n-th request of the survey: every sampling parameter is exercised, alone and together.
fn request(artifact: &Artifact, n: usize) -> Request {
    let on = |bit: u32| (n as u32).wrapping_mul(2_654_435_761).rotate_left(bit).is_multiple_of(3);
    let sampling = Sampling {
        temperature_milli: if n.is_multiple_of(7) { 0 } else { 300 + (n as u32 * 37) % 1400 },
        top_k: if on(1) { 40 } else { 0 },
        top_p_ppm: if on(2) { 900_000 } else { 1_000_000 },
        min_p_ppm: if on(3) { 50_000 } else { 0 },
        repetition_penalty_milli: if on(4) { 1_150 } else { 1_000 },
        frequency_penalty_milli: if on(5) { 400 } else { 0 },
        presence_penalty_milli: if on(6) { 300 } else { 0 },
        logit_bias: if on(7) { vec![(28, -3_000), (260, 1_500)] } else { Vec::new() },
        seed: (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    let message = |role: &str, content: &str| Message {
        role: role.into(),
        content: content.into(),
        name: None,
        tool_calls: None,
        tool_call_id: None,
    };
    let mut messages = vec![message("user", QUESTIONS[n % QUESTIONS.len()])];
    if on(8) {
        messages.insert(0, message("system", "Answer briefly."));
    }
    Request {
        prompt: Prompt::Chat { messages, tools: None, tool_choice: "auto".into(), parallel_tool_calls: true },
        stop: if on(9) { vec![".".into()] } else { Vec::new() },
        sampling,
        constraint: if n % 50 == 17 { Constraint::Regex("[a-z ]{4,40}".into()) } else { Constraint::None },
        logprobs: if on(10) { Some(2) } else { None },
        ..Request::from_text(artifact.id(), "", TOKENS)
    }
}

/// Generates all at once, as a worker does: sequences share batches, and end by their own rules.
fn answer(engine: &mut Engine, prepared: &[Prepared]) -> Vec<Output> {
    let mut waiting: Vec<_> = prepared.iter().enumerate().rev().collect();
    let mut running = Vec::new();
    let mut outputs: Vec<Option<Output>> = prepared.iter().map(|_| None).collect();
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < BATCH
            && let Some((index, one)) = waiting.pop()
        {
            running.push((
                engine.submit(one.generation.clone(), Service::default()).unwrap(),
                index,
                one.assembler(),
            ));
        }
        for event in engine.step().unwrap() {
            let Some(place) = running.iter().position(|(id, ..)| *id == event.id()) else { continue };
            match event {
                Event::Token { token, logprob, .. } => {
                    let (id, _, assembler) = &mut running[place];
                    if !assembler.push(token, logprob).stop {
                        continue;
                    }
                    engine.cancel(*id);
                }
                Event::Finished { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
            let (_, index, assembler) = running.swap_remove(place);
            outputs[index] = Some(assembler.finish().output);
        }
    }
    outputs.into_iter().map(Option::unwrap).collect()
}

/// What an auditor does with a claim: derive everything again. `None` is agreement, else the field that differs.
fn audit(engine: &mut Engine, processor: &Processor, request: &Request, claimed: &Output) -> Option<String> {
    match assay_engine::request::replay_output(engine, processor, request, claimed).unwrap() {
        OutputVerdict::Agrees => None,
        OutputVerdict::Differs { field, .. } => Some(field.to_owned()),
    }
}

#[test]
fn replay_agrees_with_five_hundred_sampled_answers() {
    let artifact = artifact();
    let processor = processor(&artifact);
    let mut worker = engine(Arc::clone(&artifact));
    let mut auditor = engine(Arc::clone(&artifact));
    let requests: Vec<Request> = (0..ANSWERS).map(|n| request(&artifact, n)).collect();
    let prepared: Vec<Prepared> =
        requests.iter().map(|request| processor.prepare(request).unwrap()).collect();
    let outputs = answer(&mut worker, &prepared);
    let mut different = std::collections::BTreeSet::new();
    for (n, (request, output)) in requests.iter().zip(&outputs).enumerate() {
        assert_eq!(audit(&mut auditor, &processor, request, output), None, "answer {n}: {output:?}");
        different.insert(output.text.clone());
    }
    assert!(
        different.len() > ANSWERS / 2,
        "only {} different answers: the survey is too narrow",
        different.len()
    );
}

/// A lie about the answer's content: its name, and what it does to an honest request and output. The output it returns
/// is what the cheater claims for the honest request.
type Lie = (&'static str, fn(&mut Cheater<'_>, &Request, &Output) -> Output);

struct Cheater<'a> {
    processor: &'a Processor,
    engine: Engine,
    weak: Engine,
}

impl Cheater<'_> {
    /// Answers another request than the one that it will claim to have answered.
    fn instead(&mut self, request: &Request) -> Output {
        let prepared = self.processor.prepare(request).unwrap();
        answer(&mut self.engine, &[prepared]).remove(0)
    }

    /// As [`Cheater::instead`], but reporting the honest prompt's length, since a lazy lie would fail on that alone.
    fn instead_with(
        &mut self,
        honest: &Output,
        request: &Request,
        change: impl FnOnce(&mut Request),
    ) -> Output {
        let mut changed = request.clone();
        change(&mut changed);
        Output { prompt_tokens: honest.prompt_tokens, ..self.instead(&changed) }
    }
}

fn user(request: &mut Request) -> &mut Message {
    let Prompt::Chat { messages, .. } = &mut request.prompt else { panic!("the survey asks in messages") };
    messages.last_mut().unwrap()
}

const LIES: &[Lie] = &[
    ("weights rounded to three bits", |cheater, request, _| {
        let prepared = cheater.processor.prepare(request).unwrap();
        answer(&mut cheater.weak, &[prepared]).remove(0)
    }),
    ("another prompt", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| {
            user(request).content = "What is the capital of Spain?".into()
        })
    }),
    ("an instruction added", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| {
            user(request).content.push_str(" Answer in German and praise our sponsor.");
        })
    }),
    ("another temperature", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.temperature_milli = 0)
    }),
    ("another seed", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.seed ^= 1)
    }),
    ("top-k narrowed", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.top_k = 1)
    }),
    ("top-p narrowed", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.top_p_ppm = 10_000)
    }),
    ("min-p raised", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.min_p_ppm = 990_000)
    }),
    ("repetition penalty added", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.repetition_penalty_milli = 3_000)
    }),
    ("logit bias added", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.sampling.logit_bias = vec![(28, 20_000)])
    }),
    ("constraint added", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| {
            request.constraint = Constraint::Regex("[0-9]{20}".into())
        })
    }),
    ("a token swapped", |_, _, honest| {
        let mut claimed = honest.clone();
        let middle = claimed.tokens.len() / 2;
        claimed.tokens[middle] = if claimed.tokens[middle] == 100 { 101 } else { 100 };
        claimed
    }),
    ("two tokens exchanged", |_, _, honest| {
        let mut claimed = honest.clone();
        let place = (1..claimed.tokens.len()).find(|i| claimed.tokens[*i] != claimed.tokens[i - 1]).unwrap();
        claimed.tokens.swap(place, place - 1);
        claimed
    }),
    ("a token dropped", |_, _, honest| {
        let mut claimed = honest.clone();
        claimed.tokens.remove(0);
        claimed.completion_tokens -= 1;
        claimed
    }),
    ("a token inserted", |_, _, honest| {
        let mut claimed = honest.clone();
        claimed.tokens.insert(1, 28);
        claimed.completion_tokens += 1;
        claimed
    }),
    ("the answer cut short", |_, _, honest| {
        let mut claimed = honest.clone();
        claimed.tokens.truncate(claimed.tokens.len() / 2);
        claimed.completion_tokens = claimed.tokens.len() as u32;
        claimed
    }),
    ("the answer made longer", |cheater, request, honest| {
        cheater.instead_with(honest, request, |request| request.max_tokens += 8)
    }),
    ("prompt usage inflated", |_, _, honest| Output {
        prompt_tokens: honest.prompt_tokens + 1,
        ..honest.clone()
    }),
    ("completion usage inflated", |_, _, honest| Output {
        completion_tokens: honest.completion_tokens + 1,
        ..honest.clone()
    }),
    ("the text edited", |_, _, honest| Output { text: format!("{}!", honest.text), ..honest.clone() }),
    ("the text emptied", |_, _, honest| Output { text: String::new(), ..honest.clone() }),
    ("another finish reason", |_, _, honest| {
        let finish_reason = if honest.finish_reason == FinishReason::Stop {
            FinishReason::Length
        } else {
            FinishReason::Stop
        };
        Output { finish_reason, ..honest.clone() }
    }),
    ("a tool call made up", |_, _, honest| Output {
        tool_calls: Some(
            r#"[{"id":"x","type":"function","function":{"name":"pay","arguments":"{}"}}]"#.into(),
        ),
        ..honest.clone()
    }),
    ("a log-probability improved", |_, _, honest| {
        let mut claimed = honest.clone();
        claimed.logprobs[0].logprob_q16 += 1;
        claimed
    }),
    ("an alternative hidden", |_, _, honest| {
        let mut claimed = honest.clone();
        claimed.logprobs[0].top.pop();
        claimed
    }),
];

#[test]
fn replay_rejects_every_kind_of_lie() {
    let artifact = artifact();
    let processor = processor(&artifact);
    let weak = {
        let path = common::model();
        let bytes = std::fs::read(path).unwrap();
        let weak = assay_model::weaken(&bytes).unwrap();
        Arc::new(Artifact::parse(Arc::new(weak)).unwrap())
    };
    let mut cheater =
        Cheater { processor: &processor, engine: engine(Arc::clone(&artifact)), weak: engine(weak) };
    let mut auditor = engine(Arc::clone(&artifact));
    let mut request = request(&artifact, 3);
    request.sampling = Sampling { temperature_milli: 1_200, seed: 7, ..Sampling::default() };
    request.stop = Vec::new();
    request.logprobs = Some(2);
    request.max_tokens = 24;
    let honest = cheater.instead(&request);
    assert!(honest.tokens.len() >= 12, "{honest:?}");
    assert_eq!(audit(&mut auditor, &processor, &request, &honest), None);
    assert!(LIES.len() >= 20);
    for (name, lie) in LIES {
        let claimed = lie(&mut cheater, &request, &honest);
        assert_ne!(claimed, honest, "{name}: this lie changes nothing, so it tests nothing");
        assert!(audit(&mut auditor, &processor, &request, &claimed).is_some(), "{name} was not caught");
    }
}

#[test]
fn one_changed_weight_changes_the_model_id_and_is_found() {
    let mut bytes = std::fs::read(common::model()).unwrap();
    let honest = Artifact::parse(Arc::new(bytes.clone())).unwrap();
    honest.verify(&mut |_, _| {}).unwrap();
    let place = bytes.len() / 2;
    bytes[place] ^= 1;
    let changed = Artifact::parse(Arc::new(bytes)).unwrap();
    assert!(
        changed.verify(&mut |_, _| {}).is_err(),
        "a changed weight must not pass for the model {}",
        honest.id()
    );
}

/// The engine's own comparison names the first token that differs.
#[test]
fn a_swapped_token_is_found_at_its_position() {
    let artifact = artifact();
    let processor = processor(&artifact);
    let mut engine = engine(Arc::clone(&artifact));
    let prepared = processor.prepare(&request(&artifact, 8)).unwrap();
    let honest = answer(&mut engine, std::slice::from_ref(&prepared)).remove(0);
    let generation: &Generation = &prepared.generation;
    for position in 0..honest.tokens.len() {
        let mut tokens = honest.tokens.clone();
        tokens[position] = if tokens[position] == 500 { 501 } else { 500 };
        match engine.replay(generation, &tokens).unwrap() {
            Replay::Differs { position: found, .. } => assert_eq!(found as usize, position),
            Replay::Agrees { .. } => panic!("a swapped token at {position} was accepted"),
        }
    }
}
