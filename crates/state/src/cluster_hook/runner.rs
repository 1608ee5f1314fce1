//! Runs hooks' code: catches panics, and tells the owner how each run ended. What a run holds is made and freed here, and not
//! on the owner's task.
//!
//! Runs of a hook whose code has shown to return at once share a task, which costs less than a task each; one that does
//! not return at its first poll gets a task of its own.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::mpsc::UnboundedSender;

use super::cause::Cause;
use super::key_queue::{KeyIndex, Started};
use super::lease_end::LeaseEnd;
use super::owner::Event;
use super::points;
use super::run::{ClusterHook, Completion, FencingToken, Key, Outcome, Run, RunContext, RunControl};
use crate::driver::{Fence, HookNumber, RequestId};
use crate::metrics::HookLabel;
use crate::revision::Timestamp;
use crate::testing::history::{Moment, Recorder};
use crate::testing::points::{Pass, Points};

/// A first poll that takes longer than this makes the hook's further runs begin on tasks of their own.
pub(crate) const SLOW_POLL: Duration = Duration::from_micros(500);
/// The longest text of an error that is kept.
const ERROR_BYTES_MAX: usize = 4_096;

/// A run about to start.
pub(crate) struct Job {
    pub(crate) started: Started<Arc<Cause>>,
    pub(crate) fence: Fence,
    pub(crate) control: Arc<RunControl>,
}

impl Job {
    fn into_run(self, context: Arc<RunContext>) -> Run {
        let Job { started: Started { key, run, name, request, cause, attempt }, fence, control } = self;
        Run {
            context,
            key: Key(name),
            place: (key, run),
            request,
            attempt,
            token: FencingToken::new(fence.token, run),
            fence,
            cause,
            change: OnceLock::new(),
            control,
        }
    }
}

/// A run that has ended.
pub(crate) struct Ended {
    pub(crate) fence: Fence,
    pub(crate) place: (KeyIndex, u32),
    pub(crate) request: RequestId,
    pub(crate) end: End,
}

/// How a run ended.
pub(crate) enum End {
    Done,
    RetryAt(Timestamp),
    Failed(String),
    /// With writes, which are to be committed; it is done, or to run again at a time.
    Wrote {
        run: Box<Run>,
        writes: Completion,
        retry_at: Option<Timestamp>,
    },
    /// It never began, since its lease had ended or it was cancelled by then.
    NotBegun,
}

/// What a runner needs besides its jobs.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) points: Points,
    pub(crate) has_points: bool,
    pub(crate) recorder: Recorder,
    pub(crate) lease: Arc<LeaseEnd>,
    pub(crate) seconds: Histogram,
    pub(crate) failures: Family<HookLabel, Counter>,
}

type RunFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl Runner {
    fn future(handler: Arc<dyn ClusterHook>, run: Run) -> RunFuture {
        Box::pin(async move {
            match AssertUnwindSafe(async { handler.run(run).await }).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(panic) => Outcome::Fail(format!("the hook panicked: {}", panic_text(&*panic))),
            }
        })
    }

    fn ended(&self, run: Run, outcome: Outcome, began: Instant) -> Ended {
        self.recorder.run_ended(&run, &outcome);
        self.seconds.observe(began.elapsed().as_secs_f64());
        let (fence, place, request) = (run.fence, run.place, run.request);
        let end = match outcome {
            Outcome::Done => End::Done,
            Outcome::RetryAt(at) => End::RetryAt(at),
            Outcome::DoneWith(writes) => End::Wrote { run: Box::new(run), writes, retry_at: None },
            Outcome::RetryAtWith(at, writes) => End::Wrote { run: Box::new(run), writes, retry_at: Some(at) },
            Outcome::Fail(error) => {
                let error = bounded(error);
                self.failures.get_or_create(&super::metrics::label(run.hook())).inc();
                tracing::info!(hook = run.hook(), key = %run.key, request = %run.request, attempt = run.attempt, error, "a run failed");
                End::Failed(error)
            }
        };
        Ended { fence, place, request, end }
    }

    fn not_begun(run: Run) -> Ended {
        Ended { fence: run.fence, place: run.place, request: run.request, end: End::NotBegun }
    }

    /// Since when a run may begin, if it may still. Its start was decided a moment ago, and that moment may have been long: of
    /// a process that was stopped, say, whose slots have passed on meanwhile, and which has not come to notice.
    fn may_begin(&self, run: &Run) -> Option<Moment> {
        let since = self.recorder.moment();
        (!run.control.is_revoked() && self.lease.holds()).then_some(since)
    }

    /// Runs one job on the current task.
    pub(crate) async fn run_one(self, context: Arc<RunContext>, handler: Arc<dyn ClusterHook>, job: Job) {
        let began = Instant::now();
        let run = job.into_run(context);
        if self.has_points && self.points.pass(points::RUN_BEFORE_START).await == Pass::Cut {
            return;
        }
        let ended = if let Some(since) = self.may_begin(&run) {
            if self.has_points && self.points.pass(points::RUN_STARTING).await == Pass::Cut {
                return;
            }
            self.recorder.run_started(&run, since);
            let outcome = Runner::future(handler, run.clone()).await;
            self.ended(run, outcome, began)
        } else {
            Runner::not_begun(run)
        };
        // The owner is gone only when this server is.
        let _ = self.events.send(Event::Ended(vec![ended]));
    }

    /// Polls each job once, and gives those that do not return at once a task of their own.
    pub(crate) fn run_batch(
        &self,
        hook: HookNumber,
        context: Arc<RunContext>,
        handler: &Arc<dyn ClusterHook>,
        jobs: Vec<Job>,
    ) {
        let mut all = Vec::with_capacity(jobs.len());
        let mut slowest = Duration::ZERO;
        for job in jobs {
            let began = Instant::now();
            let run = job.into_run(context.clone());
            let Some(since) = self.may_begin(&run) else {
                all.push(Runner::not_begun(run));
                continue;
            };
            self.recorder.run_started(&run, since);
            let mut future = Runner::future(handler.clone(), run.clone());
            let mut polling = Context::from_waker(Waker::noop());
            let polled = future.as_mut().poll(&mut polling);
            slowest = slowest.max(began.elapsed());
            match polled {
                Poll::Ready(outcome) => all.push(self.ended(run, outcome, began)),
                Poll::Pending => {
                    let (runner, control) = (self.clone(), run.control.clone());
                    // Polled anew there, with a waker that counts.
                    let task = tokio::spawn(async move {
                        let outcome = future.await;
                        let ended = runner.ended(run, outcome, began);
                        let _ = runner.events.send(Event::Ended(vec![ended]));
                    });
                    control.set_abort(task.abort_handle());
                }
            }
        }
        // It keeps the state open, and once the owner knows of these ends nothing of them does.
        drop(context);
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
