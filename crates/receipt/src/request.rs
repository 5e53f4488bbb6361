use serde::{Deserialize, Serialize};

use crate::bytes::decimal;
use crate::eip712::{Fields, Typed, keccak256, sealed};
use crate::{Bundle, Bytes32, Error, limits};

/// What the caller wants. All of it is covered by [`request_commitment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Model id: the hash of the manifest.
    pub model: Bytes32,
    /// What the model is to continue or answer.
    pub prompt: Prompt,
    /// Most tokens to sample, at least 1.
    pub max_tokens: u32,
    /// Strings that end the answer; they are not part of it. At most 16, none empty.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What form the text must have.
    pub constraint: Constraint,
    /// How many alternatives to report with each token (0 to 20); `None` for no log-probabilities at all.
    pub logprobs: Option<u8>,
    /// Time that templates print as today's date, in seconds since 1970 UTC.
    pub now_unix_s: u64,
}

/// What the model is to continue or answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// The messages in order, at least one.
        messages: Vec<Message>,
        /// JSON array of tool definitions, as the caller wrote it.
        tools: Option<String>,
        /// `none`, `auto`, `required` or the name of a function.
        tool_choice: String,
        /// Whether one answer may call several tools.
        parallel_tool_calls: bool,
    },
    /// Text that is continued as it is.
    Text(String),
    /// Token ids that are continued as they are.
    Tokens(Vec<u32>),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// The text; empty where an assistant only called tools.
    pub content: String,
    /// Name of the speaker.
    pub name: Option<String>,
    /// JSON array of the tool calls that an assistant made.
    pub tool_calls: Option<String>,
    /// Which call a `tool` message answers.
    pub tool_call_id: Option<String>,
}

/// How tokens are chosen. Integers only: thousandths (`_milli`) and millionths (`_ppm`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Temperature in thousandths, up to 100,000; 0 takes the likeliest token.
    pub temperature_milli: u32,
    /// Keep the likeliest this many tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens that together reach this share, in millionths; 1,000,000 keeps all.
    pub top_p_ppm: u32,
    /// Keep tokens at least this likely relative to the likeliest, in millionths; 0 keeps all.
    pub min_p_ppm: u32,
    /// Divides (or multiplies) the logits of tokens seen before, in thousandths, 1 to 100,000; 1,000 is off.
    pub repetition_penalty_milli: u32,
    /// Subtracted from the logit for each time that the token was sampled before, in thousandths, ±100,000.
    pub frequency_penalty_milli: i32,
    /// Subtracted from the logit when the token was sampled before, in thousandths, ±100,000.
    pub presence_penalty_milli: i32,
    /// Added to the logits of tokens: (token id, thousandths within ±100,000), ids ascending, at most 1,024.
    pub logit_bias: Vec<(u32, i32)>,
    /// Seed of the sampler.
    #[serde(with = "decimal")]
    pub seed: u64,
}

