//! However requests are served beside each other, each gets the answer that it gets alone.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use assay_engine::{Config, Engine, Event, Generation, Priority, Replay, SequenceId, Service, Stats, Tenant};
use assay_model::{Architecture, Artifact};
use common::{
    ARCHITECTURES, Answer, collect, config, engine, generation, greedy, model, prompt, run, samplings,
};
use proptest::prelude::*;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

fn service(tenant: u8) -> Service {
    Service { tenant: (tenant > 0).then_some(Tenant([tenant; 32])), ..Service::default() }
}

/// One sequence at a time, nothing shared, nothing guessed.
fn plain(model: &Arc<Artifact>) -> Engine {
    let config = Config { max_batch: 1, max_guess: 0, page_tokens: 512, ..config(1) };
    Engine::new(Arc::clone(model), config.with_kv_tokens(model, 512)).unwrap()
}

/// Requests that begin alike, some of which repeat themselves: there is something to share and to guess.
fn requests(count: usize) -> Vec<Generation> {
    let samplings = samplings();
    (0..count)
        .map(|i| {
            let mut request = generation(
                20 + 17 * i % 90,
                i as u32 / 3,
                samplings[i % samplings.len()].clone(),
                12 + 5 * (i as u32 % 9),
            );
            if i % 2 == 0 {
                // A text of few different tokens, and a strong wish to go on with them.
                request.prompt = (0..40 + i as u32).map(|at| 5 + at % 7).collect();
                request.sampling.logit_bias = (5..12).map(|token| (token, 30_000)).collect();
            }
            if i % 3 == 0 {
                request.logprobs = None;
            }
            request
        })
        .collect()
}

/// Runs all requests together, with the tenant of each; the later ones come while the first are running.
fn together(engine: &mut Engine, requests: &[Generation], tenants: &[u8]) -> Vec<Answer> {
    let mut ids: HashMap<SequenceId, usize> = HashMap::new();
    let mut answers = vec![Answer::default(); requests.len()];
    let mut next = 0;
    while next < requests.len() || !engine.is_idle() {
        for _ in 0..2.min(requests.len() - next) {
            let service = service(tenants[next % tenants.len()]);
            ids.insert(engine.submit(requests[next].clone(), service).unwrap(), next);
            next += 1;
        }
        for event in engine.step().unwrap() {
            let answer = &mut answers[ids[&event.id()]];
            match event {
                Event::Token { token, index, logprob, .. } => {
                    assert_eq!(index as usize, answer.tokens.len());
                    answer.tokens.push(token);
                    answer.logprobs.extend(logprob);
                }
                Event::Finished { finish, .. } => answer.finish = Some(finish),
                other => answer.other = Some(other),
            }
        }
        check_budget(engine);
    }
    assert_eq!(engine.free_tokens(), engine.kv_tokens());
    answers
}

fn check_budget(engine: &Engine) {
    let Stats { pages, pages_held, pages_cached, running, .. } = engine.stats();
    assert!(pages_held + pages_cached <= pages && running <= engine.config().max_batch);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn answers_do_not_depend_on_how_they_are_served(
        architecture in 0..ARCHITECTURES.len(),
        threads in 1usize..=16,
        page_tokens in prop::sample::select(vec![1usize, 2, 7, 16, 64, 200]),
        spare in 0usize..400,
        max_batch in 1usize..=9,
        prefill_chunk in prop::sample::select(vec![1usize, 3, 16, 40, 200]),
        max_guess in prop::sample::select(vec![0usize, 1, 4, 64]),
        tenants in prop::collection::vec(0u8..3, 1..5),
        // None, another model, or the model itself, whose guesses are all right.
        draft in prop::sample::select(vec![None, Some(22), Some(21)]),
    ) {
        let model = model(ARCHITECTURES[architecture], 21);
        let requests = requests(14);
        let mut alone = plain(&model);
        let expected: Vec<_> = requests.iter().map(|request| run(&mut alone, request.clone())).collect();
        prop_assert_eq!(alone.stats().guessed + alone.stats().tokens_found, 0);
        let config = Config { threads, page_tokens, max_batch, prefill_chunk, max_guess, ..config(1) };
        let mut config = config.with_kv_tokens(&model, 200 + spare);
        let mut engine = match draft {
            None => Engine::new(Arc::clone(&model), config).unwrap(),
            Some(seed) => {
                config.kv_bytes *= 2;
                let draft = common::model(ARCHITECTURES[architecture], seed);
                Engine::with_draft(Arc::clone(&model), draft, config).unwrap()
            }
        };
        for _ in 0..2 {
            // The second time, what the first has left is found.
            prop_assert_eq!(&together(&mut engine, &requests, &tenants), &expected);
        }
    }
}

