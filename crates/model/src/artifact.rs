//! The artifact file: reading, checking and weakening it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use assay_arithmetic::{CHUNK, Encoding, GROUP, MatrixView, Scale};
use assay_receipt::Bytes32;
use rayon::prelude::*;

use crate::manifest::{FORMAT, MAX_MANIFEST_BYTES, SectionKind, rope_section};
use crate::{Config, Error, Manifest, merkle};

/// The bytes of an artifact, mapped or in memory. `as_ref` must return the same bytes each time.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The first eight bytes of every artifact: a byte that is no text, the name, and a line end that copies as text spoil.
pub(crate) const MAGIC: [u8; 8] = *b"\xA5ASSAY\r\n";

/// Bytes before the manifest: magic, file format (4), zero (4), length of the manifest (8), all little-endian.
pub(crate) const HEADER_BYTES: usize = 24;

/// Where the data begins, given the manifest's length: a tile boundary, so that tiles and pages coincide.
pub(crate) fn data_offset(manifest_bytes: usize) -> usize {
    (HEADER_BYTES + manifest_bytes).next_multiple_of(merkle::TILE)
}

/// Writes header and manifest to the front of `file`, whose data already stands at its place.
pub(crate) fn write_front(file: &mut [u8], manifest: &[u8]) {
    file[..8].copy_from_slice(&MAGIC);
    file[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    file[16..24].copy_from_slice(&(manifest.len() as u64).to_le_bytes());
    file[HEADER_BYTES..HEADER_BYTES + manifest.len()].copy_from_slice(manifest);
}

/// A model in integers, ready to run: the weights stay where the caller's bytes are, norms, biases, scales and rotary
/// tables (a few per cent of the file) are decoded once.
pub struct Artifact {
    bytes: Bytes,
    manifest: Manifest,
    id: Bytes32,
    data: Range<usize>,
    /// Whether the weights are missing.
    bare: bool,
    embedding: Matrix,
    layers: Vec<LayerParts>,
    output_norm: Vec<i32>,
    output: Option<Matrix>,
    encoder: Option<EncoderParts>,
    /// Cosines and sines.
    ropes: Vec<[Vec<i32>; 2]>,
    tokenizer: Range<usize>,
    /// The hashes of all tiles, computed when the first opening is asked for.
    leaves: OnceLock<Vec<Bytes32>>,
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact")
            .field("id", &self.id)
            .field("name", &self.manifest.name)
            .finish_non_exhaustive()
    }
}

struct Matrix {
    rows: usize,
    cols: usize,
    encoding: Encoding,
    weights: Range<usize>,
    scales: Vec<Scale>,
    bias: Option<Vec<i32>>,
}

struct LayerParts {
    attention_norm: Vec<i32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    q_norm: Option<Vec<i32>>,
    k_norm: Option<Vec<i32>>,
    o: Matrix,
    post_attention_norm: Option<Vec<i32>>,
    ffn_norm: Vec<i32>,
    router: Option<Matrix>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    post_ffn_norm: Option<Vec<i32>>,
}

