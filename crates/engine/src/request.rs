//! From a signed request to tokens, and from tokens to the output that is signed.
//!
//! Worker, auditor and verifier all go through a [`Processor`], so that a request means the same tokens to each of
//! them: [`Processor::prepare`] renders the chat template, tokenises, checks limits and compiles constraints;
//! the [`Assembler`] it returns turns sampled tokens into the [`Output`]; [`Prepared::check`] re-derives a claimed
//! output from its tokens and names the first field that differs; [`replay_output`] adds the engine's replay of the
//! tokens themselves.
//!
//! # How tools are offered
//! A template that reads `tools` and writes calls between `<tool_call>` tags is given the tools. For every other model
//! a system message describes them ([`TOOL_PREAMBLE`]), earlier calls are written into the assistant's text, and
//! results come back as user messages between `<tool_response>` tags. Either way the model writes
//! `<tool_call>{"name": .., "arguments": {..}}</tool_call>`; `required` and a named function are enforced by a
//! constraint, `auto` is not.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use assay_model::template::python_json;
use assay_model::{Artifact, ChatTemplate, Conversation, Manifest, TemplateError, Tokenizer, TokenizerError};
use assay_receipt::{Audit, Constraint, Message, Output, Prompt, Request, TokenLogprob, keccak256};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::assemble::{Assembler, Rules, TOOL_CLOSE, TOOL_OPEN};
use crate::generation::Generation;
use crate::grammar::{GrammarError, Grammars, MAX_SCHEMA_BYTES, Matcher, one_line, parse_schema};
use crate::{Engine, Replay};

/// Most tools of a request, as in OpenAI's API.
pub const MAX_TOOLS: usize = 128;

/// Longest name of a tool, in characters, as in OpenAI's API.
pub const MAX_TOOL_NAME: usize = 64;

/// Introduces the tools to a model whose template does not; one JSON object a line follows, then [`TOOL_POSTSCRIPT`].
pub const TOOL_PREAMBLE: &str = "You can call functions to help the user. These are the functions, one JSON object \
                                 per line:\n<tools>\n";

/// Says how to call a tool; see [`TOOL_PREAMBLE`].
pub const TOOL_POSTSCRIPT: &str = "</tools>\nTo call a function, write its name and its arguments as a JSON object \
                                   between tags, once for each call:\n<tool_call>\n{\"name\": \"function name\", \
                                   \"arguments\": {\"argument name\": \"value\"}}\n</tool_call>";

/// Why a request cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A field is out of its documented range.
    #[error("the request is not valid: {0}")]
    Invalid(#[from] assay_receipt::Error),
    /// The model has no chat template.
    #[error("the model has no chat template; send a text prompt instead of messages")]
    NoTemplate,
    /// Rendering the messages failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Tokenising failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The constraint cannot be enforced.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The prompt has no tokens.
    #[error("the prompt is empty; send at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {prompt} tokens, but the model's context holds {context}; shorten it")]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the context holds, prompt and answer together.
        context: usize,
    },
    /// A token id of the prompt or of the logit bias lies outside the vocabulary.
    #[error(
        "{field} has the token id {id}, but the model has {vocabulary} tokens; send ids below {vocabulary}"
    )]
    UnknownToken {
        /// Where the id is.
        field: &'static str,
        /// The id.
        id: u32,
        /// Number of ids.
        vocabulary: usize,
    },
    /// A field that holds JSON text does not have the form that it must have.
    #[error("{field} is not what it must be: {reason}; correct it")]
    Malformed {
        /// The field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// `tool_choice` is neither `none`, `auto`, `required` nor the name of a tool.
    #[error(
        "tool_choice is `{0}`, which is none of the tools; send none, auto, required or the name of a tool"
    )]
    UnknownToolChoice(String),
    /// Calls are required in an answer that must also have another form.
    #[error("the request requires a tool call and also a response format; send only one of them")]
    Conflict,
}

/// What a [`Processor`] is made of. All of it comes from the model's artifact.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The bytes of the `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// The Jinja source of the chat template.
    pub chat_template: Option<&'a str>,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end an answer. A template sees the first as `eos_token`.
    pub end_tokens: &'a [u32],
    /// Number of logits.
    pub vocabulary: usize,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
}

/// The text side of one model. Building it takes up to a second; share it.
#[derive(Debug)]
pub struct Processor {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    template_source: String,
    tools_native: bool,
    end_tokens: Vec<u32>,
    vocabulary: usize,
    context: usize,
    grammars: OnceLock<Grammars>,
}

