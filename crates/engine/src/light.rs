//! Light checks: a replay without the weights.
//!
//! A worker that repeats an answer can write down the exact sums of every matrix product on the way ([`record`]): a
//! *trace*. Who checks it holds a [`Key`], made in one pass over the model: the model's norms, scales and tokenizer, a secret
//! random vector `r` over the field of `2^61 - 1` elements, and for each matrix `W` the row `rᵀW`. An engine with a key and a trace
//! ([`Engine::checking`]) replays the answer as any other does, but where it would multiply, it takes the sums `y` from the trace
//! and tests `r·y = (rᵀW)·x`. All between (rescaling, norms, rotation, attention, activations, the choice of experts and of
//! tokens) it computes itself, so nothing is left unchecked. Embeddings and rotary tables are products as well, with a vector
//! that has a single one: `r` times the row that the trace shows is a number of the key.
//!
//! *Soundness.* Let the first product in the order of computation whose sums are false be off by `e ≠ 0`. Its inputs are right, so
//! `e` does not depend on `r`, and `r·e = 0` for one in `2^61 - 1` vectors: that is the probability that a given false trace passes,
//! however many products it has. Each rejection excludes no more of the vectors than false products were tested, so
//! after `F` of them the next false trace passes with probability at most `1/(2^61 - 1 - F)`. That holds against whoever does not
//! know the key, whatever their computing power (but for the expansion of the seed by SHAKE256).
//!
//! Proofs ([`prove`], [`Engine::verifying`]) are the same test with a vector that follows from the trace, for everybody who has the model's public
//! [`Commitment`]: docs/trace-proof.md.
//!
//! The worker's side writes what docs/light.md and docs/trace-proof.md define; the bytes depend on nothing but the model and the text.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use assay_engine::light::{Key, Trace, record};
//! use assay_engine::{Config, Engine, Generation, Replay};
//! use assay_model::Artifact;
//!
//! fn worker(model: &Arc<Artifact>, generation: &Generation, answer: &[u32]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//!     let mut trace = Vec::new();
//!     record(model, Config::default(), generation, answer, &mut trace, &mut |_, _| {})?;
//!     Ok(trace)
//! }
//!
//! fn checker(key: &Arc<Key>, trace: Vec<u8>, generation: &Generation, answer: &[u32]) -> Result<Replay, Box<dyn std::error::Error>> {
//!     let trace = Trace::parse(Arc::new(trace), key.artifact())?;
//!     Ok(Engine::checking(key, trace, Config::default())?.replay(generation, answer)?)
//! }
//! ```

mod commitment;
mod key;
mod known;
mod opening;
mod products;
mod trace;

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use assay_arithmetic::{Kernel, MatrixView, QuantisedView, rescale_sums};
use assay_model::Artifact;

pub use commitment::{COMMITMENT_MAGIC, Commitment};
pub use key::{KEY_MAGIC, Key};
use known::Known;
pub use known::{KEY_BYTES_MAX, KeyError};
use opening::Opened;
pub use opening::{PROOF_MAGIC, Proof, prove};
pub use products::Product;
use products::Products;
pub(crate) use products::{At, Place};
pub use trace::{Fault, TRACE_MAGIC, Trace};

use crate::{Config, Engine, Error, Generation, Replay};

/// Tokens that are recorded at once: bounds the memory of a recording, 20 MB for a model of 135M parameters.
const RECORDED: usize = 32;

