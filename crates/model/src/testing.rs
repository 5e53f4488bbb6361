//! Small random models for tests: of the right shape for every code path, made in a millisecond, and of no use as text.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gguf::{self, Gguf};
use crate::{Architecture, Artifact, RopeStyle, import_gguf, safetensors, tokenizer_json_from_gguf};

/// The chat template of [`tiny_gguf`]: ChatML.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Texts of the control tokens of [`tiny_gguf`]; their ids are 0, 1 and 2. The byte tokens follow from id 3.
pub const CONTROL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The merges of [`tiny_gguf`]; their results are the last tokens, in this order.
pub const MERGES: [&str; 8] = ["Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "o n", "r e"];

/// A GGUF file in the making: the keys and tensors that a test wants, in the order in which it adds them.
#[derive(Debug, Clone, Default)]
pub struct GgufWriter {
    /// Names and entries.
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl GgufWriter {
    /// Adds a key with a value that is already encoded; `kind` is the format's number of its type.
    pub fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        let entry = [&string(key), &kind.to_le_bytes()[..], value].concat();
        self.keys.push((key.into(), entry));
        self
    }

    /// Adds an unsigned 32-bit number.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Adds a 32-bit float.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// Adds a boolean.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    /// Adds a string.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &string(value))
    }

    /// Adds an array of strings.
    pub fn texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        let mut value = array(8, values.len());
        values.iter().for_each(|text| value.extend(string(text.as_ref())));
        self.raw(key, 9, &value)
    }

    /// Adds an array of signed 32-bit numbers.
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut value = array(5, values.len());
        values.iter().for_each(|n| value.extend(n.to_le_bytes()));
        self.raw(key, 9, &value)
    }

    /// Adds a tensor; `shape` has the fastest dimension first, `kind` is the format's number of its type.
    pub fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Self {
        self.tensors.push((name.into(), shape.into(), kind, bytes));
        self
    }

    /// Removes a key that was added.
    pub fn remove_key(&mut self, key: &str) -> &mut Self {
        self.keys.retain(|(other, _)| other != key);
        self
    }

    /// Removes a tensor that was added.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    /// The file.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        self.keys.iter().for_each(|(_, entry)| out.extend(entry));
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn array(kind: u32, count: usize) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((count as u64).to_le_bytes());
    out
}

/// A small generator of numbers (SplitMix64), so that a seed gives the same model for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From -1 to 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// The characters that stand for the bytes 0 to 255 in byte-level BPE: printable ones for themselves, the others for
/// characters from U+0100 on.
pub fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte as u8);
        }
        next += 1;
        char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
    })
}

/// Every architecture that writes text.
pub const ARCHITECTURES: [Architecture; 9] = [
    Architecture::Llama,
    Architecture::Qwen2,
    Architecture::Qwen3,
    Architecture::Gemma2,
    Architecture::Gemma3,
    Architecture::Phi3,
    Architecture::Smollm3,
    Architecture::Mixtral,
    Architecture::Qwen3Moe,
];

/// The window of the tiny models that have one.
pub const WINDOW: usize = 24;

/// A random model of `architecture` as a GGUF file: 2 layers (SmolLM 3: 4) of width 64, 4 heads of 16 with 2 for keys and values,
/// feed-forward width 128, context 512, F32 weights, a byte-level BPE tokenizer of 267 tokens ([`CONTROL_TOKENS`], 256
/// bytes, [`MERGES`]) and the template [`CHAT_TEMPLATE`]. All but the Qwen models and Phi have tied embeddings.
/// Gemma and Phi have windows of [`WINDOW`] tokens; Mixtral and Qwen3-MoE have 6 experts of which a token uses 2.
pub fn tiny_gguf(architecture: Architecture, seed: u64) -> Vec<u8> {
    tiny_writer(architecture, seed).finish()
}

