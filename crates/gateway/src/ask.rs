//! Reading requests in the OpenAI formats.

use crate::config::{Level, Moment};
use crate::error::ApiError;
use crate::params::{Params, kind_of, missing, wrong_type};
use assay_receipt::{Constraint, Message, Prompt, Sampling, limits};
use serde_json::{Map, Value, json};

/// What a caller asks for, whatever the format it came in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    pub(crate) model: String,
    /// One but for `/v1/completions`, which takes several.
    pub(crate) prompts: Vec<Prompt>,
    /// Choices for each prompt.
    pub(crate) n: u32,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    /// Without the seed.
    pub(crate) sampling: Sampling,
    pub(crate) seed: Option<u64>,
    pub(crate) constraint: Constraint,
    pub(crate) logprobs: Option<u8>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) verification: Verification,
}

/// The `assay` object of a request; what is absent comes from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Verification {
    pub(crate) level: Option<Level>,
    pub(crate) moment: Option<Moment>,
    pub(crate) sample_ppm: Option<u32>,
}

/// Limits that come from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) choices_max: u32,
}

impl Ask {
    /// Body of `POST /v1/chat/completions`.
    pub(crate) fn chat(body: &[u8], bounds: Bounds) -> Result<Ask, ApiError> {
        let mut params = Params::from_body(body)?;
        let model = model_of(&mut params)?;
        let messages = chat_messages(&mut params)?;
        for old in ["functions", "function_call"] {
            if params.take(old).is_some() {
                return Err(ApiError::unsupported(
                    old,
                    format!("'{old}' is no longer supported; use 'tools'"),
                ));
            }
        }
        let tools = tools_of(&mut params, ToolForm::Chat)?;
        let tool_choice = tool_choice_of(&mut params, &tools, ToolForm::Chat)?;
        let parallel_tool_calls = params.boolean("parallel_tool_calls")?.unwrap_or(true);
        let constraint = match params.object("response_format")? {
            Some(format) => constraint_of(format, true)?,
            None => Constraint::None,
        };
        let logprobs = params.boolean("logprobs")?.unwrap_or(false);
        let top = params.integer("top_logprobs", 0, limits::TOP_LOGPROBS as i64)?;
        if top.is_some() && !logprobs {
            return Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true"));
        }
        let max_tokens = max_tokens_of(&mut params, "max_tokens")?;
        let max_completion_tokens = max_tokens_of(&mut params, "max_completion_tokens")?;
        if max_tokens.is_some() && max_completion_tokens.is_some() && max_tokens != max_completion_tokens {
            return Err(ApiError::invalid(
                "max_tokens",
                "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'",
            ));
        }
        only_text(&mut params)?;
        if params.boolean("store")?.unwrap_or(false) {
            return Err(ApiError::unsupported(
                "store",
                "Stored completions are not kept here; leave out 'store'",
            ));
        }
        let ask = Ask {
            model,
            prompts: vec![Prompt::Chat {
                messages,
                tools: (!tools.is_empty()).then(|| Value::Array(tools).to_string()),
                tool_choice,
                parallel_tool_calls,
            }],
            // The range of top_logprobs ends at 20.
            logprobs: logprobs.then(|| top.unwrap_or(0) as u8),
            max_tokens: max_completion_tokens.or(max_tokens),
            constraint,
            ..common(&mut params, bounds)?
        };
        params.finish()?;
        Ok(ask)
    }

