//! What a node keeps on disk: finalized blocks, their receipts, where transactions are, and the state after the last of them.
//!
//! Everything but the blocks could be computed from them again. One block is one transaction of the database, so after a crash
//! the head, the history and the state fit together. What is too old leaves in the same transaction (see [`Retention`]), and a state that
//! comes from other nodes ([`crate::sync`]) gathers in tables of its own, which take the place of the others in one transaction.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alloy_rlp::{Decodable, Encodable, Header as Rlp};
use assay_ledger::types::{Address, B256, Bytes, U256, keccak256};
use assay_ledger::{Block, Committee, Executed, Header, Part, Piece, Receipt, State, Transaction};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction, backends::InMemoryBackend,
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
type Accounts = TableDefinition<'static, &'static [u8; 32], Account<'static>>;
type Slots = TableDefinition<'static, (&'static [u8; 32], &'static [u8; 32]), &'static [u8; 32]>;
/// By the hashes of addresses and slots, as the tries have them: nobody asks for the addresses, and other nodes do not have them.
const ACCOUNTS: Accounts = TableDefinition::new("hashed_accounts");
const SLOTS: Slots = TableDefinition::new("hashed_slots");
/// A state that is not yet whole.
const ARRIVED_ACCOUNTS: Accounts = TableDefinition::new("arrived_accounts");
const ARRIVED_SLOTS: Slots = TableDefinition::new("arrived_slots");
/// Pieces of states that were not whole, by the hash of the part that they proved to be: what a newer state has as well comes from here.
const PIECES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("pieces");

/// What the tables are like; another number is another program's.
const FORMAT: u8 = 1;
/// So many blocks leave with each that comes, at most: more where somebody wants to keep less than before.
const PRUNED_AT_ONCE: u64 = 64;
/// What a node keeps of what became final. The last blocks of epochs are kept always, but for their transactions: headers, certificates and
/// the committees that they name lead light clients and nodes that join from the genesis to the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many last blocks, with receipts and logs; `None` keeps all (an archive).
    pub blocks: Option<u64>,
}

impl Default for Retention {
    /// At a block a second, about six days.
    fn default() -> Self {
        Self { blocks: Some(524_288) }
    }
}

/// A state on its way from other nodes.
#[derive(Clone, Debug)]
pub struct Arriving {
    /// Of the block after which the state is.
    pub header: Header,
    /// What is missing, the next one last.
    pub missing: Vec<Part>,
    /// What has come, in bytes.
    pub bytes: u64,
}

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
    /// The block was dropped, or never here. geth's words.
    #[error("pruned history unavailable")]
    Pruned,
    /// Another program's tables.
    #[error(
        "the data folder was written by another version of Assay; delete its chain.redb and its folder consensus, and the node gets the chain from its peers"
    )]
    Format,
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
pub struct History {
    database: Arc<Database>,
    retention: Retention,
}

fn damaged<E>(what: &'static str) -> impl FnOnce(E) -> HistoryError {
    move |_| HistoryError::Damaged(what)
}

impl History {
    /// Opens the file, or makes it with block 0.
    pub fn open(path: &Path, retention: Retention, genesis: &Executed) -> Result<Self, HistoryError> {
        Self::with(Database::create(path)?, retention, genesis)
    }

    /// In memory, for tests and simulations.
    pub fn in_memory(genesis: &Executed) -> Result<Self, HistoryError> {
        let database = Database::builder().create_with_backend(InMemoryBackend::new())?;
        Self::with(database, Retention { blocks: None }, genesis)
    }

