//! A push job from start to end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate_api::{ClientPhase, HeartbeatRequest, InputFault, PushAccepted, PushStart, PushState, PushView, code};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::folder::KeptFolder;
use super::known::{Known, Pulse, Shared, beat, follow, needs_client};
use super::work::{Events, Stopped, Work};
use super::{PushError, PushEvent, PushJob, PushObserver, PushOutcome, build};
use crate::client::Client;
use crate::error::Error;

/// How many events may wait for the observer.
const EVENTS_MAX: usize = 64;

/// How long an answer may take that is asked for at the end of the time.
const LAST_ANSWER: Duration = Duration::from_millis(250);

/// The shortest and longest time between heartbeats, whatever the server says.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

impl PushJob {
    /// Makes the push. Dropping the future stops all work of it; the same job can be run again.
    ///
    /// # Errors
    /// [`PushError::Input`] if the input can't be found, before anything was asked of the server;
    /// [`PushError::Server`] if the push was refused or the server was lost. A push that ended
    /// otherwise than hoped is no error: the outcome says how it ended.
    pub async fn run(self, client: &Client, observer: &mut dyn PushObserver) -> Result<PushOutcome, PushError> {
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        let paths = self.paths.clone();
        // Data that is there already needs no input.
        if self.options.from_version.is_none() {
            tokio::task::spawn_blocking(move || build::discover(&paths)).await.unwrap_or_else(|error| {
                Err(PushError::Input { message: error.to_string(), to_do: "Push again.".to_owned() })
            })?;
        }
        let start = PushStart {
            id: self.id.clone(),
            store: self.store.clone(),
            pushed_by: self.options.pushed_by.clone(),
            attributes: self.options.attributes.clone(),
            input_digest: None,
            allow_empty: self.options.allow_empty,
            from_version: self.options.from_version,
            overrides: self.options.overrides.clone(),
        };
        let accepted = let_in(client, &start, self.options.timeout).await?;
        observer.event(PushEvent::Accepted(Box::new(accepted.clone())));

        let patient = client.with_patience(self.options.patience);
        // One that has all of its data already may have been made of other input.
        let confirmed = accepted.created || needs_client(&accepted.state) || start.from_version.is_some();
        let shared = Shared::new(accepted.state.clone(), confirmed);
        let pulse = Pulse::new(HeartbeatRequest { phase: ClientPhase::Waiting, bytes: 0, of: None, records: 0 });
        let follower = follow(client, &self.id, &shared, self.options.patience);
        let every = Duration::from_millis(accepted.heartbeat_interval_ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        let heart = beat(client, &self.id, &shared, &pulse, every);
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let is_followed = self.options.follow;
        let work = Work {
            client: patient,
            job: self,
            start,
            shared: shared.clone(),
            pulse,
            events: Events::new(sender),
            folder: KeptFolder::default(),
            to_do: OnceLock::new(),
        };
        let folder = work.folder.clone();
        let steps = async {
            let done = work.run(accepted).await;
            drop(heart);
            finish(&work, done, is_followed).await
        };
        let done = observe(steps, receiver, &shared, observer, deadline).await;
        drop(follower);
        let known = shared.now();
        if known.state.status.is_terminal() {
            // However it ended, nobody goes on from here.
            folder.remove();
        }
        let timed_out = match done {
            Some(done) => {
                done?;
                false
            }
            None => true,
        };
        let (state, view) = latest(client, known, timed_out).await;
        Ok(PushOutcome { state, view, timed_out, to_do: work.to_do.into_inner() })
    }
}

/// What follows from how the steps went; then, if that is wanted, the push's end.
async fn finish(work: &Work, done: Result<(), Stopped>, is_followed: bool) -> Result<(), PushError> {
    match done {
        Ok(()) if !is_followed => return Ok(()),
        // The watch stream tells how it ended.
        Ok(()) | Err(Stopped::Ended) => {}
        Err(Stopped::Failed { kind, message, to_do }) => {
            work.to_do.get_or_init(|| to_do);
            let state = work.give_up(kind, message.clone()).await;
            ended(work, state, message)?;
        }
        Err(Stopped::Server(error)) => match error.code() {
            // The server refuses what this client made: nothing will mend that.
            Some(
                code::SCHEMA_INCOMPATIBLE
                | code::MANIFEST_REFUSED
                | code::PART_DAMAGED
                | code::PARTS_MISSING
                | code::TOO_LARGE,
            ) => {
                let kind = match error.code() {
                    Some(code::PART_DAMAGED | code::PARTS_MISSING) => InputFault::Fault,
                    _ => InputFault::Input,
                };
                if let Some(body) = error.body() {
                    work.to_do.get_or_init(|| body.countermeasures.clone());
                }
                let message = error.to_string();
                let state = work.give_up(kind, message.clone()).await;
                ended(work, state, message)?;
            }
            _ => return Err(PushError::Server(Error::clone(&error))),
        },
    }
    match work.shared.wait(|_| false).await {
        Ok(_) => Ok(()),
        Err(error) => Err(PushError::Server(Error::clone(&error))),
    }
}

/// Takes note of the answer to giving up.
fn ended(work: &Work, state: Result<PushState, Error>, message: String) -> Result<(), PushError> {
    match state {
        Ok(state) => {
            work.shared.note(&state);
            Ok(())
        }
        Err(error) if error.code() == Some(code::PUSH_ENDED) => Ok(()),
        Err(error) => {
            tracing::error!(%message, "could not tell the server why the push can't go on");
            Err(PushError::Server(error))
        }
    }
}

/// Runs the steps and tells the observer what happens meanwhile. `None` if the time ran out.
async fn observe(
    steps: impl Future<Output = Result<(), PushError>>,
    mut events: mpsc::Receiver<PushEvent>,
    shared: &Shared,
    observer: &mut dyn PushObserver,
    deadline: Option<Instant>,
) -> Option<Result<(), PushError>> {
    let mut known = shared.subscribe();
    let mut told = Told::default();
    tokio::pin!(steps);
    let deadline = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    let done = loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => observer.event(event),
            Ok(()) = known.changed() => {
                let known = known.borrow_and_update().clone();
                told.tell(&known, observer);
            }
            done = &mut steps => break Some(done),
            () = &mut deadline => break None,
        }
    };
    while let Ok(event) = events.try_recv() {
        observer.event(event);
    }
    told.tell(&shared.now(), observer);
    done
}

