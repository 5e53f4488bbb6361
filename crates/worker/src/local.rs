//! A model that this worker runs itself: one thread owns the engine, and requests reach it through a bounded queue.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use assay_engine::generation::Generation;
use assay_engine::request::{OutputVerdict, Parts, Prepared, Processor, RequestError};
use assay_engine::{Engine, Event, SequenceId};
use assay_model::Artifact;
use assay_receipt::{FailureCode, GenerateCall, Offer, Output, Request, TokenLogprob};
use tokio::sync::{mpsc, oneshot};

use crate::answer::{Answer, Trouble, slow_reader};
use crate::metrics::ModelMetrics;
use crate::{Config, Error, files};

/// Tokens that may wait for one request's task before its reader counts as slow.
const UNREAD_TOKENS: usize = 1024;
/// Most tokens in one chunk; a reader that falls behind gets larger chunks, not more of them.
const CHUNK_TOKENS: usize = 64;

/// A model with its engine's thread, which ends when this is dropped.
pub(crate) struct Local {
    processor: Arc<Processor>,
    jobs: mpsc::Sender<Job>,
    kv_tokens: usize,
}

enum Job {
    Generate(Box<Start>),
    Audit(Box<Replay>),
}

/// A request for the engine. Dropping the receiver of `events` cancels it.
struct Start {
    generation: Generation,
    events: mpsc::Sender<Progress>,
    overflow: Arc<AtomicBool>,
}

/// A replay for the engine. Dropping the receiver of `reply` cancels it.
struct Replay {
    generation: Generation,
    output: Output,
    arrived: Instant,
    reply: oneshot::Sender<Replayed>,
}

/// What a request's task hears from the engine.
enum Progress {
    Token(u32, Option<TokenLogprob>),
    /// The engine has no more tokens: an end token or the length.
    Finished,
    /// The tokens to resume from are not this model's.
    Mismatch { position: u64, expected: u32, claimed: u32 },
    /// The engine refused the sequence or failed.
    Failed(String),
}

