//! The precompiled contract that checks proofs, called by a contract: a right proof, wrong ones, and their price.
#![allow(clippy::unwrap_used)]

mod common;

use assay_ledger::types::{Address, Bytes, TxKind, U256, hex};
use assay_ledger::{
    Attributes, Failure, Message, Outcome, Overrides, StateOverride, Transaction, build, simulate, verify,
};
use common::{Wallet, genesis};

/// Hands its call data to the verifier and returns or reverts with what comes back.
const RELAY: &str = "365f5f375f5f365f61a55b5afa3d5f5f3e6017573d5ffd5b3d5ff3";

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors").join(name))
        .unwrap()
}

fn input(model: &[u8], proof: &[u8]) -> Vec<u8> {
    [&u32::try_from(model.len()).unwrap().to_be_bytes(), model, proof].concat()
}

fn call_with(data: Vec<u8>, gas: u64) -> Outcome {
    let (rules, first) = assay_ledger::Genesis::from_json(r#"{"chainId": 7, "timestamp": 1800000000, "gasLimit": 30000000, "alloc": {"0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": {"balance": "1000000000000000000"}}}"#).unwrap().execute().unwrap();
    let relay = Address::repeat_byte(0x77);
    let code = Some(Bytes::from(hex::decode(RELAY).unwrap()));
    let overrides = Overrides::from([(relay, StateOverride { code, ..StateOverride::default() })]);
    let message = Message {
        from: Address::repeat_byte(0xaa),
        to: Some(relay),
        gas,
        max_fee: 0,
        tip: None,
        value: U256::ZERO,
        data: data.into(),
        access_list: Vec::new(),
    };
    simulate(&rules, &first.block.header, &first.state, &overrides, &message)
}

fn call(data: Vec<u8>) -> Outcome {
    call_with(data, 30_000_000)
}

fn words(output: &[u8]) -> Vec<U256> {
    output.chunks_exact(32).map(U256::from_be_slice).collect()
}

#[test]
fn a_contract_gets_the_statement_of_a_proof_that_holds() {
    for (model, proof, examples) in [
        ("perceptron.graph", "perceptron.proof", 40),
        ("perceptron.key", "perceptron-key.proof", 2),
        ("perceptron-hiding.key", "perceptron-hidden-weights.proof", 2),
    ] {
        let (model, file) = (vector(model), vector(proof));
        let read = assay_proof::AnyProof::from_bytes(&file).unwrap();
        let outcome = call(input(&model, &file));
        assert_eq!(outcome.failure, None, "{proof}: {}", String::from_utf8_lossy(&outcome.output));
        let words = words(&outcome.output);
        let signed = |value: &i32| {
            U256::from_be_slice(
                &[[if *value < 0 { 0xff } else { 0 }; 28].as_slice(), &value.to_be_bytes()].concat(),
            )
        };
        assert_eq!(words[0], U256::from_be_slice(&read.model()));
        assert_eq!((words[1], words[2]), (U256::from(96), U256::from(128 + 32 * 6 * examples)));
        assert_eq!(words[3], U256::from(6 * examples));
        let outputs = 4 + 6 * examples;
        assert!(words[4..outputs].iter().copied().eq(read.inputs().unwrap().iter().map(signed)));
        assert_eq!(words[outputs], U256::from(3 * examples));
        assert!(words[outputs + 1..].iter().copied().eq(read.outputs().iter().map(signed)));
        assert!(read.inputs().unwrap().iter().any(|value| *value < 0), "negative numbers are among them");
    }
}

#[test]
fn what_is_not_proved_reverts_with_a_reason() {
    let (graph, key) = (vector("perceptron.graph"), vector("perceptron.key"));
    let (proof, keyed) = (vector("perceptron.proof"), vector("perceptron-key.proof"));
    let refused = |data: Vec<u8>, reason: &str| {
        let outcome = call(data);
        assert_eq!(outcome.failure, Some(Failure::Revert), "{reason}");
        let said = String::from_utf8_lossy(&outcome.output).into_owned();
        assert!(said.contains(reason), "{said}");
    };
    // A byte of the inputs, of the outputs, of a message and of the opening.
    for at in [50, 290, 420, proof.len() / 2, proof.len() - 9] {
        let mut other = proof.clone();
        other[at] ^= 1;
        refused(input(&graph, &other), "");
    }
    let mut other = graph.clone();
    let at = other.len() - 60; // a weight of the last layer
    other[at] ^= 1;
    refused(input(&other, &proof), "about the model");
    refused(input(&key, &proof), "about the model");
    refused(input(&graph, &keyed), "committed weights");
    // Before it is checked: one with a wrong commitment is refused for the same reason.
    let mut hidden = vector("perceptron-hidden.proof");
    refused(input(&graph, &hidden), "hides its inputs");
    hidden[100] ^= 1;
    assert!(assay_proof::HidingProof::from_bytes(&hidden).is_ok());
    refused(input(&graph, &hidden), "hides its inputs");
    refused(input(&key, &vector("perceptron-hidden-weights.proof")), "about the model");
    refused(input(&graph, &proof[..proof.len() - 1]), "not a proof");
    refused(input(&graph, &[]), "not a proof");
    refused(input(b"ASSAYGR1", &proof), "");
    refused(Vec::new(), "shorter");
    refused(vec![0xff; 40], "shorter");
    refused(vec![0; (1 << 20) + 1], "larger");
}

/// Transactions in blocks: a contract keeps the model that was proved, a proof that is not one reverts, and whoever executes the block gets the same.
#[test]
fn a_block_checks_proofs() {
    // Keeps the first word of what the verifier returns, or reverts with what it says.
    let code = hex::decode("365f5f375f5f365f61a55b5afa3d5f5f3e6017573d5ffd5b5f515f5500").unwrap();
    let head = [0x60, code.len() as u8, 0x60, 0x0a, 0x5f, 0x39, 0x60, code.len() as u8, 0x5f, 0xf3];
    let init = [&head[..], &code].concat();
    let (rules, first) = genesis();
    let (one, other) = (Wallet::new(0), Wallet::new(1));
    let transaction = |wallet: &Wallet, nonce: u64, to: TxKind, data: Vec<u8>| {
        let bytes = wallet.dynamic(|t| {
            (t.nonce, t.to, t.value, t.gas_limit, t.input) = (nonce, to, U256::ZERO, 8_000_000, data.into());
        });
        Transaction::decode(&bytes).unwrap()
    };
    let next = |parent: &assay_ledger::Executed, transactions| {
        let timestamp = parent.block.header.timestamp + 1;
        let attributes = Attributes { timestamp, beneficiary: Address::repeat_byte(0xfe), view: 0 };
        build(&rules, &parent.block.header, &parent.state, &attributes, transactions)
    };
    let create = transaction(&one, 0, TxKind::Create, init);
    let keeper = create.created().unwrap();
    let second = next(&first, vec![create]);
    assert!(second.receipts[0].success);

    let (model, proof) = (vector("perceptron.key"), vector("perceptron-key.proof"));
    let mut forged = proof.clone();
    *forged.last_mut().unwrap() ^= 1;
    let calls = vec![
        transaction(&other, 0, TxKind::Call(keeper), input(&model, &forged)),
        transaction(&one, 1, TxKind::Call(keeper), input(&model, &proof)),
        // The verifier itself may be called as well.
        transaction(&one, 2, TxKind::Call(assay_ledger::PROOF_VERIFIER), input(&model, &proof)),
    ];
    let third = next(&second, calls);
    let mut held: Vec<_> = third.receipts.iter().map(|receipt| receipt.success).collect();
    held.sort_unstable();
    assert_eq!(held, [false, true, true]);
    let proved = assay_proof::Proof::from_bytes(&proof).unwrap().model;
    assert_eq!(third.state.account(&keeper).unwrap().slot(&U256::ZERO), U256::from_be_slice(&proved));
    let repeated = verify(&rules, &second.block.header, &second.state, &third.block).unwrap();
    assert_eq!(repeated.state.root(), third.state.root());
    // A block that says that the forged proof held, with the gas that it used, is refused.
    let mut lying = third.block.clone();
    std::sync::Arc::make_mut(&mut lying.header).receipts_root = second.block.header.receipts_root;
    assert!(verify(&rules, &second.block.header, &second.state, &lying).is_err());
}

/// Work is paid for before it is done: a model that is expensive to look at is not looked at without the gas for it.
#[test]
fn the_price_grows_with_the_work_and_is_taken_first() {
    use assay_graph::{Graph, Interface, Node, Range, Tensor, Window};
    let data = input(&vector("perceptron.graph"), &vector("perceptron.proof"));
    let price = |data: &[u8]| {
        let outcome = call(data.to_vec());
        assert_eq!(outcome.failure, None);
        outcome.gas_used
    };
    let used = price(&data);
    assert!((300_000..2_000_000).contains(&used), "{used}");
    let halted = call_with(data.clone(), used - 100_000);
    assert!(halted.failure.is_some() && halted.output.is_empty(), "{halted:?}");
    // A few bytes that stand for a convolution of 2^31 multiplications, which are not done: 4 × 4 results become 1024 × 1024.
    let size = [4, 4];
    let window = Window { kernel: [45, 45], pad: [22, 22], ..Window::pointwise(1, 1, size) };
    let conv = Node::Conv { input: Tensor::INPUT, window, weights: vec![1; 45 * 45], bias: vec![0] };
    let inputs = vec![Range { low: 0, high: 1 }; 16];
    let mut bytes = Graph::new(inputs, vec![], vec![conv], Tensor(1), Interface::plain(16)).unwrap().encode();
    assert!(Graph::work(&bytes).unwrap().operations >= 45 * 45 * 16);
    let pair = |side: u32| [side.to_le_bytes(), side.to_le_bytes()].concat();
    let at = bytes.windows(8).rposition(|found| found == pair(4)).unwrap();
    bytes[at..at + 8].copy_from_slice(&pair(1024));
    assert!(Graph::work(&bytes).unwrap().operations > 1 << 30);
    let outcome = call(input(&bytes, &vector("perceptron.proof")));
    assert_eq!((outcome.failure, outcome.output.len()), (Some(Failure::Revert), 0));
    assert!(outcome.gas_used > 29_000_000, "all that was given is gone: {}", outcome.gas_used);
    // Maps without their weights, each of one row, that all read the same thousand values; and remainders.
    let map =
        |input: u32| Node::Linear { input: Tensor(input), rows: 1, weights: vec![1; 1000], bias: vec![0] };
    let mut nodes = vec![Node::Gather { inputs: vec![Tensor::INPUT], index: vec![0; 1000] }];
    nodes.extend((0..50).map(|_| map(1)));
    let lookup = Node::Lookup { input: Tensor(1), shift: 15, table: 0 };
    nodes.extend([lookup.clone(), lookup]);
    let (inputs, tables) = (vec![Range { low: 0, high: 1 }], vec![assay_graph::Table::clamp(0, 1, 0, 1)]);
    let graph = Graph::new(inputs, tables, nodes, Tensor(51), Interface::plain(1)).unwrap();
    let work = Graph::work(&graph.without_weights().unwrap().encode()).unwrap();
    assert_eq!(work.operations, 50 * 4 * 1000);
    assert_eq!(work.values, 1 + 1000 + 50 + 2 * 1000 + 2 + (1 << 15));
}
