//! `assay verify`: checks a receipt or a proof offline and says what is proved and who is still trusted. See `finality.rs` for blocks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_engine::encoder::Encoder;
use assay_engine::request::Processor;
use assay_engine::{Config, Engine};
use assay_model::Artifact;
use assay_receipt::{Address, Bundle, Bytes32, GRAPH_ARITHMETIC, Members, Signed};
use assay_verify::{CheckKind, Expected, Outcome, Report, State};
use clap::Args;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::{finality, home, light, members, models, proofs, ui};

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// A receipt or an incident file, as `assay receipts`, `assay incident` or the chat page saved it, or a proof of
    /// `assay prove`
    #[arg(required_unless_present = "block")]
    receipt: Option<PathBuf>,
    /// Instead of a file, check that this block of a chain is final, by nothing but its validators' signatures
    #[arg(long, value_name = "NUMBER", requires = "genesis", conflicts_with = "receipt")]
    block: Option<u64>,
    /// The chain's genesis file
    #[arg(long, requires = "block")]
    genesis: Option<PathBuf>,
    /// Any node's JSON-RPC; it is not trusted
    #[arg(long, requires = "block", default_value_t = format!("http://{}", crate::node::DEFAULT_RPC))]
    rpc: String,
    #[command(flatten)]
    list: ListArgs,
    /// Also replay the answer here, with the imported model of this name, id or path
    #[arg(long, value_name = "MODEL")]
    replay: Option<String>,
    /// Check the answer with this trace of `assay trace`, and the key of `assay model key`, without the model
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "replay")]
    trace: Option<PathBuf>,
    /// Check the answer with this proof of `assay prove`, and the key of `assay model commit`, without the model
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["replay", "trace"])]
    proof: Option<PathBuf>,
    /// The model that a proof, also one in a receipt, must be about; the imported one that it names when left out
    #[arg(long, conflicts_with = "replay")]
    model: Option<String>,
    /// The key of `assay model commit` that a proof is checked with, or that of `assay model key` for a trace; the model is not
    /// needed then
    #[arg(long, conflicts_with_all = ["replay", "model"])]
    key: Option<PathBuf>,
}

/// Whose workers count.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// The signed list of workers whose keys count; the local network's when left out
    #[arg(long, requires = "signer")]
    members: Option<PathBuf>,
    /// The address that must have signed the list of workers; the local network's own when left out
    #[arg(long)]
    signer: Option<Address>,
}

impl ListArgs {
    /// Who must have signed the list.
    pub(crate) fn signer(&self) -> Result<Address> {
        self.signer.map_or_else(local_signer, Ok)
    }

    /// The lists to look into: the named one, that of the file which is checked, or the local network's, the newest first. No
    /// signature is checked.
    pub(crate) fn lists(&self, own: Option<Signed<Members>>) -> Result<Vec<Signed<Members>>> {
        match (&self.members, own) {
            (Some(path), _) => Ok(vec![members::read(path)?]),
            (None, Some(list)) => Ok(vec![list]),
            (None, None) => local_lists(),
        }
    }
}

/// Largest file that is read: a bundle, or an incident file around one.
pub(crate) const FILE_BYTES_MAX: u64 = 4 * assay_receipt::limits::BUNDLE_BYTES as u64;

