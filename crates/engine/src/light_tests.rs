#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use assay_arithmetic::freivalds;
use assay_arithmetic::reed_solomon::Complex;
use assay_model::testing::{ARCHITECTURES, tiny_gguf};
use assay_model::{Architecture, import_gguf};
use assay_receipt::Sampling;
use proptest::prelude::*;

use super::*;
use crate::{Event, Service};

const SEED: [u8; 32] = [7; 32];

fn model(architecture: Architecture, seed: u64) -> Arc<Artifact> {
    let bytes = import_gguf(&tiny_gguf(architecture, seed), &mut |_, _| {}).unwrap();
    Arc::new(Artifact::parse(Arc::new(bytes)).unwrap())
}

fn key(model: &Artifact) -> Arc<Key> {
    Arc::new(Key::make(model, SEED, &mut |_, _| {}).unwrap())
}

fn config(threads: usize, prefill_chunk: usize) -> Config {
    Config { threads, kv_bytes: 4 << 20, page_tokens: 8, prefill_chunk, ..Config::default() }
}

fn generation(length: u32, sampling: Sampling) -> Generation {
    Generation {
        prompt: (0..length).map(|i| (i.wrapping_mul(2_654_435_761) ^ (i >> 3)) % 267).collect(),
        resume: Vec::new(),
        sampling,
        max_tokens: 12,
        end_tokens: vec![2],
        constraint: None,
        logprobs: Some(2),
    }
}

fn greedy() -> Sampling {
    Sampling { temperature_milli: 0, ..Sampling::default() }
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature_milli: 1200, seed, repetition_penalty_milli: 1100, ..greedy() }
}

fn answer(model: &Arc<Artifact>, generation: &Generation) -> Vec<u32> {
    let mut engine = Engine::new(Arc::clone(model), config(2, 64)).unwrap();
    engine.submit(generation.clone(), Service::default()).unwrap();
    let mut tokens = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { token, .. } = event {
                tokens.push(token);
            }
        }
    }
    tokens
}

fn recorded(model: &Arc<Artifact>, config: Config, generation: &Generation, answer: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    record(model, config, generation, answer, &mut out, &mut |_, _| {}).unwrap();
    out
}

fn check(
    key: &Arc<Key>,
    trace: &[u8],
    config: Config,
    generation: &Generation,
    answer: &[u32],
) -> Result<Replay, Error> {
    let trace = Trace::parse(Arc::new(trace.to_vec()), key.artifact())?;
    Engine::checking(key, trace, config)?.replay(generation, answer)
}

/// An honest trace, taken apart.
struct Case {
    model: Arc<Artifact>,
    key: Arc<Key>,
    generation: Generation,
    answer: Vec<u32>,
    bytes: Vec<u8>,
    front: usize,
    /// By position and number.
    sums: Vec<Vec<Vec<i64>>>,
}

impl Case {
    fn new(architecture: Architecture) -> Case {
        let model = model(architecture, 5);
        let key = key(&model);
        let generation = generation(9, greedy());
        let answer = answer(&model, &generation);
        let bytes = recorded(&model, config(2, 4), &generation, &answer);
        let trace = Trace::parse(Arc::new(bytes.clone()), key.artifact()).unwrap();
        let tokens = [&generation.prompt[..], &answer].concat();
        let front = trace::front(&model, &tokens, 9).len();
        let products = Products::new(model.config());
        let sums = (0..trace.positions()).map(|position| {
            let each = products.at_position(position >= 8).enumerate().map(|(index, (_, product))| {
                let mut sums = vec![0; products.size(product).0];
                assert!(trace.sums(position, index, &mut sums));
                sums
            });
            each.collect()
        });
        let sums = sums.collect();
        Case { model, key, generation, answer, bytes, front, sums }
    }

    fn llama() -> &'static Case {
        static CASE: OnceLock<Case> = OnceLock::new();
        CASE.get_or_init(|| Case::new(Architecture::Llama))
    }

    /// What a checker says of the trace with other sums.
    fn with(&self, change: impl FnOnce(&mut Vec<Vec<Vec<i64>>>)) -> Result<Replay, Error> {
        let mut sums = self.sums.clone();
        change(&mut sums);
        let mut bytes = self.bytes[..self.front].to_vec();
        sums.iter().flatten().for_each(|sums| bytes.extend(trace::pack(sums)));
        self.check(&bytes)
    }

    fn check(&self, bytes: &[u8]) -> Result<Replay, Error> {
        check(&self.key, bytes, config(2, 5), &self.generation, &self.answer)
    }

    fn index(&self, layer: usize, product: Product) -> usize {
        self.key.products.index(layer, product, 0)
    }
}

