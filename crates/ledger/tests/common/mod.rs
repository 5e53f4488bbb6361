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
