//! Blocks of calls that are not signed, one on the other (`eth_simulateV1` of ethereum/execution-apis).

use alloy_consensus::constants::{EMPTY_OMMER_ROOT_HASH, EMPTY_ROOT_HASH};
use alloy_consensus::{
    EthereumTxEnvelope, Header, SignableTransaction, TxEip1559, TxEip2930, TxEip4844, TxLegacy,
};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::eip2930::AccessList;
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{Address, B256, Log, LogData, TxKind, U256, address, b256};
use revm::context::TxEnv;
use revm::context::result::{EVMError, InvalidTransaction};
use revm::database::CacheDB;
use revm::handler::MainnetContext;
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{CallInputs, CallOutcome, CallScheme, CreateInputs, CreateOutcome};
use revm::{DatabaseRef, ExecuteCommitEvm, InspectCommitEvm, Inspector, MainBuilder};

use crate::execute::{
    Db, Message, Outcome, config, context, environment, listed, machine, outcome, record, seal, sentence,
};
use crate::state::{AccountChange, Overrides, State, changes};
use crate::{Block, Receipt, Rules, Transaction};

/// Blocks of one simulation, those included that fill gaps between numbers: as geth has it.
pub const SIMULATED_BLOCKS: u64 = 256;
/// What a simulation's answer has at most in returned data and logs, in bytes.
const ANSWER_BYTES: usize = 16 << 20;
/// EIP-7825: what a transaction may have at most.
const TRANSACTION_GAS: u64 = 1 << 24;
/// Where the logs come from that stand for transfers of the native coin, and their first topic: ERC-20's `Transfer(address,address,uint256)`.
const COIN: Address = address!("eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee");
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

/// What is assumed of a block instead of what the chain says, or what would follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockOverrides {
    /// Its number.
    pub number: Option<u64>,
    /// Its time, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// Its gas limit.
    pub gas_limit: Option<u64>,
    /// Who gets the tips.
    pub beneficiary: Option<Address>,
    /// EIP-4399's value.
    pub random: Option<B256>,
    /// Its base fee, in wei.
    pub base_fee: Option<u64>,
}

impl BlockOverrides {
    /// A header with these instead.
    pub fn over(&self, mut header: Header) -> Header {
        header.number = self.number.unwrap_or(header.number);
        header.timestamp = self.timestamp.unwrap_or(header.timestamp);
        header.gas_limit = self.gas_limit.unwrap_or(header.gas_limit);
        header.beneficiary = self.beneficiary.unwrap_or(header.beneficiary);
        header.mix_hash = self.random.unwrap_or(header.mix_hash);
        header.base_fee_per_gas = self.base_fee.or(header.base_fee_per_gas);
        header
    }
}

/// A call in a simulated block.
#[derive(Clone, Debug)]
pub struct SimulatedCall {
    /// The call; its gas is not looked at.
    pub message: Message,
    /// The most gas to use; what is left of the block's and the simulation's when `None`.
    pub gas: Option<u64>,
    /// Its number among the sender's; the next one when `None`.
    pub nonce: Option<u64>,
}

/// A block to simulate.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What is assumed of the block.
    pub block: BlockOverrides,
    /// What is assumed of accounts, from this block on.
    pub accounts: Overrides,
    /// In their order.
    pub calls: Vec<SimulatedCall>,
}

/// How to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    /// Whether calls must pay the base fee, have the right nonce and come from an account without code, as transactions must.
    pub validation: bool,
    /// Whether transfers of the native coin are shown as logs.
    pub transfers: bool,
    /// The most gas of all calls together.
    pub gas: u64,
}

/// A block that was simulated.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// The block. Its transactions have no signatures.
    pub block: Block,
    /// How each call ended, and the most gas that it held at once, before refunds.
    pub calls: Vec<(Outcome, u64)>,
}

/// Why a simulation has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SimulationError {
    /// The code that ethereum/execution-apis has for it.
    pub code: i32,
    /// What is wrong, in geth's words.
    pub message: String,
}

