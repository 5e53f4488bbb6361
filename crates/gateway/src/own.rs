//! Assay's own endpoints: receipts, audits, incidents, workers, members.

use crate::access::Caller;
use crate::audit::{self, Found, Tally};
use crate::config::Level;
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::openai::model_names;
use crate::proofs;
use crate::serve::AuditSummary;
use crate::store::{AuditRow, Dossier, Entry, Evidence, State as RequestState};
use assay_receipt::{Address, GRAPH_ARITHMETIC, Offer, Verdict};
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;

/// Bytes of a proof that are read and sent at once.
const PIECE: usize = 256 << 10;
/// Most rows in one list.
const ROWS_MAX: usize = 1_000;

/// Query of `GET /assay/receipts`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    limit: Option<usize>,
    before_ms: Option<u64>,
}

/// What is known about an answer: `signed`, `replayed`, `proved`, `mismatch`, `disputed` (auditors contradict each other, or one
/// says that it is wrong and no second one has confirmed it), or why there is none.
fn state_of(entry: &Entry, audits: &[AuditRow]) -> &'static str {
    let tally = Tally::of(of_answer(entry, audits));
    match entry.state {
        RequestState::Pending => "running",
        RequestState::Failed => "failed",
        RequestState::Cancelled => "cancelled",
        // No auditor can say otherwise.
        RequestState::Answered if entry.proof.is_some() => "proved",
        // A proof of an integer graph, or one that was asked for, is checked before the answer counts.
        RequestState::Answered if entry.policy.level == Level::Proved && !entry.is_text() => "proved",
        RequestState::Answered if entry.proof_due => "pending",
        RequestState::Answered => match tally {
            Tally::Open => "signed",
            Tally::Agreed => "replayed",
            Tally::Caught => "mismatch",
            Tally::Accused | Tally::Disputed => "disputed",
        },
    }
}

/// The audits of the answer that was accepted.
fn of_answer<'a>(entry: &Entry, audits: &'a [AuditRow]) -> impl Iterator<Item = &'a AuditRow> {
    let receipt = entry.receipt_hash;
    audits.iter().filter(move |row| Some(row.audit.statement.receipt) == receipt)
}

fn row(gateway: &Gateway, entry: &Entry, audits: &[AuditRow]) -> Value {
    json!({
        "request_id": entry.request_id,
        "created_at_ms": entry.created_at_ms,
        "settled_at_ms": entry.settled_at_ms,
        "model": entry.model_name,
        "model_id": entry.request.model,
        "key": entry.key,
        "policy": entry.policy,
        "state": state_of(entry, audits),
        "worker": entry.worker,
        "operator": entry.worker.and_then(|worker| gateway.operator_of(&worker)),
        "receipt_hash": entry.receipt_hash,
        "bill": entry.bill,
        "attempts": entry.attempts.len(),
        "error": entry.error,
        "proof": entry.proof,
        "audits": audits.iter().map(AuditSummary::from).collect::<Vec<_>>(),
    })
}

/// `GET /assay/receipts`
pub(crate) async fn receipts(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Query(page): Query<Page>,
) -> Result<Response, ApiError> {
    let limit = page.limit.unwrap_or(50).min(ROWS_MAX);
    let rows = gateway.store.list(limit, page.before_ms.unwrap_or(u64::MAX), caller.sees()).await?;
    let rows: Vec<Value> = rows.iter().map(|(entry, audits)| row(&gateway, entry, audits)).collect();
    Ok(axum::Json(json!({"receipts": rows})).into_response())
}

/// The 16 bytes in a request id, whatever stands before them.
pub(crate) fn id_bytes(id: &str) -> Option<[u8; 16]> {
    let digits = id.rsplit(['-', '_']).next()?;
    if digits.len() != 32 {
        return None;
    }
    let number = u128::from_str_radix(digits, 16).ok()?;
    Some(number.to_be_bytes())
}

/// A request, if there is one that the caller may see: what others asked is as unknown to it as what nobody asked.
async fn dossier(gateway: &Gateway, caller: &Caller, id: &str) -> Result<Dossier, ApiError> {
    let bytes = id_bytes(id).ok_or_else(|| {
        ApiError::invalid("request_id", "A request id ends in 32 hex digits, such as chatcmpl-00ff..")
    })?;
    let found = gateway.store.dossier(bytes).await?;
    let found = found.filter(|dossier| caller.sees().is_none_or(|key| key == dossier.entry.key));
    found.ok_or_else(|| ApiError::not_found(format!("No request {id} is known here")))
}

