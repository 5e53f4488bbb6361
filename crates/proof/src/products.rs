//! Products of two computed operands, and of constant matrices with what many places share them for, by two sum-checks (Thaler,
//! "Time-optimal interactive proofs for circuit evaluation", CRYPTO 2013).
//!
//! What the linear claim asks of products is one weighted sum of their results at the point of the batch. All results are laid in one
//! vector, so a sum-check reduces that sum to the vector's value at a point, whose last coordinates name a group, a row and
//! a column of every product. There, a result is a sum over groups, inner values and examples of products of what two
//! vectors hold: the operands with their rows folded. A second sum-check reduces that to one value of each of the two, which are
//! linear in the committed slots again, at another point of the batch.
//!
//! The results of a product fill a block with the dimensions (groups, rows, columns), its operands one with (groups, inner), each rounded
//! up to a power of two. Behind the operands' index comes the batch.
//!
//! A pointwise convolution is a product too, of its weights and of what it reads: pulled back as a linear map, each place would cost a pass over
//! the weights, and so all of them cost one. Its left operand at the point is then known to whoever has the weights, and with
//! a key the prover says it, and shows it with everything else about committed weights.

use assay_graph::{Graph, Node, Tensor, Window};
use p3_field::PrimeCharacteristicRing as _;
#[cfg(feature = "prover")]
use rayon::prelude::*;

use crate::adjoint::inner;
use crate::error::Error;
use crate::field::{Challenger, E, eq, eq_table, select};
use crate::sumcheck;
use crate::value::{Residuals, Value};

/// What a proof says about products.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProductsProof<V = E> {
    /// The weighted sum of all results.
    pub(crate) value: V,
    /// The sum-check over results.
    pub(crate) rounds: Vec<[V; 2]>,
    /// The vector of results at its point.
    pub(crate) result: V,
    /// The sum-check over operands.
    pub(crate) operand_rounds: Vec<[V; 3]>,
    /// The two vectors of operands at its point.
    pub(crate) operands: [V; 2],
    /// With committed weights, and when there are any among the left operands: what they add to the left one.
    pub(crate) matrices: Option<V>,
}

/// One product.
struct Block {
    /// The number of its node.
    node: usize,
    /// The left operand; `None` for the weights of the node.
    left: Option<Tensor>,
    /// The right operand: its rows are the columns of the result. Beside weights it is laid out the other way around, inner value by inner value.
    right: Tensor,
    /// Groups, rows, columns, inner values.
    dims: [usize; 4],
    /// The first place among the results, and among the operands; multiples of the blocks' sizes.
    results: usize,
    operands: usize,
}

impl Block {
    fn logs(&self) -> [usize; 4] {
        self.dims.map(log)
    }

    fn log_results(&self) -> usize {
        let [groups, rows, columns, _] = self.logs();
        groups + rows + columns
    }

    fn log_operands(&self) -> usize {
        let [groups, _, _, inner] = self.logs();
        groups + inner
    }
}

fn log(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}

/// The geometry and the operand of a linear map that several places share.
fn shared(node: &Node) -> Option<(&Window, Tensor)> {
    match node {
        Node::Conv { window, input, .. } if window.is_pointwise() && places(window) > 1 => {
            Some((window, *input))
        }
        Node::Committed { map, .. } => shared(map),
        _ => None,
    }
}

fn places(window: &Window) -> usize {
    window.size[0] as usize * window.size[1] as usize
}

/// Which nodes are proved as products. A map that several places share is, unless it reads what another product makes, or a product of computed
/// operands what it makes, without a look-up between them: operands must be linear in what is committed.
pub(crate) fn chosen(graph: &Graph) -> Vec<bool> {
    let nodes = graph.nodes();
    let mut read = vec![false; nodes.len() + 1];
    for (number, node) in nodes.iter().enumerate().rev() {
        let carries = match node {
            Node::Lookup { .. } => false,
            Node::Product { .. } => true,
            _ => read[number + 1],
        };
        if carries {
            node.operands().iter().for_each(|operand| read[operand.index()] = true);
        }
    }
    let mut depends = vec![false];
    let mut chosen = Vec::with_capacity(nodes.len());
    for (number, node) in nodes.iter().enumerate() {
        let reads = node.operands().iter().any(|operand| depends[operand.index()]);
        let product = match node {
            Node::Product { .. } => true,
            _ => shared(node).is_some() && !reads && !read[number + 1],
        };
        chosen.push(product);
        depends.push(product || reads && !matches!(node, Node::Lookup { .. }));
    }
    chosen
}

