use std::fmt;
use std::str::FromStr;

use k256::ecdsa::{RecoveryId, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
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
        let recovery = match self.0[64] {
            27 => RecoveryId::new(false, false),
            28 => RecoveryId::new(true, false),
            _ => return Err(Error::Signature("v is neither 27 nor 28")),
        };
        let signature = k256::ecdsa::Signature::from_slice(&self.0[..64])
            .map_err(|_| Error::Signature("r or s is zero or too large"))?;
        if signature.normalize_s().is_some() {
            return Err(Error::Signature("s is in the upper half"));
        }
        VerifyingKey::recover_from_prehash(&digest.0, &signature, recovery)
            .map(|key| address_of(&key))
            .map_err(|_| Error::Signature("it fits no public key"))
    }
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

fn address_of(key: &VerifyingKey) -> Address {
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
        address_of(self.0.verifying_key())
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
