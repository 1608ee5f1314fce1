//! Regions.

use reqwest::Method;
use tidegate_api::{AvailabilityRequest, RegionView};

use crate::client::Client;
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

    /// Marks a region as available or not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn mark_region(&self, region: &str, availability: &AvailabilityRequest) -> Result<RegionView, Error> {
        let url = self.route(&["v1", "regions", region, "availability"], &[]);
        self.send_json(Method::PUT, url, availability, Repeat::Always).await
    }
}
