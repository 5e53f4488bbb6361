//! Ethereum's JSON: quantities and data out, requests in.

use assay_ledger::types::{Address, B256, Bytes, Log, U256};
use assay_ledger::{
    Accesses, Block, BlockOverrides, CallFrame, Failure, Header, Message, Outcome, Overrides, Plan, Receipt,
    Simulated, SimulatedCall, StateOverride, Transaction, TxReceipt,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Fault;
use crate::chain::hexadecimal;
use crate::sync::Offer;

/// The most gas that a call may ask for; what a call may cost a node.
pub(crate) const CALL_GAS: u64 = 50_000_000;

/// Of a simulated call that the machine stopped.
const EXECUTION_FAILED: i32 = -32015;

pub(crate) fn quantity(value: impl std::fmt::LowerHex) -> Value {
    Value::String(format!("{value:#x}"))
}

pub(crate) fn data(bytes: impl AsRef<[u8]>) -> Value {
    Value::String(hexadecimal(bytes.as_ref()))
}

/// What proves a block: headers and a certificate.
pub(crate) fn offer(found: &Offer) -> Value {
    let headers = found.headers.iter().map(|header| data(alloy_rlp::encode(header)));
    json!({"headers": headers.collect::<Vec<_>>(), "finalization": data(&found.finalization)})
}

/// A block without its transactions, as `newHeads` has it.
pub(crate) fn header(header: &Header, hash: &B256) -> Map<String, Value> {
    let optional = |value: Option<u64>| value.map_or(Value::Null, quantity);
    let fields = json!({
        "hash": data(hash),
        "parentHash": data(header.parent_hash),
        "sha3Uncles": data(header.ommers_hash),
        "miner": data(header.beneficiary),
        "stateRoot": data(header.state_root),
        "transactionsRoot": data(header.transactions_root),
        "receiptsRoot": data(header.receipts_root),
        "logsBloom": data(header.logs_bloom),
        "difficulty": quantity(header.difficulty),
        "number": quantity(header.number),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "extraData": data(&header.extra_data),
        "mixHash": data(header.mix_hash),
        "nonce": data(header.nonce),
        "baseFeePerGas": optional(header.base_fee_per_gas),
        "withdrawalsRoot": header.withdrawals_root.map_or(Value::Null, data),
        "blobGasUsed": optional(header.blob_gas_used),
        "excessBlobGas": optional(header.excess_blob_gas),
        "parentBeaconBlockRoot": header.parent_beacon_block_root.map_or(Value::Null, data),
        "requestsHash": header.requests_hash.map_or(Value::Null, data),
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

pub(crate) fn block(block: &Block, full: bool) -> Value {
    let mut fields = header(&block.header, &block.hash());
    let transactions = block.transactions.iter();
    let transactions: Vec<_> = if full {
        transactions.enumerate().map(|(i, t)| transaction(t, Some((block, i)))).collect()
    } else {
        transactions.map(|t| data(t.hash())).collect()
    };
    fields.insert("size".to_owned(), quantity(block.encoded_len() as u64));
    fields.insert("uncles".to_owned(), json!([]));
    fields.insert("withdrawals".to_owned(), json!([]));
    fields.insert("transactions".to_owned(), Value::Array(transactions));
    Value::Object(fields)
}

/// A transaction, in a block or waiting.
pub(crate) fn transaction(t: &Transaction, place: Option<(&Block, usize)>) -> Value {
    let base_fee = place.and_then(|(block, _)| block.header.base_fee_per_gas);
    let signature = t.signature();
    let parity = u64::from(signature.y_parity);
    let v = match (t.kind(), t.chain_id()) {
        (0, Some(id)) => id * 2 + 35 + parity,
        (0, None) => 27 + parity,
        _ => parity,
    };
    let price = base_fee.map_or(t.max_fee(), |base_fee| t.effective_price(base_fee));
    let mut fields = json!({
        "hash": data(t.hash()),
        "type": quantity(t.kind()),
        "nonce": quantity(t.nonce()),
        "from": data(t.sender()),
        "to": t.to().map_or(Value::Null, data),
        "value": quantity(t.value()),
        "gas": quantity(t.gas_limit()),
        "gasPrice": quantity(price),
        "input": data(t.input()),
        "v": quantity(v),
        "r": quantity(signature.r),
        "s": quantity(signature.s),
        "blockHash": place.map_or(Value::Null, |(block, _)| data(block.hash())),
        "blockNumber": place.map_or(Value::Null, |(block, _)| quantity(block.header.number)),
        "blockTimestamp": place.map_or(Value::Null, |(block, _)| quantity(block.header.timestamp)),
        "transactionIndex": place.map_or(Value::Null, |(_, index)| quantity(index as u64)),
    });
    if let Some(id) = t.chain_id() {
        fields["chainId"] = quantity(id);
    }
    if t.kind() > 0 {
        fields["yParity"] = quantity(parity);
    }
    if t.has_tip() {
        fields["maxFeePerGas"] = quantity(t.max_fee());
        fields["maxPriorityFeePerGas"] = quantity(t.max_tip());
    }
    if let Some(list) = t.access_list() {
        fields["accessList"] = accesses(list);
    }
    if let Some(list) = t.authorizations() {
        let item = |(chain, address, nonce, signature): (U256, Address, u64, assay_ledger::Signature)| {
            json!({
                "chainId": quantity(chain), "address": data(address), "nonce": quantity(nonce),
                "yParity": quantity(u64::from(signature.y_parity)), "r": quantity(signature.r), "s": quantity(signature.s),
            })
        };
        fields["authorizationList"] = list.into_iter().map(item).collect();
    }
    fields
}

/// A transaction's receipt; `first_log` is the number of logs before its own in the block.
pub(crate) fn receipt(block: &Block, receipts: &[Receipt], index: usize, first_log: usize) -> Value {
    let (t, r) = (&block.transactions[index], &receipts[index]);
    let before = index.checked_sub(1).map_or(0, |previous| receipts[previous].cumulative_gas_used);
    let logs: Vec<_> =
        r.logs.iter().enumerate().map(|(i, entry)| log(entry, block, index, first_log + i)).collect();
    json!({
        "transactionHash": data(t.hash()),
        "transactionIndex": quantity(index as u64),
        "blockHash": data(block.hash()),
        "blockNumber": quantity(block.header.number),
        "from": data(t.sender()),
        "to": t.to().map_or(Value::Null, data),
        "contractAddress": t.created().map_or(Value::Null, data),
        "cumulativeGasUsed": quantity(r.cumulative_gas_used),
        "gasUsed": quantity(r.cumulative_gas_used - before),
        "effectiveGasPrice": quantity(t.effective_price(block.header.base_fee_per_gas.unwrap_or_default())),
        "logs": logs,
        "logsBloom": data(r.bloom()),
        "status": quantity(u64::from(r.success)),
        "type": quantity(t.kind()),
    })
}

pub(crate) fn receipts(block: &Block, receipts: &[Receipt]) -> Vec<Value> {
    let mut logs = 0;
    let mut out = Vec::with_capacity(receipts.len());
    for (i, one) in receipts.iter().enumerate() {
        out.push(receipt(block, receipts, i, logs));
        logs += one.logs.len();
    }
    out
}

pub(crate) fn log(log: &Log, block: &Block, transaction: usize, index: usize) -> Value {
    json!({
        "address": data(log.address),
        "topics": log.data.topics().iter().map(data).collect::<Vec<_>>(),
        "data": data(&log.data.data),
        "blockHash": data(block.hash()),
        "blockNumber": quantity(block.header.number),
        "blockTimestamp": quantity(block.header.timestamp),
        "transactionHash": data(block.transactions[transaction].hash()),
        "transactionIndex": quantity(transaction as u64),
        "logIndex": quantity(index as u64),
        "removed": false,
    })
}

pub(crate) fn frame(frame: &CallFrame, with_calls: bool) -> Value {
    let mut fields = json!({
        "type": frame.kind,
        "from": data(frame.from),
        "gas": quantity(frame.gas),
        "gasUsed": quantity(frame.gas_used),
        "input": data(&frame.input),
    });
    if let Some(to) = frame.to {
        fields["to"] = data(to);
    }
    if let Some(value) = frame.value {
        fields["value"] = quantity(value);
    }
    if !frame.output.is_empty() {
        fields["output"] = data(&frame.output);
    }
    if let Some(error) = &frame.error {
        fields["error"] = json!(error);
        if let Some(reason) = revert_reason(&frame.output) {
            fields["revertReason"] = json!(reason);
        }
    }
    if with_calls && !frame.calls.is_empty() {
        fields["calls"] = frame.calls.iter().map(|call| self::frame(call, true)).collect();
    }
    fields
}

/// The text of Solidity's `Error(string)`.
pub(crate) fn revert_reason(output: &[u8]) -> Option<String> {
    let rest = output.strip_prefix(&[0x08, 0xc3, 0x79, 0xa0])?;
    let length = usize::try_from(U256::from_be_slice(rest.get(32..64)?)).ok()?;
    let text = rest.get(64..)?.get(..length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Hexadecimal text with its prefix.
fn prefixed(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| text.starts_with("0x"))
}

pub(crate) fn address(value: &Value) -> Result<Address, Fault> {
    prefixed(value)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Fault::params(format!("{value} is no address")))
}

pub(crate) fn hash(value: &Value) -> Result<B256, Fault> {
    prefixed(value)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Fault::params(format!("{value} is no hash of 32 bytes")))
}

pub(crate) fn bytes(value: &Value) -> Result<Bytes, Fault> {
    prefixed(value)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Fault::params("hexadecimal data with 0x is missing"))
}

pub(crate) fn number(value: &Value) -> Result<U256, Fault> {
    let parsed = match value {
        Value::String(text) => {
            text.strip_prefix("0x").filter(|digits| digits.len() <= 64).and_then(|digits| {
                if digits.is_empty() { Some(U256::ZERO) } else { U256::from_str_radix(digits, 16).ok() }
            })
        }
        Value::Number(number) => number.as_u64().map(U256::from),
        _ => None,
    };
    parsed.ok_or_else(|| Fault::params(format!("{value} is no hexadecimal number")))
}

pub(crate) fn small(value: &Value) -> Result<u64, Fault> {
    u64::try_from(number(value)?).map_err(|_| Fault::params(format!("{value} is too large")))
}

fn fee(value: &Value) -> Result<u128, Fault> {
    u128::try_from(number(value)?).map_err(|_| Fault::params(format!("{value} is too large")))
}

/// `eth_call`'s first parameter. Unknown fields are ignored, as geth does.
pub(crate) fn message(value: &Value) -> Result<Message, Fault> {
    let fields = value.as_object().ok_or_else(|| Fault::params("the call is no object"))?;
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let (old, new) = (given("data").map(bytes).transpose()?, given("input").map(bytes).transpose()?);
    if let (Some(old), Some(new)) = (&old, &new)
        && old != new
    {
        return Err(Fault::params("both \"data\" and \"input\" are set and not equal"));
    }
    let (price, cap) = (given("gasPrice").map(fee).transpose()?, given("maxFeePerGas").map(fee).transpose()?);
    if price.is_some() && cap.is_some() {
        return Err(Fault::params("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified"));
    }
    let mut access_list = Vec::new();
    for item in given("accessList").and_then(Value::as_array).into_iter().flatten() {
        let keys =
            item["storageKeys"].as_array().into_iter().flatten().map(hash).collect::<Result<_, _>>()?;
        access_list.push((address(&item["address"])?, keys));
    }
    Ok(Message {
        from: given("from").map(address).transpose()?.unwrap_or_default(),
        to: given("to").map(address).transpose()?,
        gas: given("gas").map(small).transpose()?.unwrap_or(CALL_GAS).min(CALL_GAS),
        max_fee: price.or(cap).unwrap_or(0),
        tip: if cap.is_some() {
            Some(given("maxPriorityFeePerGas").map(fee).transpose()?.unwrap_or(0))
        } else {
            None
        },
        value: given("value").map(number).transpose()?.unwrap_or_default(),
        data: new.or(old).unwrap_or_default(),
        access_list,
    })
}

fn slots(value: &Value) -> Result<Vec<(U256, U256)>, Fault> {
    let map = value.as_object().ok_or_else(|| Fault::params("storage overrides are no object"))?;
    map.iter().map(|(slot, value)| Ok((number(&json!(slot))?, number(value)?))).collect()
}

/// `eth_call`'s third parameter.
pub(crate) fn overrides(value: &Value) -> Result<Overrides, Fault> {
    let Some(map) = value.as_object() else { return Ok(Overrides::new()) };
    let mut overrides = Overrides::new();
    for (who, fields) in map {
        let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
        if given("movePrecompileToAddress").is_some() {
            return Err(Fault::params("movePrecompileToAddress is not supported"));
        }
        if given("state").is_some() && given("stateDiff").is_some() {
            return Err(Fault::params("an account has both 'state' and 'stateDiff'"));
        }
        let over = StateOverride {
            nonce: given("nonce").map(small).transpose()?,
            balance: given("balance").map(number).transpose()?,
            code: given("code").map(bytes).transpose()?,
            state: given("state").map(slots).transpose()?,
            state_diff: given("stateDiff").map(slots).transpose()?.unwrap_or_default(),
        };
        overrides.insert(address(&json!(who))?, over);
    }
    Ok(overrides)
}

/// What is assumed of a block (`eth_call`'s fourth parameter). There are no blobs, so nothing depends on what they cost.
pub(crate) fn block_overrides(value: &Value) -> Result<BlockOverrides, Fault> {
    let mut over = BlockOverrides::default();
    let Some(fields) = value.as_object() else { return Ok(over) };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "number" => over.number = Some(small(value)?),
            "time" => over.timestamp = Some(small(value)?),
            "gasLimit" => over.gas_limit = Some(small(value)?),
            "feeRecipient" => over.beneficiary = Some(address(value)?),
            "prevRandao" => over.random = Some(number(value)?.to_be_bytes::<32>().into()),
            "baseFeePerGas" => over.base_fee = Some(small(value)?),
            "difficulty" | "blobBaseFee" => drop(number(value)?),
            "withdrawals" if value.as_array().is_some_and(Vec::is_empty) => {}
            other => return Err(Fault::params(format!("the block override {other:?} is not known"))),
        }
    }
    Ok(over)
}

