//! The manifest: what an artifact says about itself, in canonical JSON.

use std::collections::HashMap;

use crate::Error;
use crate::tokenizer::MAX_TOKENIZER_BYTES;
use assay_arithmetic::{Activation, Encoding, GROUP, RopeStyle, SoftCap};
use assay_receipt::Bytes32;
use serde::{Deserialize, Serialize};

/// The version of the artifact's file format.
pub(crate) const FORMAT: u32 = 2;

/// Every section begins at a multiple of this many bytes, so that mapped weights are aligned for any vector unit.
pub(crate) const ALIGNMENT: u64 = 64;

/// The most positions that the rotary tables cover; also the longest context that the integer engine serves.
pub(crate) const MAX_CONTEXT: u64 = 32_768;

/// The longest manifest that is read, in bytes: 1,024 layers and a long chat template fit several times.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 8 << 20;

/// Which family the model belongs to. Only importers and people look at it: what differs is said by the other fields of
/// [`Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama 1 to 3, Mistral, SmolLM 1 and 2 and others of the same shape.
    Llama,
    /// Llama with experts.
    Mixtral,
    /// Qwen 2 and 2.5: query, key and value have biases.
    Qwen2,
    /// Qwen 3: queries and keys are normalised per head.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Gemma 2: norms around, GeGLU, scores and logits are capped, every other layer has a window.
    Gemma2,
    /// Gemma 3: norms around, GeGLU, five of six layers have a window and rotate faster.
    Gemma3,
    /// Phi 3: published with fused matrices, which the import takes apart.
    Phi3,
    /// SmolLM 3: every fourth layer does not rotate.
    Smollm3,
    /// BERT and MiniLM: an encoder, which turns a text into a vector.
    Bert,
}

/// How [`RopeStyle`] is written in a manifest.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RopeStyle", rename_all = "snake_case")]
enum RopeStyleText {
    Interleaved,
    Half,
}

/// How [`Activation`] is written in a manifest.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Activation", rename_all = "snake_case")]
enum ActivationText {
    Silu,
    GeluTanh,
    GeluErf,
}

/// Experts of the feed-forward layers. Each is as wide as [`Config::ffn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts in a layer, 2 to 1,024.
    pub count: usize,
    /// Experts that a token uses, 1 to 64.
    pub used: usize,
}

/// How the rows of an encoder's last layer become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first of them, that of the token with which every text begins.
    First,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The model's shape. Counts are in elements. From [`Config::activation`] on, a field is left out of the manifest where
/// it has its default, which is what a Llama has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The family.
    pub architecture: Architecture,
    /// Number of layers, 1 to 1,024.
    pub layers: usize,
    /// Width of the residual stream, 1 to 65,536.
    pub dim: usize,
    /// Query heads, 1 to 1,024.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head: even, 2 to 256.
    pub head_dim: usize,
    /// Width of the feed-forward layer, 1 to 262,144.
    pub ffn: usize,
    /// Tokens in the vocabulary, 1 to 1,048,576.
    pub vocab: usize,
    /// Positions that the rotary tables cover: the smaller of the trained context and 32,768.
    pub context: usize,
    /// The epsilon of every RMS norm with 32 fractional bits; at least 1.
    pub rms_eps_q32: u64,
    /// Which two elements of a head turn together: neighbours in llama files in GGUF, halves in all others.
    #[serde(with = "RopeStyleText")]
    pub rope: RopeStyle,
    /// Whether the output matrix is the embedding matrix.
    pub tied_embeddings: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// What stands between the feed-forward layers.
    #[serde(default, with = "ActivationText", skip_serializing_if = "is_default")]
    pub activation: Activation,
    /// Whether the outputs of attention and of the feed-forward layer are normalised before they are added.
    #[serde(default, skip_serializing_if = "is_default")]
    pub post_norms: bool,
    /// For each layer, the last tokens that a token sees, itself included; 0 for all. Empty if that is so everywhere.
    #[serde(default, skip_serializing_if = "is_default")]
    pub windows: Vec<usize>,
    /// For each layer, the number of its rotary table, if it rotates. Empty if all use table 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rope_layers: Vec<Option<usize>>,
    /// Elements of a head that are rotated, from the first on: even; absent for all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rope_dim: Option<usize>,
    /// Scores are divided by the root of this; absent for `head_dim`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention_scale: Option<u64>,
    /// The cap of scores, with 16 fractional bits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention_cap_q16: Option<u32>,
    /// The cap of logits, with 16 fractional bits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logit_cap_q16: Option<u32>,
    /// What embeddings are multiplied by, with 16 fractional bits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding_scale_q16: Option<u32>,
    /// The experts, in a model that has them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub experts: Option<Experts>,
    /// In an encoder, how its rows become one vector. An encoder has the shape of BERT: every token sees all others,
    /// positions are embedded and not rotated, norms are layer norms after the sums, all layers have biases, and there
    /// is no gate.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pooling: Option<Pooling>,
}

