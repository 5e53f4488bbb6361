//! JSON-RPC against a chain that finalizes by itself. Real clients are in `tests/ethereum-clients`; here are the answers and errors that
//! they do not ask for.
#![allow(clippy::unwrap_used)]

#[path = "../../ledger/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use assay_ledger::types::{Address, TxKind, U256, hex, keccak256};
use assay_ledger::{Attributes, Block, Genesis, PoolLimits, Transaction};
use assay_node::chain::{Chain, ChainError, Origin};
use assay_node::history::{History, Retention};
use assay_node::rpc::methods;
use common::{CHAIN, Wallet};
use jsonrpsee::core::server::Methods;
use proptest::prelude::*;
use serde_json::{Value, json};

struct Node {
    chain: Arc<Chain>,
    methods: Methods,
}

fn genesis() -> Genesis {
    let alloc: Vec<_> = (0..8)
        .map(|seed| format!("\"{}\": {{\"balance\": \"10000000000000000000\"}}", Wallet::new(seed).address()))
        .collect();
    let alloc = alloc.join(",");
    let text = format!(
        "{{\"chainId\": {CHAIN}, \"timestamp\": 1800000000, \"gasLimit\": 30000000, \"alloc\": {{{alloc}}}}}"
    );
    Genesis::from_json(&text).unwrap()
}

fn node() -> Node {
    let chain = Arc::new(Chain::open(&genesis(), PoolLimits::default(), History::in_memory).unwrap());
    Node { methods: methods(chain.clone()), chain }
}

/// What a proposer chooses.
fn at(timestamp: u64, beneficiary: Address) -> Attributes {
    Attributes { timestamp, beneficiary, view: 0 }
}

impl Node {
    fn mine(&self) {
        let head = self.chain.head();
        let time = head.block.header.timestamp + 1;
        let block = self.chain.propose(&head.block.hash(), at(time, Address::repeat_byte(0xfe))).unwrap();
        self.chain.finalize(&block).unwrap();
    }

