//! Transactions that wait for a block.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use alloy_primitives::{Address, B256, U256};
use revm::primitives::eip3860::MAX_INITCODE_SIZE;
use thiserror::Error;

use crate::{Rules, State, Transaction};

/// A replacement must pay this much more, in hundredths, both as a fee and as a tip.
const PRICE_BUMP: u128 = 10;
/// EIP-7825: the most gas of one transaction.
const TRANSACTION_GAS: u64 = 1 << 24;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Transactions of one sender.
    pub per_sender: usize,
    /// Transactions of all senders.
    pub transactions: usize,
    /// Bytes of all transactions.
    pub bytes: usize,
    /// The least tip in wei for a unit of gas.
    pub least_tip: u128,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { per_sender: 512, transactions: 16_384, bytes: 64 << 20, least_tip: 1 }
    }
}

/// Why a transaction may not wait. The sentences begin as geth's do, since libraries look for these words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// It waits already.
    #[error("already known")]
    Known,
    /// For another chain.
    #[error("invalid chain id for signer: have {0} want {1}")]
    ChainId(u64, u64),
    /// A legacy transaction that would be valid on every chain.
    #[error("only replay-protected (EIP-155) transactions allowed over RPC")]
    Unprotected,
    /// Its place is taken by a transaction in a block.
    #[error("nonce too low: next nonce {next}, tx nonce {given}")]
    NonceTooLow {
        /// What the sender's next transaction needs.
        next: u64,
        /// What this one has.
        given: u64,
    },
    /// So far ahead that it would wait for ever.
    #[error("nonce too high: next nonce {next}, tx nonce {given}")]
    NonceTooHigh {
        /// What the sender's next transaction needs.
        next: u64,
        /// What this one has.
        given: u64,
    },
    /// A replacement that pays too little more.
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    /// It pays too little, or less than all others in a full pool.
    #[error("transaction underpriced: tip needed {0}, tip permitted {1}")]
    Underpriced(u128, u128),
    /// The sender cannot pay for it, together with what it has waiting.
    #[error("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, overshot {}", cost.saturating_sub(*.balance))]
    InsufficientFunds {
        /// What the sender has.
        balance: U256,
        /// What this and its other waiting transactions may cost.
        cost: U256,
    },
    /// More gas than a block has.
    #[error("exceeds block gas limit")]
    GasLimit,
    /// More gas than a transaction may have (EIP-7825).
    #[error("transaction gas limit too high (cap: {TRANSACTION_GAS}, tx: {0})")]
    GasCap(u64),
    /// Less gas than it uses before it begins.
    #[error("intrinsic gas too low: gas {0}, minimum needed {1}")]
    IntrinsicGas(u64, u64),
    /// The tip is more than the whole fee.
    #[error(
        "max priority fee per gas higher than max fee per gas: maxPriorityFeePerGas: {0}, maxFeePerGas: {1}"
    )]
    TipAboveFee(u128, u128),
    /// EIP-3860.
    #[error("max initcode size exceeded: code size {0}, limit {MAX_INITCODE_SIZE}")]
    InitCode(usize),
    /// EIP-7702.
    #[error("EIP-7702 transaction with empty auth list")]
    NoAuthorization,
    /// EIP-3607.
    #[error("sender not an eoa")]
    SenderHasCode,
    /// The sender has too many waiting.
    #[error("account limit exceeded: {0} transactions of one account wait")]
    SenderLimit(usize),
    /// There is no room, and it pays no more than the others.
    #[error("txpool is full")]
    Full,
}

/// How a transaction was taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// The transaction of the same nonce that it replaced.
    pub replaced: Option<B256>,
    /// The transactions that made room for it.
    pub evicted: Vec<B256>,
}

#[derive(Clone, Debug)]
struct Entry {
    transaction: Transaction,
    arrived: u64,
}

/// The pool. It judges by the state that it was last [updated](Pool::update) with.
#[derive(Debug)]
pub struct Pool {
    rules: Rules,
    limits: PoolLimits,
    senders: BTreeMap<Address, BTreeMap<u64, Entry>>,
    hashes: HashMap<B256, (Address, u64)>,
    bytes: usize,
    arrivals: u64,
    state: State,
}

/// EIP-2028, EIP-2930, EIP-3860, EIP-7623 and EIP-7702: gas before the first instruction, or the floor by data where that is more.
fn intrinsic_gas(transaction: &Transaction) -> u64 {
    let input = transaction.input();
    let zeros = input.iter().filter(|byte| **byte == 0).count() as u64;
    let tokens = zeros + 4 * (input.len() as u64 - zeros);
    let list = transaction.access_list().unwrap_or_default();
    let keys: u64 = list.iter().map(|(_, keys)| keys.len() as u64).sum();
    let creation =
        if transaction.to().is_none() { 32_000 + 2 * (input.len() as u64).div_ceil(32) } else { 0 };
    let authorizations = transaction.authorizations().map_or(0, |list| list.len() as u64);
    let gas =
        21_000 + 4 * tokens + creation + 2_400 * list.len() as u64 + 1_900 * keys + 25_000 * authorizations;
    gas.max(21_000 + 10 * tokens)
}

