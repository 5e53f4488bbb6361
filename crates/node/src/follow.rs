//! Following the chain without a seat: blocks and certificates come from other nodes' JSON-RPC, whom nobody has to trust, since every
//! certificate is checked against the committee of its epoch and every block is executed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use assay_ledger::{Block, Part, Piece, Transaction};
use commonware_runtime::{Clock, Handle, Spawner};
use rand_core::CryptoRng;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, error, warn};

use crate::chain::{Chain, ChainError, Origin};
use crate::consensus::check_finalization;
use crate::sync::{EpochEnd, Offer, catch_up};

/// The most blocks that one answer has.
pub const MAX_BLOCKS: u64 = 64;
/// How long to wait before asking again who had nothing new.
const REST: Duration = Duration::from_millis(250);
/// How long to wait before asking again who failed.
const RETRY: Duration = Duration::from_secs(2);

/// Blocks in the order of their numbers, and the certificate of the last of them.
#[derive(Clone, Debug)]
pub struct Proven {
    /// At least one.
    pub blocks: Vec<Block>,
    /// Encoded, for [`check_finalization`].
    pub finalization: Vec<u8>,
}

/// Another node.
pub trait Source: Send + Sync + 'static {
    /// Blocks after a number; `None` where there are none yet. All are of one epoch.
    fn after(&self, number: u64) -> impl Future<Output = Result<Option<Proven>, String>> + Send;

    /// The newest state that it offers; `None` where it has none.
    fn offer(&self) -> impl Future<Output = Result<Option<Offer>, String>> + Send {
        async { Ok(None) }
    }

    /// The ends of epochs from one on, as many as one answer has.
    fn epochs(&self, _first: u64) -> impl Future<Output = Result<Vec<EpochEnd>, String>> + Send {
        async { Ok(Vec::new()) }
    }

    /// A part of the state after a block.
    fn piece(&self, _block: u64, _part: &Part) -> impl Future<Output = Result<Piece, String>> + Send {
        async { Err("it offers no state".to_owned()) }
    }

    /// Takes a transaction.
    fn send(&self, transaction: &Transaction) -> impl Future<Output = Result<(), String>> + Send;
}

/// Why blocks of a source were not taken.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The certificate is not by a quorum of the committee, or for another block.
    #[error("the certificate for block {0} does not hold: the node that sent it is wrong or lies")]
    Certificate(u64),
    /// Executing or keeping a block.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Checks and keeps what a source sent.
///
/// # Errors
/// Nothing was kept of blocks without a certificate; blocks before one that failed were.
pub fn accept<G: CryptoRng>(chain: &Chain, proven: &Proven, random: &mut G) -> Result<(), FollowError> {
    let mut parent = chain.head().block.hash();
    for block in &proven.blocks {
        if block.header.parent_hash != parent {
            return Err(ChainError::Parent(block.header.parent_hash).into());
        }
        parent = block.hash();
    }
    let number = proven.blocks.last().map_or(0, |block| block.header.number);
    let final_one =
        chain.committee().filter(|committee| number <= committee.last_block()).and_then(|committee| {
            check_finalization(&chain.genesis().hash(), &committee, &proven.finalization, random)
        });
    if proven.blocks.is_empty() || final_one != Some(parent) {
        return Err(FollowError::Certificate(number));
    }
    for block in &proven.blocks {
        chain.finalize(block)?;
    }
    chain.history().keep_finalization(number, &proven.finalization).map_err(ChainError::from)?;
    Ok(())
}

/// Follows the sources until `seated` says that the chain's committee needs this node, at a time when no source has anything newer.
/// Nodes that have a seat catch up here too, before they vote. Who is far behind takes the state first ([`catch_up`]). Returns whether the
/// end was a seat; `false` when this node's own database failed.
pub async fn follow<E, S>(
    mut context: E,
    chain: Arc<Chain>,
    sources: Arc<Vec<S>>,
    seated: impl Fn() -> bool,
) -> bool
where
    E: Clock + CryptoRng + Spawner,
    S: Source,
{
    let mut behind = true;
    loop {
        if behind {
            behind = match catch_up(&chain, &sources, &mut context).await {
                Ok(behind) => behind,
                Err(error) => {
                    error!(%error, "a state could not be kept; the node stops");
                    chain.fail(error.to_string());
                    return false;
                }
            };
        }
        let (mut moved, mut failed) = (false, 0);
        for source in sources.iter() {
            let head = chain.head().block.header.number;
            match source.after(head).await {
                Ok(None) => {}
                Ok(Some(proven)) => match accept(&chain, &proven, &mut context) {
                    Ok(()) => moved = true,
                    Err(FollowError::Chain(ChainError::History(error))) => {
                        error!(%error, "a block could not be kept; the node stops");
                        chain.fail(error.to_string());
                        return false;
                    }
                    Err(error) => {
                        warn!(%error, "blocks of another node were refused");
                        failed += 1;
                    }
                },
                Err(error) => {
                    debug!(error, "another node did not answer");
                    failed += 1;
                }
            }
        }
        if !moved {
            // Nobody may have the next blocks any more.
            behind |= failed == sources.len();
            if seated() {
                return true;
            }
            context.sleep(if failed == sources.len() { RETRY } else { REST }).await;
        }
    }
}

/// Sends transactions that arrive here on to the first source that takes them.
pub fn forward<E, S>(context: E, chain: Arc<Chain>, sources: Arc<Vec<S>>) -> Handle<()>
where
    E: Spawner,
    S: Source,
{
    context.spawn(move |_| async move {
        let mut local = chain.subscribe_transactions();
        loop {
            match local.recv().await {
                Ok((transaction, Origin::Local)) => {
                    for source in sources.iter() {
                        match source.send(&transaction).await {
                            Ok(()) => break,
                            Err(error) => debug!(error, "another node did not take a transaction"),
                        }
                    }
                }
                Ok((_, Origin::Peer)) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    })
}
