//! The methods, by name.

use std::ops::Range;

use assay_ledger::types::{Address, B256, U256, keccak256};
use assay_ledger::{
    BaseFeeParams, Block, Failure, Header, MAX_BLOCK_BYTES, Outcome, SIMULATED_BLOCKS, Simulation, State,
    Trace, Tracer, Transaction, access_list, estimate_gas, simulate, simulate_blocks, trace_block,
    trace_call,
};
use serde_json::{Map, Value, json};

use super::format::{self, LogFilter, data, quantity, small};
use super::{Answer, Fault, Rpc, Watch};
use crate::chain::Origin;
use crate::follow::MAX_BLOCKS;
use crate::history::{HistoryError, Stored};
use crate::sync;

type Method = fn(&Rpc, &[Value]) -> Answer;

/// Logs are looked for in so many blocks at most, and so many are given.
const LOG_BLOCKS: u64 = 10_000;
const LOGS: usize = 10_000;
/// EIP-7702's `PER_EMPTY_ACCOUNT_COST`.
const DELEGATION_GAS: u64 = 25_000;
/// A trace has so many steps at most.
const STEPS: usize = 200_000;
/// In wei, where no recent block has a transaction.
const LEAST_TIP: u128 = 1_000_000;

/// What takes microseconds.
pub(super) const QUICK: &[(&str, Method)] = &[
    ("eth_chainId", |rpc, _| Ok(quantity(rpc.chain.rules().chain_id))),
    ("eth_blockNumber", |rpc, _| Ok(quantity(rpc.chain.head().block.header.number))),
    ("eth_syncing", |rpc, _| {
        let head = rpc.chain.head().block.header.number;
        Ok((*rpc.chain.progress().borrow()).map_or(json!(false), |progress| {
            json!({
                "startingBlock": quantity(head), "currentBlock": quantity(head), "highestBlock": quantity(progress.block),
                "syncedAccountBytes": quantity(progress.bytes),
            })
        }))
    }),
    ("eth_accounts", |_, _| Ok(json!([]))),
    ("eth_blobBaseFee", |_, _| Ok(json!("0x1"))),
    ("eth_getBalance", |rpc, p| Ok(quantity(rpc.state(p.get(1))?.balance(&format::address(at(p, 0)?)?)))),
    ("eth_getCode", |rpc, p| {
        let state = rpc.state(p.get(1))?;
        Ok(data(
            state.account(&format::address(at(p, 0)?)?).map(|account| account.code()).unwrap_or_default(),
        ))
    }),
    ("eth_getStorageAt", |rpc, p| {
        let (state, slot) = (rpc.state(p.get(2))?, format::number(at(p, 1)?)?);
        let value =
            state.account(&format::address(at(p, 0)?)?).map_or(U256::ZERO, |account| account.slot(&slot));
        Ok(data(value.to_be_bytes::<32>()))
    }),
    ("eth_getTransactionCount", |rpc, p| {
        let who = format::address(at(p, 0)?)?;
        if p.get(1).and_then(Value::as_str) == Some("pending") {
            return Ok(quantity(rpc.chain.pool(|pool| pool.next_nonce(&who))));
        }
        Ok(quantity(rpc.state(p.get(1))?.nonce(&who)))
    }),
    ("eth_newFilter", |rpc, p| {
        let filter = LogFilter::parse(at(p, 0)?)?;
        rpc.install(Watch::Logs(Box::new(filter), rpc.chain.head().block.header.number + 1))
    }),
    ("eth_newBlockFilter", |rpc, _| rpc.install(Watch::Blocks(rpc.chain.head().block.header.number + 1))),
    ("eth_newPendingTransactionFilter", |rpc, _| {
        rpc.install(Watch::Transactions(rpc.chain.subscribe_transactions()))
    }),
    ("eth_uninstallFilter", |rpc, p| Ok(json!(rpc.uninstall(text(p, 0)?)))),
    ("assay_getCommittee", |rpc, p| {
        let committee = match p.first() {
            None | Some(Value::Null) => rpc.chain.committee(),
            Some(epoch) => rpc.chain.history().committee(small(epoch)?)?,
        };
        Ok(committee.map_or(Value::Null, |committee| {
            let members = committee.members.iter().map(
                |member| json!({"key": data(member.key), "seats": member.seats, "endpoint": member.endpoint}),
            );
            json!({
                "epoch": committee.epoch,
                "blocks": committee.blocks,
                "members": members.collect::<Vec<_>>(),
                "encoded": data(committee.encode()),
            })
        }))
    }),
    ("net_version", |rpc, _| Ok(json!(rpc.chain.rules().chain_id.to_string()))),
    ("net_listening", |_, _| Ok(json!(true))),
    ("net_peerCount", |_, _| Ok(json!("0x0"))),
    ("web3_clientVersion", |_, _| Ok(json!(concat!("assay/", env!("CARGO_PKG_VERSION"))))),
    ("web3_sha3", |_, p| Ok(data(keccak256(format::bytes(at(p, 0)?)?)))),
    ("txpool_status", |rpc, _| {
        let (pending, queued) = rpc.chain.pool(|pool| pool.content());
        Ok(json!({"pending": quantity(pending.len() as u64), "queued": quantity(queued.len() as u64)}))
    }),
];

