//! A state in parts, each of which is checked by itself against the root: how a node that joins late gets the state of a block from
//! nodes that it does not trust.
//!
//! A part is what lies below a path in the trie of the accounts, or in that of an account's storage. Whoever wants it knows how the node
//! above refers to it, in the end by the state root of a header. The answer is all its entries, where they are few, or else the one node
//! there, which names the parts below. Entries are hashed as a trie and must give the reference, so none can be wrong, missing or too
//! many, and no answer has to wait for a later one to be judged.

use alloy_consensus::constants::KECCAK_EMPTY;
use alloy_primitives::{B256, Bytes, U256, keccak256};
use alloy_rlp::{Decodable, Encodable, Header as Rlp, RlpDecodable, RlpEncodable};
use thiserror::Error;

use crate::state::{State, TrieAccount};
use crate::trie::{self, EMPTY_ROOT, Trie};

/// What the entries of a part weigh at most, in bytes; where there is more, the node is given. A single entry is given in any case.
const PIECE_BYTES: usize = 1 << 18;
/// The longest encoding of a piece that is read, in bytes: framing, and one account whose code came from a genesis.
pub const MAX_PIECE_BYTES: usize = 1 << 20;
/// What an account and a slot weigh, framing included.
const ACCOUNT_BYTES: usize = 160;
const SLOT_BYTES: usize = 72;
/// An account's slots come with it if they weigh no more than this, else as parts of their own.
const OWN_SLOTS_BYTES: usize = 1 << 14;

/// A part of a state that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Part {
    /// Empty, or the hash of the address in whose storage the part is.
    account: Bytes,
    /// Nibbles.
    path: Bytes,
    /// How the node above refers to it.
    reference: Bytes,
}

/// A slot that is not empty.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Slot {
    /// Keccak-256 of the slot.
    pub key: B256,
    /// Not zero.
    pub value: U256,
}

/// An account with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Entry {
    /// Keccak-256 of the address.
    pub key: B256,
    /// As the trie has it.
    pub account: TrieAccount,
    /// All of it.
    pub code: Bytes,
    /// All slots, in the order of their keys, or none where they are parts of their own.
    pub slots: Vec<Slot>,
}

/// What is in a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The one node at the path, encoded.
    Node(Bytes),
    /// Accounts, in the order of their keys.
    Accounts(Vec<Entry>),
    /// Slots, in the order of their keys.
    Slots(Vec<Slot>),
}

/// Why a piece is not what was asked for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PieceError {
    /// Bytes that are no piece.
    #[error("the piece cannot be read")]
    Malformed,
    /// Accounts where slots were asked for, or the other way round.
    #[error("the piece is of another kind than what was asked for")]
    Kind,
    /// The entries or the node are others than the state root says: something is wrong, missing or too much.
    #[error("the piece does not follow from the state root: something in it is wrong, missing or too much")]
    Root,
    /// The code is not the account's.
    #[error("the code of an account is not the one that its hash names")]
    Code,
}

impl Part {
    /// A whole state.
    pub fn whole(root: B256) -> Self {
        Self { account: Bytes::new(), path: Bytes::new(), reference: reference(root) }
    }

    /// The hash of the address in whose storage it is; `None` for a part of the accounts.
    pub fn account(&self) -> Option<B256> {
        (self.account.len() == 32).then(|| B256::from_slice(&self.account))
    }

    /// Nibbles from the root of its trie.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Checks a piece, and says what it leaves to be asked for, in the order of the keys.
    pub fn check(&self, piece: &Piece) -> Result<Vec<Self>, PieceError> {
        match piece {
            Piece::Node(node) => self.below(node),
            Piece::Accounts(entries) => {
                if self.account().is_some() {
                    return Err(PieceError::Kind);
                }
                let accounts = entries.iter().map(|entry| (entry.key, entry.account.clone()));
                self.hashes(accounts)?;
                let mut missing = Vec::new();
                for entry in entries {
                    if keccak256(&entry.code) != entry.account.code_hash {
                        return Err(PieceError::Code);
                    }
                    let storage = Self {
                        account: Bytes::copy_from_slice(entry.key.as_slice()),
                        path: Bytes::new(),
                        reference: reference(entry.account.storage_root),
                    };
                    if !entry.slots.is_empty() {
                        storage.hashes(entry.slots.iter().map(|slot| (slot.key, slot.value)))?;
                    } else if entry.account.storage_root != EMPTY_ROOT {
                        missing.push(storage);
                    }
                }
                Ok(missing)
            }
            Piece::Slots(slots) => {
                if self.account().is_none() {
                    return Err(PieceError::Kind);
                }
                self.hashes(slots.iter().map(|slot| (slot.key, slot.value)))?;
                Ok(Vec::new())
            }
        }
    }

