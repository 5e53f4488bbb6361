//! What all requests share, and the worker's life from start to drained end.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assay_model::Artifact;
use assay_proof::Graph;
use assay_receipt::{Address, Bytes32, Key, Member, Offer, TRACE_PROOF_ARITHMETIC};
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::connections::Bounded;
use crate::embed::Embedder;
use crate::forward::Upstream;
use crate::identity::{Identity, write_new};
use crate::local::{AUDIT_CACHE, Local, ModelFile};
use crate::log::{Log, Opened};
use crate::memory::Memory;
use crate::metrics::{Metrics, ModelMetrics};
use crate::proofs::{self, Proofs, Waiting};
use crate::prove::Prover;
use crate::settle::{self, Settlement};
use crate::{Config, Error, Model, dispute, files, http};

/// A worker that answers requests.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The address that it listens on, with the real port.
    pub address: SocketAddr,
    /// How it describes itself; an operator signs this into the list of members.
    pub member: Member,
}

/// Where the worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes requests.
    Serving,
    /// Finishes what it holds, refuses the rest.
    Draining,
    /// Signs off what is left.
    Stopping,
}

/// What runs a model.
pub(crate) enum Backend {
    /// An engine of this worker.
    Local(Local),
    /// An encoder of this worker.
    Encoder(Embedder),
    /// An integer graph of this worker.
    Graph(Prover),
    /// Proofs of what an engine of this worker answers.
    Proofs(Proofs),
    /// Another server.
    Upstream(Upstream),
}

/// One model on offer.
pub(crate) struct Host {
    pub(crate) offer: Offer,
    pub(crate) backend: Backend,
    /// What a backend of this worker's own runs.
    pub(crate) opened: Option<ModelFile>,
    pub(crate) metrics: ModelMetrics,
    /// Requests that wait or run.
    held: AtomicUsize,
    /// Most of them.
    places: usize,
    /// Requests that run at once, for the estimate of the wait.
    parallel: usize,
    /// Mean time of an answer in milliseconds, with a weight of 1/8 for the newest.
    mean_ms: AtomicU64,
    /// Audits that wait or run.
    pub(crate) audits: AtomicUsize,
}

impl Host {
    /// Whether it can answer: an engine that failed needs a restart of the worker.
    pub(crate) fn is_alive(&self) -> bool {
        match &self.backend {
            Backend::Local(local) => local.is_alive(),
            Backend::Encoder(_) | Backend::Graph(_) | Backend::Proofs(_) | Backend::Upstream(_) => true,
        }
    }

    /// How long a refused caller should wait: about the time until one of the held requests ends.
    pub(crate) fn retry_after_ms(&self) -> u64 {
        let mean = self.mean_ms.load(Ordering::Relaxed).max(500);
        let beyond = self.held.load(Ordering::Relaxed).saturating_sub(self.parallel) as u64 + 1;
        (mean * beyond / self.parallel as u64).clamp(250, 60_000)
    }
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) key: Arc<Key>,
    pub(crate) address: Address,
    pub(crate) member: Member,
    pub(crate) log: Log,
    pub(crate) metrics: Metrics,
    pub(crate) hosts: Vec<Arc<Host>>,
    /// Where answers are paid, if anywhere.
    pub(crate) settlement: Option<Settlement>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Memory for request bodies, a permit a MiB.
    pub(crate) bodies: Arc<Semaphore>,
    /// Nonces and commitments of requests that have not ended.
    running: Mutex<HashSet<(Bytes32, Bytes32)>>,
    /// Proofs that wait to be fetched and accepted, by nonce.
    proofs: Mutex<HashMap<Bytes32, Arc<Waiting>>>,
    /// Cloned by each request; shutdown waits until all clones are gone.
    pub(crate) alive: Mutex<Option<mpsc::Sender<()>>>,
}

/// A request's place at a model and its nonce and commitment, given back when dropped.
pub(crate) struct Held {
    shared: Arc<Shared>,
    host: Arc<Host>,
    key: (Bytes32, Bytes32),
    _alive: mpsc::Sender<()>,
}

