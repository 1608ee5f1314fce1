//! The servers of the control plane.

use reqwest::Method;
use tidegate_api::{ClusterView, SetBackConfirm, SetBackConfirmed};

use crate::client::Client;
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// Who is in the cluster, what each server leases and how far it is behind, and what waits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster(&self) -> Result<ClusterView, Error> {
        self.get_json(self.route(&["v1", "cluster"], &[])).await
    }

    /// Confirms that the database was put back to an older state, and that what came after it is lost.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn confirm_set_back(&self, reason: &str) -> Result<SetBackConfirmed, Error> {
        let url = self.route(&["v1", "cluster", "confirm-set-back"], &[]);
        let body = SetBackConfirm { reason: reason.to_owned() };
        self.send_json(Method::POST, url, &body, Repeat::UnlessSent).await
    }
}
