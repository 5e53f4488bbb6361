//! A node: the chain on disk, consensus with its peers over authenticated connections or following others, JSON-RPC for clients.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use assay_ledger::types::{Address, hex};
use assay_ledger::{Committee, Genesis, MAX_MEMBERS, PoolLimits, Validator};
use commonware_codec::{DecodeExt, Encode};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_cryptography::{ChaCha20Poly1305, Signer};
use commonware_p2p::authenticated::lookup::{self, Network};
use commonware_p2p::{Address as Endpoint, AddressableManager};
use commonware_runtime::{Runner, Spawner, Supervisor, tokio as runtime};
use commonware_stream::cups::{self, Cups};
use commonware_stream::sake::{self, Sake};
use commonware_utils::NZUsize;
use commonware_utils::ordered::{Map, Set};
use thiserror::Error;
use tracing::{info, warn};

use crate::chain::{Chain, ChainError};
use crate::consensus::{self, CHANNELS, End, Pace, Participation, TRACKED_EPOCHS};
use crate::follow::{self, Source};
use crate::history::{History, Retention};
use crate::rpc;
use crate::sync::Progress;

/// What a node needs to run.
pub struct NodeConfig {
    /// How the chain begins.
    pub genesis: Genesis,
    /// The folder for everything that it keeps; made where it is missing.
    pub data: PathBuf,
    /// The secrets of a validator: 32 bytes as 64 hexadecimal digits each, see [`new_key`]. It votes with the first that has a seat; two are
    /// of use while one replaces the other. None for a node that only follows.
    pub keys: Vec<String>,
    /// Who gets the tips of this validator's blocks; what the genesis says about its key when `None`, or nobody.
    pub beneficiary: Option<Address>,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// Where clients connect.
    pub rpc: SocketAddr,
    /// How fast blocks come.
    pub pace: Pace,
    /// What it keeps of what became final.
    pub retention: Retention,
    /// Called now and then while a state comes from other nodes, and with `None` when it is over.
    pub progress: Box<dyn Fn(Option<Progress>) + Send + Sync>,
}

/// Why a node could not start, or had to stop.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Genesis, database, or a block that cannot be.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A key, an address or a list in genesis or configuration.
    #[error("{0}")]
    Config(String),
    /// Files or sockets.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// A validator without a seat, or no validator at all, that knows nobody to follow.
    #[error(
        "this node has no seat in consensus and no other node to follow: name the JSON-RPC of one or more with --follow URL"
    )]
    Alone,
    /// Files could not be written or read while it ran.
    #[error(
        "the node stopped, since its data folder could not be written or read ({0}). What was finalized is kept: make room there, and start it again"
    )]
    Storage(String),
    /// Consensus ended by itself.
    #[error("consensus stopped ({0}). What was finalized is kept: start the node again")]
    Stopped(String),
}

impl NodeError {
    /// Why consensus ended, from what was said when it did.
    fn stopped(why: String) -> Self {
        // Errors of commonware's storage reach us as the text of a panic, in which only the system's number is always the same.
        if why.contains("os error") || why.contains("database failed") {
            return Self::Storage(why);
        }
        Self::Stopped(why)
    }
}

/// A new validator key from 32 random bytes: the secret, and the public key for genesis.
pub fn new_key(random: [u8; 32]) -> Result<(String, String), NodeError> {
    let key = secret(&hex::encode(random))?;
    Ok((hex::encode(random), public(&key)))
}

fn secret(text: &str) -> Result<PrivateKey, NodeError> {
    let wrong = || NodeError::Config("the validator's key is not 64 hexadecimal digits".to_owned());
    let bytes = hex::decode(text.trim()).map_err(|_| wrong())?;
    PrivateKey::decode(bytes::Bytes::from(bytes)).map_err(|_| wrong())
}

fn public(key: &PrivateKey) -> String {
    hex::encode(key.public_key().encode())
}

/// The public key that belongs to a secret.
pub fn public_key(secret_key: &str) -> Result<String, NodeError> {
    Ok(public(&secret(secret_key)?))
}

/// A validator of a genesis, read: its key and where it is.
pub(crate) fn validator(entry: &Validator) -> Result<(PublicKey, SocketAddr, Address), NodeError> {
    let wrong = |what: &str, text: &str| {
        NodeError::Config(format!("the genesis has {text:?} where a validator's {what} belongs"))
    };
    let bytes = hex::decode(&entry.key).map_err(|_| wrong("key", &entry.key))?;
    let key = PublicKey::decode(bytes::Bytes::from(bytes)).map_err(|_| wrong("key", &entry.key))?;
    let endpoint = entry.endpoint.parse().map_err(|_| wrong("endpoint", &entry.endpoint))?;
    let beneficiary = entry.beneficiary.parse().map_err(|_| wrong("beneficiary", &entry.beneficiary))?;
    Ok((key, endpoint, beneficiary))
}

