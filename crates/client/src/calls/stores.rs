//! Stores, their schemas, versions and hook settings.

use reqwest::Method;
use tidegate_api::manifest::Schema;
use tidegate_api::{
    OverridesUpdate, OverridesView, RegisterSchemaRequest, RollbackAnswer, RollbackRequest, SchemaView, StoreCreate,
    StorePatch, StoreView, VersionView,
};

use crate::client::{Body, Client, Request};
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// All stores, in order of their names.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stores(&self) -> Result<Vec<StoreView>, Error> {
        self.get_json(self.route(&["v1", "stores"], &[])).await
    }

    /// One store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn store(&self, name: &str) -> Result<StoreView, Error> {
        self.get_json(self.route(&["v1", "stores", name], &[])).await
    }

    /// Creates a store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_store(&self, store: &StoreCreate) -> Result<StoreView, Error> {
        let url = self.route(&["v1", "stores"], &[]);
        self.send_json(Method::POST, url, store, Repeat::UnlessSent).await
    }

    /// Changes settings of a store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_store(&self, name: &str, patch: &StorePatch) -> Result<StoreView, Error> {
        let url = self.route(&["v1", "stores", name], &[]);
        self.send_json(Method::PATCH, url, patch, Repeat::Always).await
    }

    /// Deletes a store with all its versions.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_store(&self, name: &str) -> Result<(), Error> {
        self.request_bytes(&Request {
            method: Method::DELETE,
            url: self.route(&["v1", "stores", name], &[]),
            body: Body::Nothing,
            repeat: Repeat::UnlessSent,
        })
        .await
        .map(|_| ())
    }

    /// The hook settings of a store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn overrides(&self, store: &str) -> Result<OverridesView, Error> {
        self.get_json(self.route(&["v1", "stores", store, "hooks"], &[])).await
    }

    /// Changes the hook settings of a store: all of it, or nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_overrides(&self, store: &str, update: &OverridesUpdate) -> Result<OverridesView, Error> {
        let url = self.route(&["v1", "stores", store, "hooks"], &[]);
        self.send_json(Method::PUT, url, update, Repeat::Always).await
    }

    /// The registered schemas of a store, the newest last.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn schemas(&self, store: &str) -> Result<Vec<SchemaView>, Error> {
        self.get_json(self.route(&["v1", "stores", store, "schemas"], &[])).await
    }

    /// Registers a schema. One that is registered already stays as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_schema(&self, store: &str, schema: Schema) -> Result<SchemaView, Error> {
        let url = self.route(&["v1", "stores", store, "schemas"], &[]);
        let body = RegisterSchemaRequest { schema };
        self.send_json(Method::POST, url, &body, Repeat::Always).await
    }

    /// The versions of a store, the newest last.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn versions(&self, store: &str) -> Result<Vec<VersionView>, Error> {
        self.get_json(self.route(&["v1", "stores", store, "versions"], &[])).await
    }

    /// Rolls a store back. Not repeated once it may have arrived.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn roll_back_store(&self, store: &str, request: &RollbackRequest) -> Result<RollbackAnswer, Error> {
        let url = self.route(&["v1", "stores", store, "rollback"], &[]);
        self.send_json(Method::POST, url, request, Repeat::UnlessSent).await
    }
}
