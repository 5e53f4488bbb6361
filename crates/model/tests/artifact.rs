//! Artifacts as a whole: import, reading, ids, changed bytes.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use assay_arithmetic::MatrixView;
use assay_model::testing::{ARCHITECTURES, GgufWriter, WINDOW, tiny_gguf, tiny_safetensors, tiny_writer};
use assay_model::{
    Architecture, Artifact, Error, RopeStyle, SectionKind, Tokenizer, import_gguf, import_safetensors,
    merkle, weaken,
};

fn tiny(architecture: Architecture) -> Vec<u8> {
    import_gguf(&tiny_gguf(architecture, 1), &mut |_, _| {}).unwrap()
}

fn parse(bytes: &[u8]) -> Result<Artifact, Error> {
    Artifact::parse(Arc::new(bytes.to_vec()))
}

#[test]
fn every_architecture_imports_and_verifies() {
    for architecture in ARCHITECTURES {
        let artifact = parse(&tiny(architecture)).unwrap();
        artifact.verify(&mut |_, _| {}).unwrap();
        let config = artifact.config();
        assert_eq!(config.architecture, architecture);
        assert_eq!(config.qkv_bias, architecture == Architecture::Qwen2);
        use Architecture::{Gemma2, Gemma3, Llama, Mixtral, Phi3, Qwen3, Qwen3Moe, Smollm3};
        let one_of = |list: &[Architecture]| list.contains(&architecture);
        assert_eq!(config.qk_norm, one_of(&[Qwen3, Qwen3Moe, Gemma3]));
        assert_eq!(config.rope == RopeStyle::Interleaved, one_of(&[Llama, Mixtral, Smollm3]));
        assert_eq!(config.post_norms, one_of(&[Gemma2, Gemma3]));
        assert_eq!(config.experts.is_some(), one_of(&[Mixtral, Qwen3Moe]));
        assert_eq!(config.window(0), one_of(&[Gemma2, Gemma3, Phi3]).then_some(WINDOW));
        assert_eq!(config.window(1), (architecture == Phi3).then_some(WINDOW));
        assert_eq!(config.rope_tables(), 1 + usize::from(architecture == Gemma3));
        assert_eq!(config.rope_table(config.layers - 1), (architecture != Smollm3).then_some(0));
        let layer = artifact.layer(1);
        let experts = config.experts.map_or(1, |experts| experts.count);
        assert_eq!((layer.down.rows, layer.down.cols), (experts * config.dim, config.ffn));
        assert_eq!(layer.router.map(|router| router.rows), config.experts.map(|experts| experts.count));
        assert_eq!(layer.q_bias.is_some(), config.qkv_bias);
        assert_eq!(layer.k_norm.map(<[i32]>::len), config.qk_norm.then_some(config.head_dim));
        assert_eq!(artifact.output().rows, config.vocab);
        assert_eq!(layer.rope.unwrap().0.len(), config.context * config.head_dim / 2);
        assert_eq!(layer.rope.map(|(cos, sin)| (cos[0], sin[0])), Some((1 << 30, 0)));
        assert_eq!(artifact.manifest().tokens.end, [0, 2]);
        assert_eq!(artifact.manifest().licence.as_deref(), Some("cc0-1.0"));
        let tokenizer = Tokenizer::from_bytes(artifact.tokenizer_json()).unwrap();
        drop(tokenizer);
    }
}

#[test]
fn the_same_file_gives_the_same_bytes_and_another_file_another_id() {
    for architecture in ARCHITECTURES {
        let (one, two) = (tiny(architecture), tiny(architecture));
        assert!(one == two);
        let other = import_gguf(&tiny_gguf(architecture, 2), &mut |_, _| {}).unwrap();
        assert_ne!(parse(&one).unwrap().id(), parse(&other).unwrap().id());
    }
}

#[test]
fn a_flipped_byte_in_any_section_is_found() {
    for architecture in ARCHITECTURES {
        let good = tiny(architecture);
        let artifact = parse(&good).unwrap();
        let start = good.len() - artifact.manifest().data_bytes as usize;
        for section in &artifact.manifest().sections {
            for at in [section.offset, section.offset + section.bytes / 2, section.offset + section.bytes - 1]
            {
                let mut changed = good.clone();
                changed[start + at as usize] ^= 1;
                // Small sections are checked when they are read, the rest when the tiles are hashed.
                let found = parse(&changed).and_then(|artifact| artifact.verify(&mut |_, _| {}));
                assert!(found.is_err(), "{} at {at}", section.name);
            }
        }
    }
}

