//! The one trait of `criterion` that the library `commonware-runtime` names, for benchmarks of its own.

/// Runtimes for asynchronous benchmarks.
pub mod async_executor {
    /// Runs futures.
    pub trait AsyncExecutor {
        /// Runs one to its end.
        fn block_on<T>(&self, future: impl Future<Output = T>) -> T;
    }
}
