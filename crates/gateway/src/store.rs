//! The state database: what was asked, who was sent it, everything signed that came back, audits, usage and each
//! worker's record.
//!
//! All writes go through one thread that puts everything that waits into one transaction, so that the cost of a
//! durable commit is shared by the requests of that moment. A write that was acknowledged survives `kill -9`; one that
//! was not has either happened completely or not at all.

use crate::config::Policy;
use crate::error::Error;
use crate::proofs::Kept;
use assay_receipt::{
    Address, Audit, Bundle, Bytes32, Failure, Output, Receipt, Request, Signed, SignedChunk, limits,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

/// Everything known about a request, by nonce, as JSON of [`Entry`].
const REQUESTS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("requests");
/// Order of arrival: (milliseconds since 1970, nonce).
const BY_TIME: TableDefinition<'_, (u64, [u8; 32]), ()> = TableDefinition::new("by_time");
/// The same for each API key: (name of the key, milliseconds since 1970, nonce).
const BY_KEY: TableDefinition<'_, (&str, u64, [u8; 32]), ()> = TableDefinition::new("by_key");
/// First 16 bytes of the nonce, as they stand in a request id, to the nonce.
const BY_ID: TableDefinition<'_, [u8; 16], [u8; 32]> = TableDefinition::new("by_id");
/// Requests that are not settled, for recovery after a crash.
const PENDING: TableDefinition<'_, [u8; 32], ()> = TableDefinition::new("pending");
/// Answers that are still to be replayed in the background.
const DUE: TableDefinition<'_, [u8; 32], ()> = TableDefinition::new("due");
/// Answers that are still to be proved in the background.
const PROOFS_DUE: TableDefinition<'_, [u8; 32], ()> = TableDefinition::new("proofs_due");
/// The accepted answer of a request, as JSON of [`Bundle`] without audits.
const BUNDLES: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("bundles");
/// Audits of a request in order, as JSON of [`AuditRow`].
const AUDITS: TableDefinition<'_, ([u8; 32], u64), &[u8]> = TableDefinition::new("audits");
/// What else came back for a request, in order, as JSON of [`Evidence`].
const EVIDENCE: TableDefinition<'_, ([u8; 32], u64), &[u8]> = TableDefinition::new("evidence");
/// Usage by (key name, model name), as JSON of [`Usage`].
const USAGE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("usage");
/// Each worker's record, as JSON of [`Record`](crate::record::Record).
const WORKERS: TableDefinition<'_, [u8; 20], &[u8]> = TableDefinition::new("workers");
/// Single numbers, such as the highest serial of a members file.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Sent or about to be sent.
    Pending,
    /// Answered; the receipt is stored.
    Answered,
    /// No worker answered it.
    Failed,
    /// The caller went away first.
    Cancelled,
}

/// A request that was sent to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) worker: Address,
    pub(crate) operator: String,
    pub(crate) sent_at_ms: u64,
    /// Number of tokens that it was asked to resume from.
    pub(crate) resumed_tokens: usize,
    /// Most that it may charge.
    #[serde(with = "crate::config::decimal_u128")]
    pub(crate) cap: u128,
    /// Asked because the first one was slow.
    pub(crate) hedge: bool,
}

/// Everything known about a request but the answer itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) request_id: String,
    pub(crate) nonce: Bytes32,
    pub(crate) salt: Bytes32,
    pub(crate) payer: Address,
    pub(crate) model_name: String,
    pub(crate) key: String,
    pub(crate) created_at_ms: u64,
    pub(crate) policy: Policy,
    pub(crate) state: State,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) settled_at_ms: Option<u64>,
    pub(crate) worker: Option<Address>,
    pub(crate) receipt_hash: Option<Bytes32>,
    /// What the accepted receipt bills.
    pub(crate) bill: Option<Bill>,
    /// Why it failed, in a sentence.
    pub(crate) error: Option<String>,
    /// The proof of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proof: Option<Kept>,
    /// Whether the answer is to be proved in the background.
    #[serde(default)]
    pub(crate) proof_due: bool,
    pub(crate) request: Request,
}

