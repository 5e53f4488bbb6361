//! Files that lie: no input makes the importers or the reader panic or ask for much memory.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use assay_model::testing::{GgufWriter, tiny_encoder, tiny_gguf, tiny_safetensors, tiny_writer};
use assay_model::{Architecture, Artifact, Error, import_gguf, import_safetensors};
use proptest::prelude::*;

fn import(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    import_gguf(bytes, &mut |_, _| {})
}

fn changed(change: impl FnOnce(&mut GgufWriter) -> &mut GgufWriter) -> Error {
    changed_in(Architecture::Qwen2, change)
}

fn changed_in(architecture: Architecture, change: impl FnOnce(&mut GgufWriter) -> &mut GgufWriter) -> Error {
    let mut writer = tiny_writer(architecture, 3);
    change(&mut writer);
    import(&writer.finish()).unwrap_err()
}

/// Where the header of a tiny file ends: before its tensors' data.
fn header_bytes(file: &[u8]) -> usize {
    let name = b"token_embd.weight";
    file.windows(name.len()).position(|window| window == name).unwrap() + 3000
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn cut_headers_are_refused() {
    let good = tiny_gguf(Architecture::Llama, 3);
    for length in (0..header_bytes(&good)).step_by(7).chain([good.len() - 1]) {
        assert!(import(&good[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn lying_counts_and_lengths_are_refused() {
    let good = tiny_gguf(Architecture::Llama, 3);
    // Tensor count, key count, length of the first key, type of the first value, length of its string.
    for (at, width) in [(8, 8), (16, 8), (24, 8), (52, 4), (56, 8)] {
        for lie in [u64::MAX, u64::MAX / 2, 1 << 40, 1 << 32, good.len() as u64, 0] {
            let mut bad = good.clone();
            bad[at..at + width].copy_from_slice(&lie.to_le_bytes()[..width]);
            assert!(import(&bad).is_err(), "{lie} at {at}");
        }
    }
    let huge_array = [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    assert!(matches!(changed(|w| w.raw("x", 9, &huge_array)), Error::Gguf(_)));
    let huge_numbers = [&10u32.to_le_bytes()[..], &(u64::MAX / 4).to_le_bytes()].concat();
    assert!(matches!(changed(|w| w.raw("x", 9, &huge_numbers)), Error::Gguf(_)));
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    assert!(matches!(changed(|w| w.raw("x", 9, &nested)), Error::Gguf(_)));
    assert!(matches!(changed(|w| w.raw("x", 13, &[])), Error::Gguf(_)));
    assert!(matches!(changed(|w| w.raw("x", 7, &[2])), Error::Gguf(_)));
    assert!(matches!(changed(|w| w.u32("general.alignment", 3)), Error::Gguf(_)));
    assert!(matches!(changed(|w| w.u32("general.name", 3)), Error::Gguf(_)));
}

#[test]
fn wrong_tensors_are_refused() {
    let name = "blk.1.ffn_norm.weight";
    let with = |shape: &[u64], kind: u32, bytes: Vec<u8>| {
        let mut writer = tiny_writer(Architecture::Qwen2, 3);
        writer.remove_tensor(name).tensor(name, shape, kind, bytes);
        import(&writer.finish())
    };
    assert!(with(&[64], 0, floats(&[1.0; 64])).is_ok());
    assert!(matches!(with(&[63], 0, floats(&[1.0; 63])), Err(Error::Shape { .. })));
    assert!(matches!(with(&[8, 8], 0, floats(&[1.0; 64])), Err(Error::Shape { .. })));
    assert!(matches!(with(&[0], 0, vec![]), Err(Error::Gguf(_))));
    assert!(matches!(with(&[u64::MAX], 0, vec![]), Err(Error::Gguf(_))));
    assert!(matches!(with(&[1 << 40, 1 << 40], 1, vec![]), Err(Error::Gguf(_))));
    assert!(matches!(with(&[64], 0, vec![0; 128]), Err(Error::Gguf(_))));
    assert!(matches!(with(&[64], 10, vec![0; 84]), Err(Error::TensorType { .. })));
    assert!(matches!(with(&[64], 12, vec![0; 144]), Err(Error::Gguf(_))));
    assert!(matches!(with(&[1, 1, 1, 1, 1], 0, vec![0; 4]), Err(Error::Gguf(_))));
    for wrong in [f32::NAN, f32::INFINITY, 32_768.0] {
        let mut values = [1.0; 64];
        values[63] = wrong;
        assert!(matches!(with(&[64], 0, floats(&values)), Err(Error::Weight { .. })));
    }
    let missing = changed(|w| w.remove_tensor(name));
    assert!(matches!(missing, Error::MissingTensor(missing) if missing == name));
    let unknown = changed(|w| w.tensor("blk.0.attn_sinks.weight", &[4], 0, floats(&[0.0; 4])));
    assert!(matches!(unknown, Error::Unsupported(_)));
    let twice = changed(|w| w.tensor(name, &[64], 0, floats(&[1.0; 64])));
    assert!(matches!(twice, Error::Gguf(_)));
}

#[test]
fn an_infinite_weight_is_refused_and_its_row_named() {
    let mut values = vec![0.5; 64 * 64];
    values[64 * 5 + 7] = f32::INFINITY;
    let name = "blk.0.attn_q.weight";
    let error = changed(|w| w.remove_tensor(name).tensor(name, &[64, 64], 0, floats(&values)));
    assert!(matches!(error, Error::Weight { tensor, row: 5 } if tensor == name));
}

#[test]
fn rows_of_zeros_are_zero() {
    let name = "blk.0.attn_q.weight";
    let mut writer = tiny_writer(Architecture::Llama, 3);
    writer.remove_tensor(name).tensor(name, &[64, 64], 0, vec![0; 64 * 64 * 4]);
    let artifact = Artifact::parse(Arc::new(import(&writer.finish()).unwrap())).unwrap();
    let q = artifact.layer(0).q;
    assert!(q.weights.iter().all(|w| *w == 0) && q.scales.iter().all(|s| s.mantissa == 0));
}

#[test]
fn overlapping_tensors_are_refused() {
    let good = tiny_gguf(Architecture::Llama, 3);
    let name = b"output_norm.weight";
    let at = good.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // Number of dimensions, one dimension, type, offset.
    let offset = at + 4 + 8 + 4;
    for (lie, refused) in [(0u64, true), (32, true), (1, true), (u64::MAX - 31, true)] {
        let mut bad = good.clone();
        bad[offset..offset + 8].copy_from_slice(&lie.to_le_bytes());
        assert_eq!(import(&bad).is_err(), refused, "offset {lie}");
    }
}

#[test]
fn unsupported_models_are_refused_by_name() {
    let rename = |from: &str, to: &str| {
        let good = tiny_gguf(Architecture::Qwen2, 3);
        let at = good.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        import(&bad).unwrap_err()
    };
    assert!(matches!(rename("qwen2", "gemma"), Error::Architecture(name) if name == "gemma"));
    let scaling =
        changed(|w| w.text("qwen2.rope.scaling.type", "yarn").f32("qwen2.rope.scaling.factor", 4.0));
    assert!(scaling.to_string().contains("yarn"), "{scaling}");
    assert!(matches!(changed(|w| w.u32("qwen2.expert_count", 8)), Error::Unsupported(_)));
    for rotated in [0, 1, 7, 18, u32::MAX] {
        let error = changed(|w| w.u32("qwen2.rope.dimension_count", rotated));
        assert!(matches!(error, Error::Unsupported(_)), "{rotated}: {error}");
    }
    assert!(matches!(rename("attention.head_count_kv", "attention.head_count_xy"), Error::Shape { .. }));
}

#[test]
fn bad_files_of_each_family_are_refused_by_name() {
    use Architecture::{Gemma2, Gemma3, Mixtral, Phi3, Qwen3, Qwen3Moe};
    type Change = fn(&mut GgufWriter) -> &mut GgufWriter;
    let cases: [(Architecture, Change, &str); 19] = [
        (Qwen3, |w| w.u32("qwen3.attention.sliding_window", 8), "sliding attention window"),
        (Gemma3, |w| w.u32("gemma3.expert_count", 4), "experts in the architecture gemma3"),
        (Gemma3, |w| w.f32("gemma3.final_logit_softcapping", f32::NAN), "softcapping"),
        (
            Gemma2,
            |w| w.remove_key("gemma2.attn_logit_softcapping").f32("gemma2.attn_logit_softcapping", 0.25),
            "cap",
        ),
        (Gemma3, |w| w.tensor("v.blk.0.ln1.weight", &[1], 0, vec![0; 4]), "v.blk.0.ln1.weight"),
        (Gemma3, |w| w.remove_tensor("blk.1.post_ffw_norm.weight"), "blk.1.post_ffw_norm.weight"),
        (
            Gemma3,
            |w| {
                w.remove_key("gemma3.attention.sliding_window_pattern")
                    .u32("gemma3.attention.sliding_window_pattern", 0)
            },
            "sliding_window_pattern",
        ),
        (
            Gemma3,
            |w| w.remove_key("gemma3.rope.freq_base_swa").f32("gemma3.rope.freq_base_swa", -1.0),
            "rotary",
        ),
        (Phi3, |w| w.remove_tensor("blk.0.attn_qkv.weight"), "blk.0.attn_qkv.weight"),
        (
            Phi3,
            |w| {
                w.remove_tensor("blk.0.attn_qkv.weight").tensor(
                    "blk.0.attn_qkv.weight",
                    &[64, 127],
                    0,
                    vec![0; 64 * 127 * 4],
                )
            },
            "blk.0.attn_qkv.weight",
        ),
        (Phi3, |w| w.text("phi3.rope.scaling.type", "longrope"), "longrope"),
        (Phi3, |w| w.tensor("rope_factors_short.weight", &[7], 0, vec![0; 28]), "rope_factors_short"),
        (Phi3, |w| w.f32("phi3.rope.scaling.attn_factor", 3.0), "multiplied by 3"),
        (
            Mixtral,
            |w| w.remove_key("llama.expert_used_count").u32("llama.expert_used_count", 7),
            "experts that a token uses",
        ),
        (Mixtral, |w| w.u32("llama.expert_shared_count", 1), "every token uses"),
        (Mixtral, |w| w.remove_tensor("blk.0.ffn_gate_exps.weight"), "blk.0.ffn_gate_exps.weight"),
        (Qwen3Moe, |w| w.u32("qwen3moe.expert_gating_func", 2), "softmax"),
        (Qwen3Moe, |w| w.flag("qwen3moe.expert_weights_norm", false), "softmax"),
        (Qwen3Moe, |w| w.remove_key("qwen3moe.expert_count"), "experts"),
    ];
    for (i, (architecture, change, name)) in cases.into_iter().enumerate() {
        let error = changed_in(architecture, change).to_string();
        assert!(error.contains(name), "case {i}: {error}");
    }
}

/// Why a folder is refused in whose files of this name one text stands in place of another.
fn changed_folder(architecture: Architecture, file: &str, from: &str, to: &str) -> String {
    let mut files = tiny_safetensors(architecture, 3);
    let mut changed = false;
    for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with(file)) {
        if let Some(at) = bytes.windows(from.len()).position(|window| window == from.as_bytes()) {
            assert!(file == "config.json" || from.len() == to.len());
            bytes.splice(at..at + from.len(), to.bytes());
            changed = true;
        }
    }
    assert!(changed, "no {from} in {file}");
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    import_safetensors(&files, &mut |_, _| {}).unwrap_err().to_string()
}

#[test]
fn bad_folders_of_each_family_are_refused_by_name() {
    use Architecture::{Gemma2, Gemma3, Llama, Mixtral, Phi3, Qwen3Moe, Smollm3};
    let cases: [(Architecture, &str, &str, &str); 19] = [
        (Mixtral, "\"num_local_experts\":6", "\"num_local_experts\":0", "number of experts"),
        (Mixtral, "\"num_local_experts\":6", "\"num_local_experts\":7", "experts.6.w1.weight"),
        (Mixtral, "\"num_local_experts\":6", "\"num_local_experts\":5", "experts.5."),
        (Mixtral, "\"num_local_experts\":6", "\"num_local_experts\":null", "num_local_experts"),
        (Mixtral, "\"num_local_experts\":6", "\"num_local_experts\":1e9", "num_local_experts"),
        (Mixtral, "\"num_local_experts\":6", "\"num_local_experts\":4000000000", "number of experts"),
        (Mixtral, "\"num_experts_per_tok\":2", "\"num_experts_per_tok\":7", "experts that a token uses"),
        (Mixtral, "\"num_experts_per_tok\":2", "\"num_experts_per_tok\":0", "experts that a token uses"),
        (Mixtral, "\"intermediate_size\":128", "\"intermediate_size\":127", "experts.0.w1.weight"),
        (Qwen3Moe, "\"norm_topk_prob\":true", "\"norm_topk_prob\":false", "norm_topk_prob"),
        (Qwen3Moe, "\"norm_topk_prob\":true", "\"norm_topk_prob\":null", "norm_topk_prob"),
        (Qwen3Moe, "\"decoder_sparse_step\":1", "\"decoder_sparse_step\":2", "layers without experts"),
        (Qwen3Moe, "\"mlp_only_layers\":[]", "\"mlp_only_layers\":[0]", "layers without experts"),
        (Qwen3Moe, "\"moe_intermediate_size\":128", "\"moe_intermediate_size\":64", "experts.0.gate_proj"),
        (
            Llama,
            "\"rope_theta\"",
            "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0},\"rope_theta\"",
            "yarn",
        ),
        (Gemma3, "\"query_pre_attn_scalar\":16", "\"query_pre_attn_scalar\":0.5", "query_pre_attn_scalar"),
        (Gemma2, "\"attn_logit_softcapping\":5.0", "\"attn_logit_softcapping\":0.25", "cap"),
        (Phi3, "\"rope_theta\"", "\"rope_scaling\":{\"type\":\"longrope\"},\"rope_theta\"", "short_factor"),
        (Smollm3, "\"rope_theta\"", "\"no_rope_layers\":[1],\"rope_theta\"", "no_rope_layers"),
    ];
    for (architecture, from, to, name) in cases {
        let error = changed_folder(architecture, "config.json", from, to);
        assert!(error.contains(name), "{to}: {error}");
    }
    // A tensor under another name is missed, and so is one of another shape.
    for (architecture, from, to, name) in [
        (Mixtral, "block_sparse_moe.gate", "block_sparse_moe.gata", "block_sparse_moe.gate.weight"),
        (Mixtral, "experts.3.w2", "experts.3.w9", "experts.3.w2.weight"),
        (
            Qwen3Moe,
            "layers.1.mlp.experts.5.up_proj",
            "layers.1.mlp.experts.9.up_proj",
            "1.mlp.experts.5.up_proj",
        ),
        (Qwen3Moe, "layers.0.mlp.gate.weight", "layers.0.mlp.gata.weight", "0.mlp.gate.weight"),
        (Gemma3, "pre_feedforward_layernorm", "pra_feedforward_layernorm", "pre_feedforward_layernorm"),
        (Phi3, "qkv_proj", "qkw_proj", "qkv_proj"),
    ] {
        let error = changed_folder(architecture, ".safetensors", from, to);
        assert!(error.contains(name), "{to}: {error}");
    }
    for (from, to) in [("experts.0.w1.weight", "[64,128]"), ("block_sparse_moe.gate.weight", "[64,6]")] {
        let mut files = tiny_safetensors(Mixtral, 3);
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with(".safetensors")) {
            // Both dimensions exchanged: as many bytes, another matrix.
            let Some(at) = bytes.windows(from.len()).position(|window| window == from.as_bytes()) else {
                continue;
            };
            let shape = at + bytes[at..].iter().position(|byte| *byte == b'[').unwrap();
            bytes.splice(shape..shape + to.len(), to.bytes());
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
        let error = import_safetensors(&files, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(from) && error.contains("shape"), "{error}");
    }
}

/// Experts of different types cannot stand in one matrix.
#[test]
fn experts_of_different_types_are_refused() {
    let mut files = tiny_safetensors(Architecture::Qwen3Moe, 3);
    let name = "model.layers.1.mlp.experts.4.down_proj.weight";
    let mut changed = false;
    for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with(".safetensors")) {
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
        let Some(entry) = header.get_mut(name) else { continue };
        let range = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize);
        let half = (range[1] - range[0]) / 2;
        entry["dtype"] = "F16".into();
        entry["data_offsets"][1] = (range[1] - half).into();
        for (_, entry) in header
            .iter_mut()
            .filter(|(_, entry)| entry["data_offsets"][0].as_u64().unwrap() as usize >= range[1])
        {
            for i in 0..2 {
                entry["data_offsets"][i] =
                    (entry["data_offsets"][i].as_u64().unwrap() as usize - half).into();
            }
        }
        let mut data = data.to_vec();
        data.drain(range[0]..range[0] + half);
        data[range[0]..range[0] + half].fill(0);
        let header = serde_json::to_vec(&header).unwrap();
        *bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        changed = true;
    }
    assert!(changed);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let error = import_safetensors(&files, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("experts.4.down_proj.weight of another type"), "{error}");
}

#[test]
fn huge_dimensions_are_refused_before_memory_is_asked_for() {
    let set = |key: &str, value: u32| {
        let good = tiny_gguf(Architecture::Qwen2, 3);
        let at = good.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        import(&bad).unwrap_err()
    };
    for key in [
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.key_length",
    ] {
        for value in [0, 1, u32::MAX] {
            let error = set(key, value);
            assert!(
                matches!(
                    error,
                    Error::Limit { .. }
                        | Error::Shape { .. }
                        | Error::Unsupported(_)
                        | Error::MissingTensor(_)
                ),
                "{key} = {value}: {error}"
            );
        }
    }
    assert!(matches!(set("context_length", 0), Error::Limit { .. }));
}

#[test]
fn lying_safetensors_are_refused() {
    let good = tiny_safetensors(Architecture::Qwen3, 3);
    let run = |files: &[(String, Vec<u8>)]| {
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        import_safetensors(&files, &mut |_, _| {})
    };
    assert!(run(&good).is_ok());
    let shard = good.iter().position(|(name, _)| name.ends_with(".safetensors")).unwrap();
    for i in 0..good.len() {
        let mut without = good.clone();
        let (name, _) = without.remove(i);
        let needed = !["README.md", "tokenizer_config.json"].contains(&name.as_str());
        assert_eq!(run(&without).is_err(), needed, "{name}");
        let mut twice = good.clone();
        twice.push(good[i].clone());
        assert!(run(&twice).is_err());
    }
    for lie in [0, 1, u64::MAX, 1 << 40, good[shard].1.len() as u64] {
        let mut bad = good.clone();
        bad[shard].1[..8].copy_from_slice(&lie.to_le_bytes());
        assert!(matches!(run(&bad), Err(Error::Safetensors(_))), "{lie}");
    }
    let mut cut = good.clone();
    cut[shard].1.pop();
    assert!(matches!(run(&cut), Err(Error::Safetensors(_))));
    let mut long = good.clone();
    long[shard].1.push(0);
    assert!(matches!(run(&long), Err(Error::Safetensors(_))));
    // The same length, another meaning.
    for (from, to) in [("\"F32\"", "\"I32\""), ("[0,", "[4,"), ("[64", "[65")] {
        let mut bad = good.clone();
        let at = bad[shard].1.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bad[shard].1[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert!(run(&bad).is_err(), "{from}");
    }
    let mut nan = good.clone();
    let end = nan[shard].1.len();
    nan[shard].1[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(run(&nan), Err(Error::Weight { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn mutated_gguf_headers_never_panic(
        changes in prop::collection::vec((0usize..1 << 20, any::<u8>()), 1..8),
        length in prop::option::of(0usize..1 << 20),
    ) {
        let mut bytes = tiny_gguf(Architecture::Qwen3, 3);
        let header = header_bytes(&bytes);
        for (at, value) in changes {
            bytes[at % header] = value;
        }
        if let Some(length) = length {
            bytes.truncate(length % bytes.len());
        }
        if let Ok(artifact) = import(&bytes) {
            Artifact::parse(Arc::new(artifact)).unwrap();
        }
    }

    #[test]
    fn mutated_safetensors_never_panic(
        file in 0usize..16,
        changes in prop::collection::vec((0usize..4000, any::<u8>()), 1..4),
    ) {
        let mut files = tiny_safetensors(Architecture::Llama, 3);
        let count = files.len();
        let bytes = &mut files[file % count].1;
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        if let Ok(artifact) = import_safetensors(&files, &mut |_, _| {}) {
            Artifact::parse(Arc::new(artifact)).unwrap();
        }
    }

    #[test]
    fn mutated_artifacts_never_panic(changes in prop::collection::vec((0usize..12_000, any::<u8>()), 1..4)) {
        let mut bytes = import(&tiny_gguf(Architecture::Llama, 3)).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(artifact) = Artifact::parse(Arc::new(bytes)) {
            let _ = artifact.verify(&mut |_, _| {});
        }
    }
}

#[test]
fn bad_encoders_are_refused_by_name() {
    let good = tiny_encoder(1);
    type Files = Vec<(String, Vec<u8>)>;
    let run = |change: &dyn Fn(&mut Files)| {
        let mut files = good.clone();
        change(&mut files);
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
        import_safetensors(&files, &mut |_, _| {})
    };
    assert!(run(&|_| {}).is_ok());
    let set = |file: &str, from: &str, to: &str| {
        run(&|files| {
            let (_, bytes) = files.iter_mut().find(|(name, _)| name == file).unwrap();
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            *bytes = text.replacen(from, to, 1).into_bytes();
        })
        .unwrap_err()
        .to_string()
    };
    let pooling = "1_Pooling/config.json";
    let without = run(&|files| files.retain(|(name, _)| name != pooling)).unwrap_err().to_string();
    assert!(without.contains(pooling), "{without}");
    for (file, from, to, name) in [
        (pooling, "\"pooling_mode_cls_token\":false", "\"pooling_mode_cls_token\":true", "pooling"),
        (pooling, "\"pooling_mode_mean_tokens\":true", "\"pooling_mode_max_tokens\":true", "pooling"),
        ("config.json", "\"gelu\"", "\"relu\"", "relu"),
        ("config.json", "\"num_attention_heads\":4", "\"num_attention_heads\":5", "num_attention_heads"),
        ("config.json", "\"type_vocab_size\":2", "\"type_vocab_size\":3", "token_type_embeddings"),
        (
            "config.json",
            "\"max_position_embeddings\":48",
            "\"max_position_embeddings\":49",
            "position_embeddings",
        ),
        ("config.json", "\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "encoder.layer.2"),
        ("config.json", "\"num_hidden_layers\":2", "\"num_hidden_layers\":1", "encoder.layer.1"),
        ("config.json", "\"bert\"", "\"roberta\"", "roberta"),
        ("config.json", "{", "{\"position_embedding_type\":\"relative_key\",", "positions"),
    ] {
        let error = set(file, from, to);
        assert!(error.contains(name), "{to}: {error}");
    }
}