/// What the observer has been told.
#[derive(Default)]
struct Told {
    view: Option<Arc<PushView>>,
    unreachable: bool,
}

impl Told {
    fn tell(&mut self, known: &Known, observer: &mut dyn PushObserver) {
        match &known.unreachable {
            Some(reason) if !self.unreachable => {
                self.unreachable = true;
                observer.event(PushEvent::Unreachable { reason: reason.clone() });
            }
            Some(_) => {}
            None => self.unreachable = false,
        }
        if let Some(view) = known.view.as_ref().filter(|_| known.confirmed) {
            let is_new = self.view.as_ref().is_none_or(|told| !Arc::ptr_eq(told, view));
            if is_new {
                self.view = Some(Arc::clone(view));
                observer.event(PushEvent::View(Box::new(PushView::clone(view))));
            }
        }
    }
}

/// Lets the push in. With a limit on the whole job, a server that is away is tried for as long, and one that takes the
/// request and says nothing is not waited for much longer.
async fn let_in(client: &Client, start: &PushStart, limit: Option<Duration>) -> Result<PushAccepted, Error> {
    let Some(limit) = limit else { return client.start_push(start).await };
    let patient = client.with_patience(limit);
    // A request that gives up by itself knows better why, so it gets the chance to.
    match tokio::time::timeout(limit.saturating_add(LAST_ANSWER), patient.start_push(start)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Unreachable {
            url: client.url().to_owned(),
            tried_for: limit,
            reason: "the server did not answer".to_owned(),
            surely_not_sent: false,
        }),
    }
}

/// State and view at the end, not older than what is known.
async fn latest(client: &Client, known: Known, timed_out: bool) -> (PushState, Option<PushView>) {
    let told = known.view.filter(|view| view.state == known.state);
    let view = match told {
        Some(view) => Some(PushView::clone(&view)),
        // The time is over: an answer is taken if it comes at once.
        None if timed_out => {
            let impatient = client.with_patience(Duration::ZERO);
            let answer = tokio::time::timeout(LAST_ANSWER, impatient.push(&known.state.push)).await;
            answer.ok().and_then(Result::ok)
        }
        None => client.push(&known.state.push).await.ok(),
    };
    let state = match &view {
        // It may have ended meanwhile; an end that is known is never taken back.
        Some(view) if !known.state.status.is_terminal() => view.state.clone(),
        _ => known.state,
    };
    (state, view)
}
