//! A worker in this process, and a small client for it.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use assay_model::{Architecture, Artifact, import_gguf, testing::tiny_gguf};
use assay_receipt::{
    Address, Bundle, Bytes32, Domain, Failure, Frame, GenerateCall, Key, Output, Receipt, Request, Signed,
    SignedChunk,
};
use assay_worker::{Config, Model, Ready, run};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const CAP: u128 = 1_000_000;

/// What keys and values of a token of the tiny model take.
pub const TOKEN_BYTES: usize = 320;

/// A worker that runs as long as this is held.
pub struct Worker {
    pub ready: Ready,
    pub folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), assay_worker::Error>>,
}

impl Worker {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Worker {
        Worker::start_in(tempfile::tempdir().unwrap(), change).await
    }

    /// A worker that goes on where another one in this folder ended.
    pub async fn start_in(folder: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Worker {
        let mut config = Config::new(folder.path());
        config.threads = 1;
        config.kv_bytes = 16_384 * TOKEN_BYTES;
        change(&mut config);
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(Box::pin(run(config, ready, async {
            let _ = stopped.await;
        })));
        match is_ready.await {
            Ok(ready) => Worker { ready, folder, stop: Some(stop), task },
            Err(_) => panic!("the worker did not start: {:?}", task.await),
        }
    }

    pub async fn tiny(change: impl FnOnce(&mut Config)) -> Worker {
        Worker::start(|config| {
            config.models.push(model(&artifact(config, 7), 2, 3));
            change(config);
        })
        .await
    }

    pub fn model(&self) -> Bytes32 {
        self.ready.member.models[0].model
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.ready.member.url)
    }

    /// Begins the shutdown and leaves it running.
    pub fn begin_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Waits until the worker has ended; returns its folder.
    pub async fn ended(self) -> tempfile::TempDir {
        tokio::time::timeout(Duration::from_secs(60), self.task).await.unwrap().unwrap().unwrap();
        self.folder
    }

    pub async fn stop(mut self) -> tempfile::TempDir {
        self.begin_stop();
        self.ended().await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = client().get(self.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn audit(&self, bundle: &Bundle) -> (u16, Value) {
        let response = client().post(self.url("/v1/audit")).json(bundle).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn generate(&self, call: &GenerateCall) -> Result<Answer, Refusal> {
        generate(&self.ready.member.url, call).await
    }

    pub async fn metric(&self, line: &str) -> Option<f64> {
        let text = client().get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let found = text.lines().find(|have| have.starts_with(line))?;
        found.rsplit(' ').next().unwrap().parse().ok()
    }
}

/// How a stream ended.
#[derive(Debug)]
pub enum End {
    Receipt(Box<Signed<Receipt>>, Box<Output>),
    Failure(Box<Signed<Failure>>),
    Broken,
}

#[derive(Debug)]
pub struct Answer {
    pub chunks: Vec<SignedChunk>,
    pub end: End,
}

impl Answer {
    pub fn bundle(self, call: &GenerateCall) -> Bundle {
        match self.end {
            End::Receipt(receipt, output) => Bundle {
                version: assay_receipt::BUNDLE_VERSION,
                domain: call.domain,
                salt: call.salt,
                request: call.request.clone(),
                output: *output,
                chunks: self.chunks,
                receipt: *receipt,
                audits: Vec::new(),
            },
            end => panic!("no receipt: {end:?}"),
        }
    }

    pub fn failure(self) -> Signed<Failure> {
        match self.end {
            End::Failure(failure) => *failure,
            end => panic!("no failure: {end:?}"),
        }
    }
}

#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub retry_after: Option<u64>,
    pub body: Value,
}

impl Refusal {
    /// The signed failure, checked to be its worker's.
    pub fn failure(&self) -> Signed<Failure> {
        let failure: Signed<Failure> = serde_json::from_value(self.body["failure"].clone()).unwrap();
        assert!(failure.is_by_author(&Domain::default()));
        failure
    }
}

/// Runs a worker that is expected not to start.
pub async fn refused(config: Config) -> assay_worker::Error {
    let (ready, _) = oneshot::channel();
    Box::pin(run(config, ready, std::future::ready(()))).await.unwrap_err()
}

/// Signs a bundle again with a key of its own, after a lie: the bundle of a worker that cheats.
pub fn forge(bundle: &Bundle, lie: impl FnOnce(&mut Bundle)) -> Bundle {
    let mut bundle = bundle.clone();
    lie(&mut bundle);
    let key = Key::from_bytes([9; 32]).unwrap();
    let mut receipt = bundle.receipt.statement.clone();
    receipt.worker = key.address();
    receipt.request = assay_receipt::request_commitment(&bundle.request, &bundle.salt);
    receipt.output = assay_receipt::output_commitment(&bundle.output, &bundle.salt);
    bundle.receipt = Signed::sign(&key, &bundle.domain, receipt);
    bundle
}

pub fn client() -> reqwest::Client {
    builder().build().unwrap()
}

pub fn builder() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().danger_accept_invalid_certs(true).no_proxy()
}

/// Reads frames to the end.
pub async fn generate(url: &str, call: &GenerateCall) -> Result<Answer, Refusal> {
    let response = client().post(format!("{url}/v1/generate")).json(call).send().await.unwrap();
    let status = response.status().as_u16();
    if status != 200 {
        let retry_after =
            response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
        return Err(Refusal { status, retry_after, body: response.json().await.unwrap() });
    }
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    let mut stream = response.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(Ok(piece)) = stream.next().await {
        bytes.extend_from_slice(&piece);
    }
    let mut answer = Answer { chunks: Vec::new(), end: End::Broken };
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match Frame::from_json(line) {
            Ok(Frame::Chunk(chunk)) => answer.chunks.push(chunk),
            Ok(Frame::Receipt { receipt, output }) => {
                answer.end = End::Receipt(Box::new(receipt), Box::new(output))
            }
            Ok(Frame::Failure(failure)) => answer.end = End::Failure(Box::new(failure)),
            Err(_) => break, // cut off in the middle of a line
        }
    }
    Ok(answer)
}

