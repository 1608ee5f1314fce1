//! What a region's agent does next for one store: a pure function of what is wanted and what is.
//!
//! The agent keeps a [`View`] of one store in its region, and asks [`plan`] for steps whenever
//! anything in it changed. Steps that are running are part of the view, so that asking again asks
//! for nothing twice; what failed rests until its time, and rests longer each time. There is no
//! other path: a restart, a lost message, a node restored from an old disk and a first load all come
//! through here.
//!
//! # Invariants
//! - A node is swapped only to what is wanted, and only if its content digest is the manifest's.
//! - Nothing is loaded before it was found to fit, nor before the region's copy was checked.
//! - What serves is never dropped; what is wanted is never dropped.
//! - A swap waits for no load: a rollback is carried out while something else is being loaded.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_state::Timestamp;

use crate::engine::{ADOPTED_VERSION, EngineError, Observed};

/// What the control plane wants of a store in this region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing: the store is gone, and all of it is let go.
    #[default]
    Nothing,
    /// As an assignment says.
    Assigned {
        /// Versions to hold, each with its artifact's id.
        hold: BTreeMap<u64, String>,
        /// The version to serve.
        serve: Option<u64>,
        /// How many nodes must hold a version before it counts as ingested.
        enough: u32,
    },
}

/// A step of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum NodeTask {
    /// Ask what it holds and serves.
    Observe,
    /// Let go of another store that had the same name.
    LetGoOlder,
    /// Take over what is live.
    Adopt,
    /// Load a version.
    Load(u64),
    /// Read a version back.
    Verify(u64),
    /// Serve a version, or none.
    Swap(Option<u64>),
    /// Let a version go.
    Drop(u64),
}

/// A step of the region as a whole for one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum VersionTask {
    /// Read the manifest, to know what the version must consist of.
    ReadManifest,
    /// Compare what it needs with what is free.
    CheckCapacity,
    /// Copy the artifact to the region, and check every part.
    Copy,
    /// Remove the region's copy.
    RemoveCopy,
}

/// What [`plan`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Begin a step of a node, by its place in [`View::nodes`].
    Node(usize, NodeTask),
    /// Cut off a step of a node that runs.
    CancelNode(usize, NodeTask),
    /// Begin a step for a version.
    Version(u64, VersionTask),
    /// Cut off a step for a version that runs.
    CancelVersion(u64, VersionTask),
}

/// A step that failed, and when it may be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// How often it failed in a row.
    pub(crate) failures: u32,
    /// The last error.
    pub(crate) error: EngineError,
    /// Not tried again before this time.
    pub(crate) rests_until: Timestamp,
    /// Whether it counts as failed for good. It is still tried now and then: what is wanted may
    /// outlive the reason for the failure.
    pub(crate) given_up: bool,
}

/// What verifying a version on a node has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The digest is the manifest's.
    Agrees,
    /// It is not. Never served, never counted.
    Differs,
}

/// One node, for one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeView {
    /// What it said last; `None` while nothing is known, because it was not asked or did not answer.
    pub(crate) observed: Option<Observed>,
    /// Whether what it said may be out of date. Nothing is decided on it until it has been asked again.
    pub(crate) stale: bool,
    /// Whether it keeps anything of another store that had the same name.
    pub(crate) older: bool,
    /// Whether it was asked to adopt, or has no need to.
    pub(crate) adopted: bool,
    /// Versions that were read back here.
    pub(crate) checked: BTreeMap<u64, Check>,
    /// Versions to be read back once more (the scrub).
    pub(crate) scrub: BTreeSet<u64>,
    /// Steps that run now.
    pub(crate) running: BTreeSet<NodeTask>,
    /// Steps that failed.
    pub(crate) trouble: BTreeMap<NodeTask, Trouble>,
}

impl NodeView {
    fn holds(&self, version: u64) -> bool {
        self.observed.as_ref().is_some_and(|observed| observed.holds(version))
    }

    pub(crate) fn serving(&self) -> Option<u64> {
        self.observed.as_ref().and_then(|observed| observed.serving)
    }

