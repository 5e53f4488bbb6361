//! Transactions and calls under observation, for `debug_trace…`.

use std::ops::Range;

use alloy_primitives::{Address, Bytes, U256};
use revm::bytecode::opcode::OpCode;
use revm::context::{BlockEnv, CfgEnv, ContextTr, TxEnv};
use revm::handler::MainnetContext;
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::interpreter_types::{Jumps, MemoryTr};
use revm::interpreter::{
    CallInputs, CallOutcome, CallScheme, CreateInputs, CreateOutcome, CreateScheme, Interpreter,
    InterpreterResult,
};
use revm::{InspectEvm, Inspector, MainBuilder};

use crate::evidence::is_free;
use crate::execute::{
    Db, Executor, Message, Outcome, assumed, config, context, environment, machine, outcome, sentence,
};
use crate::state::Overrides;
use crate::{Attributes, Block, Header, Rules, State};

/// The most bytes that the traces of one request hold, beside what is fixed for each step and call: a step's memory alone may have megabytes.
const TRACE_BYTES: usize = 64 << 20;

/// What a call takes beside its data, and a step beside stack and memory.
const ENTRY_BYTES: usize = 256;

/// Said by a call of which something is not in the trace.
const CUT_OFF: &str = "calls or data are left out: the trace has more than 64 MiB";

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
    /// Why it failed, if it did; or that calls are left out, since the trace is too large.
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

/// What is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// Calls.
    Calls,
    /// Steps, the first so many, or fewer where they have much on stacks and in memory, with the memory before each where asked for.
    Steps {
        /// Whether with the memory.
        memory: bool,
        /// The most steps.
        limit: usize,
    },
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The outermost call.
    Calls(CallFrame),
    /// Steps, and how it ended.
    Steps(Vec<StructLog>, Outcome),
}

/// Runs one transaction or call under a tracer, which takes what it keeps from `left`.
fn observe(
    tracer: Tracer,
    left: &mut usize,
    cfg: CfgEnv,
    block: BlockEnv,
    db: Db<'_>,
    env: TxEnv,
) -> Result<Trace, String> {
    fn run<'a, I>(
        cfg: CfgEnv,
        block: BlockEnv,
        db: Db<'a>,
        env: TxEnv,
        inspector: I,
    ) -> Result<Outcome, String>
    where
        I: Inspector<MainnetContext<Db<'a>>, EthInterpreter>,
    {
        let mut evm = machine(context(cfg, block, db).build_mainnet_with_inspector(inspector));
        evm.inspect_tx(env).map(|done| outcome(done.result)).map_err(|error| sentence(&error))
    }
    match tracer {
        Tracer::Calls => {
            let gas = env.gas_limit;
            let mut calls = Calls { left: *left, ..Calls::default() };
            let outcome = run(cfg, block, db, env, &mut calls)?;
            *left = calls.left;
            let mut frame = calls.done.ok_or("nothing was called")?;
            // As geth has it: the outermost call has the whole transaction's gas.
            (frame.gas, frame.gas_used) = (gas, outcome.gas_used);
            Ok(Trace::Calls(frame))
        }
        Tracer::Steps { memory, limit } => {
            let mut steps = Steps { with_memory: memory, limit, left: *left, ..Steps::default() };
            let outcome = run(cfg, block, db, env, &mut steps)?;
            *left = steps.left;
            Ok(Trace::Steps(steps.logs, outcome))
        }
    }
}

/// Runs a block's transactions again, and those of a range under a tracer, which sees so many steps in all of them together. `None` where
/// `state` is not that of the block's parent, or there are no such transactions.
pub fn trace_block(
    rules: &Rules,
    parent: &Header,
    state: &State,
    block: &Block,
    range: Range<usize>,
    mut tracer: Tracer,
) -> Option<Vec<Trace>> {
    let (timestamp, beneficiary) = (block.header.timestamp, block.header.beneficiary);
    let attributes = Attributes { timestamp, beneficiary, view: crate::view(&block.header) };
    let mut executor = Executor::new(rules, parent, state, &attributes);
    let asked = block.transactions.get(range.clone())?;
    for transaction in &block.transactions[..range.start] {
        executor.push(transaction.clone()).ok()?;
    }
    let (mut found, mut left) = (Vec::new(), TRACE_BYTES);
    for transaction in asked {
        // On a copy, so that what follows the machine's run in a block is in one place.
        let db = executor.evm.ctx.journaled_state.database.clone();
        let mut cfg = config(rules);
        cfg.disable_base_fee = is_free(transaction);
        let trace =
            observe(tracer, &mut left, cfg, environment(&block.header), db, transaction.env()).ok()?;
        if let (Tracer::Steps { limit, .. }, Trace::Steps(steps, _)) = (&mut tracer, &trace) {
            *limit -= steps.len().min(*limit);
        }
        found.push(trace);
        if found.len() < asked.len() {
            executor.push(transaction.clone()).ok()?;
        }
    }
    Some(found)
}

