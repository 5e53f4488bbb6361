//! Exact evaluation.

use crate::node::{ZERO, half};
use crate::{Error, Graph, Node, Tensor};

/// The values of every tensor for a batch of inputs: what a proof is made from.
#[derive(Clone, Debug)]
pub struct Trace {
    batch: usize,
    output: usize,
    tensors: Vec<Vec<i32>>,
}

impl Trace {
    /// The number of examples.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The values of a tensor, example by example.
    ///
    /// # Panics
    /// When the tensor is not of the graph that ran.
    pub fn tensor(&self, tensor: Tensor) -> &[i32] {
        &self.tensors[tensor.index()]
    }

    /// The results, example by example.
    pub fn output(&self) -> &[i32] {
        &self.tensors[self.output]
    }
}

impl Graph {
    /// Evaluates the graph on a batch: `inputs` holds the examples one after the other.
    ///
    /// # Errors
    /// [`Error::Input`] when the number of values is no positive multiple of the graph's, or a value lies outside its range.
    pub fn run(&self, inputs: &[i32]) -> Result<Trace, Error> {
        let batch = self.check_inputs(inputs)?;
        if self.nodes.iter().any(|node| matches!(node, Node::Committed { .. })) {
            return Err(Error::Input("its weights are not here, only a commitment to them".into()));
        }
        let mut tensors: Vec<Vec<i32>> = vec![inputs.to_vec()];
        for (number, node) in self.nodes.iter().enumerate() {
            let width = self.shapes[number + 1].0;
            let mut out = vec![0i32; width * batch];
            for (example, out) in out.chunks_exact_mut(width).enumerate() {
                let x = |tensor: Tensor| {
                    let width = self.shapes[tensor.index()].0;
                    &tensors[tensor.index()][example * width..][..width]
                };
                self.step(node, x, out);
            }
            tensors.push(out);
        }
        Ok(Trace { batch, output: self.output.index(), tensors })
    }

    /// The number of examples in a batch of inputs, each of which was found inside its range.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn check_inputs(&self, inputs: &[i32]) -> Result<usize, Error> {
        let width = self.inputs.len();
        if inputs.is_empty() || !inputs.len().is_multiple_of(width) {
            return Err(Error::Input(format!("{} values, where each example has {width}", inputs.len())));
        }
        for example in inputs.chunks_exact(width) {
            if let Some(at) =
                example.iter().zip(&self.inputs).position(|(value, range)| !range.contains(*value))
            {
                let range = self.inputs[at];
                return Err(Error::Input(format!(
                    "value {at} is {}, outside {} to {}",
                    example[at], range.low, range.high
                )));
            }
        }
        Ok(inputs.len() / width)
    }

    /// One node on one example. No sum overflows: the graph was checked for every input in range.
    fn step<'a>(&self, node: &Node, x: impl Fn(Tensor) -> &'a [i32], out: &mut [i32]) {
        match node {
            Node::Linear { input, weights, bias, .. } => {
                let x = x(*input);
                for ((out, row), bias) in out.iter_mut().zip(weights.chunks_exact(x.len())).zip(bias) {
                    *out = bias + row.iter().zip(x).map(|(weight, x)| weight * x).sum::<i32>();
                }
            }
            Node::Conv { input, window, weights, bias } => {
                let x = x(*input);
                let plane = window.output[0] as usize * window.output[1] as usize;
                if window.is_pointwise() {
                    return pointwise(x, plane, weights, bias, out);
                }
                for (out, bias) in out.chunks_exact_mut(plane).zip(bias) {
                    out.fill(*bias);
                }
                let stride = window.stride[1] as usize;
                window.runs(|at, input, weight, count| {
                    let weight = weights[weight];
                    let x = x[input..].iter().step_by(stride);
                    out[at..at + count].iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
                });
            }
            Node::Gather { inputs, index } => {
                let all: Vec<i32> = inputs.iter().flat_map(|tensor| x(*tensor)).copied().collect();
                for (out, index) in out.iter_mut().zip(index) {
                    *out = if *index == ZERO { 0 } else { all[*index as usize] };
                }
            }
            Node::Sum { terms, bias } => {
                out.copy_from_slice(bias);
                for (tensor, coefficient) in terms {
                    out.iter_mut().zip(x(*tensor)).for_each(|(out, x)| *out += coefficient * x);
                }
            }
            Node::Product { inputs: [a, b], rows, columns, inner, .. } => {
                let [rows, columns, inner] = [rows, columns, inner].map(|size| *size as usize);
                let (a, b) = (x(*a).chunks_exact(rows * inner), x(*b).chunks_exact(columns * inner));
                for ((out, a), b) in out.chunks_exact_mut(rows * columns).zip(a).zip(b) {
                    for (out, a) in out.chunks_exact_mut(columns).zip(a.chunks_exact(inner)) {
                        for (out, b) in out.iter_mut().zip(b.chunks_exact(inner)) {
                            *out = a.iter().zip(b).map(|(a, b)| a * b).sum();
                        }
                    }
                }
            }
            // Refused above.
            Node::Committed { .. } => {}
            Node::Lookup { input, shift, table } => {
                let table = &self.tables[*table as usize];
                let half = half(*shift);
                for (out, x) in out.iter_mut().zip(x(*input)) {
                    // The graph was checked: every key is in the table.
                    *out = table.values[(((x + half) >> shift) - table.low) as usize];
                }
            }
        }
    }
}

/// A linear map that every place goes through by itself: `out[f][p] = bias[f] + Σ_c weights[f][c] · x[c][p]`.
fn pointwise(x: &[i32], plane: usize, weights: &[i32], bias: &[i32], out: &mut [i32]) {
    let channels = x.len() / plane;
    // Place by place, so that a result is a sum over two runs of numbers; in 16 bits where they fit, of which processors multiply several at once.
    let turned: Vec<i32> = (0..x.len()).map(|at| x[at % channels * plane + at / channels]).collect();
    let narrow = |values: &[i32]| -> Option<Vec<i16>> {
        values.iter().map(|value| i16::try_from(*value).ok()).collect()
    };
    let x_narrow = narrow(&turned);
    let rows = weights.chunks_exact(channels).zip(bias).zip(out.chunks_exact_mut(plane));
    for ((row, bias), out) in rows {
        match x_narrow.as_ref().and_then(|x| Some((x, narrow(row)?))) {
            Some((x, row)) => {
                for (out, x) in out.iter_mut().zip(x.chunks_exact(channels)) {
                    *out = bias + row.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum::<i32>();
                }
            }
            None => {
                for (out, x) in out.iter_mut().zip(turned.chunks_exact(channels)) {
                    *out = bias + row.iter().zip(x).map(|(w, x)| w * x).sum::<i32>();
                }
            }
        }
    }
}
