//! The worker's HTTP interface.

use std::sync::Arc;
use std::time::Duration;

use assay_engine::request::Prepared;
use assay_receipt::{
    Address, AnyStatement, Bundle, Bytes32, Chain, Failure, FailureCode, GRAPH_ARITHMETIC, GenerateCall,
    Receipt, TRACE_PROOF_ARITHMETIC, prompt_commitment,
};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::Error;
use crate::answer::{About, Answer, Trouble, chunks_again};
use crate::local::ModelFile;
use crate::log::Draft;
use crate::memory::Lease;
use crate::metrics::code_name;
use crate::server::{Backend, Held, Host, NoPlace, Phase, Shared, now_ms};

/// Longest wait of a refusal for the disk.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/generate", post(generate))
        .route("/v1/audit", post(crate::audit::audit))
        .route("/v1/trace", post(crate::light::trace))
        .route("/v1/proof", post(crate::light::proof))
        .route("/v1/proofs/{nonce}", get(crate::proofs::file).post(crate::proofs::accept))
        .route("/v1/receipts/{nonce}", get(receipt))
        .route("/v1/lines/{root}", get(line))
        .route("/v1/models/{model}/manifest", get(manifest))
        .route("/v1/models/{model}/tokenizer", get(tokenizer))
        .route("/v1/worker", get(describe))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "not_found", "There is no such path.") })
        .with_state(shared)
}

/// A fault that is not signed, since it says nothing about an identified request.
pub(crate) fn plain(status: StatusCode, code: &str, message: &str) -> Response {
    (status, axum::Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        tracing::error!(error = %self, "request failed");
        let status = StatusCode::from_u16(self.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let response = plain(status, "internal", "The worker failed: ask another worker.");
        retry_after(response, 5_000)
    }
}

pub(crate) fn retry_after(mut response: Response, milliseconds: u64) -> Response {
    if milliseconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1_000)));
    }
    response
}

/// The HTTP status of a refusal.
fn status(code: FailureCode) -> StatusCode {
    match code {
        FailureCode::Busy => StatusCode::TOO_MANY_REQUESTS,
        FailureCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
        FailureCode::UnknownModel => StatusCode::NOT_FOUND,
        FailureCode::BadRequest | FailureCode::ContextExceeded => StatusCode::BAD_REQUEST,
        FailureCode::CapExceeded => StatusCode::PAYMENT_REQUIRED,
        FailureCode::Cancelled => StatusCode::REQUEST_TIMEOUT,
        FailureCode::Upstream => StatusCode::BAD_GATEWAY,
        FailureCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        FailureCode::DuplicateNonce | FailureCode::ResumeMismatch => StatusCode::CONFLICT,
    }
}

/// Memory for request bodies that have not been decoded yet, over all connections, in MiB.
pub(crate) const BODY_MEMORY_MIB: usize = 256;

/// A body, and its share of the memory for bodies, which is given back when all work on the whole body is done.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl Received {
    /// Decodes and hashes a body beside the async threads, as both may take long. The share is held meanwhile.
    pub(crate) async fn beside<T: Send + 'static>(
        self,
        work: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<T, Response> {
        tokio::task::spawn_blocking(move || work(&self.bytes)).await.map_err(|fault| {
            tracing::error!(%fault, "reading a body failed");
            let message = "The worker failed to read this body: report it.";
            plain(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
        })
    }
}

