//! How old the data is that regions serve, and whether a push is overdue.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_lifecycle::Function;
use tidegate_state::{Ref, Snapshot, Timestamp};

use crate::entities::{Assignment, Gate, Push, PushStatus, Region, Report, Store, Version, VersionData};

/// How fresh a store's data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// The store.
    pub store: String,
    /// How long ago the version that each region serves was completed. Absent where a region serves none.
    pub ages: BTreeMap<String, Duration>,
    /// Regions that serve data older than the store's `max_age`.
    pub too_old: Vec<String>,
    /// When a push last completed; when the store was created, if none has.
    pub last_completed: Timestamp,
    /// Whether that is longer ago than the store's `expected_every`.
    pub overdue: bool,
    /// Whether a push has spent half of its limit while something held it, or a region's turn to swap has been over for
    /// more than a tenth of its delay.
    pub stalled: bool,
}

/// How fresh every store's data is. What can't be read is left out: its own controller complains about it.
#[must_use]
pub fn freshness(snapshot: &Snapshot, now: Timestamp) -> Vec<Freshness> {
    snapshot
        .roots::<Store>()
        .filter_map(Result::ok)
        .map(|(store, value)| of_store(snapshot, &store, value, now))
        .collect()
}

fn of_store(snapshot: &Snapshot, store: &Ref<Store>, value: &Store, now: Timestamp) -> Freshness {
    let name = store.id();
    let completed: BTreeMap<u64, Timestamp> = snapshot
        .children::<Version>(store)
        .filter_map(Result::ok)
        .filter_map(|(version, value)| match &value.data {
            VersionData::Complete { at, .. } => Some((version.id(), *at)),
            VersionData::Awaited | VersionData::Gone { .. } => None,
        })
        .collect();
    let mut ages = BTreeMap::new();
    for (region, _) in snapshot.roots::<Region>().filter_map(Result::ok) {
        if let Some(age) = served(snapshot, &region, &name, value).and_then(|version| completed.get(&version)) {
            ages.insert(region.id(), now.since(*age));
        }
    }
    let mut last_completed = value.created_at;
    let mut stalled = false;
    for (place, push) in snapshot.children::<Push>(store).filter_map(Result::ok) {
        stalled |= !push.status().is_final() && (push.alarm.is_some() || turn_is_overdue(snapshot, &place, now));
        if let Some(end) = push.end().filter(|end| end.status == PushStatus::Completed) {
            last_completed = last_completed.max(end.at);
        }
    }
    let over = |limit: Option<u64>, age: Duration| limit.is_some_and(|limit| age > Duration::from_millis(limit));
    Freshness {
        too_old: ages
            .iter()
            .filter(|(_, age)| over(value.freshness.max_age_ms, **age))
            .map(|(region, _)| region.clone())
            .collect(),
        overdue: over(value.freshness.expected_every_ms, now.since(last_completed)),
        store: name,
        ages,
        last_completed,
        stalled,
    }
}

fn turn_is_overdue(snapshot: &Snapshot, push: &Ref<Push>, now: Timestamp) -> bool {
    snapshot.children::<Gate>(push).filter_map(Result::ok).any(|(_, gate)| {
        gate.state.function == Function::PreStoreVersionSwap
            && !gate.state.is_decided()
            && gate.turn.is_some_and(|turn| turn.is_overdue(now))
    })
}

/// What a region serves: what it says itself, or what it was told where it has not said anything.
fn served(snapshot: &Snapshot, region: &Ref<Region>, store: &str, value: &Store) -> Option<u64> {
    let report = region.child::<Report>(store).ok().and_then(|report| snapshot.get(&report).ok().flatten());
    if let Some(report) = report.filter(|report| report.incarnation == value.incarnation) {
        return report.serving;
    }
    let assignment = region.child::<Assignment>(store).ok()?;
    let assignment = snapshot.get(&assignment).ok()??;
    (assignment.incarnation == value.incarnation).then_some(assignment.serve).flatten()
}
