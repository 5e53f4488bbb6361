//! Keys and values: where they lie, and which sequence holds which page.
//!
//! Memory comes in pages of a fixed number of tokens, a fixed number of them ([`Pages`]). A sequence has a table of the
//! pages it holds. A page that is full never changes again, so others may read it: full pages are found by the tokens
//! that led to them, and stay after their sequence until the memory is needed. What a page holds is a pure function of
//! those tokens, so that no result depends on who computed it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use assay_arithmetic::{KeyValues, Scale};
use assay_model::Config as Shape;

use crate::Error;

/// Bytes that the keys and values of one token take.
pub(crate) fn token_bytes(shape: &Shape) -> usize {
    shape.layers * shape.kv_heads * 2 * (shape.head_dim * size_of::<i16>() + size_of::<Scale>())
}

/// Who may share pages: two sequences do only if they have the same. It should be a secret that says who asks, see
/// [`Service`](crate::Service).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(pub [u8; 32]);

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tenant(..)")
    }
}

/// What comes before a page: the whole text, since a page before names its own predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Before {
    /// Nothing; the text of this tenant begins.
    Tenant(Tenant),
    /// Nothing; the text of this sequence begins, which shares with nobody.
    Sequence(u64),
    /// The page with this number, which is never given twice.
    Page(u64),
}

/// A full page's text. Compared token by token, so that no two texts can be taken for each other.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Text {
    before: Before,
    tokens: Box<[u32]>,
}

#[derive(Debug, Default)]
struct Page {
    /// Sequences that hold it.
    holders: u32,
    /// Set while the page can be found by its text.
    text: Option<(Arc<Text>, u64)>,
    /// When its last holder let go of it.
    since: u64,
}

/// Which pages are taken, by whom, and what they hold.
#[derive(Debug)]
pub(crate) struct Pages {
    page_tokens: usize,
    pages: Vec<Page>,
    /// Pages from here on were never used: the system has not been asked for their memory.
    fresh: u32,
    free: BTreeSet<u32>,
    by_text: HashMap<Arc<Text>, u32>,
    /// Pages with a text that nobody holds, the first to go first.
    idle: BTreeSet<(u64, u32)>,
    clock: u64,
    next_number: u64,
}

impl Pages {
    pub(crate) fn new(count: usize, page_tokens: usize) -> Pages {
        Pages {
            page_tokens,
            pages: std::iter::repeat_with(Page::default).take(count).collect(),
            fresh: 0,
            free: BTreeSet::new(),
            by_text: HashMap::new(),
            idle: BTreeSet::new(),
            clock: 0,
            next_number: 0,
        }
    }

    /// All pages.
    pub(crate) fn count(&self) -> usize {
        self.pages.len()
    }

    /// Pages that [`Pages::take`] can give: unused ones, and cached ones that nobody holds.
    pub(crate) fn available(&self) -> usize {
        self.count() - self.fresh as usize + self.free.len() + self.idle.len()
    }

    /// Pages that nobody holds and that can be found by their text.
    pub(crate) fn cached(&self) -> usize {
        self.idle.len()
    }

