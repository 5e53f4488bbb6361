//! Execution: blocks from transactions, checks of blocks from others, calls that leave no trace.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use alloy_consensus::constants::{EMPTY_OMMER_ROOT_HASH, EMPTY_ROOT_HASH};
use alloy_consensus::{Header, TxReceipt, proofs};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::eip2935::{HISTORY_SERVE_WINDOW, HISTORY_STORAGE_ADDRESS};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{Address, B256, Bloom, Bytes, Log, TxKind, U256, keccak256};
use revm::context::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction, Output};
use revm::context::{BlockEnv, CfgEnv, Context, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::transaction::{AccessList, AccessListItem};
use revm::database::CacheDB;
use revm::handler::{MainnetContext, MainnetEvm};
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteCommitEvm, ExecuteEvm, MainBuilder, MainContext};

use crate::absence;
use crate::block::{Block, BlockError, MAX_BLOCK_BYTES};
use crate::committee::{COMMITTEE_ADDRESS, Committee, elect};
use crate::evidence::{convicts, holder, is_evidence, is_free, punish, tell};
use crate::state::{AccountChange, Overrides, State, assume, changes};
use crate::{Receipt, Transaction};

/// The least gas that a transaction uses.
pub const LEAST_GAS: u64 = 21_000;
/// How often a call is run at most for its access list.
const LIST_RUNS: usize = 8;
/// What a header and the framing of a block take at most, in bytes.
const BLOCK_OVERHEAD: usize = 2048;

/// What holds for every block of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// EIP-155's chain id.
    pub chain_id: u64,
    /// The gas limit of every block.
    pub gas_limit: u64,
    /// The staking contract, where there is one: it elects committees.
    pub staking: Option<Address>,
    /// How much must be bonded for an election to count, in 10^-18 OPG.
    pub least_stake: U256,
    /// The hash of block 0, for which validators sign; zero while that is made.
    pub genesis: B256,
}

/// What a proposer chooses about a block besides its transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Seconds since 1970; at least the parent's.
    pub timestamp: u64,
    /// Who gets the tips.
    pub beneficiary: Address,
    /// The view of the epoch in which it is proposed, more than the parent's; zero on a chain without validators.
    pub view: u64,
}

/// A block and what it led to.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The block.
    pub block: Block,
    /// The state after it.
    pub state: State,
    /// One for each transaction.
    pub receipts: Vec<Receipt>,
    /// The difference of the states.
    pub changes: Vec<AccountChange>,
}

/// A call that is not signed (`eth_call`).
#[derive(Clone, Debug)]
pub struct Message {
    /// The caller; any address may be assumed.
    pub from: Address,
    /// The called address; `None` creates a contract.
    pub to: Option<Address>,
    /// The most gas to use.
    pub gas: u64,
    /// What a unit of gas costs; zero makes the base fee irrelevant.
    pub max_fee: u128,
    /// The tip, where there is one.
    pub tip: Option<u128>,
    /// In 10^-18 of the native coin.
    pub value: U256,
    /// Call data or init code.
    pub data: Bytes,
    /// EIP-2930's list.
    pub access_list: Vec<(Address, Vec<B256>)>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Returned data, deployed code, or the data of a revert.
    pub output: Bytes,
    /// Gas used, refunds subtracted.
    pub gas_used: u64,
    /// Events.
    pub logs: Vec<Log>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// Why a call failed or could not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The contract reverted; [`Outcome::output`] has its reason.
    Revert,
    /// The machine stopped it, such as for lack of gas.
    Halt(String),
    /// It could not begin.
    Invalid(String),
}

pub(crate) type Db<'a> = CacheDB<&'a State>;
pub(crate) type Evm<'a, I = ()> = MainnetEvm<MainnetContext<Db<'a>>, I>;

/// EIP-4399's value. It is known one block ahead: whoever needs a draw that nobody can foresee takes a later block's hash.
fn mix(parent: &Header) -> B256 {
    let mut seed = [0u8; 64];
    seed[..32].copy_from_slice(parent.mix_hash.as_slice());
    seed[32..].copy_from_slice(parent.hash_slow().as_slice());
    keccak256(seed)
}

pub(crate) fn environment(header: &Header) -> BlockEnv {
    BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or_default(),
        difficulty: U256::ZERO,
        prevrandao: Some(header.mix_hash),
        blob_excess_gas_and_price: Some(BlobExcessGasAndPrice::new_with_spec(0, SpecId::OSAKA)),
        ..BlockEnv::default()
    }
}

