//! A dispute as the chain has it.

use assay_ledger::types::{Address, B256, U256, hex};
use assay_receipt::Bytes32;
use assay_wallet::abi;
use assay_wallet::chain::Chain;
use assay_wallet::client::ClientError;
use assay_wallet::system::contract;
use serde_json::{Value, json};

use crate::DisputeError;

/// A node looks for logs in so many blocks at once.
const LOG_BLOCKS: u64 = 10_000;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nobody's: it is over, or there is none.
    Over,
    /// The worker's, to commit to a trace.
    Commit,
    /// The challenger's.
    Challenge,
    /// The worker's, to reveal.
    Reveal,
}

/// A dispute: what the contract keeps of it.
#[derive(Clone, Debug)]
pub struct State {
    /// Who says that the answer is not the model's.
    pub challenger: Address,
    /// Whose receipt it is about.
    pub worker: Address,
    /// The worker's operator.
    pub operator: Address,
    /// Whose turn it is.
    pub turn: Turn,
    /// When the side whose turn it is has lost, in seconds since 1970.
    pub deadline: u64,
    /// EIP-712 digest of the receipt.
    pub receipt: Bytes32,
    /// Root of the worker's trace; zero before it commits.
    pub root: Bytes32,
    /// Its length in bytes.
    pub size: u64,
    /// Height of the present node.
    pub level: usize,
    /// Its number on its level.
    pub index: u64,
    /// What the challenger put up, in 10^-18 OPG.
    pub challenger_bond: U256,
    /// What was taken of the operator's bond.
    pub worker_bond: U256,
}

fn number(value: &Value) -> U256 {
    abi::number(value).unwrap_or_default()
}

fn address(value: &Value) -> Address {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn hash(value: &Value) -> Bytes32 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Bytes32::ZERO)
}

impl State {
    /// Reads a dispute.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn read(chain: &Chain, id: u64) -> Result<State, ClientError> {
        let found = chain.view("Disputes", "disputeOf", &[json!(id)]).await?;
        Ok(State {
            challenger: address(&found["challenger"]),
            worker: address(&found["worker"]),
            operator: address(&found["operator"]),
            turn: match found["turn"].as_u64() {
                Some(1) => Turn::Commit,
                Some(2) => Turn::Challenge,
                Some(3) => Turn::Reveal,
                _ => Turn::Over,
            },
            deadline: number(&found["deadline"]).saturating_to(),
            receipt: hash(&found["receipt"]),
            root: hash(&found["root"]),
            size: number(&found["size"]).saturating_to(),
            level: number(&found["level"]).saturating_to(),
            index: number(&found["index"]).saturating_to(),
            challenger_bond: number(&found["challengerBond"]),
            worker_bond: number(&found["workerBond"]),
        })
    }
}

/// The time of the latest block, in seconds since 1970.
pub(crate) async fn time(chain: &Chain) -> Result<u64, ClientError> {
    let head = chain.client.request("eth_getBlockByNumber", json!(["latest", false])).await?;
    Ok(number(&head["timestamp"]).saturating_to())
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The challenger opened the dispute.
    Opened,
    /// The worker committed to a trace.
    Committed {
        /// Its root.
        root: Bytes32,
        /// Its length in bytes.
        size: u64,
    },
    /// The challenger descended to a node.
    Chosen {
        /// Its height.
        level: usize,
        /// Its number on its level.
        index: usize,
    },
    /// The worker revealed what is below a node.
    Revealed {
        /// The node's height, not 0.
        level: usize,
        /// Its number on its level.
        index: usize,
        /// The nodes.
        nodes: Vec<Bytes32>,
    },
    /// The worker revealed a tile.
    Published {
        /// The tile's number.
        index: usize,
        /// Its bytes.
        tile: Vec<u8>,
    },
    /// It ended, by an accusation or by silence.
    Ended {
        /// Who won.
        worker_won: bool,
        /// `refuted` or `silence`.
        how: String,
    },
}

/// One transaction of a dispute.
#[derive(Clone, Debug)]
pub struct Move {
    /// What it did.
    pub action: Action,
    /// Who sent it.
    pub by: Address,
    /// Gas that it used.
    pub gas: u64,
    /// Bytes of its input.
    pub bytes: usize,
    /// Its block.
    pub block: u64,
}

