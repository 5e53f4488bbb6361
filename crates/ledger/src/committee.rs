//! Who has seats in consensus: elected by stake at the end of an epoch, and kept as the code of one account, so that headers commit
//! to it, proofs reach it, and contracts can read it.

use std::collections::BTreeMap;

use alloy_consensus::Header;
use alloy_primitives::{Address, B256, Bytes, U256, address, keccak256};

use crate::execute::{Message, Rules, simulate};
use crate::state::{AccountChange, Overrides, State};

/// Whose code is the [`Committee`] of the next block. It begins with STOP, so a call does nothing.
pub const COMMITTEE_ADDRESS: Address = address!("000000000000000000000000000000000000a55a");
/// Most members of a committee: as many as the staking contract has validators, or a genesis may name.
pub const MAX_MEMBERS: usize = 128;
/// Most seats of one committee, which bounds a certificate and the work to check it.
pub const MAX_SEATS: u32 = 1_000;
/// Longest endpoint in bytes.
const MAX_ENDPOINT: usize = 96;
/// Gas for a call of the staking contract, which has at most 128 validators and 1,000 seats.
const VIEW_GAS: u64 = 100_000_000;
/// The first four bytes of the hashes of `committee()` and `bonded()`.
const COMMITTEE: &str = "committee()";
const BONDED: &str = "bonded()";

/// A validator with seats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its consensus key (ed25519). Stake buys seats for any 32 bytes: for some that are no key nobody votes.
    pub key: [u8; 32],
    /// Its votes, at least one.
    pub seats: u32,
    /// Where its peers reach it, `ip:port`; empty where nobody has said.
    pub endpoint: String,
}

/// Who decides the blocks of an epoch. Its encoding is `0 || epoch (8) || blocks of an epoch (8) || members (2)`, then for each
/// member `key (32) || seats (4) || length of the endpoint (1) || endpoint`; numbers are big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committee {
    /// Blocks `epoch · blocks` to `(epoch + 1) · blocks - 1`.
    pub epoch: u64,
    /// How many blocks an epoch has, at least 2.
    pub blocks: u64,
    /// In the order of their keys.
    pub members: Vec<Member>,
}

impl Committee {
    /// Members in order; the seats of one key are added up, and those without are left out.
    pub(crate) fn new(epoch: u64, blocks: u64, members: impl IntoIterator<Item = Member>) -> Self {
        let mut sorted = BTreeMap::<[u8; 32], Member>::new();
        for member in members {
            sorted
                .entry(member.key)
                .and_modify(|known| known.seats = known.seats.saturating_add(member.seats))
                .or_insert(member);
        }
        Self { epoch, blocks, members: sorted.into_values().filter(|member| member.seats > 0).collect() }
    }

    /// All seats.
    pub fn seats(&self) -> u32 {
        self.members.iter().map(|member| member.seats).sum()
    }

    /// The seats of a key; zero for one that is no member's.
    pub fn seats_of(&self, key: &[u8; 32]) -> u32 {
        self.members.iter().find(|member| member.key == *key).map_or(0, |member| member.seats)
    }

    /// The number of the epoch's last block, which names the next committee.
    pub fn last_block(&self) -> u64 {
        (self.epoch + 1).saturating_mul(self.blocks) - 1
    }

