//! Which of the models are loaded: those that fit in memory, the ones asked for last.
//!
//! A loaded model is its mapped file, and an engine with memory for keys and values. Tokenizers stay in memory always, so
//! that requests can be checked before anything is loaded.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use assay_engine::Engine;
use assay_model::Artifact;
use assay_receipt::{Bytes32, FailureCode};
use tokio::sync::{Notify, mpsc};

use crate::answer::Trouble;
use crate::local::{self, Job};
use crate::metrics::ModelMetrics;
use crate::{Error, files};

/// How long a request waits for models that are in use to fall idle, if it needs their memory. Meanwhile no other
/// request gets in before it, so that a model which is always in use keeps nobody out.
const PATIENCE: Duration = Duration::from_secs(10);

/// An artifact's file, whose hashes were checked.
pub(crate) struct File {
    path: PathBuf,
    id: Bytes32,
    stamp: files::Stamp,
}

impl File {
    /// Opens a file and checks its hashes, which takes seconds.
    pub(crate) fn verify(path: &Path) -> Result<(Artifact, File), Error> {
        let refused =
            |fault: assay_model::Error| Error::Model { path: path.to_owned(), fault: fault.to_string() };
        let stamp = files::stamp(path)?;
        let artifact = Artifact::parse(files::map(path)?).map_err(refused)?;
        artifact.verify(&mut |_, _| {}).map_err(refused)?;
        let file = File { path: path.to_owned(), id: artifact.id(), stamp };
        Ok((artifact, file))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Opens the file again; checks its hashes if it was touched.
    fn open(&self) -> Result<Arc<Artifact>, Error> {
        let refused = |fault: String| Error::Model { path: self.path.clone(), fault };
        let artifact =
            Artifact::parse(files::map(&self.path)?).map_err(|fault| refused(fault.to_string()))?;
        if files::stamp(&self.path)? != self.stamp {
            artifact.verify(&mut |_, _| {}).map_err(|fault| refused(fault.to_string()))?;
        }
        if artifact.id() != self.id {
            return Err(refused("it is another model than at the start".to_owned()));
        }
        Ok(Arc::new(artifact))
    }
}

/// A model that can be loaded.
pub(crate) struct Slot {
    pub(crate) file: File,
    pub(crate) draft: Option<File>,
    /// Requests and audits that its queue must hold.
    pub(crate) places: usize,
    pub(crate) engine: assay_engine::Config,
    /// See [`crate::Config::audit_patience_ms`].
    pub(crate) patience: Duration,
    pub(crate) metrics: ModelMetrics,
    /// Files, keys and values.
    pub(crate) bytes: u64,
    /// Leases.
    pub(crate) users: Arc<AtomicUsize>,
}

/// A model that is loaded.
struct Loaded {
    slot: usize,
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

/// All models of a worker.
pub(crate) struct Memory {
    /// Most bytes; 0: no limit.
    limit: u64,
    slots: Mutex<Vec<Arc<Slot>>>,
    /// The one that was asked for last at the end. The lock is held while models are loaded and unloaded.
    loaded: tokio::sync::Mutex<Vec<Loaded>>,
    /// The queues of `loaded` by slot, for [`Memory::is_alive`].
    alive: Mutex<Vec<Option<mpsc::WeakSender<Job>>>>,
    /// A lease was given back.
    idle: Arc<Notify>,
}

/// While it is held, the model stays loaded.
pub(crate) struct Lease {
    jobs: mpsc::Sender<Job>,
    users: Arc<AtomicUsize>,
    idle: Arc<Notify>,
}

impl Lease {
    /// Hands a job to the engine.
    pub(crate) fn send(&self, job: Job) -> Result<(), ()> {
        self.jobs.try_send(job).map_err(drop)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.users.fetch_sub(1, Ordering::AcqRel);
        self.idle.notify_one(); // only one waits: who holds the lock
    }
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Arc<Memory> {
        Arc::new(Memory {
            limit,
            slots: Mutex::default(),
            loaded: tokio::sync::Mutex::default(),
            alive: Mutex::default(),
            idle: Arc::default(),
        })
    }

    /// Makes a model known; returns its number.
    pub(crate) fn add(&self, slot: Slot) -> Result<usize, Error> {
        if self.limit > 0 && slot.bytes > self.limit {
            let fault = format!(
                "the model {} needs {} bytes with its keys and values, more than memory_bytes = {}: raise that or lower kv_bytes",
                slot.file.path.display(),
                slot.bytes,
                self.limit
            );
            return Err(Error::Config { fault });
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push(Arc::new(slot));
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).push(None);
        Ok(slots.len() - 1)
    }

