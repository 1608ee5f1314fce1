//! A bounded pool of threads for calls of hooks.
//!
//! Hooks are other people's code: they may hang, panic, or block the thread they run on. So each worker is a thread with
//! a runtime of its own, and what blocks, blocks its own worker alone. A call past its timeout is cut by dropping its
//! future; where that is impossible because the call blocks its thread, the call is abandoned and another thread takes
//! its worker's place, up to a bound.
//!
//! Invariants:
//! - At most `threads` calls run at once, abandoned ones not counted, and there are never more than `threads` +
//!   `replacements_max` threads.
//! - Time in the queue does not count against the timeout.
//! - No call that was accepted is lost: it runs, or its caller hears why not, or the caller has gone away itself.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::{Condvar, Mutex};
use tidegate_state::{Clock, SystemClock, Timestamp};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::metrics::LifecycleMetrics;

/// How big the pool is.
#[derive(Clone)]
pub struct PoolOptions {
    /// How many calls run at once.
    pub threads: usize,
    /// How many calls wait for a worker before further ones are refused.
    pub queue_max: usize,
    /// How many workers that are blocked for ever are replaced.
    pub replacements_max: usize,
    /// What timeouts are measured by.
    pub timer: Arc<dyn Clock>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions { threads: 8, queue_max: 1_024, replacements_max: 16, timer: Arc::new(SystemClock) }
    }
}

/// Why a call gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It panicked, with this text.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It was cut.
    #[error("took longer than {} ms and was cut", timeout.as_millis())]
    TimedOut {
        /// The limit.
        timeout: Duration,
    },
    /// The queue is full; nothing was run. Ask again later.
    #[error("{waiting} calls of hooks wait for a thread already, the most that may; raise `threads`")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The pool has been closed; nothing was run.
    #[error("the server is stopping")]
    Closed,
}

type Work = Box<dyn FnOnce(Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

struct Job {
    work: Work,
    ticket: Arc<Ticket>,
}

struct Ticket {
    cancel: CancellationToken,
    phase: Mutex<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Running,
    Abandoned,
    Over,
}

impl Ticket {
    fn has_answered(&self) {
        let mut phase = self.phase.lock();
        if *phase == Phase::Running {
            *phase = Phase::Over;
        }
    }
}

struct Inner {
    queue: VecDeque<Job>,
    threads: usize,
    /// Threads there are.
    workers: usize,
    /// Threads that wait for a job.
    idle: usize,
    /// Threads that an abandoned call holds.
    held: usize,
    /// The log has said that no further worker may be added; until an abandoned call returns, it need not again.
    exhausted: bool,
    closed: bool,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
    queue_max: usize,
    replacements_max: usize,
    timer: Arc<dyn Clock>,
    metrics: LifecycleMetrics,
    closing: CancellationToken,
}

/// The pool. Cheap to clone; it closes when the last clone goes.
#[derive(Clone)]
pub struct Pool(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Pool {
    /// A pool without threads yet; they come as calls do.
    #[must_use]
    pub fn new(options: PoolOptions, metrics: LifecycleMetrics) -> Pool {
        let inner = Inner {
            queue: VecDeque::new(),
            threads: options.threads.max(1),
            workers: 0,
            idle: 0,
            held: 0,
            exhausted: false,
            closed: false,
        };
        Pool(Arc::new(Owner(Arc::new(Shared {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            queue_max: options.queue_max,
            replacements_max: options.replacements_max,
            timer: options.timer,
            metrics,
            closing: CancellationToken::new(),
        }))))
    }

    /// Changes how many calls run at once. Calls that run go on.
    pub fn set_threads(&self, threads: usize) {
        let shared = &self.0.0;
        let mut inner = shared.inner.lock();
        if inner.threads != threads.max(1) {
            inner.threads = threads.max(1);
            shared.add_workers(&mut inner);
            shared.wake.notify_all();
        }
    }

    /// Runs `make` and the future it returns on a worker, waiting for one as long as it takes, and cuts it when it has
    /// run for `timeout`. `make` gets the time by the pool's timer at which it started. Dropping this future cuts the
    /// call too.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<T, M, F>(&self, timeout: Duration, make: M) -> Result<T, CallError>
    where
        T: Send + 'static,
        M: FnOnce(Timestamp) -> F + Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let shared = &self.0.0;
        let (started, has_started) = oneshot::channel();
        let (answer, has_answered) = oneshot::channel();
        let ticket = Arc::new(Ticket { cancel: shared.closing.child_token(), phase: Mutex::new(Phase::Queued) });
        let running = Arc::clone(&ticket);
        let work: Work = Box::new(move |at| {
            // The receiver may be gone; then nobody wants to know.
            let _ = started.send(at);
            Box::pin(async move {
                let outcome = AssertUnwindSafe(async move { make(at).await }).catch_unwind().await;
                // Before the caller can go: a call that has answered is never taken for one that holds its thread.
                running.has_answered();
                let _ = answer.send(outcome.map_err(|panic| CallError::Panicked(panic_text(&*panic))));
            })
        });
        shared.push(Job { work, ticket: Arc::clone(&ticket) })?;
        let _leave = Leave { shared, ticket: &ticket };
        let started_at = has_started.await.map_err(|_| CallError::Closed)?;
        tokio::select! {
            biased;
            answer = has_answered => answer.unwrap_or(Err(CallError::Closed)),
            () = shared.timer.sleep_until(started_at.after(timeout)) => {
                shared.leave(&ticket);
                Err(CallError::TimedOut { timeout })
            }
        }
    }

    /// Refuses further calls, and cuts those that run or wait. Threads end by themselves; one that an abandoned call
    /// holds ends when that call returns.
    pub fn close(&self) {
        self.0.0.close();
    }
}

/// Cuts a call whose caller has gone.
struct Leave<'a> {
    shared: &'a Arc<Shared>,
    ticket: &'a Arc<Ticket>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.ticket);
    }
}

