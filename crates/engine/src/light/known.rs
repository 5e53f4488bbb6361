//! What is known of a model without its weights, and the files that keep it.

use std::sync::Arc;

use assay_model::{Artifact, Bytes};
use assay_receipt::{Bytes32, keccak256};

/// The version of both formats of keys.
const VERSION: u32 = 1;

/// The largest key that is read, in bytes.
pub const KEY_BYTES_MAX: u64 = 1 << 30;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The model makes embeddings.
    #[error(
        "the model turns texts into vectors, and traces are for models that write text: replay its answers"
    )]
    Encoder,
    /// The artifact has no weights.
    #[error("this is what a key knows of a model; make the key from the model itself")]
    NoWeights,
    /// The bytes are no key of this kind.
    #[error(
        "this is not the key that is needed: `assay model key` makes those for light checks, `assay model commit` those for \
         proofs"
    )]
    NotAKey,
    /// The bytes are a key of another version.
    #[error("the key has format {0}, this software reads {VERSION}: make it again from the model")]
    Version(u32),
    /// The bytes were changed or cut.
    #[error("the key is damaged: make it again from the model")]
    Damaged,
    /// The model in the key cannot be read.
    #[error("the model in the key cannot be used: {0}")]
    Model(#[from] assay_model::Error),
}

/// A model's manifest, norms, scales, biases and tokenizer.
pub(super) struct Known {
    manifest: Vec<u8>,
    sections: Bytes,
    artifact: Artifact,
}

impl Known {
    /// Of a model that writes text and has its weights, from which the rest of a key is made.
    pub(super) fn of(artifact: &Artifact) -> Result<Known, KeyError> {
        if artifact.encoder().is_some() {
            return Err(KeyError::Encoder);
        }
        if !artifact.has_weights() {
            return Err(KeyError::NoWeights);
        }
        let sections: Vec<u8> = artifact.small_sections().flatten().copied().collect();
        Known::new(artifact.manifest().canonical(), sections)
    }

    fn new(manifest: Vec<u8>, sections: Vec<u8>) -> Result<Known, KeyError> {
        let sections: Bytes = Arc::new(sections);
        let artifact = Artifact::without_weights(&manifest, Arc::clone(&sections), Vec::new())?;
        if artifact.encoder().is_some() {
            return Err(KeyError::Encoder);
        }
        Ok(Known { manifest, sections, artifact })
    }

    pub(super) fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// The model with the first rows of its rotary tables.
    pub(super) fn with_ropes(&self, ropes: Vec<[Vec<i32>; 2]>) -> Result<Artifact, assay_model::Error> {
        Artifact::without_weights(&self.manifest, Arc::clone(&self.sections), ropes)
    }

    /// Two lengths, the manifest and the sections.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let sections = (*self.sections).as_ref();
        out.extend((self.manifest.len() as u64).to_le_bytes());
        out.extend((sections.len() as u64).to_le_bytes());
        out.extend(&self.manifest);
        out.extend(sections);
    }

    /// Reads what [`Known::write`] wrote; also returns what follows.
    pub(super) fn read(bytes: &[u8]) -> Result<(Known, &[u8]), KeyError> {
        let (lengths, rest) = bytes.split_first_chunk::<16>().ok_or(KeyError::Damaged)?;
        let length = |at: usize| {
            let word: [u8; 8] = std::array::from_fn(|i| lengths[at + i]);
            usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX)
        };
        let (manifest, rest) = rest.split_at_checked(length(0)).ok_or(KeyError::Damaged)?;
        let (sections, rest) = rest.split_at_checked(length(8)).ok_or(KeyError::Damaged)?;
        Ok((Known::new(manifest.to_vec(), sections.to_vec())?, rest))
    }
}

/// The beginning of a key's file.
pub(super) fn head(magic: [u8; 8]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend([0; 4]);
    out
}

/// Ends a key's file with its hash.
pub(super) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = keccak256(&bytes);
    bytes.extend(hash.0);
    bytes
}

/// What lies between the beginning of a key's file and its hash, which is right.
pub(super) fn unseal(bytes: &[u8], magic: [u8; 8]) -> Result<&[u8], KeyError> {
    let rest = bytes.strip_prefix(&magic).ok_or(KeyError::NotAKey)?;
    let (version, _) = rest.split_first_chunk::<4>().ok_or(KeyError::NotAKey)?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(KeyError::Version(version));
    }
    let (content, hash) = bytes.split_last_chunk::<32>().ok_or(KeyError::Damaged)?;
    if keccak256(content) != Bytes32(*hash) {
        return Err(KeyError::Damaged);
    }
    match content.split_first_chunk::<16>() {
        Some((head, rest)) if head[12..] == [0; 4] => Ok(rest),
        _ => Err(KeyError::Damaged),
    }
}