/// `GET /assay/receipts/{request_id}`: the bundle that `assay verify` reads.
pub(crate) async fn bundle(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let dossier = dossier(&gateway, &caller, &id).await?;
    let bundle = dossier.bundle.ok_or_else(|| {
        ApiError::not_found("This request has no receipt; /assay/incident/ID says what became of it")
    })?;
    Ok(axum::Json(bundle).into_response())
}

/// `GET /assay/receipts/{request_id}/proof`: the proof of an answer, which `assay verify --proof` checks with the model's key.
pub(crate) async fn proof(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let entry = dossier(&gateway, &caller, &id).await?.entry;
    let missing = || {
        ApiError::not_found("No proof of this answer is kept here; POST /assay/proofs/ID has one made")
            .about(&id)
    };
    let kept = entry.proof.as_ref().ok_or_else(missing)?;
    let file = tokio::fs::File::open(gateway.proofs.path(&entry.nonce)).await.map_err(|error| {
        tracing::error!(%error, request_id = id, "a proof is gone from the disk");
        missing()
    })?;
    let pieces = stream::try_unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece).await?;
        piece.truncate(count);
        Ok::<_, std::io::Error>((count > 0).then(|| (Bytes::from(piece), file)))
    });
    let headers =
        [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, kept.bytes.to_string())];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// `GET /assay/proof-keys/{key}`: the file of a key that this gateway checks proofs with. Its id is its hash.
pub(crate) async fn proof_key(
    State(gateway): State<Arc<Gateway>>,
    Path(key): Path<String>,
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found("This gateway checks no proofs with that key; see /assay/models");
    let key = gateway.proofs.file_of(&key.parse().map_err(|_| missing())?).ok_or_else(missing)?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], key).into_response())
}

/// `POST /assay/proofs/{request_id}`: has an answer proved now, at a worker's price, unless its proof is kept already. Who stops waiting finds it
/// later.
pub(crate) async fn prove(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let dossier = dossier(&gateway, &caller, &id).await?;
    if dossier.entry.proof.is_none() || !gateway.proofs.path(&dossier.entry.nonce).is_file() {
        if !dossier.entry.is_text() {
            return Err(ApiError::bad_body("Only answers in text are proved afterwards").about(&id));
        }
        let subject = audit::subject_of(&gateway, &dossier)?;
        let Entry { model_name, key, .. } = dossier.entry;
        let (done, proved) = oneshot::channel();
        let prover = Arc::clone(&gateway);
        gateway.spawn(async move {
            let proved = proofs::prove(&prover, &subject, &model_name, &key).await;
            let _ = done.send(proved); // it is kept, whoever listens
        });
        let proved = proved.await.map_err(|_| ApiError::unavailable("The gateway stops; ask again later"))?;
        proved.map_err(|unproved| match unproved.wrong {
            true => ApiError::verification("A proof shows that this answer is not its model's").about(&id),
            false => unproved.error.about(&id),
        })?;
    }
    let after = self::dossier(&gateway, &caller, &id).await?;
    let state = state_of(&after.entry, &after.audits);
    let body = json!({ "request_id": after.entry.request_id, "state": state, "proof": after.entry.proof });
    Ok(axum::Json(body).into_response())
}

/// `POST /assay/audit/{request_id}`: has an answer replayed now.
pub(crate) async fn audit(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let before = dossier(&gateway, &caller, &id).await?;
    let subject = audit::subject_of(&gateway, &before)?;
    let found = audit::examine(&gateway, &subject).await?;
    match found {
        Found::Agreed(_) | Found::Caught | Found::Disputed => gateway.store.audit_done(subject.nonce).await?,
        Found::Accused => audit::later(&gateway, subject),
        Found::Nobody => {}
    }
    if matches!(found, Found::Nobody) {
        return Err(
            ApiError::unavailable("No worker of another operator could replay this answer").about(&id)
        );
    }
    let after = dossier(&gateway, &caller, &id).await?;
    Ok(axum::Json(json!({
        "request_id": after.entry.request_id,
        "state": match found {
            Found::Agreed(_) => "replayed",
            Found::Caught => "mismatch",
            Found::Accused | Found::Disputed | Found::Nobody => "disputed",
        },
        "audits": of_answer(&after.entry, &after.audits).map(|row| json!({
            "auditor": row.audit.statement.auditor,
            "operator": row.auditor_operator,
            "elapsed_ms": row.elapsed_ms,
            "audit": row.audit,
        })).collect::<Vec<_>>(),
    }))
    .into_response())
}