    /// Whether the version is there, whole, and what the manifest says.
    pub(crate) fn has_sound(&self, version: u64) -> bool {
        self.holds(version) && (version == ADOPTED_VERSION || self.checked.get(&version) == Some(&Check::Agrees))
    }

    fn may_start(&self, task: NodeTask, now: Timestamp) -> bool {
        !self.running.contains(&task) && !self.rests(task, now)
    }

    fn rests(&self, task: NodeTask, now: Timestamp) -> bool {
        self.trouble.get(&task).is_some_and(|trouble| now < trouble.rests_until)
    }

    fn works_on(&self, version: u64) -> bool {
        self.running.iter().any(|task| match task {
            NodeTask::Load(of) | NodeTask::Verify(of) | NodeTask::Drop(of) => *of == version,
            NodeTask::Swap(of) => *of == Some(version),
            NodeTask::Observe | NodeTask::LetGoOlder | NodeTask::Adopt => false,
        })
    }

    fn is_loading(&self) -> bool {
        self.running.iter().any(|task| matches!(task, NodeTask::Load(_)))
    }

    fn is_verifying(&self) -> bool {
        self.running.iter().any(|task| matches!(task, NodeTask::Verify(_)))
    }

    fn is_swapping(&self) -> bool {
        self.running.iter().any(|task| matches!(task, NodeTask::Swap(_)))
    }
}

/// One version, for the region as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VersionView {
    /// The content digest of its manifest, once that was read.
    pub(crate) expected_digest: Option<String>,
    /// Whether it was found to fit on enough nodes.
    pub(crate) fits: bool,
    /// Whether the region's copy is complete and was checked.
    pub(crate) copied: bool,
    /// Steps that run now.
    pub(crate) running: BTreeSet<VersionTask>,
    /// Steps that failed.
    pub(crate) trouble: BTreeMap<VersionTask, Trouble>,
}

impl VersionView {
    fn may_start(&self, task: VersionTask, now: Timestamp) -> bool {
        !self.running.contains(&task) && self.trouble.get(&task).is_none_or(|trouble| now >= trouble.rests_until)
    }
}

/// Everything that [`plan`] looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// What is wanted.
    pub(crate) wanted: Wanted,
    /// The region's nodes, always in the same order.
    pub(crate) nodes: Vec<NodeView>,
    /// The versions that the region has to do with: what is wanted, and what is left to be removed.
    pub(crate) versions: BTreeMap<u64, VersionView>,
}

impl View {
    /// How many nodes are enough: what was asked for, within what there is.
    pub(crate) fn enough(&self) -> usize {
        match &self.wanted {
            Wanted::Nothing => 1,
            Wanted::Assigned { enough, .. } => (*enough as usize).clamp(1, self.nodes.len().max(1)),
        }
    }

    /// Whether nothing of the store is left, so that it can be forgotten.
    pub(crate) fn is_let_go(&self) -> bool {
        self.wanted == Wanted::Nothing
            && self.versions.is_empty()
            && self.nodes.iter().all(|node| {
                !node.stale
                    && !node.older
                    && node.running.is_empty()
                    && node.observed.as_ref().is_some_and(|observed| {
                        observed.held.is_empty() && observed.remains.is_empty() && observed.serving.is_none()
                    })
            })
    }

    /// The time at which something that rests may be tried again, if anything rests.
    pub(crate) fn next_attempt_at(&self, now: Timestamp) -> Option<Timestamp> {
        let nodes = self.nodes.iter().flat_map(|node| node.trouble.values());
        let versions = self.versions.values().flat_map(|version| version.trouble.values());
        nodes.chain(versions).map(|trouble| trouble.rests_until).filter(|at| *at > now).min()
    }
}

/// The steps to begin or to cut off now. Asking again with these steps running gives none of them.
pub(crate) fn plan(view: &View, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    for (place, node) in view.nodes.iter().enumerate() {
        let mut of_node = NodePlan { node, now, steps: Vec::new() };
        of_node.decide(&view.wanted, &view.versions);
        steps.extend(of_node.steps.into_iter().map(|step| match step {
            NodeStep::Begin(task) => Step::Node(place, task),
            NodeStep::Cancel(task) => Step::CancelNode(place, task),
        }));
    }
    for (number, version) in &view.versions {
        plan_version(view, *number, version, now, &mut steps);
    }
    steps
}

