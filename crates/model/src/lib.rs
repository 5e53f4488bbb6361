//! Integer model artifacts: import, manifest, tokenizer, chat template.

pub mod template;
pub mod tokenizer;

pub use template::{ChatTemplate, Conversation, TemplateError};
pub use tokenizer::{
    GgufTokenizer, Guard, StreamDecoder, Tokenizer, TokenizerError, tokenizer_json_from_gguf,
};
