//! The real default model, fetched by the product's own `model pull`, once, into the build's temporary folder.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of the imported model.
pub(crate) fn model() -> PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("home");
            let output = Command::new(env!("CARGO_BIN_EXE_assay"))
                .args(["--json", "model", "pull"])
                .env("ASSAY_HOME", &home)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let pulled: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            PathBuf::from(pulled["path"].as_str().unwrap())
        })
        .clone()
}
