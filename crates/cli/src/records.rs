//! `assay receipts`, `assay audit`, `assay incident`: what the gateway keeps about past requests.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::chain::ChainArgs;
use crate::client::{self, Gateway};
use crate::error::{Error, Result};
use crate::{home, settle, ui};

#[derive(Args)]
pub(crate) struct ReceiptsArgs {
    /// Save this request's receipt, with everything needed to verify it offline
    request_id: Option<String>,
    /// Where to save it; receipt.json when left out
    #[arg(long, requires = "request_id")]
    out: Option<PathBuf>,
    /// Save the proof of its answer in this file instead; a worker makes one, at its price, where there is none yet
    #[arg(long, requires = "request_id", conflicts_with = "out")]
    proof: Option<PathBuf>,
    /// Show what became of them on the chain
    #[arg(long, conflicts_with = "request_id")]
    settled: bool,
    #[command(flatten)]
    chain: ChainArgs,
    /// How many of the newest to list
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
}

#[derive(Args)]
pub(crate) struct WorkersArgs {
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
}

#[derive(Args)]
pub(crate) struct AuditArgs {
    /// The request whose answer another worker shall replay
    request_id: String,
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
}

#[derive(Args)]
pub(crate) struct IncidentArgs {
    /// The request
    request_id: String,
    /// Where to save the file; incident-REQUEST_ID.json when left out
    #[arg(long)]
    out: Option<PathBuf>,
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
}

/// A request id as it may stand in a path: anything else cannot be one.
pub(crate) fn checked(id: &str) -> Result<&str> {
    if !id.is_empty()
        && id.len() <= 100
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    {
        return Ok(id);
    }
    Err(Error::said(format!("\"{id}\" is not a request id; `assay receipts` lists them")))
}

pub(crate) async fn receipts(args: ReceiptsArgs, json: bool) -> Result<()> {
    let gateway = Gateway::new(&args.gateway)?;
    if let (Some(id), Some(path)) = (&args.request_id, &args.proof) {
        return save_proof(&gateway, checked(id)?, path, json).await;
    }
    if let Some(id) = &args.request_id {
        let bundle = gateway.get(&format!("/assay/receipts/{}", checked(id)?)).await?;
        if json && args.out.is_none() {
            ui::print_json(&bundle);
            return Ok(());
        }
        return save(&bundle, args.out.unwrap_or_else(|| "receipt.json".into()));
    }
    let list = gateway.get(&format!("/assay/receipts?limit={}", args.limit)).await?;
    let rows = list.get("receipts").and_then(Value::as_array).cloned().unwrap_or_default();
    if args.settled {
        return settle::settled(&args.chain.open()?, &rows, json).await;
    }
    if json {
        ui::print_json(&list);
        return Ok(());
    }
    if rows.is_empty() {
        ui::say!("The gateway holds no receipts yet; `assay chat` makes one.");
        return Ok(());
    }
    let columns = [
        ("request", "/request_id"),
        ("state", "/state"),
        ("operator", "/operator"),
        ("model", "/model"),
        ("prompt tokens", "/bill/prompt_tokens"),
        ("answer tokens", "/bill/completion_tokens"),
        ("price, 10^-18 OPG", "/bill/price"),
    ];
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, pointer)| cell(row, pointer)).collect()).collect();
    ui::say!("{}", ui::table(&columns.map(|(name, _)| name), &rows));
    Ok(())
}