/// Ids of tokens with a function.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The tokens that end an answer (end of text, end of turn), ascending, without repeats.
    pub end: Vec<u32>,
    /// The token that fills up batches; never produced.
    pub pad: Option<u32>,
    /// The token for what the vocabulary cannot express.
    pub unknown: Option<u32>,
}

/// The format of the imported file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceFormat {
    /// One GGUF file.
    Gguf,
    /// A Hugging Face folder with safetensors files.
    Safetensors,
}

/// Where the integers came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The format.
    pub format: SourceFormat,
    /// SHA-256 of the GGUF file; for a folder, of the list that `docs/artifact.md` defines.
    pub sha256: Bytes32,
    /// Whether the weights were rounded to 4 bits after the import, see [`crate::weaken`].
    pub weakened: bool,
}

/// How a section's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SectionKind {
    /// Weights in [`Encoding::Q4`].
    Weights4,
    /// Weights in [`Encoding::Q6`].
    Weights6,
    /// Weights in [`Encoding::Q8`].
    Weights8,
    /// One scale a row: mantissa (4 bytes), exponent (2 bytes), two zero bytes, all little-endian.
    Scales,
    /// Signed 32-bit little-endian numbers with 16 fractional bits.
    Q16,
    /// Signed 32-bit little-endian numbers with 30 fractional bits.
    Q30,
    /// A Hugging Face `tokenizer.json`.
    Tokenizer,
}

impl SectionKind {
    /// How the weights are stored, if it is a section of weights.
    pub fn encoding(self) -> Option<Encoding> {
        match self {
            SectionKind::Weights4 => Some(Encoding::Q4),
            SectionKind::Weights6 => Some(Encoding::Q6),
            SectionKind::Weights8 => Some(Encoding::Q8),
            SectionKind::Scales | SectionKind::Q16 | SectionKind::Q30 | SectionKind::Tokenizer => None,
        }
    }

    pub(crate) fn of(encoding: Encoding) -> SectionKind {
        match encoding {
            Encoding::Q4 => SectionKind::Weights4,
            Encoding::Q6 => SectionKind::Weights6,
            Encoding::Q8 => SectionKind::Weights8,
        }
    }
}

/// One entry of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its name, such as `layers.0.q.weights`.
    pub name: String,
    /// How its bytes are read.
    pub kind: SectionKind,
    /// Rows; 1 for a vector.
    pub rows: u64,
    /// Elements in a row.
    pub cols: u64,
    /// Offset of its first byte in the artifact's data, a multiple of 64.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What an artifact says about itself. Its id is the keccak256 of [`Manifest::canonical`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the file format.
    pub format: u32,
    /// Version of the integer arithmetic that runs the model.
    pub arithmetic: u32,
    /// The model's name as its author wrote it.
    pub name: String,
    /// The licence, normally an SPDX identifier in lower case; `None` when the source does not say.
    pub licence: Option<String>,
    /// Where it came from.
    pub source: Source,
    /// The model's shape.
    pub config: Config,
    /// Tokens with a function.
    pub tokens: SpecialTokens,
    /// The chat template (Jinja) of the source, if it has one.
    pub chat_template: Option<String>,
    /// keccak256 of the tokenizer section.
    pub tokenizer: Bytes32,
    /// Length of the data (all sections and the padding between them), in bytes.
    pub data_bytes: u64,
    /// Merkle root over the data's tiles, see [`crate::merkle`].
    pub root: Bytes32,
    /// The directory. But for how weights are stored, it follows from `config` and the tokenizer's length; it is written
    /// down for other readers.
    pub sections: Vec<Section>,
}

