//! `assay verify`: checks a receipt offline and says what is proved and who is still trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_engine::request::Processor;
use assay_engine::{Config, Engine};
use assay_model::Artifact;
use assay_receipt::{Address, Bundle, Domain, Members, Signed};
use assay_verify::{Expected, Outcome, Report, State};
use clap::Args;

use crate::error::{Error, Result};
use crate::{home, models, ui};

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// The file that `assay receipts REQUEST_ID` or the chat page saved
    receipt: PathBuf,
    /// The signed list of workers whose keys count; the local network's when left out
    #[arg(long)]
    members: Option<PathBuf>,
    /// The address that must have signed the list of workers; without it any signer is taken and named
    #[arg(long)]
    signer: Option<Address>,
    /// Also replay the answer here, with the imported model of this name, id or path
    #[arg(long, value_name = "MODEL")]
    replay: Option<String>,
}

/// Largest receipt file that is read: what the decoder itself accepts.
const RECEIPT_BYTES_MAX: u64 = assay_receipt::limits::BUNDLE_BYTES as u64;

pub(crate) fn run(args: VerifyArgs, json: bool) -> Result<()> {
    let bytes = read_bounded(&args.receipt, RECEIPT_BYTES_MAX)?;
    let bundle = Bundle::from_json(&bytes)
        .map_err(|error| Error::Rejected(format!("{} is not a receipt: {error}", args.receipt.display())))?;
    let path = match args.members {
        Some(path) => path,
        None => home::home()?.join("up").join("members.json"),
    };
    let (members, signer) = members(&path, args.signer, &bundle.domain)?;
    let expected = Expected::of_members(bundle.domain, &members.statement);
    let report = match &args.replay {
        None => assay_verify::check(&bundle, &expected),
        Some(model) => {
            let (_, artifact) = models::open(model)?;
            let spinner = ui::spinner("replaying the answer");
            let report = replay(&bundle, &expected, Arc::new(artifact))?;
            spinner.finish_and_clear();
            report
        }
    };
    if json {
        ui::print_json(&report);
    } else {
        print(&report, &path, &signer);
    }
    match report.state {
        State::Signed | State::Replayed => Ok(()),
        State::Rejected => Err(Error::Rejected("this receipt is not valid; nothing is proved by it".into())),
        State::Mismatch => Err(Error::Rejected(
            "a replay came to a different answer: this receipt is evidence against its worker or its auditor"
                .into(),
        )),
    }
}

/// Checks the bundle and repeats its answer with this model on this machine.
fn replay(bundle: &Bundle, expected: &Expected, artifact: Arc<Artifact>) -> Result<Report> {
    let said = |error: &dyn std::fmt::Display| Error::said(format!("nothing was decided: {error}"));
    let processor = Processor::from_artifact(&artifact).map_err(|error| said(&error))?;
    let tokens = bundle.output.tokens.len() + processor.context();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let config = Config { threads, kv_tokens: tokens, max_batch: 1, ..Config::default() };
    let mut engine = Engine::new(artifact, config).map_err(|error| said(&error))?;
    assay_verify::check_replayed(bundle, expected, &mut engine, &processor).map_err(|error| said(&error))
}

fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(Error::file("read", path))?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    if bytes.len() as u64 > max {
        return Err(Error::said(format!(
            "{} is larger than {max} bytes, which no valid file of its kind is",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Reads the members file and checks who signed it.
fn members(path: &Path, signer: Option<Address>, domain: &Domain) -> Result<(Signed<Members>, Address)> {
    let bytes = read_bounded(path, assay_receipt::limits::MEMBERS_BYTES as u64).map_err(|error| {
        Error::said(format!(
            "{error}; the list of workers is needed to know whose signatures count: name it with --members"
        ))
    })?;
    let members = Signed::<Members>::from_json(&bytes)
        .map_err(|error| Error::said(format!("{} is not a list of workers: {error}", path.display())))?;
    let found = members.signer(domain).map_err(|error| {
        Error::Rejected(format!("the list of workers {} is not properly signed: {error}", path.display()))
    })?;
    if let Some(wanted) = signer
        && wanted != found
    {
        return Err(Error::Rejected(format!("the list of workers was signed by {found}, not by {wanted}")));
    }
    Ok((members, found))
}

fn print(report: &Report, members: &Path, signer: &Address) {
    for check in &report.checks {
        let (mark, detail) = match check.outcome {
            Outcome::Passed => (ui::green("✓"), check.detail.clone()),
            Outcome::Failed => (ui::red("✗"), ui::red(&check.detail)),
            Outcome::Skipped => (ui::dim("·"), ui::dim(&check.detail)),
        };
        let name = serde_json::to_value(check.name).ok().and_then(|name| name.as_str().map(str::to_owned));
        println!("{mark} {:18} {detail}", name.unwrap_or_default());
    }
    let state = match report.state {
        State::Signed => ui::green("SIGNED"),
        State::Replayed => ui::green("REPLAYED"),
        State::Rejected => ui::red("REJECTED"),
        State::Mismatch => ui::red("MISMATCH"),
    };
    println!(
        "\n{state} by {} ({})",
        report.operator.as_deref().unwrap_or("an unknown operator"),
        report.worker
    );
    if !report.proves.is_empty() {
        println!("\n{}", ui::bold("What this proves"));
        report.proves.iter().for_each(|line| println!("  {line}"));
    }
    println!("\n{}", ui::bold("What you still trust"));
    report.trusted.iter().for_each(|line| println!("  {line}"));
    println!("  The list of workers {}, signed by {signer}.", members.display());
}
