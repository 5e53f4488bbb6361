//! A table of the ways to cheat, each with the check that catches it. Unlike in `tamper`, the cheater holds the keys: it
//! signs its lies properly and recomputes every hash that depends on them.

use assay_receipt::*;
use assay_verify::*;

use crate::common::{bundle, expected, key, vectors};

/// Order of secp256k1, big-endian.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba,
    0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];

/// The same signature in its other form: `s` becomes `order - s` and `v` flips.
fn malleate(signature: &mut Signature) {
    let mut borrow = 0;
    for (index, digit) in ORDER.iter().enumerate().rev() {
        let difference = i16::from(*digit) - i16::from(signature.0[32 + index]) - borrow;
        borrow = i16::from(difference < 0);
        signature.0[32 + index] = difference.rem_euclid(256) as u8;
    }
    signature.0[64] = 55 - signature.0[64];
}

/// Signs everything again after a lie, so that only the lie itself can give it away.
fn resign(bundle: &mut Bundle, lie: impl FnOnce(&mut Bundle)) {
    lie(bundle);
    let worker = key("worker");
    let mut receipt = bundle.receipt.statement.clone();
    receipt.request = request_commitment(&bundle.request, &bundle.salt);
    receipt.output = output_commitment(&bundle.output, &bundle.salt);
    let mut chain = Chain::start(&receipt.request, &receipt.nonce);
    let chunks = std::mem::take(&mut bundle.chunks);
    bundle.chunks =
        chunks.into_iter().map(|signed| chain.sign(&worker, &bundle.domain, signed.chunk).unwrap()).collect();
    receipt.chain = chain.link();
    receipt.chunks = chain.len();
    bundle.receipt = Signed::sign(&worker, &bundle.domain, receipt);
    let receipt = bundle.receipt.hash(&bundle.domain);
    for audit in &mut bundle.audits {
        audit.statement.receipt = receipt;
        *audit = Signed::sign(&key("auditor"), &bundle.domain, audit.statement.clone());
    }
}

/// Changes the receipt only, and signs it.
fn lie(bundle: &mut Bundle, change: impl FnOnce(&mut Receipt)) {
    resign(bundle, |bundle| change(&mut bundle.receipt.statement));
}

/// Changes the audit only, and signs it with the key of `auditor`.
fn audit_lie(bundle: &mut Bundle, auditor: &str, change: impl FnOnce(&mut Audit)) {
    let mut audit = bundle.audits[0].statement.clone();
    change(&mut audit);
    bundle.audits[0] = Signed::sign(&key(auditor), &bundle.domain, audit);
}

type Lie = fn(&mut Bundle, &mut Expected);

