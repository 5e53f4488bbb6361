//! Four validators in a simulated network, with crashes, partitions and lossy links: never two finalized histories, the same state
//! everywhere, and progress after healing. Every run follows from its seed. `ASSAY_SEEDS=1000 cargo test --release -p assay-node --test
//! simulation` tries many.
#![allow(clippy::unwrap_used)]

#[path = "../../ledger/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use assay_ledger::types::Address;
use assay_ledger::{Genesis, PoolLimits, Transaction};
use assay_node::chain::{Chain, Origin};
use assay_node::consensus::{CHANNELS, Pace, Participation, largest_message, quota, start};
use assay_node::history::History;
use common::Wallet;
use commonware_cryptography::Signer;
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_p2p::simulated::{self, Link, Network, Oracle};
use commonware_runtime::deterministic::{self, Context};
use commonware_runtime::{Clock, Handle, Runner, Spawner, Supervisor};
use commonware_utils::ordered::Set;
use commonware_utils::{NZUsize, Probability};

const VALIDATORS: usize = 4;

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
    keys: Set<PublicKey>,
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
    async fn new(context: Context) -> Self {
        let alloc: Vec<_> = (0..8)
            .map(|seed| {
                format!("\"{}\": {{\"balance\": \"10000000000000000000\"}}", Wallet::new(seed).address())
            })
            .collect();
        let genesis = Genesis::from_json(&format!(
            "{{\"chainId\": {}, \"timestamp\": 0, \"gasLimit\": 30000000, \"alloc\": {{{}}}}}",
            common::CHAIN,
            alloc.join(",")
        ))
        .unwrap();
        let secrets: Vec<_> = (0..VALIDATORS as u64).map(PrivateKey::from_seed).collect();
        let keys = Set::try_from(secrets.iter().map(Signer::public_key).collect::<Vec<_>>()).unwrap();
        let (network, oracle) = Network::new_with_peers(
            context.child("network"),
            simulated::Config {
                max_size: largest_message(VALIDATORS),
                max_peers_per_set: NZUsize!(VALIDATORS),
                disconnect_on_block: true,
                tracked_peer_sets: NZUsize!(1),
            },
            keys.iter().cloned(),
        )
        .await;
        network.start();
        let mut world = Self { context, oracle, genesis, keys, validators: Vec::new() };
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
        world.connect(&[&[0, 1, 2, 3]], link(1.0, 10)).await;
        for index in 0..VALIDATORS {
            world.start(index).await;
        }
        world
    }

    /// Links within groups, none between them.
    async fn connect(&mut self, groups: &[&[usize]], link: Link) {
        for from in 0..VALIDATORS {
            for to in 0..VALIDATORS {
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
        let who = Participation {
            chain,
            key: validator.key.clone(),
            validators: self.keys.clone(),
            beneficiary: Address::repeat_byte(index as u8 + 1),
            pace: Pace::default(),
            partition: format!("validator-{index}"),
        };
        let (control, manager) = (control, self.oracle.manager());
        let context = self
            .context
            .child("validator")
            .with_attribute("index", index)
            .with_attribute("start", validator.starts);
        let Ok(channels) = channels.try_into() else { unreachable!("there are as many as CHANNELS") };
        validator.handle = Some(context.spawn(move |context| async move {
            let (all, _) = Box::pin(start(context, who, manager, control, channels)).await.unwrap();
            let _ = all.await;
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

    /// Gives a validator a transfer of each wallet.
    fn submit(&self, index: usize) {
        let chain = self.validators[index].chain.clone();
        for seed in 0..8 {
            let wallet = Wallet::new(seed);
            let nonce = chain.pool(|pool| pool.next_nonce(&wallet.address()));
            let transaction = Transaction::decode(&wallet.dynamic(|t| t.nonce = nonce)).unwrap();
            chain.add(transaction, Origin::Local).unwrap();
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
            (0..VALIDATORS).map(|i| self.height(i)).collect::<Vec<_>>()
        );
    }

    /// No height has two finalized blocks. A block has one state, which its header names and every validator computed.
    fn agree(&self) {
        let highest = (0..VALIDATORS).map(|index| self.height(index)).max().unwrap();
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
        let mut world = World::new(context).await;
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
        let sent = head.state.nonce(&Wallet::new(0).address());
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
