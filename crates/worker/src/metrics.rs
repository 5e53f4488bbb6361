//! What `/metrics` shows, in the Prometheus text format.

use std::sync::atomic::AtomicU64;

use assay_engine::Spent;
use assay_receipt::{FailureCode, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabel {
    /// Name from the configuration, so the number of series is bounded.
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabel {
    model: String,
    stage: &'static str,
}

type Seconds = Counter<f64, AtomicU64>;

/// The stages of a step, as labels.
const STAGES: [&str; 5] = ["linear", "attention", "rows", "choice", "waiting"];

/// All metrics of one worker.
pub(crate) struct Metrics {
    registry: Registry,
    failures: Family<CodeLabel, Counter>,
    audits: Family<VerdictLabel, Counter>,
    /// Receipts that were brought to a chain.
    pub(crate) settled: Counter,
    /// Seconds that one signed statement waited for the disk.
    pub(crate) commit: Histogram,
    answers: Family<ModelLabel, Counter>,
    prompt_tokens: Family<ModelLabel, Counter>,
    completion_tokens: Family<ModelLabel, Counter>,
    waiting: Family<ModelLabel, Gauge>,
    running: Family<ModelLabel, Gauge>,
    loaded: Family<ModelLabel, Gauge>,
    hiding_proofs_left: Family<ModelLabel, Gauge>,
    kv_pages: Family<ModelLabel, Gauge>,
    kv_pages_held: Family<ModelLabel, Gauge>,
    kv_pages_cached: Family<ModelLabel, Gauge>,
    tokens_found: Family<ModelLabel, Counter>,
    guessed: Family<ModelLabel, Counter>,
    guessed_right: Family<ModelLabel, Counter>,
    preempted: Family<ModelLabel, Counter>,
    engine: Family<StageLabel, Seconds>,
    step: Family<ModelLabel, Histogram>,
    step_rows: Family<ModelLabel, Histogram>,
    between_tokens: Family<ModelLabel, Histogram>,
    first_token: Family<ModelLabel, Histogram>,
    total: Family<ModelLabel, Histogram>,
    audit: Family<ModelLabel, Histogram>,
}

/// The series of one model.
#[derive(Clone)]
pub(crate) struct ModelMetrics {
    /// Complete answers.
    pub(crate) answers: Counter,
    /// Prompt tokens of complete answers.
    pub(crate) prompt_tokens: Counter,
    /// Generated tokens, of broken answers as well.
    pub(crate) completion_tokens: Counter,
    /// Requests that wait for a place.
    pub(crate) waiting: Gauge,
    /// Requests that run.
    pub(crate) running: Gauge,
    /// 1 while the model is in memory.
    pub(crate) loaded: Gauge,
    /// Proofs that a key can still hide its weights in; there for models with such a key only.
    hiding_proofs_left: (Family<ModelLabel, Gauge>, ModelLabel),
    /// Pages of keys and values.
    pub(crate) kv_pages: Gauge,
    /// Pages that requests hold.
    pub(crate) kv_pages_held: Gauge,
    /// Pages that are kept for requests to come.
    pub(crate) kv_pages_cached: Gauge,
    /// Prompt tokens that were not run, since an earlier request of the tenant began alike.
    pub(crate) tokens_found: Counter,
    /// Tokens that were guessed ahead.
    pub(crate) guessed: Counter,
    /// Of these, the ones that the model chose.
    pub(crate) guessed_right: Counter,
    /// Times that a request lost its memory to an older one and was run again.
    pub(crate) preempted: Counter,
    /// Seconds of all threads, by [`STAGES`].
    engine: [Seconds; 5],
    /// Seconds of one batched step.
    pub(crate) step: Histogram,
    /// Tokens in a step: the size of the batch.
    pub(crate) step_rows: Histogram,
    /// Seconds between two tokens of a request.
    pub(crate) between_tokens: Histogram,
    /// Seconds from arrival to first token.
    pub(crate) first_token: Histogram,
    /// Seconds from arrival to the receipt.
    pub(crate) total: Histogram,
    /// Seconds that replays took.
    pub(crate) audit: Histogram,
}

impl ModelMetrics {
    /// Says in how many proofs the model's key can still hide its weights.
    pub(crate) fn hiding_proofs_left(&self, left: u32) {
        let (family, label) = &self.hiding_proofs_left;
        family.get_or_create(label).set(left.into());
    }

    /// Counts where the engine's time went since `before`.
    pub(crate) fn spent(&self, before: Spent, now: Spent) {
        let stages = |s: Spent| [s.linear, s.attention, s.rows, s.choice, s.waiting];
        for ((counter, before), now) in self.engine.iter().zip(stages(before)).zip(stages(now)) {
            counter.inc_by(now.saturating_sub(before) as f64 / 1e9);
        }
    }
}

fn rows() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 13)) // 1 to 4096
}

fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 20)) // half a millisecond to four minutes
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::with_prefix("assay_worker"),
            failures: Family::default(),
            audits: Family::default(),
            settled: Counter::default(),
            commit: histogram(),
            answers: Family::default(),
            prompt_tokens: Family::default(),
            completion_tokens: Family::default(),
            waiting: Family::default(),
            running: Family::default(),
            loaded: Family::default(),
            hiding_proofs_left: Family::default(),
            kv_pages: Family::default(),
            kv_pages_held: Family::default(),
            kv_pages_cached: Family::default(),
            tokens_found: Family::default(),
            guessed: Family::default(),
            guessed_right: Family::default(),
            preempted: Family::default(),
            engine: Family::default(),
            step: Family::new_with_constructor(histogram),
            step_rows: Family::new_with_constructor(rows),
            between_tokens: Family::new_with_constructor(histogram),
            first_token: Family::new_with_constructor(histogram),
            total: Family::new_with_constructor(histogram),
            audit: Family::new_with_constructor(histogram),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Metrics {
        let r = &mut self.registry;
        r.register("failures", "Signed refusals and failures by code", self.failures.clone());
        r.register("audits", "Audits by verdict", self.audits.clone());
        r.register("settled_receipts", "Receipts brought to a chain", self.settled.clone());
        r.register("commit_seconds", "Time to sign a statement and have it on disk", self.commit.clone());
        r.register("answers", "Complete answers", self.answers.clone());
        r.register("prompt_tokens", "Prompt tokens of complete answers", self.prompt_tokens.clone());
        r.register("completion_tokens", "Generated tokens", self.completion_tokens.clone());
        r.register("waiting_requests", "Requests that wait for a place", self.waiting.clone());
        r.register("running_requests", "Requests that run", self.running.clone());
        r.register("model_loaded", "1 while the model is in memory", self.loaded.clone());
        let help = "Proofs that the model's key can still hide its weights in";
        r.register("hiding_proofs_left", help, self.hiding_proofs_left.clone());
        r.register("kv_pages", "Pages of keys and values", self.kv_pages.clone());
        r.register("kv_pages_held", "Pages that requests hold", self.kv_pages_held.clone());
        r.register("kv_pages_cached", "Pages kept for requests to come", self.kv_pages_cached.clone());
        let help = "Prompt tokens not run, since an earlier request of the tenant began alike";
        r.register("prefix_tokens_found", help, self.tokens_found.clone());
        r.register("guessed_tokens", "Tokens guessed ahead", self.guessed.clone());
        r.register("guessed_tokens_right", "Guessed tokens that the model chose", self.guessed_right.clone());
        r.register("preemptions", "Times that a request lost its memory for a while", self.preempted.clone());
        let help = "Time of all threads in linear layers, attention, work on rows, the choice of tokens, and waiting";
        r.register("engine_seconds", help, self.engine.clone());
        r.register("step_seconds", "Time of one batched step", self.step.clone());
        r.register("step_rows", "Tokens in one batched step", self.step_rows.clone());
        r.register(
            "between_tokens_seconds",
            "Time between two tokens of a request",
            self.between_tokens.clone(),
        );
        r.register("first_token_seconds", "Time from arrival to the first token", self.first_token.clone());
        r.register("answer_seconds", "Time from arrival to the receipt", self.total.clone());
        r.register("replay_seconds", "Time that a replay took", self.audit.clone());
        self
    }

    pub(crate) fn model(&self, name: &str) -> ModelMetrics {
        let label = ModelLabel { model: name.to_owned() };
        ModelMetrics {
            answers: self.answers.get_or_create_owned(&label),
            prompt_tokens: self.prompt_tokens.get_or_create_owned(&label),
            completion_tokens: self.completion_tokens.get_or_create_owned(&label),
            waiting: self.waiting.get_or_create_owned(&label),
            running: self.running.get_or_create_owned(&label),
            loaded: self.loaded.get_or_create_owned(&label),
            hiding_proofs_left: (self.hiding_proofs_left.clone(), label.clone()),
            kv_pages: self.kv_pages.get_or_create_owned(&label),
            kv_pages_held: self.kv_pages_held.get_or_create_owned(&label),
            kv_pages_cached: self.kv_pages_cached.get_or_create_owned(&label),
            tokens_found: self.tokens_found.get_or_create_owned(&label),
            guessed: self.guessed.get_or_create_owned(&label),
            guessed_right: self.guessed_right.get_or_create_owned(&label),
            preempted: self.preempted.get_or_create_owned(&label),
            engine: STAGES
                .map(|stage| self.engine.get_or_create_owned(&StageLabel { model: name.to_owned(), stage })),
            step: self.step.get_or_create_owned(&label),
            step_rows: self.step_rows.get_or_create_owned(&label),
            between_tokens: self.between_tokens.get_or_create_owned(&label),
            first_token: self.first_token.get_or_create_owned(&label),
            total: self.total.get_or_create_owned(&label),
            audit: self.audit.get_or_create_owned(&label),
        }
    }

    pub(crate) fn failed(&self, code: FailureCode) {
        self.failures.get_or_create(&CodeLabel { code: code_name(code) }).inc();
    }

    pub(crate) fn audited(&self, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Agrees => "agrees",
            Verdict::Differs => "differs",
            Verdict::Unable => "unable",
        };
        self.audits.get_or_create(&VerdictLabel { verdict }).inc();
    }

    /// The text that Prometheus reads.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(fault) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%fault, "metrics could not be encoded"); // a String takes everything, so never
        }
        text
    }
}

/// The code as it appears in JSON.
pub(crate) fn code_name(code: FailureCode) -> &'static str {
    match code {
        FailureCode::Busy => "busy",
        FailureCode::Draining => "draining",
        FailureCode::UnknownModel => "unknown_model",
        FailureCode::BadRequest => "bad_request",
        FailureCode::ContextExceeded => "context_exceeded",
        FailureCode::CapExceeded => "cap_exceeded",
        FailureCode::Cancelled => "cancelled",
        FailureCode::Upstream => "upstream",
        FailureCode::Internal => "internal",
        FailureCode::DuplicateNonce => "duplicate_nonce",
        FailureCode::ResumeMismatch => "resume_mismatch",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_family() {
        let metrics = Metrics::new();
        metrics.model("small").answers.inc();
        metrics.failed(FailureCode::Busy);
        metrics.audited(Verdict::Differs);
        let text = metrics.encode();
        for line in [
            r#"assay_worker_answers_total{model="small"} 1"#,
            r#"assay_worker_failures_total{code="busy"} 1"#,
            r#"assay_worker_audits_total{verdict="differs"} 1"#,
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
