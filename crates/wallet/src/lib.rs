//! A client of the chain: keys in encrypted keystores, calls of contracts by their ABI, signed transactions over a node's JSON-RPC,
//! and the system contracts of a deployment.
//!
//! It decides nothing and stores nothing: commands, gateways and workers say what to call and keep their own keys. It speaks to any
//! chain with Ethereum's JSON-RPC; addresses of the system contracts follow from who deployed them.
//!
//! ```
//! use assay_wallet::abi::text;
//! use assay_wallet::system::System;
//! use serde_json::json;
//!
//! let system = System::of_genesis();
//! let call = system.prepare("Opg", "transfer", &[text(system.address("Treasury")?), json!("1000000000000000000")])?;
//! // ERC-20's `transfer(address,uint256)`.
//! assert_eq!(call.data[..4], [0xa9, 0x05, 0x9c, 0xbb]);
//! assert!(system.prepare("Opg", "transfer", &[json!("0x12"), json!(1)]).is_err());
//! # Ok::<(), assay_wallet::abi::AbiError>(())
//! ```

pub mod abi;
pub mod chain;
pub mod client;
pub mod keystore;
pub mod registry;
pub mod settlement;
pub mod system;