/// Why there is no trace of an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The model cannot be run on this text.
    #[error(transparent)]
    Engine(#[from] Error),
    /// The answer has no tokens.
    #[error("the answer has no tokens, so there is nothing to check in a trace")]
    Empty,
    /// The model gives another answer.
    #[error("token {0} of the answer is not this model's, so no trace can show that it is")]
    Differs(u32),
    /// It cannot be written.
    #[error("it cannot be written: {0}")]
    Io(#[from] std::io::Error),
}

/// What an engine does with its products.
pub(crate) enum Light {
    Record(Recorder),
    Check(Box<Checker>),
}

impl Light {
    /// The product of some rows, into `out`: `[row of activations][row of the matrix]`. `multiply` computes it; `w` is all of
    /// a matrix, or of one expert's part, by its scales.
    pub(crate) fn product(
        &self,
        at: At<'_>,
        w: &MatrixView<'_>,
        x: QuantisedView<'_>,
        bias: Option<&[i32]>,
        out: &mut [i32],
        multiply: impl FnOnce(&mut [i32], &mut [i64]),
    ) {
        match self {
            Light::Record(recorder) => {
                let mut sums = vec![0; out.len()];
                multiply(out, &mut sums);
                recorder.put(at, &sums);
            }
            Light::Check(checker) => checker.take(at, w, x, bias, out),
        }
    }

    /// The weights of a token's embedding from a trace; `false` if they are to be read from the model.
    pub(crate) fn embedding(&self, token: u32, out: &mut [i16]) -> bool {
        match self {
            Light::Record(_) => false,
            Light::Check(checker) => checker.trace.embedding(token, out),
        }
    }

    /// The first product that was found false, and its position.
    pub(crate) fn fault(&self) -> Option<(usize, Fault)> {
        let Light::Check(checker) = self else { return None };
        let (position, index) = (*checker.first.lock().unwrap_or_else(PoisonError::into_inner))?;
        let (layer, product) = checker.test.products().named(index);
        Some((position, Fault::Product { position, layer, product }))
    }

    /// Whether a replay of this text can be run.
    pub(crate) fn is_of(&self, prompt: &[u32], answer: &[u32]) -> bool {
        match self {
            Light::Record(_) => true,
            Light::Check(checker) => checker.is_of(prompt, answer),
        }
    }
}

/// Packed products of the positions that are being run, by position and number.
pub(crate) struct Recorder {
    products: Products,
    rows: Mutex<HashMap<usize, Vec<Vec<u8>>>>,
}

impl Recorder {
    fn new(artifact: &Artifact) -> Recorder {
        Recorder { products: Products::new(artifact.config()), rows: Mutex::default() }
    }

    fn put(&self, at: At<'_>, sums: &[i64]) {
        let size = sums.len() / at.places.len().max(1);
        for (place, sums) in at.places.iter().zip(sums.chunks_exact(size.max(1))) {
            let packed = trace::pack(sums);
            let index = self.products.index(at.layer, at.product, place.slot);
            let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
            let row = rows.entry(place.position).or_default();
            if row.len() <= index {
                row.resize(index + 1, Vec::new());
            }
            row[index] = packed;
        }
    }

    fn take(&self, position: usize) -> Option<Vec<Vec<u8>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).remove(&position)
    }
}

/// What tests a product.
enum Test {
    /// A secret that the trace's maker did not know.
    Key(Arc<Key>),
    /// Challenges that follow from the trace.
    Opened(Box<Opened>),
}

impl Test {
    fn products(&self) -> &Products {
        match self {
            Test::Key(key) => &key.products,
            Test::Opened(opened) => &opened.commitment.products,
        }
    }

    fn known(&self) -> &Known {
        match self {
            Test::Key(key) => &key.known,
            Test::Opened(opened) => &opened.commitment.known,
        }
    }

    fn is_embedding(&self, token: usize, weights: &[i16]) -> bool {
        match self {
            Test::Key(key) => key.is_embedding(token, weights),
            Test::Opened(opened) => opened.commitment.is_embedding(token, weights),
        }
    }

    fn is_rope(&self, table: usize, position: usize, cos: &[i32], sin: &[i32]) -> bool {
        match self {
            Test::Key(key) => key.is_rope(table, position, cos, sin),
            Test::Opened(opened) => opened.commitment.is_rope(table, position, cos, sin),
        }
    }

    fn is_product(&self, at: At<'_>, x: &[i16], sums: &[i64]) -> bool {
        match self {
            Test::Key(key) => key.is_product(at, x, sums),
            Test::Opened(opened) => opened.is_product(at, x, sums),
        }
    }
}

/// Tests the products of a trace.
pub(crate) struct Checker {
    test: Test,
    trace: Trace,
    kernel: Kernel,
    /// Position and number of the first product that was found false. Positions first: what comes before it is right
    /// whatever rows are run together, so all runs find the same one.
    first: Mutex<Option<(usize, usize)>>,
}

impl Checker {
    fn is_of(&self, prompt: &[u32], answer: &[u32]) -> bool {
        let same = match &self.test {
            Test::Key(_) => true,
            Test::Opened(opened) => opened.is_of(prompt, answer),
        };
        same && self.trace.is_of(prompt, answer)
    }

    fn take(
        &self,
        at: At<'_>,
        w: &MatrixView<'_>,
        x: QuantisedView<'_>,
        bias: Option<&[i32]>,
        out: &mut [i32],
    ) {
        let rows = out.len() / at.places.len().max(1);
        let mut sums = vec![0; rows];
        let inputs = x.values.chunks_exact(x.cols.max(1)).zip(x.scales);
        for ((place, (x, &scale)), out) in at.places.iter().zip(inputs).zip(out.chunks_exact_mut(rows.max(1)))
        {
            let index = self.test.products().index(at.layer, at.product, place.slot);
            // A false product is run on with, so that the first of them is found whoever comes first.
            let written = self.trace.sums(place.position, index, &mut sums);
            if !(written && self.test.is_product(at, x, &sums)) {
                let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
                let found = (place.position, index);
                *first = Some(first.map_or(found, |first| first.min(found)));
            }
            rescale_sums(self.kernel, &sums, w.cols, scale, w.scales, bias, out);
        }
    }
}

