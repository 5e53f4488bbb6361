//! What happens after a crash, and with requests that were given up: the workers are asked what they signed.

use crate::audit;
use crate::client::{CallError, Fetched};
use crate::clock::now_ms;
use crate::config::Level;
use crate::error::Error;
use crate::gateway::{Gateway, dice};
use crate::inference::{self, Graphs};
use crate::proofs;
use crate::store::{Due, Entry, Evidence, State, id_of};
use assay_receipt::{Address, BUNDLE_VERSION, Bundle, Bytes32, Member, Verdict};
use assay_verify::Expected;
use futures_util::stream::{self, StreamExt as _};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for a worker's word on an old request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long workers are asked again that cannot be reached or have not ended an answer yet. A worker that was killed
/// together with the gateway is back by then, and no worker takes longer for an answer.
const PERSISTENCE: Duration = Duration::from_secs(15 * 60);
/// The same for a request that its caller gave up, or that another worker answered.
const PERSISTENCE_FOR_RECORD: Duration = Duration::from_secs(60);
/// First and longest pause between two rounds of questions; each is twice as long as the one before.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Old requests that are asked about at the same time.
const AT_ONCE: usize = 16;

/// What the gateway left undone when it stopped. Read before the first new request, which is no left-over.
pub(crate) struct LeftOver {
    pending: Vec<Entry>,
    due: Vec<Bytes32>,
    proofs: Vec<Bytes32>,
}

impl LeftOver {
    pub(crate) async fn read(gateway: &Gateway) -> Result<LeftOver, Error> {
        Ok(LeftOver {
            pending: gateway.store.pending().await?,
            due: gateway.store.due().await?,
            proofs: gateway.store.proofs_due().await?,
        })
    }
}

/// Settles the requests that were under way when the gateway stopped, and makes the replays that were due.
pub(crate) async fn recover(gateway: Arc<Gateway>, left: LeftOver) {
    let accused = match recover_accused(&gateway).await {
        Ok(accused) => accused,
        Err(error) => {
            tracing::error!(%error, "accusations from before the restart could not be taken up");
            Vec::new()
        }
    };
    let due = left.due.into_iter().filter(|nonce| !accused.contains(nonce)).collect();
    if let Err(error) = recover_due(&gateway, due).await {
        tracing::error!(%error, "replays from before the restart could not be made");
    }
    if let Err(error) = recover_proofs(&gateway, left.proofs).await {
        tracing::error!(%error, "proofs from before the restart could not be asked for");
    }
    if let Err(error) = recover_pending(&gateway, left.pending).await {
        tracing::error!(%error, "requests from before the restart could not be settled");
    }
}

/// A request that is not settled, and what was heard about it so far.
struct Open {
    entry: Entry,
    /// Workers that have said all they will.
    heard: HashSet<Address>,
    /// Workers that did not know the nonce when they were asked first: the request may have been on its way to them.
    unknown: HashSet<Address>,
}

