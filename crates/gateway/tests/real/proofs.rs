//! Proofs of answers in text at a price: made, checked, paid for once and kept, whatever workers do and whoever is killed.

use crate::network::{CHAT, NAME, Network, PROOF_KEY, Worker, endless, wait, write};
use assay_engine::light::{Commitment, prove};
use assay_engine::request::Processor;
use assay_engine::{Config, Generation};
use assay_receipt::{
    Address, AnyStatement, Bundle, Bytes32, Chain, Chunk, Domain, Frame, GenerateCall, Key, Member, Members,
    Offer, Output, Receipt, Signed, TRACE_PROOF_ARITHMETIC, request_commitment,
};
use assay_verify::{State, check_trace_proof};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request for an answer of so many tokens that is proved at this moment.
fn asked(tokens: u32, seed: u64, stream: bool, moment: &str) -> Value {
    let mut body = endless(CHAT, tokens, seed, stream);
    body["assay"] = json!({"level": "proved", "moment": moment});
    body
}

fn key_of(network: &Network) -> Commitment {
    Commitment::from_bytes(&std::fs::read(network.folder.path().join(PROOF_KEY)).unwrap()).unwrap()
}

/// Fetches the proof of an answer and checks it as anybody would.
async fn check(network: &Network, id: &str) -> Vec<u8> {
    let url = format!("{}/assay/receipts/{id}/proof", network.url);
    let response = network.http.get(url).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let proof = response.bytes().await.unwrap().to_vec();
    let (bundle, expected) = network.evidence(id, network.workers[0].member.models[0].model).await;
    let key = Arc::new(key_of(network));
    let processor = Processor::from_artifact(key.artifact()).unwrap();
    let file = Arc::new(proof.clone());
    let report = check_trace_proof(&bundle, &expected, &key, &processor, file, Config::default()).unwrap();
    assert_eq!(report.state, State::Proved, "{:?}", report.failed().collect::<Vec<_>>());
    proof
}

async fn row(network: &Network, id: &str) -> Value {
    let rows = network.get("/assay/receipts?limit=1000").await["receipts"].as_array().unwrap().clone();
    rows.into_iter().find(|row| row["request_id"] == json!(id)).unwrap()
}

/// Waits until an answer is proved in the background.
async fn proved(network: &Network, id: &str) -> Value {
    wait("an answer is proved", async || {
        let row = row(network, id).await;
        (row["state"] == "proved").then_some(row)
    })
    .await
}

