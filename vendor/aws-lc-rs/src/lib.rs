//! What `commonware-cryptography` uses of `aws-lc-rs`, done by ring, from whose interface that crate's descends. So the binary has one
//! C library for cryptography, the one that TLS uses, and the other's thousands of C files are not compiled.

pub use ring::signature;

/// Authenticated encryption.
pub mod aead {
    use ring::error::Unspecified;
    pub use ring::aead::{Aad, CHACHA20_POLY1305, Nonce, Tag, UnboundKey};

    /// A key whose nonces the caller keeps apart.
    pub struct LessSafeKey(ring::aead::LessSafeKey);

    impl LessSafeKey {
        /// Takes the key.
        pub fn new(key: UnboundKey) -> Self {
            Self(ring::aead::LessSafeKey::new(key))
        }

        /// Encrypts in place, and gives the tag.
        pub fn seal_in_place_separate_tag<A: AsRef<[u8]>>(
            &self,
            nonce: Nonce,
            aad: Aad<A>,
            data: &mut [u8],
        ) -> Result<Tag, Unspecified> {
            self.0.seal_in_place_separate_tag(nonce, aad, data)
        }

        /// Checks the tag and decrypts in place; after an error `data` is worth nothing.
        pub fn open_in_place_separate_tag<'a, A: AsRef<[u8]>>(
            &self,
            nonce: Nonce,
            aad: Aad<A>,
            tag: &[u8],
            data: &'a mut [u8],
        ) -> Result<&'a mut [u8], Unspecified> {
            self.0.open_in_place_separate_tag(nonce, aad, Tag::try_from(tag)?, data, 0..)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    #[test]
    fn what_was_changed_is_not_decrypted() {
        let key = || LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
        let nonce = || Nonce::assume_unique_for_key([1; 12]);
        let mut data = *b"message";
        let tag = key().seal_in_place_separate_tag(nonce(), Aad::from(b"aad"), &mut data).unwrap();
        assert_ne!(&data, b"message");
        let open = |data: &mut [u8], aad: &'static [u8], tag: &[u8]| {
            key().open_in_place_separate_tag(nonce(), Aad::from(aad), tag, data).is_ok()
        };
        assert!(!open(&mut data.clone(), b"other", tag.as_ref()));
        assert!(!open(&mut data.clone(), b"aad", &[0; 16]));
        assert!(!open(&mut data.clone(), b"aad", &[0; 15]));
        assert!(open(&mut data, b"aad", tag.as_ref()));
        assert_eq!(&data, b"message");
    }
}
