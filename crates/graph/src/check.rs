//! The checks that every graph passes, by interval arithmetic over every allowed input.

use crate::node::{ZERO, half, volume};
use crate::{Error, Node, Range, SHIFT_MAX, Table, VALUE_MAX, limits};

/// A closed interval in 64 bits.
type Interval = (i64, i64);

/// Graphs in the making: what every tensor so far can hold.
#[derive(Clone, Debug)]
pub(crate) struct Checker {
    tensors: Vec<Vec<Interval>>,
    /// Of each tensor, whether it depends on a product other than through a look-up.
    products: Vec<bool>,
    weights: usize,
    values: usize,
    operations: u64,
}

impl Checker {
    pub(crate) fn new(inputs: &[Range]) -> Result<Checker, Error> {
        limit("inputs", inputs.len(), limits::WIDTH)?;
        let ranges: Vec<Interval> = inputs.iter().map(|r| (r.low.into(), r.high.into())).collect();
        if ranges.iter().any(|range| range.0 > range.1 || !fits(*range)) {
            return Err(Error::invalid("an input range is empty or out of bounds"));
        }
        Ok(Checker {
            tensors: vec![ranges],
            products: vec![false],
            weights: 0,
            values: inputs.len(),
            operations: 0,
        })
    }

    /// Checks the next node.
    pub(crate) fn push(&mut self, node: &Node, tables: &[Table]) -> Result<(), Error> {
        let number = self.tensors.len() - 1;
        limit("nodes", number + 1, limits::NODES)?;
        if node.operands().iter().any(|operand| operand.index() > number) {
            return Err(Error::invalid(format!("node {number} reads a tensor that is made later")));
        }
        let on_product = node.operands().iter().any(|operand| self.products[operand.index()]);
        let is_product = matches!(node, Node::Product { .. });
        if on_product && is_product {
            return Err(Error::invalid(format!(
                "node {number} multiplies what another product has made, without a look-up between them"
            )));
        }
        let width = width(node, tables, &self.tensors)
            .ok_or_else(|| Error::invalid(format!("the sizes of node {number} contradict each other")))?;
        limit("values in a tensor", width, limits::WIDTH)?;
        limit("values", self.values.saturating_add(width), limits::VALUES)?;
        let weights = match node {
            Node::Linear { weights, .. } | Node::Conv { weights, .. } => weights.len(),
            Node::Gather { index, .. } => index.len(),
            Node::Sum { terms, bias } => terms.len().saturating_mul(bias.len()),
            Node::Committed { map, .. } => match &**map {
                Node::Conv { window, .. } => window.weights_len(),
                map => map.operands().iter().fold(width, |product, operand| {
                    product.saturating_mul(self.tensors[operand.index()].len())
                }),
            },
            Node::Product { .. } | Node::Lookup { .. } => 0,
        };
        limit("weights", self.weights.saturating_add(weights), limits::WEIGHTS)?;
        let operations = self.operations.saturating_add(node.operations());
        if operations > limits::OPERATIONS {
            return Err(Error::invalid("it needs more operations than are supported"));
        }
        let out = ranges(node, tables, &self.tensors)?;
        if let Some(at) = out.iter().position(|range| !fits(*range)) {
            return Err(Error::invalid(format!(
                "value {at} of node {number} can reach {}, beyond {VALUE_MAX}",
                out[at].0.abs().max(out[at].1.abs())
            )));
        }
        self.tensors.push(out);
        self.products.push(is_product || on_product && !matches!(node, Node::Lookup { .. }));
        self.values += width;
        self.weights += weights;
        self.operations = operations;
        Ok(())
    }

    /// The range of each value of a tensor, as runs of equal ones.
    pub(crate) fn runs(&self, tensor: usize) -> Vec<(u32, Range)> {
        let mut runs: Vec<(u32, Range)> = Vec::new();
        for interval in &self.tensors[tensor] {
            let range = hull(&[*interval]);
            match runs.last_mut() {
                Some((count, last)) if *last == range => *count += 1,
                _ => runs.push((1, range)),
            }
        }
        runs
    }

    /// Of a tensor, its width and the range that holds all its values.
    pub(crate) fn shape(&self, tensor: usize) -> (usize, Range) {
        (self.tensors[tensor].len(), hull(&self.tensors[tensor]))
    }
}

/// Of each tensor, its width and the range that holds all its values.
pub(crate) fn shapes(
    inputs: &[Range],
    tables: &[Table],
    nodes: &[Node],
) -> Result<Vec<(usize, Range)>, Error> {
    let entries: usize = tables.iter().map(|table| table.values.len()).sum();
    limit("table entries", entries, limits::TABLE_ENTRIES)?;
    for table in tables {
        let last = i64::from(table.low) + table.values.len() as i64 - 1;
        if table.values.is_empty() || !fits((i64::from(table.low), last)) {
            return Err(Error::invalid("a table is empty or has keys out of bounds"));
        }
        if table.values.iter().any(|value| i64::from(*value).abs() > VALUE_MAX) {
            return Err(Error::invalid("a table has a value out of bounds"));
        }
    }
    let mut checker = Checker::new(inputs)?;
    for node in nodes {
        checker.push(node, tables)?;
    }
    Ok((0..checker.tensors.len()).map(|tensor| checker.shape(tensor)).collect())
}