fn false_product(position: usize, layer: usize, product: Product) -> Result<Replay, Error> {
    Err(Fault::Product { position, layer, product }.into())
}

#[test]
fn a_light_check_is_a_replay_in_every_family() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 3);
        let key = key(&model);
        for (number, sampling) in [greedy(), sampled(4)].into_iter().enumerate() {
            let generation = generation(41, sampling);
            let answer = answer(&model, &generation);
            let expected = Engine::new(Arc::clone(&model), config(1, 64)).unwrap();
            let expected = { expected }.replay(&generation, &answer).unwrap();
            assert!(matches!(&expected, Replay::Agrees { logprobs, .. } if logprobs.len() == answer.len()));
            // Threads and batches change neither the trace nor what a checker says of it.
            let bytes = recorded(&model, config(1, 1), &generation, &answer);
            for (threads, chunk) in [(2, 7), (3, 64)] {
                assert_eq!(recorded(&model, config(threads, chunk), &generation, &answer), bytes);
                let found = check(&key, &bytes, config(threads, chunk), &generation, &answer).unwrap();
                assert_eq!(found, expected, "{architecture:?} {number}");
            }
        }
    }
}

#[test]
fn an_answer_that_the_model_does_not_give_is_found() {
    let Case { model, key, generation, .. } = Case::llama();
    // A right trace, of an answer that was chosen otherwise than was asked for.
    let mut engine = Engine::new(Arc::clone(model), config(1, 64)).unwrap();
    let (other, claimed, expected) = (0..100)
        .map(|seed| {
            let sampling = Sampling { temperature_milli: 3000, ..sampled(seed) };
            let other = Generation { sampling, ..generation.clone() };
            let claimed = answer(model, &other);
            let expected = engine.replay(generation, &claimed).unwrap();
            (other, claimed, expected)
        })
        .find(|(_, claimed, expected)| {
            matches!(*expected, Replay::Differs { position, .. } if position > 0 && (position as usize) + 2 < claimed.len())
        })
        .unwrap();
    let bytes = recorded(model, config(2, 8), &other, &claimed);
    for chunk in [1, 64] {
        assert_eq!(check(key, &bytes, config(2, chunk), generation, &claimed).unwrap(), expected);
    }
    // What is false after the token that differs does not count; what is false before it decides nothing.
    let Replay::Differs { position, .. } = expected else { unreachable!() };
    let head = key.products.index(model.config().layers, Product::Output, 0);
    let at = 8 + position as usize;
    let trace = Trace::parse(Arc::new(bytes.clone()), key.artifact()).unwrap();
    for (false_one, found) in [(at + 1, Ok(expected.clone())), (at, false_product(at, 2, Product::Output))] {
        let mut out = bytes[..trace.place(false_one, head)].to_vec();
        let mut sums = vec![0; 267];
        assert!(trace.sums(false_one, head, &mut sums));
        sums[0] += 1;
        out.extend(trace::pack(&sums));
        let next = trace.place(false_one, head) + trace::pack(&sums).len();
        out.extend(&bytes[next..]);
        for chunk in [1, 64] {
            assert_eq!(check(key, &out, config(2, chunk), generation, &claimed), found, "{chunk}");
        }
    }
    // Nobody can make a trace that shows it to be right.
    let error = record(model, config(1, 8), generation, &claimed, &mut Vec::new(), &mut |_, _| {});
    assert!(matches!(error, Err(RecordError::Differs(found)) if found == position));
    let error = record(model, config(1, 8), generation, &[], &mut Vec::new(), &mut |_, _| {});
    assert!(matches!(error, Err(RecordError::Empty)));
}

#[test]
fn each_false_sum_is_found_where_it_is() {
    for architecture in
        [Architecture::Llama, Architecture::Qwen2, Architecture::Gemma3, Architecture::Qwen3Moe]
    {
        let case = Case::new(architecture);
        assert!(case.with(|_| {}).is_ok());
        for position in [0, 8, case.sums.len() - 1] {
            let products = case.key.products.at_position(position >= 8);
            for (index, (layer, product)) in products.enumerate() {
                let last = case.sums[position][index].len() - 1;
                for (row, error) in [(0, 1), (last, -1)] {
                    let found = case.with(|sums| sums[position][index][row] += error);
                    assert_eq!(found, false_product(position, layer, product), "{architecture:?}");
                }
            }
        }
    }
}

