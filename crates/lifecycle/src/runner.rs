//! The cluster hook that calls a lifecycle hook: one run for each call that a gate asks for.
//!
//! Invariants:
//! - A hook is called only for a call that still waits for exactly this attempt; whatever comes later is recorded as
//!   stale and changes nothing.
//! - Answer, record, pause and events commit together with the run's acknowledgement, so once, by whoever holds the key.
//! - A server that dies leaves the call as it was: the next run asks again, with the same attempt, memo and idempotency
//!   key and a higher fencing token.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_state::{ClusterHook, Outcome, Path, Ref, Run, Timestamp, Transaction, TransactionError, WriteError};

use crate::call::{CallRecord, CallRequest, CallSite, CallState, RecordedAnswer};
use crate::configuration::{HooksConfiguration, Mode, OnFailure};
use crate::context::Context;
use crate::contract;
use crate::event::{Event, EventStream};
use crate::function::Outcomes;
use crate::judgement::{CallFault, Circumstances, End, Judgement, judge};
use crate::lifecycle::Lifecycle;
use crate::outcome::{AnswerDocument, EventDraft, PauseRequest, Verdict};
use crate::pause::{self, Pause, PauseView, Resolution};
use crate::pool::CallError;
use crate::source::ContextSource;

/// When a call that could not be made for reasons of this server is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How long a run that has lost its key still waits for an answer, so that it is on record as stale.
const LATE_ANSWER: Duration = Duration::from_secs(1);

/// Runs the calls of one lifecycle hook.
pub(crate) struct Runner<C> {
    lifecycle: Lifecycle,
    hook: String,
    source: Arc<dyn ContextSource>,
    site: PhantomData<fn() -> C>,
}

/// A call, with all that is known before the hook is asked.
struct Prepared<C> {
    site: Ref<C>,
    request: CallRequest,
    configuration: HooksConfiguration,
    context: Context,
    on_failure: OnFailure,
    pause: Option<Pause>,
}

/// What commits with the acknowledgement.
#[derive(Clone)]
struct Writes {
    path: Path,
    request: CallRequest,
    answer: RecordedAnswer,
    record: CallRecord,
    context: Context,
    events: Vec<EventDraft>,
    pause: Option<PauseRequest>,
}

impl<C: CallSite> Runner<C> {
    pub(crate) fn new(lifecycle: Lifecycle, hook: &str, source: Arc<dyn ContextSource>) -> Self {
        Runner { lifecycle, hook: hook.to_owned(), source, site: PhantomData }
    }

    /// What is to be asked, if anything; otherwise how the run ends without asking.
    fn prepare(&self, run: &Run) -> Result<Prepared<C>, Outcome> {
        let fail = |error: &dyn std::fmt::Display| Outcome::Fail(format!("call {}: {error}", run.path()));
        let site = Ref::<C>::from_path(run.path()).map_err(|error| fail(&error))?;
        let snapshot = run.snapshot();
        let Some(there) = snapshot.get(&site).map_err(|error| fail(&error))? else { return Err(Outcome::Done) };
        let CallState::Asked { request } = there.state() else { return Err(Outcome::Done) };
        let request = request.clone();
        let Some(configuration) = snapshot.get(&HooksConfiguration::place()).map_err(|error| fail(&error))?.cloned()
        else {
            tracing::warn!(call = %run.path(), "no hooks configuration is published; the call waits for one");
            return Err(Outcome::RetryAt(run.now().after(TRY_AGAIN)));
        };
        let Some(mut context) =
            self.source.context(snapshot, run.path(), &request, run.now()).map_err(|error| fail(&error))?
        else {
            return Err(Outcome::Done);
        };
        let overrides = self.source.overrides(snapshot, &request.store).map_err(|error| fail(&error))?;
        let settings = configuration.merged(&self.hook, &overrides);
        let on_failure = settings.get("on_failure").and_then(|text| OnFailure::parse(text)).unwrap_or_default();
        let pause = match request.mode {
            Mode::Enforce => snapshot.get(&Pause::of(run.path())).map_err(|error| fail(&error))?.cloned(),
            Mode::Observe | Mode::Off => None,
        };
        let id = Pause::id_of(run.path());
        context.function = request.function;
        context.store.clone_from(&request.store);
        context.region.clone_from(&request.region);
        context.config = settings;
        context.attempt = request.attempt;
        context.memo.clone_from(&request.memo);
        context.pause = pause.as_ref().map(|pause| PauseView { id, since: pause.since, until: pause.until });
        context.now = run.now();
        context.timeout_ms = configuration.timeout_ms;
        context.idempotency_key = run.idempotency_key();
        context.fencing_token = run.token().0;
        Ok(Prepared { site, request, configuration, context, on_failure, pause })
    }

