//! `assay slash`: brings evidence that a validator contradicted itself to the chain.

use std::io::Read;
use std::path::{Path, PathBuf};

use assay_ledger::types::{Address, B256, U256, hex};
use assay_ledger::{EVIDENCE, contradicts};
use assay_wallet::abi::text;
use assay_wallet::client::{Call, Included};
use clap::Args;
use serde_json::{Value, json};

use crate::chain::{Signer, SignerArgs, number, opg};
use crate::error::{Error, Result};
use crate::ui;
use crate::ui::say;

/// A piece has some 600 bytes.
const FILE_BYTES: u64 = 1 << 20;

#[derive(Args)]
pub(crate) struct SlashArgs {
    /// Evidence as a node's assay_getEvidence gives it: JSON with "key" and "votes", one or a list; what the node itself has when left out
    file: Option<PathBuf>,
    #[command(flatten)]
    signer: SignerArgs,
}

/// Two votes of one view under a validator's key.
struct Evidence {
    key: [u8; 32],
    votes: Vec<u8>,
}

impl Evidence {
    fn read(value: &Value) -> Option<Self> {
        let field = |name: &str| hex::decode(value[name].as_str()?).ok();
        Some(Self { key: field("key")?.try_into().ok()?, votes: field("votes")? })
    }

    fn list(value: &Value) -> Option<Vec<Self>> {
        match value {
            Value::Array(pieces) => pieces.iter().map(Self::read).collect(),
            piece => Some(vec![Self::read(piece)?]),
        }
    }
}

fn from_file(path: &Path) -> Result<Vec<Evidence>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::file("read", path))?;
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    let whole = bytes.len() as u64 <= FILE_BYTES;
    let value = serde_json::from_slice(&bytes).ok().filter(|_| whole);
    value.as_ref().and_then(Evidence::list).ok_or_else(|| {
        Error::said(format!(
            "{} is no evidence: it is JSON like {{\"key\": \"0x…\", \"votes\": \"0x…\"}}, or a list of such, as a node's assay_getEvidence gives it",
            path.display()
        ))
    })
}

/// What a piece of evidence would do.
enum Verdict {
    Convicts(Address),
    /// The votes do not contradict each other, or were not signed with that key for this chain.
    ShowsNothing,
    /// Nobody's key, or not any more.
    Nobody,
    Before(Address),
}

async fn judge(signer: &Signer, genesis: &B256, evidence: &Evidence) -> Result<Verdict> {
    if !contradicts(genesis, &evidence.key, &evidence.votes) {
        return Ok(Verdict::ShowsNothing);
    }
    let key = text(B256::from(evidence.key));
    let holder = signer.chain.view("Staking", "holderOf", &[key]).await?;
    let holder = holder.as_str().and_then(|text| text.parse::<Address>().ok()).unwrap_or_default();
    if holder.is_zero() {
        return Ok(Verdict::Nobody);
    }
    let known = signer.chain.view("Staking", "validatorOf", &[text(holder)]).await?;
    Ok(if known["tombstoned"] == json!(true) { Verdict::Before(holder) } else { Verdict::Convicts(holder) })
}

