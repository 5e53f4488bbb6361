//! Where everything is in a trace.

use assay_model::Config;
use assay_receipt::Sampling;

use super::TraceError;

/// Columns, tokens or vocabulary entries of a partial result.
pub const SEGMENT: usize = 1024;
/// The number of arrays.
pub const ARRAYS: usize = 64;
/// Steps of a search for the least rank that is kept: the totals of all, one for each bit of a rank, and the result.
pub const STEPS: usize = 66;
/// Arrays begin at multiples of the widest entry.
const ALIGN: u64 = 32;

/// What the dimensions of arrays are made of.
#[derive(Clone, Copy, PartialEq)]
enum Dim {
    One,
    N,
    Model,
    Q,
    Kv,
    Heads,
    KvHeads,
    Ffn,
    Vocab,
    Outputs,
    ModelParts,
    NParts,
    QParts,
    FfnParts,
    VocabParts,
    Triangle,
    Normed,
    Penalised,
    Adjusted,
    Drawn,
    Ranked,
    TopK,
    TopP,
    Steps,
    Search,
}

/// Which part of a trace an array is in: before the layers, in each, or after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Arrays 0 and 1.
    Begin,
    /// Arrays 2 to 47.
    Layer,
    /// Arrays 48 to 63.
    End,
}

/// Dimensions and bytes of an entry of each array: the table of docs/disputes.md.
const TABLE: [(Dim, Dim, Dim, u64); ARRAYS] = {
    use Dim::*;
    [
        (N, One, One, 4),
        (N, Model, One, 4),
        (N, ModelParts, One, 32),
        (N, One, One, 32),
        (N, Model, One, 2),
        (N, Q, ModelParts, 8),
        (N, Q, One, 4),
        (N, Kv, ModelParts, 8),
        (N, Kv, One, 4),
        (N, Kv, ModelParts, 8),
        (N, Kv, One, 4),
        (Normed, Q, One, 4),
        (Normed, Kv, One, 4),
        (N, Q, One, 4),
        (N, Kv, One, 4),
        (N, Heads, One, 16),
        (N, Q, One, 2),
        (N, KvHeads, One, 16),
        (N, Kv, One, 2),
        (KvHeads, N, One, 16),
        (Kv, N, One, 2),
        (Heads, One, Triangle, 4),
        (Heads, N, NParts, 8),
        (Heads, N, One, 8),
        (Heads, One, Triangle, 4),
        (Heads, One, Triangle, 4),
        (Heads, N, NParts, 8),
        (Heads, N, One, 8),
        (N, Q, NParts, 8),
        (N, Q, One, 4),
        (N, QParts, One, 4),
        (N, One, One, 16),
        (N, Q, One, 2),
        (N, Model, QParts, 8),
        (N, Model, One, 4),
        (N, ModelParts, One, 32),
        (N, One, One, 32),
        (N, Model, One, 2),
        (N, Ffn, ModelParts, 8),
        (N, Ffn, One, 4),
        (N, Ffn, ModelParts, 8),
        (N, Ffn, One, 4),
        (N, Ffn, One, 4),
        (N, FfnParts, One, 4),
        (N, One, One, 16),
        (N, Ffn, One, 2),
        (N, Model, FfnParts, 8),
        (N, Model, One, 4),
        (Outputs, ModelParts, One, 32),
        (Outputs, One, One, 32),
        (Outputs, Model, One, 2),
        (Outputs, Vocab, ModelParts, 8),
        (Outputs, Vocab, One, 4),
        (Penalised, Vocab, One, 4),
        (Adjusted, Vocab, One, 4),
        (Outputs, VocabParts, One, 8),
        (Outputs, One, One, 8),
        (Ranked, Vocab, One, 4),
        (TopK, Steps, Search, 16),
        (TopP, Steps, Search, 16),
        (Drawn, Vocab, One, 4),
        (Drawn, VocabParts, One, 8),
        (Drawn, One, One, 16),
        (Outputs, One, One, 4),
    ]
};

/// An entry of an array. For the triangular arrays 21, 24 and 25, `a`, `b`, `c` are head, token and the token looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 0 to 63.
    pub array: usize,
    /// The layer; 0 for arrays outside of the layers.
    pub layer: usize,
    /// First index.
    pub a: usize,
    /// Second index.
    pub b: usize,
    /// Third index.
    pub c: usize,
}

/// What a byte of a trace belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An entry.
    Entry(Entry),
    /// The zeros between an array and the next.
    Padding {
        /// The array before it.
        array: usize,
        /// Its layer.
        layer: usize,
    },
}

