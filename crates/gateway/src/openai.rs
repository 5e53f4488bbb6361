//! `/v1/models`, `/v1/chat/completions`, `/v1/completions` and what they share.

use crate::access::Caller;
use crate::ask::{Ask, Bounds};
use crate::clock::now_ms;
use crate::error::ApiError;
use crate::gateway::{Gateway, random};
use crate::serve::{self, Answer, Assay, Delta, Event, Job, Running};
use assay_receipt::{Bytes32, FinishReason, Output, Request, TokenLogprob};
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long a streaming caller waits for the first event before the response begins without it. Until then an error
/// still gets its own HTTP status.
const QUIET: Duration = Duration::from_secs(8);
/// Pause after which an idle stream sends a comment, so that nobody in between gives up on it.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A parsed request and the answers on their way, one for each choice.
pub(crate) struct Started {
    pub(crate) ask: Ask,
    pub(crate) model: Bytes32,
    pub(crate) id: String,
    pub(crate) created_s: u64,
    pub(crate) seed: u64,
    pub(crate) running: Vec<Running>,
    /// Held until the response ends.
    pub(crate) place: OwnedSemaphorePermit,
}

/// The limits of the configuration for one request.
pub(crate) fn bounds(gateway: &Gateway) -> Bounds {
    Bounds { choices_max: gateway.config.choices_max }
}

/// Sends what was asked for on its way. How the model writes its tokens is known when this returns, if log-probabilities
/// were asked for.
pub(crate) async fn start(
    gateway: &Arc<Gateway>,
    ask: Ask,
    key: &str,
    prefix: &'static str,
) -> Result<Started, ApiError> {
    let place = Arc::clone(&gateway.request_slots).try_acquire_owned().map_err(|_| {
        ApiError::rate_limited("The gateway serves as many requests as it may; try again later", 1)
    })?;
    let members = gateway.members()?;
    let model = gateway.model(&members, &ask.model)?;
    let policy = gateway.policy(&members, &model, ask.verification, key)?;
    if ask.logprobs.is_some() {
        gateway.vocabularies.load(gateway, model).await;
    }
    let seed = match ask.seed {
        Some(seed) => seed,
        // 53 bits, so that every JSON reader can send it back exactly.
        None => u64::from_le_bytes(random::<8>().map_err(ApiError::from)?) >> 11,
    };
    let created_s = now_ms() / 1_000;
    let mut requests = Vec::new();
    for (prompt, choice) in
        ask.prompts.iter().flat_map(|prompt| (0..ask.n).map(move |choice| (prompt, choice)))
    {
        let mut sampling = ask.sampling.clone();
        sampling.seed = seed.wrapping_add(choice.into());
        let request = Request {
            model,
            prompt: prompt.clone(),
            max_tokens: ask.max_tokens.unwrap_or(gateway.config.max_tokens_default),
            stop: ask.stop.clone(),
            sampling,
            constraint: ask.constraint.clone(),
            logprobs: ask.logprobs,
            now_unix_s: created_s,
        };
        request.validate().map_err(|error| ApiError::bad_body(error.to_string()))?;
        gateway.provable(&members, &request, policy).await?;
        requests.push(request);
    }
    let mut running: Vec<Running> = Vec::new();
    for request in requests {
        let job = Job {
            prefix,
            model_name: ask.model.clone(),
            request,
            policy,
            sample_ppm: ask.verification.sample_ppm,
            key: key.to_owned(),
            streams: ask.stream,
            inference: None,
            proof: None,
        };
        running.push(serve::start(gateway, job).await?);
    }
    let id = running.first().map(|running| running.request_id.clone()).unwrap_or_default();
    Ok(Started { ask, model, id, created_s, seed, running, place })
}