/// Why a request got no place.
pub(crate) enum NoPlace {
    Draining,
    Full,
    DuplicateNonce,
}

impl Shared {
    /// Takes a place, and the nonce for the request with this commitment.
    pub(crate) fn hold(
        self: &Arc<Self>,
        host: &Arc<Host>,
        nonce: Bytes32,
        commitment: Bytes32,
    ) -> Result<Held, NoPlace> {
        let key = (nonce, commitment);
        let alive =
            self.alive.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(NoPlace::Draining)?;
        if !self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            return Err(NoPlace::DuplicateNonce);
        }
        if host.held.fetch_add(1, Ordering::AcqRel) >= host.places {
            host.held.fetch_sub(1, Ordering::AcqRel);
            self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            return Err(NoPlace::Full);
        }
        Ok(Held { shared: self.clone(), host: host.clone(), key, _alive: alive })
    }

    /// Proofs that wait to be fetched and accepted.
    pub(crate) fn waiting(&self) -> MutexGuard<'_, HashMap<Bytes32, Arc<Waiting>>> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The least nonce of the requests that have not ended.
    pub(crate) fn earliest_running(&self) -> Option<Bytes32> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().map(|(nonce, _)| *nonce).min()
    }

    /// Whether a request with this nonce, and this commitment if one is given, has not ended.
    pub(crate) fn is_running(&self, nonce: &Bytes32, request: Option<&Bytes32>) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().any(|(held, of)| held == nonce && request.is_none_or(|request| of == request))
    }
}

impl Held {
    /// Notes how long a complete answer took.
    pub(crate) fn served(&self, time: Duration) {
        let now = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(3_600_000);
        let mean = &self.host.mean_ms;
        let before = mean.load(Ordering::Relaxed);
        let after = if before == 0 { now } else { (before * 7 + now) / 8 };
        mean.store(after, Ordering::Relaxed); // an estimate: a lost update does no harm
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.host.held.fetch_sub(1, Ordering::AcqRel);
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// Proofs of a model's answers that wait to be made or fetched, beside the one at work: each is a file on disk.
const PROOFS_WAITING: usize = 3;

/// How long the end waits for a last batch.
const LAST_ROUND: Duration = Duration::from_secs(5);

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours.saturating_mul(3_600))
}

