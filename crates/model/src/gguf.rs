//! GGUF files: a hardened reader, and the mapping of their keys and tensors to an artifact.
//!
//! A file is a header, typed key-value metadata, a directory of tensors, and their data. Nothing in it is believed:
//! every count, length, offset and type is checked against the bytes that are there before it is used, and strings and
//! arrays are read in place, so that a small file cannot ask for much memory.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::dequantise::TensorType;
use crate::import::{self, Model, Rope, RopeScaling, Tensor};
use crate::tokenizer::{GgufTokenizer, tokenizer_json_from_gguf};
use crate::{Activation, Architecture, Config, Error, Experts, RopeStyle, SourceFormat, SpecialTokens};

/// The most metadata keys or tensors in a file; published files have a few dozen keys and a few thousand tensors.
const MAX_ENTRIES: u64 = 1 << 16;

/// The longest key or tensor name in bytes.
const MAX_NAME_BYTES: usize = 1024;

fn bad(reason: impl Into<String>) -> Error {
    Error::Gguf(reason.into())
}

/// A position in the file from which bounded pieces are taken.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let piece = end.and_then(|end| self.bytes.get(self.at..end));
        let piece =
            piece.ok_or_else(|| bad(format!("it ends within {count} bytes that begin at {}", self.at)))?;
        self.at += piece.len();
        Ok(piece)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let piece = self.take(N as u64)?;
        Ok(*piece.first_chunk::<N>().expect("take returns as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a str, Error> {
        let (at, length) = (self.at, self.u64()?);
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| bad(format!("the string at byte {at} is not UTF-8")))
    }

    fn name(&mut self) -> Result<&'a str, Error> {
        let name = self.string()?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(bad(format!("a name has {} bytes", name.len())));
        }
        Ok(name)
    }
}

/// A metadata value, read in place.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    /// Element type, count, and the elements' bytes.
    Array(u32, u64, &'a [u8]),
}

/// Bytes of a number of this type; `None` for strings, arrays and unknown types.
fn number_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> Value<'a> {
    fn read(cursor: &mut Cursor<'a>, kind: u32) -> Result<Value<'a>, Error> {
        Ok(match kind {
            0 => Value::Integer(cursor.array::<1>().map(|b| u8::from_le_bytes(b).into())?),
            1 => Value::Integer(cursor.array::<1>().map(|b| i8::from_le_bytes(b).into())?),
            2 => Value::Integer(cursor.array().map(|b| u16::from_le_bytes(b).into())?),
            3 => Value::Integer(cursor.array().map(|b| i16::from_le_bytes(b).into())?),
            4 => Value::Integer(cursor.u32()?.into()),
            5 => Value::Integer(cursor.array().map(|b| i32::from_le_bytes(b).into())?),
            6 => Value::Float(cursor.array().map(|b| f32::from_le_bytes(b).into())?),
            7 => match cursor.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(bad(format!("a boolean has the value {other}"))),
            },
            8 => Value::Text(cursor.string()?),
            9 => {
                let (element, count) = (cursor.u32()?, cursor.u64()?);
                let start = cursor.at;
                if let Some(size) = number_bytes(element) {
                    cursor.take(
                        count
                            .checked_mul(size)
                            .ok_or_else(|| bad(format!("an array has {count} elements")))?,
                    )?;
                } else if element == 8 {
                    for _ in 0..count {
                        cursor.string()?; // each takes at least 8 bytes, so a lying count ends with the file
                    }
                } else {
                    return Err(bad(format!("an array has elements of type {element}")));
                }
                Value::Array(element, count, &cursor.bytes[start..cursor.at])
            }
            10 => Value::Integer(cursor.u64()?.into()),
            11 => Value::Integer(cursor.array().map(|b| i64::from_le_bytes(b).into())?),
            12 => Value::Float(cursor.array().map(f64::from_le_bytes)?),
            other => return Err(bad(format!("a metadata value has the unknown type {other}"))),
        })
    }
}

/// A parsed file; tensors by name.
pub(crate) struct Gguf<'a> {
    metadata: HashMap<&'a str, Value<'a>>,
    pub(crate) tensors: HashMap<&'a str, Tensor<'a>>,
}

