//! `assay bench chain`: transfers a second and time to finality of chains with one and with four validators on this machine, and of
//! anvil in the same run. Every transfer is signed beforehand, and counts when it is in a block that the node shows.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assay_ledger::Validator;
use assay_ledger::types::{U256, hex};
use assay_node::node;
use assay_receipt::{Key, keccak256};
use assay_wallet::client::{Call, Client, Fees, address_of, sign};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ui::say;
use crate::{genesis, home, keys, ui};

/// Accounts that send, each its own transfers in order.
const SENDERS: usize = 64;
/// Transfers in one request.
const BATCH: usize = 100;
/// Measurements of the time to finality.
const SINGLES: usize = 15;
const READY: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(300);
const FEES: Fees = Fees { most: 1_000_000_000_000, tip: 1_000_000_000 };

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Transfers to send to each chain
    #[arg(long, default_value_t = 640, value_parser = clap::value_parser!(u32).range(64..=32_000))]
    transfers: u32,
    /// anvil's program, from `npm ci` in contracts
    #[arg(long, default_value = "contracts/node_modules/.bin/anvil")]
    anvil: PathBuf,
}

/// One chain's processes; ended when it goes out of scope.
struct Chain {
    name: String,
    children: Vec<Child>,
    client: Client,
}

impl Drop for Chain {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Measured {
    name: String,
    transfers_a_second: f64,
    /// Of one transfer on an idle chain, in milliseconds: the median and the longest.
    finality_ms: (u128, u128),
}

fn senders() -> Result<Vec<Key>> {
    (0..SENDERS)
        .map(|i| {
            Key::from_bytes(keccak256(format!("assay bench chain {i}")).0)
                .map_err(|error| Error::said(error.to_string()))
        })
        .collect()
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: std::io::Result<Vec<_>> =
        (0..count).map(|_| std::net::TcpListener::bind(("127.0.0.1", 0))).collect();
    let ports = listeners.and_then(|list| list.iter().map(|one| Ok(one.local_addr()?.port())).collect());
    ports.map_err(|error| Error::said(format!("no port is free on this machine: {error}")))
}

fn spawn(program: &Path, arguments: &[String]) -> Result<Child> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::said(format!("{} cannot be started: {error}", program.display())))
}

impl Chain {
    /// A chain of our own in `folder`.
    async fn ours(folder: &Path, validators: usize, accounts: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().map_err(|error| Error::said(error.to_string()))?;
        let ports = free_ports(2 * validators)?;
        let data = |number: usize| folder.join(format!("{validators}-{number}"));
        let mut listed = Vec::new();
        for number in 0..validators {
            home::create_private(&data(number))?;
            let secret = keys::validator_secret(&data(number).join("validator.key"), true)?;
            let key = node::public_key(&secret).map_err(|error| Error::said(error.to_string()))?;
            let endpoint = format!("127.0.0.1:{}", ports[2 * number]);
            listed.push(Validator { key, endpoint, beneficiary: genesis::NOBODY.to_owned() });
        }
        let file = folder.join(format!("genesis-{validators}.json"));
        genesis::write(&genesis::development(listed.clone(), accounts)?, &file)?;
        let name = format!("Assay, {validators} validator{}", if validators == 1 { "" } else { "s" });
        let client = Client::new(&format!("http://127.0.0.1:{}", ports[1]))?;
        let mut chain = Self { name, children: Vec::new(), client };
        for (number, validator) in listed.iter().enumerate() {
            let data = data(number).display().to_string();
            let arguments = [
                "node".to_owned(),
                "--genesis".to_owned(),
                file.display().to_string(),
                "--key".to_owned(),
                format!("{data}/validator.key"),
                "--data".to_owned(),
                data,
                "--listen".to_owned(),
                validator.endpoint.clone(),
                "--rpc".to_owned(),
                format!("127.0.0.1:{}", ports[2 * number + 1]),
            ];
            chain.children.push(spawn(&program, &arguments)?);
        }
        chain.ready("0x0").await?;
        Ok(chain)
    }

    async fn anvil(program: &Path, accounts: &[&str]) -> Result<Self> {
        let port = free_ports(1)?[0];
        let arguments = format!("--port {port} --silent --gas-limit 60000000 --chain-id 31415");
        let arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
        let client = Client::new(&format!("http://127.0.0.1:{port}"))?;
        let chain = Self { name: "anvil".to_owned(), children: vec![spawn(program, &arguments)?], client };
        chain.ready("").await?;
        for account in accounts {
            chain.client.request("anvil_setBalance", json!([account, "0x21e19e0c9bab2400000"])).await?;
        }
        Ok(chain)
    }

