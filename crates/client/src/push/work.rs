//! The steps of a push, from being let in to the complete artifact.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tidegate_api::{
    ClientPhase, FailRequest, HeartbeatRequest, InputFault, PushAccepted, PushPhase, PushStart, PushState, code,
};
use tidegate_dataset::{Cancel, Progress};
use tokio::sync::mpsc;

use super::build::{BuildFailed, BuildPhase, Plan};
use super::folder::{KeptFolder, WorkFolder};
use super::known::{Pulse, Shared};
use super::upload::Upload;
use super::{PushEvent, PushJob};
use crate::client::Client;
use crate::error::Error;

/// Where events go. Progress is dropped where nobody keeps up with it.
#[derive(Clone, Debug)]
pub(super) struct Events(mpsc::Sender<PushEvent>);

impl Events {
    pub(super) fn new(sender: mpsc::Sender<PushEvent>) -> Self {
        Self(sender)
    }

    pub(super) fn progress(&self, event: PushEvent) {
        let _ = self.0.try_send(event);
    }

    async fn send(&self, event: PushEvent) {
        // Whoever stopped listening has dropped the job.
        let _ = self.0.send(event).await;
    }
}

/// Why the steps were left before the artifact was complete.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The push has ended.
    Ended,
    /// The client can't go on with this input, on this machine.
    Failed { kind: InputFault, message: String, to_do: String },
    /// The server refused, or was lost.
    Server(Arc<Error>),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        match error.code() {
            Some(code::PUSH_ENDED) => Self::Ended,
            _ => Self::Server(Arc::new(error)),
        }
    }
}

impl From<Arc<Error>> for Stopped {
    fn from(error: Arc<Error>) -> Self {
        Self::Server(error)
    }
}

/// Raises a build's flag when its waiter goes away, so that no thread works for nobody.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

pub(super) struct Work {
    pub(super) client: Client,
    pub(super) job: PushJob,
    pub(super) start: PushStart,
    pub(super) shared: Shared,
    pub(super) pulse: Pulse,
    pub(super) events: Events,
    /// The folder that the artifact is built in, while it is held.
    pub(super) folder: KeptFolder,
    /// What can be done about what was wrong, once it is known.
    pub(super) to_do: OnceLock<String>,
}

impl Work {
    /// Brings the artifact to the server, or finds it there.
    pub(super) async fn run(&self, accepted: PushAccepted) -> Result<(), Stopped> {
        let id = accepted.state.push.clone();
        match self.bring(accepted).await {
            // The push is further than this client: another one with the same id was faster.
            Err(Stopped::Server(error)) if error.code() == Some(code::WRONG_PHASE) => {
                let state = self.client.push(&id).await?.state;
                self.shared.note(&state);
                if super::known::needs_client(&state) { Err(Stopped::Server(error)) } else { Ok(()) }
            }
            other => other,
        }
    }

    async fn bring(&self, accepted: PushAccepted) -> Result<(), Stopped> {
        let id = &accepted.state.push;
        if self.start.from_version.is_some() {
            return Ok(());
        }
        if !super::known::needs_client(&accepted.state) {
            return self.check_input(accepted).await;
        }
        let state = self.shared.wait(|state| state.phase >= PushPhase::Build).await?;
        alive(&state)?;
        // Settings of the store may have changed while the push waited for its turn.
        let accepted = self.client.start_push(&self.start).await?;
        let folder = WorkFolder::open(self.job.options.work.as_deref(), self.client.url(), &accepted.state.push)
            .map_err(local)?;
        let memory = self.job.options.memory_bytes;
        let plan = Plan::new(&accepted, &self.job.paths, memory, folder.path());
        self.folder.keep(folder);

        let inspecting = plan.clone();
        let inferred = self
            .blocking(ClientPhase::Inspecting, move |progress, cancel| inspecting.inspect(progress, cancel))
            .await?;
        let digest = inferred.input_digest;
        self.tell_digest(&digest).await?;
        self.client.put_schema(id, inferred.schema.clone()).await?;
        let state = self.shared.wait(|state| state.phase >= PushPhase::Upload).await?;
        alive(&state)?;
        if !super::known::needs_client(&state) {
            // Another client of the same push was faster.
            self.folder.remove();
            return Ok(());
        }

        let building = plan.clone();
        let built = self
            .blocking(ClientPhase::Building, move |progress, cancel| {
                building.build(&inferred.schema, &digest, progress, cancel)
            })
            .await?;
        self.events
            .send(PushEvent::Built {
                artifact: built.manifest.artifact_id.clone(),
                records: built.manifest.record_count,
                bytes: built.manifest.bytes,
                reused: built.reused,
            })
            .await;
        let upload = Upload {
            client: &self.client,
            push: id,
            folder: &built.folder,
            manifest: &built.manifest,
            at_once: self.job.options.uploads,
            pulse: &self.pulse,
            events: &self.events,
        };
        let state = tokio::select! {
            biased;
            ended = self.shared.wait(|_| false) => {
                ended?;
                return Err(Stopped::Ended);
            }
            state = upload.run() => state?,
        };
        self.shared.note(&state);
        self.folder.remove();
        self.events.send(PushEvent::Completed).await;
        Ok(())
    }

