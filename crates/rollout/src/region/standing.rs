//! How a region stands with each version, and the report that says so: pure functions of the agent's [`View`].
//!
//! # Invariants
//! - A version counts as ingested where enough nodes hold it with the manifest's content digest.
//! - A region counts as serving what it was asked to serve only once enough nodes do.
//! - A region has failed where the nodes that have not given up are fewer than enough.
//! - A time "since" moves only when what it is about changes.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_state::Timestamp;
use uuid::Uuid;

use super::pin::Pins;
use super::plan::{Check, NodeTask, NodeView, Trouble, VersionTask, View, Wanted};
use crate::engine::{EngineError, FatalKind};
use crate::entities::{EmbeddedCounts, FailureKind, HeldReport, IngestionStatus, Report};

/// How many lagging nodes a report names.
pub(crate) const LAGGING_NAMED_MAX: usize = 16;

/// The longest text of an error in a report, in characters.
const MESSAGE_MAX: usize = 600;

/// What a report says beside what follows from the view.
pub(crate) struct Facts<'a> {
    pub(crate) generation: u64,
    pub(crate) incarnation: Uuid,
    pub(crate) node_names: &'a [String],
    /// Bytes done and bytes there are, by version that is being copied or loaded.
    pub(crate) progress: &'a BTreeMap<u64, (u64, u64)>,
    pub(crate) embedded: EmbeddedCounts,
    pub(crate) pins: &'a Pins,
}

/// The nodes that hold the version with the manifest's digest.
pub(crate) fn sound_nodes(view: &View, version: u64) -> usize {
    view.nodes.iter().filter(|node| node.has_sound(version)).count()
}

fn nodes_serving(view: &View, version: Option<u64>) -> usize {
    view.nodes.iter().filter(|node| node.observed.is_some() && node.serving() == version).count()
}

/// What the region serves, as reads find it: what is wanted once enough nodes serve it; before that what most nodes
/// serve beside it; nothing where no node serves anything else.
pub(crate) fn serving(view: &View) -> Option<u64> {
    let wanted = match &view.wanted {
        Wanted::Assigned { serve, .. } => *serve,
        Wanted::Nothing => None,
    };
    if wanted.is_some() && nodes_serving(view, wanted) >= view.enough() {
        return wanted;
    }
    let others: BTreeSet<u64> =
        view.nodes.iter().filter_map(NodeView::serving).filter(|version| Some(*version) != wanted).collect();
    // The greatest of equals is as good as any; the choice only has to be a steady one.
    others.into_iter().max_by_key(|version| nodes_serving(view, Some(*version)))
}

/// The trouble for which this node has given up on the version, if it has.
fn given_up(node: &NodeView, version: u64) -> Option<&Trouble> {
    [NodeTask::Observe, NodeTask::LetGoOlder, NodeTask::Adopt, NodeTask::Load(version), NodeTask::Verify(version)]
        .iter()
        .filter_map(|task| node.trouble.get(task))
        .find(|trouble| trouble.given_up)
}

