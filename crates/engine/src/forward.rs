//! One pass of a batch through the model, by all threads together.
//!
//! A row is one token of one sequence. With few rows (decoding), every phase splits the *weights*: each thread streams
//! other rows of a matrix, so that the weights cross the memory bus once for the whole batch; the cheap steps between
//! (norms, quantisation) are repeated by every thread, which costs less than waiting. With many rows (prefill), the
//! *rows* are split into blocks that run through a whole layer by themselves, and the threads meet once a layer.
//! Either way each number is made by the same integer operations from the same inputs, so the bits are the same.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use assay_arithmetic::{
    AttentionScratch, Kernel, MatrixView, Output, Quantised, QuantisedView, Sampler, Scale, Scoring, SoftCap,
    activate, add, attention, dequantise_row, linear, mix, quantise, rms_norm, rms_norm_quantise, rope,
    route,
};
use assay_model::{Artifact, Config as Shape, Layer};

use crate::Error;
use crate::choose::{Outcome, Rule};
use crate::grammar::Mask;
use crate::kv::{Head, Store};
use crate::light::{At, Light, Place, Product};
use crate::pool::{Barrier, Broken, Tasks};
use crate::timing::{Stage, Timer};

/// Rows of the output matrix that one task takes.
const LOGIT_ROWS: usize = 512;

/// Rows whose logits exist at once: bounds the memory of a replay.
const LOGIT_BATCH: usize = 32;

/// Rows whose logits a thread makes at once when products are recorded or checked, whole rows of them.
const LIGHT_LOGITS: usize = 8;

/// Rows of a block: enough that the weights, converted once a block, cost little; few enough that activations stay in
/// the second-level cache.
const BLOCK_MIN: usize = 16;
const BLOCK_MAX: usize = 64;

/// Passes of fewer rows split the weights.
fn few_rows(threads: usize) -> usize {
    BLOCK_MIN * threads.min(2)
}

/// A token to run.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) position: usize,
    /// Whose pages: a number in [`Plan::tables`].
    pub(crate) table: usize,
}

/// A row whose logits are needed.
#[derive(Debug)]
pub(crate) struct Want {
    /// The row.
    pub(crate) row: usize,
    pub(crate) rule: Arc<Rule>,
    /// The number of the token in the answer.
    pub(crate) index: u32,
    /// See [`Rule::history`].
    pub(crate) history: Vec<u32>,
    pub(crate) mask: Option<Mask>,
    pub(crate) outcome: Mutex<Outcome>,
}

/// What the next pass is to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<Row>,
    pub(crate) wants: Vec<Want>,
    /// The pages of each sequence.
    pub(crate) tables: Vec<Box<[u32]>>,
    tasks: Vec<Tasks>,
    /// Empty if the weights are split.
    blocks: Vec<Mutex<Block>>,
    /// How many of `blocks` are in use.
    used: usize,
    /// Rows of a block; the last may have fewer.
    block_rows: usize,
}

impl Plan {
    /// Makes room for the next pass.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.wants.clear();
        self.tables.clear();
    }
}

/// Some rows on their way through the layers.
#[derive(Debug, Default)]
struct Block {
    x: Vec<i32>,
    /// Queries, one row a token and head.
    queries: Quantised,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
struct Scratch {
    x: Vec<i32>,
    quantised: Quantised,
    wide: Vec<i32>,
    other: Vec<i32>,
    gate: Vec<i32>,
    /// The experts of each row and their weights.
    routes: Vec<(usize, u32)>,
    head: Quantised,
    attention: AttentionScratch,
    logits: Vec<i32>,
    sampler: Sampler,
}

/// Parts of a result, each written by one thread and read by all after the barrier. Two sets alternate, so that a slow
/// reader of one phase does not meet the writers of the next.
type Tiles = Vec<RwLock<Vec<i32>>>;

/// Model, buffers and barrier: what all threads share.
pub(crate) struct Core {
    artifact: Arc<Artifact>,
    kernel: Kernel,
    threads: usize,
    scoring: Scoring,
    logit_cap: Option<SoftCap>,
    /// What embeddings are multiplied by.
    embedding_scale: Option<Scale>,
    kv: Store,
    pub(crate) barrier: Arc<Barrier>,
    pub(crate) timer: Timer,
    /// What happens to the products, if anything does.
    pub(crate) light: Option<Light>,
    plan: RwLock<Plan>,
    scratch: Vec<Mutex<Scratch>>,
    /// One a query head.
    queries: Vec<RwLock<Quantised>>,
    odd: Tiles,
    even: Tiles,
}

/// Where a thread is in the list of phases.
struct Phases<'a> {
    tasks: std::slice::Iter<'a, Tasks>,
}

