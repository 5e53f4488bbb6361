//! A node's JSON-RPC: reading contracts, and the one way to sign and send a transaction.

use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use assay_ledger::types::{Address, Bytes, Signature, TxKind, U256, hex, keccak256};
use assay_receipt::{Bytes32, Key};
use serde_json::{Value, json};
use thiserror::Error;

use crate::abi::{self, AbiError};
use crate::system;

/// Largest answer of a node that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long a request may take, and a transaction until it is in a block.
const REQUEST: Duration = Duration::from_secs(30);
const INCLUSION: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Why a node did not do what it was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing answers.
    #[error(
        "no node answers at {0}: {1}; start one with `assay up` or `assay node`, or name another with --rpc"
    )]
    Unreachable(String, String),
    /// The node's answer cannot be used.
    #[error("the node's answer cannot be used: {0}")]
    Answer(String),
    /// An error of JSON-RPC, without data of a revert.
    #[error("the node refused: {0}")]
    Refused(String),
    /// The contract refused.
    #[error("the contract refused: {0}")]
    Reverted(String),
    /// Arguments, or the answer of a contract.
    #[error(transparent)]
    Abi(#[from] AbiError),
    /// It was sent, and is in no block yet.
    #[error("transaction {0} was sent and is in no block after {s} s; it may still get into one: ask again with eth_getTransactionReceipt", s = INCLUSION.as_secs())]
    Waiting(String),
}

/// Four new words of storage (EIP-2200, EIP-2929).
const CHECKPOINTS_GAS: u64 = 4 * 22_100;

type Result<T> = std::result::Result<T, ClientError>;

/// What a transaction does.
#[derive(Clone, Debug)]
pub struct Call {
    /// The called address; `None` creates a contract.
    pub to: Option<Address>,
    /// Transferred, in 10^-18 of the native coin.
    pub value: U256,
    /// Call data or init code.
    pub data: Vec<u8>,
}

/// A transaction in a block, which on Assay's chain is final.
#[derive(Clone, Debug)]
pub struct Included {
    /// Its hash, `0x…`.
    pub hash: String,
    /// The block's number.
    pub block: u64,
    /// Gas that it used.
    pub gas: u64,
    /// Its logs, as JSON-RPC has them.
    pub logs: Vec<Value>,
}

/// What a transaction pays, in wei for a unit of gas.
#[derive(Clone, Copy, Debug)]
pub struct Fees {
    /// The most, tip included.
    pub most: u128,
    /// The most for the proposer.
    pub tip: u128,
}

/// The address that goes with a key, in the chain's type.
pub fn address_of(key: &Key) -> Address {
    Address::from(key.address().0)
}

/// A signed EIP-1559 transaction in its EIP-2718 encoding.
pub fn sign(key: &Key, chain_id: u64, nonce: u64, gas: u64, fees: Fees, call: &Call) -> Vec<u8> {
    let transaction = TxEip1559 {
        chain_id,
        nonce,
        gas_limit: gas,
        max_fee_per_gas: fees.most,
        max_priority_fee_per_gas: fees.tip,
        to: call.to.map_or(TxKind::Create, TxKind::Call),
        value: call.value,
        access_list: Default::default(),
        input: Bytes::from(call.data.clone()),
    };
    let signature = key.sign(&Bytes32(transaction.signature_hash().0)).0;
    let (r, s) = (U256::from_be_slice(&signature[..32]), U256::from_be_slice(&signature[32..64]));
    let signature = Signature::new(r, s, signature[64] == 28);
    TxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
}

/// A number as JSON-RPC has it.
fn quantity(value: &Value) -> Result<u64> {
    abi::number(value)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| ClientError::Answer(format!("{value} where a number belongs")))
}

/// `0x` and the digits.
fn hexadecimal(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    http: reqwest::Client,
}

