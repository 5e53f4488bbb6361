//! The system contracts of a deployment: where they are, how they are called, and the transactions that make them.
//!
//! A deployment's addresses follow from the account that deploys, so a chain whose genesis has the contracts has them at the same
//! addresses as any other. The transactions are those of `contracts/scripts/genesis.mjs`, which does the same for other chains; a test in CI
//! compares the two.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use assay_ledger::types::{Address, B256, hex, keccak256};
use assay_ledger::{Epochs, Genesis, GenesisAccount, Step, System as Deployment, Validator};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::abi::{AbiError, Contract, text};
use crate::client::Call;

/// The account that deploys the contracts of a genesis. Nobody has a key for it.
pub const DEPLOYER: Address =
    Address::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa, 0x55, 0xa1]);

macro_rules! artifacts {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../../../contracts/artifacts/", $name, ".json")))),*]
    };
}

static CONTRACTS: LazyLock<BTreeMap<&str, Contract>> = LazyLock::new(|| {
    let artifacts = artifacts![
        "AssayGovernor",
        "AttentionReferee",
        "Audits",
        "Deposits",
        "Disputes",
        "ERC1967Proxy",
        "LayerReferee",
        "Models",
        "Opg",
        "Pause",
        "Registry",
        "Rules",
        "SamplerReferee",
        "ServiceLevels",
        "Settlement",
        "Staking",
        "TimelockController",
        "Treasury"
    ];
    // They are part of this binary, and a test reads them all.
    let parse = |(name, text): (&'static str, &str)| {
        (name, Contract::parse(text).expect("an artifact of this repository"))
    };
    artifacts.into_iter().map(parse).collect()
});

/// The upgradeable contracts in the order of their deployment, and their names in a deployment.
const PROXIES: [(&str, &str); 10] = [
    ("Staking", "staking"),
    ("Registry", "registry"),
    ("Models", "models"),
    ("Deposits", "deposits"),
    ("Rules", "rules"),
    ("Settlement", "settlement"),
    ("Audits", "audits"),
    ("ServiceLevels", "serviceLevels"),
    ("Disputes", "disputes"),
    ("Treasury", "treasury"),
];
/// The fields of Solidity's `Addresses`.
const FIELDS: [&str; 13] = [
    "timelock",
    "opg",
    "pause",
    "staking",
    "registry",
    "models",
    "deposits",
    "rules",
    "settlement",
    "audits",
    "serviceLevels",
    "disputes",
    "treasury",
];

