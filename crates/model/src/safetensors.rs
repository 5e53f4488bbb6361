//! Hugging Face folders: `config.json`, safetensors files, `tokenizer.json`, `tokenizer_config.json`.
//!
//! A safetensors file is the length of its header (8 bytes, little-endian), the header in JSON (name, type, shape and
//! byte range of each tensor) and the tensors' bytes. As with GGUF, nothing in it is believed: ranges must lie in the
//! file, agree with type and shape, and cover it without gap or overlap.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::dequantise::TensorType;
use crate::import::{self, Model, Rope, RopeScaling, Tensor};
use crate::tokenizer::MAX_TOKENIZER_BYTES;
use crate::{
    Activation, Architecture, Config, Error, Experts, Pooling, RopeStyle, SourceFormat, SpecialTokens,
};

/// The longest header of a safetensors file in bytes; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The most tensors in a folder.
const MAX_TENSORS: usize = 1 << 16;

/// The longest JSON file other than the tokenizer, in bytes.
const MAX_JSON_BYTES: usize = 4 << 20;

/// Whether [`import_safetensors`] reads a file of this name.
pub fn is_source(name: &str) -> bool {
    FILES.contains(&name) || name.ends_with(".safetensors")
}

/// Files that are read besides `*.safetensors`; others in the folder do not matter.
const FILES: [&str; 7] = [
    POOLING,
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Where `sentence-transformers` says how an encoder's rows become one vector.
const POOLING: &str = "1_Pooling/config.json";

fn bad(reason: impl Into<String>) -> Error {
    Error::Safetensors(reason.into())
}

/// One entry of a header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A header's entries in file order; a JSON map would hide names that occur twice.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<de::IgnoredAny>()?;
                    } else if entries.len() == MAX_TENSORS {
                        return Err(de::Error::custom(format!("it has more than {MAX_TENSORS} tensors")));
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Adds the tensors of one file.
fn read_file<'a>(
    file: &str,
    bytes: &'a [u8],
    tensors: &mut HashMap<String, Tensor<'a>>,
) -> Result<(), Error> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| bad(format!("{file} is cut off")))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
        return Err(bad(format!("the header of {file} claims {length} bytes")));
    }
    let (header, data) = rest.split_at(length as usize); // at most rest.len()
    let Header(mut entries) = serde_json::from_slice(header)
        .map_err(|e| bad(format!("the header of {file} is not readable ({e})")))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (name, Entry { dtype, shape, data_offsets: [from, to] }) in entries {
        // The numbers from 0 on, which old folders of BERT hold.
        let positions = name.ends_with("embeddings.position_ids") && dtype == "I64";
        let kind = match dtype.as_str() {
            _ if positions => TensorType::F32,
            "F32" => TensorType::F32,
            "F16" => TensorType::F16,
            "BF16" => TensorType::BF16,
            _ => return Err(Error::TensorType { tensor: name, found: dtype }),
        };
        let elements = shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n));
        let width = if positions { 2 } else { 1 };
        let size = elements.and_then(|elements| kind.bytes(elements)?.checked_mul(width));
        if from != end || size.is_none() || from.checked_add(size.unwrap_or_default()) != Some(to) {
            return Err(bad(format!(
                "the tensor {name} of shape {shape:?} does not fill bytes {from} to {to} of {file}"
            )));
        }
        end = to;
        let piece = usize::try_from(from)
            .ok()
            .zip(usize::try_from(to).ok())
            .and_then(|(from, to)| data.get(from..to));
        let piece = piece.ok_or_else(|| bad(format!("{file} ends before the tensor {name}")))?;
        if positions {
            continue;
        }
        let tensor = Tensor { name: name.clone(), kind, shape, pieces: vec![piece] };
        if tensors.len() >= MAX_TENSORS || tensors.insert(name.clone(), tensor).is_some() {
            return Err(bad(format!("the tensor {name} occurs twice, or there are more than {MAX_TENSORS}")));
        }
    }
    if end != data.len() as u64 {
        return Err(bad(format!(
            "{} bytes at the end of {file} belong to no tensor",
            data.len() as u64 - end
        )));
    }
    Ok(())
}

