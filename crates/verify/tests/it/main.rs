//! Liars of every kind against the verifier.
#![allow(clippy::unwrap_used)]

mod cheating;
mod common;
mod fuzz;
mod tamper;
