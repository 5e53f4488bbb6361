//! The real-valued network between an ONNX file and an integer graph, and its evaluation on sample data.

use assay_graph::{Window, ZERO};

/// A value of the network, by number.
pub(crate) type Id = usize;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Function {
    Identity,
    Relu,
    LeakyRelu(f64),
    Elu(f64),
    Sigmoid,
    Tanh,
    Softplus,
    Gelu,
    Erf,
    Abs,
    Clip(f64, f64),
    HardSigmoid(f64, f64),
    HardSwish,
    Silu,
}

impl Function {
    pub(crate) fn of(self, x: f64) -> f64 {
        match self {
            Function::Identity => x,
            Function::Relu => x.max(0.0),
            Function::LeakyRelu(slope) => {
                if x < 0.0 {
                    slope * x
                } else {
                    x
                }
            }
            Function::Elu(alpha) => {
                if x < 0.0 {
                    alpha * libm::expm1(x)
                } else {
                    x
                }
            }
            Function::Sigmoid => sigmoid(x),
            Function::Tanh => libm::tanh(x),
            Function::Softplus => x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
            Function::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Function::Erf => libm::erf(x),
            Function::Abs => x.abs(),
            Function::Clip(low, high) => x.max(low).min(high),
            Function::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
            Function::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Function::Silu => x * sigmoid(x),
        }
    }

    /// Whether it is a piece of the identity between two bounds, so that rounding its result rounds its argument.
    pub(crate) fn is_clamp(self) -> bool {
        matches!(self, Function::Identity | Function::Relu | Function::Clip(..))
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// What makes a value.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Input,
    /// A matrix, row by row, and a bias.
    Affine {
        x: Id,
        weights: Vec<f64>,
        bias: Vec<f64>,
    },
    Conv {
        x: Id,
        window: Window,
        weights: Vec<f64>,
        bias: Vec<f64>,
    },
    /// `x · scale + offset`, one pair a value.
    Scale {
        x: Id,
        scale: Vec<f64>,
        offset: Vec<f64>,
    },
    Map {
        x: Id,
        function: Function,
    },
    Gather {
        inputs: Vec<Id>,
        index: Vec<u32>,
    },
    Add {
        terms: Vec<(Id, f64)>,
    },
    /// The largest in each window; what lies outside the input does not count.
    MaxPool {
        x: Id,
        window: Window,
    },
}

impl Op {
    pub(crate) fn operands(&self) -> Vec<Id> {
        match self {
            Op::Input => Vec::new(),
            Op::Affine { x, .. }
            | Op::Conv { x, .. }
            | Op::Scale { x, .. }
            | Op::Map { x, .. }
            | Op::MaxPool { x, .. } => {
                vec![*x]
            }
            Op::Gather { inputs, .. } => inputs.clone(),
            Op::Add { terms } => terms.iter().map(|(x, _)| *x).collect(),
        }
    }
}

/// A network. Values are made in order; the first is the input.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) ops: Vec<Op>,
    /// The number of values of each.
    pub(crate) widths: Vec<usize>,
    pub(crate) output: Id,
}

/// The values of a network on sample data: of each id, example by example.
pub(crate) struct Values(Vec<Vec<f64>>);

impl Values {
    pub(crate) fn of(&self, id: Id) -> &[f64] {
        &self.0[id]
    }

    pub(crate) fn output(&self, network: &Network) -> &[f64] {
        self.of(network.output)
    }
}

/// For each output of a pooling window, the inputs that count. The window has one weight a group, which is a channel.
pub(crate) fn pooled(window: &Window) -> Vec<Vec<u32>> {
    let mut out = vec![Vec::new(); window.output_len()];
    let stride = window.stride[1] as usize;
    window.runs(|at, input, _, count| {
        for i in 0..count {
            out[at + i].push((input + i * stride) as u32);
        }
    });
    out
}

/// Evaluates a network on examples, one after the other.
pub(crate) fn run(network: &Network, samples: &[f64]) -> Values {
    let batch = samples.len() / network.widths[0];
    let mut values: Vec<Vec<f64>> = Vec::with_capacity(network.ops.len());
    for (id, op) in network.ops.iter().enumerate() {
        let width = network.widths[id];
        let mut out = vec![0.0; width * batch];
        let pool = if let Op::MaxPool { window, .. } = op { pooled(window) } else { Vec::new() };
        for (example, out) in out.chunks_exact_mut(width).enumerate() {
            let x = |id: Id| &values[id][example * network.widths[id]..][..network.widths[id]];
            match op {
                Op::Input => out.copy_from_slice(&samples[example * width..][..width]),
                Op::Affine { x: from, weights, bias } => {
                    let x = x(*from);
                    for ((out, row), bias) in out.iter_mut().zip(weights.chunks_exact(x.len())).zip(bias) {
                        *out = bias + row.iter().zip(x).map(|(weight, x)| weight * x).sum::<f64>();
                    }
                }
                Op::Conv { x: from, window, weights, bias } => {
                    let plane = window.output[0] as usize * window.output[1] as usize;
                    out.chunks_exact_mut(plane).zip(bias).for_each(|(out, bias)| out.fill(*bias));
                    let (x, stride) = (x(*from), window.stride[1] as usize);
                    window.runs(|at, input, weight, count| {
                        let x = x[input..].iter().step_by(stride);
                        out[at..at + count]
                            .iter_mut()
                            .zip(x)
                            .for_each(|(out, x)| *out += weights[weight] * x);
                    });
                }
                Op::Scale { x: from, scale, offset } => {
                    for (((out, x), scale), offset) in out.iter_mut().zip(x(*from)).zip(scale).zip(offset) {
                        *out = x * scale + offset;
                    }
                }
                Op::Map { x: from, function } => {
                    out.iter_mut().zip(x(*from)).for_each(|(out, x)| *out = function.of(*x));
                }
                Op::Gather { inputs, index } => {
                    let all: Vec<f64> = inputs.iter().flat_map(|id| x(*id)).copied().collect();
                    for (out, index) in out.iter_mut().zip(index) {
                        *out = if *index == ZERO { 0.0 } else { all[*index as usize] };
                    }
                }
                Op::Add { terms } => {
                    for (from, factor) in terms {
                        out.iter_mut().zip(x(*from)).for_each(|(out, x)| *out += factor * x);
                    }
                }
                Op::MaxPool { x: from, .. } => {
                    let x = x(*from);
                    for (out, inputs) in out.iter_mut().zip(&pool) {
                        *out = inputs.iter().map(|i| x[*i as usize]).fold(f64::NEG_INFINITY, f64::max);
                    }
                }
            }
        }
        values.push(out);
    }
    Values(values)
}
