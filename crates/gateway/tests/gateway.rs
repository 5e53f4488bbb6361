//! The gateway in front of workers that misbehave.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod net;

use assay_gateway::{ApiKey, Level, Moment};
use assay_receipt::{Bundle, Message, Prompt, Request, Sampling};
use assay_verify::{Expected, State};
use net::{Fault, MODEL, NAME, Net, chat, domain, honest, joined, read_until};
use serde_json::{Value, json};
use std::time::Duration;

/// The request that the gateway makes of [`chat`], but for the time, which the toy model must not depend on.
fn honest_text(now_unix_s: u64, max_tokens: u32) -> String {
    let request = Request {
        model: MODEL,
        prompt: Prompt::Chat {
            messages: vec![Message { role: "user".into(), content: "hello".into(), ..Message::default() }],
            tools: None,
            tool_choice: "none".into(),
            parallel_tool_calls: true,
        },
        max_tokens,
        stop: vec![],
        sampling: Sampling { seed: 7, ..Sampling::default() },
        constraint: Default::default(),
        logprobs: None,
        now_unix_s,
    };
    honest(&request).text
}

async fn bundle_of(net: &Net, body: &Value) -> Bundle {
    let id = body["assay"]["request_id"].as_str().unwrap();
    let (status, bundle) = net.get(&format!("/assay/receipts/{id}")).await;
    assert_eq!(status, 200, "{bundle}");
    Bundle::from_json(bundle.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_chat_is_answered_with_a_receipt_that_holds() {
    let net = Net::start(&[Fault::None, Fault::None], |_| {}).await;
    let response = net
        .http
        .post(format!("{}/v1/chat/completions", net.url))
        .json(&chat(&json!({})))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let headers = response.headers().clone();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["object"], "chat.completion");
    let created = body["created"].as_u64().unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], json!(honest_text(created, 1_024)));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"], json!({"prompt_tokens": 7, "completion_tokens": 13, "total_tokens": 20}));
    assert_eq!(body["assay"]["state"], "signed");
    assert_eq!(body["assay"]["worker"], json!(net.workers[0].address()));
    assert_eq!(body["assay"]["seed"], 7);
    assert_eq!(headers["x-assay-receipt"], body["assay"]["receipt_hash"].as_str().unwrap());
    assert_eq!(headers["x-request-id"], body["id"].as_str().unwrap());
    let bundle = bundle_of(&net, &body).await;
    let members = net.workers.iter().map(|worker| worker.member.lock().unwrap().clone()).collect();
    let expected = Expected {
        domain: domain(),
        workers: members,
        nonce: None,
        model: Some(MODEL),
        payer: Some(assay_receipt::Address([5; 20])),
        cap: None,
    };
    assert_eq!(assay_verify::check(&bundle, &expected).state, State::Signed);
    let (_, list) = net.get("/assay/receipts?limit=5").await;
    assert_eq!(list["receipts"][0]["request_id"], body["id"]);
    let (_, usage) = net.get("/assay/usage").await;
    assert_eq!(usage["usage"][0]["completion_tokens"], 13);
    assert_eq!(usage["usage"][0]["price"], "20");
    assert_eq!(net.record(0).await["served"], 1);
}

#[tokio::test]
async fn a_stream_has_role_text_finish_usage_and_end() {
    let net = Net::start(&[Fault::None], |_| {}).await;
    let body = chat(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let response =
        net.http.post(format!("{}/v1/chat/completions", net.url)).json(&body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    let events = net::events(&text);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let created = events[0]["created"].as_u64().unwrap();
    assert_eq!(joined(&events), honest_text(created, 1_024));
    let finish = &events[events.len() - 2];
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(finish["assay"]["state"], "signed");
    assert_eq!(finish["usage"], Value::Null);
    let usage = &events[events.len() - 1];
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 13);
    bundle_of(&net, finish).await;
}

/// Whatever the first worker does wrong, the caller sees the text of an undisturbed run, and the fault is on record.
#[tokio::test]
async fn every_fault_leads_to_another_worker_without_the_caller_noticing() {
    for fault in [
        Fault::Dies(0),
        Fault::Dies(5),
        Fault::Silent(0),
        Fault::Silent(4),
        Fault::NoReceipt(0),
        Fault::NoReceipt(6),
        Fault::WrongSignature(0),
        Fault::WrongSignature(3),
        Fault::WrongLink(3),
        Fault::DropsChunk(2),
        Fault::Garbage(3),
        Fault::EndlessLine(0),
        Fault::EndlessLine(3),
        Fault::Fails(0),
        Fault::Fails(4),
        Fault::WrongReceiptSignature,
        Fault::OldReceipt,
        Fault::InflatesCompletion,
        Fault::Overcharges,
        Fault::OtherOutput,
        Fault::UnsignedRefusal,
        Fault::SlowStart(60_000),
    ] {
        let patience = if matches!(fault, Fault::SlowStart(_) | Fault::Silent(_)) { 2_000 } else { 60_000 };
        let net = Net::start(&[fault, Fault::None], |config| {
            // Long enough for the healthy worker on a busy machine; the sick one takes for ever.
            config.workers.first_token_ms = patience;
            config.workers.between_tokens_ms = patience;
        })
        .await;
        for streams in [false, true] {
            net.workers[0].set(fault);
            let body = chat(&json!({"stream": streams}));
            let (text, end) = if streams {
                let events = net.stream("/v1/chat/completions", &body).await;
                (joined(&events), events.last().unwrap().clone())
            } else {
                let (status, body) = net.post("/v1/chat/completions", &body).await;
                assert_eq!(status, 200, "{fault:?}: {body}");
                (body["choices"][0]["message"]["content"].as_str().unwrap().to_owned(), body)
            };
            let created = end["created"].as_u64().unwrap();
            assert_eq!(text, honest_text(created, 1_024), "{fault:?}, streams {streams}");
            assert_eq!(end["choices"][0]["finish_reason"], "stop", "{fault:?}");
            assert_eq!(end["assay"]["worker"], json!(net.workers[1].address()), "{fault:?}");
            assert_eq!(end["assay"]["attempts"], 2, "{fault:?}");
            let bundle = bundle_of(&net, &end).await;
            assert_eq!(bundle.output.text, text, "the receipt covers the whole answer");
            let id = end["assay"]["request_id"].as_str().unwrap();
            let (_, incident) = net.get(&format!("/assay/incident/{id}")).await;
            assert!(!incident["evidence"].as_array().unwrap().is_empty(), "{fault:?}");
            assert_eq!(net.record(0).await["failures"], json!(1 + u8::from(streams)), "{fault:?}");
            if let Fault::Dies(chunks @ 1..) | Fault::Fails(chunks @ 1..) = fault {
                let kept = incident["evidence"].as_array().unwrap();
                let kept = kept.iter().find(|item| item["kind"] == "chunks").unwrap();
                assert_eq!(kept["chunks"].as_array().unwrap().len() as u64, chunks, "{fault:?}");
                let resumed = net.workers[1].calls.lock().unwrap().last().unwrap().resume.len() as u64;
                assert_eq!(resumed, chunks, "{fault:?}");
            }
        }
    }
}

/// A worker that goes on beyond the limit of the request is cut off, and the caller gets the honest answer.
#[tokio::test]
async fn a_worker_that_never_ends_is_cut_off() {
    let net = Net::start(&[Fault::EndlessTokens(0), Fault::None], |_| {}).await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({"max_tokens": 40}))).await;
    assert_eq!(status, 200, "{body}");
    let created = body["created"].as_u64().unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], json!(honest_text(created, 40)));
    assert_eq!(body["assay"]["worker"], json!(net.workers[1].address()));
    assert!(net.record(0).await["last_fault"].as_str().unwrap().contains("more than 40 tokens"));
}

