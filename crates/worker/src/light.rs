//! Traces for light checks, and proofs: whoever holds the bundle of an answer of this worker's gets the trace (docs/light.md) or the proof of it
//! (docs/trace-proof.md).

use std::io::{BufWriter, Error, ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use assay_engine::Config;
use assay_engine::light::{prove, record};
use assay_receipt::{Bytes32, FailureCode};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::audit;
use crate::http::{plain, retry_after};
use crate::local::Recording;
use crate::server::{Backend, Host, Phase, Shared};

/// Bytes that are sent at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait for a slow reader.
const UNREAD: usize = 4;

/// `POST /v1/trace`: a bundle in, its trace out. One at a time for each model, by one thread.
pub(crate) async fn trace(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response {
    show(&shared, &headers, body, None).await
}

/// What a proof opens.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    /// Id of the commitment to the model that the proof will be checked with.
    key: Bytes32,
}

/// `POST /v1/proof?key=0x…`: a bundle in, its proof out, beside traces, one at a time for each model, by one thread.
pub(crate) async fn proof(
    State(shared): State<Arc<Shared>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Ok(Query(Wanted { key })) = wanted else {
        let message = "Name the commitment that the proof is to open: ?key=0x and 64 digits, the id of the model's key.";
        return plain(StatusCode::BAD_REQUEST, "bad_request", message);
    };
    show(&shared, &headers, body, Some(key)).await
}

async fn show(shared: &Arc<Shared>, headers: &HeaderMap, body: Body, key: Option<Bytes32>) -> Response {
    let bundle = match audit::read(shared, headers, body).await {
        Ok(bundle) => bundle,
        Err(response) => return response,
    };
    // The work is the price of its own answers, for those who have them.
    if bundle.receipt.statement.worker != shared.address {
        let message = "The receipt is another worker's: ask that one for its trace.";
        return plain(StatusCode::FORBIDDEN, "not_mine", message);
    }
    if *shared.phase.borrow() != Phase::Serving {
        let message = "The worker is shutting down: ask again later.";
        return retry_after(plain(StatusCode::SERVICE_UNAVAILABLE, "draining", message), 30_000);
    }
    let priced = |host: &&Arc<Host>| Some(host.offer.model) == key && host.offer.prompt_price > 0;
    if shared.hosts.iter().any(|host| priced(&host)) {
        let message = "Proofs with this key have a price here: ask through a gateway.";
        return plain(StatusCode::PAYMENT_REQUIRED, "price", message);
    }
    let host = shared.hosts.iter().find(|host| host.offer.model == bundle.receipt.statement.model);
    let Some(Backend::Local(local)) = host.map(|host| &host.backend) else {
        let message = "No traces are made of this model's answers: have them replayed.";
        return plain(StatusCode::NOT_FOUND, "no_traces", message);
    };
    let Ok(turn) = local.traces.clone().try_acquire_owned() else {
        let message = "Another trace is being recorded: ask again later.";
        return retry_after(plain(StatusCode::TOO_MANY_REQUESTS, "busy", message), 5_000);
    };
    match local.recording(bundle.request, bundle.output, turn).await {
        Ok(recording) => stream_of(recording, key, shared.config.request_deadline_ms),
        Err(trouble) => {
            let (status, code, wait) = match trouble.code {
                FailureCode::BadRequest => (StatusCode::CONFLICT, "differs", 0),
                FailureCode::ContextExceeded => (StatusCode::UNPROCESSABLE_ENTITY, "length", 0),
                _ => (StatusCode::SERVICE_UNAVAILABLE, "busy", 5_000),
            };
            retry_after(plain(status, code, &trouble.message), wait)
        }
    }
}

fn stream_of(recording: Recording, key: Option<Bytes32>, limit_ms: u64) -> Response {
    let (pieces, received) = mpsc::channel(UNREAD);
    let deadline = Instant::now() + Duration::from_millis(limit_ms);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let Recording { artifact, generation, tokens, .. } = &recording;
        let mut out = BufWriter::with_capacity(PIECE, Pieces { pieces, deadline, runtime });
        let config = Config { threads: 1, ..Config::default() };
        let recorded = match key {
            None => record(artifact, config, generation, tokens, &mut out, &mut |_, _| {}),
            Some(key) => prove(artifact, config, key, generation, tokens, &mut out, &mut |_, _| {}),
        };
        let end = recorded.map_err(|error| error.to_string());
        let end = end.and_then(|_| out.flush().map_err(|error| error.to_string()));
        if let Err(fault) = end {
            tracing::warn!(fault, "a trace or proof broke off");
            // What was sent does not pass for a trace.
            let _ = out.get_mut().send(Err(Error::other(fault)));
        }
    });
    let body = stream::unfold(received, |mut received| async move {
        received.recv().await.map(|piece| (piece, received))
    });
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(body)).into_response()
}

/// The way from the recording thread to the connection.
struct Pieces {
    pieces: mpsc::Sender<std::io::Result<Bytes>>,
    deadline: Instant,
    runtime: Handle,
}

impl Pieces {
    fn send(&self, piece: std::io::Result<Bytes>) -> std::io::Result<()> {
        match self.runtime.block_on(timeout_at(self.deadline, self.pieces.send(piece))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ErrorKind::BrokenPipe.into()),
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.send(Ok(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    /// Whether anybody still waits, and there is time.
    fn flush(&mut self) -> std::io::Result<()> {
        if self.pieces.is_closed() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if Instant::now() >= self.deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}