impl Entry {
    /// Whether an integer graph was asked, whose answer is a proof.
    pub(crate) fn is_inference(&self) -> bool {
        self.request_id.starts_with(crate::inference::PREFIX)
    }

    /// Whether a model that writes text was asked.
    pub(crate) fn is_text(&self) -> bool {
        !self.is_inference() && !self.request_id.starts_with(crate::proofs::PREFIX)
    }
}

/// What is to be done with an answer in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Replay,
    Proof,
}

impl Due {
    /// Notes that this is to be done with an answer, after a restart if need be.
    fn note(self, transaction: &WriteTransaction, nonce: &Bytes32) -> Result<(), Error> {
        let table = match self {
            Due::Nothing => return Ok(()),
            Due::Replay => DUE,
            Due::Proof => PROOFS_DUE,
        };
        transaction.open_table(table).map_err(failed)?.insert(nonce.0, ()).map_err(failed)?;
        Ok(())
    }
}

/// What a receipt bills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bill {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// In 10^-18 OPG.
    #[serde(with = "crate::config::decimal_u128")]
    pub(crate) price: u128,
}

/// Something that came back and is not part of the accepted answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Evidence {
    /// Signed chunks of an attempt that broke off, or of an answer that was not accepted.
    Chunks { worker: Address, at_ms: u64, chunks: Vec<SignedChunk> },
    /// A signed refusal or failure.
    Failure { worker: Address, at_ms: u64, failure: Box<Signed<Failure>> },
    /// The worker broke the protocol or fell silent; `frame` is what it sent, when that is the point.
    Fault { worker: Address, at_ms: u64, fault: String, frame: Option<String> },
    /// A complete signed answer that was not accepted or came too late.
    Answer { worker: Address, at_ms: u64, why: String, receipt: Box<Signed<Receipt>>, output: Box<Output> },
}

/// An audit and what the gateway made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditRow {
    pub(crate) at_ms: u64,
    pub(crate) auditor_operator: String,
    /// The worker whose receipt was audited.
    pub(crate) worker: Address,
    /// Time from asking to having the audit, in milliseconds.
    pub(crate) elapsed_ms: u64,
    pub(crate) audit: Signed<Audit>,
}

/// What one key used of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    #[serde(with = "crate::config::decimal_u128")]
    pub(crate) price: u128,
}

/// Usage and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UsageRow {
    pub(crate) key: String,
    pub(crate) model: String,
    #[serde(flatten)]
    pub(crate) usage: Usage,
}

/// Everything about one request.
pub(crate) struct Dossier {
    pub(crate) entry: Entry,
    pub(crate) bundle: Option<Bundle>,
    pub(crate) audits: Vec<AuditRow>,
    pub(crate) evidence: Vec<Evidence>,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Store(error.to_string())
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(failed)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(failed)
}

type Operation = Box<dyn FnOnce(&WriteTransaction) -> Result<(), Error> + Send>;
type Job = (Operation, Option<oneshot::Sender<Result<(), Error>>>);

/// Handle to the database; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    // Dropped in this order, so that the thread, which ends when the last `writer` is gone, is the last to let go.
    database: Arc<Database>,
    writer: mpsc::Sender<Job>,
}

