//! Answers from another server that speaks the OpenAI protocol. They are signed, and nobody can replay them.

use std::time::Duration;

use assay_receipt::{Constraint, FailureCode, FinishReason, Output, Prompt, Request};
use futures_util::StreamExt as _;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Trouble};
use crate::{Error, Forward};

/// Longest line of the upstream's event stream, in bytes.
const LINE: usize = 1 << 20;
/// Longest error body that is read from the upstream, in bytes.
const COMPLAINT: usize = 16 << 10;
/// Time to reach the upstream, and longest silence within its stream.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(120);

/// A client of one upstream.
pub(crate) struct Upstream {
    client: reqwest::Client,
    base_url: String,
    model: String,
    authorization: Option<HeaderValue>,
}

impl Upstream {
    pub(crate) fn new(config: &Forward) -> Result<Upstream, Error> {
        let start = |fault: String| Error::Start { fault };
        let authorization = match &config.api_key_env {
            None => None,
            Some(name) => {
                let missing = || Error::ApiKey { name: name.clone() };
                let key = std::env::var(name).map_err(|_| missing())?;
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {}", key.trim())).map_err(|_| missing())?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut roots = rustls::RootCertStore::empty();
        if config.base_url.starts_with("https://") {
            for certificate in rustls_native_certs::load_native_certs().certs {
                let _ = roots.add(certificate); // a root that rustls cannot read is one that it cannot trust
            }
            if roots.is_empty() {
                return Err(start(
                    "this machine has no root certificates to check the upstream with".to_owned(),
                ));
            }
        }
        let tls =
            rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .map_err(|fault| start(fault.to_string()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|fault| start(fault.to_string()))?;
        Ok(Upstream {
            client,
            base_url: config.base_url.trim_end_matches('/').to_owned(),
            model: config.upstream_model.clone(),
            authorization,
        })
    }

    /// Streams the upstream's answer and signs it.
    pub(crate) async fn answer(&self, mut answer: Answer) {
        match self.stream(&mut answer).await {
            Ok(output) => answer.finish(output).await,
            Err(trouble) => answer.fail(trouble).await,
        }
    }

    async fn stream(&self, answer: &mut Answer) -> Result<Output, Trouble> {
        let (path, body) = translate(&answer.call.request, &self.model)?;
        let mut request = self.client.post(format!("{}/{path}", self.base_url)).json(&body);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = answer
            .within_limits(async {
                let response = request.send().await.map_err(|fault| upstream(describe(&fault)))?;
                let status = response.status();
                if status.is_success() {
                    return Ok(response);
                }
                let text = complaint(response).await;
                Err(match status.as_u16() {
                    400 | 404 | 413 | 422 => Trouble::new(
                        FailureCode::BadRequest,
                        format!("The upstream refused the request with status {status}: {text}"),
                    ),
                    429 => upstream("the upstream is busy (status 429)").retry_after(2_000),
                    // What a failing server says may contain its secrets, so only the status is passed on.
                    _ => upstream(format!("the upstream answered with status {status}")).retry_after(5_000),
                })
            })
            .await?;

        let mut bytes = response.bytes_stream();
        let (mut pending, mut reading) = (Vec::new(), Reading::default());
        while !reading.done {
            let Some(piece) = answer.within_limits(async { Ok(bytes.next().await) }).await? else { break };
            pending.extend_from_slice(&piece.map_err(|fault| upstream(describe(&fault)))?);
            let mut text = String::new();
            let mut used = 0;
            while let Some(end) = pending[used..].iter().position(|byte| *byte == b'\n') {
                text.push_str(&reading.line(&pending[used..used + end])?);
                used += end + 1;
            }
            pending.drain(..used);
            if pending.len() > LINE {
                return Err(upstream("the upstream sent a line that is too long"));
            }
            if let Some(line) = answer.chunk(text, Vec::new(), Vec::new())? {
                answer.within_limits(answer.send(line)).await?;
            }
        }
        reading.output(answer.call.request.max_tokens)
    }
}

fn upstream(reason: impl std::fmt::Display) -> Trouble {
    Trouble::new(FailureCode::Upstream, format!("The server behind this worker failed: {reason}."))
}

/// An error of the HTTP client without the URL, which is the operator's business.
fn describe(fault: &reqwest::Error) -> &'static str {
    if fault.is_connect() {
        "it cannot be reached"
    } else if fault.is_timeout() {
        "it is silent for too long"
    } else {
        "the connection broke"
    }
}

async fn complaint(response: reqwest::Response) -> String {
    let mut bytes = response.bytes_stream();
    let mut body = Vec::new();
    while let Some(Ok(piece)) = bytes.next().await {
        body.extend_from_slice(&piece);
        if body.len() > COMPLAINT {
            break;
        }
    }
    let message = serde_json::from_slice::<Value>(&body).ok().and_then(|value| {
        let error = value.get("error")?;
        error.get("message").unwrap_or(error).as_str().map(str::to_owned)
    });
    let mut message = message.unwrap_or_else(|| "no reason given".to_owned());
    message.truncate(message.floor_char_boundary(1_000));
    message
}

/// The request in the upstream's words: path below the base URL, and body.
fn translate(request: &Request, model: &str) -> Result<(&'static str, Value), Trouble> {
    let bad = |text: &str| Trouble::new(FailureCode::BadRequest, text);
    let text = |what: &str, json: &str| {
        serde_json::from_str::<Value>(json)
            .map_err(|_| bad(&format!("{what} is not JSON: send a JSON array.")))
    };
    if request.logprobs.is_some() {
        return Err(bad(
            "A forwarded model has no token ids to report log-probabilities for: leave logprobs out.",
        ));
    }
    let sampling = &request.sampling;
    let ratio = |value: i64, unit: f64| json!(value as f64 / unit);
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(model));
    body.insert("stream".to_owned(), json!(true));
    body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    body.insert("max_tokens".to_owned(), json!(request.max_tokens));
    body.insert("temperature".to_owned(), ratio(sampling.temperature_milli.into(), 1e3));
    body.insert("top_p".to_owned(), ratio(sampling.top_p_ppm.into(), 1e6));
    // The protocol's seeds are signed.
    body.insert("seed".to_owned(), json!(sampling.seed & (i64::MAX as u64)));
    // Extensions are only named when they are used, since strict servers refuse them.
    if sampling.frequency_penalty_milli != 0 {
        body.insert("frequency_penalty".to_owned(), ratio(sampling.frequency_penalty_milli.into(), 1e3));
    }
    if sampling.presence_penalty_milli != 0 {
        body.insert("presence_penalty".to_owned(), ratio(sampling.presence_penalty_milli.into(), 1e3));
    }
    if sampling.top_k != 0 {
        body.insert("top_k".to_owned(), json!(sampling.top_k));
    }
    if sampling.min_p_ppm != 0 {
        body.insert("min_p".to_owned(), ratio(sampling.min_p_ppm.into(), 1e6));
    }
    if sampling.repetition_penalty_milli != 1_000 {
        body.insert("repetition_penalty".to_owned(), ratio(sampling.repetition_penalty_milli.into(), 1e3));
    }
    if !sampling.logit_bias.is_empty() {
        let bias: Map<_, _> = sampling
            .logit_bias
            .iter()
            .map(|&(token, milli)| (token.to_string(), ratio(milli.into(), 1e3)))
            .collect();
        body.insert("logit_bias".to_owned(), bias.into());
    }
    if !request.stop.is_empty() {
        body.insert("stop".to_owned(), json!(request.stop));
    }
    match &request.constraint {
        Constraint::None => {}
        Constraint::Json => {
            body.insert("response_format".to_owned(), json!({ "type": "json_object" }));
        }
        Constraint::JsonSchema(schema) => {
            let schema = text("The JSON schema", schema)?;
            let format = json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema, "strict": true } });
            body.insert("response_format".to_owned(), format);
        }
        Constraint::Regex(_) | Constraint::Grammar(_) => {
            return Err(bad(
                "A forwarded model takes JSON constraints only: use a JSON schema, or another model.",
            ));
        }
    }
    let path = match &request.prompt {
        Prompt::Chat { messages, tools, tool_choice, parallel_tool_calls } => {
            let mut list = Vec::with_capacity(messages.len());
            for message in messages {
                let mut entry = json!({ "role": message.role, "content": message.content });
                if let Some(name) = &message.name {
                    entry["name"] = json!(name);
                }
                if let Some(calls) = &message.tool_calls {
                    entry["tool_calls"] = text("tool_calls", calls)?;
                }
                if let Some(id) = &message.tool_call_id {
                    entry["tool_call_id"] = json!(id);
                }
                list.push(entry);
            }
            body.insert("messages".to_owned(), list.into());
            if let Some(tools) = tools {
                body.insert("tools".to_owned(), text("tools", tools)?);
                let choice = match tool_choice.as_str() {
                    "none" | "auto" | "required" => json!(tool_choice),
                    name => json!({ "type": "function", "function": { "name": name } }),
                };
                body.insert("tool_choice".to_owned(), choice);
                body.insert("parallel_tool_calls".to_owned(), json!(parallel_tool_calls));
            }
            "chat/completions"
        }
        Prompt::Text(prompt) => {
            body.insert("prompt".to_owned(), json!(prompt));
            "completions"
        }
        Prompt::Tokens(tokens) => {
            body.insert("prompt".to_owned(), json!(tokens));
            "completions"
        }
    };
    Ok((path, body.into()))
}