impl Default for Sampling {
    /// Temperature 1 and nothing else: samples from the model's own distribution with seed 0.
    fn default() -> Self {
        Sampling {
            temperature_milli: 1_000,
            top_k: 0,
            top_p_ppm: 1_000_000,
            min_p_ppm: 0,
            repetition_penalty_milli: 1_000,
            frequency_penalty_milli: 0,
            presence_penalty_milli: 0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// What form the text must have; the sampler only takes tokens that keep to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any text.
    #[default]
    None,
    /// A JSON object.
    Json,
    /// JSON that fits this JSON Schema.
    JsonSchema(String),
    /// Text that matches this regular expression as a whole.
    Regex(String),
    /// Text of this Lark grammar.
    Grammar(String),
}

impl Request {
    /// A greedy continuation of `text`.
    pub fn from_text(model: Bytes32, text: &str, max_tokens: u32) -> Request {
        Request {
            model,
            prompt: Prompt::Text(text.into()),
            max_tokens,
            stop: Vec::new(),
            sampling: Sampling { temperature_milli: 0, ..Sampling::default() },
            constraint: Constraint::None,
            logprobs: None,
            now_unix_s: 0,
        }
    }

    /// The request for the embedding of a text or of tokens by a model that makes embeddings.
    pub fn embedding(model: Bytes32, prompt: Prompt) -> Request {
        Request { prompt, ..Request::from_text(model, "", 1) }
    }

    /// The request for the outputs of an integer graph, proved: its inputs, example by example, are the text as a JSON array of
    /// integers without white space.
    pub fn inference(model: Bytes32, inputs: &[i32]) -> Request {
        Request::from_text(model, &integers(inputs), 1)
    }

    /// The inputs of [`Request::inference`]; `None` for a request that is none.
    pub fn inference_inputs(&self) -> Option<Vec<i32>> {
        let Prompt::Text(text) = &self.prompt else { return None };
        let inputs = from_integers(text)?;
        // One spelling only, and nothing else asked for.
        (*self == Request::inference(self.model, &inputs)).then_some(inputs)
    }

    /// The request for a proof of an answer in text, to be checked with the model's key that has this id: the answer's bundle as
    /// JSON, without chunks and audits, is the text.
    pub fn proof(key: Bytes32, answer: &Bundle) -> Request {
        let subject = Bundle { chunks: Vec::new(), audits: Vec::new(), ..answer.clone() };
        // Every bundle can be written; one that could not would be refused as a request.
        Request::from_text(key, &serde_json::to_string(&subject).unwrap_or_default(), 1)
    }

    /// The answer that [`Request::proof`] asks to prove; `None` for a request that is none. No signature is checked.
    pub fn proof_subject(&self) -> Option<Bundle> {
        let Prompt::Text(text) = &self.prompt else { return None };
        let subject = Bundle::from_json(text.as_bytes()).ok()?;
        // One spelling only, and nothing else asked for.
        (*self == Request::proof(self.model, &subject)).then_some(subject)
    }

    /// Checks every length and range that this type documents.
    ///
    /// # Errors
    /// [`Error::Range`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        match &self.prompt {
            Prompt::Chat { messages, tools, tool_choice, parallel_tool_calls: _ } => {
                let count = messages.len();
                rule((1..=limits::MESSAGES).contains(&count), "request.prompt.messages", "1 to 4,096")?;
                for message in messages {
                    let Message { role, content, name, tool_calls, tool_call_id } = message;
                    label(role, "request.prompt.messages.role")?;
                    text(content, "request.prompt.messages.content")?;
                    label(name.as_deref().unwrap_or(""), "request.prompt.messages.name")?;
                    text(tool_calls.as_deref().unwrap_or(""), "request.prompt.messages.tool_calls")?;
                    label(tool_call_id.as_deref().unwrap_or(""), "request.prompt.messages.tool_call_id")?;
                }
                text(tools.as_deref().unwrap_or(""), "request.prompt.tools")?;
                label(tool_choice, "request.prompt.tool_choice")?;
            }
            Prompt::Text(prompt) => text(prompt, "request.prompt.text")?,
            Prompt::Tokens(prompt) => tokens(prompt, "request.prompt.tokens")?,
        }
        let max_tokens = self.max_tokens as usize;
        rule((1..=limits::TOKENS).contains(&max_tokens), "request.max_tokens", "1 to 1,048,576")?;
        rule(self.stop.len() <= limits::STOPS, "request.stop", "at most 16 strings")?;
        let stops = self.stop.iter().all(|stop| (1..=limits::STOP_BYTES).contains(&stop.len()));
        rule(stops, "request.stop", "1 to 1,024 bytes each")?;
        self.sampling.validate()?;
        match &self.constraint {
            Constraint::None | Constraint::Json => {}
            Constraint::JsonSchema(source) | Constraint::Regex(source) | Constraint::Grammar(source) => {
                text(source, "request.constraint")?;
            }
        }
        let logprobs = usize::from(self.logprobs.unwrap_or(0));
        rule(logprobs <= limits::TOP_LOGPROBS, "request.logprobs", "0 to 20")
    }
}

