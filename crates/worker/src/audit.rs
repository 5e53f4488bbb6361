//! Audits: repeats another worker's answer and signs what came out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use assay_engine::request::OutputVerdict;
use assay_receipt::{AnyStatement, Audit, Bundle, Bytes32, Domain, FailureCode, Receipt, Verdict, limits};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use crate::answer::Trouble;
use crate::http::{plain, read_body, refuse_audit};
use crate::local::Replayed;
use crate::log::{Draft, Entry};
use crate::server::{Backend, Host, Phase, Shared, now_ms};

/// A verdict before it is signed.
struct Finding {
    verdict: Verdict,
    field: String,
    position: u64,
    expected: u64,
    claimed: u64,
    compute_ms: u64,
}

impl Finding {
    fn new(verdict: Verdict) -> Finding {
        Finding { verdict, field: String::new(), position: 0, expected: 0, claimed: 0, compute_ms: 0 }
    }
}

/// Counts an audit among those of a model, and out again when dropped.
struct Place(Arc<Host>);

impl Place {
    fn take(host: &Arc<Host>, places: usize) -> Option<Place> {
        let place = Place(host.clone());
        (host.audits.fetch_add(1, Ordering::AcqRel) < places).then_some(place) // a refused place is given back as well
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.audits.fetch_sub(1, Ordering::AcqRel);
    }
}

