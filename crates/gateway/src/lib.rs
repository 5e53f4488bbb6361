//! OpenAI-compatible endpoint that routes, checks and records.

mod config;
mod error;
#[allow(dead_code)]
mod params;

pub use config::{ApiKey, Config, Level, Moment, Policy, Sampling, Workers};
pub use error::{ApiError, Error};

use std::net::SocketAddr;

/// Runs a gateway until `shutdown` resolves. `ready` is called once with the address that it listens on.
///
/// # Errors
/// Every [`Error`], before `ready` is called or when the server stops by itself.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), Error> {
    config.check()?;
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .map_err(|source| Error::Listen { address: config.listen, source })?;
    let address = listener.local_addr().map_err(|source| Error::Listen { address: config.listen, source })?;
    let app = axum::Router::new().route("/health", axum::routing::get(|| async { "ok" }));
    ready(address);
    axum::serve(listener, app).with_graceful_shutdown(shutdown).await.map_err(Error::Serve)
}
