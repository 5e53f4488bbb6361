//! Threads that run one step of the model together.
//!
//! A step has many short phases (some microseconds each when one token is decoded), so the threads meet at a barrier
//! that spins before it yields, and take their shares of a phase from a counter: a thread that the system has delayed
//! takes fewer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Rounds of spinning before a thread offers its processor to others.
const SPINS: u32 = 4_000;

/// Offers of the processor before an idle thread sleeps: some tenths of a millisecond when nobody else wants it.
const YIELDS: u32 = 200;

/// Another thread has panicked, so that the step cannot be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// Where the threads of a step wait for each other.
#[derive(Debug)]
pub(crate) struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

impl Barrier {
    pub(crate) fn new(threads: usize) -> Self {
        Barrier {
            threads,
            arrived: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Returns when all threads have come; what they wrote before is then visible to all.
    pub(crate) fn wait(&self) -> Result<(), Broken> {
        if self.threads == 1 {
            return self.check();
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return self.check();
        }
        let mut spins = 0;
        while self.round.load(Ordering::Acquire) == round {
            self.check()?;
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Broken> {
        if self.broken.load(Ordering::Relaxed) { Err(Broken) } else { Ok(()) }
    }

    /// Lets all threads return from [`Barrier::wait`], now and for ever.
    fn break_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
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
    begun: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
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
        let shared = Arc::new(Shared {
            job: Box::new(job),
            barrier,
            begun: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
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
        self.begin(self.shared.begun.load(Ordering::Relaxed).wrapping_add(1));
        guarded(&self.shared, 0)
    }

    fn begin(&self, step: usize) {
        self.shared.begun.store(step, Ordering::Release);
        if !self.threads.is_empty() {
            // With the lock taken, no thread is between its last look at `begun` and its sleep.
            drop(self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.shared.wake.notify_all();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.begin(usize::MAX);
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
        let mut tries = 0;
        let step = loop {
            let step = shared.begun.load(Ordering::Acquire);
            if step != done {
                break step;
            }
            tries += 1;
            if tries < SPINS {
                std::hint::spin_loop();
            } else if tries < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                let mut guard = shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
                while shared.begun.load(Ordering::Acquire) == done {
                    guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        if step == usize::MAX || guarded(shared, number).is_err() {
            return;
        }
        done = step;
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
