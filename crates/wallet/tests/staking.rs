//! Elections and slashing on the real staking contract, in a chain that the ledger executes in this process: who stakes gets seats from the next
//! epoch on, who leaves loses them, and who contradicted itself in consensus is slashed and jailed on evidence, and on nothing else.
#![allow(clippy::unwrap_used)]

use assay_ledger::types::{Address, B256, U256};
use assay_ledger::{
    Attributes, Block, BlockError, Committee, EVIDENCE, Header, MISSED_LEAST, Message, Overrides, Rules,
    State, TURNS_ADDRESS, Trace, Tracer, Transaction, TxReceipt as _, bring, build, contradicts, simulate,
    trace_block, view,
};
use assay_receipt::Key;
use assay_wallet::abi::text;
use assay_wallet::client::{Call, Fees, address_of, sign};
use assay_wallet::system::{Description, System, contract};
use curve25519_dalek::{EdwardsPoint, Scalar};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

/// Blocks of an epoch.
const BLOCKS: u64 = 8;
/// 10^18.
const OPG: u128 = 1_000_000_000_000_000_000;

fn key(seed: u8) -> Key {
    Key::from_bytes([seed; 32]).unwrap()
}

/// A consensus key, as RFC 8032 has it but for the derivation of the secret.
struct Consensus(Scalar);

impl Consensus {
    fn new(seed: u8) -> Self {
        Self(Scalar::from_bytes_mod_order([seed; 32]))
    }

    fn public(&self) -> [u8; 32] {
        EdwardsPoint::mul_base(&self.0).compress().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let hash = |parts: &[&[u8]]| {
            let mut hash = Sha512::new();
            parts.iter().for_each(|part| hash.update(part));
            Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
        };
        let nonce = hash(&[self.0.as_bytes(), message]);
        let commitment = EdwardsPoint::mul_base(&nonce).compress();
        let response = nonce + hash(&[commitment.as_bytes(), &self.public(), message]) * self.0;
        [commitment.to_bytes(), response.to_bytes()].concat().try_into().unwrap()
    }

    /// A vote in an epoch and a view below 128; for a block whose hash is `payload`, or to skip the view.
    fn vote(&self, genesis: &B256, suffix: &str, round: (u8, u8), payload: Option<u8>) -> Vec<u8> {
        let mut signed = vec![round.0, round.1];
        if let Some(payload) = payload {
            signed.push(round.1 - 1);
            signed.extend([payload; 32]);
        }
        let namespace = [b"assay consensus ".as_slice(), genesis.as_slice(), suffix.as_bytes()].concat();
        let message = [&[namespace.len() as u8], namespace.as_slice(), &signed].concat();
        // Of seat 3, which nobody looks at.
        [&signed, [3].as_slice(), &self.sign(&message)].concat()
    }
}

struct World {
    rules: Rules,
    header: Header,
    state: State,
    system: System,
}

impl World {
    /// A chain of one validator with key 9, where 1,000 OPG bonded are enough and `holders` have coins and OPG.
    fn new(holders: [&Key; 2]) -> Self {
        let mut description: Value =
            serde_json::from_str(include_str!("../../../contracts/genesis.example.json")).unwrap();
        let coins = "1000000000000000000000";
        description["chainId"] = json!(7);
        description["timestamp"] = json!(1_800_000_000);
        description["alloc"] =
            json!({ address_of(holders[0]).to_string(): coins, address_of(holders[1]).to_string(): coins });
        for (share, holder) in holders.iter().enumerate() {
            description["supply"][share + 1]["holder"] = text(address_of(holder));
        }
        let first = assay_ledger::types::hex::encode(Consensus::new(9).public());
        description["validators"] =
            json!([{"key": first, "endpoint": "", "beneficiary": Address::ZERO.to_string()}]);
        description["epochs"] = json!({"blocks": BLOCKS, "leastStake": (1_000 * OPG).to_string()});
        let genesis = Description::from_json(&description.to_string()).unwrap().genesis(0).unwrap();
        let (rules, first) = genesis.execute().unwrap();
        let header = (*first.block.header).clone();
        Self { rules, header, state: first.state, system: System::of_genesis() }
    }

