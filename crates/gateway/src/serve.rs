//! One answer, from the intent to the stored receipt: choosing workers, checking every frame, failing over in the
//! middle of a stream, and replaying where the policy asks for it.
//!
//! The answer to a request is determined by the request. So when a worker fails, the same request goes to another
//! one together with the tokens that were received so far; that worker replays them and goes on. The caller sees one
//! answer, and the receipt of the worker that ended it covers all of it.

use crate::audit::{self, Found, Subject};
use crate::client::{CallError, Frames};
use crate::clock::now_ms;
use crate::config::{Level, Moment, Policy};
use crate::error::{ApiError, Error};
use crate::gateway::{Gateway, dice, random};
use crate::proofs::{self, Found as FoundProof, Kept, Proving, Unproved};
use crate::record::{Choice, InFlight, Need};
use crate::store::{Attempt, AuditRow, Due, Entry, Evidence, State};
use assay_proof::Model;
use assay_receipt::{
    Address, BUNDLE_VERSION, Bundle, Bytes32, Chain, Domain, Failure, FailureCode, Frame, GRAPH_ARITHMETIC,
    GenerateCall, Member, Members, Output, Prompt, Request, Signed, SignedChunk, TokenLogprob, Verdict,
    limits, request_commitment,
};
use assay_verify::{Expected, FailureEvidence};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// Pieces that wait for a caller before the worker is slowed down.
const QUEUE: usize = 32;

/// A request that is ready to be sent.
pub(crate) struct Job {
    /// What stands before the hex digits in the request id.
    pub(crate) prefix: &'static str,
    pub(crate) model_name: String,
    pub(crate) request: Request,
    pub(crate) policy: Policy,
    pub(crate) sample_ppm: Option<u32>,
    /// Name of the API key.
    pub(crate) key: String,
    /// Whether the caller sees pieces of the answer before its end.
    pub(crate) streams: bool,
    /// What the answer is a proof of, if an integer graph is asked.
    pub(crate) inference: Option<Inference>,
    /// The answer in text whose proof is asked for, if one is.
    pub(crate) proof: Option<Arc<Proving>>,
}

impl Job {
    /// What is paid for where that is known before: examples, or positions of a text to prove.
    fn units(&self) -> Option<u32> {
        let inference = self.inference.as_ref().map(|inference| inference.examples);
        inference.or(self.proof.as_ref().map(|proving| proving.positions))
    }
}

/// Examples for an integer graph.
#[derive(Clone)]
pub(crate) struct Inference {
    pub(crate) model: Arc<Model>,
    pub(crate) examples: u32,
}

/// What the caller gets to see.
pub(crate) enum Event {
    /// The next piece.
    Delta(Delta),
    /// The end; everything in it is stored.
    Done(Box<Answer>),
    /// There is no answer.
    Failed(Box<ApiError>),
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delta {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
}

/// A complete answer.
pub(crate) struct Answer {
    pub(crate) output: Output,
    pub(crate) assay: Assay,
}

/// The `assay` object of an answer: where its receipt is and what is known about it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Assay {
    pub(crate) request_id: String,
    pub(crate) level: Level,
    pub(crate) state: &'static str,
    pub(crate) worker: Address,
    pub(crate) operator: String,
    pub(crate) model: Bytes32,
    pub(crate) receipt_hash: Bytes32,
    pub(crate) nonce: Bytes32,
    pub(crate) seed: u64,
    /// In 10^-18 OPG, as a decimal string.
    pub(crate) price: String,
    /// Workers that were asked.
    pub(crate) attempts: usize,
    pub(crate) bundle_url: String,
    pub(crate) audit: Option<AuditSummary>,
}

/// The audit of an answer, in short.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AuditSummary {
    pub(crate) auditor: Address,
    pub(crate) operator: String,
    pub(crate) verdict: Verdict,
    pub(crate) compute_ms: u64,
    pub(crate) elapsed_ms: u64,
}

impl From<&AuditRow> for AuditSummary {
    fn from(row: &AuditRow) -> AuditSummary {
        AuditSummary {
            auditor: row.audit.statement.auditor,
            operator: row.auditor_operator.clone(),
            verdict: row.audit.statement.verdict,
            compute_ms: row.audit.statement.compute_ms,
            elapsed_ms: row.elapsed_ms,
        }
    }
}

/// A request on its way.
pub(crate) struct Running {
    pub(crate) request_id: String,
    pub(crate) events: mpsc::Receiver<Event>,
}

/// The request id that belongs to a nonce.
pub(crate) fn request_id(prefix: &str, nonce: &Bytes32) -> String {
    let hex = nonce.to_string();
    format!("{prefix}{}", &hex[2..34])
}

/// Stores the intent and starts to answer. Dropping the receiver of the events cancels the request.
pub(crate) async fn start(gateway: &Arc<Gateway>, job: Job) -> Result<Running, Error> {
    // It begins with the time, since nonces settle in ascending order (docs/settlement.md).
    let mut nonce = Bytes32(random()?);
    nonce.0[..8].copy_from_slice(&crate::clock::now_ms().to_be_bytes());
    let salt = Bytes32(random()?);
    let entry = Entry {
        request_id: request_id(job.prefix, &nonce),
        nonce,
        salt,
        payer: gateway.config.payer,
        model_name: job.model_name.clone(),
        key: job.key.clone(),
        created_at_ms: now_ms(),
        policy: job.policy,
        state: State::Pending,
        attempts: Vec::new(),
        settled_at_ms: None,
        worker: None,
        receipt_hash: None,
        bill: None,
        error: None,
        proof: None,
        proof_due: false,
        request: job.request.clone(),
    };
    gateway.store.begin(&entry).await?;
    let (caller, events) = mpsc::channel(QUEUE);
    let request_id = entry.request_id.clone();
    let drive = Drive {
        visible: job.streams && job.policy.moment != Moment::BeforeFirstToken,
        commitment: request_commitment(&job.request, &salt),
        gateway: Arc::clone(gateway),
        request_id: entry.request_id,
        nonce,
        salt,
        job,
        caller,
        tried: Vec::new(),
        attempts: 0,
        resume: Vec::new(),
        text: String::new(),
        logprobs: Vec::new(),
        source: None,
        contradictions: Vec::new(),
        gone: false,
        refused_as_wrong: None,
    };
    gateway.spawn(drive.run());
    Ok(Running { request_id, events })
}

/// Why there is no answer.
enum End {
    /// The caller went away.
    Gone,
    /// No worker answered.
    Error(ApiError),
    /// There is an answer, which is stored, but nobody could prove it now.
    Unproved(Box<Output>, ApiError),
}