    /// The same database, of which another part is kept from now on.
    pub fn keeping(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// What it keeps.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    fn with(database: Database, retention: Retention, genesis: &Executed) -> Result<Self, HistoryError> {
        let history = Self { database: Arc::new(database), retention };
        let expected = genesis.block.hash();
        let (found, format) = {
            let write = history.database.begin_write()?;
            let meta = write.open_table(META)?;
            let found = meta.get("genesis")?.map(|value| value.value().to_vec());
            let format = meta.get("format")?.map(|value| value.value().to_vec());
            drop(meta);
            write.abort()?;
            (found, format)
        };
        match found {
            None => history.append(genesis, Some(expected))?,
            Some(found) if found == expected.as_slice() && format == Some(vec![FORMAT]) => {}
            Some(found) if found == expected.as_slice() => return Err(HistoryError::Format),
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
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            if let Some(hash) = genesis {
                meta.insert("genesis", hash.as_slice())?;
                meta.insert("format", [FORMAT].as_slice())?;
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
                let address = &keccak256(change.address).0;
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
                    let key = keccak256(slot.to_be_bytes::<32>()).0;
                    if value.is_zero() {
                        slots.remove((address, &key))?;
                    } else {
                        slots.insert((address, &key), &value.to_be_bytes::<32>())?;
                    }
                }
            }
            drop((meta, places, committees, accounts, slots));
            self.prune(&write, number)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Drops what is older than it should be, in the transaction that adds a block.
    fn prune(&self, write: &WriteTransaction, head: u64) -> Result<(), HistoryError> {
        let Some(keep) = self.retention.blocks else { return Ok(()) };
        let mut meta = write.open_table(META)?;
        let first = meta.get("first")?.map_or(Ok(1), |value| number_from(value.value()))?;
        let until = (head + 1).saturating_sub(keep).min(first + PRUNED_AT_ONCE);
        if until <= first {
            return Ok(());
        }
        let (mut headers, mut bodies) = (write.open_table(HEADERS)?, write.open_table(BODIES)?);
        let (mut receipts, mut places) = (write.open_table(RECEIPTS)?, write.open_table(PLACES)?);
        let (mut numbers, mut finalizations) =
            (write.open_table(BLOCK_NUMBERS)?, write.open_table(FINALIZATIONS)?);
        for number in first..until {
            receipts.remove(number)?;
            if let Some(body) = bodies.remove(number)? {
                for transaction in parse(body.value()).map_err(damaged("transactions"))? {
                    places.remove(&transaction.hash().0)?;
                }
            }
            drop_header(&mut headers, &mut numbers, &mut finalizations, number)?;
        }
        meta.insert("first", until.to_be_bytes().as_slice())?;
        Ok(())
    }

    /// The first block after block 0 that is kept whole.
    pub fn first(&self) -> Result<u64, HistoryError> {
        let read = self.database.begin_read()?;
        read.open_table(META)?.get("first")?.map_or(Ok(1), |value| number_from(value.value()))
    }

    /// The number of the last block.
    pub fn head(&self) -> Result<u64, HistoryError> {
        let read = self.database.begin_read()?;
        let head = read.open_table(META)?.get("head")?.ok_or(HistoryError::Damaged("there is no head"))?;
        number_from(head.value())
    }

    /// The state after the last block, from the tables. The caller compares its root with the header's.
    pub fn state(&self) -> Result<State, HistoryError> {
        let read = self.database.begin_read()?;
        let mut state = State::default();
        let slots = read.open_table(SLOTS)?;
        for entry in read.open_table(ACCOUNTS)?.iter()? {
            let (address, account) = entry?;
            let (nonce, balance, code) = account.value();
            let address = address.value();
            let mut own = Vec::new();
            for entry in slots.range((address, &[0; 32])..=(address, &[0xff; 32]))? {
                let (key, value) = entry?;
                own.push((B256::from(*key.value().1), U256::from_be_bytes(*value.value())));
            }
            let code = code.map(Bytes::copy_from_slice).unwrap_or_default();
            state.restore(B256::from(*address), nonce, U256::from_be_bytes(balance), code, own);
        }
        Ok(state)
    }

    /// A block's header.
    pub fn header(&self, number: u64) -> Result<Option<Header>, HistoryError> {
        let read = self.database.begin_read()?;
        let Some(bytes) = read.open_table(HEADERS)?.get(number)? else { return Ok(None) };
        Ok(Some(Header::decode(&mut bytes.value()).map_err(damaged("a header"))?))
    }

    /// A block with its receipts.
    ///
    /// # Errors
    /// [`HistoryError::Pruned`] for one that is not kept.
    pub fn block(&self, number: u64) -> Result<Option<Stored>, HistoryError> {
        let read = self.database.begin_read()?;
        let meta = read.open_table(META)?;
        let first = meta.get("first")?.map_or(Ok(1), |first| number_from(first.value()))?;
        if number > 0 && number < first {
            return Err(HistoryError::Pruned);
        }
        // The ends of epochs that prove a state are kept before there is a block.
        let head = meta.get("head")?.map_or(Ok(0), |head| number_from(head.value()))?;
        if number > head {
            return Ok(None);
        }
        let Some(header) = read.open_table(HEADERS)?.get(number)? else { return Ok(None) };
        let header = Header::decode(&mut header.value()).map_err(damaged("a header"))?;
        let missing = || HistoryError::Damaged("a block without its body");
        let bodies = read.open_table(BODIES)?.get(number)?.ok_or_else(missing)?;
        let receipts = read.open_table(RECEIPTS)?.get(number)?.ok_or_else(missing)?;
        let receipts = Vec::<Receipt>::decode(&mut receipts.value()).map_err(damaged("receipts"))?;
        let transactions = parse(bodies.value()).map_err(damaged("transactions"))?;
        Ok(Some(Stored { block: Block::new(header, transactions), receipts }))
    }

    /// The committee of an epoch that has begun, or begins with the next block.
    pub fn committee(&self, epoch: u64) -> Result<Option<Committee>, HistoryError> {
        let read = self.database.begin_read()?;
        let Some(bytes) = read.open_table(COMMITTEES)?.get(epoch)? else { return Ok(None) };
        Committee::decode(bytes.value()).map(Some).ok_or(HistoryError::Damaged("a committee"))
    }

    /// Keeps the certificate of a block. That of an epoch's last block is on disk when this returns, since others and this node's own
    /// consensus begin with it; any other is on disk with the next block.
    pub fn keep_finalization(&self, number: u64, certificate: &[u8]) -> Result<(), HistoryError> {
        let boundary = self.header(number)?.is_some_and(|header| !header.extra_data.is_empty());
        let mut write = self.database.begin_write()?;
        if !boundary {
            write.set_durability(Durability::None)?;
        }
        write.open_table(FINALIZATIONS)?.insert(number, certificate)?;
        write.commit()?;
        Ok(())
    }

    /// The certificate of a block, if there is one.
    pub fn finalization(&self, number: u64) -> Result<Option<Vec<u8>>, HistoryError> {
        let read = self.database.begin_read()?;
        Ok(read.open_table(FINALIZATIONS)?.get(number)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Keeps the proven end of an epoch: the header of its last block, the certificate, and the committee of the next.
    pub fn keep_epoch(
        &self,
        header: &Header,
        certificate: &[u8],
        next: &Committee,
    ) -> Result<(), HistoryError> {
        let write = self.database.begin_write()?;
        write.open_table(HEADERS)?.insert(header.number, alloy_rlp::encode(header).as_slice())?;
        write.open_table(BLOCK_NUMBERS)?.insert(&header.hash_slow().0, header.number)?;
        write.open_table(FINALIZATIONS)?.insert(header.number, certificate)?;
        write.open_table(COMMITTEES)?.insert(next.epoch, next.encode().as_slice())?;
        write.commit()?;
        Ok(())
    }

    /// A state on its way, and how far it is.
    pub fn arriving(&self) -> Result<Option<Arriving>, HistoryError> {
        let read = self.database.begin_read()?;
        let Some(bytes) = read.open_table(META)?.get("arriving")? else { return Ok(None) };
        let mut bytes = bytes.value();
        let mut read = || {
            let mut payload = Rlp::decode_bytes(&mut bytes, true)?;
            Ok(Arriving {
                header: Header::decode(&mut payload)?,
                missing: Vec::decode(&mut payload)?,
                bytes: u64::decode(&mut payload)?,
            })
        };
        read().map(Some).map_err(damaged::<alloy_rlp::Error>("a state on its way"))
    }

    /// Begins with a state that will come from other nodes. Of another that was not whole the pieces stay.
    pub fn expect_state(&self, header: &Header) -> Result<Arriving, HistoryError> {
        let arriving =
            Arriving { header: header.clone(), missing: vec![Part::whole(header.state_root)], bytes: 0 };
        let write = self.database.begin_write()?;
        write.delete_table(ARRIVED_ACCOUNTS)?;
        write.delete_table(ARRIVED_SLOTS)?;
        write.open_table(ARRIVED_ACCOUNTS)?;
        write.open_table(ARRIVED_SLOTS)?;
        note(&write, &arriving)?;
        write.commit()?;
        Ok(arriving)
    }

    /// A piece of some state that came before, if it is of this very part.
    pub fn piece(&self, part: &Part) -> Result<Option<Piece>, HistoryError> {
        let read = self.database.begin_read()?;
        let pieces = match read.open_table(PIECES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            pieces => pieces?,
        };
        let found = pieces.get(&part_hash(part))?;
        // What cannot be read is asked for again.
        Ok(found.and_then(|bytes| Piece::decode(bytes.value()).ok()))
    }

    /// Keeps a piece that was checked, with what is then missing. On disk when this returns.
    pub fn keep_piece(&self, part: &Part, piece: &Piece, then: &Arriving) -> Result<(), HistoryError> {
        let write = self.database.begin_write()?;
        {
            let mut accounts = write.open_table(ARRIVED_ACCOUNTS)?;
            let mut slots = write.open_table(ARRIVED_SLOTS)?;
            match piece {
                Piece::Node(_) => {}
                Piece::Accounts(entries) => {
                    for entry in entries {
                        let balance = entry.account.balance.to_be_bytes::<32>();
                        let code = entry.code().map(|code| code.as_ref());
                        accounts.insert(&entry.key.0, (entry.account.nonce, balance, code))?;
                        for slot in &entry.slots {
                            slots.insert((&entry.key.0, &slot.key.0), &slot.value.to_be_bytes::<32>())?;
                        }
                    }
                }
                Piece::Slots(found) => {
                    let account = part.account().unwrap_or_default();
                    for slot in found {
                        slots.insert((&account.0, &slot.key.0), &slot.value.to_be_bytes::<32>())?;
                    }
                }
            }
        }
        write.open_table(PIECES)?.insert(&part_hash(part), alloy_rlp::encode(piece).as_slice())?;
        note(&write, then)?;
        write.commit()?;
        Ok(())
    }

    /// Drops a state on its way, and all pieces.
    pub fn forget_state(&self) -> Result<(), HistoryError> {
        let write = self.database.begin_write()?;
        write.delete_table(ARRIVED_ACCOUNTS)?;
        write.delete_table(ARRIVED_SLOTS)?;
        write.delete_table(PIECES)?;
        write.open_table(META)?.remove("arriving")?;
        write.commit()?;
        Ok(())
    }

    /// Makes a state that has arrived whole the state, and its block the head; what there was of the blocks before goes.
    pub fn adopt_state(&self, header: &Header) -> Result<(), HistoryError> {
        let write = self.database.begin_write()?;
        write.delete_table(ACCOUNTS)?;
        write.delete_table(SLOTS)?;
        write.rename_table(ARRIVED_ACCOUNTS, ACCOUNTS)?;
        write.rename_table(ARRIVED_SLOTS, SLOTS)?;
        write.delete_table(PIECES)?;
        write.delete_table(PLACES)?;
        write.open_table(PLACES)?;
        write.open_table(BODIES)?.retain(|number, _| number == 0)?;
        write.open_table(RECEIPTS)?.retain(|number, _| number == 0)?;
        {
            let (mut headers, mut numbers) = (write.open_table(HEADERS)?, write.open_table(BLOCK_NUMBERS)?);
            let mut finalizations = write.open_table(FINALIZATIONS)?;
            let before =
                headers.range(1..header.number)?.map(|entry| entry.map(|(number, _)| number.value()));
            for number in before.collect::<Result<Vec<_>, _>>()? {
                drop_header(&mut headers, &mut numbers, &mut finalizations, number)?;
            }
            headers.insert(header.number, alloy_rlp::encode(header).as_slice())?;
            numbers.insert(&header.hash_slow().0, header.number)?;
        }
        {
            let mut meta = write.open_table(META)?;
            meta.insert("head", header.number.to_be_bytes().as_slice())?;
            meta.insert("first", (header.number + 1).to_be_bytes().as_slice())?;
            meta.remove("arriving")?;
        }
        write.commit()?;
        Ok(())
    }

    /// Keeps the first evidence against a key.
    pub fn keep_evidence(&self, key: &[u8; 32], votes: &[u8]) -> Result<(), HistoryError> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(EVIDENCE)?;
            if table.get(key)?.is_none() {
                table.insert(key, votes)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Whether there is evidence against a key.
    pub fn has_evidence(&self, key: &[u8; 32]) -> Result<bool, HistoryError> {
        let read = self.database.begin_read()?;
        Ok(read.open_table(EVIDENCE)?.get(key)?.is_some())
    }

    /// The evidence against each key that there is any against.
    pub fn evidence(&self) -> Result<BTreeMap<[u8; 32], Vec<u8>>, HistoryError> {
        let read = self.database.begin_read()?;
        let mut found = BTreeMap::new();
        for entry in read.open_table(EVIDENCE)?.iter()? {
            let (key, votes) = entry?;
            found.insert(*key.value(), votes.value().to_vec());
        }
        Ok(found)
    }

    /// The number of the first block from `number` on that has a certificate.
    pub fn finalized_from(&self, number: u64) -> Result<Option<u64>, HistoryError> {
        let read = self.database.begin_read()?;
        let found = read.open_table(FINALIZATIONS)?.range(number..)?.next().transpose()?;
        Ok(found.map(|(number, _)| number.value()))
    }

    /// The number of the block with this hash.
    pub fn number(&self, hash: &B256) -> Result<Option<u64>, HistoryError> {
        let read = self.database.begin_read()?;
        Ok(read.open_table(BLOCK_NUMBERS)?.get(&hash.0)?.map(|number| number.value()))
    }

    /// The block number and the index of a transaction.
    pub fn place(&self, transaction: &B256) -> Result<Option<(u64, usize)>, HistoryError> {
        let read = self.database.begin_read()?;
        let place = read.open_table(PLACES)?.get(&transaction.0)?;
        Ok(place.map(|place| (place.value().0, place.value().1 as usize)))
    }
}

/// Drops an old header, with its hash and its certificate, unless it is the end of an epoch.
fn drop_header(
    headers: &mut Table<'_, u64, &[u8]>,
    numbers: &mut Table<'_, &[u8; 32], u64>,
    finalizations: &mut Table<'_, u64, &[u8]>,
    number: u64,
) -> Result<(), HistoryError> {
    let Some(bytes) = headers.get(number)?.map(|bytes| bytes.value().to_vec()) else { return Ok(()) };
    let header = Header::decode(&mut bytes.as_slice()).map_err(damaged("a header"))?;
    if header.extra_data.is_empty() {
        headers.remove(number)?;
        numbers.remove(&keccak256(&bytes).0)?;
        finalizations.remove(number)?;
    }
    Ok(())
}

fn number_from(bytes: &[u8]) -> Result<u64, HistoryError> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(damaged("a block's number"))?))
}

/// What a part is, and what it must hash to.
fn part_hash(part: &Part) -> [u8; 32] {
    keccak256(alloy_rlp::encode(part)).0
}

fn note(write: &WriteTransaction, arriving: &Arriving) -> Result<(), HistoryError> {
    let mut payload = Vec::new();
    arriving.header.encode(&mut payload);
    arriving.missing.encode(&mut payload);
    arriving.bytes.encode(&mut payload);
    let mut out = Vec::with_capacity(payload.len() + 8);
    Rlp { list: true, payload_length: payload.len() }.encode(&mut out);
    out.extend(payload);
    write.open_table(META)?.insert("arriving", out.as_slice())?;
    Ok(())
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
