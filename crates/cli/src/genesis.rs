//! `assay genesis`: makes and checks the file that a chain begins with.

use std::path::{Path, PathBuf};

use assay_ledger::{Epochs, Genesis, Validator};
use assay_node::node;
use assay_wallet::system::Description;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ui::say;
use crate::{home, members, ui};

/// A genesis with every contract of the system has about 1 MB.
const GENESIS_BYTES_MAX: u64 = 64 << 20;
/// Who gets the tips of a chain for development.
pub(crate) const NOBODY: &str = "0x0000000000000000000000000000000000000000";
/// The accounts of Ethereum's well-known test mnemonic ("test test … junk"), which tools for development expect: anybody has their
/// keys, so they are worth something on `--dev` alone.
pub(crate) const TEST_ACCOUNTS: [&str; 10] = [
    "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
    "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
    "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc",
    "0x976EA74026E726554dB657fA54763abd0C3a0aa9",
    "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955",
    "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f",
    "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
];
/// EIP-155's id of a chain for development.
pub(crate) const DEVELOPMENT_CHAIN: u64 = 31_415;
/// A chain for development but for its validators and accounts: the times of governance are minutes.
const DEVELOPMENT: &str = include_str!("genesis.development.json");

#[derive(Subcommand)]
pub(crate) enum GenesisCommand {
    /// Make a genesis, system contracts included, from a readable description; `assay genesis example` prints one
    Make {
        /// The description
        description: PathBuf,
        /// Where to write the genesis
        #[arg(long, short, default_value = "genesis.json")]
        out: PathBuf,
    },
    /// Execute a genesis and show what it leads to: compare the hash with the other validators
    Check {
        /// The genesis
        file: PathBuf,
    },
    /// Print a description to begin with
    Example,
}

pub(crate) fn run(command: GenesisCommand, json: bool) -> Result<()> {
    match command {
        GenesisCommand::Make { description, out } => {
            let bytes = home::read_bounded(&description, GENESIS_BYTES_MAX)?;
            let genesis = describe(&String::from_utf8_lossy(&bytes))
                .map_err(|error| Error::said(format!("{}: {error}", description.display())))?;
            if genesis.validators.is_empty() {
                return Err(Error::said(format!(
                    "{} names no validators; `assay keys validator` makes a key for one",
                    description.display()
                )));
            }
            show(&genesis, json)?;
            write(&genesis, &out)
        }
        GenesisCommand::Check { file } => show(&read(&file)?, json),
        GenesisCommand::Example => {
            let mut example: Value = serde_json::from_str(DEVELOPMENT)
                .map_err(|error| Error::said(format!("the example is no JSON: {error}")))?;
            example["validators"] =
                json!([{"key": "00".repeat(32), "endpoint": "192.0.2.1:8640", "beneficiary": NOBODY}]);
            example["alloc"] = json!({ TEST_ACCOUNTS[0]: "1000000000000000000000" });
            ui::print_json(&example);
            Ok(())
        }
    }
}

fn describe(text: &str) -> Result<Genesis> {
    Description::from_json(text)
        .and_then(|description| description.genesis(members::now_s()))
        .map_err(|error| Error::said(error.to_string()))
}

/// A chain for development: each account has 10,000 coins and an equal part of the circulating OPG, the first is the guardian.
pub(crate) fn development(validators: Vec<Validator>, accounts: &[&str]) -> Result<Genesis> {
    let mut description: Value =
        serde_json::from_str(DEVELOPMENT).map_err(|error| Error::said(error.to_string()))?;
    // 10,000.
    let coins = "10000000000000000000000";
    description["chainId"] = json!(DEVELOPMENT_CHAIN);
    description["alloc"] = accounts.iter().map(|account| ((*account).to_owned(), json!(coins))).collect();
    description["validators"] = json!(validators);
    description["guardian"] = json!(accounts.first().unwrap_or(&NOBODY));
    let shares = accounts.iter().map(|account| {
        // 600,000,000 OPG together.
        let amount = 600_000_000_000_000_000_000_000_000 / accounts.len() as u128;
        json!({"class": "community", "holder": account, "amount": amount.to_string()})
    });
    let treasury =
        json!({"class": "treasury", "holder": "treasury", "amount": "400000000000000000000000000"});
    description["supply"] = std::iter::once(treasury).chain(shares).collect();
    describe(&description.to_string())
}

/// Reads a genesis file.
pub(crate) fn read(path: &Path) -> Result<Genesis> {
    let bytes = home::read_bounded(path, GENESIS_BYTES_MAX)?;
    Genesis::from_json(&String::from_utf8_lossy(&bytes))
        .map_err(|error| Error::said(format!("{}: {error}", path.display())))
}

/// Writes a genesis file.
pub(crate) fn write(genesis: &Genesis, path: &Path) -> Result<()> {
    home::write_atomically(path, genesis.to_json().as_bytes(), 0o644)
}

/// Executes a genesis, and says what a person compares.
fn show(genesis: &Genesis, json: bool) -> Result<()> {
    let rejected = |error: String| Error::Rejected(error);
    let (_, first) = genesis.execute().map_err(|error| rejected(error.to_string()))?;
    node::validators(genesis).map_err(|error| rejected(error.to_string()))?;
    let contracts = genesis.system.as_ref().map(|system| &system.addresses);
    if json {
        ui::print_json(&json!({
            "chainId": genesis.chain_id,
            "hash": first.block.hash().to_string(),
            "stateRoot": first.block.header.state_root.to_string(),
            "accounts": first.state.accounts(),
            "validators": genesis.validators,
            "epochs": genesis.epochs,
            "contracts": contracts,
        }));
        return Ok(());
    }
    say!("chain id    {}", genesis.chain_id);
    say!("block 0     {}", first.block.hash());
    say!("state root  {}", first.block.header.state_root);
    say!("accounts    {}", first.state.accounts());
    for validator in &genesis.validators {
        say!("validator   {} at {}, tips to {}", validator.key, validator.endpoint, validator.beneficiary);
    }
    let Epochs { blocks, least_stake } = &genesis.epochs;
    say!("epochs      {blocks} blocks; seats go by stake from {least_stake} bonded (in 10^-18 OPG) on");
    for (name, address) in contracts.into_iter().flatten() {
        say!("contract    {address} {name}");
    }
    Ok(())
}