#[tokio::test]
async fn several_workers_may_fail_in_one_stream() {
    let net = Net::start(&[Fault::Dies(3), Fault::Dies(3), Fault::Dies(3), Fault::None], |_| {}).await;
    let events = net.stream("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    let created = events[0]["created"].as_u64().unwrap();
    assert_eq!(joined(&events), honest_text(created, 1_024));
}

#[tokio::test]
async fn a_worker_that_resumes_with_other_text_is_passed_over() {
    let net = Net::start(&[Fault::Dies(4), Fault::OtherTextOnResume, Fault::None], |_| {}).await;
    // Dearer than the liar, so that the liar is asked second.
    net.workers[2].member.lock().unwrap().models[0].completion_price = 100_000;
    net.set_members(2, &net.workers).await;
    let events = net.stream("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    let created = events[0]["created"].as_u64().unwrap();
    assert_eq!(joined(&events), honest_text(created, 1_024));
    assert!(net.record(1).await["last_fault"].as_str().unwrap().contains("continue"));
}

/// Text that a caller saw and nobody signed an answer about never looks like an answer, and who sent it is at fault.
#[tokio::test]
async fn text_that_no_receipt_covers_is_never_an_answer() {
    for fault in [Fault::AddsText(12), Fault::AddsText(4), Fault::OtherLogprobs(12), Fault::OtherLogprobs(2)]
    {
        let net = Net::start(&[fault, Fault::None, Fault::None], |_| {}).await;
        for level in ["signed", "replayed"] {
            net.workers[0].set(fault);
            let policy = json!({"level": level});
            let body = chat(&json!({"stream": true, "logprobs": true, "assay": policy}));
            let events = net.stream("/v1/chat/completions", &body).await;
            let last = events.last().unwrap();
            assert_eq!(last["error"]["code"], "verification_failed", "{fault:?}, {level}: {last}");
            assert!(events.iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
            let id = last["error"]["request_id"].as_str().unwrap();
            let (_, incident) = net.get(&format!("/assay/incident/{id}")).await;
            let kept = incident["evidence"].as_array().unwrap();
            let address = json!(net.workers[0].address());
            assert!(kept.iter().any(|item| item["kind"] == "chunks" && item["worker"] == address));
        }
        assert!(
            net.record(0).await["last_fault"].as_str().unwrap().contains("does not continue"),
            "{fault:?}"
        );
        for honest in [1, 2] {
            assert_eq!(net.record(honest).await["failures"], 0, "{fault:?}");
        }
    }
}

/// What nobody saw is forgotten when a worker that resumes contradicts it.
#[tokio::test]
async fn poisoned_text_that_nobody_saw_does_no_harm() {
    let net = Net::start(&[Fault::AddsText(4), Fault::None], |_| {}).await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["assay"]["worker"]), (200, &json!(net.workers[1].address())));
    let created = body["created"].as_u64().unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], json!(honest_text(created, 1_024)));
    assert_eq!(net.record(1).await["failures"], 0);
    assert!(net.record(0).await["last_fault"].as_str().unwrap().contains("does not continue"));
}

/// Nobody can continue what a forwarder sends, and a forwarder cannot continue anything.
#[tokio::test]
async fn no_forwarder_continues_what_was_seen() {
    let net = Net::start(&[Fault::Dies(4), Fault::None], |_| {}).await;
    net.workers[1].member.lock().unwrap().models[0].arithmetic = 0;
    net.set_members(2, &net.workers).await;
    let events = net.stream("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "no_worker");
    assert!(net.workers[1].calls.lock().unwrap().is_empty());
}

/// Failures that the caller or the gateway brings about are no faults of the worker; a caller's error is its own.
#[tokio::test]
async fn failures_that_are_not_the_workers_do_not_count_against_it() {
    use assay_receipt::FailureCode::{BadRequest, Cancelled, DuplicateNonce, Internal};
    for (fault, faults) in [
        (Fault::Refuses(DuplicateNonce), 0),
        (Fault::Refuses(Cancelled), 0),
        (Fault::Breaks(3, Cancelled), 0),
        (Fault::Breaks(3, BadRequest), 0),
        (Fault::UnsignedBusy, 0),
        (Fault::Breaks(3, Internal), 1),
    ] {
        let net = Net::start(&[fault, Fault::None], |_| {}).await;
        let events = net.stream("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
        let created = events[0]["created"].as_u64().unwrap();
        assert_eq!(joined(&events), honest_text(created, 1_024), "{fault:?}");
        assert_eq!(net.record(0).await["failures"], faults, "{fault:?}");
        assert_eq!(net.record(1).await["failures"], 0, "{fault:?}");
    }
    let stuck = Fault::Breaks(3, BadRequest);
    let net = Net::start(&[stuck, stuck], |_| {}).await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["error"]["type"]), (400, &json!("invalid_request_error")));
}

/// A worker can neither keep a caller waiting with chunks that say nothing, nor by being slow for ever.
#[tokio::test]
async fn an_attempt_ends_in_time() {
    for fault in [Fault::EmptyChunks, Fault::Slow(1_000)] {
        let net = Net::start(&[fault, Fault::None], |config| {
            config.workers.between_tokens_ms = 60_000;
            config.workers.answer_ms = 4_000;
        })
        .await;
        let body = chat(&json!({}));
        let answer = net.post("/v1/chat/completions", &body);
        let (status, body) = tokio::time::timeout(Duration::from_secs(60), answer).await.unwrap();
        assert_eq!((status, &body["assay"]["worker"]), (200, &json!(net.workers[1].address())), "{fault:?}");
        assert_eq!(net.record(0).await["failures"], 1, "{fault:?}");
    }
}