/// (what the cheater does, how, which checks do not hold and no others)
#[rustfmt::skip]
const TABLE: &[(&str, Lie, &[CheckKind])] = &[
    ("answers with a receipt for an older request of the same prompt",
        |_, expected| expected.nonce = Some(keccak256("fresh nonce")), &[CheckKind::Nonce]),
    ("replays a receipt from another chain",
        |_, expected| expected.domain.chain_id += 1,
        &[CheckKind::Domain, CheckKind::Signature, CheckKind::ChunkSignatures, CheckKind::AuditSignature, CheckKind::AuditSubject]),
    ("replays a receipt made for another contract",
        |_, expected| expected.domain.contract.0[0] ^= 1,
        &[CheckKind::Domain, CheckKind::Signature, CheckKind::ChunkSignatures, CheckKind::AuditSignature, CheckKind::AuditSubject]),
    ("relabels the domain in the file to the caller's",
        |bundle, expected| { expected.domain.chain_id += 1; bundle.domain = expected.domain; },
        &[CheckKind::Signature, CheckKind::ChunkSignatures, CheckKind::AuditSignature, CheckKind::AuditSubject]),
    ("signs with a key of its own making",
        |bundle, _| bundle.receipt = Signed::sign(&key("stranger"), &bundle.domain, bundle.receipt.statement.clone()),
        &[CheckKind::Signature]),
    ("names itself, an unlisted worker",
        |_, expected| expected.workers.retain(|member| member.operator != "Alice"),
        &[CheckKind::WorkerKnown, CheckKind::AuditIndependent]),
    ("signs with the key of an epoch that is over",
        |_, expected| expected.workers[0].key_epoch += 1, &[CheckKind::WorkerKnown, CheckKind::AuditIndependent]),
    ("turns the signature into its other form",
        |bundle, _| malleate(&mut bundle.receipt.signature), &[CheckKind::Signature]),
    ("writes v as 0 or 1",
        |bundle, _| bundle.receipt.signature.0[64] -= 27, &[CheckKind::Signature]),
    ("signs nothing",
        |bundle, _| bundle.receipt.signature = Signature([0; 65]), &[CheckKind::Signature]),
    ("answers another request",
        |bundle, _| bundle.request.sampling.seed ^= 1, &[CheckKind::Request, CheckKind::Chain]),
    ("swaps the answer after signing",
        |bundle, _| bundle.output.text = "The sun shines.".into(), &[CheckKind::Output, CheckKind::Stream]),
    ("streams one text and commits to another",
        |bundle, _| resign(bundle, |bundle| bundle.output.text = "The sun shines.".into()), &[CheckKind::Stream]),
    ("streams other tokens than it commits to",
        |bundle, _| resign(bundle, |bundle| bundle.output.tokens[1] = 99), &[CheckKind::Stream]),
    ("streams other log-probabilities than it commits to",
        |bundle, _| resign(bundle, |bundle| bundle.output.logprobs[1].logprob_q16 = 0), &[CheckKind::Stream]),
    ("drops the last chunk",
        |bundle, _| _ = bundle.chunks.pop(), &[CheckKind::Chain, CheckKind::Stream]),
    ("drops the first chunk",
        |bundle, _| _ = bundle.chunks.remove(0), &[CheckKind::Chain, CheckKind::Stream]),
    ("swaps two chunks",
        |bundle, _| bundle.chunks.swap(0, 1), &[CheckKind::Chain, CheckKind::Stream]),
    ("sends a chunk twice",
        |bundle, _| bundle.chunks.push(bundle.chunks[2].clone()), &[CheckKind::Chain, CheckKind::Stream]),
    ("renumbers swapped chunks",
        |bundle, _| { bundle.chunks.swap(0, 1); bundle.chunks[0].chunk.index = 0; bundle.chunks[1].chunk.index = 1; },
        &[CheckKind::Chain, CheckKind::ChunkSignatures, CheckKind::Stream]),
    ("splits the same text otherwise than it was streamed",
        |bundle, _| {
            let moved = bundle.chunks[1].chunk.text.remove(0);
            bundle.chunks[0].chunk.text.push(moved);
        },
        &[CheckKind::Chain]),
    ("lets somebody else sign a chunk",
        |bundle, _| bundle.chunks[1].signature = key("stranger").sign(&bundle.chunks[1].hash(&bundle.domain, &bundle.receipt.statement.nonce)),
        &[CheckKind::ChunkSignatures]),
    ("serves another model than was asked for",
        |bundle, _| lie(bundle, |receipt| receipt.model = keccak256("small model")),
        // No offer of that model is known, so its price is not compared; the audit is about the right model.
        &[CheckKind::Model, CheckKind::AuditSubject]),
    ("gets a request for another model answered",
        |_, expected| expected.model = Some(keccak256("large model")), &[CheckKind::Model]),
    ("claims an arithmetic that it does not offer",
        |bundle, _| lie(bundle, |receipt| receipt.arithmetic = 2), &[CheckKind::Arithmetic, CheckKind::AuditSubject]),
    ("forwards to another server in secret",
        |bundle, _| lie(bundle, |receipt| receipt.arithmetic = 0), &[CheckKind::Arithmetic, CheckKind::AuditSubject]),
    ("claims to be replayed without an audit",
        |bundle, _| { bundle.audits.clear(); lie(bundle, |receipt| receipt.level = Level::Replayed) }, &[CheckKind::Level]),
    ("claims hardware evidence that it does not have",
        |bundle, _| lie(bundle, |receipt| receipt.level = Level::Attested), &[CheckKind::Level]),
    ("claims a proof that it does not have",
        |bundle, _| lie(bundle, |receipt| receipt.level = Level::Proved), &[CheckKind::Level]),
    ("commits to a trace that nobody can check",
        |bundle, _| lie(bundle, |receipt| receipt.trace = keccak256("trace")), &[CheckKind::Level]),
    ("counts more tokens in the receipt than in the output, and prices them",
        |bundle, _| lie(bundle, |receipt| { receipt.completion_tokens = 40; receipt.price = 111_000_000_000_000 }), &[CheckKind::Usage]),
    ("counts more prompt tokens in the receipt than in the output",
        |bundle, _| lie(bundle, |receipt| { receipt.prompt_tokens += 1; receipt.price += 1_000_000_000_000 }), &[CheckKind::Usage]),
    ("counts more tokens than it lists",
        |bundle, _| resign(bundle, |bundle| {
            bundle.output.completion_tokens = 5;
            bundle.receipt.statement.completion_tokens = 5;
            bundle.receipt.statement.price += 2_000_000_000_000;
        }),
        &[CheckKind::Usage]),
    ("samples more tokens than were asked for",
        |bundle, _| resign(bundle, |bundle| bundle.request.max_tokens = 3), &[CheckKind::Usage]),
    ("charges another payer",
        |bundle, _| lie(bundle, |receipt| receipt.payer = Address([9; 20])), &[CheckKind::Payer]),
    ("charges more than its offer",
        |bundle, _| lie(bundle, |receipt| receipt.price += 1), &[CheckKind::Price]),
    ("charges more than the cap",
        |bundle, expected| { expected.cap = Some(38_999_999_999_999); lie(bundle, |receipt| receipt.cap = 38_999_999_999_999) },
        &[CheckKind::Cap]),
    ("raises the cap",
        |bundle, _| lie(bundle, |receipt| receipt.cap = u128::MAX), &[CheckKind::Cap]),
    ("claims a first token before the request",
        |bundle, _| lie(bundle, |receipt| receipt.first_token_at_ms = receipt.received_at_ms - 1), &[CheckKind::Times]),
    ("claims an end before the first token",
        |bundle, _| lie(bundle, |receipt| receipt.finished_at_ms = receipt.first_token_at_ms - 1), &[CheckKind::Times]),
    ("starts a second history",
        |bundle, _| lie(bundle, |receipt| receipt.previous = Bytes32::ZERO), &[CheckKind::Sequence]),
    ("numbers its first statement and yet names one before",
        |bundle, _| lie(bundle, |receipt| receipt.sequence = 0), &[CheckKind::Sequence]),
    ("audits itself",
        |bundle, _| audit_lie(bundle, "worker", |audit| audit.auditor = key("worker").address()), &[CheckKind::AuditIndependent]),
    ("lets another worker of its own audit it",
        |_, expected| expected.workers[1].operator = "Alice".into(), &[CheckKind::AuditIndependent]),
    ("lets an unlisted friend audit it",
        |bundle, _| audit_lie(bundle, "stranger", |audit| audit.auditor = key("stranger").address()),
        &[CheckKind::AuditorKnown, CheckKind::AuditIndependent]),
    ("shows an audit with a key of an epoch that is over",
        |_, expected| expected.workers[1].key_epoch += 1, &[CheckKind::AuditorKnown, CheckKind::AuditIndependent]),
    ("forges an auditor's signature",
        |bundle, _| audit_lie(bundle, "worker", |_| {}), &[CheckKind::AuditSignature]),
    ("shows the audit of another receipt",
        |bundle, _| audit_lie(bundle, "auditor", |audit| audit.receipt = keccak256("another receipt")), &[CheckKind::AuditSubject]),
    ("shows an audit made with another model",
        |bundle, _| audit_lie(bundle, "auditor", |audit| audit.model = keccak256("small model")), &[CheckKind::AuditSubject]),
    ("shows an audit made with another arithmetic",
        |bundle, _| audit_lie(bundle, "auditor", |audit| audit.arithmetic = 2), &[CheckKind::AuditSubject]),
    ("shows an audit that agrees and differs at once",
        |bundle, _| audit_lie(bundle, "auditor", |audit| audit.field = "tokens".into()), &[CheckKind::AuditVerdict]),
    ("accuses without saying where it differs",
        |bundle, _| audit_lie(bundle, "auditor", |audit| audit.verdict = Verdict::Differs), &[CheckKind::AuditVerdict]),
    ("hides the difference behind inability",
        |bundle, _| audit_lie(bundle, "auditor", |audit| { audit.verdict = Verdict::Unable; audit.claimed = 7 }), &[CheckKind::AuditVerdict]),
    ("sends a field beyond its limits",
        |bundle, _| resign(bundle, |bundle| bundle.request.sampling.top_p_ppm = 1_000_001), &[CheckKind::Form]),
];

