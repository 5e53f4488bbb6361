//! Proofs of answers in text (docs/trace-proof.md): workers make them at a price, the gateway fetches them, checks them with a model's
//! key that its configuration names, pays for those that hold, and keeps them.

use crate::audit::{self, Subject};
use crate::client::{CallError, Client};
use crate::clock::now_ms;
use crate::config::{Config, Level, Moment, Policy};
use crate::error::{ApiError, Error};
use crate::gateway::Gateway;
use crate::openai::collect;
use crate::serve::{self, Job};
use assay_engine::light::{Commitment, KEY_BYTES_MAX};
use assay_engine::request::Processor;
use assay_receipt::{Address, Bundle, Bytes32, Member, Members, Offer, Request, TRACE_PROOF_ARITHMETIC};
use assay_verify::{CheckKind, Expected, State};
use axum::http::StatusCode;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Mutex as Turn, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

/// The folder within `state_dir`.
const FOLDER: &str = "proofs";
/// First and longest pause before a proof is asked for again that nobody made, and how often that is.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const TRIES_MAX: usize = 12;
/// Proofs that are asked for at the same time. A worker waits a minute and longer for its payment (docs/trace-proof.md), and no check of a file
/// that may be fetched takes that long, so one may wait for another's check.
const ASKED_MAX: usize = 2;
/// False files that are kept as evidence, the newest; each may have `proof_bytes_max`.
const FALSE_MAX: usize = 16;

/// A proof that holds and is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The request that it was made for; its receipt binds the proof's hash.
    pub(crate) request_id: String,
    /// Id of the model's key.
    pub(crate) key: Bytes32,
    /// Who made it.
    pub(crate) worker: Address,
    pub(crate) sha256: Bytes32,
    pub(crate) bytes: u64,
    pub(crate) positions: u32,
    /// In 10^-18 OPG.
    #[serde(with = "crate::config::decimal_u128")]
    pub(crate) price: u128,
}

/// A model's key, with what reads its answers.
pub(crate) struct ModelKey {
    commitment: Arc<Commitment>,
    processor: Processor,
}

impl ModelKey {
    pub(crate) fn id(&self) -> Bytes32 {
        self.commitment.id()
    }

    /// Tokens of a request's prompt, if it has one.
    pub(crate) fn prompt_tokens(&self, request: &Request) -> Option<usize> {
        self.processor.prompt(request).ok().map(|tokens| tokens.len())
    }
}

/// The keys, and the proofs that are under way.
pub(crate) struct Proofs {
    keys: HashMap<Bytes32, Arc<ModelKey>>,
    folder: PathBuf,
    bytes_max: u64,
    /// Who asks for the proof of an answer that another is asking for waits for that one.
    turns: Mutex<HashMap<Bytes32, Arc<Turn<()>>>>,
    /// Places for proofs that are asked for.
    asking: Semaphore,
    /// A check uses every processor, so there is one at a time.
    checking: Semaphore,
}

/// An answer whose proof is asked for.
pub(crate) struct Proving {
    pub(crate) key: Arc<ModelKey>,
    pub(crate) subject: Subject,
    pub(crate) positions: u32,
    /// The proof is here and holds.
    pub(crate) kept: AtomicBool,
    /// A proof shows that the answer is not the model's.
    pub(crate) wrong: AtomicBool,
}

impl Proving {
    /// Whether nobody need be asked any more.
    pub(crate) fn is_decided(&self) -> bool {
        self.kept.load(Ordering::Acquire) || self.wrong.load(Ordering::Acquire)
    }
}

/// Why there is no proof.
pub(crate) struct Unproved {
    pub(crate) error: ApiError,
    /// A proof shows that the answer is not the model's.
    pub(crate) wrong: bool,
    /// Provers say that it is not, which they cannot show.
    pub(crate) doubted: bool,
}

impl From<ApiError> for Unproved {
    fn from(error: ApiError) -> Unproved {
        Unproved { error, wrong: false, doubted: false }
    }
}

impl From<Error> for Unproved {
    fn from(error: Error) -> Unproved {
        ApiError::from(error).into()
    }
}

/// What a check of a file found.
pub(crate) enum Found {
    Holds,
    /// The file is no proof of the answer, which its maker signed that it is.
    False(String),
    /// It holds, and shows that the answer is not the model's.
    Wrong(String),
    /// It could not be checked here.
    Unchecked(String),
}

