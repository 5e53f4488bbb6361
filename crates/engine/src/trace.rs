//! The execution trace of an answer, byte for byte as docs/disputes.md defines it: what two sides of a dispute descend.
//!
//! A trace is large (SmolLM2-135M leaves 3 MB a position), so it is not kept. One pass computes it layer by layer and hashes it; what stays
//! is the Merkle tree and the residual stream between the layers. From these any layer can be made again when some of its bytes are
//! asked for.
//!
//! Every entry is made by the referees' definition from the bytes of entries before it. The engine's kernels compute the same numbers
//! in another order; tests hold both to each other.

mod layout;
mod reads;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use assay_arithmetic::tables::{LOG2_E_Q30, exp2_neg, sigmoid};
use assay_arithmetic::{MatrixView, RopeStyle, Scale, rescale, rescale1, uniform};
use assay_model::{Artifact, merkle};
use assay_receipt::{Bytes32, Sampling};
use rayon::prelude::*;

pub use layout::{ARRAYS, Entry, Found, Layout, Part, SEGMENT, STEPS, part};
pub use reads::{ModelRange, Reads, reads};

/// Largest part of a trace (a layer, or the end) that is computed, in bytes: it bounds memory to three times as much.
pub const PART_BYTES_MAX: u64 = 1 << 29;
/// Parts that are kept after they were asked for: an operation reads from two.
const KEPT: usize = 2;
/// Weights that are expanded at once: they stay in the second-level cache.
const BLOCK: usize = 1 << 16;
/// Columns whose products fit 32 bits: `64 · 8191 · 2047 < 2^30`.
const LANE: usize = 64;
/// `1/2047`, as in docs/arithmetic.md, 4.1.
const INVERSE: Scale = Scale { mantissa: (((1u64 << 41) + 1023) / 2047) as u32, exponent: -41 };
/// Exponent that stands for no value at all.
const NONE: i32 = -40_000;

/// Why there is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The model is not a dense one.
    #[error(
        "traces are defined for dense models alone (Llama, Qwen 2, Qwen 3), and this is another; no contract can judge it"
    )]
    Model,
    /// No tokens, or too many.
    #[error(
        "a trace needs a prompt, an answer and at most {context} positions; these have {prompt} and {outputs} tokens"
    )]
    Tokens {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the answer.
        outputs: usize,
        /// Positions that the model has.
        context: usize,
    },
    /// A layer's part would not fit in memory.
    #[error(
        "a layer of the trace has {0} bytes, more than {PART_BYTES_MAX}; the text is too long for a dispute"
    )]
    TooLarge(u64),
}

/// A bit to turn in one entry, from which everything after follows: what a liar commits to.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    /// Where.
    pub entry: Entry,
    /// Which bit of the entry.
    pub bit: usize,
}

/// The trace of one answer.
pub struct Trace {
    artifact: Arc<Artifact>,
    layout: Layout,
    prompt: Vec<u32>,
    output: Vec<u32>,
    sampling: Sampling,
    /// The residual stream before each layer and after the last, `[position][dim]`.
    streams: Vec<Vec<i32>>,
    tokens: Vec<u32>,
    tree: merkle::Tree,
    kept: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
    #[cfg(feature = "testing")]
    lie: Option<Lie>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tokens are a user's text.
        f.debug_struct("Trace")
            .field("size", &self.layout.size())
            .field("root", &self.root())
            .finish_non_exhaustive()
    }
}

impl Trace {
    /// Computes the trace of `prompt` and the claimed `output`, and calls `progress` with the bytes that are done and all.
    /// Uses rayon's threads.
    ///
    /// Constraints are not part of a trace, see docs/disputes.md.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn new(
        artifact: Arc<Artifact>,
        prompt: &[u32],
        output: &[u32],
        sampling: &Sampling,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Trace, TraceError> {
        Self::empty(artifact, prompt, output, sampling)?.filled(progress)
    }

    /// The trace of a liar.
    ///
    /// # Errors
    /// [`TraceError`].
    #[cfg(feature = "testing")]
    pub fn lying(
        artifact: Arc<Artifact>,
        prompt: &[u32],
        output: &[u32],
        sampling: &Sampling,
        lie: Lie,
    ) -> Result<Trace, TraceError> {
        let mut trace = Self::empty(artifact, prompt, output, sampling)?;
        trace.lie = Some(lie);
        trace.filled(&mut |_, _| {})
    }

    fn empty(
        artifact: Arc<Artifact>,
        prompt: &[u32],
        output: &[u32],
        sampling: &Sampling,
    ) -> Result<Trace, TraceError> {
        let layout = Layout::new(artifact.config(), prompt.len(), output.len(), sampling)?;
        let largest = (0..layout.sections()).map(|section| layout.section(section).1).max().unwrap_or(0);
        if largest > PART_BYTES_MAX {
            return Err(TraceError::TooLarge(largest));
        }
        Ok(Trace {
            artifact,
            layout,
            prompt: prompt.to_vec(),
            output: output.to_vec(),
            sampling: sampling.clone(),
            streams: Vec::new(),
            tokens: Vec::new(),
            tree: merkle::Tree::new(Vec::new()),
            kept: Mutex::default(),
            #[cfg(feature = "testing")]
            lie: None,
        })
    }

