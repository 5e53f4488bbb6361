//! Errors of the gateway: those that stop it, and those that a caller sees in the OpenAI format.

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What stops the gateway from starting or running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address to listen on can be reached from other machines and no API key is configured.
    #[error("refusing to listen on {0} without API keys: add an [[api_keys]] entry, or listen on 127.0.0.1")]
    OpenWithoutKeys(SocketAddr),
    /// A configuration value is out of its range.
    #[error("the configuration key `{key}` is not usable: {reason}")]
    Config {
        /// Name of the key, as in the configuration file.
        key: &'static str,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// The members file could not be read.
    #[error("cannot read the members file {path}: {source}; write one or correct `members_file`")]
    MembersRead {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The members file was read but is not acceptable.
    #[error("the members file {path} is not acceptable: {reason}")]
    MembersRefused {
        /// The file.
        path: PathBuf,
        /// Why, with the next step.
        reason: String,
    },
    /// The state database failed.
    #[error("the state database failed: {0}; check the disk and that no other gateway uses the folder")]
    Store(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another program using the port?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The HTTP server stopped by itself.
    #[error("the HTTP server stopped: {0}; start the gateway again")]
    Serve(std::io::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gave no random numbers: {0}; nonces cannot be drawn without them")]
    Random(String),
    /// No TLS client could be built for a member.
    #[error("cannot make a TLS client for worker {worker}: {reason}")]
    Client {
        /// Address of the worker.
        worker: String,
        /// Why.
        reason: String,
    },
}

/// An error as a caller of the OpenAI-compatible endpoints sees it:
/// `{"error": {"message", "type", "param", "code"}}` with a fitting HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status code.
    pub status: StatusCode,
    /// One sentence that names what is wrong.
    pub message: String,
    /// Kind, in OpenAI's words (`invalid_request_error`, `rate_limit_error`, `server_error`, ..).
    pub kind: &'static str,
    /// Path of the offending parameter.
    pub param: Option<String>,
    /// Machine-readable code.
    pub code: Option<&'static str>,
    /// Seconds after which to try again, sent as `Retry-After`.
    pub retry_after_s: Option<u64>,
    /// The request that the error is about, so that its incident file can be fetched.
    pub request_id: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after_s: None,
            request_id: None,
        }
    }

    /// 400: the parameter `param` is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.param = Some(param.into());
        error.code = Some("invalid_value");
        error
    }

    /// 400: the parameter `param` is not known.
    pub fn unknown_parameter(param: impl Into<String>) -> ApiError {
        let param = param.into();
        let mut error =
            ApiError::invalid(&*param, format!("Unrecognized request argument supplied: {param}"));
        error.code = Some("unknown_parameter");
        error
    }

    /// 400: the parameter `param` is known and has no meaning here.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let mut error = ApiError::invalid(param, message);
        error.code = Some("unsupported_parameter");
        error
    }

    /// 400: the body is not the expected JSON.
    pub fn bad_body(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 401: no valid API key.
    pub fn unauthorized(message: &str) -> ApiError {
        let mut error = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message);
        error.code = Some("invalid_api_key");
        error
    }

    /// 403: the request is not allowed from there.
    pub fn forbidden(message: &str) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", message)
    }

    /// 404: no such thing.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        error.code = Some("not_found");
        error
    }

    /// 404: no member offers the model.
    pub fn model_not_found(model: &str) -> ApiError {
        let mut error = ApiError::not_found(format!(
            "The model `{model}` does not exist or no worker offers it; see /v1/models"
        ));
        error.code = Some("model_not_found");
        error.param = Some("model".into());
        error
    }

    /// 405: the endpoint exists and not with this method.
    pub fn method_not_allowed() -> ApiError {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "This endpoint does not take this HTTP method",
        )
    }

    /// 415: the body is not announced as JSON.
    pub fn unsupported_media_type() -> ApiError {
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "The body must be JSON; send it with 'Content-Type: application/json'",
        )
    }

    /// 413: the body is too large.
    pub fn too_large(limit_bytes: usize) -> ApiError {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("The body is larger than {limit_bytes} bytes; send less"),
        )
    }

    /// 429: over the rate limit, or every worker is busy.
    pub fn rate_limited(message: impl Into<String>, retry_after_s: u64) -> ApiError {
        let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.code = Some("rate_limit_exceeded");
        error.retry_after_s = Some(retry_after_s.max(1));
        error
    }

    /// 503: no worker can do it now.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        error.code = Some("no_worker");
        error.retry_after_s = Some(2);
        error
    }

    /// 502: an answer came and did not stand up to checking.
    pub fn verification(message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::BAD_GATEWAY, "server_error", message);
        error.code = Some("verification_failed");
        error
    }

    /// 422: an answer came and is kept, but nobody could prove it now. Official clients do not repeat such a request, which would be paid again.
    pub fn unproved(request_id: &str, why: &str) -> ApiError {
        let why = why.trim_end_matches('.');
        let message = format!(
            "The answer could not be proved now, so it is not shown as proved: {why}. It is kept: GET /assay/receipts/{request_id} has it, and POST /assay/proofs/{request_id} asks for its proof again"
        );
        let mut error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "server_error", message);
        error.code = Some("not_proved");
        error
    }

    /// 400: nobody could prove an answer as long as the one that is asked for.
    pub fn unprovable(tokens: usize, context: u32) -> ApiError {
        let mut error = ApiError::invalid(
            "max_tokens",
            format!(
                "Prompt and answer may have {tokens} tokens, and no worker proves more than {context} in this model: lower max_tokens, or use the level 'signed' or 'replayed'"
            ),
        );
        error.code = Some("context_length_exceeded");
        error
    }

    /// 500: a fault of the gateway itself; details are logged, not shown.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The same error, naming the request whose incident file explains it.
    pub fn about(mut self, request_id: &str) -> ApiError {
        self.request_id = Some(request_id.to_owned());
        self
    }

    /// The body in the OpenAI format.
    pub fn body(&self) -> Value {
        let mut error = json!({
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        });
        if let Some(id) = &self.request_id {
            error["request_id"] = json!(id);
        }
        json!({ "error": error })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        tracing::error!(%error, "a request failed inside the gateway");
        ApiError::internal("The gateway failed to handle the request; its log says why")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert("retry-after", HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        if let Some(value) = self.request_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(HeaderName::from_static("x-request-id"), value);
        }
        response
    }
}