/// A block of `eth_simulateV1`'s first parameter.
pub(crate) fn plan(value: &Value) -> Result<Plan, Fault> {
    let call = |value: &Value| {
        let given = |name: &str| value.get(name).filter(|value| !value.is_null()).map(small).transpose();
        Ok(SimulatedCall { message: message(value)?, gas: given("gas")?, nonce: given("nonce")? })
    };
    Ok(Plan {
        block: block_overrides(&value["blockOverrides"])?,
        accounts: overrides(&value["stateOverrides"])?,
        calls: value["calls"].as_array().into_iter().flatten().map(call).collect::<Result<_, Fault>>()?,
    })
}

/// A block of `eth_simulateV1`'s answer.
pub(crate) fn simulated(found: &Simulated, full: bool) -> Value {
    let mut logs = 0;
    let call = |(index, (outcome, most)): (usize, &(Outcome, u64))| {
        let own = outcome.logs.iter().enumerate().map(|(i, entry)| log(entry, &found.block, index, logs + i));
        let mut fields = json!({
            "returnData": "0x",
            "logs": own.collect::<Vec<_>>(),
            "gasUsed": quantity(outcome.gas_used),
            "maxUsedGas": quantity(*most),
            "status": quantity(u64::from(outcome.failure.is_none())),
        });
        logs += outcome.logs.len();
        match &outcome.failure {
            None => fields["returnData"] = data(&outcome.output),
            Some(Failure::Revert) => {
                let fault = Fault::revert(&outcome.output);
                fields["error"] = json!({"code": fault.code, "message": fault.message, "data": fault.data});
            }
            Some(Failure::Halt(why) | Failure::Invalid(why)) => {
                fields["error"] = json!({"code": EXECUTION_FAILED, "message": why});
            }
        }
        fields
    };
    let calls: Vec<_> = found.calls.iter().enumerate().map(call).collect();
    let mut fields = block(&found.block, full);
    fields["calls"] = Value::Array(calls);
    fields
}

