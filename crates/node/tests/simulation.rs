//! Validators in a simulated network, with crashes, partitions, lossy links, elections and cheaters: never two finalized histories, the same
//! state everywhere, progress after healing, and stake lost by who cheated alone. Every run follows from its seed. `ASSAY_SEEDS=1000 cargo test --release -p assay-node --test
//! simulation` tries many.
#![allow(clippy::unwrap_used)]

#[path = "../../ledger/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use assay_ledger::types::{Address, TxKind, U256, hex};
use assay_ledger::{
    Committee, EVIDENCE, Genesis, Message, Overrides, PoolLimits, Transaction, TxReceipt as _,
    simulate as call,
};
use assay_node::chain::{Chain, ChainError, Origin};
use assay_node::consensus::{
    CHANNELS, Channels, End, Pace, Participation, Timepiece, check_finalization, largest_message, peers,
    quota, start,
};
use assay_node::follow::{FollowError, MAX_BLOCKS, Proven, Source, accept, follow, forward};
use assay_node::history::History;
use assay_verify::finality::LightClient;
use assay_wallet::abi::text;
use assay_wallet::system::{Description, System, contract};
use common::{STAKING, Wallet, elected, with_election};
use commonware_codec::Encode;
use commonware_cryptography::Signer;
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_p2p::simulated::{self, Link, Network, Oracle, SplitOrigin, SplitTarget};
use commonware_p2p::{Manager, Receiver, Recipients, Sender};
use commonware_runtime::deterministic::{self, Context};
use commonware_runtime::{Clock, Handle, Runner, Spawner, Supervisor};
use commonware_utils::ordered::Set;
use commonware_utils::{NZUsize, Probability};
use serde_json::{Value, json};

/// In the committee from the genesis on.
const VALIDATORS: usize = 4;
/// Blocks of an epoch where there are elections.
const EPOCH: u64 = 8;
/// Where absences count: each of [`VALIDATORS`] has a dozen turns.
const LONG_EPOCH: u64 = 48;

fn public(index: usize) -> Vec<u8> {
    PrivateKey::from_seed(index as u64).public_key().encode().to_vec()
}

/// What a node's JSON-RPC gives those who follow it.
#[derive(Clone)]
struct Peer(Arc<Chain>);

impl Source for Peer {
    async fn after(&self, number: u64) -> Result<Option<Proven>, String> {
        let history = self.0.history();
        let (mut blocks, mut last) = (Vec::new(), None);
        for number in (number + 1..).take(MAX_BLOCKS as usize) {
            let Some(stored) = history.block(number).unwrap() else { break };
            let boundary = !stored.block.header.extra_data.is_empty();
            blocks.push(stored.block);
            if let Some(finalization) = history.finalization(number).unwrap() {
                last = Some((blocks.len(), finalization));
            }
            if boundary {
                break;
            }
        }
        Ok(last.map(|(count, finalization)| {
            blocks.truncate(count);
            Proven { blocks, finalization }
        }))
    }

    async fn send(&self, transaction: &Transaction) -> Result<(), String> {
        self.0.add(transaction.clone(), Origin::Local).map(drop).map_err(|error| error.to_string())
    }
}

struct Validator {
    key: PrivateKey,
    history: History,
    chain: Arc<Chain>,
    handle: Option<Handle<()>>,
    starts: usize,
    /// Seconds by which its clock is ahead.
    ahead: Arc<AtomicI64>,
}

struct World {
    context: Context,
    oracle: Oracle<PublicKey, Context>,
    genesis: Genesis,
    validators: Vec<Validator>,
}

fn link(success: f64, latency: u64) -> Link {
    Link {
        latency: Duration::from_millis(latency),
        jitter: Duration::from_millis(latency / 2),
        success_rate: Probability::try_from(success).unwrap(),
    }
}

impl World {
    /// So many nodes, of which the first [`VALIDATORS`] have seats, and epochs of so many blocks.
    async fn new(context: Context, nodes: usize, epoch: u64) -> Self {
        let keys: Vec<_> = (0..VALIDATORS).map(|index| hex::encode(public(index))).collect();
        let genesis = with_election(&keys, epoch, 96, &[]);
        let secrets = (0..nodes as u64).map(PrivateKey::from_seed).collect();
        let mut world = Self::made(context, genesis, secrets).await;
        for index in 0..nodes {
            world.start(index).await;
        }
        world
    }