    /// Asks the hook on a worker.
    async fn ask(&self, prepared: &Prepared<C>, run: &Run, started_at: &Arc<AtomicI64>) -> End {
        self.lifecycle.pool().set_threads(prepared.configuration.threads as usize);
        let lifecycle = self.lifecycle.clone();
        let published = prepared.configuration.hooks.get(&self.hook).cloned().unwrap_or_default();
        let (name, state, started_at) = (self.hook.clone(), run.state().clone(), Arc::clone(started_at));
        let mut context = prepared.context.clone();
        let call = move |_| async move {
            // Time in the queue is over: from here on it is the hook's time.
            context.now = state.now();
            started_at.store(context.now.0, Ordering::SeqCst);
            let hook = lifecycle.hook(&name, &published).map_err(CallFault::Configuration)?;
            let hook = hook.ok_or_else(|| {
                CallFault::Configuration(contract::HookError::new("this server was not built with it"))
            })?;
            contract::call(&*hook, &context).await.map_err(CallFault::Hook)
        };
        self.lifecycle.pool().call(prepared.configuration.timeout(), call).await
    }
}

/// What a pause that is decided says in its hook's place.
fn of_pause(prepared: &Prepared<impl CallSite>, now: Timestamp) -> Option<AnswerDocument> {
    let Resolution::Decided { verdict, reason } = prepared.pause.as_ref()?.resolution(now) else { return None };
    let verdict = match (verdict, prepared.request.function.outcomes()) {
        // Running out into Wait only means that the hook is asked again.
        (Verdict::Wait, _) | (_, Outcomes::None) => return None,
        (Verdict::Rollback, Outcomes::Two) => Verdict::Abort,
        (verdict, Outcomes::Two | Outcomes::Four) => verdict,
    };
    Some(AnswerDocument { verdict, reason, memo: prepared.request.memo.clone(), ..AnswerDocument::PROCEED })
}

#[async_trait]
impl<C: CallSite> ClusterHook for Runner<C> {
    async fn run(&self, run: Run) -> Outcome {
        let prepared = match self.prepare(&run) {
            Ok(prepared) => prepared,
            Err(outcome) => return outcome,
        };
        let started_at = Arc::new(AtomicI64::new(run.now().0));
        let decided = of_pause(&prepared, run.now());
        let by_pause = decided.is_some();
        let end: End = match decided {
            Some(document) => Ok(Ok(document)),
            None => {
                let cancelled = run.cancelled();
                let given_up = async {
                    cancelled.cancelled().await;
                    run.state().clock().sleep_until(run.now().after(LATE_ANSWER)).await;
                };
                tokio::select! {
                    biased;
                    end = self.ask(&prepared, &run, &started_at) => end,
                    // Whatever is returned now is refused; the call stays asked, and comes again.
                    () = given_up => return Outcome::RetryAt(run.now()),
                }
            }
        };
        if let Err(CallError::QueueFull { .. } | CallError::Closed) = end {
            return Outcome::RetryAt(run.now().after(TRY_AGAIN));
        }
        let started_at = Timestamp(started_at.load(Ordering::SeqCst)).max(prepared.request.asked_at);
        let ended_at = run.now().max(started_at);
        let circumstances = Circumstances {
            function: prepared.request.function,
            on_failure: prepared.on_failure,
            started_at,
            ended_at,
            server: run.state().server().to_string(),
        };
        let judgement = judge(end, &circumstances);
        if !by_pause {
            let (waited, took) = (started_at.since(prepared.request.asked_at), ended_at.since(started_at));
            let function = prepared.request.function;
            self.lifecycle.metrics().count(&self.hook, function, judgement.counted, waited, took);
        }
        let site = prepared.site.clone();
        let writes = writes(prepared, judgement, by_pause, &run);
        if !run.is_in_force() {
            record_as_stale(&run, writes.record).await;
            return Outcome::Done;
        }
        Outcome::done_with(move |transaction| write(transaction, &site, &writes))
    }
}