    /// See the type.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0];
        out.extend(self.epoch.to_be_bytes());
        out.extend(self.blocks.to_be_bytes());
        out.extend((self.members.len() as u16).to_be_bytes());
        for member in &self.members {
            out.extend(member.key);
            out.extend(member.seats.to_be_bytes());
            out.push(member.endpoint.len() as u8);
            out.extend(member.endpoint.as_bytes());
        }
        out
    }

    /// Reads [`encode`](Self::encode)'s bytes; `None` for any others.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let whole = bytes;
        let mut take = |length: usize| -> Option<&[u8]> {
            let (taken, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            Some(taken)
        };
        take(1)?;
        let epoch = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let blocks = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let count = u16::from_be_bytes(take(2)?.try_into().ok()?);
        let mut members = Vec::new();
        let mut seats = 0u32;
        for _ in 0..count {
            let key = take(32)?.try_into().ok()?;
            let own = u32::from_be_bytes(take(4)?.try_into().ok()?);
            let length = usize::from(*take(1)?.first()?);
            let endpoint = String::from_utf8(take(length)?.to_vec()).ok()?;
            seats = seats.checked_add(own)?;
            members.push(Member { key, seats: own, endpoint });
        }
        let sane = blocks >= 2 && seats <= MAX_SEATS && members.len() <= MAX_MEMBERS;
        let committee = Self::new(epoch, blocks, members);
        (sane && committee.encode() == whole).then_some(committee)
    }

    /// Keccak-256 of the encoding: the extra data of the block that names it.
    pub fn hash(&self) -> B256 {
        keccak256(self.encode())
    }

    /// The committee of the block after a state. `None` on a chain that began without validators.
    pub fn of(state: &State) -> Option<Self> {
        Self::decode(&state.account(&COMMITTEE_ADDRESS)?.code())
    }

    /// How a state gets it.
    pub(crate) fn change(&self, state: &State) -> AccountChange {
        AccountChange {
            address: COMMITTEE_ADDRESS,
            // A nonce, so that it is there without a balance.
            account: Some((1, state.balance(&COMMITTEE_ADDRESS), Some(self.encode().into()))),
            wiped: false,
            slots: Vec::new(),
        }
    }
}

/// The committee of the next epoch if this is the last block of one, by the state after its transactions. Where the staking contract
/// names nobody, or less is bonded than [`Rules::least_stake`], the committee stays.
pub(crate) fn elect(rules: &Rules, header: &Header, state: &State) -> Option<Committee> {
    let old = Committee::of(state)?;
    if header.number != old.last_block() {
        return None;
    }
    let epoch = old.epoch + 1;
    let elected = rules.staking.and_then(|staking| {
        let bonded = view(rules, header, state, staking, BONDED)?;
        if U256::from_be_slice(bonded.get(..32)?) < rules.least_stake {
            return None;
        }
        seated(&view(rules, header, state, staking, COMMITTEE)?)
    });
    let next = elected.map(|members| Committee::new(epoch, old.blocks, members));
    let next =
        next.filter(|next| (1..=MAX_SEATS).contains(&next.seats()) && next.members.len() <= MAX_MEMBERS);
    Some(next.unwrap_or(Committee { epoch, ..old }))
}

fn view(rules: &Rules, header: &Header, state: &State, to: Address, function: &str) -> Option<Bytes> {
    let message = Message {
        from: Address::ZERO,
        to: Some(to),
        gas: VIEW_GAS,
        max_fee: 0,
        tip: None,
        value: U256::ZERO,
        data: Bytes::copy_from_slice(keccak256(function).get(..4)?),
        access_list: Vec::new(),
    };
    let outcome = simulate(rules, header, state, &Overrides::new(), &message);
    outcome.failure.is_none().then_some(outcome.output)
}

/// Members from `(address[] validators, bytes[] keys, uint256[] seats)`. A registered key is the 32 bytes of an ed25519 key, then the
/// endpoint as text, or nothing; what is no such endpoint counts as none.
fn seated(output: &[u8]) -> Option<Vec<Member>> {
    let word = |at: usize| -> Option<usize> {
        let word = U256::from_be_slice(output.get(at..at.checked_add(32)?)?);
        usize::try_from(word).ok().filter(|number| *number <= 1 << 32)
    };
    let (keys, seats) = (word(32)?, word(64)?);
    let count = word(keys)?;
    if count != word(seats)? || count > MAX_MEMBERS {
        return None;
    }
    (0..count)
        .map(|i| {
            let at = keys + 32 + word(keys + 32 + 32 * i)?;
            let bytes = output.get(at + 32..(at + 32).checked_add(word(at)?)?)?;
            let (key, endpoint) = bytes.split_at_checked(32)?;
            let endpoint = std::str::from_utf8(endpoint).ok().filter(|text| text.len() <= MAX_ENDPOINT);
            let seats = u32::try_from(word(seats + 32 + 32 * i)?).ok()?;
            Some(Member {
                key: key.try_into().ok()?,
                seats,
                endpoint: endpoint.unwrap_or_default().to_owned(),
            })
        })
        .collect()
}
