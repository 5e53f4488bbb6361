use std::fmt;
use std::str::FromStr;

use k256::ecdsa::SigningKey;
use k256::elliptic_curve::ops::{Invert as _, LinearCombination as _, Reduce};
use k256::elliptic_curve::point::DecompressPoint as _;
use k256::elliptic_curve::scalar::IsHigh as _;
use k256::elliptic_curve::sec1::ToEncodedPoint as _;
use k256::elliptic_curve::{Group as _, PrimeField as _};
use k256::{AffinePoint, ProjectivePoint, Scalar};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha3::{Digest as _, Keccak256};
use zeroize::Zeroize as _;

use crate::bytes::{from_hex, to_hex};
use crate::eip712::{Statement, keccak256};
use crate::{Address, Bytes32, Domain, Error};

/// A secp256k1 signature as 65 bytes `r || s || v`. Only the canonical form counts (`s` in the lower half of the
/// order, `v` 27 or 28), so nobody can turn one valid signature into another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 65]);

impl Signature {
    /// Address whose key signed `digest`.
    ///
    /// # Errors
    /// [`Error::Signature`] when the form is not canonical or no key fits. Any canonical signature names *some*
    /// address: the caller must compare it with the one that it expects.
    pub fn recover(&self, digest: &Bytes32) -> Result<Address, Error> {
        Ok(address_of(&self.parts()?.key(digest)?))
    }

    fn parts(&self) -> Result<Parts, Error> {
        let odd = match self.0[64] {
            27 => 0,
            28 => 1,
            _ => return Err(Error::Signature("v is neither 27 nor 28")),
        };
        let half = |at: usize| std::array::from_fn::<u8, 32, _>(|i| self.0[at + i]).into();
        let scalar = |bytes| {
            Option::<Scalar>::from(Scalar::from_repr(bytes)).filter(|scalar| !bool::from(scalar.is_zero()))
        };
        let (Some(r), Some(s)) = (scalar(half(0)), scalar(half(32))) else {
            return Err(Error::Signature("r or s is zero or too large"));
        };
        if bool::from(s.is_high()) {
            return Err(Error::Signature("s is in the upper half"));
        }
        let point = AffinePoint::decompress(&half(0), odd.into());
        let point = Option::from(point).ok_or(Error::Signature("it fits no public key"))?;
        Ok(Parts { r, s, point })
    }
}

/// A signature's numbers, and the point R whose x coordinate is r.
struct Parts {
    r: Scalar,
    s: Scalar,
    point: AffinePoint,
}

impl Parts {
    /// The key is r⁻¹(sR − zG) (SEC 1, 4.1.6). The signature holds for that key whatever it is, so it is not verified once more, which
    /// would take as long again.
    fn key(&self, digest: &Bytes32) -> Result<AffinePoint, Error> {
        // parts() lets no r be zero.
        let inverse = Option::<Scalar>::from(self.r.invert_vartime()).unwrap_or_default();
        let key = ProjectivePoint::lincomb(
            &ProjectivePoint::GENERATOR,
            &-(inverse * number(digest)),
            &ProjectivePoint::from(self.point),
            &(inverse * self.s),
        );
        if bool::from(key.is_identity()) {
            return Err(Error::Signature("it fits no public key"));
        }
        Ok(key.to_affine())
    }
}

/// The number that a digest stands for in a signature.
fn number(digest: &Bytes32) -> Scalar {
    <Scalar as Reduce<k256::U256>>::reduce_bytes(&digest.0.into())
}

/// Fewer signatures than this are checked one by one, which is faster then.
const TOGETHER_LEAST: usize = 4;

/// Whether an address signed every one of these digests: what [`Signature::recover`] says of each, but faster, by a tenth of the time where
/// there are hundreds. Which of them is not signed, only `recover` tells.
///
/// The first signature gives the key Q. A signature holds when `R - (z/s)·G - (r/s)·Q = 0`, and the sum of these, each times a random number
/// of 128 bits, is zero only if every one is, but for a chance of 2^-128. The numbers are hashes of everything that is checked, so whoever
/// makes the signatures cannot choose them.
///
/// ```
/// use assay_receipt::{Key, keccak256, signed_all};
///
/// let key = Key::from_bytes([7; 32])?;
/// let mut signed: Vec<_> = (0..100u8).map(|i| (keccak256([i]), key.sign(&keccak256([i])))).collect();
/// assert!(signed_all(&key.address(), &signed));
/// signed[50].0 = keccak256("something else");
/// assert!(!signed_all(&key.address(), &signed));
/// # Ok::<(), assay_receipt::Error>(())
/// ```
pub fn signed_all(author: &Address, signed: &[(Bytes32, Signature)]) -> bool {
    if signed.len() < TOGETHER_LEAST {
        return signed.iter().all(|(digest, signature)| signature.recover(digest) == Ok(*author));
    }
    let Ok(parts) = signed.iter().map(|(_, signature)| signature.parts()).collect::<Result<Vec<_>, _>>()
    else {
        return false;
    };
    let Ok(key) = parts[0].key(&signed[0].0) else { return false };
    if address_of(&key) != *author {
        return false;
    }
    let mut seed = Keccak256::new();
    for (digest, signature) in signed {
        seed.update(digest.0);
        seed.update(signature.0);
    }
    let seed = seed.finalize();
    let weights: Vec<u128> = (0..signed.len() as u64)
        .map(|i| {
            let hash = Keccak256::new().chain_update(seed).chain_update(i.to_be_bytes()).finalize();
            hash.iter().take(16).fold(0, |weight, byte| weight << 8 | u128::from(*byte))
        })
        .collect();
    // One inversion for all: of the product, from which each number's own follows backwards.
    let mut products = Vec::with_capacity(parts.len());
    let mut product = Scalar::ONE;
    for part in &parts {
        products.push(product);
        product *= part.s;
    }
    // parts() lets no s be zero.
    let mut inverse = Option::<Scalar>::from(product.invert_vartime()).unwrap_or_default();
    let (mut of_generator, mut of_key) = (Scalar::ZERO, Scalar::ZERO);
    for (i, part) in parts.iter().enumerate().rev() {
        let weighted = inverse * products[i] * Scalar::from(weights[i]);
        inverse *= part.s;
        of_generator += weighted * number(&signed[i].0);
        of_key += weighted * part.r;
    }
    let points: Vec<_> = parts.iter().map(|part| part.point).collect();
    let right = ProjectivePoint::lincomb(&ProjectivePoint::GENERATOR, &of_generator, &key.into(), &of_key);
    weighted_sum(&points, &weights) == right
}

