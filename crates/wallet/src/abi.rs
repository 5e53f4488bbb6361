//! Calls of contracts in the words of their ABI ([Solidity's specification](https://docs.soliditylang.org/en/latest/abi-spec.html)):
//! JSON values in, bytes out, and back.
//!
//! Numbers are JSON numbers or strings, decimal or `0x…`; bytes and addresses are `0x…`; a tuple is a list, or an object with the names of
//! its components. What comes back has numbers of up to 48 bits as numbers and larger ones as decimal strings.

use std::collections::BTreeMap;

use assay_ledger::types::{Address, I256, U256, hex, keccak256};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Nested deeper than any contract of ours; bounds recursion.
const DEPTH: usize = 8;

/// Why a value does not fit a type, or bytes are no encoding.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AbiError {
    /// A JSON value that is not of the type.
    #[error("{0} where {1} belongs")]
    Value(String, String),
    /// Bytes that end too early, or point outside.
    #[error("the answer is no ABI encoding of {0}")]
    Data(String),
    /// The contract has no such function.
    #[error("the contract has no function {0} with {1} arguments")]
    NoFunction(String, usize),
    /// A type that Solidity does not have.
    #[error("{0:?} is no type of the ABI")]
    Type(String),
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `uintN`.
    Uint(usize),
    /// `intN`.
    Int(usize),
    /// `address`.
    Address,
    /// `bool`.
    Bool,
    /// `bytesN`.
    Fixed(usize),
    /// `bytes`.
    Bytes,
    /// `string`.
    String,
    /// `T[]`, or `T[n]`.
    List(Box<Type>, Option<usize>),
    /// `(…)`, with the names of its components.
    Tuple(Vec<(String, Type)>),
}

/// A parameter as the ABI's JSON has it.
#[derive(Clone, Debug, Deserialize)]
struct Parameter {
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    components: Vec<Parameter>,
    #[serde(default)]
    indexed: bool,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    inputs: Vec<Parameter>,
    #[serde(default)]
    outputs: Vec<Parameter>,
}

impl Parameter {
    fn read(&self) -> Result<(String, Type), AbiError> {
        let unknown = || AbiError::Type(self.kind.clone());
        let base = self.kind.split('[').next().unwrap_or_default();
        let bits = |text: &str| text.parse().ok().filter(|bits| bits % 8 == 0 && (8..=256).contains(bits));
        let mut found = match base {
            "address" => Type::Address,
            "bool" => Type::Bool,
            "bytes" => Type::Bytes,
            "string" => Type::String,
            "tuple" => Type::Tuple(self.components.iter().map(Self::read).collect::<Result<_, _>>()?),
            _ => match (base.strip_prefix("uint"), base.strip_prefix("int"), base.strip_prefix("bytes")) {
                (Some(n), _, _) => Type::Uint(bits(n).ok_or_else(unknown)?),
                (_, Some(n), _) => Type::Int(bits(n).ok_or_else(unknown)?),
                (_, _, Some(n)) => {
                    Type::Fixed(n.parse().ok().filter(|n| (1..=32).contains(n)).ok_or_else(unknown)?)
                }
                _ => return Err(unknown()),
            },
        };
        for part in self.kind[base.len()..].split_inclusive(']') {
            let length =
                part.strip_prefix('[').and_then(|part| part.strip_suffix(']')).ok_or_else(unknown)?;
            let length = (!length.is_empty()).then(|| length.parse().map_err(|_| unknown())).transpose()?;
            found = Type::List(Box::new(found), length);
        }
        Ok((self.name.clone(), found))
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uint(bits) => write!(f, "uint{bits}"),
            Self::Int(bits) => write!(f, "int{bits}"),
            Self::Address => f.write_str("address"),
            Self::Bool => f.write_str("bool"),
            Self::Fixed(bytes) => write!(f, "bytes{bytes}"),
            Self::Bytes => f.write_str("bytes"),
            Self::String => f.write_str("string"),
            Self::List(of, None) => write!(f, "{of}[]"),
            Self::List(of, Some(length)) => write!(f, "{of}[{length}]"),
            Self::Tuple(parts) => {
                let parts: Vec<_> = parts.iter().map(|(_, part)| part.to_string()).collect();
                write!(f, "({})", parts.join(","))
            }
        }
    }
}