/// The weights of one layer. Norms and biases are Q16.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Weight of the norm before attention, `dim` long.
    pub attention_norm: &'a [i32],
    /// Query projection: `heads * head_dim` rows, `dim` columns.
    pub q: MatrixView<'a>,
    /// Key projection: `kv_heads * head_dim` rows, `dim` columns.
    pub k: MatrixView<'a>,
    /// Value projection: `kv_heads * head_dim` rows, `dim` columns.
    pub v: MatrixView<'a>,
    /// Bias of `q`, if the model has biases.
    pub q_bias: Option<&'a [i32]>,
    /// Bias of `k`, if the model has biases.
    pub k_bias: Option<&'a [i32]>,
    /// Bias of `v`, if the model has biases.
    pub v_bias: Option<&'a [i32]>,
    /// Weight of the norm of each query head, `head_dim` long, if the model has it.
    pub q_norm: Option<&'a [i32]>,
    /// Weight of the norm of each key head, `head_dim` long, if the model has it.
    pub k_norm: Option<&'a [i32]>,
    /// Output projection of attention: `dim` rows, `heads * head_dim` columns.
    pub o: MatrixView<'a>,
    /// Weight of the norm of attention's output, `dim` long, if the model has it.
    pub post_attention_norm: Option<&'a [i32]>,
    /// Weight of the norm before the feed-forward layer, `dim` long.
    pub ffn_norm: &'a [i32],
    /// Logits of the experts: a row for each, `dim` columns; in a model with experts.
    pub router: Option<MatrixView<'a>>,
    /// Gate projection: `ffn` rows, `dim` columns; in a model with experts `ffn` rows for each, one below the other.
    pub gate: MatrixView<'a>,
    /// Up projection, as the gate's.
    pub up: MatrixView<'a>,
    /// Down projection: `dim` rows, `ffn` columns; in a model with experts `dim` rows for each.
    pub down: MatrixView<'a>,
    /// Weight of the norm of the feed-forward layer's output, `dim` long, if the model has it.
    pub post_ffn_norm: Option<&'a [i32]>,
    /// Rotary table of the layer, if it rotates: cosines and sines in Q30, `rope_pairs` for each of `context` positions.
    pub rope: Option<(&'a [i32], &'a [i32])>,
}

/// The weight and the bias of a layer norm, decoded.
struct NormParts([Vec<i32>; 2]);

impl NormParts {
    fn view(&self) -> Norm<'_> {
        Norm { weight: &self.0[0], bias: &self.0[1] }
    }
}

/// What an encoder has instead of the layers of a decoder.
struct EncoderParts {
    positions: Vec<i32>,
    kind: Vec<i32>,
    norm: NormParts,
    layers: Vec<EncoderLayerParts>,
}

struct EncoderLayerParts {
    /// q, k, v, o, up, down.
    matrices: [Matrix; 6],
    attention_norm: NormParts,
    ffn_norm: NormParts,
}

/// A layer norm: weight and bias in Q16, `dim` long.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// What the normalised words are multiplied by.
    pub weight: &'a [i32],
    /// What is added then.
    pub bias: &'a [i32],
}

/// A matrix with a bias in Q16, one word a row.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// The weights.
    pub weights: MatrixView<'a>,
    /// The bias.
    pub bias: &'a [i32],
}

/// What an encoder has besides its layers and the embedding matrix, in Q16.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// Embeddings of the positions: `context` rows of `dim`.
    pub positions: &'a [i32],
    /// The embedding of the only kind of text, `dim` long, which is added to every token.
    pub kind: &'a [i32],
    /// Norm of the sum of a token's embeddings.
    pub norm: Norm<'a>,
}

/// A layer of an encoder.
#[derive(Debug, Clone, Copy)]
pub struct EncoderLayer<'a> {
    /// Query projection: `heads * head_dim` rows, `dim` columns.
    pub q: Linear<'a>,
    /// Key projection, as the query's.
    pub k: Linear<'a>,
    /// Value projection, as the query's.
    pub v: Linear<'a>,
    /// Output projection of attention: `dim` rows, `heads * head_dim` columns.
    pub o: Linear<'a>,
    /// Norm of the sum after attention.
    pub attention_norm: Norm<'a>,
    /// First feed-forward projection: `ffn` rows, `dim` columns.
    pub up: Linear<'a>,
    /// Second feed-forward projection: `dim` rows, `ffn` columns.
    pub down: Linear<'a>,
    /// Norm of the sum after the feed-forward layer.
    pub ffn_norm: Norm<'a>,
}

/// Whether an artifact without weights has a section of this kind.
fn is_small(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::Scales | SectionKind::Q16 | SectionKind::Tokenizer)
}

/// Decodes sections by name.
struct Reader<'a> {
    data: &'a [u8],
    offset: usize,
    sections: HashMap<&'a str, (SectionKind, Range<usize>)>,
}

impl<'a> Reader<'a> {
    fn section(&self, name: &str) -> Result<&(SectionKind, Range<usize>), Error> {
        // The directory equals the layout of the configuration, so the name is always there.
        self.sections.get(name).ok_or_else(|| Error::Manifest(format!("it has no section {name}")))
    }

