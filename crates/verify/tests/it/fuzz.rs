//! Bytes from strangers neither crash the decoder and the checks nor get past them.

use assay_receipt::*;
use assay_verify::*;
use proptest::prelude::*;

use crate::common::{bundle, expected};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Bundle::from_json(&bytes).is_err());
        prop_assert!(Frame::from_json(&bytes).is_err());
        prop_assert!(GenerateCall::from_json(&bytes).is_err());
        prop_assert!(Signed::<Members>::from_json(&bytes).is_err());
        let refused = answer(&bytes).starts_with(r#"{"error":"#);
        prop_assert!(refused);
    }

    /// Replaces, inserts and removes bytes of a good bundle. What still decodes is the same bundle, or is rejected, or
    /// has lost its audit.
    #[test]
    fn altered_bytes_are_refused_or_rejected(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3), 1..4),
    ) {
        let good = bundle();
        let mut bytes = serde_json::to_vec(&good).unwrap();
        for (place, byte, kind) in edits {
            let place = place.index(bytes.len());
            match kind {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                _ => _ = bytes.remove(place),
            }
        }
        if let Ok(altered) = Bundle::from_json(&bytes) {
            let state = check(&altered, &expected()).state;
            let audits_only = Bundle { audits: good.audits.clone(), ..altered.clone() } == good;
            prop_assert!(
                altered == good || state == State::Rejected || (audits_only && state == State::Signed)
            );
        }
    }

    #[test]
    fn truncated_bytes_are_refused(place in any::<proptest::sample::Index>()) {
        let bytes = serde_json::to_vec(&bundle()).unwrap();
        prop_assert!(Bundle::from_json(&bytes[..place.index(bytes.len())]).is_err());
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_parsed() {
    let spaces = vec![b' '; limits::BUNDLE_BYTES + 1];
    assert!(matches!(Bundle::from_json(&spaces), Err(Error::TooLarge { .. })));
    assert!(matches!(Frame::from_json(&spaces), Err(Error::TooLarge { .. })));
    assert!(matches!(GenerateCall::from_json(&spaces), Err(Error::TooLarge { .. })));
    assert!(matches!(Signed::<Members>::from_json(&spaces), Err(Error::TooLarge { .. })));
    assert!(answer(&vec![b' '; 2 * limits::BUNDLE_BYTES + 1]).contains("larger"));
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let nested = "[".repeat(1 << 20);
    assert!(matches!(Bundle::from_json(nested.as_bytes()), Err(Error::Json { .. })));
    assert!(answer(format!(r#"{{"bundle":{{"bundle":{nested}"#).as_bytes()).starts_with(r#"{"error":"#));
}

/// Two JSON texts that a careless parser reads as the same value, or as different ones, are refused.
#[test]
fn ambiguous_json_is_refused() {
    let good = serde_json::to_string(&bundle()).unwrap();
    for (from, to) in [
        (r#""version":1"#, r#""version":1,"version":1"#),
        (r#""version":1"#, r#""version":1.0"#),
        (r#""version":1"#, r#""version":"1""#),
        (r#""sequence":"12""#, r#""sequence":12"#),
        (r#""sequence":"12""#, r#""sequence":"+12""#),
        (r#""sequence":"12""#, r#""sequence":"012""#),
        (r#""sequence":"12""#, r#""sequence":"""#),
        (r#""sequence":"12""#, r#""sequence":"18446744073709551616""#),
        (r#""salt":"0x"#, r#""salt":""#),
        (r#""salt":"0x"#, r#""salt":"0x0"#),
        (r#""salt":"0x"#, r#""salt":"0X"#),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(
            matches!(Bundle::from_json(good.replace(from, to).as_bytes()), Err(Error::Json { .. })),
            "{to}"
        );
    }
}
