//! What a node keeps on disk: finalized blocks, their receipts, where transactions are, and the state after the last of them.
//!
//! Everything but the blocks could be computed from them again. One block is one transaction of the database, so after a crash
//! the head, the history and the state fit together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alloy_rlp::{Decodable, Encodable, Header as Rlp};
use assay_ledger::types::{Address, B256, Bytes, U256};
use assay_ledger::{AccountChange, Block, Committee, Executed, Header, Receipt, State, Transaction};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, backends::InMemoryBackend,
};
use thiserror::Error;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const HEADERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("headers");
/// `rlp([sender, transaction], …)`: with the senders, since recovering them costs more than all else.
const BODIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bodies");
const RECEIPTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("receipts");
const BLOCK_NUMBERS: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("block_numbers");
const PLACES: TableDefinition<'_, &[u8; 32], (u64, u32)> = TableDefinition::new("transaction_places");
/// Encoded committees by epoch.
const COMMITTEES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("committees");
/// Certificates by number; not every block has one, since one makes all before it final.
const FINALIZATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("finalizations");
/// Of validators that contradicted themselves, by their keys: the votes as [`assay_ledger::EVIDENCE`] takes them.
const EVIDENCE: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("evidence");
/// Nonce, balance, code.
type Account<'a> = (u64, [u8; 32], Option<&'a [u8]>);
const ACCOUNTS: TableDefinition<'_, &[u8; 20], Account<'_>> = TableDefinition::new("accounts");
const SLOTS: TableDefinition<'_, (&[u8; 20], &[u8; 32]), &[u8; 32]> = TableDefinition::new("slots");

/// Why the database could not be used.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The database itself.
    #[error("the chain's database failed, and nothing of this block was kept: {0}")]
    Database(#[from] redb::Error),
    /// The file belongs to another genesis.
    #[error("the data folder belongs to the chain with genesis {found}, not {expected}; use another folder")]
    OtherChain {
        /// Its block 0.
        found: B256,
        /// The genesis file's block 0.
        expected: B256,
    },
    /// What was read is not what was written.
    #[error(
        "the chain's database is damaged ({0}); delete it, and the node builds it again from its blocks or its peers'"
    )]
    Damaged(&'static str),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for HistoryError {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        }
    )*};
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// A finalized block with its receipts.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The block.
    pub block: Block,
    /// One for each transaction.
    pub receipts: Vec<Receipt>,
}

/// The database. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct History(Arc<Database>);

fn damaged<E>(what: &'static str) -> impl FnOnce(E) -> HistoryError {
    move |_| HistoryError::Damaged(what)
}

impl History {
    /// Opens the file, or makes it with block 0.
    pub fn open(path: &Path, genesis: &Executed) -> Result<Self, HistoryError> {
        Self::with(Database::create(path)?, genesis)
    }

    /// In memory, for tests and simulations.
    pub fn in_memory(genesis: &Executed) -> Result<Self, HistoryError> {
        Self::with(Database::builder().create_with_backend(InMemoryBackend::new())?, genesis)
    }

    fn with(database: Database, genesis: &Executed) -> Result<Self, HistoryError> {
        let history = Self(Arc::new(database));
        let expected = genesis.block.hash();
        let found = {
            let write = history.0.begin_write()?;
            let found = write.open_table(META)?.get("genesis")?.map(|value| value.value().to_vec());
            write.abort()?;
            found
        };
        match found {
            None => history.append(genesis, Some(expected))?,
            Some(found) if found == expected.as_slice() => {}
            Some(found) => {
                return Err(HistoryError::OtherChain { found: B256::from_slice(&found), expected });
            }
        }
        Ok(history)
    }

    /// Adds the next finalized block. It is on disk when this returns.
    pub fn push(&self, executed: &Executed) -> Result<(), HistoryError> {
        self.append(executed, None)
    }