/// Waits for all choices.
pub(crate) async fn collect(running: Vec<Running>) -> Result<Vec<Answer>, ApiError> {
    let mut answers = Vec::with_capacity(running.len());
    for mut running in running {
        loop {
            match running.events.recv().await {
                Some(Event::Delta(_)) => {}
                Some(Event::Done(answer)) => break answers.push(*answer),
                Some(Event::Failed(error)) => return Err(*error),
                None => return Err(ApiError::internal("The request was given up").about(&running.request_id)),
            }
        }
    }
    Ok(answers)
}

/// The events of all choices as they come, each with the index of its choice.
pub(crate) fn events(running: Vec<Running>) -> BoxStream<'static, (usize, Event)> {
    let streams = running.into_iter().enumerate().map(|(index, running)| {
        Box::pin(stream::unfold(running, move |mut running| async move {
            running.events.recv().await.map(|event| ((index, event), running))
        }))
    });
    stream::select_all(streams).boxed()
}

/// Waits for the first event: an error that comes right away gets its own HTTP status.
pub(crate) async fn first_event(
    mut events: BoxStream<'static, (usize, Event)>,
) -> Result<BoxStream<'static, (usize, Event)>, ApiError> {
    match timeout(QUIET, events.next()).await {
        Ok(Some((_, Event::Failed(error)))) => Err(*error),
        Ok(Some(first)) => Ok(stream::once(async { first }).chain(events).boxed()),
        Ok(None) => Err(ApiError::internal("The request was given up")),
        Err(_) => Ok(events),
    }
}

/// A stream of server-sent events. The place is given back when it ends or the caller leaves.
pub(crate) fn server_sent(
    lines: impl Stream<Item = String> + Send + 'static,
    place: OwnedSemaphorePermit,
    id: &str,
) -> Response {
    let beating = stream::unfold((lines.boxed(), place), |(mut lines, place)| async move {
        match timeout(HEARTBEAT, lines.next()).await {
            Ok(line) => line.map(|line| (Ok::<_, Infallible>(Bytes::from(line)), (lines, place))),
            Err(_) => Some((Ok(Bytes::from_static(b": waiting\n\n")), (lines, place))),
        }
    });
    let mut response = Response::new(Body::from_stream(beating));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    request_headers(headers, id);
    response
}

/// One event without a name.
pub(crate) fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn request_headers(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert("x-request-id", value.clone());
        headers.insert("x-assay-request-id", value);
    }
    if let Ok(value) = HeaderValue::from_str(&format!("/assay/receipts/{id}")) {
        headers.insert("x-assay-bundle", value);
    }
}

/// A complete answer with its receipt in the headers as well.
pub(crate) fn complete(body: Value, assay: &Assay) -> Response {
    let mut response = axum::Json(body).into_response();
    let headers = response.headers_mut();
    request_headers(headers, &assay.request_id);
    for (name, value) in [
        ("x-assay-receipt", assay.receipt_hash.to_string()),
        ("x-assay-worker", assay.worker.to_string()),
        ("x-assay-state", assay.state.to_owned()),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}

/// Prompt and completion tokens of a choice.
type Tokens = (u32, u32);

fn tokens(output: &Output) -> Tokens {
    (output.prompt_tokens, output.completion_tokens)
}

/// The `usage` of a response whose choices, `n` for each prompt in order, took these tokens.
///
/// Each prompt is counted once, as callers of this protocol expect. That is not the bill: every choice is a request of
/// its own to a worker, whose receipt charges for the prompt too. The receipts of the choices and `/assay/usage` say what
/// is billed.
fn usage(choices: &[Tokens], n: usize) -> Value {
    let prompt: u64 = choices.iter().step_by(n.max(1)).map(|(prompt, _)| u64::from(*prompt)).sum();
    let completion: u64 = choices.iter().map(|(_, completion)| u64::from(*completion)).sum();
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
    })
}

pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

/// The tool calls of an answer, in the chat form.
pub(crate) fn tool_calls(output: &Output) -> Vec<Value> {
    let calls = output.tool_calls.as_deref().and_then(|calls| serde_json::from_str(calls).ok());
    calls.unwrap_or_default()
}