#[test]
fn every_way_to_cheat_is_caught_by_its_check() {
    for (what, lie, caught_by) in TABLE {
        let (mut bundle, mut expected) = (bundle(), expected());
        lie(&mut bundle, &mut expected);
        let report = check(&bundle, &expected);
        let caught: Vec<_> = report
            .checks
            .iter()
            .filter(|check| matches!(check.outcome, Outcome::Failed | Outcome::NotCounted))
            .map(|check| check.name)
            .collect();
        assert_eq!(caught, *caught_by, "a worker that {what}: {:#?}", report.checks);
        if report.failed().next().is_none() {
            // Only the audit is bad: it counts for nothing, and the receipt is what it is without it.
            bundle.audits.clear();
            let without = check(&bundle, &expected);
            assert_eq!((report.state, report.level), (State::Signed, Some(Level::Signed)), "{what}");
            assert_eq!((&report.proves, &report.trusted), (&without.proves, &without.trusted), "{what}");
            assert!(report.counted.is_empty(), "{what}");
            continue;
        }
        assert_eq!((report.state, report.level), (State::Rejected, None), "a worker that {what}");
        assert!(report.proves[0].starts_with("Nothing."), "a worker that {what}: {:?}", report.proves);
    }
}

/// Whoever holds a bundle can add audits, and auditors come and go: neither takes anything from what is valid.
#[test]
fn an_audit_that_does_not_hold_counts_for_nothing_and_is_named() {
    let good = bundle();
    let spoil: [fn(&mut Bundle); 4] = [
        |bundle| audit_lie(bundle, "worker", |audit| audit.verdict = Verdict::Differs),
        |bundle| audit_lie(bundle, "stranger", |audit| audit.auditor = key("stranger").address()),
        |bundle| audit_lie(bundle, "auditor", |audit| audit.field = "tokens".into()),
        |bundle| {
            // A forged accusation.
            audit_lie(bundle, "stranger", |audit| {
                audit.verdict = Verdict::Differs;
                audit.field = "tokens".into();
            })
        },
    ];
    for (index, spoil) in spoil.into_iter().enumerate() {
        let mut alone = good.clone();
        spoil(&mut alone);
        assert_eq!(check(&alone, &expected()).state, State::Signed, "{index}");
        let mut beside = good.clone();
        beside.audits.push(alone.audits[0].clone());
        let report = check(&beside, &expected());
        assert_eq!((report.state, &*report.counted), (State::Replayed, &[0][..]), "{index}");
        assert!(report.not_counted().all(|check| check.detail.starts_with("audit 1 counts for nothing: ")));
        assert!(report.not_counted().next().is_some(), "{index}");
    }
    // The auditor left the list, or has a new key.
    let mut left = expected();
    left.workers.retain(|member| member.operator == "Alice");
    assert_eq!(check(&good, &left).state, State::Signed);
}