    fn block(&mut self, transactions: Vec<Transaction>) -> Vec<assay_ledger::Receipt> {
        self.block_after(10, transactions)
    }

    fn block_after(&mut self, seconds: u64, transactions: Vec<Transaction>) -> Vec<assay_ledger::Receipt> {
        self.block_in(self.turn(1), seconds, transactions)
    }

    /// The view so many turns after the last block's.
    fn turn(&self, later: u64) -> u64 {
        let committee = Committee::of(&self.state).unwrap();
        let first = self.header.number + 1 == committee.epoch * committee.blocks;
        later + if first { 0 } else { view(&self.header) }
    }

    fn block_in(
        &mut self,
        view: u64,
        seconds: u64,
        transactions: Vec<Transaction>,
    ) -> Vec<assay_ledger::Receipt> {
        let timestamp = self.header.timestamp + seconds;
        let attributes = Attributes { timestamp, beneficiary: Address::ZERO, view };
        let count = transactions.len();
        let done = build(&self.rules, &self.header, &self.state, &attributes, transactions);
        assert_eq!(done.receipts.len(), count, "a transaction got into no block");
        // Everybody else comes to the same.
        assert!(assay_ledger::verify(&self.rules, &self.header, &self.state, &done.block).is_ok());
        self.header = (*done.block.header).clone();
        self.state = done.state;
        done.receipts
    }

    fn submit(&mut self, key: &Key, call: &Call) -> assay_ledger::Receipt {
        let nonce = self.state.nonce(&address_of(key));
        let fees = Fees { most: 100_000_000_000, tip: 1 };
        let bytes = sign(key, self.rules.chain_id, nonce, 3_000_000, fees, call);
        self.block(vec![Transaction::decode(&bytes).unwrap()]).remove(0)
    }

    fn send(&mut self, key: &Key, name: &str, function: &str, arguments: &[Value]) {
        let call = self.system.prepare(name, function, arguments).unwrap();
        assert!(self.submit(key, &call).status(), "{name}.{function} failed");
    }

    /// Evidence against a key; how many logs came of it, or `None` where it was refused.
    fn accuse(&mut self, by: &Key, accused: &Consensus, votes: &[u8]) -> Option<usize> {
        let data = [accused.public().as_slice(), votes].concat();
        let receipt = self.submit(by, &Call { to: Some(EVIDENCE), value: U256::ZERO, data });
        receipt.status().then_some(receipt.logs.len())
    }

    /// A block that says of itself that it has these transactions, and what everybody else says of it.
    fn refused(&self, transaction: &Transaction) -> bool {
        let timestamp = self.header.timestamp + 10;
        let attributes = Attributes { timestamp, beneficiary: Address::ZERO, view: self.turn(1) };
        let built = build(&self.rules, &self.header, &self.state, &attributes, [transaction.clone()]);
        let block = Block::new((*built.block.header).clone(), vec![transaction.clone()]);
        let verdict = assay_ledger::verify(&self.rules, &self.header, &self.state, &block);
        built.receipts.is_empty() && matches!(verdict, Err(BlockError::Unexecutable(0, _)))
    }

    fn view(&self, function: &str, arguments: &[Value]) -> Value {
        let Call { to, data, .. } = self.system.prepare("Staking", function, arguments).unwrap();
        let message = Message {
            from: Address::ZERO,
            to,
            gas: 10_000_000,
            max_fee: 0,
            tip: None,
            value: U256::ZERO,
            data: data.into(),
            access_list: Vec::new(),
        };
        let outcome = simulate(&self.rules, &self.header, &self.state, &Overrides::default(), &message);
        contract("Staking")
            .unwrap()
            .function(function, arguments.len())
            .unwrap()
            .output(&outcome.output)
            .unwrap()
    }

    /// Goes on until the next epoch; its committee's keys, seats and endpoints.
    fn next_epoch(&mut self) -> Vec<([u8; 32], u32, String)> {
        let before = Committee::of(&self.state).unwrap().epoch;
        while Committee::of(&self.state).unwrap().epoch == before {
            self.block(Vec::new());
        }
        let committee = Committee::of(&self.state).unwrap();
        assert_eq!(self.header.extra_data.as_ref(), committee.hash().as_slice());
        committee.members.into_iter().map(|member| (member.key, member.seats, member.endpoint)).collect()
    }

