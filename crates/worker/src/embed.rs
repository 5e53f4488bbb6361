//! An encoder that this worker runs itself. It has no state, so requests only share its processors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_engine::encoder::{Encoder, EncoderError};
use assay_model::Artifact;
use assay_receipt::{FailureCode, GenerateCall, Offer, Output, Request};
use tokio::sync::Semaphore;

use crate::Config;
use crate::answer::{Answer, Trouble, beside, check_whole};
use crate::local::Replayed;

/// An encoder and the number of texts that it embeds at once.
pub(crate) struct Embedder {
    encoder: Arc<Encoder>,
    threads: Arc<Semaphore>,
    /// Longest time of an audit, waiting included.
    audit_limit: Duration,
}

impl Embedder {
    pub(crate) fn new(artifact: Arc<Artifact>, config: &Config) -> Result<Embedder, EncoderError> {
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        Ok(Embedder {
            encoder: Arc::new(Encoder::new(artifact, assay_engine::Config::default().kernel)?),
            threads: Arc::new(Semaphore::new(threads)),
            audit_limit: Duration::from_millis(config.request_deadline_ms),
        })
    }

    /// Runs `work` beside the async threads when a processor is free.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Encoder) -> T + Send + 'static,
    ) -> Result<T, Trouble> {
        let encoder = self.encoder.clone();
        let failed = "The encoder failed on this text: report it.";
        beside(&self.threads, failed, move || work(&encoder)).await
    }

    /// Turns a call into tokens and checks that it fits: context, cap.
    pub(crate) async fn prepare(&self, call: &GenerateCall, offer: &Offer) -> Result<Vec<u32>, Trouble> {
        let request = call.request.clone();
        let tokens = self.in_turn(move |encoder| encoder.tokens(&request)).await?.map_err(|fault| {
            let code = match fault {
                EncoderError::Length { .. } => FailureCode::ContextExceeded,
                _ => FailureCode::BadRequest,
            };
            Trouble::new(code, format!("The request cannot be served: {fault}."))
        })?;
        let price = offer.price(tokens.len() as u32, 0); // at most the context
        check_whole(call, price, "embedding")?;
        Ok(tokens)
    }

    /// Embeds a text: one chunk, then the receipt.
    pub(crate) async fn answer(&self, answer: Answer, tokens: Vec<u32>) {
        answer.metrics.running.inc();
        let output = answer.within_limits(self.in_turn(move |encoder| encoder.output(&tokens))).await;
        answer.metrics.running.dec();
        answer.whole(output).await;
    }

    /// Repeats an embedding and compares it.
    pub(crate) async fn replay(&self, request: Request, output: Output) -> Replayed {
        let work = self.in_turn(move |encoder| {
            let begun = Instant::now();
            (encoder.judge(&request, &output), begun.elapsed())
        });
        Replayed::within(self.audit_limit, work).await
    }
}