/// What reads the database or runs the machine.
pub(super) const SLOW: &[(&str, Method)] = &[
    ("eth_sendRawTransaction", |rpc, p| {
        let transaction =
            Transaction::decode(&format::bytes(at(p, 0)?)?).map_err(|error| Fault::new(error.to_string()))?;
        let hash = transaction.hash();
        rpc.chain.add(transaction, Origin::Local).map_err(|error| Fault::new(error.to_string()))?;
        Ok(data(hash))
    }),
    ("eth_call", |rpc, p| {
        let (message, (header, state)) = (format::message(at(p, 0)?)?, rpc.place(p.get(1))?);
        let overrides = format::overrides(p.get(2).unwrap_or(&Value::Null))?;
        let header = format::block_overrides(p.get(3).unwrap_or(&Value::Null))?.over(header);
        answer(simulate(rpc.chain.rules(), &header, &state, &overrides, &message))
    }),
    ("eth_estimateGas", |rpc, p| {
        let (mut message, (header, state)) = (format::message(at(p, 0)?)?, rpc.place(p.get(1))?);
        let overrides = format::overrides(p.get(2).unwrap_or(&Value::Null))?;
        let header = format::block_overrides(p.get(3).unwrap_or(&Value::Null))?.over(header);
        // What a transaction may have at most (EIP-7825).
        message.gas = message.gas.min(header.gas_limit).min(1 << 24);
        let most = message.gas;
        match estimate_gas(rpc.chain.rules(), &header, &state, &overrides, &message) {
            // Delegations (EIP-7702) are not simulated, but their own cost is part of what a transaction needs.
            Ok(gas) => {
                let delegations = at(p, 0)?["authorizationList"].as_array().map_or(0, Vec::len) as u64;
                Ok(quantity(gas + DELEGATION_GAS * delegations))
            }
            Err(Outcome { failure: Some(Failure::Halt(_)), .. }) => {
                Err(Fault::new(format!("gas required exceeds allowance ({most})")))
            }
            Err(outcome) => answer(outcome),
        }
    }),
    ("eth_createAccessList", |rpc, p| {
        let (message, (header, state)) = (format::message(at(p, 0)?)?, rpc.place(p.get(1))?);
        let overrides = format::overrides(p.get(2).unwrap_or(&Value::Null))?;
        let (list, outcome) = access_list(rpc.chain.rules(), &header, &state, &overrides, &message);
        let mut found = json!({"accessList": format::accesses(list), "gasUsed": quantity(outcome.gas_used)});
        match outcome.failure {
            None => {}
            // The list of a call that fails is of use as well.
            Some(Failure::Revert) => found["error"] = json!(Fault::revert(&outcome.output).message),
            Some(Failure::Halt(why)) => found["error"] = json!(why),
            Some(Failure::Invalid(why)) => return Err(Fault::new(why)),
        }
        Ok(found)
    }),
    ("eth_simulateV1", |rpc, p| {
        let options = at(p, 0)?;
        let plans = options["blockStateCalls"].as_array().filter(|plans| !plans.is_empty());
        let plans = plans.ok_or_else(|| Fault::params("empty input"))?;
        if plans.len() as u64 > SIMULATED_BLOCKS {
            return Err(Fault { code: -38026, ..Fault::new("too many blocks") });
        }
        let plans = plans.iter().map(format::plan).collect::<Result<Vec<_>, _>>()?;
        let with = Simulation {
            validation: options["validation"] == true,
            transfers: options["traceTransfers"] == true,
            gas: format::CALL_GAS,
        };
        let (header, state) = rpc.place(p.get(1))?;
        let found = simulate_blocks(rpc.chain.rules(), &header, &state, &plans, with)
            .map_err(|error| Fault { code: error.code, ..Fault::new(error.message) })?;
        let full = options["returnFullTransactions"] == true;
        Ok(found.iter().map(|block| format::simulated(block, full)).collect())
    }),
    ("eth_getProof", |rpc, p| {
        let who = format::address(at(p, 0)?)?;
        let keys = at(p, 1)?.as_array().filter(|keys| keys.len() <= 1024);
        let keys = keys.ok_or_else(|| Fault::params("the keys are no list of at most 1024"))?;
        let slots = keys.iter().map(format::number).collect::<Result<Vec<_>, _>>()?;
        let proof = rpc.state(p.get(2))?.prove(&who, &slots);
        let nodes = |nodes: &[Vec<u8>]| nodes.iter().map(data).collect::<Vec<_>>();
        let storage: Vec<_> = keys
            .iter()
            .zip(&proof.slots)
            .map(|(key, (value, path))| json!({"key": key, "value": quantity(*value), "proof": nodes(path)}))
            .collect();
        Ok(json!({
            "address": data(who),
            "balance": quantity(proof.account.balance),
            "nonce": quantity(proof.account.nonce),
            "codeHash": data(proof.account.code_hash()),
            "storageHash": data(proof.account.storage_root()),
            "accountProof": nodes(&proof.account_proof),
            "storageProof": storage,
        }))
    }),
    ("eth_gasPrice", |rpc, _| Ok(quantity(u128::from(rpc.next_base_fee()) + rpc.tip()?))),
    ("eth_maxPriorityFeePerGas", |rpc, _| Ok(quantity(rpc.tip()?))),
    ("eth_feeHistory", |rpc, p| rpc.fee_history(p)),
    ("eth_getBlockByNumber", |rpc, p| rpc.block_json(at(p, 0)?, flag(p, 1))),
    ("eth_getBlockByHash", |rpc, p| rpc.block_json(&json!({"blockHash": at(p, 0)?}), flag(p, 1))),
    ("eth_getBlockReceipts", |rpc, p| {
        Ok(rpc.stored(at(p, 0)?)?.map_or(Value::Null, |s| format::receipts(&s.block, &s.receipts).into()))
    }),
    ("eth_getBlockTransactionCountByNumber", |rpc, p| rpc.count(at(p, 0)?)),
    ("eth_getBlockTransactionCountByHash", |rpc, p| rpc.count(&json!({"blockHash": at(p, 0)?}))),
    ("eth_getUncleCountByBlockNumber", |rpc, p| {
        Ok(rpc.stored(at(p, 0)?)?.map_or(Value::Null, |_| json!("0x0")))
    }),
    ("eth_getUncleCountByBlockHash", |rpc, p| {
        Ok(rpc.stored(&json!({"blockHash": at(p, 0)?}))?.map_or(Value::Null, |_| json!("0x0")))
    }),
    ("eth_getTransactionByBlockNumberAndIndex", |rpc, p| rpc.indexed(at(p, 0)?, at(p, 1)?)),
    ("eth_getTransactionByBlockHashAndIndex", |rpc, p| {
        rpc.indexed(&json!({"blockHash": at(p, 0)?}), at(p, 1)?)
    }),
    ("eth_getTransactionByHash", |rpc, p| {
        let hash = format::hash(at(p, 0)?)?;
        if let Some((stored, index)) = rpc.find(&hash)? {
            return Ok(format::transaction(&stored.block.transactions[index], Some((&stored.block, index))));
        }
        let waiting = rpc.chain.pool(|pool| pool.get(&hash).cloned());
        Ok(waiting.map_or(Value::Null, |transaction| format::transaction(&transaction, None)))
    }),
    ("eth_getTransactionReceipt", |rpc, p| {
        let Some((stored, index)) = rpc.find(&format::hash(at(p, 0)?)?)? else { return Ok(Value::Null) };
        let logs = stored.receipts[..index].iter().map(|receipt| receipt.logs.len()).sum();
        Ok(format::receipt(&stored.block, &stored.receipts, index, logs))
    }),
    ("eth_getRawTransactionByHash", |rpc, p| rpc.raw_transaction(at(p, 0)?)),
    ("debug_getRawTransaction", |rpc, p| rpc.raw_transaction(at(p, 0)?)),
    ("debug_getRawHeader", |rpc, p| Ok(data(alloy_rlp::encode(rpc.header(Some(at(p, 0)?))?)))),
    ("debug_getRawBlock", |rpc, p| {
        let stored = rpc.stored(at(p, 0)?)?.ok_or_else(|| Fault::new("block not found"))?;
        Ok(data(stored.block.encode()))
    }),
    ("eth_getLogs", |rpc, p| rpc.get_logs(&LogFilter::parse(at(p, 0)?)?)),
    ("eth_getFilterChanges", |rpc, p| rpc.changes(text(p, 0)?)),
    ("eth_getFilterLogs", |rpc, p| rpc.filtered(text(p, 0)?)),
    ("txpool_content", |rpc, _| Ok(rpc.pool_json(|transaction| format::transaction(transaction, None)))),
    ("txpool_inspect", |rpc, _| {
        Ok(rpc.pool_json(|t| {
            let to = t.to().map_or("contract creation".to_owned(), |to| to.to_string());
            json!(format!("{to}: {} wei + {} gas × {} wei", t.value(), t.gas_limit(), t.max_fee()))
        }))
    }),
    ("debug_traceTransaction", |rpc, p| {
        let (stored, index) =
            rpc.find(&format::hash(at(p, 0)?)?)?.ok_or_else(|| Fault::new("transaction not found"))?;
        let mut found = rpc.trace(&stored.block, index..index + 1, p.get(1).unwrap_or(&Value::Null))?;
        Ok(found.pop().unwrap_or(Value::Null))
    }),
    ("debug_traceBlockByNumber", |rpc, p| rpc.trace_all(at(p, 0)?, p.get(1))),
    ("debug_traceBlockByHash", |rpc, p| rpc.trace_all(&json!({"blockHash": at(p, 0)?}), p.get(1))),
    ("debug_traceCall", |rpc, p| {
        let (message, (header, state)) = (format::message(at(p, 0)?)?, rpc.place(p.get(1))?);
        let options = p.get(2).unwrap_or(&Value::Null);
        let overrides = format::overrides(&options["stateOverrides"])?;
        let header = format::block_overrides(&options["blockOverrides"])?.over(header);
        let found = trace_call(rpc.chain.rules(), &header, &state, &overrides, &message, tracer(options)?);
        Ok(traced(&found.map_err(Fault::new)?, options))
    }),
    // What proves that a block is final: the headers from it to the next block that has a certificate, and that.
    ("assay_getFinalization", |rpc, p| {
        let found = sync::proof(rpc.chain.history(), small(at(p, 0)?)?)?;
        Ok(found.map_or(Value::Null, |found| format::offer(&found)))
    }),
    // For nodes that are far behind: the newest state that is offered, proved as above; ends of epochs; and the state, piece by piece.
    ("assay_getOffer", |rpc, _| {
        Ok(sync::offer(&rpc.chain)?.map_or(Value::Null, |found| format::offer(&found)))
    }),
    ("assay_getEpochs", |rpc, p| {
        let found = sync::epochs(&rpc.chain, small(at(p, 0)?)?)?;
        let end = |end: &sync::EpochEnd| {
            json!({
                "header": data(alloy_rlp::encode(&end.header)),
                "finalization": data(&end.finalization),
                "committee": data(end.next.encode()),
            })
        };
        Ok(found.iter().map(end).collect())
    }),
    ("assay_getState", |rpc, p| {
        let (number, path) = (small(at(p, 0)?)?, format::bytes(at(p, 1)?)?);
        let account = p.get(2).filter(|account| !account.is_null()).map(format::hash).transpose()?;
        let piece = sync::piece(&rpc.chain, number, account.as_ref(), &path);
        let piece = piece.ok_or_else(|| {
            Fault::new(format!(
                "the state after block {number} is not offered any more, or has nothing there"
            ))
        })?;
        Ok(data(alloy_rlp::encode(&piece)))
    }),
    // Against validators that contradicted themselves: what a transaction to the ledger's address for evidence carries.
    ("assay_getEvidence", |rpc, _| {
        let found = rpc.chain.history().evidence()?;
        Ok(found.iter().map(|(key, votes)| json!({"key": data(key), "votes": data(votes)})).collect())
    }),
    // For nodes that follow: blocks after a number, as many as one certificate covers and an answer may hold.
    ("assay_getBlocks", |rpc, p| {
        let after = small(at(p, 0)?)?;
        let history = rpc.chain.history();
        let (mut blocks, mut bytes, mut last) = (Vec::new(), 0, None);
        for number in after.saturating_add(1)..=after.saturating_add(MAX_BLOCKS) {
            let Some(stored) = history.block(number)? else { break };
            let encoded = stored.block.encode();
            bytes += encoded.len();
            if bytes > MAX_BLOCK_BYTES && last.is_some() {
                break;
            }
            blocks.push(data(encoded));
            if let Some(finalization) = history.finalization(number)? {
                last = Some((blocks.len(), finalization));
            }
            if !stored.block.header.extra_data.is_empty() {
                // The next one is of another committee.
                break;
            }
        }
        let Some((count, finalization)) = last else { return Ok(Value::Null) };
        blocks.truncate(count);
        Ok(json!({"blocks": blocks, "finalization": data(finalization)}))
    }),
];