/// A JSON object with typed fields.
struct Json<'a> {
    file: &'a str,
    value: Value,
}

impl<'a> Json<'a> {
    fn read(file: &'a str, bytes: &[u8]) -> Result<Json<'a>, Error> {
        if bytes.len() > MAX_JSON_BYTES {
            return Err(bad(format!("{file} has {} bytes, more than {MAX_JSON_BYTES}", bytes.len())));
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|e| bad(format!("{file} is not readable ({e})")))?;
        if value.is_object() {
            Ok(Json { file, value })
        } else {
            Err(bad(format!("{file} is not an object")))
        }
    }

    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field).filter(|value| !value.is_null())
    }

    fn wrong(&self, field: &str) -> Error {
        Error::Metadata(format!("{field} in {}", self.file))
    }

    fn optional<'j, T>(
        &'j self,
        field: &str,
        read: impl FnOnce(&'j Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.get(field).map(|value| read(value).ok_or_else(|| self.wrong(field))).transpose()
    }

    fn count(&self, field: &str) -> Result<Option<usize>, Error> {
        Ok(self.optional(field, Value::as_u64)?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    fn needed<T>(&self, field: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.wrong(field))
    }

    /// Token ids given as a number or a list of numbers.
    fn ids(&self, field: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.optional(field, |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

/// Imports a Hugging Face folder, given as file names and their bytes, and returns the artifact's bytes. The same files
/// give the same bytes on any machine, in whatever order they are given; files that the import does not read may be
/// left out or passed along.
///
/// Architectures: `llama` and `mistral` (as llama), `qwen2`, `qwen3`, `gemma2`, `gemma3_text`, `phi3`, `smollm3`,
/// `mixtral`, `qwen3_moe`, `bert` (with `1_Pooling/config.json`, as `sentence-transformers` has it); types F32, F16,
/// BF16; one file or shards.
/// Needed: `config.json`, `tokenizer.json`, `*.safetensors`. Also read: `tokenizer_config.json`,
/// `generation_config.json`, `chat_template.jinja`, and the licence from the front matter of `README.md`.
///
/// `progress` is called with the bytes of work done and in all.
///
/// # Errors
/// [`Error::Safetensors`] for files that are not well-formed, and others of [`Error`] for a model that the integer
/// engine cannot run; no input makes it panic.
pub fn import_safetensors(
    files: &[(&str, &[u8])],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<u8>, Error> {
    let mut used: Vec<(&str, &[u8])> = files.iter().copied().filter(|(name, _)| is_source(name)).collect();
    used.sort_unstable_by_key(|(name, _)| *name);
    if let Some(pair) = used.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(bad(format!("the file {} is given twice", pair[0].0)));
    }
    let separators = |name: &str| name != POOLING && name.contains(['/', '\\', '\n', '\r']);
    if let Some((name, _)) = used.iter().find(|(name, _)| separators(name)) {
        return Err(bad(format!("the file name {name:?} has a separator or a line end")));
    }
    let model = model(&used)?;
    import::build(model, || folder_hash(&used), progress)
}

/// The SHA-256 of the list that `sha256sum` prints for the files in the order of their names.
fn folder_hash(files: &[(&str, &[u8])]) -> [u8; 32] {
    let mut list = Sha256::new();
    for (name, bytes) in files {
        let hash =
            Sha256::digest(bytes).iter().fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
        list.update(format!("{hash}  {name}\n"));
    }
    list.finalize().into()
}

fn model<'a>(files: &[(&str, &'a [u8])]) -> Result<Model<'a>, Error> {
    let find = |name: &str| files.iter().find(|(other, _)| *other == name).map(|(_, bytes)| *bytes);
    let needed = |name: &str| find(name).ok_or_else(|| bad(format!("the file {name} is missing")));
    let optional = |name: &'static str| find(name).map(|bytes| Json::read(name, bytes)).transpose();

    let json = Json::read("config.json", needed("config.json")?)?;
    let kind = json.needed("model_type", json.optional("model_type", Value::as_str)?)?;
    let architecture = match kind {
        "llama" | "mistral" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "gemma2" => Architecture::Gemma2,
        "gemma3_text" => Architecture::Gemma3,
        "phi3" => Architecture::Phi3,
        "smollm3" => Architecture::Smollm3,
        "mixtral" => Architecture::Mixtral,
        "qwen3_moe" => Architecture::Qwen3Moe,
        "bert" => Architecture::Bert,
        other => return Err(Error::Architecture(other.into())),
    };
    let mut source = HashMap::new();
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        read_file(name, bytes, &mut source)?;
    }
    let config = match (architecture, find(POOLING)) {
        (Architecture::Bert, Some(pooling)) => {
            // Some folders have a prefix, and a layer that makes a vector of the first row, which is not used here.
            let inner = |name: &str| name.strip_prefix("bert.").map(str::to_owned);
            source =
                source.into_iter().map(|(name, tensor)| (inner(&name).unwrap_or(name), tensor)).collect();
            source.retain(|name, _| !name.starts_with("pooler."));
            encoder_config(&json, &Json::read(POOLING, pooling)?, &mut source)?
        }
        (Architecture::Bert, None) => {
            return Err(Error::Unsupported(format!(
                "an encoder without {POOLING}, which says how it makes a vector"
            )));
        }
        _ => config(&json, architecture, &source)?,
    };
    config.check()?;

    let mut tensors = HashMap::new();
    if architecture == Architecture::Phi3 {
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        for i in 0..config.layers {
            for (from, parts) in [
                ("self_attn.qkv_proj", &[("q", q), ("k", kv), ("v", kv)][..]),
                ("mlp.gate_up_proj", &[("gate", config.ffn), ("up", config.ffn)]),
            ] {
                let from = format!("model.layers.{i}.{from}.weight");
                let fused = source.remove(&from).ok_or(Error::MissingTensor(from))?;
                let rows: Vec<usize> = parts.iter().map(|(_, rows)| *rows).collect();
                for ((to, _), part) in parts.iter().zip(fused.split(&rows)?) {
                    tensors.insert(format!("layers.{i}.{to}"), part);
                }
            }
        }
    }
    if let Some(Experts { count, .. }) = config.experts {
        for i in 0..config.layers {
            for (to, from, rows, cols) in expert_names(&config) {
                let parts = (0..count).map(|expert| {
                    let name = format!("model.layers.{i}.{}", from.replace('#', &expert.to_string()));
                    source.remove(&name).ok_or(Error::MissingTensor(name))
                });
                let parts = parts.collect::<Result<Vec<_>, _>>()?;
                tensors.insert(format!("layers.{i}.{to}"), Tensor::stack(parts, rows, cols)?);
            }
        }
    }
    for (to, from) in names(&config) {
        if tensors.contains_key(&to) {
            continue;
        }
        let tensor = source.remove(&from).ok_or_else(|| Error::MissingTensor(from.clone()))?;
        tensors.insert(to, tensor);
    }
    if config.tied_embeddings {
        source.remove("lm_head.weight"); // some folders store the tied matrix twice
    }
    // A tensor that is not understood would be left out of the computation, and the answers would be wrong. Old folders
    // hold the rotary frequencies, which follow from the configuration.
    let unknown = source.keys().filter(|name| !name.ends_with(".rotary_emb.inv_freq")).min();
    if let Some(name) = unknown {
        return Err(Error::Unsupported(format!("the tensor {name}")));
    }

    let tokenizer = needed("tokenizer.json")?;
    if tokenizer.len() > MAX_TOKENIZER_BYTES {
        return Err(bad(format!(
            "tokenizer.json has {} bytes, more than {MAX_TOKENIZER_BYTES}",
            tokenizer.len()
        )));
    }
    let tokenizer_config = optional("tokenizer_config.json")?;
    let generation = optional("generation_config.json")?;
    let tokens =
        special_tokens(&json, generation.as_ref(), tokenizer_config.as_ref(), tokenizer, config.vocab)?;
    let chat_template = match (find("chat_template.jinja"), &tokenizer_config) {
        (Some(text), _) => {
            Some(std::str::from_utf8(text).map_err(|_| bad("chat_template.jinja is not UTF-8"))?.to_owned())
        }
        (None, Some(config)) => chat_template(config)?,
        (None, None) => None,
    };
    let ropes = if config.pooling.is_some() { Vec::new() } else { ropes(&json, &config)? };
    let name = json.optional("_name_or_path", Value::as_str)?.and_then(|path| path.rsplit('/').next());
    Ok(Model {
        format: SourceFormat::Safetensors,
        name: name.filter(|name| !name.is_empty()).unwrap_or(kind).to_owned(),
        licence: find("README.md").and_then(licence),
        tokens,
        chat_template,
        tokenizer: tokenizer.to_vec(),
        ropes,
        // Gemma stores the weights of its norms less one.
        norm_offset: if config.post_norms { 1.0 } else { 0.0 },
        tensors,
        config,
    })
}