#[test]
fn sums_of_another_place_are_found() {
    let case = Case::llama();
    let (layers, last) = (case.model.config().layers, case.sums.len() - 1);
    let products = [
        Product::Query,
        Product::Key,
        Product::Value,
        Product::Attention,
        Product::Gate,
        Product::Up,
        Product::Down,
    ];
    for product in products {
        let (first, second) = (case.index(0, product), case.index(1, product));
        // Two rows, two tokens, two layers, each other's.
        let found = case.with(|sums| {
            let sums = &mut sums[3][first];
            assert_ne!(sums[0], sums[1]);
            sums.swap(0, 1);
        });
        assert_eq!(found, false_product(3, 0, product));
        let found = case.with(|sums| {
            let (a, b) = sums.split_at_mut(4);
            std::mem::swap(&mut a[3][first], &mut b[0][first]);
        });
        assert_eq!(found, false_product(3, 0, product));
        let found = case.with(|sums| sums[3].swap(first, second));
        assert_eq!(found, false_product(3, 0, product));
    }
    let logits = case.index(layers, Product::Output);
    let found = case.with(|sums| {
        let (a, b) = sums.split_at_mut(last);
        std::mem::swap(&mut a[last - 1][logits], &mut b[0][logits]);
    });
    assert_eq!(found, false_product(last - 1, layers, Product::Output));
    // Gate and up have one shape, as keys and values have.
    let found = case.with(|sums| sums[2].swap(case.index(1, Product::Gate), case.index(1, Product::Up)));
    assert_eq!(found, false_product(2, 1, Product::Gate));
}

#[test]
fn errors_that_cancel_out_are_found() {
    let case = Case::llama();
    let layers = case.model.config().layers;
    // Within a product, between two products, between two tokens.
    let found = case.with(|sums| {
        sums[1][case.index(0, Product::Up)][0] += 5;
        sums[1][case.index(0, Product::Up)][1] -= 5;
    });
    assert_eq!(found, false_product(1, 0, Product::Up));
    let found = case.with(|sums| {
        sums[1][case.index(1, Product::Query)][0] += 1;
        sums[1][case.index(1, Product::Key)][0] -= 1;
    });
    assert_eq!(found, false_product(1, 1, Product::Query));
    let found = case.with(|sums| {
        sums[5][case.index(1, Product::Down)][3] += 1 << 20;
        sums[6][case.index(1, Product::Down)][3] -= 1 << 20;
    });
    assert_eq!(found, false_product(5, 1, Product::Down));
    // So small that nothing after it changes: the lowest bit of a logit that nobody chooses.
    let found = case.with(|sums| sums[9][case.index(layers, Product::Output)][266] ^= 1);
    assert_eq!(found, false_product(9, layers, Product::Output));
    // By the prime, which a sum cannot hold.
    let mut wide = case.bytes[..case.front].to_vec();
    for (i, sums) in case.sums.iter().flatten().enumerate() {
        let mut sums = sums.clone();
        sums[0] += if i == 7 { assay_arithmetic::freivalds::P as i64 } else { 0 };
        wide.extend(trace::pack(&sums));
    }
    assert_eq!(case.check(&wide), Err(Fault::Form("a sum is wider than a sum can be").into()));
}

