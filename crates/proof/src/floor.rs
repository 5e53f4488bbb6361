//! What the protocol's field operations and hashes cost without anything else.
//!
//! Counted are the passes over the vectors of one proof, with its sizes: transforms and hashes of the commitment's codewords, the tree of
//! fractions, and every round of every sum-check. Where numbers of the base field, ones or zeros make a pass cheaper, it is counted as that: the layers of a transform
//! that only copy, the first rounds of sum-checks over committed vectors, the numerators of leaves. Left out are memory, wiring,
//! table look-ups, running the model, samples outside the domain, what has logarithmic size, and proof of work. [`Operations::spend`]
//! does as many of them on numbers that stay in the cache, so its time is about the floor of a machine, and a prover's distance from it is
//! what could still be gained.

use assay_graph::{Graph, Node};
use p3_field::{Field, PackedFieldExtension, PackedValue as _, PrimeCharacteristicRing as _};
use p3_symmetric::CryptographicHasher as _;
use rayon::prelude::*;

use crate::Error;
use crate::circuit::Circuit;
use crate::commitment;
use crate::field::{DEGREE, E, F};
use crate::hash::Blake3;
use crate::packed::{Packed, WIDTH};

/// Numbers of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operations {
    /// Multiplications in the field of challenges, of degree 5.
    pub extension: f64,
    /// Multiplications in the field of 31 bits.
    pub base: f64,
    /// Bytes hashed with BLAKE3 in messages of 64.
    pub hashed: f64,
}

/// What a proof about a batch needs, with the model's weights in the open.
///
/// # Errors
/// [`Error::Size`] when no proof covers the batch.
pub fn operations(graph: &Graph, batch: usize) -> Result<Operations, Error> {
    let circuit = Circuit::new(graph);
    let sizes = circuit.sizes(batch)?;
    let size = |log: usize| 2f64.powi(log as i32);
    let (leaves, values) = (size(sizes.log_rows), size(sizes.log_committed));

    // Each codeword: a transform, and its leaves and the nodes above them. The first is over the base field.
    let (mut base, mut hashed, mut extension) = (0.0, 0.0, 0.0);
    for (number, (log, log_domain, folding)) in
        commitment::prover::codewords(sizes.log_committed)?.into_iter().enumerate()
    {
        let degree = if number == 0 { 1.0 } else { DEGREE as f64 };
        // Layers above the rate only copy; the last `folding` variables are columns.
        base += degree * size(log_domain) * (log - folding) as f64 / 2.0;
        hashed += 4.0 * degree * size(log_domain) + 64.0 * size(log_domain - folding);
    }
    // A sum-check of degree 2 over two vectors of N: two products a pair and round, and two folds. Where one of them is over the base field,
    // all but a fold of the first round's N / 2 pairs are products with that.
    let rounds = 4.0;
    let mixed = DEGREE as f64;
    // The one in the opening, and the one before it with the weights of the linear claim.
    extension += 2.0 * (rounds - 1.5) * values + values;
    base += 2.0 * 1.5 * mixed * values;
    // Three products a pair to add fractions, one where all numerators are 1, as those of nearly all leaves are; four and two with eq to sum, four folds and
    // the table of eq; λ. Of the N / 4 pairs of the last level's first round, a product and two folds are with numerators of the base field.
    extension += (2.0 + 11.0 - 0.75 + 0.5) * leaves;
    base += 0.75 * mixed * leaves;
    if !circuit.products.is_empty() {
        let operands = size(circuit.products.log_operands + sizes.log_batch);
        // The sum-check of degree 3 has three vectors: eight products a pair, and three folds.
        extension += (rounds + 1.0) * size(circuit.products.log_results) + 11.0 * operands;
    }
    // Every weight is multiplied once, with a number in the field of challenges; in a convolution with more than one place, with as many as
    // there are, if it is no product.
    for (number, node) in graph.nodes().iter().enumerate() {
        base += DEGREE as f64
            * match node {
                Node::Linear { weights, .. } => weights.len() as f64,
                Node::Conv { window, weights, .. } => {
                    let places = f64::from(window.output[0]) * f64::from(window.output[1]);
                    weights.len() as f64 * if circuit.products.chosen[number] { 1.0 } else { places }
                }
                _ => 0.0,
            };
    }
    Ok(Operations { extension, base, hashed })
}

/// Elements that one thread works on at a time: they stay in its first cache.
const CHUNK: usize = 256;

impl Operations {
    /// Does as many operations on all threads, or a `share` of them between 0 and 1. The number that it returns depends on all of them, so
    /// that none is left out.
    pub fn spend(&self, share: f64) -> u64 {
        let threads = rayon::current_num_threads();
        let times = |count: f64, each: usize| (count * share / (threads * each) as f64).ceil() as usize;
        let work = |thread: usize| {
            let seed = F::from_usize(thread + 2);
            let factor = Packed::from(E::from(seed) + E::ONE);
            let mut wide = vec![factor; CHUNK / WIDTH];
            for _ in 0..times(self.extension, CHUNK) {
                wide.iter_mut().for_each(|x| *x *= factor);
            }
            let factor = <F as Field>::Packing::from(seed);
            let mut narrow = vec![factor; 8 * CHUNK / WIDTH];
            for _ in 0..times(self.base, 8 * CHUNK) {
                narrow.iter_mut().for_each(|x| *x = *x * factor + factor);
            }
            let (mut bytes, mut hashes) = (vec![thread as u8; 64 * CHUNK], vec![[0; 32]; CHUNK]);
            for _ in 0..times(self.hashed, 64 * CHUNK) {
                Blake3.hash_many(&bytes, &mut hashes);
                bytes[..32].copy_from_slice(&hashes[0]);
            }
            let wide: E = <Packed as PackedFieldExtension<F, E>>::to_ext_iter(wide).sum();
            let narrow: F = <F as Field>::Packing::unpack_slice(&narrow).iter().copied().sum();
            u64::from(wide == E::ZERO) + u64::from(narrow == F::ZERO) + u64::from(hashes[CHUNK - 1][0])
        };
        (0..threads).into_par_iter().map(work).sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use assay_graph::{Interface, Range, Table, Tensor};

    /// The counts follow the sizes: twice the batch needs twice of everything where both are powers of two.
    #[test]
    fn twice_as_many_need_twice_as_much() {
        let nodes = vec![Node::Lookup { input: Tensor::INPUT, shift: 0, table: 0 }];
        let tables = vec![Table::clamp(0, 15, 0, 9)];
        let inputs = vec![Range { low: 0, high: 15 }; 64];
        let graph = Graph::new(inputs, tables, nodes, Tensor(1), Interface::plain(64)).unwrap();
        let [small, large] = [256, 512].map(|batch| operations(&graph, batch).unwrap());
        for (small, large) in
            [(small.extension, large.extension), (small.base, large.base), (small.hashed, large.hashed)]
        {
            assert!((1.8..2.3).contains(&(large / small)), "{small} {large}");
        }
        // 2^15 leaves and values: some 19 multiplications each.
        assert_eq!(small.extension, 18.75 * 32768.0);
        small.spend(1e-3);
        assert!(operations(&graph, 0).is_err());
    }
}
