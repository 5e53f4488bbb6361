//! What the operation behind an entry reads: what an accusation has to open.

use assay_arithmetic::{Encoding, RopeStyle};
use assay_model::Manifest;

use super::layout::{Entry, Layout, SEGMENT, STEPS};

/// Bytes of one section of a model's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRange {
    /// The section's name.
    pub section: String,
    /// First byte, from the beginning of the data.
    pub place: u64,
    /// How many.
    pub length: u64,
}

/// What an operation reads, its own entry included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// First byte and length of each range of the trace.
    pub trace: Vec<(u64, u64)>,
    /// Ranges of the model's data, in the order in which a claim names their sections.
    pub model: Vec<ModelRange>,
}

struct Reader<'a> {
    layout: &'a Layout,
    manifest: &'a Manifest,
    entry: Entry,
    out: Reads,
}

/// What the operation that gives `entry` reads; `value` has the bytes of an entry of the trace, for what is looked up by number.
/// Arrays are numbered as in docs/disputes.md. `None` where there is no such entry, or none that an operation gives (array 0).
pub fn reads(
    layout: &Layout,
    manifest: &Manifest,
    entry: Entry,
    value: &dyn Fn(Entry) -> Option<Vec<u8>>,
) -> Option<Reads> {
    layout.place(entry).filter(|_| entry.array > 0)?;
    let mut reader = Reader { layout, manifest, entry, out: Reads::default() };
    reader.operation(value)?;
    Some(reader.out)
}

