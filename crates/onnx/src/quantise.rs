//! From a real-valued network to an integer graph.
//!
//! Every integer tensor stands for real numbers `integer · scale + offset`. Scalings and offsets of single values cost nothing:
//! they change what the integers stand for and are folded into the next linear map. A linear map into a function becomes a
//! sum and one look-up: its weights are multiplied by 2^shift over the scale of the keys, so that the look-up's shift is the
//! rescaling.

use assay_graph::{Builder, Encoding, Graph, Interface, Node, Range, Tensor, ZERO};

use crate::Error;
use crate::lower::Lowered;
use crate::real::{Function, Id, Network, Op, Values, pooled};

/// The most entries of all tables together: they are the floor under the cost of a proof.
const ENTRIES_MAX: usize = 1 << 18;

/// Table entries up to which ten bits of activations are tried.
const ENTRIES_FINE: usize = 1 << 14;

/// One way to round a model.
#[derive(Clone, Copy, Debug)]
struct Precision {
    /// Bits of an input.
    input_bits: u32,
    /// The largest integer of an activation.
    levels: i32,
    /// Bits dropped by every rescaling.
    shift: u32,
}

/// Rounds a network, as finely as its sums and tables allow.
///
/// # Errors
/// [`Error::Quantise`] with the reason of the last attempt.
pub(crate) fn quantise(model: &Lowered, network: &Network, values: &Values) -> Result<Graph, Error> {
    let mut reason = Error::Quantise("it has no numbers".into());
    for levels in [1023, 255] {
        for input_bits in [12, 10, 8] {
            for shift in [12, 10, 8] {
                let precision = Precision { input_bits, levels, shift };
                match Quantiser::new(model, network, values, precision).and_then(Quantiser::finish) {
                    Ok((graph, entries)) if levels == 255 || entries <= ENTRIES_FINE => return Ok(graph),
                    Ok(_) => break,
                    // Other errors do not depend on the precision.
                    Err(error @ (Error::Graph(_) | Error::Quantise(_))) => reason = error,
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Err(match reason {
        Error::Graph(error) => Error::Quantise(error.to_string()),
        error => error,
    })
}

/// An integer tensor and what it stands for: one scale and offset for all values or one each.
#[derive(Clone)]
struct Quantised {
    tensor: Tensor,
    scale: Vec<f64>,
    offset: Vec<f64>,
}

impl Quantised {
    fn uniform(tensor: Tensor, scale: f64) -> Quantised {
        Quantised { tensor, scale: vec![scale], offset: vec![0.0] }
    }

    fn scale(&self, at: usize) -> f64 {
        if self.scale.len() == 1 { self.scale[0] } else { self.scale[at] }
    }

    fn offset(&self, at: usize) -> f64 {
        if self.offset.len() == 1 { self.offset[0] } else { self.offset[at] }
    }

    /// The one scale of all values, when they have one and no offset.
    fn common(&self) -> Option<f64> {
        let one = |list: &[f64]| list.iter().all(|x| *x == list[0]).then(|| list[0]);
        one(&self.scale).filter(|_| self.offset.iter().all(|x| *x == 0.0))
    }
}

struct Quantiser<'a> {
    model: &'a Lowered,
    network: &'a Network,
    values: &'a Values,
    precision: Precision,
    builder: Builder,
    encoding: Encoding,
    done: Vec<Option<Quantised>>,
    readers: Vec<usize>,
}

impl<'a> Quantiser<'a> {
    fn new(
        model: &'a Lowered,
        network: &'a Network,
        values: &'a Values,
        precision: Precision,
    ) -> Result<Quantiser<'a>, Error> {
        let width = model.width;
        let samples = values.of(0);
        let top = (1i32 << precision.input_bits) - 1;
        let bounds = |at: usize| {
            let column = samples.iter().skip(at).step_by(width);
            column.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)))
        };
        let columns: Vec<(f64, f64)> = (0..width).map(bounds).collect();
        let low = columns.iter().map(|c| c.0).fold(f64::INFINITY, f64::min);
        let high = columns.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
        let mut readers = vec![0; network.ops.len()];
        network.ops.iter().flat_map(Op::operands).for_each(|id| readers[id] += 1);
        readers[network.output] += 1;
        // Images, and rows whose values all start at nothing, share one scale without an offset: a black pixel is 0.
        let (range, offset, scale) = if model.image
            || columns.iter().all(|c| c.0 >= 0.0) && low == 0.0 && width >= 32
        {
            let reach = high.max(-low).max(f64::MIN_POSITIVE);
            let range = if low >= 0.0 {
                Range { low: 0, high: top }
            } else {
                Range { low: -(top / 2), high: top / 2 }
            };
            (range, vec![0.0], vec![f64::from(range.high) / reach])
        } else {
            // Half of what was seen is left on either side for what was not.
            let span = |c: &(f64, f64)| if c.1 > c.0 { (c.1 - c.0) * 2.0 } else { 1.0 };
            let offset = columns.iter().map(|c| (c.0 + c.1) / 2.0 - span(c) / 2.0).collect();
            (Range { low: 0, high: top }, offset, columns.iter().map(|c| f64::from(top) / span(c)).collect())
        };
        let input = Quantised {
            tensor: Tensor::INPUT,
            scale: scale.iter().map(|scale: &f64| 1.0 / scale).collect(),
            offset: offset.clone(),
        };
        let builder = Builder::new(vec![range; width])?;
        let mut done = vec![None; network.ops.len()];
        done[0] = Some(input);
        Ok(Quantiser {
            model,
            network,
            values,
            precision,
            builder,
            encoding: Encoding::Affine { offset, scale },
            done,
            readers,
        })
    }

    fn finish(mut self) -> Result<(Graph, usize), Error> {
        let output = self.network.output;
        let width = self.network.widths[output];
        let (tensor, scale, offset) = match &self.network.ops[output] {
            Op::Affine { .. } | Op::Conv { .. } | Op::Add { .. } => {
                // The scores keep as many bits as fit.
                let mut attempt = Err(Error::Quantise("its scores do not fit".into()));
                let largest = self.largest_weight(output)?;
                for bits in (6..=14).rev() {
                    let scale = largest / f64::from(1 << bits);
                    attempt = self.sum(output, scale).map(|tensor| (tensor, scale));
                    if attempt.is_ok() {
                        break;
                    }
                }
                let (tensor, scale) = attempt?;
                (tensor, scale, vec![0.0; width])
            }
            _ => {
                let out = self.quantised(output)?;
                if out.scale.iter().any(|scale| *scale != out.scale[0]) {
                    return Err(Error::Unsupported("outputs that are scaled one by one".into()));
                }
                (out.tensor, out.scale[0], (0..width).map(|at| out.offset(at)).collect())
            }
        };
        let entries = self.builder.entries();
        let interface = Interface {
            encoding: self.encoding,
            task: self.model.task,
            scale,
            offset,
            labels: self.model.labels.clone(),
        };
        Ok((self.builder.finish(tensor, interface)?, entries))
    }

    /// The integers of a value, whatever makes it.
    fn quantised(&mut self, id: Id) -> Result<Quantised, Error> {
        if let Some(done) = &self.done[id] {
            return Ok(done.clone());
        }
        let network = self.network;
        let out = match &network.ops[id] {
            Op::Input => return Err(Error::Quantise("the input is missing".into())),
            Op::Affine { .. } | Op::Conv { .. } | Op::Add { .. } => self.map(id, id, Function::Identity)?,
            Op::Map { x, function } => self.map(id, *x, *function)?,
            Op::Scale { x, scale, offset } => {
                let x = self.quantised(*x)?;
                Quantised {
                    tensor: x.tensor,
                    scale: scale.iter().enumerate().map(|(at, scale)| x.scale(at) * scale).collect(),
                    offset: scale
                        .iter()
                        .zip(offset)
                        .enumerate()
                        .map(|(at, (s, o))| x.offset(at) * s + o)
                        .collect(),
                }
            }
            Op::Gather { inputs, index } => {
                let parts = inputs.iter().map(|id| self.quantised(*id)).collect::<Result<Vec<_>, _>>()?;
                let (mut scale, mut offset) = (Vec::new(), Vec::new());
                for (part, id) in parts.iter().zip(inputs) {
                    (0..network.widths[*id]).for_each(|at| {
                        scale.push(part.scale(at));
                        offset.push(part.offset(at));
                    });
                }
                let pick = |list: &[f64], zero: f64| -> Vec<f64> {
                    index.iter().map(|i| if *i == ZERO { zero } else { list[*i as usize] }).collect()
                };
                let node = Node::Gather {
                    inputs: parts.iter().map(|part| part.tensor).collect(),
                    index: index.clone(),
                };
                Quantised {
                    tensor: self.builder.push(node)?,
                    scale: pick(&scale, 1.0),
                    offset: pick(&offset, 0.0),
                }
            }
            Op::MaxPool { x, window } => {
                let x = self.quantised(*x)?;
                let Some(scale) = x.common() else {
                    return Err(Error::Unsupported("a MaxPool of values with different scales".into()));
                };
                let inputs = pooled(window);
                Quantised::uniform(self.maximum(x.tensor, &inputs)?, scale)
            }
        };
        self.done[id] = Some(out.clone());
        Ok(out)
    }

    /// The largest of each list of values: by pairs, as `a + relu(b - a)`.
    fn maximum(&mut self, x: Tensor, lists: &[Vec<u32>]) -> Result<Tensor, Error> {
        let len = lists.iter().map(Vec::len).max().unwrap_or(1);
        // The i-th of each list; a shorter list repeats its first.
        let mut columns = Vec::new();
        for i in 0..len {
            let index = lists.iter().map(|list| list.get(i).copied().unwrap_or(list[0])).collect();
            columns.push(self.builder.push(Node::Gather { inputs: vec![x], index })?);
        }
        let bias = vec![0; lists.len()];
        while columns.len() > 1 {
            let mut next = Vec::new();
            for pair in columns.chunks(2) {
                let [a, b] = *pair else {
                    next.push(pair[0]);
                    continue;
                };
                let difference =
                    self.builder.push(Node::Sum { terms: vec![(b, 1), (a, -1)], bias: bias.clone() })?;
                let more = self.builder.lookup(difference, 0, "relu", ENTRIES_MAX, |key| key.max(0))?;
                next.push(
                    self.builder.push(Node::Sum { terms: vec![(a, 1), (more, 1)], bias: bias.clone() })?,
                );
            }
            columns = next;
        }
        Ok(columns[0])
    }

    /// A function of a value, as a look-up. `id` is the value that results, `x` its argument; they are the same for a linear
    /// map that is only rounded.
    fn map(&mut self, id: Id, x: Id, function: Function) -> Result<Quantised, Error> {
        let reach = self.values.of(id).iter().fold(0.0f64, |max, value| max.max(value.abs()));
        let scale = reach.max(1e-9) / f64::from(self.precision.levels);
        let low_real = self.values.of(id).iter().fold(0.0f64, |min, value| min.min(*value));
        let (low, high) = (if low_real < 0.0 { -self.precision.levels } else { 0 }, self.precision.levels);
        let linear = matches!(self.network.ops[x], Op::Affine { .. } | Op::Conv { .. } | Op::Add { .. });
        // A linear map that somebody else reads as well is rounded on its own first.
        let fused = linear && (x == id || self.readers[x] == 1) && self.done[x].is_none();
        let (input, shift, key) = if fused {
            // The keys of a clamp are the results; a curve is sampled at 1/64 of a unit or finer.
            let key = if function.is_clamp() { scale } else { scale.min(1.0 / 64.0).max(self.key_floor(x)) };
            let shift = self.precision.shift;
            (self.sum(x, key / f64::from(1u32 << shift))?, shift, key)
        } else {
            let x = self.quantised(x)?;
            let Some(key) = x.common() else {
                return Err(Error::Unsupported("a function of values that are scaled one by one".into()));
            };
            (x.tensor, 0, key)
        };
        let f = move |x: i32| {
            let y = (function.of(f64::from(x) * key) / scale).round();
            y.clamp(f64::from(low), f64::from(high)) as i32
        };
        let name = if function.is_clamp() && key == scale {
            // Clamps of one kind share their table: its values are the same integers in every layer.
            let ends = [f(-(1 << 20)), f(1 << 20)];
            format!("clamp {} {}", ends[0], ends[1])
        } else {
            format!("{function:?} {key} {scale} {low} {high}")
        };
        let tensor = self.builder.lookup(input, shift, &name, ENTRIES_MAX, f)?;
        Ok(Quantised::uniform(tensor, scale))
    }

    /// The finest keys of a curve for which the samples reach at most 512 of them.
    fn key_floor(&self, x: Id) -> f64 {
        self.values.of(x).iter().fold(0.0f64, |max, value| max.max(value.abs())) / 512.0
    }

    /// The largest weight that the sum of a linear map would have at scale 1.
    fn largest_weight(&mut self, id: Id) -> Result<f64, Error> {
        let network = self.network;
        let largest = match &network.ops[id] {
            Op::Affine { x, weights, .. } => {
                let x = self.quantised(*x)?;
                let width = weights.len() / network.widths[id];
                weights.iter().enumerate().map(|(i, w)| (w * x.scale(i % width)).abs()).fold(0.0, f64::max)
            }
            Op::Conv { x, weights, .. } => {
                let x = self.quantised(*x)?;
                weights.iter().map(|w| (w * x.scale(0)).abs()).fold(0.0, f64::max)
            }
            Op::Add { terms } => {
                let mut largest = 0.0f64;
                for (x, factor) in terms {
                    largest = largest.max((factor * self.quantised(*x)?.scale(0)).abs());
                }
                largest
            }
            _ => 1.0,
        };
        Ok(if largest > 0.0 { largest } else { 1.0 })
    }

    /// The sum of a linear map, as integers of this scale.
    fn sum(&mut self, id: Id, scale: f64) -> Result<Tensor, Error> {
        let network = self.network;
        let round = |real: f64| {
            let integer = (real / scale).round();
            // Beyond this no sum could stay in bounds anyway.
            if integer.abs() > f64::from(1 << 29) {
                return Err(Error::Quantise("a weight is too large for its layer".into()));
            }
            Ok(integer as i32)
        };
        let rounded = |list: &[f64]| list.iter().map(|real| round(*real)).collect::<Result<Vec<_>, _>>();
        let node = match &network.ops[id] {
            Op::Affine { x, weights, bias } => {
                let x = self.quantised(*x)?;
                let width = weights.len() / bias.len();
                let scaled: Vec<f64> =
                    weights.iter().enumerate().map(|(i, w)| w * x.scale(i % width)).collect();
                let shifted: Vec<f64> = weights
                    .chunks_exact(width)
                    .zip(bias)
                    .map(|(row, bias)| {
                        bias + row.iter().enumerate().map(|(at, w)| w * x.offset(at)).sum::<f64>()
                    })
                    .collect();
                Node::Linear {
                    input: x.tensor,
                    rows: bias.len() as u32,
                    weights: rounded(&scaled)?,
                    bias: rounded(&shifted)?,
                }
            }
            Op::Conv { x, window, weights, bias } => {
                let x = self.quantised(*x)?;
                let Some(common) = x.common() else {
                    return Err(Error::Unsupported("a Conv of values that are scaled one by one".into()));
                };
                let scaled: Vec<f64> = weights.iter().map(|weight| weight * common).collect();
                Node::Conv {
                    input: x.tensor,
                    window: *window,
                    weights: rounded(&scaled)?,
                    bias: rounded(bias)?,
                }
            }
            Op::Add { terms } => {
                let mut offset = vec![0.0; network.widths[id]];
                let mut sums = Vec::new();
                for (x, factor) in terms {
                    let x = self.quantised(*x)?;
                    if x.scale.iter().any(|scale| *scale != x.scale[0]) {
                        return Err(Error::Unsupported("an Add of values that are scaled one by one".into()));
                    }
                    sums.push((x.tensor, round(factor * x.scale[0])?));
                    offset.iter_mut().enumerate().for_each(|(at, sum)| *sum += factor * x.offset(at));
                }
                Node::Sum { terms: sums, bias: rounded(&offset)? }
            }
            _ => return Err(Error::Quantise("this is no linear map".into())),
        };
        Ok(self.builder.push(node)?)
    }
}
