//! Which artifacts a region's token may read: those of versions that its region is or was told to hold.
//!
//! Answered from a snapshot alone. The assignments say what the region holds; they are few and are looked at first. A
//! version that has just left them is still being let go of there, may be pinned there, and may have to be mended: as long as
//! its data is kept, what its push and the version itself say of the region counts too. What the region reports counts for
//! nothing, since the bearer of its token can write that.

use tidegate_rollout::entities::{Assignment, Milestone, Push, Region, Store, Version, VersionStatus};
use tidegate_state::{ReadError, Ref, Snapshot};

/// Whether the artifact is one of a version that this region is or was assigned.
///
/// # Errors
/// What is kept of it can't be read.
pub(super) fn is_regions(artifact: &str, region: &str, snapshot: &Snapshot) -> Result<bool, ReadError> {
    let Ok(region_place) = Ref::<Region>::root(region) else { return Ok(false) };
    let mut stores = Vec::new();
    for item in snapshot.children::<Assignment>(&region_place) {
        let (place, assignment) = item?;
        if assignment.hold.values().any(|held| held.artifact == artifact) {
            return Ok(true);
        }
        stores.push(place.id());
    }
    for store in stores {
        let Ok(store) = Ref::<Store>::root(store) else { continue };
        for item in snapshot.children::<Version>(&store) {
            let version = item?.1;
            if version.artifact().is_some_and(|(there, _)| there == artifact)
                && was_assigned(version, &store, region, snapshot)?
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn was_assigned(version: &Version, store: &Ref<Store>, region: &str, snapshot: &Snapshot) -> Result<bool, ReadError> {
    use VersionStatus::{Online, Pushed, RolledBack};
    if version.regions.get(region).is_some_and(|there| matches!(there.status, Pushed | Online | RolledBack)) {
        return Ok(true);
    }
    let Ok(push) = store.child::<Push>(version.push.as_str()) else { return Ok(false) };
    let part = snapshot.get(&push)?.and_then(|push| push.regions.get(region));
    Ok(part.is_some_and(|part| part.reached.contains_key(&Milestone::Assigned)))
}
