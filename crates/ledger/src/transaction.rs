//! Signed transactions from outside: decoding, bounds, and who sent them.

use alloy_consensus::{EthereumTxEnvelope, Transaction as _, TxEip4844};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use revm::context::TxEnv;
use revm::context::either::Either;
use std::sync::Arc;
use thiserror::Error;

/// A transaction's longest encoding in bytes: four slots of 32 KiB, as geth's pool has it.
pub const MAX_TRANSACTION_BYTES: usize = 128 * 1024;

/// Why bytes are no transaction. The sentences are those that Ethereum's libraries know.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TransactionError {
    /// Longer than [`MAX_TRANSACTION_BYTES`].
    #[error("oversized data: transaction size {0}, limit {MAX_TRANSACTION_BYTES}")]
    Oversized(usize),
    /// Neither RLP nor a typed envelope, or followed by more bytes.
    #[error("typed transaction could not be decoded: {0}")]
    Malformed(String),
    /// A type that this chain has no use for.
    #[error("transaction type not supported")]
    Unsupported,
    /// The signature is nobody's, or has a high `s` (EIP-2).
    #[error("invalid transaction v, r, s values")]
    Signature,
}

/// A signature's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Parity of the point, as typed transactions have it.
    pub y_parity: bool,
    /// First half.
    pub r: U256,
    /// Second half.
    pub s: U256,
}

/// Who signed a hash. `None` where there is no key, or `s` is high (EIP-2).
fn recover(hash: &B256, signature: &Signature) -> Option<Address> {
    let mut bytes = [27 + u8::from(signature.y_parity); 65];
    bytes[..32].copy_from_slice(&signature.r.to_be_bytes::<32>());
    bytes[32..64].copy_from_slice(&signature.s.to_be_bytes::<32>());
    let address = assay_receipt::Signature(bytes).recover(&assay_receipt::Bytes32(hash.0)).ok()?;
    Some(address.0.into())
}

/// A transaction whose sender is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    envelope: EthereumTxEnvelope<TxEip4844>,
    sender: Address,
    bytes: Bytes,
}

impl Transaction {
    /// Decodes the bytes of `eth_sendRawTransaction` (EIP-2718) and recovers the sender. Costs one signature check.
    pub fn decode(bytes: &[u8]) -> Result<Self, TransactionError> {
        if bytes.len() > MAX_TRANSACTION_BYTES {
            return Err(TransactionError::Oversized(bytes.len()));
        }
        // The first byte of a typed transaction is its type; a legacy one begins as a list.
        if matches!(bytes.first(), Some(0 | 3 | 5..=0x7f)) {
            return Err(TransactionError::Unsupported);
        }
        let envelope = EthereumTxEnvelope::<TxEip4844>::decode_2718_exact(bytes)
            .map_err(|error| TransactionError::Malformed(error.to_string()))?;
        let signature = envelope.signature();
        let signature = Signature { y_parity: signature.v(), r: signature.r(), s: signature.s() };
        let sender = recover(&envelope.signature_hash(), &signature).ok_or(TransactionError::Signature)?;
        // A decoder that is too lenient would give one transaction several encodings.
        let again = envelope.encoded_2718();
        if again != bytes {
            return Err(TransactionError::Malformed("the encoding is not canonical".to_owned()));
        }
        Ok(Self(Arc::new(Inner { envelope, sender, bytes: again.into() })))
    }

    /// Decodes bytes that [`decode`](Self::decode) has accepted before, with the sender that it found: for what a node keeps itself.
    pub fn restore(bytes: &[u8], sender: Address) -> Result<Self, TransactionError> {
        let envelope = EthereumTxEnvelope::<TxEip4844>::decode_2718_exact(bytes)
            .map_err(|error| TransactionError::Malformed(error.to_string()))?;
        Ok(Self(Arc::new(Inner { envelope, sender, bytes: Bytes::copy_from_slice(bytes) })))
    }

    /// One that nobody signed, from a sender that is assumed: for simulations.
    pub(crate) fn assumed(envelope: EthereumTxEnvelope<TxEip4844>, sender: Address) -> Self {
        let bytes = envelope.encoded_2718().into();
        Self(Arc::new(Inner { envelope, sender, bytes }))
    }

    /// The EIP-2718 encoding.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// Keccak-256 of [`bytes`](Self::bytes).
    pub fn hash(&self) -> B256 {
        *self.0.envelope.tx_hash()
    }

    /// Who signed it.
    pub fn sender(&self) -> Address {
        self.0.sender
    }

    /// 0 legacy, 1 with an access list (EIP-2930), 2 with dynamic fees (EIP-1559), 4 with delegations (EIP-7702).
    pub fn kind(&self) -> u8 {
        self.0.envelope.tx_type() as u8
    }

    /// The chain that it is for; `None` for a legacy transaction without protection against replay (EIP-155).
    pub fn chain_id(&self) -> Option<u64> {
        self.0.envelope.chain_id()
    }

    /// Its number among the sender's.
    pub fn nonce(&self) -> u64 {
        self.0.envelope.nonce()
    }

    /// The most gas that it may use.
    pub fn gas_limit(&self) -> u64 {
        self.0.envelope.gas_limit()
    }

    /// The gas price, for types that have one.
    pub fn gas_price(&self) -> Option<u128> {
        self.0.envelope.gas_price()
    }

    /// The most wei that a unit of gas may cost, tip included.
    pub fn max_fee(&self) -> u128 {
        self.0.envelope.max_fee_per_gas()
    }

