//! What a gateway can fetch later: the statement about a nonce with its chunks, and how a model writes its tokens.
#![allow(clippy::unwrap_used)]

mod common;

use assay_receipt::{Bytes32, SignedChunk, keccak256};
use common::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_can_be_fetched_with_its_chunks() {
    let worker = Worker::tiny(|_| {}).await;
    let call = call(endless(worker.model(), 12));
    let bundle = worker.generate(&call).await.unwrap().bundle(&call);
    let (status, settled) = worker.get(&format!("/v1/receipts/{}", call.nonce)).await;
    assert_eq!(status, 200);
    let chunks: Vec<SignedChunk> = serde_json::from_value(settled["chunks"].clone()).unwrap();
    assert_eq!(chunks, bundle.chunks, "signing is deterministic");
    assert_eq!(settled["receipt"], serde_json::to_value(&bundle.receipt).unwrap());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_and_tokenizer_follow_from_the_model_id() {
    let worker = Worker::tiny(|_| {}).await;
    let get = async |path: String| client().get(worker.url(&path)).send().await.unwrap();
    let model = worker.model();
    let manifest = get(format!("/v1/models/{model}/manifest")).await.bytes().await.unwrap();
    assert_eq!(keccak256(&manifest), model);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let tokenizer = get(format!("/v1/models/{model}/tokenizer")).await.bytes().await.unwrap();
    assert_eq!(serde_json::json!(keccak256(&tokenizer)), manifest["tokenizer"]);
    for path in [format!("/v1/models/{}/manifest", Bytes32::ZERO), "/v1/models/x/tokenizer".into()] {
        assert_eq!(get(path).await.status().as_u16(), 404);
    }
    worker.stop().await;
}