    fn join(&mut self, by: &Key, consensus: &Consensus, endpoint: &str, amount: u128) {
        let staking = self.system.address("Staking").unwrap();
        let registered = [&consensus.public(), endpoint.as_bytes()].concat();
        let registered = format!("0x{}", assay_ledger::types::hex::encode(registered));
        self.send(by, "Opg", "approve", &[text(staking), json!((1_000_000 * OPG).to_string())]);
        self.send(by, "Staking", "join", &[json!(registered), json!(500), json!(amount.to_string())]);
    }
}

#[test]
fn stake_elects_and_leaving_ends_it() {
    let (ada, bob) = (key(1), key(2));
    let mut world = World::new([&ada, &bob]);
    let (first, second) = (Consensus::new(11), Consensus::new(12));
    let sorted = |mut members: Vec<([u8; 32], u32, String)>| {
        members.sort_by_key(|member| member.1);
        members
    };
    assert_eq!(world.next_epoch(), [(Consensus::new(9).public(), 1, String::new())], "nobody has staked");
    world.join(&ada, &first, "192.0.2.1:8640", 1_000 * OPG);
    assert_eq!(
        Committee::of(&world.state).unwrap().members.len(),
        1,
        "in the middle of an epoch nothing changes"
    );
    let all = world.view("parameters", &[])["seats"].as_u64().unwrap() as u32;
    assert_eq!(world.next_epoch(), [(first.public(), all, "192.0.2.1:8640".to_owned())]);
    // A second one with three times as much has three quarters of the seats.
    world.join(&bob, &second, "", 3_000 * OPG);
    let (quarter, rest) = (all / 4, all - all / 4);
    let seats = sorted(world.next_epoch());
    assert_eq!(seats.iter().map(|member| member.1).collect::<Vec<_>>(), [quarter, rest]);
    // Delegated stake counts like its own.
    let validator = text(address_of(&ada));
    world.send(&bob, "Staking", "delegateStake", &[validator.clone(), json!((2_000 * OPG).to_string())]);
    assert_eq!(world.next_epoch().iter().map(|member| member.1).collect::<Vec<_>>(), [all / 2, all / 2]);
    // What leaves has no seats, long before it can be withdrawn.
    world.send(
        &bob,
        "Staking",
        "undelegateStake",
        &[text(address_of(&bob)), json!((3_000 * OPG).to_string())],
    );
    assert_eq!(world.next_epoch(), [(first.public(), all, "192.0.2.1:8640".to_owned())]);
    // Below the least stake the committee stays.
    for who in [&ada, &bob] {
        let amount = if who.address() == ada.address() { 1_000 * OPG } else { 2_000 * OPG };
        world.send(who, "Staking", "undelegateStake", &[validator.clone(), json!(amount.to_string())]);
    }
    assert_eq!(world.next_epoch(), [(first.public(), all, "192.0.2.1:8640".to_owned())]);
}

