//! From logits to a token, for a decoded token and for a claimed one alike.

use assay_arithmetic::{BANNED, LogSoftmax, Sampler, SamplerParams, Seen, adjust_logits};
use assay_receipt::{Sampling, TokenLogprob};

use crate::grammar::Mask;

/// How all tokens of a sequence are chosen.
#[derive(Debug)]
pub(crate) struct Rule {
    params: SamplerParams,
    bias: Vec<(u32, i32)>,
    seed: u64,
    logprobs: Option<u8>,
    /// The distinct tokens of the prompt, ascending; empty unless a penalty needs them.
    prompt: Vec<u32>,
    penalties: bool,
    /// Whether the logits themselves are asked for, and no token.
    pub(crate) probe: bool,
}

impl Rule {
    pub(crate) fn new(sampling: &Sampling, logprobs: Option<u8>, prompt: &[u32]) -> Rule {
        let params = SamplerParams {
            temperature_milli: sampling.temperature_milli,
            top_k: sampling.top_k,
            top_p_ppm: sampling.top_p_ppm,
            min_p_ppm: sampling.min_p_ppm,
            repetition_penalty_milli: sampling.repetition_penalty_milli,
            frequency_penalty_milli: sampling.frequency_penalty_milli,
            presence_penalty_milli: sampling.presence_penalty_milli,
        };
        let penalties = !matches!(params.repetition_penalty_milli, 0 | 1000)
            || params.frequency_penalty_milli != 0
            || params.presence_penalty_milli != 0;
        let mut distinct = if penalties { prompt.to_vec() } else { Vec::new() };
        distinct.sort_unstable();
        distinct.dedup();
        Rule {
            params,
            bias: sampling.logit_bias.clone(),
            seed: sampling.seed,
            logprobs,
            prompt: distinct,
            penalties,
            probe: false,
        }
    }

    /// Hands out logits instead of choosing.
    pub(crate) fn probe() -> Rule {
        let sampling = Sampling { temperature_milli: 0, ..Sampling::default() };
        Rule { probe: true, ..Rule::new(&sampling, None, &[]) }
    }

    /// What a choice needs to know of the answer so far, which comes in two parts: all of it if there is a penalty,
    /// else nothing.
    pub(crate) fn history(&self, answer: &[u32], drafts: &[u32]) -> Vec<u32> {
        if self.penalties { [answer, drafts].concat() } else { Vec::new() }
    }

    /// Each distinct token of prompt and answer, once.
    fn seen(&self, history: &[u32]) -> Vec<Seen> {
        let mut sorted = history.to_vec();
        sorted.sort_unstable();
        let mut seen: Vec<Seen> = sorted
            .chunk_by(|a, b| a == b)
            .map(|same| Seen { token: same[0], generated: same.len() as u32 })
            .collect();
        let only_prompt = |token: &u32| sorted.binary_search(token).is_err();
        seen.extend(
            self.prompt.iter().copied().filter(only_prompt).map(|token| Seen { token, generated: 0 }),
        );
        seen
    }

    /// Chooses the token with number `index` of the answer. `logits` are changed.
    pub(crate) fn choose(
        &self,
        sampler: &mut Sampler,
        logits: &mut [i32],
        mask: Option<&Mask>,
        history: &[u32],
        index: u32,
    ) -> Outcome {
        if self.probe {
            return Outcome { token: None, logprob: None, logits: logits.to_vec() };
        }
        // The log-probabilities are the model's own, before anything that the caller asked to change.
        let raw = self.logprobs.map(|_| logits.to_vec());
        if self.penalties || !self.bias.is_empty() {
            adjust_logits(logits, &self.params, &self.seen(history), &self.bias);
        }
        if let Some(mask) = mask {
            mask.for_each_denied(logits.len(), |token| logits[token] = BANNED);
        }
        let token = sampler.pick(logits, &self.params, self.seed, index.into());
        let logprob = token.zip(raw).map(|(token, raw)| {
            let softmax = LogSoftmax::new(&raw);
            let top = softmax.top(self.logprobs.unwrap_or(0).into());
            TokenLogprob { token, logprob_q16: softmax.logprob(token), top }
        });
        Outcome { token, logprob, logits: Vec::new() }
    }
}

/// The outcome of one position.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The token; `None` if nothing may be chosen, or for a probe.
    pub(crate) token: Option<u32>,
    pub(crate) logprob: Option<TokenLogprob>,
    /// The logits, for a probe.
    pub(crate) logits: Vec<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seen_names_each_token_once() {
        let mut rule = Rule::probe();
        rule.prompt = vec![1, 4, 9];
        let seen = rule.seen(&[9, 2, 9]);
        let expected = [(2, 1), (9, 2), (1, 0), (4, 0)].map(|(token, generated)| Seen { token, generated });
        assert_eq!(seen, expected);
    }
}