fn limit(what: &str, found: usize, max: usize) -> Result<(), Error> {
    if found == 0 && what == "inputs" || found > max {
        return Err(Error::invalid(format!("{found} {what}, where at most {max} are supported")));
    }
    Ok(())
}

fn fits(range: Interval) -> bool {
    range.0 >= -VALUE_MAX && range.1 <= VALUE_MAX
}

fn hull(ranges: &[Interval]) -> Range {
    let low = ranges.iter().map(|range| range.0).min().unwrap_or(0);
    let high = ranges.iter().map(|range| range.1).max().unwrap_or(0);
    // Every range fits, see above.
    Range { low: low as i32, high: high as i32 }
}

/// The width of a node's result; `None` when its sizes contradict each other.
fn width(node: &Node, tables: &[Table], tensors: &[Vec<Interval>]) -> Option<usize> {
    let of = |tensor: &crate::Tensor| tensors[tensor.index()].len();
    let (map, committed) = match node {
        Node::Committed { map, .. } => (&**map, true),
        node => (node, false),
    };
    // Committed weights are not here, but they have as many.
    let as_many = |found: usize, len: usize| if committed { found == 0 } else { found == len };
    match map {
        Node::Linear { input, rows, weights, bias } => {
            let rows = *rows as usize;
            let len = rows.checked_mul(of(input))?;
            let fits = rows > 0 && bias.len() == rows && as_many(weights.len(), len);
            fits.then_some(rows)
        }
        Node::Conv { input, window, weights, bias } => {
            let numbers = [window.channels, window.filters, window.groups];
            let pairs = [window.size, window.kernel, window.stride, window.dilation, window.output];
            let small = |n: &u32| (1..=1 << 14).contains(n);
            let sane = numbers.iter().chain(pairs.iter().flatten()).all(small)
                && window.pad.iter().all(|n| *n <= 1 << 14)
                && window.channels % window.groups == 0
                && window.filters % window.groups == 0;
            let fits = sane
                && window.input_len() == of(input)
                && as_many(weights.len(), window.weights_len())
                && bias.len() == window.filters as usize
                && window.output_len() <= limits::WIDTH;
            fits.then(|| window.output_len())
        }
        _ if committed => None,
        Node::Committed { .. } => None,
        Node::Gather { inputs, index } => {
            let total = inputs.iter().try_fold(0usize, |sum, tensor| sum.checked_add(of(tensor)))?;
            let fits = !index.is_empty() && index.iter().all(|i| *i == ZERO || (*i as usize) < total);
            fits.then_some(index.len())
        }
        Node::Sum { terms, bias } => {
            let fits = !bias.is_empty() && terms.iter().all(|(tensor, _)| of(tensor) == bias.len());
            fits.then_some(bias.len())
        }
        Node::Product { inputs: [a, b], groups, rows, columns, inner } => {
            let fits = [groups, rows, columns, inner].iter().all(|size| **size > 0)
                && volume([*groups, *rows, *inner, 1]) == of(a)
                && volume([*groups, *columns, *inner, 1]) == of(b);
            fits.then(|| volume([*groups, *rows, *columns, 1]))
        }
        Node::Lookup { input, shift, table } => {
            (*shift <= SHIFT_MAX && (*table as usize) < tables.len()).then(|| of(input))
        }
    }
}

