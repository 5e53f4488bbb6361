//! The checks as one function from JSON to JSON, for callers that are not written in Rust.

use assay_receipt::{AnyStatement, Bundle, Domain, Failure, Members, Signed, limits};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::{Expected, FailureEvidence, check, check_failure, check_sequence};

/// What may be asked, tagged by its first key.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Call<'a> {
    Bundle {
        #[serde(borrow)]
        bundle: &'a RawValue,
        expected: Box<Expected>,
    },
    Failure {
        failure: Box<Signed<Failure>>,
        evidence: Option<Box<FailureEvidence>>,
        expected: Box<Expected>,
    },
    Members {
        domain: Domain,
        #[serde(borrow)]
        members: &'a RawValue,
    },
    Sequence {
        domain: Domain,
        statements: Vec<AnyStatement>,
    },
}

/// Answers one call, JSON in and JSON out: `{"bundle": {"bundle", "expected"}}` or
/// `{"failure": {"failure", "evidence", "expected"}}` give a report, `{"sequence": {"domain", "statements"}}` gives
/// the sequence reports of the workers, and `{"members": {"domain", "members"}}` gives `{"signer"}`, the address whose
/// key signed this very list of workers; the caller compares it with the one that it believes in. Whatever cannot be read gives `{"error": "..."}`.
///
/// ```
/// let answer = assay_verify::answer(b"{}");
/// assert!(answer.starts_with(r#"{"error":"#));
/// ```
pub fn answer(call: &[u8]) -> String {
    let limit = 2 * limits::BUNDLE_BYTES; // a bundle and the list of workers to hold it against
    if call.len() > limit {
        return json!({ "error": format!("the call is larger than {limit} bytes") }).to_string();
    }
    let answer = match serde_json::from_slice(call) {
        Ok(Call::Bundle { bundle, expected }) => match Bundle::from_json(bundle.get().as_bytes()) {
            Ok(bundle) => json!(check(&bundle, &expected)),
            Err(error) => json!({ "error": error.to_string() }),
        },
        Ok(Call::Failure { failure, evidence, expected }) => {
            json!(check_failure(&failure, evidence.as_deref(), &expected))
        }
        Ok(Call::Members { domain, members }) => {
            let signer = Signed::<Members>::from_json(members.get().as_bytes())
                .and_then(|members| members.signer(&domain));
            match signer {
                Ok(signer) => json!({ "signer": signer }),
                Err(error) => json!({ "error": error.to_string() }),
            }
        }
        Ok(Call::Sequence { domain, statements }) => json!(check_sequence(&domain, &statements)),
        Err(error) => json!({ "error": error.to_string() }),
    };
    answer.to_string()
}

#[cfg(test)]
mod tests {
    use assay_receipt::{Domain, Key, Members, Signed};
    use serde_json::json;

    use super::answer;

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for call in ["", "{}", "[]", r#"{"bundle":{"bundle":{}}}"#, r#"{"other":{}}"#] {
            assert!(answer(call.as_bytes()).starts_with(r#"{"error":"#), "{call}");
        }
    }

    #[test]
    fn a_changed_list_of_workers_has_another_signer() {
        let key = Key::from_bytes([7; 32]).unwrap();
        let domain = Domain::default();
        let list = Members { serial: 3, issued_at_s: 1, expires_at_s: 2, members: Vec::new() };
        let signed = Signed::sign(&key, &domain, list);
        let signer = |members: &Signed<Members>, domain: &Domain| {
            super::answer(json!({"members": {"domain": domain, "members": members}}).to_string().as_bytes())
        };
        let right = json!({"signer": key.address()}).to_string();
        assert_eq!(signer(&signed, &domain), right);
        let mut later = signed.clone();
        later.statement.expires_at_s += 1;
        assert_ne!(signer(&later, &domain), right);
        let elsewhere = Domain { chain_id: domain.chain_id + 1, ..domain };
        assert_ne!(signer(&signed, &elsewhere), right);
        let mut void = signed;
        void.statement.expires_at_s = 0;
        assert!(signer(&void, &domain).starts_with(r#"{"error":"#), "limits are checked as well");
    }

    #[test]
    fn no_statements_have_no_sequence() {
        let call = r#"{"sequence":{"domain":{"chain_id":1,"contract":"0x0000000000000000000000000000000000000000"},"statements":[]}}"#;
        assert_eq!(answer(call.as_bytes()), "[]");
    }
}
