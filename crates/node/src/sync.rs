//! State sync: a node that is far behind takes the state of a recent final block from other nodes' JSON-RPC, and follows from there.
//!
//! It believes nobody. Committees are followed from the one that it knows, in the end the genesis's, from epoch to epoch by certificates,
//! as a light client does it; a certificate proves the header, and the header's state root proves each piece of the state by itself
//! ([`assay_ledger::Part`]). A piece is on disk with what is then missing before the next is asked for, so whoever is killed goes on where
//! it was, and memory holds one piece at a time until the state is whole and loaded.
//!
//! What nobody can prove so is which of two histories is right when more than a third of a past committee's keys sign another one later:
//! then, as in every chain of stake, one asks people whom one trusts for the hash of a recent block (`assay verify --block`).

use alloy_rlp::Decodable;
use assay_ledger::types::B256;
use assay_ledger::{Committee, Header, Part, Piece, PieceError};
use rand_core::CryptoRng;
use thiserror::Error;
use tracing::{info, warn};

use crate::chain::{Chain, ChainError};
use crate::consensus::check_finalization;
use crate::follow::Source;
use crate::history::{Arriving, History, HistoryError};

/// A node that is so many blocks behind, or as many as it keeps where those are fewer, takes the state.
pub const FAR_BEHIND: u64 = 1_024;
/// So many ends of epochs are in one answer at most.
pub const MAX_EPOCHS: usize = 64;
/// A block's certificate is its own or that of one of so many after it.
pub const FINAL_WITHIN: u64 = 1_000;

/// The end of an epoch.
#[derive(Clone, Debug)]
pub struct EpochEnd {
    /// Of its last block.
    pub header: Header,
    /// That block's certificate, encoded.
    pub finalization: Vec<u8>,
    /// Who decides the blocks of the next epoch.
    pub next: Committee,
}

/// A state that a node offers, and what proves its block.
#[derive(Clone, Debug)]
pub struct Offer {
    /// From the state's block to the one that the certificate is for, all of one epoch.
    pub headers: Vec<Header>,
    /// Encoded, for [`check_finalization`].
    pub finalization: Vec<u8>,
}

/// How far a state has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The block after which it is.
    pub block: u64,
    /// In thousandths: how much of the space of hashes is done.
    pub done: u32,
    /// What has come, in bytes.
    pub bytes: u64,
}

/// Why a source's proof or piece was not taken.
#[derive(Debug, Error)]
pub enum SyncError {
    /// It did not answer, or not with what can be read.
    #[error("{0}")]
    Source(String),
    /// The end of an epoch, or the header of a state, that no quorum has signed.
    #[error(
        "it does not prove block {0}: the certificate is not by a quorum of the epoch's committee, or for another block"
    )]
    Unproven(u64),
    /// The committees end before the state's block.
    #[error("it does not prove the committees after epoch {0}")]
    Committees(u64),
    /// Part of the state.
    #[error(transparent)]
    Piece(#[from] PieceError),
}

/// Reads an encoded header; `None` for other bytes.
pub fn header(mut bytes: &[u8]) -> Option<Header> {
    Header::decode(&mut bytes).ok().filter(|_| bytes.is_empty())
}

/// The headers and the certificate that prove a block; `None` where there is no certificate yet.
pub fn proof(history: &History, number: u64) -> Result<Option<Offer>, HistoryError> {
    let Some(last) = history.finalized_from(number)?.filter(|last| last - number < FINAL_WITHIN) else {
        return Ok(None);
    };
    // Of what is old only the ends of epochs are there.
    let headers = (number..=last).map(|number| history.header(number)?.ok_or(HistoryError::Pruned));
    let headers = headers.collect::<Result<Vec<_>, _>>()?;
    Ok(history.finalization(last)?.map(|finalization| Offer { headers, finalization }))
}

