//! One proof and the model that it is about, as bytes, to JSON.

use assay_proof::{Error, Graph, Key, Proof};
use serde_json::{Value, json};

/// The JSON answer about a request: the length of the file of the model or of its key, that file, and the proof's.
#[cfg_attr(
    not(any(test, target_arch = "wasm32")),
    expect(dead_code, reason = "exported for WebAssembly only")
)]
pub(crate) fn answer(request: &[u8]) -> String {
    let parts = request.split_first_chunk().and_then(|(len, rest)| {
        usize::try_from(u32::from_le_bytes(*len)).ok().and_then(|len| rest.split_at_checked(len))
    });
    let invalid = |reason: String| json!({ "valid": false, "reason": reason });
    match parts {
        Some((model, proof)) => check(model, proof).unwrap_or_else(invalid),
        None => invalid("the request is shorter than the model in it".into()),
    }
    .to_string()
}

fn check(model: &[u8], proof: &[u8]) -> Result<Value, String> {
    let said = |error: Error| error.to_string();
    let proof = Proof::from_bytes(proof).map_err(said)?;
    let (key, graph);
    let (graph, bits): (&Graph, &dyn Fn(usize) -> Result<f64, Error>) = if Key::is_key(model) {
        key = Key::from_bytes(model).map_err(said)?;
        assay_proof::verify_with_key(&key, &proof).map_err(said)?;
        (key.graph(), &|examples| key.security_bits(examples))
    } else {
        graph = Graph::decode(model).map_err(|error| error.to_string())?;
        assay_proof::verify(&graph, &proof).map_err(said)?;
        (&graph, &|examples| assay_proof::security_bits(&graph, examples))
    };
    let examples = proof.inputs.len() / graph.inputs().len();
    let outputs = || proof.outputs.chunks_exact(graph.width(graph.output()));
    let label = |example: &[i32]| graph.class(example).map(|class| graph.interface().labels[class].clone());
    Ok(json!({
        "valid": true,
        "model": hex(&proof.model),
        "examples": examples,
        "security_bits": bits(examples).map_err(said)?,
        "hiding": false,
        "inputs": proof.inputs.chunks_exact(graph.inputs().len()).collect::<Vec<_>>(),
        "outputs": outputs().map(|example| graph.decode_outputs(example)).collect::<Vec<_>>(),
        "labels": outputs().filter_map(label).collect::<Vec<_>>(),
    }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |text, byte| text + &format!("{byte:02x}"))
}
