//! Encoders: a text becomes a vector.
//!
//! An embedding travels as the text of an answer, see [`Output::embedding`], and a request for one is
//! [`Request::embedding`]. So requests, receipts, audits and replays need nothing new. It is a pure function of the model and the prompt.

use std::sync::Arc;

use assay_arithmetic::{
    AttentionScratch, Kernel, KeyValues, Output as Words, Quantised, Scoring, activate, add, attention,
    dequantise_row, layer_norm, linear, quantise, unit_vector,
};
use assay_model::{Artifact, Linear, Norm, Pooling, Tokenizer};
use assay_receipt::{Output, Prompt, Request};

use crate::request::{NOTHING, OutputVerdict, first_difference};

/// Why a request for an embedding cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// The model writes text.
    #[error("the model writes text and makes no embeddings; use an encoder")]
    Decoder,
    /// The tokenizer or a text cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] assay_model::TokenizerError),
    /// The request asks for something other than an embedding.
    #[error(
        "this model turns a text into a vector and writes none: ask for embeddings of a text or of tokens"
    )]
    NotAnEmbedding,
    /// The prompt is empty or longer than the model's context.
    #[error("the text has {found} tokens, outside 1..={max}; shorten it or cut it into pieces")]
    Length {
        /// Tokens of the text, with those that begin and end it.
        found: usize,
        /// The most that the model takes.
        max: usize,
    },
    /// A token is not in the vocabulary.
    #[error(
        "token {token} is not in the vocabulary of {vocabulary}; encode the text with this model's tokenizer"
    )]
    UnknownToken {
        /// The token.
        token: u32,
        /// The number of tokens.
        vocabulary: usize,
    },
}

/// An encoder, ready to run. It has no state: texts may be embedded by several threads at once.
#[derive(Debug)]
pub struct Encoder {
    artifact: Arc<Artifact>,
    tokenizer: Tokenizer,
    kernel: Kernel,
}

impl Encoder {
    /// Reads the tokenizer.
    ///
    /// # Errors
    /// [`EncoderError::Decoder`] and [`EncoderError::Tokenizer`].
    pub fn new(artifact: Arc<Artifact>, kernel: Kernel) -> Result<Encoder, EncoderError> {
        if artifact.encoder().is_none() {
            return Err(EncoderError::Decoder);
        }
        let tokenizer = Tokenizer::from_bytes(artifact.tokenizer_json())?;
        Ok(Encoder { artifact, tokenizer, kernel })
    }