impl<'a> Gguf<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Gguf<'a>, Error> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.array::<4>()? != *b"GGUF" {
            return Err(bad("it does not begin with GGUF"));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(bad(format!("it has version {version} instead of 2 or 3")));
        }
        let (tensor_count, key_count) = (cursor.u64()?, cursor.u64()?);
        if tensor_count > MAX_ENTRIES || key_count > MAX_ENTRIES {
            return Err(bad(format!("it claims {tensor_count} tensors and {key_count} metadata keys")));
        }
        let mut metadata = HashMap::new();
        for _ in 0..key_count {
            let key = cursor.name()?;
            let kind = cursor.u32()?;
            let value = Value::read(&mut cursor, kind)?;
            if metadata.insert(key, value).is_some() {
                return Err(bad(format!("the metadata key {key} occurs twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(n)) if (8..=1 << 20).contains(n) && n & (n - 1) == 0 => *n as u64,
            Some(_) => return Err(bad("its alignment is not a power of two from 8 to 2^20")),
        };
        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            let name = cursor.name()?;
            let dimensions = cursor.u32()?;
            if !(1..=4).contains(&dimensions) {
                return Err(bad(format!("the tensor {name} has {dimensions} dimensions")));
            }
            let mut shape = Vec::with_capacity(4);
            for _ in 0..dimensions {
                shape.push(cursor.u64()?);
            }
            let (kind, offset) = (cursor.u32()?, cursor.u64()?);
            entries.push((name, shape, kind, offset));
        }
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let data = usize::try_from(start).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
        let mut tensors = HashMap::new();
        let mut ranges = Vec::with_capacity(entries.len());
        for (name, mut shape, number, offset) in entries {
            let unknown = || Error::TensorType { tensor: name.into(), found: format!("number {number}") };
            let kind = TensorType::from_gguf(number).ok_or_else(unknown)?;
            // Rows must fill whole blocks; the fastest dimension comes first in the file.
            let row = shape.first().and_then(|cols| kind.bytes(*cols));
            let size = shape.iter().skip(1).fold(row, |size, n| size.and_then(|size| size.checked_mul(*n)));
            let end = size.and_then(|size| offset.checked_add(size)).filter(|end| *end <= data.len() as u64);
            let Some(end) = end.filter(|end| *end > offset && offset.is_multiple_of(alignment)) else {
                return Err(bad(format!(
                    "the tensor {name} of shape {shape:?} does not fit at offset {offset}"
                )));
            };
            while shape.len() > 1 && shape.last() == Some(&1) {
                shape.pop();
            }
            shape.reverse();
            let piece = &data[offset as usize..end as usize]; // both are at most data.len()
            let tensor = Tensor { name: name.into(), kind, shape, pieces: vec![piece] };
            if tensors.insert(name, tensor).is_some() {
                return Err(bad(format!("the tensor {name} occurs twice")));
            }
            ranges.push((offset, end, name));
        }
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            return Err(bad(format!("the tensors {} and {} overlap", pair[0].2, pair[1].2)));
        }
        Ok(Gguf { metadata, tensors })
    }

    /// The value of a key that may be absent; an error if it has another type than `read` accepts.
    fn optional<T>(&self, key: &str, read: impl FnOnce(Value<'a>) -> Option<T>) -> Result<Option<T>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => read(*value).map(Some).ok_or_else(|| Error::Metadata(key.into())),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        self.optional(key, |value| if let Value::Integer(n) = value { u64::try_from(n).ok() } else { None })
    }

    /// A count that must be there and fit this machine; its range is checked with the configuration.
    fn count(&self, key: &str) -> Result<usize, Error> {
        let n = self.integer(key)?.ok_or_else(|| Error::Metadata(key.into()))?;
        Ok(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn token(&self, key: &str) -> Result<Option<u32>, Error> {
        self.optional(key, |value| if let Value::Integer(n) = value { u32::try_from(n).ok() } else { None })
    }

    fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        self.optional(key, |value| if let Value::Float(x) = value { Some(x) } else { None })
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.optional(key, |value| if let Value::Bool(x) = value { Some(x) } else { None })
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.optional(key, |value| if let Value::Text(x) = value { Some(x) } else { None })
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        let array = self.optional(key, |value| match value {
            Value::Array(8, count, bytes) => Some((count, bytes)),
            _ => None,
        })?;
        let Some((count, bytes)) = array else { return Ok(Vec::new()) };
        let mut cursor = Cursor { bytes, at: 0 };
        (0..count).map(|_| cursor.string().map(String::from)).collect()
    }

    fn words(&self, key: &str, kinds: &[u32]) -> Result<Vec<[u8; 4]>, Error> {
        let array = self.optional(key, |value| match value {
            Value::Array(element, _, bytes) if kinds.contains(&element) => Some(bytes),
            _ => None,
        })?;
        Ok(array.map(|bytes| bytes.as_chunks::<4>().0.to_vec()).unwrap_or_default())
    }

    /// Which layers have a window: every `n`th has none, or a list of flags.
    fn sliding_pattern(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>, Error> {
        let layers = layers.min(1024);
        let pattern = self.optional(key, |value| match value {
            Value::Integer(n) => {
                let n = usize::try_from(n).ok().filter(|n| *n > 0)?;
                Some((0..layers).map(|layer| layer % n != n - 1).collect())
            }
            Value::Array(7, _, flags) => Some(flags.iter().map(|flag| *flag != 0).collect()),
            _ => None,
        })?;
        match pattern {
            Some(list) if Vec::len(&list) != layers => Err(Error::Metadata(key.into())),
            pattern => Ok(pattern),
        }
    }

    pub(crate) fn tokenizer(&self) -> Result<GgufTokenizer, Error> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let model = self.text(&key("model"))?.ok_or_else(|| Error::Metadata(key("model")))?;
        let tokenizer = GgufTokenizer {
            model: model.into(),
            pre: self.text(&key("pre"))?.map(String::from),
            tokens: self.texts(&key("tokens"))?,
            token_types: self
                .words(&key("token_type"), &[4, 5])?
                .into_iter()
                .map(i32::from_le_bytes)
                .collect(),
            scores: self.words(&key("scores"), &[6])?.into_iter().map(f32::from_le_bytes).collect(),
            merges: self.texts(&key("merges"))?,
            bos: self.token(&key("bos_token_id"))?,
            eos: self.token(&key("eos_token_id"))?,
            eot: self.token(&key("eot_token_id"))?,
            unknown: self.token(&key("unknown_token_id"))?,
            add_bos: self.flag(&key("add_bos_token"))?,
            add_eos: self.flag(&key("add_eos_token"))?,
            add_space_prefix: self.flag(&key("add_space_prefix"))?,
        };
        Ok(tokenizer)
    }
}

/// The special tokens of a model with `vocab` rows in its embedding.
fn special_tokens(file: &Gguf<'_>, tokenizer: &GgufTokenizer, vocab: usize) -> Result<SpecialTokens, Error> {
    // Some files name a padding or unknown token that the vocabulary does not have; it is then never needed.
    let known = |id: Option<u32>| id.filter(|id| (*id as usize) < vocab);
    let mut end = tokenizer.end_tokens();
    end.extend(known(file.token("tokenizer.ggml.eom_token_id")?));
    end.sort_unstable();
    end.dedup();
    Ok(SpecialTokens {
        bos: known(tokenizer.bos),
        end,
        pad: known(file.token("tokenizer.ggml.padding_token_id")?),
        unknown: known(tokenizer.unknown),
    })
}

/// Imports a GGUF file (version 2 or 3; architectures `llama`, `qwen2`, `qwen3`,
/// `qwen3moe`, `gemma2`, `gemma3`, `phi3`, `smollm3`; types F32, F16, BF16, Q4_0, Q4_1, Q5_0,
/// Q5_1, Q8_0, Q4_K, Q5_K, Q6_K) and returns the artifact's bytes. The same file gives the same bytes on any machine.
///
/// `progress` is called with the bytes of work done and in all. Memory: the result, and a row of floats a thread.
///
/// # Errors
/// [`Error::Gguf`] for a file that is not well-formed, and others of [`Error`] for a model that the integer engine
/// cannot run; no input makes it panic.
pub fn import_gguf(bytes: &[u8], progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<u8>, Error> {
    let model = model(Gguf::parse(bytes)?)?;
    import::build(model, || Sha256::digest(bytes).into(), progress)
}

fn model(file: Gguf<'_>) -> Result<Model<'_>, Error> {
    let name =
        file.text("general.architecture")?.ok_or_else(|| Error::Metadata("general.architecture".into()))?;
    let (architecture, rope) = match name {
        "llama" if file.integer("llama.expert_count")?.is_some_and(|n| n > 0) => {
            (Architecture::Mixtral, RopeStyle::Interleaved)
        }
        "llama" => (Architecture::Llama, RopeStyle::Interleaved),
        "qwen2" => (Architecture::Qwen2, RopeStyle::Half),
        "qwen3" => (Architecture::Qwen3, RopeStyle::Half),
        "qwen3moe" => (Architecture::Qwen3Moe, RopeStyle::Half),
        "gemma2" => (Architecture::Gemma2, RopeStyle::Half),
        "gemma3" => (Architecture::Gemma3, RopeStyle::Half),
        "phi3" => (Architecture::Phi3, RopeStyle::Half),
        "smollm3" => (Architecture::Smollm3, RopeStyle::Interleaved),
        other => return Err(Error::Architecture(other.into())),
    };
    let key = |part: &str| format!("{name}.{part}");
    let (layers, dim) = (file.count(&key("block_count"))?, file.count(&key("embedding_length"))?);
    let heads = file.count(&key("attention.head_count"))?;
    let kv_heads = match file.integer(&key("attention.head_count_kv"))? {
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        None => heads,
    };
    let head_dim = match file.integer(&key("attention.key_length"))? {
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        None if heads > 0 && dim % heads == 0 => dim / heads,
        None => return Err(Error::Metadata(key("attention.key_length"))),
    };
    if file.integer(&key("attention.value_length"))?.is_some_and(|n| n != head_dim as u64) {
        return Err(Error::Unsupported("values of another length than keys".into()));
    }
    let rope_dim = file.integer(&key("rope.dimension_count"))?.filter(|n| *n != head_dim as u64);
    let rope_dim = rope_dim.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let trained =
        file.integer(&key("context_length"))?.ok_or_else(|| Error::Metadata(key("context_length")))?;
    let eps = file.float(&key("attention.layer_norm_rms_epsilon"))?;
    let eps = eps.ok_or_else(|| Error::Metadata(key("attention.layer_norm_rms_epsilon")))?;
    let embedding = file
        .tensors
        .get("token_embd.weight")
        .ok_or_else(|| Error::MissingTensor("token_embd.weight".into()))?;
    let vocab = embedding.shape.first().copied().unwrap_or_default();
    let context = import::context(trained);
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let window = match file.integer(&key("attention.sliding_window"))? {
        Some(n) if n > 0 => usize::try_from(n).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let pattern = file.sliding_pattern(&key("attention.sliding_window_pattern"), layers)?;
    let local = |layer: usize| match (architecture, &pattern) {
        (_, Some(pattern)) => pattern[layer],
        (Architecture::Gemma2, None) => layer.is_multiple_of(2),
        (Architecture::Gemma3, None) => layer % 6 != 5,
        _ => true,
    };
    if window != usize::MAX
        && matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe)
    {
        return Err(Error::Unsupported("a sliding attention window".into())); // which layers have it is not said
    }
    let experts = experts(&file, name, architecture)?;
    let cap = |part: &str, default: Option<f64>| {
        let cap = file.float(&key(part))?.or(default).filter(|cap| *cap != 0.0);
        cap.map(|cap| import::q16(cap, &key(part))).transpose()
    };
    let second = architecture == Architecture::Gemma2;
    // The models of 27 billion parameters, which have so many layers, divide by the share of a head in the width.
    let large = layers == if second { 46 } else { 62 };
    let attention_scale =
        (gemma && large && heads > 0).then(|| (dim / heads) as u64).filter(|n| *n != head_dim as u64);
    let config = Config {
        architecture,
        layers,
        dim,
        heads,
        kv_heads,
        head_dim,
        ffn: match file.integer(&key("expert_feed_forward_length"))? {
            Some(n) if experts.is_some() && n > 0 => usize::try_from(n).unwrap_or(usize::MAX),
            _ => file.count(&key("feed_forward_length"))?,
        },
        vocab: usize::try_from(vocab).unwrap_or(usize::MAX),
        context,
        rms_eps_q32: import::epsilon(eps)?,
        rope,
        tied_embeddings: !file.tensors.contains_key("output.weight"),
        qkv_bias: file.tensors.contains_key("blk.0.attn_q.bias"),
        qk_norm: file.tensors.contains_key("blk.0.attn_q_norm.weight"),
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        post_norms: gemma,
        windows: import::windows(layers.min(1024), context, window, local),
        rope_layers: match architecture {
            Architecture::Gemma3 => {
                (0..layers.min(1024)).map(|layer| Some(usize::from(local(layer)))).collect()
            }
            Architecture::Smollm3 => {
                (0..layers.min(1024)).map(|layer| (layer % 4 != 3).then_some(0)).collect()
            }
            _ => Vec::new(),
        },
        rope_dim,
        attention_scale,
        attention_cap_q16: cap("attn_logit_softcapping", second.then_some(50.0))?,
        logit_cap_q16: cap("final_logit_softcapping", second.then_some(30.0))?,
        embedding_scale_q16: if gemma {
            Some(import::q16((dim as f64).sqrt() / import::RESIDUAL_DIVISOR, &key("embedding_length"))?)
        } else {
            None
        },
        experts,
        pooling: None,
    };
    config.check()?;

    let tokenizer = file.tokenizer()?;
    if tokenizer.tokens.len() > config.vocab {
        return Err(bad(format!("it has {} tokens for {} embeddings", tokenizer.tokens.len(), config.vocab)));
    }
    let tokens = special_tokens(&file, &tokenizer, config.vocab)?;

    let ropes = ropes(&file, name, &config, trained)?;

    let Gguf { metadata, tensors: mut source } = file;
    let text = |key: &str| {
        if let Some(Value::Text(text)) = metadata.get(key) { Some((*text).to_owned()) } else { None }
    };
    let mut tensors = HashMap::new();
    ROPE_TENSORS.iter().for_each(|name| drop(source.remove(name)));
    if architecture == Architecture::Phi3 {
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        for i in 0..config.layers {
            for (from, parts) in [
                ("attn_qkv", &[("q", q), ("k", kv), ("v", kv)][..]),
                ("ffn_up", &[("gate", config.ffn), ("up", config.ffn)]),
            ] {
                let from = format!("blk.{i}.{from}.weight");
                let fused = source.remove(from.as_str()).ok_or(Error::MissingTensor(from))?;
                let rows: Vec<usize> = parts.iter().map(|(_, rows)| *rows).collect();
                for ((to, _), part) in parts.iter().zip(fused.split(&rows)?) {
                    tensors.insert(format!("layers.{i}.{to}"), part);
                }
            }
        }
    }
    for (to, from) in names(&config) {
        if tensors.contains_key(&to) {
            continue;
        }
        let tensor = source.remove(from.as_str()).ok_or_else(|| Error::MissingTensor(from.clone()))?;
        tensors.insert(to, tensor);
    }
    // A tensor that is not understood would be left out of the computation, and the answers would be wrong.
    if let Some(name) = source.keys().min() {
        return Err(Error::Unsupported(format!("the tensor {name}")));
    }
    Ok(Model {
        format: SourceFormat::Gguf,
        name: text("general.name").unwrap_or_else(|| name.to_owned()),
        licence: text("general.license"),
        config,
        tokens,
        chat_template: text("tokenizer.chat_template"),
        tokenizer: tokenizer_json_from_gguf(&tokenizer)?,
        ropes,
        norm_offset: 0.0, // files hold the norms of Gemma with the one that it adds
        tensors,
    })
}

/// Tensors that only say how positions are rotated.
const ROPE_TENSORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// The experts of the architecture `name`, if the model has them.
fn experts(file: &Gguf<'_>, name: &str, architecture: Architecture) -> Result<Option<Experts>, Error> {
    let key = |part: &str| format!("{name}.{part}");
    let count = file.integer(&key("expert_count"))?.unwrap_or(0);
    let known = matches!(architecture, Architecture::Mixtral | Architecture::Qwen3Moe);
    if count == 0 && !known {
        return Ok(None);
    }
    if !known {
        return Err(Error::Unsupported(format!("experts in the architecture {name}")));
    }
    if file.integer(&key("expert_shared_count"))?.is_some_and(|n| n != 0) {
        return Err(Error::Unsupported("experts that every token uses".into()));
    }
    if file.integer(&key("expert_gating_func"))?.is_some_and(|n| n > 1)
        || file.float(&key("expert_weights_scale"))?.is_some_and(|scale| scale != 1.0 && scale != 0.0)
        || file.flag(&key("expert_weights_norm"))? == Some(false)
    {
        return Err(Error::Unsupported("experts that are not weighed by a softmax over those in use".into()));
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Ok(Some(Experts { count, used: file.count(&key("expert_used_count"))? }))
}

/// The rotary tables of the architecture `name`.
fn ropes(file: &Gguf<'_>, name: &str, config: &Config, trained: u64) -> Result<Vec<Rope>, Error> {
    let key = |part: &str| format!("{name}.{part}");
    let pairs = config.rope_pairs();
    let factors = |tensor: &str| file.tensors.get(tensor).map(|tensor| tensor.vector(pairs)).transpose();
    let original = file.integer(&key("rope.scaling.original_context_length"))?.unwrap_or(trained);
    // A context beyond the original one uses the factors for long contexts from the start, as other servers do.
    let long = config.context as u64 > original;
    let stretched = factors(if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" })?;
    let scaling = match file.text(&key("rope.scaling.type"))? {
        None | Some("none") => None,
        Some("linear") => Some(RopeScaling::Linear(file.float(&key("rope.scaling.factor"))?.unwrap_or(1.0))),
        Some("longrope") if stretched.is_some() => None,
        Some(other) => return Err(Error::Unsupported(format!("the rotary scaling {other:?}"))),
    };
    let found = [
        scaling,
        file.float(&key("rope.scale_linear"))?.map(RopeScaling::Linear),
        factors("rope_freqs.weight")?.map(RopeScaling::Factors),
        stretched.clone().map(RopeScaling::Factors),
    ];
    let mut found = found.into_iter().flatten();
    let scaling = found.next().unwrap_or(RopeScaling::None);
    if found.next().is_some() {
        return Err(Error::Unsupported("two rotary scalings at once".into()));
    }
    let gain = match (stretched, file.float(&key("rope.scaling.attn_factor"))?) {
        (Some(_), None) => import::long_gain(trained, original),
        (_, gain) => gain.unwrap_or(1.0),
    };
    let base = file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let mut ropes = vec![Rope { base, scaling, gain }];
    if config.rope_tables() > 1 {
        let base = file.float(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0);
        ropes.push(Rope { base, scaling: RopeScaling::None, gain: 1.0 });
    }
    Ok(ropes)
}

/// The artifact's names and the file's names of all tensors of a model.
pub(crate) fn names(config: &Config) -> Vec<(String, String)> {
    let mut names = vec![
        ("embedding".to_owned(), "token_embd.weight".to_owned()),
        ("output_norm".to_owned(), "output_norm.weight".to_owned()),
    ];
    if !config.tied_embeddings {
        names.push(("output".into(), "output.weight".into()));
    }
    for i in 0..config.layers {
        let mut add =
            |to: &str, from: &str| names.push((format!("layers.{i}.{to}"), format!("blk.{i}.{from}")));
        add("attention_norm", "attn_norm.weight");
        add("q", "attn_q.weight");
        add("k", "attn_k.weight");
        add("v", "attn_v.weight");
        add("o", "attn_output.weight");
        add("ffn_norm", "ffn_norm.weight");
        if config.experts.is_some() {
            add("router", "ffn_gate_inp.weight");
            add("gate", "ffn_gate_exps.weight");
            add("up", "ffn_up_exps.weight");
            add("down", "ffn_down_exps.weight");
        } else {
            add("gate", "ffn_gate.weight");
            add("up", "ffn_up.weight");
            add("down", "ffn_down.weight");
        }
        if config.post_norms {
            add("post_attention_norm", "post_attention_norm.weight");
            add("post_ffn_norm", "post_ffw_norm.weight");
        }
        if config.qkv_bias {
            add("q.bias", "attn_q.bias");
            add("k.bias", "attn_k.bias");
            add("v.bias", "attn_v.bias");
        }
        if config.qk_norm {
            add("q_norm", "attn_q_norm.weight");
            add("k_norm", "attn_k_norm.weight");
        }
    }
    names
}