fn at(params: &[Value], index: usize) -> Result<&Value, Fault> {
    params.get(index).ok_or_else(|| Fault::params(format!("missing value for required argument {index}")))
}

fn text(params: &[Value], index: usize) -> Result<&str, Fault> {
    at(params, index)?.as_str().ok_or_else(|| Fault::params(format!("argument {index} is no string")))
}

fn flag(params: &[Value], index: usize) -> bool {
    params.get(index).and_then(Value::as_bool).unwrap_or(false)
}

fn tracer(options: &Value) -> Result<Tracer, Fault> {
    match options["tracer"].as_str() {
        Some("callTracer") => Ok(Tracer::Calls),
        Some(other) => Err(Fault::params(format!(
            "the tracer {other:?} is not known; there are callTracer and struct logs"
        ))),
        None => Ok(Tracer::Steps { memory: options["enableMemory"] == true, limit: STEPS }),
    }
}

fn traced(trace: &Trace, options: &Value) -> Value {
    let (steps, outcome) = match trace {
        Trace::Calls(top) => return format::frame(top, options["tracerConfig"]["onlyTopCall"] != true),
        Trace::Steps(steps, outcome) => (steps, outcome),
    };
    let with_stack = options["disableStack"] != true;
    let step = |step: &assay_ledger::StructLog| {
        let mut fields = json!({
            "pc": step.pc, "op": step.op, "gas": step.gas, "gasCost": step.gas_cost, "depth": step.depth,
        });
        if with_stack {
            fields["stack"] = step.stack.iter().map(|word| quantity(*word)).collect();
        }
        if let Some(memory) = &step.memory {
            fields["memory"] = memory.chunks(32).map(data).collect();
        }
        fields
    };
    json!({
        "gas": outcome.gas_used,
        "failed": outcome.failure.is_some(),
        "returnValue": data(&outcome.output),
        "structLogs": steps.iter().map(step).collect::<Vec<_>>(),
    })
}

