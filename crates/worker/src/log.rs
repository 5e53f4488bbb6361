//! The statement log: everything that this worker signed, in order, on disk before anybody sees it.
//!
//! One thread owns the key for statements, the sequence number and the database. It signs what has queued up, commits
//! it in one durable transaction, and only then hands the signed statements out. So a statement that a caller holds is
//! in the log, whenever the process is killed, and the sequence has no gaps and no forks.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use assay_receipt::{
    AnyStatement, Audit, Bytes32, Domain, Failure, Key, Output, Receipt, Request, Signed, Voucher,
};
use assay_wallet::settlement::Payable;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::server::now_ms;

/// Sequence number -> JSON of [`Entry`].
const STATEMENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("statements");
/// Caller's nonce and commitment to its request -> sequence number of the statement that answered it. Both, so that a
/// worker that was sent a nonce cannot spend it at another one with a request of its own.
const ANSWERS: TableDefinition<'_, [u8; 64], u64> = TableDefinition::new("answers");
/// Hash of an audited receipt -> sequence number of the audit.
const AUDITS: TableDefinition<'_, [u8; 32], u64> = TableDefinition::new("audits");

/// Sequence number below which the outputs are dropped already, under the one key `()`.
const DROPPED: TableDefinition<'_, (), u64> = TableDefinition::new("dropped");

/// Root of a line that was brought to the chain -> JSON of the sequence numbers of its receipts.
const LINES: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("lines");
/// Sequence number below which no receipt waits to be brought to the chain, under the one key `()`.
const SETTLED: TableDefinition<'_, (), u64> = TableDefinition::new("settled");

/// Name of the log in the data folder.
pub(crate) const FILE: &str = "statements.redb";

/// Statements that one transaction takes at most; bounds the wait of the first one.
const GROUP: usize = 64;
/// Old statements that one transaction looks through at most to drop their outputs: more than it can add.
const SWEEP: usize = 2 * GROUP;
/// Statements that may wait for the disk; more are pushed back to the callers.
const BACKLOG: usize = 1024;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Where it was signed for. Kept with each entry, so that a changed configuration leaves the old ones checkable.
    pub(crate) domain: Domain,
    pub(crate) statement: AnyStatement,
    /// What a receipt commits to, while it is kept.
    pub(crate) output: Option<Output>,
    /// How the output was split into chunks: (bytes of text, tokens, log-probabilities) of each. Signing is
    /// deterministic, so the signed chunks follow from this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) split: Vec<(usize, usize, usize)>,
    /// The payer's word for a receipt that is charged on a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) voucher: Option<Signed<Voucher>>,
    /// What was asked for such a receipt, kept as long as the output: who disputes the answer makes the worker show how it came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<Box<Request>>,
}

/// A receipt that can be charged.
pub(crate) struct Earned {
    pub(crate) sequence: u64,
    pub(crate) payable: Payable,
}

impl Entry {
    fn payable(self) -> Option<Payable> {
        match (self.statement, self.voucher) {
            (AnyStatement::Receipt(receipt), Some(voucher)) => Some(Payable { receipt, voucher }),
            _ => None,
        }
    }
}

/// A statement without its place in the sequence, which the log fills in (`sequence` and `previous`).
pub(crate) enum Draft {
    Receipt(Box<Receipt>, Box<Output>, Vec<(usize, usize, usize)>, Option<Box<(Signed<Voucher>, Request)>>),
    Failure(Box<Failure>),
    /// A refusal to audit somebody's receipt. It is no answer to the receipt's nonce.
    NoAudit(Box<Failure>),
    Audit(Box<Audit>),
}

type Reply = oneshot::Sender<Result<Entry, Error>>;

/// A handle to the log; clones share it. The log closes, with everything on disk, when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Log {
    database: Arc<Database>,
    drafts: mpsc::Sender<(Draft, Reply)>,
}

fn fault(fault: impl std::fmt::Display) -> Error {
    Error::Log { fault: fault.to_string() }
}

/// An opened database and where its sequence stands. Opening comes before the key is loaded, since the database's lock
/// keeps a second worker from using the same folder.
pub(crate) struct Opened {
    database: Database,
    next: u64,
    previous: Bytes32,
}

