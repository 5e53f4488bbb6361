//! The beginning of a chain, as a file that people read and compare.

use std::collections::BTreeMap;

use alloy_consensus::Header;
use alloy_consensus::constants::{EMPTY_OMMER_ROOT_HASH, EMPTY_ROOT_HASH};
use alloy_eips::eip2935::{HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CODE};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, hex};
use revm::context::TxEnv;
use revm::database::CacheDB;
use revm::{DatabaseRef, ExecuteCommitEvm, MainBuilder};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::absence;
use crate::block::Block;
use crate::committee::{Committee, MAX_MEMBERS, Member};
use crate::execute::{Executed, Rules, config, context, environment, outcome, sentence};
use crate::state::{AccountChange, State, changes};

/// EIP-7825: the most gas of one transaction. A step of a deployment obeys it as on any other chain.
const STEP_GAS: u64 = 1 << 24;
/// In wei, for a genesis that names none: 1 gwei.
const BASE_FEE: u64 = 1_000_000_000;

/// Why a file is no genesis.
#[derive(Debug, Error)]
pub enum GenesisError {
    /// Not JSON, or not of this form.
    #[error("the genesis could not be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A number or bytes that cannot be read.
    #[error("the genesis has {0:?} where {1} belongs")]
    Value(String, &'static str),
    /// A contract's deployment failed.
    #[error("the deployment's step \"{0}\" failed: {1}")]
    Step(String, String),
    /// The deployment left no code where it says that a contract is.
    #[error("the deployment left no code at {1}, where the {0} should be")]
    Missing(String, String),
    /// A field outside what can be.
    #[error("the genesis: {0}")]
    Invalid(&'static str),
}

/// A genesis file. Numbers in 10^-18 are decimal strings, addresses and bytes hexadecimal strings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Genesis {
    /// EIP-155's chain id.
    pub chain_id: u64,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// The gas limit of every block.
    pub gas_limit: u64,
    /// Wei for a unit of gas in the first block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_fee_per_gas: Option<u64>,
    /// Who has native coins from the start.
    #[serde(default)]
    pub alloc: BTreeMap<String, GenesisAccount>,
    /// The validators of the first epoch, with one seat each.
    #[serde(default)]
    pub validators: Vec<Validator>,
    /// When the seats are given anew.
    #[serde(default)]
    pub epochs: Epochs,
    /// JSON-RPC of nodes that others may follow, as URLs. No part of block 0: nobody has to trust them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follow: Vec<String>,
    /// The system contracts' deployment, as `contracts/scripts/genesis.mjs plan` prints it. Executed at genesis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<System>,
}

/// Elections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Epochs {
    /// How many blocks an epoch has, 2 to 10,000,000.
    pub blocks: u64,
    /// Until so much OPG is bonded (in 10^-18, decimal), the committee stays. Whoever has more than a third of what is bonded can
    /// stop the chain, so this should not be little.
    pub least_stake: String,
}

impl Default for Epochs {
    /// About an hour, and a fiftieth of the largest supply.
    fn default() -> Self {
        Self { blocks: 3_600, least_stake: "20000000000000000000000000".to_owned() }
    }
}

/// An account of a genesis.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GenesisAccount {
    /// In 10^-18, decimal.
    pub balance: String,
    /// Code, for a contract that is there from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Slots and values, hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub storage: BTreeMap<String, String>,
}

/// A validator of a genesis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validator {
    /// Its consensus key (ed25519), 64 hexadecimal digits.
    pub key: String,
    /// Where its peers reach it, `ip:port`.
    pub endpoint: String,
    /// Who gets the tips of its blocks.
    pub beneficiary: String,
}

/// A deployment: transactions from one account, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct System {
    /// Who deploys. Nobody needs to have a key for it.
    pub deployer: String,
    /// Its first nonce.
    pub nonce: u64,
    /// The transactions.
    pub steps: Vec<Step>,
    /// Names of contracts and where they end up.
    pub addresses: BTreeMap<String, String>,
}

/// A transaction of a deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it is for.
    pub name: String,
    /// The called address, or null for a creation.
    pub to: Option<String>,
    /// Call data or init code.
    pub data: String,
}

fn address(text: &str) -> Result<Address, GenesisError> {
    text.parse().map_err(|_| GenesisError::Value(text.to_owned(), "an address"))
}

fn bytes(text: &str) -> Result<Bytes, GenesisError> {
    text.parse().map_err(|_| GenesisError::Value(text.chars().take(80).collect(), "bytes"))
}

fn number(text: &str) -> Result<U256, GenesisError> {
    text.parse().map_err(|_| GenesisError::Value(text.to_owned(), "a number"))
}

impl Genesis {
    /// Reads a file's text.
    pub fn from_json(text: &str) -> Result<Self, GenesisError> {
        Ok(serde_json::from_str(text)?)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        // Maps have string keys and nothing else can fail.
        serde_json::to_string_pretty(self).expect("a genesis is JSON") + "\n"
    }

    fn accounts(&self) -> Result<Vec<AccountChange>, GenesisError> {
        let mut changes = vec![AccountChange {
            address: HISTORY_STORAGE_ADDRESS,
            account: Some((1, U256::ZERO, Some(HISTORY_STORAGE_CODE.clone()))),
            wiped: false,
            slots: Vec::new(),
        }];
        for (holder, account) in &self.alloc {
            let code = account.code.as_deref().map(bytes).transpose()?;
            let slots = account.storage.iter().map(|(slot, value)| Ok((number(slot)?, number(value)?)));
            changes.push(AccountChange {
                address: address(holder)?,
                account: Some((u64::from(code.is_some()), number(&account.balance)?, code)),
                wiped: false,
                slots: slots.collect::<Result<_, GenesisError>>()?,
            });
        }
        Ok(changes)
    }