pub(crate) fn config(rules: &Rules) -> CfgEnv {
    CfgEnv::new_with_spec(SpecId::OSAKA).with_chain_id(rules.chain_id)
}

pub(crate) fn context(cfg: CfgEnv, block: BlockEnv, db: Db<'_>) -> MainnetContext<Db<'_>> {
    Context::mainnet().with_db(db).with_block(block).with_cfg(cfg)
}

/// A machine with the precompiled contracts of this chain.
pub(crate) fn machine<I>(mut evm: Evm<'_, I>) -> Evm<'_, I> {
    evm.precompiles = crate::proofs::precompiles();
    evm
}

/// The header of the next block, as far as it is known before execution.
fn draft(rules: &Rules, parent: &Header, attributes: &Attributes) -> Header {
    Header {
        parent_hash: parent.hash_slow(),
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: attributes.beneficiary,
        number: parent.number + 1,
        gas_limit: rules.gas_limit,
        timestamp: attributes.timestamp,
        mix_hash: mix(parent),
        base_fee_per_gas: parent.next_block_base_fee(BaseFeeParams::ethereum()),
        withdrawals_root: Some(EMPTY_ROOT_HASH),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(absence::field(attributes.view)),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}

/// Records a parent's hash: for EIP-2935's contract, and for BLOCKHASH, which else asks the parent's state, where it cannot be.
pub(crate) fn record(db: &mut Db<'_>, number: u64, hash: B256) {
    let slot = U256::from(number % HISTORY_SERVE_WINDOW as u64);
    let Ok(()) = db.insert_account_storage(HISTORY_STORAGE_ADDRESS, slot, hash.into());
    db.cache.block_hashes.insert(U256::from(number), hash);
}

/// Runs transactions one after the other on a parent's state.
pub(crate) struct Executor<'a> {
    pub(crate) evm: Evm<'a>,
    rules: Rules,
    header: Header,
    transactions: Vec<Transaction>,
    receipts: Vec<Receipt>,
    bytes: usize,
}

impl<'a> Executor<'a> {
    pub(crate) fn new(rules: &Rules, parent: &Header, state: &'a State, attributes: &Attributes) -> Self {
        let header = draft(rules, parent, attributes);
        let mut db = CacheDB::new(state);
        record(&mut db, parent.number, header.parent_hash);
        if let Some(committee) = Committee::of(state) {
            let before = absence::view_before(&committee, parent);
            absence::count(&mut db, &committee, before, attributes.view);
        }
        Self::on(rules, header, db)
    }

    /// With a header of one's own, for genesis.
    pub(crate) fn on(rules: &Rules, header: Header, db: Db<'a>) -> Self {
        let evm = machine(context(config(rules), environment(&header), db).build_mainnet());
        Self {
            evm,
            rules: rules.clone(),
            header,
            transactions: Vec::new(),
            receipts: Vec::new(),
            bytes: BLOCK_OVERHEAD,
        }
    }

    /// Executes a transaction, or says why it cannot come here and leaves everything as it was.
    pub(crate) fn push(&mut self, transaction: Transaction) -> Result<(), String> {
        if transaction.gas_limit() > self.header.gas_limit - self.header.gas_used {
            return Err("gas limit reached".to_owned());
        }
        let bytes = self.bytes + transaction.bytes().len() + 4;
        if bytes > MAX_BLOCK_BYTES {
            return Err("size limit reached".to_owned());
        }
        if transaction.chain_id().is_none() {
            return Err("only replay-protected (EIP-155) transactions allowed".to_owned());
        }
        let free = is_free(&transaction);
        if free && !convicts(&self.rules, &mut self.evm, transaction.input()) {
            return Err("only evidence that convicts somebody comes without a fee".to_owned());
        }
        self.evm.ctx.cfg.disable_base_fee = free;
        let result = self.evm.transact_commit(transaction.env());
        self.evm.ctx.cfg.disable_base_fee = false;
        let result = result.map_err(|error| sentence(&error))?;
        self.bytes = bytes;
        self.header.gas_used += result.tx_gas_used();
        let (mut success, mut logs) = (result.is_success(), result.into_logs());
        if is_evidence(&transaction) {
            let done = punish(&self.rules, &mut self.evm, transaction.input());
            success = done.is_some();
            logs.extend(done.into_iter().flatten());
        }
        self.receipts.push(Receipt {
            tx_type: transaction.envelope().tx_type(),
            success,
            cumulative_gas_used: self.header.gas_used,
            logs,
        });
        self.transactions.push(transaction);
        Ok(())
    }

    pub(crate) fn finish(self) -> Executed {
        let Self { mut evm, rules, mut header, transactions, receipts, .. } = self;
        let db = &evm.ctx.journaled_state.database;
        if let Some(committee) = Committee::of(db.db).filter(|old| old.last_block() == header.number) {
            for key in absence::absent(db, &committee, absence::view(&header)) {
                if let Some(validator) = holder(&rules, &mut evm, &key) {
                    // Who is in jail already stays there.
                    let _ = tell(&rules, &mut evm, "absent(address)", validator);
                }
            }
        }
        let db = evm.ctx.journaled_state.database;
        let mut changes = changes(&db);
        let mut state = db.db.clone();
        state.apply(&changes);
        if let Some(next) = elect(&rules, &header, &state) {
            header.extra_data = Bytes::copy_from_slice(next.hash().as_slice());
            let change = next.change(&state);
            state.apply(std::slice::from_ref(&change));
            // Nothing but coins can have changed it in the same block, and the election's change has those too.
            changes.retain(|other| other.address != COMMITTEE_ADDRESS);
            changes.push(change);
        }
        Executed { block: seal(header, transactions, &receipts, &state), state, receipts, changes }
    }
}

/// The block with these transactions, and with what they led to in its header.
pub(crate) fn seal(
    mut header: Header,
    transactions: Vec<Transaction>,
    receipts: &[Receipt],
    state: &State,
) -> Block {
    header.state_root = state.root();
    let envelopes: Vec<_> = transactions.iter().map(Transaction::envelope).collect();
    header.transactions_root = proofs::calculate_transaction_root(&envelopes);
    let with_blooms: Vec<_> = receipts.iter().map(TxReceipt::with_bloom_ref).collect();
    header.receipts_root = proofs::calculate_receipt_root(&with_blooms);
    header.logs_bloom = with_blooms.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.logs_bloom);
    Block::new(header, transactions)
}

/// Makes the block after `parent` from candidates in their order. Those that cannot be executed are left out; it ends with them
/// or when the block is full.
pub fn build(
    rules: &Rules,
    parent: &Header,
    state: &State,
    attributes: &Attributes,
    candidates: impl IntoIterator<Item = Transaction>,
) -> Executed {
    let mut executor = Executor::new(rules, parent, state, attributes);
    for candidate in candidates {
        if executor.header.gas_limit - executor.header.gas_used < LEAST_GAS {
            break;
        }
        // What cannot be executed stays in the pool, which judges it by the next state.
        let _ = executor.push(candidate);
    }
    executor.finish()
}

/// Executes a block of somebody else, and holds every field of its header to what follows. Whether its time is in the future is
/// for the caller to judge, who has a clock.
pub fn verify(rules: &Rules, parent: &Header, state: &State, block: &Block) -> Result<Executed, BlockError> {
    let size = block.encoded_len();
    if size > MAX_BLOCK_BYTES {
        return Err(BlockError::Oversized(size));
    }
    let claimed = &block.header;
    if claimed.timestamp < parent.timestamp {
        return Err(BlockError::Header("timestamp"));
    }
    if claimed.number != parent.number + 1 {
        return Err(BlockError::Header("number"));
    }
    let view = absence::view(claimed);
    let follows = match Committee::of(state) {
        Some(committee) => view > absence::view_before(&committee, parent),
        None => view == 0,
    };
    if !follows {
        return Err(BlockError::Header("view"));
    }
    let attributes = Attributes { timestamp: claimed.timestamp, beneficiary: claimed.beneficiary, view };
    let mut executor = Executor::new(rules, parent, state, &attributes);
    if claimed.parent_hash != executor.header.parent_hash {
        return Err(BlockError::Header("parent hash"));
    }
    for (i, transaction) in block.transactions.iter().enumerate() {
        executor.push(transaction.clone()).map_err(|error| BlockError::Unexecutable(i, error))?;
    }
    let executed = executor.finish();
    let found = &executed.block.header;
    let fields = [
        ("base fee", claimed.base_fee_per_gas == found.base_fee_per_gas),
        ("gas limit", claimed.gas_limit == found.gas_limit),
        ("gas used", claimed.gas_used == found.gas_used),
        ("transactions root", claimed.transactions_root == found.transactions_root),
        ("receipts root", claimed.receipts_root == found.receipts_root),
        ("logs bloom", claimed.logs_bloom == found.logs_bloom),
        ("state root", claimed.state_root == found.state_root),
        ("next committee", claimed.extra_data == found.extra_data),
        ("random value", claimed.mix_hash == found.mix_hash),
        ("header", claimed == found),
    ];
    match fields.iter().find(|(_, same)| !same) {
        Some((name, _)) => Err(BlockError::Header(name)),
        None => Ok(executed),
    }
}

/// The sentence that geth has for an error, since libraries look for its words.
pub(crate) fn sentence(error: &EVMError<Infallible>) -> String {
    use InvalidTransaction as I;
    let EVMError::Transaction(error) = error else {
        return error.to_string();
    };
    match error {
        I::NonceTooLow { tx, state } => format!("nonce too low: next nonce {state}, tx nonce {tx}"),
        I::NonceTooHigh { tx, state } => format!("nonce too high: next nonce {state}, tx nonce {tx}"),
        I::LackOfFundForMaxFee { fee, balance } => {
            format!("insufficient funds for gas * price + value: have {balance} want {fee}")
        }
        I::GasPriceLessThanBasefee => "max fee per gas less than block base fee".to_owned(),
        I::PriorityFeeGreaterThanMaxFee => "max priority fee per gas higher than max fee per gas".to_owned(),
        I::CallGasCostMoreThanGasLimit { initial_gas, gas_limit }
        | I::GasFloorMoreThanGasLimit { gas_floor: initial_gas, gas_limit } => {
            format!("intrinsic gas too low: have {gas_limit}, want {initial_gas}")
        }
        I::CallerGasLimitMoreThanBlock => "exceeds block gas limit".to_owned(),
        I::TxGasLimitGreaterThanCap { gas_limit, cap } => {
            format!("transaction gas limit too high (cap: {cap}, tx: {gas_limit})")
        }
        I::CreateInitCodeSizeLimit => "max initcode size exceeded".to_owned(),
        I::InvalidChainId | I::MissingChainId => "invalid chain id for signer".to_owned(),
        other => other.to_string(),
    }
}

pub(crate) fn outcome(result: ExecutionResult<HaltReason>) -> Outcome {
    let gas_used = result.tx_gas_used();
    match result {
        ExecutionResult::Success { logs, output, .. } => {
            let (Output::Call(output) | Output::Create(output, _)) = output;
            Outcome { output, gas_used, logs, failure: None }
        }
        ExecutionResult::Revert { output, .. } => {
            Outcome { output, gas_used, logs: Vec::new(), failure: Some(Failure::Revert) }
        }
        ExecutionResult::Halt { reason, .. } => {
            let failure = Some(Failure::Halt(halt(&reason)));
            Outcome { output: Bytes::new(), gas_used, logs: Vec::new(), failure }
        }
    }
}

fn halt(reason: &HaltReason) -> String {
    match reason {
        HaltReason::OutOfGas(_) => "out of gas".to_owned(),
        HaltReason::OpcodeNotFound | HaltReason::InvalidFEOpcode => "invalid opcode".to_owned(),
        HaltReason::InvalidJump => "invalid jump destination".to_owned(),
        HaltReason::StackUnderflow => "stack underflow".to_owned(),
        HaltReason::StackOverflow => "stack limit reached 1024".to_owned(),
        HaltReason::CreateCollision => "contract address collision".to_owned(),
        HaltReason::CallTooDeep => "max call depth exceeded".to_owned(),
        other => format!("{other:?}"),
    }
}

/// EIP-2930's list.
pub(crate) fn listed(list: &[(Address, Vec<B256>)]) -> AccessList {
    let item = |(address, slots): &(Address, Vec<B256>)| AccessListItem {
        address: *address,
        storage_keys: slots.clone(),
    };
    AccessList(list.iter().map(item).collect())
}

/// What a call that is not signed runs with: any caller, any nonce.
pub(crate) fn assumed<'a>(
    rules: &Rules,
    header: &Header,
    state: &'a State,
    overrides: &Overrides,
    message: &Message,
) -> (CfgEnv, BlockEnv, Db<'a>, TxEnv) {
    let mut db = CacheDB::new(state);
    assume(&mut db, overrides);
    let mut cfg = config(rules);
    cfg.disable_nonce_check = true;
    cfg.disable_eip3607 = true;
    cfg.disable_block_gas_limit = true;
    cfg.disable_base_fee = message.max_fee == 0;
    cfg.tx_gas_limit_cap = Some(u64::MAX);
    let environment = BlockEnv { gas_limit: header.gas_limit.max(message.gas), ..environment(header) };
    let access_list = listed(&message.access_list);
    let env = TxEnv {
        tx_type: if message.tip.is_some() { 2 } else { u8::from(!access_list.0.is_empty()) },
        caller: message.from,
        gas_limit: message.gas,
        gas_price: message.max_fee,
        kind: message.to.map_or(TxKind::Create, TxKind::Call),
        value: message.value,
        data: message.data.clone(),
        nonce: state.nonce(&message.from),
        chain_id: Some(rules.chain_id),
        access_list,
        gas_priority_fee: message.tip,
        ..TxEnv::default()
    };
    (cfg, environment, db, env)
}

