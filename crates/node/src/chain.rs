//! The chain as this node knows it: the finalized head, blocks that may become final, the states after recent blocks, and the
//! pool. Consensus feeds it, JSON-RPC reads it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use assay_ledger::types::{B256, hex};
use assay_ledger::{
    Added, Attributes, BaseFeeParams, Block, BlockError, Committee, Executed, Genesis, GenesisError, Header,
    LEAST_GAS, Pool, PoolError, PoolLimits, Rules, State, Transaction, bring, build, verify,
};
use thiserror::Error;
use tokio::sync::{Notify, broadcast, watch};

use crate::history::{History, HistoryError, Stored};
use crate::sync::Progress;

/// For how many finalized blocks the states after them stay in memory. They share what did not change.
pub const RECENT_STATES: u64 = 256;
/// The states after every so many blocks stay longer, for nodes that join: the last [`OFFERED`] of them, and the one that the node began
/// with. So a state can be fetched for at least so many blocks after it was offered.
pub const OFFER_INTERVAL: u64 = 2_048;
const OFFERED: usize = 3;
/// How many heads and transactions a slow subscriber may lag behind before it misses some.
const BACKLOG: usize = 4096;

/// Why the chain could not be opened, or a block not be taken in.
#[derive(Debug, Error)]
pub enum ChainError {
    /// The genesis file.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The database.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The block is invalid.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The block's parent is not known.
    #[error("the parent {0} of the block is not known")]
    Parent(B256),
    /// The state in the database is not the one that the head's header names.
    #[error(
        "the chain's database is damaged (the state's root is not the head's); delete it, and the node builds it again"
    )]
    StateRoot,
    /// Two finalized blocks of one height: this never happens while fewer than a third of the validators are faulty.
    #[error("block {0} was finalized twice, as {1} and as {2}: stop, and ask the validators")]
    Conflict(u64, B256, B256),
}

/// Where a transaction came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client of this node; peers are told.
    Local,
    /// A peer, which tells the others itself.
    Peer,
}

struct Inner {
    head: Arc<Executed>,
    /// By hash: blocks above the head that were executed here, and recent finalized ones.
    executed: HashMap<B256, Arc<Executed>>,
    finalized: BTreeMap<u64, B256>,
    /// States for nodes that join.
    offered: BTreeMap<u64, State>,
    pool: Pool,
}

/// See the module. Shared by reference; all methods take a short lock.
pub struct Chain {
    rules: Rules,
    genesis: Block,
    history: History,
    inner: Mutex<Inner>,
    heads: broadcast::Sender<Arc<Executed>>,
    transactions: broadcast::Sender<(Transaction, Origin)>,
    /// Wakes a proposer that waits for something to put into a block.
    arrived: Notify,
    failure: OnceLock<String>,
    progress: watch::Sender<Option<Progress>>,
}

impl Chain {
    /// Opens the chain of a genesis on a database made by `open` (see [`History`]).
    pub fn open(
        genesis: &Genesis,
        limits: PoolLimits,
        open: impl FnOnce(&Executed) -> Result<History, HistoryError>,
    ) -> Result<Self, ChainError> {
        let (rules, first) = genesis.execute()?;
        let history = open(&first)?;
        let head = history.head()?;
        let head = if head == 0 { first.clone() } else { load(&history, head)? };
        let head = Arc::new(head);
        let pool = Pool::new(rules.clone(), limits, head.state.clone());
        let hash = head.block.hash();
        let inner = Inner {
            executed: HashMap::from([(hash, head.clone())]),
            finalized: BTreeMap::from([(head.block.header.number, hash)]),
            offered: BTreeMap::from([(head.block.header.number, head.state.clone())]),
            head,
            pool,
        };
        Ok(Self {
            rules,
            genesis: first.block,
            history,
            inner: Mutex::new(inner),
            heads: broadcast::channel(BACKLOG).0,
            transactions: broadcast::channel(BACKLOG).0,
            arrived: Notify::new(),
            failure: OnceLock::new(),
            progress: watch::channel(None).0,
        })
    }

    /// A panic while the lock was held leaves a state that is still whole: all changes are single assignments or inserts.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why this node cannot go on.
    pub fn fail(&self, why: String) {
        // The first reason is the cause of the others.
        let _ = self.failure.set(why);
    }

