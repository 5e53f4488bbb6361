//! `assay join`: brings a machine into a network as a validator, a worker or a full node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use assay_ledger::Genesis;
use assay_ledger::types::hex;
use assay_node::node;
use assay_wallet::abi::text;
use assay_wallet::chain::Chain;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::chain::{SignerArgs, number, opg, parse_opg};
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{genesis, home, keys, members, settle, ui};

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// Votes on blocks, in proportion to what it bonds
    Validator,
    /// Answers requests
    Worker,
    /// Follows the chain and serves JSON-RPC; needs nobody's permission and no key
    Full,
}

#[derive(Args)]
pub(crate) struct JoinArgs {
    /// What to join as
    #[arg(long, value_enum)]
    role: Role,
    /// The network's genesis file, which names nodes to ask
    #[arg(long, value_name = "GENESIS")]
    network: PathBuf,
    /// The folder of its data: of a worker that is running, or of the node; ~/.assay/worker or ~/.assay/node when left out
    #[arg(long)]
    data: Option<PathBuf>,
    /// OPG that a validator bonds, like 5000
    #[arg(long, required_if_eq("role", "validator"))]
    stake: Option<String>,
    /// Public key of a validator whose key file is elsewhere; when left out, a key is made in the data folder
    #[arg(long)]
    validator_key: Option<String>,
    /// Where the other validators reach yours, IP:PORT; without it, yours connects to them
    #[arg(long)]
    endpoint: Option<SocketAddr>,
    /// What a validator keeps of its delegators' rewards, in hundredths of a per cent
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(..=10_000))]
    commission: u16,
    /// The operator's or the validator's account, which pays the bond and can take it out again
    #[command(flatten)]
    signer: SignerArgs,
}

pub(crate) async fn run(mut args: JoinArgs, json: bool) -> Result<()> {
    let genesis = genesis::read(&args.network)?;
    args.signer.chain.prefer(genesis.follow.first());
    check_network(&args.signer.chain.open()?, &genesis).await?;
    let home = home::home()?;
    let folder = |name| args.data.clone().unwrap_or(home.join(name));
    match args.role {
        Role::Worker => worker(&args, &folder("worker"), json).await,
        Role::Full => {
            let data = folder("node");
            prepare(&genesis, &data)?;
            if json {
                ui::print_json(&json!({ "data": data, "rpc": args.signer.chain.url() }));
            } else {
                say!("the network's genesis is in {}", data.display());
                say!("start the node with `{}`", start(&args));
            }
            Ok(())
        }
        Role::Validator => validator(&args, &genesis, &folder("node"), json).await,
    }
}

/// Refuses a node that serves another chain than the genesis begins.
async fn check_network(chain: &Chain, genesis: &Genesis) -> Result<()> {
    let (_, first) = genesis.execute().map_err(|error| Error::Rejected(error.to_string()))?;
    let found = chain.client.request("eth_getBlockByNumber", json!(["0x0", false])).await?;
    let expected = first.block.hash().to_string();
    if found["hash"] != json!(expected) {
        return Err(Error::Rejected(format!(
            "the node's block 0 is {}, and the genesis makes {expected}: it serves another network; nothing was done",
            found["hash"]
        )));
    }
    Ok(())
}

/// Puts the genesis into a node's folder, from where `assay node` takes it.
fn prepare(genesis: &Genesis, data: &Path) -> Result<()> {
    home::create_private(data)?;
    let file = data.join(crate::node::GENESIS);
    if file.exists() {
        let there = genesis::read(&file)?;
        if there.to_json() != genesis.to_json() {
            return Err(Error::said(format!(
                "{} is of another network and is kept; say where else with --data",
                file.display()
            )));
        }
        return Ok(());
    }
    genesis::write(genesis, &file)
}

/// The command that starts the node.
fn start(args: &JoinArgs) -> String {
    let data = args.data.as_ref().map(|data| format!(" --data {}", data.display())).unwrap_or_default();
    let listen = args.endpoint.map(|endpoint| format!(" --listen {endpoint}")).unwrap_or_default();
    format!("assay node{data}{listen}")
}

async fn validator(args: &JoinArgs, genesis: &Genesis, data: &Path, json: bool) -> Result<()> {
    let amount = parse_opg(args.stake.as_deref().unwrap_or_default())?;
    let signer = args.signer.open()?;
    let me = signer.address();
    if signer.chain.view("Staking", "validatorOf", &[text(me)]).await?["key"] != "0x" {
        return Err(Error::Rejected(format!(
            "{me} is a validator already; `assay stake` bonds more with it"
        )));
    }
    let key = match &args.validator_key {
        Some(key) => key.trim_start_matches("0x").to_owned(),
        None => {
            prepare(genesis, data)?;
            let secret = keys::validator_secret(&data.join(crate::node::KEY), true)?;
            node::public_key(&secret).map_err(|error| Error::said(error.to_string()))?
        }
    };
    if key.len() != 64 {
        return Err(Error::said(format!("{key} is no validator's key: that has 64 hexadecimal digits")));
    }
    // The contract keeps one string of bytes: the key, then the endpoint as text.
    let endpoint = args.endpoint.map_or(String::new(), |endpoint| endpoint.to_string());
    let joined = json!(format!("0x{key}{}", hex::encode(endpoint)));
    signer.approve("Staking", amount).await?;
    let done = signer.send("Staking", "join", &[joined, json!(args.commission), text(amount)]).await?;
    if json {
        ui::print_json(&json!({
            "validator": me.to_string(), "key": key, "stake": amount.to_string(), "transaction": done.hash, "block": done.block,
        }));
        return Ok(());
    }
    say!("{} is a validator with {} OPG", ui::bold(&me.to_string()), opg(amount));
    say!("its seats are dealt at the end of the epoch; until then and after, its node must run:");
    say!("  {}", start(args));
    Ok(())
}

async fn worker(args: &JoinArgs, data: &Path, json: bool) -> Result<()> {
    let signer = args.signer.open()?;
    let member = members::descriptor(&data.join("worker.json"))?;
    let worker = settle::worker_key(data)?;
    settle::register(&signer, &member, &worker).await?;
    let operator = signer.chain.view("Registry", "operatorOf", &[text(signer.address())]).await?;
    let bond = number(&operator["bond"])?;
    if json {
        ui::print_json(&json!({
            "worker": member.worker, "operator": signer.address().to_string(), "name": operator["name"],
            "bond": bond.to_string(), "url": member.url,
        }));
        return Ok(());
    }
    say!("{} is registered at {}", ui::bold(&member.worker.to_string()), member.url);
    let name = operator["name"].as_str().unwrap_or_default();
    say!("operator {name} ({}), bond {} OPG", signer.address(), opg(bond));
    if member.key_epoch != 1 {
        let missing =
            "To be paid, it needs key_epoch = 1, the chain's domain and [worker.chain] in its configuration.";
        say!("{}", ui::dim(missing));
    }
    Ok(())
}
