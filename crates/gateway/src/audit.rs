//! Having answers replayed by workers that did not make them.

use crate::clock::now_ms;
use crate::error::{ApiError, Error};
use crate::gateway::{Gateway, dice};
use crate::record::Suspension;
use crate::store::{AuditRow, Dossier, Evidence};
use assay_receipt::{
    Address, Audit, BUNDLE_VERSION, Bundle, Bytes32, Member, Output, Receipt, Signed, Verdict,
};
use assay_verify::Expected;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Auditors asked in turn when some cannot.
const AUDITORS_MAX: usize = 3;

/// First and longest pause before a replay is tried again that nobody could make.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Times that a replay is tried when nobody can make it and nobody is accused.
const TRIES_MAX: usize = 6;

/// An answer that is to be replayed.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) request_id: String,
    pub(crate) nonce: Bytes32,
    /// The worker that made it.
    pub(crate) member: Member,
    pub(crate) bundle: Arc<Bundle>,
    /// Whether its price is already counted as earned.
    pub(crate) counted: bool,
}

/// What replaying an answer led to. The audits themselves are stored.
pub(crate) enum Found {
    /// The same answer.
    Agreed(Box<AuditRow>),
    /// Another answer, say auditors of two operators. The worker is suspended.
    Caught,
    /// Another answer, says one auditor, and nobody of a third operator could confirm or deny it yet. One word is no
    /// proof, so the worker is not suspended, but it gets no requests until a second auditor has decided.
    Accused,
    /// One auditor says so and another the opposite.
    Disputed,
    /// Nobody of another operator could replay it.
    Nobody,
}

/// What the audits of a receipt say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tally {
    /// None of them is conclusive.
    Open,
    /// All agree.
    Agreed,
    /// One operator says that it differs, and nobody else says anything.
    Accused,
    /// Two operators say that it differs, and nobody the opposite.
    Caught,
    /// They contradict each other.
    Disputed,
}

impl Tally {
    /// Counts the audits of one receipt.
    pub(crate) fn of<'a>(rows: impl IntoIterator<Item = &'a AuditRow>) -> Tally {
        let (mut agrees, mut accusers) = (false, HashSet::new());
        for row in rows {
            match row.audit.statement.verdict {
                Verdict::Agrees => agrees = true,
                Verdict::Differs => drop(accusers.insert(&*row.auditor_operator)),
                Verdict::Unable => {}
            }
        }
        match (agrees, accusers.len()) {
            (false, 0) => Tally::Open,
            (true, 0) => Tally::Agreed,
            (false, 1) => Tally::Accused,
            (false, _) => Tally::Caught,
            (true, _) => Tally::Disputed,
        }
    }
}

/// Whether somebody of another operator offers to replay it.
pub(crate) fn is_possible(gateway: &Gateway, subject: &Subject) -> bool {
    choose(gateway, subject, std::slice::from_ref(&subject.member.operator), &[]).is_some()
}

fn choose(gateway: &Gateway, subject: &Subject, operators: &[String], asked: &[Address]) -> Option<Member> {
    let members = gateway.members().ok()?;
    let receipt = &subject.bundle.receipt.statement;
    gateway.records.choose_auditor(&members, &receipt.model, receipt.arithmetic, operators, asked, dice())
}