/// So that a check nobody tests cannot hide.
#[test]
fn every_check_catches_somebody() {
    let caught: std::collections::BTreeSet<_> =
        TABLE.iter().flat_map(|(_, _, names)| *names).copied().collect();
    let report = check(&bundle(), &expected());
    for check in report.checks {
        assert!(caught.contains(&check.name), "no row of the table fails {:?}", check.name);
    }
}

#[test]
fn resigning_without_a_lie_is_accepted() {
    let mut bundle = bundle();
    resign(&mut bundle, |_| {});
    assert_eq!(bundle, crate::common::bundle(), "signing is deterministic");
    assert_eq!(check(&bundle, &expected()).state, State::Replayed);
}

#[test]
fn without_an_audit_it_is_only_signed() {
    let mut bundle = bundle();
    bundle.audits.clear();
    let report = check(&bundle, &expected());
    assert_eq!((report.state, report.level), (State::Signed, Some(Level::Signed)));
    assert!(report.trusted.iter().any(|who| who.contains("nothing here shows that the model")));
}

#[test]
fn an_auditor_that_could_not_replay_proves_nothing() {
    let mut bundle = bundle();
    audit_lie(&mut bundle, "auditor", |audit| {
        audit.verdict = Verdict::Unable;
        audit.arithmetic = 0;
    });
    assert_eq!(check(&bundle, &expected()).state, State::Signed);
}

#[test]
fn one_audit_that_differs_outweighs_all_that_agree() {
    let mut bundle = bundle();
    let agrees = bundle.audits[0].clone();
    audit_lie(&mut bundle, "auditor", |audit| {
        audit.verdict = Verdict::Differs;
        audit.field = "tokens".into();
        (audit.position, audit.expected, audit.claimed) = (1, 11, 99);
    });
    bundle.audits.push(agrees);
    let report = check(&bundle, &expected());
    assert_eq!((report.state, report.level), (State::Mismatch, Some(Level::Signed)), "{:#?}", report.checks);
    assert!(report.proves.iter().any(|line| line.contains("tokens at position 1, 11 instead of 99")));
}

