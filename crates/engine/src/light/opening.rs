//! A trace with what shows to everybody that its products are the model's.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use assay_arithmetic::freivalds::{self, P};
use assay_arithmetic::reed_solomon::{Code, Complex};
use assay_model::{Artifact, Bytes};
use assay_receipt::Bytes32;
use rayon::prelude::*;

use super::commitment::{Block, Commitment, Hash, Layout, QUERIES, hash_column, message};
use super::key::project;
use super::products::{At, Matrix, Product, Products};
use super::trace::{Fault, Trace};
use super::{RecordError, record};
use crate::{Config, Generation, Replay};

/// What a proof begins with.
pub const PROOF_MAGIC: [u8; 8] = *b"ASSAYTP\n";

/// The version of the format.
const VERSION: u32 = 1;

/// Bytes before the trace.
const HEAD: usize = 48;

/// Numbers of a field of `2^61 - 1` elements, from the output of a hash: eight bytes (little-endian) cut to 61 bits at a time, without
/// those that are [`P`].
pub(super) fn numbers(seed: &Hash, count: usize) -> Vec<Complex> {
    let mut stream = blake3::Hasher::new().update(seed).finalize_xof();
    let mut next = || {
        loop {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            let part = u64::from_le_bytes(bytes) & P;
            if part < P {
                return part;
            }
        }
    };
    (0..count).map(|_| Complex { re: next(), im: next() }).collect()
}

/// Places of the code words that are opened, in the order in which they are drawn.
pub(super) fn places(seed: &Hash, layout: &Layout) -> Vec<usize> {
    let mut stream = blake3::Hasher::new().update(seed).finalize_xof();
    let draw = |_| {
        let mut bytes = [0; 4];
        stream.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize & ((2 << layout.log) - 1)
    };
    (0..QUERIES).map(draw).collect()
}

/// The hash that the first challenges come from: of the commitment, the text and the trace.
pub(super) fn statement(commitment: &Bytes32, prompt: &[u32], answer: &[u32], trace: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"assay trace proof 1");
    hasher.update(&commitment.0);
    for tokens in [prompt, answer] {
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
    }
    hasher.update(trace);
    hasher.finalize().into()
}

/// The hash after another message.
pub(super) fn after(seed: &Hash, message: &[u8]) -> Hash {
    blake3::Hasher::new().update(seed).update(message).finalize().into()
}

/// How rows are weighed. Rows `2k` and `2k + 1` of a matrix get `q` and `q i`, where `q` is the product of a number for the row of the code
/// that they are in and one for their place in it.
pub(super) struct Weights {
    down: Vec<Complex>,
    pub(super) beside: Vec<Complex>,
    /// For each class, real and imaginary parts of the weights of a matrix's rows.
    rows: Vec<[Vec<u64>; 2]>,
}

impl Weights {
    pub(super) fn new(seed: &Hash, layout: &Layout) -> Weights {
        let most = layout.classes.iter().map(|class| class.beside).max().unwrap_or(0);
        let tallest = layout.blocks.iter().map(|block| block.count).max().unwrap_or(0);
        let mut down = numbers(seed, tallest + most);
        let beside = down.split_off(tallest);
        let rows = layout.classes.iter().map(|class| {
            let pairs = (0..class.rows_max.div_ceil(2)).into_par_iter();
            let weights = pairs.map(|pair| down[pair / class.beside] * beside[pair % class.beside]);
            let weights: Vec<Complex> = weights.collect();
            let real = weights.iter().flat_map(|q| [q.re, negative(q.im)]).take(class.rows_max);
            let imaginary = weights.iter().flat_map(|q| [q.im, q.re]).take(class.rows_max);
            [real.collect(), imaginary.collect()]
        });
        let rows = rows.collect();
        Weights { down, beside, rows }
    }
}

fn negative(part: u64) -> u64 {
    if part == 0 { 0 } else { P - part }
}

/// For each row of the code its weight in the sum of its class.
pub(super) fn combination(layout: &Layout, weights: &Weights, mix: &[Complex]) -> Vec<Complex> {
    let rows = |(block, &mix): (&Block, &Complex)| {
        weights.down[..block.count].iter().map(|&down| down * mix).collect::<Vec<_>>()
    };
    layout.blocks.iter().zip(mix).flat_map(rows).collect()
}

fn bytes_of(numbers: &[Complex]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_bytes()).collect()
}

/// The columns of all matrices: where those of one are, and how many there are.
fn projections(products: &Products) -> (usize, usize) {
    let first = products.matrix(0, Product::Query, 0).start;
    (first, products.fingerprints() - first)
}