fn invalid(why: String) -> Outcome {
    Outcome { output: Bytes::new(), gas_used: 0, logs: Vec::new(), failure: Some(Failure::Invalid(why)) }
}

/// Runs a call on the state after the block with this header, as `eth_call` does: no signature, any caller, any nonce.
pub fn simulate(
    rules: &Rules,
    header: &Header,
    state: &State,
    overrides: &Overrides,
    message: &Message,
) -> Outcome {
    let (cfg, environment, db, env) = assumed(rules, header, state, overrides, message);
    let mut evm = machine(context(cfg, environment, db).build_mainnet());
    match evm.transact(env) {
        Ok(done) => outcome(done.result),
        Err(error) => invalid(sentence(&error)),
    }
}

/// Addresses and slots, as in EIP-2930's lists.
pub type Accesses = Vec<(Address, Vec<B256>)>;

/// What a call reads and writes, as a list that makes it cheaper (`eth_createAccessList`), and how the call ends with that list. Caller,
/// callee, block's beneficiary and precompiled contracts are warm without it, and only listed for slots. Runs the call until the list stays.
pub fn access_list(
    rules: &Rules,
    header: &Header,
    state: &State,
    overrides: &Overrides,
    message: &Message,
) -> (Accesses, Outcome) {
    let mut message = message.clone();
    let mut list: BTreeMap<Address, BTreeSet<B256>> = message
        .access_list
        .iter()
        .map(|(address, slots)| (*address, slots.iter().copied().collect()))
        .collect();
    let callee = message.to.unwrap_or_else(|| message.from.create(state.nonce(&message.from)));
    let warm = [message.from, callee, header.beneficiary];
    let precompiled = crate::proofs::precompiles().precompiles;
    // A list changes only what gas is left, so it is the same after a few runs.
    for _ in 0..LIST_RUNS {
        let (cfg, environment, db, env) = assumed(rules, header, state, overrides, &message);
        let mut evm = machine(context(cfg, environment, db).build_mainnet());
        let done = match evm.transact(env) {
            Ok(done) => done,
            Err(error) => return (message.access_list, invalid(sentence(&error))),
        };
        let before = list.clone();
        for (address, account) in &done.state {
            let slots = account.storage.keys().map(|slot| B256::from(slot.to_be_bytes::<32>()));
            let known = warm.contains(address) || precompiled.contains(address);
            if !known || !account.storage.is_empty() {
                list.entry(*address).or_default().extend(slots);
            }
        }
        let same = list == before;
        message.access_list =
            list.iter().map(|(address, slots)| (*address, slots.iter().copied().collect())).collect();
        if same {
            return (message.access_list, outcome(done.result));
        }
    }
    let last = simulate(rules, header, state, overrides, &message);
    (message.access_list, last)
}

