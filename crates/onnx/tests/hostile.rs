//! Files from outside: a clear error or a model, never a panic.
#![allow(clippy::unwrap_used)]

use assay_onnx::{Error, import};
use proptest::prelude::*;

const MODELS: [&[u8]; 4] = [
    include_bytes!("data/digits_cnn.onnx"),
    include_bytes!("data/iris_forest.onnx"),
    include_bytes!("data/iris_logistic.onnx"),
    include_bytes!("data/cancer_mlp.onnx"),
];
const WIDTHS: [usize; 4] = [64, 4, 4, 30];

/// Replaces every occurrence.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from {
            out[at..at + from.len()].copy_from_slice(to);
        }
    }
    assert_ne!(out, bytes);
    out
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let other = replace(MODELS[0], b"HardSwish", b"HardSwash");
    let error = import(&other, &[1.0; 64]).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(what) if what == "the operator HardSwash"), "{error}");
    let other = replace(MODELS[1], b"TreeEnsembleClassifier", b"TreeEnsembleClassifiex");
    assert!(import(&other, &[]).unwrap_err().to_string().contains("TreeEnsembleClassifiex of ai.onnx.ml"));
    let other = replace(MODELS[1], b"BRANCH_LEQ", b"BRANCH_NEQ");
    assert!(import(&other, &[]).unwrap_err().to_string().contains("BRANCH_NEQ"));
}

/// A few bytes for each node, and 32 MB of memory for each of its examples.
#[test]
fn a_small_file_does_not_take_much_memory() {
    // A field of a protocol buffer: bytes, which are short here, or a number.
    let bytes = |number: u8, value: &[u8]| {
        let mut len = vec![(value.len() & 0x7f) as u8 | 0x80, (value.len() >> 7 & 0x7f) as u8 | 0x80];
        len.push((value.len() >> 14) as u8);
        [&[number << 3 | 2][..], &len, value].concat()
    };
    let size = |size: u32| {
        let varint: Vec<u8> =
            (0..4).map(|i| (size >> (7 * i) & 0x7f) as u8 | if i < 3 { 0x80 } else { 0 }).collect();
        bytes(1, &[&[1 << 3][..], &varint].concat())
    };
    let shape = bytes(2, &[size(1), size(1 << 22)].concat());
    let info = |name: &str| [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &shape))].concat();
    let node = |i: u32| {
        let names = [bytes(1, format!("v{i}").as_bytes()), bytes(2, format!("v{}", i + 1).as_bytes())];
        bytes(1, &[&names.concat()[..], &bytes(4, b"Relu")].concat())
    };
    let model = |nodes: u32| {
        let nodes_of: Vec<u8> = (0..nodes).flat_map(node).collect();
        let graph = [nodes_of, bytes(11, &info("v0")), bytes(12, &info(&format!("v{nodes}")))].concat();
        bytes(7, &graph)
    };
    let error = import(model(64), &[]).unwrap_err().to_string();
    assert!(error.contains("272629760 values for one example"), "{error}");
    // A few of them are only without samples.
    assert!(matches!(import(model(2), &[]), Err(Error::Samples(_))));
}

#[test]
fn every_prefix_is_refused() {
    for (model, width) in MODELS.iter().zip(WIDTHS) {
        for cut in (0..model.len()).step_by(97) {
            assert!(import(&model[..cut], &vec![1.0; width]).is_err(), "cut at {cut}");
        }
    }
}

const TRANSFORMER: &[u8] = include_bytes!("data/digits_transformer.onnx");

#[test]
fn every_prefix_of_a_transformer_is_refused() {
    for cut in (0..TRANSFORMER.len()).step_by(331) {
        assert!(import(&TRANSFORMER[..cut], &[1.0; 64]).is_err(), "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In the nodes, which come before the weights: names, axes, shapes.
    #[test]
    fn mutations_of_a_transformer_do_not_panic(
        edits in prop::collection::vec((0usize..12_000, any::<u8>(), any::<bool>()), 1..3),
    ) {
        let mut model = TRANSFORMER.to_vec();
        for (at, byte, insert) in edits {
            if insert { model.insert(at, byte) } else { model[at] = byte }
        }
        let _ = import(&model, &[0.5; 64]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(import(&noise, &[]).is_err());
    }

    #[test]
    fn mutations_do_not_panic(
        which in 0usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut model = MODELS[which].to_vec();
        for (at, byte, insert) in edits {
            let at = at.index(model.len());
            if insert { model.insert(at, byte) } else { model[at] = byte }
        }
        // A changed weight is another model; anything else is an error.
        let _ = import(&model, &vec![0.5; 2 * WIDTHS[which]]);
    }
}