    /// Nodes that are connected, and not yet started. Two may have one key.
    async fn made(context: Context, genesis: Genesis, secrets: Vec<PrivateKey>) -> Self {
        let (network, oracle) = Network::new_with_peers(
            context.child("network"),
            simulated::Config {
                max_size: largest_message(),
                max_peers_per_set: NZUsize!(8),
                disconnect_on_block: true,
                tracked_peer_sets: NZUsize!(4),
            },
            secrets.iter().map(Signer::public_key),
        )
        .await;
        network.start();
        let mut world = Self { context, oracle, genesis, validators: Vec::new() };
        for key in secrets {
            let mut history = None;
            let chain = Chain::open(&world.genesis, PoolLimits::default(), |first| {
                let made = History::in_memory(first)?;
                history = Some(made.clone());
                Ok(made)
            });
            let chain = Arc::new(chain.unwrap());
            world.validators.push(Validator {
                key,
                history: history.unwrap(),
                chain,
                handle: None,
                starts: 0,
                ahead: Arc::default(),
            });
        }
        let all: Vec<_> = (0..world.validators.len()).collect();
        world.connect(&[&all], link(1.0, 10)).await;
        world
    }

    /// Links within groups, none between them.
    async fn connect(&mut self, groups: &[&[usize]], link: Link) {
        let keys: Vec<_> = self.validators.iter().map(|validator| validator.key.public_key()).collect();
        for (from, a) in keys.iter().enumerate() {
            for (to, b) in keys.iter().enumerate() {
                // A key is connected once.
                if a == b || keys[..from].contains(a) || keys[..to].contains(b) {
                    continue;
                }
                let (a, b) = (a.clone(), b.clone());
                let _ = self.oracle.remove_link(a.clone(), b.clone()).await;
                if groups.iter().any(|group| group.contains(&from) && group.contains(&to)) {
                    self.oracle.add_link(a, b, link.clone()).await.unwrap();
                }
            }
        }
    }

    /// Starts a validator as a new process would: all that it knows is what it had on disk.
    async fn start(&mut self, index: usize) {
        let control = self.oracle.control(self.validators[index].key.public_key());
        let mut channels = Vec::new();
        for (channel, rate) in CHANNELS {
            channels.push(control.register(channel, quota(rate)).await.unwrap());
        }
        let Ok(channels) = channels.try_into() else { unreachable!("there are as many as CHANNELS") };
        self.run(index, channels).await;
    }

    /// Starts a validator on channels.
    async fn run<S, R>(&mut self, index: usize, channels: Channels<S, R>)
    where
        S: Sender<PublicKey = PublicKey>,
        R: Receiver<PublicKey = PublicKey>,
    {
        let validator = &mut self.validators[index];
        validator.starts += 1;
        let history = validator.history.clone();
        let chain = Arc::new(Chain::open(&self.genesis, PoolLimits::default(), |_| Ok(history)).unwrap());
        validator.chain = chain.clone();
        let control = self.oracle.control(validator.key.public_key());
        let mut tracker = self.oracle.manager();
        // The genesis's committee is what the network begins with.
        let track = move |committee: &Committee| {
            let keys = peers(committee).into_iter().map(|(key, _)| key);
            tracker.track(committee.epoch + 1, Set::from_iter_dedup(keys));
        };
        let ahead = validator.ahead.clone();
        let clock: Timepiece = Arc::new(move |now: SystemTime| {
            let seconds = ahead.load(Ordering::Relaxed);
            let error = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { now.checked_sub(error).unwrap_or(SystemTime::UNIX_EPOCH) } else { now + error }
        });
        let who = move |chain: &Arc<Chain>, key: &PrivateKey| Participation {
            chain: chain.clone(),
            key: key.clone(),
            beneficiary: Address::repeat_byte(index as u8 + 1),
            pace: Pace::default(),
            clock: clock.clone(),
            partition: format!("validator-{index}"),
            track: Box::new(track.clone()),
        };
        let sources: Vec<_> = (0..self.validators.len()).filter(|other| *other != index).collect();
        let sources =
            sources.into_iter().map(|other| Peer(self.validators[other].chain.clone())).collect::<Vec<_>>();
        let sources = Arc::new(sources);
        let validator = &self.validators[index];
        let key = validator.key.clone();
        let (control, manager) = (control, self.oracle.manager());
        let context = self
            .context
            .child("validator")
            .with_attribute("index", index)
            .with_attribute("start", validator.starts);
        self.validators[index].handle = Some(context.spawn(move |context| async move {
            let me: [u8; 32] = key.public_key().encode().as_ref().try_into().unwrap();
            let seated = || chain.committee().unwrap().seats_of(&me) > 0;
            if !seated() {
                forward(context.child("forward"), chain.clone(), sources.clone());
                assert!(follow(context.child("follow"), chain.clone(), sources.clone(), seated).await);
            }
            let context = context.child("consensus");
            let all = Box::pin(start(context.child("start"), who(&chain, &key), manager, control, channels))
                .await
                .unwrap();
            if matches!(all.await, Ok(End::Unseated)) {
                follow(context.child("follow"), chain, sources, || false).await;
            }
        }));
    }