    /// The model.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// The tokens of a request for an embedding.
    ///
    /// # Errors
    /// All but [`EncoderError::Decoder`].
    pub fn tokens(&self, request: &Request) -> Result<Vec<u32>, EncoderError> {
        let expected = Request::embedding(request.model, request.prompt.clone());
        if *request != (Request { now_unix_s: request.now_unix_s, ..expected }) {
            return Err(EncoderError::NotAnEmbedding);
        }
        let tokens = match &request.prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat { .. } => return Err(EncoderError::NotAnEmbedding),
        };
        let shape = self.artifact.config();
        if tokens.is_empty() || tokens.len() > shape.context {
            return Err(EncoderError::Length { found: tokens.len(), max: shape.context });
        }
        match tokens.iter().find(|token| **token as usize >= shape.vocab) {
            Some(&token) => Err(EncoderError::UnknownToken { token, vocabulary: shape.vocab }),
            None => Ok(tokens),
        }
    }

    /// The answer to a request for an embedding.
    ///
    /// # Errors
    /// All but [`EncoderError::Decoder`].
    pub fn answer(&self, request: &Request) -> Result<Output, EncoderError> {
        Ok(self.output(&self.tokens(request)?))
    }

    /// The answer for tokens that [`Encoder::tokens`] has returned.
    ///
    /// # Panics
    /// If there are no tokens, more than the context holds, or ids outside the vocabulary.
    pub fn output(&self, tokens: &[u32]) -> Output {
        Output::embedding(&self.embed(tokens), tokens.len() as u32) // at most the context
    }

    /// Repeats an answer and compares it.
    pub fn judge(&self, request: &Request, claimed: &Output) -> OutputVerdict {
        let differs = |field, position, expected, claimed| OutputVerdict::Differs {
            field,
            position,
            expected,
            claimed,
        };
        let Ok(tokens) = self.tokens(request) else {
            return differs("request", 0, NOTHING, claimed.completion_tokens.into());
        };
        let expected = self.output(&tokens);
        if claimed.prompt_tokens != expected.prompt_tokens {
            return differs("prompt_tokens", 0, expected.prompt_tokens.into(), claimed.prompt_tokens.into());
        }
        if claimed.completion_tokens != 0 {
            return differs("completion_tokens", 0, 0, claimed.completion_tokens.into());
        }
        if let Some(&token) = claimed.tokens.first() {
            return differs("tokens", 0, NOTHING, token.into());
        }
        if let Some(entry) = claimed.logprobs.first() {
            return differs("logprobs", 0, NOTHING, entry.token.into());
        }
        if let Some((position, expected, claimed)) = first_difference(&expected.text, &claimed.text) {
            return differs("text", position, expected, claimed);
        }
        if let Some(calls) = &claimed.tool_calls {
            let first = calls.bytes().next().map_or(NOTHING, u64::from);
            return differs("tool_calls", 0, NOTHING, first);
        }
        if claimed.finish_reason != expected.finish_reason {
            return differs("finish_reason", 0, expected.finish_reason as u64, claimed.finish_reason as u64);
        }
        OutputVerdict::Agrees
    }

    /// The embedding of tokens: `dim` components in Q30, of length one.
    ///
    /// # Panics
    /// As [`Encoder::output`].
    pub fn embed(&self, tokens: &[u32]) -> Vec<i32> {
        let shape = self.artifact.config();
        let (Some(encoder), Some(pooling)) = (self.artifact.encoder(), shape.pooling) else {
            return Vec::new(); // `new` has refused such a model
        };
        let (count, dim, head) = (tokens.len(), shape.dim, shape.head_dim);
        let norm = |x: &mut [i32], norm: Norm<'_>| {
            layer_norm(self.kernel, x, norm.weight, norm.bias, shape.rms_eps_q32);
        };
        let embedding = self.artifact.embedding();
        let (mut x, mut weights) = (vec![0; count * dim], vec![0; dim]);
        for ((x, &token), position) in
            x.chunks_exact_mut(dim).zip(tokens).zip(encoder.positions.chunks_exact(dim))
        {
            embedding.row(token as usize, &mut weights);
            dequantise_row(&weights, embedding.scales[token as usize], x);
            add(x, position);
            add(x, encoder.kind);
        }
        norm(&mut x, encoder.norm);

        let scoring = Scoring::new(head as u64, None);
        let mut scratch = AttentionScratch::default();
        let (mut input, mut heads, mut out) = (Quantised::default(), Quantised::default(), Vec::new());
        let mut wide = vec![0; count * shape.heads * head];
        for index in 0..shape.layers {
            let Some(layer) = self.artifact.encoder_layer(index) else { continue };
            self.quantise(&x, dim, &mut input);
            // One list of tokens for each head, as the attention wants them.
            let [q, k, v] = [layer.q, layer.k, layer.v].map(|matrix| {
                self.linear(matrix, &input, &mut out);
                self.quantise(&out, head, &mut heads);
                (0..shape.heads).map(|at| one_head(&heads, at, shape.heads)).collect::<Vec<_>>()
            });
            for at in 0..shape.heads {
                let block = KeyValues {
                    keys: &k[at].values,
                    key_scales: &k[at].scales,
                    values: &v[at].values,
                    value_scales: &v[at].scales,
                };
                for token in 0..count {
                    attention(
                        self.kernel,
                        q[at].view().tokens(token..token + 1),
                        scoring,
                        &[block],
                        &mut scratch,
                        &mut wide[(token * shape.heads + at) * head..][..head],
                    );
                }
            }
            self.quantise(&wide, shape.heads * head, &mut input);
            self.linear(layer.o, &input, &mut out);
            add(&mut x, &out);
            norm(&mut x, layer.attention_norm);

            self.quantise(&x, dim, &mut input);
            self.linear(layer.up, &input, &mut out);
            activate(self.kernel, shape.activation, &mut out, None);
            self.quantise(&out, shape.ffn, &mut input);
            self.linear(layer.down, &input, &mut out);
            add(&mut x, &out);
            norm(&mut x, layer.ffn_norm);
        }
        let pooled = match pooling {
            Pooling::Mean => &x[..],
            Pooling::First => &x[..dim],
        };
        let mut sums = vec![0i64; dim];
        for row in pooled.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, &word)| *sum += i64::from(word));
        }
        let mut embedding = vec![0; dim];
        unit_vector(&sums, &mut embedding);
        embedding
    }

    fn linear(&self, matrix: Linear<'_>, x: &Quantised, out: &mut Vec<i32>) {
        let (tokens, rows) = (x.scales.len(), matrix.weights.rows);
        out.resize(tokens * rows, 0);
        linear(
            self.kernel,
            &matrix.weights,
            x.view(),
            Some(matrix.bias),
            &mut Words::new(out, tokens, 0..rows),
        );
    }

    fn quantise(&self, x: &[i32], cols: usize, out: &mut Quantised) {
        out.resize(x.len() / cols, cols);
        quantise(self.kernel, x, cols, &mut out.values, &mut out.scales);
    }
}

/// The rows of one head among rows of tokens and heads.
fn one_head(all: &Quantised, at: usize, heads: usize) -> Quantised {
    let rows = all.values.chunks_exact(all.cols).skip(at).step_by(heads);
    Quantised {
        cols: all.cols,
        values: rows.flatten().copied().collect(),
        scales: all.scales.iter().skip(at).step_by(heads).copied().collect(),
    }
}