/// What stands behind the trace in a proof, in bytes.
fn opening_bytes(products: &Products, layout: &Layout) -> usize {
    let sums: usize = layout.classes.iter().map(|class| class.message_len()).sum();
    16 * (projections(products).1 + sums + QUERIES * layout.rows)
}

/// Writes and hashes.
struct Hashed<'a> {
    out: &'a mut dyn Write,
    hasher: blake3::Hasher,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Replays an answer and writes its proof: its trace, as [`record`] does, and then what opens the commitment with the id `key`
/// ([`Commitment::id`]), which must be the one to the artifact's model, or nobody will accept the proof. That takes three passes over
/// the weights, one of which encodes them, with `config`'s threads. `progress` is called with the steps of the part at hand that are done, and all:
/// positions, and then matrices and rows of the code.
///
/// # Errors
/// [`RecordError`]; what was written until then is no proof.
pub fn prove(
    artifact: &Arc<Artifact>,
    config: Config,
    key: Bytes32,
    generation: &Generation,
    answer: &[u32],
    out: &mut dyn Write,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Replay, RecordError> {
    out.write_all(&PROOF_MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&[0; 4])?;
    out.write_all(&key.0)?;
    let mut hashed = Hashed { out, hasher: blake3::Hasher::new() };
    let replay = record(artifact, config, generation, answer, &mut hashed, progress)?;
    let trace: Hash = hashed.hasher.finalize().into();
    // Who waits has the trace by now; and who is gone need not have the rest made.
    out.flush()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads.max(1)).build();
    let pool = pool.map_err(std::io::Error::other)?;
    let prover = Prover::new(artifact, pool);
    out.write_all(&prover.open(&key, (&generation.prompt, answer), &trace, progress))?;
    Ok(replay)
}

/// A model and how its weights lie in the code.
pub(super) struct Prover<'a> {
    products: Products,
    layout: Layout,
    matrices: Vec<Matrix<'a>>,
    pool: rayon::ThreadPool,
}

