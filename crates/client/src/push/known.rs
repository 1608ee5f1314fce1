//! What the client knows about where its push is, and the tasks that keep it up to date.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_api::{HeartbeatRequest, PushPhase, PushState, PushView, code};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::error::Error;
use crate::retry::Attempts;

/// How long a heartbeat is tried before the next one takes its place.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(5);

/// What is known about the push.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) state: PushState,
    pub(super) view: Option<Arc<PushView>>,
    /// Why the push can't be followed any more.
    pub(super) lost: Option<Arc<Error>>,
    /// Why the server can't be reached at the moment.
    pub(super) unreachable: Option<String>,
    /// Whether the push is one of this job's input, as far as that can be told: how another one's goes is no news of
    /// this job.
    pub(super) confirmed: bool,
}

/// The knowledge, shared by the job's tasks. What is for good is never taken back.
#[derive(Clone, Debug)]
pub(super) struct Shared(watch::Sender<Known>);

impl Shared {
    pub(super) fn new(state: PushState, confirmed: bool) -> Self {
        Self(watch::Sender::new(Known { state, view: None, lost: None, unreachable: None, confirmed }))
    }

    /// Takes note that the push is of this job's input.
    pub(super) fn confirm(&self) {
        self.0.send_modify(|known| known.confirmed = true);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }

    pub(super) fn now(&self) -> Known {
        self.0.borrow().clone()
    }

    /// Takes note of an answer's state.
    pub(super) fn note(&self, state: &PushState) {
        self.0.send_if_modified(|known| {
            known.unreachable = None;
            let newer = !known.state.status.is_terminal() && known.state != *state;
            if newer {
                known.state = state.clone();
            }
            newer
        });
    }

    fn note_view(&self, view: PushView) {
        self.0.send_modify(|known| {
            known.unreachable = None;
            if !known.state.status.is_terminal() || view.state.status.is_terminal() {
                known.state = view.state.clone();
            }
            known.view = Some(Arc::new(view));
        });
    }

    pub(super) fn note_unreachable(&self, reason: String) {
        self.0.send_if_modified(|known| {
            let new = known.unreachable.is_none();
            known.unreachable = Some(reason);
            new
        });
    }

    fn note_lost(&self, error: Error) {
        self.0.send_modify(|known| known.lost = Some(Arc::new(error)));
    }

    /// Waits until the push has ended or `enough` holds.
    ///
    /// # Errors
    /// The error for which the push can't be followed any more.
    pub(super) async fn wait(&self, enough: impl Fn(&PushState) -> bool) -> Result<PushState, Arc<Error>> {
        let mut receiver = self.subscribe();
        let known = receiver
            .wait_for(|known| known.state.status.is_terminal() || known.lost.is_some() || enough(&known.state))
            .await
            .expect("the sender lives as long as `self`")
            .clone();
        match known.lost {
            Some(error) if !known.state.status.is_terminal() => Err(error),
            _ => Ok(known.state),
        }
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(super) struct Owned(JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows the push to its end.
pub(super) fn follow(client: &Client, id: &str, shared: &Shared, patience: Duration) -> Owned {
    // The stream's own patience is short, so that people are told soon that nothing comes; what
    // is waited in all is counted here.
    let client = client.with_patience(Duration::from_secs(2));
    let (id, shared) = (id.to_owned(), shared.clone());
    Owned(tokio::spawn(async move {
        let mut events = client.watch_push(&id);
        let mut attempts = Attempts::new(patience);
        loop {
            match events.next().await {
                Ok(Some(view)) => {
                    attempts.succeeded();
                    let ended = view.state.status.is_terminal();
                    shared.note_view(view);
                    if ended {
                        return;
                    }
                }
                // The server has nothing more to tell, yet no end was told: ask again.
                Ok(None) => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(error) if may_pass(&error) => match attempts.failed() {
                    Some(pause) => {
                        shared.note_unreachable(error.to_string());
                        tokio::time::sleep(pause).await;
                    }
                    None => return shared.note_lost(error.after(&attempts)),
                },
                Err(error) => return shared.note_lost(error),
            }
        }
    }))
}

/// Whether trying on may help a stream that lives for hours.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::TimedOut { .. } => true,
        Error::Refused { body, .. } => body.retryable,
        _ => false,
    }
}

/// How far the client is, as the next heartbeat tells it.
#[derive(Clone, Debug)]
pub(super) struct Pulse(Arc<Mutex<HeartbeatRequest>>);

impl Pulse {
    pub(super) fn new(heartbeat: HeartbeatRequest) -> Self {
        Self(Arc::new(Mutex::new(heartbeat)))
    }

    pub(super) fn set(&self, heartbeat: HeartbeatRequest) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = heartbeat;
    }

    fn get(&self) -> HeartbeatRequest {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Tells the server that the client lives, until the artifact is complete or the push has ended.
pub(super) fn beat(client: &Client, id: &str, shared: &Shared, pulse: &Pulse, every: Duration) -> Owned {
    let client = client.with_patience(HEARTBEAT_PATIENCE.min(every));
    let (id, shared, pulse) = (id.to_owned(), shared.clone(), pulse.clone());
    Owned(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match client.heartbeat(&id, &pulse.get()).await {
                Ok(state) => {
                    let needless = !needs_client(&state);
                    shared.note(&state);
                    if needless {
                        return;
                    }
                }
                Err(error) if may_pass(&error) => shared.note_unreachable(error.to_string()),
                Err(error) if matches!(error.code(), Some(code::PUSH_ENDED | code::WRONG_PHASE)) => {
                    // How it ended is learnt from the watch stream.
                    return;
                }
                Err(error) => return shared.note_lost(error),
            }
        }
    }))
}

/// Whether a push in this state still needs its client.
pub(super) fn needs_client(state: &PushState) -> bool {
    !state.status.is_terminal() && state.phase <= PushPhase::Upload
}

#[cfg(test)]
mod tests {
    use tidegate_api::PushStatus;

    use super::*;

    fn state(status: PushStatus, phase: PushPhase) -> PushState {
        PushState {
            push: "p".to_owned(),
            store: "s".to_owned(),
            version: Some(1),
            status,
            phase,
            ended_by: None,
            reason: None,
        }
    }

    #[tokio::test]
    async fn f15_an_end_that_is_known_is_never_taken_back() {
        let shared = Shared::new(state(PushStatus::Started, PushPhase::Build), true);
        shared.note(&state(PushStatus::Killed, PushPhase::Ended));
        // An older answer that was late on its way.
        shared.note(&state(PushStatus::Started, PushPhase::Upload));
        assert_eq!(shared.now().state.status, PushStatus::Killed);
        let seen = shared.wait(|_| false).await;
        assert_eq!(seen.map(|state| state.status).ok(), Some(PushStatus::Killed));
    }

    #[test]
    fn a_push_needs_its_client_until_the_artifact_is_complete() {
        for (phase, needed) in [
            (PushPhase::Queued, true),
            (PushPhase::Start, true),
            (PushPhase::Build, true),
            (PushPhase::Schema, true),
            (PushPhase::Upload, true),
            (PushPhase::Rollout, false),
            (PushPhase::End, false),
            (PushPhase::RollingBack, false),
        ] {
            let state = state(PushStatus::Started, phase);
            assert_eq!(needs_client(&state), needed, "{phase:?}");
        }
        assert!(!needs_client(&state(PushStatus::Killed, PushPhase::Upload)));
    }
}