    fn filled(mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Trace, TraceError> {
        let mut leaves = Vec::with_capacity(merkle::tiles(self.layout.size()) as usize);
        let (mut rest, mut tokens) = (Vec::new(), Vec::new());
        for number in 0..self.layout.sections() {
            let section = self.compute(number);
            let (first, length) = self.layout.section(number);
            let kept = match number {
                0 => 1,
                n if n <= self.layout.shape.layers => 47,
                _ => 63,
            };
            let (kept, section) = (section.i32s(kept), section.bytes);
            if number <= self.layout.shape.layers {
                self.streams.push(kept);
            } else {
                tokens = kept.into_iter().map(|token| token as u32).collect();
            }
            // What the last part left of a tile, then whole tiles, then what they leave.
            let missing = (merkle::TILE - rest.len()) % merkle::TILE;
            let (head, body) = section.split_at(missing.min(section.len()));
            rest.extend_from_slice(head);
            if rest.len() == merkle::TILE {
                leaves.push(merkle::leaf(leaves.len() as u64, &rest));
                rest.clear();
            }
            if !body.is_empty() {
                let (tiles, tail) = body.split_at(body.len() / merkle::TILE * merkle::TILE);
                let done = leaves.len() as u64;
                let hash = |(i, tile)| merkle::leaf(done + i as u64, tile);
                leaves.par_extend(tiles.par_chunks(merkle::TILE).enumerate().map(hash));
                rest.extend_from_slice(tail);
            }
            progress(first + length, self.layout.size());
        }
        if !rest.is_empty() {
            leaves.push(merkle::leaf(leaves.len() as u64, &rest));
        }
        self.tree = merkle::Tree::new(leaves);
        self.tokens = tokens;
        Ok(self)
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The model.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// The claimed output.
    pub fn output(&self) -> &[u32] {
        &self.output
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// The root of the Merkle tree.
    pub fn root(&self) -> Bytes32 {
        self.tree.root()
    }

    /// The Merkle tree over the tiles.
    pub fn tree(&self) -> &merkle::Tree {
        &self.tree
    }

    /// The tokens that the model gives at each position of the answer after what is claimed before it: array 63.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tile number `index`; the last may be shorter, and beyond it they are empty.
    pub fn tile(&self, index: u64) -> Vec<u8> {
        let first = index.saturating_mul(merkle::TILE as u64);
        self.read(first, merkle::TILE as u64)
    }

    /// `length` bytes from `place` on, less where the trace ends. Computes the layers that hold them again.
    pub fn read(&self, place: u64, length: u64) -> Vec<u8> {
        let end = place.saturating_add(length).min(self.size());
        let mut out = Vec::new();
        for number in 0..self.layout.sections() {
            let (first, length) = self.layout.section(number);
            let (from, to) = (place.max(first), end.min(first + length));
            if from < to {
                let bytes = self.part(number);
                out.extend_from_slice(&bytes[(from - first) as usize..(to - first) as usize]);
            }
        }
        out
    }

    /// The bytes of an entry; `None` where there is no such entry.
    pub fn entry(&self, entry: Entry) -> Option<Vec<u8>> {
        self.layout.place(entry).map(|(place, width)| self.read(place, width))
    }

    fn part(&self, number: usize) -> Arc<Vec<u8>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept.iter().find(|(kept, _)| *kept == number) {
            return Arc::clone(bytes);
        }
        if kept.len() == KEPT {
            kept.pop_front();
        }
        let bytes = Arc::new(self.compute(number).bytes);
        kept.push_back((number, Arc::clone(&bytes)));
        bytes
    }

    fn compute(&self, number: usize) -> Section<'_> {
        let layer = number.saturating_sub(1);
        let mut section = Section {
            trace: self,
            layer: if number <= self.layout.shape.layers { layer } else { 0 },
            bytes: vec![0; self.layout.section(number).1 as usize],
        };
        match number {
            0 => section.begin(),
            n if n <= self.layout.shape.layers => section.layer(&self.streams[layer]),
            _ => section.end(&self.streams[layer]),
        }
        section
    }
}

/// `floor((v + 2^(s-1)) / 2^s)`.
fn rshift(v: i64, s: u32) -> i64 {
    if s == 0 { v } else { v.wrapping_add(1 << (s - 1)) >> s }
}

fn saturated(v: i64) -> i32 {
    v.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

fn bits(v: u64) -> u32 {
    64 - v.leading_zeros()
}

fn scale_of(row: &[u8]) -> Scale {
    let (mantissa, exponent) = (u32_at(row, 0), u32_at(row, 4) as i32);
    Scale { mantissa, exponent }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, &byte| n << 8 | u32::from(byte))
}

/// Scale (of the integers), reciprocal and shift of docs/arithmetic.md, 4.1.
fn quantiser(max: u64) -> (Scale, u32, u32) {
    if max == 0 {
        return (Scale::ZERO, 0, 0);
    }
    let shift = bits(max) + 19;
    (Scale::from_integer(max).mul(INVERSE), ((2047 << shift) / max) as u32, shift)
}

fn row_of(max: u64) -> [u8; 16] {
    let (unit, r, shift) = quantiser(max);
    row_bytes(unit.shifted(-16), r, shift)
}

fn row_bytes(scale: Scale, r: u32, shift: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&scale.to_bytes());
    out[8..12].copy_from_slice(&r.to_le_bytes());
    out[12..].copy_from_slice(&shift.to_le_bytes());
    out
}

/// A value by reciprocal and shift of a row's bytes.
fn quantised(x: i64, row: &[u8]) -> i16 {
    rshift(x.wrapping_mul(u32_at(row, 8).into()), u32_at(row, 12).min(62)) as i16
}

fn largest(x: &[i32]) -> u64 {
    x.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0).into()
}

