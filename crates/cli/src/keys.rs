//! `assay keys`: keys for accounts in encrypted keystores, and keys for validators. No command prints a secret.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use assay_ledger::types::hex;
use assay_node::node;
use assay_receipt::{Bytes32, Key};
use assay_wallet::abi::text;
use assay_wallet::keystore;
use clap::Subcommand;
use serde_json::json;

use crate::chain::SignerArgs;
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{home, members, ui};

/// Least length of a new password, in characters.
const PASSWORD_LEAST: usize = 8;
/// Where a password comes from where there is no terminal.
const PASSWORD: &str = "ASSAY_PASSWORD";

#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Make an account's key in an encrypted keystore (Ethereum's v3 format) in ~/.assay/keys
    New {
        /// What to call it
        name: String,
    },
    /// Encrypt a key from elsewhere: 64 hexadecimal digits on standard input, or a keystore's file
    Import {
        /// What to call it
        name: String,
        /// A keystore of version 3, as geth and foundry make them
        #[arg(long)]
        keystore: Option<PathBuf>,
    },
    /// List the keystores with their addresses
    List,
    /// Make a validator's key file with mode 0600, or keep the one that is there, and print its public half
    Validator {
        /// The file
        #[arg(default_value = "validator.key")]
        file: PathBuf,
    },
    /// Replace your validator's key from the next epoch on. The old one counts against you until its unbonding delay is over
    Rotate {
        /// The folder of the validator's node, in which a new key is made; ~/.assay/node when left out
        #[arg(long)]
        data: Option<PathBuf>,
        /// Public key of a validator whose key file is elsewhere; when left out, one is made in the data folder
        #[arg(long)]
        validator_key: Option<String>,
        /// Where the other validators reach yours, IP:PORT; as before when left out
        #[arg(long)]
        endpoint: Option<SocketAddr>,
        /// The account that the validator joined with
        #[command(flatten)]
        signer: SignerArgs,
    },
}

pub(crate) async fn run(command: KeysCommand, json: bool) -> Result<()> {
    match command {
        KeysCommand::New { name } => keep(&name, &random()?, json),
        KeysCommand::Import { name, keystore: None } => {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut std::io::Read::take(std::io::stdin(), 1024), &mut text)
                .map_err(|error| Error::said(format!("standard input cannot be read: {error}")))?;
            let digits = text.trim();
            let secret: Bytes32 = format!("0x{}", digits.strip_prefix("0x").unwrap_or(digits))
                .parse()
                .map_err(|_| Error::said("standard input has no key: 64 hexadecimal digits"))?;
            keep(&name, &secret.0, json)
        }
        KeysCommand::Import { name, keystore: Some(file) } => {
            let text = read(&file)?;
            let key = open(&text, &file)?;
            let target = path_of(&name)?;
            absent(&target)?;
            home::write_atomically(&target, text.as_bytes(), 0o600)?;
            announce(&name, &key, &target, json);
            Ok(())
        }
        KeysCommand::List => list(json),
        KeysCommand::Rotate { data, validator_key, endpoint, signer } => {
            let data = match data {
                Some(data) => data,
                None => home::home()?.join("node"),
            };
            rotate(&data, validator_key, endpoint, signer, json).await
        }
        KeysCommand::Validator { file } => {
            let secret = validator_secret(&file, true)?;
            let public = node::public_key(&secret).map_err(|error| Error::said(error.to_string()))?;
            if json {
                ui::print_json(&json!({ "key": public, "file": file }))
            } else {
                say!("{public}")
            }
            Ok(())
        }
    }
}

/// Bytes from the system's random source: a key, or the seed of one.
pub(crate) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::said(format!("the system gives no random bytes: {error}")))?;
    Ok(bytes)
}

/// Registers another key for the signer's validator.
async fn rotate(
    data: &Path,
    elsewhere: Option<String>,
    endpoint: Option<SocketAddr>,
    signer: SignerArgs,
    json: bool,
) -> Result<()> {
    let signer = signer.open()?;
    let me = signer.address();
    let known = signer.chain.view("Staking", "validatorOf", &[text(me)]).await?;
    let registered = known["key"].as_str().and_then(|key| key.strip_prefix("0x")).unwrap_or_default();
    let Some((old, place)) = registered.split_at_checked(64) else {
        return Err(Error::said(format!(
            "{me} runs no validator yet: begin with `assay join --role validator`"
        )));
    };
    let (here, next) = (data.join(crate::node::KEY), data.join(crate::node::NEXT_KEY));
    let public = |file: &Path| {
        let secret = validator_secret(file, true)?;
        node::public_key(&secret).map_err(|error| Error::said(error.to_string()))
    };
    let key = match &elsewhere {
        Some(key) => key.trim_start_matches("0x").to_owned(),
        None => {
            // What an earlier rotation made is the validator's key now, once it votes.
            if next.exists() && public(&next)? == old {
                let committee = signer.chain.client.request("assay_getCommittee", json!([])).await?;
                let members = committee["members"].as_array().cloned().unwrap_or_default();
                if !members.iter().any(|member| member["key"].as_str().is_some_and(|key| key.ends_with(old)))
                {
                    return Err(Error::said(
                        "the key of the last rotation has no seats yet; wait until the next epoch has begun",
                    ));
                }
                std::fs::rename(&next, &here).map_err(Error::file("replace", &here))?;
            }
            public(&next)?
        }
    };
    if key.len() != 64 {
        return Err(Error::said(format!("{key} is no validator's key: that has 64 hexadecimal digits")));
    }
    let place = endpoint.map_or(place.to_owned(), |endpoint| hex::encode(endpoint.to_string()));
    let done = signer.send("Staking", "setKey", &[json!(format!("0x{key}{place}"))]).await?;
    if json {
        ui::print_json(
            &json!({ "validator": me.to_string(), "key": key, "transaction": done.hash, "block": done.block }),
        );
        return Ok(());
    }
    say!("{me} votes with {} from the next epoch on", ui::bold(&key));
    if elsewhere.is_none() {
        say!(
            "restart its node before this epoch ends: it then has both keys, and votes with the one that has seats"
        );
    }
    Ok(())
}

