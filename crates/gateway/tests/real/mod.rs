//! A network of processes for tests: real workers that run a tiny model, and a gateway in front of them. Each can be
//! killed, stopped and started again, as `kill` does it.

use assay_graph::{Encoding, Graph, Interface, Node, Range, Table, Task, Tensor};
use assay_model::{Architecture, import_gguf, testing::tiny_gguf};
use assay_receipt::{Address, AnyStatement, Bundle, Bytes32, Domain, Key, Member, Members, Signed};
use assay_verify::{Expected, State};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Names the role and the configuration of a child process, as `worker:FILE` or `gateway:FILE`.
pub const CHILD: &str = "ASSAY_TEST_CHILD";
/// Longest wait for anything; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(120);
pub const NAME: &str = "tiny";

/// What a child process does until it is killed.
pub fn child() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let (role, path) = role.split_once(':').unwrap();
    let text = std::fs::read(path).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match role {
        "worker" => {
            let config: assay_worker::Config = serde_json::from_slice(&text).unwrap();
            let (ready, _) = tokio::sync::oneshot::channel();
            runtime.block_on(Box::pin(assay_worker::run(config, ready, std::future::pending()))).unwrap();
        }
        _ => {
            let config: assay_gateway::Config = serde_json::from_slice(&text).unwrap();
            let address = config.state_dir.join("address");
            let ready = move |found: std::net::SocketAddr| write(&address, found.to_string().as_bytes());
            runtime.block_on(assay_gateway::run(config, std::future::pending(), ready)).unwrap();
        }
    }
}

/// Writes a file so that a reader sees all of it or nothing.
pub fn write(path: &Path, bytes: &[u8]) {
    let part = path.with_extension("part");
    std::fs::write(&part, bytes).unwrap();
    std::fs::rename(part, path).unwrap();
}

/// Looks again and again until there is something.
pub async fn wait<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A child process, killed at the end.
struct Process(Child);

impl Process {
    /// Starts one and waits until it has written `sign`. One that ends at once is started again: between two lives of a
    /// worker somebody else may hold its port for a moment.
    async fn start(role: &str, config: &Path, sign: &Path) -> Process {
        let _ = std::fs::remove_file(sign);
        let spawn = || {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture"])
                .env(CHILD, format!("{role}:{}", config.display()))
                .stdout(Stdio::null())
                .spawn();
            Process(child.unwrap())
        };
        let mut process = spawn();
        wait("a process starts", async || {
            if process.0.try_wait().unwrap().is_some() {
                process = spawn();
            }
            sign.exists().then_some(())
        })
        .await;
        process
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill(); // SIGKILL
        let _ = self.0.wait();
    }
}

/// A worker's folder, and its process while it lives.
pub struct Worker {
    pub folder: PathBuf,
    pub member: Member,
    process: Mutex<Option<Process>>,
}

impl Worker {
    async fn new(folder: PathBuf, change: impl FnOnce(&mut assay_worker::Config)) -> Worker {
        std::fs::create_dir_all(&folder).unwrap();
        let mut config = assay_worker::Config::new(&folder);
        config.threads = 1;
        change(&mut config);
        let (path, sign) = (folder.join("config.json"), folder.join("worker.json"));
        write(&path, &serde_json::to_vec(&config).unwrap());
        let process = Process::start("worker", &path, &sign).await;
        let member: Member = serde_json::from_slice(&std::fs::read(&sign).unwrap()).unwrap();
        // From now on at the address that is in the list of members.
        config.listen = member.url.trim_start_matches("https://").parse().unwrap();
        write(&path, &serde_json::to_vec(&config).unwrap());
        Worker { folder, member, process: Mutex::new(Some(process)) }
    }

    /// `kill -9`.
    pub fn kill(&self) {
        drop(self.process.lock().unwrap().take());
    }

    /// Starts it again after [`Worker::kill`].
    pub async fn revive(&self) {
        let process =
            Process::start("worker", &self.folder.join("config.json"), &self.folder.join("worker.json"))
                .await;
        *self.process.lock().unwrap() = Some(process);
    }

    /// `kill -STOP`, `kill -CONT`.
    pub fn signal(&self, name: &str) {
        self.process.lock().unwrap().as_ref().unwrap().signal(name);
    }

