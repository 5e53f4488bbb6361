//! Matrices of weights: 14-bit integers, stored in 4, 6 or 8 bits each.
//!
//! A weight is what arithmetic and proofs see; how it is stored only decides how many bytes are read for it. The forms
//! are those of quantised models: small integers `q` in short runs of columns, each with a factor `k` and an offset `m`
//! of its own. Here `k` and `m` are integers relative to the row's scale, so that `w = m + round(q · k / 2^(bits-1))` is
//! the weight of the source file to within about a unit of 8191.

use crate::Scale;

/// The largest magnitude of a weight: fourteen bits, symmetric.
pub const WEIGHT_MAX: i32 = 8191;

/// The largest magnitude of a factor `k`: with all of a run's integers in use and an offset, the weights' range needs 8736.
pub const FACTOR_MAX: i32 = 9200;

/// Columns that are stored together.
pub const CHUNK: usize = 64;

/// Rows that are stored together.
pub const GROUP: usize = 4;

/// How a matrix stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `q` has 4 bits; 32 columns share `k` and `m`. 5 bits a weight in all.
    Q4,
    /// `q` has 6 bits; 16 columns share `k`, and `m` is zero. 7 bits a weight in all.
    Q6,
    /// `q` has 8 bits; 32 columns share `k` and `m`. 9 bits a weight in all.
    Q8,
}

impl Encoding {
    /// The width of `q`: signed, in two's complement.
    pub const fn bits(self) -> u32 {
        match self {
            Encoding::Q4 => 4,
            Encoding::Q6 => 6,
            Encoding::Q8 => 8,
        }
    }

    /// The number of columns that share a factor.
    pub const fn run(self) -> usize {
        match self {
            Encoding::Q4 | Encoding::Q8 => 32,
            Encoding::Q6 => 16,
        }
    }

    /// Bytes of one chunk of a group: for each of four rows four 16-bit parameters, then for each row 64 integers `q`.
    pub const fn chunk_bytes(self) -> usize {
        GROUP * (8 + CHUNK / 8 * self.bits() as usize)
    }

    /// Bytes of a group of rows with `cols` columns.
    pub const fn group_bytes(self, cols: usize) -> usize {
        cols.div_ceil(CHUNK) * self.chunk_bytes()
    }

    /// Bytes of a matrix, whose last group and last chunks are filled up. `None` if that does not fit a `usize`.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        rows.div_ceil(GROUP).checked_mul(cols.div_ceil(CHUNK).checked_mul(self.chunk_bytes())?)
    }

    /// Packs one row into its group, whose bytes were zero.
    ///
    /// `parameters` has four for each chunk: `k, m` for its first 32 columns and `k, m` for the others, or with
    /// [`Encoding::Q6`] a `k` for each 16. `q` has 64 for each chunk, of `bits` bits each.
    ///
    /// # Panics
    /// If the lengths do not belong together, or `row` is not below [`GROUP`].
    pub fn pack(self, row: usize, parameters: &[[i16; 4]], q: &[i8], group: &mut [u8]) {
        let (chunks, rest) = q.as_chunks::<CHUNK>();
        assert!(
            row < GROUP
                && rest.is_empty()
                && chunks.len() == parameters.len()
                && group.len() == chunks.len() * self.chunk_bytes(),
            "parameters, integers and group must have the same number of chunks"
        );
        for ((q, parameters), out) in
            chunks.iter().zip(parameters).zip(group.chunks_exact_mut(self.chunk_bytes()))
        {
            let (front, quants) = out.split_at_mut(8 * GROUP);
            for (out, p) in front[8 * row..].as_chunks_mut::<2>().0.iter_mut().zip(parameters) {
                *out = p.to_le_bytes();
            }
            let bytes = CHUNK / 8 * self.bits() as usize;
            let quants = &mut quants[row * bytes..][..bytes];
            match self {
                Encoding::Q8 => {
                    for (half, out) in quants.chunks_exact_mut(32).enumerate() {
                        for (j, word) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                            *word = [q[32 * half + j] as u8, q[32 * half + 16 + j] as u8];
                        }
                    }
                }
                Encoding::Q4 | Encoding::Q6 => {
                    for (j, word) in quants[..32].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        let four = |i: usize| (q[16 * i + j] & 15) as u8;
                        *word = [four(0) | four(1) << 4, four(2) | four(3) << 4];
                    }
                    for (j, byte) in quants[32..].iter_mut().enumerate() {
                        *byte = (0..4).fold(0, |b, i| b | (q[16 * i + j] as u8 >> 4 & 3) << (2 * i));
                    }
                }
            }
        }
    }
}

