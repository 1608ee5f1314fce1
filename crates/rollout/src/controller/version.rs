//! The status of a version, per region and as a whole.

use super::planner::{Planner, PushStep};
use super::view::PushFacts;
use crate::entities::{PushStatus, RegionState, RegionVersion, Version, VersionStatus};

impl PushStep<'_> {
    pub(super) fn set_version_in(&mut self, name: &str, status: VersionStatus) {
        let at = self.now();
        if let Some(version) = self.planner.view.versions.get_mut(&self.facts.push.version) {
            let reached = version.regions.get(name).is_some_and(|region| region.status == status);
            if !reached {
                version.regions.insert(name.to_owned(), RegionVersion { status, at });
            }
        }
    }

    pub(super) fn forget_version_in(&mut self, name: &str) {
        if let Some(version) = self.planner.view.versions.get_mut(&self.facts.push.version) {
            version.regions.remove(name);
        }
    }
}

impl Planner {
    pub(super) fn judge_versions(&mut self) {
        let now = self.now;
        for facts in self.view.pushes.values() {
            let Some(version) = self.view.versions.get_mut(&facts.push.version) else { continue };
            // A region that was removed is no part of any status.
            version.regions.retain(|name, _| self.view.regions.contains_key(name));
            let taking_part = facts.push.regions.keys().filter(|name| self.view.regions.contains_key(*name)).count();
            version.status = overall_status(version, taking_part, facts.push.status());
            let served = matches!(version.status, VersionStatus::Online | VersionStatus::PartiallyOnline);
            let on_its_way = swaps_under_way(facts);
            if facts.push.status().is_final() && !served && !on_its_way {
                version.retired_at.get_or_insert(now);
            } else {
                version.retired_at = None;
            }
        }
    }
}

fn swaps_under_way(facts: &PushFacts) -> bool {
    facts.push.regions.values().any(|region| {
        matches!(
            region.state,
            RegionState::Swapping { .. } | RegionState::Ingesting { .. } | RegionState::Ingested { .. }
        )
    })
}

/// The status of a version as a whole: ROLLED_BACK after a rollback; ONLINE or PARTIALLY_ONLINE as all or some regions
/// serve it (`regions` is how many take part in its push); else, once its push has ended, ERROR after ERROR and KILLED after ABORTED or KILLED.
#[must_use]
pub fn overall_status(version: &Version, regions: usize, push: PushStatus) -> VersionStatus {
    let count = |status: VersionStatus| version.regions.values().filter(|region| region.status == status).count();
    let online = count(VersionStatus::Online);
    let rolled_back = count(VersionStatus::RolledBack);
    if online > 0 {
        return if online >= regions { VersionStatus::Online } else { VersionStatus::PartiallyOnline };
    }
    if rolled_back > 0 || version.rolled_back.is_some() {
        return VersionStatus::RolledBack;
    }
    match push {
        PushStatus::Queued | PushStatus::Started => {
            let pushed = count(VersionStatus::Pushed);
            if pushed > 0 && count(VersionStatus::Started) == 0 && pushed + count(VersionStatus::Error) >= regions {
                VersionStatus::Pushed
            } else {
                VersionStatus::Started
            }
        }
        PushStatus::Error => VersionStatus::Error,
        PushStatus::RolledBack => VersionStatus::RolledBack,
        PushStatus::Aborted | PushStatus::Killed => VersionStatus::Killed,
        // Completed, and since then every region that served it was removed.
        PushStatus::Completed => VersionStatus::Killed,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidegate_state::Timestamp;

    use super::*;

    #[test]
    fn a_versions_status_follows_from_its_regions_and_its_push() {
        use PushStatus as P;
        use VersionStatus::{Error, Killed, Online, PartiallyOnline, Pushed, RolledBack, Started};
        let cases: &[(&[VersionStatus], P, VersionStatus)] = &[
            (&[], P::Started, Started),
            (&[Started, Pushed, Started], P::Started, Started),
            (&[Pushed, Pushed, Pushed], P::Started, Pushed),
            (&[Online, Pushed, Pushed], P::Started, PartiallyOnline),
            (&[Online, Online, Online], P::Completed, Online),
            (&[Online, Online], P::Completed, PartiallyOnline),
            (&[Online, Error, Killed], P::Error, PartiallyOnline),
            (&[Error, Error, Error], P::Error, Error),
            (&[Error, Killed, Killed], P::Error, Error),
            (&[Killed, Killed, Killed], P::Aborted, Killed),
            (&[], P::Killed, Killed),
            (&[RolledBack, Killed, Killed], P::RolledBack, RolledBack),
            (&[], P::RolledBack, RolledBack),
            (&[RolledBack, Online, Online], P::Completed, PartiallyOnline),
            (&[RolledBack, RolledBack, RolledBack], P::Completed, RolledBack),
        ];
        for (regions, push, expected) in cases {
            let mut version = Version::new("P", Timestamp(0));
            version.regions = regions
                .iter()
                .enumerate()
                .map(|(index, status)| (index.to_string(), RegionVersion { status: *status, at: Timestamp(0) }))
                .collect::<BTreeMap<_, _>>();
            assert_eq!(overall_status(&version, 3, *push), *expected, "{regions:?} after {push:?}");
        }
    }
}
