//! Checks receipts offline at every level.
