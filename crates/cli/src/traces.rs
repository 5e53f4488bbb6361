//! `assay trace --from-worker` and `assay prove --from-worker`: the trace of an answer (docs/light.md), or its proof (docs/trace-proof.md), from
//! the worker that gave it.

use std::path::Path;
use std::time::{Duration, Instant};

use assay_receipt::Bytes32;
use serde_json::{Value, json};

use crate::client::{cause, receive};
use crate::error::{Error, Result};
use crate::{ui, verify};

/// Longest wait for a connection, and for the next piece: behind the trace the worker takes its time for what proves it.
const CONNECT: Duration = Duration::from_secs(10);
const PIECE: Duration = Duration::from_secs(600);
/// Largest refusal that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Asks the receipt's worker, whose address and certificate are in the signed list, and writes what it sends: a trace, or with the id of a
/// commitment a proof that opens it. Whether it is the answer's, only `assay verify` with a key can say.
pub(crate) async fn fetch(
    receipt: &Path,
    out: &Path,
    list: &verify::ListArgs,
    key: Option<Bytes32>,
    as_json: bool,
) -> Result<()> {
    let (bundle, own_list) = verify::read(receipt)?;
    let receipt = &bundle.receipt.statement;
    let lists = list.lists(own_list)?;
    let signer = list.signer()?;
    let signed = lists.iter().filter(|list| list.signer(&bundle.domain) == Ok(signer));
    let member =
        signed.filter_map(|list| list.statement.member(&receipt.worker)).next().ok_or_else(|| {
            Error::said(format!(
                "worker {} is on no list that {signer} signed, so nothing says where it is",
                receipt.worker
            ))
        })?;
    // The bundle has the request and the answer: nobody but the worker, which knows both, may get it.
    let http = assay_gateway::pinned(member.tls_sha256, CONNECT)
        .map_err(|error| Error::said(format!("no HTTP client can be made: {error}")))?;
    let broken = |error: &dyn std::fmt::Display| {
        Error::said(format!("the worker at {} gave nothing: {error}; nothing was kept", member.url))
    };
    let started = Instant::now();
    let (what, path) = match key {
        None => ("trace", "v1/trace".to_owned()),
        Some(key) => ("proof", format!("v1/proof?key={key}")),
    };
    let url = format!("{}/{path}", member.url.trim_end_matches('/'));
    let waiting = tokio::time::timeout(PIECE, http.post(url).json(&bundle).send());
    let mut response =
        waiting.await.map_err(|error| broken(&error))?.map_err(|error| broken(&cause(&error)))?;
    if !response.status().is_success() {
        let status = response.status();
        let mut body = Vec::new();
        while let Ok(Ok(Some(part))) = tokio::time::timeout(CONNECT, response.chunk()).await {
            body.extend_from_slice(&part);
            if body.len() > REFUSAL_BYTES_MAX {
                break;
            }
        }
        let said = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        let said = said.pointer("/error/message").and_then(Value::as_str).unwrap_or("it does not say why");
        return Err(broken(&format!("it answered {status}: {said}")));
    }

    let bar = ui::spinner(&format!("receiving the {what}"));
    let received = receive(response, out, PIECE, &broken).await;
    bar.finish_and_clear();
    let bytes = received?;
    let seconds = started.elapsed().as_secs_f64();
    if as_json {
        ui::print_json(&json!({
            "model": receipt.model, "worker": receipt.worker, "path": out, "bytes": bytes, "seconds": seconds,
        }));
    } else {
        ui::say!("{} {} is what the worker shows for this answer", ui::green("✓"), out.display());
        let size = bytes as f64 / 1e6;
        ui::say!(
            "{}",
            ui::dim(&format!("{size:.1} MB in {seconds:.1} s; `assay verify --{what}` checks it"))
        );
    }
    Ok(())
}
