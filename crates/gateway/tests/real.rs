//! A gateway and its workers as processes that are killed: no caller loses an answer, and nobody a receipt.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "real/mod.rs"]
mod network;
#[path = "real/proofs.rs"]
mod proofs;

use assay_proof::{Key, Model};
use assay_receipt::{AnyStatement, Bytes32, Domain, Verdict};
use assay_verify::{State, check_proved, check_sequence};
use network::{Answer, CHAT, HIDDEN, Network, PRIVATE, SCORES, TEXT, VECTORS, Worker, endless, graph, wait};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Not a test by itself: the processes that the tests below start and kill.
#[test]
fn child() {
    network::child();
}

/// Waits until a worker has made some tokens of the request that it is at.
async fn in_the_middle(worker: &Worker, before: f64) {
    wait("a worker makes tokens", async || {
        let tokens = worker.metric(TOKENS).await?;
        (tokens > before + 50.0).then_some(())
    })
    .await;
}

const TOKENS: &str = "assay_worker_completion_tokens_total{model=\"tiny\"}";

/// Whatever is done to the worker in the middle of an answer, the caller receives exactly the text of an undisturbed run.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_or_hangs_in_mid_stream_is_not_noticed() {
    let network = Network::start(3, false, |config| config.workers.between_tokens_ms = 3_000).await;
    for (number, (path, stream, hang)) in [
        (CHAT, true, false),
        (CHAT, false, false),
        (TEXT, true, false),
        (TEXT, false, false),
        (CHAT, true, true),
    ]
    .into_iter()
    .enumerate()
    {
        let body = endless(path, 2_500, number as u64, stream);
        let undisturbed = network.send(path, &body).await.unwrap().whole().await.unwrap();
        assert_eq!(undisturbed.usage["completion_tokens"], 2_500);
        assert_eq!(undisturbed.finish_reason, "length");
        assert!(
            undisturbed.text.chars().collect::<std::collections::HashSet<_>>().len() > 20,
            "text that tells apart"
        );
        // A machine that is fast enough may be done before the blow; then it is struck again.
        let mut struck = false;
        for _ in 0..20 {
            let (disturbed, victim) = disturb(&network, path, &body, hang).await;
            assert_eq!(disturbed.text, undisturbed.text, "{path}, streams {stream}, hangs {hang}");
            assert_eq!(disturbed.finish_reason, undisturbed.finish_reason);
            assert_eq!(disturbed.usage, undisturbed.usage);
            let id = disturbed.assay["request_id"].as_str().unwrap();
            let bundle = network.bundle(id).await;
            assert_eq!(bundle.output.text, undisturbed.text, "the receipt covers the whole answer");
            assert_eq!(json!(bundle.receipt.hash(&Domain::default())), disturbed.assay["receipt_hash"]);
            if hang {
                victim.signal("-CONT");
            } else {
                victim.kill();
                victim.revive().await;
            }
            if disturbed.assay["attempts"] != json!(1) {
                assert_ne!(disturbed.assay["worker"], json!(victim.member.worker));
                let incident = network.get(&format!("/assay/incident/{id}")).await;
                let kinds: Vec<&str> = incident["evidence"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item["kind"].as_str().unwrap())
                    .collect();
                assert!(kinds.contains(&"chunks") && kinds.contains(&"fault"), "{kinds:?}");
                let resumed = &incident["request"]["attempts"][1]["resumed_tokens"];
                assert!(resumed.as_u64().unwrap() > 0, "another worker went on: {resumed}");
                struck = true;
                break;
            }
        }
        assert!(struck, "the worker was always done before it was struck");
    }
    for row in network.settled().await {
        assert_eq!(row["state"], "signed", "{row}");
        network.bundle(row["request_id"].as_str().unwrap()).await;
    }
}

