//! What every region is told to hold, derived from how things stand. The pointer to what it serves is moved by `swap`,
//! `rollback` and users alone.

use std::collections::BTreeMap;

use super::planner::Planner;
use super::view::{PushView, RegionFacts};
use crate::entities::{
    Assignment, EmbeddedPermission, EmbeddedSwap, Held, Milestone, RegionPush, RegionState, VersionStatus,
};

impl Planner {
    pub(super) fn assign(&mut self) {
        let wanted: Vec<(String, Option<Assignment>)> =
            self.view.regions.iter().map(|(name, facts)| (name.clone(), wanted(&self.view, name, facts))).collect();
        for (name, assignment) in wanted {
            if let Some(facts) = self.view.regions.get_mut(&name) {
                facts.assignment = assignment;
            }
        }
    }
}

fn wanted(view: &PushView, name: &str, facts: &RegionFacts) -> Option<Assignment> {
    let current = facts.assignment.as_ref().filter(|current| current.incarnation == view.store.incarnation);
    let serve = current.and_then(|current| current.serve);
    let mut hold = BTreeMap::new();
    for number in kept(view, name, serve) {
        if let Some((artifact, manifest_sha256)) = view.versions.get(&number).and_then(|version| version.artifact()) {
            let held = Held {
                artifact: artifact.clone(),
                manifest_sha256: manifest_sha256.to_owned(),
                embedded: permission(view, name, number, serve),
            };
            hold.insert(number, held);
        } else if serve == Some(number)
            && let Some(held) = current.and_then(|current| current.hold.get(&number))
        {
            // What serves stays, whatever became of the record of it.
            hold.insert(number, held.clone());
        }
    }
    if facts.assignment.is_none() && hold.is_empty() {
        return None;
    }
    Some(Assignment {
        generation: facts.assignment.as_ref().map_or(0, |assignment| assignment.generation),
        incarnation: view.store.incarnation,
        hold,
        serve,
        enough: facts.region.enough,
    })
}

/// The versions that a region should hold: what it serves, the newest good ones as the way back, and what it takes in.
fn kept(view: &PushView, name: &str, serve: Option<u64>) -> Vec<u64> {
    let good = view.versions.iter().rev().filter(|(number, version)| {
        let online = version.regions.get(name).is_some_and(|region| region.status == VersionStatus::Online);
        Some(**number) == serve || (online && version.rolled_back.is_none() && version.artifact().is_some())
    });
    let count = view.store.retention.versions.max(2) as usize;
    let mut kept: Vec<u64> = good.map(|(number, _)| *number).take(count).collect();
    kept.extend(serve);
    for facts in view.pushes.values() {
        let Some(region) = facts.push.regions.get(name) else { continue };
        match region.state {
            RegionState::Ingesting { .. } | RegionState::Ingested { .. } => kept.push(facts.push.version),
            // The way back of a push that runs is not for retention to decide.
            RegionState::Swapping { .. } | RegionState::Baking { .. } | RegionState::Done { .. }
                if !facts.push.status().is_final() =>
            {
                kept.extend(region.previous);
            }
            _ => {}
        }
    }
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// What embedded clients may do with a version in a region.
fn permission(view: &PushView, name: &str, number: u64, serve: Option<u64>) -> EmbeddedPermission {
    if serve == Some(number) {
        return EmbeddedPermission::Serve;
    }
    let region = view
        .versions
        .get(&number)
        .and_then(|version| view.pushes.get(&version.push))
        .and_then(|facts| facts.push.regions.get(name));
    let on_its_way = |region: &RegionPush| {
        matches!(region.state, RegionState::Ingesting { .. } | RegionState::Ingested { .. })
            && region.reached.contains_key(&Milestone::EmbeddedAllowed)
    };
    match region {
        Some(region) if on_its_way(region) => match view.store.embedded_swap {
            // A freeze holds the swaps of embedded clients too.
            EmbeddedSwap::Alone if view.freeze_of(name).is_none() => EmbeddedPermission::Serve,
            EmbeddedSwap::Alone | EmbeddedSwap::WithRegion => EmbeddedPermission::Ingest,
        },
        _ => EmbeddedPermission::None,
    }
}
