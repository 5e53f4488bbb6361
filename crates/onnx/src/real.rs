//! The real-valued network between an ONNX file and an integer graph, and its evaluation on sample data.

use std::rc::Rc;

use assay_graph::{Window, ZERO};

/// A value of the network, by number.
pub(crate) type Id = usize;

/// A function of one number.
#[derive(Clone, Debug, PartialEq)]
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
    GeluTanh,
    Power(f64),
    Exp,
    Log,
    /// What a part of the file computes from each value, in several steps.
    Formula(Rc<Formula>),
}

/// A formula in one number.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Formula {
    Argument,
    /// `factor · x + offset`.
    Linear(Rc<Formula>, f64, f64),
    Apply(Function, Rc<Formula>),
    Sum(Rc<Formula>, Rc<Formula>),
    Product(Rc<Formula>, Rc<Formula>),
    Quotient(Rc<Formula>, Rc<Formula>),
}

impl Formula {
    fn of(&self, x: f64) -> f64 {
        match self {
            Formula::Argument => x,
            Formula::Linear(f, factor, offset) => factor * f.of(x) + offset,
            Formula::Apply(function, f) => function.of(f.of(x)),
            Formula::Sum(f, g) => f.of(x) + g.of(x),
            Formula::Product(f, g) => f.of(x) * g.of(x),
            Formula::Quotient(f, g) => f.of(x) / g.of(x),
        }
    }

    /// How many operations it has, so that a file cannot make one that takes for ever.
    pub(crate) fn size(&self) -> usize {
        match self {
            Formula::Argument => 1,
            Formula::Linear(f, ..) => 1 + f.size(),
            Formula::Apply(Function::Formula(own), f) => own.size() + f.size(),
            Formula::Apply(_, f) => 1 + f.size(),
            Formula::Sum(f, g) | Formula::Product(f, g) | Formula::Quotient(f, g) => 1 + f.size() + g.size(),
        }
    }
}

