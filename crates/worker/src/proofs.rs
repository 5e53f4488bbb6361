//! Proofs of answers in text at a price (docs/trace-proof.md): one is made into a file, named in a signed chunk, fetched and checked by
//! who asked, and then paid for: the receipt is signed when the payer has accepted it, and not before.

use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use assay_engine::light::{Commitment, KEY_BYTES_MAX, RecordError, prove};
use assay_model::Artifact;
use assay_receipt::{
    Bundle, Bytes32, FailureCode, GenerateCall, Offer, Output, Signed, TRACE_PROOF_ARITHMETIC, Voucher,
};
use axum::body::{Body, Bytes};
use axum::extract::{Path as Place, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::answer::{Answer, Trouble, check_whole};
use crate::audit;
use crate::http::{plain, read_body};
use crate::local::{ModelFile, Recording};
use crate::server::{Backend, Shared};
use crate::{Error, files};

/// The folder within `data_dir` with proofs that are being made or waited for.
pub(crate) const FOLDER: &str = "proofs";
/// Bytes that are read and sent at once.
const PIECE: usize = 256 << 10;
/// How long a proof waits to be fetched, checked and accepted: so long, and a second more for each so many bytes. Enough for a caller that
/// is at another check first, and as much below the deadline of a request as it can be, since the place of one that waits is nobody else's.
const ACCEPTANCE: (Duration, u64) = (Duration::from_secs(60), 4 << 20);
/// Largest body of an acceptance.
const ACCEPTANCE_BYTES: usize = 64 << 10;

/// Proves answers of a model that this worker runs.
pub(crate) struct Proofs {
    /// The model, as it is offered.
    model: Bytes32,
    /// Id of the key that the proofs are checked with.
    key: Bytes32,
    folder: PathBuf,
}

/// A proof that waits to be fetched and accepted.
pub(crate) struct Waiting {
    path: PathBuf,
    call: GenerateCall,
    commitment: Bytes32,
    offer: Offer,
    accepted: mpsc::Sender<Option<Signed<Voucher>>>,
}

/// Opens the key of a model; also returns what others need to know of it. With the model's `artifact`, whose hashes are checked, the key is made
/// again and compared, once for each `data_dir`, which takes seconds: a proof for the key of other weights would convict this worker.
pub(crate) fn open(
    path: &Path,
    model: Bytes32,
    artifact: Option<&Path>,
    data_dir: &Path,
) -> Result<(Proofs, ModelFile), Error> {
    let refused = |fault: String| Error::Model { path: path.to_owned(), fault };
    if files::stamp(path)?.bytes > KEY_BYTES_MAX {
        return Err(refused("it is too large for a key".to_owned()));
    }
    let manifest = (*files::map(path)?).as_ref().to_vec();
    let key = Commitment::from_bytes(&manifest).map_err(|fault| refused(fault.to_string()))?;
    if key.model() != model {
        return Err(refused(format!("it is the key of the model {}", key.model())));
    }
    let compared = data_dir.join(format!("proof-key-{}", key.id()));
    if let Some(artifact) = artifact.filter(|_| !compared.is_file()) {
        let artifact = Artifact::parse(files::map(artifact)?).map_err(|fault| refused(fault.to_string()))?;
        let made = Commitment::make(&artifact, &mut |_, _| {}).map_err(|fault| refused(fault.to_string()))?;
        if made.id() != key.id() {
            return Err(refused(format!(
                "it is not the key of this model's weights, which is {}: make it with `assay model commit`",
                made.id()
            )));
        }
        let written = std::fs::write(&compared, []);
        written.map_err(|source| Error::Io { what: "note the checked key", path: compared, source })?;
    }
    let folder = data_dir.join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(|source| Error::Io {
        what: "make the folder for proofs",
        path: folder.clone(),
        source,
    })?;
    let opened =
        ModelFile { id: key.id(), arithmetic: TRACE_PROOF_ARITHMETIC, manifest, tokenizer: Vec::new() };
    Ok((Proofs { model, key: key.id(), folder }, opened))
}

/// Removes what a killed worker left.
pub(crate) fn clear(data_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join(FOLDER);
    match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { what: "remove old proofs", path, source })
        }
        _ => Ok(()),
    }
}

/// A file that goes with its answer, and ends the writing of it.
struct Scratch {
    path: PathBuf,
    unwanted: Arc<AtomicBool>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.unwanted.store(true, Ordering::Release);
        let _ = std::fs::remove_file(&self.path); // what stays is removed at the next start
    }
}

/// A file that is hashed as it is written, until nobody wants it any more.
struct Hashed {
    file: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
    unwanted: Arc<AtomicBool>,
}

