//! The parts of a graph.

/// A tensor of a graph: number 0 is the input, number `i + 1` what node `i` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(pub u32);

impl Tensor {
    /// The input of the graph.
    pub const INPUT: Tensor = Tensor(0);

    /// The number as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The integers from `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The smallest.
    pub low: i32,
    /// The largest.
    pub high: i32,
}

impl Range {
    /// Whether the value is inside.
    pub fn contains(self, value: i32) -> bool {
        self.low <= value && value <= self.high
    }

    /// The range of each column of a table, given row by row in rows of `len` values; without rows, ranges that hold nothing.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn of_columns(len: usize, values: &[i16]) -> Vec<Range> {
        let mut columns = vec![Range { low: i32::MAX, high: i32::MIN }; len];
        for row in values.chunks_exact(len) {
            for (range, value) in columns.iter_mut().zip(row) {
                let value = i32::from(*value);
                *range = Range { low: range.low.min(value), high: range.high.max(value) };
            }
        }
        columns
    }
}

/// A function on a range of integers: key `low + i` has the value `values[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The smallest key.
    pub low: i32,
    /// The values, of at least one key.
    pub values: Vec<i32>,
}

impl Table {
    /// The table of `f` on `low..=high`.
    ///
    /// # Panics
    /// When `high < low`.
    pub fn of(low: i32, high: i32, f: impl Fn(i32) -> i32) -> Table {
        assert!(low <= high, "a table has at least one key");
        Table { low, values: (low..=high).map(f).collect() }
    }

    /// The table that clamps keys of `low..=high` to `min..=max`; with `min` 0 it is also a ReLU.
    pub fn clamp(low: i32, high: i32, min: i32, max: i32) -> Table {
        Table::of(low, high, |key| key.clamp(min, max))
    }

    /// The value of a key, `None` outside the table.
    pub fn get(&self, key: i32) -> Option<i32> {
        let index = usize::try_from(i64::from(key) - i64::from(self.low)).ok()?;
        self.values.get(index).copied()
    }

    /// The keys.
    pub fn keys(&self) -> Range {
        // The check of a graph bounds `low` and the number of values, so this does not overflow in one.
        Range { low: self.low, high: self.low.wrapping_add(self.values.len() as i32 - 1) }
    }
}

/// The index in a [`Node::Gather`] that stands for the constant zero.
pub const ZERO: u32 = u32::MAX;

/// The geometry of a two-dimensional convolution: which input meets which weight in which output.
///
/// The input has the layout `[channels][height][width]`, the weights `[filters][channels / groups][kernel[0]][kernel[1]]`, the
/// output `[filters][output[0]][output[1]]`; pairs are (vertical, horizontal). What lies outside the input is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Input channels.
    pub channels: u32,
    /// Height and width of the input.
    pub size: [u32; 2],
    /// Output channels.
    pub filters: u32,
    /// Groups: filters of group `g` see only the channels of group `g`.
    pub groups: u32,
    /// Height and width of a filter.
    pub kernel: [u32; 2],
    /// Step from one output to the next.
    pub stride: [u32; 2],
    /// Step from one weight to the next.
    pub dilation: [u32; 2],
    /// Rows above and columns left of the input.
    pub pad: [u32; 2],
    /// Height and width of the output.
    pub output: [u32; 2],
}

impl Window {
    /// The geometry of a linear map that every place of the input goes through by itself: 1 × 1 kernels, no padding.
    pub fn pointwise(channels: u32, filters: u32, size: [u32; 2]) -> Window {
        let [kernel, stride, dilation] = [[1, 1]; 3];
        Window { channels, size, filters, groups: 1, kernel, stride, dilation, pad: [0, 0], output: size }
    }

    /// Whether it is [`pointwise`](Self::pointwise).
    pub fn is_pointwise(&self) -> bool {
        *self == Window::pointwise(self.channels, self.filters, self.size)
    }

    /// Values of one input.
    pub fn input_len(&self) -> usize {
        volume([self.channels, self.size[0], self.size[1], 1])
    }

    /// Values of one output.
    pub fn output_len(&self) -> usize {
        volume([self.filters, self.output[0], self.output[1], 1])
    }

    /// Weights.
    pub fn weights_len(&self) -> usize {
        volume([self.filters, self.channels / self.groups.max(1), self.kernel[0], self.kernel[1]])
    }

    /// Calls `run(output, input, weight, count)` for every run of products: `output + i` sums
    /// `weight · (input + i · stride[1])` for `i < count`.
    pub fn runs(&self, mut run: impl FnMut(usize, usize, usize, usize)) {
        let [height, width] = self.size.map(i64::from);
        let per_group = self.channels / self.groups;
        for filter in 0..self.filters {
            let group = filter / (self.filters / self.groups);
            for channel in 0..per_group {
                let plane = (group * per_group + channel) as usize * (height * width) as usize;
                for ky in 0..self.kernel[0] {
                    for kx in 0..self.kernel[1] {
                        let weight = ((filter * per_group + channel) as usize * self.kernel[0] as usize
                            + ky as usize)
                            * self.kernel[1] as usize
                            + kx as usize;
                        // Columns x with 0 <= x·stride + kx·dilation - pad < width.
                        let shift = i64::from(kx) * i64::from(self.dilation[1]) - i64::from(self.pad[1]);
                        let stride = i64::from(self.stride[1]);
                        let first = if shift < 0 { (-shift + stride - 1) / stride } else { 0 };
                        let end = if shift >= width { 0 } else { (width - 1 - shift) / stride + 1 };
                        let end = end.min(i64::from(self.output[1]));
                        if end <= first {
                            continue;
                        }
                        for y in 0..self.output[0] {
                            let row = i64::from(y) * i64::from(self.stride[0])
                                + i64::from(ky) * i64::from(self.dilation[0])
                                - i64::from(self.pad[0]);
                            if !(0..height).contains(&row) {
                                continue;
                            }
                            let input = plane + (row * width + first * stride + shift) as usize;
                            let output = (filter as usize * self.output[0] as usize + y as usize)
                                * self.output[1] as usize
                                + first as usize;
                            run(output, input, weight, (end - first) as usize);
                        }
                    }
                }
            }
        }
    }
}