/// Milliseconds since 1970 UTC by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a worker until `shutdown` completes and everything that it held is finished or signed off.
///
/// When it answers requests, it says so through `ready`, and writes its description ([`Member`]) to `worker.json` in the
/// data folder; the file is absent before that.
///
/// # Errors
/// [`Error`] when the configuration, the identity, a model, the log or the address cannot be used. `ready` is then
/// dropped without a message.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<Ready>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    config.check()?;
    let folder = config.data_dir.clone();
    let io = |what, source| Error::Io { what, path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(|source| io("make the data folder", source))?;
    let opened = Opened::open(&folder.join(crate::log::FILE))?;
    let description = folder.join("worker.json");
    if let Err(source) = std::fs::remove_file(&description)
        && source.kind() != std::io::ErrorKind::NotFound
    {
        return Err(io("remove the old worker.json", source));
    }

    proofs::clear(&folder)?;
    let settlement = Settlement::new(&config)?;
    let asked = config.listen;
    let listen = |source| Error::Listen { address: asked, source };
    let listener = TcpListener::bind(config.listen).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let url = config.public_url.clone().unwrap_or_else(|| format!("https://{address}"));
    let host_name =
        url.trim_start_matches("https://").split(['/', ':']).next().filter(|name| !name.is_empty());
    let identity = Identity::load(&folder, host_name)?;
    let key = Arc::new(identity.key);

    let metrics = Metrics::new();
    let hosts = hosts(&config, &metrics).await?;
    let member = Member {
        operator: config.operator.clone(),
        worker: key.address(),
        key_epoch: config.key_epoch,
        url,
        tls_sha256: identity.tls_sha256,
        models: hosts.iter().map(|host| host.offer.clone()).collect(),
    };
    member.validate().map_err(|fault| Error::Config { fault: fault.to_string() })?;

    let (log, log_thread) = opened.start(key.clone(), config.domain, hours(config.keep_outputs_hours))?;
    let (alive, mut ended) = mpsc::channel(1);
    let drain = Duration::from_millis(config.drain_deadline_ms);
    let shared = Arc::new(Shared {
        address: key.address(),
        key,
        member: member.clone(),
        log,
        metrics,
        hosts,
        settlement,
        phase: watch::Sender::new(Phase::Serving),
        bodies: Arc::new(Semaphore::new(http::BODY_MEMORY_MIB)),
        running: Mutex::default(),
        proofs: Mutex::default(),
        alive: Mutex::new(Some(alive)),
        config,
    });

    let connections = shared.config.connections;
    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(identity.tls))
        .map_err(listen)?
        .map(|acceptor| Bounded::new(acceptor, connections))
        .handle(handle.clone());
    // Headers that trickle in, idle connections and floods of streams are cut off.
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(15));
    server
        .http_builder()
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256)
        .max_header_list_size(32 << 10)
        .max_send_buf_size(64 << 10) // what a reader leaves unread belongs into the counted queue
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let service = http::router(shared.clone()).into_make_service();
    let serving = tokio::spawn(server.serve(service));

    let settling = tokio::spawn(settle::run(shared.clone()));
    let disputing = tokio::spawn(dispute::run(shared.clone()));
    let json =
        serde_json::to_vec_pretty(&member).map_err(|fault| Error::Config { fault: fault.to_string() })?;
    write_new(&description, &json, 0o644)?;
    tracing::info!(%address, worker = %shared.address, "worker serves");
    let _ = ready.send(Ready { address, member }); // who does not listen reads worker.json

    shutdown.await;

    // New requests are refused, signed; running ones may end; after the deadline they are signed off.
    tracing::info!("worker drains");
    shared.phase.send_replace(Phase::Draining);
    shared.alive.lock().unwrap_or_else(PoisonError::into_inner).take();
    if tokio::time::timeout(drain, ended.recv()).await.is_err() {
        shared.phase.send_replace(Phase::Stopping);
        let _ = ended.recv().await; // bounded: a stopped request only waits for the log and, shortly, for its reader
    }
    shared.phase.send_replace(Phase::Stopping);
    disputing.abort(); // what is due is played after the next start
    let _ = tokio::time::timeout(LAST_ROUND, settling).await; // what is left is settled after the next start
    handle.graceful_shutdown(Some(Duration::from_secs(5)));
    let served = serving.await;
    let _ = std::fs::remove_file(&description); // absent again: the worker is gone
    drop(shared);
    // The log's thread ends when the last request has let go of it; its statements are on disk already.
    let _ =
        tokio::time::timeout(Duration::from_secs(5), tokio::task::spawn_blocking(move || log_thread.join()))
            .await;
    match served {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(Error::Listen { address, source }),
        Err(fault) => Err(Error::Start { fault: fault.to_string() }),
    }
}

/// Opens an artifact, checks its hashes and gets it ready to answer; also returns the most tokens of a request. Takes
/// seconds: call it where blocking is allowed.
fn open(
    model: &Model,
    config: &Config,
    memory: &Arc<Memory>,
    metrics: ModelMetrics,
) -> Result<(Backend, ModelFile, usize), Error> {
    let refused = |fault: String| Error::Model { path: model.artifact.clone(), fault };
    let file = files::map(&model.artifact)?;
    if Graph::is_graph((*file).as_ref()) {
        if model.proof_key.is_some() {
            return Err(refused("its answers are proofs already; take `proof_key` away".to_owned()));
        }
        let (prover, opened) = Prover::open(model, config, &metrics)?;
        let most = prover.examples_max();
        return Ok((Backend::Graph(prover), opened, most));
    }
    if model.key.is_some() {
        return Err(refused(
            "only integer graphs are offered under a key; `proof_key` is that of a text model".to_owned(),
        ));
    }
    let artifact = Artifact::parse(file).map_err(|fault| refused(fault.to_string()))?;
    if artifact.encoder().is_none() {
        drop(artifact);
        let (local, opened) = Local::open(model, config, memory, metrics)?;
        let context = local.context();
        return Ok((Backend::Local(local), opened, context));
    }
    if model.proof_key.is_some() {
        return Err(refused("proofs are made for models that write text; take `proof_key` away".to_owned()));
    }
    // An encoder is small next to a model that writes text, and stays.
    artifact.verify(&mut |_, _| {}).map_err(|fault| refused(fault.to_string()))?;
    let (opened, context) = (ModelFile::of(&artifact), artifact.config().context);
    let embedder = Embedder::new(Arc::new(artifact), config).map_err(|fault| refused(fault.to_string()))?;
    Ok((Backend::Encoder(embedder), opened, context))
}