/// A dispute's moves, as far as they were read.
#[derive(Debug)]
pub struct Game {
    /// Number of the dispute.
    pub id: u64,
    /// All moves, the oldest first.
    pub moves: Vec<Move>,
    next_block: u64,
}

impl Game {
    /// A dispute whose opening is in block `from` or later.
    pub fn new(id: u64, from: u64) -> Game {
        Game { id, moves: Vec::new(), next_block: from }
    }

    /// Reads the moves that were made since.
    ///
    /// # Errors
    /// [`DisputeError::Chain`], [`DisputeError::Record`].
    pub async fn read(&mut self, chain: &Chain) -> Result<(), DisputeError> {
        let head = chain.head().await?;
        let address = chain.system.address("Disputes").map_err(ClientError::from)?.to_string();
        let topic = B256::from(U256::from(self.id)).to_string();
        while self.next_block <= head {
            let last = head.min(self.next_block + LOG_BLOCKS - 1);
            let filter = json!([{
                "fromBlock": format!("{:#x}", self.next_block), "toBlock": format!("{last:#x}"),
                "address": address, "topics": [Value::Null, topic],
            }]);
            let logs = chain.client.request("eth_getLogs", filter).await?;
            for log in logs.as_array().into_iter().flatten() {
                if let Some(made) = self.made(chain, log).await? {
                    self.moves.push(made);
                }
            }
            self.next_block = last + 1;
        }
        Ok(())
    }

    /// The move behind a log.
    async fn made(&self, chain: &Chain, log: &Value) -> Result<Option<Move>, DisputeError> {
        let record = |what| DisputeError::Record(self.id, what);
        let disputes = contract("Disputes").ok_or(record("this program has no contract Disputes"))?;
        let hash = json!([log["transactionHash"]]);
        let transaction = chain.client.request("eth_getTransactionByHash", hash.clone()).await?;
        let receipt = chain.client.request("eth_getTransactionReceipt", hash).await?;
        let input = hex::decode(transaction["input"].as_str().unwrap_or_default()).unwrap_or_default();
        let data = hex::decode(log["data"].as_str().unwrap_or_default()).unwrap_or_default();
        let fields = |event: &str| -> Result<Option<Value>, DisputeError> {
            let event = disputes.event(event).ok_or(record("an event is unknown"))?;
            if log["topics"][0] != abi::text(B256::from(event.hash())) {
                return Ok(None);
            }
            Ok(Some(event.output(&data).map_err(ClientError::from)?))
        };
        let place = |fields: &Value| {
            let part = |name: &str| number(&fields[name]).saturating_to::<usize>();
            (part("level"), part("index"))
        };
        let action = if fields("Opened")?.is_some() {
            Action::Opened
        } else if let Some(found) = fields("Committed")? {
            let size = number(&found["size"]).saturating_to();
            Action::Committed { root: self::hash(&found["root"]), size }
        } else if let Some(found) = fields("Chosen")? {
            let (level, index) = place(&found);
            Action::Chosen { level, index }
        } else if let Some(found) = fields("Revealed")? {
            let (level, index) = place(&found);
            let nodes = found["children"].as_array().into_iter().flatten().map(self::hash).collect();
            Action::Revealed { level, index, nodes }
        } else if let Some(found) = fields("TileRevealed")? {
            let tile = found["tile"].as_str().and_then(|text| hex::decode(text).ok());
            Action::Published { index: place(&found).1, tile: tile.ok_or(record("a tile has no bytes"))? }
        } else if let Some(found) = fields("Ended")? {
            let how = found["how"].as_str().unwrap_or_default().to_owned();
            Action::Ended { worker_won: found["workerWon"] == json!(true), how }
        } else {
            return Ok(None);
        };
        Ok(Some(Move {
            action,
            by: address(&transaction["from"]),
            gas: number(&receipt["gasUsed"]).saturating_to(),
            bytes: input.len(),
            block: number(&log["blockNumber"]).saturating_to(),
        }))
    }

    /// How it ended: whether the worker won, and by what.
    pub fn end(&self) -> Option<(bool, &str)> {
        self.moves.iter().find_map(|made| match &made.action {
            Action::Ended { worker_won, how } => Some((*worker_won, how.as_str())),
            _ => None,
        })
    }

    /// Gas and bytes of input of all moves.
    pub fn cost(&self) -> (u64, usize) {
        self.moves.iter().fold((0, 0), |(gas, bytes), made| (gas + made.gas, bytes + made.bytes))
    }
}
