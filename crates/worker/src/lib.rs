//! Serves models and audits other workers.
