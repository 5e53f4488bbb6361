//! Liars of every kind against the verifier.
#![allow(clippy::unwrap_used)]

mod cheating;
mod common;
mod finality;
mod fuzz;
#[cfg(feature = "replay")]
mod light;
#[cfg(feature = "proof")]
mod proof;
#[cfg(feature = "replay")]
mod replay;
mod tamper;