/// Everything follows from one false product, as in the trace of another model under this one's name.
#[test]
fn a_weaker_model_is_found_at_its_first_product() {
    let case = Case::llama();
    let bytes = import_gguf(&tiny_gguf(Architecture::Llama, 5), &mut |_, _| {}).unwrap();
    let weak = Arc::new(Artifact::parse(Arc::new(assay_model::weaken(&bytes).unwrap())).unwrap());
    let theirs = answer(&weak, &case.generation);
    let mut bytes = recorded(&weak, config(1, 8), &case.generation, &theirs);
    let honest = Fault::Model { trace: weak.id(), key: case.model.id() };
    assert_eq!(check(&case.key, &bytes, config(1, 8), &case.generation, &theirs), Err(honest.into()));
    bytes[24..56].copy_from_slice(&case.model.id().0);
    assert_eq!(
        check(&case.key, &bytes, config(1, 8), &case.generation, &theirs),
        false_product(0, 0, Product::Query)
    );
    // And the key of another model refuses everything.
    let other = key(&model(Architecture::Llama, 6));
    let found = check(&other, &case.bytes, config(1, 8), &case.generation, &case.answer);
    assert!(matches!(found, Err(Error::Light(Fault::Model { .. }))));
    let mut renamed = case.bytes.clone();
    renamed[24..56].copy_from_slice(&other.model().0);
    let found = check(&other, &renamed, config(1, 8), &case.generation, &case.answer);
    assert!(matches!(found, Err(Error::Light(Fault::Embedding { .. }))));
    // Another seed checks as well as this one.
    let other = Arc::new(Key::make(&case.model, [8; 32], &mut |_, _| {}).unwrap());
    assert!(check(&other, &case.bytes, config(1, 8), &case.generation, &case.answer).is_ok());
}

#[test]
fn false_embeddings_and_rotary_tables_are_found() {
    let case = Case::llama();
    let (dim, pairs) = (case.model.config().dim, case.model.config().rope_pairs());
    let positions = case.sums.len();
    let tables = 56 + 8 * pairs * positions;
    for position in [0, positions - 1] {
        for entry in [0, 2 * pairs - 1] {
            let mut bytes = case.bytes.clone();
            bytes[56 + 8 * pairs * position + 4 * entry] ^= 1;
            assert_eq!(case.check(&bytes), Err(Fault::Rope { position }.into()));
        }
    }
    let token =
        |i: usize| u32::from_le_bytes(case.bytes[tables + i * (4 + 2 * dim)..][..4].try_into().unwrap());
    let mut bytes = case.bytes.clone();
    bytes[tables + 4 + 2 * dim - 2] ^= 1;
    assert_eq!(case.check(&bytes), Err(Fault::Embedding { token: token(0) }.into()));
    // Another token's embedding.
    let mut bytes = case.bytes.clone();
    bytes.copy_within(tables + 4..tables + 4 + 2 * dim, tables + 4 + 4 + 2 * dim);
    assert_eq!(case.check(&bytes), Err(Fault::Embedding { token: token(1) }.into()));
    // A right embedding of a token that the text does not have, in the place of one that it has.
    let mut bytes = case.bytes.clone();
    let other = (token(0) + 1..token(1)).next().unwrap();
    let mut weights = vec![0; dim];
    case.model.embedding().row(other as usize, &mut weights);
    bytes[tables..tables + 4].copy_from_slice(&other.to_le_bytes());
    for (at, weight) in weights.iter().enumerate() {
        bytes[tables + 4 + 2 * at..][..2].copy_from_slice(&weight.to_le_bytes());
    }
    assert_eq!(case.check(&bytes), Err(Fault::Text.into()));
}

#[test]
fn a_trace_has_one_length_and_one_text() {
    let case = Case::llama();
    let parse = |bytes: &[u8]| Trace::parse(Arc::new(bytes.to_vec()), case.key.artifact());
    for length in
        (0..case.bytes.len()).step_by(97).chain([7, 8, 12, 55, 56, case.front, case.bytes.len() - 1])
    {
        assert!(parse(&case.bytes[..length]).is_err(), "{length}");
    }
    let longer = [&case.bytes[..], &[0]].concat();
    assert_eq!(parse(&longer).unwrap_err(), Fault::Form("it goes on after its end"));
    assert_eq!(parse(b"another file").unwrap_err(), Fault::NotATrace);
    let change = |at: usize, number: u32| {
        let mut bytes = case.bytes.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        parse(&bytes).unwrap_err()
    };
    assert_eq!(change(8, 2), Fault::Version(2));
    for (at, number) in [(12, 0), (16, 0), (12, u32::MAX), (16, u32::MAX), (20, u32::MAX), (20, 0)] {
        assert!(matches!(change(at, number), Fault::Form(_)), "{at} {number}");
    }
    // Prompt and answer are cut elsewhere.
    let trace = parse(&case.bytes).unwrap();
    let mut engine = Engine::checking(&case.key, trace.clone(), config(1, 8)).unwrap();
    let mut other = case.generation.clone();
    other.prompt.push(case.answer[0]);
    assert_eq!(engine.replay(&other, &case.answer[1..]), Err(Fault::Text.into()));
    let mut claimed = case.answer.clone();
    claimed.push(3);
    assert_eq!(engine.replay(&case.generation, &claimed), Err(Fault::Text.into()));
    // It can replay and nothing else, more than once.
    assert_eq!(engine.submit(case.generation.clone(), Service::default()), Err(Fault::Text.into()));
    assert!(matches!(engine.replay(&case.generation, &case.answer), Ok(Replay::Agrees { .. })));
    assert!(matches!(engine.replay(&case.generation, &case.answer), Ok(Replay::Agrees { .. })));
    let bare = Arc::clone(engine.artifact());
    assert!(matches!(Engine::new(Arc::clone(&bare), config(1, 8)), Err(Error::NoWeights)));
    assert!(matches!(Engine::with_draft(Arc::clone(&case.model), bare, config(1, 8)), Err(Error::NoWeights)));
}