/// An access list.
pub(crate) fn accesses(list: Accesses) -> Value {
    let item = |(address, keys): (Address, Vec<B256>)| json!({"address": data(address), "storageKeys": keys.iter().map(data).collect::<Vec<_>>()});
    list.into_iter().map(item).collect()
}

/// Which logs somebody wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogFilter {
    pub(crate) from: Value,
    pub(crate) to: Value,
    pub(crate) block: Option<B256>,
    addresses: Vec<Address>,
    topics: Vec<Vec<B256>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFilter {
    #[serde(default)]
    from_block: Value,
    #[serde(default)]
    to_block: Value,
    block_hash: Option<Value>,
    #[serde(default)]
    address: Value,
    #[serde(default)]
    topics: Value,
}

/// One value, several, or none.
fn several<T>(value: &Value, parse: impl Fn(&Value) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.len() > 1000 => {
            Err(Fault::params("a list of more than 1000 addresses or topics"))
        }
        Value::Array(list) => list.iter().map(parse).collect(),
        one => Ok(vec![parse(one)?]),
    }
}

impl LogFilter {
    pub(crate) fn parse(value: &Value) -> Result<Self, Fault> {
        if value.is_null() {
            return Ok(Self::default());
        }
        let raw: RawFilter = serde_json::from_value(value.clone())
            .map_err(|error| Fault::params(format!("the filter: {error}")))?;
        if raw.block_hash.is_some() && !(raw.from_block.is_null() && raw.to_block.is_null()) {
            return Err(Fault::params(
                "cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other",
            ));
        }
        let positions = raw.topics.as_array().map(Vec::as_slice).unwrap_or_default();
        if positions.len() > 4 {
            return Err(Fault::params("exceed max topics"));
        }
        Ok(Self {
            from: raw.from_block,
            to: raw.to_block,
            block: raw.block_hash.as_ref().map(hash).transpose()?,
            addresses: several(&raw.address, address)?,
            topics: positions.iter().map(|position| several(position, hash)).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a block with this header can have such logs.
    pub(crate) fn possible(&self, header: &Header) -> bool {
        use assay_ledger::types::BloomInput;
        let contains = |bytes: &[u8]| header.logs_bloom.contains_input(BloomInput::Raw(bytes));
        let any = |list: &[&[u8]]| list.is_empty() || list.iter().any(|bytes| contains(bytes));
        any(&self.addresses.iter().map(|a| a.as_slice()).collect::<Vec<_>>())
            && self
                .topics
                .iter()
                .all(|position| any(&position.iter().map(|t| t.as_slice()).collect::<Vec<_>>()))
    }

    fn matches(&self, log: &Log) -> bool {
        let topics = log.data.topics();
        (self.addresses.is_empty() || self.addresses.contains(&log.address))
            && topics.len() >= self.topics.len()
            && self
                .topics
                .iter()
                .zip(topics)
                .all(|(wanted, topic)| wanted.is_empty() || wanted.contains(topic))
    }

    /// The block's logs that are wanted.
    pub(crate) fn select(&self, block: &Block, receipts: &[Receipt]) -> Vec<Value> {
        let mut index = 0;
        let mut out = Vec::new();
        for (i, receipt) in receipts.iter().enumerate() {
            for entry in &receipt.logs {
                if self.matches(entry) {
                    out.push(log(entry, block, i, index));
                }
                index += 1;
            }
        }
        out
    }
}