impl Pool {
    /// An empty pool over a state.
    pub fn new(rules: Rules, limits: PoolLimits, state: State) -> Self {
        Self { rules, limits, senders: BTreeMap::new(), hashes: HashMap::new(), bytes: 0, arrivals: 0, state }
    }

    /// Takes a transaction in. On an error nothing has changed.
    pub fn add(&mut self, transaction: Transaction) -> Result<Added, PoolError> {
        self.check(&transaction)?;
        let (sender, nonce) = (transaction.sender(), transaction.nonce());
        let waiting = self.senders.get(&sender);
        let old = waiting.and_then(|waiting| waiting.get(&nonce)).map(|entry| entry.transaction.clone());
        if let Some(old) = &old {
            let enough = |new: u128, old: u128| {
                new >= old.saturating_add(old.saturating_mul(PRICE_BUMP).div_ceil(100))
            };
            if !enough(transaction.max_fee(), old.max_fee()) || !enough(transaction.max_tip(), old.max_tip())
            {
                return Err(PoolError::ReplacementUnderpriced);
            }
        } else if waiting.map_or(0, BTreeMap::len) >= self.limits.per_sender {
            return Err(PoolError::SenderLimit(self.limits.per_sender));
        }
        self.check_funds(&transaction)?;
        let evicted = self.make_room(&transaction, old.as_ref())?;
        if let Some(old) = &old {
            self.remove(&old.hash());
        }
        for hash in &evicted {
            self.remove(hash);
        }
        self.arrivals += 1;
        self.bytes += transaction.bytes().len();
        self.hashes.insert(transaction.hash(), (sender, nonce));
        let entry = Entry { transaction, arrived: self.arrivals };
        self.senders.entry(sender).or_default().insert(nonce, entry);
        Ok(Added { replaced: old.map(|old| old.hash()), evicted })
    }

    /// All that follows from the transaction and its sender's account.
    fn check(&self, transaction: &Transaction) -> Result<(), PoolError> {
        if self.hashes.contains_key(&transaction.hash()) {
            return Err(PoolError::Known);
        }
        match transaction.chain_id() {
            None => return Err(PoolError::Unprotected),
            Some(id) if id != self.rules.chain_id => return Err(PoolError::ChainId(id, self.rules.chain_id)),
            Some(_) => {}
        }
        if transaction.gas_limit() > self.rules.gas_limit {
            return Err(PoolError::GasLimit);
        }
        if transaction.gas_limit() > TRANSACTION_GAS {
            return Err(PoolError::GasCap(transaction.gas_limit()));
        }
        if transaction.to().is_none() && transaction.input().len() > MAX_INITCODE_SIZE {
            return Err(PoolError::InitCode(transaction.input().len()));
        }
        if transaction.authorizations().is_some_and(|list| list.is_empty()) {
            return Err(PoolError::NoAuthorization);
        }
        if transaction.max_tip() > transaction.max_fee() {
            return Err(PoolError::TipAboveFee(transaction.max_tip(), transaction.max_fee()));
        }
        let needed = intrinsic_gas(transaction);
        if transaction.gas_limit() < needed {
            return Err(PoolError::IntrinsicGas(transaction.gas_limit(), needed));
        }
        if transaction.max_tip() < self.limits.least_tip {
            return Err(PoolError::Underpriced(self.limits.least_tip, transaction.max_tip()));
        }
        let account = self.state.account(&transaction.sender());
        let (next, given) = (account.map_or(0, |account| account.nonce), transaction.nonce());
        if given < next {
            return Err(PoolError::NonceTooLow { next, given });
        }
        if given == u64::MAX || given - next > self.limits.per_sender as u64 {
            return Err(PoolError::NonceTooHigh { next, given });
        }
        // A delegation (EIP-7702) is code that does not keep the account from sending.
        if account
            .is_some_and(|account| !account.code().is_empty() && !account.code().starts_with(&[0xef, 0x01]))
        {
            return Err(PoolError::SenderHasCode);
        }
        Ok(())
    }

    /// Whether the sender can pay for all that it would have waiting.
    fn check_funds(&self, transaction: &Transaction) -> Result<(), PoolError> {
        let balance = self.state.balance(&transaction.sender());
        let mut cost = transaction.cost().unwrap_or(U256::MAX);
        for (nonce, entry) in self.senders.get(&transaction.sender()).into_iter().flatten() {
            if *nonce != transaction.nonce() {
                cost = cost.saturating_add(entry.transaction.cost().unwrap_or(U256::MAX));
            }
        }
        if cost > balance { Err(PoolError::InsufficientFunds { balance, cost }) } else { Ok(()) }
    }

