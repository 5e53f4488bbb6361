//! Whole games on the real contracts, in a chain in this process: liars of every kind lose to the challenger, and the honest worker wins.
//! Both sides are made anew for every move, as if they had been restarted.
#![allow(clippy::unwrap_used)]

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use assay_dispute::{
    Action, Challenger, Defender, DisputeError, Fault, Game, Settled, State, Turn, batch_of, unsupported,
};
use assay_engine::trace::{Entry, Lie, Part, Trace, part};
use assay_ledger::Genesis;
use assay_ledger::types::{Address, U256};
use assay_model::testing::tiny_gguf;
use assay_model::{Architecture, Artifact, import_gguf};
use assay_receipt::{
    BUNDLE_VERSION, Bundle, Bytes32, Constraint, Domain, FinishReason, Key, Level, Message, Output, Prompt,
    Receipt, Request, Sampling, Signed, Voucher, output_commitment, prompt_commitment, request_commitment,
};
use assay_wallet::abi::text;
use assay_wallet::chain::Chain;
use assay_wallet::client::{ClientError, address_of};
use assay_wallet::registry::sign_worker_key;
use assay_wallet::settlement::{Line, Payable};
use assay_wallet::system::Description;
use node::Node;
use proptest::collection::vec;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

const START: u64 = 1_800_000_000;
const OPG: u128 = 1_000_000_000_000_000_000;
const PROMPT: [u32; 3] = [9, 33, 2];

fn key(seed: u8) -> Key {
    Key::from_bytes([seed; 32]).unwrap()
}

struct World {
    node: Node,
    chain: Chain,
    operator: Key,
    payer: Key,
    worker: Arc<Key>,
    challenger: Key,
    domain: Domain,
    nonce: AtomicU64,
}

/// What stands in the subject's place of a game.
struct Case {
    bundle: Bundle,
    settled: Settled,
}

impl World {
    async fn new() -> World {
        let (operator, payer, worker, challenger) = (key(1), key(2), Arc::new(key(3)), key(4));
        let mut description: Value =
            serde_json::from_str(include_str!("../../../contracts/genesis.example.json")).unwrap();
        let coins = "1000000000000000000000";
        description["chainId"] = json!(7);
        description["timestamp"] = json!(START);
        description["alloc"] = [&operator, &payer, &*worker, &challenger]
            .iter()
            .map(|key| (address_of(key).to_string(), json!(coins)))
            .collect();
        description["supply"][1]["holder"] = text(address_of(&operator));
        description["supply"][2]["holder"] = text(address_of(&payer));
        let genesis: Genesis = Description::from_json(&description.to_string()).unwrap().genesis(0).unwrap();
        let (node, url) = Node::start(&genesis).await;
        let chain = Chain::at(&url).unwrap();
        let contract = chain.system.address("Settlement").unwrap();
        let domain = Domain { chain_id: 7, contract: assay_receipt::Address(contract.0.0) };
        let world =
            World { node, chain, operator, payer, worker, challenger, domain, nonce: AtomicU64::new(1) };
        let at = |name: &str| text(world.chain.system.address(name).unwrap());
        let all = json!((1_000_000 * OPG).to_string());
        let (operator, payer) = (&world.operator, &world.payer);
        world.send(operator, "Opg", "approve", &[at("Registry"), all.clone()]).await;
        world.send(operator, "Registry", "registerOperator", &[json!("Ada"), all.clone()]).await;
        let registry = world.chain.system.address("Registry").unwrap();
        let proof = sign_worker_key(&world.worker, 7, registry, address_of(operator), 1);
        let add = [
            text(world.worker.address()),
            json!("https://192.0.2.1:1"),
            text(Bytes32([9; 32])),
            json!(proof),
        ];
        world.send(operator, "Registry", "addWorker", &add).await;
        world.send(payer, "Opg", "approve", &[at("Deposits"), all.clone()]).await;
        world.send(payer, "Deposits", "deposit", &[text(payer.address()), all.clone()]).await;
        world.send(payer, "Opg", "transfer", &[text(world.challenger.address()), all]).await;
        world
    }

    async fn send(&self, key: &Key, name: &str, function: &str, arguments: &[Value]) {
        self.chain.transact(key, name, function, arguments).await.unwrap();
    }

    /// Lets time pass.
    fn pass(&self, seconds: u64) {
        self.node.pass(seconds);
    }

    async fn opg(&self, who: Address) -> U256 {
        self.chain.number("Opg", "balanceOf", &[text(who)]).await.unwrap()
    }

    async fn bond(&self) -> U256 {
        let operator = [text(self.operator.address())];
        let found = self.chain.view("Registry", "operatorOf", &operator).await.unwrap();
        assay_wallet::abi::number(&found["bond"]).unwrap()
    }