impl Type {
    fn is_dynamic(&self) -> bool {
        match self {
            Self::Bytes | Self::String | Self::List(_, None) => true,
            Self::List(of, Some(_)) => of.is_dynamic(),
            Self::Tuple(parts) => parts.iter().any(|(_, part)| part.is_dynamic()),
            _ => false,
        }
    }

    /// Bytes in the head of what it is part of.
    fn head(&self) -> usize {
        match self {
            _ if self.is_dynamic() => 32,
            Self::List(of, Some(length)) => of.head() * length,
            Self::Tuple(parts) => parts.iter().map(|(_, part)| part.head()).sum(),
            _ => 32,
        }
    }

    fn wrong(&self, value: &Value) -> AbiError {
        let mut text = value.to_string();
        if text.len() > 80 {
            text.truncate(text.floor_char_boundary(77));
            text.push_str("...");
        }
        AbiError::Value(text, self.to_string())
    }

    fn encode(&self, value: &Value, out: &mut Vec<u8>) -> Result<(), AbiError> {
        let wrong = || self.wrong(value);
        match self {
            Self::Uint(bits) => {
                let number = number(value).ok_or_else(wrong)?;
                if number.bit_len() > *bits {
                    return Err(wrong());
                }
                out.extend(number.to_be_bytes::<32>());
            }
            Self::Int(bits) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let number: I256 = text.parse().map_err(|_| wrong())?;
                let size = if number.is_negative() { !number } else { number };
                if size.into_raw().bit_len() >= *bits {
                    return Err(wrong());
                }
                out.extend(number.into_raw().to_be_bytes::<32>());
            }
            Self::Address => {
                let address: Address = value.as_str().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
                out.extend(address.into_word().0);
            }
            Self::Bool => out.extend(U256::from(value.as_bool().ok_or_else(wrong)?).to_be_bytes::<32>()),
            Self::Fixed(length) => {
                let bytes = bytes(value).filter(|bytes| bytes.len() == *length).ok_or_else(wrong)?;
                padded(&bytes, out);
            }
            Self::Bytes => lengthy(&bytes(value).ok_or_else(wrong)?, out),
            Self::String => lengthy(value.as_str().ok_or_else(wrong)?.as_bytes(), out),
            Self::List(of, length) => {
                let list = value.as_array().ok_or_else(wrong)?;
                match length {
                    Some(length) if *length != list.len() => return Err(wrong()),
                    Some(_) => {}
                    None => out.extend(U256::from(list.len()).to_be_bytes::<32>()),
                }
                sequence(list.iter().map(|value| (&**of, value)), out)?;
            }
            Self::Tuple(parts) => {
                let values: Vec<&Value> = match value {
                    Value::Array(list) if list.len() == parts.len() => list.iter().collect(),
                    // Every component, and nothing else: a misspelt name must not become a zero.
                    Value::Object(map) if map.len() == parts.len() => parts
                        .iter()
                        .map(|(name, _)| map.get(name).ok_or_else(wrong))
                        .collect::<Result<_, _>>()?,
                    _ => return Err(wrong()),
                };
                sequence(parts.iter().map(|(_, part)| part).zip(values), out)?;
            }
        }
        Ok(())
    }

    /// Reads a value whose head is at `at` of `data`, from where offsets count.
    fn decode(&self, data: &[u8], at: usize, depth: usize) -> Result<Value, AbiError> {
        let bad = || AbiError::Data(self.to_string());
        if depth == 0 {
            return Err(bad());
        }
        let word = |data: &[u8], at: usize| -> Result<U256, AbiError> {
            let end = at.checked_add(32).ok_or_else(bad)?;
            Ok(U256::from_be_slice(data.get(at..end).ok_or_else(bad)?))
        };
        let small = |value: U256| usize::try_from(value).ok().filter(|n| *n <= data.len()).ok_or_else(bad);
        let (data, at) = if self.is_dynamic() {
            (data.get(small(word(data, at)?)?..).ok_or_else(bad)?, 0)
        } else {
            (data, at)
        };
        Ok(match self {
            Self::Uint(bits) => {
                let number = word(data, at)?;
                if number.bit_len() > *bits {
                    return Err(bad());
                }
                if *bits <= 48 {
                    Value::from(number.saturating_to::<u64>())
                } else {
                    number.to_string().into()
                }
            }
            Self::Int(bits) => {
                let number = I256::from_raw(word(data, at)?);
                match i64::try_from(number) {
                    Ok(number) if *bits <= 48 => number.into(),
                    _ => number.to_string().into(),
                }
            }
            Self::Address => {
                let word = word(data, at)?.to_be_bytes::<32>();
                if word[..12] != [0; 12] {
                    return Err(bad());
                }
                Address::from_slice(&word[12..]).to_string().into()
            }
            Self::Bool => match word(data, at)? {
                word if word > U256::from(1) => return Err(bad()),
                word => (!word.is_zero()).into(),
            },
            Self::Fixed(length) => {
                let word = word(data, at)?.to_be_bytes::<32>();
                format!("0x{}", hex::encode(&word[..*length])).into()
            }
            Self::Bytes | Self::String => {
                let length = small(word(data, 0)?)?;
                let bytes = data.get(32..).and_then(|rest| rest.get(..length)).ok_or_else(bad)?;
                match self {
                    Self::String => String::from_utf8_lossy(bytes).into_owned().into(),
                    _ => format!("0x{}", hex::encode(bytes)).into(),
                }
            }
            Self::List(of, length) => {
                let (count, start) = match length {
                    Some(length) => (*length, at),
                    None => (small(word(data, 0)?)?, 32),
                };
                let data = data.get(start..).ok_or_else(bad)?;
                // So that a length from outside cannot ask for more memory than it sent.
                if count.checked_mul(of.head().max(1)).is_none_or(|bytes| bytes > data.len()) {
                    return Err(bad());
                }
                let items = (0..count).map(|i| of.decode(data, i * of.head(), depth - 1));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Self::Tuple(parts) => {
                let data = data.get(at..).ok_or_else(bad)?;
                let mut found = Map::new();
                let mut at = 0;
                for (i, (name, part)) in parts.iter().enumerate() {
                    let name = if name.is_empty() { i.to_string() } else { name.clone() };
                    found.insert(name, part.decode(data, at, depth - 1)?);
                    at += part.head();
                }
                Value::Object(found)
            }
        })
    }
}