/// The parts of an upstream's event that count. Servers differ in the rest, so unknown fields are let through.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: usize,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

/// Most tool calls in one answer.
const CALLS: usize = 128;

/// What was read of the stream so far.
#[derive(Default)]
struct Reading {
    text: String,
    calls: Vec<(String, String, String)>,
    finish: Option<String>,
    usage: Option<Usage>,
    done: bool,
}

impl Reading {
    /// Takes one line and returns the text that it adds.
    fn line(&mut self, line: &[u8]) -> Result<String, Trouble> {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
            return Ok(String::new()); // comments, event names, blank lines
        };
        if data == b"[DONE]" {
            self.done = true;
            return Ok(String::new());
        }
        let event: Event = serde_json::from_slice(data)
            .map_err(|_| upstream("it sent an event that is not in the OpenAI format"))?;
        if event.error.is_some() {
            return Err(upstream("it reported an error within the stream"));
        }
        if event.usage.is_some() {
            self.usage = event.usage;
        }
        let mut text = String::new();
        for choice in event.choices.into_iter().take(1) {
            text.extend(choice.text);
            if let Some(delta) = choice.delta {
                text.extend(delta.content);
                for call in delta.tool_calls.into_iter().flatten() {
                    if call.index >= CALLS {
                        return Err(upstream("it called too many tools"));
                    }
                    if call.index >= self.calls.len() {
                        self.calls.resize(call.index + 1, Default::default());
                    }
                    let (id, name, arguments) = &mut self.calls[call.index];
                    id.extend(call.id);
                    if let Some(function) = call.function {
                        name.extend(function.name);
                        arguments.extend(function.arguments);
                    }
                }
            }
            if choice.finish_reason.is_some() {
                self.finish = choice.finish_reason;
            }
        }
        self.text.push_str(&text);
        let calls: usize =
            self.calls.iter().map(|(id, name, arguments)| id.len() + name.len() + arguments.len()).sum();
        if self.text.len() + calls > assay_receipt::limits::TEXT_BYTES {
            return Err(upstream("its answer is too long"));
        }
        Ok(text)
    }

    /// The whole answer, once the stream has ended. Nothing is signed that its readers would reject.
    fn output(self, max_tokens: u32) -> Result<Output, Trouble> {
        let finish_reason = match self.finish.as_deref() {
            Some("stop") => FinishReason::Stop,
            Some("length") => FinishReason::Length,
            Some("tool_calls" | "function_call") => FinishReason::ToolCalls,
            Some(_) => return Err(upstream("it ended the answer for a reason that a receipt cannot state")),
            None => return Err(upstream("its stream ended early")),
        };
        let calls: Vec<Value> = self
            .calls
            .into_iter()
            .map(|(id, name, arguments)| {
                json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
            })
            .collect();
        // Usage that the upstream does not state is not charged for.
        let usage = self.usage.unwrap_or(Usage { prompt_tokens: 0, completion_tokens: 0 });
        if usage.completion_tokens > max_tokens {
            return Err(upstream(format!(
                "it reports {} tokens where at most {max_tokens} were asked for",
                usage.completion_tokens
            )));
        }
        let output = Output {
            text: self.text,
            tool_calls: (!calls.is_empty()).then(|| Value::from(calls).to_string()),
            finish_reason,
            tokens: Vec::new(),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            logprobs: Vec::new(),
        };
        output.validate().map_err(|fault| upstream(format!("its answer cannot be signed ({fault})")))?;
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use assay_receipt::{Bytes32, Message};

    use super::*;

    fn chat() -> Request {
        let mut request = Request::from_text(Bytes32::ZERO, "", 5);
        request.prompt = Prompt::Chat {
            messages: vec![Message { role: "user".into(), content: "Hi".into(), ..Message::default() }],
            tools: Some(r#"[{"type":"function","function":{"name":"f"}}]"#.into()),
            tool_choice: "f".into(),
            parallel_tool_calls: false,
        };
        request
    }

    #[test]
    fn a_chat_is_translated_and_extensions_are_named_only_when_used() {
        let mut request = chat();
        request.sampling.temperature_milli = 700;
        let (path, body) = translate(&request, "m").unwrap();
        assert_eq!(path, "chat/completions");
        assert_eq!(body["temperature"], json!(0.7));
        assert_eq!(body["tool_choice"]["function"]["name"], "f");
        assert!(body.get("top_k").is_none() && body.get("repetition_penalty").is_none());
        request.sampling.top_k = 4;
        assert_eq!(translate(&request, "m").unwrap().1["top_k"], 4);
    }

    #[test]
    fn what_the_protocol_cannot_say_is_refused() {
        let faults: [fn(&mut Request); 4] = [
            |request| request.logprobs = Some(0),
            |request| request.constraint = Constraint::Regex("a".into()),
            |request| request.constraint = Constraint::JsonSchema("{".into()),
            |request| {
                if let Prompt::Chat { tools, .. } = &mut request.prompt {
                    *tools = Some("[".into());
                }
            },
        ];
        for fault in faults {
            let mut request = chat();
            fault(&mut request);
            assert_eq!(translate(&request, "m").unwrap_err().code, FailureCode::BadRequest);
        }
    }

    #[test]
    fn tool_calls_are_joined_from_their_pieces() {
        let mut reading = Reading::default();
        for line in [
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"a\""}}]}}]}"#,
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"tool_calls"}]}"#,
            "data: [DONE]",
        ] {
            reading.line(line.as_bytes()).unwrap();
        }
        let output = reading.output(5).unwrap();
        assert_eq!(output.finish_reason, FinishReason::ToolCalls);
        assert_eq!(
            output.tool_calls.unwrap(),
            r#"[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]"#
        );
    }

    #[test]
    fn an_upstream_that_counts_more_tokens_than_were_asked_for_is_not_signed() {
        let read = |count: u32| {
            let mut reading = Reading::default();
            let end = r#"data: {"choices":[{"text":"a","finish_reason":"length"}]"#;
            let line = format!("{end},\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":{count}}}}}");
            reading.line(line.as_bytes()).unwrap();
            reading.output(5)
        };
        assert_eq!(read(5).unwrap().completion_tokens, 5);
        assert_eq!(read(6).unwrap_err().code, FailureCode::Upstream);
    }

    #[test]
    fn endless_arguments_of_calls_are_cut_off() {
        let mut reading = Reading::default();
        let more = "x".repeat(1 << 19);
        let line = format!(
            r#"data: {{"choices":[{{"delta":{{"tool_calls":[{{"index":0,"function":{{"arguments":"{more}"}}}}]}}}}]}}"#
        );
        let fault = (0..100).find_map(|_| reading.line(line.as_bytes()).err()).unwrap();
        assert_eq!(fault.code, FailureCode::Upstream);
    }

    #[test]
    fn hostile_streams_are_upstream_failures() {
        for line in [
            "data: {",
            r#"data: {"error":{"message":"secret"}}"#,
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":4294967295}]}}]}"#,
        ] {
            assert_eq!(Reading::default().line(line.as_bytes()).unwrap_err().code, FailureCode::Upstream);
        }
        assert_eq!(Reading::default().output(5).unwrap_err().code, FailureCode::Upstream);
    }
}