fn folder() -> Result<PathBuf> {
    let folder = home::home()?.join("keys");
    home::create_private(&folder)?;
    Ok(folder)
}

fn path_of(name: &str) -> Result<PathBuf> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) {
        return Err(Error::said(format!(
            "{name:?} is no name for a key: use up to 64 letters, digits, - and _"
        )));
    }
    Ok(folder()?.join(format!("{name}.json")))
}

fn absent(target: &Path) -> Result<()> {
    if target.exists() {
        return Err(Error::said(format!("{} exists and is kept; choose another name", target.display())));
    }
    Ok(())
}

fn keep(name: &str, secret: &[u8; 32], json: bool) -> Result<()> {
    let target = path_of(name)?;
    absent(&target)?;
    let key = Key::from_bytes(*secret).map_err(|error| Error::said(error.to_string()))?;
    let password = password("password for the new key", true)?;
    let spinner = ui::spinner("encrypting");
    let file = keystore::encrypt(secret, &password).map_err(|error| Error::said(error.to_string()))?;
    spinner.finish_and_clear();
    home::write_atomically(&target, file.as_bytes(), 0o600)?;
    announce(name, &key, &target, json);
    Ok(())
}

fn announce(name: &str, key: &Key, target: &Path, json: bool) {
    if json {
        ui::print_json(&json!({ "name": name, "address": key.address(), "file": target }));
        return;
    }
    say!("{} {}", ui::bold(&key.address().to_string()), target.display());
    say!("{}", ui::dim("Whoever loses the file or the password loses the account: keep a copy of both."));
}

fn list(json: bool) -> Result<()> {
    let folder = folder()?;
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(Error::file("read", &folder))?.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let address = keystore::address(&read(&path)?).unwrap_or_else(|| "-".to_owned());
        rows.push(vec![name, address]);
    }
    rows.sort();
    if json {
        let rows: Vec<_> = rows.iter().map(|row| json!({ "name": row[0], "address": row[1] })).collect();
        ui::print_json(&json!({ "keys": rows }));
    } else {
        say!("{}", ui::table(&["name", "address"], &rows));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&home::read_bounded(path, keystore::BYTES_MAX)?).into_owned())
}

fn open(text: &str, path: &Path) -> Result<Key> {
    let password = password(&format!("password of {}", path.display()), false)?;
    let spinner = ui::spinner("decrypting");
    let key = keystore::decrypt(text, &password);
    spinner.finish_and_clear();
    key.map_err(|error| Error::said(format!("{}: {error}", path.display())))
}

/// A password from `$ASSAY_PASSWORD`, or typed without echo; a new one twice.
fn password(what: &str, new: bool) -> Result<String> {
    let found = match std::env::var(PASSWORD) {
        Ok(password) => password,
        Err(_) if !std::io::stdin().is_terminal() => {
            return Err(Error::said(format!("there is no terminal to ask for the {what}; set {PASSWORD}")));
        }
        Err(_) => {
            let ask = |what: &str| {
                eprint!("{what}: ");
                console::Term::stderr()
                    .read_secure_line()
                    .map_err(|error| Error::said(format!("the password cannot be read: {error}")))
            };
            let password = ask(what)?;
            if new && ask("once more")? != password {
                return Err(Error::said("the two passwords differ; nothing was written"));
            }
            password
        }
    };
    if new && found.chars().count() < PASSWORD_LEAST {
        return Err(Error::said(format!(
            "a password has at least {PASSWORD_LEAST} characters; nothing was written"
        )));
    }
    Ok(found)
}

/// The key that `--key` names: a keystore in ~/.assay/keys by its name, or a file with a keystore or with 64 hexadecimal digits.
pub(crate) fn named(name: &str) -> Result<Key> {
    let path = Path::new(name);
    let path = if path.is_file() { path.to_owned() } else { path_of(name)? };
    if !path.is_file() {
        return Err(Error::said(format!(
            "there is no key {name:?}: `assay keys list` shows those that there are, `assay keys new {name}` makes one"
        )));
    }
    let text = read(&path)?;
    if text.trim_start().starts_with('{') { open(&text, &path) } else { members::key_at(&path) }
}

/// The secret in a validator's key file; made where it is missing, if it may be.
pub(crate) fn validator_secret(path: &Path, make: bool) -> Result<String> {
    if make && !path.exists() {
        let (secret, _) = node::new_key(random()?).map_err(|error| Error::said(error.to_string()))?;
        home::write_atomically(path, format!("{secret}\n").as_bytes(), 0o600)?;
    }
    let bytes = home::read_bounded(path, 128)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
