//! `assay settle`: brings the receipts that a gateway keeps to the settlement contract, in batches, and has batches paid whose window is
//! over. And `assay receipts --settled`: what became of each receipt there.
//!
//! It speaks for an operator whose workers answered, and for the payer, whose vouchers it signs: on one machine, both are its owner's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use assay_ledger::types::{Address, B256, U256, hex};
use assay_receipt::{Bundle, Domain, Key, Level, Member, Offer};
use assay_wallet::abi::text;
use assay_wallet::client::{ClientError, address_of};
use assay_wallet::registry::sign_worker_key;
use assay_wallet::settlement::{Line, Payable};
use assay_wallet::system::contract;
use clap::Args;
use serde_json::{Value, json};

use crate::chain::{Chain, Signer, SignerArgs, number, opg};
use crate::client::{self, Gateway};
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{keys, members, ui};

/// Most receipts of one round.
const ROUND: usize = 1_000;
/// A node looks for logs in so many blocks at once.
const BLOCKS: u64 = 10_000;
/// What a payer deposits where it has less: 100 OPG.
const DEPOSIT: u128 = 100_000_000_000_000_000_000;

#[derive(Args)]
pub(crate) struct SettleArgs {
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
    /// The payer's key: a name of `assay keys list`, or a key file
    #[arg(long)]
    payer_key: String,
    /// Seconds between rounds; one round when left out
    #[arg(long)]
    every: Option<u64>,
    /// The operator's key and the chain
    #[command(flatten)]
    signer: SignerArgs,
    /// End when standard input closes, as `assay up` wants of its processes
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
}

/// A batch on the chain.
struct Batch {
    id: u64,
    worker: String,
    lines: Value,
    state: &'static str,
    final_at: u64,
}

impl Batch {
    /// Whether a receipt is in it: by worker, model, and the first half of its nonce, which a request id has.
    fn has(&self, worker: &str, model: &str, digits: &str) -> bool {
        let within = |line: &Value| {
            let part = |name: &str| {
                line[name].as_str().and_then(|text| text.get(2..34)).unwrap_or_default().to_owned()
            };
            line["model"] == model && part("first").as_str() <= digits && digits <= part("last").as_str()
        };
        self.worker.eq_ignore_ascii_case(worker) && self.lines.as_array().into_iter().flatten().any(within)
    }
}

/// All batches, the oldest first.
async fn batches(chain: &Chain) -> Result<Vec<Batch>> {
    let event = contract("Settlement").and_then(|contract| contract.event("Submitted"));
    let event = event.ok_or_else(|| Error::said("the settlement contract has no event Submitted"))?;
    let settlement = chain.system.address("Settlement").map_err(ClientError::from)?;
    let head = number(&chain.client.request("eth_blockNumber", json!([])).await?)?.saturating_to::<u64>();
    let mut found = Vec::new();
    for from in (0..=head).step_by(BLOCKS as usize) {
        let filter = json!({
            "fromBlock": format!("{from:#x}"), "toBlock": format!("{:#x}", head.min(from + BLOCKS - 1)),
            "address": settlement.to_string(), "topics": [B256::from(event.hash()).to_string()],
        });
        for log in
            chain.client.request("eth_getLogs", json!([filter])).await?.as_array().into_iter().flatten()
        {
            let data = hex::decode(log["data"].as_str().unwrap_or_default()).unwrap_or_default();
            let data = event.output(&data).map_err(ClientError::from)?;
            let id = number(&log["topics"][1])?.saturating_to::<u64>();
            let worker =
                log["topics"][2].as_str().and_then(|topic| topic.parse::<B256>().ok()).unwrap_or_default();
            let batch = chain.view("Settlement", "batchOf", &[json!(id)]).await?;
            let state = match batch["state"].as_u64() {
                Some(1) => "pending",
                Some(2) => "paid",
                Some(3) => "void",
                _ => "unknown",
            };
            found.push(Batch {
                id,
                worker: Address::from_word(worker).to_string(),
                lines: data["lines"].clone(),
                state,
                final_at: batch["finalAt"].as_u64().unwrap_or_default(),
            });
        }
    }
    Ok(found)
}

