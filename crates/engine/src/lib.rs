//! Bit-exact execution of integer language models.
//!
//! An [`Engine`] holds one model and runs any number of sequences at once: prompts in chunks, answers token by token,
//! with sampling, constraints and log-probabilities, all in integers. The tokens of a sequence are a pure function of
//! the model and its [`Generation`]: the number of threads, the other sequences in the batch, the chunks of the
//! prompt, pages and prefixes shared with others, guesses that ran ahead, the kernel and a restart in between change
//! nothing. That is why an answer can be *replayed*:
//! [`Engine::replay`] runs a claimed answer like a prompt and finds the first token that the model would not have
//! chosen; and why another engine can *resume* an answer that was begun elsewhere.
//!
//! What is not here: text (but for [`grammar`], which masks tokens), files, the network, time, signatures.
//!
//! ```
//! use std::sync::Arc;
//! use assay_engine::{Config, Engine, Error, Event, Replay, Service, generation::Generation};
//! use assay_model::Artifact;
//!
//! /// The answer's tokens, and a second opinion about them.
//! fn answer(model: Arc<Artifact>, generation: Generation) -> Result<(Vec<u32>, Replay), Error> {
//!     let mut engine = Engine::new(model, Config::default())?;
//!     engine.submit(generation.clone(), Service::default())?;
//!     let mut tokens = Vec::new();
//!     while !engine.is_idle() {
//!         for event in engine.step()? {
//!             if let Event::Token { token, .. } = event {
//!                 tokens.push(token);
//!             }
//!         }
//!     }
//!     let replay = engine.replay(&generation, &tokens)?;
//!     Ok((tokens, replay))
//! }
//! ```

pub mod assemble;
mod choose;
mod drafter;
pub mod encoder;
mod engine;
mod error;
mod forward;
pub mod generation;
pub mod grammar;
mod kv;
pub mod light;
mod pool;
pub mod request;
mod schedule;
mod sequence;
mod speculate;
mod timing;
pub mod trace;

pub use engine::{ALONE, Config, Engine, Event, Finish, Replay, SequenceId, Stats};
pub use error::Error;
pub use generation::Generation;
pub use kv::Tenant;
pub use schedule::{Priority, Service};
pub use timing::Spent;
