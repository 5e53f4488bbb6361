//! The side that says an answer is not the model's.

use std::sync::Arc;
use std::time::Duration;

use assay_engine::trace::Trace;
use assay_receipt::{Bundle, Bytes32, Domain, Key, Receipt, Signed, keccak256};
use assay_wallet::abi::{self, text};
use assay_wallet::client::{ClientError, address_of};
use assay_wallet::system::contract;
use serde_json::{Value, json};

use crate::DisputeError;
use crate::case::{Fault, Opened, case, unsupported};
use crate::game::{Action, Game, State, Turn, time};
use crate::knowledge::{Knowledge, STEP};
use assay_wallet::chain::{Chain, topic};

/// How often the chain is asked whether the worker has moved.
const POLL: Duration = Duration::from_millis(250);

/// Where a receipt is on the chain.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Number of the batch.
    pub batch: u64,
    /// Its lines, as the contract takes them.
    pub lines: Value,
    /// The receipt and its place, the contract's `Opening`.
    pub opening: Value,
    /// What its voucher says of the prompt's tokens; zero for nothing.
    pub prompt: Bytes32,
}

impl Settled {
    /// Finds a receipt among the leaves of its line, as its worker serves them (`GET /v1/lines/{root}`). `None` where the leaves are not
    /// those that the line commits to, or the receipt is none of them.
    pub fn new(
        batch: u64,
        lines: Value,
        line: usize,
        leaves: &[Value],
        receipt: &Receipt,
    ) -> Option<Settled> {
        let leaf_type = contract("Rules")?.function("fault", 5).ok()?;
        let mut level = Vec::with_capacity(leaves.len());
        for (index, leaf) in (0u64..).zip(leaves) {
            let amount: u128 = abi::number(&leaf["receipt"]["price"])?.try_into().ok()?;
            let data = keccak256(leaf_type.encode_input(4, leaf).ok()?);
            let bytes = [&[0], &index.to_be_bytes()[..], &amount.to_be_bytes(), &data.0].concat();
            level.push((keccak256(bytes), amount));
        }
        let index = leaves.iter().position(|leaf| leaf["receipt"]["nonce"] == text(receipt.nonce))?;
        let amount = level.get(index)?.1;
        let (mut siblings, mut sums, mut at) = (Vec::new(), Vec::new(), index);
        while level.len() > 1 {
            if let Some((hash, sum)) = level.get(at ^ 1) {
                siblings.push(text(hash));
                sums.push(text(sum));
            }
            let parent = |pair: &[(Bytes32, u128)]| match pair {
                [left, right] => {
                    let (l, r) = (left.1.to_be_bytes(), right.1.to_be_bytes());
                    let bytes = [&[1], &left.0.0[..], &l, &right.0.0, &r].concat();
                    (keccak256(bytes), left.1.saturating_add(right.1))
                }
                // The last one of an odd level goes up unchanged.
                _ => pair[0],
            };
            level = level.chunks(2).map(parent).collect();
            at /= 2;
        }
        let leaf = leaves[index].clone();
        let prompt = leaf["voucher"]["prompt"].as_str()?.parse().ok()?;
        let opening = json!({
            "line": line, "index": index, "amount": text(amount), "leaf": leaf, "siblings": siblings, "sums": sums,
        });
        (lines[line]["root"] == text(level.first()?.0)).then_some(Settled { batch, lines, opening, prompt })
    }
}

/// The batch that has a receipt, its lines, and the number of the line: by worker, payer, model and nonce. `None` while it is in no
/// batch.
///
/// # Errors
/// [`ClientError`].
pub async fn batch_of(chain: &Chain, receipt: &Receipt) -> Result<Option<(u64, Value, usize)>, ClientError> {
    let topics = [Value::Null, topic(receipt.worker)];
    let word = |value: &Value| value.as_str().and_then(|text| text.parse::<Bytes32>().ok());
    for event in chain.events("Settlement", "Submitted", &topics, 0..=chain.head().await?).await? {
        let accepted = abi::number(&event.fields["accepted"]).unwrap_or_default();
        let lines = event.fields["lines"].clone();
        let found = lines.as_array().into_iter().flatten().enumerate().position(|(i, line)| {
            let (first, last) = (word(&line["first"]), word(&line["last"]));
            let payer = line["payer"].as_str().and_then(|text| text.parse().ok());
            accepted.bit(i)
                && payer == Some(receipt.payer)
                && word(&line["model"]) == Some(receipt.model)
                && first.is_some_and(|first| first <= receipt.nonce)
                && last.is_some_and(|last| receipt.nonce <= last)
        });
        if let Some(line) = found {
            return Ok(Some((event.number(1).unwrap_or_default().saturating_to(), lines, line)));
        }
    }
    Ok(None)
}

