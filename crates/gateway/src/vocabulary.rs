//! How tokens are written.

use crate::gateway::Gateway;
use assay_receipt::Bytes32;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The bytes of every token of the models that were asked for log-probabilities.
#[derive(Default)]
pub(crate) struct Vocabularies {
    by_model: Mutex<HashMap<Bytes32, Arc<Vec<Vec<u8>>>>>,
}

impl Vocabularies {
    /// The bytes of a token, when they are known.
    pub(crate) fn bytes(&self, model: &Bytes32, token: u32) -> Option<Vec<u8>> {
        let by_model = self.by_model.lock().unwrap_or_else(PoisonError::into_inner);
        by_model.get(model)?.get(token as usize).cloned()
    }

    /// Makes the tokens of a model known where a worker tells them.
    pub(crate) async fn load(&self, _gateway: &Gateway, _model: Bytes32) {}
}