impl<'a> Prover<'a> {
    pub(super) fn new(artifact: &'a Artifact, pool: rayon::ThreadPool) -> Prover<'a> {
        let products = Products::new(artifact.config());
        let matrices = products.matrices(artifact);
        Prover { products, layout: Layout::new(artifact.config()), matrices, pool }
    }

    /// What opens a commitment, for a trace of this text with this hash.
    pub(super) fn open(
        &self,
        key: &Bytes32,
        (prompt, answer): (&[u32], &[u32]),
        trace: &Hash,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Vec<u8> {
        let layout = &self.layout;
        let steps = self.matrices.len() + layout.classes.len() + layout.rows;
        let mut out = Vec::with_capacity(opening_bytes(&self.products, layout));

        let seed = statement(key, prompt, answer, trace);
        let weights = self.pool.install(|| Weights::new(&seed, layout));
        let message = self.project(&weights, &mut |done| progress(done, steps));
        let seed = after(&seed, &message);
        out.extend(message);

        let mix = numbers(&seed, layout.blocks.len());
        let message = self.sums_of_rows(&combination(layout, &weights, &mix));
        let seed = after(&seed, &message);
        out.extend(message);
        let done = self.matrices.len() + layout.classes.len();
        progress(done, steps);

        let places = places(&seed, layout);
        out.extend(self.open_columns(&places, &mut |rows| progress(done + rows, steps)));
        out
    }

    /// The weighted sum of each matrix's rows.
    fn project(&self, weights: &Weights, progress: &mut dyn FnMut(usize)) -> Vec<u8> {
        let (first, count) = projections(&self.products);
        let mut columns = vec![Complex::default(); count];
        for (done, (matrix, block)) in self.matrices.iter().zip(&self.layout.blocks).enumerate() {
            let [re, im] = &weights.rows[block.class];
            let parts = self
                .pool
                .install(|| [re, im].map(|r| project(&matrix.view, matrix.first, &r[..matrix.rows])));
            let place = self.products.matrix(matrix.layer, matrix.product, matrix.expert);
            let [re, im] = parts;
            let place = columns[place.start - first..place.end - first].iter_mut();
            place.zip(re.into_iter().zip(im)).for_each(|(out, (re, im))| *out = Complex { re, im });
            progress(done + 1);
        }
        bytes_of(&columns)
    }

    /// The weighted sum of the rows of the code, class by class, as messages without the zeros at their ends.
    pub(super) fn sums_of_rows(&self, combination: &[Complex]) -> Vec<u8> {
        let mut message = Vec::new();
        for (index, class) in self.layout.classes.iter().enumerate() {
            let part = |place: usize| {
                let mut sums =
                    [freivalds::Projection::new(class.cols), freivalds::Projection::new(class.cols)];
                let mut row = vec![0; class.cols];
                let blocks = self.matrices.iter().zip(&self.layout.blocks);
                for (matrix, block) in blocks.filter(|(_, block)| block.class == index) {
                    for (down, q) in combination[block.first..][..block.count].iter().enumerate() {
                        let pair = 2 * (down * class.beside + place);
                        for (part, re, im) in [(0, q.re, q.im), (1, negative(q.im), q.re)] {
                            if pair + part < matrix.rows {
                                matrix.row(pair + part, &mut row);
                                sums[0].add(re, &row);
                                sums[1].add(im, &row);
                            }
                        }
                    }
                }
                let [re, im] = sums.map(freivalds::Projection::finish);
                re.into_iter().zip(im).map(|(re, im)| Complex { re, im }).collect::<Vec<_>>()
            };
            let parts: Vec<_> = self.pool.install(|| (0..class.beside).into_par_iter().map(part).collect());
            message.extend(parts.iter().flat_map(|part: &Vec<Complex>| bytes_of(part)));
        }
        message
    }

    /// The columns of the code at these places, one behind the other.
    pub(super) fn open_columns(&self, places: &[usize], progress: &mut dyn FnMut(usize)) -> Vec<u8> {
        let layout = &self.layout;
        let code = Code::new(layout.log);
        let mut opened = Vec::with_capacity(layout.rows);
        for rows in layout.code_rows().chunks(64) {
            let open = |word: &mut Vec<Complex>, &(block, row): &(usize, usize)| {
                message(layout, &self.matrices[block], &layout.blocks[block], row, word);
                code.values(word, places)
            };
            let words = || vec![Complex::default(); code.word_len()];
            self.pool.install(|| opened.par_extend(rows.par_iter().map_init(words, open)));
            progress(opened.len());
        }
        let columns =
            (0..places.len()).flat_map(|query| opened.iter().map(move |row: &Vec<Complex>| row[query]));
        columns.flat_map(Complex::to_bytes).collect()
    }
}

/// A proof whose form was checked, and nothing else.
pub struct Proof {
    commitment: Bytes32,
    columns: Vec<Complex>,
    sums: Vec<Vec<Complex>>,
    opened: Vec<Vec<Complex>>,
    bytes: Bytes,
    trace: Trace,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proof")
            .field("commitment", &self.commitment)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// Some of some bytes.
struct Part(Bytes, Range<usize>);

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref().get(self.1.clone()).unwrap_or_default()
    }
}

/// The trace of a proof and what is behind it.
fn parts_of<'a>(proof: &'a [u8], commitment: &Commitment) -> Option<(&'a [u8], &'a [u8])> {
    let rest = proof.get(HEAD..)?;
    rest.split_at_checked(rest.len().checked_sub(opening_bytes(&commitment.products, &commitment.layout))?)
}

impl Proof {
    /// Reads a proof that is to be checked with a commitment. Every length and number is checked, but no product.
    ///
    /// # Errors
    /// [`Fault::NotAProof`], [`Fault::Version`], [`Fault::Commitment`], [`Fault::Form`], and those of [`Trace::parse`].
    pub fn parse(bytes: Bytes, commitment: &Commitment) -> Result<Proof, Fault> {
        let all: &[u8] = (*bytes).as_ref();
        let rest = all.strip_prefix(&PROOF_MAGIC).ok_or(Fault::NotAProof)?;
        let (head, _) = rest.split_first_chunk::<{ HEAD - 8 }>().ok_or(Fault::NotAProof)?;
        let version = u32::from_le_bytes(std::array::from_fn(|i| head[i]));
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let named = Bytes32(std::array::from_fn(|i| head[8 + i]));
        if named != commitment.id() {
            return Err(Fault::Commitment { proof: named, key: commitment.id() });
        }
        if head[4..8] != [0; 4] {
            return Err(Fault::Form("its head has something where nothing may be"));
        }
        let (_, opening) = parts_of(all, commitment).ok_or(Fault::Form("it ends too early"))?;
        let words = opening.as_chunks::<16>().0;
        let numbers: Option<Vec<Complex>> = words.iter().map(|word| Complex::from_bytes(*word)).collect();
        let mut numbers = numbers.ok_or(Fault::Form("a number is not below the prime"))?.into_iter();
        let mut next = |count: usize| numbers.by_ref().take(count).collect::<Vec<_>>();
        let layout = &commitment.layout;
        let columns = next(projections(&commitment.products).1);
        let sums = layout.classes.iter().map(|class| next(class.message_len())).collect();
        let opened = (0..QUERIES).map(|_| next(layout.rows)).collect();
        let part = Part(Arc::clone(&bytes), HEAD..all.len() - opening.len());
        let trace = Trace::parse(Arc::new(part), commitment.artifact())?;
        Ok(Proof { commitment: named, columns, sums, opened, bytes, trace })
    }

