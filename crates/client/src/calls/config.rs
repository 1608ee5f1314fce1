//! The configuration in force.

use reqwest::Method;
use tidegate_api::{ConfigView, HooksConfigUpdate, HooksConfigView};

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// The configuration in force and where it came from.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn config(&self) -> Result<ConfigView, Error> {
        self.get_json(self.route(&["v1", "config"], &[])).await
    }

    /// Publishes a hooks configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish_hooks(&self, update: &HooksConfigUpdate) -> Result<HooksConfigView, Error> {
        let url = self.route(&["v1", "config", "hooks"], &[]);
        self.send_json(Method::PUT, url, update, Repeat::Always).await
    }

    /// Publishes the hooks configuration of a TOML file: its `[hooks]` table and what is below
    /// it. The file may have a server's other tables too, and no further ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish_hooks_toml(&self, toml: &str) -> Result<HooksConfigView, Error> {
        self.put_hooks_toml(toml, None).await
    }

    /// What [`publish_hooks_toml`](Self::publish_hooks_toml) would put in force, or why it would
    /// be refused; of generation 0. Nothing is published.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check_hooks_toml(&self, toml: &str) -> Result<HooksConfigView, Error> {
        self.put_hooks_toml(toml, Some("true")).await
    }

    async fn put_hooks_toml(&self, toml: &str, check: Option<&str>) -> Result<HooksConfigView, Error> {
        self.request(Request {
            method: Method::PUT,
            url: self.route(&["v1", "config", "hooks"], &[("check", check)]),
            body: Body::Text("application/toml", toml),
            repeat: Repeat::Always,
        })
        .await
    }
}
