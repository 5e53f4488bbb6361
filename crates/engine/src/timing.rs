//! Where the time of the steps goes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds of all threads together since the engine has had a [clock](crate::Engine::set_clock).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Linear layers, the output matrix included.
    pub linear: u64,
    /// Attention.
    pub attention: u64,
    /// What works on single rows: norms, quantisation, rotation, activation.
    pub rows: u64,
    /// Choosing tokens from logits.
    pub choice: u64,
    /// Waiting for other threads.
    pub waiting: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Linear,
    Attention,
    Rows,
    Choice,
    Waiting,
}

/// Adds up times; without a clock it costs next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    clock: OnceLock<fn() -> u64>,
    spent: [AtomicU64; 5],
}

impl Timer {
    /// Only the first clock counts.
    pub(crate) fn set_clock(&self, clock: fn() -> u64) {
        let _ = self.clock.set(clock);
    }

    pub(crate) fn time<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let Some(clock) = self.clock.get() else { return work() };
        let start = clock();
        let result = work();
        self.spent[stage as usize].fetch_add(clock().saturating_sub(start), Ordering::Relaxed);
        result
    }

    pub(crate) fn spent(&self) -> Spent {
        let [linear, attention, rows, choice, waiting] =
            [0, 1, 2, 3, 4].map(|i: usize| self.spent[i].load(Ordering::Relaxed));
        Spent { linear, attention, rows, choice, waiting }
    }
}