fn answer(outcome: Outcome) -> Answer {
    match outcome.failure {
        None => Ok(data(outcome.output)),
        Some(Failure::Revert) => Err(Fault::revert(&outcome.output)),
        Some(Failure::Halt(reason) | Failure::Invalid(reason)) => Err(Fault::new(reason)),
    }
}

impl Rpc {
    /// The number of the block that a tag, a number, a hash or an object of EIP-1898 means; `None` where there is none.
    fn number(&self, tag: &Value) -> Result<Option<u64>, Fault> {
        let head = self.chain.head().block.header.number;
        let number = match tag {
            Value::Null => head,
            Value::String(text) => match text.as_str() {
                "latest" | "safe" | "finalized" | "pending" => head,
                // As geth has it: the first one that is not pruned.
                "earliest" => match self.chain.history().first()? {
                    1 => 0,
                    first => first.min(head),
                },
                hash if hash.len() == 66 => return self.number(&json!({ "blockHash": hash })),
                _ => small(tag)?,
            },
            Value::Object(fields) => match (fields.get("blockHash"), fields.get("blockNumber")) {
                (Some(hash), None) => match self.chain.history().number(&format::hash(hash)?)? {
                    Some(number) => number,
                    None => return Ok(None),
                },
                (None, Some(number)) => return self.number(number),
                _ => return Err(Fault::params("a block object has either blockHash or blockNumber")),
            },
            _ => small(tag)?,
        };
        Ok((number <= head).then_some(number))
    }

