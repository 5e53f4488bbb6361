//! From named tensors to an artifact: quantisation, rotary tables, hashing. Both formats end here.

use std::collections::HashMap;
use std::ops::Range;

use assay_arithmetic::{CHUNK, Encoding, GROUP, Scale};
use assay_receipt::Bytes32;
use rayon::prelude::*;

use crate::artifact::{data_offset, write_front};
use crate::dequantise::{Run, TensorType};
use crate::manifest::{self, FORMAT, MAX_CONTEXT, SectionKind};
use crate::{Config, Error, Manifest, Section, Source, SourceFormat, SpecialTokens, Tokenizer, merkle};

/// The magnitude that the largest weight of a row gets. Below [`assay_arithmetic::WEIGHT_MAX`] by what the roundings of
/// its factor, offset and product can add, half a unit each, and that of the scale.
const TOP: f64 = 8189.0;

/// The magnitude that a factor may get; reached only by runs that do not use all of their integers.
const FACTOR_TOP: f64 = assay_arithmetic::FACTOR_MAX as f64 - 4.0;

/// What the residual stream of models with norms of outputs (Gemma) is divided by: the float models let it grow far beyond
/// 2^15, where the integers end (104,000 in Gemma 3 270M). All that reads it is a norm, which does not see a factor.
pub(crate) const RESIDUAL_DIVISOR: f64 = 64.0;

/// A tensor in the source file. Its shape is rows and columns; a vector has one row.
#[derive(Debug, Clone)]
pub(crate) struct Tensor<'a> {
    /// Its name in the source, for error messages.
    pub(crate) name: String,
    pub(crate) kind: TensorType,
    /// As in the source, slowest dimension first.
    pub(crate) shape: Vec<u64>,
    /// Exactly the bytes that shape and type imply: in one piece, or in pieces of as many rows each.
    pub(crate) pieces: Vec<&'a [u8]>,
}

impl<'a> Tensor<'a> {
    /// Cuts a matrix into parts of so many rows, which are all of its rows.
    pub(crate) fn split(&self, parts: &[usize]) -> Result<Vec<Tensor<'a>>, Error> {
        let total = parts.iter().fold(0, |sum: usize, rows| sum.saturating_add(*rows));
        let cols = *self.shape.last().unwrap_or(&0);
        let row = self.row_bytes(total, usize::try_from(cols).unwrap_or(usize::MAX))?;
        let [mut rest] = self.pieces[..] else {
            return Err(Error::Unsupported(format!("the tensor {} in several pieces", self.name)));
        };
        Ok(parts
            .iter()
            .map(|&rows| {
                let (bytes, after) = rest.split_at(rows * row); // the product was checked with the shape
                rest = after;
                let shape = vec![rows as u64, cols];
                Tensor { name: self.name.clone(), kind: self.kind, shape, pieces: vec![bytes] }
            })
            .collect())
    }

    /// Puts matrices of `rows` rows one below the other.
    pub(crate) fn stack(parts: Vec<Tensor<'a>>, rows: usize, cols: usize) -> Result<Tensor<'a>, Error> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().ok_or_else(|| Error::Unsupported("a layer without experts".into()))?;
        whole.row_bytes(rows, cols)?;
        for part in parts {
            part.row_bytes(rows, cols)?;
            if part.kind != whole.kind {
                let (name, other) = (&part.name, &whole.name);
                return Err(Error::Unsupported(format!("the tensor {name} of another type than {other}")));
            }
            whole.pieces.extend(part.pieces);
        }
        whole.shape.insert(0, whole.pieces.len() as u64);
        Ok(whole)
    }

    /// A row; `bytes` is what [`Tensor::row_bytes`] returned.
    fn row(&self, row: usize, bytes: usize) -> Option<&'a [u8]> {
        let rows = self.pieces.first()?.len() / bytes;
        let start = row % rows * bytes;
        self.pieces.get(row / rows)?.get(start..start + bytes)
    }

    /// Checks the shape and returns the bytes of a row.
    fn row_bytes(&self, rows: usize, cols: usize) -> Result<usize, Error> {
        let fits = match *self.shape {
            [n] => rows == 1 && n == cols as u64,
            [r, c] => r == rows as u64 && c == cols as u64,
            // Matrices one below the other.
            [n, r, c] => n.checked_mul(r) == Some(rows as u64) && c == cols as u64,
            _ => false,
        };
        let bytes = self.kind.bytes(cols as u64).and_then(|bytes| usize::try_from(bytes).ok());
        let length = self.pieces.iter().map(|piece| piece.len()).sum();
        match bytes {
            Some(bytes) if fits && bytes.checked_mul(rows) == Some(length) => Ok(bytes),
            _ => Err(Error::Shape {
                tensor: self.name.clone(),
                expected: [rows, cols],
                found: self.shape.clone(),
            }),
        }
    }

    /// All elements of a vector, finite.
    pub(crate) fn vector(&self, length: usize) -> Result<Vec<f32>, Error> {
        self.values(1, length)
    }

    /// All elements of a matrix, finite.
    fn values(&self, rows: usize, cols: usize) -> Result<Vec<f32>, Error> {
        let bytes = self.row_bytes(rows, cols)?;
        let mut out = vec![0.0; rows * cols]; // as many as there are elements in the file
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            if let Some(row) = self.row(i, bytes) {
                self.kind.decode(row, out);
            }
        }
        if out.iter().all(|x| x.is_finite()) {
            Ok(out)
        } else {
            Err(Error::Weight { tensor: self.name.clone(), row: 0 })
        }
    }
}

