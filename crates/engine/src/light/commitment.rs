//! What stands for a model's weights where everybody may know the key.

use assay_arithmetic::reed_solomon::{Code, Complex, LOG_MAX};
use assay_model::{Artifact, Config as Shape};
use assay_receipt::Bytes32;
use rayon::prelude::*;

use super::known::{KeyError, Known, head, seal, unseal};
use super::products::{Matrix, Product, Products};

/// What a commitment's file begins with.
pub const COMMITMENT_MAGIC: [u8; 8] = *b"ASSAYCM\n";

/// Places of the code words that a proof opens: a false sum of rows agrees with the true one's word in less than half of them.
pub(super) const QUERIES: usize = 104;

/// Numbers of a column that are hashed at once, with what came before them: 512 bytes.
const HASHED: usize = 30;

/// The hash of a text, a row or a column.
pub(super) type Hash = [u8; 32];

/// A matrix in the rows of the code.
pub(super) struct Block {
    pub(super) layer: usize,
    pub(super) product: Product,
    pub(super) expert: usize,
    /// Rows of the matrix.
    pub(super) rows: usize,
    /// Which of the classes it is in.
    pub(super) class: usize,
    /// Rows of the code that it takes, from `first` on.
    pub(super) count: usize,
    pub(super) first: usize,
}

/// Matrices with the same number of columns.
pub(super) struct Class {
    pub(super) cols: usize,
    /// Pairs of rows of a matrix that stand in one row of the code.
    pub(super) beside: usize,
    /// The most rows of a matrix.
    pub(super) rows_max: usize,
}

/// How a model's weights lie in messages of `2^log` complex numbers. A number holds two weights, of rows `2k` and `2k + 1` of a matrix in
/// one column; as many such pairs of rows as fit stand side by side.
pub(super) struct Layout {
    pub(super) log: u32,
    pub(super) classes: Vec<Class>,
    pub(super) blocks: Vec<Block>,
    /// Rows of the code.
    pub(super) rows: usize,
}

impl Layout {
    /// The layout for which a proof is smallest.
    pub(super) fn new(shape: &Shape) -> Layout {
        let products = Products::new(shape);
        let mut widths: Vec<usize> =
            products.places().map(|(_, product, _)| products.size(product).1).collect();
        widths.sort_unstable();
        widths.dedup();
        let widest = widths.last().copied().unwrap_or(1).max(1);
        let least = widest.next_power_of_two().trailing_zeros().min(LOG_MAX);
        let layouts = (least..=LOG_MAX).map(|log| Layout::with(&products, &widths, log));
        let size = |layout: &Layout| {
            layout.rows * QUERIES + layout.classes.iter().map(Class::message_len).sum::<usize>()
        };
        // There is one at least.
        layouts.min_by_key(size).unwrap_or_else(|| Layout::with(&products, &widths, LOG_MAX))
    }

    fn with(products: &Products, widths: &[usize], log: u32) -> Layout {
        let class = |&cols: &usize| Class { cols, beside: ((1 << log) / cols.max(1)).max(1), rows_max: 0 };
        let mut classes: Vec<Class> = widths.iter().map(class).collect();
        let mut rows = 0;
        let mut blocks = Vec::new();
        for (layer, product, expert) in products.places() {
            let (height, cols) = products.size(product);
            let class = widths.binary_search(&cols).unwrap_or(0); // all of them are there
            let parts = &mut classes[class];
            parts.rows_max = parts.rows_max.max(height);
            let count = height.div_ceil(2).div_ceil(parts.beside);
            blocks.push(Block { layer, product, expert, rows: height, class, count, first: rows });
            rows += count;
        }
        Layout { log, classes, blocks, rows }
    }

    /// The rows of the code: matrix by matrix, the number of the block and of its row.
    pub(super) fn code_rows(&self) -> Vec<(usize, usize)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(index, block)| (0..block.count).map(move |row| (index, row))).collect()
    }
}

impl Class {
    /// Numbers of a message that are not always zero.
    pub(super) fn message_len(&self) -> usize {
        self.beside * self.cols
    }
}

/// A row of the code of some matrix: the message, and nothing behind it, in the memory of a code word.
pub(super) fn message(layout: &Layout, matrix: &Matrix<'_>, block: &Block, row: usize, word: &mut [Complex]) {
    let class = &layout.classes[block.class];
    word.fill(Complex::default());
    let mut weights = [vec![0i16; class.cols], vec![0i16; class.cols]];
    for (pair, out) in word.chunks_exact_mut(class.cols).take(class.beside).enumerate() {
        let first = 2 * (row * class.beside + pair);
        for (part, weights) in weights.iter_mut().enumerate() {
            if first + part < block.rows {
                matrix.row(first + part, weights);
            } else {
                weights.fill(0);
            }
        }
        for ((out, &re), &im) in out.iter_mut().zip(&weights[0]).zip(&weights[1]) {
            *out = Complex::of_integers(re.into(), im.into());
        }
    }
}

fn hash(parts: impl Iterator<Item = impl AsRef<[u8]>>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    parts.for_each(|part| {
        hasher.update(part.as_ref());
    });
    hasher.finalize().into()
}

/// Goes on with the hash of a column, by up to [`HASHED`] numbers.
fn hash_on(state: &mut Hash, numbers: impl Iterator<Item = Complex>) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(state);
    numbers.for_each(|number| {
        hasher.update(&number.to_bytes());
    });
    *state = hasher.finalize().into();
}

/// The hash of a column of code words.
pub(super) fn hash_column(column: &[Complex]) -> Hash {
    let mut state = [0; 32];
    column.chunks(HASHED).for_each(|part| hash_on(&mut state, part.iter().copied()));
    state
}

