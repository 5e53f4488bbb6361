//! Import, run, prove and verify on the command line, each in a process of its own.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn assay(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay")).env("ASSAY_HOME", home).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn data(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../onnx/tests/data").join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_prediction_is_proved_by_one_process_and_checked_by_another() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (model, rows, proof) = (data("digits_mlp.onnx"), data("digits_mlp.json"), file("digits.proof"));
    let run = |arguments: &[&str]| assay(home.path(), arguments);

    let imported = json(&run(&["model", "import", &model, "--calibrate", &rows, "--json"]));
    assert_eq!(imported["samples"], 150);
    assert_eq!(imported["same_class"], 150);

    let listed = json(&run(&["model", "list", "--json"]));
    assert_eq!((&listed[0]["name"], &listed[0]["id"]), (&imported["name"], &imported["id"]));

    let inferred = json(&run(&["infer", "digits_mlp", "--input", &rows, "--json"]));
    let proved = json(&run(&["prove", "digits_mlp", "--input", &rows, "-o", &proof, "--json"]));
    assert_eq!(proved["examples"], 150);
    assert_eq!(proved["labels"], inferred["labels"]);

    let checked = run(&["verify", &proof, "--json"]);
    assert_eq!(checked.status.code(), Some(0));
    let checked = json(&checked);
    assert_eq!(checked["outputs"], inferred["outputs"]);
    assert!(checked["security_bits"].as_f64().unwrap() > 100.0);
    assert_eq!(checked["hiding"], false);

    // Committed weights: whoever checks needs the key, and no model.
    let (key, keyed) = (file("digits.key"), file("keyed.proof"));
    let committed = json(&run(&["model", "commit", "digits_mlp", "--out", &key, "--json"]));
    assert_eq!(committed["model"], imported["id"]);
    assert_eq!(
        run(&["prove", "digits_mlp", "--input", &rows, "--key", &key, "-o", &keyed]).status.code(),
        Some(0)
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let there = |arguments: &[&str]| assay(elsewhere.path(), arguments);
    let checked_there = json(&there(&["verify", &keyed, "--key", &key, "--json"]));
    assert_eq!(
        (&checked_there["model"], &checked_there["outputs"]),
        (&committed["key"], &checked["outputs"])
    );
    assert!(String::from_utf8_lossy(&there(&["verify", &keyed]).stderr).contains("--key"));
    assert_eq!(there(&["verify", &proof, "--key", &key]).status.code(), Some(1));

    // Hidden inputs: the file has none of them, and another process checks it all the same.
    let hidden = file("hidden.proof");
    let proved =
        json(&run(&["prove", "digits_mlp", "--input", &rows, "--hide", "inputs", "-o", &hidden, "--json"]));
    assert_eq!((&proved["hiding"], &proved["labels"]), (&Value::Bool(true), &inferred["labels"]));
    let checked_hidden = json(&run(&["verify", &hidden, "--json"]));
    assert_eq!(
        (&checked_hidden["valid"], &checked_hidden["hiding"]),
        (&Value::Bool(true), &Value::Bool(true))
    );
    assert_eq!(checked_hidden["outputs"], inferred["outputs"]);
    assert!(checked_hidden["security_bits"].as_f64().unwrap() > 100.0);
    let said = |proof: &str| String::from_utf8(run(&["verify", proof]).stdout).unwrap();
    assert!(said(&hidden).contains("PROVED (zero-knowledge)"));
    assert!(said(&proof).contains("PROVED (succinct, not hiding)"));
    let mut bytes = std::fs::read(&hidden).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 4;
    std::fs::write(&hidden, bytes).unwrap();
    assert_eq!(run(&["verify", &hidden]).status.code(), Some(1));

    // One bit of the proof, and another model: both are answered with no.
    let mut bytes = std::fs::read(&proof).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    let forged = file("forged.proof");
    std::fs::write(&forged, bytes).unwrap();
    let answer = run(&["verify", &forged, "--json"]);
    assert_eq!(answer.status.code(), Some(1));
    let other = run(&["model", "import", &data("iris_forest.onnx"), "--json"]);
    assert_eq!(other.status.code(), Some(0));
    assert_eq!(run(&["verify", &proof, "--model", "iris_forest"]).status.code(), Some(1));

    // Without the model, nothing can be said.
    let answer = there(&["verify", &proof]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("which is not here"));
}