    /// Why this node cannot go on.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Tells how far a state has come that other nodes send; `None` when it is over.
    pub(crate) fn report(&self, progress: Option<Progress>) {
        self.progress.send_replace(progress);
    }

    /// How far a state has come that other nodes send; `None` while none does.
    pub fn progress(&self) -> watch::Receiver<Option<Progress>> {
        self.progress.subscribe()
    }

    /// Chain id and gas limit.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Block 0.
    pub fn genesis(&self) -> &Block {
        &self.genesis
    }

    /// Who decides the block after the head. `None` on a chain without validators.
    pub fn committee(&self) -> Option<Committee> {
        Committee::of(&self.head().state)
    }

    /// Finalized blocks.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The last finalized block.
    pub fn head(&self) -> Arc<Executed> {
        self.lock().head.clone()
    }

    /// The state after a finalized block, if it is recent enough.
    pub fn state_at(&self, number: u64) -> Option<State> {
        let inner = self.lock();
        Some(inner.executed.get(inner.finalized.get(&number)?)?.state.clone())
    }

    /// The blocks after which the states are offered to nodes that join, ascending.
    pub fn offered(&self) -> Vec<u64> {
        self.lock().offered.keys().copied().collect()
    }

    /// One of those states.
    pub fn offered_state(&self, number: u64) -> Option<State> {
        self.lock().offered.get(&number).cloned()
    }

    /// Makes a state that came from other nodes the head's ([`History::adopt_state`]).
    pub fn adopt(&self, header: &Header) -> Result<(), ChainError> {
        self.history.adopt_state(header)?;
        let head = Arc::new(load(&self.history, header.number)?);
        let hash = head.block.hash();
        {
            let mut inner = self.lock();
            inner.executed = HashMap::from([(hash, head.clone())]);
            inner.finalized = BTreeMap::from([(header.number, hash)]);
            inner.offered = BTreeMap::from([(header.number, head.state.clone())]);
            inner.pool.update(head.state.clone());
            inner.head = head.clone();
        }
        let _ = self.heads.send(head);
        Ok(())
    }

    /// Whether a block was executed here and is not yet forgotten.
    pub fn knows(&self, hash: &B256) -> bool {
        self.lock().executed.contains_key(hash)
    }

    fn executed(&self, hash: &B256) -> Option<Arc<Executed>> {
        self.lock().executed.get(hash).cloned()
    }

    /// Finalized heads from now on.
    pub fn subscribe_heads(&self) -> broadcast::Receiver<Arc<Executed>> {
        self.heads.subscribe()
    }

    /// Transactions that enter the pool from now on.
    pub fn subscribe_transactions(&self) -> broadcast::Receiver<(Transaction, Origin)> {
        self.transactions.subscribe()
    }

    /// Reads the pool.
    pub fn pool<T>(&self, read: impl FnOnce(&Pool) -> T) -> T {
        read(&self.lock().pool)
    }

    /// Takes a transaction into the pool.
    pub fn add(&self, transaction: Transaction, origin: Origin) -> Result<Added, PoolError> {
        let added = self.lock().pool.add(transaction.clone())?;
        // Nobody listening is not an error.
        let _ = self.transactions.send((transaction, origin));
        self.arrived.notify_one();
        Ok(added)
    }

    /// Whether the pool has something for a block after `parent`.
    pub fn has_work(&self, parent: &B256) -> bool {
        let inner = self.lock();
        let Some(parent) = inner.executed.get(parent) else { return false };
        inner.pool.best(&parent.state, next_base_fee(parent)).next().is_some()
    }

    /// Resolves when a transaction has entered the pool since the last call.
    pub async fn work(&self) {
        self.arrived.notified().await;
    }

