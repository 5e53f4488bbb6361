//! Counters for Prometheus.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// All counters.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) started: Counter,
    pub(crate) answered: Counter,
    pub(crate) failed: Counter,
    pub(crate) refused: Counter,
    pub(crate) faults: Counter,
    pub(crate) failovers: Counter,
    pub(crate) hedged: Counter,
    pub(crate) audits: Counter,
    pub(crate) caught: Counter,
    pub(crate) tokens: Counter,
    pub(crate) first_token: Histogram,
    pub(crate) audit_time: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("assay_gateway");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let started = counter("requests", "Answers that were asked for");
        let answered = counter("answers", "Answers that were given");
        let failed = counter("failures", "Answers that could not be given");
        let refused = counter("refusals", "Requests that were refused before they were sent");
        let faults = counter("worker_faults", "Faults of workers");
        let failovers = counter("failovers", "Times that another worker was asked");
        let hedged = counter("hedges", "Times that a second worker was asked because the first was slow");
        let audits = counter("audits", "Replays that were made");
        let caught = counter("caught", "Workers' answers that were proved wrong");
        let tokens = counter("completion_tokens", "Tokens that were generated");
        let mut seconds = |name: &str, help: &str| {
            // 1 ms to 65 s.
            let histogram = Histogram::new(exponential_buckets(0.001, 2.0, 17));
            registry.register(name, help, histogram.clone());
            histogram
        };
        let first_token = seconds("first_token_seconds", "Time from asking a worker to its first frame");
        let audit_time = seconds("audit_seconds", "Time for a replay");
        Metrics {
            started,
            answered,
            failed,
            refused,
            faults,
            failovers,
            hedged,
            audits,
            caught,
            tokens,
            first_token,
            audit_time,
            registry,
        }
    }

    /// The text form that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
