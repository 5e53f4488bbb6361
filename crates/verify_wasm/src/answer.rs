//! One proof of an answer in text, the key of its model and its receipt, as bytes, to JSON.

use std::sync::Arc;

use assay_engine::Config;
use assay_engine::light::Commitment;
use assay_engine::request::Processor;
use assay_receipt::{Bundle, Constraint, Prompt};
use assay_verify::{Expected, check_trace_proof};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// What is said in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About<'a> {
    #[serde(borrow)]
    bundle: &'a RawValue,
    expected: Expected,
}

/// The JSON answer about a request: the key's file and the proof's, each after its length, and then JSON with the `bundle` and what is
/// `expected` of it.
#[cfg_attr(
    not(any(test, target_arch = "wasm32")),
    expect(dead_code, reason = "exported for WebAssembly only")
)]
pub(crate) fn answer(request: &[u8]) -> String {
    let parts = file(request).and_then(|(key, rest)| file(rest).map(|(proof, about)| (key, proof, about)));
    let checked = match parts {
        Some((key, proof, about)) => check(key, proof, about),
        None => Err("the request is shorter than the files in it".into()),
    };
    checked.unwrap_or_else(|error| json!({ "error": error })).to_string()
}

/// A file after its length, and what follows.
fn file(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
}

fn check(key: &[u8], proof: &[u8], about: &[u8]) -> Result<Value, String> {
    let about: About<'_> = serde_json::from_slice(about).map_err(|error| error.to_string())?;
    let bundle = Bundle::from_json(about.bundle.get().as_bytes()).map_err(|error| error.to_string())?;
    let free = matches!(bundle.request.constraint, Constraint::None)
        && !matches!(&bundle.request.prompt, Prompt::Chat { tools: Some(_), .. });
    if !free {
        // What follows grammars asks for the time, which a module without imports has not.
        return Err("answers with tools or a form are not checked here: use `assay verify --proof`".into());
    }
    let key = Commitment::from_bytes(key).map_err(|error| error.to_string())?;
    let processor = Processor::from_artifact(key.artifact()).map_err(|error| error.to_string())?;
    let id = key.id();
    let config = Config { threads: 1, ..Config::default() };
    let proof = Arc::new(proof.to_vec());
    let report = check_trace_proof(&bundle, &about.expected, &Arc::new(key), &processor, proof, config);
    let report = report.map_err(|error| error.to_string())?;
    let mut said = json!(report);
    said["key"] = json!(id);
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = include_bytes!("../../../docs/vectors/answer.key");
    const PROOF: &[u8] = include_bytes!("../../../docs/vectors/answer.proof");
    const ABOUT: &[u8] = include_bytes!("../../../docs/vectors/answer.json");

    fn ask(parts: [&[u8]; 3]) -> Value {
        let [key, proof, about] = parts;
        let mut call = Vec::new();
        for file in [key, proof] {
            call.extend(u32::try_from(file.len()).unwrap().to_le_bytes());
            call.extend(file);
        }
        call.extend(about);
        serde_json::from_str(&answer(&call)).unwrap()
    }

    #[test]
    fn a_proof_is_checked_with_the_key_alone() {
        assert_eq!(ask([KEY, PROOF, ABOUT])["state"], "proved");
        let mut changed = PROOF.to_vec();
        changed[200] ^= 1;
        assert_eq!(ask([KEY, &changed, ABOUT])["state"], "signed");
        assert!(ask([PROOF, KEY, ABOUT])["error"].is_string());
        assert!(ask([KEY, PROOF, b"{}"])["error"].is_string());
        assert!(answer(&[9, 0, 0, 0, 1]).contains("shorter"));
    }

    #[test]
    fn what_needs_a_clock_is_refused() {
        let text = std::str::from_utf8(ABOUT).unwrap();
        let form = text.replacen(r#""constraint":"none""#, r#""constraint":"json""#, 1);
        assert_ne!(form, text);
        assert!(ask([KEY, PROOF, form.as_bytes()])["error"].as_str().unwrap().contains("form"));
    }
}