    /// Makes a block on a parent that was executed here, from the pool. Its time is at least the parent's.
    pub fn propose(&self, parent: &B256, attributes: Attributes) -> Result<Block, ChainError> {
        let parent = self.executed(parent).ok_or(ChainError::Parent(*parent))?;
        let header = &parent.block.header;
        // Twice what a block can hold, since some may not fit.
        let most = (self.rules.gas_limit / LEAST_GAS) as usize;
        let pooled: Vec<_> =
            self.pool(|pool| pool.best(&parent.state, next_base_fee(&parent)).take(2 * most).collect());
        // What this node has seen of contradictions. Who was convicted before is left out, as is all that cannot be executed.
        let evidence = self.history.evidence()?;
        let evidence =
            evidence.iter().filter_map(|(key, votes)| bring(&self.rules, &parent.state, key, votes));
        let candidates = evidence.chain(pooled);
        let timestamp = attributes.timestamp.max(header.timestamp);
        let attributes = Attributes { timestamp, ..attributes };
        let executed = build(&self.rules, header, &parent.state, &attributes, candidates);
        let block = executed.block.clone();
        self.lock().executed.insert(block.hash(), Arc::new(executed));
        Ok(block)
    }

    /// Reads a block's encoding. What is known here is not computed again: the senders of transactions that wait, and blocks that were
    /// executed.
    pub fn decode(&self, bytes: &[u8]) -> Result<Block, BlockError> {
        match Block::hash_of(bytes).and_then(|hash| self.executed(&hash)) {
            Some(known) if known.block.encode() == bytes => Ok(known.block.clone()),
            _ => Block::decode_with(bytes, |hash| self.pool(|pool| pool.get(hash).cloned())),
        }
    }

    /// Executes and checks a block whose parent was executed here.
    pub fn import(&self, block: &Block) -> Result<(), ChainError> {
        if self.knows(&block.hash()) {
            return Ok(());
        }
        let parent = block.header.parent_hash;
        let parent = self.executed(&parent).ok_or(ChainError::Parent(parent))?;
        let executed = verify(&self.rules, &parent.block.header, &parent.state, block)?;
        self.lock().executed.insert(block.hash(), Arc::new(executed));
        Ok(())
    }

    /// Makes a block the head, on disk first. Blocks come in the order of their numbers; one that is final already is ignored.
    pub fn finalize(&self, block: &Block) -> Result<(), ChainError> {
        let (number, hash) = (block.header.number, block.hash());
        let head = self.head();
        if number <= head.block.header.number {
            let known = self.history.header(number)?.map(|header| header.hash_slow());
            return match known {
                Some(known) if known != hash => Err(ChainError::Conflict(number, known, hash)),
                _ => Ok(()),
            };
        }
        if block.header.parent_hash != head.block.hash() {
            return Err(ChainError::Parent(block.header.parent_hash));
        }
        self.import(block)?;
        let executed = self.executed(&hash).ok_or(ChainError::Parent(hash))?;
        self.history.push(&executed)?;
        {
            let mut inner = self.lock();
            inner.head = executed.clone();
            inner.finalized.insert(number, hash);
            inner.pool.update(executed.state.clone());
            if number.is_multiple_of(OFFER_INTERVAL) {
                inner.offered.insert(number, executed.state.clone());
                while inner.offered.len() > OFFERED {
                    inner.offered.pop_first();
                }
            }
            // Forget forks that lost, and states that are too old.
            let oldest = number.saturating_sub(RECENT_STATES);
            inner.finalized.retain(|kept, _| *kept >= oldest);
            let Inner { executed, finalized, .. } = &mut *inner;
            executed.retain(|hash, kept| {
                let kept = kept.block.header.number;
                kept > number || finalized.get(&kept) == Some(hash)
            });
        }
        let _ = self.heads.send(executed);
        Ok(())
    }
}

/// The head from the database. Of a block whose state came from other nodes only the header is there.
fn load(history: &History, head: u64) -> Result<Executed, ChainError> {
    let (block, receipts) = match history.block(head) {
        Ok(Some(Stored { block, receipts })) => (block, receipts),
        Err(HistoryError::Pruned) => {
            let header = history.header(head)?.ok_or(HistoryError::Damaged("the head is missing"))?;
            (Block::new(header, Vec::new()), Vec::new())
        }
        Ok(None) => return Err(HistoryError::Damaged("the head is missing").into()),
        Err(error) => return Err(error.into()),
    };
    let state = history.state()?;
    if state.root() != block.header.state_root {
        return Err(ChainError::StateRoot);
    }
    Ok(Executed { block, state, receipts, changes: Vec::new() })
}

fn next_base_fee(parent: &Executed) -> u64 {
    parent.block.header.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or_default()
}

/// `0x` and the digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}