/// Has an answer replayed, and when the replay differs has that confirmed; what is known from earlier audits counts.
/// Everything signed is stored before this returns, and the worker's record says what was found.
pub(crate) async fn examine(gateway: &Gateway, subject: &Subject) -> Result<Found, Error> {
    let worker = subject.member.worker;
    let receipt = subject.bundle.receipt.hash(&gateway.config.domain);
    let mut rows = gateway.store.audits(subject.nonce).await?;
    rows.retain(|row| row.audit.statement.receipt == receipt);
    match Tally::of(&rows) {
        // The record says so already, unless the gateway was killed just before.
        Tally::Caught => return caught(gateway, subject, receipt, &rows).await,
        Tally::Disputed => {
            gateway.records.audit_disputed(worker, &receipt, false);
            return Ok(Found::Disputed);
        }
        Tally::Open | Tally::Agreed | Tally::Accused => {}
    }
    let mut operators = vec![subject.member.operator.clone()];
    let differs = |row: &&AuditRow| row.audit.statement.verdict == Verdict::Differs;
    operators.extend(rows.iter().filter(differs).map(|row| row.auditor_operator.clone()));
    let mut asked = Vec::new();
    loop {
        let next = one(gateway, subject, &operators, &mut asked).await?;
        let heard = next.is_some();
        let new = next.as_ref().is_some_and(|(_, new)| *new);
        rows.extend(next.map(|(row, _)| row));
        match (Tally::of(&rows), rows.last()) {
            (Tally::Agreed, Some(row)) if heard => {
                if new {
                    gateway.records.audit_agreed(worker);
                }
                return Ok(Found::Agreed(Box::new(row.clone())));
            }
            (Tally::Open | Tally::Agreed, _) => return Ok(Found::Nobody),
            (Tally::Accused, Some(row)) if heard => operators.push(row.auditor_operator.clone()),
            (Tally::Accused, _) => {
                gateway.records.accused(worker, suspension(subject, receipt, &rows));
                gateway.store.flush().await?;
                return Ok(Found::Accused);
            }
            (Tally::Disputed, _) => {
                tracing::error!(%worker, request_id = subject.request_id, "two auditors contradict each other");
                gateway.records.audit_disputed(worker, &receipt, true);
                gateway.store.flush().await?;
                return Ok(Found::Disputed);
            }
            (Tally::Caught, _) => return caught(gateway, subject, receipt, &rows).await,
        }
    }
}

async fn caught(
    gateway: &Gateway,
    subject: &Subject,
    receipt: Bytes32,
    rows: &[AuditRow],
) -> Result<Found, Error> {
    let price = subject.bundle.receipt.statement.price;
    let suspension = suspension(subject, receipt, rows);
    if gateway.records.caught(subject.member.worker, suspension, price, subject.counted) {
        gateway.metrics.caught.inc();
    }
    gateway.store.flush().await?;
    Ok(Found::Caught)
}

/// [`caught_with_proof`] for a receipt: its proof does not hold, or a proof shows that its answer is wrong.
pub(crate) async fn caught_with_receipt(gateway: &Gateway, request_id: &str, receipt: &Signed<Receipt>) {
    let Receipt { worker, price, .. } = receipt.statement;
    caught_with_proof(gateway, request_id, worker, receipt.hash(&gateway.config.domain), price).await;
}

/// Suspends a worker that signed a proof which does not hold, with the hash of what it signed: everybody who has that can see it, so nobody
/// has to confirm it.
pub(crate) async fn caught_with_proof(
    gateway: &Gateway,
    request_id: &str,
    worker: Address,
    statement: Bytes32,
    price: u128,
) {
    let suspension = Suspension {
        request_id: request_id.to_owned(),
        receipt: statement,
        field: "proof".to_owned(),
        position: 0,
        expected: 0,
        claimed: 0,
        auditors: Vec::new(),
        at_ms: now_ms(),
    };
    if gateway.records.caught(worker, suspension, price, false) {
        gateway.metrics.caught.inc();
    }
    if let Err(error) = gateway.store.flush().await {
        tracing::error!(%error, request_id, "a worker's suspension was not stored");
    }
}

/// Why a worker is suspended, or accused, in the words of the first audit that differs.
fn suspension(subject: &Subject, receipt: Bytes32, rows: &[AuditRow]) -> Suspension {
    let differing: Vec<&Audit> = rows
        .iter()
        .map(|row| &row.audit.statement)
        .filter(|audit| audit.verdict == Verdict::Differs)
        .collect();
    let first = differing.first();
    Suspension {
        request_id: subject.request_id.clone(),
        receipt,
        field: first.map(|audit| audit.field.clone()).unwrap_or_default(),
        position: first.map_or(0, |audit| audit.position),
        expected: first.map_or(0, |audit| audit.expected),
        claimed: first.map_or(0, |audit| audit.claimed),
        auditors: differing.iter().map(|audit| audit.auditor).collect(),
        at_ms: now_ms(),
    }
}