/// Pippenger's: the points of each digit of the weights are added up first.
fn weighted_sum(points: &[AffinePoint], weights: &[u128]) -> ProjectivePoint {
    // Bits of a digit: where adding a point to its digit costs about as much as adding up the digits.
    let bits = points.len().ilog2().saturating_sub(2).clamp(1, 12);
    let mut sum = ProjectivePoint::IDENTITY;
    for shift in (0..128).step_by(bits as usize).rev() {
        for _ in 0..bits {
            sum = sum.double();
        }
        let mut digits = vec![ProjectivePoint::IDENTITY; (1 << bits) - 1];
        for (point, weight) in points.iter().zip(weights) {
            if let Some(digit) = ((weight >> shift) as usize & ((1 << bits) - 1)).checked_sub(1) {
                digits[digit] += point;
            }
        }
        // Σ d·P_d: from the largest digit down, every running sum once.
        let mut running = ProjectivePoint::IDENTITY;
        for point in digits.iter().rev() {
            running += point;
            sum += running;
        }
    }
    sum
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl FromStr for Signature {
    type Err = Error;
    /// Reads `0x` and 130 hex digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        from_hex(text).map(Signature)
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

fn address_of(key: &AffinePoint) -> Address {
    let point = key.to_encoded_point(false);
    let hash = keccak256(&point.as_bytes()[1..]); // without the tag byte of the uncompressed form
    let mut address = Address::ZERO;
    address.0.copy_from_slice(&hash.0[12..]);
    address
}

/// A worker's or an operator's signing key. Wiped from memory when dropped; `Debug` shows the address only.
///
/// Signing is deterministic (RFC 6979), so that a worker which signs the same statement twice makes the same bytes.
pub struct Key(SigningKey);

impl Key {
    /// Makes a key of 32 bytes, which the caller draws from its random source or reads from its key file. This copy of
    /// them is wiped.
    ///
    /// # Errors
    /// [`Error::Key`] when the bytes are zero or not below the order of the curve (a chance of 2^-128 when random).
    pub fn from_bytes(mut secret: [u8; 32]) -> Result<Key, Error> {
        let key = SigningKey::from_slice(&secret);
        secret.zeroize();
        key.map(Key).map_err(|_| Error::Key)
    }

    /// The address that goes with this key.
    pub fn address(&self) -> Address {
        address_of(self.0.verifying_key().as_affine())
    }

    /// Signs a digest.
    pub fn sign(&self, digest: &Bytes32) -> Signature {
        let (signature, recovery) = self
            .0
            .sign_prehash_recoverable(&digest.0)
            .expect("a 32-byte digest is as long as the curve needs, and k256 returns a low s");
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + recovery.to_byte();
        Signature(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.address())
    }
}

/// A statement and the signature of its author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    /// What is said.
    pub statement: T,
    /// Signature over the statement's EIP-712 digest.
    pub signature: Signature,
}

impl<T: Statement> Signed<T> {
    /// Signs a statement. It does not check that the statement names this key as its author.
    pub fn sign(key: &Key, domain: &Domain, statement: T) -> Signed<T> {
        let signature = key.sign(&domain.digest(&statement));
        Signed { statement, signature }
    }

    /// Hash of the statement: its EIP-712 digest in `domain`. This is what `previous` and [`Audit`](crate::Audit)
    /// refer to.
    pub fn hash(&self, domain: &Domain) -> Bytes32 {
        domain.digest(&self.statement)
    }

    /// Address whose key signed the statement in `domain`. Not yet the author: see [`Signed::is_by_author`].
    ///
    /// # Errors
    /// [`Error::Signature`] when the signature is not canonical.
    pub fn signer(&self, domain: &Domain) -> Result<Address, Error> {
        self.signature.recover(&self.hash(domain))
    }

    /// Whether the address that the statement names as its author signed it in `domain`; `false` for a statement that
    /// names none ([`Members`](crate::Members)), whose signer must be known otherwise.
    pub fn is_by_author(&self, domain: &Domain) -> bool {
        self.statement.author().is_some_and(|author| self.signer(domain) == Ok(author))
    }
}