    fn stored(&self, tag: &Value) -> Result<Option<Stored>, Fault> {
        match self.number(tag)? {
            Some(number) => Ok(self.chain.history().block(number)?),
            None => Ok(None),
        }
    }

    fn header(&self, tag: Option<&Value>) -> Result<Header, Fault> {
        let missing = || Fault::new("header not found");
        let number = self.number(tag.unwrap_or(&Value::Null))?.ok_or_else(missing)?;
        match self.chain.history().header(number)? {
            Some(header) => Ok(header),
            None if number < self.chain.history().first()? => Err(HistoryError::Pruned.into()),
            None => Err(missing()),
        }
    }

    fn state(&self, tag: Option<&Value>) -> Result<State, Fault> {
        let number =
            self.number(tag.unwrap_or(&Value::Null))?.ok_or_else(|| Fault::new("header not found"))?;
        self.chain.state_at(number).ok_or_else(|| {
            Fault::new(format!("missing trie node: the state after block {number} is too old, and not kept"))
        })
    }

    /// Header and state of one block, whatever becomes the head in the meantime.
    fn place(&self, tag: Option<&Value>) -> Result<(Header, State), Fault> {
        let number =
            self.number(tag.unwrap_or(&Value::Null))?.ok_or_else(|| Fault::new("header not found"))?;
        let tag = quantity(number);
        Ok((self.header(Some(&tag))?, self.state(Some(&tag))?))
    }