fn dot(x: &[i16], w: &[i16]) -> i64 {
    let lane = |(x, w): (&[i16], &[i16])| {
        let products = x.iter().zip(w).map(|(&x, &w)| i32::from(x).wrapping_mul(i32::from(w)));
        i64::from(products.fold(0i32, i32::wrapping_add))
    };
    x.chunks(LANE).zip(w.chunks(LANE)).map(lane).sum()
}

/// Orders tokens as docs/arithmetic.md, 5.2 does, the most likely last: by logit, and the lower id before others among equals.
fn rank(logit: i32, token: usize) -> u64 {
    let logit = (i64::from(logit) - i64::from(i32::MIN)) as u64;
    logit << 32 | u64::from(u32::MAX - token as u32)
}

/// The bit of a rank that a step of a search tries; none in the first and the last.
fn bit_of(step: usize) -> u64 {
    if (1..STEPS - 1).contains(&step) { 1 << (STEPS - 2 - step) } else { 0 }
}

/// What is kept from some rank on.
#[derive(Clone, Copy, Default)]
struct Totals {
    weight: u64,
    count: u64,
}

/// A part of a trace while it is computed.
struct Section<'a> {
    trace: &'a Trace,
    layer: usize,
    bytes: Vec<u8>,
}

impl<'a> Section<'a> {
    fn layout(&self) -> &'a Layout {
        &self.trace.layout
    }

    fn range(&self, array: usize) -> Range<usize> {
        let start = self.layout().start(array);
        start..start + self.layout().bytes(array) as usize
    }

    fn array(&self, array: usize) -> &[u8] {
        &self.bytes[self.range(array)]
    }

    fn i32s(&self, array: usize) -> Vec<i32> {
        self.array(array).chunks_exact(4).map(|x| u32_at(x, 0) as i32).collect()
    }

    fn i16s(&self, array: usize) -> Vec<i16> {
        self.array(array).chunks_exact(2).map(|x| i16::from_le_bytes([x[0], x[1]])).collect()
    }

    fn i64s(&self, array: usize) -> Vec<i64> {
        let word = |x: &[u8]| (u64::from(u32_at(x, 4)) << 32 | u64::from(u32_at(x, 0))) as i64;
        self.array(array).chunks_exact(8).map(word).collect()
    }

    fn scales(&self, array: usize) -> Vec<Scale> {
        // A row of a norm has 32 bytes, another 16, the reciprocals 8.
        let width = match array {
            3 | 36 | 49 => 32,
            27 => 8,
            _ => 16,
        };
        self.array(array).chunks_exact(width).map(scale_of).collect()
    }

    /// Writes an array: `make(i, row)` for each of its rows of `width` bytes, by all threads.
    fn write(&mut self, array: usize, width: usize, make: impl Fn(usize, &mut [u8]) + Sync) {
        let range = self.range(array);
        if !range.is_empty() {
            self.bytes[range].par_chunks_exact_mut(width).enumerate().for_each(|(i, row)| make(i, row));
        }
        self.lie(array);
    }

    #[cfg(not(feature = "testing"))]
    fn lie(&self, _: usize) {}

    #[cfg(feature = "testing")]
    fn lie(&mut self, array: usize) {
        let Some(Lie { entry, bit }) = self.trace.lie else { return };
        if entry.array == array && entry.layer == self.layer {
            let section = self.layout().section_of(array, self.layer);
            let place = self.layout().place(entry).map(|(place, _)| place - self.layout().section(section).0);
            if let Some(byte) = place.and_then(|place| self.bytes.get_mut(place as usize + bit / 8)) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    fn begin(&mut self) {
        let trace = self.trace;
        let tokens: Vec<u32> = trace.prompt.iter().chain(&trace.output).copied().collect();
        self.write(0, 4, |i, out| out.copy_from_slice(&tokens[i].to_le_bytes()));
        let tokens = self.i32s(0);
        let embedding = trace.artifact.embedding();
        self.write(1, 4 * embedding.cols, |i, out| {
            let token = tokens[i] as u32 as usize;
            if token >= embedding.rows {
                return;
            }
            let mut weights = vec![0; embedding.cols];
            embedding.row(token, &mut weights);
            for (out, w) in out.chunks_exact_mut(4).zip(weights) {
                out.copy_from_slice(&rescale1(w.into(), embedding.scales[token], 0).to_le_bytes());
            }
        });
    }

    /// Arrays `first` to `first + 2`: the norm of rows of the stream, and its rounding.
    fn norm(&mut self, first: usize, x: &[i32], weight: &[i32]) {
        let dim = weight.len();
        let eps = self.layout().shape.rms_eps_q32;
        self.write(first, dim.div_ceil(SEGMENT) * 32, |t, out| {
            for (s, out) in out.chunks_exact_mut(32).enumerate() {
                let columns = Layout::segment(dim, s);
                let (mut squares, mut most, mut least) = (0u128, 0i64, 0i64);
                for (&x, &w) in x[t * dim..][columns.clone()].iter().zip(&weight[columns]) {
                    squares += u128::from(x.unsigned_abs()).pow(2);
                    let p = i64::from(x) * i64::from(w);
                    most = most.max(p);
                    least = least.min(p);
                }
                out[..16].copy_from_slice(&squares.to_le_bytes());
                out[16..24].copy_from_slice(&most.to_le_bytes());
                out[24..].copy_from_slice(&least.to_le_bytes());
            }
        });
        let parts = self.i64s(first);
        let segments = dim.div_ceil(SEGMENT);
        self.write(first + 1, 32, |t, out| {
            let (mut squares, mut most, mut least) = (0u128, 0i64, 0i64);
            for part in parts[4 * segments * t..][..4 * segments].chunks_exact(4) {
                squares = squares.wrapping_add(u128::from(part[1] as u64) << 64 | u128::from(part[0] as u64));
                most = most.max(part[2]);
                least = least.min(part[3]);
            }
            let mean = (squares.saturating_add(dim as u128 / 2) / dim as u128).saturating_add(eps.into());
            let mean = u64::try_from(mean).unwrap_or(u64::MAX);
            let widest = most.unsigned_abs().max(least.unsigned_abs());
            let shift = bits(widest).saturating_sub(30);
            let largest = rshift(most, shift).unsigned_abs().max(rshift(least, shift).unsigned_abs());
            let (unit, r, t) = quantiser(largest);
            let inverse = Scale::inverse_sqrt(mean).shifted(16);
            let scale = unit.shifted(shift as i32 - 32).mul(inverse);
            out[..16].copy_from_slice(&row_bytes(scale, r, t));
            out[16..20].copy_from_slice(&shift.to_le_bytes());
        });
        let rows = self.array(first + 1).to_vec();
        self.write(first + 2, 2 * dim, |t, out| {
            let row = &rows[32 * t..][..32];
            let shift = u32_at(row, 16).min(62);
            for ((out, &x), &w) in out.chunks_exact_mut(2).zip(&x[t * dim..]).zip(weight) {
                let p = rshift(i64::from(x) * i64::from(w), shift);
                out.copy_from_slice(&quantised(p, row).to_le_bytes());
            }
        });
    }

    /// Arrays `first` and `first + 1`: sums of segments, and the outputs in Q16. `input` is the array of values, behind that of their
    /// scales.
    fn linear(
        &mut self,
        first: usize,
        w: &MatrixView<'_>,
        input: usize,
        bias: Option<&[i32]>,
        residual: Option<&[i32]>,
    ) {
        let (rows, cols, segments) = (w.rows, w.cols, w.cols.div_ceil(SEGMENT));
        let x = self.i16s(input);
        let range = self.range(first);
        let block = (BLOCK / cols).max(1);
        let mut weights = vec![0i16; block.min(rows) * cols];
        for from in (0..rows).step_by(block) {
            let count = block.min(rows - from);
            let weights = &mut weights[..count * cols];
            weights.par_chunks_exact_mut(cols).enumerate().for_each(|(i, out)| w.row(from + i, out));
            let tokens = self.bytes[range.clone()].par_chunks_exact_mut(8 * rows * segments);
            tokens.zip(x.par_chunks_exact(cols)).for_each(|(out, x)| {
                let out = &mut out[8 * from * segments..][..8 * count * segments];
                for (out, w) in out.chunks_exact_mut(8 * segments).zip(weights.chunks_exact(cols)) {
                    let parts = x.chunks(SEGMENT).zip(w.chunks(SEGMENT));
                    for (out, (x, w)) in out.chunks_exact_mut(8).zip(parts) {
                        out.copy_from_slice(&dot(x, w).to_le_bytes());
                    }
                }
            });
        }
        self.lie(first);
        let sums = self.i64s(first);
        let scales = self.scales(input - 1);
        let shift = bits(cols as u64).saturating_sub(6);
        self.write(first + 1, 4 * rows, |t, out| {
            let x = scales[t].shifted(shift as i32);
            let sums = sums[t * rows * segments..].chunks_exact(segments);
            for (r, (out, sums)) in out.chunks_exact_mut(4).zip(sums).enumerate() {
                let sum = sums.iter().copied().fold(0, i64::wrapping_add);
                let mut y = rescale(rshift(sum, shift), x, w.scales[r]);
                if let Some(bias) = bias {
                    y = y.saturating_add(bias[r]);
                }
                if let Some(residual) = residual {
                    y = y.saturating_add(residual[t * rows + r]);
                }
                out.copy_from_slice(&y.to_le_bytes());
            }
        });
    }

    /// An array of rows for heads of `source`, and the array behind it of their values; both `[position][…]`.
    fn heads(&mut self, rows: usize, source: usize, heads: usize) {
        let dim = self.layout().shape.head_dim;
        let x = self.i32s(source);
        self.write(rows, 16, |i, out| out.copy_from_slice(&row_of(largest(&x[i * dim..][..dim]))));
        let scales = self.array(rows).to_vec();
        self.write(rows + 1, 2 * heads * dim, |t, out| {
            for (i, out) in out.chunks_exact_mut(2).enumerate() {
                let row = &scales[16 * (t * heads + i / dim)..][..16];
                out.copy_from_slice(&quantised(x[t * heads * dim + i].into(), row).to_le_bytes());
            }
        });
    }

    /// Arrays `first` to `first + 2`: rows of the array before are rounded.
    fn quantise(&mut self, first: usize, cols: usize) {
        let x = self.i32s(first - 1);
        let segments = cols.div_ceil(SEGMENT);
        self.write(first, 4 * segments, |t, out| {
            for (out, x) in out.chunks_exact_mut(4).zip(x[t * cols..][..cols].chunks(SEGMENT)) {
                out.copy_from_slice(&(largest(x) as u32).to_le_bytes());
            }
        });
        let parts = self.i32s(first);
        self.write(first + 1, 16, |t, out| {
            let max = parts[t * segments..][..segments].iter().map(|&part| part as u32).max().unwrap_or(0);
            out.copy_from_slice(&row_of(max.into()));
        });
        let rows = self.array(first + 1).to_vec();
        self.write(first + 2, 2 * cols, |t, out| {
            for (out, &x) in out.chunks_exact_mut(2).zip(&x[t * cols..]) {
                out.copy_from_slice(&quantised(x.into(), &rows[16 * t..][..16]).to_le_bytes());
            }
        });
    }

    /// Arrays 11 and 12: norms of heads.
    fn head_norms(&mut self, array: usize, source: usize, weight: &[i32]) {
        let dim = weight.len();
        let eps = self.layout().shape.rms_eps_q32;
        let x = self.i32s(source);
        self.write(array, 4 * dim, |i, out| {
            let x = &x[i * dim..][..dim];
            let squares: u128 = x.iter().map(|x| u128::from(x.unsigned_abs()).pow(2)).sum();
            let mean = (squares + dim as u128 / 2) / dim as u128 + u128::from(eps);
            let inverse = Scale::inverse_sqrt(u64::try_from(mean).unwrap_or(u64::MAX)).shifted(16);
            let products: Vec<i64> =
                x.iter().zip(weight).map(|(&x, &w)| i64::from(x) * i64::from(w)).collect();
            let max = products.iter().map(|p| p.unsigned_abs()).max().unwrap_or(0);
            let shift = bits(max).saturating_sub(30);
            for (out, p) in out.chunks_exact_mut(4).zip(products) {
                let y = rescale1(rshift(p, shift), inverse, shift as i32 - 32);
                out.copy_from_slice(&y.to_le_bytes());
            }
        });
    }

    /// Arrays 13 and 14: rotated heads.
    fn rotate(&mut self, array: usize, source: usize, heads: usize, cos: &[i32], sin: &[i32]) {
        let shape = &self.layout().shape;
        let (dim, half) = (shape.head_dim, shape.head_dim / 2);
        let x = self.i32s(source);
        self.write(array, 4 * heads * dim, |t, out| {
            for (j, out) in out.chunks_exact_mut(4).enumerate() {
                let own = j % dim;
                let (pair, other, second) = match shape.rope {
                    RopeStyle::Half if own < half => (own, j + half, false),
                    RopeStyle::Half => (own - half, j - half, true),
                    RopeStyle::Interleaved => (own / 2, j ^ 1, own % 2 == 1),
                };
                let row = &x[t * heads * dim..];
                let (x, y) = (i64::from(row[j]), i64::from(row[other]));
                let (cos, sin) = (i64::from(cos[t * half + pair]), i64::from(sin[t * half + pair]));
                let turned = if second { y * sin + x * cos } else { x * cos - y * sin };
                out.copy_from_slice(&saturated(rshift(turned, 30)).to_le_bytes());
            }
        });
    }

    fn layer(&mut self, x: &[i32]) {
        let trace = self.trace;
        let shape = &self.layout().shape;
        let layer = trace.artifact.layer(self.layer);
        let (heads, kv_heads, dim) = (shape.heads, shape.kv_heads, shape.head_dim);
        self.norm(2, x, layer.attention_norm);
        self.linear(5, &layer.q, 4, layer.q_bias, None);
        self.linear(7, &layer.k, 4, layer.k_bias, None);
        self.linear(9, &layer.v, 4, layer.v_bias, None);
        let (mut q, mut k) = (6, 8);
        if let (Some(q_norm), Some(k_norm)) = (layer.q_norm, layer.k_norm) {
            self.head_norms(11, q, q_norm);
            self.head_norms(12, k, k_norm);
            (q, k) = (11, 12);
        }
        // Dense models rotate in every layer.
        let (cos, sin) = layer.rope.unwrap_or_default();
        self.rotate(13, q, heads, cos, sin);
        self.rotate(14, k, kv_heads, cos, sin);
        self.heads(15, 13, heads);
        self.heads(17, 14, kv_heads);
        self.values(kv_heads, dim);
        self.attention();
        self.quantise(30, heads * dim);
        self.linear(33, &layer.o, 32, None, Some(x));
        let stream = self.i32s(34);
        self.norm(35, &stream, layer.ffn_norm);
        self.linear(38, &layer.gate, 37, None, None);
        self.linear(40, &layer.up, 37, None, None);
        let (gate, up) = (self.i32s(39), self.i32s(41));
        self.write(42, 4 * shape.ffn, |t, out| {
            let columns = t * shape.ffn..(t + 1) * shape.ffn;
            for ((out, &gate), &up) in out.chunks_exact_mut(4).zip(&gate[columns.clone()]).zip(&up[columns]) {
                let y = rshift(i64::from(gate) * i64::from(sigmoid(gate)), 30);
                out.copy_from_slice(&saturated(rshift(y * i64::from(up), 16)).to_le_bytes());
            }
        });
        self.quantise(43, shape.ffn);
        self.linear(46, &layer.down, 45, None, Some(&stream));
    }

    /// Arrays 19 and 20: the values, columns first.
    fn values(&mut self, kv_heads: usize, dim: usize) {
        let n = self.layout().n;
        let v = self.i32s(10);
        self.write(19, 16 * n, |head, out| {
            for (t, out) in out.chunks_exact_mut(16).enumerate() {
                out.copy_from_slice(&row_of(largest(&v[(t * kv_heads + head) * dim..][..dim])));
            }
        });
        let rows = self.array(19).to_vec();
        self.write(20, 2 * n, |column, out| {
            for (t, out) in out.chunks_exact_mut(2).enumerate() {
                let row = &rows[16 * (column / dim * n + t)..][..16];
                out.copy_from_slice(&quantised(v[t * kv_heads * dim + column].into(), row).to_le_bytes());
            }
        });
    }

    /// Arrays 21 to 29.
    fn attention(&mut self) {
        let shape = &self.layout().shape;
        let (n, heads, kv_heads, dim) = (self.layout().n, shape.heads, shape.kv_heads, shape.head_dim);
        let (group, segments) = (heads / kv_heads, n.div_ceil(SEGMENT));
        let triangle = n * (n + 1) / 2;
        let past = |t: usize| t * (t + 1) / 2..(t + 1) * (t + 2) / 2;
        let factor = Scale::inverse_sqrt(dim as u64).mul(Scale::LOG2_E);
        let (q, k) = (self.i16s(16), self.i16s(18));
        let (q_scales, k_scales) = (self.scales(15), self.scales(17));
        self.write(21, 4 * triangle, |h, out| {
            let kv = h / group;
            for t in 0..n {
                let scale = q_scales[t * heads + h].mul(factor);
                let query = &q[(t * heads + h) * dim..][..dim];
                let range = past(t);
                for (s, out) in out[4 * range.start..4 * range.end].chunks_exact_mut(4).enumerate() {
                    let sum = dot(query, &k[(s * kv_heads + kv) * dim..][..dim]);
                    out.copy_from_slice(&rescale(sum, scale, k_scales[s * kv_heads + kv]).to_le_bytes());
                }
            }
        });
        let scores = self.i32s(21);
        let v_scales = self.scales(19);
        self.write(22, 8 * segments, |i, out| {
            let (h, t) = (i / n, i % n);
            for (s, out) in out.chunks_exact_mut(8).enumerate() {
                let seen = Layout::segment(t + 1, s);
                let top =
                    scores[h * triangle..][past(t)][seen.clone()].iter().copied().max().unwrap_or(i32::MIN);
                let values = &v_scales[h / group * n..][seen];
                let e = values.iter().filter(|v| v.mantissa != 0).map(|v| v.exponent).max();
                out[..4].copy_from_slice(&top.to_le_bytes());
                out[4..].copy_from_slice(&e.unwrap_or(NONE).max(NONE).to_le_bytes());
            }
        });
        let parts = self.i32s(22);
        self.write(23, 8, |i, out| {
            let parts = parts[2 * segments * i..][..2 * segments].chunks_exact(2);
            let (mut top, mut e) = (i32::MIN, NONE);
            for part in parts {
                (top, e) = (top.max(part[0]), e.max(part[1]));
            }
            out[..4].copy_from_slice(&top.to_le_bytes());
            out[4..].copy_from_slice(&e.to_le_bytes());
        });
        let tops = self.i32s(23);
        self.write(24, 4 * triangle, |h, out| {
            for t in 0..n {
                let top = i64::from(tops[2 * (h * n + t)]);
                let range = past(t);
                let scores = &scores[h * triangle..][range.clone()];
                for (out, &score) in out[4 * range.start..4 * range.end].chunks_exact_mut(4).zip(scores) {
                    // The difference of two 32-bit numbers fits 32 bits without a sign.
                    let gap = (top - i64::from(score)).max(0) as u32;
                    out.copy_from_slice(&exp2_neg(gap).to_le_bytes());
                }
            }
        });
        let weights = self.i32s(24);
        self.write(25, 4 * triangle, |h, out| {
            for t in 0..n {
                let e = tops[2 * (h * n + t) + 1];
                let range = past(t);
                let weights = &weights[h * triangle..][range.clone()];
                let values = &v_scales[h / group * n..];
                let out = out[4 * range.start..4 * range.end].chunks_exact_mut(4);
                for ((out, &weight), v) in out.zip(weights).zip(values) {
                    let down = e.saturating_sub(v.exponent).clamp(0, 31);
                    let product = u64::from(weight as u32) * u64::from(v.mantissa >> down);
                    out.copy_from_slice(&(((product + (1 << 38)) >> 39) as u32).to_le_bytes());
                }
            }
        });
        self.write(26, 8 * segments, |i, out| {
            let (h, t) = (i / n, i % n);
            for (s, out) in out.chunks_exact_mut(8).enumerate() {
                let weights = &weights[h * triangle..][past(t)][Layout::segment(t + 1, s)];
                let total: u64 = weights.iter().map(|&e| (u64::from(e as u32) + 128) >> 8).sum();
                out.copy_from_slice(&total.to_le_bytes());
            }
        });
        let totals = self.i64s(26);
        self.write(27, 8, |i, out| {
            let total = totals[i * segments..][..segments].iter().copied().fold(0, i64::wrapping_add);
            out.copy_from_slice(&Scale::from_integer(total as u64).recip().to_bytes());
        });
        let (folded, values) = (self.i32s(25), self.i16s(20));
        self.write(28, 8 * heads * dim * segments, |t, out| {
            for (j, out) in out.chunks_exact_mut(8 * segments).enumerate() {
                let h = j / dim;
                let column = h / group * dim + j % dim;
                for (s, out) in out.chunks_exact_mut(8).enumerate() {
                    let seen = Layout::segment(t + 1, s);
                    let weights = &folded[h * triangle..][past(t)][seen.clone()];
                    let values = &values[column * n..][seen];
                    let sum: i64 =
                        weights.iter().zip(values).map(|(&u, &v)| i64::from(u as u32) * i64::from(v)).sum();
                    out.copy_from_slice(&sum.to_le_bytes());
                }
            }
        });
        let (sums, reciprocals) = (self.i64s(28), self.scales(27));
        self.write(29, 4 * heads * dim, |t, out| {
            for (j, out) in out.chunks_exact_mut(4).enumerate() {
                let at = j / dim * n + t;
                let e = tops[2 * at + 1];
                let sums = &sums[(t * heads * dim + j) * segments..][..segments];
                let sum = sums.iter().copied().fold(0, i64::wrapping_add);
                let y = if e == NONE { 0 } else { rescale1(sum, reciprocals[at], e.saturating_add(31)) };
                out.copy_from_slice(&y.to_le_bytes());
            }
        });
    }

    fn end(&mut self, x: &[i32]) {
        let (trace, layout) = (self.trace, self.layout());
        let shape = &layout.shape;
        let vocab = shape.vocab;
        self.norm(48, &x[(layout.prompt - 1) * shape.dim..], trace.artifact.output_norm());
        self.linear(51, &trace.artifact.output(), 50, None, None);
        let logits = if layout.adjusted() {
            self.adjust();
            54
        } else {
            52
        };
        let logits = self.i32s(logits);
        let segments = vocab.div_ceil(SEGMENT);
        // The largest, and the first of its ids.
        let best = |candidates: &mut dyn Iterator<Item = (i32, u32)>, first: (i32, u32), out: &mut [u8]| {
            let mut best = first;
            for (value, id) in candidates {
                if value > best.0 {
                    best = (value, id);
                }
            }
            out[..4].copy_from_slice(&best.0.to_le_bytes());
            out[4..].copy_from_slice(&best.1.to_le_bytes());
        };
        self.write(55, 8 * segments, |o, out| {
            for (s, out) in out.chunks_exact_mut(8).enumerate() {
                let range = Layout::segment(vocab, s);
                let first = (i32::MIN, range.start as u32);
                best(&mut range.map(|v| (logits[o * vocab + v], v as u32)), first, out);
            }
        });
        let parts = self.i32s(55);
        self.write(56, 8, |o, out| {
            let parts: Vec<_> = parts[2 * segments * o..][..2 * segments]
                .chunks_exact(2)
                .map(|p| (p[0], p[1] as u32))
                .collect();
            best(&mut parts[1..].iter().copied(), parts[0], out);
        });
        let best = self.i32s(56);
        if !layout.drawn() {
            self.write(63, 4, |o, out| out.copy_from_slice(&best[2 * o + 1].to_le_bytes()));
            return;
        }
        let sampling = &trace.sampling;
        let temperature = u64::from(sampling.temperature_milli);
        let factor = u128::from((1000 * u64::from(LOG2_E_Q30) + temperature / 2) / temperature);
        let least = u64::from(sampling.min_p_ppm.min(1_000_000)) << 30;
        let weight_of = |o: usize, logit: i32| {
            let gap =
                u64::try_from(i64::from(best[2 * o]) - i64::from(logit)).ok().filter(|_| logit != i32::MIN);
            let t = gap.map(|gap| (u128::from(gap) * factor + (1 << 29)) >> 30);
            t.and_then(|t| u32::try_from(t).ok()).map_or(0, exp2_neg)
        };
        let mut least_ranks = vec![0; layout.outputs];
        let mut ranked = Vec::new();
        if layout.ranked() {
            self.write(57, 4 * vocab, |o, out| {
                for (out, &logit) in out.chunks_exact_mut(4).zip(&logits[o * vocab..]) {
                    out.copy_from_slice(&weight_of(o, logit).to_le_bytes());
                }
            });
            ranked = self.i32s(57).into_iter().map(|weight| weight as u32).collect();
        }
        if layout.top_k() {
            let most = u64::from(sampling.top_k);
            least_ranks = self.search(58, &logits, &ranked, &least_ranks, |_, kept| kept.count >= most);
        }
        if layout.top_p() {
            let part = u128::from(sampling.top_p_ppm);
            let enough = |all: Totals, kept: Totals| {
                kept.count >= 1 && 1_000_000 * u128::from(kept.weight) >= part * u128::from(all.weight)
            };
            least_ranks = self.search(59, &logits, &ranked, &least_ranks, enough);
        }
        self.write(60, 4 * vocab, |o, out| {
            for (v, out) in out.chunks_exact_mut(4).enumerate() {
                let (i, logit) = (o * vocab + v, logits[o * vocab + v]);
                let weight = match ranked.get(i) {
                    Some(_) if rank(logit, v) < least_ranks[o] => 0,
                    Some(weight) => *weight,
                    None => weight_of(o, logit),
                };
                if 1_000_000 * u64::from(weight) >= least {
                    out.copy_from_slice(&weight.to_le_bytes());
                }
            }
        });
        let weights: Vec<u32> = self.i32s(60).into_iter().map(|weight| weight as u32).collect();
        self.write(61, 8 * segments, |o, out| {
            for (out, weights) in out.chunks_exact_mut(8).zip(weights[o * vocab..][..vocab].chunks(SEGMENT)) {
                out.copy_from_slice(&weights.iter().copied().map(u64::from).sum::<u64>().to_le_bytes());
            }
        });
        let sums: Vec<u64> = self.i64s(61).into_iter().map(|sum| sum as u64).collect();
        self.write(62, 16, |o, out| {
            let sums = &sums[o * segments..][..segments];
            let total: u128 = sums.iter().copied().map(u128::from).sum();
            let mut x = u128::from(uniform(sampling.seed, o as u64)).wrapping_mul(total) >> 64;
            let mut segment = 0;
            while segment + 1 < segments && x >= u128::from(sums[segment]) {
                x -= u128::from(sums[segment]);
                segment += 1;
            }
            out[..8].copy_from_slice(&(segment as u64).to_le_bytes());
            out[8..].copy_from_slice(&(x as u64).to_le_bytes());
        });
        let draws = self.i64s(62);
        self.write(63, 4, |o, out| {
            let (segment, mut x) = (draws[2 * o] as u64, draws[2 * o + 1] as u64);
            if segment >= segments as u64 {
                return;
            }
            let range = Layout::segment(vocab, segment as usize);
            let mut token = range.start;
            while token + 1 < range.end && x >= u64::from(weights[o * vocab + token]) {
                x -= u64::from(weights[o * vocab + token]);
                token += 1;
            }
            out.copy_from_slice(&(token as u32).to_le_bytes());
        });
    }

    /// Arrays 58 and 59: a search for the least rank that is kept, from its highest bit down. `base` is the least that may be kept;
    /// `enough` says from the totals at `base` and at a rank whether what is kept from that rank on suffices. The results.
    fn search(
        &mut self,
        array: usize,
        logits: &[i32],
        weights: &[u32],
        base: &[u64],
        enough: impl Fn(Totals, Totals) -> bool + Sync,
    ) -> Vec<u64> {
        let vocab = self.layout().shape.vocab;
        let segments = vocab.div_ceil(SEGMENT);
        let step_bytes = 16 * (1 + segments);
        self.write(array, STEPS * step_bytes, |o, out| {
            let (mut found, mut all) = (0u64, Totals::default());
            for (step, out) in out.chunks_exact_mut(step_bytes).enumerate() {
                out[..8].copy_from_slice(&found.to_le_bytes());
                let tried = found | bit_of(step);
                let mut kept = Totals::default();
                for (s, out) in out.chunks_exact_mut(16).skip(1).enumerate() {
                    let mut part = Totals::default();
                    for v in Layout::segment(vocab, s) {
                        let weight = weights[o * vocab + v];
                        if weight > 0 && rank(logits[o * vocab + v], v) >= tried.max(base[o]) {
                            part.weight += u64::from(weight);
                            part.count += 1;
                        }
                    }
                    out[..8].copy_from_slice(&part.weight.to_le_bytes());
                    out[8..].copy_from_slice(&part.count.to_le_bytes());
                    kept.weight += part.weight;
                    kept.count += part.count;
                }
                if step == 0 {
                    all = kept;
                } else if enough(all, kept) {
                    found = tried;
                }
            }
        });
        let last = 2 * (STEPS - 1) * (1 + segments);
        let words = self.i64s(array);
        words.chunks_exact(2 * STEPS * (1 + segments)).map(|row| row[last] as u64).collect()
    }

    /// Arrays 53 and 54: what was seen, and logits after penalties and biases.
    fn adjust(&mut self) {
        const SEEN: u32 = 1 << 31;
        let (trace, layout) = (self.trace, self.layout());
        let vocab = layout.shape.vocab;
        let range = self.range(53);
        // Each row follows from the one before.
        for o in 0..if layout.penalised() { layout.outputs } else { 0 } {
            let row = range.start + 4 * o * vocab;
            if o > 0 {
                self.bytes.copy_within(row - 4 * vocab..row, row);
            }
            let tokens = if o == 0 { &trace.prompt[..] } else { &trace.output[o - 1..o] };
            for &token in tokens.iter().filter(|&&token| (token as usize) < vocab) {
                let place = row + 4 * token as usize;
                let seen = u32_at(&self.bytes, place);
                let now = if o == 0 { SEEN } else { (seen | SEEN).wrapping_add(1) };
                self.bytes[place..place + 4].copy_from_slice(&now.to_le_bytes());
            }
        }
        self.lie(53);
        let (logits, seen) = (self.i32s(52), self.i32s(53));
        let p = &trace.sampling;
        let penalty = i64::from(p.repetition_penalty_milli);
        let mut offsets: HashMap<usize, Vec<i64>> = HashMap::new();
        for (token, milli) in &p.logit_bias {
            let off = (65536 * i64::from(*milli) + 500).div_euclid(1000);
            offsets.entry(*token as usize).or_default().push(off);
        }
        self.write(54, 4, |i, out| {
            let (mut value, seen) = (i64::from(logits[i]), seen.get(i).map_or(0, |seen| *seen as u32));
            let biases = offsets.get(&(i % vocab)).into_iter().flatten();
            let biased = |value: i32| {
                biases.fold(value, |value, off| saturated(i64::from(value) + off).max(i32::MIN + 1))
            };
            if logits[i] == i32::MIN {
                out.copy_from_slice(&logits[i].to_le_bytes());
                return;
            }
            if seen & SEEN == 0 {
                out.copy_from_slice(&biased(logits[i]).to_le_bytes());
                return;
            }
            if penalty != 0 && penalty != 1000 {
                value = if value > 0 {
                    (1000 * value + penalty / 2) / penalty
                } else {
                    -((-value * penalty + 500) / 1000)
                };
            }
            let count = i128::from(seen & !SEEN);
            if count > 0 {
                let milli =
                    count * i128::from(p.frequency_penalty_milli) + i128::from(p.presence_penalty_milli);
                let value_128 = i128::from(value) - (65536 * milli + 500).div_euclid(1000);
                value = value_128.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
            }
            out.copy_from_slice(&biased(saturated(value).max(i32::MIN + 1)).to_le_bytes());
        });
    }
}
