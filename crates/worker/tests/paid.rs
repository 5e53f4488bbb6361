//! A worker that is paid on a chain: which vouchers it takes. The node is a stand-in that knows one payer's deposit.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use assay_engine::request::Processor;
use assay_model::Artifact;
use assay_receipt::{
    Address, Bundle, Bytes32, Domain, FailureCode, GenerateCall, Key, Request, Signed,
    TRACE_PROOF_ARITHMETIC, Voucher, prompt_commitment, request_commitment,
};
use assay_wallet::system::{System, contract};
use assay_worker::Chain;
use common::{End, Worker, call, client, endless};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What the stand-in says of every payer and signer.
#[derive(Default)]
struct Node {
    deposit: AtomicU64,
    signer_until: AtomicU64,
}

async fn node() -> (String, Arc<Node>) {
    let known = Arc::new(Node::default());
    let selector = |function: &str, arguments: usize| {
        let signature = contract("Deposits").unwrap().function(function, arguments).unwrap();
        format!("0x{}", signature.hash()[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let (deposit_of, signer_until) = (selector("depositOf", 1), selector("signerUntil", 2));
    let shared = known.clone();
    let answer = move |axum::Json(asked): axum::Json<Value>| async move {
        let data = asked["params"][0]["data"].as_str().unwrap_or_default().to_owned();
        let word = |number: &AtomicU64| format!("{:064x}", number.load(Ordering::Relaxed));
        let zero = "0".repeat(64);
        let result = if data.starts_with(&deposit_of) {
            format!("0x{}{zero}{zero}", word(&shared.deposit))
        } else if data.starts_with(&signer_until) {
            format!("0x{}", word(&shared.signer_until))
        } else {
            return axum::Json(
                json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "unknown"}}),
            );
        };
        axum::Json(json!({"jsonrpc": "2.0", "id": 1, "result": result}))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, known)
}

fn domain() -> Domain {
    let contract = System::of_genesis().address("Settlement").unwrap();
    Domain { chain_id: 31415, contract: Address(contract.0.0) }
}

/// A call of the payer with a voucher that `change` has changed.
fn paid(worker: &Worker, payer: &Key, signer: &Key, change: impl FnOnce(&mut Voucher)) -> GenerateCall {
    let mut asked = call(endless(worker.model(), 2));
    (asked.domain, asked.payer) = (domain(), payer.address());
    let commitment = request_commitment(&asked.request, &asked.salt);
    let member = &worker.ready.member;
    let mut voucher =
        Voucher::new(&asked, commitment, Bytes32::ZERO, member.worker, &member.models[0], u64::MAX >> 1);
    change(&mut voucher);
    asked.voucher = Some(Signed::sign(signer, &domain(), voucher));
    asked
}