/// Why a description gives no genesis.
#[derive(Debug, Error)]
pub enum DescriptionError {
    /// Not JSON, or not of this form.
    #[error("the description could not be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A value that does not fit its parameter.
    #[error("the description has {0}")]
    Value(#[from] AbiError),
    /// A holder that is neither an address nor a contract.
    #[error("the description names {0:?}, which is neither an address nor a contract of the deployment")]
    Holder(String),
    /// What is needed to begin a chain is not there.
    #[error("the description has no {0:?}")]
    Missing(&'static str),
}

/// A contract of this repository by its Solidity name.
pub fn contract(name: &str) -> Option<&'static Contract> {
    CONTRACTS.get(name)
}

/// What a revert says, if it is an error of one of the contracts, or Solidity's `Error(string)`.
pub fn explain_error(data: &[u8]) -> Option<String> {
    CONTRACTS.values().find_map(|contract| contract.error(data))
}

/// A call's contract, function and arguments, by whom it is sent to.
pub fn explain_call(system: &System, to: Address, data: &[u8]) -> Option<(&'static str, String, Value)> {
    let name = system.name_of(to)?;
    let (function, arguments) = contract(name)?.explain(data)?;
    Some((name, function, arguments))
}

/// Where the contracts of a deployment are, by Solidity name.
#[derive(Clone, Debug)]
pub struct System(BTreeMap<&'static str, Address>);

impl System {
    /// The deployment that an account began with a nonce.
    pub fn at(deployer: Address, nonce: u64) -> Self {
        let mut found = BTreeMap::new();
        let mut create = |name, offset: u64| found.insert(name, deployer.create(nonce + offset));
        create("Opg", 0);
        create("TimelockController", 1);
        create("Pause", 2);
        create("LayerReferee", 3);
        create("AttentionReferee", 4);
        create("SamplerReferee", 5);
        for (i, (name, _)) in (0..).zip(PROXIES) {
            create(name, 7 + 2 * i);
        }
        create("AssayGovernor", 6 + 2 * PROXIES.len() as u64);
        Self(found)
    }

    /// The deployment of a genesis.
    pub fn of_genesis() -> Self {
        Self::at(DEPLOYER, 0)
    }

    /// A contract's address.
    ///
    /// # Errors
    /// [`AbiError::NoFunction`] for a name that no contract has.
    pub fn address(&self, name: &str) -> Result<Address, AbiError> {
        self.0.get(name).copied().ok_or_else(|| AbiError::NoFunction(name.to_owned(), 0))
    }

    /// The contract at an address.
    pub fn name_of(&self, address: Address) -> Option<&'static str> {
        self.0.iter().find(|(_, at)| **at == address).map(|(name, _)| *name)
    }

    /// All contracts with their addresses.
    pub fn contracts(&self) -> impl Iterator<Item = (&'static str, Address)> {
        self.0.iter().map(|(name, address)| (*name, *address))
    }

    /// A call of a function, not yet sent.
    pub fn prepare(&self, name: &str, function: &str, arguments: &[Value]) -> Result<Call, AbiError> {
        let to = self.address(name)?;
        let contract = contract(name).ok_or_else(|| AbiError::NoFunction(name.to_owned(), 0))?;
        Ok(Call { to: Some(to), value: Default::default(), data: contract.call(function, arguments)? })
    }
}

/// A chain's beginning as people write it: JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Description {
    /// EIP-155's chain id. What only a chain of our own needs may be left out for other uses of the file.
    pub chain_id: Option<u64>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The gas limit of every block; 60 million when left out.
    pub gas_limit: Option<u64>,
    /// Native coins from the start, in 10^-18, decimal: they pay for gas.
    #[serde(default)]
    pub alloc: BTreeMap<String, String>,
    /// The validators of the first epoch.
    #[serde(default)]
    pub validators: Vec<Validator>,
    /// When the seats are given anew.
    #[serde(default)]
    pub epochs: Epochs,
    /// JSON-RPC of nodes that others may follow, as URLs.
    #[serde(default)]
    pub follow: Vec<String>,
    /// OPG from the start, by classes.
    pub supply: Vec<Share>,
    /// Who may stop new work for three days.
    pub guardian: String,
    /// The first parameters of the contracts.
    pub parameters: Parameters,
}

/// A part of the supply.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Its documented class.
    pub class: String,
    /// An address, or the name of a contract of the deployment.
    pub holder: String,
    /// In 10^-18 OPG, decimal.
    pub amount: String,
}

/// Each contract's parameters, by their names in the contract.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the contracts document them")]
pub struct Parameters {
    pub timelock: Value,
    pub governor: Value,
    pub staking: Value,
    pub registry: Value,
    pub models: Value,
    pub settlement: Value,
    pub audits: Value,
    pub disputes: Value,
}

impl Description {
    /// Reads a file's text.
    pub fn from_json(text: &str) -> Result<Self, DescriptionError> {
        Ok(serde_json::from_str(text)?)
    }

    /// The genesis that it describes, contracts included. `now` in seconds since 1970 counts where the description has no time.
    pub fn genesis(&self, now: u64) -> Result<Genesis, DescriptionError> {
        let account =
            |balance: &String| GenesisAccount { balance: balance.clone(), ..GenesisAccount::default() };
        Ok(Genesis {
            chain_id: self.chain_id.ok_or(DescriptionError::Missing("chainId"))?,
            timestamp: self.timestamp.unwrap_or(now),
            gas_limit: self.gas_limit.unwrap_or(60_000_000),
            base_fee_per_gas: None,
            alloc: self.alloc.iter().map(|(holder, balance)| (holder.clone(), account(balance))).collect(),
            validators: self.validators.clone(),
            epochs: self.epochs.clone(),
            follow: self.follow.clone(),
            system: Some(self.deployment(DEPLOYER, 0)?),
        })
    }

