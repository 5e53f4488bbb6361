//! Blocks and their encoding.

use std::sync::Arc;

use alloy_consensus::Header;
use alloy_primitives::{B256, keccak256};
use alloy_rlp::{Decodable, Encodable, Header as Rlp};
use thiserror::Error;

use crate::transaction::{Transaction, TransactionError};

/// A block's longest encoding in bytes. It bounds what a peer can make a validator read.
pub const MAX_BLOCK_BYTES: usize = 2 * 1024 * 1024;

/// Why a block is not one, or does not follow from its parent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// Longer than [`MAX_BLOCK_BYTES`].
    #[error("a block of {0} bytes exceeds the limit of {MAX_BLOCK_BYTES}")]
    Oversized(usize),
    /// Not the encoding of a block.
    #[error("the block could not be decoded: {0}")]
    Malformed(String),
    /// One of its transactions is none.
    #[error("transaction {0} of the block: {1}")]
    Transaction(usize, TransactionError),
    /// A transaction that cannot be in this place.
    #[error("transaction {0} of the block cannot be executed: {1}")]
    Unexecutable(usize, String),
    /// A field of the header differs from what follows from parent and transactions.
    #[error("the block's {0} does not follow from its parent and its transactions")]
    Header(&'static str),
}

/// A header and the transactions. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Ethereum's header; its hash is the block's.
    pub header: Arc<Header>,
    /// In the order of execution.
    pub transactions: Arc<Vec<Transaction>>,
    hash: B256,
}

impl Block {
    /// A block from its parts. Nothing is checked.
    pub fn new(header: Header, transactions: Vec<Transaction>) -> Self {
        let hash = header.hash_slow();
        Self { header: Arc::new(header), transactions: Arc::new(transactions), hash }
    }

    /// Keccak-256 of the encoded header.
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// The size in bytes of [`encode`](Self::encode).
    pub fn encoded_len(&self) -> usize {
        let (header, transactions) = self.lengths();
        let payload = header + Rlp { list: true, payload_length: transactions }.length_with_payload();
        Rlp { list: true, payload_length: payload }.length_with_payload()
    }

    fn lengths(&self) -> (usize, usize) {
        (self.header.length(), self.transactions.iter().map(|t| t.bytes().as_ref().length()).sum())
    }

    /// `rlp([header, [transaction, …]])`, each transaction as a byte string.
    pub fn encode(&self) -> Vec<u8> {
        let (header, transactions) = self.lengths();
        let list = Rlp { list: true, payload_length: transactions };
        let mut out = Vec::with_capacity(self.encoded_len());
        Rlp { list: true, payload_length: header + list.length_with_payload() }.encode(&mut out);
        self.header.encode(&mut out);
        list.encode(&mut out);
        for transaction in self.transactions.iter() {
            transaction.bytes().as_ref().encode(&mut out);
        }
        out
    }

    /// The hash of the block that these bytes encode, if they do: the header is not looked at.
    pub fn hash_of(mut bytes: &[u8]) -> Option<B256> {
        let mut payload = Rlp::decode_bytes(&mut bytes, true).ok()?;
        let whole = payload;
        Rlp::decode_bytes(&mut payload, true).ok()?;
        Some(keccak256(&whole[..whole.len() - payload.len()]))
    }

    /// Reads [`encode`](Self::encode)'s bytes and recovers all senders. Checks nothing else: see [`crate::verify`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        Self::decode_with(bytes, |_| None)
    }

    /// [`decode`](Self::decode) with transactions that are known already, by their hashes: their senders are not recovered again, which
    /// is most of the work.
    pub fn decode_with(
        mut bytes: &[u8],
        known: impl Fn(&B256) -> Option<Transaction>,
    ) -> Result<Self, BlockError> {
        let whole = bytes;
        let malformed = |error: alloy_rlp::Error| BlockError::Malformed(error.to_string());
        if bytes.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::Oversized(bytes.len()));
        }
        let mut payload = Rlp::decode_bytes(&mut bytes, true).map_err(malformed)?;
        let header = Header::decode(&mut payload).map_err(malformed)?;
        let mut list = Rlp::decode_bytes(&mut payload, true).map_err(malformed)?;
        if !bytes.is_empty() || !payload.is_empty() {
            return Err(BlockError::Malformed("there are more bytes than a block".to_owned()));
        }
        let mut transactions = Vec::new();
        while !list.is_empty() {
            let encoded = Rlp::decode_bytes(&mut list, false).map_err(malformed)?;
            let transaction = match known(&keccak256(encoded)) {
                Some(known) => known,
                None => Transaction::decode(encoded)
                    .map_err(|error| BlockError::Transaction(transactions.len(), error))?,
            };
            transactions.push(transaction);
        }
        let block = Self::new(header, transactions);
        // One block has one encoding.
        if block.encode() != whole {
            return Err(BlockError::Malformed("the encoding is not canonical".to_owned()));
        }
        Ok(block)
    }
}