/// A request in tokens.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What the engine is to generate.
    pub generation: Generation,
    assembler: Assembler,
    vocabulary: usize,
}

/// Tokens to resume from that cannot be the beginning of this model's answer, whatever the model computes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// A token id lies outside the vocabulary.
    #[error(
        "token {token} at position {position} is not in the vocabulary; ask without tokens to resume from"
    )]
    UnknownToken {
        /// Index of the token.
        position: usize,
        /// Its id.
        token: u32,
    },
    /// The answer had ended before: by an end token, a stop string, the only call allowed or its length.
    #[error(
        "the answer ends before position {position}, where {token} stands; ask without tokens to resume from"
    )]
    AfterEnd {
        /// Index of the first token after the end.
        position: usize,
        /// Its id.
        token: u32,
    },
}

/// Whether a claimed output follows from the request and its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputVerdict {
    /// Every field is the one that follows.
    Agrees,
    /// A field is not; the first in the order request, prompt_tokens, completion_tokens, tokens, logprobs, text,
    /// tool_calls, finish_reason, constraint. What they mean is in `docs/receipt.md`.
    Differs {
        /// Name of the field.
        field: &'static str,
        /// Index of the token, of the byte or of the log-probabilities' entry that differs; 0 for numbers.
        position: u64,
        /// The value that follows from the request: a number, a token id, a byte or the magnitude of a
        /// log-probability; [`NOTHING`] for none.
        expected: u64,
        /// The claimed value in the same form.
        claimed: u64,
    },
}

/// Stands in an [`OutputVerdict`] for the absence of a token or byte.
pub const NOTHING: u64 = Audit::NOTHING;

/// How tools are used in one request.
struct Tools {
    /// The definitions in OpenAI form; empty when the model is not to call any.
    definitions: Vec<Value>,
    names: Vec<String>,
    /// Names that must be called; empty when calling is up to the model.
    forced: Vec<usize>,
    parallel: bool,
}

