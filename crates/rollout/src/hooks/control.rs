//! The rollout controller as a cluster hook, keyed by store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_lifecycle::Registry;
use tidegate_state::{ClusterHook, Outcome, Registration, Run, Timestamp};

use super::{RolloutDependencies, level_triggered};
use crate::controller::{PushView, apply, gather, next};
use crate::entities::VersionStatus;
use crate::metrics::RolloutMetrics;

pub(super) fn registration() -> Registration {
    level_triggered("rollout", 1)
        .on("/stores/{store}")
        .on("/stores/{store}/pushes/{push}")
        .on("/stores/{store}/pushes/{push}/gates/{gate}/calls/{hook}")
        .on("/stores/{store}/wake/{cause}")
        .on("/regions/{region}/reports/{store}")
        .key("{store}")
        .from_existing()
}

pub(super) fn hook(dependencies: &RolloutDependencies, now: Timestamp) -> Arc<Control> {
    Arc::new(Control {
        registry: Arc::clone(&dependencies.registry),
        metrics: dependencies.metrics.clone(),
        since: now,
        seen: Mutex::new(BTreeMap::new()),
    })
}

pub(super) struct Control {
    registry: Arc<Registry>,
    metrics: RolloutMetrics,
    /// What ended before this server ran hooks was counted by another, or before a restart.
    since: Timestamp,
    /// What was counted, by store.
    seen: Mutex<BTreeMap<String, Seen>>,
}

/// What was counted of one store, so that each thing counts once.
#[derive(Default)]
struct Seen {
    ended: BTreeSet<String>,
    /// Regions whose nodes serve something else than was confirmed.
    mismatched: BTreeSet<String>,
}

#[async_trait]
impl ClusterHook for Control {
    async fn run(&self, run: Run) -> Outcome {
        let Some(store) = run.id("store") else {
            return Outcome::Fail("the run's key names no store".to_owned());
        };
        let view = match gather(run.snapshot(), &self.registry, &store) {
            Ok(Some(view)) => view,
            Ok(None) => {
                self.seen.lock().remove(&store);
                return Outcome::Done;
            }
            Err(error) => return Outcome::Fail(error.to_string()),
        };
        let now = run.now();
        let plan = next(&view, now);
        self.count(&view, now);
        if plan.is_empty() {
            return match plan.wake_at {
                Some(at) => Outcome::RetryAt(at),
                None => Outcome::Done,
            };
        }
        // What is committed is computed again from what the transaction reads, so that nothing is decided on what is no
        // longer so. What it writes wakes this hook again, which then finds when to look next.
        let registry = Arc::clone(&self.registry);
        let wake_at = plan.wake_at.unwrap_or(Timestamp(i64::MAX));
        let carry_out = move |transaction: &mut tidegate_state::Transaction| {
            if let Some(view) = gather(transaction, &registry, &store)? {
                let plan = next(&view, transaction.now());
                apply(transaction, &store, plan)?;
            }
            Ok(())
        };
        if wake_at == Timestamp(i64::MAX) {
            Outcome::done_with(carry_out)
        } else {
            Outcome::retry_at_with(wake_at, carry_out)
        }
    }
}

impl Control {
    /// Counts what has come to pass, whoever brought it about: this hook, or a user's operation.
    fn count(&self, view: &PushView, now: Timestamp) {
        let mut seen = self.seen.lock();
        let seen = seen.entry(view.name.clone()).or_default();
        for (id, facts) in &view.pushes {
            if let Some(end) = facts.push.end().filter(|end| end.at >= self.since)
                && seen.ended.insert(id.clone())
            {
                self.metrics.push_ended(end.status, end.by);
            }
        }
        seen.ended.retain(|id| view.pushes.contains_key(id));
        for (region, facts) in &view.regions {
            if mismatch(view, region, facts, now) {
                if seen.mismatched.insert(region.clone()) {
                    self.metrics.mismatch(&view.name, region);
                }
            } else {
                seen.mismatched.remove(region);
            }
        }
    }
}

/// Whether a region's nodes serve something else than it was told to and had confirmed before.
fn mismatch(view: &PushView, region: &str, facts: &crate::controller::RegionFacts, now: Timestamp) -> bool {
    let (Some(assignment), Some(report)) = (&facts.assignment, facts.current_report(&view.store)) else { return false };
    let Some(told) = assignment.serve else { return false };
    let confirmed = view
        .versions
        .get(&told)
        .and_then(|version| version.regions.get(region))
        .is_some_and(|version| version.status == VersionStatus::Online);
    confirmed
        && report.generation >= assignment.generation
        && report.serving != Some(told)
        && !is_going_back(view, region, report.serving, now)
}

/// Whether a region still serves what was just taken back there: its nodes have as long as a swap has to be confirmed.
fn is_going_back(view: &PushView, region: &str, serving: Option<u64>, now: Timestamp) -> bool {
    let version = serving.and_then(|serving| view.versions.get(&serving));
    version.and_then(|version| version.regions.get(region)).is_some_and(|version| {
        version.status == VersionStatus::RolledBack
            && now < version.at.after(Duration::from_millis(view.store.limits.confirmation_ms))
    })
}