#[test]
fn keys_come_back_and_damaged_ones_do_not() {
    let case = Case::llama();
    let bytes = case.key.to_bytes();
    let again = Key::from_bytes(&bytes).unwrap();
    assert_eq!(again.to_bytes(), bytes);
    assert_eq!(again.model(), case.model.id());
    assert_eq!(key(&case.model).to_bytes(), bytes, "made by one thread or many");
    let found = check(&Arc::new(again), &case.bytes, config(1, 8), &case.generation, &case.answer);
    assert!(matches!(found, Ok(Replay::Agrees { .. })));
    assert!(matches!(Key::from_bytes(b"else"), Err(KeyError::NotAKey)));
    let mut other = bytes.clone();
    other[8] = 2;
    assert!(matches!(Key::from_bytes(&other), Err(KeyError::Version(2))));
    for at in (12..bytes.len()).step_by(411) {
        let mut other = bytes.clone();
        other[at] ^= 4;
        assert!(matches!(Key::from_bytes(&other), Err(KeyError::Damaged)), "{at}");
        assert!(Key::from_bytes(&bytes[..at]).is_err());
    }
    // With a right hash, but lengths that lead nowhere.
    for (at, value) in [(48, u64::MAX), (48, 1), (56, u64::MAX), (56, 0), (56, 1 << 40)] {
        let mut other = bytes[..bytes.len() - 32].to_vec();
        other[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let hash = assay_receipt::keccak256(&other);
        other.extend(hash.0);
        assert!(Key::from_bytes(&other).is_err(), "{at} {value}");
    }
    let shown = format!("{:?}", case.key);
    assert!(shown.len() < 100 && !shown.contains("seed"), "{shown}");
    let bare = Key::make(case.key.artifact(), SEED, &mut |_, _| {});
    assert!(matches!(bare, Err(KeyError::NoWeights)));
}

/// An honest proof, taken apart.
struct Proven {
    commitment: Arc<Commitment>,
    bytes: Vec<u8>,
    /// Where the projections, the sums of rows and the opened columns begin.
    columns: usize,
    sums: usize,
    opened: usize,
}

impl Proven {
    fn new(case: &Case) -> Proven {
        let commitment = Arc::new(Commitment::make(&case.model, &mut |_, _| {}).unwrap());
        let bytes = proven(&case.model, &commitment, (&case.generation.prompt, &case.answer), &case.bytes);
        let opened = bytes.len() - 16 * commitment::QUERIES * commitment.layout.rows;
        let sums: usize = commitment.layout.classes.iter().map(|class| class.message_len()).sum();
        let columns = 48 + case.bytes.len();
        Proven { commitment, bytes, columns, sums: opened - 16 * sums, opened }
    }

    fn llama() -> &'static Proven {
        static PROVEN: OnceLock<Proven> = OnceLock::new();
        PROVEN.get_or_init(|| Proven::new(Case::llama()))
    }

    fn check(&self, bytes: &[u8]) -> Result<Replay, Error> {
        let case = Case::llama();
        proved(&self.commitment, bytes, &case.generation, &case.answer)
    }

    /// What a verifier says when these bytes have others in their place, each number still below the prime.
    fn with(&self, at: usize, change: impl FnOnce(&mut [u8])) -> Result<Replay, Error> {
        let mut bytes = self.bytes.clone();
        change(&mut bytes[at..]);
        self.check(&bytes)
    }
}