impl Proofs {
    /// Opens the keys of the configuration.
    pub(crate) fn open(config: &Config) -> Result<Proofs, Error> {
        let mut keys = HashMap::new();
        for path in &config.proof_keys {
            let refused = |fault: &dyn Display| Error::Config {
                key: "proof_keys",
                reason: format!("{}: {fault}", path.display()),
            };
            let length = std::fs::metadata(path).map_err(|fault| refused(&fault))?.len();
            if length > KEY_BYTES_MAX {
                return Err(refused(&"it is too large for a key"));
            }
            let bytes = std::fs::read(path).map_err(|fault| refused(&fault))?;
            let commitment = Commitment::from_bytes(&bytes).map_err(|fault| refused(&fault))?;
            let processor =
                Processor::from_artifact(commitment.artifact()).map_err(|fault| refused(&fault))?;
            let model = commitment.model();
            let key = Arc::new(ModelKey { commitment: Arc::new(commitment), processor });
            if keys.insert(model, key).is_some() {
                return Err(refused(&"another file is a key of the same model"));
            }
        }
        let folder = config.state_dir.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(|fault| Error::Store(fault.to_string()))?;
        // What was being fetched when the gateway was killed is fetched again.
        let entries = std::fs::read_dir(&folder).map_err(|fault| Error::Store(fault.to_string()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "part") {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(Proofs {
            keys,
            folder,
            bytes_max: config.proof_bytes_max,
            turns: Mutex::default(),
            asking: Semaphore::new(ASKED_MAX),
            checking: Semaphore::new(1),
        })
    }

    /// The key of a model.
    pub(crate) fn key(&self, model: &Bytes32) -> Option<&Arc<ModelKey>> {
        self.keys.get(model)
    }

    /// The file of the key with this id.
    pub(crate) fn file_of(&self, id: &Bytes32) -> Option<Vec<u8>> {
        let key = self.keys.values().find(|key| key.id() == *id)?;
        Some(key.commitment.to_bytes())
    }

    /// Where the proof of the answer with this nonce is kept.
    pub(crate) fn path(&self, nonce: &Bytes32) -> PathBuf {
        self.folder.join(format!("{nonce}.proof"))
    }

    fn turn(&self, nonce: Bytes32) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(nonce).or_default())
    }

    /// Fetches the file that a worker named into a file of its own, which is removed unless it is as named.
    pub(crate) async fn fetch(
        &self,
        client: &Client,
        nonce: &Bytes32,
        (sha256, bytes): (Bytes32, u64),
        pause: Duration,
        deadline: Instant,
    ) -> Result<PathBuf, CallError> {
        if bytes > self.bytes_max {
            let most = self.bytes_max;
            return Err(CallError::protocol(format!("its proof has {bytes} bytes, more than {most}")));
        }
        let path = self.folder.join(format!("{nonce}.part"));
        let fetched = async {
            let local =
                |fault: std::io::Error| CallError::Transport(format!("it cannot be written: {fault}"));
            let late = |_| CallError::Transport("it was too slow".into());
            let until = || (Instant::now() + pause).min(deadline);
            let mut response = timeout_at(until(), client.proof(nonce)).await.map_err(late)??;
            let mut file = tokio::fs::File::create(&path).await.map_err(local)?;
            let (mut hasher, mut received) = (Sha256::new(), 0);
            while let Some(piece) = timeout_at(until(), response.piece()).await.map_err(late)?? {
                received += piece.len() as u64;
                if received > bytes {
                    break;
                }
                hasher.update(&piece);
                file.write_all(&piece).await.map_err(local)?;
            }
            if received < bytes {
                return Err(CallError::Transport(format!("it ended after {received} of {bytes} bytes")));
            }
            if received > bytes || hasher.finalize()[..] != sha256.0 {
                return Err(CallError::protocol("the file is not the one that it signed"));
            }
            file.sync_all().await.map_err(local)
        };
        match fetched.await {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = std::fs::remove_file(&path); // else it is removed at the next start
                Err(error)
            }
        }
    }

    /// Checks a file beside the async threads.
    pub(crate) async fn check(&self, proving: &Arc<Proving>, members: &Members, path: &Path) -> Found {
        let Ok(_turn) = self.checking.acquire().await else {
            return Found::Unchecked("the gateway stops".into());
        };
        let expected = Expected::of_members(proving.subject.bundle.domain, members);
        let (proving, path) = (Arc::clone(proving), path.to_owned());
        let checked = tokio::task::spawn_blocking(move || check(&proving, &expected, &path)).await;
        checked.unwrap_or_else(|fault| Found::Unchecked(fault.to_string()))
    }

    /// Keeps a file that holds under the answer's nonce.
    pub(crate) fn keep(&self, path: &Path, nonce: &Bytes32) -> std::io::Result<()> {
        std::fs::rename(path, self.path(nonce))?;
        std::fs::File::open(&self.folder)?.sync_all()
    }

    /// Keeps a false file as evidence; its name.
    pub(crate) fn keep_false(&self, path: &Path, nonce: &Bytes32) -> String {
        let name = format!("{nonce}.false");
        if let Err(error) = std::fs::rename(path, self.folder.join(&name)) {
            tracing::error!(%error, name, "a false proof could not be kept");
        }
        if let Err(error) = remove_oldest(&self.folder, FALSE_MAX) {
            tracing::error!(%error, "old false proofs could not be removed");
        }
        format!("{FOLDER}/{name}")
    }
}

