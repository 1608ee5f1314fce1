//! Regions.

use reqwest::Method;
use tidegate_api::{AvailabilityRequest, RegionSettings, RegionView};

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// All regions, in order of their names.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn regions(&self) -> Result<Vec<RegionView>, Error> {
        self.get_json(self.route(&["v1", "regions"], &[])).await
    }

    /// A region.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn region(&self, region: &str) -> Result<RegionView, Error> {
        self.get_json(self.route(&["v1", "regions", region], &[])).await
    }

    /// Adds a region, or changes its settings.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_region(&self, region: &str, settings: &RegionSettings) -> Result<RegionView, Error> {
        self.send_json(Method::PUT, self.route(&["v1", "regions", region], &[]), settings, Repeat::Always).await
    }

    /// Removes a region. Whoever hosts it goes on serving what it has, and is refused with its reports.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_region(&self, region: &str, reason: &str) -> Result<(), Error> {
        let url = self.route(&["v1", "regions", region], &[("reason", Some(reason))]);
        let request = Request { method: Method::DELETE, url, body: Body::Nothing, repeat: Repeat::UnlessSent };
        self.request_bytes(&request).await.map(|_| ())
    }

    /// Marks a region as available or not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn mark_region(&self, region: &str, availability: &AvailabilityRequest) -> Result<RegionView, Error> {
        let url = self.route(&["v1", "regions", region, "availability"], &[]);
        self.send_json(Method::PUT, url, availability, Repeat::Always).await
    }
}
