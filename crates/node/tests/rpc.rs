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
    node_of(&genesis())
}

fn node_of(genesis: &Genesis) -> Node {
    let chain = Arc::new(Chain::open(genesis, PoolLimits::default(), History::in_memory).unwrap());
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

/// A node whose chain has the id and the gas limit of that of ethereum/execution-apis: what is simulated there is simulated here, so
/// transactions, receipts and their roots are the same.
fn like_theirs() -> Node {
    let mut genesis = genesis();
    (genesis.chain_id, genesis.gas_limit) = (0xc_72dd_9d5e_883e, 200_000_000);
    node_of(&genesis)
}

/// `0xc0…00`, `0xc1…00` and so on, as those cases have them.
fn c(digit: u8) -> String {
    format!("0xc{digit}{}", "00".repeat(19))
}

fn simulation(blocks: Value, options: Value) -> Value {
    let mut payload = options;
    payload["blockStateCalls"] = blocks;
    json!([payload, "latest"])
}

#[tokio::test]
async fn simulations_are_those_of_the_cases_of_execution_apis() {
    let node = like_theirs();
    let simulate =
        async |blocks: Value, options: Value| node.ask("eth_simulateV1", simulation(blocks, options)).await;

    // ethSimulate-simple-validation-fulltx, without validation, with which a transaction has no more than 2^24 gas here.
    let rich = json!({c(0): {"balance": "0xe8d4a51000"}});
    let calls = json!([
        {"from": c(0), "to": c(1), "maxFeePerGas": "0x10", "value": "0x2540be400"},
        {"from": c(1), "to": c(2), "maxFeePerGas": "0x10", "value": "0x3e8"},
    ]);
    let blocks =
        json!([{"blockOverrides": {"baseFeePerGas": "0xf"}, "stateOverrides": rich, "calls": calls}]);
    let found = simulate(blocks.clone(), json!({"returnFullTransactions": true})).await;
    let (block, plain) = (
        &found[0],
        json!({"returnData": "0x", "logs": [], "gasUsed": "0x5208", "maxUsedGas": "0x5208", "status": "0x1"}),
    );
    assert_eq!(block["calls"], json!([plain, plain]));
    assert_eq!(
        (&block["transactionsRoot"], &block["receiptsRoot"], &block["gasUsed"], &block["baseFeePerGas"]),
        (
            &json!("0x9e80508f974bbf713b286fe5a4d0fae2f54f17e33b742176cc4c5bb7e0942762"),
            &json!("0x75308898d571eafb5cd8cde8278bf5b3d13c5f6ec074926de3bb895b519264e1"),
            &json!("0xa410"),
            &json!("0xf")
        )
    );
    let theirs = "accessList blockHash blockNumber blockTimestamp chainId from gas gasPrice hash input maxFeePerGas maxPriorityFeePerGas nonce r s \
                  to transactionIndex type v value yParity";
    assert_eq!(names(&block["transactions"][1]), theirs);
    let expected = json!({
        "from": c(1), "gas": "0x2fa9e78", "gasPrice": "0xf", "maxFeePerGas": "0x10", "maxPriorityFeePerGas": "0x0", "nonce": "0x0", "r": "0x0",
        "hash": "0x5c78719d6ce3bf5b515e9fc3a41ab755c007645928bf35eba1a318721b774595", "type": "0x2", "blockHash": block["hash"],
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&block["transactions"][1][name], value, "{name}");
    }
    let theirs = "baseFeePerGas blobGasUsed calls difficulty excessBlobGas extraData gasLimit gasUsed hash logsBloom miner mixHash nonce number \
                  parentBeaconBlockRoot parentHash receiptsRoot requestsHash sha3Uncles size stateRoot timestamp transactions transactionsRoot \
                  uncles withdrawals withdrawalsRoot";
    assert_eq!(names(block), theirs);
    let head = node.ask("eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!((&block["parentHash"], &block["number"]), (&head["hash"], &json!("0x1")));
    assert_eq!(block["mixHash"], json!(word(0)));

    let valid = simulate(blocks, json!({"validation": true})).await;
    assert_eq!((&valid[0]["calls"], &valid[0]["receiptsRoot"]), (&block["calls"], &block["receiptsRoot"]));

    // ethSimulate-eth-send-should-produce-logs, and -by-default
    let blocks = json!([{"stateOverrides": {c(0): {"balance": "0x7d0"}}, "calls": [{"from": c(0), "to": c(1), "value": "0x3e8"}]}]);
    let silent = simulate(blocks.clone(), json!({})).await;
    assert_eq!(silent[0]["calls"], json!([plain]));
    let found = simulate(blocks, json!({"traceTransfers": true})).await;
    assert_eq!(
        (&found[0]["hash"], &found[0]["receiptsRoot"]),
        (&silent[0]["hash"], &json!("0xf78dfb743fbd92ade140711c8bbc542b5e307f0ab7984eff35d751969fe57efa"))
    );
    assert_eq!(
        found[0]["transactions"],
        json!(["0xf1c5abb08809ef760f87aeabe7a87284c60797192dab6d2f0d26c27c9c038e9d"])
    );
    let log = &found[0]["calls"][0]["logs"][0];
    let padded = |address: &str| format!("0x{:0>64}", &address[2..]);
    let topics = json!([
        "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
        padded(&c(0)),
        padded(&c(1))
    ]);
    assert_eq!(
        (&log["address"], &log["topics"], &log["data"]),
        (&json!(format!("0x{}", "ee".repeat(20))), &topics, &json!(word(1_000)))
    );
    assert_eq!(
        (&log["transactionHash"], &log["blockHash"]),
        (&found[0]["transactions"][0], &found[0]["hash"])
    );

    // ethSimulate-self-destructive-contract-produces-logs (with its contract), where address 0 is there already.
    let nobody = format!("0x{}", "00".repeat(20));
    let code = "0x6080604052348015600f57600080fd5b506004361060285760003560e01c806383197ef014602d575b600080fd5b60336035565b005b600073ffffffffffffffffffff\
                ffffffffffffffffffff16fffea26469706673582212208e566fde20a17fff9658b9b1db37e27876fd8934ccf9b2aa308cabd37698681f64736f6c63430008120033";
    let blocks = json!([{"stateOverrides": {c(2): {"code": code, "balance": "0x1e8480"}, nobody: {"balance": "0x1"}}, "calls": [{"from": c(0), "to": c(2), "input": "0x83197ef0"}]}]);
    let found = simulate(blocks, json!({"traceTransfers": true})).await;
    assert_eq!(
        (&found[0]["calls"][0]["gasUsed"], &found[0]["receiptsRoot"]),
        (&json!("0x664a"), &json!("0xe53cac8ba7c4639309c7959eb884c607e179624f118940ac558ff2cdbf4df3aa"))
    );
    assert_eq!(
        found[0]["transactions"],
        json!(["0x601cd1b2f9161ebf790d5a555cdcf9620763b8d75469d8ca58432bcf6f1b6e23"])
    );
    assert_eq!(found[0]["calls"][0]["logs"][0]["topics"], json!([topics[0], padded(&c(2)), word(0)]));
    assert_eq!(found[0]["calls"][0]["logs"][0]["data"], json!(word(2_000_000)));

    // ethSimulate-logs: its gas, its bloom's bits as the root of receipts has them.
    let code = "0x7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff80600080a1600080f3";
    let input = format!("0x6057361d{}", &word(5)[2..]);
    let blocks = json!([{"stateOverrides": {c(2): {"code": code}}, "calls": [{"from": c(0), "to": c(2), "input": input}]}]);
    let found = simulate(blocks, json!({})).await;
    assert_eq!(
        (&found[0]["gasUsed"], &found[0]["receiptsRoot"]),
        (&json!("0x55d4"), &json!("0x4287aeb00e17dccbeb1e50061a9ce4bf01cc943641c2583aef0441a7a5e471cd"))
    );

    // ethSimulate-transaction-too-high-nonce: without validation no nonce is wrong.
    let found = simulate(json!([{"calls": [{"from": c(1), "to": c(1), "nonce": "0x64"}]}]), json!({})).await;
    assert_eq!(
        found[0]["transactions"],
        json!(["0x5502e2f81918bf15546115259aa912e0af477580be84d8f09be4bb8dd2d5667c"])
    );

    // ethSimulate-run-out-of-gas-in-block-38015: a block's limit holds for those after it, and the last call gets what is left.
    let code = "0x608060405234801561001057600080fd5b506004361061002b5760003560e01c8063815b8ab414610030575b600080fd5b61004a600480360381019061004591906100b6\
                565b61004c565b005b60005a90505b60011561007657815a826100669190610112565b106100715750610078565b610052565b505b50565b600080fd5b6000819050919050565b\
                61009381610080565b811461009e57600080fd5b50565b6000813590506100b08161008a565b92915050565b6000602082840312156100cc576100cb61007b565b5b60006100da84\
                8285016100a1565b91505092915050565b7f4e487b7100000000000000000000000000000000000000000000000000000000600052601160045260246000fd5b600061011d82610080\
                565b915061012883610080565b92508282039050818111156101405761013f6100e3565b5b9291505056fea2646970667358221220a659ba4db729a6ee4db02fcc5c1118db53246b0e\
                5e686534fc9add6f2e93faec64736f6c63430008120033";
    let input = format!("0x815b8ab4{}", &word(1_000_000)[2..]);
    let spend = json!({"from": c(0), "to": c(2), "input": input});
    let blocks = json!([
        {"blockOverrides": {"gasLimit": "0x16e360"}, "stateOverrides": {c(0): {"balance": "0x1e8480"}, c(2): {"code": code}}},
        {"calls": [spend, spend]},
    ]);
    let found = simulate(blocks, json!({})).await;
    assert_eq!(
        (&found[1]["gasUsed"], &found[1]["gasLimit"], &found[1]["parentHash"]),
        (&json!("0x16e360"), &json!("0x16e360"), &found[0]["hash"])
    );
    let failed = json!({
        "returnData": "0x", "logs": [], "gasUsed": "0x74b21", "maxUsedGas": "0x74b21", "status": "0x0", "error": {"code": -32015, "message": "out of gas"},
    });
    assert_eq!((&found[1]["calls"][0]["gasUsed"], &found[1]["calls"][1]), (&json!("0xf983f"), &failed));
    let hashes = [
        "0x02332c506791156b28c7f5682a9e07ffe9600ee55cc411ee62c6f1344ceec51c",
        "0xe25438525e88d23b473ea69cc32a0001516836befab3cf98205fcbb3688bcb1f",
    ];
    assert_eq!(
        (&found[1]["transactions"], &found[1]["receiptsRoot"]),
        (&json!(hashes), &json!("0xde8fb4841c98c24eca61ebcf6e28621506da5add36752582b8e6c40a4080aacd"))
    );

    // ethSimulate-transfer-over-BlockStateCalls: money that came in one block is spent in the next.
    let send = |from: u8, to: u8, value: &str| json!({"from": c(from), "to": c(to), "value": value});
    let blocks = json!([
        {"stateOverrides": {c(0): {"balance": "0x1388"}}, "calls": [send(0, 1, "0x7d0"), send(0, 3, "0x7d0")]},
        {"stateOverrides": {c(3): {"balance": "0x1388"}}, "calls": [send(1, 2, "0x3e8"), send(3, 2, "0x3e8")]},
    ]);
    let found = simulate(blocks, json!({})).await;
    assert_eq!(found[1]["calls"], json!([plain, plain]));
    // Nothing of it stays.
    assert_eq!(node.ask("eth_getBalance", json!([c(3), "latest"])).await, "0x0");
    assert_eq!(node.ask("eth_blockNumber", json!([])).await, "0x0");
}

#[tokio::test]
async fn simulations_see_their_blocks_and_what_is_wrong_has_its_code() {
    let node = node();
    let simulate =
        async |blocks: Value, options: Value| node.ask("eth_simulateV1", simulation(blocks, options)).await;
    node.send(&create(0)).await;
    node.mine();
    let contract = Wallet::new(0).address().create(0).to_string();
    // A number that is left out gives empty blocks, whose hashes BLOCKHASH finds; storage of the chain is read, written, and read again.
    let hash_of = json!({c(2): {"code": "0x5f35405f5260205ff3"}});
    let ask = |number: u64| json!({"to": c(2), "input": word(number)});
    let blocks = json!([
        {"stateOverrides": hash_of, "calls": [{"to": contract, "input": word(9)}]},
        {"blockOverrides": {"number": "0x5", "time": "0xffffffffff", "feeRecipient": c(9), "prevRandao": word(3)}, "calls": [ask(1), ask(2), ask(4), ask(5)]},
    ]);
    let found = simulate(blocks, json!({})).await;
    let numbers: Vec<_> = found.as_array().unwrap().iter().map(|block| block["number"].clone()).collect();
    assert_eq!(numbers, ["0x2", "0x3", "0x4", "0x5"]);
    let head = node.ask("eth_getBlockByNumber", json!(["latest", false])).await;
    let hashes = [&head["hash"], &found[0]["hash"], &found[2]["hash"], &json!(word(0))];
    for (call, hash) in found[3]["calls"].as_array().unwrap().iter().zip(hashes) {
        assert_eq!(&call["returnData"], hash);
    }
    assert_eq!(
        (&found[0]["calls"][0]["returnData"], &found[0]["calls"][0]["logs"][0]["data"]),
        (&json!(word(9)), &json!(word(9)))
    );
    assert_eq!(
        (&found[3]["miner"], &found[3]["mixHash"], &found[3]["timestamp"]),
        (&json!(c(9)), &json!(word(3)), &json!("0xffffffffff"))
    );
    assert_eq!(found[1]["miner"], head["miner"]);
    assert_ne!(found[0]["stateRoot"], head["stateRoot"]);
    let failing = simulate(json!([{"calls": [{"to": contract, "input": word(0)}, {"to": contract, "input": word(0), "gas": "0x5350"}]}]), json!({})).await;
    let error = json!({"code": 3, "message": "execution reverted", "data": word(0)});
    let calls = &failing[0]["calls"];
    assert_eq!(
        (&calls[0]["error"], &calls[0]["returnData"], &calls[0]["status"]),
        (&error, &json!("0x"), &json!("0x0"))
    );
    assert_eq!(calls[1]["error"]["code"], -32015);

    // Transfers in the order in which they happen; what reverts has sent nothing. A call that sends 5 on and creates with 3, then logs; and one
    // that does so and reverts.
    let forward = "5f5f5f5f600573c2000000000000000000000000000000000000005af1505f5f6003f0505f5fa0";
    let over = json!({
        c(0): {"balance": "0x64"}, c(1): {"code": format!("0x{forward}"), "balance": "0x64"},
        c(3): {"code": format!("0x{forward}5f5ffd"), "balance": "0x64"},
    });
    let blocks = json!([{"stateOverrides": over, "calls": [{"from": c(0), "to": c(1), "value": "0x7"}, {"from": c(0), "to": c(3), "value": "0x7"}]}]);
    let found = simulate(blocks, json!({"traceTransfers": true})).await;
    let logs = found[0]["calls"][0]["logs"].as_array().unwrap();
    let created = c(1).parse::<Address>().unwrap().create(0).to_string().to_lowercase();
    let seen: Vec<_> = logs
        .iter()
        .map(|log| {
            (
                log["topics"][2].as_str().map(|topic| format!("0x{}", &topic[26..])),
                log["data"].clone(),
                log["logIndex"].clone(),
            )
        })
        .collect();
    let at = |to: &str, value: u64, index: &str| (Some(to.to_owned()), json!(word(value)), json!(index));
    assert_eq!(
        seen,
        [at(&c(1), 7, "0x0"), at(&c(2), 5, "0x1"), at(&created, 3, "0x2"), (None, json!("0x"), json!("0x3"))]
    );
    assert_eq!((&found[0]["calls"][1]["logs"], &found[0]["calls"][1]["status"]), (&json!([]), &json!("0x0")));

    // What cannot be has the code of ethereum/execution-apis.
    let wallet = |seed: u8| Wallet::new(seed).address().to_string();
    let call = |fields: Value| {
        let mut call = json!({"from": wallet(0), "to": c(1), "maxFeePerGas": "0x2540be400", "gas": "0x5208"});
        for (name, value) in fields.as_object().unwrap() {
            call[name] = value.clone();
        }
        json!([{"calls": [call]}])
    };
    let long = format!("0x{}", "00".repeat(49_153));
    let many: Vec<_> = (0..257).map(|_| json!({})).collect();
    let loads = json!([{"blockOverrides": {"gasLimit": "0xffffffff"}, "stateOverrides": {c(2): {"code": "0x620f42405ff3"}}, "calls": vec![json!({"to": c(2)}); 20]}]);
    let hungry = json!([{"blockOverrides": {"gasLimit": "0xffffffff"}, "stateOverrides": {c(2): {"code": "0x5b5f56"}}, "calls": [{"to": c(2)}, {"to": c(2)}]}]);
    for (blocks, validation, code, words) in [
        (json!([]), false, -32602, "empty input"),
        (json!(many), false, -38026, "too many blocks"),
        (json!([{"blockOverrides": {"number": "0x102"}}]), false, -38026, "too many blocks"),
        (json!([{"blockOverrides": {"number": "0xffffffffffffffff"}}]), false, -38026, "too many blocks"),
        (
            json!([{"blockOverrides": {"number": "0x1"}}]),
            false,
            -38020,
            "block numbers must be in order: 1 <= 1",
        ),
        (
            json!([{"blockOverrides": {"time": "0x7000"}}]),
            false,
            -38021,
            "block timestamps must be in order: 28672 <= ",
        ),
        (json!([{"blockOverrides": {"time": "0xffffffffffffffff"}}, {}]), false, -38021, "must be in order"),
        (json!([{"blockOverrides": {"beaconRoot": word(1)}}]), false, -32602, "is not known"),
        (
            json!([{"stateOverrides": {c(0): {"movePrecompileToAddress": c(1)}}}]),
            false,
            -32602,
            "not supported",
        ),
        (
            call(json!({"from": c(0), "value": "0x1", "maxFeePerGas": "0x0"})),
            false,
            -38014,
            "insufficient funds for gas * price + value: have 0 want 1",
        ),
        (call(json!({"gas": "0x5207"})), false, -38013, "intrinsic gas too low: have 20999, want 21000"),
        (call(json!({"gas": "0x7270e00"})), false, -38015, "block gas limit reached: 0 >= 30000000"),
        (call(json!({"nonce": "0x0"})), true, -38010, "nonce too low: next nonce 1, tx nonce 0"),
        (call(json!({"nonce": "0x3"})), true, -38011, "nonce too high"),
        (call(json!({"maxFeePerGas": "0x1"})), true, -38012, "max fee per gas less than block base fee"),
        (call(json!({"maxFeePerGas": "0x0"})), true, -38012, "max fee per gas less than block base fee"),
        (call(json!({"from": contract, "nonce": "0x1"})), true, -38024, ""),
        (
            call(json!({"to": null, "input": long, "gas": "0xf42400"})),
            true,
            -38025,
            "max initcode size exceeded",
        ),
        (call(json!({"maxPriorityFeePerGas": "0x2540be401"})), true, -32602, "higher than max fee per gas"),
        (call(json!({"gas": "0x1000001"})), true, -32603, "too high"),
        (
            json!([{"blockOverrides": {"baseFeePerGas": "0x8000000000000000"}}, {}]),
            true,
            -32602,
            "baseFeePerGas must be at most 9223372036854775807",
        ),
        (hungry, false, -38026, "more than 50000000 gas"),
        (loads, false, -38026, "more than 16777216 bytes"),
    ] {
        let found =
            node.fail("eth_simulateV1", simulation(blocks.clone(), json!({"validation": validation}))).await;
        assert!(found.0 == code && found.1.contains(words), "{found:?} instead of {code}: {words}");
    }
    // With validation the fees are paid, and the next block has another base fee.
    let blocks = json!([{"calls": call(json!({}))[0]["calls"]}, {}]);
    let found = simulate(blocks, json!({"validation": true})).await;
    let fee =
        |block: &Value| u64::from_str_radix(&block["baseFeePerGas"].as_str().unwrap()[2..], 16).unwrap();
    assert!(fee(&found[0]) > 0 && fee(&found[1]) < fee(&found[0]), "{found}");
    let most = json!([{"blockOverrides": {"baseFeePerGas": "0x7fffffffffffffff"}}, {}]);
    let found = simulate(most, json!({"validation": true})).await;
    assert_eq!(fee(&found[1]), u64::MAX / 2 - u64::MAX / 16);
    let known = node.fail("eth_simulateV1", json!([{"blockStateCalls": [{}]}, "0x99"])).await;
    assert_eq!(known.1, "header not found");
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
        "blockStateCalls",
        "calls",
        "validation",
        "traceTransfers",
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
