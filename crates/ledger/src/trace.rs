//! Transactions run again under observation, for `debug_traceTransaction`.

use alloy_primitives::{Address, Bytes, U256};
use revm::bytecode::opcode::OpCode;
use revm::context::ContextTr;
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::interpreter_types::{Jumps, MemoryTr};
use revm::interpreter::{
    CallInputs, CallOutcome, CallScheme, CreateInputs, CreateOutcome, CreateScheme, Interpreter,
    InterpreterResult,
};
use revm::{InspectCommitEvm, Inspector, MainBuilder};

use crate::evidence::is_free;
use crate::execute::{Executor, Outcome, config, context, environment, machine, outcome};
use crate::{Attributes, Block, Header, Rules, State};

/// A call, and the calls that it made (geth's callTracer).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallFrame {
    /// `CALL`, `STATICCALL`, `DELEGATECALL`, `CALLCODE`, `CREATE` or `CREATE2`.
    pub kind: &'static str,
    /// The caller.
    pub from: Address,
    /// The called or created address; `None` where a creation failed.
    pub to: Option<Address>,
    /// In 10^-18 of the native coin; `None` for kinds that cannot have any.
    pub value: Option<U256>,
    /// Gas given.
    pub gas: u64,
    /// Gas used.
    pub gas_used: u64,
    /// Call data or init code.
    pub input: Bytes,
    /// Returned data, or deployed code.
    pub output: Bytes,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// In their order.
    pub calls: Vec<CallFrame>,
}

/// One step of the machine (geth's struct logger).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructLog {
    /// Where in the code.
    pub pc: usize,
    /// The instruction's name.
    pub op: &'static str,
    /// Gas before it.
    pub gas: u64,
    /// What it cost, what it gave to a call included.
    pub gas_cost: u64,
    /// 1 for the transaction's own call.
    pub depth: usize,
    /// Before it, the last on top.
    pub stack: Vec<U256>,
    /// Before it, where asked for.
    pub memory: Option<Bytes>,
}

/// Runs the block's transactions up to `index`, and that one under an inspector.
fn observe<I>(
    rules: &Rules,
    parent: &Header,
    state: &State,
    block: &Block,
    index: usize,
    inspector: &mut I,
) -> Option<Outcome>
where
    I: for<'a> Inspector<revm::handler::MainnetContext<crate::execute::Db<'a>>, EthInterpreter>,
{
    let (timestamp, beneficiary) = (block.header.timestamp, block.header.beneficiary);
    let attributes = Attributes { timestamp, beneficiary, view: crate::view(&block.header) };
    let mut executor = Executor::new(rules, parent, state, &attributes);
    let (asked, before) = block.transactions.get(..=index)?.split_last()?;
    for transaction in before {
        executor.push(transaction.clone()).ok()?;
    }
    let db = executor.evm.ctx.journaled_state.database;
    let mut cfg = config(rules);
    cfg.disable_base_fee = is_free(asked);
    let evm = context(cfg, environment(&block.header), db).build_mainnet_with_inspector(inspector);
    let mut evm = machine(evm);
    Some(outcome(evm.inspect_tx_commit(asked.env()).ok()?))
}

/// The calls of a block's transaction; `None` where `state` is not that of the block's parent, or there is no such transaction.
pub fn trace_calls(
    rules: &Rules,
    parent: &Header,
    state: &State,
    block: &Block,
    index: usize,
) -> Option<CallFrame> {
    let mut tracer = Calls::default();
    let outcome = observe(rules, parent, state, block, index, &mut tracer)?;
    let mut frame = tracer.done?;
    // As geth has it: the outermost call has the whole transaction's gas.
    frame.gas = block.transactions[index].gas_limit();
    frame.gas_used = outcome.gas_used;
    Some(frame)
}

/// The steps of a block's transaction and how it ended; no more than `limit` steps are kept. `None` as for [`trace_calls`].
pub fn trace_steps(
    rules: &Rules,
    parent: &Header,
    state: &State,
    block: &Block,
    index: usize,
    with_memory: bool,
    limit: usize,
) -> Option<(Vec<StructLog>, Outcome)> {
    let mut tracer = Steps { with_memory, limit, ..Steps::default() };
    let outcome = observe(rules, parent, state, block, index, &mut tracer)?;
    Some((tracer.logs, outcome))
}

#[derive(Default)]
struct Calls {
    open: Vec<CallFrame>,
    done: Option<CallFrame>,
}