impl Hashed {
    /// Fails when nobody waits any more.
    fn check_wanted(&self) -> std::io::Result<()> {
        match self.unwanted.load(Ordering::Acquire) {
            true => Err(std::io::Error::other("nobody waits for the proof any more")),
            false => Ok(()),
        }
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.check_wanted()?;
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    /// Whether anybody still waits, too.
    fn flush(&mut self) -> std::io::Result<()> {
        self.check_wanted()?;
        self.file.flush()
    }
}

impl Proofs {
    /// Reads the answer that a call wants proved and checks that it is signed, of this model, and that the price is within the cap.
    pub(crate) async fn prepare(
        &self,
        shared: &Shared,
        call: &GenerateCall,
        offer: &Offer,
    ) -> Result<Bundle, Trouble> {
        let bad = |message: &str| Trouble::new(FailureCode::BadRequest, message);
        let (request, domain) = (call.request.clone(), shared.config.domain);
        let read = tokio::task::spawn_blocking(move || {
            let subject = request.proof_subject().ok_or(
                "This offer is for proofs of answers: its prompt is the answer's bundle (docs/trace-proof.md).",
            )?;
            audit::check(&domain, &subject)?;
            Ok(subject)
        });
        let read =
            read.await.map_err(|_| Trouble::new(FailureCode::Internal, "The answer cannot be read."))?;
        let subject: Bundle = read.map_err(bad)?;
        if subject.receipt.statement.model != self.model || subject.request.model != self.model {
            return Err(bad("The answer is of another model than the key's."));
        }
        let counts = &subject.receipt.statement;
        if (counts.prompt_tokens, counts.completion_tokens)
            != (subject.output.prompt_tokens, subject.output.completion_tokens)
        {
            return Err(bad("The answer's receipt counts other tokens than its output."));
        }
        let price = counts.positions().and_then(|positions| offer.price(positions, 0));
        check_whole(call, price, "proof")?;
        Ok(subject)
    }

    /// Makes the proof, has it fetched, and signs the receipt when it is accepted.
    pub(crate) async fn answer(&self, mut answer: Answer, subject: Bundle) {
        answer.metrics.running.inc();
        let delivered = self.deliver(&mut answer, subject).await;
        answer.metrics.running.dec();
        match delivered {
            Ok((output, _scratch)) => answer.finish(output).await,
            Err(trouble) => answer.fail(trouble).await,
        }
    }

    async fn deliver(&self, answer: &mut Answer, subject: Bundle) -> Result<(Output, Scratch), Trouble> {
        let internal = |message: &str| Trouble::new(FailureCode::Internal, message);
        let (shared, nonce) = (Arc::clone(&answer.shared), answer.call.nonce);
        let positions = subject.receipt.statement.positions();
        let positions = positions.ok_or_else(|| internal("The answer has no tokens."))?;
        let host = shared.hosts.iter().find(|host| host.offer.model == self.model);
        let Some(Backend::Local(local)) = host.map(|host| &host.backend) else {
            return Err(internal("The model is not there any more."));
        };
        let recording = async {
            let turn = Arc::clone(&local.traces).acquire_owned().await;
            let turn = turn.map_err(|_| internal("No proofs are made any more."))?;
            local.recording(subject.request, subject.output, turn).await
        };
        let recording = answer.within_limits(recording).await?;
        let name = format!("{nonce}-{}.proof", answer.commitment());
        let scratch = Scratch { path: self.folder.join(name), unwanted: Arc::default() };
        let (key, path, unwanted) = (self.key, scratch.path.clone(), Arc::clone(&scratch.unwanted));
        let making = tokio::task::spawn_blocking(move || make(&recording, key, &path, unwanted));
        let made = async {
            let made = making.await.map_err(|_| internal("The proof could not be made: report it."))?;
            made.map_err(|fault| match fault {
                RecordError::Differs(_) => Trouble::new(
                    FailureCode::BadRequest,
                    "The answer is not this model's, so no proof can show that it is.",
                ),
                fault => {
                    tracing::warn!(%fault, "a proof could not be made");
                    internal("The worker could not make the proof: ask another worker.")
                }
            })
        };
        let (sha256, bytes) = answer.within_limits(made).await?;
        let output = Output::file(&sha256, bytes, positions);
        // Signed before anybody sees the file, so that a false one is held against this worker.
        let line = answer.chunk(output.text.clone(), Vec::new(), Vec::new())?;
        let (accepted, mut acceptance) = mpsc::channel(1);
        let waiting = Waiting {
            path: scratch.path.clone(),
            call: answer.call.clone(),
            commitment: answer.commitment(),
            offer: answer.offer.clone(),
            accepted,
        };
        let _listed = List::put(&shared, nonce, waiting)?;
        if let Some(line) = line {
            answer.within_limits(answer.send(line)).await?;
        }
        let gone = || Trouble::new(FailureCode::Cancelled, "The proof was not accepted in time.");
        let patience = ACCEPTANCE.0 + Duration::from_secs(bytes / ACCEPTANCE.1);
        let accepted = async {
            let accepted = tokio::time::timeout(patience, acceptance.recv()).await;
            accepted.ok().flatten().ok_or_else(gone)
        };
        let voucher = answer.within_limits(accepted).await?;
        answer.call.voucher = voucher;
        Ok((output, scratch))
    }
}

fn make(
    recording: &Recording,
    key: Bytes32,
    path: &Path,
    unwanted: Arc<AtomicBool>,
) -> Result<(Bytes32, u64), RecordError> {
    let file = BufWriter::with_capacity(PIECE, File::create(path)?);
    let mut out = Hashed { file, hasher: Sha256::new(), bytes: 0, unwanted };
    let config = assay_engine::Config { threads: 1, ..assay_engine::Config::default() };
    let Recording { artifact, generation, tokens, .. } = recording;
    prove(artifact, config, key, generation, tokens, &mut out, &mut |_, _| {})?;
    out.flush()?;
    Ok((Bytes32(out.hasher.finalize().into()), out.bytes))
}

/// The entry of a proof that can be fetched, removed when dropped.
struct List<'a>(&'a Shared, Bytes32);