#[test]
fn two_faces_cost_the_stake_and_the_seats_on_evidence_alone() {
    let (ada, bob) = (key(1), key(2));
    let mut world = World::new([&ada, &bob]);
    let (liar, honest) = (Consensus::new(11), Consensus::new(12));
    world.join(&ada, &liar, "", 2_000 * OPG);
    world.join(&bob, &honest, "", 2_000 * OPG);
    assert_eq!(world.next_epoch().len(), 2);
    let genesis = world.rules.genesis;
    let (accused, innocent) = (address_of(&ada), address_of(&bob));
    let (notarize, nullify, finalize) = ("_NOTARIZE", "_NULLIFY", "_FINALIZE");
    let vote = |suffix, round, payload| liar.vote(&genesis, suffix, round, payload);
    let votes = |kind: u8, first: Vec<u8>, second: Vec<u8>| [vec![kind], first, second].concat();
    let good = [
        votes(0, vote(notarize, (1, 5), Some(1)), vote(notarize, (1, 5), Some(2))),
        votes(1, vote(finalize, (1, 5), Some(1)), vote(finalize, (1, 5), Some(2))),
        votes(2, vote(nullify, (1, 5), None), vote(finalize, (1, 5), Some(2))),
    ];
    for votes in &good {
        assert!(contradicts(&genesis, &liar.public(), votes));
        assert!(!contradicts(&genesis, &honest.public(), votes), "somebody else's");
        assert!(!contradicts(&B256::repeat_byte(1), &liar.public(), votes), "another chain's");
        for at in 0..votes.len() {
            // The seat is not signed; every other byte counts. A proposal of the other kind of vote is none either.
            let mut wrong = votes.clone();
            wrong[at] ^= 1;
            let seat = contradicts(&genesis, &liar.public(), &wrong);
            assert!(!seat || votes[at] == 3, "byte {at}");
            assert!(!contradicts(&genesis, &liar.public(), &votes[..at]), "cut off at {at}");
        }
        assert!(!contradicts(&genesis, &liar.public(), &[votes.as_slice(), &[0]].concat()), "with more");
    }
    let elsewhere = B256::repeat_byte(7);
    let refused = [
        // One vote twice, votes of two views or epochs, and what a correct validator may do.
        votes(0, vote(notarize, (1, 5), Some(1)), vote(notarize, (1, 5), Some(1))),
        votes(0, vote(notarize, (1, 5), Some(1)), vote(notarize, (1, 6), Some(2))),
        votes(0, vote(notarize, (1, 5), Some(1)), vote(notarize, (2, 5), Some(2))),
        votes(1, vote(finalize, (1, 5), Some(1)), vote(finalize, (2, 5), Some(2))),
        votes(2, vote(nullify, (1, 5), None), vote(finalize, (2, 5), Some(2))),
        votes(2, vote(nullify, (1, 5), None), vote(notarize, (1, 5), Some(2))),
        // Another's vote, and another chain's.
        votes(0, vote(notarize, (1, 5), Some(1)), honest.vote(&genesis, notarize, (1, 5), Some(2))),
        votes(0, vote(notarize, (1, 5), Some(1)), liar.vote(&elsewhere, notarize, (1, 5), Some(2))),
        votes(3, vote(notarize, (1, 5), Some(1)), vote(notarize, (1, 5), Some(2))),
        Vec::new(),
    ];
    let before = world.view("bonded", &[]);
    for votes in &refused {
        assert_eq!(world.accuse(&bob, &liar, votes), None);
        let free = bring(&world.rules, &world.state, &liar.public(), votes).unwrap();
        assert!(world.refused(&free), "what does not hold is in no block without a fee");
    }
    assert_eq!(world.accuse(&bob, &honest, &good[0]), None, "another validator");
    let stranger = Consensus::new(13);
    let strange = votes(
        0,
        stranger.vote(&genesis, notarize, (1, 5), Some(1)),
        stranger.vote(&genesis, notarize, (1, 5), Some(2)),
    );
    assert!(contradicts(&genesis, &stranger.public(), &strange));
    assert_eq!(world.accuse(&bob, &stranger, &strange), None, "nobody's key");
    assert!(world.refused(&bring(&world.rules, &world.state, &stranger.public(), &strange).unwrap()));
    assert_eq!(world.view("bonded", &[]), before);
    // No key of a person can do it without evidence.
    let call = world.system.prepare("Staking", "equivocated", &[text(accused)]).unwrap();
    assert!(!world.submit(&bob, &call).status());

    // Slashed, burnt, jailed.
    assert_eq!(world.accuse(&bob, &liar, &good[2]), Some(3));
    let left = world.view("validatorOf", &[text(accused)]);
    assert_ne!(left["tokens"], json!((2_000 * OPG).to_string()));
    assert_eq!(world.view("bonded", &[]), json!((2_000 * OPG).to_string()));
    assert_eq!(world.view("validatorOf", &[text(innocent)])["tokens"], json!((2_000 * OPG).to_string()));
    // Neither the same evidence nor any other counts again.
    for votes in &good {
        assert_eq!(world.accuse(&bob, &liar, votes), None);
        assert!(world.refused(&bring(&world.rules, &world.state, &liar.public(), votes).unwrap()));
    }
    assert_eq!(world.view("validatorOf", &[text(accused)]), left);
    // From the next epoch on it has no seat.
    let committee = world.next_epoch();
    assert_eq!(committee.iter().map(|member| member.0).collect::<Vec<_>>(), [honest.public()]);
}

