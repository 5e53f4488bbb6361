//! Sequences, steps and events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use assay_arithmetic::Kernel;
use assay_model::Artifact;
use assay_receipt::TokenLogprob;

use crate::Error;
use crate::cache::Cache;
use crate::choose::{Outcome, Rule};
use crate::forward::{Core, Plan, Row, Want};
use crate::generation::Generation;
use crate::grammar::Matcher;
use crate::pool::{Broken, Pool};

/// How an engine runs. Nothing here changes a bit of what it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Threads that compute, the caller's own included; 1 to 1,024.
    pub threads: usize,
    /// Tokens whose keys and values fit in memory, over all sequences, at least 1. A token takes
    /// `layers · kv_heads · (4 · head_dim + 16)` bytes, and memory is used as sequences grow.
    pub kv_tokens: usize,
    /// Sequences that run at once, at least 1.
    pub max_batch: usize,
    /// Most tokens of prompts that one step takes, at least 1: more is faster, fewer lets running sequences wait less.
    pub prefill_chunk: usize,
    /// The instruction set.
    pub kernel: Kernel,
}

impl Default for Config {
    /// All processors, 16,384 tokens of cache, 16 sequences, 256 prompt tokens a step, the best kernel.
    fn default() -> Self {
        Config {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            kv_tokens: 16_384,
            max_batch: 16,
            prefill_chunk: 256,
            kernel: Kernel::best(),
        }
    }
}

/// Names a sequence within its engine; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end token was sampled; it is the answer's last token.
    End,
    /// `max_tokens` were sampled.
    Length,
}

/// What a step has brought. Events of one sequence come in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A token of the answer: sampled now, or one to resume from that was found right.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The token.
        token: u32,
        /// Its number in the answer, from 0.
        index: u32,
        /// Present if the generation asks for log-probabilities.
        logprob: Option<TokenLogprob>,
    },
    /// The sequence ended and is gone.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// Why.
        finish: Finish,
    },
    /// A token to resume from is not the one that this engine chooses. The sequence is gone.
    ResumeMismatch {
        /// The sequence.
        id: SequenceId,
        /// The token's number in the answer, from 0.
        position: u32,
        /// The token that should be there; `None` if the answer should have ended before.
        expected: Option<u32>,
        /// The token that is there.
        claimed: u32,
    },
    /// A replay that [`Engine::submit_replay`] began is complete. The sequence is gone.
    Replayed {
        /// The sequence.
        id: SequenceId,
        /// What was found.
        replay: Replay,
    },
    /// The constraint cannot be followed further. The sequence is gone.
    Stuck {
        /// The sequence.
        id: SequenceId,
        /// The number of the token that could not be chosen.
        position: u32,
        /// What the grammar said.
        reason: String,
    },
}

impl Event {
    /// The sequence that the event is about.
    pub fn id(&self) -> SequenceId {
        match *self {
            Event::Token { id, .. }
            | Event::Finished { id, .. }
            | Event::ResumeMismatch { id, .. }
            | Event::Replayed { id, .. }
            | Event::Stuck { id, .. } => id,
        }
    }
}

/// The result of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Every claimed token is the one that this engine chooses.
    Agrees {
        /// Why the answer ends with the last claimed token; `None` if the model would have gone on.
        finish: Option<Finish>,
        /// One entry a token if the generation asks for log-probabilities, else empty.
        logprobs: Vec<TokenLogprob>,
    },
    /// The claimed answer is not the model's.
    Differs {
        /// The number of the first token that differs, from 0.
        position: u32,
        /// The token that should be there; `None` if the answer should have ended before.
        expected: Option<u32>,
        /// The token that was claimed.
        claimed: u32,
    },
}

/// Runs the sequences of one model.
///
/// An engine does nothing by itself: whoever owns it calls [`Engine::step`] until it is [idle](Engine::is_idle).
pub struct Engine {
    core: Arc<Core>,
    pool: Pool,
    config: Config,
    next_id: u64,
    sequences: Vec<Sequence>,
    /// Tokens of cache that are promised to sequences.
    reserved: usize,
    /// Events of other sequences that came up while [`Engine::replay`] was waiting.
    waiting: VecDeque<Event>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("model", &self.core.artifact().id())
            .field("config", &self.config)
            .field("sequences", &self.sequences.len())
            .field("reserved", &self.reserved)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Generate,
    Replay,
    Probe,
}

struct Sequence {
    id: SequenceId,
    task: Task,
    cache: Arc<Cache>,
    /// Tokens of cache promised to it.
    reserved: usize,
    /// Prompt, then the answer as far as it is known.
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens whose keys and values are in the cache.
    fed: usize,
    /// Tokens of the answer that were checked or chosen.
    settled: usize,
    rule: Arc<Rule>,
    max_tokens: usize,
    end_tokens: Vec<u32>,
    matcher: Option<Matcher>,
    /// The token after which the matcher could not go on, and why.
    stuck: Option<(usize, String)>,
    /// For a replay's result.
    logprobs: Vec<TokenLogprob>,
}