/// The range of each value of a node's result. Partial sums are bounded with it: the ranges that are added contain 0 or
/// are one sided, so the bound used is the sum of the largest magnitudes.
fn ranges(node: &Node, tables: &[Table], tensors: &[Vec<Interval>]) -> Result<Vec<Interval>, Error> {
    let wide = || Error::invalid("a partial sum can leave the bounds");
    // Adds `weight · range` and keeps the sum of magnitudes, which bounds every partial sum in any order.
    let add = |total: &mut (i64, i64, i64), weight: i32, range: Interval| {
        let (a, b) = (i64::from(weight) * range.0, i64::from(weight) * range.1);
        total.0 = total.0.saturating_add(a.min(b));
        total.1 = total.1.saturating_add(a.max(b));
        total.2 = total.2.saturating_add(a.abs().max(b.abs()));
    };
    let start = |bias: i32| (i64::from(bias), i64::from(bias), i64::from(bias).abs());
    let finish = |totals: Vec<(i64, i64, i64)>| {
        if totals.iter().any(|total| total.2 > VALUE_MAX) {
            return Err(wide());
        }
        Ok(totals.into_iter().map(|total| (total.0, total.1)).collect())
    };
    match node {
        Node::Linear { input, weights, bias, .. } => {
            let x = &tensors[input.index()];
            let row = |(row, bias): (&[i32], &i32)| {
                let mut total = start(*bias);
                row.iter().zip(x).for_each(|(weight, range)| add(&mut total, *weight, *range));
                total
            };
            finish(weights.chunks_exact(x.len()).zip(bias).map(row).collect())
        }
        Node::Conv { input, window, weights, bias } => {
            let x = &tensors[input.index()];
            let plane = window.output[0] as usize * window.output[1] as usize;
            let mut totals: Vec<_> =
                bias.iter().flat_map(|bias| std::iter::repeat_n(start(*bias), plane)).collect();
            let stride = window.stride[1] as usize;
            window.runs(|out, input, weight, count| {
                for i in 0..count {
                    add(&mut totals[out + i], weights[weight], x[input + i * stride]);
                }
            });
            finish(totals)
        }
        Node::Gather { inputs, index } => {
            let all: Vec<Interval> =
                inputs.iter().flat_map(|tensor| tensors[tensor.index()].iter().copied()).collect();
            Ok(index.iter().map(|i| if *i == ZERO { (0, 0) } else { all[*i as usize] }).collect())
        }
        Node::Sum { terms, bias } => {
            let mut totals: Vec<_> = bias.iter().map(|bias| start(*bias)).collect();
            for (tensor, coefficient) in terms {
                let x = &tensors[tensor.index()];
                totals.iter_mut().zip(x).for_each(|(total, range)| add(total, *coefficient, *range));
            }
            finish(totals)
        }
        Node::Product { inputs: [left, right], rows, columns, inner, .. } => {
            let (a, b) = (&tensors[left.index()], &tensors[right.index()]);
            let [rows, columns, inner] = [rows, columns, inner].map(|size| *size as usize);
            let mut totals = Vec::new();
            for (a, b) in a.chunks_exact(rows * inner).zip(b.chunks_exact(columns * inner)) {
                for (m, a) in a.chunks_exact(inner).enumerate() {
                    for (n, b) in b.chunks_exact(inner).enumerate() {
                        // A value times itself is no less than 0.
                        let square = left == right && rows == columns && m == n;
                        let mut total = start(0);
                        for (a, b) in a.iter().zip(b) {
                            // Each is at most 2^29 in absolute value, so the products fit.
                            let ends = [a.0 * b.0, a.0 * b.1, a.1 * b.0, a.1 * b.1];
                            let low = ends.iter().copied().fold(i64::MAX, i64::min);
                            let high = ends.iter().copied().fold(i64::MIN, i64::max);
                            let low = if square { low.max(0) } else { low };
                            total.0 = total.0.saturating_add(low);
                            total.1 = total.1.saturating_add(high);
                            total.2 = total.2.saturating_add(low.abs().max(high.abs()));
                        }
                        totals.push(total);
                    }
                }
            }
            finish(totals)
        }
        Node::Committed { ranges, .. } => {
            // Its width was found from its sizes just before.
            let width = width(node, tables, tensors).unwrap_or(0);
            let repeated = ranges.windows(2).any(|pair| pair[0].1 == pair[1].1);
            let all = ranges.iter().try_fold(0usize, |sum, (count, _)| sum.checked_add(*count as usize));
            if repeated || all != Some(width) || ranges.iter().any(|(count, _)| *count == 0) {
                return Err(Error::invalid(
                    "the ranges of a committed map are not one for each of its values",
                ));
            }
            if ranges.iter().any(|(_, range)| range.low > range.high) {
                return Err(Error::invalid("a range of a committed map is empty"));
            }
            let interval = |range: &Range| (i64::from(range.low), i64::from(range.high));
            Ok(ranges
                .iter()
                .flat_map(|(count, range)| std::iter::repeat_n(interval(range), *count as usize))
                .collect())
        }
        Node::Lookup { input, shift, table } => {
            let table = &tables[*table as usize];
            let half = i64::from(half(*shift));
            let keys = table.keys();
            // A proof knows x + half only as key · 2^shift + remainder in its field. With these bounds the two differ by
            // less than the modulus for every key of the table, so that no wrong key fits.
            let reach = (i64::from(keys.low) << shift, (i64::from(keys.high) + 1) << shift);
            if reach.0 < -2 * VALUE_MAX || reach.1 > 2 * VALUE_MAX {
                return Err(Error::invalid("a table is too wide for the shift of a look-up"));
            }
            let mut out = Vec::with_capacity(tensors[input.index()].len());
            let mut last = None;
            for range in &tensors[input.index()] {
                let key = ((range.0 + half) >> shift, (range.1 + half) >> shift);
                if range.1 + half > VALUE_MAX || key.0 < keys.low.into() || key.1 > keys.high.into() {
                    return Err(Error::invalid(format!(
                        "a look-up can meet the keys {} to {}, but its table has {} to {}",
                        key.0, key.1, keys.low, keys.high
                    )));
                }
                // Neighbours mostly share their range.
                if let Some((known, range)) = last
                    && known == key
                {
                    out.push(range);
                    continue;
                }
                let first = (key.0 - i64::from(keys.low)) as usize;
                let values = &table.values[first..=first + (key.1 - key.0) as usize];
                let low = values.iter().min().copied().unwrap_or(0);
                let high = values.iter().max().copied().unwrap_or(0);
                last = Some((key, (low.into(), high.into())));
                out.push((low.into(), high.into()));
            }
            Ok(out)
        }
    }
}