impl Sampling {
    fn validate(&self) -> Result<(), Error> {
        rule(self.temperature_milli <= 100_000, "request.sampling.temperature_milli", "0 to 100,000")?;
        rule(self.top_p_ppm <= 1_000_000, "request.sampling.top_p_ppm", "0 to 1,000,000")?;
        rule(self.min_p_ppm <= 1_000_000, "request.sampling.min_p_ppm", "0 to 1,000,000")?;
        let repetition = (1..=100_000).contains(&self.repetition_penalty_milli);
        rule(repetition, "request.sampling.repetition_penalty_milli", "1 to 100,000")?;
        let milli = -100_000..=100_000;
        let frequency = milli.contains(&self.frequency_penalty_milli);
        rule(frequency, "request.sampling.frequency_penalty_milli", "-100,000 to 100,000")?;
        let presence = milli.contains(&self.presence_penalty_milli);
        rule(presence, "request.sampling.presence_penalty_milli", "-100,000 to 100,000")?;
        let bias = &self.logit_bias;
        rule(bias.len() <= limits::LOGIT_BIASES, "request.sampling.logit_bias", "at most 1,024 entries")?;
        let ordered = bias.windows(2).all(|pair| pair[0].0 < pair[1].0);
        rule(ordered, "request.sampling.logit_bias", "token ids ascending, none twice")?;
        let bounded = bias.iter().all(|(_, value)| milli.contains(value));
        rule(bounded, "request.sampling.logit_bias", "-100,000 to 100,000 each")
    }
}

/// A JSON array of integers without white space.
pub(crate) fn integers(values: &[i32]) -> String {
    let values: Vec<String> = values.iter().map(i32::to_string).collect();
    format!("[{}]", values.join(","))
}

/// The integers of such an array, and of some that are written otherwise.
pub(crate) fn from_integers(text: &str) -> Option<Vec<i32>> {
    text.strip_prefix('[')?.strip_suffix(']')?.split(',').map(|part| part.parse().ok()).collect()
}

pub(crate) fn rule(holds: bool, field: &'static str, rule: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Range { field, rule }) }
}

pub(crate) fn text(value: &str, field: &'static str) -> Result<(), Error> {
    rule(value.len() <= limits::TEXT_BYTES, field, "at most 8 MiB of text")
}

pub(crate) fn label(value: &str, field: &'static str) -> Result<(), Error> {
    rule(value.len() <= limits::LABEL_BYTES, field, "at most 256 bytes")
}

pub(crate) fn tokens(values: &[u32], field: &'static str) -> Result<(), Error> {
    rule(values.len() <= limits::TOKENS, field, "at most 1,048,576 tokens")
}

const MESSAGE: &str =
    "Message(string role,string content,string[] name,string[] toolCalls,string[] toolCallId)";
const SAMPLING: &str = "Sampling(uint32 temperatureMilli,uint32 topK,uint32 topPPpm,uint32 minPPpm,\
    uint32 repetitionPenaltyMilli,int32 frequencyPenaltyMilli,int32 presencePenaltyMilli,LogitBias[] logitBias,uint64 seed)";
const LOGIT_BIAS: &str = "LogitBias(uint32 token,int32 milli)";

