//! A network for tests: workers that speak the real protocol over TLS, compute a toy model, and misbehave on demand; and a
//! gateway in front of them.

use assay_gateway::Config;
use assay_receipt::{
    Audit, Bundle, Bytes32, Chain, Chunk, Domain, Failure, FailureCode, FinishReason, Frame, GenerateCall,
    Key, Level, Member, Members, Offer, Output, Prompt, Receipt, Request, Signed, TokenLogprob, Verdict,
    keccak256, output_commitment, request_commitment,
};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

pub const MODEL: Bytes32 = Bytes32([9; 32]);
pub const NAME: &str = "toy";
/// The last token of a complete answer.
pub const END: u32 = 0;

/// What a worker does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// The connection breaks after so many chunks.
    Dies(u64),
    /// It sends nothing more after so many chunks and keeps the connection open.
    Silent(u64),
    /// The stream ends cleanly after so many chunks, without a receipt.
    NoReceipt(u64),
    /// This chunk is signed with another key.
    WrongSignature(u64),
    /// This chunk carries a wrong link.
    WrongLink(u64),
    /// This chunk is left out.
    DropsChunk(u64),
    /// Not a frame.
    Garbage(u64),
    /// A line without an end.
    EndlessLine(u64),
    /// Correctly signed chunks with more and more tokens.
    EndlessTokens(u64),
    /// A signed failure after so many chunks.
    Fails(u64),
    /// The receipt is signed with another key.
    WrongReceiptSignature,
    /// The receipt is for another nonce.
    OldReceipt,
    /// The receipt counts more sampled tokens than there are.
    InflatesCompletion,
    /// The receipt charges more than the price list says.
    Overcharges,
    /// Receipt and output count more prompt tokens than there are: only a replay finds it.
    InflatesPrompt,
    /// All tokens from this one on are others: only a replay finds it.
    Cheats(usize),
    /// The output differs from what was streamed.
    OtherOutput,
    /// It refuses, signed, for lack of room.
    Busy,
    /// It refuses, signed, as a bad request.
    CallsItBad,
    /// It refuses without a signature.
    UnsignedRefusal,
    /// It waits so many milliseconds before the first token.
    SlowStart(u64),
    /// It waits so many milliseconds before each token.
    Slow(u64),
    /// This chunk has more text than its tokens stand for, and the connection breaks after it.
    AddsText(u64),
    /// A log-probability of this chunk is another one, and the connection breaks after it.
    OtherLogprobs(u64),
    /// A signed failure of this kind after so many chunks.
    Breaks(u64, FailureCode),
    /// A signed refusal of this kind.
    Refuses(FailureCode),
    /// It says that it is busy without a signature, to requests and audits.
    UnsignedBusy,
    /// It sends empty chunks for ever.
    EmptyChunks,
    /// It waits so many milliseconds before the receipt.
    SlowEnd(u64),
    /// Its audits claim to be its first statement and to follow another one.
    AuditsOutOfSequence,
    /// Its text for the tokens that it resumes is another one.
    OtherTextOnResume,
    /// Its audits say the opposite of what it found.
    LiesInAudits,
    /// It never ends an audit.
    HangsInAudits,
    /// Its audits are signed with another key.
    ForgesAudits,
}

pub struct Worker {
    pub key: Key,
    pub member: Mutex<Member>,
    pub fault: Mutex<Fault>,
    sequence: Mutex<(u64, Bytes32)>,
    settled: Mutex<HashMap<Bytes32, Value>>,
    /// Every call that arrived.
    pub calls: Mutex<Vec<GenerateCall>>,
    /// The receipt of every answer that it was asked to replay.
    pub audits: Mutex<Vec<Bytes32>>,
    /// Its earlier audits, which it gives again.
    audited: Mutex<HashMap<Bytes32, Value>>,
}

pub fn domain() -> Domain {
    Domain::default()
}

fn word(token: u32) -> String {
    if token == END { String::new() } else { format!("w{token} ") }
}

fn text_of(tokens: &[u32]) -> String {
    tokens.iter().map(|token| word(*token)).collect()
}