async fn recover_pending(gateway: &Arc<Gateway>, pending: Vec<Entry>) -> Result<(), Error> {
    let fresh = |entry| Open { entry, heard: HashSet::new(), unknown: HashSet::new() };
    let mut open: Vec<Open> = pending.into_iter().map(fresh).collect();
    let began = Instant::now();
    let mut pause = PAUSES.0;
    while !open.is_empty() {
        let last = began.elapsed() >= PERSISTENCE;
        let round = stream::iter(open).map(|open| settle(gateway, open, last)).buffer_unordered(AT_ONCE);
        let round: Vec<Result<Option<Open>, Error>> = round.collect().await;
        open = round.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if !open.is_empty() {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
    Ok(())
}

/// Has decided by a second auditor what one said before the restart. Gives the nonces of the requests.
async fn recover_accused(gateway: &Arc<Gateway>) -> Result<Vec<Bytes32>, Error> {
    let mut nonces = Vec::new();
    for accusation in gateway.records.accusations() {
        let request_id = &accusation.request_id;
        let Some(id) = crate::own::id_bytes(request_id) else { continue };
        let Some(dossier) = gateway.store.dossier(id).await? else { continue };
        match audit::subject_of_accusation(gateway, &dossier, &accusation.receipt) {
            Ok(subject) => {
                nonces.push(subject.nonce);
                audit::later(gateway, subject);
            }
            Err(error) => tracing::warn!(request_id, error = error.message, "an accusation stays undecided"),
        }
    }
    Ok(nonces)
}

async fn recover_due(gateway: &Arc<Gateway>, due: Vec<Bytes32>) -> Result<(), Error> {
    for nonce in due {
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

async fn recover_proofs(gateway: &Arc<Gateway>, due: Vec<Bytes32>) -> Result<(), Error> {
    for nonce in due {
        let Some(dossier) = gateway.store.dossier(id_of(&nonce.0)).await? else { continue };
        match audit::subject_of(gateway, &dossier) {
            Ok(subject) => proofs::later(gateway, subject, dossier.entry.model_name, dossier.entry.key),
            Err(error) => {
                tracing::warn!(request_id = dossier.entry.request_id, error = error.message, "no proof");
                gateway.store.proof_done(nonce, false).await?;
            }
        }
    }
    Ok(())
}

/// Asks every worker that was sent the request what it signed, last one first. The first receipt that holds is stored as
/// the answer; everything else as evidence. Gives the request back when a worker must be asked again; on the `last` round
/// it is settled without that worker's word.
async fn settle(gateway: &Arc<Gateway>, mut open: Open, last: bool) -> Result<Option<Open>, Error> {
    let members = Arc::clone(&gateway.members.borrow());
    let mut again = false;
    for attempt in open.entry.attempts.clone().iter().rev() {
        let Some(member) = members.member(&attempt.worker) else { continue };
        if open.heard.contains(&member.worker) {
            continue;
        }
        match ask(gateway, &open.entry, member, attempt.cap).await? {
            Word::Answer(bundle) if is_doubtful(gateway, &bundle).await? => {
                let evidence = Evidence::Answer {
                    worker: member.worker,
                    at_ms: now_ms(),
                    why: "fetched after a restart; its worker or a replay of it is in doubt".into(),
                    receipt: Box::new(bundle.receipt),
                    output: Box::new(bundle.output),
                };
                gateway.store.evidence(open.entry.nonce, evidence).await?;
                open.heard.insert(member.worker);
            }
            Word::Answer(bundle) => {
                accept(gateway, &open.entry, member, *bundle).await?;
                return Ok(None);
            }
            Word::Other => drop(open.heard.insert(member.worker)),
            Word::Unknown if !open.unknown.insert(member.worker) => drop(open.heard.insert(member.worker)),
            Word::Unknown | Word::NotYet => again = true,
        }
    }
    if again && !last {
        return Ok(Some(open));
    }
    let why = "the gateway stopped before an answer was complete".to_owned();
    gateway.store.unanswered(open.entry.nonce, State::Failed, why, now_ms()).await?;
    Ok(None)
}

/// Whether an answer must not be used although everything about it holds: its worker gets no requests any more, or a
/// replay from before the restart gave another answer.
async fn is_doubtful(gateway: &Gateway, bundle: &Bundle) -> Result<bool, Error> {
    let receipt = &bundle.receipt.statement;
    if gateway.records.is_barred(&receipt.worker) {
        return Ok(true);
    }
    let hash = bundle.receipt.hash(&bundle.domain);
    let audits = gateway.store.audits(receipt.nonce).await?;
    Ok(audits
        .iter()
        .map(|row| &row.audit.statement)
        .any(|audit| audit.receipt == hash && audit.verdict == Verdict::Differs))
}

/// Stores an answer that was fetched, as if it had come in time.
async fn accept(gateway: &Arc<Gateway>, entry: &Entry, member: &Member, bundle: Bundle) -> Result<(), Error> {
    let receipt = bundle.receipt.statement.clone();
    let hash = bundle.receipt.hash(&bundle.domain);
    let subject = audit::Subject {
        request_id: entry.request_id.clone(),
        nonce: entry.nonce,
        member: member.clone(),
        bundle: Arc::new(bundle),
        counted: true,
    };
    // A crash is no way around the sampling.
    let share = gateway.records.sampling_ppm(&member.worker, &gateway.config.sampling, None);
    let sampled = || dice() % 1_000_000 < u64::from(share) && audit::is_possible(gateway, &subject);
    let due = match entry.policy.level {
        Level::Proved if entry.is_text() => Due::Proof,
        Level::Signed | Level::Replayed if receipt.arithmetic > 0 && sampled() => Due::Replay,
        _ => Due::Nothing,
    };
    gateway.store.answered(&subject.bundle, hash, now_ms(), due).await?;
    tracing::info!(request_id = entry.request_id, "recovered an answer from before the restart");
    gateway.records.served(member.worker, receipt.completion_tokens, receipt.price, Duration::ZERO);
    gateway.later(due, subject, &entry.model_name, &entry.key);
    Ok(())
}

/// What a worker says about an old request.
enum Word {
    /// A complete answer that holds.
    Answer(Box<Bundle>),
    /// Something else that is final; it is stored as evidence where it is signed.
    Other,
    /// It knows nothing of the request.
    Unknown,
    /// It still works on it, or cannot be reached.
    NotYet,
}

/// Asks one worker.
async fn ask(gateway: &Arc<Gateway>, entry: &Entry, member: &Member, cap: u128) -> Result<Word, Error> {
    let client = gateway.clients.of(member)?;
    let commitment = assay_receipt::request_commitment(&entry.request, &entry.salt);
    let settled = match timeout(PATIENCE, client.settled(&entry.nonce, &commitment)).await {
        Ok(Ok(Fetched::Settled(settled))) => *settled,
        Ok(Ok(Fetched::Unknown)) => return Ok(Word::Unknown),
        Ok(Ok(Fetched::Running)) => return Ok(Word::NotYet),
        Ok(Err(CallError::Transport(why))) => {
            tracing::debug!(worker = %member.worker, why, "a worker cannot be asked about an old request");
            return Ok(Word::NotYet);
        }
        Ok(Err(error)) => {
            tracing::warn!(worker = %member.worker, ?error, "a worker gave no word on an old request");
            return Ok(Word::Other);
        }
        Err(_) => return Ok(Word::NotYet),
    };
    let (worker, at_ms) = (member.worker, now_ms());
    if let Some(failure) = settled.failure {
        let failure = Box::new(failure);
        gateway.store.evidence(entry.nonce, Evidence::Failure { worker, at_ms, failure }).await?;
        return Ok(Word::Other);
    }
    let (Some(receipt), Some(output)) = (settled.receipt, settled.output) else { return Ok(Word::Other) };
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
    let model = match entry.policy.level {
        Level::Proved if entry.is_inference() => {
            match Graphs::with_id(gateway, &entry.model_name, &entry.request.model).await {
                Some(model) => Some(model),
                None => return Ok(Word::NotYet),
            }
        }
        Level::Signed | Level::Replayed | Level::Proved => None,
    };
    let checked = tokio::task::spawn_blocking(move || {
        let report = inference::check(&bundle, &expected, model.as_deref());
        (bundle, report)
    });
    let Ok((bundle, report)) = checked.await else { return Ok(Word::Other) };
    if matches!(report.state, assay_verify::State::Signed | assay_verify::State::Proved) {
        return Ok(Word::Answer(Box::new(bundle)));
    }
    if inference::is_caught(&report) {
        audit::caught_with_receipt(gateway, &entry.request_id, &bundle.receipt).await;
    }
    let failed: Vec<String> = report.failed().map(|check| check.detail.clone()).collect();
    let evidence = Evidence::Answer {
        worker,
        at_ms,
        why: format!("fetched after a restart; it does not hold: {}", failed.join("; ")),
        receipt: Box::new(bundle.receipt),
        output: Box::new(bundle.output),
    };
    gateway.store.evidence(entry.nonce, evidence).await?;
    Ok(Word::Other)
}

/// Fetches, as soon as there is something, what a worker signed about a request that went on without it: `why` says in
/// what way. For the incident record.
pub(crate) fn fetch_later(
    gateway: &Arc<Gateway>,
    nonce: Bytes32,
    commitment: Bytes32,
    member: Member,
    why: &'static str,
) {
    let spawner = gateway;
    let gateway = Arc::clone(gateway);
    spawner.spawn(async move {
        let (began, mut pause, mut unknown) = (Instant::now(), PAUSES.0, 0);
        let settled = loop {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            let Ok(client) = gateway.clients.of(&member) else { return };
            match timeout(PATIENCE, client.settled(&nonce, &commitment)).await {
                Ok(Ok(Fetched::Settled(settled))) => break settled,
                Ok(Ok(Fetched::Unknown)) => unknown += 1,
                Ok(Ok(Fetched::Running) | Err(CallError::Transport(_))) | Err(_) => {}
                Ok(Err(_)) => return,
            }
            if unknown > 1 || began.elapsed() > PERSISTENCE_FOR_RECORD {
                return;
            }
        };
        let (worker, at_ms) = (member.worker, now_ms());
        let evidence = match (settled.failure, settled.receipt, settled.output) {
            (Some(failure), ..) => Evidence::Failure { worker, at_ms, failure: Box::new(failure) },
            (None, Some(receipt), Some(output)) => Evidence::Answer {
                worker,
                at_ms,
                why: why.into(),
                receipt: Box::new(receipt),
                output: Box::new(output),
            },
            _ => return,
        };
        if let Err(error) = gateway.store.evidence(nonce, evidence).await {
            tracing::error!(%error, "a worker's word on a request was not stored");
        }
    });
}
