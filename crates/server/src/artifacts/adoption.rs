//! An artifact store that lost its mark, made the installation's because an operator says so.
//!
//! A bucket that was emptied or a folder that was lost would otherwise keep every server from starting, though regions serve
//! from their own copies and new versions could be pushed. The mark is that of before, so that servers and agents that are up
//! know the store again. One with another mark is refused: it may be another installation's, which would lose what nobody
//! refers to here.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_rollout::entities::{Assignment, Region, Report, SourceStore, Store};
use tidegate_state::{Ref, Snapshot, State, Transaction, TransactionError};

use super::mark;
use crate::access::AuditRecord;
use crate::backup::NamedArtifact;
use crate::server::StartError;

/// How many artifacts are looked at, at once.
const AT_ONCE: usize = 16;

/// What came of adopting a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// What people know the store by.
    pub store: String,
    /// How many versions name an artifact.
    pub versions: usize,
    /// Those whose artifacts are not there whole.
    pub missing: Vec<MissingVersion>,
}

/// A version whose artifact is not in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingVersion {
    /// Its store.
    pub store: String,
    /// Its number.
    pub version: u64,
    /// The artifact.
    pub artifact: String,
    /// What of it is not there, in words.
    pub lacks: String,
    /// Regions that serve it, from copies of their own.
    pub served_by: BTreeSet<String>,
    /// Regions that are to hold it.
    pub held_by: BTreeSet<String>,
}

/// Leaves the installation's mark in a store that bears none, and says what is missing there.
pub(super) async fn adopt(state: &State, store: &ArtifactStore, known: &SourceStore) -> Result<Adoption, StartError> {
    let failed = |source: ArtifactError| StartError::Artifacts { store: store.name().to_owned(), source };
    let marks = store.probes().await.map_err(failed)?;
    if !marks.is_empty() {
        return Err(StartError::AnothersStore { store: store.name().to_owned(), marks: marks.join(", ") });
    }
    let snapshot = state.snapshot();
    let named = NamedArtifact::all_of(&snapshot);
    let adoption = Adoption {
        store: store.name().to_owned(),
        versions: named.len(),
        missing: missing(store, &snapshot, named).await.map_err(failed)?,
    };
    let place = mark::place().map_err(StartError::Prepare)?;
    let (name, by) = (store.name().to_owned(), state.server().to_string());
    let target =
        format!("{name}, which lacks the artifacts of {} of {} versions", adoption.missing.len(), adoption.versions);
    let written = state.write(move |transaction: &mut Transaction| -> Result<(), TransactionError> {
        transaction.update(&place, |source| source.name.clone_from(&name))?;
        AuditRecord::of_adoption(transaction, &by, &target)?.append(transaction)
    });
    written.await.map_err(|error| StartError::Prepare(error.to_string()))?;
    // Last, so that no store is adopted that is not on record.
    store.put_probe(&known.probe).await.map_err(failed)?;
    store.check_probe(&known.probe).await.map_err(failed)?;
    Ok(adoption)
}

/// Those versions whose artifacts are not there whole; each artifact is looked at once.
async fn missing(
    store: &ArtifactStore,
    snapshot: &Snapshot,
    named: Vec<NamedArtifact>,
) -> Result<Vec<MissingVersion>, ArtifactError> {
    let distinct: BTreeSet<(String, String)> =
        named.iter().map(|named| (named.artifact.clone(), named.manifest_sha256.clone())).collect();
    let looks = futures::stream::iter(distinct).map(|(artifact, manifest)| async move {
        let lacks = store.lacks(&artifact, &manifest).await?;
        Ok::<_, ArtifactError>(((artifact, manifest), lacks))
    });
    let mut lacking = BTreeMap::new();
    let mut looks = looks.buffer_unordered(AT_ONCE);
    while let Some(looked) = looks.next().await {
        let (artifact, lacks) = looked?;
        lacking.extend(lacks.map(|lacks| (artifact, lacks)));
    }
    let missing = named.into_iter().filter_map(|named| {
        let lacks = lacking.get(&(named.artifact.clone(), named.manifest_sha256.clone()))?.clone();
        let (served_by, held_by) = regions(snapshot, &named.store, named.version);
        let NamedArtifact { store, version, artifact, .. } = named;
        Some(MissingVersion { store, version, artifact, lacks, served_by, held_by })
    });
    Ok(missing.collect())
}

/// Which regions serve a version, and which are to hold it. What can't be read says nothing.
fn regions(snapshot: &Snapshot, store: &str, version: u64) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut served_by, mut held_by) = (BTreeSet::new(), BTreeSet::new());
    let incarnation = Ref::<Store>::root(store).ok().and_then(|place| snapshot.get(&place).ok().flatten());
    let incarnation = incarnation.map(|store| store.incarnation);
    for (region, _) in snapshot.roots::<Region>().filter_map(Result::ok) {
        let report = region.child::<Report>(store).ok().and_then(|place| snapshot.get(&place).ok().flatten());
        if report.is_some_and(|report| Some(report.incarnation) == incarnation && report.serving == Some(version)) {
            served_by.insert(region.id());
        }
        let assignment = region.child::<Assignment>(store).ok().and_then(|place| snapshot.get(&place).ok().flatten());
        if assignment.is_some_and(|assignment| assignment.hold.contains_key(&version)) {
            held_by.insert(region.id());
        }
    }
    (served_by, held_by)
}
