//! Constrained sampling: which tokens keep the text to a JSON schema, a regular expression or a grammar.
//!
//! [`Grammars`] compiles constraints for one vocabulary; a [`Matcher`] follows one sequence and says before each token
//! which are allowed. It only masks logits, never chooses, so that the sampler stays the one place of choice, and it
//! is a pure function of the constraint and the tokens so far: an auditor compiles it again, feeds the claimed tokens
//! and gets the same masks. Sizes and work are bounded by counts, never by time, so that a constraint that is too
//! complex is too complex on every machine.
//!
//! Ask for [`Matcher::mask`] before every [`Matcher::advance`], also in a replay: the work limits then count alike.

use std::sync::Arc;

use assay_model::Tokenizer;
use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;
use thiserror::Error;

/// Longest JSON schema, in bytes: several times the largest that hosted models accept.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// Deepest nesting of arrays and objects in a JSON schema; the compiler recurses once a level.
pub const MAX_SCHEMA_DEPTH: usize = 64;

/// Longest regular expression, in bytes.
pub const MAX_REGEX_BYTES: usize = 8 << 10;

/// Longest Lark grammar, in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 128 << 10;

/// Most symbols in the productions of a compiled grammar: about half a megabyte of JSON schema.
const MAX_GRAMMAR_SYMBOLS: usize = 100_000;

/// Most work for building the lexer, in units of which a core does some 50,000 a millisecond: 20 ms.
const LEXER_FUEL: u64 = 1_000_000;

/// Most lexer work for one mask, in units of which a core does some 14,000 a millisecond: 15 ms.
const STEP_LEXER_FUEL: u64 = 200_000;

/// Most parser items for one mask, of which a core makes some 20,000 a millisecond: 3 ms.
const STEP_ITEMS: usize = 50_000;

/// Most states of the lexer, at up to 2 kB each: 100 MB.
const MAX_LEXER_STATES: usize = 50_000;

/// Most alternatives that the parser follows at one position.
const MAX_ROW_ITEMS: usize = 2_000;

/// Why a constraint cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// The constraint's source is too long.
    #[error("the {what} has {actual} bytes, more than the {limit} allowed; shorten it")]
    TooLong {
        /// Which kind of constraint.
        what: &'static str,
        /// Its length.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The JSON schema is nested too deeply.
    #[error("the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH} levels; flatten it")]
    TooDeep,
    /// The JSON schema is not JSON.
    #[error("the JSON schema is not valid JSON ({0}); send an object")]
    NotJson(String),
    /// The constraint does not compile or exceeds a limit of complexity.
    #[error("the {what} cannot be enforced ({reason}); correct or simplify it")]
    Rejected {
        /// Which kind of constraint.
        what: &'static str,
        /// What the compiler said.
        reason: String,
    },
    /// The model has no end token, so that nothing could follow a complete text.
    #[error(
        "the model has no end token, so constrained answers could not end; send the request without a constraint"
    )]
    NoEndToken,
    /// The vocabulary cannot be indexed.
    #[error("the model's vocabulary cannot be indexed for constraints ({0}); import the model again")]
    Vocabulary(String),
    /// Following the constraint failed: the token is not allowed, or a limit of complexity is exceeded.
    #[error("the constraint cannot be followed further ({0}); simplify it")]
    Stuck(String),
}

/// Compiles constraints for one model's vocabulary. Building it takes some 100 ms; share it.
pub struct Grammars {
    factory: ParserFactory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Indexes the vocabulary. `vocabulary` is the number of logits, which may exceed the tokenizer's; ids without
    /// text are never allowed. `end_tokens` are allowed wherever the constraint is satisfied.
    ///
    /// # Errors
    /// [`GrammarError::NoEndToken`] and [`GrammarError::Vocabulary`].
    pub fn new(tokenizer: &Tokenizer, vocabulary: usize, end_tokens: &[u32]) -> Result<Self, GrammarError> {
        let failed = |error: String| GrammarError::Vocabulary(error);
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|&id| (id as usize) < vocabulary).collect();
        let &first = ends.first().ok_or(GrammarError::NoEndToken)?;
        let size = u32::try_from(vocabulary).map_err(|error| failed(error.to_string()))?;
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| {
                if tokenizer.is_special(id) {
                    // 0xFF never occurs in UTF-8: control tokens cannot match text.
                    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                    word.extend_from_slice(tokenizer.token_text(id).as_bytes());
                    word
                } else {
                    tokenizer.token_bytes(id).to_vec()
                }
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&ends);
        // Tokens are never forced, so how the text would be tokenised does not matter.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(
            &environment,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::general_slices(),
        )
        .map_err(|error| failed(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: MAX_ROW_ITEMS,
            initial_lexer_fuel: LEXER_FUEL,
            step_lexer_fuel: STEP_LEXER_FUEL,
            step_max_items: STEP_ITEMS,
            max_lexer_states: MAX_LEXER_STATES,
            max_grammar_size: MAX_GRAMMAR_SYMBOLS,
            precompute_large_lexemes: true,
            verbose_errors: false,
        };
        Ok(Self { factory })
    }

    /// Any JSON object, without white space between its parts beyond single spaces.
    ///
    /// # Errors
    /// [`GrammarError::Rejected`], which would be a defect.
    pub fn json_object(&self) -> Result<Matcher, GrammarError> {
        self.schema_value(serde_json::json!({"type": "object"}))
    }

    /// JSON that fits a JSON Schema.
    ///
    /// # Errors
    /// [`GrammarError::TooLong`], [`GrammarError::TooDeep`], [`GrammarError::NotJson`], [`GrammarError::Rejected`].
    pub fn json_schema(&self, source: &str) -> Result<Matcher, GrammarError> {
        self.schema_value(parse_schema(source)?)
    }

    /// Text that matches a regular expression (Rust's `regex` syntax) as a whole.
    ///
    /// # Errors
    /// [`GrammarError::TooLong`] and [`GrammarError::Rejected`].
    pub fn regex(&self, source: &str) -> Result<Matcher, GrammarError> {
        check_length("regular expression", source, MAX_REGEX_BYTES)?;
        self.compile("regular expression", TopLevelGrammar::from_regex(source))
    }

    /// Text of a Lark grammar.
    ///
    /// # Errors
    /// [`GrammarError::TooLong`] and [`GrammarError::Rejected`].
    pub fn lark(&self, source: &str) -> Result<Matcher, GrammarError> {
        check_length("grammar", source, MAX_GRAMMAR_BYTES)?;
        self.compile("grammar", TopLevelGrammar::from_lark(source.to_owned()))
    }

    /// Lark source that was made here from tool definitions.
    pub(crate) fn tools(&self, source: String) -> Result<Matcher, GrammarError> {
        self.compile("tools' parameter schema", TopLevelGrammar::from_lark(source))
    }

    fn schema_value(&self, mut schema: Value) -> Result<Matcher, GrammarError> {
        one_line(&mut schema);
        self.compile("JSON schema", TopLevelGrammar::from_json_schema(schema))
    }

    fn compile(&self, what: &'static str, grammar: TopLevelGrammar) -> Result<Matcher, GrammarError> {
        // The compiler is a large dependency fed with what callers write: a panic in it must stay theirs.
        let parser = llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.factory.create_parser(grammar)
        }));
        let inner = llguidance::Matcher::new(parser);
        match inner.get_error() {
            Some(reason) => Err(GrammarError::Rejected { what, reason: short(&reason) }),
            None => Ok(Matcher { inner }),
        }
    }
}

