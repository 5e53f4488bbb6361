//! A model that this worker runs itself: one thread owns the engine, and requests reach it through a bounded queue.
//! `memory.rs` says which models are loaded.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use assay_engine::generation::Generation;
use assay_engine::request::{OutputVerdict, Prepared, Processor, RequestError, judge, judge_error};
use assay_engine::{Engine, Event, Priority, SequenceId, Service, Stats, Tenant};
use assay_model::Artifact;
use assay_receipt::{Bytes32, FailureCode, GenerateCall, Offer, Output, Request, TokenLogprob};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::answer::{Answer, Trouble, slow_reader};
use crate::memory::{File, Lease, Memory, Slot};
use crate::metrics::ModelMetrics;
use crate::{Config, Error, Model};

/// Tokens that may wait for one request's task before its reader counts as slow.
const UNREAD_TOKENS: usize = 1024;
/// Most tokens in one chunk; a reader that falls behind gets larger chunks, not more of them.
const CHUNK_TOKENS: usize = 64;

/// The part of the cache, one in so many, that audits may claim from requests. Anybody may ask for audits.
pub(crate) const AUDIT_CACHE: usize = 2;

/// A model that can be asked. Its engine runs while [`Memory`] has it loaded.
pub(crate) struct Local {
    processor: Arc<Processor>,
    memory: Arc<Memory>,
    /// Its place in `memory`.
    slot: usize,
    /// Most tokens of prompt and answer together.
    context: usize,
    /// Longest time of an audit, waiting included.
    audit_limit: Duration,
    /// One trace at a time is recorded.
    pub(crate) traces: Arc<Semaphore>,
}

/// What is to be recorded for a light check, and the right to do so.
pub(crate) struct Recording {
    pub(crate) artifact: Arc<Artifact>,
    pub(crate) generation: Generation,
    pub(crate) tokens: Vec<u32>,
    _turn: OwnedSemaphorePermit,
    _lease: Lease,
}

/// What others need to know of a model's file.
pub(crate) struct ModelFile {
    pub(crate) id: Bytes32,
    pub(crate) arithmetic: u32,
    /// Byte for byte: its hash is the id.
    pub(crate) manifest: Vec<u8>,
    pub(crate) tokenizer: Vec<u8>,
}

pub(crate) enum Job {
    Generate(Box<Start>),
    Audit(Box<Replay>),
}

/// A request for the engine. Dropping the receiver of `events` cancels it.
pub(crate) struct Start {
    generation: Generation,
    service: Service,
    running: Running,
}

/// Where the tokens of a request go.
struct Running {
    events: mpsc::Sender<Progress>,
    overflow: Arc<AtomicBool>,
    /// When its last token came.
    last: Option<Instant>,
}

/// A replay for the engine. Dropping the receiver of `reply` cancels it.
pub(crate) struct Replay {
    generation: Generation,
    output: Output,
    arrived: Instant,
    reply: oneshot::Sender<Replayed>,
}

impl Replay {
    /// Tokens of cache that it takes.
    fn needed(&self) -> usize {
        self.generation.prompt.len() + self.output.tokens.len()
    }
}

/// What a request's task hears from the engine.
enum Progress {
    Token(u32, Option<TokenLogprob>),
    /// The engine has no more tokens: an end token or the length.
    Finished,
    /// The tokens to resume from are not this model's.
    Mismatch(String),
    /// The constraint leaves no token that could come next, which is the request's fault.
    Stuck(String),
    /// The engine refused the sequence or failed.
    Failed(String),
}

/// What a replay found.
pub(crate) enum Replayed {
    Judged {
        verdict: OutputVerdict,
        compute_ms: u64,
    },
    /// A limit or fault of this worker, which says nothing about the answer.
    Unable {
        field: &'static str,
    },
}

impl Replayed {
    /// What a check finds that says how long it computed, or that it did not end in time.
    pub(crate) async fn within(
        limit: Duration,
        work: impl Future<Output = Result<(OutputVerdict, Duration), Trouble>>,
    ) -> Replayed {
        match tokio::time::timeout(limit, work).await {
            Ok(Ok((verdict, compute))) => Replayed::judged(verdict, compute),
            Ok(Err(_)) => Replayed::Unable { field: "internal" },
            Err(_) => Replayed::Unable { field: "time" },
        }
    }