fn failure_of(error: &EngineError) -> FailureKind {
    match error.kind() {
        FatalKind::DiskFull => FailureKind::DiskFull,
        FatalKind::MemoryLimit => FailureKind::MemoryLimitReached,
        FatalKind::TooManyDead => FailureKind::TooManyDeadInstances,
        FatalKind::DigestMismatch => FailureKind::DataDamaged,
        FatalKind::Other => FailureKind::Other,
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= MESSAGE_MAX {
        return text.to_owned();
    }
    text.chars().take(MESSAGE_MAX - 1).chain(['…']).collect()
}

fn swap_failure(view: &View, version: u64) -> Option<IngestionStatus> {
    let task = NodeTask::Swap(Some(version));
    let refused: Vec<&Trouble> =
        view.nodes.iter().filter_map(|node| node.trouble.get(&task)).filter(|trouble| trouble.given_up).collect();
    if view.nodes.len() - refused.len() >= view.enough() {
        return None;
    }
    let first = refused.first()?;
    let kind = match failure_of(&first.error) {
        FailureKind::Other => FailureKind::SwapRefused,
        kind => kind,
    };
    let message = format!("the swap to version {version} failed {} times: {}", first.failures, first.error);
    Some(IngestionStatus::Failed { kind, message: cut(&message) })
}

fn load_failure(view: &View, version: u64) -> Option<IngestionStatus> {
    if let Some(of_version) = view.versions.get(&version)
        && let Some(trouble) = [VersionTask::ReadManifest, VersionTask::CheckCapacity, VersionTask::Copy]
            .iter()
            .filter_map(|task| of_version.trouble.get(task))
            .find(|trouble| trouble.given_up)
    {
        return Some(IngestionStatus::Failed {
            kind: failure_of(&trouble.error),
            message: cut(&trouble.error.to_string()),
        });
    }
    let lost: Vec<&Trouble> = view.nodes.iter().filter_map(|node| given_up(node, version)).collect();
    if view.nodes.len() - lost.len() >= view.enough() {
        return None;
    }
    let first = lost.first()?;
    let left = view.nodes.len() - lost.len();
    let message = format!(
        "{} (nodes that could still take it: {left} of {}, needed: {})",
        first.error,
        view.nodes.len(),
        view.enough()
    );
    Some(IngestionStatus::Failed { kind: failure_of(&first.error), message: cut(&message) })
}

/// The nodes that hold the version, but for those where it is known to be wrong: they are as they were when it was
/// reported as ingested, if it was.
fn holding_nodes(view: &View, version: u64) -> usize {
    view.nodes.iter().filter(|node| is_fine(node, version)).count()
}

/// How the region stands with this version, given how it stood before.
pub(crate) fn status(
    view: &View,
    version: u64,
    progress: Option<(u64, u64)>,
    before: Option<&IngestionStatus>,
) -> IngestionStatus {
    if let Some(failed) = swap_failure(view, version) {
        return failed;
    }
    if sound_nodes(view, version) >= view.enough() {
        return IngestionStatus::Completed;
    }
    // An agent that has just started reads back again what it had read back before; that takes nothing away.
    if before == Some(&IngestionStatus::Completed) && holding_nodes(view, version) >= view.enough() {
        return IngestionStatus::Completed;
    }
    if let Some(failed) = load_failure(view, version) {
        return failed;
    }
    match (progress, before) {
        (Some((bytes, of)), _) => IngestionStatus::Progress { bytes, of },
        // Between two steps, or while one waits for its turn.
        (None, Some(before @ IngestionStatus::Progress { .. })) => before.clone(),
        (None, _) => IngestionStatus::Started,
    }
}

/// The last error of a step for this version that is being tried again.
fn retrying(view: &View, version: u64) -> Option<String> {
    let of_version = view.versions.get(&version).into_iter().flat_map(|version| version.trouble.values());
    let of_nodes = view.nodes.iter().flat_map(|node| {
        node.trouble.iter().filter_map(move |(task, trouble)| match task {
            NodeTask::Load(of) | NodeTask::Verify(of) | NodeTask::Drop(of) => (*of == version).then_some(trouble),
            NodeTask::Swap(of) => (*of == Some(version)).then_some(trouble),
            NodeTask::Observe | NodeTask::LetGoOlder | NodeTask::Adopt => Some(trouble),
        })
    });
    of_version.chain(of_nodes).next().map(|trouble| {
        let times = if trouble.failures == 1 { "once".to_owned() } else { format!("{} times", trouble.failures) };
        cut(&format!("failed {times}: {}", trouble.error))
    })
}

fn lagging(view: &View, names: &[String], versions: &BTreeMap<u64, HeldReport>, serving: Option<u64>) -> Vec<String> {
    let Wanted::Assigned { hold, serve, .. } = &view.wanted else {
        return Vec::new();
    };
    let ingested: Vec<u64> = hold
        .keys()
        .filter(|version| versions.get(version).is_some_and(|held| held.status == IngestionStatus::Completed))
        .copied()
        .collect();
    view.nodes
        .iter()
        .zip(names)
        .filter(|(node, _)| {
            node.observed.is_none()
                || ingested.iter().any(|version| !is_fine(node, *version))
                || (serving == *serve && node.serving() != *serve)
        })
        .map(|(_, name)| name.clone())
        .take(LAGGING_NAMED_MAX)
        .collect()
}

/// Whether the node has the version, and nothing is known against it.
fn is_fine(node: &NodeView, version: u64) -> bool {
    let held = node.observed.as_ref().is_some_and(|observed| observed.holds(version));
    held && node.checked.get(&version) != Some(&Check::Differs) && given_up(node, version).is_none()
}

fn same_kind(a: &IngestionStatus, b: &IngestionStatus) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// The report on the store, given what the last one said.
pub(crate) fn report(view: &View, facts: Facts<'_>, previous: Option<&Report>, now: Timestamp) -> Report {
    let previous = previous.filter(|report| report.incarnation == facts.incarnation);
    let mut numbers: BTreeSet<u64> = match &view.wanted {
        Wanted::Assigned { hold, .. } => hold.keys().copied().collect(),
        Wanted::Nothing => BTreeSet::new(),
    };
    numbers.extend(view.nodes.iter().filter_map(|node| node.observed.as_ref()).flat_map(|seen| seen.held.keys()));
    let versions: BTreeMap<u64, HeldReport> = numbers
        .into_iter()
        .map(|number| {
            let before = previous.and_then(|report| report.versions.get(&number));
            let progress = facts.progress.get(&number).copied();
            let status = status(view, number, progress, before.map(|before| &before.status));
            let since = before.filter(|before| same_kind(&before.status, &status)).map_or(now, |before| before.since);
            let nodes = match &status {
                IngestionStatus::Completed => sound_nodes(view, number).max(holding_nodes(view, number)),
                _ => sound_nodes(view, number),
            };
            let digest = view.versions.get(&number).and_then(|version| version.expected_digest.clone());
            let held = HeldReport {
                status,
                since,
                digest: digest.filter(|_| nodes > 0),
                nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
                retrying: retrying(view, number),
            };
            (number, held)
        })
        .collect();
    let serving = serving(view);
    let serving_since = serving.map(|_| {
        previous.filter(|before| before.serving == serving).and_then(|before| before.serving_since).unwrap_or(now)
    });
    Report {
        generation: facts.generation,
        incarnation: facts.incarnation,
        lagging_nodes: lagging(view, facts.node_names, &versions, serving),
        versions,
        serving,
        serving_since,
        embedded: facts.embedded,
        pin: facts.pins.pin.clone(),
        past_pins: facts.pins.past.clone(),
        at: now,
    }
}

/// How much a report differs from the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Novelty {
    /// Not at all, but for when it was made.
    Same,
    /// In figures of progress only.
    Progress,
    /// In something that others wait for.
    News,
}

/// Compares a report with the last one that was written.
pub(crate) fn novelty(written: Option<&Report>, next: &Report) -> Novelty {
    let Some(written) = written else {
        return Novelty::News;
    };
    let mut like_written = next.clone();
    like_written.at = written.at;
    if like_written == *written {
        return Novelty::Same;
    }
    for (number, held) in &mut like_written.versions {
        if let Some(before) = written.versions.get(number)
            && same_kind(&before.status, &held.status)
            && matches!(held.status, IngestionStatus::Progress { .. })
        {
            held.status = before.status.clone();
        }
    }
    if like_written == *written { Novelty::Progress } else { Novelty::News }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
