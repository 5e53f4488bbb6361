//! How tokens are written, for log-probabilities.
//!
//! The workers send token ids. Their spelling follows from the model: its id is the hash of its manifest, and the manifest
//! holds the hash of the tokenizer. So any worker may be asked for both, and none can lie about them.

use crate::gateway::Gateway;
use assay_model::Tokenizer;
use assay_receipt::{Bytes32, keccak256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Models whose tokens are kept; a gateway serves a few.
const MODELS_MAX: usize = 16;
/// Longest wait for a worker to send a tokenizer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The tokenizers of the models that were asked for log-probabilities.
#[derive(Default)]
pub(crate) struct Vocabularies {
    by_model: Mutex<HashMap<Bytes32, Arc<Tokenizer>>>,
}

impl Vocabularies {
    fn of(&self, model: &Bytes32) -> Option<Arc<Tokenizer>> {
        self.by_model.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned()
    }

    /// The bytes of a token, when they are known; a token that only has a function has none.
    pub(crate) fn bytes(&self, model: &Bytes32, token: u32) -> Option<Vec<u8>> {
        let tokenizer = self.of(model)?;
        ((token as usize) < tokenizer.vocabulary()).then(|| tokenizer.token_bytes(token).to_vec())
    }

    /// Fetches the tokenizer of a model unless it is known. When nobody sends one that fits, ids are shown instead.
    pub(crate) async fn load(&self, gateway: &Gateway, model: Bytes32) {
        if self.of(&model).is_some() {
            return;
        }
        let members = Arc::clone(&gateway.members.borrow());
        for member in members.members.iter().filter(|member| member.offer(&model).is_some()) {
            let Ok(client) = gateway.clients.of(member) else { continue };
            let Ok(Ok((manifest, tokenizer))) = timeout(PATIENCE, client.tokenizer(&model)).await else {
                continue;
            };
            let read = tokio::task::spawn_blocking(move || checked(&model, &manifest, &tokenizer)).await;
            match read {
                Ok(Some(tokenizer)) => {
                    let mut by_model = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
                    if by_model.len() >= MODELS_MAX {
                        by_model.clear();
                    }
                    by_model.insert(model, Arc::new(tokenizer));
                    return;
                }
                _ => {
                    tracing::warn!(worker = %member.worker, %model, "it sent a tokenizer that is not the model's")
                }
            }
        }
    }
}

/// The tokenizer, if it belongs to the model.
fn checked(model: &Bytes32, manifest: &[u8], tokenizer: &[u8]) -> Option<Tokenizer> {
    if keccak256(manifest) != *model {
        return None;
    }
    let manifest: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    let hash: Bytes32 = manifest.get("tokenizer")?.as_str()?.parse().ok()?;
    if keccak256(tokenizer) != hash {
        return None;
    }
    Tokenizer::from_bytes(tokenizer).ok()
}