/// A challenger of one answer.
#[derive(Debug)]
pub struct Challenger<'a> {
    chain: &'a Chain,
    key: &'a Key,
    trace: Arc<Trace>,
    receipt: &'a Signed<Receipt>,
    domain: Domain,
    opened: Opened,
    prompt_tokens: usize,
    completion_tokens: usize,
    /// Whether the voucher says which tokens the prompt has.
    prompt_fixed: bool,
    /// Whether the answer had to follow a constraint, which the trace knows nothing of.
    constrained: bool,
}

impl<'a> Challenger<'a> {
    /// `trace` is what this side computed for the bundle's request and output; `prompt` what the payer's voucher says of the prompt's
    /// tokens, or zero.
    pub fn new(
        chain: &'a Chain,
        key: &'a Key,
        bundle: &'a Bundle,
        prompt: Bytes32,
        trace: Arc<Trace>,
    ) -> Self {
        Self {
            chain,
            key,
            trace,
            receipt: &bundle.receipt,
            domain: bundle.domain,
            opened: Opened::new(bundle, prompt),
            prompt_tokens: bundle.output.prompt_tokens as usize,
            completion_tokens: bundle.output.completion_tokens as usize,
            prompt_fixed: prompt != Bytes32::ZERO,
            constrained: unsupported(&bundle.request).is_some(),
        }
    }

    /// What can be seen to be wrong without the worker's trace: its length, or the first token that the model does not give, if nothing
    /// limits what it may give. `None` for a right answer, which nobody should dispute.
    pub fn fault(&self) -> Option<Fault> {
        if self.trace.output().len() != self.completion_tokens {
            return Some(Fault::Length);
        }
        // The contract counts the voucher's tokens; without them nobody can show how many there are.
        if self.prompt_fixed && self.trace.prompt().len() != self.prompt_tokens {
            return Some(Fault::PromptLength);
        }
        if self.constrained {
            return None;
        }
        let differs = |(given, claimed)| given != claimed;
        self.trace.tokens().iter().zip(self.trace.output()).position(differs).map(Fault::Output)
    }