    /// A page for new tokens; drops the text that was unused for longest if no page is free. `None` when sequences
    /// hold all.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = if let Some(page) = self.free.pop_first() {
            page
        } else if (self.fresh as usize) < self.count() {
            self.fresh += 1;
            self.fresh - 1
        } else {
            let (_, page) = self.idle.pop_first()?;
            self.unlink(page);
            page
        };
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    fn unlink(&mut self, page: u32) {
        if let Some((text, _)) = self.pages[page as usize].text.take() {
            self.by_text.remove(&text);
        }
    }

    /// Finds and holds the page of this text.
    fn find(&mut self, before: Before, tokens: &[u32]) -> Option<(u32, Before)> {
        let page = *self.by_text.get(&Text { before, tokens: tokens.into() })?;
        let entry = &mut self.pages[page as usize];
        if entry.holders == 0 {
            self.idle.remove(&(entry.since, page));
        }
        entry.holders += 1;
        let number = entry.text.as_ref().map(|(_, number)| *number)?;
        Some((page, Before::Page(number)))
    }

    /// Lets a full page be found by its text. If there is one with the same text already, the caller gets that one
    /// instead of its own, which is freed: they are equal.
    fn keep(&mut self, page: u32, before: Before, tokens: &[u32]) -> (u32, Before) {
        if let Some(found) = self.find(before, tokens) {
            self.release(page, false);
            return found;
        }
        let text = Arc::new(Text { before, tokens: tokens.into() });
        let number = self.next_number;
        self.next_number += 1;
        self.by_text.insert(Arc::clone(&text), page);
        self.pages[page as usize].text = Some((text, number));
        (page, Before::Page(number))
    }

    /// One holder less; `forget` if nobody else could find it.
    fn release(&mut self, page: u32, forget: bool) {
        let entry = &mut self.pages[page as usize];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        if entry.text.is_some() && !forget {
            self.clock += 1;
            entry.since = self.clock;
            self.idle.insert((self.clock, page));
        } else {
            self.unlink(page);
            self.free.insert(page);
        }
    }
}

/// The pages of one sequence, in the order of its tokens.
#[derive(Debug)]
pub(crate) struct Table {
    start: Before,
    pages: Vec<u32>,
    /// The first so many can be found by their text.
    kept: usize,
    /// What comes before page `kept`.
    before: Before,
}

impl Table {
    pub(crate) fn new(start: Before) -> Table {
        Table { start, pages: Vec::new(), kept: 0, before: start }
    }

    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Takes over pages whose text others have computed, while they lie within the first `most` of `tokens`. Only where
    /// the table is full pages. Returns how many tokens that gives.
    pub(crate) fn adopt(&mut self, pages: &mut Pages, tokens: &[u32], most: usize) -> usize {
        let size = pages.page_tokens;
        let before = self.pages.len();
        while self.kept == self.pages.len() && (self.kept + 1) * size <= most {
            let text = &tokens[self.kept * size..(self.kept + 1) * size];
            let Some((page, next)) = pages.find(self.before, text) else { break };
            self.pages.push(page);
            self.kept += 1;
            self.before = next;
        }
        (self.pages.len() - before) * size
    }

    /// The text of the page in which token `fed` lies, if it is whole within `tokens` and others could use it.
    pub(crate) fn next<'a>(&self, tokens: &'a [u32], fed: usize, size: usize) -> Option<(Before, &'a [u32])> {
        let text = tokens.get(self.kept * size..(self.kept + 1) * size)?;
        let shared = !matches!(self.start, Before::Sequence(_));
        (shared && fed / size == self.kept).then_some((self.before, text))
    }

    /// Adds a page; `false` if there is none.
    pub(crate) fn grow(&mut self, pages: &mut Pages) -> bool {
        pages.take().map(|page| self.pages.push(page)).is_some()
    }

    /// Lets the pages be found that `tokens`, all of them computed, have filled.
    pub(crate) fn keep(&mut self, pages: &mut Pages, tokens: &[u32]) {
        for text in tokens.chunks_exact(pages.page_tokens).skip(self.kept) {
            let (page, next) = pages.keep(self.pages[self.kept], self.before, text);
            self.pages[self.kept] = page;
            self.kept += 1;
            self.before = next;
        }
    }

    /// Gives all pages back. At the end of a sequence that shares with nobody, its texts are forgotten.
    pub(crate) fn release(&mut self, pages: &mut Pages, at_end: bool) {
        let forget = at_end && matches!(self.start, Before::Sequence(_));
        // The last page first, so that a text is never dropped before what continues it.
        for page in self.pages.drain(..).rev() {
            pages.release(page, forget);
        }
        (self.kept, self.before) = (0, self.start);
    }
}

/// The keys and values of one key-value head in one layer, for all pages one after the other.
#[derive(Debug)]
pub(crate) struct Head {
    dim: usize,
    page_tokens: usize,
    keys: Vec<i16>,
    key_scales: Vec<Scale>,
    values: Vec<i16>,
    value_scales: Vec<Scale>,
}

