//! Integer model artifacts: import, manifest, tokenizer, chat template.
