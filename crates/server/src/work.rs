//! The cluster hooks that a server runs, and when it begins to: at its start, or, on a database that was put back, once an
//! admin has confirmed that.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_lifecycle::{Lifecycle, LogSink, Registry};
use tidegate_rollout::entities::{Call, RegistrationCall};
use tidegate_rollout::{Operations, RolloutDependencies, RolloutHooks, RolloutMetrics};
use tidegate_state::{HookHandle, HookSelection, State};

use crate::app::App;
use crate::artifacts::Remover;
use crate::server::{Options, StartError, publish_hooks, register_regions};

/// How soon a start that could not be completed is tried again.
const COMPLETE_AGAIN: Duration = Duration::from_secs(1);

/// What runs as long as it is held.
type Hooks = (RolloutHooks, Vec<HookHandle>);

/// The cluster hooks that a server runs, once it runs them.
pub(crate) type HooksSlot = Arc<Mutex<Option<Hooks>>>;

/// What the cluster hooks of a server need. They run once the state may be written.
pub(crate) struct HooksToRun {
    pub(crate) state: State,
    pub(crate) operations: Operations,
    pub(crate) registry: Arc<Registry>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) remover: Arc<Remover>,
    pub(crate) metrics: RolloutMetrics,
    /// Which of them are run.
    pub(crate) selection: HookSelection,
}

impl HooksToRun {
    pub(crate) async fn register(&self) -> Result<Hooks, StartError> {
        let HooksToRun { state, lifecycle, .. } = self;
        let dependencies = RolloutDependencies {
            registry: Arc::clone(&self.registry),
            remover: self.remover.clone(),
            metrics: self.metrics.clone(),
            selection: self.selection.clone(),
        };
        let rollout = RolloutHooks::register(state, dependencies)
            .await
            .map_err(|error| StartError::Prepare(error.to_string()))?;
        let source = Arc::new(tidegate_rollout::context::PushContexts);
        let mut calls = lifecycle.register::<Call>(state, source).await?;
        let source = Arc::new(tidegate_rollout::RegistrationContexts);
        calls.extend(lifecycle.register::<RegistrationCall>(state, source).await?);
        calls.extend(lifecycle.deliver_events(state, Arc::new(LogSink)).await?);
        Ok((rollout, calls))
    }

    /// What a start writes, where it could not write.
    async fn catch_up(&self, options: &Options) -> Result<Hooks, StartError> {
        register_regions(options, &self.state, &self.operations).await?;
        publish_hooks(options, &self.state, &self.lifecycle).await?;
        self.register().await
    }
}

/// Completes a start on a database that was put back, once that is confirmed.
pub(crate) async fn begin_later(begin: HooksToRun, app: App, hooks: HooksSlot, options: Options) {
    let closing = app.closing();
    let complete = async {
        begin.state.writes_resumed().await;
        loop {
            match begin.catch_up(&options).await {
                Ok(registered) => return registered,
                Err(error) => {
                    tracing::error!(%error, "the start can't be completed; it is tried again");
                    app.set_not_ready(Some(&format!("The start can't be completed: {error}.")));
                    tokio::time::sleep(COMPLETE_AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = closing.cancelled() => {}
        registered = complete => {
            *hooks.lock() = Some(registered);
            app.set_not_ready(None);
        }
    }
}
