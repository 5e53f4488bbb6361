//! Runs `tests/second-implementation/check.py`, which recomputes the vectors with eth-account.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
#[ignore = "needs Python with eth-account (tests/second-implementation/requirements.txt); .ci/parts/20-verifier runs it"]
fn eth_account_agrees_with_the_vectors() {
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/second-implementation/check.py");
    let output = Command::new(&python).arg(script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