fn config(
    json: &Json<'_>,
    architecture: Architecture,
    source: &HashMap<String, Tensor<'_>>,
) -> Result<Config, Error> {
    let count = |field: &str| json.needed(field, json.count(field)?);
    let (dim, heads) = (count("hidden_size")?, count("num_attention_heads")?);
    let head_dim = match json.count("head_dim")? {
        Some(n) => n,
        None if heads > 0 && dim % heads == 0 => dim / heads,
        None => return Err(json.wrong("head_dim")),
    };
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let act = match json.optional("hidden_activation", Value::as_str)? {
        Some(act) => Some(act),
        None => json.optional("hidden_act", Value::as_str)?,
    };
    let activation = match act {
        None if gemma => Activation::GeluTanh,
        None | Some("silu") => Activation::Silu,
        Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some("gelu") => Activation::GeluErf,
        Some(other) => return Err(Error::Unsupported(format!("the activation {other:?}"))),
    };
    if json.get("quantization_config").is_some() {
        return Err(Error::Unsupported("quantization_config".into()));
    }
    let rotated = match json.optional("partial_rotary_factor", Value::as_f64)? {
        Some(factor) if (0.0..=1.0).contains(&factor) => (head_dim.min(1 << 16) as f64 * factor) as usize,
        Some(_) => return Err(json.wrong("partial_rotary_factor")),
        None => head_dim,
    };
    let eps = json.needed("rms_norm_eps", json.optional("rms_norm_eps", Value::as_f64)?)?;
    let trained = count("max_position_embeddings")?;
    let tied = json.optional("tie_word_embeddings", Value::as_bool)?;
    let tied = tied.unwrap_or(gemma || architecture == Architecture::Smollm3);
    let (layers, context) = (count("num_hidden_layers")?, import::context(trained as u64));
    let (window, local) = windows(json, architecture, layers.min(1024))?;
    let cap = |field: &str| {
        let cap = json.optional(field, Value::as_f64)?;
        cap.map(|cap| import::q16(cap, field)).transpose()
    };
    let scale = if gemma { json.optional("query_pre_attn_scalar", Value::as_f64)? } else { None };
    if scale.is_some_and(|scale| scale.fract() != 0.0 || !(1.0..=1e9).contains(&scale)) {
        return Err(json.wrong("query_pre_attn_scalar"));
    }
    let rope_layers = match architecture {
        Architecture::Gemma3 => local.iter().map(|local| Some(usize::from(*local))).collect(),
        Architecture::Smollm3 => rotating(json, layers.min(1024))?,
        _ => Vec::new(),
    };
    let experts = experts(json, architecture)?;
    Ok(Config {
        architecture,
        layers,
        dim,
        heads,
        kv_heads: json.count("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: count(if architecture == Architecture::Qwen3Moe {
            "moe_intermediate_size"
        } else {
            "intermediate_size"
        })?,
        vocab: count("vocab_size")?,
        context,
        rms_eps_q32: import::epsilon(eps)?,
        rope: RopeStyle::Half,
        tied_embeddings: tied,
        qkv_bias: source.contains_key("model.layers.0.self_attn.q_proj.bias"),
        qk_norm: source.contains_key("model.layers.0.self_attn.q_norm.weight"),
        activation,
        post_norms: gemma,
        windows: import::windows(local.len(), context, window, |layer| local[layer]),
        rope_layers,
        rope_dim: (rotated != head_dim).then_some(rotated),
        attention_scale: scale.map(|scale| scale as u64).filter(|scale| *scale != head_dim as u64),
        attention_cap_q16: cap("attn_logit_softcapping")?,
        logit_cap_q16: cap("final_logit_softcapping")?,
        embedding_scale_q16: if gemma {
            Some(import::q16((dim as f64).sqrt() / import::RESIDUAL_DIVISOR, "hidden_size")?)
        } else {
            None
        },
        experts,
        pooling: None,
    })
}

