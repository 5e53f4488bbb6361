//! `assay node`: a validator of a chain.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use assay_ledger::{Genesis, Validator};
use assay_node::node::{self, NodeConfig};
use clap::Args;
use serde_json::json;

use crate::error::{Error, Result};
use crate::{genesis, home, keys, ui};

/// Where a node serves JSON-RPC when it is not told.
pub(crate) const DEFAULT_RPC: &str = "127.0.0.1:8645";

#[derive(Args)]
pub(crate) struct NodeArgs {
    /// The chain's genesis file
    #[arg(long, required_unless_present = "dev")]
    genesis: Option<PathBuf>,
    /// This validator's key file, as `assay keys validator` makes it
    #[arg(long, required_unless_present = "dev")]
    key: Option<PathBuf>,
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
    let (genesis, key) = match (&args.genesis, &args.key) {
        (Some(genesis), Some(key)) => (genesis::read(genesis)?, keys::validator_secret(key, false)?),
        _ => development(&data, args.listen)?,
    };
    let config =
        NodeConfig { genesis, data, key, listen: args.listen, rpc: args.rpc, pace: Default::default() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (done, ended) = tokio::sync::oneshot::channel();
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
        let _ = done.send(node::run(config, ready, stop));
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

/// The genesis and the key of a chain for development; made on first use.
fn development(data: &Path, listen: SocketAddr) -> Result<(Genesis, String)> {
    let file = data.join("genesis.json");
    let secret = keys::validator_secret(&data.join("validator.key"), true)?;
    if !file.exists() {
        let key = node::public_key(&secret).map_err(|error| Error::said(error.to_string()))?;
        let validator =
            Validator { key, endpoint: listen.to_string(), beneficiary: genesis::NOBODY.to_owned() };
        genesis::write(&genesis::development(vec![validator], &genesis::TEST_ACCOUNTS)?, &file)?;
    }
    Ok((genesis::read(&file)?, secret))
}