/// One conclusive audit by an operator that is not among `operators` and whether it is new, or `None`.
async fn one(
    gateway: &Gateway,
    subject: &Subject,
    operators: &[String],
    asked: &mut Vec<Address>,
) -> Result<Option<(AuditRow, bool)>, Error> {
    let patience = Duration::from_millis(gateway.config.workers.audit_ms);
    for _ in 0..AUDITORS_MAX {
        let Some(auditor) = choose(gateway, subject, operators, asked) else { return Ok(None) };
        asked.push(auditor.worker);
        let client = gateway.clients.of(&auditor)?;
        let began = Instant::now();
        let reply = {
            let _in_flight = gateway.records.enter(auditor.worker);
            timeout(patience, client.audit(&subject.bundle)).await
        };
        let audit = match reply {
            Ok(Ok(audit)) => audit,
            Ok(Err(crate::client::CallError::Refused(failure)))
                if failure.statement.worker == auditor.worker
                    && failure.is_by_author(&gateway.config.domain) =>
            {
                let wait = Duration::from_millis(failure.statement.retry_after_ms.max(500));
                gateway.records.refused(auditor.worker, wait);
                continue;
            }
            Ok(Err(crate::client::CallError::Busy(wait))) => {
                gateway.records.refused(auditor.worker, wait);
                continue;
            }
            Ok(Err(error)) => {
                gateway.records.fault(auditor.worker, &format!("it failed to audit: {error:?}"));
                continue;
            }
            Err(_) => {
                gateway.records.fault(auditor.worker, "it made no audit in time");
                continue;
            }
        };
        if let Err(why) = accept(gateway, subject, &auditor, audit.clone()).await {
            gateway.records.fault(auditor.worker, &format!("its audit does not hold: {why}"));
            continue;
        }
        let elapsed = began.elapsed();
        let row = AuditRow {
            at_ms: now_ms(),
            auditor_operator: auditor.operator.clone(),
            worker: subject.member.worker,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            audit,
        };
        // An auditor that is asked again gives the audit that it made before.
        let new = gateway.store.audit(subject.nonce, &row).await?;
        if new {
            gateway.records.audit_made(auditor.worker);
            gateway.metrics.audits.inc();
        }
        gateway.metrics.audit_time.observe(elapsed.as_secs_f64());
        if row.audit.statement.verdict != Verdict::Unable {
            return Ok(Some((row, new)));
        }
    }
    Ok(None)
}

