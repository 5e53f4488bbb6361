//! Why the engine refuses something.

/// Why a sequence was not accepted, or the engine cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of [`Config`](crate::Config) is zero or too large.
    #[error("the engine's {what} is {found}, outside {min}..={max}; change the setting")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The smallest value.
        min: usize,
        /// The largest value.
        max: usize,
    },
    /// The model turns texts into vectors.
    #[error("the model turns texts into vectors and writes none; ask it for embeddings")]
    Encoder,
    /// The prompt has no tokens.
    #[error("the prompt has no tokens; send at least one")]
    EmptyPrompt,
    /// `max_tokens` is zero.
    #[error("no tokens are to be generated; set max_tokens to at least 1")]
    NothingToGenerate,
    /// More tokens were produced before than are allowed in all.
    #[error(
        "{resumed} tokens were produced already, more than max_tokens ({max_tokens}); send fewer or allow more"
    )]
    ResumeTooLong {
        /// Tokens to resume from.
        resumed: usize,
        /// The most tokens of the answer.
        max_tokens: u32,
    },
    /// A token id is outside the model's vocabulary.
    #[error(
        "token {token} is not in the vocabulary of {vocabulary}; encode the text with this model's tokenizer"
    )]
    UnknownToken {
        /// The token.
        token: u32,
        /// The number of tokens that the model knows.
        vocabulary: usize,
    },
    /// Prompt and answer are longer than the model's context.
    #[error(
        "prompt and answer need {needed} tokens of context, the model has {context}; shorten the prompt or lower max_tokens"
    )]
    ContextExceeded {
        /// Prompt tokens plus the most tokens of the answer.
        needed: usize,
        /// The model's context in tokens.
        context: usize,
    },
    /// Prompt and answer are longer than the whole cache for keys and values.
    #[error(
        "prompt and answer need {needed} tokens of cache, the engine has {total}; shorten the prompt, lower max_tokens or give the engine more kv_bytes"
    )]
    CacheTooSmall {
        /// Prompt tokens plus the most tokens of the answer.
        needed: usize,
        /// The engine's cache in tokens.
        total: usize,
    },
    /// As many sequences are waiting as the engine keeps.
    #[error("{waiting} sequences are waiting, which is the most; try again when one has finished")]
    QueueFull {
        /// Sequences that wait for a place.
        waiting: usize,
    },
    /// The engine has sequences, beside which this cannot run.
    #[error("{sequences} sequences are there; try again when they have finished")]
    Busy {
        /// Sequences that run or wait.
        sequences: usize,
    },
    /// A draft model has another vocabulary.
    #[error(
        "the draft model has another tokenizer than the model; choose a smaller model of the same family"
    )]
    DraftVocabulary,
    /// The system has no memory for the cache.
    #[error("the system has no {bytes} bytes for keys and values; lower kv_bytes")]
    NoMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// Following the constraint of a replayed sequence failed.
    #[error("the constraint cannot be followed at token {position}: {reason}; simplify it")]
    Constraint {
        /// The index of the token in the answer.
        position: u32,
        /// What the grammar said.
        reason: String,
    },
    /// A worker thread panicked; a defect. The engine does not run any more.
    #[error("a thread of the engine failed; make a new engine and report this defect")]
    ThreadFailed,
    /// What is known of the model is not enough to run it, see [`crate::light`].
    #[error("the model's weights are not here; use the model itself")]
    NoWeights,
    /// The trace of a light check is false: the answer may be right or wrong.
    #[error(transparent)]
    Light(#[from] crate::light::Fault),
    /// The system has no more threads.
    #[error("the engine's threads cannot be started ({0}); lower the number of threads")]
    NoThreads(String),
}