impl sealed::Sealed for Request {}
impl Typed for Request {
    // Solidity types know no variants and no options: a variant is a number with the fields of all variants (the
    // others' at their zero values), an option is an array of none or one.
    const TYPES: &'static [&'static str] = &[
        "Request(bytes32 model,uint8 promptKind,Message[] messages,string[] tools,string toolChoice,\
        bool parallelToolCalls,string text,uint32[] tokens,uint32 maxTokens,string[] stop,Sampling sampling,\
        uint8 constraintKind,string constraint,uint8[] logprobs,uint64 nowUnixS)",
        LOGIT_BIAS,
        MESSAGE,
        SAMPLING,
    ];

    fn fields<V: Fields>(&self, v: &mut V) {
        v.bytes32("model", &self.model);
        let mut chat: (&[Message], Option<&str>, &str, bool) = (&[], None, "", false);
        let (mut text, mut tokens) = ("", [].as_slice());
        let kind = match &self.prompt {
            Prompt::Chat { messages, tools, tool_choice, parallel_tool_calls } => {
                chat = (messages, tools.as_deref(), tool_choice, *parallel_tool_calls);
                0
            }
            Prompt::Text(prompt) => {
                text = prompt;
                1
            }
            Prompt::Tokens(prompt) => {
                tokens = prompt;
                2
            }
        };
        v.uint("promptKind", 8, kind);
        v.many("messages", chat.0);
        v.strings("tools", chat.1.into_iter());
        v.string("toolChoice", chat.2);
        v.bool("parallelToolCalls", chat.3);
        v.string("text", text);
        v.uints("tokens", 32, tokens.iter().copied());
        v.uint("maxTokens", 32, self.max_tokens.into());
        v.strings("stop", self.stop.iter().map(String::as_str));
        v.one("sampling", &self.sampling);
        let (kind, source) = match &self.constraint {
            Constraint::None => (0, ""),
            Constraint::Json => (1, ""),
            Constraint::JsonSchema(source) => (2, source.as_str()),
            Constraint::Regex(source) => (3, source.as_str()),
            Constraint::Grammar(source) => (4, source.as_str()),
        };
        v.uint("constraintKind", 8, kind);
        v.string("constraint", source);
        v.uints("logprobs", 8, self.logprobs.into_iter().map(u32::from));
        v.uint("nowUnixS", 64, self.now_unix_s.into());
    }
}

impl sealed::Sealed for Message {}
impl Typed for Message {
    const TYPES: &'static [&'static str] = &[MESSAGE];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.string("role", &self.role);
        v.string("content", &self.content);
        v.strings("name", self.name.as_deref().into_iter());
        v.strings("toolCalls", self.tool_calls.as_deref().into_iter());
        v.strings("toolCallId", self.tool_call_id.as_deref().into_iter());
    }
}

impl sealed::Sealed for Sampling {}
impl Typed for Sampling {
    const TYPES: &'static [&'static str] = &[SAMPLING, LOGIT_BIAS];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.uint("temperatureMilli", 32, self.temperature_milli.into());
        v.uint("topK", 32, self.top_k.into());
        v.uint("topPPpm", 32, self.top_p_ppm.into());
        v.uint("minPPpm", 32, self.min_p_ppm.into());
        v.uint("repetitionPenaltyMilli", 32, self.repetition_penalty_milli.into());
        v.int32("frequencyPenaltyMilli", self.frequency_penalty_milli);
        v.int32("presencePenaltyMilli", self.presence_penalty_milli);
        let bias: Vec<LogitBias> =
            self.logit_bias.iter().map(|&(token, milli)| LogitBias { token, milli }).collect();
        v.many("logitBias", &bias);
        v.uint("seed", 64, self.seed.into());
    }
}

struct LogitBias {
    token: u32,
    milli: i32,
}

impl sealed::Sealed for LogitBias {}
impl Typed for LogitBias {
    const TYPES: &'static [&'static str] = &[LOGIT_BIAS];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.uint("token", 32, self.token.into());
        v.int32("milli", self.milli);
    }
}

/// Hides a struct hash behind a salt: `keccak256(keccak256("assay/<kind>" || salt) || structHash)`. Without the salt a
/// short prompt could be guessed from its hash; the kind keeps a request and an output with one salt apart.
pub(crate) fn commitment(kind: &str, salt: &Bytes32, value: &impl Typed) -> Bytes32 {
    let mask = keccak256([format!("assay/{kind}").as_bytes(), &salt.0].concat());
    keccak256([mask.0, value.struct_hash().0].concat())
}

/// Salted commitment to a whole request. Whoever knows request and salt can check it; nobody else learns anything.
pub fn request_commitment(request: &Request, salt: &Bytes32) -> Bytes32 {
    commitment("request", salt, request)
}
