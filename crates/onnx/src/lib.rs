//! Import of ONNX models into integer graphs: perceptrons, convolutional networks, small transformers, linear models, scalers
//! and tree ensembles, as scikit-learn (skl2onnx) and PyTorch export them.
//!
//! [`import`] reads the file, finds its real-valued function up to the scores (a final softmax or arg-max is left to whoever
//! reads the scores), and rounds it to integers: weights get as many bits as the sums allow, activations eight to ten bits
//! with one scale a tensor, found on sample data. Every rescaling is a shift, since the scale is folded into the weights, or of
//! products of two computed values the nearest power of two. The comparisons of tree ensembles are exact: inputs become ranks among the thresholds.
//!
//! Files are hostile until every length was checked, and what is not supported is refused by the operator's name. This
//! crate does no I/O. Floating point is used here only; the same file and sample give the same graph on any machine.
//!
//! ```
//! use assay_onnx::{Error, import};
//! assert!(matches!(import(b"not a model", &[]), Err(Error::File(_))));
//! ```

mod error;
mod fold;
mod lower;
mod needed;
mod proto;
mod quantise;
mod real;
mod shape;
mod trees;

use assay_graph::{Graph, Task};

pub use error::Error;

/// The largest ONNX file that is read.
pub const FILE_BYTES_MAX: usize = 1 << 30;

/// The most examples of sample data that an import looks at; more are ignored.
pub const SAMPLES_MAX: usize = 1 << 12;

/// The most values of a network that are kept for all examples together, unless fewer than [`SAMPLES_LEAST`] would be left.
const SAMPLE_VALUES_MAX: usize = 1 << 26;

/// The most values that a network may compute for one example: more than those of any valid graph.
const NETWORK_VALUES_MAX: usize = 1 << 27;

/// The examples that are looked at however large the network is: ranges need more than one.
const SAMPLES_LEAST: usize = 4;

/// An imported model.
#[derive(Debug)]
pub struct Imported {
    /// The integer model.
    pub graph: Graph,
    /// How it differs from the real-valued one on the sample data.
    pub fidelity: Fidelity,
}

/// How integers and real numbers differ on sample data; nothing is known without samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fidelity {
    /// Examples compared.
    pub samples: usize,
    /// Of a classifier: examples with the same class.
    pub same_class: usize,
    /// The largest difference between two outputs.
    pub error_max: f64,
    /// The largest absolute output.
    pub output_max: f64,
}

/// Imports an ONNX model. `samples` are examples of real inputs one after the other, from which the ranges of inputs and
/// activations are taken; tree ensembles need none.
///
/// The file's bytes are freed when they were read, where they are given away.
///
/// # Errors
/// [`Error`], by what can be done about it.
pub fn import(bytes: impl AsRef<[u8]>, samples: &[f64]) -> Result<Imported, Error> {
    if bytes.as_ref().len() > FILE_BYTES_MAX {
        return Err(Error::File("it is larger than any that is supported"));
    }
    let parsed = proto::parse(bytes.as_ref())?;
    drop(bytes);
    let (model, body) = lower::lower(parsed)?;
    let width = model.width;
    if !samples.len().is_multiple_of(width) || samples.iter().any(|x| !x.is_finite()) {
        return Err(Error::Samples(format!("the model takes {width} finite numbers an example")));
    }
    // As many as keep the values of all of them together below a bound.
    let each = if let lower::Body::Network(network) = &body { network.values() } else { width };
    if each > NETWORK_VALUES_MAX {
        return Err(Error::Unsupported(format!("{each} values for one example")));
    }
    let count = SAMPLES_MAX.min(SAMPLE_VALUES_MAX / each).max(SAMPLES_LEAST);
    let samples = &samples[..samples.len().min(count * width)];
    let (graph, reals) = match body {
        lower::Body::Network(network) => {
            if samples.is_empty() {
                return Err(Error::Samples("ranges of inputs and activations are needed".into()));
            }
            let all = real::run(&network, samples);
            let widths = network.widths.clone();
            let (network, origins) = needed::only_needed(network);
            let values = match origins {
                None => all,
                Some(origins) => all.kept(&widths, &origins),
            };
            (quantise::quantise(&model, &network, &values)?, values.output(&network).to_vec())
        }
        lower::Body::Trees(forest) => (
            trees::quantise(&model, &forest)?,
            samples.chunks_exact(width).flat_map(|x| forest.run(x)).collect(),
        ),
    };
    let fidelity = if samples.is_empty() { Fidelity::default() } else { compare(&graph, samples, &reals)? };
    Ok(Imported { graph, fidelity })
}

fn compare(graph: &Graph, samples: &[f64], reals: &[f64]) -> Result<Fidelity, Error> {
    let outputs = graph.run(&graph.encode_inputs(samples)?)?.output().to_vec();
    let found = graph.decode_outputs(&outputs);
    let width = graph.width(graph.output());
    let class = |scores: &[f64]| match graph.interface().task {
        Task::Binary => usize::from(scores[0] > 0.0),
        _ => (0..scores.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0),
    };
    let pairs = || found.chunks_exact(width).zip(reals.chunks_exact(width));
    let max = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    Ok(Fidelity {
        samples: pairs().count(),
        same_class: pairs().filter(|(a, b)| class(a) == class(b)).count(),
        error_max: max(&mut found.iter().zip(reals).map(|(a, b)| (a - b).abs())),
        output_max: max(&mut reals.iter().map(|x| x.abs())),
    })
}
