//! Real models against onnxruntime, whose outputs are in `data`: what rounding to integers costs.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use assay_graph::Task;
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