impl Client {
    /// A client of the node at an `http://` URL. Nothing is sent yet.
    pub fn new(url: &str) -> Result<Self> {
        // Only the first in a process counts, and all of ours are the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(REQUEST)
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Unreachable(url.to_owned(), error.to_string()))?;
        Ok(Self { url: url.to_owned(), http })
    }

    async fn post(&self, body: &Value) -> Result<Value> {
        let unreachable =
            |error: reqwest::Error| ClientError::Unreachable(self.url.clone(), error.to_string());
        let mut response = self.http.post(&self.url).json(body).send().await.map_err(unreachable)?;
        let mut bytes = Vec::new();
        while let Some(part) = response.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&part);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(ClientError::Answer(format!("it has more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.to_string()))
    }

    fn result(mut answer: Value) -> Result<Value> {
        let Some(error) = answer.get("error").filter(|error| !error.is_null()) else {
            return Ok(answer.get_mut("result").map(Value::take).unwrap_or_default());
        };
        let message = error.get("message").and_then(Value::as_str).unwrap_or("it did not say why");
        match error.get("data").and_then(Value::as_str) {
            Some(data) => {
                let data = hex::decode(data).unwrap_or_default();
                Err(ClientError::Reverted(system::explain_error(&data).unwrap_or_else(|| message.to_owned())))
            }
            None => Err(ClientError::Refused(message.to_owned())),
        }
    }

    /// One method.
    pub async fn request(&self, method: &str, params: Value) -> Result<Value> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        Self::result(self.post(&body).await?)
    }

    /// Many calls of one method in one request, each with its own result.
    pub async fn batch(&self, method: &str, params: &[Value]) -> Result<Vec<Result<Value>>> {
        let body: Vec<_> = params
            .iter()
            .enumerate()
            .map(|(id, params)| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            .collect();
        let Value::Array(mut answers) = self.post(&Value::Array(body)).await? else {
            return Err(ClientError::Answer("a batch was not answered by a list".to_owned()));
        };
        answers.sort_by_key(|answer| answer.get("id").and_then(Value::as_u64));
        Ok(answers.into_iter().map(Self::result).collect())
    }

    /// EIP-155's chain id.
    pub async fn chain_id(&self) -> Result<u64> {
        quantity(&self.request("eth_chainId", json!([])).await?)
    }

    /// The native coins of an account, in 10^-18.
    pub async fn balance(&self, who: Address) -> Result<U256> {
        let balance = self.request("eth_getBalance", json!([who.to_string(), "latest"])).await?;
        abi::number(&balance).ok_or_else(|| ClientError::Answer(balance.to_string()))
    }

    /// An account's next nonce, what waits in the pool counted.
    pub async fn nonce(&self, who: Address) -> Result<u64> {
        quantity(&self.request("eth_getTransactionCount", json!([who.to_string(), "pending"])).await?)
    }

    /// What a transaction should pay now: it stays good while the base fee doubles.
    pub async fn fees(&self) -> Result<Fees> {
        let head = self.request("eth_getBlockByNumber", json!(["latest", false])).await?;
        let base = quantity(&head["baseFeePerGas"])?;
        let tip = quantity(&self.request("eth_maxPriorityFeePerGas", json!([])).await?)?;
        Ok(Fees { most: u128::from(base) * 2 + u128::from(tip), tip: tip.into() })
    }

    /// Calls without a transaction, on the latest state; `from` matters where the contract looks at its caller.
    pub async fn call(&self, from: Option<Address>, to: Address, data: &[u8]) -> Result<Vec<u8>> {
        let call = json!({"from": from.unwrap_or_default().to_string(), "to": to.to_string(), "data": hexadecimal(data)});
        let answer = self.request("eth_call", json!([call, "latest"])).await?;
        let text = answer.as_str().ok_or_else(|| ClientError::Answer(answer.to_string()))?;
        hex::decode(text).map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// Signs a transaction, sends it and waits until it is in a block. One that would fail is not sent.
    pub async fn transact(&self, key: &Key, call: &Call) -> Result<Included> {
        let from = address_of(key);
        let mut request = json!({"from": from.to_string(), "value": format!("{:#x}", call.value), "data": hexadecimal(&call.data)});
        if let Some(to) = call.to {
            request["to"] = abi::text(to);
        }
        let gas = quantity(&self.request("eth_estimateGas", json!([request.clone(), "latest"])).await?)?;
        let (chain_id, nonce, fees) = (self.chain_id().await?, self.nonce(from).await?, self.fees().await?);
        // The state may be another by then, and in another second votes and stake get new checkpoints, each in new storage. What
        // is not used costs nothing.
        let room = if call.data.is_empty() { 0 } else { gas / 4 + CHECKPOINTS_GAS };
        let signed = sign(key, chain_id, nonce, gas + room, fees, call);
        let hash = hexadecimal(keccak256(&signed).as_slice());
        self.request("eth_sendRawTransaction", json!([hexadecimal(&signed)])).await?;
        let receipt = self.receipt(&hash).await?;
        if receipt["status"] != "0x1" {
            // Once more without a transaction, for the reason.
            let why = self.request("eth_call", json!([request, "latest"])).await.err();
            return Err(ClientError::Reverted(match why {
                Some(ClientError::Reverted(why)) => why,
                _ => format!("transaction {hash} failed"),
            }));
        }
        Ok(Included {
            hash,
            block: quantity(&receipt["blockNumber"])?,
            gas: quantity(&receipt["gasUsed"])?,
            logs: receipt["logs"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// Waits for a transaction's receipt.
    pub async fn receipt(&self, hash: &str) -> Result<Value> {
        let deadline = Instant::now() + INCLUSION;
        loop {
            let receipt = self.request("eth_getTransactionReceipt", json!([hash])).await?;
            if !receipt.is_null() {
                return Ok(receipt);
            }
            if Instant::now() > deadline {
                return Err(ClientError::Waiting(hash.to_owned()));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
