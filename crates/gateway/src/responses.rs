//! `/v1/responses`, as far as the official clients use it: text, tools and structured output, streamed or whole.
//! Nothing is stored for later turns.

use crate::access::Caller;
use crate::ask::Ask;
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::openai::{
    Spelling, Started, bounds, collect, complete, events, first_event, server_sent, start, tool_calls,
};
use crate::serve::{Answer, Event};
use assay_receipt::{FinishReason, Output, TokenLogprob};
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::Response;
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use std::sync::Arc;

/// What of a request is repeated in the response object.
struct Echo {
    id: String,
    created_s: u64,
    body: Value,
    seed: u64,
}

/// `POST /v1/responses`
pub(crate) async fn responses(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let ask = Ask::response(&body, bounds(&gateway))?;
    // It was just read, so it is JSON.
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Started { ask, model, id, created_s, seed, running, place } =
        start(&gateway, ask, &caller.key, "resp_").await?;
    let echo = Echo { id: id.clone(), created_s, body: sent, seed };
    let spelling = Spelling::new(&gateway, model);
    let logprobs = ask.logprobs.is_some();
    if !ask.stream {
        let answers = collect(running).await?;
        drop(place);
        let Some(answer) = answers.first() else { return Err(ApiError::internal("No answer was asked for")) };
        return Ok(complete(echo.finished(answer, &spelling, logprobs), &answer.assay));
    }
    let events = first_event(events(running)).await?;
    let mut writer = Writer { echo, spelling, logprobs, sequence: 0, text: None };
    let begin = writer.begin();
    let lines = events
        .map(move |(_, event)| match event {
            Event::Delta(delta) => writer.delta(&delta.text, &delta.logprobs),
            Event::Done(answer) => writer.done(&answer),
            Event::Failed(error) => writer.failed(&error),
        })
        .boxed();
    Ok(server_sent(stream::once(async { begin }).chain(lines), place, &id))
}

impl Echo {
    /// The response object.
    fn object(&self, status: &str, output: Vec<Value>) -> Value {
        let sent = |name: &str, default: Value| match self.body.get(name) {
            None | Some(Value::Null) => default,
            Some(value) => value.clone(),
        };
        json!({
            "id": self.id, "object": "response", "created_at": self.created_s, "status": status,
            "background": false, "error": null, "incomplete_details": null,
            "instructions": sent("instructions", Value::Null),
            "max_output_tokens": sent("max_output_tokens", Value::Null),
            "model": sent("model", Value::Null),
            "output": output,
            "parallel_tool_calls": sent("parallel_tool_calls", json!(true)),
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "temperature": sent("temperature", json!(1.0)),
            "text": sent("text", json!({"format": {"type": "text"}})),
            "tool_choice": sent("tool_choice", json!("auto")),
            "tools": sent("tools", json!([])),
            "top_p": sent("top_p", json!(1.0)),
            "truncation": "disabled",
            "usage": null,
            "user": sent("user", Value::Null),
            "metadata": sent("metadata", json!({})),
            "seed": self.seed,
        })
    }

    fn finished(&self, answer: &Answer, spelling: &Spelling, logprobs: bool) -> Value {
        let Output { text, finish_reason, prompt_tokens, completion_tokens, .. } = &answer.output;
        let calls = tool_calls(&answer.output);
        let mut output = Vec::new();
        if !text.is_empty() || calls.is_empty() {
            let entries = if logprobs { spelling.chat(&answer.output.logprobs) } else { Vec::new() };
            output.push(message(&self.id, "completed", vec![part(text, entries)]));
        }
        output.extend(calls.iter().enumerate().map(|(number, call)| function_call(&self.id, number, call)));
        let cut = *finish_reason == FinishReason::Length;
        let mut object = self.object(if cut { "incomplete" } else { "completed" }, output);
        if cut {
            object["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        object["usage"] = json!({
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": u64::from(*prompt_tokens) + u64::from(*completion_tokens),
        });
        object["assay"] = json!(answer.assay);
        object
    }
}

fn item_id(kind: &str, id: &str, number: usize) -> String {
    format!("{kind}_{}{number}", id.trim_start_matches("resp_"))
}

fn message(id: &str, status: &str, content: Vec<Value>) -> Value {
    json!({
        "type": "message", "id": item_id("msg", id, 0), "status": status, "role": "assistant", "content": content,
    })
}

