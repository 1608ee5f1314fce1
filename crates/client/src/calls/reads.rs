//! Look-ups.

use reqwest::Method;
use tidegate_api::{BatchAnswer, BatchRequest, ErrorBody, KeyAnswer, code};

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
        if matches!(key, "" | "." | "..") {
            return self.get_unaddressable(store, key, region).await;
        }
        let url = self.route(&["v1", "stores", store, "keys", key], &[("region", region)]);
        self.get_json(url).await
    }

    /// Reads a key that can't be the last segment of an address: every client and proxy takes it for another address.
    async fn get_unaddressable(&self, store: &str, key: &str, region: Option<&str>) -> Result<KeyAnswer, Error> {
        let answer = self.get_batch(store, vec![key.to_owned()], region).await?;
        let value = answer.values.into_iter().next().and_then(|found| found.value);
        let value = value.ok_or_else(|| Error::Refused {
            status: 404,
            body: Box::new(ErrorBody::new(
                code::KEY_ABSENT,
                format!("Store `{store}` has no key `{key}`."),
                format!("Version {} has no such record.", answer.version),
                "Nothing was changed.",
                "Look the key up as the data has it; keys are compared byte by byte.",
            )),
        })?;
        Ok(KeyAnswer { key: key.to_owned(), value, version: answer.version, region: answer.region, node: answer.node })
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
