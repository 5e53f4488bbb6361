//! What an operator can set.

use crate::error::Error;
use assay_receipt::{Address, Domain};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Configuration of a gateway. Every key has a default except `members_signer`, without which no worker is
/// accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on. Anything but loopback needs at least one API key.
    pub listen: SocketAddr,
    /// Further values of the Host header that are accepted on loopback (`localhost`, `127.0.0.1` and `[::1]`
    /// always are), without port. Guards against DNS rebinding.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may call this gateway (CORS), such as `https://chat.example`. Empty: none.
    pub cors_origins: Vec<String>,
    /// The signed list of workers.
    pub members_file: PathBuf,
    /// Address of the key that must have signed the members file.
    pub members_signer: Address,
    /// Milliseconds between two looks at the members file.
    pub members_poll_ms: u64,
    /// EIP-712 domain (chain and contract) that every signature must be for.
    pub domain: Domain,
    /// Folder of the state database.
    pub state_dir: PathBuf,
    /// Folder with models that were imported from ONNX, which `/v2` serves; empty: none.
    pub graphs_dir: PathBuf,
    /// Keys of models that write text, as `assay model commit` makes them: proofs of these models' answers are asked of workers and
    /// checked. You trust each to be its model's, which everybody who has the model can confirm.
    pub proof_keys: Vec<PathBuf>,
    /// Largest proof of an answer that is fetched, in bytes. It is read into memory to be checked, one at a time.
    pub proof_bytes_max: u64,
    /// The chain on which answers are paid and whose registry names the workers; none: no answer is paid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
    /// Address that pays the workers; it stands in every receipt. With `chain`, it is that of the key.
    pub payer: Address,
    /// Most that one request may cost, in 10^-18 OPG, as a decimal string; 0: no limit but the price list.
    #[serde(with = "decimal_u128")]
    pub cap_per_request: u128,
    /// Keys that callers must present. Empty: none is needed, which is allowed on loopback only.
    pub api_keys: Vec<ApiKey>,
    /// Requests a minute for each key (or address, when no keys are set); 0: no limit.
    pub requests_per_minute: u32,
    /// Requests that may arrive at once before `requests_per_minute` is enforced, 1 or more.
    pub requests_burst: u32,
    /// Most requests served at the same time; more are answered 429. 1 or more.
    pub requests_in_flight_max: u32,
    /// Most connections that are open at a time; more are closed at once. 1 or more.
    pub connections: usize,
    /// Largest request body, in bytes.
    pub body_max_bytes: usize,
    /// Largest number of choices (`n`) in one request, 1..=128.
    pub choices_max: u32,
    /// Tokens generated for a chat when the request names no limit.
    pub max_tokens_default: u32,
    /// Verification of answers whose request says nothing about it.
    pub policy: Policy,
    /// How much is replayed in the background.
    pub sampling: Sampling,
    /// Deadlines and retries towards the workers.
    pub workers: Workers,
}

/// Where a gateway pays. The list of workers is then read from the registry, signed with `key`, and kept in `members_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// JSON-RPC of a node that the gateway's owner trusts, `http://…`.
    pub rpc: String,
    /// File with the payer's key: 64 hexadecimal digits, or a keystore whose password is in `ASSAY_PASSWORD`.
    pub key: PathBuf,
}

/// A key that lets a caller in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Name under which usage is counted; not secret.
    pub name: String,
    /// SHA-256 of the key in 64 hex digits; the key itself is not written anywhere.
    pub sha256: String,
    /// Whether its holder runs this gateway: it sees the requests of every key and may lift suspensions. Other keys see
    /// their own requests only.
    #[serde(default)]
    pub admin: bool,
    /// Verification of its holder's answers whose request says nothing about it; that of all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// Which level an answer gets and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// `signed`: signatures and the chunk chain are checked. `replayed`: an auditor of another operator also
    /// repeats the answer bit for bit. `proved`: a worker proves the answer, and the gateway checks the proof with a key of
    /// `proof_keys`.
    pub level: Level,
    /// When the replay or the proof happens.
    pub moment: Moment,
}