impl Opened {
    /// Opens or makes the log and reads where it stands.
    pub(crate) fn open(path: &Path) -> Result<Opened, Error> {
        let database = Database::create(path).map_err(fault)?;
        let transaction = database.begin_write().map_err(fault)?;
        transaction.open_table(ANSWERS).map_err(fault)?;
        transaction.open_table(AUDITS).map_err(fault)?;
        transaction.open_table(DROPPED).map_err(fault)?;
        transaction.open_table(LINES).map_err(fault)?;
        transaction.open_table(SETTLED).map_err(fault)?;
        let (next, previous) =
            match transaction.open_table(STATEMENTS).map_err(fault)?.last().map_err(fault)? {
                None => (0, Bytes32::ZERO),
                Some((sequence, bytes)) => {
                    let entry: Entry = serde_json::from_slice(bytes.value()).map_err(fault)?;
                    (sequence.value() + 1, entry.statement.hash(&entry.domain))
                }
            };
        transaction.commit().map_err(fault)?;
        Ok(Opened { database, next, previous })
    }

    /// Starts the thread that signs. It ends when all handles are dropped.
    ///
    /// Outputs older than `keep` are dropped as new statements come. Statements stay for ever: each commits to the one
    /// before, and whoever asks for the sequence must get all of it.
    pub(crate) fn start(
        self,
        key: Arc<Key>,
        domain: Domain,
        keep: Duration,
    ) -> Result<(Log, JoinHandle<()>), Error> {
        let (drafts, mut queue) = mpsc::channel(BACKLOG);
        let database = Arc::new(self.database);
        let mut signer = Signer {
            database: database.clone(),
            key,
            domain,
            keep_ms: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
            next: self.next,
            previous: self.previous,
        };
        let thread = std::thread::Builder::new()
            .name("statements".to_owned())
            .spawn(move || {
                let mut group = Vec::with_capacity(GROUP);
                while queue.blocking_recv_many(&mut group, GROUP) > 0 {
                    signer.sign(&mut group);
                }
            })
            .map_err(|fault| Error::Start { fault: fault.to_string() })?;
        Ok((Log { database, drafts }, thread))
    }
}

impl Log {
    /// Signs a statement and returns it once it is on disk. Waits for room.
    pub(crate) async fn sign(&self, draft: Draft) -> Result<Entry, Error> {
        let (reply, answer) = oneshot::channel();
        self.drafts.send((draft, reply)).await.map_err(|_| fault("its thread has ended"))?;
        answer.await.map_err(|_| fault("its thread has ended"))?
    }

    /// The same, but gives up at once when the disk is far behind, and after `patience`: for refusals, so that a flood
    /// of them cannot pile up. The statement may still be logged after that.
    pub(crate) async fn try_sign(&self, draft: Draft, patience: Duration) -> Result<Entry, Error> {
        let (reply, answer) = oneshot::channel();
        self.drafts.try_send((draft, reply)).map_err(|_| fault("too many statements wait for the disk"))?;
        tokio::time::timeout(patience, answer)
            .await
            .map_err(|_| fault("the disk is too slow"))?
            .map_err(|_| fault("its thread has ended"))?
    }

    /// The statement that answered a request under a nonce: the receipt if there is one, else the last failure. Without
    /// the commitment to a request, the newest of all answers to that nonce.
    pub(crate) fn answer_to(
        &self,
        nonce: &Bytes32,
        request: Option<&Bytes32>,
    ) -> Result<Option<Entry>, Error> {
        let transaction = self.database.begin_read().map_err(fault)?;
        let answers = transaction.open_table(ANSWERS).map_err(fault)?;
        let (least, most) = match request {
            Some(request) => (*request, *request),
            None => (Bytes32([0; 32]), Bytes32([0xff; 32])),
        };
        let mut newest = None;
        for row in answers.range(place(nonce, &least)..=place(nonce, &most)).map_err(fault)? {
            newest = newest.max(Some(row.map_err(fault)?.1.value()));
        }
        entry(&transaction, newest)
    }

    /// This worker's audit of a receipt.
    pub(crate) fn audit_of(&self, receipt: &Bytes32) -> Result<Option<Entry>, Error> {
        let transaction = self.database.begin_read().map_err(fault)?;
        let sequence = transaction.open_table(AUDITS).map_err(fault)?.get(receipt.0).map_err(fault)?;
        entry(&transaction, sequence.map(|row| row.value()))
    }

