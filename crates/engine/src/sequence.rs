//! One sequence: its text so far, what of it was run, and how it goes on.

use std::sync::Arc;

use assay_receipt::TokenLogprob;

use crate::choose::{Outcome, Rule};
use crate::engine::{Event, Finish, Replay, SequenceId};
use crate::grammar::{Mask, Matcher};
use crate::kv::{Pages, Table};
use crate::speculate::Guess;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Generate,
    Replay,
    Probe,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// The smaller goes first, see [`crate::schedule`].
    pub(crate) rank: u64,
    pub(crate) task: Task,
    /// Whether it has a place in the batch.
    pub(crate) running: bool,
    pub(crate) table: Table,
    /// Prompt, then the answer as far as it is known.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: usize,
    /// Tokens whose keys and values are there.
    pub(crate) fed: usize,
    /// Tokens of the answer that were checked or chosen.
    pub(crate) settled: usize,
    /// Tokens that may come next, which the pass that is planned runs as well.
    pub(crate) drafts: Vec<u32>,
    /// How guesses by look-up and those by a draft model have turned out.
    pub(crate) guesses: [Guess; 2],
    /// Whether `drafts` come from a draft model.
    pub(crate) by_model: bool,
    pub(crate) rule: Arc<Rule>,
    pub(crate) max_tokens: usize,
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) matcher: Option<Matcher>,
    /// The token after which the matcher could not go on, and why.
    pub(crate) stuck: Option<(usize, String)>,
    /// For a replay's result.
    pub(crate) logprobs: Vec<TokenLogprob>,
}

impl Sequence {
    pub(crate) fn answer(&self) -> &[u32] {
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
    pub(crate) fn to_feed(&self) -> usize {
        let last = usize::from(self.task == Task::Replay);
        self.tokens.len().saturating_sub(self.fed + last)
    }

    /// Tokens at the beginning that need not be run if their keys and values are there: none of their logits is
    /// needed any more.
    pub(crate) fn skippable(&self) -> usize {
        if self.task == Task::Probe { 0 } else { self.prompt - 1 + self.settled }
    }

    /// Takes over what others have computed of this text. Returns for how many tokens.
    pub(crate) fn adopt(&mut self, pages: &mut Pages, page_tokens: usize) -> usize {
        if self.fed != self.table.pages().len() * page_tokens {
            return 0; // in the middle of a page, or decoding
        }
        let found = self.table.adopt(pages, &self.tokens, self.skippable());
        self.fed += found;
        found
    }

    /// Gives up place and memory, to be run again later.
    pub(crate) fn give_back(&mut self, pages: &mut Pages) {
        self.table.release(pages, false);
        self.drafts.clear();
        self.running = false;
        self.fed = 0;
    }

    /// The number of the answer's token that the logits at a position choose, if that is still to be done.
    pub(crate) fn wanted(&self, position: usize) -> Option<usize> {
        match self.task {
            Task::Probe => Some(0),
            _ => (position + 1).checked_sub(self.prompt).filter(|&index| index >= self.settled),
        }
    }

    /// What the choice of the answer's token `index` needs to know of those before.
    pub(crate) fn history(&self, index: usize) -> Vec<u32> {
        let known = &self.answer()[..index.min(self.answer().len())];
        self.rule.history(known, &self.drafts[..index - known.len()])
    }

    /// The mask for the answer's token `index`, and a step of the matcher over that token if it is known already.
    pub(crate) fn mask(&mut self, index: usize) -> Option<Mask> {
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

    /// Takes the choices of a pass, in order; returns whether the sequence goes on. Those that follow a draft which was
    /// not chosen say nothing and are dropped.
    pub(crate) fn settle_all(
        &mut self,
        outcomes: impl Iterator<Item = Outcome>,
        events: &mut Vec<Event>,
    ) -> bool {
        let known = self.tokens.len();
        let drafts = std::mem::take(&mut self.drafts);
        let mut goes_on = true;
        for outcome in outcomes {
            // The first choice follows the known tokens, each later one a draft.
            let last = self.tokens.len();
            if last > known && drafts.get(last - known - 1) != self.tokens.last() {
                break;
            }
            goes_on = self.settle(outcome, events);
            if !goes_on {
                break;
            }
        }
        if !drafts.is_empty() {
            let right = drafts.iter().zip(&self.tokens[known..]).take_while(|(a, b)| a == b).count();
            self.guesses[usize::from(self.by_model)].learn(drafts.len(), right);
        }
        if self.task == Task::Generate {
            // Drafts that were not chosen have left keys and values, which the next tokens overwrite.
            self.fed = self.fed.min(self.tokens.len() - 1);
        }
        goes_on
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
