//! The checker's key.

use assay_arithmetic::{MatrixView, freivalds};
use assay_model::Artifact;
use assay_receipt::Bytes32;
use rayon::prelude::*;
use sha3::Shake256;
use sha3::digest::{ExtendableOutput, Update, XofReader};

use super::known::{KeyError, Known, head, seal, unseal};
use super::products::{At, Matrix, Products};

/// What a key's file begins with.
pub const KEY_MAGIC: [u8; 8] = *b"ASSAYLK\n";

/// Rows that a thread takes at once.
const ROWS: usize = 512;

/// What a checker keeps of a model: everything but the weights, and of these one number a column.
///
/// Whoever has it can make traces of false answers that pass. It is secret.
pub struct Key {
    seed: [u8; 32],
    /// The elements of the random vector.
    r: Vec<u64>,
    pub(super) known: Known,
    pub(super) products: Products,
    fingerprints: Vec<u64>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret.
        f.debug_struct("Key").field("model", &self.model()).finish_non_exhaustive()
    }
}

/// The first `count` elements of the random vector of a seed: SHAKE256 over a name and the seed, eight bytes
/// (little-endian) cut to 61 bits at a time, without those that are [`freivalds::P`].
fn elements(seed: &[u8; 32], count: usize) -> Vec<u64> {
    let mut hash = Shake256::default();
    hash.update(b"assay light check 1");
    hash.update(seed);
    let mut stream = hash.finalize_xof();
    let mut out = Vec::with_capacity(count);
    while out.len() < count {
        let mut bytes = [0; 8];
        stream.read(&mut bytes);
        let element = u64::from_le_bytes(bytes) & freivalds::P;
        if element < freivalds::P {
            out.push(element);
        }
    }
    out
}

/// `rᵀW` over some rows of a matrix.
pub(super) fn project(w: &MatrixView<'_>, first: usize, r: &[u64]) -> Vec<u64> {
    let part = |block: usize| {
        let mut sums = freivalds::Projection::new(w.cols);
        let mut weights = vec![0; w.cols];
        for (i, &r) in r[block * ROWS..].iter().take(ROWS).enumerate() {
            w.row(first + block * ROWS + i, &mut weights);
            sums.add(r, &weights);
        }
        sums
    };
    let blocks = (0..r.len().div_ceil(ROWS)).into_par_iter().map(part);
    let sums = blocks.reduce(
        || freivalds::Projection::new(w.cols),
        |mut a, b| {
            a.merge(&b);
            a
        },
    );
    sums.finish()
}

impl Key {
    /// Makes a key from a model whose artifact was verified ([`Artifact::verify`]: the key is as right as the artifact),
    /// and 32 random bytes, which nobody must be able to guess. One pass over the weights; `progress` is called with how
    /// many were read, and all.
    ///
    /// # Errors
    /// [`KeyError::Encoder`], [`KeyError::NoWeights`].
    pub fn make(
        artifact: &Artifact,
        seed: [u8; 32],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Key, KeyError> {
        let known = Known::of(artifact)?;
        let shape = artifact.config();
        let products = Products::new(shape);
        let r = elements(&seed, products.rows_max());
        let mut fingerprints = vec![0; products.fingerprints()];

        let embedding = artifact.embedding();
        let matrices = products.matrices(artifact);
        let embedded = (embedding.rows * embedding.cols) as u64;
        let total = embedded + matrices.iter().map(Matrix::weights).sum::<u64>();

        let places = products.embedding();
        fingerprints[places].par_chunks_mut(ROWS).enumerate().for_each(|(block, out)| {
            let mut weights = vec![0; embedding.cols];
            for (i, out) in out.iter_mut().enumerate() {
                embedding.row(block * ROWS + i, &mut weights);
                *out = freivalds::of_values(&r, &weights);
            }
        });
        let mut done = embedded;
        progress(done, total);
        for table in 0..products.tables {
            let rows = Products::rope_rows(artifact, table);
            for (out, (cos, sin)) in fingerprints[products.rope(table)].iter_mut().zip(rows) {
                *out = of_rope(&r, cos, sin);
            }
        }
        for m in &matrices {
            let u = project(&m.view, m.first, &r[..m.rows]);
            fingerprints[products.matrix(m.layer, m.product, m.expert)].copy_from_slice(&u);
            done += m.weights();
            progress(done, total);
        }
        Key::new(seed, r, known, fingerprints)
    }

    fn new(seed: [u8; 32], r: Vec<u64>, known: Known, fingerprints: Vec<u64>) -> Result<Key, KeyError> {
        let products = Products::new(known.artifact().config());
        let r = if r.is_empty() { elements(&seed, products.rows_max()) } else { r };
        if fingerprints.len() != products.fingerprints()
            || fingerprints.iter().any(|&element| element >= freivalds::P)
        {
            return Err(KeyError::Damaged);
        }
        Ok(Key { seed, r, known, products, fingerprints })
    }

    /// The file, to be kept where nobody else can read it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = head(KEY_MAGIC);
        out.extend(self.seed);
        self.known.write(&mut out);
        self.fingerprints.iter().for_each(|element| out.extend(element.to_le_bytes()));
        seal(out)
    }

    /// Reads what [`Key::to_bytes`] wrote.
    ///
    /// # Errors
    /// All of [`KeyError`] but [`KeyError::NoWeights`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, KeyError> {
        let content = unseal(bytes, KEY_MAGIC)?;
        let (seed, rest) = content.split_first_chunk::<32>().ok_or(KeyError::Damaged)?;
        let (known, rest) = Known::read(rest)?;
        let (words, left) = rest.as_chunks::<8>();
        if !left.is_empty() {
            return Err(KeyError::Damaged);
        }
        let fingerprints = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Key::new(*seed, Vec::new(), known, fingerprints)
    }

    /// The id of the model that the key is for.
    pub fn model(&self) -> Bytes32 {
        self.artifact().id()
    }

    /// What the key knows of the model: everything but weights and rotary tables. An engine refuses to run it.
    pub fn artifact(&self) -> &Artifact {
        self.known.artifact()
    }

    /// Whether these are the weights of a token's embedding.
    pub(super) fn is_embedding(&self, token: usize, weights: &[i16]) -> bool {
        self.fingerprints[self.products.embedding()].get(token)
            == Some(&freivalds::of_values(&self.r, weights))
    }

    /// Whether these are the entries of a rotary table for a position.
    pub(super) fn is_rope(&self, table: usize, position: usize, cos: &[i32], sin: &[i32]) -> bool {
        self.fingerprints[self.products.rope(table)].get(position) == Some(&of_rope(&self.r, cos, sin))
    }

    /// Whether these sums are the product of a matrix and `x`.
    pub(super) fn is_product(&self, at: At<'_>, x: &[i16], sums: &[i64]) -> bool {
        let u = &self.fingerprints[self.products.matrix(at.layer, at.product, at.expert)];
        freivalds::of_sums(&self.r, sums) == freivalds::of_values(u, x)
    }
}

/// The fingerprint of a row of a rotary table.
fn of_rope(r: &[u64], cos: &[i32], sin: &[i32]) -> u64 {
    let entries: Vec<i64> = cos.iter().chain(sin).map(|&entry| i64::from(entry)).collect();
    freivalds::of_sums(r, &entries)
}