/// `POST /v1/audit`.
pub(crate) async fn audit(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response {
    let received_at_ms = now_ms();
    let bundle = match read(&shared, &headers, body).await {
        Ok(bundle) => bundle,
        Err(response) => return response,
    };
    let statement = bundle.receipt.statement.clone();
    if *shared.phase.borrow() != Phase::Serving {
        let trouble =
            Trouble::new(FailureCode::Draining, "The worker is shutting down: ask another to audit.");
        return refuse_audit(&shared, &statement, received_at_ms, trouble.retry_after(30_000)).await;
    }
    let receipt = bundle.receipt.hash(&shared.config.domain);
    // A replay gives the same verdict each time, so one is enough.
    match shared.log.audit_of(&receipt) {
        Err(error) => return error.into_response(),
        Ok(Some(Entry { statement: AnyStatement::Audit(audit), domain, .. }))
            if domain == shared.config.domain
                // One by a key that this worker had before would not count any more.
                && audit.statement.auditor == shared.address
                && audit.statement.key_epoch == shared.config.key_epoch
                && audit.statement.verdict != Verdict::Unable =>
        {
            return axum::Json(json!({ "audit": audit })).into_response();
        }
        Ok(_) => {}
    }
    match find(&shared, bundle).await {
        Ok(found) => sign(&shared, receipt, found).await,
        Err(trouble) => refuse_audit(&shared, &statement, received_at_ms, trouble).await,
    }
}

/// Reads and checks a bundle.
pub(crate) async fn read(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Bundle, Response> {
    let body = read_body(shared, headers, body, limits::BUNDLE_BYTES).await?;
    let domain = shared.config.domain;
    let read = body.beside(move |bytes| {
        let bundle = Bundle::from_json(bytes).map_err(|fault| ("bad_request", format!("{fault}.")))?;
        check(&domain, &bundle).map_err(|fault| ("bad_bundle", fault.to_owned()))?;
        Ok(bundle)
    });
    read.await?.map_err(|(code, fault): (&str, String)| plain(StatusCode::BAD_REQUEST, code, &fault))
}

/// Checks that the bundle is what its worker signed, so that a verdict on it is a verdict on the worker.
pub(crate) fn check(domain: &Domain, bundle: &Bundle) -> Result<(), &'static str> {
    let receipt = &bundle.receipt.statement;
    if bundle.domain != *domain {
        return Err("The bundle is for another domain than this worker's.");
    }
    if !bundle.receipt.is_by_author(&bundle.domain) {
        return Err("The receipt is not signed by the worker that it names.");
    }
    if assay_receipt::request_commitment(&bundle.request, &bundle.salt) != receipt.request {
        return Err("The request is not the one that the receipt commits to.");
    }
    if assay_receipt::output_commitment(&bundle.output, &bundle.salt) != receipt.output {
        return Err("The output is not the one that the receipt commits to.");
    }
    Ok(())
}

/// What the receipt itself claims beyond the output that it commits to.
fn contradiction(bundle: &Bundle) -> Option<Finding> {
    let (receipt, output) = (&bundle.receipt.statement, &bundle.output);
    let differs = |field: &str, expected: u32, claimed: u32| Finding {
        field: field.to_owned(),
        expected: expected.into(),
        claimed: claimed.into(),
        ..Finding::new(Verdict::Differs)
    };
    if receipt.prompt_tokens != output.prompt_tokens {
        return Some(differs("prompt_tokens", output.prompt_tokens, receipt.prompt_tokens));
    }
    if receipt.completion_tokens != output.completion_tokens {
        return Some(differs("completion_tokens", output.completion_tokens, receipt.completion_tokens));
    }
    (receipt.model != bundle.request.model)
        .then(|| Finding { field: "model".to_owned(), ..Finding::new(Verdict::Differs) })
}

type Found = (Finding, Receipt, u32);

async fn find(shared: &Arc<Shared>, bundle: Bundle) -> Result<Found, Trouble> {
    let receipt = bundle.receipt.statement.clone();
    let unable = |field: &str| Finding { field: field.to_owned(), ..Finding::new(Verdict::Unable) };
    let host = shared.hosts.iter().find(|host| host.offer.model == bundle.request.model);
    let Some(host) = host.filter(|host| !matches!(host.backend, Backend::Upstream(_) | Backend::Proofs(_)))
    else {
        return Ok((unable("model"), receipt, 0));
    };
    let arithmetic = host.offer.arithmetic;
    if receipt.arithmetic != arithmetic {
        return Ok((unable("arithmetic"), receipt, arithmetic));
    }
    if let Some(finding) = contradiction(&bundle) {
        return Ok((finding, receipt, arithmetic));
    }
    let Some(_place) = Place::take(host, shared.config.audits) else {
        let message = "Too many audits wait: try later, or another auditor.";
        return Err(Trouble::new(FailureCode::Busy, message).retry_after(host.retry_after_ms()));
    };
    let started = Instant::now();
    let replayed = match &host.backend {
        Backend::Local(local) => local.replay(bundle.request, bundle.output).await,
        Backend::Encoder(embedder) => embedder.replay(bundle.request, bundle.output).await,
        Backend::Graph(prover) => prover.replay(bundle.request, bundle.output).await,
        Backend::Upstream(_) | Backend::Proofs(_) => Replayed::Unable { field: "model" },
    };
    tracing::debug!(waited = ?started.elapsed(), "audit replayed");
    let finding = match replayed {
        Replayed::Judged { verdict: OutputVerdict::Agrees, compute_ms } => {
            Finding { compute_ms, ..Finding::new(Verdict::Agrees) }
        }
        Replayed::Judged {
            verdict: OutputVerdict::Differs { field, position, expected, claimed },
            compute_ms,
        } => Finding {
            verdict: Verdict::Differs,
            field: field.to_owned(),
            position,
            expected,
            claimed,
            compute_ms,
        },
        Replayed::Unable { field } => unable(field),
    };
    Ok((finding, receipt, arithmetic))
}

async fn sign(shared: &Shared, hash: Bytes32, (finding, receipt, arithmetic): Found) -> Response {
    shared.metrics.audited(finding.verdict);
    if finding.verdict == Verdict::Differs {
        tracing::warn!(worker = %receipt.worker, nonce = %receipt.nonce, field = finding.field, position = finding.position, "an audited answer differs");
    }
    let audit = Audit {
        auditor: shared.address,
        key_epoch: shared.config.key_epoch,
        receipt: hash,
        model: receipt.model,
        arithmetic,
        verdict: finding.verdict,
        field: finding.field,
        position: finding.position,
        expected: finding.expected,
        claimed: finding.claimed,
        sequence: 0,
        previous: Bytes32::ZERO,
        audited_at_ms: now_ms(),
        compute_ms: finding.compute_ms,
    };
    match shared.log.sign(Draft::Audit(Box::new(audit))).await {
        Ok(Entry { statement: AnyStatement::Audit(audit), .. }) => {
            axum::Json(json!({ "audit": audit })).into_response()
        }
        Ok(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The log mixed up two statements."),
        Err(error) => error.into_response(),
    }
}
