//! What the contracts of a dispute take: the parts that a receipt's commitments open to, and the case against an entry.

use std::collections::BTreeSet;

use assay_engine::trace::{Entry, Found, Trace, reads};
use assay_ledger::types::hex;
use assay_model::{Artifact, merkle};
use assay_receipt::{Bundle, Bytes32, Constraint, Domain, Prompt, Request, Typed, keccak256, typed_data};
use assay_wallet::abi;
use serde_json::{Map, Value, json};

use crate::knowledge::Knowledge;

/// Claims that are not about an entry, by their numbers in docs/disputes.md.
const IS_OUTPUT: usize = 64;
const IS_INPUT: usize = 65;
const IS_SIZE: usize = 66;
const IS_PADDING: usize = 67;
const IS_LENGTH: usize = 68;
/// The array of logits after penalties and biases; those after it depend on what a constraint bans.
const LAST_BEFORE_CONSTRAINT: usize = 54;

/// `constraintKind` of a subject whose request has no constraint, but must call a tool.
const FORCED_CALL: u8 = 255;

/// Why no contract judges which tokens were chosen in an answer that was asked for like this, if so; docs/disputes.md has the list.
pub fn unsupported(request: &Request) -> Option<&'static str> {
    if request.constraint != Constraint::None {
        return Some("the answer had to follow a constraint");
    }
    forced(request).then_some("the answer had to call a tool")
}

/// Whether a grammar follows from the choice of tools.
fn forced(request: &Request) -> bool {
    match &request.prompt {
        Prompt::Chat { tool_choice, .. } => !matches!(tool_choice.as_str(), "auto" | "none" | ""),
        Prompt::Text(_) | Prompt::Tokens(_) => false,
    }
}

/// A word of EIP-712's `encodeData` for a JSON value of a type; none for what is no such value.
fn word(types: &Value, kind: &str, value: &Value) -> Option<[u8; 32]> {
    if let Some(of) = kind.strip_suffix("[]") {
        let mut words = Vec::new();
        for value in value.as_array()? {
            words.extend(word(types, of, value)?);
        }
        return Some(keccak256(words).0);
    }
    if types.get(kind).is_some() {
        return struct_hash(types, kind, value);
    }
    Some(match kind {
        "string" => keccak256(value.as_str()?).0,
        "bytes32" => value.as_str()?.parse::<Bytes32>().ok()?.0,
        "bool" => abi::number(&json!(u8::from(value.as_bool()?)))?.to_be_bytes(),
        "int32" => {
            let number = value.as_i64()?;
            let mut word = [if number < 0 { 0xff } else { 0 }; 32];
            word[24..].copy_from_slice(&number.to_be_bytes());
            word
        }
        _ => abi::number(value)?.to_be_bytes(),
    })
}

fn members(types: &Value, kind: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    types[kind].as_array().into_iter().flatten().map(|m| (text(&m["name"]), text(&m["type"]))).collect()
}

fn referred(types: &Value, kind: &str, found: &mut BTreeSet<String>) {
    for (_, kind) in members(types, kind) {
        let base = kind.trim_end_matches("[]").to_owned();
        if types.get(&base).is_some() && found.insert(base.clone()) {
            referred(types, &base, found);
        }
    }
}

fn struct_hash(types: &Value, kind: &str, value: &Value) -> Option<[u8; 32]> {
    let definition = |kind: &str| {
        let members: Vec<_> =
            members(types, kind).iter().map(|(name, kind)| format!("{kind} {name}")).collect();
        format!("{kind}({})", members.join(","))
    };
    let mut others = BTreeSet::new();
    referred(types, kind, &mut others);
    let others: String = others.iter().map(|kind| definition(kind)).collect();
    let mut data = keccak256(definition(kind) + &others).0.to_vec();
    for (name, kind) in members(types, kind) {
        data.extend(word(types, &kind, value.get(&name)?)?);
    }
    Some(keccak256(data).0)
}

/// A struct with everything of variable length, or a struct itself, hashed where EIP-712 hashes it; but `sampling`, whose own fields
/// the contract reads.
fn parts(types: &Value, kind: &str, value: &Value) -> Option<Value> {
    let mut found = Map::new();
    for (name, kind) in members(types, kind) {
        let value = value.get(&name)?;
        let part = if name == "sampling" {
            parts(types, &kind, value)?
        } else if kind.ends_with("[]") || kind == "string" {
            abi::text(Bytes32(word(types, &kind, value)?))
        } else {
            value.clone()
        };
        found.insert(name, part);
    }
    Some(Value::Object(found))
}

fn parts_of<T: Typed>(value: &T) -> Value {
    let data = typed_data(&Domain::default(), value);
    let kind = data["primaryType"].as_str().unwrap_or_default();
    // Null only if the receipt's own types were not what they are, which a test would see.
    parts(&data["types"], kind, &data["message"]).unwrap_or_default()
}