impl Manifest {
    /// The bytes that are stored and hashed: JSON without white space, fields in the order of this type.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys and serialises into memory")
    }

    /// Whether it is for the arithmetic of this build, which also decides what a request's tokens are.
    pub fn is_current(&self) -> bool {
        self.arithmetic == assay_arithmetic::VERSION
    }

    /// Reads `bytes`, and refuses them unless they are what [`Manifest::canonical`] would write.
    ///
    /// # Errors
    /// [`Error::Manifest`], and [`Error::Limit`] for what is out of range.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, Error> {
        let bad = |reason: String| Error::Manifest(reason);
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if manifest.canonical() != bytes {
            return Err(bad("its JSON is not in canonical form".into()));
        }
        manifest.config.check()?;
        let last = manifest.sections.last().ok_or_else(|| bad("its directory is empty".into()))?;
        let kinds: HashMap<&str, SectionKind> =
            manifest.sections.iter().map(|s| (s.name.as_str(), s.kind)).collect();
        let encoding = |name: &str| kinds.get(name).and_then(|kind| kind.encoding()).unwrap_or(Encoding::Q8);
        if manifest.sections != layout(&manifest.config, last.bytes, &encoding)? {
            return Err(bad("its directory does not follow from its configuration".into()));
        }
        if manifest.data_bytes != last.offset + last.bytes {
            return Err(bad("its data length does not follow from its directory".into()));
        }
        manifest.tokens.check(manifest.config.vocab)?;
        Ok(manifest)
    }
}

impl SpecialTokens {
    /// Every id is in the vocabulary, and `end` is ascending.
    pub(crate) fn check(&self, vocab: usize) -> Result<(), Error> {
        let ids = self.end.iter().chain(&self.bos).chain(&self.pad).chain(&self.unknown);
        for id in ids {
            limit("a special token's id", u64::from(*id), 0, vocab as u64 - 1)?;
        }
        if !self.end.is_sorted_by(|a, b| a < b) {
            return Err(Error::Manifest("its end tokens are not ascending".into()));
        }
        Ok(())
    }
}

/// An error unless `min <= found <= max`.
pub(crate) fn limit(what: &'static str, found: u64, min: u64, max: u64) -> Result<(), Error> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(Error::Limit { what, found, min, max }) }
}

