//! Keys, signatures, the chain and the ranges of requests: what must be refused is refused.
#![allow(clippy::unwrap_used)]

use assay_receipt::*;
use proptest::prelude::*;

/// Half the order of secp256k1, the largest `s` that counts.
const HALF_ORDER: &str = "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0";

fn domain() -> Domain {
    Domain { chain_id: 1, contract: Address([1; 20]) }
}

fn key() -> Key {
    Key::from_bytes([7; 32]).unwrap()
}

fn audit() -> Audit {
    Audit {
        auditor: key().address(),
        key_epoch: 0,
        receipt: Bytes32::ZERO,
        model: Bytes32::ZERO,
        arithmetic: 1,
        verdict: Verdict::Agrees,
        field: String::new(),
        position: 0,
        expected: 0,
        claimed: 0,
        sequence: 0,
        previous: Bytes32::ZERO,
        audited_at_ms: 0,
        compute_ms: 0,
    }
}

#[test]
fn a_key_is_below_the_order_and_not_zero() {
    assert_eq!(Key::from_bytes([0; 32]).unwrap_err(), Error::Key);
    assert_eq!(Key::from_bytes([0xff; 32]).unwrap_err(), Error::Key);
}

#[test]
fn debug_shows_the_address_of_a_key_and_no_more() {
    assert_eq!(format!("{:?}", key()), format!("Key({})", key().address()));
}