/// The digits of a request id that are the first half of its nonce.
fn digits(row: &Value) -> &str {
    row["request_id"].as_str().and_then(|id| id.rsplit(['-', '_']).next()).unwrap_or_default()
}

struct Settler {
    gateway: Gateway,
    signer: Signer,
    payer: Key,
    domain: Domain,
}

impl Settler {
    async fn open(args: &SettleArgs) -> Result<Self> {
        let signer = args.signer.open()?;
        let contract = signer.chain.system.address("Settlement").map_err(ClientError::from)?;
        let chain_id = signer.chain.client.chain_id().await?;
        Ok(Self {
            gateway: Gateway::new(&args.gateway)?,
            payer: keys::named(&args.payer_key)?,
            domain: Domain { chain_id, contract: assay_receipt::Address(contract.0.0) },
            signer,
        })
    }

    /// Submits what can be; how many receipts of which workers.
    async fn submit(&self) -> Result<Vec<Value>> {
        let list = self.gateway.get(&format!("/assay/receipts?limit={ROUND}")).await?;
        let rows = list["receipts"].as_array().cloned().unwrap_or_default();
        // Nonces settle in ascending order, so nothing is settled beyond a request that is under way.
        let held = rows.iter().filter(|row| row["settled_at_ms"].is_null()).map(digits).min();
        let mut groups: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
        for row in &rows {
            let open = held.is_none_or(|held| digits(row) < held);
            if let (true, Some(worker), Some(model), Some(_)) =
                (open, row["worker"].as_str(), row["model_id"].as_str(), row["receipt_hash"].as_str())
            {
                groups.entry((worker.to_owned(), model.to_owned())).or_default().push(row);
            }
        }
        let mut lines: BTreeMap<String, Vec<Line>> = BTreeMap::new();
        for ((worker, model), rows) in groups {
            let who = [text(self.payer.address()), json!(worker), json!(model)];
            let settled = self.signer.chain.view("Settlement", "settledUpTo", &who).await?;
            let settled = settled.as_str().and_then(|nonce| nonce.get(2..34)).unwrap_or_default().to_owned();
            let offer = self.signer.chain.view("Registry", "offerOf", &who[1..]).await?;
            let (prompt, completion) = (number(&offer["promptPrice"])?, number(&offer["completionPrice"])?);
            let mut payable = Vec::new();
            for row in rows.into_iter().filter(|row| digits(row) > settled.as_str()) {
                let id = row["request_id"].as_str().unwrap_or_default();
                let bundle = self.gateway.get(&format!("/assay/receipts/{id}")).await?;
                let bundle: Bundle = serde_json::from_value(bundle)
                    .map_err(|error| Error::said(format!("the bundle of {id} cannot be read: {error}")))?;
                let receipt = bundle.receipt;
                if bundle.domain != self.domain || receipt.statement.payer != self.payer.address() {
                    continue;
                }
                let one = Payable::sign(
                    &self.payer,
                    &self.domain,
                    receipt,
                    prompt.saturating_to(),
                    completion.saturating_to(),
                );
                match self.fault(&one).await? {
                    None => payable.push(one),
                    Some(fault) => {
                        tracing::warn!(request = id, fault, "a receipt is not payable and is left out")
                    }
                }
            }
            if !payable.is_empty() {
                lines.entry(worker).or_default().push(Line::new(payable).map_err(ClientError::from)?);
            }
        }
        let mut done = Vec::new();
        for (worker, lines) in lines {
            let count: usize = lines.iter().map(|line| line.receipts.len()).sum();
            let sum: u128 =
                lines.iter().flat_map(|line| &line.receipts).map(|one| one.receipt.statement.price).sum();
            let lines: Vec<_> = lines.iter().map(Line::json).collect();
            let sent = self.signer.send("Settlement", "submit", &[json!(worker), json!(lines)]).await?;
            done.push(json!({
                "worker": worker, "receipts": count, "sum": sum.to_string(), "transaction": sent.hash,
                "block": sent.block, "gas": sent.gas,
            }));
        }
        Ok(done)
    }