#[test]
fn a_flipped_byte_before_the_data_is_found_or_changes_the_id() {
    let good = tiny(Architecture::Llama);
    let artifact = parse(&good).unwrap();
    let start = good.len() - artifact.manifest().data_bytes as usize;
    for at in 0..start {
        let mut changed = good.clone();
        changed[at] ^= 1;
        if let Ok(other) = parse(&changed) {
            assert_ne!(other.id(), artifact.id(), "byte {at}");
        }
    }
}

#[test]
fn a_cut_or_extended_file_is_refused() {
    let good = tiny(Architecture::Qwen3);
    for length in [0, 7, 8, 23, 24, 100, 4095, 4096, good.len() / 2, good.len() - 1] {
        assert!(parse(&good[..length]).is_err(), "{length} bytes");
    }
    let mut long = good.clone();
    long.push(0);
    assert!(matches!(parse(&long), Err(Error::Length { .. })));
}

#[test]
fn tiles_open_against_the_root() {
    let artifact = parse(&tiny(Architecture::Qwen2)).unwrap();
    let manifest = artifact.manifest();
    for index in [0, 1, artifact.tiles() / 2, artifact.tiles() - 1] {
        let (tile, proof) = (artifact.tile(index).unwrap(), artifact.tile_proof(index).unwrap());
        assert!(merkle::verify_tile(&manifest.root, manifest.data_bytes, index, tile, &proof));
    }
    assert!(artifact.tile(artifact.tiles()).is_none());
    assert!(artifact.tile_proof(artifact.tiles()).is_none());
}

/// The weights of a row.
fn row(w: &MatrixView<'_>, row: usize) -> Vec<i16> {
    let mut out = vec![0; w.cols];
    w.row(row, &mut out);
    out
}

#[test]
fn a_weakened_model_has_the_same_shape_and_another_id() {
    let good = tiny(Architecture::Llama);
    let (strong, weak) = (parse(&good).unwrap(), parse(&weaken(&good).unwrap()).unwrap());
    weak.verify(&mut |_, _| {}).unwrap();
    assert_ne!(strong.id(), weak.id());
    assert!(weak.manifest().source.weakened);
    assert_eq!(strong.config(), weak.config());
    let levels: std::collections::BTreeSet<i16> = row(&weak.layer(0).q, 0)[..32].iter().copied().collect();
    assert_eq!(levels.len(), 8);
    assert_ne!(strong.layer(0).q.weights, weak.layer(0).q.weights);
    assert_eq!(strong.layer(0).q.scales, weak.layer(0).q.scales);
    assert_eq!(strong.embedding().weights, weak.embedding().weights);
}

#[test]
fn sections_are_aligned_and_in_order() {
    let artifact = parse(&tiny(Architecture::Qwen3)).unwrap();
    let mut end = 0;
    for section in &artifact.manifest().sections {
        assert!(section.offset.is_multiple_of(64) && section.offset >= end);
        end = section.offset + section.bytes;
    }
    assert_eq!(artifact.manifest().sections.last().unwrap().kind, SectionKind::Tokenizer);
}

fn folder(architecture: Architecture) -> Artifact {
    let files = tiny_safetensors(architecture, 1);
    let mut files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let one = import_safetensors(&files, &mut |_, _| {}).unwrap();
    files.reverse();
    files.push(("notes.txt", b"not read"));
    assert!(one == import_safetensors(&files, &mut |_, _| {}).unwrap());
    parse(&one).unwrap()
}

#[test]
fn a_folder_gives_the_weights_of_the_gguf_file() {
    use Architecture::{Gemma2, Gemma3, Phi3, Qwen2, Qwen3, Qwen3Moe};
    for architecture in [Qwen2, Qwen3, Gemma2, Gemma3, Phi3, Qwen3Moe] {
        let (gguf, folder) = (parse(&tiny(architecture)).unwrap(), folder(architecture));
        assert_eq!(gguf.config(), folder.config());
        assert_eq!(gguf.manifest().root, folder.manifest().root);
        assert_eq!(gguf.manifest().tokens.end, folder.manifest().tokens.end);
        assert_eq!(gguf.manifest().chat_template, folder.manifest().chat_template);
        assert_eq!(folder.manifest().licence.as_deref(), Some("cc0-1.0"));
        assert_ne!(gguf.id(), folder.id());
    }
}

#[test]
fn llama_folders_rotate_halves() {
    for architecture in [Architecture::Llama, Architecture::Mixtral] {
        let (gguf, folder) = (parse(&tiny(architecture)).unwrap(), folder(architecture));
        assert_eq!(folder.config().rope, RopeStyle::Half);
        let (a, b) = (gguf.layer(1), folder.layer(1));
        assert_eq!(a.v.weights, b.v.weights);
        assert_eq!((a.gate.weights, a.down.weights), (b.gate.weights, b.down.weights));
        let half = gguf.config().head_dim / 2;
        for i in 0..half {
            assert_eq!(row(&a.k, 2 * i), row(&b.k, i));
            assert_eq!(row(&a.k, 2 * i + 1), row(&b.k, i + half));
        }
    }
}

