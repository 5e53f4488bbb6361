//! Committed weights: where each lies in the committed vector, and the proof of what they add to the linear claim.
//!
//! What a map with committed weights `W` adds is a bilinear form `out^T W x` of vectors that the verifier knows: `out` from
//! [`pull_back`](crate::adjoint::pull_back), `x` from [`forward`]. The prover says two such numbers, what the weights make of inputs
//! and constants, and what they add to the weight of the committed values at a point. Both are linear in the weights with the
//! same `out`, so one sum-check over the weights holds both, and its end is one value of the committed vector. It also holds what the weights of
//! maps that several places share add to the left operands of [`products`](crate::products), a form of the same kind.
//!
//! The weights of a map fill a block with the dimensions (rows, columns, 1) or (filters, channels of a group, kernel), each
//! rounded up to a power of two, so that the extension of `out^T · x` at a point needs work in the widths only. Its biases fill another one.

use std::borrow::Cow;

use assay_graph::{Graph, Node, Window};
use p3_field::PrimeCharacteristicRing as _;

use crate::adjoint::{forward, planes};
use crate::circuit::{Circuit, LOG_MAX, LOG_MIN};
use crate::error::Error;
use crate::field::{Challenger, E, draw, eq, eq_table, select};
use crate::file::WeightsProof;
use crate::key::Key;
use crate::sumcheck;
use crate::value::{Residuals, Value};
use crate::verify::Claim;

/// Part of the vector.
#[derive(Clone, Debug)]
struct Block {
    /// The dimensions.
    dims: [usize; 3],
    /// The first place; a multiple of the block's size.
    offset: usize,
}

impl Block {
    fn new(dims: [usize; 3]) -> Block {
        Block { dims, offset: 0 }
    }

    fn logs(&self) -> [usize; 3] {
        self.dims.map(log)
    }

    fn log(&self) -> usize {
        self.logs().iter().sum()
    }
}

/// Where one map's weights and biases lie.
#[derive(Clone, Debug)]
struct Map {
    /// The number of its node.
    #[cfg_attr(not(feature = "prover"), expect(dead_code, reason = "the prover finds the weights with it"))]
    node: usize,
    /// Of a convolution that is no product.
    window: Option<Window>,
    /// Of one that is proved as a product, which of all products it is.
    product: Option<usize>,
    weights: Block,
    biases: Block,
}

/// What a map's weights and biases are summed with.
struct Form<'a> {
    /// The vectors of the bilinear form.
    out: Cow<'a, [E]>,
    x: Vec<E>,
    /// One a bias.
    biases: Vec<E>,
}

/// A form for no map, or a map without one.
const FORMS: Error = Error::Rejected("its committed weights are not those of the model");

/// Where all weights lie.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// In the order of the nodes.
    maps: Vec<Map>,
    /// Places up to the last block's end.
    pub(crate) used: usize,
    /// Base-two logarithm of the vector.
    pub(crate) log: usize,
}

fn log(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}

impl Layout {
    /// Finds the maps with committed weights.
    ///
    /// # Errors
    /// [`Error::Key`] when there are too many, or one reads what another one or a product makes, or a product what one makes,
    /// without a look-up between them.
    pub(crate) fn new(graph: &Graph) -> Result<Layout, Error> {
        let chosen = crate::products::chosen(graph);
        // A map with its weights beside one without would be read as if it had none: a key has no weights at all.
        let maps = |kind: fn(&Node) -> bool| graph.nodes().iter().any(kind);
        if maps(|node| matches!(node, Node::Committed { .. }))
            && maps(|node| matches!(node, Node::Linear { .. } | Node::Conv { .. }))
        {
            return Err(Error::Key("some of its weights are committed and some are not"));
        }
        let mut maps = Vec::new();
        let (mut total, mut products) = (0u64, 0);
        // Whether a tensor depends on committed weights or on a product other than through a look-up.
        let mut depends = vec![false];
        for (node, kind) in graph.nodes().iter().enumerate() {
            let reads = kind.operands().iter().any(|operand| depends[operand.index()]);
            depends.push(reads && !matches!(kind, Node::Lookup { .. }));
            let product = chosen[node].then_some(products);
            products += usize::from(chosen[node]);
            if matches!(kind, Node::Committed { .. } | Node::Product { .. }) {
                if reads {
                    return Err(Error::Key(
                        "a linear map or product follows another one without a look-up between them",
                    ));
                }
                depends[node + 1] = true;
            }
            let Node::Committed { map, .. } = kind else { continue };
            let (window, dims) = match &**map {
                Node::Linear { input, rows, .. } => (None, [*rows as usize, graph.width(*input), 1]),
                Node::Conv { window, .. } => {
                    let area = window.kernel[0] as usize * window.kernel[1] as usize;
                    let channels = (window.channels / window.groups) as usize;
                    (Some(*window).filter(|_| product.is_none()), [window.filters as usize, channels, area])
                }
                _ => continue,
            };
            let (weights, biases) = (Block::new(dims), Block::new([dims[0], 1, 1]));
            for block in [&weights, &biases] {
                total = total.saturating_add(1u64.checked_shl(block.log() as u32).unwrap_or(u64::MAX));
            }
            maps.push(Map { node, window, product, weights, biases });
        }
        if total > 1 << LOG_MAX {
            return Err(Error::Key("there are too many weights for one commitment"));
        }
        // Large ones first, so that each lies at a multiple of its size.
        let mut order: Vec<&mut Block> =
            maps.iter_mut().flat_map(|map| [&mut map.weights, &mut map.biases]).collect();
        order.sort_by_key(|block| std::cmp::Reverse(block.log()));
        let mut used = 0;
        for block in order {
            block.offset = used;
            used += 1 << block.log();
        }
        Ok(Layout { maps, used, log: log(used).max(LOG_MIN) })
    }

