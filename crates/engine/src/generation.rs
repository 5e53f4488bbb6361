//! What the engine is asked to generate, in tokens.

use assay_receipt::Sampling;

use crate::grammar::Matcher;

/// One sequence to generate: everything that decides its tokens, and nothing about text.
///
/// Made by [`crate::request::Processor::prepare`]. Stop strings are not part of it: they are found in text, by the
/// [`crate::assemble::Assembler`], whose owner then cancels the sequence.
#[derive(Clone)]
pub struct Generation {
    /// The prompt, at least one token.
    pub prompt: Vec<u32>,
    /// Tokens that were already shown to the caller and must come out again first; empty for a fresh sequence.
    pub resume: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to sample, at least 1; prompt and these together fit the context.
    pub max_tokens: u32,
    /// Tokens that end the sequence; the end token counts as sampled. Ascending.
    pub end_tokens: Vec<u32>,
    /// Restricts which tokens may be sampled, at its beginning; a replay clones it.
    pub constraint: Option<Matcher>,
    /// How many alternatives to report with each token (0 to 20); `None` for no log-probabilities at all.
    pub logprobs: Option<u8>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The tokens are a user's text, which must not end up in logs.
        f.debug_struct("Generation")
            .field("prompt_tokens", &self.prompt.len())
            .field("resume_tokens", &self.resume.len())
            .field("max_tokens", &self.max_tokens)
            .field("constrained", &self.constraint.is_some())
            .finish_non_exhaustive()
    }
}