/// Why an attempt broke off.
enum Broken {
    Call(CallError),
    /// The worker signed that it failed.
    Failure(Box<Signed<Failure>>),
    /// It fell silent.
    Silent(&'static str),
    /// It broke the protocol.
    Fault(String),
    /// What it gave cannot be used or checked here, which is no fault of it.
    Unchecked(String),
    /// It contradicts what an earlier worker sent; which of the two is wrong is not known yet.
    Contradicts,
    /// The caller went away.
    Gone,
}

/// An attempt whose first frame has arrived.
struct Opened {
    choice: Choice,
    cap: u128,
    sent: Instant,
    first: Frame,
    frames: Frames,
    resumed: Vec<u32>,
    _in_flight: InFlight,
}

/// The worker that sent the last of what was received.
#[derive(Debug, Clone, Copy)]
struct Source {
    worker: Address,
    /// Its answer is its own: nobody can continue it.
    forwarded: bool,
}

/// Two workers of which one is wrong about the same part of an answer.
struct Contradiction {
    earlier: Address,
    later: Address,
    /// What the earlier one sent.
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
}

/// The race for the first frame: who was asked, and what came of it.
type Race = FuturesUnordered<Asked>;

/// A worker that was asked: who, the cap, and what came of it.
type Asked = BoxFuture<'static, (Choice, u128, Result<Opened, Broken>)>;

/// The state of one answer.
struct Drive {
    gateway: Arc<Gateway>,
    job: Job,
    request_id: String,
    nonce: Bytes32,
    salt: Bytes32,
    commitment: Bytes32,
    caller: mpsc::Sender<Event>,
    /// Whether pieces go to the caller as they come.
    visible: bool,
    tried: Vec<Address>,
    attempts: usize,
    /// The tokens that were received, which the next worker resumes from.
    resume: Vec<u32>,
    /// The text that belongs to them; when `visible`, what the caller has seen.
    text: String,
    /// The log-probabilities that belong to them.
    logprobs: Vec<TokenLogprob>,
    /// Who sent the last of them.
    source: Option<Source>,
    /// Who contradicted whom so far.
    contradictions: Vec<Contradiction>,
    /// The caller went away; an answer that is nearly complete is still waited for.
    gone: bool,
    /// A worker that refused the request as wrong; believed when a second one says the same.
    refused_as_wrong: Option<ApiError>,
}

impl Drive {
    async fn run(mut self) {
        self.gateway.metrics.started.inc();
        let event = match Box::pin(self.answer()).await {
            Ok(answer) => {
                self.gateway.metrics.answered.inc();
                self.judge(Some(&answer.output)).await;
                if self.job.streams && !self.visible {
                    // What was held back until the replay agreed.
                    let Output { text, logprobs, .. } = &answer.output;
                    let whole = Delta { text: text.clone(), logprobs: logprobs.clone() };
                    if !whole.text.is_empty() {
                        let _ = timeout(self.caller_patience(), self.caller.send(Event::Delta(whole))).await;
                    }
                }
                Event::Done(Box::new(answer))
            }
            Err(End::Unproved(output, error)) => {
                self.gateway.metrics.failed.inc();
                self.judge(Some(&output)).await;
                Event::Failed(Box::new(error.about(&self.request_id)))
            }
            Err(End::Error(error)) => {
                self.unanswered(State::Failed, &error.message).await;
                Event::Failed(Box::new(error.about(&self.request_id)))
            }
            Err(End::Gone) => return self.unanswered(State::Cancelled, "the caller went away").await,
        };
        // A caller that left now finds everything under the request id.
        let _ = timeout(self.caller_patience(), self.caller.send(event)).await;
    }

    async fn unanswered(&mut self, state: State, why: &str) {
        self.judge(None).await;
        self.gateway.metrics.failed.inc();
        let stored = self.gateway.store.unanswered(self.nonce, state, why.to_owned(), now_ms()).await;
        if let Err(error) = stored {
            tracing::error!(%error, request_id = self.request_id, "the end of a request was not stored");
        }
    }

    fn caller_patience(&self) -> Duration {
        Duration::from_millis(self.gateway.config.workers.caller_ms)
    }

    fn domain(&self) -> Domain {
        self.gateway.config.domain
    }

    /// Asks workers until one gives an acceptable answer.
    async fn answer(&mut self) -> Result<Answer, End> {
        let mut last = None;
        while self.attempts < self.gateway.config.workers.attempts_max {
            if self.caller.is_closed() {
                return Err(End::Gone);
            }
            let Some(opened) = self.open(&mut last).await? else { break };
            let (choice, cap) = (opened.choice.clone(), opened.cap);
            let followed = self.follow(opened).await;
            match followed {
                Ok((bundle, streaming)) => {
                    if let Some(answer) = self.conclude(&choice, bundle, streaming, &mut last).await? {
                        return Ok(answer);
                    }
                }
                Err((chunks, broken)) => self.broken(&choice, cap, chunks, broken, &mut last).await?,
            }
            // Nobody is paid for what is here already.
            if self.job.proof.as_ref().is_some_and(|proving| proving.is_decided()) {
                break;
            }
        }
        if self.shown() && !self.contradictions.is_empty() {
            return Err(End::Error(contradicted()));
        }
        if let Some(error) = self.refused_as_wrong.take() {
            return Err(End::Error(error));
        }
        Err(End::Error(last.unwrap_or_else(|| self.nobody())))
    }

    /// The error when there is nobody to ask.
    fn nobody(&self) -> ApiError {
        let members = Arc::clone(&self.gateway.members.borrow());
        match self.gateway.records.soonest(&members, &self.job.request.model) {
            Some(wait) => {
                let mut error =
                    ApiError::unavailable("Every worker for this model rests after faults; try again");
                error.retry_after_s = Some(wait.as_secs() + 1);
                error
            }
            None => ApiError::unavailable("No worker offers this model at the moment; see /assay/workers"),
        }
    }

    fn choose(&self, members: &Members) -> Option<Choice> {
        let shown = self.shown();
        if shown && self.source.is_some_and(|source| source.forwarded) {
            return None;
        }
        let request = &self.job.request;
        let need = Need {
            model: &request.model,
            // What a caller has seen, only a worker can continue whose answer the request determines.
            replayable: shown || self.job.policy.level == Level::Replayed,
            prompt_tokens: self.job.units().unwrap_or_else(|| prompt_estimate(&request.prompt)),
            max_tokens: request.max_tokens,
            tried: &self.tried,
        };
        // Who gave the answer knows it already.
        if let Some(proving) = &self.job.proof {
            let own = proving.subject.member.worker;
            let own = members.members.iter().filter(|member| member.worker == own).cloned().collect();
            let Members { serial, issued_at_s, expires_at_s, .. } = *members;
            let alone = Members { serial, issued_at_s, expires_at_s, members: own };
            if let Some(choice) = self.gateway.records.choose(&alone, &need, dice()) {
                return Some(choice);
            }
        }
        self.gateway.records.choose(members, &need, dice())
    }

