//! What a node says about a block, as JSON, to JSON.

use assay_verify::finality::LightClient;
use serde_json::{Value, json};

/// The JSON answer about a request; see the crate.
#[cfg_attr(
    not(any(test, target_arch = "wasm32")),
    expect(dead_code, reason = "exported for WebAssembly only")
)]
pub(crate) fn answer(request: &[u8]) -> String {
    check(request).unwrap_or_else(|reason| json!({ "final": false, "reason": reason })).to_string()
}

fn check(request: &[u8]) -> Result<Value, String> {
    let request: Value = serde_json::from_slice(request).map_err(|error| error.to_string())?;
    let genesis = bytes(&request["genesis"])?.try_into().map_err(|_| "a block's hash has 32 bytes")?;
    let mut light = LightClient::new(genesis, &bytes(&request["header"])?, &bytes(&request["committee"])?)
        .map_err(|error| error.to_string())?;
    for step in request["epochs"].as_array().into_iter().flatten() {
        light
            .advance(&headers(step)?, &bytes(&step["finalization"])?, &bytes(&step["committee"])?)
            .map_err(|error| error.to_string())?;
    }
    let block = light
        .verify(&headers(&request)?, &bytes(&request["finalization"])?)
        .map_err(|error| error.to_string())?;
    Ok(json!({
        "final": true,
        "number": block.number,
        "hash": hex(&block.hash),
        "stateRoot": hex(&block.state_root),
        "timestamp": block.timestamp,
        "epoch": light.epoch(),
    }))
}

fn headers(value: &Value) -> Result<Vec<Vec<u8>>, String> {
    value["headers"].as_array().into_iter().flatten().map(bytes).collect()
}

fn bytes(value: &Value) -> Result<Vec<u8>, String> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x")).unwrap_or("?");
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        std::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.len() == 2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
    });
    pairs.collect::<Option<_>>().ok_or_else(|| "what should be 0x and hexadecimal digits is not".to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |text, byte| text + &format!("{byte:02x}"))
}