/// `GET /assay/incident/{request_id}`: everything signed about a request in one file.
pub(crate) async fn incident(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let dossier = dossier(&gateway, &caller, &id).await?;
    let signed = Arc::clone(&gateway.members_signed.borrow());
    let Dossier { entry, bundle, audits, evidence } = &dossier;
    let body = json!({
        "version": 1,
        "request_id": entry.request_id,
        "summary": summary(&gateway, &dossier),
        "state": state_of(entry, audits),
        "domain": gateway.config.domain,
        "request": entry,
        "bundle": bundle,
        "audits": audits,
        "evidence": evidence,
        "members": &*signed,
        "members_signer": gateway.config.members_signer,
    });
    Ok(axum::Json(body).into_response())
}

/// What happened, in plain sentences in the order it happened.
fn summary(gateway: &Gateway, dossier: &Dossier) -> Vec<String> {
    let Dossier { entry, bundle, audits, evidence } = dossier;
    let who = |worker: &assay_receipt::Address| match gateway.operator_of(worker) {
        Some(operator) => format!("worker {worker} of {operator}"),
        None => format!("worker {worker}"),
    };
    let mut events: Vec<(u64, String)> = Vec::new();
    events.push((entry.created_at_ms, format!("The request for {} arrived.", entry.model_name)));
    for attempt in &entry.attempts {
        let resumed = match attempt.resumed_tokens {
            0 => String::new(),
            tokens => format!(", to go on after {tokens} tokens"),
        };
        let hedge = if attempt.hedge { " as well, because the first was slow" } else { "" };
        events
            .push((attempt.sent_at_ms, format!("It was sent to {}{hedge}{resumed}.", who(&attempt.worker))));
    }
    for item in evidence {
        events.push(match item {
            Evidence::Chunks { worker, at_ms, chunks } => (
                *at_ms,
                format!("{} chunks that {} signed were kept as evidence.", chunks.len(), who(worker)),
            ),
            Evidence::Failure { worker, at_ms, failure } => {
                let Some(what) = Some(&failure.statement) else { continue };
                (*at_ms, format!("The {} signed a failure, {:?}: {}", who(worker), what.code, what.message))
            }
            Evidence::Fault { worker, at_ms, fault, .. } => {
                (*at_ms, format!("The {} was at fault: {fault}.", who(worker)))
            }
            Evidence::Answer { worker, at_ms, why, .. } => {
                (*at_ms, format!("An answer of {} was not used: {why}.", who(worker)))
            }
        });
    }
    for row in audits {
        let audit = &row.audit.statement;
        let found = match audit.verdict {
            Verdict::Agrees => "it agrees to the last bit".to_owned(),
            Verdict::Differs => format!(
                "it differs in {} at position {}: {} where {} was claimed",
                audit.field, audit.position, audit.expected, audit.claimed
            ),
            Verdict::Unable => "it was not able to".to_owned(),
        };
        let by = format!("auditor {} of {}", audit.auditor, row.auditor_operator);
        events
            .push((row.at_ms, format!("The answer of {} was replayed by {by}: {found}.", who(&row.worker))));
    }
    if let (Some(bundle), Some(at)) = (bundle, entry.settled_at_ms) {
        let receipt = &bundle.receipt.statement;
        let price = receipt.price;
        events.push((
            at,
            format!(
                "The answer of {} was accepted: {} tokens for {price} (10^-18 OPG).",
                who(&receipt.worker),
                receipt.completion_tokens
            ),
        ));
    }
    if let (Some(error), Some(at)) = (&entry.error, entry.settled_at_ms) {
        events.push((at, format!("There was no answer: {error}.")));
    }
    for worker in [entry.worker].into_iter().flatten() {
        if let Some(suspension) = gateway.records.standing(&worker).record.suspended
            && suspension.request_id == entry.request_id
        {
            let withheld = bundle.as_ref().map_or(0, |bundle| bundle.receipt.statement.price);
            events.push((
                suspension.at_ms,
                format!("The {} was suspended and {withheld} (10^-18 OPG) are withheld.", who(&worker)),
            ));
        }
    }
    events.sort_by_key(|(at, _)| *at);
    events.into_iter().map(|(at, text)| format!("{at}: {text}")).collect()
}