/// Removes all but the newest so many false files.
fn remove_oldest(folder: &Path, kept: usize) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "false") {
            files.push((std::fs::metadata(&path)?.modified()?, path));
        }
    }
    files.sort();
    let more = files.len().saturating_sub(kept);
    files[..more].iter().try_for_each(|(_, path)| std::fs::remove_file(path))
}

fn check(proving: &Proving, expected: &Expected, path: &Path) -> Found {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Found::Unchecked(error.to_string()),
    };
    let ModelKey { commitment, processor } = &*proving.key;
    let config = assay_engine::Config::default();
    let bundle: &Bundle = &proving.subject.bundle;
    let proof = Arc::new(bytes);
    match assay_verify::check_trace_proof(bundle, expected, commitment, processor, proof, config) {
        Err(error) => Found::Unchecked(error.to_string()),
        Ok(report) => {
            let failed: Vec<&str> = report.failed().map(|check| check.detail.as_str()).collect();
            match report.state {
                State::Proved => Found::Holds,
                State::Mismatch => Found::Wrong(failed.join("; ")),
                _ if report.has_failed(CheckKind::Products) => Found::False(failed.join("; ")),
                _ => Found::Unchecked(failed.join("; ")),
            }
        }
    }
}

/// Whether an offer is of proofs.
pub(crate) fn is_proofs(offer: &Offer) -> bool {
    offer.arithmetic == TRACE_PROOF_ARITHMETIC
}

/// Members that offer proofs with this key, and their offers.
pub(crate) fn provers(members: &Members, key: Bytes32) -> impl Iterator<Item = (&Member, &Offer)> {
    let offers = members.members.iter().filter_map(move |member| Some((member, member.offer(&key)?)));
    offers.filter(|(_, offer)| is_proofs(offer))
}

/// The proof of an answer: the one that is kept, or one that a worker makes now. Nobody is paid for a second one.
pub(crate) fn prove<'a>(
    gateway: &'a Arc<Gateway>,
    subject: &'a Subject,
    model_name: &'a str,
    api_key: &'a str,
) -> BoxFuture<'a, Result<Kept, Unproved>> {
    // An answer waits for its proof, which is an answer as well.
    Box::pin(ask(gateway, subject, model_name, api_key))
}