    /// The most wei that a unit of gas may tip the proposer; the gas price for types without tip.
    pub fn max_tip(&self) -> u128 {
        self.0.envelope.max_priority_fee_per_gas().unwrap_or_else(|| self.max_fee())
    }

    /// Whether the type has a separate tip.
    pub fn has_tip(&self) -> bool {
        self.0.envelope.is_dynamic_fee()
    }

    /// What a unit of gas costs the sender at a base fee.
    pub fn effective_price(&self, base_fee: u64) -> u128 {
        self.0.envelope.effective_gas_price(Some(base_fee))
    }

    /// What the proposer gets for a unit of gas; `None` where the base fee is more than the sender pays.
    pub fn effective_tip(&self, base_fee: u64) -> Option<u128> {
        self.max_fee().checked_sub(u128::from(base_fee)).map(|rest| rest.min(self.max_tip()))
    }

    /// The called address; `None` creates a contract.
    pub fn to(&self) -> Option<Address> {
        self.0.envelope.to()
    }

    /// Transferred, in 10^-18 of the native coin.
    pub fn value(&self) -> U256 {
        self.0.envelope.value()
    }

    /// Call data or init code.
    pub fn input(&self) -> &Bytes {
        self.0.envelope.input()
    }

    /// Addresses with slots (EIP-2930), for types that have the list.
    pub fn access_list(&self) -> Option<Vec<(Address, Vec<B256>)>> {
        let list = self.0.envelope.access_list()?;
        Some(list.0.iter().map(|item| (item.address, item.storage_keys.clone())).collect())
    }

    /// The delegations of EIP-7702 as chain id, address, nonce and signature.
    pub fn authorizations(&self) -> Option<Vec<(U256, Address, u64, Signature)>> {
        let list = self.0.envelope.authorization_list()?;
        let entry = |a: &alloy_eips::eip7702::SignedAuthorization| {
            let signature = Signature { y_parity: a.y_parity() == 1, r: a.r(), s: a.s() };
            (a.chain_id, a.address, a.nonce, signature)
        };
        Some(list.iter().map(entry).collect())
    }

    /// The sender's signature.
    pub fn signature(&self) -> Signature {
        let signature = self.0.envelope.signature();
        Signature { y_parity: signature.v(), r: signature.r(), s: signature.s() }
    }

    /// The most that the sender may lose: gas limit times highest price, and the value. `None` where that exceeds 256 bits.
    pub fn cost(&self) -> Option<U256> {
        U256::from(self.max_fee()).checked_mul(U256::from(self.gas_limit()))?.checked_add(self.value())
    }

    /// The address that a creation creates.
    pub fn created(&self) -> Option<Address> {
        self.to().is_none().then(|| self.sender().create(self.nonce()))
    }

    pub(crate) fn envelope(&self) -> &EthereumTxEnvelope<TxEip4844> {
        &self.0.envelope
    }

    pub(crate) fn env(&self) -> TxEnv {
        let envelope = &self.0.envelope;
        TxEnv {
            tx_type: self.kind(),
            caller: self.sender(),
            gas_limit: self.gas_limit(),
            gas_price: self.max_fee(),
            kind: envelope.to().map_or(TxKind::Create, TxKind::Call),
            value: self.value(),
            data: self.input().clone(),
            nonce: self.nonce(),
            chain_id: self.chain_id(),
            access_list: envelope.access_list().cloned().unwrap_or_default(),
            gas_priority_fee: envelope.max_priority_fee_per_gas(),
            blob_hashes: Vec::new(),
            max_fee_per_blob_gas: 0,
            authorization_list: envelope
                .authorization_list()
                .map(|list| list.iter().cloned().map(Either::Left).collect())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_consensus::crypto::secp256k1::recover_signer;
    use proptest::prelude::*;

    use super::*;

    /// The order of secp256k1's group (SEC 2).
    const ORDER: U256 =
        alloy_primitives::uint!(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141_U256);

    fn both(hash: B256, r: U256, s: U256, y_parity: bool) -> (Option<Address>, Option<Address>) {
        let theirs = recover_signer(&alloy_primitives::Signature::new(r, s, y_parity), hash).ok();
        (recover(&hash, &Signature { y_parity, r, s }), theirs)
    }

    proptest! {
        /// Most numbers are the x of a point half of the time, and any such point with any `s` is somebody's signature.
        #[test]
        fn senders_are_those_of_alloy(hash in any::<[u8; 32]>(), r in any::<[u8; 32]>(), s in any::<[u8; 32]>(), parity in any::<bool>()) {
            let (r, s) = (U256::from_be_bytes(r), U256::from_be_bytes(s));
            for s in [s, s >> 1] {
                let (ours, theirs) = both(hash.into(), r, s, parity);
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn no_signature_at_the_edges() {
        let hash = B256::repeat_byte(7);
        let (half, one) = (ORDER >> 1, U256::from(1));
        // 1 and the half of the order are in range; 5 is no point's x.
        for r in [U256::ZERO, one, U256::from(5), half, ORDER - one, ORDER, U256::MAX] {
            for s in [U256::ZERO, one, half, half + one, ORDER - one, ORDER, U256::MAX] {
                for parity in [false, true] {
                    let (ours, theirs) = both(hash, r, s, parity);
                    assert_eq!(ours, theirs, "{r} {s}");
                }
            }
        }
        assert!(both(hash, one, one, false).0.is_some());
        assert_eq!(both(hash, one, half + one, false).0, None, "high s");
        assert_eq!(both(hash, U256::from(5), one, false).0, None, "no point");
    }
}