/// Runs a call under a tracer, as [`crate::simulate`] runs it.
///
/// # Errors
/// Why it could not begin.
pub fn trace_call(
    rules: &Rules,
    header: &Header,
    state: &State,
    overrides: &Overrides,
    message: &Message,
    tracer: Tracer,
) -> Result<Trace, String> {
    let (cfg, block, db, env) = assumed(rules, header, state, overrides, message);
    observe(tracer, &mut { TRACE_BYTES }, cfg, block, db, env)
}

#[derive(Default)]
struct Calls {
    open: Vec<CallFrame>,
    done: Option<CallFrame>,
    /// Bytes that may still be kept; with none left, calls are only counted.
    left: usize,
}

impl Calls {
    /// Takes a call's place and data from what is left; whether there was enough.
    fn take(&mut self, data: usize) -> bool {
        let enough = self.left > ENTRY_BYTES + data;
        self.left = self.left.saturating_sub(ENTRY_BYTES + data);
        enough
    }

    fn close(&mut self, result: &InterpreterResult) {
        // Every end follows a beginning; without one there is nothing to close.
        let Some(mut frame) = self.open.pop() else { return };
        frame.gas_used = result.gas.total_gas_spent();
        let kept = self.take(result.output.len());
        if kept {
            frame.output = result.output.clone();
        }
        if !result.is_ok() {
            let reason = if result.is_revert() {
                "execution reverted".to_owned()
            } else {
                format!("{:?}", result.result)
            };
            let cut = frame.error.replace(reason).is_some();
            if cut {
                cut_off(&mut frame);
            }
        }
        match self.open.last_mut() {
            Some(parent) if kept => parent.calls.push(frame),
            Some(parent) => cut_off(parent),
            None => {
                if !kept {
                    cut_off(&mut frame);
                }
                self.done = Some(frame);
            }
        }
    }
}

/// Says so once, beside why the call failed.
fn cut_off(frame: &mut CallFrame) {
    match &mut frame.error {
        Some(error) if error.contains(CUT_OFF) => {}
        Some(error) => {
            error.push_str("; ");
            error.push_str(CUT_OFF);
        }
        None => frame.error = Some(CUT_OFF.to_owned()),
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
        let kept = self.take(inputs.input.len());
        self.open.push(CallFrame {
            kind,
            from,
            to: Some(to),
            value: (inputs.scheme != CallScheme::StaticCall).then(|| inputs.value.get()),
            gas: inputs.gas_limit,
            input: if kept { inputs.input.bytes(context) } else { Bytes::new() },
            ..CallFrame::default()
        });
        None
    }

    fn call_end(&mut self, _: &mut CTX, _: &CallInputs, outcome: &mut CallOutcome) {
        self.close(&outcome.result);
    }

    fn create(&mut self, _: &mut CTX, inputs: &mut CreateInputs) -> Option<CreateOutcome> {
        let kept = self.take(inputs.init_code().len());
        self.open.push(CallFrame {
            kind: if matches!(inputs.scheme(), CreateScheme::Create2 { .. }) { "CREATE2" } else { "CREATE" },
            from: inputs.caller(),
            value: Some(inputs.value()),
            gas: inputs.gas_limit(),
            input: if kept { inputs.init_code().clone() } else { Bytes::new() },
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
    /// Bytes that may still be kept.
    left: usize,
    /// For each open call the index of its last step.
    open: Vec<Option<usize>>,
    with_memory: bool,
    limit: usize,
}

impl<CTX> Inspector<CTX, EthInterpreter> for Steps {
    fn step(&mut self, interpreter: &mut Interpreter<EthInterpreter>, _: &mut CTX) {
        let memory = if self.with_memory { interpreter.memory.size() } else { 0 };
        let bytes = ENTRY_BYTES + 32 * interpreter.stack.len() + memory;
        if self.logs.len() >= self.limit || self.left < bytes {
            // What comes later would be of less use than what is missing before it.
            self.limit = 0;
            if let Some(last) = self.open.last_mut() {
                *last = None;
            }
            return;
        }
        if let Some(last) = self.open.last_mut() {
            *last = Some(self.logs.len());
        }
        self.left -= bytes;
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
