//! `assay members`: makes and inspects the signed list that says who is a worker, with which key, where, and for what
//! price. Gateways pin the address of the key that signs it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use assay_receipt::{Address, Bytes32, Domain, Key, Member, Members, Signed};
use clap::Subcommand;
use serde_json::json;

use crate::error::{Error, Result};
use crate::{home, keys, settle, ui};

/// Longest validity of a list, in days: a list that nobody renews for a year is forgotten, not in force.
const VALID_DAYS_MAX: u64 = 366;
const DAY_S: u64 = 24 * 3600;

#[derive(Subcommand)]
pub(crate) enum MembersCommand {
    /// Sign a list of workers from the worker.json files that they wrote
    Sign {
        /// The worker.json of each worker, from its data folder
        #[arg(required = true)]
        workers: Vec<PathBuf>,
        /// The file with the signing key; made when missing, with mode 0600
        #[arg(long)]
        key: PathBuf,
        /// Where to write the list; its serial follows that of the list that is there
        #[arg(long, default_value = "members.json")]
        out: PathBuf,
        /// The chain on which its workers' receipts settle; none when left out
        #[arg(long)]
        chain_id: Option<u64>,
        /// Days for which the list counts
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=VALID_DAYS_MAX))]
        days: u64,
    },
    /// Show a list and who signed it
    Show {
        /// The list
        file: PathBuf,
        /// The chain that it was signed for; none when left out
        #[arg(long)]
        chain_id: Option<u64>,
    },
}

pub(crate) fn run(command: MembersCommand, json: bool) -> Result<()> {
    match command {
        MembersCommand::Sign { workers, key, out, chain_id, days } => {
            let key = key_at(&key)?;
            let members = workers.iter().map(|path| descriptor(path)).collect::<Result<Vec<_>>>()?;
            let list = sign(&key, &domain(chain_id), members, days * DAY_S, &out)?;
            announce(&list, key.address(), json);
            Ok(())
        }
        MembersCommand::Show { file, chain_id } => {
            let list = read(&file)?;
            let signer = list.signer(&domain(chain_id)).map_err(|error| {
                Error::Rejected(format!("{} is not properly signed: {error}", file.display()))
            })?;
            announce(&list, signer, json);
            Ok(())
        }
    }
}

fn announce(list: &Signed<Members>, signer: Address, json: bool) {
    if json {
        ui::print_json(&json!({ "signer": signer, "members": list }));
        return;
    }
    let rows: Vec<Vec<String>> = list
        .statement
        .members
        .iter()
        .map(|member| {
            let models: Vec<_> = member.models.iter().map(|offer| offer.name.as_str()).collect();
            vec![member.operator.clone(), member.worker.to_string(), member.url.clone(), models.join(", ")]
        })
        .collect();
    ui::say!("{}", ui::table(&["operator", "worker", "address", "models"], &rows).trim_end());
    ui::say!("\nserial {}, signed by {signer}", list.statement.serial);
    ui::say!("{}", ui::dim("A gateway accepts it with members_signer set to that address."));
}

/// Where statements count: on a chain made by `assay genesis`, or on none.
fn domain(chain_id: Option<u64>) -> Domain {
    chain_id.map_or_else(Domain::default, settle::domain)
}

/// Now, in seconds since 1970 UTC.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads the `worker.json` that a worker wrote about itself.
pub(crate) fn descriptor(path: &Path) -> Result<Member> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::said(format!("{} does not describe a worker: {error}", path.display())))
}

/// Signs a list of workers and writes it to `path`, with a serial above that of the list that is there.
pub(crate) fn sign(
    key: &Key,
    domain: &Domain,
    members: Vec<Member>,
    valid_s: u64,
    path: &Path,
) -> Result<Signed<Members>> {
    let former = if path.is_file() { read(path)?.statement.serial } else { 0 };
    let now_s = now_s();
    let serial = now_s.max(former.saturating_add(1));
    let list = Members { serial, issued_at_s: now_s, expires_at_s: now_s + valid_s, members };
    list.validate()
        .map_err(|error| Error::said(format!("this list of workers cannot be signed: {error}")))?;
    let list = Signed::sign(key, domain, list);
    let text = serde_json::to_vec_pretty(&list)
        .map_err(|error| Error::said(format!("the list of workers cannot be written: {error}")))?;
    home::write_atomically(path, &text, 0o644)?;
    Ok(list)
}

/// Reads a list: `members.json`, or what a gateway answers at `/assay/members`. The signature is not checked.
pub(crate) fn read(path: &Path) -> Result<Signed<Members>> {
    let bytes = home::read_bounded(path, assay_receipt::limits::MEMBERS_BYTES as u64)?;
    let wrapped = serde_json::from_slice::<serde_json::Value>(&bytes).ok().and_then(|value| {
        serde_json::to_vec(value.get("members")?.get("statement").and(value.get("members"))?).ok()
    });
    Signed::<Members>::from_json(wrapped.as_deref().unwrap_or(&bytes))
        .map_err(|error| Error::said(format!("{} is not a list of workers: {error}", path.display())))
}

/// The key in a file of 64 hex digits, made with mode 0600 on first use.
pub(crate) fn key_at(path: &Path) -> Result<Key> {
    let bad = |error: assay_receipt::Error| {
        Error::said(format!("{} is not a key: {error}; remove it to make a new one", path.display()))
    };
    if path.is_file() {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(1024).read_to_string(&mut text))
            .map_err(Error::file("read", path))?;
        let secret: Bytes32 = text.trim().parse().map_err(bad)?;
        return Key::from_bytes(secret.0).map_err(bad);
    }
    let secret = keys::random()?;
    home::write_atomically(path, Bytes32(secret).to_string().as_bytes(), 0o600)?;
    Key::from_bytes(secret).map_err(bad)
}
