//! From a real-valued network to an integer graph.
//!
//! Every integer tensor stands for real numbers `integer · scale + offset`. Scalings and offsets of single values cost nothing:
//! they change what the integers stand for and are folded into the next linear map. A linear map into a function becomes a
//! sum and one look-up: its weights are multiplied by 2^shift over the scale of the keys, so that the look-up's shift is the
//! rescaling. Of products of two computed values the scale is given, so their rescaling is the nearest power of two.
//!
//! Linear maps that many tokens share are convolutions over tokens, with the channels outside: the order in which values lie in a tensor is
//! kept apart from their order in the file, and wiring is made only where a reader needs another order.

use std::collections::HashMap;
use std::rc::Rc;

use assay_graph::{Builder, Encoding, Graph, Interface, Node, Range, Tensor, VALUE_MAX, Window, ZERO};

use crate::Error;
use crate::lower::Lowered;
use crate::real::{Function, Id, Network, Op, Values, moments, pooled};

/// The most entries of all tables together: they are the floor under the cost of a proof.
const ENTRIES_MAX: usize = 1 << 18;

/// Table entries up to which ten bits of activations are tried.
const ENTRIES_FINE: usize = 1 << 14;

/// The most entries of a table of words that becomes look-ups. The rows of a larger one are the inputs of the graph.
const WORDS_MAX: usize = 1 << 17;

/// The most keys of a look-up that rescales a product, whose sums mostly stay far below what they could reach.
const PRODUCT_KEYS_MAX: i64 = 1 << 15;

/// Keys of the inverse root of a sum of squares, where fewer would not be exact enough for the smallest sums.
const SQUARE_KEYS_MAX: i64 = 1 << 13;

/// The unit of the exponents of a softmax, and the largest integer of its results, which stands for 1.
const EXPONENT: f64 = 1.0 / 64.0;
const PROBABILITY: f64 = 4095.0;

