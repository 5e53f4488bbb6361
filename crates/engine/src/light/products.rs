//! Which matrix products a pass has, in what order, and how long they are.

use std::fmt;
use std::ops::Range;

use assay_arithmetic::MatrixView;
use assay_model::{Artifact, Config as Shape, Experts};

/// A matrix product of a pass at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Product {
    /// Queries, of the normalised stream.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// What goes from attention into the stream.
    Attention,
    /// Logits of the experts, in a model that has them.
    Router,
    /// Gate of the feed-forward layer, or of an expert.
    Gate,
    /// The other half before the activation.
    Up,
    /// What goes from there into the stream, or into the mixture of experts.
    Down,
    /// Logits, of the last layer's stream.
    Output,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Product::Query => "query",
            Product::Key => "key",
            Product::Value => "value",
            Product::Attention => "attention output",
            Product::Router => "router",
            Product::Gate => "gate",
            Product::Up => "up",
            Product::Down => "down",
            Product::Output => "logit",
        })
    }
}

/// A row of activations that is multiplied: its position, and which of the experts that it uses this is for (0 for all
/// else).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) position: usize,
    pub(crate) slot: usize,
}

/// A matrix product of some rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) layer: usize,
    pub(crate) product: Product,
    pub(crate) expert: usize,
    /// One a row; empty when nobody looks at the products.
    pub(crate) places: &'a [Place],
}

impl At<'_> {
    pub(crate) fn of(self, product: Product) -> Self {
        At { product, ..self }
    }
}

/// A matrix of a model: rows of a stored one, since experts lie behind each other.
pub(crate) struct Matrix<'a> {
    pub(crate) layer: usize,
    pub(crate) product: Product,
    pub(crate) expert: usize,
    pub(crate) rows: usize,
    pub(crate) first: usize,
    pub(crate) view: MatrixView<'a>,
}

impl Matrix<'_> {
    /// How many weights it has.
    pub(crate) fn weights(&self) -> u64 {
        (self.rows * self.view.cols) as u64
    }

    /// The weights of a row.
    pub(crate) fn row(&self, row: usize, out: &mut [i16]) {
        self.view.row(self.first + row, out);
    }
}

/// The products of a model.
#[derive(Debug, Clone)]
pub(crate) struct Products {
    layers: usize,
    dim: usize,
    /// `heads · head_dim`.
    inner: usize,
    kv: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    pub(crate) tables: usize,
    pub(crate) pairs: usize,
    experts: Option<Experts>,
}

impl Products {
    pub(crate) fn new(shape: &Shape) -> Products {
        Products {
            layers: shape.layers,
            dim: shape.dim,
            inner: shape.heads * shape.head_dim,
            kv: shape.kv_heads * shape.head_dim,
            ffn: shape.ffn,
            vocab: shape.vocab,
            context: shape.context,
            tables: shape.rope_tables(),
            pairs: shape.rope_pairs(),
            experts: shape.experts,
        }
    }

    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Rows and columns of a product's matrix; of the experts', of one of them.
    pub(crate) fn size(&self, product: Product) -> (usize, usize) {
        match product {
            Product::Query => (self.inner, self.dim),
            Product::Key | Product::Value => (self.kv, self.dim),
            Product::Attention => (self.dim, self.inner),
            Product::Router => (self.experts.map_or(0, |experts| experts.count), self.dim),
            Product::Gate | Product::Up => (self.ffn, self.dim),
            Product::Down => (self.dim, self.ffn),
            Product::Output => (self.vocab, self.dim),
        }
    }

    /// The products of a layer at a position, in order.
    fn layer(&self) -> impl Iterator<Item = Product> {
        let front = [Product::Query, Product::Key, Product::Value, Product::Attention];
        let slots = self.experts.map_or(1, |experts| experts.used);
        let parts = [Product::Gate, Product::Up, Product::Down];
        front
            .into_iter()
            .chain(self.experts.map(|_| Product::Router))
            .chain((0..3 * slots).map(move |i| parts[i % 3]))
    }

    /// The products at a position, in the order of the trace, with their layers.
    pub(crate) fn at_position(&self, output: bool) -> impl Iterator<Item = (usize, Product)> {
        let layers =
            (0..self.layers).flat_map(move |layer| self.layer().map(move |product| (layer, product)));
        layers.chain(output.then_some((self.layers, Product::Output)))
    }

    fn layer_count(&self) -> usize {
        4 + self.experts.map_or(3, |experts| 1 + 3 * experts.used)
    }

    /// How many products a position has.
    pub(crate) fn count(&self, output: bool) -> usize {
        self.layers * self.layer_count() + usize::from(output)
    }

    /// The number of a product among those of its position.
    pub(crate) fn index(&self, layer: usize, product: Product, slot: usize) -> usize {
        let parts = 4 + usize::from(self.experts.is_some()) + 3 * slot;
        let within = match product {
            Product::Query => 0,
            Product::Key => 1,
            Product::Value => 2,
            Product::Attention => 3,
            Product::Router => 4,
            Product::Gate => parts,
            Product::Up => parts + 1,
            Product::Down => parts + 2,
            Product::Output => return self.layers * self.layer_count(),
        };
        layer * self.layer_count() + within
    }