#[test]
fn signatures_are_canonical_and_deterministic() {
    for seed in 0..64 {
        let digest = keccak256([seed]);
        let signature = key().sign(&digest);
        assert_eq!(signature, key().sign(&digest));
        assert!(to_hex(&signature.0[32..64]).as_str() <= HALF_ORDER);
        assert!([27, 28].contains(&signature.0[64]));
        assert_eq!(signature.recover(&digest), Ok(key().address()));
        assert_ne!(signature.recover(&keccak256([seed + 1])), Ok(key().address()));
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn other_forms_of_a_signature_are_refused() {
    let digest = keccak256("digest");
    let good = key().sign(&digest);
    for v in (0..=255).filter(|v| ![27, 28].contains(v)) {
        let mut signature = good;
        signature.0[64] = v;
        assert!(signature.recover(&digest).is_err(), "v = {v}");
    }
    let mut high = good;
    high.0[32..64].fill(0x80); // above half the order, below the order
    assert_eq!(high.recover(&digest), Err(Error::Signature("s is in the upper half")));
    for part in [0..32, 32..64] {
        for byte in [0, 0xff] {
            let mut signature = good;
            signature.0[part.clone()].fill(byte);
            assert!(signature.recover(&digest).is_err(), "{part:?} filled with {byte}");
        }
    }
    let mut flipped = good;
    flipped.0[64] = 55 - flipped.0[64];
    assert_ne!(flipped.recover(&digest), Ok(key().address()));
}

/// k256's own recovery, which verifies once more what follows from it.
fn reference(signature: &Signature, digest: &Bytes32) -> Option<Address> {
    use k256::ecdsa::{RecoveryId, VerifyingKey};
    let recovery = RecoveryId::new(signature.0[64].checked_sub(27).filter(|odd| *odd < 2)? == 1, false);
    let parts = k256::ecdsa::Signature::from_slice(&signature.0[..64]).ok()?;
    let low = parts.normalize_s().is_none();
    let key = VerifyingKey::recover_from_prehash(&digest.0, &parts, recovery).ok().filter(|_| low)?;
    let hash = keccak256(&key.to_encoded_point(false).as_bytes()[1..]);
    Some(Address(hash.0[12..].try_into().unwrap()))
}

proptest! {
    /// Half of all numbers are the x of a point, and any such point with any low `s` is somebody's signature.
    #[test]
    fn recovery_is_that_of_k256(digest in any::<[u8; 32]>(), numbers in any::<[u8; 64]>(), v in 26..30u8, high in any::<bool>()) {
        let mut bytes = [v; 65];
        bytes[..64].copy_from_slice(&numbers);
        bytes[32] &= if high { 0xff } else { 0x7f };
        let (signature, digest) = (Signature(bytes), Bytes32(digest));
        prop_assert_eq!(signature.recover(&digest).ok(), reference(&signature, &digest));
    }

    /// Checked together or one by one, it is the same.
    #[test]
    fn together_is_as_each(count in 0..40usize, change in any::<prop::sample::Index>(), bit in 0..776usize, damage in any::<bool>()) {
        let mut signed: Vec<_> =
            (0..count).map(|i| keccak256([i as u8])).map(|digest| (digest, key().sign(&digest))).collect();
        if damage && count > 0 {
            let (digest, signature) = &mut signed[change.index(count)];
            match bit / 8 {
                byte @ 0..32 => digest.0[byte] ^= 1 << (bit % 8),
                byte => signature.0[byte - 32] ^= 1 << (bit % 8),
            }
        }
        let author = key().address();
        let each = signed.iter().all(|(digest, signature)| signature.recover(digest) == Ok(author));
        prop_assert_eq!(signed_all(&author, &signed), each);
        prop_assert_eq!(each, !damage || count == 0);
    }
}

#[test]
fn errors_that_cancel_out_do_not_hide_from_a_check_together() {
    let digests: Vec<_> = (0..200u8).map(|i| keccak256([i])).collect();
    let good: Vec<_> = digests.iter().map(|digest| (*digest, key().sign(digest))).collect();
    let author = key().address();
    assert!(signed_all(&author, &good));
    assert!(signed_all(&author, &[good.clone(), good.clone()].concat()), "the same twice");
    // Digests in turn: sums without weights would be the same.
    let mut swapped = good.clone();
    (swapped[7].0, swapped[8].0) = (swapped[8].0, swapped[7].0);
    assert!(!signed_all(&author, &swapped));
    // A pair of the points R and -R.
    let mut negated = good.clone();
    negated[9].1.0[64] = 55 - negated[9].1.0[64];
    negated[10] = negated[9];
    assert!(!signed_all(&author, &negated));
    // Somebody else's, first, last and all.
    let other = Key::from_bytes([8; 32]).unwrap();
    for place in [0, 100, 199] {
        let mut signed = good.clone();
        signed[place].1 = other.sign(&signed[place].0);
        assert!(!signed_all(&author, &signed));
    }
    assert!(!signed_all(&other.address(), &good));
    assert!(signed_all(&author, &[]));
}

#[test]
fn a_statement_counts_in_its_domain_only() {
    let signed = Signed::sign(&key(), &domain(), audit());
    assert!(signed.is_by_author(&domain()));
    assert!(!signed.is_by_author(&Domain { chain_id: 2, ..domain() }));
    assert!(!signed.is_by_author(&Domain { contract: Address([2; 20]), ..domain() }));
    let other = Key::from_bytes([8; 32]).unwrap();
    assert!(!Signed::sign(&other, &domain(), audit()).is_by_author(&domain()));
}

#[test]
fn chunks_follow_each_other() {
    let chunk = |index| Chunk { index, text: "a".into(), tokens: vec![1], logprobs: vec![] };
    let start = Chain::start(&Bytes32([1; 32]), &Bytes32([2; 32]));
    let mut chain = start.clone();
    assert_eq!(chain.push(&chunk(1)), Err(Error::ChunkIndex { expected: 0, found: 1 }));
    assert_eq!(chain, start, "a refused chunk changes nothing");
    assert!(chain.is_empty());
    let link = chain.push(&chunk(0)).unwrap();
    assert_eq!((chain.len(), chain.link()), (1, link));
    assert_eq!(chain.push(&chunk(0)), Err(Error::ChunkIndex { expected: 1, found: 0 }));
    assert_ne!(Chain::start(&Bytes32([1; 32]), &Bytes32([3; 32])).link(), start.link());
    assert_ne!(Chain::start(&Bytes32([3; 32]), &Bytes32([2; 32])).link(), start.link());
}

#[test]
fn commitments_keep_kinds_and_salts_apart() {
    let request = Request::from_text(Bytes32::ZERO, "a", 1);
    let salt = Bytes32([1; 32]);
    assert_ne!(request_commitment(&request, &salt), request_commitment(&request, &Bytes32([2; 32])));
    assert_ne!(request_commitment(&request, &salt), request.struct_hash());
}

/// Values that a naive encoding would hash alike.
#[test]
fn neighbouring_requests_have_different_hashes() {
    let base = Request::from_text(Bytes32::ZERO, "a", 1);
    let message =
        |content: &str| Message { role: "user".into(), content: content.into(), ..Message::default() };
    let chat = |messages| Prompt::Chat {
        messages,
        tools: None,
        tool_choice: "auto".into(),
        parallel_tool_calls: false,
    };
    let with = |prompt| Request { prompt, ..base.clone() };
    let stop =
        |stop: &[&str]| Request { stop: stop.iter().map(ToString::to_string).collect(), ..base.clone() };
    let requests = [
        base.clone(),
        with(Prompt::Text(String::new())),
        with(Prompt::Tokens(vec![])),
        with(Prompt::Tokens(vec![0])),
        with(chat(vec![])),
        with(chat(vec![message("ab"), message("c")])),
        with(chat(vec![message("a"), message("bc")])),
        with(chat(vec![Message { name: Some(String::new()), ..message("a") }])),
        with(chat(vec![message("a")])),
        stop(&["ab"]),
        stop(&["a", "b"]),
        stop(&["b", "a"]),
        Request { logprobs: Some(0), ..base.clone() },
        Request { constraint: Constraint::Json, ..base.clone() },
        Request { constraint: Constraint::JsonSchema(String::new()), ..base.clone() },
        Request { constraint: Constraint::Regex(String::new()), ..base.clone() },
    ];
    let hashes: std::collections::BTreeSet<_> = requests.iter().map(Typed::struct_hash).collect();
    assert_eq!(hashes.len(), requests.len());
}

#[test]
fn what_is_out_of_range_is_refused() {
    type Change = fn(&mut Request);
    let table: &[(&str, Change)] = &[
        ("request.max_tokens", |request| request.max_tokens = 0),
        ("request.max_tokens", |request| request.max_tokens = (1 << 20) + 1),
        ("request.stop", |request| request.stop = vec!["x".into(); 17]),
        ("request.stop", |request| request.stop = vec![String::new()]),
        ("request.stop", |request| request.stop = vec!["x".repeat(1_025)]),
        ("request.sampling.temperature_milli", |request| request.sampling.temperature_milli = 100_001),
        ("request.sampling.top_p_ppm", |request| request.sampling.top_p_ppm = 1_000_001),
        ("request.sampling.min_p_ppm", |request| request.sampling.min_p_ppm = 1_000_001),
        ("request.sampling.repetition_penalty_milli", |request| {
            request.sampling.repetition_penalty_milli = 0
        }),
        ("request.sampling.frequency_penalty_milli", |request| {
            request.sampling.frequency_penalty_milli = 100_001
        }),
        ("request.sampling.presence_penalty_milli", |request| {
            request.sampling.presence_penalty_milli = i32::MIN
        }),
        ("request.sampling.logit_bias", |request| request.sampling.logit_bias = vec![(1, 0), (1, 0)]),
        ("request.sampling.logit_bias", |request| request.sampling.logit_bias = vec![(2, 0), (1, 0)]),
        ("request.sampling.logit_bias", |request| request.sampling.logit_bias = vec![(1, 100_001)]),
        ("request.sampling.logit_bias", |request| {
            request.sampling.logit_bias = (0..1_025).map(|token| (token, 0)).collect();
        }),
        ("request.logprobs", |request| request.logprobs = Some(21)),
        ("request.prompt.text", |request| request.prompt = Prompt::Text("x".repeat((8 << 20) + 1))),
        ("request.prompt.tokens", |request| request.prompt = Prompt::Tokens(vec![0; (1 << 20) + 1])),
        ("request.constraint", |request| request.constraint = Constraint::Regex("x".repeat((8 << 20) + 1))),
        ("request.prompt.messages", |request| {
            request.prompt = Prompt::Chat {
                messages: vec![],
                tools: None,
                tool_choice: "auto".into(),
                parallel_tool_calls: false,
            };
        }),
        ("request.prompt.messages.role", |request| {
            request.prompt = Prompt::Chat {
                messages: vec![Message { role: "x".repeat(257), ..Message::default() }],
                tools: None,
                tool_choice: "auto".into(),
                parallel_tool_calls: false,
            };
        }),
    ];
    for (field, change) in table {
        let mut request = Request::from_text(Bytes32::ZERO, "a", 1);
        request.validate().unwrap();
        change(&mut request);
        match request.validate() {
            Err(Error::Range { field: found, .. }) => assert_eq!(found, *field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn members_are_listed_once_and_for_some_time() {
    let member = Member {
        operator: "Alice".into(),
        worker: Address([1; 20]),
        key_epoch: 0,
        url: "https://a.example".into(),
        tls_sha256: Bytes32::ZERO,
        models: vec![],
    };
    let members = |members, expires_at_s| Members { serial: 0, issued_at_s: 10, expires_at_s, members };
    members(vec![member.clone()], 11).validate().unwrap();
    assert!(members(vec![member.clone()], 10).validate().is_err());
    assert!(members(vec![member.clone(), member.clone()], 11).validate().is_err());
    assert!(members(vec![Member { operator: String::new(), ..member }], 11).validate().is_err());
}

#[test]
fn a_price_that_does_not_fit_is_none() {
    let offer = Offer {
        model: Bytes32::ZERO,
        name: "m".into(),
        prompt_price: 3,
        completion_price: u128::MAX,
        arithmetic: 1,
        context: 1,
    };
    assert_eq!(offer.price(5, 0), Some(15));
    assert_eq!(offer.price(0, 1), Some(u128::MAX));
    assert_eq!(offer.price(1, 1), None);
    assert_eq!(offer.price(0, 2), None);
}