/// Row maxima on the samples may lie this far apart for a softmax without its maximum taken away.
const SPREAD: f64 = 1.5;

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
    // Words have no precision.
    let words = network.ops.iter().any(|op| matches!(op, Op::Embed { .. }));
    for levels in [1023, 255] {
        for input_bits in if words { &[12][..] } else { &[12, 10, 8] } {
            for shift in [12, 10, 8] {
                let precision = Precision { input_bits: *input_bits, levels, shift };
                match Quantiser::new(model, network, values, precision).and_then(Quantiser::finish) {
                    Ok((graph, entries, rows)) if levels == 255 || entries <= ENTRIES_FINE.max(rows / 4) => {
                        return Ok(graph);
                    }
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
    /// For each value, which one of the tensor it is; `None` when they lie in their order.
    view: Option<View>,
    scale: Vec<f64>,
    offset: Vec<f64>,
}

type View = Rc<Vec<u32>>;

impl Quantised {
    fn uniform(tensor: Tensor, view: Option<View>, scale: f64) -> Quantised {
        Quantised { tensor, view, scale: vec![scale], offset: vec![0.0] }
    }

    /// Where in the tensor a value lies.
    fn at(&self, value: usize) -> u32 {
        self.view.as_ref().map_or(value as u32, |view| view[value])
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

    /// The inputs of a network that are numbers for themselves, with their ranges.
    fn numbers(
        model: &Lowered,
        network: &Network,
        samples: &[f64],
        precision: Precision,
    ) -> (Quantised, Vec<Range>, Encoding) {
        let width = model.width;
        let top = (1i32 << precision.input_bits) - 1;
        let bounds = |at: usize| {
            let column = samples.iter().skip(at).step_by(width);
            column.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)))
        };
        let columns: Vec<(f64, f64)> = (0..width).map(bounds).collect();
        let low = columns.iter().map(|c| c.0).fold(f64::INFINITY, f64::min);
        let high = columns.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
        let vocabulary = network.ops.iter().filter_map(|op| match op {
            Op::Embed { table, len, .. } => Some(table.len() / len),
            _ => None,
        });
        // Images, and rows whose values all start at nothing, share one scale without an offset: a black pixel is 0.
        let (range, offset, scale) = if let Some(words) = vocabulary.min() {
            (Range { low: 0, high: words as i32 - 1 }, vec![0.0], vec![1.0])
        } else if model.image || columns.iter().all(|c| c.0 >= 0.0) && low == 0.0 && width >= 32 {
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
            view: None,
            scale: scale.iter().map(|scale: &f64| 1.0 / scale).collect(),
            offset: offset.clone(),
        };
        (input, vec![range; width], Encoding::Affine { offset, scale })
    }

    /// The inputs of a network, with their ranges, that are numbers of rows of this large table: these rows are the graph's inputs.
    fn rows(
        table: &[f64],
        len: usize,
        width: usize,
        precision: Precision,
    ) -> (Quantised, Vec<Range>, Encoding) {
        let reach = table.iter().fold(1e-9f64, |max, x| max.max(x.abs()));
        let scale = reach / f64::from(precision.levels);
        // No more than the levels in absolute value.
        let values: Vec<i16> = table.iter().map(|x| (x / scale).round() as i16).collect();
        let ranges = Range::of_columns(len, &values).repeat(width);
        let input = Quantised::uniform(Tensor::INPUT, None, scale);
        (input, ranges, Encoding::Rows { len: len as u32, values })
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
    /// The wiring that was made already.
    wired: HashMap<(Tensor, Vec<u32>), Tensor>,
    /// Values of look-ups so far.
    rows: usize,
}

impl<'a> Quantiser<'a> {
    fn new(
        model: &'a Lowered,
        network: &'a Network,
        values: &'a Values,
        precision: Precision,
    ) -> Result<Quantiser<'a>, Error> {
        let readers = network.readers();
        let rows = network.ops.iter().enumerate().find_map(|(id, op)| match op {
            Op::Embed { table, len, .. } if table.len() > WORDS_MAX && readers[0] == 1 => {
                Some((id, table, *len))
            }
            _ => None,
        });
        let mut done = vec![None; network.ops.len()];
        let (id, (input, ranges, encoding)) = match rows {
            Some((id, table, len)) => (id, Quantised::rows(table, len, model.width, precision)),
            None => (0, Quantised::numbers(model, network, values.of(0), precision)),
        };
        done[id] = Some(input);
        Ok(Quantiser {
            model,
            network,
            values,
            precision,
            builder: Builder::new(ranges)?,
            encoding,
            done,
            readers,
            wired: HashMap::new(),
            rows: 0,
        })
    }

    fn finish(mut self) -> Result<(Graph, usize, usize), Error> {
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
                let ((tensor, view), scale) = attempt?;
                (self.wire(tensor, view.as_ref().map(|view| view.to_vec()))?, scale, vec![0.0; width])
            }
            _ => {
                let out = self.quantised(output)?;
                if out.scale.iter().any(|scale| *scale != out.scale[0]) {
                    return Err(Error::Unsupported("outputs that are scaled one by one".into()));
                }
                (self.plain(&out)?, out.scale[0], (0..width).map(|at| out.offset(at)).collect())
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
        Ok((self.builder.finish(tensor, interface)?, entries, self.rows))
    }

    /// The integers of a value, whatever makes it.
    fn quantised(&mut self, id: Id) -> Result<Quantised, Error> {
        if let Some(done) = &self.done[id] {
            return Ok(done.clone());
        }
        let network = self.network;
        let out = match &network.ops[id] {
            Op::Input => return Err(Error::Quantise("the input is missing".into())),
            Op::Affine { .. }
            | Op::Conv { .. }
            | Op::Add { .. }
            | Op::Product { .. }
            | Op::Normalise { .. } => self.map(id, id, &Function::Identity)?,
            Op::Map { x, function } => self.map(id, *x, function)?,
            Op::Softmax { x, len, masked } => self.softmax(*x, *len, masked)?,
            Op::Embed { table, len, .. } => self.embed(id, table, *len)?,
            Op::Scale { x, scale, offset } => {
                let x = self.quantised(*x)?;
                Quantised {
                    tensor: x.tensor,
                    view: x.view.clone(),
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
                let first = scale.first().copied().unwrap_or(1.0);
                let (scale, offset) = (pick(&scale, first), pick(&offset, 0.0));
                match parts.as_slice() {
                    [part] => Quantised { tensor: part.tensor, view: Some(seen(part, index)), scale, offset },
                    _ => {
                        let inputs =
                            parts.iter().map(|part| self.plain(part)).collect::<Result<Vec<_>, _>>()?;
                        let tensor = self.builder.push(Node::Gather { inputs, index: index.clone() })?;
                        Quantised { tensor, view: None, scale, offset }
                    }
                }
            }
            Op::MaxPool { x, window } => {
                let x = self.quantised(*x)?;
                let Some(scale) = x.common() else {
                    return Err(Error::Unsupported("a MaxPool of values with different scales".into()));
                };
                let (tensor, inputs) = (self.plain(&x)?, pooled(window));
                Quantised::uniform(self.maximum(tensor, inputs)?, None, scale)
            }
        };
        self.done[id] = Some(out.clone());
        Ok(out)
    }

    /// Appends a look-up, see [`Builder::lookup`].
    fn lookup(
        &mut self,
        input: Tensor,
        shift: u32,
        function: &str,
        f: impl Fn(i32) -> i32,
    ) -> Result<Tensor, Error> {
        self.rows += self.builder.width(input);
        Ok(self.builder.lookup(input, shift, function, ENTRIES_MAX, f)?)
    }

    /// A tensor in another order.
    fn wire(&mut self, tensor: Tensor, index: Option<Vec<u32>>) -> Result<Tensor, Error> {
        let Some(index) = index else { return Ok(tensor) };
        if index.len() == self.builder.width(tensor) && index.iter().zip(0..).all(|(at, i)| *at == i) {
            return Ok(tensor);
        }
        let known = (tensor, index);
        if let Some(wired) = self.wired.get(&known) {
            return Ok(*wired);
        }
        let wired = self.builder.push(Node::Gather { inputs: vec![tensor], index: known.1.clone() })?;
        self.wired.insert(known, wired);
        Ok(wired)
    }

    /// The values in their own order.
    fn plain(&mut self, x: &Quantised) -> Result<Tensor, Error> {
        self.wire(x.tensor, x.view.as_ref().map(|view| view.to_vec()))
    }

    /// The values in their own order with one scale and no offset.
    fn even(&mut self, id: Id) -> Result<(Tensor, f64), Error> {
        let x = self.quantised(id)?;
        let width = self.network.widths[id];
        if let Some(scale) = x.common() {
            return Ok((self.plain(&x)?, scale));
        }
        let tensor = self.plain(&x)?;
        let even = if (0..width).all(|at| x.scale(at) == x.scale(0)) {
            let scale = x.scale(0);
            let bias = (0..width).map(|at| rounded(x.offset(at), scale)).collect::<Result<_, _>>()?;
            let tensor = self.builder.push(Node::Sum { terms: vec![(tensor, 1)], bias })?;
            Quantised::uniform(tensor, None, scale)
        } else {
            // One factor a value: a convolution with as many groups as values.
            let channels = u32::try_from(width).ok().filter(|channels| *channels <= 1 << 14);
            let channels = channels
                .ok_or_else(|| Error::Unsupported("many values that are scaled one by one".into()))?;
            let one = [1, 1];
            let window = Window {
                channels,
                size: one,
                filters: channels,
                groups: channels,
                kernel: one,
                stride: one,
                dilation: one,
                pad: [0, 0],
                output: one,
            };
            let (key, shift) = (self.reach(id) / f64::from(self.precision.levels), self.precision.shift);
            let fine = key / f64::from(1u32 << shift);
            let weights = (0..width).map(|at| rounded(x.scale(at), fine)).collect::<Result<_, _>>()?;
            let bias = (0..width).map(|at| rounded(x.offset(at), fine)).collect::<Result<_, _>>()?;
            let scaled = self.builder.push(Node::Conv { input: tensor, window, weights, bias })?;
            let levels = self.precision.levels;
            Quantised::uniform(self.clamped(scaled, shift, -levels, levels)?, None, key)
        };
        let found = (even.tensor, even.scale[0]);
        self.done[id] = Some(even);
        Ok(found)
    }

    /// Rounded and cut off at these ends. All such look-ups share a table.
    fn clamped(&mut self, input: Tensor, shift: u32, low: i32, high: i32) -> Result<Tensor, Error> {
        let name = clamp_name(low, high, shift, self.builder.range(input));
        self.lookup(input, shift, &name, |key| key.clamp(low, high))
    }

    /// As many ones. Each reader has its own, so that nothing but values crosses from layer to layer.
    fn ones(&mut self, len: usize) -> Result<Tensor, Error> {
        Ok(self.builder.push(Node::Sum { terms: Vec::new(), bias: vec![1; len] })?)
    }

    /// The sum of each row of this length.
    fn row_sums(&mut self, x: Tensor, len: usize) -> Result<Tensor, Error> {
        let rows = (self.builder.width(x) / len) as u32;
        let inputs = [x, self.ones(len)?];
        Ok(self.builder.push(Node::Product { inputs, groups: 1, rows, columns: 1, inner: len as u32 })?)
    }

    /// `x - y`, where row `i` of `x` is as long as `rows[i]` says and `y` has one value a row.
    fn minus(&mut self, x: Tensor, y: Tensor, rows: &[usize]) -> Result<Tensor, Error> {
        let index = rows.iter().zip(0..).flat_map(|(len, row)| std::iter::repeat_n(row, *len)).collect();
        let y = self.wire(y, Some(index))?;
        let bias = vec![0; self.builder.width(x)];
        Ok(self.builder.push(Node::Sum { terms: vec![(x, 1), (y, -1)], bias })?)
    }

    /// The largest of each list of values: by pairs, as `a + relu(b - a)`.
    fn maximum(&mut self, x: Tensor, mut lists: Vec<Vec<u32>>) -> Result<Tensor, Error> {
        let Range { low, high } = self.builder.range(x);
        let mut x = x;
        for round in 1.. {
            if lists.iter().all(|list| list.len() == 1) {
                break;
            }
            let side = |side: usize| {
                let pairs = lists.iter().flat_map(|list| list.chunks_exact(2));
                pairs.map(|pair| pair[side]).collect::<Vec<u32>>()
            };
            let (a, b) = (self.wire(x, Some(side(0)))?, self.wire(x, Some(side(1)))?);
            let bias = vec![0; self.builder.width(a)];
            let difference =
                self.builder.push(Node::Sum { terms: vec![(b, 1), (a, -1)], bias: bias.clone() })?;
            let more = self.lookup(difference, 0, "relu", |key| key.max(0))?;
            let mut larger = self.builder.push(Node::Sum { terms: vec![(a, 1), (more, 1)], bias })?;
            // Intervals grow although values do not.
            if round % 2 == 0 && lists.iter().any(|list| list.len() > 2) {
                larger = self.clamped(larger, 0, low, high)?;
            }
            // The larger ones of all pairs, and the odd ones left.
            let pairs = self.builder.width(larger) as u32;
            let (mut next, mut index, mut count) = (Vec::new(), Vec::new(), 0);
            for list in &lists {
                let first = index.len() as u32;
                index.extend((0..list.len() as u32 / 2).map(|i| count + i));
                count += list.len() as u32 / 2;
                index.extend(list.chunks_exact(2).remainder().iter().map(|odd| pairs + odd));
                next.push((first..index.len() as u32).collect());
            }
            x = self.builder.push(Node::Gather { inputs: vec![larger, x], index })?;
            lists = next;
        }
        self.wire(x, Some(lists.iter().map(|list| list[0]).collect()))
    }

    /// The largest absolute value on the samples.
    fn reach(&self, id: Id) -> f64 {
        let (low, high) = self.values.range(id);
        high.max(-low).max(1e-9)
    }

    /// Whether a value is a linear map that nobody else reads and that is not rounded yet.
    fn is_open_sum(&self, id: Id) -> bool {
        let linear = matches!(self.network.ops[id], Op::Affine { .. } | Op::Conv { .. } | Op::Add { .. });
        linear && self.readers[id] == 1 && self.done[id].is_none()
    }

    /// Whether a value is a product of computed values, but for one factor and its order, with nobody else who reads them.
    fn is_product(&self, id: Id) -> bool {
        let alone = |x: Id| self.readers[x] == 1 && self.done[x].is_none() && self.is_product(x);
        match &self.network.ops[id] {
            Op::Product { .. } | Op::Normalise { .. } => true,
            Op::Scale { x, scale, offset } => {
                scale[0] > 0.0
                    && scale.iter().all(|s| *s == scale[0])
                    && offset.iter().all(|o| *o == 0.0)
                    && alone(*x)
            }
            Op::Gather { inputs, index } => {
                inputs.len() == 1 && alone(inputs[0]) && index.iter().all(|i| *i != ZERO)
            }
            _ => false,
        }
    }

    /// A product before it is rescaled.
    fn product(&mut self, id: Id) -> Result<Quantised, Error> {
        let network = self.network;
        match &network.ops[id] {
            Op::Product { inputs, groups, rows, columns, inner } => {
                let ((a, a_scale), (b, b_scale)) = (self.even(inputs[0])?, self.even(inputs[1])?);
                let [groups, rows, columns, inner] =
                    [groups, rows, columns, inner].map(|size| u32::try_from(*size).unwrap_or(0));
                let tensor =
                    self.builder.push(Node::Product { inputs: [a, b], groups, rows, columns, inner })?;
                Ok(Quantised::uniform(tensor, None, a_scale * b_scale))
            }
            Op::Normalise { x, len, epsilon } => self.normalise(*x, *len, *epsilon),
            Op::Scale { x, scale, .. } => {
                let x = self.product(*x)?;
                Ok(Quantised::uniform(x.tensor, x.view, x.scale[0] * scale[0]))
            }
            Op::Gather { inputs, index } => {
                let x = self.product(inputs[0])?;
                let view = seen(&x, index);
                Ok(Quantised::uniform(x.tensor, Some(view), x.scale[0]))
            }
            _ => Err(Error::Quantise("this is no product".into())),
        }
    }

    /// Rows without their mean and divided by their standard deviation, before they are rescaled.
    fn normalise(&mut self, x: Id, len: usize, epsilon: f64) -> Result<Quantised, Error> {
        let (input, scale) = self.even(x)?;
        let width = self.network.widths[x];
        let rows = vec![len; width / len];
        let sums = self.row_sums(input, len)?;
        let shift = len.ilog2().saturating_sub(2);
        let factor = f64::from(1u32 << shift) / len as f64;
        let mean =
            self.lookup(sums, shift, &format!("mean {len}"), |key| (f64::from(key) * factor).round() as i32)?;
        let centred = self.minus(input, mean, &rows)?;
        // Sums of squares as integers: the smallest on the samples keeps five bits or more, which is six of the root.
        let unit = len as f64 / (scale * scale);
        let variances = self.values.of(x).chunks_exact(len).map(|row| moments(row).1 * unit);
        let least = variances.filter(|v| *v >= 1.0).fold(f64::INFINITY, f64::min).clamp(1.0, 1e9);
        let (squares, dropped) = self.squares(centred, len, least)?;
        let mut shift = (libm::log2(least / 32.0) - f64::from(dropped)).clamp(0.0, 16.0) as u32;
        while shift > 0 && i64::from(self.builder.range(squares).high) >> (shift - 1) <= SQUARE_KEYS_MAX {
            shift -= 1;
        }
        // Rows that vary far less than others have a coarser root then.
        while shift < 16 && i64::from(self.builder.range(squares).high) >> shift > PRODUCT_KEYS_MAX {
            shift += 1;
        }
        let bits = libm::log2(4096.0 * libm::sqrt(least)).round() as i32;
        // Layers in which epsilon changes nothing share their table.
        let epsilon = if epsilon * unit < least / 1024.0 { 0.0 } else { (epsilon * unit).round() };
        let one = libm::exp2(f64::from(bits));
        let all = shift + dropped;
        let root = self.lookup(squares, shift, &format!("root {bits} {all} {epsilon}"), |key| {
            let square = f64::from(key) * libm::exp2(f64::from(all)) + epsilon;
            (one / libm::sqrt(square.max(0.0))).min(8192.0).round() as i32
        })?;
        let (groups, inner) = (rows.len() as u32, len as u32);
        let inputs = [centred, root];
        let tensor =
            self.builder.push(Node::Product { inputs, groups, rows: inner, columns: 1, inner: 1 })?;
        Ok(Quantised::uniform(tensor, None, libm::sqrt(len as f64) / one))
    }

    /// The sums of squares of rows of this length, and how many of their bits are dropped. Where one sum could leave the bounds, it is
    /// made of sums of parts of a row, rounded so that the least sum that is expected stays exact to a thousandth.
    fn squares(&mut self, x: Tensor, len: usize, least: f64) -> Result<(Tensor, u32), Error> {
        let Range { low, high } = self.builder.range(x);
        let largest = i64::from(low).abs().max(i64::from(high)).pow(2);
        let rows = self.builder.width(x) / len;
        let part = |parts: usize| largest.saturating_mul((len / parts) as i64);
        let fits = |parts: &usize| len.is_multiple_of(*parts) && part(*parts) <= VALUE_MAX;
        for parts in (1..=len).filter(fits) {
            let (groups, inner) = ((rows * parts) as u32, (len / parts) as u32);
            let squares = Node::Product { inputs: [x; 2], groups, rows: 1, columns: 1, inner };
            if parts == 1 {
                return Ok((self.builder.push(squares)?, 0));
            }
            let fine = libm::log2(least / (256.0 * libm::sqrt(parts as f64)));
            let shift = fine.clamp(0.0, f64::from(self.precision.shift)) as u32;
            if part(parts) >> shift > PRODUCT_KEYS_MAX && parts < len {
                continue;
            }
            let squares = self.builder.push(squares)?;
            let rounded = self.lookup(squares, shift, "same", |key| key)?;
            return Ok((self.row_sums(rounded, parts)?, shift));
        }
        Err(Error::Quantise("squares of a layer norm do not fit".into()))
    }

    /// Softmax of rows: exponentials, the logarithm of their sum, and exponentials again of what is then left.
    fn softmax(&mut self, x: Id, len: usize, masked: &[bool]) -> Result<Quantised, Error> {
        let scores = if self.is_product(x) && self.readers[x] == 1 && self.done[x].is_none() {
            self.product(x)?
        } else {
            let (tensor, scale) = self.even(x)?;
            Quantised::uniform(tensor, None, scale)
        };
        // Only what is not masked.
        let open: Vec<usize> = (0..masked.len()).filter(|at| !masked[*at]).collect();
        let rows: Vec<usize> =
            masked.chunks_exact(len).map(|row| row.iter().filter(|masked| !**masked).count()).collect();
        let compact = self.wire(scores.tensor, Some(open.iter().map(|at| scores.at(*at)).collect()))?;
        let (mut lowest, mut highest) = (f64::INFINITY, f64::NEG_INFINITY);
        for example in self.values.of(x).chunks_exact(masked.len()) {
            for (row, masked) in example.chunks_exact(len).zip(masked.chunks_exact(len)) {
                let open = row.iter().zip(masked).filter(|(_, masked)| !**masked);
                let max = open.map(|(score, _)| *score).fold(f64::NEG_INFINITY, f64::max);
                (lowest, highest) = (lowest.min(max), highest.max(max));
            }
        }
        let mut shift = libm::log2(EXPONENT / scores.scale[0]).clamp(0.0, 16.0) as u32;
        let Range { low, high } = self.builder.range(compact);
        while shift < 16 && (i64::from(high) - i64::from(low)) >> shift > PRODUCT_KEYS_MAX {
            shift += 1;
        }
        let key = scores.scale[0] * f64::from(1u32 << shift);
        // Whole numbers, which layers have in common.
        let whole = |x: f64| (x / EXPONENT) as i32;
        let (low, high) = (whole((lowest - 10.0).floor()), whole((highest + 1.0).ceil()));
        let name = format!("exponent {key} {low} {high}");
        let exponents = self.lookup(compact, shift, &name, |x| {
            (f64::from(x) * key / EXPONENT).round().clamp(f64::from(low), f64::from(high)) as i32
        })?;
        let far = highest - lowest > SPREAD;
        let exponents = if far {
            let mut first = 0;
            let lists = rows.iter().map(|len| {
                first += *len as u32;
                (first - *len as u32..first).collect()
            });
            let lists = lists.collect();
            let max = self.maximum(exponents, lists)?;
            self.minus(exponents, max, &rows)?
        } else {
            self.builder.push(Node::Sum { terms: vec![(exponents, 1)], bias: vec![-high; open.len()] })?
        };
        let exp = |x: i32| (PROBABILITY * libm::exp(f64::from(x.min(0)) * EXPONENT)).round() as i32;
        let exponentials = self.lookup(exponents, 0, "exp", exp)?;
        let mut full = vec![ZERO; masked.len()];
        open.iter().zip(0..).for_each(|(at, i)| full[*at] = i);
        let matrix = self.wire(exponentials, Some(full.clone()))?;
        let sums = self.row_sums(matrix, len)?;
        let least = if far { PROBABILITY } else { f64::from(exp(((lowest / EXPONENT) as i32) - high)) };
        let shift = libm::log2(least / 64.0).clamp(0.0, 16.0) as u32;
        let logarithms = self.lookup(sums, shift, &format!("log {shift}"), |x| {
            let sum = (f64::from(x) * f64::from(1u32 << shift)).max(1.0);
            (libm::log(sum / PROBABILITY) / EXPONENT).round() as i32
        })?;
        let exponents = self.minus(exponents, logarithms, &rows)?;
        let tensor = self.lookup(exponents, 0, "exp", exp)?;
        Ok(Quantised::uniform(tensor, Some(Rc::new(full)), 1.0 / PROBABILITY))
    }

    /// Rows of a table that the inputs count: a look-up for each place of a row.
    fn embed(&mut self, id: Id, table: &[f64], len: usize) -> Result<Quantised, Error> {
        let tokens = self.model.width;
        let reach = table.iter().fold(1e-9f64, |max, x| max.max(x.abs()));
        let scale = reach / f64::from(self.precision.levels);
        let mut inputs = Vec::with_capacity(len);
        for at in 0..len {
            let place = |word: i32| (table[word as usize * len + at] / scale).round() as i32;
            inputs.push(self.lookup(Tensor::INPUT, 0, &format!("embed {id} {at}"), place)?);
        }
        let index = (0..(len * tokens) as u32).collect();
        let tensor = self.builder.push(Node::Gather { inputs, index })?;
        Ok(Quantised::uniform(tensor, Some(by_token(tokens, len)), scale))
    }

    /// A function of a value, as a look-up. `id` is the value that results, `x` its argument; they are the same for what is only
    /// rounded.
    fn map(&mut self, id: Id, x: Id, function: &Function) -> Result<Quantised, Error> {
        let mut scale = self.common_step(self.reach(id) / f64::from(self.precision.levels));
        let low_real = self.values.range(id).0;
        let (low, high) = (if low_real < 0.0 { -self.precision.levels } else { 0 }, self.precision.levels);
        let linear = matches!(self.network.ops[x], Op::Affine { .. } | Op::Conv { .. } | Op::Add { .. });
        // What somebody else reads as well is rounded on its own first.
        let fused = (x == id || self.readers[x] == 1) && self.done[x].is_none();
        // The keys of a clamp are the results; a curve is sampled at 1/64 of a unit or finer.
        let wanted = if function.is_clamp() {
            scale
        } else {
            self.common_step(scale.min(1.0 / 64.0).max(self.key_floor(x)))
        };
        let (input, view, shift, key) = if fused && linear {
            let shift = self.precision.shift;
            let (input, view) = self.sum(x, wanted / f64::from(1u32 << shift))?;
            (input, view, shift, wanted)
        } else if fused && self.is_product(x) {
            let x = self.product(x)?;
            let steps = libm::log2(wanted / x.scale[0]);
            let steps = if function.is_clamp() { steps.ceil() } else { steps.floor() };
            let mut shift = steps.clamp(0.0, 16.0) as u32;
            let Range { low, high } = self.builder.range(x.tensor);
            while shift < 16 && (i64::from(high) - i64::from(low)) >> shift > PRODUCT_KEYS_MAX {
                shift += 1;
            }
            (x.tensor, x.view, shift, x.scale[0] * f64::from(1u32 << shift))
        } else {
            let x = self.quantised(x)?;
            let Some(key) = x.common() else {
                return Err(Error::Unsupported("a function of values that are scaled one by one".into()));
            };
            // Zeros in the wiring are arguments, too.
            (self.plain(&x)?, None, 0, key)
        };
        if function.is_clamp() && fused {
            scale = key;
        }
        let f = |x: i32| {
            let y = (function.of(f64::from(x) * key) / scale).round();
            y.clamp(f64::from(low), f64::from(high)) as i32
        };
        let name = if function.is_clamp() && key == scale {
            // Clamps of one kind share their table: its values are the same integers in every layer.
            let ends = [f(-(1 << 20)), f(1 << 20)];
            clamp_name(ends[0], ends[1], shift, self.builder.range(input))
        } else {
            format!("{function:?} {key} {scale} {low} {high}")
        };
        let tensor = self.lookup(input, shift, &name, f)?;
        Ok(Quantised::uniform(tensor, view, scale))
    }

    /// The next larger of few steps, where there are many layers of one kind: so they share tables.
    fn common_step(&self, step: f64) -> f64 {
        let layers = self.network.ops.iter().filter(|op| matches!(op, Op::Softmax { .. })).count();
        if layers > 1 { libm::exp2((4.0 * libm::log2(step)).ceil() / 4.0) } else { step }
    }

    /// The finest keys of a curve for which the samples reach at most 512 of them.
    fn key_floor(&self, x: Id) -> f64 {
        self.reach(x) / 512.0
    }

    /// The largest weight that the sum of a linear map would have at scale 1.
    fn largest_weight(&mut self, id: Id) -> Result<f64, Error> {
        let network = self.network;
        let largest = match &network.ops[id] {
            Op::Affine { x, weights, bias, .. } => {
                let x = self.quantised(*x)?;
                let width = weights.len() / bias.len();
                weights.iter().enumerate().map(|(i, w)| (w * x.scale(i % width)).abs()).fold(0.0, f64::max)
            }
            Op::Conv { x, weights, .. } => {
                let x = self.quantised(*x)?;
                weights.iter().map(|w| (w * x.scale(0)).abs()).fold(0.0, f64::max)
            }
            Op::Add { terms } => {
                let mut largest = 0.0f64;
                for (x, factor) in terms {
                    let of = if self.is_open_sum(*x) {
                        self.largest_weight(*x)?
                    } else {
                        self.quantised(*x)?.scale(0)
                    };
                    largest = largest.max((factor * of).abs());
                }
                largest
            }
            _ => 1.0,
        };
        Ok(if largest > 0.0 { largest } else { 1.0 })
    }

    /// The sum of a linear map, as integers of this scale, and the order in which they lie.
    fn sum(&mut self, id: Id, scale: f64) -> Result<(Tensor, Option<View>), Error> {
        let network = self.network;
        let all = |list: &[f64]| list.iter().map(|real| rounded(*real, scale)).collect::<Result<Vec<_>, _>>();
        let (node, view) = match &network.ops[id] {
            Op::Affine { x, tokens, weights, bias } => {
                let (from, columns) = (*x, weights.len() / bias.len());
                let mut x = self.quantised(from)?;
                // Every token has the same factors, or they are evened out first.
                let shared = |at: usize| {
                    x.scale(at) == x.scale(at % columns) && x.offset(at) == x.offset(at % columns)
                };
                if !(0..tokens * columns).all(shared) {
                    self.even(from)?;
                    x = self.quantised(from)?;
                }
                let scaled: Vec<f64> =
                    weights.iter().enumerate().map(|(i, w)| w * x.scale(i % columns)).collect();
                let shifted: Vec<f64> = weights
                    .chunks_exact(columns)
                    .zip(bias)
                    .map(|(row, bias)| {
                        bias + row.iter().enumerate().map(|(at, w)| w * x.offset(at)).sum::<f64>()
                    })
                    .collect();
                let (weights, bias) = (all(&scaled)?, all(&shifted)?);
                if *tokens == 1 {
                    let input = self.plain(&x)?;
                    (Node::Linear { input, rows: bias.len() as u32, weights, bias }, None)
                } else {
                    let by_channel =
                        (0..columns * tokens).map(|at| x.at(at % tokens * columns + at / tokens));
                    let input = self.wire(x.tensor, Some(by_channel.collect()))?;
                    let window = Window::pointwise(columns as u32, bias.len() as u32, [1, *tokens as u32]);
                    let view = by_token(*tokens, bias.len());
                    (Node::Conv { input, window, weights, bias }, Some(view))
                }
            }
            Op::Conv { x, window, weights, bias } => {
                let (input, common) = self.even(*x)?;
                let scaled: Vec<f64> = weights.iter().map(|weight| weight * common).collect();
                (Node::Conv { input, window: *window, weights: all(&scaled)?, bias: all(bias)? }, None)
            }
            Op::Add { terms } => {
                let width = network.widths[id];
                let (mut parts, mut view) = (Vec::new(), None);
                let mut offset = vec![0.0; width];
                for (x, factor) in terms {
                    // A linear map whose only reader this is adds up right here, and says in which order.
                    if *factor != 0.0 && self.is_open_sum(*x) {
                        let (tensor, order) = self.sum(*x, scale / factor.abs())?;
                        view = view.or(order.clone());
                        let part = Quantised { tensor, view: order, scale: Vec::new(), offset: Vec::new() };
                        parts.push((part, factor.signum() as i32));
                        continue;
                    }
                    let mut x_here = self.quantised(*x)?;
                    if x_here.scale.iter().any(|scale| *scale != x_here.scale[0]) {
                        self.even(*x)?;
                        x_here = self.quantised(*x)?;
                    }
                    offset.iter_mut().enumerate().for_each(|(at, sum)| *sum += factor * x_here.offset(at));
                    let coefficient = rounded(factor * x_here.scale[0], scale)?;
                    parts.push((x_here, coefficient));
                }
                let mut sums = Vec::new();
                for (part, coefficient) in parts {
                    let mut index = vec![ZERO; width];
                    (0..width).for_each(|at| index[place(&view, at)] = part.at(at));
                    sums.push((self.wire(part.tensor, Some(index))?, coefficient));
                }
                let mut bias = vec![0.0; width];
                (0..width).for_each(|at| bias[place(&view, at)] = offset[at]);
                (Node::Sum { terms: sums, bias: all(&bias)? }, view)
            }
            _ => return Err(Error::Quantise("this is no linear map".into())),
        };
        Ok((self.builder.push(node)?, view))
    }
}

/// The name of a clamp's table. Most share one, which stays narrow enough for shifts of 15; what has more keys would make it dear for
/// the others, and too wide for large shifts.
fn clamp_name(low: i32, high: i32, shift: u32, range: Range) -> String {
    let narrow =
        shift <= 15 && [range.low, range.high].iter().all(|end| (end >> shift).abs() < (1 << 15) - 1);
    let kind = if narrow { "narrow".into() } else { format!("wide {}", shift.max(12)) };
    format!("clamp {low} {high} {kind}")
}

/// A real number as an integer of a scale.
fn rounded(real: f64, scale: f64) -> Result<i32, Error> {
    let integer = (real / scale).round();
    // Beyond this no sum could stay in bounds anyway.
    if integer.is_nan() || integer.abs() > f64::from(1 << 29) {
        return Err(Error::Quantise("a weight is too large for its layer".into()));
    }
    Ok(integer as i32)
}

/// Where a value lies.
fn place(view: &Option<View>, at: usize) -> usize {
    view.as_ref().map_or(at, |view| view[at] as usize)
}

/// What wiring by `index` makes of a value's places.
fn seen(x: &Quantised, index: &[u32]) -> View {
    Rc::new(index.iter().map(|at| if *at == ZERO { ZERO } else { x.at(*at as usize) }).collect())
}

/// The places of values that lie channel by channel and count token by token.
fn by_token(tokens: usize, channels: usize) -> View {
    Rc::new(
        (0..(tokens * channels) as u32)
            .map(|at| {
                let (tokens, channels) = (tokens as u32, channels as u32);
                at % channels * tokens + at / channels
            })
            .collect(),
    )
}