    /// Why the contract would not pay a receipt.
    async fn fault(&self, one: &Payable) -> Result<Option<String>> {
        let now = members::now_s();
        let line = Line::new(vec![one.clone()]).map_err(ClientError::from)?.json();
        let r = &one.receipt.statement;
        let arguments = [text(r.worker), json!(now), line, json!(r.price.to_string()), one.leaf()];
        let fault = self.signer.chain.view("Rules", "fault", &arguments).await?;
        Ok(fault.as_str().filter(|fault| !fault.is_empty()).map(str::to_owned))
    }

    /// Has batches paid whose window is over.
    async fn pay(&self) -> Result<Vec<u64>> {
        let mut paid = Vec::new();
        for batch in batches(&self.signer.chain).await? {
            if batch.state == "pending" && batch.final_at < members::now_s() {
                match self.signer.send("Settlement", "pay", &[json!(batch.id), batch.lines]).await {
                    Ok(_) => paid.push(batch.id),
                    // The chain's clock is a little behind, or a demand is open.
                    Err(Error::Rejected(why)) => tracing::info!(batch = batch.id, why, "not paid yet"),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(paid)
    }
}

pub(crate) async fn run(args: SettleArgs, json: bool, told: impl Future<Output = ()>) -> Result<()> {
    let settler = Settler::open(&args).await?;
    let mut told = std::pin::pin!(told);
    loop {
        let round = async { Ok::<_, Error>((settler.submit().await?, settler.pay().await?)) };
        match round.await {
            Ok((submitted, paid)) if json => ui::print_json(&json!({ "submitted": submitted, "paid": paid })),
            Ok((submitted, paid)) => {
                for batch in &submitted {
                    let worker = batch["worker"].as_str().unwrap_or_default();
                    say!(
                        "{} receipts of {worker} in block {}, {} gas",
                        batch["receipts"],
                        batch["block"],
                        batch["gas"]
                    );
                }
                for batch in &paid {
                    say!("batch {batch} is paid");
                }
            }
            Err(error) if args.every.is_none() => return Err(error),
            Err(error) => eprintln!("{error}; trying again"),
        }
        let Some(seconds) = args.every else { return Ok(()) };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds.max(1))) => {}
            () = &mut told => return Ok(()),
        }
    }
}

/// Says of each receipt of a gateway where it is on the chain.
pub(crate) async fn settled(chain: &Chain, rows: &[Value], json: bool) -> Result<()> {
    let batches = batches(chain).await?;
    let mut documents = Vec::new();
    for row in rows {
        let (worker, model) =
            (row["worker"].as_str().unwrap_or_default(), row["model_id"].as_str().unwrap_or_default());
        let batch = batches.iter().find(|batch| batch.has(worker, model, digits(row)));
        documents.push(json!({
            "request_id": row["request_id"], "operator": row["operator"], "price": row["bill"]["price"],
            "batch": batch.map(|batch| batch.id), "settlement": batch.map_or("not yet", |batch| batch.state),
            "final_at_s": batch.map(|batch| batch.final_at),
        }));
    }
    if json {
        ui::print_json(&json!({ "receipts": documents }));
        return Ok(());
    }
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        value => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    };
    let rows: Vec<_> = documents
        .iter()
        .map(|row| {
            let price =
                row["price"].as_str().and_then(|price| price.parse().ok()).map_or("-".to_owned(), opg);
            vec![
                cell(&row["request_id"]),
                cell(&row["operator"]),
                price,
                cell(&row["batch"]),
                cell(&row["settlement"]),
            ]
        })
        .collect();
    say!("{}", ui::table(&["request", "operator", "price, OPG", "batch", "settlement"], &rows));
    Ok(())
}