    /// The layer and product with this number.
    pub(crate) fn named(&self, index: usize) -> (usize, Product) {
        let layer = index / self.layer_count();
        let product = if layer == self.layers { None } else { self.layer().nth(index % self.layer_count()) };
        (layer, product.unwrap_or(Product::Output))
    }

    /// The most rows of a matrix, of the embedding's transpose and of a rotary table's.
    pub(crate) fn rows_max(&self) -> usize {
        let count = self.experts.map_or(0, |experts| experts.count);
        [self.dim, self.inner, self.ffn, self.vocab, 2 * self.pairs, count].into_iter().max().unwrap_or(0)
    }

    // Where things are in the fingerprints of a key: the embedding's (one a token), the rotary tables' (one a position),
    // then those of the matrices (one a column).

    pub(crate) fn embedding(&self) -> Range<usize> {
        0..self.vocab
    }

    pub(crate) fn rope(&self, table: usize) -> Range<usize> {
        let start = self.vocab + table * self.context;
        start..start + self.context
    }

    pub(crate) fn matrix(&self, layer: usize, product: Product, expert: usize) -> Range<usize> {
        let (experts, router) = self.experts.map_or((1, 0), |experts| (experts.count, self.dim));
        let parts = 3 * self.dim + self.inner + router;
        let size = parts + experts * (2 * self.dim + self.ffn);
        let within = match product {
            Product::Query => 0,
            Product::Key => self.dim,
            Product::Value => 2 * self.dim,
            Product::Attention => 3 * self.dim,
            Product::Router => 3 * self.dim + self.inner,
            Product::Gate => parts + expert * self.dim,
            Product::Up => parts + (experts + expert) * self.dim,
            Product::Down => parts + 2 * experts * self.dim + expert * self.ffn,
            Product::Output => 0, // in the place of one more layer
        };
        let start = self.vocab + self.tables * self.context + layer * size + within;
        start..start + self.size(product).1
    }

    /// Cosines and sines of a rotary table, row by row for each position of the context. Some layer uses each table.
    pub(crate) fn rope_rows(artifact: &Artifact, table: usize) -> impl Iterator<Item = (&[i32], &[i32])> {
        let shape = artifact.config();
        let layer = (0..shape.layers).find(|&layer| shape.rope_table(layer) == Some(table));
        let (cos, sin) = layer.and_then(|layer| artifact.layer(layer).rope).unwrap_or_default();
        let pairs = shape.rope_pairs();
        cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs)).take(shape.context)
    }

    /// The matrices of a model by layer, product and expert: of a layer in the order of [`Product`], and the experts' gates,
    /// then their other halves, then what goes from there; in the end the output matrix.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, Product, usize)> {
        let experts = self.experts.map_or(1, |experts| experts.count);
        let front = [Product::Query, Product::Key, Product::Value, Product::Attention];
        let front =
            front.into_iter().chain(self.experts.map(|_| Product::Router)).map(|product| (product, 0));
        let parts = [Product::Gate, Product::Up, Product::Down];
        let parts = parts.into_iter().flat_map(move |part| (0..experts).map(move |expert| (part, expert)));
        let layer = front.chain(parts);
        let layers = (0..self.layers)
            .flat_map(move |index| layer.clone().map(move |(product, expert)| (index, product, expert)));
        layers.chain([(self.layers, Product::Output, 0)])
    }

    /// The matrices of a model that has its weights, in the order of [`Products::places`].
    pub(crate) fn matrices<'a>(&self, artifact: &'a Artifact) -> Vec<Matrix<'a>> {
        let matrix = |(layer, product, expert)| {
            let view = match product {
                Product::Output => artifact.output(),
                product => {
                    let parts = artifact.layer(layer);
                    match product {
                        Product::Query => parts.q,
                        Product::Key => parts.k,
                        Product::Value => parts.v,
                        Product::Attention => parts.o,
                        Product::Router => parts.router.unwrap_or(parts.q), // a model with experts has one
                        Product::Gate => parts.gate,
                        Product::Up => parts.up,
                        Product::Down | Product::Output => parts.down,
                    }
                }
            };
            let (rows, _) = self.size(product);
            Matrix { layer, product, expert, rows, first: expert * rows, view }
        };
        self.places().map(matrix).collect()
    }

    /// How many fingerprints there are.
    pub(crate) fn fingerprints(&self) -> usize {
        self.matrix(self.layers, Product::Output, 0).end
    }

    /// The most bits of a sum, its sign included: `|sum| < cols · 2^24`.
    pub(crate) fn width_max(&self, product: Product) -> u32 {
        usize::BITS - self.size(product).1.leading_zeros() + 25
    }
}
