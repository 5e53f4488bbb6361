//! Signed statements of Assay: what is said about one request, who said it, and how it is hashed.
//!
//! A [`Receipt`] is a worker's signed word on one answer. It commits to the whole [`Request`] and the whole [`Output`]
//! with a salt, to the streamed chunks through a hash [`Chain`], and to everything that is paid for: model, usage,
//! price, payer, cap. A [`Failure`] is the same for a request that was refused or broke off, an [`Audit`] is another
//! worker's word after it repeated the answer, and [`Members`] is the operator-signed list of workers, their keys
//! and prices. All of them are EIP-712 typed data signed with secp256k1, so that wallets, contracts and every EVM
//! library can check them. JSON only carries these types; hashing never depends on it.
//!
//! This crate does no I/O, has no clock and no random source, and judges nothing: whether a receipt should be believed
//! is decided by `assay-verify`. The byte-exact specification is `docs/receipt.md`, with vectors in
//! `docs/vectors/receipt.json`.
//!
//! ```
//! use assay_receipt::{Address, Bytes32, Chain, Domain, Key, Request, request_commitment};
//!
//! let domain = Domain { chain_id: 31337, contract: Address([0x11; 20]) };
//! let key = Key::from_bytes([7; 32])?;
//! let request = Request::from_text(Bytes32([1; 32]), "The capital of France is", 8);
//! let (salt, nonce) = (Bytes32([2; 32]), Bytes32([3; 32]));
//! let mut chain = Chain::start(&request_commitment(&request, &salt), &nonce);
//! let chunk = assay_receipt::Chunk { index: 0, text: " Paris".into(), tokens: vec![7042], logprobs: vec![] };
//! let signed = chain.sign(&key, &domain, chunk)?;
//! assert_eq!(signed.signer(&domain, &nonce)?, key.address());
//! # Ok::<(), assay_receipt::Error>(())
//! ```

mod bundle;
mod bytes;
mod chunk;
mod eip712;
mod error;
pub mod limits;
mod members;
mod output;
mod request;
mod sign;
mod statement;
pub mod votes;
mod voucher;
mod wire;

pub use bundle::{BUNDLE_VERSION, Bundle};
pub use bytes::{Address, Bytes32};
pub use chunk::{Chain, Chunk, SignedChunk};
pub use eip712::{Domain, Statement, Typed, encode_data, keccak256, type_definitions, typed_data};
pub use error::Error;
pub use members::{GRAPH_ARITHMETIC, Member, Members, Offer, TRACE_PROOF_ARITHMETIC};
pub use output::{FinishReason, Output, TokenLogprob, output_commitment};
pub use request::{Constraint, Message, Prompt, Request, Sampling, request_commitment};
pub use sign::{Key, Signature, Signed, signed_all};
pub use statement::{AnyStatement, Audit, Failure, FailureCode, Level, Receipt, Verdict};
pub use voucher::{Voucher, prompt_commitment};
pub use wire::{Frame, GenerateCall};