/// Reads a body of at most `limit` bytes within the configured time.
pub(crate) async fn read_body(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Received, Response> {
    let too_large = || {
        let message = format!("The body is over the limit of {limit} bytes: shorten the request.");
        plain(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &message)
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    // A caller that does not say how much it sends gets room for the most.
    let share = u32::try_from(announced.unwrap_or(limit) >> 20).unwrap_or(u32::MAX).saturating_add(1);
    let Ok(share) = shared.bodies.clone().try_acquire_many_owned(share) else {
        let message = "Too many requests arrive at once: try again in a second.";
        return Err(retry_after(plain(StatusCode::SERVICE_UNAVAILABLE, "busy", message), 1_000));
    };
    let patience = Duration::from_millis(shared.config.body_deadline_ms);
    match tokio::time::timeout(patience, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(Received { bytes, _share: share }),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(plain(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "The body took too long to arrive: send it faster.",
        )),
    }
}

/// Refuses to answer a call, signed.
async fn refuse(shared: &Shared, about: About, received_at_ms: u64, trouble: Trouble) -> Response {
    refuse_as(Draft::Failure, shared, about, received_at_ms, trouble).await
}

/// Refuses to audit an answer, signed.
pub(crate) async fn refuse_audit(
    shared: &Shared,
    receipt: &Receipt,
    received_at_ms: u64,
    trouble: Trouble,
) -> Response {
    let Receipt { model, request, nonce, payer, .. } = *receipt;
    let about = About { model, request, nonce, payer };
    refuse_as(Draft::NoAudit, shared, about, received_at_ms, trouble).await
}

async fn refuse_as(
    draft: fn(Box<Failure>) -> Draft,
    shared: &Shared,
    about: About,
    received_at_ms: u64,
    trouble: Trouble,
) -> Response {
    shared.metrics.failed(trouble.code);
    let (code, wait) = (trouble.code, trouble.retry_after_ms);
    let chain = Chain::start(&about.request, &about.nonce);
    let failure = trouble.failure(shared, about, &chain, received_at_ms);
    match shared.log.try_sign(draft(Box::new(failure)), REFUSAL_PATIENCE).await {
        Ok(entry) => match entry.statement {
            AnyStatement::Failure(failure) => {
                let body = axum::Json(json!({ "failure": failure }));
                retry_after((status(code), body).into_response(), wait)
            }
            _ => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The log mixed up two statements."),
        },
        Err(error) => {
            tracing::warn!(%error, code = code_name(code), "a refusal could not be signed");
            retry_after(
                plain(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many requests: try later."),
                5_000,
            )
        }
    }
}

/// The part of a call without which nothing can be signed about it.
#[derive(Deserialize)]
struct Nonced {
    nonce: Bytes32,
}

async fn generate(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response {
    let received_at_ms = now_ms();
    let body = match read_body(&shared, &headers, body, shared.config.body_limit).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let read = body.beside(|bytes| match serde_json::from_slice::<GenerateCall>(bytes) {
        Ok(call) => {
            let commitment = assay_receipt::request_commitment(&call.request, &call.salt);
            Ok((call, commitment))
        }
        Err(fault) => {
            let message = format!("The body is not a generate call: {fault}.");
            Err((message, serde_json::from_slice::<Nonced>(bytes).ok()))
        }
    });
    let (call, commitment) = match read.await {
        Ok(Ok(call)) => call,
        // Without a nonce there is nothing to sign a statement about.
        Ok(Err((message, None))) => return plain(StatusCode::BAD_REQUEST, "bad_request", &message),
        Ok(Err((message, Some(Nonced { nonce })))) => {
            let about = About { model: Bytes32::ZERO, request: Bytes32::ZERO, nonce, payer: Address::ZERO };
            let trouble = Trouble::new(FailureCode::BadRequest, message);
            return refuse(&shared, about, received_at_ms, trouble).await;
        }
        Err(response) => return response,
    };
    match admit(&shared, &call, commitment).await {
        Err(trouble) => refuse(&shared, About::call(&call, commitment), received_at_ms, trouble).await,
        Ok((host, held, prepared)) => {
            let (answer, lines) = Answer::new(
                shared.clone(),
                call,
                commitment,
                host.offer.clone(),
                host.metrics.clone(),
                received_at_ms,
                held,
            );
            // A task of its own: when the caller goes away, it signs that off.
            tokio::spawn(async move {
                match (&host.backend, prepared) {
                    (Backend::Local(local), Work::Generate(work)) => {
                        let (prepared, lease) = *work;
                        local.answer(answer, prepared, lease).await;
                    }
                    (Backend::Encoder(embedder), Work::Embed(tokens)) => {
                        embedder.answer(answer, tokens).await;
                    }
                    (Backend::Graph(prover), Work::Prove(inputs)) => prover.answer(answer, inputs).await,
                    (Backend::Proofs(proofs), Work::ProveText(subject)) => {
                        proofs.answer(answer, *subject).await;
                    }
                    (Backend::Upstream(upstream), _) => {
                        host.metrics.running.inc();
                        upstream.answer(answer).await;
                        host.metrics.running.dec();
                    }
                    (Backend::Local(_) | Backend::Encoder(_) | Backend::Graph(_) | Backend::Proofs(_), _) => {
                        answer
                            .fail(Trouble::new(FailureCode::Internal, "The request was not prepared."))
                            .await;
                    }
                }
            });
            let lines = stream::unfold(lines, |mut lines| async move {
                lines.recv().await.map(|line| (Ok::<_, std::convert::Infallible>(line), lines))
            });
            let kind = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
            (kind, Body::from_stream(lines)).into_response()
        }
    }
}

/// A request in the tokens of the model.
enum Work {
    Generate(Box<(Prepared, Lease)>),
    Embed(Vec<u32>),
    Prove(Vec<i32>),
    ProveText(Box<Bundle>),
    /// The model is not this worker's own.
    Forward,
}

/// The model, a place at it, and the request.
type Admitted = (Arc<Host>, Held, Work);

/// Decides whether a call is taken on.
async fn admit(shared: &Arc<Shared>, call: &GenerateCall, commitment: Bytes32) -> Result<Admitted, Trouble> {
    let bad = |message: String| Trouble::new(FailureCode::BadRequest, message);
    if call.domain != shared.config.domain {
        return Err(bad(format!(
            "This worker signs for chain {} and contract {} only: ask in that domain.",
            shared.config.domain.chain_id, shared.config.domain.contract
        )));
    }
    call.request.validate().map_err(|fault| bad(format!("The request cannot be served: {fault}.")))?;
    let draining = || {
        Trouble::new(FailureCode::Draining, "The worker is shutting down: ask another worker.")
            .retry_after(30_000)
    };
    if *shared.phase.borrow() != Phase::Serving {
        return Err(draining());
    }
    let host = shared.hosts.iter().find(|host| host.offer.model == call.request.model).ok_or_else(|| {
        Trouble::new(
            FailureCode::UnknownModel,
            format!("This worker does not serve the model {}: see /v1/worker.", call.request.model),
        )
    })?;
    let duplicate = || {
        Trouble::new(
            FailureCode::DuplicateNonce,
            "This nonce was used before: fetch its statement from /v1/receipts, or draw a fresh one.",
        )
    };
    let held = shared.hold(host, call.nonce, commitment).map_err(|no| match no {
        NoPlace::Draining => draining(),
        NoPlace::DuplicateNonce => duplicate(),
        NoPlace::Full => {
            Trouble::new(FailureCode::Busy, "The queue is full: try again later, or another worker.")
                .retry_after(host.retry_after_ms())
        }
    })?;
    // Looked up while the nonce is held, so no other request can spend it in between.
    if shared.log.is_spent(&call.nonce, &commitment)? {
        return Err(duplicate());
    }
    // A proof is paid when it was found to hold.
    if let Some(settlement) = &shared.settlement
        && !matches!(host.backend, Backend::Proofs(_))
    {
        settlement.check(shared, call, commitment, &host.offer).await?;
    }
    let prepared = match &host.backend {
        Backend::Local(local) => {
            let prepared = local.prepare(call, &host.offer).await?;
            Work::Generate(Box::new((prepared, local.lease().await?)))
        }
        Backend::Encoder(embedder) => Work::Embed(embedder.prepare(call, &host.offer).await?),
        Backend::Graph(prover) => Work::Prove(prover.prepare(call, &host.offer)?),
        Backend::Proofs(proofs) => {
            Work::ProveText(Box::new(proofs.prepare(shared, call, &host.offer).await?))
        }
        Backend::Upstream(_) if call.resume.is_empty() => Work::Forward,
        Backend::Upstream(_) => {
            return Err(bad("A forwarded model cannot continue another worker's answer.".to_owned()));
        }
    };
    if let Some(voucher) = call.voucher.as_ref().filter(|_| shared.settlement.is_some()) {
        let tokens = match &prepared {
            Work::Generate(work) => work.0.generation.prompt.as_slice(),
            Work::Embed(tokens) => tokens,
            Work::Prove(_) | Work::ProveText(_) | Work::Forward => &[],
        };
        let fixed = voucher.statement.prompt;
        // A dispute would go by the voucher's tokens.
        if fixed != Bytes32::ZERO && fixed != prompt_commitment(tokens, &call.salt) {
            return Err(bad(
                "The voucher's prompt is not the commitment to the tokens that the model has for this request: leave it zero, or tokenise as docs/request.md says.".to_owned(),
            ));
        }
    }
    Ok((host.clone(), held, prepared))
}

/// Which of the requests under one nonce is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Commitment to the request.
    request: Option<Bytes32>,
}

/// The statement that answered a request under a nonce (`?request=` and the commitment to it), or the newest one under
/// that nonce. The nonce is random and secret to its caller, so it also is the right to read.
async fn receipt(
    State(shared): State<Arc<Shared>>,
    Path(nonce): Path<String>,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let (Ok(nonce), Ok(Query(Which { request }))) = (nonce.parse::<Bytes32>(), which) else {
        let message = "A nonce is 0x and 64 hex digits, and so is the commitment to a request in ?request=.";
        return plain(StatusCode::BAD_REQUEST, "bad_request", message);
    };
    // Before the log, since an answer is in the log before it gives its nonce back.
    if shared.is_running(&nonce, request.as_ref()) {
        let body = axum::Json(json!({ "running": true }));
        return retry_after((StatusCode::ACCEPTED, body).into_response(), 1_000);
    }
    match shared.log.answer_to(&nonce, request.as_ref()) {
        Err(error) => error.into_response(),
        Ok(None) => plain(StatusCode::NOT_FOUND, "not_found", "No statement was signed for this nonce."),
        Ok(Some(entry)) => match entry.statement {
            AnyStatement::Receipt(receipt) => {
                let chunks = entry.output.as_ref().and_then(|output| {
                    chunks_again(&shared.key, &entry.domain, &receipt.statement, output, &entry.split)
                });
                let chunks = chunks.unwrap_or_default();
                axum::Json(json!({ "receipt": receipt, "output": entry.output, "chunks": chunks }))
                    .into_response()
            }
            AnyStatement::Failure(failure) => axum::Json(json!({ "failure": failure })).into_response(),
            AnyStatement::Audit(_) => {
                plain(StatusCode::NOT_FOUND, "not_found", "No statement was signed for this nonce.")
            }
        },
    }
}

/// What a line commits to that this worker brought to the chain, by the root of its sum tree.
async fn line(State(shared): State<Arc<Shared>>, Path(root): Path<String>) -> Response {
    let Ok(root) = root.parse::<Bytes32>() else {
        return plain(StatusCode::BAD_REQUEST, "bad_request", "A root is 0x and 64 hex digits.");
    };
    match shared.log.line(root).await {
        Err(error) => error.into_response(),
        Ok(receipts) if receipts.is_empty() => {
            plain(StatusCode::NOT_FOUND, "not_found", "This worker has settled no line with that root.")
        }
        Ok(receipts) => axum::Json(crate::settle::leaves(&receipts)).into_response(),
    }
}

/// The manifest of a model, byte for byte: its keccak256 is the model id. Of an integer graph, its file or that of its key.
async fn manifest(State(shared): State<Arc<Shared>>, Path(model): Path<String>) -> Response {
    match opened(&shared, &model) {
        Some(opened) => {
            let kind = match opened.arithmetic {
                GRAPH_ARITHMETIC | TRACE_PROOF_ARITHMETIC => "application/octet-stream",
                _ => "application/json",
            };
            ([(header::CONTENT_TYPE, kind)], opened.manifest.clone()).into_response()
        }
        None => plain(StatusCode::NOT_FOUND, "not_found", "This worker does not run that model itself."),
    }
}

/// The tokenizer of a model, byte for byte: its keccak256 is in the manifest.
async fn tokenizer(State(shared): State<Arc<Shared>>, Path(model): Path<String>) -> Response {
    match opened(&shared, &model).map(|opened| opened.tokenizer.clone()) {
        Some(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        None => plain(StatusCode::NOT_FOUND, "not_found", "This worker does not run that model itself."),
    }
}

fn opened<'a>(shared: &'a Shared, model: &str) -> Option<&'a ModelFile> {
    let model: Bytes32 = model.parse().ok()?;
    shared.hosts.iter().find(|host| host.offer.model == model)?.opened.as_ref()
}

async fn describe(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(&shared.member).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let (status, word) = match *shared.phase.borrow() {
        Phase::Serving if shared.hosts.iter().all(|host| host.is_alive()) => (StatusCode::OK, "serving"),
        Phase::Serving => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        Phase::Draining | Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, axum::Json(json!({ "status": word }))).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.encode()).into_response()
}
