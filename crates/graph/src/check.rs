//! The checks that every graph passes, by interval arithmetic over every allowed input.

use std::collections::HashMap;

use crate::node::{ZERO, half, volume};
use crate::{Error, Node, Range, SHIFT_MAX, Table, VALUE_MAX, limits};

/// A closed interval. Those of checked tensors are within [`VALUE_MAX`].
type Interval = (i32, i32);

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
        let ranges: Vec<Interval> = inputs.iter().map(|r| (r.low, r.high)).collect();
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
        self.push_knowing(node, tables, &mut HashMap::new())
    }

    /// As [`push`](Self::push); `extremes` keeps those of tables, which do not change.
    fn push_knowing(
        &mut self,
        node: &Node,
        tables: &[Table],
        extremes: &mut HashMap<u32, Extremes>,
    ) -> Result<(), Error> {
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
        let out = ranges(node, tables, &self.tensors, extremes)?;
        if let Some(at) = out.iter().position(|range| !fits(*range)) {
            return Err(Error::invalid(format!(
                "value {at} of node {number} can reach {}, beyond {VALUE_MAX}",
                out[at].0.unsigned_abs().max(out[at].1.unsigned_abs())
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
        if table.values.is_empty() || i64::from(table.low) < -VALUE_MAX || last > VALUE_MAX {
            return Err(Error::invalid("a table is empty or has keys out of bounds"));
        }
        if table.values.iter().any(|value| i64::from(*value).abs() > VALUE_MAX) {
            return Err(Error::invalid("a table has a value out of bounds"));
        }
    }
    let mut checker = Checker::new(inputs)?;
    let mut extremes = HashMap::new();
    for node in nodes {
        checker.push_knowing(node, tables, &mut extremes)?;
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
    i64::from(range.0) >= -VALUE_MAX && i64::from(range.1) <= VALUE_MAX
}

fn hull(ranges: &[Interval]) -> Range {
    let low = ranges.iter().map(|range| range.0).min().unwrap_or(0);
    let high = ranges.iter().map(|range| range.1).max().unwrap_or(0);
    Range { low, high }
}

/// The width of a node's result; `None` when its sizes contradict each other.
fn width(node: &Node, tables: &[Table], tensors: &[Vec<Interval>]) -> Option<usize> {
    let of = |tensor: &crate::Tensor| tensors[tensor.index()].len();
    let (map, committed) = match node {
        Node::Committed { map, .. } => (&**map, true),
        node => (node, false),
    };
    // Committed weights and biases are not here.
    let as_many = |found: usize, len: usize| if committed { found == 0 } else { found == len };
    match map {
        Node::Linear { input, rows, weights, bias } => {
            let rows = *rows as usize;
            let len = rows.checked_mul(of(input))?;
            let fits = rows > 0 && as_many(bias.len(), rows) && as_many(weights.len(), len);
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
                && as_many(bias.len(), window.filters as usize)
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

/// What a sum can be.
#[derive(Clone, Copy)]
struct Total {
    low: i64,
    high: i64,
    /// The sum of the largest magnitudes of all that is added, which bounds every partial sum in any order.
    magnitudes: i64,
}

impl Total {
    fn of(bias: i32) -> Total {
        let bias = i64::from(bias);
        Total { low: bias, high: bias, magnitudes: bias.abs() }
    }

    /// The sum of a row of weights times as many ranges.
    fn of_row(weights: &[i32], ranges: &[Interval], bias: i32) -> Total {
        let mut total = Total::of(bias);
        weights.iter().zip(ranges).for_each(|(weight, range)| total.add(*weight, *range));
        total
    }

    /// Adds `weight · range`.
    fn add(&mut self, weight: i32, range: Interval) {
        let (a, b) = (i64::from(weight) * i64::from(range.0), i64::from(weight) * i64::from(range.1));
        self.add_range(a.min(b), a.max(b));
    }

    fn add_range(&mut self, low: i64, high: i64) {
        self.low = self.low.saturating_add(low);
        self.high = self.high.saturating_add(high);
        self.magnitudes = self.magnitudes.saturating_add(low.abs().max(high.abs()));
    }
}

/// The most different places of a plane that are told apart.
const CLASSES_MAX: usize = 256;

/// The places of a plane by what all its channels can hold there: each list of ranges that occurs, and which one a place has. `None`
/// when too many differ.
fn alike(x: &[Interval], plane: usize) -> Option<(Vec<Vec<Interval>>, Vec<usize>)> {
    let mut known = HashMap::new();
    let mut classes: Vec<Vec<Interval>> = Vec::new();
    let mut class_of = Vec::with_capacity(plane);
    for place in 0..plane {
        let column: Vec<Interval> = x.iter().skip(place).step_by(plane).copied().collect();
        let class = *known.entry(column).or_insert_with_key(|column| {
            classes.push(column.clone());
            classes.len() - 1
        });
        if class == CLASSES_MAX {
            return None;
        }
        class_of.push(class);
    }
    Some((classes, class_of))
}

/// The smallest and the largest value of each block of a table, so that those of any part are found without reading all of it.
#[derive(Clone, Debug)]
struct Extremes(Vec<Interval>);

impl Extremes {
    const BLOCK: usize = 256;

    fn new(values: &[i32]) -> Extremes {
        Extremes(values.chunks(Self::BLOCK).map(Self::plain).collect())
    }

    fn plain(values: &[i32]) -> Interval {
        values.iter().fold((i32::MAX, i32::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
    }

    /// Those of the values from `first` to before `end`, which are at least one.
    fn of(&self, values: &[i32], first: usize, end: usize) -> Interval {
        let (from, to) = (first.div_ceil(Self::BLOCK), end / Self::BLOCK);
        if from >= to {
            return Self::plain(&values[first..end]);
        }
        let ends =
            [Self::plain(&values[first..from * Self::BLOCK]), Self::plain(&values[to * Self::BLOCK..end])];
        self.0[from..to]
            .iter()
            .chain(&ends)
            .fold((i32::MAX, i32::MIN), |(low, high), part| (low.min(part.0), high.max(part.1)))
    }
}

/// The range of each value of a node's result. Partial sums are bounded with it: the ranges that are added contain 0 or
/// are one sided, so the bound used is the sum of the largest magnitudes. `extremes` keeps those of tables that were met.
fn ranges(
    node: &Node,
    tables: &[Table],
    tensors: &[Vec<Interval>],
    extremes: &mut HashMap<u32, Extremes>,
) -> Result<Vec<Interval>, Error> {
    let finish = |totals: Vec<Total>| {
        if totals.iter().any(|total| total.magnitudes > VALUE_MAX) {
            return Err(Error::invalid("a partial sum can leave the bounds"));
        }
        // Just found to be small.
        Ok(totals.into_iter().map(|total| (total.low as i32, total.high as i32)).collect())
    };
    match node {
        Node::Linear { input, weights, bias, .. } => {
            let x = &tensors[input.index()];
            let row = |(row, bias): (&[i32], &i32)| Total::of_row(row, x, *bias);
            finish(weights.chunks_exact(x.len()).zip(bias).map(row).collect())
        }
        Node::Conv { input, window, weights, bias } => {
            let x = &tensors[input.index()];
            let plane = window.output[0] as usize * window.output[1] as usize;
            if window.is_pointwise()
                && let Some((classes, class_of)) = alike(x, plane)
            {
                // Places whose channels all have the same ranges have the same sums.
                let sums = |(row, bias): (&[i32], &i32)| -> Vec<Total> {
                    classes.iter().map(|class| Total::of_row(row, class, *bias)).collect()
                };
                let rows = weights.chunks_exact(window.channels as usize).zip(bias).map(sums);
                let rows: Vec<Vec<Interval>> = rows.map(finish).collect::<Result<_, _>>()?;
                return Ok(rows.iter().flat_map(|row| class_of.iter().map(|class| row[*class])).collect());
            }
            let mut totals: Vec<Total> =
                bias.iter().flat_map(|bias| std::iter::repeat_n(Total::of(*bias), plane)).collect();
            let stride = window.stride[1] as usize;
            window.runs(|out, input, weight, count| {
                for i in 0..count {
                    totals[out + i].add(weights[weight], x[input + i * stride]);
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
            let mut totals: Vec<_> = bias.iter().map(|bias| Total::of(*bias)).collect();
            for (tensor, coefficient) in terms {
                let x = &tensors[tensor.index()];
                totals.iter_mut().zip(x).for_each(|(total, range)| total.add(*coefficient, *range));
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
                        let mut total = Total::of(0);
                        for (a, b) in a.iter().zip(b) {
                            let times = |a: i32, b: i32| i64::from(a) * i64::from(b);
                            let ends = [times(a.0, b.0), times(a.0, b.1), times(a.1, b.0), times(a.1, b.1)];
                            let low = ends.iter().copied().fold(i64::MAX, i64::min);
                            let high = ends.iter().copied().fold(i64::MIN, i64::max);
                            let low = if square { low.max(0) } else { low };
                            total.add_range(low, high);
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
            let interval = |range: &Range| (range.low, range.high);
            Ok(ranges
                .iter()
                .flat_map(|(count, range)| std::iter::repeat_n(interval(range), *count as usize))
                .collect())
        }
        Node::Lookup { input, shift, table } => {
            let (number, table) = (*table, &tables[*table as usize]);
            let half = half(*shift);
            let keys = table.keys();
            // A proof knows x + half only as key · 2^shift + remainder in its field. With these bounds the two differ by
            // less than the modulus for every key of the table, so that no wrong key fits.
            let reach = (i64::from(keys.low) << shift, (i64::from(keys.high) + 1) << shift);
            if reach.0 < -2 * VALUE_MAX || reach.1 > 2 * VALUE_MAX {
                return Err(Error::invalid("a table is too wide for the shift of a look-up"));
            }
            let extremes = extremes.entry(number).or_insert_with(|| Extremes::new(&table.values));
            let mut out = Vec::with_capacity(tensors[input.index()].len());
            let mut last = None;
            for range in &tensors[input.index()] {
                let key = ((range.0 + half) >> shift, (range.1 + half) >> shift);
                if i64::from(range.1 + half) > VALUE_MAX || key.0 < keys.low || key.1 > keys.high {
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
                let first = (key.0 - keys.low) as usize;
                let (low, high) = extremes.of(&table.values, first, first + (key.1 - key.0) as usize + 1);
                last = Some((key, (low, high)));
                out.push((low, high));
            }
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Tensor, Window};

    proptest! {
        /// A linear map of places is what a convolution with a second, empty column is, which is summed place by place.
        #[test]
        fn places_that_are_alike_are_bounded_as_each_by_itself(
            channels in 1u32..5,
            filters in 1u32..5,
            plane in 1u32..8,
            kinds in prop::collection::vec(0usize..3, 8),
            numbers in prop::collection::vec(-(1i32 << 14)..1 << 14, 64),
        ) {
            let at = |i: u32| numbers[i as usize % numbers.len()];
            let interval = |channel: u32, place: u32| {
                let (a, b) = (at(channel * 7 + kinds[place as usize] as u32), at(channel * 5 + 3));
                (a.min(b), a.max(b))
            };
            let x: Vec<Interval> =
                (0..channels).flat_map(|c| (0..plane).map(move |p| (c, p))).map(|(c, p)| interval(c, p)).collect();
            let weights: Vec<i32> = (0..channels * filters).map(|i| at(i * 3 + 1) >> 2).collect();
            let bias: Vec<i32> = (0..filters).map(|i| at(i + 11)).collect();
            let window = Window::pointwise(channels, filters, [1, plane]);
            let wide = Window { kernel: [1, 2], ..window };
            let padded: Vec<i32> = weights.iter().flat_map(|weight| [*weight, 0]).collect();
            let of = |window, weights| {
                let node = Node::Conv { input: Tensor::INPUT, window, weights, bias: bias.clone() };
                ranges(&node, &[], std::slice::from_ref(&x), &mut HashMap::new()).map_err(|error| error.to_string())
            };
            prop_assert!(window.is_pointwise() && !wide.is_pointwise());
            prop_assert_eq!(of(window, weights), of(wide, padded));
        }
    }

    #[test]
    fn extremes_of_a_part_are_those_of_its_values() {
        let values: Vec<i32> = (0..2000).map(|i| i * 7919 % 4001 - 2000).collect();
        let extremes = Extremes::new(&values);
        for first in (0..2000).step_by(37).chain([255, 256, 257, 511, 512, 1999]) {
            for end in (first + 1..=2000).step_by(41).chain([2000]) {
                let part = || values[first..end].iter().copied();
                let expected = (part().min().unwrap_or(0), part().max().unwrap_or(0));
                assert_eq!(extremes.of(&values, first, end), expected, "{first} to {end}");
            }
        }
    }

    #[test]
    fn places_that_all_differ_are_not_told_apart() {
        let x = |count: i32| (0..count).map(|i| (0, i)).collect::<Vec<_>>();
        assert_eq!(alike(&x(256), 256).map(|(classes, _)| classes.len()), Some(256));
        assert!(alike(&x(257), 257).is_none());
    }
}
