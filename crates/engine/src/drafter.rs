//! A small model with the same vocabulary that guesses for a large one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::SequenceId;
use crate::forward::{Core, Row, Want};
use crate::kv::{Before, Pages, Table};
use crate::pool::Broken;
use crate::sequence::Sequence;

/// The small model and what it has read of each sequence.
pub(crate) struct Drafter {
    pub(crate) core: Arc<Core>,
    pages: Pages,
    page_tokens: usize,
    read: HashMap<SequenceId, Read>,
}

struct Read {
    table: Table,
    /// Tokens whose keys and values are there.
    fed: usize,
}

impl Drafter {
    pub(crate) fn new(core: Arc<Core>, pages: usize, page_tokens: usize) -> Drafter {
        Drafter { core, pages: Pages::new(pages, page_tokens), page_tokens, read: HashMap::new() }
    }

    /// Frees the memory of sequences that do not run any more.
    pub(crate) fn forget(&mut self, sequences: &[Sequence]) {
        let pages = &mut self.pages;
        self.read.retain(|id, read| {
            let runs = sequences.iter().any(|s| s.running && s.id == *id);
            if !runs {
                read.table.release(pages, true);
            }
            runs
        });
    }

    /// After `tokens` tokens of a sequence are known: guesses beyond were wrong.
    pub(crate) fn settle(&mut self, id: SequenceId, tokens: usize) {
        if let Some(read) = self.read.get_mut(&id) {
            read.fed = read.fed.min(tokens - 1);
        }
    }

    /// Sets the guesses of sequences that decode: `wanted` has their indices and how many each gets at most. What a
    /// sequence has in `tokens` is read first, `chunk` tokens of all in a step; until then there are no guesses.
    /// The choices follow the rule of the sequence, seed included: then both models are most likely to agree.
    pub(crate) fn guess(
        &mut self,
        sequences: &mut [Sequence],
        mut wanted: Vec<(usize, usize)>,
        chunk: usize,
        run: impl Fn() -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let core = Arc::clone(&self.core);
        let (vocab, context) = (core.artifact().config().vocab, core.artifact().config().context);
        let mut budget = chunk;
        loop {
            let mut owners = Vec::new();
            let mut plan = core.plan();
            plan.clear();
            for (owner, length) in &mut wanted {
                let sequence = &mut sequences[*owner];
                let end = sequence.tokens.len() + sequence.drafts.len();
                if sequence.drafts.len() >= *length {
                    continue;
                }
                let read = self
                    .read
                    .entry(sequence.id)
                    .or_insert_with(|| Read { table: Table::new(Before::Sequence(sequence.id.0)), fed: 0 });
                let missing = end - read.fed;
                let count = missing.min(budget.max(1));
                let room = loop {
                    let room = read.table.pages().len() * self.page_tokens;
                    if room >= read.fed + count || !read.table.grow(&mut self.pages) {
                        break room;
                    }
                };
                if end > context || room < read.fed + count {
                    *length = 0; // no more of it in this step
                    continue;
                }
                budget = budget.saturating_sub(count);
                let table = plan.tables.len();
                plan.tables.push(read.table.pages().into());
                for position in read.fed..read.fed + count {
                    let draft = position.checked_sub(sequence.tokens.len());
                    let token = draft.map_or_else(|| sequence.tokens[position], |at| sequence.drafts[at]);
                    plan.rows.push(Row { token, position, table });
                }
                read.fed += count;
                if count < missing {
                    *length = 0;
                    continue;
                }
                let index = sequence.settled + sequence.drafts.len();
                owners.push(*owner);
                let row = plan.rows.len() - 1;
                plan.wants.push(Want {
                    row,
                    rule: Arc::clone(&sequence.rule),
                    index: index as u32, // an answer has at most `context` tokens
                    history: sequence.history(index),
                    mask: None,
                    outcome: Mutex::default(),
                });
            }
            if plan.rows.is_empty() {
                return Ok(());
            }
            core.prepare(&mut plan);
            drop(plan);
            run()?;
            let mut plan = core.plan();
            for (owner, want) in owners.into_iter().zip(plan.wants.drain(..)) {
                let outcome = want.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
                match outcome.token.filter(|&token| (token as usize) < vocab) {
                    Some(token) => sequences[owner].drafts.push(token),
                    None => wanted.retain(|(other, _)| *other != owner),
                }
            }
        }
    }
}