    async fn raw(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let (answer, _) = self.methods.raw_json_request(&request, 16).await.unwrap();
        serde_json::from_str(answer.get()).unwrap()
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.raw(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    async fn fail(&self, method: &str, params: Value) -> (i64, String) {
        let answer = self.raw(method, params).await;
        let error = &answer["error"];
        (
            error["code"].as_i64().unwrap_or_else(|| panic!("{method}: {answer}")),
            error["message"].as_str().unwrap().to_owned(),
        )
    }

    async fn send(&self, bytes: &[u8]) -> String {
        let hash = self.ask("eth_sendRawTransaction", json!([format!("0x{}", hex::encode(bytes))])).await;
        hash.as_str().unwrap().to_owned()
    }
}

/// Stores the input's first word at slot 0, emits it without topics and returns it; reverts with it where it is zero.
const STORE: [u8; 38] =
    hex!("600035806000526000556000546015576020" "6000fd5b60206000a060206000f3" "000000000000");

fn deployment() -> Vec<u8> {
    let mut init = vec![0x60, STORE.len() as u8, 0x60, 0x0a, 0x5f, 0x39, 0x60, STORE.len() as u8, 0x5f, 0xf3];
    init.extend(STORE);
    init
}

fn create(nonce: u64) -> Vec<u8> {
    Wallet::new(0).dynamic(|t| {
        t.nonce = nonce;
        t.to = TxKind::Create;
        t.value = U256::ZERO;
        t.input = deployment().into();
        t.gas_limit = 200_000;
    })
}

fn call(nonce: u64, contract: Address, word: u64) -> Vec<u8> {
    Wallet::new(0).dynamic(|t| {
        t.nonce = nonce;
        t.to = TxKind::Call(contract);
        t.value = U256::ZERO;
        t.input = U256::from(word).to_be_bytes::<32>().into();
        t.gas_limit = 100_000;
    })
}

fn word(value: u64) -> String {
    format!("0x{value:064x}")
}

#[tokio::test]
async fn transactions_go_from_the_pool_into_a_block() {
    let node = node();
    let me = Wallet::new(0).address().to_string();
    let hash = node.send(&Wallet::new(0).dynamic(|_| {})).await;
    let waiting = node.ask("eth_getTransactionByHash", json!([hash])).await;
    assert_eq!((&waiting["blockHash"], &waiting["type"]), (&Value::Null, &json!("0x2")));
    assert_eq!(node.ask("eth_getTransactionReceipt", json!([hash])).await, Value::Null);
    assert_eq!(node.ask("eth_getTransactionCount", json!([me, "pending"])).await, "0x1");
    assert_eq!(node.ask("eth_getTransactionCount", json!([me, "latest"])).await, "0x0");
    assert_eq!(node.ask("txpool_status", json!([])).await, json!({"pending": "0x1", "queued": "0x0"}));
    assert_eq!(node.ask("txpool_content", json!([])).await["pending"][&me]["0"]["hash"], hash.as_str());
    node.mine();
    let receipt = node.ask("eth_getTransactionReceipt", json!([hash])).await;
    assert_eq!(
        (&receipt["status"], &receipt["gasUsed"], &receipt["blockNumber"]),
        (&json!("0x1"), &json!("0x5208"), &json!("0x1"))
    );
    let block = node.ask("eth_getBlockByNumber", json!(["latest", true])).await;
    assert_eq!(block["transactions"][0]["hash"], hash.as_str());
    for tag in ["safe", "finalized", "pending", "0x1"] {
        assert_eq!(node.ask("eth_getBlockByNumber", json!([tag, true])).await, block);
    }
    assert_eq!(node.ask("eth_getBlockByHash", json!([block["hash"], true])).await, block);
    assert_eq!(node.ask("eth_getBlockReceipts", json!([block["hash"]])).await, json!([receipt]));
    assert_eq!(
        node.ask("eth_getTransactionByBlockNumberAndIndex", json!(["0x1", "0x0"])).await,
        block["transactions"][0]
    );
    assert_eq!(node.ask("eth_getTransactionByBlockNumberAndIndex", json!(["0x1", "0x1"])).await, Value::Null);
    assert_eq!(node.ask("eth_getBlockByNumber", json!(["0x2", false])).await, Value::Null);
    assert_eq!(node.ask("eth_getTransactionCount", json!([me, "latest"])).await, "0x1");
    assert_eq!(node.ask("eth_getTransactionCount", json!([me, {"blockNumber": "0x0"}])).await, "0x0");
    let raw = node.ask("debug_getRawTransaction", json!([hash])).await;
    assert_eq!(raw, format!("0x{}", hex::encode(Wallet::new(0).dynamic(|_| {}))));
}

#[tokio::test]
async fn contracts_logs_filters_and_traces() {
    let node = node();
    let created_at = Wallet::new(0).address().create(0);
    let contract = created_at.to_string();
    let blocks = node.ask("eth_newBlockFilter", json!([])).await;
    let arrivals = node.ask("eth_newPendingTransactionFilter", json!([])).await;
    let logs = node.ask("eth_newFilter", json!([{"address": contract}])).await;
    let created = node.send(&create(0)).await;
    node.mine();
    let hash = node.send(&call(1, created_at, 42)).await;
    let failing = node.send(&call(2, created_at, 0)).await;
    node.mine();
    assert_eq!(node.ask("eth_getFilterChanges", json!([blocks])).await.as_array().unwrap().len(), 2);
    assert_eq!(node.ask("eth_getFilterChanges", json!([arrivals])).await, json!([created, hash, failing]));
    let found = node.ask("eth_getFilterChanges", json!([logs])).await;
    assert_eq!((&found[0]["data"], &found[0]["transactionHash"]), (&json!(word(42)), &json!(hash)));
    assert_eq!(node.ask("eth_getFilterChanges", json!([logs])).await, json!([]));
    assert_eq!(
        node.ask("eth_getFilterLogs", json!([logs])).await,
        found,
        "the range is the head alone, as no other was given"
    );
    assert_eq!(node.ask("eth_getLogs", json!([{"fromBlock": "0x0", "address": [contract]}])).await, found);
    assert_eq!(node.ask("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "0x1"}])).await, json!([]));
    assert_eq!(node.ask("eth_getLogs", json!([{"fromBlock": "0x0", "topics": [word(1)]}])).await, json!([]));
    assert_eq!(node.ask("eth_getLogs", json!([{"blockHash": found[0]["blockHash"]}])).await, found);
    assert_eq!(node.ask("eth_uninstallFilter", json!([logs])).await, true);
    assert_eq!(node.ask("eth_uninstallFilter", json!([logs])).await, false);
    assert_eq!(node.fail("eth_getFilterChanges", json!([logs])).await.1, "filter not found");

    assert_eq!(
        node.ask("eth_getCode", json!([contract, "latest"])).await,
        format!("0x{}", hex::encode(STORE))
    );
    assert_eq!(node.ask("eth_getStorageAt", json!([contract, "0x0", "latest"])).await, word(42));
    assert_eq!(node.ask("eth_getStorageAt", json!([contract, "0x0", "0x1"])).await, word(0));
    let proof = node.ask("eth_getProof", json!([contract, ["0x0"], "latest"])).await;
    assert_eq!(
        (&proof["storageProof"][0]["value"], &proof["storageProof"][0]["key"]),
        (&json!("0x2a"), &json!("0x0"))
    );

    let frame = node.ask("debug_traceTransaction", json!([failing, {"tracer": "callTracer"}])).await;
    assert_eq!((&frame["type"], &frame["error"]), (&json!("CALL"), &json!("execution reverted")));
    let steps = node.ask("debug_traceTransaction", json!([hash, {}])).await;
    assert_eq!((&steps["failed"], &steps["structLogs"][0]["op"]), (&json!(false), &json!("PUSH1")));
    assert!(
        node.fail("debug_traceTransaction", json!([hash, {"tracer": "noTracer"}]))
            .await
            .1
            .contains("not known")
    );

    let data = |value: u64| json!({"to": contract, "data": word(value)});
    assert_eq!(node.ask("eth_call", json!([data(5), "latest"])).await, word(5));
    let over = json!({&contract: {"code": "0x6003545f5260205ff3", "stateDiff": {word(3): word(77)}}});
    assert_eq!(node.ask("eth_call", json!([data(5), "latest", over])).await, word(77));
    let reverted = node.raw("eth_call", json!([data(0), "latest"])).await;
    assert_eq!((&reverted["error"]["code"], &reverted["error"]["data"]), (&json!(3), &json!(word(0))));
    assert_eq!(
        node.ask("eth_estimateGas", json!([{"to": Address::repeat_byte(9).to_string(), "value": "0x0"}]))
            .await,
        "0x5208"
    );
    assert_eq!(node.fail("eth_estimateGas", json!([data(0)])).await.0, 3);

    let history = node.ask("eth_feeHistory", json!(["0x3", "latest", [10, 50]])).await;
    assert_eq!(history["baseFeePerGas"].as_array().unwrap().len(), 4);
    assert_eq!(history["reward"][2], json!(["0x3b9aca00", "0x3b9aca00"]));
    assert_eq!(node.ask("eth_maxPriorityFeePerGas", json!([])).await, "0x3b9aca00");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_words_that_libraries_know() {
    let node = node();
    let send = |bytes: Vec<u8>| json!([format!("0x{}", hex::encode(bytes))]);
    let wallet = Wallet::new(0);
    node.send(&wallet.dynamic(|_| {})).await;
    let errors = [
        ("eth_sendRawTransaction", json!(["0x1234"]), "transaction type not supported"),
        ("eth_sendRawTransaction", json!(["1234"]), "hexadecimal data"),
        ("eth_sendRawTransaction", json!([]), "missing value for required argument 0"),
        ("eth_sendRawTransaction", send(wallet.dynamic(|_| {})), "already known"),
        (
            "eth_sendRawTransaction",
            send(wallet.dynamic(|t| t.value = U256::from(2))),
            "replacement transaction underpriced",
        ),
        (
            "eth_sendRawTransaction",
            send(Wallet::new(99).dynamic(|_| {})),
            "insufficient funds for gas * price + value",
        ),
        ("eth_sendRawTransaction", send(vec![0x02; 200_000]), "oversized data"),
        ("eth_getBalance", json!(["0x12", "latest"]), "is no address"),
        ("eth_getBalance", json!([wallet.address().to_string(), "0x99"]), "header not found"),
        ("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "0x1"}]), "beyond current head"),
        ("eth_getLogs", json!([{"blockHash": word(1), "fromBlock": "0x0"}]), "both BlockHash and FromBlock"),
        ("eth_getStorageAt", json!([wallet.address().to_string(), "0xasdf", "latest"]), "no hexadecimal"),
        (
            "eth_getStorageAt",
            json!([wallet.address().to_string(), format!("{}0", word(0)), "latest"]),
            "no hexadecimal",
        ),
        ("debug_getRawTransaction", json!([word(1)[2..]]), "is no hash"),
        ("debug_getRawBlock", json!(["2"]), "no hexadecimal"),
        ("eth_getLogs", json!([{"topics": [[], [], [], [], []]}]), "exceed max topics"),
        (
            "eth_call",
            json!([{"to": wallet.address().to_string(), "gasPrice": "0x1", "maxFeePerGas": "0x1"}]),
            "both gasPrice and",
        ),
        (
            "eth_call",
            json!([{"to": wallet.address().to_string()}, "latest", {}, {"nummer": "0x1"}]),
            "is not known",
        ),
        (
            "eth_call",
            json!([{"to": wallet.address().to_string()}, "latest", {}, {"time": "now"}]),
            "no hexadecimal",
        ),
        (
            "eth_createAccessList",
            json!([{"from": wallet.address().to_string(), "value": "0xffffffffffffffffffffff"}]),
            "insufficient funds",
        ),
        ("debug_traceBlockByNumber", json!(["0x0"]), "genesis is not traceable"),
        ("debug_traceBlockByNumber", json!(["0x99"]), "block not found"),
        ("debug_traceBlockByHash", json!([word(1)]), "block not found"),
        ("debug_traceCall", json!([{}, "0x99"]), "header not found"),
        ("debug_traceCall", json!([{}, "latest", {"tracer": "noTracer"}]), "is not known"),
        ("eth_feeHistory", json!(["0x1", "latest", [50, 10]]), "percentile"),
    ];
    for (method, params, words) in errors {
        let (_, message) = node.fail(method, params.clone()).await;
        assert!(message.contains(words), "{method} {params}: {message}");
    }
    node.mine();
    let reversed = json!([{"fromBlock": "0x1", "toBlock": "0x0"}]);
    assert!(node.fail("eth_getLogs", reversed).await.1.contains("invalid block range"));
    let again = node.fail("eth_sendRawTransaction", send(wallet.dynamic(|t| t.value = U256::from(3)))).await;
    assert_eq!(again, (-32000, "nonce too low: next nonce 1, tx nonce 0".to_owned()));
    let (code, _) = node.fail("eth_noSuchMethod", json!([])).await;
    assert_eq!(code, -32601);
}

/// The names in an object, sorted.
fn names(value: &Value) -> String {
    let mut names: Vec<_> = value.as_object().unwrap_or_else(|| panic!("{value}")).keys().cloned().collect();
    names.sort();
    names.join(" ")
}

/// The objects of the JSON-RPC test cases of ethereum/execution-apis (the names of the fields in the cases that are named here). Their
/// values depend on a chain of their own, with blocks of proof of work, which no chain of Assay can have.
#[tokio::test]
async fn objects_have_the_fields_of_the_cases_of_execution_apis() {
    let node = node();
    let created = node.send(&create(0)).await;
    node.mine();
    let contract = Wallet::new(0).address().create(0);
    let emitting = node.send(&call(1, contract, 42)).await;
    let legacy = node.send(&Wallet::new(1).legacy(0, Some(CHAIN))).await;
    let listed = node.send(&Wallet::new(2).with_list(0)).await;
    let delegating = node.send(&Wallet::new(3).delegating(0, &Wallet::new(4), contract)).await;
    node.mine();

    let common = "blockHash blockNumber blockTimestamp chainId from gas gasPrice hash input nonce r s to transactionIndex type v value";
    let with = |more: &str| {
        let mut names: Vec<_> = common.split(' ').chain(more.split_whitespace()).collect();
        names.sort_unstable();
        names.join(" ")
    };
    let fees = "maxFeePerGas maxPriorityFeePerGas";
    for (case, hash, expected) in [
        ("get-legacy-tx", &legacy, with("")),
        ("get-legacy-create", &created, with(&format!("accessList yParity {fees}"))),
        ("get-access-list", &listed, with("accessList yParity")),
        ("get-dynamic-fee", &emitting, with(&format!("accessList yParity {fees}"))),
        ("get-setcode-tx", &delegating, with(&format!("accessList authorizationList yParity {fees}"))),
    ] {
        let found = node.ask("eth_getTransactionByHash", json!([hash])).await;
        assert_eq!(names(&found), expected, "eth_getTransactionByHash/{case}");
    }
    let delegated = node.ask("eth_getTransactionByHash", json!([delegating])).await;
    assert_eq!(names(&delegated["authorizationList"][0]), "address chainId nonce r s yParity");

    let receipt = "blockHash blockNumber contractAddress cumulativeGasUsed effectiveGasPrice from gasUsed logs logsBloom status to \
                   transactionHash transactionIndex type";
    let log = "address blockHash blockNumber blockTimestamp data logIndex removed topics transactionHash transactionIndex";
    for hash in [&created, &emitting, &legacy, &listed, &delegating] {
        let found = node.ask("eth_getTransactionReceipt", json!([hash])).await;
        assert_eq!(
            names(&found),
            receipt,
            "eth_getTransactionReceipt/get-legacy-contract and get-dynamic-fee"
        );
    }
    let logs = node.ask("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest"}])).await;
    assert_eq!(names(&logs[0]), log, "eth_getLogs/filter-with-blockHash");

    let header = "baseFeePerGas blobGasUsed difficulty excessBlobGas extraData gasLimit gasUsed hash logsBloom miner mixHash nonce \
                  number parentBeaconBlockRoot parentHash receiptsRoot requestsHash sha3Uncles size stateRoot timestamp transactions \
                  transactionsRoot uncles withdrawals withdrawalsRoot";
    let block = node.ask("eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!(names(&block), header, "eth_getBlockByNumber/get-block-prague-fork");
    assert_eq!(
        node.ask("eth_getBlockByNumber", json!(["0x3e8", true])).await,
        Value::Null,
        "get-block-notfound"
    );
    let none = json!([format!("0x{:064x}", 0xdead_beef_u32)]);
    for method in ["eth_getBlockReceipts", "eth_getTransactionByHash", "eth_getTransactionReceipt"] {
        assert_eq!(node.ask(method, none.clone()).await, Value::Null, "{method}: not found");
    }
    // eth_getBlock*/get-genesis and debug_getRaw*: what is raw has the hash.
    let raw = |method: &'static str| node.ask(method, json!(["latest"]));
    let bytes = hex::decode(raw("debug_getRawHeader").await.as_str().unwrap()).unwrap();
    assert_eq!(block["hash"], json!(keccak256(&bytes).to_string()));
    let bytes = hex::decode(raw("debug_getRawBlock").await.as_str().unwrap()).unwrap();
    assert_eq!(block["hash"], json!(Block::decode(&bytes).unwrap().hash().to_string()));
    assert_eq!(block["size"], json!(format!("{:#x}", bytes.len())));

    let proof = node.ask("eth_getProof", json!([contract.to_string(), ["0x01"], "latest"])).await;
    let fields = "accountProof address balance codeHash nonce storageHash storageProof";
    assert_eq!(names(&proof), fields, "eth_getProof/get-account-proof-with-storage");
    assert_eq!(names(&proof["storageProof"][0]), "key proof value");
    assert_eq!(proof["storageProof"][0]["key"], "0x01", "as it was asked");
    let history = node.ask("eth_feeHistory", json!(["0x1", "0x2", [95, 99]])).await;
    for (name, count) in [("reward", 1), ("baseFeePerGas", 2), ("gasUsedRatio", 1)] {
        assert_eq!(history[name].as_array().map(Vec::len), Some(count), "eth_feeHistory/fee-history: {name}");
    }
    let frame = node.ask("debug_traceTransaction", json!([legacy, {"tracer": "callTracer"}])).await;
    assert_eq!(
        names(&frame),
        "from gas gasUsed input to type value",
        "debug_traceTransaction/calltracer-simple-transfer"
    );
    let steps = node.ask("debug_traceTransaction", json!([legacy])).await;
    let empty = json!({"gas": 21_000, "failed": false, "returnValue": "0x", "structLogs": []});
    assert_eq!(steps, empty, "debug_traceTransaction/trace-legacy-transfer");
    // debug_traceCall, debug_traceBlockByNumber and -ByHash: what debug_traceTransaction gives, named.
    let calls = json!({"tracer": "callTracer"});
    let number = node.ask("debug_traceBlockByNumber", json!(["0x2", calls])).await;
    assert_eq!(number.as_array().map(Vec::len), Some(4));
    assert_eq!(number, node.ask("debug_traceBlockByHash", json!([block["hash"], calls])).await);
    for (one, hash) in number.as_array().unwrap().iter().zip([&emitting, &legacy, &listed, &delegating]) {
        assert_eq!(names(one), "result txHash");
        let hash =
            if node.ask("eth_getTransactionByHash", json!([one["txHash"]])).await["hash"] == json!(hash) {
                json!(hash)
            } else {
                one["txHash"].clone()
            };
        assert_eq!(one["result"], node.ask("debug_traceTransaction", json!([hash, calls])).await);
    }
    let all = node.ask("debug_traceBlockByNumber", json!(["0x2"])).await;
    let traced = node.ask("debug_traceTransaction", json!([all[0]["txHash"]])).await;
    assert_eq!(all[0]["result"], traced);
    let call =
        json!({"from": Wallet::new(0).address().to_string(), "to": contract.to_string(), "input": word(5)});
    let found = node.ask("debug_traceCall", json!([call, "latest", calls])).await;
    assert_eq!(names(&found), "from gas gasUsed input output to type value");
    assert_eq!(found["output"], json!(word(5)));
    let steps = node.ask("debug_traceCall", json!([call, "latest", {"disableStack": true}])).await;
    assert_eq!(names(&steps), "failed gas returnValue structLogs");
    assert_eq!(names(&steps["structLogs"][0]), "depth gas gasCost op pc");
    let over = json!({"stateOverrides": {contract.to_string(): {"code": "0x425f5260205ff3"}}, "blockOverrides": {"time": "0x7"}});
    assert_eq!(
        node.ask("debug_traceCall", json!([call, "latest", over])).await["returnValue"],
        json!(word(7))
    );

    // eth_createAccessList/create-al-contract, create-al-simple-transfer and create-al-abi-revert.
    let list = node.ask("eth_createAccessList", json!([call, "latest"])).await;
    assert_eq!(names(&list), "accessList gasUsed");
    let slots = json!([{"address": contract.to_string().to_lowercase(), "storageKeys": [word(0)]}]);
    assert_eq!(list["accessList"], slots);
    let simple =
        json!([{"from": Wallet::new(0).address().to_string(), "to": Address::repeat_byte(7).to_string()}]);
    let simple = node.ask("eth_createAccessList", simple).await;
    assert_eq!(simple, json!({"accessList": [], "gasUsed": "0x5208"}));
    let failing =
        node.ask("eth_createAccessList", json!([{"to": contract.to_string(), "input": word(0)}])).await;
    assert_eq!(names(&failing), "accessList error gasUsed");

    // Block overrides: NUMBER, TIMESTAMP, COINBASE, PREVRANDAO, GASLIMIT and BASEFEE of a block that is assumed.
    for (opcode, name, given) in [
        ("43", "number", word(77)),
        ("42", "time", word(78)),
        ("41", "feeRecipient", format!("0x{:0>40}", "4f")),
        ("44", "prevRandao", word(80)),
        ("45", "gasLimit", word(60_000_000)),
        ("48", "baseFeePerGas", word(3)),
    ] {
        let over = json!({contract.to_string(): {"code": format!("0x{opcode}5f5260205ff3")}});
        let params = json!([{"to": contract.to_string()}, "latest", over, {name: given}]);
        let expected = format!("0x{:0>64}", given.trim_start_matches("0x"));
        assert_eq!(node.ask("eth_call", params.clone()).await, expected, "{name}");
        node.ask("eth_estimateGas", params).await;
    }
    // eth_call/call-omitted-block and call-revert-abi-error.
    let data = |value: u64| json!([{"to": contract.to_string(), "input": word(value)}]);
    assert_eq!(node.ask("eth_call", data(5)).await, word(5));
    assert_eq!(names(&node.raw("eth_call", data(0)).await["error"]), "code data message");
}

#[tokio::test]
async fn old_states_are_gone_and_blocks_are_not() {
    let node = node();
    for _ in 0..300 {
        node.mine();
    }
    let who = Wallet::new(0).address().to_string();
    assert!(node.fail("eth_getBalance", json!([who, "0x1"])).await.1.contains("missing trie node"));
    assert_eq!(node.ask("eth_getBlockByNumber", json!(["0x1", false])).await["number"], "0x1");
    node.ask("eth_getBalance", json!([who, "0x64"])).await;
}

fn created_by(seed: u8) -> Address {
    Wallet::new(seed).address()
}

#[test]
fn a_restart_finds_everything_and_another_chain_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain.redb");
    let open = |genesis: &Genesis| {
        Chain::open(genesis, PoolLimits::default(), |first| {
            History::open(&path, Retention { blocks: None }, first)
        })
    };
    let contract = Wallet::new(0).address().create(0);
    let root = {
        let chain = Arc::new(open(&genesis()).unwrap());
        let node = Node { methods: methods(chain.clone()), chain };
        for bytes in [create(0), call(1, contract, 7), Wallet::new(1).dynamic(|_| {})] {
            node.chain.add(Transaction::decode(&bytes).unwrap(), Origin::Local).unwrap();
            node.mine();
        }
        let (kept, known) = (node.chain.history().state().unwrap(), node.chain.head());
        for address in
            [created_by(0), created_by(1), Address::repeat_byte(0xfe), Address::repeat_byte(0xbb), contract]
        {
            assert_eq!(kept.account(&address), known.state.account(&address), "{address}");
        }
        known.block.header.state_root
    };
    let chain = open(&genesis()).unwrap();
    let head = chain.head();
    assert_eq!((head.block.header.number, head.state.root()), (3, root));
    assert_eq!(head.state.account(&contract).unwrap().slot(&U256::ZERO), U256::from(7));
    // It goes on from there, and a finalized block that comes again changes nothing.
    let block = chain.propose(&head.block.hash(), at(1_800_000_100, Address::ZERO)).unwrap();
    chain.finalize(&block).unwrap();
    chain.finalize(&block).unwrap();
    let rival = chain.propose(&head.block.hash(), at(1_800_000_200, Address::ZERO)).unwrap();
    assert!(matches!(chain.finalize(&rival), Err(ChainError::Conflict(4, ..))));
    drop(chain);
    let mut other = genesis();
    other.timestamp += 1;
    let error = open(&other).err().unwrap().to_string();
    assert!(error.contains("belongs to the chain with genesis"), "{error}");
}

/// JSON that looks like what methods take, and what nobody should send.
fn parameter() -> impl Strategy<Value = Value> {
    let words = [
        "latest",
        "finalized",
        "pending",
        "earliest",
        "0x0",
        "0x1",
        "0x",
        "0x00",
        "0x01",
        "0x8000000000000000",
        "0xffffffffffffffff",
        "0x10000000000000000",
        "0xzz",
        "",
        "callTracer",
        "0x2ca4a1a2d7a0b2f1a9b4b1f8e4c6c1d0f0f3f5b1",
        "0x000000000000000000000000000000000000a55b",
        "0x000000000000000000000000000000000000a55c",
    ];
    let hashes = prop_oneof![Just(0u8), Just(0xff), any::<u8>()]
        .prop_map(|byte| json!(format!("0x{}", hex::encode([byte; 32]))));
    let data = prop::collection::vec(any::<u8>(), 0..200)
        .prop_map(|bytes| json!(format!("0x{}", hex::encode(bytes))));
    let own = (0u8..8).prop_map(|seed| json!(Wallet::new(seed).address().to_string()));
    let leaf = prop_oneof![
        4 => prop::sample::select(words.to_vec()).prop_map(|word| json!(word)),
        1 => hashes,
        1 => data,
        2 => own,
        1 => prop_oneof![Just(Value::Null), any::<bool>().prop_map(|b| json!(b)), any::<i64>().prop_map(|n| json!(n)), any::<f64>().prop_map(|n| json!(n))],
        1 => any::<String>().prop_map(|text| json!(text)),
    ];
    let keys = [
        "from",
        "to",
        "data",
        "input",
        "value",
        "gas",
        "gasPrice",
        "maxFeePerGas",
        "maxPriorityFeePerGas",
        "nonce",
        "type",
        "chainId",
        "accessList",
        "authorizationList",
        "fromBlock",
        "toBlock",
        "blockHash",
        "blockNumber",
        "address",
        "topics",
        "balance",
        "code",
        "state",
        "stateDiff",
        "storageKeys",
        "tracer",
        "tracerConfig",
        "onlyTopCall",
        "number",
        "time",
        "baseFeePerGas",
        "feeRecipient",
        "stateOverrides",
        "blockOverrides",
        "requireCanonical",
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        let key = prop::sample::select(keys.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(key, inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Whatever is asked with whatever parameters: a result or an error with a code and a sentence, and the chain is as it was.
    #[test]
    fn every_request_has_an_answer(at: prop::sample::Index, parameters in prop::collection::vec(parameter(), 0..5)) {
        static NODE: std::sync::OnceLock<(Node, tokio::runtime::Runtime)> = std::sync::OnceLock::new();
        let (node, runtime) = NODE.get_or_init(|| {
            let node = node();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(node.send(&create(0)));
            node.mine();
            (node, runtime)
        });
        // A subscription's answers come by another way.
        let names: Vec<_> = node.methods.method_names().filter(|name| !name.contains("subscribe")).collect();
        let method = at.get(&names);
        let answer = runtime.block_on(node.raw(method, json!(parameters)));
        match answer.get("error") {
            None => prop_assert!(answer.get("result").is_some(), "{method}: {answer}"),
            Some(error) => {
                prop_assert!(error["code"].is_i64() && error["message"].as_str().is_some_and(|said| !said.is_empty()), "{method}: {answer}");
                let said = error["message"].as_str().unwrap_or_default();
                prop_assert!(!said.contains("panicked"), "{method}: {answer}");
            }
        }
        prop_assert_eq!(node.chain.head().block.header.number, 1);
    }
}