/// Registers a worker under the signer, which becomes an operator with the least bond if it is none; a worker that is there is kept.
pub(crate) async fn register(signer: &Signer, name: &str, member: &Member, worker: &Key) -> Result<()> {
    let (me, chain) = (text(signer.address()), &signer.chain);
    if chain.view("Registry", "operatorOf", std::slice::from_ref(&me)).await?["name"] == "" {
        let bond = chain.number("Registry", "leastBond", &[]).await?;
        signer.approve("Registry", bond).await?;
        signer.send("Registry", "registerOperator", &[json!(name), text(bond)]).await?;
    }
    let address = text(address_of(worker));
    let known = chain.view("Registry", "keyOf", std::slice::from_ref(&address)).await?;
    if known["operator"] == text(Address::ZERO) {
        let registry = chain.system.address("Registry").map_err(ClientError::from)?;
        let chain_id = chain.client.chain_id().await?;
        let signature = sign_worker_key(worker, chain_id, registry, signer.address(), 1);
        let arguments = [address.clone(), json!(member.url), json!(member.tls_sha256), json!(signature)];
        signer.send("Registry", "addWorker", &arguments).await?;
    }
    for Offer { model, name, prompt_price, completion_price, arithmetic, context } in &member.models {
        let levels = if *arithmetic == 0 { 1 } else { 1 | 1 << Level::Replayed as u8 };
        let offer = json!({
            "promptPrice": prompt_price.to_string(), "completionPrice": completion_price.to_string(),
            "arithmetic": arithmetic, "context": context, "levels": levels, "name": name,
        });
        if chain.view("Registry", "offerOf", &[address.clone(), json!(model)]).await? != offer {
            signer.send("Registry", "setOffer", &[address.clone(), json!(model), offer]).await?;
        }
    }
    Ok(())
}

/// Fills up a payer's deposit from the signer's OPG.
pub(crate) async fn deposit(signer: &Signer, payer: &Key) -> Result<()> {
    let payer = text(payer.address());
    let found = signer.chain.view("Deposits", "depositOf", std::slice::from_ref(&payer)).await?;
    let missing = DEPOSIT.saturating_sub(number(&found["balance"])?.saturating_to());
    if missing > DEPOSIT / 2 {
        signer.approve("Deposits", U256::from(missing)).await?;
        signer.send("Deposits", "deposit", &[payer, text(missing)]).await?;
    }
    Ok(())
}

/// A worker's own key, in its data folder.
pub(crate) fn worker_key(data: &Path) -> Result<Key> {
    let path = data.join("identity.key");
    let bytes = crate::home::read_bounded(&path, 32)?;
    let bytes: [u8; 32] =
        bytes.try_into().map_err(|_| Error::said(format!("{} is no worker's key", path.display())))?;
    Key::from_bytes(bytes).map_err(|error| Error::said(format!("{}: {error}", path.display())))
}

/// Where statements count that settle on a chain made by `assay genesis`.
pub(crate) fn domain(chain_id: u64) -> Domain {
    let system = assay_wallet::system::System::of_genesis();
    let contract = system.address("Settlement").unwrap_or_default();
    Domain { chain_id, contract: assay_receipt::Address(contract.0.0) }
}

#[cfg(test)]
mod tests {
    use assay_receipt::Bytes32;

    use super::*;

    #[test]
    fn a_receipt_is_found_in_its_batch_alone() {
        let nonce = |byte: u8| text(Bytes32([byte; 32]));
        let batch = Batch {
            id: 1,
            worker: "0xAb".to_owned(),
            lines: json!([{"model": "m", "first": nonce(2), "last": nonce(4)}]),
            state: "pending",
            final_at: 0,
        };
        let digits = |byte: u8| format!("{byte:02x}").repeat(16);
        assert!(batch.has("0xab", "m", &digits(2)) && batch.has("0xab", "m", &digits(4)));
        assert!(!batch.has("0xab", "m", &digits(1)) && !batch.has("0xab", "m", &digits(5)));
        assert!(!batch.has("0xac", "m", &digits(3)) && !batch.has("0xab", "n", &digits(3)));
    }
}