/// How the rotary frequencies of a model are changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// All frequencies are divided by the factor.
    Linear(f64),
    /// Frequency `i` is divided by entry `i`.
    Factors(Vec<f32>),
    /// Llama 3.1: long waves are divided by the factor, short ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low_frequency_factor: f64,
        high_frequency_factor: f64,
        original_context: f64,
    },
}

/// One rotary table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    pub(crate) base: f64,
    pub(crate) scaling: RopeScaling,
    /// What cosines and sines are multiplied by: 1, or a little more in models with scaled long contexts.
    pub(crate) gain: f64,
}

/// Everything that one format's reader finds out.
pub(crate) struct Model<'a> {
    pub(crate) format: SourceFormat,
    pub(crate) name: String,
    pub(crate) licence: Option<String>,
    pub(crate) config: Config,
    pub(crate) tokens: SpecialTokens,
    pub(crate) chat_template: Option<String>,
    pub(crate) tokenizer: Vec<u8>,
    /// As many as the configuration names.
    pub(crate) ropes: Vec<Rope>,
    /// What is added to the weights of norms: 1 where a format stores them less one.
    pub(crate) norm_offset: f64,
    /// By the artifact's section name, without `.weights`.
    pub(crate) tensors: HashMap<String, Tensor<'a>>,
}

/// The smaller of the trained context and what the tables cover.
pub(crate) fn context(trained: u64) -> usize {
    trained.min(MAX_CONTEXT) as usize
}

/// The window of each layer, for [`Config::windows`]: `window` where `local` says so, none where it would hide nothing.
pub(crate) fn windows(
    layers: usize,
    context: usize,
    window: usize,
    local: impl Fn(usize) -> bool,
) -> Vec<usize> {
    if window >= context || !(0..layers).any(&local) {
        return Vec::new();
    }
    (0..layers).map(|layer| if local(layer) { window } else { 0 }).collect()
}

/// Sixteen fractional bits, half away from zero, for a number from 0 to 32,768.
pub(crate) fn q16(value: f64, what: &str) -> Result<u32, Error> {
    if !(value.is_finite() && (0.0..=32_768.0).contains(&value)) {
        return Err(Error::Metadata(format!("{what} between 0 and 32768")));
    }
    Ok((value * 65_536.0).round() as u32)
}