impl Processor {
    /// Reads tokenizer and template.
    ///
    /// # Errors
    /// [`RequestError::Tokenizer`] and [`RequestError::Template`] when they cannot be used.
    pub fn new(parts: Parts<'_>) -> Result<Self, RequestError> {
        let tokenizer = Tokenizer::from_bytes(parts.tokenizer_json)?;
        let spelling = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
        let template = parts
            .chat_template
            .map(|source| {
                ChatTemplate::new(source, &spelling(parts.bos), &spelling(parts.end_tokens.first().copied()))
            })
            .transpose()?;
        let tools_native = template.as_ref().is_some_and(ChatTemplate::handles_tools)
            && parts.chat_template.is_some_and(|source| source.contains(TOOL_OPEN));
        let mut end_tokens = parts.end_tokens.to_vec();
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            template,
            template_source: parts.chat_template.unwrap_or_default().to_owned(),
            tools_native,
            end_tokens,
            vocabulary: parts.vocabulary,
            context: parts.context,
            grammars: OnceLock::new(),
        })
    }

    /// [`Self::new`] with what an artifact holds.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, RequestError> {
        Self::from_manifest(artifact.manifest(), artifact.tokenizer_json())
    }

    /// [`Self::new`] with a manifest and the tokenizer that it names, which is not compared with its hash.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_manifest(manifest: &Manifest, tokenizer_json: &[u8]) -> Result<Self, RequestError> {
        Self::new(Parts {
            tokenizer_json,
            chat_template: manifest.chat_template.as_deref(),
            bos: manifest.tokens.bos,
            end_tokens: &manifest.tokens.end,
            vocabulary: manifest.config.vocab,
            context: manifest.config.context,
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Tokens that prompt and answer may have together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Whether the model's own template describes tools.
    pub fn tools_native(&self) -> bool {
        self.tools_native
    }

    /// Turns a request into tokens.
    ///
    /// The answer has at most `max_tokens` tokens and at most as many as the context has room for after the prompt;
    /// the prompt is never shortened.
    ///
    /// # Errors
    /// Every [`RequestError`]; all of them are the request's fault except [`RequestError::NoTemplate`] and
    /// [`GrammarError::NoEndToken`], which are the model's.
    pub fn prepare(&self, request: &Request) -> Result<Prepared, RequestError> {
        request.validate()?;
        let (prompt, tools) = self.prompt_and_tools(request)?;
        self.known("logit_bias", request.sampling.logit_bias.iter().map(|bias| bias.0))?;
        if prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if prompt.len() >= self.context {
            return Err(RequestError::ContextExceeded { prompt: prompt.len(), context: self.context });
        }
        let room = u32::try_from(self.context - prompt.len()).unwrap_or(u32::MAX);

        let forced = tools.as_ref().filter(|tools| !tools.forced.is_empty());
        let constraint = match (&request.constraint, forced) {
            (Constraint::None, None) => None,
            (Constraint::None, Some(tools)) => Some(self.grammars()?.tools(tool_grammar(tools)?)?),
            (_, Some(_)) => return Err(RequestError::Conflict),
            (constraint, None) => Some(self.matcher(constraint)?),
        };
        // Text of another form is not searched for calls.
        let calls = tools.filter(|_| request.constraint == Constraint::None);

        let bytes: Vec<u8> = prompt.iter().flat_map(|token| token.to_be_bytes()).collect();
        let assembler = Assembler::new(
            Arc::clone(&self.tokenizer),
            Rules {
                stop: request.stop.clone(),
                end_tokens: self.end_tokens.clone(),
                parallel: calls.as_ref().is_some_and(|tools| tools.parallel),
                tools: calls.map(|tools| tools.names).unwrap_or_default(),
                prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
                prompt_hash: keccak256(bytes),
                logprobs: request.logprobs.is_some(),
            },
        );
        Ok(Prepared {
            generation: Generation {
                prompt,
                resume: Vec::new(),
                sampling: request.sampling.clone(),
                max_tokens: request.max_tokens.min(room),
                end_tokens: self.end_tokens.clone(),
                constraint,
                logprobs: request.logprobs,
            },
            assembler,
            vocabulary: self.vocabulary,
        })
    }

    /// The tokens of a request's prompt; of the rest only the ranges are checked.
    ///
    /// # Errors
    /// [`RequestError`], where there is no prompt.
    pub fn prompt(&self, request: &Request) -> Result<Vec<u32>, RequestError> {
        request.validate()?;
        self.prompt_and_tools(request).map(|(prompt, _)| prompt)
    }

    fn prompt_and_tools(&self, request: &Request) -> Result<(Vec<u32>, Option<Tools>), RequestError> {
        let mut tools = None;
        let prompt = match &request.prompt {
            Prompt::Chat { messages, tools: definitions, tool_choice, parallel_tool_calls } => {
                let used = parse_tools(definitions.as_deref(), tool_choice, *parallel_tool_calls)?;
                let prompt = self.chat(messages, &used.definitions, request.now_unix_s)?;
                tools = (!used.definitions.is_empty()).then_some(used);
                prompt
            }
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Tokens(tokens) => {
                self.known("prompt", tokens.iter().copied())?;
                tokens.clone()
            }
        };
        Ok((prompt, tools))
    }

    /// The half of a replay that needs no engine: [`Self::prepare`] and [`Prepared::check`]. The prepared request is
    /// for the engine's replay; the verdict, which is never [`OutputVerdict::Agrees`], is final.
    ///
    /// To refuse a request is a pure function of the model and the request. So an answer to a request that this model
    /// refuses is not the model's: it differs in the field `request`.
    ///
    /// # Errors
    /// The verdict, where none but this half is needed.
    pub fn examine(&self, request: &Request, claimed: &Output) -> Result<Prepared, OutputVerdict> {
        let prepared = self.prepare(request).map_err(|_| OutputVerdict::Differs {
            field: "request",
            position: 0,
            expected: NOTHING,
            claimed: claimed.completion_tokens.into(),
        })?;
        match prepared.check(claimed) {
            OutputVerdict::Agrees => Ok(prepared),
            differs => Err(differs),
        }
    }

    fn known(&self, field: &'static str, ids: impl Iterator<Item = u32>) -> Result<(), RequestError> {
        let mut ids = ids;
        match ids.find(|&id| id as usize >= self.vocabulary) {
            Some(id) => Err(RequestError::UnknownToken { field, id, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    fn grammars(&self) -> Result<&Grammars, RequestError> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let built = Grammars::new(&self.tokenizer, self.vocabulary, &self.end_tokens)?;
        // Two threads may both build one; they are equal.
        Ok(self.grammars.get_or_init(|| built))
    }

    fn matcher(&self, constraint: &Constraint) -> Result<Matcher, RequestError> {
        let grammars = self.grammars()?;
        Ok(match constraint {
            Constraint::None | Constraint::Json => grammars.json_object()?,
            Constraint::JsonSchema(source) => grammars.json_schema(source)?,
            Constraint::Regex(source) => grammars.regex(source)?,
            Constraint::Grammar(source) => grammars.lark(source)?,
        })
    }

    /// Renders and tokenises a conversation.
    fn chat(&self, messages: &[Message], tools: &[Value], now_unix_s: u64) -> Result<Vec<u32>, RequestError> {
        let template = self.template.as_ref().ok_or(RequestError::NoTemplate)?;
        let mut messages: Vec<Value> = messages.iter().map(message_value).collect::<Result<_, _>>()?;
        if !self.tools_native {
            describe_tools(&mut messages, tools);
        }
        let mut texts = Vec::new();
        messages.iter().chain(tools).for_each(|value| strings(value, &mut texts));
        let guard = self.tokenizer.guard(&self.template_source, texts)?;
        let messages: Vec<Value> = messages.iter().map(|message| guard.protect_json(message)).collect();
        let tools: Vec<Value> = tools.iter().map(|tool| guard.protect_json(tool)).collect();
        let rendered = template.render(&Conversation {
            messages: &messages,
            tools: (self.tools_native && !tools.is_empty()).then_some(&tools),
            add_generation_prompt: true,
            now_unix_s,
        })?;
        Ok(self.tokenizer.encode_guarded(&rendered, &guard)?)
    }
}

impl Prepared {
    /// Number of tokens in the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.generation.prompt.len()).unwrap_or(u32::MAX)
    }

    /// Sets the tokens that were shown to the caller before and must come out again first.
    ///
    /// # Errors
    /// [`ResumeError`] when they cannot be the beginning of this model's answer. Whether they are is found by the
    /// engine.
    pub fn resume(&mut self, tokens: &[u32]) -> Result<(), ResumeError> {
        let mut assembler = self.assembler();
        for (position, &token) in tokens.iter().enumerate() {
            if token as usize >= self.vocabulary {
                return Err(ResumeError::UnknownToken { position, token });
            }
            if assembler.is_complete() || position >= self.generation.max_tokens as usize {
                return Err(ResumeError::AfterEnd { position, token });
            }
            assembler.push(token, None);
        }
        self.generation.resume = tokens.to_vec();
        Ok(())
    }

    /// An assembler at the beginning of the answer.
    pub fn assembler(&self) -> Assembler {
        self.assembler.clone()
    }

    /// Re-derives the output from the claimed tokens and log-probabilities and compares it with the claimed one.
    ///
    /// It finds any text, tool call, usage or finish reason that does not follow, tokens after the end of the answer
    /// and an answer that ends for no reason. It takes the tokens and the values of log-probabilities as they are:
    /// those are for the engine's replay.
    pub fn check(&self, claimed: &Output) -> OutputVerdict {
        let differs = |field, position: usize, expected: u64, claimed: u64| OutputVerdict::Differs {
            field,
            position: position as u64,
            expected,
            claimed,
        };
        let prompt = self.prompt_tokens();
        if claimed.prompt_tokens != prompt {
            return differs("prompt_tokens", 0, prompt.into(), claimed.prompt_tokens.into());
        }
        let count = claimed.tokens.len();
        if u64::from(claimed.completion_tokens) != count as u64 {
            return differs("completion_tokens", 0, count as u64, claimed.completion_tokens.into());
        }

        let mut assembler = self.assembler();
        for (position, &token) in claimed.tokens.iter().enumerate() {
            if assembler.is_complete() || position >= self.generation.max_tokens as usize {
                return differs("tokens", position, NOTHING, token.into());
            }
            assembler.push(token, claimed.logprobs.get(position).cloned());
        }
        let complete = assembler.is_complete();
        let Some(alternatives) = self.generation.logprobs else {
            return match claimed.logprobs.first() {
                Some(entry) => differs("logprobs", 0, NOTHING, entry.token.into()),
                None => self.compare(assembler, complete, claimed),
            };
        };
        for position in 0..count.max(claimed.logprobs.len()) {
            let token = claimed.tokens.get(position).map_or(NOTHING, |&token| token.into());
            let entry = claimed.logprobs.get(position);
            let reported = entry.map_or(NOTHING, |entry| entry.token.into());
            if token != reported {
                return differs("logprobs", position, token, reported);
            }
            // A vocabulary smaller than the number of alternatives has fewer of them; the replay compares values.
            let top = entry.map_or(0, |entry| entry.top.len());
            if top > usize::from(alternatives) {
                return differs("logprobs", position, alternatives.into(), top as u64);
            }
        }
        self.compare(assembler, complete, claimed)
    }

    fn compare(&self, assembler: Assembler, complete: bool, claimed: &Output) -> OutputVerdict {
        let differs = |field, position, expected, claimed| OutputVerdict::Differs {
            field,
            position,
            expected,
            claimed,
        };
        let count = claimed.tokens.len();
        let expected = assembler.finish().output;
        if !complete
            && expected.finish_reason == assay_receipt::FinishReason::Length
            && count < self.generation.max_tokens as usize
        {
            // The answer breaks off though neither an end nor the limit was reached.
            return differs("tokens", count as u64, self.generation.max_tokens.into(), NOTHING);
        }
        if let Some((position, expected, claimed)) = first_difference(&expected.text, &claimed.text) {
            return differs("text", position, expected, claimed);
        }
        let calls =
            (expected.tool_calls.as_deref().unwrap_or(""), claimed.tool_calls.as_deref().unwrap_or(""));
        if let Some((position, expected, claimed)) = first_difference(calls.0, calls.1) {
            return differs("tool_calls", position, expected, claimed);
        }
        if expected.tool_calls.is_some() != claimed.tool_calls.is_some() {
            return differs(
                "tool_calls",
                0,
                expected.tool_calls.is_some().into(),
                claimed.tool_calls.is_some().into(),
            );
        }
        if expected.finish_reason != claimed.finish_reason {
            return differs("finish_reason", 0, expected.finish_reason as u64, claimed.finish_reason as u64);
        }
        OutputVerdict::Agrees
    }
}

/// Repeats an answer on this machine: re-derives every field from the request alone and names the first that differs.
///
/// Cheap checks come first: an output that contradicts itself is found without running the model.
///
/// # Errors
/// [`crate::Error`] when the answer cannot be repeated here, for lack of cache say; that is no statement about it.
///
/// ```
/// use assay_engine::{Engine, Error, request::{OutputVerdict, Processor, replay_output}};
/// use assay_receipt::{Output, Request};
///
/// fn honest(engine: &mut Engine, processor: &Processor, request: &Request, output: &Output) -> Result<bool, Error> {
///     Ok(replay_output(engine, processor, request, output)? == OutputVerdict::Agrees)
/// }
/// ```
pub fn replay_output(
    engine: &mut Engine,
    processor: &Processor,
    request: &Request,
    claimed: &Output,
) -> Result<OutputVerdict, crate::Error> {
    let prepared = match processor.examine(request, claimed) {
        Ok(prepared) => prepared,
        Err(verdict) => return Ok(verdict),
    };
    match engine.replay(&prepared.generation, &claimed.tokens) {
        Ok(replay) => Ok(judge(&replay, claimed)),
        Err(error) => judge_error(error, claimed),
    }
}

/// What an engine that could not go on with a replay says about the output.
///
/// # Errors
/// The error again, when it is about this engine and not about the output.
pub fn judge_error(error: crate::Error, claimed: &Output) -> Result<OutputVerdict, crate::Error> {
    let (field, position) = match error {
        // A token that the model does not have.
        crate::Error::UnknownToken { token, .. } if claimed.tokens.contains(&token) => {
            ("tokens", claimed.tokens.iter().take_while(|&&other| other != token).count())
        }
        // The grammar's limits are counts of work, the same everywhere: no honest worker got past this token.
        crate::Error::Constraint { position, .. } => ("constraint", position as usize),
        other => return Err(other),
    };
    let claimed = claimed.tokens.get(position).map_or(NOTHING, |&token| token.into());
    Ok(OutputVerdict::Differs { field, position: position as u64, expected: NOTHING, claimed })
}

/// What the engine's replay says about the tokens and log-probabilities of an output that [`Prepared::check`] agrees
/// with.
pub fn judge(replay: &Replay, claimed: &Output) -> OutputVerdict {
    let differs = |field, position: usize, expected: u64, claimed: u64| OutputVerdict::Differs {
        field,
        position: position as u64,
        expected,
        claimed,
    };
    let logprobs = match replay {
        Replay::Differs { position, expected, claimed } => {
            let expected = expected.map_or(NOTHING, u64::from);
            return differs("tokens", *position as usize, expected, (*claimed).into());
        }
        Replay::Agrees { logprobs, .. } => logprobs,
    };
    // Log-probabilities are never positive.
    let size = |value: i32| u64::from(value.unsigned_abs());
    for position in 0..logprobs.len().max(claimed.logprobs.len()) {
        let (Some(ours), Some(theirs)) = (logprobs.get(position), claimed.logprobs.get(position)) else {
            let token =
                |list: &[TokenLogprob]| list.get(position).map_or(NOTHING, |entry| entry.token.into());
            return differs("logprobs", position, token(logprobs), token(&claimed.logprobs));
        };
        if ours == theirs {
            continue;
        }
        let all = |entry: &TokenLogprob| {
            let first = [entry.token.into(), size(entry.logprob_q16)];
            let rest = entry.top.iter().flat_map(|&(token, value)| [token.into(), size(value)]);
            first.into_iter().chain(rest).collect::<Vec<u64>>()
        };
        let (ours, theirs) = (all(ours), all(theirs));
        let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        let at = |list: &[u64]| list.get(same).copied().unwrap_or(NOTHING);
        return differs("logprobs", position, at(&ours), at(&theirs));
    }
    OutputVerdict::Agrees
}

/// The first byte in which two texts differ: its position and both values.
pub(crate) fn first_difference(expected: &str, claimed: &str) -> Option<(u64, u64, u64)> {
    if expected == claimed {
        return None;
    }
    let same = expected.bytes().zip(claimed.bytes()).take_while(|(a, b)| a == b).count();
    let at = |text: &str| text.as_bytes().get(same).map_or(NOTHING, |&byte| byte.into());
    Some((same as u64, at(expected), at(claimed)))
}

/// Every string in a JSON value, keys included.
fn strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, out)),
        Value::Object(map) => map.iter().for_each(|(key, item)| {
            out.push(key);
            strings(item, out);
        }),
        _ => {}
    }
}

