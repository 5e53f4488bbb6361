//! Evidence that a validator contradicted itself, brought by a transaction, and what follows from it.
//!
//! A transaction without value to [`EVIDENCE`] carries the owner's address of a validator in the staking contract (20 bytes) and two votes of one view that
//! no correct validator signs both. When they hold, by the key that the contract has for that validator, a system call tells the contract, which slashes
//! and jails; the receipt has its logs. Whatever does not hold makes the transaction fail, and costs its sender the gas. Every validator checks it as part of the
//! block, so nobody's word counts.
//!
//! A kind (1 byte), then the votes as commonware's simplex encodes them: round, proposal, the signer's seat, the signature.
//!
//! | kind | votes |
//! | --- | --- |
//! | 0 | notarizations of two proposals |
//! | 1 | finalizations of two proposals |
//! | 2 | a nullification, and a finalization |

use alloy_primitives::{Address, B256, Bytes, Log, U256, address, keccak256};
use assay_receipt::votes::{is_signed, message, varint};
use revm::{SystemCallCommitEvm, SystemCallEvm};

use crate::execute::{Evm, Rules};

/// Where evidence is sent.
pub const EVIDENCE: Address = address!("000000000000000000000000000000000000a55c");
/// Sender of system calls, of which nobody has a key (EIP-4788).
const CONSENSUS: Address = address!("fffffffffffffffffffffffffffffffffffffffe");
/// Two votes have some 250 bytes.
const VOTES_MAX: usize = 512;
/// The field `key` of the contract's `Validator`.
const KEY_FIELD: usize = 11;

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

fn call(function: &str, argument: Address) -> Bytes {
    [&keccak256(function)[..4], argument.into_word().as_slice()].concat().into()
}

/// The consensus key that the staking contract has for a validator: the first 32 bytes of what was registered.
fn registered(output: &[u8]) -> Option<[u8; 32]> {
    let word = |at: usize| -> Option<usize> {
        let word = U256::from_be_slice(output.get(at..at.checked_add(32)?)?);
        usize::try_from(word).ok().filter(|number| *number <= 1 << 16)
    };
    let fields = word(0)?;
    let key = fields + word(fields + 32 * KEY_FIELD)?;
    let bytes = output.get(key + 32..key + 32 + word(key)?)?;
    bytes.first_chunk().copied()
}

/// Carries out what evidence leads to: the staking contract's logs, or `None` where it does not hold and nothing happened.
pub(crate) fn punish(rules: &Rules, evm: &mut Evm<'_>, input: &[u8]) -> Option<Vec<Log>> {
    let staking = rules.staking?;
    let (validator, votes) = input.split_first_chunk::<20>()?;
    let validator = Address::from(validator);
    let asked =
        evm.system_call_with_caller(CONSENSUS, staking, call("validatorOf(address)", validator)).ok()?;
    let key = registered(asked.result.output().filter(|_| asked.result.is_success())?)?;
    if !contradicts(&rules.genesis, &key, votes) {
        return None;
    }
    let call = call("equivocated(address)", validator);
    let done = evm.system_call_with_caller_commit(CONSENSUS, staking, call).ok()?;
    // Without a log it was punished before.
    let logs = done.is_success().then(|| done.into_logs())?;
    (!logs.is_empty()).then_some(logs)
}