/// A caller that has read the whole text and leaves before its receipt is there still pays for it.
#[tokio::test]
async fn an_answer_that_was_read_to_its_end_is_booked() {
    let net = Net::start(&[Fault::SlowEnd(300)], |config| config.workers.grace_ms = 60_000).await;
    let body = chat(&json!({"stream": true}));
    let response =
        net.http.post(format!("{}/v1/chat/completions", net.url)).json(&body).send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_until(response, |text| joined(&net::events(text)).matches('w').count() == 12).await;
    net::until("the request ends", async || {
        net.get(&format!("/assay/incident/{id}")).await.1["state"] != "running"
    })
    .await;
    let (status, bundle) = net.get(&format!("/assay/receipts/{id}")).await;
    assert_eq!((status, &bundle["receipt"]["statement"]["completion_tokens"]), (200, &json!(13)));
    let (_, usage) = net.get("/assay/usage").await;
    assert_eq!(
        (&usage["usage"][0]["completion_tokens"], &usage["usage"][0]["failures"]),
        (&json!(13), &json!(0))
    );
    assert_eq!(net.record(0).await["earned"], "20");
}

#[tokio::test]
async fn when_all_fail_the_caller_gets_an_openai_error() {
    let net = Net::start(&[Fault::Dies(0), Fault::UnsignedRefusal], |_| {}).await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["error"]["type"]), (503, &json!("server_error")));
    let id = body["error"]["request_id"].as_str().unwrap();
    let (_, incident) = net.get(&format!("/assay/incident/{id}")).await;
    assert_eq!(incident["state"], "failed");
    assert_eq!(incident["evidence"].as_array().unwrap().len(), 2);
    let (status, _) = net.get(&format!("/assay/receipts/{id}")).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_broken_stream_ends_with_an_error_event() {
    let net = Net::start(&[Fault::Dies(4)], |_| {}).await;
    let events = net.stream("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "no_worker");
    assert!(events.iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
}

#[tokio::test]
async fn busy_workers_give_429_with_retry_after() {
    let net = Net::start(&[Fault::Busy, Fault::Busy], |_| {}).await;
    let response = net
        .http
        .post(format!("{}/v1/chat/completions", net.url))
        .json(&chat(&json!({})))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(net.record(0).await["refusals"], 1);
    assert_eq!(net.record(0).await["failures"], 0);
}

#[tokio::test]
async fn a_bad_request_is_believed_only_when_two_workers_say_so() {
    let net = Net::start(&[Fault::CallsItBad, Fault::None], |_| {}).await;
    assert_eq!(net.post("/v1/chat/completions", &chat(&json!({}))).await.0, 200);
    net.workers[1].set(Fault::CallsItBad);
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["error"]["type"]), (400, &json!("invalid_request_error")));
}

#[tokio::test]
async fn a_slow_worker_is_hedged() {
    let net = Net::start(&[Fault::SlowStart(60_000), Fault::None], |config| {
        config.workers.hedge_after_ms = 100;
    })
    .await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["assay"]["worker"]), (200, &json!(net.workers[1].address())));
}

#[tokio::test]
async fn the_circuit_breaker_leaves_a_failing_worker_alone() {
    let net = Net::start(&[Fault::UnsignedRefusal, Fault::None], |_| {}).await;
    for _ in 0..6 {
        assert_eq!(net.post("/v1/chat/completions", &chat(&json!({}))).await.0, 200);
    }
    assert!(net.workers[0].calls.lock().unwrap().len() <= 3);
}

/// Before the first token: the caller never sees the wrong answer, and the cheater is suspended.
#[tokio::test]
async fn a_cheater_is_caught_before_the_first_token() {
    for fault in [Fault::Cheats(0), Fault::Cheats(9), Fault::InflatesPrompt] {
        let net = Net::start(&[fault, Fault::None, Fault::None], |_| {}).await;
        let policy = json!({"level": "replayed", "moment": "before_first_token"});
        let body = chat(&json!({"stream": true, "assay": policy}));
        let events = net.stream("/v1/chat/completions", &body).await;
        let created = events[0]["created"].as_u64().unwrap();
        assert_eq!(joined(&events), honest_text(created, 1_024), "{fault:?}");
        let assay = &events.last().unwrap()["assay"];
        assert_eq!((&assay["state"], &assay["level"]), (&json!("replayed"), &json!("replayed")), "{fault:?}");
        let record = net.record(0).await;
        assert_eq!(record["suspended"]["request_id"], assay["request_id"], "{fault:?}");
        assert_eq!(record["suspended"]["auditors"].as_array().unwrap().len(), 2, "confirmed by a second one");
        assert_ne!(record["withheld"], "0");
        assert_eq!(record["earned"], "0");
        if let Fault::Cheats(position) = fault {
            assert_eq!(record["suspended"]["position"], position);
        }
        let before = net.workers[0].calls.lock().unwrap().len();
        assert_eq!(net.post("/v1/chat/completions", &chat(&json!({}))).await.0, 200);
        assert_eq!(net.workers[0].calls.lock().unwrap().len(), before, "it gets no more requests");
        let id = assay["request_id"].as_str().unwrap();
        let (_, incident) = net.get(&format!("/assay/incident/{id}")).await;
        assert_eq!(incident["audits"].as_array().unwrap().len(), 3, "two that differ and one that agrees");
        let kinds: Vec<&Value> =
            incident["evidence"].as_array().unwrap().iter().map(|item| &item["kind"]).collect();
        assert!(kinds.contains(&&json!("answer")) && kinds.contains(&&json!("chunks")));
        let bundle = bundle_of(&net, events.last().unwrap()).await;
        assert_eq!(bundle.audits.len(), 1, "only the audit of the answer that was given");
    }
}

/// Before the end: the text streams, and a wrong answer never looks finished. Without streaming it is replaced.
#[tokio::test]
async fn a_cheater_is_caught_before_the_end() {
    let net = Net::start(&[Fault::Cheats(3), Fault::None, Fault::None], |config| {
        config.policy.level = Level::Replayed;
        config.policy.moment = Moment::BeforeEnd;
    })
    .await;
    let events = net.stream("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "verification_failed");
    assert!(events.iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
    let net = Net::start(&[Fault::Cheats(3), Fault::None, Fault::None], |_| {}).await;
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({"assay": {"level": "replayed"}}))).await;
    let created = body["created"].as_u64().unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], json!(honest_text(created, 1_024)));
    assert_eq!(body["assay"]["audit"]["verdict"], "agrees");
}

#[tokio::test]
async fn a_cheater_is_caught_in_the_background() {
    let net = Net::start(&[Fault::Cheats(3), Fault::None, Fault::None], |config| {
        config.sampling.share_new_ppm = 1_000_000;
    })
    .await;
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!(body["assay"]["state"], "pending");
    let id = body["id"].as_str().unwrap();
    net::until("the cheater is suspended", async || net.record(0).await["suspended"].is_object()).await;
    let record = net.record(0).await;
    assert_eq!(record["suspended"]["claimed"].as_u64().unwrap() - 1_000, record["suspended"]["expected"]);
    assert_eq!((&record["earned"], &record["withheld"]), (&json!("0"), &body["assay"]["price"]));
    let (_, list) = net.get("/assay/receipts").await;
    assert_eq!(list["receipts"][0]["state"], "mismatch");
    let (_, incident) = net.get(&format!("/assay/incident/{id}")).await;
    let summary = incident["summary"].to_string();
    assert!(
        summary.contains("differs in tokens at position 3") && summary.contains("suspended"),
        "{summary}"
    );
}

