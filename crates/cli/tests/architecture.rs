//! What ARCHITECTURE.md and the house rules claim about this tree, checked against the tree.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Each crate and the crates of this workspace that it may use: those below it in ARCHITECTURE.md.
const MAY_USE: &[(&str, &[&str])] = &[
    ("arithmetic", &[]),
    ("graph", &[]),
    ("onnx", &["graph"]),
    ("proof", &["graph"]),
    ("receipt", &[]),
    ("ledger", &["proof", "receipt"]),
    ("model", &["arithmetic", "receipt"]),
    ("engine", &["arithmetic", "model", "receipt"]),
    ("verify", &["engine", "model", "proof", "receipt"]),
    ("verify_wasm", &["engine", "proof", "receipt", "verify"]),
    ("dispute", &["engine", "ledger", "model", "receipt", "wallet"]),
    ("worker", &["dispute", "engine", "model", "proof", "receipt", "verify", "wallet"]),
    ("gateway", &["engine", "model", "proof", "receipt", "verify", "wallet"]),
    ("node", &["ledger"]),
    ("wallet", &["ledger", "receipt"]),
    (
        "cli",
        &[
            "arithmetic",
            "dispute",
            "engine",
            "gateway",
            "graph",
            "ledger",
            "model",
            "node",
            "onnx",
            "proof",
            "receipt",
            "verify",
            "wallet",
            "worker",
        ],
    ),
];

/// What the pure crates must not be able to reach: sockets, files through async runtimes, clocks, random sources.
const SHELL_ONLY: &[&str] = &["tokio", "axum", "reqwest", "redb", "memmap2", "getrandom", "tracing", "clap"];
const PURE: &[&str] = &[
    "arithmetic",
    "graph",
    "onnx",
    "proof",
    "receipt",
    "ledger",
    "model",
    "engine",
    "verify",
    "verify_wasm",
];

fn dependencies(name: &str) -> BTreeSet<String> {
    let path = root().join("crates").join(name).join("Cargo.toml");
    let manifest: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    manifest["dependencies"].as_table().unwrap().keys().cloned().collect()
}

#[test]
fn dependencies_point_down() {
    let found: BTreeSet<String> = std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let known: BTreeSet<String> = MAY_USE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known, "ARCHITECTURE.md and this test must name every crate");
    for (name, allowed) in MAY_USE {
        for dependency in dependencies(name) {
            if let Some(inner) = dependency.strip_prefix("assay-") {
                assert!(allowed.contains(&inner), "{name} must not use {inner}");
            }
        }
    }
}

#[test]
fn domain_crates_know_no_runtime_file_or_clock() {
    for name in PURE {
        let dependencies = dependencies(name);
        for shell in SHELL_ONLY {
            assert!(!dependencies.contains(*shell), "{name} must not use {shell}");
        }
    }
    for name in PURE {
        for (path, text) in sources(&root().join("crates").join(name).join("src")) {
            for word in ["std::fs", "std::net", "SystemTime", "Instant::now"] {
                assert!(!text.contains(word), "{} must not use {word}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_code_is_only_where_the_map_says() {
    let allowed = ["crates/arithmetic/src", "crates/worker/src/files.rs", "crates/verify_wasm/src"];
    let folders = MAY_USE.iter().map(|(name, _)| root().join("crates").join(name).join("src"));
    for (path, text) in folders.flat_map(|folder| sources(&folder)) {
        let path = path.display().to_string();
        let code = |line: &&str| !line.trim_start().starts_with("//");
        let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"];
        if text.lines().filter(code).any(|line| words.iter().any(|word| line.contains(word))) {
            assert!(allowed.iter().any(|place| path.contains(place)), "unsafe code in {path}");
        }
    }
}

#[test]
fn every_crate_opens_with_documentation_and_an_example() {
    for (name, _) in MAY_USE.iter().filter(|(name, _)| !["cli", "verify_wasm"].contains(name)) {
        let text = std::fs::read_to_string(root().join("crates").join(name).join("src/lib.rs")).unwrap();
        assert!(text.starts_with("//! "), "{name} opens without documentation");
        assert!(text.contains("//! ```"), "{name} opens without an example");
    }
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                out.push((path, text));
            }
        }
    }
    assert!(!out.is_empty());
    out
}