    fn slot(&self, number: usize) -> Arc<Slot> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)[number].clone()
    }

    /// Whether a model's engine runs, or none has to.
    pub(crate) fn is_alive(&self, slot: usize) -> bool {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive[slot].as_ref().and_then(mpsc::WeakSender::upgrade).is_none_or(|jobs| !jobs.is_closed())
    }

    fn set_alive(&self, slot: usize, jobs: Option<mpsc::WeakSender<Job>>) {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)[slot] = jobs;
    }

    /// Loads a model, if there is room without unloading another.
    pub(crate) async fn load_if_room(&self, number: usize) -> Result<(), Error> {
        let slot = self.slot(number);
        let mut loaded = self.loaded.lock().await;
        if self.limit == 0 || self.used(&loaded) + slot.bytes <= self.limit {
            let new = self.load(number).await?;
            loaded.insert(0, new);
        }
        Ok(())
    }

    fn used(&self, loaded: &[Loaded]) -> u64 {
        loaded.iter().map(|one| self.slot(one.slot).bytes).sum()
    }

    /// A model's file once more, for work beside its engine. Blocks.
    pub(crate) fn open(&self, number: usize) -> Result<Arc<Artifact>, Error> {
        self.slot(number).file.open()
    }

    /// Makes sure that a model is loaded, and keeps it so.
    pub(crate) async fn lease(&self, number: usize) -> Result<Lease, Trouble> {
        let slot = self.slot(number);
        let mut loaded = self.loaded.lock().await;
        let one = match loaded.iter().position(|one| one.slot == number) {
            Some(at) => loaded.remove(at),
            None => {
                let room = tokio::time::timeout(PATIENCE, self.make_room(&mut loaded, slot.bytes)).await;
                room.map_err(|_| {
                    let message =
                        "Other models are in use and leave no memory for this one: try again later.";
                    Trouble::new(FailureCode::Busy, message).retry_after(PATIENCE.as_millis() as u64)
                })?;
                self.load(number).await?
            }
        };
        slot.users.fetch_add(1, Ordering::AcqRel);
        let lease = Lease { jobs: one.jobs.clone(), users: slot.users.clone(), idle: self.idle.clone() };
        loaded.push(one);
        Ok(lease)
    }

    /// Unloads what was not asked for longest and is not in use, until there is room.
    async fn make_room(&self, loaded: &mut Vec<Loaded>, bytes: u64) {
        while self.limit > 0 && self.used(loaded) + bytes > self.limit {
            let idle = loaded.iter().position(|one| self.slot(one.slot).users.load(Ordering::Acquire) == 0);
            let Some(at) = idle else {
                self.idle.notified().await;
                continue;
            };
            let Loaded { slot, jobs, thread } = loaded.remove(at);
            self.set_alive(slot, None);
            drop(jobs);
            // The thread is idle and ends; only then the memory is free.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
            let slot = self.slot(slot);
            slot.metrics.loaded.set(0);
            tracing::info!(model = %slot.file.id, "model unloaded");
        }
    }

    async fn load(&self, number: usize) -> Result<Loaded, Error> {
        let slot = self.slot(number);
        let opened = tokio::task::spawn_blocking(move || {
            let artifact = slot.file.open()?;
            let engine = match &slot.draft {
                Some(draft) => Engine::with_draft(artifact, draft.open()?, slot.engine),
                None => Engine::new(artifact, slot.engine),
            };
            let engine = engine
                .map_err(|fault| Error::Model { path: slot.file.path.clone(), fault: fault.to_string() })?;
            let (jobs, queue) = mpsc::channel(slot.places);
            let thread = local::start(engine, queue, slot.patience, slot.metrics.clone())
                .map_err(|fault| Error::Start { fault: fault.to_string() })?;
            slot.metrics.loaded.set(1);
            tracing::info!(model = %slot.file.id, "model loaded");
            Ok::<_, Error>((jobs, thread))
        });
        let (jobs, thread) = opened.await.map_err(|fault| Error::Start { fault: fault.to_string() })??;
        self.set_alive(number, Some(jobs.downgrade()));
        Ok(Loaded { slot: number, jobs, thread })
    }
}