fn number(bytes: Option<Vec<u8>>) -> Option<u64> {
    bytes?.get(..4).map(|bytes| bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
}

impl Reader<'_> {
    /// `count` entries that lie side by side in a layer.
    fn line(&mut self, array: usize, layer: usize, a: usize, b: usize, c: usize, count: usize) -> Option<()> {
        let (place, width) = self.layout.place(Entry { array, layer, a, b, c })?;
        self.out.trace.push((place, width * count as u64));
        Some(())
    }

    /// The same in the entry's own layer.
    fn row(&mut self, array: usize, a: usize, b: usize, count: usize) -> Option<()> {
        self.line(array, self.entry.layer, a, b, 0, count)
    }

    /// `count` elements of `width` bytes of a section.
    fn section(&mut self, name: String, from: usize, count: usize, width: usize) -> Option<()> {
        let section = self.manifest.sections.iter().find(|section| section.name == name)?;
        let place = section.offset + (from * width) as u64;
        self.out.model.push(ModelRange { section: name, place, length: (count * width) as u64 });
        Some(())
    }

    /// Columns of a row of a matrix: the chunks of its group that hold them.
    fn weights(&mut self, name: &str, row: usize, from: usize, count: usize) -> Option<()> {
        let name = format!("{name}.weights");
        let section = self.manifest.sections.iter().find(|section| section.name == name)?;
        let bits = match section.kind.encoding()? {
            Encoding::Q4 => 4,
            Encoding::Q6 => 6,
            Encoding::Q8 => 8,
        };
        let (chunk, chunks) = (32 + 32 * bits, (section.cols as usize).div_ceil(64));
        let (first, length) = (row / 4 * chunks + from / 64, (from % 64 + count).div_ceil(64));
        self.section(name, first, length, chunk)
    }

    /// Entries of the residual stream that an operation of `array` reads.
    fn stream(&mut self, array: usize, from: usize, count: usize) -> Option<()> {
        let (row, layer) = (self.entry.a, self.entry.layer);
        match array {
            35..48 => self.line(34, layer, row, from, 0, count),
            48.. => self.line(47, self.layout.shape.layers - 1, row + self.layout.prompt - 1, from, 0, count),
            _ if layer == 0 => self.line(1, 0, row, from, 0, count),
            _ => self.line(47, layer - 1, row, from, 0, count),
        }
    }

    fn operation(&mut self, value: &dyn Fn(Entry) -> Option<Vec<u8>>) -> Option<()> {
        let layout = self.layout;
        let shape = &layout.shape;
        let Entry { array, layer, a, b, c } = self.entry;
        let (dim, q) = (shape.head_dim, shape.heads * shape.head_dim);
        let group = shape.heads / shape.kv_heads;
        let prefix = format!("layers.{layer}.");
        let segment = |total: usize, segment: usize| {
            let range = Layout::segment(total, segment);
            (range.start, range.len())
        };
        let segments = |total: usize| total.div_ceil(SEGMENT);
        // The tokens of a segment that token `t` may see.
        let past = |t: usize, s: usize| (s * SEGMENT, Layout::segment(t + 1, s).len());
        let logits = if layout.adjusted() { 54 } else { 52 };
        let norm = match array {
            48.. => "output_norm".to_owned(),
            35..48 => format!("{prefix}ffn_norm"),
            _ => format!("{prefix}attention_norm"),
        };
        // A matrix, the array of its inputs, and its columns.
        let (matrix, input, cols) = match array {
            ..7 => (format!("{prefix}q"), 4, shape.dim),
            7 | 8 => (format!("{prefix}k"), 4, shape.dim),
            9 | 10 => (format!("{prefix}v"), 4, shape.dim),
            11..35 => (format!("{prefix}o"), 32, q),
            35..40 => (format!("{prefix}gate"), 37, shape.dim),
            40 | 41 => (format!("{prefix}up"), 37, shape.dim),
            42..48 => (format!("{prefix}down"), 45, shape.ffn),
            _ => ((if shape.tied_embeddings { "embedding" } else { "output" }).to_owned(), 50, shape.dim),
        };
        self.line(array, layer, a, b, c, 1)?;
        match array {
            1 => {
                self.row(0, a, 0, 1)?;
                let token = number(value(Entry { array: 0, layer: 0, a, b: 0, c: 0 }))? as usize;
                if token < shape.vocab {
                    self.weights("embedding", token, b, 1)?;
                    self.section("embedding.scales".to_owned(), token, 1, 8)?;
                }
            }
            2 | 35 | 48 => {
                let (from, count) = segment(shape.dim, b);
                self.stream(array, from, count)?;
                self.section(norm, from, count, 4)?;
            }
            3 | 36 | 49 => self.row(array - 1, a, 0, segments(shape.dim))?,
            4 | 37 | 50 => {
                self.stream(array, b, 1)?;
                self.section(norm, b, 1, 4)?;
                self.row(array - 1, a, 0, 1)?;
            }
            5 | 7 | 9 | 33 | 38 | 40 | 46 | 51 => {
                let (from, count) = segment(cols, c);
                self.row(input, a, from, count)?;
                self.weights(&matrix, b, from, count)?;
            }
            6 | 8 | 10 | 34 | 39 | 41 | 47 | 52 => {
                self.row(array - 1, a, b, segments(cols))?;
                self.row(input - 1, a, 0, 1)?;
                self.section(format!("{matrix}.scales"), b, 1, 8)?;
                match array {
                    ..=10 if shape.qkv_bias => self.section(format!("{matrix}.bias"), b, 1, 4)?,
                    34 => self.stream(2, b, 1)?,
                    47 => self.row(34, a, b, 1)?,
                    _ => {}
                }
            }
            11 | 12 => {
                self.row(if array == 11 { 6 } else { 8 }, a, b - b % dim, dim)?;
                let name = if array == 11 { "q_norm" } else { "k_norm" };
                self.section(format!("{prefix}{name}"), 0, dim, 4)?;
            }
            13 | 14 => {
                let source = if array == 13 { 6 } else { 8 };
                let source = if shape.qk_norm { array - 2 } else { source };
                self.row(source, a, b - b % dim, dim)?;
                let (half, own) = (dim / 2, b % dim);
                let pair = match shape.rope {
                    RopeStyle::Half => own % half,
                    RopeStyle::Interleaved => own / 2,
                };
                self.section("rope_cos".to_owned(), a * half + pair, 1, 4)?;
                self.section("rope_sin".to_owned(), a * half + pair, 1, 4)?;
            }
            15 | 17 => self.row(if array == 15 { 13 } else { 14 }, a, b * dim, dim)?,
            19 => self.row(10, b, a * dim, dim)?,
            16 | 18 => {
                self.row(if array == 16 { 13 } else { 14 }, a, b, 1)?;
                self.row(array - 1, a, b / dim, 1)?;
            }
            20 => {
                self.row(10, b, a, 1)?;
                self.row(19, a / dim, b, 1)?;
            }
            21 => {
                let kv = a / group;
                self.row(15, b, a, 1)?;
                self.row(17, c, kv, 1)?;
                self.row(16, b, a * dim, dim)?;
                self.row(18, c, kv * dim, dim)?;
            }
            22 => {
                let (from, count) = past(b, c);
                if count > 0 {
                    self.line(21, layer, a, b, from, count)?;
                    self.row(19, a / group, from, count)?;
                }
            }
            23 => self.row(22, a, b, segments(layout.n))?,
            24 => {
                self.row(23, a, b, 1)?;
                self.line(21, layer, a, b, c, 1)?;
            }
            25 => {
                self.row(19, a / group, c, 1)?;
                self.row(23, a, b, 1)?;
                self.line(24, layer, a, b, c, 1)?;
            }
            26 => {
                let (from, count) = past(b, c);
                if count > 0 {
                    self.line(24, layer, a, b, from, count)?;
                }
            }
            27 => self.row(26, a, b, segments(layout.n))?,
            28 => {
                let (from, count) = past(a, c);
                if count > 0 {
                    let head = b / dim;
                    self.line(25, layer, head, a, from, count)?;
                    self.row(20, head / group * dim + b % dim, from, count)?;
                }
            }
            29 => {
                self.row(23, b / dim, a, 1)?;
                self.row(27, b / dim, a, 1)?;
                self.row(28, a, b, segments(layout.n))?;
            }
            30 | 43 => {
                let (from, count) = segment(if array == 30 { q } else { shape.ffn }, b);
                self.row(array - 1, a, from, count)?;
            }
            31 | 44 => self.row(array - 1, a, 0, segments(if array == 31 { q } else { shape.ffn }))?,
            32 | 45 => {
                self.row(array - 3, a, b, 1)?;
                self.row(array - 1, a, 0, 1)?;
            }
            42 => {
                self.row(39, a, b, 1)?;
                self.row(41, a, b, 1)?;
            }
            53 if a == 0 => self.row(0, 0, 0, layout.prompt)?,
            53 => {
                self.row(53, a - 1, b, 1)?;
                self.row(0, layout.prompt - 1 + a, 0, 1)?;
            }
            54 => {
                self.row(52, a, b, 1)?;
                if layout.penalised() {
                    self.row(53, a, b, 1)?;
                }
            }
            55 => {
                let (from, count) = segment(shape.vocab, b);
                self.row(logits, a, from, count)?;
            }
            56 => self.row(55, a, 0, segments(shape.vocab))?,
            57 => {
                self.row(logits, a, b, 1)?;
                self.row(56, a, 0, 1)?;
            }
            58 | 59 if c > 0 => {
                let (from, count) = segment(shape.vocab, c - 1);
                self.row(logits, a, from, count)?;
                self.row(57, a, from, count)?;
                self.line(array, 0, a, b, 0, 1)?;
                if array == 59 && layout.top_k() {
                    self.line(58, 0, a, STEPS - 1, 0, 1)?;
                }
            }
            58 | 59 if b > 1 => {
                self.line(array, 0, a, b - 1, 0, 1 + segments(shape.vocab))?;
                self.line(array, 0, a, 0, 1, segments(shape.vocab))?;
            }
            58 | 59 => {}
            60 => {
                self.row(logits, a, b, 1)?;
                if layout.ranked() {
                    self.row(57, a, b, 1)?;
                    self.line(if layout.top_p() { 59 } else { 58 }, 0, a, STEPS - 1, 0, 1)?;
                } else {
                    self.row(56, a, 0, 1)?;
                }
            }
            61 => {
                let (from, count) = segment(shape.vocab, b);
                self.row(60, a, from, count)?;
            }
            62 => self.row(61, a, 0, segments(shape.vocab))?,
            _ => {
                self.row(56, a, 0, 1)?;
                if layout.drawn() {
                    self.row(62, a, 0, 1)?;
                    let drawn = number(value(Entry { array: 62, layer: 0, a, b: 0, c: 0 }))? as usize;
                    if drawn < segments(shape.vocab) {
                        let (from, count) = segment(shape.vocab, drawn);
                        self.row(60, a, from, count)?;
                    }
                }
            }
        }
        Some(())
    }
}