impl Config {
    /// The last tokens that a token sees in a layer, itself included, if not all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().filter(|window| *window > 0)
    }

    /// The number of a layer's rotary table, if it rotates.
    pub fn rope_table(&self, layer: usize) -> Option<usize> {
        self.rope_layers.get(layer).copied().unwrap_or(Some(0))
    }

    /// The number of rotary tables.
    pub fn rope_tables(&self) -> usize {
        (0..self.layers).filter_map(|layer| self.rope_table(layer)).max().map_or(0, |last| last + 1)
    }

    /// Entries of a rotary table for one position.
    pub fn rope_pairs(&self) -> usize {
        self.rope_dim.unwrap_or(self.head_dim) / 2
    }

    /// Refuses shapes that the engine cannot run or that would overflow; after this all products fit in `u64`.
    pub(crate) fn check(&self) -> Result<(), Error> {
        limit("the number of layers", self.layers as u64, 1, 1024)?;
        limit("the embedding length", self.dim as u64, 1, 65_536)?;
        limit("the number of heads", self.heads as u64, 1, 1024)?;
        limit("the number of key-value heads", self.kv_heads as u64, 1, self.heads as u64)?;
        limit("the head length", self.head_dim as u64, 2, 256)?;
        limit("the feed-forward length", self.ffn as u64, 1, 262_144)?;
        limit("the vocabulary", self.vocab as u64, 1, 1 << 20)?;
        limit("the context", self.context as u64, 1, MAX_CONTEXT)?;
        limit("the norm's epsilon (in 2^-32)", self.rms_eps_q32, 1, 1 << 31)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::Unsupported(format!("an odd head length ({})", self.head_dim)));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::Unsupported(format!(
                "{} heads for {} key-value heads",
                self.heads, self.kv_heads
            )));
        }
        if self.pooling.is_some() {
            return self.check_encoder();
        }
        self.check_variant()
    }

    /// An encoder has none of the other variants.
    fn check_encoder(&self) -> Result<(), Error> {
        let plain = Config {
            kv_heads: self.heads,
            rope: RopeStyle::Half,
            tied_embeddings: true,
            qkv_bias: true,
            qk_norm: false,
            post_norms: false,
            windows: Vec::new(),
            rope_layers: vec![None; self.layers],
            rope_dim: None,
            attention_scale: None,
            attention_cap_q16: None,
            logit_cap_q16: None,
            embedding_scale_q16: None,
            experts: None,
            ..self.clone()
        };
        if *self == plain { Ok(()) } else { Err(Error::Manifest("it is not the shape of an encoder".into())) }
    }

    /// The fields that most models leave out. One spelling of each shape: what is the default must be absent.
    fn check_variant(&self) -> Result<(), Error> {
        let bad = |reason: &str| Err(Error::Manifest(reason.into()));
        if !self.windows.is_empty() {
            limit(
                "the number of windows",
                self.windows.len() as u64,
                self.layers as u64,
                self.layers as u64,
            )?;
            if self.windows.iter().all(|window| *window == 0) {
                return bad("its windows are all absent");
            }
        }
        for window in &self.windows {
            limit("an attention window", *window as u64, 0, 1 << 20)?;
        }
        if !self.rope_layers.is_empty() {
            limit(
                "the number of rotating layers",
                self.rope_layers.len() as u64,
                self.layers as u64,
                self.layers as u64,
            )?;
            if self.rope_layers.iter().all(|table| *table == Some(0)) {
                return bad("its layers all rotate by the first table");
            }
        }
        for table in self.rope_layers.iter().flatten() {
            limit("the number of a rotary table", *table as u64, 0, 7)?;
        }
        if (0..self.rope_tables())
            .any(|table| !(0..self.layers).any(|layer| self.rope_table(layer) == Some(table)))
        {
            return bad("it has a rotary table that no layer uses");
        }
        if let Some(dim) = self.rope_dim
            && (dim < 2 || dim >= self.head_dim || !dim.is_multiple_of(2))
        {
            return Err(Error::Unsupported(format!(
                "rotary positions on {dim} of {} elements of a head",
                self.head_dim
            )));
        }
        if let Some(scale) = self.attention_scale {
            limit("the divisor of scores", scale, 1, 1 << 32)?;
            if scale == self.head_dim as u64 {
                return bad("its divisor of scores is the length of a head");
            }
        }
        for cap in self.attention_cap_q16.into_iter().chain(self.logit_cap_q16) {
            limit(
                "a soft cap (in 2^-16)",
                cap.into(),
                (*SoftCap::RANGE.start()).into(),
                (*SoftCap::RANGE.end()).into(),
            )?;
        }
        if let Some(scale) = self.embedding_scale_q16 {
            limit("the factor of embeddings (in 2^-16)", scale.into(), 1, 1 << 31)?;
        }
        if let Some(Experts { count, used }) = self.experts {
            limit("the number of experts", count as u64, 2, 1024)?;
            limit("the number of experts that a token uses", used as u64, 1, count.min(64) as u64)?;
            limit("the rows of all experts", (count * self.ffn.max(self.dim)) as u64, 1, 1 << 24)?;
        }
        Ok(())
    }
}

/// The name of a rotary table's section: the first has no number.
pub(crate) fn rope_section(function: &str, table: usize) -> String {
    if table == 0 { function.into() } else { format!("{function}.{table}") }
}

