//! What one large body costs. A file of its own, since it measures its whole process.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use assay_receipt::{FailureCode, Prompt};
use common::*;

/// The most memory that this process has had at once, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

/// Four million numbers in 8 MiB become 32 bytes each when they are hashed: not all at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_small_numbers_is_refused_in_little_memory() {
    let worker = Worker::tiny(|_| {}).await;
    let mut call = call(endless(worker.model(), 5));
    call.request.prompt = Prompt::Tokens(vec![1; 4_000_000]);
    let body = serde_json::to_string(&call).unwrap();
    assert!(body.len() < 8 << 20);
    let before = peak();
    let response = client().post(worker.url("/v1/generate")).body(body).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 400);
    let refusal = Refusal { status: 400, retry_after: None, body: response.json().await.unwrap() };
    assert_eq!(refusal.failure().statement.code, FailureCode::BadRequest);
    let more = peak() - before;
    assert!(more < 96, "{more} MiB more");
}
