//! Being paid: which voucher a call needs, and the receipts of this worker in batches on a chain (docs/settlement.md).
//!
//! What was settled, and in which batches, is on the chain; the log has the receipts and vouchers, and which of them are in
//! which line. So nothing is lost by a restart, and a batch's data can be served as long as the log has it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assay_receipt::{Address, Bytes32, FailureCode, GenerateCall, Offer, Request, Signed, Voucher};
use assay_wallet::abi::{self, text};
use assay_wallet::chain::{Chain, Event, topic};
use assay_wallet::client::ClientError;
use assay_wallet::settlement::{Line, Payable};
use serde_json::{Value, json};

use crate::Error;
use crate::answer::Trouble;
use crate::log::Earned;
use crate::server::{Phase, Shared, now_ms};

/// What clocks may differ, in milliseconds: the contract's `CLOCK_SKEW_MS`.
const CLOCK_SKEW_MS: u64 = 60_000;
/// A request with an earlier nonce may still be on its way for so long, in milliseconds; receipts wait for it.
const ON_THE_WAY_MS: u64 = 2_000;
/// How long a payer's deposit counts as read.
const FRESH: Duration = Duration::from_secs(5);
/// Payers that are remembered.
const PAYERS: usize = 10_000;
/// Receipts of one round, and so of one line.
const ROUND: usize = 1_000;
/// Lines of one batch: the contract's `LINES`.
const LINES: usize = 256;
/// Seconds until a batch that could not be paid yet is tried again.
const PATIENCE_S: u64 = 60;

/// What is known of a payer.
struct Payer {
    /// Its deposit when it was read, less what it owed this worker then, in 10^-18 OPG.
    free: u128,
    /// Caps of the calls that were admitted since.
    promised: u128,
    read: Instant,
}

/// A batch of this worker that is not paid yet.
struct Batch {
    lines: Value,
    /// When it can be paid, in seconds since 1970.
    due_s: u64,
}

/// The payer and the model of a line.
type Account = (Address, Bytes32);

/// What the worker knows of the chain.
pub(crate) struct Settlement {
    pub(crate) chain: Chain,
    payers: Mutex<HashMap<Address, Payer>>,
    /// The largest nonce that was submitted for a payer and a model by this process.
    passed: Mutex<HashMap<Account, Bytes32>>,
    /// What payers owe for receipts that are in no batch yet.
    owed: Mutex<HashMap<Address, u128>>,
}

fn no(message: impl Into<String>) -> Trouble {
    Trouble::new(FailureCode::BadRequest, message)
}

fn unreachable(error: &ClientError) -> Trouble {
    tracing::warn!(%error, "a voucher could not be checked");
    let message = "The chain cannot be reached, so the voucher cannot be checked: ask another worker.";
    Trouble::new(FailureCode::Busy, message).retry_after(5_000)
}

impl Settlement {
    pub(crate) fn new(config: &crate::Config) -> Result<Option<Settlement>, Error> {
        let Some(settings) = &config.chain else { return Ok(None) };
        let refused = |fault: ClientError| Error::Config { fault: fault.to_string() };
        let chain = Chain::at(&settings.rpc).map_err(refused)?;
        let contract = chain.system.address("Settlement").map_err(|fault| refused(fault.into()))?;
        if config.domain.contract.0 != contract.0.0 {
            let fault = format!("domain.contract must be {contract}, where receipts settle");
            return Err(Error::Config { fault });
        }
        Ok(Some(Settlement {
            chain,
            payers: Mutex::default(),
            passed: Mutex::default(),
            owed: Mutex::default(),
        }))
    }

