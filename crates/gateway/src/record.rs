//! Each worker's record and the choice of the worker for a request.

use crate::config::{Sampling, Workers};
use crate::store::Store;
use assay_receipt::{Address, Bytes32, Member, Members, Offer};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a worker did so far; kept in the database.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// Answers that were accepted.
    pub(crate) served: u64,
    /// Requests that broke off or were answered wrongly.
    pub(crate) failures: u64,
    /// Signed refusals for lack of room.
    pub(crate) refusals: u64,
    /// Replays that gave the same answer.
    pub(crate) audits_agreed: u64,
    /// Confirmed replays that gave another answer.
    pub(crate) audits_differed: u64,
    /// Audits that this worker made of others.
    pub(crate) audits_made: u64,
    /// Audits of this worker that a second auditor contradicted.
    pub(crate) audits_disputed: u64,
    /// Running mean of the time to the first token, in milliseconds.
    pub(crate) first_token_ms: Option<f64>,
    /// Running mean of the time between two tokens, in milliseconds.
    pub(crate) token_ms: Option<f64>,
    /// Tokens that it was paid for.
    pub(crate) completion_tokens: u64,
    /// What its accepted receipts sum up to, in 10^-18 OPG.
    #[serde(with = "crate::config::decimal_u128")]
    pub(crate) earned: u128,
    /// What its caught receipts would have been paid, in 10^-18 OPG.
    #[serde(with = "crate::config::decimal_u128")]
    pub(crate) withheld: u128,
    /// Set when it was caught: it gets no more requests.
    pub(crate) suspended: Option<Suspension>,
    /// Set when one auditor says that an answer of it was wrong and no second one has confirmed or denied that yet: it
    /// gets no requests until then.
    pub(crate) accused: Option<Suspension>,
    /// Hashes of the receipts that it was caught with.
    pub(crate) caught_receipts: Vec<Bytes32>,
    /// The latest fault, in a sentence.
    pub(crate) last_fault: Option<String>,
}

impl Record {
    /// Whether it gets no requests until an auditor or the operator of the gateway decides otherwise.
    pub(crate) fn is_barred(&self) -> bool {
        self.suspended.is_some() || self.accused.is_some()
    }
}

/// Why a worker is suspended, or accused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspension {
    /// The request whose answer was wrong.
    pub(crate) request_id: String,
    /// Hash of the receipt that was caught.
    pub(crate) receipt: Bytes32,
    /// Which field of the answer differed first, and where.
    pub(crate) field: String,
    /// Index of the first token, byte or entry that differed.
    pub(crate) position: u64,
    /// What the replay gave.
    pub(crate) expected: u64,
    /// What the worker claimed.
    pub(crate) claimed: u64,
    /// Who found it.
    pub(crate) auditors: Vec<Address>,
    /// When, in milliseconds since 1970 UTC.
    pub(crate) at_ms: u64,
}

/// What is known about a worker right now.
#[derive(Debug, Default)]
struct Live {
    record: Record,
    in_flight: usize,
    faults_in_row: u32,
    /// No requests before this, because it was at fault or said that it is busy.
    not_before: Option<Instant>,
}

/// A worker's record with the state of this moment, for `/assay/workers`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Standing {
    #[serde(flatten)]
    pub(crate) record: Record,
    pub(crate) in_flight: usize,
    /// Left alone for now: after faults, because it said that it is busy, or because it is accused.
    pub(crate) resting: bool,
}

/// All records.
pub(crate) struct Records {
    workers: Mutex<HashMap<Address, Live>>,
    store: Store,
    limits: Workers,
}

/// A worker and its offer, chosen for a request.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) member: Member,
    pub(crate) offer: Offer,
}

/// What a request needs of a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'a> {
    pub(crate) model: &'a Bytes32,
    /// The answer must be replayable: no forwarders.
    pub(crate) replayable: bool,
    /// Rough size of the prompt in tokens.
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    /// Not these.
    pub(crate) tried: &'a [Address],
}

