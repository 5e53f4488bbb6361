//! What an operator can set.

use std::net::SocketAddr;
use std::path::PathBuf;

use assay_receipt::{Bytes32, Domain};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Everything that an operator can set about a worker.
///
/// All keys but `data_dir` have defaults, and the defaults only listen on this machine. Unknown keys are refused, so a
/// misspelt key is an error and not silence.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder with the worker's key, TLS certificate, statement log and `worker.json`. Made when missing.
    pub data_dir: PathBuf,
    /// Address and port to listen on; port 0 takes a free one. Default `127.0.0.1:0`.
    #[serde(default = "defaults::listen")]
    pub listen: SocketAddr,
    /// The `https://` URL under which gateways reach this worker. Default: `https://` and the bound address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Name of the person or firm that runs this worker, as shown to callers. Default `local`.
    #[serde(default = "defaults::operator")]
    pub operator: String,
    /// Number of the identity key among those that this operator has used for this worker. Default 0.
    #[serde(default)]
    pub key_epoch: u64,
    /// The EIP-712 domain (chain id and contract) that this worker signs for. Calls for another domain are refused.
    /// Default: chain 31337 and a fixed address, for a deployment without a chain.
    #[serde(default = "defaults::domain")]
    pub domain: Domain,
    /// The chain on which answers are paid. Default: none, so payers are asked for no vouchers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
    /// Models that this worker runs itself.
    #[serde(default)]
    pub models: Vec<Model>,
    /// Models that this worker asks another, OpenAI-compatible server for. Answers are signed but cannot be replayed.
    #[serde(default)]
    pub forward: Vec<Forward>,
    /// Threads that compute, per model. 0 takes one for each core. Default 0.
    #[serde(default)]
    pub threads: usize,
    /// Bytes for keys and values per model, shared by all requests and by what is kept of earlier ones; never exceeded.
    /// A token of the default model takes 24480. Default 402653184 (384 MiB).
    #[serde(default = "defaults::kv_bytes")]
    pub kv_bytes: usize,
    /// Bytes for all models that are loaded at once, their files and `kv_bytes` each. Models are loaded when they are
    /// asked for; when one needs room, the idle ones that were not asked for longest go. 0: all stay loaded. Default 0.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Requests per model that run at once. Default 8.
    #[serde(default = "defaults::max_batch")]
    pub max_batch: usize,
    /// Prompt tokens that one step may read in beside running streams; smaller keeps them smoother. Twice as many
    /// when no stream runs. Default 128.
    #[serde(default = "defaults::prefill_chunk")]
    pub prefill_chunk: usize,
    /// Requests per model that may wait for a place; more are refused with 429. Default 32.
    #[serde(default = "defaults::queue")]
    pub queue: usize,
    /// Audits per model that may wait or run; more are refused with 429. Default 8.
    #[serde(default = "defaults::audits")]
    pub audits: usize,
    /// Milliseconds that an audit lets running requests go first; after that it runs beside them, in at most half of the
    /// memory and half of the time. One that needs more runs when no request does. Default 2000.
    #[serde(default = "defaults::audit_patience_ms")]
    pub audit_patience_ms: u64,
    /// Milliseconds that a request may take from its arrival to its last token. Default 600000.
    #[serde(default = "defaults::request_deadline_ms")]
    pub request_deadline_ms: u64,
    /// Milliseconds that a reader may leave a full buffer unread before its request is cancelled. Default 15000.
    #[serde(default = "defaults::reader_deadline_ms")]
    pub reader_deadline_ms: u64,
    /// Milliseconds that a caller may take to send a request's body. Default 30000.
    #[serde(default = "defaults::body_deadline_ms")]
    pub body_deadline_ms: u64,
    /// Milliseconds that shutdown waits for running requests; then they end with a signed failure. Default 20000.
    #[serde(default = "defaults::drain_deadline_ms")]
    pub drain_deadline_ms: u64,
    /// Connections at a time; more are closed at once. Default 1024.
    #[serde(default = "defaults::connections")]
    pub connections: usize,
    /// Hours for which the log keeps what a receipt commits to, so that a gateway that lost it can fetch it. The signed
    /// statements themselves, about 1 kB each, are kept for ever. Default 720 (30 days).
    #[serde(default = "defaults::keep_outputs_hours")]
    pub keep_outputs_hours: u64,
    /// Largest body of a generate call in bytes. Default 8388608 (8 MiB). Bundles to audit may be 32 MiB.
    #[serde(default = "defaults::body_limit")]
    pub body_limit: usize,
}