async fn ask(
    gateway: &Arc<Gateway>,
    subject: &Subject,
    model_name: &str,
    api_key: &str,
) -> Result<Kept, Unproved> {
    let turn = gateway.proofs.turn(subject.nonce);
    let _turn = turn.lock().await;
    // One whose file somebody has removed is made, and paid, again.
    let kept = gateway.store.proof(subject.nonce).await?;
    if let Some(kept) = kept.filter(|_| gateway.proofs.path(&subject.nonce).is_file()) {
        return Ok(kept);
    }
    let receipt = &subject.bundle.receipt.statement;
    let key = gateway.proofs.key(&receipt.model).cloned().ok_or_else(|| {
        ApiError::bad_body(
            "This gateway has no key of the model, so it could not check a proof; see `proof_keys` in its configuration",
        )
    })?;
    let no_tokens = || ApiError::bad_body("The answer has no tokens to prove");
    let positions = receipt.positions().ok_or_else(no_tokens)?;
    let request = Request::proof(key.id(), &subject.bundle);
    request.validate().map_err(|error| ApiError::bad_body(error.to_string()))?;
    let proving = Arc::new(Proving {
        key,
        subject: subject.clone(),
        positions,
        kept: AtomicBool::new(false),
        wrong: AtomicBool::new(false),
    });
    let job = Job {
        prefix: PREFIX,
        model_name: format!("{model_name} (proof)"),
        request,
        policy: Policy { level: Level::Proved, moment: Moment::BeforeFirstToken },
        sample_ppm: None,
        key: api_key.to_owned(),
        streams: false,
        inference: None,
        proof: Some(Arc::clone(&proving)),
    };
    let asking = gateway.proofs.asking.acquire().await;
    let _asking = asking.map_err(|_| ApiError::unavailable("The gateway stops; ask again later"))?;
    let running = serve::start(gateway, job).await?;
    let answered = collect(vec![running]).await;
    // The proof counts, also where its worker signed no receipt and so is not paid.
    let kept = gateway.store.proof(subject.nonce).await?;
    if let Some(kept) = kept.filter(|_| proving.kept.load(Ordering::Acquire)) {
        return Ok(kept);
    }
    let wrong = proving.wrong.load(Ordering::Acquire);
    let error = answered.err().unwrap_or_else(|| ApiError::internal("The proof was lost"));
    // What they refuse for its length or price has a code.
    let doubted = error.status == StatusCode::BAD_REQUEST && error.code.is_none();
    Err(Unproved { error, wrong, doubted })
}

/// What the ids of requests for proofs begin with.
pub(crate) const PREFIX: &str = "proof-";

/// Has an answer proved in the background, again and again for a while where nobody can. It is noted in the database as due, so it
/// happens after a restart if it does not happen now. An answer that nobody proves is replayed instead.
pub(crate) fn later(gateway: &Arc<Gateway>, subject: Subject, model_name: String, api_key: String) {
    let spawner = gateway;
    let gateway = Arc::clone(gateway);
    spawner.spawn(async move {
        let mut pause = PAUSES.0;
        for attempt in 1..=TRIES_MAX {
            match prove(&gateway, &subject, &model_name, &api_key).await {
                Ok(_) | Err(Unproved { wrong: true, .. }) => break,
                // What is wrong about the request stays wrong.
                Err(Unproved { error, .. })
                    if attempt == TRIES_MAX || error.status == StatusCode::BAD_REQUEST =>
                {
                    let request_id = &subject.request_id;
                    tracing::warn!(request_id, error = error.message, "an answer was not proved");
                    if !audit::is_possible(&gateway, &subject) {
                        break;
                    }
                    match gateway.store.proof_done(subject.nonce, true).await {
                        Ok(()) => audit::later(&gateway, subject),
                        // It stays due, for the next start.
                        Err(error) => tracing::error!(%error, request_id, "a replay was not stored"),
                    }
                    return;
                }
                Err(_) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
        if let Err(error) = gateway.store.proof_done(subject.nonce, false).await {
            tracing::error!(%error, request_id = subject.request_id, "the end of a proof was not stored");
        }
    });
}

/// Suspends the worker of an answer that a proof shows to be wrong.
pub(crate) async fn answer_is_wrong(gateway: &Gateway, subject: &Subject, why: &str) {
    tracing::error!(
        request_id = subject.request_id,
        why,
        at = now_ms(),
        "a proof shows that an answer is wrong"
    );
    audit::caught_with_receipt(gateway, &subject.request_id, &subject.bundle.receipt).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_false_files_are_kept_and_nothing_else_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..5 {
            let file = std::fs::File::create(folder.path().join(format!("{number}.false"))).unwrap();
            let at = std::time::UNIX_EPOCH + Duration::from_secs(100 - number);
            file.set_modified(at).unwrap();
        }
        std::fs::write(folder.path().join("a.proof"), b"").unwrap();
        remove_oldest(folder.path(), 2).unwrap();
        remove_oldest(folder.path(), 9).unwrap();
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0.false", "1.false", "a.proof"]);
    }
}
