//! What a server has of hooks: the registry, the pool, the metrics, and the hooks made so far.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_state::{ClusterHook, ClusterView, HookHandle, HookSelection, RegisterError, Registration, State};

use crate::call::CallSite;
use crate::configuration::HooksConfiguration;
use crate::contract::{HookError, StoreLifecycleHooks};
use crate::delivery::{Delivery, EventSink};
use crate::metrics::LifecycleMetrics;
use crate::pool::{Pool, PoolOptions};
use crate::registry::Registry;
use crate::runner::Runner;
use crate::source::ContextSource;

/// The beginning of the names of the cluster hooks that call lifecycle hooks: `lifecycle-call-region-order`.
pub const CALL_HOOK: &str = "lifecycle-call";
/// The cluster hook that delivers events.
pub const EVENT_HOOK: &str = "lifecycle-events";

/// The cluster hook that runs a lifecycle hook's calls of the type with this [`CallSite::REGISTRATION`].
fn call_hook(registration: &str, hook: &str) -> String {
    format!("{registration}-{hook}")
}

/// The names of the cluster hooks that run calls of type `C`, with these lifecycle hooks.
pub fn call_hooks<C: CallSite>(registry: &Registry) -> impl Iterator<Item = String> {
    registry.names().map(|hook| call_hook(C::REGISTRATION, hook))
}

/// How a server runs hooks.
#[derive(Clone)]
pub struct LifecycleOptions {
    /// The pool; its `threads` follow the published configuration.
    pub pool: PoolOptions,
    /// How many calls of one hook this server takes up at once, those that wait for a thread included.
    pub room: u32,
    /// Into how many slots each hook's stores are spread over the servers.
    pub slots: u32,
    /// Which of the cluster hooks this server runs.
    pub selection: HookSelection,
}

impl Default for LifecycleOptions {
    fn default() -> Self {
        LifecycleOptions { pool: PoolOptions::default(), room: 64, slots: 8, selection: HookSelection::default() }
    }
}

/// What a server has of hooks. Cheap to clone.
#[derive(Clone)]
pub struct Lifecycle(Arc<Inner>);

struct Inner {
    registry: Registry,
    pool: Pool,
    metrics: LifecycleMetrics,
    room: u32,
    slots: u32,
    selection: HookSelection,
    made: Mutex<BTreeMap<String, Made>>,
}

/// A hook, with the published settings that it was made with.
struct Made {
    settings: BTreeMap<String, String>,
    hook: Arc<dyn StoreLifecycleHooks>,
}

impl Lifecycle {
    /// With the hooks of this build.
    #[must_use]
    pub fn new(registry: Registry, options: LifecycleOptions) -> Lifecycle {
        let metrics = LifecycleMetrics::default();
        let pool = Pool::new(options.pool, metrics.clone());
        let (room, slots, selection) = (options.room, options.slots, options.selection);
        Lifecycle(Arc::new(Inner {
            registry,
            pool,
            metrics,
            room,
            slots,
            selection,
            made: Mutex::new(BTreeMap::new()),
        }))
    }

    /// The hooks of this build.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &LifecycleMetrics {
        &self.0.metrics
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// The hook, made with these published settings; the same one as long as they stay the same. None where this build
    /// does not have it. Runs the factory, so it belongs on a worker.
    pub(crate) fn hook(
        &self,
        name: &str,
        settings: &BTreeMap<String, String>,
    ) -> Result<Option<Arc<dyn StoreLifecycleHooks>>, HookError> {
        if let Some(made) = self.0.made.lock().get(name).filter(|made| made.settings == *settings) {
            return Ok(Some(Arc::clone(&made.hook)));
        }
        let Some(descriptor) = self.0.registry.get(name) else { return Ok(None) };
        let hook = (descriptor.factory)(settings)?;
        let made = Made { settings: settings.clone(), hook: Arc::clone(&hook) };
        self.0.made.lock().insert(name.to_owned(), made);
        Ok(Some(hook))
    }

    /// Runs this build's hooks for calls of type `C`, one cluster hook for each lifecycle hook: so a call of a hook that
    /// only some servers were built with is run by one of those, and calls of one hook never hold up another's. Those that
    /// this server is not to run are registered all the same.
    ///
    /// The handles have to be kept; dropping one ends that hook here.
    ///
    /// # Errors
    /// As [`State::register`].
    pub async fn register<C: CallSite>(
        &self,
        state: &State,
        source: Arc<dyn ContextSource>,
    ) -> Result<Vec<HookHandle>, RegisterError> {
        let mut handles = Vec::new();
        for name in self.0.registry.names() {
            let registration = Registration::new(call_hook(C::REGISTRATION, name), 1)
                .on(C::pattern(name))
                .key("{store}")
                .every_change()
                .from_existing()
                .attempts_unlimited()
                .slots(self.0.slots);
            let runner = Runner::<C>::new(self.clone(), name, Arc::clone(&source));
            handles.extend(self.register_one(state, registration, Arc::new(runner)).await?);
        }
        Ok(handles)
    }

    async fn register_one(
        &self,
        state: &State,
        registration: Registration,
        hook: Arc<dyn ClusterHook>,
    ) -> Result<Option<HookHandle>, RegisterError> {
        state.register_selected(&self.0.selection, registration, self.0.room, hook).await
    }

    /// The enabled hooks that no live server runs. Their gates wait; this is for saying so.
    #[must_use]
    pub fn hooks_without_server(configuration: &HooksConfiguration, cluster: &ClusterView) -> Vec<String> {
        let runs = |name: &str| {
            let cluster_hook = call_hook(CALL_HOOK, name);
            cluster.servers.iter().any(|server| {
                server.lives && !server.draining && server.hooks.iter().any(|(hook, ..)| *hook == cluster_hook)
            })
        };
        configuration.enabled.iter().filter(|name| !runs(name)).cloned().collect()
    }

    /// Delivers events to a sink, in order per store. None where this server is not to.
    ///
    /// # Errors
    /// As [`State::register`].
    pub async fn deliver_events(
        &self,
        state: &State,
        sink: Arc<dyn EventSink>,
    ) -> Result<Option<HookHandle>, RegisterError> {
        let registration = Registration::new(EVENT_HOOK, 1)
            .on("/events/{store}/entries/*")
            .key("{store}")
            .latest_state()
            .from_existing()
            .attempts_unlimited()
            .slots(self.0.slots);
        let delivery = Delivery::new(sink, self.0.metrics.clone());
        self.register_one(state, registration, Arc::new(delivery)).await
    }
}