/// Sizes and places of the arrays of one trace.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Positions: prompt and all sampled tokens but the last.
    pub n: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that were sampled.
    pub outputs: usize,
    /// The model's shape.
    pub shape: Config,
    penalised: bool,
    biased: bool,
    drawn: bool,
    top_k: bool,
    top_p: bool,
    /// From the beginning of the array's part.
    start: [u64; ARRAYS],
    parts: [u64; 3],
}

/// The part of an array.
pub fn part(array: usize) -> Part {
    match array {
        ..2 => Part::Begin,
        2..48 => Part::Layer,
        _ => Part::End,
    }
}

fn aligned(place: u64) -> u64 {
    place.next_multiple_of(ALIGN)
}

impl Layout {
    /// The layout of the trace of an answer.
    ///
    /// # Errors
    /// [`TraceError::Unsupported`] for models whose traces are not defined, [`TraceError::Tokens`] for no tokens or more than the
    /// model's context.
    pub fn new(
        shape: &Config,
        prompt: usize,
        outputs: usize,
        sampling: &Sampling,
    ) -> Result<Layout, TraceError> {
        dense(shape)?;
        let n = prompt + outputs;
        if prompt == 0 || outputs == 0 || n - 1 > shape.context {
            return Err(TraceError::Tokens { prompt, outputs, context: shape.context });
        }
        let drawn = sampling.temperature_milli != 0 && sampling.top_k != 1;
        let mut layout = Layout {
            n: n - 1,
            prompt,
            outputs,
            shape: shape.clone(),
            penalised: !matches!(sampling.repetition_penalty_milli, 0 | 1000)
                || sampling.frequency_penalty_milli != 0
                || sampling.presence_penalty_milli != 0,
            biased: !sampling.logit_bias.is_empty(),
            drawn,
            top_k: drawn && sampling.top_k > 1,
            top_p: drawn && sampling.top_p_ppm < 1_000_000,
            start: [0; ARRAYS],
            parts: [0; 3],
        };
        for array in 0..ARRAYS {
            let sum = layout.parts[part(array) as usize];
            layout.start[array] = sum;
            layout.parts[part(array) as usize] = aligned(sum + layout.bytes(array));
        }
        Ok(layout)
    }

    fn dim(&self, dim: Dim) -> u64 {
        let segments = |n: usize| n.div_ceil(SEGMENT);
        let shape = &self.shape;
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let size = match dim {
            Dim::One => 1,
            Dim::N => self.n,
            Dim::Model => shape.dim,
            Dim::Q => q,
            Dim::Kv => kv,
            Dim::Heads => shape.heads,
            Dim::KvHeads => shape.kv_heads,
            Dim::Ffn => shape.ffn,
            Dim::Vocab => shape.vocab,
            Dim::Outputs => self.outputs,
            Dim::ModelParts => segments(shape.dim),
            Dim::NParts => segments(self.n),
            Dim::QParts => segments(q),
            Dim::FfnParts => segments(shape.ffn),
            Dim::VocabParts => segments(shape.vocab),
            Dim::Triangle => self.n * (self.n + 1) / 2,
            Dim::Normed if shape.qk_norm => self.n,
            Dim::Penalised if self.penalised => self.outputs,
            Dim::Adjusted if self.adjusted() => self.outputs,
            Dim::Drawn if self.drawn => self.outputs,
            Dim::Ranked if self.ranked() => self.outputs,
            Dim::TopK if self.top_k => self.outputs,
            Dim::TopP if self.top_p => self.outputs,
            Dim::Steps => STEPS,
            Dim::Search => 1 + segments(shape.vocab),
            Dim::Normed | Dim::Penalised | Dim::Adjusted => 0,
            Dim::Drawn | Dim::Ranked | Dim::TopK | Dim::TopP => 0,
        };
        size as u64
    }

    /// Bytes of an array.
    pub(super) fn bytes(&self, array: usize) -> u64 {
        let (x, y, z, width) = TABLE[array];
        self.dim(x) * self.dim(y) * self.dim(z) * width
    }

    /// Whether penalties change logits: array 53 is there.
    pub fn penalised(&self) -> bool {
        self.penalised
    }

    /// Whether penalties or biases change logits: array 54 is there.
    pub fn adjusted(&self) -> bool {
        self.penalised || self.biased
    }

    /// Whether tokens are drawn: arrays 60 to 62 are there.
    pub fn drawn(&self) -> bool {
        self.drawn
    }

    /// Whether the most likely tokens alone are drawn from, by number: array 58 is there.
    pub fn top_k(&self) -> bool {
        self.top_k
    }