    /// The artifact is there already: the input must be the one that it was made from.
    async fn check_input(&self, accepted: PushAccepted) -> Result<(), Stopped> {
        if accepted.created {
            return Ok(());
        }
        let plan = Plan { allow_empty: true, ..Plan::new(&accepted, &self.job.paths, None, &PathBuf::new()) };
        let inferred = self
            .blocking_regardless(ClientPhase::Inspecting, move |progress, cancel| plan.inspect(progress, cancel))
            .await;
        // What can't be read now may have been read then: how the push stands is what counts.
        if let Ok(inferred) = inferred {
            self.tell_digest(&inferred.input_digest).await?;
        }
        self.shared.confirm();
        Ok(())
    }

    async fn tell_digest(&self, digest: &str) -> Result<(), Stopped> {
        let start = PushStart { input_digest: Some(digest.to_owned()), ..self.start.clone() };
        let accepted = self.client.start_push(&start).await?;
        self.shared.note(&accepted.state);
        Ok(())
    }

    /// Work that blocks, until it is done or the push has ended.
    async fn blocking<T: Send + 'static>(
        &self,
        phase: ClientPhase,
        work: impl FnOnce(&(dyn Fn(Progress) + Send + Sync), &Cancel) -> Result<T, BuildFailed> + Send + 'static,
    ) -> Result<T, Stopped> {
        let done = self.blocking_regardless(phase, work);
        tokio::pin!(done);
        let known = tokio::select! {
            biased;
            done = &mut done => return done,
            known = self.shared.wait(|_| false) => known,
        };
        known?;
        Err(Stopped::Ended)
    }

    async fn blocking_regardless<T: Send + 'static>(
        &self,
        phase: ClientPhase,
        work: impl FnOnce(&(dyn Fn(Progress) + Send + Sync), &Cancel) -> Result<T, BuildFailed> + Send + 'static,
    ) -> Result<T, Stopped> {
        let cancel = Cancel::new();
        let _guard = CancelOnDrop(cancel.clone());
        let (pulse, events) = (self.pulse.clone(), self.events.clone());
        let on_progress = move |progress: Progress| {
            let in_bytes = BuildPhase::from(progress.phase) != BuildPhase::Writing;
            let heartbeat = HeartbeatRequest {
                phase,
                bytes: if in_bytes { progress.done } else { 0 },
                of: in_bytes.then_some(progress.total),
                records: progress.records,
            };
            // What is written is counted in records: bytes of input stay as they were.
            if in_bytes {
                pulse.set(heartbeat);
            }
            events.progress(PushEvent::Building {
                phase: progress.phase.into(),
                done: progress.done,
                of: progress.total,
                records: progress.records,
            });
        };
        let done = tokio::task::spawn_blocking(move || work(&on_progress, &cancel)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(BuildFailed::Cancelled)) => Err(Stopped::Ended),
            Ok(Err(BuildFailed::Failed { kind, message, to_do })) => Err(Stopped::Failed { kind, message, to_do }),
            Err(error) => Err(Stopped::Failed {
                kind: InputFault::Fault,
                message: format!("the client's work was interrupted: {error}"),
                to_do: "Push again.".to_owned(),
            }),
        }
    }

    /// Tells the server that the client gives up, so that the push ends with the reason.
    pub(super) async fn give_up(&self, kind: InputFault, message: String) -> Result<PushState, Error> {
        self.client.fail_push(&self.start.id, &FailRequest { message, kind }).await
    }
}

fn alive(state: &PushState) -> Result<(), Stopped> {
    if state.status.is_terminal() {
        return Err(Stopped::Ended);
    }
    Ok(())
}

fn local(error: Error) -> Stopped {
    let to_do = "See that the client can write there, and push again.".to_owned();
    Stopped::Failed { kind: InputFault::Fault, message: error.to_string(), to_do }
}