/// An honest worker is not suspended on the word of an auditor that another one contradicts.
#[tokio::test]
async fn auditors_that_lie_do_no_harm() {
    let net = Net::start(&[Fault::None, Fault::LiesInAudits, Fault::None], |_| {}).await;
    for _ in 0..4 {
        let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
        let id = body["id"].as_str().unwrap().to_owned();
        let (status, outcome) = net.post(&format!("/assay/audit/{id}"), &json!({})).await;
        assert_eq!(status, 200);
        assert_ne!(outcome["state"], "mismatch");
    }
    assert!(net.record(0).await["suspended"].is_null());
    let net = Net::start(&[Fault::None, Fault::ForgesAudits], |_| {}).await;
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    let (status, _) = net.post(&format!("/assay/audit/{}", body["id"].as_str().unwrap()), &json!({})).await;
    assert_eq!(status, 503, "a forged audit is none");
    assert!(net.record(1).await["last_fault"].as_str().unwrap().contains("audit does not hold"));
    net.workers[1].set(Fault::AuditsOutOfSequence);
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!(audit(&net, &body).await.0, 503, "an audit that cannot be in its auditor's log is none");
    let (_, bundle) = net.get(&format!("/assay/receipts/{}", body["id"].as_str().unwrap())).await;
    assert_eq!(bundle["audits"], json!([]));
}

#[tokio::test]
async fn an_auditor_that_hangs_is_passed_over() {
    let net = Net::start(&[Fault::None, Fault::HangsInAudits, Fault::None], |config| {
        // Long enough for the healthy auditor on a busy machine.
        config.workers.audit_ms = 2_000;
    })
    .await;
    // Which auditor is asked first is drawn; sooner or later it is the one that hangs.
    for _ in 0..60 {
        let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
        let (status, outcome) = audit(&net, &body).await;
        assert_eq!((status, &outcome["state"]), (200, &json!("replayed")), "{outcome}");
        if !net.workers[1].audits.lock().unwrap().is_empty() {
            assert!(net.record(1).await["last_fault"].as_str().unwrap().contains("no audit in time"));
            return;
        }
    }
    panic!("the auditor that hangs was never asked");
}

async fn audit(net: &Net, body: &Value) -> (u16, Value) {
    net.post(&format!("/assay/audit/{}", body["id"].as_str().unwrap()), &json!({})).await
}

/// The word of one auditor suspends nobody: the worker gets no requests until a second one has decided.
#[tokio::test]
async fn one_auditor_alone_convicts_nobody() {
    for (worker, auditor) in [(Fault::Cheats(3), Fault::None), (Fault::None, Fault::LiesInAudits)] {
        let net = Net::start(&[worker, auditor, Fault::UnsignedBusy], |_| {}).await;
        let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
        assert_eq!(body["assay"]["worker"], json!(net.workers[0].address()));
        let (status, outcome) = audit(&net, &body).await;
        assert_eq!((status, &outcome["state"]), (200, &json!("disputed")), "{worker:?}");
        let record = net.record(0).await;
        assert!(record["suspended"].is_null() && record["accused"].is_object(), "{worker:?}: {record}");
        assert_eq!((&record["resting"], &record["withheld"]), (&json!(true), &json!("0")));
        assert_eq!(net.get("/assay/receipts").await.1["receipts"][0]["state"], "disputed");
        assert_eq!(net.record(2).await["failures"], 0, "to be busy is no fault");
        let before = net.workers[0].calls.lock().unwrap().len();
        net.workers[1].set(Fault::None);
        assert_eq!(net.post("/v1/chat/completions", &chat(&json!({}))).await.0, 200);
        assert_eq!(net.workers[0].calls.lock().unwrap().len(), before, "it gets no requests");
        net.workers[2].set(Fault::None);
        net::until("the second auditor decides", async || net.record(0).await["accused"].is_null()).await;
        let record = net.record(0).await;
        let cheats = worker != Fault::None;
        assert_eq!(record["suspended"].is_object(), cheats, "{record}");
        assert_eq!(record["withheld"] == body["assay"]["price"], cheats, "{record}");
        assert_eq!(record["audits_disputed"], u8::from(!cheats));
    }
}

/// An accusation outlives the gateway, also where the answer was never used.
#[tokio::test]
async fn an_accusation_is_decided_after_a_restart() {
    let mut net = Net::start(&[Fault::Cheats(3), Fault::None, Fault::UnsignedBusy], |_| {}).await;
    let body = chat(&json!({"stream": true, "assay": {"level": "replayed"}}));
    let events = net.stream("/v1/chat/completions", &body).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "verification_failed");
    assert!(net.record(0).await["accused"].is_object());
    let folder = net.folder.path().to_path_buf();
    net.stop().await;
    net.workers[2].set(Fault::None);
    let again = Net::start(&[], |config| {
        config.state_dir = folder.join("state");
        config.members_file = folder.join("members.json");
    })
    .await;
    net::until("the cheater is suspended", async || {
        again.get("/assay/workers").await.1["workers"][0]["suspended"].is_object()
    })
    .await;
    let (_, workers) = again.get("/assay/workers").await;
    assert_eq!(workers["workers"][0]["suspended"]["auditors"].as_array().unwrap().len(), 2);
    assert_eq!(workers["workers"][0]["earned"], "0");
}

/// Whoever has the same answer replayed again and again changes nothing by it.
#[tokio::test]
async fn the_same_audit_counts_once() {
    for fault in [Fault::None, Fault::Cheats(3)] {
        let net = Net::start(&[fault, Fault::None, Fault::None], |_| {}).await;
        let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
        let mut records = Vec::new();
        for _ in 0..5 {
            assert_eq!(audit(&net, &body).await.0, 200);
            records.push(net.record(0).await);
        }
        let bundle = bundle_of(&net, &body).await;
        assert!((1..=2).contains(&bundle.audits.len()), "one of each auditor: {}", bundle.audits.len());
        let last = records.last().unwrap();
        if fault == Fault::None {
            assert_eq!(last["audits_agreed"], json!(bundle.audits.len()));
        } else {
            assert_eq!((&last["withheld"], &last["earned"]), (&body["assay"]["price"], &json!("0")));
            assert_eq!(last["audits_differed"], 1);
        }
    }
}