    fn append(&self, executed: &Executed, genesis: Option<B256>) -> Result<(), HistoryError> {
        let number = executed.block.header.number;
        let write = self.0.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            if let Some(hash) = genesis {
                meta.insert("genesis", hash.as_slice())?;
            }
            meta.insert("head", number.to_be_bytes().as_slice())?;
            write
                .open_table(HEADERS)?
                .insert(number, alloy_rlp::encode(&*executed.block.header).as_slice())?;
            write.open_table(BODIES)?.insert(number, body(&executed.block).as_slice())?;
            write.open_table(RECEIPTS)?.insert(number, alloy_rlp::encode(&executed.receipts).as_slice())?;
            write.open_table(BLOCK_NUMBERS)?.insert(&executed.block.hash().0, number)?;
            let mut places = write.open_table(PLACES)?;
            for (i, transaction) in executed.block.transactions.iter().enumerate() {
                places.insert(&transaction.hash().0, (number, i as u32))?;
            }
            write.open_table(FINALIZATIONS)?;
            write.open_table(EVIDENCE)?;
            let mut committees = write.open_table(COMMITTEES)?;
            // A header with extra data names the committee that follows.
            if !executed.block.header.extra_data.is_empty()
                && let Some(committee) = Committee::of(&executed.state)
            {
                committees.insert(committee.epoch, committee.encode().as_slice())?;
            }
            let mut accounts = write.open_table(ACCOUNTS)?;
            let mut slots = write.open_table(SLOTS)?;
            for change in &executed.changes {
                let address = &change.address.0.0;
                if change.wiped || change.account.is_none() {
                    slots.retain_in((address, &[0; 32])..=(address, &[0xff; 32]), |_, _| false)?;
                }
                let Some((nonce, balance, code)) = &change.account else {
                    accounts.remove(address)?;
                    continue;
                };
                let old = match code {
                    Some(_) => None,
                    None => accounts.get(address)?.and_then(|old| old.value().2.map(<[u8]>::to_vec)),
                };
                let code = code
                    .as_ref()
                    .map(|code| code.as_ref())
                    .or(old.as_deref())
                    .filter(|code| !code.is_empty());
                accounts.insert(address, (*nonce, balance.to_be_bytes::<32>(), code))?;
                for (slot, value) in &change.slots {
                    let key = slot.to_be_bytes::<32>();
                    if value.is_zero() {
                        slots.remove((address, &key))?;
                    } else {
                        slots.insert((address, &key), &value.to_be_bytes::<32>())?;
                    }
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    /// The number of the last block.
    pub fn head(&self) -> Result<u64, HistoryError> {
        let read = self.0.begin_read()?;
        let head = read.open_table(META)?.get("head")?.ok_or(HistoryError::Damaged("there is no head"))?;
        Ok(u64::from_be_bytes(head.value().try_into().map_err(damaged("the head"))?))
    }

    /// The state after the last block, from the tables. The caller compares its root with the header's.
    pub fn state(&self) -> Result<State, HistoryError> {
        let read = self.0.begin_read()?;
        let mut changes = Vec::new();
        let slots = read.open_table(SLOTS)?;
        for entry in read.open_table(ACCOUNTS)?.iter()? {
            let (address, account) = entry?;
            let (nonce, balance, code) = account.value();
            let address = address.value();
            let mut own = Vec::new();
            for entry in slots.range((address, &[0; 32])..=(address, &[0xff; 32]))? {
                let (key, value) = entry?;
                own.push((U256::from_be_bytes(*key.value().1), U256::from_be_bytes(*value.value())));
            }
            changes.push(AccountChange {
                address: Address::from(*address),
                account: Some((nonce, U256::from_be_bytes(balance), code.map(Bytes::copy_from_slice))),
                wiped: false,
                slots: own,
            });
        }
        let mut state = State::default();
        state.apply(&changes);
        Ok(state)
    }

    /// A block's header.
    pub fn header(&self, number: u64) -> Result<Option<Header>, HistoryError> {
        let read = self.0.begin_read()?;
        let Some(bytes) = read.open_table(HEADERS)?.get(number)? else { return Ok(None) };
        Ok(Some(Header::decode(&mut bytes.value()).map_err(damaged("a header"))?))
    }

    /// A block with its receipts.
    pub fn block(&self, number: u64) -> Result<Option<Stored>, HistoryError> {
        let Some(header) = self.header(number)? else { return Ok(None) };
        let read = self.0.begin_read()?;
        let missing = || HistoryError::Damaged("a block without its body");
        let bodies = read.open_table(BODIES)?.get(number)?.ok_or_else(missing)?;
        let receipts = read.open_table(RECEIPTS)?.get(number)?.ok_or_else(missing)?;
        let receipts = Vec::<Receipt>::decode(&mut receipts.value()).map_err(damaged("receipts"))?;
        let transactions = parse(bodies.value()).map_err(damaged("transactions"))?;
        Ok(Some(Stored { block: Block::new(header, transactions), receipts }))
    }

    /// The committee of an epoch that has begun, or begins with the next block.
    pub fn committee(&self, epoch: u64) -> Result<Option<Committee>, HistoryError> {
        let read = self.0.begin_read()?;
        let Some(bytes) = read.open_table(COMMITTEES)?.get(epoch)? else { return Ok(None) };
        Committee::decode(bytes.value()).map(Some).ok_or(HistoryError::Damaged("a committee"))
    }

    /// Keeps the certificate of a block. That of an epoch's last block is on disk when this returns, since others and this node's own
    /// consensus begin with it; any other is on disk with the next block.
    pub fn keep_finalization(&self, number: u64, certificate: &[u8]) -> Result<(), HistoryError> {
        let boundary = self.header(number)?.is_some_and(|header| !header.extra_data.is_empty());
        let mut write = self.0.begin_write()?;
        if !boundary {
            write.set_durability(Durability::None)?;
        }
        write.open_table(FINALIZATIONS)?.insert(number, certificate)?;
        write.commit()?;
        Ok(())
    }

    /// The certificate of a block, if there is one.
    pub fn finalization(&self, number: u64) -> Result<Option<Vec<u8>>, HistoryError> {
        let read = self.0.begin_read()?;
        Ok(read.open_table(FINALIZATIONS)?.get(number)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Keeps the first evidence against a key.
    pub fn keep_evidence(&self, key: &[u8; 32], votes: &[u8]) -> Result<(), HistoryError> {
        let write = self.0.begin_write()?;
        {
            let mut table = write.open_table(EVIDENCE)?;
            if table.get(key)?.is_none() {
                table.insert(key, votes)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// The evidence against each key that there is any against.
    pub fn evidence(&self) -> Result<BTreeMap<[u8; 32], Vec<u8>>, HistoryError> {
        let read = self.0.begin_read()?;
        let mut found = BTreeMap::new();
        for entry in read.open_table(EVIDENCE)?.iter()? {
            let (key, votes) = entry?;
            found.insert(*key.value(), votes.value().to_vec());
        }
        Ok(found)
    }

    /// The number of the first block from `number` on that has a certificate.
    pub fn finalized_from(&self, number: u64) -> Result<Option<u64>, HistoryError> {
        let read = self.0.begin_read()?;
        let found = read.open_table(FINALIZATIONS)?.range(number..)?.next().transpose()?;
        Ok(found.map(|(number, _)| number.value()))
    }

    /// The number of the block with this hash.
    pub fn number(&self, hash: &B256) -> Result<Option<u64>, HistoryError> {
        let read = self.0.begin_read()?;
        Ok(read.open_table(BLOCK_NUMBERS)?.get(&hash.0)?.map(|number| number.value()))
    }

    /// The block number and the index of a transaction.
    pub fn place(&self, transaction: &B256) -> Result<Option<(u64, usize)>, HistoryError> {
        let read = self.0.begin_read()?;
        let place = read.open_table(PLACES)?.get(&transaction.0)?;
        Ok(place.map(|place| (place.value().0, place.value().1 as usize)))
    }
}

fn body(block: &Block) -> Vec<u8> {
    let mut payload = Vec::new();
    for transaction in block.transactions.iter() {
        transaction.sender().encode(&mut payload);
        transaction.bytes().as_ref().encode(&mut payload);
    }
    let mut out = Vec::with_capacity(payload.len() + 8);
    Rlp { list: true, payload_length: payload.len() }.encode(&mut out);
    out.extend(payload);
    out
}

fn parse(mut bytes: &[u8]) -> Result<Vec<Transaction>, alloy_rlp::Error> {
    let mut payload = Rlp::decode_bytes(&mut bytes, true)?;
    let mut transactions = Vec::new();
    while !payload.is_empty() {
        let sender = Address::decode(&mut payload)?;
        let encoded = Rlp::decode_bytes(&mut payload, false)?;
        let restored = Transaction::restore(encoded, sender);
        transactions.push(restored.map_err(|_| alloy_rlp::Error::Custom("a transaction"))?);
    }
    Ok(transactions)
}