impl Shared {
    fn push(self: &Arc<Self>, job: Job) -> Result<(), CallError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(CallError::Closed);
        }
        if inner.queue.len() >= self.queue_max {
            return Err(CallError::QueueFull { waiting: inner.queue.len() });
        }
        inner.queue.push_back(job);
        self.note(&inner);
        self.add_workers(&mut inner);
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// Adds workers while there are calls for them and the bounds allow it.
    fn add_workers(self: &Arc<Self>, inner: &mut Inner) {
        while !inner.closed && inner.idle < inner.queue.len() && inner.workers - inner.held < inner.threads {
            if inner.workers >= inner.threads + self.replacements_max {
                if !std::mem::replace(&mut inner.exhausted, true) {
                    tracing::warn!(
                        held = inner.held,
                        waiting = inner.queue.len(),
                        workers = inner.workers,
                        "hooks that block their threads hold as many as may be replaced; further calls wait until one \
                         returns"
                    );
                }
                break;
            }
            let shared = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("lifecycle-hook".to_owned()).spawn(move || shared.work());
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread for calls of hooks; they wait for those there are");
                break;
            }
            inner.workers += 1;
            // It counts as idle until it has taken its first call, so that no two workers are added for one call.
            inner.idle += 1;
        }
        self.note(inner);
    }

    fn note(&self, inner: &Inner) {
        self.metrics.queued.set(i64::try_from(inner.queue.len()).unwrap_or(i64::MAX));
        self.metrics.workers.set(i64::try_from(inner.workers).unwrap_or(i64::MAX));
        self.metrics.abandoned.set(i64::try_from(inner.held).unwrap_or(i64::MAX));
    }

    fn work(self: Arc<Self>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for calls of hooks");
                let mut inner = self.inner.lock();
                inner.workers -= 1;
                inner.idle -= 1;
                self.note(&inner);
                return;
            }
        };
        while let Some(Job { work, ticket }) = self.next_job() {
            let at = self.timer.now();
            let run = AssertUnwindSafe(|| {
                runtime.block_on(async {
                    let work = work(at);
                    tokio::select! {
                        biased;
                        () = ticket.cancel.cancelled() => {}
                        () = work => {}
                    }
                });
            });
            // Panics of the call itself were caught within; this one is for a future whose destructor panics.
            if std::panic::catch_unwind(run).is_err() {
                tracing::error!("a hook panicked while its call was being cut");
            }
            let mut inner = self.inner.lock();
            let mut phase = ticket.phase.lock();
            if *phase == Phase::Abandoned {
                inner.held -= 1;
                inner.exhausted = false;
            }
            *phase = Phase::Over;
            inner.idle += 1;
            self.note(&inner);
        }
    }

    /// The next call for this worker; none when the worker is to end. The worker counts as idle meanwhile.
    fn next_job(&self) -> Option<Job> {
        let mut inner = self.inner.lock();
        loop {
            if inner.closed || inner.workers - inner.held > inner.threads {
                inner.workers -= 1;
                inner.idle -= 1;
                self.note(&inner);
                return None;
            }
            if let Some(job) = inner.queue.pop_front() {
                let mut phase = job.ticket.phase.lock();
                if *phase == Phase::Queued {
                    *phase = Phase::Running;
                    drop(phase);
                    inner.idle -= 1;
                    self.note(&inner);
                    return Some(job);
                }
                continue;
            }
            self.wake.wait(&mut inner);
        }
    }

    /// The caller of this call does not wait for it any more.
    fn leave(self: &Arc<Self>, ticket: &Ticket) {
        let mut inner = self.inner.lock();
        let mut phase = ticket.phase.lock();
        match *phase {
            Phase::Queued => *phase = Phase::Over,
            Phase::Running => {
                *phase = Phase::Abandoned;
                inner.held += 1;
            }
            Phase::Abandoned | Phase::Over => return,
        }
        drop(phase);
        self.add_workers(&mut inner);
        drop(inner);
        ticket.cancel.cancel();
    }

    fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.queue.clear();
        self.note(&inner);
        drop(inner);
        self.closing.cancel();
        self.wake.notify_all();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "with something that is no text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tidegate_state::ManualClock;

    use super::*;

    fn pool(threads: usize, replacements_max: usize) -> (Pool, ManualClock, LifecycleMetrics) {
        let clock = ManualClock::new(Timestamp(0));
        let metrics = LifecycleMetrics::default();
        let options = PoolOptions { threads, queue_max: 8, replacements_max, timer: Arc::new(clock.clone()) };
        (Pool::new(options, metrics.clone()), clock, metrics)
    }

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A call that says that it runs and then blocks its thread until the returned sender goes.
    fn blocking(
        pool: &Pool,
    ) -> (tokio::task::JoinHandle<Result<(), CallError>>, oneshot::Receiver<()>, mpsc::Sender<()>) {
        let (running, runs) = oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let pool = pool.clone();
        let call = tokio::spawn(async move {
            pool.call(TIMEOUT, move |_| async move {
                running.send(()).unwrap();
                let _ = released.recv();
            })
            .await
        });
        (call, runs, release)
    }

    #[tokio::test]
    async fn h05_a_call_that_awaits_for_ever_is_cut_at_its_timeout() {
        let (pool, clock, metrics) = pool(1, 0);
        let (running, runs) = oneshot::channel();
        let hanging = pool.clone();
        let call = tokio::spawn(async move {
            hanging
                .call(TIMEOUT, move |_| async move {
                    running.send(()).unwrap();
                    std::future::pending::<()>().await;
                })
                .await
        });
        runs.await.unwrap();
        clock.advance(TIMEOUT);
        assert_eq!(call.await.unwrap(), Err(CallError::TimedOut { timeout: TIMEOUT }));
        // The one worker there may be is free again.
        assert_eq!(pool.call(TIMEOUT, |_| async { 7 }).await, Ok(7));
        assert_eq!(metrics.abandoned.get(), 0);
    }

    #[tokio::test]
    async fn h05_a_call_that_blocks_its_thread_is_abandoned_and_its_worker_replaced() {
        let (pool, clock, metrics) = pool(1, 1);
        let (call, runs, release) = blocking(&pool);
        runs.await.unwrap();
        clock.advance(TIMEOUT);
        assert_eq!(call.await.unwrap(), Err(CallError::TimedOut { timeout: TIMEOUT }));
        assert_eq!(metrics.abandoned.get(), 1);
        assert_eq!(pool.call(TIMEOUT, |_| async { 7 }).await, Ok(7));
        drop(release);
        let gone = async {
            while metrics.abandoned.get() != 0 || metrics.workers.get() != 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the thread that came back is not needed");
    }

    #[tokio::test]
    async fn h06_time_in_the_queue_does_not_count_and_no_call_is_lost() {
        let (pool, clock, _) = pool(2, 2);
        let (first, first_runs, _release_first) = blocking(&pool);
        let (second, second_runs, _release_second) = blocking(&pool);
        first_runs.await.unwrap();
        second_runs.await.unwrap();
        let others: Vec<_> = (0..3)
            .map(|number| {
                let pool = pool.clone();
                tokio::spawn(
                    async move { pool.call(TIMEOUT, move |started_at| async move { (number, started_at) }).await },
                )
            })
            .collect();
        clock.advance(TIMEOUT);
        assert!(first.await.unwrap().is_err());
        assert!(second.await.unwrap().is_err());
        for (number, other) in others.into_iter().enumerate() {
            assert_eq!(other.await.unwrap(), Ok((number, Timestamp(10_000))), "waited as long as a timeout, and ran");
        }
    }

    #[tokio::test]
    async fn h37_workers_are_replaced_up_to_the_bound_and_later_calls_wait() {
        let (pool, clock, metrics) = pool(1, 1);
        let mut releases = Vec::new();
        for _ in 0..2 {
            let (call, runs, release) = blocking(&pool);
            runs.await.unwrap();
            clock.advance(TIMEOUT);
            assert!(call.await.unwrap().is_err());
            releases.push(release);
        }
        assert_eq!((metrics.abandoned.get(), metrics.workers.get()), (2, 2));
        let waiting = pool.clone();
        let mut later = tokio::spawn(async move { waiting.call(TIMEOUT, |_| async { 7 }).await });
        while metrics.queued.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(metrics.workers.get(), 2, "no further thread");
        assert!(futures::poll!(&mut later).is_pending());
        releases.pop();
        assert_eq!(later.await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn h04_panics_are_caught_with_their_text_and_the_worker_goes_on() {
        let (pool, _, _) = pool(1, 0);
        let panics = pool.call(TIMEOUT, |_| async { panic!("boom {}", 1) });
        assert_eq!(panics.await, Err::<(), _>(CallError::Panicked("boom 1".into())));
        assert_eq!(pool.call(TIMEOUT, |_| async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_closed_pool_tells_those_that_wait() {
        let (pool, _, metrics) = pool(1, 0);
        let (call, runs, release) = blocking(&pool);
        runs.await.unwrap();
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.call(TIMEOUT, |_| async {}).await })
            })
            .collect();
        while metrics.queued.get() < 8 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.call(TIMEOUT, |_| async {}).await, Err(CallError::QueueFull { waiting: 8 }));
        pool.close();
        for call in waiting {
            assert_eq!(call.await.unwrap(), Err(CallError::Closed));
        }
        drop(release);
        let _ = call.await.unwrap();
        assert_eq!(pool.call(TIMEOUT, |_| async {}).await, Err(CallError::Closed));
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_while_it_waits_leaves_nothing_behind() {
        let (pool, _, metrics) = pool(1, 0);
        let (_call, runs, release) = blocking(&pool);
        runs.await.unwrap();
        let ran = Arc::new(Mutex::new(false));
        let gone = {
            let (pool, ran) = (pool.clone(), Arc::clone(&ran));
            tokio::spawn(async move { pool.call(TIMEOUT, move |_| async move { *ran.lock() = true }).await })
        };
        while metrics.queued.get() == 0 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        drop(release);
        assert_eq!(pool.call(TIMEOUT, |_| async { 7 }).await, Ok(7));
        assert!(!*ran.lock());
    }
}
