//! The cluster hooks that make a rollout happen, whichever server is alive.
//!
//! | hook | runs for | key | does |
//! |---|---|---|---|
//! | `rollout` | a store, its pushes, answered calls, region reports, wakes | store | carries out [`crate::controller::next`] |
//! | `rollout-registration` | a schema that is registered without a push | it | asks its gates, registers it, tells |
//! | `rollout-wake` | freezes, regions, the hooks' configuration | one | wakes every store, [`crate::entities::Wake`] |
//! | `rollout-uptime` | [`crate::entities::Uptime`] | one | marks that a server is up |
//! | `rollout-clean-up` | [`crate::entities::Garbage`] | entry | removes bytes whose grace time is over |

mod clean_up;
mod control;
mod registration;
mod uptime;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use tidegate_lifecycle::Registry;
use tidegate_state::{
    ClusterHook, HookHandle, HookSelection, Ref, RegisterError, Registration, State, TransactionError, WriteError,
};

pub use clean_up::ArtifactRemover;

use crate::entities::Uptime;
use crate::metrics::RolloutMetrics;

/// What the hooks need beside the state.
#[derive(Clone)]
pub struct RolloutDependencies {
    /// The lifecycle hooks that this build has.
    pub registry: Arc<Registry>,
    /// Removes bytes from the source object store.
    pub remover: Arc<dyn ArtifactRemover>,
    /// Where runs count.
    pub metrics: RolloutMetrics,
    /// Which of the hooks this server runs.
    pub selection: HookSelection,
}

impl std::fmt::Debug for RolloutDependencies {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RolloutDependencies").finish_non_exhaustive()
    }
}

/// The registered hooks. They end when this is dropped, each after the runs that it has begun.
#[must_use = "hooks run on this server as long as this lives"]
pub struct RolloutHooks {
    _handles: Vec<HookHandle>,
}

impl std::fmt::Debug for RolloutHooks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RolloutHooks").finish_non_exhaustive()
    }
}

/// Why the hooks could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterHooksError {
    /// The state refused a registration.
    #[error("a rollout hook can't be registered: {0}")]
    Register(#[from] RegisterError),
    /// What the hooks run for could not be written.
    #[error("the rollout hooks' own entities can't be written: {0}")]
    Write(String),
}

/// How many stores one server works on at once. Runs are short: they read, compute and hand in one transaction.
const STORES_AT_ONCE: u32 = 16;
/// How many removals one server carries out at once.
const REMOVALS_AT_ONCE: u32 = 2;

/// All that there are.
fn registrations() -> [Registration; 5] {
    [
        control::registration(),
        registration::registration(),
        wake::registration(),
        uptime::registration(),
        clean_up::registration(),
    ]
}

impl RolloutHooks {
    /// The names of the hooks.
    #[must_use]
    pub fn names() -> Vec<String> {
        registrations().iter().map(|registration| registration.name().to_owned()).collect()
    }

    /// Registers the hooks, and runs on this server those that it is to run.
    ///
    /// # Errors
    /// A registration that the state refuses, or a state that can't be written.
    pub async fn register(
        state: &State,
        dependencies: RolloutDependencies,
    ) -> Result<RolloutHooks, RegisterHooksError> {
        exist(state).await?;
        let register = |registration: Registration, room: u32, hook: Arc<dyn ClusterHook>| {
            state.register_selected(&dependencies.selection, registration, room, hook)
        };
        let register_schemas = registration::Register { registry: Arc::clone(&dependencies.registry) };
        let [control, schemas, wake, uptime, clean_up] = registrations();
        let handles = [
            register(control, STORES_AT_ONCE, control::hook(&dependencies, state.now())).await?,
            register(schemas, STORES_AT_ONCE, Arc::new(register_schemas)).await?,
            register(wake, 1, Arc::new(wake::WakeStores)).await?,
            register(uptime, 1, Arc::new(uptime::MarkUptime)).await?,
            register(clean_up, REMOVALS_AT_ONCE, clean_up::hook(&dependencies)).await?,
        ];
        Ok(RolloutHooks { _handles: handles.into_iter().flatten().collect() })
    }
}

/// Makes what the uptime hook runs for.
async fn exist(state: &State) -> Result<(), RegisterHooksError> {
    let written = state
        .write(|transaction| -> Result<(), TransactionError> {
            let place = Ref::<Uptime>::root(Uptime::ID)?;
            if transaction.get(&place)?.is_some() {
                transaction.update(&place, |uptime| uptime.starts += 1)
            } else {
                let since = transaction.now();
                transaction.create(&place, Uptime { since, starts: 1 })
            }
        })
        .await;
    written.map(|_| ()).map_err(|error: WriteError<TransactionError>| RegisterHooksError::Write(error.to_string()))
}

/// What all of them have in common: level-triggered, tried for ever, first again after a short while.
fn level_triggered(name: &str, version: u32) -> Registration {
    Registration::new(name, version)
        .latest_state()
        .attempts_unlimited()
        .backoff(Duration::from_millis(200), Duration::from_secs(60))
}