impl Function {
    pub(crate) fn of(&self, x: f64) -> f64 {
        match *self {
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
            Function::GeluTanh => {
                0.5 * x * (1.0 + libm::tanh(0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)))
            }
            Function::Power(exponent) => libm::pow(x, exponent),
            Function::Exp => libm::exp(x),
            Function::Log => libm::log(x),
            Function::Formula(ref formula) => formula.of(x),
        }
    }

    /// Whether it is a piece of the identity between two bounds, so that rounding its result rounds its argument.
    pub(crate) fn is_clamp(&self) -> bool {
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
    /// A matrix, row by row, and a bias, for each of several tokens: `y[t][r] = bias[r] + Σ_c weights[r][c] x[t][c]`.
    Affine {
        x: Id,
        tokens: usize,
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
    /// `y[g][m][n] = Σ_k a[g][m][k] · b[g][n][k]`.
    Product {
        inputs: [Id; 2],
        groups: usize,
        rows: usize,
        columns: usize,
        inner: usize,
    },
    /// Rows of this length without their mean and divided by their standard deviation.
    Normalise {
        x: Id,
        len: usize,
        epsilon: f64,
    },
    /// Softmax of rows of this length; one flag a value says what is left out.
    Softmax {
        x: Id,
        len: usize,
        masked: Vec<bool>,
    },
    /// The rows of a table that the input counts, one after the other.
    Embed {
        x: Id,
        table: Vec<f64>,
        len: usize,
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
            | Op::Normalise { x, .. }
            | Op::Softmax { x, .. }
            | Op::Embed { x, .. }
            | Op::MaxPool { x, .. } => {
                vec![*x]
            }
            Op::Gather { inputs, .. } => inputs.clone(),
            Op::Product { inputs, .. } => inputs.to_vec(),
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

impl Network {
    /// How often each value is read on the way to the output; 0 for one that the output does not depend on.
    pub(crate) fn readers(&self) -> Vec<usize> {
        let mut readers = vec![0; self.ops.len()];
        readers[self.output] += 1;
        for id in (0..self.ops.len()).rev() {
            if readers[id] > 0 {
                self.ops[id].operands().into_iter().for_each(|operand| readers[operand] += 1);
            }
        }
        readers
    }

    /// Values of one example.
    pub(crate) fn values(&self) -> usize {
        self.widths.iter().fold(0, |sum, width| sum.saturating_add(*width))
    }
}

/// The values of a network on sample data: of each id, example by example.
pub(crate) struct Values {
    values: Vec<Vec<f64>>,
    /// The smallest and the largest of each, and 0.
    ranges: Vec<(f64, f64)>,
}

impl Values {
    pub(crate) fn of(&self, id: Id) -> &[f64] {
        &self.values[id]
    }

    /// The smallest and the largest value, and 0, also of what was left out since.
    pub(crate) fn range(&self, id: Id) -> (f64, f64) {
        self.ranges[id]
    }

    /// Those of a network of which only this is left, with the ranges of the whole: they say more about other inputs.
    pub(crate) fn kept(&self, widths: &[usize], origins: &[(Id, Vec<bool>)]) -> Values {
        let chosen = |(id, kept): &(Id, Vec<bool>)| {
            let examples = self.of(*id).chunks_exact(widths[*id]);
            let all = examples.flat_map(|example| example.iter().zip(kept));
            all.filter(|(_, kept)| **kept).map(|(x, _)| *x).collect()
        };
        let ranges = origins.iter().map(|(id, _)| self.range(*id)).collect();
        Values { values: origins.iter().map(chosen).collect(), ranges }
    }

    pub(crate) fn output(&self, network: &Network) -> &[f64] {
        self.of(network.output)
    }
}

/// Mean and variance.
pub(crate) fn moments(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64)
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

/// A linear map of tokens, each for itself. Several of them are summed at once, each in the order of its columns.
fn affine(x: &[f64], weights: &[f64], bias: &[f64], out: &mut [f64]) {
    const TOKENS: usize = 16;
    let (rows, columns) = (bias.len(), weights.len() / bias.len());
    for (x, out) in x.chunks(TOKENS * columns).zip(out.chunks_mut(TOKENS * rows)) {
        let tokens = x.len() / columns;
        let mut turned = vec![[0.0; TOKENS]; columns];
        x.iter().enumerate().for_each(|(at, x)| turned[at % columns][at / columns] = *x);
        for (row, (weights, bias)) in weights.chunks_exact(columns).zip(bias).enumerate() {
            let mut sums = [0.0; TOKENS];
            for (weight, x) in weights.iter().zip(&turned) {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x);
            }
            (0..tokens).for_each(|token| out[token * rows + row] = bias + sums[token]);
        }
    }
}

/// Evaluates a network on examples, one after the other.
pub(crate) fn run(network: &Network, samples: &[f64]) -> Values {
    let batch = samples.len() / network.widths[0];
    let mut values: Vec<Vec<f64>> = Vec::with_capacity(network.ops.len());
    let readers = network.readers();
    for (id, op) in network.ops.iter().enumerate() {
        if readers[id] == 0 && id > 0 {
            values.push(Vec::new());
            continue;
        }
        let width = network.widths[id];
        let mut out = vec![0.0; width * batch];
        let pool = if let Op::MaxPool { window, .. } = op { pooled(window) } else { Vec::new() };
        for (example, out) in out.chunks_exact_mut(width).enumerate() {
            let x = |id: Id| &values[id][example * network.widths[id]..][..network.widths[id]];
            match op {
                Op::Input => out.copy_from_slice(&samples[example * width..][..width]),
                Op::Affine { x: from, weights, bias, .. } => {
                    affine(x(*from), weights, bias, out);
                }
                Op::Product { inputs: [a, b], rows, columns, inner, .. } => {
                    let (a, b) = (x(*a).chunks_exact(rows * inner), x(*b).chunks_exact(columns * inner));
                    for ((out, a), b) in out.chunks_exact_mut(rows * columns).zip(a).zip(b) {
                        for (out, a) in out.chunks_exact_mut(*columns).zip(a.chunks_exact(*inner)) {
                            for (out, b) in out.iter_mut().zip(b.chunks_exact(*inner)) {
                                *out = a.iter().zip(b).map(|(a, b)| a * b).sum();
                            }
                        }
                    }
                }
                Op::Normalise { x: from, len, epsilon } => {
                    for (out, x) in out.chunks_exact_mut(*len).zip(x(*from).chunks_exact(*len)) {
                        let (mean, variance) = moments(x);
                        let deviation = libm::sqrt(variance + epsilon);
                        out.iter_mut().zip(x).for_each(|(out, x)| *out = (x - mean) / deviation);
                    }
                }
                Op::Softmax { x: from, len, masked } => {
                    let rows = out.chunks_exact_mut(*len).zip(x(*from).chunks_exact(*len));
                    for ((out, x), masked) in rows.zip(masked.chunks_exact(*len)) {
                        let open = || (0..*len).filter(|at| !masked[*at]);
                        let max = open().map(|at| x[at]).fold(f64::NEG_INFINITY, f64::max);
                        open().for_each(|at| out[at] = libm::exp(x[at] - max));
                        let sum: f64 = out.iter().sum();
                        open().for_each(|at| out[at] /= sum);
                    }
                }
                Op::Embed { x: from, table, len } => {
                    let last = (table.len() / len - 1) as f64;
                    for (out, x) in out.chunks_exact_mut(*len).zip(x(*from)) {
                        let row = x.round().clamp(0.0, last) as usize;
                        out.copy_from_slice(&table[row * len..(row + 1) * len]);
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
    let range = |values: &Vec<f64>| {
        values.iter().fold((0.0f64, 0.0f64), |(low, high), x| (low.min(*x), high.max(*x)))
    };
    Values { ranges: values.iter().map(range).collect(), values }
}