fn hash_embedding(weights: &[i16]) -> Hash {
    hash(weights.iter().map(|weight| weight.to_le_bytes()))
}

fn hash_rope(cos: &[i32], sin: &[i32]) -> Hash {
    hash(cos.iter().chain(sin).map(|entry| entry.to_le_bytes()))
}

/// The hash at the end of a sealed file.
fn id_of(file: &[u8]) -> Bytes32 {
    Bytes32(file.last_chunk().copied().unwrap_or_default())
}

/// What whoever checks proofs keeps of a model: everything but the weights, and of these a hash of each column of a code.
///
/// It is a function of the model, and no secret: with the model anybody makes the same one, bit for bit.
pub struct Commitment {
    id: Bytes32,
    pub(super) known: Known,
    pub(super) products: Products,
    pub(super) layout: Layout,
    /// Of each token.
    embeddings: Vec<Hash>,
    /// Of each position, table by table.
    ropes: Vec<Hash>,
    /// Of each place of the code words.
    pub(super) columns: Vec<Hash>,
}

impl std::fmt::Debug for Commitment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commitment")
            .field("id", &self.id)
            .field("model", &self.model())
            .finish_non_exhaustive()
    }
}

impl Commitment {
    /// Commits to a model whose artifact was verified ([`Artifact::verify`]). It encodes all weights, at 16 bytes a weight in all, of
    /// which 30 rows of the code are in memory. `progress` is called with the rows that are done, and all.
    ///
    /// # Errors
    /// [`KeyError::Encoder`], [`KeyError::NoWeights`].
    pub fn make(artifact: &Artifact, progress: &mut dyn FnMut(u64, u64)) -> Result<Commitment, KeyError> {
        let known = Known::of(artifact)?;
        let shape = artifact.config();
        let products = Products::new(shape);
        let layout = Layout::new(shape);

        let embedding = artifact.embedding();
        let embeddings = (0..embedding.rows).into_par_iter().map_init(
            || vec![0; embedding.cols],
            |weights, token| {
                embedding.row(token, weights);
                hash_embedding(weights)
            },
        );
        let embeddings: Vec<Hash> = embeddings.collect();
        let mut ropes = Vec::new();
        for table in 0..products.tables {
            ropes.extend(Products::rope_rows(artifact, table).map(|(cos, sin)| hash_rope(cos, sin)));
        }

        let code = Code::new(layout.log);
        let matrices = products.matrices(artifact);
        let mut columns = vec![[0; 32]; code.word_len()];
        let mut words = vec![Complex::default(); code.word_len() * HASHED.min(layout.rows)];
        let mut done = 0;
        for rows in layout.code_rows().chunks(HASHED) {
            words.par_chunks_mut(code.word_len()).zip(rows).for_each(|(word, &(block, row))| {
                message(&layout, &matrices[block], &layout.blocks[block], row, word);
                code.encode(word);
            });
            columns.par_iter_mut().enumerate().with_min_len(256).for_each(|(place, state)| {
                hash_on(state, words.chunks_exact(code.word_len()).take(rows.len()).map(|word| word[place]));
            });
            done += rows.len() as u64;
            progress(done, layout.rows as u64);
        }
        let id = Bytes32([0; 32]);
        let mut made = Commitment { id, known, products, layout, embeddings, ropes, columns };
        made.id = id_of(&made.to_bytes());
        Ok(made)
    }

    /// The file, for everybody.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = head(COMMITMENT_MAGIC);
        self.known.write(&mut out);
        [&self.embeddings, &self.ropes, &self.columns]
            .into_iter()
            .flatten()
            .for_each(|hash| out.extend(hash));
        seal(out)
    }

    /// Reads what [`Commitment::to_bytes`] wrote.
    ///
    /// # Errors
    /// All of [`KeyError`] but [`KeyError::NoWeights`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Commitment, KeyError> {
        let (known, rest) = Known::read(unseal(bytes, COMMITMENT_MAGIC)?)?;
        let (hashes, left) = rest.as_chunks::<32>();
        let shape = known.artifact().config();
        let products = Products::new(shape);
        let layout = Layout::new(shape);
        let tables = products.tables * shape.context;
        if !left.is_empty() || hashes.len() != shape.vocab + tables + (2 << layout.log) {
            return Err(KeyError::Damaged);
        }
        let (embeddings, hashes) = hashes.split_at(shape.vocab);
        let (ropes, columns) = hashes.split_at(tables);
        let [embeddings, ropes, columns] = [embeddings, ropes, columns].map(<[Hash]>::to_vec);
        Ok(Commitment { id: id_of(bytes), known, products, layout, embeddings, ropes, columns })
    }

    /// The hash that stands for all of it, and with which everybody can name it: the last 32 bytes of the file.
    pub fn id(&self) -> Bytes32 {
        self.id
    }

    /// The id of the model.
    pub fn model(&self) -> Bytes32 {
        self.artifact().id()
    }

    /// What the commitment knows of the model: everything but weights and rotary tables. An engine refuses to run it.
    pub fn artifact(&self) -> &Artifact {
        self.known.artifact()
    }

    /// Whether these are the weights of a token's embedding.
    pub(super) fn is_embedding(&self, token: usize, weights: &[i16]) -> bool {
        self.embeddings.get(token) == Some(&hash_embedding(weights))
    }

    /// Whether these are the entries of a rotary table for a position.
    pub(super) fn is_rope(&self, table: usize, position: usize, cos: &[i32], sin: &[i32]) -> bool {
        let context = self.artifact().config().context;
        position < context && self.ropes.get(table * context + position) == Some(&hash_rope(cos, sin))
    }
}
