//! `assay dispute`: takes the cheater's bond. It replays an answer that a gateway keeps, and if the answer is not the model's, opens a
//! dispute on the chain and plays it to the end (docs/disputes.md). Interrupted, it goes on where it stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_dispute::{Action, Challenger, Fault, Game, Settled, State, batch_of, unsupported};
use assay_engine::request::Processor;
use assay_engine::trace::Trace;
use assay_ledger::types::U256;
use assay_model::Artifact;
use assay_receipt::{Bundle, Receipt};
use assay_wallet::abi::text;
use clap::Args;
use serde_json::{Value, json};

use crate::chain::{Signer, SignerArgs, number, opg};
use crate::client::{self, Gateway};
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{models, records, ui};

/// Largest answer of a worker about a line, in bytes.
const LINE_BYTES_MAX: usize = 64 << 20;

#[derive(Args)]
pub(crate) struct DisputeArgs {
    /// The request whose answer is disputed; `assay receipts` lists them
    request_id: String,
    /// The model that the receipt names: a name or a path; looked for among the models here when left out
    #[arg(long)]
    model: Option<String>,
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
    /// Who posts the bond, and the chain
    #[command(flatten)]
    signer: SignerArgs,
}

pub(crate) async fn run(args: DisputeArgs, json: bool) -> Result<()> {
    let gateway = Gateway::new(&args.gateway)?;
    let signer = args.signer.open()?;
    let bundle = bundle(&gateway, &args.request_id).await?;
    let wanted = bundle.receipt.statement.model;
    let artifact = match &args.model {
        Some(model) => Some(models::open(model)?.1),
        None => models::artifacts()?
            .into_iter()
            .filter_map(|path| Some(models::open(&path.display().to_string()).ok()?.1))
            .find(|artifact| artifact.id() == wanted),
    };
    let artifact = artifact.filter(|artifact| artifact.id() == wanted).ok_or_else(|| {
        Error::said(format!("the answer is of model {wanted}, which is not here; name its file with --model"))
    })?;
    let mut show = |line: &str| {
        if !json {
            say!("{line}");
        }
    };
    let report = play(&gateway, &signer, &bundle, Arc::new(artifact), Duration::ZERO, &mut show).await?;
    if json {
        ui::print_json(&report);
    }
    if report["won"] == json!(true) { Ok(()) } else { Err(Error::Rejected("the dispute is lost".into())) }
}

/// What a gateway keeps of a request.
pub(crate) async fn bundle(gateway: &Gateway, id: &str) -> Result<Bundle> {
    let found = gateway.get(&format!("/assay/receipts/{}", records::checked(id)?)).await?;
    serde_json::from_value(found)
        .map_err(|error| Error::said(format!("the bundle of {id} cannot be read: {error}")))
}

