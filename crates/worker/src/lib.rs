//! Serves models over HTTPS, signs every answer and every refusal, and audits other workers.
//!
//! [`run`] is the whole worker: an identity of its own (a secp256k1 key and a pinned TLS certificate), a queue with
//! admission control, one engine per model, and a log that has each signed statement on disk before anybody sees it.
//! It can also forward to any OpenAI-compatible server; such answers are signed but cannot be replayed.
//!
//! It does not route, retry, keep accounts or judge other workers' records: that is the gateway's part. It does not
//! ask who calls: run it on loopback or behind gateways that know its address.
//!
//! ```no_run
//! # async fn serve() -> Result<(), assay_worker::Error> {
//! let mut config = assay_worker::Config::new("/var/lib/assay/worker");
//! config.models.push(assay_worker::Model {
//!     name: "smollm2".to_owned(),
//!     artifact: "smollm2.assay".into(),
//!     prompt_price: 0,
//!     completion_price: 0,
//!     key: None,
//!     draft: None,
//!     proof_key: None,
//!     proof_price: 0,
//!     impersonate: None,
//! });
//! let stop = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
//! let (ready, _) = tokio::sync::oneshot::channel(); // or hear from the other end when it serves
//! assay_worker::run(config, ready, stop).await
//! # }
//! ```

mod answer;
mod audit;
mod config;
mod connections;
mod dispute;
mod embed;
mod error;
pub mod files;
mod forward;
mod http;
mod identity;
mod light;
mod local;
mod log;
mod memory;
mod metrics;
mod proofs;
mod prove;
mod secret;
mod server;
mod settle;

pub use config::{Chain, Config, Forward, Model};
pub use error::Error;
pub use log::statements;
pub use secret::Secret;
pub use server::{Ready, run};