/// A random encoder as a Hugging Face folder: 2 layers of width 64, 4 heads, feed-forward width 96, 48 positions, and a
/// WordPiece tokenizer of 40 tokens: `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, the letters, the same with `##` for the first
/// nine, and `the`.
pub fn tiny_encoder(seed: u64) -> Vec<(String, Vec<u8>)> {
    const DIM: u64 = 64;
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let mut words: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(String::from).into();
    words.extend(letters.iter().cloned());
    words.extend(letters.iter().take(9).map(|letter| format!("##{letter}")));
    words.push("the".into());
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut random = Random(seed);
    let mut add = |name: String, shape: &[u64]| {
        let count: u64 = shape.iter().product();
        let norm = name.contains("LayerNorm.weight");
        let width = if shape.len() > 1 && !name.starts_with("embeddings") {
            1.5 / (shape[1] as f32).sqrt()
        } else {
            0.5
        };
        let start = data.len();
        for _ in 0..count {
            let value = if norm { 1.0 } else { 0.0 } + width * random.uniform();
            data.extend(value.to_le_bytes());
        }
        header.insert(
            name,
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    };
    add("embeddings.word_embeddings.weight".into(), &[words.len() as u64, DIM]);
    add("embeddings.position_embeddings.weight".into(), &[48, DIM]);
    add("embeddings.token_type_embeddings.weight".into(), &[2, DIM]);
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for i in 0..2 {
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        for (part, rows, cols) in [
            ("attention.self.query", DIM, DIM),
            ("attention.self.key", DIM, DIM),
            ("attention.self.value", DIM, DIM),
            ("attention.output.dense", DIM, DIM),
            ("intermediate.dense", 96, DIM),
            ("output.dense", DIM, 96),
        ] {
            add(name(&format!("{part}.weight")), &[rows, cols]);
            add(name(&format!("{part}.bias")), &[rows]);
        }
        norms.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(name));
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[DIM]);
        add(format!("{norm}.bias"), &[DIM]);
    }
    let header = serde_json::Value::Object(header).to_string();
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    let added: Vec<_> = (0..4)
        .map(|id| {
            serde_json::json!({"id": id, "content": words[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let edge = |token: &str| serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}});
    let special = |token: &str, id: u32| serde_json::json!({"id": token, "ids": [id], "tokens": [token]});
    let single = [edge("[CLS]"), serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}), edge("[SEP]")];
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": {"[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3)}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words.iter().enumerate().map(|(id, word)| (word.clone(), serde_json::json!(id))).collect::<serde_json::Map<_, _>>()},
    });
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": words.len(), "max_position_embeddings": 48, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "_name_or_path": "tiny/encoder",
    });
    let pooling = serde_json::json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false});
    vec![
        ("model.safetensors".into(), tensors),
        ("tokenizer.json".into(), tokenizer.to_string().into_bytes()),
        ("config.json".into(), config.to_string().into_bytes()),
        ("1_Pooling/config.json".into(), pooling.to_string().into_bytes()),
    ]
}