#[test]
fn a_forwarder_is_signed_and_cannot_be_audited() {
    let (mut bundle, mut expected) = (bundle(), expected());
    expected.workers[0].models[0].arithmetic = 0;
    let strip = |bundle: &mut Bundle| {
        bundle.receipt.statement.arithmetic = 0;
        bundle.output.tokens.clear();
        bundle.output.logprobs.clear();
        for signed in &mut bundle.chunks {
            signed.chunk.tokens.clear();
            signed.chunk.logprobs.clear();
        }
    };
    resign(&mut bundle, strip);
    let report = check(&bundle, &expected);
    assert_eq!(report.state, State::Signed, "{:#?}", report.checks);
    assert_eq!(report.not_counted().next().unwrap().name, CheckKind::AuditSubject, "{:#?}", report.checks);
    bundle.audits.clear();
    let report = check(&bundle, &expected);
    assert_eq!(report.state, State::Signed, "{:#?}", report.checks);
    resign(&mut bundle, |bundle| {
        bundle.output.tokens = vec![1];
        bundle.chunks[0].chunk.tokens = vec![1];
    });
    assert!(check(&bundle, &expected).has_failed(CheckKind::Arithmetic), "a forwarder knows no tokens");
}

#[test]
fn what_the_caller_does_not_know_is_skipped_and_said() {
    let mut expected = Expected { nonce: None, model: None, payer: None, cap: None, ..expected() };
    expected.workers[0].models.clear();
    let report = check(&bundle(), &expected);
    assert_eq!(report.state, State::Replayed);
    let skipped: Vec<_> = report
        .checks
        .iter()
        .filter(|check| check.outcome == Outcome::Skipped)
        .map(|check| check.name)
        .collect();
    assert_eq!(skipped, [CheckKind::Nonce, CheckKind::Payer, CheckKind::Price]);
}

fn failure() -> Signed<Failure> {
    serde_json::from_value(vectors()["statements"][1]["json"].clone()).unwrap()
}

#[test]
fn lies_about_failures_are_caught() {
    let bundle = bundle();
    let evidence = FailureEvidence {
        salt: bundle.salt,
        request: bundle.request.clone(),
        chunks: bundle.chunks[..2].to_vec(),
    };
    type FailureLie = fn(&mut Failure, &mut FailureEvidence, &mut Expected);
    #[rustfmt::skip]
    let table: &[(&str, FailureLie, &[CheckKind])] = &[
        ("is not listed", |_, _, expected| expected.workers.clear(), &[CheckKind::WorkerKnown]),
        ("has a newer key", |_, _, expected| expected.workers[0].key_epoch = 4, &[CheckKind::WorkerKnown]),
        ("failed another request", |failure, _, _| failure.request = keccak256("other"), &[CheckKind::Request]),
        ("reuses an old failure", |_, _, expected| expected.nonce = Some(keccak256("fresh")), &[CheckKind::Nonce]),
        ("names another payer", |failure, _, _| failure.payer = Address::ZERO, &[CheckKind::Payer]),
        ("denies a chunk", |failure, _, _| failure.chunks = 1, &[CheckKind::Chain]),
        ("claims a chunk", |_, evidence, _| _ = evidence.chunks.pop(), &[CheckKind::Chain]),
        ("did not sign the chunks", |_, evidence, _| evidence.chunks[0].signature.0[3] ^= 1, &[CheckKind::ChunkSignatures]),
        ("names another model", |failure, _, _| failure.model = keccak256("other"), &[CheckKind::Model]),
        ("ended before it began", |failure, _, _| failure.finished_at_ms = 0, &[CheckKind::Times]),
        ("starts a second history", |failure, _, _| failure.previous = Bytes32::ZERO, &[CheckKind::Sequence]),
        ("rambles", |failure, _, _| failure.message = "x".repeat(4_097), &[CheckKind::Form]),
    ];
    for (what, lie, caught_by) in table {
        let (mut statement, mut evidence, mut expected) = (failure().statement, evidence.clone(), expected());
        lie(&mut statement, &mut evidence, &mut expected);
        let signed = Signed::sign(&key("worker"), &bundle.domain, statement);
        let report = check_failure(&signed, Some(&evidence), &expected);
        let failed: Vec<_> = report.failed().map(|check| check.name).collect();
        assert_eq!(failed, *caught_by, "a worker that {what}: {:#?}", report.checks);
        assert_eq!(report.state, State::Rejected, "a worker that {what}");
    }
    let forged = Signed::sign(&key("stranger"), &bundle.domain, failure().statement);
    assert!(check_failure(&forged, None, &expected()).has_failed(CheckKind::Signature));
    let report = check_failure(&failure(), None, &expected());
    assert_eq!(report.state, State::Signed, "{:#?}", report.checks);
}

