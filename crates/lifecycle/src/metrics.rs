//! Metrics per hook and function (H27), and the pool's gauges.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::function::Function;
use crate::outcome::Verdict;

/// The labels of everything that is counted per hook.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HookLabels {
    pub(crate) hook: String,
    pub(crate) function: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    hook: String,
    function: &'static str,
    outcome: &'static str,
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0])
}

/// What is counted. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct LifecycleMetrics {
    invocations: Family<HookLabels, Counter>,
    outcomes: Family<OutcomeLabels, Counter>,
    failures: Family<HookLabels, Counter>,
    timeouts: Family<HookLabels, Counter>,
    queue_wait: Family<HookLabels, Histogram, fn() -> Histogram>,
    duration: Family<HookLabels, Histogram, fn() -> Histogram>,
    pub(crate) abandoned: Gauge,
    pub(crate) queued: Gauge,
    pub(crate) workers: Gauge,
    configuration_generation: Gauge<u64, AtomicU64>,
    configuration_differs: Gauge,
    pub(crate) events_delivered: Counter,
    pub(crate) events_failed: Counter,
}

impl Default for LifecycleMetrics {
    fn default() -> Self {
        LifecycleMetrics {
            invocations: Family::default(),
            outcomes: Family::default(),
            failures: Family::default(),
            timeouts: Family::default(),
            queue_wait: Family::new_with_constructor(seconds),
            duration: Family::new_with_constructor(seconds),
            abandoned: Gauge::default(),
            queued: Gauge::default(),
            workers: Gauge::default(),
            configuration_generation: Gauge::default(),
            configuration_differs: Gauge::default(),
            events_delivered: Counter::default(),
            events_failed: Counter::default(),
        }
    }
}

/// How a call ended, as far as counting goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// The hook answered; none for functions without outcomes.
    Answered(Option<Verdict>),
    /// It failed other than by its timeout.
    Failed,
    /// It was cut at its timeout.
    TimedOut,
}

impl LifecycleMetrics {
    /// Puts all of them into a registry, under `lifecycle_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("lifecycle");
        registry.register("hook_invocations", "Calls of hooks that a worker took up", self.invocations.clone());
        registry.register("hook_outcomes", "Answers of hooks", self.outcomes.clone());
        registry.register(
            "hook_failures",
            "Calls that ended in an error, a panic or an unusable answer",
            self.failures.clone(),
        );
        registry.register("hook_timeouts", "Calls that were cut at their timeout", self.timeouts.clone());
        registry.register_with_unit(
            "hook_queue_wait",
            "Time between asking and a worker taking the call up",
            Unit::Seconds,
            self.queue_wait.clone(),
        );
        registry.register_with_unit("hook_duration", "Time that calls took", Unit::Seconds, self.duration.clone());
        registry.register(
            "hook_calls_abandoned",
            "Calls past their timeout that still hold a thread",
            self.abandoned.clone(),
        );
        registry.register("hook_calls_queued", "Calls that wait for a worker", self.queued.clone());
        registry.register(
            "hook_workers",
            "Threads for calls of hooks, those held by abandoned calls included",
            self.workers.clone(),
        );
        registry.register(
            "configuration_generation",
            "Generation of the published hooks configuration",
            self.configuration_generation.clone(),
        );
        registry.register(
            "configuration_differs",
            "1 where this server's file differs from what is published",
            self.configuration_differs.clone(),
        );
        registry.register("events_delivered", "Events of answers that were delivered", self.events_delivered.clone());
        registry.register(
            "event_delivery_failures",
            "Deliveries of events that failed and are retried",
            self.events_failed.clone(),
        );
    }

    pub(crate) fn count(&self, hook: &str, function: Function, how: Counted, queue_wait: Duration, duration: Duration) {
        let labels = HookLabels { hook: hook.to_owned(), function: function.name() };
        self.invocations.get_or_create(&labels).inc();
        self.queue_wait.get_or_create(&labels).observe(queue_wait.as_secs_f64());
        self.duration.get_or_create(&labels).observe(duration.as_secs_f64());
        match how {
            Counted::Answered(None) => {}
            Counted::Answered(Some(verdict)) => {
                let outcome = match verdict {
                    Verdict::Proceed => "proceed",
                    Verdict::Wait => "wait",
                    Verdict::Abort => "abort",
                    Verdict::Rollback => "rollback",
                };
                let labels = OutcomeLabels { hook: labels.hook, function: labels.function, outcome };
                self.outcomes.get_or_create(&labels).inc();
            }
            Counted::Failed => {
                self.failures.get_or_create(&labels).inc();
            }
            Counted::TimedOut => {
                self.timeouts.get_or_create(&labels).inc();
            }
        }
    }

    /// Notes which generation is in force.
    pub(crate) fn generation(&self, generation: u64) {
        self.configuration_generation.set(generation);
    }

    /// Notes which generation is in force, and whether this server's own file says otherwise.
    pub(crate) fn configuration(&self, generation: u64, differs: bool) {
        self.generation(generation);
        self.configuration_differs.set(i64::from(differs));
    }

    /// What the registry would show, as text. For tests and `doctor`.
    ///
    /// # Panics
    /// Never: writing into a string does not fail.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut registry = Registry::default();
        self.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes any text");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h27_a_failure_a_timeout_two_waits_and_a_proceed_are_counted_apart() {
        let metrics = LifecycleMetrics::default();
        let second = Duration::from_secs(1);
        for how in [
            Counted::Failed,
            Counted::TimedOut,
            Counted::Answered(Some(Verdict::Wait)),
            Counted::Answered(Some(Verdict::Wait)),
            Counted::Answered(Some(Verdict::Proceed)),
        ] {
            metrics.count("x", Function::PreStoreVersionSwap, how, second, second);
        }
        let text = metrics.to_text();
        let labels = r#"hook="x",function="pre_store_version_swap""#;
        for line in [
            format!("lifecycle_hook_invocations_total{{{labels}}} 5"),
            format!(r#"lifecycle_hook_outcomes_total{{{labels},outcome="wait"}} 2"#),
            format!(r#"lifecycle_hook_outcomes_total{{{labels},outcome="proceed"}} 1"#),
            format!("lifecycle_hook_failures_total{{{labels}}} 1"),
            format!("lifecycle_hook_timeouts_total{{{labels}}} 1"),
            format!("lifecycle_hook_queue_wait_seconds_count{{{labels}}} 5"),
            format!("lifecycle_hook_duration_seconds_count{{{labels}}} 5"),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}
