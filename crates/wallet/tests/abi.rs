//! The examples of Solidity's specification, round trips, and bytes from outside.
#![allow(clippy::unwrap_used)]

use assay_ledger::types::hex;
use assay_wallet::abi::{AbiError, Contract};
use assay_wallet::system::{Description, System, contract, explain_call, explain_error};
use proptest::prelude::*;
use serde_json::{Value, json};

fn made(functions: &[(&str, &[&str])]) -> Contract {
    let abi: Vec<Value> = functions
        .iter()
        .map(|(name, types)| {
            let inputs: Vec<_> = types.iter().map(|kind| json!({"name": "", "type": kind})).collect();
            json!({"type": "function", "name": name, "inputs": inputs, "outputs": inputs})
        })
        .collect();
    Contract::parse(&json!({"abi": abi, "bytecode": "0x"}).to_string()).unwrap()
}

#[test]
fn the_examples_of_the_specification() {
    let contract = made(&[
        ("baz", &["uint32", "bool"]),
        ("bar", &["bytes3[2]"]),
        ("sam", &["bytes", "bool", "uint256[]"]),
        ("f", &["uint256", "uint32[]", "bytes10", "bytes"]),
        ("g", &["uint256[][]", "string[]"]),
    ]);
    let word = |number: u64| format!("{number:064x}");
    let text = |text: &str| format!("{:0<64}", hex::encode(text));
    let cases = [
        ("baz", json!([69, true]), "cdcd77c0", vec![word(69), word(1)]),
        ("bar", json!([["0x616263", "0x646566"]]), "fce353f6", vec![text("abc"), text("def")]),
        (
            "sam",
            json!(["0x64617665", true, [1, 2, 3]]),
            "a5643bf2",
            vec![word(0x60), word(1), word(0xa0), word(4), text("dave"), word(3), word(1), word(2), word(3)],
        ),
        (
            "f",
            json!(["0x123", ["0x456", "0x789"], "0x31323334353637383930", "0x48656c6c6f2c20776f726c6421"]),
            "8be65246",
            vec![
                word(0x123),
                word(0x80),
                text("1234567890"),
                word(0xe0),
                word(2),
                word(0x456),
                word(0x789),
                word(13),
                text("Hello, world!"),
            ],
        ),
        (
            "g",
            json!([[[1, 2], [3]], ["one", "two", "three"]]),
            "2289b18c",
            vec![
                word(0x40),
                word(0x140),
                word(2),
                word(0x40),
                word(0xa0),
                word(2),
                word(1),
                word(2),
                word(1),
                word(3),
                word(3),
                word(0x60),
                word(0xa0),
                word(0xe0),
                word(3),
                text("one"),
                word(3),
                text("two"),
                word(5),
                text("three"),
            ],
        ),
    ];
    for (name, arguments, selector, words) in cases {
        let arguments = arguments.as_array().unwrap();
        let call = contract.call(name, arguments).unwrap();
        assert_eq!(hex::encode(&call), format!("{selector}{}", words.concat()), "{name}");
        let (found, values) = contract.explain(&call).unwrap();
        assert_eq!((found.as_str(), values.as_object().unwrap().len()), (name, arguments.len()));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let contract = made(&[
        ("f", &["uint8"]),
        ("f", &["int8", "bool"]),
        ("g", &["address"]),
        ("h", &["bytes4"]),
        ("l", &["uint8[2]"]),
    ]);
    for (name, arguments) in [
        ("f", json!([256])),
        ("f", json!([-1])),
        ("f", json!(["-1"])),
        ("f", json!(["1.5"])),
        ("f", json!([1.5])),
        ("f", json!([""])),
        ("f", json!([null])),
        ("f", json!([128, true])),
        ("f", json!([-129, true])),
        ("f", json!([1, 1])),
        ("g", json!(["0x12"])),
        ("h", json!(["0x123456"])),
        ("h", json!(["12345678"])),
        ("l", json!([[1]])),
        ("l", json!([[1, 2, 3]])),
    ] {
        let error = contract.call(name, arguments.as_array().unwrap()).unwrap_err();
        assert!(matches!(error, AbiError::Value(..)), "{name} {arguments}: {error}");
    }
    assert!(contract.call("f", json!([-128, true]).as_array().unwrap()).is_ok());
    assert!(matches!(contract.call("f", &[]), Err(AbiError::NoFunction(..))));
    assert!(matches!(contract.call("nothing", &[]), Err(AbiError::NoFunction(..))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_encoded_is_decoded(
        numbers in proptest::collection::vec(any::<u64>(), 0..5),
        texts in proptest::collection::vec(".{0,40}", 0..4),
        bytes in proptest::collection::vec(any::<u8>(), 0..70),
        small in any::<i8>(),
    ) {
        let contract = made(&[("f", &["uint256[]", "string[]", "bytes", "int8", "bytes2[1]"])]);
        let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
        let arguments =
            json!([numbers, texts, format!("0x{}", hex::encode(&bytes)), small, ["0xabcd"]]);
        let call = contract.call("f", arguments.as_array().unwrap()).unwrap();
        let found = contract.function("f", 5).unwrap().output(&call[4..]).unwrap();
        let found: Vec<Value> = found.as_object().unwrap().values().cloned().collect();
        prop_assert_eq!(Value::Array(found), arguments);
        // Every cut is noticed, and no garbage panics or asks for memory.
        for length in 0..call.len() - 4 {
            prop_assert!(contract.function("f", 5).unwrap().output(&call[4..4 + length]).is_err() || length > 160);
        }
    }

    #[test]
    fn garbage_is_refused_quietly(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(32), any::<u8>()], 0..512)) {
        let contract = made(&[("f", &["uint256[][]", "string[]", "bytes", "bool[3]"])]);
        let _ = contract.function("f", 4).unwrap().output(&bytes);
        let _ = explain_error(&bytes);
    }
}

#[test]
fn errors_and_calls_are_put_in_words() {
    let system = System::of_genesis();
    let call = system.prepare("Registry", "setParameters", &[json!("5"), json!(1_209_600)]).unwrap();
    let (name, function, arguments) = explain_call(&system, call.to.unwrap(), &call.data).unwrap();
    assert_eq!((name, function.as_str()), ("Registry", "setParameters"));
    assert_eq!(arguments, json!({"leastBond_": "5", "delay_": "1209600"}));
    // `NotYet(uint256)`.
    let data = hex::decode(format!("{}{:064x}", &hex::encode(keccak("NotYet(uint256)"))[..8], 1_800_000_000))
        .unwrap();
    assert_eq!(explain_error(&data).unwrap(), "NotYet (time 1800000000)");
    assert_eq!(explain_error(&[1, 2, 3, 4]), None);
}

fn keccak(text: &str) -> [u8; 32] {
    assay_ledger::types::keccak256(text).0
}

fn example() -> Value {
    let mut example: Value =
        serde_json::from_str(include_str!("../../../contracts/genesis.example.json")).unwrap();
    example["chainId"] = json!(7);
    example["timestamp"] = json!(1_800_000_000);
    example
}

#[test]
fn a_description_becomes_a_genesis_with_every_contract() {
    let genesis = Description::from_json(&example().to_string()).unwrap().genesis(0).unwrap();
    let (_, first) = genesis.execute().unwrap();
    let system = System::of_genesis();
    for (name, address) in system.contracts() {
        assert!(!first.state.account(&address).unwrap().code().is_empty(), "{name}");
        assert!(contract(name).is_some());
    }
    assert_eq!(system.contracts().count(), 17);
}

#[test]
fn a_description_that_is_wrong_is_refused() {
    for (pointer, value, words) in [
        ("/supply/0/holder", json!("nobody"), "neither an address nor a contract"),
        ("/supply/0/amount", json!("1e9"), "where"),
        ("/guardian", json!("0x12"), "where address belongs"),
        ("/parameters/staking/seats", json!("many"), "where"),
        ("/parameters/staking", json!({"seats": 1}), "where"),
        ("/parameters/timelock", json!({}), "where uint256 belongs"),
        ("/chainId", json!("seven"), "could not be read"),
    ] {
        let mut wrong = example();
        *wrong.pointer_mut(pointer).unwrap() = value;
        let error = match Description::from_json(&wrong.to_string()) {
            Ok(description) => description.genesis(0).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(words), "{pointer}: {error}");
    }
    // Contracts judge their parameters themselves.
    let mut wrong = example();
    wrong["parameters"]["staking"]["unbonding"] = json!(1);
    let error =
        Description::from_json(&wrong.to_string()).unwrap().genesis(0).unwrap().execute().unwrap_err();
    assert!(error.to_string().contains("staking"), "{error}");
    let mut wrong = example();
    wrong.as_object_mut().unwrap().remove("chainId");
    assert!(Description::from_json(&wrong.to_string()).unwrap().genesis(0).is_err());
    let mut wrong = example();
    wrong["surprise"] = json!(1);
    assert!(Description::from_json(&wrong.to_string()).is_err());
}
