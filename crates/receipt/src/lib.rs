//! Signed statements of Assay: receipts, failures, audits, members.
