//! Runs hooks' code: catches panics, and tells the owner how each run ended.
//!
//! Runs of a hook whose code has shown to return at once share a task, which costs less than a task each; one that does
//! not return at its first poll gets a task of its own.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::mpsc::UnboundedSender;

use super::key_queue::KeyIndex;
use super::lease_end::LeaseEnd;
use super::owner::Event;
use super::points;
use super::run::{ClusterHook, Outcome, Run};
use crate::driver::HookNumber;
use crate::testing::history::{Moment, Recorder};
use crate::testing::points::{Pass, Points};

/// A first poll that takes longer than this makes the hook's further runs begin on tasks of their own.
pub(crate) const SLOW_POLL: Duration = Duration::from_micros(500);
/// The longest text of an error that is kept.
const ERROR_BYTES_MAX: usize = 4_096;

/// A run about to start.
pub(crate) struct Job {
    pub(crate) run: Run,
    pub(crate) handler: Arc<dyn ClusterHook>,
    pub(crate) key: KeyIndex,
    pub(crate) number: u32,
}

/// A run that has ended.
pub(crate) struct Ended {
    pub(crate) run: Run,
    pub(crate) key: KeyIndex,
    pub(crate) number: u32,
    /// None: it never began, since its lease had ended or it was cancelled by then.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) took: Duration,
}

/// What a runner needs besides its jobs.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) points: Points,
    pub(crate) has_points: bool,
    pub(crate) recorder: Recorder,
    pub(crate) lease: Arc<LeaseEnd>,
}

type RunFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl Runner {
    fn future(&self, job: &Job) -> RunFuture {
        let (handler, run) = (job.handler.clone(), job.run.clone());
        Box::pin(async move {
            match AssertUnwindSafe(async { handler.run(run).await }).catch_unwind().await {
                Ok(Outcome::Fail(error)) => Outcome::Fail(bounded(error)),
                Ok(outcome) => outcome,
                Err(panic) => Outcome::Fail(bounded(format!("the hook panicked: {}", panic_text(&*panic)))),
            }
        })
    }

    fn ended(&self, job: Job, outcome: Outcome, started: Instant) -> Ended {
        self.recorder.run_ended(&job.run, &outcome);
        Ended { run: job.run, key: job.key, number: job.number, outcome: Some(outcome), took: started.elapsed() }
    }

    /// Since when a run may begin, if it may still. Its start was decided a moment ago, and that moment may have been long: of
    /// a process that was stopped, say, whose slots have passed on meanwhile, and which has not come to notice.
    fn may_begin(&self, job: &Job) -> Option<Moment> {
        let since = self.recorder.moment();
        (!job.run.control.is_revoked() && self.lease.holds()).then_some(since)
    }

    fn not_started(job: Job, started: Instant) -> Ended {
        Ended { run: job.run, key: job.key, number: job.number, outcome: None, took: started.elapsed() }
    }

    /// Runs one job on the current task.
    pub(crate) async fn run_one(self, job: Job) {
        let started = Instant::now();
        if self.has_points && self.points.pass(points::RUN_BEFORE_START).await == Pass::Cut {
            return;
        }
        let ended = if let Some(since) = self.may_begin(&job) {
            if self.has_points && self.points.pass(points::RUN_STARTING).await == Pass::Cut {
                return;
            }
            self.recorder.run_started(&job.run, since);
            let outcome = self.future(&job).await;
            self.ended(job, outcome, started)
        } else {
            Runner::not_started(job, started)
        };
        // The owner is gone only when this server is.
        let _ = self.events.send(Event::Ended(vec![ended]));
    }

    /// Polls each job once, and gives those that do not return at once a task of their own.
    pub(crate) fn run_batch(&self, hook: HookNumber, jobs: Vec<Job>) {
        let mut all = Vec::with_capacity(jobs.len());
        let mut slowest = Duration::ZERO;
        for job in jobs {
            let started = Instant::now();
            let Some(since) = self.may_begin(&job) else {
                all.push(Runner::not_started(job, started));
                continue;
            };
            self.recorder.run_started(&job.run, since);
            let mut future = self.future(&job);
            let mut context = Context::from_waker(Waker::noop());
            let polled = future.as_mut().poll(&mut context);
            slowest = slowest.max(started.elapsed());
            match polled {
                Poll::Ready(outcome) => all.push(self.ended(job, outcome, started)),
                Poll::Pending => {
                    let (runner, control) = (self.clone(), job.run.control.clone());
                    // Polled anew there, with a waker that counts.
                    let task = tokio::spawn(async move {
                        let outcome = future.await;
                        let ended = runner.ended(job, outcome, started);
                        let _ = runner.events.send(Event::Ended(vec![ended]));
                    });
                    control.set_abort(task.abort_handle());
                }
            }
        }
        let _ = self.events.send(Event::Polled { hook, slowest });
        if !all.is_empty() {
            let _ = self.events.send(Event::Ended(all));
        }
    }
}

/// An error's text, cut where it is longer than is kept.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        let mut end = ERROR_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    crate::document::panic_message(panic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k12_a_long_error_is_cut_at_a_character() {
        let text = bounded("é".repeat(5_000));
        assert!(text.len() < 4_200 && text.ends_with('…'));
        assert_eq!(bounded("short".to_owned()), "short");
    }
}