    fn deploy(
        &self,
        system: &System,
        rules: &Rules,
        header: &Header,
        state: &mut State,
    ) -> Result<Vec<AccountChange>, GenesisError> {
        let deployer = address(&system.deployer)?;
        let mut cfg = config(rules);
        cfg.disable_base_fee = true;
        cfg.disable_block_gas_limit = true;
        let mut evm = context(cfg, environment(header), CacheDB::new(&*state)).build_mainnet();
        for (i, step) in system.steps.iter().enumerate() {
            let env = TxEnv {
                caller: deployer,
                gas_limit: STEP_GAS,
                gas_price: 0,
                kind: step.to.as_deref().map(address).transpose()?.map_or(TxKind::Create, TxKind::Call),
                data: bytes(&step.data)?,
                nonce: system.nonce + i as u64,
                chain_id: Some(rules.chain_id),
                ..TxEnv::default()
            };
            let failed = |why: String| GenesisError::Step(step.name.clone(), why);
            let done = outcome(evm.transact_commit(env).map_err(|error| failed(sentence(&error)))?);
            if let Some(failure) = done.failure {
                return Err(failed(format!("{failure:?} {}", done.output)));
            }
        }
        let changes = changes(&evm.ctx.journaled_state.database);
        drop(evm);
        state.apply(&changes);
        for (name, text) in &system.addresses {
            let Ok(found) = state.basic_ref(address(text)?);
            if found.is_none_or(|info| info.is_empty_code_hash()) {
                return Err(GenesisError::Missing(name.clone(), text.clone()));
            }
        }
        Ok(changes)
    }

    /// The committee of epoch 0: the validators, with one seat each.
    pub fn committee(&self) -> Result<Committee, GenesisError> {
        if !(2..=10_000_000).contains(&self.epochs.blocks) {
            return Err(GenesisError::Invalid("an epoch has 2 to 10,000,000 blocks"));
        }
        if self.validators.len() > MAX_MEMBERS {
            return Err(GenesisError::Invalid("there are more than 128 validators"));
        }
        let members = self.validators.iter().map(|validator| {
            let wrong = || GenesisError::Value(validator.key.chars().take(80).collect(), "a validator's key");
            let key = hex::decode_to_array(&validator.key).map_err(|_| wrong())?;
            if validator.endpoint.len() > 96 {
                return Err(GenesisError::Value(
                    validator.endpoint.chars().take(80).collect(),
                    "an endpoint",
                ));
            }
            Ok(Member { key, seats: 1, endpoint: validator.endpoint.clone() })
        });
        let members = members.collect::<Result<Vec<_>, GenesisError>>()?;
        let count = members.len();
        let committee = Committee::new(0, self.epochs.blocks, members);
        match committee.members.len() == count {
            true => Ok(committee),
            false => Err(GenesisError::Invalid("a validator is named twice")),
        }
    }

    /// The rules, and block 0 with its state. Its `changes` lead from the empty state to it, and its extra data is the hash of
    /// the first committee.
    pub fn execute(&self) -> Result<(Rules, Executed), GenesisError> {
        if self.gas_limit < STEP_GAS {
            return Err(GenesisError::Invalid("a gas limit below 16777216 does not allow every transaction"));
        }
        if self.chain_id == 0 || self.chain_id > (1 << 53) {
            return Err(GenesisError::Invalid(
                "the chain id is zero, or too large for clients in JavaScript",
            ));
        }
        let staking = self.system.as_ref().and_then(|system| system.addresses.get("staking"));
        let mut rules = Rules {
            chain_id: self.chain_id,
            gas_limit: self.gas_limit,
            staking: staking.map(|text| address(text)).transpose()?,
            least_stake: number(&self.epochs.least_stake)?,
            genesis: B256::ZERO,
        };
        let committee = self.committee()?;
        let mut header = Header {
            ommers_hash: EMPTY_OMMER_ROOT_HASH,
            gas_limit: self.gas_limit,
            timestamp: self.timestamp,
            base_fee_per_gas: Some(self.base_fee_per_gas.unwrap_or(BASE_FEE)),
            withdrawals_root: Some(EMPTY_ROOT_HASH),
            blob_gas_used: Some(0),
            excess_blob_gas: Some(0),
            parent_beacon_block_root: Some(B256::ZERO),
            requests_hash: Some(EMPTY_REQUESTS_HASH),
            transactions_root: EMPTY_ROOT_HASH,
            receipts_root: EMPTY_ROOT_HASH,
            ..Header::default()
        };
        let mut changes = self.accounts()?;
        let mut state = State::default();
        state.apply(&changes);
        if let Some(system) = &self.system {
            changes.extend(self.deploy(system, &rules, &header, &mut state)?);
        }
        if !committee.members.is_empty() {
            header.extra_data = Bytes::copy_from_slice(committee.hash().as_slice());
            for change in [committee.change(&state), absence::account(state.balance(&absence::TURNS_ADDRESS))]
            {
                state.apply(std::slice::from_ref(&change));
                changes.push(change);
            }
        }
        header.state_root = state.root();
        let block = Block::new(header, Vec::new());
        rules.genesis = block.hash();
        Ok((rules, Executed { block, state, receipts: Vec::new(), changes }))
    }
}
