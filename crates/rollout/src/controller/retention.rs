//! What is let go: data that no region holds any more, and pushes of long ago.

use std::time::Duration;

use super::planner::Planner;
use crate::entities::{Garbage, GarbageKind, GarbageState, PushState, Version, VersionData, VersionStatus, WrapUp};

impl Planner {
    pub(super) fn retain(&mut self) {
        self.release_data();
        self.forget_pushes();
    }

    fn release_data(&mut self) {
        let now = self.now;
        let held = |number: u64| {
            self.view.regions.values().any(|facts| {
                facts
                    .assignment
                    .as_ref()
                    .is_some_and(|assignment| assignment.hold.contains_key(&number) || assignment.serve == Some(number))
            })
        };
        let mut due = Vec::new();
        let mut later = Vec::new();
        for (number, version) in &self.view.versions {
            let ended = self.view.pushes.get(&version.push).is_none_or(|facts| facts.push.status().is_final());
            let newest_released = self.view.released().is_some_and(|(released, _)| released == *number);
            if version.artifact().is_none() || !ended || held(*number) || newest_released {
                continue;
            }
            let rejected = !matches!(version.status, VersionStatus::Online | VersionStatus::PartiallyOnline);
            // A version that served well has had its time; one that did not is kept to be looked into.
            let until = match version.retired_at.filter(|_| rejected) {
                Some(retired) => retired.after(self.view.store.retention.rejected()),
                None => tidegate_state::Timestamp(i64::MIN),
            };
            if now > until {
                due.push(*number);
            } else {
                later.push(until.after(Duration::from_millis(1)));
            }
        }
        for at in later {
            self.wake(at);
        }
        for number in due {
            self.release(number);
        }
    }

    fn release(&mut self, number: u64) {
        let now = self.now;
        let Some(version) = self.view.versions.get_mut(&number) else { return };
        let VersionData::Complete { artifact, manifest_sha256, .. } = version.data.clone() else { return };
        version.data = VersionData::Gone { at: now, artifact: Some(artifact.clone()) };
        let shared = self.view.versions.values().any(|other| refers_to(other, &artifact));
        if !shared {
            let garbage = Garbage {
                kind: GarbageKind::Artifact { artifact: artifact.clone(), manifest_sha256 },
                store: self.view.name.clone(),
                since: now,
                due_at: now.after(self.view.store.retention.grace()),
                state: GarbageState::Waiting,
            };
            self.garbage.insert(Garbage::artifact_entry(&artifact), garbage);
        }
    }

    /// Ended pushes beyond the newest so many go, with their gates; a version that has neither push nor data goes too.
    fn forget_pushes(&mut self) {
        let mut ended: Vec<(u64, String)> = self
            .view
            .pushes
            .iter()
            .filter(|(_, facts)| matches!(facts.push.state, PushState::Ended { wrap_up: WrapUp::Done, .. }))
            .map(|(id, facts)| (facts.push.version, id.clone()))
            .collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(self.view.store.retention.pushes.max(1) as usize);
        for (number, id) in ended.into_iter().take(surplus) {
            let gone = self.view.versions.get(&number).is_none_or(|version| version.artifact().is_none());
            if gone {
                self.view.versions.remove(&number);
                self.view.pushes.remove(&id);
            }
        }
    }
}

fn refers_to(version: &Version, artifact: &str) -> bool {
    version.artifact().is_some_and(|(other, _)| other == artifact)
}