impl Sequence {
    fn answer(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }

    /// Why the answer ends with its token number `index`, if it does.
    fn finish(&self, index: usize) -> Option<Finish> {
        if self.end_tokens.contains(&self.tokens[self.prompt + index]) {
            Some(Finish::End)
        } else {
            (index + 1 >= self.max_tokens).then_some(Finish::Length)
        }
    }

    /// Tokens that the next steps have to run. A replay does not run its last token: nothing follows it.
    fn to_feed(&self) -> usize {
        let last = usize::from(self.task == Task::Replay);
        self.tokens.len().saturating_sub(self.fed + last)
    }

    /// The mask for the answer's token `index`, and a step of the matcher over that token if it is known already.
    fn mask(&mut self, index: usize) -> Option<crate::grammar::Mask> {
        let matcher = self.matcher.as_mut().filter(|_| self.stuck.is_none())?;
        let known = self.tokens.get(self.prompt + index).copied();
        match matcher.mask() {
            Ok(mask) => {
                if let Some(Err(error)) = known.filter(|&t| mask.allows(t)).map(|t| matcher.advance(t)) {
                    self.stuck = Some((index + 1, error.to_string()));
                }
                Some(mask)
            }
            Err(error) => {
                self.stuck = Some((index, error.to_string()));
                None
            }
        }
    }

    /// Takes the choice for the answer's token `settled`; returns whether the sequence goes on.
    fn settle(&mut self, outcome: Outcome, events: &mut Vec<Event>) -> bool {
        let (id, index) = (self.id, self.settled);
        let position = index as u32; // an answer has at most `context` tokens
        if let Some((_, reason)) = self.stuck.as_ref().filter(|(at, _)| *at <= index) {
            events.push(Event::Stuck { id, position, reason: reason.clone() });
            return false;
        }
        let known = self.answer().get(index).copied();
        let Some(token) = outcome.token else {
            let reason = "no token may be chosen".to_owned();
            events.push(Event::Stuck { id, position, reason });
            return false;
        };
        if let Some(claimed) = known.filter(|&claimed| claimed != token) {
            events.push(self.differs(position, Some(token), claimed));
            return false;
        }
        if known.is_none() {
            self.tokens.push(token);
        }
        self.settled += 1;
        if self.task == Task::Replay {
            self.logprobs.extend(outcome.logprob);
        } else {
            events.push(Event::Token { id, token, index: position, logprob: outcome.logprob });
        }
        if let Some(finish) = self.finish(index) {
            events.push(match self.answer().get(index + 1) {
                Some(&claimed) => self.differs(position + 1, None, claimed),
                None if self.task == Task::Replay => self.agrees(Some(finish)),
                None => Event::Finished { id, finish },
            });
            return false;
        }
        if self.task == Task::Replay {
            if self.settled == self.answer().len() {
                events.push(self.agrees(None));
                return false;
            }
        } else if known.is_none()
            && let Some(Err(error)) = self.matcher.as_mut().map(|m| m.advance(token))
        {
            self.stuck = Some((index + 1, error.to_string()));
        }
        true
    }

    fn differs(&self, position: u32, expected: Option<u32>, claimed: u32) -> Event {
        match self.task {
            Task::Replay => {
                Event::Replayed { id: self.id, replay: Replay::Differs { position, expected, claimed } }
            }
            _ => Event::ResumeMismatch { id: self.id, position, expected, claimed },
        }
    }

    fn agrees(&mut self, finish: Option<Finish>) -> Event {
        let logprobs = std::mem::take(&mut self.logprobs);
        Event::Replayed { id: self.id, replay: Replay::Agrees { finish, logprobs } }
    }
}

impl Engine {
    /// Makes an engine for a model and starts its threads.
    ///
    /// # Errors
    /// [`Error::Setting`] and [`Error::NoThreads`].
    pub fn new(artifact: Arc<Artifact>, config: Config) -> Result<Engine, Error> {
        let positive = |what, found, max| match found {
            n if (1..=max).contains(&n) => Ok(()),
            found => Err(Error::Setting { what, found, min: 1, max }),
        };
        positive("threads", config.threads, 1024)?;
        positive("kv_tokens", config.kv_tokens, 1 << 30)?;
        positive("max_batch", config.max_batch, 1 << 16)?;
        positive("prefill_chunk", config.prefill_chunk, 1 << 16)?;
        let core = Arc::new(Core::new(artifact, config.kernel, config.threads));
        let job = Arc::clone(&core);
        let pool = Pool::new(Arc::clone(&core.barrier), move |thread| job.work(thread))
            .map_err(|error| Error::NoThreads(error.to_string()))?;
        Ok(Engine {
            core,
            pool,
            config,
            next_id: 0,
            sequences: Vec::new(),
            reserved: 0,
            waiting: VecDeque::new(),
        })
    }

