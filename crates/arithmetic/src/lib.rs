//! The integer arithmetic of Assay: kernels and tables.
//!
//! A language model that runs in this arithmetic is a pure function on integers. Every rounding, width and table is
//! fixed by `docs/arithmetic.md`, sums are exact and therefore free in their order, and so the same inputs give the
//! same bits on every processor, with any number of threads, at any batch size, in prefill or in decode. Whoever
//! repeats a computation compares bits and needs no tolerance.
//!
//! What is here: the number types ([`Scale`], the fixed-point words), the operations of a transformer (quantisation,
//! RMS and layer norm, linear layers, rotary positions, attention, gated units, the choice of experts) and the sampling of a token from integer logits. Each
//! operation takes a [`Kernel`]: a scalar reference and twins for AVX2, AVX-512 VNNI and NEON that return the same
//! bits. What is not here: models, files, threads, receipts. There are no floating-point numbers on any path that runs
//! a model; [`Scale::from_f32`] exists for importers only.
//!
//! Units: a *Q16* word is an `i32` with 16 fractional bits (the residual stream, logits, all outputs of layers). A
//! *quantised* vector holds 12-bit integers in ±2047 with one [`Scale`] a row.
//!
//! ```
//! use assay_arithmetic::{Encoding, Kernel, MatrixView, Output, Quantised, Scale, linear, quantise};
//! let kernel = Kernel::best();
//! // One token of three columns, 1.0, -2.0 and 0.5 in Q16.
//! let x = [1 << 16, -2 << 16, 1 << 15];
//! let mut q = Quantised::default();
//! q.resize(1, 3);
//! quantise(kernel, &x, 3, &mut q.values, &mut q.scales);
//! assert_eq!(q.values, [1024, -2047, 512]);
//! // Two rows of weights with scale 1/64.
//! let scales = [Scale::from_integer(1).shifted(-6); 2];
//! let mut weights = vec![0; Encoding::Q8.matrix_bytes(2, 3).unwrap()];
//! for (row, q) in [[64, 0, 0], [0, 64, 64]].into_iter().enumerate() {
//!     let q: Vec<i8> = q.into_iter().chain([0; 61]).collect();
//!     Encoding::Q8.pack(row, &[[128, 0, 128, 0]], &q, &mut weights); // a factor of 128 / 2^7
//! }
//! let w = MatrixView { rows: 2, cols: 3, encoding: Encoding::Q8, weights: &weights, scales: &scales };
//! let mut out = [0i32; 2];
//! linear(kernel, &w, q.view(), None, &mut Output::new(&mut out, 1, 0..2));
//! assert_eq!(out, [65568, -98288]); // 1.0005 and -1.4998: twelve bits are what an activation has
//! ```

mod activation;
mod attention;
pub mod freivalds;
mod kernel;
mod kernels;
mod linear;
mod peak;
mod quantise;
pub mod reed_solomon;
mod rope;
mod route;
mod sample;
mod scale;
pub mod tables;
mod unit;
mod weights;

pub use activation::{Activation, activate, add, dequantise_row};
pub use attention::{AttentionScratch, KeyValues, Scoring, SoftCap, attention};
pub use kernel::Kernel;
pub use linear::{Output, SEGMENT, linear, rescale_sums};
pub use peak::multiply_adds;
pub use quantise::{Quantised, QuantisedView, layer_norm, quantise, rms_norm, rms_norm_quantise};
pub use rope::{RopeStyle, rope};
pub use route::{mix, route};
pub use sample::{BANNED, LogSoftmax, Sampler, SamplerParams, Seen, adjust_logits, argmax, uniform};
pub use scale::{Scale, rescale, rescale1};
pub use unit::unit_vector;
pub use weights::{CHUNK, Encoding, FACTOR_MAX, GROUP, MatrixView, WEIGHT_MAX};

/// The version of this arithmetic. It is part of every manifest and receipt: two versions may differ in their bits.
pub const VERSION: u32 = 2;

/// The largest magnitude of a quantised activation: twelve bits, symmetric.
pub const ACTIVATION_MAX: i32 = 2047;

/// The largest number of columns of a row, and of tokens that one attention may look at. It keeps every 64-bit
/// intermediate far from overflow.
pub const LENGTH_MAX: usize = 1 << 20;

/// The largest `head_dim`: `2047² · 256 < 2^30`, so a score is one exact 32-bit sum.
pub const HEAD_DIM_MAX: usize = 256;