fn prover(model: &Artifact) -> opening::Prover<'_> {
    opening::Prover::new(model, rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap())
}

/// The proof of a trace, true or not.
fn proven(model: &Artifact, commitment: &Commitment, text: (&[u32], &[u32]), trace: &[u8]) -> Vec<u8> {
    let mut steps = Vec::new();
    let hash = blake3::hash(trace).into();
    let opening = prover(model).open(&commitment.id(), text, &hash, &mut |done, all| steps.push((done, all)));
    assert!(steps.is_sorted() && steps.last().is_some_and(|(done, all)| done == all));
    let head = [&PROOF_MAGIC[..], &[1, 0, 0, 0, 0, 0, 0, 0], &commitment.id().0].concat();
    [&head, trace, &opening].concat()
}

fn proved(
    commitment: &Arc<Commitment>,
    bytes: &[u8],
    generation: &Generation,
    answer: &[u32],
) -> Result<Replay, Error> {
    let proof = Proof::parse(Arc::new(bytes.to_vec()), commitment)?;
    Engine::verifying(commitment, proof, (&generation.prompt, answer), config(2, 5))?
        .replay(generation, answer)
}

#[test]
fn a_proof_is_a_replay_in_every_family() {
    for architecture in ARCHITECTURES {
        let model = model(architecture, 3);
        let commitment = Arc::new(Commitment::make(&model, &mut |_, _| {}).unwrap());
        let generation = generation(11, sampled(4));
        let answer = answer(&model, &generation);
        let expected = Engine::new(Arc::clone(&model), config(1, 64)).unwrap();
        let expected = { expected }.replay(&generation, &answer).unwrap();
        let trace = recorded(&model, config(2, 8), &generation, &answer);
        let bytes = proven(&model, &commitment, (&generation.prompt, &answer), &trace);
        assert_eq!(proved(&commitment, &bytes, &generation, &answer).unwrap(), expected, "{architecture:?}");
        // Threads change nothing.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = pool.install(|| Commitment::make(&model, &mut |_, _| {}).unwrap());
        assert_eq!(again.to_bytes(), commitment.to_bytes());
        let mut out = Vec::new();
        let config = config(1, 3);
        prove(&model, config, commitment.id(), &generation, &answer, &mut out, &mut |_, _| {}).unwrap();
        assert!(out == bytes, "{architecture:?}");
    }
}

/// The prover is honest, but for the trace, which it makes its challenges from.
#[test]
fn each_false_sum_of_a_proof_is_found_where_it_is() {
    for architecture in [Architecture::Llama, Architecture::Qwen3Moe] {
        let case = Case::new(architecture);
        let commitment = Arc::new(Commitment::make(&case.model, &mut |_, _| {}).unwrap());
        let text = (&case.generation.prompt[..], &case.answer[..]);
        let last = case.sums.len() - 1;
        for (layer, product) in case.key.products.at_position(true).collect::<Vec<_>>() {
            for (row, error) in [(0, 1), (usize::MAX, -1)] {
                let mut sums = case.sums.clone();
                let index = case.key.products.index(layer, product, 0);
                let row = row.min(sums[last][index].len() - 1);
                sums[last][index][row] += error;
                let mut trace = case.bytes[..case.front].to_vec();
                sums.iter().flatten().for_each(|sums| trace.extend(trace::pack(sums)));
                let bytes = proven(&case.model, &commitment, text, &trace);
                let found = proved(&commitment, &bytes, &case.generation, &case.answer);
                assert_eq!(found, false_product(last, layer, product), "{architecture:?}");
            }
        }
        // Embeddings and rotary tables too.
        let at = case.front - 2;
        for (at, which) in [(57, "rotary"), (at, "embedding")] {
            let mut trace = case.bytes.clone();
            trace[at] ^= 1;
            let bytes = proven(&case.model, &commitment, text, &trace);
            let found = proved(&commitment, &bytes, &case.generation, &case.answer).unwrap_err();
            assert!(found.to_string().contains(which), "{found}");
        }
    }
}