/// Strikes the worker that answers a request in the middle of its answer.
async fn disturb<'a>(network: &'a Network, path: &str, body: &Value, hang: bool) -> (Answer, &'a Worker) {
    let mut before = HashMap::new();
    for worker in &network.workers {
        before.insert(worker.member.worker, worker.metric(TOKENS).await.unwrap_or(0.0));
    }
    let strike = async {
        let worker = network.busy().await;
        in_the_middle(worker, before[&worker.member.worker]).await;
        if hang {
            worker.signal("-STOP");
        } else {
            worker.kill();
        }
        worker
    };
    let ask = async { network.send(path, body).await.unwrap().whole().await.unwrap() };
    tokio::join!(ask, strike)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_may_be_killed_in_one_stream() {
    let network = Network::start(3, false, |_| {}).await;
    let body = endless(CHAT, 3_500, 5, true);
    let undisturbed = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
    for _ in 0..20 {
        let mut reading = network.send(CHAT, &body).await.unwrap();
        reading.until(2_000).await.unwrap();
        let first = network.busy().await;
        first.kill();
        let second = wait("another worker goes on", async || {
            let busy = network.busy().await;
            (busy.member.worker != first.member.worker).then_some(busy)
        });
        let (second, disturbed) = tokio::join!(
            async {
                // When the stream was over already, nobody else gets busy.
                let second = tokio::time::timeout(std::time::Duration::from_secs(5), second).await.ok()?;
                second.kill();
                Some(second)
            },
            reading.whole()
        );
        let disturbed = disturbed.unwrap();
        assert_eq!(disturbed.text, undisturbed.text);
        assert_eq!(disturbed.usage, undisturbed.usage);
        network.bundle(disturbed.assay["request_id"].as_str().unwrap()).await;
        first.revive().await;
        if let Some(second) = second {
            second.revive().await;
        }
        if disturbed.assay["attempts"] == json!(3) {
            return;
        }
    }
    panic!("the second worker was always done before it was killed");
}

/// Callers that ask until they are told to stop, and what receipts they saw.
struct Callers {
    stop: Arc<AtomicBool>,
    /// Request id and hash of the receipt.
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    lanes: Vec<tokio::task::JoinHandle<()>>,
}

impl Callers {
    /// `resilient`: the gateway stays, so every request must be answered. Otherwise they stop at the first error.
    fn start(network: &Network, resilient: bool) -> Callers {
        let (stop, seen): (Arc<AtomicBool>, Arc<Mutex<Vec<_>>>) = Default::default();
        let lanes = (0..4_u64).map(|lane| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            let (http, url) = (network.http.clone(), network.url.clone());
            tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let tokens = 20 + 60 * (number % 4);
                    let body = endless(CHAT, tokens, lane, false);
                    let answer = async {
                        let response = http.post(format!("{url}{CHAT}")).json(&body).send().await?;
                        let response = response.error_for_status()?;
                        response.json::<Value>().await
                    };
                    match answer.await {
                        Ok(answer) => {
                            assert_eq!(answer["usage"]["completion_tokens"], tokens);
                            let assay = &answer["assay"];
                            let id = assay["request_id"].as_str().unwrap().to_owned();
                            seen.lock().unwrap().push((id, assay["receipt_hash"].clone()));
                        }
                        Err(error) if resilient => panic!("{error:?}"),
                        Err(_) => return,
                    }
                }
            })
        });
        Callers { lanes: lanes.collect(), stop, seen }
    }

    /// Waits until so many more answers were seen.
    async fn progress(&self, more: usize) {
        let goal = self.seen.lock().unwrap().len() + more;
        wait("callers get answers", async || (self.seen.lock().unwrap().len() >= goal).then_some(())).await;
    }

    async fn end(self) -> Vec<(String, Value)> {
        self.stop.store(true, Ordering::Relaxed);
        for lane in self.lanes {
            lane.await.unwrap();
        }
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// The receipts that a worker signed, by nonce. Its log must be whole.
fn receipts(worker: &Worker) -> HashMap<Bytes32, Bytes32> {
    let statements = worker.statements();
    for report in check_sequence(&Domain::default(), &statements) {
        assert_eq!(report.statements, statements.len());
        assert!(report.forks.is_empty() && report.broken.is_empty() && report.gaps.is_empty(), "{report:?}");
    }
    let receipts = statements.iter().filter_map(|statement| match statement {
        AnyStatement::Receipt(receipt) => Some((receipt.statement.nonce, receipt.hash(&Domain::default()))),
        _ => None,
    });
    receipts.collect()
}

/// After each `kill -9` of the gateway every receipt that a caller saw is there, and so is every other receipt that a
/// worker signed for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_loses_no_receipt_when_it_is_killed() {
    let mut network = Network::start(3, false, |_| {}).await;
    let mut seen = Vec::new();
    for round in 0..4 {
        let callers = Callers::start(&network, false);
        callers.progress(8 + 3 * round).await;
        network.kill_gateway();
        seen.extend(callers.end().await);
        network.start_gateway().await;
    }
    let rows = network.settled().await;
    let by_id: HashMap<&str, &Value> =
        rows.iter().map(|row| (row["request_id"].as_str().unwrap(), row)).collect();
    assert!(seen.len() >= 40);
    for (id, receipt) in &seen {
        assert_eq!(by_id[&**id]["receipt_hash"], *receipt);
        assert_eq!(json!(network.bundle(id).await.receipt.hash(&Domain::default())), *receipt);
    }
    let usage = network.get("/assay/usage").await;
    assert_eq!(usage["usage"][0]["requests"], json!(rows.len()), "each is counted once");
    for worker in &network.workers {
        worker.kill();
        for (nonce, receipt) in receipts(worker) {
            let id = format!("chatcmpl-{}", &nonce.to_string()[2..34]);
            assert_eq!(by_id[&*id]["receipt_hash"], json!(receipt), "{id}");
        }
    }
}

