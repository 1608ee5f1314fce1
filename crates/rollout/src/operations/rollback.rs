//! Rolling a store back by hand, after its push has ended.

use std::collections::BTreeMap;

use tidegate_state::{Ref, Transaction, TransactionError};

use super::{OperationError, Operations, OperatorAction, check_reason, phase_word, step};
use crate::controller::{PushView, RegionFacts, gather};
use crate::entities::{Assignment, Region, RegionVersion, RolledBack, Store, Version, VersionStatus};

/// Where each region goes back to; none where it goes on as it is.
pub type RolledBackTo = BTreeMap<String, u64>;

impl Operations {
    /// Rolls a store back: every region that serves the newest version, or the one that is named, serves an earlier version
    /// again; with a version, every region that serves a newer one. Pointers only; no gate is asked and no freeze is minded.
    /// The push that brought the version stays as it ended.
    ///
    /// # Errors
    /// An unknown store or region, a push that runs, no earlier version that is still held, a version that was itself
    /// rolled back, no reason.
    pub async fn roll_back_store(
        &self,
        store: &str,
        region: Option<&str>,
        version: Option<u64>,
        by: &str,
        reason: &str,
    ) -> Result<RolledBackTo, OperationError> {
        let (name, region) = (store.to_owned(), region.map(str::to_owned));
        let (by, reason) = (by.to_owned(), reason.to_owned());
        self.write(move |transaction, registry| {
            check_reason(&reason)?;
            let view = gather(transaction, registry, &name)?
                .ok_or_else(|| OperationError::StoreUnknown { store: name.clone() })?;
            if let Some((running, facts)) = view.running() {
                return Err(OperationError::PushRunning {
                    store: name.clone(),
                    running: running.clone(),
                    status: facts.push.status(),
                    phase: phase_word(&facts.push).to_owned(),
                    on_new_push: view.store.on_new_push,
                });
            }
            let targets = targets(&view, region.as_deref(), version)?;
            for (region, target) in &targets {
                turn(transaction, &view, region, *target, &by, &reason)?;
            }
            step(transaction, registry, &name)?;
            Ok(targets)
        })
        .await
    }
}

fn targets(view: &PushView, region: Option<&str>, version: Option<u64>) -> Result<RolledBackTo, OperationError> {
    if let Some(region) = region
        && !view.regions.contains_key(region)
    {
        let known = view.regions.keys().cloned().collect();
        return Err(OperationError::RegionUnknown { region: region.to_owned(), known });
    }
    if let Some(target) = version {
        check_target(view, target)?;
    }
    refuse_another(view, region, version)?;
    // A release that reached some regions only is taken back where it is: the others have what came before already.
    let newest = view.regions.values().filter_map(serves).max();
    let mut targets = BTreeMap::new();
    for (name, facts) in &view.regions {
        if region.is_some_and(|only| only != name) {
            continue;
        }
        if region.is_none() && version.is_none() && serves(facts) != newest {
            continue;
        }
        if let Some(target) = target_in(view, name, facts, version) {
            targets.insert(name.clone(), target);
        }
    }
    if targets.is_empty() {
        let why = match version {
            Some(version) => format!("no region serves something newer than version {version} and still holds it"),
            None => "no region holds an earlier version that served well".to_owned(),
        };
        return Err(OperationError::NoWayBack { store: view.name.clone(), why });
    }
    Ok(targets)
}

/// A second order while the first goes on would step back twice, which nobody means who only asks again. Who names a version
/// that is not the one told already means another order. A region that would not be told anew, since it does not serve what is
/// taken back, and one that is marked unavailable hold up nothing: the one goes on as it is, the other follows when it is back.
fn refuse_another(view: &PushView, region: Option<&str>, version: Option<u64>) -> Result<(), OperationError> {
    let concerned = || view.regions.iter().filter(|(name, _)| region.is_none_or(|only| only == *name));
    if version.is_some_and(|version| concerned().any(|(_, facts)| serves(facts) != Some(version))) {
        return Ok(());
    }
    let newest = view.regions.values().filter_map(serves).max();
    let is_told_anew = |facts: &RegionFacts| region.is_some() || version.is_some() || serves(facts) == newest;
    let waited_for = concerned().filter(|(_, facts)| is_told_anew(facts) && facts.region.availability.is_available());
    for (name, facts) in waited_for {
        let Some(report) = facts.current_report(&view.store).filter(|report| report.pin.is_none()) else { continue };
        if let (Some(told), Some(serving)) = (serves(facts), report.serving)
            && told < serving
        {
            let (store, region) = (view.name.clone(), name.clone());
            return Err(OperationError::AlreadyGoingBack { store, region, told, serving });
        }
    }
    Ok(())
}

fn serves(facts: &RegionFacts) -> Option<u64> {
    facts.assignment.as_ref()?.serve
}

fn check_target(view: &PushView, target: u64) -> Result<(), OperationError> {
    let store = view.name.clone();
    let Some(version) = view.versions.get(&target) else {
        return Err(OperationError::NoWayBack { store, why: format!("there is no version {target}") });
    };
    if version.rolled_back.is_some() || version.status == VersionStatus::RolledBack {
        return Err(OperationError::RolledBack { store, version: target });
    }
    Ok(())
}

/// The version that a region can go back to: the newest below what it serves that served there, was not taken back there,
/// and is still held.
fn target_in(view: &PushView, name: &str, facts: &RegionFacts, version: Option<u64>) -> Option<u64> {
    let assignment = facts.assignment.as_ref()?;
    let serve = assignment.serve?;
    let good = |number: &u64| {
        view.versions.get(number).is_some_and(|version| {
            version.rolled_back.is_none()
                && version.regions.get(name).is_some_and(|region| region.status == VersionStatus::Online)
        })
    };
    assignment
        .hold
        .keys()
        .rev()
        .copied()
        .filter(|number| *number < serve && version.is_none_or(|wanted| wanted == *number))
        .find(good)
}

fn turn(
    transaction: &mut Transaction,
    view: &PushView,
    region: &str,
    target: u64,
    by: &str,
    reason: &str,
) -> Result<(), OperationError> {
    let now = transaction.now();
    let place = Ref::<Region>::root(region).map_err(TransactionError::Path)?;
    let assignment = place.child::<Assignment>(view.name.clone()).map_err(TransactionError::Path)?;
    let left = transaction.require(&assignment)?.serve;
    transaction.update(&assignment, |assignment| {
        assignment.generation += 1;
        assignment.serve = Some(target);
    })?;
    let store = Ref::<Store>::root(view.name.clone()).map_err(TransactionError::Path)?;
    // Everything between the target and what was served is taken back with it.
    for number in view.versions.keys().copied().filter(|number| *number > target && Some(*number) <= left) {
        let place = store.child::<Version>(number).map_err(TransactionError::Path)?;
        let mut version = (*transaction.require(&place)?).clone();
        let Some(was) = version.regions.get_mut(region).filter(|was| was.status == VersionStatus::Online) else {
            continue;
        };
        *was = RegionVersion { status: VersionStatus::RolledBack, at: now };
        if version.regions.values().all(|other| other.status != VersionStatus::Online) {
            version.rolled_back = Some(RolledBack { by: by.to_owned(), reason: reason.to_owned(), at: now });
        }
        transaction.put(&place, version)?;
    }
    OperatorAction::new(transaction, format!("rollback to {target}"), by, reason)
        .on_store(&view.name)
        .in_region(region)
        .keep(transaction)
}
