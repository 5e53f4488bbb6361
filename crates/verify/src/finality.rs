//! A light client of the chain: which blocks are final, by signatures alone, from nothing but the hash of block 0.
//!
//! Block 0 and the last block of each epoch name a committee by the hash in their extra data (see `assay_ledger::Committee` for its
//! bytes). A block is final when members with a quorum of the seats of its epoch's committee, more than two thirds, have signed it or a
//! block after it: a simplex finalization of `commonware-consensus`. Nothing of commonware is used here.
//!
//! Signatures are checked as ZIP 215 says (cofactored), which is how validators check them: what they accept is accepted here.

use assay_receipt::keccak256;
use assay_receipt::votes::{is_signed, message, varint};
use thiserror::Error;

/// Headers of one proof at most: a block is proved by a certificate of one of so many blocks after it.
pub const HEADERS_MAX: usize = 1_000;
/// A header's longest encoding in bytes; real ones have about 600.
const HEADER_BYTES_MAX: usize = 2_048;
/// Members of a committee and seats at most, as the ledger has it.
const MEMBERS_MAX: usize = 128;
const SEATS_MAX: u32 = 1_000;

/// Why something is not proved to be final.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FinalityError {
    /// Bytes that are no header of a block.
    #[error("header {0} of the proof is not the header of a block")]
    Header(usize),
    /// A header that is not the parent of the next.
    #[error("header {0} of the proof does not follow from the one before")]
    Chain(usize),
    /// The first block is another chain's.
    #[error("the block is not block 0 of this chain: its hash is another")]
    OtherChain,
    /// The committee is not the one that the block names.
    #[error("the committee is not the one that the block names")]
    Committee,
    /// The block belongs to another epoch than the committee.
    #[error("block {block} is not of epoch {epoch}: follow the chain to its epoch first")]
    OtherEpoch {
        /// The block's number.
        block: u64,
        /// The client's epoch.
        epoch: u64,
    },
    /// Not the last block of an epoch.
    #[error("block {0} names no committee: only the last block of an epoch does")]
    NoBoundary(u64),
    /// Bytes that are no certificate.
    #[error("the certificate cannot be read")]
    Certificate,
    /// The certificate is for another block or epoch.
    #[error("the certificate is for another block, or of another epoch")]
    OtherBlock,
    /// Somebody without seats signed, or somebody twice.
    #[error("the certificate names a member that there is not, or one twice")]
    Member,
    /// Less than a quorum.
    #[error("members with {found} seats signed, and {wanted} are needed")]
    Quorum {
        /// Seats of those who signed.
        found: u32,
        /// Seats that decide.
        wanted: u32,
    },
    /// A signature that does not hold.
    #[error(
        "the signature of member {0} does not hold: it is for another message or chain, or by another key"
    )]
    Signature(u16),
}

/// A header as far as a light client needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalBlock {
    /// Its number.
    pub number: u64,
    /// Keccak-256 of the encoded header: the block's hash.
    pub hash: [u8; 32],
    /// The root of all accounts after it, for `eth_getProof`.
    pub state_root: [u8; 32],
    /// Seconds since 1970.
    pub timestamp: u64,
}

struct Header {
    block: FinalBlock,
    parent: [u8; 32],
    extra: Vec<u8>,
}

