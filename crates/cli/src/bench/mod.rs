//! `assay bench`: measurements that print a table, with the peer beside us in the same run where there is one.

mod chain;
mod engine;
mod proof;
mod python;
mod quality;
mod serve;
mod verification;

use clap::Subcommand;

use crate::error::Result;

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Transfers a second and time to finality with one and four validators, beside anvil
    Chain(chain::Args),
    /// Tokens a second, beside llama.cpp on the same weights
    Engine(engine::Args),
    /// Proving models and checking the proofs, beside EZKL on the same files
    Proof(proof::Args),
    /// What the integers cost in quality, against float arithmetic on the weights of the same file
    Quality(quality::Args),
    /// Many callers at once, beside llama.cpp's server on the same weights
    Serve(serve::Args),
    /// What each verification level costs for the same requests
    Verification(verification::Args),
}

pub(crate) async fn run(command: BenchCommand, json: bool) -> Result<()> {
    match command {
        BenchCommand::Chain(args) => Box::pin(chain::run(&args, json)).await,
        BenchCommand::Engine(args) => engine::run(&args, json),
        BenchCommand::Proof(args) => proof::run(&args, json),
        BenchCommand::Quality(args) => quality::run(&args, json),
        BenchCommand::Serve(args) => Box::pin(serve::run(&args, json)).await,
        BenchCommand::Verification(args) => verification::run(&args, json),
    }
}

/// The processor and the system, for the head of a table.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let system = read("/proc/sys/kernel/osrelease");
    let system = system.trim();
    format!(
        "{} ({cores} cores), {} {}",
        cpu.unwrap_or(std::env::consts::ARCH).trim(),
        std::env::consts::OS,
        if system.is_empty() { "of unknown version" } else { system }
    )
}