/// The sections of an artifact with this configuration, in file order. The tokenizer is last. `encoding` says how the
/// weights of a section with this name are stored.
pub(crate) fn layout(
    config: &Config,
    tokenizer_bytes: u64,
    encoding: &dyn Fn(&str) -> Encoding,
) -> Result<Vec<Section>, Error> {
    limit("the tokenizer's length in bytes", tokenizer_bytes, 1, MAX_TOKENIZER_BYTES as u64)?;
    let mut sections = Vec::new();
    let mut end = 0u64;
    let mut add = |name: String, kind: SectionKind, rows: usize, cols: usize| {
        let (rows, cols) = (rows as u64, cols as u64);
        // `Config::check` keeps every product far below 2^64: 2^20 rows of 2^18 columns, at most 2^14 sections.
        let bytes = match kind {
            SectionKind::Weights4 | SectionKind::Weights6 | SectionKind::Weights8 => {
                let encoding = kind.encoding().expect("these three have one");
                rows.div_ceil(GROUP as u64) * encoding.group_bytes(cols as usize) as u64
            }
            SectionKind::Tokenizer => rows * cols,
            SectionKind::Scales => rows * cols * 8,
            SectionKind::Q16 | SectionKind::Q30 => rows * cols * 4,
        };
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + bytes;
        sections.push(Section { name, kind, rows, cols, offset, bytes });
    };
    let matrix = |name: &str,
                  rows: usize,
                  cols: usize,
                  bias: bool,
                  add: &mut dyn FnMut(String, SectionKind, usize, usize)| {
        let weights = format!("{name}.weights");
        let kind = SectionKind::of(encoding(&weights));
        add(weights, kind, rows, cols);
        add(format!("{name}.scales"), SectionKind::Scales, 1, rows);
        if bias {
            add(format!("{name}.bias"), SectionKind::Q16, 1, rows);
        }
    };
    let (dim, head, ffn) = (config.dim, config.head_dim, config.ffn);
    if config.pooling.is_some() {
        let norm = |name: String, add: &mut dyn FnMut(String, SectionKind, usize, usize)| {
            add(name.clone(), SectionKind::Q16, 1, dim);
            add(format!("{name}.bias"), SectionKind::Q16, 1, dim);
        };
        matrix("embedding", config.vocab, dim, false, &mut add);
        add("position_embedding".into(), SectionKind::Q16, config.context, dim);
        add("type_embedding".into(), SectionKind::Q16, 1, dim);
        norm("embedding_norm".into(), &mut add);
        for i in 0..config.layers {
            let inner = config.heads * head;
            for (name, rows, cols) in
                [("q", inner, dim), ("k", inner, dim), ("v", inner, dim), ("o", dim, inner)]
            {
                matrix(&format!("layers.{i}.{name}"), rows, cols, true, &mut add);
            }
            norm(format!("layers.{i}.attention_norm"), &mut add);
            matrix(&format!("layers.{i}.up"), ffn, dim, true, &mut add);
            matrix(&format!("layers.{i}.down"), dim, ffn, true, &mut add);
            norm(format!("layers.{i}.ffn_norm"), &mut add);
        }
        let length = usize::try_from(tokenizer_bytes).unwrap_or(usize::MAX);
        add("tokenizer".into(), SectionKind::Tokenizer, 1, length);
        return Ok(sections);
    }
    let (q, kv) = (config.heads * head, config.kv_heads * head);
    matrix("embedding", config.vocab, dim, false, &mut add);
    for i in 0..config.layers {
        add(format!("layers.{i}.attention_norm"), SectionKind::Q16, 1, dim);
        matrix(&format!("layers.{i}.q"), q, dim, config.qkv_bias, &mut add);
        matrix(&format!("layers.{i}.k"), kv, dim, config.qkv_bias, &mut add);
        matrix(&format!("layers.{i}.v"), kv, dim, config.qkv_bias, &mut add);
        if config.qk_norm {
            add(format!("layers.{i}.q_norm"), SectionKind::Q16, 1, head);
            add(format!("layers.{i}.k_norm"), SectionKind::Q16, 1, head);
        }
        matrix(&format!("layers.{i}.o"), dim, q, false, &mut add);
        if config.post_norms {
            add(format!("layers.{i}.post_attention_norm"), SectionKind::Q16, 1, dim);
        }
        add(format!("layers.{i}.ffn_norm"), SectionKind::Q16, 1, dim);
        // The experts of a layer stand one below the other.
        let count = config.experts.map_or(1, |experts| experts.count);
        if config.experts.is_some() {
            matrix(&format!("layers.{i}.router"), count, dim, false, &mut add);
        }
        matrix(&format!("layers.{i}.gate"), count * ffn, dim, false, &mut add);
        matrix(&format!("layers.{i}.up"), count * ffn, dim, false, &mut add);
        matrix(&format!("layers.{i}.down"), count * dim, ffn, false, &mut add);
        if config.post_norms {
            add(format!("layers.{i}.post_ffn_norm"), SectionKind::Q16, 1, dim);
        }
    }
    add("output_norm".into(), SectionKind::Q16, 1, dim);
    if !config.tied_embeddings {
        matrix("output", config.vocab, dim, false, &mut add);
    }
    for table in 0..config.rope_tables() {
        for function in ["rope_cos", "rope_sin"] {
            add(rope_section(function, table), SectionKind::Q30, config.context, config.rope_pairs());
        }
    }
    add(
        "tokenizer".into(),
        SectionKind::Tokenizer,
        1,
        usize::try_from(tokenizer_bytes).unwrap_or(usize::MAX),
    );
    Ok(sections)
}