/// Has an answer proved, if it is not yet, and saves the proof.
async fn save_proof(gateway: &Gateway, id: &str, path: &Path, json: bool) -> Result<()> {
    let spinner = ui::spinner("waiting for the proof");
    let proof = gateway.post(&format!("/assay/proofs/{id}"), &Value::Null).await;
    spinner.finish_and_clear();
    let proof = proof?;
    let bytes = gateway.save(&format!("/assay/receipts/{id}/proof"), path).await?;
    if json {
        ui::print_json(&proof);
        return Ok(());
    }
    let field = |name: &str| cell(&proof, &format!("/proof/{name}"));
    ui::say!("{} saved {}: {:.1} MB", ui::green("✓"), path.display(), bytes as f64 / 1e6);
    let (worker, price, key) = (field("worker"), field("price"), field("key"));
    ui::say!(
        "{}",
        ui::dim(&format!("by worker {worker} for {price} (10^-18 OPG), to be checked with the key {key}"))
    );
    Ok(())
}

/// Lists the workers with the record that this gateway keeps of each.
pub(crate) async fn workers(args: WorkersArgs, json: bool) -> Result<()> {
    let gateway = Gateway::new(&args.gateway)?;
    let list = gateway.get("/assay/workers").await?;
    if json {
        ui::print_json(&list);
        return Ok(());
    }
    let columns = [
        ("operator", "/operator"),
        ("worker", "/worker"),
        ("served", "/served"),
        ("failed", "/failures"),
        ("replays agreed", "/audits_agreed"),
        ("differed", "/audits_differed"),
        ("replays made", "/audits_made"),
        ("running", "/in_flight"),
    ];
    let rows = list.get("workers").and_then(Value::as_array).cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells: Vec<String> = columns.iter().map(|(_, pointer)| cell(row, pointer)).collect();
            cells.push(standing(row));
            cells
        })
        .collect();
    let mut header: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    header.push("standing");
    ui::say!("{}", ui::table(&header, &rows));
    Ok(())
}

/// What the gateway thinks of a worker, from its row in `/assay/workers`.
fn standing(row: &Value) -> String {
    if let Some(request) = row.pointer("/suspended/request_id").and_then(Value::as_str) {
        return format!("caught: {request}");
    }
    let set =
        |name: &str| row.get(name).is_some_and(|value| !value.is_null() && *value != Value::Bool(false));
    let word = if set("accused") {
        "accused, awaiting a second auditor"
    } else if set("resting") {
        "resting after faults"
    } else {
        "good"
    };
    word.to_owned()
}

fn cell(row: &Value, pointer: &str) -> String {
    match row.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

pub(crate) async fn audit(args: AuditArgs, json: bool) -> Result<()> {
    let gateway = Gateway::new(&args.gateway)?;
    let outcome = gateway.post(&format!("/assay/audit/{}", checked(&args.request_id)?), &Value::Null).await?;
    let state = outcome.get("state").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    if json {
        ui::print_json(&outcome);
    } else if state == "replayed" {
        ui::say!("{} another worker repeated this answer bit for bit", ui::green("✓"));
    }
    match state.as_str() {
        "replayed" => Ok(()),
        "mismatch" => Err(Error::Rejected(
            "another worker came to a different answer; `assay incident` makes the file".into(),
        )),
        other => Err(Error::said(format!(
            "the replay came to no verdict ({other}); try again when more workers are up"
        ))),
    }
}

pub(crate) async fn incident(args: IncidentArgs, json: bool) -> Result<()> {
    let gateway = Gateway::new(&args.gateway)?;
    let incident = gateway.get(&format!("/assay/incident/{}", checked(&args.request_id)?)).await?;
    if json && args.out.is_none() {
        ui::print_json(&incident);
        return Ok(());
    }
    save(&incident, args.out.unwrap_or_else(|| format!("incident-{}.json", args.request_id).into()))
}

fn save(value: &Value, path: PathBuf) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::said(format!("it cannot be written as JSON: {error}")))?;
    home::write_atomically(&path, &text, 0o600)?;
    ui::say!("saved {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_that_would_leave_their_path_are_refused() {
        assert!(super::checked("chatcmpl-00ff").is_ok());
        for id in ["", "../x", "a/b", "a?b", "a b", &"x".repeat(101)] {
            assert!(super::checked(id).is_err(), "{id}");
        }
    }
}