impl List<'_> {
    /// The nonce is all that a proof is fetched and accepted by, so there is one under it.
    fn put(shared: &Shared, nonce: Bytes32, waiting: Waiting) -> Result<List<'_>, Trouble> {
        match shared.waiting().entry(nonce) {
            Entry::Occupied(_) => {
                let message = "Another proof waits under this nonce: draw a fresh one.";
                return Err(Trouble::new(FailureCode::DuplicateNonce, message));
            }
            Entry::Vacant(place) => place.insert(Arc::new(waiting)),
        };
        Ok(List(shared, nonce))
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

fn find(shared: &Shared, nonce: &str) -> Result<Arc<Waiting>, Response> {
    let nonce = nonce.parse::<Bytes32>().map_err(|_| {
        plain(StatusCode::BAD_REQUEST, "bad_request", "A nonce is 0x and 64 hexadecimal digits.")
    })?;
    shared
        .waiting()
        .get(&nonce)
        .cloned()
        .ok_or_else(|| plain(StatusCode::NOT_FOUND, "not_found", "No proof waits under this nonce."))
}

/// `GET /v1/proofs/{nonce}`: the file that the chunk under this nonce names, until it was accepted. The nonce is the right to read.
pub(crate) async fn file(State(shared): State<Arc<Shared>>, Place(nonce): Place<String>) -> Response {
    let waiting = match find(&shared, &nonce) {
        Ok(waiting) => waiting,
        Err(response) => return response,
    };
    let Ok(file) = File::open(&waiting.path) else {
        return plain(StatusCode::NOT_FOUND, "not_found", "No proof waits under this nonce.");
    };
    let pieces = stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let count = file.read(&mut piece)?;
            piece.truncate(count);
            Ok::<_, std::io::Error>((Bytes::from(piece), file))
        });
        let (piece, file) = read.await.map_err(std::io::Error::other)??;
        Ok::<_, std::io::Error>((!piece.is_empty()).then_some((piece, file)))
    });
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(pieces)).into_response()
}

/// What a payer says of a proof that holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acceptance {
    voucher: Option<Signed<Voucher>>,
}

/// `POST /v1/proofs/{nonce}`: accepts a proof, with the voucher that pays for it where answers are paid.
pub(crate) async fn accept(
    State(shared): State<Arc<Shared>>,
    Place(nonce): Place<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let waiting = match find(&shared, &nonce) {
        Ok(waiting) => waiting,
        Err(response) => return response,
    };
    let body = match read_body(&shared, &headers, body, ACCEPTANCE_BYTES).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let Ok(Acceptance { voucher }) = serde_json::from_slice(&body.bytes) else {
        return plain(StatusCode::BAD_REQUEST, "bad_request", "The body is {\"voucher\": …}.");
    };
    let call = GenerateCall { voucher, ..waiting.call.clone() };
    if let Some(settlement) = &shared.settlement
        && let Err(trouble) = settlement.check(&shared, &call, waiting.commitment, &waiting.offer).await
    {
        return plain(StatusCode::PAYMENT_REQUIRED, "voucher", &trouble.message);
    }
    // Only the first counts.
    match waiting.accepted.try_send(call.voucher) {
        Ok(()) => axum::Json(json!({ "accepted": true })).into_response(),
        Err(_) => plain(StatusCode::CONFLICT, "accepted", "The proof was accepted already, or given up."),
    }
}
