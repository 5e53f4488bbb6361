//! The gateway: an OpenAI-compatible endpoint that asks workers which nobody has to trust, checks every frame that comes
//! back, fails over without the caller noticing, has answers replayed, and keeps everything that was signed.
//!
//! It normally runs next to its caller and listens on loopback. It runs no models but the small ones from ONNX (`/v2`), and it does not decide who is a
//! worker: that comes from a signed list. What it proves about an answer is in the receipt that it stores; `assay verify`
//! checks that without the gateway.
//!
//! ```no_run
//! # async fn run() -> Result<(), assay_gateway::Error> {
//! let config = assay_gateway::Config {
//!     members_file: "members.json".into(),
//!     members_signer: assay_receipt::Address([0x42; 20]),
//!     ..assay_gateway::Config::default()
//! };
//! let until_interrupted = async {
//!     let _ = tokio::signal::ctrl_c().await;
//! };
//! assay_gateway::run(config, until_interrupted, |address| println!("http://{address}")).await
//! # }
//! ```

mod access;
mod ask;
mod audit;
mod client;
mod clock;
mod config;
mod connections;
mod embeddings;
mod error;
mod gateway;
mod inference;
mod members;
mod metrics;
mod openai;
mod own;
mod page;
mod params;
mod payer;
mod proofs;
mod record;
mod recovery;
mod responses;
mod serve;
mod server;
mod store;
mod vocabulary;

pub use client::pinned;
pub use config::{ApiKey, Chain, Config, Level, Moment, Policy, Sampling, Workers};
pub use error::{ApiError, Error};
pub use server::run;
