//! A model, its keys, a proof about each and one that hides its inputs in `docs/vectors`, for other verifiers and for the one in WebAssembly. Made anew with
//! `ASSAY_UPDATE_VECTORS=1 cargo test -p assay-proof --test vectors`.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use assay_graph::Graph;
use assay_proof::{
    Hide, HidingProof, Key, Model, OneTime, Proof, prove, prove_hiding, prove_with_key, verify,
    verify_with_key,
};

#[test]
fn the_published_proof_is_what_the_prover_makes() {
    let graph = common::perceptron();
    let proof = || prove(&graph, &common::inputs(&graph, 40, 5)).unwrap().to_bytes().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors");
    let key = Key::commit(&graph).unwrap();
    let keyed = || {
        let inputs = common::inputs(&graph, 2, 5);
        prove_with_key(&graph, &key, &inputs, &mut |_| ()).unwrap().to_bytes().unwrap()
    };
    let hidden = || {
        let inputs = common::inputs(&graph, 2, 5);
        prove_hiding(&graph, None, &inputs, Hide::Inputs, [1; 32], &mut |_| ()).unwrap().to_bytes().unwrap()
    };
    let hiding = Key::commit_hiding(&graph, 2, &[2; 32], &|| ()).unwrap();
    let hidden_weights = || {
        let (inputs, hide) = (common::inputs(&graph, 2, 5), Hide::Weights(OneTime::new([2; 32], 1)));
        let proof = prove_hiding(&graph, Some(&hiding), &inputs, hide, [3; 32], &mut |_| ()).unwrap();
        proof.to_bytes().unwrap()
    };
    let files = [
        ("perceptron.graph", graph.encode()),
        ("perceptron.proof", common::single_threaded(proof)),
        ("perceptron.key", key.to_bytes()),
        ("perceptron-key.proof", common::single_threaded(keyed)),
        ("perceptron-hidden.proof", common::single_threaded(hidden)),
        ("perceptron-hiding.key", hiding.to_bytes()),
        ("perceptron-hidden-weights.proof", common::single_threaded(hidden_weights)),
    ];
    for (name, made) in files {
        let path = folder.join(name);
        if std::env::var_os("ASSAY_UPDATE_VECTORS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == made, "{name} is not what this prover makes");
    }
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let graph = Graph::decode(&read("perceptron.graph")).unwrap();
    verify(&graph, &Proof::from_bytes(&read("perceptron.proof")).unwrap()).unwrap();
    let key = Key::from_bytes(&read("perceptron.key")).unwrap();
    verify_with_key(&key, &Proof::from_bytes(&read("perceptron-key.proof")).unwrap()).unwrap();
    let hidden = HidingProof::from_bytes(&read("perceptron-hidden.proof")).unwrap();
    Model::Graph(graph).verify_hiding(&hidden).unwrap();
    let hiding = Model::from_bytes(&read("perceptron-hiding.key")).unwrap();
    let hidden = HidingProof::from_bytes(&read("perceptron-hidden-weights.proof")).unwrap();
    hiding.verify_hiding(&hidden).unwrap();
}