/// Weights that nobody is to learn: as many proofs as the key is for, each checked with the key alone.
#[test]
fn weights_are_hidden_in_as_many_proofs_as_their_key_is_for() {
    let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (model, rows) = (data("digits_mlp.onnx"), data("digits_mlp.json"));
    let run = |arguments: &[&str]| assay(home.path(), arguments);
    let there = |arguments: &[&str]| assay(elsewhere.path(), arguments);
    let error = |output: &Output| {
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    };
    json(&run(&["model", "import", &model, "--calibrate", &rows, "--json"]));
    let (key, proof, open) = (file("digits.key"), file("hidden.proof"), file("open.key"));
    let commit = ["model", "commit", "digits_mlp", "--out", &key, "--hide", "2", "--json"];
    let committed = json(&run(&commit));
    assert_eq!(
        (&committed["hiding_proofs"], &committed["secret"]),
        (&2.into(), &file("digits.secret").into())
    );
    // Neither the secret nor its key is overwritten, also by a key that hides nothing.
    assert!(error(&run(&commit)).contains("is not overwritten"));
    assert!(error(&run(&["model", "commit", "digits_mlp", "--out", &key])).contains("is not overwritten"));
    let lost = file("no/such/folder.key");
    assert!(
        error(&run(&["model", "commit", "digits_mlp", "--out", &lost, "--hide", "2"])).contains("folder.key")
    );
    // A proof that cannot be written uses nothing up.
    let lost =
        run(&["prove", "digits_mlp", "--input", &rows, "--hide", "weights", "--key", &key, "-o", &lost]);
    assert!(error(&lost).contains("folder.key"));
    json(&run(&["model", "commit", "digits_mlp", "--out", &open, "--json"]));

    let prove = |hide: &str, key: &str| {
        run(&["prove", "digits_mlp", "--input", &rows, "--hide", hide, "--key", key, "-o", &proof, "--json"])
    };
    assert!(error(&prove("weights", &open)).contains("does not hide its weights"));
    assert!(error(&prove("inputs", &key)).contains("add --hide weights"));
    let without_key = run(&["prove", "digits_mlp", "--input", &rows, "--hide", "weights", "-o", &proof]);
    assert!(error(&without_key).contains("--key"));
    for (hide, inputs) in [("weights", false), ("inputs,weights", true)] {
        let proved = json(&prove(hide, &key));
        assert_eq!(proved["proofs_left"], if inputs { 0 } else { 1 });
        assert_eq!((&proved["hides_weights"], &proved["hides_inputs"]), (&true.into(), &inputs.into()));
        let checked = json(&there(&["verify", &proof, "--key", &key, "--json"]));
        assert_eq!((&checked["valid"], &checked["model"]), (&true.into(), &committed["key"]));
        assert_eq!((&checked["hides_weights"], &checked["hides_inputs"]), (&true.into(), &inputs.into()));
        assert_eq!(checked["outputs"], proved["outputs"]);
        assert!(checked["security_bits"].as_f64().unwrap() > 100.0);
        let told = there(&["verify", &proof, "--key", &key]);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("PROVED (zero-knowledge)") && told.contains("weights and biases"), "{told}");
        assert_eq!(there(&["verify", &proof, "--key", &open]).status.code(), Some(1));
    }
    assert!(error(&prove("weights", &key)).contains("2 proofs are all made"));
    std::fs::remove_file(file("digits.secret")).unwrap();
    assert!(error(&prove("weights", &key)).contains("digits.secret"));
}

/// A transformer as PyTorch exports it, with and without the model at hand.
#[test]
fn a_transformer_from_pytorch_is_proved_by_one_process_and_checked_by_another() {
    let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (model, rows) = (data("digits_transformer.onnx"), data("digits_transformer.json"));
    let run = |arguments: &[&str]| assay(home.path(), arguments);
    let there = |arguments: &[&str]| assay(elsewhere.path(), arguments);
    let imported = json(&run(&["model", "import", &model, "--calibrate", &rows, "--json"]));
    let (row, proof, keyed, key) =
        (file("row.json"), file("one.proof"), file("keyed.proof"), file("one.key"));
    let all: Value = serde_json::from_slice(&std::fs::read(&rows).unwrap()).unwrap();
    std::fs::write(&row, serde_json::to_vec(&serde_json::json!({ "inputs": [all["inputs"][0]] })).unwrap())
        .unwrap();

    let proved = json(&run(&["prove", "digits_transformer", "--input", &row, "-o", &proof, "--json"]));
    let graph = format!("{}/models/digits_transformer.graph", home.path().display());
    let checked = json(&there(&["verify", &proof, "--model", &graph, "--json"]));
    assert_eq!((&checked["valid"], &checked["model"]), (&Value::Bool(true), &imported["id"]));
    assert_eq!(checked["outputs"], proved["outputs"]);

    let committed = run(&["model", "commit", "digits_transformer", "--out", &key, "--json"]);
    assert_eq!(committed.status.code(), Some(0), "{}", String::from_utf8_lossy(&committed.stderr));
    let with_key = ["prove", "digits_transformer", "--input", &row, "--key", &key, "-o", &keyed, "--json"];
    assert_eq!(run(&with_key).status.code(), Some(0));
    let checked = json(&there(&["verify", &keyed, "--key", &key, "--json"]));
    assert_eq!((&checked["valid"], &checked["outputs"]), (&Value::Bool(true), &proved["outputs"]));
    let mut bytes = std::fs::read(&keyed).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&keyed, bytes).unwrap();
    assert_eq!(there(&["verify", &keyed, "--key", &key]).status.code(), Some(1));
}

#[test]
fn what_cannot_be_imported_is_refused_with_a_reason() {
    let home = tempfile::tempdir().unwrap();
    let answer = assay(home.path(), &["model", "import", &data("digits_mlp.onnx")]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("--calibrate"));
    let broken = home.path().join("broken.onnx");
    std::fs::write(&broken, b"\x3a\x02\x0a\xff").unwrap();
    let answer = assay(home.path(), &["model", "import", broken.to_str().unwrap()]);
    assert_eq!(answer.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("the ONNX file is not valid"));
}