    /// The model.
    pub fn artifact(&self) -> &Arc<Artifact> {
        self.core.artifact()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether no sequence is running and no event is waiting.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.waiting.is_empty()
    }

    /// Sequences that are running.
    pub fn running(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens of cache that are free.
    pub fn free_tokens(&self) -> usize {
        self.config.kv_tokens - self.reserved
    }

    /// Adds a sequence. Its events come from [`Engine::step`]. The cache for prompt and longest answer is reserved
    /// now, so that a sequence that has begun can always finish.
    ///
    /// # Errors
    /// [`Error::BatchFull`] and [`Error::CacheFull`] pass with time; the others say what is wrong with the generation.
    pub fn submit(&mut self, generation: Generation) -> Result<SequenceId, Error> {
        if generation.max_tokens == 0 {
            return Err(Error::NothingToGenerate);
        }
        let (resumed, max_tokens) = (generation.resume.len(), generation.max_tokens);
        if resumed > max_tokens as usize {
            return Err(Error::ResumeTooLong { resumed, max_tokens });
        }
        let needed = generation.prompt.len().saturating_add(max_tokens as usize);
        let Generation { prompt, resume, sampling, max_tokens, end_tokens, constraint, logprobs } =
            generation;
        let rule = Rule::new(&sampling, logprobs, &prompt);
        self.add(Task::Generate, prompt, &resume, rule, needed, max_tokens as usize, end_tokens, constraint)
    }

    /// Adds the check of a claimed answer: [`Event::Replayed`] says whether `claimed` is what [`Engine::submit`] of
    /// the same generation would produce, and so does each step on the way. `resume` is not looked at.
    ///
    /// The answer is run like a prompt, many tokens a step, which is several times faster than to generate it.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_replay(&mut self, generation: &Generation, claimed: &[u32]) -> Result<SequenceId, Error> {
        if generation.max_tokens == 0 {
            return Err(Error::NothingToGenerate);
        }
        let rule = Rule::new(&generation.sampling, generation.logprobs, &generation.prompt);
        let needed = generation.prompt.len().saturating_add(claimed.len());
        let id = self.add(
            Task::Replay,
            generation.prompt.clone(),
            claimed,
            rule,
            needed,
            generation.max_tokens as usize,
            generation.end_tokens.clone(),
            generation.constraint.clone(),
        )?;
        if claimed.is_empty() {
            self.cancel(id);
            let replay = Replay::Agrees { finish: None, logprobs: Vec::new() };
            self.waiting.push_back(Event::Replayed { id, replay });
        }
        Ok(id)
    }

    /// [`Engine::submit_replay`] and all the steps that it takes. Events of other sequences are kept for the next
    /// [`Engine::step`].
    ///
    /// # Errors
    /// As [`Engine::submit`], [`Error::Constraint`] and [`Error::ThreadFailed`].
    pub fn replay(&mut self, generation: &Generation, claimed: &[u32]) -> Result<Replay, Error> {
        let id = self.submit_replay(generation, claimed)?;
        let mut result = None;
        let mut others = VecDeque::new();
        while result.is_none() {
            for event in self.step()? {
                match event {
                    Event::Replayed { id: found, replay } if found == id => result = Some(Ok(replay)),
                    Event::Stuck { id: found, position, reason } if found == id => {
                        result = Some(Err(Error::Constraint { position, reason }));
                    }
                    event => others.push_back(event),
                }
            }
        }
        self.waiting.append(&mut others);
        result.unwrap_or(Err(Error::ThreadFailed))
    }

    /// Ends a sequence now and frees its cache. A sequence that is gone already is no error. This is also how a
    /// sequence ends whose text has met a stop string.
    pub fn cancel(&mut self, id: SequenceId) {
        self.sequences.retain(|s| {
            s.id != id || {
                self.reserved -= s.reserved;
                false
            }
        });
    }

