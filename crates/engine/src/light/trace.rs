//! The trace of an answer for light checks, byte for byte as docs/light.md defines it.

use std::collections::HashMap;

use assay_model::{Artifact, Bytes};
use assay_receipt::Bytes32;

use super::products::{Product, Products};

/// What a trace begins with.
pub const TRACE_MAGIC: [u8; 8] = *b"ASSAYLT\n";

/// The version of the format.
const VERSION: u32 = 1;

/// Bytes before the rotary tables.
const HEAD: usize = 56;

/// What is wrong with a trace. None of these says anything about the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes are not a trace.
    #[error("this is no trace for light checks: make one with `assay trace`")]
    NotATrace,
    /// The bytes are a trace of another version.
    #[error("the trace has format {0}, this software reads {VERSION}: make it again with the same release")]
    Version(u32),
    /// The bytes are not a proof.
    #[error("this is no proof of a trace: make one with `assay prove`")]
    NotAProof,
    /// The proof is to be checked with another commitment.
    #[error(
        "the proof is about the commitment {proof}, and this is {key}: use that one, or make the proof again with this one"
    )]
    Commitment {
        /// Id that the proof names.
        proof: Bytes32,
        /// Id of the commitment at hand.
        key: Bytes32,
    },
    /// The proof does not open the commitment.
    #[error("the proof is false ({0}): whoever made it did not use this model and text")]
    Opening(&'static str),
    /// The trace is about another model than the key.
    #[error(
        "the trace is about model {trace}, and the key is for {key}: use a key for the model of the receipt"
    )]
    Model {
        /// Model of the trace.
        trace: Bytes32,
        /// Model of the key.
        key: Bytes32,
    },
    /// The trace contradicts itself or the model's shape.
    #[error("the trace is not a valid one ({0}): make it again")]
    Form(&'static str),
    /// The trace is not about this text.
    #[error("the trace is about another text: make it from this receipt")]
    Text,
    /// A rotary table is not the model's.
    #[error(
        "the trace has a false rotary table for position {position}: its worker did not make it with this model"
    )]
    Rope {
        /// The position.
        position: usize,
    },
    /// An embedding is not the model's.
    #[error("the trace has a false embedding of token {token}: its worker did not make it with this model")]
    Embedding {
        /// The token.
        token: u32,
    },
    /// Sums are not the product of the weights and what was computed so far.
    #[error(
        "the trace has a false {product} product at position {position}, layer {layer}: its worker did not make it with this model and text"
    )]
    Product {
        /// The position, from 0, the prompt's first token.
        position: usize,
        /// The layer; for logits the number of layers.
        layer: usize,
        /// Which product.
        product: Product,
    },
    /// The text cannot be run at all.
    #[error("the light check cannot be done: {0}")]
    Engine(Box<crate::Error>),
}

/// A trace whose form was checked, and nothing else.
#[derive(Clone)]
pub struct Trace {
    bytes: Bytes,
    pub(super) model: Bytes32,
    prompt: usize,
    outputs: usize,
    /// Where each distinct token's weights are.
    tokens: HashMap<u32, usize>,
    /// Where the products are, position by position.
    products: Vec<u64>,
    shape: Products,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is a user's text.
        f.debug_struct("Trace")
            .field("model", &self.model)
            .field("positions", &self.positions())
            .finish_non_exhaustive()
    }
}

/// The part of a trace before its positions. `outputs` is at least 1, and the tokens are in the vocabulary.
pub(super) fn front(artifact: &Artifact, tokens: &[u32], prompt: usize) -> Vec<u8> {
    let shape = Products::new(artifact.config());
    let outputs = tokens.len() - prompt;
    let positions = tokens.len() - 1;
    let mut distinct = tokens[..positions].to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let mut out = TRACE_MAGIC.to_vec();
    for number in [VERSION as usize, prompt, outputs, distinct.len()] {
        out.extend((number as u32).to_le_bytes()); // within the context
    }
    out.extend(artifact.id().0);
    for table in 0..shape.tables {
        let rows = Products::rope_rows(artifact, table);
        for entry in rows.take(positions).flat_map(|(cos, sin)| cos.iter().chain(sin)) {
            out.extend(entry.to_le_bytes());
        }
    }
    let embedding = artifact.embedding();
    let mut weights = vec![0; embedding.cols];
    for token in distinct {
        out.extend(token.to_le_bytes());
        embedding.row(token as usize, &mut weights);
        weights.iter().for_each(|weight| out.extend(weight.to_le_bytes()));
    }
    out
}

