//! `assay bench chain`: transfers a second and time to finality of chains with one and with four validators on this machine, and of
//! anvil in the same run. Every transfer is signed beforehand, and counts when it is in a block that the node shows.
//!
//! Then receipts: signed by a worker, with vouchers that a payer signed, settled in batches through the settlement contract of a chain
//! with one validator. They are signed beforehand too, as in life, where answers take longer than signatures. What is measured is checking
//! every voucher's signature, building the lines' sum trees, and submitting until the batch is final.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assay_ledger::Validator;
use assay_ledger::types::{U256, hex};
use assay_node::node;
use assay_receipt::{Bytes32, Domain, Key, Level, Member, Receipt, Signed, Voucher, keccak256, signed_all};
use assay_wallet::abi::text;
use assay_wallet::client::{Call, Client, Fees, address_of, sign};
use assay_wallet::settlement::{Line, Payable};
use serde_json::{Value, json};

use crate::chain::Signer;
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{genesis, home, keys, members, settle, ui};

/// Accounts that send, each its own transfers in order.
const SENDERS: usize = 64;
/// Transfers in one request.
const BATCH: usize = 100;
/// Requests under way at the same time.
const CONNECTIONS: usize = 4;
/// Receipts of a line, as workers settle them, and lines of a batch.
const LINE: usize = 1_000;
const LINES: usize = 20;
/// What a receipt of the measurement costs, in 10^-18 OPG: one for each of its tokens.
const PRICE: u128 = 30;
/// Measurements of the time to finality.
const SINGLES: usize = 15;
const READY: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(300);
const FEES: Fees = Fees { most: 1_000_000_000_000, tip: 1_000_000_000 };

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Transfers to send to each chain
    #[arg(long, default_value_t = 6_400, value_parser = clap::value_parser!(u32).range(64..=32_000))]
    transfers: u32,
    /// Receipts to settle
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    receipts: u32,
    /// anvil's program, from `npm ci` in contracts
    #[arg(long, default_value = "contracts/node_modules/.bin/anvil")]
    anvil: PathBuf,
}

/// One chain's processes; ended when it goes out of scope.
struct Chain {
    name: String,
    children: Vec<Child>,
    rpc: String,
    client: Client,
    /// The first validator's data, of a chain of our own.
    data: Option<PathBuf>,
}