    /// Asks the best worker, and after `hedge_after_ms` a second one, and returns the first that begins to answer.
    /// `None` when nobody is left to ask.
    async fn open(&mut self, last: &mut Option<ApiError>) -> Result<Option<Opened>, End> {
        let members = self.gateway.members().map_err(End::Error)?;
        let limits = self.gateway.config.workers;
        let mut race: Race = FuturesUnordered::new();
        let mut asking: Vec<Member> = Vec::new();
        // A proof takes long by its nature.
        let mut hedged = limits.hedge_after_ms == 0 || self.job.proof.is_some();
        let hedge_at = Instant::now() + Duration::from_millis(limits.hedge_after_ms);
        loop {
            if race.is_empty() {
                if self.attempts >= limits.attempts_max {
                    return Ok(None);
                }
                let Some(choice) = self.choose(&members) else { return Ok(None) };
                asking.push(choice.member.clone());
                let asked = self.ask(choice, false).await?;
                race.push(asked);
            }
            tokio::select! {
                Some((choice, cap, result)) = race.next() => {
                    asking.retain(|member| member.worker != choice.member.worker);
                    match result {
                        Ok(opened) => {
                            // Who lost the race is cancelled, and signs that.
                            asking.iter().for_each(|member| self.fetch_later(member, "another worker was faster"));
                            return Ok(Some(opened));
                        }
                        Err(broken) => self.broken(&choice, cap, Vec::new(), broken, last).await?,
                    }
                }
                () = sleep_until(hedge_at), if !hedged && self.attempts < limits.attempts_max => {
                    hedged = true;
                    if let Some(choice) = self.choose(&members) {
                        self.gateway.metrics.hedged.inc();
                        asking.push(choice.member.clone());
                        let asked = self.ask(choice, true).await?;
                        race.push(asked);
                    }
                }
                () = self.caller.closed() => {
                    asking.iter().for_each(|member| self.fetch_later(member, GONE));
                    return Err(End::Gone);
                }
            }
        }
    }

    /// Stores that a worker is asked, and asks it.
    async fn ask(&mut self, choice: Choice, hedge: bool) -> Result<Asked, End> {
        let request = &self.job.request;
        // Nobody can charge for more than a full context, or than the examples.
        let ceiling = match self.job.units() {
            Some(units) => choice.offer.price(units, 0),
            None => choice.offer.price(choice.offer.context, request.max_tokens),
        };
        let ceiling = ceiling.unwrap_or(u128::MAX);
        let cap = match self.gateway.config.cap_per_request {
            0 => ceiling,
            limit => ceiling.min(limit),
        };
        let worker = choice.member.worker;
        self.tried.push(worker);
        self.attempts += 1;
        // A forwarder's answer is not determined by the request, so there is nothing to resume.
        let resume = if choice.offer.arithmetic > 0 { self.resume.clone() } else { Vec::new() };
        let attempt = Attempt {
            worker,
            operator: choice.member.operator.clone(),
            sent_at_ms: now_ms(),
            resumed_tokens: resume.len(),
            cap,
            hedge,
        };
        let stored = self.gateway.store.attempt(self.nonce, attempt).await;
        stored.map_err(|error| End::Error(error.into()))?;
        let mut call = self.call(worker, cap, resume);
        // A proof is paid when it was found to hold.
        if let Some(payer) = self.gateway.payer.as_ref().filter(|_| self.job.proof.is_none()) {
            // Of forwarders and provers, nobody can dispute what the prompt's tokens are.
            let prompt = match choice.offer.arithmetic {
                0 | GRAPH_ARITHMETIC => Bytes32::ZERO,
                _ => self.gateway.vocabularies.prompt(&self.gateway, &self.job.request, self.salt).await,
            };
            let voucher = payer.voucher(&call, self.commitment, prompt, &choice.member, &choice.offer);
            call.voucher = Some(voucher);
        }
        let client = self.gateway.clients.of(&choice.member).map_err(|error| End::Error(error.into()))?;
        let in_flight = self.gateway.records.enter(worker);
        let limits = self.gateway.config.workers;
        // A proof is there as a whole or not at all.
        let patience = Duration::from_millis(match self.job.units() {
            Some(_) => limits.answer_ms,
            None => limits.first_token_ms,
        });
        Ok(Box::pin(async move {
            let sent = Instant::now();
            let opening = async {
                let mut frames = client.generate(&call).await.map_err(Broken::Call)?;
                let first = frames.next().await.map_err(Broken::Call)?;
                let first =
                    first.ok_or_else(|| Broken::Fault("it ended the stream without a word".into()))?;
                Ok((frames, first))
            };
            let opened = match timeout(patience, opening).await {
                Ok(opened) => opened,
                Err(_) => Err(Broken::Silent("it sent no first token in time")),
            };
            let result = opened.map(|(frames, first)| Opened {
                choice: choice.clone(),
                cap,
                sent,
                first,
                frames,
                resumed: call.resume,
                _in_flight: in_flight,
            });
            (choice, cap, result)
        }))
    }

    /// The call for a worker.
    fn call(&self, worker: Address, cap: u128, resume: Vec<u32>) -> GenerateCall {
        GenerateCall {
            domain: self.domain(),
            nonce: self.nonce,
            salt: self.salt,
            payer: self.gateway.config.payer,
            cap,
            request: self.job.request.clone(),
            resume,
            tenant: Some(self.gateway.tenant(&worker, &self.job.key)),
            voucher: None,
        }
    }

