//! Blocks: what they do, that everyone gets the same, and what is refused.
#![allow(clippy::unwrap_used)]

mod common;

use assay_ledger::types::{Address, B256, Bytes, TxKind, U256, hex, keccak256};
use assay_ledger::{
    Attributes, Block, BlockError, CallFrame, Executed, Failure, Genesis, GenesisError, Message, Overrides,
    Rules, State, StateOverride, StructLog, Trace, Tracer, Transaction, TransactionError, access_list, build,
    estimate_gas, simulate, trace_block, trace_call, verify,
};
use common::{CHAIN, GWEI, Wallet, genesis};
use proptest::prelude::*;

fn next(rules: &Rules, parent: &Executed, transactions: Vec<Transaction>) -> Executed {
    let timestamp = parent.block.header.timestamp + 1;
    let attributes = Attributes { timestamp, beneficiary: Address::repeat_byte(0xfe), view: 0 };
    build(rules, &parent.block.header, &parent.state, &attributes, transactions)
}

fn decode(bytes: &[u8]) -> Transaction {
    Transaction::decode(bytes).unwrap()
}

/// Stores the caller's first word at slot 0, emits it as an event, and returns it; reverts with it where it is zero.
const STORE: &str = "600035806000526000556000546015576020\
6000fd5b60206000a060206000f3";

fn message(to: Option<Address>, data: impl Into<Bytes>) -> Message {
    Message {
        from: Wallet::new(0).address(),
        to,
        gas: 1_000_000,
        max_fee: 0,
        tip: None,
        value: U256::ZERO,
        data: data.into(),
        access_list: Vec::new(),
    }
}

/// Init code that deploys `code`.
fn deployment(code: &str) -> Vec<u8> {
    let code = hex::decode(code).unwrap();
    // PUSH1 len, PUSH1 offset, PUSH0, CODECOPY, PUSH1 len, PUSH0, RETURN
    let mut init = vec![0x60, code.len() as u8, 0x60, 0x0a, 0x5f, 0x39, 0x60, code.len() as u8, 0x5f, 0xf3];
    assert_eq!(init.len(), 10);
    init.extend(code);
    init
}

fn deployed(rules: &Rules, first: &Executed) -> (Executed, Address) {
    let create = decode(&Wallet::new(0).dynamic(|t| {
        t.to = TxKind::Create;
        t.value = U256::ZERO;
        t.input = deployment(STORE).into();
        t.gas_limit = 200_000;
    }));
    let address = create.created().unwrap();
    let block = next(rules, first, vec![create]);
    assert!(block.receipts[0].success);
    (block, address)
}

#[test]
fn transfers_fees_and_base_fee_follow_eip_1559() {
    let (rules, first) = genesis();
    let wallet = Wallet::new(0);
    let second = next(&rules, &first, vec![wallet.transfer(0), decode(&wallet.legacy(1, Some(CHAIN)))]);
    assert_eq!(second.block.transactions.len(), 2);
    assert_eq!(second.block.header.gas_used, 42_000);
    let base = u128::from(second.block.header.base_fee_per_gas.unwrap());
    assert_eq!(base, 875_000_000, "an empty block lowers 1 gwei by an eighth");
    let paid = 21_000 * (base + GWEI) + 21_000 * 10 * GWEI + 6;
    let ten = U256::from(10).pow(U256::from(19));
    assert_eq!(second.state.balance(&wallet.address()), ten - U256::from(paid));
    let tips = 21_000 * GWEI + 21_000 * (10 * GWEI - base);
    assert_eq!(second.state.balance(&Address::repeat_byte(0xfe)), U256::from(tips), "the base fee is burnt");
    assert_eq!(second.state.nonce(&wallet.address()), 2);
    // Block hashes are in the history contract, where the opcode finds them too: PUSH0 BLOCKHASH of block 0.
    let over = StateOverride { code: Some(hex!("5f405f5260205ff3").into()), ..StateOverride::default() };
    let at = Address::repeat_byte(1);
    let third = next(&rules, &second, vec![]);
    let asked = simulate(
        &rules,
        &third.block.header,
        &third.state,
        &Overrides::from([(at, over)]),
        &message(Some(at), []),
    );
    assert_eq!(B256::from_slice(&asked.output), first.block.hash());
}