/// What cosines and sines are multiplied by when a context of `original` tokens is stretched to `trained` (LongRoPE, as
/// Phi 3 uses it: arXiv 2402.13753 and 2404.14219).
pub(crate) fn long_gain(trained: u64, original: u64) -> f64 {
    if trained <= original || original < 2 {
        return 1.0;
    }
    (1.0 + libm::log(trained as f64 / original as f64) / libm::log(original as f64)).sqrt()
}

/// An epsilon with 32 fractional bits, half away from zero.
pub(crate) fn epsilon(value: f64) -> Result<u64, Error> {
    if !(value.is_finite() && value > 0.0 && value < 0.5) {
        return Err(Error::Metadata("epsilon for its norms between 0 and 0.5".into()));
    }
    Ok(((value * 4_294_967_296.0).round() as u64).max(1))
}

/// Quantises and writes the artifact. `hash` computes the hash of the source meanwhile on another thread.
pub(crate) fn build(
    model: Model<'_>,
    hash: impl FnOnce() -> [u8; 32] + Send,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<u8>, Error> {
    model.config.check()?;
    model.tokens.check(model.config.vocab)?;
    // A tokenizer that cannot be used, or that could give ids without an embedding, is found now and not by a request.
    let ids = Tokenizer::from_bytes(&model.tokenizer)?.vocabulary() as u64;
    manifest::limit("the number of token ids", ids, 1, model.config.vocab as u64)?;
    let encoding = |name: &str| {
        let tensor = model.tensors.get(name.trim_end_matches(".weights"));
        tensor.map_or(Encoding::Q8, |tensor| encoding(tensor.kind))
    };
    let sections = manifest::layout(&model.config, model.tokenizer.len() as u64, &encoding)?;
    // Every shape is checked before anything is allocated, so the output is bounded by the input: at most some forty
    // times its bytes for rows of one or two elements, which are filled up, and no more than 64 MiB of rotary tables.
    for section in &sections {
        if let Some((tensor, rows, cols)) = source(&model, section)? {
            tensor.row_bytes(rows, cols)?;
        }
    }
    let data_bytes = sections.last().map_or(0, |last| last.offset + last.bytes);
    let mut manifest = Manifest {
        format: FORMAT,
        arithmetic: assay_arithmetic::VERSION,
        name: model.name.clone(),
        licence: model.licence.clone(),
        source: Source { format: model.format, sha256: Bytes32::ZERO, weakened: false },
        config: model.config.clone(),
        tokens: model.tokens.clone(),
        chat_template: model.chat_template.clone(),
        tokenizer: merkle::keccak(&model.tokenizer),
        data_bytes,
        root: Bytes32::ZERO,
        sections,
    };
    // Hashes have a fixed length, so the front's length is known before they are.
    let front = manifest.canonical().len();
    manifest::limit("the manifest's length in bytes", front as u64, 1, manifest::MAX_MANIFEST_BYTES)?;
    let start = data_offset(front);
    let length = usize::try_from(start as u64 + data_bytes)
        .map_err(|_| Error::Unsupported("more weights than this machine can address".into()))?;
    let mut file = vec![0; length];
    let total = 2 * data_bytes;
    std::thread::scope(|scope| {
        let hash = scope.spawn(hash);
        let data = &mut file[start..];
        for section in &manifest.sections {
            fill(&model, section, data)?;
            progress(section.offset + section.bytes, total);
        }
        manifest.root = merkle::root(&merkle::leaves(data, &mut |done| progress(data_bytes + done, total)));
        manifest.source.sha256 =
            Bytes32(hash.join().map_err(|_| Error::Unsupported("a source that cannot be hashed".into()))?);
        Ok::<(), Error>(())
    })?;
    write_front(&mut file, &manifest.canonical());
    Ok(file)
}

/// The tensor that a section is made from with its expected rows and columns; `None` for tables, tokenizer, scales.
fn source<'m, 'a>(
    model: &'m Model<'a>,
    section: &Section,
) -> Result<Option<(&'m Tensor<'a>, usize, usize)>, Error> {
    let name = match section.kind {
        SectionKind::Weights4 | SectionKind::Weights6 | SectionKind::Weights8 => {
            section.name.trim_end_matches(".weights")
        }
        SectionKind::Q16 => &section.name,
        SectionKind::Scales | SectionKind::Q30 | SectionKind::Tokenizer => return Ok(None),
    };
    let tensor = model.tensors.get(name).ok_or_else(|| Error::MissingTensor(name.into()))?;
    Ok(Some((tensor, section.rows as usize, section.cols as usize)))
}

fn fill(model: &Model<'_>, section: &Section, data: &mut [u8]) -> Result<(), Error> {
    let range = section.offset as usize..(section.offset + section.bytes) as usize;
    match section.kind {
        SectionKind::Weights4 | SectionKind::Weights6 | SectionKind::Weights8 => {
            if let Some((tensor, rows, cols)) = source(model, section)? {
                // The scales are the next section: 8 bytes a row from the next multiple of 64.
                let scales = (range.end as u64).next_multiple_of(manifest::ALIGNMENT) as usize;
                matrix(tensor, rows, cols, range, scales, data)?;
            }
        }
        SectionKind::Q16 => {
            if let Some((tensor, rows, cols)) = source(model, section)? {
                for (out, value) in
                    data[range].as_chunks_mut::<4>().0.iter_mut().zip(tensor.values(rows, cols)?)
                {
                    let offset = if section.name.ends_with("norm") { model.norm_offset } else { 0.0 };
                    let divisor = if section.name.contains(".post_") { RESIDUAL_DIVISOR } else { 1.0 };
                    let word = ((f64::from(value) + offset) / divisor * 65_536.0).round();
                    if word.abs() > f64::from(i32::MAX) {
                        return Err(Error::Weight { tensor: tensor.name.clone(), row: 0 });
                    }
                    *out = (word as i32).to_le_bytes();
                }
            }
        }
        SectionKind::Scales => {} // written with the weights
        SectionKind::Q30 => {
            let (function, table) = section.name.split_once('.').unwrap_or((&section.name, "0"));
            let rope = table.parse().ok().and_then(|table: usize| model.ropes.get(table));
            let rope = rope.ok_or_else(|| Error::Manifest(format!("no {} was read", section.name)))?;
            let frequencies = frequencies(rope, 2 * model.config.rope_pairs())?;
            let function = if function == "rope_cos" { libm::cos } else { libm::sin };
            let words = data[range].as_chunks_mut::<4>().0;
            words.par_chunks_mut(frequencies.len()).enumerate().for_each(|(position, row)| {
                for (out, frequency) in row.iter_mut().zip(&frequencies) {
                    let value = function(position as f64 * frequency) * rope.gain;
                    *out = ((value * 1_073_741_824.0).round() as i32).to_le_bytes();
                }
            });
        }
        SectionKind::Tokenizer => data[range].copy_from_slice(&model.tokenizer),
    }
    Ok(())
}

/// How the weights of a tensor of this type are stored: so that its integers are kept.
fn encoding(kind: TensorType) -> Encoding {
    match kind {
        TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4_K => Encoding::Q4,
        TensorType::Q6_K => Encoding::Q6,
        TensorType::F32
        | TensorType::F16
        | TensorType::BF16
        | TensorType::Q5_0
        | TensorType::Q5_1
        | TensorType::Q5_K
        | TensorType::Q8_0 => Encoding::Q8,
    }
}

/// Turns a matrix into integers: weights to `weights` of `data`, scales from `scales` on.
fn matrix(
    tensor: &Tensor<'_>,
    rows: usize,
    cols: usize,
    weights: Range<usize>,
    scales: usize,
    data: &mut [u8],
) -> Result<(), Error> {
    let row_bytes = tensor.row_bytes(rows, cols)?;
    let encoding = encoding(tensor.kind);
    let (front, back) = data.split_at_mut(scales);
    let out = front[weights]
        .par_chunks_exact_mut(encoding.group_bytes(cols))
        .zip(back[..8 * rows].par_chunks_mut(8 * GROUP));
    out.enumerate().with_min_len(4).try_for_each_init(
        || Row::new(tensor.kind, cols),
        |row, (group, (out, scales))| {
            for (i, scale) in scales.chunks_exact_mut(8).enumerate() {
                let wrong = || Error::Weight { tensor: tensor.name.clone(), row: GROUP * group + i };
                let source = tensor.row(GROUP * group + i, row_bytes).ok_or_else(wrong)?;
                *scale.as_mut_array().ok_or_else(wrong)? =
                    row.quantise(source, i, out).ok_or_else(wrong)?.to_bytes();
            }
            Ok(())
        },
    )
}

/// A row on its way from the source to the artifact.
struct Row {
    kind: TensorType,
    cols: usize,
    values: Vec<f32>,
    integers: Vec<i8>,
    runs: Vec<Run>,
    /// Step and offset of each run, for integers of the encoding's width.
    affine: Vec<(f64, f64)>,
    parameters: Vec<[i16; 4]>,
}

impl Row {
    fn new(kind: TensorType, cols: usize) -> Row {
        let padded = cols.next_multiple_of(CHUNK);
        Row {
            kind,
            cols,
            values: vec![0.0; cols],
            integers: vec![0; padded],
            runs: Vec::new(),
            affine: Vec::new(),
            parameters: vec![[0; 4]; padded / CHUNK],
        }
    }

    /// Writes row `row` of a group and returns its scale; `None` if a weight is not finite.
    ///
    /// A run of the source is `step · q + offset`. With the row's scale `s`, rounded to `f32`, its factor and offset
    /// become `k = step · 2^(bits-1) / s` and `m = offset / s`, in `f64`, rounded half away from zero. A row whose scale
    /// is not a normal `f32` (below 2^-126) becomes zero.
    fn quantise(&mut self, source: &[u8], row: usize, group: &mut [u8]) -> Option<Scale> {
        let encoding = encoding(self.kind);
        let length = self.kind.run();
        self.read(source)?;
        let units = f64::from(1u32 << (encoding.bits() - 1));
        let mut top = 0f64;
        for ((step, offset), q) in self.affine.iter().zip(self.integers[..self.cols].chunks(length)) {
            let ends = q.iter().fold((0, 0), |(low, high), &q| (q.min(low), q.max(high)));
            for q in [ends.0, ends.1] {
                top = top.max((step * f64::from(q) + offset).abs() / TOP);
            }
            top = top.max(step.abs() * units / FACTOR_TOP);
        }
        let scale = top as f32;
        if !scale.is_finite() {
            return None;
        }
        self.parameters.fill([0; 4]);
        if scale < f32::MIN_POSITIVE {
            self.integers.fill(0);
            encoding.pack(row, &self.parameters, &self.integers, group);
            return Some(Scale::ZERO);
        }
        let s = f64::from(scale);
        for (i, (step, offset)) in self.affine.iter().enumerate() {
            let (k, m) = ((step * units / s).round() as i16, (offset / s).round() as i16);
            let parameters = &mut self.parameters[i * length / CHUNK];
            match encoding {
                Encoding::Q6 => parameters[i % 4] = k,
                Encoding::Q4 | Encoding::Q8 => parameters[i % 2 * 2..][..2].copy_from_slice(&[k, m]),
            }
        }
        encoding.pack(row, &self.parameters, &self.integers, group);
        Scale::from_f32(scale)
    }

    /// The integers and runs of a row. Floats are rounded to 8 bits in runs of 32, whose largest magnitude is 127.
    fn read(&mut self, source: &[u8]) -> Option<()> {
        self.runs.clear();
        self.affine.clear();
        let integers = &mut self.integers[..self.cols];
        match self.kind {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                self.kind.decode(source, &mut self.values);
                for (values, q) in self.values.chunks(32).zip(integers.chunks_mut(32)) {
                    if values.iter().any(|v| !v.is_finite()) {
                        return None;
                    }
                    let step = values.iter().fold(0f32, |max, v| max.max(v.abs())) as f64 / 127.0;
                    self.affine.push((step, 0.0));
                    for (q, v) in q.iter_mut().zip(values) {
                        *q = if step > 0.0 { (f64::from(*v) / step).round() as i8 } else { 0 };
                    }
                }
            }
            _ => {
                self.kind.integers(source, integers, &mut self.runs);
                // To signed integers of the encoding's width: `q - middle`, times `2^shift`.
                let (middle, shift) = match self.kind {
                    TensorType::Q4_1 | TensorType::Q4_K => (8, 0),
                    TensorType::Q5_1 | TensorType::Q5_K => (16, 3),
                    TensorType::Q5_0 => (0, 3),
                    _ => (0, 0),
                };
                integers.iter_mut().for_each(|q| *q = (*q - middle) << shift);
                for run in &self.runs {
                    let (step, offset) = (f64::from(run.step), f64::from(run.offset));
                    if !(step.is_finite() && offset.is_finite()) {
                        return None;
                    }
                    self.affine.push((step / f64::from(1 << shift), offset + f64::from(middle) * step));
                }
            }
        }
        Some(())
    }
}