impl SimulationError {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn limit(message: impl Into<String>) -> Self {
        Self::new(-38026, message)
    }
}

impl From<EVMError<std::convert::Infallible>> for SimulationError {
    fn from(error: EVMError<std::convert::Infallible>) -> Self {
        use InvalidTransaction as I;
        let code = match &error {
            EVMError::Transaction(error) => match error {
                I::NonceTooLow { .. } => -38010,
                I::NonceTooHigh { .. } => -38011,
                I::GasPriceLessThanBasefee => -38012,
                I::CallGasCostMoreThanGasLimit { .. } | I::GasFloorMoreThanGasLimit { .. } => -38013,
                I::LackOfFundForMaxFee { .. } => -38014,
                I::RejectCallerWithCode => -38024,
                I::CreateInitCodeSizeLimit => -38025,
                I::PriorityFeeGreaterThanMaxFee => -32602,
                _ => -32603,
            },
            _ => -32603,
        };
        Self::new(code, sentence(&error))
    }
}

/// What overrides do to a state.
fn assumed(state: &State, overrides: &Overrides) -> Vec<AccountChange> {
    let change = |(address, over): (&Address, &crate::StateOverride)| {
        let slots: std::collections::BTreeMap<U256, U256> =
            over.state.iter().flatten().chain(&over.state_diff).copied().collect();
        AccountChange {
            address: *address,
            account: Some((
                over.nonce.unwrap_or_else(|| state.nonce(address)),
                over.balance.unwrap_or_else(|| state.balance(address)),
                over.code.clone(),
            )),
            wiped: over.state.is_some(),
            slots: slots.into_iter().collect(),
        }
    };
    overrides.iter().map(change).collect()
}

/// A call as the transaction that it stands for, without a signature: EIP-1559's type, or an older one where it says a gas price.
fn unsigned(rules: &Rules, message: &Message, gas_limit: u64, nonce: u64) -> Transaction {
    let signature = alloy_primitives::Signature::new(U256::ZERO, U256::ZERO, false);
    let (chain_id, to) = (rules.chain_id, message.to.map_or(TxKind::Create, TxKind::Call));
    let (value, input) = (message.value, message.data.clone());
    let access_list: AccessList = listed(&message.access_list);
    let gas_price = message.max_fee;
    let envelope: EthereumTxEnvelope<TxEip4844> = match (message.tip, access_list.0.is_empty()) {
        (None, false) if gas_price > 0 => {
            TxEip2930 { chain_id, nonce, gas_price, gas_limit, to, value, input, access_list }
                .into_signed(signature)
                .into()
        }
        (None, true) if gas_price > 0 => {
            TxLegacy { chain_id: Some(chain_id), nonce, gas_price, gas_limit, to, value, input }
                .into_signed(signature)
                .into()
        }
        (tip, _) => {
            let max_priority_fee_per_gas = tip.unwrap_or(0);
            TxEip1559 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas: gas_price,
                max_priority_fee_per_gas,
                to,
                value,
                access_list,
                input,
            }
            .into_signed(signature)
            .into()
        }
    };
    Transaction::assumed(envelope, message.from)
}