/// Receipts for proofs that the workers signed, which is what they are paid by. Kills the workers.
fn paid(network: &Network) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for worker in &network.workers {
        worker.kill();
        for statement in worker.statements() {
            if let AnyStatement::Receipt(receipt) = statement
                && receipt.statement.arithmetic == TRACE_PROOF_ARITHMETIC
            {
                receipts.push(receipt.statement);
            }
        }
    }
    receipts
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_proved_by_policy_paid_once_and_kept() {
    let network = Network::start(2, false, |_| {}).await;
    for (seed, stream, moment) in
        [(1, true, "before_end"), (2, false, "before_first_token"), (3, true, "before_first_token")]
    {
        let body = asked(12, seed, stream, moment);
        let answer = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
        assert_eq!((&answer.assay["state"], &answer.assay["level"]), (&json!("proved"), &json!("proved")));
        let id = answer.assay["request_id"].as_str().unwrap();
        let file = check(&network, id).await;
        let row = row(&network, id).await;
        let proof = &row["proof"];
        assert_eq!(row["state"], "proved");
        assert_eq!(proof["worker"], answer.assay["worker"], "who answered is asked first");
        assert_eq!(proof["key"], json!(key_of(&network).id()));
        let hash = Bytes32(Sha256::digest(&file).into());
        assert_eq!((&proof["sha256"], &proof["bytes"]), (&json!(hash), &json!(file.len())));
        // The receipt for the proof binds it to the answer.
        let (own, expected) =
            network.evidence(proof["request_id"].as_str().unwrap(), key_of(&network).id()).await;
        assert_eq!(assay_verify::check(&own, &expected).state, State::Signed);
        assert_eq!(own.output.named_file(), Some((hash, file.len() as u64)));
        let subject = own.request.proof_subject().unwrap();
        assert_eq!(json!(subject.receipt.hash(&Domain::default())), answer.assay["receipt_hash"]);
        let usage = &answer.usage;
        let positions = usage["total_tokens"].as_u64().unwrap() - 1;
        assert_eq!(own.receipt.statement.price, u128::from(7 * positions));
        assert_eq!(proof["price"], json!((7 * positions).to_string()));
        // One that counts other positions is refused.
        let mut inflated = own.clone();
        inflated.output.prompt_tokens += 1;
        inflated.receipt.statement.prompt_tokens += 1;
        let report = assay_verify::check(&inflated, &expected);
        assert!(report.failed().any(|check| check.detail.contains("number of positions")));
        // Asked for again, it is the one that is there.
        let again = network.http.post(format!("{}/assay/proofs/{id}", network.url));
        let again: Value =
            again.header("content-type", "application/json").send().await.unwrap().json().await.unwrap();
        assert_eq!((&again["state"], &again["proof"]), (&json!("proved"), proof));
    }
    // Afterwards, for an answer that nobody wanted proved then.
    let plain = network.send(CHAT, &endless(CHAT, 10, 4, false)).await.unwrap().whole().await.unwrap();
    let id = plain.assay["request_id"].as_str().unwrap();
    let missing =
        network.http.get(format!("{}/assay/receipts/{id}/proof", network.url)).send().await.unwrap();
    assert_eq!(missing.status().as_u16(), 404);
    let post = || {
        let request = network.http.post(format!("{}/assay/proofs/{id}", network.url));
        async { request.header("content-type", "application/json").send().await.unwrap().status().as_u16() }
    };
    // Two at once are one.
    assert_eq!(tokio::join!(post(), post()), (200, 200));
    check(&network, id).await;
    // One whose file was removed is made again.
    let nonce = network.bundle(id).await.receipt.statement.nonce;
    let kept = network.folder.path().join(format!("gateway/proofs/{nonce}.proof"));
    std::fs::remove_file(&kept).unwrap();
    assert_eq!(post().await, 200);
    assert!(kept.is_file());
    check(&network, id).await;
    // Neither an integer graph's answer nor a proof is proved again.
    let proof = row(&network, id).await["proof"]["request_id"].as_str().unwrap().to_owned();
    let request = network.http.post(format!("{}/assay/proofs/{proof}", network.url));
    let status = request.header("content-type", "application/json").send().await.unwrap().status();
    assert_eq!(status.as_u16(), 400);
    let usage = network.get("/assay/usage").await;
    let usage = usage["usage"].as_array().unwrap().clone();
    let of_proofs = usage.iter().find(|row| row["model"] == json!(format!("{NAME} (proof)"))).unwrap();
    assert_eq!(of_proofs["requests"], json!(5));
    let offers = network.get("/assay/models").await;
    let tiny = offers["models"].as_array().unwrap().iter().find(|row| row["name"] == NAME).unwrap().clone();
    assert_eq!(tiny["provers"][0]["position_price"], "7");
    let key = async |id: &str| {
        network.http.get(format!("{}/assay/proof-keys/{id}", network.url)).send().await.unwrap()
    };
    let file = key(tiny["proof_key"].as_str().unwrap()).await.bytes().await.unwrap();
    assert!(file == key_of(&network).to_bytes()[..]);
    for id in [json!(Bytes32::ZERO).as_str().unwrap(), "x"] {
        assert_eq!(key(id).await.status().as_u16(), 404);
    }
    assert_eq!(paid(&network).len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_proves_falsely_is_suspended_and_the_answer_is_anothers() {
    let network = Network::start(2, true, |_| {}).await;
    let cheater = &network.workers[2];
    let body = asked(12, 1, false, "before_first_token");
    let answer = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
    assert_eq!(answer.assay["state"], "proved");
    assert_ne!(answer.assay["worker"], json!(cheater.member.worker));
    let record = network.record(cheater).await;
    assert_eq!(record["suspended"]["field"], "proof", "{record}");
    let evidence = record["suspended"]["request_id"].as_str().unwrap();
    let incident = network.get(&format!("/assay/incident/{evidence}")).await;
    let text = incident.to_string();
    assert!(text.contains("a proof that is false") && text.contains("proofs/0x"), "{text}");
    let kept = std::fs::read_dir(network.folder.path().join("gateway/proofs")).unwrap();
    let names: Vec<String> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.ends_with(".false")), "the evidence is kept: {names:?}");
    check(&network, answer.assay["request_id"].as_str().unwrap()).await;
    // Nothing false was paid for.
    let paid = paid(&network);
    assert_eq!(paid.len(), 1);
    assert_ne!(paid[0].worker, cheater.member.worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_without_a_key_or_a_prover_is_refused_in_words() {
    let network = Network::start(1, false, |config| config.proof_keys.clear()).await;
    let ask = async |body: &Value| {
        let response = network.http.post(format!("{}{CHAT}", network.url)).json(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, text) = ask(&asked(5, 1, false, "before_end")).await;
    assert!(status == 400 && text.contains("no key of this model"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_proof_is_refused_is_replayed_at_once() {
    let network = Network::start(2, true, |_| {}).await;
    let body = asked(12, 1, false, "sampled");
    let answer = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
    assert_eq!(answer.assay["worker"], json!(network.workers[2].member.worker), "the cheater is cheaper");
    let id = answer.assay["request_id"].as_str().unwrap();
    wait("two auditors have decided", async || {
        (row(&network, id).await["state"] == "mismatch").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_proves_is_kept_and_no_other_is_bought() {
    let network = Network::start(2, false, |config| config.proof_bytes_max = 1_000).await;
    let ask = async |body: &Value| {
        let response = network.http.post(format!("{}{CHAT}", network.url)).json(body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    // Longer than any prover takes, although the model could write it.
    let (status, text) = ask(&asked(2_100, 1, false, "before_end")).await;
    assert!(status == 400 && text["error"]["message"].to_string().contains("lower max_tokens"), "{text}");
    assert_eq!(network.get("/assay/receipts?limit=10").await["receipts"], json!([]), "nobody was asked");

    let (status, text) = ask(&asked(12, 1, false, "before_first_token")).await;
    assert!(status == 422 && text["error"]["code"] == "not_proved", "{status} {text}");
    let rows = network.get("/assay/receipts?limit=10").await["receipts"].as_array().unwrap().clone();
    let is_answer = |row: &&Value| !row["request_id"].as_str().unwrap().starts_with("proof-");
    let answers: Vec<&Value> = rows.iter().filter(is_answer).collect();
    assert_eq!(answers.len(), 1, "{rows:?}");
    let id = answers[0]["request_id"].as_str().unwrap();
    assert_eq!((&answers[0]["state"], &text["error"]["request_id"]), (&json!("signed"), &json!(id)));
    network.bundle(id).await;
    let signed: usize = network
        .workers
        .iter()
        .map(|worker| {
            worker.kill();
            let is_receipt = |statement: &AnyStatement| matches!(statement, AnyStatement::Receipt(_));
            worker.statements().iter().filter(|statement| is_receipt(statement)).count()
        })
        .sum();
    assert_eq!(signed, 1, "one worker answered, once");
}

/// Whoever is killed and whenever, the proof comes, and one worker is paid once.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_proof_is_made_again_and_nothing_is_paid_twice() {
    let mut network = Network::start(1, false, |config| config.workers.breaker_open_ms = 50).await;
    let mut ids = Vec::new();
    for (seed, wait_ms) in [(1, 0), (2, 15), (3, 40), (4, 80), (5, 150), (6, 300)] {
        let body = asked(40, seed, false, "sampled");
        let answer = network.send(CHAT, &body).await.unwrap().whole().await.unwrap();
        assert_eq!(answer.assay["state"], "pending");
        ids.push(answer.assay["request_id"].as_str().unwrap().to_owned());
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        match seed % 3 {
            0 => {
                network.workers[0].kill();
                network.kill_gateway();
                network.workers[0].revive().await;
                network.start_gateway().await;
            }
            1 => {
                network.workers[0].kill();
                network.workers[0].revive().await;
            }
            _ => {
                network.kill_gateway();
                network.start_gateway().await;
            }
        }
        proved(&network, ids.last().unwrap()).await;
    }
    for id in &ids {
        check(&network, id).await;
    }
    network.settled().await;
    let mut paid: Vec<Bytes32> = paid(&network).iter().map(|receipt| receipt.request).collect();
    let made = paid.len();
    paid.dedup();
    assert!(made <= ids.len() && paid.len() == made, "{made} proofs of {} were paid", ids.len());
    // Nothing is left on the worker's disk.
    network.workers[0].revive().await;
    let left = std::fs::read_dir(network.workers[0].folder.join("proofs")).unwrap().count();
    assert_eq!(left, 0);
}

/// What a prover does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    /// The file proves another answer.
    OtherAnswer,
    /// There is no file.
    Absent,
    /// The file never ends.
    Hangs,
    /// The file is not the one that it named.
    OtherFile,
    /// It sends more than it said.
    Longer,
    /// It names more than is accepted.
    Huge,
    /// It names no file.
    Nothing,
    /// A receipt without a file.
    ReceiptFirst,
    /// Nothing, but it does not wait for its payment.
    Leaves,
}

struct Liar {
    key: Key,
    lie: Mutex<Lie>,
    file: Vec<u8>,
    accepted: Mutex<usize>,
}

async fn generate(Shared(liar): Shared<Arc<Liar>>, body: Bytes) -> Response {
    let call: GenerateCall = serde_json::from_slice(&body).unwrap();
    assert_eq!(call.voucher, None);
    let lie = *liar.lie.lock().unwrap();
    let named = match lie {
        Lie::OtherFile => Bytes32([1; 32]),
        _ => Bytes32(Sha256::digest(&liar.file).into()),
    };
    let bytes = match lie {
        Lie::Huge => 1 << 40,
        Lie::Longer => liar.file.len() as u64 - 1,
        _ => liar.file.len() as u64,
    };
    let text = match lie {
        Lie::Nothing => "trust me".to_owned(),
        _ => Output::file(&named, bytes, 1).text,
    };
    let commitment = request_commitment(&call.request, &call.salt);
    let mut chain = Chain::start(&commitment, &call.nonce);
    let chunk = Chunk { index: 0, text, tokens: vec![], logprobs: vec![] };
    let signed = chain.sign(&liar.key, &Domain::default(), chunk).unwrap();
    let frame = match lie {
        Lie::ReceiptFirst => {
            // Of whatever, as long as it comes before the file.
            let subject = call.request.proof_subject().unwrap();
            Frame::Receipt { receipt: subject.receipt, output: Output::file(&named, bytes, 1) }
        }
        _ => Frame::Chunk(signed),
    };
    let line = format!("{}\n", serde_json::to_string(&frame).unwrap());
    let open = stream::unfold(Some(line), |line| async move {
        match line {
            Some(line) => Some((Ok::<_, std::io::Error>(line), None)),
            None => std::future::pending().await,
        }
    });
    Body::from_stream(open).into_response()
}

async fn file(Shared(liar): Shared<Arc<Liar>>, Path(_nonce): Path<String>) -> Response {
    let lie = *liar.lie.lock().unwrap();
    match lie {
        Lie::Absent => StatusCode::NOT_FOUND.into_response(),
        Lie::Hangs => {
            let first = Bytes::from(liar.file[..liar.file.len() / 2].to_vec());
            let open = stream::unfold(Some(first), |piece| async move {
                match piece {
                    Some(piece) => Some((Ok::<_, std::io::Error>(piece), None)),
                    None => std::future::pending().await,
                }
            });
            Body::from_stream(open).into_response()
        }
        _ => liar.file.clone().into_response(),
    }
}

async fn accept(Shared(liar): Shared<Arc<Liar>>) -> Response {
    if *liar.lie.lock().unwrap() == Lie::Leaves {
        return StatusCode::NOT_FOUND.into_response();
    }
    *liar.accepted.lock().unwrap() += 1;
    axum::Json(json!({"accepted": true})).into_response()
}

/// A prover that lies, and how the list of members has it: cheaper than all others.
fn liar(secret: u8, network: &Network, file_bytes: Vec<u8>) -> (Arc<Liar>, Member) {
    let key = Key::from_bytes([secret; 32]).unwrap();
    let certificate = rcgen::generate_simple_self_signed(vec!["worker.test".into()]).unwrap();
    let der = certificate.cert.der().to_vec();
    let private =
        rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone().into()], private)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let offer = Offer {
        model: key_of(network).id(),
        name: NAME.into(),
        prompt_price: 1,
        completion_price: 0,
        arithmetic: TRACE_PROOF_ARITHMETIC,
        context: 2_048,
    };
    let member = Member {
        operator: "a liar".into(),
        worker: key.address(),
        key_epoch: 0,
        url: format!("https://{}", listener.local_addr().unwrap()),
        tls_sha256: Bytes32(Sha256::digest(&der).into()),
        models: vec![offer],
    };
    let lie = Mutex::new(Lie::OtherAnswer);
    let liar = Arc::new(Liar { key, lie, file: file_bytes, accepted: Mutex::default() });
    let app = axum::Router::new()
        .route("/v1/generate", post(generate))
        .route("/v1/proofs/{nonce}", get(file).post(accept))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(Arc::clone(&liar));
    let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(tls));
    tokio::spawn(axum_server::from_tcp_rustls(listener, config).unwrap().serve(app.into_make_service()));
    (liar, member)
}

/// The true proof of an answer.
fn proof_of(network: &Network, bundle: &Bundle) -> Vec<u8> {
    let bytes = std::fs::read(network.folder.path().join("tiny.assay")).unwrap();
    let model = Arc::new(assay_model::Artifact::parse(Arc::new(bytes)).unwrap());
    let processor = Processor::from_artifact(&model).unwrap();
    let generation: Generation = processor.examine(&bundle.request, &bundle.output).unwrap().generation;
    let mut file = Vec::new();
    let (key, tokens) = (key_of(network).id(), &bundle.output.tokens);
    prove(&model, Config::default(), key, &generation, tokens, &mut file, &mut |_, _| {}).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn provers_that_lie_hang_or_bring_nothing_are_passed_over_and_not_paid() {
    let network = Network::start(2, false, |config| {
        config.workers.between_tokens_ms = 700;
        config.workers.breaker_open_ms = 1;
        config.members_poll_ms = 50;
    })
    .await;
    let answer = async |seed| {
        let body = endless(CHAT, 8, seed, false);
        network.send(CHAT, &body).await.unwrap().whole().await.unwrap()
    };
    let other_answer = answer(100).await;
    let other_id = other_answer.assay["request_id"].as_str().unwrap();
    let other = network.bundle(other_id).await;
    let (liar, member) = liar(77, &network, proof_of(&network, &other));
    let list = |serial| {
        let mut members: Vec<Member> = network.workers.iter().map(|worker| worker.member.clone()).collect();
        members.push(member.clone());
        let list = Members { serial, issued_at_s: 1, expires_at_s: 32_503_680_000, members };
        let signed = Signed::sign(&Key::from_bytes([99; 32]).unwrap(), &Domain::default(), list);
        write(&network.folder.path().join("members.json"), &serde_json::to_vec(&signed).unwrap());
    };
    list(2);
    wait("the liar is on the list", async || {
        let rows = network.get("/assay/workers").await;
        (rows["workers"].as_array().unwrap().len() == 3).then_some(())
    })
    .await;
    let standing = async || {
        let rows = network.get("/assay/workers").await;
        let rows = rows["workers"].as_array().unwrap();
        rows.iter().find(|row| row["worker"] == json!(member.worker)).unwrap().clone()
    };
    // Who brought a proof that holds, and was paid too late, is at no fault.
    *liar.lie.lock().unwrap() = Lie::Leaves;
    let own = |worker: &&Worker| json!(worker.member.worker) == other_answer.assay["worker"];
    let own = network.workers.iter().find(own).unwrap();
    own.kill();
    let late = network.http.post(format!("{}/assay/proofs/{other_id}", network.url));
    let late = late.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(late.status().as_u16(), 200);
    own.revive().await;
    let proof = row(&network, other_id).await["proof"].clone();
    assert_eq!(proof["worker"], json!(member.worker));
    let record = standing().await;
    assert_eq!(record["failures"], json!(0), "{record}");
    let mut proofs = 0;
    for (seed, lie, named) in [
        (1, Lie::Absent, "HTTP 404"),
        (2, Lie::Hangs, "too slow"),
        (3, Lie::OtherFile, "not the one that it signed"),
        (4, Lie::Longer, "not the one that it signed"),
        (5, Lie::Huge, "more than"),
        (6, Lie::Nothing, "names no proof"),
        (7, Lie::ReceiptFirst, "receipt does not hold"),
        (8, Lie::OtherAnswer, "a proof that is false"),
    ] {
        *liar.lie.lock().unwrap() = lie;
        let answer = answer(seed).await;
        let id = answer.assay["request_id"].as_str().unwrap();
        // Who answered is asked first, and is away.
        let own = |worker: &&Worker| json!(worker.member.worker) == answer.assay["worker"];
        let own = network.workers.iter().find(own).unwrap();
        own.kill();
        let response = network.http.post(format!("{}/assay/proofs/{id}", network.url));
        let response = response.header("content-type", "application/json").send().await.unwrap();
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        assert_eq!(status, 200, "{lie:?}: {text}");
        own.revive().await;
        check(&network, id).await;
        proofs += 1;
        let proof = row(&network, id).await["proof"]["request_id"].as_str().unwrap().to_owned();
        let incident = network.get(&format!("/assay/incident/{proof}")).await.to_string();
        assert!(incident.contains(named), "{lie:?}: {incident}");
        let record = standing().await;
        assert_eq!(record["suspended"].is_object(), lie == Lie::OtherAnswer, "{lie:?}: {record}");
    }
    assert_eq!(*liar.accepted.lock().unwrap(), 0, "nothing of the liar's was accepted");
    let paid = paid(&network);
    assert!(paid.len() == proofs && paid.iter().all(|receipt| receipt.worker != member.worker));
    assert!(paid.iter().all(|receipt| receipt.payer == Address([5; 20])));
}
