//! Talking to workers: one HTTP client for each member, which accepts exactly the certificate that the list of members
//! names.

use crate::error::Error;
use assay_receipt::{
    Address, Audit, Bundle, Bytes32, Failure, Frame, GenerateCall, Member, Output, Receipt, Signed, Voucher,
    limits,
};
use reqwest::StatusCode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq as _;

/// Largest answer of a worker that is not a stream of frames, in bytes.
const REPLY_BYTES: usize = limits::BUNDLE_BYTES;

/// Largest tokenizer, in bytes; those of 256,000 tokens take 35 MB.
const TOKENIZER_BYTES: usize = 64 << 20;

/// Why a worker gave no usable answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// It refused, signed.
    Refused(Box<Signed<Failure>>),
    /// It has no room and did not sign that.
    Busy(Duration),
    /// It could not be reached, or the connection broke.
    Transport(String),
    /// It answered something that the protocol does not allow.
    Protocol { fault: String, sent: Option<String> },
}

/// Shortest and longest pause before a worker is asked again that said without a signature that it is busy.
const BUSY_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

impl CallError {
    /// What a refusal means: signed, for lack of room, or against the protocol.
    async fn refusal(response: reqwest::Response, asked: &str) -> CallError {
        let status = response.status();
        let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let wait = wait.map_or(BUSY_PAUSES.0, Duration::from_secs).clamp(BUSY_PAUSES.0, BUSY_PAUSES.1);
        let body = match body_of(response, 64 << 10).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match (serde_json::from_slice::<Refusal>(&body), status) {
            (Ok(refusal), _) => CallError::Refused(Box::new(refusal.failure)),
            (Err(_), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
                CallError::Busy(wait)
            }
            (Err(_), _) => CallError::Protocol {
                fault: format!("it answered HTTP {status} to {asked} without a signed failure"),
                sent: Some(excerpt(&body)),
            },
        }
    }

    pub(crate) fn protocol(fault: impl Into<String>) -> CallError {
        CallError::Protocol { fault: fault.into(), sent: None }
    }
}

/// What a worker says about a nonce that it answered before.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) struct Settled {
    #[serde(default)]
    pub(crate) receipt: Option<Signed<Receipt>>,
    #[serde(default)]
    pub(crate) failure: Option<Signed<Failure>>,
    #[serde(default)]
    pub(crate) output: Option<Output>,
    #[serde(default)]
    pub(crate) chunks: Vec<assay_receipt::SignedChunk>,
}

/// Whether a worker has ended a request.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// It has, and this is what it signed.
    Settled(Box<Settled>),
    /// It is at it.
    Running,
    /// It never saw the nonce.
    Unknown,
}

#[derive(Deserialize)]
struct Refusal {
    failure: Signed<Failure>,
}

#[derive(Deserialize)]
struct AuditReply {
    audit: Signed<Audit>,
}

/// Clients by worker. A member whose address or certificate changed gets a new one.
#[derive(Default)]
pub(crate) struct Clients {
    connect: Duration,
    by_worker: Mutex<HashMap<Address, (String, Bytes32, reqwest::Client)>>,
}

impl Clients {
    pub(crate) fn new(connect: Duration) -> Clients {
        Clients { connect, by_worker: Mutex::default() }
    }

    /// The client for a member.
    pub(crate) fn of(&self, member: &Member) -> Result<Client, Error> {
        let mut by_worker = self.by_worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((url, pin, http)) = by_worker.get(&member.worker)
            && *url == member.url
            && *pin == member.tls_sha256
        {
            return Ok(Client { http: http.clone(), base: base(url) });
        }
        let http = pinned(member.tls_sha256, self.connect)
            .map_err(|reason| Error::Client { worker: member.worker.to_string(), reason })?;
        by_worker.insert(member.worker, (member.url.clone(), member.tls_sha256, http.clone()));
        Ok(Client { http, base: base(&member.url) })
    }
}