    /// Runs one step: a token of every sequence that decodes, and up to `prefill_chunk` tokens of prompts.
    /// Without sequences, it returns what is waiting.
    ///
    /// # Errors
    /// [`Error::ThreadFailed`].
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        let mut events: Vec<Event> = self.waiting.drain(..).collect();
        let outcomes = self.pass()?;
        let mut outcomes = outcomes.into_iter().peekable();
        let mut freed = 0;
        let mut index = 0;
        self.sequences.retain_mut(|sequence| {
            let mut goes_on = true;
            while let Some((_, outcome)) = outcomes.next_if(|(owner, _)| *owner == index) {
                goes_on = goes_on && sequence.settle(outcome, &mut events);
            }
            index += 1;
            if !goes_on {
                freed += sequence.reserved;
            }
            goes_on
        });
        self.reserved -= freed;
        Ok(events)
    }

    /// The logits (Q16) of every position of `tokens`: `each` gets position and logits, in order. For measuring a
    /// model's quality. It must not be mixed with running sequences.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`Error::BatchFull`] if any sequence is running.
    pub fn logits(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[i32])) -> Result<(), Error> {
        if !self.sequences.is_empty() {
            return Err(Error::BatchFull { running: self.sequences.len() });
        }
        let needed = tokens.len();
        let id =
            self.add(Task::Probe, tokens.to_vec(), &[], Rule::probe(), needed, usize::MAX, Vec::new(), None)?;
        let mut position = 0;
        while position < tokens.len() {
            for (_, outcome) in self.pass()? {
                each(position, &outcome.logits);
                position += 1;
            }
        }
        self.cancel(id);
        Ok(())
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "private; a struct would only repeat the fields of Sequence"
    )]
    fn add(
        &mut self,
        task: Task,
        prompt: Vec<u32>,
        answer: &[u32],
        rule: Rule,
        needed: usize,
        max_tokens: usize,
        end_tokens: Vec<u32>,
        matcher: Option<Matcher>,
    ) -> Result<SequenceId, Error> {
        let shape = self.core.artifact().config();
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().chain(answer).find(|&&t| t as usize >= shape.vocab) {
            return Err(Error::UnknownToken { token, vocabulary: shape.vocab });
        }
        if needed > shape.context {
            return Err(Error::ContextExceeded { needed, context: shape.context });
        }
        if needed > self.config.kv_tokens {
            return Err(Error::CacheTooSmall { needed, total: self.config.kv_tokens });
        }
        if self.sequences.len() >= self.config.max_batch {
            return Err(Error::BatchFull { running: self.sequences.len() });
        }
        if needed > self.free_tokens() {
            return Err(Error::CacheFull { needed, available: self.free_tokens() });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.reserved += needed;
        let cache = Arc::new(Cache::new(shape.layers, shape.kv_heads, shape.head_dim, needed));
        let mut tokens = Vec::with_capacity(needed);
        tokens.extend_from_slice(&prompt);
        tokens.extend_from_slice(answer);
        self.sequences.push(Sequence {
            id,
            task,
            cache,
            reserved: needed,
            tokens,
            prompt: prompt.len(),
            fed: 0,
            settled: 0,
            rule: Arc::new(rule),
            max_tokens,
            end_tokens,
            matcher,
            stuck: None,
            logprobs: Vec::new(),
        });
        Ok(id)
    }

    /// Runs the next tokens through the model and returns the outcomes with the index of their sequence.
    fn pass(&mut self) -> Result<Vec<(usize, Outcome)>, Error> {
        let core = Arc::clone(&self.core);
        let mut owners = Vec::new();
        {
            let mut plan = core.plan();
            self.fill(&mut plan, &mut owners);
            if plan.rows.is_empty() {
                return Ok(Vec::new());
            }
            core.prepare(&mut plan);
        }
        self.pool.run().map_err(|Broken| Error::ThreadFailed)?;
        let mut plan = core.plan();
        plan.rows.clear();
        let outcomes = plan
            .wants
            .drain(..)
            .map(|want| want.outcome.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(owners.into_iter().zip(outcomes).collect())
    }

    /// Plans a pass: every sequence that has one token left to run (it decodes), then prompts in order of arrival.
    fn fill(&mut self, plan: &mut Plan, owners: &mut Vec<usize>) {
        plan.rows.clear();
        plan.wants.clear();
        let mut budget = self.config.prefill_chunk;
        for (owner, sequence) in self.sequences.iter_mut().enumerate() {
            let count = match sequence.to_feed() {
                decode @ 0..=1 => decode,
                prefill => {
                    let count = prefill.min(budget);
                    budget -= count;
                    count
                }
            };
            for position in sequence.fed..sequence.fed + count {
                let row = plan.rows.len();
                let (token, cache) = (sequence.tokens[position], Arc::clone(&sequence.cache));
                plan.rows.push(Row { token, position, cache });
                let probe = sequence.task == Task::Probe;
                if !probe && position + 1 < sequence.prompt {
                    continue;
                }
                let index = if probe { 0 } else { position + 1 - sequence.prompt };
                owners.push(owner);
                plan.wants.push(Want {
                    row,
                    rule: Arc::clone(&sequence.rule),
                    index: index as u32, // an answer has at most `context` tokens
                    history: sequence.rule.history(&sequence.answer()[..index]),
                    mask: sequence.mask(index),
                    outcome: Mutex::default(),
                });
            }
            sequence.fed += count;
        }
    }
}
