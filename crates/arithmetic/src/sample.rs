//! From logits to a token.

use sha3::{Digest, Keccak256};

use crate::scale::saturate32;
use crate::tables::{LN_2_Q30, LOG2_E_Q30, exp2_neg, log2};

/// The logit of a token that must not be picked. [`adjust_logits`] leaves it and never produces it.
pub const BANNED: i32 = i32::MIN;

/// How a token is picked from logits. All integers, so that a choice can be repeated exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerParams {
    /// Thousandths; 0 picks the largest logit.
    pub temperature_milli: u32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest most likely tokens whose share reaches this many millionths; 1,000,000 or more keeps all.
    pub top_p_ppm: u32,
    /// Keep tokens at least this many millionths as likely as the most likely one; 0 keeps all.
    pub min_p_ppm: u32,
    /// Divides positive and multiplies negative logits of tokens seen, in thousandths; 1000 (or 0) does nothing.
    pub repetition_penalty_milli: u32,
    /// Subtracted for every time that a token was generated, in thousandths.
    pub frequency_penalty_milli: i32,
    /// Subtracted once if a token was generated, in thousandths.
    pub presence_penalty_milli: i32,
}

impl Default for SamplerParams {
    /// Greedy: temperature 0, nothing penalised.
    fn default() -> Self {
        SamplerParams {
            temperature_milli: 0,
            top_k: 0,
            top_p_ppm: 1_000_000,
            min_p_ppm: 0,
            repetition_penalty_milli: 1000,
            frequency_penalty_milli: 0,
            presence_penalty_milli: 0,
        }
    }
}

/// A token of the text so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The token, in the prompt or generated.
    pub token: u32,
    /// How often it was generated; 0 if it is only in the prompt.
    pub generated: u32,
}

/// Applies the penalties to every token seen, then the biases, to Q16 logits in place.
///
/// `seen` names each distinct token of prompt and output once; `bias` holds tokens and thousandths, applied in order.
/// Tokens outside the vocabulary are passed over. Banned tokens stay banned; every other logit saturates within
/// `BANNED + 1 ..= i32::MAX`.
pub fn adjust_logits(logits: &mut [i32], params: &SamplerParams, seen: &[Seen], bias: &[(u32, i32)]) {
    let penalty = i64::from(params.repetition_penalty_milli);
    for seen in seen {
        let Some(logit) = logits.get_mut(seen.token as usize).filter(|l| **l != BANNED) else { continue };
        let mut value = i64::from(*logit);
        if penalty != 0 && penalty != 1000 {
            value = if value > 0 {
                (value * 1000 + penalty / 2) / penalty
            } else {
                (value * penalty - 500) / 1000 // truncation: half away from zero
            };
        }
        if seen.generated > 0 {
            let milli = i128::from(params.frequency_penalty_milli) * i128::from(seen.generated)
                + i128::from(params.presence_penalty_milli);
            let delta = (milli * 65536 + 500).div_euclid(1000);
            value = (i128::from(value) - delta).clamp(-(1 << 40), 1 << 40) as i64;
        }
        *logit = saturate32(value).max(BANNED + 1);
    }
    for &(token, milli) in bias {
        let Some(logit) = logits.get_mut(token as usize).filter(|l| **l != BANNED) else { continue };
        let delta = (i64::from(milli) * 65536 + 500).div_euclid(1000);
        *logit = saturate32(i64::from(*logit) + delta).max(BANNED + 1);
    }
}

/// The token of the largest logit, the lowest id among equals; `None` if all are banned or there are none.
pub fn argmax(logits: &[i32]) -> Option<u32> {
    let max = *logits.iter().max()?;
    if max == BANNED {
        return None;
    }
    logits.iter().position(|&l| l == max).map(|i| i as u32)
}

/// The uniform number of a position: the first eight bytes, big-endian, of keccak256 of seed and position, both as
/// eight big-endian bytes.
pub fn uniform(seed: u64, position: u64) -> u64 {
    let hash =
        Keccak256::new().chain_update(seed.to_be_bytes()).chain_update(position.to_be_bytes()).finalize();
    hash[..8].iter().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: i32,
    /// Distance from the largest logit, in powers of two, Q16; below `31 · 2^16`.
    t: u32,
    /// `2^-t` in Q30.
    weight: u32,
}

impl Candidate {
    /// One of [`BUCKETS`] by distance: whatever is in a lower bucket has a larger logit.
    fn bucket(&self) -> usize {
        (self.t >> 10) as usize
    }
}

/// Sixty-four to a factor of two.
const BUCKETS: usize = 31 * 64;

