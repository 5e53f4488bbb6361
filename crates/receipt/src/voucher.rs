use serde::{Deserialize, Serialize};

use crate::bytes::decimal;
use crate::eip712::{Fields, Statement, Typed, sealed};
use crate::{Address, Bytes32, GenerateCall, Offer, keccak256};

/// What a voucher says of the prompt's tokens: the hash of the call's salt and the token ids, each in 32 bytes.
///
/// ```
/// use assay_receipt::{Bytes32, keccak256, prompt_commitment};
///
/// let word = |last| Bytes32(std::array::from_fn(|i| if i == 31 { last } else { 0 }));
/// assert_eq!(prompt_commitment(&[7, 9], &word(5)), keccak256([word(5).0, word(7).0, word(9).0].concat()));
/// ```
pub fn prompt_commitment(tokens: &[u32], salt: &Bytes32) -> Bytes32 {
    let mut bytes = salt.0.to_vec();
    for token in tokens {
        bytes.extend([0; 28]);
        bytes.extend(token.to_be_bytes());
    }
    keccak256(bytes)
}

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
    /// [`prompt_commitment`] of the tokens that the request's prompt has, for disputes; zero where the payer leaves them to the worker.
    #[serde(default)]
    pub prompt: Bytes32,
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
        v.bytes32("prompt", &self.prompt);
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
    /// The voucher that a payer gives with a call to a worker that makes an offer. `request` and `prompt` are the commitments.
    pub fn new(
        call: &GenerateCall,
        request: Bytes32,
        prompt: Bytes32,
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
            prompt,
            prompt_price: offer.prompt_price,
            completion_price: offer.completion_price,
            cap: call.cap,
            expires_at_ms,
        }
    }
}
