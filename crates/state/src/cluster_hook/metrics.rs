//! Metrics of cluster hooks.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::metrics::{HookLabel, hook_label};

/// Per-hook metrics of one server.
#[derive(Debug, Clone)]
pub(crate) struct HookMetrics {
    pub(crate) runs: Family<HookLabel, Counter>,
    pub(crate) failures: Family<HookLabel, Counter>,
    pub(crate) dead_letters: Family<HookLabel, Counter>,
    pub(crate) refused: Family<HookLabel, Counter>,
    pub(crate) running: Family<HookLabel, Gauge>,
    pub(crate) queued: Family<HookLabel, Gauge>,
    pub(crate) slots: Family<HookLabel, Gauge>,
    pub(crate) lag: Family<HookLabel, Gauge>,
    pub(crate) rereads: Family<HookLabel, Counter>,
    pub(crate) lapses: Counter,
    pub(crate) run_seconds: Histogram,
}

impl HookMetrics {
    pub(crate) fn new() -> HookMetrics {
        HookMetrics {
            runs: Family::default(),
            failures: Family::default(),
            dead_letters: Family::default(),
            refused: Family::default(),
            running: Family::default(),
            queued: Family::default(),
            slots: Family::default(),
            lag: Family::default(),
            rereads: Family::default(),
            lapses: Counter::default(),
            run_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 20)),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("cluster_hook");
        registry.register("runs", "Runs that this server has started", self.runs.clone());
        registry.register("failures", "Runs that failed", self.failures.clone());
        registry.register("dead_letters", "Requests that became dead letters", self.dead_letters.clone());
        registry.register(
            "refused",
            "Ends of runs and settlements refused since their token no longer held",
            self.refused.clone(),
        );
        registry.register("running", "Runs going on this server", self.running.clone());
        registry.register("queued", "Requests in this server's memory", self.queued.clone());
        registry.register("slots", "Slots that this server leases", self.slots.clone());
        registry.register(
            "lag",
            "Revisions between the oldest unfinished request and what is applied",
            self.lag.clone(),
        );
        registry.register("rereads", "Times the log was read again for requests left in it", self.rereads.clone());
        registry.register("lapses", "Times this server's lease ended under it", self.lapses.clone());
        registry.register("run_seconds", "Time in which a run went, from start to end", self.run_seconds.clone());
    }
}

pub(crate) fn label(name: &str) -> HookLabel {
    hook_label(name)
}
