//! The chain's state machine: what a block means.
//!
//! Accounts and storage in a Merkle-Patricia trie, Ethereum's typed transactions, execution by `revm` under the rules of
//! the Osaka hard fork, base fees after EIP-1559, blocks, receipts, and the pool of transactions that wait. Everything here is a
//! function of its arguments: no clock, file, socket or random source, no floating point, no order that depends on a hash
//! map. Who may propose a block, and when it is final, is decided elsewhere (`assay-node`).
//!
//! One precompiled contract is added to Ethereum's, which checks proofs of predictions ([`PROOF_VERIFIER`]).
//!
//! Not supported are blob transactions (EIP-4844), withdrawals, requests to a beacon chain (EIP-7685) and its roots
//! (EIP-4788): there is no beacon chain. Their header fields have the values of an empty block, but for the root of the
//! beacon chain's parent, which is the block's view in consensus.
//!
//! ```
//! use assay_ledger::{Attributes, Genesis, build};
//!
//! let genesis = Genesis::from_json(
//!     r#"{"chainId": 7, "timestamp": 1800000000, "gasLimit": 30000000, "alloc": {
//!         "0x00000000000000000000000000000000000000aa": {"balance": "1000000000000000000"}}}"#,
//! )?;
//! let (rules, first) = genesis.execute()?;
//! let next = Attributes { timestamp: 1_800_000_001, ..Attributes::default() };
//! let second = build(&rules, &first.block.header, &first.state, &next, []);
//! assert_eq!(second.block.header.number, 1);
//! // Nothing happened but EIP-2935's record of the parent's hash, so the root differs.
//! assert_ne!(second.block.header.state_root, first.block.header.state_root);
//! # Ok::<(), assay_ledger::GenesisError>(())
//! ```

mod absence;
mod block;
mod committee;
mod evidence;
mod execute;
mod genesis;
mod parts;
mod pool;
mod proofs;
mod simulate;
mod state;
mod trace;
mod transaction;
mod trie;

pub use absence::{MISSED_LEAST, TURNS_ADDRESS, view};
pub use alloy_consensus::{EthereumReceipt, Header, TxReceipt, TxType};
pub use alloy_eips::eip1559::BaseFeeParams;
pub use alloy_primitives as types;
pub use block::{Block, BlockError, MAX_BLOCK_BYTES};
pub use committee::{COMMITTEE_ADDRESS, Committee, MAX_MEMBERS, MAX_SEATS, Member};
pub use evidence::{EVIDENCE, bring, contradicts};
pub use execute::{
    Accesses, Attributes, Executed, Failure, LEAST_GAS, Message, Outcome, Rules, access_list, build,
    estimate_gas, simulate, verify,
};
pub use genesis::{Epochs, Genesis, GenesisAccount, GenesisError, Step, System, Validator};
pub use parts::{Entry, MAX_PIECE_BYTES, Part, Piece, PieceError, Slot};
pub use pool::{Added, Pool, PoolError, PoolLimits};
pub use proofs::PROOF_VERIFIER;
pub use simulate::{
    BlockOverrides, Plan, SIMULATED_BLOCKS, Simulated, SimulatedCall, Simulation, SimulationError,
    simulate_blocks,
};
pub use state::{Account, AccountChange, Overrides, Proof, State, StateOverride, TrieAccount};
pub use trace::{CallFrame, StructLog, Trace, Tracer, trace_block, trace_call};
pub use transaction::{MAX_TRANSACTION_BYTES, Signature, Transaction, TransactionError};

/// A transaction's receipt: type, success, gas used up to and including it, logs.
pub type Receipt = EthereumReceipt<TxType>;