/// Simulates blocks after the block with this header, whose state this is. Calls in a block see those before them, blocks see those before
/// them. Numbers that are left out are filled with empty blocks. A block's time is a second after that of the one before.
///
/// # Errors
/// [`SimulationError`] where a call cannot begin or a limit is exceeded. A call that fails is no error.
pub fn simulate_blocks(
    rules: &Rules,
    header: &Header,
    state: &State,
    plans: &[Plan],
    with: Simulation,
) -> Result<Vec<Simulated>, SimulationError> {
    let (mut parent, mut state) = (header.clone(), state.clone());
    let (mut found, mut gas, mut bytes) = (Vec::new(), with.gas, ANSWER_BYTES);
    for plan in plans {
        let number = plan.block.number.or(parent.number.checked_add(1)).unwrap_or(0);
        if number <= parent.number {
            let message = format!("block numbers must be in order: {number} <= {}", parent.number);
            return Err(SimulationError::new(-38020, message));
        }
        if number - header.number > SIMULATED_BLOCKS {
            return Err(SimulationError::limit(format!("too many blocks: {SIMULATED_BLOCKS} at most")));
        }
        let empty = Plan::default();
        while parent.number < number {
            let plan = if parent.number + 1 == number { plan } else { &empty };
            let (simulated, after) = one(rules, &parent, &state, plan, with, &mut gas, &mut bytes)?;
            (parent, state) = (simulated.block.header.as_ref().clone(), after);
            found.push(simulated);
        }
    }
    Ok(found)
}

/// One block, and the state after it.
fn one(
    rules: &Rules,
    parent: &Header,
    state: &State,
    plan: &Plan,
    with: Simulation,
    left: &mut u64,
    bytes: &mut usize,
) -> Result<(Simulated, State), SimulationError> {
    let mut header = plan.block.over(Header {
        parent_hash: parent.hash_slow(),
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: parent.beneficiary,
        number: parent.number + 1,
        gas_limit: parent.gas_limit,
        timestamp: parent.timestamp.saturating_add(1),
        base_fee_per_gas: if with.validation {
            parent.next_block_base_fee(BaseFeeParams::ethereum())
        } else {
            Some(0)
        },
        withdrawals_root: Some(EMPTY_ROOT_HASH),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    });
    if header.timestamp <= parent.timestamp {
        let message =
            format!("block timestamps must be in order: {} <= {}", header.timestamp, parent.timestamp);
        return Err(SimulationError::new(-38021, message));
    }
    // The next block's may be an eighth more, and more than that where the gas limit is tiny.
    if with.validation && header.base_fee_per_gas > Some(u64::MAX / 2) {
        return Err(SimulationError::new(-32602, format!("baseFeePerGas must be at most {}", u64::MAX / 2)));
    }
    let mut state = state.clone();
    state.apply(&assumed(&state, &plan.accounts));
    let mut db = CacheDB::new(&state);
    record(&mut db, parent.number, header.parent_hash);
    let mut cfg = config(rules);
    cfg.disable_nonce_check = !with.validation;
    cfg.disable_eip3607 = !with.validation;
    cfg.disable_base_fee = !with.validation;
    // What of it a call may use is looked at here.
    cfg.disable_block_gas_limit = true;
    if !with.validation {
        cfg.tx_gas_limit_cap = Some(u64::MAX);
    }
    let observer = context(cfg, environment(&header), db).build_mainnet_with_inspector(Transfers::default());
    let mut evm = machine(observer);
    let (mut calls, mut transactions, mut receipts) = (Vec::new(), Vec::new(), Vec::<Receipt>::new());
    for call in &plan.calls {
        let room = header.gas_limit - header.gas_used;
        let most = if with.validation { room.min(TRANSACTION_GAS) } else { room };
        let gas = call.gas.unwrap_or(most);
        if gas > room {
            let message = format!("block gas limit reached: {} >= {}", header.gas_used, header.gas_limit);
            return Err(SimulationError::new(-38015, message));
        }
        if *left == 0 {
            return Err(SimulationError::limit(format!("the calls use more than {} gas together", with.gas)));
        }
        let gas = gas.min(*left);
        let Ok(account) = evm.ctx.journaled_state.database.basic_ref(call.message.from);
        let nonce = call.nonce.unwrap_or_else(|| account.unwrap_or_default().nonce);
        let transaction = unsigned(rules, &call.message, gas, nonce);
        let env = TxEnv { caller: call.message.from, ..transaction.env() };
        let done = if with.transfers { evm.inspect_tx_commit(env) } else { evm.transact_commit(env) }?;
        evm.inspector = Transfers::default();
        let most = done.gas().total_gas_spent().max(done.tx_gas_used());
        let outcome = outcome(done);
        header.gas_used += outcome.gas_used;
        *left = left.saturating_sub(outcome.gas_used);
        let size = |log: &Log| 32 * log.topics().len() + log.data.data.len() + 256;
        let size = outcome.output.len() + outcome.logs.iter().map(size).sum::<usize>();
        *bytes = bytes.checked_sub(size).ok_or_else(|| {
            SimulationError::limit(format!("the answer has more than {ANSWER_BYTES} bytes"))
        })?;
        receipts.push(Receipt {
            tx_type: transaction.envelope().tx_type(),
            success: outcome.failure.is_none(),
            cumulative_gas_used: header.gas_used,
            logs: outcome.logs.iter().filter(|log| !with.transfers || log.address != COIN).cloned().collect(),
        });
        transactions.push(transaction);
        calls.push((outcome, most));
    }
    let changes = changes(&evm.ctx.journaled_state.database);
    drop(evm);
    state.apply(&changes);
    Ok((Simulated { block: seal(header, transactions, &receipts, &state), calls }, state))
}