/// The next item of an RLP payload, whether it is a list, and what comes after it. Only encodings that are as short as can be.
fn item(bytes: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (list, short) = match first {
        0..=0x7f => return Some((&bytes[..1], false, rest)),
        0x80..=0xbf => (false, first - 0x80),
        _ => (true, first - 0xc0),
    };
    let (length, rest) = if short <= 55 {
        (usize::from(short), rest)
    } else {
        let (length, rest) = rest.split_at_checked(usize::from(short - 55))?;
        if length.len() > 4 || length[0] == 0 {
            return None;
        }
        let length = length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
        (if length > 55 { length } else { return None }, rest)
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    let single = !list && matches!(payload, [0..=0x7f]);
    (!single).then_some((payload, list, rest))
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > HEADER_BYTES_MAX {
            return None;
        }
        let (mut payload, true, []) = item(bytes)? else { return None };
        let mut fields = Vec::new();
        while !payload.is_empty() {
            let (field, false, rest) = item(payload)? else { return None };
            fields.push(field);
            payload = rest;
        }
        let word = |at: usize| -> Option<[u8; 32]> { (*fields.get(at)?).try_into().ok() };
        let number = |at: usize| {
            let bytes = fields.get(at).filter(|bytes| bytes.len() <= 8 && bytes.first() != Some(&0))?;
            Some(bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        // Parent, ommers, beneficiary, state, transactions, receipts, bloom, difficulty, number, gas limit, gas used, time, extra data.
        let block = FinalBlock {
            number: number(8)?,
            hash: keccak256(bytes).0,
            state_root: word(3)?,
            timestamp: number(11)?,
        };
        Some(Self { block, parent: word(0)?, extra: fields.get(12)?.to_vec() })
    }
}

#[derive(Clone, Debug)]
struct Committee {
    epoch: u64,
    blocks: u64,
    /// Keys and seats.
    members: Vec<([u8; 32], u32)>,
}

impl Committee {
    /// Reads the bytes whose hash a header has.
    fn named(header: &Header, bytes: &[u8]) -> Result<Self, FinalityError> {
        if header.extra != keccak256(bytes).0 {
            return Err(FinalityError::Committee);
        }
        Self::parse(bytes).ok_or(FinalityError::Committee)
    }

    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut take = |length: usize| -> Option<&[u8]> {
            let (taken, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            Some(taken)
        };
        take(1).filter(|version| *version == [0])?;
        let epoch = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let blocks = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let count = usize::from(u16::from_be_bytes(take(2)?.try_into().ok()?));
        let mut members = Vec::new();
        let mut seats = 0u32;
        for _ in 0..count {
            let key = take(32)?.try_into().ok()?;
            let own = u32::from_be_bytes(take(4)?.try_into().ok()?);
            let endpoint = usize::from(*take(1)?.first()?);
            take(endpoint)?;
            seats = seats.checked_add(own)?;
            members.push((key, own));
        }
        let sane = blocks >= 2 && count <= MEMBERS_MAX && (1..=SEATS_MAX).contains(&seats);
        (sane && bytes.is_empty()).then_some(Self { epoch, blocks, members })
    }

    fn holds(&self, block: u64) -> bool {
        block / self.blocks == self.epoch
    }

    fn seats(&self) -> u32 {
        self.members.iter().map(|(_, seats)| seats).sum()
    }
}

/// What a light client knows: the chain, and the committee of the epoch that it has followed to.
///
/// ```
/// use assay_verify::finality::{FinalityError, LightClient};
///
/// // A node answers with block 0's header and committee (`assay_getFinalization(0)`, `assay_getCommittee(0)`), and nobody has to
/// // believe it:
/// let lie = LightClient::new([7; 32], b"no header", b"no committee");
/// assert_eq!(lie.err(), Some(FinalityError::Header(0)));
/// ```
#[derive(Clone, Debug)]
pub struct LightClient {
    genesis: [u8; 32],
    committee: Committee,
}

impl LightClient {
    /// Begins at block 0, whose hash is all that is believed: its encoded header and its committee.
    pub fn new(genesis: [u8; 32], header: &[u8], committee: &[u8]) -> Result<Self, FinalityError> {
        let header = Header::parse(header).ok_or(FinalityError::Header(0))?;
        if header.block.hash != genesis || header.block.number != 0 {
            return Err(FinalityError::OtherChain);
        }
        let committee = Committee::named(&header, committee)?;
        // Its number is in the hash; a chain does not begin in the middle.
        if committee.epoch != 0 {
            return Err(FinalityError::Committee);
        }
        Ok(Self { genesis, committee })
    }

    /// The epoch that it has followed to.
    pub fn epoch(&self) -> u64 {
        self.committee.epoch
    }

    /// The last block of that epoch, which [`advance`](Self::advance) wants.
    pub fn last_block(&self) -> u64 {
        (self.committee.epoch + 1).saturating_mul(self.committee.blocks) - 1
    }

    /// Checks that a block is final: `headers` are the encoded headers from it to the one that `certificate` is for.
    pub fn verify<H: AsRef<[u8]>>(
        &self,
        headers: &[H],
        certificate: &[u8],
    ) -> Result<FinalBlock, FinalityError> {
        self.check(headers, certificate).map(|header| header.block)
    }

    /// Goes on to the next epoch: the last block of this one, proved as in [`verify`](Self::verify), and the committee that it names.
    pub fn advance<H: AsRef<[u8]>>(
        &mut self,
        headers: &[H],
        certificate: &[u8],
        committee: &[u8],
    ) -> Result<FinalBlock, FinalityError> {
        let header = self.check(headers, certificate)?;
        if header.block.number != self.last_block() {
            return Err(FinalityError::NoBoundary(header.block.number));
        }
        let next = Committee::named(&header, committee)?;
        if next.epoch != self.committee.epoch + 1 || next.blocks != self.committee.blocks {
            return Err(FinalityError::Committee);
        }
        self.committee = next;
        Ok(header.block)
    }

    fn check<H: AsRef<[u8]>>(&self, headers: &[H], certificate: &[u8]) -> Result<Header, FinalityError> {
        let mut first = None;
        let mut last: Option<Header> = None;
        for (i, bytes) in headers.iter().enumerate().take(HEADERS_MAX) {
            let header = Header::parse(bytes.as_ref()).ok_or(FinalityError::Header(i))?;
            if let Some(parent) = &last
                && (header.parent != parent.block.hash || header.block.number != parent.block.number + 1)
            {
                return Err(FinalityError::Chain(i));
            }
            if let Some(parent) = last.replace(header) {
                first.get_or_insert(parent);
            }
        }
        let last =
            last.filter(|_| headers.len() <= HEADERS_MAX).ok_or(FinalityError::Header(headers.len()))?;
        let first_number = first.as_ref().map_or(last.block.number, |first| first.block.number);
        for block in [first_number, last.block.number] {
            if !self.committee.holds(block) {
                return Err(FinalityError::OtherEpoch { block, epoch: self.committee.epoch });
            }
        }
        self.certified(&last.block.hash, certificate)?;
        Ok(first.unwrap_or(last))
    }

    /// Epoch, view, view of the parent (each LEB128), the block's hash; then how many signed (2 bytes), and for each its place in the
    /// committee (2 bytes) and its signature (64 bytes).
    fn certified(&self, hash: &[u8; 32], certificate: &[u8]) -> Result<(), FinalityError> {
        let mut rest = certificate;
        let epoch = varint(&mut rest).ok_or(FinalityError::Certificate)?;
        varint(&mut rest).and_then(|_| varint(&mut rest)).ok_or(FinalityError::Certificate)?;
        let (block, signatures) = rest.split_at_checked(32).ok_or(FinalityError::Certificate)?;
        if epoch != self.committee.epoch || block != hash {
            return Err(FinalityError::OtherBlock);
        }
        let proposal = &certificate[..certificate.len() - signatures.len()];
        let (count, signatures) = signatures.split_first_chunk().ok_or(FinalityError::Certificate)?;
        if signatures.len() != usize::from(u16::from_be_bytes(*count)) * 66 {
            return Err(FinalityError::Certificate);
        }
        let message = message(&self.genesis, "_FINALIZE", proposal);
        let (mut found, mut least) = (0, 0);
        let mut parts = Vec::new();
        for part in signatures.chunks_exact(66) {
            let place = u16::from_be_bytes([part[0], part[1]]);
            let (key, seats) = self.committee.members.get(usize::from(place)).ok_or(FinalityError::Member)?;
            // Ascending, so nobody counts twice.
            if place < least {
                return Err(FinalityError::Member);
            }
            least = place + 1;
            found += seats;
            parts.push((place, key, part));
        }
        let seats = self.committee.seats();
        let wanted = seats - (seats - 1) / 3;
        if found < wanted {
            return Err(FinalityError::Quorum { found, wanted });
        }
        for (place, key, part) in parts {
            let signature = <&[u8; 64]>::try_from(&part[2..]).map_err(|_| FinalityError::Certificate)?;
            if !is_signed(key, &message, signature) {
                return Err(FinalityError::Signature(place));
            }
        }
        Ok(())
    }
}