/// The newest state that a chain offers, if there is one that can be proved.
pub fn offer(chain: &Chain) -> Result<Option<Offer>, HistoryError> {
    for number in chain.offered().into_iter().rev().filter(|number| *number > 0) {
        if let Some(found) = proof(chain.history(), number)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The ends of epochs from one on, as far as they are final and an answer holds them.
pub fn epochs(chain: &Chain, first: u64) -> Result<Vec<EpochEnd>, HistoryError> {
    let (history, mut found) = (chain.history(), Vec::new());
    for epoch in first..first.saturating_add(MAX_EPOCHS as u64) {
        let (Some(committee), Some(next)) = (history.committee(epoch)?, epoch.checked_add(1)) else { break };
        let number = committee.last_block();
        let (Some(next), Some(header), Some(finalization)) =
            (history.committee(next)?, history.header(number)?, history.finalization(number)?)
        else {
            break;
        };
        found.push(EpochEnd { header, finalization, next });
    }
    Ok(found)
}

/// A piece of a state that is offered. `None` where it is no more, or has no such node.
pub fn piece(chain: &Chain, number: u64, account: Option<&B256>, path: &[u8]) -> Option<Piece> {
    chain.offered_state(number)?.piece(account, path)
}

/// Checks a source's offer, following the committees from where this node knows them. `None` where it is not far ahead.
async fn examine<S: Source, G: CryptoRng>(
    chain: &Chain,
    source: &S,
    beyond: u64,
    random: &mut G,
) -> Result<Result<Option<Header>, SyncError>, ChainError> {
    let offer = match source.offer().await {
        Ok(Some(offer)) => offer,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(SyncError::Source(error))),
    };
    let head = chain.head().block.header.number;
    let Some(wanted) = offer.headers.first().cloned() else { return Ok(Ok(None)) };
    if wanted.number <= head.saturating_add(beyond) || offer.headers.len() as u64 > FINAL_WITHIN {
        return Ok(Ok(None));
    }
    let genesis = chain.genesis().hash();
    let Some(mut committee) = chain.committee() else { return Ok(Ok(None)) };
    while committee.last_block() < wanted.number {
        let Some(next) = chain.history().committee(committee.epoch + 1)? else { break };
        committee = next;
    }
    while committee.last_block() < wanted.number {
        let ends = match source.epochs(committee.epoch).await {
            Ok(ends) => ends,
            Err(error) => return Ok(Err(SyncError::Source(error))),
        };
        if ends.is_empty() {
            return Ok(Err(SyncError::Committees(committee.epoch)));
        }
        for EpochEnd { header, finalization, next } in ends.into_iter().take(MAX_EPOCHS) {
            let number = committee.last_block();
            if number >= wanted.number {
                break;
            }
            let proven = check_finalization(&genesis, &committee, &finalization, random);
            let follows = next.epoch == committee.epoch + 1
                && next.blocks == committee.blocks
                && *header.extra_data == next.hash().as_slice();
            if header.number != number || proven != Some(header.hash_slow()) || !follows {
                return Ok(Err(SyncError::Unproven(number)));
            }
            chain.history().keep_epoch(&header, &finalization, &next)?;
            committee = next;
        }
    }
    let linked = offer.headers.windows(2).all(|pair| {
        pair[1].parent_hash == pair[0].hash_slow() && Some(pair[1].number) == pair[0].number.checked_add(1)
    });
    let last = offer.headers.last().filter(|last| last.number <= committee.last_block());
    let proven = check_finalization(&genesis, &committee, &offer.finalization, random);
    if !linked || proven.is_none() || proven != last.map(Header::hash_slow) {
        return Ok(Err(SyncError::Unproven(wanted.number)));
    }
    if let [_] = offer.headers.as_slice() {
        // So this node can offer the state too, once it has it.
        chain.history().keep_finalization(wanted.number, &offer.finalization)?;
    }
    Ok(Ok(Some(wanted)))
}

/// Takes the state of the newest block that a source proves, if that is far ahead of the head. Returns whether there is still such a
/// state to take, since sources failed: what came is kept, and the next call goes on.
///
/// # Errors
/// This node's own database. What sources do wrong is in the log, and the others are asked.
pub async fn catch_up<S: Source, G: CryptoRng>(
    chain: &Chain,
    sources: &[S],
    random: &mut G,
) -> Result<bool, ChainError> {
    // An archive executes every block.
    let Some(keep) = chain.history().retention().blocks else { return Ok(false) };
    let mut bad = vec![false; sources.len()];
    let mut best: Option<Header> = None;
    for (source, bad) in sources.iter().zip(&mut bad) {
        match examine(chain, source, keep.min(FAR_BEHIND), random).await? {
            Ok(Some(found)) if best.as_ref().is_none_or(|best| best.number < found.number) => {
                best = Some(found)
            }
            Ok(_) => {}
            Err(SyncError::Source(error)) => tracing::debug!(error, "another node offers no state"),
            Err(error) => {
                warn!(%error, "a state that another node offers was refused");
                *bad = true;
            }
        }
    }
    let head = chain.head().block.header.number;
    if let Some(begun) = chain.history().arriving()? {
        if begun.header.number > head && fetch(chain, sources, &mut bad.clone(), begun.clone()).await? {
            return Ok(false);
        }
        if best.as_ref().is_none_or(|best| best.number <= begun.header.number) && begun.header.number > head {
            return Ok(true);
        }
        if best.is_none() {
            chain.history().forget_state()?;
        }
    }
    let Some(best) = best else { return Ok(false) };
    info!(block = best.number, "the state comes from other nodes");
    let begun = chain.history().expect_state(&best)?;
    Ok(!fetch(chain, sources, &mut bad, begun).await?)
}

/// Asks the sources in turn for what is missing, leaving out who fails. Whether the state is now the head's.
async fn fetch<S: Source>(
    chain: &Chain,
    sources: &[S],
    bad: &mut [bool],
    mut arriving: Arriving,
) -> Result<bool, ChainError> {
    let number = arriving.header.number;
    let mut turn = 0;
    while let Some(part) = arriving.missing.pop() {
        chain.report(Some(Progress { block: number, done: position(&part), bytes: arriving.bytes }));
        // Of a state that was offered before, unless something was different there; what it leaves to be asked for follows from it as well.
        let kept = chain.history().piece(&part)?;
        let mut found = kept.and_then(|piece| Some((part.check(&piece).ok()?, piece)));
        for _ in 0..if found.is_some() { 0 } else { sources.len() } {
            let at = turn % sources.len();
            turn += 1;
            if bad[at] {
                continue;
            }
            let answer = sources[at].piece(number, &part).await.map_err(SyncError::Source);
            match answer.and_then(|piece| Ok((part.check(&piece)?, piece))) {
                Ok(good) => {
                    found = Some(good);
                    break;
                }
                Err(error) => {
                    warn!(%error, block = number, "a piece of the state was refused; the others are asked");
                    bad[at] = true;
                }
            }
        }
        let Some((below, piece)) = found else {
            chain.report(None);
            return Ok(false);
        };
        arriving.bytes += alloy_rlp::Encodable::length(&piece) as u64;
        arriving.missing.extend(below.into_iter().rev());
        chain.history().keep_piece(&part, &piece, &arriving)?;
    }
    chain.adopt(&arriving.header)?;
    chain.report(None);
    info!(block = number, bytes = arriving.bytes, "the state is here, and follows from the header");
    Ok(true)
}

/// Where a part is among all hashes, in thousandths.
fn position(part: &Part) -> u32 {
    let first = match part.account() {
        Some(key) => u32::from(u16::from_be_bytes([key[0], key[1]])),
        None => (0..4).fold(0, |sum, i| sum << 4 | u32::from(part.path().get(i).copied().unwrap_or(0))),
    };
    (first * 1_000) >> 16
}