/// The experts of an architecture that has them.
fn experts(json: &Json<'_>, architecture: Architecture) -> Result<Option<Experts>, Error> {
    let field = match architecture {
        Architecture::Mixtral => "num_local_experts",
        Architecture::Qwen3Moe => "num_experts",
        _ => return Ok(None),
    };
    if architecture == Architecture::Qwen3Moe {
        if json.optional("norm_topk_prob", Value::as_bool)? != Some(true) {
            return Err(Error::Unsupported(
                "experts that are not weighed by a softmax over those in use (norm_topk_prob)".into(),
            ));
        }
        let sparse = json.count("decoder_sparse_step")?.unwrap_or(1);
        let dense =
            json.optional("mlp_only_layers", Value::as_array)?.is_some_and(|layers| !layers.is_empty());
        if sparse != 1 || dense {
            return Err(Error::Unsupported(
                "layers without experts (decoder_sparse_step, mlp_only_layers)".into(),
            ));
        }
    }
    let count = |field: &str| json.needed(field, json.count(field)?);
    Ok(Some(Experts { count: count(field)?, used: count("num_experts_per_tok")? }))
}

/// The shape of an encoder, from `config.json` and the configuration of its pooling. Of the embeddings of kinds of text
/// in `source` only the first is kept: sentence embedders know one kind.
fn encoder_config(
    json: &Json<'_>,
    pooling: &Json<'_>,
    source: &mut HashMap<String, Tensor<'_>>,
) -> Result<Config, Error> {
    let count = |field: &str| json.needed(field, json.count(field)?);
    let (layers, dim, heads) =
        (count("num_hidden_layers")?, count("hidden_size")?, count("num_attention_heads")?);
    let mut modes = Vec::new();
    for (field, mode) in [
        ("pooling_mode_cls_token", Some(Pooling::First)),
        ("pooling_mode_mean_tokens", Some(Pooling::Mean)),
        ("pooling_mode_max_tokens", None),
        ("pooling_mode_mean_sqrt_len_tokens", None),
        ("pooling_mode_weightedmean_tokens", None),
        ("pooling_mode_lasttoken", None),
    ] {
        if pooling.optional(field, Value::as_bool)? == Some(true) {
            modes.push(mode);
        }
    }
    let [Some(pooling)] = modes[..] else {
        return Err(Error::Unsupported("a pooling other than the mean or the first row".into()));
    };
    let activation = match json.optional("hidden_act", Value::as_str)? {
        None | Some("gelu") => Activation::GeluErf,
        Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some("silu") => Activation::Silu,
        Some(other) => return Err(Error::Unsupported(format!("the activation {other:?}"))),
    };
    let positions = json.optional("position_embedding_type", Value::as_str)?;
    if positions.is_some_and(|kind| kind != "absolute") || json.get("quantization_config").is_some() {
        return Err(Error::Unsupported("positions other than absolute ones, or quantization_config".into()));
    }
    if heads == 0 || !dim.is_multiple_of(heads) {
        return Err(json.wrong("num_attention_heads"));
    }
    let kinds = count("type_vocab_size")?;
    let name = "embeddings.token_type_embeddings.weight";
    let table = source.remove(name).ok_or_else(|| Error::MissingTensor(name.into()))?;
    let first = table.split(&[1, kinds.saturating_sub(1)])?.swap_remove(0);
    source.insert(name.into(), first);
    Ok(Config {
        architecture: Architecture::Bert,
        layers,
        dim,
        heads,
        kv_heads: heads,
        head_dim: dim / heads,
        ffn: count("intermediate_size")?,
        vocab: count("vocab_size")?,
        context: import::context(count("max_position_embeddings")? as u64),
        rms_eps_q32: import::epsilon(
            json.needed("layer_norm_eps", json.optional("layer_norm_eps", Value::as_f64)?)?,
        )?,
        rope: RopeStyle::Half,
        tied_embeddings: true,
        qkv_bias: true,
        qk_norm: false,
        activation,
        post_norms: false,
        windows: Vec::new(),
        rope_layers: vec![None; layers.min(1024)],
        rope_dim: None,
        attention_scale: None,
        attention_cap_q16: None,
        logit_cap_q16: None,
        embedding_scale_q16: None,
        experts: None,
        pooling: Some(pooling),
    })
}