    /// Checks that a call can be paid for: a voucher for it at these prices, signed by who may, and a deposit that covers it.
    pub(crate) async fn check(
        &self,
        shared: &Shared,
        call: &GenerateCall,
        commitment: Bytes32,
        offer: &Offer,
    ) -> Result<(), Trouble> {
        if offer.prompt_price == 0 && offer.completion_price == 0 {
            return Ok(());
        }
        let voucher = call.voucher.as_ref().ok_or_else(|| {
            no("This worker is paid on a chain: send the payer's voucher with the call (docs/settlement.md).")
        })?;
        let now = now_ms();
        let given = &voucher.statement;
        if *given != Voucher::new(call, commitment, given.prompt, shared.address, offer, given.expires_at_ms)
        {
            return Err(no(format!(
                "The voucher is not for this call at this worker's prices, {} and {} 10^-18 OPG a token: sign one for what is asked.",
                offer.prompt_price, offer.completion_price
            )));
        }
        if given.expires_at_ms < now {
            return Err(no("The voucher has expired: sign one with a later time."));
        }
        let mut time = [0; 8];
        time.copy_from_slice(&call.nonce.0[..8]);
        if u64::from_be_bytes(time) > now.saturating_add(CLOCK_SKEW_MS) {
            return Err(no("The nonce is from the future: begin it with the milliseconds since 1970."));
        }
        if self.has_passed(call.payer, given.model, call.nonce) {
            return Err(Trouble::new(
                FailureCode::Busy,
                "Later requests of this payer were settled already: ask with a fresh nonce.",
            ));
        }
        let signer =
            voucher.signer(&shared.config.domain).map_err(|_| no("The voucher's signature is none."))?;
        if signer != call.payer {
            let until = self.chain.view("Deposits", "signerUntil", &[text(call.payer), text(signer)]).await;
            let until = until.map_err(|error| unreachable(&error))?;
            // As long as the receipt may take to get into a batch.
            let until = abi::number(&until).unwrap_or_default().saturating_to::<u64>();
            if until < now / 1_000 + 86_400 {
                return Err(no(format!(
                    "The voucher was signed by {signer}, which may not sign for the payer."
                )));
            }
        }
        self.reserve(call.payer, call.cap).await
    }

    fn has_passed(&self, payer: Address, model: Bytes32, nonce: Bytes32) -> bool {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.get(&(payer, model)).is_some_and(|passed| nonce <= *passed)
    }

    /// Notes the largest nonces that are submitted; what they were before.
    fn pass(&self, nonces: impl IntoIterator<Item = (Account, Bytes32)>) -> Vec<(Account, Bytes32)> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replace = |(key, nonce)| (key, passed.insert(key, nonce).unwrap_or(Bytes32::ZERO));
        nonces.into_iter().map(&mut replace).collect()
    }

    /// Takes a call's cap from what a payer has free. Other workers may take the same at the same time: what a payer
    /// promises twice is lost by who settles last, so batches are submitted often.
    async fn reserve(&self, payer: Address, cap: u128) -> Result<(), Trouble> {
        let fresh = |known: &HashMap<Address, Payer>| {
            known.get(&payer).is_some_and(|known| known.read.elapsed() < FRESH)
        };
        if !fresh(&self.payers.lock().unwrap_or_else(PoisonError::into_inner)) {
            let deposit = self.chain.view("Deposits", "depositOf", &[text(payer)]).await;
            let balance = deposit.map_err(|error| unreachable(&error))?;
            let balance = abi::number(&balance["balance"]).unwrap_or_default().saturating_to::<u128>();
            let owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner).get(&payer).copied();
            let free = balance.saturating_sub(owed.unwrap_or_default());
            let mut payers = self.payers.lock().unwrap_or_else(PoisonError::into_inner);
            if payers.len() >= PAYERS {
                payers.clear();
            }
            payers.insert(payer, Payer { free, promised: 0, read: Instant::now() });
        }
        let mut payers = self.payers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = payers.get_mut(&payer) else { return Ok(()) };
        let promised = known.promised.saturating_add(cap);
        if promised > known.free {
            return Err(Trouble::new(
                FailureCode::CapExceeded,
                format!(
                    "The payer's deposit has {} 10^-18 OPG free, less than this call may cost ({promised} with those under way): deposit more.",
                    known.free
                ),
            ));
        }
        known.promised = promised;
        Ok(())
    }
}

/// Brings receipts to the chain and has batches paid, until the worker stops; once more at the end.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Some((settlement, every)) =
        shared.settlement.as_ref().zip(shared.config.chain.as_ref().map(|chain| chain.settle_every_s))
    else {
        return;
    };
    let mut phase = shared.phase.subscribe();
    let mut settler = Settler {
        shared: &shared,
        settlement,
        next_block: 0,
        batches: BTreeMap::new(),
        unpayable: HashSet::new(),
    };
    loop {
        let stopping = tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(every.max(1))) => false,
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => true,
        };
        if let Err(error) = settler.round().await {
            tracing::warn!(%error, "receipts could not be settled; they are kept, and it is tried again");
        }
        if stopping {
            return;
        }
    }
}

struct Settler<'a> {
    shared: &'a Shared,
    settlement: &'a Settlement,
    /// The first block that was not looked at.
    next_block: u64,
    /// By number.
    batches: BTreeMap<u64, Batch>,
    /// Sequence numbers of receipts that the contract would not pay.
    unpayable: HashSet<u64>,
}

