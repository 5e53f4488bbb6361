//! The errors of import and of reading an artifact.

use assay_receipt::Bytes32;

/// Why a model cannot be imported, or an artifact cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes do not begin with the artifact's magic.
    #[error("this is not an Assay model artifact; import the GGUF file or safetensors folder first")]
    NotAnArtifact,
    /// The artifact's file format is newer or older than this program's.
    #[error(
        "the artifact has file format {found}, but this program reads {expected}; import the model again"
    )]
    FormatVersion {
        /// The version in the file.
        found: u32,
        /// The version that this program reads.
        expected: u32,
    },
    /// The artifact was made for another version of the integer arithmetic.
    #[error(
        "the artifact is for arithmetic version {found}, but this program has {expected}; import the model again"
    )]
    ArithmeticVersion {
        /// The version in the manifest.
        found: u32,
        /// The version that this program runs.
        expected: u32,
    },
    /// The file is shorter or longer than its header and manifest say.
    #[error("the artifact should have {expected} bytes but has {found}; fetch it again")]
    Length {
        /// The length that header and manifest imply, in bytes.
        expected: u64,
        /// The length of the file, in bytes.
        found: u64,
    },
    /// The manifest is not canonical JSON, or it contradicts itself.
    #[error("the artifact's manifest is not valid: {0}; fetch the artifact again")]
    Manifest(String),
    /// A byte outside the tiles (header or padding) has a value that the format does not allow, or a table entry is
    /// outside its range.
    #[error("the artifact's section {section} is not valid: {reason}; fetch the artifact again")]
    Section {
        /// The section's name, `header` for what precedes the sections.
        section: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The Merkle root over the tiles is not the one in the manifest: at least one byte was changed.
    #[error(
        "the artifact's contents hash to {found}, but its manifest says {expected}; fetch the artifact again"
    )]
    Root {
        /// The root in the manifest.
        expected: Bytes32,
        /// The root that the contents hash to.
        found: Bytes32,
    },
    /// The source is not a well-formed GGUF file.
    #[error("the GGUF file is not valid: {0}; download it again or report it to its author")]
    Gguf(String),
    /// The source is not a well-formed safetensors folder.
    #[error("the safetensors model is not valid: {0}; download it again or report it to its author")]
    Safetensors(String),
    /// A metadata key (GGUF) or configuration field (safetensors) that the import needs is missing or of another type.
    #[error("the model's metadata has no usable {0}; the file cannot be imported as it is")]
    Metadata(String),
    /// The model's architecture is not one that the integer engine runs.
    #[error(
        "the architecture {0:?} is not supported; choose a Llama, Mistral, Qwen 2 or 3, Gemma 2 or 3, Phi 3, SmolLM or BERT model"
    )]
    Architecture(String),
    /// The model relies on a feature that the integer engine does not have.
    #[error("the model uses {0}, which is not supported; choose another model")]
    Unsupported(String),
    /// A tensor is stored in a type that the import cannot read.
    #[error(
        "the tensor {tensor} has type {found}, which cannot be imported; choose a file with F32, F16, BF16, Q8_0 or Q4 to Q6 types"
    )]
    TensorType {
        /// The tensor's name.
        tensor: String,
        /// The type's name or number.
        found: String,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("the tensor {0} is missing; the file is incomplete, or it is a shard of a larger model")]
    MissingTensor(String),
    /// A tensor has another shape than the metadata implies.
    #[error(
        "the tensor {tensor} has shape {found:?} instead of {expected:?}; the file contradicts its own metadata"
    )]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// Rows and columns that the metadata implies; a vector has one row.
        expected: [usize; 2],
        /// Rows and columns in the file.
        found: Vec<u64>,
    },
    /// A weight is not a number, infinite, or too large for its integer format.
    #[error(
        "the tensor {tensor} holds a weight that is not finite or too large in row {row}; the file is damaged"
    )]
    Weight {
        /// The tensor's name.
        tensor: String,
        /// The row, counted from 0.
        row: usize,
    },
    /// A size in the metadata is zero or beyond the limits of this program.
    #[error("{what} is {found}, outside the supported range {min}..={max}; choose another model")]
    Limit {
        /// The quantity.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The smallest supported value.
        min: u64,
        /// The largest supported value.
        max: u64,
    },
    /// The tokenizer cannot be converted.
    #[error("the model's tokenizer cannot be converted: {0}")]
    Tokenizer(#[from] crate::TokenizerError),
}