/// A vote for each of two blocks in one view.
fn two_faces(genesis: &B256, liar: &Consensus) -> Vec<u8> {
    let vote = |payload| liar.vote(genesis, "_NOTARIZE", (1, 5), Some(payload));
    [vec![0], vote(1), vote(2)].concat()
}

#[test]
fn a_proposer_brings_evidence_without_an_account_and_nobody_else_gets_anything_free() {
    let (ada, bob) = (key(1), key(2));
    let mut world = World::new([&ada, &bob]);
    let liar = Consensus::new(11);
    world.join(&ada, &liar, "", 2_000 * OPG);
    let votes = two_faces(&world.rules.genesis, &liar);
    let free = bring(&world.rules, &world.state, &liar.public(), &votes).unwrap();
    assert_eq!(bring(&world.rules, &world.state, &liar.public(), &votes).unwrap().hash(), free.hash());
    assert!(world.state.balance(&free.sender()).is_zero());
    // Whoever signs may do it, but with nothing beside: no value, no more gas than it needs, nothing else to call, some fee or none.
    let data = [liar.public().as_slice(), &votes].concat();
    let signed = |to, value: u64, gas, most, data: &[u8]| {
        let call = Call { to: Some(to), value: U256::from(value), data: data.to_vec() };
        let nonce = world.state.nonce(&address_of(&bob));
        let bytes = sign(&bob, world.rules.chain_id, nonce, gas, Fees { most, tip: 0 }, &call);
        Transaction::decode(&bytes).unwrap()
    };
    assert!(!world.refused(&signed(EVIDENCE, 0, 100_000, 0, &data)));
    for (to, value, gas, most) in [
        (EVIDENCE, 1, 100_000, 0),
        (EVIDENCE, 0, 100_001, 0),
        (EVIDENCE, 0, 100_000, 1),
        (Address::repeat_byte(1), 0, 100_000, 0),
    ] {
        assert!(world.refused(&signed(to, value, gas, most, &data)), "{to} {value} {gas} {most}");
    }
    for wrong in [&data[..31], &data[..data.len() - 1], &[]] {
        assert!(world.refused(&signed(EVIDENCE, 0, 100_000, 0, wrong)));
    }

    // Who looks at it again sees a call like any other.
    let timestamp = world.header.timestamp + 10;
    let attributes = Attributes { timestamp, beneficiary: Address::ZERO, view: world.turn(1) };
    let block = build(&world.rules, &world.header, &world.state, &attributes, [free.clone()]).block;
    let traced = trace_block(&world.rules, &world.header, &world.state, &block, 0..1, Tracer::Calls).unwrap();
    assert!(
        matches!(&traced[..], [Trace::Calls(frame)] if frame.to == Some(EVIDENCE) && frame.error.is_none())
    );
    let before = world.state.balance(&Address::ZERO);
    let receipt = world.block(vec![free.clone()]).remove(0);
    assert!(receipt.status() && receipt.logs.len() == 3, "{receipt:?}");
    assert_eq!(world.state.balance(&Address::ZERO), before, "nobody got a fee");
    assert_eq!(world.view("validatorOf", &[text(address_of(&ada))])["tombstoned"], json!(true));
    // Once, also where somebody signs it anew, and where the account's number has gone on.
    assert!(world.refused(&free));
    assert!(world.refused(&bring(&world.rules, &world.state, &liar.public(), &votes).unwrap()));
}

