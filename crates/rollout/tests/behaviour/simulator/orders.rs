//! What push clients and operators do.

use std::collections::BTreeMap;

use tidegate_rollout::controller::{PushFacts, Way, way_of_new_push};
use tidegate_rollout::entities::{
    Availability, BuildProgress, Freeze, FreezeScope, Kill, Override, Phase, Pin, Push, PushClient, PushClock,
    PushState, SchemaProgress, Version, VersionData,
};

use super::Simulator;

impl Simulator {
    /// Starts a push whose client has not built anything yet.
    pub(crate) fn start(&mut self) -> String {
        let id = format!("p{}", self.next_push);
        self.next_push += 1;
        let (supersedes, protected) = self.make_way(&id);
        let version = self.view.store.next_version;
        self.view.store.next_version += 1;
        let push = Push {
            version,
            pushed_by: "ada".into(),
            attributes: BTreeMap::new(),
            input_digest: None,
            created_at: self.now,
            started_at: None,
            state: PushState::Queued,
            clock: PushClock::default(),
            schema: SchemaProgress::Known { number: 1, registered: false },
            allow_empty: false,
            completed_at: None,
            regions: BTreeMap::new(),
            kill: None,
            overrides: BTreeMap::new(),
            protected,
            supersedes,
            from_version: None,
            alarm: None,
        };
        self.view.versions.insert(version, Version::new(id.clone(), self.now));
        let client = PushClient { heard_at: self.now, progress: BuildProgress::default() };
        let facts = PushFacts { push, client: Some(client), gates: BTreeMap::new() };
        self.view.pushes.insert(id.clone(), facts);
        self.settle();
        id
    }

    /// What the operation does with other pushes. Where the store refuses a second one a test may still start it, to see
    /// the controller hold it.
    fn make_way(&mut self, id: &str) -> (Option<String>, bool) {
        let Way::Open { ended, supersedes, protected } = way_of_new_push(&self.view) else { return (None, false) };
        for other in ended {
            let reason = format!("push {id} came");
            let kill = Kill { by: "ada".into(), reason, at: self.now, superseded_by: Some(id.to_owned()) };
            self.view.pushes.get_mut(&other).unwrap().push.kill = Some(kill);
        }
        (supersedes, protected)
    }

    /// The client's last word: its artifact is complete.
    pub(crate) fn complete(&mut self, id: &str) {
        let now = self.now;
        let facts = self.view.pushes.get_mut(id).unwrap();
        if !matches!(facts.push.state, PushState::Running(Phase::Build | Phase::Upload)) {
            return;
        }
        facts.push.state = PushState::Running(Phase::Regions);
        facts.push.completed_at = Some(now);
        let version = facts.push.version;
        self.view.versions.get_mut(&version).unwrap().data = VersionData::Complete {
            artifact: format!("artifact-{version}"),
            manifest_sha256: format!("digest-{version}"),
            schema: 1,
            record_count: 10,
            bytes: 100,
            at: now,
        };
        self.settle();
    }

    /// Starts a push and completes it at once.
    pub(crate) fn push(&mut self) -> String {
        let id = self.start();
        self.complete(&id);
        id
    }

    pub(crate) fn kill(&mut self, id: &str) {
        let now = self.now;
        let push = &mut self.view.pushes.get_mut(id).unwrap().push;
        if !push.status().is_final() {
            push.kill = Some(Kill { by: "ada".into(), reason: "wrong data".into(), at: now, superseded_by: None });
        }
        self.settle();
    }

    pub(crate) fn heartbeat(&mut self, id: &str) {
        let now = self.now;
        if let Some(facts) = self.view.pushes.get_mut(id) {
            facts.client = Some(PushClient { heard_at: now, progress: BuildProgress::default() });
        }
        self.settle();
    }

    pub(crate) fn open_by_hand(&mut self, id: &str, gate: &str) {
        let over = Override { by: "ada".into(), reason: "I looked".into(), at: self.now };
        self.view.pushes.get_mut(id).unwrap().push.overrides.insert(gate.into(), over);
        self.settle();
    }

    pub(crate) fn freeze(&mut self, id: &str, scope: FreezeScope) {
        let freeze = Freeze { scope, reason: "holidays".into(), by: "eve".into(), at: self.now };
        self.view.freezes.insert(id.into(), freeze);
        self.settle();
    }

    pub(crate) fn unfreeze(&mut self, id: &str) {
        self.view.freezes.remove(id);
        self.settle();
    }

    pub(crate) fn mark(&mut self, region: &str, available: bool) {
        let since = self.now;
        self.view.regions.get_mut(region).unwrap().region.availability = if available {
            Availability::Available
        } else {
            Availability::Unavailable { reason: "power".into(), by: "eve".into(), since }
        };
        self.settle();
    }

    /// Someone pins a version in a region itself, or lifts the pin.
    pub(crate) fn pin(&mut self, region: &str, version: Option<u64>) {
        let at = self.now;
        let report = self.view.regions.get_mut(region).unwrap().report.as_mut().unwrap();
        report.pin = version.map(|version| Pin { version, reason: "prices are wrong".into(), by: "ann".into(), at });
        self.settle();
    }
}
