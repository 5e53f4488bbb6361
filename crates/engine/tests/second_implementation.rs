//! Runs `tests/second-implementation/trace_proof.py`, a verifier in Python that was written from docs/trace-proof.md.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;

use assay_engine::light::{Commitment, prove};
use assay_engine::{Config, Engine, Event, Generation, Service};
use assay_model::testing::tiny_gguf;
use assay_model::{Architecture, Artifact, import_gguf};
use assay_receipt::Sampling;

#[test]
#[ignore = "needs Python with blake3 (tests/second-implementation/requirements.txt); .ci/parts/20-verifier runs it"]
fn a_verifier_in_python_accepts_proofs_and_refuses_changed_ones() {
    let bytes = import_gguf(&tiny_gguf(Architecture::Llama, 5), &mut |_, _| {}).unwrap();
    let model = Arc::new(Artifact::parse(Arc::new(bytes)).unwrap());
    let generation = Generation {
        prompt: vec![5, 3, 200, 4, 5],
        resume: Vec::new(),
        sampling: Sampling { temperature_milli: 0, ..Sampling::default() },
        max_tokens: 3,
        end_tokens: Vec::new(),
        constraint: None,
        logprobs: None,
    };
    let mut engine = Engine::new(Arc::clone(&model), Config::default()).unwrap();
    engine.submit(generation.clone(), Service::default()).unwrap();
    let mut answer = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { token, .. } = event {
                answer.push(token);
            }
        }
    }
    let key = Commitment::make(&model, &mut |_, _| {}).unwrap();
    let mut proof = Vec::new();
    prove(&model, Config::default(), key.id(), &generation, &answer, &mut proof, &mut |_, _| {}).unwrap();

    let shape = model.config();
    let layers = (0..shape.layers).flat_map(|index| {
        let layer = model.layer(index);
        [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]
    });
    let rows = |matrix: assay_arithmetic::MatrixView<'_>| -> Vec<Vec<i16>> {
        let row = |row| {
            let mut out = vec![0; matrix.cols];
            matrix.row(row, &mut out);
            out
        };
        (0..matrix.rows).map(row).collect()
    };
    let weights: Vec<_> = layers.chain([model.output()]).map(rows).collect();

    let folder = std::env::temp_dir().join(format!("assay-trace-proof-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("key", &key.to_bytes());
    write("proof", &proof);
    let text = serde_json::json!({ "prompt": generation.prompt, "answer": answer });
    write("text", text.to_string().as_bytes());
    write("weights", serde_json::to_string(&weights).unwrap().as_bytes());
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/second-implementation/trace_proof.py");
    let run = || {
        let mut command = Command::new(&python);
        let output = command.arg(script).args(["key", "proof", "text", "weights"]).current_dir(&folder);
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said.into_owned())
    };
    let (accepted, said) = run();
    assert!(accepted && said.contains("all as specified"), "{said}");
    // A changed trace has other challenges.
    proof[60] ^= 1;
    write("proof", &proof);
    let (accepted, said) = run();
    assert!(!accepted && said.contains("not so"), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}
