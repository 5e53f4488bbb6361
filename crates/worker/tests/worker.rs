//! The worker as its callers see it: real TLS, real engine, a tiny random model.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use assay_engine::Engine;
use assay_engine::light::{Commitment, Key, Proof, Trace};
use assay_engine::request::{OutputVerdict, Processor, replay_output};
use assay_receipt::{
    AnyStatement, Audit, Bytes32, Domain, Failure, FailureCode, FinishReason, Message, Prompt, Request,
    Signed, Verdict,
};
use assay_verify::{Expected, State, check, check_sequence};
use common::*;
use futures_util::StreamExt as _;

fn expected(worker: &Worker) -> Expected {
    Expected {
        domain: Domain::default(),
        workers: vec![worker.ready.member.clone()],
        nonce: None,
        model: None,
        payer: None,
        cap: None,
    }
}

fn assert_whole(folder: &std::path::Path) -> Vec<AnyStatement> {
    let statements = assay_worker::statements(folder, 0, usize::MAX).unwrap();
    for report in check_sequence(&Domain::default(), &statements) {
        assert_eq!(report.statements, statements.len());
        assert!(report.unsigned.is_empty() && report.forks.is_empty(), "{report:?}");
        assert!(report.broken.is_empty() && report.gaps.is_empty(), "{report:?}");
    }
    statements
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_passes_every_check_and_can_be_fetched_again() {
    let worker = Worker::tiny(|_| {}).await;
    let mut request = endless(worker.model(), 40);
    request.logprobs = Some(3);
    let call = call(request);
    let bundle = worker.generate(&call).await.unwrap().bundle(&call);
    assert_eq!(bundle.output.tokens.len(), 40);
    assert_eq!(bundle.output.finish_reason, FinishReason::Length);
    assert_eq!(bundle.output.logprobs.len(), 40);
    let prompt = u128::from(bundle.output.prompt_tokens);
    assert_eq!(bundle.receipt.statement.price, prompt * 2 + 40 * 3);
    let expected = Expected {
        nonce: Some(call.nonce),
        model: Some(worker.model()),
        payer: Some(call.payer),
        cap: Some(CAP),
        ..expected(&worker)
    };
    let report = check(&bundle, &expected);
    assert_eq!(report.state, State::Signed, "{:?}", report.failed().collect::<Vec<_>>());

    let (status, stored) = worker.get(&format!("/v1/receipts/{}", call.nonce)).await;
    assert_eq!(status, 200);
    assert_eq!(stored["receipt"], serde_json::to_value(&bundle.receipt).unwrap());
    assert_eq!(stored["output"], serde_json::to_value(&bundle.output).unwrap());
    assert_eq!(worker.get(&format!("/v1/receipts/{}", Bytes32([9; 32]))).await.0, 404);
    assert_eq!(worker.get("/v1/receipts/xyz").await.0, 400);

    assert_eq!(worker.get("/health").await, (200, serde_json::json!({ "status": "serving" })));
    let member = serde_json::to_value(&worker.ready.member).unwrap();
    assert_eq!(worker.get("/v1/worker").await, (200, member.clone()));
    let file = std::fs::read(worker.folder.path().join("worker.json")).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&file).unwrap(), member);
    assert_eq!(worker.metric("assay_worker_answers_total{model=\"tiny\"}").await, Some(1.0));
    assert_eq!(worker.metric("assay_worker_completion_tokens_total{model=\"tiny\"}").await, Some(40.0));

    let folder = worker.stop().await;
    assert!(!folder.path().join("worker.json").exists());
    assert_eq!(assert_whole(folder.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_give_the_answers_of_each_alone() {
    let worker = Worker::tiny(|_| {}).await;
    let request = |seed| {
        let mut request = endless(worker.model(), 60);
        request.sampling.seed = seed;
        request
    };
    let alone = futures_util::stream::iter(0..6).then(|seed| {
        let call = call(request(seed));
        let worker = &worker;
        async move { worker.generate(&call).await.unwrap().bundle(&call).output }
    });
    let alone: Vec<_> = alone.collect().await;
    let together = (0..6).map(|seed| {
        let call = call(request(seed));
        let worker = &worker;
        async move { worker.generate(&call).await.unwrap().bundle(&call).output }
    });
    assert_eq!(alone, futures_util::future::join_all(together).await);
    let folder = worker.stop().await;
    assert_eq!(assert_whole(folder.path()).len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_found_again_by_its_tenant_only() {
    let worker = Worker::tiny(|_| {}).await;
    let ask = |tenant: Option<u8>| {
        let mut call = call(Request::from_text(worker.model(), &"It was the best of times. ".repeat(9), 3));
        call.tenant = tenant.map(|byte| Bytes32([byte; 32]));
        let worker = &worker;
        async move {
            let output = worker.generate(&call).await.unwrap().bundle(&call).output;
            (output, worker.metric("assay_worker_prefix_tokens_found_total{model=\"tiny\"}").await)
        }
    };
    let (output, found) = ask(Some(1)).await;
    assert_eq!(found, Some(0.0));
    for tenant in [Some(2), None, None] {
        assert_eq!(ask(tenant).await, (output.clone(), Some(0.0)), "{tenant:?}");
    }
    let again = ask(Some(1)).await;
    assert!(again.0 == output && again.1.unwrap() > 100.0, "{again:?}");
    for line in
        ["kv_pages", "kv_pages_held", "kv_pages_cached", "step_rows_count", "between_tokens_seconds_count"]
    {
        let line = format!("assay_worker_{line}{{model=\"tiny\"}}");
        assert!(worker.metric(&line).await.is_some(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_with_a_stop_string_ends_where_it_should() {
    let worker = Worker::tiny(|_| {}).await;
    let mut request = endless(worker.model(), 200);
    request.prompt = Prompt::Chat {
        messages: vec![Message { role: "user".into(), content: "Hello".into(), ..Message::default() }],
        tools: None,
        tool_choice: "none".into(),
        parallel_tool_calls: true,
    };
    let first = call(request.clone());
    let text = worker.generate(&first).await.unwrap().bundle(&first).output.text;
    let stop: String = text.chars().skip(20).take(2).collect();
    request.stop = vec![stop.clone()];
    let second = call(request);
    let bundle = worker.generate(&second).await.unwrap().bundle(&second);
    assert_eq!(bundle.output.finish_reason, FinishReason::Stop);
    assert_eq!(bundle.output.text, text[..text.find(&stop).unwrap()]);
    assert_eq!(check(&bundle, &expected(&worker)).state, State::Signed);
    let (_, audit) = worker.audit(&bundle).await;
    assert_eq!(audit["audit"]["statement"]["verdict"], "agrees", "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_worker_continues_an_answer_exactly() {
    let (first, second) = tokio::join!(Worker::tiny(|_| {}), Worker::tiny(|_| {}));
    let whole = call(endless(first.model(), 50));
    let whole = first.generate(&whole).await.unwrap().bundle(&whole).output;
    let mut rest = call(endless(second.model(), 50));
    rest.resume = whole.tokens[..20].to_vec();
    let answer = second.generate(&rest).await.unwrap();
    assert!(answer.chunks[0].chunk.tokens.starts_with(&whole.tokens[..20]));
    let bundle = answer.bundle(&rest);
    assert_eq!(bundle.output, whole);
    assert_eq!(check(&bundle, &expected(&second)).state, State::Signed);

    // Tokens that the model itself sampled, but after the answer had ended; and one that it does not have.
    let stop: String = whole.text.chars().skip(5).take(2).collect();
    let mut poisoned = call(endless(second.model(), 50));
    poisoned.request.stop = vec![stop];
    poisoned.resume.clone_from(&whole.tokens);
    let mut unknown = call(endless(second.model(), 50));
    unknown.resume = vec![whole.tokens[0], u32::MAX];
    let mut longer = call(endless(second.model(), 10));
    longer.resume = whole.tokens[..11].to_vec();
    for call in [poisoned, unknown, longer] {
        let refusal = second.generate(&call).await.unwrap_err();
        assert_eq!((refusal.status, refusal.failure().statement.code), (409, FailureCode::ResumeMismatch));
        assert_eq!(refusal.failure().statement.chunks, 0);
    }

    let mut wrong = call(endless(second.model(), 50));
    wrong.resume = whole.tokens[..20].to_vec();
    wrong.resume[10] ^= 1;
    let failure = second.generate(&wrong).await.unwrap().failure();
    assert_eq!(failure.statement.code, FailureCode::ResumeMismatch);
    assert!(failure.is_by_author(&Domain::default()));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_resume_the_answer_goes_on_token_by_token() {
    let worker = Worker::tiny(|_| {}).await;
    let whole = call(endless(worker.model(), 800));
    let tokens = worker.generate(&whole).await.unwrap().bundle(&whole).output.tokens;
    let mut rest = call(endless(worker.model(), 800));
    rest.resume = tokens[..400].to_vec();
    let answer = worker.generate(&rest).await.unwrap();
    assert!(answer.chunks[0].chunk.tokens.starts_with(&tokens[..400]));
    // At most 64 tokens are put into one chunk, however slow its reader is.
    assert!(answer.chunks[1..].iter().all(|signed| signed.chunk.tokens.len() <= 64));
    assert!(answer.chunks.len() > 5, "{} chunks", answer.chunks.len());
    assert_eq!(answer.bundle(&rest).output.tokens, tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_is_spent_for_its_request_only() {
    let worker = Worker::tiny(|_| {}).await;
    let mine = call(endless(worker.model(), 5));
    // Another worker that was sent the same nonce tries to spend it here with a request of its own.
    let mut strange = mine.clone();
    strange.request.sampling.seed += 1;
    let strange = (worker.generate(&strange).await.unwrap().bundle(&strange), strange);
    let own = worker.generate(&mine).await.unwrap().bundle(&mine);
    assert_eq!(worker.generate(&mine).await.unwrap_err().status, 409);
    for bundle in [&own, &strange.0] {
        let path = format!("/v1/receipts/{}?request={}", mine.nonce, bundle.receipt.statement.request);
        assert_eq!(worker.get(&path).await.1["receipt"], serde_json::to_value(&bundle.receipt).unwrap());
    }
    let (_, newest) = worker.get(&format!("/v1/receipts/{}", mine.nonce)).await;
    assert_eq!(newest["receipt"], serde_json::to_value(&own.receipt).unwrap());
    let other = Bytes32([3; 32]);
    assert_eq!(worker.get(&format!("/v1/receipts/{}?request={other}", mine.nonce)).await.0, 404);
    assert_eq!(worker.get(&format!("/v1/receipts/{}?request=x", mine.nonce)).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_that_only_a_replay_finds_are_named_as_the_verifier_names_them() {
    let worker = Worker::tiny(|_| {}).await;
    let mut request = endless(worker.model(), 8);
    request.logprobs = Some(3);
    let call = call(request);
    let honest = worker.generate(&call).await.unwrap().bundle(&call);
    type Change = fn(&mut assay_receipt::Bundle);
    let cases: [(Change, &str, u64); 5] = [
        // An alternative that nobody sampled.
        (|bundle| bundle.output.logprobs[3].top[2].1 -= 1, "logprobs", 3),
        (|bundle| bundle.output.text.push('x'), "text", honest.output.text.len() as u64),
        (|bundle| bundle.output.prompt_tokens += 1, "prompt_tokens", 0),
        // What every honest worker refuses.
        (|bundle| bundle.request.constraint = assay_receipt::Constraint::Regex("(".into()), "request", 0),
        (|bundle| bundle.request.prompt = Prompt::Tokens(vec![u32::MAX]), "request", 0),
    ];
    for (lie, field, position) in cases {
        let forged = forge(&honest, |bundle| {
            lie(bundle);
            bundle.receipt.statement.prompt_tokens = bundle.output.prompt_tokens;
        });
        let (status, body) = worker.audit(&forged).await;
        assert_eq!(status, 200, "{body}");
        let audit: Signed<Audit> = serde_json::from_value(body["audit"].clone()).unwrap();
        let found = audit.statement;
        assert_eq!((found.verdict, &*found.field, found.position), (Verdict::Differs, field, position));
        assert_ne!(found.expected, found.claimed, "{field}");
    }
}

/// The trace that a worker gives for a bundle.
async fn trace(worker: &Worker, bundle: &assay_receipt::Bundle) -> (u16, Vec<u8>) {
    let response = client().post(worker.url("/v1/trace")).json(bundle).send().await.unwrap();
    (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_an_answer_gets_its_trace_and_checks_it_without_the_model() {
    let worker = Worker::tiny(|config| config.kv_bytes = 400 * TOKEN_BYTES).await;
    let artifact = assay_model::Artifact::parse(Arc::new(tiny(7))).unwrap();
    let key = Arc::new(Key::make(&artifact, [3; 32], &mut |_, _| {}).unwrap());
    let processor = Processor::from_artifact(key.artifact()).unwrap();
    let light = |bundle: &assay_receipt::Bundle, trace: Vec<u8>| {
        let trace = Trace::parse(Arc::new(trace), key.artifact())?;
        let mut engine = Engine::checking(&key, trace, assay_engine::Config::default())?;
        replay_output(&mut engine, &processor, &bundle.request, &bundle.output)
    };
    let call_of = |tokens| call(endless(worker.model(), tokens));
    let made = call_of(60);
    let bundle = worker.generate(&made).await.unwrap().bundle(&made);
    let (status, bytes) = trace(&worker, &bundle).await;
    assert_eq!(status, 200);
    assert_eq!(light(&bundle, bytes.clone()), Ok(OutputVerdict::Agrees));
    assert_eq!(trace(&worker, &bundle).await.1, bytes, "the same bytes each time");
    // Another answer's trace shows nothing of this one.
    let other = call_of(30);
    let other = worker.generate(&other).await.unwrap().bundle(&other);
    assert!(matches!(light(&other, bytes), Err(assay_engine::Error::Light(_))));

    // What is refused: another's receipt, one that was changed, a text that is too long, what is no bundle.
    assert_eq!(trace(&worker, &forge(&bundle, |_| {})).await.0, 403);
    let mut changed = bundle.clone();
    changed.output.text.push('x');
    assert_eq!(trace(&worker, &changed).await.0, 400);
    let long = call_of(220);
    let long = worker.generate(&long).await.unwrap().bundle(&long);
    assert_eq!(trace(&worker, &long).await.0, 422);
    let garbage = client().post(worker.url("/v1/trace")).body("{}").send().await.unwrap();
    assert_eq!(garbage.status(), 400);

    // The proof, for everybody: checked with the public commitment.
    let commitment = Arc::new(Commitment::make(&artifact, &mut |_, _| {}).unwrap());
    let prove = async |worker: &Worker, bundle: &assay_receipt::Bundle, key: &str| {
        let url = worker.url(&format!("/v1/proof?key={key}"));
        let response = client().post(url).json(bundle).send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
    };
    let proved = |bundle: &assay_receipt::Bundle, proof: Vec<u8>| {
        let proof = Proof::parse(Arc::new(proof), &commitment)?;
        let prompt = processor.prepare(&bundle.request).unwrap().generation.prompt;
        let text = (&prompt[..], &bundle.output.tokens[..]);
        let mut engine = Engine::verifying(&commitment, proof, text, assay_engine::Config::default())?;
        replay_output(&mut engine, &processor, &bundle.request, &bundle.output)
    };
    let key_id = commitment.id().to_string();
    let (status, bytes) = prove(&worker, &bundle, &key_id).await;
    assert_eq!((status, proved(&bundle, bytes)), (200, Ok(OutputVerdict::Agrees)));
    assert_eq!(prove(&worker, &bundle, "0x12").await.0, 400);
    assert_eq!(prove(&worker, &forge(&bundle, |_| {}), &key_id).await.0, 403);
    let other_key = assay_receipt::Bytes32([7; 32]).to_string();
    let (status, mut bytes) = prove(&worker, &bundle, &other_key).await;
    bytes[16..48].copy_from_slice(&commitment.id().0);
    assert_eq!(status, 200);
    assert!(proved(&bundle, bytes).is_err(), "its challenges are those of another commitment");

    // A worker that served another model has nothing to show.
    let liar = Worker::start(|config| {
        let mut lie = model(&common::artifact(config, 8), 2, 3);
        lie.impersonate = Some(id(tiny(7)));
        config.models.push(lie);
    })
    .await;
    let lie = call(endless(liar.model(), 20));
    let lied = liar.generate(&lie).await.unwrap().bundle(&lie);
    let (status, mut bytes) = trace(&liar, &lied).await;
    assert_eq!(status, 200);
    assert!(matches!(light(&lied, bytes.clone()), Err(assay_engine::Error::Light(_))));
    bytes[24..56].copy_from_slice(&artifact.id().0);
    assert!(matches!(light(&lied, bytes), Err(assay_engine::Error::Light(_))));
    let (status, mut bytes) = prove(&liar, &lied, &key_id).await;
    assert_eq!(status, 200);
    bytes[48 + 24..48 + 56].copy_from_slice(&artifact.id().0);
    assert!(matches!(proved(&lied, bytes), Err(assay_engine::Error::Light(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_change_of_keys_an_answer_is_audited_again() {
    let worker = Worker::tiny(|_| {}).await;
    let call = call(endless(worker.model(), 5));
    let bundle = worker.generate(&call).await.unwrap().bundle(&call);
    let first = worker.audit(&bundle).await.1;
    assert_eq!(worker.audit(&bundle).await.1, first, "kept");
    let folder = worker.stop().await;
    let worker = Worker::start_in(folder, |config| {
        config.models.push(model(&artifact(config, 7), 2, 3));
        config.key_epoch = 1;
    })
    .await;
    let second = worker.audit(&bundle).await.1;
    assert_eq!(second["audit"]["statement"]["verdict"], "agrees");
    assert_eq!(second["audit"]["statement"]["key_epoch"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_cannot_keep_requests_out() {
    let worker = Worker::tiny(|config| {
        config.kv_bytes = 4_000 * TOKEN_BYTES;
        config.audit_patience_ms = 1;
    })
    .await;
    let made = |tokens| {
        let worker = &worker;
        async move {
            let call = call(endless(worker.model(), tokens));
            worker.generate(&call).await.unwrap().bundle(&call)
        }
    };
    let (small, large) = (made(1_000).await, made(2_500).await);
    // The cache has no room for either audit beside this request, and plenty for small requests.
    let long = call(endless(worker.model(), 3_200));
    let response = client().post(worker.url("/v1/generate")).json(&long).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let audits = [&small, &large].map(|bundle| {
        let (url, bundle) = (worker.url("/v1/audit"), bundle.clone());
        tokio::spawn(async move {
            let response = client().post(url).json(&bundle).send().await.unwrap();
            response.json::<serde_json::Value>().await.unwrap()
        })
    });
    tokio::time::sleep(Duration::from_millis(100)).await; // both audits are overdue
    made(3).await;
    let running = worker.get(&format!("/v1/receipts/{}", long.nonce)).await;
    assert_eq!(running.0, 202, "the short request had to wait for the long one: {}", running.1);
    drop(stream);
    for audit in audits {
        assert_eq!(audit.await.unwrap()["audit"]["statement"]["verdict"], "agrees");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_signed_and_in_the_log() {
    let worker = Worker::tiny(|config| config.kv_bytes = 1000 * TOKEN_BYTES).await;
    let good = call(endless(worker.model(), 5));
    worker.generate(&good).await.unwrap().bundle(&good);
    let model = worker.model();

    let mut cases = vec![
        (good.clone(), 409, FailureCode::DuplicateNonce),
        (call(endless(Bytes32([1; 32]), 5)), 404, FailureCode::UnknownModel),
        (call(endless(model, 2000)), 400, FailureCode::ContextExceeded), // fits the context, not the cache
        (call(Request::from_text(model, &"x".repeat(9000), 5)), 400, FailureCode::ContextExceeded),
        (call(Request::from_text(model, "", 5)), 400, FailureCode::BadRequest),
        (call(Request::from_text(model, "a", 0)), 400, FailureCode::BadRequest),
    ];
    let mut domain = call(endless(model, 5));
    domain.domain.chain_id += 1;
    cases.push((domain, 400, FailureCode::BadRequest));
    let mut cap = call(endless(model, 5));
    cap.cap = 20;
    cases.push((cap, 402, FailureCode::CapExceeded));
    let mut resume = call(endless(model, 5));
    resume.resume = vec![5; 6];
    cases.push((resume, 409, FailureCode::ResumeMismatch));
    let count = cases.len();
    for (call, status, code) in cases {
        let refusal = worker.generate(&call).await.unwrap_err();
        assert_eq!(refusal.status, status, "{refusal:?}");
        let failure = refusal.failure();
        assert_eq!(failure.statement.code, code, "{refusal:?}");
        assert_eq!(failure.statement.nonce, call.nonce);
        assert_eq!(failure.statement.request, assay_receipt::request_commitment(&call.request, &call.salt));
        assert_eq!(failure.statement.worker, worker.ready.member.worker);
    }
    // The refused duplicate does not hide the receipt.
    let (_, stored) = worker.get(&format!("/v1/receipts/{}", good.nonce)).await;
    assert!(stored.get("receipt").is_some());

    // A call that cannot be read is refused with a signature when its nonce can be.
    let mut unreadable = serde_json::to_value(call(endless(model, 5))).unwrap();
    unreadable["request"]["max_tokens"] = "many".into();
    let response = client().post(worker.url("/v1/generate")).json(&unreadable).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 400);
    let body: serde_json::Value = response.json().await.unwrap();
    let failure: Signed<Failure> = serde_json::from_value(body["failure"].clone()).unwrap();
    assert!(failure.is_by_author(&Domain::default()));
    assert_eq!(serde_json::json!(failure.statement.nonce), unreadable["nonce"]);
    assert_eq!((failure.statement.code, failure.statement.request), (FailureCode::BadRequest, Bytes32::ZERO));

    // Nothing to sign about: no call, too large, no such path.
    for (body, status) in [("{".to_owned(), 400), ("x".repeat(9 << 20), 413), (String::new(), 400)] {
        let response = client().post(worker.url("/v1/generate")).body(body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
    }
    assert_eq!(worker.get("/v2").await.0, 404);
    let folder = worker.stop().await;
    assert_eq!(assert_whole(folder.path()).len(), count + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_pushes_back_and_a_caller_that_leaves_frees_its_place() {
    let worker = Worker::tiny(|config| {
        config.max_batch = 1;
        config.queue = 0;
    })
    .await;
    let long = call(endless(worker.model(), 4000));
    let response = client().post(worker.url("/v1/generate")).json(&long).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();

    let refused = call(endless(worker.model(), 1));
    let refusal = worker.generate(&refused).await.unwrap_err();
    assert_eq!((refusal.status, refusal.failure().statement.code), (429, FailureCode::Busy));
    assert!(refusal.retry_after.unwrap() >= 1 && refusal.failure().statement.retry_after_ms > 0);
    // The nonce that runs is refused as a duplicate, not as one too many.
    assert_eq!(worker.generate(&long).await.unwrap_err().status, 409);

    drop(stream);
    // A refusal does not spend the nonce: the same call goes through once there is room.
    let mut served = worker.generate(&refused).await;
    for _ in 0..400 {
        if served.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
        served = worker.generate(&refused).await;
    }
    served.unwrap().bundle(&refused);
    let (_, stored) = worker.get(&format!("/v1/receipts/{}", long.nonce)).await;
    assert_eq!(stored["failure"]["statement"]["code"], "cancelled", "{stored}");
    assert!(stored["failure"]["statement"]["chunks"].as_u64().unwrap() > 0);
    while worker.metric("assay_worker_running_requests{model=\"tiny\"}").await != Some(0.0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_whole(worker.stop().await.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_is_cut_off() {
    let worker = Worker::tiny(|config| config.reader_deadline_ms = 200).await;
    let mut request = endless(worker.model(), 2500);
    request.logprobs = Some(20);
    let slow = call(request);
    let response = builder()
        .http2_initial_stream_window_size(65_535)
        .build()
        .unwrap()
        .post(worker.url("/v1/generate"))
        .json(&slow)
        .send()
        .await
        .unwrap();
    let mut failure = serde_json::Value::Null;
    for _ in 0..600 {
        let stored = worker.get(&format!("/v1/receipts/{}", slow.nonce)).await.1;
        assert!(stored.get("receipt").is_none(), "it was answered to the end");
        if let Some(found) = stored.get("failure") {
            failure = found["statement"].clone();
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(failure["code"], "cancelled", "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("slowly"));
    drop(response);
    assert_whole(worker.stop().await.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_hold_for_answers_and_for_bodies() {
    // No time at all, so that the outcome does not depend on how fast this machine is.
    let worker = Worker::tiny(|config| {
        config.request_deadline_ms = 0;
        config.body_deadline_ms = 2_000;
    })
    .await;
    let long = call(endless(worker.model(), 4000));
    let failure = worker.generate(&long).await.unwrap().failure();
    assert_eq!(failure.statement.code, FailureCode::Cancelled);
    assert!(failure.statement.message.contains("longer than this worker allows"));

    let trickle = futures_util::stream::once(async { Ok::<_, std::io::Error>("{") });
    let trickle = trickle.chain(futures_util::stream::pending());
    let body = reqwest::Body::wrap_stream(trickle);
    let response = client().post(worker.url("/v1/generate")).body(body).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 408);
    assert_whole(worker.stop().await.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_arrive_at_once_share_a_bounded_memory() {
    let worker = Worker::tiny(|_| {}).await;
    // Each of these announces nothing, so it takes the room of a whole bundle: 33 of 256 MiB.
    let hold = || {
        let trickle = futures_util::stream::once(async { Ok::<_, std::io::Error>("{") });
        let body = reqwest::Body::wrap_stream(trickle.chain(futures_util::stream::pending()));
        tokio::spawn(client().post(worker.url("/v1/audit")).body(body).send())
    };
    let mut held: Vec<_> = (0..7).map(|_| hold()).collect();
    let mut status = 0;
    for _ in 0..200 {
        let body = "x".repeat(1_000);
        let response = client()
            .post(worker.url("/v1/audit"))
            .body(reqwest::Body::wrap_stream(futures_util::stream::once(async {
                Ok::<_, std::io::Error>(body)
            })))
            .send()
            .await
            .unwrap();
        status = response.status().as_u16();
        if status == 503 {
            assert!(response.headers().contains_key("retry-after"));
            break;
        }
        held.push(hold()); // this very request may have taken the place of one of them
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(status, 503);
    // A small call that says how small it is still gets through.
    let small = call(endless(worker.model(), 3));
    worker.generate(&small).await.unwrap().bundle(&small);
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_what_runs_and_refuses_the_rest() {
    let mut worker = Worker::tiny(|_| {}).await;
    let long = call(endless(worker.model(), 2000));
    let url = worker.ready.member.url.clone();
    let response = client().post(format!("{url}/v1/generate")).json(&long).send().await.unwrap();
    let mut stream = response.bytes_stream();
    let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
    worker.begin_stop();
    let mut refused = None;
    for _ in 0..400 {
        match worker.generate(&call(endless(worker.model(), 1))).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await, // not yet
            Err(refusal) => {
                refused = Some(refusal);
                break;
            }
        }
    }
    let refused = refused.unwrap();
    assert_eq!((refused.status, refused.failure().statement.code), (503, FailureCode::Draining));
    assert!(refused.retry_after.is_some());
    assert_eq!(worker.get("/health").await.0, 503);
    while let Some(Ok(piece)) = stream.next().await {
        bytes.extend_from_slice(&piece);
    }
    let last = bytes.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap();
    assert!(last.starts_with(b"{\"receipt\""));
    let folder = worker.ended().await;
    let statements = assert_whole(folder.path());
    assert!(
        statements.iter().any(
            |one| matches!(one, AnyStatement::Receipt(receipt) if receipt.statement.nonce == long.nonce)
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_signs_off_what_takes_too_long() {
    let mut worker = Worker::tiny(|config| config.drain_deadline_ms = 1).await;
    let long = call(endless(worker.model(), 4000));
    let url = worker.ready.member.url.clone();
    let running = tokio::spawn({
        let long = long.clone();
        async move { generate(&url, &long).await }
    });
    while worker.metric("assay_worker_running_requests{model=\"tiny\"}").await != Some(1.0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.begin_stop();
    let failure = running.await.unwrap().unwrap().failure();
    assert_eq!(failure.statement.code, FailureCode::Draining);
    assert!(failure.is_by_author(&Domain::default()));
    assert_whole(worker.ended().await.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_auditor_agrees_with_honest_workers_and_catches_a_liar() {
    let auditor = Worker::tiny(|config| config.operator = "second".to_owned()).await;
    let honest = Worker::tiny(|_| {}).await;
    let liar = Worker::start(|config| {
        let mut lie = model(&artifact(config, 8), 2, 3);
        lie.impersonate = Some(id(tiny(7)));
        config.models.push(lie);
    })
    .await;
    assert_eq!(liar.model(), auditor.model());

    let mut request = endless(honest.model(), 60);
    request.logprobs = Some(2);
    let truth = call(request.clone());
    let bundle = honest.generate(&truth).await.unwrap().bundle(&truth);
    let (status, body) = auditor.audit(&bundle).await;
    assert_eq!(status, 200, "{body}");
    let audit: Signed<Audit> = serde_json::from_value(body["audit"].clone()).unwrap();
    assert!(audit.is_by_author(&Domain::default()));
    assert_eq!(audit.statement.verdict, Verdict::Agrees, "{body}");
    assert_eq!(audit.statement.receipt, bundle.receipt.hash(&Domain::default()));
    // The second time the stored audit comes back.
    assert_eq!(auditor.audit(&bundle).await.1, body);
    let mut audited = bundle.clone();
    audited.audits.push(audit);
    let mut expected = expected(&honest);
    expected.workers.push(auditor.ready.member.clone());
    let report = check(&audited, &expected);
    assert!(report.failed().next().is_none(), "{:?}", report.failed().collect::<Vec<_>>());

    let lie = call(request);
    let lied = liar.generate(&lie).await.unwrap().bundle(&lie);
    assert_ne!(lied.output.tokens, bundle.output.tokens);
    let (_, body) = auditor.audit(&lied).await;
    let audit: Signed<Audit> = serde_json::from_value(body["audit"].clone()).unwrap();
    assert_eq!((audit.statement.verdict, audit.statement.field.as_str()), (Verdict::Differs, "tokens"));
    let position = audit.statement.position as usize;
    assert_eq!(audit.statement.claimed, u64::from(lied.output.tokens[position]));
    assert_ne!(audit.statement.claimed, audit.statement.expected);

    // A bundle that its worker did not sign is refused: nobody is accused with it.
    let mut tampered = Vec::new();
    for change in [
        (|bundle: &mut assay_receipt::Bundle| bundle.output.text.push('x')) as fn(&mut assay_receipt::Bundle),
        |bundle| bundle.output.tokens[0] ^= 1,
        |bundle| bundle.request.sampling.seed += 1,
        |bundle| bundle.salt.0[0] ^= 1,
        |bundle| bundle.receipt.statement.price += 1,
        |bundle| bundle.receipt.signature.0[3] ^= 1,
        |bundle| bundle.domain.chain_id += 1,
    ] {
        let mut copy = bundle.clone();
        change(&mut copy);
        tampered.push(copy);
    }
    for bundle in tampered {
        let (status, body) = auditor.audit(&bundle).await;
        assert_eq!((status, body["error"]["code"].as_str()), (400, Some("bad_bundle")), "{body}");
    }

    // Another model's answers cannot be replayed here.
    let other = Worker::start(|config| config.models.push(model(&artifact(config, 9), 2, 3))).await;
    let foreign = call(endless(other.model(), 5));
    let foreign = other.generate(&foreign).await.unwrap().bundle(&foreign);
    let (_, body) = auditor.audit(&foreign).await;
    assert_eq!(body["audit"]["statement"]["verdict"], "unable");

    assert_eq!(auditor.metric("assay_worker_audits_total{verdict=\"differs\"}").await, Some(1.0));
    let folder = auditor.stop().await;
    assert_eq!(assert_whole(folder.path()).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_is_not_starved_by_requests() {
    let worker = Worker::tiny(|config| config.audit_patience_ms = 50).await;
    let first = call(endless(worker.model(), 30));
    let bundle = worker.generate(&first).await.unwrap().bundle(&first);
    let long = call(endless(worker.model(), 4000));
    let response = client().post(worker.url("/v1/generate")).json(&long).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let (_, body) = worker.audit(&bundle).await;
    assert_eq!(body["audit"]["statement"]["verdict"], "agrees");
    // Its statement came before the one of the request that was already running.
    drop(stream);
    let statements = assert_whole(worker.stop().await.path());
    assert!(matches!(statements[1], AnyStatement::Audit(_)), "{statements:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_the_announced_one() {
    use sha2::Digest as _;
    let worker = Worker::tiny(|_| {}).await;
    let certificate = std::fs::read(worker.folder.path().join("tls.der")).unwrap();
    let hash: [u8; 32] = sha2::Sha256::digest(&certificate).into();
    assert_eq!(worker.ready.member.tls_sha256, Bytes32(hash));
    // A client that trusts this certificate and no other gets through with full checks of name and chain.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .add_root_certificate(reqwest::Certificate::from_der(&certificate).unwrap())
        .no_proxy()
        .build()
        .unwrap();
    let url = worker.url("/health");
    assert_eq!(client.get(url).send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn a_worker_that_cannot_serve_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = assay_worker::Config::new(folder.path());
    config.models.push(model(&folder.path().join("missing"), 0, 0));
    let error = refused(config.clone()).await;
    assert!(matches!(error, assay_worker::Error::Io { .. }), "{error}");
    // One flipped bit in the weights is found before the first request.
    let mut bytes = tiny(7);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(folder.path().join("missing"), bytes).unwrap();
    let error = refused(config).await;
    assert!(matches!(error, assay_worker::Error::Model { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_without_room_refuses_with_a_signature() {
    let auditor = Worker::tiny(|config| config.audits = 0).await;
    let honest = Worker::tiny(|_| {}).await;
    let call = call(endless(honest.model(), 5));
    let bundle = honest.generate(&call).await.unwrap().bundle(&call);
    let (status, body) = auditor.audit(&bundle).await;
    assert_eq!(status, 429, "{body}");
    let failure: Signed<Failure> = serde_json::from_value(body["failure"].clone()).unwrap();
    assert!(failure.is_by_author(&Domain::default()));
    let (about, receipt) = (&failure.statement, &bundle.receipt.statement);
    assert_eq!((about.code, about.worker), (FailureCode::Busy, auditor.ready.member.worker));
    assert_eq!((about.nonce, about.request, about.payer), (receipt.nonce, receipt.request, receipt.payer));
    // It says nothing about how the auditor itself answered the request, which it never saw.
    assert_eq!(auditor.get(&format!("/v1/receipts/{}", call.nonce)).await.0, 404);
    assert_eq!(assert_whole(auditor.stop().await.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_and_a_closed_one_makes_room() {
    let worker = Worker::tiny(|config| config.connections = 2).await;
    // Each client keeps one connection.
    let (first, second) = (client(), client());
    let health = worker.url("/health");
    first.get(&health).send().await.unwrap();
    second.get(&health).send().await.unwrap();
    client().get(&health).send().await.unwrap_err();
    first.get(&health).send().await.unwrap();
    drop(first);
    // The worker sees the end of a connection a moment later.
    let mut served = false;
    for _ in 0..1_000 {
        served = client().get(&health).send().await.is_ok();
        if served {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_runs_is_not_settled_yet() {
    let worker = Worker::tiny(|_| {}).await;
    let long = call(endless(worker.model(), 4000));
    let response = client().post(worker.url("/v1/generate")).json(&long).send().await.unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let path = format!("/v1/receipts/{}", long.nonce);
    assert_eq!(worker.get(&path).await, (202, serde_json::json!({ "running": true })));
    drop(stream);
    while worker.get(&path).await.0 == 202 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(worker.get(&path).await.1["failure"]["statement"]["code"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_cannot_be_followed_is_the_requests_fault() {
    let worker = Worker::tiny(|_| {}).await;
    // Ambiguous, so that the work for a mask grows with the text until it is over the limit.
    let rules: String = (0..60).map(|n| format!("r{n}: \"a\" start start | \"a\" start | \"a\"\n")).collect();
    let names = (0..60).map(|n| format!("r{n}")).collect::<Vec<_>>().join(" | ");
    let mut request = endless(worker.model(), 400);
    request.constraint = assay_receipt::Constraint::Grammar(format!("start: {names}\n{rules}"));
    let failure = worker.generate(&call(request)).await.unwrap().failure();
    assert_eq!(failure.statement.code, FailureCode::BadRequest, "{}", failure.statement.message);
    assert!(failure.statement.message.contains("constraint"), "{}", failure.statement.message);
    worker.stop().await;
}

/// An embedding passes every check, an auditor repeats it, and finds the one number that is not the model's.
#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_audited_like_answers() {
    let files = assay_model::testing::tiny_encoder(3);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let bytes = assay_model::import_safetensors(&files, &mut |_, _| {}).unwrap();
    let model = id(bytes.clone());
    let serve = |config: &mut assay_worker::Config| {
        let path = config.data_dir.join("encoder.assay");
        std::fs::write(&path, &bytes).unwrap();
        config.models = vec![self::model(&path, 3, 5)];
    };
    let (worker, auditor) = (Worker::start(serve).await, Worker::start(serve).await);
    let call = call(Request::embedding(model, Prompt::Text("the abc".into())));
    let bundle = worker.generate(&call).await.unwrap().bundle(&call);
    let report = check(&bundle, &expected(&worker));
    assert_eq!(report.state, State::Signed, "{report:?}");
    assert_eq!(bundle.output.components().unwrap().len(), 64);
    assert_eq!(bundle.receipt.statement.price, 3 * 6);

    // One component that is off by one, and one token too many.
    let at = bundle.output.text.len() - 2;
    let digit = bundle.output.text.as_bytes()[at];
    let other = if digit == b'1' { "2" } else { "1" };
    let lie = forge(&bundle, |bundle| bundle.output.text.replace_range(at..=at, other));
    let longer = forge(&bundle, |bundle| {
        bundle.output.prompt_tokens += 1;
        bundle.receipt.statement.prompt_tokens += 1;
    });
    for (bundle, verdict, field, position) in [
        (&bundle, Verdict::Agrees, "", 0),
        (&lie, Verdict::Differs, "text", at as u64),
        (&longer, Verdict::Differs, "prompt_tokens", 0),
    ] {
        let (status, body) = auditor.audit(bundle).await;
        assert_eq!(status, 200, "{body}");
        let audit: Signed<Audit> = serde_json::from_value(body["audit"].clone()).unwrap();
        let found = audit.statement;
        assert_eq!((found.verdict, &*found.field, found.position), (verdict, field, position));
    }
}