    /// Fetches the proof that a worker has named in its only chunk, checks it, keeps it, and then accepts it, which pays for it.
    async fn collect(
        &self,
        proving: &Arc<Proving>,
        choice: &Choice,
        cap: u128,
        intake: &Intake,
    ) -> Result<(), Broken> {
        let fault = |why: &str| Err(Broken::Fault(why.into()));
        let [chunk] = &intake.chunks[..] else { return fault("it names more than one proof") };
        let Some(file) = Output::file_of(&intake.text) else { return fault("it names no proof") };
        let worker = choice.member.worker;
        let Some(price) = choice.offer.price(proving.positions, 0).filter(|price| *price <= cap) else {
            return fault("its proof costs more than was agreed");
        };
        let client = self.gateway.clients.of(&choice.member);
        let client = client.map_err(|error| Broken::Unchecked(error.to_string()))?;
        let limits = self.gateway.config.workers;
        let pause = Duration::from_millis(limits.between_tokens_ms);
        let deadline = Instant::now() + Duration::from_millis(limits.answer_ms);
        let proofs = &self.gateway.proofs;
        let fetched = proofs.fetch(&client, &self.nonce, file, pause, deadline).await;
        let path = fetched.map_err(Broken::Call)?;
        let members = Arc::clone(&self.gateway.members.borrow());
        match proofs.check(proving, &members, &path).await {
            FoundProof::Holds => {}
            FoundProof::Wrong(why) => {
                proving.wrong.store(true, Ordering::Release);
                let name = proofs.keep_false(&path, &self.nonce);
                proofs::answer_is_wrong(&self.gateway, &proving.subject, &why).await;
                return Err(Broken::Unchecked(format!("the answer is not its model's: {why}; see {name}")));
            }
            FoundProof::False(why) => {
                let name = proofs.keep_false(&path, &self.nonce);
                let (id, link) = (&self.request_id, chunk.link);
                audit::caught_with_proof(&self.gateway, id, worker, link, price).await;
                return Err(Broken::Fault(format!(
                    "it signed a proof that is false: {why}; it is kept as {name}"
                )));
            }
            FoundProof::Unchecked(why) => {
                let _ = std::fs::remove_file(&path); // else it is removed at the next start
                return Err(Broken::Unchecked(why));
            }
        }
        let nonce = proving.subject.nonce;
        let unkept = |error: &dyn std::fmt::Display| Broken::Unchecked(format!("it cannot be kept: {error}"));
        proofs.keep(&path, &nonce).map_err(|error| unkept(&error))?;
        let kept = Kept {
            request_id: self.request_id.clone(),
            key: proving.key.id(),
            worker,
            sha256: file.0,
            bytes: file.1,
            positions: proving.positions,
            price,
        };
        // On disk before it is paid for, so that no crash leads to a second payment.
        self.gateway.store.proved(nonce, kept).await.map_err(|error| unkept(&error))?;
        proving.kept.store(true, Ordering::Release);
        let call = self.call(worker, cap, Vec::new());
        let voucher =
            self.gateway.payer.as_ref().map(|payer| {
                payer.voucher(&call, self.commitment, Bytes32::ZERO, &choice.member, &choice.offer)
            });
        match timeout_at(Instant::now() + pause, client.accept(&self.nonce, voucher.as_ref())).await {
            Ok(Ok(true)) => Ok(()),
            // The check may have taken too long here, so that is no fault of the worker.
            Ok(Ok(false)) => Err(Broken::Unchecked("its worker had stopped to wait for its payment".into())),
            Ok(Err(error)) => Err(Broken::Call(error)),
            Err(_) => Err(Broken::Silent("it took no payment in time")),
        }
    }

    /// Reads an answer to its end, checks it and passes the pieces on.
    async fn follow(&mut self, opened: Opened) -> Result<(Bundle, Duration), (Vec<SignedChunk>, Broken)> {
        let Opened { choice, cap, sent, first, mut frames, resumed, _in_flight } = opened;
        let mut intake = Intake {
            domain: self.domain(),
            worker: choice.member.worker,
            forwarded: choice.offer.arithmetic == 0,
            nonce: self.nonce,
            max_tokens: self.job.request.max_tokens as usize,
            logprobs_asked: self.job.request.logprobs.map(usize::from),
            chain: Chain::start(&self.commitment, &self.nonce),
            chunks: Vec::new(),
            bytes: 0,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            resumed,
        };
        if intake.forwarded || self.source.is_some_and(|source| source.forwarded) {
            // Its answer is its own; nothing that was received elsewhere binds it, and it binds nobody.
            self.forget();
        }
        if self.job.proof.is_none() {
            self.gateway.records.first_token(choice.member.worker, sent.elapsed());
            self.gateway.metrics.first_token.observe(sent.elapsed().as_secs_f64());
        }
        let began = Instant::now();
        let limits = self.gateway.config.workers;
        let pause = Duration::from_millis(limits.between_tokens_ms);
        let grace = Duration::from_millis(limits.grace_ms);
        let mut deadline = sent + Duration::from_millis(limits.answer_ms);
        let mut leave_at = None;
        let mut next = Some(first);
        let (receipt, output) = loop {
            let frame = match next.take() {
                Some(frame) => frame,
                None => {
                    let until = (Instant::now() + pause).min(deadline);
                    let until = leave_at.map_or(until, |leave_at| until.min(leave_at));
                    let waited = tokio::select! {
                        waited = timeout_at(until, frames.next()) => waited,
                        () = self.caller.closed(), if !self.gone => {
                            self.gone = true;
                            leave_at = Some(Instant::now() + grace);
                            continue;
                        }
                    };
                    match waited {
                        Err(_) => {
                            let broken = match leave_at {
                                Some(leave_at) if until == leave_at => Broken::Gone,
                                _ if until == deadline => Broken::Silent("it took too long for its answer"),
                                _ => Broken::Silent("it sent no next token in time"),
                            };
                            return Err((intake.chunks, broken));
                        }
                        Ok(Err(error)) => return Err((intake.chunks, Broken::Call(error))),
                        Ok(Ok(None)) => {
                            let broken = Broken::Fault("it ended the stream without a receipt".into());
                            return Err((intake.chunks, broken));
                        }
                        Ok(Ok(Some(frame))) => frame,
                    }
                }
            };
            match frame {
                Frame::Chunk(signed) => {
                    let arrived = Instant::now();
                    let shown = match intake.accept(signed) {
                        Ok(()) => match self.job.proof.clone() {
                            Some(proving) => self.collect(&proving, &choice, cap, &intake).await,
                            None => self.show(&intake).await,
                        },
                        Err(fault) => Err(Broken::Fault(fault)),
                    };
                    // The time that the caller took is not the worker's.
                    deadline += arrived.elapsed();
                    match shown {
                        Ok(()) => {}
                        Err(Broken::Gone) => {
                            self.gone = true;
                            leave_at = Some(Instant::now() + grace);
                        }
                        Err(broken) => return Err((intake.chunks, broken)),
                    }
                }
                Frame::Receipt { receipt, output } => break (receipt, output),
                Frame::Failure(failure) => {
                    return Err((intake.chunks, Broken::Failure(Box::new(failure))));
                }
            }
        };
        let streaming = began.elapsed();
        let bundle = Bundle {
            version: BUNDLE_VERSION,
            domain: self.domain(),
            salt: self.salt,
            request: self.job.request.clone(),
            output,
            chunks: intake.chunks,
            receipt,
            audits: Vec::new(),
        };
        match self.inspect(&choice.member, cap, bundle).await {
            Ok(bundle) if self.visible && !self.has_shown(&bundle.output) => {
                self.keep_answer(&bundle, "it is not the answer whose beginning the caller has seen").await;
                Err((bundle.chunks, Broken::Contradicts))
            }
            Ok(bundle) => Ok((bundle, streaming)),
            Err((bundle, fault, caught)) => {
                self.keep_answer(&bundle, &fault).await;
                if caught {
                    audit::caught_with_receipt(&self.gateway, &self.request_id, &bundle.receipt).await;
                }
                Err((bundle.chunks, Broken::Fault(fault)))
            }
        }
    }