#[test]
fn a_key_is_replaced_at_the_next_election_and_counts_until_stake_could_have_left() {
    let (ada, bob) = (key(1), key(2));
    let mut world = World::new([&ada, &bob]);
    let (old, new, other) = (Consensus::new(11), Consensus::new(12), Consensus::new(13));
    world.join(&ada, &old, "192.0.2.1:8640", 2_000 * OPG);
    world.join(&bob, &other, "", 2_000 * OPG);
    world.next_epoch();
    let registered =
        |consensus: &Consensus| json!(format!("0x{}", assay_ledger::types::hex::encode(consensus.public())));
    // Somebody else's is refused.
    let call = world.system.prepare("Staking", "setKey", &[registered(&other)]).unwrap();
    assert!(!world.submit(&ada, &call).status());
    for who in [&ada, &bob] {
        let next = if who.address() == ada.address() { &new } else { &Consensus::new(14) };
        world.send(who, "Staking", "setKey", &[registered(next)]);
    }
    let keys = |members: Vec<([u8; 32], u32, String)>| members.into_iter().map(|m| m.0).collect::<Vec<_>>();
    let seated: Vec<_> =
        Committee::of(&world.state).unwrap().members.iter().map(|member| member.key).collect();
    assert!(
        seated.contains(&old.public()) && !seated.contains(&new.public()),
        "in the middle of an epoch nothing changes"
    );
    let seated = keys(world.next_epoch());
    assert!(!seated.contains(&old.public()) && seated.contains(&new.public()));
    // What the old key signed still counts, until the delay of withdrawals is over.
    let genesis = world.rules.genesis;
    assert_eq!(world.accuse(&bob, &old, &two_faces(&genesis, &old)), Some(3));
    assert_eq!(world.view("validatorOf", &[text(address_of(&ada))])["tombstoned"], json!(true));
    world.block_after(21 * 24 * 3600, Vec::new());
    assert_eq!(world.accuse(&ada, &other, &two_faces(&genesis, &other)), None, "too late");
    assert_eq!(world.accuse(&ada, &Consensus::new(14), &two_faces(&genesis, &Consensus::new(14))), Some(3));
}

#[test]
fn who_was_removed_pays_with_what_is_leaving() {
    let (ada, bob) = (key(1), key(2));
    let mut world = World::new([&ada, &bob]);
    let liar = Consensus::new(11);
    world.join(&ada, &liar, "", 2_000 * OPG);
    let me = text(address_of(&ada));
    world.send(&ada, "Staking", "undelegateStake", &[me.clone(), json!((2_000 * OPG).to_string())]);
    world.send(&bob, "Staking", "remove", std::slice::from_ref(&me));
    let genesis = world.rules.genesis;
    assert_eq!(world.accuse(&bob, &liar, &two_faces(&genesis, &liar)), Some(3));
    assert_eq!(world.view("validatorOf", &[me])["leavingTokens"], json!((1_900 * OPG).to_string()));
}

impl World {
    /// Goes on to the next epoch with blocks in views that `takes` says, by the number of blocks and the key of the view's leader. Its
    /// committee's keys, and how many turns of a key passed.
    fn epoch_of(
        &mut self,
        passed: [u8; 32],
        takes: impl Fn(u64, [u8; 32], u64) -> bool,
    ) -> (Vec<[u8; 32]>, u64) {
        let committee = Committee::of(&self.state).unwrap();
        let turns = committee.turns();
        let leader = |view: u64| {
            committee.members[turns[((committee.epoch + view) % turns.len() as u64) as usize]].key
        };
        let (mut blocks, mut missed) = (0, 0);
        while Committee::of(&self.state).unwrap().epoch == committee.epoch {
            let mut view = self.turn(1);
            while !takes(blocks, leader(view), missed) {
                missed += u64::from(leader(view) == passed);
                view += 1;
            }
            self.block_in(view, 10, Vec::new());
            blocks += 1;
        }
        let committee = Committee::of(&self.state).unwrap();
        (committee.members.iter().map(|member| member.key).collect(), missed)
    }
}

