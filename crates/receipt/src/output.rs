use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::eip712::{Fields, Typed, sealed};
use crate::request::{commitment, from_integers, integers, rule, text, tokens};
use crate::{Bytes32, Error, limits};

/// The whole answer. All of it is covered by [`output_commitment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The text that the caller sees: the texts of all chunks, joined.
    pub text: String,
    /// JSON array of the tool calls that the model made.
    pub tool_calls: Option<String>,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// Every sampled token id, the end token included; empty from a forwarder, which does not know them.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that were sampled.
    pub completion_tokens: u32,
    /// One entry a token when the request asked for them, else empty.
    pub logprobs: Vec<TokenLogprob>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FinishReason {
    /// The model ended it, or a stop string was met.
    Stop = 0,
    /// `max_tokens` or the context was reached.
    Length = 1,
    /// The model called tools.
    ToolCalls = 2,
}

/// Natural logarithm of the probability of a sampled token and of its alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    /// The sampled token id.
    pub token: u32,
    /// Its log-probability with 16 fractional bits; never above 0.
    pub logprob_q16: i32,
    /// The likeliest tokens, at most 20: (token id, log-probability with 16 fractional bits).
    pub top: Vec<(u32, i32)>,
}

impl Output {
    /// An answer that is an embedding: its components, with 30 fractional bits, are the text as a JSON array of integers
    /// without white space. There are no tokens but those of the prompt.
    pub fn embedding(components: &[i32], prompt_tokens: u32) -> Output {
        Output::of_text(integers(components), prompt_tokens)
    }

    /// An answer that is a proof: its file, in base64, is the text. What was computed is in the file, and the prompt counts one
    /// token an example.
    pub fn proof(file: &[u8], examples: u32) -> Output {
        Output::of_text(STANDARD.encode(file), examples)
    }

    /// The file of a proof; `None` for an answer that is none.
    pub fn proof_file(&self) -> Option<Vec<u8>> {
        // Only the canonical spelling decodes.
        let file = STANDARD.decode(&self.text).ok().filter(|file| !file.is_empty())?;
        (*self == Output::of_text(self.text.clone(), self.prompt_tokens)).then_some(file)
    }

    /// An answer that names a file which goes beside it, the proof of an answer in text: its SHA-256 and its length in bytes are the text,
    /// and the prompt counts one token a position.
    pub fn file(sha256: &Bytes32, bytes: u64, positions: u32) -> Output {
        Output::of_text(format!("{sha256} {bytes}"), positions)
    }

    /// SHA-256 and length of the file that a text names as [`Output::file`] writes it.
    pub fn file_of(text: &str) -> Option<(Bytes32, u64)> {
        let (sha256, bytes) = text.split_once(' ')?;
        let (sha256, bytes) = (sha256.parse().ok()?, bytes.parse().ok()?);
        // One spelling only.
        (Output::file(&sha256, bytes, 0).text == text).then_some((sha256, bytes))
    }

    /// SHA-256 and length of the file that an answer names; `None` for an answer that names none.
    pub fn named_file(&self) -> Option<(Bytes32, u64)> {
        let file = Output::file_of(&self.text)?;
        (*self == Output::of_text(self.text.clone(), self.prompt_tokens)).then_some(file)
    }

    /// An answer that is a text and no tokens.
    fn of_text(text: String, prompt_tokens: u32) -> Output {
        Output {
            text,
            tool_calls: None,
            finish_reason: FinishReason::Stop,
            tokens: Vec::new(),
            prompt_tokens,
            completion_tokens: 0,
            logprobs: Vec::new(),
        }
    }

    /// The components of an embedding with 30 fractional bits; `None` for an answer that is none.
    pub fn components(&self) -> Option<Vec<i32>> {
        // One spelling only.
        from_integers(&self.text)
            .filter(|components| *self == Output::embedding(components, self.prompt_tokens))
    }

    /// Checks every length and range that this type documents.
    ///
    /// # Errors
    /// [`Error::Range`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        text(&self.text, "output.text")?;
        text(self.tool_calls.as_deref().unwrap_or(""), "output.tool_calls")?;
        tokens(&self.tokens, "output.tokens")?;
        validate_logprobs(&self.logprobs, "output.logprobs")
    }
}

pub(crate) fn validate_logprobs(logprobs: &[TokenLogprob], field: &'static str) -> Result<(), Error> {
    rule(logprobs.len() <= limits::TOKENS, field, "at most 1,048,576 entries")?;
    let top = logprobs.iter().all(|entry| entry.top.len() <= limits::TOP_LOGPROBS);
    rule(top, field, "at most 20 alternatives each")
}

pub(crate) const TOKEN_LOGPROB: &str = "TokenLogprob(uint32 token,int32 logprobQ16,TopLogprob[] top)";
pub(crate) const TOP_LOGPROB: &str = "TopLogprob(uint32 token,int32 logprobQ16)";

impl sealed::Sealed for Output {}
impl Typed for Output {
    const TYPES: &'static [&'static str] = &[
        "Output(string text,string[] toolCalls,uint8 finishReason,uint32[] tokens,uint32 promptTokens,\
        uint32 completionTokens,TokenLogprob[] logprobs)",
        TOKEN_LOGPROB,
        TOP_LOGPROB,
    ];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.string("text", &self.text);
        v.strings("toolCalls", self.tool_calls.as_deref().into_iter());
        v.uint("finishReason", 8, self.finish_reason as u128);
        v.uints("tokens", 32, self.tokens.iter().copied());
        v.uint("promptTokens", 32, self.prompt_tokens.into());
        v.uint("completionTokens", 32, self.completion_tokens.into());
        v.many("logprobs", &self.logprobs);
    }
}

impl sealed::Sealed for TokenLogprob {}
impl Typed for TokenLogprob {
    const TYPES: &'static [&'static str] = &[TOKEN_LOGPROB, TOP_LOGPROB];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.uint("token", 32, self.token.into());
        v.int32("logprobQ16", self.logprob_q16);
        let top: Vec<TopLogprob> =
            self.top.iter().map(|&(token, logprob_q16)| TopLogprob { token, logprob_q16 }).collect();
        v.many("top", &top);
    }
}

struct TopLogprob {
    token: u32,
    logprob_q16: i32,
}

impl sealed::Sealed for TopLogprob {}
impl Typed for TopLogprob {
    const TYPES: &'static [&'static str] = &[TOP_LOGPROB];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.uint("token", 32, self.token.into());
        v.int32("logprobQ16", self.logprob_q16);
    }
}

/// Salted commitment to a whole output, with the salt of its request.
pub fn output_commitment(output: &Output, salt: &Bytes32) -> Bytes32 {
    commitment("output", salt, output)
}
