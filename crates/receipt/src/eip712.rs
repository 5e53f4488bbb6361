//! EIP-712 hashing. Every hashed type lists its fields once, in [`Typed::fields`]; the hash and the JSON of the typed
//! data are two readings of that list, and a test holds both against the written type strings.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha3::{Digest as _, Keccak256};

use crate::bytes::{Address, Bytes32};

/// Keccak-256 as Ethereum uses it.
///
/// ```
/// let empty = assay_receipt::keccak256([]);
/// assert!(empty.to_string().starts_with("0xc5d24601"));
/// ```
pub fn keccak256(bytes: impl AsRef<[u8]>) -> Bytes32 {
    Bytes32(Keccak256::digest(bytes.as_ref()).into())
}

/// Where statements count: EIP-712 domain with name `Assay` and version `1`. A statement made for one domain has no
/// meaning in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// EVM chain id of the settlement chain.
    pub chain_id: u64,
    /// Settlement contract on that chain; any fixed address for a deployment without a chain.
    pub contract: Address,
}

impl Default for Domain {
    /// A private deployment without a chain: chain id 31337, the usual one of development chains, and a fixed address.
    fn default() -> Self {
        Domain { chain_id: 31337, contract: Address([0x11; 20]) }
    }
}

const DOMAIN_TYPE: &str =
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";

impl Domain {
    /// EIP-712 domain separator.
    pub fn separator(&self) -> Bytes32 {
        let mut words = Words::of(DOMAIN_TYPE);
        words.string("name", "Assay");
        words.string("version", "1");
        words.uint("chainId", 256, self.chain_id.into());
        words.address("verifyingContract", &self.contract);
        words.hash()
    }

    /// Digest that is signed for a value: `keccak256(0x1901 || separator || hashStruct(value))`.
    pub fn digest<T: Typed>(&self, value: &T) -> Bytes32 {
        let mut preimage = vec![0x19, 0x01];
        preimage.extend(self.separator().0);
        preimage.extend(value.struct_hash().0);
        keccak256(preimage)
    }
}

pub(crate) mod sealed {
    /// Keeps the hashed types to those of this crate, whose encodings `docs/receipt.md` fixes.
    pub trait Sealed {}
}

/// A type with an EIP-712 struct hash.
pub trait Typed: sealed::Sealed {
    /// Type strings: first its own, then those of the types it refers to, sorted by name; joined they are
    /// EIP-712's `encodeType`.
    const TYPES: &'static [&'static str];

    /// Passes every field to `visitor` in the order of the type string.
    fn fields<V: Fields>(&self, visitor: &mut V);

    /// EIP-712 `hashStruct`.
    fn struct_hash(&self) -> Bytes32 {
        let mut words = Words::of(&Self::TYPES.concat());
        self.fields(&mut words);
        words.hash()
    }
}

/// What may be signed on its own: [`Receipt`](crate::Receipt), [`Failure`](crate::Failure),
/// [`Audit`](crate::Audit), [`Members`](crate::Members) and the chunk links.
pub trait Statement: Typed {
    /// The address that the statement names as its author, where it names one.
    fn author(&self) -> Option<Address>;
}

