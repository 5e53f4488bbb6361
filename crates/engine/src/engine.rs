//! Sequences, steps and events.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use assay_arithmetic::Kernel;
use assay_model::{Artifact, Config as Shape};
use assay_receipt::TokenLogprob;

use crate::Error;
use crate::choose::{Outcome, Rule};
use crate::drafter::Drafter;
use crate::forward::{Core, Plan, Row, Want};
use crate::generation::Generation;
use crate::grammar::Matcher;
use crate::kv::{Before, Pages, Table, token_bytes};
use crate::light::{Fault, Light};
use crate::pool::{Broken, Pool};
use crate::schedule::{Clock, Service, shares};
use crate::sequence::{Sequence, Task};
use crate::speculate::{ONE, look_up};
use crate::timing::Spent;

/// How many times [`Config::prefill_chunk`] tokens of prompts a step takes when no sequence decodes.
pub const ALONE: usize = 2;

/// How an engine runs. Nothing here changes a bit of what it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Threads that compute, the caller's own included; 1 to 1,024.
    pub threads: usize,
    /// Bytes for keys and values, over all sequences and what is kept of earlier ones; room for at least one page. A
    /// token takes `layers · kv_heads · (4 · head_dim + 16)`. Never exceeded; memory is used as sequences grow.
    pub kv_bytes: usize,
    /// Tokens of a page, 1 to 65,536: prefixes are shared in whole pages.
    pub page_tokens: usize,
    /// Sequences that run at once, at least 1.
    pub max_batch: usize,
    /// Sequences that may wait for a place.
    pub max_waiting: usize,
    /// Most tokens of prompts that one step takes beside sequences that decode, 1 to 65,536: more is faster, fewer lets
    /// those wait less. When none decodes, a step takes up to [`ALONE`] times as many.
    pub prefill_chunk: usize,
    /// Most tokens that are guessed ahead for a sequence in a step, 0 to 64.
    pub max_guess: usize,
    /// The instruction set.
    pub kernel: Kernel,
}

impl Default for Config {
    /// All processors, 384 MiB for keys and values in pages of 64 tokens, 16 sequences and 1,024 that wait, 128 prompt
    /// tokens a step beside others, up to 8 guessed, the best kernel.
    fn default() -> Self {
        Config {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            kv_bytes: 384 << 20,
            page_tokens: 64,
            max_batch: 16,
            max_waiting: 1024,
            prefill_chunk: 128,
            max_guess: 8,
            kernel: Kernel::best(),
        }
    }
}

impl Config {
    /// With memory for the keys and values of so many tokens of a model, in whole pages.
    #[must_use]
    pub fn with_kv_tokens(self, model: &Artifact, tokens: usize) -> Config {
        let tokens = tokens.next_multiple_of(self.page_tokens.max(1));
        Config { kv_bytes: tokens.saturating_mul(token_bytes(model.config())), ..self }
    }

    /// Tokens whose keys and values fit in memory, for a model and its draft model if there is one: prompt and answer
    /// of one sequence at most.
    pub fn kv_tokens(&self, model: &Artifact, draft: Option<&Artifact>) -> usize {
        self.pages(model, draft) * self.page_tokens
    }

    fn pages(&self, model: &Artifact, draft: Option<&Artifact>) -> usize {
        let token = token_bytes(model.config()) + draft.map_or(0, |draft| token_bytes(draft.config()));
        (self.kv_bytes / (self.page_tokens.max(1) * token)).min(u32::MAX as usize)
    }
}

/// What an engine has done and how full it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences with a place in the batch.
    pub running: usize,
    /// Sequences that wait for one.
    pub waiting: usize,
    /// Pages of keys and values in all.
    pub pages: usize,
    /// Pages that sequences hold.
    pub pages_held: usize,
    /// Pages that are kept for later sequences that begin alike; they are given up when memory is needed.
    pub pages_cached: usize,
    /// Rows (tokens of sequences, guesses included) that were run.
    pub rows: u64,
    /// Steps that ran any.
    pub steps: u64,
    /// Tokens whose keys and values were found instead of being run.
    pub tokens_found: u64,
    /// Tokens that were guessed.
    pub guessed: u64,
    /// Of these, the ones that the model chose.
    pub guessed_right: u64,
    /// Sequences that lost their memory to older ones and were run again later.
    pub preempted: u64,
    /// Where the time went, if there is a clock.
    pub spent: Spent,
}

