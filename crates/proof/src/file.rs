//! One self-describing file: what is claimed, and the proof of it.

use p3_field::{BasedVectorSpace as _, PrimeCharacteristicRing as _, PrimeField32 as _};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::circuit::LOG_MAX;
use crate::commitment::{Opening, Root};
use crate::field::{E, F};
use crate::fractions::Level;
use crate::key::WeightsOpening;
use crate::products::ProductsProof;

/// The first bytes of a proof file: "assay proof" and the version of the protocol and of this format.
const MAGIC: &[u8; 8] = b"ASSAYPF5";

/// The largest proof file that is read.
pub const FILE_BYTES_MAX: usize = 1 << 28;

/// The largest opening of a commitment that is read; real ones stay below 150 kB.
pub(crate) const OPENING_BYTES_MAX: usize = 1 << 20;

/// Bytes of an element of the field of challenges.
const ELEMENT: usize = 20;

/// What is claimed, and the proof of it.
#[derive(Clone)]
pub struct Proof {
    /// The id of the graph, see [`assay_graph::Graph::id`].
    pub model: [u8; 32],
    /// The inputs, example by example.
    pub inputs: Vec<i32>,
    /// The outputs, example by example.
    pub outputs: Vec<i32>,
    pub(crate) root: Root,
    pub(crate) levels: Vec<Level>,
    pub(crate) products: Option<ProductsProof>,
    pub(crate) rounds: Vec<[E; 2]>,
    pub(crate) weights: Option<WeightsProof>,
    pub(crate) opening: Opening,
}

/// What a proof with committed weights says about them.
#[derive(Clone)]
pub(crate) struct WeightsProof<V = E> {
    /// What the maps with committed weights add to the linear claim without any slot: inputs and constants.
    pub(crate) known: V,
    /// What they add to the weight of the committed vector at its point.
    pub(crate) at_point: V,
    pub(crate) rounds: Vec<[V; 2]>,
    pub(crate) opening: WeightsOpening,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proof({}, {} inputs, {} outputs)", hex(&self.model), self.inputs.len(), self.outputs.len())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Proof {
    /// Whether it is checked with a [`Key`](crate::Key), whose id it names as its model, and not with a graph.
    pub fn has_committed_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`Error::Prover`] when the opening cannot be written, which does not happen to one that was made or read here.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut w = MAGIC.to_vec();
        w.extend_from_slice(&self.model);
        put_varints(&mut w, &self.inputs);
        put_varints(&mut w, &self.outputs);
        w.extend_from_slice(&self.root);
        w.push(self.levels.len() as u8);
        for level in &self.levels {
            level
                .rounds
                .iter()
                .flatten()
                .chain(&level.ends)
                .for_each(|element| put_element(&mut w, *element));
        }
        match &self.products {
            None => w.push(0),
            Some(products) => {
                w.push(if products.matrices.is_some() { 2 } else { 1 });
                put_element(&mut w, products.value);
                w.push(products.rounds.len() as u8);
                products.rounds.iter().flatten().for_each(|element| put_element(&mut w, *element));
                put_element(&mut w, products.result);
                w.push(products.operand_rounds.len() as u8);
                products.operand_rounds.iter().flatten().for_each(|element| put_element(&mut w, *element));
                products
                    .operands
                    .iter()
                    .chain(&products.matrices)
                    .for_each(|element| put_element(&mut w, *element));
            }
        }
        w.push(self.rounds.len() as u8);
        self.rounds.iter().flatten().for_each(|element| put_element(&mut w, *element));
        match &self.weights {
            None => w.push(0),
            Some(weights) => {
                w.push(1);
                put_element(&mut w, weights.known);
                put_element(&mut w, weights.at_point);
                w.push(weights.rounds.len() as u8);
                weights.rounds.iter().flatten().for_each(|element| put_element(&mut w, *element));
                let WeightsOpening::Open(opening) = &weights.opening else {
                    return Err(Error::Prover("only a hiding proof hides weights".into()));
                };
                put_opening(&mut w, opening)?;
            }
        }
        w.extend_from_slice(&encoded(&self.opening)?);
        Ok(w)
    }

    /// Reads a file. Every proof has one form only: any other bytes of the same meaning are refused.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Proof, Error> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(Error::File("it is larger than any proof"));
        }
        let mut r = Reader { bytes };
        if r.take(MAGIC.len())? != MAGIC {
            return Err(Error::File("it does not begin as one of this version does"));
        }
        let model = r.array()?;
        let (inputs, outputs) = (r.varints()?, r.varints()?);
        let root = r.array()?;
        let count = r.log()?;
        let mut levels = Vec::with_capacity(count);
        for number in 0..count {
            let rounds = r.rounds(number)?;
            levels.push(Level { rounds, ends: [r.element()?, r.element()?, r.element()?, r.element()?] });
        }
        let products = match r.array()? {
            [0] => None,
            [kind @ (1 | 2)] => {
                let value = r.element()?;
                let count = r.log()?;
                let (rounds, result) = (r.rounds(count)?, r.element()?);
                let count = r.log()?;
                let operand_rounds = r.rounds(count)?;
                let operands = [r.element()?, r.element()?];
                let matrices = if kind == 2 { Some(r.element()?) } else { None };
                Some(ProductsProof { value, rounds, result, operand_rounds, operands, matrices })
            }
            _ => return Err(Error::File("it has an unknown part")),
        };
        let count = r.log()?;
        let rounds = r.rounds(count)?;
        let weights = match r.array()? {
            [0] => None,
            [1] => {
                let (known, at_point) = (r.element()?, r.element()?);
                let count = r.log()?;
                let rounds = r.rounds(count)?;
                let opening = WeightsOpening::Open(Box::new(r.opening(OPENING_BYTES_MAX)?));
                Some(WeightsProof { known, at_point, rounds, opening })
            }
            _ => return Err(Error::File("it has an unknown part")),
        };
        let opening = opening(r.bytes, OPENING_BYTES_MAX)?;
        Ok(Proof { model, inputs, outputs, root, levels, products, rounds, weights, opening })
    }

    /// Bytes of the proof alone, without inputs and outputs.
    ///
    /// # Errors
    /// As [`to_bytes`](Self::to_bytes).
    pub fn proof_len(&self) -> Result<usize, Error> {
        let statement = Proof { inputs: Vec::new(), outputs: Vec::new(), ..self.clone() };
        Ok(statement.to_bytes()?.len())
    }
}

