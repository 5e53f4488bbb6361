//! What all requests share.

use crate::access::Access;
use crate::audit::{self, Subject};
use crate::client::Clients;
use crate::config::{Config, Level, Moment, Policy};
use crate::error::{ApiError, Error};
use crate::inference::Graphs;
use crate::metrics::Metrics;
use crate::payer::Payer;
use crate::proofs::{self, Proofs, is_proofs, provers};
use crate::record::Records;
use crate::store::{Due, Store};
use crate::vocabulary::Vocabularies;
use assay_receipt::{Address, Bytes32, GRAPH_ARITHMETIC, Member, Members, Offer, Request, Signed};
use sha2::{Digest as _, Sha256};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// The running gateway.
pub(crate) struct Gateway {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) records: Arc<Records>,
    pub(crate) clients: Clients,
    /// Who is a worker. Whatever knows the list may feed it.
    pub(crate) members: watch::Receiver<Arc<Members>>,
    /// The signed form of the same list, for those who want to check it themselves.
    pub(crate) members_signed: watch::Receiver<Arc<Signed<Members>>>,
    /// Who pays, if answers are paid on a chain.
    pub(crate) payer: Option<Arc<Payer>>,
    pub(crate) access: Access,
    pub(crate) metrics: Metrics,
    pub(crate) vocabularies: Vocabularies,
    /// From which the names of callers towards workers are made, see [`Gateway::tenant`]. Drawn at each start.
    pub(crate) tenant_secret: [u8; 32],
    /// Places for background replays.
    pub(crate) audit_slots: Semaphore,
    /// Places for requests.
    pub(crate) request_slots: Arc<Semaphore>,
    /// Models from ONNX.
    pub(crate) graphs: Graphs,
    /// Proofs of answers in text, and the keys that they are checked with.
    pub(crate) proofs: Proofs,
    /// What runs besides the requests themselves; ended with the gateway.
    pub(crate) tasks: Mutex<JoinSet<()>>,
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
    Ok(bytes)
}

/// A random number for choices that need not be secret; 0 when there is no randomness, which the drawing of the nonce
/// reports.
pub(crate) fn dice() -> u64 {
    random::<8>().map_or(0, u64::from_le_bytes)
}

impl Gateway {
    /// Runs a task that ends with the gateway.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Does in the background what is `due` with the answer to this caller.
    pub(crate) fn later(self: &Arc<Gateway>, due: Due, subject: Subject, model_name: &str, api_key: &str) {
        match due {
            Due::Nothing => {}
            Due::Replay => audit::later(self, subject),
            Due::Proof => proofs::later(self, subject, model_name.to_owned(), api_key.to_owned()),
        }
    }

    /// Ends all tasks. What they had not finished is in the database and is taken up at the next start.
    pub(crate) async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    /// The name under which a worker shares work between the requests of one API key. Nobody else can guess it, and
    /// another worker gets another one. Without keys, all who reach this gateway are one caller.
    pub(crate) fn tenant(&self, worker: &Address, key: &str) -> Bytes32 {
        let hash = Sha256::new().chain_update(self.tenant_secret).chain_update(worker.0).chain_update(key);
        Bytes32(hash.finalize().into())
    }

    /// The current list of members, unless it has expired.
    pub(crate) fn members(&self) -> Result<Arc<Members>, ApiError> {
        let members = Arc::clone(&self.members.borrow());
        if crate::members::is_expired(&members, crate::clock::now_ms() / 1_000) {
            return Err(ApiError::unavailable(
                "The list of members has expired, so no worker can be trusted; install a new one",
            ));
        }
        Ok(members)
    }

    /// The model that a name stands for: a model id, or a name that members offer. Where members use one name for
    /// different models, the one that most of them mean.
    pub(crate) fn model(&self, members: &Members, name: &str) -> Result<Bytes32, ApiError> {
        let text = |offer: &&Offer| offer.arithmetic != GRAPH_ARITHMETIC && !is_proofs(offer);
        self.offered(members, name, text).ok_or_else(|| ApiError::model_not_found(name))
    }

    /// [`Gateway::model`] for the integer graphs that workers prove.
    pub(crate) fn proved_model(&self, members: &Members, name: &str) -> Option<Bytes32> {
        self.offered(members, name, |offer| offer.arithmetic == GRAPH_ARITHMETIC)
    }

