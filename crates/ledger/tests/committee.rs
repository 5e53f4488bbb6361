//! Elections: who has seats in the next epoch follows from the state at the end of this one, whatever the staking contract answers.
#![allow(clippy::unwrap_used)]

mod common;

use assay_ledger::{
    Attributes, BlockError, COMMITTEE_ADDRESS, Committee, Executed, Rules, build, verify, view,
};
use common::{Wallet, elected, with_election};
use proptest::prelude::*;

fn key(byte: u8) -> Vec<u8> {
    vec![byte; 32]
}

fn hexadecimal(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

fn next(rules: &Rules, parent: &Executed) -> Executed {
    let timestamp = parent.block.header.timestamp + 1;
    let attributes = Attributes { timestamp, view: view(&parent.block.header) + 1, ..Attributes::default() };
    build(rules, &parent.block.header, &parent.state, &attributes, [])
}

/// Keys' first bytes and seats.
fn members(executed: &Executed) -> Vec<(u8, u32)> {
    let committee = Committee::of(&executed.state).unwrap();
    committee.members.iter().map(|member| (member.key[0], member.seats)).collect()
}

/// The last block of an epoch of three, with this answer of the staking contract.
fn boundary(answer: &[u8], least_stake: u64) -> (Rules, Executed, Executed) {
    let genesis = with_election(&[hexadecimal(1), hexadecimal(2)], 3, least_stake, answer);
    let (rules, first) = genesis.execute().unwrap();
    let second = next(&rules, &first);
    assert!(second.block.header.extra_data.is_empty(), "only the last block of an epoch names a committee");
    let third = next(&rules, &second);
    (rules, second, third)
}

#[test]
fn the_last_block_of_an_epoch_names_the_next_committee() {
    let with_endpoint = [key(9), b"192.0.2.7:8640".to_vec()].concat();
    let (rules, second, third) = boundary(&elected(&[(with_endpoint, 7), (key(3), 3)]), 96);
    assert_eq!(members(&second), [(1, 1), (2, 1)], "the genesis's validators have a seat each");
    assert_eq!(members(&third), [(3, 3), (9, 7)]);
    let committee = Committee::of(&third.state).unwrap();
    assert_eq!((committee.epoch, committee.blocks, committee.seats()), (1, 3, 10));
    assert_eq!(committee.members[1].endpoint, "192.0.2.7:8640");
    assert_eq!(third.block.header.extra_data.as_ref(), committee.hash().as_slice());
    // The hash is the code's too, so a proof of the account proves the committee.
    assert_eq!(third.state.account(&COMMITTEE_ADDRESS).unwrap().code_hash(), committee.hash());
    assert_eq!(Committee::decode(&committee.encode()), Some(committee));
    assert!(verify(&rules, &second.block.header, &second.state, &third.block).is_ok());
}

#[test]
fn a_block_that_names_another_committee_is_invalid() {
    let (rules, second, third) = boundary(&elected(&[(key(9), 1)]), 0);
    for wrong in [vec![], vec![7; 32]] {
        let mut header = (*third.block.header).clone();
        header.extra_data = wrong.into();
        let forged = assay_ledger::Block::new(header, Vec::new());
        let error = verify(&rules, &second.block.header, &second.state, &forged).unwrap_err();
        assert_eq!(error, BlockError::Header("next committee"));
    }
    // Nor may one in the middle of an epoch.
    let (rules, first) = with_election(&[hexadecimal(1)], 3, 0, &[]).execute().unwrap();
    let mut header = (*next(&rules, &first).block.header).clone();
    header.extra_data = vec![7; 32].into();
    let forged = assay_ledger::Block::new(header, Vec::new());
    assert!(verify(&rules, &first.block.header, &first.state, &forged).is_err());
}

#[test]
fn the_committee_stays_where_the_contract_names_none() {
    let good = elected(&[(key(9), 1)]);
    let too_many = elected(&[(key(9), 1_001)]);
    let short = elected(&[(vec![9; 31], 1)]);
    let cut = &good[..good.len() - 1];
    let nobody = elected(&[]);
    let seatless = elected(&[(key(9), 0)]);
    for answer in [&too_many, &short, cut, &nobody, &seatless, &[], &[0xff; 96]] {
        let (_, _, third) = boundary(answer, 0);
        assert_eq!(members(&third), [(1, 1), (2, 1)]);
        assert_eq!(Committee::of(&third.state).unwrap().epoch, 1, "a new epoch all the same");
    }
    // Less is bonded than must be.
    assert_eq!(members(&boundary(&good, 97).2), [(1, 1), (2, 1)]);
    assert_eq!(members(&boundary(&good, 96).2), [(9, 1)]);
}

#[test]
fn seats_of_one_key_are_added_up() {
    let other = [key(9), b"198.51.100.1:1".to_vec()].concat();
    assert_eq!(members(&boundary(&elected(&[(key(9), 4), (key(3), 2), (other, 5)]), 0).2), [(3, 2), (9, 9)]);
}

#[test]
fn coins_for_the_account_change_no_committee() {
    let genesis = with_election(&[hexadecimal(1)], 2, 0, &elected(&[(key(9), 1)]));
    let (rules, first) = genesis.execute().unwrap();
    let gift = Wallet::new(0).dynamic(|t| {
        t.to = assay_ledger::types::TxKind::Call(COMMITTEE_ADDRESS);
        t.gas_limit = 100_000;
    });
    let gift = assay_ledger::Transaction::decode(&gift).unwrap();
    let attributes = Attributes { timestamp: 1, ..Attributes::default() };
    let second = build(&rules, &first.block.header, &first.state, &attributes, [gift]);
    assert!(second.receipts[0].success);
    assert_eq!(members(&second), [(9, 1)]);
    assert_eq!(second.state.balance(&COMMITTEE_ADDRESS), assay_ledger::types::U256::from(1));
    // What is kept of the block leads to the same state.
    let mut state = first.state.clone();
    state.apply(&second.changes);
    assert_eq!(state.root(), second.block.header.state_root);
}

#[test]
fn a_genesis_with_impossible_epochs_or_validators_is_refused() {
    assert!(with_election(&[hexadecimal(1)], 1, 0, &[]).execute().is_err());
    assert!(with_election(&[hexadecimal(1), hexadecimal(1)], 3, 0, &[]).execute().is_err());
    assert!(with_election(&["11".to_owned()], 3, 0, &[]).execute().is_err());
    let other = with_election(&[hexadecimal(2)], 3, 0, &[]).execute().unwrap().1;
    let first = with_election(&[hexadecimal(1)], 3, 0, &[]).execute().unwrap().1;
    assert_ne!(first.block.hash(), other.block.hash(), "a genesis's hash is of its validators too");
    let slower = with_election(&[hexadecimal(1)], 4, 0, &[]).execute().unwrap().1;
    assert_ne!(first.block.hash(), slower.block.hash(), "and of the length of its epochs");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_answer_stops_the_chain(mut answer in prop::collection::vec(any::<u8>(), 0..400), patch in 0usize..12, value in 0u8..200) {
        // Mostly small words, which look like offsets and lengths.
        for (i, byte) in answer.iter_mut().enumerate() {
            if i % 32 != 31 { *byte = 0 }
        }
        if let Some(byte) = answer.get_mut(patch * 32 + 31) { *byte = value }
        let (rules, second, third) = boundary(&answer, 0);
        let committee = Committee::of(&third.state).unwrap();
        prop_assert_eq!(committee.epoch, 1);
        prop_assert!((1..=1_000).contains(&committee.seats()));
        prop_assert!(verify(&rules, &second.block.header, &second.state, &third.block).is_ok());
    }

    #[test]
    fn only_what_was_encoded_decodes(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Some(committee) = Committee::decode(&bytes) {
            prop_assert_eq!(committee.encode(), bytes);
        }
    }
}
