//! `assay node`: a full node of a chain, which votes while its key has a seat.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use assay_ledger::types::{Address, hex};
use assay_ledger::{Block, Committee, Genesis, Header, Part, Piece, Transaction, Validator};
use assay_node::chain::OFFER_INTERVAL;
use assay_node::follow::{Proven, Source};
use assay_node::history::Retention;
use assay_node::node::{self, NodeConfig};
use assay_node::sync::{self, EpochEnd, Offer, Progress};
use assay_wallet::client::Client;
use clap::Args;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::{config, genesis, home, keys, ui};

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
    /// The configuration file, whose section [node] says how much is kept; ~/.assay/config.toml when left out
    #[arg(long)]
    config: Option<PathBuf>,
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
    let settings = settings(args.config.as_deref())?;
    let config = NodeConfig {
        genesis,
        data,
        keys,
        beneficiary: args.beneficiary,
        listen: args.listen,
        rpc: args.rpc,
        pace: Default::default(),
        retention: Retention { blocks: Some(settings.keep_blocks).filter(|blocks| *blocks > 0) },
        progress: progress(json),
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

/// What a node of this machine keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// So many last blocks, with receipts and logs; 0 keeps all.
    pub(crate) keep_blocks: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keep_blocks: Retention::default().blocks.unwrap_or(0) }
    }
}

/// Nodes that follow must find the blocks since the states that are offered.
const LEAST_KEPT: u64 = 8 * OFFER_INTERVAL;

impl Settings {
    pub(crate) fn check(&self) -> Result<()> {
        if (1..LEAST_KEPT).contains(&self.keep_blocks) {
            return Err(Error::said(format!(
                "keep_blocks = {} in [node] is too few: others could not follow; at least {LEAST_KEPT}, or 0 for all",
                self.keep_blocks
            )));
        }
        Ok(())
    }
}

fn settings(file: Option<&Path>) -> Result<Settings> {
    let path = file.map_or_else(config::default_path, |file| Ok(file.to_owned()))?;
    // A node runs without a configuration, where none is named.
    let settings = if file.is_none() && !path.exists() {
        Settings::default()
    } else {
        config::read(&path)?.node.unwrap_or_default()
    };
    settings.check()?;
    Ok(settings)
}

/// Shows how far a state has come that other nodes send.
fn progress(json: bool) -> Box<dyn Fn(Option<Progress>) + Send + Sync> {
    let bar = Mutex::new(None::<ProgressBar>);
    Box::new(move |progress| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Some(Progress { block, done, bytes }) if json => {
                ui::print_json(&json!({ "syncing": { "block": block, "perMille": done, "bytes": bytes } }));
            }
            Some(Progress { block, done, .. }) => {
                let bar = bar.get_or_insert_with(|| ui::bar(1_000, "", false));
                bar.set_message(format!("state of block {block}"));
                bar.set_position(done.into());
            }
            None => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// Another node's JSON-RPC.
struct Upstream(Client);

impl Upstream {
    async fn ask(&self, method: &str, params: Value) -> std::result::Result<Value, String> {
        self.0.request(method, params).await.map_err(|error| error.to_string())
    }
}

/// The bytes of `0x…`.
fn bytes(value: &Value) -> std::result::Result<Vec<u8>, String> {
    let text = value.as_str().ok_or("a value that is no text")?;
    hex::decode(text).map_err(|error| error.to_string())
}

fn header(value: &Value) -> std::result::Result<Header, String> {
    sync::header(&bytes(value)?).ok_or_else(|| "no header where one belongs".to_owned())
}

impl Source for Upstream {
    async fn after(&self, number: u64) -> std::result::Result<Option<Proven>, String> {
        let params = json!([format!("{number:#x}")]);
        let answer = self.ask("assay_getBlocks", params).await?;
        let Some(blocks) = answer["blocks"].as_array() else { return Ok(None) };
        let decode = |block: &Value| Block::decode(&bytes(block)?).map_err(|error| error.to_string());
        Ok(Some(Proven {
            blocks: blocks.iter().map(decode).collect::<std::result::Result<_, _>>()?,
            finalization: bytes(&answer["finalization"])?,
        }))
    }

    async fn offer(&self) -> std::result::Result<Option<Offer>, String> {
        let answer = self.ask("assay_getOffer", json!([])).await?;
        let Some(headers) = answer["headers"].as_array() else { return Ok(None) };
        let headers = headers.iter().map(header).collect::<std::result::Result<_, _>>()?;
        Ok(Some(Offer { headers, finalization: bytes(&answer["finalization"])? }))
    }

    async fn epochs(&self, first: u64) -> std::result::Result<Vec<EpochEnd>, String> {
        let answer = self.ask("assay_getEpochs", json!([format!("{first:#x}")])).await?;
        let end = |end: &Value| {
            let next =
                Committee::decode(&bytes(&end["committee"])?).ok_or("no committee where one belongs")?;
            Ok(EpochEnd { header: header(&end["header"])?, finalization: bytes(&end["finalization"])?, next })
        };
        answer.as_array().ok_or("no list of epochs")?.iter().map(end).collect()
    }

    async fn piece(&self, block: u64, part: &Part) -> std::result::Result<Piece, String> {
        let account = part.account().map(|account| account.to_string());
        let params = json!([format!("{block:#x}"), hex::encode_prefixed(part.path()), account]);
        let answer = self.ask("assay_getState", params).await?;
        // Its length is checked before anything is made of it.
        Piece::decode(&bytes(&answer)?).map_err(|error| error.to_string())
    }

    async fn send(&self, transaction: &Transaction) -> std::result::Result<(), String> {
        let params = json!([format!("0x{}", hex::encode(transaction.bytes()))]);
        self.ask("eth_sendRawTransaction", params).await.map(drop)
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
