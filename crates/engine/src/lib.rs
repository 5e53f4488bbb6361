//! Bit-exact execution of integer language models.

pub mod generation;
pub mod grammar;

pub mod assemble;
pub mod request;