/// Text and bytes of tokens, for log-probabilities.
pub(crate) struct Spelling {
    model: Bytes32,
    gateway: Arc<Gateway>,
}

impl Spelling {
    pub(crate) fn new(gateway: &Arc<Gateway>, model: Bytes32) -> Spelling {
        Spelling { model, gateway: Arc::clone(gateway) }
    }

    /// The token as it is written, and its bytes where they are known.
    fn of(&self, token: u32) -> (String, Option<Vec<u8>>) {
        match self.gateway.vocabularies.bytes(&self.model, token) {
            Some(bytes) => (String::from_utf8_lossy(&bytes).into_owned(), Some(bytes)),
            None => (format!("token_id:{token}"), None),
        }
    }

    fn entry(&self, token: u32, logprob_q16: i32) -> Value {
        let (text, bytes) = self.of(token);
        json!({"token": text, "logprob": probability(logprob_q16), "bytes": bytes, "token_id": token})
    }

    /// The form of chats and responses.
    pub(crate) fn chat(&self, logprobs: &[TokenLogprob]) -> Vec<Value> {
        let entries = logprobs.iter().map(|logprob| {
            let mut entry = self.entry(logprob.token, logprob.logprob_q16);
            let top = logprob.top.iter().map(|&(token, value)| self.entry(token, value));
            entry["top_logprobs"] = top.collect();
            entry
        });
        entries.collect()
    }

    /// The form of completions. `offset` is where the tokens begin in the text, in characters.
    fn completion(&self, logprobs: &[TokenLogprob], mut offset: usize) -> (Value, usize) {
        let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for logprob in logprobs {
            let (text, _) = self.of(logprob.token);
            values.push(probability(logprob.logprob_q16));
            let top: Map<String, Value> = logprob
                .top
                .iter()
                .map(|&(token, value)| (self.of(token).0, json!(probability(value))))
                .collect();
            tops.push(top);
            offsets.push(offset);
            offset += text.chars().count();
            tokens.push(text);
        }
        let value =
            json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets});
        (value, offset)
    }
}

fn probability(q16: i32) -> f64 {
    f64::from(q16) / 65_536.0
}

/// `GET /v1/models`
pub(crate) async fn models(State(gateway): State<Arc<Gateway>>) -> Result<Response, ApiError> {
    let members = gateway.members()?;
    let models: Vec<Value> =
        model_names(&gateway, &members).iter().map(|(name, _)| model_object(name)).collect();
    Ok(axum::Json(json!({"object": "list", "data": models})).into_response())
}

/// `GET /v1/models/{model}`
pub(crate) async fn model(
    State(gateway): State<Arc<Gateway>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Response, ApiError> {
    gateway.model(&*gateway.members()?, &name)?;
    Ok(axum::Json(model_object(&name)).into_response())
}

fn model_object(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "assay"})
}

/// Every name that is offered, with the model it stands for.
pub(crate) fn model_names(gateway: &Gateway, members: &assay_receipt::Members) -> Vec<(String, Bytes32)> {
    let mut names: Vec<String> = members
        .members
        .iter()
        .flat_map(|member| member.models.iter().map(|offer| offer.name.clone()))
        .collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(|name| Some((name.clone(), gateway.model(members, &name).ok()?))).collect()
}