    /// A number from its metrics.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let client = reqwest::Client::builder().danger_accept_invalid_certs(true).no_proxy().build().unwrap();
        let text = client.get(format!("{}/metrics", self.member.url)).send().await.ok()?.text().await.ok()?;
        text.lines().find(|have| have.starts_with(line))?.rsplit(' ').next()?.parse().ok()
    }

    /// Everything that it signed; it must not run.
    pub fn statements(&self) -> Vec<AnyStatement> {
        assert!(self.process.lock().unwrap().is_none());
        assay_worker::statements(&self.folder, 0, usize::MAX).unwrap()
    }
}

/// The network. Workers end with it.
pub struct Network {
    pub folder: tempfile::TempDir,
    pub workers: Vec<Worker>,
    gateway: Option<Process>,
    pub url: String,
    pub http: reqwest::Client,
}

/// A random model whose text varies (that of the tied tiny one repeats itself), with a context of 4,096 tokens, so that
/// answers can be long.
fn artifact() -> Vec<u8> {
    let mut gguf = tiny_gguf(Architecture::Qwen3, 7);
    let key = b"qwen3.context_length";
    let at = gguf.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    gguf[at..at + 4].copy_from_slice(&4096_u32.to_le_bytes());
    import_gguf(&gguf, &mut |_, _| {}).unwrap()
}

/// The name of the encoder that every worker serves as well.
pub const VECTORS: &str = "vectors";

/// A random encoder.
pub fn encoder_artifact() -> Vec<u8> {
    let files = assay_model::testing::tiny_encoder(3);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    assay_model::import_safetensors(&files, &mut |_, _| {}).unwrap()
}

/// The file with the key that proofs of answers in text are checked with.
pub const PROOF_KEY: &str = "tiny.key";

/// The name of the integer graph that every worker proves, and of one that the first worker proves without showing its weights.
pub const SCORES: &str = "scores";
pub const PRIVATE: &str = "private";
/// As [`PRIVATE`], with a key that hides the weights, in three proofs.
pub const HIDDEN: &str = "hidden";

/// `min(relu(a + weight * b), 150)` and `a`, of inputs with one digit behind the point.
pub fn graph(weight: i32) -> Graph {
    let linear =
        Node::Linear { input: Tensor::INPUT, rows: 2, weights: vec![1, weight, 1, 0], bias: vec![0; 2] };
    let relu = Node::Lookup { input: Tensor(1), shift: 0, table: 0 };
    let encoding = Encoding::Affine { offset: vec![0.0; 2], scale: vec![10.0; 2] };
    let labels = ["left", "right"].map(String::from).to_vec();
    let interface = Interface { encoding, task: Task::Classes, scale: 0.1, offset: vec![0.0; 2], labels };
    let (inputs, table) = (vec![Range { low: 0, high: 100 }; 2], Table::clamp(-100, 400, 0, 150));
    Graph::new(inputs, vec![table], vec![linear, relu], Tensor(2), interface).unwrap()
}