/// [`tiny_gguf`] before it is finished, for tests that change it.
///
/// # Panics
/// For BERT, which is imported from folders only.
pub fn tiny_writer(architecture: Architecture, seed: u64) -> GgufWriter {
    const DIM: usize = 64;
    const FFN: usize = 128;
    const HEAD: usize = 16;
    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    let name = match architecture {
        Architecture::Llama | Architecture::Mixtral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3Moe => "qwen3moe",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma2 => "gemma2",
        Architecture::Gemma3 => "gemma3",
        Architecture::Phi3 => "phi3",
        Architecture::Smollm3 => "smollm3",
        Architecture::Bert => panic!("encoders are imported from folders: see tiny_encoder"),
    };
    let experts = matches!(architecture, Architecture::Mixtral | Architecture::Qwen3Moe);
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let layers = if architecture == Architecture::Smollm3 { 4 } else { 2 };
    let mut tokens: Vec<String> = CONTROL_TOKENS.map(String::from).into();
    tokens.extend(byte_characters().map(String::from));
    tokens.extend(MERGES.map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    types[..CONTROL_TOKENS.len()].fill(3);

    // llama.cpp expects certain tokens in a model whose name is that of Phi 3.
    let title = if name == "phi3" { "phi" } else { name };
    let mut file = GgufWriter::default();
    let key = |part: &str| format!("{name}.{part}");
    file.text("general.architecture", name)
        .text("general.name", &format!("Tiny {title}"))
        .text("general.license", "cc0-1.0")
        .u32(&key("block_count"), layers)
        .u32(&key("context_length"), 512)
        .u32(&key("embedding_length"), DIM as u32)
        .u32(&key("feed_forward_length"), FFN as u32)
        .u32(&key("attention.head_count"), HEADS as u32)
        .u32(&key("attention.head_count_kv"), KV_HEADS as u32)
        .u32(&key("attention.key_length"), HEAD as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 10_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &MERGES)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .u32("tokenizer.ggml.padding_token_id", 2)
        .flag("tokenizer.ggml.add_bos_token", false)
        .text("tokenizer.chat_template", CHAT_TEMPLATE);

    if gemma || architecture == Architecture::Phi3 {
        file.u32(&key("attention.sliding_window"), WINDOW as u32);
    }
    if architecture == Architecture::Gemma3 {
        file.u32(&key("attention.sliding_window_pattern"), 2).f32(&key("rope.freq_base_swa"), 1_000.0);
    }
    if architecture == Architecture::Gemma2 {
        // Low enough to matter at the size of these numbers.
        file.f32(&key("attn_logit_softcapping"), 5.0).f32(&key("final_logit_softcapping"), 3.0);
    }
    if experts {
        file.u32(&key("expert_count"), 6).u32(&key("expert_used_count"), 2);
        if architecture == Architecture::Qwen3Moe {
            file.u32(&key("expert_feed_forward_length"), FFN as u32);
        }
    }

    let mut random = Random(seed);
    // Centre and half width of a tensor's values, by the last part of its name.
    let spread: BTreeMap<&str, (f32, f32)> =
        [("norm", (1.0, 0.25)), ("bias", (0.0, 0.25)), ("embedding", (0.0, 1.0))].into();
    let mut add = |name: String, shape: &[u64], kind: &str| {
        let (centre, width) = spread.get(kind).copied().unwrap_or((0.0, 1.5 / (shape[0] as f32).sqrt()));
        let count: u64 = shape.iter().product();
        let bytes = (0..count).flat_map(|_| (centre + width * random.uniform()).to_le_bytes()).collect();
        file.tensor(&name, shape, 0, bytes);
    };
    let (dim, ffn, vocab) = (DIM as u64, FFN as u64, tokens.len() as u64);
    let (q, kv, head) = ((HEADS * HEAD) as u64, (KV_HEADS * HEAD) as u64, HEAD as u64);
    add("token_embd.weight".into(), &[dim, vocab], "embedding");
    for i in 0..layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        add(name("attn_norm.weight"), &[dim], "norm");
        let fused = architecture == Architecture::Phi3;
        let parts = if fused {
            vec![("attn_qkv", q + 2 * kv)]
        } else {
            vec![("attn_q", q), ("attn_k", kv), ("attn_v", kv)]
        };
        for (part, rows) in parts {
            add(name(&format!("{part}.weight")), &[dim, rows], "matrix");
            if architecture == Architecture::Qwen2 {
                add(name(&format!("{part}.bias")), &[rows], "bias");
            }
        }
        if matches!(architecture, Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Gemma3) {
            add(name("attn_q_norm.weight"), &[head], "norm");
            add(name("attn_k_norm.weight"), &[head], "norm");
        }
        add(name("attn_output.weight"), &[q, dim], "matrix");
        add(name("ffn_norm.weight"), &[dim], "norm");
        if gemma {
            add(name("post_attention_norm.weight"), &[dim], "norm");
            add(name("post_ffw_norm.weight"), &[dim], "norm");
        }
        if experts {
            add(name("ffn_gate_inp.weight"), &[dim, 6], "matrix");
            add(name("ffn_gate_exps.weight"), &[dim, ffn, 6], "matrix");
            add(name("ffn_up_exps.weight"), &[dim, ffn, 6], "matrix");
            add(name("ffn_down_exps.weight"), &[ffn, dim, 6], "matrix");
            continue;
        }
        if !fused {
            add(name("ffn_gate.weight"), &[dim, ffn], "matrix");
        }
        add(name("ffn_up.weight"), &[dim, if fused { 2 * ffn } else { ffn }], "matrix");
        add(name("ffn_down.weight"), &[ffn, dim], "matrix");
    }
    add("output_norm.weight".into(), &[dim], "norm");
    if matches!(
        architecture,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Phi3
    ) {
        add("output.weight".into(), &[dim, vocab], "matrix");
    }
    file
}