impl Trace {
    /// Reads a trace of a model, of which what a key knows is enough. Every length and number is checked, but no product.
    ///
    /// # Errors
    /// [`Fault::NotATrace`], [`Fault::Version`], [`Fault::Model`], [`Fault::Form`].
    pub fn parse(bytes: Bytes, artifact: &Artifact) -> Result<Trace, Fault> {
        let all: &[u8] = (*bytes).as_ref();
        let Some(rest) = all.strip_prefix(&TRACE_MAGIC) else { return Err(Fault::NotATrace) };
        let (version, _) = rest.split_first_chunk::<4>().ok_or(Fault::NotATrace)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let short = Fault::Form("it ends too early");
        let head = all.get(..HEAD).ok_or(short.clone())?;
        let word = |at: usize| {
            all.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).ok_or(short.clone())
        };
        let model = Bytes32(std::array::from_fn(|i| head[24 + i]));
        if model != artifact.id() {
            return Err(Fault::Model { trace: model, key: artifact.id() });
        }
        let (prompt, outputs, distinct) = (word(12)? as usize, word(16)? as usize, word(20)? as usize);
        let config = artifact.config();
        if prompt == 0 || outputs == 0 || prompt + outputs > config.context {
            return Err(Fault::Form("its text is empty or longer than the model's context"));
        }
        let positions = prompt + outputs - 1;
        if distinct > positions || distinct > config.vocab {
            return Err(Fault::Form("it has more tokens than positions"));
        }
        let shape = Products::new(config);
        // All of these are far below 2^48.
        let mut at = HEAD + shape.tables * positions * 8 * shape.pairs;
        let row = 4 + 2 * shape.dim();
        if all.len() < at + distinct * row {
            return Err(short);
        }
        let mut tokens = HashMap::with_capacity(distinct);
        let mut last = None;
        for _ in 0..distinct {
            let token = word(at)?;
            if last.is_some_and(|last| token <= last) || token as usize >= config.vocab {
                return Err(Fault::Form("its tokens are not in order"));
            }
            last = Some(token);
            tokens.insert(token, at + 4);
            at += row;
        }
        let count = shape.count(false) * positions + outputs;
        if all.len() - at < count {
            return Err(short); // a product has a byte at least: before memory is taken for them
        }
        let mut products = Vec::with_capacity(count);
        for position in 0..positions {
            for (_, product) in shape.at_position(position + 1 >= prompt) {
                products.push(at as u64);
                let width = u32::from(*all.get(at).ok_or(short.clone())?);
                if width == 0 || width > shape.width_max(product) {
                    return Err(Fault::Form("a sum is wider than a sum can be"));
                }
                at += 1 + packed_bytes(shape.size(product).0, width);
            }
        }
        if at > all.len() {
            return Err(short);
        }
        if at < all.len() {
            return Err(Fault::Form("it goes on after its end"));
        }
        Ok(Trace { bytes, model, prompt, outputs, tokens, products, shape })
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Positions that were run: all tokens but the answer's last.
    pub fn positions(&self) -> usize {
        self.prompt + self.outputs - 1
    }

    /// Whether the trace can be that of this text.
    pub(super) fn is_of(&self, prompt: &[u32], answer: &[u32]) -> bool {
        let mut run = prompt.iter().chain(answer).take(self.positions());
        (prompt.len(), answer.len()) == (self.prompt, self.outputs)
            && run.all(|token| self.tokens.contains_key(token))
    }

    /// The rotary tables as far as the text goes.
    pub(super) fn ropes(&self) -> Vec<[Vec<i32>; 2]> {
        let (positions, pairs) = (self.positions(), self.shape.pairs);
        let tables = self.bytes()[HEAD..].chunks_exact(8 * positions * pairs).take(self.shape.tables);
        let tables = tables.map(|table| {
            let mut columns = [const { Vec::new() }; 2];
            for (part, row) in table.chunks_exact(4 * pairs).enumerate() {
                let words = row.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word));
                columns[part % 2].extend(words);
            }
            columns
        });
        tables.collect()
    }

    /// The distinct tokens.
    pub(super) fn tokens(&self) -> impl Iterator<Item = u32> {
        self.tokens.keys().copied()
    }

    /// The weights of a token's embedding; `false` where they are not in the trace.
    pub(super) fn embedding(&self, token: u32, out: &mut [i16]) -> bool {
        let Some(&at) = self.tokens.get(&token) else { return false };
        let words = self.bytes()[at..][..2 * out.len()].as_chunks::<2>().0;
        out.iter_mut().zip(words).for_each(|(out, word)| *out = i16::from_le_bytes(*word));
        true
    }

    /// Where a product of the text begins.
    pub(super) fn place(&self, position: usize, index: usize) -> usize {
        // A position of the answer, from the prompt's last on, has one more than the others.
        let earlier = (position + 1).saturating_sub(self.prompt);
        self.products[position * self.shape.count(false) + earlier + index] as usize
    }

    /// The sums of the product with this number at a position, and whether they are written as they should be.
    pub(super) fn sums(&self, position: usize, index: usize, out: &mut [i64]) -> bool {
        let bytes = &self.bytes()[self.place(position, index)..];
        let width = u32::from(bytes[0]);
        unpack(&bytes[1..][..packed_bytes(out.len(), width)], width, out)
    }
}