/// Checks an audit: signed by the auditor that was asked, about this receipt, and not contradicting itself.
async fn accept(
    gateway: &Gateway,
    subject: &Subject,
    auditor: &Member,
    audit: Signed<Audit>,
) -> Result<(), String> {
    if audit.statement.auditor != auditor.worker {
        return Err(format!("it names the auditor {}", audit.statement.auditor));
    }
    let expected = Expected {
        domain: gateway.config.domain,
        workers: vec![subject.member.clone(), auditor.clone()],
        nonce: Some(subject.nonce),
        model: None,
        payer: None,
        cap: None,
    };
    let mut bundle = Bundle::clone(&subject.bundle);
    bundle.audits = vec![audit];
    let failed = tokio::task::spawn_blocking(move || {
        let report = assay_verify::check(&bundle, &expected);
        let failed = report.not_counted();
        failed.map(|check| check.detail.clone()).collect::<Vec<_>>()
    })
    .await
    .map_err(|error| error.to_string())?;
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// Replays an answer in the background, as soon as there is a place for it, and again for as long as one auditor's word
/// against the worker is neither confirmed nor denied. It is noted in the database as due, so it happens after a restart
/// if it does not happen now.
pub(crate) fn later(gateway: &Arc<Gateway>, subject: Subject) {
    let spawner = gateway;
    let gateway = Arc::clone(gateway);
    spawner.spawn(async move {
        let worker = subject.member.worker;
        let receipt = subject.bundle.receipt.hash(&gateway.config.domain);
        let mut pause = PAUSES.0;
        let result = 'tries: {
            for attempt in 1.. {
                let found = {
                    let Ok(_place) = gateway.audit_slots.acquire().await else { return };
                    examine(&gateway, &subject).await
                };
                let accused = match found {
                    Ok(Found::Accused) => true,
                    Ok(Found::Nobody) if attempt < TRIES_MAX => false,
                    Ok(_) => break,
                    Err(error) => break 'tries Err(error),
                };
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                // Another answer of the worker may be what it is held for, or its operator's word was taken for it.
                if accused && !gateway.records.is_accused(&worker, &receipt) {
                    break;
                }
            }
            gateway.store.audit_done(subject.nonce).await
        };
        if let Err(error) = result {
            tracing::error!(%error, request_id = subject.request_id, "a background replay failed");
        }
    });
}

/// The subject of an accusation that was not decided when the gateway stopped. The answer may be one that was not used.
pub(crate) fn subject_of_accusation(
    gateway: &Gateway,
    dossier: &Dossier,
    receipt: &Bytes32,
) -> Result<Subject, ApiError> {
    let domain = gateway.config.domain;
    if dossier.bundle.as_ref().is_some_and(|bundle| bundle.receipt.hash(&domain) == *receipt) {
        return subject_of(gateway, dossier);
    }
    let unused = dossier.evidence.iter().find_map(|evidence| match evidence {
        Evidence::Answer { worker, receipt: own, output, .. } if own.hash(&domain) == *receipt => {
            Some((*worker, own, output))
        }
        _ => None,
    });
    let bundle = unused.and_then(|(worker, own, output)| {
        let chunks = dossier.evidence.iter().find_map(|evidence| match evidence {
            Evidence::Chunks { worker: other, chunks, .. }
                if *other == worker && chunks.len() as u64 == own.statement.chunks =>
            {
                Some(chunks.clone())
            }
            _ => None,
        })?;
        Some(Bundle {
            version: BUNDLE_VERSION,
            domain,
            salt: dossier.entry.salt,
            request: dossier.entry.request.clone(),
            output: Output::clone(output),
            chunks,
            receipt: Signed::clone(own),
            audits: Vec::new(),
        })
    });
    let dossier = Dossier { entry: dossier.entry.clone(), bundle, audits: Vec::new(), evidence: Vec::new() };
    // It was not accepted, so it was not counted.
    subject_of(gateway, &dossier).map(|subject| Subject { counted: false, ..subject })
}

/// The subject of a stored request, when it has an answer by a worker that is still a member.
pub(crate) fn subject_of(gateway: &Gateway, dossier: &Dossier) -> Result<Subject, ApiError> {
    let Some(bundle) = &dossier.bundle else {
        return Err(ApiError::not_found("This request has no answer that could be replayed"));
    };
    let receipt = &bundle.receipt.statement;
    if receipt.arithmetic == 0 {
        return Err(ApiError::bad_body(
            "This answer came from a forwarder, whose answers nobody can replay; see its receipt",
        ));
    }
    let members = gateway.members()?;
    let member = members.member(&receipt.worker).filter(|member| member.key_epoch == receipt.key_epoch);
    let member = member.ok_or_else(|| {
        ApiError::unavailable("The worker that made this answer is no longer on the list of members")
    })?;
    let mut bundle = bundle.clone();
    bundle.audits.clear();
    Ok(Subject {
        request_id: dossier.entry.request_id.clone(),
        nonce: dossier.entry.nonce,
        member: member.clone(),
        bundle: Arc::new(bundle),
        counted: true,
    })
}