/// What a receipt's commitments open to, and what a trace of it is of.
#[derive(Clone, Debug)]
pub struct Opened {
    /// `RequestParts`.
    pub request: Value,
    /// `OutputParts`.
    pub output: Value,
    /// `Subject`.
    pub subject: Value,
}

impl Opened {
    /// Of a bundle whose voucher commits to its prompt's tokens by `prompt`, or zero.
    pub fn new(bundle: &Bundle, prompt: Bytes32) -> Opened {
        let (request, output) = (parts_of(&bundle.request), parts_of(&bundle.output));
        let kind = &request["constraintKind"];
        let forced = *kind == json!(0) && forced(&bundle.request);
        let kind = if forced { json!(FORCED_CALL) } else { kind.clone() };
        let subject = json!({
            "model": request["model"], "promptTokens": output["promptTokens"],
            "completionTokens": output["completionTokens"], "prompt": prompt, "salt": bundle.salt,
            "outputTokens": output["tokens"], "constraintKind": kind,
            "sampling": request["sampling"],
        });
        Opened { request, output, subject }
    }
}

/// What is wrong with a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An entry is not what its operation gives.
    Entry(Entry),
    /// A token of the output is not the trace's.
    Output(usize),
    /// A position of the trace has another token than the voucher's prompt or the output.
    Input(usize),
    /// The length does not follow from model and tokens.
    Size,
    /// A byte between arrays is not zero.
    Padding {
        /// The byte.
        place: u64,
        /// The array before it.
        array: usize,
        /// Its layer.
        layer: usize,
    },
    /// The output has another number of tokens than its usage says.
    Length,
    /// The voucher's prompt has another number of tokens than the output's usage says.
    PromptLength,
}

impl Fault {
    /// The fault at the first byte that differs from one's own trace.
    pub fn at(trace: &Trace, place: u64) -> Option<Fault> {
        Some(match trace.layout().find(place)? {
            Found::Entry(Entry { array: 0, a, .. }) => Fault::Input(a),
            Found::Entry(entry) => Fault::Entry(entry),
            Found::Padding { array, layer } => Fault::Padding { place, array, layer },
        })
    }

    /// Whether it is judged where the answer had to follow a constraint: what comes before any token is banned.
    pub(crate) fn before_constraint(&self) -> bool {
        match self {
            Fault::Entry(Entry { array, .. }) => *array <= LAST_BEFORE_CONSTRAINT,
            Fault::Output(_) => false,
            Fault::Input(_) | Fault::Size | Fault::Padding { .. } | Fault::Length | Fault::PromptLength => {
                true
            }
        }
    }

    /// The number of the referee that judges it.
    pub fn judge(&self) -> u64 {
        match self {
            Fault::Entry(Entry { array: 11..=29, .. }) => 1,
            Fault::Entry(Entry { array: ..=52, .. }) => 0,
            _ => 2,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Entry(Entry { array, layer, a, b, c }) => {
                let place = match array {
                    1 => format!("value {b} of the embedding of token {a}"),
                    58 | 59 => format!("{} ({b}, {c}) of token {a} of the answer", operation(*array)),
                    51.. => format!("{} {b} of token {a} of the answer", operation(*array)),
                    21 | 24 | 25 => {
                        format!("{} of head {a}, token {b} on {c}, layer {layer}", operation(*array))
                    }
                    _ => format!("{} ({a}, {b}, {c}) of layer {layer}", operation(*array)),
                };
                write!(f, "{place} (array {array})")
            }
            Fault::Output(token) => {
                write!(f, "token {token} of the answer, which is not what the trace ends with")
            }
            Fault::Input(token) => write!(f, "token {token} that the model was given"),
            Fault::Size => f.write_str("the length of the trace"),
            Fault::Padding { place, .. } => write!(f, "byte {place}, between two arrays"),
            Fault::Length => f.write_str("the number of the answer's tokens"),
            Fault::PromptLength => f.write_str("the number of the prompt's tokens"),
        }
    }
}

fn operation(array: usize) -> &'static str {
    match array {
        ..=1 => "embedding",
        2..=4 | 35..=37 | 48..=50 => "norm",
        5..=10 => "query, key or value",
        11 | 12 => "norm of a head",
        13 | 14 => "rotation",
        15..=20 => "rounding",
        21 => "score",
        22..=27 => "softmax",
        28 | 29 => "attention",
        30..=32 | 43..=45 => "rounding",
        33 | 34 => "output of attention",
        38..=41 => "gate or up",
        42 => "activation",
        46 | 47 => "output of the layer",
        51 | 52 => "logit",
        53 | 54 => "penalty or bias of token",
        55 | 56 => "largest logit",
        58 | 59 => "search for the most likely tokens",
        57 | 60..=62 => "drawing",
        _ => "choice",
    }
}

