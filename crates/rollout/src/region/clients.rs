//! Embedded clients: applications that hold a store's data in their own process.
//!
//! They talk to their region's agent, which tells them what they may do and counts how far they are.
//! The control plane decides on those counts: in the default mode a region's swap waits until its
//! clients serve the version, in the other the clients wait for the region.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::engine::StoreKey;
use crate::entities::{EmbeddedCounts, EmbeddedPermission};

pub mod scripted;

/// What clients may do with a version, and which data it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientVersion {
    /// What they may do.
    pub permission: EmbeddedPermission,
    /// The artifact.
    pub artifact: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
}

/// All that clients of one store are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientOrders {
    /// Versions that they may load or serve. What is not here they let go, but for what they serve
    /// until they can serve something else.
    pub versions: BTreeMap<u64, ClientVersion>,
    /// What the region's own nodes serve.
    pub region_serves: Option<u64>,
}

/// The embedded clients of a region, as its agent sees them.
#[async_trait]
pub trait EmbeddedClients: Send + Sync + 'static {
    /// Tells the clients of a store what they may do. Idempotent: the last word counts, and saying
    /// it again starts nothing again. `None`: the store is gone.
    async fn order(&self, store: &StoreKey, orders: Option<ClientOrders>);

    /// How many there are, and how far they are.
    fn counts(&self, store: &StoreKey) -> EmbeddedCounts;

    /// Changes whenever counts may have changed.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A region without embedded clients.
#[derive(Debug)]
pub struct NoClients {
    changes: watch::Sender<u64>,
}

impl Default for NoClients {
    fn default() -> Self {
        NoClients { changes: watch::Sender::new(0) }
    }
}

#[async_trait]
impl EmbeddedClients for NoClients {
    async fn order(&self, _: &StoreKey, _: Option<ClientOrders>) {}

    fn counts(&self, _: &StoreKey) -> EmbeddedCounts {
        EmbeddedCounts::default()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// What to tell clients now, given what the assignment permits, what the region serves and what they were told before.
///
/// A permission to serve that comes together with the region's own swap is kept back until the region serves the version:
/// clients that swap with the region never run ahead of it. One that was given before stays given.
pub(crate) fn orders(
    permitted: &BTreeMap<u64, ClientVersion>,
    serve: Option<u64>,
    region_serves: Option<u64>,
    told: Option<&ClientOrders>,
) -> ClientOrders {
    let versions = permitted
        .iter()
        .filter(|(_, version)| version.permission != EmbeddedPermission::None)
        .map(|(number, version)| {
            let mut version = version.clone();
            let was_told = told
                .and_then(|told| told.versions.get(number))
                .is_some_and(|told| told.permission == EmbeddedPermission::Serve);
            if version.permission == EmbeddedPermission::Serve
                && serve == Some(*number)
                && region_serves != Some(*number)
                && !was_told
            {
                version.permission = EmbeddedPermission::Ingest;
            }
            (*number, version)
        })
        .collect();
    ClientOrders { versions, region_serves }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(permission: EmbeddedPermission) -> BTreeMap<u64, ClientVersion> {
        let version = ClientVersion { permission, artifact: "a".to_owned(), manifest_sha256: "m".to_owned() };
        [(2, version)].into()
    }

    fn told(orders: &ClientOrders) -> Option<EmbeddedPermission> {
        orders.versions.get(&2).map(|version| version.permission)
    }

    #[test]
    fn e1_in_the_default_mode_permission_to_serve_comes_before_the_regions_swap_and_is_passed_on() {
        let orders = orders(&permitted(EmbeddedPermission::Serve), Some(1), Some(1), None);
        assert_eq!(told(&orders), Some(EmbeddedPermission::Serve));
    }

    #[test]
    fn e2_permission_to_serve_that_comes_with_the_swap_waits_for_it() {
        let serve = permitted(EmbeddedPermission::Serve);
        let before = orders(&serve, Some(2), Some(1), None);
        assert_eq!(told(&before), Some(EmbeddedPermission::Ingest));
        let after = orders(&serve, Some(2), Some(2), Some(&before));
        assert_eq!(told(&after), Some(EmbeddedPermission::Serve));
    }

    #[test]
    fn e1_permission_that_was_given_is_not_taken_back_by_the_swap() {
        let serve = permitted(EmbeddedPermission::Serve);
        let before = orders(&serve, Some(1), Some(1), None);
        let during = orders(&serve, Some(2), Some(1), Some(&before));
        assert_eq!(told(&during), Some(EmbeddedPermission::Serve));
    }

    #[test]
    fn e3_without_permission_nothing_is_told() {
        let orders = orders(&permitted(EmbeddedPermission::None), Some(1), Some(1), None);
        assert_eq!(told(&orders), None);
    }
}