/// A number of JSON, or a string with one, decimal or hexadecimal.
pub fn number(value: &Value) -> Option<U256> {
    match value {
        Value::Number(number) => Some(U256::from(number.as_u64()?)),
        Value::String(text) if !text.is_empty() && !text.starts_with('-') => text.parse().ok(),
        _ => None,
    }
}

/// An address or a hash as a JSON value.
pub fn text(value: impl std::fmt::Display) -> Value {
    Value::from(value.to_string())
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    hex::decode(value.as_str()?.strip_prefix("0x")?).ok()
}

fn padded(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(bytes);
    out.extend(std::iter::repeat_n(0, bytes.len().next_multiple_of(32) - bytes.len()));
}

fn lengthy(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(U256::from(bytes.len()).to_be_bytes::<32>());
    padded(bytes, out);
}

fn sequence<'a>(
    parts: impl Iterator<Item = (&'a Type, &'a Value)> + Clone,
    out: &mut Vec<u8>,
) -> Result<(), AbiError> {
    let heads: usize = parts.clone().map(|(kind, _)| kind.head()).sum();
    let mut tail = Vec::new();
    for (kind, value) in parts {
        if kind.is_dynamic() {
            out.extend(U256::from(heads + tail.len()).to_be_bytes::<32>());
            kind.encode(value, &mut tail)?;
        } else {
            kind.encode(value, out)?;
        }
    }
    out.extend(tail);
    Ok(())
}