/// The artifact's names and the folder's names of all tensors of an encoder.
fn encoder_names(config: &Config) -> Vec<(String, String)> {
    let mut names = Vec::new();
    let mut add = |to: &str, from: &str, norm: bool| {
        names.push((to.to_owned(), format!("{from}.weight")));
        if norm {
            names.push((format!("{to}.bias"), format!("{from}.bias")));
        }
    };
    add("embedding", "embeddings.word_embeddings", false);
    add("position_embedding", "embeddings.position_embeddings", false);
    add("type_embedding", "embeddings.token_type_embeddings", false);
    add("embedding_norm", "embeddings.LayerNorm", true);
    for i in 0..config.layers {
        for (to, from) in [
            ("q", "attention.self.query"),
            ("k", "attention.self.key"),
            ("v", "attention.self.value"),
            ("o", "attention.output.dense"),
            ("attention_norm", "attention.output.LayerNorm"),
            ("up", "intermediate.dense"),
            ("down", "output.dense"),
            ("ffn_norm", "output.LayerNorm"),
        ] {
            add(&format!("layers.{i}.{to}"), &format!("encoder.layer.{i}.{from}"), true);
        }
    }
    names
}

/// The window, and for each layer whether it has it.
fn windows(json: &Json<'_>, architecture: Architecture, layers: usize) -> Result<(usize, Vec<bool>), Error> {
    // Qwen and SmolLM apply their window only when they say so.
    let applied = json.optional("use_sliding_window", Value::as_bool)?.unwrap_or(!matches!(
        architecture,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Smollm3
    ));
    let window = json.count("sliding_window")?.filter(|_| applied).unwrap_or(usize::MAX);
    let first = json.count("max_window_layers")?.unwrap_or(0);
    let pattern = json.count("sliding_window_pattern")?.unwrap_or(6).max(1);
    let types = json.optional("layer_types", |value| {
        let types = value.as_array()?.iter().map(|kind| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        });
        types.collect::<Option<Vec<bool>>>()
    })?;
    let local = match types {
        Some(types) if types.len() != layers => return Err(json.wrong("layer_types")),
        Some(types) => types,
        None => (0..layers)
            .map(|layer| match architecture {
                Architecture::Gemma2 => layer.is_multiple_of(2),
                Architecture::Gemma3 => layer % pattern != pattern - 1,
                Architecture::Qwen2 | Architecture::Qwen3 => layer >= first,
                _ => true,
            })
            .collect(),
    };
    Ok((window, local))
}