/// An answer that was complete at the worker when the gateway was killed is fetched after the restart, also when the
/// worker was killed as well and comes back later.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_gateway_missed_is_recovered() {
    const ANSWERS: &str = "assay_worker_answers_total{model=\"tiny\"}";
    let mut network = Network::start(1, false, |_| {}).await;
    let body = endless(TEXT, 100, 3, false);
    for kill_worker in [false, true] {
        let known = network.send(TEXT, &body).await.unwrap().whole().await.unwrap();
        // The worker only sees the request once the gateway does not read any more. Whether the request has left the
        // gateway by then cannot be seen from outside, so it is tried until it has.
        let mut recovered = false;
        for _ in 0..20 {
            let worker = &network.workers[0];
            let before = worker.metric(ANSWERS).await.unwrap();
            worker.signal("-STOP");
            let (http, url, body) = (network.http.clone(), network.url.clone(), body.clone());
            let caller =
                tokio::spawn(async move { http.post(format!("{url}{TEXT}")).json(&body).send().await });
            let id = wait("the request is under way", async || {
                let rows = network.get("/assay/receipts?limit=1").await;
                let row = &rows["receipts"][0];
                let sent = row["state"] == "running" && row["attempts"] == json!(1);
                sent.then(|| row["request_id"].as_str().unwrap().to_owned())
            })
            .await;
            network.signal_gateway("-STOP");
            worker.signal("-CONT");
            let done = async {
                wait("the worker is done", async || (worker.metric(ANSWERS).await? > before).then_some(()))
                    .await;
            };
            let done = tokio::time::timeout(std::time::Duration::from_secs(3), done).await.is_ok();
            if !done {
                network.signal_gateway("-CONT");
                assert!(caller.await.unwrap().unwrap().status().is_success());
                continue;
            }
            if kill_worker {
                worker.kill();
            }
            network.kill_gateway();
            caller.await.unwrap().unwrap_err();
            network.start_gateway().await;
            if kill_worker {
                let rows = network.get("/assay/receipts?limit=1").await;
                assert_eq!(
                    rows["receipts"][0]["state"], "running",
                    "nothing is given up while a worker is away"
                );
                network.workers[0].revive().await;
            }
            let rows = network.settled().await;
            assert_eq!((&rows[0]["request_id"], &rows[0]["state"]), (&json!(id), &json!("signed")));
            let bundle = network.bundle(&id).await;
            assert_eq!(bundle.output.text, known.text);
            assert!(!bundle.chunks.is_empty(), "with its chunks");
            recovered = true;
            break;
        }
        assert!(recovered);
    }
}

/// Workers that are killed again and again lose nothing that they signed and callers saw, and every caller is answered.
#[tokio::test(flavor = "multi_thread")]
async fn workers_lose_no_receipt_when_they_are_killed() {
    let network = Network::start(3, false, |config| config.workers.attempts_max = 8).await;
    let callers = Callers::start(&network, true);
    for round in 0..6 {
        callers.progress(3 + round).await;
        let victim = &network.workers[round % 3];
        victim.kill();
        callers.progress(2).await;
        victim.revive().await;
    }
    let seen = callers.end().await;
    network.settled().await;
    let mut bundles = Vec::new();
    for (id, hash) in &seen {
        let bundle = network.bundle(id).await;
        assert_eq!(json!(bundle.receipt.hash(&Domain::default())), *hash);
        bundles.push(bundle);
    }
    for worker in &network.workers {
        worker.kill();
    }
    let logs: HashMap<_, _> =
        network.workers.iter().map(|worker| (worker.member.worker, receipts(worker))).collect();
    for bundle in bundles {
        let receipt = &bundle.receipt;
        let logged = logs[&receipt.statement.worker].get(&receipt.statement.nonce);
        assert_eq!(logged, Some(&receipt.hash(&Domain::default())));
    }
}