/// What a replay found.
pub(crate) enum Replayed {
    Agrees { compute_ms: u64 },
    Differs { field: &'static str, position: u64, expected: u64, claimed: u64, compute_ms: u64 },
    Unable { field: &'static str },
}

impl Local {
    /// Opens an artifact, checks its hashes and starts its engine. Takes seconds: call it where blocking is allowed.
    pub(crate) fn open(path: &Path, config: &Config, metrics: ModelMetrics) -> Result<(Local, Arc<Artifact>), Error> {
        let refused = |fault: String| Error::Model { path: path.to_owned(), fault };
        let artifact = Artifact::parse(files::map(path)?).map_err(|fault| refused(fault.to_string()))?;
        artifact.verify(&mut |_, _| {}).map_err(|fault| refused(fault.to_string()))?;
        let artifact = Arc::new(artifact);
        let manifest = artifact.manifest();
        let processor = Processor::new(Parts {
            tokenizer_json: artifact.tokenizer_json(),
            chat_template: manifest.chat_template.as_deref(),
            bos: manifest.tokens.bos,
            end_tokens: &manifest.tokens.end,
            vocabulary: artifact.config().vocab,
            context: artifact.config().context,
        })
        .map_err(|fault| refused(fault.to_string()))?;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let engine = Engine::new(
            artifact.clone(),
            assay_engine::Config {
                threads,
                kv_tokens: config.kv_tokens,
                max_batch: config.max_batch,
                prefill_chunk: config.prefill_chunk,
                ..assay_engine::Config::default()
            },
        )
        .map_err(|fault| refused(fault.to_string()))?;
        // Room for everything that admission lets in, so that a full channel means a stuck engine.
        let (jobs, queue) = mpsc::channel(config.queue + config.max_batch + config.audits + 1);
        let patience = Duration::from_millis(config.audit_patience_ms);
        let runner = Runner {
            engine,
            queue,
            waiting: VecDeque::new(),
            audits: VecDeque::new(),
            running: HashMap::new(),
            patience,
            metrics,
        };
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || runner.run())
            .map_err(|fault| Error::Start { fault: fault.to_string() })?;
        Ok((Local { processor: Arc::new(processor), jobs, kv_tokens: config.kv_tokens }, artifact))
    }

    /// Whether the engine's thread is alive.
    pub(crate) fn is_alive(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Turns a call into tokens and checks that it fits: context, cache, cap.
    pub(crate) async fn prepare(&self, call: &GenerateCall, offer: &Offer) -> Result<Prepared, Trouble> {
        let mut prepared = self.tokens(call.request.clone()).await?.map_err(|fault| {
            let code = match fault {
                RequestError::ContextExceeded { .. } => FailureCode::ContextExceeded,
                _ => FailureCode::BadRequest,
            };
            Trouble::new(code, format!("The request cannot be served: {fault}."))
        })?;
        let most = prepared.generation.max_tokens;
        let needed = prepared.generation.prompt.len() + most as usize;
        if needed > self.kv_tokens {
            return Err(Trouble::new(
                FailureCode::ContextExceeded,
                format!(
                    "Prompt and answer need {needed} tokens, but this worker holds {}: lower max_tokens or shorten the prompt.",
                    self.kv_tokens
                ),
            ));
        }
        // An answer that was cut off at the cap would not be the model's answer to the request, and a replay would say
        // so. So the cap is checked against the longest answer, before the first token.
        let price = offer.price(prepared.prompt_tokens(), most);
        if price.is_none_or(|price| price > call.cap) {
            return Err(Trouble::new(
                FailureCode::CapExceeded,
                format!(
                    "An answer of {most} tokens may cost {}, over the cap of {}: lower max_tokens or raise the cap.",
                    price.map_or_else(|| "more than 2^128".to_owned(), |price| price.to_string()),
                    call.cap
                ),
            ));
        }
        if call.resume.len() > most as usize {
            return Err(Trouble::new(FailureCode::BadRequest, "There are more tokens to resume from than max_tokens."));
        }
        prepared.generation.resume.clone_from(&call.resume);
        Ok(prepared)
    }

    /// Tokenising and compiling a grammar may take long, so it runs beside the async threads.
    async fn tokens(&self, request: Request) -> Result<Result<Prepared, RequestError>, Trouble> {
        let processor = self.processor.clone();
        tokio::task::spawn_blocking(move || processor.prepare(&request)).await.map_err(|fault| {
            tracing::error!(%fault, "preparing a request failed");
            Trouble::new(FailureCode::Internal, "The worker failed to read this request: report it.")
        })
    }

    /// Runs the request to its end.
    pub(crate) async fn answer(&self, mut answer: Answer, prepared: Prepared) {
        match self.stream(&mut answer, prepared).await {
            Ok(output) => answer.finish(output).await,
            Err(trouble) => answer.fail(trouble).await,
        }
    }

    async fn stream(&self, answer: &mut Answer, prepared: Prepared) -> Result<Output, Trouble> {
        let resumed = prepared.generation.resume.len();
        let mut assembler = prepared.assembler();
        let (sender, mut events) = mpsc::channel(UNREAD_TOKENS.max(resumed + 1));
        let overflow = Arc::new(AtomicBool::new(false));
        let start = Start { generation: prepared.generation, events: sender, overflow: overflow.clone() };
        self.jobs.try_send(Job::Generate(Box::new(start))).map_err(|_| stuck())?;

        let (mut text, mut tokens, mut logprobs) = (String::new(), Vec::new(), Vec::new());
        let with_logprobs = answer.call.request.logprobs.is_some();
        loop {
            let mut batch = Vec::new();
            let count =
                answer.within_limits(async { Ok(events.recv_many(&mut batch, CHUNK_TOKENS).await) }).await?;
            if count == 0 {
                return Err(if overflow.load(Ordering::Acquire) { slow_reader() } else { stuck() });
            }
            let mut done = false;
            for event in batch {
                match event {
                    Progress::Token(token, logprob) => {
                        tokens.push(token);
                        if with_logprobs {
                            logprobs.extend(logprob.clone());
                        }
                        let step = assembler.push(token, logprob);
                        text.push_str(&step.delta);
                        done = step.stop;
                    }
                    Progress::Finished => done = true,
                    Progress::Mismatch { position, expected, claimed } => {
                        return Err(Trouble::new(
                            FailureCode::ResumeMismatch,
                            format!("At position {position} this model samples {expected}, not {claimed}: the tokens to resume from are not its own."),
                        ));
                    }
                    Progress::Failed(fault) => return Err(Trouble::new(FailureCode::Internal, fault)),
                }
                if done {
                    break; // the engine may have run a step ahead of a stop string
                }
            }
            let output = if done {
                let finished = std::mem::replace(&mut assembler, prepared_again(&assembler)).finish();
                text.push_str(&finished.delta);
                Some(finished.output)
            } else {
                None
            };
            // The first chunk holds all the tokens that were resumed from.
            if done || tokens.len() >= resumed {
                let pieces = (std::mem::take(&mut text), std::mem::take(&mut tokens), std::mem::take(&mut logprobs));
                if let Some(line) = answer.chunk(pieces.0, pieces.1, pieces.2)? {
                    answer.within_limits(answer.send(line)).await?;
                }
            }
            if let Some(output) = output {
                return Ok(output);
            }
        }
    }

    /// Repeats an answer and compares it.
    pub(crate) async fn replay(&self, request: Request, output: Output) -> Replayed {
        let prepared = match self.tokens(request).await {
            Ok(Ok(prepared)) => prepared,
            // The worker answered what this model refuses; that is for people to look at, not proof of a lie.
            Ok(Err(_)) => return Replayed::Unable { field: "request" },
            Err(_) => return Replayed::Unable { field: "internal" },
        };
        // Everything but the tokens follows from the tokens; that needs no engine.
        if let OutputVerdict::Differs { field, position, expected, claimed } = prepared.check(&output) {
            return Replayed::Differs { field, position, expected, claimed, compute_ms: 0 };
        }
        let (reply, answer) = oneshot::channel();
        let replay = Replay { generation: prepared.generation, output, arrived: Instant::now(), reply };
        if self.jobs.try_send(Job::Audit(Box::new(replay))).is_err() {
            return Replayed::Unable { field: "internal" };
        }
        answer.await.unwrap_or(Replayed::Unable { field: "internal" })
    }
}

fn stuck() -> Trouble {
    Trouble::new(FailureCode::Internal, "The engine does not run any more: ask another worker.").retry_after(10_000)
}
