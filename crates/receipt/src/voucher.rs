use serde::{Deserialize, Serialize};

use crate::bytes::decimal;
use crate::eip712::{Fields, Statement, Typed, sealed};
use crate::{Address, Bytes32, GenerateCall, Offer};

/// A payer's word that one answer to one request may be charged, and on which terms. What it means on a chain is in
/// `docs/settlement.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voucher {
    /// Who pays.
    pub payer: Address,
    /// Who may charge.
    pub worker: Address,
    /// Model that is to answer.
    pub model: Bytes32,
    /// Salted commitment to the request.
    pub request: Bytes32,
    /// The caller's nonce.
    pub nonce: Bytes32,
    /// Price of a prompt token in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub prompt_price: u128,
    /// Price of a sampled token in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub completion_price: u128,
    /// Most that may be charged, in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub cap: u128,
    /// The request must be received by then, in milliseconds since 1970 UTC.
    pub expires_at_ms: u64,
}

impl sealed::Sealed for Voucher {}
impl Typed for Voucher {
    const TYPES: &'static [&'static str] =
        &["Voucher(address payer,address worker,bytes32 model,bytes32 request,bytes32 nonce,bytes32 prompt,\
        uint128 promptPrice,uint128 completionPrice,uint128 cap,uint64 expiresAtMs)"];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.address("payer", &self.payer);
        v.address("worker", &self.worker);
        v.bytes32("model", &self.model);
        v.bytes32("request", &self.request);
        v.bytes32("nonce", &self.nonce);
        // The prompt's own hash is left out: the worker tokenises.
        v.bytes32("prompt", &Bytes32::ZERO);
        v.uint("promptPrice", 128, self.prompt_price);
        v.uint("completionPrice", 128, self.completion_price);
        v.uint("cap", 128, self.cap);
        v.uint("expiresAtMs", 64, self.expires_at_ms.into());
    }
}
impl Statement for Voucher {
    fn author(&self) -> Option<Address> {
        Some(self.payer)
    }
}

impl Voucher {
    /// The voucher that a payer gives with a call to a worker that makes an offer.
    pub fn new(
        call: &GenerateCall,
        request: Bytes32,
        worker: Address,
        offer: &Offer,
        expires_at_ms: u64,
    ) -> Voucher {
        Voucher {
            payer: call.payer,
            worker,
            model: call.request.model,
            request,
            nonce: call.nonce,
            prompt_price: offer.prompt_price,
            completion_price: offer.completion_price,
            cap: call.cap,
            expires_at_ms,
        }
    }
}
