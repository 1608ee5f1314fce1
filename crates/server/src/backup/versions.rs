//! The numbers of versions after a restore, and after it was confirmed that a database was put back. A number is never given out twice: regions, caches and people know a version
//! by it.
//!
//! A store counts its versions in its own entity, which goes back with the restore; what was given out between the backup
//! and the restore is lost with it. So each store's next number rises:
//!
//! - where the database that is replaced is of the same installation and epoch and has gone on from the backup, it knows
//!   what was given out: by [`ABOVE_KNOWN`] above the higher of the two, for pushes that start while it is being replaced;
//! - else (a new machine, a damaged database, one that was itself put back, a store that was deleted since) nobody knows:
//!   by [`ABOVE_UNKNOWN`].
//!
//! Artifacts are no evidence: one is known by its digest, and carries no version's number.

use std::collections::BTreeMap;

use tidegate_rollout::entities::Store;
use tidegate_rollout::operations::OperatorAction;
use tidegate_state::{Snapshot, Transaction, TransactionError};
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
}

impl Known {
    /// What a server that has seen more than its database has now knows of the stores. It may not have seen all there was.
    pub(crate) fn lost_with(snapshot: &Snapshot) -> Self {
        let stores = snapshot.roots::<Store>().filter_map(Result::ok);
        let stores = stores.map(|(place, store)| (place.id(), (store.incarnation, store.next_version)));
        Known { goes_on: false, stores: stores.collect() }
    }
}

/// The number that the next version of a store gets after a restore.
fn raised(store: &Store, name: &str, known: &Known) -> u64 {
    match known.stores.get(name) {
        Some((incarnation, next)) if known.goes_on && *incarnation == store.incarnation => {
            store.next_version.max(*next).saturating_add(ABOVE_KNOWN)
        }
        other => store.next_version.max(other.map_or(0, |(_, next)| *next)).saturating_add(ABOVE_UNKNOWN),
    }
}

/// Raises the numbers of all stores, and keeps on record why.
pub(crate) fn raise(
    transaction: &mut Transaction,
    known: &Known,
    what: &str,
    by: &str,
    reason: &str,
) -> Result<(), TransactionError> {
    for (place, store) in transaction.roots::<Store>()? {
        let next_version = raised(&store, &place.id(), known);
        transaction.put(&place, Store { next_version, ..Store::clone(&store) })?;
    }
    let at = transaction.now();
    transaction.append(&OperatorAction {
        store: None,
        push: None,
        region: None,
        what: what.to_owned(),
        by: by.to_owned(),
        reason: reason.to_owned(),
        at,
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidegate_state::Timestamp;

    use super::*;

    fn store(incarnation: u128, next_version: u64) -> Store {
        let store = Store::new(Uuid::from_u128(incarnation), Timestamp(0), "a", vec!["k".to_owned()]);
        Store { next_version, ..store }
    }

    #[test]
    fn d36_a_number_is_above_all_that_any_database_knows_and_far_above_where_none_does() {
        let known = |goes_on, incarnation, next| Known {
            goes_on,
            stores: BTreeMap::from([("s".to_owned(), (Uuid::from_u128(incarnation), next))]),
        };
        let of = |known: Known| raised(&store(1, 8), "s", &known);
        assert_eq!(of(known(true, 1, 58)), 58 + ABOVE_KNOWN);
        // It was put back itself, or is of another installation.
        assert_eq!(of(known(false, 1, 5)), 8 + ABOVE_UNKNOWN);
        assert_eq!(of(known(false, 1, 58)), 58 + ABOVE_UNKNOWN);
        // Deleted since, and made anew under the same name; or not made anew.
        assert_eq!(of(known(true, 2, 3)), 8 + ABOVE_UNKNOWN);
        assert_eq!(of(Known { goes_on: true, stores: BTreeMap::new() }), 8 + ABOVE_UNKNOWN);
        assert_eq!(raised(&store(1, u64::MAX), "s", &Known::default()), u64::MAX);
    }
}
