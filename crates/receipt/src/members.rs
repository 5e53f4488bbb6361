use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bytes::decimal;
use crate::eip712::{Fields, Statement, Typed, sealed};
use crate::request::{label, rule};
use crate::wire::decode;
use crate::{Address, Bytes32, Error, Signed, limits};

/// The list of workers that a deployment knows. Signed by a key that gateways pin in their configuration; a list with a
/// lower serial than one seen before must be refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Rises with each edition.
    pub serial: u64,
    /// When it was made, in seconds since 1970 UTC.
    pub issued_at_s: u64,
    /// When it stops to count, in seconds since 1970 UTC.
    pub expires_at_s: u64,
    /// The workers; no address twice.
    pub members: Vec<Member>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Who runs it. Two workers of one operator are not independent of each other.
    pub operator: String,
    /// Address of its signing key.
    pub worker: Address,
    /// Epoch of that key.
    pub key_epoch: u64,
    /// Where it listens, for example `https://worker.example:8443`.
    pub url: String,
    /// SHA-256 of its TLS certificate in DER form.
    pub tls_sha256: Bytes32,
    /// What it serves and for how much.
    pub models: Vec<Offer>,
}

/// The arithmetic of integer graphs (models from ONNX), whose answers are proofs: 2^31 and the version of proofs that hide nothing.
pub const GRAPH_ARITHMETIC: u32 = (1 << 31) + 5;

/// Stands where an arithmetic does in offers and receipts of proofs of answers in text (`docs/trace-proof.md`): 2^30 and the version
/// of the proof's file. The model is then the key that the proof is checked with.
pub const TRACE_PROOF_ARITHMETIC: u32 = (1 << 30) + 1;

/// One model that a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Model id; for proofs of answers in text, the id of the model's key.
    pub model: Bytes32,
    /// Name by which callers ask for it.
    pub name: String,
    /// Price of a prompt token in 10^-18 OPG; of an integer graph, of an example with its proof; for a proof of an
    /// answer in text, of a position of the text.
    #[serde(with = "decimal")]
    pub prompt_price: u128,
    /// Price of a sampled token in 10^-18 OPG.
    #[serde(with = "decimal")]
    pub completion_price: u128,
    /// Version of the arithmetic; 0 for a forwarder, [`GRAPH_ARITHMETIC`] for an integer graph, [`TRACE_PROOF_ARITHMETIC`] for
    /// proofs of answers in text.
    pub arithmetic: u32,
    /// Longest context in tokens; of an integer graph, the most examples in a request; for proofs, the longest text.
    pub context: u32,
}

impl Offer {
    /// Price of an answer in 10^-18 OPG, or `None` when it exceeds 128 bits.
    pub fn price(&self, prompt_tokens: u32, completion_tokens: u32) -> Option<u128> {
        let prompt = self.prompt_price.checked_mul(prompt_tokens.into())?;
        let completion = self.completion_price.checked_mul(completion_tokens.into())?;
        prompt.checked_add(completion)
    }
}

impl Member {
    /// Its offer of a model.
    pub fn offer(&self, model: &Bytes32) -> Option<&Offer> {
        self.models.iter().find(|offer| offer.model == *model)
    }

    /// Checks the lengths that this type documents.
    ///
    /// # Errors
    /// [`Error::Range`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        label(&self.operator, "members.operator")?;
        rule(!self.operator.is_empty(), "members.operator", "not empty")?;
        label(&self.url, "members.url")?;
        rule(self.models.len() <= limits::OFFERS, "members.models", "at most 256")?;
        self.models.iter().try_for_each(|offer| label(&offer.name, "members.models.name"))
    }
}

impl Members {
    /// The member with this address.
    pub fn member(&self, worker: &Address) -> Option<&Member> {
        self.members.iter().find(|member| member.worker == *worker)
    }

    /// Checks the lengths that this type documents, that no worker is listed twice and that the times are ordered.
    ///
    /// # Errors
    /// [`Error::Range`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        rule(self.members.len() <= limits::MEMBERS, "members", "at most 4,096")?;
        rule(self.issued_at_s < self.expires_at_s, "members.expires_at_s", "after issued_at_s")?;
        let workers: BTreeSet<_> = self.members.iter().map(|member| member.worker).collect();
        rule(workers.len() == self.members.len(), "members.worker", "no worker twice")?;
        self.members.iter().try_for_each(Member::validate)
    }
}

impl Signed<Members> {
    /// Decodes `members.json`. The signature is not checked.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Json`] or [`Error::Range`].
    pub fn from_json(bytes: &[u8]) -> Result<Signed<Members>, Error> {
        let signed: Signed<Members> = decode("list of members", bytes, limits::MEMBERS_BYTES)?;
        signed.statement.validate()?;
        Ok(signed)
    }
}

const MEMBER: &str =
    "Member(string operator,address worker,uint64 keyEpoch,string url,bytes32 tlsSha256,Offer[] models)";
const OFFER: &str = "Offer(bytes32 model,string name,uint128 promptPrice,uint128 completionPrice,uint32 arithmetic,uint32 context)";

impl sealed::Sealed for Members {}
impl Typed for Members {
    const TYPES: &'static [&'static str] =
        &["Members(uint64 serial,uint64 issuedAtS,uint64 expiresAtS,Member[] members)", MEMBER, OFFER];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.uint("serial", 64, self.serial.into());
        v.uint("issuedAtS", 64, self.issued_at_s.into());
        v.uint("expiresAtS", 64, self.expires_at_s.into());
        v.many("members", &self.members);
    }
}
impl Statement for Members {
    fn author(&self) -> Option<Address> {
        None
    }
}

impl sealed::Sealed for Member {}
impl Typed for Member {
    const TYPES: &'static [&'static str] = &[MEMBER, OFFER];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.string("operator", &self.operator);
        v.address("worker", &self.worker);
        v.uint("keyEpoch", 64, self.key_epoch.into());
        v.string("url", &self.url);
        v.bytes32("tlsSha256", &self.tls_sha256);
        v.many("models", &self.models);
    }
}

impl sealed::Sealed for Offer {}
impl Typed for Offer {
    const TYPES: &'static [&'static str] = &[OFFER];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.bytes32("model", &self.model);
        v.string("name", &self.name);
        v.uint("promptPrice", 128, self.prompt_price);
        v.uint("completionPrice", 128, self.completion_price);
        v.uint("arithmetic", 32, self.arithmetic.into());
        v.uint("context", 32, self.context.into());
    }
}