pub(crate) async fn run(args: VerifyArgs, json: bool) -> Result<()> {
    if let (Some(block), Some(genesis)) = (args.block, &args.genesis) {
        return finality::verify(block, genesis, &args.rpc, json).await;
    }
    // The arguments have one or the other.
    let receipt = args.receipt.unwrap_or_default();
    if proofs::is_proof(&receipt) {
        return proofs::verify(&receipt, args.model.as_deref(), args.key.as_deref(), json);
    }
    let (bundle, own_list) = read(&receipt)?;
    let signer = args.list.signer()?;
    let members = in_force(args.list.lists(own_list)?, signer, &bundle)?;
    let expected = Expected::of_members(bundle.domain, &members.statement);
    let report = match &args.replay {
        None if args.trace.is_some() => {
            // The arguments have both or neither.
            let (trace, key) = (args.trace.unwrap_or_default(), args.key.unwrap_or_default());
            light::check(&bundle, &expected, &trace, &key)?
        }
        None if args.proof.is_some() => {
            let (proof, key) = (args.proof.unwrap_or_default(), args.key.unwrap_or_default());
            light::check_proof(&bundle, &expected, &proof, &key)?
        }
        None if bundle.receipt.statement.arithmetic == GRAPH_ARITHMETIC => {
            let model = Bytes32::to_string(&bundle.receipt.statement.model);
            match proofs::model(&model, args.model.as_deref(), args.key.as_deref())? {
                Some(model) => assay_verify::check_proved(&bundle, &expected, &model)
                    .map_err(|error| Error::said(error.to_string()))?,
                // The check says what is missing.
                None => assay_verify::check(&bundle, &expected),
            }
        }
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
        print(&report, members.statement.serial, &signer);
    }
    if report.has_failed(CheckKind::Products) {
        return Err(Error::Rejected(
            "the file does not show that this answer is the model's, nor that it is not: ask for another one, or replay the answer \
             with --replay"
                .into(),
        ));
    }
    match report.state {
        State::Signed | State::Replayed | State::Proved => Ok(()),
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
    if artifact.encoder().is_some() {
        let encoder = Encoder::new(artifact, Config::default().kernel).map_err(|error| said(&error))?;
        return assay_verify::check_embedded(bundle, expected, &encoder).map_err(|error| said(&error));
    }
    let processor = Processor::from_artifact(&artifact).map_err(|error| said(&error))?;
    let tokens = bundle.output.tokens.len() + processor.context();
    let config = Config { max_batch: 1, ..Config::default() }.with_kv_tokens(&artifact, tokens);
    let mut engine = Engine::new(artifact, config).map_err(|error| said(&error))?;
    assay_verify::check_replayed(bundle, expected, &mut engine, &processor).map_err(|error| said(&error))
}

/// The bundle in a file, and the list of workers beside it when the file is an incident.
pub(crate) fn read(path: &Path) -> Result<(Bundle, Option<Signed<Members>>)> {
    let bytes = home::read_bounded(path, FILE_BYTES_MAX)?;
    let invalid = |error: &dyn std::fmt::Display| {
        Error::Rejected(format!("{} is not a receipt: {error}", path.display()))
    };
    let incident: Option<Incident> = serde_json::from_slice(&bytes).ok();
    let Some(Incident { bundle, members }) = incident else {
        return Ok((Bundle::from_json(&bytes).map_err(|error| invalid(&error))?, None));
    };
    let Some(bundle) = bundle else {
        return Err(Error::Rejected(format!(
            "{} tells of a request without an answer: there is no receipt to check in it",
            path.display()
        )));
    };
    let bundle = Bundle::from_json(bundle.get().as_bytes()).map_err(|error| invalid(&error))?;
    let members = Signed::<Members>::from_json(members.get().as_bytes()).map_err(|error| invalid(&error))?;
    Ok((bundle, Some(members)))
}

/// The parts of an incident file that are checked.
#[derive(serde::Deserialize)]
struct Incident {
    bundle: Option<Box<RawValue>>,
    members: Box<RawValue>,
}

/// Who signs the list of workers of the network that `assay up` runs here.
fn local_signer() -> Result<Address> {
    let path = home::home()?.join("up").join("members.key");
    if !path.is_file() {
        return Err(Error::said(
            "nobody said whose list of workers counts: name the address that signs it with --signer, and the list with \
             --members",
        ));
    }
    Ok(members::key_at(&path)?.address())
}

/// The lists of workers of the network that `assay up` runs here, the newest first.
fn local_lists() -> Result<Vec<Signed<Members>>> {
    let folder = home::home()?.join("up");
    let mut lists = vec![members::read(&folder.join("members.json"))?];
    if let Ok(former) = std::fs::read_dir(folder.join("members")) {
        // A file among the former lists that cannot be read is one list less, as if it had been removed.
        lists.extend(former.flatten().filter_map(|entry| members::read(&entry.path()).ok()));
    }
    lists.sort_by_key(|list| std::cmp::Reverse(list.statement.serial));
    Ok(lists)
}

/// The newest list that counted when the answer was finished and that names its worker; or else the newest that counted,
/// against which the check will say what is wrong.
fn in_force(lists: Vec<Signed<Members>>, signer: Address, bundle: &Bundle) -> Result<Signed<Members>> {
    let receipt = &bundle.receipt.statement;
    let finished_s = receipt.finished_at_ms / 1_000;
    let (mut newest, mut fault) = (None, None);
    for list in lists {
        match assay_verify::check_members(&list, Some(&signer), &bundle.domain, finished_s, 0) {
            // A second of grace: this clock was read in milliseconds, on another machine.
            Ok(_)
                if list.statement.issued_at_s <= finished_s + 1
                    && list.statement.member(&receipt.worker).is_some() =>
            {
                return Ok(list);
            }
            Ok(_) => newest = newest.or(Some(list)),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    newest.ok_or_else(|| match fault {
        Some(error) => Error::Rejected(format!("{error}; nothing is proved without it")),
        None => Error::said("there is no list of workers; name one with --members"),
    })
}

/// Checks a bundle against the local network's lists of workers; `None` where there is no such network.
pub(crate) fn check_locally(bundle: &Bundle) -> Option<Report> {
    let list = in_force(local_lists().ok()?, local_signer().ok()?, bundle).ok()?;
    Some(assay_verify::check(bundle, &Expected::of_members(bundle.domain, &list.statement)))
}

fn print(report: &Report, serial: u64, signer: &Address) {
    for check in &report.checks {
        let (mark, detail) = match check.outcome {
            Outcome::Passed => (ui::green("✓"), check.detail.clone()),
            Outcome::Failed => (ui::red("✗"), ui::red(&check.detail)),
            Outcome::Skipped | Outcome::NotCounted => (ui::dim("·"), ui::dim(&check.detail)),
        };
        let name = serde_json::to_value(check.name).ok().and_then(|name| name.as_str().map(str::to_owned));
        ui::say!("{mark} {:18} {detail}", name.unwrap_or_default());
    }
    let state = match report.state {
        State::Signed => ui::green("SIGNED"),
        State::Replayed => ui::green("REPLAYED"),
        State::Proved => ui::green("PROVED"),
        State::Rejected => ui::red("REJECTED"),
        State::Mismatch => ui::red("MISMATCH"),
    };
    ui::say!(
        "\n{state} by {} ({})",
        report.operator.as_deref().unwrap_or("an unknown operator"),
        report.worker
    );
    if !report.proves.is_empty() {
        ui::say!("\n{}", ui::bold("What this proves"));
        report.proves.iter().for_each(|line| ui::say!("  {line}"));
    }
    ui::say!("\n{}", ui::bold("What you still trust"));
    report.trusted.iter().for_each(|line| ui::say!("  {line}"));
    ui::say!("  The list of workers, serial {serial}, signed by {signer}.");
}