impl Store {
    /// Opens the database in `folder`, making both where missing. The receiver resolves when the last handle is gone and
    /// the database is closed.
    pub(crate) fn open(folder: &Path) -> Result<(Store, oneshot::Receiver<()>), Error> {
        std::fs::create_dir_all(folder).map_err(failed)?;
        let path = folder.join("gateway.redb");
        let database = Arc::new(Database::create(&path).map_err(failed)?);
        restrict(&path)?;
        let transaction = database.begin_write().map_err(failed)?;
        transaction.open_table(REQUESTS).map_err(failed)?;
        transaction.open_table(BY_TIME).map_err(failed)?;
        transaction.open_table(BY_KEY).map_err(failed)?;
        transaction.open_table(BY_ID).map_err(failed)?;
        transaction.open_table(PENDING).map_err(failed)?;
        transaction.open_table(DUE).map_err(failed)?;
        transaction.open_table(PROOFS_DUE).map_err(failed)?;
        transaction.open_table(BUNDLES).map_err(failed)?;
        transaction.open_table(AUDITS).map_err(failed)?;
        transaction.open_table(EVIDENCE).map_err(failed)?;
        transaction.open_table(USAGE).map_err(failed)?;
        transaction.open_table(WORKERS).map_err(failed)?;
        transaction.open_table(META).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        let (writer, jobs) = mpsc::channel::<Job>();
        let target = Arc::clone(&database);
        let (closing, closed) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                while let Ok(first) = jobs.recv() {
                    let mut batch = vec![first];
                    batch.extend(jobs.try_iter().take(BATCH_MAX - 1));
                    write(&target, batch);
                }
                drop(target);
                drop(closing);
            })
            .map_err(failed)?;
        Ok((Store { database, writer }, closed))
    }

    /// Queues a write without waiting for it.
    fn enqueue(&self, operation: Operation, done: Option<oneshot::Sender<Result<(), Error>>>) {
        // The thread only ends when every handle is gone, so there is always somebody to receive it.
        let _ = self.writer.send((operation, done));
    }

    /// Writes and waits until it is durable.
    async fn write(
        &self,
        operation: impl FnOnce(&WriteTransaction) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (done, result) = oneshot::channel();
        self.enqueue(Box::new(operation), Some(done));
        result.await.map_err(|_| Error::Store("the writing thread has ended".into()))?
    }

    /// Runs a read on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&redb::ReadTransaction) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let database = Arc::clone(&self.database);
        tokio::task::spawn_blocking(move || operation(&database.begin_read().map_err(failed)?))
            .await
            .map_err(failed)?
    }

    /// Stores the intent to send a request, before anything is sent.
    pub(crate) async fn begin(&self, entry: &Entry) -> Result<(), Error> {
        let (nonce, created) = (entry.nonce.0, entry.created_at_ms);
        let (bytes, key) = (encode(entry)?, entry.key.clone());
        self.write(move |transaction| {
            let mut by_key = transaction.open_table(BY_KEY).map_err(failed)?;
            by_key.insert((&*key, created, nonce), ()).map_err(failed)?;
            transaction.open_table(REQUESTS).map_err(failed)?.insert(nonce, &*bytes).map_err(failed)?;
            transaction.open_table(BY_TIME).map_err(failed)?.insert((created, nonce), ()).map_err(failed)?;
            transaction.open_table(BY_ID).map_err(failed)?.insert(id_of(&nonce), nonce).map_err(failed)?;
            transaction.open_table(PENDING).map_err(failed)?.insert(nonce, ()).map_err(failed)?;
            Ok(())
        })
        .await
    }

    /// Stores that a request is about to be sent to a worker.
    pub(crate) async fn attempt(&self, nonce: Bytes32, attempt: Attempt) -> Result<(), Error> {
        self.write(move |transaction| update(transaction, &nonce, |entry| entry.attempts.push(attempt))).await
    }

    /// Stores an accepted answer and counts it. `due`: it is to be replayed or proved in the background, after a restart
    /// if need be.
    pub(crate) async fn answered(
        &self,
        bundle: &Bundle,
        receipt_hash: Bytes32,
        at_ms: u64,
        due: Due,
    ) -> Result<(), Error> {
        let receipt = bundle.receipt.statement.clone();
        let bytes = encode(bundle)?;
        self.write(move |transaction| {
            let nonce = receipt.nonce;
            transaction.open_table(BUNDLES).map_err(failed)?.insert(nonce.0, &*bytes).map_err(failed)?;
            transaction.open_table(PENDING).map_err(failed)?.remove(nonce.0).map_err(failed)?;
            due.note(transaction, &nonce)?;
            let (mut key, mut model) = (String::new(), String::new());
            update(transaction, &nonce, |entry| {
                entry.state = State::Answered;
                entry.settled_at_ms = Some(at_ms);
                entry.worker = Some(receipt.worker);
                entry.receipt_hash = Some(receipt_hash);
                entry.bill = Some(Bill {
                    prompt_tokens: receipt.prompt_tokens,
                    completion_tokens: receipt.completion_tokens,
                    price: receipt.price,
                });
                entry.error = None;
                entry.proof_due = due == Due::Proof;
                key.clone_from(&entry.key);
                model.clone_from(&entry.model_name);
            })?;
            count(transaction, &key, &model, |usage| {
                usage.requests += 1;
                usage.prompt_tokens += u64::from(receipt.prompt_tokens);
                usage.completion_tokens += u64::from(receipt.completion_tokens);
                usage.price = usage.price.saturating_add(receipt.price);
            })
        })
        .await
    }

    /// Stores that a request ended without an answer.
    pub(crate) async fn unanswered(
        &self,
        nonce: Bytes32,
        state: State,
        why: String,
        at_ms: u64,
    ) -> Result<(), Error> {
        self.write(move |transaction| {
            transaction.open_table(PENDING).map_err(failed)?.remove(nonce.0).map_err(failed)?;
            let (mut key, mut model) = (String::new(), String::new());
            update(transaction, &nonce, |entry| {
                entry.state = state;
                entry.settled_at_ms = Some(at_ms);
                entry.error = Some(why);
                key.clone_from(&entry.key);
                model.clone_from(&entry.model_name);
            })?;
            count(transaction, &key, &model, |usage| {
                usage.requests += 1;
                usage.failures += 1;
            })
        })
        .await
    }

    /// Stores something that came back and was not accepted.
    pub(crate) async fn evidence(&self, nonce: Bytes32, evidence: Evidence) -> Result<(), Error> {
        self.append(EVIDENCE, nonce, &evidence).await
    }

    /// Notes that the background replay of an answer was made, or can never be.
    pub(crate) async fn audit_done(&self, nonce: Bytes32) -> Result<(), Error> {
        self.write(move |transaction| {
            transaction.open_table(DUE).map_err(failed)?.remove(nonce.0).map_err(failed)?;
            Ok(())
        })
        .await
    }

    /// Stores the proof of an answer, which nobody is asked for any more.
    pub(crate) async fn proved(&self, nonce: Bytes32, proof: Kept) -> Result<(), Error> {
        self.write(move |transaction| {
            transaction.open_table(PROOFS_DUE).map_err(failed)?.remove(nonce.0).map_err(failed)?;
            update(transaction, &nonce, |entry| {
                entry.proof = Some(proof);
                entry.proof_due = false;
            })
        })
        .await
    }

    /// The proof of an answer.
    pub(crate) async fn proof(&self, nonce: Bytes32) -> Result<Option<Kept>, Error> {
        self.read(move |transaction| {
            let requests = transaction.open_table(REQUESTS).map_err(failed)?;
            let Some(bytes) = requests.get(nonce.0).map_err(failed)? else { return Ok(None) };
            Ok(decode::<Entry>(bytes.value())?.proof)
        })
        .await
    }

    /// Notes that an answer is not to be proved in the background any more, and whether it is to be replayed instead.
    pub(crate) async fn proof_done(&self, nonce: Bytes32, replay: bool) -> Result<(), Error> {
        self.write(move |transaction| {
            transaction.open_table(PROOFS_DUE).map_err(failed)?.remove(nonce.0).map_err(failed)?;
            if replay {
                Due::Replay.note(transaction, &nonce)?;
            }
            update(transaction, &nonce, |entry| entry.proof_due = false)
        })
        .await
    }

    /// Answers that were not proved in the background before the gateway stopped.
    pub(crate) async fn proofs_due(&self) -> Result<Vec<Bytes32>, Error> {
        self.read(|transaction| nonces_of(transaction, PROOFS_DUE)).await
    }

    /// Answers whose background replay was not made before the gateway stopped.
    pub(crate) async fn due(&self) -> Result<Vec<Bytes32>, Error> {
        self.read(|transaction| nonces_of(transaction, DUE)).await
    }

    /// Stores an audit, unless it is stored or a bundle could not hold more; `false` then.
    pub(crate) async fn audit(&self, nonce: Bytes32, row: &AuditRow) -> Result<bool, Error> {
        let row = row.clone();
        let (stored, is_new) = std::sync::mpsc::channel();
        self.write(move |transaction| {
            let mut table = transaction.open_table(AUDITS).map_err(failed)?;
            let mut next = 0;
            for known in table.range((nonce.0, 0)..=(nonce.0, u64::MAX)).map_err(failed)? {
                let (place, bytes) = known.map_err(failed)?;
                if decode::<AuditRow>(bytes.value())?.audit == row.audit {
                    return Ok(());
                }
                next = place.value().1 + 1;
            }
            if next < limits::AUDITS as u64 {
                table.insert((nonce.0, next), &*encode(&row)?).map_err(failed)?;
                let _ = stored.send(());
            }
            Ok(())
        })
        .await?;
        Ok(is_new.try_recv().is_ok())
    }

    /// All audits of a request.
    pub(crate) async fn audits(&self, nonce: Bytes32) -> Result<Vec<AuditRow>, Error> {
        self.read(move |transaction| rows_of(transaction, AUDITS, &nonce.0)).await
    }

    async fn append<T: Serialize>(
        &self,
        definition: TableDefinition<'static, ([u8; 32], u64), &'static [u8]>,
        nonce: Bytes32,
        value: &T,
    ) -> Result<(), Error> {
        let bytes = encode(value)?;
        self.write(move |transaction| {
            let mut table = transaction.open_table(definition).map_err(failed)?;
            let next = match table.range((nonce.0, 0)..=(nonce.0, u64::MAX)).map_err(failed)?.next_back() {
                Some(last) => last.map_err(failed)?.0.value().1 + 1,
                None => 0,
            };
            table.insert((nonce.0, next), &*bytes).map_err(failed)?;
            Ok(())
        })
        .await
    }

    /// Queues the new state of a worker's record. Calls for one worker must come in order, which the lock of the
    /// records ensures.
    pub(crate) fn put_record<T: Serialize>(&self, worker: Address, record: &T) {
        match encode(record) {
            Ok(bytes) => self.enqueue(
                Box::new(move |transaction| {
                    let mut table = transaction.open_table(WORKERS).map_err(failed)?;
                    table.insert(worker.0, &*bytes).map_err(failed)?;
                    Ok(())
                }),
                None,
            ),
            Err(error) => tracing::error!(%error, "a worker's record was not stored"),
        }
    }

    /// Waits until everything queued so far is durable.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        self.write(|_| Ok(())).await
    }

    /// All workers' records.
    pub(crate) async fn records<T: DeserializeOwned + Send + 'static>(
        &self,
    ) -> Result<Vec<(Address, T)>, Error> {
        self.read(|transaction| {
            let table = transaction.open_table(WORKERS).map_err(failed)?;
            let mut rows = Vec::new();
            for row in table.iter().map_err(failed)? {
                let (worker, bytes) = row.map_err(failed)?;
                rows.push((Address(worker.value()), decode(bytes.value())?));
            }
            Ok(rows)
        })
        .await
    }

    /// A single number.
    pub(crate) async fn number(&self, name: &'static str) -> Result<Option<u64>, Error> {
        self.read(move |transaction| {
            let table = transaction.open_table(META).map_err(failed)?;
            Ok(table.get(name).map_err(failed)?.map(|value| value.value()))
        })
        .await
    }

    /// Sets a single number.
    pub(crate) async fn set_number(&self, name: &'static str, value: u64) -> Result<(), Error> {
        self.write(move |transaction| {
            transaction.open_table(META).map_err(failed)?.insert(name, value).map_err(failed)?;
            Ok(())
        })
        .await
    }

    /// Requests that had been sent, or were about to be, when the gateway stopped.
    pub(crate) async fn pending(&self) -> Result<Vec<Entry>, Error> {
        self.read(|transaction| {
            let pending = transaction.open_table(PENDING).map_err(failed)?;
            let requests = transaction.open_table(REQUESTS).map_err(failed)?;
            let mut entries = Vec::new();
            for row in pending.iter().map_err(failed)? {
                let nonce = row.map_err(failed)?.0.value();
                if let Some(bytes) = requests.get(nonce).map_err(failed)? {
                    entries.push(decode(bytes.value())?);
                }
            }
            Ok(entries)
        })
        .await
    }

    /// The latest requests, newest first, from before `before_ms`; those of one API key, or of all.
    pub(crate) async fn list(
        &self,
        limit: usize,
        before_ms: u64,
        key: Option<&str>,
    ) -> Result<Vec<(Entry, Vec<AuditRow>)>, Error> {
        let key = key.map(str::to_owned);
        self.read(move |transaction| {
            let requests = transaction.open_table(REQUESTS).map_err(failed)?;
            let nonces: Vec<[u8; 32]> = match &key {
                None => {
                    let table = transaction.open_table(BY_TIME).map_err(failed)?;
                    let found = table.range(..(before_ms, [0; 32])).map_err(failed)?.rev().take(limit);
                    found.map(|row| Ok(row.map_err(failed)?.0.value().1)).collect::<Result<_, Error>>()?
                }
                Some(key) => {
                    let table = transaction.open_table(BY_KEY).map_err(failed)?;
                    let range = (&**key, 0, [0; 32])..(&**key, before_ms, [0; 32]);
                    let found = table.range(range).map_err(failed)?.rev().take(limit);
                    found.map(|row| Ok(row.map_err(failed)?.0.value().2)).collect::<Result<_, Error>>()?
                }
            };
            let mut rows = Vec::new();
            for nonce in nonces {
                if let Some(bytes) = requests.get(nonce).map_err(failed)? {
                    rows.push((decode(bytes.value())?, rows_of(transaction, AUDITS, &nonce)?));
                }
            }
            Ok(rows)
        })
        .await
    }

    /// Everything about the request whose id ends in these 16 bytes.
    pub(crate) async fn dossier(&self, id: [u8; 16]) -> Result<Option<Dossier>, Error> {
        self.read(move |transaction| {
            let by_id = transaction.open_table(BY_ID).map_err(failed)?;
            let Some(nonce) = by_id.get(id).map_err(failed)?.map(|nonce| nonce.value()) else {
                return Ok(None);
            };
            let requests = transaction.open_table(REQUESTS).map_err(failed)?;
            let Some(bytes) = requests.get(nonce).map_err(failed)? else { return Ok(None) };
            let bundles = transaction.open_table(BUNDLES).map_err(failed)?;
            let audits: Vec<AuditRow> = rows_of(transaction, AUDITS, &nonce)?;
            let mut bundle: Option<Bundle> =
                bundles.get(nonce).map_err(failed)?.map(|bytes| decode(bytes.value())).transpose()?;
            if let Some(bundle) = &mut bundle {
                // A request may have audits of an answer that was caught and replaced: those are in the list of
                // audits and not in the bundle of the answer that was accepted.
                let hash = bundle.receipt.hash(&bundle.domain);
                let own = audits.iter().map(|row| &row.audit).filter(|audit| audit.statement.receipt == hash);
                bundle.audits = own.take(limits::AUDITS).cloned().collect();
            }
            let evidence = rows_of(transaction, EVIDENCE, &nonce)?;
            Ok(Some(Dossier { entry: decode(bytes.value())?, bundle, audits, evidence }))
        })
        .await
    }

    /// What every key used of every model.
    pub(crate) async fn usage(&self) -> Result<Vec<UsageRow>, Error> {
        self.read(|transaction| {
            let table = transaction.open_table(USAGE).map_err(failed)?;
            let mut rows = Vec::new();
            for row in table.iter().map_err(failed)? {
                let (name, bytes) = row.map_err(failed)?;
                let (key, model) = name.value();
                rows.push(UsageRow {
                    key: key.to_owned(),
                    model: model.to_owned(),
                    usage: decode(bytes.value())?,
                });
            }
            Ok(rows)
        })
        .await
    }
}