/// Picks tokens; keeps its buffer from call to call.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// The token for a position of the output, from logits that [`adjust_logits`] has adjusted; `None` if all are
    /// banned or there are none.
    ///
    /// Temperature, then top-k, then top-p, then min-p; ties go to the lower id. Penalties in `params` are not applied
    /// here.
    pub fn pick(&mut self, logits: &[i32], params: &SamplerParams, seed: u64, position: u64) -> Option<u32> {
        if params.temperature_milli == 0 || params.top_k == 1 {
            return argmax(logits);
        }
        self.weigh(logits, params.temperature_milli)?;
        if params.top_k != 0 {
            self.keep(u64::from(params.top_k), |_| 1);
        }
        if params.top_p_ppm < 1_000_000 {
            let total: u64 = self.candidates.iter().map(|c| u64::from(c.weight)).sum();
            let goal = (u128::from(total) * u128::from(params.top_p_ppm)).div_ceil(1_000_000);
            self.keep(goal as u64, |c| u64::from(c.weight)); // at most the total
        }
        if params.min_p_ppm != 0 {
            let least = u64::from(params.min_p_ppm.min(1_000_000)) << 30;
            self.candidates.retain(|c| u64::from(c.weight) * 1_000_000 >= least);
        }
        // Candidates have stayed in the order of their ids.
        let total: u64 = self.candidates.iter().map(|c| u64::from(c.weight)).sum();
        let mut left = ((u128::from(uniform(seed, position)) * u128::from(total)) >> 64) as u64;
        for c in &self.candidates {
            match left.checked_sub(u64::from(c.weight)) {
                Some(rest) => left = rest,
                None => return Some(c.token),
            }
        }
        None // not reached: `left` starts below the total
    }

    /// Candidates with a weight above zero, in the order of their ids.
    fn weigh(&mut self, logits: &[i32], temperature_milli: u32) -> Option<()> {
        let max = logits.iter().copied().max().filter(|&m| m != BANNED)?;
        let milli = u64::from(temperature_milli);
        let factor = (u64::from(LOG2_E_Q30) * 1000 + milli / 2) / milli; // Q30, at most 2^41
        // Beyond this distance from the largest logit, 2^-t rounds to zero. Within it, distance · factor < 2^52.
        let limit = (32u64 << 46) / factor.max(1) + 1;
        let floor = i64::from(max) - i64::try_from(limit).unwrap_or(i64::MAX).min(1 << 33);
        let floor = floor.max(i64::from(BANNED) + 1) as i32;
        self.candidates.clear();
        for (token, &logit) in logits.iter().enumerate() {
            if logit >= floor {
                let distance = (i64::from(max) - i64::from(logit)) as u64;
                let t = (distance * factor + (1 << 29)) >> 30;
                let t = u32::try_from(t).unwrap_or(u32::MAX);
                let weight = exp2_neg(t);
                if weight != 0 {
                    self.candidates.push(Candidate { token: token as u32, logit, t, weight });
                }
            }
        }
        Some(())
    }

    /// Keeps the shortest run of most likely candidates, at least one, whose measures sum up to the goal; all, if
    /// they do not.
    fn keep(&mut self, goal: u64, measure: impl Fn(&Candidate) -> u64) {
        // Sums by bucket find the bucket in which the goal is reached. Only what is in that one needs sorting.
        let mut sums = vec![0u64; BUCKETS];
        for c in &self.candidates {
            sums[c.bucket()] += measure(c);
        }
        let mut sum = 0;
        let Some(last) = sums.iter().position(|&s| {
            sum += s;
            sum >= goal.max(1)
        }) else {
            return;
        };
        sum -= sums[last];
        let mut edge: Vec<Candidate> =
            self.candidates.iter().filter(|c| c.bucket() == last).copied().collect();
        edge.sort_unstable_by_key(order);
        let end = edge.iter().find(|c| {
            sum += measure(c);
            sum >= goal.max(1)
        });
        if let Some(end) = end {
            let end = order(end);
            self.candidates.retain(|c| c.bucket() < last || (c.bucket() == last && order(c) <= end));
        }
    }
}

/// Most likely first: the larger logit, then the lower id.
fn order(c: &Candidate) -> (std::cmp::Reverse<i32>, u32) {
    (std::cmp::Reverse(c.logit), c.token)
}

/// The logarithm of the softmax of logits, ready to be asked for single tokens.
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax<'a> {
    logits: &'a [i32],
    /// `ln(sum of exp(logit))` in Q16.
    log_sum: i64,
}

impl<'a> LogSoftmax<'a> {
    /// Sums up. Banned logits count as nothing.
    pub fn new(logits: &'a [i32]) -> LogSoftmax<'a> {
        let max = logits.iter().copied().max().unwrap_or(BANNED);
        let floor = (i64::from(max) - (22 << 16)).max(i64::from(BANNED) + 1) as i32; // exp(-22) < 2^-31
        let sum: u64 = logits
            .iter()
            .filter(|&&l| l >= floor)
            .map(|&l| {
                let distance = (i64::from(max) - i64::from(l)) as u64;
                u64::from(exp2_neg(((distance * u64::from(LOG2_E_Q30) + (1 << 29)) >> 30) as u32))
            })
            .sum();
        // The sum is at least 2^30 (the largest logit itself) and counts in units of 2^-30.
        let log2_sum = log2(sum).saturating_sub(30 << 30);
        let log_sum = ((u128::from(log2_sum) * u128::from(LN_2_Q30) + (1 << 43)) >> 44) as i64;
        LogSoftmax { logits, log_sum: i64::from(max) + log_sum }
    }

    /// The natural logarithm of a token's probability, Q16, at most 0. A banned token, or one outside the vocabulary,
    /// has `i32::MIN`.
    pub fn logprob(&self, token: u32) -> i32 {
        match self.logits.get(token as usize) {
            Some(&logit) if logit != BANNED => saturate32(i64::from(logit) - self.log_sum).min(0),
            _ => i32::MIN,
        }
    }

    /// The `count` most likely tokens with their logarithms, most likely first, ties by lower id. Banned tokens are not
    /// listed.
    pub fn top(&self, count: usize) -> Vec<(u32, i32)> {
        // A short sorted list: `count` is at most a few dozen.
        let mut best: Vec<(i32, u32)> = Vec::with_capacity(count + 1);
        for (token, &logit) in self.logits.iter().enumerate() {
            if logit == BANNED || count == 0 || (best.len() == count && best[count - 1].0 >= logit) {
                continue;
            }
            let at = best.partition_point(|&(l, _)| l >= logit);
            best.insert(at, (logit, token as u32));
            best.truncate(count);
        }
        best.into_iter().map(|(_, token)| (token, self.logprob(token))).collect()
    }
}
