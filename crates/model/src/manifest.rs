//! The manifest: what an artifact says about itself, in canonical JSON.

use crate::Error;
use crate::tokenizer::MAX_TOKENIZER_BYTES;
use assay_arithmetic::RopeStyle;
use assay_receipt::Bytes32;
use serde::{Deserialize, Serialize};

/// The version of the artifact's file format.
pub(crate) const FORMAT: u32 = 1;

/// Every section begins at a multiple of this many bytes, so that mapped weights are aligned for any vector unit.
pub(crate) const ALIGNMENT: u64 = 64;

/// The most positions that the rotary tables cover; also the longest context that the integer engine serves.
pub(crate) const MAX_CONTEXT: u64 = 32_768;

/// The longest manifest that is read, in bytes: 1,024 layers and a long chat template fit several times.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 8 << 20;

/// Which family of decoder the model belongs to; they differ in biases, norms and the layout of rotary pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama 1 to 3, Mistral, SmolLM and others of the same shape.
    Llama,
    /// Qwen 2 and 2.5: query, key and value have biases.
    Qwen2,
    /// Qwen 3: queries and keys are normalised per head.
    Qwen3,
}

/// How [`RopeStyle`] is written in a manifest.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RopeStyle", rename_all = "snake_case")]
enum RopeStyleText {
    Interleaved,
    Half,
}

/// The model's shape. Counts are in elements.
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
    /// Signed 8-bit weights in -127..=127, row after row.
    Weights,
    /// One scale a row: mantissa (4 bytes), exponent (2 bytes), two zero bytes, all little-endian.
    Scales,
    /// Signed 32-bit little-endian numbers with 16 fractional bits.
    Q16,
    /// Signed 32-bit little-endian numbers with 30 fractional bits.
    Q30,
    /// A Hugging Face `tokenizer.json`.
    Tokenizer,
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
    /// The directory. It follows from `config` and the tokenizer's length, and is written down for other readers.
    pub sections: Vec<Section>,
}

impl Manifest {
    /// The bytes that are stored and hashed: JSON without white space, fields in the order of this type.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys and serialises into memory")
    }

    /// Reads `bytes`, and refuses them unless they are what [`Manifest::canonical`] would write.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, Error> {
        let bad = |reason: String| Error::Manifest(reason);
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if manifest.canonical() != bytes {
            return Err(bad("its JSON is not in canonical form".into()));
        }
        manifest.config.check()?;
        let last = manifest.sections.last().ok_or_else(|| bad("its directory is empty".into()))?;
        if manifest.sections != layout(&manifest.config, last.bytes)? {
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
        Ok(())
    }
}

/// The sections of an artifact with this configuration, in file order. The tokenizer is last.
pub(crate) fn layout(config: &Config, tokenizer_bytes: u64) -> Result<Vec<Section>, Error> {
    limit("the tokenizer's length in bytes", tokenizer_bytes, 1, MAX_TOKENIZER_BYTES as u64)?;
    let mut sections = Vec::new();
    let mut end = 0u64;
    let mut add = |name: String, kind: SectionKind, rows: usize, cols: usize| {
        let (rows, cols) = (rows as u64, cols as u64);
        // `Config::check` keeps every product far below 2^64: 2^20 rows of 2^18 columns, at most 2^14 sections.
        let bytes = match kind {
            SectionKind::Weights | SectionKind::Tokenizer => rows * cols,
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
        add(format!("{name}.weights"), SectionKind::Weights, rows, cols);
        add(format!("{name}.scales"), SectionKind::Scales, 1, rows);
        if bias {
            add(format!("{name}.bias"), SectionKind::Q16, 1, rows);
        }
    };
    let (dim, head, ffn) = (config.dim, config.head_dim, config.ffn);
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
        add(format!("layers.{i}.ffn_norm"), SectionKind::Q16, 1, dim);
        matrix(&format!("layers.{i}.gate"), ffn, dim, false, &mut add);
        matrix(&format!("layers.{i}.up"), ffn, dim, false, &mut add);
        matrix(&format!("layers.{i}.down"), dim, ffn, false, &mut add);
    }
    add("output_norm".into(), SectionKind::Q16, 1, dim);
    if !config.tied_embeddings {
        matrix("output", config.vocab, dim, false, &mut add);
    }
    add("rope_cos".into(), SectionKind::Q30, config.context, head / 2);
    add("rope_sin".into(), SectionKind::Q30, config.context, head / 2);
    add(
        "tokenizer".into(),
        SectionKind::Tokenizer,
        1,
        usize::try_from(tokenizer_bytes).unwrap_or(usize::MAX),
    );
    Ok(sections)
}