/// Puts a log in its place for each transfer of the native coin.
#[derive(Default)]
struct Transfers {
    /// For each open call, how many logs there were before it.
    open: Vec<usize>,
    /// What a contract had that destroyed itself in the innermost call.
    gone: Option<(Address, Address, U256)>,
}

fn transfer(from: Address, to: Address, value: U256) -> Option<Log> {
    let topics = vec![TRANSFER, from.into_word(), to.into_word()];
    let data = LogData::new_unchecked(topics, value.to_be_bytes::<32>().to_vec().into());
    (!value.is_zero()).then_some(Log { address: COIN, data })
}

impl Transfers {
    /// What failed has logged nothing, its own beginning included.
    fn close(&mut self, context: &mut MainnetContext<Db<'_>>, success: bool) {
        let before = self.open.pop().unwrap_or_default();
        let gone = self.gone.take();
        if !success {
            context.journaled_state.inner.logs.truncate(before);
        } else if let Some((contract, target, value)) = gone {
            context.journaled_state.inner.logs.extend(transfer(contract, target, value));
        }
    }
}

impl Inspector<MainnetContext<Db<'_>>, EthInterpreter> for Transfers {
    fn call(&mut self, context: &mut MainnetContext<Db<'_>>, inputs: &mut CallInputs) -> Option<CallOutcome> {
        self.open.push(context.journaled_state.inner.logs.len());
        if inputs.scheme == CallScheme::Call {
            let log = transfer(inputs.caller, inputs.target_address, inputs.value.get());
            context.journaled_state.inner.logs.extend(log);
        }
        None
    }

    fn call_end(&mut self, context: &mut MainnetContext<Db<'_>>, _: &CallInputs, outcome: &mut CallOutcome) {
        self.close(context, outcome.result.is_ok());
    }

    fn create(
        &mut self,
        context: &mut MainnetContext<Db<'_>>,
        _: &mut CreateInputs,
    ) -> Option<CreateOutcome> {
        self.open.push(context.journaled_state.inner.logs.len());
        None
    }

    fn create_end(
        &mut self,
        context: &mut MainnetContext<Db<'_>>,
        inputs: &CreateInputs,
        outcome: &mut CreateOutcome,
    ) {
        let before = self.open.last().copied().unwrap_or_default();
        self.close(context, outcome.result.is_ok());
        // Whom it goes to is known now, and it came before everything that the new contract did.
        if let Some(created) = outcome.address.filter(|_| outcome.result.is_ok())
            && let Some(log) = transfer(inputs.caller(), created, inputs.value())
        {
            let logs = &mut context.journaled_state.inner.logs;
            logs.insert(before.min(logs.len()), log);
        }
    }

    fn selfdestruct(&mut self, contract: Address, target: Address, value: U256) {
        self.gone = Some((contract, target, value));
    }
}