    fn range(&self, name: &str) -> Result<Range<usize>, Error> {
        Ok(self.section(name)?.1.clone())
    }

    fn bytes(&self, name: &str) -> Result<&'a [u8], Error> {
        Ok(&self.data[self.range(name)?])
    }

    fn words(&self, name: &str) -> Result<Vec<i32>, Error> {
        let (words, _) = self.bytes(name)?.as_chunks::<4>();
        Ok(words.iter().map(|word| i32::from_le_bytes(*word)).collect())
    }

    fn rope(&self, name: &str) -> Result<Vec<i32>, Error> {
        let words = self.words(name)?;
        if words.iter().any(|word| word.unsigned_abs() > 3 << 29) {
            return Err(Error::Section { section: name.into(), reason: "it has an entry beyond 1.5".into() });
        }
        Ok(words)
    }

    fn norm(&self, name: &str) -> Result<NormParts, Error> {
        Ok(NormParts([self.words(name)?, self.words(&format!("{name}.bias"))?]))
    }

    fn encoder(&self, config: &Config) -> Result<EncoderParts, Error> {
        let (dim, ffn, inner) = (config.dim, config.ffn, config.heads * config.head_dim);
        let layer = |i: usize| {
            let matrix =
                |part: &str, rows, cols| self.matrix(&format!("layers.{i}.{part}"), rows, cols, true);
            Ok(EncoderLayerParts {
                matrices: [
                    matrix("q", inner, dim)?,
                    matrix("k", inner, dim)?,
                    matrix("v", inner, dim)?,
                    matrix("o", dim, inner)?,
                    matrix("up", ffn, dim)?,
                    matrix("down", dim, ffn)?,
                ],
                attention_norm: self.norm(&format!("layers.{i}.attention_norm"))?,
                ffn_norm: self.norm(&format!("layers.{i}.ffn_norm"))?,
            })
        };
        Ok(EncoderParts {
            positions: self.words("position_embedding")?,
            kind: self.words("type_embedding")?,
            norm: self.norm("embedding_norm")?,
            layers: (0..config.layers).map(layer).collect::<Result<_, Error>>()?,
        })
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Matrix, Error> {
        let weights_name = format!("{name}.weights");
        let (kind, weights) = self.section(&weights_name)?;
        let encoding = kind
            .encoding()
            .ok_or_else(|| Error::Manifest(format!("its section {weights_name} does not hold weights")))?;
        let scales_name = format!("{name}.scales");
        let (scales, _) = self.bytes(&scales_name)?.as_chunks::<8>();
        let scales: Option<Vec<Scale>> = scales.iter().map(|bytes| Scale::from_bytes(*bytes)).collect();
        let scales = scales.ok_or_else(|| Error::Section {
            section: scales_name,
            reason: "it has a scale that is not normalised".into(),
        })?;
        let bias = if bias { Some(self.words(&format!("{name}.bias"))?) } else { None };
        let weights = self.offset + weights.start..self.offset + weights.end;
        Ok(Matrix { rows, cols, encoding, weights, scales, bias })
    }
}

