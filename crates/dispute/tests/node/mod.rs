//! A node of one client: the ledger behind as much of Ethereum's JSON-RPC as a dispute needs. Each transaction is a block of its own, and
//! time passes when a test says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use assay_ledger::types::{Address, Bytes, U256, hex};
use assay_ledger::{
    Attributes, Genesis, Header, Message, Overrides, Rules, State, Transaction, TxReceipt as _, build,
    simulate,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What a chain has.
struct Inner {
    rules: Rules,
    header: Header,
    state: State,
    /// Seconds that pass before the next block.
    gap: u64,
    transactions: HashMap<String, (Value, Value)>,
    logs: Vec<(u64, Value)>,
}

/// A node.
#[derive(Clone)]
pub(crate) struct Node(Arc<Mutex<Inner>>);

fn text(bytes: impl AsRef<[u8]>) -> Value {
    json!(hex::encode_prefixed(bytes))
}

impl Node {
    /// Starts a chain; where it answers.
    pub(crate) async fn start(genesis: &Genesis) -> (Node, String) {
        let (rules, first) = genesis.execute().unwrap();
        let header = (*first.block.header).clone();
        let (transactions, logs) = (HashMap::new(), Vec::new());
        let node = Node(Arc::new(Mutex::new(Inner {
            rules,
            header,
            state: first.state,
            gap: 1,
            transactions,
            logs,
        })));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let own = node.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(own.clone().serve(stream));
            }
        });
        (node, url)
    }

    /// The time of the latest block.
    pub(crate) fn time(&self) -> u64 {
        self.0.lock().unwrap().header.timestamp
    }

    /// Lets time pass, in an empty block.
    pub(crate) fn pass(&self, seconds: u64) {
        let mut inner = self.0.lock().unwrap();
        inner.gap = seconds;
        inner.block(None);
        inner.gap = 1;
    }

    async fn serve(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let request: Value = serde_json::from_slice(&body).unwrap();
            let method = request["method"].as_str().unwrap();
            let mut answer = json!({"jsonrpc": "2.0", "id": request["id"]});
            match self.0.lock().unwrap().answer(method, &request["params"]) {
                Ok(result) => answer["result"] = result,
                Err(error) => answer["error"] = error,
            }
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            if stream.write_all(format!("{head}{answer}").as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    fn block(&mut self, transaction: Option<Transaction>) {
        let attributes = Attributes { timestamp: self.header.timestamp + self.gap, ..Attributes::default() };
        let hash = transaction.as_ref().map(|transaction| text(transaction.hash()));
        let called =
            transaction.as_ref().map(|t| json!({"from": t.sender().to_string(), "input": text(t.input())}));
        let done = build(&self.rules, &self.header, &self.state, &attributes, transaction);
        let number = done.block.header.number;
        if let (Some(hash), Some(called)) = (hash, called) {
            let receipt = done.receipts.first().expect("the transaction is in the block");
            let mut found = Vec::new();
            for log in receipt.logs() {
                let topics: Vec<_> = log.data.topics().iter().map(text).collect();
                found.push(json!({
                    "address": log.address.to_string(), "topics": topics, "data": text(&log.data.data),
                    "transactionHash": hash, "blockNumber": format!("{number:#x}"),
                }));
            }
            let summary = json!({
                "status": if receipt.status() { "0x1" } else { "0x0" }, "blockNumber": format!("{number:#x}"),
                "gasUsed": format!("{:#x}", done.block.header.gas_used), "logs": found,
            });
            self.logs.extend(found.into_iter().map(|log| (number, log)));
            self.transactions.insert(hash.as_str().unwrap().to_owned(), (called, summary));
        }
        self.header = (*done.block.header).clone();
        self.state = done.state;
    }

    fn call(&self, params: &Value) -> Result<(Value, u64), Value> {
        let address = |name: &str| params[0][name].as_str().map(|text| text.parse::<Address>().unwrap());
        let message = Message {
            from: address("from").unwrap_or_default(),
            to: address("to"),
            gas: 12_000_000,
            max_fee: 0,
            tip: None,
            value: U256::ZERO,
            data: Bytes::from(hex::decode(params[0]["data"].as_str().unwrap()).unwrap()),
            access_list: Vec::new(),
        };
        let outcome = simulate(&self.rules, &self.header, &self.state, &Overrides::default(), &message);
        match outcome.failure {
            None => Ok((text(&outcome.output), outcome.gas_used)),
            Some(failure) => {
                Err(json!({"code": 3, "message": format!("{failure:?}"), "data": text(&outcome.output)}))
            }
        }
    }

    fn answer(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        let quantity = |value: &Value| {
            let digits = value.as_str().unwrap().strip_prefix("0x").unwrap();
            u64::from_str_radix(digits, 16).unwrap()
        };
        let one = |params: &Value| params[0].as_str().unwrap().to_owned();
        Ok(match method {
            "eth_chainId" => json!(format!("{:#x}", self.rules.chain_id)),
            "eth_blockNumber" => json!(format!("{:#x}", self.header.number)),
            "eth_maxPriorityFeePerGas" => json!("0x1"),
            "eth_getBlockByNumber" => json!({
                "timestamp": format!("{:#x}", self.header.timestamp),
                "baseFeePerGas": format!("{:#x}", self.header.base_fee_per_gas.unwrap_or_default()),
            }),
            "eth_getTransactionCount" => {
                json!(format!("{:#x}", self.state.nonce(&one(params).parse().unwrap())))
            }
            "eth_call" => self.call(params)?.0,
            // Calls within a call keep a part of the gas for themselves.
            "eth_estimateGas" => json!(format!("{:#x}", self.call(params)?.1 * 3 / 2 + 200_000)),
            "eth_sendRawTransaction" => {
                let transaction = Transaction::decode(&hex::decode(one(params)).unwrap()).unwrap();
                let hash = text(transaction.hash());
                self.block(Some(transaction));
                hash
            }
            "eth_getTransactionByHash" => self.transactions[&one(params)].0.clone(),
            "eth_getTransactionReceipt" => self.transactions[&one(params)].1.clone(),
            "eth_getLogs" => {
                let wanted = &params[0];
                let blocks = quantity(&wanted["fromBlock"])..=quantity(&wanted["toBlock"]);
                let topics = wanted["topics"].as_array().unwrap();
                let fits = |log: &Value| {
                    log["address"] == wanted["address"]
                        && topics
                            .iter()
                            .enumerate()
                            .all(|(i, topic)| topic.is_null() || log["topics"][i] == *topic)
                };
                let found = self.logs.iter().filter(|(block, log)| blocks.contains(block) && fits(log));
                found.map(|(_, log)| log.clone()).collect()
            }
            other => return Err(json!({"code": -32601, "message": format!("no method {other}")})),
        })
    }
}