pub fn model(artifact: &Path, prompt_price: u128, completion_price: u128) -> Model {
    Model {
        name: "tiny".to_owned(),
        artifact: artifact.to_owned(),
        key: None,
        draft: None,
        prompt_price,
        completion_price,
        proof_key: None,
        proof_price: 0,
        impersonate: None,
    }
}

/// A random model whose text varies (that of the tied tiny one repeats itself), with a context of 4,096 tokens, so that
/// answers can be long.
pub fn tiny(seed: u64) -> Vec<u8> {
    let mut gguf = tiny_gguf(Architecture::Qwen3, seed);
    let key = b"qwen3.context_length";
    let at = gguf.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    gguf[at..at + 4].copy_from_slice(&4096_u32.to_le_bytes());
    import_gguf(&gguf, &mut |_, _| {}).unwrap()
}

pub fn artifact(config: &Config, seed: u64) -> PathBuf {
    let path = config.data_dir.join(format!("tiny-{seed}.assay"));
    std::fs::write(&path, tiny(seed)).unwrap();
    path
}

pub fn id(bytes: Vec<u8>) -> Bytes32 {
    Artifact::parse(std::sync::Arc::new(bytes)).unwrap().id()
}

pub fn call(request: Request) -> GenerateCall {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut nonce = [0; 32];
    nonce[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    nonce[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    GenerateCall {
        domain: Domain::default(),
        nonce: Bytes32(nonce),
        salt: Bytes32([5; 32]),
        payer: Address([6; 20]),
        cap: CAP,
        request,
        resume: Vec::new(),
        tenant: None,
        voucher: None,
    }
}

/// A request whose answer has exactly `tokens` tokens, since the model cannot end it.
pub fn endless(model: Bytes32, tokens: u32) -> Request {
    let mut request = Request::from_text(model, "Once upon a time", tokens);
    request.sampling.temperature_milli = 900;
    request.sampling.seed = 11;
    request.sampling.logit_bias = vec![(0, -100_000), (1, -100_000), (2, -100_000)];
    request
}
