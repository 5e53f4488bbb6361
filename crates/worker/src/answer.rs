//! One request on its way: the signed chunks that go out, and the receipt or failure that ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_receipt::{
    Address, AnyStatement, Bytes32, Chain, Chunk, Domain, Failure, FailureCode, Frame, GRAPH_ARITHMETIC,
    GenerateCall, Key, Level, Offer, Output, Receipt, SignedChunk, TokenLogprob,
};
use axum::body::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::Error;
use crate::log::{Draft, Entry};
use crate::metrics::ModelMetrics;
use crate::server::{Held, Phase, Shared, now_ms};

/// Frames that may wait for the reader before it counts as slow.
const UNREAD_FRAMES: usize = 16;

/// Why a request was refused or broke off.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) code: FailureCode,
    pub(crate) message: String,
    pub(crate) retry_after_ms: u64,
}

impl Trouble {
    pub(crate) fn new(code: FailureCode, message: impl Into<String>) -> Trouble {
        Trouble { code, message: message.into(), retry_after_ms: 0 }
    }

    pub(crate) fn retry_after(self, milliseconds: u64) -> Trouble {
        Trouble { retry_after_ms: milliseconds, ..self }
    }

    /// The failure to sign. The log fills in its place in the sequence.
    pub(crate) fn failure(
        self,
        shared: &Shared,
        about: About,
        chain: &Chain,
        received_at_ms: u64,
    ) -> Failure {
        let mut message = self.message;
        if message.len() > assay_receipt::limits::FAILURE_BYTES {
            let end = message.floor_char_boundary(assay_receipt::limits::FAILURE_BYTES);
            message.truncate(end);
        }
        Failure {
            worker: shared.address,
            key_epoch: shared.config.key_epoch,
            model: about.model,
            request: about.request,
            nonce: about.nonce,
            payer: about.payer,
            code: self.code,
            message,
            retry_after_ms: self.retry_after_ms,
            chunks: chain.len(),
            chain: chain.link(),
            sequence: 0,
            previous: Bytes32::ZERO,
            received_at_ms,
            finished_at_ms: now_ms().max(received_at_ms),
        }
    }
}

/// The request that a failure is about. What could not be read of it is zero.
#[derive(Clone, Copy)]
pub(crate) struct About {
    pub(crate) model: Bytes32,
    /// The commitment to it.
    pub(crate) request: Bytes32,
    pub(crate) nonce: Bytes32,
    pub(crate) payer: Address,
}

impl About {
    pub(crate) fn call(call: &GenerateCall, commitment: Bytes32) -> About {
        About { model: call.request.model, request: commitment, nonce: call.nonce, payer: call.payer }
    }
}

/// Refuses a call for something that is given as a whole, such as a "proof", when it costs more than the cap (`None`: more than can be
/// counted) or is asked to resume.
pub(crate) fn check_whole(call: &GenerateCall, price: Option<u128>, what: &str) -> Result<(), Trouble> {
    if price.is_none_or(|price| price > call.cap) {
        let message = format!("The {what} costs more than the cap of {}: raise the cap.", call.cap);
        return Err(Trouble::new(FailureCode::CapExceeded, message));
    }
    if !call.resume.is_empty() {
        let message = format!("The {what} has no tokens to resume from.");
        return Err(Trouble::new(FailureCode::ResumeMismatch, message));
    }
    Ok(())
}

/// An admitted request. It ends in exactly one of [`Answer::finish`] and [`Answer::fail`].
pub(crate) struct Answer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) call: GenerateCall,
    pub(crate) offer: Offer,
    pub(crate) metrics: ModelMetrics,
    commitment: Bytes32,
    chain: Chain,
    /// Text bytes, tokens and log-probabilities of each chunk so far.
    split: Vec<(usize, usize, usize)>,
    frames: mpsc::Sender<Bytes>,
    received_at_ms: u64,
    arrived: Instant,
    first_token_at_ms: Option<u64>,
    /// Place in the queue and nonce, given back when the answer has ended.
    held: Held,
}

impl Answer {
    /// An answer, and where its frames come out as lines of JSON.
    pub(crate) fn new(
        shared: Arc<Shared>,
        call: GenerateCall,
        commitment: Bytes32,
        offer: Offer,
        metrics: ModelMetrics,
        received_at_ms: u64,
        held: Held,
    ) -> (Answer, mpsc::Receiver<Bytes>) {
        let (frames, lines) = mpsc::channel(UNREAD_FRAMES);
        let chain = Chain::start(&commitment, &call.nonce);
        let arrived = Instant::now();
        let first_token_at_ms = None;
        let answer = Answer {
            shared,
            call,
            offer,
            metrics,
            commitment,
            chain,
            split: Vec::new(),
            frames,
            received_at_ms,
            arrived,
            first_token_at_ms,
            held,
        };
        (answer, lines)
    }