/// `GET /assay/workers`
pub(crate) async fn workers(State(gateway): State<Arc<Gateway>>) -> Result<Response, ApiError> {
    let members = Arc::clone(&gateway.members.borrow());
    let rows: Vec<Value> = members
        .members
        .iter()
        .map(|member| {
            let mut row = json!({
                "operator": member.operator, "worker": member.worker, "key_epoch": member.key_epoch,
                "url": member.url, "models": member.models,
            });
            let standing = json!(gateway.records.standing(&member.worker));
            if let (Some(row), Value::Object(standing)) = (row.as_object_mut(), standing) {
                row.extend(standing);
            }
            row
        })
        .collect();
    Ok(axum::Json(json!({"workers": rows})).into_response())
}

/// `POST /assay/workers/{address}/reinstate`: lifts a suspension.
pub(crate) async fn reinstate(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(worker): Path<String>,
) -> Result<Response, ApiError> {
    if !caller.admin {
        return Err(ApiError::forbidden("Only a key with `admin = true` may lift a suspension"));
    }
    let worker: Address = worker.parse().map_err(|_| {
        ApiError::invalid("address", "A worker's address is 0x and 40 hex digits; see /assay/workers")
    })?;
    if !gateway.records.reinstate(worker) {
        return Err(ApiError::not_found(format!("No worker {worker} is suspended here")));
    }
    gateway.store.flush().await?;
    Ok(axum::Json(json!({"worker": worker, "standing": gateway.records.standing(&worker)})).into_response())
}

/// `GET /assay/members`
pub(crate) async fn members(State(gateway): State<Arc<Gateway>>) -> Response {
    let signed = Arc::clone(&gateway.members_signed.borrow());
    axum::Json(json!({
        "domain": gateway.config.domain, "signer": gateway.config.members_signer, "members": &*signed,
    }))
    .into_response()
}

/// `GET /assay/models`
pub(crate) async fn models(State(gateway): State<Arc<Gateway>>) -> Result<Response, ApiError> {
    let members = gateway.members()?;
    let mut graphs: Vec<&Offer> = members.members.iter().flat_map(|member| &member.models).collect();
    graphs.retain(|offer| offer.arithmetic == GRAPH_ARITHMETIC);
    graphs.sort_unstable_by_key(|offer| &offer.name);
    graphs.dedup_by_key(|offer| &offer.name);
    let graphs = graphs
        .into_iter()
        .filter_map(|offer| Some((offer.name.clone(), gateway.proved_model(&members, &offer.name)?)));
    let rows: Vec<Value> = model_names(&gateway, &members)
        .into_iter()
        .chain(graphs)
        .map(|(name, model)| {
            let offers: Vec<_> = members
                .members
                .iter()
                .filter_map(|member| Some((member, member.offer(&model)?)))
                .map(|(member, offer)| {
                    json!({
                        "operator": member.operator, "worker": member.worker,
                        "prompt_price": offer.prompt_price.to_string(),
                        "completion_price": offer.completion_price.to_string(),
                        "arithmetic": offer.arithmetic, "context": offer.context,
                    })
                })
                .collect();
            let replayable = offers.iter().any(|offer| offer["arithmetic"] != json!(0));
            let proved = offers.iter().any(|offer| offer["arithmetic"] == json!(GRAPH_ARITHMETIC));
            let key = gateway.proofs.key(&model).map(|key| key.id());
            let provers: Vec<_> = key
                .iter()
                .flat_map(|key| proofs::provers(&members, *key))
                .map(|(member, offer)| {
                    json!({
                        "operator": member.operator, "worker": member.worker,
                        "position_price": offer.prompt_price.to_string(), "context": offer.context,
                    })
                })
                .collect();
            json!({
                "name": name, "model": model, "replayable": replayable, "proved": proved, "workers": offers,
                "proof_key": key, "provers": provers,
            })
        })
        .collect();
    Ok(axum::Json(json!({"models": rows})).into_response())
}

/// `GET /assay/usage`
pub(crate) async fn usage(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let mut rows = gateway.store.usage().await?;
    rows.retain(|row| caller.sees().is_none_or(|key| key == row.key));
    Ok(axum::Json(json!({"usage": rows})).into_response())
}

/// `GET /health`
pub(crate) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let members = Arc::clone(&gateway.members.borrow());
    let usable = members.members.iter().filter(|member| {
        let standing = gateway.records.standing(&member.worker);
        !standing.record.is_barred() && !standing.resting
    });
    let expired = gateway.members().is_err();
    axum::Json(json!({
        "status": if expired { "members_expired" } else { "ok" },
        "workers": members.members.len(), "workers_usable": usable.count(),
    }))
    .into_response()
}

/// `GET /metrics`
pub(crate) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], gateway.metrics.text()).into_response()
}