#[tokio::test]
async fn only_a_voucher_for_this_very_call_is_taken() {
    let (rpc, known) = node().await;
    let worker = Worker::tiny(|config| {
        config.domain = domain();
        config.chain = Some(Chain { rpc, settle_every_s: 3_600 });
    })
    .await;
    let (payer, other) = (Key::from_bytes([6; 32]).unwrap(), Key::from_bytes([8; 32]).unwrap());
    known.deposit.store(u64::MAX, Ordering::Relaxed);

    let good = paid(&worker, &payer, &payer, |_| {});
    assert!(matches!(worker.generate(&good).await.unwrap().end, End::Receipt(..)));
    let refused = async |call: &GenerateCall, word: &str| {
        let refusal = worker.generate(call).await.unwrap_err();
        let message = refusal.body["failure"]["statement"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(word), "{message}");
        refusal.status
    };
    let without = GenerateCall { voucher: None, ..paid(&worker, &payer, &payer, |_| {}) };
    assert_eq!(refused(&without, "voucher").await, 400);
    type Change = fn(&mut Voucher);
    let changes: [Change; 9] = [
        |v| v.payer = Address([1; 20]),
        |v| v.worker = Address([1; 20]),
        |v| v.model = Bytes32([1; 32]),
        |v| v.request = Bytes32([1; 32]),
        |v| v.nonce = Bytes32([1; 32]),
        |v| v.prompt_price -= 1,
        |v| v.completion_price += 1,
        |v| v.cap -= 1,
        |v| v.expires_at_ms = 1,
    ];
    for change in &changes[..8] {
        assert_eq!(refused(&paid(&worker, &payer, &payer, change), "not for this call").await, 400);
    }
    assert_eq!(refused(&paid(&worker, &payer, &payer, changes[8]), "expired").await, 400);

    // The prompt's tokens, where the payer fixes them.
    let unsigned = paid(&worker, &payer, &payer, |_| {});
    let artifact = Artifact::parse(Arc::new(common::tiny(7))).unwrap();
    let tokens = Processor::from_artifact(&artifact).unwrap().prompt(&unsigned.request).unwrap();
    for (tokens, salt, right) in [
        (tokens.clone(), unsigned.salt, true),
        (tokens[1..].to_vec(), unsigned.salt, false),
        (tokens.clone(), Bytes32([6; 32]), false),
        (Vec::new(), unsigned.salt, false),
    ] {
        let prompt = prompt_commitment(&tokens, &salt);
        let call = paid(&worker, &payer, &payer, |v| v.prompt = prompt);
        if right {
            assert!(matches!(worker.generate(&call).await.unwrap().end, End::Receipt(..)));
        } else {
            assert_eq!(refused(&call, "voucher's prompt").await, 400);
        }
    }

    let mut early = call(endless(worker.model(), 2));
    (early.domain, early.payer, early.nonce) = (domain(), payer.address(), Bytes32([0x7f; 32]));
    let commitment = request_commitment(&early.request, &early.salt);
    let offer = &worker.ready.member.models[0];
    let voucher =
        Voucher::new(&early, commitment, Bytes32::ZERO, worker.ready.member.worker, offer, u64::MAX >> 1);
    early.voucher = Some(Signed::sign(&payer, &domain(), voucher));
    assert_eq!(refused(&early, "future").await, 400);

    // Another key may sign when the payer has said so on the chain, and for long enough.
    let by_another = paid(&worker, &payer, &other, |_| {});
    assert_eq!(refused(&by_another, "may not sign").await, 400);
    known.signer_until.store(4_000_000_000, Ordering::Relaxed);
    assert!(worker.generate(&by_another).await.is_ok());
    // Signed for another chain, it names a key that nobody knows.
    known.signer_until.store(0, Ordering::Relaxed);
    let mut elsewhere = paid(&worker, &payer, &payer, |_| {});
    let voucher = elsewhere.voucher.take().unwrap().statement;
    elsewhere.voucher = Some(Signed::sign(&payer, &Domain { chain_id: 1, ..domain() }, voucher));
    assert_eq!(refused(&elsewhere, "may not sign").await, 400);

    // A payer whose deposit covers one call's cap gets one call's worth, not two.
    let poor = Key::from_bytes([9; 32]).unwrap();
    known.deposit.store(u64::try_from(common::CAP).unwrap(), Ordering::Relaxed);
    assert!(worker.generate(&paid(&worker, &poor, &poor, |_| {})).await.is_ok());
    assert_eq!(refused(&paid(&worker, &poor, &poor, |_| {}), "deposit more").await, 402);
    worker.stop().await;
}

#[tokio::test]
async fn a_chain_with_another_contract_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = assay_worker::Config::new(folder.path());
    config.models.push(common::model(&common::artifact(&config, 7), 2, 3));
    config.chain = Some(Chain { rpc: "http://127.0.0.1:1".to_owned(), settle_every_s: 1 });
    let (ready, _) = tokio::sync::oneshot::channel();
    let error = Box::pin(assay_worker::run(config, ready, async {})).await.unwrap_err();
    assert!(error.to_string().contains("domain.contract"), "{error}");
}