    /// The commitment to the request.
    pub(crate) fn commitment(&self) -> Bytes32 {
        self.commitment
    }

    /// Runs `work` until it ends, the caller goes away, the time is over, or the worker stops.
    pub(crate) async fn within_limits<T>(
        &self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let mut phase = self.shared.phase.subscribe();
        let limit = Duration::from_millis(self.shared.config.request_deadline_ms);
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => Err(Trouble::new(
                FailureCode::Draining,
                "The worker is shutting down and could not wait for this answer: ask another worker.",
            )),
            () = self.frames.closed() => Err(Trouble::new(FailureCode::Cancelled, "The caller went away.")),
            () = tokio::time::sleep(limit.saturating_sub(self.arrived.elapsed())) => Err(Trouble::new(
                FailureCode::Cancelled,
                "The answer took longer than this worker allows: ask for fewer tokens.",
            )),
            result = work => result,
        }
    }

    /// The next chunk, signed, as a line for [`Answer::send`]. An empty one is left out.
    pub(crate) fn chunk(
        &mut self,
        text: String,
        tokens: Vec<u32>,
        logprobs: Vec<TokenLogprob>,
    ) -> Result<Option<Bytes>, Trouble> {
        if text.is_empty() && tokens.is_empty() && logprobs.is_empty() {
            return Ok(None);
        }
        self.mark_first_token();
        self.metrics.completion_tokens.inc_by(tokens.len() as u64);
        self.split.push((text.len(), tokens.len(), logprobs.len()));
        let chunk = Chunk { index: self.chain.len(), text, tokens, logprobs };
        let signed = self
            .chain
            .sign(&self.shared.key, &self.shared.config.domain, chunk)
            .map_err(|fault| Trouble::new(FailureCode::Internal, fault.to_string()))?;
        line(&Frame::Chunk(signed)).map(Some)
    }

    /// Notes the time of the first token, once.
    pub(crate) fn mark_first_token(&mut self) {
        if self.first_token_at_ms.is_none() {
            self.first_token_at_ms = Some(now_ms().max(self.received_at_ms));
            self.metrics.first_token.observe(self.arrived.elapsed().as_secs_f64());
        }
    }

    /// Hands a line to the reader, waiting for it for a while.
    pub(crate) async fn send(&self, line: Bytes) -> Result<(), Trouble> {
        let patience = Duration::from_millis(self.shared.config.reader_deadline_ms);
        match tokio::time::timeout(patience, self.frames.send(line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Trouble::new(FailureCode::Cancelled, "The caller went away.")),
            Err(_) => Err(slow_reader()),
        }
    }

    /// Sends an answer that comes in one piece and ends it.
    pub(crate) async fn whole(mut self, output: Result<Output, Trouble>) {
        let sent = match output.and_then(|output| {
            let line = self.chunk(output.text.clone(), Vec::new(), Vec::new())?;
            Ok((output, line))
        }) {
            Ok((output, Some(line))) => self.within_limits(self.send(line)).await.map(|()| output),
            Ok((output, None)) => Ok(output),
            Err(trouble) => Err(trouble),
        };
        match sent {
            Ok(output) => self.finish(output).await,
            Err(trouble) => self.fail(trouble).await,
        }
    }

    /// Ends the answer with a receipt: signed, on disk, then sent.
    pub(crate) async fn finish(mut self, output: Output) {
        self.mark_first_token();
        let Some(price) = self.offer.price(output.prompt_tokens, output.completion_tokens) else {
            return self.fail(Trouble::new(FailureCode::Internal, "The price is too large to state.")).await;
        };
        if price > self.call.cap {
            // Admission excludes it for own models; a forwarder only learns the usage at the end.
            let message =
                format!("The answer's price of {price} is over the cap of {}: raise the cap.", self.call.cap);
            return self.fail(Trouble::new(FailureCode::CapExceeded, message)).await;
        }
        let finished_at_ms = now_ms().max(self.received_at_ms);
        let receipt = Receipt {
            worker: self.shared.address,
            key_epoch: self.shared.config.key_epoch,
            model: self.call.request.model,
            arithmetic: self.offer.arithmetic,
            level: match self.offer.arithmetic {
                GRAPH_ARITHMETIC => Level::Proved,
                _ => Level::Signed,
            },
            request: self.commitment,
            output: assay_receipt::output_commitment(&output, &self.call.salt),
            chunks: self.chain.len(),
            chain: self.chain.link(),
            trace: Bytes32::ZERO,
            prompt_tokens: output.prompt_tokens,
            completion_tokens: output.completion_tokens,
            price,
            payer: self.call.payer,
            cap: self.call.cap,
            nonce: self.call.nonce,
            sequence: 0,
            previous: Bytes32::ZERO,
            received_at_ms: self.received_at_ms,
            first_token_at_ms: self.first_token_at_ms.unwrap_or(finished_at_ms).min(finished_at_ms),
            finished_at_ms,
        };
        tracing::info!(
            nonce = %self.call.nonce,
            model = %self.call.request.model,
            prompt_tokens = output.prompt_tokens,
            completion_tokens = output.completion_tokens,
            first_token_ms = receipt.first_token_at_ms - receipt.received_at_ms,
            total_ms = finished_at_ms - receipt.received_at_ms,
            "request answered"
        );
        self.metrics.answers.inc();
        self.metrics.prompt_tokens.inc_by(output.prompt_tokens.into());
        self.metrics.total.observe(self.arrived.elapsed().as_secs_f64());
        self.held.served(self.arrived.elapsed());
        let split = std::mem::take(&mut self.split);
        let voucher = crate::settle::kept(&self.call, price).map(Box::new);
        self.end(Draft::Receipt(Box::new(receipt), Box::new(output), split, voucher)).await;
    }

    /// Ends the answer with a signed failure.
    pub(crate) async fn fail(self, trouble: Trouble) {
        tracing::info!(nonce = %self.call.nonce, code = ?trouble.code, message = trouble.message, "request failed");
        self.shared.metrics.failed(trouble.code);
        let about = About::call(&self.call, self.commitment);
        let failure = trouble.failure(&self.shared, about, &self.chain, self.received_at_ms);
        self.end(Draft::Failure(Box::new(failure))).await;
    }

    /// Commits the draft and sends it. When the log fails, the stream just breaks: what is not on disk is not said.
    async fn end(self, draft: Draft) {
        let started = Instant::now();
        let entry = match self.shared.log.sign(draft).await {
            Ok(entry) => entry,
            Err(error) => {
                tracing::error!(%error, nonce = %self.call.nonce, "an answer could not be signed off");
                return;
            }
        };
        self.shared.metrics.commit.observe(started.elapsed().as_secs_f64());
        let Some(frame) = frame(entry) else { return };
        let Ok(line) = line(&frame) else { return };
        // The nonce is in the log now, and the reader may take its time without holding a place.
        drop(self.held);
        let patience = Duration::from_millis(self.shared.config.reader_deadline_ms);
        let _ = tokio::time::timeout(patience, self.frames.send(line)).await; // else it can be fetched by its nonce
    }
}