    fn judged(verdict: OutputVerdict, compute: Duration) -> Replayed {
        Replayed::Judged { verdict, compute_ms: u64::try_from(compute.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl ModelFile {
    pub(crate) fn of(artifact: &assay_model::Artifact) -> ModelFile {
        ModelFile {
            id: artifact.id(),
            arithmetic: artifact.manifest().arithmetic,
            manifest: artifact.manifest().canonical(),
            tokenizer: artifact.tokenizer_json().to_vec(),
        }
    }
}

impl Local {
    /// Opens an artifact and checks its hashes. Takes seconds: call it where blocking is allowed.
    pub(crate) fn open(
        model: &Model,
        config: &Config,
        memory: &Arc<Memory>,
        metrics: ModelMetrics,
    ) -> Result<(Local, ModelFile), Error> {
        let refused = |fault: String| Error::Model { path: model.artifact.clone(), fault };
        let (artifact, file) = File::verify(&model.artifact)?;
        let draft = model.draft.as_deref().map(File::verify).transpose()?;
        let processor = Processor::from_artifact(&artifact).map_err(|fault| refused(fault.to_string()))?;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let engine = assay_engine::Config {
            threads,
            kv_bytes: config.kv_bytes,
            max_batch: config.max_batch,
            max_waiting: config.queue + 1, // the one more is for an audit
            prefill_chunk: config.prefill_chunk,
            ..assay_engine::Config::default()
        };
        let context = artifact
            .config()
            .context
            .min(engine.kv_tokens(&artifact, draft.as_ref().map(|(draft, _)| draft)));
        if context == 0 {
            return Err(refused(format!("kv_bytes = {} has no room for a page of it", config.kv_bytes)));
        }
        let opened = ModelFile::of(&artifact);
        let slot = Slot {
            bytes: file.bytes() + draft.as_ref().map_or(0, |(_, file)| file.bytes()) + config.kv_bytes as u64,
            file,
            draft: draft.map(|(_, file)| file),
            // Room for everything that admission lets in, so that a full channel means a stuck engine.
            places: config.queue + config.max_batch + config.audits + 1,
            engine,
            patience: Duration::from_millis(config.audit_patience_ms),
            metrics,
            users: Arc::default(),
        };
        let local = Local {
            processor: Arc::new(processor),
            memory: memory.clone(),
            slot: memory.add(slot)?,
            context,
            audit_limit: Duration::from_millis(config.request_deadline_ms),
            traces: Arc::new(Semaphore::new(1)),
        };
        Ok((local, opened))
    }

    /// Most tokens of prompt and answer together: what the model was made for and what fits in memory.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// Whether the engine's thread is alive, if there is one.
    pub(crate) fn is_alive(&self) -> bool {
        self.memory.is_alive(self.slot)
    }

    /// Makes sure that the model is loaded, and stays so while the lease is held.
    pub(crate) async fn lease(&self) -> Result<Lease, Trouble> {
        self.memory.lease(self.slot).await
    }

    /// Turns a call into tokens and checks that it fits: context, cache, cap.
    pub(crate) async fn prepare(&self, call: &GenerateCall, offer: &Offer) -> Result<Prepared, Trouble> {
        let request = call.request.clone();
        let prepared = self.beside(move |processor| processor.prepare(&request)).await?;
        let mut prepared = prepared.map_err(|fault| {
            let code = match fault {
                RequestError::ContextExceeded { .. } => FailureCode::ContextExceeded,
                _ => FailureCode::BadRequest,
            };
            Trouble::new(code, format!("The request cannot be served: {fault}."))
        })?;
        let most = prepared.generation.max_tokens;
        let needed = prepared.generation.prompt.len() + most as usize;
        if needed > self.context {
            return Err(Trouble::new(
                FailureCode::ContextExceeded,
                format!(
                    "Prompt and answer need {needed} tokens, but this worker holds {}: lower max_tokens or shorten the prompt.",
                    self.context
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
        // Before the first chunk: whoever made these tokens did not take them from this model.
        prepared.resume(&call.resume).map_err(|fault| {
            Trouble::new(FailureCode::ResumeMismatch, format!("The answer cannot be resumed: {fault}."))
        })?;
        Ok(prepared)
    }

    /// Tokenising and compiling a grammar may take long, so it runs beside the async threads.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Processor) -> T + Send + 'static,
    ) -> Result<T, Trouble> {
        let processor = self.processor.clone();
        tokio::task::spawn_blocking(move || work(&processor)).await.map_err(|fault| {
            tracing::error!(%fault, "preparing a request failed");
            Trouble::new(FailureCode::Internal, "The worker failed to read this request: report it.")
        })
    }

    /// Runs the request to its end.
    pub(crate) async fn answer(&self, mut answer: Answer, prepared: Prepared, lease: Lease) {
        match self.stream(&mut answer, prepared, &lease).await {
            Ok(output) => answer.finish(output).await,
            Err(trouble) => answer.fail(trouble).await,
        }
    }

    async fn stream(
        &self,
        answer: &mut Answer,
        prepared: Prepared,
        lease: &Lease,
    ) -> Result<Output, Trouble> {
        let resumed = prepared.generation.resume.len();
        let mut assembler = prepared.assembler();
        let (sender, mut events) = mpsc::channel(UNREAD_TOKENS.max(resumed + 1));
        let overflow = Arc::new(AtomicBool::new(false));
        let service = Service {
            // Somebody has read the beginning already.
            priority: if resumed > 0 { Priority::High } else { Priority::Normal },
            tenant: answer.call.tenant.map(|tenant| Tenant(tenant.0)),
        };
        let running = Running { events: sender, overflow: overflow.clone(), last: None };
        let start = Start { generation: prepared.generation, service, running };
        lease.send(Job::Generate(Box::new(start))).map_err(|_| stuck())?;

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
                    Progress::Mismatch(fault) => {
                        return Err(Trouble::new(FailureCode::ResumeMismatch, fault));
                    }
                    Progress::Stuck(fault) => return Err(Trouble::new(FailureCode::BadRequest, fault)),
                    Progress::Failed(fault) => return Err(Trouble::new(FailureCode::Internal, fault)),
                }
                if done {
                    break; // the engine may have run a step ahead of a stop string
                }
            }
            let output = if done {
                let finished = assembler.clone().finish();
                text.push_str(&finished.delta);
                Some(finished.output)
            } else {
                None
            };
            // The first chunk holds all the tokens that were resumed from.
            if done || assembler.tokens().len() >= resumed {
                let pieces =
                    (std::mem::take(&mut text), std::mem::take(&mut tokens), std::mem::take(&mut logprobs));
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
        // Everything but the tokens follows from the tokens; that needs no engine.
        let examined = self
            .beside(move |processor| processor.examine(&request, &output).map(|prepared| (prepared, output)))
            .await;
        let (prepared, output) = match examined {
            Ok(Ok(open)) => open,
            Ok(Err(verdict)) => return Replayed::Judged { verdict, compute_ms: 0 },
            Err(_) => return Replayed::Unable { field: "internal" },
        };
        let Ok(lease) = self.lease().await else {
            return Replayed::Unable { field: "memory" };
        };
        let (reply, answer) = oneshot::channel();
        let replay = Replay { generation: prepared.generation, output, arrived: Instant::now(), reply };
        if lease.send(Job::Audit(Box::new(replay))).is_err() {
            return Replayed::Unable { field: "internal" };
        }
        match tokio::time::timeout(self.audit_limit, answer).await {
            Ok(replayed) => replayed.unwrap_or(Replayed::Unable { field: "internal" }),
            Err(_) => Replayed::Unable { field: "time" }, // the engine forgets it, since nobody waits
        }
    }
}

impl Local {
    /// Prepares the recording of an answer, or says why there is none. Keys and values of a recording are beside those of the
    /// engine, and take no more memory than audits may. `turn` is of `traces`.
    pub(crate) async fn recording(
        &self,
        request: Request,
        output: Output,
        turn: OwnedSemaphorePermit,
    ) -> Result<Recording, Trouble> {
        let examined = self.beside(move |processor| {
            let prepared = processor.examine(&request, &output);
            prepared.map(|prepared| (prepared.generation, output.tokens))
        });
        let Ok((generation, tokens)) = examined.await? else {
            let message = "The answer is not this model's, and no trace can show that it is.";
            return Err(Trouble::new(FailureCode::BadRequest, message));
        };
        let (needed, most) = (generation.prompt.len() + tokens.len(), self.context / AUDIT_CACHE);
        if tokens.is_empty() || needed > most {
            let message =
                format!("The text has {needed} tokens, and traces are made of answers with up to {most}.");
            return Err(Trouble::new(FailureCode::ContextExceeded, message));
        }
        let lease = self.lease().await?;
        let (memory, slot) = (self.memory.clone(), self.slot);
        let opened = tokio::task::spawn_blocking(move || memory.open(slot)).await;
        let opened = opened.map_err(|fault| Error::Start { fault: fault.to_string() })?;
        Ok(Recording { artifact: opened?, generation, tokens, _turn: turn, _lease: lease })
    }
}

fn stuck() -> Trouble {
    Trouble::new(FailureCode::Internal, "The engine does not run any more: ask another worker.")
        .retry_after(10_000)
}

/// The engine's thread.
struct Runner {
    engine: Engine,
    queue: mpsc::Receiver<Job>,
    audits: VecDeque<Replay>,
    /// Requests that the engine has, waiting or running.
    running: HashMap<SequenceId, Running>,
    /// The replay that runs, when it began, and the time that its steps took.
    replaying: Option<(SequenceId, Replay, Duration)>,
    /// Until when requests go before all audits, because an audit has just had its turn.
    rest_until: Instant,
    /// How long an audit lets requests go first.
    patience: Duration,
    /// What the metrics have of the engine's counters.
    counted: Stats,
    metrics: ModelMetrics,
}

/// The engine's clock.
fn nanoseconds() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Runs a model in a thread of its own, which ends when `queue` does.
pub(crate) fn start(
    engine: Engine,
    queue: mpsc::Receiver<Job>,
    patience: Duration,
    metrics: ModelMetrics,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    engine.set_clock(nanoseconds);
    let runner = Runner {
        engine,
        queue,
        audits: VecDeque::new(),
        running: HashMap::new(),
        replaying: None,
        rest_until: Instant::now(),
        patience,
        counted: Stats::default(),
        metrics,
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || runner.run())
}

impl Runner {
    fn run(mut self) {
        loop {
            self.count();
            if self.running.is_empty() && self.replaying.is_none() && self.audits.is_empty() {
                match self.queue.blocking_recv() {
                    Some(job) => self.take(job),
                    None => return, // the worker has ended
                }
            }
            while let Ok(job) = self.queue.try_recv() {
                self.take(job);
            }
            self.forget();
            self.start_audit();
            self.count();
            if self.engine.is_idle() {
                continue;
            }
            let span =
                tracing::trace_span!("step", rows = tracing::field::Empty, running = self.running.len());
            let started = Instant::now();
            let events = match span.in_scope(|| self.engine.step()) {
                Ok(events) => events,
                Err(error) => {
                    // Everything that waits hears that the channel is closed, and signs it off; health turns red.
                    tracing::error!(%error, "the engine failed");
                    return;
                }
            };
            let time = started.elapsed();
            let rows = self.engine.stats().rows - self.counted.rows;
            span.record("rows", rows);
            self.metrics.step.observe(time.as_secs_f64());
            self.metrics.step_rows.observe(rows as f64);
            if let Some((_, _, compute)) = &mut self.replaying {
                *compute += time;
            }
            for event in events {
                self.handle(event);
            }
        }
    }

    /// Brings the metrics up to date.
    fn count(&mut self) {
        let (now, before, metrics) = (self.engine.stats(), self.counted, &self.metrics);
        metrics.waiting.set(now.waiting as i64);
        metrics.running.set(now.running as i64);
        metrics.kv_pages.set(now.pages as i64);
        metrics.kv_pages_held.set(now.pages_held as i64);
        metrics.kv_pages_cached.set(now.pages_cached as i64);
        metrics.tokens_found.inc_by(now.tokens_found - before.tokens_found);
        metrics.guessed.inc_by(now.guessed - before.guessed);
        metrics.guessed_right.inc_by(now.guessed_right - before.guessed_right);
        metrics.preempted.inc_by(now.preempted - before.preempted);
        metrics.spent(before.spent, now.spent);
        self.counted = now;
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Generate(start) => match self.engine.submit(start.generation, start.service) {
                Ok(id) => {
                    self.running.insert(id, start.running);
                }
                Err(fault) => {
                    let fault = Progress::Failed(format!("The engine refused the request: {fault}."));
                    let _ = start.running.events.try_send(fault);
                }
            },
            Job::Audit(replay) => self.audits.push_back(*replay),
        }
    }

    /// Drops everything that nobody waits for any more, and frees its memory.
    fn forget(&mut self) {
        self.audits.retain(|replay| !replay.reply.is_closed());
        let engine = &mut self.engine;
        self.running.retain(|id, running| {
            let wanted = !running.events.is_closed();
            if !wanted {
                engine.cancel(*id);
            }
            wanted
        });
        if let Some((id, _, compute)) = self.replaying.take_if(|(_, replay, _)| replay.reply.is_closed()) {
            self.engine.cancel(id);
            self.rest_until = Instant::now() + compute;
        }
    }

    /// Starts an audit if none runs and it is its turn: there is no request, or it has waited for long and does not
    /// need much of the memory. It then is a sequence like others, which the engine lets neither starve nor wait long.
    /// One that needs more, and one right after another, wait until there is no request.
    fn start_audit(&mut self) {
        while self.replaying.is_none()
            && let Some(replay) = self.audits.front()
        {
            let part = self.engine.kv_tokens() / AUDIT_CACHE;
            let overdue = replay.arrived.elapsed() >= self.patience
                && replay.needed() <= part
                && Instant::now() >= self.rest_until;
            if !self.running.is_empty() && !overdue {
                return;
            }
            let priority = if overdue { Priority::Normal } else { Priority::Low };
            let service = Service { priority, tenant: None };
            let Some(replay) = self.audits.pop_front() else { return };
            match self.engine.submit_replay(&replay.generation, &replay.output.tokens, service) {
                Ok(id) => self.replaying = Some((id, replay, Duration::ZERO)),
                Err(error) => {
                    let replayed = settled(judge_error(error, &replay.output), Duration::ZERO);
                    let _ = replay.reply.send(replayed);
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Token { id, token, logprob, .. } => self.tell(id, Progress::Token(token, logprob), false),
            Event::Finished { id, .. } => self.tell(id, Progress::Finished, true),
            Event::ResumeMismatch { id, position, expected, claimed } => {
                let fault = match expected {
                    Some(expected) => format!(
                        "At position {position} this model samples {expected}, not {claimed}: the tokens to resume from are not its own."
                    ),
                    None => format!(
                        "This model's answer ends before position {position}, where {claimed} stands: the tokens to resume from are not its own."
                    ),
                };
                self.tell(id, Progress::Mismatch(fault), true);
            }
            Event::Stuck { id, position, reason } => {
                if let Some((_, replay, compute)) =
                    self.replaying.take_if(|(replaying, _, _)| *replaying == id)
                {
                    self.rest_until = Instant::now() + compute;
                    let error = assay_engine::Error::Constraint { position, reason };
                    let _ = replay.reply.send(settled(judge_error(error, &replay.output), compute));
                } else {
                    let fault = format!(
                        "The constraint cannot be followed at token {position} ({reason}): simplify it."
                    );
                    self.tell(id, Progress::Stuck(fault), true);
                }
            }
            Event::Replayed { id, replay: result } => {
                if let Some((_, replay, compute)) =
                    self.replaying.take_if(|(replaying, _, _)| *replaying == id)
                {
                    self.rest_until = Instant::now() + compute;
                    self.metrics.audit.observe(compute.as_secs_f64());
                    let _ = replay.reply.send(settled(Ok(judge(&result, &replay.output)), compute));
                }
            }
        }
    }

    /// Tells a request's task, without ever waiting for it.
    fn tell(&mut self, id: SequenceId, progress: Progress, last: bool) {
        let Some(running) = self.running.get_mut(&id) else { return };
        if let Progress::Token(..) = progress {
            let now = Instant::now();
            if let Some(last) = running.last.replace(now) {
                self.metrics.between_tokens.observe((now - last).as_secs_f64());
            }
        }
        let gone = match running.events.try_send(progress) {
            Ok(()) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                running.overflow.store(true, Ordering::Release);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => true,
        };
        if gone || last {
            self.running.remove(&id);
            if gone {
                self.engine.cancel(id);
            }
        }
    }
}

/// A verdict with the time that it took, or why there is none.
fn settled(verdict: Result<OutputVerdict, assay_engine::Error>, compute: Duration) -> Replayed {
    match verdict {
        Ok(verdict) => Replayed::judged(verdict, compute),
        Err(fault) => {
            tracing::info!(%fault, "an audit cannot be replayed here");
            Replayed::Unable { field: "engine" }
        }
    }
}