impl Phases<'_> {
    /// The tasks of the next phase that this thread gets.
    fn next(&mut self, count: usize) -> impl Iterator<Item = usize> + '_ {
        let tasks = self.tasks.next().expect("Core::prepare counted the phases of the pass");
        tasks.take(count)
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The rows of part `index` when `rows` are cut into parts of `size`.
fn part(index: usize, rows: usize, size: usize) -> Range<usize> {
    index * size..((index + 1) * size).min(rows)
}

impl Core {
    /// With memory for `pages` pages of keys and values.
    pub(crate) fn new(
        artifact: Arc<Artifact>,
        kernel: Kernel,
        threads: usize,
        pages: usize,
        page_tokens: usize,
        light: Option<Light>,
    ) -> Result<Core, Error> {
        let shape = artifact.config();
        let experts = shape.experts.map_or(0, |experts| experts.used);
        let tiles = (few_rows(threads) * shape.heads.max(experts))
            .max(shape.vocab.div_ceil(LOGIT_ROWS))
            .max(shape.dim.div_ceil(8))
            .max(shape.ffn.div_ceil(8));
        let locks = |count: usize| (0..count).map(|_| RwLock::default()).collect::<Tiles>();
        Ok(Core {
            kernel,
            threads,
            kv: Store::new(shape, pages, page_tokens)?,
            scoring: Scoring::new(
                shape.attention_scale.unwrap_or(shape.head_dim as u64),
                shape.attention_cap_q16.map(SoftCap::new),
            ),
            logit_cap: shape.logit_cap_q16.map(SoftCap::new),
            embedding_scale: shape.embedding_scale_q16.map(|f| Scale::from_integer(f.into()).shifted(-16)),
            barrier: Arc::new(Barrier::new(threads)),
            timer: Timer::default(),
            light,
            plan: RwLock::default(),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            queries: (0..shape.heads).map(|_| RwLock::default()).collect(),
            odd: locks(tiles),
            even: locks(tiles),
            artifact,
        })
    }