    /// The cheapest last transactions of other senders, if the new one pays more than they do.
    fn make_room(
        &self,
        transaction: &Transaction,
        old: Option<&Transaction>,
    ) -> Result<Vec<B256>, PoolError> {
        let freed = old.map_or(0, |old| old.bytes().len());
        let mut count = self.hashes.len() + 1 - usize::from(old.is_some());
        let mut bytes = self.bytes + transaction.bytes().len() - freed;
        let mut evicted = Vec::new();
        if count <= self.limits.transactions && bytes <= self.limits.bytes {
            return Ok(evicted);
        }
        let mut last: Vec<_> = self
            .senders
            .iter()
            .filter(|(sender, _)| **sender != transaction.sender())
            .filter_map(|(_, waiting)| waiting.last_key_value())
            .map(|(_, entry)| {
                (entry.transaction.max_fee(), std::cmp::Reverse(entry.arrived), &entry.transaction)
            })
            .collect();
        last.sort_unstable_by_key(|(fee, arrived, _)| (*fee, *arrived));
        for (fee, _, victim) in last {
            if fee >= transaction.max_fee() {
                break;
            }
            count -= 1;
            bytes -= victim.bytes().len();
            evicted.push(victim.hash());
            if count <= self.limits.transactions && bytes <= self.limits.bytes {
                return Ok(evicted);
            }
        }
        Err(PoolError::Full)
    }

    fn remove(&mut self, hash: &B256) {
        let Some((sender, nonce)) = self.hashes.remove(hash) else { return };
        if let Some(waiting) = self.senders.get_mut(&sender) {
            if let Some(entry) = waiting.remove(&nonce) {
                self.bytes -= entry.transaction.bytes().len();
            }
            if waiting.is_empty() {
                self.senders.remove(&sender);
            }
        }
    }

    /// Judges everything by a new state: what is in a block leaves, as does what its sender can no longer pay.
    pub fn update(&mut self, state: State) {
        self.state = state;
        let mut gone = Vec::new();
        for (sender, waiting) in &self.senders {
            let (next, balance) = (self.state.nonce(sender), self.state.balance(sender));
            let mut cost = U256::ZERO;
            for (nonce, entry) in waiting {
                cost = cost.saturating_add(entry.transaction.cost().unwrap_or(U256::MAX));
                if *nonce < next {
                    cost = U256::ZERO;
                    gone.push(entry.transaction.hash());
                } else if cost > balance {
                    gone.push(entry.transaction.hash());
                }
            }
        }
        for hash in gone {
            self.remove(&hash);
        }
    }

    /// What can be executed on `state`, in the order in which it pays the proposer: the highest tip first, the earliest of equals,
    /// each sender's in the order of its nonces.
    pub fn best(&self, state: &State, base_fee: u64) -> impl Iterator<Item = Transaction> {
        // The tip, then the earlier arrival; the sender only identifies.
        type Head = (u128, std::cmp::Reverse<u64>, Address, u64);
        let head = move |sender: &Address, nonce: u64| -> Option<Head> {
            let entry = self.senders.get(sender)?.get(&nonce)?;
            let tip = entry.transaction.effective_tip(base_fee)?;
            Some((tip, std::cmp::Reverse(entry.arrived), *sender, nonce))
        };
        let mut heads: BinaryHeap<Head> =
            self.senders.keys().filter_map(|sender| head(sender, state.nonce(sender))).collect();
        std::iter::from_fn(move || {
            let (_, _, sender, nonce) = heads.pop()?;
            heads.extend(head(&sender, nonce + 1));
            Some(self.senders[&sender][&nonce].transaction.clone())
        })
    }

    /// A waiting transaction.
    pub fn get(&self, hash: &B256) -> Option<&Transaction> {
        let (sender, nonce) = self.hashes.get(hash)?;
        Some(&self.senders.get(sender)?.get(nonce)?.transaction)
    }

    /// The nonce after the last of the sender's transactions that follow one another without a gap.
    pub fn next_nonce(&self, sender: &Address) -> u64 {
        let mut next = self.state.nonce(sender);
        if let Some(waiting) = self.senders.get(sender) {
            while waiting.contains_key(&next) {
                next += 1;
            }
        }
        next
    }

    /// By sender and nonce: what could be executed now, and what waits for an earlier nonce.
    pub fn content(&self) -> (Vec<Transaction>, Vec<Transaction>) {
        let (mut pending, mut queued) = (Vec::new(), Vec::new());
        for (sender, waiting) in &self.senders {
            let next = self.next_nonce(sender);
            for (nonce, entry) in waiting {
                let list = if *nonce < next { &mut pending } else { &mut queued };
                list.push(entry.transaction.clone());
            }
        }
        (pending, queued)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}
