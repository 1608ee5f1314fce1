//! The servers of the control plane.

use tidegate_api::ClusterView;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// Who is in the cluster, what each server leases and how far it is behind, and what waits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster(&self) -> Result<ClusterView, Error> {
        self.get_json(self.route(&["v1", "cluster"], &[])).await
    }
}
