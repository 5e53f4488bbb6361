//! `assay`: every role in one binary.

fn main() {}