/// Parses a schema within the limits.
pub(crate) fn parse_schema(source: &str) -> Result<Value, GrammarError> {
    check_length("JSON schema", source, MAX_SCHEMA_BYTES)?;
    let schema: Value =
        serde_json::from_str(source).map_err(|error| GrammarError::NotJson(error.to_string()))?;
    if depth(&schema) > MAX_SCHEMA_DEPTH {
        return Err(GrammarError::TooDeep);
    }
    Ok(schema)
}

/// Makes the compiler of a top-level schema allow only single spaces between parts, so that a model cannot fill its
/// answer with white space. A schema that chooses otherwise keeps its choice.
pub(crate) fn one_line(schema: &mut Value) {
    if let Some(map) = schema.as_object_mut() {
        map.entry("x-guidance")
            .or_insert_with(|| serde_json::json!({"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"}));
    }
}

fn depth(value: &Value) -> usize {
    // serde_json refuses JSON nested deeper than 128 levels, which bounds this recursion.
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn check_length(what: &'static str, source: &str, limit: usize) -> Result<(), GrammarError> {
    if source.len() > limit {
        return Err(GrammarError::TooLong { what, actual: source.len(), limit });
    }
    Ok(())
}

/// The first line of a compiler's message, at most 300 characters: the rest repeats the caller's source.
fn short(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(300).collect()
}

/// Follows one sequence under a constraint.
///
/// Cloning gives an independent matcher at the same position.
pub struct Matcher {
    inner: llguidance::Matcher,
}

impl Clone for Matcher {
    fn clone(&self) -> Self {
        // Caches are copied, not shared: how much work a step counts must not depend on other sequences.
        Self { inner: self.inner.deep_clone() }
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").finish_non_exhaustive()
    }
}

/// The set of tokens that may be sampled next.
#[derive(Clone)]
pub struct Mask(SimpleVob);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} of {})", self.0.num_set(), self.0.len())
    }
}

impl Mask {
    /// Whether the token may be sampled.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }

    /// Calls `deny` with every token below `vocabulary` that may not be sampled, ascending.
    pub fn for_each_denied(&self, vocabulary: usize, mut deny: impl FnMut(usize)) {
        let known = self.0.len().min(vocabulary);
        self.0.iter_unset_entries(|id| {
            if id < known {
                deny(id);
            }
        });
        (known..vocabulary).for_each(deny);
    }
}

impl Matcher {
    /// The tokens allowed next: never empty; only end tokens when the text is complete.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`] when nothing can follow or the work exceeds its limits.
    pub fn mask(&mut self) -> Result<Mask, GrammarError> {
        self.inner
            .compute_mask_or_eos()
            .map(Mask)
            .map_err(|error| GrammarError::Stuck(short(&error.to_string())))
    }

    /// Takes the sampled token. End tokens may only follow a complete text.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`] when the token is not allowed.
    pub fn advance(&mut self, token: u32) -> Result<(), GrammarError> {
        let complete = self.inner.is_stopped() && self.inner.stop_reason().is_ok();
        if complete
            && self
                .inner
                .tok_env()
                .is_ok_and(|vocabulary| vocabulary.tok_trie().eos_tokens().contains(&token))
        {
            // The compiler's matcher ends itself with the last token of the text, and takes no end token then.
            return Ok(());
        }
        self.inner.consume_token(token).map_err(|error| GrammarError::Stuck(short(&error.to_string())))
    }
}
