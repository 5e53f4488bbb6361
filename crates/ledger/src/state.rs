//! Accounts, and how execution reads and changes them.

use std::collections::BTreeMap;

use alloy_consensus::constants::KECCAK_EMPTY;
use alloy_eips::eip2935::{HISTORY_SERVE_WINDOW, HISTORY_STORAGE_ADDRESS};
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::{BufMut, Encodable, RlpDecodable, RlpEncodable};
use revm::{
    DatabaseRef,
    database::{AccountState, CacheDB},
    state::{AccountInfo, Bytecode},
};
use std::convert::Infallible;

use crate::trie::Trie;

/// What an address has: nonce, balance, code, storage.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Number of transactions sent, or of contracts created by a contract.
    pub nonce: u64,
    /// In 10^-18 of the native coin.
    pub balance: U256,
    code: Option<(B256, Bytecode)>,
    pub(crate) storage: Trie<U256>,
}

/// An account as the state's trie has it (Yellow Paper, 4.1).
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct TrieAccount {
    /// See [`Account::nonce`].
    pub nonce: u64,
    /// See [`Account::balance`].
    pub balance: U256,
    /// See [`Account::storage_root`].
    pub storage_root: B256,
    /// See [`Account::code_hash`].
    pub code_hash: B256,
}

impl Account {
    /// The code; empty for an account without.
    pub fn code(&self) -> Bytes {
        self.code.as_ref().map(|(_, code)| code.original_bytes()).unwrap_or_default()
    }

    /// The code's keccak-256 hash, that of no bytes for an account without code.
    pub fn code_hash(&self) -> B256 {
        self.code.as_ref().map_or(KECCAK_EMPTY, |(hash, _)| *hash)
    }

    /// The root of the storage trie.
    pub fn storage_root(&self) -> B256 {
        self.storage.root()
    }

    /// The value at a slot; zero where nothing was written.
    pub fn slot(&self, slot: &U256) -> U256 {
        self.storage.get(&keccak256(slot.to_be_bytes::<32>())).copied().unwrap_or_default()
    }

    fn set_slot(&mut self, slot: &U256, value: U256) {
        let key = keccak256(slot.to_be_bytes::<32>());
        if value.is_zero() { self.storage.remove(&key) } else { self.storage.insert(key, value) }
    }

    fn set_code(&mut self, code: Bytes) {
        self.code = (!code.is_empty()).then(|| (keccak256(&code), bytecode(code)));
    }

    /// EIP-161: such an account does not exist.
    fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && self.code.is_none()
    }

    pub(crate) fn in_trie(&self) -> TrieAccount {
        TrieAccount {
            nonce: self.nonce,
            balance: self.balance,
            storage_root: self.storage.root(),
            code_hash: self.code_hash(),
        }
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.nonce == other.nonce
            && self.balance == other.balance
            && self.code_hash() == other.code_hash()
            && self.storage.root() == other.storage.root()
    }
}

impl Encodable for Account {
    fn encode(&self, out: &mut dyn BufMut) {
        self.in_trie().encode(out);
    }

    fn length(&self) -> usize {
        self.in_trie().length()
    }
}

/// Code that begins like a delegation (EIP-7702) and is none comes from nowhere but an override or a genesis; it is plain code.
fn bytecode(code: Bytes) -> Bytecode {
    Bytecode::new_raw_checked(code.clone()).unwrap_or_else(|_| Bytecode::new_legacy(code))
}

/// All accounts after some block. Cloning is cheap and changes to a clone leave the original as it is.
#[derive(Clone, Debug, Default)]
pub struct State(Trie<Account>);

/// What a block did to one account; a state follows from its changes since the empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountChange {
    /// Which account.
    pub address: Address,
    /// Nonce, balance and code afterwards, or `None` where the account is gone. `code` is `None` where it stayed.
    pub account: Option<(u64, U256, Option<Bytes>)>,
    /// Whether the storage was emptied before `slots` were written.
    pub wiped: bool,
    /// Slots and their values afterwards, ascending; zero where a slot is empty now.
    pub slots: Vec<(U256, U256)>,
}

