//! The names of `opentelemetry-otlp` that `commonware-runtime` needs to compile. Assay exports no traces, so there is no exporter: it
//! would bring a second HTTP client and protocol buffers.

use std::time::Duration;

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanData;

/// There is none.
#[derive(Debug)]
pub enum SpanExporter {}

/// Says so.
#[derive(Debug)]
pub struct ExporterBuildError;

/// Builds nothing.
#[derive(Debug)]
pub struct SpanExporterBuilder;

impl SpanExporter {
    /// A builder.
    pub fn builder() -> SpanExporterBuilder {
        SpanExporterBuilder
    }
}

impl SpanExporterBuilder {
    /// Over HTTP.
    pub fn with_http(self) -> Self {
        self
    }

    /// Always an error.
    pub fn build(self) -> Result<SpanExporter, ExporterBuildError> {
        Err(ExporterBuildError)
    }
}

/// Settings, which are ignored.
pub trait WithExportConfig: Sized {
    /// Where to.
    fn with_endpoint(self, _endpoint: impl Into<String>) -> Self {
        self
    }

    /// How long to wait.
    fn with_timeout(self, _timeout: Duration) -> Self {
        self
    }
}

impl WithExportConfig for SpanExporterBuilder {}

impl opentelemetry_sdk::trace::SpanExporter for SpanExporter {
    async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
        match *self {}
    }
}