fn prompt_tokens(request: &Request) -> u32 {
    match &request.prompt {
        Prompt::Chat { messages, .. } => {
            messages.iter().map(|message| message.content.len() as u32 + 2).sum()
        }
        Prompt::Text(text) => text.len() as u32,
        Prompt::Tokens(tokens) => tokens.len() as u32,
    }
}

/// The answer of the toy model: tokens that depend on the whole request but its limit, at most 12 and then the end.
pub fn honest(request: &Request) -> Output {
    let unlimited = Request { max_tokens: 1, ..request.clone() };
    let seed = request_commitment(&unlimited, &Bytes32::ZERO);
    let token = |index: u32| {
        let hash = keccak256([&seed.0[..], &index.to_be_bytes()].concat());
        u32::from(hash.0[0]) + 1
    };
    let mut tokens: Vec<u32> = (0..12.min(request.max_tokens)).map(token).collect();
    let mut finish_reason = FinishReason::Length;
    if request.max_tokens > 12 {
        tokens.push(END);
        finish_reason = FinishReason::Stop;
    }
    let mut text = text_of(&tokens);
    let mut tool_calls = None;
    if let Prompt::Chat { tools: Some(tools), tool_choice, .. } = &request.prompt
        && tool_choice != "none"
    {
        let tools: Value = serde_json::from_str(tools).unwrap();
        let call = json!([{"id": "call_1", "type": "function",
            "function": {"name": tools[0]["function"]["name"], "arguments": "{\"a\":1}"}}]);
        tool_calls = Some(call.to_string());
        finish_reason = FinishReason::ToolCalls;
        text.clear();
    }
    let logprobs = match request.logprobs {
        Some(top) => tokens.iter().map(|token| logprob(*token, top)).collect(),
        None => Vec::new(),
    };
    Output {
        text,
        tool_calls,
        finish_reason,
        prompt_tokens: prompt_tokens(request),
        completion_tokens: tokens.len() as u32,
        tokens,
        logprobs,
    }
}

fn logprob(token: u32, top: u8) -> TokenLogprob {
    let top = (0..u32::from(top)).map(|rank| (token + rank, -65_536 * (rank as i32 + 1))).collect();
    TokenLogprob { token, logprob_q16: -65_536, top }
}

impl Worker {
    pub async fn start(secret: u8, operator: &str, price: u128, fault: Fault) -> Arc<Worker> {
        install_provider();
        let key = Key::from_bytes([secret; 32]).unwrap();
        let certificate = rcgen::generate_simple_self_signed(vec!["worker.test".into()]).unwrap();
        let der = certificate.cert.der().to_vec();
        let private =
            rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![der.clone().into()], private)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let member = Member {
            operator: operator.into(),
            worker: key.address(),
            key_epoch: 1,
            url: format!("https://{address}"),
            tls_sha256: Bytes32(Sha256::digest(&der).into()),
            models: vec![Offer {
                model: MODEL,
                name: NAME.into(),
                prompt_price: price,
                completion_price: price,
                arithmetic: 1,
                context: 4_096,
            }],
        };
        let worker = Arc::new(Worker {
            key,
            member: Mutex::new(member),
            fault: Mutex::new(fault),
            sequence: Mutex::default(),
            settled: Mutex::default(),
            calls: Mutex::default(),
            audits: Mutex::default(),
            audited: Mutex::default(),
        });
        let app = axum::Router::new()
            .route("/v1/generate", post(generate))
            .route("/v1/audit", post(audit))
            .route("/v1/receipts/{nonce}", get(receipt))
            .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&worker));
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(tls));
        let server = axum_server::from_tcp_rustls(listener, config).unwrap();
        tokio::spawn(server.serve(app.into_make_service()));
        worker
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub fn address(&self) -> String {
        self.key.address().to_string()
    }

    fn place(&self) -> (u64, Bytes32) {
        *self.sequence.lock().unwrap()
    }

    fn advance(&self, hash: Bytes32) {
        let mut place = self.sequence.lock().unwrap();
        *place = (place.0 + 1, hash);
    }

    fn failure(&self, call: &GenerateCall, chain: &Chain, code: FailureCode) -> Signed<Failure> {
        let (sequence, previous) = self.place();
        let failure = Failure {
            worker: self.key.address(),
            key_epoch: 1,
            model: call.request.model,
            request: request_commitment(&call.request, &call.salt),
            nonce: call.nonce,
            payer: call.payer,
            code,
            message: format!("{code:?} on purpose"),
            retry_after_ms: 1_500,
            chunks: chain.len(),
            chain: chain.link(),
            sequence,
            previous,
            received_at_ms: 1,
            finished_at_ms: 2,
        };
        let signed = Signed::sign(&self.key, &domain(), failure);
        self.advance(signed.hash(&domain()));
        self.settled.lock().unwrap().insert(call.nonce, json!({"failure": signed}));
        signed
    }
}

pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn generate(State(worker): State<Arc<Worker>>, body: Bytes) -> Response {
    let call = GenerateCall::from_json(&body).unwrap();
    worker.calls.lock().unwrap().push(call.clone());
    let fault = *worker.fault.lock().unwrap();
    let commitment = request_commitment(&call.request, &call.salt);
    let refusal = match fault {
        Fault::Busy => Some((StatusCode::TOO_MANY_REQUESTS, FailureCode::Busy)),
        Fault::Refuses(code) => Some((StatusCode::CONFLICT, code)),
        Fault::UnsignedBusy => return busy(),
        Fault::CallsItBad => Some((StatusCode::BAD_REQUEST, FailureCode::BadRequest)),
        Fault::UnsignedRefusal => return (StatusCode::INTERNAL_SERVER_ERROR, "oops").into_response(),
        _ => None,
    };
    if let Some((status, code)) = refusal {
        let failure = worker.failure(&call, &Chain::start(&commitment, &call.nonce), code);
        return (status, axum::Json(json!({"failure": failure}))).into_response();
    }
    let (lines, receiver) = mpsc::channel::<Result<String, std::io::Error>>(1);
    tokio::spawn(run(worker, call, fault, commitment, lines));
    let lines =
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    ([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")], "too many bodies").into_response()
}

async fn run(
    worker: Arc<Worker>,
    call: GenerateCall,
    fault: Fault,
    commitment: Bytes32,
    lines: mpsc::Sender<Result<String, std::io::Error>>,
) {
    let mut output = honest(&call.request);
    if let Fault::Cheats(from) = fault {
        for token in output.tokens.iter_mut().skip(from).filter(|token| **token != END) {
            *token += 1_000;
        }
        output.text = text_of(&output.tokens);
    }
    let mut chain = Chain::start(&commitment, &call.nonce);
    let stranger = Key::from_bytes([200; 32]).unwrap();
    let line = |frame: &Frame| Ok(format!("{}\n", serde_json::to_string(frame).unwrap()));
    if !output.tokens.starts_with(&call.resume) {
        let failure = worker.failure(&call, &chain, FailureCode::ResumeMismatch);
        let _ = lines.send(line(&Frame::Failure(failure))).await;
        return;
    }
    if let Fault::SlowStart(pause) = fault {
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    // The resumed tokens are one chunk, and then one for each token.
    let mut parts: Vec<&[u32]> = Vec::new();
    let (resumed, rest) = output.tokens.split_at(call.resume.len());
    parts.extend((!resumed.is_empty()).then_some(resumed));
    parts.extend(rest.chunks(1));
    let calls_tools = output.tool_calls.is_some();
    let mut chunks = Vec::new();
    let mut text = String::new();
    for (index, tokens) in parts.into_iter().enumerate() {
        let index = index as u64;
        if let Fault::Slow(pause) = fault {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        match fault {
            Fault::Dies(at) if at == index => {
                let _ = lines.send(Err(std::io::Error::other("died"))).await;
                return;
            }
            Fault::Silent(at) if at == index => {
                lines.closed().await;
                return;
            }
            Fault::NoReceipt(at) if at == index => return,
            Fault::Garbage(at) if at == index => {
                let _ = lines.send(Ok("{\"chunk\": 5}\n".into())).await;
                return;
            }
            Fault::Fails(at) if at == index => {
                let failure = worker.failure(&call, &chain, FailureCode::Internal);
                let _ = lines.send(line(&Frame::Failure(failure))).await;
                return;
            }
            Fault::Breaks(at, code) if at == index => {
                let failure = worker.failure(&call, &chain, code);
                let _ = lines.send(line(&Frame::Failure(failure))).await;
                return;
            }
            Fault::EndlessLine(at) if at == index => {
                while lines.send(Ok("x".repeat(1 << 20))).await.is_ok() {}
                return;
            }
            Fault::EndlessTokens(at) if at == index => loop {
                let chunk = Chunk { index: chain.len(), text: word(5), tokens: vec![5], logprobs: vec![] };
                let signed = chain.sign(&worker.key, &domain(), chunk).unwrap();
                if lines.send(line(&Frame::Chunk(signed))).await.is_err() {
                    return;
                }
            },
            Fault::EmptyChunks => loop {
                let empty =
                    Chunk { index: chain.len(), text: String::new(), tokens: vec![], logprobs: vec![] };
                let signed = chain.sign(&worker.key, &domain(), empty).unwrap();
                if lines.send(line(&Frame::Chunk(signed))).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            },
            _ => {}
        }
        let mut piece = if calls_tools { String::new() } else { text_of(tokens) };
        if fault == Fault::OtherTextOnResume && index == 0 && !call.resume.is_empty() {
            piece = format!("x{piece}");
        }
        if fault == Fault::AddsText(index) {
            piece.push_str("FALSE");
        }
        text.push_str(&piece);
        let mut logprobs = match call.request.logprobs {
            Some(top) => tokens.iter().map(|token| logprob(*token, top)).collect(),
            None => Vec::<TokenLogprob>::new(),
        };
        if fault == Fault::OtherLogprobs(index) {
            logprobs[0].logprob_q16 -= 1;
        }
        let chunk = Chunk { index, text: piece, tokens: tokens.to_vec(), logprobs };
        let key = if fault == Fault::WrongSignature(index) { &stranger } else { &worker.key };
        let mut signed = chain.sign(key, &domain(), chunk).unwrap();
        if fault == Fault::WrongLink(index) {
            signed.link.0[5] ^= 1;
        }
        chunks.push(signed.clone());
        if fault == Fault::DropsChunk(index) {
            continue;
        }
        if lines.send(line(&Frame::Chunk(signed))).await.is_err() && fault == Fault::None {
            worker.failure(&call, &chain, FailureCode::Cancelled);
            return;
        }
        if matches!(fault, Fault::AddsText(at) | Fault::OtherLogprobs(at) if at == index) {
            // What was sent shall arrive.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = lines.send(Err(std::io::Error::other("died"))).await;
            return;
        }
    }
    output.text = text;
    if fault == Fault::OtherOutput {
        output.text.push('!');
    }
    if fault == Fault::InflatesPrompt {
        output.prompt_tokens += 100;
    }
    let mut completion_tokens = output.completion_tokens;
    if fault == Fault::InflatesCompletion {
        completion_tokens += 5;
    }
    if let Fault::SlowEnd(pause) = fault {
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    let offer = worker.member.lock().unwrap().models[0].clone();
    let mut price = offer.price(output.prompt_tokens, completion_tokens).unwrap();
    if fault == Fault::Overcharges {
        price += 1;
    }
    let (sequence, previous) = worker.place();
    let receipt = Receipt {
        worker: worker.key.address(),
        key_epoch: 1,
        model: call.request.model,
        arithmetic: 1,
        level: Level::Signed,
        request: commitment,
        output: output_commitment(&output, &call.salt),
        chunks: chain.len(),
        chain: chain.link(),
        trace: Bytes32::ZERO,
        prompt_tokens: output.prompt_tokens,
        completion_tokens,
        price,
        payer: call.payer,
        cap: call.cap,
        nonce: if fault == Fault::OldReceipt { Bytes32([1; 32]) } else { call.nonce },
        sequence,
        previous,
        received_at_ms: 1,
        first_token_at_ms: 2,
        finished_at_ms: 3,
    };
    let key = if fault == Fault::WrongReceiptSignature { &stranger } else { &worker.key };
    let receipt = Signed::sign(key, &domain(), receipt);
    worker.advance(receipt.hash(&domain()));
    let settled = json!({"receipt": receipt, "output": output, "chunks": chunks});
    worker.settled.lock().unwrap().insert(call.nonce, settled);
    let _ = lines.send(line(&Frame::Receipt { receipt, output })).await;
}

async fn audit(State(worker): State<Arc<Worker>>, body: Bytes) -> Response {
    let bundle = Bundle::from_json(&body).unwrap();
    let fault = *worker.fault.lock().unwrap();
    worker.audits.lock().unwrap().push(bundle.receipt.hash(&domain()));
    if fault == Fault::UnsignedBusy {
        return busy();
    }
    if fault == Fault::HangsInAudits {
        std::future::pending::<()>().await;
    }
    if let Some(earlier) = worker.audited.lock().unwrap().get(&bundle.receipt.hash(&domain())) {
        return axum::Json(earlier.clone()).into_response();
    }
    let expected = honest(&bundle.request);
    let (wanted, claimed) = (&expected.tokens, &bundle.output.tokens);
    let differs = wanted.iter().zip(claimed).position(|(wanted, claimed)| wanted != claimed);
    let mut found = match differs {
        Some(at) => (Verdict::Differs, "tokens", at as u64, u64::from(wanted[at]), u64::from(claimed[at])),
        None if expected.prompt_tokens != bundle.output.prompt_tokens => {
            let claimed = bundle.output.prompt_tokens.into();
            (Verdict::Differs, "usage", 0, expected.prompt_tokens.into(), claimed)
        }
        None => (Verdict::Agrees, "", 0, 0, 0),
    };
    if fault == Fault::LiesInAudits {
        found = match found.0 {
            Verdict::Agrees => (Verdict::Differs, "tokens", 0, 1, 2),
            _ => (Verdict::Agrees, "", 0, 0, 0),
        };
    }
    let (mut sequence, mut previous) = worker.place();
    if fault == Fault::AuditsOutOfSequence {
        (sequence, previous) = (0, Bytes32([1; 32]));
    }
    let statement = Audit {
        auditor: worker.key.address(),
        key_epoch: 1,
        receipt: bundle.receipt.hash(&domain()),
        model: bundle.request.model,
        arithmetic: 1,
        verdict: found.0,
        field: found.1.into(),
        position: found.2,
        expected: found.3,
        claimed: found.4,
        sequence,
        previous,
        audited_at_ms: 4,
        compute_ms: 1,
    };
    let stranger = Key::from_bytes([200; 32]).unwrap();
    let key = if fault == Fault::ForgesAudits { &stranger } else { &worker.key };
    let signed = Signed::sign(key, &domain(), statement);
    worker.advance(signed.hash(&domain()));
    let reply = json!({"audit": signed});
    worker.audited.lock().unwrap().insert(signed.statement.receipt, reply.clone());
    axum::Json(reply).into_response()
}

async fn receipt(State(worker): State<Arc<Worker>>, Path(nonce): Path<String>) -> Response {
    let nonce: Bytes32 = nonce.parse().unwrap();
    match worker.settled.lock().unwrap().get(&nonce) {
        Some(settled) => axum::Json(settled.clone()).into_response(),
        None if matches!(*worker.fault.lock().unwrap(), Fault::SlowEnd(_)) => {
            StatusCode::ACCEPTED.into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The key that signs the lists of members.
pub fn authority() -> Key {
    Key::from_bytes([99; 32]).unwrap()
}

pub fn write_members(path: &FilePath, serial: u64, workers: &[Arc<Worker>]) {
    let members = Members {
        serial,
        issued_at_s: 1,
        expires_at_s: 32_503_680_000,
        members: workers.iter().map(|worker| worker.member.lock().unwrap().clone()).collect(),
    };
    let signed = Signed::sign(&authority(), &domain(), members);
    let part = path.with_extension("part");
    std::fs::write(&part, serde_json::to_vec(&signed).unwrap()).unwrap();
    std::fs::rename(part, path).unwrap();
}

/// A gateway with its workers. The first worker is the cheapest, so it is asked first.
pub struct Net {
    pub workers: Vec<Arc<Worker>>,
    pub url: String,
    pub http: reqwest::Client,
    pub folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    running: Option<tokio::task::JoinHandle<()>>,
}

pub fn config_in(folder: &FilePath) -> Config {
    let mut config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        members_file: folder.join("members.json"),
        members_signer: authority().address(),
        members_poll_ms: 50,
        state_dir: folder.join("state"),
        payer: assay_receipt::Address([5; 20]),
        ..Config::default()
    };
    // Longer than the busiest machine takes.
    config.workers.between_tokens_ms = 60_000;
    config.sampling.share_ppm = 0;
    config.sampling.share_new_ppm = 0;
    config.sampling.share_caught_ppm = 0;
    config
}

impl Net {
    /// Workers of different operators with these faults, and a gateway.
    pub async fn start(faults: &[Fault], adapt: impl FnOnce(&mut Config)) -> Net {
        let mut workers = Vec::new();
        for (index, fault) in faults.iter().enumerate() {
            let price = if index == 0 { 1 } else { 1_000 };
            workers.push(Worker::start(index as u8 + 1, &format!("operator {index}"), price, *fault).await);
        }
        let folder = tempfile::tempdir().unwrap();
        write_members(&folder.path().join("members.json"), 1, &workers);
        let mut config = config_in(folder.path());
        adapt(&mut config);
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, address) = oneshot::channel::<SocketAddr>();
        let running = tokio::spawn(async move {
            let shutdown = async { drop(stopped.await) };
            let ready = |address| ready.send(address).unwrap();
            assay_gateway::run(config, shutdown, ready).await.unwrap();
        });
        let url = format!("http://{}", address.await.unwrap());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Net { workers, url, http, folder, stop: Some(stop), running: Some(running) }
    }

    /// Stops the gateway and waits until it has.
    pub async fn stop(&mut self) {
        self.http = reqwest::Client::builder().no_proxy().build().unwrap(); // closes the old connections
        drop(self.stop.take());
        if let Some(running) = self.running.take() {
            tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
        }
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.http.post(format!("{}{path}", self.url)).json(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// The `data` of every event of a stream.
    pub async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.http.post(format!("{}{path}", self.url)).json(body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{}", response.text().await.unwrap());
        events(&response.text().await.unwrap())
    }

    /// Makes this the list of members and waits until the gateway has read it.
    pub async fn set_members(&self, serial: u64, workers: &[Arc<Worker>]) {
        write_members(&self.folder.path().join("members.json"), serial, workers);
        until("the list of members is read", async || {
            let (_, body) = self.get("/assay/members").await;
            body["members"]["statement"]["serial"] == serial
        })
        .await;
    }

    /// The record of a worker.
    pub async fn record(&self, index: usize) -> Value {
        let (_, body) = self.get("/assay/workers").await;
        let address = self.workers[index].address();
        let rows = body["workers"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["worker"] == json!(address)).unwrap()
    }
}

/// Waits until something has happened, for a time that no machine is too busy for.
pub async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    for _ in 0..1_200 {
        if happened().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it never happened that {what}");
}

/// The `data` of every event but the final `[DONE]`, which must be there unless an error or a named event ends it.
pub fn events(text: &str) -> Vec<Value> {
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    lines.iter().filter(|line| **line != "[DONE]").map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The text of the chunks of a chat stream.
pub fn joined(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

pub fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": NAME, "seed": 7, "messages": [{"role": "user", "content": "hello"}]});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Reads a stream until `enough` says so, and returns the text so far.
pub async fn read_until(response: reqwest::Response, enough: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        text.push_str(std::str::from_utf8(&piece).unwrap());
        if enough(&text) {
            break;
        }
    }
    text
}