impl Engine {
    /// An engine that replays one answer with the products of its trace, each tested with the key; the trace's parts beside
    /// products are tested at once. A replay that agrees or differs is as good as one with the model; [`Error::Light`] says that
    /// the trace is false, which says nothing about the answer. `config` may be anything: memory for keys and values is chosen
    /// by the trace's length.
    ///
    /// # Errors
    /// [`Fault::Model`], [`Fault::Rope`], [`Fault::Embedding`]; [`Fault::Engine`] when there is no engine with these settings.
    pub fn checking(key: &Arc<Key>, trace: Trace, config: Config) -> Result<Engine, Fault> {
        Engine::testing(Test::Key(Arc::clone(key)), trace, config)
    }

    /// An engine that replays one answer to one prompt with the products of a proof's trace. Whether the proof opens the
    /// commitment is checked here, products in the replay, whose results mean what they do with [`Engine::checking`].
    ///
    /// # Errors
    /// [`Fault::Commitment`], [`Fault::Opening`], and those of [`Engine::checking`].
    pub fn verifying(
        commitment: &Arc<Commitment>,
        proof: Proof,
        (prompt, answer): (&[u32], &[u32]),
        config: Config,
    ) -> Result<Engine, Fault> {
        let (opened, trace) = proof.open(commitment, prompt, answer)?;
        Engine::testing(Test::Opened(Box::new(opened)), trace, config)
    }

    fn testing(test: Test, trace: Trace, config: Config) -> Result<Engine, Fault> {
        let model = test.known().artifact().id();
        if trace.model != model {
            return Err(Fault::Model { trace: trace.model, key: model });
        }
        let ropes = trace.ropes();
        let pairs = test.products().pairs;
        for position in 0..trace.positions() {
            let row = position * pairs..(position + 1) * pairs;
            for (table, [cos, sin]) in ropes.iter().enumerate() {
                if !test.is_rope(table, position, &cos[row.clone()], &sin[row.clone()]) {
                    return Err(Fault::Rope { position });
                }
            }
        }
        let mut weights = vec![0; test.products().dim()];
        let mut tokens: Vec<u32> = trace.tokens().collect();
        tokens.sort_unstable();
        for token in tokens {
            if !(trace.embedding(token, &mut weights) && test.is_embedding(token as usize, &weights)) {
                return Err(Fault::Embedding { token });
            }
        }
        let artifact = test
            .known()
            .with_ropes(ropes)
            .map_err(|_| Fault::Form("its rotary tables do not fit the model"))?;
        let config = Config { max_batch: 1, ..config }.with_kv_tokens(&artifact, trace.positions() + 1);
        let checker = Checker { test, trace, kernel: config.kernel, first: Mutex::default() };
        let light = Light::Check(Box::new(checker));
        Engine::start(Arc::new(artifact), None, config, Some(light))
            .map_err(|error| Fault::Engine(Box::new(error)))
    }
}

/// Replays an answer and writes its trace. `progress` is called with the positions done and all. What the replay says beside
/// that the answer is right is returned.
///
/// The trace's size is about 2.8 bytes for each row of each matrix and position; memory for keys and values is chosen by the
/// text's length, whatever `config` says.
///
/// # Errors
/// [`RecordError`]; what was written until then is no trace.
pub fn record(
    artifact: &Arc<Artifact>,
    config: Config,
    generation: &Generation,
    answer: &[u32],
    out: &mut dyn Write,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Replay, RecordError> {
    if answer.is_empty() {
        return Err(RecordError::Empty);
    }
    let tokens: Vec<u32> = generation.prompt.iter().chain(answer).copied().collect();
    let chunk = config.prefill_chunk.min(RECORDED);
    let config =
        Config { max_batch: 1, prefill_chunk: chunk, ..config }.with_kv_tokens(artifact, tokens.len());
    let light = Light::Record(Recorder::new(artifact));
    let mut engine = Engine::start(Arc::clone(artifact), None, config, Some(light))?;
    engine.submit_replay(generation, answer, crate::Service::default())?;
    // The engine has refused tokens that are not in the vocabulary.
    out.write_all(&trace::front(artifact, &tokens, generation.prompt.len()))?;
    let mut written = 0;
    loop {
        let events = engine.step()?;
        while let Some(products) = engine.recorded(written) {
            let output = written + 1 >= generation.prompt.len();
            debug_assert_eq!(products.len(), Products::new(artifact.config()).count(output));
            products.iter().try_for_each(|product| out.write_all(product))?;
            written += 1;
            progress(written, tokens.len() - 1);
        }
        for event in events {
            match event {
                crate::Event::Replayed { replay: Replay::Differs { position, .. }, .. } => {
                    return Err(RecordError::Differs(position));
                }
                crate::Event::Replayed { replay, .. } => return Ok(replay),
                crate::Event::Stuck { position, reason, .. } => {
                    return Err(Error::Constraint { position, reason }.into());
                }
                _ => {}
            }
        }
    }
}

impl Engine {
    /// The products of the next position to be written.
    fn recorded(&self, position: usize) -> Option<Vec<Vec<u8>>> {
        match self.light() {
            Some(Light::Record(recorder)) => recorder.take(position),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "light_tests.rs"]
mod tests;