#[test]
fn who_misses_most_turns_is_jailed_for_a_while_and_nobody_else() {
    let (ada, bob) = (key(1), key(2));
    let mut world = World::new([&ada, &bob]);
    let (silent, other) = (Consensus::new(11), Consensus::new(12));
    let validator = |who: &Key| [text(address_of(who))];
    let whole = json!((2_000 * OPG).to_string());
    // The genesis's validator, which the contract does not know, is reported to nobody.
    let (committee, missed) =
        world.epoch_of(Consensus::new(9).public(), |block, _, missed| missed >= 20 * (block + 1));
    assert_eq!((committee, missed), (vec![Consensus::new(9).public()], 140));
    world.join(&ada, &silent, "", 2_000 * OPG);
    world.join(&bob, &other, "", 2_000 * OPG);
    world.next_epoch();

    // Seven turns are too few to say anything.
    let (committee, missed) = world.epoch_of(silent.public(), |block, leader, missed| {
        missed >= (MISSED_LEAST - 1).min(if leader == other.public() { block + 1 } else { BLOCKS })
    });
    assert_eq!((committee.len(), missed), (2, MISSED_LEAST - 1));
    assert_eq!(world.view("validatorOf", &validator(&ada))["tokens"], whole);

    // One makes no block. The other makes one in every second turn of its own, which is half of them and enough.
    let parity = std::cell::Cell::new(0);
    let half = |_, leader, _| {
        parity.set(parity.get() + u64::from(leader == other.public()));
        leader == other.public() && parity.get().is_multiple_of(2)
    };
    let (committee, missed) = world.epoch_of(silent.public(), half);
    assert!(missed >= MISSED_LEAST && parity.get() == 2 * BLOCKS, "{missed} {}", parity.get());
    assert_eq!(committee, [other.public()]);
    let punished = world.view("validatorOf", &validator(&ada));
    assert_eq!(punished["tokens"], json!((2_000 * OPG - OPG / 5).to_string()));
    assert_eq!(punished["jailedUntil"], json!((world.header.timestamp + 600).to_string()));
    assert_eq!(world.view("validatorOf", &validator(&bob))["tokens"], whole);

    // Nobody without seats is absent, and what was missed in another epoch does not count.
    assert_eq!(world.next_epoch().len(), 1);
    assert_eq!(world.view("validatorOf", &validator(&ada)), punished);
    let unjail = world.system.prepare("Staking", "unjail", &[]).unwrap();
    assert!(!world.submit(&ada, &unjail).status(), "not yet");
    world.block_after(600, Vec::new());
    world.send(&ada, "Staking", "unjail", &[]);
    assert_eq!(world.next_epoch().len(), 2);
    assert_eq!(world.next_epoch().len(), 2);
    assert_eq!(world.view("validatorOf", &validator(&ada))["tokens"], punished["tokens"]);
}

#[test]
fn a_view_comes_after_the_parents_and_counting_is_the_same_for_all() {
    let mut world = World::new([&key(1), &key(2)]);
    world.block_in(5, 10, Vec::new());
    let forged = |claimed: u64| {
        let attributes =
            Attributes { timestamp: world.header.timestamp + 10, beneficiary: Address::ZERO, view: claimed };
        let built = build(&world.rules, &world.header, &world.state, &attributes, []);
        assert_eq!(view(&built.block.header), claimed);
        assemble(&world, (*built.block.header).clone())
    };
    for wrong in [0, 4, 5] {
        assert_eq!(forged(wrong), Err(BlockError::Header("view")), "{wrong}");
    }
    // However far ahead.
    for right in [6, 1_000, u64::MAX] {
        assert_eq!(forged(right), Ok(()));
    }
    // Who says another view than it was executed with has counted wrong; and nothing else is in the field.
    let attributes =
        Attributes { timestamp: world.header.timestamp + 10, beneficiary: Address::ZERO, view: 9 };
    let built = build(&world.rules, &world.header, &world.state, &attributes, []);
    for root in [B256::from(U256::from(8)), B256::from(U256::from(9) + (U256::from(1) << 64))] {
        let header = Header { parent_beacon_block_root: Some(root), ..(*built.block.header).clone() };
        assert!(assemble(&world, header).is_err());
    }
    let counted = built.state.account(&TURNS_ADDRESS).unwrap().slot(&U256::ZERO);
    assert_eq!(counted, U256::from(4 + 3), "in epoch 0");
}

/// What others say of an empty block with this header.
fn assemble(world: &World, header: Header) -> Result<(), BlockError> {
    let block = Block::new(header, Vec::new());
    assay_ledger::verify(&world.rules, &world.header, &world.state, &block).map(drop)
}
