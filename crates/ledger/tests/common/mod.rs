//! Accounts with keys, and signed transactions from them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use alloy_consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEip7702, TxEnvelope, TxLegacy};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip7702::Authorization;
use assay_ledger::types::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use assay_ledger::{Executed, Genesis, Rules, Transaction};
use k256::ecdsa::SigningKey;

pub const CHAIN: u64 = 7;
pub const GWEI: u128 = 1_000_000_000;

pub struct Wallet(SigningKey);

impl Wallet {
    pub fn new(seed: u8) -> Self {
        Self(SigningKey::from_slice(keccak256([seed]).as_slice()).unwrap())
    }

    pub fn address(&self) -> Address {
        let point = self.0.verifying_key().to_encoded_point(false);
        Address::from_slice(&keccak256(&point.as_bytes()[1..])[12..])
    }

    pub fn sign(&self, hash: B256) -> Signature {
        let (signature, id) = self.0.sign_prehash_recoverable(hash.as_slice()).unwrap();
        let (r, s) = signature.split_bytes();
        Signature::new(U256::from_be_slice(&r), U256::from_be_slice(&s), id.is_y_odd())
    }

    fn bytes<T>(&self, transaction: T) -> Vec<u8>
    where
        T: SignableTransaction<Signature>,
        TxEnvelope: From<alloy_consensus::Signed<T>>,
    {
        let signature = self.sign(transaction.signature_hash());
        TxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
    }

    pub fn dynamic(&self, change: impl FnOnce(&mut TxEip1559)) -> Vec<u8> {
        let mut transaction = TxEip1559 {
            chain_id: CHAIN,
            gas_limit: 21_000,
            max_fee_per_gas: 10 * GWEI,
            max_priority_fee_per_gas: GWEI,
            to: TxKind::Call(Address::repeat_byte(0xbb)),
            value: U256::from(1),
            ..TxEip1559::default()
        };
        change(&mut transaction);
        self.bytes(transaction)
    }

    pub fn legacy(&self, nonce: u64, chain_id: Option<u64>) -> Vec<u8> {
        self.bytes(TxLegacy {
            chain_id,
            nonce,
            gas_price: 10 * GWEI,
            gas_limit: 21_000,
            to: TxKind::Call(Address::repeat_byte(0xcc)),
            value: U256::from(5),
            input: Bytes::new(),
        })
    }

    pub fn with_list(&self, nonce: u64) -> Vec<u8> {
        self.bytes(TxEip2930 {
            chain_id: CHAIN,
            nonce,
            gas_price: 10 * GWEI,
            gas_limit: 60_000,
            to: TxKind::Call(Address::repeat_byte(0xcc)),
            ..TxEip2930::default()
        })
    }

    /// Lets `signer`'s account run the code at `code`.
    pub fn delegating(&self, nonce: u64, signer: &Wallet, code: Address) -> Vec<u8> {
        let authorization = Authorization { chain_id: U256::from(CHAIN), address: code, nonce: 0 };
        let signature = signer.sign(authorization.signature_hash());
        self.bytes(TxEip7702 {
            chain_id: CHAIN,
            nonce,
            gas_limit: 200_000,
            max_fee_per_gas: 10 * GWEI,
            max_priority_fee_per_gas: GWEI,
            to: signer.address(),
            authorization_list: vec![authorization.into_signed(signature)],
            ..TxEip7702::default()
        })
    }

    pub fn transfer(&self, nonce: u64) -> Transaction {
        Transaction::decode(&self.dynamic(|t| t.nonce = nonce)).unwrap()
    }
}

/// Wallets 0 to 7 have 10 coins each.
pub fn genesis() -> (Rules, Executed) {
    let alloc: Vec<_> = (0..8)
        .map(|seed| format!("\"{}\": {{\"balance\": \"10000000000000000000\"}}", Wallet::new(seed).address()))
        .collect();
    let text = format!(
        "{{\"chainId\": {CHAIN}, \"timestamp\": 1800000000, \"gasLimit\": 30000000, \"alloc\": {{{}}}}}",
        alloc.join(",")
    );
    Genesis::from_json(&text).unwrap().execute().unwrap()
}

/// Where [`ELECTION`] is in tests.
pub const STAKING: Address = Address::repeat_byte(0x57);
/// Keeps the last input of more than four bytes, and answers any shorter one with it: a stand-in for the staking contract that says
/// what a test has told it.
pub const ELECTION: &str = "0x600436116025575f5b8060ff5411601657\
     60ff545ff35b808060051c549052602001600856\
     5b3660ff555f5b80361160335700\
     5b8035816005\
     1c55602001602b56";

/// What the staking contract's `committee()` would answer. Its first word, which `bonded()` answers with here, is 96.
pub fn elected(members: &[(Vec<u8>, u64)]) -> Vec<u8> {
    let word = |number: usize| U256::from(number).to_be_bytes::<32>();
    let mut keys = Vec::new();
    let mut offsets = Vec::new();
    for (key, _) in members {
        offsets.extend(word(32 * members.len() + keys.len()));
        keys.extend(word(key.len()));
        keys.extend(key);
        keys.resize(keys.len().next_multiple_of(32), 0);
    }
    let count = word(members.len());
    let keys_at = 96 + 32;
    let seats_at = keys_at + 32 + offsets.len() + keys.len();
    let mut out = [word(96), word(keys_at), word(seats_at)].concat();
    // No addresses: nobody reads them.
    out.extend(word(0));
    out.extend(count);
    out.extend(offsets);
    out.extend(keys);
    out.extend(count);
    for (_, seats) in members {
        out.extend(word(*seats as usize));
    }
    out
}

/// A genesis whose staking contract is [`ELECTION`] with this in its storage, where less than 96 bonded is enough.
pub fn with_election(validators: &[String], blocks: u64, least_stake: u64, answer: &[u8]) -> Genesis {
    let mut alloc: Vec<_> = (0..8)
        .map(|seed| format!("\"{}\": {{\"balance\": \"10000000000000000000\"}}", Wallet::new(seed).address()))
        .collect();
    let mut storage: Vec<_> = answer
        .chunks(32)
        .enumerate()
        .map(|(i, chunk)| {
            let mut word = [0; 32];
            word[..chunk.len()].copy_from_slice(chunk);
            format!("\"{i:#x}\": \"{}\"", B256::from(word))
        })
        .collect();
    storage.push(format!("\"0xff\": \"{:#x}\"", answer.len()));
    alloc.push(format!(
        "\"{STAKING}\": {{\"balance\": \"0\", \"code\": \"{ELECTION}\", \"storage\": {{{}}}}}",
        storage.join(",")
    ));
    let validators: Vec<_> = validators
        .iter()
        .map(|key| {
            format!("{{\"key\": \"{key}\", \"endpoint\": \"\", \"beneficiary\": \"{}\"}}", Address::ZERO)
        })
        .collect();
    let text = format!(
        "{{\"chainId\": {CHAIN}, \"timestamp\": 0, \"gasLimit\": 30000000, \"alloc\": {{{}}}, \"validators\": [{}],
          \"epochs\": {{\"blocks\": {blocks}, \"leastStake\": \"{least_stake}\"}},
          \"system\": {{\"deployer\": \"{}\", \"nonce\": 0, \"steps\": [], \"addresses\": {{\"staking\": \"{STAKING}\"}}}}}}",
        alloc.join(","),
        validators.join(","),
        Address::ZERO
    );
    Genesis::from_json(&text).unwrap()
}
