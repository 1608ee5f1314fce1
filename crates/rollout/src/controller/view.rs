//! What the controller sees of one store, gathered at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_lifecycle::{EffectiveHook, Function};
use tidegate_state::Timestamp;

use crate::engine::ADOPTED_VERSION;
use crate::entities::{
    AgentHeartbeat, Assignment, Call, Freeze, Gate, IngestionStatus, Pin, Push, PushClient, Region, RegisteredSchema,
    Report, Store, UptimeMark, Version,
};

/// Everything that [`super::next`] needs to know: one store, its pushes and versions, and what concerns it elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct PushView {
    /// The store's name.
    pub name: String,
    /// The store.
    pub store: Store,
    /// The hooks that take part.
    pub hooks: HookSettings,
    /// All pushes that are kept, by id.
    pub pushes: BTreeMap<String, PushFacts>,
    /// All versions that are kept, by number.
    pub versions: BTreeMap<u64, Version>,
    /// The schemas that are known, by number.
    pub schemas: BTreeMap<u64, RegisteredSchema>,
    /// All regions, by name.
    pub regions: BTreeMap<String, RegionFacts>,
    /// All freezes, by id.
    pub freezes: BTreeMap<String, Freeze>,
    /// When a server was up.
    pub uptime: UptimeMark,
}

/// The hooks that take part for a store, in configured order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HookSettings {
    /// The generation of the published configuration.
    pub generation: u64,
    /// After how long a hook that said Wait is asked again.
    pub wait_interval: Duration,
    /// By function; absent where none takes part.
    pub by_function: BTreeMap<Function, Vec<EffectiveHook>>,
}

impl HookSettings {
    /// Those that take part in a function.
    #[must_use]
    pub fn of(&self, function: Function) -> &[EffectiveHook] {
        self.by_function.get(&function).map_or(&[], Vec::as_slice)
    }
}

/// A push with what lies below it.
#[derive(Debug, Clone, PartialEq)]
pub struct PushFacts {
    /// The push.
    pub push: Push,
    /// What was heard of its client.
    pub client: Option<PushClient>,
    /// Its gates by id.
    pub gates: BTreeMap<String, GateFacts>,
}

/// A gate with its calls by hook.
#[derive(Debug, Clone, PartialEq)]
pub struct GateFacts {
    /// The gate.
    pub gate: Gate,
    /// Its calls.
    pub calls: BTreeMap<String, Call>,
}

/// A region as far as one store is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionFacts {
    /// The region.
    pub region: Region,
    /// What it should hold and serve of the store.
    pub assignment: Option<Assignment>,
    /// What it says it does.
    pub report: Option<Report>,
    /// When its agent was last heard of.
    pub heartbeat: Option<AgentHeartbeat>,
}

impl RegionFacts {
    /// The version that it was told to serve.
    #[must_use]
    pub fn serve(&self) -> Option<u64> {
        self.assignment.as_ref().and_then(|assignment| assignment.serve)
    }

    /// What a push that begins now finds it serving: what it was told to, or data that was live before any push made any.
    #[must_use]
    pub fn served_before(&self, store: &Store) -> Option<u64> {
        let adopted =
            self.current_report(store).and_then(|report| report.serving).filter(|served| *served == ADOPTED_VERSION);
        self.serve().or(adopted)
    }

    /// What it says about a version of this store (and of no namesake that was deleted).
    #[must_use]
    pub fn reported(&self, store: &Store, version: u64) -> Option<&IngestionStatus> {
        self.current_report(store)?.versions.get(&version).map(|held| &held.status)
    }

    /// Its report, unless it is about a namesake of the store.
    #[must_use]
    pub fn current_report(&self, store: &Store) -> Option<&Report> {
        self.report.as_ref().filter(|report| report.incarnation == store.incarnation)
    }

    /// Whether it says that enough nodes hold a version.
    #[must_use]
    pub fn holds(&self, store: &Store, version: u64) -> bool {
        matches!(self.reported(store, version), Some(IngestionStatus::Completed))
    }

    /// Whether it says that it serves this version.
    #[must_use]
    pub fn serves(&self, store: &Store, version: u64) -> bool {
        self.current_report(store).is_some_and(|report| report.serving == Some(version))
    }

    /// What is pinned there, if that is another version than this one: the region serves it, whatever it is told.
    #[must_use]
    pub fn pinned_to_another(&self, store: &Store, version: u64) -> Option<&Pin> {
        self.current_report(store)?.pin.as_ref().filter(|pin| pin.version != version)
    }

    /// When it was last heard of.
    #[must_use]
    pub fn heard_at(&self) -> Option<Timestamp> {
        let report = self.report.as_ref().map(|report| report.at);
        let heartbeat = self.heartbeat.as_ref().map(|heartbeat| heartbeat.at);
        report.max(heartbeat)
    }
}

impl PushView {
    /// The freeze that holds this store's swaps in a region, if there is one; the oldest first.
    #[must_use]
    pub fn freeze_of(&self, region: &str) -> Option<(&String, &Freeze)> {
        self.freezes.iter().filter(|(_, freeze)| freeze.holds(&self.name, region)).min_by_key(|(_, freeze)| freeze.at)
    }

    /// A push that runs or waits its turn, if there is one.
    #[must_use]
    pub fn busy(&self) -> Option<&String> {
        self.pushes.iter().find(|(_, facts)| !facts.push.status().is_final()).map(|(id, _)| id)
    }

    /// The push that runs, if one does.
    #[must_use]
    pub fn running(&self) -> Option<(&String, &PushFacts)> {
        self.pushes.iter().find(|(_, facts)| facts.push.phase().is_some())
    }

    /// The newest version that was pushed to its end and never taken back: what a region gets that is new or was left out.
    #[must_use]
    pub fn released(&self) -> Option<(u64, &Version)> {
        self.versions.iter().rev().map(|(number, version)| (*number, version)).find(|(_, version)| {
            version.rolled_back.is_none()
                && version.artifact().is_some()
                && self
                    .pushes
                    .get(&version.push)
                    .is_some_and(|facts| facts.push.status() == crate::entities::PushStatus::Completed)
        })
    }
}