/// A function, an event or an error.
#[derive(Clone, Debug)]
pub struct Signature {
    /// Its name.
    pub name: String,
    inputs: Vec<(String, Type)>,
    outputs: Vec<(String, Type)>,
}

impl Signature {
    /// Its name and the types of its inputs, as they are hashed.
    pub fn text(&self) -> String {
        let inputs: Vec<_> = self.inputs.iter().map(|(_, kind)| kind.to_string()).collect();
        format!("{}({})", self.name, inputs.join(","))
    }

    /// keccak256 of [`text`](Self::text): the first four bytes select a function or an error, all of it an event.
    pub fn hash(&self) -> [u8; 32] {
        keccak256(self.text()).0
    }

    /// The arguments of a call alone.
    pub fn arguments(&self, arguments: &[Value]) -> Result<Vec<u8>, AbiError> {
        if arguments.len() != self.inputs.len() {
            return Err(AbiError::NoFunction(self.name.clone(), arguments.len()));
        }
        let mut out = Vec::new();
        sequence(self.inputs.iter().map(|(_, kind)| kind).zip(arguments), &mut out)?;
        Ok(out)
    }

    /// Selector and arguments.
    pub fn call(&self, arguments: &[Value]) -> Result<Vec<u8>, AbiError> {
        let mut out = self.hash()[..4].to_vec();
        out.extend(self.arguments(arguments)?);
        Ok(out)
    }

    /// One argument alone, as Solidity's `abi.encode` of it.
    pub fn encode_input(&self, index: usize, value: &Value) -> Result<Vec<u8>, AbiError> {
        let (_, kind) =
            self.inputs.get(index).ok_or_else(|| AbiError::NoFunction(self.name.clone(), index + 1))?;
        let mut out = Vec::new();
        sequence(std::iter::once((kind, value)), &mut out)?;
        Ok(out)
    }

    /// What a call gave, or a log's data: the value itself where there is one, an object by names otherwise.
    pub fn output(&self, data: &[u8]) -> Result<Value, AbiError> {
        let whole = Type::Tuple(self.outputs.clone());
        let Value::Object(parts) = decode_parts(&whole, data)? else {
            return Err(AbiError::Data(whole.to_string()));
        };
        let mut parts: Vec<_> = parts.into_iter().collect();
        if parts.len() == 1
            && let Some((_, value)) = parts.pop()
        {
            return Ok(value);
        }
        Ok(Value::Object(parts.into_iter().collect()))
    }

    /// The inputs in a call's arguments, by names.
    pub fn input(&self, data: &[u8]) -> Result<Value, AbiError> {
        decode_parts(&Type::Tuple(self.inputs.clone()), data)
    }
}

/// Arguments and outputs are a tuple whose own offset is left out.
fn decode_parts(tuple: &Type, data: &[u8]) -> Result<Value, AbiError> {
    let Type::Tuple(parts) = tuple else { return Err(AbiError::Type(tuple.to_string())) };
    let mut found = Map::new();
    let mut at = 0;
    for (i, (name, part)) in parts.iter().enumerate() {
        let name = if name.is_empty() { i.to_string() } else { name.clone() };
        found.insert(name, part.decode(data, at, DEPTH)?);
        at += part.head();
    }
    Ok(Value::Object(found))
}