fn base(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

/// An HTTPS client that talks to whoever has the certificate with this SHA-256, and to nobody else. `connect` is the longest wait for a
/// connection.
///
/// # Errors
/// What keeps the client from being made, in words.
pub fn pinned(pin: Bytes32, connect: Duration) -> Result<reqwest::Client, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { pin, provider: Arc::clone(&provider) };
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    reqwest::Client::builder()
        .use_preconfigured_tls(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect)
        .tcp_nodelay(true)
        // A worker that lost its network is noticed between two requests as well.
        .http2_keep_alive_interval(Duration::from_secs(15))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .user_agent(concat!("assay-gateway/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.to_string())
}

/// Accepts one certificate, whatever name it carries; the peer must prove that it holds its key.
#[derive(Debug)]
struct Pinned {
    pin: Bytes32,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found: [u8; 32] = Sha256::digest(end_entity.as_ref()).into();
        if bool::from(found.ct_eq(&self.pin.0)) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Client of one worker.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

/// The causes as well: `reqwest` hides them in its sources, and they are what an operator needs.
fn transport(error: reqwest::Error) -> CallError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    CallError::Transport(text)
}

impl Client {
    /// Sends a request; the answer is read frame by frame.
    pub(crate) async fn generate(&self, call: &GenerateCall) -> Result<Frames, CallError> {
        let response = self
            .http
            .post(format!("{}/v1/generate", self.base))
            .json(call)
            .send()
            .await
            .map_err(transport)?;
        if response.status().is_success() {
            return Ok(Frames { response, buffer: Vec::new(), scanned: 0, ended: false });
        }
        Err(CallError::refusal(response, "a request").await)
    }

    /// Has an answer replayed.
    pub(crate) async fn audit(&self, bundle: &Bundle) -> Result<Signed<Audit>, CallError> {
        let response =
            self.http.post(format!("{}/v1/audit", self.base)).json(bundle).send().await.map_err(transport)?;
        if !response.status().is_success() {
            return Err(CallError::refusal(response, "an audit").await);
        }
        let body = body_of(response, 64 << 10).await?;
        let reply: AuditReply = serde_json::from_slice(&body).map_err(|error| CallError::Protocol {
            fault: format!("its audit cannot be read: {error}"),
            sent: Some(excerpt(&body)),
        })?;
        reply.audit.statement.validate().map_err(|error| CallError::protocol(error.to_string()))?;
        Ok(reply.audit)
    }

    /// Manifest and tokenizer of a model, as the worker sends them.
    pub(crate) async fn tokenizer(&self, model: &Bytes32) -> Result<(Vec<u8>, Vec<u8>), CallError> {
        let get = async |what: &str| {
            let request = self.http.get(format!("{}/v1/models/{model}/{what}", self.base));
            let response = request.send().await.and_then(|it| it.error_for_status()).map_err(transport)?;
            body_of(response, TOKENIZER_BYTES).await
        };
        Ok((get("manifest").await?, get("tokenizer").await?))
    }

    /// The file of an integer graph, or of its key, as the worker sends it.
    pub(crate) async fn graph(&self, model: &Bytes32) -> Result<Vec<u8>, CallError> {
        let request = self.http.get(format!("{}/v1/models/{model}/manifest", self.base));
        let response = request.send().await.and_then(|it| it.error_for_status()).map_err(transport)?;
        body_of(response, TOKENIZER_BYTES).await
    }

    /// The proof that a worker has named under a nonce, piece by piece.
    pub(crate) async fn proof(&self, nonce: &Bytes32) -> Result<Pieces, CallError> {
        let request = self.http.get(format!("{}/v1/proofs/{nonce}", self.base));
        let response = request.send().await.map_err(transport)?;
        if !response.status().is_success() {
            return Err(CallError::refusal(response, "the proof that it named").await);
        }
        Ok(Pieces(response))
    }

    /// Accepts a proof, with the voucher that pays for it. `false`: the worker does not wait for that any more.
    pub(crate) async fn accept(
        &self,
        nonce: &Bytes32,
        voucher: Option<&Signed<Voucher>>,
    ) -> Result<bool, CallError> {
        let request = self.http.post(format!("{}/v1/proofs/{nonce}", self.base));
        let response = request.json(&json!({ "voucher": voucher })).send().await.map_err(transport)?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(false),
            _ => Err(CallError::refusal(response, "the acceptance of its proof").await),
        }
    }

    /// Asks what became of the request with this commitment under a nonce.
    pub(crate) async fn settled(&self, nonce: &Bytes32, request: &Bytes32) -> Result<Fetched, CallError> {
        let request = self.http.get(format!("{}/v1/receipts/{nonce}?request={request}", self.base));
        let response = request.send().await.map_err(transport)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::ACCEPTED => return Ok(Fetched::Running),
            StatusCode::NOT_FOUND => return Ok(Fetched::Unknown),
            status => return Err(CallError::protocol(format!("it answered HTTP {status}"))),
        }
        let body = body_of(response, REPLY_BYTES).await?;
        serde_json::from_slice(&body)
            .map(|settled| Fetched::Settled(Box::new(settled)))
            .map_err(|error| CallError::protocol(format!("its receipt cannot be read: {error}")))
    }
}

/// A file that a worker sends.
pub(crate) struct Pieces(reqwest::Response);

impl Pieces {
    /// The next piece; `None` at the end.
    pub(crate) async fn piece(&mut self) -> Result<Option<axum::body::Bytes>, CallError> {
        self.0.chunk().await.map_err(transport)
    }
}

/// The start of what a worker sent, for the incident record.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(4_096)]).into_owned()
}

async fn body_of(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(transport)? {
        if body.len() + piece.len() > limit {
            return Err(CallError::protocol(format!("its answer is larger than {limit} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The frames of an answer, line by line. It reads no further than it is asked to, so that a slow caller slows the
/// worker down.
pub(crate) struct Frames {
    response: reqwest::Response,
    buffer: Vec<u8>,
    scanned: usize,
    ended: bool,
}

impl Frames {
    /// The next frame; `None` when the worker ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, CallError> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.scanned + at).collect();
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return frame(&line).map(Some);
            }
            self.scanned = self.buffer.len();
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                self.scanned = 0;
                // A line that was cut off is a broken connection; a last line without its newline is not.
                return match rest.iter().all(u8::is_ascii_whitespace) {
                    true => Ok(None),
                    false => frame(&rest).map(Some),
                };
            }
            if self.buffer.len() > limits::FRAME_BYTES {
                return Err(CallError::protocol(format!(
                    "a frame is larger than {} bytes",
                    limits::FRAME_BYTES
                )));
            }
            match self.response.chunk().await.map_err(transport)? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => self.ended = true,
            }
        }
    }
}

fn frame(line: &[u8]) -> Result<Frame, CallError> {
    Frame::from_json(line).map_err(|error| CallError::Protocol {
        fault: format!("a frame cannot be read: {error}"),
        sent: Some(excerpt(line)),
    })
}