/// The rotary table of each layer of SmolLM 3, which rotates where `no_rope_layers` has a one.
fn rotating(json: &Json<'_>, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let flags = json.optional("no_rope_layers", |value| {
        value.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()
    })?;
    let interval = json.count("no_rope_layer_interval")?.unwrap_or(4).max(1);
    let rotates = |layer: usize| match &flags {
        Some(flags) => flags[layer] != 0,
        None => layer % interval != interval - 1,
    };
    if flags.as_ref().is_some_and(|flags| flags.len() != layers) {
        return Err(json.wrong("no_rope_layers"));
    }
    let tables: Vec<_> = (0..layers).map(|layer| rotates(layer).then_some(0)).collect();
    Ok(if tables.contains(&None) { tables } else { Vec::new() })
}

/// The rotary tables: that of most layers, and in Gemma 3 that of the layers with a window.
fn ropes(json: &Json<'_>, config: &Config) -> Result<Vec<Rope>, Error> {
    let nested = json.get("rope_parameters").is_some_and(|p| p.get("full_attention").is_some());
    let mut ropes = vec![rope(json, nested.then_some("full_attention"), config)?];
    if config.rope_tables() > 1 {
        ropes.push(if nested {
            rope(json, Some("sliding_attention"), config)?
        } else {
            let base = json.optional("rope_local_base_freq", Value::as_f64)?.unwrap_or(10_000.0);
            Rope { base, scaling: RopeScaling::None, gain: 1.0 }
        });
    }
    Ok(ropes)
}