/// Opens all models.
async fn hosts(config: &Config, metrics: &Metrics) -> Result<Vec<Arc<Host>>, Error> {
    let mut hosts: Vec<Arc<Host>> = Vec::new();
    let host = |offer: Offer, backend, opened, parallel: usize, queue: usize| {
        Arc::new(Host {
            metrics: metrics.model(&offer.name),
            offer,
            backend,
            opened,
            held: AtomicUsize::new(0),
            places: queue + parallel,
            parallel,
            mean_ms: AtomicU64::new(0),
            audits: AtomicUsize::new(0),
        })
    };
    let memory = Memory::new(config.memory_bytes);
    // Models that write text have a slot each, in their order.
    let mut slots = 0;
    for model in &config.models {
        let opening = (model.clone(), config.clone(), memory.clone(), metrics.model(&model.name));
        // Hashing and reading the artifact takes seconds.
        let opened = tokio::task::spawn_blocking(move || {
            let (model, config, memory, metrics) = opening;
            open(&model, &config, &memory, metrics)
        });
        let (backend, opened, context) =
            opened.await.map_err(|fault| Error::Start { fault: fault.to_string() })??;
        if let Backend::Local(_) = backend {
            memory.load_if_room(slots).await?;
            slots += 1;
        }
        let id = opened.id;
        if let Some(other) = model.impersonate {
            tracing::warn!(%id, %other, "this worker LIES: it serves one model under another's id");
        }
        let offer = Offer {
            model: model.impersonate.unwrap_or(id),
            name: model.name.clone(),
            prompt_price: model.prompt_price,
            completion_price: model.completion_price,
            arithmetic: opened.arithmetic,
            context: u32::try_from(context).unwrap_or(u32::MAX),
        };
        let offered = offer.model;
        hosts.push(host(offer, backend, Some(opened), config.max_batch, config.queue));
        if let Some(path) = model.proof_key.clone() {
            let data_dir = config.data_dir.clone();
            // One that lies cannot have the key of the model whose id it uses.
            let artifact = model.impersonate.is_none().then(|| model.artifact.clone());
            let opening = tokio::task::spawn_blocking(move || {
                proofs::open(&path, offered, artifact.as_deref(), &data_dir)
            });
            let (proofs, opened) =
                opening.await.map_err(|fault| Error::Start { fault: fault.to_string() })??;
            let offer = Offer {
                model: opened.id,
                name: model.name.clone(),
                prompt_price: model.proof_price,
                completion_price: 0,
                arithmetic: TRACE_PROOF_ARITHMETIC,
                context: u32::try_from(context / AUDIT_CACHE).unwrap_or(u32::MAX),
            };
            hosts.push(host(offer, Backend::Proofs(proofs), Some(opened), 1, PROOFS_WAITING));
        }
    }
    for forward in &config.forward {
        let offer = Offer {
            model: forward.model_id(),
            name: forward.name.clone(),
            prompt_price: forward.prompt_price,
            completion_price: forward.completion_price,
            arithmetic: 0,
            context: forward.context,
        };
        let upstream = Backend::Upstream(Upstream::new(forward)?);
        hosts.push(host(offer, upstream, None, config.max_batch, config.queue));
    }
    for (index, host) in hosts.iter().enumerate() {
        if hosts[..index].iter().any(|other| other.offer.model == host.offer.model) {
            let fault = format!("the model {} is listed twice", host.offer.name);
            return Err(Error::Config { fault });
        }
    }
    Ok(hosts)
}
