//! The worker before another server that speaks the OpenAI protocol.
#![allow(clippy::unwrap_used)]

mod common;

use assay_receipt::{Domain, FailureCode, FinishReason, Message, Prompt, Request};
use assay_verify::{Expected, State, check};
use assay_worker::Forward;
use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use common::*;
use serde_json::{Value, json};
use std::sync::Arc;

async fn upstream(headers: HeaderMap, Json(body): Json<Value>) -> Response {
    assert_eq!(body["model"], "upstream-name");
    assert!(headers.get("authorization").is_none());
    let word = body["messages"][0]["content"].as_str().unwrap();
    let events: &[&str] = match word {
        "fail" => return (StatusCode::INTERNAL_SERVER_ERROR, "secret").into_response(),
        "busy" => return StatusCode::TOO_MANY_REQUESTS.into_response(),
        "bad" => {
            return (StatusCode::BAD_REQUEST, Json(json!({ "error": { "message": "too hot" } })))
                .into_response();
        }
        "break" => &["data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n"],
        _ => &[
            ": comment\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"Hel\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}],\"x\":1}\r\n\r\nda",
            "ta: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n",
            "data: [DONE]\n\n",
        ],
    };
    let events: Vec<_> = events.iter().map(|event| Ok::<_, std::io::Error>(*event)).collect();
    axum::body::Body::from_stream(futures_util::stream::iter(events)).into_response()
}

fn ask(worker: &Worker, word: &str) -> assay_receipt::GenerateCall {
    let mut request = Request::from_text(worker.model(), "", 10);
    request.prompt = Prompt::Chat {
        messages: vec![Message { role: "user".into(), content: word.into(), ..Message::default() }],
        tools: None,
        tool_choice: "none".into(),
        parallel_tool_calls: true,
    };
    call(request)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_answer_is_signed_and_says_that_it_cannot_be_replayed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/v1/chat/completions", post(upstream));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let worker = Worker::start(|config| {
        config.forward.push(Forward {
            name: "far".into(),
            base_url,
            upstream_model: "upstream-name".into(),
            api_key_env: None,
            context: 4096,
            prompt_price: 1,
            completion_price: 10,
        });
    })
    .await;
    let hello = ask(&worker, "hello");
    let bundle = worker.generate(&hello).await.unwrap().bundle(&hello);
    assert_eq!((bundle.output.text.as_str(), bundle.output.finish_reason), ("Hello", FinishReason::Stop));
    assert!(bundle.output.tokens.is_empty());
    let receipt = &bundle.receipt.statement;
    assert_eq!((receipt.arithmetic, receipt.price), (0, 27));
    assert_eq!((receipt.prompt_tokens, receipt.completion_tokens), (7, 2));
    let expected = Expected {
        domain: Domain::default(),
        workers: vec![worker.ready.member.clone()],
        nonce: None,
        model: None,
        payer: None,
        cap: None,
    };
    let report = check(&bundle, &expected);
    assert_eq!(report.state, State::Signed, "{:?}", report.failed().collect::<Vec<_>>());
    assert_eq!(worker.audit(&bundle).await.1["audit"]["statement"]["verdict"], "unable");

    for (word, code, chunks) in [
        ("fail", FailureCode::Upstream, 0),
        ("busy", FailureCode::Upstream, 0),
        ("bad", FailureCode::BadRequest, 0),
        ("break", FailureCode::Upstream, 1),
    ] {
        let call = ask(&worker, word);
        let failure = worker.generate(&call).await.unwrap().failure();
        assert!(failure.is_by_author(&Domain::default()));
        assert_eq!((failure.statement.code, failure.statement.chunks), (code, chunks), "{failure:?}");
        assert!(!failure.statement.message.contains("secret"));
    }
    let mut resumed = ask(&worker, "hello");
    resumed.resume = vec![1];
    assert_eq!(worker.generate(&resumed).await.unwrap_err().status, 400);
    let mut poor = ask(&worker, "hello");
    poor.cap = 26;
    let failure = worker.generate(&poor).await.unwrap().failure();
    assert_eq!(failure.statement.code, FailureCode::CapExceeded);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_there_is_a_signed_failure_and_a_missing_key_stops_the_start() {
    let mut forward = Forward {
        name: "far".into(),
        base_url: "http://127.0.0.1:1/v1".into(),
        upstream_model: "m".into(),
        api_key_env: None,
        context: 4096,
        prompt_price: 0,
        completion_price: 0,
    };
    let worker = Worker::start(|config| config.forward.push(forward.clone())).await;
    let call = ask(&worker, "hello");
    let failure = worker.generate(&call).await.unwrap().failure();
    assert_eq!(failure.statement.code, FailureCode::Upstream);
    let folder = worker.stop().await;

    forward.api_key_env = Some("ASSAY_TEST_KEY_THAT_IS_NOT_SET".into());
    let mut config = assay_worker::Config::new(folder.path());
    config.forward.push(forward);
    let error = refused(config).await;
    assert!(matches!(error, assay_worker::Error::ApiKey { .. }), "{error}");
}

/// Names the base URL of the upstream for [`child`].
const UPSTREAM: &str = "ASSAY_TEST_UPSTREAM";

/// Not a test by itself: a worker in a process that trusts the roots of `SSL_CERT_FILE`. It asks the upstream once.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(base_url) = std::env::var(UPSTREAM) else { return };
    let worker = Worker::start(|config| {
        config.forward.push(Forward {
            name: "far".into(),
            base_url,
            upstream_model: "upstream-name".into(),
            api_key_env: None,
            context: 4096,
            prompt_price: 0,
            completion_price: 0,
        });
    })
    .await;
    let hello = ask(&worker, "hello");
    match worker.generate(&hello).await.unwrap() {
        answer @ Answer { end: End::Receipt(..), .. } => {
            println!("said {}", answer.bundle(&hello).output.text)
        }
        answer => println!("failed {}", answer.failure().statement.message),
    }
}

/// Over HTTPS the upstream's certificate must be for its name and come from a root that the machine trusts.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_over_https_is_checked_against_the_machines_roots() {
    let folder = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer =
            rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, issuer.pem()).unwrap();
        (issuer, path)
    };
    let (trusted, trusted_path) = authority("trusted.pem");
    let (_, other_path) = authority("other.pem");
    let serve = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &trusted).unwrap();
        let mut tls =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
                .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(tls));
        let router = axum::Router::new().route("/v1/chat/completions", post(upstream));
        let server = axum_server::from_tcp_rustls(listener, config).unwrap();
        tokio::spawn(server.serve(router.into_make_service()));
        port
    };
    let (right, wrong) = (serve("localhost"), serve("elsewhere.example"));
    for (port, roots, outcome) in [
        (right, &trusted_path, "said Hello"),
        (right, &other_path, "failed The server behind this worker failed: it cannot be reached."),
        (wrong, &trusted_path, "failed The server behind this worker failed: it cannot be reached."),
    ] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "child", "--nocapture"])
            .env(UPSTREAM, format!("https://localhost:{port}/v1"))
            .env("SSL_CERT_FILE", roots)
            .env_remove("SSL_CERT_DIR")
            .env("NO_PROXY", "localhost");
        let output = tokio::task::spawn_blocking(move || child.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().any(|line| line.contains(outcome)), "{text}");
    }
}