/// Every message of a prover that lies in it, with challenges that follow from its lie or not.
#[test]
fn false_messages_are_found() {
    let proven = Proven::llama();
    assert!(proven.check(&proven.bytes).is_ok());
    let opening = |found: Result<Replay, Error>, says: &str| match found {
        Err(Error::Light(Fault::Opening(fault))) => assert!(fault.contains(says), "{fault}"),
        other => panic!("{other:?}"),
    };
    let add = |bytes: &mut [u8], at: usize, amount: Complex| {
        let number = Complex::from_bytes(bytes[at..at + 16].try_into().unwrap()).unwrap() + amount;
        bytes[at..at + 16].copy_from_slice(&number.to_bytes());
    };
    let some = Complex::of_integers(5, -3);
    let contradiction = "contradict each other";
    // A projection, a sum of rows, and numbers of a column; the first and the last of each.
    for at in [proven.columns, proven.sums - 16] {
        opening(proven.with(at, |bytes| add(bytes, 0, some)), contradiction);
    }
    for at in [proven.sums, proven.opened - 16] {
        opening(proven.with(at, |bytes| add(bytes, 0, some)), contradiction);
    }
    for at in [proven.opened, proven.bytes.len() - 16] {
        opening(proven.with(at, |bytes| add(bytes, 0, some)), "a column is not");
    }
    // Columns in each other's place.
    let column = 16 * proven.commitment.layout.rows;
    let swapped = proven.with(proven.opened, |bytes| {
        let (a, b) = bytes.split_at_mut(column);
        a.swap_with_slice(&mut b[..column]);
    });
    opening(swapped, "a column is not");

    // Projections and sums that agree with each other, and are not the model's: only columns tell. The prover goes on from its lie.
    let (case, commitment) = (Case::llama(), &proven.commitment);
    let layout = &commitment.layout;
    let text = (&case.generation.prompt[..], &case.answer[..]);
    let trace = blake3::hash(&case.bytes).into();
    let seed = opening::statement(&commitment.id(), text.0, text.1, &trace);
    let weights = opening::Weights::new(&seed, layout);
    let mut lie = proven.bytes.clone();
    assert_eq!(layout.blocks[0].class, 0);
    add(&mut lie, proven.columns, some);
    let seed = opening::after(&seed, &lie[proven.columns..proven.sums]);
    let mix = opening::numbers(&seed, layout.blocks.len());
    // The true sums for these challenges, and then the one number that makes up for the lie.
    let sums = prover(&case.model).sums_of_rows(&opening::combination(layout, &weights, &mix));
    lie[proven.sums..proven.opened].copy_from_slice(&sums);
    opening(proven.check(&lie), contradiction);
    let inverse = |number: Complex| {
        // The power P² - 2.
        let exponent = u128::from(freivalds::P) * u128::from(freivalds::P) - 2;
        (0..122).rev().fold(Complex::ONE, |all, bit| {
            let square = all * all;
            if exponent >> bit & 1 == 1 { square * number } else { square }
        })
    };
    assert_eq!(inverse(some) * some, Complex::ONE);
    add(&mut lie, proven.sums, some * mix[0] * inverse(weights.beside[0]));
    let seed = opening::after(&seed, &lie[proven.sums..proven.opened]);
    let places = opening::places(&seed, layout);
    let opened = prover(&case.model).open_columns(&places, &mut |_| {});
    lie[proven.opened..].copy_from_slice(&opened);
    opening(proven.check(&lie), "a sum of rows is not");
}