    /// Body of `POST /v1/completions`.
    pub(crate) fn completion(body: &[u8], bounds: Bounds) -> Result<Ask, ApiError> {
        let mut params = Params::from_body(body)?;
        let model = model_of(&mut params)?;
        let prompts = prompts_of(params.need("prompt")?, "prompt")?;
        for (name, allowed) in [("echo", json!(false)), ("suffix", json!(""))] {
            if let Some(value) = params.take(name)
                && value != allowed
            {
                return Err(ApiError::unsupported(name, format!("'{name}' is not supported; leave it out")));
            }
        }
        // The range ends at 20.
        let logprobs = params.integer("logprobs", 0, limits::TOP_LOGPROBS as i64)?.map(|top| top as u8);
        let max_tokens = max_tokens_of(&mut params, "max_tokens")?;
        let best_of = params.integer("best_of", 1, i64::from(bounds.choices_max))?;
        let constraint = match params.object("response_format")? {
            Some(format) => constraint_of(format, true)?,
            None => Constraint::None,
        };
        let ask = Ask {
            model,
            prompts,
            logprobs,
            // The default of this endpoint is 16 tokens, as everybody who uses it knows.
            max_tokens: max_tokens.or(Some(16)),
            constraint,
            ..common(&mut params, bounds)?
        };
        if best_of.is_some_and(|best| best != i64::from(ask.n)) {
            return Err(ApiError::unsupported("best_of", "'best_of' is supported only where it equals 'n'"));
        }
        let choices = ask.prompts.len() as u64 * u64::from(ask.n);
        if choices > u64::from(bounds.choices_max) {
            return Err(ApiError::invalid(
                "prompt",
                format!(
                    "{choices} choices are asked for, and {} are allowed in one request",
                    bounds.choices_max
                ),
            ));
        }
        params.finish()?;
        Ok(ask)
    }

    /// Body of `POST /v1/responses`.
    pub(crate) fn response(body: &[u8], bounds: Bounds) -> Result<Ask, ApiError> {
        let mut params = Params::from_body(body)?;
        let model = model_of(&mut params)?;
        let mut messages = Vec::new();
        if let Some(instructions) = params.string("instructions")? {
            messages.push(Message { role: "system".into(), content: instructions, ..Message::default() });
        }
        response_input(params.need("input")?, &mut messages)?;
        for (name, hint) in [
            ("previous_response_id", "responses are not stored here; send the whole conversation in 'input'"),
            ("conversation", "conversations are not stored here; send the whole conversation in 'input'"),
            ("prompt", "stored prompts do not exist here; write the prompt into 'input'"),
            ("reasoning", "the models here have no separate reasoning"),
        ] {
            if params.take(name).is_some() {
                return Err(ApiError::unsupported(name, format!("'{name}' is not supported: {hint}")));
            }
        }
        if params.boolean("background")?.unwrap_or(false) {
            return Err(ApiError::unsupported("background", "'background' is not supported; use 'stream'"));
        }
        if let Some(truncation) = params.string("truncation")?
            && truncation != "disabled"
        {
            return Err(ApiError::unsupported("truncation", "only 'disabled' is supported for 'truncation'"));
        }
        let mut logprobs = None;
        for (index, wanted) in params.array("include")?.unwrap_or_default().iter().enumerate() {
            match wanted.as_str() {
                Some("message.output_text.logprobs") => logprobs = Some(0),
                _ => {
                    let path = format!("include[{index}]");
                    let hint = "only 'message.output_text.logprobs' can be included";
                    return Err(ApiError::unsupported(path, hint));
                }
            }
        }
        if let Some(top) = params.integer("top_logprobs", 0, limits::TOP_LOGPROBS as i64)? {
            logprobs = logprobs.map(|_| top as u8); // the range ends at 20
        }
        params.boolean("store")?;
        params.integer("max_tool_calls", 1, i64::MAX)?;
        let tools = tools_of(&mut params, ToolForm::Response)?;
        let tool_choice = tool_choice_of(&mut params, &tools, ToolForm::Response)?;
        let parallel_tool_calls = params.boolean("parallel_tool_calls")?.unwrap_or(true);
        let constraint = match params.object("text")? {
            Some(mut text) => {
                let format = text.object("format")?;
                text.string("verbosity")?;
                text.finish()?;
                format.map_or(Ok(Constraint::None), |format| constraint_of(format, false))?
            }
            None => Constraint::None,
        };
        let max_tokens = max_tokens_of(&mut params, "max_output_tokens")?;
        let ask = Ask {
            model,
            prompts: vec![Prompt::Chat {
                messages,
                tools: (!tools.is_empty()).then(|| Value::Array(tools).to_string()),
                tool_choice,
                parallel_tool_calls,
            }],
            logprobs,
            max_tokens,
            constraint,
            ..common(&mut params, bounds)?
        };
        if ask.n != 1 {
            return Err(ApiError::unsupported("n", "'n' is not part of this endpoint"));
        }
        params.finish()?;
        Ok(ask)
    }
}