    /// Whether the most likely tokens alone are drawn from, by their weight: array 59 is there.
    pub fn top_p(&self) -> bool {
        self.top_p
    }

    /// Either of them: array 57 is there.
    pub fn ranked(&self) -> bool {
        self.top_k || self.top_p
    }

    /// Length of the trace in bytes.
    pub fn size(&self) -> u64 {
        self.parts[0] + self.parts[1] * self.shape.layers as u64 + self.parts[2]
    }

    /// The number of parts: the beginning, each layer, the end.
    pub(super) fn sections(&self) -> usize {
        self.shape.layers + 2
    }

    /// First byte and length of a part, by its number.
    pub(super) fn section(&self, section: usize) -> (u64, u64) {
        let [begin, layer, end] = self.parts;
        match section {
            0 => (0, begin),
            s if s <= self.shape.layers => (begin + layer * (s as u64 - 1), layer),
            _ => (begin + layer * self.shape.layers as u64, end),
        }
    }

    /// First byte of an array in its part.
    pub(super) fn start(&self, array: usize) -> usize {
        self.start[array] as usize
    }

    /// The number of the part that holds an array.
    pub(super) fn section_of(&self, array: usize, layer: usize) -> usize {
        match part(array) {
            Part::Begin => 0,
            Part::Layer => layer + 1,
            Part::End => self.sections() - 1,
        }
    }

    /// First byte of an entry, and its bytes; `None` where there is no such entry.
    pub fn place(&self, entry: Entry) -> Option<(u64, u64)> {
        let Entry { array, layer, a, b, c } = entry;
        let &(x, y, z, width) = TABLE.get(array)?;
        let layers = if part(array) == Part::Layer { self.shape.layers } else { 1 };
        let (y, depth) = (self.dim(y), self.dim(z));
        let (first, second, third) = (a as u64, b as u64, c as u64);
        let index = if z == Dim::Triangle {
            (b < self.n && c <= b).then(|| first * depth + second * (second + 1) / 2 + third)
        } else {
            (second < y && third < depth).then(|| (first * y + second) * depth + third)
        };
        let index = index.filter(|_| first < self.dim(x) && layer < layers)?;
        Some((self.section(self.section_of(array, layer)).0 + self.start[array] + index * width, width))
    }

    /// What the byte at `place` belongs to; `None` beyond the end.
    pub fn find(&self, place: u64) -> Option<Found> {
        let [begin, layer, _] = self.parts;
        let layers = self.shape.layers as u64;
        let (arrays, section) = match place {
            p if p >= self.size() => return None,
            p if p < begin => (0..2, 0),
            p if p < begin + layers * layer => (2..48, 1 + ((p - begin) / layer) as usize),
            _ => (48..ARRAYS, self.sections() - 1),
        };
        let place = place - self.section(section).0;
        let number = if arrays.start == 2 { section - 1 } else { 0 };
        // The last that begins there or before and is not empty.
        let array = arrays.rev().find(|&array| self.start[array] <= place && self.bytes(array) > 0)?;
        if place >= self.start[array] + self.bytes(array) {
            return Some(Found::Padding { array, layer: number });
        }
        let (_, y, z, width) = TABLE[array];
        let index = (place - self.start[array]) / width;
        let (y, depth) = (self.dim(y), self.dim(z));
        let (a, b, c) = if z == Dim::Triangle {
            let (a, rest) = (index / depth, index % depth);
            let b = ((8 * rest + 1).isqrt() - 1) / 2;
            (a, b, rest - b * (b + 1) / 2)
        } else {
            (index / depth / y, index / depth % y, index % depth)
        };
        let entry = Entry { array, layer: number, a: a as usize, b: b as usize, c: c as usize };
        Some(Found::Entry(entry))
    }

    /// Segments of `n` with their ranges.
    pub(super) fn segment(n: usize, segment: usize) -> std::ops::Range<usize> {
        (segment * SEGMENT).min(n)..((segment + 1) * SEGMENT).min(n)
    }
}

/// Refuses models whose traces are not defined: all that `config` says beyond what a Llama has.
fn dense(shape: &Config) -> Result<(), TraceError> {
    let plain = Config {
        activation: Default::default(),
        post_norms: false,
        windows: Vec::new(),
        rope_layers: Vec::new(),
        rope_dim: None,
        attention_scale: None,
        attention_cap_q16: None,
        logit_cap_q16: None,
        embedding_scale_q16: None,
        experts: None,
        pooling: None,
        ..shape.clone()
    };
    if plain == *shape { Ok(()) } else { Err(TraceError::Model) }
}