    pub(crate) fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// The plan, to fill in rows and wants before a pass and to take the outcomes after it.
    pub(crate) fn plan(&self) -> RwLockWriteGuard<'_, Plan> {
        write(&self.plan)
    }

    /// Lays out the pass; the last thing before it starts.
    pub(crate) fn prepare(&self, plan: &mut Plan) {
        let shape = self.artifact.config();
        let rows = plan.rows.len();
        // Whole products are recorded and checked.
        let phases = if rows < few_rows(self.threads) && self.light.is_none() {
            plan.used = 0;
            5 * shape.layers
        } else {
            // Two blocks a thread even out their different lengths; a multiple of 4 suits the kernels.
            let size = rows.div_ceil(2 * self.threads).next_multiple_of(4).clamp(BLOCK_MIN, BLOCK_MAX);
            plan.block_rows = size;
            plan.used = rows.div_ceil(size);
            let count = plan.blocks.len().max(plan.used);
            plan.blocks.resize_with(count, Mutex::default);
            shape.layers + 1
        };
        let phases = phases + 2 * plan.wants.len().div_ceil(LOGIT_BATCH);
        let count = plan.tasks.len().max(phases);
        plan.tasks.resize_with(count, Tasks::default);
        plan.tasks.iter().for_each(Tasks::reset);
    }

    /// The share of one thread in the pass.
    pub(crate) fn work(&self, thread: usize) -> Result<(), Broken> {
        let plan = read(&self.plan);
        let mut scratch = self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let mut phases = Phases { tasks: plan.tasks.iter() };
        if plan.used == 0 {
            self.split_weights(&plan, &mut scratch, &mut phases)?;
        } else {
            self.split_rows(&plan, &mut scratch, &mut phases)?;
        }
        match &self.light {
            None => self.logits(&plan, &mut scratch, &mut phases)?,
            Some(_) => self.light_logits(&plan, &mut scratch, &mut phases),
        }
        self.wait()
    }

    /// Waits for the other threads.
    fn wait(&self) -> Result<(), Broken> {
        self.timer.time(Stage::Waiting, || self.barrier.wait())
    }

    /// Linear rows per task so that each thread gets some tasks of a matrix.
    fn tile(&self, rows: usize) -> usize {
        rows.div_ceil(4 * self.threads).next_multiple_of(8)
    }

    /// `tile = rows of w · x`.
    fn linear_part(
        &self,
        w: &MatrixView<'_>,
        rows: Range<usize>,
        x: QuantisedView<'_>,
        bias: Option<&[i32]>,
        out: &mut Vec<i32>,
    ) {
        let (tokens, count) = (x.scales.len(), rows.len());
        out.resize(tokens * count, 0);
        let mut out = Output::new(out, tokens, rows);
        self.timer.time(Stage::Linear, || linear(self.kernel, w, x, bias, &mut out));
    }

    /// As [`Core::linear_part`], for a product that is recorded or checked if any is.
    fn linear_at(
        &self,
        at: At<'_>,
        w: &MatrixView<'_>,
        rows: Range<usize>,
        x: QuantisedView<'_>,
        bias: Option<&[i32]>,
        out: &mut Vec<i32>,
    ) {
        let Some(light) = &self.light else { return self.linear_part(w, rows, x, bias, out) };
        let tokens = x.scales.len();
        out.resize(tokens * rows.len(), 0);
        let part = MatrixView { scales: &w.scales[rows.clone()], ..*w };
        light.product(at, &part, x, bias, out, |out, sums| {
            let mut out = Output::with_sums(out, sums, tokens, rows);
            self.timer.time(Stage::Linear, || linear(self.kernel, w, x, bias, &mut out));
        });
    }

    /// The places of rows, if anybody looks at the products.
    fn places(&self, rows: &[Row]) -> Vec<Place> {
        let rows = if self.light.is_some() { rows } else { &[] };
        rows.iter().map(|row| Place { position: row.position, slot: 0 }).collect()
    }

    /// Embeds rows.
    fn embed(&self, rows: &[Row], x: &mut Vec<i32>) {
        let embedding = self.artifact.embedding();
        let mut weights = vec![0; embedding.cols];
        x.resize(rows.len() * embedding.cols, 0);
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(embedding.cols)) {
            let token = row.token as usize;
            let scale = embedding.scales[token];
            let scale = self.embedding_scale.map_or(scale, |factor| scale.mul(factor));
            if !self.light.as_ref().is_some_and(|light| light.embedding(row.token, &mut weights)) {
                embedding.row(token, &mut weights);
            }
            dequantise_row(&weights, scale, x);
        }
    }

    fn norm(&self, x: &[i32], weight: &[i32], out: &mut Quantised) {
        out.resize(x.len() / weight.len(), weight.len());
        let eps = self.artifact.config().rms_eps_q32;
        self.timer.time(Stage::Rows, || {
            rms_norm_quantise(self.kernel, x, weight, eps, &mut out.values, &mut out.scales);
        });
    }

    fn quantise(&self, x: &[i32], cols: usize, out: &mut Quantised) {
        out.resize(x.len() / cols, cols);
        self.timer.time(Stage::Rows, || quantise(self.kernel, x, cols, &mut out.values, &mut out.scales));
    }

    /// Norm and rotation (where the layer has them) of `heads` heads a row.
    fn turn(&self, rows: &[Row], layer: &Layer<'_>, heads: usize, norm: Option<&[i32]>, x: &mut [i32]) {
        let shape = self.artifact.config();
        self.norm_in_place(norm, x);
        let Some((cos, sin)) = layer.rope else { return };
        let pairs = shape.rope_pairs();
        self.timer.time(Stage::Rows, || {
            for (row, x) in rows.iter().zip(x.chunks_exact_mut(heads * shape.head_dim)) {
                let cos = &cos[row.position * pairs..][..pairs];
                let sin = &sin[row.position * pairs..][..pairs];
                for head in x.chunks_exact_mut(shape.head_dim) {
                    rope(self.kernel, shape.rope, head, cos, sin);
                }
            }
        });
    }

    /// Norm of rows, where the model has one.
    fn norm_in_place(&self, norm: Option<&[i32]>, x: &mut [i32]) {
        if let Some(norm) = norm {
            rms_norm(self.kernel, x, norm, self.artifact.config().rms_eps_q32);
        }
    }

    fn activate(&self, gate: &mut [i32], up: &[i32]) {
        let activation = self.artifact.config().activation;
        self.timer.time(Stage::Rows, || activate(self.kernel, activation, gate, Some(up)));
    }

    /// Positions that a token sees in a layer.
    fn seen(&self, layer: usize, position: usize) -> Range<usize> {
        let window = self.artifact.config().window(layer).unwrap_or(usize::MAX);
        (position + 1).saturating_sub(window)..position + 1
    }

    // Few rows: every phase splits the weights.

    fn split_weights(&self, plan: &Plan, s: &mut Scratch, phases: &mut Phases<'_>) -> Result<(), Broken> {
        let shape = self.artifact.config();
        let count = plan.rows.len();
        // Heads that share keys and values go together where every thread still gets enough of them.
        let group = shape.heads / shape.kv_heads;
        let together = if count * shape.kv_heads >= 4 * self.threads { group } else { 1 };
        self.embed(&plan.rows, &mut s.x);
        for index in 0..shape.layers {
            let layer = self.artifact.layer(index);
            self.norm(&s.x, layer.attention_norm, &mut s.quantised);
            for unit in phases.next(shape.heads + 2 * shape.kv_heads) {
                self.project_head(plan, index, &layer, unit, s);
            }
            self.wait()?;

            for task in phases.next(count * shape.heads / together) {
                let (token, head) = (task * together / shape.heads, task * together % shape.heads);
                let row = &plan.rows[token];
                s.head.resize(together, shape.head_dim);
                for (i, values) in s.head.values.chunks_exact_mut(shape.head_dim).enumerate() {
                    let queries = read(&self.queries[head + i]);
                    values.copy_from_slice(queries.view().tokens(token..token + 1).values);
                    s.head.scales[i] = queries.scales[token];
                }
                let mut out = write(&self.odd[task]);
                out.resize(together * shape.head_dim, 0);
                let kv = self.kv.read(index, head / group);
                let mut blocks = Vec::new();
                kv.blocks(&plan.tables[row.table], self.seen(index, row.position), &mut blocks);
                self.timer.time(Stage::Attention, || {
                    attention(self.kernel, s.head.view(), self.scoring, &blocks, &mut s.attention, &mut out)
                });
            }
            self.wait()?;

            // A tile of attention is some heads of one row: the concatenation of all is what is needed.
            s.wide.clear();
            for tile in &self.odd[..count * shape.heads / together] {
                s.wide.extend_from_slice(&read(tile));
            }
            self.quantise(&s.wide, shape.heads * shape.head_dim, &mut s.quantised);
            self.split_linear(&layer.o, s.quantised.view(), &self.even, phases)?;
            self.add_tiles(&self.even, count, layer.post_attention_norm, s);
            self.norm(&s.x, layer.ffn_norm, &mut s.quantised);
            if layer.router.is_some() {
                self.split_experts(&layer, count, s, phases)?;
                continue;
            }

            let size = self.tile(shape.ffn);
            for task in phases.next(shape.ffn.div_ceil(size)) {
                let rows = part(task, shape.ffn, size);
                let mut gate = write(&self.odd[task]);
                self.linear_part(&layer.gate, rows.clone(), s.quantised.view(), None, &mut gate);
                self.linear_part(&layer.up, rows, s.quantised.view(), None, &mut s.other);
                self.activate(&mut gate, &s.other);
            }
            self.wait()?;
            gather(&self.odd, shape.ffn, size, count, &mut s.wide);
            self.quantise(&s.wide, shape.ffn, &mut s.quantised);
            self.split_linear(&layer.down, s.quantised.view(), &self.even, phases)?;
            self.add_tiles(&self.even, count, layer.post_ffn_norm, s);
        }
        Ok(())
    }

    /// One head of queries, keys or values for all rows.
    fn project_head(&self, plan: &Plan, index: usize, layer: &Layer<'_>, unit: usize, s: &mut Scratch) {
        let shape = self.artifact.config();
        let (heads, kv, dim) = (shape.heads, shape.kv_heads, shape.head_dim);
        let (w, bias, head) = match unit {
            u if u < heads => (&layer.q, layer.q_bias, u),
            u if u < heads + kv => (&layer.k, layer.k_bias, u - heads),
            u => (&layer.v, layer.v_bias, u - heads - kv),
        };
        self.linear_part(w, head * dim..(head + 1) * dim, s.quantised.view(), bias, &mut s.other);
        if unit < heads {
            self.turn(&plan.rows, layer, 1, layer.q_norm, &mut s.other);
            self.quantise(&s.other, dim, &mut write(&self.queries[head]));
            return;
        }
        let keys = unit < heads + kv;
        if keys {
            self.turn(&plan.rows, layer, 1, layer.k_norm, &mut s.other);
        }
        self.quantise(&s.other, dim, &mut s.head);
        let mut kv = self.kv.write(index, head);
        for ((row, values), &scale) in
            plan.rows.iter().zip(s.head.values.chunks_exact(dim)).zip(&s.head.scales)
        {
            let table = &plan.tables[row.table];
            if keys {
                kv.put_key(table, row.position, values, scale);
            } else {
                kv.put_value(table, row.position, values, scale);
            }
        }
    }

    /// A linear layer into tiles, and the barrier after it.
    fn split_linear(
        &self,
        w: &MatrixView<'_>,
        x: QuantisedView<'_>,
        tiles: &Tiles,
        phases: &mut Phases<'_>,
    ) -> Result<(), Broken> {
        let size = self.tile(w.rows);
        for task in phases.next(w.rows.div_ceil(size)) {
            self.linear_part(w, part(task, w.rows, size), x, None, &mut write(&tiles[task]));
        }
        self.wait()
    }

    /// Adds what [`Core::split_linear`] made to the residual stream, after its norm where the model has one.
    fn add_tiles(&self, tiles: &Tiles, count: usize, norm: Option<&[i32]>, s: &mut Scratch) {
        let dim = s.x.len() / count;
        gather(tiles, dim, self.tile(dim), count, &mut s.other);
        self.norm_in_place(norm, &mut s.other);
        add(&mut s.x, &s.other);
    }

    /// The feed-forward part of a layer with experts: each task is one expert of one row.
    fn split_experts(
        &self,
        layer: &Layer<'_>,
        count: usize,
        s: &mut Scratch,
        phases: &mut Phases<'_>,
    ) -> Result<(), Broken> {
        let shape = self.artifact.config();
        // Nobody looks at these products.
        let at = At { layer: 0, product: Product::Router, expert: 0, places: &[] };
        let used = self.route(at, layer, s);
        for task in phases.next(count * used) {
            let x = s.quantised.view().tokens(task / used..task / used + 1);
            let mut out = write(&self.odd[task]);
            let at = At { expert: s.routes[task].0, ..at };
            self.expert(at, layer, x, &mut s.gate, &mut s.other, &mut s.head, &mut out);
        }
        self.wait()?;
        s.other.resize(count * shape.dim, 0);
        for (row, out) in s.other.chunks_exact_mut(shape.dim).enumerate() {
            let tasks = row * used..(row + 1) * used;
            let tiles: Vec<_> = self.odd[tasks.clone()].iter().map(read).collect();
            mix(s.routes[tasks].iter().zip(&tiles).map(|(&(_, weight), y)| (weight, &y[..])), out);
        }
        self.norm_in_place(layer.post_ffn_norm, &mut s.other);
        add(&mut s.x, &s.other);
        // The logits, which may be next, are written to the tiles that were just read.
        self.wait()
    }

    /// Chooses the experts of the rows in `s.quantised` into `s.routes`; returns how many a row has.
    fn route(&self, at: At<'_>, layer: &Layer<'_>, s: &mut Scratch) -> usize {
        let (Some(router), Some(experts)) = (&layer.router, self.artifact.config().experts) else { return 0 };
        let at = at.of(Product::Router);
        self.linear_at(at, router, 0..router.rows, s.quantised.view(), None, &mut s.gate);
        s.routes.clear();
        let mut chosen = Vec::new();
        for logits in s.gate.chunks_exact(router.rows) {
            route(logits, experts.used, &mut chosen);
            s.routes.append(&mut chosen);
        }
        experts.used
    }

    /// One expert's answer to some rows.
    #[allow(clippy::too_many_arguments)] // the buffers are parts of one scratch, of which the caller borrows others
    fn expert(
        &self,
        at: At<'_>,
        layer: &Layer<'_>,
        x: QuantisedView<'_>,
        gate: &mut Vec<i32>,
        up: &mut Vec<i32>,
        quantised: &mut Quantised,
        out: &mut Vec<i32>,
    ) {
        let shape = self.artifact.config();
        let rows = at.expert * shape.ffn..(at.expert + 1) * shape.ffn;
        self.linear_at(at.of(Product::Gate), &layer.gate, rows.clone(), x, None, gate);
        self.linear_at(at.of(Product::Up), &layer.up, rows, x, None, up);
        self.activate(gate, up);
        self.quantise(gate, shape.ffn, quantised);
        let rows = at.expert * shape.dim..(at.expert + 1) * shape.dim;
        self.linear_at(at.of(Product::Down), &layer.down, rows, quantised.view(), None, out);
    }

    // Many rows: blocks of rows run through the layers.

    fn split_rows(&self, plan: &Plan, s: &mut Scratch, phases: &mut Phases<'_>) -> Result<(), Broken> {
        let layers = self.artifact.config().layers;
        // Attention of a layer needs the keys and values of all blocks, hence one barrier a layer. What follows it
        // runs on into the next layer's projections.
        for index in 0..=layers {
            for task in phases.next(plan.used) {
                let rows = &plan.rows[part(task, plan.rows.len(), plan.block_rows)];
                let mut block = plan.blocks[task].lock().unwrap_or_else(PoisonError::into_inner);
                if index == 0 {
                    self.embed(rows, &mut block.x);
                } else {
                    self.finish_layer(plan, rows, index - 1, &mut block, s);
                }
                if index < layers {
                    self.begin_layer(plan, rows, index, &mut block, s);
                }
            }
            self.wait()?;
        }
        Ok(())
    }

    /// All rows of a matrix.
    fn linear_all(
        &self,
        at: At<'_>,
        w: &MatrixView<'_>,
        x: QuantisedView<'_>,
        bias: Option<&[i32]>,
        out: &mut Vec<i32>,
    ) {
        self.linear_at(at, w, 0..w.rows, x, bias, out);
    }

    /// Queries, keys and values.
    fn begin_layer(&self, plan: &Plan, rows: &[Row], index: usize, block: &mut Block, s: &mut Scratch) {
        let shape = self.artifact.config();
        let layer = self.artifact.layer(index);
        let places = self.places(rows);
        let at = At { layer: index, product: Product::Query, expert: 0, places: &places };
        self.norm(&block.x, layer.attention_norm, &mut s.quantised);
        let x = s.quantised.view();
        self.linear_all(at, &layer.q, x, layer.q_bias, &mut s.other);
        self.turn(rows, &layer, shape.heads, layer.q_norm, &mut s.other);
        self.quantise(&s.other, shape.head_dim, &mut block.queries);

        self.linear_all(at.of(Product::Key), &layer.k, x, layer.k_bias, &mut s.other);
        self.turn(rows, &layer, shape.kv_heads, layer.k_norm, &mut s.other);
        self.store(plan, rows, index, s, Head::put_key);

        self.linear_all(at.of(Product::Value), &layer.v, s.quantised.view(), layer.v_bias, &mut s.other);
        self.store(plan, rows, index, s, Head::put_value);
    }

    /// Quantises keys or values in `s.other` and stores them with `put`.
    fn store(
        &self,
        plan: &Plan,
        rows: &[Row],
        index: usize,
        s: &mut Scratch,
        put: fn(&mut Head, &[u32], usize, &[i16], Scale),
    ) {
        let Shape { head_dim, kv_heads, .. } = *self.artifact.config();
        self.quantise(&s.other, head_dim, &mut s.head);
        for head in 0..kv_heads {
            let mut kv = self.kv.write(index, head);
            for (i, row) in rows.iter().enumerate() {
                let at = i * kv_heads + head;
                let values = &s.head.values[at * head_dim..][..head_dim];
                put(&mut kv, &plan.tables[row.table], row.position, values, s.head.scales[at]);
            }
        }
    }

    /// Attention and the feed-forward part.
    fn finish_layer(&self, plan: &Plan, rows: &[Row], index: usize, block: &mut Block, s: &mut Scratch) {
        let shape = self.artifact.config();
        let layer = self.artifact.layer(index);
        let group = shape.heads / shape.kv_heads;
        let dim = shape.head_dim;
        s.wide.resize(rows.len() * shape.heads * dim, 0);
        self.timer.time(Stage::Attention, || {
            for kv_head in 0..shape.kv_heads {
                let kv = self.kv.read(index, kv_head);
                let mut blocks = Vec::new();
                for (i, row) in rows.iter().enumerate() {
                    kv.blocks(&plan.tables[row.table], self.seen(index, row.position), &mut blocks);
                    let first = i * shape.heads + kv_head * group;
                    attention(
                        self.kernel,
                        block.queries.view().tokens(first..first + group),
                        self.scoring,
                        &blocks,
                        &mut s.attention,
                        &mut s.wide[first * dim..][..group * dim],
                    );
                }
            }
        });
        let places = self.places(rows);
        let at = At { layer: index, product: Product::Attention, expert: 0, places: &places };
        self.quantise(&s.wide, shape.heads * dim, &mut s.quantised);
        self.linear_all(at, &layer.o, s.quantised.view(), None, &mut s.other);
        self.norm_in_place(layer.post_attention_norm, &mut s.other);
        add(&mut block.x, &s.other);

        self.norm(&block.x, layer.ffn_norm, &mut s.quantised);
        if layer.router.is_some() {
            self.experts(at, &layer, s);
        } else {
            self.linear_all(at.of(Product::Gate), &layer.gate, s.quantised.view(), None, &mut s.wide);
            self.linear_all(at.of(Product::Up), &layer.up, s.quantised.view(), None, &mut s.other);
            self.activate(&mut s.wide, &s.other);
            self.quantise(&s.wide, shape.ffn, &mut s.quantised);
            self.linear_all(at.of(Product::Down), &layer.down, s.quantised.view(), None, &mut s.other);
        }
        self.norm_in_place(layer.post_ffn_norm, &mut s.other);
        add(&mut block.x, &s.other);
    }

    /// The feed-forward part of a layer with experts, from `s.quantised` to `s.other`: each expert takes the rows that
    /// use it at once.
    fn experts(&self, at: At<'_>, layer: &Layer<'_>, s: &mut Scratch) {
        let shape = self.artifact.config();
        let used = self.route(at, layer, s);
        let (dim, count) = (shape.dim, shape.experts.map_or(0, |experts| experts.count));
        // The answer to each pair of a row and one of its experts.
        s.wide.resize(s.routes.len() * dim, 0);
        let (mut rows, mut up, mut out) = (Quantised::default(), Vec::new(), Vec::new());
        for expert in 0..count {
            let pairs: Vec<usize> = (0..s.routes.len()).filter(|&pair| s.routes[pair].0 == expert).collect();
            if pairs.is_empty() {
                continue;
            }
            rows.resize(pairs.len(), dim);
            for ((pair, values), scale) in
                pairs.iter().zip(rows.values.chunks_exact_mut(dim)).zip(&mut rows.scales)
            {
                let row = s.quantised.view().tokens(pair / used..pair / used + 1);
                values.copy_from_slice(row.values);
                *scale = row.scales[0];
            }
            let places: Vec<Place> = match at.places {
                [] => Vec::new(),
                places => {
                    pairs.iter().map(|pair| Place { slot: pair % used, ..places[pair / used] }).collect()
                }
            };
            let at = At { expert, places: &places, ..at };
            self.expert(at, layer, rows.view(), &mut s.gate, &mut up, &mut s.head, &mut out);
            for (pair, out) in pairs.iter().zip(out.chunks_exact(dim)) {
                s.wide[pair * dim..][..dim].copy_from_slice(out);
            }
        }
        s.other.resize(s.routes.len() / used * dim, 0);
        for (row, out) in s.other.chunks_exact_mut(dim).enumerate() {
            let parts = s.wide[row * used * dim..][..used * dim].chunks_exact(dim);
            mix(s.routes[row * used..].iter().zip(parts).map(|(&(_, weight), y)| (weight, y)), out);
        }
    }

    // The end: logits and choices.

    fn logits(&self, plan: &Plan, s: &mut Scratch, phases: &mut Phases<'_>) -> Result<(), Broken> {
        let output = self.artifact.output();
        for wants in plan.wants.chunks(LOGIT_BATCH) {
            self.last_norm(plan, wants, s);
            for task in phases.next(output.rows.div_ceil(LOGIT_ROWS)) {
                let rows = part(task, output.rows, LOGIT_ROWS);
                let mut logits = write(&self.odd[task]);
                self.linear_part(&output, rows, s.quantised.view(), None, &mut logits);
                if let Some(cap) = self.logit_cap {
                    logits.iter_mut().for_each(|logit| *logit = cap.apply(*logit));
                }
            }
            self.wait()?;
            for task in phases.next(wants.len()) {
                let want = &wants[task];
                s.logits.resize(output.rows, 0);
                for (i, out) in s.logits.chunks_mut(LOGIT_ROWS).enumerate() {
                    out.copy_from_slice(&read(&self.odd[i])[task * out.len()..][..out.len()]);
                }
                self.choose(want, &mut s.sampler, &mut s.logits);
            }
            self.wait()?;
        }
        Ok(())
    }

    /// The same where products are recorded or checked: some rows a task, each of them whole.
    fn light_logits(&self, plan: &Plan, s: &mut Scratch, phases: &mut Phases<'_>) {
        let (output, layer) = (self.artifact.output(), self.artifact.config().layers);
        for wants in plan.wants.chunks(LOGIT_BATCH) {
            for task in phases.next(wants.len().div_ceil(LIGHT_LOGITS)) {
                let wants = &wants[part(task, wants.len(), LIGHT_LOGITS)];
                self.last_norm(plan, wants, s);
                let place = |want: &Want| Place { position: plan.rows[want.row].position, slot: 0 };
                let places: Vec<Place> = wants.iter().map(place).collect();
                let at = At { layer, product: Product::Output, expert: 0, places: &places };
                self.linear_all(at, &output, s.quantised.view(), None, &mut s.logits);
                for (want, logits) in wants.iter().zip(s.logits.chunks_exact_mut(output.rows)) {
                    if let Some(cap) = self.logit_cap {
                        logits.iter_mut().for_each(|logit| *logit = cap.apply(*logit));
                    }
                    self.choose(want, &mut s.sampler, logits);
                }
            }
        }
    }

    /// The rows whose logits are wanted, normalised, to `s.quantised`.
    fn last_norm(&self, plan: &Plan, wants: &[Want], s: &mut Scratch) {
        let dim = self.artifact.config().dim;
        s.wide.clear();
        for want in wants {
            if plan.used == 0 {
                s.wide.extend_from_slice(&s.x[want.row * dim..][..dim]);
            } else {
                let block = &plan.blocks[want.row / plan.block_rows];
                let block = block.lock().unwrap_or_else(PoisonError::into_inner);
                s.wide.extend_from_slice(&block.x[want.row % plan.block_rows * dim..][..dim]);
            }
        }
        self.norm(&s.wide, self.artifact.output_norm(), &mut s.quantised);
    }

    /// Chooses a token from logits, which are changed.
    fn choose(&self, want: &Want, sampler: &mut Sampler, logits: &mut [i32]) {
        let outcome = self.timer.time(Stage::Choice, || {
            want.rule.choose(sampler, logits, want.mask.as_ref(), &want.history, want.index)
        });
        *want.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }
}

/// Puts tiles of `size` columns together: `count` rows of `cols`.
fn gather(tiles: &Tiles, cols: usize, size: usize, count: usize, out: &mut Vec<i32>) {
    out.resize(count * cols, 0);
    for (task, tile) in tiles[..cols.div_ceil(size)].iter().enumerate() {
        let columns = part(task, cols, size);
        let tile = read(tile);
        for (out, tile) in out.chunks_exact_mut(cols).zip(tile.chunks_exact(columns.len())) {
            out[columns.clone()].copy_from_slice(tile);
        }
    }
}
