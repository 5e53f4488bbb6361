//! A proof of either kind.

use crate::{Error, HidingProof, Model, Proof};

/// A proof that hides nothing, or one that hides inputs or weights.
#[derive(Clone, Debug)]
pub enum AnyProof {
    /// Succinct only.
    Open(Proof),
    /// Zero-knowledge.
    Hiding(HidingProof),
}

impl AnyProof {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn from_bytes(bytes: &[u8]) -> Result<AnyProof, Error> {
        if HidingProof::is_hiding(bytes) {
            return HidingProof::from_bytes(bytes).map(AnyProof::Hiding);
        }
        Proof::from_bytes(bytes).map(AnyProof::Open)
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// As [`Proof::to_bytes`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        match self {
            AnyProof::Open(proof) => proof.to_bytes(),
            AnyProof::Hiding(proof) => proof.to_bytes(),
        }
    }

    /// Bytes of the proof alone, without inputs and outputs.
    ///
    /// # Errors
    /// As [`Proof::to_bytes`].
    pub fn proof_len(&self) -> Result<usize, Error> {
        match self {
            AnyProof::Open(proof) => proof.proof_len(),
            AnyProof::Hiding(proof) => proof.proof_len(),
        }
    }

    /// The id of the graph or key that it is about.
    pub fn model(&self) -> [u8; 32] {
        match self {
            AnyProof::Open(proof) => proof.model,
            AnyProof::Hiding(proof) => proof.model,
        }
    }

    /// The inputs, example by example; `None` when they are hidden.
    pub fn inputs(&self) -> Option<&[i32]> {
        match self {
            AnyProof::Open(proof) => Some(&proof.inputs),
            AnyProof::Hiding(proof) => proof.inputs.as_deref(),
        }
    }

    /// The outputs, example by example.
    pub fn outputs(&self) -> &[i32] {
        match self {
            AnyProof::Open(proof) => &proof.outputs,
            AnyProof::Hiding(proof) => &proof.outputs,
        }
    }

    /// Whether it is about committed weights, so that a [`Key`](crate::Key) is needed.
    pub fn has_committed_weights(&self) -> bool {
        match self {
            AnyProof::Open(proof) => proof.has_committed_weights(),
            AnyProof::Hiding(proof) => proof.has_committed_weights(),
        }
    }

    /// Whether it tells nothing about the weights behind a key.
    pub fn hides_weights(&self) -> bool {
        matches!(self, AnyProof::Hiding(proof) if proof.hides_weights())
    }
}

impl Model {
    /// Checks a proof of either kind.
    ///
    /// # Errors
    /// As [`verify`](crate::verify()).
    pub fn verify_any(&self, proof: &AnyProof) -> Result<(), Error> {
        match proof {
            AnyProof::Open(proof) => self.verify(proof),
            AnyProof::Hiding(proof) => self.verify_hiding(proof),
        }
    }

    /// Of a proof that holds, the number of examples that it is about and its bits of soundness.
    ///
    /// # Errors
    /// [`Error::Size`] when no such proof holds.
    pub fn examples_and_bits(&self, proof: &AnyProof) -> Result<(usize, f64), Error> {
        match proof {
            AnyProof::Open(proof) => {
                let examples = self.examples(&proof.inputs);
                Ok((examples, self.security_bits(examples)?))
            }
            AnyProof::Hiding(proof) => {
                Ok((proof.examples, self.hiding_security_bits(proof.examples, proof.inputs.is_none())?))
            }
        }
    }
}
