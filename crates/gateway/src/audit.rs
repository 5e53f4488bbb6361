//! Having answers replayed by workers that did not make them.

use crate::clock::now_ms;
use crate::error::{ApiError, Error};
use crate::gateway::{Gateway, dice};
use crate::record::Suspension;
use crate::store::{AuditRow, Dossier};
use assay_receipt::{Address, Audit, Bundle, Bytes32, Member, Signed, Verdict};
use assay_verify::Expected;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Auditors asked in turn when some cannot.
const AUDITORS_MAX: usize = 3;

/// An answer that is to be replayed.
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
    /// Another answer, confirmed where there was somebody to confirm it. The worker is suspended.
    Caught,
    /// One auditor says so and another the opposite.
    Disputed,
    /// Nobody of another operator could replay it.
    Nobody,
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

/// Has an answer replayed, and when the replay differs has that confirmed. Everything signed is stored before this
/// returns, and the worker's record says what was found.
pub(crate) async fn examine(gateway: &Gateway, subject: &Subject) -> Result<Found, Error> {
    let worker = subject.member.worker;
    let mut operators = vec![subject.member.operator.clone()];
    let mut asked = Vec::new();
    let Some(first) = one(gateway, subject, &operators, &mut asked).await? else { return Ok(Found::Nobody) };
    if first.audit.statement.verdict == Verdict::Agrees {
        gateway.records.audit_agreed(worker);
        return Ok(Found::Agreed(Box::new(first)));
    }
    operators.push(first.auditor_operator.clone());
    let mut auditors = vec![first.audit.statement.auditor];
    if let Some(second) = one(gateway, subject, &operators, &mut asked).await? {
        if second.audit.statement.verdict == Verdict::Agrees {
            tracing::error!(%worker, request_id = subject.request_id, "two auditors contradict each other");
            gateway.records.audit_disputed(worker);
            return Ok(Found::Disputed);
        }
        auditors.push(second.audit.statement.auditor);
    }
    let Audit { field, position, expected, claimed, .. } = first.audit.statement.clone();
    let receipt = &subject.bundle.receipt;
    let suspension = Suspension {
        request_id: subject.request_id.clone(),
        receipt: receipt.hash(&gateway.config.domain),
        field,
        position,
        expected,
        claimed,
        auditors,
        at_ms: now_ms(),
    };
    gateway.metrics.caught.inc();
    gateway.records.caught(worker, suspension, receipt.statement.price, subject.counted);
    gateway.store.flush().await?;
    Ok(Found::Caught)
}

/// One conclusive audit by an operator that is not among `operators`, or `None`.
async fn one(
    gateway: &Gateway,
    subject: &Subject,
    operators: &[String],
    asked: &mut Vec<Address>,
) -> Result<Option<AuditRow>, Error> {
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
        gateway.store.audit(subject.nonce, &row).await?;
        gateway.records.audit_made(auditor.worker);
        gateway.metrics.audits.inc();
        gateway.metrics.audit_time.observe(elapsed.as_secs_f64());
        if row.audit.statement.verdict != Verdict::Unable {
            return Ok(Some(row));
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

/// Replays an answer in the background, as soon as there is a place for it. It is noted in the database as due, so it
/// happens after a restart if it does not happen now.
pub(crate) fn later(gateway: &Arc<Gateway>, subject: Subject) {
    let spawner = gateway;
    let gateway = Arc::clone(gateway);
    spawner.spawn(async move {
        let Ok(_place) = gateway.audit_slots.acquire().await else { return };
        let result = match examine(&gateway, &subject).await {
            Ok(_) => gateway.store.audit_done(subject.nonce).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(%error, request_id = subject.request_id, "a background replay failed");
        }
    });
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