#[test]
fn a_contract_is_deployed_called_reverted_and_proved() {
    let (rules, first) = genesis();
    let (second, contract) = deployed(&rules, &first);
    let call = |nonce: u64, word: u64| {
        decode(&Wallet::new(0).dynamic(|t| {
            t.nonce = nonce;
            t.to = TxKind::Call(contract);
            t.value = U256::ZERO;
            t.input = U256::from(word).to_be_bytes::<32>().into();
            t.gas_limit = 100_000;
        }))
    };
    let third = next(&rules, &second, vec![call(1, 42), call(2, 0)]);
    assert_eq!(third.receipts.iter().map(|r| r.success).collect::<Vec<_>>(), [true, false]);
    assert_eq!(third.receipts[0].logs[0].address, contract);
    assert!(!third.block.header.logs_bloom.is_zero());
    assert_eq!(third.state.account(&contract).unwrap().slot(&U256::ZERO), U256::from(42));
    let proof = third.state.prove(&contract, &[U256::ZERO]);
    assert_eq!(keccak256(&proof.account_proof[0]), third.block.header.state_root);
    assert_eq!(keccak256(&proof.slots[0].1[0]), proof.account.storage_root());

    let trace =
        |range, tracer| trace_block(&rules, &second.block.header, &second.state, &third.block, range, tracer);
    let steps = |limit, memory| Tracer::Steps { memory, limit };
    let all = trace(0..2, Tracer::Calls).unwrap();
    assert_eq!(trace(1..2, Tracer::Calls).unwrap(), all[1..]);
    let Trace::Calls(frame) = &all[1] else { panic!("calls were asked for") };
    assert_eq!(
        (frame.kind, frame.to, frame.error.as_deref()),
        ("CALL", Some(contract), Some("execution reverted"))
    );
    let seen = trace(0..1, steps(1000, true)).unwrap();
    let Trace::Steps(logs, outcome) = &seen[0] else { panic!("steps were asked for") };
    assert_eq!(outcome.gas_used, third.receipts[0].cumulative_gas_used);
    let store = logs.iter().find(|step| step.op == "SSTORE").unwrap();
    assert_eq!((store.stack.as_slice(), store.gas_cost), (&[U256::from(42), U256::ZERO][..], 22_100));
    let counts = |traces: Vec<Trace>| {
        let count = |trace: &Trace| if let Trace::Steps(logs, _) = trace { logs.len() } else { 0 };
        traces.iter().map(count).collect::<Vec<_>>()
    };
    assert_eq!(counts(trace(0..1, steps(3, false)).unwrap()), [3]);
    assert_eq!(
        counts(trace(0..2, steps(logs.len() + 3, false)).unwrap()),
        [logs.len(), 3],
        "of all together"
    );
    assert!(trace(2..3, Tracer::Calls).is_none());
    assert!(
        trace_block(&rules, &first.block.header, &first.state, &third.block, 0..1, Tracer::Calls).is_none()
    );
}

#[test]
fn calls_are_traced_and_their_accesses_listed() {
    let (rules, first) = genesis();
    let (second, contract) = deployed(&rules, &first);
    let (header, state, none) = (&second.block.header, &second.state, Overrides::new());
    let call = message(Some(contract), U256::from(9).to_be_bytes::<32>());
    let plain = simulate(&rules, header, state, &none, &call);
    let Ok(Trace::Calls(frame)) = trace_call(&rules, header, state, &none, &call, Tracer::Calls) else {
        panic!()
    };
    assert_eq!((frame.gas, frame.gas_used, &frame.output), (1_000_000, plain.gas_used, &plain.output));
    let poor = Message { value: U256::MAX, ..call.clone() };
    let error = trace_call(&rules, header, state, &none, &poor, Tracer::Calls).unwrap_err();
    assert!(error.contains("insufficient funds"), "{error}");

    // The slot that it writes, of the contract that is warm itself; 1,900 are for the list's entry and 2,400 for its address.
    let (list, outcome) = access_list(&rules, header, state, &none, &call);
    assert_eq!(list, [(contract, vec![B256::ZERO])]);
    assert_eq!((outcome.failure, outcome.gas_used), (None, plain.gas_used - 2_100 + 1_900 + 2_400));
    let transfer = message(Some(Address::repeat_byte(3)), Vec::new());
    let (list, outcome) = access_list(&rules, header, state, &none, &transfer);
    assert_eq!((list, outcome.gas_used), (Vec::new(), 21_000));
    // A call of another contract, in code that is assumed: BALANCE of an address, then SLOAD of slot 1.
    let caller = Address::repeat_byte(0x77);
    let code = hex::decode("73bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb315060015450").unwrap();
    let over =
        Overrides::from([(caller, StateOverride { code: Some(code.into()), ..StateOverride::default() })]);
    let (list, _) = access_list(&rules, header, state, &over, &message(Some(caller), Vec::new()));
    let one = B256::from(U256::from(1).to_be_bytes::<32>());
    assert_eq!(list, [(caller, vec![one]), (Address::repeat_byte(0xbb), Vec::new())]);
    let reverting = message(Some(contract), U256::ZERO.to_be_bytes::<32>());
    let (list, outcome) = access_list(&rules, header, state, &none, &reverting);
    assert_eq!((list.len(), outcome.failure), (1, Some(Failure::Revert)));
    let (_, outcome) = access_list(&rules, header, state, &none, &poor);
    assert!(matches!(outcome.failure, Some(Failure::Invalid(_))));
}