impl Artifact {
    /// Reads the artifact's front and small sections. Everything is bounds-checked; weights are not read.
    ///
    /// The caller who expects a certain model compares [`Artifact::id`]; whether the contents match the id is what
    /// [`Artifact::verify`] finds out.
    ///
    /// # Errors
    /// Every way in which the file can contradict the format, see [`Error`].
    pub fn parse(bytes: Bytes) -> Result<Artifact, Error> {
        let file: &[u8] = (*bytes).as_ref();
        let Some((header, rest)) = file.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Error::NotAnArtifact);
        };
        let [m0, m1, m2, m3, m4, m5, m6, m7, f0, f1, f2, f3, zero @ .., l0, l1, l2, l3, l4, l5, l6, l7] =
            *header;
        if [m0, m1, m2, m3, m4, m5, m6, m7] != MAGIC {
            return Err(Error::NotAnArtifact);
        }
        let format = u32::from_le_bytes([f0, f1, f2, f3]);
        if format != FORMAT {
            return Err(Error::FormatVersion { found: format, expected: FORMAT });
        }
        let length = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        if zero != [0; 4] || length > MAX_MANIFEST_BYTES {
            return Err(Error::Section {
                section: "header".into(),
                reason: "its fields are out of range".into(),
            });
        }
        let length = length as usize; // at most 8 MiB
        let start = data_offset(length);
        let cut = |expected: u64| Error::Length { expected, found: file.len() as u64 };
        let manifest_bytes = rest.get(..length).ok_or_else(|| cut(start as u64))?;
        let manifest = Manifest::parse(manifest_bytes)?;
        if manifest.format != FORMAT {
            return Err(Error::FormatVersion { found: manifest.format, expected: FORMAT });
        }
        if manifest.arithmetic != assay_arithmetic::VERSION {
            let expected = assay_arithmetic::VERSION;
            return Err(Error::ArithmeticVersion { found: manifest.arithmetic, expected });
        }
        let expected = start as u64 + manifest.data_bytes;
        if file.len() as u64 != expected {
            return Err(cut(expected));
        }
        if file[HEADER_BYTES + length..start].iter().any(|byte| *byte != 0) {
            return Err(Error::Section {
                section: "header".into(),
                reason: "its padding is not zero".into(),
            });
        }
        let id = merkle::keccak(manifest_bytes);
        let data = start..file.len();
        // The file has `expected` bytes in memory, so every offset fits a usize.
        let ranges =
            manifest.sections.iter().map(|s| s.offset as usize..(s.offset + s.bytes) as usize).collect();
        Artifact::read(bytes, data, id, manifest, ranges, None)
    }

    /// A model without its weights, of the manifest's bytes, the [`Artifact::small_sections`] and the first rows of each
    /// rotary table (cosines, then sines). It says what the model is and has everything but the weights, and can neither
    /// run nor be verified: whoever trusts it has it from whom they trust.
    ///
    /// # Errors
    /// As [`Artifact::parse`].
    pub fn without_weights(
        manifest: &[u8],
        sections: Bytes,
        ropes: Vec<[Vec<i32>; 2]>,
    ) -> Result<Artifact, Error> {
        let id = merkle::keccak(manifest);
        let manifest = Manifest::parse(manifest)?;
        if manifest.arithmetic != assay_arithmetic::VERSION {
            let expected = assay_arithmetic::VERSION;
            return Err(Error::ArithmeticVersion { found: manifest.arithmetic, expected });
        }
        let mut end = 0u64;
        let mut ranges = Vec::with_capacity(manifest.sections.len());
        let found = (*sections).as_ref().len() as u64;
        for section in &manifest.sections {
            let start = end;
            if is_small(section.kind) {
                end = end.saturating_add(section.bytes);
                if end > found {
                    return Err(Error::Length { expected: end, found });
                }
            }
            ranges.push(start as usize..end as usize); // within what is in memory
        }
        if end != found {
            return Err(Error::Length { expected: end, found });
        }
        Artifact::read(sections, 0..end as usize, id, manifest, ranges, Some(ropes))
    }

    /// The bytes of the sections that are neither weights nor rotary tables, in the order of the directory: scales,
    /// norms, biases and the tokenizer.
    pub fn small_sections(&self) -> impl Iterator<Item = &[u8]> {
        let small = self.manifest.sections.iter().filter(|section| is_small(section.kind));
        small.map(|s| {
            self.slice(self.data.start + s.offset as usize..self.data.start + (s.offset + s.bytes) as usize)
        })
    }

    /// Whether the weights are there: not in what [`Artifact::without_weights`] made.
    pub fn has_weights(&self) -> bool {
        !self.bare
    }

    /// Decodes the small sections. `ranges` are within `data`, one a section; rotary tables are given or read.
    fn read(
        bytes: Bytes,
        data: Range<usize>,
        id: Bytes32,
        manifest: Manifest,
        ranges: Vec<Range<usize>>,
        ropes: Option<Vec<[Vec<i32>; 2]>>,
    ) -> Result<Artifact, Error> {
        let sections = manifest
            .sections
            .iter()
            .zip(ranges)
            .map(|(s, range)| (s.name.as_str(), (s.kind, range)))
            .collect();
        let start = data.start;
        let read = Reader { data: &(*bytes).as_ref()[data.clone()], offset: start, sections };

        let config = &manifest.config;
        let (dim, ffn) = (config.dim, config.ffn);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let encoder = config.pooling.map(|_| read.encoder(config)).transpose()?;
        let decoders = if encoder.is_some() { 0 } else { config.layers };
        let layers: Result<Vec<LayerParts>, Error> = (0..decoders)
            .map(|i| {
                let name = |part: &str| format!("layers.{i}.{part}");
                let norm = |there: bool, part: &str| there.then(|| read.words(&name(part))).transpose();
                let experts = config.experts.map_or(1, |experts| experts.count);
                Ok(LayerParts {
                    attention_norm: read.words(&name("attention_norm"))?,
                    q: read.matrix(&name("q"), q, dim, config.qkv_bias)?,
                    k: read.matrix(&name("k"), kv, dim, config.qkv_bias)?,
                    v: read.matrix(&name("v"), kv, dim, config.qkv_bias)?,
                    q_norm: norm(config.qk_norm, "q_norm")?,
                    k_norm: norm(config.qk_norm, "k_norm")?,
                    o: read.matrix(&name("o"), dim, q, false)?,
                    post_attention_norm: norm(config.post_norms, "post_attention_norm")?,
                    ffn_norm: read.words(&name("ffn_norm"))?,
                    router: config
                        .experts
                        .map(|_| read.matrix(&name("router"), experts, dim, false))
                        .transpose()?,
                    gate: read.matrix(&name("gate"), experts * ffn, dim, false)?,
                    up: read.matrix(&name("up"), experts * ffn, dim, false)?,
                    down: read.matrix(&name("down"), experts * dim, ffn, false)?,
                    post_ffn_norm: norm(config.post_norms, "post_ffn_norm")?,
                })
            })
            .collect();
        let tied = config.tied_embeddings;
        let tokenizer = read.range("tokenizer")?;
        Ok(Artifact {
            id,
            bare: ropes.is_some(),
            embedding: read.matrix("embedding", config.vocab, dim, false)?,
            layers: layers?,
            output_norm: if encoder.is_some() { Vec::new() } else { read.words("output_norm")? },
            encoder,
            output: if tied { None } else { Some(read.matrix("output", config.vocab, dim, false)?) },
            ropes: match ropes {
                Some(ropes) => ropes,
                None => (0..config.rope_tables())
                    .map(|table| {
                        Ok([
                            read.rope(&rope_section("rope_cos", table))?,
                            read.rope(&rope_section("rope_sin", table))?,
                        ])
                    })
                    .collect::<Result<_, Error>>()?,
            },
            tokenizer: start + tokenizer.start..start + tokenizer.end,
            leaves: OnceLock::new(),
            data,
            manifest,
            bytes,
        })
    }

    fn slice(&self, range: Range<usize>) -> &[u8] {
        &(*self.bytes).as_ref()[range]
    }

    fn view<'a>(&'a self, matrix: &'a Matrix) -> MatrixView<'a> {
        let Matrix { rows, cols, encoding, ref scales, .. } = *matrix;
        MatrixView { rows, cols, encoding, weights: self.slice(matrix.weights.clone()), scales }
    }

    /// The model id: keccak256 of the manifest's bytes.
    pub fn id(&self) -> Bytes32 {
        self.id
    }

    /// What the artifact says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.manifest.config
    }

    /// The Hugging Face `tokenizer.json`.
    pub fn tokenizer_json(&self) -> &[u8] {
        self.slice(self.tokenizer.clone())
    }

    /// The embedding matrix: `vocab` rows, `dim` columns.
    pub fn embedding(&self) -> MatrixView<'_> {
        self.view(&self.embedding)
    }

    /// The output matrix, which is the embedding matrix in a model with tied embeddings.
    pub fn output(&self) -> MatrixView<'_> {
        self.view(self.output.as_ref().unwrap_or(&self.embedding))
    }

    /// The weight of the norm before the output matrix, Q16, `dim` long; empty in an encoder.
    pub fn output_norm(&self) -> &[i32] {
        &self.output_norm
    }

    /// What an encoder has besides its layers; `None` in a model that writes text.
    pub fn encoder(&self) -> Option<Encoder<'_>> {
        let parts = self.encoder.as_ref()?;
        Some(Encoder { positions: &parts.positions, kind: &parts.kind, norm: parts.norm.view() })
    }

    /// Layer `index` of an encoder; `None` where there is none.
    pub fn encoder_layer(&self, index: usize) -> Option<EncoderLayer<'_>> {
        let parts = self.encoder.as_ref()?.layers.get(index)?;
        let [q, k, v, o, up, down] = parts.matrices.each_ref().map(|matrix| Linear {
            weights: self.view(matrix),
            bias: matrix.bias.as_deref().unwrap_or_default(), // an encoder's matrices have them
        });
        let (attention_norm, ffn_norm) = (parts.attention_norm.view(), parts.ffn_norm.view());
        Some(EncoderLayer { q, k, v, o, attention_norm, up, down, ffn_norm })
    }

    /// The weights of layer `index` of a model that writes text.
    ///
    /// # Panics
    /// If `index` is not below `config().layers`, or the model is an encoder.
    pub fn layer(&self, index: usize) -> Layer<'_> {
        let parts = &self.layers[index];
        Layer {
            attention_norm: &parts.attention_norm,
            q: self.view(&parts.q),
            k: self.view(&parts.k),
            v: self.view(&parts.v),
            q_bias: parts.q.bias.as_deref(),
            k_bias: parts.k.bias.as_deref(),
            v_bias: parts.v.bias.as_deref(),
            q_norm: parts.q_norm.as_deref(),
            k_norm: parts.k_norm.as_deref(),
            o: self.view(&parts.o),
            post_attention_norm: parts.post_attention_norm.as_deref(),
            ffn_norm: &parts.ffn_norm,
            router: parts.router.as_ref().map(|router| self.view(router)),
            gate: self.view(&parts.gate),
            up: self.view(&parts.up),
            down: self.view(&parts.down),
            post_ffn_norm: parts.post_ffn_norm.as_deref(),
            rope: self.config().rope_table(index).map(|table| {
                let [cos, sin] = &self.ropes[table];
                (&cos[..], &sin[..])
            }),
        }
    }

    /// Hashes all data and compares it with the manifest; also checks that every weight is within the bounds of the
    /// arithmetic and that the tokenizer is the one named. `progress` is called with the bytes done and the bytes in all.
    ///
    /// After this, every byte of the file is the one that [`Artifact::id`] stands for.
    ///
    /// # Errors
    /// [`Error::Root`] if any byte of the data differs; [`Error::Section`] for a weight or a tokenizer that a correct
    /// importer would not have written.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Error> {
        let data = self.slice(self.data.clone());
        let total = data.len() as u64;
        let leaves = merkle::leaves(data, &mut |done| progress(done, total));
        let found = merkle::root(&leaves);
        if found != self.manifest.root {
            return Err(Error::Root { expected: self.manifest.root, found });
        }
        let bad =
            |section: &str, reason: &str| Error::Section { section: section.into(), reason: reason.into() };
        if merkle::keccak(self.tokenizer_json()) != self.manifest.tokenizer {
            return Err(bad("tokenizer", "its hash is not the one in the manifest"));
        }
        for section in &self.manifest.sections {
            let Some(encoding) = section.kind.encoding() else { continue };
            let weights = &data[section.offset as usize..(section.offset + section.bytes) as usize];
            let cols = section.cols as usize; // a row is in memory, so its length fits
            let valid = weights.par_chunks(encoding.group_bytes(cols)).all(|weights| {
                MatrixView { rows: GROUP, cols, encoding, weights, scales: &[Scale::ZERO; GROUP] }.is_valid()
            });
            if !valid {
                return Err(bad(&section.name, "it has a weight that is out of range"));
            }
        }
        // Openings may be asked for later; whoever set the leaves first computed the same ones.
        let _ = self.leaves.set(leaves);
        Ok(())
    }

    /// The number of tiles of the data.
    pub fn tiles(&self) -> u64 {
        merkle::tiles(self.manifest.data_bytes)
    }

    /// Tile number `index` of the data: 4,096 bytes, the last one may be shorter; `None` beyond the end.
    pub fn tile(&self, index: u64) -> Option<&[u8]> {
        let index = usize::try_from(index).ok()?;
        self.slice(self.data.clone()).chunks(merkle::TILE).nth(index)
    }

    /// The siblings that [`merkle::verify_tile`] needs for tile number `index`; `None` beyond the end. The first call
    /// hashes all data unless [`Artifact::verify`] has done so.
    pub fn tile_proof(&self, index: u64) -> Option<Vec<Bytes32>> {
        let leaves = self.leaves.get_or_init(|| merkle::leaves(self.slice(self.data.clone()), &mut |_| {}));
        merkle::Tree::new(leaves.clone()).proof(index)
    }
}

