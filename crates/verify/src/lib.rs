//! Checks receipts offline, at every level: what a [`Bundle`] proves, and whom it leaves to trust.
//!
//! [`check`] takes a bundle and what the caller [`Expected`], recomputes every hash, recovers every signature and
//! returns a [`Report`]: a list of named checks, the level that the evidence really supports, and in plain words what
//! that proves and who is still trusted. The level is computed, never taken from a claim. [`check_failure`] does the
//! same for refusals, [`check_members`] for the list of workers, and [`check_sequence`] finds workers that told different
//! people different stories.
//!
//! With feature `replay` (a default) `check_replayed` also repeats the answer on this machine, which leaves nobody to
//! trust, and `check_light` does so without the model's weights; with feature `proof` (a default) `check_proved` checks an answer that is a proof. Without them the crate compiles to a
//! small WebAssembly and runs in the browser.
//!
//! [`finality`] is about the chain: it checks that a block is final, from nothing but the hash of block 0.
//!
//! This crate does no I/O and has no clock: it does not know whether a key was rotated since or whether a price was
//! fair, only what the caller tells it through [`Expected`].
//!
//! ```
//! use assay_receipt::{Address, Bundle, Domain};
//! use assay_verify::{Expected, State, check};
//!
//! fn accept(receipt_json: &[u8], members: &assay_receipt::Members) -> Result<bool, assay_receipt::Error> {
//!     let domain = Domain { chain_id: 31337, contract: Address([0x11; 20]) };
//!     let report = check(&Bundle::from_json(receipt_json)?, &Expected::of_members(domain, members));
//!     Ok(report.state == State::Replayed)
//! }
//! ```

mod check;
mod failure;
pub mod finality;
mod json;
#[cfg(feature = "replay")]
mod light;
mod members;
#[cfg(feature = "proof")]
mod proof;
#[cfg(feature = "replay")]
mod replay;
mod report;
mod sequence;

pub use assay_receipt::{Bundle, Level};
pub use check::{Expected, check};
pub use failure::{FailureEvidence, check_failure};
pub use json::answer;
#[cfg(feature = "replay")]
pub use light::{check_light, check_trace_proof};
pub use members::{MembersError, check_members};
#[cfg(feature = "proof")]
pub use proof::{ProofError, check_proved, proof_of};
#[cfg(feature = "replay")]
pub use replay::{ReplayError, check_embedded, check_replayed};
pub use report::{Check, CheckKind, Outcome, Report, State};
pub use sequence::{BrokenLink, Fork, Gap, SequenceReport, check_sequence};
