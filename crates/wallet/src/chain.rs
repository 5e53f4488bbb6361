//! A deployment as one node shows it: reading contracts and their events, and calling them.

use std::ops::RangeInclusive;

use assay_ledger::types::{Address, B256, U256, hex};
use assay_receipt::Key;
use serde_json::{Value, json};

use crate::abi::{self, AbiError};
use crate::client::{Client, ClientError, Included};
use crate::system::{System, contract};

/// Calls in one request.
const CALLS: usize = 50;
/// A node looks for logs in so many blocks at once.
const LOG_BLOCKS: u64 = 10_000;

/// An address as a topic.
pub fn topic(address: assay_receipt::Address) -> Value {
    abi::text(Address::from(address.0).into_word())
}

type Result<T> = std::result::Result<T, ClientError>;

/// A node, and where the contracts are on its chain.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The node.
    pub client: Client,
    /// The contracts.
    pub system: System,
}

/// A log of a contract, and the fields of its event that are not topics, by name.
#[derive(Clone, Debug)]
pub struct Event {
    /// The log as JSON-RPC has it.
    pub log: Value,
    /// The fields.
    pub fields: Value,
}

impl Event {
    /// A topic that is a number; the first indexed field is topic 1.
    pub fn number(&self, topic: usize) -> Option<U256> {
        abi::number(&self.log["topics"][topic])
    }

    /// A topic that is an address.
    pub fn address(&self, topic: usize) -> Address {
        let word = self.log["topics"][topic].as_str().and_then(|topic| topic.parse::<B256>().ok());
        Address::from_word(word.unwrap_or_default())
    }
}

impl Chain {
    /// The contracts of the genesis, on the node at an `http://` URL. Nothing is sent yet.
    pub fn at(rpc: &str) -> Result<Self> {
        Ok(Self { client: Client::new(rpc)?, system: System::of_genesis() })
    }

    /// Reads a contract.
    ///
    /// # Errors
    /// Every [`ClientError`] but [`ClientError::Waiting`].
    pub async fn view(&self, name: &str, function: &str, arguments: &[Value]) -> Result<Value> {
        let call = self.system.prepare(name, function, arguments)?;
        let address = self.system.address(name)?;
        let output = self.client.call(None, address, &call.data).await?;
        if output.is_empty() {
            return Err(ClientError::Answer(format!(
                "there is no contract at {address}: the chain was made without the system contracts, or by another account"
            )));
        }
        let contract = contract(name).ok_or_else(|| AbiError::NoFunction(name.to_owned(), 0))?;
        Ok(contract.function(function, arguments.len())?.output(&output)?)
    }

    /// Reads a contract many times in one state: that after the block with this number.
    ///
    /// # Errors
    /// As [`Chain::view`]; none is returned when one fails.
    pub async fn views_at(
        &self,
        block: u64,
        name: &str,
        function: &str,
        arguments: &[Vec<Value>],
    ) -> Result<Vec<Value>> {
        let contract = contract(name).ok_or_else(|| AbiError::NoFunction(name.to_owned(), 0))?;
        let mut found = Vec::with_capacity(arguments.len());
        for part in arguments.chunks(CALLS) {
            let mut calls = Vec::with_capacity(part.len());
            for arguments in part {
                let data = self.system.prepare(name, function, arguments)?.data;
                let call =
                    json!({"to": self.system.address(name)?.to_string(), "data": hex::encode_prefixed(data)});
                calls.push(json!([call, format!("{block:#x}")]));
            }
            for (output, arguments) in self.client.batch("eth_call", &calls).await?.into_iter().zip(part) {
                let output = output?;
                let bytes = output.as_str().and_then(|text| hex::decode(text).ok());
                let bytes = bytes.ok_or_else(|| ClientError::Answer(output.to_string()))?;
                found.push(contract.function(function, arguments.len())?.output(&bytes)?);
            }
        }
        Ok(found)
    }

    /// Reads a number of a contract.
    ///
    /// # Errors
    /// As [`Chain::view`].
    pub async fn number(&self, name: &str, function: &str, arguments: &[Value]) -> Result<U256> {
        let value = self.view(name, function, arguments).await?;
        abi::number(&value).ok_or_else(|| {
            ClientError::Answer(format!("{name}.{function} gave {value} where a number belongs"))
        })
    }

    /// The number of the latest block.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn head(&self) -> Result<u64> {
        let head = self.client.request("eth_blockNumber", json!([])).await?;
        let number = abi::number(&head).and_then(|head| u64::try_from(head).ok());
        number.ok_or_else(|| ClientError::Answer(format!("{head} is no block's number")))
    }

    /// A contract's events of one kind in some blocks, the oldest first. `topics` is what the indexed fields have to be, in
    /// order; null stands for anything.
    ///
    /// # Errors
    /// [`ClientError`], also for an event that the contract does not have.
    pub async fn events(
        &self,
        name: &str,
        event: &str,
        topics: &[Value],
        blocks: RangeInclusive<u64>,
    ) -> Result<Vec<Event>> {
        let kind = contract(name).and_then(|contract| contract.event(event));
        let kind = kind.ok_or_else(|| AbiError::NoFunction(format!("{name}.{event}"), 0))?;
        let wanted = [&[abi::text(B256::from(kind.hash()))], topics].concat();
        let address = self.system.address(name)?.to_string();
        let (first, last) = blocks.into_inner();
        let mut found = Vec::new();
        let mut from = first;
        while from <= last {
            let to = last.min(from.saturating_add(LOG_BLOCKS - 1));
            let filter = json!({
                "fromBlock": format!("{from:#x}"), "toBlock": format!("{to:#x}"), "address": address, "topics": wanted,
            });
            let Value::Array(logs) = self.client.request("eth_getLogs", json!([filter])).await? else {
                return Err(ClientError::Answer("eth_getLogs was not answered by a list".to_owned()));
            };
            for log in logs {
                let data = hex::decode(log["data"].as_str().unwrap_or_default()).unwrap_or_default();
                found.push(Event { fields: kind.output(&data)?, log });
            }
            from = to + 1;
        }
        Ok(found)
    }

    /// Calls a contract by a transaction, and waits until it is in a block.
    ///
    /// # Errors
    /// [`ClientError`]; a transaction that would fail is not sent.
    pub async fn transact(
        &self,
        key: &Key,
        name: &str,
        function: &str,
        arguments: &[Value],
    ) -> Result<Included> {
        self.client.transact(key, &self.system.prepare(name, function, arguments)?).await
    }
}