impl Calls {
    fn close(&mut self, result: &InterpreterResult) {
        // Every end follows a beginning; without one there is nothing to close.
        let Some(mut frame) = self.open.pop() else { return };
        frame.gas_used = result.gas.total_gas_spent();
        frame.output = result.output.clone();
        if !result.is_ok() {
            let reason = if result.is_revert() {
                "execution reverted".to_owned()
            } else {
                format!("{:?}", result.result)
            };
            frame.error = Some(reason);
        }
        match self.open.last_mut() {
            Some(parent) => parent.calls.push(frame),
            None => self.done = Some(frame),
        }
    }
}

impl<CTX: ContextTr> Inspector<CTX, EthInterpreter> for Calls {
    fn call(&mut self, context: &mut CTX, inputs: &mut CallInputs) -> Option<CallOutcome> {
        let kind = match inputs.scheme {
            CallScheme::Call => "CALL",
            CallScheme::CallCode => "CALLCODE",
            CallScheme::DelegateCall => "DELEGATECALL",
            CallScheme::StaticCall => "STATICCALL",
        };
        // A delegate call runs another's code as the caller: geth shows that other as the target.
        let (from, to) = match inputs.scheme {
            CallScheme::DelegateCall | CallScheme::CallCode => {
                (inputs.target_address, inputs.bytecode_address)
            }
            _ => (inputs.caller, inputs.target_address),
        };
        self.open.push(CallFrame {
            kind,
            from,
            to: Some(to),
            value: (inputs.scheme != CallScheme::StaticCall).then(|| inputs.value.get()),
            gas: inputs.gas_limit,
            input: inputs.input.bytes(context),
            ..CallFrame::default()
        });
        None
    }

    fn call_end(&mut self, _: &mut CTX, _: &CallInputs, outcome: &mut CallOutcome) {
        self.close(&outcome.result);
    }

    fn create(&mut self, _: &mut CTX, inputs: &mut CreateInputs) -> Option<CreateOutcome> {
        self.open.push(CallFrame {
            kind: if matches!(inputs.scheme(), CreateScheme::Create2 { .. }) { "CREATE2" } else { "CREATE" },
            from: inputs.caller(),
            value: Some(inputs.value()),
            gas: inputs.gas_limit(),
            input: inputs.init_code().clone(),
            ..CallFrame::default()
        });
        None
    }

    fn create_end(&mut self, _: &mut CTX, _: &CreateInputs, outcome: &mut CreateOutcome) {
        if let Some(frame) = self.open.last_mut() {
            frame.to = outcome.address;
        }
        self.close(&outcome.result);
    }
}

#[derive(Default)]
struct Steps {
    logs: Vec<StructLog>,
    /// For each open call the index of its last step.
    open: Vec<Option<usize>>,
    with_memory: bool,
    limit: usize,
}

impl<CTX> Inspector<CTX, EthInterpreter> for Steps {
    fn step(&mut self, interpreter: &mut Interpreter<EthInterpreter>, _: &mut CTX) {
        if self.logs.len() >= self.limit {
            if let Some(last) = self.open.last_mut() {
                *last = None;
            }
            return;
        }
        if let Some(last) = self.open.last_mut() {
            *last = Some(self.logs.len());
        }
        self.logs.push(StructLog {
            pc: interpreter.bytecode.pc(),
            op: OpCode::name_by_op(interpreter.bytecode.opcode()),
            gas: interpreter.gas.remaining(),
            gas_cost: 0,
            depth: self.open.len(),
            stack: interpreter.stack.data().to_vec(),
            memory: self
                .with_memory
                .then(|| Bytes::copy_from_slice(&interpreter.memory.slice(0..interpreter.memory.size()))),
        });
    }

    fn step_end(&mut self, interpreter: &mut Interpreter<EthInterpreter>, _: &mut CTX) {
        if let Some(Some(at)) = self.open.last()
            && let Some(log) = self.logs.get_mut(*at)
        {
            log.gas_cost = log.gas.saturating_sub(interpreter.gas.remaining());
        }
    }

    fn call(&mut self, _: &mut CTX, _: &mut CallInputs) -> Option<CallOutcome> {
        self.open.push(None);
        None
    }

    fn call_end(&mut self, _: &mut CTX, _: &CallInputs, _: &mut CallOutcome) {
        self.open.pop();
    }

    fn create(&mut self, _: &mut CTX, _: &mut CreateInputs) -> Option<CreateOutcome> {
        self.open.push(None);
        None
    }

    fn create_end(&mut self, _: &mut CTX, _: &CreateInputs, _: &mut CreateOutcome) {
        self.open.pop();
    }
}
