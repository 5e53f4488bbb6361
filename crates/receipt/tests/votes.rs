//! What is taken for a validator's vote, and what is not.
#![allow(clippy::unwrap_used)]

use assay_receipt::votes::{is_signed, message, varint};

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
}

#[test]
fn numbers_have_one_encoding() {
    let read = |bytes: &[u8]| varint(&mut &bytes[..]);
    assert_eq!(read(&[0]), Some(0));
    assert_eq!(read(&[0x7f]), Some(127));
    assert_eq!(read(&[0x80, 1]), Some(128));
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Some(u64::MAX));
    // Longer than needed, beyond 64 bits, cut off, nothing.
    assert_eq!(read(&[0x80, 0]), None);
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), None);
    assert_eq!(read(&[0x80; 11]), None);
    assert_eq!(read(&[0x80]), None);
    assert_eq!(read(&[]), None);
}

#[test]
fn messages_differ_by_chain_kind_and_subject() {
    let genesis = [7; 32];
    let whole = message(&genesis, "_NULLIFY", &[1, 2]);
    assert_eq!(usize::from(whole[0]), whole.len() - 1 - 2);
    for other in [
        message(&[8; 32], "_NULLIFY", &[1, 2]),
        message(&genesis, "_FINALIZE", &[1, 2]),
        message(&genesis, "_NULLIFY", &[1]),
    ] {
        assert_ne!(whole, other);
    }
}

#[test]
fn signatures_hold_as_zip_215_says() {
    // RFC 8032, 7.1, test 2.
    let key = bytes("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    let signature: [u8; 64] = bytes(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
    assert!(is_signed(&key, &[0x72], &signature));
    assert!(!is_signed(&key, &[0x73], &signature));
    for i in 0..64 {
        let mut other = signature;
        other[i] ^= 1;
        assert!(!is_signed(&key, &[0x72], &other), "byte {i}");
    }
    let mut other = key;
    other[0] ^= 1;
    assert!(!is_signed(&other, &[0x72], &signature));
    // The same response plus the group's order is refused.
    let order = bytes::<32>("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let (mut high, mut carry) = (signature, 0u16);
    for (byte, add) in high[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert!(!is_signed(&key, &[0x72], &high));
    // Where ZIP 215 and stricter rules part: points of small order count, in encodings that are not the shortest too (y = p + 1).
    let (mut short, mut long) = ([0; 32], [0xff; 32]);
    short[0] = 1;
    (long[0], long[31]) = (0xee, 0x7f);
    for (key, point) in [(short, short), (long, short), (short, long)] {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&point);
        assert!(is_signed(&key, b"anything", &signature));
        signature[32] = 1;
        assert!(!is_signed(&key, b"anything", &signature));
    }
}