/// Names a sequence within its engine; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(crate) u64);

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
    drafter: Option<Drafter>,
    /// What a guess of the drafter costs, of [`ONE`] for a step with one token.
    draft_cost: u64,
    pool: Pool,
    /// Whether the pool runs the drafter's model.
    drafting: Arc<AtomicBool>,
    config: Config,
    next_id: u64,
    /// By rank.
    sequences: Vec<Sequence>,
    clock: Clock,
    pages: Pages,
    stats: Stats,
    /// Events of other sequences that came up while [`Engine::replay`] was waiting.
    waiting: VecDeque<Event>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("model", &self.core.artifact().id())
            .field("config", &self.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// What [`Engine::add`] needs beside the texts.
struct Terms {
    task: Task,
    service: Service,
    rule: Rule,
    /// Tokens of context in the end.
    needed: usize,
    max_tokens: usize,
    end_tokens: Vec<u32>,
    matcher: Option<Matcher>,
}

impl Engine {
    /// Makes an engine for a model and starts its threads.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::NoMemory`] and [`Error::NoThreads`].
    pub fn new(artifact: Arc<Artifact>, config: Config) -> Result<Engine, Error> {
        Engine::start(artifact, None, config, None)
    }

    /// An engine with a small model of the same vocabulary that guesses ahead. Its keys and values are within
    /// `kv_bytes` as well. The answers are those of [`Engine::new`].
    ///
    /// # Errors
    /// As [`Engine::new`], and [`Error::DraftVocabulary`].
    pub fn with_draft(
        artifact: Arc<Artifact>,
        draft: Arc<Artifact>,
        config: Config,
    ) -> Result<Engine, Error> {
        Engine::start(artifact, Some(draft), config, None)
    }

    pub(crate) fn start(
        artifact: Arc<Artifact>,
        draft: Option<Arc<Artifact>>,
        config: Config,
        light: Option<Light>,
    ) -> Result<Engine, Error> {
        let checks = matches!(light, Some(Light::Check(_)));
        if !(artifact.has_weights() || checks) || draft.as_ref().is_some_and(|draft| !draft.has_weights()) {
            return Err(Error::NoWeights);
        }
        if artifact.encoder().is_some() || draft.as_ref().is_some_and(|draft| draft.encoder().is_some()) {
            return Err(Error::Encoder);
        }
        let within = |what, found, min, max| match found {
            n if (min..=max).contains(&n) => Ok(()),
            found => Err(Error::Setting { what, found, min, max }),
        };
        within("threads", config.threads, 1, 1024)?;
        within("page_tokens", config.page_tokens, 1, 1 << 16)?;
        within("max_batch", config.max_batch, 1, 1 << 16)?;
        within("max_waiting", config.max_waiting, 0, 1 << 20)?;
        within("prefill_chunk", config.prefill_chunk, 1, 1 << 16)?;
        within("max_guess", config.max_guess, 0, 64)?;
        if draft.as_ref().is_some_and(|draft| draft.tokenizer_json() != artifact.tokenizer_json()) {
            return Err(Error::DraftVocabulary);
        }
        let draft_bytes = draft.as_ref().map_or(0, |draft| token_bytes(draft.config()));
        let page_bytes = config.page_tokens * (token_bytes(artifact.config()) + draft_bytes);
        // On a machine with fewer addresses, all of them.
        within("kv_bytes", config.kv_bytes, page_bytes, 1_usize.checked_shl(48).unwrap_or(usize::MAX))?;
        let pages = config.pages(&artifact, draft.as_deref());
        let new =
            |model, light| Core::new(model, config.kernel, config.threads, pages, config.page_tokens, light);
        let core = Arc::new(new(artifact, light)?);
        let small = match draft {
            // The same threads run both models, so they meet at the same barrier.
            Some(draft) => {
                let mut small = new(draft, None)?;
                small.barrier = Arc::clone(&core.barrier);
                Some(Arc::new(small))
            }
            None => None,
        };
        let drafting = Arc::new(AtomicBool::new(false));
        let (main, other, switch) = (Arc::clone(&core), small.clone(), Arc::clone(&drafting));
        let pool = Pool::new(Arc::clone(&core.barrier), move |thread| match &other {
            Some(other) if switch.load(Ordering::Relaxed) => other.work(thread),
            _ => main.work(thread),
        })
        .map_err(|error| Error::NoThreads(error.to_string()))?;
        let bytes = |core: &Core| core.artifact().manifest().data_bytes.max(1);
        Ok(Engine {
            draft_cost: small.as_ref().map_or(0, |small| ONE * bytes(small) / bytes(&core)),
            drafter: small.map(|small| Drafter::new(small, pages, config.page_tokens)),
            drafting,
            core,
            pool,
            config,
            next_id: 0,
            sequences: Vec::new(),
            clock: Clock::default(),
            pages: Pages::new(pages, config.page_tokens),
            stats: Stats::default(),
            waiting: VecDeque::new(),
        })
    }

    /// The model.
    pub fn artifact(&self) -> &Arc<Artifact> {
        self.core.artifact()
    }

    pub(crate) fn light(&self) -> Option<&Light> {
        self.core.light.as_ref()
    }

    /// Gives the engine a clock, in nanoseconds from whenever, to fill in [`Stats::spent`]; it has none of its own. Only
    /// the first one counts.
    pub fn set_clock(&self, clock: fn() -> u64) {
        self.core.timer.set_clock(clock);
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether no sequence is there and no event is waiting.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.waiting.is_empty()
    }

    /// Counters since the start, and how full it is now.
    pub fn stats(&self) -> Stats {
        let running = self.sequences.iter().filter(|s| s.running).count();
        Stats {
            running,
            waiting: self.sequences.len() - running,
            pages: self.pages.count(),
            pages_held: self.pages.count() - self.pages.available(),
            pages_cached: self.pages.cached(),
            spent: self.core.timer.spent(),
            ..self.stats
        }
    }

    /// Tokens of keys and values that fit in memory: prompt and answer of one sequence at most.
    pub fn kv_tokens(&self) -> usize {
        self.pages.count() * self.config.page_tokens
    }

    /// Tokens of keys and values for which there is memory that no sequence holds.
    pub fn free_tokens(&self) -> usize {
        self.pages.available() * self.config.page_tokens
    }

    /// Adds a sequence. It waits until there is a place in the batch and memory for its prompt; its events come from
    /// [`Engine::step`]. If the memory runs out later, the sequences that rank last give up theirs and are run again
    /// when there is some, which nobody can see but in the time.
    ///
    /// # Errors
    /// [`Error::QueueFull`] passes with time; the others say what is wrong with the generation.
    pub fn submit(&mut self, generation: Generation, service: Service) -> Result<SequenceId, Error> {
        if generation.max_tokens == 0 {
            return Err(Error::NothingToGenerate);
        }
        let (resumed, max_tokens) = (generation.resume.len(), generation.max_tokens);
        if resumed > max_tokens as usize {
            return Err(Error::ResumeTooLong { resumed, max_tokens });
        }
        let terms = Terms {
            task: Task::Generate,
            service,
            rule: Rule::new(&generation.sampling, generation.logprobs, &generation.prompt),
            needed: generation.prompt.len().saturating_add(max_tokens as usize),
            max_tokens: max_tokens as usize,
            end_tokens: generation.end_tokens,
            matcher: generation.constraint,
        };
        self.add(&generation.prompt, &generation.resume, terms)
    }

    /// Adds the check of a claimed answer: [`Event::Replayed`] says whether `claimed` is what [`Engine::submit`] of
    /// the same generation would produce, and so does each step on the way. `resume` is not looked at.
    ///
    /// The answer is run like a prompt, many tokens a step, which is several times faster than to generate it.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_replay(
        &mut self,
        generation: &Generation,
        claimed: &[u32],
        service: Service,
    ) -> Result<SequenceId, Error> {
        if generation.max_tokens == 0 {
            return Err(Error::NothingToGenerate);
        }
        let terms = Terms {
            task: Task::Replay,
            service,
            rule: Rule::new(&generation.sampling, generation.logprobs, &generation.prompt),
            needed: generation.prompt.len().saturating_add(claimed.len()),
            max_tokens: generation.max_tokens as usize,
            end_tokens: generation.end_tokens.clone(),
            matcher: generation.constraint.clone(),
        };
        let id = self.add(&generation.prompt, claimed, terms)?;
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
        let id = self.submit_replay(generation, claimed, Service::default())?;
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

    /// Ends a sequence now and frees its memory. A sequence that is gone already is no error. This is also how a
    /// sequence ends whose text has met a stop string.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(at) = self.sequences.iter().position(|s| s.id == id) {
            self.sequences.remove(at).table.release(&mut self.pages, true);
        }
    }

    /// Runs one step: a token of every sequence that decodes, with the guesses that pay, and up to `prefill_chunk`
    /// tokens of prompts, shared evenly. Without sequences, it returns what is waiting.
    ///
    /// # Errors
    /// [`Error::ThreadFailed`].
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        let mut events: Vec<Event> = self.waiting.drain(..).collect();
        let outcomes = self.pass()?;
        let fault = self.light().and_then(Light::fault);
        let mut outcomes = outcomes.into_iter().peekable();
        let mut goes_on = Vec::with_capacity(self.sequences.len());
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            let guessed = sequence.drafts.len();
            let own = std::iter::from_fn(|| outcomes.next_if(|(owner, _)| *owner == index));
            let before = sequence.settled;
            goes_on.push(sequence.settle_all(own.map(|(_, outcome)| outcome), &mut events));
            // What is left follows a guess that was wrong.
            while outcomes.next_if(|(owner, _)| *owner == index).is_some() {}
            if guessed > 0 {
                self.stats.guessed += guessed as u64;
                self.stats.guessed_right += (sequence.settled - before).saturating_sub(1) as u64;
            }
            sequence.table.keep(&mut self.pages, &sequence.tokens[..sequence.fed]);
            if let Some(drafter) = &mut self.drafter {
                drafter.settle(sequence.id, sequence.tokens.len());
            }
        }
        let mut goes_on = goes_on.into_iter();
        self.sequences.retain_mut(|sequence| {
            let goes_on = goes_on.next().unwrap_or(true);
            if !goes_on {
                sequence.table.release(&mut self.pages, true);
            }
            goes_on
        });
        match fault {
            // What came before the false product decides if it is enough.
            Some((_, fault)) if events.is_empty() => Err(fault.into()),
            _ => Ok(events),
        }
    }

    /// The logits (Q16) of every position of `tokens`: `each` gets position and logits, in order. For measuring a
    /// model's quality. It must not be mixed with other sequences.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`Error::Busy`] if there is any sequence.
    pub fn logits(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[i32])) -> Result<(), Error> {
        if !self.sequences.is_empty() {
            return Err(Error::Busy { sequences: self.sequences.len() });
        }
        let terms = Terms {
            task: Task::Probe,
            service: Service::default(),
            rule: Rule::probe(),
            needed: tokens.len(),
            max_tokens: usize::MAX,
            end_tokens: Vec::new(),
            matcher: None,
        };
        let id = self.add(tokens, &[], terms)?;
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

    fn add(&mut self, prompt: &[u32], answer: &[u32], terms: Terms) -> Result<SequenceId, Error> {
        let Terms { task, service, rule, needed, max_tokens, end_tokens, matcher } = terms;
        let Shape { vocab, context, .. } = *self.core.artifact().config();
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().chain(answer).find(|&&t| t as usize >= vocab) {
            return Err(Error::UnknownToken { token, vocabulary: vocab });
        }
        if needed > context {
            return Err(Error::ContextExceeded { needed, context });
        }
        if needed > self.kv_tokens() {
            return Err(Error::CacheTooSmall { needed, total: self.kv_tokens() });
        }
        if let Some(light) = self.light()
            && !(task == Task::Replay && light.is_of(prompt, answer))
        {
            return Err(Fault::Text.into());
        }
        if self.sequences.len() >= self.config.max_batch + self.config.max_waiting {
            return Err(Error::QueueFull { waiting: self.stats().waiting });
        }
        let id = SequenceId(self.next_id);
        let start = match service.tenant {
            Some(tenant) => Before::Tenant(tenant),
            None => Before::Sequence(self.next_id),
        };
        self.next_id += 1;
        let mut tokens = Vec::with_capacity(needed);
        tokens.extend_from_slice(prompt);
        tokens.extend_from_slice(answer);
        let sequence = Sequence {
            id,
            rank: self.clock.rank(&service, needed),
            task,
            running: false,
            table: Table::new(start),
            tokens,
            prompt: prompt.len(),
            fed: 0,
            settled: 0,
            drafts: Vec::new(),
            guesses: Default::default(),
            by_model: false,
            rule: Arc::new(rule),
            max_tokens,
            end_tokens,
            matcher,
            stuck: None,
            logprobs: Vec::new(),
        };
        let at = self.sequences.partition_point(|other| other.rank <= sequence.rank);
        self.sequences.insert(at, sequence);
        Ok(id)
    }

    /// Runs the next tokens through the model and returns the outcomes with the index of their sequence.
    fn pass(&mut self) -> Result<Vec<(usize, Outcome)>, Error> {
        let core = Arc::clone(&self.core);
        let mut owners = Vec::new();
        {
            let mut plan = core.plan();
            self.fill(&mut plan, &mut owners)?;
            if plan.rows.is_empty() {
                return Ok(Vec::new());
            }
            self.clock.run(plan.rows.len());
            self.stats.rows += plan.rows.len() as u64;
            self.stats.steps += 1;
            core.prepare(&mut plan);
        }
        self.pool.run().map_err(|Broken| Error::ThreadFailed)?;
        let mut plan = core.plan();
        // Choices from a false product on say nothing.
        let end = core.light.as_ref().and_then(Light::fault).map_or(usize::MAX, |(position, _)| position);
        let Plan { rows, wants, .. } = &mut *plan;
        let outcomes = wants.drain(..).take_while(|want| rows[want.row].position < end);
        let outcomes = outcomes.map(|want| want.outcome.into_inner().unwrap_or_else(PoisonError::into_inner));
        let outcomes = owners.into_iter().zip(outcomes).collect();
        rows.clear();
        Ok(outcomes)
    }

    /// Plans a pass: a token of every sequence that has one left to run (it decodes), and prompts.
    fn fill(&mut self, plan: &mut Plan, owners: &mut Vec<usize>) -> Result<(), Error> {
        plan.clear();
        self.admit();
        let feeds: Vec<usize> =
            self.sequences.iter().map(|s| if s.running { s.to_feed() } else { 0 }).collect();
        let mut begun = HashSet::new();
        let prompts: Vec<usize> = (self.sequences.iter().zip(&feeds))
            .map(|(s, &feed)| {
                match s.table.next(&s.tokens[..s.skippable()], s.fed, self.config.page_tokens) {
                    _ if feed <= 1 => 0,
                    // Another one computes this page in this step.
                    Some(text) if !begun.insert(text) => 0,
                    _ => feed,
                }
            })
            .collect();
        let decodes = feeds.contains(&1);
        let shares = shares(&prompts, self.config.prefill_chunk * if decodes { 1 } else { ALONE });
        // How many rows there will be before guesses.
        let rows = feeds.iter().filter(|&&feed| feed == 1).count() + shares.iter().sum::<usize>();
        self.guess(&feeds, rows)?;
        for (owner, feed) in feeds.into_iter().enumerate() {
            // An earlier one may have taken its memory.
            let count = if feed == 1 { 1 } else { shares[owner] };
            let count = if self.sequences[owner].running { self.provide(owner, count) } else { 0 };
            let sequence = &mut self.sequences[owner];
            if count == 0 {
                sequence.drafts.clear();
                continue;
            }
            // Guesses take only memory that nobody else holds.
            let size = self.config.page_tokens;
            let end = sequence.fed + count + sequence.drafts.len();
            while sequence.table.pages().len() * size < end && sequence.table.grow(&mut self.pages) {}
            let room = sequence.table.pages().len() * size - sequence.fed - count;
            sequence.drafts.truncate(room);
            let (table, known) = (plan.tables.len(), sequence.tokens.len());
            plan.tables.push(sequence.table.pages().into());
            let count = count + sequence.drafts.len();
            for position in sequence.fed..sequence.fed + count {
                let token = match position.checked_sub(known) {
                    None => sequence.tokens[position],
                    Some(draft) => sequence.drafts[draft],
                };
                let row = plan.rows.len();
                plan.rows.push(Row { token, position, table });
                let Some(index) = sequence.wanted(position) else { continue };
                owners.push(owner);
                plan.wants.push(Want {
                    row,
                    rule: Arc::clone(&sequence.rule),
                    index: index as u32, // an answer has at most `context` tokens
                    history: sequence.history(index),
                    mask: sequence.mask(index),
                    outcome: Mutex::default(),
                });
            }
            sequence.fed += count;
        }
        Ok(())
    }

    /// Gives waiting sequences a place, by rank, as long as there is memory for all that is known of them. Others that
    /// run have first claim to what they still need for the same.
    fn admit(&mut self) {
        let size = self.config.page_tokens;
        let missing =
            |s: &Sequence| (s.tokens.len() + 1).div_ceil(size).saturating_sub(s.table.pages().len());
        let mut running = 0;
        let mut promised = 0;
        for sequence in self.sequences.iter_mut().filter(|s| s.running) {
            self.stats.tokens_found += sequence.adopt(&mut self.pages, size) as u64;
            running += 1;
            promised += missing(sequence);
        }
        for sequence in self.sequences.iter_mut().filter(|s| !s.running) {
            if running == self.config.max_batch {
                return;
            }
            let found = sequence.adopt(&mut self.pages, size);
            let needed = missing(sequence);
            if running > 0 && promised + needed > self.pages.available() {
                sequence.give_back(&mut self.pages);
                return; // who ranks behind waits as well
            }
            self.stats.tokens_found += found as u64;
            sequence.running = true;
            running += 1;
            promised += needed;
        }
    }

    /// Makes sure that there is memory for the next `count` tokens of a sequence: the last in rank behind it give up
    /// theirs if there is no other. Returns for how many there is.
    fn provide(&mut self, owner: usize, count: usize) -> usize {
        let size = self.config.page_tokens;
        let end = self.sequences[owner].fed + count;
        while self.sequences[owner].table.pages().len() * size < end {
            if self.sequences[owner].table.grow(&mut self.pages) {
                continue;
            }
            let behind = self.sequences[owner + 1..].iter_mut().rev();
            let Some(last) = behind.into_iter().find(|s| !s.table.pages().is_empty()) else { break };
            last.give_back(&mut self.pages);
            self.stats.preempted += 1;
        }
        let sequence = &self.sequences[owner];
        count.min(sequence.table.pages().len() * size - sequence.fed)
    }

    /// Guesses what follows the last token of the sequences that decode, as far as that pays in a pass with `rows` rows:
    /// by look-up, or else by the draft model.
    fn guess(&mut self, feeds: &[usize], rows: usize) -> Result<(), Error> {
        let mut ask = Vec::new();
        for (owner, sequence) in self.sequences.iter_mut().enumerate() {
            let decodes = feeds[owner] == 1 && sequence.task == Task::Generate;
            if !decodes || sequence.matcher.is_some() {
                continue;
            }
            let most = self.config.max_guess.min(sequence.max_tokens - sequence.settled - 1);
            let mut found = look_up(&sequence.tokens, most);
            if found.is_empty() && self.drafter.is_some() {
                let length = sequence.guesses[1].length(rows, self.draft_cost, most);
                sequence.by_model = true;
                ask.push((owner, length));
            } else {
                found.truncate(sequence.guesses[0].length(rows, 0, found.len()));
                sequence.by_model = false;
                sequence.drafts = found;
            }
        }
        let Some(drafter) = &mut self.drafter else { return Ok(()) };
        drafter.forget(&self.sequences);
        let run = || {
            self.drafting.store(true, Ordering::Relaxed);
            let done = self.pool.run();
            self.drafting.store(false, Ordering::Relaxed);
            done
        };
        let asked = drafter.guess(&mut self.sequences, ask, self.config.prefill_chunk, run);
        asked.map_err(|Broken| Error::ThreadFailed)
    }
}