/// Runs `work` beside the async threads as soon as `turns` has a place for it; `failed` is what a caller reads if it panics.
pub(crate) async fn beside<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    failed: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Trouble> {
    let internal = || Trouble::new(FailureCode::Internal, failed);
    let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| internal())?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.map_err(|fault| {
        tracing::error!(%fault, "{failed}");
        internal()
    })
}

/// The chunks of a logged answer, signed again. `None` when they do not lead to the receipt, as after a change of keys.
pub(crate) fn chunks_again(
    key: &Key,
    domain: &Domain,
    receipt: &Receipt,
    output: &Output,
    split: &[(usize, usize, usize)],
) -> Option<Vec<SignedChunk>> {
    let mut chain = Chain::start(&receipt.request, &receipt.nonce);
    let (mut text, mut tokens, mut logprobs) = (&*output.text, &*output.tokens, &*output.logprobs);
    let mut chunks = Vec::with_capacity(split.len());
    for (index, part) in split.iter().enumerate() {
        let (own_text, rest_text) = text.split_at_checked(part.0)?;
        let (own_tokens, rest_tokens) = tokens.split_at_checked(part.1)?;
        let (own_logprobs, rest_logprobs) = logprobs.split_at_checked(part.2)?;
        (text, tokens, logprobs) = (rest_text, rest_tokens, rest_logprobs);
        let chunk = Chunk {
            index: index as u64,
            text: own_text.to_owned(),
            tokens: own_tokens.to_vec(),
            logprobs: own_logprobs.to_vec(),
        };
        chunks.push(chain.sign(key, domain, chunk).ok()?);
    }
    (chain.link() == receipt.chain && key.address() == receipt.worker).then_some(chunks)
}

pub(crate) fn slow_reader() -> Trouble {
    Trouble::new(FailureCode::Cancelled, "The caller reads too slowly: read faster, or ask for fewer tokens.")
}

/// The frame that ends a stream.
pub(crate) fn frame(entry: Entry) -> Option<Frame> {
    match (entry.statement, entry.output) {
        (AnyStatement::Receipt(receipt), Some(output)) => Some(Frame::Receipt { receipt, output }),
        (AnyStatement::Failure(failure), _) => Some(Frame::Failure(failure)),
        _ => None,
    }
}

fn line(frame: &Frame) -> Result<Bytes, Trouble> {
    let mut bytes = serde_json::to_vec(frame).map_err(|fault| {
        Trouble::new(FailureCode::Internal, format!("A frame could not be encoded: {fault}."))
    })?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        tracing::error!(%error, "a request failed within the worker");
        // The caller gets no paths and no system messages.
        Trouble::new(FailureCode::Internal, "The worker failed: ask another worker.").retry_after(5_000)
    }
}