/// `POST /v1/chat/completions`
pub(crate) async fn chat(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let ask = Ask::chat(&body, bounds(&gateway))?;
    let started = start(&gateway, ask, &caller.key, "chatcmpl-").await?;
    let model = started.model;
    let spelling = Spelling::new(&gateway, model);
    if !started.ask.stream {
        return chat_complete(started, &spelling).await;
    }
    let Started { ask, id, created_s, running, place, .. } = started;
    let events = first_event(events(running)).await?;
    let head = json!({
        "id": id, "object": "chat.completion.chunk", "created": created_s, "model": ask.model,
        "system_fingerprint": fingerprint(&model),
    });
    let logprobs = ask.logprobs.is_some();
    let chunk = move |index: usize, delta: Value, logprobs: Value, finish: Value| {
        let mut chunk = head.clone();
        chunk["choices"] =
            json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        if ask.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let choices = ask.n as usize;
    let last = chunk(0, Value::Null, Value::Null, Value::Null);
    let lines =
        lines(events, choices, ask.include_usage.then_some(choices), last, move |started, index, event| {
            let mut out = String::new();
            if !std::mem::replace(started, true) {
                let role = json!({"role": "assistant", "content": ""});
                out.push_str(&data(&chunk(index, role, Value::Null, Value::Null)));
            }
            match event {
                Piece::Delta(Delta { text, logprobs: pieces }) => {
                    let logprobs =
                        if logprobs { json!({"content": spelling.chat(pieces)}) } else { Value::Null };
                    out.push_str(&data(&chunk(index, json!({"content": text}), logprobs, Value::Null)));
                }
                Piece::Done(answer) => {
                    let calls = tool_calls(&answer.output);
                    for (number, mut call) in calls.into_iter().enumerate() {
                        if let Some(call) = call.as_object_mut() {
                            call.insert("index".into(), json!(number));
                        }
                        let delta = json!({"tool_calls": [call]});
                        out.push_str(&data(&chunk(index, delta, Value::Null, Value::Null)));
                    }
                    let finish = json!(finish_reason(answer.output.finish_reason));
                    let mut end = chunk(index, json!({}), Value::Null, finish);
                    end["assay"] = json!(answer.assay);
                    out.push_str(&data(&end));
                }
            }
            out
        });
    Ok(server_sent(lines, place, &id))
}

/// Changes exactly when the model does.
fn fingerprint(model: &Bytes32) -> String {
    format!("fp_{}", &model.to_string()[2..14])
}

async fn chat_complete(started: Started, spelling: &Spelling) -> Result<Response, ApiError> {
    let Started { ask, id, created_s, running, place, seed, .. } = started;
    let answers = collect(running).await?;
    drop(place);
    let choices: Vec<Value> = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| {
            let output = &answer.output;
            let calls = tool_calls(output);
            // Content is null where there are only tool calls, as the official clients expect.
            let content =
                if calls.is_empty() || !output.text.is_empty() { json!(output.text) } else { Value::Null };
            let mut message = json!({"role": "assistant", "content": content, "refusal": null});
            if !calls.is_empty() {
                message["tool_calls"] = Value::Array(calls);
            }
            let logprobs = match ask.logprobs {
                Some(_) => json!({"content": spelling.chat(&output.logprobs), "refusal": null}),
                None => Value::Null,
            };
            json!({
                "index": index, "message": message, "logprobs": logprobs,
                "finish_reason": finish_reason(output.finish_reason), "assay": answer.assay,
            })
        })
        .collect();
    let used: Vec<Tokens> = answers.iter().map(|answer| tokens(&answer.output)).collect();
    let Some(first) = answers.first() else { return Err(ApiError::internal("No choice was asked for")) };
    let body = json!({
        "id": id, "object": "chat.completion", "created": created_s, "model": ask.model,
        "system_fingerprint": fingerprint(&first.assay.model), "seed": seed,
        "choices": choices, "usage": usage(&used, ask.n as usize), "assay": first.assay,
    });
    Ok(complete(body, &first.assay))
}