fn model_of(params: &mut Params) -> Result<String, ApiError> {
    let model = params.need_string("model")?;
    if model.is_empty() || model.len() > limits::LABEL_BYTES {
        return Err(ApiError::invalid("model", "'model' must be a name of 1 to 256 bytes; see /v1/models"));
    }
    Ok(model)
}

fn max_tokens_of(params: &mut Params, name: &str) -> Result<Option<u32>, ApiError> {
    // The limit fits.
    Ok(params.integer(name, 1, limits::TOKENS as i64)?.map(|value| value as u32))
}

/// What all three endpoints share: sampling, stops, streaming, verification, and parameters that are accepted
/// because every client sends them and change nothing here.
fn common(params: &mut Params, bounds: Bounds) -> Result<Ask, ApiError> {
    let default = Sampling::default();
    // All casts are within the ranges that were just checked.
    let sampling = Sampling {
        temperature_milli: params
            .decimal("temperature", 0.0, 2.0, 3)?
            .map_or(default.temperature_milli, |value| value as u32),
        top_k: params.integer("top_k", -1, i64::from(u32::MAX))?.map_or(0, |value| value.max(0) as u32),
        top_p_ppm: params.decimal("top_p", 0.0, 1.0, 6)?.map_or(default.top_p_ppm, |value| value as u32),
        min_p_ppm: params.decimal("min_p", 0.0, 1.0, 6)?.map_or(0, |value| value as u32),
        repetition_penalty_milli: params
            .decimal("repetition_penalty", 0.001, 100.0, 3)?
            .map_or(default.repetition_penalty_milli, |value| value as u32),
        frequency_penalty_milli: params
            .decimal("frequency_penalty", -2.0, 2.0, 3)?
            .map_or(0, |value| value as i32),
        presence_penalty_milli: params
            .decimal("presence_penalty", -2.0, 2.0, 3)?
            .map_or(0, |value| value as i32),
        logit_bias: logit_bias_of(params)?,
        seed: 0,
    };
    let seed = match params.take("seed") {
        None => None,
        // Negative seeds, which OpenAI takes, keep their bits.
        Some(value) => Some(
            value
                .as_u64()
                .or_else(|| value.as_i64().map(|seed| seed as u64))
                .ok_or_else(|| wrong_type("seed", "an integer of 64 bits", &value))?,
        ),
    };
    let stop = stop_of(params)?;
    let n = params.integer("n", 1, i64::from(bounds.choices_max))?.unwrap_or(1) as u32;
    let stream = params.boolean("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(mut options) = params.object("stream_options")? {
        if !stream {
            return Err(ApiError::invalid("stream_options", "'stream_options' needs 'stream' to be true"));
        }
        include_usage = options.boolean("include_usage")?.unwrap_or(false);
        options.boolean("include_obfuscation")?;
        options.finish()?;
    }
    for name in ["user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"] {
        params.string(name)?;
    }
    if let Some(metadata) = params.take("metadata")
        && !metadata.is_object()
    {
        return Err(wrong_type("metadata", "an object", &metadata));
    }
    if let Some(tier) = params.string("service_tier")?
        && !["auto", "default"].contains(&&*tier)
    {
        return Err(ApiError::unsupported("service_tier", "'service_tier' can only be 'auto' or 'default'"));
    }
    let verification = match params.object("assay")? {
        Some(assay) => verification_of(assay)?,
        None => Verification::default(),
    };
    Ok(Ask {
        model: String::new(),
        prompts: Vec::new(),
        n,
        max_tokens: None,
        stop,
        sampling,
        seed,
        constraint: Constraint::None,
        logprobs: None,
        stream,
        include_usage,
        verification,
    })
}

