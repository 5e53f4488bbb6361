//! Calls to a gateway over HTTP: what `chat`, `receipts`, `audit`, `incident` and the benchmarks share.

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::home::Draft;

/// Where the gateway of `assay up` listens.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8600";

/// Largest answer that is read from a gateway: 64 MiB, a bundle with a long answer is well below 1 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Largest file that is received: 64 GiB, beyond any proof, and any trace that a worker records within its limits.
const FILE_BYTES_MAX: u64 = 64 << 30;
/// Longest wait for the next piece of a file.
const PIECE: Duration = Duration::from_secs(60);

/// Writes the body of a response to a file that only its owner may read, and which is there as a whole or not at all; its length in bytes.
/// `patience` is the longest wait for the next piece, and `broken` says that what came is no whole file.
pub(crate) async fn receive(
    mut response: reqwest::Response,
    out: &Path,
    patience: Duration,
    broken: &(dyn Fn(&dyn Display) -> Error + Sync),
) -> Result<u64> {
    let mut file = Draft::create(out, 0o600).map_err(Error::file("write", out))?;
    let mut bytes = 0u64;
    loop {
        let piece = tokio::time::timeout(patience, response.chunk()).await;
        let piece = piece.map_err(|error| broken(&error))?.map_err(|error| broken(&cause(&error)))?;
        let Some(piece) = piece else { break };
        bytes += piece.len() as u64;
        if bytes > FILE_BYTES_MAX {
            return Err(broken(&"it has more than 64 GiB"));
        }
        file.write_all(&piece).map_err(Error::file("write", out))?;
    }
    file.keep().map_err(Error::file("write", out))
}

/// The innermost reason, which says more than "error sending request".
pub(crate) fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// A gateway and the key that opens it.
#[derive(Clone)]
pub(crate) struct Gateway {
    url: String,
    key: Option<String>,
    http: reqwest::Client,
}

impl Gateway {
    /// A client for the gateway at `url`; the API key comes from `ASSAY_API_KEY`, never from the command line.
    pub(crate) fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .no_proxy()
            // A server may close a connection that waits at the moment when it is used again.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| Error::said(format!("no HTTP client can be made: {error}")))?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key: std::env::var("ASSAY_API_KEY").ok(), http })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let response = request.send().await.map_err(|error| {
            Error::said(format!("no gateway answers at {}: {error}; start one with `assay up`", self.url))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        let message = serde_json::from_str::<Value>(&body)
            .ok()
            .and_then(|body| body.pointer("/error/message").and_then(Value::as_str).map(str::to_owned))
            .unwrap_or(body);
        Err(Error::said(format!("the gateway answered {status}: {message}")))
    }

    async fn read(response: reqwest::Response) -> Result<Value> {
        let mut response = response;
        let mut bytes = Vec::new();
        let broken = |error: reqwest::Error| {
            Error::said(format!("the gateway's answer broke off: {error}; try again"))
        };
        while let Some(part) = response.chunk().await.map_err(broken)? {
            bytes.extend_from_slice(&part);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(Error::said(
                    "the gateway's answer is larger than 64 MiB and was not read to its end",
                ));
            }
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::said(format!("the gateway's answer is not JSON: {error}")))
    }

    /// GETs a JSON document.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        Self::read(
            self.send(self.request(reqwest::Method::GET, path).timeout(Duration::from_secs(60))).await?,
        )
        .await
    }

    /// POSTs JSON and reads JSON.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        Self::read(self.send(self.request(reqwest::Method::POST, path).json(body)).await?).await
    }

    /// GETs a file, which is there as a whole or not at all; its length in bytes.
    pub(crate) async fn save(&self, path: &str, out: &Path) -> Result<u64> {
        let response = self.send(self.request(reqwest::Method::GET, path)).await?;
        receive(response, out, PIECE, &|error| {
            Error::said(format!("the gateway's file broke off: {error}; nothing was kept, try again"))
        })
        .await
    }

    /// POSTs a streaming request and hands each SSE data object to `each` as it arrives.
    pub(crate) async fn stream(
        &self,
        path: &str,
        body: &Value,
        each: &mut (dyn FnMut(&Value) + Send),
    ) -> Result<()> {
        let mut response = self.send(self.request(reqwest::Method::POST, path).json(body)).await?;
        let broken = |error: reqwest::Error| {
            Error::said(format!("the stream broke off: {error}; what was shown is not final"))
        };
        let mut pending = Vec::new();
        while let Some(part) = response.chunk().await.map_err(broken)? {
            pending.extend_from_slice(&part);
            if pending.len() > ANSWER_BYTES_MAX {
                return Err(Error::said(
                    "the gateway sent a line of more than 64 MiB; the stream was abandoned",
                ));
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let Some(data) = line.strip_prefix(b"data:") else { continue };
                let data = data.trim_ascii();
                if data == b"[DONE]" {
                    return Ok(());
                }
                let event: Value = serde_json::from_slice(data).map_err(|error| {
                    Error::said(format!("the gateway streamed something that is not JSON: {error}"))
                })?;
                if let Some(message) = event.pointer("/error/message").and_then(Value::as_str) {
                    return Err(Error::said(format!("the gateway ended the stream: {message}")));
                }
                each(&event);
            }
        }
        Err(Error::said("the stream ended without its end mark; what was shown is not final, so ask again"))
    }
}