/// Base and scaling of rotary frequencies, in the older fields or in `rope_parameters` (or its member `part`).
fn rope(json: &Json<'_>, part: Option<&str>, config: &Config) -> Result<Rope, Error> {
    let field = if json.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let parameters = json.get(field);
    let parameters = if let Some(part) = part { parameters.and_then(|p| p.get(part)) } else { parameters };
    let number = |name: &str| parameters.and_then(|p| p.get(name)).and_then(Value::as_f64);
    let base = match number("rope_theta") {
        Some(base) => base,
        None => json.optional("rope_theta", Value::as_f64)?.unwrap_or(10_000.0),
    };
    let plain = Rope { base, scaling: RopeScaling::None, gain: 1.0 };
    let Some(parameters) = parameters else { return Ok(plain) };
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type"));
    let needed = |name: &str| number(name).ok_or_else(|| json.wrong(&format!("{field}.{name}")));
    let scaling = match kind.map(Value::as_str) {
        None | Some(Some("default")) => RopeScaling::None,
        Some(Some("linear")) => RopeScaling::Linear(needed("factor")?),
        Some(Some("llama3")) => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_frequency_factor: needed("low_freq_factor")?,
            high_frequency_factor: needed("high_freq_factor")?,
            original_context: needed("original_max_position_embeddings")?,
        },
        Some(Some("longrope" | "su")) => return long_rope(json, field, parameters, plain, config),
        Some(Some(other)) => return Err(Error::Unsupported(format!("the rotary scaling {other:?}"))),
        Some(None) => return Err(json.wrong(&format!("{field}.rope_type"))),
    };
    Ok(Rope { scaling, ..plain })
}

/// LongRoPE: a factor for each frequency. A context beyond the original one uses the factors for long contexts from the
/// start, as other servers do.
fn long_rope(
    json: &Json<'_>,
    field: &str,
    parameters: &Value,
    plain: Rope,
    config: &Config,
) -> Result<Rope, Error> {
    let original = match parameters.get("original_max_position_embeddings").and_then(Value::as_u64) {
        Some(original) => original,
        None => json.count("original_max_position_embeddings")?.unwrap_or(config.context) as u64,
    };
    let trained = json.count("max_position_embeddings")?.unwrap_or(config.context) as u64;
    let name = if config.context as u64 > original { "long_factor" } else { "short_factor" };
    let factors = parameters.get(name).and_then(Value::as_array);
    let factors = factors
        .and_then(|list| list.iter().map(|f| f.as_f64().map(|f| f as f32)).collect::<Option<Vec<_>>>());
    let factors = factors.ok_or_else(|| json.wrong(&format!("{field}.{name}")))?;
    let gain = parameters.get("attention_factor").and_then(Value::as_f64);
    let gain = gain.unwrap_or_else(|| import::long_gain(trained, original));
    Ok(Rope { scaling: RopeScaling::Factors(factors), gain, ..plain })
}

fn special_tokens(
    config: &Json<'_>,
    generation: Option<&Json<'_>>,
    tokenizer_config: Option<&Json<'_>>,
    tokenizer: &[u8],
    vocab: usize,
) -> Result<SpecialTokens, Error> {
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    let tokenizer: Tokenizer = serde_json::from_slice(tokenizer)
        .map_err(|e| bad(format!("tokenizer.json is not readable ({e})")))?;
    // `eos_token` and others are a text, or an object with the text in `content`.
    let named = |field: &str| {
        let token = tokenizer_config?.get(field)?;
        let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
        tokenizer.added_tokens.iter().find(|token| token.content == text).map(|token| token.id)
    };
    let known = |id: Option<u32>| id.filter(|id| (*id as usize) < vocab);
    let mut end = config.ids("eos_token_id")?;
    if let Some(generation) = generation {
        end.extend(generation.ids("eos_token_id")?);
    }
    end.extend(named("eos_token"));
    end.retain(|id| (*id as usize) < vocab);
    end.sort_unstable();
    end.dedup();
    let bos = config.ids("bos_token_id")?.first().copied();
    Ok(SpecialTokens {
        bos: known(named("bos_token").or(bos)),
        end,
        pad: known(named("pad_token")),
        unknown: known(named("unk_token")),
    })
}

