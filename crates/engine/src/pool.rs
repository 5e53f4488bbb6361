//! Threads that run one step of the model together.
//!
//! A step has many short phases (some microseconds each when one token is decoded), so the threads meet at a barrier
//! that spins before it sleeps, and take their shares of a phase from a counter: a thread that the system has delayed
//! takes fewer. Who waits longer than a thread takes to wake up sleeps: then the processor is free, and the system moves
//! the delayed thread there at once instead of letting it wait for its turn behind another process.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Rounds of spinning before a thread sleeps within a step: some 20 microseconds, about what waking it takes.
const SPINS: u32 = 1_000;

/// The same between two steps, when the caller is at work.
const SPINS_BETWEEN: u32 = 4_000;

/// Another thread has panicked, so that the step cannot be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// Where threads wait for a number to change: they spin, then sleep.
#[derive(Debug, Default)]
struct Gate {
    number: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    fn get(&self) -> usize {
        self.number.load(Ordering::Acquire)
    }

    /// Counts on and wakes who sleeps.
    fn advance(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
        self.wake_all();
    }

    /// Sets the number and wakes who sleeps.
    fn set(&self, number: usize) {
        self.number.store(number, Ordering::SeqCst);
        self.wake_all();
    }

    fn wake_all(&self) {
        // In one order with the change and the sleepers' own steps: either they see the number or they are seen.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // With the lock taken, no thread is between its last look at the number and its sleep.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// The number, when it is another than `old`.
    fn wait(&self, old: usize, spins: u32) -> usize {
        for _ in 0..spins {
            let number = self.get();
            if number != old {
                return number;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.number.load(Ordering::SeqCst) == old {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.get()
    }
}

/// Where the threads of a step wait for each other.
#[derive(Debug)]
pub(crate) struct Barrier {
    threads: usize,
    spins: u32,
    arrived: AtomicUsize,
    round: Gate,
    broken: AtomicBool,
}

impl Barrier {
    pub(crate) fn new(threads: usize) -> Self {
        // More threads than processors: whoever is waited for cannot run while others spin.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Barrier {
            threads,
            spins: if threads > processors { 0 } else { SPINS },
            arrived: AtomicUsize::new(0),
            round: Gate::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// Returns when all threads have come; what they wrote before is then visible to all.
    pub(crate) fn wait(&self) -> Result<(), Broken> {
        if self.threads > 1 {
            let round = self.round.get();
            if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
                self.arrived.store(0, Ordering::Relaxed);
                self.round.advance();
            } else if !self.broken.load(Ordering::SeqCst) {
                self.round.wait(round, self.spins);
            }
        }
        if self.broken.load(Ordering::SeqCst) { Err(Broken) } else { Ok(()) }
    }

    /// Lets all threads return from [`Barrier::wait`], now and for ever.
    fn break_up(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.round.advance();
    }
}

/// A counter on a cache line of its own, from which threads take the numbers of tasks.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Tasks(AtomicUsize);

impl Tasks {
    /// Starts again at 0; only while no step runs.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The tasks below `count` that this caller gets.
    pub(crate) fn take(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::from_fn(move || {
            // The barrier orders the work itself; the counter only has to be atomic.
            let task = self.0.fetch_add(1, Ordering::Relaxed);
            (task < count).then_some(task)
        })
    }
}

/// What all threads of a pool run: the argument is the thread's number, 0 is the caller of [`Pool::run`].
type Job = dyn Fn(usize) -> Result<(), Broken> + Send + Sync;

struct Shared {
    job: Box<Job>,
    barrier: Arc<Barrier>,
    /// Steps begun so far; `usize::MAX` ends the threads.
    begun: Gate,
}

/// Threads that wait for [`Pool::run`].
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts one thread fewer than the barrier has.
    pub(crate) fn new(
        barrier: Arc<Barrier>,
        job: impl Fn(usize) -> Result<(), Broken> + Send + Sync + 'static,
    ) -> std::io::Result<Pool> {
        let count = barrier.threads;
        let shared = Arc::new(Shared { job: Box::new(job), barrier, begun: Gate::default() });
        let mut pool = Pool { shared, threads: Vec::with_capacity(count - 1) };
        for number in 1..count {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("engine-{number}"));
            pool.threads.push(thread.spawn(move || serve(&shared, number))?);
        }
        Ok(pool)
    }

    /// Runs the job on all threads, this one included. The job ends with a wait at the barrier, so that when this
    /// returns all threads are through.
    pub(crate) fn run(&self) -> Result<(), Broken> {
        self.shared.begun.advance();
        guarded(&self.shared, 0)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.begun.set(usize::MAX);
        for thread in self.threads.drain(..) {
            // A thread's panic was reported by the step in which it happened.
            let _ = thread.join();
        }
    }
}

/// Runs the job, and breaks the barrier if it panics, so that the others do not wait for ever.
fn guarded(shared: &Shared, number: usize) -> Result<(), Broken> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (shared.job)(number)));
    result.unwrap_or_else(|_| {
        shared.barrier.break_up();
        Err(Broken)
    })
}

fn serve(shared: &Shared, number: usize) {
    let mut done = 0;
    loop {
        done = shared.begun.wait(done, SPINS_BETWEEN.min(4 * shared.barrier.spins));
        if done == usize::MAX || guarded(shared, number).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_in_every_phase() {
        for threads in 1..5 {
            let barrier = Arc::new(Barrier::new(threads));
            let tasks: Arc<Vec<Tasks>> = Arc::new((0..50).map(|_| Tasks::default()).collect());
            let done: Arc<Vec<AtomicUsize>> = Arc::new((0..50).map(|_| AtomicUsize::new(0)).collect());
            let pool = Pool::new(Arc::clone(&barrier), {
                let (tasks, done) = (Arc::clone(&tasks), Arc::clone(&done));
                move |_| {
                    for (tasks, done) in tasks.iter().zip(done.iter()) {
                        for _ in tasks.take(7) {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        barrier.wait()?;
                        assert_eq!(done.load(Ordering::Relaxed) % 7, 0);
                    }
                    barrier.wait()
                }
            })
            .unwrap();
            for run in 1..4 {
                tasks.iter().for_each(Tasks::reset);
                pool.run().unwrap();
                assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 7 * run));
            }
        }
    }

    #[test]
    fn a_panic_in_one_thread_ends_the_step_for_all() {
        for culprit in 0..3 {
            let barrier = Arc::new(Barrier::new(3));
            let pool = Pool::new(Arc::clone(&barrier), move |number| {
                assert_ne!(number, culprit, "on purpose");
                barrier.wait()
            })
            .unwrap();
            assert_eq!(pool.run(), Err(Broken));
            assert_eq!(pool.run(), Err(Broken), "and it stays broken");
        }
    }
}
