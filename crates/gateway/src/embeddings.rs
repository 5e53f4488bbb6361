//! `/v1/embeddings`: each input is a request of its own to a worker, with a receipt of its own.

use std::sync::Arc;

use assay_receipt::Request;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::Response;
use base64::Engine as _;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::ask::{Verification, prompts_of, verification_of};
use crate::error::ApiError;
use crate::gateway::Gateway;
use crate::openai::{collect, complete};
use crate::params::Params;
use crate::serve::{self, Answer, Job};

/// Most inputs of one request: each is signed on its own.
const INPUTS_MAX: usize = 256;
/// Inputs on their way at once.
const AT_ONCE: usize = 8;

/// How numbers are written.
#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Float,
    /// Little-endian 32-bit floats, which the official clients ask for.
    Base64,
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let mut params = Params::from_body(&body)?;
    let name = params.need_string("model")?;
    let inputs = prompts_of(params.need("input")?, "input")?;
    let encoding = match params.string("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => {
            return Err(ApiError::invalid("encoding_format", "'encoding_format' is 'float' or 'base64'"));
        }
    };
    let dimensions = params.integer("dimensions", 1, 1 << 16)?;
    params.string("user")?;
    let verification = match params.object("assay")? {
        Some(assay) => verification_of(assay)?,
        None => Verification::default(),
    };
    params.finish()?;
    if inputs.len() > INPUTS_MAX {
        return Err(ApiError::invalid(
            "input",
            format!("{} inputs are sent, and {INPUTS_MAX} are allowed in one request", inputs.len()),
        ));
    }
    let _place = Arc::clone(&gateway.request_slots).try_acquire_owned().map_err(|_| {
        ApiError::rate_limited("The gateway serves as many requests as it may; try again later", 1)
    })?;
    let members = gateway.members()?;
    let model = gateway.model(&members, &name)?;
    let policy = gateway.policy(&members, &model, verification, &caller.key)?;

    let mut answers: Vec<Answer> = Vec::with_capacity(inputs.len());
    for inputs in inputs.chunks(AT_ONCE) {
        let mut running = Vec::with_capacity(inputs.len());
        for input in inputs {
            let request = Request::embedding(model, input.clone());
            request.validate().map_err(|error| ApiError::bad_body(error.to_string()))?;
            let job = Job {
                prefix: "embd-",
                model_name: name.clone(),
                request,
                policy,
                sample_ppm: verification.sample_ppm,
                key: caller.key.clone(),
                streams: false,
                inference: None,
                proof: None,
            };
            running.push(serve::start(&gateway, job).await?);
        }
        answers.extend(collect(running).await?);
    }
    let mut data = Vec::with_capacity(answers.len());
    for (index, answer) in answers.iter().enumerate() {
        // A model that writes text has written some, once for each input.
        let components = answer.output.components().ok_or_else(|| {
            let message = format!("The model `{name}` writes text and makes no embeddings; see /v1/models");
            ApiError::unsupported("model", message)
        })?;
        if dimensions.is_some_and(|wanted| wanted != components.len() as i64) {
            let message = format!("The embeddings of `{name}` have {} dimensions", components.len());
            return Err(ApiError::unsupported("dimensions", message));
        }
        data.push(json!({
            "object": "embedding", "index": index, "embedding": written(&components, encoding),
            "assay": answer.assay,
        }));
    }
    let Some(first) = answers.first() else { return Err(ApiError::internal("No input was sent")) };
    let tokens: u64 = answers.iter().map(|answer| u64::from(answer.output.prompt_tokens)).sum();
    let body = json!({
        "object": "list", "data": data, "model": name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}, "assay": first.assay,
    });
    Ok(complete(body, &first.assay))
}

/// Components with 30 fractional bits as numbers, rounded to 32-bit floats.
fn written(components: &[i32], encoding: Encoding) -> Value {
    let floats = components.iter().map(|&component| component as f32 / (1u32 << 30) as f32);
    match encoding {
        Encoding::Float => floats.map(f64::from).collect(),
        Encoding::Base64 => {
            let bytes: Vec<u8> = floats.flat_map(f32::to_le_bytes).collect();
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_written_in_both_forms() {
        let components = [1 << 30, -(1 << 29), 0, 1];
        assert_eq!(written(&components, Encoding::Float), json!([1.0, -0.5, 0.0, 2f64.powi(-30)]));
        // The bytes 0000803f, 000000bf, 00000000, 00008030.
        assert_eq!(written(&components, Encoding::Base64), json!("AACAPwAAAL8AAAAAAACAMA=="));
    }
}