enum NodeStep {
    Begin(NodeTask),
    Cancel(NodeTask),
}

struct NodePlan<'a> {
    node: &'a NodeView,
    now: Timestamp,
    steps: Vec<NodeStep>,
}

impl NodePlan<'_> {
    fn begin(&mut self, task: NodeTask) -> bool {
        let starts = self.node.may_start(task, self.now);
        if starts {
            self.steps.push(NodeStep::Begin(task));
        }
        starts
    }

    fn decide(&mut self, wanted: &Wanted, versions: &BTreeMap<u64, VersionView>) {
        let node = self.node;
        let Some(observed) = &node.observed else {
            self.cancel_loads(wanted);
            self.begin(NodeTask::Observe);
            return;
        };
        self.cancel_loads(wanted);
        if node.stale {
            // Something was done, or time has passed: look before anything else is decided.
            self.begin(NodeTask::Observe);
            return;
        }
        if node.older {
            // The name must not answer with another store's data, so that goes before anything else.
            self.begin(NodeTask::LetGoOlder);
            return;
        }
        match wanted {
            Wanted::Nothing => self.let_go(observed),
            Wanted::Assigned { hold, serve, .. } => {
                if !node.adopted {
                    self.begin(NodeTask::Adopt);
                    if observed.serving.is_none() {
                        return;
                    }
                }
                self.swap(observed, hold, *serve);
                self.drop(observed, hold, *serve);
                self.load(observed, hold, *serve, versions);
                self.verify(observed, hold, versions);
            }
        }
    }

    fn cancel_loads(&mut self, wanted: &Wanted) {
        for task in &self.node.running {
            if let NodeTask::Load(version) = task
                && !matches!(wanted, Wanted::Assigned { hold, .. } if hold.contains_key(version))
            {
                self.steps.push(NodeStep::Cancel(*task));
            }
        }
    }

    fn let_go(&mut self, observed: &Observed) {
        if self.node.is_swapping() {
            return;
        }
        if observed.serving.is_some() {
            self.begin(NodeTask::Swap(None));
            return;
        }
        for version in observed.held.keys().chain(&observed.remains) {
            if !self.node.works_on(*version) {
                self.begin(NodeTask::Drop(*version));
            }
        }
    }

    /// Whether what the node has under this number is something else than is wanted under it.
    fn is_wrong(&self, observed: &Observed, version: u64, hold: &BTreeMap<u64, String>) -> bool {
        // What was adopted came from no artifact: there is nothing that it could differ from.
        if version == ADOPTED_VERSION {
            return false;
        }
        let another_artifact =
            match (observed.held.get(&version).and_then(|held| held.artifact.as_ref()), hold.get(&version)) {
                (Some(found), Some(wanted)) => found != wanted,
                _ => false,
            };
        another_artifact || self.node.checked.get(&version) == Some(&Check::Differs)
    }

    fn swap(&mut self, observed: &Observed, hold: &BTreeMap<u64, String>, serve: Option<u64>) {
        // One swap of a node at a time: the last one asked for is the one that stays.
        if self.node.is_swapping() {
            return;
        }
        let task = match (observed.serving, serve) {
            (serving, wanted) if serving == wanted => {
                let wrong = serving.is_some_and(|version| self.is_wrong(observed, version, hold));
                wrong.then_some(NodeTask::Swap(None))
            }
            // What was live before the first push serves until the control plane has said another.
            (Some(ADOPTED_VERSION), None) => None,
            (_, None) => Some(NodeTask::Swap(None)),
            (serving, Some(version)) => {
                let ready = self.node.has_sound(version)
                    && !self.is_wrong(observed, version, hold)
                    && !self.node.running.contains(&NodeTask::Drop(version));
                let wrong = serving.is_some_and(|version| self.is_wrong(observed, version, hold));
                match (ready, wrong) {
                    (true, _) => Some(NodeTask::Swap(Some(version))),
                    (false, true) => Some(NodeTask::Swap(None)),
                    (false, false) => None,
                }
            }
        };
        if let Some(task) = task {
            self.begin(task);
        }
    }

    fn drop(&mut self, observed: &Observed, hold: &BTreeMap<u64, String>, serve: Option<u64>) {
        // With two versions that pushes made, what was live before them is no longer a way back.
        let keeps_adopted = hold.keys().filter(|version| **version != ADOPTED_VERSION).count() < 2;
        for version in observed.held.keys().chain(&observed.remains) {
            let wanted = hold.contains_key(version)
                || serve == Some(*version)
                || (*version == ADOPTED_VERSION && keeps_adopted && observed.holds(*version));
            let wrong = observed.holds(*version) && self.is_wrong(observed, *version, hold);
            if (!wanted || wrong) && observed.serving != Some(*version) && !self.node.works_on(*version) {
                self.begin(NodeTask::Drop(*version));
            }
        }
    }

    fn load(
        &mut self,
        observed: &Observed,
        hold: &BTreeMap<u64, String>,
        serve: Option<u64>,
        versions: &BTreeMap<u64, VersionView>,
    ) {
        if self.node.is_loading() {
            return;
        }
        // What is to serve comes first, then the rest from the newest to the oldest.
        let newest_first = hold.keys().rev().filter(|version| Some(**version) != serve);
        for version in serve.iter().filter(|version| hold.contains_key(version)).chain(newest_first) {
            let ready = versions.get(version).is_some_and(|view| view.fits && view.copied);
            let missing = *version != ADOPTED_VERSION && !observed.holds(*version);
            let waits = self.node.works_on(*version) || self.node.rests(NodeTask::Verify(*version), self.now);
            if ready && missing && !waits && self.begin(NodeTask::Load(*version)) {
                return;
            }
        }
    }

    fn verify(&mut self, observed: &Observed, hold: &BTreeMap<u64, String>, versions: &BTreeMap<u64, VersionView>) {
        if self.node.is_verifying() {
            return;
        }
        for version in hold.keys().rev().filter(|version| **version != ADOPTED_VERSION) {
            let known = versions.get(version).is_some_and(|view| view.expected_digest.is_some());
            let due = !self.node.checked.contains_key(version) || self.node.scrub.contains(version);
            let free = !self.node.works_on(*version) && !self.is_wrong(observed, *version, hold);
            if known && due && free && observed.holds(*version) && self.begin(NodeTask::Verify(*version)) {
                return;
            }
        }
    }
}