    /// Brings a claimed answer to the chain, whose voucher leaves the prompt's tokens to the worker.
    async fn settle(
        &self,
        model: Bytes32,
        output: &[u32],
        sampling: &Sampling,
        completion_tokens: u32,
    ) -> Case {
        let usage = [PROMPT.len() as u32, completion_tokens];
        self.settle_for(model, output, sampling, usage, |_| Bytes32::ZERO).await
    }

    /// Brings a claimed answer to the chain, with the numbers of tokens that are charged, and with what `fix` makes of the salt in the
    /// voucher.
    async fn settle_for(
        &self,
        model: Bytes32,
        output: &[u32],
        sampling: &Sampling,
        usage: [u32; 2],
        fix: impl Fn(&Bytes32) -> Bytes32,
    ) -> Case {
        self.settle_asked(model, output, sampling, usage, fix, |_| ()).await
    }

    /// The same for a request that `ask` has changed.
    async fn settle_asked(
        &self,
        model: Bytes32,
        output: &[u32],
        sampling: &Sampling,
        [prompt_tokens, completion_tokens]: [u32; 2],
        fix: impl Fn(&Bytes32) -> Bytes32,
        ask: impl Fn(&mut Request),
    ) -> Case {
        let now_ms = self.node.time() * 1000;
        let salt = Bytes32([5; 32]);
        let mut request = Request::from_text(model, "", 64);
        request.prompt = Prompt::Tokens(PROMPT.to_vec());
        request.sampling = sampling.clone();
        ask(&mut request);
        let output = Output {
            text: "an answer".to_owned(),
            tool_calls: None,
            finish_reason: FinishReason::Length,
            tokens: output.to_vec(),
            prompt_tokens,
            completion_tokens,
            logprobs: Vec::new(),
        };
        let mut nonce = [0; 32];
        nonce[16..24].copy_from_slice(&self.nonce.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let price = u128::from(output.prompt_tokens) + 2 * u128::from(completion_tokens);
        let receipt = Receipt {
            worker: self.worker.address(),
            key_epoch: 1,
            model,
            arithmetic: 2,
            level: Level::Signed,
            request: request_commitment(&request, &salt),
            output: output_commitment(&output, &salt),
            chunks: 1,
            chain: Bytes32([3; 32]),
            trace: Bytes32::ZERO,
            prompt_tokens: output.prompt_tokens,
            completion_tokens,
            price,
            payer: self.payer.address(),
            cap: 1000,
            nonce: Bytes32(nonce),
            sequence: 0,
            previous: Bytes32::ZERO,
            received_at_ms: now_ms,
            first_token_at_ms: now_ms,
            finished_at_ms: now_ms,
        };
        // Two others are in the line.
        let mut line = Vec::new();
        for i in 0..3u8 {
            let mut nonce = receipt.nonce;
            nonce.0[31] = i;
            line.push(payable(
                self,
                Signed::sign(&self.worker, &self.domain, Receipt { nonce, ..receipt.clone() }),
                fix(&salt),
            ));
        }
        let receipt = line[0].receipt.clone();
        let leaves: Vec<_> = line.iter().map(Payable::leaf).collect();
        let line = Line::new(line);
        let lines = json!([line.json()]);
        // A worker settles with its own key.
        self.send(&self.worker, "Settlement", "submit", &[text(self.worker.address()), lines]).await;
        let (batch, lines, number) = batch_of(&self.chain, &receipt.statement).await.unwrap().unwrap();
        let other = Settled::new(batch, lines.clone(), number, &leaves[..2], &receipt.statement);
        assert!(other.is_none(), "not the line's leaves");
        let settled = Settled::new(batch, lines, number, &leaves, &receipt.statement).unwrap();
        assert_eq!(settled.opening, line.opening(number, 0).unwrap());
        let bundle = Bundle {
            version: BUNDLE_VERSION,
            domain: self.domain,
            salt,
            request,
            output,
            chunks: Vec::new(),
            receipt,
            audits: Vec::new(),
        };
        Case { bundle, settled }
    }

    fn challenger<'a>(&'a self, case: &'a Case, ours: &Arc<Trace>) -> Challenger<'a> {
        Challenger::new(&self.chain, &self.challenger, &case.bundle, case.settled.prompt, ours.clone())
    }

    /// Opens a dispute and plays it, each side with its own trace, to the end. `worker` says how many moves the worker makes.
    async fn play(&self, case: &Case, ours: &Arc<Trace>, theirs: &Arc<Trace>, worker: usize) -> Outcome {
        self.challenger(case, ours).open(&case.settled).await.unwrap();
        let (mut moves, mut fault, mut error) = (0, None, None);
        loop {
            let challenger = self.challenger(case, ours);
            // Nothing is opened twice.
            let mut game = challenger.open(&case.settled).await.unwrap();
            match challenger.step(&mut game).await {
                Ok(found) => fault = fault.or(found),
                Err(found) => {
                    error.get_or_insert(found);
                }
            }
            let before = game.moves.len();
            if moves < worker {
                let mut defender = Defender::new(self.chain.clone(), self.worker.clone());
                moves += defender.round(|_| async { Some(theirs.clone()) }).await.unwrap().len();
            }
            game.read(&self.chain).await.unwrap();
            if let Some((worker_won, how)) = game.end() {
                let how = how.to_owned();
                return Outcome { worker_won, how, fault, error, game };
            }
            if error.is_some() || (game.moves.len() == before && moves >= worker) {
                self.pass(4_000);
            }
        }
    }
}

/// Whose turn it is to be dishonest, and from which of its traces each of its moves comes; `None` for no move.
type Moves<'a> = Vec<Option<&'a Arc<Trace>>>;

impl World {
    /// Plays a game in which the worker takes each move from another of its traces. Whether it has won.
    async fn play_against_worker(&self, case: &Case, ours: &Arc<Trace>, moves: Moves<'_>) -> bool {
        let mut moves = moves.into_iter();
        loop {
            let challenger = self.challenger(case, ours);
            let mut game = challenger.open(&case.settled).await.unwrap();
            challenger.step(&mut game).await.unwrap();
            let made = moves.next();
            if let Some(Some(trace)) = made {
                let mut defender = Defender::new(self.chain.clone(), self.worker.clone());
                match defender.round(|_| async { Some(trace.clone()) }).await {
                    // What does not follow from the commitment is refused.
                    Ok(_) | Err(ClientError::Reverted(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            game.read(&self.chain).await.unwrap();
            match game.end() {
                Some((worker_won, _)) => return worker_won,
                None if made.is_none() => self.pass(4_000),
                None => {}
            }
        }
    }

    /// Plays a game in which the challenger takes each move from another of its traces. Whether the worker has won.
    async fn play_against_challenger(&self, case: &Case, honest: &Arc<Trace>, moves: Moves<'_>) -> bool {
        let mut game = self.challenger(case, honest).open(&case.settled).await.unwrap();
        let mut moves = moves.into_iter();
        loop {
            let made = moves.next();
            if let Some(Some(trace)) = made {
                // Most of what it could try is refused, by itself or by the contract.
                let _ = self.challenger(case, trace).step(&mut game).await;
            }
            let mut defender = Defender::new(self.chain.clone(), self.worker.clone());
            defender.round(|_| async { Some(honest.clone()) }).await.unwrap();
            game.read(&self.chain).await.unwrap();
            match game.end() {
                Some((worker_won, _)) => return worker_won,
                None if made.is_none() => self.pass(4_000),
                None => {}
            }
        }
    }
}

/// Runs games with moves from any of `traces` in any order, as many as `PROPTEST_CASES` says, or six.
fn any_strategy(traces: &[Arc<Trace>], game: impl Fn(Moves<'_>)) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(6);
    let config = Config { cases, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
    // Mostly one of them all the way, or no game would get beyond its second move.
    let one = (0..traces.len(), vec(0..8 + traces.len(), 12));
    let outcome = TestRunner::new(config).run(&one, |(first, picks)| {
        let pick = |number: usize| match number.checked_sub(7) {
            None => Some(&traces[first]),
            Some(0) => None,
            Some(other) => traces.get(other - 1),
        };
        game(picks.into_iter().map(pick).collect());
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn no_strategy_of_a_liar_wins() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let model_ = model(Architecture::Llama, 1);
    let (honest, of_honest) = answer(&model_, &greedy());
    let wrong = vec![honest[0], (honest[1] + 1) % 267, honest[2]];
    let ours = trace(&model_, &wrong, &greedy());
    let entry = |array, layer| Entry { array, layer, a: 1, b: 1, c: 0 };
    let lying = |entry| {
        Arc::new(Trace::lying(model_.clone(), &PROMPT, &wrong, &greedy(), Lie { entry, bit: 1 }).unwrap())
    };
    let weak = trace(&model(Architecture::Llama, 9), &wrong, &greedy());
    let theirs = [ours.clone(), of_honest, lying(entry(16, 1)), lying(entry(33, 1)), weak];
    any_strategy(&theirs, |moves| {
        runtime.block_on(async {
            let case = world.settle(model_.id(), &wrong, &greedy(), 3).await;
            assert!(!world.play_against_worker(&case, &ours, moves).await);
        });
    });
}

#[test]
fn no_strategy_against_an_honest_worker_wins() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let model_ = model(Architecture::Qwen3, 2);
    let (output, honest) = answer(&model_, &ranked());
    let wrong = vec![output[0], (output[1] + 1) % 267, output[2]];
    let entry = Entry { array: 24, layer: 1, a: 1, b: 1, c: 0 };
    let lie = Trace::lying(model_.clone(), &PROMPT, &output, &ranked(), Lie { entry, bit: 1 }).unwrap();
    let longer = trace(&model_, &[&output[..], &[1]].concat(), &ranked());
    let weak = trace(&model(Architecture::Qwen3, 9), &output, &ranked());
    let theirs = [honest.clone(), trace(&model_, &wrong, &ranked()), Arc::new(lie), longer, weak];
    any_strategy(&theirs, |moves| {
        runtime.block_on(async {
            let case = world.settle(model_.id(), &output, &ranked(), 3).await;
            assert!(world.play_against_challenger(&case, &honest, moves).await);
        });
    });
}

struct Outcome {
    worker_won: bool,
    how: String,
    fault: Option<Fault>,
    error: Option<DisputeError>,
    game: Game,
}

fn payable(world: &World, receipt: Signed<Receipt>, prompt: Bytes32) -> Payable {
    let r = &receipt.statement;
    let voucher = Voucher {
        payer: r.payer,
        worker: r.worker,
        model: r.model,
        request: r.request,
        nonce: r.nonce,
        prompt,
        prompt_price: 1,
        completion_price: 2,
        cap: r.cap,
        expires_at_ms: r.received_at_ms,
    };
    let voucher = Signed::sign(&world.payer, &world.domain, voucher);
    Payable { receipt, voucher }
}

fn model(architecture: Architecture, seed: u64) -> Arc<Artifact> {
    let bytes = import_gguf(&tiny_gguf(architecture, seed), &mut |_, _| {}).unwrap();
    Arc::new(Artifact::parse(Arc::new(bytes)).unwrap())
}

fn greedy() -> Sampling {
    Sampling { temperature_milli: 0, ..Sampling::default() }
}

fn drawn() -> Sampling {
    Sampling {
        temperature_milli: 800,
        min_p_ppm: 20_000,
        repetition_penalty_milli: 1300,
        frequency_penalty_milli: -120,
        seed: 11,
        ..Sampling::default()
    }
}

fn ranked() -> Sampling {
    let logit_bias = vec![(7, 2_500), (300, 9_000), (1, -900), (7, -100), (40, i32::MIN)];
    Sampling { top_k: 40, top_p_ppm: 700_000, logit_bias, ..drawn() }
}

fn trace(model: &Arc<Artifact>, output: &[u32], sampling: &Sampling) -> Arc<Trace> {
    trace_of(model, &PROMPT, output, sampling)
}

fn trace_of(model: &Arc<Artifact>, prompt: &[u32], output: &[u32], sampling: &Sampling) -> Arc<Trace> {
    Arc::new(Trace::new(model.clone(), prompt, output, sampling, &mut |_, _| {}).unwrap())
}

/// What a model says, and the trace of it.
fn answer(model: &Arc<Artifact>, sampling: &Sampling) -> (Vec<u32>, Arc<Trace>) {
    let output = answer_to(model, &PROMPT, sampling);
    let trace = trace(model, &output, sampling);
    (output, trace)
}

fn answer_to(model: &Arc<Artifact>, prompt: &[u32], sampling: &Sampling) -> Vec<u32> {
    let mut output = vec![0];
    loop {
        let next = trace_of(model, prompt, &output, sampling);
        *output.last_mut().unwrap() = *next.tokens().last().unwrap();
        if output.len() == 3 {
            return output;
        }
        output.push(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_other_weights_loses_its_bond() {
    let world = World::new().await;
    let full = model(Architecture::Llama, 1);
    let weak = model(Architecture::Llama, 9);
    let (output, theirs) = answer(&weak, &drawn());
    let ours = trace(&full, &output, &drawn());
    let case = world.settle(full.id(), &output, &drawn(), 3).await;
    let challenger = world.challenger(&case, &ours);
    assert!(matches!(challenger.fault(), Some(Fault::Output(_))), "the other model says something else");
    let (bond, supply) = (world.bond().await, world.chain.number("Opg", "totalSupply", &[]).await.unwrap());
    let before = world.opg(address_of(&world.challenger)).await;
    let payer = [text(world.payer.address())];
    let deposit = world.chain.view("Deposits", "depositOf", &payer).await.unwrap();
    let ended = world.play(&case, &ours, &theirs, usize::MAX).await;
    assert!(!ended.worker_won && ended.how == "refuted" && ended.error.is_none());
    assert!(matches!(ended.fault, Some(Fault::Entry(_))), "{:?}", ended.fault);
    assert_eq!(bond - world.bond().await, U256::from(100 * OPG), "the liar's bond");
    assert_eq!(
        world.opg(address_of(&world.challenger)).await - before,
        U256::from(50 * OPG),
        "half to the winner"
    );
    let burnt = supply - world.chain.number("Opg", "totalSupply", &[]).await.unwrap();
    assert_eq!(burnt, U256::from(50 * OPG));
    let after = world.chain.view("Deposits", "depositOf", &payer).await.unwrap();
    let price = U256::from(case.bundle.receipt.statement.price);
    let [before, after] = [deposit, after].map(|found| assay_wallet::abi::number(&found["balance"]).unwrap());
    assert_eq!(after - before, price, "the caller has its money back");
    // Who did what, read back from the chain.
    let (gas, bytes) = ended.game.cost();
    assert!(gas > 500_000 && bytes > 5_000, "{gas} {bytes}");
    assert!(matches!(ended.game.moves[0].action, Action::Opened));
    assert_eq!(ended.game.moves[1].by, address_of(&world.worker), "its own key plays for the operator");
    // The defender drops what is over and has nothing to conclude.
    let mut defender = Defender::new(world.chain.clone(), world.worker.clone());
    assert!(defender.round(|_| async { None }).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_in_any_kind_of_entry_is_refuted() {
    let world = World::new().await;
    // All of them take a minute.
    let all = std::env::var_os("ASSAY_ALL_ARRAYS").is_some();
    for (architecture, sampling, sample) in [
        (Architecture::Llama, greedy(), [3, 16, 20, 28, 33, 47].as_slice()),
        (Architecture::Qwen3, drawn(), &[1, 11, 24, 42, 54, 62]),
        (Architecture::Qwen2, ranked(), &[54, 57, 58, 59, 60, 61, 63]),
    ] {
        let model = model(architecture, 2);
        let (output, ours) = answer(&model, &sampling);
        for array in 1..assay_engine::trace::ARRAYS {
            let entry = Entry {
                array,
                layer: usize::from(part(array) == Part::Layer),
                a: 1,
                b: if [3, 27, 31, 36, 44, 49, 56, 62, 63].contains(&array) { 0 } else { 1 },
                c: 0,
            };
            let entry =
                [entry, Entry { b: 0, ..entry }].into_iter().find(|e| ours.layout().place(*e).is_some());
            let Some(entry) = entry.filter(|_| all || sample.contains(&array)) else { continue };
            let lie = Lie { entry, bit: 1 };
            let theirs = Trace::lying(model.clone(), &PROMPT, &output, &sampling, lie).unwrap();
            let case = world.settle(model.id(), &output, &sampling, 3).await;
            let ended = world.play(&case, &ours, &Arc::new(theirs), usize::MAX).await;
            assert_eq!(ended.fault, Some(Fault::Entry(entry)), "{:?}", ended.error);
            assert!(!ended.worker_won && ended.how == "refuted");
        }
    }
}

/// What top-k and top-p leave is found in steps, of which any may be a lie.
#[tokio::test(flavor = "multi_thread")]
async fn a_lie_about_the_most_likely_tokens_is_refuted() {
    let world = World::new().await;
    let model = model(Architecture::Llama, 3);
    for (sampling, array) in [
        (ranked(), 58),
        (ranked(), 59),
        (Sampling { top_k: 0, ..ranked() }, 59),
        (Sampling { top_p_ppm: 1_000_000, ..ranked() }, 58),
    ] {
        let (output, ours) = answer(&model, &sampling);
        // The first steps, one for a high bit and a low bit of a rank, the result; what was found, and what is kept in a segment.
        for (b, c, bit) in
            [(0, 0, 63), (0, 1, 70), (1, 1, 0), (9, 0, 40), (40, 1, 64), (64, 0, 3), (65, 0, 9)]
        {
            let entry = Entry { array, layer: 0, a: 1, b, c };
            let lie = Lie { entry, bit };
            let theirs = Trace::lying(model.clone(), &PROMPT, &output, &sampling, lie).unwrap();
            let case = world.settle(model.id(), &output, &sampling, 3).await;
            let ended = world.play(&case, &ours, &Arc::new(theirs), usize::MAX).await;
            assert_eq!(ended.fault, Some(Fault::Entry(entry)), "{:?}", ended.error);
            assert!(!ended.worker_won && ended.how == "refuted");
        }
    }
    // Biases alone, of which one is left out in an entry.
    let biased = Sampling { logit_bias: ranked().logit_bias, ..greedy() };
    let (output, ours) = answer(&model, &biased);
    for b in [1, 7, 40, 200] {
        let entry = Entry { array: 54, layer: 0, a: 1, b, c: 0 };
        let theirs = Trace::lying(model.clone(), &PROMPT, &output, &biased, Lie { entry, bit: 3 }).unwrap();
        let case = world.settle(model.id(), &output, &biased, 3).await;
        let ended = world.play(&case, &ours, &Arc::new(theirs), usize::MAX).await;
        assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Entry(entry))), "{:?}", ended.error);
    }
    // A worker that ignores them draws another token sooner or later.
    let (_, own) = answer(&model, &ranked());
    let (said, theirs) = (0..40)
        .map(|seed| Sampling { top_k: 0, top_p_ppm: 1_000_000, seed, ..ranked() })
        .map(|all| answer(&model, &all))
        .find(|(said, _)| trace(&model, said, &ranked()).tokens() != said)
        .unwrap();
    assert_ne!(own.size(), theirs.size());
    let case = world.settle(model.id(), &said, &ranked(), 3).await;
    let ended = world.play(&case, &trace(&model, &said, &ranked()), &theirs, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Size)));
}

#[tokio::test(flavor = "multi_thread")]
async fn false_outputs_sizes_and_silence_lose() {
    let world = World::new().await;
    let model = model(Architecture::Qwen2, 3);
    let (honest, ours) = answer(&model, &drawn());
    // A wrong token over a true trace of the wrong output.
    let wrong = vec![honest[0], (honest[1] + 1) % 267, honest[2]];
    let lied = trace(&model, &wrong, &drawn());
    let case = world.settle(model.id(), &wrong, &drawn(), 3).await;
    let ended = world.play(&case, &lied, &lied, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Output(1))));
    // A trace of another output: a token that the model was given.
    let case = world.settle(model.id(), &wrong, &drawn(), 3).await;
    let ended = world.play(&case, &lied, &ours, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Input(4))));
    // More tokens are charged than there are; then another length of the trace.
    let case = world.settle(model.id(), &honest, &drawn(), 4).await;
    let ended = world.play(&case, &ours, &ours, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Length)));
    let longer = trace(&model, &[&honest[..], &[1]].concat(), &drawn());
    let case = world.settle(model.id(), &honest, &drawn(), 3).await;
    let ended = world.play(&case, &ours, &longer, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Size)));
    // Silence at once, and after the first reveal.
    let elsewhere = Trace::new(model.clone(), &[9, 33, 4], &honest, &drawn(), &mut |_, _| {}).unwrap();
    let elsewhere = Arc::new(elsewhere);
    for moves in [0, 2] {
        let case = world.settle(model.id(), &honest, &drawn(), 3).await;
        let ended = world.play(&case, &ours, &elsewhere, moves).await;
        assert_eq!((ended.worker_won, ended.how.as_str()), (false, "silence"));
    }
    // Another prompt, which the voucher does not fix, can be shown by nobody: the challenger says so, and loses.
    let case = world.settle(model.id(), &honest, &drawn(), 3).await;
    let ended = world.play(&case, &ours, &elsewhere, usize::MAX).await;
    assert!(matches!(ended.error, Some(DisputeError::Prompt)));
    assert_eq!((ended.worker_won, ended.how.as_str()), (true, "silence"));
}

