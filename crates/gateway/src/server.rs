//! Starting, the routes, and the checks that every request passes.

use crate::access::Access;
use crate::client::Clients;
use crate::config::Config;
use crate::connections::Bounded;
use crate::error::{ApiError, Error};
use crate::gateway::{Gateway, random};
use crate::metrics::Metrics;
use crate::payer::Payer;
use crate::proofs::Proofs;
use crate::record::Records;
use crate::store::Store;
use crate::{embeddings, inference, members, openai, own, page, recovery, responses};
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::TokioTimer;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tower_http::cors::CorsLayer;

/// Runs a gateway until `shutdown` resolves, and then until the answers under way are complete. `ready` is called once
/// with the address that it listens on.
///
/// # Errors
/// Every [`Error`], before `ready` is called or when the server stops by itself.
pub async fn run(
    mut config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), Error> {
    config.check()?;
    let (store, closed) = Store::open(&config.state_dir)?;
    let proofs = Proofs::open(&config)?;
    let payer = Payer::open(&mut config)?.map(Arc::new);
    if let Some(payer) = &payer
        && let Err(error) = payer.renew(&config).await
    {
        // With a list from before, all else can begin.
        if !config.members_file.is_file() {
            return Err(error);
        }
        tracing::warn!(%error, "the registry could not be read; the list of members from before counts");
    }
    let members::Followed { members, signed: members_signed, reader } =
        members::follow(&config, store.clone()).await?;
    let records = Records::new(store.records().await?, store.clone(), config.workers);
    let gateway = Arc::new(Gateway {
        records: Arc::new(records),
        clients: Clients::new(Duration::from_millis(config.workers.connect_ms)),
        members,
        members_signed,
        payer,
        access: Access::new(&config),
        metrics: Metrics::new(),
        vocabularies: Default::default(),
        tenant_secret: random()?,
        audit_slots: Semaphore::new(config.sampling.concurrent),
        request_slots: Arc::new(Semaphore::new(config.requests_in_flight_max as usize)),
        tasks: Mutex::default(),
        graphs: inference::Graphs::new(config.graphs_dir.clone()),
        proofs,
        store,
        config,
    });
    let left = recovery::LeftOver::read(&gateway).await?;
    let address = gateway.config.listen;
    let listen = |source| Error::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let connections = Bounded::new(gateway.config.connections);
    let handle = axum_server::Handle::new();
    let mut server =
        axum_server::from_tcp(listener).map_err(listen)?.acceptor(connections).handle(handle.clone());
    // Headers that trickle in, idle connections and floods of streams are cut off.
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(15));
    server
        .http_builder()
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256)
        .max_header_list_size(32 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    gateway.spawn(reader);
    if let Some(payer) = gateway.payer.clone() {
        let config = gateway.config.clone();
        gateway.spawn(async move { payer.follow(&config).await });
    }
    gateway.spawn(recovery::recover(Arc::clone(&gateway), left));
    tracing::info!(%address, "the gateway listens");
    ready(address);
    let app = router(&gateway).into_make_service_with_connect_info::<SocketAddr>();
    let serving = server.serve(app);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown => {
            handle.graceful_shutdown(None);
            serving.await
        }
    }
    .map_err(Error::Serve);
    gateway.end_tasks().await;
    gateway.store.flush().await?;
    drop(gateway);
    // Whoever starts a gateway on the same state after this returned finds the database unlocked.
    let _ = tokio::time::timeout(Duration::from_secs(5), closed).await;
    served
}

fn router(gateway: &Arc<Gateway>) -> Router {
    let api = Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/responses", post(responses::responses))
        .route("/v2", get(inference::server))
        .route("/v2/health/live", get(inference::healthy))
        .route("/v2/health/ready", get(inference::healthy))
        .route("/v2/models/{model}", get(inference::model))
        .route("/v2/repository/index", post(inference::index))
        .route("/v2/models/{model}/assay", get(inference::file))
        .route("/v2/models/{model}/ready", get(inference::ready))
        .route("/v2/models/{model}/infer", post(inference::infer))
        .route("/assay/receipts", get(own::receipts))
        .route("/assay/receipts/{request_id}", get(own::bundle))
        .route("/assay/receipts/{request_id}/proof", get(own::proof))
        .route("/assay/proofs/{request_id}", post(own::prove))
        .route("/assay/proof-keys/{key}", get(own::proof_key))
        .route("/assay/audit/{request_id}", post(own::audit))
        .route("/assay/incident/{request_id}", get(own::incident))
        .route("/assay/workers", get(own::workers))
        .route("/assay/workers/{address}/reinstate", post(own::reinstate))
        .route("/assay/members", get(own::members))
        .route("/assay/models", get(own::models))
        .route("/assay/usage", get(own::usage))
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(from_fn_with_state(Arc::clone(gateway), caller));
    let open =
        Router::new().route("/health", get(own::health)).route("/metrics", get(own::metrics)).fallback(
            get(page::page).fallback(|| async { ApiError::not_found("There is nothing at this address") }),
        );
    let mut app = api
        .merge(open)
        .layer(DefaultBodyLimit::max(gateway.config.body_max_bytes))
        .layer(from_fn_with_state(Arc::clone(gateway), door))
        .with_state(Arc::clone(gateway));
    let origins = gateway.config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let origins: Vec<HeaderValue> = origins.collect();
    if !origins.is_empty() {
        let cors = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([AUTHORIZATION, CONTENT_TYPE]);
        app = app.layer(cors);
    }
    app
}

/// For every request: the Host header, for those that change something also where they come from, and the form of errors that the framework makes by itself.
async fn door(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    if let Err(error) = gateway.access.host(request.headers(), authority.as_deref()) {
        return error.into_response();
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !reads && let Err(error) = gateway.access.write(request.headers(), authority.as_deref()) {
        return error.into_response();
    }
    let response = next.run(request).await;
    let ours = |response: &Response| {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with("application/json"))
    };
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE if !ours(&response) => {
            ApiError::too_large(gateway.config.body_max_bytes).into_response()
        }
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY if !ours(&response) => {
            ApiError::bad_body("The request cannot be read; check its address, query and body")
                .into_response()
        }
        _ => response,
    }
}

/// For requests to an API: the key and the rate.
async fn caller(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let ip = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let allowed = gateway.access.caller(request.headers()).and_then(|caller| {
        // Only what costs something is limited.
        if request.method() == Method::POST {
            gateway.access.allow(&caller.key, ip)?;
        }
        Ok(caller)
    });
    match allowed {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            gateway.metrics.refused.inc();
            error.into_response()
        }
    }
}