    /// Passes on what is new, after checking that it continues what was there before.
    async fn show(&mut self, intake: &Intake) -> Result<(), Broken> {
        let agrees = |drive: &Drive| {
            let known = drive.text.len().min(intake.text.len());
            let listed = drive.logprobs.len().min(intake.logprobs.len());
            drive.text.as_bytes()[..known] == intake.text.as_bytes()[..known]
                && drive.logprobs[..listed] == intake.logprobs[..listed]
        };
        if !agrees(self) {
            if self.visible {
                return Err(Broken::Contradicts);
            }
            // Nobody saw what the earlier worker sent, so this one may be right.
            self.contradicted(intake.worker);
            self.forget();
        }
        // Both are valid UTF-8 and agree up to the end of the shorter one, so that is a character boundary.
        let text = intake.text.get(self.text.len()..).unwrap_or_default().to_owned();
        self.text.push_str(&text);
        let logprobs = intake.logprobs.get(self.logprobs.len()..).unwrap_or_default().to_vec();
        self.logprobs.extend(logprobs.iter().cloned());
        let further = intake.tokens.len() > self.resume.len();
        if further {
            self.resume.clone_from(&intake.tokens);
        }
        if further || !text.is_empty() || !logprobs.is_empty() {
            self.source = Some(Source { worker: intake.worker, forwarded: intake.forwarded });
        }
        if !self.visible || self.gone || (text.is_empty() && logprobs.is_empty()) {
            return Ok(());
        }
        match timeout(self.caller_patience(), self.caller.send(Event::Delta(Delta { text, logprobs }))).await
        {
            Ok(Ok(())) => Ok(()),
            // It hung up, or it does not read.
            Ok(Err(_)) | Err(_) => Err(Broken::Gone),
        }
    }

    /// Forgets what was received, so that the next worker starts afresh. Only where the caller saw nothing of it.
    fn forget(&mut self) {
        if !self.visible {
            self.resume.clear();
            self.text.clear();
            self.logprobs.clear();
            self.source = None;
        }
    }

    /// Whether the caller has seen a part of the answer.
    fn shown(&self) -> bool {
        self.visible && (!self.text.is_empty() || !self.logprobs.is_empty())
    }

    /// Whether this is what the caller has seen, all of it and nothing else.
    fn has_shown(&self, output: &Output) -> bool {
        self.text == output.text && self.logprobs == output.logprobs
    }

    /// Notes that a worker contradicts the one before it.
    fn contradicted(&mut self, later: Address) {
        // What a forwarder sends binds nobody.
        if let Some(Source { worker: earlier, forwarded: false }) = self.source {
            self.contradictions.push(Contradiction {
                earlier,
                later,
                tokens: self.resume.clone(),
                text: self.text.clone(),
                logprobs: self.logprobs.clone(),
            });
        }
    }

    /// Says who was wrong where workers contradicted each other: who does not fit the answer, or, when there is none,
    /// who came first, since the others had only to repeat it. What all of them signed was kept.
    async fn judge(&mut self, answer: Option<&Output>) {
        let mut wrong: Vec<Address> = Vec::new();
        for contradiction in std::mem::take(&mut self.contradictions) {
            let Contradiction { earlier, later, tokens, text, logprobs } = contradiction;
            let fits = answer.is_some_and(|answer| {
                answer.tokens.starts_with(&tokens)
                    && answer.text.starts_with(&text)
                    && answer.logprobs.starts_with(&logprobs)
            });
            let (worker, why) = match fits {
                true => {
                    (later, format!("it does not continue what {earlier} sent, which the answer bears out"))
                }
                false => (earlier, format!("{later} does not continue what it sent, nor does any answer")),
            };
            if !wrong.contains(&worker) {
                wrong.push(worker);
                self.fault(worker, &why, None).await;
            }
        }
    }

    /// What a statement of this worker about this request must fit.
    fn expected(&self, member: &Member, cap: u128) -> Expected {
        Expected {
            domain: self.domain(),
            workers: vec![member.clone()],
            nonce: Some(self.nonce),
            model: Some(self.job.request.model),
            payer: Some(self.gateway.config.payer),
            cap: Some(cap),
        }
    }