/// Requests whose answers follow a grammar, by their constraint or by the call that they must make.
fn constrained() -> [fn(&mut Request); 4] {
    fn chat(request: &mut Request, choice: &str) {
        let message = Message { role: "user".to_owned(), content: "so".to_owned(), ..Message::default() };
        request.prompt = Prompt::Chat {
            messages: vec![message],
            tools: Some("[]".to_owned()),
            tool_choice: choice.to_owned(),
            parallel_tool_calls: true,
        };
    }
    [
        |request| request.constraint = Constraint::Json,
        |request| request.constraint = Constraint::Regex("a+".to_owned()),
        |request| chat(request, "required"),
        |request| {
            chat(request, "weather");
            request.constraint = Constraint::Json;
        },
    ]
}

/// What a grammar bans is known to no contract. So nobody is convicted by what follows from it, and everything before it is judged as always.
#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_hides_what_is_chosen_and_nothing_else() {
    let world = World::new().await;
    let model_ = model(Architecture::Llama, 1);
    let (free, _) = answer(&model_, &ranked());
    // What the grammar left to choose from was something else: an honest worker's trace names the token that would have come without it.
    let said = vec![free[0], (free[1] + 1) % 267, free[2]];
    let honest = trace(&model_, &said, &ranked());
    assert_ne!(honest.tokens(), said);
    let entry = |array, b| Entry { array, layer: usize::from(array < 48), a: 1, b, c: 0 };
    let lying = |entry| {
        Arc::new(Trace::lying(model_.clone(), &PROMPT, &said, &ranked(), Lie { entry, bit: 1 }).unwrap())
    };
    let longer = trace(&model_, &[&said[..], &[1]].concat(), &ranked());
    for (i, ask) in constrained().into_iter().enumerate() {
        let settle =
            async || world.settle_asked(model_.id(), &said, &ranked(), [3, 3], |_| Bytes32::ZERO, ask).await;
        // The tokens are nobody's fault, and a challenger that goes on has nothing to say.
        let case = settle().await;
        assert!(unsupported(&case.bundle.request).is_some());
        assert_eq!(world.challenger(&case, &honest).fault(), None);
        let ended = world.play(&case, &honest, &honest, usize::MAX).await;
        assert!(matches!(ended.error, Some(DisputeError::Constrained)), "{:?}", ended.error);
        assert!(ended.worker_won && ended.how == "silence");
        // A challenger that believes in a free choice does not even get its case read.
        let case = settle().await;
        let mut bundle = case.bundle.clone();
        bundle.request.constraint = Constraint::None;
        bundle.request.prompt = Prompt::Tokens(PROMPT.to_vec());
        let mut game = world.challenger(&case, &honest).open(&case.settled).await.unwrap();
        let free = Challenger::new(&world.chain, &world.challenger, &bundle, Bytes32::ZERO, honest.clone());
        assert_eq!(free.fault(), Some(Fault::Output(1)));
        let mut defender = Defender::new(world.chain.clone(), world.worker.clone());
        defender.round(|_| async { Some(honest.clone()) }).await.unwrap();
        let refused = free.step(&mut game).await.unwrap_err().to_string();
        assert!(refused.contains("WrongSubject"), "{refused}");
        // Lies up to the adjusted logits are refuted; the size is, and silence.
        for fault in [entry(16, 0), entry(33, 1), entry(52, 7), entry(53, 7), entry(54, 7)] {
            if i > 0 && fault.array != 33 && fault.array != 54 {
                continue;
            }
            let ended = world.play(&settle().await, &honest, &lying(fault), usize::MAX).await;
            assert_eq!(ended.fault, Some(Fault::Entry(fault)), "{:?}", ended.error);
            assert!(!ended.worker_won && ended.how == "refuted");
        }
        let ended = world.play(&settle().await, &honest, &longer, usize::MAX).await;
        assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Size)));
        // What comes after, it is not.
        for fault in [entry(57, 7), entry(60, 7)] {
            let ended = world.play(&settle().await, &honest, &lying(fault), usize::MAX).await;
            assert!(matches!(ended.error, Some(DisputeError::Constrained)), "{:?}", ended.error);
            assert!(ended.worker_won);
        }
    }
    // A model with other weights is found out, whatever it had to follow.
    let weak = trace(&model(Architecture::Llama, 9), &said, &ranked());
    let case =
        world.settle_asked(model_.id(), &said, &ranked(), [3, 3], |_| Bytes32::ZERO, constrained()[0]).await;
    let ended = world.play(&case, &honest, &weak, usize::MAX).await;
    assert!(!ended.worker_won && ended.how == "refuted", "{:?}", ended.error);
    // A choice of tools that is free constrains nothing.
    let ask = |request: &mut Request| {
        constrained()[2](request);
        let Prompt::Chat { tool_choice, .. } = &mut request.prompt else { panic!() };
        *tool_choice = "auto".to_owned();
    };
    let case = world.settle_asked(model_.id(), &said, &ranked(), [3, 3], |_| Bytes32::ZERO, ask).await;
    assert_eq!(unsupported(&case.bundle.request), None);
    let ended = world.play(&case, &honest, &honest, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::Output(1))), "{:?}", ended.error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_answers_another_prompt_loses() {
    let world = World::new().await;
    let model = model(Architecture::Llama, 1);
    let fix = |salt: &Bytes32| prompt_commitment(&PROMPT, salt);
    let usage = |prompt: &[u32]| [prompt.len() as u32, 3];
    // What it says is true of a shorter or another question; every entry of its trace is right.
    for other in [&[9, 33, 4][..], &[9], &[9, 33, 2, 7]] {
        let said = answer_to(&model, other, &greedy());
        let theirs = trace_of(&model, other, &said, &greedy());
        let ours = trace(&model, &said, &greedy());
        assert_ne!(ours.tokens(), said, "the right answer is another");
        let case = world.settle_for(model.id(), &said, &greedy(), usage(other), fix).await;
        assert_eq!(case.settled.prompt, fix(&case.bundle.salt));
        let ended = world.play(&case, &ours, &theirs, usize::MAX).await;
        assert!(!ended.worker_won && ended.how == "refuted" && ended.error.is_none(), "{:?}", ended.error);
        let expected = if other.len() == PROMPT.len() { Fault::Input(2) } else { Fault::PromptLength };
        assert_eq!(ended.fault, Some(expected));
    }
    // Only the number of tokens is wrong, and with it the price.
    let (said, honest) = answer(&model, &greedy());
    let case = world.settle_for(model.id(), &said, &greedy(), [4, 3], fix).await;
    let ended = world.play(&case, &honest, &honest, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.fault), (false, Some(Fault::PromptLength)));
    // The same is nobody's to judge where the voucher does not fix the prompt.
    let case = world.settle_for(model.id(), &said, &greedy(), [4, 3], |_| Bytes32::ZERO).await;
    let challenger = world.challenger(&case, &honest);
    assert_eq!(challenger.fault(), None);
    // Whoever disputes an honest answer with another prompt's trace, or other tokens than the voucher's, loses.
    let elsewhere = trace_of(&model, &[9, 33, 4], &said, &greedy());
    for ours in [elsewhere, trace_of(&model, &[9, 33], &said, &greedy())] {
        let case = world.settle_for(model.id(), &said, &greedy(), usage(&PROMPT), fix).await;
        let ended = world.play(&case, &ours, &honest, usize::MAX).await;
        assert!(ended.worker_won);
        let error = ended.error.unwrap().to_string();
        assert!(error.contains("WrongTokens"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_worker_wins_and_is_paid() {
    let world = World::new().await;
    let honest = model(Architecture::Llama, 1);
    let (output, theirs) = answer(&honest, &greedy());
    // A challenger with another model.
    let wrong = trace(&model(Architecture::Llama, 9), &output, &greedy());
    let case = world.settle(honest.id(), &output, &greedy(), 3).await;
    let challenger = world.challenger(&case, &theirs);
    assert_eq!(challenger.fault(), None, "who has the model sees that nothing is wrong");
    let (bond, before) = (world.bond().await, world.opg(address_of(&world.operator)).await);
    let ended = world.play(&case, &wrong, &theirs, usize::MAX).await;
    assert_eq!((ended.worker_won, ended.how.as_str()), (true, "silence"));
    let error = ended.error.unwrap().to_string();
    assert!(error.contains("NotThere") || error.contains("NotRefuted"), "{error}");
    assert_eq!(world.bond().await, bond, "the bond is whole");
    assert_eq!(world.opg(address_of(&world.operator)).await - before, U256::from(50 * OPG));
    // And it gets the price when the window is over.
    let mut defender = Defender::new(world.chain.clone(), world.worker.clone());
    assert!(defender.round(|_| async { None }).await.unwrap().is_empty(), "not before");
    world.pass(90_000);
    let mut defender = Defender::new(world.chain.clone(), world.worker.clone());
    let played = defender.round(|_| async { None }).await.unwrap();
    assert_eq!(played.iter().map(|played| played.function).collect::<Vec<_>>(), ["conclude"]);
    let mut defender = Defender::new(world.chain.clone(), world.worker.clone());
    assert!(defender.round(|_| async { None }).await.unwrap().is_empty(), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_move_is_refused() {
    let world = World::new().await;
    let model = model(Architecture::Llama, 1);
    let (output, honest) = answer(&model, &greedy());
    let case = world.settle(model.id(), &output, &greedy(), 3).await;
    let challenger = world.challenger(&case, &honest);
    let mut game = challenger.open(&case.settled).await.unwrap();
    let root = [json!(game.id), text(Bytes32([1; 32])), json!(5)];
    for key in [&world.payer, &world.challenger] {
        assert!(world.chain.transact(key, "Disputes", "commit", &root).await.is_err());
    }
    // It is the worker's turn: nothing happens.
    assert!(challenger.step(&mut game).await.unwrap().is_none());
    assert_eq!(State::read(&world.chain, game.id).await.unwrap().turn, Turn::Commit);
    // A worker of another operator leaves it alone.
    let mut other = Defender::new(world.chain.clone(), Arc::new(key(2)));
    assert!(other.round(|_| async { Some(honest.clone()) }).await.unwrap().is_empty());
    let mut defender = Defender::new(world.chain.clone(), world.worker.clone());
    assert_eq!(defender.round(|_| async { Some(honest.clone()) }).await.unwrap().len(), 1);
    assert!(matches!(challenger.step(&mut game).await, Err(DisputeError::NothingWrong)));
}