    /// Checks that the projections are the committed model's, for the challenges that follow from text and trace. What is returned tests the
    /// trace's products.
    pub(super) fn open(
        self,
        commitment: &Arc<Commitment>,
        prompt: &[u32],
        answer: &[u32],
    ) -> Result<(Opened, Trace), Fault> {
        if self.commitment != commitment.id() {
            return Err(Fault::Commitment { proof: self.commitment, key: commitment.id() });
        }
        let layout = &commitment.layout;
        let (trace, opening) =
            parts_of((*self.bytes).as_ref(), commitment).ok_or(Fault::Form("it ends too early"))?;
        let (columns, sums) = opening.split_at(16 * self.columns.len());
        let sums = &sums[..16 * self.sums.iter().map(Vec::len).sum::<usize>()];

        let trace: Hash = blake3::hash(trace).into();
        let seed = statement(&commitment.id(), prompt, answer, &trace);
        let weights = Weights::new(&seed, layout);
        let seed = after(&seed, columns);
        let mix = numbers(&seed, layout.blocks.len());
        let (first, _) = projections(&commitment.products);
        for (index, (class, sum)) in layout.classes.iter().zip(&self.sums).enumerate() {
            let mut left = vec![Complex::default(); class.cols];
            for (block, &mix) in layout.blocks.iter().zip(&mix).filter(|(block, _)| block.class == index) {
                let place = commitment.products.matrix(block.layer, block.product, block.expert);
                let columns = &self.columns[place.start - first..place.end - first];
                left.iter_mut().zip(columns).for_each(|(left, &column)| *left = *left + mix * column);
            }
            for (&beside, part) in weights.beside.iter().zip(sum.chunks_exact(class.cols)) {
                left.iter_mut().zip(part).for_each(|(left, &number)| *left = *left - beside * number);
            }
            if left.iter().any(|&left| left != Complex::default()) {
                return Err(Fault::Opening(
                    "what it says of the columns and of the rows contradict each other",
                ));
            }
        }
        let seed = after(&seed, sums);
        let combination = combination(layout, &weights, &mix);
        let code = Code::new(layout.log);
        let check = |(&place, column): (&usize, &Vec<Complex>)| {
            if hash_column(column) != commitment.columns[place] {
                return Err(Fault::Opening("a column is not the model's"));
            }
            let mut found = vec![Complex::default(); layout.classes.len()];
            for block in &layout.blocks {
                let rows = block.first..block.first + block.count;
                let terms = column[rows.clone()].iter().zip(&combination[rows]);
                found[block.class] = terms.fold(found[block.class], |sum, (&number, &q)| sum + number * q);
            }
            let right = found.iter().zip(&self.sums).all(|(&found, sum)| found == code.value(sum, place));
            right.then_some(()).ok_or(Fault::Opening("a sum of rows is not that of the model's"))
        };
        places(&seed, layout).par_iter().zip(&self.opened).try_for_each(check)?;
        let parts = |part: fn(&Complex) -> u64| self.columns.iter().map(part).collect();
        let opened = Opened {
            commitment: Arc::clone(commitment),
            rows: weights.rows,
            columns: [parts(|number| number.re), parts(|number| number.im)],
            prompt: prompt.to_vec(),
            answer: answer.to_vec(),
        };
        Ok((opened, self.trace))
    }
}

/// The test of products that a proof's challenges make.
pub(crate) struct Opened {
    pub(super) commitment: Arc<Commitment>,
    rows: Vec<[Vec<u64>; 2]>,
    columns: [Vec<u64>; 2],
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl Opened {
    /// Whether these sums are the product of a matrix and `x`.
    pub(super) fn is_product(&self, at: At<'_>, x: &[i16], sums: &[i64]) -> bool {
        let products = &self.commitment.products;
        let (first, _) = projections(products);
        let place = products.matrix(at.layer, at.product, at.expert);
        let classes = &self.commitment.layout.classes;
        let Ok(class) = classes.binary_search_by_key(&place.len(), |class| class.cols) else { return false };
        let rows = &self.rows[class];
        rows.iter().zip(&self.columns).all(|(rows, columns)| {
            let u = &columns[place.start - first..place.end - first];
            freivalds::of_sums(rows, sums) == freivalds::of_values(u, x)
        })
    }

    /// Whether the proof is about this text.
    pub(super) fn is_of(&self, prompt: &[u32], answer: &[u32]) -> bool {
        self.prompt == prompt && self.answer == answer
    }
}