/// Disputes an answer, and says what happens line by line. `patience` is how long to wait for the receipt to get into a batch.
pub(crate) async fn play(
    gateway: &Gateway,
    signer: &Signer,
    bundle: &Bundle,
    artifact: Arc<Artifact>,
    patience: Duration,
    show: &mut (dyn FnMut(&str) + Send),
) -> Result<Value> {
    if let Some(why) = unsupported(&bundle.request) {
        return Err(Error::Rejected(format!("no contract can judge this answer: {why}; nothing was spent")));
    }
    let said = |error: &dyn std::fmt::Display| Error::said(error.to_string());
    let spinner = ui::spinner("computing the execution trace");
    let started = Instant::now();
    let (request, output) = (bundle.request.clone(), bundle.output.tokens.clone());
    let work = move || -> std::result::Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let prompt = Processor::from_artifact(&artifact)?.prepare(&request)?.generation.prompt;
        Ok(Arc::new(Trace::new(artifact, &prompt, &output, &request.sampling, &mut |_, _| {})?))
    };
    let trace = tokio::task::spawn_blocking(work).await.map_err(|error| said(&error))?;
    let trace = trace.map_err(|error| Error::said(format!("the answer cannot be traced: {error}")))?;
    spinner.finish_and_clear();
    show(&format!(
        "  trace      {} MB in {:.1} s; root {}",
        trace.size() / 1_000_000,
        started.elapsed().as_secs_f64(),
        trace.root()
    ));
    let receipt = &bundle.receipt.statement;
    let chain = &signer.chain;
    // Whether anything is wrong does not depend on what the voucher says of the prompt, but whether a contract sees it may.
    let counted = trace.prompt().len() == bundle.output.prompt_tokens as usize;
    let first = Challenger::new(chain, signer.key(), bundle, assay_receipt::Bytes32::ZERO, trace.clone());
    if first.fault().is_none() && counted {
        return Err(Error::Rejected(
            "this answer is the model's: there is nothing to dispute, and nothing was spent".into(),
        ));
    }
    let settled = settled(gateway, signer, receipt, patience).await?;
    let challenger = Challenger::new(chain, signer.key(), bundle, settled.prompt, trace);
    if challenger.fault().is_none() {
        return Err(Error::Rejected(
            "only the number of the prompt's tokens is wrong, and the payer's voucher does not say which they are: no contract can judge that; nothing was spent".into(),
        ));
    }
    let keys = [text(receipt.worker)];
    let operator = chain.view("Registry", "keyOf", &keys).await?["operator"].clone();
    let bond = async || {
        number(&chain.view("Registry", "operatorOf", std::slice::from_ref(&operator)).await?["bond"])
    };
    let before = bond().await?;
    let spinner = ui::spinner("opening the dispute");
    let mut game = challenger.open(&settled).await.map_err(|error| refused(&error))?;
    spinner.finish_and_clear();
    let state = State::read(chain, game.id).await?;
    show(&format!(
        "  dispute    number {} about batch {}: {} OPG on each side",
        game.id,
        settled.batch,
        opg(state.challenger_bond)
    ));
    let spinner = ui::spinner("waiting for the worker to commit to its trace");
    let mut seen = 0;
    let mut progress = |game: &Game, accused: Option<&Fault>| {
        for made in &game.moves[seen..] {
            if let Some(line) = told(&made.action, accused) {
                spinner.suspend(|| show(&line));
            }
        }
        seen = game.moves.len();
        spinner.set_message(format!("playing, {seen} moves"));
    };
    let fault = challenger.finish(&mut game, &mut progress).await.map_err(|error| refused(&error));
    spinner.finish_and_clear();
    let fault = fault?;
    let (gas, bytes) = game.cost();
    let won = game.end().is_some_and(|(worker_won, _)| !worker_won);
    let after = bond().await?;
    if won {
        let winner = number(&chain.view("Disputes", "parameters", &[]).await?["winnerBps"])?;
        let reward = state.worker_bond * winner / U256::from(10_000);
        show(&format!(
            "  cost       its operator's bond went from {} to {} OPG: {} to the challenger, {} burnt; {} OPG back to the caller",
            opg(before.max(after + state.worker_bond)),
            opg(after),
            opg(reward),
            opg(state.worker_bond - reward),
            opg(U256::from(receipt.price))
        ));
    }
    show(&format!("  price      {} transactions, {gas} gas, {bytes} bytes of input", game.moves.len()));
    Ok(json!({
        "dispute": game.id, "batch": settled.batch, "won": won, "how": game.end().map(|(_, how)| how.to_owned()),
        "fault": fault.map(|fault| fault.to_string()), "transactions": game.moves.len(), "gas": gas, "bytes": bytes,
        "bond_before": before.to_string(), "bond_after": after.to_string(),
        "refunded": if won { receipt.price.to_string() } else { "0".to_owned() },
        "moves": game.moves.iter().map(|made| json!({
            "by": made.by.to_string(), "gas": made.gas, "bytes": made.bytes, "block": made.block,
            "move": name(&made.action),
        })).collect::<Vec<_>>(),
    }))
}