/// Level of verification that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Signatures and the chunk chain. A share of the answers is replayed in the background all the same.
    Signed,
    /// A replay by a worker of another operator.
    Replayed,
    /// A proof, which the gateway checks.
    Proved,
}

/// When a replay or a proof happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Nothing is shown until the replay agrees; a wrong answer is never seen, and another worker is asked.
    BeforeFirstToken,
    /// The text streams, and the end is held back until the replay agrees.
    BeforeEnd,
    /// A share of the answers is replayed after they ended; with the level `proved`, all of them are proved then.
    Sampled,
}

/// Shares of answers that are replayed in the background, in millionths (1000000 = all).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// For a worker in good standing.
    pub share_ppm: u32,
    /// For a worker with fewer than `new_until_agreed` agreeing replays.
    pub share_new_ppm: u32,
    /// For a worker that was caught and reinstated, whatever the caller wants less.
    pub share_caught_ppm: u32,
    /// Agreeing replays after which a worker is no longer new.
    pub new_until_agreed: u64,
    /// Background replays running at once, 1 or more.
    pub concurrent: usize,
}

/// Deadlines and retries towards the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// Milliseconds to connect.
    pub connect_ms: u64,
    /// Milliseconds until the first token.
    pub first_token_ms: u64,
    /// Milliseconds between two tokens.
    pub between_tokens_ms: u64,
    /// Milliseconds for a whole answer, without the time that the caller takes to read it.
    pub answer_ms: u64,
    /// Milliseconds for which an answer is waited for whose caller left in the middle of it. One that is complete by
    /// then is booked like any other; after that the worker is told to stop.
    pub grace_ms: u64,
    /// Milliseconds for a replay.
    pub audit_ms: u64,
    /// Milliseconds that a caller may take to read what is ready for it before it counts as gone.
    pub caller_ms: u64,
    /// Workers tried for one answer, 1 or more.
    pub attempts_max: usize,
    /// Faults in a row after which a worker is left alone.
    pub breaker_faults: u32,
    /// Milliseconds for which it is left alone.
    pub breaker_open_ms: u64,
    /// Milliseconds without a first token after which a second worker is asked as well and the faster one is
    /// taken; 0: never.
    pub hedge_after_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8600)),
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            members_file: PathBuf::from("members.json"),
            members_signer: Address::default(),
            members_poll_ms: 2_000,
            domain: Domain::default(),
            state_dir: PathBuf::from("gateway"),
            graphs_dir: PathBuf::new(),
            proof_keys: Vec::new(),
            proof_bytes_max: 1 << 30,
            chain: None,
            payer: Address::default(),
            cap_per_request: 0,
            api_keys: Vec::new(),
            requests_per_minute: 0,
            requests_burst: 60,
            requests_in_flight_max: 256,
            connections: 1_024,
            body_max_bytes: 4 << 20,
            choices_max: 16,
            max_tokens_default: 1_024,
            policy: Policy::default(),
            sampling: Sampling::default(),
            workers: Workers::default(),
        }
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { level: Level::Signed, moment: Moment::Sampled }
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            share_ppm: 50_000,
            share_new_ppm: 500_000,
            share_caught_ppm: 1_000_000,
            new_until_agreed: 20,
            concurrent: 2,
        }
    }
}

impl Default for Workers {
    fn default() -> Workers {
        Workers {
            connect_ms: 3_000,
            first_token_ms: 60_000,
            between_tokens_ms: 20_000,
            answer_ms: 900_000,
            grace_ms: 500,
            audit_ms: 120_000,
            caller_ms: 60_000,
            attempts_max: 4,
            breaker_faults: 3,
            breaker_open_ms: 15_000,
            hedge_after_ms: 0,
        }
    }
}