/// A copy of an artifact whose layers are rounded to 3 bits a weight, for demonstrations of a worker that serves a
/// cheaper model than it claims. Same shape and scales, another id, and a manifest that says so.
///
/// # Errors
/// What [`Artifact::parse`] returns for the bytes.
pub fn weaken(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let artifact = Artifact::parse(Arc::new(bytes.to_vec()))?;
    let mut manifest = artifact.manifest.clone();
    let old = artifact.data.clone();
    let mut data = artifact.slice(old).to_vec();
    drop(artifact);
    for section in &manifest.sections {
        // The embedding stays as it is: with 8 levels a run it alone would make the text unreadable.
        if let Some(encoding) = section.kind.encoding().filter(|_| section.name.starts_with("layers.")) {
            let weights = &mut data[section.offset as usize..(section.offset + section.bytes) as usize];
            for chunk in weights.chunks_exact_mut(encoding.chunk_bytes()) {
                let mut rounded = chunk.to_vec();
                three_bits(encoding, &mut rounded);
                let scales = &[Scale::ZERO; GROUP];
                let view = MatrixView { rows: GROUP, cols: CHUNK, encoding, weights: &rounded, scales };
                // A weight at the bound that would be rounded beyond it stays.
                if view.is_valid() {
                    chunk.copy_from_slice(&rounded);
                }
            }
        }
    }
    manifest.name.push_str(" (rounded to 3 bits)");
    manifest.source.weakened = true;
    manifest.root = merkle::root(&merkle::leaves(&data, &mut |_| {}));
    let front = manifest.canonical();
    let start = data_offset(front.len());
    let mut file = vec![0; start];
    write_front(&mut file, &front);
    file.append(&mut data);
    Ok(file)
}

/// Sets the integers of a chunk, but for their top three bits, to the middle of what those leave open.
fn three_bits(encoding: Encoding, chunk: &mut [u8]) {
    let (parameters, quants) = chunk.split_at_mut(8 * GROUP);
    let (keep, middle) = match encoding {
        Encoding::Q4 => (0xee, 0),
        Encoding::Q6 => (0x88, 0x44), // the low four bits; the high two are in the last quarter of a row
        Encoding::Q8 => (0xe0, 0x10),
    };
    for row in quants.chunks_exact_mut(8 * encoding.bits() as usize) {
        let length = if encoding == Encoding::Q6 { 32 } else { row.len() };
        row[..length].iter_mut().for_each(|byte| *byte = *byte & keep | middle);
    }
    if encoding == Encoding::Q4 {
        // Half a step is no integer here: the offset takes it, k/8 being a step.
        for pair in parameters.as_chunks_mut::<4>().0 {
            let [k, m] = [[pair[0], pair[1]], [pair[2], pair[3]]].map(i16::from_le_bytes);
            [pair[2], pair[3]] = m.saturating_add(k / 16).to_le_bytes();
        }
    }
}
