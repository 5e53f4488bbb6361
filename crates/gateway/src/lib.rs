//! OpenAI-compatible endpoint that routes, checks and records.
