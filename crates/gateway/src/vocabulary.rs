//! How models write tokens, for log-probabilities, and what tokens they make of a prompt, for vouchers.
//!
//! The workers send token ids. Their spelling follows from the model: its id is the hash of its manifest, and the manifest
//! holds the hash of the tokenizer. So any worker may be asked for both, and none can lie about them.

use crate::gateway::Gateway;
use assay_engine::request::Processor;
use assay_model::Manifest;
use assay_receipt::{Bytes32, Request, keccak256, prompt_commitment};
use futures_util::StreamExt as _;
use futures_util::stream;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Models that are kept; a gateway serves a few.
const MODELS_MAX: usize = 16;
/// Longest wait for workers to send a tokenizer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Workers that are asked at the same time, so that one which does not answer costs no time; and longest wait for one of them.
const ASKED_MAX: usize = 4;
const ONE: Duration = Duration::from_secs(5);
/// How long workers that sent none are left alone.
const REST: Duration = Duration::from_secs(60);

/// The text sides of the models that were asked for.
#[derive(Default)]
pub(crate) struct Vocabularies {
    by_model: Mutex<HashMap<Bytes32, Known>>,
    /// One fetches, the others wait for what it finds.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
enum Known {
    Processor(Arc<Processor>),
    /// Nobody sent it then.
    Missing(Instant),
}

impl Vocabularies {
    fn known(&self, model: &Bytes32) -> Option<Known> {
        self.by_model.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned()
    }

    /// Whether there is nothing to ask for now.
    fn is_settled(&self, model: &Bytes32) -> bool {
        match self.known(model) {
            Some(Known::Processor(_)) => true,
            Some(Known::Missing(since)) => since.elapsed() < REST,
            None => false,
        }
    }

    fn of(&self, model: &Bytes32) -> Option<Arc<Processor>> {
        match self.known(model)? {
            Known::Processor(processor) => Some(processor),
            Known::Missing(_) => None,
        }
    }

    /// The bytes of a token, when they are known; a token that only has a function has none.
    pub(crate) fn bytes(&self, model: &Bytes32, token: u32) -> Option<Vec<u8>> {
        let processor = self.of(model)?;
        let tokenizer = processor.tokenizer();
        ((token as usize) < tokenizer.vocabulary()).then(|| tokenizer.token_bytes(token).to_vec())
    }

    /// The commitment to the tokens of a request's prompt; zero where they are not known, or there are none.
    pub(crate) async fn prompt(&self, gateway: &Gateway, request: &Request, salt: Bytes32) -> Bytes32 {
        self.load(gateway, request.model).await;
        let Some(processor) = self.of(&request.model) else { return Bytes32::ZERO };
        let request = request.clone();
        let work = move || processor.prompt(&request).map(|tokens| prompt_commitment(&tokens, &salt));
        // What has no prompt the worker refuses, with a reason.
        tokio::task::spawn_blocking(work).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Fetches manifest and tokenizer of a model unless they are known. When nobody sends what fits, ids are shown instead of text, and
    /// vouchers leave the prompt to the worker.
    pub(crate) async fn load(&self, gateway: &Gateway, model: Bytes32) {
        if self.is_settled(&model) {
            return;
        }
        let _one = self.fetching.lock().await;
        if self.is_settled(&model) {
            return;
        }
        let fetched = timeout(PATIENCE, fetch(gateway, model)).await.ok().flatten();
        let known = match fetched {
            Some(processor) => Known::Processor(Arc::new(processor)),
            None => {
                tracing::warn!(%model, "no worker sent the model's tokenizer");
                Known::Missing(Instant::now())
            }
        };
        let mut by_model = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
        if by_model.len() >= MODELS_MAX {
            by_model.clear();
        }
        by_model.insert(model, known);
    }
}

/// From the first worker that sends what fits.
async fn fetch(gateway: &Gateway, model: Bytes32) -> Option<Processor> {
    let members = Arc::clone(&gateway.members.borrow());
    let members = members.members.iter().filter(|member| member.offer(&model).is_some());
    let asked: Vec<_> = members
        .filter_map(|member| Some((member.worker, gateway.clients.of(member).ok()?)))
        .map(|(worker, client)| async move { (worker, timeout(ONE, client.tokenizer(&model)).await) })
        .collect();
    let mut asked = stream::iter(asked).buffer_unordered(ASKED_MAX);
    while let Some((worker, sent)) = asked.next().await {
        let Ok(Ok((manifest, tokenizer))) = sent else { continue };
        let read = tokio::task::spawn_blocking(move || checked(&model, &manifest, &tokenizer)).await;
        if let Ok(Some(processor)) = read {
            return Some(processor);
        }
        tracing::warn!(%worker, %model, "it sent a tokenizer that is not the model's, or cannot be read");
    }
    None
}

/// The text side of a model, if these are its manifest and its tokenizer.
fn checked(model: &Bytes32, manifest: &[u8], tokenizer: &[u8]) -> Option<Processor> {
    if keccak256(manifest) != *model {
        return None;
    }
    let manifest = Manifest::parse(manifest).ok().filter(Manifest::is_current)?;
    if keccak256(tokenizer) != manifest.tokenizer {
        return None;
    }
    Processor::from_manifest(&manifest, tokenizer).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use assay_model::testing::tiny_gguf;
    use assay_model::{Architecture, Artifact, import_gguf};

    use super::*;

    #[test]
    fn only_the_models_own_text_side_is_taken() {
        let bytes = import_gguf(&tiny_gguf(Architecture::Llama, 1), &mut |_, _| {}).unwrap();
        let artifact = Artifact::parse(Arc::new(bytes)).unwrap();
        let (model, tokenizer) = (artifact.id(), artifact.tokenizer_json());
        let manifest = artifact.manifest().canonical();
        let processor = checked(&model, &manifest, tokenizer).unwrap();
        let request = Request::from_text(model, "some text", 4);
        let own = Processor::from_artifact(&artifact).unwrap().prepare(&request).unwrap();
        assert_eq!(processor.prompt(&request).unwrap(), own.generation.prompt);

        assert!(checked(&Bytes32([1; 32]), &manifest, tokenizer).is_none(), "another model");
        let mut other = tokenizer.to_vec();
        *other.last_mut().unwrap() = b' ';
        assert!(checked(&model, &manifest, &other).is_none(), "another tokenizer");
        let mut other = artifact.manifest().clone();
        other.arithmetic += 1;
        let manifest = other.canonical();
        assert!(checked(&keccak256(&manifest), &manifest, tokenizer).is_none(), "another arithmetic");
    }
}