pub(crate) fn verification_of(mut assay: Params) -> Result<Verification, ApiError> {
    let level = match assay.string("level")?.as_deref() {
        None => None,
        Some("signed") => Some(Level::Signed),
        Some("replayed") => Some(Level::Replayed),
        Some("attested") => {
            return Err(ApiError::unsupported(
                "assay.level",
                "No worker offers this level yet; use 'signed' or 'replayed'",
            ));
        }
        Some("proved") => Some(Level::Proved),
        Some(_) => {
            return Err(ApiError::invalid(
                "assay.level",
                "'assay.level' is 'signed', 'replayed' or 'proved'",
            ));
        }
    };
    let moment = match assay.string("moment")?.as_deref() {
        None => None,
        Some("before_first_token") => Some(Moment::BeforeFirstToken),
        Some("before_end") => Some(Moment::BeforeEnd),
        Some("sampled") => Some(Moment::Sampled),
        Some(_) => {
            return Err(ApiError::invalid(
                "assay.moment",
                "'assay.moment' is 'before_first_token', 'before_end' or 'sampled'",
            ));
        }
    };
    // The range fits.
    let sample_ppm = assay.integer("sample_ppm", 0, 1_000_000)?.map(|share| share as u32);
    if level == Some(Level::Signed) && moment.is_some_and(|moment| moment != Moment::Sampled) {
        return Err(ApiError::invalid(
            "assay.moment",
            "Only 'assay.level' 'replayed' and 'proved' have this moment",
        ));
    }
    assay.finish()?;
    Ok(Verification { level, moment, sample_ppm })
}

fn logit_bias_of(params: &mut Params) -> Result<Vec<(u32, i32)>, ApiError> {
    let entries = match params.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("logit_bias", "an object", &other)),
    };
    if entries.len() > limits::LOGIT_BIASES {
        return Err(ApiError::invalid("logit_bias", "'logit_bias' may have at most 1024 entries"));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (token, value) in entries {
        let path = format!("logit_bias.{token}");
        let id: u32 = token.parse().map_err(|_| {
            ApiError::invalid(&*path, "The keys of 'logit_bias' are token ids: whole numbers")
        })?;
        let bias = value.as_f64().ok_or_else(|| wrong_type(&path, "a number", &value))?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(ApiError::invalid(path, "The values of 'logit_bias' are between -100 and 100"));
        }
        biases.push((id, (bias * 1_000.0).round() as i32)); // at most 100,000
    }
    biases.sort_unstable();
    if biases.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::invalid("logit_bias", "'logit_bias' names a token twice"));
    }
    Ok(biases)
}

fn stop_of(params: &mut Params) -> Result<Vec<String>, ApiError> {
    let values = match params.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(single @ Value::String(_)) => vec![single],
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if values.len() > limits::STOPS {
        return Err(ApiError::invalid("stop", format!("'stop' may have at most {} strings", limits::STOPS)));
    }
    let mut stops = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let path = format!("stop[{index}]");
        match value {
            Value::String(text) if (1..=limits::STOP_BYTES).contains(&text.len()) => stops.push(text),
            Value::String(_) => {
                return Err(ApiError::invalid(path, "A stop string has 1 to 1024 bytes"));
            }
            other => return Err(wrong_type(&path, "a string", &other)),
        }
    }
    Ok(stops)
}

fn only_text(params: &mut Params) -> Result<(), ApiError> {
    for (index, modality) in params.array("modalities")?.unwrap_or_default().iter().enumerate() {
        if modality.as_str() != Some("text") {
            let path = format!("modalities[{index}]");
            return Err(ApiError::unsupported(path, "Only the modality 'text' is supported"));
        }
    }
    Ok(())
}

/// `response_format` of a chat (`nested`: the schema is in an object of its own) or `text.format` of a response.
fn constraint_of(mut format: Params, nested: bool) -> Result<Constraint, ApiError> {
    let kind_path = format.path("type");
    let kind = format.need_string("type")?;
    let constraint = match &*kind {
        "text" => Constraint::None,
        "json_object" => Constraint::Json,
        "json_schema" => {
            let mut inner = if nested {
                let path = format.path("json_schema");
                format.object("json_schema")?.ok_or_else(|| missing(&path))?
            } else {
                std::mem::replace(&mut format, Params::of(kind_path.clone(), json!({}))?)
            };
            inner.need_string("name")?;
            inner.string("description")?;
            inner.boolean("strict")?;
            let path = inner.path("schema");
            let schema = inner.need("schema")?;
            if !schema.is_object() && !schema.is_boolean() {
                return Err(wrong_type(&path, "an object", &schema));
            }
            inner.finish()?;
            Constraint::JsonSchema(schema.to_string())
        }
        "regex" => Constraint::Regex(format.need_string("pattern")?),
        "grammar" => Constraint::Grammar(format.need_string("grammar")?),
        _ => {
            return Err(ApiError::invalid(
                kind_path,
                format!(
                    "Unknown format '{kind}': use 'text', 'json_object', 'json_schema', 'regex' or 'grammar'"
                ),
            ));
        }
    };
    format.finish()?;
    Ok(constraint)
}