    /// The transactions of a deployment by an account from a nonce on.
    pub fn deployment(&self, deployer: Address, nonce: u64) -> Result<Deployment, DescriptionError> {
        let system = System::at(deployer, nonce);
        let at = |field: &str| {
            let found = PROXIES.iter().find(|(_, proxy)| *proxy == field).map(|(name, _)| *name);
            let name = found.or(match field {
                "opg" => Some("Opg"),
                "timelock" => Some("TimelockController"),
                "pause" => Some("Pause"),
                "governor" => Some("AssayGovernor"),
                "layerReferee" => Some("LayerReferee"),
                "attentionReferee" => Some("AttentionReferee"),
                "samplerReferee" => Some("SamplerReferee"),
                _ => None,
            });
            name.and_then(|name| system.address(name).ok())
                .ok_or_else(|| DescriptionError::Holder(field.to_owned()))
        };
        let holder = |text: &str| text.parse().or_else(|_| at(text));
        let made = |name: &str| contract(name).ok_or_else(|| AbiError::NoFunction(name.to_owned(), 0));
        let data = |bytes: Vec<u8>| format!("0x{}", hex::encode(bytes));
        let mut steps = Vec::new();
        let mut addresses = BTreeMap::new();
        let create = |steps: &mut Vec<Step>, name: &str, code: &str, arguments: Value| {
            let arguments = arguments.as_array().cloned().unwrap_or_default();
            let data = data(made(code)?.create(&arguments)?);
            steps.push(Step { name: name.to_owned(), to: None, data });
            Ok::<_, DescriptionError>(deployer.create(nonce + steps.len() as u64 - 1))
        };
        let p = &self.parameters;
        let supply = self.supply.iter().map(|share| {
            Ok(json!({"class": share.class, "holder": text(holder(&share.holder)?), "amount": share.amount}))
        });
        let supply = supply.collect::<Result<Vec<_>, DescriptionError>>()?;
        create(&mut steps, "opg", "Opg", json!([supply]))?;
        // Anybody may carry out what was queued and has waited; the governor alone queues, once it is there.
        let timelock = json!([p.timelock["delay"], [], [text(Address::ZERO)], text(deployer)]);
        create(&mut steps, "timelock", "TimelockController", timelock)?;
        create(&mut steps, "pause", "Pause", json!([text(at("timelock")?), self.guardian]))?;
        for (name, code) in [
            ("layerReferee", "LayerReferee"),
            ("attentionReferee", "AttentionReferee"),
            ("samplerReferee", "SamplerReferee"),
        ] {
            create(&mut steps, name, code, json!([]))?;
        }
        let all: Vec<Value> =
            FIELDS.iter().map(|field| Ok(text(at(field)?))).collect::<Result<_, DescriptionError>>()?;
        let referees = ["layerReferee", "attentionReferee", "samplerReferee"];
        let referees: Vec<Value> =
            referees.iter().map(|field| Ok(text(at(field)?))).collect::<Result<_, DescriptionError>>()?;
        for (code, field) in PROXIES {
            let initial = match field {
                "staking" => json!([p.staking]),
                "registry" => json!([p.registry["leastBond"], p.registry["delay"]]),
                "models" => json!([p.models["price"]]),
                "settlement" => json!([p.settlement]),
                "audits" => json!([p.audits["samples"]]),
                "disputes" => json!([p.disputes, referees]),
                _ => json!([]),
            };
            let implementation = create(&mut steps, &format!("{field} (code)"), code, json!([all]))?;
            addresses.insert(format!("{field}Code"), implementation.to_string());
            let initial = made(code)?.call("initialize", initial.as_array().map_or(&[], Vec::as_slice))?;
            create(&mut steps, field, "ERC1967Proxy", json!([text(implementation), data(initial)]))?;
        }
        let g = &p.governor;
        let governor = json!([
            text(at("opg")?),
            text(at("staking")?),
            text(at("timelock")?),
            g["delay"],
            g["period"],
            g["threshold"],
            g["quorumPercent"]
        ]);
        create(&mut steps, "governor", "AssayGovernor", governor)?;
        let role = |name: &str| keccak256(name);
        for (name, function, role, who) in [
            ("the governor may queue", "grantRole", role("PROPOSER_ROLE"), at("governor")?),
            ("the governor may cancel", "grantRole", role("CANCELLER_ROLE"), at("governor")?),
            ("the deployer has no power left", "renounceRole", B256::ZERO, deployer),
        ] {
            let call = made("TimelockController")?.call(function, &[text(role), text(who)])?;
            steps.push(Step {
                name: name.to_owned(),
                to: Some(at("timelock")?.to_string()),
                data: data(call),
            });
        }
        for field in FIELDS.iter().chain(&["layerReferee", "attentionReferee", "samplerReferee", "governor"])
        {
            addresses.insert((*field).to_owned(), at(field)?.to_string());
        }
        Ok(Deployment { deployer: deployer.to_string(), nonce, steps, addresses })
    }
}