/// A worker that serves a weakened model under the honest model's id is caught by a sampled audit, and the record shows
/// where.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_weakened_weights_is_caught() {
    let network = Network::start(2, true, |config| config.sampling.share_new_ppm = 1_000_000).await;
    let cheater = &network.workers[2];
    let body = endless(CHAT, 200, 1, false);
    let answer = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
    assert_eq!(answer.assay["worker"], json!(cheater.member.worker), "the cheapest is asked first");
    assert_eq!(answer.assay["state"], "pending");
    let suspension = wait("the cheater is suspended", async || {
        let suspended = network.record(cheater).await["suspended"].clone();
        suspended.is_object().then_some(suspended)
    })
    .await;
    let id = answer.assay["request_id"].as_str().unwrap();
    assert_eq!(suspension["request_id"], id);
    assert_eq!(suspension["receipt"], answer.assay["receipt_hash"]);
    assert_eq!(suspension["field"], "tokens");
    assert_eq!(suspension["auditors"].as_array().unwrap().len(), 2, "a second auditor confirmed it");
    let bundle = network.bundle(id).await;
    let position = usize::try_from(suspension["position"].as_u64().unwrap()).unwrap();
    assert_eq!(suspension["claimed"], json!(bundle.output.tokens[position]));
    assert_eq!(bundle.audits.len(), 2);
    for audit in &bundle.audits {
        assert_eq!(audit.statement.verdict, Verdict::Differs);
        assert_eq!(json!(audit.statement.expected), suspension["expected"]);
    }
    // What an honest worker says instead has the expected token there.
    let honest = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
    assert_ne!(honest.assay["worker"], json!(cheater.member.worker), "it gets no more requests");
    let honest = network.bundle(honest.assay["request_id"].as_str().unwrap()).await;
    assert_eq!(json!(honest.output.tokens[position]), suspension["expected"]);
    assert_eq!(honest.output.tokens[..position], bundle.output.tokens[..position]);
    let record = network.record(cheater).await;
    assert_eq!((&record["earned"], &record["withheld"]), (&json!("0"), &answer.assay["price"]));
    let incident = network.get(&format!("/assay/incident/{id}")).await;
    assert_eq!(incident["state"], "mismatch");
    let summary = incident["summary"].to_string();
    assert!(summary.contains(&format!("differs in tokens at position {position}")), "{summary}");
    // The honest ones are in good standing.
    for worker in &network.workers[..2] {
        assert!(network.record(worker).await["suspended"].is_null());
    }
}

/// Embeddings: each input has its receipt, the numbers are those of the signed answer, and an auditor repeats them.
#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_signed_and_replayed() {
    let network = Network::start(3, false, |_| {}).await;
    let post = async |body: Value| {
        let url = format!("{}/v1/embeddings", network.url);
        let response = network.http.post(url).json(&body).send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    let inputs: Vec<String> = (0..11).map(|i| format!("the {}", "abc ".repeat(i % 5))).collect();
    let ask = json!({"model": VECTORS, "input": inputs, "assay": {"level": "replayed"}});
    let (status, answer) = post(ask).await;
    assert_eq!(status, 200, "{answer}");
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 11);
    assert_eq!(data[1]["embedding"], data[6]["embedding"], "the same text");
    assert_ne!(data[1]["embedding"], data[2]["embedding"]);
    let (mut tokens, mut hashes) = (0, std::collections::HashSet::new());
    for (index, entry) in data.iter().enumerate() {
        assert_eq!(entry["index"], index);
        let floats: Vec<f64> =
            entry["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(floats.len(), 64);
        assert!((floats.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
        let assay = &entry["assay"];
        assert_eq!((&assay["state"], &assay["audit"]["verdict"]), (&json!("replayed"), &json!("agrees")));
        assert!(hashes.insert(assay["receipt_hash"].clone()), "a receipt of its own");
        let bundle = network.get(assay["bundle_url"].as_str().unwrap()).await;
        let output = &bundle["output"];
        let components: Vec<i32> = serde_json::from_str(output["text"].as_str().unwrap()).unwrap();
        let signed = components.iter().map(|&c| c as f32 / (1u32 << 30) as f32);
        assert!(signed.eq(floats.iter().map(|&float| float as f32)));
        tokens += output["prompt_tokens"].as_u64().unwrap();
    }
    assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));

    let (status, coded) =
        post(json!({"model": VECTORS, "input": "the abc ", "encoding_format": "base64"})).await;
    assert_eq!(status, 200);
    assert_eq!(coded["data"][0]["embedding"].as_str().unwrap().len(), 344, "256 bytes in base64");
    let (status, of_tokens) = post(json!({"model": VECTORS, "input": [2, 39, 4, 3], "dimensions": 64})).await;
    assert_eq!((status, &of_tokens["usage"]["prompt_tokens"]), (200, &json!(4)));

    for (body, param) in [
        (json!({"model": VECTORS, "input": []}), json!("input")),
        (json!({"model": VECTORS, "input": "a", "dimensions": 32}), json!("dimensions")),
        (json!({"model": VECTORS, "input": "a", "encoding_format": "int8"}), json!("encoding_format")),
        (json!({"model": VECTORS, "input": vec!["a"; 257]}), json!("input")),
        (json!({"model": VECTORS, "input": "a", "colour": "red"}), json!("colour")),
        (json!({"model": "tiny", "input": "a"}), json!("model")),
        (json!({"model": VECTORS, "input": "the ".repeat(50)}), Value::Null),
    ] {
        let (status, answer) = post(body.clone()).await;
        assert_eq!(status, 400, "{body}: {answer}");
        if !param.is_null() {
            assert_eq!(answer["error"]["param"], param, "{answer}");
        }
    }
    // An encoder does not chat.
    let chat = json!({"model": VECTORS, "messages": [{"role": "user", "content": "hi"}]});
    let url = format!("{}/v1/chat/completions", network.url);
    let refused = network.http.post(url).json(&chat).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 400);
    assert!(refused.text().await.unwrap().contains("turns a text into a vector"));
}