    fn hashes<V>(&self, entries: impl Iterator<Item = (B256, V)>) -> Result<(), PieceError>
    where
        V: Encodable + Clone + PartialEq,
    {
        match trie::hash_part(&self.path, entries) {
            Some(found) if found == self.reference => Ok(()),
            _ => Err(PieceError::Root),
        }
    }

    fn below(&self, node: &[u8]) -> Result<Vec<Self>, PieceError> {
        if trie::refer(node, self.path.is_empty()) != self.reference {
            return Err(PieceError::Root);
        }
        let children = trie::children(node).ok_or(PieceError::Malformed)?;
        let below = children.into_iter().map(|(step, reference)| {
            let path = [self.path.as_ref(), &step].concat();
            Self { account: self.account.clone(), path: path.into(), reference: reference.into() }
        });
        let below: Vec<_> = below.collect();
        // An inner node has a path shorter than a key.
        if below.iter().any(|part| part.path.len() >= 64) {
            return Err(PieceError::Malformed);
        }
        Ok(below)
    }
}

fn reference(root: B256) -> Bytes {
    [&[0xa0], root.as_slice()].concat().into()
}

impl Encodable for Piece {
    fn encode(&self, out: &mut dyn alloy_rlp::BufMut) {
        Rlp { list: true, payload_length: self.payload_len() }.encode(out);
        match self {
            Self::Node(node) => {
                1u8.encode(out);
                node.encode(out);
            }
            Self::Accounts(entries) => {
                2u8.encode(out);
                entries.encode(out);
            }
            Self::Slots(slots) => {
                3u8.encode(out);
                slots.encode(out);
            }
        }
    }

    fn length(&self) -> usize {
        let payload = self.payload_len();
        alloy_rlp::length_of_length(payload) + payload
    }
}

impl Piece {
    fn payload_len(&self) -> usize {
        1 + match self {
            Self::Node(node) => node.length(),
            Self::Accounts(entries) => entries.length(),
            Self::Slots(slots) => slots.length(),
        }
    }

    /// Reads what [`Encodable`] writes.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, PieceError> {
        let malformed = |_| PieceError::Malformed;
        if bytes.len() > MAX_PIECE_BYTES {
            return Err(PieceError::Malformed);
        }
        let mut payload = Rlp::decode_bytes(&mut bytes, true).map_err(malformed)?;
        let piece = match u8::decode(&mut payload).map_err(malformed)? {
            1 => Self::Node(Bytes::decode(&mut payload).map_err(malformed)?),
            2 => Self::Accounts(Vec::decode(&mut payload).map_err(malformed)?),
            3 => Self::Slots(Vec::decode(&mut payload).map_err(malformed)?),
            _ => return Err(PieceError::Malformed),
        };
        if bytes.is_empty() && payload.is_empty() { Ok(piece) } else { Err(PieceError::Malformed) }
    }
}

fn slots(storage: &[(&B256, &U256)]) -> Vec<Slot> {
    storage.iter().map(|(key, value)| Slot { key: **key, value: **value }).collect()
}

impl State {
    /// What is below a path (of nibbles) in the trie of the accounts, or in the storage of the account with this hash; `None` where no
    /// node is exactly there.
    pub fn piece(&self, account: Option<&B256>, path: &[u8]) -> Option<Piece> {
        if let Some(key) = account {
            let storage = &self.tries().get(key)?.storage;
            return Some(match storage.part(path, PIECE_BYTES, |_| SLOT_BYTES)? {
                trie::Below::Entries(found) => Piece::Slots(slots(&found)),
                trie::Below::Node(node) => Piece::Node(node.into()),
            });
        }
        let own = |storage: &Trie<U256>| match storage.part(&[], OWN_SLOTS_BYTES, |_| SLOT_BYTES) {
            Some(trie::Below::Entries(found)) => slots(&found),
            _ => Vec::new(),
        };
        let weight = |account: &crate::Account| {
            ACCOUNT_BYTES
                + account.code().len()
                + account.storage.count(OWN_SLOTS_BYTES / SLOT_BYTES) * SLOT_BYTES
        };
        Some(match self.tries().part(path, PIECE_BYTES, weight)? {
            trie::Below::Node(node) => Piece::Node(node.into()),
            trie::Below::Entries(found) => {
                let entries = found.into_iter().map(|(key, account)| Entry {
                    key: *key,
                    account: account.in_trie(),
                    code: account.code(),
                    slots: own(&account.storage),
                });
                Piece::Accounts(entries.collect())
            }
        })
    }
}

impl Entry {
    /// The code, where there is any.
    pub fn code(&self) -> Option<&Bytes> {
        (self.account.code_hash != KECCAK_EMPTY).then_some(&self.code)
    }
}