fn refused(error: &assay_dispute::DisputeError) -> Error {
    Error::Rejected(format!("{error}; run the same command again to go on"))
}

/// A move by name.
fn name(action: &Action) -> &'static str {
    match action {
        Action::Opened => "open",
        Action::Committed { .. } => "commit",
        Action::Chosen { .. } => "choose",
        Action::Revealed { .. } => "reveal",
        Action::Published { .. } => "reveal tile",
        Action::Ended { .. } => "end",
    }
}

/// A move in a line; none for those that say nothing new.
fn told(action: &Action, accused: Option<&Fault>) -> Option<String> {
    Some(match action {
        Action::Opened | Action::Revealed { .. } => return None,
        Action::Committed { root, size } => {
            format!("  worker     commits to a trace of {} MB, root {root}", size / 1_000_000)
        }
        Action::Chosen { level: 0, index } => format!("  difference tile {index}"),
        Action::Chosen { level, index } => {
            format!("  difference below node {index} of height {level}; the worker reveals 16 below it")
        }
        Action::Published { tile, .. } => format!("  worker     publishes the tile, {} bytes", tile.len()),
        Action::Ended { worker_won: false, how } => {
            let what = accused.map_or(String::new(), |fault| format!(": {fault}"));
            format!("{} the contract finds for the challenger, {how}{what}", ui::red("✗ guilty:  "))
        }
        Action::Ended { how, .. } => format!("{} the worker wins by {how}", ui::green("✓ end:     ")),
    })
}

/// Where a receipt is on the chain: the batch, and the leaves of its line, which its worker serves.
async fn settled(
    gateway: &Gateway,
    signer: &Signer,
    receipt: &Receipt,
    patience: Duration,
) -> Result<Settled> {
    let deadline = Instant::now() + patience;
    let spinner = ui::spinner("waiting for the receipt to be settled");
    let (batch, lines, line) = loop {
        if let Some(found) = batch_of(&signer.chain, receipt).await? {
            break found;
        }
        if Instant::now() >= deadline {
            return Err(Error::said(
                "the receipt is in no batch yet; its worker brings it to the chain within seconds: try again",
            ));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    spinner.finish_and_clear();
    let members = gateway.get("/assay/members").await?;
    let members =
        members.pointer("/members/statement/members").and_then(Value::as_array).cloned().unwrap_or_default();
    let member = members.iter().find(|member| member["worker"] == text(receipt.worker));
    let url = member.and_then(|member| member["url"].as_str()).ok_or_else(|| {
        Error::said("the worker is in no list any more, so the data of its batch must be demanded on the chain (Settlement.demand)")
    })?;
    let root = lines[line]["root"].as_str().unwrap_or_default().to_owned();
    let leaves = fetch(&format!("{url}/v1/lines/{root}")).await?;
    let leaves = leaves["leaves"].as_array().cloned().unwrap_or_default();
    Settled::new(batch, lines, line, &leaves, receipt).ok_or_else(|| {
        Error::said("the worker serves other data than its batch commits to; demand it on the chain (Settlement.demand)")
    })
}

/// What a worker serves. Its certificate is not checked, since what it says is checked against the chain.
async fn fetch(url: &str) -> Result<Value> {
    let broken =
        |error: reqwest::Error| Error::said(format!("the worker does not serve its batch's data: {error}"));
    let http = reqwest::Client::builder()
        .danger_accept_invalid_certs(true)
        .timeout(Duration::from_secs(30))
        .no_proxy()
        .build()
        .map_err(broken)?;
    let mut response =
        http.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(broken)?;
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.map_err(broken)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > LINE_BYTES_MAX {
            return Err(Error::said("the worker's batch data has more than 64 MiB"));
        }
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::said(format!("the worker's batch data is no JSON: {error}")))
}