fn writes<C: CallSite>(prepared: Prepared<C>, judgement: Judgement, by_pause: bool, run: &Run) -> Writes {
    let Prepared { request, context, configuration, pause, .. } = prepared;
    let Judgement { mut answer, events, pause: asked_for, .. } = judgement;
    let observed = request.mode == Mode::Observe;
    // A pause that runs out is decided at that time, not at the interval after it.
    let until = pause.as_ref().map_or(asked_for.as_ref().and_then(|pause| pause.until), |pause| pause.until);
    if let (Verdict::Wait, Some(until)) = (answer.verdict, until.filter(|until| *until > answer.ended_at)) {
        let otherwise = answer.ended_at.after(configuration.wait_interval());
        answer.ask_again_at = Some(answer.ask_again_at.unwrap_or(otherwise).min(until));
    }
    let record = CallRecord {
        call: run.path().clone(),
        hook: request.hook.clone(),
        function: request.function,
        store: request.store.clone(),
        push: context.push.clone(),
        region: request.region.clone(),
        round: request.round,
        attempt: request.attempt,
        queued_at: request.asked_at,
        started_at: answer.started_at,
        ended_at: answer.ended_at,
        verdict: answer.verdict,
        reason: answer.reason.clone(),
        failed: answer.failed,
        observed,
        stale: false,
        by_pause,
        server: answer.server.clone(),
        idempotency_key: context.idempotency_key.clone(),
        fencing_token: context.fencing_token,
    };
    // What is only observed tells nobody and holds nothing (H34).
    let (events, pause) = if observed { (Vec::new(), None) } else { (events, asked_for) };
    Writes { path: run.path().clone(), request, answer, record, context, events, pause }
}

fn write<C: CallSite>(transaction: &mut Transaction, site: &Ref<C>, writes: &Writes) -> Result<(), TransactionError> {
    let there = transaction.get(site)?;
    let awaited = there.filter(|there| {
        matches!(there.state(), CallState::Asked { request }
            if request.round == writes.request.round && request.attempt == writes.request.attempt)
    });
    transaction.append(&CallRecord { stale: awaited.is_none(), ..writes.record.clone() })?;
    let Some(there) = awaited else { return Ok(()) };
    let mut there = (*there).clone();
    there.set_state(CallState::Answered { request: writes.request.clone(), answer: writes.answer.clone() });
    transaction.put(site, there)?;
    if writes.request.mode == Mode::Enforce {
        hold(transaction, writes)?;
    }
    tell(transaction, writes)
}

/// Opens the pause that the answer asks for, keeps it up to date, or closes the one that it no longer asks for.
fn hold(transaction: &mut Transaction, writes: &Writes) -> Result<(), TransactionError> {
    let place = Pause::of(&writes.path);
    let there = transaction.get(&place)?;
    match (&writes.pause, there) {
        (Some(_), Some(there)) => {
            let mut pause = (*there).clone();
            pause.ask_again(&writes.answer.reason);
            transaction.put(&place, pause)
        }
        (Some(request), None) => {
            let (context, answer) = (&writes.context, &writes.answer);
            let hook = &writes.request.hook;
            let pause = pause::opened(request, &writes.path, context, hook, &answer.reason, answer.ended_at);
            transaction.put(&place, pause)
        }
        // A failed call says nothing about the pause, and one that a person answered is kept until its gate goes.
        (None, Some(there)) if there.answer.is_none() && writes.answer.failed.is_none() && !writes.record.by_pause => {
            transaction.delete(&place).map(|_| ())
        }
        (None, _) => Ok(()),
    }
}

/// Puts the answer's events behind those of its store.
fn tell(transaction: &mut Transaction, writes: &Writes) -> Result<(), TransactionError> {
    if writes.events.is_empty() {
        return Ok(());
    }
    let request = &writes.request;
    let Some(place) = Event::stream(&request.store) else { return Ok(()) };
    let mut stream = transaction.get(&place)?.map_or_else(EventStream::default, |stream| (*stream).clone());
    let first = stream.newest + 1;
    stream.newest += writes.events.len() as u64;
    transaction.put(&place, stream)?;
    for (number, draft) in (first..).zip(&writes.events) {
        let position = usize::try_from(number - first).unwrap_or(usize::MAX);
        let event = Event {
            id: Event::id_of(&writes.path, request.attempt, position),
            kind: draft.kind.clone(),
            data: draft.data.clone(),
            store: request.store.clone(),
            push: writes.context.push.clone(),
            region: request.region.clone(),
            version: writes.context.version,
            function: request.function,
            hook: request.hook.clone(),
            at: writes.answer.ended_at,
        };
        transaction.put(&place.child::<Event>(number)?, event)?;
    }
    Ok(())
}

/// Keeps on record that a run that had lost its key came to an answer. Nothing else may come of it (C3).
async fn record_as_stale(run: &Run, record: CallRecord) {
    let record = CallRecord { stale: true, ..record };
    let call = record.call.clone();
    let written: Result<_, WriteError<TransactionError>> =
        run.state().write(move |transaction| transaction.append(&record).map(|_| ())).await;
    if let Err(error) = written {
        tracing::warn!(%call, %error, "a late answer of a hook could not be recorded");
    }
}
