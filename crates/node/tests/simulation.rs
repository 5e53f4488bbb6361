//! Validators in a simulated network, with crashes, partitions, lossy links and elections: never two finalized histories, the same
//! state everywhere, and progress after healing. Every run follows from its seed. `ASSAY_SEEDS=1000 cargo test --release -p assay-node --test
//! simulation` tries many.
#![allow(clippy::unwrap_used)]

#[path = "../../ledger/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use assay_ledger::types::{Address, TxKind, U256};
use assay_ledger::{Committee, Genesis, PoolLimits, Transaction};
use assay_node::chain::{Chain, ChainError, Origin};
use assay_node::consensus::{
    CHANNELS, End, Pace, Participation, check_finalization, largest_message, peers, quota, start,
};
use assay_node::follow::{FollowError, MAX_BLOCKS, Proven, Source, accept, follow, forward};
use assay_node::history::History;
use assay_verify::finality::LightClient;
use common::{STAKING, Wallet, elected, with_election};
use commonware_codec::Encode;
use commonware_cryptography::Signer;
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_p2p::Manager;
use commonware_p2p::simulated::{self, Link, Network, Oracle};
use commonware_runtime::deterministic::{self, Context};
use commonware_runtime::{Clock, Handle, Runner, Spawner, Supervisor};
use commonware_utils::ordered::Set;
use commonware_utils::{NZUsize, Probability};
use serde_json::json;

/// In the committee from the genesis on.
const VALIDATORS: usize = 4;
/// Blocks of an epoch where there are elections.
const EPOCH: u64 = 8;

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
        let keys: Vec<_> =
            (0..VALIDATORS).map(|index| assay_ledger::types::hex::encode(public(index))).collect();
        let genesis = with_election(&keys, epoch, 96, &[]);
        let secrets: Vec<_> = (0..nodes as u64).map(PrivateKey::from_seed).collect();
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
            });
        }
        let all: Vec<_> = (0..nodes).collect();
        world.connect(&[&all], link(1.0, 10)).await;
        for index in all {
            world.start(index).await;
        }
        world
    }

    /// Links within groups, none between them.
    async fn connect(&mut self, groups: &[&[usize]], link: Link) {
        for from in 0..self.validators.len() {
            for to in 0..self.validators.len() {
                if from == to {
                    continue;
                }
                let (a, b) = (self.validators[from].key.public_key(), self.validators[to].key.public_key());
                let _ = self.oracle.remove_link(a.clone(), b.clone()).await;
                if groups.iter().any(|group| group.contains(&from) && group.contains(&to)) {
                    self.oracle.add_link(a, b, link.clone()).await.unwrap();
                }
            }
        }
    }

    /// Starts a validator as a new process would: all that it knows is what it had on disk.
    async fn start(&mut self, index: usize) {
        let validator = &mut self.validators[index];
        validator.starts += 1;
        let history = validator.history.clone();
        let chain = Arc::new(Chain::open(&self.genesis, PoolLimits::default(), |_| Ok(history)).unwrap());
        validator.chain = chain.clone();
        let control = self.oracle.control(validator.key.public_key());
        let mut channels = Vec::new();
        for (channel, rate) in CHANNELS {
            channels.push(control.register(channel, quota(rate)).await.unwrap());
        }
        let mut tracker = self.oracle.manager();
        // The genesis's committee is what the network begins with.
        let track = move |committee: &Committee| {
            let keys = peers(committee).into_iter().map(|(key, _)| key);
            tracker.track(committee.epoch + 1, Set::from_iter_dedup(keys));
        };
        let who = move |chain: &Arc<Chain>, key: &PrivateKey| Participation {
            chain: chain.clone(),
            key: key.clone(),
            beneficiary: Address::repeat_byte(index as u8 + 1),
            pace: Pace::default(),
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
        let Ok(channels) = channels.try_into() else { unreachable!("there are as many as CHANNELS") };
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
        for _ in 0..40 {
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

fn simulate(seed: u64) -> String {
    let config =
        deterministic::Config::default().with_seed(seed).with_timeout(Some(Duration::from_secs(3_600)));
    deterministic::Runner::new(config).start(|context| async move {
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
    let seeds = std::env::var("ASSAY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    for seed in 0..seeds {
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
    let config =
        deterministic::Config::default().with_seed(seed).with_timeout(Some(Duration::from_secs(3_600)));
    deterministic::Runner::new(config).start(|context| async move {
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
    let seeds = std::env::var("ASSAY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        elections(seed);
    }
}