/// Chat and Responses write tools differently; the request always carries the chat form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ToolForm {
    Chat,
    Response,
}

fn is_function_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        // Words of `tool_choice`, which carries the name.
        && !["none", "auto", "required"].contains(&name)
}

fn tools_of(params: &mut Params, form: ToolForm) -> Result<Vec<Value>, ApiError> {
    let tools = params.array("tools")?.unwrap_or_default();
    if tools.len() > 128 {
        return Err(ApiError::invalid("tools", "'tools' may have at most 128 entries"));
    }
    let mut out: Vec<Value> = Vec::with_capacity(tools.len());
    for (index, tool) in tools.into_iter().enumerate() {
        let mut tool = Params::of(format!("tools[{index}]"), tool)?;
        let kind_path = tool.path("type");
        if tool.need_string("type")? != "function" {
            return Err(ApiError::unsupported(kind_path, "Only tools of type 'function' are supported"));
        }
        let mut function = match form {
            ToolForm::Chat => {
                let path = tool.path("function");
                let function = tool.object("function")?.ok_or_else(|| missing(&path))?;
                tool.finish()?;
                function
            }
            ToolForm::Response => tool,
        };
        let name_path = function.path("name");
        let name = function.need_string("name")?;
        if !is_function_name(&name) {
            return Err(ApiError::invalid(
                name_path,
                "A function name has 1 to 64 letters, digits, '_' or '-' and is not 'none', 'auto' or 'required'",
            ));
        }
        if out.iter().any(|other| other["function"]["name"] == *name) {
            return Err(ApiError::invalid(name_path, format!("The function '{name}' is listed twice")));
        }
        let mut definition = Map::new();
        definition.insert("name".into(), json!(name));
        if let Some(description) = function.string("description")? {
            definition.insert("description".into(), json!(description));
        }
        let parameters_path = function.path("parameters");
        if let Some(parameters) = function.take("parameters") {
            if !parameters.is_object() {
                return Err(wrong_type(&parameters_path, "an object", &parameters));
            }
            definition.insert("parameters".into(), parameters);
        }
        if let Some(strict) = function.boolean("strict")? {
            definition.insert("strict".into(), json!(strict));
        }
        function.finish()?;
        out.push(json!({"type": "function", "function": definition}));
    }
    Ok(out)
}

fn tool_choice_of(params: &mut Params, tools: &[Value], form: ToolForm) -> Result<String, ApiError> {
    let Some(choice) = params.take("tool_choice") else {
        return Ok(if tools.is_empty() { "none" } else { "auto" }.into());
    };
    let name = match choice {
        Value::String(word) if ["none", "auto", "required"].contains(&&*word) => {
            if tools.is_empty() && word == "required" {
                return Err(ApiError::invalid("tool_choice", "'tool_choice' 'required' needs 'tools'"));
            }
            return Ok(if tools.is_empty() { "none".into() } else { word });
        }
        Value::Object(fields) => {
            let mut choice = Params::of("tool_choice".into(), Value::Object(fields))?;
            if choice.need_string("type")? != "function" {
                return Err(ApiError::unsupported("tool_choice.type", "Only 'function' is supported here"));
            }
            let name = match form {
                ToolForm::Chat => {
                    let mut function =
                        choice.object("function")?.ok_or_else(|| missing("tool_choice.function"))?;
                    let name = function.need_string("name")?;
                    function.finish()?;
                    name
                }
                ToolForm::Response => choice.need_string("name")?,
            };
            choice.finish()?;
            name
        }
        Value::String(_) => {
            return Err(ApiError::invalid(
                "tool_choice",
                "'tool_choice' is 'none', 'auto', 'required' or an object that names a function",
            ));
        }
        other => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    };
    if !tools.iter().any(|tool| tool["function"]["name"] == *name) {
        return Err(ApiError::invalid("tool_choice", format!("The function '{name}' is not among 'tools'")));
    }
    Ok(name)
}