/// The case against a fault, as `Disputes.accuse` takes it: openings of what the operation reads under the worker's root, as far as it is
/// known, and of the model's data. `None` where the fault is no entry of the trace.
pub(crate) fn case(trace: &Trace, known: &Knowledge, subject: &Value, fault: &Fault) -> Option<Value> {
    let artifact = trace.artifact();
    let manifest = artifact.manifest().canonical();
    let find = |needle: &str| {
        let needle = needle.as_bytes();
        manifest.windows(needle.len()).position(|window| window == needle)
    };
    let mut places = vec![find(",\"config\":{\"architecture\":\"")?, find(",\"data_bytes\":")?];
    let (mut ranges, mut model, mut tokens) = (Vec::new(), BTreeSet::new(), Vec::new());
    let tiles = |place: u64, length: u64| place / TILE..(place + length.max(1)).div_ceil(TILE);
    let (cell, layer, a, b, c) = match *fault {
        Fault::Entry(entry) => {
            let value = |entry| trace.entry(entry);
            let reads = reads(trace.layout(), artifact.manifest(), entry, &value)?;
            for range in &reads.model {
                places.push(find(&format!("{{\"name\":\"{}\",\"kind\"", range.section))?);
                model.extend(tiles(range.place, range.length));
            }
            ranges = reads.trace;
            let Entry { array, layer, a, b, c } = entry;
            if array == 54 {
                // The referee knows their hash.
                let biases = &trace.sampling().logit_bias;
                tokens = biases.iter().flat_map(|&(token, milli)| [token, milli as u32]).collect();
            }
            (array, layer, a as u64, b, c)
        }
        Fault::Output(token) => {
            let entry = Entry { array: 63, layer: 0, a: token, b: 0, c: 0 };
            ranges.push(trace.layout().place(entry)?);
            tokens = trace.output().to_vec();
            (IS_OUTPUT, 0, token as u64, 0, 0)
        }
        Fault::Input(token) => {
            let entry = Entry { array: 0, layer: 0, a: token, b: 0, c: 0 };
            ranges.push(trace.layout().place(entry)?);
            tokens = if token < trace.prompt().len() { trace.prompt() } else { trace.output() }.to_vec();
            (IS_INPUT, 0, token as u64, 0, 0)
        }
        Fault::Size => (IS_SIZE, 0, 0, 0, 0),
        Fault::Padding { place, array, layer } => {
            ranges.push((place, 1));
            (IS_PADDING, layer, place, array, 0)
        }
        Fault::Length | Fault::PromptLength => {
            tokens = if *fault == Fault::Length { trace.output() } else { trace.prompt() }.to_vec();
            (IS_LENGTH, 0, 0, 0, 0)
        }
    };
    let opened: BTreeSet<u64> = ranges.iter().flat_map(|&(place, length)| tiles(place, length)).collect();
    let opened: Vec<_> = opened.into_iter().map(|index| known.tile(trace, index)).collect();
    let model: Option<Vec<_>> = model.into_iter().map(|index| model_tile(artifact, index)).collect();
    Some(json!({
        "subject": subject, "manifest": hex::encode_prefixed(&manifest), "trace": opened, "model": model?,
        "claim": {
            "cell": cell, "layer": layer, "a": a, "b": b, "c": c, "places": places, "tokens": tokens,
        },
    }))
}

const TILE: u64 = merkle::TILE as u64;

fn model_tile(artifact: &Artifact, index: u64) -> Option<Value> {
    Some(tile(index, artifact.tile(index)?, &artifact.tile_proof(index)?))
}

/// A tile with its siblings, as the contracts take it.
pub(crate) fn tile(index: u64, data: &[u8], siblings: &[Bytes32]) -> Value {
    json!({ "index": index, "data": hex::encode_prefixed(data), "siblings": siblings })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use assay_receipt::{FinishReason, Output, output_commitment, request_commitment};

    use super::*;

    #[test]
    fn hashes_are_those_of_the_commitments() {
        let mut request = Request::from_text(Bytes32([7; 32]), "a text", 9);
        request.sampling.logit_bias = vec![(4, -5), (9, 70_000)];
        request.sampling.frequency_penalty_milli = -3;
        request.stop = vec!["end".to_owned()];
        let output = Output {
            text: "so".to_owned(),
            tool_calls: None,
            finish_reason: FinishReason::Stop,
            tokens: vec![1, 2, 70_000],
            prompt_tokens: 4,
            completion_tokens: 3,
            logprobs: Vec::new(),
        };
        let salt = Bytes32([9; 32]);
        let check = |kind: &str, hash: [u8; 32], expected: Bytes32| {
            let mask = keccak256([format!("assay/{kind}").as_bytes(), &salt.0].concat());
            assert_eq!(keccak256([mask.0, hash].concat()), expected);
        };
        let hash = |data: Value, kind: &str| struct_hash(&data["types"], kind, &data["message"]).unwrap();
        let domain = Domain::default();
        check("request", hash(typed_data(&domain, &request), "Request"), request_commitment(&request, &salt));
        check("output", hash(typed_data(&domain, &output), "Output"), output_commitment(&output, &salt));
    }
}
