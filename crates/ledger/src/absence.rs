//! Whose turn it was to propose, and who let too many turns pass.
//!
//! Leaders follow from the committee and the view. A block's header has its view, in the field for the beacon chain's root, which this chain has no other
//! use for: validators vote for no other view than their own. So the views between a block's and its parent's are turns that passed without a block, which a
//! quorum agreed on, and every executor counts them alike: for each member in a slot of one account, `epoch << 64 | turns` by its place in the committee.
//!
//! At the end of an epoch the staking contract hears, in a system call, of each validator that missed more than half of its turns and at least
//! [`MISSED_LEAST`]. It jails them, so they have no seats in the election that follows.

use alloy_consensus::Header;
use alloy_primitives::{Address, B256, Bytes, U256, address, keccak256};

use revm::DatabaseRef as _;

use crate::committee::Committee;
use crate::execute::Db;
use crate::state::AccountChange;

/// Whose slots count missed turns. Its code is STOP, so a call does nothing.
pub const TURNS_ADDRESS: Address = address!("000000000000000000000000000000000000a55b");
/// So many turns must be missed to count as an absence: one or two are lost to a slow link, and a few in a row to a restart. Validators whose seats
/// give them fewer turns in an epoch are not reported.
pub const MISSED_LEAST: u64 = 8;

/// The view of its epoch that a block was proposed in, from 1 on; zero on a chain without validators.
pub fn view(header: &Header) -> u64 {
    let root = header.parent_beacon_block_root.unwrap_or_default();
    u64::from_be_bytes(root.0[24..].try_into().unwrap_or_default())
}

/// The header's field for a view.
pub(crate) fn field(view: u64) -> B256 {
    U256::from(view).into()
}

/// The view after which a block's turns begin: that of its parent, or zero at the beginning of an epoch.
pub(crate) fn view_before(committee: &Committee, parent: &Header) -> u64 {
    if committee.holds(parent.number) { view(parent) } else { 0 }
}

impl Committee {
    fn holds(&self, number: u64) -> bool {
        number / self.blocks == self.epoch
    }

    /// The places of members in the order in which they propose, which begins again at its end: each as often as it has seats, seats in the
    /// order of hashes, so that one validator's are scattered. View `v` is led by number `(epoch + v) % length`.
    pub fn turns(&self) -> Vec<usize> {
        let seats = self.members.iter().enumerate().flat_map(|(place, member)| {
            let seat = move |number: u32| {
                (keccak256([member.key.as_slice(), &number.to_be_bytes()].concat()), place)
            };
            (0..member.seats).map(seat)
        });
        let mut seats: Vec<_> = seats.collect();
        seats.sort_unstable();
        seats.into_iter().map(|(_, place)| place).collect()
    }

    /// How many of the views after `after`, up to and with `last`, each member leads.
    fn led(&self, after: u64, last: u64) -> Vec<u64> {
        let mut counts = vec![0u64; self.members.len()];
        let turns = self.turns();
        let (views, length) = (last.saturating_sub(after), turns.len() as u64);
        if views == 0 || length == 0 {
            return counts;
        }
        for place in &turns {
            counts[*place] += views / length;
        }
        for view in last - views % length + 1..=last {
            counts[turns[(self.epoch.wrapping_add(view) % length) as usize]] += 1;
        }
        counts
    }
}

/// How a genesis makes the account.
pub(crate) fn account(balance: U256) -> AccountChange {
    AccountChange {
        address: TURNS_ADDRESS,
        account: Some((1, balance, Some(Bytes::from_static(&[0])))),
        wiped: false,
        slots: Vec::new(),
    }
}

/// What a slot says about an epoch.
fn missed(epoch: u64, slot: U256) -> u64 {
    if slot >> 64 == U256::from(epoch) { slot.wrapping_to() } else { 0 }
}

/// Counts the turns that passed between two blocks' views.
pub(crate) fn count(db: &mut Db<'_>, committee: &Committee, before: u64, view: u64) {
    if view <= before.saturating_add(1) {
        return;
    }
    for (place, more) in committee.led(before, view - 1).into_iter().enumerate().filter(|(_, more)| *more > 0)
    {
        let slot = U256::from(place);
        let Ok(old) = db.storage_ref(TURNS_ADDRESS, slot);
        let turns = missed(committee.epoch, old).saturating_add(more);
        let Ok(()) = db.insert_account_storage(
            TURNS_ADDRESS,
            slot,
            U256::from(committee.epoch) << 64 | U256::from(turns),
        );
    }
}

/// The keys of members that were absent, at the end of an epoch whose last block has this view.
pub(crate) fn absent(db: &Db<'_>, committee: &Committee, view: u64) -> Vec<[u8; 32]> {
    let turns = committee.led(0, view);
    let members = committee.members.iter().zip(turns).enumerate();
    members
        .filter(|(place, (_, turns))| {
            let Ok(slot) = db.storage_ref(TURNS_ADDRESS, U256::from(*place));
            let missed = missed(committee.epoch, slot);
            missed >= MISSED_LEAST && missed > turns / 2
        })
        .map(|(_, (member, _))| member.key)
        .collect()
}
