use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Error;

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut out, byte| {
        let _ = write!(out, "{byte:02x}"); // writing to a String cannot fail
        out
    })
}

pub(crate) fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], Error> {
    let wrong = Error::Hex { expected: N };
    let digits = text.strip_prefix("0x").ok_or_else(|| wrong.clone())?.as_bytes();
    if digits.len() != 2 * N {
        return Err(wrong);
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16).ok_or_else(|| wrong.clone())?;
        let low = char::from(pair[1]).to_digit(16).ok_or_else(|| wrong.clone())?;
        *byte = (high * 16 + low) as u8;
    }
    Ok(out)
}

macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $n:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $n]);

        impl $name {
            /// All bytes zero; stands for "none" where a field says so.
            pub const ZERO: $name = $name([0; $n]);
        }
        impl Default for $name {
            fn default() -> Self {
                $name::ZERO
            }
        }
        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl From<[u8; $n]> for $name {
            fn from(bytes: [u8; $n]) -> Self {
                $name(bytes)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }
        impl FromStr for $name {
            type Err = Error;
            /// Reads `0x` and hex digits of either case, exactly as many as the type has.
            fn from_str(text: &str) -> Result<Self, Error> {
                from_hex(text).map($name)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&to_hex(&self.0))
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

hex_bytes!(
    /// 32 bytes: a hash, a commitment, a nonce, a salt or a model id. In JSON, `0x` and 64 hex digits.
    Bytes32,
    32
);
hex_bytes!(
    /// An EVM address: the last 20 bytes of the hash of a public key. In JSON, `0x` and 40 hex digits.
    Address,
    20
);

/// Serde encoding of integers that may exceed 2^53 as decimal strings without sign or leading zeros.
pub(crate) mod decimal {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let canonical = digits && (text.len() == 1 || !text.starts_with('0'));
        text.parse().ok().filter(|_| canonical).ok_or_else(|| {
            de::Error::custom("expected a decimal number in a string, in range and without leading zeros")
        })
    }
}
