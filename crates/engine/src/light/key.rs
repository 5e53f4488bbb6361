//! The checker's key.

use std::sync::Arc;

use assay_arithmetic::{MatrixView, freivalds};
use assay_model::{Artifact, Bytes};
use assay_receipt::{Bytes32, keccak256};
use rayon::prelude::*;
use sha3::Shake256;
use sha3::digest::{ExtendableOutput, Update, XofReader};

use super::products::{Product, Products};

/// What a key's file begins with.
pub const KEY_MAGIC: [u8; 8] = *b"ASSAYLK\n";

/// The version of the key's format.
const VERSION: u32 = 1;

/// The largest key that is read, in bytes.
pub const KEY_BYTES_MAX: u64 = 1 << 30;

/// Rows that a thread takes at once.
const ROWS: usize = 512;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The model makes embeddings.
    #[error(
        "the model turns texts into vectors, and light checks are for models that write text: replay its answers"
    )]
    Encoder,
    /// The artifact has no weights.
    #[error("this is what a key knows of a model; make the key from the model itself")]
    NoWeights,
    /// The bytes are no key.
    #[error("this is no key for light checks: make one with `assay model key`")]
    NotAKey,
    /// The bytes are a key of another version.
    #[error("the key has format {0}, this software reads {VERSION}: make it again with `assay model key`")]
    Version(u32),
    /// The bytes were changed or cut.
    #[error("the key is damaged: make it again with `assay model key`")]
    Damaged,
    /// The model in the key cannot be read.
    #[error("the model in the key cannot be used: {0}")]
    Model(#[from] assay_model::Error),
}

/// What a checker keeps of a model: everything but the weights, and of these one number a column.
///
/// Whoever has it can make traces of false answers that pass. It is secret.
pub struct Key {
    seed: [u8; 32],
    /// The elements of the random vector.
    r: Vec<u64>,
    manifest: Vec<u8>,
    sections: Bytes,
    artifact: Artifact,
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
fn project(w: &MatrixView<'_>, first: usize, r: &[u64]) -> Vec<u64> {
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
        if artifact.encoder().is_some() {
            return Err(KeyError::Encoder);
        }
        if !artifact.has_weights() {
            return Err(KeyError::NoWeights);
        }
        let shape = artifact.config();
        let products = Products::new(shape);
        let r = elements(&seed, products.rows_max());
        let mut fingerprints = vec![0; products.fingerprints()];

        let (embedding, output) = (artifact.embedding(), artifact.output());
        let layers: Vec<_> = (0..shape.layers).map(|index| artifact.layer(index)).collect();
        let matrices = layers.iter().enumerate().flat_map(|(index, layer)| {
            let one = |product, w| (index, product, w);
            [
                one(Product::Query, layer.q),
                one(Product::Key, layer.k),
                one(Product::Value, layer.v),
                one(Product::Attention, layer.o),
                one(Product::Gate, layer.gate),
                one(Product::Up, layer.up),
                one(Product::Down, layer.down),
            ]
            .into_iter()
            .chain(layer.router.map(|router| one(Product::Router, router)))
        });
        let matrices: Vec<_> = matrices.chain([(shape.layers, Product::Output, output)]).collect();
        let weights = |w: &MatrixView<'_>| (w.rows * w.cols) as u64;
        let total = weights(&embedding) + matrices.iter().map(|(.., w)| weights(w)).sum::<u64>();

        let places = products.embedding();
        fingerprints[places].par_chunks_mut(ROWS).enumerate().for_each(|(block, out)| {
            let mut weights = vec![0; embedding.cols];
            for (i, out) in out.iter_mut().enumerate() {
                embedding.row(block * ROWS + i, &mut weights);
                *out = freivalds::of_values(&r, &weights);
            }
        });
        let mut done = weights(&embedding);
        progress(done, total);
        for table in 0..products.tables {
            // Some layer uses each table, and tables have a row for each position.
            let rope = (0..shape.layers).find(|&layer| shape.rope_table(layer) == Some(table));
            let Some((cos, sin)) = rope.and_then(|layer| layers[layer].rope) else { continue };
            let rows = cos.chunks_exact(products.pairs).zip(sin.chunks_exact(products.pairs));
            for (out, (cos, sin)) in fingerprints[products.rope(table)].iter_mut().zip(rows) {
                *out = of_rope(&r, cos, sin);
            }
        }
        for (layer, product, w) in &matrices {
            let (rows, _) = products.size(*product);
            for expert in 0..w.rows / rows.max(1) {
                let u = project(w, expert * rows, &r[..rows]);
                fingerprints[products.matrix(*layer, *product, expert)].copy_from_slice(&u);
            }
            done += weights(w);
            progress(done, total);
        }
        let sections: Vec<u8> = artifact.small_sections().flatten().copied().collect();
        Key::new(seed, r, artifact.manifest().canonical(), sections, fingerprints)
    }

