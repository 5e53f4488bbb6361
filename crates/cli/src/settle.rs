//! What a network on one machine needs on its chain, so that its workers can be paid, and `assay receipts --settled`: what became of each
//! receipt there. Workers bring their receipts to the chain themselves (`assay_worker`).

use std::path::Path;

use assay_ledger::types::{Address, U256};
use assay_receipt::{Domain, GRAPH_ARITHMETIC, Key, Level, Member, Offer};
use assay_wallet::abi::text;
use assay_wallet::chain::Chain;
use assay_wallet::client::{ClientError, Included, address_of};
use assay_wallet::registry::sign_worker_key;
use serde_json::{Value, json};

use crate::chain::{Signer, number, opg};
use crate::error::{Error, Result};
use crate::ui;
use crate::ui::say;

/// Coins that a worker's address gets, in 10^-18: one pays for some thousand batches.
const GAS: u128 = 1_000_000_000_000_000_000;
/// What a payer deposits where it has less: 100 OPG.
const DEPOSIT: u128 = 100_000_000_000_000_000_000;

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
    let mut found = Vec::new();
    for event in chain.events("Settlement", "Submitted", &[], 0..=chain.head().await?).await? {
        let id = event.number(1).unwrap_or_default().saturating_to::<u64>();
        let batch = chain.view("Settlement", "batchOf", &[json!(id)]).await?;
        let state = match batch["state"].as_u64() {
            Some(1) => "pending",
            Some(2) => "paid",
            Some(3) => "void",
            _ => "unknown",
        };
        found.push(Batch {
            id,
            worker: event.address(2).to_string(),
            lines: event.fields["lines"].clone(),
            state,
            final_at: batch["finalAt"].as_u64().unwrap_or_default(),
        });
    }
    Ok(found)
}

/// The digits of a request id that are the first half of its nonce.
fn digits(row: &Value) -> &str {
    row["request_id"].as_str().and_then(|id| id.rsplit(['-', '_']).next()).unwrap_or_default()
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

/// Brings a worker into the registry, with what it offers. The signer becomes an operator with the least bond if it is none, and pays
/// the worker's address some coins, with which it settles.
pub(crate) async fn register(signer: &Signer, member: &Member, worker: &Key) -> Result<()> {
    let (me, chain) = (text(signer.address()), &signer.chain);
    if chain.view("Registry", "operatorOf", std::slice::from_ref(&me)).await?["name"] == "" {
        let bond = chain.number("Registry", "leastBond", &[]).await?;
        signer.approve("Registry", bond).await?;
        signer.send("Registry", "registerOperator", &[json!(member.operator), text(bond)]).await?;
    }
    let address = text(address_of(worker));
    let known = chain.view("Registry", "keyOf", std::slice::from_ref(&address)).await?;
    let endpoint = [address.clone(), json!(member.url), json!(member.tls_sha256)];
    if known["operator"] == text(Address::ZERO) {
        let registry = chain.system.address("Registry").map_err(ClientError::from)?;
        let chain_id = chain.client.chain_id().await?;
        let signature = sign_worker_key(worker, chain_id, registry, signer.address(), 1);
        let arguments = [&endpoint[..], &[json!(signature)]].concat();
        signer.send("Registry", "addWorker", &arguments).await?;
    } else if known["operator"] != me {
        return Err(Error::Rejected(format!(
            "worker {} is registered by operator {}; sign with that operator's key",
            member.worker,
            known["operator"].as_str().unwrap_or_default()
        )));
    } else {
        signer.send("Registry", "setEndpoint", &endpoint).await?;
    }
    for Offer { model, name, prompt_price, completion_price, arithmetic, context } in &member.models {
        let levels = match *arithmetic {
            0 => 1,
            GRAPH_ARITHMETIC => 1 | 1 << Level::Proved as u8,
            _ => 1 | 1 << Level::Replayed as u8,
        };
        let offer = json!({
            "promptPrice": prompt_price.to_string(), "completionPrice": completion_price.to_string(),
            "arithmetic": arithmetic, "context": context, "levels": levels, "name": name,
        });
        if chain.view("Registry", "offerOf", &[address.clone(), json!(model)]).await? != offer {
            signer.send("Registry", "setOffer", &[address.clone(), json!(model), offer]).await?;
        }
    }
    if chain.client.balance(address_of(worker)).await? < U256::from(GAS / 2) {
        signer.pay(address_of(worker), U256::from(GAS)).await?;
    }
    Ok(())
}

/// Gives an account what it needs to become an operator, from the signer's own.
pub(crate) async fn fund(signer: &Signer, operator: Address) -> Result<()> {
    let chain = &signer.chain;
    if chain.client.balance(operator).await? < U256::from(10 * GAS) {
        signer.pay(operator, U256::from(100 * GAS)).await?;
    }
    let bond = chain.number("Registry", "leastBond", &[]).await?;
    let known = chain.view("Registry", "operatorOf", &[text(operator)]).await?;
    if known["name"] == "" && chain.number("Opg", "balanceOf", &[text(operator)]).await? < bond {
        signer.send("Opg", "transfer", &[text(operator), text(bond)]).await?;
    }
    Ok(())
}

/// Fills up a payer's deposit from the signer's OPG.
pub(crate) async fn fill(signer: &Signer, payer: Address) -> Result<()> {
    let missing = DEPOSIT.saturating_sub(deposit_of(&signer.chain, payer).await?.saturating_to());
    if missing > DEPOSIT / 2 {
        deposit(signer, payer, U256::from(missing)).await?;
    }
    Ok(())
}

/// What a payer has deposited and no batch has reserved, in 10^-18 OPG.
pub(crate) async fn deposit_of(chain: &Chain, payer: Address) -> Result<U256> {
    number(&chain.view("Deposits", "depositOf", &[text(payer)]).await?["balance"])
}

/// Adds to a payer's deposit from the signer's OPG.
pub(crate) async fn deposit(signer: &Signer, payer: Address, amount: U256) -> Result<Included> {
    signer.approve("Deposits", amount).await?;
    signer.send("Deposits", "deposit", &[text(payer), text(amount)]).await
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