/// The keys of a genesis's validators.
pub fn validators(genesis: &Genesis) -> Result<Set<PublicKey>, NodeError> {
    let keys = genesis
        .validators
        .iter()
        .map(|entry| Ok(validator(entry)?.0))
        .collect::<Result<Vec<_>, NodeError>>()?;
    Set::try_from(keys).map_err(|_| NodeError::Config("the genesis names a validator twice".to_owned()))
}

/// How often the machine's clock is compared with one that nobody sets.
const CLOCK_INTERVAL: Duration = Duration::from_millis(250);
/// A clock that goes back by less is no reason to begin anew.
const CLOCK_STEP: Duration = Duration::from_secs(2);
/// Threads that speak with clients, and threads for what they ask: as many calls run at the same time.
const CLIENT_THREADS: usize = 2;
const CALL_THREADS: usize = 16;
/// Between two reports of a state that comes from other nodes.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Executing a block, and writing it, holds a thread.
const CONSENSUS_THREADS: usize = 4;

/// Runs a node until `stop` resolves: a validator while its key has a seat, following `sources` while it has none. Blocks its thread, on
/// which no other runtime may be at work. `ready` gets the address of JSON-RPC when it serves.
pub fn run<S: Source>(
    config: NodeConfig,
    sources: Vec<S>,
    ready: impl FnOnce(SocketAddr) + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), NodeError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |error| NodeError::Io(what, error)
    };
    std::fs::create_dir_all(&config.data).map_err(io(&config.data.display().to_string()))?;
    let config = Arc::new(config);
    let keys = config.keys.iter().map(|key| secret(key)).collect::<Result<Vec<_>, _>>()?;
    validators(&config.genesis)?;
    let database = config.data.join("chain.redb");
    let chain = Arc::new(Chain::open(&config.genesis, PoolLimits::default(), |first| {
        History::open(&database, config.retention, first)
    })?);
    let seated = {
        let (chain, keys) = (chain.clone(), keys.clone());
        move || seated_key(&chain, &keys).is_some()
    };
    if sources.is_empty() && !seated() {
        return Err(NodeError::Alone);
    }

    // Clients have threads of their own: no block that is executed keeps them waiting, and no call keeps a vote waiting.
    let clients = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CLIENT_THREADS)
        .max_blocking_threads(CALL_THREADS)
        .thread_name("rpc")
        .enable_all()
        .build()
        .map_err(io("threads for JSON-RPC"))?;
    let (address, server) = clients
        .block_on(rpc::serve(chain.clone(), config.rpc))
        .map_err(io(&format!("JSON-RPC could not listen at {}", config.rpc)))?;
    ready(address);
    let (told, mut progress) = (config.clone(), chain.progress());
    clients.spawn(async move {
        while progress.changed().await.is_ok() {
            let now = *progress.borrow_and_update();
            (told.progress)(now);
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
    });

    let storage = runtime::Config::new()
        .with_worker_threads(CONSENSUS_THREADS)
        .with_storage_directory(config.data.join("consensus"));
    let sources = Arc::new(sources);
    // It outlives the runtimes of consensus.
    let mut stop = clients.spawn(stop);
    let failed = chain.clone();
    let consensus = || {
        loop {
            // A runtime for each time: it waits for everything that it spawned, so the next finds no file open and no port taken.
            let end = runtime::Runner::new(storage.clone()).start(|context| async {
                let phase = async {
                    if !sources.is_empty() {
                        let forwarding =
                            follow::forward(context.child("forward"), chain.clone(), sources.clone());
                        let followed =
                            follow::follow(context.child("follow"), chain.clone(), sources.clone(), &seated)
                                .await;
                        forwarding.abort();
                        if !followed {
                            return Some(Err(stopped(&chain)));
                        }
                    }
                    let (config, keys, kept) = (config.clone(), keys.clone(), chain.clone());
                    // In a task of its own, whose end is that of everything that it spawned.
                    let consensus = context
                        .child("validator")
                        .spawn(move |context| Box::pin(validate(context, config, keys, kept)));
                    let end = tokio::select! {
                        end = consensus => end.unwrap_or(Ok(End::Failed)),
                        by = set_back() => {
                            warn!(seconds = by.as_secs(), "the clock of this machine was set back; consensus begins anew");
                            return None;
                        }
                    };
                    match end {
                        Ok(End::Unseated) if !sources.is_empty() => {
                            info!("the seat is gone; the node follows");
                            None
                        }
                        Ok(End::Unseated) if seated() => {
                            info!("another key has the seat");
                            None
                        }
                        Ok(End::Unseated) => Some(Err(NodeError::Alone)),
                        Ok(End::Failed) => Some(Err(stopped(&chain))),
                        Err(error) => Some(Err(error)),
                    }
                };
                let end = tokio::select! {
                    _ = &mut stop => Some(Ok(())),
                    end = phase => end,
                };
                if end.is_some() {
                    // Journals are synced as they are written: what a slow end would lose, a crash would too.
                    let _ = context.stop(0, Some(Duration::from_secs(3))).await;
                }
                end
            });
            if let Some(result) = end {
                return result;
            }
        }
    };
    // commonware's storage panics where a file cannot be written. What it was doing is as after a crash, and nobody looks at it any more.
    let result = std::panic::catch_unwind(AssertUnwindSafe(consensus)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
        Err(NodeError::stopped(failed.failure().unwrap_or(said).to_owned()))
    });
    // It may have stopped by itself.
    let _ = server.stop();
    clients.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Waits until the machine's clock is set back by [`CLOCK_STEP`] or more, and says by how much. Deadlines of consensus and quotas of