/// A contract's ABI and code.
#[derive(Clone, Debug)]
pub struct Contract {
    functions: Vec<Signature>,
    errors: Vec<Signature>,
    events: Vec<Signature>,
    constructor: Signature,
    /// Its init code.
    pub bytecode: Vec<u8>,
}

impl Contract {
    /// Reads an artifact: `abi`, `bytecode`.
    pub fn parse(json: &str) -> Result<Self, AbiError> {
        #[derive(Deserialize)]
        struct Artifact {
            abi: Vec<Entry>,
            bytecode: String,
        }
        let artifact: Artifact =
            serde_json::from_str(json).map_err(|error| AbiError::Type(error.to_string()))?;
        let constructor = Signature { name: String::new(), inputs: Vec::new(), outputs: Vec::new() };
        let bytecode = hex::decode(&artifact.bytecode).map_err(|_| AbiError::Type("bytecode".to_owned()))?;
        let mut contract =
            Self { functions: Vec::new(), errors: Vec::new(), events: Vec::new(), constructor, bytecode };
        for entry in artifact.abi {
            let read = |list: &[Parameter]| list.iter().map(Parameter::read).collect::<Result<Vec<_>, _>>();
            // What a log's data has: the rest is among its topics.
            let outputs = match entry.kind.as_str() {
                "event" => entry.inputs.iter().filter(|input| !input.indexed).cloned().collect(),
                _ => entry.outputs,
            };
            let signature =
                Signature { name: entry.name, inputs: read(&entry.inputs)?, outputs: read(&outputs)? };
            match entry.kind.as_str() {
                "function" => contract.functions.push(signature),
                "error" => contract.errors.push(signature),
                "event" => contract.events.push(signature),
                "constructor" => contract.constructor = signature,
                _ => {}
            }
        }
        Ok(contract)
    }

    /// The function with a name and a number of arguments.
    pub fn function(&self, name: &str, arguments: usize) -> Result<&Signature, AbiError> {
        self.functions
            .iter()
            .find(|function| function.name == name && function.inputs.len() == arguments)
            .ok_or_else(|| AbiError::NoFunction(name.to_owned(), arguments))
    }

    /// An event; [`Signature::output`] reads a log's data.
    pub fn event(&self, name: &str) -> Option<&Signature> {
        self.events.iter().find(|event| event.name == name)
    }

    /// Selector and arguments of a call.
    pub fn call(&self, name: &str, arguments: &[Value]) -> Result<Vec<u8>, AbiError> {
        self.function(name, arguments.len())?.call(arguments)
    }

    /// Init code with the constructor's arguments.
    pub fn create(&self, arguments: &[Value]) -> Result<Vec<u8>, AbiError> {
        Ok([self.bytecode.clone(), self.constructor.arguments(arguments)?].concat())
    }

    /// A call's function and its arguments by name.
    pub fn explain(&self, data: &[u8]) -> Option<(String, Value)> {
        let function = self.functions.iter().find(|function| data.starts_with(&function.hash()[..4]))?;
        Some((function.name.clone(), function.input(data.get(4..)?).ok()?))
    }

    /// What a revert means, in one of this contract's own errors: `Name {…}`.
    pub fn error(&self, data: &[u8]) -> Option<String> {
        let error = self.errors.iter().find(|error| data.starts_with(&error.hash()[..4]))?;
        let values = error.input(data.get(4..)?).ok()?;
        let values = values.as_object()?;
        if values.is_empty() {
            return Some(error.name.clone());
        }
        let values: Vec<_> = values
            .iter()
            .map(|(name, value)| {
                format!("{name} {}", value.as_str().map_or(value.to_string(), str::to_owned))
            })
            .collect();
        Some(format!("{} ({})", error.name, values.join(", ")))
    }

    /// The functions' signatures by name.
    pub fn functions(&self) -> BTreeMap<&str, String> {
        self.functions.iter().map(|function| (function.name.as_str(), function.text())).collect()
    }
}
