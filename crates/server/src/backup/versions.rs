//! The numbers of versions after a restore, and after it was confirmed that a database was put back. A number is never given
//! out twice: regions, caches and people know a version by it.
//!
//! A store counts its versions in its own entity, which goes back with the restore; what was given out between the backup
//! and the restore is lost with it. So each store's next number rises:
//!
//! - where the database that is replaced is of the same installation and epoch and has gone on from the backup, it knows
//!   what was given out: by [`ABOVE_KNOWN`] above the higher of the two, for pushes that start while it is being replaced;
//! - else (a new machine, a damaged database, one that was itself put back, a store that was deleted since) nobody knows:
//!   by [`ABOVE_UNKNOWN`], and to no less than the seconds since 1970, so that a backup that is restored twice gives other
//!   numbers each time.
//!
//! A store that was made after the backup is lost whole, and may be made again under its name: whatever is made after a
//! restore begins above what was lost, see [`VersionFloor`].
//!
//! Artifacts are no evidence: one is known by its digest, and carries no version's number.

use std::collections::BTreeMap;

use tidegate_rollout::entities::{Store, VersionFloor};
use tidegate_rollout::operations::OperatorAction;
use tidegate_state::{Ref, Snapshot, Timestamp, Transaction, TransactionError};
use uuid::Uuid;

/// By how much a store's next version rises where the replaced database knows what it had given out.
pub const ABOVE_KNOWN: u64 = 1_000;

/// By how much it rises where nobody does: more pushes than a store starts between a backup and its restore, at one every
/// second for eleven days.
pub const ABOVE_UNKNOWN: u64 = 1_000_000;

/// What a database says about the numbers that its stores have given out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Whether it has gone on from the backup, so that it knows of everything since.
    pub(super) goes_on: bool,
    /// The next version of each store, with which store of that name it is.
    pub(super) stores: BTreeMap<String, (Uuid, u64)>,
    /// The highest next version of any store, those included that were deleted and that its log still tells of.
    pub(super) highest: u64,
}

impl Known {
    /// What a server that has seen more than its database has now knows of the stores. It may not have seen all there was.
    pub(crate) fn lost_with(snapshot: &Snapshot) -> Self {
        let stores = snapshot.roots::<Store>().filter_map(Result::ok);
        let stores = stores.map(|(place, store)| (place.id(), (store.incarnation, store.next_version)));
        let stores: BTreeMap<_, _> = stores.collect();
        let highest = stores.values().map(|(_, next)| *next).max().unwrap_or(0);
        Known { goes_on: false, stores, highest }
    }
}

/// The number that the next version of a store gets after a restore.
fn raised(store: &Store, name: &str, known: &Known, now: Timestamp) -> u64 {
    match known.stores.get(name) {
        Some((incarnation, next)) if known.goes_on && *incarnation == store.incarnation => {
            store.next_version.max(*next).saturating_add(ABOVE_KNOWN)
        }
        other => above_unknown(store.next_version.max(other.map_or(0, |(_, next)| *next)), now),
    }
}

/// The number that the first version of a store gets that is made after a restore, where `before` is the highest in the backup.
fn floor(before: u64, known: &Known, now: Timestamp) -> u64 {
    let highest = before.max(known.highest);
    if known.goes_on { highest.saturating_add(ABOVE_KNOWN) } else { above_unknown(highest, now) }
}

fn above_unknown(number: u64, now: Timestamp) -> u64 {
    number.saturating_add(ABOVE_UNKNOWN).max(u64::try_from(now.0 / 1_000).unwrap_or(0))
}

/// Raises the numbers of all stores, and of those that will be made, and keeps on record why.
pub(crate) fn raise(
    transaction: &mut Transaction,
    known: &Known,
    what: &str,
    by: &str,
    reason: &str,
) -> Result<(), TransactionError> {
    let now = transaction.now();
    let place = Ref::<VersionFloor>::root(VersionFloor::ID).map_err(TransactionError::Path)?;
    let mut before = transaction.get(&place)?.map_or(0, |floor| floor.next_version);
    for (place, store) in transaction.roots::<Store>()? {
        before = before.max(store.next_version);
        let next_version = raised(&store, &place.id(), known, now);
        transaction.put(&place, Store { next_version, ..Store::clone(&store) })?;
    }
    transaction.put(&place, VersionFloor { next_version: floor(before, known, now) })?;
    transaction.append(&OperatorAction {
        store: None,
        push: None,
        region: None,
        what: what.to_owned(),
        by: by.to_owned(),
        reason: reason.to_owned(),
        at: now,
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Early enough that it says nothing.
    const EARLY: Timestamp = Timestamp(0);

    fn store(incarnation: u128, next_version: u64) -> Store {
        let store = Store::new(Uuid::from_u128(incarnation), Timestamp(0), "a", vec!["k".to_owned()]);
        Store { next_version, ..store }
    }

    #[test]
    fn d36_a_number_is_above_all_that_any_database_knows_and_far_above_where_none_does() {
        let known = |goes_on, incarnation, next| Known {
            goes_on,
            stores: BTreeMap::from([("s".to_owned(), (Uuid::from_u128(incarnation), next))]),
            highest: next,
        };
        let of = |known: Known| raised(&store(1, 8), "s", &known, EARLY);
        assert_eq!(of(known(true, 1, 58)), 58 + ABOVE_KNOWN);
        // It was put back itself, or is of another installation.
        assert_eq!(of(known(false, 1, 5)), 8 + ABOVE_UNKNOWN);
        assert_eq!(of(known(false, 1, 58)), 58 + ABOVE_UNKNOWN);
        // Deleted since, and made anew under the same name; or not made anew.
        assert_eq!(of(known(true, 2, 3)), 8 + ABOVE_UNKNOWN);
        assert_eq!(of(Known { goes_on: true, ..Known::default() }), 8 + ABOVE_UNKNOWN);
        assert_eq!(raised(&store(1, u64::MAX), "s", &Known::default(), EARLY), u64::MAX);
    }

    #[test]
    fn d36_a_backup_that_is_restored_twice_by_nobody_who_knows_gives_other_numbers_each_time() {
        let at = |seconds: i64| {
            let now = Timestamp(seconds * 1_000);
            (raised(&store(1, 8), "s", &Known::default(), now), floor(0, &Known::default(), now))
        };
        let (first, second) = (at(1_790_000_000), at(1_790_000_060));
        assert_eq!(first, (1_790_000_000, 1_790_000_000));
        assert!(second.0 > first.0 && second.1 > first.1);
    }

    #[test]
    fn d36_a_store_that_is_made_again_begins_above_all_that_was_lost() {
        let known = |goes_on| Known { goes_on, highest: 58, ..Known::default() };
        assert_eq!(floor(0, &known(true), EARLY), 58 + ABOVE_KNOWN);
        assert_eq!(floor(90, &known(true), EARLY), 90 + ABOVE_KNOWN, "an earlier restore's");
        assert_eq!(floor(0, &known(false), EARLY), 58 + ABOVE_UNKNOWN);
    }
}