/// Where results and operands of all products lie.
pub(crate) struct Products {
    /// In the order of the nodes.
    blocks: Vec<Block>,
    /// Of each node, whether it is one of them.
    pub(crate) chosen: Vec<bool>,
    /// Base-two logarithm of the vector of results.
    pub(crate) log_results: usize,
    /// Base-two logarithm of a vector of operands, without the batch.
    pub(crate) log_operands: usize,
}

/// What is left of the products: values of the operands at a point.
pub(crate) struct Operands<V = E> {
    /// The point among the results.
    results: Vec<E>,
    /// The point among the operands, without the batch.
    place: Vec<E>,
    /// The point of the batch.
    pub(crate) batch: Vec<E>,
    pub(crate) values: [V; 2],
}

impl Products {
    pub(crate) fn new(graph: &Graph) -> Products {
        let chosen = chosen(graph);
        let mut blocks = Vec::new();
        for (node, kind) in graph.nodes().iter().enumerate().filter(|(node, _)| chosen[*node]) {
            let (left, right, dims) = match (kind, shared(kind)) {
                (Node::Product { inputs: [a, b], groups, rows, columns, inner }, _) => {
                    (Some(*a), *b, [*groups, *rows, *columns, *inner].map(|size| size as usize))
                }
                (_, Some((window, input))) => {
                    let [filters, channels] = [window.filters, window.channels].map(|size| size as usize);
                    (None, input, [1, filters, places(window), channels])
                }
                _ => continue,
            };
            blocks.push(Block { node, left, right, dims, results: 0, operands: 0 });
        }
        let log_results = Products::place(&mut blocks, Block::log_results, |block| &mut block.results);
        let log_operands = Products::place(&mut blocks, Block::log_operands, |block| &mut block.operands);
        Products { blocks, chosen, log_results, log_operands }
    }

    /// Lays blocks behind each other, large ones first, so that each lies at a multiple of its size. Returns the logarithm of all.
    fn place(blocks: &mut [Block], log_of: fn(&Block) -> usize, set: fn(&mut Block) -> &mut usize) -> usize {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(log_of(&blocks[*at])));
        // A graph bounds the values of all tensors, and each dimension at most doubles: this does not overflow.
        let mut next = 0u64;
        for at in order {
            *set(&mut blocks[at]) = next as usize;
            next += 1 << log_of(&blocks[at]);
        }
        next.next_power_of_two().trailing_zeros() as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether weights are among the left operands.
    pub(crate) fn has_matrices(&self) -> bool {
        self.blocks.iter().any(|block| block.left.is_none())
    }