/// A request for two examples.
fn two(level: Option<&str>) -> Value {
    let input = json!({"name": "input", "shape": [2, 2], "datatype": "FP64", "data": [1.0, 2.5, 10.0, 0.5]});
    let mut ask = json!({"inputs": [input]});
    if let Some(level) = level {
        ask["parameters"] = json!({"assay_level": level});
    }
    ask
}

async fn infer(network: &Network, model: &str, ask: &Value) -> (u16, Value) {
    let url = format!("{}/v2/models/{model}/infer", network.url);
    let response = network.http.post(url).json(ask).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// The gateway has no model of its own here: it fetches those that workers offer, and they prove. One of them proves with another model
/// under this one's id, for half of the price.
#[tokio::test(flavor = "multi_thread")]
async fn workers_prove_models_from_onnx_and_a_proof_of_another_model_is_caught() {
    let network = Network::start(2, true, |_| {}).await;
    let cheater = &network.workers[2];
    let index = network.http.post(format!("{}/v2/repository/index", network.url)).json(&json!({}));
    let index: Value = index.send().await.unwrap().json().await.unwrap();
    let names: Vec<&Value> = index.as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert_eq!(names, [HIDDEN, PRIVATE, SCORES]);
    let (status, plain) = infer(&network, SCORES, &two(None)).await;
    assert_eq!((status, &plain["outputs"][1]["data"]), (200, &json!(["left", "left"])), "{plain}");
    assert!(network.record(cheater).await["suspended"].is_null(), "no worker was asked");

    let (status, answer) = infer(&network, SCORES, &two(Some("proved"))).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"], plain["outputs"]);
    let said = &answer["parameters"];
    assert_eq!((&said["assay_state"], &said["assay_price"]), (&json!("proved"), &json!("60")));
    assert_ne!(said["assay_worker"], json!(cheater.member.worker));
    // The cheapest was asked first, and is out, on nobody's word but its own.
    let record = network.record(cheater).await;
    assert_eq!(
        (&record["suspended"]["field"], &record["suspended"]["auditors"]),
        (&json!("proof"), &json!([]))
    );
    assert_eq!((&record["withheld"], &record["earned"]), (&json!("30"), &json!("0")));
    let id = said["assay_request_id"].as_str().unwrap();
    let incident = network.get(&format!("/assay/incident/{id}")).await;
    assert!(incident["evidence"].to_string().contains("the proof is about another model"), "{incident}");
    assert_eq!(incident["state"], "proved");

    // The receipt proves it to anybody, with the model alone.
    let model = Model::Graph(graph(1));
    let (bundle, expected) = network.evidence(id, Bytes32(model.id())).await;
    let report = check_proved(&bundle, &expected, &model).unwrap();
    assert_eq!(report.state, State::Proved, "{:?}", report.failed().collect::<Vec<_>>());
    let proof = assay_verify::proof_of(&bundle.request, &bundle.output, &model).unwrap();
    assert_eq!(json!(model.graph().decode_outputs(proof.outputs())), answer["outputs"][0]["data"]);
    // An auditor checks proofs as well.
    let audit = network.http.post(format!("{}/assay/audit/{id}", network.url)).json(&json!({}));
    let audit: Value = audit.send().await.unwrap().json().await.unwrap();
    assert_eq!(audit["audits"][0]["audit"]["statement"]["verdict"], "agrees", "{audit}");

    // Requests that make no sense are refused, and nobody is blamed.
    let mut far = two(Some("proved"));
    far["inputs"][0]["data"][0] = json!("x");
    assert_eq!(infer(&network, SCORES, &far).await.0, 400);
    let chat = json!({"model": SCORES, "messages": [{"role": "user", "content": "hi"}]});
    let chat = network.http.post(format!("{}{CHAT}", network.url)).json(&chat).send().await.unwrap();
    assert_eq!(chat.status().as_u16(), 404, "it writes no text");
    assert!(!network.get("/v1/models").await.to_string().contains(SCORES));
    assert!(network.get("/assay/models").await.to_string().contains(SCORES));
}

/// A worker whose proofs tell nothing about the weights makes as many as its key is for, whether or not it is killed between them.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_proves_and_hides_its_weights() {
    let network = Network::start(1, false, |_| {}).await;
    for _ in 0..2 {
        let (status, answer) = infer(&network, HIDDEN, &two(Some("proved"))).await;
        assert_eq!((status, &answer["parameters"]["assay_state"]), (200, &json!("proved")), "{answer}");
        let scores: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
        assert!(scores.iter().zip([8.5, 1.0, 11.5, 10.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{scores:?}");
        let file =
            network.http.get(format!("{}/v2/models/{HIDDEN}/assay", network.url)).send().await.unwrap();
        let model = Model::from_bytes(&file.bytes().await.unwrap()).unwrap();
        let id = answer["parameters"]["assay_request_id"].as_str().unwrap();
        let (bundle, expected) = network.evidence(id, Bytes32(model.id())).await;
        let proof = assay_verify::proof_of(&bundle.request, &bundle.output, &model).unwrap();
        assert!(proof.hides_weights());
        assert_eq!(check_proved(&bundle, &expected, &model).unwrap().state, State::Proved);
    }
    let left = "assay_worker_hiding_proofs_left{model=\"hidden\"}";
    assert_eq!(network.workers[0].metric(left).await, Some(1.0));
    network.workers[0].kill();
    network.workers[0].revive().await;
    assert_eq!(network.workers[0].metric(left).await, Some(1.0));
    assert_eq!(infer(&network, HIDDEN, &two(Some("proved"))).await.0, 200);
    // A fourth would tell the weights. Nobody is blamed, and other models are still proved.
    let (status, answer) = infer(&network, HIDDEN, &two(Some("proved"))).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("which are all made"), "{answer}");
    assert_eq!(infer(&network, PRIVATE, &two(Some("proved"))).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_proves_without_showing_its_weights() {
    let mut network = Network::start(2, false, |_| {}).await;
    let (status, answer) = infer(&network, PRIVATE, &two(None)).await;
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().contains("with its workers only"), "{answer}");
    let (status, answer) = infer(&network, PRIVATE, &two(Some("proved"))).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["parameters"]["assay_worker"], json!(network.workers[0].member.worker));
    let scores: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    assert!(scores.iter().zip([8.5, 1.0, 11.5, 10.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{scores:?}");
    let file = network.http.get(format!("{}/v2/models/{PRIVATE}/assay", network.url)).send().await.unwrap();
    let key = Key::from_bytes(&file.bytes().await.unwrap()).unwrap();
    assert!(key.graph().run(&[0; 2]).is_err(), "the weights are not in it");
    let model = Model::Key(key);
    let id = answer["parameters"]["assay_request_id"].as_str().unwrap();
    let (bundle, expected) = network.evidence(id, Bytes32(model.id())).await;
    assert_eq!(check_proved(&bundle, &expected, &model).unwrap().state, State::Proved);
    // With its only worker away there is no proof, and after a restart of both there is one again.
    network.workers[0].kill();
    assert_eq!(infer(&network, PRIVATE, &two(Some("proved"))).await.0, 503);
    network.kill_gateway();
    network.workers[0].revive().await;
    network.start_gateway().await;
    assert_eq!(infer(&network, PRIVATE, &two(Some("proved"))).await.0, 200);
}