/// Writes in one transaction at most; keeps a single commit short.
const BATCH_MAX: usize = 256;

/// The part of a nonce that stands in the request id.
pub(crate) fn id_of(nonce: &[u8; 32]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&nonce[..16]);
    id
}

fn write(database: &Database, batch: Vec<Job>) {
    let mut waiting = Vec::with_capacity(batch.len());
    let result = (|| {
        let transaction = database.begin_write().map_err(failed)?;
        for (operation, done) in batch {
            waiting.extend(done);
            operation(&transaction)?;
        }
        transaction.commit().map_err(failed)
    })();
    if let Err(error) = &result {
        tracing::error!(%error, "a write to the state database failed");
    }
    for done in waiting {
        // One that waits no longer was cancelled; what it asked for is stored all the same.
        let _ = done.send(match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(Error::Store(error.to_string())),
        });
    }
}

fn update(
    transaction: &WriteTransaction,
    nonce: &Bytes32,
    change: impl FnOnce(&mut Entry),
) -> Result<(), Error> {
    let mut table = transaction.open_table(REQUESTS).map_err(failed)?;
    let entry =
        table.get(nonce.0).map_err(failed)?.map(|bytes| decode::<Entry>(bytes.value())).transpose()?;
    if let Some(mut entry) = entry {
        change(&mut entry);
        table.insert(nonce.0, &*encode(&entry)?).map_err(failed)?;
    }
    Ok(())
}