    /// The share of a block in the vector of results at a point, and the point inside of it: group, row, column.
    fn at_results<'a>(&self, block: &Block, point: &'a [E]) -> (E, [&'a [E]; 3]) {
        let (high, place) = point.split_at(self.log_results - block.log_results());
        let [groups, rows, _, _] = block.logs();
        let (group, rest) = place.split_at(groups);
        let (row, column) = rest.split_at(rows);
        (select(high, block.results >> block.log_results()), [group, row, column])
    }

    /// As [`at_results`](Self::at_results) among the operands: group and inner value.
    fn at_operands<'a>(&self, block: &Block, point: &'a [E]) -> (E, [&'a [E]; 2]) {
        let (high, place) = point.split_at(self.log_operands - block.log_operands());
        let (group, inner) = place.split_at(block.logs()[0]);
        (select(high, block.operands >> block.log_operands()), [group, inner])
    }

    /// The weights of the results at a point: `weights` has those of each product.
    fn weight_at(&self, weights: &[Vec<E>], point: &[E]) -> E {
        let share = |(block, weights): (&Block, &Vec<E>)| {
            let (share, [group, row, column]) = self.at_results(block, point);
            let [_, rows, columns, _] = block.dims;
            let (rows_table, columns_table) = (eq_table(row), eq_table(column));
            let groups = weights.chunks_exact(rows * columns).zip(eq_table(group));
            let sum: E = groups
                .map(|(weights, group)| {
                    let rows = weights.chunks_exact(columns).zip(&rows_table);
                    let sum: E = rows
                        .map(|(weights, row)| {
                            let row_sum: E = weights.iter().zip(&columns_table).map(|(w, eq)| *w * *eq).sum();
                            row_sum * *row
                        })
                        .sum();
                    sum * group
                })
                .sum();
            share * sum
        };
        self.blocks.iter().zip(weights).map(share).sum()
    }

    /// Follows the weighted sum of results to values of the operands.
    ///
    /// # Errors
    /// [`Error::Rejected`].
    pub(crate) fn verify<V: Value>(
        &self,
        weights: &[Vec<E>],
        batch: &[E],
        proof: &ProductsProof<V>,
        challenger: &mut Challenger,
        residuals: &mut Residuals,
    ) -> Result<Operands<V>, Error> {
        const WRONG: &str = "a product is wrong";
        let one = V::known(E::ONE);
        if proof.rounds.len() != self.log_results
            || proof.operand_rounds.len() != self.log_operands + batch.len()
        {
            return Err(Error::Rejected("it is of another size"));
        }
        V::absorb(&[proof.value], challenger);
        let mut claim = proof.value;
        let results = sumcheck::verify(&proof.rounds, &mut claim, challenger);
        let product = one.times(proof.result * self.weight_at(weights, &results));
        V::equal(product, claim, residuals, WRONG)?;
        V::absorb(&[proof.result], challenger);
        let mut claim = proof.result;
        let point = sumcheck::verify_cubic(&proof.operand_rounds, &mut claim, challenger);
        let (place, batch_point) = point.split_at(self.log_operands);
        let share = |block: &Block| {
            let (result, [result_group, _, _]) = self.at_results(block, &results);
            let (operand, [group, _]) = self.at_operands(block, place);
            result * operand * eq(result_group, group)
        };
        let weight = self.blocks.iter().map(share).sum::<E>() * eq(batch, batch_point);
        V::equal(proof.operands[0].times(proof.operands[1]) * weight, claim, residuals, WRONG)?;
        V::absorb(&proof.operands, challenger);
        let (place, batch) = (place.to_vec(), batch_point.to_vec());
        Ok(Operands { results, place, batch, values: proof.operands })
    }

    /// What weights among the left operands add to the left one at the point, for each map the vectors whose outer product its weights are summed
    /// with: one value a row and one a column.
    pub(crate) fn forms<V>(&self, operands: &Operands<V>) -> Vec<(Vec<E>, Vec<E>)> {
        let matrices = self.blocks.iter().filter(|block| block.left.is_none());
        let form = |block: &Block| {
            let (_, [_, row, _]) = self.at_results(block, &operands.results);
            let (share, [_, inner]) = self.at_operands(block, &operands.place);
            let [_, rows, _, inners] = block.dims;
            let rows = eq_table(row)[..rows].iter().map(|row| *row * share).collect();
            (rows, eq_table(inner)[..inners].to_vec())
        };
        matrices.map(form).collect()
    }

    /// The sum of what [`forms`](Self::forms) says, for a graph with its weights.
    pub(crate) fn matrices(&self, graph: &Graph, forms: &[(Vec<E>, Vec<E>)]) -> E {
        let nodes =
            self.blocks.iter().filter(|block| block.left.is_none()).map(|block| &graph.nodes()[block.node]);
        nodes.zip(forms).map(|(node, (rows, columns))| bilinear(weights(node), rows, columns)).sum()
    }

    /// The weights of each operand's values in `left + mu · right` of the values at the point, block by block: all of them together may be many
    /// times as much as the graph.
    pub(crate) fn seeds<V>(&self, operands: &Operands<V>, mu: E) -> impl Iterator<Item = (Tensor, Vec<E>)> {
        self.blocks.iter().flat_map(move |block| {
            let (_, [_, row, column]) = self.at_results(block, &operands.results);
            let (share, [group, inner]) = self.at_operands(block, &operands.place);
            let [groups, rows, columns, inners] = block.dims;
            let (group, inner) = (&eq_table(group)[..groups], &eq_table(inner)[..inners]);
            let outer = |a: &[E], b: &[E], factor: E| -> Vec<E> {
                a.iter().flat_map(|a| b.iter().map(move |b| *a * factor * *b)).collect()
            };
            let Some(left) = block.left else {
                let places = &eq_table(column)[..columns];
                return vec![(block.right, outer(inner, places, share * mu))];
            };
            let side = |input: Tensor, rows: usize, point: &[E], factor: E| {
                let plane = outer(&eq_table(point)[..rows], inner, factor * share);
                (input, outer(group, &plane, E::ONE))
            };
            vec![side(left, rows, row, E::ONE), side(block.right, columns, column, mu)]
        })
    }
}