impl Head {
    /// The place of a position, for which memory is there afterwards.
    fn slot(&mut self, table: &[u32], position: usize) -> usize {
        let page = table[position / self.page_tokens] as usize;
        let end = (page + 1) * self.page_tokens;
        if self.key_scales.len() < end {
            // Within the capacity that Store::new has reserved: nothing moves.
            self.keys.resize(end * self.dim, 0);
            self.values.resize(end * self.dim, 0);
            self.key_scales.resize(end, Scale::ZERO);
            self.value_scales.resize(end, Scale::ZERO);
        }
        page * self.page_tokens + position % self.page_tokens
    }

    pub(crate) fn put_key(&mut self, table: &[u32], position: usize, key: &[i16], scale: Scale) {
        let slot = self.slot(table, position);
        self.keys[slot * self.dim..][..self.dim].copy_from_slice(key);
        self.key_scales[slot] = scale;
    }

    pub(crate) fn put_value(&mut self, table: &[u32], position: usize, value: &[i16], scale: Scale) {
        let slot = self.slot(table, position);
        self.values[slot * self.dim..][..self.dim].copy_from_slice(value);
        self.value_scales[slot] = scale;
    }

    /// Sets `blocks` to some positions. Pages that lie side by side make one block.
    pub(crate) fn blocks<'a>(
        &'a self,
        table: &[u32],
        positions: Range<usize>,
        blocks: &mut Vec<KeyValues<'a>>,
    ) {
        blocks.clear();
        let size = self.page_tokens;
        let mut skip = positions.start % size;
        let mut rest = positions.len();
        for run in table[positions.start / size..positions.end.div_ceil(size)].chunk_by(|a, b| *a + 1 == *b) {
            let count = rest.min(run.len() * size - skip);
            let first = run[0] as usize * size + skip;
            blocks.push(KeyValues {
                keys: &self.keys[first * self.dim..(first + count) * self.dim],
                key_scales: &self.key_scales[first..first + count],
                values: &self.values[first * self.dim..(first + count) * self.dim],
                value_scales: &self.value_scales[first..first + count],
            });
            rest -= count;
            skip = 0;
        }
    }
}

/// The memory of all pages. Each head has its own lock, because heads are written by different threads in one phase of
/// a step and read by all in the next.
#[derive(Debug)]
pub(crate) struct Store {
    kv_heads: usize,
    heads: Vec<RwLock<Head>>,
}

impl Store {
    /// Reserves the addresses of all pages; the system hands out the memory when it is written to.
    pub(crate) fn new(shape: &Shape, pages: usize, page_tokens: usize) -> Result<Store, Error> {
        let tokens = pages * page_tokens;
        let dim = shape.head_dim;
        let too_much = |_| Error::NoMemory { bytes: tokens * token_bytes(shape) };
        let head = || {
            let mut head = Head {
                dim,
                page_tokens,
                keys: Vec::new(),
                key_scales: Vec::new(),
                values: Vec::new(),
                value_scales: Vec::new(),
            };
            head.keys.try_reserve_exact(tokens * dim).map_err(too_much)?;
            head.values.try_reserve_exact(tokens * dim).map_err(too_much)?;
            head.key_scales.try_reserve_exact(tokens).map_err(too_much)?;
            head.value_scales.try_reserve_exact(tokens).map_err(too_much)?;
            Ok(RwLock::new(head))
        };
        let heads = (0..shape.layers * shape.kv_heads).map(|_| head()).collect::<Result<_, Error>>()?;
        Ok(Store { kv_heads: shape.kv_heads, heads })
    }

    pub(crate) fn read(&self, layer: usize, head: usize) -> RwLockReadGuard<'_, Head> {
        self.heads[layer * self.kv_heads + head].read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self, layer: usize, head: usize) -> RwLockWriteGuard<'_, Head> {
        self.heads[layer * self.kv_heads + head].write().unwrap_or_else(PoisonError::into_inner)
    }
}