#[test]
fn a_proof_is_about_one_text_model_and_trace() {
    let (case, proven) = (Case::llama(), Proven::llama());
    // Another answer, or the same tokens cut elsewhere.
    let mut other = case.generation.clone();
    other.prompt.push(case.answer[0]);
    let found = proved(&proven.commitment, &proven.bytes, &other, &case.answer[1..]);
    assert!(matches!(found, Err(Error::Light(Fault::Opening(_)))), "{found:?}");
    // An engine for one text runs no other.
    let parse = |bytes: &[u8]| Proof::parse(Arc::new(bytes.to_vec()), &proven.commitment);
    let text = (&case.generation.prompt[..], &case.answer[..]);
    let proof = parse(&proven.bytes).unwrap();
    let mut engine = Engine::verifying(&proven.commitment, proof, text, config(1, 8)).unwrap();
    let mut swapped = case.generation.clone();
    swapped.prompt.swap(0, 1);
    assert_ne!(swapped.prompt, case.generation.prompt);
    assert_eq!(engine.replay(&swapped, &case.answer), Err(Fault::Text.into()));
    assert!(matches!(engine.replay(&case.generation, &case.answer), Ok(Replay::Agrees { .. })));
    // Another trace of the same text cannot stand in its place.
    let found = proven.with(proven.columns - 1, |bytes| bytes[0] ^= 1);
    assert!(matches!(found, Err(Error::Light(Fault::Opening(_)))), "{found:?}");
    // Another commitment refuses the proof, also under its own name.
    let other = model(Architecture::Llama, 6);
    let other = Arc::new(Commitment::make(&other, &mut |_, _| {}).unwrap());
    let refused = Proof::parse(Arc::new(proven.bytes.clone()), &other).unwrap_err();
    assert_eq!(refused, Fault::Commitment { proof: proven.commitment.id(), key: other.id() });
    let mut renamed = proven.bytes.clone();
    renamed[16..48].copy_from_slice(&other.id().0);
    assert!(proved(&other, &renamed, &case.generation, &case.answer).is_err());
    let mut renamed_trace = renamed.clone();
    renamed_trace[48 + 24..48 + 56].copy_from_slice(&other.model().0);
    let found = proved(&other, &renamed_trace, &case.generation, &case.answer);
    assert!(matches!(found, Err(Error::Light(Fault::Opening(_)))), "{found:?}");
    // Lengths, heads and numbers beyond the prime.
    for length in [0, 8, 47, 48, 64, proven.columns, proven.sums, proven.opened + 1, proven.bytes.len() - 1] {
        assert!(parse(&proven.bytes[..length]).is_err(), "{length}");
    }
    assert!(parse(&[&proven.bytes[..], &[0]].concat()).is_err());
    assert_eq!(parse(&case.bytes).unwrap_err(), Fault::NotAProof);
    for (at, value) in [(8, 2), (12, 1)] {
        let mut bytes = proven.bytes.clone();
        bytes[at] = value;
        assert!(parse(&bytes).is_err(), "{at}");
    }
    let mut bytes = proven.bytes.clone();
    bytes[proven.columns..][..8].copy_from_slice(&freivalds::P.to_le_bytes());
    assert_eq!(parse(&bytes).unwrap_err(), Fault::Form("a number is not below the prime"));
}

#[test]
fn commitments_come_back_and_damaged_ones_do_not() {
    let case = Case::llama();
    let commitment = &Proven::llama().commitment;
    let bytes = commitment.to_bytes();
    let again = Commitment::from_bytes(&bytes).unwrap();
    assert_eq!((again.to_bytes(), again.id()), (bytes.clone(), commitment.id()));
    assert_eq!(bytes[bytes.len() - 32..], commitment.id().0);
    assert!(matches!(Commitment::from_bytes(&case.key.to_bytes()), Err(KeyError::NotAKey)));
    assert!(matches!(Key::from_bytes(&bytes), Err(KeyError::NotAKey)));
    for at in (12..bytes.len()).step_by(411) {
        let mut other = bytes.clone();
        other[at] ^= 4;
        assert!(matches!(Commitment::from_bytes(&other), Err(KeyError::Damaged)), "{at}");
        assert!(Commitment::from_bytes(&bytes[..at]).is_err());
    }
    // With a right hash, but a hash less or more.
    let content = &bytes[..bytes.len() - 32];
    for other in [&content[..content.len() - 32], &[content, &[0; 32]].concat(), &[content, &[0]].concat()] {
        let sealed = [other, &assay_receipt::keccak256(other).0].concat();
        assert!(matches!(Commitment::from_bytes(&sealed), Err(KeyError::Damaged)));
    }
    let bare = Commitment::make(case.key.artifact(), &mut |_, _| {});
    assert!(matches!(bare, Err(KeyError::NoWeights)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// No changed byte of a proof passes, wherever it is.
    #[test]
    fn every_byte_of_a_proof_counts(at: prop::sample::Index, bit in 0u32..8, in_trace: bool) {
        let proven = Proven::llama();
        let mut bytes = proven.bytes.clone();
        let (front, back) = (proven.columns, bytes.len() - proven.columns);
        let at = if in_trace { at.index(front) } else { front + at.index(back) };
        bytes[at] ^= 1u8 << bit;
        prop_assert!(proven.check(&bytes).is_err(), "{}", at);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// No changed byte passes, wherever it is.
    #[test]
    fn every_byte_counts(at: prop::sample::Index, bit in 0u32..8) {
        let case = Case::llama();
        let mut bytes = case.bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(case.check(&bytes).is_err(), "{}", at);
    }
}