/// The least gas limit with which a call succeeds (`eth_estimateGas`), or how it fails with the most gas that it may have:
/// `message.gas`, and no more than its sender can pay. Runs the call at most some 25 times.
pub fn estimate_gas(
    rules: &Rules,
    header: &Header,
    state: &State,
    overrides: &Overrides,
    message: &Message,
) -> Result<u64, Outcome> {
    let mut most = message.gas;
    if message.max_fee > 0 {
        let balance = overrides
            .get(&message.from)
            .and_then(|over| over.balance)
            .unwrap_or(state.balance(&message.from));
        let affordable = balance.saturating_sub(message.value) / U256::from(message.max_fee);
        most = most.min(u64::try_from(affordable).unwrap_or(u64::MAX));
    }
    let run = |gas| simulate(rules, header, state, overrides, &Message { gas, ..message.clone() });
    let first = run(most);
    if first.failure.is_some() {
        return Err(first);
    }
    // A call of an account without code uses what it uses.
    let mut least = first.gas_used - 1;
    if run(first.gas_used).failure.is_none() {
        return Ok(first.gas_used);
    }
    least = least.max(LEAST_GAS - 1);
    while least + 1 < most {
        // Most calls need little more than they use, so the search begins near there.
        let middle = (least + (most - least) / 2).min(least.saturating_mul(2));
        if run(middle).failure.is_some() { least = middle } else { most = middle }
    }
    Ok(most)
}