    fn new(
        seed: [u8; 32],
        r: Vec<u64>,
        manifest: Vec<u8>,
        sections: Vec<u8>,
        fingerprints: Vec<u64>,
    ) -> Result<Key, KeyError> {
        let sections: Bytes = Arc::new(sections);
        let artifact = Artifact::without_weights(&manifest, Arc::clone(&sections), Vec::new())?;
        if artifact.encoder().is_some() {
            return Err(KeyError::Encoder);
        }
        let products = Products::new(artifact.config());
        let r = if r.is_empty() { elements(&seed, products.rows_max()) } else { r };
        if fingerprints.len() != products.fingerprints()
            || fingerprints.iter().any(|&element| element >= freivalds::P)
        {
            return Err(KeyError::Damaged);
        }
        Ok(Key { seed, r, manifest, sections, artifact, products, fingerprints })
    }

    /// The file, to be kept where nobody else can read it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let sections = (*self.sections).as_ref();
        let mut out =
            Vec::with_capacity(128 + self.manifest.len() + sections.len() + 8 * self.fingerprints.len());
        out.extend(KEY_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.seed);
        out.extend((self.manifest.len() as u64).to_le_bytes());
        out.extend((sections.len() as u64).to_le_bytes());
        out.extend(&self.manifest);
        out.extend(sections);
        self.fingerprints.iter().for_each(|element| out.extend(element.to_le_bytes()));
        let hash = keccak256(&out);
        out.extend(hash.0);
        out
    }

    /// Reads what [`Key::to_bytes`] wrote.
    ///
    /// # Errors
    /// All of [`KeyError`] but [`KeyError::NoWeights`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, KeyError> {
        let Some(rest) = bytes.strip_prefix(&KEY_MAGIC) else { return Err(KeyError::NotAKey) };
        let (version, _) = rest.split_first_chunk::<4>().ok_or(KeyError::NotAKey)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(KeyError::Version(version));
        }
        let (content, hash) = bytes.split_last_chunk::<32>().ok_or(KeyError::Damaged)?;
        if keccak256(content) != Bytes32(*hash) {
            return Err(KeyError::Damaged);
        }
        let (head, rest) = content.split_at_checked(64).ok_or(KeyError::Damaged)?;
        let word = |at: usize| {
            let word: [u8; 8] = std::array::from_fn(|i| head[at + i]);
            usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX)
        };
        let seed = std::array::from_fn(|i| head[16 + i]);
        let (manifest, rest) = rest.split_at_checked(word(48)).ok_or(KeyError::Damaged)?;
        let (sections, rest) = rest.split_at_checked(word(56)).ok_or(KeyError::Damaged)?;
        let (words, left) = rest.as_chunks::<8>();
        if !left.is_empty() || head[12..16] != [0; 4] {
            return Err(KeyError::Damaged);
        }
        let fingerprints = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Key::new(seed, Vec::new(), manifest.to_vec(), sections.to_vec(), fingerprints)
    }

    /// The id of the model that the key is for.
    pub fn model(&self) -> Bytes32 {
        self.artifact.id()
    }

    /// What the key knows of the model: everything but weights and rotary tables. An engine refuses to run it.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// The model with the first rows of its rotary tables.
    pub(super) fn with_ropes(&self, ropes: Vec<[Vec<i32>; 2]>) -> Result<Artifact, assay_model::Error> {
        Artifact::without_weights(&self.manifest, Arc::clone(&self.sections), ropes)
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
    pub(super) fn is_product(
        &self,
        layer: usize,
        product: Product,
        expert: usize,
        x: &[i16],
        sums: &[i64],
    ) -> bool {
        let u = &self.fingerprints[self.products.matrix(layer, product, expert)];
        freivalds::of_sums(&self.r, sums) == freivalds::of_values(u, x)
    }
}

/// The fingerprint of a row of a rotary table.
fn of_rope(r: &[u64], cos: &[i32], sin: &[i32]) -> u64 {
    let entries: Vec<i64> = cos.iter().chain(sin).map(|&entry| i64::from(entry)).collect();
    freivalds::of_sums(r, &entries)
}