fn chat_messages(params: &mut Params) -> Result<Vec<Message>, ApiError> {
    let messages = params.array("messages")?.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() || messages.len() > limits::MESSAGES {
        return Err(ApiError::invalid("messages", "'messages' has 1 to 4096 entries"));
    }
    let mut out = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        out.push(chat_message(Params::of(format!("messages[{index}]"), message)?)?);
    }
    Ok(out)
}

fn chat_message(mut message: Params) -> Result<Message, ApiError> {
    let role = role_of(&mut message)?;
    let content_path = message.path("content");
    let content = message.take("content");
    let name = message.string("name")?;
    let tool_calls_path = message.path("tool_calls");
    let tool_calls = message.array("tool_calls")?;
    let id_path = message.path("tool_call_id");
    let tool_call_id = message.string("tool_call_id")?;
    // Fields of answers that clients send back as they got them.
    let refusal = message.string("refusal")?;
    for echoed in ["annotations", "assay", "reasoning_content"] {
        message.take(echoed);
    }
    for unsupported in ["audio", "function_call"] {
        if message.take(unsupported).is_some() {
            let path = message.path(unsupported);
            return Err(ApiError::unsupported(&*path, format!("'{path}' is not supported")));
        }
    }
    message.finish()?;
    if tool_calls.is_some() && role != "assistant" {
        return Err(ApiError::invalid(
            tool_calls_path,
            "Only messages of the role 'assistant' have tool calls",
        ));
    }
    match (role == "tool", &tool_call_id) {
        (true, None) => return Err(missing(&id_path)),
        (false, Some(_)) => {
            return Err(ApiError::invalid(id_path, "Only messages of the role 'tool' answer a tool call"));
        }
        _ => {}
    }
    let content = match content {
        Some(content) => text_of(content, &content_path)?,
        None if tool_calls.is_some() => String::new(),
        None => refusal.ok_or_else(|| missing(&content_path))?,
    };
    let tool_calls = match tool_calls {
        Some(calls) if !calls.is_empty() => {
            let mut out = Vec::with_capacity(calls.len());
            for (index, call) in calls.into_iter().enumerate() {
                out.push(tool_call(Params::of(format!("{tool_calls_path}[{index}]"), call)?)?);
            }
            Some(Value::Array(out).to_string())
        }
        _ => None,
    };
    Ok(Message { role, content, name, tool_calls, tool_call_id })
}

fn role_of(message: &mut Params) -> Result<String, ApiError> {
    let path = message.path("role");
    let role = message.need_string("role")?;
    match &*role {
        "system" | "user" | "assistant" | "tool" => Ok(role),
        // The newer name of the same thing; chat templates know the older one.
        "developer" => Ok("system".into()),
        _ => Err(ApiError::invalid(
            path,
            format!("Unknown role '{role}': use 'system', 'developer', 'user', 'assistant' or 'tool'"),
        )),
    }
}

fn tool_call(mut call: Params) -> Result<Value, ApiError> {
    let id = call.need_string("id")?;
    let kind_path = call.path("type");
    if call.string("type")?.is_some_and(|kind| kind != "function") {
        return Err(ApiError::unsupported(kind_path, "Only calls of type 'function' are supported"));
    }
    let path = call.path("function");
    let mut function = call.object("function")?.ok_or_else(|| missing(&path))?;
    let name = function.need_string("name")?;
    let arguments = function.need_string("arguments")?;
    function.finish()?;
    call.take("index"); // of a stream's deltas, sent back as they came
    call.finish()?;
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// Text that is written as a string or as an array of text parts.
fn text_of(content: Value, path: &str) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let mut out = String::new();
            for (index, part) in parts.into_iter().enumerate() {
                let mut part = Params::of(format!("{path}[{index}]"), part)?;
                let kind_path = part.path("type");
                let kind = part.need_string("type")?;
                match &*kind {
                    "text" | "input_text" | "output_text" => out.push_str(&part.need_string("text")?),
                    "refusal" => out.push_str(&part.need_string("refusal")?),
                    _ => {
                        return Err(ApiError::unsupported(
                            kind_path,
                            format!(
                                "Content of type '{kind}' is not supported: the models here read text only"
                            ),
                        ));
                    }
                }
                for echoed in ["annotations", "logprobs"] {
                    part.take(echoed);
                }
                part.finish()?;
            }
            Ok(out)
        }
        other => Err(wrong_type(path, "a string or an array of parts", &other)),
    }
}

