//! Bit-exact execution of integer language models.

pub mod generation;
pub mod grammar;