    fn offered(&self, members: &Members, name: &str, wanted: impl Fn(&&Offer) -> bool) -> Option<Bytes32> {
        let offers = || members.members.iter().flat_map(|member| &member.models).filter(&wanted);
        if let Ok(id) = name.parse::<Bytes32>()
            && offers().any(|offer| offer.model == id)
        {
            return Some(id);
        }
        let mut counts: Vec<(Bytes32, usize)> = Vec::new();
        for offer in offers().filter(|offer| offer.name == name) {
            match counts.iter_mut().find(|(model, _)| *model == offer.model) {
                Some((_, count)) => *count += 1,
                None => counts.push((offer.model, 1)),
            }
        }
        let most = counts.into_iter().max_by_key(|(model, count)| (*count, *model));
        most.map(|(model, _)| model)
    }

    /// The policy for a request, and whether the list of members allows it at all.
    pub(crate) fn policy(
        &self,
        members: &Members,
        model: &Bytes32,
        wanted: crate::ask::Verification,
        key: &str,
    ) -> Result<Policy, ApiError> {
        let own = self.config.api_keys.iter().find(|known| known.name == key).and_then(|known| known.policy);
        let mut policy = own.unwrap_or(self.config.policy);
        if let Some(level) = wanted.level {
            if level != policy.level {
                policy.moment = match level {
                    Level::Signed => Moment::Sampled,
                    // Who asks for it and not when wants it before the answer counts.
                    Level::Replayed | Level::Proved => Moment::BeforeEnd,
                };
            }
            policy.level = level;
        }
        if let Some(moment) = wanted.moment {
            if moment != Moment::Sampled && policy.level == Level::Signed && wanted.level.is_none() {
                policy.level = Level::Replayed;
            }
            policy.moment = moment;
        }
        if policy.level == Level::Replayed {
            let able: Vec<&Member> = members
                .members
                .iter()
                .filter(|member| member.offer(model).is_some_and(|offer| offer.arithmetic > 0))
                .filter(|member| !self.records.is_barred(&member.worker))
                .collect();
            if able.is_empty() {
                return Err(ApiError::unsupported(
                    "assay.level",
                    "No worker offers this model in replayable form; use the level 'signed'",
                ));
            }
            if policy.moment != Moment::Sampled
                && able.iter().all(|member| member.operator == able[0].operator)
            {
                return Err(ApiError::unavailable(
                    "No second operator offers this model, so nobody independent can replay it; use 'signed'",
                ));
            }
        }
        if policy.level == Level::Proved {
            let key = self.proofs.key(model).ok_or_else(|| {
                ApiError::unsupported(
                    "assay.level",
                    "This gateway has no key of this model to check proofs with; use 'signed' or 'replayed'",
                )
            })?;
            if self.proof_offers(members, key.id()).next().is_none() {
                return Err(ApiError::unsupported(
                    "assay.level",
                    "No worker offers proofs of this model's answers; use 'signed' or 'replayed'",
                ));
            }
        }
        Ok(policy)
    }

    /// Offers of proofs with this key, by workers that may be asked.
    fn proof_offers<'a>(&'a self, members: &'a Members, key: Bytes32) -> impl Iterator<Item = &'a Offer> {
        let offers = provers(members, key).filter(|(member, _)| !self.records.is_barred(&member.worker));
        offers.map(|(_, offer)| offer)
    }

    /// Refuses what is to be proved before it counts, and may be longer than any prover takes: it would be paid for nothing.
    pub(crate) async fn provable(
        &self,
        members: &Members,
        request: &Request,
        policy: Policy,
    ) -> Result<(), ApiError> {
        if policy.level != Level::Proved || policy.moment == Moment::Sampled {
            return Ok(());
        }
        let Some(key) = self.proofs.key(&request.model).cloned() else { return Ok(()) };
        let offers = self.proof_offers(members, key.id());
        let Some(context) = offers.map(|offer| offer.context).max() else { return Ok(()) };
        let (asked, max_tokens) = (request.clone(), request.max_tokens as usize);
        let counted = tokio::task::spawn_blocking(move || key.prompt_tokens(&asked)).await;
        // What has no prompt the worker refuses, with a reason.
        let Ok(Some(prompt)) = counted else { return Ok(()) };
        let tokens = prompt.saturating_add(max_tokens);
        if tokens > context as usize {
            return Err(ApiError::unprovable(tokens, context));
        }
        Ok(())
    }

    /// Who runs a worker.
    pub(crate) fn operator_of(&self, worker: &Address) -> Option<String> {
        self.members.borrow().member(worker).map(|member| member.operator.clone())
    }
}