    async fn crash(&mut self, index: usize) {
        let handle = self.validators[index].handle.take().unwrap();
        handle.abort();
        let _ = handle.await;
    }

    fn height(&self, index: usize) -> u64 {
        self.validators[index].chain.head().block.header.number
    }

    /// Tells the staking contract through a node whom it elects, and how many seats each gets.
    fn elect(&self, index: usize, seats: &[(usize, u64)]) {
        let chain = &self.validators[index].chain;
        let wallet = Wallet::new(0);
        let nonce = chain.pool(|pool| pool.next_nonce(&wallet.address()));
        let members: Vec<_> = seats.iter().map(|(index, seats)| (public(*index), *seats)).collect();
        let transaction = wallet.dynamic(|t| {
            t.nonce = nonce;
            t.to = TxKind::Call(STAKING);
            t.value = U256::ZERO;
            t.input = elected(&members).into();
            t.gas_limit = 2_000_000;
        });
        chain.add(Transaction::decode(&transaction).unwrap(), Origin::Local).unwrap();
    }

    /// Who decides the next block, as a node has it, by the numbers of nodes.
    fn committee(&self, index: usize) -> Vec<(usize, u32)> {
        let committee = self.validators[index].chain.committee().unwrap();
        (0..self.validators.len())
            .map(|other| (other, committee.seats_of(&public(other).try_into().unwrap())))
            .filter(|(_, seats)| *seats > 0)
            .collect()
    }

    /// Waits until these nodes agree that these have the seats.
    async fn until(&mut self, who: &[usize], committee: &[(usize, u32)]) {
        for _ in 0..2 * LONG_EPOCH {
            if who.iter().all(|index| self.committee(*index) == committee) {
                return;
            }
            self.progress(who, 1).await;
        }
        panic!("the committee is {:?}, not {committee:?}", self.committee(who[0]));
    }

    /// Gives a validator a transfer of each wallet but the first.
    fn submit(&self, index: usize) {
        let chain = self.validators[index].chain.clone();
        for seed in 1..8 {
            let wallet = Wallet::new(seed);
            let nonce = chain.pool(|pool| pool.next_nonce(&wallet.address()));
            let transaction = Transaction::decode(&wallet.dynamic(|t| t.nonce = nonce)).unwrap();
            // A node that follows hears late of what became final.
            let _ = chain.add(transaction, Origin::Local);
        }
    }

    /// Waits until these validators have finalized `more` blocks beyond the highest of them.
    async fn progress(&mut self, who: &[usize], more: u64) {
        let goal = who.iter().map(|index| self.height(*index)).max().unwrap() + more;
        for round in 0..10_000 {
            if who.iter().all(|index| self.height(*index) >= goal) {
                return;
            }
            if round % 20 == 0 {
                self.submit(who[round / 20 % who.len()]);
            }
            self.context.sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "no progress: {:?}, and {goal} is wanted",
            (0..self.validators.len()).map(|i| self.height(i)).collect::<Vec<_>>()
        );
    }

    /// No height has two finalized blocks. A block has one state, which its header names and every validator computed.
    fn agree(&self) {
        let highest = (0..self.validators.len()).map(|index| self.height(index)).max().unwrap();
        for number in 0..=highest {
            let mut found = self.validators.iter().filter_map(|v| v.history.header(number).unwrap());
            let first = found.next().unwrap();
            assert!(found.all(|header| header == first), "two blocks at height {number}");
        }
        for validator in &self.validators {
            let head = validator.chain.head();
            assert_eq!(validator.history.state().unwrap().root(), head.block.header.state_root);
        }
    }
}

/// A run that its seed decides, of at most so many seconds of its own time.
fn runner(seed: u64, limit_s: u64) -> deterministic::Runner {
    let limit = Some(Duration::from_secs(limit_s));
    deterministic::Runner::new(deterministic::Config::default().with_seed(seed).with_timeout(limit))
}

