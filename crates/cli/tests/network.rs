//! `assay up --with-cheater` as a user runs it: real processes, the real model, every command of the terminal, `kill -9`
//! of any process, and a cheater that is caught.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use assay_ledger::types::{U256, hex, keccak256};
use curve25519_dalek::scalar::clamp_integer;
use curve25519_dalek::{EdwardsPoint, Scalar};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(300);

/// A network of its own folder and port; everything is stopped when it goes out of scope.
struct Network {
    home: tempfile::TempDir,
    url: String,
    up: Child,
}

impl Network {
    /// Starts the network and waits until it has caught its cheater; returns what it printed about that.
    fn with_a_caught_cheater() -> (Self, Value) {
        let model = common::model();
        Self::start(&["--with-cheater"], |home| {
            let models = home.join("models");
            std::fs::create_dir(&models).unwrap();
            let here = models.join(model.file_name().unwrap());
            if std::fs::hard_link(&model, &here).is_err() {
                std::fs::copy(&model, &here).unwrap();
            }
        })
    }

    /// Starts a network in a folder that `prepare` has filled; returns what it printed next, if it is to show a cheater.
    fn start(flags: &[&str], prepare: impl FnOnce(&Path)) -> (Self, Value) {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let home = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        prepare(home.path());
        // Between finding a free port and using it somebody else may take it.
        for _ in 0..5 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut up = assay(home.path())
                .args(["--json", "up", "--port", &free.port().to_string()])
                .args(flags)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = up.stdout.take().unwrap();
            let mut documents = serde_json::Deserializer::from_reader(stdout).into_iter::<Value>();
            let started = documents.next().expect("it says where it listens").unwrap();
            if started["error"].as_str().is_some_and(|error| error.contains("--port")) {
                up.wait().unwrap();
                continue;
            }
            let network = Self { home, url: format!("http://{free}"), up };
            assert_eq!(started["url"], json!(network.url), "{started}");
            // The chain settles what the workers answer.
            let chain = !flags.contains(&"--validators");
            assert_eq!(started["chain"].is_string(), chain, "{started}");
            let mut shown = json!({});
            if flags.contains(&"--with-cheater") {
                shown = documents.next().expect("it catches the cheater").unwrap();
                if chain {
                    shown["dispute"] =
                        documents.next().expect("it disputes the lie").unwrap()["dispute"].take();
                }
            }
            return (network, shown);
        }
        panic!("every port was taken");
    }

    /// Runs a command of the terminal against this network.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = assay(self.home.path());
        command.args(arguments);
        if ["chat", "workers", "receipts", "audit", "incident", "doctor", "dispute"]
            .iter()
            .any(|name| arguments.contains(name))
        {
            command.args(["--gateway", &self.url]);
        }
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {stdout} {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Asks the gateway over HTTP.
    fn post(&self, path: &str, body: &Value) -> Value {
        Self::post_to(&self.url, path, body)
    }

    fn post_to(url: &str, path: &str, body: &Value) -> Value {
        use std::io::Write as _;
        let host = url.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.to_string();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(body).unwrap()
    }

    fn ask(&self, question: &str) -> Value {
        self.json(&["chat", question, "--max-tokens", "12", "--temperature", "0"])
    }

    fn request_ids(&self) -> Vec<String> {
        let list = self.json(&["receipts", "--limit", "1000"]);
        let rows = list["receipts"].as_array().unwrap();
        rows.iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect()
    }

    /// Process ids of the supervised processes whose configuration lies in this folder.
    fn pids(&self, name: &str) -> Vec<u32> {
        let config = self.home.path().join("up").join(name).join("config.toml").display().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == config.as_bytes())
        })
        .collect()
    }

    /// Kills a process without warning and waits until the supervisor has started another.
    fn kill_and_wait(&self, name: &str) {
        let before = self.pids(name);
        assert_eq!(before.len(), 1, "{name} runs once");
        signal(before[0], "-KILL");
        until(|| {
            let now = self.pids(name);
            now.len() == 1 && now != before
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // After a panic nothing may be left behind; after a stop there is nothing to kill.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

fn assay(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay"));
    command.env("ASSAY_HOME", home).env_remove("ASSAY_API_KEY").current_dir(home);
    command
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn save(path: PathBuf, value: &Value) -> String {
    std::fs::write(&path, serde_json::to_vec(value).unwrap()).unwrap();
    path.display().to_string()
}

#[test]
fn a_network_answers_proves_survives_and_catches() {
    let (network, caught) = Network::with_a_caught_cheater();
    let folder = network.home.path();

    // The cheater: what it loses on the chain, and once only.
    let dispute = &caught["dispute"];
    assert_eq!(dispute["won"], json!(true), "{dispute}");
    let bond = |when: &str| dispute[when].as_str().unwrap().parse::<u128>().unwrap();
    assert!(bond("bond_after") < bond("bond_before"), "{dispute}");
    let port: u16 = network.url.rsplit(':').next().unwrap().parse().unwrap();
    let rpc = format!("http://127.0.0.1:{}", port + 45);
    let caught = &caught["caught"];
    let again = caught["suspended"]["request_id"].as_str().unwrap();
    let again = network.run(&["dispute", again, "--rpc", &rpc]);
    assert!(!again.status.success(), "{}", stderr(&again));
    // Against an honest answer nothing is posted.
    let question = json!({"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0});
    let honest = network.post("/v1/chat/completions", &question);
    let honest = network.run(&["dispute", honest["id"].as_str().unwrap(), "--rpc", &rpc]);
    assert_eq!(honest.status.code(), Some(1), "{}", stderr(&honest));
    assert!(stderr(&honest).contains("nothing was spent"), "{}", stderr(&honest));

    // Which worker, which request, which token.
    assert_eq!(caught["operator"], "operator-cheap");
    let lie = &caught["suspended"];
    assert_ne!(lie["expected"], lie["claimed"]);
    assert_eq!(lie["auditors"].as_array().unwrap().len(), 2, "a second auditor confirmed it");
    assert!(caught["withheld"].as_str().unwrap().parse::<u128>().unwrap() > 0);
    let request = lie["request_id"].as_str().unwrap();
    let incident = network.json(&["incident", request]);
    assert_eq!(incident["state"], "mismatch");
    let evidence = save(folder.join("lie.json"), &incident["bundle"]);
    let verified = network.run(&["verify", &evidence]);
    assert_eq!(verified.status.code(), Some(1), "{}", stderr(&verified));
    let verified = network.run(&["verify", &save(folder.join("incident.json"), &incident)]);
    assert_eq!(verified.status.code(), Some(1), "{}", stderr(&verified));
    let replayed = network.run(&["verify", &evidence, "--replay", "smollm2-135m-instruct"]);
    assert_eq!(replayed.status.code(), Some(1), "{}", stderr(&replayed));

    // An honest answer: no further requests go to the cheater, and every worker gives the same bits.
    let shown =
        network.run(&["chat", "What is the capital of France?", "--max-tokens", "12", "--temperature", "0"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("Paris") && shown.contains("receipt checked here"), "{shown}");
    let first = network.ask("What is the capital of France?");
    let text = first["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.contains("Paris"), "{text}");
    assert_ne!(first["assay"]["operator"], "operator-cheap");
    for _ in 0..3 {
        assert_eq!(network.ask("What is the capital of France?")["choices"][0]["message"]["content"], text);
    }

    // Its receipt: saved, checked offline, repeated here, and rejected after any change.
    let id = first["assay"]["request_id"].as_str().unwrap().to_owned();
    assert!(network.run(&["receipts", &id, "--out", "receipt.json"]).status.success());
    let report = network.json(&["verify", "receipt.json"]);
    assert!(report["state"] == "signed" || report["state"] == "replayed", "{report}");
    let report = network.json(&["verify", "receipt.json", "--replay", "smollm2-135m-instruct"]);
    assert_eq!(report["state"], "replayed");
    let bundle: Value = serde_json::from_slice(&std::fs::read(folder.join("receipt.json")).unwrap()).unwrap();
    let mut lied = bundle.clone();
    lied["output"]["text"] = json!("Lyon.");
    let mut stolen = bundle.clone();
    stolen["receipt"]["statement"]["price"] = json!("999");
    for (name, tampered) in [("text.json", lied), ("price.json", stolen)] {
        let output = network.run(&["verify", &save(folder.join(name), &tampered)]);
        assert_eq!(output.status.code(), Some(1), "{name}: {}", stderr(&output));
    }
    let foreign =
        network.run(&["verify", "receipt.json", "--signer", "0x0000000000000000000000000000000000000001"]);
    assert!(!foreign.status.success(), "a list of workers that somebody else signed does not count");

    // An audit on demand.
    let audited = network.json(&["audit", &id]);
    assert_eq!(audited["state"], "replayed");
    assert_eq!(network.json(&["verify", "receipt.json"])["state"], report_before_audit(&bundle));
    let findings = network.json(&["doctor"]);
    assert_eq!(findings.as_array().unwrap().len(), 6);

    // kill -9 of the worker in the middle of a stream: the caller reads exactly what an undisturbed run gives.
    let story =
        ["chat", "Tell me a story about the sea.", "--max-tokens", "160", "--temperature", "0", "--gateway"];
    let story = || {
        assay(folder)
            .args(story)
            .arg(&network.url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let undisturbed = String::from_utf8(story().wait_with_output().unwrap().stdout).unwrap();
    let mut stream = story();
    let mut disturbed = [0; 24];
    let mut out = stream.stdout.take().unwrap();
    out.read_exact(&mut disturbed).unwrap();
    let workers = network.json(&["workers"]);
    let busy =
        workers["workers"].as_array().unwrap().iter().find(|worker| worker["in_flight"] != json!(0)).unwrap();
    let name = busy["operator"].as_str().unwrap().replace("operator", "worker");
    network.kill_and_wait(&name);
    let mut disturbed = disturbed.to_vec();
    out.read_to_end(&mut disturbed).unwrap();
    assert!(stream.wait().unwrap().success());
    let disturbed = String::from_utf8(disturbed).unwrap();
    let answer = |shown: &str| shown.rsplit_once("\n✓").expect("the receipt was checked").0.to_owned();
    assert_eq!(answer(&disturbed), answer(&undisturbed));
    assert!(disturbed.contains("receipt checked here"), "{disturbed}");

    // kill -9 of any process, one after the other: it comes back, and no receipt is lost.
    let before = network.request_ids();
    assert!(before.contains(&id) && before.contains(&request.to_owned()));
    for name in ["gateway", "worker-1", "worker-2", "worker-3"] {
        network.kill_and_wait(name);
        until(|| network.run(&["receipts"]).status.success());
        assert_eq!(network.ask("What is the capital of France?")["choices"][0]["message"]["content"], text);
        let after = network.request_ids();
        assert!(before.iter().all(|id| after.contains(id)), "after killing {name}");
    }
    let again = network.json(&["receipts", &id]);
    assert_eq!(again["receipt"], bundle["receipt"], "the same signed statement");

    // An interrupt stops everything.
    signal(network.up.id(), "-INT");
    let mut network = network;
    let status = network.up.wait().unwrap();
    assert!(status.success(), "{status}");
    for name in ["gateway", "worker-1", "worker-2", "worker-3", "cheater"] {
        assert_eq!(network.pids(name), Vec::<u32>::new(), "{name} is gone");
    }
}

/// Several models behind one gateway, one of which makes embeddings: their receipts are checked and repeated offline.
#[test]
fn an_embedding_is_verified_and_replayed_offline() {
    let (network, _) =
        Network::start(&["--workers", "2", "--model", "tiny.gguf", "--model", "vectors"], |home| {
            let text = assay_model::testing::tiny_gguf(assay_model::Architecture::Qwen3, 1);
            std::fs::write(home.join("tiny.gguf"), text).unwrap();
            for (name, bytes) in assay_model::testing::tiny_encoder(1) {
                let path = home.join("vectors").join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
        });
    let folder = network.home.path();
    let answer = network.post("/v1/embeddings", &json!({"model": "vectors", "input": "the abc"}));
    assert_eq!(answer["data"][0]["embedding"].as_array().unwrap().len(), 64, "{answer}");
    let chat = network.post(
        "/v1/chat/completions",
        &json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}),
    );
    assert!(chat["choices"][0]["message"]["content"].is_string(), "{chat}");

    let list = network.json(&["receipts"]);
    let rows = list["receipts"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{list}");

    // The workers settle both without being asked, in batches that wait for their window; the payer's deposit has paid for them.
    let port: u16 = network.url.rsplit(':').next().unwrap().parse().unwrap();
    let rpc = format!("http://127.0.0.1:{}", port + 45);
    let began = Instant::now();
    loop {
        let settled = network.json(&["receipts", "--settled", "--rpc", &rpc]);
        let states = settled["receipts"].as_array().unwrap().iter().map(|row| row["settlement"].clone());
        if states.clone().count() == 2 && states.clone().all(|state| state == "pending") {
            break;
        }
        let log = std::fs::read_to_string(folder.join("up/worker-1/log")).unwrap_or_default();
        assert!(began.elapsed() < PATIENCE, "{settled}\n{log}");
        std::thread::sleep(Duration::from_millis(500));
    }
    // A worker joins again under its operator, and under nobody else's; anybody adds to a payer's deposit.
    let join = |genesis: &'static str, key: &'static str| {
        let worker = ["join", "--role", "worker", "--data", "up/worker-1", "--network", genesis];
        [&worker[..], &["--key", key, "--rpc", &rpc]].concat()
    };
    let own = "up/chain/genesis.json";
    let joined = network.json(&join(own, "up/worker-1/operator.key"));
    assert_eq!((&joined["name"], &joined["bond"]), (&json!("operator-1"), &json!("1000000000000000000000")));
    let refused = network.run(&join(own, "up/worker-2/operator.key"));
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    // A node of another network is found out before anything is signed.
    let mut other: Value = serde_json::from_slice(&std::fs::read(folder.join(own)).unwrap()).unwrap();
    other["gasLimit"] = json!(50_000_000);
    std::fs::write(folder.join("other.json"), other.to_string()).unwrap();
    let refused = network.run(&join("other.json", "up/worker-1/operator.key"));
    assert!(stderr(&refused).contains("another network"), "{}", stderr(&refused));
    // A full node needs the genesis alone; a validator gets a key in its folder, and seats when the epoch ends.
    let full = network.json(&["join", "--role", "full", "--data", "full", "--network", own, "--rpc", &rpc]);
    assert_eq!((&full["data"], folder.join("full/genesis.json").exists()), (&json!("full"), true));
    let wallet = ["--key", "up/wallet.key", "--rpc", &rpc, "--network", own];
    let voter = ["join", "--role", "validator", "--data", "voter", "--stake", "5000"];
    let joined = network.json(&[&voter[..], &wallet].concat());
    assert_eq!(joined["stake"], json!("5000000000000000000000"), "{joined}");
    let made = network.json(&["keys", "validator", "voter/validator.key"]);
    assert_eq!(made["key"], joined["key"]);
    assert_eq!(network.run(&[&voter[..], &wallet].concat()).status.code(), Some(1), "it is one already");
    // Its key is replaced, and not once more before the new one has seats. It is in no jail, and nobody contradicted itself.
    let rotate = ["keys", "rotate", "--data", "voter", "--key", "up/wallet.key", "--rpc", &rpc];
    let rotated = network.json(&rotate);
    assert_ne!(rotated["key"], made["key"]);
    let made = network.json(&["keys", "validator", "voter/validator.next.key"]);
    assert_eq!(made["key"], rotated["key"]);
    let refused = network.run(&rotate);
    assert!(stderr(&refused).contains("no seats yet"), "{}", stderr(&refused));
    let wallet = ["--key", "up/wallet.key", "--rpc", &rpc];
    assert_eq!(network.run(&[&["unjail"], &wallet[..]].concat()).status.code(), Some(1));
    assert_eq!(network.json(&[&["slash"], &wallet[..]].concat())["slashed"], json!([]));
    contradicts_itself_and_pays(&network, &rpc, &rotated["validator"]);
    let payer = format!("0x{}", "12".repeat(20));
    for sum in ["1500000000000000000", "3000000000000000000"] {
        let deposited = network.json(&["deposit", "1.5", "--payer", &payer, "--rpc", &rpc]);
        assert_eq!(deposited["deposit"], json!(sum));
    }

    let mut models = Vec::new();
    for row in rows {
        let id = row["request_id"].as_str().unwrap();
        assert!(network.run(&["receipts", id, "--out", "receipt.json"]).status.success());
        let bundle = std::fs::read(folder.join("receipt.json")).unwrap();
        let bundle: Value = serde_json::from_slice(&bundle).unwrap();
        let (model, other) =
            if bundle["output"]["tokens"] == json!([]) { ("vectors", "tiny") } else { ("tiny", "vectors") };
        models.push(model);
        assert_eq!(network.json(&["verify", "receipt.json", "--replay", model])["state"], "replayed");
        let undecided = network.run(&["verify", "receipt.json", "--replay", other]);
        assert_eq!(undecided.status.code(), Some(2), "another model decides nothing: {}", stderr(&undecided));
        let mut lied = bundle.clone();
        lied["output"]["text"] = json!("[1, 2, 3]");
        let lied = network.run(&["verify", &save(folder.join("lied.json"), &lied), "--replay", model]);
        assert_eq!(lied.status.code(), Some(1), "{}", stderr(&lied));
        // Proved to whoever has the public key of the model, and not the model.
        let key = network.run(&["model", "commit", model, "-o", "public.key"]);
        if model == "vectors" {
            assert_eq!(key.status.code(), Some(2), "{}", stderr(&key));
            continue;
        }
        let proof = network.json(&["prove", "receipt.json", "--key", "public.key", "-o", "receipt.proof"]);
        let check = ["verify", "receipt.json", "--proof", "receipt.proof", "--key", "public.key"];
        let report = network.json(&check);
        assert_eq!((&report["state"], &report["level"]), (&json!("proved"), &json!("proved")), "{proof}");
        let mut file = std::fs::read(folder.join("receipt.proof")).unwrap();
        assert_eq!(json!(file.len()), proof["bytes"]);
        // Its worker gives the same bytes to whoever has the receipt.
        let fetch = ["prove", "receipt.json", "--key", "public.key", "--from-worker", "-o", "fetched.proof"];
        assert_eq!(network.json(&fetch)["bytes"], proof["bytes"]);
        assert!(std::fs::read(folder.join("fetched.proof")).unwrap() == file);
        let bundle = save(folder.join("lied.json"), &{
            let mut lied = bundle.clone();
            lied["output"]["text"] = json!("abc");
            lied
        });
        let lied = network.run(&[&check[..1], &[&bundle], &check[2..]].concat());
        assert_eq!(lied.status.code(), Some(1), "{}", stderr(&lied));
        *file.last_mut().unwrap() ^= 1;
        std::fs::write(folder.join("receipt.proof"), file).unwrap();
        let refused = network.run(&check);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("does not show"), "{}", stderr(&refused));
        let secret = network.json(&["model", "key", model, "-o", "secret.key"]);
        assert_eq!(secret["path"], "secret.key");
        let refused = network.run(&[&check[..5], &["secret.key"]].concat());
        assert!(stderr(&refused).contains("assay model commit"), "{}", stderr(&refused));
    }
    models.sort_unstable();
    assert_eq!(models, ["tiny", "vectors"]);
}

/// The validator in `voter` signs two histories with the key that it had first. Whoever has both votes takes its stake with `assay slash`.
fn contradicts_itself_and_pays(network: &Network, rpc: &str, validator: &Value) {
    let folder = network.home.path();
    let ask = |method: &str, params: Value| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        Network::post_to(rpc, "/", &body)["result"].take()
    };
    let word = |text: &Value| <[u8; 32]>::try_from(hex::decode(text.as_str().unwrap()).unwrap()).unwrap();
    let genesis = word(&ask("eth_getBlockByNumber", json!(["0x0", false]))["hash"]);
    let secret = std::fs::read_to_string(folder.join("voter/validator.key")).unwrap();
    let voter = Signer::new(word(&json!(secret.trim())));
    let stranger = Signer::new([7; 32]);
    let evidence = |signer: &Signer, payloads: [u8; 2], of: &[u8; 32]| {
        let votes = [vec![0], signer.notarizes(of, payloads[0]), signer.notarizes(of, payloads[1])].concat();
        json!({"key": hex::encode_prefixed(signer.public()), "votes": hex::encode_prefixed(votes)})
    };
    let signed = ["--key", "up/wallet.key", "--rpc", rpc];
    let path = folder.join("evidence.json");
    let slash = |evidence: &Value| {
        let file = save(path.clone(), evidence);
        network.run(&[&["slash", &file], &signed[..]].concat())
    };
    let total = || {
        let data = format!("0x{}", hex::encode(&keccak256("bonded()")[..4]));
        let staking = std::fs::read(folder.join("up/chain/genesis.json")).unwrap();
        let staking: Value = serde_json::from_slice(&staking).unwrap();
        let call = json!({"to": staking["system"]["addresses"]["staking"], "data": data});
        U256::from_be_bytes(word(&ask("eth_call", json!([call, "latest"]))))
    };
    let before = total();
    // The same vote twice; votes of another chain; a vote that was changed; somebody else's two faces; no evidence at all.
    let count = || ask("eth_getTransactionCount", json!([validator, "latest"]));
    let sent = count();
    let mut changed = evidence(&voter, [1, 2], &genesis);
    changed["votes"] = json!(changed["votes"].as_str().unwrap().replacen("0202", "0203", 1));
    for (evidence, why) in [
        (evidence(&voter, [1, 1], &genesis), "contradicted itself"),
        (evidence(&voter, [1, 2], &[9; 32]), "contradicted itself"),
        (changed, "contradicted itself"),
        (evidence(&stranger, [1, 2], &genesis), "is no validator's"),
        (json!({"votes": "0x00"}), "is no evidence"),
    ] {
        let refused = slash(&evidence);
        let said = stderr(&refused);
        assert!(
            !refused.status.success() && said.contains(why) && said.trim().lines().count() == 1,
            "{said}"
        );
    }
    assert_eq!(count(), sent, "something was sent");
    assert_eq!(total(), before);

    let good = evidence(&voter, [1, 2], &genesis);
    let file = save(path.clone(), &good);
    let done = network.json(&[&["slash", &file], &signed[..]].concat())["slashed"].take();
    assert_eq!((&done[0]["validator"], done.as_array().unwrap().len()), (validator, 1), "{done}");
    let burnt: U256 = done[0]["burnt"].as_str().unwrap().parse().unwrap();
    // A twentieth of 5,000 OPG; and what is left does not count any more.
    assert_eq!(burnt, U256::from(250) * U256::from(10).pow(U256::from(18)), "{done}");
    assert!(total() <= before - burnt);
    let refused = slash(&good);
    assert!(stderr(&refused).contains("was slashed for contradicting itself before"), "{}", stderr(&refused));
    let refused = network.run(&[&["unjail"], &signed[..]].concat());
    assert!(stderr(&refused).contains("out for ever"), "{}", stderr(&refused));
}

/// A validator's key as its file has it (RFC 8032).
struct Signer {
    scalar: Scalar,
    prefix: [u8; 32],
}

impl Signer {
    fn new(seed: [u8; 32]) -> Self {
        let hash = Sha512::digest(seed);
        let (scalar, prefix) = hash.split_at(32);
        let scalar = Scalar::from_bytes_mod_order(clamp_integer(scalar.try_into().unwrap()));
        Self { scalar, prefix: prefix.try_into().unwrap() }
    }

    fn public(&self) -> [u8; 32] {
        EdwardsPoint::mul_base(&self.scalar).compress().to_bytes()
    }

    /// A vote for a block in view 5 of epoch 1.
    fn notarizes(&self, genesis: &[u8; 32], payload: u8) -> Vec<u8> {
        let subject = [&[1, 5, 4][..], &[payload; 32]].concat();
        let message = assay_receipt::votes::message(genesis, "_NOTARIZE", &subject);
        let hash =
            |parts: &[&[u8]]| Scalar::from_bytes_mod_order_wide(&Sha512::digest(parts.concat()).into());
        let nonce = hash(&[&self.prefix, &message]);
        let commitment = EdwardsPoint::mul_base(&nonce).compress().to_bytes();
        let response = nonce + hash(&[&commitment, &self.public(), &message]) * self.scalar;
        [&subject, &[3][..], &commitment, response.as_bytes()].concat()
    }
}

/// What a file that was saved earlier says of itself: audits made later are not in it.
fn report_before_audit(bundle: &Value) -> &'static str {
    if bundle["audits"].as_array().is_some_and(|audits| !audits.is_empty()) { "replayed" } else { "signed" }
}