    fn block_json(&self, tag: &Value, full: bool) -> Answer {
        Ok(self.stored(tag)?.map_or(Value::Null, |stored| format::block(&stored.block, full)))
    }

    fn count(&self, tag: &Value) -> Answer {
        Ok(self.stored(tag)?.map_or(Value::Null, |stored| quantity(stored.block.transactions.len() as u64)))
    }

    fn indexed(&self, tag: &Value, index: &Value) -> Answer {
        let (stored, index) = (self.stored(tag)?, small(index)?);
        let found = stored.and_then(|stored| {
            let index = usize::try_from(index).ok()?;
            let transaction = stored.block.transactions.get(index)?;
            Some(format::transaction(transaction, Some((&stored.block, index))))
        });
        Ok(found.unwrap_or(Value::Null))
    }

    fn find(&self, hash: &B256) -> Result<Option<(Stored, usize)>, Fault> {
        let Some((number, index)) = self.chain.history().place(hash)? else { return Ok(None) };
        Ok(self.chain.history().block(number)?.map(|stored| (stored, index)))
    }

    fn raw_transaction(&self, hash: &Value) -> Answer {
        let hash = format::hash(hash)?;
        if let Some((stored, index)) = self.find(&hash)? {
            return Ok(data(stored.block.transactions[index].bytes()));
        }
        Ok(self.chain.pool(|pool| pool.get(&hash).map(|t| data(t.bytes()))).unwrap_or(Value::Null))
    }