/// A message as templates see it.
fn message_value(message: &Message) -> Result<Value, RequestError> {
    let mut map = Map::new();
    map.insert("role".into(), message.role.clone().into());
    map.insert("content".into(), message.content.clone().into());
    if let Some(name) = &message.name {
        map.insert("name".into(), name.clone().into());
    }
    if let Some(calls) = &message.tool_calls {
        map.insert("tool_calls".into(), parse_calls(calls)?);
    }
    if let Some(id) = &message.tool_call_id {
        map.insert("tool_call_id".into(), id.clone().into());
    }
    Ok(Value::Object(map))
}

/// Reads the calls of an earlier assistant message. Templates expect arguments as objects, the API has them as text.
fn parse_calls(source: &str) -> Result<Value, RequestError> {
    const FIELD: &str = "messages.tool_calls";
    let malformed = |reason: &str| RequestError::Malformed { field: FIELD, reason: reason.into() };
    let mut calls = parse_array(FIELD, source)?;
    for call in &mut calls {
        let function = call
            .get_mut("function")
            .and_then(Value::as_object_mut)
            .ok_or_else(|| malformed("a call has no `function` object"))?;
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(malformed("a call has no function name"));
        }
        let arguments = function.entry("arguments").or_insert_with(|| json!({}));
        if let Some(text) = arguments.as_str() {
            let text = if text.trim().is_empty() { "{}" } else { text };
            *arguments = serde_json::from_str::<Map<String, Value>>(text)
                .map_err(|_| malformed("the arguments of a call are not a JSON object"))?
                .into();
        }
    }
    Ok(Value::Array(calls))
}

