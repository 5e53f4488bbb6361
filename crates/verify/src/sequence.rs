use std::collections::{BTreeMap, BTreeSet};

use assay_receipt::{Address, AnyStatement, Bytes32, Domain, signed_all};
use serde::{Deserialize, Serialize};

/// What the statements of one worker, taken together, show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceReport {
    /// The worker.
    pub worker: Address,
    /// Number of different statements that the worker really signed.
    pub statements: usize,
    /// Hashes of statements that name this worker but were not signed by it; they count for nothing.
    pub unsigned: Vec<Bytes32>,
    /// Pairs of statements that claim the same place: the worker told two stories. Each pair is proof by itself.
    pub forks: Vec<Fork>,
    /// Neighbours where the later one names another predecessor than the one at hand: the worker signed a statement that
    /// it hides, and which is a fork.
    pub broken: Vec<BrokenLink>,
    /// Ranges of numbers of which no statement is at hand; normal for a caller that sees only its own receipts.
    pub gaps: Vec<Gap>,
}

/// Two different statements in one place of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// Hash of one statement.
    pub first: Bytes32,
    /// Hash of the other.
    pub second: Bytes32,
    /// Sequence number of the second.
    pub sequence: u64,
}

/// A statement whose predecessor is not the one at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenLink {
    /// Its sequence number.
    pub sequence: u64,
    /// Hash of the statement before it that is at hand.
    pub expected: Bytes32,
    /// Hash that it names as the one before it.
    pub claimed: Bytes32,
}

/// Missing statements, from `first` to `last`, both included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First missing number.
    pub first: u64,
    /// Last missing number.
    pub last: u64,
}

/// Puts statements into the sequences of their workers and reports forks, broken links and gaps, worker by worker in
/// the order of their addresses. Order of the input and repetitions do not matter.
pub fn check_sequence(domain: &Domain, statements: &[AnyStatement]) -> Vec<SequenceReport> {
    let mut workers: BTreeMap<Address, BTreeMap<Bytes32, &AnyStatement>> = BTreeMap::new();
    for statement in statements {
        workers.entry(statement.worker()).or_default().insert(statement.hash(domain), statement);
    }
    workers.into_iter().map(|(worker, statements)| of_one(domain, worker, statements)).collect()
}

fn of_one(domain: &Domain, worker: Address, statements: BTreeMap<Bytes32, &AnyStatement>) -> SequenceReport {
    let all: Vec<_> = statements.iter().map(|(hash, statement)| (*hash, statement.signature())).collect();
    let good = signed_all(&worker, &all);
    let (signed, unsigned): (Vec<_>, Vec<_>) =
        statements.into_iter().partition(|(_, statement)| good || statement.is_by_author(domain));
    let mut places: BTreeMap<u64, Vec<(Bytes32, Bytes32)>> = BTreeMap::new();
    let mut by_previous: BTreeMap<Bytes32, Bytes32> = BTreeMap::new();
    let mut forks = Vec::new();
    let mut forked = BTreeSet::new();
    for (hash, statement) in &signed {
        let (sequence, previous) = (statement.sequence(), statement.previous());
        let place = places.entry(sequence).or_default();
        let same_place = place.first().map(|(first, _)| *first);
        let same_previous = by_previous.get(&previous).copied();
        for first in [same_place, same_previous].into_iter().flatten() {
            if forked.insert((first, *hash)) {
                forks.push(Fork { first, second: *hash, sequence });
            }
        }
        place.push((*hash, previous));
        by_previous.entry(previous).or_insert(*hash);
    }
    let mut broken = Vec::new();
    let mut gaps = Vec::new();
    let mut next = 0;
    let mut before: Option<(u64, &Vec<(Bytes32, Bytes32)>)> = None;
    for (&sequence, place) in &places {
        if sequence > next {
            gaps.push(Gap { first: next, last: sequence - 1 });
        }
        if let Some((_, earlier)) = before.filter(|(number, _)| number + 1 == sequence) {
            for (_, claimed) in place {
                if !earlier.iter().any(|(hash, _)| hash == claimed) {
                    broken.push(BrokenLink { sequence, expected: earlier[0].0, claimed: *claimed });
                }
            }
        }
        next = sequence.saturating_add(1);
        before = Some((sequence, place));
    }
    SequenceReport {
        worker,
        statements: signed.len(),
        unsigned: unsigned.into_iter().map(|(hash, _)| hash).collect(),
        forks,
        broken,
        gaps,
    }
}
