//! Votes of the chain's validators, as far as one can check them without the consensus library: commonware's simplex.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use sha2::{Digest, Sha512};

/// Takes a number off the front of `bytes`: LEB128, as short as can be. `None` where there is none.
///
/// ```
/// let mut bytes: &[u8] = &[0xac, 0x02, 7];
/// assert_eq!((assay_receipt::votes::varint(&mut bytes), bytes), (Some(300), [7].as_slice()));
/// ```
pub fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 || byte == 0 && shift > 0 {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What a validator signs with a vote about `subject` on the chain that begins with the block of hash `genesis`. The suffix says which kind
/// of vote it is: `_NOTARIZE`, `_NULLIFY` or `_FINALIZE`.
pub fn message(genesis: &[u8; 32], suffix: &str, subject: &[u8]) -> Vec<u8> {
    let namespace = [b"assay consensus ".as_slice(), genesis, suffix.as_bytes()].concat();
    // Shorter than 128 bytes, so its length is one byte.
    [&[namespace.len() as u8], namespace.as_slice(), subject].concat()
}

/// Whether an ed25519 signature holds after ZIP 215, as validators check it: `[8](s·B - k·A - R) = 0`, where points may have any encoding
/// and `s` must be below the group's order. Another rule would let a single odd signature split those who check.
pub fn is_signed(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let (commitment, response) = signature.split_at(32);
    let (Some(public), Ok(commitment), Ok(response)) = (
        CompressedEdwardsY(*key).decompress(),
        CompressedEdwardsY::from_slice(commitment),
        <[u8; 32]>::try_from(response),
    ) else {
        return false;
    };
    let (Some(point), Some(response)) =
        (commitment.decompress(), Option::<Scalar>::from(Scalar::from_canonical_bytes(response)))
    else {
        return false;
    };
    let hash =
        Sha512::new().chain_update(commitment.as_bytes()).chain_update(key).chain_update(message).finalize();
    let challenge = Scalar::from_bytes_mod_order_wide(&hash.into());
    let expected = EdwardsPoint::vartime_double_scalar_mul_basepoint(&challenge, &-public, &response);
    (expected - point).mul_by_cofactor().is_identity()
}