/// Bytes of `count` integers of `width` bits.
fn packed_bytes(count: usize, width: u32) -> usize {
    (count * width as usize).div_ceil(8)
}

/// The bits that the widest of some integers needs, with its sign: at least 1.
fn width_of(sums: &[i64]) -> u32 {
    65 - sums.iter().fold(0, |all, &sum| all | (sum ^ sum >> 63)).leading_zeros()
}

/// Width and integers, two's complement, from the low bits of each byte up; the last byte is filled up with zeros.
pub(super) fn pack(sums: &[i64]) -> Vec<u8> {
    let width = width_of(sums);
    let mut out = Vec::with_capacity(1 + packed_bytes(sums.len(), width));
    out.push(width as u8);
    let (mut bits, mut held) = (0u128, 0);
    for &sum in sums {
        bits |= u128::from(sum as u64 & (u64::MAX >> (64 - width))) << held;
        held += width;
        while held >= 8 {
            out.push(bits as u8);
            bits >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        out.push(bits as u8);
    }
    out
}

/// Reads what [`pack`] wrote after the width, which is below 57; whether it is what [`pack`] would write.
fn unpack(bytes: &[u8], width: u32, out: &mut [i64]) -> bool {
    let up = 64 - width;
    let mut all = 0;
    let count = out.len();
    // As far as eight bytes can be read at once.
    let whole = (bytes.len().saturating_sub(7) * 8 / width as usize).min(count);
    let (front, back) = out.split_at_mut(whole);
    let mut bit = 0;
    for out in front {
        let word: [u8; 8] = bytes[bit / 8..bit / 8 + 8].try_into().unwrap_or_default();
        *out = (u64::from_le_bytes(word) >> (bit % 8) << up) as i64 >> up;
        all |= *out ^ *out >> 63;
        bit += width as usize;
    }
    for out in back {
        let word = bytes[bit / 8..].iter().take(8).rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        *out = (word >> (bit % 8) << up) as i64 >> up;
        all |= *out ^ *out >> 63;
        bit += width as usize;
    }
    let filled = count * width as usize;
    let clean = filled.is_multiple_of(8) || bytes.last().is_none_or(|last| last >> (filled % 8) == 0);
    clean && width == 65 - all.leading_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_sums_come_back(bits in 1u32..46, seed: Vec<i64>) {
            let sums: Vec<i64> = seed.iter().map(|sum| sum >> (64 - bits)).collect();
            let packed = pack(&sums);
            let width = u32::from(packed[0]);
            prop_assert_eq!(width, width_of(&sums));
            prop_assert!(width <= bits);
            let mut out = vec![7; sums.len()];
            prop_assert!(unpack(&packed[1..], width, &mut out));
            prop_assert_eq!(&out, &sums);
            // No other bytes say the same: wider, or with something in what fills up.
            let mut wide = vec![0u8; packed_bytes(sums.len(), width + 1)];
            for (i, &sum) in sums.iter().enumerate() {
                for b in 0..=width {
                    let at = i * (width as usize + 1) + b as usize;
                    wide[at / 8] |= ((sum >> b & 1) as u8) << (at % 8);
                }
            }
            prop_assert!(!unpack(&wide, width + 1, &mut out));
            prop_assert_eq!(&out, &sums);
            if !(sums.len() * width as usize).is_multiple_of(8) {
                let mut dirty = packed.clone();
                *dirty.last_mut().unwrap() |= 0x80;
                prop_assert!(!unpack(&dirty[1..], width, &mut out));
            }
        }
    }
}