    /// Whether no weight is committed.
    pub(crate) fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// For each map, its share in `known + tau · at_point + tau² · matrices`. Biases are in `known` alone.
    fn forms<'a, V: Value>(
        &self,
        circuit: &Circuit<'_>,
        claim: &'a Claim<V>,
        point: &[E],
        tau: E,
    ) -> Result<Vec<Form<'a>>, Error> {
        let (high, low) = point.split_at(claim.sizes.log_committed - claim.sizes.log_batch);
        let known = forward(circuit, &vec![E::ZERO; circuit.slots], &claim.inputs, E::ONE);
        let slots = &eq_table(high)[..circuit.slots];
        // Hidden inputs are the first slots.
        let mut inputs = slots[..circuit.inputs.len()].to_vec();
        inputs.resize(claim.inputs.len(), E::ZERO);
        let at_point = forward(circuit, slots, &inputs, E::ZERO);
        let share = tau * eq(&claim.batch, low);
        let add = |(known, at_point): (Vec<E>, Vec<E>)| {
            known.into_iter().zip(at_point).map(|(known, at_point)| known + share * at_point).collect()
        };
        let x = known.into_iter().zip(at_point).map(add);
        let mut others = claim.committed.iter().zip(x);
        let mut products = claim.matrices.forms.iter();
        let tau_2 = tau * tau;
        // There is one for each map: `new` has found every one without its weights, and no other is there.
        let form = |map: &Map| {
            let biases = |results: &[E]| planes(results, map.biases.dims[0]);
            Some(match map.product {
                None => {
                    let (out, x) = others.next()?;
                    Form { biases: biases(out), out: Cow::from(out), x }
                }
                Some(product) => {
                    let (rows, columns) = products.next()?;
                    let out = rows.iter().map(|row| *row * tau_2).collect();
                    Form { biases: biases(claim.products.get(product)?), out, x: columns.clone() }
                }
            })
        };
        let forms = self.maps.iter().map(form).collect::<Option<Vec<_>>>();
        forms.filter(|_| products.next().is_none() && others.next().is_none()).ok_or(FORMS)
    }

    /// The share of a block in the vector at a point, and the tables of the point inside of it.
    fn at_block(&self, block: &Block, point: &[E]) -> (E, [Vec<E>; 3]) {
        let (high, place) = point.split_at(self.log - block.log());
        let [a, b, _] = block.logs();
        let tables = [&place[..a], &place[a..a + b], &place[a + b..]].map(eq_table);
        (select(high, block.offset >> block.log()), tables)
    }

    /// The value at a point of the function whose product with the weights is summed.
    fn at(&self, forms: &[Form<'_>], point: &[E]) -> E {
        let dot = |a: &[E], b: &[E]| a.iter().zip(b).map(|(a, b)| *a * *b).sum::<E>();
        let mut total = E::ZERO;
        for (map, Form { out, x, biases }) in self.maps.iter().zip(forms) {
            let (share, [table, ..]) = self.at_block(&map.biases, point);
            total += share * dot(biases, &table);
            let (share, [a, b, c]) = self.at_block(&map.weights, point);
            let value = match &map.window {
                None => dot(out, &a) * dot(x, &b),
                Some(window) => {
                    // Filters and channels are summed first, one plane a group; a depthwise convolution is left.
                    let groups = window.groups as usize;
                    let [filters, channels, _] = map.weights.dims;
                    let fold = |values: &[E], planes: usize, weights: &dyn Fn(usize) -> E| {
                        let plane = values.len() / planes;
                        let mut sums = vec![E::ZERO; plane * groups];
                        for (number, values) in values.chunks_exact(plane).enumerate() {
                            let sums = &mut sums[number / (planes / groups) * plane..][..plane];
                            let weight = weights(number);
                            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * *value);
                        }
                        sums
                    };
                    let out = fold(out, filters, &|filter| a[filter]);
                    let x = fold(x, channels * groups, &|channel| b[channel % channels]);
                    let groups = window.groups;
                    let single = Window { channels: groups, filters: groups, ..*window };
                    let mut sum = E::ZERO;
                    let (area, stride) = (map.weights.dims[2], window.stride[1] as usize);
                    single.runs(|at, input, weight, count| {
                        let run: E = (0..count).map(|i| out[at + i] * x[input + i * stride]).sum();
                        sum += c[weight % area] * run;
                    });
                    sum
                }
            };
            total += share * value;
        }
        total
    }

    /// Checks what a proof says about the committed weights.
    ///
    /// # Errors
    /// [`Error::Rejected`].
    #[expect(clippy::too_many_arguments, reason = "everything that the protocol has sent so far")]
    pub(crate) fn check<V: Value>(
        &self,
        circuit: &Circuit<'_>,
        claim: &Claim<V>,
        point: &[E],
        key: &Key,
        weights: &WeightsProof<V>,
        challenger: &mut Challenger,
        residuals: &mut Residuals,
    ) -> Result<(), Error> {
        if weights.rounds.len() != self.log {
            return Err(Error::Rejected("it is of another size"));
        }
        V::absorb(&[weights.at_point], challenger);
        let tau = draw(challenger);
        let forms = self.forms(circuit, claim, point, tau)?;
        let mut value = weights.known + weights.at_point * tau + claim.matrices.value * (tau * tau);
        let end = sumcheck::verify(&weights.rounds, &mut value, challenger);
        let opened = key.opened(&weights.opening, &end, challenger)?;
        let product = V::known(E::ONE).times(V::known(self.at(&forms, &end) * opened));
        V::equal(product, value, residuals, "the committed weights give other values")
    }
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::field::{F, int, observe};
    use crate::key::prover::Committed;
    use rayon::prelude::*;

    impl Block {
        /// The place of what a node lists at `at`.
        fn place(&self, at: usize) -> usize {
            let [_, b, c] = self.dims;
            let [_, b_log, c_log] = self.logs();
            self.offset + ((((at / (b * c)) << b_log) + at / c % b) << c_log) + at % c
        }
    }

    impl Layout {
        /// The vector of the weights and biases of a graph.
        pub(crate) fn vector(&self, graph: &Graph) -> Vec<F> {
            let mut out = vec![F::ZERO; 1 << self.log];
            for map in &self.maps {
                if let Node::Linear { weights, bias, .. } | Node::Conv { weights, bias, .. } =
                    &graph.nodes()[map.node]
                {
                    for (block, values) in [(&map.weights, weights), (&map.biases, bias)] {
                        for (at, value) in values.iter().enumerate() {
                            out[block.place(at)] = int(*value);
                        }
                    }
                }
            }
            out
        }

        /// What [`at`](Layout::at) extends: the function at every place.
        fn function(&self, forms: &[Form<'_>]) -> Vec<E> {
            let mut function = vec![E::ZERO; 1 << self.log];
            for (map, Form { out, x, biases }) in self.maps.iter().zip(forms) {
                function[map.biases.offset..][..biases.len()].copy_from_slice(biases);
                match &map.window {
                    None => function[map.weights.offset..]
                        .par_chunks_mut(1 << map.weights.logs()[1])
                        .zip(out.par_iter())
                        .for_each(|(row, out)| {
                            row.iter_mut().zip(x).for_each(|(place, x)| *place = *out * *x)
                        }),
                    Some(window) => {
                        let stride = window.stride[1] as usize;
                        window.runs(|at, input, weight, count| {
                            let run: E = (0..count).map(|i| out[at + i] * x[input + i * stride]).sum();
                            function[map.weights.place(weight)] += run;
                        });
                    }
                }
            }
            function
        }

        /// Proves `known`, `at_point` and what matrices add to products, whether or not they are true.
        ///
        /// # Errors
        /// [`Error::Prover`].
        #[expect(clippy::too_many_arguments, reason = "everything that the protocol has sent so far")]
        pub(crate) fn prove(
            &self,
            circuit: &Circuit<'_>,
            claim: &Claim,
            point: &[E],
            vector: &[F],
            committed: Committed,
            [known, at_point]: [E; 2],
            challenger: &mut Challenger,
        ) -> Result<WeightsProof, Error> {
            observe(challenger, &[at_point]);
            let tau = draw(challenger);
            let function = self.function(&self.forms(circuit, claim, point, tau)?);
            let value = known + tau * (at_point + tau * claim.matrices.value);
            let (rounds, end, _) = sumcheck::prover::prove(vector, function, value, challenger);
            let opening = committed.open(&end, challenger)?;
            Ok(WeightsProof { known, at_point, rounds, opening })
        }
    }
}
