//! Real models against onnxruntime, whose outputs are in `data`: what rounding to integers costs.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use assay_graph::{Encoding, Node, Task, Tensor};
use assay_onnx::import;

struct Reference {
    inputs: Vec<f64>,
    expected: Vec<f64>,
    examples: usize,
}

fn read(name: &str) -> (Vec<u8>, Reference) {
    let path = |extension: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).with_extension(extension)
    };
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(path("json")).unwrap()).unwrap();
    let flat = |key: &str| -> Vec<f64> {
        let rows = value[key].as_array().unwrap();
        rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
    };
    let examples = value["inputs"].as_array().unwrap().len();
    (
        std::fs::read(path("onnx")).unwrap(),
        Reference { inputs: flat("inputs"), expected: flat("expected"), examples },
    )
}

/// The share of examples with onnxruntime's class, or the largest difference over the spread of its numbers. Ranges are
/// taken from the first third of the examples only.
fn measure(name: &str) -> f64 {
    let (model, reference) = read(name);
    let width = reference.inputs.len() / reference.examples;
    let graph = import(&model, &reference.inputs[..reference.examples / 3 * width]).unwrap().graph;
    let trace = graph.run(&graph.encode_inputs(&reference.inputs).unwrap()).unwrap();
    let outputs = graph.width(graph.output());
    let value = if graph.interface().task == Task::Numbers {
        let found = graph.decode_outputs(trace.output());
        let (low, high) = reference
            .expected
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        let worst = found.iter().zip(&reference.expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        worst / (high - low)
    } else {
        let same = trace.output().chunks(outputs).zip(&reference.expected).filter(|(example, label)| {
            graph.interface().labels[graph.class(example).unwrap()] == label.to_string()
        });
        same.count() as f64 / reference.examples as f64
    };
    println!(
        "{name}: {value:.5}, {} table entries",
        graph.tables().iter().map(|table| table.values.len()).sum::<usize>()
    );
    value
}

#[test]
fn classifiers_agree() {
    for (name, least) in [("digits_mlp", 0.98), ("cancer_mlp", 0.98), ("iris_logistic", 1.0)] {
        let same = measure(name);
        assert!(same >= least, "{name}: {same}");
    }
}

#[test]
fn regressors_are_close() {
    for (name, most) in [("diabetes_mlp", 0.01), ("diabetes_linear", 0.005), ("digits_cnn", 0.03)] {
        let error = measure(name);
        assert!(error <= most, "{name}: {error}");
    }
}

/// As PyTorch's two exporters write them: with and without fused attention, layer norms and GELU.
#[test]
fn transformers_agree() {
    for (name, least) in [("licence_gpt", 0.97), ("digits_transformer", 0.98)] {
        let same = measure(name);
        assert!(same >= least, "{name}: {same}");
    }
}

/// Of its 64 values of 12 bits the squares are summed in parts.
#[test]
fn a_wide_layer_norm_keeps_its_precision() {
    let error = measure("wide_norm");
    assert!(error <= 0.002, "{error}");
    let (model, reference) = read("wide_norm");
    let graph = import(&model, &reference.inputs).unwrap().graph;
    let split = |node: &Node| matches!(node, Node::Product { rows: 1, columns: 1, inner: 2..64, .. });
    assert!(graph.nodes().iter().any(split));
}

/// A table of words that is too large for look-ups: its rows are the inputs, and words are what one asks with.
#[test]
fn words_of_a_large_table_are_rows() {
    let error = measure("rows_gpt");
    assert!(error <= 0.03, "{error}");
    let (model, reference) = read("rows_gpt");
    let graph = import(&model, &reference.inputs).unwrap().graph;
    let Encoding::Rows { len: 24, values } = &graph.interface().encoding else {
        panic!("the inputs are no rows")
    };
    assert_eq!((values.len(), graph.numbers(), graph.inputs().len()), (6000 * 24, 16, 16 * 24));
    let words: Vec<f64> = (0..16).map(|i| f64::from(i * 399)).collect();
    let inputs = graph.encode_inputs(&words).unwrap();
    let found = graph.row_numbers(&inputs).unwrap();
    assert!(found.iter().zip(&words).all(|(found, word)| f64::from(*found) == *word));
    assert!(graph.encode_inputs(&[6000.0; 16]).unwrap_err().to_string().contains("0 to 5999"));
    // Between the layers nothing is read but the one tensor that all of them add to.
    let widths = |at: usize| graph.width(Tensor(at as u32));
    let last_reader = |tensor: usize| {
        let reads = |node: &Node| node.operands().iter().any(|operand| operand.index() == tensor);
        graph.nodes().iter().rposition(reads)
    };
    let alone = |at: &usize| (0..*at).all(|tensor| last_reader(tensor).is_none_or(|reader| reader < *at));
    let cuts = (1..graph.nodes().len()).filter(alone).filter(|at| widths(*at) == 16 * 24).count();
    assert!(cuts >= 4, "{cuts} places where the graph can be cut");
}

/// Comparisons are exact, and leaves keep more bits than a 32-bit float has.
#[test]
fn trees_are_exact() {
    for name in ["iris_forest", "cancer_boosting"] {
        assert_eq!(measure(name), 1.0, "{name}");
    }
    assert!(measure("diabetes_boosting") < 1e-6);
}

#[test]
fn an_import_gives_the_same_graph_again_and_samples_are_checked() {
    let (model, reference) = read("cancer_mlp");
    let id = || import(&model, &reference.inputs).unwrap().graph.id();
    assert_eq!(id(), id());
    assert!(import(&model, &[]).unwrap_err().to_string().contains("--calibrate"));
    assert!(import(&model, &reference.inputs[1..]).is_err());
    // Trees need none.
    assert!(import(&read("iris_forest").0, &[]).is_ok());
}