/// Receives the fields of a hashed type, in order, with the names and widths of the type string.
pub trait Fields {
    /// `uint<bits>`.
    fn uint(&mut self, name: &'static str, bits: u16, value: u128);
    /// `bool`.
    fn bool(&mut self, name: &'static str, value: bool);
    /// `int32`.
    fn int32(&mut self, name: &'static str, value: i32);
    /// `address`.
    fn address(&mut self, name: &'static str, value: &Address);
    /// `bytes32`.
    fn bytes32(&mut self, name: &'static str, value: &Bytes32);
    /// `string`.
    fn string(&mut self, name: &'static str, value: &str);
    /// `string[]`.
    fn strings<'a>(&mut self, name: &'static str, values: impl Iterator<Item = &'a str>);
    /// `uint<bits>[]`.
    fn uints(&mut self, name: &'static str, bits: u16, values: impl Iterator<Item = u32>);
    /// Another struct.
    fn one<T: Typed>(&mut self, name: &'static str, value: &T);
    /// An array of another struct.
    fn many<T: Typed>(&mut self, name: &'static str, values: &[T]);
}

/// The words of EIP-712's `encodeData`, one a field. Where every field has a fixed size (no string, array or struct), as in
/// [`Receipt`](crate::Receipt) and [`Voucher`](crate::Voucher), they are what the ABI encodes.
pub fn encode_data<T: Typed>(value: &T) -> Vec<u8> {
    let mut words = Words(Vec::new());
    value.fields(&mut words);
    words.0
}

/// What takes words.
trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for Keccak256 {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// The words of `encodeData`. To be hashed, they are never held together: a list of small numbers takes eight times the memory as words.
struct Words<S>(S);

impl Words<Keccak256> {
    fn of(types: &str) -> Self {
        let mut words = Words(Keccak256::new());
        words.put(&keccak256(types).0);
        words
    }
    fn hash(self) -> Bytes32 {
        Bytes32(self.0.finalize().into())
    }
}

impl<S: Sink> Words<S> {
    fn put(&mut self, bytes: &[u8]) {
        self.0.put(bytes);
    }
    fn array_of(&mut self, fill: impl FnOnce(&mut Words<Keccak256>)) {
        let mut inner = Words(Keccak256::new());
        fill(&mut inner);
        self.put(&inner.hash().0);
    }
}

impl<S: Sink> Fields for Words<S> {
    fn uint(&mut self, _: &'static str, _: u16, value: u128) {
        self.put(&[0; 16]);
        self.put(&value.to_be_bytes());
    }
    fn bool(&mut self, name: &'static str, value: bool) {
        self.uint(name, 8, value.into());
    }
    fn int32(&mut self, _: &'static str, value: i32) {
        self.put(&[if value < 0 { 0xff } else { 0 }; 28]);
        self.put(&value.to_be_bytes());
    }
    fn address(&mut self, _: &'static str, value: &Address) {
        self.put(&[0; 12]);
        self.put(&value.0);
    }
    fn bytes32(&mut self, _: &'static str, value: &Bytes32) {
        self.put(&value.0);
    }
    fn string(&mut self, _: &'static str, value: &str) {
        self.put(&keccak256(value).0);
    }
    fn strings<'a>(&mut self, name: &'static str, values: impl Iterator<Item = &'a str>) {
        self.array_of(|inner| values.for_each(|value| inner.string(name, value)));
    }
    fn uints(&mut self, name: &'static str, bits: u16, values: impl Iterator<Item = u32>) {
        self.array_of(|inner| values.for_each(|value| inner.uint(name, bits, value.into())));
    }
    fn one<T: Typed>(&mut self, _: &'static str, value: &T) {
        self.put(&value.struct_hash().0);
    }
    fn many<T: Typed>(&mut self, _: &'static str, values: &[T]) {
        self.array_of(|inner| values.iter().for_each(|value| inner.put(&value.struct_hash().0)));
    }
}

/// The `message` of typed data. Integers wider than 32 bits become decimal strings, which every library takes.
struct Json(Map<String, Value>);

impl Json {
    fn of<T: Typed>(value: &T) -> Value {
        let mut json = Json(Map::new());
        value.fields(&mut json);
        Value::Object(json.0)
    }
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }
}

impl Fields for Json {
    fn uint(&mut self, name: &'static str, bits: u16, value: u128) {
        let value = if bits <= 32 { json!(value as u32) } else { json!(value.to_string()) };
        self.put(name, value);
    }
    fn bool(&mut self, name: &'static str, value: bool) {
        self.put(name, value);
    }
    fn int32(&mut self, name: &'static str, value: i32) {
        self.put(name, value);
    }
    fn address(&mut self, name: &'static str, value: &Address) {
        self.put(name, value.to_string());
    }
    fn bytes32(&mut self, name: &'static str, value: &Bytes32) {
        self.put(name, value.to_string());
    }
    fn string(&mut self, name: &'static str, value: &str) {
        self.put(name, value);
    }
    fn strings<'a>(&mut self, name: &'static str, values: impl Iterator<Item = &'a str>) {
        self.put(name, values.map(Value::from).collect::<Value>());
    }
    fn uints(&mut self, name: &'static str, _: u16, values: impl Iterator<Item = u32>) {
        self.put(name, values.map(Value::from).collect::<Value>());
    }
    fn one<T: Typed>(&mut self, name: &'static str, value: &T) {
        self.put(name, Json::of(value));
    }
    fn many<T: Typed>(&mut self, name: &'static str, values: &[T]) {
        self.put(name, values.iter().map(Json::of).collect::<Value>());
    }
}

/// The `types` of the standard JSON form of EIP-712 for a type and those it refers to, without `EIP712Domain`.
pub fn type_definitions<T: Typed>() -> Value {
    let definitions = T::TYPES.iter().map(|text| {
        let (name, members) = definition(text);
        let members: Value = members.map(|(kind, name)| json!({ "name": name, "type": kind })).collect();
        (name.to_string(), members)
    });
    Value::Object(definitions.collect())
}

/// The standard JSON form of EIP-712 (`types`, `domain`, `primaryType`, `message`), as `eth_signTypedData_v4` takes it.
pub fn typed_data<T: Typed>(domain: &Domain, value: &T) -> Value {
    let mut types = type_definitions::<T>();
    let (name, members) = definition(DOMAIN_TYPE);
    types[name] = members.map(|(kind, name)| json!({ "name": name, "type": kind })).collect();
    json!({
        "types": types,
        "domain": {
            "name": "Assay",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.contract,
        },
        "primaryType": definition(T::TYPES[0]).0,
        "message": Json::of(value),
    })
}

/// Splits a type string into its name and its (type, name) pairs.
fn definition(text: &'static str) -> (&'static str, impl Iterator<Item = (&'static str, &'static str)>) {
    let (name, rest) = text.split_once('(').unwrap_or((text, ""));
    let members = rest.trim_end_matches(')').split(',').filter_map(|member| member.split_once(' '));
    (name, members)
}
