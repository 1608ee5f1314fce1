//! Look-ups.

use reqwest::Method;
use tidegate_api::{BatchAnswer, BatchRequest, KeyAnswer, code};

use crate::client::Client;
use crate::error::Error;
use crate::retry::Repeat;

impl Client {
    /// The record with this key, from a node of the region; without a region, from any.
    ///
    /// A key of several columns is written as a JSON array of their values.
    ///
    /// # Errors
    /// See [`Error`]; a key that is not there is refused with
    /// [`KEY_ABSENT`](tidegate_api::code::KEY_ABSENT).
    pub async fn get(&self, store: &str, key: &str, region: Option<&str>) -> Result<KeyAnswer, Error> {
        let url = self.route(&["v1", "stores", store, "keys", key], &[("region", region)]);
        self.get_json(url).await
    }

    /// As [`get`](Self::get), but `None` if there is no such key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find(&self, store: &str, key: &str, region: Option<&str>) -> Result<Option<KeyAnswer>, Error> {
        match self.get(store, key, region).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.code() == Some(code::KEY_ABSENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The records with these keys, all from one version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_batch(&self, store: &str, keys: Vec<String>, region: Option<&str>) -> Result<BatchAnswer, Error> {
        let url = self.route(&["v1", "stores", store, "keys:batch"], &[("region", region)]);
        self.send_json(Method::POST, url, &BatchRequest { keys }, Repeat::Always).await
    }
}