fn parse_array(field: &'static str, source: &str) -> Result<Vec<Value>, RequestError> {
    if source.len() > MAX_SCHEMA_BYTES {
        return Err(RequestError::Malformed {
            field,
            reason: format!("it has more than {MAX_SCHEMA_BYTES} bytes"),
        });
    }
    serde_json::from_str(source).map_err(|error| RequestError::Malformed {
        field,
        reason: format!("it is not a JSON array ({error})"),
    })
}

/// Checks the tools and which of them must be called.
fn parse_tools(source: Option<&str>, choice: &str, parallel: bool) -> Result<Tools, RequestError> {
    const FIELD: &str = "tools";
    let malformed = |reason: String| RequestError::Malformed { field: FIELD, reason };
    let definitions = source.map_or_else(|| Ok(Vec::new()), |source| parse_array(FIELD, source))?;
    if definitions.len() > MAX_TOOLS {
        return Err(malformed(format!("there are {} tools, more than {MAX_TOOLS}", definitions.len())));
    }
    let mut names = Vec::with_capacity(definitions.len());
    let mut seen = HashSet::new();
    for tool in &definitions {
        if tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(malformed("a tool is not of type `function`".into()));
        }
        let function =
            tool.get("function").ok_or_else(|| malformed("a tool has no `function` object".into()))?;
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        if name.is_empty() || name.len() > MAX_TOOL_NAME || !name.chars().all(plain) {
            return Err(malformed(format!(
                "a tool's name is not 1 to {MAX_TOOL_NAME} letters, digits, underscores and hyphens"
            )));
        }
        if !seen.insert(name) {
            return Err(malformed(format!("the tool `{name}` occurs twice")));
        }
        match function.get("parameters") {
            None | Some(Value::Null | Value::Object(_)) => {}
            Some(_) => {
                return Err(malformed(format!("the parameters of `{name}` are not a JSON schema object")));
            }
        }
        names.push(name.to_owned());
    }
    let forced = match choice {
        "none" => {
            return Ok(Tools { definitions: Vec::new(), names: Vec::new(), forced: Vec::new(), parallel });
        }
        "auto" => Vec::new(),
        "required" if !names.is_empty() => (0..names.len()).collect(),
        name => match names.iter().position(|known| known == name) {
            Some(index) => vec![index],
            None => return Err(RequestError::UnknownToolChoice(name.to_owned())),
        },
    };
    Ok(Tools { definitions, names, forced, parallel })
}

