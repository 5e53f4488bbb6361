//! What happens after a crash, and with requests that were given up: the workers are asked what they signed.

use crate::audit;
use crate::clock::now_ms;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::store::{Entry, Evidence, State, id_of};
use assay_receipt::{BUNDLE_VERSION, Bundle, Bytes32, Member};
use assay_verify::Expected;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Longest wait for a worker's word on an old request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settles the requests that were under way when the gateway stopped, and makes the replays that were due.
pub(crate) async fn recover(gateway: Arc<Gateway>) {
    if let Err(error) = recover_pending(&gateway).await {
        tracing::error!(%error, "requests from before the restart could not be settled");
    }
    if let Err(error) = recover_due(&gateway).await {
        tracing::error!(%error, "replays from before the restart could not be made");
    }
}

async fn recover_pending(gateway: &Arc<Gateway>) -> Result<(), Error> {
    for entry in gateway.store.pending().await? {
        tracing::info!(request_id = entry.request_id, "settling a request from before the restart");
        settle(gateway, &entry).await?;
    }
    Ok(())
}

async fn recover_due(gateway: &Arc<Gateway>) -> Result<(), Error> {
    for nonce in gateway.store.due().await? {
        let Some(dossier) = gateway.store.dossier(id_of(&nonce.0)).await? else { continue };
        match audit::subject_of(gateway, &dossier) {
            Ok(subject) => audit::later(gateway, subject),
            Err(error) => {
                tracing::warn!(request_id = dossier.entry.request_id, error = error.message, "no replay");
                gateway.store.audit_done(nonce).await?;
            }
        }
    }
    Ok(())
}

/// Asks every worker that was sent the request what it signed, last one first. The first receipt that holds is stored
/// as the answer; everything else as evidence.
async fn settle(gateway: &Arc<Gateway>, entry: &Entry) -> Result<(), Error> {
    let members = Arc::clone(&gateway.members.borrow());
    for attempt in entry.attempts.iter().rev() {
        let Some(member) = members.member(&attempt.worker) else { continue };
        if let Some(bundle) = ask(gateway, entry, member, attempt.cap).await? {
            let hash = bundle.receipt.hash(&bundle.domain);
            gateway.store.answered(&bundle, hash, now_ms(), false).await?;
            let receipt = &bundle.receipt.statement;
            gateway.records.served(member.worker, receipt.completion_tokens, receipt.price, Duration::ZERO);
            return Ok(());
        }
    }
    let why = "the gateway stopped before an answer was complete".to_owned();
    gateway.store.unanswered(entry.nonce, State::Failed, why, now_ms()).await
}

/// Asks one worker. Returns a bundle that holds, or stores what came instead.
async fn ask(gateway: &Gateway, entry: &Entry, member: &Member, cap: u128) -> Result<Option<Bundle>, Error> {
    let client = gateway.clients.of(member)?;
    let settled = match timeout(PATIENCE, client.settled(&entry.nonce)).await {
        Ok(Ok(Some(settled))) => settled,
        Ok(Ok(None)) => return Ok(None),
        Ok(Err(error)) => {
            tracing::warn!(worker = %member.worker, ?error, "a worker gave no word on an old request");
            return Ok(None);
        }
        Err(_) => return Ok(None),
    };
    let (worker, at_ms) = (member.worker, now_ms());
    if let Some(failure) = settled.failure {
        let failure = Box::new(failure);
        gateway.store.evidence(entry.nonce, Evidence::Failure { worker, at_ms, failure }).await?;
        return Ok(None);
    }
    let (Some(receipt), Some(output)) = (settled.receipt, settled.output) else { return Ok(None) };
    let bundle = Bundle {
        version: BUNDLE_VERSION,
        domain: gateway.config.domain,
        salt: entry.salt,
        request: entry.request.clone(),
        output,
        chunks: settled.chunks,
        receipt,
        audits: Vec::new(),
    };
    let expected = Expected {
        domain: gateway.config.domain,
        workers: vec![member.clone()],
        nonce: Some(entry.nonce),
        model: Some(entry.request.model),
        payer: Some(entry.payer),
        cap: Some(cap),
    };
    let checked = tokio::task::spawn_blocking(move || {
        let report = assay_verify::check(&bundle, &expected);
        let failed: Vec<String> = report.failed().map(|check| check.detail.clone()).collect();
        (bundle, failed)
    });
    let Ok((bundle, failed)) = checked.await else { return Ok(None) };
    if failed.is_empty() {
        return Ok(Some(bundle));
    }
    let evidence = Evidence::Answer {
        worker,
        at_ms,
        why: format!("fetched after a restart; it does not hold by itself: {}", failed.join("; ")),
        receipt: Box::new(bundle.receipt),
        output: Box::new(bundle.output),
    };
    gateway.store.evidence(entry.nonce, evidence).await?;
    Ok(None)
}

/// Fetches, a little later, what a worker signed about a request that the caller gave up, for the incident record.
pub(crate) fn fetch_later(gateway: &Arc<Gateway>, nonce: Bytes32, member: Member) {
    let spawner = gateway;
    let gateway = Arc::clone(gateway);
    spawner.spawn(async move {
        sleep(Duration::from_secs(1)).await;
        let Ok(client) = gateway.clients.of(&member) else { return };
        let Ok(Ok(Some(settled))) = timeout(PATIENCE, client.settled(&nonce)).await else { return };
        let (worker, at_ms) = (member.worker, now_ms());
        let evidence = match (settled.failure, settled.receipt, settled.output) {
            (Some(failure), ..) => Evidence::Failure { worker, at_ms, failure: Box::new(failure) },
            (None, Some(receipt), Some(output)) => Evidence::Answer {
                worker,
                at_ms,
                why: "it was complete after the caller had left".into(),
                receipt: Box::new(receipt),
                output: Box::new(output),
            },
            _ => return,
        };
        if let Err(error) = gateway.store.evidence(nonce, evidence).await {
            tracing::error!(%error, "a worker's word on a cancelled request was not stored");
        }
    });
}