/// A key for the tiny model, and the changes of a configuration that offer proofs with it.
fn with_proofs(rpc: String) -> impl FnOnce(&mut assay_worker::Config) {
    move |config| {
        config.domain = domain();
        config.chain = Some(Chain { rpc, settle_every_s: 3_600 });
        let artifact = Artifact::parse(Arc::new(common::tiny(7))).unwrap();
        let key = assay_engine::light::Commitment::make(&artifact, &mut |_, _| {}).unwrap();
        let path = config.data_dir.join("tiny.key");
        std::fs::write(&path, key.to_bytes()).unwrap();
        (config.models[0].proof_key, config.models[0].proof_price) = (Some(path), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_made_first_and_its_receipt_signed_for_a_voucher_that_pays_it() {
    let (rpc, known) = node().await;
    known.deposit.store(u64::MAX, Ordering::Relaxed);
    let worker = Worker::tiny(with_proofs(rpc)).await;
    let payer = Key::from_bytes([6; 32]).unwrap();
    let asked = paid(&worker, &payer, &payer, |_| {});
    let bundle = worker.generate(&asked).await.unwrap().bundle(&asked);
    let offer = worker.ready.member.models[1].clone();
    assert_eq!((offer.prompt_price, offer.arithmetic), (5, TRACE_PROOF_ARITHMETIC));
    let proof_call = |bundle: &Bundle| {
        let mut asked = call(Request::proof(offer.model, bundle));
        (asked.domain, asked.payer) = (domain(), payer.address());
        asked
    };
    // What is no signed answer of the model, or costs too much, is refused before anything is made.
    let refused = async |call: &GenerateCall, word: &str| {
        let refusal = worker.generate(call).await.unwrap_err();
        let message = refusal.body["failure"]["statement"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(word), "{message}");
        refusal.status
    };
    let mut other = proof_call(&bundle);
    other.request = Request::from_text(offer.model, "prove it", 1);
    assert_eq!(refused(&other, "answer's bundle").await, 400);
    let mut changed = bundle.clone();
    changed.output.text.push('!');
    assert_eq!(refused(&proof_call(&changed), "commits to").await, 400);
    let mut forged = bundle.clone();
    forged.receipt.statement.completion_tokens += 1;
    assert_eq!(refused(&proof_call(&forged), "not signed").await, 400);
    let poor = GenerateCall { cap: 1, ..proof_call(&bundle) };
    assert_eq!(refused(&poor, "cap").await, 402);

    let free = client().post(worker.url(&format!("/v1/proof?key={}", offer.model))).json(&bundle);
    assert_eq!(free.send().await.unwrap().status().as_u16(), 402, "what has a price is not given away");

    let asked = proof_call(&bundle);
    let url = worker.url(&format!("/v1/proofs/{}", asked.nonce));
    assert_eq!(client().get(&url).send().await.unwrap().status().as_u16(), 404);
    let member = worker.ready.member.clone();
    let running = tokio::spawn({
        let (url, asked) = (member.url.clone(), asked.clone());
        async move { common::generate(&url, &asked).await }
    });
    let file = loop {
        let found = client().get(&url).send().await.unwrap();
        if found.status().as_u16() == 200 {
            break found.bytes().await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    // There is one under a nonce.
    let mut twin = asked.clone();
    twin.salt.0[0] ^= 1;
    let refused = worker.generate(&twin).await.unwrap().failure();
    assert_eq!(refused.statement.code, FailureCode::DuplicateNonce);
    assert_eq!(client().get(&url).send().await.unwrap().bytes().await.unwrap(), file);

    let commitment = request_commitment(&asked.request, &asked.salt);
    let voucher = |change: fn(&mut Voucher)| {
        let mut voucher =
            Voucher::new(&asked, commitment, Bytes32::ZERO, member.worker, &offer, u64::MAX >> 1);
        change(&mut voucher);
        json!({ "voucher": Signed::sign(&payer, &domain(), voucher) })
    };
    let accept = async |body: Value| client().post(&url).json(&body).send().await.unwrap().status().as_u16();
    assert_eq!(accept(json!({ "voucher": null })).await, 402);
    assert_eq!(accept(voucher(|v| v.prompt_price -= 1)).await, 402);
    assert_eq!(accept(voucher(|v| v.nonce = Bytes32([1; 32]))).await, 402);
    assert_eq!(accept(json!({ "vouchers": 2 })).await, 400);
    assert!(!running.is_finished(), "nothing is signed before it is paid");
    assert_eq!(accept(voucher(|_| {})).await, 200);
    let proof = running.await.unwrap().unwrap().bundle(&asked);
    let receipt = &proof.receipt.statement;
    let positions = bundle.output.prompt_tokens + bundle.output.completion_tokens - 1;
    assert_eq!((receipt.price, receipt.prompt_tokens), (u128::from(5 * positions), positions));
    let hash = Bytes32(Sha256::digest(&file).into());
    assert_eq!(proof.output.named_file(), Some((hash, file.len() as u64)));
    assert_ne!(accept(voucher(|_| {})).await, 200, "it is accepted once");

    // Whoever goes away instead of paying gets no receipt, and no file stays.
    let given_up = proof_call(&bundle);
    let body = serde_json::to_vec(&given_up).unwrap();
    let mut response = client().post(worker.url("/v1/generate")).body(body).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    let statement = loop {
        let (status, said) = worker.get(&format!("/v1/receipts/{}", given_up.nonce)).await;
        if status == 200 {
            break said;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(statement["failure"]["statement"]["code"], "cancelled");
    let left = std::fs::read_dir(worker.folder.path().join("proofs")).unwrap().count();
    assert_eq!(left, 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_key_for_proofs_of_another_model_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = assay_worker::Config::new(folder.path());
    config.models.push(common::model(&common::artifact(&config, 8), 2, 3));
    with_proofs("http://127.0.0.1:1".to_owned())(&mut config);
    let error = common::refused(config).await;
    assert!(error.to_string().contains("key of the model"), "{error}");

    // One of the model's name and of other weights.
    let folder = tempfile::tempdir().unwrap();
    let mut config = assay_worker::Config::new(folder.path());
    config.models.push(common::model(&common::artifact(&config, 7), 2, 3));
    with_proofs("http://127.0.0.1:1".to_owned())(&mut config);
    let path = config.models[0].proof_key.clone().unwrap();
    let mut key = std::fs::read(&path).unwrap();
    let end = key.len() - 32;
    key[end - 1] ^= 1;
    let id = assay_receipt::keccak256(&key[..end]);
    key[end..].copy_from_slice(&id.0);
    std::fs::write(&path, key).unwrap();
    let error = common::refused(config).await;
    assert!(error.to_string().contains("not the key of this model's weights"), "{error}");
}
