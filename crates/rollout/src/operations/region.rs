//! Adding, marking and removing regions.

use tidegate_state::{Ref, Transaction, TransactionError};

use super::{OperationError, Operations, OperatorAction, check_folder_name, check_reason};
use crate::entities::{Availability, Region};

impl Operations {
    /// Adds a region, or changes its settings. Stores reach it through its own gates, without a new push.
    ///
    /// # Errors
    /// A name that is none, a number of nodes that can't be enough.
    pub async fn register_region(&self, name: &str, region: Region, by: &str) -> Result<Region, OperationError> {
        let (name, by) = (name.to_owned(), by.to_owned());
        self.write(move |transaction, _| {
            check_folder_name("region's name", &name)?;
            if region.nodes == 0 || region.enough == 0 || region.enough > region.nodes {
                return Err(OperationError::Invalid {
                    what: format!("the settings of region {name}"),
                    why: format!("enough is {} of {} nodes; it has to be from 1 to all", region.enough, region.nodes),
                });
            }
            let place = Ref::<Region>::root(name.clone()).map_err(TransactionError::Path)?;
            let before = transaction.get(&place)?;
            let after = Region {
                // What was marked by hand is not undone by a restart that registers the region again.
                availability: before.as_ref().map_or(region.availability.clone(), |was| was.availability.clone()),
                added_at: before.as_ref().map_or(transaction.now(), |was| was.added_at),
                ..region.clone()
            };
            if before.as_deref() != Some(&after) {
                transaction.put(&place, after.clone())?;
                OperatorAction::new(transaction, "register region", &by, "").in_region(&name).keep(transaction)?;
            }
            Ok(after)
        })
        .await
    }

    /// Marks a region available or not. Pushes leave out one that is not; one that is again gets what the others serve.
    ///
    /// # Errors
    /// An unknown region; no reason for marking it unavailable.
    pub async fn mark_region(
        &self,
        name: &str,
        available: bool,
        by: &str,
        reason: &str,
    ) -> Result<Region, OperationError> {
        let (name, by, reason) = (name.to_owned(), by.to_owned(), reason.to_owned());
        self.write(move |transaction, _| {
            let (place, mut region) = region_of(transaction, &name)?;
            if available == region.availability.is_available() {
                return Ok(region);
            }
            region.availability = if available {
                Availability::Available
            } else {
                check_reason(&reason)?;
                Availability::Unavailable { reason: reason.clone(), by: by.clone(), since: transaction.now() }
            };
            transaction.put(&place, region.clone())?;
            let what = if available { "mark available" } else { "mark unavailable" };
            OperatorAction::new(transaction, what, &by, &reason).in_region(&name).keep(transaction)?;
            Ok(region)
        })
        .await
    }

    /// Removes a region, with its assignments and reports. What its agent still reports is refused; it goes on serving what
    /// it has. Pushes that run go on without it.
    ///
    /// # Errors
    /// An unknown region.
    pub async fn remove_region(&self, name: &str, by: &str, reason: &str) -> Result<(), OperationError> {
        let (name, by, reason) = (name.to_owned(), by.to_owned(), reason.to_owned());
        self.write(move |transaction, _| {
            let (place, _) = region_of(transaction, &name)?;
            transaction.delete(&place)?;
            OperatorAction::new(transaction, "remove region", &by, &reason).in_region(&name).keep(transaction)
        })
        .await
    }
}

fn region_of(transaction: &Transaction, name: &str) -> Result<(Ref<Region>, Region), OperationError> {
    let known = || -> Result<Vec<String>, OperationError> {
        Ok(transaction.roots::<Region>()?.iter().map(|(region, _)| region.id()).collect())
    };
    if let Ok(place) = Ref::<Region>::root(name)
        && let Some(region) = transaction.get(&place)?
    {
        return Ok((place, (*region).clone()));
    }
    Err(OperationError::RegionUnknown { region: name.to_owned(), known: known()? })
}