    /// Receipts with vouchers that may not be settled yet, `limit` statements on at most, and the sequence number after the
    /// last statement that was looked at.
    pub(crate) async fn earned(&self, limit: usize) -> Result<(Vec<Earned>, u64), Error> {
        self.beside(move |database| {
            let transaction = database.begin_read().map_err(fault)?;
            let settled = transaction.open_table(SETTLED).map_err(fault)?.get(()).map_err(fault)?;
            let mut mark = settled.map_or(0, |row| row.value());
            let mut earned = Vec::new();
            let statements = transaction.open_table(STATEMENTS).map_err(fault)?;
            for row in statements.range(mark..).map_err(fault)?.take(limit) {
                let (sequence, bytes) = row.map_err(fault)?;
                let entry: Entry = serde_json::from_slice(bytes.value()).map_err(fault)?;
                mark = sequence.value() + 1;
                if let Some(payable) = entry.payable() {
                    earned.push(Earned { sequence: sequence.value(), payable });
                }
            }
            Ok((earned, mark))
        })
        .await
    }

    /// Keeps which receipts lines have, and that nothing before `mark` waits.
    pub(crate) async fn keep_lines(&self, lines: Vec<(Bytes32, Vec<u64>)>, mark: u64) -> Result<(), Error> {
        self.beside(move |database| {
            let known = database.begin_read().map_err(fault)?.open_table(SETTLED).map_err(fault)?;
            if lines.is_empty() && known.get(()).map_err(fault)?.map_or(0, |row| row.value()) == mark {
                return Ok(());
            }
            let transaction = database.begin_write().map_err(fault)?;
            let mut kept = transaction.open_table(LINES).map_err(fault)?;
            for (root, sequences) in lines {
                let bytes = serde_json::to_vec(&sequences).map_err(fault)?;
                kept.insert(root.0, bytes.as_slice()).map_err(fault)?;
            }
            drop(kept);
            transaction.open_table(SETTLED).map_err(fault)?.insert((), mark).map_err(fault)?;
            transaction.commit().map_err(fault)
        })
        .await
    }

    /// The receipts of a line, by the root of its sum tree; none when it is not one of this worker's.
    pub(crate) async fn line(&self, root: Bytes32) -> Result<Vec<Payable>, Error> {
        self.beside(move |database| {
            let transaction = database.begin_read().map_err(fault)?;
            let lines = transaction.open_table(LINES).map_err(fault)?;
            let Some(bytes) = lines.get(root.0).map_err(fault)? else { return Ok(Vec::new()) };
            let sequences: Vec<u64> = serde_json::from_slice(bytes.value()).map_err(fault)?;
            let entries = sequences.into_iter().map(|sequence| entry(&transaction, Some(sequence)));
            let found: Vec<_> = entries.collect::<Result<_, _>>()?;
            Ok(found.into_iter().flatten().filter_map(Entry::payable).collect())
        })
        .await
    }

