//! A validator: the chain on disk, consensus with its peers over authenticated connections, JSON-RPC for clients.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use assay_ledger::types::{Address, hex};
use assay_ledger::{Genesis, PoolLimits, Validator};
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

use crate::chain::{Chain, ChainError};
use crate::consensus::{self, CHANNELS, Pace, Participation};
use crate::history::History;
use crate::rpc;

/// What a node needs to run.
pub struct NodeConfig {
    /// How the chain begins.
    pub genesis: Genesis,
    /// The folder for everything that it keeps; made where it is missing.
    pub data: PathBuf,
    /// This validator's secret: 32 bytes as 64 hexadecimal digits. See [`new_key`].
    pub key: String,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// Where clients connect.
    pub rpc: SocketAddr,
    /// How fast blocks come.
    pub pace: Pace,
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
    /// Consensus ended by itself.
    #[error("consensus stopped; the log says why. What was finalized is kept: start the node again")]
    Stopped,
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

/// Runs a validator until `stop` resolves. Blocks its thread, on which no other runtime may be at work. `ready` gets the
/// address of JSON-RPC when it serves.
pub fn run(
    config: NodeConfig,
    ready: impl FnOnce(SocketAddr) + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), NodeError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |error| NodeError::Io(what, error)
    };
    std::fs::create_dir_all(&config.data).map_err(io(&config.data.display().to_string()))?;
    let key = secret(&config.key)?;
    let keys = validators(&config.genesis)?;
    let me = key.public_key();
    let mut beneficiary = None;
    let mut peers = Vec::new();
    for entry in &config.genesis.validators {
        let (key, endpoint, tips) = validator(entry)?;
        if key == me {
            beneficiary = Some(tips);
        }
        peers.push((key, Endpoint::from(endpoint)));
    }
    let beneficiary = beneficiary.ok_or_else(|| {
        NodeError::Config(format!(
            "the key's public half {} is not among the validators of the genesis",
            public(&key)
        ))
    })?;
    let peers: Map<_, _> = Map::try_from(peers)
        .map_err(|_| NodeError::Config("the genesis names a validator twice".to_owned()))?;
    let database = config.data.join("chain.redb");
    let chain = Arc::new(Chain::open(&config.genesis, PoolLimits::default(), |first| {
        History::open(&database, first)
    })?);

    let storage = runtime::Config::new().with_storage_directory(config.data.join("consensus"));
    runtime::Runner::new(storage).start(|context| async move {
        let count = keys.len();
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
            NZUsize!(128),
            consensus::largest_message(count),
            NZUsize!(1024),
        );
        // A validator may be behind an address translator: what counts is its key.
        settings.bypass_ip_check = true;
        let (mut network, mut oracle) = Network::new(context.child("network"), settings);
        oracle.track(0, peers);
        let channels = CHANNELS.map(|(channel, rate)| network.register(channel, consensus::quota(rate)));
        let network = network.start();
        let who = Participation {
            chain: chain.clone(),
            key,
            validators: keys,
            beneficiary,
            pace: config.pace,
            partition: "validator".to_owned(),
        };
        let (consensus, certificates) =
            Box::pin(consensus::start(context.child("node"), who, oracle.clone(), oracle, channels))
                .await
                .map_err(NodeError::Config)?;
        let (address, server) = rpc::serve(chain, Some(certificates), config.rpc)
            .await
            .map_err(|error| NodeError::Io(format!("JSON-RPC could not listen at {}", config.rpc), error))?;
        ready(address);
        let result = tokio::select! {
            () = stop => Ok(()),
            _ = consensus => Err(NodeError::Stopped),
            _ = network => Err(NodeError::Stopped),
        };
        // It may have stopped by itself.
        let _ = server.stop();
        // Journals are synced as they are written: what a slow end would lose, a crash would too.
        let _ = context.stop(0, Some(Duration::from_secs(3))).await;
        result
    })
}
