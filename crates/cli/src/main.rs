//! `assay`: host, run and verify AI models on machines that nobody has to trust. Every role is in this one binary:
//! the local network (`up`), a worker, a gateway, the client commands and the offline verifier.
//!
//! This crate is a shell: it parses arguments, reads and writes files, starts processes and prints. What a worker, a
//! gateway or a verifier does is in the crates of those names.

#![deny(clippy::print_stdout)]

mod bench;
mod chain;
mod chat;
mod client;
mod config;
mod dispute;
mod doctor;
mod error;
mod faucet;
mod finality;
mod genesis;
mod gov;
mod graphs;
mod home;
mod join;
mod keys;
mod light;
mod members;
mod models;
mod node;
mod power;
mod promises;
mod proofs;
mod records;
mod settle;
mod slash;
mod traces;
mod ui;
mod up;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::error::{Error, Result};

#[derive(Parser)]
#[command(
    name = "assay",
    version,
    about = "Host, run and verify AI models on machines that nobody has to trust"
)]
struct Cli {
    /// Print results as JSON, without progress bars or colours
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole network on this machine: a gateway, a chat page and several workers
    Up(up::UpArgs),
    /// Talk to a model
    Chat(chat::ChatArgs),
    /// Run a worker
    Worker(RoleArgs),
    /// Run a gateway
    Gateway(RoleArgs),
    /// Run a validator of a chain
    Node(node::NodeArgs),
    /// Make and check the file that a chain begins with
    #[command(subcommand)]
    Genesis(genesis::GenesisCommand),
    /// Keys of accounts, in encrypted keystores, and of validators
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Bond OPG with your own validator
    Stake(chain::StakeArgs),
    /// Bond OPG with another's validator
    Delegate(chain::DelegateArgs),
    /// Take bonded OPG out, after its delay
    Unstake(chain::UnstakeArgs),
    /// Claim rewards, and OPG whose delay is over
    Claim(chain::ClaimArgs),
    /// Bring your validator out of jail, into which it came by an absence
    Unjail(chain::SignerArgs),
    /// Bring evidence that validators contradicted themselves, from a file or a node, to the chain, which slashes them
    Slash(slash::SlashArgs),
    /// Bring this machine into a network: as a validator, a worker or a full node
    Join(join::JoinArgs),
    /// Put OPG into a payer's deposit, from which workers are paid
    Deposit(chain::DepositArgs),
    /// Give coins and OPG to whoever asks, within limits, on a network for development
    Faucet(faucet::FaucetArgs),
    /// Propose, vote, and carry out what was decided
    #[command(subcommand)]
    Gov(gov::GovCommand),
    /// Every privileged power, who holds it, how long a change takes; supply, stake and their concentration
    Power(chain::ChainArgs),
    /// Fetch, import and inspect models
    #[command(subcommand)]
    Model(models::ModelCommand),
    /// Sign and inspect the list of workers
    #[command(subcommand)]
    Members(members::MembersCommand),
    /// Run a model that was imported from ONNX, in integers
    Infer(graphs::InferArgs),
    /// Prove outputs of a model from ONNX, or the answer in a receipt
    Prove(proofs::ProveArgs),
    /// Write the trace of an answer, or fetch its worker's, with which it is checked without the model
    Trace(light::TraceArgs),
    /// Check a receipt or a proof offline
    Verify(verify::VerifyArgs),
    /// List receipts, or save one
    Receipts(records::ReceiptsArgs),
    /// List the workers with their records
    Workers(records::WorkersArgs),
    /// Have another worker replay an answer
    Audit(records::AuditArgs),
    /// Dispute a wrong answer on the chain, for its worker's bond
    Dispute(dispute::DisputeArgs),
    /// Bonds behind a worker's promises of speed, and payment to its callers when it breaks one
    #[command(subcommand)]
    Promise(promises::PromiseCommand),
    /// Save everything that is signed about a request in one file
    Incident(records::IncidentArgs),
    /// Measure speed, quality and the cost of verification
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Find out what keeps this machine from working
    Doctor(doctor::DoctorArgs),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct RoleArgs {
    /// The configuration file; ~/.assay/config.toml when left out
    #[arg(long)]
    config: Option<PathBuf>,
    /// End when standard input closes, as `assay up` wants of its processes
    #[arg(long, hide = true)]
    supervised: bool,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every key with its documentation and default
    Show,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ASSAY_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("assay: no threads to be had: {error}");
            return ExitCode::from(2);
        }
    };
    let json = cli.json;
    match runtime.block_on(Box::pin(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                ui::print_json(&serde_json::json!({ "error": error.to_string() }));
            } else {
                eprintln!("{} {error}", ui::red("assay:"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let json = cli.json;
    match cli.command {
        Command::Up(args) => Box::pin(up::run(args, json)).await,
        Command::Chat(args) => chat::run(args, json).await,
        Command::Worker(args) => {
            let (path, file) = role(&args)?;
            let config = file.worker.ok_or_else(|| no_section(&path, "worker"))?;
            let (ready, _) = tokio::sync::oneshot::channel(); // whoever waits for it reads worker.json
            assay_worker::run(config, ready, until_told(args.supervised))
                .await
                .map_err(|error| Error::said(error.to_string()))
        }
        Command::Gateway(args) => {
            let (path, file) = role(&args)?;
            let config = file.gateway.ok_or_else(|| no_section(&path, "gateway"))?;
            let ready = |address| eprintln!("gateway ready at http://{address}");
            assay_gateway::run(config, until_told(args.supervised), ready)
                .await
                .map_err(|error| Error::said(error.to_string()))
        }
        Command::Node(args) => {
            let supervised = args.supervised;
            node::run(args, json, until_told(supervised)).await
        }
        Command::Genesis(command) => genesis::run(command, json),
        Command::Keys(command) => keys::run(command, json).await,
        Command::Stake(args) => chain::stake(args, json).await,
        Command::Delegate(args) => chain::delegate(args, json).await,
        Command::Unstake(args) => chain::unstake(args, json).await,
        Command::Claim(args) => chain::claim(args, json).await,
        Command::Unjail(args) => chain::unjail(args, json).await,
        Command::Slash(args) => slash::run(args, json).await,
        Command::Join(args) => join::run(args, json).await,
        Command::Deposit(args) => chain::deposit(args, json).await,
        Command::Faucet(args) => faucet::run(args, json).await,
        Command::Gov(command) => gov::run(command, json).await,
        Command::Power(args) => power::run(args, json).await,
        Command::Model(command) => models::run(command, json),
        Command::Members(command) => members::run(command, json),
        Command::Infer(args) => graphs::infer(&args, json),
        Command::Prove(args) => proofs::prove(&args, json).await,
        Command::Trace(args) => light::trace(&args, json).await,
        Command::Verify(args) => verify::run(args, json).await,
        Command::Receipts(args) => records::receipts(args, json).await,
        Command::Dispute(args) => dispute::run(args, json).await,
        Command::Promise(command) => promises::run(command, json).await,
        Command::Workers(args) => records::workers(args, json).await,
        Command::Audit(args) => records::audit(args, json).await,
        Command::Incident(args) => records::incident(args, json).await,
        Command::Bench(command) => bench::run(command, json).await,
        Command::Doctor(args) => doctor::run(args, json).await,
        Command::Config(ConfigCommand::Show) => {
            config::show(json);
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "assay", &mut script);
            ui::write_out(&String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}

fn role(args: &RoleArgs) -> Result<(PathBuf, config::File)> {
    let path = match &args.config {
        Some(path) => path.clone(),
        None => config::default_path()?,
    };
    let file = config::read(&path)?;
    Ok((path, file))
}

fn no_section(path: &std::path::Path, section: &str) -> Error {
    Error::said(format!("{} has no section [{section}]; `assay config show` prints one", path.display()))
}

/// Resolves on Ctrl-C or a termination signal.
async fn stop_signal() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// Resolves when this process is told to finish: by a signal or, when supervised, by its standard input closing.
async fn until_told(supervised: bool) {
    let closed = async {
        if !supervised {
            return std::future::pending().await;
        }
        let (sender, closed) = tokio::sync::oneshot::channel::<()>();
        // A plain thread: it may stay blocked in its read when the process ends for another reason.
        std::thread::spawn(move || {
            use std::io::Read as _;
            while matches!(std::io::stdin().read(&mut [0]), Ok(1)) {}
            drop(sender);
        });
        // The sender never sends; that it is gone is the news.
        let _ = closed.await;
    };
    tokio::select! {
        () = stop_signal() => {}
        () = closed => {}
    }
}