    /// The line of a receipt, by the hash that it was signed under; the newest are looked at first. `None` where this worker signed none
    /// such.
    pub(crate) async fn receipt(&self, hash: Bytes32) -> Result<Option<Entry>, Error> {
        self.beside(move |database| {
            let transaction = database.begin_read().map_err(fault)?;
            for row in transaction.open_table(STATEMENTS).map_err(fault)?.iter().map_err(fault)?.rev() {
                let entry: Entry = serde_json::from_slice(row.map_err(fault)?.1.value()).map_err(fault)?;
                if matches!(&entry.statement, AnyStatement::Receipt(receipt) if receipt.hash(&entry.domain) == hash) {
                    return Ok(Some(entry));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Works on the database beside the async threads.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let database = self.database.clone();
        tokio::task::spawn_blocking(move || work(&database)).await.map_err(fault)?
    }

    /// Whether a request was answered under this nonce by a receipt, or by a failure after something had been streamed.
    /// A request that was refused outright may be sent again under its nonce.
    pub(crate) fn is_spent(&self, nonce: &Bytes32, request: &Bytes32) -> Result<bool, Error> {
        Ok(self.answer_to(nonce, Some(request))?.is_some_and(|entry| spends(&entry.statement)))
    }
}

/// Reads the statements of a worker that is not running, in order, from number `first` on and at most `limit` of them: to
/// export them, or to check that the sequence has no gaps and no forks.
///
/// # Errors
/// [`Error::Log`] when the log is missing, damaged or in use.
///
/// ```no_run
/// let folder = std::path::Path::new("/var/lib/assay/worker");
/// for statement in assay_worker::statements(folder, 0, 100)? {
///     println!("{} {}", statement.sequence(), statement.worker());
/// }
/// # Ok::<(), assay_worker::Error>(())
/// ```
pub fn statements(data_dir: &Path, first: u64, limit: usize) -> Result<Vec<AnyStatement>, Error> {
    let database = Database::open(data_dir.join(FILE)).map_err(fault)?;
    let transaction = database.begin_read().map_err(fault)?;
    let table = transaction.open_table(STATEMENTS).map_err(fault)?;
    let rows = table.range(first..).map_err(fault)?.take(limit);
    rows.map(|row| {
        let (_, bytes) = row.map_err(fault)?;
        let entry: Entry = serde_json::from_slice(bytes.value()).map_err(fault)?;
        Ok(entry.statement)
    })
    .collect()
}

/// Key of [`ANSWERS`].
fn place(nonce: &Bytes32, request: &Bytes32) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(&nonce.0);
    key[32..].copy_from_slice(&request.0);
    key
}

fn entry(transaction: &redb::ReadTransaction, sequence: Option<u64>) -> Result<Option<Entry>, Error> {
    let Some(sequence) = sequence else { return Ok(None) };
    let statements = transaction.open_table(STATEMENTS).map_err(fault)?;
    let Some(bytes) = statements.get(sequence).map_err(fault)? else { return Ok(None) };
    serde_json::from_slice(bytes.value()).map(Some).map_err(fault)
}

fn spends(statement: &AnyStatement) -> bool {
    match statement {
        AnyStatement::Receipt(_) => true,
        AnyStatement::Failure(failure) => failure.statement.chunks > 0,
        AnyStatement::Audit(_) => false,
    }
}

struct Signer {
    database: Arc<Database>,
    key: Arc<Key>,
    domain: Domain,
    keep_ms: u64,
    next: u64,
    previous: Bytes32,
}

/// Drops the outputs of receipts that ended before `before_ms`, oldest first, and remembers how far it came.
fn drop_outputs(
    statements: &mut Table<'_, u64, &'static [u8]>,
    dropped: &mut Table<'_, (), u64>,
    before_ms: u64,
) -> Result<(), Error> {
    let start = dropped.get(()).map_err(fault)?.map_or(0, |row| row.value());
    let mut at = start;
    while at < start + SWEEP as u64 {
        let Some(mut entry) = statements
            .get(at)
            .map_err(fault)?
            .map(|bytes| serde_json::from_slice::<Entry>(bytes.value()).map_err(fault))
            .transpose()?
        else {
            break;
        };
        if let AnyStatement::Receipt(receipt) = &entry.statement {
            if receipt.statement.finished_at_ms >= before_ms {
                break;
            }
            entry.output = None;
            entry.split.clear();
            entry.request = None;
            let bytes = serde_json::to_vec(&entry).map_err(fault)?;
            statements.insert(at, bytes.as_slice()).map_err(fault)?;
        }
        at += 1;
    }
    if at > start {
        dropped.insert((), at).map_err(fault)?;
    }
    Ok(())
}

impl Signer {
    fn sign(&mut self, group: &mut Vec<(Draft, Reply)>) {
        let (drafts, replies): (Vec<_>, Vec<_>) = group.drain(..).unzip();
        match self.commit(drafts) {
            Ok(entries) => {
                for (entry, reply) in entries.into_iter().zip(replies) {
                    let _ = reply.send(Ok(entry)); // a caller that went away can still fetch it by its nonce
                }
            }
            Err(error) => {
                tracing::error!(%error, "statements could not be committed");
                for reply in replies {
                    let _ = reply.send(Err(fault(&error)));
                }
            }
        }
    }

    /// Signs and commits all drafts, or none: the sequence only moves on when they are on disk.
    fn commit(&mut self, drafts: Vec<Draft>) -> Result<Vec<Entry>, Error> {
        let (mut next, mut previous) = (self.next, self.previous);
        let mut entries = Vec::with_capacity(drafts.len());
        // The default durability of redb: the commit returns after the data is synced.
        let transaction = self.database.begin_write().map_err(fault)?;
        {
            let mut statements = transaction.open_table(STATEMENTS).map_err(fault)?;
            let mut answered = transaction.open_table(ANSWERS).map_err(fault)?;
            let mut audits = transaction.open_table(AUDITS).map_err(fault)?;
            for draft in drafts {
                let answers = !matches!(draft, Draft::NoAudit(_));
                let entry = self.place(draft, next, previous);
                let bytes = serde_json::to_vec(&entry).map_err(fault)?;
                statements.insert(next, bytes.as_slice()).map_err(fault)?;
                match &entry.statement {
                    AnyStatement::Receipt(signed) => {
                        let key = place(&signed.statement.nonce, &signed.statement.request);
                        answered.insert(key, next).map_err(fault)?;
                    }
                    AnyStatement::Failure(_) if !answers => {}
                    AnyStatement::Failure(signed) => {
                        let key = place(&signed.statement.nonce, &signed.statement.request);
                        let before = answered.get(key).map_err(fault)?.map(|row| row.value());
                        // A later refusal (say, of the duplicate nonce) must not hide what spent the nonce.
                        let hides = match before {
                            None => false,
                            Some(before) => match statements.get(before).map_err(fault)? {
                                None => false,
                                Some(bytes) => {
                                    let before: Entry =
                                        serde_json::from_slice(bytes.value()).map_err(fault)?;
                                    spends(&before.statement) && !spends(&entry.statement)
                                }
                            },
                        };
                        if !hides {
                            answered.insert(key, next).map_err(fault)?;
                        }
                    }
                    AnyStatement::Audit(signed) => {
                        audits.insert(signed.statement.receipt.0, next).map_err(fault)?;
                    }
                }
                previous = entry.statement.hash(&self.domain);
                next += 1;
                entries.push(entry);
            }
            let mut dropped = transaction.open_table(DROPPED).map_err(fault)?;
            drop_outputs(&mut statements, &mut dropped, now_ms().saturating_sub(self.keep_ms))?;
        }
        transaction.commit().map_err(fault)?;
        (self.next, self.previous) = (next, previous);
        Ok(entries)
    }

    fn place(&self, draft: Draft, sequence: u64, previous: Bytes32) -> Entry {
        let (mut split, mut charged) = (Vec::new(), None);
        let (statement, output) = match draft {
            Draft::Receipt(receipt, output, parts, paid) => {
                (split, charged) = (parts, paid);
                let receipt = Receipt { sequence, previous, ..*receipt };
                (AnyStatement::Receipt(Signed::sign(&self.key, &self.domain, receipt)), Some(*output))
            }
            Draft::Failure(failure) | Draft::NoAudit(failure) => {
                let failure = Failure { sequence, previous, ..*failure };
                (AnyStatement::Failure(Signed::sign(&self.key, &self.domain, failure)), None)
            }
            Draft::Audit(audit) => {
                let audit = Audit { sequence, previous, ..*audit };
                (AnyStatement::Audit(Signed::sign(&self.key, &self.domain, audit)), None)
            }
        };
        let (voucher, request) = charged.map(|paid| *paid).unzip();
        Entry { domain: self.domain, statement, output, split, voucher, request: request.map(Box::new) }
    }
}

#[cfg(test)]
mod tests {
    use assay_receipt::{Address, FailureCode, FinishReason, Level};

    use super::*;

    const DOMAIN: Domain = Domain { chain_id: 1, contract: Address::ZERO };

    fn failure(nonce: u8, chunks: u64) -> Draft {
        let none = Bytes32::ZERO;
        Draft::Failure(Box::new(Failure {
            worker: key().address(),
            key_epoch: 0,
            model: none,
            request: none,
            nonce: Bytes32([nonce; 32]),
            payer: Address::ZERO,
            code: FailureCode::Busy,
            message: String::new(),
            retry_after_ms: 0,
            chunks,
            chain: none,
            sequence: 77,
            previous: Bytes32([7; 32]),
            received_at_ms: 0,
            finished_at_ms: 0,
        }))
    }

    fn key() -> Key {
        Key::from_bytes([7; 32]).unwrap()
    }

    fn start(path: &Path) -> (Log, JoinHandle<()>) {
        start_keeping(path, Duration::MAX)
    }

    fn start_keeping(path: &Path, keep: Duration) -> (Log, JoinHandle<()>) {
        Opened::open(path).unwrap().start(Arc::new(key()), DOMAIN, keep).unwrap()
    }

    fn receipt(nonce: u8, finished_at_ms: u64) -> Draft {
        let none = Bytes32::ZERO;
        let output = Output {
            text: "text".into(),
            tool_calls: None,
            finish_reason: FinishReason::Stop,
            tokens: vec![1],
            prompt_tokens: 1,
            completion_tokens: 1,
            logprobs: Vec::new(),
        };
        let receipt = Receipt {
            worker: key().address(),
            key_epoch: 0,
            model: none,
            arithmetic: 1,
            level: Level::Signed,
            request: none,
            output: none,
            chunks: 1,
            chain: none,
            trace: none,
            prompt_tokens: 1,
            completion_tokens: 1,
            price: 1,
            payer: Address::ZERO,
            cap: 1,
            nonce: Bytes32([nonce; 32]),
            sequence: 0,
            previous: none,
            received_at_ms: 0,
            first_token_at_ms: 0,
            finished_at_ms,
        };
        Draft::Receipt(Box::new(receipt), Box::new(output), vec![(4, 1, 0)], None)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn old_outputs_are_dropped_and_statements_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let (log, thread) = start(&path);
        let old = log.sign(receipt(1, now_ms() - 7_200_000)).await.unwrap();
        log.sign(failure(2, 0)).await.unwrap();
        let fresh = log.sign(receipt(3, now_ms())).await.unwrap();
        let late = log.sign(receipt(4, now_ms() - 7_200_000)).await.unwrap();
        assert_eq!(log.answer_to(&Bytes32([1; 32]), None).unwrap(), Some(old.clone()), "nothing is old yet");
        drop(log);
        thread.join().unwrap();

        let (log, thread) = start_keeping(&path, Duration::from_secs(3_600));
        log.sign(failure(5, 0)).await.unwrap();
        let stripped = Entry { output: None, split: Vec::new(), ..old };
        assert_eq!(log.answer_to(&Bytes32([1; 32]), None).unwrap(), Some(stripped));
        assert_eq!(log.answer_to(&Bytes32([3; 32]), None).unwrap(), Some(fresh));
        // It stands behind a fresh one, and waits for that.
        assert_eq!(log.answer_to(&Bytes32([4; 32]), None).unwrap(), Some(late));
        assert!(log.is_spent(&Bytes32([1; 32]), &Bytes32::ZERO).unwrap());
        drop(log);
        thread.join().unwrap();
        let entries = statements(folder.path(), 0, 10).unwrap();
        assert_eq!(entries.len(), 5);
        assert!(entries.iter().all(|entry| entry.is_by_author(&DOMAIN)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_earned_waits_until_it_is_settled_and_its_line_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let (log, thread) = start(&path);
        let paid = |nonce: u8| {
            let Draft::Receipt(receipt, output, split, _) = receipt(nonce, now_ms()) else { unreachable!() };
            let voucher = Voucher {
                payer: receipt.payer,
                worker: receipt.worker,
                model: receipt.model,
                request: receipt.request,
                nonce: receipt.nonce,
                prompt: Bytes32::ZERO,
                prompt_price: 1,
                completion_price: 0,
                cap: 1,
                expires_at_ms: 9,
            };
            let voucher = Signed::sign(&key(), &DOMAIN, voucher);
            let request = Request::from_text(receipt.model, "a question", 1);
            Draft::Receipt(receipt, output, split, Some(Box::new((voucher, request))))
        };
        for draft in [paid(1), failure(2, 0), receipt(3, now_ms()), paid(4)] {
            log.sign(draft).await.unwrap();
        }
        // Whoever disputes an answer names its receipt by its hash.
        let first = log.answer_to(&Bytes32([1; 32]), None).unwrap().unwrap();
        let AnyStatement::Receipt(signed) = &first.statement else { unreachable!() };
        let found = log.receipt(signed.hash(&DOMAIN)).await.unwrap();
        assert_eq!(found.as_ref().and_then(|entry| entry.request.as_ref()).unwrap().max_tokens, 1);
        assert_eq!(found, Some(first));
        assert_eq!(log.receipt(Bytes32([7; 32])).await.unwrap(), None);
        let sequences = async |log: &Log, limit| {
            let (earned, mark) = log.earned(limit).await.unwrap();
            (earned.iter().map(|one| one.sequence).collect::<Vec<_>>(), mark)
        };
        assert_eq!(sequences(&log, 10).await, (vec![0, 3], 4));
        assert_eq!(sequences(&log, 2).await, (vec![0], 2));
        log.keep_lines(vec![(Bytes32([9; 32]), vec![0, 3])], 3).await.unwrap();
        drop(log);
        thread.join().unwrap();

        let (log, _thread) = start(&path);
        assert_eq!(sequences(&log, 10).await, (vec![3], 4));
        let line = log.line(Bytes32([9; 32])).await.unwrap();
        assert_eq!(line.iter().map(|one| one.voucher.statement.nonce.0[0]).collect::<Vec<_>>(), [1, 4]);
        assert!(line.iter().all(|one| one.receipt.is_by_author(&DOMAIN)));
        assert!(log.line(Bytes32([8; 32])).await.unwrap().is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refused_audit_is_no_answer_to_the_nonce() {
        let folder = tempfile::tempdir().unwrap();
        let (log, _) = start(&folder.path().join(FILE));
        let Draft::Failure(refusal) = failure(1, 0) else { unreachable!() };
        log.sign(Draft::NoAudit(refusal)).await.unwrap();
        assert_eq!(log.answer_to(&Bytes32([1; 32]), None).unwrap(), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_chain_goes_on_over_restarts_without_gaps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for round in 0..3_u8 {
            let (log, thread) = start(&path);
            let drafts = (0..40).map(|number| log.sign(failure(round * 40 + number, 0)));
            for entry in futures_util::future::join_all(drafts).await {
                assert!(entry.unwrap().statement.is_by_author(&DOMAIN));
            }
            drop(log);
            thread.join().unwrap();
        }
        let entries = statements(folder.path(), 0, 1000).unwrap();
        assert_eq!(entries.len(), 120);
        let mut previous = Bytes32::ZERO;
        for (sequence, statement) in entries.iter().enumerate() {
            assert_eq!(statement.sequence(), sequence as u64);
            assert_eq!(statement.previous(), previous);
            previous = statement.hash(&DOMAIN);
        }
        assert_eq!(statements(folder.path(), 118, 1000).unwrap(), entries[118..]);
        assert_eq!(statements(folder.path(), 5, 2).unwrap(), entries[5..7]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refusal_leaves_the_nonce_free_and_never_hides_what_spent_it() {
        let folder = tempfile::tempdir().unwrap();
        let (log, _) = start(&folder.path().join(FILE));
        let nonce = Bytes32([1; 32]);
        assert_eq!(log.answer_to(&nonce, None).unwrap(), None);
        log.sign(failure(1, 0)).await.unwrap();
        assert!(!log.is_spent(&nonce, &Bytes32::ZERO).unwrap());
        let broken = log.sign(failure(1, 3)).await.unwrap();
        assert!(log.is_spent(&nonce, &Bytes32::ZERO).unwrap());
        log.sign(failure(1, 0)).await.unwrap();
        assert_eq!(log.answer_to(&nonce, None).unwrap(), Some(broken));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_nonce_is_spent_for_its_request_only() {
        let folder = tempfile::tempdir().unwrap();
        let (log, _) = start(&folder.path().join(FILE));
        let (nonce, own, strange) = (Bytes32([1; 32]), Bytes32([2; 32]), Bytes32([3; 32]));
        let of = |request| {
            let Draft::Failure(mut failure) = failure(1, 4) else { unreachable!() };
            failure.request = request;
            Draft::Failure(failure)
        };
        let stranger = log.sign(of(strange)).await.unwrap();
        assert!(log.is_spent(&nonce, &strange).unwrap() && !log.is_spent(&nonce, &own).unwrap());
        assert_eq!(log.answer_to(&nonce, Some(&own)).unwrap(), None);
        let mine = log.sign(of(own)).await.unwrap();
        assert_eq!(log.answer_to(&nonce, Some(&own)).unwrap(), Some(mine.clone()));
        assert_eq!(log.answer_to(&nonce, Some(&strange)).unwrap(), Some(stranger));
        assert_eq!(log.answer_to(&nonce, None).unwrap(), Some(mine), "the newest");
    }

    #[test]
    fn a_second_worker_cannot_open_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let _first = Opened::open(&path).unwrap();
        assert!(matches!(Opened::open(&path), Err(Error::Log { .. })));
    }

    #[test]
    fn a_damaged_log_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, [1; 5000]).unwrap();
        assert!(matches!(Opened::open(&path), Err(Error::Log { .. })));
    }
}