/// The seeds to try: so many, or as many as `ASSAY_SEEDS` says.
fn seeds(count: u64) -> std::ops::Range<u64> {
    0..std::env::var("ASSAY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(count)
}

fn simulate(seed: u64) -> String {
    runner(seed, 3_600).start(|context| async move {
        let mut world = World::new(context, VALIDATORS, 1_000_000).await;
        let all: Vec<_> = (0..VALIDATORS).collect();
        world.progress(&all, 3).await;
        let victim = seed as usize % VALIDATORS;
        let others: Vec<_> = all.iter().copied().filter(|index| *index != victim).collect();

        // One crashes: three go on. It comes back from its disk and catches up.
        world.crash(victim).await;
        world.progress(&others, 3).await;
        world.start(victim).await;
        world.progress(&all, 2).await;
        world.agree();

        // Two against two: nobody has a quorum, so nothing is final that was not on its way.
        world.connect(&[&[0, 1], &[2, 3]], link(1.0, 10)).await;
        world.context.sleep(Duration::from_secs(5)).await;
        let stuck: Vec<_> = all.iter().map(|index| world.height(*index)).collect();
        world.submit(victim);
        world.context.sleep(Duration::from_secs(20)).await;
        assert_eq!(
            stuck,
            all.iter().map(|index| world.height(*index)).collect::<Vec<_>>(),
            "finality without a quorum"
        );
        world.agree();

        // Links that lose a fifth of all messages and are slow, and a crash of another in the middle of it.
        world.connect(&[&all], link(0.8, 60)).await;
        world.progress(&all, 2).await;
        let next = (victim + 1) % VALIDATORS;
        world.crash(next).await;
        world.context.sleep(Duration::from_secs(3)).await;
        world.start(next).await;

        // All at once, as when a data centre loses power.
        for index in 0..VALIDATORS {
            world.crash(index).await;
        }
        for index in 0..VALIDATORS {
            world.start(index).await;
        }
        world.connect(&[&all], link(1.0, 10)).await;
        world.progress(&all, 4).await;
        world.agree();
        let head = world.validators[0].chain.head();
        let sent = head.state.nonce(&Wallet::new(1).address());
        assert!(sent > 0, "transactions became final");
        let least = all.iter().map(|index| world.height(*index)).min().unwrap();
        world.validators[0].history.header(least).unwrap().unwrap().hash_slow().to_string()
    })
}

#[test]
fn never_two_histories_and_always_progress() {
    for seed in seeds(3) {
        simulate(seed);
    }
}

#[test]
fn a_seed_decides_everything() {
    assert_eq!(simulate(7), simulate(7));
}

/// A light client, which shares no code with the node, follows the whole chain.
fn light_client(world: &World, seed: u64) {
    let validator = &world.validators[0];
    let history = &validator.history;
    let header = |number| alloy_rlp::encode(history.header(number).unwrap().unwrap());
    let committee = |epoch| history.committee(epoch).unwrap().unwrap().encode();
    let hexadecimal = |bytes: &[u8]| json!(assay_node::chain::hexadecimal(bytes));
    let genesis = validator.chain.genesis().hash().0;
    let mut light = LightClient::new(genesis, &header(0), &committee(0)).unwrap();
    let mut epochs = Vec::new();
    let last = validator.chain.committee().unwrap().epoch;
    while light.epoch() < last {
        let (number, next) = (light.last_block(), committee(light.epoch() + 1));
        let certificate = history.finalization(number).unwrap().unwrap();
        assert!(light.clone().advance(&[header(number)], &certificate, &committee(light.epoch())).is_err());
        assert_eq!(light.advance(&[header(number)], &certificate, &next).unwrap().number, number);
        epochs.push(json!({
            "headers": [hexadecimal(&header(number))], "finalization": hexadecimal(&certificate), "committee": hexadecimal(&next),
        }));
    }
    // A block within the last epoch, by the next certificate.
    let asked = last * EPOCH;
    let by = history.finalized_from(asked).unwrap().unwrap();
    let headers: Vec<_> = (asked..=by).map(header).collect();
    let certificate = history.finalization(by).unwrap().unwrap();
    let block = light.verify(&headers, &certificate).unwrap();
    assert_eq!(
        (block.number, block.state_root),
        (asked, history.header(asked).unwrap().unwrap().state_root.0)
    );
    if seed == 0 && std::env::var_os("ASSAY_WRITE_VECTORS").is_some() {
        let headers: Vec<_> = headers.iter().map(|header| hexadecimal(header)).collect();
        let vector = json!({
            "request": {
                "genesis": hexadecimal(&genesis), "header": hexadecimal(&header(0)), "committee": hexadecimal(&committee(0)),
                "epochs": epochs, "headers": headers, "finalization": hexadecimal(&certificate),
            },
            "answer": {
                "final": true, "number": block.number, "hash": hexadecimal(&block.hash),
                "stateRoot": hexadecimal(&block.state_root), "timestamp": block.timestamp, "epoch": last,
            },
        });
        std::fs::write("../../docs/vectors/finality.json", vector.to_string() + "\n").unwrap();
    }
}

/// A joins by stake, B leaves, C crashes over the end of an epoch, everybody crashes at once.
fn elections(seed: u64) -> String {
    runner(seed, 3_600).start(|context| async move {
        let mut world = World::new(context, 5, EPOCH).await;
        let all = [0, 1, 2, 3, 4];
        world.progress(&all, 2).await;
        assert_eq!(world.committee(4), [(0, 1), (1, 1), (2, 1), (3, 1)], "node 4 follows without a seat");

        // The follower's transaction reaches the validators. From the next epoch on it has seats, and 3 has none.
        world.elect(4, &[(0, 2), (1, 1), (2, 3), (4, 3)]);
        world.until(&all, &[(0, 2), (1, 1), (2, 3), (4, 3)]).await;
        world.progress(&all, 2).await;
        world.agree();
        // Of nine seats seven decide. Without node 2 there are six.
        world.crash(2).await;
        world.context.sleep(Duration::from_secs(5)).await;
        let stuck = [0, 1, 3, 4].map(|index| world.height(index));
        world.context.sleep(Duration::from_secs(20)).await;
        assert_eq!(
            stuck,
            [0, 1, 3, 4].map(|index| world.height(index)),
            "finality without a quorum of seats"
        );
        world.start(2).await;
        world.progress(&all, 2).await;

        // Node 1 is away while an epoch or two end, and finds its way back.
        world.crash(1).await;
        let others = [0, 2, 3, 4];
        world.progress(&others, EPOCH + 2).await;
        world.start(1).await;
        world.progress(&all, 2).await;

        // 3 comes back, 4 leaves, as when it is jailed.
        world.elect(0, &[(0, 1), (1, 1), (2, 1), (3, 1)]);
        world.until(&all, &[(0, 1), (1, 1), (2, 1), (3, 1)]).await;
        world.crash(4).await;
        world.progress(&[0, 1, 2, 3], EPOCH).await;
        for index in 0..4 {
            world.crash(index).await;
        }
        for index in all {
            world.start(index).await;
        }
        world.progress(&all, 3).await;
        world.agree();

        // Each epoch's end is proved by its own committee, and by no other.
        let validator = &world.validators[0];
        let genesis = validator.chain.genesis().hash();
        let last = validator.chain.committee().unwrap().epoch;
        assert!(last > 4);
        for epoch in 0..last {
            let number = (epoch + 1) * EPOCH - 1;
            let certificate =
                validator.history.finalization(number).unwrap().expect("an epoch's end has a certificate");
            let committee = validator.history.committee(epoch).unwrap().unwrap();
            let mut random = world.context.child("check");
            let proven = check_finalization(&genesis, &committee, &certificate, &mut random);
            assert_eq!(proven, validator.history.header(number).unwrap().map(|header| header.hash_slow()));
            let next = validator.history.committee(epoch + 1).unwrap().unwrap();
            assert_eq!(check_finalization(&genesis, &next, &certificate, &mut random), None);
            let other = assay_ledger::types::B256::repeat_byte(1);
            assert_eq!(check_finalization(&other, &committee, &certificate, &mut random), None);
        }

        light_client(&world, seed);

        // What a liar sends to those who follow is refused, and nothing of it is kept.
        let fresh = Chain::open(&world.genesis, PoolLimits::default(), History::in_memory).unwrap();
        let honest = Peer(world.validators[0].chain.clone()).after(0).await.unwrap().unwrap();
        let mut random = world.context.child("lies");
        let mut lie = |change: &dyn Fn(&mut Proven)| {
            let mut proven = honest.clone();
            change(&mut proven);
            accept(&fresh, &proven, &mut random).unwrap_err()
        };
        assert!(matches!(lie(&|proven| drop(proven.blocks.pop())), FollowError::Certificate(_)));
        assert!(matches!(lie(&|proven| proven.blocks.clear()), FollowError::Certificate(_)));
        assert!(matches!(lie(&|proven| proven.finalization.clear()), FollowError::Certificate(_)));
        assert!(matches!(
            lie(&|proven| *proven.finalization.last_mut().unwrap() ^= 1),
            FollowError::Certificate(_)
        ));
        assert!(matches!(
            lie(&|proven| drop(proven.blocks.remove(0))),
            FollowError::Chain(ChainError::Parent(_))
        ));
        assert_eq!(fresh.head().block.header.number, 0);
        accept(&fresh, &honest, &mut random).unwrap();
        assert_eq!(fresh.head().block.hash(), honest.blocks.last().unwrap().hash());

        let least = all.iter().map(|index| world.height(*index)).min().unwrap();
        world.validators[0].history.header(least).unwrap().unwrap().hash_slow().to_string()
    })
}

#[test]
fn seats_change_hands_and_history_stays_one() {
    for seed in seeds(2) {
        elections(seed);
    }
}

/// The wallet that owns a validator.
fn owner(index: usize) -> Wallet {
    Wallet::new(100 + index as u8)
}

/// 10^18.
const OPG: u128 = 1_000_000_000_000_000_000;

/// A genesis with the real contracts, in which these keys have a seat each until 1,000 OPG are bonded.
fn staked(keys: &[String], epoch: u64) -> Genesis {
    let example = include_str!("../../../contracts/genesis.example.json");
    let mut description: Value = serde_json::from_str(example).unwrap();
    let wallets = (0..8).map(Wallet::new).chain((0..keys.len()).map(owner));
    let coins = wallets.map(|wallet| (wallet.address().to_string(), json!("1000000000000000000000")));
    description["chainId"] = json!(common::CHAIN);
    description["timestamp"] = json!(0);
    description["alloc"] = Value::Object(coins.collect());
    let share = |index| {
        let holder = text(owner(index).address());
        json!({"class": format!("validator {index}"), "holder": holder, "amount": (250_000_000 * OPG).to_string()})
    };
    description["supply"] = (0..keys.len()).map(share).collect();
    let seat = |key| json!({"key": key, "endpoint": "", "beneficiary": Address::ZERO.to_string()});
    description["validators"] = keys.iter().map(seat).collect();
    description["epochs"] = json!({"blocks": epoch, "leastStake": (1_000 * OPG).to_string()});
    description["parameters"]["staking"]["downtimeJail"] = json!(5);
    Description::from_json(&description.to_string()).unwrap().genesis(0).unwrap()
}

impl World {
    /// Sends a contract call of an owner to a node.
    fn send(&self, to: usize, owner: &Wallet, name: &str, function: &str, arguments: &[Value]) {
        let chain = &self.validators[to].chain;
        let made = System::of_genesis().prepare(name, function, arguments).unwrap();
        let transaction = owner.dynamic(|t| {
            t.nonce = chain.pool(|pool| pool.next_nonce(&owner.address()));
            t.to = TxKind::Call(made.to.unwrap());
            t.value = U256::ZERO;
            t.input = made.data.into();
            t.gas_limit = 1_000_000;
        });
        chain.add(Transaction::decode(&transaction).unwrap(), Origin::Local).unwrap();
    }

    /// Bonds 2,000 OPG for each of the first validators.
    fn stake(&self, validators: usize) {
        let staking = text(System::of_genesis().address("Staking").unwrap());
        for index in 0..validators {
            let key = json!(format!("0x{}", hex::encode(public(index))));
            let amount = json!((2_000 * OPG).to_string());
            self.send(0, &owner(index), "Opg", "approve", &[staking.clone(), amount.clone()]);
            self.send(0, &owner(index), "Staking", "join", &[key, json!(500), amount]);
        }
    }

    /// What the staking contract knows of a validator's owner, at a node.
    fn staked(&self, at: usize, validator: usize) -> Value {
        let chain = &self.validators[at].chain;
        let arguments = [text(owner(validator).address())];
        let made = System::of_genesis().prepare("Staking", "validatorOf", &arguments).unwrap();
        let message = Message {
            from: Address::ZERO,
            to: made.to,
            gas: 10_000_000,
            max_fee: 0,
            tip: None,
            value: U256::ZERO,
            data: made.data.into(),
            access_list: Vec::new(),
        };
        let head = chain.head();
        let outcome = call(chain.rules(), &head.block.header, &head.state, &Overrides::default(), &message);
        contract("Staking").unwrap().function("validatorOf", 1).unwrap().output(&outcome.output).unwrap()
    }

    /// The channels of one key for two nodes that share it: they hear everything, and send votes and blocks to these peers each.
    async fn split(
        &self,
        index: usize,
        peers: [&[usize]; 2],
    ) -> [Channels<impl Sender<PublicKey = PublicKey>, impl Receiver<PublicKey = PublicKey>>; 2] {
        let control = self.oracle.control(self.validators[index].key.public_key());
        let all: Vec<_> = self.validators.iter().map(|validator| validator.key.public_key()).collect();
        let [first, second] = peers.map(|peers| {
            peers.iter().map(|peer| self.validators[*peer].key.public_key()).collect::<Vec<_>>()
        });
        let (mut primary, mut secondary) = (Vec::new(), Vec::new());
        for (channel, rate) in CHANNELS {
            let (sender, receiver) = control.register(channel, quota(rate)).await.unwrap();
            // Votes and blocks are what it lies with. With the rest it keeps up.
            let lies = [0, 3].contains(&channel);
            let (to_first, to_second) =
                if lies { (first.clone(), second.clone()) } else { (all.clone(), all.clone()) };
            let (one, other) = sender.split_with(move |origin, recipients: &Recipients<PublicKey>, _: &_| {
                let mine = if origin == SplitOrigin::Primary { &to_first } else { &to_second };
                let wanted = |key: &&PublicKey| match recipients {
                    Recipients::All => true,
                    Recipients::Some(keys) => keys.contains(key),
                    Recipients::One(one) => one == *key,
                };
                Some(Recipients::Some(mine.iter().filter(wanted).cloned().collect()))
            });
            let context = self.context.child("split").with_attribute("channel", channel);
            let (left, right) = receiver.split_with(context, |_: &_| SplitTarget::Both);
            primary.push((one, left));
            secondary.push((other, right));
        }
        let (Ok(primary), Ok(secondary)) = (primary.try_into(), secondary.try_into()) else {
            unreachable!("there are as many as CHANNELS")
        };
        [primary, secondary]
    }
}

/// One validator runs twice with one key, so it proposes two blocks and votes for two in one view, to all or to some each.
fn twins(seed: u64) -> String {
    runner(seed, 3_600).start(|context| async move {
        let (honest, cheater, twin) = ([0, 1, 2], 3, 4);
        let keys: Vec<_> = (0..VALIDATORS).map(|index| hex::encode(public(index))).collect();
        let secrets = [0, 1, 2, 3, 3].map(PrivateKey::from_seed).to_vec();
        let mut world = World::made(context, staked(&keys, EPOCH), secrets).await;
        for index in honest {
            world.start(index).await;
        }
        // Everybody hears both, one does, or nobody: then a certificate gives it away.
        let heard: [[&[usize]; 2]; 3] = [[&honest; 2], [&[0, 1], &[1, 2]], [&[0, 1], &[2]]];
        let [one, other] = world.split(cheater, heard[seed as usize % 3]).await;
        world.run(cheater, one).await;
        world.progress(&honest, 1).await;
        world.stake(VALIDATORS);
        world.until(&honest, &[(0, 25), (1, 25), (2, 25), (3, 25)]).await;
        assert!(world.validators.iter().all(|validator| validator.history.evidence().unwrap().is_empty()));

        world.run(twin, other).await;
        world.until(&honest, &[(0, 34), (1, 33), (2, 33)]).await;
        world.progress(&honest, EPOCH).await;
        world.agree();

        // It lost a twentieth of its stake, and nobody else anything.
        for index in honest {
            let known = world.staked(0, index);
            assert_eq!(
                (&known["tokens"], &known["tombstoned"]),
                (&json!((2_000 * OPG).to_string()), &json!(false))
            );
        }
        let known = world.staked(0, cheater);
        assert_eq!(
            (&known["tokens"], &known["tombstoned"]),
            (&json!((1_900 * OPG).to_string()), &json!(true))
        );
        // One transaction said so, which paid nothing.
        let history = &world.validators[0].history;
        let mut found = Vec::new();
        for number in 1..=world.height(0) {
            let stored = history.block(number).unwrap().unwrap();
            for (transaction, receipt) in stored.block.transactions.iter().zip(&stored.receipts) {
                if transaction.to() == Some(EVIDENCE) {
                    assert!(receipt.status() && transaction.max_fee() == 0);
                    found.push(number);
                }
            }
        }
        assert_eq!(found.len(), 1, "{found:?}");
        let least = honest.iter().map(|index| world.height(*index)).min().unwrap();
        history.header(least).unwrap().unwrap().hash_slow().to_string()
    })
}

#[test]
fn who_signs_two_histories_loses_stake_and_seats_and_nothing_else_happens() {
    for seed in seeds(3) {
        twins(seed);
    }
}

/// One is cut off for a while and another restarts, which costs nothing. One is silent, which costs it its seats until it comes back.
fn absences(seed: u64) {
    runner(seed, 3_600).start(|context| async move {
        let all = [0, 1, 2, 3];
        let keys: Vec<_> = (0..VALIDATORS).map(|index| hex::encode(public(index))).collect();
        let secrets = all.map(|index| PrivateKey::from_seed(index as u64)).to_vec();
        let mut world = World::made(context, staked(&keys, LONG_EPOCH), secrets).await;
        for index in all {
            world.start(index).await;
        }
        world.progress(&all, 1).await;
        world.stake(VALIDATORS);
        let everybody = [(0, 25), (1, 25), (2, 25), (3, 25)];
        world.until(&all, &everybody).await;

        let seed = seed as usize;
        let (cut, restarted, silent) = (seed % 4, (seed + 1) % 4, (seed + 2) % 4);
        let without = |index: usize| all.into_iter().filter(|other| *other != index).collect::<Vec<_>>();
        world.connect(&[&without(cut)], link(1.0, 10)).await;
        world.progress(&without(cut), 8).await;
        world.connect(&[&all], link(1.0, 10)).await;
        world.progress(&all, 2).await;
        world.crash(restarted).await;
        world.progress(&without(restarted), 8).await;
        world.start(restarted).await;
        while all.iter().any(|index| world.validators[*index].chain.committee().unwrap().epoch < 2) {
            world.progress(&all, 1).await;
        }
        assert_eq!(world.committee(0), everybody);
        for index in all {
            assert_eq!(world.staked(0, index)["jailedUntil"], json!("0"), "{index} did nothing wrong");
        }

        world.crash(silent).await;
        let others = without(silent);
        let mut rest = [(others[0], 33), (others[1], 33), (others[2], 33)];
        // The one that joined first gets the seat that is left.
        rest[0].1 += 1;
        world.until(&others, &rest).await;
        for index in all {
            let known = world.staked(others[0], index);
            let tokens = if index == silent { 2_000 * OPG - OPG / 5 } else { 2_000 * OPG };
            assert_eq!(known["tokens"], json!(tokens.to_string()), "{index}");
            assert_eq!(known["jailedUntil"] == json!("0"), index != silent, "{index}");
        }
        // It follows, and has its seats again when its owner has asked for them.
        world.start(silent).await;
        world.context.sleep(Duration::from_secs(6)).await;
        world.progress(&all, 2).await;
        world.send(others[0], &owner(silent), "Staking", "unjail", &[]);
        world.until(&all, &everybody).await;
        world.progress(&all, 2).await;
        world.agree();
    });
}

#[test]
fn who_is_silent_loses_its_seats_and_who_was_cut_off_for_a_while_does_not() {
    for seed in seeds(1) {
        absences(seed);
    }
}

/// Clocks that jump by hours, ahead and behind, one at a time: the others go on, and times of blocks stay those of the world.
fn clocks(seed: u64) {
    runner(seed, 36_000).start(|context| async move {
        let mut world = World::new(context, VALIDATORS, 1_000_000).await;
        let all = [0, 1, 2, 3];
        // Hours after the genesis, so that a clock can be hours behind.
        let right = 10_000;
        for validator in &world.validators {
            validator.ahead.store(right, Ordering::Relaxed);
        }
        world.progress(&all, 2).await;
        for (wrong, ahead) in [(0, 2 * 3_600), (1, -2 * 3_600), (2, 600), (3, -600)] {
            world.validators[wrong].ahead.store(right + ahead, Ordering::Relaxed);
            let others: Vec<_> = all.into_iter().filter(|index| *index != wrong).collect();
            world.progress(&others, 6).await;
            let head = world.validators[others[0]].chain.head();
            let now = world.context.current().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let now = now + right as u64;
            assert!(head.block.header.timestamp <= now, "a block from the future");
            assert!(now - head.block.header.timestamp < 60, "the chain's time stands still");
            // Its own clock is what is wrong: it is there again as soon as that is right.
            world.validators[wrong].ahead.store(right, Ordering::Relaxed);
            world.progress(&all, 3).await;
        }
        world.agree();
        let history = &world.validators[0].history;
        let time = |number| history.header(number).unwrap().unwrap().timestamp;
        assert!((1..=world.height(0)).all(|number| time(number - 1) <= time(number)));
    });
}

#[test]
fn clocks_that_jump_cost_turns_and_no_progress() {
    for seed in seeds(2) {
        clocks(seed);
    }
}