mod sequence {
    use super::*;

    /// Statements 0 to `count - 1` of the worker, properly linked.
    fn history(count: u64) -> Vec<AnyStatement> {
        let domain = bundle().domain;
        let mut previous = Bytes32::ZERO;
        let next = |sequence| {
            let statement = failure_at(sequence, previous, "busy");
            previous = statement.hash(&domain);
            statement
        };
        (0..count).map(next).collect()
    }

    fn failure_at(sequence: u64, previous: Bytes32, message: &str) -> AnyStatement {
        let statement = Failure { sequence, previous, message: message.into(), ..failure().statement };
        AnyStatement::Failure(Signed::sign(&key("worker"), &bundle().domain, statement))
    }

    fn report(statements: &[AnyStatement]) -> SequenceReport {
        let mut reports = check_sequence(&bundle().domain, statements);
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }

    #[test]
    fn an_honest_history_has_no_faults_in_any_order() {
        let mut statements = history(6);
        statements.reverse();
        statements.push(statements[2].clone());
        let report = report(&statements);
        assert_eq!(report.statements, 6);
        assert!(report.forks.is_empty() && report.broken.is_empty() && report.gaps.is_empty(), "{report:?}");
    }

    #[test]
    fn two_statements_in_one_place_are_a_fork() {
        let mut statements = history(4);
        let fork = failure_at(2, statements[1].hash(&bundle().domain), "another story");
        statements.push(fork);
        let report = report(&statements);
        assert_eq!(report.forks.len(), 1, "{report:?}");
        assert_eq!(report.forks[0].sequence, 2);
    }

    #[test]
    fn two_statements_after_the_same_one_are_a_fork_whatever_their_numbers() {
        let mut statements = history(3);
        statements.push(failure_at(9, statements[0].hash(&bundle().domain), "another story"));
        let report = report(&statements);
        assert_eq!(report.forks.len(), 1, "{report:?}");
        assert_eq!(report.gaps, [Gap { first: 3, last: 8 }]);
    }

    #[test]
    fn a_hidden_predecessor_breaks_the_link() {
        let mut statements = history(2);
        statements.push(failure_at(2, keccak256("a statement that nobody was shown"), "busy"));
        let report = report(&statements);
        assert_eq!(report.broken.len(), 1, "{report:?}");
        assert_eq!(report.broken[0].sequence, 2);
    }

    #[test]
    fn missing_statements_are_gaps() {
        let mut statements = history(8);
        statements.remove(5);
        statements.remove(4);
        statements.remove(0);
        assert_eq!(report(&statements).gaps, [Gap { first: 0, last: 0 }, Gap { first: 4, last: 5 }]);
    }

    #[test]
    fn what_the_worker_did_not_sign_is_not_held_against_it() {
        let mut statements = history(3);
        let AnyStatement::Failure(mut forged) = failure_at(1, Bytes32::ZERO, "forged") else {
            unreachable!()
        };
        forged.signature.0[5] ^= 1;
        statements.push(AnyStatement::Failure(forged));
        let report = report(&statements);
        assert_eq!((report.unsigned.len(), report.forks.len()), (1, 0), "{report:?}");
    }

    #[test]
    fn receipts_and_audits_share_the_sequence_of_their_worker() {
        let bundle = bundle();
        let statements =
            [AnyStatement::Receipt(bundle.receipt.clone()), AnyStatement::Audit(bundle.audits[0].clone())];
        let reports = check_sequence(&bundle.domain, &statements);
        assert_eq!(reports.len(), 2, "one report a worker");
        let both = [AnyStatement::Receipt(bundle.receipt.clone()), AnyStatement::Failure(failure())];
        let report = report(&both);
        assert!(report.broken.is_empty() && report.forks.is_empty(), "{report:?}");
        assert_eq!(report.gaps, [Gap { first: 0, last: 11 }]);
    }
}
