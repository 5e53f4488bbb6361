//! `assay promise`: bonds behind a worker's promises of speed and availability, and payment to its callers when it breaks one. The
//! evidence is what the worker signed itself, and a contract decides (`contracts/src/ServiceLevels.sol`).

use std::path::{Path, PathBuf};

use assay_ledger::types::{Address, U256};
use assay_receipt::{AnyStatement, Bundle, Failure, Receipt, Signed, Statement};
use assay_wallet::abi::text;
use assay_wallet::client::ClientError;
use assay_wallet::settlement::message;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::chain::{ChainArgs, SignerArgs, number, opg, parse_opg};
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{home, ui, verify};

#[derive(Subcommand)]
pub(crate) enum PromiseCommand {
    /// Promise something for a worker of yours, with a bond that pays callers when it is missed
    Make(MakeArgs),
    /// What a worker promises
    Show {
        /// The worker's address
        worker: Address,
        #[command(flatten)]
        chain: ChainArgs,
    },
    /// Bring what a worker signed to the chain, which pays the caller where a promise was missed
    Claim {
        /// A receipt, or an incident file with everything that is signed about a request
        file: PathBuf,
        #[command(flatten)]
        signer: SignerArgs,
    },
    /// End a promise, which holds for another day; a week later, take the rest of the bond back
    End {
        /// The worker's address
        worker: Address,
        #[command(flatten)]
        signer: SignerArgs,
    },
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["first_token_ms", "tokens_per_s", "failures"])))]
pub(crate) struct MakeArgs {
    /// The worker's address
    worker: Address,
    /// Longest time to the first token, in milliseconds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    first_token_ms: Option<u32>,
    /// Least tokens a second from the first token on, in answers of 16 tokens and more
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    tokens_per_s: Option<u32>,
    /// Refusals and broken answers that are the worker's own doing count as missed
    #[arg(long)]
    failures: bool,
    /// What a missed promise pays the caller, in OPG
    #[arg(long, value_name = "OPG")]
    compensation: String,
    /// Most that is paid in a day, in OPG
    #[arg(long, value_name = "OPG")]
    daily: String,
    /// The bond, in OPG: the daily limit or more
    #[arg(long, value_name = "OPG")]
    bond: String,
    /// The worker's operator, and the chain
    #[command(flatten)]
    signer: SignerArgs,
}

pub(crate) async fn run(command: PromiseCommand, json: bool) -> Result<()> {
    match command {
        PromiseCommand::Make(args) => make(args, json).await,
        PromiseCommand::Show { worker, chain } => {
            let promise = chain.open()?.view("ServiceLevels", "promiseOf", &[text(worker)]).await?;
            show(worker, &promise, json)
        }
        PromiseCommand::Claim { file, signer } => claim(&file, signer, json).await,
        PromiseCommand::End { worker, signer } => {
            let signer = signer.open()?;
            let promise = signer.chain.view("ServiceLevels", "promiseOf", &[text(worker)]).await?;
            let ended = !number(&promise["until"])?.is_zero();
            let function = if ended { "returnBond" } else { "withdraw" };
            let done = signer.send("ServiceLevels", function, &[text(worker)]).await?;
            let what = if ended { "the rest of the bond is back" } else { "the promise ends in a day" };
            if json {
                ui::print_json(&json!({ "transaction": done.hash, "block": done.block, "call": function }));
            } else {
                say!("{what}; block {}", done.block);
            }
            Ok(())
        }
    }
}

async fn make(args: MakeArgs, json: bool) -> Result<()> {
    let amounts = [&args.compensation, &args.daily, &args.bond].map(|amount| parse_opg(amount));
    let [compensation, daily, bond] = amounts;
    let (compensation, daily, bond) = (compensation?, daily?, bond?);
    let signer = args.signer.open()?;
    let terms = json!({
        "firstTokenMs": args.first_token_ms.unwrap_or(0),
        "milliTokensPerS": u64::from(args.tokens_per_s.unwrap_or(0)) * 1_000,
        "failures": args.failures, "compensation": text(compensation), "dailyLimit": text(daily),
    });
    signer.approve("ServiceLevels", bond).await?;
    signer.send("ServiceLevels", "makePromise", &[text(args.worker), terms, text(bond)]).await?;
    let promise = signer.chain.view("ServiceLevels", "promiseOf", &[text(args.worker)]).await?;
    show(args.worker, &promise, json)
}