impl Network {
    /// Honest workers of different operators, and a cheater that is cheaper than they if wanted; then a gateway.
    pub async fn start(
        honest: usize,
        cheater: bool,
        adapt: impl FnOnce(&mut assay_gateway::Config),
    ) -> Network {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (strong, weak) = (folder.path().join("tiny.assay"), folder.path().join("weak.assay"));
        let encoder = folder.path().join("encoder.assay");
        write(&encoder, &encoder_artifact());
        let bytes = artifact();
        write(&strong, &bytes);
        write(&weak, &assay_model::weaken(&bytes).unwrap());
        let opened = assay_model::Artifact::parse(std::sync::Arc::new(bytes)).unwrap();
        let proof_key = folder.path().join(PROOF_KEY);
        let commitment = assay_engine::light::Commitment::make(&opened, &mut |_, _| {}).unwrap();
        write(&proof_key, &commitment.to_bytes());
        let id = opened.id();
        let (scores, false_scores) = (folder.path().join("scores.graph"), folder.path().join("false.graph"));
        let (private, key) = (folder.path().join("private.graph"), folder.path().join("private.key"));
        write(&scores, &graph(1).encode());
        write(&false_scores, &graph(2).encode());
        write(&private, &graph(3).encode());
        write(&key, &assay_proof::Key::commit(&graph(3)).unwrap().to_bytes());
        let hiding_key = folder.path().join("hidden.key");
        let hiding = assay_proof::Key::commit_hiding(&graph(3), 3, &[5; 32], &|| ()).unwrap();
        write(&hiding_key, &hiding.to_bytes());
        assay_worker::Secret::create(&assay_worker::Secret::beside(&hiding_key), &hiding, &[5; 32]).unwrap();
        let model = |artifact: &Path, price: u128, impersonate: Option<Bytes32>| assay_worker::Model {
            name: NAME.into(),
            artifact: artifact.to_owned(),
            key: None,
            draft: None,
            prompt_price: price,
            completion_price: price,
            proof_key: None,
            proof_price: 0,
            impersonate,
        };
        let mut workers = Vec::new();
        for number in 0..honest + usize::from(cheater) {
            let place = folder.path().join(format!("worker-{number}"));
            let worker = Worker::new(place, |config| {
                config.operator = format!("operator {number}");
                config.models.push(match number < honest {
                    true => assay_worker::Model {
                        proof_key: Some(proof_key.clone()),
                        proof_price: 7,
                        ..model(&strong, 20, None)
                    },
                    false => assay_worker::Model {
                        proof_key: Some(proof_key.clone()),
                        proof_price: 3,
                        ..model(&weak, 10, Some(id))
                    },
                });
                config.models.push(assay_worker::Model { name: VECTORS.into(), ..model(&encoder, 20, None) });
                let proved = match number < honest {
                    true => model(&scores, 30, None),
                    false => model(&false_scores, 15, Some(Bytes32(graph(1).id()))),
                };
                config.models.push(assay_worker::Model { name: SCORES.into(), ..proved });
                if number == 0 {
                    for (name, key) in [(PRIVATE, &key), (HIDDEN, &hiding_key)] {
                        let (name, key) = (name.into(), Some(key.clone()));
                        config.models.push(assay_worker::Model { name, key, ..model(&private, 70, None) });
                    }
                }
            });
            workers.push(worker.await);
        }
        let members = Members {
            serial: 1,
            issued_at_s: 1,
            expires_at_s: 32_503_680_000,
            members: workers.iter().map(|worker| worker.member.clone()).collect(),
        };
        let authority = Key::from_bytes([99; 32]).unwrap();
        let signed = Signed::sign(&authority, &Domain::default(), members);
        let members_file = folder.path().join("members.json");
        write(&members_file, &serde_json::to_vec(&signed).unwrap());
        let mut config = assay_gateway::Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            members_file,
            members_signer: authority.address(),
            state_dir: folder.path().join("gateway"),
            proof_keys: vec![proof_key],
            payer: Address([5; 20]),
            ..Default::default()
        };
        config.sampling.share_ppm = 0;
        config.sampling.share_new_ppm = 0;
        // A killed worker rests for a moment only.
        config.workers.breaker_open_ms = 100;
        adapt(&mut config);
        std::fs::create_dir_all(&config.state_dir).unwrap();
        write(&folder.path().join("gateway.json"), &serde_json::to_vec(&config).unwrap());
        let http = reqwest::Client::new();
        let mut network = Network { folder, workers, gateway: None, url: String::new(), http };
        network.start_gateway().await;
        network
    }

    /// `kill -9` of the gateway.
    pub fn kill_gateway(&mut self) {
        self.gateway = None;
    }

    /// `kill -STOP`, `kill -CONT`.
    pub fn signal_gateway(&self, name: &str) {
        self.gateway.as_ref().unwrap().signal(name);
    }

    pub async fn start_gateway(&mut self) {
        let sign = self.folder.path().join("gateway/address");
        let process = Process::start("gateway", &self.folder.path().join("gateway.json"), &sign).await;
        self.gateway = Some(process);
        self.url = format!("http://{}", std::fs::read_to_string(sign).unwrap());
        self.http = reqwest::Client::builder().no_proxy().build().unwrap();
    }

    pub async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.text().await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The worker that is at a request, once there is one.
    pub async fn busy(&self) -> &Worker {
        wait("a worker is busy", async || {
            let rows = self.get("/assay/workers").await;
            let rows = rows["workers"].as_array().unwrap();
            let busy = rows.iter().find(|row| row["in_flight"] == json!(1))?["worker"].clone();
            self.workers.iter().find(|worker| json!(worker.member.worker) == busy)
        })
        .await
    }

    /// The row of a worker.
    pub async fn record(&self, worker: &Worker) -> Value {
        let rows = self.get("/assay/workers").await["workers"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["worker"] == json!(worker.member.worker)).unwrap()
    }

    /// All requests, newest first, once none is under way any more.
    pub async fn settled(&self) -> Vec<Value> {
        wait("all requests are settled", async || {
            let rows = self.get("/assay/receipts?limit=1000").await["receipts"].as_array().unwrap().clone();
            rows.iter().all(|row| row["state"] != "running").then_some(rows)
        })
        .await
    }

    /// The receipt of a request, which must hold in every respect.
    pub async fn bundle(&self, request_id: &str) -> Bundle {
        let (bundle, expected) = self.evidence(request_id, self.workers[0].member.models[0].model).await;
        let report = assay_verify::check(&bundle, &expected);
        assert_ne!(report.state, State::Rejected, "{:?}", report.failed().collect::<Vec<_>>());
        bundle
    }

    /// The receipt of a request, and what is expected of it.
    pub async fn evidence(&self, request_id: &str, model: Bytes32) -> (Bundle, Expected) {
        let body = self.get(&format!("/assay/receipts/{request_id}")).await;
        let bundle = Bundle::from_json(body.to_string().as_bytes()).unwrap();
        let expected = Expected {
            domain: Domain::default(),
            workers: self.workers.iter().map(|worker| worker.member.clone()).collect(),
            nonce: None,
            model: Some(model),
            payer: Some(Address([5; 20])),
            cap: None,
        };
        (bundle, expected)
    }

    /// Sends a request and gives its answer while it arrives.
    pub async fn send(&self, path: &str, body: &Value) -> Result<Reading, reqwest::Error> {
        let response = self.http.post(format!("{}{path}", self.url)).json(body).send().await?;
        assert_eq!(response.status().as_u16(), 200, "{:?}", response.text().await);
        Ok(Reading { streamed: body["stream"] == json!(true), response, bytes: Vec::new() })
    }
}

