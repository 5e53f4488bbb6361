//! The checks as one function from JSON to JSON, for callers that are not written in Rust.

use assay_receipt::{AnyStatement, Bundle, Domain, Failure, Signed, limits};
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
    Sequence {
        domain: Domain,
        statements: Vec<AnyStatement>,
    },
}

/// Answers one call, JSON in and JSON out: `{"bundle": {"bundle", "expected"}}` or
/// `{"failure": {"failure", "evidence", "expected"}}` give a report, `{"sequence": {"domain", "statements"}}` gives
/// the sequence reports of the workers. Whatever cannot be read gives `{"error": "..."}`.
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
        Ok(Call::Sequence { domain, statements }) => json!(check_sequence(&domain, &statements)),
        Err(error) => json!({ "error": error.to_string() }),
    };
    answer.to_string()
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for call in ["", "{}", "[]", r#"{"bundle":{"bundle":{}}}"#, r#"{"other":{}}"#] {
            assert!(answer(call.as_bytes()).starts_with(r#"{"error":"#), "{call}");
        }
    }

    #[test]
    fn no_statements_have_no_sequence() {
        let call = r#"{"sequence":{"domain":{"chain_id":1,"contract":"0x0000000000000000000000000000000000000000"},"statements":[]}}"#;
        assert_eq!(answer(call.as_bytes()), "[]");
    }
}