    /// Waits until the chain answers with another head than `first`.
    async fn ready(&self, first: &str) -> Result<()> {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if self.client.request("eth_blockNumber", json!([])).await.is_ok_and(|head| head != first) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Error::said(format!("{} did not start within {} s", self.name, READY.as_secs())))
    }

    async fn measure(&self, keys: &[Key], transfers: usize) -> Result<Measured> {
        let chain_id = self.client.chain_id().await?;
        let call = Call { to: Some(address_of(&keys[0])), value: U256::from(1), data: Vec::new() };
        let signed = |key: &Key, nonce: u64| {
            json!([format!("0x{}", hex::encode(sign(key, chain_id, nonce, 21_000, FEES, &call)))])
        };
        // Every sender's transfers in order, the senders in turn.
        let each = transfers / keys.len();
        let all: Vec<Value> = (0..each as u64)
            .flat_map(|nonce| keys.iter().map(move |key| (key, nonce)))
            .map(|(key, nonce)| signed(key, nonce))
            .collect();
        let began = Instant::now();
        for part in all.chunks(BATCH) {
            for answer in self.client.batch("eth_sendRawTransaction", part).await? {
                answer?;
            }
        }
        for key in keys {
            loop {
                let done = self
                    .client
                    .request("eth_getTransactionCount", json!([address_of(key).to_string(), "latest"]))
                    .await?;
                if done == json!(format!("{each:#x}")) {
                    break;
                }
                if began.elapsed() > LONGEST {
                    return Err(Error::said(format!("{} did not take all transfers", self.name)));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let transfers_a_second = all.len() as f64 / began.elapsed().as_secs_f64();
        let mut times = Vec::new();
        for nonce in 0..SINGLES as u64 {
            // Not in step with the blocks.
            tokio::time::sleep(Duration::from_millis(300 + nonce * 37 % 400)).await;
            let transfer = signed(&keys[0], each as u64 + nonce);
            let began = Instant::now();
            let hash = self.client.request("eth_sendRawTransaction", transfer).await?;
            while self.client.request("eth_getTransactionReceipt", json!([hash])).await?.is_null() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            times.push(began.elapsed().as_millis());
        }
        times.sort_unstable();
        let finality_ms = (times[times.len() / 2], times[times.len() - 1]);
        Ok(Measured { name: self.name.clone(), transfers_a_second, finality_ms })
    }
}

pub(crate) async fn run(args: &Args, json: bool) -> Result<()> {
    let keys = senders()?;
    let accounts: Vec<_> = keys.iter().map(|key| key.address().to_string()).collect();
    let accounts: Vec<_> = accounts.iter().map(String::as_str).collect();
    let folder = home::home()?.join(format!("bench-chain-{}", std::process::id()));
    home::create_private(&folder)?;
    let mut found = Vec::new();
    let work = async {
        for which in ["1", "4", "anvil"] {
            let spinner = ui::spinner(&format!("{} transfers to {which}", args.transfers));
            let chain = match which {
                "anvil" if !args.anvil.is_file() => {
                    eprintln!(
                        "{} is missing, so anvil is left out: run `npm ci` in contracts",
                        args.anvil.display()
                    );
                    break;
                }
                "anvil" => Chain::anvil(&args.anvil, &accounts).await?,
                "1" => Chain::ours(&folder, 1, &accounts).await?,
                _ => Chain::ours(&folder, 4, &accounts).await?,
            };
            found.push(chain.measure(&keys, args.transfers as usize).await?);
            spinner.finish_and_clear();
        }
        Ok::<(), Error>(())
    };
    let outcome = work.await;
    std::fs::remove_dir_all(&folder).map_err(Error::file("remove", &folder))?;
    outcome?;
    if json {
        let rows: Vec<_> = found
            .iter()
            .map(|row| {
                json!({"chain": row.name, "transfersPerSecond": row.transfers_a_second,
                    "finalityMs": {"median": row.finality_ms.0, "longest": row.finality_ms.1}})
            })
            .collect();
        ui::print_json(&json!({"machine": super::machine(), "transfers": args.transfers, "chains": rows}));
        return Ok(());
    }
    say!(
        "{}: {} transfers from {SENDERS} accounts, all processes on this machine\n",
        super::machine(),
        args.transfers
    );
    let rows: Vec<_> = found
        .iter()
        .map(|row| {
            vec![
                row.name.clone(),
                format!("{:.0}", row.transfers_a_second),
                row.finality_ms.0.to_string(),
                row.finality_ms.1.to_string(),
            ]
        })
        .collect();
    say!(
        "{}",
        ui::table(&["chain", "transfers/s", "a transfer is final after, ms (median)", "longest"], &rows)
    );
    Ok(())
}