/// An answer on its way.
pub struct Reading {
    streamed: bool,
    response: reqwest::Response,
    bytes: Vec<u8>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub text: String,
    pub finish_reason: String,
    pub usage: Value,
    pub assay: Value,
}

impl Reading {
    /// Reads until so many bytes have come, or the end.
    pub async fn until(&mut self, bytes: usize) -> Result<(), reqwest::Error> {
        while self.bytes.len() < bytes
            && let Some(piece) = self.response.chunk().await?
        {
            self.bytes.extend(piece);
        }
        Ok(())
    }

    /// Reads the rest. There must be exactly one end, one usage and one receipt.
    pub async fn whole(mut self) -> Result<Answer, reqwest::Error> {
        self.until(usize::MAX).await?;
        let text = String::from_utf8(self.bytes).unwrap();
        if !self.streamed {
            let body: Value = serde_json::from_str(&text).unwrap();
            let choice = &body["choices"][0];
            let content = choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap();
            return Ok(Answer {
                text: content.into(),
                finish_reason: choice["finish_reason"].as_str().unwrap().into(),
                usage: body["usage"].clone(),
                assay: body["assay"].clone(),
            });
        }
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"), "{text}");
        let events: Vec<Value> =
            data[..data.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let one = |found: Vec<Value>| {
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        let all = |pick: fn(&Value) -> &Value| -> Vec<Value> {
            events.iter().map(pick).filter(|value| !value.is_null()).cloned().collect()
        };
        let mut pieces = all(|event| &event["choices"][0]["delta"]["content"]);
        pieces.extend(all(|event| &event["choices"][0]["text"]));
        Ok(Answer {
            text: pieces.iter().map(|piece| piece.as_str().unwrap()).collect(),
            finish_reason: one(all(|event| &event["choices"][0]["finish_reason"])).as_str().unwrap().into(),
            usage: one(all(|event| &event["usage"])),
            assay: one(all(|event| &event["assay"])),
        })
    }
}

/// A request whose answer has exactly `tokens` tokens, since the model cannot end it.
pub fn endless(path: &str, tokens: u32, seed: u64, stream: bool) -> Value {
    let mut body = json!({
        "model": NAME, "max_tokens": tokens, "seed": seed, "temperature": 0.9,
        "logit_bias": {"0": -100, "1": -100, "2": -100}, "stream": stream,
    });
    match path {
        CHAT => body["messages"] = json!([{"role": "user", "content": "Once upon a time"}]),
        _ => body["prompt"] = json!("Once upon a time"),
    }
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

pub const CHAT: &str = "/v1/chat/completions";
pub const TEXT: &str = "/v1/completions";
