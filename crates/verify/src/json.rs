//! The checks as one function from JSON to JSON, for callers that are not written in Rust.

use assay_receipt::{Address, AnyStatement, Bundle, Domain, Failure, Members, Signed, limits};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::{Expected, FailureEvidence, check, check_failure, check_members, check_sequence};

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
        /// Who must have signed it; anybody when absent.
        signer: Option<Address>,
        /// Seconds since 1970; without it the expiry is left to the caller.
        now_s: Option<u64>,
        /// The highest serial seen before.
        #[serde(default)]
        least_serial: u64,
    },
    Sequence {
        domain: Domain,
        statements: Vec<AnyStatement>,
    },
}

/// Answers one call, JSON in and JSON out: `{"bundle": {"bundle", "expected"}}` or
/// `{"failure": {"failure", "evidence", "expected"}}` give a report, `{"sequence": {"domain", "statements"}}` gives
/// the sequence reports of the workers. `{"members": {"domain", "members", "signer", "now_s", "least_serial"}}`, the last
/// three optional, gives `{"ok": true, "signer", "serial", "expires_at_s"}` for a list of workers that is to be used (see
/// [`check_members`]) and `{"ok": false, .., "error"}` for another; the caller of one without `signer` compares the
/// address with the one that it believes in. Whatever cannot be read gives `{"error": "..."}`.
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
        Ok(Call::Members { domain, members, signer, now_s, least_serial }) => {
            match Signed::<Members>::from_json(members.get().as_bytes()) {
                Ok(list) => {
                    let checked =
                        check_members(&list, signer.as_ref(), &domain, now_s.unwrap_or(0), least_serial);
                    let mut answer = json!({
                        "ok": checked.is_ok(),
                        "signer": list.signer(&domain).ok(),
                        "serial": list.statement.serial,
                        "expires_at_s": list.statement.expires_at_s,
                    });
                    if let Err(error) = checked {
                        answer["error"] = json!(error.to_string());
                    }
                    answer
                }
                Err(error) => json!({ "ok": false, "error": error.to_string() }),
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
        let right = json!({"ok": true, "signer": key.address(), "serial": 3, "expires_at_s": 2}).to_string();
        assert_eq!(signer(&signed, &domain), right);
        let mut later = signed.clone();
        later.statement.expires_at_s += 1;
        assert_ne!(signer(&later, &domain), right);
        let elsewhere = Domain { chain_id: domain.chain_id + 1, ..domain };
        assert_ne!(signer(&signed, &elsewhere), right);
        let mut void = signed;
        void.statement.expires_at_s = 0;
        assert!(signer(&void, &domain).contains(r#""error":"#), "limits are checked as well");
    }

    #[test]
    fn a_list_of_workers_is_held_against_signer_time_and_serial() {
        let key = Key::from_bytes([7; 32]).unwrap();
        let domain = Domain::default();
        let list = Members { serial: 3, issued_at_s: 1, expires_at_s: 9, members: Vec::new() };
        let list = Signed::sign(&key, &domain, list);
        let ask = |signer: serde_json::Value, now_s: u64, least_serial: u64| {
            let call = json!({"members": {"domain": domain, "members": list, "signer": signer, "now_s": now_s, "least_serial": least_serial}});
            serde_json::from_str::<serde_json::Value>(&super::answer(call.to_string().as_bytes())).unwrap()
        };
        let signer = json!(key.address());
        for wanted in [json!(null), signer.clone()] {
            assert_eq!(
                ask(wanted, 8, 3),
                json!({"ok": true, "signer": signer, "serial": 3, "expires_at_s": 9})
            );
        }
        let other = json!(Key::from_bytes([8; 32]).unwrap().address());
        for (wanted, now_s, least, why) in
            [(other, 8, 3, "signed by"), (signer.clone(), 9, 3, "expired"), (signer.clone(), 8, 4, "older")]
        {
            let answer = ask(wanted, now_s, least);
            assert_eq!((&answer["ok"], &answer["signer"]), (&json!(false), &signer));
            assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
        }
    }

    #[test]
    fn no_statements_have_no_sequence() {
        let call = r#"{"sequence":{"domain":{"chain_id":1,"contract":"0x0000000000000000000000000000000000000000"},"statements":[]}}"#;
        assert_eq!(answer(call.as_bytes()), "[]");
    }
}