/// The weights of a linear map.
fn weights(node: &Node) -> &[i32] {
    match node {
        Node::Linear { weights, .. } | Node::Conv { weights, .. } => weights,
        _ => &[],
    }
}

/// `Σ_(r, c) rows[r] · matrix[r][c] · columns[c]`.
fn bilinear(matrix: &[i32], rows: &[E], columns: &[E]) -> E {
    let term = |(matrix, row): (&[i32], &E)| inner(matrix, columns) * *row;
    #[cfg(feature = "prover")]
    return matrix.par_chunks_exact(columns.len()).zip(rows).map(term).sum();
    #[cfg(not(feature = "prover"))]
    return matrix.chunks_exact(columns.len()).zip(rows).map(term).sum();
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::adjoint::transposed;
    use crate::circuit::LOG_MIN;
    use crate::field::{F, int, observe};
    use crate::verify::batched;
    use assay_graph::Trace;

    /// The values of one product, example by example. A matrix is the left operand of all of them.
    pub(crate) struct Values {
        pub(crate) results: Vec<i32>,
        pub(crate) operands: [Vec<i32>; 2],
    }

    /// The values of all products, in the order of the nodes.
    pub(crate) fn values(products: &Products, graph: &Graph, trace: &Trace) -> Vec<Values> {
        let of = |block: &Block| {
            let mut results = trace.tensor(Tensor(block.node as u32 + 1)).to_vec();
            let node = &graph.nodes()[block.node];
            if let Node::Conv { bias, .. } = node {
                let planes = results.chunks_exact_mut(block.dims[2]);
                planes
                    .zip(bias.iter().cycle())
                    .for_each(|(plane, bias)| plane.iter_mut().for_each(|y| *y -= bias));
            }
            let left = block.left.map_or(weights(node), |left| trace.tensor(left));
            Values { results, operands: [left.to_vec(), trace.tensor(block.right).to_vec()] }
        };
        products.blocks.iter().map(of).collect()
    }

    impl Products {
        /// The vector in which lists of one number for each result lie.
        fn laid_out<T: Copy>(&self, lists: &[Vec<T>], zero: T) -> Vec<T> {
            let mut out = vec![zero; 1 << self.log_results];
            for (block, list) in self.blocks.iter().zip(lists) {
                let [_, rows, columns, _] = block.dims;
                let [_, rows_log, columns_log, _] = block.logs();
                for (number, list) in list.chunks_exact(columns).enumerate() {
                    let (group, row) = (number / rows, number % rows);
                    let first = block.results + (((group << rows_log) + row) << columns_log);
                    out[first..first + columns].copy_from_slice(list);
                }
            }
            out
        }

        /// Proves the weighted sum of these results, whether or not they are true.
        pub(crate) fn prove(
            &self,
            weights: &[Vec<E>],
            batch: &[E],
            values: &[Values],
            challenger: &mut Challenger,
        ) -> (ProductsProof, Operands) {
            let batch_table = eq_table(batch);
            let functional = self.laid_out(weights, E::ZERO);
            let value;
            let (rounds, point, result) = if batch.is_empty() && self.log_results >= LOG_MIN {
                // One example: the results are integers.
                let lists = values.iter().map(|values| values.results.iter().map(|y| int(*y)).collect());
                let results = self.laid_out(&lists.collect::<Vec<Vec<F>>>(), F::ZERO);
                value = results.par_iter().zip(&functional).map(|(result, weight)| *weight * *result).sum();
                observe(challenger, &[value]);
                sumcheck::prover::prove(&results, functional, value, challenger)
            } else {
                let at_batch = |(values, weights): (&Values, &Vec<E>)| {
                    batched(&values.results, weights.len(), &batch_table)
                };
                let lists: Vec<Vec<E>> = values.iter().zip(weights).map(at_batch).collect();
                let results = self.laid_out(&lists, E::ZERO);
                value = results.par_iter().zip(&functional).map(|(result, weight)| *weight * *result).sum();
                observe(challenger, &[value]);
                sumcheck::prover::prove_extension(results, functional, value, challenger)
            };
            observe(challenger, &[result]);

            let len = batch_table.len();
            let mut vectors = [(); 3].map(|()| vec![E::ZERO; len << self.log_operands]);
            for (block, values) in self.blocks.iter().zip(values) {
                let (share, [group, row, column]) = self.at_results(block, &point);
                let [groups, rows, columns, inner] = block.dims;
                let inner_log = block.logs()[3];
                for (group, eq) in eq_table(group).iter().enumerate() {
                    let eq = share * *eq;
                    // Also where the operands are padded with zeros: the verifier knows the extension of all.
                    let first = (block.operands + (group << inner_log)) * len;
                    for weights in vectors[0][first..first + (len << inner_log)].chunks_exact_mut(len) {
                        weights.iter_mut().zip(&batch_table).for_each(|(out, batch)| *out = eq * *batch);
                    }
                }
                let sides = [(&values.operands[0], rows, row), (&values.operands[1], columns, column)];
                for (side, ((values, rows, point), out)) in
                    sides.into_iter().zip(&mut vectors[1..]).enumerate()
                {
                    let table = &eq_table(point)[..rows];
                    let examples = values.len() / (groups * rows * inner);
                    for (at, matrix) in values.chunks_exact(rows * inner).enumerate() {
                        let (example, group) = (at / groups, at % groups);
                        let folded: Vec<E> = match (block.left, side) {
                            (None, 0) => combined(matrix, table, inner),
                            (None, _) => matrix.chunks_exact(rows).map(|x| super::inner(x, table)).collect(),
                            _ if rows == 1 => matrix.iter().map(|x| E::from(int(*x))).collect(),
                            _ => transposed(matrix, table, inner),
                        };
                        // The last example stands for those that are missing.
                        let copies =
                            if example + 1 == examples { example..len } else { example..example + 1 };
                        for (k, value) in folded.into_iter().enumerate() {
                            let first = (block.operands + (group << inner_log) + k) * len;
                            out[first + copies.start..first + copies.end].fill(value);
                        }
                    }
                }
            }
            let [weights, left, right] = vectors;
            let (operand_rounds, end, operands) =
                sumcheck::prover::prove_cubic(weights, [left, right], result, challenger);
            observe(challenger, &operands);
            let (place, batch) = end.split_at(self.log_operands);
            let (place, batch) = (place.to_vec(), batch.to_vec());
            let reduced = Operands { results: point, place, batch, values: operands };
            (ProductsProof { value, rounds, result, operand_rounds, operands, matrices: None }, reduced)
        }
    }

    /// As [`transposed`], on all threads.
    fn combined(matrix: &[i32], table: &[E], columns: usize) -> Vec<E> {
        let rows = table.len().div_ceil(4 * rayon::current_num_threads());
        let parts = matrix.par_chunks(rows * columns).zip(table.par_chunks(rows));
        let sums = parts.map(|(matrix, table)| transposed(matrix, table, columns));
        let add = |mut a: Vec<E>, b: Vec<E>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        sums.reduce(|| vec![E::ZERO; columns], add)
    }
}
