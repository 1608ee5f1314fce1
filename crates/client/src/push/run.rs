//! A push job from start to end.

use std::sync::Arc;
use std::time::Duration;

use tidegate_api::{ClientPhase, HeartbeatRequest, InputFault, PushStart, PushState, PushView, code};
use tokio::sync::mpsc;

use super::folder::KeptFolder;
use super::known::{Known, Pulse, Shared, beat, follow};
use super::work::{Events, Stopped, Work};
use super::{PushError, PushEvent, PushJob, PushObserver, PushOutcome, build};
use crate::client::Client;
use crate::error::Error;

/// How many events may wait for the observer.
const EVENTS_MAX: usize = 64;

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
        let paths = self.paths.clone();
        // Data that is there already needs no input.
        if self.options.from_version.is_none() {
            tokio::task::spawn_blocking(move || build::discover(&paths))
                .await
                .unwrap_or_else(|error| Err(error.to_string()))
                .map_err(|message| PushError::Input { message })?;
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
        let accepted = client.start_push(&start).await?;
        observer.event(PushEvent::Accepted(Box::new(accepted.clone())));

        let patient = client.with_patience(self.options.patience);
        let shared = Shared::new(accepted.state.clone());
        let pulse = Pulse::new(HeartbeatRequest { phase: ClientPhase::Waiting, bytes: 0, of: None, records: 0 });
        let follower = follow(client, &self.id, &shared, self.options.patience);
        let every = Duration::from_millis(accepted.heartbeat_interval_ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        let heart = beat(client, &self.id, &shared, &pulse, every);
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let timeout = self.options.timeout;
        let is_followed = self.options.follow;
        let work = Work {
            client: patient,
            job: self,
            start,
            shared: shared.clone(),
            pulse,
            events: Events::new(sender),
            folder: KeptFolder::default(),
        };
        let folder = work.folder.clone();
        let steps = async {
            let done = work.run(accepted).await;
            drop(heart);
            finish(&work, done, is_followed).await
        };
        let done = observe(steps, receiver, &shared, observer, timeout).await;
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
        Ok(outcome(client, known, timed_out).await)
    }
}

/// What follows from how the steps went; then, if that is wanted, the push's end.
async fn finish(work: &Work, done: Result<(), Stopped>, is_followed: bool) -> Result<(), PushError> {
    match done {
        Ok(()) if !is_followed => return Ok(()),
        // The watch stream tells how it ended.
        Ok(()) | Err(Stopped::Ended) => {}
        Err(Stopped::Failed { kind, message }) => {
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
    timeout: Option<Duration>,
) -> Option<Result<(), PushError>> {
    let mut known = shared.subscribe();
    let mut told = Told::default();
    tokio::pin!(steps);
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
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
        if let Some(view) = &known.view {
            let is_new = self.view.as_ref().is_none_or(|told| !Arc::ptr_eq(told, view));
            if is_new {
                self.view = Some(Arc::clone(view));
                observer.event(PushEvent::View(Box::new(PushView::clone(view))));
            }
        }
    }
}

/// The outcome, with a view that is not older than what is known.
async fn outcome(client: &Client, known: Known, timed_out: bool) -> PushOutcome {
    let told = known.view.filter(|view| view.state == known.state);
    let view = match told {
        Some(view) => Some(PushView::clone(&view)),
        None => client.push(&known.state.push).await.ok(),
    };
    let state = match &view {
        // It may have ended meanwhile; an end that is known is never taken back.
        Some(view) if !known.state.status.is_terminal() => view.state.clone(),
        _ => known.state,
    };
    PushOutcome { state, view, timed_out }
}