/// What `eth_getProof` shows of one account (EIP-1186): the account, its trie nodes, and slots with theirs.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The account, empty where there is none.
    pub account: Account,
    /// Encoded nodes from the state root to the account or to where its absence shows.
    pub account_proof: Vec<Vec<u8>>,
    /// For each asked slot its value and the encoded nodes from the storage root.
    pub slots: Vec<(U256, Vec<Vec<u8>>)>,
}

/// What a call assumes about one account instead of what the state says (`eth_call`'s third parameter).
#[derive(Clone, Debug, Default)]
pub struct StateOverride {
    /// Nonce instead.
    pub nonce: Option<u64>,
    /// Balance instead.
    pub balance: Option<U256>,
    /// Code instead.
    pub code: Option<Bytes>,
    /// The whole storage instead; all other slots are zero.
    pub state: Option<Vec<(U256, U256)>>,
    /// Single slots instead.
    pub state_diff: Vec<(U256, U256)>,
}

/// Overrides by address.
pub type Overrides = BTreeMap<Address, StateOverride>;

impl State {
    /// The state root, as a block's header has it.
    pub fn root(&self) -> B256 {
        self.0.root()
    }

    /// The account at an address, if there is one.
    pub fn account(&self, address: &Address) -> Option<&Account> {
        self.0.get(&keccak256(address))
    }

    /// The nonce that the next transaction of an account needs.
    pub fn nonce(&self, address: &Address) -> u64 {
        self.account(address).map_or(0, |account| account.nonce)
    }

    /// The balance in 10^-18 of the native coin.
    pub fn balance(&self, address: &Address) -> U256 {
        self.account(address).map_or(U256::ZERO, |account| account.balance)
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> usize {
        let mut count = 0;
        self.0.for_each(&mut |_, _| count += 1);
        count
    }

    pub(crate) fn tries(&self) -> &Trie<Account> {
        &self.0
    }

    /// Adds an account to a state that is made from its entries: by the hashes of address and slots, all of its slots.
    pub fn restore(
        &mut self,
        key: B256,
        nonce: u64,
        balance: U256,
        code: Bytes,
        slots: impl IntoIterator<Item = (B256, U256)>,
    ) {
        let mut account = Account { nonce, balance, ..Account::default() };
        account.set_code(code);
        for (slot, value) in slots {
            account.storage.insert(slot, value);
        }
        // A genesis may list such accounts.
        if !account.is_empty() {
            self.0.insert(key, account);
        }
    }

    /// Applies what a block did.
    pub fn apply(&mut self, changes: &[AccountChange]) {
        for change in changes {
            let key = keccak256(change.address);
            let Some((nonce, balance, code)) = &change.account else {
                self.0.remove(&key);
                continue;
            };
            let mut account = self.0.get(&key).cloned().unwrap_or_default();
            account.nonce = *nonce;
            account.balance = *balance;
            if let Some(code) = code {
                account.set_code(code.clone());
            }
            if change.wiped {
                account.storage = Trie::default();
            }
            for (slot, value) in &change.slots {
                account.set_slot(slot, *value);
            }
            if account.is_empty() { self.0.remove(&key) } else { self.0.insert(key, account) }
        }
    }

    /// An account and some of its slots with the proofs of EIP-1186.
    pub fn prove(&self, address: &Address, slots: &[U256]) -> Proof {
        let key = keccak256(address);
        let account = self.0.get(&key).cloned().unwrap_or_default();
        let slots = slots
            .iter()
            .map(|slot| (account.slot(slot), account.storage.prove(&keccak256(slot.to_be_bytes::<32>()))))
            .collect();
        Proof { account_proof: self.0.prove(&key), account, slots }
    }
}

impl DatabaseRef for State {
    type Error = Infallible;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.account(&address).map(|account| AccountInfo {
            balance: account.balance,
            nonce: account.nonce,
            code_hash: account.code_hash(),
            account_id: None,
            code: Some(account.code.as_ref().map(|(_, code)| code.clone()).unwrap_or_default()),
        }))
    }

    /// Never asked: `basic_ref` brings the code.
    fn code_by_hash_ref(&self, _: B256) -> Result<Bytecode, Infallible> {
        Ok(Bytecode::default())
    }

    fn storage_ref(&self, address: Address, slot: U256) -> Result<U256, Infallible> {
        Ok(self.account(&address).map_or(U256::ZERO, |account| account.slot(&slot)))
    }

    /// The history contract (EIP-2935) has more hashes than the opcode may ask for.
    fn block_hash_ref(&self, number: u64) -> Result<B256, Infallible> {
        let slot = U256::from(number % HISTORY_SERVE_WINDOW as u64);
        Ok(self.storage_ref(HISTORY_STORAGE_ADDRESS, slot)?.into())
    }
}