fn response_input(input: Value, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let items = match input {
        Value::String(text) => {
            messages.push(Message { role: "user".into(), content: text, ..Message::default() });
            return Ok(());
        }
        Value::Array(items) => items,
        other => return Err(wrong_type("input", "a string or an array", &other)),
    };
    if items.is_empty() || items.len() > limits::MESSAGES {
        return Err(ApiError::invalid("input", "'input' has 1 to 4096 entries"));
    }
    for (index, item) in items.into_iter().enumerate() {
        let mut item = Params::of(format!("input[{index}]"), item)?;
        let kind_path = item.path("type");
        let kind = item.string("type")?.unwrap_or_else(|| "message".into());
        item.take("status"); // of answers that are sent back
        match &*kind {
            "message" => {
                item.string("id")?;
                let role = role_of(&mut item)?;
                let path = item.path("content");
                let content = text_of(item.need("content")?, &path)?;
                messages.push(Message { role, content, ..Message::default() });
            }
            "function_call" => {
                item.string("id")?;
                let id = item.need_string("call_id")?;
                let name = item.need_string("name")?;
                let arguments = item.need_string("arguments")?;
                let call =
                    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
                add_tool_call(messages, call);
            }
            "function_call_output" => {
                item.string("id")?;
                let id = item.need_string("call_id")?;
                let path = item.path("output");
                let content = text_of(item.need("output")?, &path)?;
                messages.push(Message {
                    role: "tool".into(),
                    content,
                    tool_call_id: Some(id),
                    ..Message::default()
                });
            }
            _ => {
                return Err(ApiError::unsupported(
                    kind_path,
                    format!("Input of type '{kind}' is not supported"),
                ));
            }
        }
        item.finish()?;
    }
    Ok(())
}

/// Several function calls in a row are one assistant message in the chat form.
fn add_tool_call(messages: &mut Vec<Message>, call: Value) {
    if let Some(last) = messages.last_mut()
        && last.role == "assistant"
    {
        let calls = last.tool_calls.as_deref().and_then(|calls| serde_json::from_str(calls).ok());
        let mut calls: Vec<Value> = calls.unwrap_or_default();
        calls.push(call);
        last.tool_calls = Some(Value::Array(calls).to_string());
    } else {
        messages.push(Message {
            role: "assistant".into(),
            tool_calls: Some(json!([call]).to_string()),
            ..Message::default()
        });
    }
}

/// Prompts of the field `name`: a text, token ids, or a list of either.
pub(crate) fn prompts_of(prompt: Value, name: &str) -> Result<Vec<Prompt>, ApiError> {
    match prompt {
        Value::String(text) => Ok(vec![Prompt::Text(text)]),
        Value::Array(entries) if entries.is_empty() => {
            Err(ApiError::invalid(name, format!("'{name}' must not be empty")))
        }
        Value::Array(entries) if entries[0].is_number() => {
            Ok(vec![Prompt::Tokens(token_ids(entries, name)?)])
        }
        Value::Array(entries) => entries
            .into_iter()
            .enumerate()
            .map(|(index, entry)| match entry {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(tokens) => Ok(Prompt::Tokens(token_ids(tokens, &format!("{name}[{index}]"))?)),
                other => Err(wrong_type(&format!("{name}[{index}]"), "a string or an array", &other)),
            })
            .collect(),
        other => Err(ApiError::invalid(
            name,
            format!("Invalid type for '{name}': expected a string or an array, but got {}", kind_of(&other)),
        )),
    }
}

