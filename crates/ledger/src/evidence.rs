//! Evidence that a validator contradicted itself, brought by a transaction, and what follows from it.
//!
//! A transaction without value to [`EVIDENCE`] carries a consensus key (32 bytes) and two votes of one view that no correct validator signs both. When they hold,
//! and the staking contract knows whose key it is or was until not too long ago, a system call tells the contract, which slashes and jails; the receipt has its
//! logs. Whatever does not hold makes the transaction fail, and costs its sender the gas. Every validator checks it as part of the block, so nobody's word counts.
//!
//! Evidence that holds may also come without a fee: a block may have a transaction to [`EVIDENCE`] of type 2 whose highest fee is zero, if it convicts
//! somebody who was not convicted before. So a proposer needs no account to put what it has seen into its block ([`bring`]), and nobody gets anything for nothing.
//!
//! A kind (1 byte), then the votes as commonware's simplex encodes them: round, proposal, the signer's seat, the signature.
//!
//! | kind | votes |
//! | --- | --- |
//! | 0 | notarizations of two proposals |
//! | 1 | finalizations of two proposals |
//! | 2 | a nullification, and a finalization |

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, Log, Signature, TxKind, U256, address, keccak256};
use assay_receipt::votes::{is_signed, message, varint};
use assay_receipt::{Bytes32, Key};
use revm::{SystemCallCommitEvm, SystemCallEvm};

use crate::Transaction;
use crate::execute::{Evm, Rules};
use crate::state::State;

/// Where evidence is sent.
pub const EVIDENCE: Address = address!("000000000000000000000000000000000000a55c");
/// Sender of system calls, of which nobody has a key (EIP-4788).
const CONSENSUS: Address = address!("fffffffffffffffffffffffffffffffffffffffe");
/// Two votes have some 250 bytes.
const VOTES_MAX: usize = 512;
/// More gas than a transaction with evidence uses, by its bytes (EIP-7623).
const FREE_GAS: u64 = 100_000;

/// What a vote is for: its domain's suffix, and whether a proposal follows the round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Notarize,
    Nullify,
    Finalize,
}

/// A vote: what was signed, of which round, and the signature.
struct Vote<'a> {
    kind: Kind,
    round: (u64, u64),
    message: &'a [u8],
    signature: &'a [u8; 64],
}