/// The bytes of an opening.
///
/// # Errors
/// [`Error::Prover`].
pub(crate) fn encoded(opening: &impl Serialize) -> Result<Vec<u8>, Error> {
    postcard::to_allocvec(opening).map_err(|error| Error::Prover(error.to_string()))
}

/// An opening with something behind it: its length and its bytes.
///
/// # Errors
/// [`Error::Prover`].
pub(crate) fn put_opening(w: &mut Vec<u8>, opening: &impl Serialize) -> Result<(), Error> {
    let opening = encoded(opening)?;
    w.extend_from_slice(&(opening.len() as u32).to_le_bytes());
    w.extend_from_slice(&opening);
    Ok(())
}

/// Reads an opening of at most `max` bytes.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn opening<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, Error> {
    if bytes.len() > max {
        return Err(Error::File("its opening is larger than any"));
    }
    const OPENING: Error = Error::File("its opening is damaged");
    let opening: T = postcard::from_bytes(bytes).map_err(|_| OPENING)?;
    if postcard::to_allocvec(&opening).map_err(|_| OPENING)? != bytes {
        return Err(OPENING);
    }
    Ok(opening)
}

/// A list: how many, and then each.
pub(crate) fn put_varints(w: &mut Vec<u8>, values: &[i32]) {
    w.extend_from_slice(&(values.len() as u32).to_le_bytes());
    values.iter().for_each(|value| put_varint(w, *value));
}

/// Small magnitudes in few bytes: zigzag, then seven bits a byte, the lowest first.
fn put_varint(w: &mut Vec<u8>, value: i32) {
    let mut rest = ((value << 1) ^ (value >> 31)) as u32;
    while rest >= 0x80 {
        w.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    w.push(rest as u8);
}

pub(crate) fn put_element(w: &mut Vec<u8>, element: E) {
    for coefficient in element.as_basis_coefficients_slice() {
        let coefficient: &F = coefficient;
        w.extend_from_slice(&coefficient.as_canonical_u32().to_le_bytes());
    }
}

pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.bytes.split_at_checked(count).ok_or(Error::File("it ends too early"))?;
        self.bytes = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// What [`put_opening`] wrote.
    pub(crate) fn opening<T: Serialize + DeserializeOwned>(&mut self, max: usize) -> Result<T, Error> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        opening(self.take(len)?, max)
    }

    pub(crate) fn varints(&mut self) -> Result<Vec<i32>, Error> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        // Each takes at least a byte.
        if count > self.bytes.len() {
            return Err(Error::File("it ends too early"));
        }
        (0..count).map(|_| self.varint()).collect()
    }

    fn varint(&mut self) -> Result<i32, Error> {
        let mut value = 0u64;
        for shift in (0..).step_by(7).take(5) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // No leading zeros, and nothing beyond 32 bits.
                let value = u32::try_from(value).map_err(|_| Error::File("a number is too large"))?;
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok((value >> 1) as i32 ^ -((value & 1) as i32));
            }
        }
        Err(Error::File("a number is not in its shortest form"))
    }

    fn log(&mut self) -> Result<usize, Error> {
        let [count] = self.array()?;
        if usize::from(count) > LOG_MAX {
            Err(Error::File("it is larger than any proof"))
        } else {
            Ok(count.into())
        }
    }

    fn rounds<const N: usize>(&mut self, count: usize) -> Result<Vec<[E; N]>, Error> {
        let round = |_| {
            let mut round = [E::ZERO; N];
            for element in &mut round {
                *element = self.element()?;
            }
            Ok(round)
        };
        (0..count).map(round).collect()
    }

    pub(crate) fn elements(&mut self) -> Result<Vec<E>, Error> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        if count > self.bytes.len() / ELEMENT {
            return Err(Error::File("it ends too early"));
        }
        (0..count).map(|_| self.element()).collect()
    }

    pub(crate) fn element(&mut self) -> Result<E, Error> {
        let bytes: [u8; ELEMENT] = self.array()?;
        let number = |i: usize| {
            u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        };
        if (0..ELEMENT / 4).any(|i| number(i) >= F::ORDER_U32) {
            return Err(Error::File("a number is not below the modulus"));
        }
        Ok(E::from_basis_coefficients_fn(|i| F::from_u32(number(i))))
    }
}
