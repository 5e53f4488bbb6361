//! Serves models and audits other workers.
mod config;
mod error;
pub mod files;
mod identity;
mod log;
mod metrics;

pub use config::{Config, Forward, Model};
pub use error::Error;
