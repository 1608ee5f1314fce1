//! What the store says of registrations: which definition version was in force from which revision on, and its bounds.

use std::collections::{BTreeMap, HashMap};

use crate::cluster_hook::registration::RegistrationEntity;
use crate::driver::{HookNumber, LogEntry, StoredState};
use crate::entity::Entity as _;
use crate::path::Path;
use crate::revision::Revision;

/// One hook's registration through its versions.
#[derive(Debug, Default)]
pub(super) struct Registered {
    /// The definition version that is in force after each revision.
    versions: BTreeMap<Revision, u32>,
    /// The highest cap of any version; none where one has none.
    pub(super) cap: Option<usize>,
    /// The most attempts of any version; none where one has no bound.
    pub(super) attempts: Option<u32>,
}

impl Registered {
    fn add(&mut self, revision: Revision, entity: &RegistrationEntity) {
        let cap = entity.runs_in_cluster().map(|cap| usize::try_from(cap).unwrap_or(usize::MAX));
        let attempts = entity.attempts();
        if self.versions.is_empty() {
            (self.cap, self.attempts) = (cap, attempts);
        } else {
            // None is no bound at all.
            self.cap = self.cap.zip(cap).map(|(one, other)| one.max(other));
            self.attempts = self.attempts.zip(attempts).map(|(one, other)| one.max(other));
        }
        self.versions.insert(revision, entity.version());
    }

    /// The lowest version that a run may have been started by: of those in force from its request on, until its snapshot.
    /// None where the log does not reach back to it.
    pub(super) fn needed(&self, request: Revision, snapshot: Revision) -> Option<u32> {
        let (_, at_first) = self.versions.range(..request).next_back()?;
        let later = self.versions.range(request..=snapshot.max(request)).map(|(_, version)| *version);
        Some(later.fold(*at_first, u32::min))
    }
}

/// All registrations, by their numbers.
pub(super) fn registered(stored: &StoredState) -> HashMap<HookNumber, Registered> {
    let mut found: HashMap<HookNumber, Registered> = HashMap::new();
    for (revision, _, entity) in registrations(stored) {
        found.entry(entity.number).or_default().add(revision, &entity);
    }
    found
}

/// Each registration that the store tells of, with the revision that it is of and where it stands; of one place the older ones
/// before the later ones.
pub(super) fn registrations(stored: &StoredState) -> impl Iterator<Item = (Revision, &Path, RegistrationEntity)> {
    // What the log does not tell any more, the written-behind entities do, as far as it is still in force.
    let behind = stored.tree.entities.iter().filter(|row| row.revision <= stored.meta.compacted);
    let behind = behind.map(|row| (row.revision, &row.path, &row.document));
    let logged = stored.log.iter().flat_map(|row| {
        row.entries.iter().filter_map(|entry| match entry {
            LogEntry::Change { path, after: Some(after), .. } => Some((row.revision, path, after)),
            LogEntry::Change { after: None, .. } | LogEntry::Existing { .. } | LogEntry::Action { .. } => None,
        })
    });
    let own = behind.chain(logged).filter(|(_, path, _)| path.collection() == RegistrationEntity::COLLECTION);
    // What can't be read is the linter's business.
    own.filter_map(|(revision, path, document)| Some((revision, path, serde_json::from_str(&document.json).ok()?)))
}