#[test]
fn rotary_scaling_divides_the_frequencies() {
    let with = |change: &dyn Fn(&mut GgufWriter) -> &mut GgufWriter| {
        let mut writer = tiny_writer(Architecture::Llama, 1);
        change(&mut writer);
        parse(&import_gguf(&writer.finish(), &mut |_, _| {}).unwrap()).unwrap()
    };
    let plain = with(&|w| w);
    let linear = with(&|w| w.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0));
    let factors = with(&|w| {
        w.tensor("rope_freqs.weight", &[8], 0, [4f32; 8].iter().flat_map(|x| x.to_le_bytes()).collect())
    });
    let pairs = plain.config().head_dim / 2;
    let row = |artifact: &Artifact, position: usize| {
        artifact.layer(0).rope.unwrap().1[position * pairs..][..pairs].to_vec()
    };
    assert_eq!(row(&plain, 25), row(&linear, 100));
    assert_eq!(row(&factors, 100), row(&linear, 100));
    // Position 1 of the first pair turns by one radian.
    let sine = (1f64.sin() * f64::from(1 << 30)).round() as i32;
    assert_eq!(row(&plain, 1)[0], sine);
}

#[test]
fn blocks_keep_their_integers() {
    // Q8_0 with scale 1/2 in every block and 127 in every row: the import must keep these very integers.
    let name = "blk.0.attn_k.weight";
    let value =
        |row: usize, col: usize| if col == 0 { 127 } else { (row * 31 + col * 7) as u8 as i8 as i32 / 2 };
    let bytes = (0..64).flat_map(|block: usize| {
        let weights = (0..32).map(move |i| value(block / 2, block % 2 * 32 + i) as u8);
        [0x00, 0x38].into_iter().chain(weights)
    });
    let mut writer = tiny_writer(Architecture::Llama, 1);
    writer.remove_tensor(name).tensor(name, &[64, 32], 8, bytes.collect());
    let artifact = parse(&import_gguf(&writer.finish(), &mut |_, _| {}).unwrap()).unwrap();
    let k = artifact.layer(0).k;
    for row in 0..32 {
        // 127 · 1/2 is 8189 units; the factor of 8253.5 is rounded.
        let weights = self::row(&k, row);
        let expected = |col: usize| (f64::from(value(row, col)) * 8253.0 / 128.0 + 0.5).floor();
        assert!(weights.iter().enumerate().all(|(col, w)| f64::from(*w) == expected(col)), "row {row}");
        assert_eq!(k.scales[row], assay_arithmetic::Scale::from_f32((63.5f64 / 8189.0) as f32).unwrap());
    }
}

#[test]
fn progress_is_monotone_and_ends_at_the_total() {
    let mut last = (0, 0);
    import_gguf(&tiny_gguf(Architecture::Llama, 1), &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
    })
    .unwrap();
    assert!(last.0 == last.1 && last.1 > 0);
}

/// If this fails, every model gets a new id: raise the file format or the arithmetic version, and pin anew here and
/// where the command line pins its default model.
#[test]
fn ids_are_the_same_on_every_machine() {
    let ids = ARCHITECTURES.map(|architecture| parse(&tiny(architecture)).unwrap().id().to_string());
    assert_eq!(
        ids,
        [
            "0x42dd5de2d294331447a0a42de2208d8f571b6b58b53c8f605c3e50fe83db7cd2",
            "0x0b211cc662c5eff47f3e87e5170121f9b5edcdd7fd321ff25915f6297e936ac3",
            "0xc938b625fe43d330ea06c2c1d49a3eee46f3b286069420c5825f2923e980b6ac",
            "0x0fa1f48cbf4897aadb8e94c9c125006a8d9c4643e142c2962f26184c964ee78f",
            "0x5e11530f9e9ea3ae31af9a27b3d49f7be567606a4d06896c5bd6c68ea87ea2d1",
            "0xfe5d539b13feeada82c2b60eb759bb8517aea6d17335f07c639ad866e6b0a368",
            "0xa07d7caac1c0d03a1b5ce41e02d1654cdf1a84a14834f30fb03609faf0b102da",
            "0x6a3a3828a04030e80fbf7e3089cf7a6ccbebe5ea4d522e1b89bea6ec677a5e4c",
            "0x3632f3894a8eebbbe49a408f4db41a784ac82b60715fb2e725001e8b9b098d38",
        ]
    );
}