/// What execution on top of a state has changed, in the order of addresses.
pub(crate) fn changes(db: &CacheDB<&State>) -> Vec<AccountChange> {
    let mut changes = Vec::new();
    for (address, account) in &db.cache.accounts {
        let before = db.db.account(address);
        if account.account_state == AccountState::None && account.storage.is_empty() {
            continue;
        }
        let gone = account.account_state == AccountState::NotExisting || account.info.is_empty();
        if gone {
            if before.is_some() {
                changes.push(AccountChange {
                    address: *address,
                    account: None,
                    wiped: true,
                    slots: Vec::new(),
                });
            }
            continue;
        }
        let wiped = account.account_state == AccountState::StorageCleared;
        let old = |slot: &U256| {
            if wiped { U256::ZERO } else { before.map_or(U256::ZERO, |before| before.slot(slot)) }
        };
        let mut slots: Vec<_> = account
            .storage
            .iter()
            .filter(|(slot, value)| old(slot) != **value)
            .map(|(slot, value)| (*slot, *value))
            .collect();
        slots.sort_unstable();
        let code_stayed = before.map_or(KECCAK_EMPTY, Account::code_hash) == account.info.code_hash;
        let code = (!code_stayed).then(|| {
            let code = account.info.code.as_ref().or_else(|| db.cache.contracts.get(&account.info.code_hash));
            code.map(Bytecode::original_bytes).unwrap_or_default()
        });
        let same = before.is_some_and(|b| b.nonce == account.info.nonce && b.balance == account.info.balance);
        if same && code.is_none() && slots.is_empty() && !wiped {
            continue;
        }
        let wiped = wiped && before.is_some();
        let account = Some((account.info.nonce, account.info.balance, code));
        changes.push(AccountChange { address: *address, account, wiped, slots });
    }
    changes.sort_unstable_by_key(|change| change.address);
    changes
}

/// Puts a call's assumptions over a state.
pub(crate) fn assume(db: &mut CacheDB<&State>, overrides: &Overrides) {
    for (address, over) in overrides {
        // Reading from a state cannot fail: the error type has no values.
        let Ok(account) = db.load_account(*address);
        let mut info = account.info.clone();
        if let Some(nonce) = over.nonce {
            info.nonce = nonce;
        }
        if let Some(balance) = over.balance {
            info.balance = balance;
        }
        if let Some(code) = &over.code {
            info.code_hash = keccak256(code);
            info.code = Some(bytecode(code.clone()));
        }
        db.insert_account_info(*address, info);
        if let Some(slots) = &over.state {
            let Ok(()) = db.replace_account_storage(*address, slots.iter().copied().collect());
        }
        for (slot, value) in &over.state_diff {
            let Ok(()) = db.insert_account_storage(*address, *slot, *value);
        }
    }
}
