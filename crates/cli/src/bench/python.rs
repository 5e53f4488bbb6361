//! The Python side of the benchmarks: llama.cpp and a float reference, in a virtual environment of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::error::{Error, Result};
use crate::{home, ui};

/// Scripts and the packages that they need, in a folder of their own.
pub(crate) struct Kit {
    folder: &'static str,
    /// The packages, by name and exact version.
    requirements: &'static str,
    /// Written next to the virtual environment before each run.
    scripts: &'static [(&'static str, &'static str)],
}

/// For the benchmarks of language models.
pub(crate) const LANGUAGE: Kit = Kit {
    folder: "bench",
    requirements: include_str!("../../benches/requirements.txt"),
    scripts: &[
        ("gguf_file.py", include_str!("../../benches/gguf_file.py")),
        ("llama_cpp.py", include_str!("../../benches/llama_cpp.py")),
        ("llama_server.py", include_str!("../../benches/llama_server.py")),
        ("open_vino.py", include_str!("../../benches/open_vino.py")),
        ("float_reference.py", include_str!("../../benches/float_reference.py")),
    ],
};

/// For the benchmark of proofs.
pub(crate) const PROOF: Kit = Kit {
    folder: "bench-proof",
    requirements: include_str!("../../benches/proof_requirements.txt"),
    scripts: &[("proof_models.py", include_str!("../../benches/proof_models.py"))],
};

/// The folder of a kit's scripts and packages, made on first use.
pub(crate) fn folder(kit: &Kit) -> Result<PathBuf> {
    let Kit { folder, requirements: wanted, scripts } = *kit;
    let folder = home::home()?.join("cache").join(folder);
    home::create_private(&folder)?;
    for (name, script) in scripts {
        home::write_atomically(&folder.join(name), script.as_bytes(), 0o644)?;
    }
    // Written last: it says that these packages are installed.
    let installed = folder.join("installed.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return Ok(folder);
    }
    let requirements = folder.join("requirements.txt");
    home::write_atomically(&requirements, wanted.as_bytes(), 0o644)?;
    let packages = wanted.lines().collect::<Vec<_>>().join(", ");
    let spinner = ui::spinner(&format!("installing {packages}"));
    let made = finish(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder.join("venv")),
        "python3 could not make a virtual environment; install Python 3.10 or newer with its venv module",
    )
    .and_then(|()| {
        finish(
            Command::new(interpreter(&folder))
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--only-binary",
                    ":all:",
                ])
                .arg("-r")
                .arg(&requirements),
            "pip could not install what the benchmark compares with; check the network and try again",
        )
    });
    spinner.finish_and_clear();
    made?;
    home::write_atomically(&installed, wanted.as_bytes(), 0o644)?;
    Ok(folder)
}

/// The default model with its weights in eight bits, for the peer; made on first use.
pub(crate) fn requantised(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("model-q8_0.gguf");
    if !path.is_file() {
        let part = path.with_extension("part");
        let request =
            serde_json::json!({ "quantise": crate::models::gguf(crate::models::DEFAULT)?, "into": part });
        Script::start(folder, "llama_cpp.py", 1)?.ask(&request)?;
        std::fs::rename(&part, &path).map_err(Error::file("keep", &path))?;
    }
    Ok(path)
}

fn interpreter(folder: &Path) -> PathBuf {
    folder.join("venv").join("bin").join("python")
}

/// Runs a command to its end; `advice` is what to say if it fails.
fn finish(command: &mut Command, advice: &str) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| Error::said(format!("{advice} ({error})")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().lines().last().unwrap_or("no reason given");
    Err(Error::said(format!("{advice} ({text})")))
}

/// Processes that keep a processor busy each, until this is dropped.
pub(crate) struct Busy(Vec<Child>);

impl Busy {
    pub(crate) fn start(folder: &Path, count: u16) -> Result<Busy> {
        let mut busy = Busy(Vec::new());
        for _ in 0..count {
            let child = Command::new(interpreter(folder))
                // Ends by itself when this process is killed: its input closes.
                .args(["-c", "import os, sys, threading\nthreading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\nwhile True: pass"])
                .stdin(Stdio::piped())
                .spawn()
                .map_err(|error| Error::said(format!("a competing process cannot be started: {error}")))?;
            busy.0.push(child);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A running script. It ends when this is dropped, because its standard input closes.
pub(crate) struct Script {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Script {
    /// Starts a script of the folder.
    pub(crate) fn start(folder: &Path, name: &str, threads: usize) -> Result<Script> {
        let mut child = Command::new(interpreter(folder))
            .arg(folder.join(name))
            // For numpy; llama.cpp is told by request.
            .env("OPENBLAS_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error::said(format!("the script {name} cannot be started: {error}")))?;
        let requests = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| Error::said("the script has no output"))?;
        Ok(Script { child, requests, answers: BufReader::new(answers) })
    }

    /// Sends a request and waits for its answer, one line of JSON each.
    pub(crate) fn ask(&mut self, request: &serde_json::Value) -> Result<serde_json::Value> {
        let broken =
            || Error::said("the benchmark's Python script stopped early; its reason is printed above");
        let requests = self.requests.as_mut().ok_or_else(broken)?;
        writeln!(requests, "{request}").map_err(|_| broken())?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|_| broken())?;
        serde_json::from_str(&line).map_err(|_| broken())
    }

    /// Reads little-endian 32-bit floats that follow an answer.
    pub(crate) fn floats(&mut self, out: &mut [f32]) -> Result<()> {
        use std::io::Read as _;
        let mut bytes = vec![0; 4 * out.len()];
        self.answers
            .read_exact(&mut bytes)
            .map_err(|error| Error::said(format!("the float reference broke off: {error}")))?;
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.requests.take());
        // It has nothing left to do but to end.
        let _ = self.child.wait();
    }
}