impl Settler<'_> {
    async fn round(&mut self) -> Result<(), Error> {
        let chain_id = self.settlement.chain.client.chain_id().await?;
        if chain_id != self.shared.config.domain.chain_id {
            let fault = format!(
                "the node is on chain {chain_id}, and this worker signs for chain {}",
                self.shared.config.domain.chain_id
            );
            return Err(Error::Config { fault });
        }
        self.submit().await?;
        self.follow().await?;
        self.pay().await
    }

    /// The nonces from here on wait: requests with earlier ones may still end.
    fn held_from(&self) -> Bytes32 {
        let mut bound = Bytes32::ZERO;
        bound.0[..8].copy_from_slice(&now_ms().saturating_sub(ON_THE_WAY_MS).to_be_bytes());
        self.shared.earliest_running().map_or(bound, |running| running.min(bound))
    }

    async fn settled_up_to(&self, payer: Address, model: Bytes32) -> Result<Bytes32, Error> {
        let who = [text(payer), text(self.shared.address), text(model)];
        let settled = self.settlement.chain.view("Settlement", "settledUpTo", &who).await?;
        let settled = settled.as_str().and_then(|nonce| nonce.parse().ok()).unwrap_or(Bytes32::ZERO);
        let mut passed = self.settlement.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = passed.entry((payer, model)).or_insert(settled);
        *known = settled.max(*known);
        Ok(*known)
    }

    /// Submits one batch of what can be.
    async fn submit(&mut self) -> Result<(), Error> {
        let (earned, mut mark) = self.shared.log.earned(ROUND).await?;
        let held = self.held_from();
        let mut groups: BTreeMap<([u8; 20], [u8; 32]), Vec<Earned>> = BTreeMap::new();
        for one in earned {
            let voucher = &one.payable.voucher.statement;
            groups.entry((voucher.payer.0, voucher.model.0)).or_default().push(one);
        }
        let (mut lines, mut kept) = (Vec::new(), Vec::new());
        let mut owed: HashMap<Address, u128> = HashMap::new();
        for ((payer, model), group) in groups {
            let (payer, model) = (Address(payer), Bytes32(model));
            let settled = self.settled_up_to(payer, model).await?;
            let mut payable = Vec::new();
            for one in group {
                let nonce = one.payable.voucher.statement.nonce;
                if nonce <= settled || self.unpayable.contains(&one.sequence) {
                    continue;
                }
                let price = one.payable.receipt.statement.price;
                if nonce >= held || lines.len() == LINES {
                    *owed.entry(payer).or_default() += price;
                    mark = mark.min(one.sequence);
                } else if let Some(fault) = self.fault(&one.payable).await? {
                    tracing::warn!(%nonce, fault, "a receipt is not payable and is left out");
                    self.unpayable.insert(one.sequence);
                } else {
                    mark = mark.min(one.sequence);
                    payable.push(one);
                }
            }
            if payable.is_empty() {
                continue;
            }
            payable.sort_by_key(|one| one.payable.voucher.statement.nonce);
            let sequences: Vec<_> = payable.iter().map(|one| one.sequence).collect();
            let last = payable.last().map(|one| one.payable.voucher.statement.nonce);
            let line = Line::new(payable.into_iter().map(|one| one.payable).collect());
            kept.push((line.root(), sequences));
            lines.push(((payer, model), last, line));
        }
        self.unpayable.retain(|sequence| *sequence >= mark);
        *self.settlement.owed.lock().unwrap_or_else(PoisonError::into_inner) = owed;
        // Before the chain has them, so that whatever is in a batch can be served.
        self.shared.log.keep_lines(kept, mark).await?;
        if lines.is_empty() {
            return Ok(());
        }
        let count: usize = lines.iter().map(|(.., line)| line.receipts.len()).sum();
        let documents: Vec<_> = lines.iter().map(|(.., line)| line.json()).collect();
        let arguments = [text(self.shared.address), json!(documents)];
        // From now on nothing earlier is taken, whether or not the answer of the node arrives.
        let before = self.settlement.pass(lines.iter().filter_map(|(key, last, _)| Some((*key, (*last)?))));
        let sent = self.settlement.chain.transact(&self.shared.key, "Settlement", "submit", &arguments).await;
        match sent {
            Ok(sent) => {
                tracing::info!(receipts = count, block = sent.block, gas = sent.gas, "receipts were settled");
                self.shared.metrics.settled.inc_by(count as u64);
                Ok(())
            }
            Err(error) => {
                // Nothing that is unsettled on the chain may be forgotten; if the batch did get there, the chain says so.
                self.settlement.pass(before);
                Err(error.into())
            }
        }
    }

    /// Why the contract would not pay a receipt.
    async fn fault(&self, one: &Payable) -> Result<Option<String>, Error> {
        let line = Line::new(vec![one.clone()]).json();
        let price = one.receipt.statement.price.to_string();
        let arguments = [text(self.shared.address), json!(now_ms() / 1_000), line, json!(price), one.leaf()];
        let fault = self.settlement.chain.view("Rules", "fault", &arguments).await?;
        Ok(fault.as_str().filter(|fault| !fault.is_empty()).map(str::to_owned))
    }

    /// Reads what happened on the chain since: new batches, and demands for data, which are answered.
    async fn follow(&mut self) -> Result<(), Error> {
        let chain = &self.settlement.chain;
        let head = chain.head().await?;
        if head < self.next_block {
            return Ok(());
        }
        let blocks = self.next_block..=head;
        let topics = [Value::Null, topic(self.shared.address)];
        for event in chain.events("Settlement", "Submitted", &topics, blocks.clone()).await? {
            let batch = Batch {
                lines: event.fields["lines"].clone(),
                due_s: abi::number(&event.fields["finalAt"]).unwrap_or_default().saturating_to(),
            };
            self.batches.insert(id_of(&event), batch);
        }
        for event in chain.events("Settlement", "Demanded", &[], blocks).await? {
            let id = id_of(&event);
            let Some(batch) = self.batches.get(&id) else { continue };
            match self.answer(id, batch, &event).await {
                Ok(()) => {}
                // Answered already, or the data is gone.
                Err(error @ (Error::Chain(ClientError::Reverted(_)) | Error::Log { .. })) => {
                    tracing::warn!(%error, batch = id, "a demand for a batch's data could not be answered");
                }
                // A demand that stays open voids the batch, so these blocks are read again.
                Err(error) => return Err(error),
            }
        }
        self.next_block = head + 1;
        Ok(())
    }

    /// Publishes a leaf that somebody has paid to see.
    async fn answer(&self, id: u64, batch: &Batch, demand: &Event) -> Result<(), Error> {
        let number =
            |name: &str| abi::number(&demand.fields[name]).unwrap_or_default().saturating_to::<usize>();
        let (line, index) = (number("line"), number("index"));
        let root =
            batch.lines[line]["root"].as_str().and_then(|root| root.parse().ok()).unwrap_or(Bytes32::ZERO);
        let receipts = self.shared.log.line(root).await?;
        let opening = Line::new(receipts).opening(line, index);
        let missing = || Error::Log { fault: format!("it does not have line {line} of batch {id}") };
        let arguments = [json!(id), batch.lines.clone(), opening.ok_or_else(missing)?];
        self.settlement.chain.transact(&self.shared.key, "Settlement", "answer", &arguments).await?;
        Ok(())
    }

    /// Has batches paid whose window is over.
    async fn pay(&mut self) -> Result<(), Error> {
        let chain = &self.settlement.chain;
        let now = now_ms() / 1_000;
        let due = self.batches.iter().filter(|(_, batch)| batch.due_s < now).map(|(id, _)| *id);
        for id in due.collect::<Vec<_>>() {
            let found = chain.view("Settlement", "batchOf", &[json!(id)]).await?;
            let Entry::Occupied(mut batch) = self.batches.entry(id) else { continue };
            if found["state"] != json!(1) {
                batch.remove(); // paid or void
                continue;
            }
            batch.get_mut().due_s = abi::number(&found["finalAt"]).unwrap_or_default().saturating_to();
            if batch.get().due_s >= now {
                continue; // a demand has moved it
            }
            let arguments = [json!(id), batch.get().lines.clone()];
            match chain.transact(&self.shared.key, "Settlement", "pay", &arguments).await {
                Ok(_) => {
                    tracing::info!(batch = id, "a batch is paid");
                    batch.remove();
                }
                Err(error) => {
                    // The chain's clock is a little behind, or a demand is open.
                    tracing::info!(batch = id, %error, "not paid yet");
                    batch.get_mut().due_s = now + PATIENCE_S;
                }
            }
        }
        Ok(())
    }
}

fn id_of(event: &Event) -> u64 {
    event.number(1).unwrap_or_default().saturating_to()
}

/// The leaves of a line, as the contract takes them.
pub(crate) fn leaves(receipts: &[Payable]) -> Value {
    json!({ "leaves": receipts.iter().map(Payable::leaf).collect::<Vec<_>>() })
}

/// The voucher and the request to keep with a receipt: none where nothing is charged.
pub(crate) fn kept(call: &GenerateCall, price: u128) -> Option<(Signed<Voucher>, Request)> {
    call.voucher.clone().filter(|_| price > 0).map(|voucher| (voucher, call.request.clone()))
}
