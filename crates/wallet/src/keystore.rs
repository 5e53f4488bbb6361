//! Encrypted keys in Ethereum's [v3 format](https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage/), which
//! geth, foundry and wallets share: scrypt (or PBKDF2, for reading), AES-128-CTR, and a Keccak checksum over the ciphertext.

use aes::cipher::{KeyIvInit as _, StreamCipher as _};
use assay_ledger::types::hex;
use assay_receipt::{Key, keccak256};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest keystore that is read, in bytes.
pub const BYTES_MAX: u64 = 16 << 10;
/// scrypt's cost for new keystores, as geth's: 256 MiB and about a second.
const LOG_N: u8 = 18;
const R: u32 = 8;
const P: u32 = 1;
/// Most memory that a keystore may ask for, in bytes, and most rounds of PBKDF2: a hostile file must not stop the program.
const MEMORY_MAX: u64 = 1 << 30;
const ROUNDS_MAX: u32 = 10_000_000;

/// Why a keystore gives no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeystoreError {
    /// Not the format, or a part of it that is not supported.
    #[error("this is no keystore of version 3: {0}")]
    Format(String),
    /// The checksum is not right.
    #[error("the password is wrong, or the keystore was changed")]
    Password,
    /// The secret is no key.
    #[error("the keystore holds a number that is no key")]
    Key,
    /// The system gave no random bytes.
    #[error("there is no randomness to be had")]
    Random,
}

#[derive(Serialize, Deserialize)]
struct File {
    crypto: Crypto,
    id: String,
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    kdf: String,
    kdfparams: KdfParams,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum KdfParams {
    Scrypt { dklen: u32, n: u64, r: u32, p: u32, salt: String },
    Pbkdf2 { c: u32, dklen: u32, prf: String, salt: String },
}

fn format(what: &str) -> KeystoreError {
    KeystoreError::Format(what.to_owned())
}

fn bytes(text: &str, what: &str) -> Result<Vec<u8>, KeystoreError> {
    hex::decode(text).map_err(|_| format(&format!("its {what} is not hexadecimal")))
}

impl KdfParams {
    fn derive(&self, password: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeystoreError> {
        let mut out = Zeroizing::new([0; 32]);
        match self {
            Self::Scrypt { dklen, n, r, p, salt } => {
                let work = (*n).saturating_mul(u64::from(*r)).saturating_mul(128);
                if *dklen != 32
                    || !n.is_power_of_two()
                    || *n < 2
                    || *r == 0
                    || work > MEMORY_MAX
                    || !(1..=16).contains(p)
                {
                    return Err(format("scrypt's parameters are out of range"));
                }
                // A power of two below 2^30.
                let params = scrypt::Params::new(n.trailing_zeros() as u8, *r, *p, 32)
                    .map_err(|_| format("scrypt's parameters are out of range"))?;
                scrypt::scrypt(password, &bytes(salt, "salt")?, &params, out.as_mut())
                    .map_err(|_| format("scrypt's parameters are out of range"))?;
            }
            Self::Pbkdf2 { c, dklen, prf, salt } => {
                if *dklen != 32 || prf != "hmac-sha256" || !(1..=ROUNDS_MAX).contains(c) {
                    return Err(format("PBKDF2's parameters are out of range"));
                }
                pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, &bytes(salt, "salt")?, *c, out.as_mut());
            }
        }
        Ok(out)
    }
}

fn mac(derived: &[u8; 32], ciphertext: &[u8]) -> [u8; 32] {
    keccak256([&derived[16..], ciphertext].concat()).0
}

fn cipher(derived: &[u8; 32], iv: &[u8], data: &mut [u8]) -> Result<(), KeystoreError> {
    ctr::Ctr128BE::<aes::Aes128>::new_from_slices(&derived[..16], iv)
        .map_err(|_| format("its initialisation vector has not 16 bytes"))?
        .apply_keystream(data);
    Ok(())
}

/// Encrypts a secret: the keystore's JSON. Takes about a second by design.
pub fn encrypt(secret: &[u8; 32], password: &str) -> Result<String, KeystoreError> {
    let mut random = [0; 64];
    getrandom::fill(&mut random).map_err(|_| KeystoreError::Random)?;
    let key = Key::from_bytes(*secret).map_err(|_| KeystoreError::Key)?;
    let kdfparams =
        KdfParams::Scrypt { dklen: 32, n: 1 << LOG_N, r: R, p: P, salt: hex::encode(&random[..32]) };
    let derived = kdfparams.derive(password.as_bytes())?;
    let iv = random[32..48].to_vec();
    let mut ciphertext = *secret;
    cipher(&derived, &iv, &mut ciphertext)?;
    // RFC 9562, version 4.
    random[48 + 6] = random[48 + 6] & 0x0f | 0x40;
    random[48 + 8] = random[48 + 8] & 0x3f | 0x80;
    let id = hex::encode(&random[48..]);
    let file = File {
        crypto: Crypto {
            cipher: "aes-128-ctr".to_owned(),
            cipherparams: CipherParams { iv: hex::encode(&iv) },
            ciphertext: hex::encode(ciphertext),
            kdf: "scrypt".to_owned(),
            kdfparams,
            mac: hex::encode(mac(&derived, &ciphertext)),
        },
        id: format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]),
        version: 3,
        address: Some(key.address().to_string().trim_start_matches("0x").to_lowercase()),
    };
    // Strings and numbers: nothing that can fail.
    Ok(serde_json::to_string_pretty(&file).map_err(|_| format("it cannot be written"))? + "\n")
}

/// Decrypts a keystore.
pub fn decrypt(json: &str, password: &str) -> Result<Key, KeystoreError> {
    let file: File = serde_json::from_str(json).map_err(|error| KeystoreError::Format(error.to_string()))?;
    let crypto = &file.crypto;
    let named = match crypto.kdfparams {
        KdfParams::Scrypt { .. } => "scrypt",
        KdfParams::Pbkdf2 { .. } => "pbkdf2",
    };
    if file.version != 3 || crypto.cipher != "aes-128-ctr" || crypto.kdf != named {
        return Err(format("its version, cipher or key derivation is another"));
    }
    let ciphertext = bytes(&crypto.ciphertext, "ciphertext")?;
    let mut secret = Zeroizing::new([0; 32]);
    // Some programs leave leading zeros out.
    let Some(start) = secret.len().checked_sub(ciphertext.len()) else {
        return Err(format("its ciphertext has more than 32 bytes"));
    };
    let derived = crypto.kdfparams.derive(password.as_bytes())?;
    let right = mac(&derived, &ciphertext).ct_eq(&bytes(&crypto.mac, "checksum")?);
    if !bool::from(right) {
        return Err(KeystoreError::Password);
    }
    secret[start..].copy_from_slice(&ciphertext);
    cipher(&derived, &bytes(&crypto.cipherparams.iv, "initialisation vector")?, &mut secret[start..])?;
    Key::from_bytes(*secret).map_err(|_| KeystoreError::Key)
}

/// The address that a keystore says it is for, without decrypting it.
pub fn address(json: &str) -> Option<String> {
    let file: File = serde_json::from_str(json).ok()?;
    let address = file.address?.trim_start_matches("0x").to_owned();
    let known = address.len() == 40 && address.bytes().all(|byte| byte.is_ascii_hexdigit());
    known.then(|| format!("0x{address}"))
}