/// The operator may let a worker in again, all of whose answers are replayed from then on.
#[tokio::test]
async fn a_suspension_can_be_lifted() {
    let net = Net::start(&[Fault::Cheats(3), Fault::None, Fault::None], |config| {
        config.sampling.share_caught_ppm = 1_000_000;
    })
    .await;
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!(body["assay"]["state"], "signed");
    assert_eq!(audit(&net, &body).await.1["state"], "mismatch");
    let path = format!("/assay/workers/{}/reinstate", net.workers[0].address());
    net.workers[0].set(Fault::None);
    let (status, outcome) = net.post(&path, &json!({})).await;
    assert_eq!((status, &outcome["standing"]["suspended"]), (200, &Value::Null));
    assert_eq!(net.post(&path, &json!({})).await.0, 404, "it is not suspended any more");
    assert_eq!(net.post("/assay/workers/0x12/reinstate", &json!({})).await.0, 400);
    // What it was caught with stays proved and does not count twice.
    assert_eq!(audit(&net, &body).await.1["state"], "mismatch");
    assert!(net.record(0).await["suspended"].is_null());
    for wanted in [json!({}), json!({"assay": {"sample_ppm": 0}})] {
        let (_, body) = net.post("/v1/chat/completions", &chat(&wanted)).await;
        assert_eq!(body["assay"]["worker"], json!(net.workers[0].address()));
        assert_eq!(body["assay"]["state"], "pending", "{wanted}");
    }
    net::until("its answers are replayed", async || net.record(0).await["audits_agreed"] == 2).await;
}

/// After a restart, the answer of a worker that was suspended meanwhile is not taken for one.
#[tokio::test]
async fn an_answer_of_a_suspended_worker_is_not_recovered() {
    let mut net = Net::start(&[Fault::Cheats(3), Fault::None, Fault::None], |config| {
        config.workers.grace_ms = 60_000;
    })
    .await;
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    net.workers[0].set(Fault::SlowEnd(3_000));
    let body_of_second = chat(&json!({"stream": true}));
    let request = net.http.post(format!("{}/v1/chat/completions", net.url)).json(&body_of_second);
    let response = request.send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_until(response, |text| joined(&net::events(text)).matches('w').count() == 12).await;
    assert_eq!(audit(&net, &body).await.1["state"], "mismatch");
    let folder = net.folder.path().to_path_buf();
    net.stop().await;
    let again = Net::start(&[], |config| {
        config.state_dir = folder.join("state");
        config.members_file = folder.join("members.json");
    })
    .await;
    let path = format!("/assay/incident/{id}");
    net::until("the request is settled", async || again.get(&path).await.1["state"] != "running").await;
    let (_, incident) = again.get(&path).await;
    assert_eq!(incident["state"], "failed", "{incident}");
    assert!(incident["evidence"].as_array().unwrap().iter().any(|item| item["kind"] == "answer"));
}

#[tokio::test]
async fn a_replay_needs_a_second_operator() {
    let net = Net::start(&[Fault::None], |_| {}).await;
    let (status, body) =
        net.post("/v1/chat/completions", &chat(&json!({"assay": {"level": "replayed"}}))).await;
    assert_eq!(status, 503);
    assert!(body["error"]["message"].as_str().unwrap().contains("operator"));
}

#[tokio::test]
async fn a_worker_with_another_certificate_is_not_talked_to() {
    let net = Net::start(&[Fault::None, Fault::None], |_| {}).await;
    net.workers[0].member.lock().unwrap().tls_sha256.0[0] ^= 1;
    net.set_members(2, &net.workers).await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["assay"]["worker"]), (200, &json!(net.workers[1].address())));
    assert!(net.workers[0].calls.lock().unwrap().is_empty());
    assert!(net.record(0).await["last_fault"].as_str().unwrap().contains("connection"));
}

#[tokio::test]
async fn the_list_of_members_is_read_again_and_never_an_older_one() {
    let net = Net::start(&[Fault::None, Fault::None], |_| {}).await;
    net.set_members(5, &net.workers[1..]).await;
    // Nothing tells when the older one was read and refused; by then it normally was.
    net::write_members(&net.folder.path().join("members.json"), 4, &net.workers);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, body) = net.get("/assay/members").await;
    assert_eq!(body["members"]["statement"]["serial"], 5);
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!(body["assay"]["worker"], json!(net.workers[1].address()));
}

#[tokio::test]
async fn choices_seeds_and_logprobs() {
    let net = Net::start(&[Fault::None], |_| {}).await;
    let extra = json!({"n": 3, "max_tokens": 4, "logprobs": true, "top_logprobs": 2});
    let (_, body) = net.post("/v1/chat/completions", &chat(&extra)).await;
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    assert_eq!(choices[2]["assay"]["seed"], 9);
    assert_eq!(choices[0]["finish_reason"], "length");
    let logprobs = choices[0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len(), 4);
    assert_eq!(logprobs[0]["logprob"], -1.0);
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(body["usage"]["completion_tokens"], 12);
    // Each streamed choice is complete and in order.
    let mut streamed = extra.clone();
    streamed["stream"] = json!(true);
    let events = net.stream("/v1/chat/completions", &chat(&streamed)).await;
    for index in 0..3 {
        let own: Vec<&Value> = events.iter().filter(|event| event["choices"][0]["index"] == index).collect();
        let content = own.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(content.collect::<String>().matches('w').count(), 4);
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "length");
    }
    // Without a seed, one is drawn and reported.
    let unseeded = json!({"model": NAME, "messages": [{"role": "user", "content": "hello"}]});
    let (_, one) = net.post("/v1/chat/completions", &unseeded).await;
    let (_, two) = net.post("/v1/chat/completions", &unseeded).await;
    assert_ne!(one["seed"], two["seed"]);
    assert_eq!(one["seed"], one["assay"]["seed"]);
}