/// The template itself, or the one named `default` of a list.
fn chat_template(config: &Json<'_>) -> Result<Option<String>, Error> {
    config.optional("chat_template", |value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let default =
                list.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"))?;
            default.get("template")?.as_str().map(String::from)
        }
        _ => None,
    })
}

/// The value of `license:` in the front matter of a README, between two lines of `---`.
fn licence(readme: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(readme).ok()?;
    let front = text.strip_prefix("---")?.split("\n---").next()?;
    let value = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty() && value.len() <= 256).then(|| value.to_owned())
}

/// The artifact's names and the folder's names of the matrices of a layer's experts, `#` for the expert's number, with the
/// rows and columns of one.
pub(crate) fn expert_names(config: &Config) -> [(&'static str, &'static str, usize, usize); 3] {
    let [gate, up, down] = if config.architecture == Architecture::Mixtral {
        [
            "block_sparse_moe.experts.#.w1.weight",
            "block_sparse_moe.experts.#.w3.weight",
            "block_sparse_moe.experts.#.w2.weight",
        ]
    } else {
        ["mlp.experts.#.gate_proj.weight", "mlp.experts.#.up_proj.weight", "mlp.experts.#.down_proj.weight"]
    };
    let (dim, ffn) = (config.dim, config.ffn);
    [("gate", gate, ffn, dim), ("up", up, ffn, dim), ("down", down, dim, ffn)]
}

/// The artifact's names and the folder's names of all tensors of a model but the experts.
pub(crate) fn names(config: &Config) -> Vec<(String, String)> {
    if config.pooling.is_some() {
        return encoder_names(config);
    }
    let mut names = Vec::from([
        ("embedding".to_owned(), "model.embed_tokens.weight".to_owned()),
        ("output_norm".to_owned(), "model.norm.weight".to_owned()),
    ]);
    if !config.tied_embeddings {
        names.push(("output".into(), "lm_head.weight".into()));
    }
    for i in 0..config.layers {
        let mut add = |to: &str, from: &str| {
            names.push((format!("layers.{i}.{to}"), format!("model.layers.{i}.{from}")));
        };
        add("attention_norm", "input_layernorm.weight");
        add("q", "self_attn.q_proj.weight");
        add("k", "self_attn.k_proj.weight");
        add("v", "self_attn.v_proj.weight");
        add("o", "self_attn.o_proj.weight");
        if config.post_norms {
            add("post_attention_norm", "post_attention_layernorm.weight");
            add("ffn_norm", "pre_feedforward_layernorm.weight");
            add("post_ffn_norm", "post_feedforward_layernorm.weight");
        } else {
            add("ffn_norm", "post_attention_layernorm.weight");
        }
        match config.architecture {
            // The experts themselves: see `expert_names`.
            Architecture::Mixtral => add("router", "block_sparse_moe.gate.weight"),
            Architecture::Qwen3Moe => add("router", "mlp.gate.weight"),
            _ => {
                add("gate", "mlp.gate_proj.weight");
                add("up", "mlp.up_proj.weight");
                add("down", "mlp.down_proj.weight");
            }
        }
        if config.qkv_bias {
            add("q.bias", "self_attn.q_proj.bias");
            add("k.bias", "self_attn.k_proj.bias");
            add("v.bias", "self_attn.v_proj.bias");
        }
        if config.qk_norm {
            add("q_norm", "self_attn.q_norm.weight");
            add("k_norm", "self_attn.k_norm.weight");
        }
    }
    names
}
