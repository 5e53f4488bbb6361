//! A bound on the connections that are open at a time.

use std::io;
use std::sync::Arc;

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_layer::Layer as _;

/// Accepts what `inner` accepts, and closes a connection at once when there is no place for it. What a connection costs
/// before its first request, as the handshake, is bounded with it.
#[derive(Clone)]
pub(crate) struct Bounded<A> {
    inner: A,
    places: Arc<Semaphore>,
}

impl<A> Bounded<A> {
    pub(crate) fn new(inner: A, most: usize) -> Bounded<A> {
        Bounded { inner, places: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))) }
    }
}

impl<A, S> Accept<TcpStream, S> for Bounded<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = A::Stream;
    /// The service lives as long as its connection, and so does the place that it carries.
    type Service = AddExtension<A::Service, Arc<OwnedSemaphorePermit>>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("a connection was closed, since there are too many");
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        };
        let accepted = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            Ok((stream, Extension(Arc::new(place)).layer(service)))
        })
    }
}