/// Lark source of the calls that must be made. Each tool has its own schema, so that references within it hold.
fn tool_grammar(tools: &Tools) -> Result<String, RequestError> {
    let alternatives =
        tools.forced.iter().map(|index| format!("call_{index}")).collect::<Vec<_>>().join(" | ");
    let mut source =
        String::from(if tools.parallel { "start: call (\"\\n\" call)*\n" } else { "start: call\n" });
    source.push_str(&format!("call: {alternatives}\n"));
    for &index in &tools.forced {
        let function = &tools.definitions[index]["function"];
        let mut schema = match &function["parameters"] {
            // The limits of nesting are those of schemas in response formats.
            Value::Object(map) => parse_schema(&Value::Object(map.clone()).to_string())?,
            _ => json!({}),
        };
        if let Some(map) = schema.as_object_mut() {
            map.entry("type").or_insert_with(|| "object".into());
        }
        one_line(&mut schema);
        // Names are letters, digits, underscores and hyphens: nothing to escape.
        let name = &tools.names[index];
        source.push_str(&format!(
            "call_{index}: \"{TOOL_OPEN}\\n{{\\\"name\\\": \\\"{name}\\\", \\\"arguments\\\": \" arguments_{index} \
             \"}}\\n{TOOL_CLOSE}\"\narguments_{index}: %json {schema}\n"
        ));
    }
    Ok(source)
}

