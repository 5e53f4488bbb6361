//! Both sides of the game of docs/disputes.md, on a chain: a [`Challenger`] who replayed an answer and got another one, and a
//! [`Defender`] for a worker whose receipts are disputed.
//!
//! Neither keeps anything. What was played is on the chain, and everything else follows from the trace of the answer, which each side
//! computes with its own model: so both go on after a restart where they stopped, and whoever does not play loses by time.
//!
//! What is not here: finding out that an answer is wrong (a replay), and where a batch's data comes from.
//!
//! ```
//! use assay_dispute::unsupported;
//! use assay_receipt::{Bytes32, Constraint, Request};
//!
//! // Before anything is spent: no contract judges what a grammar has banned.
//! let mut request = Request::from_text(Bytes32([7; 32]), "a text", 9);
//! assert_eq!(unsupported(&request), None);
//! request.constraint = Constraint::Json;
//! assert_eq!(unsupported(&request), Some("the answer had to follow a constraint"));
//! ```

mod case;
mod challenger;
mod defender;
mod game;
mod knowledge;

pub use case::{Fault, Opened, unsupported};

pub use challenger::{Challenger, Settled, batch_of};
pub use defender::{Defender, Played};
pub use game::{Action, Game, Move, State, Turn};

use assay_engine::trace::TraceError;
use assay_wallet::client::ClientError;

/// Why a dispute does not go on.
#[derive(Debug, thiserror::Error)]
pub enum DisputeError {
    /// The chain, or a contract's refusal.
    #[error(transparent)]
    Chain(#[from] ClientError),
    /// There is no trace of the answer.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// There is nothing to accuse.
    #[error(
        "the trace that the worker committed to gives the very answer that it signed: there is nothing to accuse"
    )]
    NothingWrong,
    /// The first difference cannot be judged.
    #[error(
        "the worker's trace is of another prompt, and the payer's voucher does not say which tokens the prompt has: no contract can judge that"
    )]
    Prompt,
    /// The first difference depends on what a constraint bans.
    #[error(
        "up to its tokens the worker's trace is right, and what a constraint leaves to choose from is not judged: no contract can say who is wrong"
    )]
    Constrained,
    /// What the chain says about the dispute makes no sense.
    #[error("the chain's record of dispute {0} cannot be read: {1}")]
    Record(u64, &'static str),
    /// The dispute is over, or was never opened.
    #[error("there is no dispute {0}")]
    Unknown(u64),
}