    /// Checks a complete answer against the request that was sent. Gives the bundle back with the fault, if any, and whether the
    /// worker is caught by it.
    async fn inspect(
        &self,
        member: &Member,
        cap: u128,
        bundle: Bundle,
    ) -> Result<Bundle, (Box<Bundle>, String, bool)> {
        let expected = self.expected(member, cap);
        let model = self.job.inference.as_ref().map(|inference| Arc::clone(&inference.model));
        // Thousands of signatures may have to be checked, which takes longer than an async task may.
        let checked = tokio::task::spawn_blocking(move || {
            let report = crate::inference::check(&bundle, &expected, model.as_deref());
            let mut failed: Vec<String> = report.failed().map(|check| check.detail.clone()).collect();
            let caught = crate::inference::is_caught(&report);
            let mut state = report.state;
            if encoded_bytes(&bundle) > BUNDLE_BYTES {
                failed.push(format!("it is larger than {BUNDLE_BYTES} bytes"));
                state = assay_verify::State::Rejected;
            }
            (bundle, state, failed, caught)
        })
        .await;
        match checked {
            Ok((bundle, assay_verify::State::Signed | assay_verify::State::Proved, ..)) => Ok(bundle),
            Ok((bundle, _, failed, caught)) => {
                Err((Box::new(bundle), format!("its receipt does not hold: {}", failed.join("; ")), caught))
            }
            // A panic in the checker is our fault and no word of the worker's can be believed then.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn keep(&self, evidence: Evidence) {
        if let Err(error) = self.gateway.store.evidence(self.nonce, evidence).await {
            tracing::error!(%error, request_id = self.request_id, "evidence was not stored");
        }
    }

    async fn keep_answer(&self, bundle: &Bundle, why: &str) {
        self.keep(Evidence::Answer {
            worker: bundle.receipt.statement.worker,
            at_ms: now_ms(),
            why: why.to_owned(),
            receipt: Box::new(bundle.receipt.clone()),
            output: Box::new(bundle.output.clone()),
        })
        .await;
    }

    /// Notes a fault of a worker.
    async fn fault(&self, worker: Address, why: &str, sent: Option<String>) {
        self.gateway.metrics.faults.inc();
        self.gateway.records.fault(worker, why);
        self.keep(Evidence::Fault { worker, at_ms: now_ms(), fault: why.to_owned(), frame: sent }).await;
    }

    /// Records why an attempt broke off and decides whether another worker is to be asked: `Ok` means yes.
    async fn broken(
        &mut self,
        choice: &Choice,
        cap: u128,
        chunks: Vec<SignedChunk>,
        broken: Broken,
        last: &mut Option<ApiError>,
    ) -> Result<(), End> {
        let worker = choice.member.worker;
        if !chunks.is_empty() {
            self.keep(Evidence::Chunks { worker, at_ms: now_ms(), chunks: chunks.clone() }).await;
        }
        let failed = || ApiError::unavailable("The workers that were asked failed; try again");
        match broken {
            Broken::Gone => {
                self.fetch_later(&choice.member, GONE);
                return Err(End::Gone);
            }
            Broken::Call(CallError::Transport(why)) => {
                self.fault(worker, &format!("its connection failed: {why}"), None).await;
                self.fetch_later(&choice.member, LOST);
                *last = Some(failed());
            }
            Broken::Silent(why) => {
                self.fault(worker, why, None).await;
                self.fetch_later(&choice.member, LOST);
                *last = Some(failed());
            }
            Broken::Call(CallError::Protocol { fault, sent }) => {
                self.fault(worker, &fault, sent).await;
                self.forget();
                *last = Some(failed());
            }
            Broken::Fault(fault) => {
                self.fault(worker, &fault, None).await;
                self.forget();
                *last = Some(failed());
            }
            Broken::Unchecked(why) => {
                tracing::error!(%worker, request_id = self.request_id, why, "a proof could not be used");
                self.forget();
                *last = Some(ApiError::internal("The proof could not be used; see the gateway's log"));
            }
            Broken::Contradicts => {
                self.contradicted(worker);
                *last = Some(contradicted());
            }
            Broken::Call(CallError::Busy(wait)) => {
                self.gateway.records.refused(worker, wait);
                *last = Some(busy(wait));
            }
            Broken::Call(CallError::Refused(failure)) | Broken::Failure(failure) => {
                self.signed_failure(choice, cap, chunks, *failure, last).await?;
            }
        }
        self.gateway.metrics.failovers.inc();
        Ok(())
    }

    /// Has what the worker signs about this request put on record, although the request goes on or ends without it.
    fn fetch_later(&self, member: &Member, why: &'static str) {
        let commitment = request_commitment(&self.job.request, &self.salt);
        crate::recovery::fetch_later(&self.gateway, self.nonce, commitment, member.clone(), why);
    }

    /// [`Drive::broken`] for a failure that the worker signed.
    async fn signed_failure(
        &mut self,
        choice: &Choice,
        cap: u128,
        chunks: Vec<SignedChunk>,
        failure: Signed<Failure>,
        last: &mut Option<ApiError>,
    ) -> Result<(), End> {
        let worker = choice.member.worker;
        let evidence = FailureEvidence { salt: self.salt, request: self.job.request.clone(), chunks };
        let expected = self.expected(&choice.member, cap);
        let report = assay_verify::check_failure(&failure, Some(&evidence), &expected);
        let about_us = failure.statement.worker == worker && failure.statement.nonce == self.nonce;
        if report.state == assay_verify::State::Rejected || !about_us {
            let failed: Vec<String> = report.failed().map(|check| check.detail.clone()).collect();
            let why = format!("its signed failure does not hold: {}", failed.join("; "));
            self.fault(worker, &why, serde_json::to_string(&failure).ok()).await;
            *last = Some(ApiError::unavailable("The workers that were asked failed; try again"));
            return Ok(());
        }
        let Failure { code, message, retry_after_ms, .. } = failure.statement.clone();
        self.keep(Evidence::Failure { worker, at_ms: now_ms(), failure: Box::new(failure) }).await;
        let wait = Duration::from_millis(retry_after_ms.max(500));
        match code {
            FailureCode::Busy => {
                self.gateway.records.refused(worker, wait);
                *last = Some(busy(wait));
            }
            FailureCode::Draining => {
                self.gateway.records.refused(worker, wait);
                *last =
                    Some(ApiError::unavailable("The workers that were asked are shutting down; try again"));
            }
            FailureCode::BadRequest | FailureCode::ContextExceeded => {
                let mut error = ApiError::bad_body(message);
                if code == FailureCode::ContextExceeded {
                    error.code = Some("context_length_exceeded");
                    error.param = Some("messages".into());
                }
                // One worker may lie about this. Two that say the same are believed.
                if self.refused_as_wrong.is_some() {
                    return Err(End::Error(error));
                }
                self.refused_as_wrong = Some(error);
            }
            FailureCode::CapExceeded => {
                let mut error =
                    ApiError::bad_body(format!("The answer could cost more than is allowed: {message}"));
                error.code = Some("cap_exceeded");
                *last = Some(error);
            }
            // Either this worker or the one before is wrong. A caller that saw nothing is served from the start.
            FailureCode::ResumeMismatch if !self.resume.is_empty() || !self.contradictions.is_empty() => {
                self.contradicted(worker);
                self.forget();
                *last = Some(contradicted());
            }
            // The caller did not read, asked for more than the worker has time for, or the nonce was spent. That is no
            // fault of the worker, but asking it again at once is of no use.
            FailureCode::Cancelled | FailureCode::DuplicateNonce => {
                self.gateway.records.refused(worker, wait);
                *last = Some(ApiError::unavailable("The workers that were asked gave up; try again"));
            }
            FailureCode::ResumeMismatch
            | FailureCode::UnknownModel
            | FailureCode::Upstream
            | FailureCode::Internal => {
                self.fault(worker, &format!("it signed that it failed: {message}"), None).await;
                *last = Some(ApiError::unavailable("The workers that were asked failed; try again"));
            }
        }
        Ok(())
    }

    /// Has an answer replayed where the policy wants that first, stores it, and makes the final word of it. `None`:
    /// the answer was wrong and another worker is to be asked.
    async fn conclude(
        &mut self,
        choice: &Choice,
        bundle: Bundle,
        streaming: Duration,
        last: &mut Option<ApiError>,
    ) -> Result<Option<Answer>, End> {
        let member = &choice.member;
        let receipt = bundle.receipt.statement.clone();
        let receipt_hash = bundle.receipt.hash(&self.domain());
        let policy = self.job.policy;
        let subject = Subject {
            request_id: self.request_id.clone(),
            nonce: self.nonce,
            member: member.clone(),
            bundle: Arc::new(bundle),
            counted: false,
        };
        let (mut state, mut level, mut audit) = ("signed", Level::Signed, None);
        let (mut due, mut unproved) = (Due::Nothing, None);
        let is_text = self.job.inference.is_none() && self.job.proof.is_none();
        if policy.level == Level::Proved && is_text && policy.moment == Moment::Sampled {
            (due, state) = (Due::Proof, "pending");
        } else if policy.level == Level::Proved && is_text {
            let (name, key) = (&self.job.model_name, &self.job.key);
            match proofs::prove(&self.gateway, &subject, name, key).await {
                Ok(_) => (state, level) = ("proved", Level::Proved),
                Err(Unproved { wrong: true, .. }) => {
                    let error = ApiError::verification("A proof shows that what was shown is wrong");
                    let why = "a proof shows that it is not the model's";
                    return self.unused(&subject, why, error, last).await;
                }
                Err(Unproved { error, doubted, .. })
                    if doubted || self.gateway.records.is_barred(&member.worker) =>
                {
                    let why = format!("nobody could prove it: {}", error.message);
                    let message = format!("The answer could not be proved: {}", error.message);
                    return self.unused(&subject, &why, ApiError::unavailable(message), last).await;
                }
                // Nothing speaks against the answer, and another one would be no easier to prove.
                Err(Unproved { error, .. }) => unproved = Some(error.message),
            }
        } else if policy.level == Level::Replayed && policy.moment != Moment::Sampled {
            let found =
                audit::examine(&self.gateway, &subject).await.map_err(|error| End::Error(error.into()))?;
            let (why, error) = match found {
                Found::Agreed(row) => {
                    (state, level, audit) = ("replayed", Level::Replayed, Some(AuditSummary::from(&*row)));
                    (None, None)
                }
                Found::Caught => {
                    let error =
                        ApiError::verification("A replay gave another answer: what was shown is wrong");
                    (Some("a replay gave another answer"), Some(error))
                }
                Found::Accused => {
                    audit::later(&self.gateway, subject.clone());
                    let error = ApiError::verification(
                        "A replay gave another answer, and no second auditor could confirm that yet",
                    );
                    (Some("one replay gave another answer, which nobody could confirm yet"), Some(error))
                }
                Found::Disputed => {
                    let error = ApiError::verification("Auditors contradict each other about this answer");
                    (Some("auditors contradict each other"), Some(error))
                }
                Found::Nobody => {
                    let error = ApiError::unavailable("Nobody could replay the answer in time; try again");
                    (Some("nobody could replay it"), Some(error))
                }
            };
            if let (Some(why), Some(error)) = (why, error) {
                return self.unused(&subject, why, error, last).await;
            }
        } else if policy.level == Level::Proved {
            // The proof was checked with the receipt.
            (state, level) = ("proved", Level::Proved);
        } else if receipt.arithmetic > 0 {
            let sampling = &self.gateway.config.sampling;
            let share = self.gateway.records.sampling_ppm(&member.worker, sampling, self.job.sample_ppm);
            if dice() % 1_000_000 < u64::from(share) && audit::is_possible(&self.gateway, &subject) {
                (due, state) = (Due::Replay, "pending");
            }
        }
        let stored = self.gateway.store.answered(&subject.bundle, receipt_hash, now_ms(), due).await;
        stored.map_err(|error| End::Error(error.into()))?;
        self.gateway.records.served(member.worker, receipt.completion_tokens, receipt.price, streaming);
        self.gateway.metrics.tokens.inc_by(receipt.completion_tokens.into());
        let output = subject.bundle.output.clone();
        if let Some(why) = unproved {
            return Err(End::Unproved(Box::new(output), ApiError::unproved(&self.request_id, &why)));
        }
        let answer = Answer {
            output,
            assay: Assay {
                request_id: self.request_id.clone(),
                level,
                state,
                worker: member.worker,
                operator: member.operator.clone(),
                model: receipt.model,
                receipt_hash,
                nonce: self.nonce,
                seed: self.job.request.sampling.seed,
                price: receipt.price.to_string(),
                attempts: self.attempts,
                bundle_url: format!("/assay/receipts/{}", self.request_id),
                audit,
            },
        };
        let subject = Subject { counted: true, ..subject };
        self.gateway.later(due, subject, &self.job.model_name, &self.job.key);
        Ok(Some(answer))
    }

    /// Keeps an answer that is not used, and has another worker asked unless the caller has seen a part of it.
    async fn unused(
        &mut self,
        subject: &Subject,
        why: &str,
        error: ApiError,
        last: &mut Option<ApiError>,
    ) -> Result<Option<Answer>, End> {
        let (chunks, worker) = (subject.bundle.chunks.clone(), subject.member.worker);
        self.keep_answer(&subject.bundle, why).await;
        self.keep(Evidence::Chunks { worker, at_ms: now_ms(), chunks }).await;
        if self.visible {
            // What the caller has seen cannot be taken back; it must not look finished either.
            return Err(End::Error(error));
        }
        self.forget();
        self.gateway.metrics.failovers.inc();
        *last = Some(error);
        Ok(None)
    }
}

const GONE: &str = "it was complete after the caller had left";
const LOST: &str = "it did not arrive in time, so another worker was asked";

/// Most bytes of a bundle without audits, so that it can be read with as many as it may hold.
const BUNDLE_BYTES: usize = limits::BUNDLE_BYTES - limits::AUDITS * 2_048;

fn encoded_bytes<T: Serialize>(value: &T) -> usize {
    // What cannot be encoded cannot be stored either.
    serde_json::to_vec(value).map_or(usize::MAX, |bytes| bytes.len())
}

fn busy(wait: Duration) -> ApiError {
    ApiError::rate_limited("Every worker for this model is busy; try again later", wait.as_secs())
}

fn contradicted() -> ApiError {
    ApiError::verification("Workers disagree about the part of the answer that was shown; do not rely on it")
}

/// Rough number of tokens of a prompt, for comparing prices: four bytes a token.
fn prompt_estimate(prompt: &Prompt) -> u32 {
    let tokens = match prompt {
        Prompt::Chat { messages, tools, .. } => {
            let messages: usize = messages.iter().map(|message| message.content.len() / 4 + 4).sum();
            messages + tools.as_ref().map_or(0, |tools| tools.len() / 4)
        }
        Prompt::Text(text) => text.len() / 4,
        Prompt::Tokens(tokens) => tokens.len(),
    };
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// The frames of one attempt, each checked as it comes.
struct Intake {
    domain: Domain,
    worker: Address,
    forwarded: bool,
    nonce: Bytes32,
    max_tokens: usize,
    /// Alternatives that were asked for with each token; `None`: no log-probabilities.
    logprobs_asked: Option<usize>,
    chain: Chain,
    chunks: Vec<SignedChunk>,
    /// Size of the chunks in the bundle.
    bytes: usize,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    resumed: Vec<u32>,
}

impl Intake {
    /// Takes the next chunk, or says what is wrong with it.
    fn accept(&mut self, signed: SignedChunk) -> Result<(), String> {
        let chunk = &signed.chunk;
        if chunk.text.is_empty() && chunk.tokens.is_empty() && chunk.logprobs.is_empty() {
            return Err(format!("chunk {} is empty", chunk.index));
        }
        // A token may be split over a few chunks where a forwarder does not see tokens.
        if self.chunks.len() > self.max_tokens.saturating_mul(8) {
            return Err(format!("it sent more than eight chunks for each of {} tokens", self.max_tokens));
        }
        self.bytes += encoded_bytes(&signed);
        if self.bytes > BUNDLE_BYTES {
            return Err(format!("its chunks are larger than {BUNDLE_BYTES} bytes"));
        }
        let link = self.chain.push(chunk).map_err(|error| error.to_string())?;
        if link != signed.link {
            return Err(format!("chunk {} carries a wrong link", chunk.index));
        }
        match signed.signer(&self.domain, &self.nonce) {
            Ok(signer) if signer == self.worker => {}
            Ok(_) | Err(_) => {
                return Err(format!("chunk {} is not signed with the worker's key", chunk.index));
            }
        }
        if self.forwarded && !chunk.tokens.is_empty() {
            return Err("a forwarder claims to know tokens".into());
        }
        if chunk.index == 0 && !self.resumed.is_empty() && !chunk.tokens.starts_with(&self.resumed) {
            return Err("its first chunk does not hold the tokens that it was to resume from".into());
        }
        if self.tokens.len() + chunk.tokens.len() > self.max_tokens {
            return Err(format!("it sent more than {} tokens", self.max_tokens));
        }
        let logprobs = chunk.logprobs.len();
        let as_asked = match self.logprobs_asked {
            None => logprobs == 0,
            // A forwarder does not see tokens; it may list no more than there can be.
            Some(_) if self.forwarded => self.logprobs.len() + logprobs <= self.max_tokens,
            Some(_) => logprobs == chunk.tokens.len(),
        };
        if !as_asked {
            return Err(format!("chunk {} has not one log-probability a token", chunk.index));
        }
        let top = self.logprobs_asked.unwrap_or(0);
        if chunk.logprobs.iter().any(|logprob| logprob.top.len() > top) {
            return Err(format!("chunk {} has more than {top} alternatives with a token", chunk.index));
        }
        if self.text.len() + chunk.text.len() > limits::TEXT_BYTES {
            return Err("its text is too long".into());
        }
        self.text.push_str(&chunk.text);
        self.tokens.extend(&chunk.tokens);
        self.logprobs.extend(chunk.logprobs.iter().cloned());
        self.chunks.push(signed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_receipt::{Chunk, Key};

    const TOP: [(u32, i32); 2] = [(1, 0), (2, 0)];

    fn intake(forwarded: bool, logprobs_asked: Option<usize>) -> Intake {
        Intake {
            domain: Domain::default(),
            worker: Key::from_bytes([1; 32]).unwrap().address(),
            forwarded,
            nonce: Bytes32::ZERO,
            max_tokens: 3,
            logprobs_asked,
            chain: Chain::start(&Bytes32::ZERO, &Bytes32::ZERO),
            chunks: Vec::new(),
            bytes: 0,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            resumed: Vec::new(),
        }
    }

    fn send(
        intake: &mut Intake,
        text: &str,
        tokens: &[u32],
        logprobs: usize,
        top: usize,
    ) -> Result<(), String> {
        let logprob = TokenLogprob { token: 1, logprob_q16: 0, top: TOP[..top].to_vec() };
        let chunk = Chunk {
            index: intake.chunks.len() as u64,
            text: text.into(),
            tokens: tokens.to_vec(),
            logprobs: vec![logprob; logprobs],
        };
        let key = Key::from_bytes([1; 32]).unwrap();
        let signed = intake.chain.clone().sign(&key, &intake.domain, chunk).unwrap();
        intake.accept(signed)
    }

    #[test]
    fn what_a_worker_may_send_is_bounded() {
        let refused = |result: Result<(), String>, why: &str| {
            let fault = result.unwrap_err();
            assert!(fault.contains(why), "{fault}");
        };
        refused(send(&mut intake(false, None), "", &[], 0, 0), "empty");
        refused(send(&mut intake(false, None), "a", &[1], 1, 0), "log-probability");
        refused(send(&mut intake(false, Some(0)), "a", &[1], 0, 0), "log-probability");
        refused(send(&mut intake(false, Some(1)), "a", &[1], 1, 2), "alternatives");
        refused(send(&mut intake(true, None), "a", &[], 1, 0), "log-probability");
        refused(send(&mut intake(true, Some(2)), "a", &[], 4, 2), "log-probability");
        refused(send(&mut intake(true, Some(2)), "a", &[1], 1, 2), "tokens");
        send(&mut intake(false, Some(2)), "a", &[1], 1, 2).unwrap();
        send(&mut intake(true, Some(2)), "a", &[], 3, 2).unwrap();
        let mut many = intake(true, None);
        let fault = (0..100).find_map(|_| send(&mut many, "a", &[], 0, 0).err());
        assert!(fault.unwrap().contains("chunks for each") && many.chunks.len() == 25);
        let mut large = intake(true, None);
        large.bytes = BUNDLE_BYTES - 100;
        refused(send(&mut large, "a", &[], 0, 0), "larger");
    }
}
