//! Keystores: the published vectors of the format, and everything that must not open one.
#![allow(clippy::unwrap_used)]

use assay_receipt::Key;
use assay_wallet::keystore::{KeystoreError, address, decrypt, encrypt};
use serde_json::{Value, json};

/// PBKDF2: the test vector of the Web3 Secret Storage Definition, password `testpassword`. scrypt: geth's vector with a secret of 31
/// bytes, password `foo`. (The definition's own vector for scrypt has N = 2^18 with r = 1, which RFC 7914 does not allow.)
fn published(kdf: &str) -> Value {
    let (iv, ciphertext, kdfparams, mac) = match kdf {
        "scrypt" => (
            "e0c41130a323adc1446fc82f724bca2f",
            "9517cd5bdbe69076f9bf5057248c6c050141e970efa36ce53692d5d59a3984",
            json!({"dklen": 32, "n": 2, "p": 1, "r": 8,
                "salt": "711f816911c92d649fb4c84b047915679933555030b3552c1212609b38208c63"}),
            "d5e116151c6aa71470e67a7d42c9620c75c4d23229847dcc127794f0732b0db5",
        ),
        _ => (
            "6087dab2f9fdbbfaddc31a909735c1e6",
            "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
            json!({"c": 262144, "dklen": 32, "prf": "hmac-sha256",
                "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"}),
            "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
        ),
    };
    json!({"version": 3, "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "crypto": {
        "cipher": "aes-128-ctr", "cipherparams": {"iv": iv}, "ciphertext": ciphertext,
        "kdf": kdf, "kdfparams": kdfparams, "mac": mac}})
}

fn secret(digits: &str) -> [u8; 32] {
    std::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
}

const SECRET: &str = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";

#[test]
fn the_published_vectors_open() {
    for (kdf, password, digits) in [
        ("pbkdf2", "testpassword", SECRET),
        ("scrypt", "foo", "00fa7b3db73dc7dfdf8c5fbdb796d741e4488628c41fc4febd9160a866ba0f35"),
    ] {
        let expected = Key::from_bytes(secret(digits)).unwrap().address();
        assert_eq!(decrypt(&published(kdf).to_string(), password).unwrap().address(), expected, "{kdf}");
    }
    assert_eq!(decrypt(&published("scrypt").to_string(), "fop").unwrap_err(), KeystoreError::Password);
}

#[test]
fn a_new_keystore_opens_with_its_password() {
    let file = encrypt(&secret(SECRET), "correct horse").unwrap();
    let key = Key::from_bytes(secret(SECRET)).unwrap();
    assert!(!file.contains("7a28b5ba"), "the secret is in it");
    assert_eq!(address(&file).unwrap(), key.address().to_string().to_lowercase());
    assert_eq!(decrypt(&file, "correct horse").unwrap().address(), key.address());
}

#[test]
fn what_was_changed_does_not_open() {
    let changes: &[(&str, Value)] = &[
        ("/crypto/ciphertext", json!("9617cd5bdbe69076f9bf5057248c6c050141e970efa36ce53692d5d59a3984")),
        ("/crypto/ciphertext", json!("d172")),
        ("/crypto/ciphertext", json!("zz")),
        ("/crypto/mac", json!("d6e116151c6aa71470e67a7d42c9620c75c4d23229847dcc127794f0732b0db5")),
        ("/crypto/mac", json!("")),
        ("/crypto/cipher", json!("aes-128-cbc")),
        ("/crypto/kdf", json!("pbkdf2")),
        ("/crypto/kdfparams/n", json!(262143)),
        ("/crypto/kdfparams/n", json!(1u64 << 40)),
        ("/crypto/kdfparams/n", json!(0)),
        ("/crypto/kdfparams/r", json!(0)),
        ("/crypto/kdfparams/r", json!(u32::MAX)),
        ("/crypto/kdfparams/p", json!(1_000_000)),
        ("/crypto/kdfparams/dklen", json!(16)),
        ("/version", json!(4)),
    ];
    for (pointer, value) in changes {
        let mut file = published("scrypt");
        *file.pointer_mut(pointer).unwrap() = value.clone();
        assert!(decrypt(&file.to_string(), "foo").is_err(), "{pointer} {value}");
    }
    let mut file = published("pbkdf2");
    file["crypto"]["kdfparams"]["c"] = json!(u32::MAX);
    assert!(matches!(decrypt(&file.to_string(), "testpassword"), Err(KeystoreError::Format(_))));
    for text in ["", "{}", "[]", "null", "{\"version\": 3}"] {
        assert!(matches!(decrypt(text, "x"), Err(KeystoreError::Format(_))));
    }
}