fn plan_version(view: &View, number: u64, version: &VersionView, now: Timestamp, steps: &mut Vec<Step>) {
    let wanted = matches!(&view.wanted, Wanted::Assigned { hold, .. } if hold.contains_key(&number));
    if !wanted {
        let mut running = false;
        for task in &version.running {
            if *task != VersionTask::RemoveCopy {
                steps.push(Step::CancelVersion(number, *task));
                running = true;
            }
        }
        let in_use = running || view.nodes.iter().any(|node| node.running.contains(&NodeTask::Load(number)));
        if !in_use && version.may_start(VersionTask::RemoveCopy, now) {
            steps.push(Step::Version(number, VersionTask::RemoveCopy));
        }
        return;
    }
    if number == ADOPTED_VERSION || !version.running.is_empty() {
        return;
    }
    // Nodes that do not answer are left out: they load once they are back.
    let missing = view.nodes.iter().any(|node| node.observed.is_some() && node.adopted && !node.holds(number));
    let task = if version.expected_digest.is_none() {
        Some(VersionTask::ReadManifest)
    } else if missing && !version.fits {
        Some(VersionTask::CheckCapacity)
    } else if missing && !version.copied {
        Some(VersionTask::Copy)
    } else {
        None
    };
    if let Some(task) = task
        && version.may_start(task, now)
    {
        steps.push(Step::Version(number, task));
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