/// A matrix of weights, borrowed from a model.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    /// The number of outputs.
    pub rows: usize,
    /// The number of inputs, at most [`LENGTH_MAX`](crate::LENGTH_MAX).
    pub cols: usize,
    /// How the weights are stored.
    pub encoding: Encoding,
    /// [`Encoding::matrix_bytes`] bytes: groups of four rows, each of chunks of 64 columns. What fills up the last group
    /// and the last chunk of a row does not matter.
    pub weights: &'a [u8],
    /// One scale a row: a weight `w` stands for `w · scale`.
    pub scales: &'a [Scale],
}

impl MatrixView<'_> {
    /// Writes the `cols` weights of one row. They are within ±[`WEIGHT_MAX`] in every artifact that was verified; in
    /// others they are some 16-bit numbers.
    ///
    /// # Panics
    /// If there is no such row, or `out` does not have `cols` words.
    pub fn row(&self, row: usize, out: &mut [i16]) {
        assert!(row < self.rows && out.len() == self.cols, "row and length must be the matrix's");
        let group = &self.weights[row / GROUP * self.encoding.group_bytes(self.cols)..];
        let bits = self.encoding.bits();
        for (out, chunk) in out.chunks_mut(CHUNK).zip(group.chunks_exact(self.encoding.chunk_bytes())) {
            let (front, quants) = chunk.split_at(8 * GROUP);
            let p: [i16; 4] = std::array::from_fn(|i| {
                let at = 8 * (row % GROUP) + 2 * i;
                i16::from_le_bytes([front[at], front[at + 1]])
            });
            let quants = &quants[row % GROUP * CHUNK / 8 * bits as usize..];
            for (i, out) in out.chunks_mut(16).enumerate() {
                let (k, m) = match self.encoding {
                    Encoding::Q4 | Encoding::Q8 => (p[i / 2 * 2], p[i / 2 * 2 + 1]),
                    Encoding::Q6 => (p[i], 0),
                };
                // Each `q` comes to the top of a byte, so that its sign is where it belongs. With
                // `q = top / 2^(8-bits)`, this is `m + round(q · k / 2^(bits-1))`.
                let weight = |top: u8| {
                    let product = i32::from(top as i8) * i32::from(k);
                    m.wrapping_add(((product + (1 << 6)) >> 7) as i16)
                };
                let (byte, shift) = (i / 2, i % 2 * 4);
                match self.encoding {
                    Encoding::Q4 => {
                        for (out, pair) in out.iter_mut().zip(quants.as_chunks::<2>().0) {
                            *out = weight(pair[byte] >> shift << 4);
                        }
                    }
                    Encoding::Q6 => {
                        let (low, high) = quants.split_at(32);
                        for ((out, pair), high) in out.iter_mut().zip(low.as_chunks::<2>().0).zip(high) {
                            *out = weight((pair[byte] >> shift & 15) << 2 | high >> (2 * i) << 6);
                        }
                    }
                    Encoding::Q8 => {
                        for (out, pair) in out.iter_mut().zip(quants[32 * byte..].as_chunks::<2>().0) {
                            *out = weight(pair[i % 2]);
                        }
                    }
                }
            }
        }
    }

    /// Whether every weight is within ±[`WEIGHT_MAX`] and every factor within ±[`FACTOR_MAX`], in the rows of the
    /// matrix and in what fills up its last group and chunks: what an importer writes.
    pub fn is_valid(&self) -> bool {
        let whole = MatrixView {
            rows: self.rows.next_multiple_of(GROUP),
            cols: self.cols.next_multiple_of(CHUNK),
            ..*self
        };
        let factors = match self.encoding {
            Encoding::Q4 | Encoding::Q8 => [true, false, true, false],
            Encoding::Q6 => [true; 4],
        };
        let mut row = vec![0; whole.cols];
        self.weights.chunks_exact(self.encoding.chunk_bytes()).all(|chunk| {
            chunk[..8 * GROUP].as_chunks::<8>().0.iter().all(|p| {
                let words = p.as_chunks::<2>().0.iter().map(|b| i32::from(i16::from_le_bytes(*b)));
                words.zip(factors).all(|(word, factor)| !factor || word.abs() <= FACTOR_MAX)
            })
        }) && (0..whole.rows).all(|r| {
            whole.row(r, &mut row);
            row.iter().all(|&w| i32::from(w).abs() <= WEIGHT_MAX)
        })
    }
}