impl<'a> Vote<'a> {
    /// Takes a vote off the front of `bytes`.
    fn take(kind: Kind, bytes: &mut &'a [u8]) -> Option<Self> {
        let whole = *bytes;
        let round = (varint(bytes)?, varint(bytes)?);
        if kind != Kind::Nullify {
            // The parent's view, and the block's hash.
            varint(bytes)?;
            *bytes = bytes.split_at_checked(32)?.1;
        }
        let message = &whole[..whole.len() - bytes.len()];
        // The seat is not signed, and does not matter.
        varint(bytes)?;
        let (signature, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(Self { kind, round, message, signature })
    }

    /// Whether a key signed it on the chain of this genesis.
    fn holds(&self, genesis: &B256, key: &[u8; 32]) -> bool {
        let suffix = match self.kind {
            Kind::Notarize => "_NOTARIZE",
            Kind::Nullify => "_NULLIFY",
            Kind::Finalize => "_FINALIZE",
        };
        is_signed(key, &message(genesis, suffix, self.message), self.signature)
    }
}

/// Whether the votes (a kind and two votes) convict a key on the chain of a genesis.
pub fn contradicts(genesis: &B256, key: &[u8; 32], votes: &[u8]) -> bool {
    let checked = || -> Option<bool> {
        let (kind, mut rest) = votes.split_first().filter(|_| votes.len() <= VOTES_MAX)?;
        let kinds = match kind {
            0 => [Kind::Notarize; 2],
            1 => [Kind::Finalize; 2],
            2 => [Kind::Nullify, Kind::Finalize],
            _ => return None,
        };
        let [first, second] = [Vote::take(kinds[0], &mut rest)?, Vote::take(kinds[1], &mut rest)?];
        let conflict = first.round == second.round && first.message != second.message && rest.is_empty();
        Some(conflict && first.holds(genesis, key) && second.holds(genesis, key))
    };
    checked().unwrap_or(false)
}

/// A call of a function with one argument.
fn call(function: &str, argument: B256) -> Bytes {
    [&keccak256(function)[..4], argument.as_slice()].concat().into()
}

/// Whose key the staking contract says this is, so that signatures by it count against them.
pub(crate) fn holder(rules: &Rules, evm: &mut Evm<'_>, key: &[u8; 32]) -> Option<Address> {
    let asked = evm.system_call_with_caller(CONSENSUS, rules.staking?, call("holderOf(bytes32)", key.into()));
    let asked = asked.ok()?.result;
    let word = asked.output().filter(|_| asked.is_success())?.first_chunk::<32>()?;
    Some(Address::from_word(word.into())).filter(|holder| !holder.is_zero())
}

/// Tells the staking contract of a fault, and returns its logs; `None` where it refused, or knew before.
pub(crate) fn tell(rules: &Rules, evm: &mut Evm<'_>, function: &str, validator: Address) -> Option<Vec<Log>> {
    let call = call(function, validator.into_word());
    let done = evm.system_call_with_caller_commit(CONSENSUS, rules.staking?, call).ok()?;
    let logs = done.is_success().then(|| done.into_logs())?;
    (!logs.is_empty()).then_some(logs)
}

/// Carries out what evidence leads to: the staking contract's logs, or `None` where it does not hold and nothing happened.
pub(crate) fn punish(rules: &Rules, evm: &mut Evm<'_>, input: &[u8]) -> Option<Vec<Log>> {
    let (key, votes) = input.split_first_chunk::<32>()?;
    let validator = holder(rules, evm, key)?;
    contradicts(&rules.genesis, key, votes).then(|| tell(rules, evm, "equivocated(address)", validator))?
}

/// Whether [`punish`] would do something. Who was convicted before is found out before signatures are checked.
pub(crate) fn convicts(rules: &Rules, evm: &mut Evm<'_>, input: &[u8]) -> bool {
    let mut checked = || -> Option<bool> {
        let (key, votes) = input.split_first_chunk::<32>()?;
        let call = call("equivocated(address)", holder(rules, evm, key)?.into_word());
        let tried = evm.system_call_with_caller(CONSENSUS, rules.staking?, call).ok()?.result;
        let news = tried.is_success() && !tried.into_logs().is_empty();
        Some(news && contradicts(&rules.genesis, key, votes))
    };
    checked().unwrap_or(false)
}

/// Whether a transaction carries evidence.
pub(crate) fn is_evidence(transaction: &Transaction) -> bool {
    transaction.to() == Some(EVIDENCE) && transaction.value().is_zero()
}

/// Whether it does so without a fee: then it must convict somebody, and can do nothing else.
pub(crate) fn is_free(transaction: &Transaction) -> bool {
    let plain = transaction.kind() == 2 && transaction.access_list().is_none_or(|list| list.is_empty());
    is_evidence(transaction) && plain && transaction.max_fee() == 0 && transaction.gas_limit() <= FREE_GAS
}

/// A transaction that brings evidence against a key without a fee, to be the first of a block after `state`. Its sender is an account that nobody owns: the
/// key follows from the evidence, so all who have seen the same bring the same transaction.
pub fn bring(rules: &Rules, state: &State, key: &[u8; 32], votes: &[u8]) -> Option<Transaction> {
    let input = [key.as_slice(), votes].concat();
    let seed = [b"assay evidence".as_slice(), input.as_slice()].concat();
    let signer = Key::from_bytes(keccak256(seed).0).ok()?;
    let sender = Address::new(signer.address().0);
    let transaction = TxEip1559 {
        chain_id: rules.chain_id,
        nonce: state.nonce(&sender),
        gas_limit: FREE_GAS,
        to: TxKind::Call(EVIDENCE),
        input: input.into(),
        ..TxEip1559::default()
    };
    let signature = signer.sign(&Bytes32(transaction.signature_hash().0)).0;
    let (r, s) = (U256::from_be_slice(&signature[..32]), U256::from_be_slice(&signature[32..64]));
    let envelope = TxEnvelope::from(transaction.into_signed(Signature::new(r, s, signature[64] == 28)));
    Transaction::decode(&envelope.encoded_2718()).ok()
}
