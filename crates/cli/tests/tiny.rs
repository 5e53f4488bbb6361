//! `assay up` with a model of a few kilobytes, on a chain with the real contracts: what takes a network, but no real model.
#![allow(clippy::unwrap_used)]

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use assay_dispute::{Settled, batch_of};
use assay_engine::request::Processor;
use assay_model::testing::tiny_gguf;
use assay_model::{Architecture, Artifact};
use assay_receipt::{Bundle, Bytes32, Key, Members, Signed, prompt_commitment};
use assay_wallet::abi::text;
use assay_wallet::chain::Chain;
use serde_json::{Value, json};

const OPG: u128 = 1_000_000_000_000_000_000;

struct Network {
    home: tempfile::TempDir,
    url: String,
    rpc: String,
    up: Child,
}

impl Drop for Network {
    fn drop(&mut self) {
        // Its processes end with it.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

fn assay(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay"));
    command.env("ASSAY_HOME", home).env_remove("ASSAY_API_KEY").current_dir(home).stdin(Stdio::null());
    command
}

/// A model whose context is long enough for a prompt that takes a while.
fn model(folder: &Path) -> PathBuf {
    let mut gguf = tiny_gguf(Architecture::Llama, 7);
    let key = b"llama.context_length";
    let at = gguf.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    gguf[at..at + 4].copy_from_slice(&4096_u32.to_le_bytes());
    let path = folder.join("tiny.gguf");
    std::fs::write(&path, gguf).unwrap();
    path
}

impl Network {
    fn start() -> Self {
        let home =
            tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap();
        let model = model(home.path()).display().to_string();
        // Between finding a free port and using it somebody else may take it.
        for _ in 0..5 {
            let port =
                std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(65_000);
            let mut up = assay(home.path())
                .args(["--json", "up", "--workers", "2", "--model", &model, "--port", &port.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = up.stdout.take().unwrap();
            let started = serde_json::Deserializer::from_reader(stdout).into_iter::<Value>().next();
            let started = started.expect("it says where it listens").unwrap();
            if started["error"].as_str().is_some_and(|error| error.contains("--port")) {
                up.wait().unwrap();
                continue;
            }
            let rpc = started["chain"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned();
            return Self { home, url: format!("http://127.0.0.1:{port}"), rpc, up };
        }
        panic!("every port was taken");
    }

    fn run(&self, arguments: &[&str]) -> Output {
        assay(self.home.path()).args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {} {errors}",
            String::from_utf8_lossy(&output.stdout)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command that must fail says.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        said
    }

    /// Asks for a text; the operator that answered, and the file with the receipt.
    fn ask(&self, prompt: &str, tokens: u32) -> (String, String) {
        use std::io::Write as _;
        let host = self.url.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(host).unwrap();
        let body =
            json!({"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}).to_string();
        let length = body.len();
        let head = format!(
            "POST /v1/completions HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let answer: Value = serde_json::from_str(body).unwrap();
        let id = answer["assay"]["request_id"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let file = format!("{id}.json");
        assert!(self.run(&["receipts", id, "--out", &file, "--gateway", &self.url]).status.success());
        (answer["assay"]["operator"].as_str().unwrap().to_owned(), file)
    }

    fn key(&self, path: &str) -> Key {
        let text = std::fs::read_to_string(self.home.path().join("up").join(path)).unwrap();
        Key::from_bytes(text.trim().parse::<Bytes32>().unwrap().0).unwrap()
    }
}

#[test]
fn the_trace_of_an_answer_comes_from_its_worker_and_is_checked_without_the_model() {
    let network = Network::start();
    let folder = network.home.path();
    let (operator, file) = network.ask("Once upon a time", 6);
    network.json(&["model", "key", "tiny", "--out", "tiny.light"]);
    let fetched = network.json(&["trace", &file, "--from-worker", "--out", "trace"]);
    let trace = std::fs::read(folder.join("trace")).unwrap();
    assert_eq!(fetched["bytes"], json!(trace.len()));
    // What the worker shows is what anybody with the model would.
    network.json(&["trace", &file, "--model", "tiny", "--out", "own"]);
    assert!(std::fs::read(folder.join("own")).unwrap() == trace);
    // Somebody without the model checks it.
    let elsewhere = tempfile::tempdir().unwrap();
    for name in [&file, "tiny.light", "trace"] {
        std::fs::copy(folder.join(name), elsewhere.path().join(name)).unwrap();
    }
    let members = folder.join("up/members.json").display().to_string();
    let signer = network.key("members.key").address().to_string();
    let verify = |trace: &str| {
        let list = ["--members", &members, "--signer", &signer];
        let check = ["--json", "verify", &file, "--trace", trace, "--key", "tiny.light"];
        let output = assay(elsewhere.path()).args([&check[..], &list].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = verify("trace");
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["state"], &report["operator"]), (&json!("replayed"), &json!(operator)));
    // A false trace shows nothing: one bit, a cut, another answer's.
    let (_, other) = network.ask("Once upon another time", 6);
    network.json(&["trace", &other, "--from-worker", "--out", "other"]);
    let mut flipped = trace.clone();
    let at = flipped.len() * 2 / 3;
    flipped[at] ^= 1;
    std::fs::write(elsewhere.path().join("flipped"), flipped).unwrap();
    std::fs::write(elsewhere.path().join("cut"), &trace[..trace.len() - 8]).unwrap();
    std::fs::copy(folder.join("other"), elsewhere.path().join("other")).unwrap();
    for name in ["flipped", "cut", "other"] {
        let (code, said) = verify(name);
        assert!(code == Some(1) && said.contains("does not show"), "{name}: {said}");
    }
    // A bundle that the worker did not sign gets no trace of it, and no file.
    let mut lied: Value = serde_json::from_slice(&std::fs::read(folder.join(&file)).unwrap()).unwrap();
    lied["output"]["text"] = json!("another answer");
    std::fs::write(folder.join("lied.json"), lied.to_string()).unwrap();
    let output = network.run(&["trace", "lied.json", "--from-worker", "--out", "none"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("400"), "{said}");
    assert!(!folder.join("none").exists());
    // Whoever answers in its place, without its certificate, gets no bundle.
    let list = std::fs::read_to_string(&members).unwrap();
    let mut list: Signed<Members> = serde_json::from_str(&list).unwrap();
    list.statement.members.iter_mut().for_each(|member| member.tls_sha256 = Bytes32([7; 32]));
    let domain = lied["domain"].clone();
    let forged =
        Signed::sign(&network.key("members.key"), &serde_json::from_value(domain).unwrap(), list.statement);
    std::fs::write(folder.join("forged.json"), serde_json::to_string(&forged).unwrap()).unwrap();
    let fetch = ["trace", &file, "--from-worker", "--out", "none", "--members", "forged.json", "--signer"];
    let output = network.run(&[&fetch[..], &[&signer]].concat());
    assert!(!output.status.success() && !folder.join("none").exists());
    let output = network.run(&[&fetch[..], &["0x0000000000000000000000000000000000000001"]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is on no list"));
}

/// The voucher of an answer says which tokens its prompt had, by which a dispute would go.
#[test]
fn what_is_settled_fixes_the_prompt() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let network = Network::start();
    let folder = network.home.path();
    let (_, file) = network.ask("Once upon a time", 6);
    let bundle = Bundle::from_json(&std::fs::read(folder.join(file)).unwrap()).unwrap();
    let receipt = &bundle.receipt.statement;
    let settled = runtime.block_on(async {
        let chain = Chain::at(&network.rpc).unwrap();
        let (batch, lines, line) = loop {
            // A batch every 15 seconds.
            match batch_of(&chain, receipt).await.unwrap() {
                Some(found) => break found,
                None => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            }
        };
        let list = std::fs::read(folder.join("up/members.json")).unwrap();
        let list = Signed::<Members>::from_json(&list).unwrap();
        let member = list.statement.member(&receipt.worker).unwrap();
        let http = assay_gateway::pinned(member.tls_sha256, std::time::Duration::from_secs(5)).unwrap();
        let url = format!("{}/v1/lines/{}", member.url, lines[line]["root"].as_str().unwrap());
        let leaves: Value = http.get(url).send().await.unwrap().json().await.unwrap();
        Settled::new(batch, lines, line, leaves["leaves"].as_array().unwrap(), receipt).unwrap()
    });
    let bytes = std::fs::read(folder.join("models/tiny.assay")).unwrap();
    let processor = Processor::from_artifact(&Artifact::parse(Arc::new(bytes)).unwrap()).unwrap();
    let tokens = processor.prompt(&bundle.request).unwrap();
    assert_eq!(settled.prompt, prompt_commitment(&tokens, &bundle.salt));
}

#[test]
fn a_broken_promise_pays_the_caller() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let network = Network::start();
    let chain = Chain::at(&network.rpc).unwrap();
    let (wallet, payer) = (network.key("wallet.key"), network.key("members.key").address());
    let balance = || runtime.block_on(chain.number("Opg", "balanceOf", &[text(payer)])).unwrap().to::<u128>();
    let claim = |file: &str| ["promise", "claim", file, "--rpc", &network.rpc].map(str::to_owned);
    let refused = |file: &str| network.refused(&claim(file).each_ref().map(String::as_str));

    let long = "It was a dark and stormy night. ".repeat(40);
    let (_, early) = network.ask(&long, 4);
    assert!(refused(&early).contains("made no promise"));

    // A promise holds from the second on in which it is made.
    std::thread::sleep(std::time::Duration::from_millis(1_100));

    // One promises what it cannot keep, the other what it can.
    let workers = network.json(&["workers", "--gateway", &network.url]);
    for (number, first_token_ms) in [(1, "1"), (2, "3600000")] {
        let name = format!("operator-{number}");
        let rows = workers["workers"].as_array().unwrap();
        let row = rows.iter().find(|row| row["operator"] == json!(name)).unwrap();
        let worker = row["worker"].as_str().unwrap();
        let key = format!("worker-{number}/operator.key");
        let operator = text(network.key(&key).address());
        runtime
            .block_on(chain.transact(&wallet, "Opg", "transfer", &[operator, json!((50 * OPG).to_string())]))
            .unwrap();
        let key = network.home.path().join("up").join(key).display().to_string();
        let terms = ["--compensation", "5", "--daily", "7.5", "--bond", "20"];
        let who = ["--key", &key, "--rpc", &network.rpc];
        let make =
            [&["promise", "make", worker, "--first-token-ms", first_token_ms], &terms[..], &who[..]].concat();
        let promise = network.json(&make);
        assert_eq!(promise["bond"], json!((20 * OPG).to_string()));
        assert!(network.refused(&make).contains("AlreadyPromised"));
    }
    assert!(refused(&early).contains("did not hold yet"));

    // Answers until both have given some: many at once, or the faster would give them all.
    let mut of = [Vec::new(), Vec::new()];
    for _ in 0..10 {
        let answers: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..16).map(|_| scope.spawn(|| network.ask(&long, 4))).collect();
            asked.into_iter().map(|answer| answer.join().unwrap()).collect()
        });
        for (operator, file) in answers {
            of[usize::from(operator == "operator-2")].push(file);
        }
        if of[0].len() >= 2 && !of[1].is_empty() {
            break;
        }
    }
    let [slow, kept] = of;
    assert!(slow.len() >= 2 && !kept.is_empty(), "the gateway asks both");
    assert!(refused(&kept[0]).contains("kept its promise"));

    // A receipt with another time is not what the worker signed.
    let folder = network.home.path();
    let mut forged: Value = serde_json::from_slice(&std::fs::read(folder.join(&kept[0])).unwrap()).unwrap();
    let received = forged["receipt"]["statement"]["received_at_ms"].as_u64().unwrap();
    for (field, late) in [("first_token_at_ms", 4_000_000), ("finished_at_ms", 4_000_001)] {
        forged["receipt"]["statement"][field] = json!(received + late);
    }
    std::fs::write(folder.join("forged.json"), forged.to_string()).unwrap();
    assert!(refused("forged.json").contains("did not sign"));

    // The caller is paid, by whoever brings the receipt, once, and within the day's limit.
    let before = balance();
    let paid = network.json(&claim(&slow[0]).each_ref().map(String::as_str));
    assert_eq!(paid["claims"][0]["paid"], json!((5 * OPG).to_string()));
    assert_eq!(paid["claims"][0]["payer"], json!(payer));
    assert_eq!(balance() - before, 5 * OPG);
    assert!(refused(&slow[0]).contains("paid before"));
    assert!(refused(&slow[1]).contains("used up"));
    assert_eq!(balance() - before, 5 * OPG);
    let bundle: Value = serde_json::from_slice(&std::fs::read(folder.join(&slow[0])).unwrap()).unwrap();
    let worker = bundle["receipt"]["statement"]["worker"].as_str().unwrap();
    let left = network.json(&["promise", "show", worker, "--rpc", &network.rpc]);
    assert_eq!(left["bond"], json!((15 * OPG).to_string()));

    // It ends in a day, not at once, and the bond stays for a week.
    let key = folder.join("up/worker-1/operator.key").display().to_string();
    let end = ["promise", "end", worker, "--key", &key, "--rpc", &network.rpc];
    assert_eq!(network.json(&end)["call"], "withdraw");
    assert!(network.refused(&end).contains("NotYet"));
}
