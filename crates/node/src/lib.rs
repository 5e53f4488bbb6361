//! The chain's node: it agrees with others on blocks while it has a seat, follows them while it has none, keeps blocks, and serves them
//! by Ethereum's JSON-RPC.
//!
//! What a block means is in `assay-ledger`. Here is what surrounds it: consensus (commonware's simplex, in [`consensus`] alone),
//! the database ([`history`]), the chain as one node knows it ([`chain`]), following it without a seat ([`follow`]), beginning in the middle
//! ([`sync`]), JSON-RPC ([`rpc`]), and a node made of them ([`node`]).
//!
//! ```
//! use std::sync::Arc;
//!
//! use assay_ledger::{Attributes, Genesis, PoolLimits};
//! use assay_node::chain::Chain;
//! use assay_node::history::History;
//!
//! let genesis = Genesis::from_json(r#"{"chainId": 7, "timestamp": 1800000000, "gasLimit": 30000000}"#)?;
//! let chain = Arc::new(Chain::open(&genesis, PoolLimits::default(), History::in_memory)?);
//! // What consensus does with one validator that agrees with itself:
//! let next = Attributes { timestamp: 1_800_000_001, ..Attributes::default() };
//! let block = chain.propose(&chain.genesis().hash(), next)?;
//! chain.finalize(&block)?;
//! assert_eq!(chain.head().block.hash(), block.hash());
//! # Ok::<(), assay_node::chain::ChainError>(())
//! ```

pub mod chain;
pub mod consensus;
pub mod follow;
pub mod history;
pub mod node;
pub mod rpc;
pub mod sync;