impl Drop for Chain {
    fn drop(&mut self) {
        for child in &mut self.children {
            // With what it started: npm's anvil is a script that starts the program. It may have ended by itself.
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
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
    /// Of the first validator's disk for each transfer, where it is a chain of our own.
    disk_bytes: Option<f64>,
}

/// What a folder takes on the disk, in bytes: files have holes.
fn on_disk(path: &Path) -> std::io::Result<u64> {
    let about = path.symlink_metadata()?;
    let mut bytes = about.blocks() * 512;
    if about.is_dir() {
        for entry in std::fs::read_dir(path)? {
            // A node removes files while one looks.
            bytes += on_disk(&entry?.path()).unwrap_or(0);
        }
    }
    Ok(bytes)
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
        .process_group(0)
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
        let rpc = format!("http://127.0.0.1:{}", ports[1]);
        let client = Client::new(&rpc)?;
        let mut chain = Self { name, children: Vec::new(), rpc, client, data: Some(data(0)) };
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
        let rpc = format!("http://127.0.0.1:{port}");
        let client = Client::new(&rpc)?;
        let chain = Self {
            name: "anvil".to_owned(),
            children: vec![spawn(program, &arguments)?],
            rpc,
            client,
            data: None,
        };
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

    /// What the first validator has on its disk, in bytes.
    fn disk(&self) -> Result<Option<u64>> {
        let data = self.data.as_ref();
        data.map(|data| on_disk(data).map_err(Error::file("read", data))).transpose()
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
        let disk = self.disk()?;
        let began = Instant::now();
        // Each sender's transfers go through one connection, in order.
        let parts = all
            .chunks(keys.len())
            .flat_map(|round| round.chunks(keys.len().div_ceil(CONNECTIONS)).enumerate());
        let mut connections = vec![Vec::new(); CONNECTIONS];
        parts.for_each(|(connection, part)| connections[connection].extend_from_slice(part));
        let sending = connections.iter().map(|transfers| async {
            for part in transfers.chunks(BATCH) {
                for answer in self.client.batch("eth_sendRawTransaction", part).await? {
                    answer?;
                }
            }
            Ok::<(), Error>(())
        });
        futures_util::future::try_join_all(sending).await?;
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
        let grown = self.disk()?.zip(disk).map(|(after, before)| after.saturating_sub(before) as f64);
        let disk_bytes = grown.map(|bytes| bytes / all.len() as f64);
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
        Ok(Measured { name: self.name.clone(), transfers_a_second, finality_ms, disk_bytes })
    }
}

/// What settling took.
struct Settled {
    receipts: usize,
    batches: usize,
    /// Checking the vouchers' signatures, sum trees, and from the first submission until the last batch is final.
    seconds: [f64; 3],
    gas: u64,
    /// Of slots that were empty before: 32 bytes each for the slot and its value.
    state_bytes: usize,
    /// By which the validator's disk grew: blocks, receipts, logs, state, and consensus's own files.
    disk_bytes: u64,
}

/// A receipt that the contract would pay, with its voucher.
fn payable(domain: &Domain, worker: &Key, payer: &Key, now_ms: u64, index: u64) -> Payable {
    let model = Bytes32([7; 32]);
    let mut nonce = Bytes32::ZERO;
    nonce.0[..8].copy_from_slice(&now_ms.to_be_bytes());
    nonce.0[8..16].copy_from_slice(&index.to_be_bytes());
    let request = Bytes32(keccak256(nonce.0).0);
    let receipt = Receipt {
        worker: worker.address(),
        key_epoch: 1,
        model,
        arithmetic: 1,
        level: Level::Signed,
        request,
        output: request,
        chunks: 3,
        chain: request,
        trace: Bytes32::ZERO,
        prompt_tokens: 10,
        completion_tokens: 20,
        price: PRICE,
        payer: payer.address(),
        cap: PRICE,
        nonce,
        sequence: index,
        previous: request,
        received_at_ms: now_ms,
        first_token_at_ms: now_ms,
        finished_at_ms: now_ms,
    };
    let voucher = Voucher {
        payer: payer.address(),
        worker: worker.address(),
        model,
        request,
        nonce,
        prompt: Bytes32::ZERO,
        prompt_price: 1,
        completion_price: 1,
        cap: PRICE,
        expires_at_ms: now_ms + 1_000,
    };
    Payable { receipt: Signed::sign(worker, domain, receipt), voucher: Signed::sign(payer, domain, voucher) }
}

/// Does a piece of work on every part of a list, on all processors.
fn parallel<T: Sync, U: Send>(list: &[T], work: impl Fn(&[T]) -> U + Sync) -> Vec<U> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = &work;
    std::thread::scope(|scope| {
        let parts: Vec<_> = list
            .chunks(list.len().div_ceil(threads).max(1))
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        // A part panics only where the whole would have.
        parts.into_iter().filter_map(|part| part.join().ok()).collect()
    })
}

impl Chain {
    async fn settle(&self, operator: Key, worker: &Key, payer: &Key, receipts: usize) -> Result<Settled> {
        let signer = Signer::new(&self.rpc, operator)?;
        let member = Member {
            worker: worker.address(),
            key_epoch: 1,
            operator: "bench".to_owned(),
            url: "https://192.0.2.1:1".to_owned(),
            tls_sha256: Bytes32([9; 32]),
            models: Vec::new(),
        };
        settle::register(&signer, &member, worker).await?;
        settle::deposit(&signer, address_of(payer), U256::from(PRICE * receipts as u128)).await?;
        let domain = settle::domain(self.client.chain_id().await?);
        let now_ms = members::now_s() * 1_000;
        let indices: Vec<_> = (0..receipts as u64).collect();
        let payables = parallel(&indices, |part| {
            part.iter().map(|index| payable(&domain, worker, payer, now_ms, *index)).collect::<Vec<_>>()
        })
        .concat();
        // The contract's own opinion of one of them.
        let one = Line::new(payables[..1].to_vec()).json();
        let price = json!(PRICE.to_string());
        let arguments = [text(worker.address()), json!(members::now_s()), one, price, payables[0].leaf()];
        let fault = signer.chain.view("Rules", "fault", &arguments).await?;
        if fault != "" {
            return Err(Error::said(format!("a receipt of the measurement is not payable: {fault}")));
        }

        let began = Instant::now();
        let good = parallel(&payables, |part| {
            let signed = part.iter().map(|one| (one.voucher.hash(&domain), one.voucher.signature));
            signed_all(&payer.address(), &signed.collect::<Vec<_>>())
        });
        let checked = began.elapsed();
        if good.contains(&false) {
            return Err(Error::said("a voucher of the measurement is not signed by its payer"));
        }
        let lines: Vec<_> = payables.chunks(LINE).collect();
        let lines =
            parallel(&lines, |part| part.iter().map(|line| Line::new(line.to_vec())).collect::<Vec<_>>());
        let lines: Vec<_> = lines.into_iter().flatten().collect();
        let built = began.elapsed();
        let disk = self.disk()?;
        let (mut gas, mut sent_batches) = (0, Vec::new());
        for batch in lines.chunks(LINES) {
            let batch: Vec<_> = batch.iter().map(Line::json).collect();
            let arguments = [text(worker.address()), json!(batch)];
            let sent = signer.chain.transact(worker, "Settlement", "submit", &arguments).await?;
            gas += sent.gas;
            sent_batches.push(sent.hash);
        }
        let settled = began.elapsed();
        let disk_bytes = self.disk()?.zip(disk).map_or(0, |(after, before)| after.saturating_sub(before));
        // The contract leaves lines out that it does not take, and the deposit was exactly for all.
        if !settle::deposit_of(&signer.chain, address_of(payer)).await?.is_zero() {
            return Err(Error::said("a batch of the measurement was not settled as a whole"));
        }
        let mut slots = 0;
        for hash in &sent_batches {
            let options = json!({"disableStack": true});
            let trace = self.client.request("debug_traceTransaction", json!([hash, options])).await?;
            let steps = trace["structLogs"].as_array().map(Vec::as_slice).unwrap_or_default();
            // What EIP-2200 charges for a slot that was empty.
            let new = |step: &&Value| step["op"] == "SSTORE" && step["gasCost"].as_u64() >= Some(20_000);
            slots += steps.iter().filter(new).count();
        }
        let seconds = [checked, built - checked, settled - built].map(|time| time.as_secs_f64());
        Ok(Settled {
            receipts,
            batches: sent_batches.len(),
            seconds,
            gas,
            state_bytes: 64 * slots,
            disk_bytes,
        })
    }
}

pub(crate) async fn run(args: &Args, json: bool) -> Result<()> {
    let keys = senders()?;
    let accounts: Vec<_> = keys.iter().map(|key| key.address().to_string()).collect();
    let accounts: Vec<_> = accounts.iter().map(String::as_str).collect();
    let folder = home::home()?.join(format!("bench-chain-{}", std::process::id()));
    home::create_private(&folder)?;
    let (mut found, mut settled) = (Vec::new(), None);
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
            if which == "1" {
                let spinner = ui::spinner(&format!("{} receipts", args.receipts));
                let (worker, payer) = (&keys[1], &keys[2]);
                let operator = senders()?.swap_remove(0);
                settled = Some(chain.settle(operator, worker, payer, args.receipts as usize).await?);
                spinner.finish_and_clear();
            }
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
                    "finalityMs": {"median": row.finality_ms.0, "longest": row.finality_ms.1},
                    "diskBytesPerTransfer": row.disk_bytes})
            })
            .collect();
        let settled = settled.map(|done| {
            json!({
                "receipts": done.receipts, "batches": done.batches, "checkSeconds": done.seconds[0], "treeSeconds": done.seconds[1],
                "submitSeconds": done.seconds[2], "gas": done.gas, "stateBytes": done.state_bytes, "diskBytes": done.disk_bytes,
            })
        });
        ui::print_json(&json!({
            "machine": super::machine(), "transfers": args.transfers, "chains": rows, "settlement": settled,
        }));
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
                row.disk_bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{bytes:.0}")),
            ]
        })
        .collect();
    say!(
        "{}",
        ui::table(
            &[
                "chain",
                "transfers/s",
                "a transfer is final after, ms (median)",
                "longest",
                "bytes on disk a transfer"
            ],
            &rows
        )
    );
    if let Some(done) = settled {
        let [check, trees, submit] = done.seconds;
        let receipts = done.receipts as f64;
        say!(
            "\n{} receipts in {} batches of lines of {LINE}, with one validator: {:.0} receipts/s, every voucher's signature checked\n\
             ({check:.2} s), sum trees built ({trees:.2} s), submitted and final ({submit:.2} s: {:.0} receipts/s); a receipt leaves {:.2} bytes of\n\
             state, takes {:.1} bytes of the validator's disk and costs {:.0} gas.",
            done.receipts,
            done.batches,
            receipts / (check + trees + submit),
            receipts / submit,
            done.state_bytes as f64 / receipts,
            done.disk_bytes as f64 / receipts,
            done.gas as f64 / receipts,
        );
    }
    Ok(())
}