    fn next_base_fee(&self) -> u64 {
        self.chain.head().block.header.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or_default()
    }

    /// The median of the tips in the last blocks.
    fn tip(&self) -> Result<u128, Fault> {
        let head = self.chain.head().block.header.number;
        let mut tips = Vec::new();
        for number in (head.saturating_sub(9)..=head).rev() {
            match self.chain.history().block(number) {
                Ok(Some(Stored { block, .. })) => {
                    tips.extend(block.transactions.iter().filter_map(|t| tip(t, &block)));
                }
                Ok(None) | Err(HistoryError::Pruned) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tips.sort_unstable();
        Ok(tips.get(tips.len() / 2).copied().unwrap_or(LEAST_TIP).max(LEAST_TIP))
    }

    fn fee_history(&self, p: &[Value]) -> Answer {
        let count = small(at(p, 0)?)?.min(1024);
        let newest = self.number(at(p, 1)?)?.ok_or_else(|| Fault::new("request beyond head block"))?;
        let wanted: Vec<f64> =
            p.get(2).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).collect();
        if wanted.len() > 100
            || wanted.windows(2).any(|w| w[0] > w[1])
            || wanted.iter().any(|w| !(0.0..=100.0).contains(w))
        {
            return Err(Fault::params("invalid reward percentile"));
        }
        let count = count.min(newest + 1);
        let oldest = newest + 1 - count;
        let (mut fees, mut ratios, mut rewards) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = Value::Null;
        for number in oldest..=newest {
            if count == 0 {
                break;
            }
            let Some(Stored { block, receipts }) = self.chain.history().block(number)? else {
                return Err(Fault::new("header not found"));
            };
            let header = &block.header;
            fees.push(quantity(header.base_fee_per_gas.unwrap_or_default()));
            ratios.push(json!(header.gas_used as f64 / header.gas_limit as f64));
            next = quantity(header.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or_default());
            let mut before = 0;
            let mut tips = Vec::new();
            for (transaction, receipt) in block.transactions.iter().zip(&receipts) {
                tips.push((tip(transaction, &block).unwrap_or(0), receipt.cumulative_gas_used - before));
                before = receipt.cumulative_gas_used;
            }
            tips.sort_unstable();
            let mut row = Vec::new();
            for percentile in &wanted {
                let threshold = (header.gas_used as f64 * percentile / 100.0) as u64;
                let mut sum = 0;
                let at = tips.iter().find(|(_, gas)| {
                    sum += gas;
                    sum >= threshold
                });
                row.push(quantity(at.or(tips.last()).map_or(0, |(tip, _)| *tip)));
            }
            rewards.push(Value::Array(row));
        }
        fees.push(next);
        let zeros = vec![json!(0.0); ratios.len()];
        let blob_fees = vec![json!("0x1"); fees.len()];
        let mut out = json!({
            "oldestBlock": quantity(oldest), "baseFeePerGas": fees, "gasUsedRatio": ratios,
            "baseFeePerBlobGas": blob_fees, "blobGasUsedRatio": zeros,
        });
        if !wanted.is_empty() {
            out["reward"] = Value::Array(rewards);
        }
        Ok(out)
    }

    pub(super) fn get_logs(&self, filter: &LogFilter) -> Answer {
        if let Some(hash) = &filter.block {
            let number = self.chain.history().number(hash)?.ok_or_else(|| Fault::new("unknown block"))?;
            return Ok(Value::Array(self.logs(filter, number, number)?));
        }
        let end = |tag: &Value| {
            let beyond = || Fault::params("block range extends beyond current head block");
            self.number(tag)?.ok_or_else(beyond)
        };
        let (from, to) = (end(&filter.from)?, end(&filter.to)?);
        if from > to {
            return Err(Fault::params("invalid block range params"));
        }
        Ok(Value::Array(self.logs(filter, from, to)?))
    }

    pub(super) fn logs(&self, filter: &LogFilter, from: u64, to: u64) -> Result<Vec<Value>, Fault> {
        if to.saturating_sub(from) >= LOG_BLOCKS {
            return Err(Fault::params(format!(
                "a range of at most {LOG_BLOCKS} blocks can be searched at once"
            )));
        }
        // Block 0 has no logs, and is there in any case.
        if to > 0 && from.max(1) < self.chain.history().first()? {
            return Err(HistoryError::Pruned.into());
        }
        let mut found = Vec::new();
        for number in from..=to {
            let Some(header) = self.chain.history().header(number)? else { continue };
            if filter.possible(&header)
                && let Some(stored) = self.chain.history().block(number)?
            {
                found.extend(filter.select(&stored.block, &stored.receipts));
                if found.len() > LOGS {
                    return Err(Fault {
                        code: -32005,
                        ..Fault::new(format!("query returned more than {LOGS} results"))
                    });
                }
            }
        }
        Ok(found)
    }

    fn pool_json(&self, show: impl Fn(&Transaction) -> Value) -> Value {
        let (pending, queued) = self.chain.pool(|pool| pool.content());
        let group = |list: Vec<Transaction>| {
            let mut senders = Map::new();
            for transaction in list {
                let sender: Address = transaction.sender();
                let entry = senders.entry(sender.to_string()).or_insert_with(|| json!({}));
                entry[transaction.nonce().to_string()] = show(&transaction);
            }
            Value::Object(senders)
        };
        json!({"pending": group(pending), "queued": group(queued)})
    }

    /// What a block's transactions did, those of a range.
    fn trace(&self, block: &Block, range: Range<usize>, options: &Value) -> Result<Vec<Value>, Fault> {
        let missing = || Fault::new("required historical state unavailable: the block is too old");
        let before = block.header.number.checked_sub(1).ok_or_else(missing)?;
        let state = self.chain.state_at(before).ok_or_else(missing)?;
        let parent = self.chain.history().header(before)?.ok_or_else(missing)?;
        let found = trace_block(self.chain.rules(), &parent, &state, block, range, tracer(options)?);
        Ok(found.ok_or_else(missing)?.iter().map(|trace| traced(trace, options)).collect())
    }

    fn trace_all(&self, tag: &Value, options: Option<&Value>) -> Answer {
        let Stored { block, .. } = self.stored(tag)?.ok_or_else(|| Fault::new("block not found"))?;
        if block.header.number == 0 {
            return Err(Fault::new("genesis is not traceable"));
        }
        let all = self.trace(&block, 0..block.transactions.len(), options.unwrap_or(&Value::Null))?;
        let named = block.transactions.iter().zip(all);
        Ok(named.map(|(t, result)| json!({"txHash": data(t.hash()), "result": result})).collect())
    }
}

fn tip(transaction: &Transaction, block: &Block) -> Option<u128> {
    transaction.effective_tip(block.header.base_fee_per_gas.unwrap_or_default())
}