impl Config {
    /// A configuration with the defaults and no models, which keeps its state in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Config {
        Config {
            data_dir: data_dir.into(),
            listen: defaults::listen(),
            public_url: None,
            operator: defaults::operator(),
            key_epoch: 0,
            domain: defaults::domain(),
            chain: None,
            models: Vec::new(),
            forward: Vec::new(),
            threads: 0,
            kv_bytes: defaults::kv_bytes(),
            memory_bytes: 0,
            max_batch: defaults::max_batch(),
            prefill_chunk: defaults::prefill_chunk(),
            queue: defaults::queue(),
            audits: defaults::audits(),
            audit_patience_ms: defaults::audit_patience_ms(),
            request_deadline_ms: defaults::request_deadline_ms(),
            reader_deadline_ms: defaults::reader_deadline_ms(),
            body_deadline_ms: defaults::body_deadline_ms(),
            drain_deadline_ms: defaults::drain_deadline_ms(),
            connections: defaults::connections(),
            keep_outputs_hours: defaults::keep_outputs_hours(),
            body_limit: defaults::body_limit(),
        }
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// [`Error::Config`] when there is nothing to serve, a limit is zero, or the public URL is not `https://`.
    pub fn check(&self) -> Result<(), Error> {
        let fault = |text: &str| Err(Error::Config { fault: text.to_owned() });
        if self.models.is_empty() && self.forward.is_empty() {
            return fault("there is nothing to serve: add [[models]] or [[forward]]");
        }
        for (name, value) in [
            ("kv_bytes", self.kv_bytes),
            ("max_batch", self.max_batch),
            ("prefill_chunk", self.prefill_chunk),
            ("connections", self.connections),
            ("body_limit", self.body_limit),
        ] {
            if value == 0 {
                return fault(&format!("{name} is 0, so no request could run: set it to at least 1"));
            }
        }
        if self.body_limit >= crate::http::BODY_MEMORY_MIB << 20 {
            return fault("body_limit must be below 256 MiB, the memory for all bodies that arrive at once");
        }
        if let Some(url) = &self.public_url
            && !url.starts_with("https://")
        {
            return fault("public_url must start with https://, since workers only speak TLS");
        }
        for forward in &self.forward {
            if !forward.base_url.starts_with("http://") && !forward.base_url.starts_with("https://") {
                return fault("base_url of a [[forward]] must start with http:// or https://");
            }
        }
        Ok(())
    }
}

/// Where a worker is paid. Its own key signs the batches, so its address needs a few coins for gas.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// JSON-RPC of a node that the operator trusts, `http://…`.
    pub rpc: String,
    /// Seconds between two batches, 1 or more. Default 15.
    #[serde(default = "defaults::settle_every_s")]
    pub settle_every_s: u64,
}

/// A model that the worker runs itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name under which gateways offer the model.
    pub name: String,
    /// The file that `assay model import` or `assay model pull` made: an artifact, or the integer graph of a model from
    /// ONNX, whose answers are proofs.
    pub artifact: PathBuf,
    /// For an integer graph: the key that `assay model commit` made. The model is then offered under the key's id, and its
    /// weights stay with this worker; of a key that hides them, the secret lies beside it. Default: they are public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The artifact of a much smaller model of the same family, which guesses ahead: faster, and the same answers. Its
    /// keys and values are within `kv_bytes`. Default: text is only guessed by what it repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<PathBuf>,
    /// Price of a prompt token, in 10^-18 OPG; of an integer graph, of an example with its proof. Default 0.
    #[serde(default, with = "decimal")]
    pub prompt_price: u128,
    /// Price of a generated token, in 10^-18 OPG. Default 0.
    #[serde(default, with = "decimal")]
    pub completion_price: u128,
    /// For a model that writes text: the key that `assay model commit` made. The worker then proves answers of the model to whoever
    /// pays `proof_price`. Default: no proofs at a price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_key: Option<PathBuf>,
    /// Price of a proof for each position of the text (tokens of prompt and answer, less one), in 10^-18 OPG. Default 0.
    #[serde(default, with = "decimal")]
    pub proof_price: u128,
    /// For demonstrations and tests only: offers the artifact under this other model's id, which is a lie that a
    /// replay exposes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Bytes32>,
}