fn count(
    transaction: &WriteTransaction,
    key: &str,
    model: &str,
    change: impl FnOnce(&mut Usage),
) -> Result<(), Error> {
    let mut table = transaction.open_table(USAGE).map_err(failed)?;
    let usage = table.get((key, model)).map_err(failed)?.map(|bytes| decode(bytes.value())).transpose()?;
    let mut usage: Usage = usage.unwrap_or_default();
    change(&mut usage);
    table.insert((key, model), &*encode(&usage)?).map_err(failed)?;
    Ok(())
}

fn rows_of<T: DeserializeOwned>(
    transaction: &redb::ReadTransaction,
    definition: TableDefinition<'_, ([u8; 32], u64), &'static [u8]>,
    nonce: &[u8; 32],
) -> Result<Vec<T>, Error> {
    let table = transaction.open_table(definition).map_err(failed)?;
    let mut rows = Vec::new();
    for row in table.range((*nonce, 0)..=(*nonce, u64::MAX)).map_err(failed)? {
        rows.push(decode(row.map_err(failed)?.1.value())?);
    }
    Ok(rows)
}

fn nonces_of(
    transaction: &redb::ReadTransaction,
    definition: TableDefinition<'_, [u8; 32], ()>,
) -> Result<Vec<Bytes32>, Error> {
    let table = transaction.open_table(definition).map_err(failed)?;
    let rows = table.iter().map_err(failed)?;
    rows.map(|row| Ok(Bytes32(row.map_err(failed)?.0.value()))).collect()
}

/// Only the owner may read the database: it holds prompts and answers in the clear.
fn restrict(path: &Path) -> Result<(), Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