fn show(worker: Address, promise: &Value, json: bool) -> Result<()> {
    if json {
        ui::print_json(promise);
        return Ok(());
    }
    if promise["operator"] == text(Address::ZERO) {
        say!("{worker} promises nothing");
        return Ok(());
    }
    let terms = &promise["terms"];
    let (first, speed) = (number(&terms["firstTokenMs"])?, number(&terms["milliTokensPerS"])?);
    say!("{worker} promises");
    if !first.is_zero() {
        say!("  the first token within {first} ms");
    }
    if !speed.is_zero() {
        say!("  {} tokens a second and more", speed / U256::from(1_000));
    }
    if terms["failures"] == json!(true) {
        say!("  no failures of its own");
    }
    let [compensation, daily, bond] =
        [&terms["compensation"], &terms["dailyLimit"], &promise["bond"]].map(number);
    say!(
        "or pays the caller {} OPG, up to {} a day; {} OPG are left of the bond",
        opg(compensation?),
        opg(daily?),
        opg(bond?)
    );
    Ok(())
}

/// The parts of an incident file in which workers say when they did what.
#[derive(Deserialize)]
struct Incident {
    bundle: Option<Bundle>,
    evidence: Vec<Evidence>,
}

#[derive(Deserialize)]
struct Evidence {
    receipt: Option<Signed<Receipt>>,
    failure: Option<Signed<Failure>>,
}

/// All receipts and failures in a file.
fn statements(file: &Path) -> Result<Vec<AnyStatement>> {
    let bytes = home::read_bounded(file, verify::FILE_BYTES_MAX)?;
    let Ok(Incident { bundle, evidence }) = serde_json::from_slice(&bytes) else {
        let (bundle, _) = verify::read(file)?;
        return Ok(vec![AnyStatement::Receipt(bundle.receipt)]);
    };
    let mut found: Vec<_> = bundle.into_iter().map(|bundle| AnyStatement::Receipt(bundle.receipt)).collect();
    for Evidence { receipt, failure } in evidence {
        found.extend(receipt.map(AnyStatement::Receipt));
        found.extend(failure.map(AnyStatement::Failure));
    }
    Ok(found)
}

async fn claim(file: &Path, signer: SignerArgs, json: bool) -> Result<()> {
    let statements = statements(file)?;
    let signer = signer.open()?;
    let mut rows = Vec::new();
    for statement in &statements {
        let (function, said, payer) = match statement {
            AnyStatement::Receipt(signed) => ("claimReceipt", said(signed), signed.statement.payer),
            AnyStatement::Failure(signed) => ("claimFailure", said(signed), signed.statement.payer),
            AnyStatement::Audit(_) => continue,
        };
        let worker = text(statement.worker());
        let promise = signer.chain.view("ServiceLevels", "promiseOf", std::slice::from_ref(&worker)).await?;
        let outcome = if promise["operator"] == text(Address::ZERO) {
            Err("it made no promise".to_owned())
        } else {
            match signer.chain.transact(signer.key(), "ServiceLevels", function, &said).await {
                Ok(done) => Ok(done),
                // Nothing was sent.
                Err(ClientError::Reverted(why)) => Err(explained(&why)),
                Err(error) => return Err(error.into()),
            }
        };
        rows.push(match outcome {
            Ok(done) => json!({
                "worker": worker, "paid": promise["terms"]["compensation"], "payer": payer,
                "transaction": done.hash, "block": done.block,
            }),
            Err(why) => json!({ "worker": worker, "paid": "0", "payer": payer, "why": why }),
        });
    }
    if json {
        ui::print_json(&json!({ "claims": rows }));
    } else {
        for row in &rows {
            let [worker, payer] = ["worker", "payer"].map(|name| row[name].as_str().unwrap_or_default());
            match row["why"].as_str() {
                Some(why) => say!("{worker} pays nothing: {why}"),
                None => say!("{worker} pays {} OPG to {payer}", opg(number(&row["paid"])?)),
            }
        }
    }
    if rows.iter().any(|row| row["why"].is_null()) {
        return Ok(());
    }
    Err(Error::Rejected("nothing in this file is a missed promise that is still to be paid".to_owned()))
}

/// What the contract takes: the statement and its signature.
fn said<T: Statement>(signed: &Signed<T>) -> [Value; 2] {
    [message(&signed.statement), json!(signed.signature)]
}

/// The contract's reasons in a sentence; those that are not known as they are.
fn explained(why: &str) -> String {
    let known = [
        ("Kept", "it kept its promise"),
        ("AlreadyClaimed", "this was paid before"),
        ("BadSignature", "it did not sign this"),
        (
            "NotCovered",
            "the promise did not hold yet, or not any more, or the claim comes after more than a week",
        ),
        ("UsedUp", "what it pays in a day is used up, or the bond is"),
    ];
    let found = known.iter().find(|(name, _)| why.contains(name));
    found.map_or_else(|| why.to_owned(), |(_, sentence)| (*sentence).to_owned())
}
