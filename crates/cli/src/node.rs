//! `assay node`: a full node of a chain, which votes while its key has a seat.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use assay_ledger::types::{Address, hex};
use assay_ledger::{Block, Genesis, Transaction, Validator};
use assay_node::follow::{Proven, Source};
use assay_node::node::{self, NodeConfig};
use assay_wallet::client::Client;
use clap::Args;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::{genesis, home, keys, ui};

/// Where a node serves JSON-RPC when it is not told.
pub(crate) const DEFAULT_RPC: &str = "127.0.0.1:8645";

/// The genesis in a node's data folder.
pub(crate) const GENESIS: &str = "genesis.json";
/// The validator's key in a node's data folder.
pub(crate) const KEY: &str = "validator.key";
/// The key that `assay keys rotate` made there, to vote with when it has seats.
pub(crate) const NEXT_KEY: &str = "validator.next.key";

#[derive(Args)]
pub(crate) struct NodeArgs {
    /// The chain's genesis file; when left out, the one that `assay join` put into the data folder
    #[arg(long)]
    genesis: Option<PathBuf>,
    /// A validator's key file, as `assay keys validator` makes it: the node votes while the key has a seat. When left out, those that
    /// `assay join` and `assay keys rotate` made in the data folder; without any it only follows
    #[arg(long)]
    key: Option<PathBuf>,
    /// JSON-RPC of a node to follow while there is no seat, several times for several; those of the genesis when left out
    #[arg(long, value_name = "URL")]
    follow: Vec<String>,
    /// Who gets the tips of this validator's blocks; what the genesis says when left out
    #[arg(long)]
    beneficiary: Option<Address>,
    /// The folder for blocks and state; ~/.assay/node (or ~/.assay/dev-chain) when left out
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where other validators connect
    #[arg(long, default_value = "127.0.0.1:8640")]
    listen: SocketAddr,
    /// Where clients connect, by HTTP and WebSocket
    #[arg(long, default_value = DEFAULT_RPC)]
    rpc: SocketAddr,
    /// Make a chain for development on first use: this validator alone, the system contracts, and the well-known test accounts funded
    #[arg(long, conflicts_with_all = ["genesis", "key"])]
    dev: bool,
    /// End when standard input closes, as `assay up` wants of its processes
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
}

pub(crate) async fn run(args: NodeArgs, json: bool, told: impl Future<Output = ()>) -> Result<()> {
    let data = match (&args.data, args.dev) {
        (Some(folder), _) => folder.clone(),
        (None, true) => home::home()?.join("dev-chain"),
        (None, false) => home::home()?.join("node"),
    };
    home::create_private(&data)?;
    let (genesis, keys) = if args.dev {
        let (genesis, key) = development(&data, args.listen)?;
        (genesis, vec![key])
    } else {
        let joined = |name: &str| Some(data.join(name)).filter(|file| file.exists());
        let file = args.genesis.clone().or_else(|| joined(GENESIS)).ok_or_else(|| {
            Error::said("name the chain with --genesis FILE, or join one first: `assay join --role full --network FILE`")
        })?;
        let files = match &args.key {
            Some(key) => vec![key.clone()],
            None => [KEY, NEXT_KEY].into_iter().filter_map(joined).collect(),
        };
        let keys = files.iter().map(|file| keys::validator_secret(file, false)).collect::<Result<_>>()?;
        (genesis::read(&file)?, keys)
    };
    let follow = if args.follow.is_empty() { &genesis.follow } else { &args.follow };
    let sources = follow
        .iter()
        .map(|url| Client::new(url).map(Upstream).map_err(|error| Error::said(format!("{url}: {error}"))))
        .collect::<Result<Vec<_>>>()?;
    let config = NodeConfig {
        genesis,
        data,
        keys,
        beneficiary: args.beneficiary,
        listen: args.listen,
        rpc: args.rpc,
        pace: Default::default(),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (done, ended) = tokio::sync::oneshot::channel();
    // A panic ends the node with one sentence, which has the panic's own words.
    std::panic::set_hook(Box::new(|panic| tracing::debug!(%panic, "a part of the node panicked")));
    // Consensus has a runtime of its own, so it gets a thread of its own.
    std::thread::spawn(move || {
        let ready = move |address: SocketAddr| {
            if json {
                ui::print_json(&json!({ "rpc": format!("http://{address}") }));
            } else {
                eprintln!("JSON-RPC at http://{address} and ws://{address}");
            }
        };
        let stop = async {
            // Sent, or the sender is gone: both mean the end.
            let _ = stopped.await;
        };
        // Nobody waits any more when the process ends.
        let _ = done.send(node::run(config, sources, ready, stop));
    });
    let mut ended = std::pin::pin!(ended);
    let result = tokio::select! {
        result = &mut ended => result,
        () = told => {
            drop(stop);
            ended.await
        }
    };
    match result {
        Ok(result) => result.map_err(|error| Error::said(error.to_string())),
        Err(_) => Err(Error::said(
            "the node ended in a panic; what was finalized is kept: start it again, and report the message above",
        )),
    }
}

/// Another node's JSON-RPC.
struct Upstream(Client);

/// The bytes of `0x…`.
fn bytes(value: &Value) -> std::result::Result<Vec<u8>, String> {
    let text = value.as_str().ok_or("a value that is no text")?;
    hex::decode(text).map_err(|error| error.to_string())
}

impl Source for Upstream {
    async fn after(&self, number: u64) -> std::result::Result<Option<Proven>, String> {
        let params = json!([format!("{number:#x}")]);
        let answer = self.0.request("assay_getBlocks", params).await.map_err(|error| error.to_string())?;
        let Some(blocks) = answer["blocks"].as_array() else { return Ok(None) };
        let decode = |block: &Value| Block::decode(&bytes(block)?).map_err(|error| error.to_string());
        Ok(Some(Proven {
            blocks: blocks.iter().map(decode).collect::<std::result::Result<_, _>>()?,
            finalization: bytes(&answer["finalization"])?,
        }))
    }

    async fn send(&self, transaction: &Transaction) -> std::result::Result<(), String> {
        let params = json!([format!("0x{}", hex::encode(transaction.bytes()))]);
        self.0.request("eth_sendRawTransaction", params).await.map(drop).map_err(|error| error.to_string())
    }
}

/// The genesis and the key of a chain for development; made on first use.
fn development(data: &Path, listen: SocketAddr) -> Result<(Genesis, String)> {
    let file = data.join(GENESIS);
    let secret = keys::validator_secret(&data.join(KEY), true)?;
    if !file.exists() {
        let key = node::public_key(&secret).map_err(|error| Error::said(error.to_string()))?;
        let validator =
            Validator { key, endpoint: listen.to_string(), beneficiary: genesis::NOBODY.to_owned() };
        genesis::write(&genesis::development(vec![validator], &genesis::TEST_ACCOUNTS)?, &file)?;
    }
    Ok((genesis::read(&file)?, secret))
}