/// An event of a stream that is no error.
enum Piece<'a> {
    Delta(&'a Delta),
    Done(&'a Answer),
}

/// The lines of a stream in the chat or completion form: one text for each event, then usage when wanted, then the end.
/// An error ends it. `usage_of` is the number of choices for each prompt where usage is wanted. `write` gets a flag of its own for each choice, false at first.
fn lines(
    events: BoxStream<'static, (usize, Event)>,
    choices: usize,
    usage_of: Option<usize>,
    mut last: Value,
    mut write: impl FnMut(&mut bool, usize, Piece<'_>) -> String + Send + 'static,
) -> impl Stream<Item = String> + Send + 'static {
    let mut flags = vec![false; choices];
    let mut used: Vec<Tokens> = vec![(0, 0); choices];
    let mut ended = false;
    stream::unfold((events, false), |(mut events, over)| async move {
        if over {
            return None;
        }
        match events.next().await {
            Some((index, event)) => {
                let failed = matches!(event, Event::Failed(_));
                Some((Some((index, event)), (events, failed)))
            }
            None => Some((None, (events, true))),
        }
    })
    .map(move |event| match event {
        Some((index, Event::Delta(delta))) => write(&mut flags[index], index, Piece::Delta(&delta)),
        Some((index, Event::Done(answer))) => {
            let text = write(&mut flags[index], index, Piece::Done(&answer));
            used[index] = tokens(&answer.output);
            text
        }
        Some((_, Event::Failed(error))) => {
            ended = true;
            data(&error.body())
        }
        None if ended => String::new(),
        None => {
            let mut text = String::new();
            if let Some(n) = usage_of {
                last["choices"] = json!([]);
                last["usage"] = usage(&used, n);
                text.push_str(&data(&last));
            }
            text.push_str("data: [DONE]\n\n");
            text
        }
    })
}

/// `POST /v1/completions`
pub(crate) async fn completions(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let ask = Ask::completion(&body, bounds(&gateway))?;
    let started = start(&gateway, ask, &caller.key, "cmpl-").await?;
    let model = started.model;
    let spelling = Spelling::new(&gateway, model);
    let Started { ask, id, created_s, running, place, seed, .. } = started;
    let head = json!({
        "id": id, "object": "text_completion", "created": created_s, "model": ask.model,
        "system_fingerprint": fingerprint(&model),
    });
    let logprobs = ask.logprobs.is_some();
    let choice = move |index: usize, text: &str, logprobs: Value, finish: Value| json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish});
    if !ask.stream {
        let answers = collect(running).await?;
        drop(place);
        let choices: Vec<Value> = answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                let output = &answer.output;
                let logprobs =
                    if logprobs { spelling.completion(&output.logprobs, 0).0 } else { Value::Null };
                let finish = json!(finish_reason(output.finish_reason));
                let mut choice = choice(index, &output.text, logprobs, finish);
                choice["assay"] = json!(answer.assay);
                choice
            })
            .collect();
        let Some(first) = answers.first() else { return Err(ApiError::internal("No choice was asked for")) };
        let mut body = head;
        body["seed"] = json!(seed);
        body["choices"] = Value::Array(choices);
        let used: Vec<Tokens> = answers.iter().map(|answer| tokens(&answer.output)).collect();
        body["usage"] = usage(&used, ask.n as usize);
        body["assay"] = json!(first.assay);
        return Ok(complete(body, &first.assay));
    }
    let choices = running.len();
    let events = first_event(events(running)).await?;
    let include_usage = ask.include_usage;
    let mut offsets = vec![0; choices];
    let last = head.clone();
    let lines =
        lines(events, choices, include_usage.then_some(ask.n as usize), last, move |_, index, event| {
            let mut chunk = head.clone();
            if include_usage {
                chunk["usage"] = Value::Null;
            }
            match event {
                Piece::Delta(Delta { text, logprobs: pieces }) => {
                    let logprobs = if logprobs {
                        let (value, offset) = spelling.completion(pieces, offsets[index]);
                        offsets[index] = offset;
                        value
                    } else {
                        Value::Null
                    };
                    chunk["choices"] = json!([choice(index, text, logprobs, Value::Null)]);
                }
                Piece::Done(answer) => {
                    let finish = json!(finish_reason(answer.output.finish_reason));
                    chunk["choices"] = json!([choice(index, "", Value::Null, finish)]);
                    chunk["assay"] = json!(answer.assay);
                }
            }
            data(&chunk)
        });
    Ok(server_sent(lines, place, &id))
}