/// What a call tracer's answer holds of the calls' data, in bytes, and how many calls.
fn held(frame: &CallFrame) -> (usize, usize) {
    frame
        .calls
        .iter()
        .map(held)
        .fold((frame.input.len() + frame.output.len(), 1), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// Gas buys a memory once, and then every call that is given all of it costs a hundred: the trace would have terabytes.
#[test]
fn traces_have_a_budget_in_bytes() {
    const BUDGET: usize = 64 << 20;
    let (rules, first) = genesis();
    let (second, _) = deployed(&rules, &first);
    let (header, state) = (&second.block.header, &second.state);
    let at = Address::repeat_byte(0x77);
    // In a loop: CALL 0x64 with no gas and the first MiB of memory.
    let with = |code: &str| {
        let code = Some(hex::decode(code).unwrap().into());
        Overrides::from([(at, StateOverride { code, ..StateOverride::default() })])
    };
    let looping = with("5b5f5f621000005f5f60645ff1505f56");
    let call = Message { gas: 30_000_000, ..message(Some(at), Vec::new()) };
    let traced = |over: &Overrides, message: &Message, tracer| {
        trace_call(&rules, header, state, over, message, tracer).unwrap()
    };
    let Trace::Calls(frame) = traced(&looping, &call, Tracer::Calls) else { panic!() };
    let (bytes, calls) = held(&frame);
    assert!(
        bytes <= BUDGET && bytes + (2 << 20) > BUDGET && calls == bytes / (1 << 20) + 1,
        "{bytes} {calls}"
    );
    let error = frame.error.unwrap();
    assert!(error.starts_with("OutOfGas; ") && error.contains("left out"), "{error}");
    // Calls without data count as well.
    let empty = with("5b5f5f5f5f5f60645ff1505f56");
    let Trace::Calls(frame) = traced(&empty, &call, Tracer::Calls) else { panic!() };
    let (bytes, calls) = held(&frame);
    assert!(bytes == 0 && calls <= BUDGET / 256, "{calls}");

    // Steps have the memory before each.
    for (memory, most) in [(true, 80), (false, usize::MAX)] {
        let Trace::Steps(steps, outcome) = traced(&looping, &call, Tracer::Steps { memory, limit: 200_000 })
        else {
            panic!()
        };
        let size =
            |step: &StructLog| 32 * step.stack.len() + step.memory.as_ref().map_or(0, |memory| memory.len());
        assert!(steps.iter().map(size).sum::<usize>() <= BUDGET);
        assert!(steps.len() > 9 && steps.len() < most, "{}", steps.len());
        assert!(outcome.failure.is_some(), "it runs to its end");
    }
    // What fits is whole.
    let once = with("5f5f621000005f5f60645ff1");
    let Trace::Calls(frame) = traced(&once, &call, Tracer::Calls) else { panic!() };
    assert_eq!((held(&frame), frame.error), ((1 << 20, 2), None));
}

/// BLOCKHASH knows the parent as well, in a block that is built and one that is checked.
#[test]
fn contracts_see_the_hashes_of_earlier_blocks() {
    let (rules, first) = genesis();
    // The hashes of the block itself and of the three before it, into slots 0 to 3.
    let one = |back: u8| format!("60{back:02x}43034060{back:02x}55");
    let code = (0..4).map(one).collect::<String>();
    let create = decode(&Wallet::new(0).dynamic(|t| {
        (t.to, t.value, t.gas_limit) = (TxKind::Create, U256::ZERO, 200_000);
        t.input = deployment(&code).into();
    }));
    let contract = create.created().unwrap();
    let second = next(&rules, &first, vec![create]);
    let third = next(&rules, &second, Vec::new());
    let call = decode(&Wallet::new(0).dynamic(|t| {
        (t.nonce, t.to, t.value, t.gas_limit) = (1, TxKind::Call(contract), U256::ZERO, 200_000);
    }));
    let fourth = next(&rules, &third, vec![call]);
    assert_eq!(verify(&rules, &third.block.header, &third.state, &fourth.block).unwrap().block, fourth.block);
    let account = fourth.state.account(&contract).unwrap();
    let seen = |slot: u64| B256::from(account.slot(&U256::from(slot)).to_be_bytes::<32>());
    let hashes = [&third, &second, &first].map(|block| block.block.hash());
    assert_eq!((0..4).map(seen).collect::<Vec<_>>(), [&[B256::ZERO][..], &hashes].concat());
}

#[test]
fn calls_and_estimates() {
    let (rules, first) = genesis();
    let (second, contract) = deployed(&rules, &first);
    let run = |overrides: &Overrides, message: &Message| {
        simulate(&rules, &second.block.header, &second.state, overrides, message)
    };
    let none = Overrides::new();
    let word = |n: u64| U256::from(n).to_be_bytes::<32>();
    let done = run(&none, &message(Some(contract), word(9)));
    assert_eq!((done.failure, done.output.as_ref()), (None, &word(9)[..]));
    let reverted = run(&none, &message(Some(contract), word(0)));
    assert_eq!((reverted.failure, reverted.output.as_ref()), (Some(Failure::Revert), &word(0)[..]));
    let poor = Message { value: U256::MAX, ..message(Some(contract), word(1)) };
    assert!(
        matches!(run(&none, &poor).failure, Some(Failure::Invalid(text)) if text.starts_with("insufficient funds"))
    );
    let short = Message { gas: 21_600, ..message(Some(contract), word(1)) };
    assert!(matches!(run(&none, &short).failure, Some(Failure::Halt(text)) if text == "out of gas"));
    // Overrides: other storage is seen (SLOAD of slot 3), and a balance that is not there can be sent.
    let over = StateOverride {
        code: Some(hex!("6003545f5260205ff3").into()),
        state_diff: vec![(U256::from(3), U256::from(77))],
        ..StateOverride::default()
    };
    assert_eq!(
        run(&Overrides::from([(contract, over)]), &message(Some(contract), [])).output.as_ref(),
        &word(77)[..]
    );
    let rich = StateOverride { balance: Some(U256::from(500)), ..StateOverride::default() };
    let from = Address::repeat_byte(9);
    let gift = Message { from, value: U256::from(500), ..message(Some(Address::repeat_byte(8)), []) };
    assert_eq!(run(&Overrides::from([(from, rich)]), &gift).failure, None);

    let estimate = |m: &Message| estimate_gas(&rules, &second.block.header, &second.state, &none, m);
    assert_eq!(estimate(&message(Some(Address::repeat_byte(8)), [])), Ok(21_000));
    let call = message(Some(contract), word(9));
    let gas = estimate(&call).unwrap();
    assert_eq!(run(&none, &Message { gas, ..call.clone() }).failure, None);
    assert!(run(&none, &Message { gas: gas - 1, ..call }).failure.is_some(), "the estimate is the least");
    assert_eq!(estimate(&message(Some(contract), word(0))).unwrap_err().failure, Some(Failure::Revert));
}

#[test]
fn a_delegation_runs_anothers_code() {
    let (rules, first) = genesis();
    let (second, contract) = deployed(&rules, &first);
    let (sender, signer) = (Wallet::new(1), Wallet::new(2));
    let third = next(&rules, &second, vec![decode(&sender.delegating(0, &signer, contract))]);
    let account = third.state.account(&signer.address()).unwrap();
    assert_eq!(account.code().as_ref(), [&hex!("ef0100")[..], contract.as_slice()].concat());
    assert_eq!(account.nonce, 1);
    // The account can still send, and now has the contract's behaviour in its own storage.
    let call = decode(&signer.dynamic(|t| {
        t.nonce = 1;
        t.to = TxKind::Call(signer.address());
        t.value = U256::ZERO;
        t.input = U256::from(5).to_be_bytes::<32>().into();
        t.gas_limit = 100_000;
    }));
    let fourth = next(&rules, &third, vec![call]);
    assert!(fourth.receipts[0].success);
    assert_eq!(fourth.state.account(&signer.address()).unwrap().slot(&U256::ZERO), U256::from(5));
    assert_eq!(
        verify(&rules, &third.block.header, &third.state, &fourth.block).unwrap().state.root(),
        fourth.state.root()
    );
}

#[test]
fn what_is_no_transaction_is_refused() {
    let wallet = Wallet::new(0);
    let good = wallet.dynamic(|_| {});
    let refused = |bytes: &[u8]| Transaction::decode(bytes).unwrap_err();
    assert!(matches!(refused(&[]), TransactionError::Malformed(_)));
    assert!(matches!(refused(&[&good[..], &[0]].concat()), TransactionError::Malformed(_)), "trailing bytes");
    assert_eq!(refused(&[3, 0xc0]), TransactionError::Unsupported);
    assert_eq!(refused(&[0x7f, 0xc0]), TransactionError::Unsupported);
    let long = wallet.dynamic(|t| t.input = vec![1; 140_000].into());
    assert_eq!(refused(&long), TransactionError::Oversized(long.len()));
    assert_eq!(decode(&wallet.with_list(4)).kind(), 1);
    // The other of the two signatures for the same key (EIP-2).
    let order = U256::from_be_bytes(hex!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));
    let transaction = decode(&good);
    let high = (order - transaction.signature().s).to_be_bytes::<32>();
    let low = transaction.signature().s.to_be_bytes::<32>();
    let at = good.windows(32).position(|window| window == low).unwrap();
    let mut malleable = good.clone();
    malleable[at..at + 32].copy_from_slice(&high);
    assert_eq!(refused(&malleable), TransactionError::Signature);
}

#[test]
fn blocks_that_do_not_follow_are_refused() {
    let (rules, first) = genesis();
    let wallet = Wallet::new(0);
    let good = next(&rules, &first, vec![wallet.transfer(0)]);
    let check = |block: &Block| verify(&rules, &first.block.header, &first.state, block);
    assert_eq!(check(&good.block).unwrap().changes, good.changes);
    type Change = (&'static str, fn(&mut assay_ledger::Header));
    let changes: [Change; 12] = [
        ("timestamp", |h| h.timestamp = 1),
        ("number", |h| h.number += 1),
        ("parent hash", |h| h.parent_hash = B256::ZERO),
        ("base fee", |h| h.base_fee_per_gas = Some(1)),
        ("gas limit", |h| h.gas_limit += 1),
        ("gas used", |h| h.gas_used += 1),
        ("transactions root", |h| h.transactions_root = B256::ZERO),
        ("receipts root", |h| h.receipts_root = B256::ZERO),
        ("logs bloom", |h| h.logs_bloom.0[0] = 1),
        ("state root", |h| h.state_root = B256::ZERO),
        ("random value", |h| h.mix_hash = B256::ZERO),
        ("next committee", |h| h.extra_data = vec![1].into()),
    ];
    for (name, change) in changes {
        let mut header = (*good.block.header).clone();
        change(&mut header);
        let encoded = reencoded(&header, &good.block);
        assert_eq!(check(&encoded).unwrap_err(), BlockError::Header(name));
    }
    // A transaction twice, one of a stranger without money, one that is not there in the claimed list.
    let twice =
        Block::decode(&with_transactions(&good.block, &[wallet.transfer(0), wallet.transfer(0)])).unwrap();
    assert!(
        matches!(check(&twice).unwrap_err(), BlockError::Unexecutable(1, text) if text.starts_with("nonce too low"))
    );
    let poor = Block::decode(&with_transactions(&good.block, &[Wallet::new(99).transfer(0)])).unwrap();
    assert!(
        matches!(check(&poor).unwrap_err(), BlockError::Unexecutable(0, text) if text.starts_with("insufficient funds"))
    );
    let unprotected = decode(&wallet.legacy(0, None));
    let replayable = Block::decode(&with_transactions(&good.block, &[unprotected])).unwrap();
    assert!(matches!(check(&replayable).unwrap_err(), BlockError::Unexecutable(0, _)));
    let foreign =
        Block::decode(&with_transactions(&good.block, &[decode(&wallet.legacy(0, Some(8)))])).unwrap();
    assert!(
        matches!(check(&foreign).unwrap_err(), BlockError::Unexecutable(0, text) if text.contains("chain id"))
    );
}

fn list(payload: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let payload_length = payload.iter().map(Vec::len).sum();
    alloy_rlp::Header { list: true, payload_length }.encode(&mut out);
    out.extend(payload.concat());
    out
}

fn reencoded(header: &assay_ledger::Header, block: &Block) -> Block {
    let transactions: Vec<_> =
        block.transactions.iter().map(|t| alloy_rlp::encode(t.bytes().as_ref())).collect();
    Block::decode(&list(&[alloy_rlp::encode(header), list(&transactions)])).unwrap()
}

fn with_transactions(block: &Block, transactions: &[Transaction]) -> Vec<u8> {
    let transactions: Vec<_> = transactions.iter().map(|t| alloy_rlp::encode(t.bytes().as_ref())).collect();
    list(&[alloy_rlp::encode(&*block.header), list(&transactions)])
}

#[test]
fn a_genesis_that_cannot_be_is_refused() {
    let with = |rest: &str| {
        let text = format!("{{\"chainId\": 7, \"timestamp\": 1, \"gasLimit\": 30000000{rest}}}");
        Genesis::from_json(&text).and_then(|genesis| genesis.execute().map(|_| ()))
    };
    with("").unwrap();
    let (_, first) = genesis();
    let mut rebuilt = State::default();
    rebuilt.apply(&first.changes);
    assert_eq!(rebuilt.root(), first.block.header.state_root, "its changes make its state");
    assert!(matches!(with(", \"unknown\": 1"), Err(GenesisError::Json(_))));
    assert!(matches!(with(", \"alloc\": {\"0x12\": {\"balance\": \"1\"}}"), Err(GenesisError::Value(..))));
    let who = Wallet::new(0).address();
    assert!(matches!(
        with(&format!(", \"alloc\": {{\"{who}\": {{\"balance\": \"one\"}}}}")),
        Err(GenesisError::Value(..))
    ));
    let system = |data: &str, address: &str| {
        with(&format!(
            ", \"system\": {{\"deployer\": \"{who}\", \"nonce\": 0, \"addresses\": {{\"it\": \"{address}\"}},
            \"steps\": [{{\"name\": \"it\", \"to\": null, \"data\": \"{data}\"}}]}}"
        ))
    };
    let init = format!("0x{}", hex::encode(deployment(STORE)));
    system(&init, &who.create(0).to_string()).unwrap();
    assert!(matches!(system(&init, &who.create(1).to_string()), Err(GenesisError::Missing(..))));
    assert!(matches!(system("0xfe", &who.create(0).to_string()), Err(GenesisError::Step(..))));
    let small = "{\"chainId\": 7, \"timestamp\": 1, \"gasLimit\": 1000}";
    assert!(matches!(Genesis::from_json(small).unwrap().execute(), Err(GenesisError::Invalid(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whoever executes a block, or only applies its changes, has the same state; a decoded block is the same block.
    #[test]
    fn everyone_gets_the_same(plans in prop::collection::vec(prop::collection::vec((0u8..6, 0u8..3, 0u64..3), 0..8), 1..5)) {
        let (rules, first) = genesis();
        let (mut parent, contract) = deployed(&rules, &first);
        let mut snapshot = parent.state.clone();
        for plan in plans {
            let mut nonces = std::collections::BTreeMap::new();
            let mut transactions = Vec::new();
            for (sender, kind, word) in plan {
                let wallet = Wallet::new(sender);
                let nonce = nonces.entry(sender).or_insert_with(|| parent.state.nonce(&wallet.address()));
                transactions.push(decode(&wallet.dynamic(|t| {
                    t.nonce = *nonce;
                    match kind {
                        0 => t.to = TxKind::Call(Address::with_last_byte(word as u8 + 100)),
                        1 => {
                            t.to = TxKind::Call(contract);
                            t.value = U256::ZERO;
                            t.input = U256::from(word).to_be_bytes::<32>().into();
                            t.gas_limit = 100_000;
                        }
                        _ => {
                            t.to = TxKind::Create;
                            t.input = deployment(STORE).into();
                            t.gas_limit = 200_000;
                        }
                    }
                })));
                *nonce += 1;
            }
            let built = next(&rules, &parent, transactions);
            let block = Block::decode(&built.block.encode()).unwrap();
            prop_assert_eq!(&block, &built.block);
            prop_assert_eq!(built.block.encode().len(), built.block.encoded_len());
            let verified = verify(&rules, &parent.block.header, &parent.state, &block).unwrap();
            prop_assert_eq!(verified.state.root(), built.state.root());
            prop_assert_eq!(&verified.receipts, &built.receipts);
            snapshot.apply(&built.changes);
            prop_assert_eq!(snapshot.root(), built.state.root());
            parent = built;
        }
        prop_assert_eq!(State::default().root(), alloy_consensus::EMPTY_ROOT_HASH);
    }

    /// No bytes from outside make the decoders panic, and what they accept has one encoding.
    #[test]
    fn decoders_survive_anything(noise in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = Wallet::new(0).dynamic(|t| t.input = noise.clone().into());
        let index = at.index(bytes.len());
        bytes[index] = byte;
        for candidate in [&noise, &bytes] {
            if let Ok(transaction) = Transaction::decode(candidate) {
                prop_assert_eq!(transaction.bytes().as_ref(), &candidate[..]);
            }
            let _ = Block::decode(candidate);
        }
        let (rules, first) = genesis();
        let whole = next(&rules, &first, vec![Wallet::new(1).transfer(0)]).block;
        let mut encoded = whole.encode();
        let index = at.index(encoded.len());
        encoded[index] ^= byte | 1;
        if let Ok(block) = Block::decode(&encoded)
            && verify(&rules, &first.block.header, &first.state, &block).is_ok()
        {
            // Of a block's time consensus judges; nothing else may change.
            prop_assert_ne!(block.header.timestamp, whole.header.timestamp);
            let mut header = (*block.header).clone();
            header.timestamp = whole.header.timestamp;
            prop_assert_eq!(&header, &*whole.header);
        }
    }
}

#[test]
fn a_block_is_read_with_what_is_known() {
    let (rules, first) = genesis();
    let transfers: Vec<_> = (0..3).map(|seed| Wallet::new(seed).transfer(0)).collect();
    let block = next(&rules, &first, transfers.clone()).block;
    let bytes = block.encode();
    assert_eq!(Block::hash_of(&bytes), Some(block.hash()));
    assert_eq!(Block::hash_of(&bytes[1..]), None);
    let asked = std::cell::RefCell::new(Vec::new());
    let read = Block::decode_with(&bytes, |hash| {
        asked.borrow_mut().push(*hash);
        transfers.iter().skip(1).find(|known| known.hash() == *hash).cloned()
    });
    assert_eq!(read.unwrap(), block);
    let hashes: Vec<_> = block.transactions.iter().map(Transaction::hash).collect();
    assert_eq!(asked.into_inner(), hashes);
    // Knowing another one under a hash would be noticed: it is not the block's encoding any more.
    let wrong = Block::decode_with(&bytes, |_| Some(transfers[0].clone()));
    assert!(matches!(wrong, Err(BlockError::Malformed(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What a peer may send: bytes are what they decode to, in one encoding, or nothing.
    #[test]
    fn bytes_from_outside_mean_one_thing_or_nothing(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        whole: bool,
    ) {
        static SENT: std::sync::OnceLock<(Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
        let (block, transaction) = SENT.get_or_init(|| {
            let (rules, first) = genesis();
            let (parent, _) = deployed(&rules, &first);
            let transaction = Wallet::new(1).dynamic(|_| {});
            let built = next(&rules, &parent, vec![decode(&transaction), decode(&Wallet::new(2).dynamic(|_| {}))]);
            (built.block.encode(), transaction)
        });
        let mut bytes = if whole { block.clone() } else { transaction.clone() };
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(block) = Block::decode(&bytes) {
            prop_assert_eq!(block.encode(), bytes.clone());
        }
        if let Ok(transaction) = Transaction::decode(&bytes) {
            prop_assert_eq!(&transaction.bytes()[..], &bytes[..]);
        }
    }
}