fn token_ids(values: Vec<Value>, path: &str) -> Result<Vec<u32>, ApiError> {
    if values.is_empty() || values.len() > limits::TOKENS {
        return Err(ApiError::invalid(path, "A prompt of token ids has 1 to 1048576 of them"));
    }
    values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong_type(&format!("{path}[{index}]"), "a token id", value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { choices_max: 4 };

    fn chat(extra: Value) -> Result<Ask, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        Ask::chat(body.to_string().as_bytes(), BOUNDS)
    }

    /// Every wrong value is refused with a 400 that names the parameter.
    #[test]
    fn wrong_parameters_are_named() {
        for (body, param) in [
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"temperature": 2.5}), "temperature"),
            (json!({"top_p": 1.5}), "top_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": 5}), "n"),
            (json!({"n": 1.5}), "n"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 5, "max_completion_tokens": 6}), "max_tokens"),
            (json!({"stop": 5}), "stop"),
            (json!({"stop": ["a", ""]}), "stop[1]"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"usage": true}}), "stream_options.usage"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
                "messages[0].content[0].type",
            ),
            (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "tool_choice"),
            (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"assay": {"level": "sworn"}}), "assay.level"),
            (json!({"assay": {"level": "signed", "moment": "before_end"}}), "assay.moment"),
            (json!({"functions": []}), "functions"),
            (json!({"best_of": 3}), "best_of"),
            (json!({"model": 5}), "model"),
        ] {
            let error = chat(body.clone()).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
        }
    }

    #[test]
    fn parameters_become_integers() {
        let ask = chat(json!({
            "temperature": 0.7, "top_p": 0.95, "frequency_penalty": -0.5, "logit_bias": {"7": -100, "3": 1.5},
            "seed": -1, "stop": "x", "max_completion_tokens": 9, "logprobs": true, "user": "u", "metadata": {},
        }))
        .unwrap();
        assert_eq!(ask.sampling.temperature_milli, 700);
        assert_eq!(ask.sampling.top_p_ppm, 950_000);
        assert_eq!(ask.sampling.frequency_penalty_milli, -500);
        assert_eq!(ask.sampling.logit_bias, [(3, 1_500), (7, -100_000)]);
        assert_eq!((ask.seed, ask.max_tokens, ask.logprobs), (Some(u64::MAX), Some(9), Some(0)));
        assert_eq!(ask.stop, ["x"]);
    }

    #[test]
    fn tools_and_parts_are_read() {
        let ask = chat(json!({
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "c"},
            ],
        }))
        .unwrap();
        let Prompt::Chat { messages, tools, tool_choice, .. } = &ask.prompts[0] else { panic!("a chat") };
        assert_eq!((&*messages[0].role, &*messages[0].content), ("system", "ab"));
        assert!(messages[1].tool_calls.as_ref().unwrap().contains("\"arguments\":\"{}\""));
        assert_eq!(messages[2].tool_call_id.as_deref(), Some("1"));
        assert_eq!(tool_choice, "f");
        assert!(tools.as_ref().unwrap().contains("\"name\":\"f\""));
    }

    #[test]
    fn completions_take_every_kind_of_prompt() {
        let read = |prompt: Value| {
            Ask::completion(json!({"model": "m", "prompt": prompt}).to_string().as_bytes(), BOUNDS)
        };
        assert_eq!(read(json!("a")).unwrap().prompts, [Prompt::Text("a".into())]);
        assert_eq!(read(json!([1, 2])).unwrap().prompts, [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(read(json!([[1], [2]])).unwrap().prompts.len(), 2);
        assert_eq!(read(json!(["a", "b"])).unwrap().max_tokens, Some(16));
        assert_eq!(read(json!([1, "a"])).unwrap_err().param.as_deref(), Some("prompt[1]"));
        assert_eq!(read(json!([1, -1])).unwrap_err().param.as_deref(), Some("prompt[1]"));
        assert_eq!(read(json!(vec!["a"; 5])).unwrap_err().param.as_deref(), Some("prompt"));
    }

    #[test]
    fn responses_become_a_chat() {
        let body = json!({
            "model": "m", "instructions": "be brief", "max_output_tokens": 5,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "input": [
                {"role": "user", "content": "hi"},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ],
        });
        let ask = Ask::response(body.to_string().as_bytes(), BOUNDS).unwrap();
        let Prompt::Chat { messages, .. } = &ask.prompts[0] else { panic!("a chat") };
        let roles: Vec<&str> = messages.iter().map(|message| &*message.role).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert!(matches!(&ask.constraint, Constraint::JsonSchema(_)));
        let stored = json!({"model": "m", "input": "x", "previous_response_id": "r"});
        let error = Ask::response(stored.to_string().as_bytes(), BOUNDS).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
    }

    #[test]
    fn bodies_that_are_not_json_objects_are_refused() {
        for body in ["", "[]", "{", "5", "\u{0}"] {
            assert_eq!(Ask::chat(body.as_bytes(), BOUNDS).unwrap_err().status.as_u16(), 400, "{body:?}");
        }
    }
}