    /// The dispute that this side has opened about the receipt, if it has, and its block.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn found(&self) -> Result<Option<Game>, ClientError> {
        let me = text(address_of(self.key).into_word());
        let topics = [Value::Null, text(self.receipt.hash(&self.domain)), me];
        let head = self.chain.head().await?;
        let events = self.chain.events("Disputes", "Opened", &topics, 0..=head).await?;
        Ok(events.first().map(|event| {
            let block = abi::number(&event.log["blockNumber"]).unwrap_or_default().saturating_to();
            Game::new(event.number(1).unwrap_or_default().saturating_to(), block)
        }))
    }

    /// Opens the dispute, or goes on with the one that was opened before.
    ///
    /// # Errors
    /// [`DisputeError::Chain`], with the contract's reason where it refuses.
    pub async fn open(&self, settled: &Settled) -> Result<Game, DisputeError> {
        if let Some(game) = self.found().await? {
            return Ok(game);
        }
        let bond = self.chain.view("Disputes", "parameters", &[]).await?["bond"].clone();
        let spender = text(self.chain.system.address("Disputes").map_err(ClientError::from)?);
        let may =
            self.chain.number("Opg", "allowance", &[text(address_of(self.key)), spender.clone()]).await?;
        if may < abi::number(&bond).unwrap_or_default() {
            self.chain.transact(self.key, "Opg", "approve", &[spender, bond]).await?;
        }
        let arguments = [
            json!(settled.batch),
            settled.lines.clone(),
            settled.opening.clone(),
            self.opened.subject["salt"].clone(),
            self.opened.request.clone(),
            self.opened.output.clone(),
        ];
        self.chain.transact(self.key, "Disputes", "open", &arguments).await?;
        self.found().await?.ok_or(DisputeError::Unknown(0))
    }

    /// Makes the next move, if it is this side's turn or the worker's time is over. What it accused of, if it did.
    ///
    /// # Errors
    /// [`DisputeError`].
    pub async fn step(&self, game: &mut Game) -> Result<Option<Fault>, DisputeError> {
        // The state first: in the challenger's turn nobody else moves, so the moves that are read after it are all that led to it.
        let state = State::read(self.chain, game.id).await?;
        game.read(self.chain).await?;
        match state.turn {
            Turn::Over => {}
            Turn::Challenge => return self.play(game, &state).await,
            Turn::Commit | Turn::Reveal => {
                if time(self.chain).await? > state.deadline {
                    self.send("timeout", &[json!(game.id)]).await?;
                }
            }
        }
        Ok(None)
    }

    /// Plays to the end and calls `progress` whenever something has happened; what it accused of, if it did. It goes on where it was
    /// interrupted.
    ///
    /// # Errors
    /// [`DisputeError`].
    pub async fn finish(
        &self,
        game: &mut Game,
        progress: &mut (dyn FnMut(&Game, Option<&Fault>) + Send),
    ) -> Result<Option<Fault>, DisputeError> {
        let (mut seen, mut accused) = (0, None);
        loop {
            if let Some(fault) = self.step(game).await? {
                accused = Some(fault);
            }
            game.read(self.chain).await?;
            if game.moves.len() > seen {
                seen = game.moves.len();
                progress(game, accused.as_ref());
            }
            if game.end().is_some() {
                return Ok(accused);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn send(&self, function: &str, arguments: &[Value]) -> Result<(), ClientError> {
        self.chain.transact(self.key, "Disputes", function, arguments).await.map(|_| ())
    }

    async fn accuse(&self, id: u64, known: &Knowledge, fault: Fault) -> Result<Option<Fault>, DisputeError> {
        let case = case(&self.trace, known, &self.opened.subject, &fault)
            .ok_or(DisputeError::Record(id, "what differs is no entry of a trace"))?;
        self.send("accuse", &[json!(id), json!(fault.judge()), case]).await?;
        Ok(Some(fault))
    }

    /// The move in the challenger's turn.
    async fn play(&self, game: &Game, state: &State) -> Result<Option<Fault>, DisputeError> {
        let id = game.id;
        let tree = self.trace.tree();
        let mut known = Knowledge::default();
        if let Some(fault @ (Fault::Length | Fault::PromptLength)) = self.fault() {
            return self.accuse(id, &known, fault).await;
        }
        if state.size != self.trace.size() {
            return self.accuse(id, &known, Fault::Size).await;
        }
        if state.root == tree.root() {
            if self.constrained {
                return Err(DisputeError::Constrained);
            }
            let fault = self.fault().ok_or(DisputeError::NothingWrong)?;
            return self.accuse(id, &known, fault).await;
        }
        let mut last = None;
        for made in &game.moves {
            match &made.action {
                Action::Revealed { level, index, nodes } => {
                    known.learn(*level, *index, (*level).min(STEP), nodes);
                    last = Some(&made.action);
                }
                Action::Published { index, tile } => {
                    known.learn_tile(*index as u64, tile.clone());
                    last = Some(&made.action);
                }
                _ => {}
            }
        }
        let (child, nodes) = match last {
            // After the commitment there is one node, the root, which differs.
            None => (0, vec![state.root]),
            Some(Action::Revealed { level, index, nodes }) => {
                let down = (*level).min(STEP);
                let own = tree.level(level - down).get(index << down..).unwrap_or_default();
                let child = nodes.iter().zip(own).position(|(theirs, own)| theirs != own);
                (child.ok_or(DisputeError::Record(id, "what was revealed does not differ"))?, nodes.clone())
            }
            Some(Action::Published { index, tile }) => {
                let own = self.trace.tile(*index as u64);
                let byte = tile.iter().zip(&own).position(|(theirs, own)| theirs != own);
                let byte = byte.ok_or(DisputeError::Record(id, "the tile does not differ"))?;
                let place = *index as u64 * assay_model::merkle::TILE as u64 + byte as u64;
                let fault = Fault::at(&self.trace, place)
                    .ok_or(DisputeError::Record(id, "the tile is beyond the trace"))?;
                let own = |token: usize| token < self.trace.prompt().len();
                if matches!(fault, Fault::Input(token) if own(token) && !self.prompt_fixed) {
                    return Err(DisputeError::Prompt);
                }
                if self.constrained && !fault.before_constraint() {
                    return Err(DisputeError::Constrained);
                }
                return self.accuse(id, &known, fault).await;
            }
            Some(_) => return Err(DisputeError::Record(id, "a move is unknown")),
        };
        self.send("choose", &[json!(id), json!(child), json!(nodes)]).await?;
        Ok(None)
    }
}
