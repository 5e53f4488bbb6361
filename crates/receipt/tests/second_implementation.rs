//! Runs `tests/second-implementation/check.py`, which recomputes the vectors with eth-account, when Python has that
//! package. CI runs the script by itself, where a missing package is an error.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn eth_account_agrees_with_the_vectors() {
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let has_package = Command::new(&python).args(["-c", "import eth_account"]).output();
    if !has_package.is_ok_and(|output| output.status.success()) {
        println!(
            "skipped: {python} has no eth-account (pip install -r tests/second-implementation/requirements.txt)"
        );
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/second-implementation/check.py");
    let output = Command::new(&python).arg(script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
