//! Integer model artifacts: what a model *is* for everyone who runs, replays or referees it.
//!
//! This crate turns a published model (a GGUF file, or a Hugging Face folder with safetensors) into one file of
//! integers, the *artifact*, and reads that file back. The artifact is content-addressed: its id is the hash of its
//! manifest, and the manifest holds the Merkle root over all weights and tables, so the same source file gives the
//! same id on any machine. Floating point is used during the import only, in operations whose results IEEE 754 fixes.
//!
//! It does not open files, download anything or run a model: bytes come in, bytes go out. A caller who maps a file
//! hands the mapping over as `Arc<dyn AsRef<[u8]> + Send + Sync>`; weights are then read in place.
//!
//! ```
//! # #[cfg(feature = "testing")] {
//! use std::sync::Arc;
//! use assay_model::{Architecture, Artifact, import_gguf, testing::tiny_gguf};
//!
//! let gguf = tiny_gguf(Architecture::Qwen3, 7);
//! let bytes = import_gguf(&gguf, &mut |_done, _total| {})?;
//! let artifact = Artifact::parse(Arc::new(bytes))?;
//! artifact.verify(&mut |_done, _total| {})?;
//! assert_eq!(artifact.layer(0).q.cols, artifact.config().dim);
//! println!("model {}", artifact.id());
//! # }
//! # Ok::<(), assay_model::Error>(())
//! ```

mod artifact;
mod budget;
mod dequantise;
mod error;
pub mod gguf;
mod import;
mod manifest;
pub mod merkle;
pub mod safetensors;
pub mod template;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokenizer;

pub use artifact::{Artifact, Bytes, Encoder, EncoderLayer, Layer, Linear, Norm, weaken};
pub use assay_arithmetic::{Activation, RopeStyle};
pub use error::Error;
pub use gguf::import_gguf;
pub use manifest::{
    Architecture, Config, Experts, Manifest, Pooling, Section, SectionKind, Source, SourceFormat,
    SpecialTokens,
};
pub use safetensors::{import_safetensors, is_source};
pub use template::{ChatTemplate, Conversation, TemplateError};
pub use tokenizer::{
    GgufTokenizer, Guard, StreamDecoder, Tokenizer, TokenizerError, tokenizer_json_from_gguf,
};