/// connections are times of that clock, so they would be waited for by as much longer: votes would come an hour late. A clock that is set
/// forward ends waits early, which consensus is made for.
async fn set_back() -> Duration {
    // In this order, and below in the other, a pause between the two looks like a step forward, never like one back.
    let mut wall = SystemTime::now();
    let mut steady = Instant::now();
    loop {
        tokio::time::sleep(CLOCK_INTERVAL).await;
        let passed = steady.elapsed();
        let now = SystemTime::now();
        let back = (wall + passed).duration_since(now).unwrap_or_default();
        if back >= CLOCK_STEP {
            return back;
        }
        (wall, steady) = (now, Instant::now());
    }
}

fn stopped(chain: &Chain) -> NodeError {
    NodeError::stopped(chain.failure().unwrap_or("the log says why").to_owned())
}

fn seats(chain: &Chain, key: &PublicKey) -> u32 {
    let key = <[u8; 32]>::try_from(key.encode().as_ref()).unwrap_or_default();
    chain.committee().map_or(0, |committee| committee.seats_of(&key))
}

/// The first key with a seat.
fn seated_key<'a>(chain: &Chain, keys: &'a [PrivateKey]) -> Option<&'a PrivateKey> {
    keys.iter().find(|key| seats(chain, &key.public_key()) > 0)
}

/// Takes part in consensus until it ends.
async fn validate(
    context: runtime::Context,
    config: Arc<NodeConfig>,
    keys: Vec<PrivateKey>,
    chain: Arc<Chain>,
) -> Result<End, NodeError> {
    // An epoch may have ended in the meantime.
    let Some(key) = seated_key(&chain, &keys).cloned() else { return Ok(End::Unseated) };
    let mine = |entry: &&Validator| keys.iter().any(|key| entry.key == public(key));
    let listed = config.genesis.validators.iter().find(mine);
    let beneficiary = match config.beneficiary {
        Some(beneficiary) => beneficiary,
        None => listed.map(|entry| Ok::<_, NodeError>(validator(entry)?.2)).transpose()?.unwrap_or_default(),
    };
    let handshake = Cups::<_, ChaCha20Poly1305>::new(
        Sake {
            signer: key.clone(),
            synchrony_bound: Duration::from_secs(5),
            max_handshake_age: Duration::from_secs(10),
            version: sake::Version::V1,
        },
        cups::Version::V1,
    );
    let genesis = chain.genesis().hash();
    let namespace = [b"assay network ".as_slice(), genesis.as_slice()].concat();
    let mut settings = lookup::Config::local(
        handshake,
        &namespace,
        config.listen,
        // A committee, and this node beside it.
        NZUsize!(MAX_MEMBERS + 1),
        consensus::largest_message(),
        NZUsize!(1024),
    );
    // A validator may be behind an address translator: what counts is its key.
    settings.bypass_ip_check = true;
    settings.tracked_peer_sets = NZUsize!(TRACKED_EPOCHS);
    let (mut network, oracle) = Network::new(context.child("network"), settings);
    let channels = CHANNELS.map(|(channel, rate)| network.register(channel, consensus::quota(rate)));
    let network = network.start();
    let mut manager = oracle.clone();
    let track = move |committee: &Committee| {
        // Who has said no endpoint connects by itself, and is at none until then.
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let peers = consensus::peers(committee)
            .into_iter()
            .map(|(key, endpoint)| (key, Endpoint::from(endpoint.parse().unwrap_or(nowhere))));
        manager.track(committee.epoch, Map::from_iter_dedup(peers));
    };
    let who = Participation {
        chain,
        key,
        beneficiary,
        pace: config.pace,
        clock: Arc::new(|now| now),
        partition: "validator".to_owned(),
        track: Box::new(track),
    };
    let consensus = consensus::start(context.child("node"), who, oracle.clone(), oracle, channels)
        .await
        .map_err(NodeError::Config)?;
    tokio::select! {
        end = consensus => Ok(end.unwrap_or(End::Failed)),
        _ = network => Ok(End::Failed),
    }
}
