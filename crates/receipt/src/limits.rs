//! Limits of everything that is decoded, in one place. A peer that exceeds one of them is at fault.

/// Largest JSON of a [`Bundle`](crate::Bundle) in bytes: an answer of 8,192 tokens with 20 log-probabilities each,
/// which the chunks repeat, takes about 10 MiB.
pub const BUNDLE_BYTES: usize = 32 << 20;
/// Largest JSON of a [`GenerateCall`](crate::GenerateCall) in bytes.
pub const CALL_BYTES: usize = 16 << 20;
/// Largest JSON line of a [`Frame`](crate::Frame) in bytes; the last frame carries the whole output.
pub const FRAME_BYTES: usize = 16 << 20;
/// Largest JSON of [`Members`](crate::Members) in bytes.
pub const MEMBERS_BYTES: usize = 8 << 20;
/// Most bytes in one string of a request or an output.
pub const TEXT_BYTES: usize = 8 << 20;
/// Most messages in a chat.
pub const MESSAGES: usize = 4_096;
/// Most bytes in a name, a role, an identifier or another label.
pub const LABEL_BYTES: usize = 256;
/// Most tokens in a prompt or an answer; no supported model has a longer context.
pub const TOKENS: usize = 1 << 20;
/// Most stop strings of a request.
pub const STOPS: usize = 16;
/// Most bytes in a stop string; the worker holds back as much text as the longest one.
pub const STOP_BYTES: usize = 1_024;
/// Most entries of the logit bias.
pub const LOGIT_BIASES: usize = 1_024;
/// Most alternatives reported with a token.
pub const TOP_LOGPROBS: usize = 20;
/// Most bytes in the message of a failure.
pub const FAILURE_BYTES: usize = 4_096;
/// Most audits in a bundle.
pub const AUDITS: usize = 64;
/// Most workers in a list of members.
pub const MEMBERS: usize = 4_096;
/// Most models that one worker offers.
pub const OFFERS: usize = 256;