/// The model of [`tiny_gguf`] as a Hugging Face folder of two shards: the same weights, except that the query and key
/// rows of Llama stand in the order that rotates halves instead of neighbours. Both imports give the same answers.
pub fn tiny_safetensors(architecture: Architecture, seed: u64) -> Vec<(String, Vec<u8>)> {
    let gguf = tiny_gguf(architecture, seed);
    let imported = import_gguf(&gguf, &mut |_, _| {}).expect("tiny models import");
    let artifact = Artifact::parse(Arc::new(imported)).expect("an imported artifact is valid");
    let config = artifact.config();
    let file = Gguf::parse(&gguf).expect("tiny models are well-formed");
    let from: BTreeMap<String, String> = gguf::names(config).into_iter().collect();

    let mut shards = [(BTreeMap::new(), Vec::new()), (BTreeMap::new(), Vec::new())];
    let mut names = safetensors::names(config);
    if let Some(experts) = config.experts {
        for i in 0..config.layers {
            for (to, from, ..) in safetensors::expert_names(config) {
                for expert in 0..experts.count {
                    let from = from.replace('#', &expert.to_string());
                    names.push((format!("layers.{i}.{to}#{expert}"), format!("model.layers.{i}.{from}")));
                }
            }
        }
    }
    if architecture == Architecture::Phi3 {
        names.retain(|(section, _)| {
            ![".q", ".k", ".v", ".gate", ".up"].iter().any(|end| section.ends_with(end))
        });
        for i in 0..config.layers {
            for (from, to) in [("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")] {
                names.push((format!("blk.{i}.{from}.weight"), format!("model.layers.{i}.{to}.weight")));
            }
        }
    }
    for (i, (section, name)) in names.into_iter().enumerate() {
        let (section, expert) = match section.split_once('#') {
            Some((section, expert)) => (section.to_owned(), expert.parse::<usize>().ok()),
            None => (section, None),
        };
        let tensor = &file.tensors[from.get(&section).unwrap_or(&section).as_str()];
        let (mut shape, mut source) = (&tensor.shape[..], tensor.pieces[0]);
        if let Some(expert) = expert {
            let bytes = source.len() / shape[0] as usize;
            (shape, source) = (&shape[1..], &source[expert * bytes..][..bytes]);
        }
        let mut bytes = source.to_vec();
        if config.post_norms && section.ends_with("norm") {
            for word in bytes.as_chunks_mut::<4>().0 {
                *word = (f32::from_le_bytes(*word) - 1.0).to_le_bytes(); // exact from 0.5 to 2
            }
        }
        let rotated = section.ends_with(".q") || section.ends_with(".k");
        if config.rope == RopeStyle::Interleaved && rotated {
            let row = bytes.len() / shape[0] as usize;
            let half = config.head_dim / 2;
            for (to, from) in bytes.chunks_mut(row * 2 * half).zip(source.chunks(row * 2 * half)) {
                for (j, to) in to.chunks_mut(row).enumerate() {
                    let k = if j < half { 2 * j } else { 2 * (j - half) + 1 };
                    to.copy_from_slice(&from[k * row..(k + 1) * row]);
                }
            }
        }
        let (header, data) = &mut shards[i % 2];
        let range = [data.len(), data.len() + bytes.len()];
        header.insert(name, serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": range}));
        data.extend(bytes);
    }
    let text = |value: serde_json::Value| value.to_string().into_bytes();
    let tokenizer = file.tokenizer().and_then(|tokenizer| Ok(tokenizer_json_from_gguf(&tokenizer)?));
    let mut files = vec![
        ("tokenizer.json".to_owned(), tokenizer.expect("the tiny tokenizer converts")),
        (
            "tokenizer_config.json".to_owned(),
            text(serde_json::json!({
                "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHAT_TEMPLATE,
            })),
        ),
        (
            "config.json".to_owned(),
            text(serde_json::json!({
                "model_type": match architecture {
                    Architecture::Llama => "llama",
                    Architecture::Mixtral => "mixtral",
                    Architecture::Qwen2 => "qwen2",
                    Architecture::Qwen3 => "qwen3",
                    Architecture::Qwen3Moe => "qwen3_moe",
                    Architecture::Gemma2 => "gemma2",
                    Architecture::Gemma3 => "gemma3_text",
                    Architecture::Phi3 => "phi3",
                    Architecture::Smollm3 => "smollm3",
                    Architecture::Bert => "bert",
                },
                "hidden_size": config.dim, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
                "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "intermediate_size": config.ffn,
                "vocab_size": config.vocab, "max_position_embeddings": config.context, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "tie_word_embeddings": config.tied_embeddings, "eos_token_id": [2, 0],
                "hidden_act": if config.post_norms { "gelu_pytorch_tanh" } else { "silu" },
                "sliding_window": config.windows.iter().max(), "sliding_window_pattern": 2,
                "rope_local_base_freq": 1000.0, "query_pre_attn_scalar": config.head_dim,
                "attn_logit_softcapping": config.attention_cap_q16.map(|cap| f64::from(cap) / 65536.0),
                "final_logit_softcapping": config.logit_cap_q16.map(|cap| f64::from(cap) / 65536.0),
                "num_local_experts": config.experts.map(|experts| experts.count),
                "num_experts": config.experts.map(|experts| experts.count),
                "num_experts_per_tok": config.experts.map(|experts| experts.used),
                "moe_intermediate_size": config.ffn, "norm_topk_prob": true, "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            })),
        ),
        ("README.md".to_owned(), b"---\nlicense: cc0-1.0\n---\n# Tiny\n".to_vec()),
    ];
    for (i, (header, data)) in shards.into_iter().enumerate() {
        let header = serde_json::json!(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        files.push((format!("model-{:05}-of-00002.safetensors", i + 1), bytes));
    }
    files
}