#[tokio::test]
async fn tool_calls_come_whole_and_streamed() {
    let net = Net::start(&[Fault::None], |_| {}).await;
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let (_, body) = net.post("/v1/chat/completions", &chat(&json!({"tools": tools}))).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "look");
    let events = net.stream("/v1/chat/completions", &chat(&json!({"tools": tools, "stream": true}))).await;
    let call = events.iter().find_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).unwrap();
    assert_eq!((&call["index"], &call["function"]["arguments"]), (&json!(0), &json!("{\"a\":1}")));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn completions_and_responses() {
    let net = Net::start(&[Fault::None], |_| {}).await;
    let body = json!({"model": NAME, "prompt": ["a", "b"], "n": 2, "logprobs": 1, "max_tokens": 3});
    let (_, whole) = net.post("/v1/completions", &body).await;
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
    assert_eq!(whole["usage"]["prompt_tokens"], 2);
    assert_eq!(whole["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 3);
    let mut body = json!({"model": NAME, "prompt": ["ab", "c"], "n": 2, "max_tokens": 3});
    let (_, whole) = net.post("/v1/completions", &body).await;
    assert_eq!(whole["usage"], json!({"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}));
    (body["stream"], body["stream_options"]) = (json!(true), json!({"include_usage": true}));
    let events = net.stream("/v1/completions", &body).await;
    assert_eq!(events.last().unwrap()["usage"], whole["usage"], "each prompt once, streamed or not");
    let (_, billed) = net.get("/assay/usage").await;
    assert_eq!(billed["usage"][0]["prompt_tokens"], 4 + 6 + 6, "every choice is billed with its prompt");
    let events = net
        .stream("/v1/completions", &json!({"model": NAME, "prompt": "a", "stream": true, "seed": 1}))
        .await;
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");

    let body = json!({"model": NAME, "input": "hello", "seed": 7, "instructions": "be brief"});
    let (status, whole) = net.post("/v1/responses", &body).await;
    assert_eq!((status, &whole["status"]), (200, &json!("completed")), "{whole}");
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = net.stream("/v1/responses", &streamed).await;
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    assert_eq!(
        kinds[kinds.len() - 4..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas.matches('w').count(), text.matches('w').count());
    let cut = json!({"model": NAME, "input": "hello", "max_output_tokens": 2});
    let (_, cut) = net.post("/v1/responses", &cut).await;
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let tools = json!([{"type": "function", "name": "look", "parameters": {}}]);
    let (_, called) =
        net.post("/v1/responses", &json!({"model": NAME, "input": "hello", "tools": tools})).await;
    assert_eq!(
        (&called["output"][0]["type"], &called["output"][0]["name"]),
        (&json!("function_call"), &json!("look"))
    );
}

#[tokio::test]
async fn wrong_requests_get_openai_errors() {
    let net = Net::start(&[Fault::None], |config| config.body_max_bytes = 10_000).await;
    for (path, body, status, param) in [
        ("/v1/chat/completions", chat(&json!({"colour": "red"})), 400, json!("colour")),
        ("/v1/chat/completions", chat(&json!({"temperature": "x"})), 400, json!("temperature")),
        ("/v1/chat/completions", chat(&json!({"model": "gpt-9"})), 404, json!("model")),
        ("/v1/chat/completions", chat(&json!({"user": "x".repeat(20_000)})), 413, Value::Null),
        ("/v1/embeddings", json!({"model": NAME, "input": "x"}), 400, json!("model")),
        ("/v1/nothing", json!({}), 404, Value::Null),
        ("/assay/audit/chatcmpl-00", json!({}), 400, json!("request_id")),
        ("/assay/audit/chatcmpl-00000000000000000000000000000000", json!({}), 404, Value::Null),
        ("/v1/models", json!({}), 405, Value::Null),
    ] {
        let (found, answer) = net.post(path, &body).await;
        assert_eq!((found, &answer["error"]["param"]), (status, &param), "{path}: {answer}");
        assert!(answer["error"]["message"].is_string());
    }
    let broken = net.http.post(format!("{}/v1/chat/completions", net.url)).body("{");
    let broken = broken.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(broken.status().as_u16(), 400);
    assert_eq!(net.get("/v1/models/gpt-9").await.0, 404);
    assert_eq!(net.get("/v1/models").await.1["data"][0]["id"], NAME);
    assert_eq!(net.get("/assay/receipts?limit=x").await.0, 400);
    assert_eq!(net.get("/health").await.1["workers_usable"], 1);
}

#[tokio::test]
async fn keys_rates_and_hosts_are_enforced() {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(b"sk-test");
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let net = Net::start(&[Fault::None], |config| {
        config.api_keys = vec![ApiKey { name: "tester".into(), sha256, admin: false, policy: None }];
        config.requests_per_minute = 1;
        config.requests_burst = 2;
    })
    .await;
    let (status, body) = net.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(net.get("/assay/receipts").await.0, 401);
    let with_key = |path: &str| net.http.post(format!("{}{path}", net.url)).bearer_auth("sk-test");
    for status in [200, 200, 429] {
        let response = with_key("/v1/chat/completions").json(&chat(&json!({}))).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
    }
    let usage = net.http.get(format!("{}/assay/usage", net.url)).bearer_auth("sk-test").send().await.unwrap();
    assert_eq!(usage.json::<Value>().await.unwrap()["usage"][0]["key"], "tester");
    let rebound = net.http.get(&net.url).header("host", "evil.example").send().await.unwrap();
    assert_eq!(rebound.status().as_u16(), 403);
}

fn key(name: &str, secret: &str, admin: bool) -> ApiKey {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(secret.as_bytes());
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    ApiKey { name: name.into(), sha256, admin, policy: None }
}

/// A key sees its own requests and no others; what others asked is as unknown to it as what nobody asked.
#[tokio::test]
async fn a_key_sees_its_own_requests_only() {
    let net = Net::start(&[Fault::None, Fault::None], |config| {
        config.api_keys =
            vec![key("one", "sk-1", false), key("two", "sk-2", false), key("boss", "sk-3", true)];
    })
    .await;
    let send = async |method: &str, path: &str, secret: &str, body: &Value| {
        let method = method.parse().unwrap();
        let request = net.http.request(method, format!("{}{path}", net.url)).bearer_auth(secret);
        let response = request.json(body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (_, answer) = send("POST", "/v1/chat/completions", "sk-1", &chat(&json!({}))).await;
    let id = answer["id"].as_str().unwrap();
    let reinstate = format!("/assay/workers/{}/reinstate", net.workers[0].address());
    for (secret, status) in [("sk-1", 403), ("sk-3", 404)] {
        assert_eq!(send("POST", &reinstate, secret, &json!({})).await.0, status, "{secret}");
    }
    for (secret, status, rows) in [("sk-1", 200, 1), ("sk-2", 404, 0), ("sk-3", 200, 1)] {
        for (method, path) in [("GET", "receipts"), ("GET", "incident"), ("POST", "audit")] {
            let found = send(method, &format!("/assay/{path}/{id}"), secret, &json!({})).await;
            assert_eq!(found.0, status, "{secret} {path}: {}", found.1);
        }
        let (_, list) = send("GET", "/assay/receipts", secret, &Value::Null).await;
        assert_eq!(list["receipts"].as_array().unwrap().len(), rows, "{secret}");
        let (_, usage) = send("GET", "/assay/usage", secret, &Value::Null).await;
        assert_eq!(usage["usage"].as_array().unwrap().len(), rows, "{secret}");
    }
}

/// A web page of another origin cannot make its visitor's browser spend money here.
#[tokio::test]
async fn foreign_pages_cannot_ask() {
    let net =
        Net::start(&[Fault::None], |config| config.cors_origins = vec!["https://chat.example".into()]).await;
    let text = chat(&json!({})).to_string();
    let send = async |origin: &str, kind: &str| {
        let request = net.http.post(format!("{}/v1/chat/completions", net.url));
        let request = request.header("origin", origin).header("content-type", kind).body(text.clone());
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(send("https://evil.example", "text/plain").await, 403);
    assert_eq!(send("https://evil.example", "application/json").await, 403);
    assert_eq!(send(&net.url, "text/plain").await, 415);
    assert!(net.workers[0].calls.lock().unwrap().is_empty());
    assert_eq!(send(&net.url, "application/json").await, 200);
    assert_eq!(send("https://chat.example", "application/json").await, 200);
}

#[tokio::test]
async fn the_page_is_served_with_a_policy() {
    let net = Net::start(&[Fault::None], |_| {}).await;
    for path in ["/", "/c/some-conversation"] {
        let page = net.http.get(format!("{}{path}", net.url)).send().await.unwrap();
        assert_eq!(page.status().as_u16(), 200);
        assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
        assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    }
    assert_eq!(net.http.get(format!("{}/missing.js", net.url)).send().await.unwrap().status().as_u16(), 404);
    let metrics = net.http.get(format!("{}/metrics", net.url)).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("assay_gateway_requests_total"));
}

/// A caller that leaves is noticed, and what the worker signed about it is fetched for the record.
#[tokio::test]
async fn a_caller_that_leaves_is_recorded() {
    let net = Net::start(&[Fault::Slow(300)], |config| config.workers.grace_ms = 0).await;
    let body = chat(&json!({"stream": true}));
    let response =
        net.http.post(format!("{}/v1/chat/completions", net.url)).json(&body).send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read_until(response, |text| text.matches("content").count() > 3).await;
    for _ in 0..1_200 {
        let (_, incident) = net.get(&format!("/assay/incident/{id}")).await;
        if incident["state"] == "cancelled" {
            assert!(incident["evidence"].as_array().unwrap().iter().any(|item| item["kind"] == "chunks"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the request was not recorded as cancelled");
}

/// Records, receipts and suspensions are there after a restart.
#[tokio::test]
async fn state_survives_a_restart() {
    let mut net = Net::start(&[Fault::Cheats(0), Fault::None, Fault::None], |_| {}).await;
    let policy = json!({"assay": {"level": "replayed"}});
    let (_, body) = net.post("/v1/chat/completions", &chat(&policy)).await;
    let folder = net.folder.path().to_path_buf();
    net.stop().await;
    let again = Net::start(&[], |config| {
        config.state_dir = folder.join("state");
        config.members_file = folder.join("members.json");
    })
    .await;
    let (_, bundle) = again.get(&format!("/assay/receipts/{}", body["id"].as_str().unwrap())).await;
    assert_eq!(bundle["audits"].as_array().unwrap().len(), 1);
    let (_, workers) = again.get("/assay/workers").await;
    assert!(workers["workers"][0]["suspended"].is_object());
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_a_closed_one_makes_room() {
    let net = Net::start(&[], |config| config.connections = 2).await;
    let client = || reqwest::Client::builder().no_proxy().build().unwrap();
    let health = format!("{}/health", net.url);
    // Each client keeps one connection.
    let (first, second) = (client(), client());
    first.get(&health).send().await.unwrap();
    second.get(&health).send().await.unwrap();
    client().get(&health).send().await.unwrap_err();
    first.get(&health).send().await.unwrap();
    drop(first);
    // The gateway sees the end of a connection a moment later.
    for _ in 0..1_000 {
        if client().get(&health).send().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no place became free");
}

/// A folder with a classifier of two inputs and three classes, `scores`, and one without labels, `numbers`.
fn models() -> tempfile::TempDir {
    use assay_graph::{Encoding, Graph, Interface, Node, Range, Table, Task, Tensor};
    let folder = tempfile::tempdir().unwrap();
    let linear =
        Node::Linear { input: Tensor::INPUT, rows: 3, weights: vec![4, 0, 0, 4, 3, 3], bias: vec![0; 3] };
    let round = Node::Lookup { input: Tensor(1), shift: 2, table: 0 };
    let interface = Interface {
        encoding: Encoding::Affine { offset: vec![0.0], scale: vec![10.0] },
        task: Task::Classes,
        scale: 0.1,
        offset: vec![0.0; 3],
        labels: ["left", "right", "both"].map(String::from).to_vec(),
    };
    for (name, interface) in [("scores", interface), ("numbers", Interface::plain(3))] {
        let (inputs, tables) = (vec![Range { low: 0, high: 100 }; 2], vec![Table::clamp(0, 150, 0, 150)]);
        let nodes = vec![linear.clone(), round.clone()];
        let graph = Graph::new(inputs, tables, nodes, Tensor(2), interface).unwrap();
        std::fs::write(folder.path().join(name).with_extension("graph"), graph.encode()).unwrap();
    }
    std::fs::write(folder.path().join("broken.graph"), b"no graph").unwrap();
    std::fs::write(folder.path().join("secret"), b"not a model").unwrap();
    folder
}

async fn with_models() -> (Net, tempfile::TempDir) {
    let folder = models();
    let graphs_dir = folder.path().to_owned();
    (Net::start(&[Fault::None], |config| config.graphs_dir = graphs_dir).await, folder)
}

#[tokio::test]
async fn models_from_onnx_answer_in_the_open_inference_protocol() {
    let (net, _folder) = with_models().await;
    assert_eq!(net.get("/v2").await.1["name"], "assay");
    assert_eq!(net.get("/v2/health/ready").await.0, 200);
    assert_eq!(net.get("/v2/models/scores/ready").await.0, 200);
    let (_, about) = net.get("/v2/models/scores").await;
    assert_eq!(about["inputs"], json!([{"name": "input", "datatype": "FP64", "shape": [-1, 2]}]));
    assert_eq!(about["outputs"][1]["name"], "label");
    let tensor = |data: Value| json!({"name": "input", "shape": [2, 2], "datatype": "FP32", "data": data});
    let ask = json!({"id": "7", "inputs": [tensor(json!([[2.0, 1.0], [1.0, 3.0]]))]});
    let (status, answer) = net.post("/v2/models/scores/infer", &ask).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["id"], &answer["model_name"]), (&json!("7"), &json!("scores")));
    let scores: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    assert!(
        scores.iter().zip([2.0, 1.0, 2.3, 1.0, 3.0, 3.0]).all(|(a, b)| (a - b).abs() < 1e-9),
        "{scores:?}"
    );
    assert_eq!(answer["outputs"][1]["data"], json!(["both", "right"]));
    assert_eq!(answer["parameters"]["assay_model"], about["parameters"]["assay_model"]);
    assert!(answer["parameters"].get("assay_proof").is_none());
    // A flat list, one output only, and a model without labels.
    let ask = json!({"inputs": [tensor(json!([2, 1, 1, 3]))], "outputs": [{"name": "label"}]});
    let (_, answer) = net.post("/v2/models/scores/infer", &ask).await;
    assert_eq!(
        answer["outputs"],
        json!([{"name": "label", "datatype": "BYTES", "shape": [2], "data": ["both", "right"]}])
    );
    let (status, _) = net.post("/v2/models/numbers/infer", &ask).await;
    assert_eq!(status, 400);
    // Binary tensors, as Triton's client sends them: the JSON, its length in a header, and the bytes.
    let head = json!({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]});
    let mut body = head.to_string().into_bytes();
    let len = body.len();
    body.extend([1.0f32, 3.0].iter().flat_map(|x| x.to_le_bytes()));
    let send = |body: Vec<u8>, len: String| {
        let request = net.http.post(format!("{}/v2/models/scores/infer", net.url));
        request.header("inference-header-content-length", len).body(body).send()
    };
    let answer: Value = send(body.clone(), len.to_string()).await.unwrap().json().await.unwrap();
    assert_eq!(answer["outputs"][1]["data"], json!(["right"]));
    for (body, len) in
        [(body.clone(), "999999".to_owned()), (body[..len + 7].to_vec(), len.to_string()), (body, "x".into())]
    {
        let response = send(body, len).await.unwrap();
        assert_eq!(response.status().as_u16(), 400);
    }
}

/// A model whose inputs are rows of a table is asked with their numbers.
#[tokio::test]
async fn words_are_sent_as_numbers() {
    use assay_graph::{Encoding, Graph, Interface, Node, Range, Tensor};
    let (net, folder) = with_models().await;
    let encoding = Encoding::Rows { len: 2, values: vec![1, 2, 3, 4, -5, 6] };
    let interface = Interface { encoding, ..Interface::plain(1) };
    let sum = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![1, 10, 100, 1000], bias: vec![0] };
    let inputs = vec![Range { low: -5, high: 6 }; 4];
    let graph = Graph::new(inputs, vec![], vec![sum], Tensor(1), interface).unwrap();
    std::fs::write(folder.path().join("words.graph"), graph.encode()).unwrap();
    let (_, about) = net.get("/v2/models/words").await;
    assert_eq!(about["inputs"][0]["shape"], json!([-1, 2]));
    let ask = |words: [i32; 2]| json!({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "INT64", "data": words}]});
    let (status, answer) = net.post("/v2/models/words/infer", &ask([2, 0])).await;
    assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!([2155.0])), "{answer}");
    let (status, answer) = net.post("/v2/models/words/infer", &ask([0, 3])).await;
    assert_eq!(status, 400);
    assert!(answer.to_string().contains("the words 0 to 2"), "{answer}");
}

#[tokio::test]
async fn a_proof_comes_with_the_answer_that_asks_for_it() {
    use base64::Engine as _;
    let (net, folder) = with_models().await;
    let ask = json!({
        "parameters": {"assay_level": "proved"},
        "inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP64", "data": [1.0, 3.0]}],
    });
    let (status, answer) = net.post("/v2/models/scores/infer", &ask).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["parameters"]["assay_level"], "proved");
    let encoded = answer["parameters"]["assay_proof"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    let proof = assay_proof::Proof::from_bytes(&bytes).unwrap();
    let model = std::fs::read(folder.path().join("scores.graph")).unwrap();
    let graph = assay_proof::Graph::decode(&model).unwrap();
    assay_proof::verify(&graph, &proof).unwrap();
    assert_eq!(json!(graph.decode_outputs(&proof.outputs)), answer["outputs"][0]["data"]);
    assert_eq!(proof.inputs, [10, 30]);
}

#[tokio::test]
async fn a_proof_for_others_hides_the_inputs() {
    use base64::Engine as _;
    let (net, folder) = with_models().await;
    let ask = |parameters: Value, data: [f64; 2]| {
        json!({
            "parameters": parameters,
            "inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP64", "data": data}],
        })
    };
    let hiding = json!({"assay_level": "proved", "assay_hide": "inputs"});
    let (status, answer) = net.post("/v2/models/scores/infer", &ask(hiding.clone(), [1.0, 3.0])).await;
    assert_eq!((status, &answer["parameters"]["assay_hide"]), (200, &json!("inputs")), "{answer}");
    let proof_of = |answer: &Value| {
        let encoded = answer["parameters"]["assay_proof"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(encoded).unwrap()
    };
    let bytes = proof_of(&answer);
    let proof = assay_proof::HidingProof::from_bytes(&bytes).unwrap();
    let model = std::fs::read(folder.path().join("scores.graph")).unwrap();
    let model = assay_proof::Model::from_bytes(&model).unwrap();
    model.verify_hiding(&proof).unwrap();
    assert_eq!(json!(model.graph().decode_outputs(&proof.outputs)), answer["outputs"][0]["data"]);
    // Two proofs of the same have nothing to recognise them by.
    let (_, again) = net.post("/v2/models/scores/infer", &ask(hiding, [1.0, 3.0])).await;
    let again = assay_proof::HidingProof::from_bytes(&proof_of(&again)).unwrap();
    assert_ne!(again.commitment(), proof.commitment());
    for parameters in [
        json!({"assay_hide": "inputs"}),
        json!({"assay_level": "proved", "assay_hide": "weights"}),
        json!({"assay_level": "proved", "assay_hide": true}),
    ] {
        let (status, answer) = net.post("/v2/models/scores/infer", &ask(parameters, [1.0, 3.0])).await;
        assert!(status == 400 && answer.to_string().contains("assay_hide"), "{answer}");
    }
}

#[tokio::test]
async fn what_the_protocol_does_not_have_is_refused_in_its_words() {
    let (net, _folder) = with_models().await;
    for name in ["nothing", "..%2fsecret", "secret", ".scores", "a%2fb"] {
        let (status, answer) = net.get(&format!("/v2/models/{name}")).await;
        assert_eq!(status, 404, "{name}");
        assert!(answer["error"].as_str().unwrap().contains("there is no model"), "{answer}");
    }
    assert_eq!(net.get("/v2/models/broken").await.0, 500);
    let input = |shape: Value, datatype: &str, data: Value| json!({"inputs": [{"name": "input", "shape": shape, "datatype": datatype, "data": data}]});
    let good = input(json!([1, 2]), "FP64", json!([1, 2]));
    let mut with_level = good.clone();
    with_level["parameters"] = json!({"assay_level": "replayed"});
    let mut twice = good.clone();
    twice["inputs"] = json!([good["inputs"][0], good["inputs"][0]]);
    let mut renamed = good.clone();
    renamed["inputs"][0]["name"] = json!("x");
    for ask in [
        input(json!([1, 2]), "BYTES", json!(["a", "b"])),
        input(json!([1, 2]), "FP64", json!(["a", "b"])),
        input(json!([1, 3]), "FP64", json!([1, 2, 3])),
        input(json!([2, 2]), "FP64", json!([1, 2])),
        input(json!([0, 2]), "FP64", json!([])),
        input(json!([]), "FP64", json!([1, 2])),
        json!({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP64"}]}),
        json!({"inputs": []}),
        json!({}),
        with_level,
        twice,
        renamed,
    ] {
        let (status, answer) = net.post("/v2/models/scores/infer", &ask).await;
        assert_eq!(status, 400, "{ask}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    // A gateway without a folder has none.
    let net = Net::start(&[Fault::None], |_| {}).await;
    assert_eq!(net.get("/v2/models/scores").await.0, 404);
}

/// `ASSAY_PYTHON` names a Python with the packages of tests/inference-client/requirements.txt.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Python with Triton's client (tests/inference-client/requirements.txt); .ci/parts/35-inference-client runs it"]
async fn the_client_of_triton_agrees() {
    let (net, _folder) = with_models().await;
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/inference-client/client.py");
    let python = std::env::var("ASSAY_PYTHON").unwrap_or_else(|_| "python3".into());
    let address = net.url.trim_start_matches("http://").to_owned();
    let status = tokio::task::spawn_blocking(move || {
        std::process::Command::new(python).arg(script).arg(address).status()
    });
    assert!(status.await.unwrap().unwrap().success());
}