/// Nothing is sent that the chain would refuse. A file in which something does not hold is refused before anything of it is sent; a node's
/// evidence against somebody who was punished before, or has left, is passed over.
pub(crate) async fn run(args: SlashArgs, json: bool) -> Result<()> {
    let given = args.file.as_deref().map(from_file).transpose()?;
    let signer = args.signer.open()?;
    let client = &signer.chain.client;
    let block_0 = client.request("eth_getBlockByNumber", json!(["0x0", false])).await?;
    let genesis = block_0["hash"].as_str().and_then(|text| text.parse::<B256>().ok());
    let genesis = genesis.ok_or_else(|| Error::said("the node did not give block 0 of its chain"))?;
    let strict = given.is_some();
    let pieces = match given {
        Some(pieces) => pieces,
        None => {
            let known = client.request("assay_getEvidence", json!([])).await?;
            Evidence::list(&known).ok_or_else(|| Error::said("the node's evidence cannot be read"))?
        }
    };
    let mut guilty: Vec<(Address, Evidence)> = Vec::new();
    for piece in pieces {
        let key = hex::encode_prefixed(piece.key);
        let why = match judge(&signer, &genesis, &piece).await? {
            Verdict::Convicts(validator) => {
                // Two pieces against one: the second would be refused after the first.
                if guilty.iter().all(|(other, _)| *other != validator) {
                    guilty.push((validator, piece));
                }
                continue;
            }
            Verdict::ShowsNothing => {
                format!("these are no two votes with which the key {key} contradicted itself on this chain")
            }
            Verdict::Nobody => {
                format!("the key {key} is no validator's, or the stake behind it could have left since")
            }
            Verdict::Before(validator) => {
                format!("{validator} was slashed for contradicting itself before, and is not again")
            }
        };
        if strict {
            return Err(Error::Rejected(format!("{why}; nothing was sent")));
        }
    }
    let (mut done, mut failed) = (Vec::new(), None);
    for (validator, piece) in guilty {
        match punish(&signer, validator, &piece).await {
            Ok((burnt, sent)) => done.push((validator, burnt, sent)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    // What was done before is said all the same.
    if failed.is_none() || !done.is_empty() {
        report(done, json);
    }
    failed.map_or(Ok(()), Err)
}

/// Brings one piece to the chain: what the validator lost, and the transaction.
async fn punish(signer: &Signer, validator: Address, piece: &Evidence) -> Result<(U256, Included)> {
    let call =
        Call { to: Some(EVIDENCE), value: U256::ZERO, data: [piece.key.as_slice(), &piece.votes].concat() };
    let sent = signer.chain.client.transact(signer.key(), &call).await?;
    let who = [text(validator.into_word())];
    let events = signer.chain.events("Staking", "Slashed", &who, sent.block..=sent.block).await?;
    let burnt = events.last().map_or(Ok(U256::ZERO), |event| number(&event.fields["burnt"]))?;
    Ok((burnt, sent))
}

fn report(done: Vec<(Address, U256, Included)>, json: bool) {
    if json {
        let rows = done.iter().map(|(validator, burnt, sent)| {
            json!({
                "validator": validator.to_string(), "burnt": burnt.to_string(),
                "transaction": sent.hash, "block": sent.block,
            })
        });
        ui::print_json(&json!({ "slashed": rows.collect::<Vec<_>>() }));
        return;
    }
    if done.is_empty() {
        say!("the node has no evidence against a validator that was not slashed yet");
    }
    for (validator, burnt, sent) in done {
        say!("{validator} lost {} OPG in block {}, and has no seats any more", opg(burnt), sent.block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_read_or_refused() {
        let (key, votes) = (format!("0x{}", "ab".repeat(32)), "0x0011");
        let piece = json!({"key": key, "votes": votes});
        for (value, pieces) in [(piece.clone(), 1), (json!([piece, piece]), 2), (json!([]), 0)] {
            assert_eq!(Evidence::list(&value).unwrap().len(), pieces);
        }
        for value in [
            json!(null),
            json!("0x00"),
            json!({"key": key}),
            json!({"key": "0xabab", "votes": votes}),
            json!({"key": key, "votes": "0x0"}),
            json!([piece, {"key": key, "votes": 7}]),
        ] {
            assert!(Evidence::list(&value).is_none(), "{value}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evidence.json");
        for text in [String::new(), "[".to_owned(), format!("{}[]", " ".repeat(1 << 20))] {
            std::fs::write(&path, text).unwrap();
            let error = from_file(&path).err().unwrap().to_string();
            assert!(error.contains("is no evidence"), "{error}");
        }
    }
}
