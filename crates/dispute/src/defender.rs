//! The side of a worker whose receipts are disputed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_engine::trace::Trace;
use assay_ledger::types::{Address, hex};
use assay_receipt::{Bytes32, Key};
use assay_wallet::abi::{self, text};
use assay_wallet::chain::Chain;
use assay_wallet::client::{ClientError, address_of};
use serde_json::{Value, json};

use crate::game::{State, Turn, time};
use crate::knowledge::STEP;

/// Until what did not work is tried again: showing how an answer came about, and the price of one that was defended, which is paid when
/// its batch's window is over.
const AGAIN: Duration = Duration::from_secs(60);

/// A move of a defender.
#[derive(Clone, Debug)]
pub struct Played {
    /// Number of the dispute.
    pub dispute: u64,
    /// The function that was called.
    pub function: &'static str,
    /// Gas that it used.
    pub gas: u64,
}

/// Plays for one worker. It signs with the worker's own key, whose account needs coins for gas.
#[derive(Debug)]
pub struct Defender {
    chain: Chain,
    key: Arc<Key>,
    worker: Address,
    /// The first dispute that was not looked at.
    next: u64,
    /// Disputes of this worker that are not over, with their receipts.
    open: BTreeMap<u64, Bytes32>,
    /// Traces of these receipts.
    traces: HashMap<Bytes32, Arc<Trace>>,
    /// Receipts that could not be shown, and when to try again.
    unshown: HashMap<Bytes32, Instant>,
    /// Receipts whose disputes are over and were not lost, and when to ask again for their price.
    held: HashMap<Bytes32, Instant>,
}

impl Defender {
    /// For the worker with this key.
    pub fn new(chain: Chain, key: Arc<Key>) -> Self {
        let worker = address_of(&key);
        Self {
            chain,
            key,
            worker,
            next: 1,
            open: BTreeMap::new(),
            traces: HashMap::new(),
            unshown: HashMap::new(),
            held: HashMap::new(),
        }
    }

    /// Looks for disputes and makes every move that is due. `trace_of` gives the trace of a receipt, by its hash; `None` where the worker
    /// has nothing to show, which loses the dispute by silence.
    ///
    /// # Errors
    /// [`ClientError`]; what was done before it happened is on the chain, and the next round goes on.
    pub async fn round<F: Future<Output = Option<Arc<Trace>>>>(
        &mut self,
        trace_of: impl Fn(Bytes32) -> F,
    ) -> Result<Vec<Played>, ClientError> {
        let count = self.chain.number("Disputes", "disputeCount", &[]).await?.saturating_to::<u64>();
        while self.next <= count {
            let state = State::read(&self.chain, self.next).await?;
            if state.worker == self.worker {
                self.open.insert(self.next, state.receipt);
            }
            self.next += 1;
        }
        let (mut played, mut refused) = (Vec::new(), None);
        for (id, receipt) in self.open.clone() {
            let state = State::read(&self.chain, id).await?;
            let call: Option<(&'static str, Vec<Value>)> = match state.turn {
                Turn::Over => {
                    self.open.remove(&id);
                    self.over(receipt).await?;
                    None
                }
                Turn::Challenge if time(&self.chain).await? > state.deadline => {
                    Some(("timeout", vec![json!(id)]))
                }
                Turn::Challenge => None,
                Turn::Commit | Turn::Reveal => {
                    let waits = self.unshown.get(&receipt).is_some_and(|until| *until > Instant::now());
                    if !waits && !self.traces.contains_key(&receipt) {
                        match trace_of(receipt).await {
                            Some(trace) => drop(self.traces.insert(receipt, trace)),
                            None => drop(self.unshown.insert(receipt, Instant::now() + AGAIN)),
                        }
                    }
                    self.traces.get(&receipt).map(|trace| answer(id, &state, trace))
                }
            };
            if let Some((function, arguments)) = call {
                match self.chain.transact(&self.key, "Disputes", function, &arguments).await {
                    Ok(sent) => played.push(Played { dispute: id, function, gas: sent.gas }),
                    // The other disputes go on.
                    Err(error @ ClientError::Reverted(_)) => refused = Some(error),
                    Err(error) => return Err(error),
                }
            }
        }
        let traces = &mut self.traces;
        traces.retain(|receipt, _| self.open.values().any(|open| open == receipt));
        let due: Vec<_> =
            self.held.iter().filter(|(_, at)| **at <= Instant::now()).map(|(receipt, _)| *receipt).collect();
        for receipt in due {
            match self.chain.transact(&self.key, "Disputes", "conclude", &[text(receipt)]).await {
                Ok(sent) => {
                    self.held.remove(&receipt);
                    played.push(Played { dispute: 0, function: "conclude", gas: sent.gas });
                }
                // The window is not over yet, or there is another dispute.
                Err(ClientError::Reverted(_)) => {
                    self.held.insert(receipt, Instant::now() + AGAIN);
                }
                Err(error) => return Err(error),
            }
        }
        refused.map_or(Ok(played), Err)
    }

    /// Notes a receipt whose price is held, unless it was refuted or paid.
    async fn over(&mut self, receipt: Bytes32) -> Result<(), ClientError> {
        let refuted = self.chain.view("Disputes", "refuted", &[text(receipt)]).await?;
        let head = self.chain.head().await?;
        let paid = self.chain.events("Disputes", "Concluded", &[text(receipt)], 0..=head).await?;
        if refuted == json!(false) && paid.is_empty() {
            self.held.insert(receipt, Instant::now());
        }
        Ok(())
    }
}

/// The worker's move: the commitment, the nodes below the present one, or the tile.
fn answer(id: u64, state: &State, trace: &Trace) -> (&'static str, Vec<Value>) {
    let tree = trace.tree();
    if state.turn == Turn::Commit {
        return ("commit", vec![json!(id), text(trace.root()), abi::text(trace.size())]);
    }
    if state.level == 0 {
        return ("revealTile", vec![json!(id), json!(hex::encode_prefixed(trace.tile(state.index)))]);
    }
    let down = state.level.min(STEP);
    let first = (state.index as usize) << down;
    let nodes = tree.level(state.level - down);
    let nodes = &nodes[first.min(nodes.len())..nodes.len().min(first + (1 << down))];
    ("reveal", vec![json!(id), json!(nodes)])
}