/// A thousand requests that come, are cancelled and lose their memory at random: every token that any of them got is
/// the one that another engine chooses.
#[test]
fn a_thousand_requests_replay_exactly() {
    let model = model(Architecture::Qwen3, 22);
    let mut dice = Dice(1);
    let config = Config { page_tokens: 4, max_batch: 6, max_waiting: 10, prefill_chunk: 24, ..config(2) };
    let mut engine = Engine::new(Arc::clone(&model), config.with_kv_tokens(&model, 240)).unwrap();
    let mut running: HashMap<SequenceId, (Generation, Answer)> = HashMap::new();
    let mut ended = Vec::new();
    let mut submitted = 0;
    while ended.len() < 1000 {
        while submitted < 1000 && dice.roll(3) > 0 {
            let mut request = requests(18).swap_remove(dice.roll(18));
            request.sampling.seed = dice.roll(1000) as u64;
            request.max_tokens = 1 + dice.roll(60) as u32;
            request.prompt.truncate(1 + dice.roll(90));
            let priority = [Priority::High, Priority::Normal, Priority::Low][dice.roll(3)];
            let service = Service { priority, ..service(dice.roll(4) as u8) };
            match engine.submit(request.clone(), service) {
                Ok(id) => {
                    running.insert(id, (request, Answer::default()));
                    submitted += 1;
                }
                Err(error) => {
                    assert!(matches!(error, assay_engine::Error::QueueFull { .. }), "{error}");
                    break;
                }
            }
        }
        for event in engine.step().unwrap() {
            let id = event.id();
            let (_, answer) = running.get_mut(&id).unwrap();
            match event {
                Event::Token { token, logprob, .. } => {
                    answer.tokens.push(token);
                    answer.logprobs.extend(logprob);
                }
                Event::Finished { finish, .. } => {
                    answer.finish = Some(finish);
                    ended.push(running.remove(&id).unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
        check_budget(&engine);
        if dice.roll(10) == 0 && !running.is_empty() {
            let mut ids: Vec<_> = running.keys().copied().collect();
            ids.sort_unstable();
            let id = ids[dice.roll(ids.len())];
            engine.cancel(id);
            ended.push(running.remove(&id).unwrap());
        }
    }
    let stats = engine.stats();
    let cancelled = ended.iter().filter(|(_, answer)| answer.finish.is_none()).count();
    assert!(stats.preempted > 50 && stats.tokens_found > 1000 && stats.guessed_right > 100, "{stats:?}");
    assert!(cancelled > 50 && cancelled < 500, "{cancelled}");
    assert_eq!(engine.free_tokens(), engine.kv_tokens());
    let mut auditor = plain(&model);
    for (request, answer) in ended {
        let replay = auditor.replay(&request, &answer.tokens).unwrap();
        let Answer { finish, logprobs, .. } = answer;
        assert_eq!(replay, Replay::Agrees { finish, logprobs });
    }
}

#[test]
fn beginnings_are_shared_within_a_tenant_only() {
    let model = model(Architecture::Llama, 23);
    let mut engine = engine(&model); // pages of 8 tokens
    let request = generation(45, 1, greedy(), 4);
    let mut found = |tenant, request: &Generation| {
        let before = engine.stats().tokens_found;
        let id = engine.submit(request.clone(), service(tenant)).unwrap();
        let answer = collect(&mut engine, &[id]).remove(0);
        (engine.stats().tokens_found - before, answer)
    };
    let (none, answer) = found(1, &request);
    assert_eq!(none, 0);
    assert_eq!(found(1, &request), (40, answer.clone()));
    assert_eq!(found(2, &request), (0, answer.clone()));
    assert_eq!(found(0, &request), (0, answer.clone()), "no tenant shares with none");
    assert_eq!(found(0, &request), (0, answer.clone()), "nor with itself");
    // The page in which the texts part is not shared, whatever follows it.
    let mut other = request.clone();
    other.prompt[20] += 1;
    assert_eq!(found(1, &other).0, 16);
    // At least the last token of a prompt is run, for its logits; and an answer is part of the next prompt.
    let mut whole = request.clone();
    whole.prompt.truncate(40);
    assert_eq!(found(1, &whole).0, 32);
    let mut next = request.clone();
    next.prompt.extend(&answer.tokens);
    next.prompt.extend(prompt(10, 5));
    assert_eq!(found(1, &next).0, 48);
}

#[test]
fn what_runs_beside_is_shared_as_well() {
    let model = model(Architecture::Llama, 24);
    let mut engine = engine(&model);
    let request = generation(200, 1, greedy(), 4);
    let ids: Vec<_> = (0..4).map(|_| engine.submit(request.clone(), service(1)).unwrap()).collect();
    let answers = collect(&mut engine, &ids);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let rows = engine.stats().rows;
    assert!(rows < 2 * 200, "{rows} rows for four times the same 200 tokens");
}

#[test]
fn memory_goes_to_new_requests_before_old_texts() {
    let model = model(Architecture::Llama, 25);
    let config = config(1).with_kv_tokens(&model, 128);
    let mut engine = Engine::new(Arc::clone(&model), config).unwrap();
    let mut ask = |seed| {
        let before = engine.stats().tokens_found;
        let id = engine.submit(generation(57, seed, greedy(), 2), service(1)).unwrap();
        collect(&mut engine, &[id]);
        engine.stats().tokens_found - before
    };
    // The second text goes from its end; its first page is left.
    assert_eq!([ask(1), ask(2), ask(1), ask(3), ask(1), ask(2)], [0, 0, 56, 0, 56, 8]);
}

#[test]
fn a_long_prompt_stalls_nobody() {
    let model = model(Architecture::Llama, 26);
    let config = Config { prefill_chunk: 16, max_guess: 0, ..config(1) };
    let mut engine = Engine::new(Arc::clone(&model), config).unwrap();
    let submit = |engine: &mut Engine, length, tokens| {
        let mut request = generation(length, 1, greedy(), tokens);
        request.end_tokens.clear();
        engine.submit(request, Service::default()).unwrap()
    };
    let talking = submit(&mut engine, 4, 100);
    let _ = engine.step().unwrap();
    let long = submit(&mut engine, 400, 4);
    let short = submit(&mut engine, 20, 4);
    let (mut first_short, mut first_long) = (None, None);
    for step in 0..40 {
        let events = engine.step().unwrap();
        let of = |id| events.iter().filter(|event| event.id() == id).count();
        assert_eq!(of(talking), 1, "a token in every step");
        first_short = first_short.or((of(short) > 0).then_some(step));
        first_long = first_long.or((of(long) > 0).then_some(step));
    }
    assert_eq!((first_short, first_long), (Some(2), Some(26)));
}

#[test]
fn everybody_ends_however_little_memory_there_is() {
    let model = model(Architecture::Llama, 27);
    let config = Config { page_tokens: 4, ..config(1) }.with_kv_tokens(&model, 64);
    let mut engine = Engine::new(Arc::clone(&model), config).unwrap();
    let requests: Vec<_> = (0..12).map(|i| generation(10, i, greedy(), 50)).collect();
    let mut alone = plain(&model);
    let expected: Vec<_> = requests.iter().map(|request| run(&mut alone, request.clone())).collect();
    let ids: Vec<_> =
        requests.into_iter().map(|request| engine.submit(request, Service::default()).unwrap()).collect();
    assert_eq!(collect(&mut engine, &ids), expected);
    assert!(engine.stats().preempted > 0);
}

#[test]
fn a_request_of_low_priority_is_not_passed_for_ever() {
    let model = model(Architecture::Llama, 28);
    let mut engine = Engine::new(Arc::clone(&model), Config { max_batch: 1, ..config(1) }).unwrap();
    let with = |priority, tenant| Service { priority, ..service(tenant) };
    let request = |seed| generation(400, seed, greedy(), 2);
    let mut waiting = vec![engine.submit(request(0), with(Priority::Normal, 1)).unwrap()];
    let low = engine.submit(request(1), with(Priority::Low, 2)).unwrap();
    let high = engine.submit(request(2), with(Priority::High, 3)).unwrap();
    let mut order = Vec::new();
    for seed in 3u32.. {
        // There is always somebody else who wants to run.
        while waiting.len() < 2 {
            waiting
                .push(engine.submit(request(seed), with(Priority::Normal, 4 + (seed % 200) as u8)).unwrap());
        }
        for event in engine.step().unwrap() {
            if let Event::Finished { id, .. } = event {
                order.push(id);
                waiting.retain(|other| *other != id);
            }
        }
        if order.contains(&low) {
            break;
        }
        assert!(seed < 60_000, "it starves");
    }
    let place = |id| order.iter().position(|other| *other == id).unwrap();
    assert_eq!(place(high), 0, "nothing had begun before it");
    assert!(place(low) > 3, "it let others go first: {}", place(low));
}

#[test]
fn a_draft_model_saves_steps_if_it_agrees_and_is_left_alone_if_not() {
    let model = model(Architecture::Qwen3, 30);
    let mut request = generation(60, 1, common::sampled(3), 100);
    request.end_tokens.clear();
    let expected = run(&mut plain(&model), request.clone());
    let steps = |draft: Arc<Artifact>| {
        let mut engine = Engine::with_draft(Arc::clone(&model), draft, config(2)).unwrap();
        // A draft model of the same size does not pay by itself: that is what is to be seen of the other.
        assert_eq!(run(&mut engine, request.clone()), expected);
        engine.stats()
    };
    let own = steps(Arc::clone(&model));
    assert!(own.guessed > 0 && own.guessed == own.guessed_right, "{own:?}");
    let other = steps(common::model(Architecture::Qwen3, 31));
    assert!(other.guessed <= 12, "{other:?}");
}

#[test]
fn a_draft_model_has_the_same_tokenizer() {
    let mut gguf = assay_model::testing::tiny_gguf(Architecture::Llama, 1);
    // Another control token; its last occurrence is in the chat template.
    let at = gguf.windows(6).position(|found| found == b"<|im_s").unwrap();
    gguf[at + 2] = b'x';
    let other = assay_model::import_gguf(&gguf, &mut |_, _| {}).unwrap();
    let other = Arc::new(Artifact::parse(Arc::new(other)).unwrap());
    let refused = Engine::with_draft(model(Architecture::Llama, 1), other, config(1)).map(drop);
    assert_eq!(refused, Err(assay_engine::Error::DraftVocabulary));
}

#[test]
fn guesses_save_steps_where_text_repeats_and_cost_little_where_not() {
    let model = model(Architecture::Llama, 29);
    let steps = |max_guess, request: &Generation| {
        let config = Config { max_guess, ..config(1) };
        let mut engine = Engine::new(Arc::clone(&model), config).unwrap();
        let answer = run(&mut engine, request.clone());
        (answer, engine.stats())
    };
    let mut request = generation(30, 1, greedy(), 120);
    request.end_tokens.clear();
    request.sampling.logit_bias = vec![(9, 1_000_000)];
    let (answer, plain) = steps(0, &request);
    let (guessed, stats) = steps(8, &request);
    assert_eq!(answer, guessed);
    assert!(stats.steps * 3 < plain.steps, "{} steps of {}", stats.steps, plain.steps);

    // A prompt in which all pairs have occurred, and random tokens: everything can be looked up, nothing is right.
    let mut request = generation(3, 1, common::sampled(1), 200);
    request.end_tokens.clear();
    request.sampling.temperature_milli = 100_000;
    request.sampling.logit_bias = (0..267).map(|t| (t, if t < 12 { 0 } else { -10_000_000 })).collect();
    request.prompt = (0..12u32).flat_map(|a| (0..12).flat_map(move |b| [a, b])).collect();
    let (answer, plain) = steps(0, &request);
    let (guessed, stats) = steps(8, &request);
    assert_eq!(answer, guessed);
    assert!(stats.guessed > 0, "there was something to guess");
    assert!(stats.rows < plain.rows + plain.rows / 10, "{stats:?} beside {plain:?}");
}