/// Writes tools, calls and results into ordinary messages, for templates that do not know them.
fn describe_tools(messages: &mut Vec<Value>, tools: &[Value]) {
    for message in messages.iter_mut() {
        let Some(map) = message.as_object_mut() else { continue };
        let mut content = map["content"].as_str().unwrap_or_default().to_owned();
        if let Some(Value::Array(calls)) = map.remove("tool_calls") {
            for call in calls {
                if !content.is_empty() {
                    content.push('\n');
                }
                let call =
                    json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
                content.push_str(&format!("{TOOL_OPEN}\n{}\n{TOOL_CLOSE}", python_json(&call)));
            }
        }
        map.remove("tool_call_id");
        if map["role"] == "tool" {
            map.insert("role".into(), "user".into());
            content = format!("<tool_response>\n{content}\n</tool_response>");
        }
        map.insert("content".into(), content.into());
    }
    if tools.is_empty() {
        return;
    }
    let mut text = TOOL_PREAMBLE.to_owned();
    for tool in tools {
        text.push_str(&python_json(tool));
        text.push('\n');
    }
    text.push_str(TOOL_POSTSCRIPT);
    match messages.first_mut().filter(|message| message["role"] == "system") {
        Some(system) => {
            let content = system["content"].as_str().unwrap_or_default();
            system["content"] = format!("{content}\n\n{text}").into();
        }
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