impl Config {
    /// Checks every value that the types alone do not.
    ///
    /// # Errors
    /// [`Error::OpenWithoutKeys`] and [`Error::Config`].
    pub fn check(&self) -> Result<(), Error> {
        if !self.listen.ip().is_loopback() && self.api_keys.is_empty() {
            return Err(Error::OpenWithoutKeys(self.listen));
        }
        let refuse = |key: &'static str, reason: &str| Err(Error::Config { key, reason: reason.to_owned() });
        if self.members_signer == Address::default() && self.chain.is_none() {
            return refuse("members_signer", "set it to the address whose key signs the members file");
        }
        for key in &self.api_keys {
            if key.name.is_empty() || key.name.len() > 100 {
                return refuse("api_keys.name", "give every key a name of 1 to 100 bytes");
            }
            if parse_sha256(&key.sha256).is_none() {
                return refuse("api_keys.sha256", "write the SHA-256 of the key as 64 hex digits");
            }
        }
        let at_least_one: [(&'static str, u64); 11] = [
            ("connections", self.connections as u64),
            ("requests_burst", self.requests_burst.into()),
            ("requests_in_flight_max", self.requests_in_flight_max.into()),
            ("max_tokens_default", self.max_tokens_default.into()),
            ("members_poll_ms", self.members_poll_ms),
            ("sampling.concurrent", self.sampling.concurrent as u64),
            ("workers.attempts_max", self.workers.attempts_max as u64),
            ("workers.first_token_ms", self.workers.first_token_ms),
            ("workers.between_tokens_ms", self.workers.between_tokens_ms),
            ("workers.answer_ms", self.workers.answer_ms),
            ("workers.audit_ms", self.workers.audit_ms),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return refuse(key, "it must be 1 or more");
            }
        }
        if self.policy.level == Level::Proved && self.proof_keys.is_empty() {
            return refuse(
                "policy.level",
                "answers are proved with keys of their models; name them in proof_keys",
            );
        }
        if !(1..=128).contains(&self.choices_max) {
            return refuse("choices_max", "it must be between 1 and 128");
        }
        if self.body_max_bytes < 1_024 {
            return refuse("body_max_bytes", "it must be 1024 or more");
        }
        for (key, value) in [
            ("sampling.share_ppm", self.sampling.share_ppm),
            ("sampling.share_new_ppm", self.sampling.share_new_ppm),
            ("sampling.share_caught_ppm", self.sampling.share_caught_ppm),
        ] {
            if value > 1_000_000 {
                return refuse(key, "shares are in millionths, so at most 1000000");
            }
        }
        Ok(())
    }
}

/// The 32 bytes of a SHA-256 in hex, with or without `0x`.
pub(crate) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0u8; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

/// u128 as a decimal string: TOML and JavaScript have no integers of that width.
pub(crate) mod decimal_u128 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("`{text}` is not a whole decimal number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable() -> Config {
        Config { members_signer: Address([1; 20]), ..Config::default() }
    }

    #[test]
    fn a_public_address_needs_keys() {
        let mut config = usable();
        config.check().unwrap();
        config.listen = "0.0.0.0:8600".parse().unwrap();
        assert!(matches!(config.check(), Err(Error::OpenWithoutKeys(_))));
        config.api_keys =
            vec![ApiKey { name: "a".into(), sha256: "0".repeat(64), admin: false, policy: None }];
        config.check().unwrap();
        config.api_keys[0].sha256 = "zz".into();
        assert!(matches!(config.check(), Err(Error::Config { key: "api_keys.sha256", .. })));
    }

    #[test]
    fn values_out_of_range_are_named() {
        let mut config = usable();
        config.sampling.share_ppm = 1_000_001;
        assert!(config.check().unwrap_err().to_string().contains("sampling.share_ppm"));
        assert!(matches!(Config::default().check(), Err(Error::Config { key: "members_signer", .. })));
        let mut config = usable();
        config.policy.level = Level::Proved;
        assert!(matches!(config.check(), Err(Error::Config { key: "policy.level", .. })));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let json = r#"{"lisen": "127.0.0.1:1"}"#;
        assert!(serde_json::from_str::<Config>(json).unwrap_err().to_string().contains("lisen"));
    }
}
