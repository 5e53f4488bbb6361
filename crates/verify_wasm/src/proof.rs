//! One proof and the model that it is about, as bytes, to JSON.

use assay_proof::{AnyProof, Error, Model};
use serde_json::{Value, json};

/// The JSON answer about a request: the file of the model or of its key and the file of the proof, each after its length, and the
/// numbers that the proof must be about as a JSON array, or nothing.
#[cfg_attr(
    not(any(test, target_arch = "wasm32")),
    expect(dead_code, reason = "exported for WebAssembly only")
)]
pub(crate) fn answer(request: &[u8]) -> String {
    let invalid = |reason: String| json!({ "valid": false, "reason": reason });
    let parts = file(request).and_then(|(model, rest)| file(rest).map(|(proof, rows)| (model, proof, rows)));
    match parts {
        Some((model, proof, rows)) => check(model, proof, rows).unwrap_or_else(invalid),
        None => invalid("the request is shorter than the files in it".into()),
    }
    .to_string()
}

/// A file after its length, and what follows.
fn file(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
}

fn check(model: &[u8], proof: &[u8], rows: &[u8]) -> Result<Value, String> {
    let said = |error: Error| error.to_string();
    let model = Model::from_bytes(model).map_err(said)?;
    let proof = AnyProof::from_bytes(proof).map_err(said)?;
    model.verify_any(&proof).map_err(said)?;
    let (examples, bits) = model.examples_and_bits(&proof).map_err(said)?;
    let graph = model.graph();
    if !rows.is_empty() {
        let Some(shown) = proof.inputs() else {
            return Err("the proof hides its inputs: it may be about others than those".into());
        };
        let rows: Vec<f64> = serde_json::from_slice(rows).map_err(|error| error.to_string())?;
        let inputs = graph.encode_inputs(&rows).map_err(|error| error.to_string())?;
        if inputs != shown {
            return Err("the proof is about other inputs than those".into());
        }
    }
    let inputs = proof.inputs();
    // The words that they are, where the model takes words.
    let words = inputs.and_then(|inputs| graph.row_numbers(inputs));
    let outputs = || proof.outputs().chunks_exact(graph.width(graph.output()));
    let label = |example: &[i32]| graph.class(example).map(|class| graph.interface().labels[class].clone());
    Ok(json!({
        "valid": true,
        "model": hex(&model.id()),
        "examples": examples,
        "security_bits": bits,
        "hiding": matches!(proof, AnyProof::Hiding(_)),
        "hides_inputs": inputs.is_none(),
        "hides_weights": proof.hides_weights(),
        "inputs": inputs.map(|inputs| inputs.chunks_exact(graph.inputs().len()).collect::<Vec<_>>()),
        "words": words.as_ref().map(|words| words.chunks_exact(graph.numbers()).collect::<Vec<_>>()),
        "outputs": outputs().map(|example| graph.decode_outputs(example)).collect::<Vec<_>>(),
        "labels": outputs().filter_map(label).collect::<Vec<_>>(),
    }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |text, byte| text + &format!("{byte:02x}"))
}