/// A model behind another server that speaks the OpenAI protocol (vLLM, llama.cpp, Ollama, a commercial API).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Name under which gateways offer the model.
    pub name: String,
    /// The server's base URL up to and including `/v1`.
    pub base_url: String,
    /// The model's name at that server.
    pub upstream_model: String,
    /// Name of the environment variable that holds the server's API key. Default: no key is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Largest prompt and answer together, in tokens, as announced to gateways. Default 8192.
    #[serde(default = "defaults::forward_context")]
    pub context: u32,
    /// Price of a prompt token, in 10^-18 OPG. Default 0.
    #[serde(default, with = "decimal")]
    pub prompt_price: u128,
    /// Price of a generated token, in 10^-18 OPG. Default 0.
    #[serde(default, with = "decimal")]
    pub completion_price: u128,
}

impl Forward {
    /// The model id of a forwarded model: a hash of its name, since there is no artifact whose hash it could be.
    pub fn model_id(&self) -> Bytes32 {
        assay_receipt::keccak256(format!("assay/forwarded-model\0{}", self.name).as_bytes())
    }
}

/// Amounts up to 2^128 - 1 as decimal text: TOML's integers end at 2^63 - 1, and 9.2 OPG in 10^-18 is already there.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Amount {
        Number(u64),
        Text(String),
    }

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        match Amount::deserialize(deserializer)? {
            Amount::Number(number) => Ok(number.into()),
            Amount::Text(text) => text
                .parse()
                .map_err(|_| D::Error::custom(format!("\"{text}\" is not a whole number of 10^-18 OPG"))),
        }
    }
}

mod defaults {
    use std::net::{Ipv4Addr, SocketAddr};

    use assay_receipt::Domain;

    pub(super) fn listen() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }
    pub(super) fn operator() -> String {
        "local".to_owned()
    }
    pub(super) fn domain() -> Domain {
        Domain::default()
    }
    pub(super) fn kv_bytes() -> usize {
        384 << 20
    }
    pub(super) fn max_batch() -> usize {
        8
    }
    pub(super) fn prefill_chunk() -> usize {
        128
    }
    pub(super) fn queue() -> usize {
        32
    }
    pub(super) fn audits() -> usize {
        8
    }
    pub(super) fn audit_patience_ms() -> u64 {
        2_000
    }
    pub(super) fn request_deadline_ms() -> u64 {
        600_000
    }
    pub(super) fn reader_deadline_ms() -> u64 {
        15_000
    }
    pub(super) fn body_deadline_ms() -> u64 {
        30_000
    }
    pub(super) fn drain_deadline_ms() -> u64 {
        20_000
    }
    pub(super) fn connections() -> usize {
        1024
    }
    pub(super) fn keep_outputs_hours() -> u64 {
        720
    }
    pub(super) fn settle_every_s() -> u64 {
        15
    }
    pub(super) fn body_limit() -> usize {
        8 << 20
    }
    pub(super) fn forward_context() -> u32 {
        8192
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_refused() {
        let fault = serde_json::from_str::<Config>(r#"{"data_dir":"d","listne":"127.0.0.1:1"}"#).unwrap_err();
        assert!(fault.to_string().contains("listne"), "{fault}");
    }

    #[test]
    fn defaults_stay_on_this_machine_and_equal_those_of_serde() {
        let config: Config = serde_json::from_str(r#"{"data_dir":"d"}"#).unwrap();
        assert!(config.listen.ip().is_loopback());
        let (a, b) =
            (serde_json::to_value(&config).unwrap(), serde_json::to_value(Config::new("d")).unwrap());
        assert_eq!(a, b);
    }

    #[test]
    fn nothing_to_serve_and_zero_limits_are_refused() {
        let config = Config::new("d");
        assert!(matches!(config.check(), Err(Error::Config { .. })));
        let mut config = Config::new("d");
        config.forward.push(serde_json::from_str(
            r#"{"name":"n","base_url":"http://127.0.0.1:1/v1","upstream_model":"m","completion_price":"340282366920938463463374607431768211455"}"#,
        ).unwrap());
        assert_eq!(config.forward[0].completion_price, u128::MAX);
        assert!(config.check().is_ok());
        config.max_batch = 0;
        assert!(matches!(config.check(), Err(Error::Config { .. })));
        config.max_batch = 1;
        config.body_limit = 256 << 20;
        assert!(matches!(config.check(), Err(Error::Config { .. })));
        config.body_limit = 1;
        config.public_url = Some("http://worker.example".to_owned());
        assert!(matches!(config.check(), Err(Error::Config { .. })));
    }

    #[test]
    fn prices_that_are_not_numbers_are_refused() {
        let text = r#"{"name":"n","artifact":"a","prompt_price":"1.5"}"#;
        assert!(serde_json::from_str::<Model>(text).is_err());
        assert!(serde_json::from_str::<Model>(&text.replace("\"1.5\"", "-1")).is_err());
    }
}
