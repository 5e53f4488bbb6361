//! The good bundle of the published vectors, with the keys to re-sign it as a liar would.

use assay_receipt::*;
use assay_verify::*;
use serde_json::Value;

pub(crate) const VECTORS: &str = include_str!("../../../../docs/vectors/receipt.json");

pub(crate) fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::from_bytes(keccak256(format!("assay test key: {name}")).0).unwrap()
}

pub(crate) fn bundle() -> Bundle {
    Bundle::from_json(vectors()["bundle"].to_string().as_bytes()).unwrap()
}

pub(crate) fn members() -> Members {
    let signed = vectors()["statements"][3]["json"].to_string();
    Signed::<Members>::from_json(signed.as_bytes()).unwrap().statement
}

/// Expects everything that the good bundle says.
pub(crate) fn expected() -> Expected {
    let bundle = bundle();
    let receipt = bundle.receipt.statement;
    Expected {
        nonce: Some(receipt.nonce),
        model: Some(receipt.model),
        payer: Some(receipt.payer),
        cap: Some(receipt.cap),
        ..Expected::of_members(bundle.domain, &members())
    }
}