/// Counts a request as in flight at a worker while it lives.
pub(crate) struct InFlight {
    records: Arc<Records>,
    worker: Address,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut workers = self.records.lock();
        let live = workers.entry(self.worker).or_default();
        live.in_flight = live.in_flight.saturating_sub(1);
    }
}

impl Records {
    pub(crate) fn new(records: Vec<(Address, Record)>, store: Store, limits: Workers) -> Records {
        let workers = records
            .into_iter()
            .map(|(worker, record)| (worker, Live { record, ..Live::default() }))
            .collect();
        Records { workers: Mutex::new(workers), store, limits }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Live>> {
        // Nothing that holds the lock can leave a record half changed.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, worker: Address, change: impl FnOnce(&mut Live)) {
        let mut workers = self.lock();
        let live = workers.entry(worker).or_default();
        change(live);
        self.store.put_record(worker, &live.record);
    }

    /// The worker for a request, or `None`.
    ///
    /// The score is what the answer may cost, multiplied for load, slowness and faults; the lowest wins, but for the few requests that
    /// [`pick`] gives to others. A worker without history counts as fast and sound, so that new ones get a chance; sampling watches them.
    pub(crate) fn choose(&self, members: &Members, need: &Need<'_>, random: u64) -> Option<Choice> {
        let workers = self.lock();
        let now = Instant::now();
        let fresh = Live::default();
        let candidates: Vec<(&Member, &Offer, &Live)> = members
            .members
            .iter()
            .filter(|member| !need.tried.contains(&member.worker))
            .filter_map(|member| Some((member, member.offer(need.model)?)))
            .filter(|(_, offer)| !need.replayable || offer.arithmetic > 0)
            .map(|(member, offer)| (member, offer, workers.get(&member.worker).unwrap_or(&fresh)))
            .filter(|(_, _, live)| !live.record.is_barred())
            .filter(|(_, _, live)| live.not_before.is_none_or(|time| time <= now))
            .collect();
        let cost =
            |offer: &Offer| offer.price(need.prompt_tokens, need.max_tokens).unwrap_or(u128::MAX) as f64;
        let cheapest = candidates.iter().map(|(_, offer, _)| cost(offer)).fold(f64::INFINITY, f64::min);
        let fastest = |time: fn(&Record) -> Option<f64>| {
            let known = candidates.iter().filter_map(|(_, _, live)| time(&live.record));
            known.fold(f64::INFINITY, f64::min)
        };
        let fastest_first = fastest(|record| record.first_token_ms);
        let fastest_token = fastest(|record| record.token_ms);
        let slowness = |time: Option<f64>, fastest: f64| match time {
            Some(time) if fastest.is_finite() => ((time + 1.0) / (fastest + 1.0)).min(10.0),
            _ => 1.0,
        };
        let score = |offer: &Offer, live: &Live| {
            let record = &live.record;
            let price = (cost(offer) + 1.0) / (cheapest + 1.0);
            let load = 1.0 + live.in_flight as f64;
            let speed = (slowness(record.first_token_ms, fastest_first)
                * slowness(record.token_ms, fastest_token))
            .sqrt();
            let total = (record.served + record.failures) as f64;
            let soundness = 1.0 + 8.0 * record.failures as f64 / (total + 4.0);
            price * load * speed * soundness
        };
        let scored: Vec<_> = candidates
            .iter()
            .map(|(_, offer, live)| Scored {
                score: score(offer, live),
                cost: cost(offer),
                in_flight: live.in_flight,
            })
            .collect();
        // Who asks again wants an answer, not news of a worker.
        let (member, offer, _) = candidates[pick(&scored, need.tried.is_empty(), random)?];
        Some(Choice { member: member.clone(), offer: offer.clone() })
    }

    /// An auditor for an answer of `worker`: of another operator than all of `not_operators`, offering the same model
    /// in the same arithmetic, neither suspended nor accused. The least loaded wins.
    pub(crate) fn choose_auditor(
        &self,
        members: &Members,
        model: &Bytes32,
        arithmetic: u32,
        not_operators: &[String],
        not_workers: &[Address],
        random: u64,
    ) -> Option<Member> {
        let workers = self.lock();
        let now = Instant::now();
        let candidates: Vec<&Member> = members
            .members
            .iter()
            .filter(|member| {
                !not_operators.contains(&member.operator) && !not_workers.contains(&member.worker)
            })
            .filter(|member| {
                member.offer(model).is_some_and(|offer| offer.arithmetic == arithmetic && arithmetic > 0)
            })
            .filter(|member| workers.get(&member.worker).is_none_or(|live| !live.record.is_barred()))
            .collect();
        let start = if candidates.is_empty() { 0 } else { (random % candidates.len() as u64) as usize };
        let (tail, head) = candidates.split_at(start);
        let load = |member: &Member| {
            workers
                .get(&member.worker)
                .map_or((false, 0), |live| (live.not_before.is_some_and(|time| time > now), live.in_flight))
        };
        head.iter().chain(tail).min_by_key(|member| load(member)).map(|member| (*member).clone())
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, worker: Address) -> InFlight {
        self.lock().entry(worker).or_default().in_flight += 1;
        InFlight { records: Arc::clone(self), worker }
    }

    /// Notes the time to the first token.
    pub(crate) fn first_token(&self, worker: Address, elapsed: Duration) {
        let mut workers = self.lock();
        mean(&mut workers.entry(worker).or_default().record.first_token_ms, elapsed.as_secs_f64() * 1e3);
    }

    /// Notes an accepted answer.
    pub(crate) fn served(&self, worker: Address, tokens: u32, price: u128, streaming: Duration) {
        self.change(worker, |live| {
            live.faults_in_row = 0;
            live.not_before = None;
            live.record.served += 1;
            live.record.completion_tokens += u64::from(tokens);
            live.record.earned = live.record.earned.saturating_add(price);
            if tokens > 1 {
                mean(&mut live.record.token_ms, streaming.as_secs_f64() * 1e3 / f64::from(tokens - 1));
            }
        });
    }

    /// Notes a fault; after several in a row the worker is left alone for a while.
    pub(crate) fn fault(&self, worker: Address, why: &str) {
        tracing::warn!(%worker, why, "a worker failed");
        self.change(worker, |live| {
            live.record.failures += 1;
            live.record.last_fault = Some(why.to_owned());
            live.faults_in_row += 1;
            if live.faults_in_row >= self.limits.breaker_faults {
                // After the pause one request goes through; if that fails too, the next pause starts at once.
                live.not_before = Some(Instant::now() + Duration::from_millis(self.limits.breaker_open_ms));
            }
        });
    }

    /// Notes a signed refusal for lack of room: no fault, but no use asking again before `retry_after`.
    pub(crate) fn refused(&self, worker: Address, retry_after: Duration) {
        let limit = Duration::from_millis(self.limits.breaker_open_ms);
        self.change(worker, |live| {
            live.record.refusals += 1;
            live.not_before = Some(Instant::now() + retry_after.min(limit));
        });
    }

    /// Notes that an auditor made an audit.
    pub(crate) fn audit_made(&self, auditor: Address) {
        self.change(auditor, |live| live.record.audits_made += 1);
    }

    /// Notes a replay that agreed.
    pub(crate) fn audit_agreed(&self, worker: Address) {
        self.change(worker, |live| live.record.audits_agreed += 1);
    }

    /// Notes that two auditors contradict each other about a receipt of a worker, which clears it of the accusation.
    pub(crate) fn audit_disputed(&self, worker: Address, receipt: &Bytes32, new: bool) {
        self.change(worker, |live| {
            live.record.audits_disputed += u64::from(new);
            live.record.accused.take_if(|accusation| accusation.receipt == *receipt);
        });
    }

    /// Holds a worker back on the word of one auditor. The first accusation stays until it is decided.
    pub(crate) fn accused(&self, worker: Address, accusation: Suspension) {
        tracing::error!(%worker, request_id = %accusation.request_id, field = %accusation.field,
            position = accusation.position, "an auditor says that an answer is wrong; a second one has to confirm it");
        self.change(worker, |live| _ = live.record.accused.get_or_insert(accusation));
    }

    /// Whether a worker is held back because of this receipt.
    pub(crate) fn is_accused(&self, worker: &Address, receipt: &Bytes32) -> bool {
        let workers = self.lock();
        let accused = workers.get(worker).and_then(|live| live.record.accused.as_ref());
        accused.is_some_and(|accusation| accusation.receipt == *receipt)
    }

    /// All accusations that are not decided.
    pub(crate) fn accusations(&self) -> Vec<Suspension> {
        self.lock().values().filter_map(|live| live.record.accused.clone()).collect()
    }

    /// [`Record::is_barred`] for a worker.
    pub(crate) fn is_barred(&self, worker: &Address) -> bool {
        self.lock().get(worker).is_some_and(|live| live.record.is_barred())
    }

    /// Lets a worker have requests again; `false` when it was neither suspended nor accused. What it did stays on
    /// record, and all its answers are replayed from now on if it was caught.
    pub(crate) fn reinstate(&self, worker: Address) -> bool {
        if !self.is_barred(&worker) {
            return false;
        }
        tracing::warn!(%worker, "the operator lifted a suspension");
        self.change(worker, |live| {
            live.record.suspended = None;
            live.record.accused = None;
            live.faults_in_row = 0;
            live.not_before = None;
        });
        true
    }

    /// Suspends a worker that was caught and withholds the price of the receipt, once for each receipt: `false` when it
    /// was caught with it before. `counted` says that the price was already counted as earned.
    pub(crate) fn caught(&self, worker: Address, suspension: Suspension, price: u128, counted: bool) -> bool {
        if self.standing(&worker).record.caught_receipts.contains(&suspension.receipt) {
            return false;
        }
        tracing::error!(%worker, request_id = %suspension.request_id, field = %suspension.field,
            position = suspension.position, "a worker was caught and is suspended");
        let mut new = false;
        self.change(worker, |live| {
            if live.record.caught_receipts.contains(&suspension.receipt) {
                return;
            }
            new = true;
            live.record.caught_receipts.push(suspension.receipt);
            live.record.accused.take_if(|accusation| accusation.receipt == suspension.receipt);
            live.record.audits_differed += 1;
            live.record.withheld = live.record.withheld.saturating_add(price);
            if counted {
                live.record.earned = live.record.earned.saturating_sub(price);
            }
            // The first proof stays: it is the reason for everything that followed.
            live.record.suspended.get_or_insert(suspension);
        });
        new
    }

    /// Share of the worker's answers to replay, in millionths. The caller may want another share, but not a smaller one
    /// for a worker that was caught and reinstated.
    pub(crate) fn sampling_ppm(&self, worker: &Address, sampling: &Sampling, wanted: Option<u32>) -> u32 {
        let workers = self.lock();
        let fresh = Record::default();
        let record = workers.get(worker).map_or(&fresh, |live| &live.record);
        if record.audits_differed > 0 {
            sampling.share_caught_ppm.max(wanted.unwrap_or(sampling.share_ppm))
        } else if let Some(share) = wanted {
            share
        } else if record.audits_agreed < sampling.new_until_agreed {
            sampling.share_new_ppm.max(sampling.share_ppm)
        } else {
            sampling.share_ppm
        }
    }

    /// The shortest time until a worker that rests may be asked again.
    pub(crate) fn soonest(&self, members: &Members, model: &Bytes32) -> Option<Duration> {
        let workers = self.lock();
        let now = Instant::now();
        members
            .members
            .iter()
            .filter(|member| member.offer(model).is_some())
            .filter_map(|member| workers.get(&member.worker))
            .filter(|live| !live.record.is_barred())
            .filter_map(|live| live.not_before)
            .map(|time| time.saturating_duration_since(now))
            .min()
    }

    /// A worker's record with the state of this moment.
    pub(crate) fn standing(&self, worker: &Address) -> Standing {
        let workers = self.lock();
        let now = Instant::now();
        workers.get(worker).map_or(
            Standing { record: Record::default(), in_flight: 0, resting: false },
            |live| Standing {
                record: live.record.clone(),
                in_flight: live.in_flight,
                resting: live.record.accused.is_some() || live.not_before.is_some_and(|time| time > now),
            },
        )
    }
}

/// One request of so many goes to another worker than the best.
const EXPLORE: u64 = 16;

/// What decides between workers.
#[derive(Debug, Clone, Copy)]
struct Scored {
    score: f64,
    cost: f64,
    in_flight: usize,
}

/// Which of the workers gets a request: the one with the lowest score, and of equals a random one. One request of [`EXPLORE`] goes to any
/// other that costs no more and has no more to do: the best would else get all requests that come one after the other, nobody would watch
/// the others, and who was slow or failed once would never be seen to be well again.
fn pick(workers: &[Scored], explore: bool, random: u64) -> Option<usize> {
    let count = workers.len() as u64;
    let start = random.checked_rem(count)? as usize;
    // Ties are the rule between equal workers.
    let best = (start..workers.len())
        .chain(0..start)
        .min_by(|left, right| workers[*left].score.total_cmp(&workers[*right].score))?;
    let dice = random / count;
    if !explore || !dice.is_multiple_of(EXPLORE) {
        return Some(best);
    }
    let others: Vec<_> = (0..workers.len())
        .filter(|other| {
            let (other_, best_) = (&workers[*other], &workers[best]);
            *other != best && other_.cost <= best_.cost && other_.in_flight <= best_.in_flight
        })
        .collect();
    match (dice / EXPLORE).checked_rem(others.len() as u64) {
        Some(index) => Some(others[index as usize]),
        None => Some(best),
    }
}

/// Folds a value into a running mean that forgets slowly.
fn mean(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| mean * 0.8 + value * 0.2));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each gets one of so many requests, whose dice are all numbers up to that.
    fn shares(workers: &[Scored], explore: bool, requests: u64) -> Vec<u64> {
        let mut shares = vec![0; workers.len()];
        for random in 0..requests {
            shares[pick(workers, explore, random).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn the_best_gets_most_requests_and_the_others_some() {
        let worker = |score| Scored { score, cost: 5.0, in_flight: 1 };
        let workers = [worker(9.0), worker(1.0), worker(2.0), worker(10.0)];
        // 15 of 16, and the rest in equal parts.
        assert_eq!(shares(&workers, true, 3 * 4 * 16 * 10), [40, 1800, 40, 40]);
        // Who asks again gets the best.
        assert_eq!(shares(&workers, false, 1920), [0, 1920, 0, 0]);
        // Nobody is asked who costs more, or has more to do.
        let dear = Scored { cost: 5.1, ..worker(9.0) };
        let busy = Scored { in_flight: 2, ..worker(9.0) };
        assert_eq!(shares(&[worker(1.0), dear, busy], true, 480), [480, 0, 0]);
        assert_eq!(shares(&[worker(1.0), dear, busy, worker(2.0)], true, 640), [600, 0, 0, 40]);
        // A worker that is cheaper, but slower than it is cheap.
        let cheap = Scored { cost: 4.0, ..worker(3.0) };
        assert_eq!(shares(&[worker(1.0), cheap], true, 320), [300, 20]);
        // Equals share alike.
        assert_eq!(shares(&[worker(1.0); 3], true, 480), [160; 3]);
        assert_eq!(shares(&[worker(1.0)], true, 32), [32]);
        assert_eq!(pick(&[], true, 7), None);
    }
}