/// A product that saturates, so that it breaks a limit where addresses have 32 bits, too.
pub(crate) fn volume(sizes: [u32; 4]) -> usize {
    sizes.iter().fold(1, |product: usize, size| product.saturating_mul(*size as usize))
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// `y[r] = bias[r] + Σ_c weights[r · columns + c] · x[c]`.
    Linear {
        /// The operand; its width is the number of columns.
        input: Tensor,
        /// The number of rows.
        rows: u32,
        /// The matrix, row by row.
        weights: Vec<i32>,
        /// One a row.
        bias: Vec<i32>,
    },
    /// A two-dimensional convolution (cross-correlation, as everywhere in machine learning) plus a bias a filter.
    Conv {
        /// The operand.
        input: Tensor,
        /// The geometry.
        window: Window,
        /// The filters.
        weights: Vec<i32>,
        /// One a filter.
        bias: Vec<i32>,
    },
    /// Wiring: `y[i] = (x_0 ‖ x_1 ‖ …)[index[i]]`, or 0 where the index is [`ZERO`]. Reshapes, transposes, slices,
    /// concatenations and padding are all this.
    Gather {
        /// The operands, concatenated.
        inputs: Vec<Tensor>,
        /// For each output, where it comes from.
        index: Vec<u32>,
    },
    /// `y[i] = bias[i] + Σ_t coefficient_t · x_t[i]`.
    Sum {
        /// Operands of one width, with their coefficients.
        terms: Vec<(Tensor, i32)>,
        /// One a value.
        bias: Vec<i32>,
    },
    /// Products of two computed operands, in groups: `y[g][m][n] = Σ_k a[g][m][k] · b[g][n][k]`. Attention is made of these;
    /// with one row, column and inner value a group they are products value by value, and with the same operand twice squares.
    /// Neither operand may depend on another product, except through a look-up.
    Product {
        /// The operands `a` and `b`.
        inputs: [Tensor; 2],
        /// Groups: how many products of matrices.
        groups: u32,
        /// Rows of `a` in a group.
        rows: u32,
        /// Rows of `b` in a group, which are the columns of the result.
        columns: u32,
        /// Values in each row of `a` and of `b`.
        inner: u32,
    },
    /// A [`Node::Linear`] or [`Node::Conv`] whose weights and biases are not here: a graph with such nodes cannot run, but a proof
    /// with committed weights can be checked with it.
    Committed {
        /// The map, with empty lists of weights and biases.
        map: Box<Node>,
        /// What holds the values of its result, as whoever has the weights says: runs of values that share a range, with the
        /// number of them. No run is empty, and none has the range of the one before it.
        ranges: Vec<(u32, Range)>,
    },
    /// `y[i] = table[(x[i] + half) >> shift]` with `half = 2^(shift - 1)`, 0 without a shift; `>>` rounds down.
    Lookup {
        /// The operand.
        input: Tensor,
        /// Bits dropped, at most [`SHIFT_MAX`](crate::SHIFT_MAX).
        shift: u32,
        /// The number of the table.
        table: u32,
    },
}

impl Node {
    /// The tensors that this node reads.
    pub fn operands(&self) -> Vec<Tensor> {
        match self {
            Node::Linear { input, .. } | Node::Conv { input, .. } | Node::Lookup { input, .. } => {
                vec![*input]
            }
            Node::Gather { inputs, .. } => inputs.clone(),
            Node::Product { inputs, .. } => inputs.to_vec(),
            Node::Sum { terms, .. } => terms.iter().map(|(tensor, _)| *tensor).collect(),
            Node::Committed { map, .. } => map.operands(),
        }
    }

    /// Multiplications of one evaluation, an upper bound for convolutions with padding.
    pub(crate) fn operations(&self) -> u64 {
        match self {
            Node::Linear { weights, .. } => weights.len() as u64,
            Node::Conv { window, weights, .. } => {
                weights.len() as u64 * u64::from(window.output[0]) * u64::from(window.output[1])
            }
            Node::Gather { .. } | Node::Lookup { .. } | Node::Committed { .. } => 0,
            Node::Sum { terms, bias } => terms.len() as u64 * bias.len() as u64,
            Node::Product { groups, rows, columns, inner, .. } => [rows, columns, inner]
                .into_iter()
                .fold(u64::from(*groups), |product, size| product.saturating_mul(u64::from(*size))),
        }
    }
}

/// What a look-up adds before it shifts: half of what the dropped bits can count, so that shifting rounds to nearest.
pub(crate) fn half(shift: u32) -> i32 {
    if shift == 0 { 0 } else { 1 << (shift - 1) }
}
