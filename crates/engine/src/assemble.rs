//! From sampled tokens to the answer that the caller sees.
//!
//! An [`Assembler`] takes the tokens of one sequence and gives text as soon as it is certain: it holds back what may
//! still turn out to be the beginning of a stop string, of a tool call or of a character. What it has given is never
//! taken back, and everything given joined together is the text of the final [`Output`]. The output is a pure function
//! of the request and the tokens, so that an auditor who repeats the tokens gets the same one.

use std::sync::Arc;

use assay_model::{StreamDecoder, Tokenizer};
use assay_receipt::{Bytes32, FinishReason, Output, TokenLogprob, keccak256};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Begins a tool call in the model's text.
pub const TOOL_OPEN: &str = "<tool_call>";
/// Ends a tool call in the model's text.
pub const TOOL_CLOSE: &str = "</tool_call>";

/// What a token led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Text that became certain, to be shown now; possibly empty.
    pub delta: String,
    /// Whether the answer is complete: the sequence must be cancelled, and further tokens are ignored.
    pub stop: bool,
}

/// The end of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Text that was held back and is to be shown now; possibly empty.
    pub delta: String,
    /// The whole answer. Its text is all deltas joined.
    pub output: Output,
}

/// What an assembler needs to know of a request; made by [`crate::request::Processor::prepare`].
#[derive(Clone)]
pub(crate) struct Rules {
    /// Strings that end the answer.
    pub(crate) stop: Vec<String>,
    /// Tokens that end the answer.
    pub(crate) end_tokens: Vec<u32>,
    /// Names of the tools that may be called; empty when calls are not looked for.
    pub(crate) tools: Vec<String>,
    /// Whether one answer may call several tools.
    pub(crate) parallel: bool,
    /// Number of tokens in the prompt.
    pub(crate) prompt_tokens: u32,
    /// Hash of the prompt, which makes the ids of tool calls differ between conversations.
    pub(crate) prompt_hash: Bytes32,
    /// Whether log-probabilities are reported.
    pub(crate) logprobs: bool,
}

/// Builds the answer of one sequence.
#[derive(Clone)]
pub struct Assembler {
    tokenizer: Arc<Tokenizer>,
    rules: Rules,
    decoder: StreamDecoder,
    stops: StopFilter,
    tools: ToolFilter,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    ended: bool,
}

impl std::fmt::Debug for Assembler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text is a user's and must not end up in logs.
        f.debug_struct("Assembler")
            .field("tokens", &self.tokens.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Assembler {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, rules: Rules) -> Self {
        Self {
            decoder: tokenizer.stream(),
            stops: StopFilter::new(rules.stop.clone()),
            tools: ToolFilter::new(rules.tools.clone(), rules.parallel),
            tokenizer,
            rules,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            ended: false,
        }
    }

    /// Takes the next sampled token, with its log-probabilities if the request asked for them (else they are dropped).
    ///
    /// After a step with `stop` further tokens are ignored and not part of the output.
    pub fn push(&mut self, token: u32, logprob: Option<TokenLogprob>) -> Step {
        if self.ended {
            return Step { delta: String::new(), stop: true };
        }
        self.tokens.push(token);
        if self.rules.logprobs {
            self.logprobs.extend(logprob);
        }
        let mut delta = String::new();
        if self.rules.end_tokens.contains(&token) {
            self.ended = true;
        } else {
            let decoded = self.decoder.push(self.tokenizer.token_bytes(token));
            delta = self.show(&decoded);
        }
        Step { delta, stop: self.ended }
    }

    /// Whether the answer is complete: an end token, a stop string, or the only tool call allowed.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// The tokens taken so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Ends the answer. When nothing completed it, its length did, and the finish reason says so.
    pub fn finish(mut self) -> Finished {
        let complete = self.ended;
        let rest = self.decoder.finish();
        let mut delta = if self.stops.done || self.tools.done { String::new() } else { self.show(&rest) };
        let held = self.stops.finish();
        let more = self.tools.push(&held);
        delta.push_str(&more);
        self.text.push_str(&more);
        let held = self.tools.finish();
        delta.push_str(&held);
        self.text.push_str(&held);

        let calls = std::mem::take(&mut self.tools.calls);
        // The held back end of the text may itself have completed a stop string or a call.
        let finish_reason = match (complete || self.ended, calls.is_empty()) {
            (true, false) => FinishReason::ToolCalls,
            (true, true) => FinishReason::Stop,
            (false, _) => FinishReason::Length,
        };
        let output = Output {
            text: self.text,
            tool_calls: (!calls.is_empty()).then(|| openai_calls(&calls, &self.rules.prompt_hash)),
            finish_reason,
            prompt_tokens: self.rules.prompt_tokens,
            completion_tokens: u32::try_from(self.tokens.len()).unwrap_or(u32::MAX),
            tokens: self.tokens,
            logprobs: self.logprobs,
        };
        Finished { delta, output }
    }

    /// Passes decoded text through the filters; returns what is visible.
    fn show(&mut self, decoded: &str) -> String {
        let certain = self.stops.push(decoded);
        let visible = self.tools.push(&certain);
        self.text.push_str(&visible);
        self.ended = self.ended || self.stops.done || self.tools.done;
        visible
    }
}

