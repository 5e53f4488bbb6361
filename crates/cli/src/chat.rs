//! `assay chat`: a conversation in the terminal, or one answer for one prompt.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use assay_receipt::Bundle;
use assay_verify::State;
use clap::Args;
use serde_json::{Value, json};

use crate::client::Gateway;
use crate::error::{Error, Result};
use crate::{client, models, ui, verify};

/// Largest prompt read from standard input: 1 MiB, more than any context holds.
const PROMPT_BYTES_MAX: u64 = 1 << 20;

#[derive(Args)]
pub(crate) struct ChatArgs {
    /// The prompt; without it, and with a terminal, a conversation starts ("-" reads the prompt from standard input)
    prompt: Option<String>,
    /// The model's name
    #[arg(long, default_value = models::DEFAULT)]
    model: String,
    /// The gateway's address
    #[arg(long, default_value = client::DEFAULT_URL)]
    gateway: String,
    /// Verification: signed, replayed by a second worker, or proved by one
    #[arg(long, value_parser = ["signed", "replayed", "proved"])]
    level: Option<String>,
    /// Instructions placed before the conversation
    #[arg(long)]
    system: Option<String>,
    /// Randomness: 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Seed of the random draws; the same seed gives the same answer
    #[arg(long)]
    seed: Option<u64>,
    /// Longest answer in tokens
    #[arg(long)]
    max_tokens: Option<u32>,
}

pub(crate) async fn run(args: ChatArgs, json: bool) -> Result<()> {
    let gateway = Gateway::new(&args.gateway)?;
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    let prompt = match args.prompt.as_deref() {
        Some("-") => Some(read_stdin()?),
        None if !std::io::stdin().is_terminal() => Some(read_stdin()?),
        other => other.map(str::to_owned),
    };
    if let Some(prompt) = prompt {
        messages.push(json!({ "role": "user", "content": prompt }));
        if json {
            let mut body = body(&args, &messages);
            body["stream"] = false.into();
            ui::print_json(&gateway.post("/v1/chat/completions", &body).await?);
            return Ok(());
        }
        return turn(&gateway, &args, &messages).await.map(drop);
    }
    ui::say!("{}", ui::dim("Ask anything; an empty line or Ctrl-D ends the conversation."));
    let mut lines = std::io::stdin().lock().lines();
    loop {
        ui::write_out(&format!("{} ", ui::bold(">")));
        let line = match lines.next() {
            Some(Ok(line)) if !line.trim().is_empty() => line,
            Some(Err(error)) => return Err(Error::said(format!("the terminal cannot be read: {error}"))),
            Some(Ok(_)) | None => return Ok(()),
        };
        messages.push(json!({ "role": "user", "content": line }));
        match turn(&gateway, &args, &messages).await {
            Ok(answer) => messages.push(json!({ "role": "assistant", "content": answer })),
            Err(error) => {
                messages.pop();
                eprintln!("{}", ui::red(&error.to_string()));
            }
        }
    }
}

fn read_stdin() -> Result<String> {
    let mut prompt = String::new();
    std::io::stdin()
        .take(PROMPT_BYTES_MAX)
        .read_to_string(&mut prompt)
        .map_err(|error| Error::said(format!("standard input is not readable as text: {error}")))?;
    Ok(prompt.trim_end().to_owned())
}

fn body(args: &ChatArgs, messages: &[Value]) -> Value {
    let mut body =
        json!({ "model": args.model, "messages": messages, "stream": true, "temperature": args.temperature });
    if let Some(level) = &args.level {
        let moment = if level == "signed" { "sampled" } else { "before_end" };
        body["assay"] = json!({ "level": level, "moment": moment });
    }
    if let Some(seed) = args.seed {
        body["seed"] = seed.into();
    }
    if let Some(max_tokens) = args.max_tokens {
        body["max_tokens"] = max_tokens.into();
    }
    body
}

/// Streams one answer to the terminal, says how far it is verified, and returns its text.
async fn turn(gateway: &Gateway, args: &ChatArgs, messages: &[Value]) -> Result<String> {
    let mut answer = String::new();
    let mut reference = Value::Null;
    gateway
        .stream("/v1/chat/completions", &body(args, messages), &mut |event| {
            if let Some(text) = event.pointer("/choices/0/delta/content").and_then(Value::as_str) {
                ui::write_out(text);
                answer.push_str(text);
            }
            if let Some(assay) = event.get("assay").filter(|assay| assay.is_object()) {
                reference = assay.clone();
            }
        })
        .await?;
    ui::say!("");
    let field = |name: &str| reference.get(name).and_then(Value::as_str).unwrap_or("-");
    let state = match field("state") {
        "replayed" => ui::green("✓ replayed bit for bit by another worker"),
        "proved" => ui::green("✓ proved; `assay receipts ID --proof FILE` saves the proof"),
        "mismatch" => ui::red("✗ another worker came to a different answer"),
        "-" => ui::red("✗ no receipt came with this answer"),
        "signed" => ui::green("✓ signed"),
        "pending" => ui::green("✓ signed, a replay or a proof is under way"),
        other => ui::red(&format!("✗ {other}")),
    };
    let state = match check_here(gateway, field("request_id"), &answer).await? {
        Some(true) => format!("{state}, receipt checked here"),
        Some(false) => {
            ui::red("✗ the receipt does not support this answer: run `assay receipts` and `assay verify`")
        }
        None => state,
    };
    ui::say!("{state} {}", ui::dim(&format!("· worker {} · {}", field("worker"), field("request_id"))));
    Ok(answer)
}

/// Whether the receipt of an answer holds, checked by this program; `None` where the workers are not those of the
/// network on this machine, so that their keys are not known.
async fn check_here(gateway: &Gateway, request_id: &str, answer: &str) -> Result<Option<bool>> {
    if request_id == "-" {
        return Ok(None);
    }
    let value = gateway.get(&format!("/assay/receipts/{request_id}")).await?;
    let bytes = value.to_string();
    let bundle = Bundle::from_json(bytes.as_bytes())
        .map_err(|error| Error::said(format!("the gateway's receipt cannot be read: {error}")))?;
    let report = verify::check_locally(&bundle);
    Ok(report.map(|report| {
        matches!(report.state, State::Signed | State::Replayed) && bundle.output.text == answer
    }))
}