/// The angle per position of each pair, in radians. `dim` elements of a head are rotated.
fn frequencies(rope: &Rope, dim: usize) -> Result<Vec<f64>, Error> {
    let base = rope.base;
    if !(1.0..=1.5).contains(&rope.gain) {
        return Err(Error::Unsupported(format!("rotary positions that are multiplied by {}", rope.gain)));
    }
    if !(base.is_finite() && base > 1.0) {
        return Err(Error::Metadata("base of its rotary frequencies above 1".into()));
    }
    let divisors_ok = match &rope.scaling {
        RopeScaling::None => true,
        RopeScaling::Linear(factor) => factor.is_finite() && *factor >= 1.0,
        RopeScaling::Factors(factors) => {
            factors.len() == dim / 2 && factors.iter().all(|f| f.is_finite() && *f >= 0.5)
        }
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context,
        } => {
            [*factor, *low, *high, *original_context].iter().all(|x| x.is_finite() && *x >= 1.0) && high > low
        }
    };
    if !divisors_ok {
        return Err(Error::Metadata("scaling of its rotary frequencies in range".into()));
    }
    Ok((0..dim / 2)
        .map(|i| {
            let frequency = libm::pow(base, -2.0 * i as f64 / dim as f64);
            match &rope.scaling {
                RopeScaling::None => frequency,
                RopeScaling::Linear(factor) => frequency / factor,
                RopeScaling::Factors(factors) => frequency / f64::from(factors[i]),
                RopeScaling::Llama3 {
                    factor,
                    low_frequency_factor,
                    high_frequency_factor,
                    original_context,
                } => {
                    let waves = original_context * frequency / std::f64::consts::TAU;
                    if waves < *low_frequency_factor {
                        frequency / factor
                    } else if waves > *high_frequency_factor {
                        frequency
                    } else {
                        let smooth =
                            (waves - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                }
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use assay_arithmetic::MatrixView;
    use proptest::prelude::*;

    use super::*;

    /// The weights and the scale of a row.
    fn row(kind: TensorType, source: &[u8], cols: usize) -> Option<(Vec<i16>, Scale)> {
        let encoding = encoding(kind);
        let mut group = vec![0; encoding.group_bytes(cols)];
        let scale = Row::new(kind, cols).quantise(source, 0, &mut group)?;
        let scales = [scale; GROUP];
        let view = MatrixView { rows: GROUP, cols, encoding, weights: &group, scales: &scales };
        assert!(view.is_valid());
        let mut out = vec![0; cols];
        view.row(0, &mut out);
        Some((out, scale))
    }

    fn floats(values: &[f32]) -> Option<(Vec<i16>, Scale)> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        row(TensorType::F32, &bytes, values.len())
    }

    #[test]
    fn floats_keep_eight_bits_a_run() {
        // One run of large numbers, one of small ones, and the beginning of a third.
        let values: Vec<f32> =
            (0..70).map(|i| ((i * 37 % 255) as f32 - 127.0) * if i < 32 { 1.0 } else { 0.01 }).collect();
        let (weights, scale) = floats(&values).unwrap();
        let unit = f64::from(scale.mantissa) * 2f64.powi(scale.exponent);
        for (i, (w, v)) in weights.iter().zip(&values).enumerate() {
            let run = values[i / 32 * 32..].iter().take(32).fold(0f32, |max, v| max.max(v.abs()));
            let error = (f64::from(*w) * unit - f64::from(*v)).abs();
            assert!(error <= f64::from(run) / 254.0 + 1.1 * unit, "{i}: {error}");
        }
        assert_eq!(weights.iter().map(|w| w.abs()).max().unwrap(), TOP as i16);
    }

    #[test]
    fn extreme_rows_stay_in_range() {
        for max in [f32::MAX, 1.0, 3.3e-7, f32::MIN_POSITIVE * 8189.0, f32::MIN_POSITIVE * 8200.0] {
            let (weights, scale) = floats(&[max, -max, max / 2.0]).unwrap();
            assert!(weights[0] >= TOP as i16 - 1 && weights[1] <= 1 - TOP as i16);
            assert!(scale.is_valid() && scale != Scale::ZERO);
        }
        for zero in [0.0, f32::MIN_POSITIVE, 1e-45] {
            assert_eq!(floats(&[zero, -zero]).unwrap(), (vec![0, 0], Scale::ZERO));
        }
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(floats(&[1.0, wrong]).is_none());
        }
    }

    proptest! {
        /// Random blocks of every quantised type: each weight is the source's to within two units of 8189, or nothing is
        /// imported because a factor is not finite.
        #[test]
        fn quantised_rows_keep_their_values(
            kind in prop::sample::select(vec![
                TensorType::Q4_0, TensorType::Q4_1, TensorType::Q5_0, TensorType::Q5_1, TensorType::Q8_0,
                TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K,
            ]),
            seed in any::<u64>(),
            blocks in 1usize..4,
        ) {
            let (elements, size) = kind.block();
            let mut state = seed;
            let bytes: Vec<u8> = (0..blocks * size)
                .map(|_| {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    (state >> 33) as u8
                })
                .collect();
            let mut values = vec![0.0; blocks * elements];
            kind.decode(&bytes, &mut values);
            let Some((weights, scale)) = row(kind, &bytes, values.len()) else {
                prop_assert!(values.iter().any(|v| !v.is_finite()));
                return Ok(());
            };
            let unit = f64::from(scale.mantissa) * 2f64.powi(scale.exponent);
            for (i, (w, v)) in weights.iter().zip(&values).enumerate() {
                let error = (f64::from(*w) * unit - f64::from(*v)).abs();
                prop_assert!(error <= 2.01 * unit, "{:?} {}: {} {} {}", kind, i, w, v, error / unit);
            }
        }
    }

    #[test]
    fn epsilons() {
        assert_eq!(epsilon(1e-5).unwrap(), 42_950);
        assert_eq!(epsilon(1e-6).unwrap(), 4_295);
        assert_eq!(epsilon(1e-30).unwrap(), 1);
        for wrong in [0.0, -1.0, 0.5, f64::NAN, f64::INFINITY] {
            assert!(epsilon(wrong).is_err());
        }
    }
}