/// Passes text on up to the first stop string.
///
/// The first is the one whose last character comes first, and of those that end together the one that begins first:
/// the result is that of looking after every character, however the text is divided.
#[derive(Clone)]
struct StopFilter {
    stops: Vec<String>,
    held: String,
    done: bool,
}

impl StopFilter {
    fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), done: false }
    }

    fn push(&mut self, text: &str) -> String {
        if self.done {
            return String::new();
        }
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = first {
            self.done = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a proper beginning of `pattern`.
fn overlap(text: &str, pattern: &str) -> usize {
    (1..pattern.len().min(text.len() + 1))
        .rev()
        .find(|&length| text.as_bytes().ends_with(&pattern.as_bytes()[..length]))
        .unwrap_or(0)
}

/// A tool call in the model's text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    name: String,
    /// JSON object, as the model wrote it.
    arguments: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In ordinary text.
    Text,
    /// `held` begins with the opening tag.
    Call,
    /// After a call, where white space is dropped.
    After,
}

/// Takes well-formed calls of known tools out of the text; everything else passes on unchanged.
#[derive(Clone)]
struct ToolFilter {
    names: Vec<String>,
    parallel: bool,
    held: String,
    /// How much of `held` is known to contain no closing tag.
    searched: usize,
    place: Place,
    calls: Vec<Call>,
    done: bool,
}

impl ToolFilter {
    fn new(names: Vec<String>, parallel: bool) -> Self {
        Self {
            names,
            parallel,
            held: String::new(),
            searched: 0,
            place: Place::Text,
            calls: Vec::new(),
            done: false,
        }
    }

    fn push(&mut self, text: &str) -> String {
        if self.names.is_empty() {
            return text.to_owned();
        }
        let mut visible = String::new();
        if self.done {
            return visible;
        }
        self.held.push_str(text);
        loop {
            match self.place {
                Place::Text => {
                    let Some(at) = self.held.find(TOOL_OPEN) else {
                        let keep = overlap(&self.held, TOOL_OPEN);
                        let rest = self.held.split_off(self.held.len() - keep);
                        visible.push_str(&std::mem::replace(&mut self.held, rest));
                        return visible;
                    };
                    visible.extend(self.held.drain(..at));
                    self.searched = TOOL_OPEN.len();
                    self.place = Place::Call;
                }
                Place::Call => {
                    // Tags are ASCII, so that stepping back by their length may split a character: bytes are searched.
                    let from = self.searched.saturating_sub(TOOL_CLOSE.len()).max(TOOL_OPEN.len());
                    let found = self.held.as_bytes()[from..]
                        .windows(TOOL_CLOSE.len())
                        .position(|window| window == TOOL_CLOSE.as_bytes());
                    let Some(at) = found.map(|at| from + at) else {
                        self.searched = self.held.len();
                        return visible;
                    };
                    let rest = self.held.split_off(at + TOOL_CLOSE.len());
                    let block = std::mem::replace(&mut self.held, rest);
                    match parse_call(&block[TOOL_OPEN.len()..at], &self.names) {
                        Some(call) => {
                            self.calls.push(call);
                            self.place = Place::After;
                            if !self.parallel {
                                self.done = true;
                                self.held.clear();
                                return visible;
                            }
                        }
                        None => {
                            visible.push_str(&block);
                            self.place = Place::Text;
                        }
                    }
                }
                Place::After => {
                    let blank = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..blank);
                    if self.held.is_empty() {
                        return visible;
                    }
                    self.place = Place::Text;
                }
            }
        }
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[derive(Deserialize)]
struct CallText<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

/// Reads `{"name": .., "arguments": {..}}`; `None` when it is not a call of one of the tools.
fn parse_call(body: &str, names: &[String]) -> Option<Call> {
    let call: CallText<'_> = serde_json::from_str(body.trim()).ok()?;
    if !names.contains(&call.name) {
        return None;
    }
    let arguments = match call.arguments.map(RawValue::get) {
        None => "{}".to_owned(),
        Some(object) if object.starts_with('{') => object.to_owned(),
        // Some models write the object as a string.
        Some(other) => {
            let inner: String = serde_json::from_str(other).ok()?;
            serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&inner).ok()?;
            inner
        }
    };
    Some(Call { name: call.name, arguments })
}

/// The calls as OpenAI's API shows them. The id of a call follows from the prompt, its position and its content.
fn openai_calls(calls: &[Call], prompt: &Bytes32) -> String {
    #[derive(Serialize)]
    struct Function<'a> {
        name: &'a str,
        arguments: &'a str,
    }
    #[derive(Serialize)]
    struct Entry<'a> {
        id: String,
        r#type: &'static str,
        function: Function<'a>,
    }
    let entries: Vec<Entry<'_>> = calls
        .iter()
        .enumerate()
        .map(|(index, call)| {
            let hash = keccak256(
                [
                    b"assay/tool-call".as_slice(),
                    &prompt.0,
                    &(index as u64).to_be_bytes(),
                    call.name.as_bytes(),
                    &[0],
                    call.arguments.as_bytes(),
                ]
                .concat(),
            );
            let id = hash.0[..12].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            Entry {
                id: format!("call_{id}"),
                r#type: "function",
                function: Function { name: &call.name, arguments: &call.arguments },
            }
        })
        .collect();
    serde_json::to_string(&entries).expect("strings serialise into memory")
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
