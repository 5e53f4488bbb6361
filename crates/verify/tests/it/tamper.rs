//! Nothing in a bundle, a failure or a list of members can be changed unnoticed. The fields are found by walking the
//! JSON, so that a field which is added later cannot be forgotten here.

use crate::common::{bundle, expected, key, vectors};
use assay_receipt::*;
use assay_verify::*;
use serde_json::{Value, json};

/// JSON pointers of every value that can be changed: leaves, arrays (which can lose an item) and options (which can
/// become null).
fn places(value: &Value, path: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            out.push(path.clone());
            map.iter().for_each(|(key, value)| places(value, format!("{path}/{key}"), out));
        }
        Value::Array(items) => {
            out.push(path.clone());
            items.iter().enumerate().for_each(|(index, value)| places(value, format!("{path}/{index}"), out));
        }
        _ => out.push(path),
    }
}

/// Other values for one place, of the same type where there is one.
fn mutations(path: &str, value: &Value) -> Vec<Value> {
    const ENUMS: &[&[&str]] = &[
        &["signed", "attested", "replayed", "proved"],
        &["stop", "length", "tool_calls"],
        &["agrees", "differs", "unable"],
        &["busy", "draining", "internal"],
    ];
    match value {
        Value::Null => vec![json!("x")],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) => match number.as_i64() {
            Some(number) => vec![json!(number + 1), json!(number - 1)],
            None => vec![json!(0)],
        },
        Value::String(text) => {
            let last = path.rsplit('/').next().unwrap();
            let mut out = vec![Value::Null];
            if let Some(variants) = ENUMS.iter().find(|variants| {
                variants.contains(&text.as_str())
                    && ["level", "finish_reason", "verdict", "code"].contains(&last)
            }) {
                out.extend(variants.iter().filter(|variant| *variant != text).map(|variant| json!(variant)));
            } else if let Some(digits) = text.strip_prefix("0x") {
                let digit = if text.ends_with('0') { '1' } else { '0' };
                out.push(json!(format!("{}{digit}", &text[..text.len() - 1])));
                let digit = if digits.starts_with('0') { '1' } else { '0' };
                out.push(json!(format!("0x{digit}{}", &digits[1..])));
                out.push(json!(text[..text.len() - 2]));
            } else if let Ok(number) = text.parse::<u128>() {
                out.push(json!((number ^ 1).to_string()));
                out.push(json!((number / 2).to_string()));
                out.push(json!(format!("0{number}")));
            } else {
                out.push(json!(format!("{text}x")));
                out.push(json!(text.chars().skip(1).collect::<String>()));
            }
            out
        }
        Value::Array(items) => {
            let mut out = vec![];
            if let Some(last) = items.last() {
                out.push(json!(items[..items.len() - 1]));
                out.push(json!(items.iter().chain([last]).collect::<Vec<_>>()));
            }
            if items.len() > 1 && items.first() != items.last() {
                out.push(items.iter().rev().cloned().collect());
            }
            out
        }
        Value::Object(map) => {
            let mut more = map.clone();
            more.insert("unknown_field".into(), json!(0));
            let mut out = vec![Value::Object(more)];
            for key in map.keys() {
                let mut fewer = map.clone();
                fewer.shift_remove(key);
                out.push(Value::Object(fewer));
            }
            out
        }
    }
}

/// Calls `judge` with every altered copy of `good`; it returns a complaint when the alteration goes unnoticed.
fn for_every_alteration(good: &Value, judge: impl Fn(&str, &Value, &Value) -> Option<String>) {
    let mut all = Vec::new();
    places(good, String::new(), &mut all);
    let mut alterations = 0;
    let mut complaints = Vec::new();
    for path in &all {
        let value = good.pointer(path).unwrap();
        for other in mutations(path, value) {
            // An option that is left out reads as none, so removing one that is null changes nothing.
            let mut altered = good.clone();
            *altered.pointer_mut(path).unwrap() = other.clone();
            if without_nulls(&altered) == without_nulls(good) {
                continue;
            }
            alterations += 1;
            complaints.extend(
                judge(path, &other, &altered).map(|complaint| format!("{path} = {other}: {complaint}")),
            );
        }
    }
    assert!(alterations > 30, "only {alterations} alterations: the walk does not reach the fields");
    assert!(complaints.is_empty(), "{} unnoticed:\n{}", complaints.len(), complaints.join("\n"));
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// The check that must catch a change at this place, whatever else also does.
fn guard(path: &str) -> CheckKind {
    let parts: Vec<_> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["version"] => CheckKind::Form,
        ["domain", ..] => CheckKind::Domain,
        ["salt"] | ["request", ..] => CheckKind::Request,
        ["output", ..] => CheckKind::Output,
        ["chunks", _, "signature"] => CheckKind::ChunkSignatures,
        ["chunks", ..] => CheckKind::Chain,
        ["receipt", ..] => CheckKind::Signature,
        ["audits", ..] => CheckKind::AuditSignature,
        other => panic!("no check guards {other:?}: add one, then name it here"),
    }
}