fn part(text: &str, logprobs: Vec<Value>) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn function_call(id: &str, number: usize, call: &Value) -> Value {
    json!({
        "type": "function_call", "id": item_id("fc", id, number), "status": "completed", "call_id": call["id"],
        "name": call["function"]["name"], "arguments": call["function"]["arguments"],
    })
}

/// Writes the events of a stream.
struct Writer {
    echo: Echo,
    spelling: Spelling,
    logprobs: bool,
    sequence: u64,
    /// The text so far, once its item has been announced.
    text: Option<String>,
}

impl Writer {
    fn event(&mut self, kind: &str, fields: Value) -> String {
        let mut event = json!({"type": kind, "sequence_number": self.sequence});
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        self.sequence += 1;
        format!("event: {kind}\ndata: {event}\n\n")
    }

    fn begin(&mut self) -> String {
        let object = self.echo.object("in_progress", Vec::new());
        let created = self.event("response.created", json!({"response": object}));
        created + &self.event("response.in_progress", json!({"response": object}))
    }

    fn open_text(&mut self) -> String {
        if self.text.is_some() {
            return String::new();
        }
        self.text = Some(String::new());
        let id = item_id("msg", &self.echo.id, 0);
        let item = message(&self.echo.id, "in_progress", Vec::new());
        let added = self.event("response.output_item.added", json!({"output_index": 0, "item": item}));
        let place =
            json!({"item_id": id, "output_index": 0, "content_index": 0, "part": part("", Vec::new())});
        added + &self.event("response.content_part.added", place)
    }

    fn delta(&mut self, text: &str, logprobs: &[TokenLogprob]) -> String {
        let mut out = self.open_text();
        if let Some(whole) = &mut self.text {
            whole.push_str(text);
        }
        let entries = if self.logprobs { self.spelling.chat(logprobs) } else { Vec::new() };
        let id = item_id("msg", &self.echo.id, 0);
        let fields = json!({
            "item_id": id, "output_index": 0, "content_index": 0, "delta": text, "logprobs": entries,
        });
        out.push_str(&self.event("response.output_text.delta", fields));
        out
    }

    fn done(&mut self, answer: &Answer) -> String {
        let calls = tool_calls(&answer.output);
        let mut out = String::new();
        if calls.is_empty() {
            out.push_str(&self.open_text());
        }
        let mut index = 0;
        if let Some(text) = self.text.take() {
            let id = item_id("msg", &self.echo.id, 0);
            let entries =
                if self.logprobs { self.spelling.chat(&answer.output.logprobs) } else { Vec::new() };
            let fields = json!({
                "item_id": id, "output_index": 0, "content_index": 0, "text": text, "logprobs": entries,
            });
            out.push_str(&self.event("response.output_text.done", fields));
            let part = part(&text, entries);
            let fields = json!({"item_id": id, "output_index": 0, "content_index": 0, "part": part});
            out.push_str(&self.event("response.content_part.done", fields));
            let item = message(&self.echo.id, "completed", vec![part]);
            let fields = json!({"output_index": 0, "item": item});
            out.push_str(&self.event("response.output_item.done", fields));
            index = 1;
        }
        for (number, call) in calls.iter().enumerate() {
            let item = function_call(&self.echo.id, number, call);
            let (id, arguments) = (item["id"].clone(), item["arguments"].clone());
            let place = index + number;
            let mut open = item.clone();
            open["arguments"] = json!("");
            open["status"] = json!("in_progress");
            out.push_str(
                &self.event("response.output_item.added", json!({"output_index": place, "item": open})),
            );
            let fields = json!({"item_id": id, "output_index": place, "delta": arguments});
            out.push_str(&self.event("response.function_call_arguments.delta", fields));
            let fields =
                json!({"item_id": id, "output_index": place, "arguments": arguments, "name": item["name"]});
            out.push_str(&self.event("response.function_call_arguments.done", fields));
            out.push_str(
                &self.event("response.output_item.done", json!({"output_index": place, "item": item})),
            );
        }
        let object = self.echo.finished(answer, &self.spelling, self.logprobs);
        let kind = match answer.output.finish_reason {
            FinishReason::Length => "response.incomplete",
            FinishReason::Stop | FinishReason::ToolCalls => "response.completed",
        };
        out.push_str(&self.event(kind, json!({"response": object})));
        out
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let mut object = self.echo.object("failed", Vec::new());
        object["error"] = json!({"code": error.code.unwrap_or("server_error"), "message": error.message});
        self.event("response.failed", json!({"response": object}))
    }
}