#[test]
fn the_good_bundle_is_replayed_and_every_check_passes() {
    let report = check(&bundle(), &expected());
    assert_eq!(report.state, State::Replayed, "{:#?}", report.checks);
    assert_eq!(report.level, Some(Level::Replayed));
    assert!(report.checks.iter().all(|check| check.outcome == Outcome::Passed), "{:#?}", report.checks);
    assert_eq!(report.operator.as_deref(), Some("Alice"));
}

#[test]
fn no_field_of_a_bundle_can_be_changed() {
    let expected = expected();
    for_every_alteration(&json!(bundle()), |path, _, altered| {
        let bundle = match Bundle::from_json(altered.to_string().as_bytes()) {
            // Unknown fields, missing fields, wrong types and ranges never get as far as a check.
            Err(Error::Json { .. } | Error::Range { .. }) => return None,
            Err(error) => return Some(format!("unexpected error {error}")),
            Ok(bundle) => bundle,
        };
        if path == "/audits" && bundle.audits.is_empty() {
            // Audits are evidence that may be left out; then the level falls.
            let report = check(&bundle, &expected);
            return (report.state != State::Signed).then(|| format!("{:?} without an audit", report.state));
        }
        if path == "/audits" {
            // The same audit twice is still one audit.
            return (check(&bundle, &expected).state != State::Replayed).then(|| "repetition matters".into());
        }
        let report = check(&bundle, &expected);
        let guard = guard(path);
        if path.starts_with("/audits") {
            // An altered audit counts for nothing, and the receipt stands without it.
            if report.state != State::Signed {
                return Some(format!("{:?}", report.state));
            }
            return (!report.not_counted().any(|check| check.name == guard))
                .then(|| "the audit's signature still holds".into());
        }
        if report.state != State::Rejected || report.level.is_some() {
            return Some(format!("{:?}", report.state));
        }
        (!report.has_failed(guard)).then(|| {
            let failed: Vec<_> = report.failed().map(|check| check.name).collect();
            format!("{guard:?} did not notice, only {failed:?} did")
        })
    });
}

#[test]
fn no_field_of_a_failure_can_be_changed() {
    let good = vectors()["statements"][1]["json"].clone();
    let expected = expected();
    let bundle = bundle();
    let evidence =
        FailureEvidence { salt: bundle.salt, request: bundle.request, chunks: bundle.chunks[..2].to_vec() };
    let read = |value: &Value| serde_json::from_value::<Signed<Failure>>(value.clone());
    let report = check_failure(&read(&good).unwrap(), Some(&evidence), &expected);
    assert_eq!(report.state, State::Signed, "{:#?}", report.checks);
    for_every_alteration(&good, |_, _, altered| {
        let failure = read(altered).ok()?;
        let report = check_failure(&failure, Some(&evidence), &expected);
        (!report.has_failed(CheckKind::Signature)).then(|| "the signature still holds".into())
    });
}

#[test]
fn no_field_of_the_members_can_be_changed() {
    let good = vectors()["statements"][3]["json"].clone();
    let domain = bundle().domain;
    for_every_alteration(&good, |_, _, altered| {
        let members = Signed::<Members>::from_json(altered.to_string().as_bytes()).ok()?;
        (members.signer(&domain) == Ok(key("registrar").address()))
            .then(|| "the signature still holds".into())
    });
}
